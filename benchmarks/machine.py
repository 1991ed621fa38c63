"""What a figure was taken on: the machine, the file system, the load; and the bytes that reached the device."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_SECTOR_BYTES = 512  # of the kernel's block statistics, whatever the device


def facts(directory: Path) -> dict[str, Any]:
    """Returns what a reader of the figures needs to know of the machine; no path and no name of it."""
    import numpy

    import mmwal

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "file_system": file_system(directory),
        "device": (Device(directory).name or "unknown"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": numpy.__version__,
        "mmwal": mmwal.__version__,
    }


def load_average() -> float:
    """Returns how many tasks wanted a core during the last minute."""
    return os.getloadavg()[0]


def file_system(directory: Path) -> str:
    """Returns the type of the file system that holds a directory."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == wanted]
    return kinds[-1] if kinds else "unknown"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Device:
    """The block device under a directory: what it wrote, for everybody who uses it."""

    def __init__(self, directory: Path) -> None:
        number = os.stat(directory).st_dev
        self._statistics = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
        self.name = self._statistics.parent.resolve().name if self._statistics.exists() else ""

    def written_bytes(self) -> int | None:
        """Returns the bytes written since boot, other programs' included; None where nobody counts."""
        try:
            return int(self._statistics.read_text("ascii").split()[6]) * _SECTOR_BYTES
        except OSError:
            return None


def dirtied_bytes() -> int | None:
    """Returns the bytes of pages that this process made dirty, each counted anew after it was written back.

    Other programs do not disturb it. It leaves out what the file system writes of its own: journal and tables.
    """
    try:
        lines = Path("/proc/self/io").read_text("ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes:")), None)
