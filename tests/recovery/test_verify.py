"""Verification of logs: what is damaged is named, exactly that and nothing else, and no byte is changed.

Damage is done by hand, to a log that lives, was closed or was killed. The last tests look at logs that nothing is wrong
with: those that any crash leaves, once they were recovered.
"""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.disk.posix import PosixDisk
from mmwal.entry import EntryReport, Finding, LogReport
from mmwal.errors import OpenError
from mmwal.format.control import LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import FRAME, commit_word, frame_crc
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, HEADER_OFFSETS, LINK_OFFSET, SEGMENT_HEADER
from mmwal.manager import WalManager
from mmwal.recovery.verify import report_log, verify
from mmwal.testing.explorer import Explorer, Pace
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import LogTarget
from mmwal.testing.target_store import StoreTarget
from tests.log.fixtures import OpenWal, open_wal, wal_dir
from tests.log.logs import SEGMENT, fill, segment_path

__all__ = ["open_wal", "wal_dir"]
pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

FRAME_BYTES = 192  # of one entry of `fill`
PER_SEGMENT = (SEGMENT - DATA_OFFSET - FOOTER_BYTES) // FRAME_BYTES


def flip(path: str | Path, offset: int, bit: int = 4) -> None:
    """Flips one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bit]))


def put(path: str | Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def bad(report: LogReport) -> list[int]:
    """The positions of the entries whose checksum is not valid."""
    return [index for index, entry in enumerate(report) if not entry.checksum_valid]


def kinds(findings: Any) -> list[tuple[str, str]]:
    return [(finding.what, finding.severity) for finding in findings]


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}


# ---- entries


def test_undamaged_log_has_a_report_of_each_entry_and_no_finding(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, PER_SEGMENT + 40)
    lsns.append(wal.log_delete("id-1"))
    lsns.append(wal.log_batch(["a", "b"], np.ones((2, 16), np.float32)))
    report = wal.verify_wal()
    assert [entry.lsn for entry in report] == lsns
    assert all(entry.checksum_valid and entry.error is None for entry in report)
    assert report.ok
    assert report.findings == ()
    assert (report.whole.entries, report.whole.segments) == (len(lsns), 2)


@pytest.mark.parametrize("k", [0, PER_SEGMENT - 1, PER_SEGMENT + 39], ids=["first", "last-of-a-segment", "last"])
@pytest.mark.parametrize("where", ["length", "tag", "checksum", "kind", "start_lsn", "vector", "padding"])
def test_damaging_entry_k_flags_exactly_k(open_wal: OpenWal, where: str, k: int) -> None:
    wal = open_wal()
    lsns = fill(wal, PER_SEGMENT + 40)
    wal.sync()
    whole = wal.verify_wal()
    offsets = {"length": 0, "tag": 7, "checksum": 8, "kind": 12, "start_lsn": 17, "vector": 100, "padding": 191}
    flip(whole[k].segment, whole[k].offset + offsets[where])
    report = wal.verify_wal()
    assert bad(report) == [k]
    assert [entry.lsn for entry in report] == lsns
    assert report[k].offset == whole[k].offset
    assert report[k].error
    assert kinds(report.findings) == [("entry", "damaged")]
    found = report.findings[0]
    assert (found.path, found.offset, found.lsn) == (report[k].segment, report[k].offset, lsns[k])


def test_neighbours_that_are_all_damaged_are_told_apart(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 50)
    whole = wal.verify_wal()
    for k in (10, 11, 12, 30):
        flip(whole[k].segment, whole[k].offset + 100)
    for k in (20, 21):
        flip(whole[k].segment, whole[k].offset + 1)  # an impossible length
    report = wal.verify_wal()
    assert bad(report) == [10, 11, 12, 20, 21, 30]
    assert len(report) == 50


@pytest.mark.parametrize("length", [0, 1, 2, (1 << 26) - 1], ids=["none", "short", "middling", "longest"])
def test_damaged_length_does_not_hide_the_rest(open_wal: OpenWal, length: int) -> None:
    wal = open_wal()
    fill(wal, 50)
    entry = wal.verify_wal()[7]
    with open(entry.segment, "rb") as file:
        file.seek(entry.offset)
        word = int.from_bytes(file.read(8), "little")
    put(entry.segment, entry.offset, (word >> 26 << 26 | length).to_bytes(8, "little"))
    report = wal.verify_wal()
    assert bad(report) == [7]
    assert len(report) == 50


def test_zeroed_sectors_are_one_gap_and_the_entries_behind_it_are_whole(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = fill(wal, 50)
    whole = wal.verify_wal()
    put(whole[10].segment, whole[10].offset, bytes(3 * FRAME_BYTES))
    report = wal.verify_wal()
    assert bad(report) == [10]
    assert report[10].lsn == lsns[12]
    assert [entry.lsn for entry in report[11:]] == lsns[13:]


def test_closed_log_is_verified_to_its_end(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, PER_SEGMENT + 40)
    wal.close()
    entry = report_log_of(wal_dir, kernel)[PER_SEGMENT + 39]
    flip(entry.segment, entry.offset + 100)
    before = contents(wal_dir)
    report = report_log_of(wal_dir, kernel)
    assert bad(report) == [PER_SEGMENT + 39]
    assert contents(wal_dir) == before


def report_log_of(wal_dir: Path, kernel: Any) -> LogReport:
    return report_log(PosixDisk(), kernel, str(wal_dir))


def test_log_that_refuses_to_open_is_verified_all_the_same(open_wal: OpenWal, kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    for burst in range(4):
        fill(wal, 10, burst * 10)
        wal.sync()
    whole = wal.verify_wal()
    disk = disk.kill()
    damage_simulated(disk, whole[13], 100)
    with pytest.raises(OpenError):
        open_wal(disk=disk.kill())
    report = report_log(disk, kernel, "/wal")
    assert bad(report) == [13]
    assert len(report) == 40
    assert not report.ok


def test_torn_tail_is_named_and_is_no_damage(open_wal: OpenWal, kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 10)
    wal.sync()
    fill(wal, 5, 10)
    whole = wal.verify_wal()
    disk = disk.kill()
    damage_simulated(disk, whole[12], 100)
    report = report_log(disk, kernel, "/wal")
    assert len(report) == 12
    assert bad(report) == []
    assert report.ok
    assert kinds(report.findings) == [("tail", "torn")]
    assert report.findings[0].offset == whole[12].offset


def damage_simulated(disk: SimulatedDisk, entry: EntryReport, offset: int) -> None:
    file = disk.open(entry.segment, writable=True)
    at = entry.offset + offset
    file.write(at, bytes([file.read(at, 1)[0] ^ 4]))
    file.sync()


def test_one_segment_file_is_verified_wherever_it_is(open_wal: OpenWal, wal_dir: Path, tmp_path: Path) -> None:
    wal = open_wal()
    fill(wal, PER_SEGMENT + 40)
    wal.close()
    copy = tmp_path / "copied.wal"
    copy.write_bytes(segment_path(wal_dir, 0).read_bytes())
    with WalManager.new_from_path(copy) as reader:
        report = reader.verify_wal()
        assert (len(report), report.ok) == (PER_SEGMENT, True)
        flip(copy, report[9].offset + 100)
        assert bad(reader.verify_wal()) == [9]


def test_reader_of_a_directory_verifies_what_is_there_by_now(open_wal: OpenWal, wal_dir: Path) -> None:
    wal = open_wal()
    fill(wal, 20)
    with WalManager.new_from_path(wal_dir) as reader:
        assert len(reader.verify_wal()) == 20
        entry = reader.verify_wal()[3]
        flip(entry.segment, entry.offset + 100)
        wal.sync()
        fill(wal, 1, 20)
        assert bad(reader.verify_wal()) == [3]


def test_transaction_whose_member_is_another_one_is_named(open_wal: OpenWal, kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    rows = SEGMENT // 60
    wal.log_batch([f"r{n}" for n in range(rows)], np.ones((rows, 16), np.float32))
    wal.close()
    assert report_log(disk, kernel, "/wal").ok
    report = report_log(disk, kernel, "/wal")
    info = _salt_of(disk, report[0].segment)
    file = disk.open(report[0].segment, writable=True)
    header = FRAME.unpack(file.read(report[0].offset, 64))
    assert header is not None
    header["time_ns"] += 1  # a whole frame with a valid checksum, but not the one that was committed
    length = report[0].lsn % SEGMENT - report[0].offset
    frame = bytearray(FRAME.pack(**header) + file.read(report[0].offset + 64, length - 64))
    frame[8:12] = _crc(frame, info).to_bytes(4, "little")
    file.write(report[0].offset, bytes(frame))
    file.sync()
    found = report_log(disk, kernel, "/wal")
    assert bad(found) == []
    assert any("commits other entries" in finding.problem for finding in found.findings)


def _salt_of(disk: SimulatedDisk, path: str) -> int:
    header = SEGMENT_HEADER.unpack(disk.open(path, writable=False).read(0, 4096))
    assert header is not None
    return int(header["salt"])


def _crc(frame: bytearray, salt: int) -> int:
    return frame_crc(bytes(frame), len(frame), salt)


# ---- the fixed places


@pytest.fixture
def closed(open_wal: OpenWal, wal_dir: Path) -> Path:
    """A clean log of two sealed segments and one more."""
    wal = open_wal()
    fill(wal, 2 * PER_SEGMENT + 40)
    wal.sync()
    wal.close()
    return wal_dir


@pytest.mark.parametrize(
    ("number", "offset", "expected"),
    [
        pytest.param(0, HEADER_OFFSETS[0] + 20, ("segment header", "covered"), id="first-header-copy"),
        pytest.param(0, HEADER_OFFSETS[1] + 20, ("segment header", "covered"), id="second-header-copy"),
        pytest.param(1, LINK_OFFSET + 20, ("link", "covered"), id="link"),
        pytest.param(2, LINK_OFFSET + 20, ("link", "covered"), id="link-of-the-last-segment"),
        pytest.param(0, SEGMENT - FOOTER_BYTES + 20, ("footer", "covered"), id="footer"),
    ],
)
def test_damage_in_a_fixed_place_of_a_segment_is_named(
    closed: Path, kernel: Any, number: int, offset: int, expected: tuple[str, str]
) -> None:
    flip(segment_path(closed, number), offset)
    report = report_log_of(closed, kernel)
    assert kinds(report.findings) == [expected]
    assert report.findings[0].path == str(segment_path(closed, number))
    assert report.findings[0].offset == offset // 512 * 512
    assert bad(report) == []
    assert not report.ok


def test_entries_are_told_apart_without_either_copy_of_the_header(closed: Path, kernel: Any) -> None:
    for offset in HEADER_OFFSETS:
        flip(segment_path(closed, 1), offset + 20)
    report = report_log_of(closed, kernel)
    assert kinds(report.findings) == [("segment header", "damaged")] * 2
    assert len(report) == 2 * PER_SEGMENT + 40
    assert bad(report) == []


@pytest.mark.parametrize("slot", [0, 1])
def test_one_surviving_control_slot_is_named(closed: Path, kernel: Any, slot: int) -> None:
    flip(closed / "control", SLOT_OFFSETS[slot] + LOG_CONTROL.offset_of("oldest_lsn"))
    report = report_log_of(closed, kernel)
    assert kinds(report.findings) == [("control slot", "covered")]
    assert report.findings[0].offset == SLOT_OFFSETS[slot]


@pytest.mark.parametrize("how", ["both-slots", "missing", "empty"])
def test_log_without_a_control_file_is_verified_by_its_segments(closed: Path, kernel: Any, how: str) -> None:
    if how == "missing":
        (closed / "control").unlink()
    elif how == "empty":
        (closed / "control").write_bytes(b"")
    else:
        for offset in SLOT_OFFSETS:
            flip(closed / "control", offset + 100)
    entry = EntryReport(str(segment_path(closed, 1)), DATA_OFFSET + 5 * FRAME_BYTES, 0, True)
    flip(entry.segment, entry.offset + 100)
    report = report_log_of(closed, kernel)
    assert kinds(report.findings)[0] == ("control file", "damaged")
    assert bad(report) == [PER_SEGMENT + 5]
    assert len(report) == 2 * PER_SEGMENT + 40


def test_missing_and_short_segments_are_named(closed: Path, kernel: Any) -> None:
    os.truncate(segment_path(closed, 0), SEGMENT // 2)
    segment_path(closed, 1).unlink()
    report = report_log_of(closed, kernel)
    places = [(finding.what, Path(finding.path).name) for finding in report.findings]
    assert ("segment", segment_path(closed, 0).name) in places
    assert ("segment", segment_path(closed, 1).name) in places


def test_hostile_file_of_overlapping_frames_costs_no_more_than_time(open_wal: OpenWal, kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 3)
    wal.close()
    path = report_log(disk, kernel, "/wal")[0].segment
    salt = _salt_of(disk, path)
    content = bytearray(disk.open(path, writable=False).read(0, SEGMENT))
    for at in range(DATA_OFFSET, SEGMENT - FOOTER_BYTES - 64, 64):
        length = SEGMENT - FOOTER_BYTES - at
        header = dict.fromkeys(FRAME.names, 0) | {"commit": commit_word(salt, at, length), "start_lsn": at, "kind": 1}
        header["vector_bytes"] = length - 64
        content[at : at + 64] = FRAME.pack(**header)
    file = disk.open(path, writable=True)
    file.write(0, bytes(content))
    file.sync()
    report = report_log(disk, kernel, "/wal")
    assert not report.ok


# ---- nothing is wrong, and nothing is found


class Verifying(LogTarget):
    """Verifies each log that comes back from a crash, beside the writer that has opened it."""

    def __init__(self, kernel: str) -> None:
        super().__init__(kernel)
        self.verified = 0

    def glance(self, disk, story):  # type: ignore[no-untyped-def]
        session = self.open(disk, story)
        check_unalarmed(self, disk, "/wal")
        return session.found()


class VerifyingStore(StoreTarget):
    """The same with a store."""

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel)
        self.verified = 0

    def glance(self, disk, story):  # type: ignore[no-untyped-def]
        session = self.open(disk, story)
        report = session.store.verify()
        assert report.findings == (), f"by its writer: {report}"
        check_unalarmed(self, disk, "/store")
        return session.found()


def check_unalarmed(target: Any, disk: SimulatedDisk, place: str) -> None:
    report = verify(place, disk=disk, kernel=target.name[-2:].removeprefix("-"))
    assert report.findings == (), f"after recovery: {report}"
    target.verified += 1


@pytest.mark.parametrize("images", [pytest.param(80, id="80"), pytest.param(1000, id="1000", marks=pytest.mark.slow)])
def test_no_alarm_on_any_log_that_was_recovered_from_a_crash(images: int) -> None:
    target = Verifying("py")
    Explorer(target, seed=3, pace=Pace(images=6, nested_images=4)).run(images)
    assert target.verified >= images // 3


@pytest.mark.parametrize("images", [pytest.param(30, id="30"), pytest.param(500, id="500", marks=pytest.mark.slow)])
def test_no_alarm_on_any_store_that_was_recovered_from_a_crash(images: int) -> None:
    target = VerifyingStore("py")
    Explorer(target, seed=3, pace=Pace(images=6, nested_images=4)).run(images)
    assert target.verified >= images // 3


def test_live_writer_that_rotates_and_recycles_raises_no_alarm(open_wal: OpenWal, kernel: Any) -> None:
    wal = open_wal(runway_segments=2)
    rng = random.Random(1)
    for burst in range(12):
        lsns = fill(wal, rng.randint(1, PER_SEGMENT), burst * 1000)
        if rng.random() < 0.5:
            wal.release(rng.choice(lsns))
        assert wal.verify_wal().findings == ()


def test_verify_of_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(mmwal.StoreMissingError):
        verify(tmp_path)
    with pytest.raises(mmwal.StoreMissingError):
        verify(tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_closed_manager_refuses(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 1)
    wal.close()
    with pytest.raises(mmwal.WalClosedError):
        wal.verify_wal()


def test_finding_says_what_to_do_and_prints_its_place() -> None:
    finding = Finding(what="row", severity="damaged", path="/m", problem="differs", offset=64, lsn=9, id="a")
    assert str(finding) == "damaged row: /m, offset 64, LSN 9, id 'a': differs"
    assert "backup" in finding.advice
