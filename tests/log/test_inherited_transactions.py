"""A batch larger than a segment is never cut in two by a release, not even by a later process."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mmwal.format.frame import Kind, pack_ids
from mmwal.log.log import Log
from mmwal.log.segment import segment_name
from mmwal.log.transaction import Frame
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import DIMENSION, SEGMENT, fill

FRAMES = 40
ROWS = 64  # of a frame: 4 KiB


class BesideAnother(list[Any]):
    """The frames of a batch; before the last of them, another thread logs something."""

    def __init__(self, frames: list[Any], other: Callable[[], Any]) -> None:
        super().__init__(frames)
        self.other = other
        self.walks = 0  # the first only looks for room

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        for index, frame in enumerate(super().__iter__()):
            if self.walks == 2 and index == FRAMES - 1:
                self.other()
            yield frame


def log_batch_around(log: Log, other: Callable[[], Any]) -> int:
    payload = np.ones(ROWS * DIMENSION, np.float32)
    frames = [
        Frame(Kind.INSERT, 1, ROWS, payload, pack_ids(range(ROWS * index, ROWS * (index + 1))), None)
        for index in range(FRAMES)
    ]
    return log.append_transaction(BesideAnother(frames, other))


def oldest_segment(disk: SimulatedDisk) -> str:
    return next(name for name in disk.list_directory("/wal") if name.startswith("segment"))


def release(wal: WalManager, disk: SimulatedDisk, lsn: int) -> None:
    wal.release(lsn)
    disk.run_workers()


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_release_after_a_restart_keeps_a_batch_that_ends_behind_it(open_wal: OpenWal, damaged: bool) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    inside: list[int] = []
    commit_lsn = log_batch_around(wal._log, lambda: inside.extend(fill(wal, 1)))
    assert SEGMENT < inside[0] < commit_lsn
    later = fill(wal, 40, 100)
    wal.close()
    if damaged:  # nobody can say any more where the batch begins
        file = disk.open(f"/wal/{segment_name(commit_lsn // SEGMENT)}", writable=True)
        file.write(commit_lsn % SEGMENT - 60, b"\xff")

    wal = open_wal(disk=disk)
    release(wal, disk, inside[0])
    assert oldest_segment(disk) == segment_name(0)
    if not damaged:
        rows = [entry for entry in wal.read_all_entries() if entry.lsn == commit_lsn and entry.kind == "batch"]
        assert sum(len(entry.ids) for entry in rows) == FRAMES * ROWS
    release(wal, disk, later[-1])
    assert oldest_segment(disk) == segment_name(commit_lsn // SEGMENT)


def test_release_within_the_same_process_keeps_it_too(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    inside: list[int] = []
    commit_lsn = log_batch_around(wal._log, lambda: inside.extend(fill(wal, 1)))
    release(wal, disk, inside[0])
    assert oldest_segment(disk) == segment_name(0)
    release(wal, disk, commit_lsn)
    assert oldest_segment(disk) == segment_name(commit_lsn // SEGMENT)
