"""Salvage: a log with damage in its middle, read without what is damaged. Only for `skip_corrupted_entries`.

A recovery never does this by itself, since acknowledged entries are lost by it; `RecoveryStats` says which stretches.

* A stretch that was durable and has no whole frame is skipped; the first one that nothing proves durable is the torn
  tail, and ends the log as it does in an ordinary recovery.
* A segment whose header is lost counts if its link or its footer still has its salt, and a frame agrees with that.
* No byte of a segment is changed. The log goes on in a new segment behind all that are there or are known to have been:
  no LSN is given twice. What is salvaged becomes durable with the checkpoints that follow, and only those release the
  old segments. After a crash before that, the same salvage gives the same state again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mmwal.disk.interface import Disk, Lock
from mmwal.errors import HeaderCorruptionError
from mmwal.format.frame import ALIGNMENT
from mmwal.format.segment import data_end, data_start
from mmwal.log.control import LogControl
from mmwal.log.log import Tail
from mmwal.log.reader import Extent, frame_end, map_segment
from mmwal.log.scan import Frames, scan_frames
from mmwal.log.segment import (
    NO_PREDECESSOR,
    SegmentInfo,
    inspect_segment,
    inspect_without_header,
    segment_name,
    segment_number,
)
from mmwal.recovery.recover import Index, check_reaches, order
from mmwal.recovery.tail import Survey

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel


_PREPARED_MOST = 16  # segments that a writer prepares ahead of its cursor, and some


@dataclass(frozen=True)
class Loss:
    """A stretch of the log that was durable and cannot be read; ``path`` is the segment's."""

    path: str
    start_lsn: int
    end_lsn: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}, LSN {self.start_lsn} to {self.end_lsn}: {self.problem}"


@dataclass
class Salvage:
    """What is left of a log: verified frames in order, where they end, and what is lost."""

    control: LogControl
    extents: list[Extent] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of all segments there are
    next_number: int = 0  # the segment in which the log goes on
    end_lsn: int = 0
    durable_lsn: int = 0  # the greatest durable position on record
    bytes_scanned: int = 0

    def index(self, redo_lsn: int, pinned_lsn: int) -> Index:
        """Returns what is left behind a redo point, in order; a transaction that lost an entry is left out whole.

        A checkpoint of it lies behind all old segments. Raises `ConsistencyError`.
        """
        check_reaches(self.control, pinned_lsn)
        extents = [
            replace(extent, frames=extent.frames[extent.frames["start_lsn"] >= pinned_lsn]) for extent in self.extents
        ]
        index = Index(
            [extent for extent in extents if len(extent.frames)],
            redo_lsn,
            data_start(self.next_number, self.control.identity.segment_bytes),
            pinned_lsn=pinned_lsn,
            losses=[str(loss) for loss in self.losses],
        )
        order(index)
        return index

    def survey(self) -> Survey:
        """Returns what a report tells of it."""
        return Survey(
            self.control,
            clean=False,
            end_lsn=self.end_lsn,
            durable_lsn=self.durable_lsn,
            bytes_scanned=self.bytes_scanned,
            reached=list(self.control.reached),
        )

    def tail(self, lock: Lock) -> Tail:
        """Returns what a `Log` is built from: it begins behind everything. What is on record as durable stays so: until
        the checkpoints are there, an ordinary recovery must refuse as before."""
        self.control.store_again()
        return Tail(
            lock=lock,
            control=self.control,
            end_lsn=max(self.end_lsn, self.control.durable_lsn),
            resume=None,
            next_number=self.next_number,
            predecessor=NO_PREDECESSOR,
            sealed=self.numbers,
        )


@dataclass(frozen=True)
class _Part:
    """One segment: its whole frames, and where there is none between or behind them."""

    info: SegmentInfo
    view: memoryview
    frames: Frames
    gaps: list[tuple[int, int]]


