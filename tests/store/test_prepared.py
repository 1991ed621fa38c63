"""Transactions that are prepared: durable, unseen, their ids held, decided now or by a later process (item 104)."""

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.disk.posix import PosixDisk
from mmwal.errors import (
    ConsistencyError,
    DuplicateTransactionError,
    IdError,
    IdTypeError,
    NoStoreError,
    ReadOnlyError,
    SyncFailedError,
    TransactionConflictError,
    TransactionInDoubtError,
    UnknownTransactionError,
    WalClosedError,
    WalFullError,
)
from mmwal.format.frame import Kind
from mmwal.log.batch import Batch, frames_of
from mmwal.log.segment import segment_name
from mmwal.opening import open_store as open_configured
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import OpenStore
from tests.store.stores import DIMENSION, SEGMENT, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

PER_SEGMENT = SEGMENT // 128  # entries of a row, about
EVERYTHING_LOST = "0/0/old"


def gids(store: mmwal.VectorStore) -> list[str]:
    return [one.gid for one in store.list_in_doubt()]


def prepare(store: mmwal.VectorStore, gid: str = "g") -> int:
    """Prepares a change, an insert and a delete, of a store that has "a" and "b"."""
    with store.transaction() as txn:
        txn.update("a", vector(10))
        txn.insert("new", vector(11), {"n": 1})
        txn.delete("b")
        return txn.prepare(gid)


def with_two(store: mmwal.VectorStore) -> mmwal.VectorStore:
    store.insert_many(["a", "b"], rows([1, 2]), [{"kept": True}, None])
    return store


def check_committed(store: mmwal.VectorStore) -> None:
    assert (store["a"][0], store.get("a").metadata) == (10, {"kept": True})  # type: ignore[union-attr]
    assert (store["new"][0], store.get("new").metadata) == (11, {"n": 1})  # type: ignore[union-attr]
    assert "b" not in store
    assert gids(store) == []


def check_unchanged(store: mmwal.VectorStore) -> None:
    assert (store["a"][0], store["b"][0]) == (1, 2)
    assert "new" not in store


def turn_over(store: mmwal.VectorStore, segments: int = 4) -> None:
    """Writes so much, with a checkpoint at the end of each, that no checkpoint needs what was there before."""
    for _ in range(segments):
        for number in range(PER_SEGMENT):
            store.upsert(f"filler-{number % 7}", vector(number))
        store.checkpoint()


# -- what it does meanwhile


@pytest.mark.parametrize("interval", [0, 3_600_000])
def test_prepared_transaction_is_durable_unseen_and_committed_as_a_whole(
    open_store: OpenStore, disk: Any, interval: int
) -> None:
    store = with_two(open_store(disk=disk, sync_interval_ms=interval))
    lsn = prepare(store)
    assert store.durable_lsn >= lsn
    check_unchanged(store)
    (told,) = store.list_in_doubt()
    assert (told.gid, told.lsn, told.rows, told.timestamp.tzinfo is not None) == ("g", lsn, 3, True)
    committed = store.commit_prepared("g")
    assert store.durable_lsn >= committed > lsn
    check_committed(store)
    assert {store.get(id).lsn for id in ("a", "new")} == {committed}  # type: ignore[union-attr]


def test_rolled_back_it_has_no_effect_and_lets_its_ids_go(open_store: OpenStore, disk: Any) -> None:
    store = with_two(open_store(disk=disk))
    prepare(store)
    assert store.rollback_prepared("g", durable=True) == store.durable_lsn
    check_unchanged(store)
    assert gids(store) == []
    store.insert("new", vector(5))
    store.delete("b")


def test_its_ids_are_held_against_every_other_writer(open_store: OpenStore) -> None:
    store = with_two(open_store())
    early = store.transaction()
    early.upsert("new", vector(1))
    prepare(store)
    before = reserved(store)
    for write in (
        lambda: store.insert("new", vector(1)),
        lambda: store.update("a", vector(1)),
        lambda: store.update("a", metadata={}),
        lambda: store.upsert("a", vector(1)),
        lambda: store.delete("b"),
        lambda: store.insert_many(["x", "new"], rows([1, 2])),
        lambda: store.update_many(["a"], rows([1])),
        lambda: store.upsert_many(["y", "b"], rows([1, 2])),
        lambda: store.delete_many(["a"]),
        early.commit,
    ):
        with pytest.raises(TransactionInDoubtError, match="commit_prepared") as caught:
            write()
        assert caught.value.gid == "g"
        assert isinstance(caught.value, TransactionConflictError)
    late = store.transaction()
    late.delete("b")
    with pytest.raises(TransactionInDoubtError):
        late.prepare("other")
    assert reserved(store) == before
    assert gids(store) == ["g"]
    check_unchanged(store)
    store.insert("elsewhere", vector(1))
    store.commit_prepared("g")
    store.update("a", vector(3))


