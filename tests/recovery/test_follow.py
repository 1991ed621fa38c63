"""Following a log that grows: at every step of a writer, of a recovery, and of one that is killed and runs again.

The reader sees the frames of the log, each once, in order, and none that recovery leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from mmwal.errors import (
    ForeignDirectoryError,
    LsnUnavailableError,
    SegmentMissingError,
    StoreMissingError,
    WalCorruptionError,
)
from mmwal.format.frame import ROW_KINDS
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, LINK_OFFSET, data_end, data_start
from mmwal.log.control import open_control
from mmwal.log.reader import decode_entry, frame_end
from mmwal.log.segment import segment_name
from mmwal.manager import WalManager
from mmwal.recovery.follow import Walk
from mmwal.testing.simulator import SimulatedDisk
from tests.log.logs import ROOM, config, fill
from tests.log.logs import SEGMENT as SIZE

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

PER_SEGMENT = ROOM // 192
assert PER_SEGMENT * 192 == ROOM  # so that entries fill a segment to the brim


class Killed(BaseException):
    """The writer is gone: raised from a step of its."""


class Reader:
    """A walk over a log on a simulated disk, and all that it has shown."""

    def __init__(self, disk: SimulatedDisk, kernel: Any, lsn: int = DATA_OFFSET) -> None:
        control = open_control(disk, "/wal")
        assert control is not None
        self.identity = control.identity
        self.lock = disk.lock_shared("/wal/control")
        self.walk = Walk(disk, kernel, "/wal", self.identity, (), lsn)
        self.seen: list[tuple[int, Any]] = []

    def read(self, how: str = "look") -> list[Any]:
        """Reads on as far as it goes; returns the ids that are new."""
        found = []
        while (extent := getattr(self.walk, how)()) is not None:
            for frame in extent.frames:
                if int(frame["kind"]) in ROW_KINDS:
                    entry = decode_entry(extent, frame, frame_end(frame), self.identity)
                    assert (entry.vector == int(str(entry.id).removeprefix("id-"))).all()
                    found.append((entry.lsn, entry.id))
        self.seen += found
        return [id for _, id in found]


def open_wal(disk: SimulatedDisk, kernel: Any) -> WalManager:
    return WalManager(config("/wal", kernel, max_wal_size=64 * SIZE), disk=disk)


def die(wal: WalManager) -> None:
    """Lets a writer go as a kill does: its lock is free, its files stay as they are."""
    log = wal._log
    assert log.keeper.worker is not None
    log.keeper.worker.stop()
    log._syncer.stop()
    log._lock.release()


def entries_of(wal: WalManager) -> list[tuple[int, Any]]:
    return [(entry.lsn, entry.id) for entry in wal.iter_entries()]


def names(first: int, count: int) -> list[str]:
    return [f"id-{number}" for number in range(first, first + count)]


def overwrite(disk: SimulatedDisk, number: int, offset: int, content: bytes) -> None:
    file = disk.open(f"/wal/{segment_name(number)}", writable=True)
    file.write(offset, content)
    file.close()


def killed_log(kernel: Any, count: int, hole: int | None = None) -> SimulatedDisk:
    """What a kill left of a log of so many entries, nothing of it synced, the one at `hole` not finished."""
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    lsns = []
    for number in range(count):
        lsns += fill(wal, 1, number)
        if number % PER_SEGMENT == 0:
            disk.run_workers()
    left = disk.kill()
    if hole is not None:
        number, offset = divmod(lsns[hole] - 192, SIZE)
        overwrite(left, number, offset, bytes(8))
    return left


# -- a writer, a recovery, a kill


@pytest.mark.parametrize("how", ["look", "step"])
def test_frames_come_as_they_are_published_across_segments(kernel: Any, how: str) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    reader = Reader(disk, kernel)
    for number in range(0, 2000, 20):
        fill(wal, 20, number)
        assert reader.read(how) == names(number, 20)
        disk.run_workers()
        assert reader.read(how) == []
    assert reader.walk.lsn > 5 * SIZE


@pytest.mark.parametrize(
    ("count", "hole"),
    [
        (10, None),  # in the middle of a segment
        (PER_SEGMENT, None),  # at its very end: the next one stays
        (2 * PER_SEGMENT + 5, None),
        (PER_SEGMENT + 20, PER_SEGMENT - 3),  # what stands in the next segment goes
        (2 * PER_SEGMENT + 20, PER_SEGMENT + 30),
    ],
)
def test_recovery_killed_at_each_step_shows_every_frame_once(kernel: Any, count: int, hole: int | None) -> None:
    left = killed_log(kernel, count, hole)
    kept = names(0, count if hole is None else hole)

    def recovered(kill_at: int, again_at: int | None = None) -> None:
        """Recovers, killed at a step and, recovering again, at another; then writes more."""
        disk = left.kill()
        reader = Reader(disk, kernel)
        assert reader.read() == kept
        for stop in (kill_at, again_at):
            if stop is not None:
                disk.on_step = counted(stop, reader)
                with suppress(Killed):
                    wal = open_wal(disk, kernel)
                    disk.on_step = None
                    fill(wal, 3, 1000)
                    die(wal)
                disk.on_step = None
                reader.read()
        disk.on_step = counted(0, reader)
        wal = open_wal(disk, kernel)
        for number in range(2000, 2000 + 2 * PER_SEGMENT, 50):
            fill(wal, 50, number)
            disk.run_workers()
        reader.read()
        assert reader.seen == entries_of(wal)
        assert [id for _, id in reader.seen][: len(kept)] == kept
        die(wal)

    steps = 0

    def counted(stop: int, reader: Reader) -> Callable[..., None]:
        nonlocal steps
        steps = 0

        def step(*_: Any) -> None:
            nonlocal steps
            steps += 1
            reader.read()
            if steps == stop:
                raise Killed

        return step

    disk = left.kill()
    disk.on_step = counted(0, Reader(disk, kernel))
    die(open_wal(disk, kernel))
    every = steps
    assert every > 15
    for stop in range(1, every + 1):
        recovered(stop, again_at=stop * 7 % every + 1 if stop % 2 else None)


def test_segment_prepared_and_replaced_before_its_first_frame_is_looked_for_again(kernel: Any) -> None:
    disk = killed_log(kernel, 10)
    reader = Reader(disk, kernel)
    reader.read()
    for _ in range(3):  # each recovery links a new segment 1 to the cut, and is killed before it writes there
        die(open_wal(disk, kernel))
        assert reader.read() == []
        assert reader.walk.lsn == data_start(1, SIZE)
    wal = open_wal(disk, kernel)
    fill(wal, 5, 100)
    assert reader.read("step") == []
    assert reader.read() == names(100, 5)
    assert reader.seen == entries_of(wal)


# -- what is waited for, and what is damage


def test_unfinished_frame_is_waited_for_and_what_stands_behind_it_is_not_shown(kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    lsns = fill(wal, 10)
    segment = wal._log._attached[0]
    word = bytes(segment.view[lsns[4] : lsns[4] + 8])
    segment.view[lsns[4] : lsns[4] + 8] = bytes(8)
    reader = Reader(disk, kernel)
    assert reader.read() == names(0, 5)
    assert reader.read() == []
    segment.view[lsns[4] : lsns[4] + 8] = word
    assert reader.read() == names(5, 5)


def test_torn_frame_that_nothing_proves_durable_is_waited_for(kernel: Any) -> None:
    disk = killed_log(kernel, 10)
    end = DATA_OFFSET + 9 * 192
    overwrite(disk, 0, end + 80, b"torn")
    reader = Reader(disk, kernel)
    assert reader.read() == names(0, 9)
    wal = open_wal(disk, kernel)
    fill(wal, 5, 100)
    assert reader.read() == names(100, 5)
    assert reader.seen == entries_of(wal)


@pytest.mark.parametrize("at", [0, 90], ids=["commit word", "vector"])
def test_frame_of_a_sealed_segment_that_is_damaged_is_an_error(kernel: Any, at: int) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    lsns = fill(wal, PER_SEGMENT + 1)
    wal.sync()
    disk.run_workers()
    overwrite(disk, 0, lsns[6] + at, b"damaged!")
    reader = Reader(disk, kernel)
    with pytest.raises(WalCorruptionError) as caught:
        reader.read("step")
    assert (caught.value.offset, caught.value.lsn) == (lsns[6], lsns[6])
    assert reader.walk.lsn == lsns[6]


def test_damaged_frame_that_the_control_file_proves_durable_is_an_error(kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    lsns = fill(wal, 10)
    reader = Reader(disk, kernel)
    wal.sync()
    wal._log.control.write_both(durable_lsn=wal.durable_lsn)
    overwrite(disk, 0, lsns[8] + 90, b"damaged")
    assert reader.read("step") == names(0, 9)
    with pytest.raises(WalCorruptionError, match="restore the file") as caught:
        reader.read()
    assert (caught.value.offset, caught.value.lsn) == (lsns[8], lsns[8])


def test_segment_that_was_let_go_of_before_it_was_read_is_an_error_that_names_the_oldest(kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    reader = Reader(disk, kernel)
    fill(wal, 10)
    assert reader.read() == names(0, 10)
    lsns = fill(wal, 5 * PER_SEGMENT, 10)
    for lsn in lsns[:: PER_SEGMENT // 2]:
        wal.release(lsn)
        disk.run_workers()
    with pytest.raises(LsnUnavailableError, match="does not reach back") as caught:
        reader.read()
    assert reader.walk.lsn == caught.value.lsn == data_end(0, SIZE)  # what was mapped was read
    control = open_control(disk, "/wal")
    assert control is not None
    assert caught.value.oldest_lsn == control.released_lsn > 4 * SIZE


def test_missing_segment_that_nobody_let_go_of_is_damage(kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk, kernel)
    reader = Reader(disk, kernel)
    fill(wal, 2 * PER_SEGMENT + 10)
    wal.sync()
    disk.run_workers()
    wal._log.control.write_both(durable_lsn=wal.durable_lsn)
    disk.unlink(f"/wal/{segment_name(1)}")
    with pytest.raises(SegmentMissingError, match="put the file back") as caught:
        reader.read()
    assert caught.value.path.endswith(segment_name(1))
    assert reader.walk.lsn == data_end(0, SIZE)


def test_cut_that_only_the_next_link_tells_of_is_passed(kernel: Any) -> None:
    disk = killed_log(kernel, 10)
    wal = open_wal(disk, kernel)
    fill(wal, 5, 100)
    overwrite(disk, 0, SIZE - FOOTER_BYTES, bytes(FOOTER_BYTES))
    reader = Reader(disk, kernel)
    assert reader.read("step") == names(0, 10)
    assert reader.read() == names(100, 5)


def test_behind_a_cut_only_the_segment_that_links_to_it_goes_on(kernel: Any) -> None:
    disk = killed_log(kernel, 10)
    wal = open_wal(disk, kernel)
    fill(wal, 5, 100)
    file = disk.open(f"/wal/{segment_name(1)}", writable=True)
    link = file.read(LINK_OFFSET, 512)
    file.write(LINK_OFFSET, bytes(512))
    reader = Reader(disk, kernel)
    assert reader.read("step") == names(0, 10)
    file.write(LINK_OFFSET, link)
    assert reader.read("step") == names(100, 5)


def test_log_that_is_another_one_by_now_or_none_is_an_error(kernel: Any) -> None:
    disk = SimulatedDisk()
    fill(open_wal(disk, kernel), 3)
    reader = Reader(disk, kernel)
    reader.read()
    for name in disk.list_directory("/wal"):
        disk.unlink(f"/wal/{name}")
    with pytest.raises(StoreMissingError):
        reader.read()
    open_wal(disk, kernel)
    with pytest.raises(ForeignDirectoryError, match="another log"):
        reader.read()
