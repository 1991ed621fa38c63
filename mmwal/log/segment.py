"""What is done to one segment file: prepare it, link it, seal it, inspect it.

Not here: when (`keeper.py`), what its frames mean (`scan.py`, `recovery/tail.py`), the layout (`format/segment.py`).

* A file gets a segment's name only after its blocks, its header and both copies are durable; before that it is a spare.
* The directory is synced before the first frame goes in.
* A footer or a link is written only when all that it vouches for is durable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmwal.disk.interface import Disk, File, Mapping
from mmwal.errors import LEAVE_OUT, ForeignDirectoryError, FormatVersionError, HeaderCorruptionError, OpenError
from mmwal.format.frame import ALIGNMENT, ROW_KINDS, Kind
from mmwal.format.segment import (
    CHECKSUM_CRC32,
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    FORMAT_VERSION,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    NO_SEGMENT,
    PAGE_BYTES,
    SECTOR_BYTES,
    SEGMENT_HEADER,
    data_end,
    data_start,
)
from mmwal.log.control import LogIdentity
from mmwal.log.control_file import open_to_read
from mmwal.log.scan import Frames, scan_frames
from mmwal.verdicts import HEADER, Verdict

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_SEGMENT_NAME = re.compile(r"segment-([0-9a-f]{16})\.wal")
_HAS_ROWS = np.array([kind in ROW_KINDS for kind in range(256)])
_ENDS = sorted((Kind.COMMIT, Kind.ROLLBACK))
_SPARE_NAME = re.compile(r"spare-[0-9a-f]{16}\.wal")


def segment_name(number: int) -> str:
    """Returns the file name of a segment."""
    return f"segment-{number:016x}.wal"


def segment_number(name: str) -> int | None:
    """Returns the number that a file name carries; None if it is no segment's name."""
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1], 16) if match else None


def is_spare(name: str) -> bool:
    """Returns whether a file holds blocks for reuse and no part of the log."""
    return _SPARE_NAME.fullmatch(name) is not None


def spare_name(disk: Disk) -> str:
    """Returns a new name for a spare."""
    return f"spare-{disk.random_bytes(8).hex()}.wal"


@dataclass(frozen=True)
class Predecessor:
    """What a link says of the segment before."""

    number: int
    end_lsn: int
    last_crc: int


NO_PREDECESSOR = Predecessor(NO_SEGMENT, 0, 0)


class Segment:
    """A segment that the log writes to: its mapping and its salt."""

    def __init__(self, number: int, salt: int, segment_bytes: int, mapping: Mapping) -> None:
        self.number = number
        self.salt = salt
        self.segment_bytes = segment_bytes
        self.mapping = mapping
        self.view = mapping.view
        self.base_lsn = number * segment_bytes
        self.linked = False

    def link(self, previous: Predecessor) -> None:
        """Writes the link, durably. The predecessor is durable to its end."""
        self._put(LINK_OFFSET, _link(self.number, self.salt, previous))
        self.linked = True

    def store_link_again(self) -> None:
        """Makes the link that stands there durable: whoever wrote it may have died before it was."""
        self.mapping.rewrite(LINK_OFFSET, SECTOR_BYTES)
        self.mapping.sync(LINK_OFFSET, SECTOR_BYTES)

    def seal(self, frames: Frames, end_lsn: int) -> Predecessor:
        """Writes the footer, durably; every frame below ``end_lsn`` is durable. Returns what the next link says."""
        content, sealed = _footer(self.number, self.salt, self.segment_bytes, frames, end_lsn)
        self._put(self.segment_bytes - FOOTER_BYTES, content)
        return sealed

    def scan(self, kernel: Kernel) -> Frames:
        """Returns the headers of all its frames, without their checksums being verified."""
        end_lsn = data_end(self.number, self.segment_bytes)
        return scan_frames(
            kernel, self.view, self.base_lsn, self.salt, self.base_lsn + DATA_OFFSET, end_lsn, verify=False
        )[0]

    def _put(self, offset: int, content: bytes) -> None:
        self.mapping.populate(offset, len(content))  # a page that was synced faults again: not under the GIL
        self.view[offset : offset + len(content)] = content
        self.mapping.sync(offset, len(content))


