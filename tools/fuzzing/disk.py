"""A disk whose files are given and never change: for what only reads. Many times faster than the simulated disk."""

from __future__ import annotations

import errno
import os
import posixpath
import threading
from collections.abc import Callable
from typing import Any

from mmwal.testing.simulator import SimulatedDisk

Files = dict[str, bytes]
DIRECTORIES = ("/s", "/s/wal", "/s/data")
WAL, DATA = DIRECTORIES[1:]


class FrozenDisk:
    """As much of `mmwal.disk.interface.Disk` as a reader needs; a call that would change something is an error."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def exists(self, path: str) -> bool:
        return path in self.files or path in DIRECTORIES

    def list_directory(self, path: str) -> list[str]:
        return sorted(posixpath.basename(name) for name in self.files if posixpath.dirname(name) == path)

    def open(self, path: str, *, writable: bool) -> FrozenFile:
        assert not writable, "a reader opened a file for writing"
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return FrozenFile(path, self.files[path])

    def lock_shared(self, path: str) -> FrozenDisk:
        self.open(path, writable=False)
        return self

    def release(self) -> None:
        """Ends a reader's lock."""

    def has_readers(self, path: str) -> bool:
        return False

    def time_ns(self) -> int:
        return 1

    def monotonic_ns(self) -> int:
        return 1

    def condition(self) -> Any:
        return threading.Condition(threading.Lock())

    def on_fork(self, callback: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def warnings_for(self, path: str) -> list[str]:
        return []


class FrozenFile:
    """An open file, and its own mapping; what lies behind its end cannot be touched, as in a real mapping."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self._content = content
        self.view = memoryview(content)

    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : max(offset, offset + length)]

    def map(self, length: int, *, writable: bool) -> FrozenFile:
        assert not writable and length > 0
        mapped = FrozenFile(self.path, self._content)
        mapped.view = self.view[:length]
        return mapped

    def close(self) -> None:
        """Does nothing: the content is given."""


def simulated(files: Files) -> SimulatedDisk:
    """Returns a simulated disk that holds files, all durable."""
    disk = SimulatedDisk()
    for path in DIRECTORIES:
        disk.make_directory(path)
    for path, content in files.items():
        file = disk.create(path)
        file.write(0, content)
        file.sync()
        file.close()
    disk.sync_directory(WAL)
    disk.sync_directory(DATA)
    return disk
