"""Where a log ends after a crash: the verdicts, row by row, on logs damaged by hand.

A log is left in one of two ways: killed (nothing but the page cache holds its end) or closed. Damage is done to its
files; then it is opened again. A cut loses a suffix and says so; an error names file, offset and LSN.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmwal.errors import (
    DamageError,
    ForeignDirectoryError,
    HeaderCorruptionError,
    SegmentMissingError,
    WalCorruptionError,
)
from mmwal.format.segment import DATA_OFFSET, FOOTER, FOOTER_BYTES, LINK, LINK_OFFSET, PAGE_BYTES
from mmwal.log.segment import segment_name
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal, open_wal, wal_dir
from tests.log.logs import NOTHING_UNSYNCED, SEGMENT, child, fill, ids, segment_path, segments

__all__ = ["open_wal", "wal_dir"]
pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

FRAME = 192  # bytes of one entry of `fill`
PER_SEGMENT = (SEGMENT - DATA_OFFSET - FOOTER_BYTES) // FRAME  # 296
WAL = "/wal"


def names(count: int) -> list[str]:
    return [f"id-{i}" for i in range(count)]


class Log:
    """A log on a simulated disk, killed or closed, with hands to damage it."""

    def __init__(self, open_wal: OpenWal) -> None:
        self._open_wal = open_wal
        self.disk = SimulatedDisk(seed=5)

    def open(self) -> WalManager:
        return self._open_wal(disk=self.disk)

    def killed(self, *bursts: int) -> list[int]:
        """Logs bursts of entries with a sync after each but the last, and dies; returns the LSNs."""
        wal = self.open()
        self.disk.run_workers()
        lsns: list[int] = []
        for number, count in enumerate(bursts):
            lsns += fill(wal, count, len(lsns))
            if number < len(bursts) - 1:
                wal.sync()
        self.disk = self.disk.kill()
        return lsns

    def closed(self, count: int) -> list[int]:
        wal = self.open()
        self.disk.run_workers()
        lsns = fill(wal, count)
        wal.close()
        return lsns

    def path(self, number: int) -> str:
        return f"{WAL}/{segment_name(number)}"

    def read(self, number: int, offset: int, length: int) -> bytes:
        return self.disk.open(self.path(number), writable=False).read(offset, length)

    def write(self, number: int, offset: int, content: bytes) -> None:
        """Puts bytes into a segment, as durable as a disk's own mistakes are."""
        file = self.disk.open(self.path(number), writable=True)
        file.write(offset, content)
        file.sync()

    def flip(self, lsn_start: int, offset: int = 0) -> None:
        """Flips a bit of the byte at a position of the log."""
        number, at = divmod(lsn_start + offset, SEGMENT)
        self.write(number, at, bytes([self.read(number, at, 1)[0] ^ 4]))

    def put(self, lsn_start: int, content: bytes) -> None:
        number, at = divmod(lsn_start, SEGMENT)
        self.write(number, at, content)

    def unlink(self, number: int) -> None:
        self.disk.unlink(self.path(number))
        self.disk.sync_directory(WAL)

    def assert_goes_on(self, count: int, *, torn: bool | None = None) -> None:
        """Opening gives the first `count` entries, twice the same; appending works; all of it is seen afterwards."""
        self.assert_twice_the_same()
        wal = self.open()
        assert ids(wal) == names(count)
        if torn is not None:
            assert (wal.recovery_stats.torn_tail_bytes > 0) == torn
        last = wal.last_lsn
        lsns = fill(wal, 310, count)
        assert lsns[0] > last
        assert ids(wal) == names(count + 310)
        wal.sync()
        for later in (self.disk.kill(), self.disk.image(NOTHING_UNSYNCED)):
            assert ids(self._open_wal(disk=later)) == names(count + 310)
        wal.close()
        again = self.open()
        assert again.recovery_stats.clean_shutdown
        assert ids(again) == names(count + 310)

    def assert_twice_the_same(self) -> None:
        """A second recovery, after the first was killed, finds the same log."""
        found = []
        disk = self.disk.kill()
        for _ in range(2):
            wal = self._open_wal(disk=disk)
            found.append((ids(wal), [entry.lsn for entry in wal.replay()]))
            disk = disk.kill()
        assert found[0] == found[1]

    def assert_refused(self, kind: type[DamageError], number: int, lsn: int | None = None) -> None:
        """Opening raises, with the place, and changes no byte; the second time as well."""
        self.disk = self.disk.kill()
        for _ in range(2):
            before = self.disk.digest()
            with pytest.raises(kind) as caught:
                self.open()
            assert type(caught.value) is kind
            assert caught.value.path == self.path(number)
            if lsn is not None:
                assert (caught.value.lsn, caught.value.offset) == (lsn, lsn % SEGMENT)
                assert str(lsn) in str(caught.value)
            assert before == self.disk.digest()


