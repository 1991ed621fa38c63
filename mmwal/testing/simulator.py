"""`SimulatedDisk`: the twin of the POSIX disk that can lose power. In memory, in one thread, repeatable.

    disk = SimulatedDisk(seed=1, on_step=look)  # runs look(...) before each call that changes something
    log = open_log(disk, "/wal")                # the code under test does its work on it
    disk.observe("publish")                     # a step of the harness's own: stores are noticed

    def look(disk, step, label):                # power may fail here; the call in flight counts as not done
        for choice in disk.images(rng, budget=20):
            image = disk.image(choice)          # a new disk, as found after the power cut `choice`
            check(open_log(image, "/wal"))      # ... it may have its own on_step: crashes of the recovery
        check(open_log(disk.kill(), "/wal"))    # a new disk, as found after kill -9

What may be lost is in `power.py` and `names.py`; a file is in `inode.py`, failing calls are in `faults.py`, a disk
on which nothing is watched, for recoveries that nobody crashes again, in `leaf.py`,
clock and workers in `background.py`. Not modelled: threads, other processes, a disk that breaks its word.

* Stores through a mapping are noticed by comparison, at every call and at `observe`. What was stored between
  two looks is one version; as any of its 8-byte words may survive alone, the order of stores does not matter.
* The same seed and the same calls give the same steps, choices and images, in any process.
"""

from __future__ import annotations

import errno
import posixpath
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mmwal.testing.background import (
    TICK_NS,
    Background,
    Clock,
    SimulatedCondition,
    SimulatedLock,
    SimulatedWorker,
)
from mmwal.testing.faults import Fault, failure, label_of
from mmwal.testing.inode import PAGE, Inode, SimulatorError, mapped_view
from mmwal.testing.names import NameOperation, Names
from mmwal.testing.power import Contents, PowerCut

__all__ = ["SimulatedDisk", "SimulatedFile", "SimulatedMapping", "SimulatorError"]

OnStep = Callable[["SimulatedDisk", int, str], None]

BOOT_NS = 1_000_000_000
TIME_NS = 1_700_000_000 * 1_000_000_000
REBOOT_NS = 1_000_000_000
DIGESTS_MAX = 4096  # pages whose digest is remembered

_page_digests: dict[bytes, bytes] = {}


