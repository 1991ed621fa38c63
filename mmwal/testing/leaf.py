"""`LeafDisk`: what a crash left, for one recovery that is not crashed again.

Not here: the disk that crashes (`simulator.py`), which images there are (`power.py`).

* To the code on it, it is the simulated disk and keeps the same contract. But nobody watches: there are no steps, no
  faults and no further crashes; so nothing tells old content from new, and a file is plain memory.
* What is not changed is shared with the other images of the same instant.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn, cast

from mmwal.testing.background import Background, Clock
from mmwal.testing.faults import Fault, failure
from mmwal.testing.inode import PAGE, Content, Inode, SimulatorError
from mmwal.testing.names import NameOperation, Names
from mmwal.testing.power import Contents
from mmwal.testing.simulator import SimulatedDisk, SimulatedFile, SimulatedMapping


class LeafDisk(SimulatedDisk):
    """A simulated disk that cannot be crashed: the last of its line."""

    @classmethod
    def after(cls, disk: SimulatedDisk, how: str, contents: Contents) -> LeafDisk:
        """Returns what `SimulatedDisk.image` or, for a kill, `kill` would, of the contents that the crash left."""
        leaf = cls.__new__(cls)
        files: dict[str, Inode] = {path: LeafInode(content) for path, content in contents.items()}
        disk._succeed(leaf, Names(files, disk.directories), how)
        return leaf

    def after_kill(self) -> LeafDisk:
        """Returns what the next process finds when the one on this disk was killed: the same files, no locks."""
        leaf = LeafDisk.__new__(LeafDisk)
        files = {path: cast("LeafInode", inode).copy() for path, inode in self._names.entries.items()}
        self._succeed(leaf, Names(dict(files), self.directories), "kill")
        return leaf

    def _start(self, names: Names, seed: str, pid: int, reserve_bytes_max: int, clock: Clock, next_inode: int) -> None:
        self.pid = pid
        self.seed = seed
        self.steps = self.calls = self.changes = 0
        self.faults = []
        self._names = names
        self._next_inode = next_inode
        self._reserve_bytes_max = reserve_bytes_max
        self._clock = clock
        self._background = Background(clock)
        self._writer_locks = {}
        self._reader_locks = Counter()
        self._fork_callbacks = []
        self._random = None
        self._random_drawn = 0

    def open(self, path: str, *, writable: bool) -> SimulatedFile:
        inode = self._names.entries.get(path)
        return super().open(path, writable=writable) if inode is None else self._opened(inode, path, writable)

    # ---- what a leaf does not do

    def observe(self, label: str = "observe") -> None:
        return None

    def images(self, rng: random.Random, budget: int, *, names: str = "both") -> Iterator[str]:
        self._refuse()

    def contents(self, choice: str) -> Contents:
        self._refuse()

    def survivors(self, *, evicted: bool = False) -> Contents:
        self._refuse()

    def kill(self, *, evicted: bool = False) -> SimulatedDisk:
        self._refuse()

    def digest(self) -> str:
        self._refuse()

    def fail(self, what: str, nth: int = 1, errno: int | None = None, *, forever: bool = False) -> Fault:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SimulatorError("a leaf is not crashed again: take SimulatedDisk.image or kill")

    def _begin(self, operation: str, path: str, *, step: bool = True) -> None:
        return None

    def _fault(self, operation: str, path: str, *, step: bool = True) -> OSError | None:
        return None

    def _opened(self, inode: Inode, path: str, writable: bool) -> SimulatedFile:
        return LeafFile(self, cast("LeafInode", inode), path, writable)

    def _new_inode(self, path: str) -> Inode:
        inode = LeafInode(Content(self._next_inode, [], 0))
        self._next_inode += 1
        self._names.change(NameOperation(inode, None, path))
        return inode


class LeafInode(Inode):
    """A file of a `LeafDisk`: shared bytes until somebody maps or changes it, then memory of its own."""

    def __init__(self, content: Content) -> None:
        self.number = content.number
        self.size = content.size
        self._shared = content
        self._memory: bytearray | None = None

    def copy(self) -> LeafInode:
        """Returns the same bytes; what is changed in one of the two is not in the other."""
        other = LeafInode(self._shared)
        other.size = self.size
        other._memory = None if self._memory is None else bytearray(self._memory)
        return other

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if self._memory is None:
            return self._shared.whole()[offset:end]
        return bytes(memoryview(self._memory)[offset:end])

    def store(self, offset: int, content: bytes) -> None:
        """Stores bytes, growing the file."""
        end = offset + len(content)
        if content:
            self.grow(end)
            self.memory(end)[offset:end] = content

    def grow(self, size: int) -> None:
        if size > self.size:
            memory = self.memory(size)
            if memory[self.size : size].strip(b"\0"):
                raise SimulatorError("bytes were stored through a mapping beyond the end of the file")
            self.size = size

    def memory(self, size: int) -> bytearray:
        """Returns the file's bytes with room for ``size``, in whole pages."""
        room = -(-size // PAGE) * PAGE
        memory = self._memory
        if memory is None:
            whole = self._shared.whole()
            if room <= len(whole):
                memory = bytearray(whole)
            else:
                memory = bytearray(room)
                memory[: len(whole)] = whole
            self._memory = memory
        elif room > len(memory):
            try:
                memory.extend(bytes(room - len(memory)))
            except BufferError:
                raise SimulatorError(
                    f"the file grew to {size} bytes under a mapping with room for {len(memory)}: map it with a larger "
                    "length, or give the simulator a larger reserve_bytes_max"
                ) from None
        return memory

    def mapped(self, length: int, reserve_bytes_max: int, *, writable: bool) -> memoryview:
        """Returns the bytes from the beginning; they may reach beyond the file's end."""
        room = min(length, max(self.size, reserve_bytes_max))
        memory = self._memory
        if memory is None or len(memory) < room:
            try:
                memory = self.memory(room)
            except SimulatorError:  # it is mapped already, with less room
                assert memory is not None
        view = memoryview(memory)[:length]
        return view if writable else view.toreadonly()


class LeafFile(SimulatedFile):
    """An open file of a `LeafDisk`."""

    _inode: LeafInode

    def __init__(self, disk: LeafDisk, inode: LeafInode, path: str, writable: bool) -> None:
        self.path = path
        self._disk = disk
        self._inode = inode
        self._writable = writable
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        self._check()
        return self._inode.read(offset, length)

    def allocate(self, size: int) -> None:
        self._check(writing=True)
        self._inode.grow(size)

    def sync(self) -> None:
        self._check()

    def map(self, length: int, *, writable: bool) -> SimulatedMapping:
        self._check(writing=writable)
        if length <= 0:
            raise failure(errno.EINVAL, self.path)
        return LeafMapping(self._inode.mapped(length, self._disk._reserve_bytes_max, writable=writable), self.path)

    def close(self) -> None:
        self._closed = True

    def _store(self, operation: str, offset: int, content: bytes) -> None:
        self._inode.store(offset, content)


class LeafMapping(SimulatedMapping):
    """A mapping of a file of a `LeafDisk`."""

    def __init__(self, view: memoryview, path: str) -> None:
        self._view = view
        self._path = path

    def sync(self, offset: int, length: int) -> None:
        self._check(offset, length)

    def populate(self, offset: int, length: int) -> None:
        self._check(offset, length)

    def rewrite(self, offset: int, length: int) -> None:
        self._check(offset, length)

    stored = rewrite