@pytest.fixture
def log(open_wal: OpenWal) -> Log:
    return Log(open_wal)


# -- the tail


def test_whole_tail_of_a_killed_log_is_kept(log: Log) -> None:
    log.killed(700)
    log.assert_goes_on(700, torn=False)


def test_tail_torn_in_payload_is_cut_at_the_last_whole_frame(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-1] - 64, bytes(64))
    log.assert_goes_on(149, torn=True)


def test_tail_torn_in_header_is_cut_at_the_last_whole_frame(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-2] + 8, bytes(56))
    log.assert_goes_on(149, torn=True)


def test_tail_whose_commit_word_is_missing_is_cut(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-2], bytes(8))
    log.assert_goes_on(149)


@pytest.mark.parametrize("content", [bytes(8 * FRAME), b"\xff" * 8 * FRAME, b"stale by" * FRAME])
def test_tail_overwritten_with_zeros_or_stale_bytes_is_cut(log: Log, content: bytes) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-9], content)
    log.assert_goes_on(142)


def test_tail_replaced_by_frames_of_another_place_is_cut(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-9], log.read(0, lsns[0], 8 * FRAME))
    log.assert_goes_on(142)


def test_frames_behind_the_tail_from_an_earlier_life_of_the_blocks_are_not_seen(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, max_wal_size=4 * SEGMENT)
    for i in range(12):
        lsns = fill(wal, 200, 200 * i)
        wal.release(lsns[-50])
        disk.run_workers()
    assert disk.labels["spare.wal rename"]
    again = open_wal(disk=disk.kill())
    assert ids(again, lsns[-50]) == [f"id-{i}" for i in range(2351, 2400)]
    assert again.recovery_stats.torn_tail_bytes == 0


@pytest.mark.parametrize("offset", [0, 9, 13, 20, 45, 60, 64, 100, 128, 140])
def test_flipped_bit_in_an_unsynced_frame_at_the_end_is_a_cut(log: Log, offset: int) -> None:
    lsns = log.killed(100, 50)
    log.flip(lsns[-2], offset)
    log.assert_goes_on(149)


