"""Reading a range of the log in order: frames as arrays, and entries with values.

Not here: where the log ends after a crash (`recovery/tail.py`), what a store makes of it (`recovery/recover.py`).

* Every frame's checksum is verified before its content is looked at.
* Entries of a transaction come when its commit frame is reached, with the commit's LSN; without one they never come.
* Memory stays constant but for the frame headers of open transactions; vectors are views of the mapped segment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmwal.custom import TYPES
from mmwal.disk.interface import Disk
from mmwal.entry import Commit, CustomEntry, OperationName, WalEntry, utc
from mmwal.errors import LEAVE_OUT, LsnUnavailableError, SegmentMissingError, WalCorruptionError
from mmwal.format.frame import (
    ALIGNMENT,
    CHECKPOINT,
    COMMIT,
    CUSTOM,
    HEADER_BYTES,
    LENGTH_MASK,
    NO_TIME,
    ROW_KINDS,
    Kind,
    unpack_ids,
    unpack_metadata,
)
from mmwal.format.metadata import decode_metadata
from mmwal.format.segment import data_start
from mmwal.kernel.interface import DTYPES
from mmwal.log.control import INCARNATION_SHIFT, LogIdentity
from mmwal.log.scan import Frames, scan_frames
from mmwal.log.segment import SegmentInfo, inspect_segment, segment_name
from mmwal.verdicts import ENTRY

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_OPERATIONS: dict[int, OperationName] = {
    Kind.INSERT: "insert",
    Kind.UPDATE: "update",
    Kind.DELETE: "delete",
    Kind.UPSERT: "upsert",
}
_TOLD = frozenset((Kind.COMMIT, Kind.PREPARE, Kind.ROLLBACK, Kind.CHECKPOINT, Kind.CUSTOM))
_SINGLES: dict[int, Any] = {
    Kind.INSERT: WalEntry.Insert,
    Kind.UPDATE: WalEntry.Update,
    Kind.UPSERT: WalEntry.Upsert,
}


Extents = Callable[[int, int], Iterator["Extent"]]  # from a frame's position to another's


@dataclass(frozen=True)
class Extent:
    """The verified frames of one segment within a range, over a read-only view of it."""

    path: str
    base_lsn: int
    view: memoryview
    frames: Frames

    def offset_of(self, frame: np.void) -> int:
        """Returns a frame's place in `view`."""
        return int(frame["start_lsn"]) - self.base_lsn

    def blocks(self, frame: np.void) -> tuple[memoryview, memoryview, memoryview]:
        """Returns the payload, the block of ids and the block of metadata of a frame, as views."""
        payload_at = self.offset_of(frame) + HEADER_BYTES
        ids_at = payload_at + int(frame["vector_bytes"])
        metadata_at = ids_at + int(frame["id_bytes"])
        end = metadata_at + int(frame["meta_bytes"])
        return self.view[payload_at:ids_at], self.view[ids_at:metadata_at], self.view[metadata_at:end]


