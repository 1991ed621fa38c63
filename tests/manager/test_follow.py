"""`iter_entries(follow=True)`: what is there, then what comes, to a reader of its own or in the writer's process."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import (
    ForkedProcessError,
    LsnUnavailableError,
    SyncFailedError,
    WalClosedError,
    WalConfigError,
)
from mmwal.format.frame import COMMIT, Kind, pack_ids
from mmwal.log.control import open_control
from mmwal.log.reader import Extent, read_entries, read_extents
from mmwal.manager import WalManager
from mmwal.recovery.follow import POLL_INTERVAL_MS, Walk
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import SEGMENT, fill, reserved, segment_path, segments, vector
from tests.store.stores import crashed_copy, digests

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
PATIENT = 60.0  # seconds; a test that needs them has failed

Follow = Callable[..., Iterator[Any]]


@pytest.fixture(params=["same process", "reader"])
def follow(request: pytest.FixtureRequest, wal_dir: Path, kernel: Any) -> Iterator[Follow]:
    """Follows the log of a writer: through it, and through a reader of its own."""
    opened: list[WalManager] = []

    def start(wal: WalManager, *args: Any, timeout: float | None = PATIENT, **options: Any) -> Iterator[Any]:
        source: WalManager = wal
        if request.param == "reader":
            source = WalManager.new_from_path(wal_dir, kernel=kernel.NAME)
            opened.append(source)
        return source.iter_entries(*args, follow=True, timeout=timeout, **options)

    yield start
    for reader in opened:
        reader.close()


def take(entries: Iterator[Any], count: int) -> list[Any]:
    """The ids of the next so many entries."""
    return [next(entries).id for _ in range(count)]


def names(first: int, count: int) -> list[str]:
    return [f"id-{number}" for number in range(first, first + count)]


def is_right(entry: Any) -> bool:
    """Whether an entry of `fill` carries the vector that goes with its id."""
    return bool((entry.vector == int(entry.id.removeprefix("id-"))).all())


def mappings(wal_dir: Path) -> int:
    """How many files of a log this process has mapped to read them; the writer's are writable."""
    gc.collect()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum(f"{wal_dir}/" in line and " r--s " in line for line in maps)


def append_member(wal: WalManager, txn: int, id: str, number: int) -> int:
    return wal._log.append_frame(Kind.INSERT, 1, 1, txn, vector(number).tobytes(), pack_ids([id]))


def commit(wal: WalManager, txn: int, first_lsn: int, rows: int) -> int:
    content = COMMIT.pack(first_lsn=first_lsn, rows=rows, members_crc=0, reserved=0)
    return wal._log.append_frame(Kind.COMMIT, 0, rows, txn, content)


# -- what comes