def salvage(disk: Disk, kernel: Kernel, wal_dir: str, control: LogControl, known_durable_lsn: int = 0) -> Salvage:
    """Reads everything of a log that is whole, and changes no byte.

    Raises `ForeignDirectoryError` and `FormatVersionError`: what is another's, or a newer mmwal's, is not salvaged.
    """
    size = control.identity.segment_bytes
    floor = max(control.oldest_lsn - 1, 0) // size
    recorded_lsn = max(known_durable_lsn, control.durable_lsn)  # by what was written to say so, not by an entry
    parts: dict[int, _Part | None] = {}
    there = sorted(n for name in disk.list_directory(wal_dir) if (n := segment_number(name)) is not None)
    for number in [number for number in there if number >= floor]:
        info = _inspect(disk, kernel, wal_dir, control, number)
        parts[number] = _read(disk, kernel, info) if info is not None else None
    whole = [number for number, part in parts.items() if part is not None]
    full = [number + 1 for number in whole[-1:] if _is_full(parts[number])]  # what followed it was taken
    last = max([floor - 1, max(recorded_lsn - 1, 0) // size, *whole, *full])
    near = [number for number in there if number <= last + _PREPARED_MOST]  # any other name is somebody's fancy
    found = Salvage(control, numbers=near, next_number=max([last, *near]) + 1, end_lsn=control.oldest_lsn)
    found.durable_lsn = max([recorded_lsn, *map(_proven_by, parts.values())])
    expected = floor
    for number in [*(number for number in near if number >= floor), last + 1]:
        if expected < number and not _lose(found, wal_dir, expected, number, "missing"):
            break
        if number <= last and not _take(found, wal_dir, number, parts):
            break
        expected = number + 1
    return found


def _is_full(part: _Part | None) -> bool:
    """Whether a segment holds frames to the end of its data: such a one has a successor (`recovery/tail.py`)."""
    return part is not None and bool(len(part.frames)) and frame_end(part.frames[-1]) == part.info.data_end_lsn


def _lose(found: Salvage, wal_dir: str, start: int, stop: int, problem: str) -> bool:
    """Notes segments of which nothing is left; returns whether the log goes on behind them: not if they were empty."""
    size = found.control.identity.segment_bytes
    lost = found.durable_lsn > data_start(start, size)
    if lost:
        path = f"{wal_dir}/{segment_name(start)}"
        found.losses.append(Loss(path, data_start(start, size), data_end(stop - 1, size), problem))
    return lost


def _inspect(disk: Disk, kernel: Kernel, wal_dir: str, control: LogControl, number: int) -> SegmentInfo | None:
    """Returns what the fixed places say; None where nothing tells the salt."""
    try:
        return inspect_segment(disk, wal_dir, control.identity, number)
    except HeaderCorruptionError:
        info = inspect_without_header(disk, wal_dir, control.identity, number)
    return info if info is not None and len(_read(disk, kernel, info).frames) else None


def _read(disk: Disk, kernel: Kernel, info: SegmentInfo) -> _Part:
    """Finds every whole frame of a segment."""
    view, at, end = map_segment(disk, info), info.first_lsn, info.end_lsn
    found: list[Frames] = []
    gaps: list[tuple[int, int]] = []
    while at < end:
        frames, stop, _ = scan_frames(kernel, view, info.base_lsn, info.salt, at, end)
        found.append(frames)
        if stop >= end:
            break
        next_at = (
            kernel.find_frame(view, info.base_lsn, info.salt, stop + ALIGNMENT, end) if stop + ALIGNMENT < end else -1
        )
        at = next_at if next_at >= 0 else end
        gaps.append((stop, at))
    return _Part(info, view, np.concatenate(found), gaps)


def _proven_by(part: _Part | None) -> int:
    """Returns the greatest position that a segment proves to have been durable."""
    if part is None:
        return 0
    proofs = [int(part.frames["durable_lsn"].max())] if len(part.frames) else []
    if part.info.footer:
        proofs.append(part.info.end_lsn)
    if part.info.link and part.info.link["previous_number"] != NO_PREDECESSOR.number:
        proofs.append(int(part.info.link["previous_end_lsn"]))
    return max(proofs, default=0)


def _take(found: Salvage, wal_dir: str, number: int, parts: dict[int, _Part | None]) -> bool:
    """Adds a segment to what is left; returns whether the log goes on behind it."""
    part = parts[number]
    if part is None:
        return _lose(found, wal_dir, number, number + 1, "no header, and nothing that stands in for it")
    follows = parts.get(number + 1)
    info = part.info.sealed_by_next(follows.info) if follows and not part.info.footer else part.info
    end_lsn = info.end_lsn
    for start, stop in part.gaps:
        if start >= end_lsn:
            break  # behind the end of a sealed segment there is nothing to miss
        if start >= found.durable_lsn:
            _keep(found, part, start)
            return False
        found.losses.append(Loss(info.path, start, min(stop, end_lsn), "damaged"))
    _keep(found, part, end_lsn)
    return True


def _keep(found: Salvage, part: _Part, end_lsn: int) -> None:
    """Adds the frames of a segment below a position."""
    frames = part.frames[part.frames["start_lsn"] < end_lsn]
    if len(frames):
        found.extents.append(Extent(part.info.path, part.info.base_lsn, part.view, frames))
        found.end_lsn = frame_end(frames[-1])
        found.bytes_scanned += found.end_lsn - part.info.first_lsn
