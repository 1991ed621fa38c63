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
from mmwal.errors import ForeignDirectoryError, FormatVersionError, HeaderCorruptionError
from mmwal.format.frame import ROW_KINDS, Kind
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
    SECTOR_BYTES,
    SEGMENT_HEADER,
    data_end,
    data_start,
)
from mmwal.log.control import LogIdentity
from mmwal.log.scan import Frames, scan_frames

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_SEGMENT_NAME = re.compile(r"segment-([0-9a-f]{16})\.wal")
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
    rows = frames["rows"][np.isin(frames["kind"], list(ROW_KINDS))]
    times = frames["time_ns"]
    members = set(frames["txn"].tolist()) - {0}
    ended = set(frames["txn"][frames["kind"] == Kind.COMMIT].tolist())
    last_crc = int(frames["frame_crc"][-1]) if len(frames) else 0
    content = FOOTER.pack(
        number=number,
        salt=salt,
        first_lsn=data_start(number, segment_bytes),
        end_lsn=end_lsn,
        frames=len(frames),
        entries=int(rows.sum()),
        time_least_ns=int(times.min()) if len(frames) else 0,
        time_greatest_ns=int(times.max()) if len(frames) else 0,
        open_transactions=len(members - ended),
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


def inspect_segment(disk: Disk, wal_dir: str, identity: LogIdentity, number: int) -> SegmentInfo | None:
    """Reads the fixed places of a segment; None for a file that never was one (all zero where a header would be).

    Raises `HeaderCorruptionError` (both copies damaged, another number, a file that is too short),
    `ForeignDirectoryError` (another store's) or `FormatVersionError`.
    """
    return inspect_file(disk, f"{wal_dir}/{segment_name(number)}", identity, number)


def identify_file(disk: Disk, path: str) -> tuple[LogIdentity, int]:
    """Returns what a segment file alone says of its log, and its number. Raises `HeaderCorruptionError`."""
    file = disk.open(path, writable=False)
    try:
        head = file.read(0, DATA_OFFSET)
    finally:
        file.close()
    for offset in HEADER_OFFSETS:
        if header := SEGMENT_HEADER.unpack(head, offset):
            named = {name: header.get(name, 0) for name in LogIdentity.__dataclass_fields__}
            return LogIdentity(**named), header["number"]
    raise HeaderCorruptionError(
        path, "no whole segment header; give a segment file of a log, or restore it from a backup", offset=0
    )


def inspect_file(disk: Disk, path: str, identity: LogIdentity, number: int) -> SegmentInfo | None:
    """As `inspect_segment`, wherever the file is."""
    size = identity.segment_bytes
    file = disk.open(path, writable=False)
    try:
        head = file.read(0, DATA_OFFSET)
        tail = file.read(size - FOOTER_BYTES, FOOTER_BYTES)
    finally:
        file.close()
    copies = [fields for offset in HEADER_OFFSETS if (fields := SEGMENT_HEADER.unpack(head, offset))]
    if not copies:
        if not any(head):
            return None
        raise HeaderCorruptionError(
            path, "both copies of the segment header are damaged; restore the file from a backup", offset=0
        )
    header = copies[0]
    if header["version"] > FORMAT_VERSION or header["features_required"]:
        raise FormatVersionError(path, header["version"], FORMAT_VERSION)
    if header["store_id"] != identity.store_id:
        raise ForeignDirectoryError(path, "belongs to another store; move the file out of this directory")
    if header["number"] != number or header["segment_bytes"] != size:
        raise HeaderCorruptionError(
            path,
            f"its header says segment {header['number']} of {header['segment_bytes']:,} bytes, its name and the log "
            f"say segment {number} of {size:,}; restore the file from a backup",
            offset=0,
        )
    if len(tail) < FOOTER_BYTES:
        raise HeaderCorruptionError(
            path, f"the file is shorter than the {size:,} bytes that its header says; restore it from a backup"
        )
    bound = (number, header["salt"])
    footer, link = FOOTER.unpack(tail), LINK.unpack(head, LINK_OFFSET)
    if footer and not data_start(number, size) <= footer["end_lsn"] <= data_end(number, size):
        footer = None
    return SegmentInfo(
        path=path,
        number=number,
        salt=header["salt"],
        history_id=header["history_id"],
        segment_bytes=size,
        header_copies=len(copies),
        footer=footer if footer and (footer["number"], footer["salt"]) == bound else None,
        link=link if link and (link["number"], link["salt"]) == bound else None,
    )


def open_segment(disk: Disk, info: SegmentInfo) -> Segment:
    """Maps an existing segment for writing."""
    file = disk.open(info.path, writable=True)
    try:
        segment = Segment(info.number, info.salt, info.segment_bytes, file.map(info.segment_bytes, writable=True))
    finally:
        file.close()
    segment.linked = info.link is not None
    return segment
