"""Writes to a store that wait for nothing, and their receipts: when they are durable, and when readers see them."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mmwal
import mmwal.store
from mmwal.errors import DuplicateIdError, NoStoreError, ReadOnlyError, SyncFailedError, UnknownIdError
from mmwal.testing.simulator import SimulatedDisk
from tests.log.logs import NOTHING_UNSYNCED
from tests.store.fixtures import OpenStore
from tests.store.stores import close_quietly, config, contents, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def store(open_store: Any, simulated: SimulatedDisk) -> Any:
    """A store at interval 0 with three durable rows, whose workers have nothing to do."""
    made = open_store(disk=simulated, sync_interval_ms=0)
    made.insert("a", vector(1), {"n": 1})
    made.insert_many(["b", "c"], rows([2, 3]))
    while simulated.run_workers():
        pass
    return made


def commit(store: Any, durable: bool | None) -> int:
    txn = store.transaction()
    txn.insert("new", vector(9))
    txn.delete("a")
    return int(txn.commit(durable=durable))


WRITES = {
    "insert": lambda store, durable: store.insert("new", vector(9), durable=durable),
    "update": lambda store, durable: store.update("a", vector(9), {"n": 9}, durable=durable),
    "upsert": lambda store, durable: store.upsert("b", vector(9), durable=durable),
    "delete": lambda store, durable: store.delete("a", durable=durable),
    "insert_many": lambda store, durable: store.insert_many(["new", "more"], rows([8, 9]), durable=durable),
    "update_many": lambda store, durable: store.update_many(["a", "b"], rows([8, 9]), durable=durable),
    "upsert_many": lambda store, durable: store.upsert_many(["a", "new"], rows([8, 9]), durable=durable),
    "delete_many": lambda store, durable: store.delete_many(["a", "b"], durable=durable),
    "commit": commit,
}


@pytest.mark.parametrize("name", WRITES)
def test_write_that_waits_for_nothing_is_seen_once_it_is_durable(
    store: Any, simulated: SimulatedDisk, name: str
) -> None:
    before = contents(store)
    steps: list[str] = []
    told: list[bool] = []
    simulated.on_step = lambda disk, step, label: steps.append(label)
    receipt = store.receipt(WRITES[name](store, None))
    receipt.add_done_callback(lambda receipt: told.append(receipt.durable and contents(store) != before))
    simulated.on_step = None
    assert steps == []
    assert not receipt.durable
    assert contents(store) == before
    simulated.run_workers()
    assert receipt.durable
    assert store.durable_lsn >= receipt.lsn
    assert told == [True]
    again = open_as_it_was(simulated.image(NOTHING_UNSYNCED), store)
    assert contents(again) == contents(store) != before
    model = mmwal.VectorStore(8)
    for id, record in zip("abc", (1, 2, 3), strict=True):
        model.insert(id, vector(record), {"n": 1} if id == "a" else None)
    WRITES[name](model, None)
    assert {id: found[:2] for id, found in contents(store).items()} == {
        id: found[:2] for id, found in contents(model).items()
    }


def open_as_it_was(disk: SimulatedDisk, store: mmwal.VectorStore) -> mmwal.VectorStore:
    assert store.wal is not None
    return mmwal.open(config=store.wal.config, disk=disk)


def test_decision_that_waits_for_nothing_is_seen_once_it_is_durable(store: Any, simulated: SimulatedDisk) -> None:
    for gid in ("yes", "no"):
        txn = store.transaction()
        txn.insert(gid, vector(9))
        txn.prepare(gid)
    receipts = [
        store.receipt(store.commit_prepared("yes", durable=None)),
        store.receipt(store.rollback_prepared("no", durable=None)),
    ]
    assert store.list_in_doubt() == []
    assert not any(receipt.durable for receipt in receipts)
    assert sorted(store.ids()) == ["a", "b", "c"]
    simulated.run_workers()
    assert all(receipt.durable for receipt in receipts)
    assert sorted(store.ids()) == ["a", "b", "c", "yes"]
    again = open_as_it_was(simulated.image(NOTHING_UNSYNCED), store)
    assert (again.list_in_doubt(), sorted(again.ids())) == ([], ["a", "b", "c", "yes"])


@pytest.mark.parametrize("how", ["wait", "wait_durable", "sync", "another write", "checkpoint"])
def test_whoever_syncs_lets_it_be_seen(store: Any, simulated: SimulatedDisk, how: str) -> None:
    lsn = store.insert("new", vector(9), durable=None)
    assert "new" not in store
    match how:
        case "wait":
            store.receipt(lsn).wait(timeout=10)
        case "wait_durable":
            store.wait_durable(lsn, timeout=10)
        case "sync":
            store.sync()
        case "another write":
            store.delete("a")
        case "checkpoint":  # of what was applied by then
            store.checkpoint()
            simulated.run_workers()
    assert store.durable_lsn >= lsn
    assert store["new"][0] == 9


def test_writers_see_what_is_not_durable_yet(store: Any, simulated: SimulatedDisk) -> None:
    store.insert("new", vector(9), durable=None)
    store.delete("a", durable=None)
    with pytest.raises(DuplicateIdError):
        store.insert("new", vector(1))
    with pytest.raises(UnknownIdError):
        store.update("a", vector(1))
    store.update("new", metadata={"n": 2}, durable=None)
    assert ("new" in store, "a" in store) == (False, True)
    store.sync()
    record = store.get("new")
    assert (record.vector[0], record.metadata, "a" in store) == (9, {"n": 2}, False)


def test_nobody_is_told_before_readers_see_it(
    store: Any, simulated: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the sync and the turn of the directory it survives a power cut, and is not to be read yet."""
    turn, between, told = mmwal.store._turn, [], []

    def look(state: Any, lsn: int, changes: Any) -> None:
        between.append((store.durable_lsn >= receipt.lsn, receipt.durable, told.copy()))
        turn(state, lsn, changes)

    receipt = store.receipt(store.insert("new", vector(9), durable=None))
    receipt.add_done_callback(lambda _: told.append("new" in store))
    monkeypatch.setattr(mmwal.store, "_turn", look)
    simulated.run_workers()
    assert between == [(True, False, [])]
    assert (receipt.durable, told) == (True, [True])


