"""A data directory against what was recorded: control slots, every section of the images, every row.

    verify_data     all of it from the files, for whoever must not trust what is in memory
    damaged_rows    the rows of an open state against the checksums that it holds
    ReadingDisk     a disk that reads files instead of mapping them

Not here: the log (`recovery/verify.py`), loading a checkpoint (`load.py`).

* It changes nothing and never raises on damage: what is wrong becomes a `Finding`.
* Files are read, never mapped: a bad block is an error to be reported then, not a signal.
* Beside a live writer a failure is believed once the control file, read again, is as it was: until its slot goes, what
  a checkpoint names is not touched.
* Memory follows the number of ids, as in loading; rows are read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.checkpoint.changes import row_checksums
from mmwal.checkpoint.control import DataIdentity, Slot
from mmwal.checkpoint.image import image_path
from mmwal.checkpoint.load import Content, content_of
from mmwal.disk.interface import Disk, File
from mmwal.entry import Finding, Id, Severity
from mmwal.errors import ConsistencyError
from mmwal.format.control import DATA_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import ALIGNMENT
from mmwal.format.image import HEADER_BYTES, SECTION, Place, decode_columns, section_header
from mmwal.format.layout import Layout
from mmwal.format.segment import FORMAT_VERSION, PAGE_BYTES
from mmwal.kernel.interface import DTYPES, Kernel
from mmwal.log.control_file import CONTROL_NAME, read_control
from mmwal.state.matrix import MATRIX_NAME
from mmwal.state.state import State

_SLICE_ROWS = 4096
_PIECE_BYTES = 8 << 20
_TRIES_MOST = 32

Moved = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row whose bytes are not those that were checkpointed."""

    id: Id
    row: int
    lsn: int


def damaged_rows(kernel: Kernel, state: State) -> list[DamagedRow]:
    """Returns the live rows that the newest checkpoint names and whose checksum differs.

    Concurrency: reads as of now; writes go on.
    """
    found = []
    with state.reading() as view:
        rows = view.rows()
        rows = rows[view.born[rows] <= state.checkpoint_lsn]
        for start in range(0, len(rows), _SLICE_ROWS):
            part = rows[start : start + _SLICE_ROWS]
            checksums = row_checksums(kernel, state, part, state.directory.pack_ids(part))
            damaged = part[checksums != state.rows.checksums[part]]
            for row, (id, lsn, _) in zip(damaged.tolist(), view.records(damaged), strict=True):
                found.append(DamagedRow(id, row, lsn))
    return found


# -- the files ----------------------------------------------------------------------------------------------------


@dataclass
class DataCheck:
    """What was found in a data directory, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)  # the valid ones, the newest first
    slots_read: int = 0
    sections: int = 0
    rows: int = 0
    bytes_read: int = 0


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the log says of the data."""

    store_id: bytes | None = None
    oldest_lsn: int = 0  # where the log begins
    checkpoint_noted: int = 0  # the newest that the log notes as published


def read_slots_of(disk: Disk, data_dir: str) -> list[Slot]:
    """Returns the valid slots of a data directory's control file, the newest first; none where it cannot be read."""
    try:
        content = read_control(disk, f"{data_dir}/{CONTROL_NAME}")
    except OSError:
        return []
    return _valid_slots(content) if content is not None else []


def verify_data(disk: Disk, kernel: Kernel, data_dir: str, known: Known, moved: Moved = lambda _: None) -> DataCheck:
    """Compares a data directory with its checksums.

    Args:
        known: what the log says.
        moved: told, now and then, how many more bytes were read.
    """
    reading = ReadingDisk(disk)
    check = DataCheck()
    for _ in range(_TRIES_MOST):
        check = DataCheck()
        content = _control_content(reading, data_dir, check)
        if content is None:
            return check
        _verify_slots(data_dir, content, known, check)
        _verify_checkpoints(reading, kernel, data_dir, known, check, moved)
        if not check.findings or _control_content(reading, data_dir, DataCheck()) == content:
            break
    return check


def _control_content(disk: Disk, data_dir: str, check: DataCheck) -> bytes | None:
    path = f"{data_dir}/{CONTROL_NAME}"
    try:
        content = read_control(disk, path)
    except OSError as error:
        check.findings.append(_damaged("control file", path, f"it cannot be read ({error.strerror})"))
        return None
    if content is None:
        check.findings.append(
            _damaged("control file", path, "it is missing, so nothing says which checkpoint is the newest")
        )
    return content


# -- step 1: the slots


