"""The whole store as a target of the crash explorer: log, matrix, checkpoints and recovery together.

Not here: crashes (`explorer.py`), what is right of a log alone (`model.py`, `target_log.py`).

What is found after a crash is right if and only if it is the state after some prefix of the writes that were issued,
the prefix holds all that was promised, and every row carries the LSN of the write that made it. A transaction in doubt
is part of the state: what it writes stands under a key of its own, which its decision removes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.config import KernelName, WalConfig
from mmwal.errors import (
    CheckpointFailedError,
    NoStoreError,
    OpenError,
    SyncFailedError,
    TransactionInDoubtError,
    UnavailableError,
    WalFullError,
)
from mmwal.format.control import DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS, read_slots
from mmwal.format.metadata import decode_metadata
from mmwal.format.segment import SEGMENT_BYTES_MIN
from mmwal.kernel import load
from mmwal.log.batch import Batch
from mmwal.log.control import create_control, open_control
from mmwal.opening import open_store
from mmwal.recovery.log_opening import lock_directory, open_identity
from mmwal.recovery.recover import build_index, copy_winners, decide, load_newest
from mmwal.recovery.tail import repair, survey
from mmwal.recovery.workers import Workers
from mmwal.state.state import State
from mmwal.store import VectorStore
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.model import Found, Model
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import FAULTS, new_identity
from mmwal.transaction import StoreTransaction

WAL, DATA = "/store/wal", "/store/data"
Contents = dict[Any, tuple[bytes, Any]]


@dataclass(frozen=True)
class StoreFound(Found):
    """What an opened store shows: contents and LSN of every id."""

    contents: Contents = field(default_factory=dict)
    lsns: dict[Any, int] = field(default_factory=dict)


@dataclass
class StoreModel(Model):
    """The plain truth beside a store: what it holds after each write."""

    states: list[tuple[Contents, dict[Any, int]]] = field(default_factory=lambda: [({}, {})])

    def fork(self, *, power: bool) -> StoreModel:
        plain = super().fork(power=power)
        return StoreModel(plain.groups, plain.durable, plain.returned, plain.released_lsn, self.states.copy())

    def begin(self, rows: tuple[Any, ...], known_durable_lsn: int = 0) -> None:
        super().begin(rows, known_durable_lsn)
        contents, lsns = self.states[-1][0].copy(), self.states[-1][1].copy()
        for id, vector, metadata in rows:
            if vector is None:
                contents.pop(id, None)
                lsns.pop(id, None)
            else:
                contents[id], lsns[id] = (vector, metadata), 0
        self.states.append((contents, lsns))

    def finish(self, lsn: int) -> None:
        super().finish(lsn)
        lsns = self.states[-1][1]
        lsns.update({id: lsn for id, _, _ in self.groups[-1].rows if id in lsns})

    def withdraw(self) -> None:
        super().withdraw()
        self.states.pop()

    def problem(self, found: Found, required: int) -> str | None:
        assert isinstance(found, StoreFound)
        if sorted(found.positions) != list(found.positions):
            return f"positions out of order: {found.positions}"
        if self._prefix(found, required) is not None:
            return None
        if (earlier := self._prefix(found, 0)) is not None:
            return f"{required - earlier} promised writes lost, from LSN {self.groups[earlier].lsn} on"
        wanted = self.states[required][0]
        differing = [id for id in wanted.keys() | found.contents.keys() if wanted.get(id) != found.contents.get(id)]
        return f"no state that ever was: {len(found.contents)} ids, differing from the promised in {differing[:5]}"

    def adopt(self, found: Found) -> None:
        assert isinstance(found, StoreFound)
        end = self._prefix(found, 0)
        assert end is not None
        del self.groups[end:], self.states[end + 1 :]
        if self.groups and not self.groups[-1].lsn:
            lsns = [found.lsns[id] for id, vector, _ in self.groups[-1].rows if vector is not None]
            self.finish(lsns[0] if lsns else found.positions[0])
        self.durable = self.returned = end

    def _prefix(self, found: StoreFound, least: int) -> int | None:
        """Returns the longest prefix of writes, of at least so many, after which the store is as found."""
        for end in range(len(self.groups), least - 1, -1):
            contents, lsns = self.states[end]
            if contents == found.contents and all(found.lsns[id] == lsn for id, lsn in lsns.items() if lsn):
                return end
        return None


@dataclass(frozen=True)
class StoreStory:
    """What is fixed for a story."""

    dimension: int
    runway_segments: int
    sync_interval_ms: int
    checkpoint_interval: int | None
    live_bytes_max: int
    faulty: bool


class StoreTarget:
    """A store on one of the two kernels."""

    def __init__(self, kernel: KernelName = "py") -> None:
        self.name = f"store-{kernel}"
        load(kernel)
        self._kernel: KernelName = kernel

    def story(self, rng: random.Random) -> StoreStory:
        return StoreStory(
            dimension=rng.choice((4, 16, 48)),
            runway_segments=1,
            sync_interval_ms=rng.choice((0, 0, 10)),
            checkpoint_interval=rng.choice((None, 6, 20)),
            live_bytes_max=SEGMENT_BYTES_MIN * rng.choice((8, 100)),
            faulty=rng.random() < 0.5,
        )

    def model(self) -> StoreModel:
        return StoreModel()

    def faults(self, rng: random.Random, disk: SimulatedDisk, story: StoreStory) -> None:
        if story.faulty and rng.random() < 0.7:
            what, last = rng.choice([*((fault, 12) for fault in FAULTS), *(("matrix sync", 4),) * 6, ("image sync", 4)])
            disk.fail(what, rng.randint(1, last), forever=rng.random() < 0.3)

    def expected(self, error: Exception, disk: SimulatedDisk) -> bool:
        return isinstance(error, (OSError, CheckpointFailedError)) and any(fault.hits for fault in disk.faults)

    def open(self, disk: SimulatedDisk, story: StoreStory) -> StoreSession:
        disk.make_directory(WAL)
        if open_control(disk, WAL) is None and not disk.exists(f"{DATA}/control"):
            create_control(disk, WAL, new_identity(disk, story.dimension))
        store = open_store(self._config(story), disk)
        assert store._state is not None
        store._state.lock = SimulatedMutex()  # type: ignore[assignment]  # workers run on this thread's stack
        return StoreSession(disk, store, story)

    def glance(self, disk: SimulatedDisk, story: StoreStory) -> StoreFound:
        """Recovers by the steps of `mmwal/opening.py`, up to where a log is opened for writing, and reads the state."""
        config, kernel = self._config(story), load(self._kernel)
        if not disk.exists(f"{WAL}/control") or not disk.exists(f"{DATA}/control"):
            return self.open(disk, story).found()
        lock = lock_directory(disk, WAL)
        data = open_data_control(disk, DATA)
        control = open_identity(disk, config, WAL)
        proven_lsn = max((slot.redo_lsn for slot in data.slots), default=0) if data else 0
        judged = survey(disk, kernel, WAL, control, proven_lsn)
        loaded = load_newest(disk, config, control, DATA)
        assert loaded is not None
        workers = Workers(disk)
        index = build_index(kernel, workers, judged, loaded.redo_lsn, loaded.pinned_lsn)
        decision = decide(index, loaded.state)
        tail = repair(disk, kernel, WAL, lock, judged)
        loaded.control.restate()
        disk.sync_directory(DATA)
        copy_winners(kernel, workers, index, decision, loaded.state)
        found = _shown(loaded.state, (control.oldest_lsn, tail.end_lsn))
        for undecided in index.in_doubt:
            _show_in_doubt(found, undecided.gid, undecided.batches(), undecided.lsn)
        return found

    @lru_cache(maxsize=64)  # noqa: B019 (a target lives as long as its process)
    def _config(self, story: StoreStory) -> WalConfig:
        return WalConfig(
            wal_dir=WAL,
            data_dir=DATA,
            dimension=story.dimension,
            sync_interval_ms=story.sync_interval_ms,
            checkpoint_interval=story.checkpoint_interval,
            max_wal_size=story.live_bytes_max,
            append_timeout_ms=100,
            runway_segments=story.runway_segments,
            kernel=self._kernel,
        )

    def damage(self, disk: SimulatedDisk, story: StoreStory, model: Model, rng: random.Random) -> str | None:
        """Damages a control slot or an image: everything comes back, or a typed refusal where no other copy stood."""
        assert isinstance(model, StoreModel)
        path = rng.choice([f"{WAL}/control", *(f"{DATA}/{name}" for name in _names(disk) if name != "matrix")])
        if not disk.exists(path):
            return None
        file = disk.open(path, writable=True)
        content = file.read(0, file.size())
        if not content:
            return None
        layout = LOG_CONTROL if path.startswith(WAL) else DATA_CONTROL
        is_control = path.endswith("control")
        spare_copy = is_control and len(read_slots(layout, content)) == len(SLOT_OFFSETS)
        at = rng.choice(SLOT_OFFSETS) + rng.randrange(layout.size) if is_control else rng.randrange(len(content))
        file.write(at, bytes([content[at] ^ (1 << rng.randrange(8))]))
        file.sync()
        file.close()
        try:
            problem = model.problem(self.glance(disk, story), model.returned)
        except OpenError as error:
            problem = f"refused: {error}" if spare_copy else None
        return f"{path} damaged at {at}: {problem}" if problem else None


def _shown(state: State, positions: tuple[int, ...]) -> StoreFound:
    """Returns what a recovered state holds."""
    contents: Contents = {}
    lsns: dict[Any, int] = {}
    for id in state.ids():
        read = state.read(id)
        assert read is not None
        vector, entry = read
        contents[id], lsns[id] = (vector.tobytes(), decode_metadata(entry.metadata)), entry.lsn
    return StoreFound(positions[0], [], positions, contents, lsns)


def _show_in_doubt(found: StoreFound, gid: str, batches: list[Batch], lsn: int) -> None:
    """Adds a transaction in doubt to what an opened store shows."""
    written: dict[Any, tuple[bytes | None, Any]] = {}
    for batch in batches:
        for row, id in enumerate(batch.ids):
            meta = None if batch.metadata is None else batch.metadata[row]
            written[id] = (None if batch.vectors is None else batch.vectors[row].tobytes(), decode_metadata(meta))
    found.contents[in_doubt(gid)], found.lsns[in_doubt(gid)] = (_one_value(written), None), lsn


def in_doubt(gid: str) -> tuple[str, str]:
    """Returns the key that a transaction in doubt has in a state."""
    return ("in doubt", gid)


def _one_value(written: dict[Any, tuple[bytes | None, Any]]) -> bytes:
    return repr(sorted(written.items(), key=str)).encode()


def _names(disk: SimulatedDisk) -> list[str]:
    return disk.list_directory(DATA) if disk.exists(DATA) else []


class StoreSession:
    """An open store and the operations on it."""

    def __init__(self, disk: SimulatedDisk, store: VectorStore, story: StoreStory) -> None:
        self.disk = disk
        self.store = store
        self.story = story
        assert store.wal is not None
        self.wal = store.wal

    def durable_lsn(self) -> int:
        return self.store.durable_lsn

    def problem(self) -> str | None:
        metrics = self.wal.get_metrics()
        positions = (metrics.oldest_lsn, metrics.durable_lsn, metrics.published_lsn, metrics.reserved_lsn)
        return f"positions out of order: {positions}" if sorted(positions) != list(positions) else None

    def found(self) -> StoreFound:
        """Reads everything back, twice over: by id, and by searching for what is there."""
        contents: Contents = {}
        lsns: dict[Any, int] = {}
        for id in self.store:
            record = self.store.get(id)
            assert record is not None
            contents[id] = (record.vector.tobytes(), record.metadata)
            lsns[id] = record.lsn
        hits = self.store.search(np.ones(self.story.dimension, np.float32), k=len(contents) + 1)
        assert {hit.id for hit in hits} == contents.keys() and len(self.store) == len(contents), "search and ids differ"
        metrics = self.wal.get_metrics()
        positions = (metrics.oldest_lsn, metrics.durable_lsn, metrics.published_lsn, metrics.reserved_lsn)
        found = StoreFound(metrics.oldest_lsn, [], positions, contents, lsns)
        for one in self.store.list_in_doubt():
            _show_in_doubt(found, one.gid, self.store._prepared.of(one.gid).batches, one.lsn)
        return found

    def close(self) -> None:
        self.store.close()

    # ---- operations

    def act(self, rng: random.Random, model: Model) -> str:
        if self._has_failed():
            return self._failed()
        name = rng.choices(ACTS, WEIGHTS)[0]
        if name in ("close", "kill"):
            return name
        try:
            getattr(self, f"_{name}")(rng, model)
        except (WalFullError, NoStoreError):
            pass
        except (UnavailableError, OSError):
            if not any(fault.hits for fault in self.disk.faults):
                raise
        return self._failed() if self._has_failed() else name

    def _failed(self) -> str:
        assert any(fault.hits for fault in self.disk.faults), "the store failed, and nothing was ordered to"
        return "failed"

    def _has_failed(self) -> bool:
        return self.store.failed

    def _one(self, rng: random.Random, model: Model) -> None:
        self._write(rng, model, 1)

    def _many(self, rng: random.Random, model: Model) -> None:
        self._write(rng, model, rng.randint(2, 6))

    def _large(self, rng: random.Random, model: Model) -> None:
        """A batch larger than a segment."""
        self._write(rng, model, SEGMENT_BYTES_MIN // (4 * self.story.dimension + 20), fresh=True)

    def _durable(self, rng: random.Random, model: Model) -> None:
        self.store.sync()

    def _checkpoint(self, rng: random.Random, model: Model) -> None:
        self.store.checkpoint()

    def _background(self, rng: random.Random, model: Model) -> None:
        self.disk.run_workers()

    def _idle(self, rng: random.Random, model: Model) -> None:
        for _ in range(rng.randint(1, 3)):
            self.disk.advance(0.06)
            self.disk.run_workers()

    def _write(self, rng: random.Random, model: Model, count: int, *, fresh: bool = False) -> None:
        contents = _state_of(model)
        known = sorted(_ids_in(contents), key=str)
        operation = "insert" if fresh else rng.choice(OPERATIONS)
        ids: list[Any] = []
        if operation in ("update", "delete"):
            if len(known) < count:
                operation = "insert"
            else:
                ids = rng.sample(known, count)
        if operation == "upsert":
            ids = rng.sample(list(range(24)), count)
        if operation == "insert":
            ids = [_new_id(rng, contents) for _ in range(count)]
            if len(set(ids)) < count:
                return
        vectors = None if operation == "delete" else _vectors(rng, count, self.story.dimension)
        metas = [None if rng.random() < 0.6 or vectors is None else {"n": rng.randrange(1000)} for _ in ids]
        rows = []
        for row, id in enumerate(ids):
            kept = contents[id][1] if id in contents and metas[row] is None else metas[row]
            rows.append((id, None if vectors is None else vectors[row].tobytes(), kept))
        self._written(model, rows, partial(self._put, operation, ids, vectors, metas))

    def _written(self, model: Model, rows: list[Any], write: Callable[[], int]) -> None:
        model.begin(tuple(rows))
        try:
            lsn = write()
        except TransactionInDoubtError as error:
            model.withdraw()
            if in_doubt(error.gid) not in _state_of(model):
                raise
            return
        except SyncFailedError:
            raise  # the outcome is unknown until recovery
        except UnavailableError:
            model.withdraw()
            raise
        model.finish(lsn)
        self.disk.observe("written")

    def _transaction(self, rng: random.Random, model: Model) -> None:
        """Several writes as one, some of them to the same ids."""
        with self.store.transaction() as transaction:
            written = self._write_within(transaction, rng, model)
            if not written or rng.random() < 0.1:
                transaction.rollback()
                return
            rows = [(id, *value) for id, value in written.items()]
            self._written(model, rows, partial(transaction.commit, durable=rng.random() < 0.5))

    def _prepare(self, rng: random.Random, model: Model) -> None:
        """The same, to be decided later."""
        gid = f"g{rng.randrange(10_000)}"
        with self.store.transaction() as transaction:
            written = self._write_within(transaction, rng, model)
            if not written or in_doubt(gid) in _state_of(model):
                transaction.rollback()
                return

            def prepare() -> int:
                lsn = transaction.prepare(gid)
                assert self.store.durable_lsn >= lsn, "a prepare record is not forced"
                return lsn

            self._written(model, [(in_doubt(gid), _one_value(written), None)], prepare)

    def _decide(self, rng: random.Random, model: Model) -> None:
        """Decides a transaction that is in doubt."""
        waiting = self.store.list_in_doubt()
        if not waiting:
            return
        gid = rng.choice(waiting).gid
        rows: list[Any] = [(in_doubt(gid), None, None)]
        durable = rng.random() < 0.5
        if rng.random() < 0.4:
            self._written(model, rows, partial(self.store.rollback_prepared, gid, durable=durable))
            return
        for batch in self.store._prepared.of(gid).batches:
            for row, id in enumerate(batch.ids):
                meta = None if batch.metadata is None else decode_metadata(batch.metadata[row])
                rows.append((id, None if batch.vectors is None else batch.vectors[row].tobytes(), meta))
        self._written(model, rows, partial(self.store.commit_prepared, gid, durable=durable))

    def _write_within(
        self, transaction: StoreTransaction, rng: random.Random, model: Model
    ) -> dict[Any, tuple[bytes | None, Any]]:
        """Writes some rows; returns what comes of it, by id."""
        before = _state_of(model)
        now = {id: before[id] for id in _ids_in(before)}
        touched: dict[Any, None] = {}
        for _ in range(rng.randint(1, 8)):
            operation, id = rng.choice(OPERATIONS), rng.choice([*sorted(now, key=str), *touched, *range(24)])
            if operation == "insert" and id in now:
                id = _new_id(rng, now)
            if operation in ("update", "delete") and id not in now:
                continue
            touched[id] = None
            if operation == "delete":
                transaction.delete(id)
                del now[id]
            else:
                vector, meta = _vectors(rng, 1, self.story.dimension)[0], rng.choice((None, None, {"n": 1}))
                getattr(transaction, operation)(id, vector, meta)
                now[id] = vector.tobytes(), now[id][1] if id in now and meta is None else meta
        return {id: now.get(id, (None, None)) for id in touched if id in now or id in before}

    def _put(self, operation: str, ids: list[Any], vectors: Any, metas: list[Any]) -> int:
        store = self.store
        if len(ids) > 1:
            many = getattr(store, f"{operation}_many")
            return int(many(ids) if vectors is None else many(ids, vectors, metas))
        one = getattr(store, operation)
        return int(one(ids[0]) if vectors is None else one(ids[0], vectors[0], metas[0]))


OPERATIONS = ("insert", "insert", "insert", "update", "upsert", "delete")
_WEIGHED = {
    "one": 40,
    "many": 14,
    "large": 2,
    "transaction": 8,
    "prepare": 5,
    "decide": 6,
    "durable": 6,
    "checkpoint": 8,
    "background": 16,
    "idle": 4,
    "close": 4,
    "kill": 3,
}
ACTS, WEIGHTS = list(_WEIGHED), list(_WEIGHED.values())


def _state_of(model: Model) -> Contents:
    """Returns what a store holds after all that was issued."""
    assert isinstance(model, StoreModel)
    return model.states[-1][0]


def _ids_in(contents: Contents) -> list[Any]:
    """Returns the ids of a state, without the keys of what is in doubt."""
    return [id for id in contents if not isinstance(id, tuple)]


def _new_id(rng: random.Random, contents: Contents) -> Any:
    while (id := rng.choice((f"id-{rng.randrange(10_000)}", rng.randrange(100, 10_000)))) in contents:
        pass
    return id


def _vectors(rng: random.Random, count: int, dimension: int) -> Any:
    raw = np.frombuffer(rng.randbytes(2 * count * dimension), np.int16).astype(np.float32)
    return raw.reshape(count, dimension)
