"""Where the log ends after a crash, and what must be durable before it goes on.

`survey` reads and judges, and changes no byte; `repair` writes what the judgement asks for. Not here: what the entries
mean (`recover.py`).

* The sealed part is not scanned: a footer, or the link of the successor, proves that it was durable.
* The unsealed run is scanned. The first invalid frame is the cut, unless something proves durable what lies behind it:
  a later valid frame that recorded a durable position beyond it, a later seal, the control file, the checkpoint.
  Then it is corruption.
* Nothing is appended behind a cut: the segment is zeroed from there, synced, sealed; the log goes on in a new segment.
* Files behind the end lose their names, durably, before a new segment takes one.
* Running it twice, or crashing in it and running it again, gives the same end.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmwal.disk.interface import Disk, Lock
from mmwal.errors import HeaderCorruptionError, SegmentMissingError, WalCorruptionError
from mmwal.format.frame import ALIGNMENT, LENGTH_MASK
from mmwal.format.segment import data_start
from mmwal.kernel.interface import SCAN_NO_FRAME
from mmwal.log.control import LogControl
from mmwal.log.log import Tail
from mmwal.log.scan import Frames, find_frames, scan_frames
from mmwal.log.segment import (
    NO_PREDECESSOR,
    Segment,
    SegmentInfo,
    inspect_segment,
    is_spare,
    open_segment,
    segment_name,
    segment_number,
    spare_name,
)

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_ZERO_BYTES = 1 << 20
_SPARES_MAX = 4


@dataclass(frozen=True)
class RunSegment:
    """A segment of the unsealed run: what it holds, and where its frames end."""

    info: SegmentInfo
    frames: Frames
    end_lsn: int


@dataclass
class Survey:
    """The judgement on a log: what belongs to it, where it ends, and what is left over."""

    control: LogControl
    clean: bool
    sealed: list[SegmentInfo] = field(default_factory=list)
    run: list[RunSegment] = field(default_factory=list)
    resume: SegmentInfo | None = None
    end_lsn: int = 0
    durable_lsn: int = 0  # the greatest durable position on record
    torn_tail_bytes: int = 0
    bytes_scanned: int = 0
    notes: list[str] = field(default_factory=list)
    leftover_numbers: list[int] = field(default_factory=list)  # below the oldest LSN: a retirement was interrupted
    discarded_numbers: list[int] = field(default_factory=list)  # behind the end
    spares: list[str] = field(default_factory=list)

    @property
    def segments(self) -> list[SegmentInfo]:
        """The segments of the log, oldest first."""
        last = [self.resume] if self.resume else []
        return self.sealed + [part.info for part in self.run] + last

    def end_of(self, info: SegmentInfo) -> int:
        """Returns where the frames of one of `segments` end."""
        for part in self.run:
            if part.info.number == info.number:
                return part.end_lsn
        return self.end_lsn if info is self.resume else info.end_lsn


def survey(disk: Disk, kernel: Kernel, wal_dir: str, control: LogControl, known_durable_lsn: int = 0) -> Survey:
    """Judges the log of a directory, reading only. ``known_durable_lsn``: what somebody else proves, a checkpoint.

    Raises `WalCorruptionError`, `SegmentMissingError`, `HeaderCorruptionError` and the errors of `inspect_segment`.
    """
    identity = control.identity
    names = disk.list_directory(wal_dir)
    numbers = sorted(number for name in names if (number := segment_number(name)) is not None)
    floor = max(control.oldest_lsn - 1, 0) // identity.segment_bytes
    found = {
        number: info
        for number in numbers
        if number >= floor and (info := inspect_segment(disk, wal_dir, identity, number)) is not None
    }
    for number in numbers:
        if number < floor:
            with suppress(HeaderCorruptionError):  # what is to be removed may be damaged, but not another store's
                inspect_segment(disk, wal_dir, identity, number)
    result = Survey(control, control.clean_end_lsn is not None)
    result.leftover_numbers = [number for number in numbers if number < floor]
    result.spares = [name for name in names if is_spare(name)]
    result.notes = [
        f"{info.path}: one of two header copies is damaged" for info in found.values() if info.header_copies < 2
    ]
    result.durable_lsn = max(control.durable_lsn, known_durable_lsn)
    result.end_lsn = control.oldest_lsn

    if floor not in found and (
        result.durable_lsn > data_start(0, identity.segment_bytes) or (result.clean and numbers)
    ):
        raise _missing(wal_dir, floor, control.oldest_lsn)
    clean_end = control.clean_end_lsn
    if clean_end is not None and _take_clean(result, found, floor, clean_end):
        _require(wal_dir, result, floor)
    else:
        number = _follow_sealed(disk, kernel, result, found, floor)
        if not result.sealed or found.get(number) is None or _continues(result.sealed[-1], found[number]):
            _follow_run(disk, kernel, result, found, number)
        _check_end(disk, kernel, wal_dir, result, found)
    result.clean |= control.incarnation == 0  # nobody ever wrote: that is no crash
    kept = {info.number for info in result.segments}
    result.discarded_numbers = [number for number in numbers if number >= floor and number not in kept]
    return result


def repair(disk: Disk, kernel: Kernel, wal_dir: str, lock: Lock, judged: Survey) -> Tail:
    """Makes the end of the log durable and clears what lies behind it; returns what a `Log` is built from."""
    predecessor = judged.sealed[-1].predecessor if judged.sealed else NO_PREDECESSOR
    # 1. What may be in memory only, also of the control file, is stored over itself; the tail is zeroed behind the
    #    cut; all of it is synced.
    judged.control.store_again()
    segments = [open_segment(disk, part.info) for part in judged.run]
    for part, segment in zip(judged.run, segments, strict=True):
        _store_again(judged, part, segment)
    # 2. Only then seals and links, in the order of the log; also the seal of which only the link of a segment that is
    #    about to go still tells.
    if judged.sealed and judged.sealed[-1].lost_its_footer:
        _seal_again(disk, kernel, judged.sealed[-1])
    for part, segment in zip(judged.run, segments, strict=True):
        if not segment.linked:
            segment.link(predecessor)
        predecessor = segment.seal(part.frames, part.end_lsn)
    # 3. Files outside the log lose their names before any of those names is used again.
    spares = _clear(disk, wal_dir, judged)
    last = (
        judged.segments[-1].number if judged.segments else judged.end_lsn // judged.control.identity.segment_bytes - 1
    )
    return Tail(
        lock=lock,
        control=judged.control,
        end_lsn=judged.end_lsn,
        resume=judged.resume,
        next_number=last + 1,
        predecessor=predecessor,
        sealed=[info.number for info in judged.segments if info is not judged.resume],
        spares=spares,
    )


# -- the survey, step by step -------------------------------------------------------------------------------------


def _take_clean(result: Survey, found: dict[int, SegmentInfo], floor: int, end_lsn: int) -> bool:
    """After a clean close the control file knows the end: nothing is scanned."""
    if not found:
        result.end_lsn = end_lsn
        return True
    number = (end_lsn - 1) // result.control.identity.segment_bytes
    info = found.get(number)
    if info is not None and (info.footer is not None or end_lsn >= info.data_end_lsn):
        return False  # sealed, or full to the brim: the ordinary way finds the same end
    if any(found[n].footer is None for n in range(floor, number) if n in found):
        return False  # a damaged footer: the ordinary way looks for the link that stands in for it
    result.sealed = [found[n] for n in range(floor, number) if n in found]
    result.resume = info
    result.end_lsn = result.durable_lsn = end_lsn
    return True


def _require(wal_dir: str, result: Survey, floor: int) -> None:
    size = result.control.identity.segment_bytes
    present = {info.number for info in result.segments}
    for number in range(floor, (result.end_lsn - 1) // size + 1):
        if number not in present and result.end_lsn > data_start(0, size):
            raise _missing(wal_dir, number, number * size)


def _follow_sealed(disk: Disk, kernel: Kernel, result: Survey, found: dict[int, SegmentInfo], number: int) -> int:
    """Walks the segments that are proven durable; returns the number of the first that is not."""
    while number in found:
        info, following = found[number], found.get(number + 1)
        if result.sealed and not _continues(result.sealed[-1], info):
            return number
        if info.footer is None and following is not None:
            info = info.sealed_by_next(following)
            if info.footer is not None:
                result.notes.append(
                    f"{info.path}: the footer is damaged; the link of the next segment stands in for it"
                )
                _verify_whole(disk, kernel, result, info)
        if info.footer is None:
            return number
        result.sealed.append(info)
        result.durable_lsn = max(result.durable_lsn, info.end_lsn)
        result.end_lsn = info.end_lsn
        number += 1
    return number


def _continues(previous: SegmentInfo, info: SegmentInfo) -> bool:
    """Whether a segment goes on where a sealed one ended: by its link, or, without one, behind a full segment."""
    if info.link is None:
        return previous.end_lsn == previous.data_end_lsn
    return (info.link["previous_number"], info.link["previous_end_lsn"]) == (previous.number, previous.end_lsn)


def _verify_whole(disk: Disk, kernel: Kernel, result: Survey, info: SegmentInfo) -> None:
    _, stop, _ = _scan(disk, kernel, result, info, info.end_lsn)
    if stop != info.end_lsn:
        raise _corrupt(info, stop, "the next segment proves that all before it was durable")


def _follow_run(disk: Disk, kernel: Kernel, result: Survey, found: dict[int, SegmentInfo], number: int) -> None:
    """Scans the unsealed run up to the cut."""
    while number in found:
        info = found[number]
        if result.run and info.link and info.link["previous_end_lsn"] != result.end_lsn:
            return
        frames, stop, reason = _scan(disk, kernel, result, info, info.data_end_lsn)
        if not len(frames):
            return  # nothing was ever published here: not yet part of the log
        result.run.append(RunSegment(info, frames, stop))
        result.end_lsn = stop
        result.durable_lsn = max(result.durable_lsn, int(frames["durable_lsn"].max()))
        if stop != info.data_end_lsn:
            if reason != SCAN_NO_FRAME:
                result.torn_tail_bytes += _torn_length(disk, info, stop)
            return
        number += 1


def _check_end(disk: Disk, kernel: Kernel, wal_dir: str, result: Survey, found: dict[int, SegmentInfo]) -> None:
    """Refuses an end behind which something was durable."""
    end_lsn, size = result.end_lsn, result.control.identity.segment_bytes
    last = result.segments[-1] if result.segments else None
    if last and end_lsn == last.end_lsn:  # full, or sealed before its end: the log goes on in the next segment
        end_lsn = data_start(last.number + 1, size)
    if last is None:  # the segment in which the log begins shows nothing: right only for a log that begins with it
        end_lsn = data_start(max(end_lsn - 1, 0) // size, size)
    proofs = [result.durable_lsn]
    for number, info in found.items():
        if last and number < last.number:
            continue
        start = info.first_lsn
        if last and number == last.number:
            if last.footer is not None or end_lsn >= last.data_end_lsn:
                proofs.append(last.end_lsn)
                continue  # the look-ahead never crosses a sealed end
            start = end_lsn + ALIGNMENT
        elif info.link or info.footer:
            proofs.append(_proven_by(info, last))
        beyond = _look_ahead(disk, kernel, info, start)
        if len(beyond):
            proofs.append(int(beyond["durable_lsn"].max()))
            result.torn_tail_bytes += int(((beyond["commit"] & np.uint64(LENGTH_MASK)) * np.uint64(ALIGNMENT)).sum())
    proven_lsn = max(proofs)
    if proven_lsn <= end_lsn:
        return
    if last is None or end_lsn == data_start(last.number + 1, size):
        number = end_lsn // size
        if number not in found:
            raise _missing(wal_dir, number, end_lsn)
        raise _corrupt(found[number], end_lsn, f"all up to LSN {proven_lsn} was durable")
    raise _corrupt(last, end_lsn, f"all up to LSN {proven_lsn} was durable")


def _proven_by(info: SegmentInfo, last: SegmentInfo | None) -> int:
    """Returns what a link or footer behind the end proves durable: 0 for a link that belongs to an older end."""
    if info.footer:
        return info.end_lsn
    assert info.link is not None
    if info.link["previous_number"] == NO_PREDECESSOR.number or (last and info.link["previous_number"] <= last.number):
        return 0
    return int(info.link["previous_end_lsn"])


def _look_ahead(disk: Disk, kernel: Kernel, info: SegmentInfo, start_lsn: int) -> Frames:
    mapped = _Mapped(disk, info)
    try:
        return find_frames(kernel, mapped.view, info.base_lsn, info.salt, start_lsn, info.data_end_lsn)
    except ValueError as error:
        raise WalCorruptionError(
            info.path,
            f"what lies behind the last whole entry was not written by mmwal ({error}); restore the file from a backup",
            offset=start_lsn - info.base_lsn,
            lsn=start_lsn,
        ) from error


def _scan(disk: Disk, kernel: Kernel, result: Survey, info: SegmentInfo, end_lsn: int) -> tuple[Frames, int, int]:
    mapped = _Mapped(disk, info)
    frames, stop, reason = scan_frames(kernel, mapped.view, info.base_lsn, info.salt, info.first_lsn, end_lsn)
    result.bytes_scanned += stop - info.first_lsn
    return frames, stop, reason


class _Mapped:
    """A read-only view of a segment."""

    def __init__(self, disk: Disk, info: SegmentInfo) -> None:
        file = disk.open(info.path, writable=False)
        try:
            self.view = file.map(info.segment_bytes, writable=False).view
        finally:
            file.close()


def _torn_length(disk: Disk, info: SegmentInfo, lsn: int) -> int:
    file = disk.open(info.path, writable=False)
    try:
        word = int.from_bytes(file.read(lsn - info.base_lsn, 8), "little")
    finally:
        file.close()
    return min((word & LENGTH_MASK) * ALIGNMENT, info.data_end_lsn - lsn)


def _missing(wal_dir: str, number: int, lsn: int) -> SegmentMissingError:
    return SegmentMissingError(
        f"{wal_dir}/{segment_name(number)}",
        "the segment is missing, and it held durable entries; put the file back, or restore the directory",
        lsn=lsn,
    )


def _corrupt(info: SegmentInfo, lsn: int, proof: str) -> WalCorruptionError:
    return WalCorruptionError(
        info.path,
        f"a damaged entry that was durable ({proof}); restore the file from a backup",
        offset=lsn - info.base_lsn,
        lsn=lsn,
    )


# -- the repair, step by step -------------------------------------------------------------------------------------


def _store_again(judged: Survey, part: RunSegment, segment: Segment) -> None:
    start = max(judged.durable_lsn, part.info.first_lsn) - part.info.base_lsn
    end = part.end_lsn - part.info.base_lsn
    if start < end:
        segment.mapping.rewrite(start, end - start)
    stop = part.info.data_end_lsn - part.info.base_lsn
    for offset in range(end, stop, _ZERO_BYTES):
        size = min(_ZERO_BYTES, stop - offset)
        segment.view[offset : offset + size] = bytes(size)
    start = min(start, end)
    segment.mapping.sync(start, stop - start)


def _seal_again(disk: Disk, kernel: Kernel, info: SegmentInfo) -> None:
    segment = open_segment(disk, info)
    frames, _, _ = scan_frames(kernel, segment.view, info.base_lsn, info.salt, info.first_lsn, info.end_lsn)
    segment.seal(frames, info.end_lsn)


def _clear(disk: Disk, wal_dir: str, judged: Survey) -> list[str]:
    """Keeps some files of the right size as spares and removes the others; returns the spares' names.

    What had a segment's name, and may still be read by somebody who saw it, is not reused.
    """
    spares: list[str] = []
    readers = disk.has_readers(judged.control.path)
    for name in judged.spares:
        if not _worth_keeping(disk, f"{wal_dir}/{name}", judged, spares):
            disk.unlink(f"{wal_dir}/{name}")
        else:
            spares.append(name)
    for number in judged.leftover_numbers + judged.discarded_numbers[::-1]:
        path = f"{wal_dir}/{segment_name(number)}"
        if readers or not _worth_keeping(disk, path, judged, spares):
            disk.unlink(path)
        else:
            spares.append(spare_name(disk))
            disk.rename(path, f"{wal_dir}/{spares[-1]}")
    disk.sync_directory(wal_dir)
    return spares


def _worth_keeping(disk: Disk, path: str, judged: Survey, spares: list[str]) -> bool:
    if len(spares) >= _SPARES_MAX:
        return False
    file = disk.open(path, writable=False)
    try:
        return file.size() == judged.control.identity.segment_bytes
    finally:
        file.close()
