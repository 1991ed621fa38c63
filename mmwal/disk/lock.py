"""Locks that the kernel holds: one for the writer, any number for readers.

* A lock lives in an open file description, so it ends with the process whatever kills it. The pid written
  into the writer's file is for people; nothing decides by it.
* A lock is never passed on to a forked child (see `forking`).
* The writer's lock is `flock`, readers' locks are on a byte range (OFD). On local file systems the two kinds
  do not see each other. On NFS they do: give them different files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable

from mmwal.disk import forking
from mmwal.disk.descriptor import FILE_MODE, naming, open_regular

with contextlib.suppress(ImportError):  # Windows, where PosixDisk refuses to be built
    import fcntl

READERS_OFFSET, READERS_BYTES = 1 << 62, 1  # a place that no file reaches
_FLOCK = "hhqqi0q"  # struct flock of 64-bit Linux: type, whence, start, length, pid, and its padding
_PID_BYTES_MAX = 128


class DescriptorLock:
    """A lock that lasts as long as its descriptor."""

    def __init__(self, fd: int, unlock: Callable[[int], object]) -> None:
        self._fd = fd
        self._pid = os.getpid()
        self._unlock = unlock
        forking.close_in_children(self)

    def release(self) -> None:
        """Lets go of the lock. Does nothing the second time, and in a forked child."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # A child forked just now may not have closed its copy yet, and closing ours alone would leave it the lock.
        with contextlib.suppress(OSError):
            if os.getpid() == self._pid:
                self._unlock(fd)
        os.close(fd)

    def close_in_child(self) -> None:
        """Closes the descriptor in a forked child; the parent keeps the lock."""
        self.release()

    def __del__(self) -> None:
        self.release()


def lock_writer(path: str) -> DescriptorLock:
    """Takes the writer's lock on ``path``, creating the file with mode 0600.

    Raises `BlockingIOError` with ``holder_pid`` where somebody else holds it, in this process or another.
    """
    while True:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            _flock_now(fd, path)
            if _is_named(fd, path):
                os.fchmod(fd, FILE_MODE)
                _write_holder(fd)
                return DescriptorLock(fd, _unlock_writer)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the file was replaced between open and lock: this lock guards nothing


def lock_reader(path: str) -> DescriptorLock:
    """Takes a reader's lock on an existing file; needs no right to write and changes no byte."""
    fd = open_regular(path, os.O_RDONLY)
    try:
        with naming(path):
            fcntl.fcntl(fd, _ofd("F_OFD_SETLK"), _readers_range(fcntl.F_RDLCK))
        return DescriptorLock(fd, _unlock_reader)
    except BaseException:
        os.close(fd)
        raise


def has_readers(path: str) -> bool:
    """Returns whether a reader's lock is held on the file, by this process or another."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return False  # nobody can have taken one
    fd = open_regular(path, os.O_RDONLY)
    try:
        with naming(path):
            answer = fcntl.fcntl(fd, _ofd("F_OFD_GETLK"), _readers_range(fcntl.F_WRLCK))
    finally:
        os.close(fd)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _flock_now(fd: int, path: str) -> None:
    try:
        with naming(path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = _read_holder(fd)
        holder = f"process {pid}" if pid else "another process"
        error = BlockingIOError(errno.EWOULDBLOCK, f"locked by {holder}; close it there first", path)
        error.holder_pid = pid  # type: ignore[attr-defined]
        raise error from None


def _unlock_writer(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def _unlock_reader(fd: int) -> None:
    fcntl.fcntl(fd, _ofd("F_OFD_SETLK"), _readers_range(fcntl.F_UNLCK))


def _is_named(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_holder(fd: int) -> None:
    line = f"{os.getpid()} {_boot_id()}\n".encode()
    with contextlib.suppress(OSError):  # on a full disk the lock still holds, only its holder's pid is not known
        os.pwrite(fd, line, 0)
        os.ftruncate(fd, len(line))


def _read_holder(fd: int) -> int | None:
    """Returns the pid in a lock file, if it was written since the machine started."""
    words = os.pread(fd, _PID_BYTES_MAX, 0).decode("ascii", "replace").split()
    if len(words) == 2 and words[0].isdecimal() and words[1] == _boot_id():
        return int(words[0])
    return None


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown-boot"


def _readers_range(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, READERS_OFFSET, READERS_BYTES, 0)


def _ofd(name: str) -> int:
    command = getattr(fcntl, name, None)
    if command is None:
        raise OSError(errno.ENOTSUP, "this system has no locks per open file; open the log for writing instead")
    return int(command)
