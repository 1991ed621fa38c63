"""The store against a plain dict: any sequence of writes, checkpoints, clean and unclean ends."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import mmwal
from mmwal.errors import (
    DuplicateIdError,
    DuplicateTransactionError,
    TransactionConflictError,
    TransactionInDoubtError,
    UnknownIdError,
    UnknownTransactionError,
    VectorError,
)
from mmwal.opening import open_store
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import SEGMENT, close_quietly, config, contents

IDS = st.sampled_from(["a", "b", "7", "ü", 7, 0, -1, (1 << 63) - 1])
VALUES = st.integers(-100, 100)
METADATA = st.sampled_from([None, {}, {"n": 1}, {"deep": [1, {"x": None}], "text": "y" * 40}])
DURABLE = st.booleans()
GIDS = st.sampled_from(["first", "second"])
DIMENSION = 40


def row(value: float) -> np.ndarray[Any, Any]:
    return np.full(DIMENSION, value, np.float32)


class StoreAgainstDict(RuleBasedStateMachine):
    """`kernel` is set by the test."""

    kernel: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.model: dict[Any, tuple[bytes, Any]] = {}
        self.interval = 0
        self.doubts: dict[str, dict[Any, tuple[bytes, Any]]] = {}  # of each prepared transaction, what it writes
        self.durable_models: list[tuple[Any, Any]] = [({}, {})]  # legal after a power cut: the first, or later
        self.highest = 0
        self.store: Any = None
        self.reopen()

    def reopen(self) -> None:
        fields = config(
            "/store",
            self.kernel,
            dimension=DIMENSION,
            sync_interval_ms=self.interval,
            checkpoint_interval=15,
            max_wal_size=4 * SEGMENT,
        )
        self.store = open_store(fields, self.disk)
        self.store._state.lock = SimulatedMutex()

    def all_is_durable(self) -> None:
        self.durable_models = [(dict(self.model), dict(self.doubts))]

    def wrote(self, lsn: int, durable: bool, also: dict[Any, tuple[bytes, Any]] | None = None) -> None:
        assert lsn > self.highest
        self.highest = lsn
        self.durable_models.append(({**self.model, **(also or {})}, dict(self.doubts)))
        if durable or self.interval == 0:
            assert self.store.durable_lsn >= lsn
            self.durable_models = self.durable_models[-1:]

    @rule(id=IDS, value=VALUES, metadata=METADATA, durable=DURABLE)
    def insert(self, id: Any, value: int, metadata: Any, durable: bool) -> None:
        if id in self.model:
            with pytest.raises(DuplicateIdError):
                self.store.insert(id, row(value), metadata)
            return
        lsn = self.store.insert(id, row(value), metadata, durable=durable)
        self.model[id] = (row(value).tobytes(), metadata)
        self.wrote(lsn, durable)

    @rule(id=IDS, value=st.none() | VALUES, metadata=METADATA, durable=DURABLE)
    def update(self, id: Any, value: int | None, metadata: Any, durable: bool) -> None:
        vector = None if value is None else row(value)
        if vector is None and metadata is None:
            with pytest.raises(VectorError, match="nothing to update"):
                self.store.update(id)
            return
        if id not in self.model:
            with pytest.raises(UnknownIdError):
                self.store.update(id, vector, metadata)
            return
        lsn = self.store.update(id, vector, metadata, durable=durable)
        before = self.model[id]
        self.model[id] = (
            before[0] if vector is None else vector.tobytes(),
            before[1] if metadata is None else metadata,
        )
        self.wrote(lsn, durable)

    @rule(id=IDS, durable=DURABLE)
    def delete(self, id: Any, durable: bool) -> None:
        if id not in self.model:
            with pytest.raises(UnknownIdError):
                self.store.delete(id)
            return
        lsn = self.store.delete(id, durable=durable)
        del self.model[id]
        self.wrote(lsn, durable)

    @rule(ids=st.lists(IDS, min_size=1, max_size=6, unique=True), value=VALUES, metadata=METADATA, durable=DURABLE)
    def upsert_many(self, ids: list[Any], value: int, metadata: Any, durable: bool) -> None:
        vectors = np.stack([row(value + n) for n in range(len(ids))])
        lsn = self.store.upsert_many(ids, vectors, [metadata] * len(ids), durable=durable)
        for id, vector in zip(ids, vectors, strict=True):
            kept = self.model[id][1] if id in self.model else None
            self.model[id] = (vector.tobytes(), kept if metadata is None else metadata)
        self.wrote(lsn, durable)

    @rule(ids=st.lists(IDS, min_size=1, max_size=6, unique=True))
    def delete_many(self, ids: list[Any]) -> None:
        if any(id not in self.model for id in ids):
            with pytest.raises(UnknownIdError):
                self.store.delete_many(ids)
            return
        lsn = self.store.delete_many(ids)
        for id in ids:
            del self.model[id]
        self.wrote(lsn, False)

    @rule(
        writes=st.lists(st.tuples(IDS, st.none() | VALUES, METADATA), min_size=1, max_size=8),
        end=st.sampled_from(["durable", "commit", "rollback", "conflict"]),
    )
    def transaction(self, writes: list[tuple[Any, int | None, Any]], end: str) -> None:
        """None for a value deletes the id, if it is there."""
        model = dict(self.model)
        txn = self.store.transaction()
        for id, value, metadata in writes:
            assert (id in txn) == (id in model)
            if value is not None:
                txn.upsert(id, row(value), metadata)
                model[id] = (row(value).tobytes(), model[id][1] if id in model and metadata is None else metadata)
            elif id in model:
                txn.delete(id)
                del model[id]
            record = txn.get(id)
            assert (None if record is None else (record.vector.tobytes(), record.metadata)) == model.get(id)
        if end == "rollback":
            txn.rollback()
        elif end == "conflict":
            changes = txn.changes
            self.upsert_many([changes[0].id if changes else "a"], 7, None, False)
            with pytest.raises(TransactionConflictError) if changes else nullcontext():
                txn.commit()
        elif txn.changes:
            lsn = txn.commit(durable=end == "durable")
            self.model = model
            self.wrote(lsn, end == "durable")
        else:
            txn.commit()

    @rule(gid=GIDS, values=st.lists(VALUES, min_size=1, max_size=3), metadata=METADATA)
    def prepare(self, gid: str, values: list[int], metadata: Any) -> None:
        """Writes ids of its own: what others may do to them meanwhile is for tests/store/test_prepared.py."""
        txn = self.store.transaction()
        writes = {}
        for number, value in enumerate(values):
            id = f"{gid}-{number}"
            txn.upsert(id, row(value), metadata)
            kept = self.model[id][1] if id in self.model and metadata is None else metadata
            writes[id] = (row(value).tobytes(), kept)
        if gid in self.doubts:
            with pytest.raises(DuplicateTransactionError):
                txn.prepare(gid)
            return
        lsn = txn.prepare(gid)
        self.doubts[gid] = writes
        self.wrote(lsn, True)
        with pytest.raises(TransactionInDoubtError):
            self.store.upsert(f"{gid}-0", row(0))

    @rule(gid=GIDS, commits=st.booleans(), durable=DURABLE)
    def decide(self, gid: str, commits: bool, durable: bool) -> None:
        act = self.store.commit_prepared if commits else self.store.rollback_prepared
        if gid not in self.doubts:
            with pytest.raises(UnknownTransactionError):
                act(gid)
            return
        lsn = act(gid, durable=durable)
        writes = self.doubts.pop(gid)
        if commits:
            self.model.update(writes)
        self.wrote(lsn, durable)

    @precondition(lambda self: not self.doubts)  # which would keep the log
    @rule(count=st.sampled_from([300, 500]), value=VALUES)
    def large_batch_comes_and_goes(self, count: int, value: int) -> None:
        ids = [f"large-{n}" for n in range(count)]
        lsn = self.store.upsert_many(ids, np.tile(row(value), (count, 1)))  # a power cut may have kept those before
        self.wrote(lsn, False, {id: (row(value).tobytes(), None) for id in ids})
        lsn = self.store.delete_many(ids)
        self.model = {id: entry for id, entry in self.model.items() if id not in ids}
        self.wrote(lsn, False)

    @rule()
    def checkpoint(self) -> None:
        assert self.store.checkpoint().live_rows == len(self.model)
        self.all_is_durable()

    @rule()
    def sync(self) -> None:
        self.store.sync()
        self.all_is_durable()

    @rule()
    def background(self) -> None:
        self.disk.advance(1)
        self.disk.run_workers()

    @rule(interval=st.sampled_from([0, 100]))
    def close_and_reopen(self, interval: int) -> None:
        self.store.close()
        self.interval = interval
        self.reopen()
        stats = self.store.recovery_stats
        assert stats.clean_shutdown and stats.applied_entries == 0
        self.all_is_durable()

    @rule(interval=st.sampled_from([0, 100]))
    def kill_and_reopen(self, interval: int) -> None:
        self.disk = self.disk.kill()
        self.interval = interval
        self.reopen()
        assert not self.store.recovery_stats.clean_shutdown
        self.all_is_durable()

    @precondition(lambda self: len(self.durable_models) < 30)
    @rule(interval=st.sampled_from([0, 100]), seed=st.integers(0, 1000))
    def power_cut_and_reopen(self, interval: int, seed: int) -> None:
        choice = next(iter(self.disk.images(random.Random(seed), 1)))
        self.disk = self.disk.image(choice)
        self.interval = interval
        self.reopen()
        found = {id: entry[:2] for id, entry in contents(self.store).items()}
        gids = {one.gid for one in self.store.list_in_doubt()}
        doubts = next(
            (doubts for model, doubts in self.durable_models if (model, doubts.keys()) == (found, gids)), None
        )
        assert doubts is not None
        self.highest = self.store.recovery_stats.last_lsn  # what was lost may come again
        self.model, self.doubts = dict(found), dict(doubts)
        self.all_is_durable()

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        found = contents(self.store)
        assert {id: entry[:2] for id, entry in found.items()} == self.model
        assert [found[id][2] for id in found] == sorted(found[id][2] for id in found)
        assert {one.gid for one in self.store.list_in_doubt()} == self.doubts.keys()
        for id in self.model:
            assert id in self.store

    def teardown(self) -> None:
        close_quietly(self.store)


def test_store_behaves_as_a_dict_through_checkpoints_closes_kills_and_power_cuts(kernel: Any) -> None:
    machine = type("StoreAgainstDictOn" + kernel.NAME, (StoreAgainstDict,), {"kernel": kernel})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_model_store_is_the_oracle_in_memory_too() -> None:
    store = mmwal.VectorStore(DIMENSION)
    store.insert("a", row(1))
    assert contents(store)["a"][:2] == (row(1).tobytes(), None)
