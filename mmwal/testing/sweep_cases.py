"""What the fault sweep fails: every public operation, in the situations in which its disk calls differ.

A `Scene` is a store or a log on a simulated disk, with the model of what was promised beside it. A *situation* makes a
scene; an *operation* is done on it and checks its own promise when it returns. Not here: faults, what must hold after
one, and the order of trials (`sweep.py`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import mmwal
from mmwal.config import RecoveryConfig, WalConfig
from mmwal.custom import register_entry
from mmwal.entry import CustomEntry, WalEntry
from mmwal.errors import (
    CheckpointFailedError,
    OpenError,
    SyncFailedError,
    WalFullError,
)
from mmwal.format.frame import HEADER_BYTES, align
from mmwal.format.segment import SEGMENT_BYTES_MIN, data_end
from mmwal.log.control import create_control
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.model import Found, Group, Model
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import new_identity, rows_of
from mmwal.testing.target_store import StoreFound, StoreModel
from mmwal.transaction import HELD_BYTES_MAX, WalTransaction

WAL, DATA = "/store/wal", "/store/data"
DIMENSION = 64
FRAME_BYTES = align(HEADER_BYTES + 4 * DIMENSION + 4 + 5)  # of a row with an id of 5 bytes and no metadata
LARGE_ROWS = SEGMENT_BYTES_MIN // (4 * DIMENSION)  # a batch larger than a segment
NEW_SEGMENT_BYTES = 64 << 10  # the least that a config allows
EXPECTED_FILE = re.compile(r"control|lock|matrix|(segment|spare)-[0-9a-f]{16}\.wal|image-[0-9a-f]{16}")


class Wrong(Exception):
    """What an operation, or a crash after it, must not do."""


def require(condition: object, problem: str) -> None:
    """Raises `Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(problem)


class Scene:
    """A store or a log on a disk; ``handle`` is None while it is closed."""

    what = ""

    def __init__(self, disk: SimulatedDisk, kernel: str, model: Model, **fields: Any) -> None:
        self.disk = disk
        self.model = model
        self.handle: Any = None
        self.fields: dict[str, Any] = {
            "sync_interval_ms": 10,
            "append_timeout_ms": 100,
            "runway_segments": 1,
            "checkpoint_interval": None,
            "kernel": kernel,
            **fields,
        }
        self.rows_written = 0
        self.vectors_made = 1
        self.full = False  # whether a write may find the log full without any fault

    @property
    def config(self) -> WalConfig:
        return WalConfig(wal_dir=WAL, **self.fields)

    @property
    def log(self) -> Any:
        return self.handle._log

    @property
    def each_durable(self) -> bool:
        return bool(self.fields["sync_interval_ms"] == 0)

    def identity(self, dimension: int) -> None:
        """Creates the log with segments smaller than a config allows."""
        self.disk.make_directory(WAL)
        create_control(self.disk, WAL, new_identity(self.disk, dimension))

    def open(self, disk: SimulatedDisk) -> Any:
        raise NotImplementedError

    def found(self, handle: Any) -> Found:
        """Reads everything back."""
        raise NotImplementedError

    def write(self, count: int = 1, **options: Any) -> int:
        """Writes new rows, and notes them in the model."""
        raise NotImplementedError

    def failed(self) -> bool:
        return bool(self.log.failed)

    def over_budget(self) -> bool:
        return bool(self.log.keeper.over_budget)

    def fill_segment(self) -> None:
        """Writes until the next row does not fit into the segment."""
        reserved = self.log.cursor.reserved
        end = data_end((reserved - 1) // SEGMENT_BYTES_MIN, SEGMENT_BYTES_MIN)
        while end - reserved >= FRAME_BYTES:
            self.write(8 if end - reserved > 10 * FRAME_BYTES else 1)
            reserved = self.log.cursor.reserved

    def run_keeper(self) -> None:
        """Runs the worker that seals, retires and prepares segments, alone."""
        self.log.keeper.worker.run()

    def fill_budget(self) -> None:
        """Writes until no further segment may be begun."""
        while True:
            self.fill_segment()
            self.log.make_durable(self.log.cursor.published)
            self.run_keeper()
            if self.over_budget() and max(self.log.keeper._attached) == (self.log.cursor.reserved - 1) // self.size:
                return
            self.write()

    @property
    def size(self) -> int:
        return int(self.log.segment_bytes)

    def rest(self) -> None:
        """Runs the workers until nothing is due."""
        while self.disk.run_workers():
            pass

    def adopt(self) -> None:
        """Opens a copy of the disk to learn which of the legal states it holds; a situation after a power cut."""
        copy = self.disk.kill()
        found = self.found(self.open(copy))
        problem = self.model.problem(found, 0)
        require(problem is None, f"the situation itself is wrong: {problem}")
        self.model.adopt(found)

    def close(self) -> None:
        self.handle.close()

    def vectors(self, count: int) -> Any:
        """Returns vectors that were never written before: a store of the same bytes would not be noticed."""
        self.vectors_made += count
        numbers = np.arange(self.vectors_made - count, self.vectors_made, dtype=np.float32)
        return np.repeat(numbers[:, None], DIMENSION, axis=1) * np.linspace(1, 2, DIMENSION, dtype=np.float32)

    def call(self, rows: Iterable[Any], act: Callable[[], int]) -> int:
        """Does what logs rows, and notes in the model what its outcome promises."""
        already = self.failed()
        self.model.begin(tuple(rows), self.log.cursor.durable)
        try:
            lsn = act()
        except SyncFailedError:
            if already:  # refused
                self.model.withdraw()
            raise
        except BaseException:
            self.model.withdraw()
            raise
        self.model.finish(lsn)
        return lsn

    def promised(self, lsn: int, durable: bool = False) -> None:
        """Checks what the return of a write promises of its LSN."""
        require(lsn > 0 and lsn <= self.log.cursor.published, f"LSN {lsn} was returned and is not published")
        if durable or self.each_durable:
            require(self.handle.durable_lsn >= lsn, f"LSN {lsn} was returned as durable and is not")


class StoreScene(Scene):
    """A whole store."""

    what = "store"
    model: StoreModel
    handle: Any

    def __init__(self, disk: SimulatedDisk, kernel: str, **fields: Any) -> None:
        super().__init__(disk, kernel, StoreModel(), data_dir=DATA, dimension=DIMENSION, **fields)

    def open(self, disk: SimulatedDisk) -> mmwal.VectorStore:
        return _in_one_thread(mmwal.open(config=self.config, disk=disk))

    def found(self, handle: Any) -> StoreFound:
        contents = {}
        lsns = {}
        for record in handle.get_many(handle.ids()):
            contents[record.id] = (record.vector.tobytes(), record.metadata)
            lsns[record.id] = record.lsn
        hits = handle.search(np.ones(DIMENSION, np.float32), k=len(contents) + 1)
        require({hit.id for hit in hits} == contents.keys(), "search and ids differ")
        positions: tuple[int, ...] = ()
        if handle.wal is not None:
            metrics = handle.wal.get_metrics()
            positions = (metrics.oldest_lsn, metrics.durable_lsn, metrics.published_lsn, metrics.reserved_lsn)
        return StoreFound(0, [], positions, contents, lsns)

    def write(self, count: int = 1, **options: Any) -> int:
        return self.put("insert", self.new_ids(count), **options)

    def new_ids(self, count: int) -> list[str]:
        self.rows_written += count
        return [f"{number:05}" for number in range(self.rows_written - count, self.rows_written)]

    def known(self, count: int) -> list[Any]:
        return sorted(self.model.states[-1][0], key=str)[:count]

    def put(self, operation: str, ids: list[Any], vectors: bool = True, metadata: bool = False, **options: Any) -> int:
        """Writes rows by the operation's name, one by itself and several with its ``_many``."""
        contents = self.model.states[-1][0]
        matrix = self.vectors(len(ids)) if vectors and operation != "delete" else None
        metas = [{"n": number} for number in range(len(ids))] if metadata else None
        rows = []
        for row, id in enumerate(ids):
            before = contents.get(id, (None, None))
            content = None if operation == "delete" else before[0] if matrix is None else matrix[row].tobytes()
            rows.append((id, content, before[1] if metas is None else metas[row]))
        many = "_many" if len(ids) > 1 else ""
        arguments: list[Any] = [ids if many else ids[0]]
        if operation != "delete":
            arguments += [matrix if many or matrix is None else matrix[0], metas if many or metas is None else metas[0]]
        return self.call(rows, lambda: getattr(self.handle, operation + many)(*arguments, **options))


class LogScene(Scene):
    """A log alone."""

    what = "log"

    def __init__(self, disk: SimulatedDisk, kernel: str, **fields: Any) -> None:
        super().__init__(disk, kernel, Model(), dimension=DIMENSION, **fields)

    def open(self, disk: SimulatedDisk) -> mmwal.WalManager:
        return mmwal.WalManager(self.config, disk=disk)

    def found(self, handle: Any) -> Found:
        metrics = handle.get_metrics()
        positions = (metrics.oldest_lsn, metrics.durable_lsn, metrics.published_lsn, metrics.reserved_lsn)
        return Found(handle.oldest_lsn, groups_of(handle.iter_entries()), positions)

    def write(self, count: int = 1, **options: Any) -> int:
        return self.put("insert", count, **options)

    def put(self, operation: str, count: int = 1, **options: Any) -> int:
        ids = [f"{len(self.model.groups):05}-{row}"[-5:] for row in range(count)]
        matrix = None if operation == "delete" else self.vectors(count)
        rows = [(operation, id, None if matrix is None else matrix[row].tobytes(), None) for row, id in enumerate(ids)]
        if count > 1:
            return self.call(rows, lambda: self.handle.log_batch(ids, matrix, operation=operation, **options))
        vector = () if matrix is None else (matrix[0],)
        return self.call(rows, lambda: getattr(self.handle, f"log_{operation}")(ids[0], *vector, **options))


def groups_of(entries: Iterable[Any]) -> list[Group]:
    """Returns entries as groups of rows that count together."""
    groups: list[Group] = []
    rows: list[Any] = []
    for entry in entries:
        if isinstance(entry, WalEntry.Commit):
            require(len(rows) == entry.rows, f"{len(rows)} of {entry.rows} rows of a transaction")
        elif not isinstance(entry, WalEntry.Checkpoint):
            rows += rows_of(entry)
        if rows and (isinstance(entry, WalEntry.Commit) or not entry.txn):
            groups.append(Group(tuple(rows), entry.lsn))
            rows = []
    require(not rows, "rows of a transaction without its commit")
    return groups


def _in_one_thread(store: mmwal.VectorStore) -> mmwal.VectorStore:
    """Lets workers, which run on this thread's stack, find the store's lock taken instead of waiting for ever."""
    if store._state is not None:
        store._state.lock = SimulatedMutex()  # type: ignore[assignment]
        return store
    begin = store._begin

    def begin_in_one_thread(dimension: int) -> Any:
        state, checkpointer = begin(dimension)
        state.lock = SimulatedMutex()  # type: ignore[assignment]
        return state, checkpointer

    store._begin = begin_in_one_thread
    return store


# ---- situations: each makes a scene on a new disk

Situation = Callable[[SimulatedDisk, str], Scene]


def _lived(scene: Scene) -> Scene:
    """Opens it and gives it a life: all kinds of rows, durable and not, the runway ready."""
    scene.identity(DIMENSION)
    scene.handle = scene.open(scene.disk)
    scene.write()
    scene.write(4)
    if isinstance(scene, StoreScene):
        scene.put("update", scene.known(1), metadata=True)
        scene.put("delete", scene.known(3)[2:])
    scene.handle.sync()
    scene.rest()
    scene.write()
    scene.write(3)
    return scene


def _at_the_brim(scene: Scene) -> Scene:
    scene.identity(DIMENSION)
    scene.handle = scene.open(scene.disk)
    scene.write()
    scene.fill_segment()
    return scene


def _fresh(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = make(disk, kernel)
        scene.fields["dimension"] = None
        scene.identity(0)
        scene.handle = scene.open(disk)
        return scene

    return situation


def _midlife(make: Callable[..., Scene], **fields: Any) -> Situation:
    return lambda disk, kernel: _lived(make(disk, kernel, **fields))


def _runway(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _at_the_brim(make(disk, kernel))
        scene.rest()
        return scene

    return situation


def _bare(make: Callable[..., Scene]) -> Situation:
    return lambda disk, kernel: _at_the_brim(make(disk, kernel, sync_interval_ms=0))


def _full(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _at_the_brim(make(disk, kernel, max_wal_size=8 * SEGMENT_BYTES_MIN, sync_interval_ms=0))
        scene.fill_budget()
        scene.full = scene.what == "log"
        return scene

    return situation


def _due(disk: SimulatedDisk, kernel: str) -> Scene:
    scene = StoreScene(disk, kernel, checkpoint_interval=6)
    scene.identity(DIMENSION)
    scene.handle = scene.open(disk)
    scene.rest()
    scene.write(5)
    scene.write()
    return scene


def _checkpointed(disk: SimulatedDisk, kernel: str) -> Scene:
    scene = _lived(StoreScene(disk, kernel, sync_interval_ms=0))
    assert isinstance(scene, StoreScene)
    for _ in range(2):
        scene.put("update", scene.known(2))
        scene.handle.checkpoint()
    scene.rest()
    scene.put("upsert", scene.known(2), metadata=True)
    return scene


def _recovered(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _killed(make)(disk, kernel)
        scene.handle = scene.open(scene.disk)
        return scene

    return situation


def _reopened(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _clean(make)(disk, kernel)
        scene.handle = scene.open(scene.disk)
        return scene

    return situation


def _poisoned(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _lived(make(disk, kernel))
        disk.fail("sync")
        with suppress(SyncFailedError):
            scene.handle.sync()
        require(scene.failed(), "a failed sync did not poison the log")
        return scene

    return situation


def _no_checkpoints(disk: SimulatedDisk, kernel: str) -> Scene:
    scene = _lived(StoreScene(disk, kernel))
    disk.fail("matrix sync")
    with suppress(CheckpointFailedError):
        scene.handle.checkpoint()
    return scene


# ... without a handle, as an open finds it


def _empty(make: Callable[..., Scene]) -> Situation:
    return lambda disk, kernel: make(disk, kernel, segment_size=NEW_SEGMENT_BYTES)


def _created(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = make(disk, kernel)
        scene.identity(DIMENSION)
        scene.disk = disk.kill()
        return scene

    return situation


def _clean(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _lived(make(disk, kernel))
        scene.close()
        scene.model.durable = scene.model.returned
        scene.handle, scene.disk = None, disk.kill()
        return scene

    return situation


def _killed(make: Callable[..., Scene]) -> Situation:
    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _lived(make(disk, kernel))
        scene.model.promise(scene.handle.durable_lsn)
        scene.handle, scene.disk = None, disk.kill()
        scene.model = scene.model.fork(power=False)
        return scene

    return situation


def _rotated(make: Callable[..., Scene]) -> Situation:
    """Killed with sealed segments, a runway, spares, and a checkpoint or release not yet carried out."""

    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _at_the_brim(make(disk, kernel))
        for _ in range(2):
            scene.rest()
            scene.write()
            scene.fill_segment()
        lsn = scene.write()
        scene.handle.sync()
        if scene.what == "store":
            scene.handle.checkpoint()
            scene.write()
            scene.handle.checkpoint()
        else:
            scene.model.released_lsn = lsn
            scene.handle.release(lsn)
        disk.fail("unlink")
        disk.fail("rename")
        scene.rest()
        scene.model.promise(scene.handle.durable_lsn)
        scene.handle, scene.disk = None, disk.kill()
        scene.model = scene.model.fork(power=False)
        return scene

    return situation


def _cut(make: Callable[..., Scene], index: int) -> Situation:
    """After a power cut: everything unsynced lost, or one word of it left."""

    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _lived(make(disk, kernel))
        scene.model.promise(scene.handle.durable_lsn)
        choice = ("0/0/old", "ff/ff/rnd.8.50.5eed", "ff/ff/rnd.512.50.1")[index]
        scene.handle, scene.disk = None, disk.image(choice)
        scene.model = scene.model.fork(power=True)
        scene.adopt()
        return scene

    return situation


def _lost(make: Callable[..., Scene]) -> Situation:
    """Killed after a failed sync, what it lost still in the page cache."""

    def situation(disk: SimulatedDisk, kernel: str) -> Scene:
        scene = _poisoned(make)(disk, kernel)
        scene.model.promise(scene.handle.durable_lsn)
        scene.handle, scene.disk = None, disk.kill()
        scene.model = scene.model.fork(power=False)
        return scene

    return situation


def _interrupted(disk: SimulatedDisk, kernel: str) -> Scene:
    """Power failed while the second checkpoint was published."""
    scene = _lived(StoreScene(disk, kernel, sync_interval_ms=0))
    assert isinstance(scene, StoreScene)
    scene.handle.checkpoint()
    scene.put("update", scene.known(2))
    scene.model.promise(scene.handle.durable_lsn)
    cuts: list[SimulatedDisk] = []

    def look(found: SimulatedDisk, step: int, label: str) -> None:
        if label == "control sync":
            cuts.append(found.image("ff/ff/rnd.8.50.7"))

    disk.on_step = look
    scene.handle.checkpoint()
    disk.on_step = None
    scene.handle, scene.disk = None, cuts[0]
    scene.model = scene.model.fork(power=True)
    scene.adopt()
    return scene


OPEN_SITUATIONS: dict[str, dict[str, Situation]] = {
    make.what: {
        "fresh": _fresh(make),
        "midlife": _midlife(make),
        "each durable": _midlife(make, sync_interval_ms=0),
        "runway ready": _runway(make),
        "no runway": _bare(make),
        "budget full": _full(make),
        "recovered": _recovered(make),
        "reopened": _reopened(make),
        "poisoned": _poisoned(make),
    }
    for make in (StoreScene, LogScene)
}
OPEN_SITUATIONS["store"] |= {
    "checkpoint due": _due,
    "checkpointed": _checkpointed,
    "checkpoints ended": _no_checkpoints,
}
CLOSED_SITUATIONS: dict[str, dict[str, Situation]] = {
    make.what: {
        "empty": _empty(make),
        "created": _created(make),
        "clean": _clean(make),
        "killed": _killed(make),
        "rotated": _rotated(make),
        "cut old": _cut(make, 0),
        "cut words": _cut(make, 1),
        "cut sectors": _cut(make, 2),
        "lost sync": _lost(make),
    }
    for make in (StoreScene, LogScene)
}
CLOSED_SITUATIONS["store"]["checkpoint cut"] = _interrupted


# ---- operations: each does one thing on a scene and checks its promise


@dataclass(frozen=True)
class Operation:
    """A public operation, and how it is done.

    ``api`` names the public callables that it goes through, ``raises`` what they document for a failing disk; ``opens``
    says that it needs a closed scene; ``only`` and ``never`` choose among the situations.
    """

    what: str
    name: str
    api: tuple[str, ...]
    run: Callable[[Any], None]
    raises: tuple[type[BaseException], ...] = (WalFullError, SyncFailedError)
    opens: bool = False
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

    def situations(self) -> dict[str, Situation]:
        """Returns the situations in which it is swept."""
        every = (CLOSED_SITUATIONS if self.opens else OPEN_SITUATIONS)[self.what]
        return {
            name: made
            for name, made in every.items()
            if name not in self.never and (not self.only or name in self.only)
        }


def _put(operation: str, count: int = 1, *, known: bool = False, **options: Any) -> Callable[[StoreScene], None]:
    def run(scene: StoreScene) -> None:
        ids = scene.known(count) if known else scene.new_ids(count)
        scene.promised(scene.put(operation, ids, **options), options.get("durable", False))

    return run


def _log(operation: str, count: int = 1, **options: Any) -> Callable[[LogScene], None]:
    return lambda scene: scene.promised(scene.put(operation, count, **options), options.get("durable", False))


def _transaction(new: int) -> Callable[[StoreScene], None]:
    """New rows, a known one changed and another deleted, as one; on the way, rows that come and go."""

    def run(scene: StoreScene) -> None:
        ids, matrix = scene.new_ids(new), scene.vectors(new + 1)
        changed, deleted = scene.known(2)
        kept = scene.model.states[-1][0][changed][1]
        rows = [(id, matrix[row].tobytes(), None) for row, id in enumerate(ids)]
        rows += [(changed, matrix[new].tobytes(), kept), (deleted, None, None)]

        def act() -> int:
            with scene.handle.transaction() as txn:
                txn.insert_many([*ids, "fleeting"], np.concatenate((matrix[:new], matrix[:1])))
                txn.delete("fleeting")
                txn.update(changed, matrix[new])
                txn.delete(deleted)
                return int(txn.commit())

        scene.promised(scene.call(rows, act), True)

    return run


def _two_phase(new: int, decide: Callable[[mmwal.VectorStore], int], *, commits: bool) -> Callable[[StoreScene], None]:
    """New rows, prepared and then decided."""

    def run(scene: StoreScene) -> None:
        ids, matrix = scene.new_ids(new), scene.vectors(new)
        rows = [(id, matrix[row].tobytes(), None) for row, id in enumerate(ids)] if commits else []

        def act() -> int:
            with scene.handle.transaction() as txn:
                txn.insert_many(ids, matrix)
                prepared_lsn = txn.prepare("g")
            require(scene.handle.durable_lsn >= prepared_lsn, "a prepare record is not durable")
            return decide(scene.handle)

        scene.promised(scene.call(rows, act), True)
        require(not scene.handle.list_in_doubt(), "what was decided is in doubt")

    return run


_COMMIT_PREPARED = partial(_two_phase, decide=lambda store: store.commit_prepared("g"), commits=True)
_ROLLBACK_PREPARED = partial(_two_phase, decide=lambda store: store.rollback_prepared("g", durable=True), commits=False)


def _log_transaction(count: int, held_bytes_max: int) -> Callable[[LogScene], None]:
    def run(scene: LogScene) -> None:
        ids, matrix = [f"t{row:04}" for row in range(count)], scene.vectors(count)
        rows = [("insert", id, matrix[row].tobytes(), None) for row, id in enumerate(ids)]
        rows.append(("delete", "gone", None, None))

        def act() -> int:
            with WalTransaction(scene.log, each_durable=False, held_bytes_max=held_bytes_max) as txn:
                for id, vector in zip(ids, matrix, strict=True):
                    txn.log_insert(id, vector)
                txn.log_delete("gone")
                return txn.commit()

        scene.promised(scene.call(rows, act), True)
        spans = scene.log.keeper.transactions.values()
        require(all(commit_lsn for _, commit_lsn in spans), "a transaction that ended is kept as an open one")

    return run


class Mark(NamedTuple):
    """A custom entry."""

    number: int


def _log_custom(scene: LogScene) -> None:
    register_entry("mmwal.testing.mark", Mark)
    mark = Mark(len(scene.model.groups))
    rows = [("custom", "mmwal.testing.mark", mark, None)]
    scene.promised(scene.call(rows, lambda: scene.handle.log_entry(CustomEntry(mark), durable=True)), True)


def _sync(scene: Scene) -> None:
    last = max((group.lsn for group in scene.model.groups), default=0)
    durable_lsn = scene.handle.sync()
    require(durable_lsn >= last, f"sync() returned and only {durable_lsn} of {last} is durable")
    require(scene.handle.durable_lsn >= durable_lsn, "sync() returned more than is durable")


def _wait_durable(scene: Scene) -> None:
    last = max((group.lsn for group in scene.model.groups), default=0)
    try:
        scene.handle.wait_durable(last, 1.0)
    except TimeoutError as error:
        raise Wrong(f"no sync came within a second at an interval of 10 ms: {error}") from error
    require(scene.handle.durable_lsn >= last, "wait_durable() returned before it was durable")


def _receipt(scene: Scene) -> None:
    """A write that waits for nothing, and then somebody who waits and somebody who is called."""
    told: list[tuple[bool, BaseException | None]] = []
    receipt = scene.handle.receipt(scene.write(durable=None))
    receipt.add_done_callback(lambda receipt: told.append((receipt.durable, receipt.error)))
    try:
        receipt.wait(1.0)
    except TimeoutError as error:
        raise Wrong(f"no sync came within a second: {error}") from error
    except SyncFailedError:
        if scene.what == "store" and scene.each_durable:
            scene.model.returned -= 1  # readers must not see it
        raise
    finally:
        require(len(told) == 1, f"a callback came {len(told)} times")
        require(told[0][0] == receipt.durable != isinstance(told[0][1], SyncFailedError), f"a callback heard {told}")
    require(receipt.durable and scene.handle.durable_lsn >= receipt.lsn, "wait() returned before it was durable")


def _checkpoint(scene: StoreScene) -> None:
    info = scene.handle.checkpoint()
    require(scene.handle.durable_lsn >= info.lsn, "a checkpoint names what is not durable")
    require(info.live_rows == len(scene.handle), "a checkpoint counts other rows than there are")
    require(info.lsn >= max(group.lsn for group in scene.model.groups), "a checkpoint left out an applied write")


def _wal_checkpoint(scene: StoreScene) -> None:
    scene.handle.wal.checkpoint()


def _close(scene: Scene) -> None:
    scene.handle.close()


def _leave(scene: Scene) -> None:
    with scene.handle:
        pass


def _wal_close(scene: StoreScene) -> None:
    scene.handle.wal.close()


def _release(scene: LogScene) -> None:
    lsn = next((group.lsn for group in reversed(scene.model.groups) if group.lsn), 0)
    scene.model.released_lsn = lsn
    scene.handle.release(lsn)
    require(scene.handle.durable_lsn >= lsn, "the log was released behind its durable end")
    require(scene.handle.oldest_lsn >= lsn, "the log was not released")


def _reading(name: str) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        wal = scene.handle.wal if scene.what == "store" else scene.handle
        found = groups_of(getattr(wal, name)())
        if scene.what == "log":
            oldest = wal.oldest_lsn
            problem = scene.model.problem(Found(oldest, found), scene.model.returned)
            require(problem is None, f"{name}() shows something else: {problem}")

    return run


def _open(scene: Scene) -> None:
    scene.handle = scene.open(scene.disk)
    _check_opened(scene, scene.handle)


def _recover(scene: StoreScene) -> None:
    recovery = RecoveryConfig(wal_dir=WAL, data_dir=DATA, max_recovery_time_ms=None)
    manager = mmwal.CrashRecoveryManager(recovery, disk=scene.disk)
    scene.handle = _in_one_thread(manager.recover())
    require(manager.get_recovery_stats().completed, "a recovery returned and was not completed")
    _check_opened(scene, scene.handle)


def _open_read_only(scene: StoreScene) -> None:
    before = scene.disk.digest()
    steps = scene.disk.steps
    try:
        store = mmwal.open(config=scene.config, disk=scene.disk, read_only=True)
        try:
            _check_opened(scene, store)
        finally:
            store.close()
    finally:
        require(scene.disk.digest() == before, "a reader changed the directory")
        require(scene.disk.steps == steps, "a reader did what changes or syncs something")


def _check_opened(scene: Scene, handle: Any) -> None:
    problem = scene.model.problem(scene.found(handle), scene.model.returned)
    require(problem is None, f"opening shows something else: {problem}")


def _verify(scene: Scene) -> None:
    _is_whole(scene, scene.handle.verify() if scene.what == "store" else scene.handle.verify_wal())


def _verify_directory(scene: StoreScene) -> None:
    before = scene.disk.digest()
    report = mmwal.verify(posixpath.dirname(WAL), disk=scene.disk)
    require(scene.disk.digest() == before, "verification changed the directory")
    _is_whole(scene, report)


def _is_whole(scene: Scene, report: Any) -> None:
    """Checks a report: nothing is damaged, so it may name only what could not be read."""
    unread = any(fault.hits for fault in scene.disk.faults)
    require(report.ok or unread, f"verification finds damage where there is none: {report}")


def _from_path(scene: Scene) -> None:
    before = scene.disk.digest()
    wal = mmwal.WalManager.new_from_path(WAL, disk=scene.disk)
    try:
        found = groups_of(wal.iter_entries())
        if scene.what == "log":
            problem = scene.model.problem(Found(wal.oldest_lsn, found), scene.model.returned)
            require(problem is None, f"new_from_path() shows something else: {problem}")
    finally:
        wal.close()
    require(scene.disk.digest() == before, "a reader changed the directory")


_OPENING = OpenError, OSError, WalFullError, SyncFailedError, CheckpointFailedError
_WRITING = WalFullError, SyncFailedError, OSError  # an OSError of the data only: the matrix cannot be made or grow
_CLOSING = SyncFailedError, CheckpointFailedError, WalFullError
_CHECKPOINTING = CheckpointFailedError, WalFullError, SyncFailedError
_READING = (OSError,)
_DURABLE = ("each durable", "no runway")
_WAITING = ("fresh", "midlife", "no runway", "budget full")
_OTHERS = ("midlife", "each durable", "no runway", "poisoned")


def _store_write(name: str, method: str, run: Callable[[Any], None], *only: str) -> Operation:
    return Operation("store", name, (f"VectorStore.{method}",), run, _WRITING, only=only or _DURABLE)


def _store(name: str, api: str, run: Callable[[Any], None], raises: tuple[type[BaseException], ...], *only: str) -> Any:
    return Operation("store", name, tuple(api.split()), run, raises, only=only)


def _alone(
    name: str, api: str, run: Callable[[Any], None], *only: str, raises: Any = (WalFullError, SyncFailedError)
) -> Any:
    return Operation("log", name, tuple(api.split()), run, raises, only=only)


OPERATIONS = [
    Operation(
        "store", "insert", ("VectorStore.insert",), _put("insert"), _WRITING, never=("reopened", "checkpoints ended")
    ),
    _store_write("insert durable", "insert", _put("insert", durable=True), "midlife", "no runway"),
    _store_write("update", "update", _put("update", known=True, durable=True)),
    _store_write("update metadata", "update", _put("update", known=True, vectors=False, metadata=True)),
    _store_write("upsert", "upsert", _put("upsert", metadata=True), "fresh", *_DURABLE),
    _store_write("upsert old", "upsert", _put("upsert", known=True, durable=True)),
    _store_write("delete", "delete", _put("delete", known=True, durable=True), "budget full", *_DURABLE),
    _store_write("insert_many", "insert_many", _put("insert", 3), "fresh", *_DURABLE),
    _store_write("insert_many large", "insert_many", _put("insert", LARGE_ROWS, durable=True), *_WAITING),
    _store_write("update_many", "update_many", _put("update", 3, known=True)),
    _store_write("upsert_many", "upsert_many", _put("upsert", 3, metadata=True)),
    _store_write("delete_many", "delete_many", _put("delete", 3, known=True, durable=True)),
    _store_write("transaction", "transaction", _transaction(3), "midlife", *_DURABLE),
    _store_write("transaction large", "transaction", _transaction(LARGE_ROWS), "midlife", "no runway"),
    _store_write("prepared", "commit_prepared", _COMMIT_PREPARED(3), "midlife", "checkpointed", *_DURABLE),
    _store_write("prepared large", "commit_prepared", _COMMIT_PREPARED(LARGE_ROWS), "midlife", "no runway"),
    _store_write("prepared in vain", "rollback_prepared", _ROLLBACK_PREPARED(3), "midlife", *_DURABLE),
    _store("sync", "VectorStore.sync StoreWal.sync", _sync, (SyncFailedError,), *_OTHERS),
    _store(
        "wait_durable", "VectorStore.wait_durable StoreWal.wait_durable", _wait_durable, (SyncFailedError,), *_OTHERS
    ),
    _store("receipt", "VectorStore.receipt StoreWal.receipt", _receipt, _WRITING, "midlife", *_DURABLE),
    Operation(
        "store",
        "checkpoint",
        ("VectorStore.checkpoint",),
        _checkpoint,
        _CHECKPOINTING,
        never=("fresh", "runway ready", "reopened"),
    ),
    _store("wal.checkpoint", "StoreWal.checkpoint", _wal_checkpoint, _CHECKPOINTING, "checkpointed"),
    Operation("store", "close", ("VectorStore.close",), _close, _CLOSING, never=("runway ready", "reopened")),
    _store("with", "VectorStore.__exit__", _leave, _CLOSING, "midlife"),
    _store("wal.close", "StoreWal.close StoreWal.__exit__", _wal_close, _CLOSING, "midlife"),
    _store(
        "wal.replay",
        "StoreWal.replay StoreWal.iter_entries StoreWal.read_all_entries",
        _reading("replay"),
        _READING,
        "midlife",
        "checkpointed",
    ),
    _store("verify", "VectorStore.verify StoreWal.verify_wal", _verify, _READING, "midlife", "checkpointed"),
    Operation("store", "background", (), lambda scene: None),
    Operation("store", "open", ("open",), _open, _OPENING, opens=True, never=("cut old", "cut sectors")),
    Operation(
        "store",
        "open read_only",
        ("open", "ReadOnlyStore.close", "ReadOnlyStore.__exit__"),
        _open_read_only,
        _OPENING,
        opens=True,
        only=("killed", "rotated", "cut sectors"),
    ),
    Operation(
        "store",
        "recover",
        ("CrashRecoveryManager.recover",),
        _recover,
        _OPENING,
        opens=True,
        only=("killed", "checkpoint cut"),
    ),
    Operation(
        "store", "verify directory", ("verify",), _verify_directory, _OPENING, opens=True, only=("clean", "rotated")
    ),
    Operation("log", "log_insert", ("WalManager.log_insert",), _log("insert"), (WalFullError, SyncFailedError)),
    _alone("log_insert durable", "WalManager.log_insert", _log("insert", durable=True), "midlife", "no runway"),
    _alone("log_update", "WalManager.log_update", _log("update", durable=True), *_DURABLE),
    _alone("log_delete", "WalManager.log_delete", _log("delete", durable=True), *_DURABLE),
    _alone("log_batch", "WalManager.log_batch", _log("upsert", 3), *_DURABLE),
    _alone("log_batch large", "WalManager.log_batch", _log("insert", LARGE_ROWS, durable=True), "midlife", "no runway"),
    _alone("log_entry", "WalManager.log_entry", _log_custom, *_DURABLE),
    _alone("transaction", "WalManager.begin_transaction", _log_transaction(3, HELD_BYTES_MAX), "midlife", "no runway"),
    _alone("transaction logged", "WalManager.begin_transaction", _log_transaction(6, 1), "midlife", *_DURABLE),
    _alone(
        "transaction large", "WalManager.begin_transaction", _log_transaction(LARGE_ROWS, 2048), "midlife", "no runway"
    ),
    _alone("sync", "WalManager.sync", _sync, *_OTHERS),
    _alone("wait_durable", "WalManager.wait_durable", _wait_durable, *_OTHERS),
    _alone("receipt", "WalManager.receipt", _receipt, "midlife", *_DURABLE),
    Operation("log", "release", ("WalManager.release",), _release, (SyncFailedError,), never=("fresh",)),
    _alone("replay", "WalManager.replay", _reading("replay"), "midlife", "budget full", "recovered", raises=_READING),
    _alone("iter_entries", "WalManager.iter_entries", _reading("iter_entries"), "runway ready", raises=_READING),
    _alone(
        "read_all_entries", "WalManager.read_all_entries", _reading("read_all_entries"), "no runway", raises=_READING
    ),
    _alone("verify", "WalManager.verify_wal", _verify, "midlife", "budget full", raises=_READING),
    Operation("log", "close", ("WalManager.close",), _close, _CLOSING),
    _alone("with", "WalManager.__exit__", _leave, "midlife", raises=_CLOSING),
    Operation("log", "background", (), lambda scene: None),
    Operation("log", "open", ("WalManager",), _open, _OPENING, opens=True, never=("cut old", "cut sectors")),
    Operation(
        "log",
        "new_from_path",
        ("WalManager.new_from_path",),
        _from_path,
        _OPENING,
        opens=True,
        only=("clean", "rotated", "cut words"),
    ),
]