def read_extents(
    disk: Disk, kernel: Kernel, wal_dir: str, identity: LogIdentity, start_lsn: int, end_lsn: int
) -> Iterator[Extent]:
    """Yields the segments of [start_lsn, end_lsn) with their verified frames; both are positions of frames.

    Raises `WalCorruptionError` at the first damaged frame, `SegmentMissingError`, and what `inspect_segment` raises.
    """
    size = identity.segment_bytes
    last = (end_lsn - 1) // size
    position = start_lsn
    for number in range(start_lsn // size, last + 1):
        info = _inspect(disk, wal_dir, identity, number)
        if info.footer is None and number < last:
            info = info.sealed_by_next(_inspect(disk, wal_dir, identity, number + 1))
        stop = min(info.end_lsn, end_lsn)
        position = max(position, info.first_lsn)
        if position < stop:
            yield read_extent(disk, kernel, info, position, stop)


def read_extent(
    disk: Disk, kernel: Kernel, info: SegmentInfo, start_lsn: int, end_lsn: int, *, verify: bool = True
) -> Extent:
    """Returns the verified frames of one segment, from a frame's position to where its frames end.

    With ``verify=False`` their places and lengths are checked, not their checksums. Raises `WalCorruptionError`.
    """
    return verified_extent(kernel, info, map_segment(disk, info), start_lsn, end_lsn, verify=verify)


def map_segment(disk: Disk, info: SegmentInfo) -> memoryview:
    """Maps a segment for reading; the view outlives the file's name."""
    file = disk.open(info.path, writable=False)
    try:
        return file.map(info.segment_bytes, writable=False).view
    finally:
        file.close()


def verified_extent(
    kernel: Kernel, info: SegmentInfo, view: memoryview, start_lsn: int, end_lsn: int, *, verify: bool = True
) -> Extent:
    """As `read_extent`, of a segment that is mapped."""
    frames, stop, _ = scan_frames(kernel, view, info.base_lsn, info.salt, start_lsn, end_lsn, verify=verify)
    return checked_extent(info, view, frames, stop, end_lsn)


def checked_extent(info: SegmentInfo, view: memoryview, frames: Frames, stop: int, end_lsn: int) -> Extent:
    """Returns what a scan found as an extent. Raises `WalCorruptionError` where it stopped before ``end_lsn``."""
    if stop != end_lsn:
        raise ENTRY.verdict(checksum="damaged").mark(
            WalCorruptionError(
                info.path,
                f"a damaged entry before the end of the log at LSN {end_lsn}; {LEAVE_OUT}",
                offset=stop - info.base_lsn,
                lsn=stop,
            )
        )
    return Extent(info.path, info.base_lsn, view, frames)


def read_entries(
    extents: Extents,
    identity: LogIdentity,
    oldest_lsn: int,
    start_lsn: int | None,
    end_lsn: int,
    until_lsn: int | None = None,
    *,
    leave_out_cut: bool = False,
) -> Iterator[Any]:
    """Yields the entries whose LSN lies in (start_lsn, until_lsn], in the order in which they count.

    ``start_lsn`` None means from the oldest, ``until_lsn`` None to ``end_lsn``, which is the end of a frame.
    ``leave_out_cut``: transactions that begin below ``oldest_lsn`` are not read from there, but left out.
    Raises `LsnUnavailableError` and what ``extents`` raises, such as `read_extents`.
    """
    size = identity.segment_bytes
    if start_lsn is not None and start_lsn < oldest_lsn and start_lsn > data_start(0, size):
        raise LsnUnavailableError(start_lsn, oldest_lsn)
    if start_lsn is not None and start_lsn <= data_start(0, size) < oldest_lsn:
        raise LsnUnavailableError(start_lsn, oldest_lsn)
    start_lsn = max(start_lsn or 0, oldest_lsn)
    open_transactions: dict[int, list[tuple[Extent, np.void]]] = {}
    prepared: set[int] = set()
    incarnation = 0
    first_lsn = data_start(max(start_lsn - 1, 0) // size, size)
    for extent in extents(first_lsn, end_lsn):
        for frame in extent.frames:
            kind, txn = int(frame["kind"]), int(frame["txn"])
            if txn and kind in ROW_KINDS:
                if txn >> INCARNATION_SHIFT != incarnation:  # what another writer left open is not committed any more
                    open_transactions = {txn: open_transactions[txn] for txn in prepared & open_transactions.keys()}
                    incarnation = txn >> INCARNATION_SHIFT
                open_transactions.setdefault(txn, []).append((extent, frame))
                continue
            lsn = frame_end(frame)
            if until_lsn is not None and lsn > until_lsn:
                return
            if kind == Kind.PREPARE:
                prepared.add(txn)
            members = open_transactions.pop(txn, []) if kind in (Kind.COMMIT, Kind.ROLLBACK) else []
            if lsn <= start_lsn:
                continue
            if kind == Kind.COMMIT:
                commit = decode_entry(extent, frame, lsn, identity)
                if commit.first_lsn < oldest_lsn and leave_out_cut:
                    continue
                prepared.discard(txn)
                if commit.first_lsn < first_lsn:
                    earlier = extents(commit.first_lsn, first_lsn)
                    members = [*_members(earlier, txn), *members]
                _check_members(extent, frame, commit, members)
            for member_extent, member in members if kind == Kind.COMMIT else ():
                yield decode_entry(member_extent, member, lsn, identity)
            if kind in _OPERATIONS or kind in _TOLD:
                yield decode_entry(extent, frame, lsn, identity)


def _members(extents: Iterator[Extent], txn: int) -> Iterator[tuple[Extent, np.void]]:
    """Yields the frames with rows of a transaction."""
    for extent in extents:
        for frame in extent.frames[extent.frames["txn"] == txn]:
            if int(frame["kind"]) in ROW_KINDS:
                yield extent, frame


def _check_members(extent: Extent, frame: np.void, commit: Commit, members: list[tuple[Extent, np.void]]) -> None:
    """Refuses half a transaction."""
    rows = sum(int(member["rows"]) for _, member in members)
    if rows != commit.rows:
        raise WalCorruptionError(
            extent.path,
            f"transaction {commit.txn} has {rows} of its {commit.rows} rows; restore the directory from a backup",
            offset=extent.offset_of(frame),
            lsn=commit.lsn,
        )


def frame_end(frame: np.void) -> int:
    """Returns a frame's public LSN: the position just past it."""
    return int(frame["start_lsn"]) + (int(frame["commit"]) & LENGTH_MASK) * ALIGNMENT


def frame_ends(frames: Frames) -> npt.NDArray[np.uint64]:
    """Returns `frame_end` of each frame."""
    ends: npt.NDArray[np.uint64] = frames["start_lsn"] + (frames["commit"] & np.uint64(LENGTH_MASK)) * np.uint64(
        ALIGNMENT
    )
    return ends


def decode_entry(extent: Extent, frame: np.void, lsn: int, identity: LogIdentity) -> Any:
    """Returns a frame as a `WalEntry`; its vectors are read-only views. Raises `WalCorruptionError` for content that
    contradicts itself under a valid checksum."""
    where: Any = {"lsn": lsn, "timestamp_ns": int(frame["time_ns"]), "txn": int(frame["txn"])}
    payload, ids_block, metadata_block = extent.blocks(frame)
    kind, rows = int(frame["kind"]), int(frame["rows"])
    try:
        if kind == Kind.CHECKPOINT:
            fields = _fields(CHECKPOINT.unpack(payload))
            return WalEntry.Checkpoint(fields["sequence"], fields["redo_lsn"], **where)
        if kind == Kind.COMMIT:
            fields = _fields(COMMIT.unpack(payload))
            return WalEntry.Commit(fields["first_lsn"], fields["rows"], **where)
        if kind == Kind.ROLLBACK:
            return WalEntry.Rollback(**where)
        if kind == Kind.PREPARE:
            fields = _fields(COMMIT.unpack(payload))
            return WalEntry.Prepare(unpack_gid(ids_block), fields["first_lsn"], fields["rows"], **where)
        ids = unpack_ids(ids_block, rows)
        if kind == Kind.CUSTOM:
            return _decode_custom(ids, payload, where)
        vectors = decode_vectors(payload, int(frame["dtype"]), rows)
        if vectors is None and kind in (Kind.INSERT, Kind.UPSERT):
            raise ValueError("rows without vectors")
        metadata = [decode_metadata(item) for item in unpack_metadata(metadata_block, rows)]
    except ValueError as error:
        raise ENTRY.verdict(checksum="sound", content="contradicts").mark(
            WalCorruptionError(
                extent.path,
                f"an entry contradicts itself ({error}); it was not written by mmwal",
                offset=extent.offset_of(frame),
                lsn=lsn,
            )
        ) from error
    if rows != 1:
        said = metadata if any(item is not None for item in metadata) else None
        return WalEntry.Batch(_OPERATIONS[kind], ids, vectors, said, **where)
    if kind == Kind.DELETE:
        return WalEntry.Delete(ids[0], **where)
    return _SINGLES[kind](ids[0], None if vectors is None else vectors[0], metadata[0], **where)


def _decode_custom(names: list[str | int], payload: memoryview, where: dict[str, Any]) -> Any:
    time_ns = _fields(CUSTOM.unpack(payload))["timestamp_ns"]
    if len(names) != 1 or not isinstance(names[0], str):
        raise ValueError("a custom entry without the name of its type")
    operation, known = TYPES.decode(names[0], bytes(payload[CUSTOM.size :]))
    timestamp = None if time_ns == NO_TIME else utc(time_ns)
    return WalEntry.Custom(CustomEntry(operation, timestamp), names[0], known, **where)


def unpack_gid(ids_block: memoryview) -> str:
    """Returns the global id of a prepare frame. Raises `ValueError` where it has none."""
    gid = unpack_ids(ids_block, 1)[0]
    if not isinstance(gid, str):
        raise ValueError("a prepare record without the global id of its transaction")
    return gid


def decode_vectors(payload: memoryview, dtype: int, rows: int) -> npt.NDArray[Any] | None:
    """Returns the vectors of a frame as a read-only (rows, d) view; None where it has none."""
    if dtype == 0:
        return None
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype code {dtype}")
    values = np.frombuffer(payload, dtype=DTYPES[dtype])
    if rows == 0 or len(values) % rows:
        raise ValueError(f"{len(values)} values for {rows} rows")
    values.flags.writeable = False
    return values.reshape(rows, -1)


def _fields(found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        raise ValueError("its payload is too short")
    return found


def _inspect(disk: Disk, wal_dir: str, identity: LogIdentity, number: int) -> SegmentInfo:
    try:
        info = inspect_segment(disk, wal_dir, identity, number)
    except FileNotFoundError:
        info = None
    if info is None:
        raise SegmentMissingError(
            f"{wal_dir}/{segment_name(number)}",
            "the segment is missing, and it held durable entries; put the file back, or restore from a backup",
            lsn=number * identity.segment_bytes,
        )
    return info
