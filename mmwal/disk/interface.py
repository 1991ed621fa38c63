"""Everything that mmwal asks of an operating system, as one interface.

`posix.py` implements it; `mmwal.testing.simulator` is its twin, which can lose power. No other room imports
os, mmap, fcntl, ctypes or time. Paths are absolute strings. Every failure is an `OSError` with its errno.

What a call makes durable, and no more:

    File.sync           the content written through this file and its mappings, and its size. Not its name
    Mapping.sync        the pages of the range, and the file's size. Not its name
    Disk.sync_directory creations, renames and removals in that directory

Until then any part of what was written may be on disk, in any order, down to 8-byte words; names may come and go.
After a failed sync the content may be in memory only, and clean: a later sync that succeeds does not write it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Mapping(Protocol):
    """A shared mapping of a file from its beginning. Unmapped when the last view of it is gone."""

    @property
    def view(self) -> memoryview:
        """The mapped bytes (format B); writable if the mapping is. Never touch what lies beyond the file's size."""

    def sync(self, offset: int, length: int) -> None:
        """Makes the pages of the range durable. Releases the GIL for the whole call."""

    def populate(self, offset: int, length: int) -> None:
        """Takes the write faults of the range now, in steps, with the GIL released. ENOSPC instead of a signal."""

    def rewrite(self, offset: int, length: int) -> None:
        """Stores the range's bytes over themselves, so that pages clean in memory but not on disk are written by the
        next sync."""

    def stored(self, offset: int, length: int) -> None:
        """Says that the range was stored to since it was populated, even if with the bytes that it held. An operating
        system notices; a disk that compares bytes must be told."""


class File(Protocol):
    """An open file."""

    path: str

    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes of the range; fewer at the end of the file."""

    def write(self, offset: int, content: Any) -> None:
        """Writes all of ``content`` or raises; what a failed call wrote is unspecified."""

    def allocate(self, size: int) -> None:
        """Gives the file at least ``size`` bytes with real blocks; new ones read as zero. ENOSPC for too few."""

    def zero(self, offset: int, length: int) -> None:
        """Writes zeros in small writes, so that the page cache holds small pages (see DESIGN section 3)."""

    def sync(self) -> None:
        """Makes content and size durable. Releases the GIL."""

    def map(self, length: int, *, writable: bool) -> Mapping:
        """Maps the first ``length`` bytes, which may exceed the file's size for a file that will grow."""

    def close(self) -> None:
        """Closes the descriptor; mappings live on."""


class Lock(Protocol):
    """A lock held by the kernel until `release` or the death of the process."""

    def release(self) -> None: ...


class Worker(Protocol):
    """A background loop over a step function."""

    def wake(self) -> None:
        """Runs the step soon."""

    def stop(self) -> None:
        """Ends the loop and waits for a running step."""


class Condition(Protocol):
    """What `threading.Condition` offers, no more."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> Any: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def notify_all(self) -> None: ...


class SyncGate(Protocol):
    """The syncing role of one log, shared by all its threads (DESIGN section 4)."""

    def sync(self, lsn: int, timeout_s: float | None = None) -> bool:
        """Returns True once `durable` covers ``lsn``, by taking the role or by waiting; False on timeout.

        Raises `OSError` when a sync failed, now or earlier: the state word is then poisoned.
        """

    def wait(self, lsn: int, timeout_s: float | None = None) -> bool:
        """Like `sync`, but never takes the role."""

    def wake(self) -> None:
        """Lets every waiter look again (after the state word changed)."""


class Disk(Protocol):
    """The operating system."""

    def make_directory(self, path: str) -> bool:
        """Creates a directory and its parents, mode 0700, each name durable in its parent; returns whether it is new.
        Raises `NotADirectoryError`, `PermissionError` (not writable, or another user's) or another `OSError`."""

    def exists(self, path: str) -> bool: ...

    def list_directory(self, path: str) -> list[str]:
        """Returns the names in a directory, sorted."""

    def sync_directory(self, path: str) -> None: ...

    def create(self, path: str) -> File:
        """Creates an empty file, mode 0600, never through a link. Raises `FileExistsError`."""

    def open(self, path: str, *, writable: bool) -> File:
        """Opens a file, never through a link."""

    def rename(self, old: str, new: str) -> None:
        """Renames atomically, replacing ``new``."""

    def unlink(self, path: str) -> None: ...

    def lock(self, path: str) -> Lock:
        """Takes the one writer's lock on a file, creating it. Raises `BlockingIOError` with the holder's pid in its
        ``holder_pid`` attribute (None if unknown)."""

    def lock_shared(self, path: str) -> Lock:
        """Takes a reader's lock on an existing file opened for reading; changes no byte."""

    def has_readers(self, path: str) -> bool:
        """Returns whether a reader's lock is held on the file by anybody."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC."""

    def monotonic_ns(self) -> int: ...

    def random_bytes(self, count: int) -> bytes: ...

    def start_worker(self, name: str, step: Callable[[], float | None]) -> Worker:
        """Calls ``step`` now and then again: after the seconds it returns, or, for None, when woken."""

    def condition(self) -> Condition: ...

    def compiled_gate(self, block: Any, segment_bytes: int) -> SyncGate | None:
        """Returns the sync gate in C over a cursor block, or None where there is none."""

    def on_fork(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` in every forked child; returns a function that ends that."""

    def warnings_for(self, path: str) -> list[str]:
        """Returns what makes a directory a poor place for durable data (tmpfs, network, temporary), as sentences."""