class SimulatedDisk:
    """A `Disk` in memory. ``on_step(disk, step, label)`` runs before every step; it may raise."""

    def __init__(
        self,
        *,
        seed: int | str = 0,
        on_step: OnStep | None = None,
        reserve_bytes_max: int = 4 << 20,
        pid: int = 1000,
    ) -> None:
        """Makes an empty disk. A mapping longer than its file gets at most ``reserve_bytes_max`` bytes."""
        self._start(Names({}, ["/"]), str(seed), pid, reserve_bytes_max, Clock(TIME_NS, BOOT_NS), 1)
        self.on_step = on_step

    on_step: OnStep | None = None

    def _start(self, names: Names, seed: str, pid: int, reserve_bytes_max: int, clock: Clock, next_inode: int) -> None:
        self.pid = pid
        self.seed = seed
        self.steps = 0  # steps begun
        self.calls = 0  # calls that could have failed
        self.changes = 0  # moves whenever the set of possible images may have
        self.labels: Counter[str] = Counter()  # steps by label
        self.faults: list[Fault] = []
        self._written = 0.0  # how much the write that fails just now has written
        self._names = names
        self._next_inode = next_inode
        self._mapped: list[Inode] = []
        self._reserve_bytes_max = reserve_bytes_max
        self._clock = clock
        self._background = Background(clock)
        self._writer_locks: dict[int, int] = {}  # inode number to pid
        self._reader_locks: Counter[int] = Counter()
        self._fork_callbacks: list[Callable[[], None]] = []
        self._open_files: weakref.WeakSet[SimulatedFile] = weakref.WeakSet()
        self._random: random.Random | None = None
        self._random_drawn = 0
        self._cut: tuple[int, PowerCut] | None = None

    # ---- crashes

    def observe(self, label: str = "observe") -> None:
        """Notices what was stored through mappings; a step, at which power may fail."""
        self._step(label)

    def images(self, rng: random.Random, budget: int, *, names: str = "both") -> Iterator[str]:
        """Yields choices of what a power cut now may leave (see `power.py`): all of them if they fit.

        Args:
            rng: decides; the same generator state on the same disk state yields the same choices.
            budget: how many choices at most.
            names: ``ordered``, ``weak`` or ``both``: how pending name operations are lost.
        """
        return self._power_cut().choices(rng, budget, names)

    def image(self, choice: str) -> SimulatedDisk:
        """Returns the disk found after the power cut that a choice describes: all durable, locks gone."""
        disk = SimulatedDisk.__new__(SimulatedDisk)
        files = {path: Inode.found(content) for path, content in self.contents(choice).items()}
        self._succeed(disk, Names(files, self._names.directories.copy()), choice)
        return disk

    def unsettled_words(self) -> int:
        """Returns how many 8-byte words a power cut now may leave with more than one content."""
        return self._power_cut().words()

    def contents(self, choice: str) -> Contents:
        """Returns the files of the image, by path."""
        return self._power_cut().build(choice)

    def kill(self, *, evicted: bool = False) -> SimulatedDisk:
        """Returns the disk found after ``kill -9``: everything is there, nothing became durable, locks gone.

        With ``evicted``, clean pages have left the page cache: where a sync failed, the old content shows.
        """
        self._look()
        copies: dict[int, Inode] = {}

        def copied(inode: Inode) -> Inode:
            if inode.number not in copies:
                copies[inode.number] = inode.copy()
                if evicted:
                    copies[inode.number].evict()
            return copies[inode.number]

        disk = SimulatedDisk.__new__(SimulatedDisk)
        self._succeed(disk, self._names.copy(copied), "kill evicted" if evicted else "kill")
        return disk

    def survivors(self, *, evicted: bool = False) -> Contents:
        """Returns the files of the disk found after ``kill -9``, by path."""
        self._look()
        return {path: inode.survivor(evicted=evicted) for path, inode in self._names.entries.items()}

    def digest(self) -> str:
        """Returns a digest of all names, sizes and contents that the process sees."""
        self._look()
        whole = blake2b(digest_size=8)
        for path, inode in sorted(self._names.entries.items()):
            whole.update(f"{path}\0{inode.size}\0".encode())
            for page in inode.pages:
                whole.update(_page_digests.get(page) or _page_digest(page))
        whole.update("\0".join(sorted(self._names.directories)).encode())
        return whole.hexdigest()

    @property
    def directories(self) -> list[str]:
        """The directories, in the order in which they were made."""
        return self._names.directories.copy()

    def _power_cut(self) -> PowerCut:
        self._look()
        if self._cut is None or self._cut[0] != self.changes:
            self._cut = (self.changes, PowerCut(self._names))
        return self._cut[1]

    def _succeed(self, disk: SimulatedDisk, names: Names, how: str) -> None:
        """Starts the disk that is found after a crash: a power cut by its choice, or a kill."""
        if how.startswith("kill"):
            clock = Clock(self._clock.time_ns + TICK_NS, self._clock.monotonic_ns + TICK_NS)
        else:
            clock = Clock(self._clock.time_ns + REBOOT_NS, BOOT_NS)
        seed = f"{self.seed},{self.steps}.{self._random_drawn}.{how}"
        if len(seed) > 200:
            seed = blake2b(seed.encode(), digest_size=16).hexdigest()
        disk._start(names, seed, self.pid + 1, self._reserve_bytes_max, clock, self._next_inode)

    # ---- faults, time and workers, for the harness

    def fail(self, what: str, nth: int = 1, errno: int | None = None, *, forever: bool = False) -> Fault:
        """Orders the ``nth`` call of a kind from now to fail, and with ``forever`` every later one too.

        Args:
            what: an operation (``sync``), a label (``segment sync``), ``step`` or ``any``.
            nth: counted from 1.
            errno: by default EIO for syncs and reads, ENOSPC where space is taken, ENOMEM for a mapping.
            forever: whether later calls fail too.

        Returns:
            The order: its ``hits`` tells whether it struck.
        """
        fault = Fault(what, nth, errno, forever)
        self.faults.append(fault)
        return fault

    def run_workers(self) -> bool:
        """Runs every worker that is due, once; returns whether one ran."""
        return self._background.run()

    def held(self) -> dict[str, list[str]]:
        """Returns what the process still holds, by kind; nothing of it once everything was closed."""
        found = {
            "open files": sorted(file.path for file in self._open_files),
            "writer's locks": [str(number) for number in self._writer_locks],
            "readers' locks": [str(number) for number, count in self._reader_locks.items() if count],
            "workers": [worker.name for worker in self._background.workers],
            "fork callbacks": [repr(callback) for callback in self._fork_callbacks],
        }
        return {kind: names for kind, names in found.items() if names}

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._clock.advance(int(seconds * 1e9))

    def set_time_ns(self, time_ns: int) -> None:
        """Sets the wall clock, forwards or backwards."""
        self._clock.time_ns = time_ns

    # ---- directories and names

    def make_directory(self, path: str) -> bool:
        path = _normal(path)
        if path in self._names.directories:
            return False
        if path in self._names.entries:
            raise failure(errno.ENOTDIR, path)
        self.make_directory(posixpath.dirname(path))
        self._begin("make_directory", path)
        self._names.directories.append(path)
        self.changes += 1
        return True

    def exists(self, path: str) -> bool:
        path = _normal(path)
        self._rare("exists", path)
        return path in self._names.entries or path in self._names.directories

    def list_directory(self, path: str) -> list[str]:
        path = _normal(path)
        self._directory(path)
        self._begin("list_directory", path, step=False)
        return self._names.in_directory(path)

    def sync_directory(self, path: str) -> None:
        path = _normal(path)
        self._directory(path)
        self._begin("sync_directory", path)
        self._names.sync(path)
        self.changes += 1

    def create(self, path: str) -> SimulatedFile:
        path = _normal(path)
        self._directory(posixpath.dirname(path))
        if path in self._names.entries or path in self._names.directories:
            raise failure(errno.EEXIST, path)
        self._begin("create", path)
        return self._opened(self._new_inode(path), path, True)

    def open(self, path: str, *, writable: bool) -> SimulatedFile:
        path = _normal(path)
        inode = self._file(path)
        self._begin("open", path, step=False)
        return self._opened(inode, path, writable)

    def rename(self, old: str, new: str) -> None:
        old, new = _normal(old), _normal(new)
        inode = self._file(old)
        self._directory(posixpath.dirname(new))
        if new in self._names.directories:
            raise failure(errno.EISDIR, new)
        if posixpath.dirname(old) != posixpath.dirname(new):
            raise failure(errno.EXDEV, old, "directories may be on different disks")
        self._begin("rename", old)
        if old != new:
            self._names.change(NameOperation(inode, old, new))
            self.changes += 1

    def unlink(self, path: str) -> None:
        path = _normal(path)
        inode = self._file(path)
        self._begin("unlink", path)
        self._names.change(NameOperation(inode, path, None))
        self.changes += 1

    # ---- locks

    def lock(self, path: str) -> SimulatedLock:
        path = _normal(path)
        if path in self._names.entries:
            inode = self._file(path)
            self._begin("lock", path, step=False)
        else:
            self._directory(posixpath.dirname(path))
            self._begin("lock", path)
            inode = self._new_inode(path)
        number = inode.number
        if number in self._writer_locks:
            error = failure(errno.EAGAIN, path, "locked")
            setattr(error, "holder_pid", self._writer_locks[number])  # noqa: B010 (not an attribute of its class)
            raise error
        self._writer_locks[number] = self.pid
        held = [number]
        return SimulatedLock(lambda: self._writer_locks.pop(held.pop()) if held else None)

    def lock_shared(self, path: str) -> SimulatedLock:
        path = _normal(path)
        number = self._file(path).number
        self._begin("lock_shared", path, step=False)
        self._reader_locks[number] += 1
        held = [number]
        return SimulatedLock(lambda: self._reader_locks.subtract([held.pop()]) if held else None)

    def has_readers(self, path: str) -> bool:
        path = _normal(path)
        self._rare("has_readers", path)
        return self._reader_locks[self._file(path).number] > 0

    # ---- time, chance, workers

    def time_ns(self) -> int:
        self._clock.advance(TICK_NS)
        return self._clock.time_ns

    def monotonic_ns(self) -> int:
        self._clock.advance(TICK_NS)
        return self._clock.monotonic_ns

    def random_bytes(self, count: int) -> bytes:
        if self._random is None:
            self._random = random.Random(self.seed)
        self._random_drawn += 1
        return self._random.randbytes(count)

    def start_worker(self, name: str, step: Callable[[], float | None]) -> SimulatedWorker:
        self._rare("start_worker", f"/{name}")
        return self._background.start(name, step)

    def condition(self) -> SimulatedCondition:
        return self._background.condition()

    def compiled_gate(self, block: Any, segment_bytes: int) -> None:
        """Returns None: the sync gate in C makes system calls."""
        return None

    def on_fork(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._fork_callbacks.append(callback)
        return lambda: self._fork_callbacks.remove(callback) if callback in self._fork_callbacks else None

    def fork(self) -> None:
        """Runs what a forked child would run first; the harness goes on as the child."""
        for callback in self._fork_callbacks.copy():
            callback()

    def warnings_for(self, path: str) -> list[str]:
        return []

    # ---- parts

    def _begin(self, operation: str, path: str, *, step: bool = True) -> None:
        """Begins a call: looks at the mappings, lets power fail, raises what was ordered."""
        error = self._fault(operation, path, step=step)
        if error is not None:
            raise error

    def _fault(self, operation: str, path: str, *, step: bool = True) -> OSError | None:
        if step:
            self._step(label_of(operation, path))
        self._clock.advance(TICK_NS)
        self.calls += 1
        if not self.faults:
            return None
        label = label_of(operation, path)
        struck = [fault for fault in self.faults if fault.strikes(operation, label, step)]
        if not struck:
            return None
        self._written = struck[0].written
        return struck[0].error(operation, path)

    def _rare(self, operation: str, path: str) -> None:
        """Raises what was ordered for a call that hardly ever fails; nothing else of the simulation takes note."""
        for fault in self.faults:
            if fault.strikes(operation, label_of(operation, path), False, rare=True):
                raise fault.error(operation, path)

    def _sync(self, inode: Inode, path: str, offset: int, length: int) -> None:
        begun = self.steps
        error = self._fault("sync", path)
        self.changes += 1
        if error is not None:
            inode.lose(offset, length)
            raise error
        inode.sync(offset, length, begun)

    def _step(self, label: str) -> None:
        self._look()
        self.steps += 1
        self.labels[label] += 1
        if self.on_step is not None:
            self.on_step(self, self.steps, label)

    def _look(self) -> None:
        """Notices what was stored through mappings."""
        for inode in self._mapped.copy():
            self._look_at(inode)

    def _look_at(self, inode: Inode) -> None:
        self.changes += inode.look(self.steps)
        if not inode.is_mapped and inode in self._mapped:
            self._mapped.remove(inode)

    def _opened(self, inode: Inode, path: str, writable: bool) -> SimulatedFile:
        return SimulatedFile(self, inode, path, writable)

    def _new_inode(self, path: str) -> Inode:
        inode = Inode(self._next_inode)
        self._next_inode += 1
        self._names.change(NameOperation(inode, None, path))
        self.changes += 1
        return inode

    def _file(self, path: str) -> Inode:
        if path in self._names.directories:
            raise failure(errno.EISDIR, path)
        if path not in self._names.entries:
            raise failure(errno.ENOENT, path)
        return self._names.entries[path]

    def _directory(self, path: str) -> None:
        if path in self._names.entries:
            raise failure(errno.ENOTDIR, path)
        if path not in self._names.directories:
            raise failure(errno.ENOENT, path)


class SimulatedFile:
    """An open file of a `SimulatedDisk`."""

    def __init__(self, disk: SimulatedDisk, inode: Inode, path: str, writable: bool) -> None:
        self.path = path
        self._disk = disk
        self._inode = inode
        self._writable = writable
        self._closed = False
        disk._open_files.add(self)

    def size(self) -> int:
        self._check()
        return self._inode.size

    def read(self, offset: int, length: int) -> bytes:
        self._check()
        self._disk._begin("read", self.path, step=False)
        self._disk._look_at(self._inode)
        return self._inode.read(offset, length)

    def write(self, offset: int, content: Any) -> None:
        self._check(writing=True)
        stored = memoryview(content).cast("B") if not isinstance(content, bytes) else content
        self._store("write", offset, bytes(stored))

    def allocate(self, size: int) -> None:
        self._check(writing=True)
        error = self._disk._fault("allocate", self.path)
        before = self._inode.size
        if error is not None:  # part of the space was there
            size = before + (size - before) // 2 // PAGE * PAGE
        self._inode.grow(size)
        self._disk.changes += 1
        if error is not None:
            raise error

    def zero(self, offset: int, length: int) -> None:
        self._check(writing=True)
        self._store("zero", offset, bytes(length))

    def sync(self) -> None:
        self._check()
        self._disk._sync(self._inode, self.path, 0, self._inode.size)

    def map(self, length: int, *, writable: bool) -> SimulatedMapping:
        self._check(writing=writable)
        if length <= 0:
            raise failure(errno.EINVAL, self.path)
        self._disk._begin("map", self.path, step=False)
        self._disk._look_at(self._inode)
        return SimulatedMapping(self._disk, self._inode, self.path, length, writable)

    def close(self) -> None:
        self._closed = True
        self._disk._open_files.discard(self)

    def _store(self, operation: str, offset: int, content: bytes) -> None:
        error = self._disk._fault(operation, self.path)
        if error is not None:  # a short write
            content = content[: int(len(content) * self._disk._written)]
        self._inode.write(offset, content, self._disk.steps)
        self._disk.changes += 1
        if error is not None:
            raise error

    def _check(self, *, writing: bool = False) -> None:
        if self._closed or (writing and not self._writable):
            raise failure(errno.EBADF, self.path)


class SimulatedMapping:
    """A mapping of a file of a `SimulatedDisk`."""

    def __init__(self, disk: SimulatedDisk, inode: Inode, path: str, length: int, writable: bool) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._view = mapped_view(inode.map(length, disk._reserve_bytes_max, writable=writable), writable)
        if inode not in disk._mapped:
            disk._mapped.append(inode)

    @property
    def view(self) -> memoryview:
        return self._view

    def sync(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._disk._sync(self._inode, self._path, offset, length)

    def populate(self, offset: int, length: int) -> None:
        """Takes the write faults. Lost pages stay clean, as on old kernels, which do nothing here."""
        self._check(offset, length)
        self._disk._begin("populate", self._path, step=False)

    def rewrite(self, offset: int, length: int) -> None:
        self._check(offset, length)
        self._disk._step(label_of("rewrite", self._path))
        self._inode.dirty(offset, length)
        self._disk.changes += 1

    stored = rewrite

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self._view):
            raise failure(errno.ENOMEM, self._path, "not mapped")


if TYPE_CHECKING:
    from mmwal.disk.interface import Disk

    _disk: Disk = SimulatedDisk()  # keeps the contract's signatures


@lru_cache(maxsize=1024)
def _normal(path: str) -> str:
    if not path.startswith("/"):
        raise SimulatorError(f"not an absolute path: {path!r}")
    return posixpath.normpath(path)


def _page_digest(page: bytes) -> bytes:
    if len(_page_digests) >= DIGESTS_MAX:
        _page_digests.clear()
    digest = _page_digests[page] = blake2b(page, digest_size=8).digest()
    return digest