def test_flipped_bit_in_the_middle_of_what_was_never_synced_is_a_cut(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.flip(lsns[119], 70)
    log.assert_goes_on(120, torn=True)


@pytest.mark.parametrize("offset", [0, 9, 20, 70])
def test_flipped_bit_that_a_later_frame_proves_durable_is_corruption(log: Log, offset: int) -> None:
    lsns = log.killed(100, 50)
    log.flip(lsns[40], offset)
    log.assert_refused(WalCorruptionError, 0, lsns[40])


def test_flipped_bit_in_the_last_durable_frame_is_corruption(log: Log) -> None:
    lsns = log.killed(100, 1)
    log.flip(lsns[98], 70)
    log.assert_refused(WalCorruptionError, 0, lsns[98])


def test_flipped_bit_in_the_first_frame_of_all_is_corruption_if_durable(log: Log) -> None:
    log.killed(100, 1)
    log.flip(DATA_OFFSET, 70)
    log.assert_refused(WalCorruptionError, 0, DATA_OFFSET)


def test_flipped_bit_in_the_first_frame_of_all_is_a_cut_if_never_synced(log: Log) -> None:
    log.killed(100)
    log.flip(DATA_OFFSET, 70)
    log.assert_goes_on(0)


def test_damage_that_only_an_idle_mark_proves_durable_is_corruption(log: Log) -> None:
    wal = log.open()
    lsns = fill(wal, 100)
    wal.sync()
    for _ in range(100):
        log.disk.advance(3600)
        log.disk.run_workers()
    assert wal.last_lsn > lsns[-1]
    log.disk = log.disk.kill()
    log.flip(lsns[98], 70)
    log.assert_refused(WalCorruptionError, 0, lsns[98])


def test_damage_in_an_unsealed_segment_is_a_cut_although_frames_follow_in_the_next(log: Log) -> None:
    lsns = log.killed(PER_SEGMENT + 100)
    log.flip(lsns[200], 70)
    log.assert_goes_on(201, torn=True)


def test_damage_at_the_very_start_of_the_last_segment_is_a_cut(log: Log) -> None:
    lsns = log.killed(PER_SEGMENT, 20)
    assert lsns[PER_SEGMENT] == SEGMENT + DATA_OFFSET + FRAME
    log.flip(SEGMENT + DATA_OFFSET, 70)
    log.assert_goes_on(PER_SEGMENT)


def test_first_frame_behind_an_earlier_cut_may_be_torn_as_well(log: Log) -> None:
    """What was cut is sealed before its end; the frames behind begin in the next segment and record its start."""
    lsns = log.killed(100, 50)
    log.put(lsns[-2], bytes(FRAME))
    wal = log.open()
    fill(wal, 20, 149)
    log.disk = log.disk.kill()
    log.flip(SEGMENT + DATA_OFFSET, 70)
    log.assert_goes_on(149)


def test_release_right_after_a_cut_proves_nothing_that_is_not_there(log: Log) -> None:
    lsns = log.killed(PER_SEGMENT * 2 + 50)
    log.put(lsns[-2], bytes(FRAME))
    wal = log.open()
    wal.release(lsns[PER_SEGMENT + 50])
    for _ in range(3):
        log.disk.run_workers()
    log.disk = log.disk.kill()
    again = log.open()
    assert ids(again, lsns[PER_SEGMENT + 50]) == names(PER_SEGMENT * 2 + 49)[PER_SEGMENT + 51 :]
    assert again.log_delete("on") > lsns[-2]


def test_durable_frame_behind_an_earlier_cut_is_not_cut(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-2], bytes(FRAME))
    wal = log.open()
    fill(wal, 20, 149)
    wal.sync()
    fill(wal, 1, 169)
    log.disk = log.disk.kill()
    log.flip(SEGMENT + DATA_OFFSET, 70)
    log.assert_refused(WalCorruptionError, 1, SEGMENT + DATA_OFFSET)


def test_every_truncation_of_an_unsynced_tail_gives_a_prefix(open_wal: OpenWal) -> None:
    for end in range(0, 2 * FRAME + 1, 24):
        log = Log(open_wal)
        lsns = log.killed(10, 2)
        length = lsns[-1] - lsns[9]
        log.put(lsns[9] + end, bytes(length - end))
        log.disk = log.disk.kill()
        assert ids(log.open()) == names(10 + (end >= 136) + (end >= FRAME + 136)), end


# -- sealed segments


def test_damage_inside_a_sealed_segment_is_found_by_replay(log: Log) -> None:
    lsns = log.closed(PER_SEGMENT * 3)
    log.flip(lsns[400], 70)
    wal = log.open()
    with pytest.raises(WalCorruptionError) as caught:
        ids(wal)
    assert (caught.value.path, caught.value.lsn, caught.value.offset) == (log.path(1), lsns[400], lsns[400] % SEGMENT)
    assert ids(wal, lsns[PER_SEGMENT * 2]) == names(PER_SEGMENT * 3)[PER_SEGMENT * 2 + 1 :]


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_damaged_footer_is_replaced_by_the_link_of_the_next_segment(log: Log, how: str) -> None:
    count = PER_SEGMENT * 2 + 30
    if how == "closed":
        log.closed(count)
    else:
        log.killed(PER_SEGMENT * 2, 30)
        log.open().close()
    log.write(0, SEGMENT - FOOTER_BYTES + 20, b"rot")
    log.disk = log.disk.kill()
    assert any("footer" in note for note in log.open().recovery_stats.notes)
    log.disk = log.disk.kill()
    log.assert_goes_on(count)


