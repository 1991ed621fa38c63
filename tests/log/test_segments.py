"""Rotation, recycling, what fits and what does not, the budget, and a full disk."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmwal.errors import EntryTooLargeError, LsnUnavailableError, SyncFailedError, WalClosedError, WalFullError
from mmwal.format.frame import Kind
from mmwal.format.segment import FOOTER_BYTES
from mmwal.kernel.interface import RING_SLOTS
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import (
    LARGEST,
    NOTHING_UNSYNCED,
    ROOM,
    SEGMENT,
    assert_ordered,
    fill,
    frame_kinds,
    ids,
    reserved,
    segments,
    until_full,
    vector,
)

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def exactly(size: int) -> np.ndarray[Any, Any]:
    """A vector whose entry, under an id of one letter, takes `size` bytes: 64 of header and 5 of id beside it."""
    return np.ones((size - 128) // 4 + 14, np.float32)


# -- creation


def test_a_segment_s_blocks_are_really_there(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal()
    fill(wal, 1)
    for name in segments(wal_dir):
        status = (wal_dir / name).stat()
        assert status.st_size == SEGMENT
        assert status.st_blocks * 512 >= SEGMENT


def test_files_are_for_their_owner_alone(open_wal: OpenWal, wal_dir: Path) -> None:
    old = os.umask(0)
    try:
        wal = open_wal(max_wal_size=2 * SEGMENT)
        for i in range(20):
            wal.release(fill(wal, 100, i)[-1])
        wal.close()
    finally:
        os.umask(old)
    assert wal_dir.stat().st_mode & 0o777 == 0o700
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in wal_dir.iterdir()} == dict.fromkeys(
        os.listdir(wal_dir), "0o600"
    )


def test_a_new_log_takes_no_more_than_its_runway(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal(max_wal_size=50_000_000_000, runway_segments=1)
    fill(wal, 1)
    wal.close()
    assert len(segments(wal_dir)) <= 2


# -- rotation


def test_no_entry_spans_segments(open_wal: OpenWal) -> None:
    wal = open_wal(dimension=None)
    for i in range(80):
        size = 1 + (i * 977) % 12_000
        lsn = wal.log_insert(i, np.ones(size, np.float32))
        start = lsn - (64 + 4 * size + 12 + 63) // 64 * 64
        assert start // SEGMENT == (lsn - 1) // SEGMENT
    found = [(entry.id, len(entry.vector)) for entry in wal.replay()]
    assert found == [(i, 1 + (i * 977) % 12_000) for i in range(80)]
    wal.sync()


@pytest.mark.parametrize("short", [0, 64, 128])
def test_an_entry_that_fits_exactly_or_nearly_is_whole(open_wal: OpenWal, short: int) -> None:
    wal = open_wal(dimension=None)
    first = wal.log_insert("a", exactly(ROOM - short - 128))
    second = wal.log_delete("b")  # 128 bytes
    assert second == SEGMENT - FOOTER_BYTES - short
    third = wal.log_insert("c", exactly(LARGEST))
    assert third // SEGMENT == first // SEGMENT + 1
    wal.close()
    again = open_wal(dimension=None)
    assert [(e.id, e.lsn) for e in again.replay()] == [("a", first), ("b", second), ("c", third)]
    assert again.log_insert("d", exactly(LARGEST)) > third


def test_exact_fits_survive_a_kill(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, dimension=None)
    for number, name in enumerate("abc"):
        wal.log_insert(name, exactly(ROOM - 128))
        assert wal.log_delete(name) == (number + 1) * SEGMENT - FOOTER_BYTES
        again = open_wal(disk=disk.kill(), dimension=None)
        assert ids(again) == list("aabbcc"[: 2 * number + 2])
        again.log_insert("z", exactly(LARGEST))


def test_entry_larger_than_a_segment_is_refused_with_its_sizes(open_wal: OpenWal) -> None:
    wal = open_wal(dimension=None)
    before = reserved(wal)
    for log in (
        lambda: wal.log_insert("a", exactly(LARGEST + 64)),
        lambda: wal.log_insert("a", exactly(LARGEST + 64).tolist()),
        lambda: wal.log_insert("a", memoryview(exactly(LARGEST + 64))),
        lambda: wal.log_insert("a", vector(1), {"text": "x" * ROOM}),
        lambda: wal.log_update("a", metadata={"text": "x" * ROOM}),
        lambda: wal.log_batch(["a", "b"], np.ones((2, ROOM // 4), np.float32)),
        lambda: wal.log_batch(["a", "b"], np.ones((2, 4), np.float32), [None, {"text": "x" * ROOM}]),
    ):
        with pytest.raises(EntryTooLargeError) as caught:
            log()
        assert caught.value.entry_bytes > caught.value.entry_bytes_max == LARGEST
        assert f"{caught.value.entry_bytes:,}" in str(caught.value)
    assert reserved(wal) == before
    wal.log_insert("a", exactly(LARGEST))


def test_a_row_of_a_batch_may_fill_a_segment(open_wal: OpenWal) -> None:
    wal = open_wal(dimension=None)
    values = len(exactly(LARGEST))
    lsn = wal.log_batch(["a", "b"], np.ones((2, values), np.float32))
    assert [(e.id, e.lsn) for e in wal.replay() if e.kind == "insert"] == [("a", lsn), ("b", lsn)]


def test_ids_may_have_65535_bytes(open_wal: OpenWal) -> None:
    wal = open_wal(segment_size=256 << 10)
    longest = "ü" * 32_767 + "x"
    assert len(longest.encode()) == 65_535
    wal.log_insert(longest, vector(1))
    wal.log_batch([longest, "短"], np.ones((2, 16), np.float32))
    assert ids(wal) == [longest, longest, "短"]


# -- batches


def test_batch_is_one_entry_with_its_rows_and_metadata(open_wal: OpenWal) -> None:
    wal = open_wal()
    vectors = np.arange(48, dtype=np.float32).reshape(3, 16)
    lsn = wal.log_batch(["a", 7, "7"], vectors, [{"k": 1}, None, {}])
    (entry,) = wal.replay()
    assert (entry.kind, entry.operation, entry.lsn, entry.txn) == ("batch", "insert", lsn, 0)
    assert list(entry.ids) == ["a", 7, "7"]
    assert [type(id) for id in entry.ids] == [str, int, str]
    assert entry.vectors.tolist() == vectors.tolist()
    assert not entry.vectors.flags.writeable
    assert list(entry.metadata) == [{"k": 1}, None, {}]
    assert len(entry) == 3


def test_empty_metadata_of_a_batch_is_not_no_metadata(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_batch(["a", "b"], np.ones((2, 16), np.float32), [{}, {}])
    wal.log_batch(["a", "b"], np.ones((2, 16), np.float32), [None, None])
    wal.log_insert("c", vector(1), {})
    assert [entry.metadata for entry in wal.replay()] == [[{}, {}], None, {}]


@pytest.mark.parametrize("operation", ["insert", "update", "upsert", "delete"])
def test_every_operation_has_batches(open_wal: OpenWal, operation: str) -> None:
    wal = open_wal()
    vectors = None if operation == "delete" else np.ones((2, 16), np.float32)
    wal.log_batch([1, 2], vectors, operation=operation)
    (entry,) = wal.replay()
    assert (entry.operation, entry.ids) == (operation, [1, 2])
    assert (entry.vectors is None) == (operation == "delete")
    assert [single.kind for single in entry.singles()] == [operation] * 2


def test_batch_larger_than_a_segment_is_a_transaction_at_one_lsn(open_wal: OpenWal) -> None:
    wal = open_wal()
    names = [f"row-{i}" for i in range(3000)]
    vectors = np.repeat(np.arange(3000, dtype=np.float32)[:, None], 16, 1)
    metadata = [{"i": i} if i % 3 else None for i in range(3000)]
    fill(wal, 5)
    lsn = wal.log_batch(names, vectors, metadata, operation="upsert")
    after = wal.log_delete("end")
    entries = list(wal.replay())
    assert [e.kind for e in entries[:5]] == ["insert"] * 5
    batches = entries[5:-2]
    assert len(batches) > 3
    assert {e.kind for e in batches} == {"batch"}
    assert {e.lsn for e in batches} == {lsn}
    assert len({e.txn for e in batches}) == 1
    commit = entries[-2]
    assert (commit.kind, commit.rows, commit.lsn, commit.txn) == ("commit", 3000, lsn, batches[0].txn)
    assert entries[-1].lsn == after > lsn
    rows = [single for batch in batches for single in batch.singles()]
    assert [row.id for row in rows] == names
    assert [row.metadata for row in rows] == metadata
    assert all((row.vector == i).all() for i, row in enumerate(rows))
    assert_ordered(wal)


def test_transaction_without_its_commit_frame_leaves_no_trace(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 5)
    kept = wal.sync()
    lsn = wal.log_batch(range(2500), np.ones((2500, 16), np.float32))
    commit_bytes = 128
    segment, offset = divmod(lsn - commit_bytes, SEGMENT)
    later = disk.kill()
    file = later.open(f"/wal/segment-{segment:016x}.wal", writable=True)
    file.write(offset + 70, b"damage in the commit frame")
    file.sync()
    again = open_wal(disk=later)
    assert again.last_lsn > kept
    assert ids(again) == [f"id-{i}" for i in range(5)]
    next_lsn = again.log_batch(range(2500), np.ones((2500, 16), np.float32))
    assert len(ids(again)) == 2505
    assert next_lsn > lsn


def test_transaction_that_ran_out_of_room_leaves_no_trace(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=3 * SEGMENT, append_timeout_ms=100)
    fill(wal, 5)
    with pytest.raises(WalFullError):
        wal.log_batch(range(5000), np.ones((5000, 16), np.float32))
    assert ids(wal) == [f"id-{i}" for i in range(5)]
    wal.release(wal.last_lsn)
    wal.log_insert("on", vector(1))
    assert ids(wal) == ["on"]
    wal.close()
    assert ids(open_wal(disk=disk))[-1] == "on"


def test_transaction_numbers_never_come_again(open_wal: OpenWal) -> None:
    seen: list[int] = []
    for _ in range(3):
        wal = open_wal()
        for _ in range(2):
            wal.log_batch(range(1200), np.ones((1200, 16), np.float32))
        seen = [entry.txn for entry in wal.replay() if entry.kind == "commit"]
        wal.close()
    assert len(seen) == len(set(seen)) == 6


class InterruptedDisk(SimulatedDisk):
    """Does something between two frames of a transaction, as another thread would: when an appender asks the time."""

    def __init__(self) -> None:
        super().__init__()
        self.frames_left = 0
        self.act: Callable[[], Any] = lambda: None

    def time_ns(self) -> int:
        if self.frames_left and not any(worker.is_running for worker in self._background.workers):
            self.frames_left -= 1
            if not self.frames_left:
                self.act()
        return super().time_ns()


@pytest.mark.parametrize("released", [False, True])
def test_replay_from_within_a_transaction_gives_all_of_it(open_wal: OpenWal, released: bool) -> None:
    """Whoever has seen an entry that lies between the members has seen nothing of the transaction."""
    disk = InterruptedDisk()
    wal = open_wal(disk=disk)
    between: list[int] = []

    def interrupt() -> None:
        between.append(wal.log_insert("between", vector(1)))
        if released:
            wal.release(between[0])
            disk.run_workers()

    fill(wal, 5)
    disk.frames_left, disk.act = 6, interrupt
    lsn = wal.log_batch([f"row-{i}" for i in range(3000)], np.ones((3000, 16), np.float32))
    assert between[0] < lsn
    assert between[0] // SEGMENT > 1
    if released:
        wal.release(between[0])
        wal.sync()
        disk.run_workers()
        assert wal.get_metrics().oldest_lsn < SEGMENT
    assert ids(wal, between[0]) == [f"row-{i}" for i in range(3000)]
    again = open_wal(disk=disk.kill())
    assert ids(again, between[0]) == [f"row-{i}" for i in range(3000)]
    wal.release(lsn)
    disk.run_workers()
    fill(wal, 400)
    assert wal.get_metrics().oldest_lsn > SEGMENT


# -- release and reuse


def test_steady_state_reuses_its_files(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=4 * SEGMENT)
    names = []
    for i in range(30):
        wal.release(fill(wal, 150, 150 * i)[-1])
        disk.run_workers()
        names.append(len(disk.list_directory("/wal")))
    assert wal.get_metrics().rotations >= 15
    assert max(names[3:]) <= 6  # control, lock, one in use, two ahead, one spare
    assert disk.labels["spare.wal create"] <= 5
    assert disk.labels["segment.wal unlink"] <= 2


def test_number_of_files_stays_bounded_however_fast_one_writes(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal(max_wal_size=4 * SEGMENT)
    most = 0
    for _ in range(40):
        wal.release(fill(wal, 200)[-1])
        most = max(most, len(os.listdir(wal_dir)))
    assert most <= RING_SLOTS + 4


def test_of_segments_released_at_once_only_a_runway_of_files_is_kept(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=40 * SEGMENT)
    lsns = fill(wal, 8000)
    assert len(disk.list_directory("/wal")) > 30
    wal.release(lsns[-1])
    disk.run_workers()
    assert len(disk.list_directory("/wal")) <= 6


def test_entries_in_recycled_segments_are_read_as_they_are(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=4 * SEGMENT)
    for i in range(20):
        lsns = fill(wal, 150, 150 * i)
        assert ids(wal, lsns[0]) == [f"id-{n}" for n in range(150 * i + 1, 150 * i + 150)]
        for entry in wal.replay(lsns[-2]):
            assert entry.vector.tolist() == [150 * i + 149] * 16
        wal.release(lsns[-2])
        disk.run_workers()
    assert ids(open_wal(disk=disk.kill()), lsns[-2]) == ["id-2999"]


def test_what_was_released_is_unavailable(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, 2000)
    wal.release(lsns[1500])
    for start in (0, lsns[0], lsns[1499]):
        with pytest.raises(LsnUnavailableError) as caught:
            list(wal.replay(start))
        assert (caught.value.lsn, caught.value.oldest_lsn) == (start, lsns[1500])
    assert ids(wal) == ids(wal, lsns[1500]) == [f"id-{i}" for i in range(1501, 2000)]
    wal.release(lsns[3])  # a lesser one takes nothing back
    assert wal.oldest_lsn == lsns[1500]


def test_release_never_outlives_what_it_needs(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    lsns = fill(wal, 3000)
    wal.release(lsns[2000])
    for _ in range(3):
        disk.run_workers()
    for later in (disk.kill(), disk.image(NOTHING_UNSYNCED)):
        again = open_wal(disk=later)
        assert again.oldest_lsn <= lsns[2000]
        assert ids(again, lsns[2000]) == [f"id-{i}" for i in range(2001, 3000)]


def test_released_segments_are_gone_after_a_reopening(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, runway_segments=1)
    wal.release(fill(wal, 3000)[-1])
    disk.run_workers()
    wal.close()
    again = open_wal(disk=disk, runway_segments=1)
    assert len([name for name in disk.list_directory("/wal") if name.startswith("segment")]) <= 2
    assert again.recovery_stats.segments == 1


# -- the budget


def test_appends_beyond_the_budget_raise_with_nothing_logged(open_wal: OpenWal) -> None:
    wal = open_wal(max_wal_size=3 * SEGMENT, append_timeout_ms=50, sync_interval_ms=60_000)  # no idle mark
    logged, error = until_full(wal)
    assert "max_wal_size" in str(error)
    assert error.errno == errno.ENOSPC
    assert len(logged) * 192 > 2 * ROOM
    before = reserved(wal)
    for _ in range(2):
        with pytest.raises(WalFullError):
            wal.log_batch([1, 2, 3], np.ones((3, 16), np.float32))
    assert reserved(wal) == before
    assert wal.get_metrics().append_waits >= 3
    assert ids(wal) == list(range(len(logged)))
    assert_ordered(wal)
    wal.release(logged[len(logged) // 2])
    wal.log_insert("on", vector(1))
    assert ids(wal)[-1] == "on"


def test_a_budget_of_two_segments_is_enough(open_wal: OpenWal) -> None:
    wal = open_wal(max_wal_size=2 * SEGMENT, append_timeout_ms=20_000)
    for i in range(30):
        wal.release(fill(wal, 100, 100 * i)[-1])
    assert wal.get_metrics().rotations >= 3
    assert wal.get_metrics().current_size_mb <= 2 * SEGMENT / 1e6


def test_without_patience_a_full_budget_raises_at_once(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=2 * SEGMENT, append_timeout_ms=0)
    disk.run_workers()
    logged, _ = until_full(wal)
    assert len(logged) * 192 > ROOM


def test_a_release_from_another_thread_lets_waiting_appends_go_on(open_wal: OpenWal) -> None:
    wal = open_wal(max_wal_size=3 * SEGMENT, append_timeout_ms=60_000, sync_interval_ms=1)

    def write() -> list[int]:
        return fill(wal, 1500)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            if wal.get_metrics().append_waits:
                wal.release(wal.last_lsn)
        lsns = writing.result()
    assert len(set(lsns)) == 1500
    assert wal.get_metrics().append_waits > 0
    assert_ordered(wal)


@pytest.mark.parametrize("end", ["close", "failed sync"])
def test_append_that_waits_for_room_is_woken_by_the_end_of_the_log(open_wal: OpenWal, end: str) -> None:
    wal = open_wal(max_wal_size=3 * SEGMENT, append_timeout_ms=3_000_000)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(fill, wal, 4000)
        while not wal.get_metrics().append_waits:
            pass
        if end == "close":
            wal.close()
        else:
            wal._log.poison(OSError(errno.EIO, "the disk is gone"))
        assert isinstance(writing.exception(timeout=60), WalClosedError if end == "close" else SyncFailedError)


def test_reopening_a_log_that_is_at_its_budget_works(open_wal: OpenWal) -> None:
    wal = open_wal(max_wal_size=2 * SEGMENT, append_timeout_ms=20)
    logged, _ = until_full(wal)
    wal.close()
    again = open_wal(max_wal_size=2 * SEGMENT, append_timeout_ms=2000)
    assert ids(again) == list(range(len(logged)))
    again.release(logged[-1])
    again.log_insert("on", vector(1))
    assert ids(again, logged[-1]) == ["on"]


# -- a full disk


@pytest.mark.parametrize("what", ["allocate", "create", "zero"])
def test_full_disk_raises_with_nothing_logged_and_ends_when_there_is_space(open_wal: OpenWal, what: str) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fault = disk.fail(what, 1, errno.ENOSPC, forever=True)
    logged, error = until_full(wal)
    assert "no space" in str(error)
    assert error.errno == errno.ENOSPC
    assert fault.hits
    before = reserved(wal)
    with pytest.raises(WalFullError):
        wal.log_batch(["a", "b"], np.ones((2, 16), np.float32))
    assert reserved(wal) == before
    assert ids(wal) == list(range(len(logged)))
    assert wal.sync() >= logged[-1]
    disk.faults.remove(fault)
    fill(wal, 1000)
    assert len(ids(wal)) == len(logged) + 1000
    assert not [name for name in disk.list_directory("/wal") if name.startswith("spare")]
    wal.close()
    assert len(ids(open_wal(disk=disk))) == len(logged) + 1000


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a tmpfs of a given size; skip where this process may not."""
    point = tmp_path / "tiny"
    point.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,size={size}", "tmpfs", str(point)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        return point

    yield mount
    subprocess.run(["umount", "--lazy", str(point)], capture_output=True, check=False)


def test_full_file_system_is_an_exception_never_a_signal(
    open_wal: OpenWal, tiny_disk: Callable[[str], Path], kernel: Any
) -> None:
    place = tiny_disk("600k")
    ballast = place / "ballast"
    ballast.write_bytes(bytes(250 << 10))
    wal = open_wal(path=place / "wal", append_timeout_ms=5000)
    logged, _ = until_full(wal)
    before = reserved(wal)
    with pytest.raises(WalFullError):
        wal.log_insert("x", vector(1))
    assert reserved(wal) == before
    assert ids(wal) == list(range(len(logged)))
    ballast.unlink()
    fill(wal, 400)
    assert len(ids(wal)) == len(logged) + 400
    wal.close()
    assert len(ids(open_wal(path=place / "wal"))) == len(logged) + 400


def test_marks_and_pads_are_no_entries(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=10)
    fill(wal, 500)
    for _ in range(20):
        disk.advance(0.1)
        disk.run_workers()
    assert {Kind.PAD, Kind.IDLE} <= set(frame_kinds(wal)) or Kind.IDLE in frame_kinds(wal)
    assert {entry.kind for entry in wal.replay()} == {"insert"}