def prepare_segment(
    disk: Disk, wal_dir: str, identity: LogIdentity, number: int, *, spare: str | None, previous: Predecessor | None
) -> Segment:
    """Makes a segment file and maps it: durable blocks, header and name, no frame.

    ``spare`` names a file of the right size whose blocks are reused (no zeroing). ``previous`` is linked to at once.
    Raises `OSError`; a file left behind by a failed sync has a spare's name.
    """
    size = identity.segment_bytes
    salt = int.from_bytes(disk.random_bytes(8), "little")
    path = f"{wal_dir}/{spare or spare_name(disk)}"
    file = disk.open(path, writable=True) if spare else disk.create(path)
    try:
        if spare is None:
            _reserve_blocks(disk, file, path, size)
        # A recycled file's footer must not outlive its header: both go in the same sync.
        header = SEGMENT_HEADER.pack(
            version=FORMAT_VERSION,
            checksum=CHECKSUM_CRC32,
            dtype=identity.dtype,
            dimension=identity.dimension,
            features=0,
            features_required=0,
            store_id=identity.store_id,
            history_id=identity.history_id,
            epoch=identity.epoch,
            number=number,
            base_lsn=number * size,
            segment_bytes=size,
            salt=salt,
            created_ns=disk.time_ns(),
        ).ljust(SECTOR_BYTES, b"\0")
        link = _link(number, salt, previous) if previous else b""
        for offset in HEADER_OFFSETS:
            file.write(offset, header)
        file.write(LINK_OFFSET, link.ljust(SECTOR_BYTES, b"\0"))
        file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))
        file.sync()
        disk.rename(path, f"{wal_dir}/{segment_name(number)}")
        disk.sync_directory(wal_dir)
        segment = Segment(number, salt, size, file.map(size, writable=True))
    finally:
        file.close()
    segment.linked = previous is not None
    return segment


def _reserve_blocks(disk: Disk, file: File, path: str, size: int) -> None:
    try:
        file.allocate(size)
        file.zero(0, size)
    except OSError:
        disk.unlink(path)  # a full disk gets its blocks back
        raise


def _link(number: int, salt: int, previous: Predecessor) -> bytes:
    return LINK.pack(
        number=number,
        salt=salt,
        previous_number=previous.number,
        previous_end_lsn=previous.end_lsn,
        previous_last_crc=previous.last_crc,
    )


def _footer(number: int, salt: int, segment_bytes: int, frames: Frames, end_lsn: int) -> tuple[bytes, Predecessor]:
    kinds, txns, times = frames["kind"], frames["txn"], frames["time_ns"]
    open_transactions = set(txns[txns != 0].tolist())
    if open_transactions:
        open_transactions -= set(txns[np.isin(kinds, _ENDS)].tolist())
    last_crc = int(frames["frame_crc"][-1]) if len(frames) else 0
    content = FOOTER.pack(
        number=number,
        salt=salt,
        first_lsn=data_start(number, segment_bytes),
        end_lsn=end_lsn,
        frames=len(frames),
        entries=int(frames["rows"][_HAS_ROWS[kinds]].sum()),
        time_least_ns=int(times.min()) if len(frames) else 0,
        time_greatest_ns=int(times.max()) if len(frames) else 0,
        open_transactions=len(open_transactions),
        last_crc=last_crc,
    )
    return content, Predecessor(number, end_lsn, last_crc)


@dataclass(frozen=True)
class SegmentInfo:
    """What the fixed places of a segment file say; ``footer`` and ``link`` are None where invalid."""

    path: str
    number: int
    salt: int
    history_id: bytes
    segment_bytes: int
    header_copies: int
    footer: dict[str, Any] | None
    link: dict[str, Any] | None

    @property
    def header(self) -> Verdict:
        """The row of the table of verdicts that let it be read."""
        second = "sound" if self.header_copies == 2 else "damaged"
        return HEADER.verdict(first="sound", second=second, agree="yes", file="whole", where="needed")

    @property
    def base_lsn(self) -> int:
        return self.number * self.segment_bytes

    @property
    def first_lsn(self) -> int:
        return data_start(self.number, self.segment_bytes)

    @property
    def data_end_lsn(self) -> int:
        return data_end(self.number, self.segment_bytes)

    @property
    def end_lsn(self) -> int:
        """Where the frames of a sealed segment end; the end of the data for one that is not sealed."""
        return int(self.footer["end_lsn"]) if self.footer else self.data_end_lsn

    @property
    def predecessor(self) -> Predecessor:
        """What a link to this sealed segment says."""
        assert self.footer is not None
        return Predecessor(self.number, self.end_lsn, int(self.footer["last_crc"]))

    @property
    def lost_its_footer(self) -> bool:
        """Whether only the link of the next segment tells that this one is sealed."""
        return self.footer is not None and "frames" not in self.footer

    def sealed_by_next(self, following: SegmentInfo) -> SegmentInfo:
        """Returns this segment as if its footer said what the link of its successor says, if that says anything."""
        link = following.link
        if link is None or link["previous_number"] != self.number:
            return self
        return replace(self, footer={"end_lsn": link["previous_end_lsn"], "last_crc": link["previous_last_crc"]})


