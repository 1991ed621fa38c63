"""What makes a directory a poor place for durable data."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_MEMORY = {"tmpfs", "ramfs"}
_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "afs",
    "glusterfs",
    "lustre",
    "virtiofs",
    "webdav",
}
_TEMPORARY = ("/tmp", "/var/tmp", "/private/tmp")


class Mount(NamedTuple):
    """A mounted file system."""

    point: str
    kind: str
    options: tuple[str, ...]


def warnings_for(path: str) -> list[str]:
    """Returns sentences on why ``path`` may lose what is written there; each ends with what to do."""
    real = os.path.realpath(path)
    mount = mount_of(real, mounts())
    found = [*_about_file_system(path, mount)] if mount is not None else []
    if mount is None or mount.kind not in _MEMORY:
        found += _about_temporary(path, real)
    return found


def _about_file_system(path: str, mount: Mount) -> list[str]:
    place = f"{path} is on {mount.kind} (mounted at {mount.point})"
    found = []
    if mount.kind in _MEMORY:
        found.append(f"{place}, which lives in memory: all is lost when the machine stops. Use a directory on a disk.")
    elif mount.kind in _NETWORK or mount.kind.startswith("fuse"):
        found.append(
            f"{place}: what a sync promises and whether locks hold there depends on another program or "
            "machine. Use a directory on a local disk."
        )
    elif mount.kind == "overlay":
        found.append(f"{place}, a container's own layer, which goes with the container. Mount a volume and use that.")
    if "volatile" in mount.options or "nobarrier" in mount.options or "barrier=0" in mount.options:
        found.append(f"{place} with options that make syncs a promise without effect. Mount it without them.")
    return found


def _about_temporary(path: str, real: str) -> list[str]:
    own = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    for folder in (*_TEMPORARY, *own):
        if _contains(os.path.realpath(folder), real):
            return [f"{path} is below {folder}, which is cleared now and then. Use a directory that is kept."]
    return []


def file_system_of(path: str) -> str | None:
    """Returns the type of the file system that holds ``path``; None where the system does not tell."""
    mount = mount_of(os.path.realpath(path), mounts())
    return mount.kind if mount is not None else None


def mount_of(real: str, table: list[Mount]) -> Mount | None:
    """Returns the mount that holds a path without links: the longest one, and of equals the latest."""
    best = None
    for mount in table:
        if _contains(mount.point, real) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def mounts() -> list[Mount]:
    """Returns what is mounted, in order; nothing where the system does not tell."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            return [_parse(line) for line in file]
    except FileNotFoundError:
        import psutil  # not Linux

        return [Mount(p.mountpoint, p.fstype, tuple(p.opts.split(","))) for p in psutil.disk_partitions(all=True)]


def _parse(line: str) -> Mount:
    _, point, kind, options, *_ = line.split(" ")
    return Mount(_unescape(point), kind, tuple(options.split(",")))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _contains(folder: str, path: str) -> bool:
    return folder in ("/", path) or path.startswith(folder + "/")
