"""Where the log ends after a crash, and what must be durable before it goes on.

`survey` reads and judges, and changes no byte; `repair` writes what the judgement asks for. Not here: what the entries
mean (`recover.py`), the table in which every judgement is a row (`verdicts.py`).

* The sealed part is not scanned: a footer, or the link of the successor, proves that it was durable.
* The unsealed run is scanned. The first invalid frame is the cut, unless something proves durable what lies behind it:
  a later valid frame that recorded a durable position beyond it, a later seal, the control file, the checkpoint.
  Then it is corruption.
* Nothing is appended behind a cut: the segment is zeroed from there, synced, sealed; the log goes on in a new segment.
* Files behind the end lose their names, the last first and each durably before the next, and all before a new segment
  takes one. As they come in order, too, no crash leaves a gap in the numbers: a gap is somebody's hand.
* A full segment has a successor, whose name was durable before its last frame was reserved, and which stays part of the
  log even if it is empty: where it is missing, somebody took it.
* Running it twice, or crashing in it and running it again, gives the same end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmwal.disk.interface import Disk, Lock
from mmwal.errors import LEAVE_OUT, ForeignDirectoryError, SegmentMissingError, WalCorruptionError
from mmwal.format.frame import ALIGNMENT, LENGTH_MASK
from mmwal.format.segment import FOOTER_BYTES, LINK_OFFSET, data_start
from mmwal.kernel.interface import SCAN_NO_FRAME
from mmwal.log.control import LogControl
from mmwal.log.control_file import CONTROL_NAME, TEMPORARY_NAME, open_to_read
from mmwal.log.log import Tail
from mmwal.log.reader import Extent, map_segment
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
from mmwal.verdicts import END, HEADER, JOIN, MARK, NAME, OLDEST, REST, SEAL, Reached, Verdict

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_ZERO_BYTES = 1 << 20
_SPARES_MAX = 4
_LOCK_NAME = "lock"
_KNOWN_NAMES = {CONTROL_NAME: "control", TEMPORARY_NAME: "temporary"}


@dataclass(frozen=True)
class RunSegment:
    """A segment of the unsealed run: what it holds, and where its frames end."""

    info: SegmentInfo
    frames: Frames
    end_lsn: int
    view: memoryview

    def extent(self, start_lsn: int) -> Extent:
        """Returns its frames, from a frame's position on."""
        frames = self.frames[self.frames["start_lsn"] >= start_lsn]
        return Extent(self.info.path, self.info.base_lsn, self.view, frames)


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
    reached: list[Reached] = field(default_factory=list)  # every verdict reached, in the order of the survey
    leftover_numbers: list[int] = field(default_factory=list)  # below the oldest LSN: a retirement was interrupted
    discarded_numbers: list[int] = field(default_factory=list)  # behind the end
    spares: list[str] = field(default_factory=list)

    @property
    def segments(self) -> list[SegmentInfo]:
        """The segments of the log, oldest first."""
        last = [self.resume] if self.resume else []
        return self.sealed + [part.info for part in self.run] + last

    @property
    def notes(self) -> list[str]:
        """What the report says of damage that cost nothing."""
        return [str(note) for note in self.reached if note.verdict.noted]

    def note(self, verdict: Verdict, path: str, detail: str = "") -> Verdict:
        """Adds a verdict to those reached; returns it."""
        self.reached.append(Reached(verdict, path, detail))
        return verdict

    def end_of(self, info: SegmentInfo) -> int:
        """Returns where the frames of one of `segments` end."""
        for part in self.run:
            if part.info.number == info.number:
                return part.end_lsn
        return self.end_lsn if info is self.resume else info.end_lsn