def test_several_are_in_doubt_at_a_time_and_decided_in_any_order(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(5):
        with store.transaction() as txn:
            txn.insert(number, vector(number))
            txn.prepare(f"g{number}")
    assert gids(store) == [f"g{number}" for number in range(5)]
    for number in (3, 0, 4):
        store.commit_prepared(f"g{number}")
    store.rollback_prepared("g1")
    assert (store.ids(), gids(store)) == ([3, 0, 4], ["g2"])


def test_bad_global_ids_and_decisions_without_one_are_refused(open_store: OpenStore) -> None:
    store = with_two(open_store())
    prepare(store)
    before = reserved(store)
    for gid, error in (("g", DuplicateTransactionError), ("", IdError), (7, IdTypeError), ("x" * 70_000, IdError)):
        txn = store.transaction()
        txn.insert("other", vector(1))
        with pytest.raises(error):
            txn.prepare(gid)  # type: ignore[arg-type]
        assert not txn.is_open
    for decide in (store.commit_prepared, store.rollback_prepared):
        with pytest.raises(UnknownTransactionError, match="list_in_doubt") as caught:
            decide("unheard of")
        assert isinstance(caught.value, KeyError)
        assert caught.value.gid == "unheard of"
    assert reserved(store) == before


def test_store_without_a_log_cannot_promise_anything() -> None:
    store = mmwal.VectorStore(DIMENSION)
    txn = store.transaction()
    txn.insert("a", vector(1))
    with pytest.raises(NoStoreError, match=r"mmwal\.open"):
        txn.prepare("g")
    with pytest.raises(NoStoreError):
        store.commit_prepared("g")
    assert store.list_in_doubt() == []


def test_nothing_to_write_is_prepared_without_a_log_entry(open_store: OpenStore) -> None:
    store = open_store(dimension=...)
    for gid in ("empty", "nothing"):
        txn = store.transaction()
        if gid == "nothing":
            txn.insert("a", vector(1))
            txn.delete("a")
        before = reserved(store)
        txn.prepare(gid)
        assert reserved(store) == before
    assert gids(store) == ["empty", "nothing"]
    store.commit_prepared("empty")
    store.rollback_prepared("nothing")
    assert gids(store) == []
    assert len(store) == 0


def test_end_of_the_handle_is_told(open_store: OpenStore) -> None:
    store = with_two(open_store())
    prepare(store)
    store.close()
    for act in (store.list_in_doubt, lambda: store.commit_prepared("g"), lambda: store.rollback_prepared("g")):
        with pytest.raises(WalClosedError):
            act()
    with mmwal.open(config=_config_of(store), read_only=True) as reader:
        assert gids(reader) == ["g"]
        check_unchanged(reader)
        for act in (lambda: reader.commit_prepared("g"), lambda: reader.rollback_prepared("g")):
            with pytest.raises(ReadOnlyError):
                act()


def _config_of(store: mmwal.VectorStore) -> mmwal.WalConfig:
    wal_dir = store._log.wal_dir  # type: ignore[union-attr]
    return mmwal.WalConfig(wal_dir=wal_dir, data_dir=wal_dir.removesuffix("wal") + "data")


def test_of_two_threads_that_decide_one_is_told_that_it_is_decided(open_store: OpenStore) -> None:
    store = open_store()
    outcomes: list[str] = []
    for number in range(20):
        with store.transaction() as txn:
            txn.insert(number, vector(number))
            txn.prepare("g")
        barrier = threading.Barrier(2)

        def decide(act: Any, said: str, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                act("g")
            except UnknownTransactionError:
                return
            outcomes.append(said)

        acts = [(store.commit_prepared, "committed"), (store.rollback_prepared, "rolled back")]
        threads = [threading.Thread(target=decide, args=act) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == number + 1
        assert (number in store) == (outcomes[-1] == "committed")


# -- what survives


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("crash", ["close", "kill", "power cut"])
@pytest.mark.parametrize("decision", ["commit", "rollback"])
def test_it_outlives_the_process_and_its_checkpoints(
    open_store: OpenStore, crash: str, decision: str, checkpoints: bool
) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    store.sync()
    prepare(store)
    for _ in range(3):  # a process each
        if checkpoints:
            turn_over(store)
        if crash == "close":
            store.close()
        left = disk.kill() if crash != "power cut" else disk.image(EVERYTHING_LOST)
        disk, store = left, open_store(disk=left)
        assert gids(store) == ["g"]
        assert store.recovery_stats.in_doubt == ("g",)
        assert store.recovery_stats.in_doubt_entries == 3
        assert "in doubt: transaction 'g'" in str(store.recovery_stats)
        check_unchanged(store)
        with pytest.raises(TransactionInDoubtError):
            store.insert("new", vector(0))
    if decision == "commit":
        store.commit_prepared("g")
    else:
        store.rollback_prepared("g", durable=True)
    for step in range(2):
        (check_committed if decision == "commit" else check_unchanged)(store)
        assert gids(store) == []
        if step == 0:
            disk = disk.image(EVERYTHING_LOST)
            store = open_store(disk=disk)


def test_it_keeps_the_log_from_its_first_entry_on_until_a_checkpoint_covers_its_end(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    first = segment_name(0)
    prepare(store)
    turn_over(store)
    disk.run_workers()
    assert disk.exists(f"/store/wal/{first}")
    store.commit_prepared("g")
    turn_over(store)
    disk.run_workers()
    assert not disk.exists(f"/store/wal/{first}")
    store = open_store(disk=disk.kill())
    check_committed(store)


def test_decision_that_no_checkpoint_covers_needs_the_entries_still(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    turn_over(store)
    store.commit_prepared("g")
    store.upsert("last", vector(1))
    disk.run_workers()
    for left in (disk.kill(), disk.image(EVERYTHING_LOST)):
        check_committed(open_store(disk=left))


def test_decision_that_is_not_applied_yet_pins_the_log_for_a_checkpoint(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk, sync_interval_ms=0))
    prepare(store)
    turn_over(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_make_durable", lambda lsn, durable: None)  # the thread that commits is not so far yet
        patch.setattr(store._log, "show_durable", lambda: None)
        store.commit_prepared("g")
        store.checkpoint()
        store.checkpoint()
    store.sync()
    check_committed(store)
    disk.run_workers()
    check_committed(open_store(disk=disk.image(EVERYTHING_LOST)))


def test_what_was_decided_before_the_checkpoint_is_not_looked_at_again(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    with store.transaction() as txn:
        txn.insert("other", vector(4))
        txn.prepare("other")
    store.commit_prepared("g")
    store.update("a", vector(20))
    for _ in range(2):
        store.checkpoint()
    store.insert("last", vector(5))
    store = open_store(disk=disk.kill())
    assert store.recovery_stats.applied_entries == 1
    assert (store["a"][0], gids(store)) == (20, ["other"])


def test_half_of_a_prepared_transaction_is_refused(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    logged = store._prepared.of("g").logged
    assert logged is not None
    logged._members += 1
    logged._number += 1
    logged.append(frames_of(store._log, Batch(Kind.DELETE, ["a"], None, None))[0])  # type: ignore[arg-type]
    logged.prepare("half")
    store.sync()
    with pytest.raises(ConsistencyError, match="that the log does not hold"):
        open_store(disk=disk.kill())


def test_larger_than_a_segment_it_is_one_still(open_store: OpenStore) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 20)
    store = open_store(disk=disk)
    many = 3 * SEGMENT // (4 * DIMENSION)
    with store.transaction() as txn:
        txn.insert_many([f"row-{number}" for number in range(many)], np.ones((many, DIMENSION), np.float32))
        txn.prepare("large")
    store.insert("before", vector(1))
    disk = disk.kill()
    store = open_store(disk=disk)
    assert store.ids() == ["before"]
    lsn = store.commit_prepared("large")
    assert len(store) == many + 1
    assert store.get("row-7").lsn == lsn  # type: ignore[union-attr]
    assert len(open_store(disk=disk.image(EVERYTHING_LOST))) == many + 1


def test_failed_sync_leaves_the_outcome_to_recovery(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    store.sync()
    disk.fail("spare.wal sync", 1, forever=True)
    with pytest.raises(SyncFailedError):
        prepare(store)
    with pytest.raises(SyncFailedError):
        store.commit_prepared("g")
    found = {tuple(gids(open_store(disk=disk.image(choice)))) for choice in disk.images(random.Random(1), 20)}
    assert found <= {(), ("g",)}
    assert gids(open_store(disk=disk.kill())) == ["g"]


def test_salvaged_log_keeps_what_is_in_doubt(open_store: OpenStore, root: Path, kernel: Any) -> None:
    store = with_two(open_store())
    prepare(store)
    doomed = store.insert("doomed", vector(1), {"where": "here"})
    store.insert("after", vector(2), durable=True)
    store.insert("proof", vector(3))  # says how far the log was durable
    store.sync()
    store._log.close(clean=False)  # type: ignore[union-attr, call-arg]
    path = root / "wal" / segment_name(0)
    content = bytearray(path.read_bytes())
    content[doomed % SEGMENT - 70] ^= 1
    path.write_bytes(content)
    config = mmwal.RecoveryConfig(
        wal_dir=str(root / "wal"), data_dir=str(root / "data"), skip_corrupted_entries=True, kernel=kernel.NAME
    )
    with mmwal.CrashRecoveryManager(config).recover() as salvaged:
        assert salvaged.recovery_stats.corrupted_entries == 1
        assert "doomed" not in salvaged
        assert "after" in salvaged
        assert gids(salvaged) == ["g"]
        check_unchanged(salvaged)
    with open_store() as again:
        assert gids(again) == ["g"]
        again.commit_prepared("g")
        check_committed(again)


# -- room


def test_full_log_takes_the_decision_that_makes_room_again(open_store: OpenStore) -> None:
    store = with_two(open_store(max_wal_size=4 * SEGMENT, append_timeout_ms=500))
    prepare(store)
    with pytest.raises(WalFullError):
        turn_over(store, 10)
    for number in range(3):  # not one entry fits
        with pytest.raises(WalFullError):
            store.upsert(f"more-{number}", rows([number] * 3)[0])
    store.commit_prepared("g")
    check_committed(store)
    turn_over(store, 3)


def test_batch_that_finds_no_room_because_of_it_says_so(open_store: OpenStore) -> None:
    store = with_two(open_store(max_wal_size=9 * SEGMENT, append_timeout_ms=500))
    prepare(store, "the one")
    turn_over(store, 4)
    many = 3 * SEGMENT // (4 * DIMENSION)
    with pytest.raises(WalFullError, match="'the one'"):
        store.insert_many([f"row-{number}" for number in range(many)], np.ones((many, DIMENSION), np.float32))
    store.rollback_prepared("the one")
    store.checkpoint()
    store.insert_many([f"row-{number}" for number in range(many)], np.ones((many, DIMENSION), np.float32))
    check_unchanged(store)


# -- an end that is interrupted


def test_interrupted_decision_is_not_logged_twice(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    log: Any = store._log
    append = log.append_frame

    def interrupted(kind: int, *args: Any) -> int:
        append(kind, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(log, "append_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.commit_prepared("g")
    monkeypatch.undo()
    before = reserved(store)
    for decide in (store.commit_prepared, store.rollback_prepared):
        with pytest.raises(SyncFailedError):
            decide("g")
    assert reserved(store) == before
    check_committed(open_store(disk=disk.kill()))
    with pytest.raises(SyncFailedError, match="interrupted"):
        store.close()  # no checkpoint passes what is logged and not applied
    check_committed(open_store(disk=disk))


# -- who reads the log


def test_readers_of_the_log_see_its_entries_at_its_commit(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    store.insert("between", vector(3))
    disk = disk.kill()
    store = open_store(disk=disk)  # another writer, whose own transactions come in between
    many = 3 * SEGMENT // (4 * DIMENSION)
    store.insert_many([f"row-{number}" for number in range(many)], np.ones((many, DIMENSION), np.float32))
    committed = store.commit_prepared("g")
    with store.transaction() as txn:
        txn.insert("never", vector(1))
        txn.prepare("h")
    rolled_back = store.rollback_prepared("h")
    assert store.wal is not None
    told = [(entry.kind, entry.lsn) for entry in store.wal.replay() if entry.txn and entry.kind != "batch"]
    assert [one for one in told if one[1] >= committed or one[0] == "prepare"] == [
        ("prepare", told[0][1]),
        *[("delete", committed), ("insert", committed), ("update", committed), ("commit", committed)],
        ("prepare", told[-2][1]),
        ("rollback", rolled_back),
    ]
    seen = {id for entry in store.wal.replay() for id in getattr(entry, "ids", [getattr(entry, "id", None)])}
    assert {"a", "new", "between", "row-9"} <= seen
    assert "never" not in seen


def test_point_in_time_before_the_commit_has_it_in_doubt(open_store: OpenStore, root: Path) -> None:
    store = with_two(open_store())
    prepared = prepare(store)
    committed = store.commit_prepared("g")
    store.close()
    config = _config_of(store)
    for until, doubtful in ((prepared - 64, []), (prepared, ["g"]), (committed, [])):
        with open_configured(config, PosixDisk(), read_only=True, until_lsn=until) as past:
            assert gids(past) == doubtful
            (check_committed if until == committed else check_unchanged)(past)


def test_verify_finds_a_store_with_one_whole_and_a_prepare_record_that_lies_damaged(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = with_two(open_store(disk=disk))
    prepare(store)
    turn_over(store)
    assert store.verify().ok
    log: Any = store._log
    frame = next(prepared for prepared in store._prepared._by_gid.values()).logged
    assert frame is not None
    frame._members_crc ^= 1
    frame._end(Kind.PREPARE, frame._members, frame._summary())
    log.make_durable(log.cursor.published)
    assert any("commits other entries" in finding.problem for finding in store.verify().findings)
