"""The disk room on Linux, and on macOS as far as the standard library carries.

Not here: mappings (`mapping.py`), locks (`lock.py`), threads (`worker.py`), what a fork does (`forking.py`),
judging a place (`place.py`).

* Nothing is opened through a link, passed on to another program, or created with the process's umask: files
  are 0600, directories 0700.
* Every failure is an `OSError` with errno and filename. A full disk is such an error, never a signal, for all
  that was allocated or populated before it was stored to.
* No call holds the GIL while it waits for a device.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from mmwal.disk import forking, lock, place
from mmwal.disk.compiled import sync as _sync
from mmwal.disk.descriptor import DIRECTORY_MODE, FILE_MODE, naming, open_directory, open_regular
from mmwal.disk.interface import Condition, Lock, SyncGate, Worker
from mmwal.disk.mapping import PosixMapping
from mmwal.disk.worker import ThreadWorker

_GET_FLAGS, _SET_FLAGS, _NO_COPY_ON_WRITE = 0x80086601, 0x40086602, 0x00800000  # linux/fs.h: FS_IOC_*, FS_NOCOW_FL
_FLAGS = struct.Struct("i4x")  # the call is named for a long, and takes an int
ZERO_STEP_BYTES = 4096  # larger writes would leave large folios in the cache (DESIGN section 3)


class PosixFile:
    """An open file; see `mmwal.disk.interface.File`. Closed at the latest when it is no longer used."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._closer = weakref.finalize(self, os.close, fd)
        self._closer.atexit = False  # at exit, daemon threads may still be writing

    def size(self) -> int:
        """Returns the file's size in bytes."""
        with naming(self.path):
            return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes of the range; fewer at the end of the file. Allocates no more than those."""
        end = min(offset + length, self.size())
        parts = []
        with naming(self.path):
            while offset < end and (part := os.pread(self._fd, end - offset, offset)):
                parts.append(part)
                offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, content: Any) -> None:
        """Writes all of a contiguous buffer or raises."""
        rest = memoryview(content).cast("B")
        with naming(self.path):
            while rest:
                written = os.pwrite(self._fd, rest, offset)
                if written == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                rest = rest[written:]
                offset += written

    def allocate(self, size: int) -> None:
        """Gives the file at least ``size`` bytes with real blocks.

        Raises `OSError` (ENOSPC, EDQUOT, EFBIG) where there are too few; the file may have grown by some. On
        a file system that cannot allocate, the C library writes to every block instead, which takes its time.
        """
        with naming(self.path):
            if sys.platform != "darwin":
                os.posix_fallocate(self._fd, 0, size)
            elif size > self.size():
                self.zero(self.size(), size - self.size())

    def zero(self, offset: int, length: int) -> None:
        """Writes zeros, 4 KiB at a time."""
        with naming(self.path):
            if _sync is not None:
                _sync.zero(self._fd, offset, length)
                return
        zeros, end = bytes(ZERO_STEP_BYTES), offset + length
        while offset < end:
            stop = min(end, (offset // ZERO_STEP_BYTES + 1) * ZERO_STEP_BYTES)
            self.write(offset, zeros[: stop - offset])
            offset = stop

    def sync(self) -> None:
        """Makes content and size durable. A failure is final: a later success proves nothing."""
        with naming(self.path):
            _sync_descriptor(self._fd)

    def map(self, length: int, *, writable: bool) -> PosixMapping:
        """Maps the first ``length`` bytes, which may exceed the file's size for a file that will grow."""
        return PosixMapping(self.path, self._fd, length, writable=writable)

    def close(self) -> None:
        """Closes the descriptor; mappings live on. Does nothing the second time."""
        self._fd = -1
        with naming(self.path):
            self._closer()