def _verify_slots(data_dir: str, content: bytes, known: Known, check: DataCheck) -> None:
    path = f"{data_dir}/{CONTROL_NAME}"
    check.findings += verify_slots(DATA_CONTROL, path, content)
    check.slots_read = len(SLOT_OFFSETS)
    check.bytes_read += len(content)
    check.slots = _valid_slots(content)
    for slot in check.slots:
        offset = SLOT_OFFSETS[slot.index]
        if known.store_id is not None and slot.store_id != known.store_id:
            problem = f"it belongs to store {slot.store_id.hex()}, the log to {known.store_id.hex()}"
            check.findings.append(_damaged("control slot", path, problem, offset=offset))
        if slot.pinned_lsn < known.oldest_lsn:
            problem = (
                f"checkpoint {slot.sequence} needs the log from LSN {slot.pinned_lsn} on, which begins at "
                f"{known.oldest_lsn}: the slot is an old one, or what lies between was removed"
            )
            check.findings.append(_damaged("control slot", path, problem, offset=offset, lsn=int(slot.pinned_lsn)))
    newest = check.slots[0].sequence if check.slots else 0
    if len(check.slots) == len(SLOT_OFFSETS) and newest < known.checkpoint_noted:
        problem = (
            f"the log notes checkpoint {known.checkpoint_noted} as published, the newest slot is of checkpoint "
            f"{newest}: a slot is an old one"
        )
        severity: Severity = "covered" if check.slots[0].pinned_lsn >= known.oldest_lsn else "damaged"
        offset = SLOT_OFFSETS[1 - check.slots[0].index]
        check.findings.append(
            Finding(what="control slot", severity=severity, path=path, problem=problem, offset=offset)
        )


def verify_slots(layout: Layout, path: str, content: bytes) -> list[Finding]:
    """Returns what is wrong with the two slots of a control file, of the log or of the data.

    A crash in the middle of writing a slot leaves one that is not whole, too, until the directory is opened. Nothing on
    record tells the two apart, so both are named.
    """
    slots = [layout.unpack(content, offset) for offset in SLOT_OFFSETS]
    findings = []
    for index, (offset, fields) in enumerate(zip(SLOT_OFFSETS, slots, strict=True)):
        other = slots[1 - index]
        is_blank = not any(content[offset : offset + layout.size])
        if fields is not None or (is_blank and other is not None and other["sequence"] == 1):
            continue  # whole, or never written
        severity: Severity = "damaged" if other is None else "covered"
        problem = "it is not whole, and neither is the other one"
        if other is not None:
            problem = (
                f"slot {index} is not whole; slot {1 - index} stands in for it, and opening for writing restores it"
            )
        findings.append(Finding(what="control slot", severity=severity, path=path, problem=problem, offset=offset))
    return findings


def _valid_slots(content: bytes) -> list[Slot]:
    found = [(index, DATA_CONTROL.unpack(content, offset)) for index, offset in enumerate(SLOT_OFFSETS)]
    slots = [Slot(index, fields) for index, fields in found if fields is not None and _is_known(fields)]
    return sorted(slots, key=lambda slot: -int(slot.sequence))


def _is_known(fields: dict[str, Any]) -> bool:
    return fields["version"] <= FORMAT_VERSION and fields["dtype"] in DTYPES and fields["dimension"] > 0


# -- step 2: the checkpoint that each slot names


def _verify_checkpoints(
    disk: Disk, kernel: Kernel, data_dir: str, known: Known, check: DataCheck, moved: Moved
) -> None:
    if not check.slots:
        return
    whole: list[tuple[Slot, Content]] = []
    broken: list[tuple[Slot, list[Finding]]] = []
    walked: dict[tuple[int, int], Finding | None] = {}
    for slot in check.slots:
        found = _verify_matrix_size(disk, data_dir, slot)
        if slot.image_bytes:
            found += _walk_image(disk, data_dir, slot, walked, moved)
        try:
            content = content_of(disk, kernel, data_dir, slot)
        except (ValueError, OSError, ConsistencyError) as error:
            problem = f"checkpoint {slot.sequence} cannot be used: {error}"
            broken.append((slot, found or [_damaged("image", image_path(data_dir, slot.image_number), problem)]))
        else:
            whole.append((slot, content))
    check.sections = len(walked)
    check.bytes_read += max(int(slot.image_bytes) for slot in check.slots)
    for slot, found in broken:
        covered = bool(whole) and min(slot.pinned_lsn for slot, _ in whole) >= known.oldest_lsn
        for finding in found:
            problem = f"{finding.problem} (checkpoint {slot.sequence})"
            severity: Severity = "covered" if covered else "damaged"
            if not any((one.path, one.offset) == (finding.path, finding.offset) for one in check.findings):
                check.findings.append(_again(finding, severity, problem))
    _verify_rows(disk, kernel, data_dir, whole, check, moved)


