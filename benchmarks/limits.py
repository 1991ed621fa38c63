"""The limits that a benchmark stands beside, measured in the same run on the same directory.

memory      copy a record into a populated mapped file and checksum it, one core, in C
floor       an empty Python method that calls an empty C method, both with the arguments of `log_insert`
sync        write 4 KiB to a written, preallocated file + fdatasync
sequential  write a written, preallocated file in pieces of 3 MiB, fdatasync after each

With a C compiler the first two, the waiting and the stop-watch are those of `limits.c`, compiled for the run. Without
one there are stand-ins, which `Helper.note` names. Not here: what is measured against the limits (`append.py`).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import mmap
import os
import shlex
import subprocess
import sysconfig
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_name("limits.c")
SEQUENTIAL_STEP_BYTES = 3 << 20
SYNC_STEP_BYTES = 4096
_HEADER_BYTES = 64
_ZERO_STEP_BYTES = 4096
_SOURCE_BYTES = 4 << 20


class Helper:
    """The functions of `limits.c`, or what the standard library and NumPy offer instead of them."""

    def __init__(self, directory: Path) -> None:
        compiled = _compiled(directory)
        self.compiled = compiled is not None
        self.note = (
            ""
            if compiled
            else (
                "no C compiler: memory is NumPy's copyto and zlib.crc32, the floor calls math.gcd(), "
                "waiting is sleep(0), and a stop of a thread includes the scheduler's"
            )
        )
        self.nothing: Callable[..., Any] = compiled.nothing if compiled else _nothing
        self.wait_until: Callable[[int], None] = compiled.wait_until if compiled else _wait_until
        self.nap: Callable[[int], int] = compiled.nap if compiled else _nap
        self._compiled = compiled

    def populate(self, mapping: Any) -> None:
        """Takes the write faults of a mapping."""
        if self._compiled:
            self._compiled.populate(mapping)
        else:
            pages = np.frombuffer(mapping, np.uint8)[::4096]
            pages |= 0

    def memory(self, to: Any, source: Any, record_bytes: int, start: int, count: int) -> float:
        """Copies and checksums ``count`` records into a mapping; returns nanoseconds for each."""
        if self._compiled:
            return float(self._compiled.memory(to, source, record_bytes, start, count)[0])
        step = -(-(_HEADER_BYTES + record_bytes) // 64) * 64
        target, given = np.frombuffer(to, np.uint8), np.frombuffer(source, np.uint8).reshape(-1, record_bytes)
        started_ns = time.perf_counter_ns()
        for i in range(count):
            at = (start + i) * step + _HEADER_BYTES
            np.copyto(target[at : at + record_bytes], given[i % len(given)])
            zlib.crc32(memoryview(target)[at : at + record_bytes])  # type: ignore[arg-type]
        return (time.perf_counter_ns() - started_ns) / count

    def checksum(self, content: Any) -> None:
        """Checksums a buffer; other threads go on."""
        (self._compiled.checksum if self._compiled else zlib.crc32)(content)

    def copy(self, to: Any, row_bytes: int, stride: int) -> None:
        """Fills rows of a mapping, each from the next of some MiB of rows; other threads go on."""
        source = np.random.default_rng(0).bytes(max(_SOURCE_BYTES // row_bytes, 1) * row_bytes)
        if self._compiled:
            self._compiled.copy(to, source, row_bytes, stride)
            return
        target = np.frombuffer(to, np.uint8).reshape(-1, stride)
        given = np.frombuffer(source, np.uint8).reshape(-1, row_bytes)
        for start in range(0, len(target), len(given)):
            rows = target[start : start + len(given), :row_bytes]
            np.copyto(rows, given[: len(rows)])


class Floor:
    """The call floor: the frame and the call of `WalManager.log_insert`, and nothing in them."""

    def __init__(self, nothing: Callable[..., Any]) -> None:
        self._append = nothing

    def log_insert(self, id: Any, vector: Any = None, metadata: Any = None, *, durable: bool = False) -> Any:
        """Passes on six arguments."""
        return self._append(1, id, vector, metadata, 0, -1)


class StandInFloor(Floor):
    """The same without `limits.c`: the only six arguments that a builtin with little to do takes are numbers."""

    def log_insert(self, id: Any, vector: Any = None, metadata: Any = None, *, durable: bool = False) -> Any:
        """Passes on six arguments."""
        return self._append(1, 0, 0, 0, 0, 1)


class MemoryLimit:
    """A mapped file of written blocks to copy into."""

    def __init__(self, helper: Helper, directory: Path, size: int) -> None:
        self._helper = helper
        self._path = directory / "memory"
        _write_file(self._path, size)
        with self._path.open("r+b") as file:
            self._mapping = mmap.mmap(file.fileno(), size)
        self._next = 0

    def measure(self, source: Any, record_bytes: int, count: int) -> float:
        """Returns nanoseconds for one record; places that were not used lately, as in a log."""
        step = -(-(_HEADER_BYTES + record_bytes) // 64) * 64
        fitting = len(self._mapping) // step
        count = min(count, fitting)
        if self._next + count > fitting:
            self._next = 0
        if self._next == 0:
            self._helper.populate(self._mapping)
        taken_ns = self._helper.memory(self._mapping, source, record_bytes, self._next, count)
        self._next += count
        return taken_ns

    def close(self) -> None:
        """Removes the file."""
        self._path.unlink()


class WriteLimit:
    """A written, preallocated file that is written to again, with an fdatasync after each piece."""

    def __init__(self, directory: Path, name: str, size: int, step_bytes: int) -> None:
        self._path = directory / name
        self._step_bytes = step_bytes
        self._size = size // step_bytes * step_bytes
        _write_file(self._path, self._size)
        self._fd = os.open(self._path, os.O_RDWR)
        self._piece = os.urandom(step_bytes)
        self._at = 0

    def once(self) -> int:
        """Writes and syncs one piece; returns its bytes."""
        os.pwrite(self._fd, self._piece, self._at)
        os.fdatasync(self._fd)
        self._at = (self._at + self._step_bytes) % self._size
        return self._step_bytes

    def close(self) -> None:
        """Closes and removes the file."""
        os.close(self._fd)
        self._path.unlink()


def _write_file(path: Path, size: int) -> None:
    """Makes a file of real, written blocks, kept small in the cache as the log's segments are."""
    zeros = bytes(_ZERO_STEP_BYTES)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        for offset in range(0, size, _ZERO_STEP_BYTES):
            os.pwrite(fd, zeros[: size - offset], offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _compiled(directory: Path) -> Any:
    """Compiles `limits.c` and imports it; None where that does not work."""
    target = directory / "mmwal_limits.so"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    command = [
        *compiler,
        "-O3",
        "-shared",
        "-fPIC",
        f"-I{sysconfig.get_path('include')}",
        str(SOURCE),
        "-o",
        str(target),
    ]
    try:
        if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode:
            return None
        loader = importlib.machinery.ExtensionFileLoader("mmwal_limits", str(target))
        spec = importlib.util.spec_from_loader("mmwal_limits", loader)
        if spec is None:
            return None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (OSError, ImportError, subprocess.TimeoutExpired):
        return None
    return module


_nothing = math.gcd


def _wait_until(until_ns: int) -> None:
    while time.perf_counter_ns() < until_ns:
        time.sleep(0)


def _nap(length_ns: int) -> int:
    started_ns = time.perf_counter_ns()
    time.sleep(length_ns / 1e9)
    return time.perf_counter_ns() - started_ns - length_ns