def inspect_segment(
    disk: Disk, wal_dir: str, identity: LogIdentity, number: int, *, released: bool = False
) -> SegmentInfo | None:
    """Reads the fixed places of a segment; None for a file that never was one (all zero where a header would be), and
    for one that is ``released``, however damaged.

    Raises `HeaderCorruptionError`, `ForeignDirectoryError` or `FormatVersionError`, as the table of verdicts says.
    """
    return inspect_file(disk, f"{wal_dir}/{segment_name(number)}", identity, number, released=released)


def identify_file(disk: Disk, path: str) -> tuple[LogIdentity, int]:
    """Returns what a segment file alone says of its log, and its number. Raises `HeaderCorruptionError`."""
    file = open_to_read(disk, path, "segment")
    try:
        head = file.read(0, DATA_OFFSET)
    finally:
        file.close()
    for offset in HEADER_OFFSETS:
        if header := SEGMENT_HEADER.unpack(head, offset):
            named = {name: header.get(name, 0) for name in LogIdentity.__dataclass_fields__}
            return LogIdentity(**named), header["number"]
    raise HeaderCorruptionError(
        path,
        "no whole segment header; give a segment file of a log, or restore it from a backup",
        offset=0,
        field=SEGMENT_HEADER.broken_field(head),
    )


def inspect_file(
    disk: Disk, path: str, identity: LogIdentity, number: int, *, released: bool = False
) -> SegmentInfo | None:
    """As `inspect_segment`, wherever the file is."""
    size = identity.segment_bytes
    file = open_to_read(disk, path, "segment")
    try:
        head = file.read(0, DATA_OFFSET)
        tail = file.read(size - FOOTER_BYTES, FOOTER_BYTES)
    finally:
        file.close()
    copies = [SEGMENT_HEADER.unpack(head, offset) for offset in HEADER_OFFSETS]
    first, second = _copy_states(copies, head, identity, number)
    verdict = HEADER.verdict(
        first=first,
        second=second,
        agree="no" if first == second == "sound" and copies[0] != copies[1] else "yes",
        file="whole" if len(tail) == FOOTER_BYTES else "short",
        where="released" if released else "needed",
    )
    if verdict.error is not None:
        raise verdict.mark(_refusal(verdict.label, path, identity, number, copies, head))
    if verdict.label not in ("header-sound", "header-one-lost"):
        return None
    header = copies[0] or copies[1]
    assert header is not None
    footer, link = FOOTER.unpack(tail), LINK.unpack(head, LINK_OFFSET)
    return SegmentInfo(
        path=path,
        number=number,
        salt=header["salt"],
        history_id=header["history_id"],
        segment_bytes=size,
        header_copies=2 if verdict.label == "header-sound" else 1,
        footer=footer if footer and _is_footer_of(footer, number, header["salt"], size) else None,
        link=link if link and _is_link_of(link, number, header["salt"], size) else None,
    )


def sealed_end(view: memoryview, info: SegmentInfo) -> int | None:
    """Returns where the frames of a mapped segment end, if its footer says so by now."""
    footer = FOOTER.unpack(view, info.segment_bytes - FOOTER_BYTES)
    if footer is None or not _is_footer_of(footer, info.number, info.salt, info.segment_bytes):
        return None
    return int(footer["end_lsn"])


def inspect_without_header(disk: Disk, wal_dir: str, identity: LogIdentity, number: int) -> SegmentInfo | None:
    """Returns a segment both of whose headers are lost, as its link or its footer alone tell its salt; None where
    neither does. Only its frames can prove that it is this log's."""
    path, size = f"{wal_dir}/{segment_name(number)}", identity.segment_bytes
    file = open_to_read(disk, path, "segment")
    try:
        link = LINK.unpack(file.read(LINK_OFFSET, SECTOR_BYTES))
        footer = FOOTER.unpack(file.read(size - FOOTER_BYTES, FOOTER_BYTES))
        whole = file.size() >= size
    finally:
        file.close()
    salts = [fields["salt"] for fields in (link, footer) if fields is not None and fields["number"] == number]
    if not salts or not whole:
        return None
    return SegmentInfo(
        path=path,
        number=number,
        salt=salts[0],
        history_id=identity.history_id,
        segment_bytes=size,
        header_copies=0,
        footer=footer if footer and _is_footer_of(footer, number, salts[0], size) else None,
        link=link if link and _is_link_of(link, number, salts[0], size) else None,
    )