def _again(finding: Finding, severity: Severity, problem: str) -> Finding:
    return Finding(what=finding.what, severity=severity, path=finding.path, problem=problem, offset=finding.offset)


def _verify_matrix_size(disk: Disk, data_dir: str, slot: Slot) -> list[Finding]:
    path = f"{data_dir}/{MATRIX_NAME}"
    least = slot.rows_high * slot.row_bytes
    if not disk.exists(path):
        return [_damaged("matrix", path, "it is missing")]
    try:
        size = _size_of(disk, path)
    except OSError as error:
        return [_damaged("matrix", path, f"it cannot be read ({error.strerror})")]
    if size < least:
        return [_damaged("matrix", path, f"it has {size:,} bytes, too few for {least:,}", offset=size)]
    return []


def _walk_image(
    disk: Disk, data_dir: str, slot: Slot, walked: dict[tuple[int, int], Finding | None], moved: Moved
) -> list[Finding]:
    """Goes over all sections of an image, whichever of them are damaged; ``walked`` keeps what is known of each."""
    number, end = int(slot.image_number), int(slot.image_bytes)
    path = image_path(data_dir, number)
    try:
        file = disk.open(path, writable=False)
    except OSError as error:
        return [_damaged("image", path, f"it cannot be read ({error.strerror})")]
    findings: list[Finding] = []
    try:
        size = file.size()
        if size < end:
            findings.append(_damaged("image", path, f"it has {size:,} bytes of {end:,}", offset=size))
        place = Place(slot.store_id, number, 0, 0)
        last_crc: int | None = 0
        while place.offset < min(size, end):
            finding, fields = _verify_section(file, path, place, end, chained=last_crc is not None)
            key = (number, place.offset)
            if key not in walked:
                walked[key] = finding
                moved(fields["section_bytes"] if fields else 0)
            if finding is not None:
                findings.append(finding)
            offset = place.offset + fields["section_bytes"] if fields else _next_section(file, slot, place.offset, end)
            last_crc = fields["crc"] if fields else None
            place = Place(slot.store_id, number, offset, last_crc or 0)
        if last_crc is not None and last_crc != slot.image_crc and not findings:
            problem = f"it ends with checksum {last_crc:08x}, the control file names {int(slot.image_crc):08x}"
            findings.append(_damaged("image", path, problem))
    finally:
        file.close()
    return findings


def _verify_section(
    file: File, path: str, place: Place, end: int, *, chained: bool
) -> tuple[Finding | None, dict[str, Any] | None]:
    """Returns what is wrong with a section, and the fields of its header if that is whole."""
    try:
        header = file.read(place.offset, HEADER_BYTES)
        if not chained and (fields := SECTION.unpack(header)) is not None:
            place = Place(place.store_id, place.image_number, place.offset, fields["previous_crc"])
        fields = section_header(header, place, end - place.offset)
    except (ValueError, OSError) as error:
        return _damaged("image section", path, f"its header: {error}", offset=place.offset), None
    try:
        decode_columns(file.read(place.offset + HEADER_BYTES, fields["section_bytes"] - HEADER_BYTES), fields)
    except (ValueError, OSError) as error:
        return _damaged("image section", path, str(error), offset=place.offset), fields
    return None, fields


def _next_section(file: File, slot: Slot, offset: int, end: int) -> int:
    """Returns where the next whole header of a section stands behind a damaged one; the end if there is none."""
    content = read_what_can_be(file, offset, min(end, file.size()) - offset)[0]
    at = 0
    assert SECTION.magic is not None
    while (at := content.find(SECTION.magic, at + 1)) >= 0:
        fields = SECTION.unpack(content, at)
        if at % ALIGNMENT == 0 and fields and fields["offset"] == offset + at and fields["store_id"] == slot.store_id:
            return offset + at
    return end


# -- step 3: the rows


