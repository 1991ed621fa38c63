"""The twin of the compiled directory: the same answers from dicts, as a readable specification.

What the methods promise stands in `interface.Directory`. The compiled one (`directory.h`, `replay.h`)
keeps no Python object per id; this one does, and needs several times its memory.

* Several ids turn over in one step where a block is put: no other thread sees half of them.
* A row that an id has left keeps its name until it is forgotten, or put again.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.format.frame import (
    FRAME_DTYPE,
    HEADER_BYTES,
    ID_BYTES_MAX,
    Kind,
    encode_id,
    pack_ids,
    pack_metadata,
    unpack_ids,
    unpack_metadata,
)
from mmwal.kernel.interface import (
    FROM_MATRIX,
    NO_ROW,
    NOT_TAKEN,
    REPLAY_CONTRADICTS,
    REPLAY_DONE,
    REPLAY_SHAPE,
    ROWS_MAX,
)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_NEVER = (1 << 64) - 1


class Directory:
    """id to row, and id and metadata by row."""

    def __init__(self) -> None:
        self._rows: dict[str | int, int] = {}
        self._names: dict[int, str | int] = {}
        self._metadata: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, id: object) -> bool:
        return self.get(id) is not None

    def get(self, id: object, /) -> int | None:
        """Returns the row of an id, or None."""
        row = self._rows.get(id) if type(id) is str or type(id) is int else None
        return None if row == NO_ROW else row

    def put(self, id: str | int, row: int, metadata: bytes | None, /) -> int | None:
        """Lets an id stand in a row; returns the row in which it stood until then, or None."""
        if not _is_id(id):
            raise ValueError(f"{id!r} is no id")
        if metadata is not None and not isinstance(metadata, bytes):
            raise TypeError(f"metadata is bytes, not {type(metadata).__name__}")
        self._name(_row(row), id, metadata)
        before = self._rows.get(id)
        self._rows[id] = row
        return before

    def pop(self, id: object, /) -> int:
        """Takes an id out; returns its row, which keeps its name. Raises `KeyError`."""
        if type(id) is not str and type(id) is not int:
            raise KeyError(id)
        return self._rows.pop(id)

    def name(self, row: int, /) -> str | int | None:
        """Returns the id of a row, or None."""
        return self._names.get(_row(row))

    def metadata(self, row: int, /) -> bytes | None:
        """Returns the metadata of a row, or None."""
        return self._metadata.get(_row(row))

    def forget(self, rows: I64, /) -> None:
        """Lets the names and metadata of rows go."""
        for row in _numbers(rows):
            self._forget(row)

    def put_block(self, ids: Any, metadata: Any, rows: I64, before: I64, /) -> None:
        """Puts many ids, or takes them out, in one step."""
        numbers = _numbers(rows, NO_ROW)
        if len(before) != len(numbers):
            raise ValueError(f"{len(before)} places for {len(numbers)} rows")
        names = unpack_ids(memoryview(ids), len(numbers))
        said = unpack_metadata(memoryview(metadata), len(numbers))
        fresh: dict[str | int, int] = {}
        for index, (id, meta, row) in enumerate(zip(names, said, numbers, strict=True)):
            if row != NO_ROW:
                self._name(row, id, meta)
            before[index] = fresh.get(id, self._rows.get(id, NO_ROW))
            fresh[id] = row
        self._rows.update(fresh)  # one step: from here on nobody finds an id without a row
        for id, row in fresh.items():
            if row == NO_ROW:
                del self._rows[id]

    def find_block(self, ids: Any, out: I64, /) -> None:
        """Writes the row of each id, -1 for one that is not there."""
        out[:] = [self._rows.get(id, -1) for id in unpack_ids(memoryview(ids), len(out))]

    def pop_block(self, ids: Any, out: I64, /) -> None:
        """Takes ids out and writes their rows, -1 for one that is not there."""
        out[:] = [self._rows.pop(id, -1) for id in unpack_ids(memoryview(ids), len(out))]

    def pack_ids(self, rows: I64, /) -> bytes:
        """Returns the block of the ids of rows."""
        found = []
        for row in rows.tolist():
            if (name := self._names.get(row)) is None:
                raise ValueError(f"row {row} has no id")
            found.append(name)
        return pack_ids(found) if found else b""

    def pack_metadata(self, rows: I64, /) -> bytes:
        """Returns the block of the metadata of rows."""
        return pack_metadata([self._metadata.get(row) for row in rows.tolist()])

    def replay(
        self,
        segment: Any,
        offsets: I64,
        lsns: U64,
        origin: int,
        row_bytes: int,
        dtype: int,
        supply: I64,
        left: int,
        origins: npt.NDArray[np.int32],
        places: I64,
        born: U64,
        died: U64,
    ) -> tuple[int, int, int, int, int]:
        """Applies frames in order; see `interface.Directory.replay`."""
        view = memoryview(segment)
        applied = skipped = 0

        def retire(row: int, lsn: int) -> None:
            nonlocal left
            if origins[row] == NOT_TAKEN:
                died[row] = lsn
                return
            self._forget(row)
            origins[row], died[row] = NOT_TAKEN, 0
            supply[left] = row
            left += 1

        for done, (offset, lsn) in enumerate(zip(offsets.tolist(), lsns.tolist(), strict=True)):
            frame = np.frombuffer(view, FRAME_DTYPE, 1, offset)[0]
            kind, rows = int(frame["kind"]), int(frame["rows"])
            sizes = [int(frame[name]) for name in ("vector_bytes", "id_bytes", "meta_bytes")]
            first, ids_at = offset + HEADER_BYTES, offset + HEADER_BYTES + sizes[0]
            meta_at, end = ids_at + sizes[1], ids_at + sizes[1] + sizes[2]
            if end > len(view):
                raise ValueError("a frame or a row is out of bounds")
            vectors = bool(frame["dtype"])
            if vectors and (int(frame["dtype"]), sizes[0]) != (dtype, rows * row_bytes):
                return done, REPLAY_SHAPE, left, applied, skipped
            try:
                if not vectors and kind in (Kind.INSERT, Kind.UPSERT):
                    raise ValueError("rows without vectors")
                ids = unpack_ids(view[ids_at:meta_at], rows)
                metadata = unpack_metadata(view[meta_at:end], rows)
            except ValueError:
                return done, REPLAY_CONTRADICTS, left, applied, skipped
            for index, (id, meta) in enumerate(zip(ids, metadata, strict=True)):
                before = self._rows.get(id, -1)
                if before < 0 and kind in (Kind.DELETE, Kind.UPDATE):
                    skipped += 1
                    continue
                applied += 1
                if kind == Kind.DELETE:
                    retire(self._rows.pop(id), lsn)
                    continue
                if left == 0:
                    raise ValueError("a frame or a row is out of bounds")
                left -= 1
                row = int(supply[left])
                if vectors:
                    source = origin, first + index * row_bytes
                elif origins[before] == NOT_TAKEN:
                    source = FROM_MATRIX, before
                else:
                    source = int(origins[before]), int(places[before])
                keeps = meta is None and before >= 0 and kind != Kind.INSERT
                self._name(row, id, self._metadata.get(before) if keeps else meta)
                self._rows[id] = row
                origins[row], places[row] = source
                born[row], died[row] = lsn, _NEVER
                if before >= 0:
                    retire(before, lsn)
        return len(offsets), REPLAY_DONE, left, applied, skipped

    def _name(self, row: int, id: str | int, metadata: bytes | None) -> None:
        self._forget(row)
        self._names[row] = id
        if metadata is not None:
            self._metadata[row] = metadata

    def _forget(self, row: int) -> None:
        name = self._names.pop(row, None)
        self._metadata.pop(row, None)
        if name is not None and self._rows.get(name) == row:
            del self._rows[name]


def id_seeds(ids: Any, lsns: U64, out: npt.NDArray[np.uint32], /) -> None:
    """Writes what each row's checksum starts from; see `interface.Kernel.id_seeds`."""
    if len(lsns) != len(out):
        raise ValueError(f"{len(lsns)} positions and {len(out)} places")
    raws = map(encode_id, unpack_ids(memoryview(ids), len(out)))
    starts = (lsns ^ (lsns >> np.uint64(32))).astype(np.uint32)
    out[:] = np.fromiter(map(zlib.crc32, raws, starts.tolist()), np.uint32, len(out))


def _is_id(id: object) -> bool:
    if type(id) is int:
        return -(1 << 63) <= id < 1 << 63
    if type(id) is not str:
        return False
    try:
        return 1 <= len(id.encode()) <= ID_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _row(row: int) -> int:
    if not 0 <= row < ROWS_MAX:
        raise ValueError(f"row {row} is out of range")
    return row


def _numbers(rows: I64, least: int = 0) -> list[int]:
    numbers: list[int] = rows.tolist()
    if numbers and not least <= min(numbers) <= max(numbers) < ROWS_MAX:
        raise ValueError("a row is out of range")
    return numbers