def survey(
    disk: Disk,
    kernel: Kernel,
    wal_dir: str,
    control: LogControl,
    known_durable_lsn: int = 0,
    *,
    reached: list[Reached] | None = None,
) -> Survey:
    """Judges the log of a directory, reading only.

    Args:
        known_durable_lsn: what somebody else proves, a checkpoint.
        reached: where the verdicts go, for whoever wants to see them when it raises, too.

    Raises:
        WalCorruptionError, SegmentMissingError, HeaderCorruptionError, ForeignDirectoryError, FormatVersionError: as
            the table of verdicts says.
    """
    identity = control.identity
    result = Survey(control, control.clean_end_lsn is not None)
    if reached is not None:
        result.reached = reached
    result.reached += control.reached
    floor = max(control.oldest_lsn - 1, 0) // identity.segment_bytes
    result.durable_lsn = max(control.durable_lsn, known_durable_lsn)
    result.end_lsn = control.oldest_lsn
    # 1. names, headers
    numbers = _names(disk, wal_dir, result)
    found = _headers(disk, wal_dir, result, numbers, floor)
    # 2. where the log begins
    _find_oldest(wal_dir, result, numbers, found, floor)
    # 3. the mark of a clean close, or the sealed part and then the unsealed run, and the proofs against its end
    if not _take_mark(wal_dir, result, found, floor):
        number = _follow_sealed(disk, kernel, result, found, floor)
        stop = "full"
        if number is not None:
            stop = _follow_run(disk, kernel, result, found, number)
        _check_end(disk, kernel, wal_dir, result, found, stop)
    result.clean |= control.incarnation == 0  # nobody ever wrote: that is no crash
    # 4. what is left over
    kept = {info.number for info in result.segments}
    result.leftover_numbers = [number for number in numbers if number < floor]
    result.discarded_numbers = [number for number in numbers if number >= floor and number not in kept]
    for where, rest in (("log", kept), ("released", result.leftover_numbers), ("behind", result.discarded_numbers)):
        for number in rest:
            result.note(REST.verdict(where=where), f"{wal_dir}/{segment_name(number)}")
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
    # 2. Only then seals and links, in the order of the log; also the last seal there is: it may be in memory only, or
    #    only the link of a segment that is about to go still tells of it.
    if judged.sealed:
        _seal_again(disk, kernel, judged.sealed[-1])
    for part, segment in zip(judged.run, segments, strict=True):
        if segment.linked:
            segment.store_link_again()
        else:
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


def _names(disk: Disk, wal_dir: str, result: Survey) -> list[int]:
    """Sorts the names into segments, whose numbers it returns, spares, and what is none of ours."""
    numbers = []
    for name in disk.list_directory(wal_dir):
        path, known, kind = f"{wal_dir}/{name}", _KNOWN_NAMES.get(name, "unknown"), "file"
        if (number := segment_number(name)) is not None:
            known = "segment"  # what is no file is refused when its header is read
            numbers.append(number)
        elif is_spare(name):
            known, kind = "spare", "file" if _is_file(disk, path) else "other"
            if kind == "file":
                result.spares.append(name)
        if name != _LOCK_NAME:
            result.note(NAME.verdict(name=known, kind=kind), path)
    return sorted(numbers)


def _is_file(disk: Disk, path: str) -> bool:
    try:
        open_to_read(disk, path, "segment").close()
    except (ForeignDirectoryError, FileNotFoundError):  # a reader's: the writer took it meanwhile
        return False
    return True


def _headers(disk: Disk, wal_dir: str, result: Survey, numbers: list[int], floor: int) -> dict[int, SegmentInfo]:
    """Reads the fixed places of every segment that the control file still needs; of others, only whose they are."""
    found = {}
    for number in numbers:
        released = number < floor
        info = inspect_segment(disk, wal_dir, result.control.identity, number, released=released)
        if info is not None:
            found[number] = info
            result.note(info.header, info.path)
        else:
            verdict = HEADER.verdict(first="blank", second="blank", where="released" if released else "needed")
            result.note(verdict, f"{wal_dir}/{segment_name(number)}")
    return found


def _find_oldest(wal_dir: str, result: Survey, numbers: list[int], found: dict[int, SegmentInfo], floor: int) -> None:
    written = result.control.incarnation > 0 and not result.clean  # it had a first segment before that was recorded
    recorded = result.durable_lsn > data_start(0, result.control.identity.segment_bytes) or written
    verdict = OLDEST.verdict(
        segment="found" if floor in found else "missing",
        recorded=_yes(recorded),
        mark=_yes(result.clean and any(number >= floor for number in numbers)),
    )
    if verdict.error is not None:
        raise verdict.mark(_missing(wal_dir, floor, result.control.oldest_lsn))
    result.note(verdict, f"{wal_dir}/{segment_name(floor)}")


def _take_mark(wal_dir: str, result: Survey, found: dict[int, SegmentInfo], floor: int) -> bool:
    """After a clean close the control file knows the end: nothing is scanned. Returns whether it is taken."""
    end_lsn, size = result.control.clean_end_lsn, result.control.identity.segment_bytes
    if end_lsn is None or not found:
        result.note(MARK.verdict(mark="no"), result.control.path)
        return False
    number = (end_lsn - 1) // size
    info, before = found.get(number), range(floor, number)
    gap = next((n for n in before if n not in found), number)  # the first: the mark may name any number
    passed = end_lsn < result.durable_lsn  # then something else knows of more, and the log must reach that
    end = "missing" if info is None else "closed" if info.footer or end_lsn >= info.data_end_lsn or passed else "open"
    sealed = "missing" if gap < number else "sealed" if all(found[n].footer for n in before) else "unsealed"
    verdict = MARK.verdict(mark="yes", end=end, before=sealed)
    if verdict.error is not None:
        raise verdict.mark(_missing(wal_dir, gap, gap * size))
    result.note(verdict, result.control.path)
    if verdict.label != "mark-taken":
        return False
    result.sealed = [found[n] for n in before]
    result.resume = info
    result.end_lsn = result.durable_lsn = end_lsn
    return True


