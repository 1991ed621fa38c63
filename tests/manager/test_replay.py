"""Reading the log back: order, ranges, what entries carry, constant memory."""

import itertools
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from mmwal.entry import WalEntry
from mmwal.errors import LsnUnavailableError
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import SEGMENT, fill, ids, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_entries_come_back_in_order_as_they_were_logged(open_wal: OpenWal) -> None:
    wal = open_wal()
    logged: list[Any] = [
        WalEntry.Insert("a", vector(1), {"k": 1}, lsn=wal.log_insert("a", vector(1), {"k": 1})),
        WalEntry.Update("a", vector(2), lsn=wal.log_update("a", vector(2))),
        WalEntry.Update("a", None, {"k": 2}, lsn=wal.log_update("a", metadata={"k": 2})),
        WalEntry.Delete(7, lsn=wal.log_delete(7)),
        WalEntry.Batch("upsert", ["x", 8], np.ones((2, 16), np.float32),
                       lsn=wal.log_batch(["x", 8], np.ones((2, 16)), operation="upsert")),
        WalEntry.Upsert("y", vector(3), lsn=wal.log_batch(["y"], [vector(3)], operation="upsert")),
    ]  # fmt: skip
    found = wal.read_all_entries()
    for entry, expected in zip(found, logged, strict=True):
        assert type(entry) is type(expected)
        assert entry.timestamp_ns > 0
        object.__setattr__(expected, "timestamp_ns", entry.timestamp_ns)
        assert entry == expected
    wal.close()
    assert open_wal().read_all_entries() == found


def test_entries_match_and_tell_the_time(open_wal: OpenWal) -> None:
    wal = open_wal()
    before = datetime.now(UTC)
    wal.log_insert("a", vector(1), {"k": 1})
    (entry,) = wal.replay()
    match entry:
        case WalEntry.Insert(id="a", vector=found, metadata={"k": 1}, lsn=lsn):
            assert lsn == wal.last_lsn
            assert found.shape == (16,)
        case _:
            pytest.fail(f"{entry} is not the insert")
    assert abs((entry.timestamp - before).total_seconds()) < 60
    assert entry.timestamp.tzinfo is UTC


def test_replay_from_an_lsn_gives_what_came_after_it(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, 1000)
    for i in (0, 1, 295, 296, 297, 500, 998):
        assert ids(wal, lsns[i]) == [f"id-{n}" for n in range(i + 1, 1000)]
    assert ids(wal, lsns[999]) == []
    assert ids(wal, 0) == ids(wal) == [f"id-{n}" for n in range(1000)]
    assert ids(wal, lsns[999] + 1_000_000) == []


def test_iter_entries_takes_a_range(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, 1000)
    found = [entry.lsn for entry in wal.iter_entries(lsns[280], lsns[700])]
    assert found == lsns[281:701]
    assert list(wal.iter_entries(lsns[5], lsns[5])) == []
    assert [entry.lsn for entry in wal.iter_entries(end_lsn=lsns[3])] == lsns[:4]
    assert [entry.lsn for entry in wal.iter_entries(end_lsn=1 << 60)] == lsns


def test_end_within_a_frame_leaves_that_frame_out(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, 10)
    for end in (lsns[5] + 64, lsns[5] + 1, lsns[6] - 1):
        assert [entry.lsn for entry in wal.iter_entries(end_lsn=end)] == lsns[:6]


def test_vectors_are_read_only_views_of_the_log(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 3)
    wal.log_batch(["a", "b"], np.ones((2, 16), np.float32))
    for entry in wal.replay():
        view = entry.vectors if entry.kind == "batch" else entry.vector
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert view.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_views_outlive_the_iteration_and_the_log(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 1000)
    views = [entry.vector for entry in wal.replay()]
    wal.close()
    del wal
    assert [view[0] for view in views] == list(range(1000))


def test_replay_ends_where_the_log_ended_when_it_began(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 10)
    seen = 0
    for seen, _ in enumerate(wal.replay(), 1):  # noqa: B007
        fill(wal, 1, 100)
    assert seen == 10


def test_replay_is_lazy_and_takes_constant_memory(open_wal: OpenWal) -> None:
    wal = open_wal()
    for i in range(60):
        wal.log_batch([f"{i}.{n}" for n in range(100)], np.full((100, 16), i, np.float32))
    entries = wal.replay()
    assert iter(entries) is entries
    next(entries)
    tracemalloc.start()
    try:
        for entry in entries:
            del entry
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000  # of 640 KB with the ids alone


def test_log_that_is_let_go_of_is_not_recycled_under_an_iteration(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=6 * SEGMENT)
    fill(wal, 250)
    disk.run_workers()
    entries = wal.replay()
    assert next(entries).id == "id-0"
    for start in range(250, 6000, 50):
        wal.release(fill(wal, 50, start)[-1])
        disk.run_workers()
    assert [(entry.id, entry.vector[0]) for entry in entries] == [(f"id-{i}", i) for i in range(1, 250)]


def test_iteration_that_is_overtaken_by_a_release_is_told_so(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=6 * SEGMENT)
    fill(wal, 900)
    disk.run_workers()
    entries = wal.replay()
    seen = [next(entries).id]
    wal.release(fill(wal, 1)[-1])
    disk.run_workers()
    with pytest.raises(LsnUnavailableError, match="Start from a snapshot") as caught:
        seen += (entry.id for entry in entries)
    assert seen == [f"id-{i}" for i in range(len(seen))]
    assert 200 < len(seen) < 900  # what was mapped was read
    assert caught.value.oldest_lsn == wal.oldest_lsn


def test_replay_sees_what_was_logged_while_another_thread_syncs(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=1)
    for i in range(20):
        fill(wal, 50, 50 * i)
        assert len(ids(wal)) == 50 * i + 50


def test_reading_released_log_is_refused_at_the_first_step(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    lsns = fill(wal, 1000)
    wal.release(lsns[900])
    disk.run_workers()
    with pytest.raises(LsnUnavailableError, match="Start from a snapshot"):
        next(wal.replay(lsns[10]))
    wal.close()
    again = open_wal(disk=disk)
    assert again.oldest_lsn <= lsns[900]
    assert ids(again, lsns[900]) == [f"id-{n}" for n in range(901, 1000)]
    with pytest.raises(LsnUnavailableError) as caught:
        next(again.replay(lsns[10]))
    assert caught.value.oldest_lsn == again.oldest_lsn


def test_entries_before_during_and_after_a_transaction_keep_their_order(open_wal: OpenWal) -> None:
    wal = open_wal()
    first = fill(wal, 3)
    big = wal.log_batch([f"row-{i}" for i in range(1200)], np.ones((1200, 16), np.float32))
    last = fill(wal, 3, 3)
    lsns = [entry.lsn for entry in wal.replay()]
    assert lsns == sorted(lsns)
    assert list(dict.fromkeys(lsns)) == [*first, big, *last]
    assert ids(wal, first[-1])[:1200] == [f"row-{i}" for i in range(1200)]
    assert ids(wal, big) == ["id-3", "id-4", "id-5"]
    inside = [entry.lsn for entry in itertools.islice(wal.iter_entries(first[-1], big - 64), 10)]
    assert inside == []