def test_who_waits_sees_what_another_is_about_to_show(store: Any, simulated: SimulatedDisk) -> None:
    lsn = store.insert("new", vector(9), durable=None)
    store._log.gate.sync(lsn)  # by somebody who has not come further yet
    assert "new" not in store
    store.wait_durable(lsn)
    assert "new" in store


def test_close_leaves_nothing_to_replay(store: Any, simulated: SimulatedDisk) -> None:
    told: list[Any] = []
    receipt = store.receipt(store.insert("new", vector(9), durable=None))
    receipt.add_done_callback(lambda receipt: told.append((receipt.durable, receipt.error)))
    store.close()
    assert told == [(True, None)]
    again = open_as_it_was(simulated.image(NOTHING_UNSYNCED), store)
    assert again.recovery_stats.clean_shutdown
    assert again.recovery_stats.applied_entries == 0
    assert sorted(again.ids()) == ["a", "b", "c", "new"]


@pytest.mark.parametrize("name", WRITES)
def test_failed_sync_is_told_and_nothing_of_it_is_seen(store: Any, simulated: SimulatedDisk, name: str) -> None:
    before = contents(store)
    told: list[Any] = []
    simulated.fail("spare.wal sync", errno=errno.EIO)
    receipt = store.receipt(WRITES[name](store, None))
    receipt.add_done_callback(lambda receipt: told.append(receipt.error))
    simulated.run_workers()
    assert [type(error) for error in told] == [SyncFailedError]
    assert not receipt.durable
    assert contents(store) == before
    for act in (receipt.wait, store.sync, lambda: WRITES[name](store, None), lambda: store.insert("x", vector(1))):
        with pytest.raises(SyncFailedError):
            act()
    assert contents(store) == before
    with pytest.raises(SyncFailedError):
        store.close()
    # After a kill it is there: it was in the log.
    again = open_as_it_was(simulated.kill(), store)
    assert contents(again) != before
    close_quietly(again)


def test_at_an_interval_nothing_is_hidden(open_store: OpenStore, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1))
    while simulated.run_workers():
        pass
    store.sync()
    receipt = store.receipt(store.insert("b", vector(2), durable=None))
    assert "b" in store
    assert not receipt.durable
    store.sync()
    assert receipt.durable


def test_store_without_a_log_has_no_receipts() -> None:
    store = mmwal.VectorStore(8)
    lsn = store.insert("a", vector(1), durable=None)
    assert "a" in store
    with pytest.raises(NoStoreError):
        store.receipt(lsn)


def test_reader_gives_no_receipt(open_store: OpenStore, root: Path, kernel: Any) -> None:
    lsn = open_store().insert("a", vector(1))
    with mmwal.open(config=config(root, kernel), read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.receipt(lsn)


def test_threads_that_wait_and_threads_that_do_not_see_their_own(open_store: OpenStore) -> None:
    store = open_store(sync_interval_ms=0, append_timeout_ms=60_000)
    threads, each = 6, 40
    seen: list[bool] = []
    done = threading.Semaphore(0)

    def write(thread: int) -> None:
        for n in range(each):
            id = f"{thread}.{n}"
            if thread % 2:
                store.insert(id, vector(n))
                assert store[id][0] == n
            else:
                receipt = store.receipt(store.insert(id, vector(n), durable=None))
                receipt.add_done_callback(lambda _, id=id: (seen.append(id in store), done.release()))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(threads)))
    for _ in range(threads // 2 * each):
        assert done.acquire(timeout=60)
    assert all(seen)
    assert len(store) == threads * each
    assert not store._latest
    assert not store._pending