def _follow_sealed(
    disk: Disk, kernel: Kernel, result: Survey, found: dict[int, SegmentInfo], number: int
) -> int | None:
    """Walks the segments that are proven durable; returns the number behind them, None where nothing goes on."""
    while number in found:
        info, following = found[number], found.get(number + 1)
        if result.sealed and not _joins(disk, kernel, result, result.sealed[-1], info):
            return None
        named = info.sealed_by_next(following) if info.footer is None and following is not None else info
        footer, following_says = "sound" if info.footer else "none", "names" if named is not info else "silent"
        stop = named.end_lsn
        if named is not info:
            stop = _scan(kernel, result, named, map_segment(disk, named), named.end_lsn)[1]
        frames = "whole" if stop == named.end_lsn else "broken"
        verdict = SEAL.verdict(footer=footer, next=following_says, frames=frames)
        if verdict.error is not None:
            raise verdict.mark(_corrupt(info, stop, "the next segment proves that all before it was durable"))
        result.note(verdict, info.path)
        if verdict.label == "seal-open":
            return number
        result.sealed.append(named)
        result.durable_lsn = max(result.durable_lsn, named.end_lsn)
        result.end_lsn = named.end_lsn
        number += 1
    return number


def _joins(disk: Disk, kernel: Kernel, result: Survey, previous: SegmentInfo, info: SegmentInfo) -> bool:
    """Returns whether a segment goes on where a sealed one ended."""
    link = "none"
    if info.link is not None:
        named = (info.link["previous_number"], info.link["previous_end_lsn"])
        link = "names" if named == (previous.number, previous.end_lsn) else "elsewhere"
    before = "full" if previous.end_lsn == previous.data_end_lsn else "cut"
    frames = "silent"
    if (link, before) not in (("names", before), ("none", "full")):
        scanned = _scan(kernel, result, info, map_segment(disk, info), info.end_lsn)[0]
        frames = "record" if len(scanned) and int(scanned["durable_lsn"].max()) >= info.first_lsn else "silent"
    verdict = JOIN.verdict(link=link, before=before, frames=frames)
    if verdict.error is not None:
        raise verdict.mark(
            WalCorruptionError(
                info.path,
                "its link names another end of the segment before, and its entries record that all before them was "
                "durable; restore the directory from a backup",
                offset=LINK_OFFSET,
                lsn=info.first_lsn,
            )
        )
    result.note(verdict, info.path)
    return verdict.label not in ("link-none-cut", "link-elsewhere")


def _follow_run(disk: Disk, kernel: Kernel, result: Survey, found: dict[int, SegmentInfo], number: int) -> str:
    """Scans the unsealed run up to the cut; returns what is there, in the words of the table."""
    while number in found:
        info = found[number]
        if result.run and info.link and info.link["previous_end_lsn"] != result.end_lsn:
            result.note(JOIN.verdict(link="elsewhere", frames="silent"), info.path)
            return "full"
        view = map_segment(disk, info)
        frames, stop, reason = _scan(kernel, result, info, view, info.data_end_lsn)
        broken = stop != info.data_end_lsn and reason != SCAN_NO_FRAME
        if broken:
            result.torn_tail_bytes += _torn_length(disk, info, stop)
        if not len(frames) and not _must_stay(result, number):
            return "broken" if broken else "full"  # nothing was ever published here: not yet part of the log
        result.run.append(RunSegment(info, frames, stop, view))
        result.end_lsn = stop
        if len(frames):
            result.durable_lsn = max(result.durable_lsn, int(frames["durable_lsn"].max()))
        if stop != info.data_end_lsn:
            return "broken" if broken else "nothing"
        number += 1
    return "full"


