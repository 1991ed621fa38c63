"""Automatic checkpoints and the budget of the log, seen from the store."""

import threading
from typing import Any

import pytest

import mmwal
from mmwal.errors import CheckpointFailedError, WalFullError
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import SEGMENT, contents, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

WIDE = 64  # values: some 300 bytes a row, 180 rows a segment


def settle(disk: SimulatedDisk) -> None:
    """Lets the background finish what is due now."""
    while disk.run_workers():
        pass


@pytest.mark.parametrize("sync_interval_ms", [0, 1000])
def test_checkpoint_comes_once_per_crossing(open_store: Any, simulated: SimulatedDisk, sync_interval_ms: int) -> None:
    store = open_store(disk=simulated, checkpoint_interval=10, sync_interval_ms=sync_interval_ms)
    settle(simulated)
    taken = []
    for n in range(35):
        store.insert(n, vector(n))
        settle(simulated)
        taken.append(store.checkpoints_taken)
    assert taken == [n // 10 for n in range(1, 36)]


def test_batch_counts_its_rows_and_deletes_count(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, checkpoint_interval=10)
    settle(simulated)
    writes = [
        lambda: store.insert_many(range(5), rows(range(5))),
        lambda: store.insert_many(range(5, 9), rows(range(4))),
        lambda: store.delete(0),  # the tenth
        lambda: store.delete_many([1, 2, 3, 4, 5]),
        lambda: store.update(6, vector(1)),
        lambda: store.upsert_many([6, 7, 8], rows([1, 2, 3])),
        lambda: store.update(8, metadata={}),  # the twentieth
        lambda: store.insert_many(range(100, 135), rows(range(35))),  # crosses thrice, and asks once
    ]
    taken = []
    for write in writes:
        write()
        settle(simulated)
        taken.append(store.checkpoints_taken)
    assert taken == [0, 0, 1, 1, 1, 1, 2, 3]


def test_refused_write_counts_nothing(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, checkpoint_interval=2)
    settle(simulated)
    store.insert("a", vector(1))
    for _ in range(5):
        with pytest.raises(mmwal.DuplicateIdError):
            store.insert("a", vector(1))
    settle(simulated)
    assert store.checkpoints_taken == 0


def test_no_interval_means_by_hand_only(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, checkpoint_interval=None)
    store.insert_many(range(5000), rows(range(5000)))
    settle(simulated)
    assert store.checkpoints_taken == 0
    info = store.checkpoint()
    assert (info.live_rows, info.rows_changed, store.checkpoints_taken) == (5000, 5000, 1)


def test_automatic_checkpoint_runs_in_another_thread_and_writes_go_on_meanwhile(open_store: Any) -> None:
    store = open_store(checkpoint_interval=10)
    entered, go = threading.Event(), threading.Event()
    checkpointer = store._checkpointer
    wait_durable = checkpointer._wait_durable
    threads = []

    def held(lsn: int) -> None:
        threads.append(threading.current_thread())
        entered.set()
        assert go.wait(60)
        wait_durable(lsn)

    checkpointer._wait_durable = held
    for n in range(10):
        store.insert(n, vector(n))
    assert entered.wait(60)
    store.insert_many(range(10, 500), rows(range(10, 500)))
    store.delete(0)
    assert store.search(vector(1), k=1)[0].id == 499
    assert store.checkpoints_taken == 0
    go.set()
    store.checkpoint()
    assert threads[0] is not threading.main_thread()
    assert store.checkpoints_taken >= 1


def test_checkpoint_right_after_opening_is_not_lost(open_store: Any, simulated: SimulatedDisk) -> None:
    """The worker's first step must not swallow a request that came before it."""
    store = open_store(disk=simulated, checkpoint_interval=1)
    store.insert("a", vector(1))
    settle(simulated)
    assert store.checkpoints_taken == 1


def test_failing_automatic_checkpoint_is_reported_and_costs_nothing(
    open_store: Any, simulated: SimulatedDisk, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(disk=simulated, checkpoint_interval=10)
    settle(simulated)
    simulated.fail("image sync", forever=True)
    store.insert_many(range(25), rows(range(25)))
    settle(simulated)
    assert "an automatic checkpoint failed" in caplog.text
    with pytest.raises(CheckpointFailedError):
        store.checkpoint()
    store.insert("more", vector(1))
    before = contents(store)
    assert contents(open_store(disk=simulated.kill())) == before
    with pytest.raises(CheckpointFailedError):
        store.close()


def test_log_is_trimmed_against_the_older_of_the_two_slots(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    redo = [store.checkpoint().redo_lsn]
    for round in range(4):
        store.upsert_many(range(600), rows(range(round, round + 600)))
        info = store.checkpoint()
        assert info.redo_lsn == info.lsn > redo[-1]
        assert store.wal.oldest_lsn == redo[-1]
        redo.append(info.redo_lsn)


@pytest.mark.parametrize("segments", [2, 3, 6])
@pytest.mark.parametrize("sync_interval_ms", [0, 1000])
def test_small_budget_is_enough_because_checkpoints_make_room(
    open_store: Any, disk: Any, segments: int, sync_interval_ms: int
) -> None:
    store = open_store(
        disk=disk,
        dimension=WIDE,
        max_wal_size=segments * SEGMENT,
        checkpoint_interval=None,
        sync_interval_ms=sync_interval_ms,
    )
    for n in range(1400):
        store.upsert(n % 40, vector(n, WIDE))
    assert store.wal.get_metrics().current_size_mb * 1e6 <= segments * SEGMENT
    assert store.checkpoints_taken > 0
    assert {id: store[id][0] for id in store} == {n % 40: n for n in range(1360, 1400)}


def test_idle_store_with_the_least_budget_takes_no_more_checkpoints(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, dimension=WIDE, max_wal_size=2 * SEGMENT, sync_interval_ms=1000)
    for n in range(500):
        store.upsert(n % 40, vector(n, WIDE))
    for _ in range(20):
        simulated.advance(2)
        simulated.run_workers()
    taken = store.checkpoints_taken
    for _ in range(50):
        simulated.advance(2)
        simulated.run_workers()
    assert store.checkpoints_taken == taken


@pytest.mark.parametrize("row_count", [40, 170, 400])
def test_batches_pass_through_a_small_budget(open_store: Any, disk: Any, row_count: int) -> None:
    """170 rows hardly fit into a segment, 400 are a transaction of three segments."""
    store = open_store(disk=disk, dimension=WIDE, max_wal_size=5 * SEGMENT, checkpoint_interval=None)
    ids = list(range(row_count))
    for round in range(3200 // row_count):
        lsn = store.upsert_many(ids, rows(range(round, round + row_count), WIDE))
    assert [store[id][0] for id in ids] == [round + id for id in ids]
    assert {record.lsn for record in store.get_many(ids)} == {lsn}
    store.delete_many(ids)
    assert len(store) == 0


def test_batch_that_never_fits_into_the_budget_is_refused_before_anything_is_logged(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk, dimension=WIDE, max_wal_size=3 * SEGMENT)
    store.insert("a", vector(1, WIDE))
    store.sync()
    before, end = contents(store), reserved(store)
    with pytest.raises(WalFullError, match="Split it"):
        store.insert_many(range(900), rows(range(900), WIDE))
    assert (contents(store), reserved(store)) == (before, end)
    store.insert_many(range(300), rows(range(300), WIDE))


@pytest.mark.parametrize("write", ["row", "batch", "large batch"])
def test_full_budget_is_an_error_where_no_checkpoint_succeeds(
    open_store: Any, simulated: SimulatedDisk, write: str
) -> None:
    store = open_store(
        disk=simulated, dimension=WIDE, max_wal_size=4 * SEGMENT, checkpoint_interval=None, append_timeout_ms=500
    )
    simulated.fail("image sync", forever=True)
    returned: list[int] = []

    def write_until_it_raises() -> None:
        count = {"row": 1, "batch": 100, "large batch": 300}[write]
        for start in range(0, 10_000, count):
            if write == "row":
                store.insert(start, vector(start, WIDE))
            else:
                store.insert_many(range(start, start + count), rows(range(count), WIDE))
            returned.extend(range(start, start + count))

    with pytest.raises(WalFullError):
        write_until_it_raises()
    before, end = contents(store), reserved(store)
    assert list(before) == returned and len(returned) > 100
    for refused in (
        lambda: store.insert("x", vector(1, WIDE), {"m": b"x" * 50_000}),
        lambda: store.insert_many(range(-300, 0), rows(range(300), WIDE)),
    ):
        with pytest.raises(WalFullError):
            refused()
        assert (contents(store), reserved(store)) == (before, end)
    assert store.search(vector(1, WIDE), k=1)
    found = open_store(disk=simulated.kill(), dimension=WIDE, max_wal_size=4 * SEGMENT)
    assert contents(found) == before
    found.insert("x", vector(1, WIDE), {"m": b"x" * 50_000})


def test_checkpoints_asked_for_at_one_time_are_shared(open_store: Any) -> None:
    store = open_store()
    store.insert_many(range(100), rows(range(100)))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(store.checkpoint())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert store.checkpoints_taken == len({info.sequence for info in found})
    assert all(info.live_rows == 100 for info in found)


def test_close_waits_for_a_checkpoint_of_another_thread(open_store: Any, root: Any) -> None:
    store = open_store()
    store.insert("a", vector(1))
    checkpointer = store._checkpointer
    entered, go = threading.Event(), threading.Event()
    wait_durable = checkpointer._wait_durable

    def held(lsn: int) -> None:
        entered.set()
        assert go.wait(60)
        wait_durable(lsn)

    checkpointer._wait_durable = held
    taking = threading.Thread(target=store.checkpoint)
    taking.start()
    assert entered.wait(60)
    closing = threading.Thread(target=store.close)
    closing.start()
    with pytest.raises(mmwal.WalLockedError):
        open_store()
    go.set()
    taking.join(60)
    closing.join(60)
    again = open_store()
    assert again.recovery_stats.clean_shutdown and again.ids() == ["a"]
