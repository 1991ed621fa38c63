"""A log against what was recorded: control slots, segment headers, links, footers, every entry.

        1. control     who the log is; where that is lost, a segment tells
        2. survey      where the log ends, by the judgement of opening; or why it would be refused
        3. segments    one after the other, from the oldest: the fixed places, then every frame
        4. order       missing segments; transactions against their commits

Not here: a whole directory (`verify.py`), the data (`checkpoint/verify.py`), what opening does about it (`tail.py`).

* It changes nothing, creates nothing and never raises on damage: what is wrong becomes a `Finding`.
* A damaged entry hides no other: behind it the walk goes on at the next position that carries a commit word of this
  segment, whatever the damaged length says. Frames that stand back to back are told apart even where all are damaged.
* An invalid frame is damage below a position that something proves durable; above, it is a torn tail.
* Memory: one segment.
* Beside a live writer, a failure is believed when it is there a second time and the segment still belongs to the log.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from mmwal.checkpoint.verify import Moved, ReadingDisk, read_what_can_be, verify_slots
from mmwal.disk.interface import Disk
from mmwal.entry import EntryReport, Finding, Severity
from mmwal.errors import DamageError, OpenError
from mmwal.format.control import LOG_CONTROL
from mmwal.format.frame import (
    ALIGNMENT,
    CHECKPOINT,
    COMMIT,
    HEADER_BYTES,
    LENGTH_MASK,
    Kind,
    commit_word,
)
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    FORMAT_VERSION,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    SECTOR_BYTES,
    SEGMENT_HEADER,
    data_end,
    data_start,
)
from mmwal.kernel.interface import SCAN_END
from mmwal.log.control import LogControl, LogIdentity, open_control
from mmwal.log.control_file import CONTROL_NAME, read_control
from mmwal.log.reader import frame_ends
from mmwal.log.scan import Frames, scan_frames
from mmwal.log.segment import segment_name, segment_number
from mmwal.recovery.read_only import settled
from mmwal.recovery.tail import Survey, survey

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_SUMS = frozenset((Kind.COMMIT, Kind.PREPARE))  # frames that say what the members are
_WASTE_MOST = 8  # times the size of a segment, spent on frames that are wrong in their checksum only
_SEARCH_STEP = 1 << 16

Told = Callable[[EntryReport], None]


class Gap(NamedTuple):
    """A range of a segment where a frame should be and no valid one is."""

    start_lsn: int
    end_lsn: int
    problem: str


@dataclass
class LogCheck:
    """What was found in a log, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    identity: LogIdentity | None = None
    clean: bool = False  # closed cleanly, so no crash may have torn anything
    owned: bool = False
    segments: int = 0
    entries: int = 0
    slots: int = 0
    bytes_read: int = 0
    first_lsn: int = 0
    last_lsn: int = 0
    checkpoint_noted: int = 0


def verify_log(
    disk: Disk,
    kernel: Kernel,
    wal_dir: str,
    *,
    published_lsn: int | None = None,
    known_durable_lsn: int = 0,
    told: Told | None = None,
    moved: Moved = lambda _: None,
) -> LogCheck:
    """Compares a log with its checksums.

    Args:
        published_lsn: where the log ends, from a writer of this process that is alive and well.
        known_durable_lsn: what a checkpoint proves durable.
        told: gets a report of each entry, oldest first.
        moved: told, now and then, how many more bytes were looked at.
    """
    walk = _LogWalk(cast(Disk, ReadingDisk(disk)), kernel, wal_dir, published_lsn, known_durable_lsn, told, moved)
    walk.run()
    return walk.check


def verify_segment(disk: Disk, kernel: Kernel, path: str, told: Told | None = None) -> LogCheck:
    """Compares one segment file, wherever it is, with its checksums; as `verify_log`."""
    walk = _LogWalk(cast(Disk, ReadingDisk(disk)), kernel, "", None, 0, told, lambda _: None, path)
    walk.run()
    return walk.check