class PosixDisk:
    """The operating system; see `mmwal.disk.interface.Disk`.

    Raises `OSError` on Windows, which has neither these locks nor these syncs.
    """

    def __init__(self) -> None:
        if os.name != "posix":
            raise OSError(
                errno.ENOSYS,
                f"mmwal does not run on {sys.platform}: it needs POSIX locks, mappings and syncs; use Linux",
            )

    def make_directory(self, path: str) -> bool:
        """Creates a directory and its parents with mode 0700, each name durable; returns whether it is new.

        Raises `NotADirectoryError`, `PermissionError` where the directory cannot be written to or belongs to
        a user who is neither root nor the one we run as, or another `OSError`.

        Durability: on return the whole path survives a power loss. A name that an earlier process made and
        did not live to sync is synced here: only the deepest one that exists can be such a name, since each
        is synced before the next is made.
        """
        missing = []
        deepest = os.path.normpath(path)
        while not self.exists(deepest):
            missing.append(deepest)
            deepest = os.path.dirname(deepest)
        self._sync_name(deepest)
        for directory in reversed(missing):
            _make_one_directory(directory)
            self.sync_directory(os.path.dirname(directory))
        _check_directory(path)
        return bool(missing)

    def exists(self, path: str) -> bool:
        """Returns whether anything has this name, a dangling link included. Raises where it cannot tell."""
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def list_directory(self, path: str) -> list[str]:
        """Returns the names in a directory, sorted."""
        return sorted(os.listdir(path))

    def sync_directory(self, path: str) -> None:
        """Makes creations, renames and removals in a directory durable."""
        fd = open_directory(path)
        try:
            with naming(path):
                os.fsync(fd)
        finally:
            os.close(fd)

    def create(self, path: str) -> PosixFile:
        """Creates an empty file, mode 0600, never through a link. Raises `FileExistsError`."""
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file = PosixFile(path, fd)
        with naming(path):
            os.fchmod(fd, FILE_MODE)
        _write_in_place(fd)
        return file

    def open(self, path: str, *, writable: bool) -> PosixFile:
        """Opens a regular file, never through a link. Raises `IsADirectoryError` for a directory."""
        return PosixFile(path, open_regular(path, os.O_RDWR if writable else os.O_RDONLY))

    def rename(self, old: str, new: str) -> None:
        """Renames atomically, replacing ``new``. Durable once the directory is synced."""
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        """Removes a name. Durable once the directory is synced."""
        os.unlink(path)

    def lock(self, path: str) -> Lock:
        """Takes the one writer's lock; see `mmwal.disk.lock.lock_writer`."""
        return lock.lock_writer(path)

    def lock_shared(self, path: str) -> Lock:
        """Takes a reader's lock; see `mmwal.disk.lock.lock_reader`."""
        return lock.lock_reader(path)

    def has_readers(self, path: str) -> bool:
        """Returns whether a reader's lock is held on the file by anybody, this process included."""
        return lock.has_readers(path)

    time_ns = staticmethod(time.time_ns)  # the wall clock, nanoseconds since 1970 UTC; no frame of ours: appends ask it

    def monotonic_ns(self) -> int:
        """Returns a clock that never goes back, in nanoseconds."""
        return time.monotonic_ns()

    def random_bytes(self, count: int) -> bytes:
        """Returns bytes that nobody can foretell."""
        return os.urandom(count)

    def start_worker(self, name: str, step: Callable[[], float | None]) -> Worker:
        """Starts a daemon thread ``mmwal-<name>``; see `mmwal.disk.worker.ThreadWorker`."""
        return ThreadWorker(name, step)

    def condition(self) -> Condition:
        """Returns a new condition with a lock of its own."""
        return cast("Condition", threading.Condition(threading.Lock()))

    def compiled_gate(self, block: Any, segment_bytes: int) -> SyncGate | None:
        """Returns the sync gate in C over a cursor block, or None where the extension was not built."""
        if _sync is None:
            return None
        gate: SyncGate = _sync.Gate(block, segment_bytes)
        return gate

    def on_fork(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` in every forked child; see `mmwal.disk.forking.call_in_children`."""
        return forking.call_in_children(callback)

    def warnings_for(self, path: str) -> list[str]:
        """Returns what makes a directory a poor place for durable data, as sentences."""
        return place.warnings_for(path)

    def _sync_name(self, path: str) -> None:
        parent = os.path.dirname(path)
        # A parent that we may not read is one where we have hardly made a name.
        if os.access(parent, os.R_OK):
            self.sync_directory(parent)


def _make_one_directory(path: str) -> None:
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:  # somebody was faster
        return
    fd = open_directory(path)
    try:
        os.fchmod(fd, DIRECTORY_MODE)  # mkdir's mode went through the umask
    finally:
        os.close(fd)


def _check_directory(path: str) -> None:
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is not a directory; give another path or remove it", path)
    user = os.geteuid()
    if found.st_uid not in (user, 0):
        raise PermissionError(
            errno.EPERM,
            f"belongs to user {found.st_uid}, and we run as user {user}; run as its owner or change it",
            path,
        )
    if os.access(path, os.W_OK | os.X_OK):
        return
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    raise PermissionError(errno.EACCES, f"user {user} may not write to it; change its mode or its owner", path)


def _write_in_place(fd: int) -> None:
    """Asks btrfs to overwrite an empty file's blocks where they are; other file systems do so, and say they can't.

    Otherwise each store to a page that was synced needs a new block: on a full disk that is a signal.
    """
    if not sys.platform.startswith("linux"):
        return
    import fcntl

    with suppress(OSError):
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SET_FLAGS, _FLAGS.pack(flags | _NO_COPY_ON_WRITE))


def _sync_descriptor(fd: int) -> None:
    if sys.platform == "darwin":  # fsync there stops at the drive's cache
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif fd < 0:  # what Python calls a ValueError
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    else:
        os.fdatasync(fd)
