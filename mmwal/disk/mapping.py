"""Shared mappings of files, by the C library's own calls.

Not `mmap.mmap`: it holds the GIL through msync and madvise, refuses to map beyond the end of a file that will
grow, and must be closed by hand. Here the memory is unmapped when its last view is gone.

* The chain of life is view -> ctypes buffer -> finalizer. Slices, casts and NumPy arrays of the view hold the
  buffer.
* A page that the file does not reach, or that has no block on a full disk, kills the process on the first
  store. Callers allocate before they map, and populate before they store.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
import weakref
from typing import Any

import numpy as np

from mmwal.disk.compiled import sync as _sync

PROT_READ, PROT_WRITE, MAP_SHARED = 1, 2, 1
MS_SYNC = 0x10 if sys.platform == "darwin" else 4
MADV_RANDOM = 1
MADV_WILLNEED = 3
MADV_POPULATE_WRITE = 23  # Linux 5.14
POPULATE_STEP_BYTES = 2 << 20
READ_AHEAD_BYTES = 32 << 20
_COPY_STEP_BYTES = 1 << 20
_MAP_FAILED = ctypes.c_void_p(-1).value


class PosixMapping:
    """A shared mapping of a file from its beginning; see `mmwal.disk.interface.Mapping`."""

    def __init__(self, path: str, fd: int, length: int, *, writable: bool) -> None:
        self.path = path
        self._length = length
        self._writable = writable
        self._address = _map(path, fd, length, writable)
        buffer = (ctypes.c_char * length).from_address(self._address)
        _at_death(buffer, _libc().munmap, self._address, length)
        view = memoryview(buffer).cast("B")
        self._view = view if writable else view.toreadonly()
        self._flush_cache = _cache_flusher(self, fd)
        if writable:
            # Advice, so its result does not matter: it keeps small syncs small (DESIGN section 3).
            _libc().madvise(self._address, length, MADV_RANDOM)

    @property
    def view(self) -> memoryview:
        """The mapped bytes; keeps the mapping alive."""
        return self._view

    def sync(self, offset: int, length: int) -> None:
        """Makes the pages of the range durable, with the GIL released."""
        address, length = self._pages(offset, length)
        if length == 0:
            return
        # A KeyboardInterrupt that arrives during msync is raised before the result can be assigned, and a
        # failure would be forgotten for ever. So the result is put down by C code, and looked at whatever
        # happens.
        results: list[int] = []
        try:
            results.extend(map(_libc().msync, (address,), (length,), (MS_SYNC,)))
        finally:
            if results and results[0] != 0:
                self._raise(ctypes.get_errno())
        self._flush_cache()

    def populate(self, offset: int, length: int) -> None:
        """Takes the write faults of the range now, 2 MiB at a time. Does nothing where the kernel cannot.

        What the disk must be read for is asked for some steps ahead: since `MADV_RANDOM` each fault would wait for one
        page of its own, which takes twenty times as long. The pages come one by one still, so that syncs stay small.
        """
        if not self._writable:
            self._raise(errno.EACCES)
        address, length = self._pages(offset, length)
        take = _take_faults if _sync is None else _sync.populate
        code, reached = take(address, length, POPULATE_STEP_BYTES, READ_AHEAD_BYTES)
        if code in (0, errno.EINVAL):  # EINVAL: older than Linux 5.14, or not Linux
            return
        if code == errno.EFAULT:  # a signal, had somebody stored there
            step = min((reached // POPULATE_STEP_BYTES + 1) * POPULATE_STEP_BYTES, address + length) - reached
            code = errno.ENOSPC if self._can_be_read(reached - self._address, step) else errno.EIO
        self._raise(code)

    def rewrite(self, offset: int, length: int) -> None:
        """Stores the range's bytes over themselves, with the GIL released."""
        if not self._writable:
            self._raise(errno.EACCES)
        self._check(offset, length)
        cells = np.frombuffer(self._view, np.uint8)
        for start in range(offset, offset + length, _COPY_STEP_BYTES):
            part = cells[start : min(start + _COPY_STEP_BYTES, offset + length)]
            np.copyto(part, part.copy())

    def stored(self, offset: int, length: int) -> None:
        """Does nothing: the first store to a clean page is a fault, whatever the bytes."""
        self._check(offset, length)

    def _pages(self, offset: int, length: int) -> tuple[int, int]:
        """Returns address and length of the pages that hold a range."""
        self._check(offset, length)
        page = _page_bytes()
        start = offset // page * page
        end = min(-(-(offset + length) // page) * page, self._length)
        return self._address + start, max(end - start, 0) if length else 0

    def _can_be_read(self, offset: int, length: int) -> bool:
        """Returns whether a call can read a range of the file: else a block there is bad, and not missing."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as error:
            return error.errno != errno.EIO
        return True

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self._length:
            problem = f"bytes {offset} to {offset + length} are outside of a mapping of {self._length}"
            raise OSError(errno.ENOMEM, problem, self.path)

    def _raise(self, code: int) -> None:
        raise OSError(code, os.strerror(code), self.path)


def _map(path: str, fd: int, length: int, writable: bool) -> int:
    protection = PROT_READ | PROT_WRITE if writable else PROT_READ
    address = _libc().mmap(None, length, protection, MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return int(address)


def _take_faults(address: int, length: int, step: int, ahead: int) -> tuple[int, int]:
    """As `_sync.populate`, with a call of its own for each step."""
    end, asked = address + length, address
    while address < end:
        while asked < min(end, address + ahead):
            _libc().madvise(asked, min(step, end - asked), MADV_WILLNEED)  # advice: its result does not matter
            asked += step
        stop = min(end, (address // step + 1) * step)
        if _libc().madvise(address, stop - address, MADV_POPULATE_WRITE) == 0:
            address = stop
        elif (code := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN):
            return code, address
    return 0, end


def _cache_flusher(mapping: PosixMapping, fd: int) -> Any:
    """Returns what makes the drive's own cache durable after an msync: nothing, except on macOS."""
    if sys.platform == "darwin":
        import fcntl

        own = os.dup(fd)
        _at_death(mapping, os.close, own)
        return functools.partial(fcntl.fcntl, own, fcntl.F_FULLFSYNC)
    return _nothing


def _nothing() -> None:
    pass


def _at_death(thing: Any, function: Any, *arguments: int) -> None:
    # Never at exit: views are still alive then, and daemon threads may be storing through them.
    weakref.finalize(thing, function, *arguments).atexit = False


@functools.cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGESIZE")


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)  # CDLL releases the GIL for the call; PyDLL would not
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
    libc.munmap.argtypes = (pointer, size)
    libc.msync.argtypes = (pointer, size, number)
    libc.madvise.argtypes = (pointer, size, number)
    return libc
