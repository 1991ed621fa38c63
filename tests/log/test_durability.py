"""When an entry is durable, who syncs, how waits end, and what a failed sync means."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mmwal.errors import SyncFailedError, WalClosedError
from mmwal.format.frame import Kind
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import NOTHING_UNSYNCED, ROOM, assert_ordered, fill, frame_kinds, ids, reserved, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_at_interval_zero_every_method_returns_durable(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=0)
    for log in (
        lambda: wal.log_insert("a", vector(1)),
        lambda: wal.log_update("a", metadata={"k": 1}),
        lambda: wal.log_delete("a"),
        lambda: wal.log_batch([1, 2], np.ones((2, 16), np.float32)),
        lambda: wal.log_batch(range(2000), np.ones((2000, 16), np.float32)),
    ):
        lsn = log()
        assert wal.durable_lsn >= lsn
        assert_ordered(wal)


def test_at_interval_zero_power_loss_costs_nothing_acknowledged(open_wal: OpenWal) -> None:
    disk = SimulatedDisk(seed=1)
    wal = open_wal(disk=disk, sync_interval_ms=0)
    for i in range(700):
        wal.log_insert(f"id-{i}", vector(i))
        if i % 97 == 0:
            assert ids(open_wal(disk=disk.image(NOTHING_UNSYNCED))) == [f"id-{n}" for n in range(i + 1)]


def test_at_interval_zero_threads_share_syncs(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=0)
    threads, each = 8, 50
    together = threading.Barrier(threads)

    def insert(thread: int) -> None:
        together.wait()
        for i in range(each):
            lsn = wal.log_insert(f"{thread}.{i}", vector(i))
            assert wal.durable_lsn >= lsn

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(insert, range(threads)))
    assert 0 < wal.get_metrics().syncs < threads * each
    assert len(ids(wal)) == threads * each


def test_at_an_interval_the_background_syncs(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=5)
    for i in range(5):
        lsn = wal.log_insert(i, vector(i))
        wal.wait_durable(lsn, timeout=20)
        assert wal.durable_lsn >= lsn
    assert_ordered(wal)


def test_first_entry_after_a_rest_is_synced_at_once_whatever_the_interval(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=3_600_000)
    wal.wait_durable(wal.log_insert(1, vector(1)), timeout=20)


def test_background_stops_when_idle_after_exactly_one_mark(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=100)
    for burst in range(1, 4):
        fill(wal, 10)
        for _ in range(100):
            disk.advance(0.1)
            disk.run_workers()
        assert frame_kinds(wal).count(Kind.IDLE) == burst
        assert wal.durable_lsn == reserved(wal)
        syncs, steps = wal.get_metrics().syncs, disk.steps
        for _ in range(100):
            disk.advance(0.1)
            assert not disk.run_workers()
        assert (wal.get_metrics().syncs, disk.steps) == (syncs, steps)
    assert frame_kinds(wal)[-1] == Kind.IDLE


def test_idle_mark_follows_a_burst_at_interval_zero_too(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=0)
    fill(wal, 10)
    for _ in range(50):
        disk.advance(0.1)
        disk.run_workers()
    assert frame_kinds(wal) == [Kind.INSERT] * 10 + [Kind.IDLE]


def test_no_mark_follows_when_nothing_was_logged(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=10)
    for _ in range(50):
        disk.advance(0.1)
        disk.run_workers()
    assert wal.last_lsn == reserved(wal) == wal.oldest_lsn
    wal.close()
    again = open_wal(disk=disk, sync_interval_ms=10)
    for _ in range(50):
        disk.advance(0.1)
        disk.run_workers()
    assert again.last_lsn == wal.last_lsn


def test_a_full_log_without_room_for_a_mark_falls_asleep(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=10, max_wal_size=128 << 10, append_timeout_ms=0, dimension=None)
    for _ in range(2):
        wal.log_insert("x", np.ones((ROOM - 192) // 4, np.float32))
    for _ in range(200):
        disk.advance(0.1)
        disk.run_workers()
    disk.advance(100)
    assert not disk.run_workers()


def test_age_of_what_is_not_durable_stays_below_the_interval(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=100)
    logged: list[tuple[int, int]] = []
    for i in range(400):
        logged.append((wal.log_insert(i, vector(i)), disk.monotonic_ns()))
        disk.advance(0.007)
        disk.run_workers()
        oldest_ns = min((at for lsn, at in logged if lsn > wal.durable_lsn), default=disk.monotonic_ns())
        assert disk.monotonic_ns() - oldest_ns <= 110_000_000


def test_durable_at_an_interval_returns_durable(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.wait_durable(wal.log_insert("wakes the background", vector(0)), timeout=20)
    for lsn in (
        wal.log_insert("a", vector(1), durable=True),
        wal.log_update("a", vector(1), durable=True),
        wal.log_delete("a", durable=True),
        wal.log_batch([1], [vector(1)], durable=True),
    ):
        assert wal.durable_lsn >= lsn
    assert_ordered(wal)


def test_sync_covers_all_that_was_logged(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsn = fill(wal, 1500)[-1]
    assert wal.sync() >= lsn
    assert wal.durable_lsn >= lsn
    assert wal.sync() >= lsn  # nothing left to do


def test_wait_durable_ends_with_timeout_error(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 1)
    disk.run_workers()  # the background syncs the first and sleeps for an hour
    lsn = fill(wal, 1)[0]
    with pytest.raises(TimeoutError, match=f"LSN {lsn} was not durable after 0.5 s"):
        wal.wait_durable(lsn, timeout=0.5)
    with pytest.raises(TimeoutError):
        wal.wait_durable(lsn, timeout=0)
    assert wal.durable_lsn < lsn
    wal.wait_durable(lsn)
    assert wal.durable_lsn >= lsn


def test_wait_durable_ends_with_timeout_error_on_the_real_disk(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.wait_durable(fill(wal, 1)[0], timeout=20)
    lsn = fill(wal, 1)[0]
    with pytest.raises(TimeoutError):
        wal.wait_durable(lsn, timeout=0.01)
    wal.sync()
    wal.wait_durable(lsn, timeout=0)


@pytest.mark.parametrize("interval", [0, 1, 3_600_000])
def test_waiting_for_an_lsn_that_does_not_exist_is_refused(open_wal: OpenWal, interval: int) -> None:
    wal = open_wal(sync_interval_ms=interval)
    lsn = fill(wal, 1)[0]
    wal.sync()
    with pytest.raises(ValueError, match="does not exist yet"):
        wal.wait_durable(lsn + 1_000_000, timeout=1)


def test_waiter_is_woken_by_close(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.wait_durable(fill(wal, 1)[0], timeout=20)
    lsn = fill(wal, 1)[0]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wal.wait_durable, lsn, 60)
        wal.close()
        assert waiting.exception(timeout=20) is None or isinstance(waiting.exception(), WalClosedError)
    assert wal.durable_lsn >= lsn


# -- a sync that fails


def failing(open_wal: OpenWal, what: str = "sync", **fields: Any) -> tuple[Any, SimulatedDisk, int]:
    disk = SimulatedDisk(seed=2)
    wal = open_wal(disk=disk, **fields)
    fill(wal, 5)
    disk.run_workers()
    safe = wal.sync()
    disk.fail(what, 1, errno.EIO)
    return wal, disk, safe


def test_failed_sync_raises_in_the_caller_and_in_every_later_write(open_wal: OpenWal) -> None:
    wal, _disk, safe = failing(open_wal, sync_interval_ms=0)
    with pytest.raises(SyncFailedError) as caught:
        wal.log_insert("lost?", vector(9))
    assert caught.value.durable_lsn == safe == wal.durable_lsn
    assert caught.value.errno == errno.EIO
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    before = reserved(wal)
    for write in (
        lambda: wal.log_insert("b", vector(1)),
        lambda: wal.log_insert("b", [1.0] * 16),
        lambda: wal.log_update("b", vector(1)),
        lambda: wal.log_delete("b"),
        lambda: wal.log_batch(["b", "c"], np.ones((2, 16), np.float32)),
        wal.sync,
        lambda: wal.wait_durable(before),
        wal.close,
    ):
        with pytest.raises(SyncFailedError) as again:
            write()
        assert again.value.__cause__ is cause
        assert again.value.durable_lsn == safe
    assert reserved(wal) == before
    wal.close()  # the second time there is nothing to say


def test_failed_background_sync_reaches_the_next_write_and_close(open_wal: OpenWal) -> None:
    wal, disk, safe = failing(open_wal, sync_interval_ms=100)
    wal.log_insert("a", vector(1))
    disk.advance(1)
    disk.run_workers()
    with pytest.raises(SyncFailedError) as caught:
        wal.log_insert("b", vector(1))
    assert caught.value.durable_lsn == safe
    with pytest.raises(SyncFailedError):
        wal.close()


def test_reading_goes_on_after_a_failed_sync(open_wal: OpenWal) -> None:
    wal, _disk, safe = failing(open_wal, sync_interval_ms=0)
    with pytest.raises(SyncFailedError):
        wal.log_insert("lost?", vector(9))
    assert ids(wal)[:5] == [f"id-{i}" for i in range(5)]
    wal.wait_durable(safe)
    wal.get_metrics()


@pytest.mark.parametrize("evicted", [False, True])
def test_reopening_after_a_failed_sync_recovers_and_finds_no_clean_mark(open_wal: OpenWal, evicted: bool) -> None:
    wal, disk, safe = failing(open_wal, sync_interval_ms=0)
    with pytest.raises(SyncFailedError):
        wal.log_insert("lost?", vector(9))
    with pytest.raises(SyncFailedError):
        wal.close()
    later = disk.kill(evicted=evicted)
    again = open_wal(disk=later)
    assert not again.recovery_stats.clean_shutdown
    assert ids(again)[:5] == [f"id-{i}" for i in range(5)]
    assert set(ids(again)[5:]) <= {"lost?"}
    assert again.last_lsn >= safe
    kept = ids(again)
    again.log_insert("on", vector(1), durable=True)
    assert ids(open_wal(disk=later.image(NOTHING_UNSYNCED))) == [*kept, "on"]


def test_the_directory_is_free_after_a_close_that_raised(open_wal: OpenWal) -> None:
    wal, disk, _ = failing(open_wal, sync_interval_ms=0)
    with pytest.raises(SyncFailedError):
        wal.log_insert("lost?", vector(9))
    with pytest.raises(SyncFailedError):
        wal.close()
    assert ids(open_wal(disk=disk))[:1] == ["id-0"]


def test_failed_write_of_the_log_s_own_files_is_final_too(open_wal: OpenWal) -> None:
    wal, disk, _ = failing(open_wal, "control sync")
    wal.release(fill(wal, 1000)[-1])
    disk.run_workers()
    with pytest.raises(SyncFailedError) as caught:
        wal.log_insert("a", vector(1))
    assert caught.value.errno == errno.EIO
    with pytest.raises(SyncFailedError):
        wal.log_insert("b", vector(1))


def test_sync_that_fails_in_close_is_raised_and_leaves_no_clean_mark(open_wal: OpenWal) -> None:
    wal, disk, safe = failing(open_wal)
    fill(wal, 3, 5)
    with pytest.raises(SyncFailedError) as caught:
        wal.close()
    assert caught.value.durable_lsn == safe
    again = open_wal(disk=disk)
    assert not again.recovery_stats.clean_shutdown
    assert ids(again)[:5] == [f"id-{i}" for i in range(5)]