# -- the walk -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fixed:
    """A segment whose salt is known: what its fixed places say, None where they say nothing."""

    path: str
    number: int
    salt: int
    segment_bytes: int
    footer: dict[str, Any] | None
    link: dict[str, Any] | None

    @property
    def base_lsn(self) -> int:
        return self.number * self.segment_bytes

    @property
    def first_lsn(self) -> int:
        return data_start(self.number, self.segment_bytes)

    @property
    def data_end_lsn(self) -> int:
        return data_end(self.number, self.segment_bytes)

    def sealed_end(self, following: _Fixed | None) -> int | None:
        """Returns where the frames end, if the footer or the next segment's link says so."""
        if self.footer is not None:
            return int(self.footer["end_lsn"])
        link = following.link if following is not None else None
        return int(link["previous_end_lsn"]) if link and link["previous_number"] == self.number else None


@dataclass
class _Place:
    """What the fixed places of a segment file say, and what is wrong with them."""

    number: int
    path: str
    info: _Fixed | None
    findings: list[Finding]
    size: int = 0
    link_is_blank: bool = True
    footer_is_blank: bool = True


@dataclass
class _Part:
    """What a segment was found to hold."""

    findings: list[Finding] = field(default_factory=list)
    reports: list[EntryReport] = field(default_factory=list)
    entries: int = 0
    bytes_read: int = 0
    members: list[tuple[np.void, bytes]] = field(default_factory=list)  # frames of transactions, and commit payloads
    checkpoint_noted: int = 0
    has_gap: bool = False
    ended: bool = False  # the log ends here


