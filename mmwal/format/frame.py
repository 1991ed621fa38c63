"""The frame: one entry, or one batch of entries, on disk.

A frame starts on a 64-byte boundary with a 64-byte header (one cache line), then the vectors, the block of ids,
the block of metadata, and zeros up to the next 64-byte boundary.

A frame at position ``lsn`` of a segment with salt ``salt`` is valid if and only if

* the high 38 bits of its commit word are the tag of (salt, lsn),
* its length, 64 times the low 26 bits, is at least 64 and stays below the end of the segment's data,
* ``start_lsn`` equals ``lsn`` and the reserved byte is zero,
* for every kind but PAD the three block sizes add up to the length, rounded up to 64; for PAD they are zero,
* the CRC-32, started from the low half of the salt, of the commit word and of everything behind the ``crc`` field
  (for PAD: of the header only) equals ``crc``.

The commit word is stored last, with release order. What an earlier life of a recycled segment left behind has
another salt, so it never looks published.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np

from mmwal.errors import IdError, IdTypeError
from mmwal.format.layout import Layout

ALIGNMENT = 64
HEADER_BYTES = 64
LENGTH_BITS = 26
LENGTH_MASK = (1 << LENGTH_BITS) - 1
FRAME_BYTES_MAX = LENGTH_MASK * ALIGNMENT
ID_BYTES_MAX = 65_535
ID_IS_INT = 0x8000_0000
NO_METADATA = 0xFFFF_FFFF
_U64 = (1 << 64) - 1


class Kind(enum.IntEnum):
    """What a frame says. Kinds from 16 up carry no rows of a store."""

    INSERT = 1
    UPDATE = 2
    DELETE = 3
    UPSERT = 4
    COMMIT = 16
    PREPARE = 17
    CHECKPOINT = 18
    IDLE = 19
    ROLLBACK = 20
    CUSTOM = 32
    PAD = 255


ROW_KINDS = frozenset((Kind.INSERT, Kind.UPDATE, Kind.DELETE, Kind.UPSERT))

FRAME = Layout(
    "Frame header",
    ("commit", "u64", "commit word: length / 64 in the low 26 bits, tag of (salt, position) in the high 38"),
    (
        "frame_crc",
        "u32",
        "CRC-32 of the commit word and of all behind this field, started from the low half of the salt",
    ),
    (
        "kind",
        "u8",
        (
            "1 insert, 2 update, 3 delete, 4 upsert, 16 commit, 17 prepare, 18 checkpoint, 19 idle mark, 20 rollback, "
            "32 custom, 255 pad"
        ),
    ),
    ("flags", "u8", "no flag is defined: zero"),
    ("dtype", "u8", "of the vectors: 0 none, 1 float32, 2 float16, 3 int8"),
    ("reserved", "u8", "zero"),
    ("start_lsn", "u64", "position of this frame in the log"),
    ("txn", "u64", "transaction this frame belongs to; 0: none"),
    ("time_ns", "u64", "wall clock when it was logged, nanoseconds since 1970 UTC"),
    ("durable_lsn", "u64", "the durable position known when it was written"),
    ("rows", "u32", "rows in this frame (commit, prepare: member frames)"),
    ("vector_bytes", "u32", "size of the vectors, or of the fixed payload of a commit, prepare or checkpoint"),
    ("id_bytes", "u32", "size of the block of ids"),
    ("meta_bytes", "u32", "size of the block of metadata; 0: no row says anything about metadata"),
)
FRAME_DTYPE = np.dtype(
    {
        "names": list(FRAME.names),
        "formats": [f"<{field.type[0]}{int(field.type[1:]) // 8}" for field in FRAME.fields],
        "offsets": [FRAME.offset_of(name) for name in FRAME.names],
        "itemsize": HEADER_BYTES,
    }
)
COMMIT = Layout(
    "Payload of a commit or prepare frame",
    ("first_lsn", "u64", "position of the first member frame"),
    ("rows", "u64", "rows in all members"),
    ("members_crc", "u32", "CRC-32 over the CRC fields of the members, in order"),
    ("reserved", "u32", "zero"),
)
CHECKPOINT = Layout(
    "Payload of a checkpoint frame",
    ("sequence", "u64", "number of the checkpoint"),
    ("redo_lsn", "u64", "where replay starts for it"),
)
CUSTOM = Layout(
    "Payload of a custom frame, before the application's bytes",
    ("timestamp_ns", "i64", "the application's own time, nanoseconds since 1970 UTC; -2^63: none"),
)
NO_TIME = -(1 << 63)


def align(size: int) -> int:
    """Returns ``size`` rounded up to the next multiple of 64."""
    return (size + ALIGNMENT - 1) & ~(ALIGNMENT - 1)


def commit_word(salt: int, lsn: int, length: int) -> int:
    """Returns the commit word of a frame of ``length`` bytes at ``lsn``."""
    x = (salt ^ (lsn * 0x9E3779B97F4A7C15)) & _U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _U64
    x ^= x >> 31
    return (x & ~LENGTH_MASK & _U64) | (length // ALIGNMENT)


def frame_crc(frame: memoryview | bytes, length: int, salt: int) -> int:
    """Returns the checksum of the frame at the start of ``frame``; ``length`` is 64 for a PAD."""
    return zlib.crc32(frame[12:length], zlib.crc32(frame[0:8], salt & 0xFFFF_FFFF))


def pack_ids(ids: Iterable[str | int]) -> bytes:
    """Returns the block of ids: a table of u32 lengths (high bit: an int of 8 bytes), then the bytes.

    Raises `IdTypeError` for an id that is neither str nor int, `IdError` for one that is empty, longer than 65,535
    UTF-8 bytes, out of the signed 64-bit range or not encodable.
    """
    ids = list(ids)
    if set(map(type, ids)) == {str}:  # the usual case, six times as fast: as many bytes as characters
        texts = cast("list[str]", ids)
        joined = "".join(texts)
        sizes = list(map(len, texts))
        if joined.isascii() and min(sizes) >= 1 and max(sizes) <= ID_BYTES_MAX:
            return struct.pack(f"<{len(sizes)}I", *sizes) + joined.encode()
    lengths: list[int] = []
    parts: list[bytes] = []
    for id in ids:
        raw = encode_id(id)
        lengths.append(len(raw) | (0 if type(id) is str else ID_IS_INT))
        parts.append(raw)
    return struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(parts)


def encode_id(id: str | int) -> bytes:
    """Returns an id's bytes: UTF-8 of a str, 8 little-endian bytes of an int. Raises as `pack_ids`."""
    if isinstance(id, str):
        try:
            raw = id.encode()
        except UnicodeEncodeError as error:
            raise IdError(f"id {id!r} cannot be encoded as UTF-8; remove the lone surrogates") from error
        if not 1 <= len(raw) <= ID_BYTES_MAX:
            raise IdError(f"id has {len(raw):,} UTF-8 bytes; it must have 1 to {ID_BYTES_MAX:,}")
        return raw
    if isinstance(id, bool) or not isinstance(id, (int, np.integer)):
        raise IdTypeError(f"id {id!r} is a {type(id).__name__}; an id is a str or an int")
    if not -(1 << 63) <= id < 1 << 63:
        raise IdError(f"id {id} does not fit into 64 bits; use a str")
    return int(id).to_bytes(8, "little", signed=True)


