"""Transactions on a store: read your own writes, seen outside whole or not at all, the first committer wins."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import (
    DuplicateIdError,
    IdError,
    IdTypeError,
    MetadataError,
    ReadOnlyError,
    SyncFailedError,
    TransactionClosedError,
    TransactionConflictError,
    UnknownIdError,
    VectorError,
    WalClosedError,
    WalFullError,
)
from mmwal.format.frame import Kind
from mmwal.log.log import OverBudget
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import OpenStore
from tests.store.stores import DIMENSION, HUGE_INTERVAL, SEGMENT, contents, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def plain(store: mmwal.VectorStore) -> dict[Any, tuple[float, Any]]:
    """The first value and the metadata of each id."""
    return {id: (float(np.frombuffer(raw, np.float32)[0]), meta) for id, (raw, meta, _) in contents(store).items()}


@pytest.fixture(params=["logged", "in memory"])
def any_store(request: pytest.FixtureRequest, open_store: OpenStore) -> mmwal.VectorStore:
    return open_store() if request.param == "logged" else mmwal.VectorStore(DIMENSION)


def test_writes_are_read_inside_and_seen_outside_only_after_the_commit(any_store: mmwal.VectorStore) -> None:
    store = any_store
    store.insert_many(["a", "b", "c"], rows([1, 2, 3]), [{"n": 1}, None, {"n": 3}])
    before = plain(store)
    with store.transaction() as txn:
        txn.insert("new", vector(4), {"n": 4})
        txn.update("a", vector(10))
        txn.update("c", metadata={"n": 30})
        txn.delete("b")
        txn.upsert("up", vector(5))
        txn.upsert("a", vector(11))
        record = txn.get("a")
        assert record is not None
        assert (record.vector[0], record.metadata, record.lsn) == (11, {"n": 1}, 0)
        assert txn.get("b") is None
        assert "b" not in txn
        assert "new" in txn
        assert (txn.get("c").vector[0], txn.get("c").metadata) == (3, {"n": 30})  # type: ignore[union-attr]
        assert plain(store) == before
        assert [hit.id for hit in store.search(vector(1), 5)] == ["c", "b", "a"]
    expected = {"new": (4, {"n": 4}), "a": (11, {"n": 1}), "c": (3, {"n": 30}), "up": (5, None)}
    assert plain(store) == expected
    assert len({entry[2] for entry in contents(store).values()}) == 1
    assert len(store) == 4


def test_a_record_of_the_store_has_its_lsn_and_cannot_be_changed_through(any_store: mmwal.VectorStore) -> None:
    lsn = any_store.insert("a", vector(1))
    txn = any_store.transaction()
    record = txn.get("a")
    assert record is not None
    assert record.lsn == lsn
    txn.update("a", vector(2))
    mine = txn.get("a")
    assert mine is not None
    mine.vector[:] = 99
    record.vector[:] = 99
    txn.commit()
    assert any_store["a"][0] == 2


@pytest.mark.parametrize("way", ["rollback", "exception", "forgotten"])
def test_what_is_not_committed_leaves_no_trace(any_store: mmwal.VectorStore, way: str) -> None:
    store = any_store
    store.insert("a", vector(1))
    before, logged = contents(store), reserved(store)
    txn: Any = store.transaction()
    txn.insert("b", vector(2))
    txn.delete("a")
    if way == "rollback":
        txn.rollback()
    elif way == "exception":
        with pytest.raises(KeyError), txn:
            raise KeyError
    else:
        del txn
    assert contents(store) == before
    assert reserved(store) == logged
    store.insert("b", vector(3))


def test_net_effect_is_logged_once_per_id(open_store: OpenStore) -> None:
    store = open_store()
    store.insert_many(["gone", "renewed", "kept", "twice"], rows([1, 2, 3, 4]), [{"n": 1}] * 4)
    lsn = reserved(store)
    with store.transaction() as txn:
        txn.insert("fleeting", vector(1))
        txn.delete("fleeting")
        txn.delete("gone")
        txn.delete("renewed")
        txn.insert("renewed", vector(20))
        txn.update("kept", vector(30))
        txn.update("twice", vector(40))
        txn.update("twice", vector(41), {"n": 41})
        txn.insert("new", vector(5))
    assert store.wal is not None
    logged = []
    for entry in store.wal.iter_entries(lsn):
        for single in entry.singles() if entry.kind == "batch" else [entry]:
            logged.append((single.kind, getattr(single, "id", None), getattr(single, "metadata", None)))
    assert sorted(logged[:-1], key=str) == sorted(
        [
            ("delete", "gone", None),
            ("insert", "renewed", None),
            ("insert", "new", None),
            ("update", "kept", {"n": 1}),
            ("update", "twice", {"n": 41}),
        ],
        key=str,
    )
    assert logged[-1][0] == "commit"
    assert len({entry.lsn for entry in store.wal.iter_entries(lsn)}) == 1


def test_renewed_id_keeps_nothing_of_what_it_was_after_a_kill(open_store: OpenStore, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1), {"old": True})
    with store.transaction() as txn:
        txn.delete("a")
        txn.insert("a", vector(2))
        txn.update("a", vector(3))
    assert plain(store) == {"a": (3, None)}
    again = open_store(disk=simulated.kill())
    assert plain(again) == {"a": (3, None)}


def test_nothing_in_the_end_logs_nothing(any_store: mmwal.VectorStore) -> None:
    any_store.insert("a", vector(1))
    before = reserved(any_store)
    with any_store.transaction():
        pass
    with any_store.transaction() as txn:
        txn.insert("b", vector(1))
        txn.delete("b")
        txn.get("a")
    assert reserved(any_store) == before
    assert any_store.ids() == ["a"]


def test_one_change_alone_is_one_frame(open_store: OpenStore) -> None:
    store = open_store()
    with store.transaction() as txn:
        txn.insert("a", vector(1))
    assert store.wal is not None
    assert [entry.kind for entry in store.wal.replay()] == ["insert"]


def test_commit_is_durable_unless_told_otherwise(open_store: OpenStore) -> None:
    store = open_store(sync_interval_ms=HUGE_INTERVAL)
    txn = store.transaction()
    txn.insert("a", vector(1))
    lsn = txn.commit(durable=False)
    assert store.durable_lsn < lsn
    assert "a" in store
    txn = store.transaction()
    txn.insert("b", vector(1))
    assert store.durable_lsn < txn.commit() == store.durable_lsn


def test_first_committer_wins(any_store: mmwal.VectorStore) -> None:
    store = any_store
    store.insert_many(["a", "b"], rows([1, 2]))
    changes: list[Callable[[], Any]] = [
        lambda: store.update("a", vector(5)),
        lambda: store.delete("a"),
        lambda: store.insert("a", vector(6)),
        lambda: store.upsert_many(["a", "z"], rows([7, 8])),
    ]
    for change in changes:
        first, second = store.transaction(), store.transaction()
        for txn in (first, second):
            txn.upsert("a", vector(50))
            txn.upsert("b", vector(60))
        change()
        before, logged = contents(store), reserved(store)
        with pytest.raises(TransactionConflictError, match="'a' was changed by another writer") as raised:
            first.commit()
        assert raised.value.id == "a"
        with pytest.raises(TransactionClosedError):
            first.commit()
        with pytest.raises(TransactionConflictError):
            second.commit()
        assert contents(store) == before
        assert reserved(store) == logged


def test_of_two_transactions_on_one_id_the_second_commit_is_refused(any_store: mmwal.VectorStore) -> None:
    one, two = any_store.transaction(), any_store.transaction()
    one.insert("a", vector(1))
    two.insert("a", vector(2))
    one.commit()
    with pytest.raises(TransactionConflictError):
        two.commit()
    assert any_store["a"][0] == 1


def test_reading_again_what_another_changed_is_refused_at_once(any_store: mmwal.VectorStore) -> None:
    any_store.insert("a", vector(1))
    txn = any_store.transaction()
    assert txn.get("a") is not None
    assert "b" not in txn
    any_store.update("a", vector(2))
    any_store.insert("b", vector(3))
    for call in (lambda: txn.get("a"), lambda: txn.update("a", vector(9)), lambda: txn.insert("b", vector(9))):
        with pytest.raises(TransactionConflictError):
            call()


def test_read_then_write_never_loses_an_update(any_store: mmwal.VectorStore) -> None:
    store = any_store
    store.insert("counter", vector(0))
    conflicts = []

    def add(times: int) -> None:
        for _ in range(times):
            while True:
                try:
                    with store.transaction() as txn:
                        now = txn.get("counter")
                        assert now is not None
                        txn.update("counter", now.vector + 1)
                    break
                except TransactionConflictError as error:
                    conflicts.append(error)

    threads = [threading.Thread(target=add, args=(40,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store["counter"][0] == 160


def test_what_was_only_read_is_not_guarded(any_store: mmwal.VectorStore) -> None:
    any_store.insert_many(["a", "b"], rows([1, 2]))
    txn = any_store.transaction()
    txn.get("a")
    txn.update("b", vector(3))
    any_store.update("a", vector(4))
    txn.commit()
    assert any_store["b"][0] == 3


def test_write_that_waits_for_its_sync_is_a_conflict_too(open_store: OpenStore, simulated: SimulatedDisk) -> None:
    """At interval 0 a logged write is not visible before it is durable; it is first all the same."""
    store = open_store(disk=simulated, sync_interval_ms=0)
    store.insert("a", vector(1))
    txn = store.transaction()
    txn.update("a", vector(2))
    make_durable = store._make_durable
    inside: list[Any] = []

    def meanwhile(lsn: int, durable: bool | None = True) -> None:
        store._make_durable = make_durable  # type: ignore[method-assign]
        assert store["a"][0] == 1
        with pytest.raises(TransactionConflictError) as raised:
            txn.commit()
        inside.append(raised.value)
        make_durable(lsn)

    store._make_durable = meanwhile  # type: ignore[method-assign]
    store.update("a", vector(3))
    assert inside
    assert store["a"][0] == 3


def test_bad_input_is_raised_at_once_and_leaves_the_transaction_as_it_was(any_store: mmwal.VectorStore) -> None:
    store = any_store
    store.insert("a", vector(1))
    txn = store.transaction()
    txn.insert("mine", vector(2))
    wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
        (DuplicateIdError, lambda: txn.insert("a", vector(1))),
        (DuplicateIdError, lambda: txn.insert("mine", vector(1))),
        (DuplicateIdError, lambda: txn.insert_many(["x", "mine"], rows([1, 2]))),
        (DuplicateIdError, lambda: txn.upsert_many(["x", "x"], rows([1, 2]))),
        (UnknownIdError, lambda: txn.update("none", vector(1))),
        (UnknownIdError, lambda: txn.delete("none")),
        (UnknownIdError, lambda: txn.delete_many(["mine", "none"])),
        (UnknownIdError, lambda: txn.update_many(["mine", "none"], rows([7, 8]))),
        (VectorError, lambda: txn.insert("x", vector(1, 3))),
        (VectorError, lambda: txn.insert("x", None)),
        (VectorError, lambda: txn.update("a")),
        (VectorError, lambda: txn.insert("x", [float("inf")] * DIMENSION)),
        (VectorError, lambda: txn.insert_many(["x", "y"], rows([1]))),
        (VectorError, lambda: txn.insert_many(["x", "y"], rows([1, 2], 3))),
        (ValueError, lambda: txn.insert_many(["x", "y"], rows([1, 2]), [None])),
        (ValueError, lambda: txn.insert_many([], rows([1])[:0])),
        (MetadataError, lambda: txn.insert("x", vector(1), {"a": {1, 2}})),
        (IdTypeError, lambda: txn.insert(1.5, vector(1))),  # type: ignore[arg-type]
        (IdError, lambda: txn.insert("", vector(1))),
    ]
    for kind, call in wrong:
        with pytest.raises(kind):
            call()
    assert "x" not in txn
    txn.commit()
    assert plain(store) == {"a": (1, None), "mine": (2, None)}


def test_many_rows_at_a_time(any_store: mmwal.VectorStore) -> None:
    store = any_store
    store.insert_many(range(4), rows(range(4)), [{"n": i} for i in range(4)])
    with store.transaction() as txn:
        txn.insert_many(["a", "b"], rows([10, 11]), [{"a": 1}, None])
        txn.update_many([0, 1], metadata=[{"m": 0}, {"m": 1}])
        txn.upsert_many([1, "c"], rows([12, 13]))
        txn.delete_many([2, "a"])
    assert plain(store) == {
        3: (3, {"n": 3}), "b": (11, None), 0: (0, {"m": 0}), 1: (12, {"m": 1}), "c": (13, None),
    }  # fmt: skip


def test_update_many_leaves_a_row_alone_of_which_nothing_is_said(any_store: mmwal.VectorStore) -> None:
    any_store.insert_many(["a", "b"], rows([1, 2]), [{"n": 1}, {"n": 2}])
    with any_store.transaction() as txn:
        txn.update_many(["a", "b"], metadata=[{"n": 10}, None])
    assert plain(any_store) == {"a": (1, {"n": 10}), "b": (2, {"n": 2})}
    with pytest.raises(VectorError, match="nothing to update"):
        any_store.transaction().update_many(["a"], metadata=[None])


def test_commit_that_finds_no_room_at_the_last_frame_pins_nothing(open_store: OpenStore) -> None:
    store = open_store(max_wal_size=4 * SEGMENT, append_timeout_ms=200)
    store.insert("a", vector(1))
    log: Any = store._log
    append_frame, refused = log.append_frame, []

    def refuse_once(kind: int, *rest: Any) -> int:
        if kind == Kind.COMMIT and not refused:
            refused.append(kind)
            raise OverBudget
        return int(append_frame(kind, *rest))

    log.append_frame = refuse_once
    with store.transaction() as txn:
        txn.insert("b", vector(2))
        txn.delete("a")
    assert refused
    assert store.ids() == ["b"]
    assert not log.keeper.transactions


def test_ends_are_final_and_said(any_store: mmwal.VectorStore) -> None:
    txn = any_store.transaction()
    txn.insert("a", vector(1))
    assert txn.is_open
    txn.commit()
    uses: list[Callable[[], Any]] = [
        lambda: txn.insert("b", vector(1)), lambda: txn.update("a", vector(1)), lambda: txn.upsert("a", vector(1)),
        lambda: txn.delete("a"), lambda: txn.get("a"), lambda: "a" in txn, lambda: txn.delete_many(["a"]),
        txn.commit, txn.__enter__,
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(TransactionClosedError, match="was committed"):
            use()
    txn.rollback()
    assert "a" in any_store


def test_closed_store_and_reader_take_no_transaction(open_store: OpenStore, root: Any) -> None:
    store = open_store()
    store.insert("a", vector(1))
    txn = store.transaction()
    txn.update("a", vector(2))
    store.close()
    for call in (txn.commit, store.transaction):
        with pytest.raises(WalClosedError):
            call()
    with mmwal.open(root, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.transaction()
    assert open_store()["a"][0] == 1


def test_first_vector_of_a_transaction_decides_the_dimension_at_its_commit(open_store: OpenStore) -> None:
    store = open_store(dimension=...)
    txn = store.transaction()
    txn.insert("a", [1.0, 2.0, 3.0])
    with pytest.raises(VectorError, match="dimension 3"):
        txn.insert("b", [1.0, 2.0])
    assert store.dimension is None
    txn.commit()
    assert store.dimension == 3
    assert store["a"].tolist() == [1, 2, 3]


def test_dimension_that_another_writer_decided_meanwhile_is_said(open_store: OpenStore) -> None:
    store = open_store(dimension=...)
    txn = store.transaction()
    txn.insert("a", [1.0, 2.0, 3.0])
    store.insert("b", [1.0, 2.0])
    with pytest.raises(VectorError, match="another writer gave the store first"):
        txn.commit()
    assert store.ids() == ["b"]


def test_transaction_larger_than_a_segment_is_whole(open_store: OpenStore, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, append_timeout_ms=60_000)
    count = 3 * SEGMENT // (DIMENSION * 4)
    store.insert_many(range(10), rows(range(10)))
    with store.transaction() as txn:
        txn.insert_many([f"n{i}" for i in range(count)], rows(range(count)))
        txn.delete_many(range(5))
        txn.update_many(range(5, 10), rows(range(50, 55)))
    expected = contents(store)
    assert len(expected) == count + 5
    assert contents(open_store(disk=simulated.kill())) == expected


def test_transaction_beyond_the_budget_is_refused_whole_and_may_be_given_up(open_store: OpenStore) -> None:
    store = open_store(max_wal_size=4 * SEGMENT, append_timeout_ms=200)
    store.insert("a", vector(1))
    before, logged = contents(store), reserved(store)
    txn = store.transaction()
    count = 6 * SEGMENT // (DIMENSION * 4)
    txn.insert_many(range(count), rows([1] * count))
    for _ in range(2):
        with pytest.raises(WalFullError, match="does not fit into max_wal_size"):
            txn.commit()
        assert txn.is_open
    assert contents(store) == before
    assert reserved(store) == logged
    txn.rollback()
    store.insert("b", vector(2))


def test_room_is_made_by_checkpoints(open_store: OpenStore) -> None:
    store = open_store(max_wal_size=4 * SEGMENT, append_timeout_ms=60_000)
    count = SEGMENT // (DIMENSION * 4)
    for turn in range(12):
        with store.transaction() as txn:
            txn.insert_many([f"{turn}.{i}" for i in range(count)], rows([turn] * count))
            if turn:
                txn.delete_many([f"{turn - 1}.{i}" for i in range(count)])
    assert len(store) == count
    assert store.checkpoints_taken > 0


def test_failed_sync_of_a_commit_is_said_and_nothing_is_seen(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = open_store(disk=disk, sync_interval_ms=0)
    store.insert("a", vector(1))
    txn = store.transaction()
    txn.insert("b", vector(2))
    txn.delete("a")
    disk.fail("sync", 1, forever=True)
    with pytest.raises(SyncFailedError):
        txn.commit()
    assert not txn.is_open
    assert store.failed
    assert store.ids() == ["a"]


@pytest.mark.parametrize("interval", [0, HUGE_INTERVAL])
def test_power_cut_leaves_all_of_it_or_nothing(open_store: OpenStore, interval: int) -> None:
    disk = SimulatedDisk()
    store = open_store(disk=disk, sync_interval_ms=interval)
    store.insert_many(["a", "b"], rows([1, 2]), durable=True)
    before = plain(store)
    txn = store.transaction()
    txn.insert_many(range(12), rows(range(12)))
    txn.update("a", vector(10))
    txn.delete("b")
    txn.commit(durable=False)
    after = plain(store)
    found = []
    for choice in disk.images(random.Random(3), 30):
        found.append(plain(open_store(disk=disk.image(choice))))
        assert found[-1] in ((after,) if interval == 0 else (before, after))
    assert after in found
    assert plain(open_store(disk=disk.kill())) == after


def test_readers_never_see_half(open_store: OpenStore) -> None:
    store = open_store(sync_interval_ms=100)
    store.insert_many(["left", "right", "gone"], rows([0, 0, 0]))
    stop = threading.Event()
    halves: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            hits = {hit.id: hit for hit in store.search(vector(1), 10)}
            turns = {(hit.metadata or {}).get("turn", 0) for hit in hits.values()}
            if len(turns) != 1 or ("gone" in hits) == ("back" in hits):
                halves.append(hits)
            both = store.get_many(["gone", "back"])
            if (both[0] is None) == (both[1] is None):
                halves.append(both)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    here, there = "gone", "back"
    for turn in range(1, 150):
        with store.transaction() as txn:
            txn.update("left", vector(turn), {"turn": turn})
            txn.delete(here)
            txn.update("right", vector(turn), {"turn": turn})
            txn.insert(there, vector(turn), {"turn": turn})
        here, there = there, here
    stop.set()
    for reader in readers:
        reader.join()
    assert halves == []