def _copy_states(
    copies: list[dict[str, Any] | None], head: bytes, identity: LogIdentity, number: int
) -> tuple[str, ...]:
    """Returns what each copy of a header is, in the words of the table of verdicts."""
    pages = [head[offset : offset + PAGE_BYTES] for offset in HEADER_OFFSETS]
    none_sound = not any(copies)
    return tuple(
        _copy_state(fields, identity, number) if fields else _broken_state(page, none_sound)
        for fields, page in zip(copies, pages, strict=True)
    )


def _copy_state(fields: dict[str, Any], identity: LogIdentity, number: int) -> str:
    if fields["version"] > FORMAT_VERSION or fields["features_required"]:
        return "newer"
    if fields["store_id"] != identity.store_id:
        return "foreign"
    if fields["history_id"] != identity.history_id:
        return "history"
    size = identity.segment_bytes
    found = (fields["number"], fields["segment_bytes"], fields["base_lsn"])
    return "sound" if found == (number, size, number * size) else "misplaced"


def _broken_state(page: bytes, none_sound: bool) -> str:
    if page == bytes(len(page)):
        return "blank"
    return "newer" if none_sound and _unknown_version(page) else "damaged"


def _unknown_version(page: bytes) -> int:
    """Returns the version of a header whose layout only a newer mmwal knows; 0 for anything else."""
    version = int.from_bytes(page[8:10], "little") if page.startswith(SEGMENT_HEADER.magic or b"") else 0
    return version if version > FORMAT_VERSION else 0


def _refusal(
    label: str,
    path: str,
    identity: LogIdentity,
    number: int,
    copies: list[dict[str, Any] | None],
    head: bytes,
) -> OpenError:
    """Returns the error that a verdict on a header asks for."""
    size = identity.segment_bytes
    match label:
        case "header-newer":
            found = [fields["version"] for fields in copies if fields] or [
                _unknown_version(head[offset : offset + PAGE_BYTES]) for offset in HEADER_OFFSETS
            ]
            return FormatVersionError(path, max(found), FORMAT_VERSION)
        case "header-foreign":
            return ForeignDirectoryError(path, "belongs to another store; move the file out of this directory")
        case "header-history":
            return ForeignDirectoryError(
                path, "belongs to another history of this store; move the file out of this directory"
            )
        case "header-short":
            return HeaderCorruptionError(
                path,
                f"the file is shorter than the {size:,} bytes that its header says; {LEAVE_OUT}",
                field="segment_bytes",
            )
        case "header-misplaced":
            other = next(fields for fields in copies if fields and _copy_state(fields, identity, number) == "misplaced")
            expected = {"number": number, "segment_bytes": size, "base_lsn": number * size}
            field = next(name for name, value in expected.items() if other[name] != value)
            problem = (
                f"its header says segment {other['number']} of {other['segment_bytes']:,} bytes from LSN "
                f"{other['base_lsn']}, its name and the log say segment {number} of {size:,} from {number * size}"
            )
        case "header-contradicts":
            first, second = copies
            assert first is not None
            assert second is not None
            field = next(name for name in first if first[name] != second[name])
            problem = "the two copies of the segment header contradict each other"
        case _:
            field = SEGMENT_HEADER.broken_field(head)
            problem = "both copies of the segment header are damaged"
    return HeaderCorruptionError(path, f"{problem}; {LEAVE_OUT}", offset=0, field=field)


def _is_footer_of(footer: dict[str, Any], number: int, salt: int, size: int) -> bool:
    """Returns whether a footer belongs to this life of a segment and names an end in it."""
    start, end = data_start(number, size), int(footer["end_lsn"])
    bound = (footer["number"], footer["salt"], footer["first_lsn"]) == (number, salt, start)
    return bound and start <= end <= data_end(number, size) and (end - start) % ALIGNMENT == 0


def _is_link_of(link: dict[str, Any], number: int, salt: int, size: int) -> bool:
    """Returns whether a link belongs to this life of a segment and names an end in the one before."""
    if (link["number"], link["salt"]) != (number, salt):
        return False
    if link["previous_number"] == NO_SEGMENT:
        return True
    start, end = data_start(number - 1, size), int(link["previous_end_lsn"])
    inside = start <= end <= data_end(number - 1, size) and (end - start) % ALIGNMENT == 0
    return int(link["previous_number"]) == number - 1 and inside


def open_segment(disk: Disk, info: SegmentInfo) -> Segment:
    """Maps an existing segment for writing."""
    file = disk.open(info.path, writable=True)
    try:
        segment = Segment(info.number, info.salt, info.segment_bytes, file.map(info.segment_bytes, writable=True))
    finally:
        file.close()
    segment.linked = info.link is not None
    return segment