def _verify_rows(
    disk: Disk, kernel: Kernel, data_dir: str, whole: list[tuple[Slot, Content]], check: DataCheck, moved: Moved
) -> None:
    """Compares the rows of the newest whole checkpoint, then those that only the older one names."""
    path = f"{data_dir}/{MATRIX_NAME}"
    if not whole or not disk.exists(path):
        return
    high = max(int(slot.rows_high) for slot, _ in whole)
    seen = np.zeros(high, np.uint64)  # the LSN under which a row was compared
    try:
        file = disk.open(path, writable=False)
    except OSError:
        return  # said already
    try:
        for place, (slot, content) in enumerate(whole):
            chosen = np.flatnonzero(seen[content.rows] != content.lsns)  # ascending rows, as those of the content are
            severity: Severity = "covered" if place else "damaged"
            for part in _pieces(content.rows[chosen], int(slot.row_bytes)):
                _verify_piece(file, kernel, slot, content, chosen[part], severity, check)
                moved(len(chosen[part]) * int(slot.row_bytes))
            seen[content.rows] = content.lsns
            check.rows += len(chosen)
    finally:
        file.close()


def _verify_piece(
    file: File,
    kernel: Kernel,
    slot: Slot,
    content: Content,
    chosen: npt.NDArray[np.int64],
    severity: Severity,
    check: DataCheck,
) -> None:
    identity = DataIdentity(**{name: slot.fields[name] for name in DataIdentity.__dataclass_fields__})
    stride, row_bytes = identity.stride, identity.dimension * DTYPES[identity.dtype].itemsize
    rows, lsns = content.rows[chosen], content.lsns[chosen]
    first = int(rows[0])
    read, unread = read_what_can_be(file, first * stride, (int(rows[-1]) - first) * stride + row_bytes)
    checksums, seeds = np.empty(len(rows), np.uint32), np.empty(len(rows), np.uint32)
    kernel.id_seeds(content.directory.pack_ids(rows), lsns, seeds)
    kernel.row_checksums(read, rows - first, row_bytes, stride, seeds, checksums)
    check.bytes_read += len(read)
    for index in np.flatnonzero(checksums != content.checksums[chosen]).tolist():
        offset = int(rows[index]) * stride
        bad = any(start < offset + row_bytes and offset < stop for start, stop in unread)
        problem = "it cannot be read" if bad else "it is not what the checkpoint recorded"
        id = content.directory.name(int(rows[index]))
        problem = f"the vector of id {id!r}, row {int(rows[index])}: {problem}"
        check.findings.append(
            Finding(
                what="row",
                severity=severity,
                path=file.path,
                problem=problem,
                offset=offset,
                lsn=int(lsns[index]),
                id=id,
            )
        )


def _pieces(rows: npt.NDArray[np.int64], stride: int) -> Iterator[slice]:
    """Yields slices of sorted rows that lie within a few MB of each other."""
    start = 0
    while start < len(rows):
        last = int(rows[start]) + max(_PIECE_BYTES // stride, 1)
        stop = min(int(np.searchsorted(rows, last)), start + _SLICE_ROWS)
        yield slice(start, stop)
        start = stop


# -- reading ------------------------------------------------------------------------------------------------------


def read_what_can_be(file: File, offset: int, length: int) -> tuple[bytes, list[tuple[int, int]]]:
    """Returns the bytes of a range, zeros where a page cannot be read or the file has ended, and those places."""
    unread: list[tuple[int, int]] = []
    try:
        content = file.read(offset, length)
    except OSError:
        parts = []
        for at in range(offset, offset + length, PAGE_BYTES):
            stop = min(at + PAGE_BYTES, offset + length)
            try:
                parts.append(file.read(at, stop - at).ljust(stop - at, b"\0"))
            except OSError:
                parts.append(bytes(stop - at))
                unread.append((at, stop))
        content = b"".join(parts)
    if len(content) < length:
        unread.append((offset + len(content), offset + length))
        content = content.ljust(length, b"\0")
    return content, unread


class ReadingDisk:
    """A disk whose mappings are copies: what cannot be read is an `OSError`, and no file can be changed."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def open(self, path: str, *, writable: bool) -> Any:
        """Opens a file for reading."""
        assert not writable, "verification changes nothing"
        return _ReadFile(self._disk.open(path, writable=False))


class _ReadFile:
    def __init__(self, file: File) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def map(self, length: int, *, writable: bool) -> _Copy:
        assert not writable, "verification changes nothing"
        return _Copy(memoryview(self._file.read(0, length).ljust(length, b"\0")))


@dataclass(frozen=True, slots=True)
class _Copy:
    view: memoryview


def _size_of(disk: Disk, path: str) -> int:
    file = disk.open(path, writable=False)
    try:
        return file.size()
    finally:
        file.close()


def _damaged(what: str, path: str, problem: str, *, offset: int | None = None, lsn: int | None = None) -> Finding:
    return Finding(what=what, severity="damaged", path=path, problem=problem, offset=offset, lsn=lsn)