def unpack_ids(block: memoryview | bytes, rows: int) -> list[str | int]:
    """Returns the ids of a block written by `pack_ids`. Raises `ValueError` where the block contradicts itself."""
    table = _table(block, rows, "ids")
    raw = bytes(block[4 * rows :])
    ids: list[str | int] = []
    at = 0
    for tag in table:
        size = tag & ~ID_IS_INT
        piece = raw[at : at + size]
        if len(piece) != size or size == 0:
            raise ValueError("a block of ids ends inside an id")
        if tag & ID_IS_INT:
            if size != 8:
                raise ValueError(f"an int id of {size} bytes")
            ids.append(int.from_bytes(piece, "little", signed=True))
        elif size > ID_BYTES_MAX:
            raise ValueError(f"a str id of {size:,} bytes")
        else:
            ids.append(piece.decode())
        at += size
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes behind the last id of a block")
    return ids


def pack_metadata(metadata: Sequence[bytes | None]) -> bytes:
    """Returns the block of metadata: a table of u32 lengths (all ones: nothing said), then the bytes; b"" if none."""
    if metadata.count(None) == len(metadata):
        return b""
    lengths = [NO_METADATA if meta is None else len(meta) for meta in metadata]
    return struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(meta for meta in metadata if meta is not None)


def unpack_metadata(block: memoryview | bytes, rows: int) -> list[bytes | None]:
    """Returns the metadata of a block written by `pack_metadata`. Raises `ValueError` as `unpack_ids`."""
    if len(block) == 0:
        return [None] * rows
    raw = bytes(block[4 * rows :])
    found: list[bytes | None] = []
    at = 0
    for size in _table(block, rows, "metadata"):
        if size == NO_METADATA:
            found.append(None)
            continue
        if size > len(raw) - at:
            raise ValueError("a block of metadata ends inside a value")
        found.append(raw[at : at + size])
        at += size
    if at != len(raw):
        raise ValueError(f"{len(raw) - at} bytes behind the last value of a block of metadata")
    return found


def _table(block: memoryview | bytes, rows: int, what: str) -> tuple[int, ...]:
    if rows < 0 or 4 * rows > len(block):
        raise ValueError(f"a block of {what} of {len(block)} bytes is too short for {rows} rows")
    return struct.unpack_from(f"<{rows}I", block)


assert FRAME.size == HEADER_BYTES