def test_damaged_footer_of_a_cut_segment_is_replaced_by_the_link_too(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.put(lsns[-2], bytes(FRAME))
    wal = log.open()
    fill(wal, 20, 149)
    wal.close()
    assert FOOTER.unpack(log.read(0, SEGMENT - FOOTER_BYTES, FOOTER_BYTES))
    log.write(0, SEGMENT - FOOTER_BYTES, bytes(FOOTER_BYTES))
    log.assert_goes_on(169)


def test_damage_in_a_segment_whose_footer_is_damaged_too_is_corruption(log: Log) -> None:
    lsns = log.closed(PER_SEGMENT * 2 + 30)
    log.write(0, SEGMENT - FOOTER_BYTES + 20, b"rot")
    log.flip(lsns[7], 70)
    log.assert_refused(WalCorruptionError, 0, lsns[7])


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_damaged_link_behind_a_full_segment_is_accepted(log: Log, how: str) -> None:
    if how == "closed":
        log.closed(PER_SEGMENT * 2 + 30)
    else:
        wal = log.open()
        fill(wal, PER_SEGMENT * 2 + 30)
        wal.sync()
        log.disk.run_workers()
        log.disk = log.disk.kill()
    assert LINK.unpack(log.read(1, LINK_OFFSET, LINK.size))
    log.write(1, LINK_OFFSET + 10, b"rot")
    log.assert_goes_on(PER_SEGMENT * 2 + 30)


def test_damaged_link_behind_a_cut_is_accepted_since_the_cut_is_sealed(log: Log) -> None:
    log.killed(20, 0)
    wal = log.open()  # seals at the cut, and goes on in the next segment
    assert FOOTER.unpack(log.read(0, SEGMENT - FOOTER_BYTES, FOOTER_BYTES))
    fill(wal, 30, 20)
    wal.sync()
    log.disk = log.disk.kill()
    log.write(1, LINK_OFFSET + 10, b"rot")
    log.assert_goes_on(50)


def test_footer_that_is_in_memory_only_is_durable_before_the_link_to_it_goes(log: Log) -> None:
    log.killed(20, 0)
    log.open().close()  # sealed at the cut; the next segment is empty
    log.open()
    log.disk = log.disk.kill()  # the mark of the close is gone
    offset = SEGMENT - FOOTER_BYTES
    footer = log.read(0, offset, FOOTER_BYTES)
    log.write(0, offset, bytes(FOOTER_BYTES))
    log.disk.open(log.path(0), writable=True).write(offset, footer)  # not synced
    images: list[tuple[str, SimulatedDisk]] = []
    disk = log.disk.kill()
    disk.on_step = lambda running, step, label: images.append((label, running.image(NOTHING_UNSYNCED)))
    log._open_wal(disk=disk)
    assert len(images) > 10
    for label, image in images:
        assert ids(log._open_wal(disk=image)) == names(20), label


# -- headers


@pytest.mark.parametrize("copy", [0, PAGE_BYTES])
def test_one_damaged_header_copy_is_noted(log: Log, copy: int) -> None:
    log.closed(PER_SEGMENT + 10)
    log.write(0, copy + 30, b"rot")
    log.disk = log.disk.kill()
    notes = log.open().recovery_stats.notes
    assert [note for note in notes if "header" in note and segment_name(0) in note]
    log.disk = log.disk.kill()
    log.assert_goes_on(PER_SEGMENT + 10)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_two_damaged_header_copies_are_an_error(log: Log, number: int) -> None:
    log.closed(PER_SEGMENT * 3 - 10)
    log.write(number, 30, b"rot")
    log.write(number, PAGE_BYTES + 30, b"rot")
    log.assert_refused(HeaderCorruptionError, number)


def test_segment_under_another_segment_s_name_is_an_error(log: Log) -> None:
    log.closed(PER_SEGMENT * 3 - 10)
    log.write(1, 0, log.read(0, 0, SEGMENT))
    log.assert_refused(HeaderCorruptionError, 1)


def test_short_segment_file_is_an_error(log: Log, wal_dir: Path) -> None:
    log.closed(PER_SEGMENT * 2)
    short = log.read(1, 0, SEGMENT - PAGE_BYTES)
    log.unlink(1)
    log.disk.create(log.path(1)).write(0, short)
    log.assert_refused(HeaderCorruptionError, 1)


def test_zeroed_segment_in_the_middle_is_missing(log: Log) -> None:
    log.closed(PER_SEGMENT * 3 - 10)
    log.write(1, 0, bytes(SEGMENT))
    log.assert_refused(SegmentMissingError, 1)


# -- names


@pytest.mark.parametrize("number", [0, 1, 2])
def test_missing_segment_is_an_error_after_a_clean_close(log: Log, number: int) -> None:
    log.closed(PER_SEGMENT * 3 - 10)
    log.unlink(number)
    log.assert_refused(SegmentMissingError, number)


@pytest.mark.parametrize("number", [0, 1])
def test_missing_segment_in_the_middle_is_an_error_after_a_kill(log: Log, number: int) -> None:
    log.killed(PER_SEGMENT * 2 + 30, 1)
    log.unlink(number)
    log.assert_refused(SegmentMissingError, number)


def test_missing_segment_that_a_later_frame_proves_durable_is_an_error(log: Log) -> None:
    log.killed(PER_SEGMENT + 30, PER_SEGMENT)
    log.unlink(0)
    log.assert_refused(SegmentMissingError, 0)


def test_all_segments_missing_is_an_error(log: Log) -> None:
    log.closed(PER_SEGMENT * 2 + 30)
    for number in range(5):
        if log.disk.exists(log.path(number)):
            log.unlink(number)
    log.assert_refused(SegmentMissingError, 0)


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_missing_segments_that_were_never_used_are_fine(log: Log, how: str) -> None:
    log.closed(50) if how == "closed" else log.killed(50)
    assert log.disk.exists(log.path(1))
    for number in range(1, 5):
        if log.disk.exists(log.path(number)):
            log.unlink(number)
    log.assert_goes_on(50)


def test_missing_last_segment_is_an_error_if_later_ones_were_prepared(log: Log) -> None:
    """Segments get their names in order and lose them in reverse: a gap is no crash's doing."""
    log.killed(PER_SEGMENT, 20)
    assert log.disk.exists(log.path(2))
    log.unlink(1)
    log.assert_refused(SegmentMissingError, 1)


def test_missing_last_segments_are_noticed_though_nothing_that_is_left_tells_what_was_in_them(log: Log) -> None:
    log.killed(PER_SEGMENT, 20)
    for number in range(1, 6):
        if log.disk.exists(log.path(number)):
            log.unlink(number)
    log.assert_refused(SegmentMissingError, 1)


def test_stray_files_are_ignored(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal()
    fill(wal, 400)
    wal.close()
    strays = ["foo.tmp", "segment-zz.wal", "segment-1.wal", "segment-00000000000000AA.wal", "control.bak", "7"]
    for name in strays:
        (wal_dir / name).write_bytes(b"" if "zz" in name else b"not ours")
    (wal_dir / "a directory").mkdir()
    (wal_dir / "a link").symlink_to("nowhere")
    again = open_wal()
    assert ids(again) == names(400)
    fill(again, 400, 400)
    again.release(again.last_lsn)
    again.close()
    assert {*strays, "a directory", "a link"} <= set(os.listdir(wal_dir))
    open_wal()


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_empty_file_with_a_segment_s_name_behind_the_end_is_ignored(
    open_wal: OpenWal, wal_dir: Path, number: int
) -> None:
    wal = open_wal()
    fill(wal, 40)
    wal.close()
    segment_path(wal_dir, number).write_bytes(b"")
    again = open_wal()
    assert ids(again) == names(40)
    fill(again, 1500, 40)
    again.close()
    assert ids(open_wal()) == names(1540)


def test_short_and_empty_spares_are_removed(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal()
    fill(wal, 40)
    wal.close()
    for size in (0, 100, SEGMENT - 1, SEGMENT):
        (wal_dir / f"spare-{size:016x}.wal").write_bytes(b"x" * size)
    (wal_dir / "control.tmp").write_bytes(b"half a control file")
    again = open_wal()
    fill(again, 1500, 40)
    again.close()
    reopened = open_wal()
    assert ids(reopened) == names(1540)
    reopened.close()  # nobody prepares or renames a file from here on
    left = [name for name in os.listdir(wal_dir) if name.startswith("spare")]
    assert all((wal_dir / name).stat().st_size == SEGMENT for name in left)


def test_segment_of_another_store_is_refused_and_left_alone(open_wal: OpenWal, wal_dir: Path, tmp_path: Path) -> None:
    other = open_wal(path=tmp_path / "other")
    fill(other, 1000)
    other.close()
    wal = open_wal()
    fill(wal, 40)
    wal.close()
    planted = segment_path(tmp_path / "other", 3).read_bytes()
    segment_path(wal_dir, 3).write_bytes(planted)
    with pytest.raises(ForeignDirectoryError) as caught:
        open_wal()
    assert caught.value.path == str(segment_path(wal_dir, 3))
    assert segment_path(wal_dir, 3).read_bytes() == planted


def test_segment_of_another_store_below_the_oldest_is_left_alone(open_wal: OpenWal) -> None:
    log = Log(open_wal)
    other = open_wal(disk=log.disk, path="/other")
    fill(other, 100)
    other.close()
    planted = log.disk.open(f"/other/{segment_name(0)}", writable=False).read(0, SEGMENT)
    wal = log.open()
    wal.release(fill(wal, 1000)[-1])
    log.disk.run_workers()
    wal.close()
    assert not log.disk.exists(log.path(0))
    log.disk.create(log.path(0)).write(0, planted)
    with pytest.raises(ForeignDirectoryError):
        log.open()
    assert log.read(0, 0, SEGMENT) == planted


# -- on the real disk


@pytest.mark.parametrize("damage", ["torn", "zeroed", "whole"])
def test_killed_process_leaves_a_log_that_goes_on(open_wal: OpenWal, wal_dir: Path, kernel: Any, damage: str) -> None:
    code = "wal = WalManager(config(wal_dir, kernel)); print(*fill(wal, 500)); die()"
    lsns = [int(word) for word in child(code, wal_dir, kernel, killed=True)[0].split()]
    kept = 500
    if damage != "whole":
        number, at = divmod(lsns[-2], SEGMENT)
        with open(segment_path(wal_dir, number), "r+b") as file:
            file.seek(at + (80 if damage == "torn" else 0))
            file.write(bytes(60))
        kept = 499
    for _ in range(2):
        wal = open_wal()
        assert ids(wal) == names(kept)
        assert wal.recovery_stats.last_lsn == lsns[kept - 1] or wal.recovery_stats.clean_shutdown
        wal.close()
    wal = open_wal()
    fill(wal, 500, kept)
    wal.close()
    assert ids(open_wal()) == names(kept + 500)
    assert len(segments(wal_dir)) <= 8


def test_report_says_what_was_cut(log: Log) -> None:
    lsns = log.killed(100, 50)
    log.flip(lsns[-2], 70)
    stats = log.open().recovery_stats
    assert (stats.clean_shutdown, stats.completed, stats.torn_tail_bytes) == (False, True, FRAME)
    assert (stats.first_lsn, stats.last_lsn) == (DATA_OFFSET, lsns[-2])
    assert "torn, 192 bytes cut" in str(stats)


def test_opening_a_cleanly_closed_log_scans_nothing(log: Log) -> None:
    log.closed(PER_SEGMENT * 3 - 10)
    stats = log.open().recovery_stats
    assert stats.clean_shutdown
    assert stats.bytes_scanned == 0
    assert stats.notes == ()


def test_a_hostile_byte_anywhere_costs_an_error_at_most(open_wal: OpenWal) -> None:
    log = Log(open_wal)
    log.killed(30, 3)
    rng = np.random.default_rng(11)
    whole = log.disk
    for _ in range(150):
        log.disk = whole.kill()
        place = int(rng.choice([rng.integers(SEGMENT), rng.integers(DATA_OFFSET, DATA_OFFSET + 33 * FRAME)]))
        log.write(0, place, rng.bytes(int(rng.integers(1, 9))))
        opened: Callable[[], Any] = log.open
        try:
            found = ids(opened())
        except DamageError:
            continue
        assert found == names(len(found))
        assert len(found) >= 30