class _LogWalk:
    """The steps that stand at the top of this file; with ``file``, of one segment alone, wherever it is."""

    def __init__(
        self,
        disk: Disk,
        kernel: Kernel,
        wal_dir: str,
        published_lsn: int | None,
        known_durable_lsn: int,
        told: Told | None,
        moved: Moved,
        file: str | None = None,
    ) -> None:
        self._file = file
        self.check = LogCheck()
        self._disk = disk
        self._kernel = kernel
        self._wal_dir = wal_dir
        self._published_lsn = published_lsn
        self._proven_lsn = known_durable_lsn
        self._told = told
        self._moved = moved
        self._judged: Survey | None = None
        self._identity: LogIdentity
        self._transactions: dict[int, tuple[int, int, int, int]] = {}  # number: first LSN, frames, rows, CRC of CRCs
        self._last_gap_lsn = -1

    def run(self) -> None:
        # 1. Who the log is.
        control = self._read_control() if self._file is None else self._control_of_file(self._file)
        if control is None:
            return
        self._identity = self.check.identity = control.identity
        self.check.owned = control.owned
        self.check.clean = control.clean_end_lsn is not None and self._published_lsn is None
        self.check.first_lsn = control.oldest_lsn
        # 2. Where it ends.
        refusal = self._judge(control) if self._file is None else None
        # 3. What it holds.
        floor = max(control.oldest_lsn - 1, 0) // self._identity.segment_bytes
        numbers = self._numbers() if self._file is None else [floor]
        places = {number: self._inspect(number) for number in numbers if number >= floor}
        if self._judged is None and self._published_lsn is None:
            self._find_proofs(places)
        self._walk_segments(places, floor)
        # 4. What opening refuses is damage, even where nothing above has met it.
        damaged = {finding.path for finding in self.check.findings if finding.severity == "damaged"}
        if refusal is not None and (_path_of(refusal) or self._wal_dir) not in damaged:
            self.check.findings.append(_of_error("log", refusal, self._wal_dir))

    # -- step 1: the control file

    def _read_control(self) -> LogControl | None:
        path = f"{self._wal_dir}/{CONTROL_NAME}"
        findings = self.check.findings
        try:
            content = read_control(self._disk, path)
            if content is not None:
                self.check.bytes_read += len(content)
                self.check.slots = 2
            control = open_control(self._disk, self._wal_dir)
        except (OpenError, OSError) as error:
            findings.append(_of_error("control file", error, path))
            return self._control_from_segments(path)
        if control is None or content is None:
            findings.append(_finding("control file", "damaged", path, "it is missing"))
            return self._control_from_segments(path)
        found = verify_slots(LOG_CONTROL, path, content)
        if found:  # perhaps it was just being written
            again = read_control(self._disk, path) or b""
            found = [one for one in verify_slots(LOG_CONTROL, path, again) if one in found]
        findings += found
        return control

    def _control_from_segments(self, path: str) -> LogControl | None:
        """Makes up a control file from what the segments say of their log."""
        try:
            numbers = self._numbers()
        except OSError:
            return None
        for number in numbers:
            for header in self._headers_of(self._path(number)):
                if header["number"] == number:
                    return self._made_up(path, header, numbers[0])
        return None

    def _control_of_file(self, path: str) -> LogControl | None:
        for header in self._headers_of(path):
            return self._made_up(path, header, header["number"])
        problem = "neither copy of the header is whole, so nothing in the file can be told apart"
        self.check.findings.append(_finding("segment header", "damaged", path, problem, offset=0))
        return None

    def _made_up(self, path: str, header: dict[str, Any], first_number: int) -> LogControl:
        fields = {name: header.get(name, 1) for name in LogIdentity.__dataclass_fields__}
        fields |= {
            "oldest_lsn": data_start(first_number, header["segment_bytes"]),
            "released_lsn": 0,
            "durable_lsn": 0,
            "incarnation": 1,
        }
        return LogControl(self._disk, path, 0, fields | {"clean": 0, "owned": 0, "end_lsn": 0})

    def _headers_of(self, path: str) -> list[dict[str, Any]]:
        """Returns the whole copies of a segment file's header."""
        try:
            file = self._disk.open(path, writable=False)
        except OSError:
            return []
        try:
            head, _ = read_what_can_be(file, 0, DATA_OFFSET)
        finally:
            file.close()
        copies = [SEGMENT_HEADER.unpack(head, offset) for offset in HEADER_OFFSETS]
        return [copy for copy in copies if copy is not None and copy["version"] <= FORMAT_VERSION]

    def _numbers(self) -> list[int]:
        names = self._disk.list_directory(self._wal_dir)
        return sorted(number for name in names if (number := segment_number(name)) is not None)

    # -- step 2: where the log ends

    def _judge(self, control: LogControl) -> OpenError | OSError | None:
        """Judges the log as opening does, unless its writer says where it ends; returns why opening would refuse."""
        if self._published_lsn is not None:
            self._proven_lsn = self.check.last_lsn = self._published_lsn
            return None

        def judge() -> Survey:
            current = None
            with suppress(OpenError, OSError):
                current = open_control(self._disk, self._wal_dir)
            return survey(self._disk, self._kernel, self._wal_dir, current or control, self._proven_lsn)

        try:
            self._judged = settled(self._wal_dir, judge)
        except (OpenError, OSError) as error:
            return error
        self.check.first_lsn = max(self.check.first_lsn, self._judged.control.oldest_lsn)
        self.check.last_lsn = self._judged.end_lsn
        if self._judged.torn_tail_bytes:
            lsn, size = self._judged.end_lsn, self._identity.segment_bytes
            if lsn == data_end(lsn // size, size):
                lsn = data_start(lsn // size + 1, size)
            problem = f"the log ends here; behind it stand {self._judged.torn_tail_bytes:,} bytes that were cut short"
            path = self._path(lsn // size)
            self.check.findings.append(_finding("tail", "torn", path, problem, offset=lsn % size, lsn=lsn))
        return None

    def _find_proofs(self, places: dict[int, _Place]) -> None:
        """Finds the greatest position that anything in a refused log records as durable."""
        with suppress(OpenError, OSError):
            control = open_control(self._disk, self._wal_dir)
            if control is not None:
                self._proven_lsn = max(self._proven_lsn, control.durable_lsn, control.clean_end_lsn or 0)
        for number, place in places.items():
            info = place.info
            if info is None:
                continue
            if info.footer:
                self._proven_lsn = max(self._proven_lsn, int(info.footer["end_lsn"]))
            if info.link and info.link["previous_number"] == number - 1:
                self._proven_lsn = max(self._proven_lsn, int(info.link["previous_end_lsn"]))
            if not info.footer:
                content, _ = self._content(place)
                for frames in self._walk(info, content, info.data_end_lsn):
                    if not isinstance(frames, Gap) and len(frames):
                        self._proven_lsn = max(self._proven_lsn, int(frames["durable_lsn"].max()))

    # -- step 3: the segments

    def _walk_segments(self, places: dict[int, _Place], floor: int) -> None:
        for number in self._wanted(places, floor):
            if number not in places:
                if not self._is_released(number):
                    problem = "the segment is missing, and it held durable entries"
                    lsn = number * self._identity.segment_bytes
                    self.check.findings.append(_finding("segment", "damaged", self._path(number), problem, lsn=lsn))
                continue
            part = self._verify_segment(places[number], places)
            if part.findings:
                if self._is_released(number):
                    continue
                for near in (number, number + 1):
                    if near in places:
                        places[near] = self._inspect(near)
                again = self._verify_segment(places[number], places)
                again.findings = [finding for finding in again.findings if finding in part.findings]
                part = again
            self._take(part)
            self._moved(self._identity.segment_bytes)
            if part.ended:
                return

    def _wanted(self, places: dict[int, _Place], floor: int) -> list[int]:
        """Returns the numbers of the segments that make up the log, as far as that is known, oldest first."""
        if self._judged is not None:
            return [info.number for info in self._judged.segments]
        size = self._identity.segment_bytes
        end = (self._proven_lsn - 1) // size + 1 if self._proven_lsn > data_start(floor, size) else floor
        if self._published_lsn is not None:
            return list(range(floor, end))
        return sorted({*range(floor, end), *(number for number, place in places.items() if place.info is not None)})

    def _take(self, part: _Part) -> None:
        check = self.check
        check.findings += part.findings
        check.segments += 1
        check.entries += part.entries
        check.bytes_read += part.bytes_read
        check.checkpoint_noted = max(check.checkpoint_noted, part.checkpoint_noted)
        if self._told is not None:
            for report in part.reports:
                self._told(report)
        self._check_transactions(part)

    def _inspect(self, number: int) -> _Place:
        """Reads the fixed places of a segment file."""
        path, size = self._path(number), self._identity.segment_bytes
        place = _Place(number, path, None, [])
        try:
            file = self._disk.open(path, writable=False)
        except OSError as error:
            place.findings.append(_of_error("segment", error, path))
            return place
        try:
            place.size = file.size()
            head, _ = read_what_can_be(file, 0, DATA_OFFSET)
            tail, _ = read_what_can_be(file, size - FOOTER_BYTES, FOOTER_BYTES)
        except OSError as error:
            place.findings.append(_of_error("segment", error, path))
            return place
        finally:
            file.close()
        if place.size < size:
            problem = f"the file has {place.size:,} bytes of {size:,}"
            place.findings.append(_finding("segment", "damaged", path, problem, offset=place.size))
        header = self._header(place, head)
        link, footer = LINK.unpack(head, LINK_OFFSET), FOOTER.unpack(tail)
        link = link if link and link["number"] == number else None
        footer = footer if footer and footer["number"] == number else None
        place.link_is_blank = not any(head[LINK_OFFSET : LINK_OFFSET + SECTOR_BYTES])
        place.footer_is_blank = not any(tail)
        proof = header or link or footer
        if proof is None:
            return place
        salt = proof["salt"]
        link = link if link and link["salt"] == salt else None
        footer = footer if footer and footer["salt"] == salt else None
        if footer and not data_start(number, size) <= footer["end_lsn"] <= data_end(number, size):
            footer = None
        place.info = _Fixed(path, number, salt, size, footer, link)
        return place

    def _header(self, place: _Place, head: bytes) -> dict[str, Any] | None:
        """Returns the header, from whichever copy is right, and notes the copies that are not."""
        wanted = {
            "number": place.number,
            "segment_bytes": self._identity.segment_bytes,
            "store_id": self._identity.store_id,
            "version": FORMAT_VERSION,
        }
        copies = [SEGMENT_HEADER.unpack(head, offset) for offset in HEADER_OFFSETS]
        right = [copy is not None and all(copy[name] == value for name, value in wanted.items()) for copy in copies]
        if all(right) and copies[0] != copies[1]:
            right[1] = False
        for offset, copy, is_right in zip(HEADER_OFFSETS, copies, right, strict=True):
            if is_right:
                continue
            severity: Severity = "covered" if any(right) else "damaged"
            problem = "not whole" if copy is None else "of another segment, of another size or of another store"
            problem = f"the {'second' if offset else 'first'} copy of the header is {problem}"
            place.findings.append(_finding("segment header", severity, place.path, problem, offset=offset))
        return next((copy for copy, is_right in zip(copies, right, strict=True) if is_right), None)

    def _verify_segment(self, place: _Place, places: dict[int, _Place]) -> _Part:
        """Compares a segment with its checksums, from its header to its footer."""
        part = _Part(findings=list(place.findings))
        info = place.info
        if info is None:
            part.has_gap = True
            return part
        following = places.get(place.number + 1)
        sealed_end = info.sealed_end(following.info if following is not None else None)
        self._verify_link_and_footer(place, sealed_end is not None, part)
        stop_lsn, is_known = self._end_of(info, sealed_end)
        content, unread = self._content(place)
        part.bytes_read = len(content)
        entries = 0
        frames_found = last_crc = rows = 0
        for run in self._walk(info, content, stop_lsn):
            if isinstance(run, Gap):
                if not is_known and run.start_lsn >= self._proven_lsn:
                    part.ended = True
                    break
                self._note_gap(part, info, run, unread)
                continue
            entries += self._note_frames(part, info, run, content)
            if len(run):
                frames_found += len(run)
                last_crc = int(run["frame_crc"][-1])
                rows += int(run["rows"][run["kind"] < Kind.COMMIT].sum())
        part.entries += entries
        footer = info.footer
        found = {"frames": frames_found, "last_crc": last_crc, "entries": rows}
        if footer and not part.has_gap and any(footer[name] != value for name, value in found.items()):
            said = ", ".join(f"{footer[name]} {name}" for name in found)
            problem = f"it says {said}; found were {', '.join(f'{value} {name}' for name, value in found.items())}"
            offset = info.segment_bytes - FOOTER_BYTES
            part.findings.append(_finding("footer", "damaged", info.path, problem, offset=offset, lsn=stop_lsn))
        return part

    def _verify_link_and_footer(self, place: _Place, is_sealed: bool, part: _Part) -> None:
        """Notes a link or a footer that should be there, or that should not be what it is."""
        info = place.info
        assert info is not None
        offset = info.segment_bytes - FOOTER_BYTES
        severity: Severity = "covered" if self.check.clean else "torn"
        if info.footer is None and is_sealed:
            problem = "the segment is sealed, and its footer is not whole; the link of the next one stands in for it"
            part.findings.append(_finding("footer", "covered", info.path, problem, offset=offset))
        elif info.footer is None and not place.footer_is_blank:
            problem = "something stands there that is no footer"
            part.findings.append(_finding("footer", severity, info.path, problem, offset=offset))
        if info.link is None and is_sealed:
            problem = "the link to the segment before is not whole; both tell by themselves where they begin and end"
            part.findings.append(_finding("link", "covered", info.path, problem, offset=LINK_OFFSET))
        elif info.link is None and (not place.link_is_blank or severity == "covered"):
            problem = "the link to the segment before is not whole"
            part.findings.append(_finding("link", severity, info.path, problem, offset=LINK_OFFSET))

    def _end_of(self, info: _Fixed, sealed_end: int | None) -> tuple[int, bool]:
        """Returns where the frames of a segment end, or may end at most, and whether it is where they end."""
        end_lsn = info.data_end_lsn if sealed_end is None else sealed_end
        if self._published_lsn is not None:
            return min(end_lsn, self._published_lsn), True
        if self._judged is not None:
            for one in self._judged.segments:
                if one.number == info.number:
                    return min(end_lsn, self._judged.end_of(one)), True
        return end_lsn, sealed_end is not None

    def _content(self, place: _Place) -> tuple[bytes, list[tuple[int, int]]]:
        """Reads a segment, zeros where it cannot be read."""
        try:
            file = self._disk.open(place.path, writable=False)
        except OSError:
            return bytes(self._identity.segment_bytes), [(0, self._identity.segment_bytes)]
        try:
            return read_what_can_be(file, 0, self._identity.segment_bytes)
        finally:
            file.close()

    def _walk(self, info: _Fixed, content: bytes, stop_lsn: int) -> Iterator[Frames | Gap]:
        """Yields valid frames and the gaps between them, up to ``stop_lsn``."""
        lsn, waste = info.first_lsn, 0
        while lsn < stop_lsn:
            frames, lsn, reason = scan_frames(self._kernel, content, info.base_lsn, info.salt, lsn, stop_lsn)
            yield frames
            if reason == SCAN_END or lsn >= stop_lsn:
                return
            start, length = lsn, _length_at(info, content, lsn)
            waste += length if length <= stop_lsn - start else 0
            lsn = stop_lsn
            if waste <= _WASTE_MOST * info.segment_bytes:
                lsn = _next_word(info, content, start + ALIGNMENT, stop_lsn)
            yield Gap(start, lsn, _problem_at(content, info, start, length, lsn))

    def _note_gap(self, part: _Part, info: _Fixed, gap: Gap, unread: list[tuple[int, int]]) -> None:
        start, end = gap.start_lsn - info.base_lsn, gap.end_lsn - info.base_lsn
        problem = gap.problem
        if any(first < end and start < last for first, last in unread):
            problem = "it cannot be read"
        part.has_gap = True
        part.entries += 1
        if self._told is not None:
            part.reports.append(EntryReport(info.path, start, gap.end_lsn, False, problem))
        part.findings.append(_finding("entry", "damaged", info.path, problem, offset=start, lsn=gap.end_lsn))

    def _note_frames(self, part: _Part, info: _Fixed, frames: Frames, content: bytes) -> int:
        """Notes what valid frames say; returns how many of them are entries."""
        kinds = frames["kind"]
        entries = frames[(kinds != Kind.PAD) & (kinds != Kind.IDLE)]
        if self._told is not None:
            for start, end in zip(entries["start_lsn"].tolist(), frame_ends(entries).tolist(), strict=True):
                part.reports.append(EntryReport(info.path, start - info.base_lsn, end, True))
        for frame in frames[kinds == Kind.CHECKPOINT]:
            fields = CHECKPOINT.unpack(content, int(frame["start_lsn"]) - info.base_lsn + HEADER_BYTES)
            part.checkpoint_noted = max(part.checkpoint_noted, fields["sequence"] if fields else 0)
        for frame in frames[frames["txn"] != 0]:
            at = int(frame["start_lsn"]) - info.base_lsn + HEADER_BYTES
            part.members.append((frame, content[at : at + COMMIT.size] if frame["kind"] in _SUMS else b""))
        return len(entries)

    # -- step 4: order

    def _check_transactions(self, part: _Part) -> None:
        """Compares each commit with the entries that it names, unless damage may have hidden some of them."""
        if part.has_gap:
            self._transactions.clear()
        for frame, payload in part.members:
            txn, lsn = int(frame["txn"]), int(frame["start_lsn"])
            if frame["kind"] == Kind.ROLLBACK:
                self._transactions.pop(txn, None)
                continue
            if frame["kind"] not in _SUMS:
                first, count, rows, crc = self._transactions.get(txn, (lsn, 0, 0, 0))
                crc = zlib.crc32(int(frame["frame_crc"]).to_bytes(4, "little"), crc)
                self._transactions[txn] = (first, count + 1, rows + int(frame["rows"]), crc)
                continue
            first, count, rows, crc = self._transactions.get(txn, (0, 0, 0, 0))
            if frame["kind"] == Kind.COMMIT:
                self._transactions.pop(txn, None)
            fields = COMMIT.unpack(payload)
            said = (fields["first_lsn"], int(frame["rows"]), fields["rows"], fields["members_crc"]) if fields else None
            begins_here = fields is not None and fields["first_lsn"] >= self.check.first_lsn
            if said != (first, count, rows, crc) and begins_here and not part.has_gap and first:
                size = self._identity.segment_bytes
                problem = f"transaction {txn} commits other entries than the log holds"
                path = self._path(lsn // size)
                self.check.findings.append(_finding("entry", "damaged", path, problem, offset=lsn % size, lsn=lsn))

    def _is_released(self, number: int) -> bool:
        """Whether a writer has let go of a segment meanwhile."""
        if self._file is not None:
            return False
        with suppress(OpenError, OSError):
            control = open_control(self._disk, self._wal_dir)
            return control is not None and number < max(control.oldest_lsn - 1, 0) // self._identity.segment_bytes
        return False

    def _path(self, number: int) -> str:
        return self._file or f"{self._wal_dir}/{segment_name(number)}"


# -- frames that are not valid ------------------------------------------------------------------------------------


def _length_at(info: _Fixed, content: bytes, lsn: int) -> int:
    """Returns the length that the commit word at a position gives; 0 where there is none of this segment."""
    word = int.from_bytes(content[lsn - info.base_lsn : lsn - info.base_lsn + 8], "little")
    return (word & LENGTH_MASK) * ALIGNMENT if word & ~LENGTH_MASK == commit_word(info.salt, lsn, 0) else 0


def _next_word(info: _Fixed, content: bytes, lsn: int, stop_lsn: int) -> int:
    """Returns the first position from ``lsn`` on that carries a commit word of this segment; else ``stop_lsn``."""
    mask = np.uint64(LENGTH_MASK)
    while lsn < stop_lsn:
        count = min((stop_lsn - lsn) // ALIGNMENT, _SEARCH_STEP)
        if count == 0:
            break
        words = np.frombuffer(content, "<u8", count * (ALIGNMENT // 8), lsn - info.base_lsn)[:: ALIGNMENT // 8]
        places = lsn + ALIGNMENT * np.arange(count, dtype=np.uint64)
        found = np.flatnonzero((words | mask) == (_commit_words(info.salt, places) | mask))
        if len(found):
            return lsn + ALIGNMENT * int(found[0])
        lsn += ALIGNMENT * count
    return stop_lsn


def _commit_words(salt: int, lsns: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Returns `format.frame.commit_word` of many positions; the low bits mean nothing."""
    x = np.uint64(salt) ^ (lsns * np.uint64(0x9E3779B97F4A7C15))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _problem_at(content: bytes, info: _Fixed, start_lsn: int, length: int, end_lsn: int) -> str:
    size = end_lsn - start_lsn
    if not length:
        return f"no entry begins where one must; {size:,} bytes are damaged, or never reached the disk"
    if length != size:
        return f"its length says {length:,} bytes, the next entry begins after {size:,}"
    at = start_lsn - info.base_lsn
    zeros = not any(content[at + HEADER_BYTES : at + length])
    return f"its checksum differs: {size:,} bytes, " + ("all zero behind the header" if zeros else "header included")


def _finding(
    what: str, severity: Severity, path: str, problem: str, *, offset: int | None = None, lsn: int | None = None
) -> Finding:
    return Finding(what=what, severity=severity, path=path, problem=problem, offset=offset, lsn=lsn)


def _path_of(error: OpenError | OSError) -> str | None:
    path = getattr(error, "path", None) or getattr(error, "filename", None)
    return str(path) if path else None


def _of_error(what: str, error: OpenError | OSError, path: str) -> Finding:
    """Returns an error as a finding."""
    problem = str(error) if isinstance(error, OpenError) else f"it cannot be read ({error.strerror})"
    place = _path_of(error) or path
    problem = problem.removeprefix(f"{place}: ")
    offset, lsn = (error.offset, error.lsn) if isinstance(error, DamageError) else (None, None)
    return _finding(what, "damaged", place, problem, offset=offset, lsn=lsn)