def test_follower_gets_what_is_there_and_then_what_comes(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    fill(wal, 5)
    entries = follow(wal)
    assert take(entries, 5) == names(0, 5)
    for number in range(5, 2000, 15):
        lsns = fill(wal, 15, number)
        got = [next(entries) for _ in range(15)]
        assert [entry.id for entry in got] == names(number, 15)
        assert [entry.lsn for entry in got] == lsns
        assert all(map(is_right, got))
    assert wal.last_lsn > 5 * SEGMENT
    wal.log_batch(["x", "y"], np.ones((2, 16), np.float32))
    wal.log_delete("x")
    assert [next(entries).kind, next(entries).kind] == ["batch", "delete"]
    assert list(follow(wal, lsns[-1], timeout=0))[-1].id == "x"


def test_follower_goes_on_across_segments_that_are_recycled(open_wal: OpenWal, follow: Follow, wal_dir: Path) -> None:
    wal = open_wal(max_wal_size=6 * SEGMENT)
    entries = follow(wal)
    for number in range(0, 6000, 100):
        lsn = fill(wal, 100, number)[-1]
        got = [next(entries) for _ in range(100)]
        assert [entry.id for entry in got] == names(number, 100)
        assert all(map(is_right, got))
        wal.release(lsn)
    assert not segment_path(wal_dir, 0).exists()
    assert reserved(wal) > 20 * SEGMENT


def test_entries_from_an_lsn_on_and_up_to_another(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    lsns = fill(wal, 700)
    assert take(follow(wal, lsns[299]), 400) == names(300, 400)
    assert [entry.id for entry in follow(wal, lsns[299], lsns[309])] == names(300, 10)
    assert list(follow(wal, lsns[299], lsns[299])) == []
    ending = follow(wal, lsns[-1], lsns[-1] + 3 * 192)
    fill(wal, 10, 700)
    assert [entry.id for entry in ending] == names(700, 3)
    between = follow(wal, lsns[-1], lsns[-1] + 3 * 192 - 64)  # where no entry ends
    assert [entry.id for entry in between] == names(700, 2)
    assert take(follow(wal, wal.last_lsn, timeout=0), 0) == []


def test_members_of_a_transaction_come_when_it_commits(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    entries = follow(wal)
    txn = wal._log.new_transaction()
    wal._log.keeper.transactions[txn] = (wal.last_lsn, 0)
    first_lsn = append_member(wal, txn, "m1", 1) - 192
    lsns = fill(wal, 400)
    assert take(entries, 400) == names(0, 400)
    append_member(wal, txn, "m2", 2)
    late = follow(wal, lsns[350])  # begins in a segment behind the first member
    assert take(late, 49) == names(351, 49)
    lsn = commit(wal, txn, first_lsn, 2)
    fill(wal, 1, 400)
    for reading in (entries, late):
        got = [next(reading) for _ in range(4)]
        assert [entry.kind for entry in got] == ["insert", "insert", "commit", "insert"]
        assert [entry.id for entry in got if entry.kind == "insert"] == ["m1", "m2", "id-400"]
        assert {entry.lsn for entry in got[:3]} == {lsn}


def test_batch_larger_than_a_segment_comes_whole(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    entries = follow(wal)
    for part in range(3):
        ids = [f"{part}.{number}" for number in range(3000)]
        lsn = wal.log_batch(ids, np.full((3000, 16), part, np.float32))
        found: list[Any] = []
        for entry in entries:
            assert entry.lsn == lsn
            if entry.kind == "commit":
                break
            assert (entry.vectors == part).all()
            found += entry.ids
        assert found == ids


def test_what_a_writer_left_open_is_let_go_of_once_another_has_come(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal()
    append_member(wal, wal._log.new_transaction(), "never committed", 1)
    fill(wal, 10)
    wal.close()
    wal = open_wal()
    first_lsn = append_member(wal, txn := wal._log.new_transaction(), "m", 2) - 192
    commit(wal, txn, first_lsn, 1)
    log = wal._log
    seen: list[weakref.ref[Extent]] = []

    def extents(start_lsn: int, end_lsn: int) -> Iterator[Extent]:
        for extent in read_extents(wal._disk, log.kernel, log.wal_dir, log.identity, start_lsn, end_lsn):
            for at in range(len(extent.frames)):
                part = Extent(extent.path, extent.base_lsn, extent.view, extent.frames[at : at + 1])
                seen.append(weakref.ref(part))
                yield part
                del part

    entries = read_entries(extents, log.identity, wal.oldest_lsn, None, wal.last_lsn)
    assert [next(entries).kind for _ in range(12)] == ["insert"] * 11 + ["commit"]
    assert sum(part() is not None for part in seen) <= 2


# -- writers come and go


def test_reader_goes_on_when_the_writer_closes_and_another_opens(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    with WalManager.new_from_path(wal_dir, kernel=kernel.NAME) as log:
        entries = log.iter_entries(follow=True, timeout=PATIENT)
        for number in range(0, 1500, 75):
            fill(wal, 75, number)
            assert take(entries, 40) == names(number, 40)
            wal.close()
            wal = open_wal()
            assert take(entries, 35) == names(number + 40, 35)


def test_reader_goes_on_behind_what_recovery_cut(tmp_path: Path, open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    """The torn entry, and all behind it, were never the log's."""
    wal = open_wal()
    lsns = fill(wal, 400)
    killed = crashed_copy(wal_dir, tmp_path / "killed")
    with segment_path(killed, 1).open("r+b") as file:
        file.seek(lsns[349] - SEGMENT)
        file.write(bytes(8))
    before = digests(killed)
    with WalManager.new_from_path(killed, kernel=kernel.NAME) as log:
        entries = log.iter_entries(follow=True, timeout=PATIENT)
        assert take(entries, 350) == names(0, 350)
        assert list(log.iter_entries(lsns[349], follow=True, timeout=0)) == []
        assert digests(killed) == before
        again = open_wal(path=killed)
        for number in range(1000, 2000, 100):
            fill(again, 100, number)
            assert take(entries, 100) == names(number, 100)
        found = [entry.id for entry in log.iter_entries(follow=True, timeout=0)]
        assert found == [entry.id for entry in again.iter_entries()] == names(0, 350) + names(1000, 1000)


# -- the end of it


def test_follower_ends_when_nothing_came_for_the_time_it_was_given(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    fill(wal, 3)
    began = time.monotonic()
    assert [entry.id for entry in follow(wal, timeout=0.2, poll_interval_ms=1)] == names(0, 3)
    assert 0.2 <= time.monotonic() - began < 20
    assert [entry.id for entry in follow(wal, timeout=0)] == names(0, 3)


def test_time_that_the_caller_takes_for_an_entry_is_not_counted(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal()
    fill(wal, 2)
    entries = follow(wal, timeout=0.5)
    assert take(entries, 2) == names(0, 2)
    began = time.monotonic()
    while time.monotonic() - began < 0.6:
        pass
    thread = threading.Thread(target=fill, args=(wal, 1, 2))
    thread.start()
    assert take(entries, 1) == names(2, 1)
    thread.join()


def test_reader_closed_from_another_thread_ends_its_followers(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, 3)
    log = WalManager.new_from_path(wal_dir, kernel=kernel.NAME)
    arrived = threading.Barrier(3)

    def ids() -> list[Any]:
        entries = log.iter_entries(follow=True, poll_interval_ms=3_600_000)
        first = take(entries, 3)
        arrived.wait()
        return first + [entry.id for entry in entries]

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ids) for _ in range(2)]
        arrived.wait()
        while not all(task.done() for task in running):  # one may not have begun to wait when it is told
            log.close()
            with log._changed:
                log._changed.notify_all()
        assert [task.result() for task in running] == [names(0, 3)] * 2
    with pytest.raises(WalClosedError):
        log.iter_entries(follow=True)


@pytest.mark.parametrize("durable_only", [False, True])
def test_close_of_the_writer_ends_a_follower_behind_the_last_entry(open_wal: OpenWal, durable_only: bool) -> None:
    for _ in range(5):
        wal = open_wal()
        start = wal.last_lsn
        with ThreadPoolExecutor(1) as pool:
            entries = wal.iter_entries(follow=True, durable_only=durable_only)
            running = pool.submit(lambda entries=entries: [entry.lsn for entry in entries])
            lsns = fill(wal, 3000)
            wal.close()
            assert [lsn for lsn in running.result(PATIENT) if lsn > start] == lsns


def test_failed_sync_is_raised_to_a_follower_behind_what_is_there(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 3)
    entries = wal.iter_entries(follow=True)
    assert take(entries, 3) == names(0, 3)
    wal._log.poison(OSError(5, "the disk is gone"))
    with pytest.raises(SyncFailedError, match="the disk is gone"):
        next(entries)


def test_follower_is_dead_in_a_forked_child(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, 3)
    log: Any = WalManager.new_from_path(wal_dir, kernel=kernel.NAME)
    both = log.iter_entries(follow=True), wal.iter_entries(follow=True)
    for entries in both:
        assert take(entries, 3) == names(0, 3)
    log._end_in_child()
    wal._log._forked()
    for entries in both:
        with pytest.raises(ForkedProcessError):
            next(entries)


def test_arguments_that_make_no_sense_are_refused(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, 3)
    for field, value in (("poll_interval_ms", 0), ("poll_interval_ms", float("nan")), ("timeout", -1)):
        with pytest.raises(WalConfigError, match=field):
            wal.iter_entries(follow=True, **{field: value})
    with (
        WalManager.new_from_path(segment_path(wal_dir, 0), kernel=kernel.NAME) as log,
        pytest.raises(ValueError, match="open its directory"),
    ):
        log.iter_entries(follow=True)


# -- what is durable


@pytest.mark.parametrize("through", ["same process", "reader"])
def test_only_what_is_durable_comes_when_asked_for(open_wal: OpenWal, kernel: Any, through: str) -> None:
    disk = SimulatedDisk()  # on which nothing is synced in the background
    wal = open_wal(disk=disk)
    fill(wal, 200)
    source = wal if through == "same process" else WalManager.new_from_path("/wal", kernel=kernel.NAME, disk=disk)
    assert list(source.iter_entries(follow=True, durable_only=True, timeout=0)) == []
    assert list(source.iter_entries(durable_only=True)) == []
    entries = source.iter_entries(follow=True, durable_only=True)
    wal.sync()
    fill(wal, 1, 200)  # it records that what came before is durable, and is not itself
    assert take(entries, 200) == names(0, 200)
    assert [entry.id for entry in source.iter_entries(follow=True, durable_only=True, timeout=0)] == names(0, 200)
    assert len(list(wal.iter_entries(durable_only=True))) == 200
    wal.sync()
    fill(wal, 1, 201)
    assert take(entries, 1) == names(200, 1)
    assert list(source.iter_entries(wal.last_lsn - 192, follow=True, durable_only=True, timeout=0)) == []


def test_last_entry_of_a_burst_comes_once_it_is_durable(open_wal: OpenWal, follow: Follow) -> None:
    wal = open_wal(sync_interval_ms=1)
    entries = follow(wal, durable_only=True)
    for number in range(0, 50, 5):
        fill(wal, 5, number)
        assert take(entries, 5) == names(number, 5)
        assert wal.durable_lsn >= wal.last_lsn - 64


def test_reader_shows_of_what_was_there_only_what_is_durable(open_wal: OpenWal, kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 5)
    wal.sync()
    fill(wal, 5, 5)
    with WalManager.new_from_path("/wal", kernel=kernel.NAME, disk=disk) as log:
        assert [entry.id for entry in log.iter_entries(durable_only=True)] == names(0, 5)
        assert len(log.read_all_entries()) == 10


# -- nothing is skipped


def test_follower_that_is_too_slow_is_told_where_the_log_begins(
    open_wal: OpenWal, follow: Follow, wal_dir: Path
) -> None:
    wal = open_wal(max_wal_size=6 * SEGMENT)
    fill(wal, 10)
    entries = follow(wal)
    seen = take(entries, 1)
    for number in range(10, 6000, 100):
        wal.release(fill(wal, 100, number)[-1])
    while len(segments(wal_dir)) > 5:
        wal._log.wake_keeper()
    with pytest.raises(LsnUnavailableError, match="Start from a snapshot") as caught:
        seen += (entry.id for entry in entries if is_right(entry))
    assert seen == names(0, len(seen))
    control = open_control(wal._disk, str(wal_dir))
    assert control is not None
    assert caught.value.lsn < caught.value.oldest_lsn <= control.released_lsn  # the keeper goes on meanwhile


def test_lsn_at_which_no_entry_ends_is_refused(open_wal: OpenWal, follow: Follow) -> None:
    """It was read from a log that went another way: a power cut took it back, and others came in its place."""
    wal = open_wal()
    lsns = fill(wal, 400)
    for lsn in (lsns[5] + 64, lsns[350] - 64, lsns[-1] + 64, lsns[-1] + SEGMENT):
        with pytest.raises(LsnUnavailableError, match=f"no entry ends at LSN {lsn}") as caught:
            next(follow(wal, lsn))
        assert caught.value.end_lsn is not None


@pytest.mark.parametrize("through", ["same process", "reader"])
def test_log_that_is_let_go_of_is_not_recycled_under_a_follower(open_wal: OpenWal, kernel: Any, through: str) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=6 * SEGMENT)
    fill(wal, 250)
    disk.run_workers()
    source = wal if through == "same process" else WalManager.new_from_path("/wal", kernel=kernel.NAME, disk=disk)
    entries = source.iter_entries(follow=True, timeout=0)
    assert take(entries, 1) == names(0, 1)
    for number in range(250, 6000, 50):
        wal.release(fill(wal, 50, number)[-1])
        disk.run_workers()
    seen = []
    with pytest.raises(LsnUnavailableError):
        seen += ((entry.id, is_right(entry)) for entry in entries)
    assert [id for id, _ in seen] == names(1, len(seen))
    assert len(seen) >= 249
    assert all(right for _, right in seen)
    entries.close()  # type: ignore[attr-defined]
    source.close()
    assert not disk.has_readers("/wal/control")


def test_reader_that_is_closed_shows_nothing_more(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, 250)
    log = WalManager.new_from_path(wal_dir, kernel=kernel.NAME)
    entries = log.iter_entries(follow=True)
    assert take(entries, 3) == names(0, 3)
    log.close()
    assert list(entries) == []


def test_fast_writer_never_shows_a_follower_what_is_not_the_log(open_wal: OpenWal, follow: Follow) -> None:
    """It lets go at once of all that it wrote: each pass sees entries without a gap, or is told that it is too slow."""
    wal = open_wal(max_wal_size=5 * SEGMENT, sync_interval_ms=1)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            wal.release(fill(wal, 20, number)[-1])
            number += 20

    writer = threading.Thread(target=write)
    writer.start()
    seen = passes = 0
    try:
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            passes += 1
            expected = None
            try:
                for entry in follow(wal):
                    assert is_right(entry)
                    number = int(entry.id.removeprefix("id-"))
                    assert expected in (None, number)
                    expected = number + 1
                    seen += 1
                    if time.monotonic() > deadline:
                        break
            except LsnUnavailableError:
                continue
    finally:
        stop.set()
        writer.join()
    assert seen > 50
    assert passes


# -- what it costs


def test_followed_log_takes_constant_memory_and_vectors_stay(open_wal: OpenWal, follow: Follow, wal_dir: Path) -> None:
    wal = open_wal(max_wal_size=6 * SEGMENT)
    entries = follow(wal)
    fill(wal, 1)
    next(entries)
    few = mappings(wal_dir)
    vectors: dict[str, Any] = {}
    number = 1
    tracemalloc.start()
    try:
        for _ in range(60):
            lsn = fill(wal, 100, number)[-1]
            for _ in range(100):
                entry = next(entries)
                assert not entry.vector.flags.owndata and not entry.vector.flags.writeable
            wal.release(lsn)
            number += 100
            if number == 3001:
                vectors[entry.id] = entry.vector
            if number % 1000 == 1:
                assert mappings(wal_dir) <= few + 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 600_000  # 370,000 are room for headers
    while segment_path(wal_dir, 10).exists():
        wal._log.wake_keeper()
    assert (vectors["id-3000"] == 3000).all()  # its segment is gone


def test_reading_takes_constant_memory_and_copies_no_vector(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal(max_wal_size=1 << 30)
    rows = 100
    for number in range(200):
        wal.log_batch(range(rows), np.full((rows, 16), number, np.float32))
    few = mappings(wal_dir)
    tracemalloc.start()
    try:
        for number, entry in enumerate(wal.iter_entries()):
            assert not entry.vectors.flags.owndata and not entry.vectors.flags.writeable
            assert (entry.vectors[:, 0] == number).all()
            if number % 20 == 0:
                assert mappings(wal_dir) <= few + 2
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert wal.last_lsn > 20 * SEGMENT
    assert peak < 300_000


def test_idle_follower_looks_once_an_interval_and_asks_the_directory_once_a_second(
    open_wal: OpenWal, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that costs: at the interval of 50 ms, well under a hundredth of a core."""
    wal = open_wal()
    fill(wal, 100)
    entries = follow(wal, timeout=1.5)
    assert take(entries, 100) == names(0, 100)
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[[Walk], Any]:
        call = getattr(Walk, name)

        def counting(walk: Walk) -> Any:
            calls[name] += 1
            return call(walk)

        return counting

    for name in ("step", "look"):
        monkeypatch.setattr(Walk, name, counted(name))
    assert next(entries, None) is None
    assert 0 < calls["look"] <= 3
    assert calls["look"] < calls["step"] <= 1500 / POLL_INTERVAL_MS + 2 * calls["look"] + 2


# -- the log of a store


def test_log_of_a_store_is_followed_through_it_and_beside_it(tmp_path: Path, kernel: Any) -> None:
    with mmwal.open(tmp_path, dimension=4, kernel=kernel.NAME) as store:
        store.insert("a", [1, 2, 3, 4])
        assert store.wal is not None
        with WalManager.new_from_path(tmp_path, kernel=kernel.NAME) as log:
            both = [wal.iter_entries(follow=True, timeout=PATIENT) for wal in (store.wal, log)]
            assert [take(entries, 1) for entries in both] == [["a"]] * 2
            store.insert("b", [1, 2, 3, 4])
            store.delete("a")
            assert [take(entries, 2) for entries in both] == [["b", "a"]] * 2