def _must_stay(result: Survey, number: int) -> bool:
    """Whether a segment belongs to the log even if it is empty: the one before is full, or it is the first one of a log
    that had a writer, or the one that the mark of a clean close names. Were it gone after the next crash, the log would
    seem damaged."""
    if _is_full(result):
        return True
    size, control = result.control.identity.segment_bytes, result.control
    named = [control.oldest_lsn] if control.clean_end_lsn is None else [control.oldest_lsn, control.clean_end_lsn]
    return control.incarnation > 0 and any(number == (lsn - 1) // size for lsn in named)


def _is_full(result: Survey) -> bool:
    """Whether the last segment so far holds frames to the end of its data."""
    return bool(result.segments) and result.end_lsn == result.segments[-1].data_end_lsn


def _check_end(
    disk: Disk, kernel: Kernel, wal_dir: str, result: Survey, found: dict[int, SegmentInfo], stop: str
) -> None:
    """Judges an end: behind it may be what was never durable, and nothing else."""
    end_lsn, size = result.end_lsn, result.control.identity.segment_bytes
    last = result.segments[-1] if result.segments else None
    if last and end_lsn == last.end_lsn:  # full, or sealed before its end: the log goes on in the next segment
        end_lsn = data_start(last.number + 1, size)
    if last is None:  # the segment in which the log begins shows nothing: right only for a log that begins with it
        end_lsn = data_start(max(end_lsn - 1, 0) // size, size)
    proofs = [result.durable_lsn]
    behind_bytes = 0
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
            behind_bytes += int(((beyond["commit"] & np.uint64(LENGTH_MASK)) * np.uint64(ALIGNMENT)).sum())
    result.torn_tail_bytes += behind_bytes
    number = end_lsn // size
    at = found.get(number)
    if at is None and result.control.clean_end_lsn is None:  # names come in order and go in reverse, each one durably
        proofs += [info.first_lsn for info in found.values() if info.number > number]
    proven_lsn = max(proofs)
    verdict = END.verdict(
        stop=stop,
        behind="frames" if behind_bytes else "nothing",
        proof=_yes(proven_lsn > end_lsn or (at is None and _is_full(result))),
        next="missing" if at is None else "found",
    )
    if verdict.label == "end-missing":
        raise verdict.mark(_missing(wal_dir, number, end_lsn))
    if verdict.label == "end-damaged":
        assert at is not None
        raise verdict.mark(_corrupt(at, end_lsn, f"all up to LSN {proven_lsn} was durable"))
    result.note(verdict, f"{wal_dir}/{segment_name(number)}", f"the log ends at LSN {result.end_lsn}")


def _proven_by(info: SegmentInfo, last: SegmentInfo | None) -> int:
    """Returns what a link or footer behind the end proves durable: 0 for a link that belongs to an older end."""
    if info.footer:
        return info.end_lsn
    assert info.link is not None
    if info.link["previous_number"] == NO_PREDECESSOR.number or (last and info.link["previous_number"] <= last.number):
        return 0
    return int(info.link["previous_end_lsn"])


def _look_ahead(disk: Disk, kernel: Kernel, info: SegmentInfo, start_lsn: int) -> Frames:
    try:
        return find_frames(kernel, map_segment(disk, info), info.base_lsn, info.salt, start_lsn, info.data_end_lsn)
    except ValueError as error:
        raise WalCorruptionError(
            info.path,
            f"what lies behind the last whole entry was not written by mmwal ({error}); {LEAVE_OUT}",
            offset=start_lsn - info.base_lsn,
            lsn=start_lsn,
        ) from error


def _scan(kernel: Kernel, result: Survey, info: SegmentInfo, view: memoryview, end_lsn: int) -> tuple[Frames, int, int]:
    frames, stop, reason = scan_frames(kernel, view, info.base_lsn, info.salt, info.first_lsn, end_lsn)
    result.bytes_scanned += stop - info.first_lsn
    return frames, stop, reason


def _torn_length(disk: Disk, info: SegmentInfo, lsn: int) -> int:
    file = disk.open(info.path, writable=False)
    try:
        word = int.from_bytes(file.read(lsn - info.base_lsn, 8), "little")
    finally:
        file.close()
    return min((word & LENGTH_MASK) * ALIGNMENT, info.data_end_lsn - lsn)


def _yes(condition: bool) -> str:
    return "yes" if condition else "no"


def _missing(wal_dir: str, number: int, lsn: int) -> SegmentMissingError:
    return SegmentMissingError(
        f"{wal_dir}/{segment_name(number)}",
        "the segment is missing, and it held durable entries; put the file back, or restore the directory",
        lsn=lsn,
    )


def _corrupt(info: SegmentInfo, lsn: int, proof: str) -> WalCorruptionError:
    return WalCorruptionError(
        info.path,
        f"a damaged entry that was durable ({proof}); {LEAVE_OUT}",
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
    """Makes a footer durable: the one there, which may be in memory only, or a new one from what a link says."""
    segment = open_segment(disk, info)
    if info.lost_its_footer:
        frames, _, _ = scan_frames(kernel, segment.view, info.base_lsn, info.salt, info.first_lsn, info.end_lsn)
        segment.seal(frames, info.end_lsn)
    else:
        offset = info.segment_bytes - FOOTER_BYTES
        segment.mapping.rewrite(offset, FOOTER_BYTES)
        segment.mapping.sync(offset, FOOTER_BYTES)


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
        if number in judged.discarded_numbers[:-1]:
            disk.sync_directory(wal_dir)  # the one behind it is gone: no crash leaves a gap in the numbers
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
