"""The directory image: which id stands in which row, as columns, in sections appended to one file.

    base section      every id that is alive
    delta section     what changed since the section before it; row -1: the id was deleted
    delta section     ...

A section begins at a multiple of 64 with a sealed header; the columns follow, each padded
with zeros to 64 bytes, in this order:

    ids               block of ids (`frame.pack_ids`)
    rows              i64, row of the matrix; -1, behind all others: deleted
    lsns              u64, LSN of the entry that wrote the row
    checksums         u32, CRC-32 of the row's bytes, started from what `Kernel.id_seeds` says
    metadata          block of metadata (`frame.pack_metadata`)
    limbo             i64, rows that the checkpoint before this one names and this one does not

An image of ``n`` bytes with last checksum ``c`` is valid if and only if

* its sections stand back to back from 0 to ``n``, the first a base, all others deltas,
* every header is valid, of this store, image number and place, and its sizes add up to the section's,
* the CRC-32 of a section's columns, padding included, equals ``columns_crc``,
* ``previous_crc`` equals the header CRC of the section before (0 for a base), and that of the last equals ``c``.

Since a header holds the CRC of its columns and of the header before, ``c`` binds every byte of the image.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.format.frame import ID_IS_INT, NO_METADATA, align
from mmwal.format.layout import Layout

FORMAT_VERSION = 1
BASE, DELTA = 1, 2
DELETED = -1

SECTION = Layout(
    "Section of a directory image",
    ("version", "u16", "format version, 1"),
    ("kind", "u8", "1 base, 2 delta"),
    ("reserved", "u8", "zero"),
    ("previous_crc", "u32", "header CRC of the section before; 0 for a base"),
    ("store_id", "16 bytes", "random, the same in every file of a store"),
    ("image_number", "u64", "number of this image, as in its file's name"),
    ("offset", "u64", "place of this section in the file"),
    ("section_bytes", "u64", "size of this section, header and padding included"),
    ("sequence", "u64", "of the checkpoint that wrote it"),
    ("redo_lsn", "u64", "where replay starts for that checkpoint"),
    ("rows_high", "u64", "rows of the matrix ever used, as of that checkpoint"),
    ("live_rows", "u64", "ids that are alive, as of that checkpoint"),
    ("entries", "u64", "ids in this section, deleted ones included"),
    ("limbo_rows", "u64", "rows in limbo"),
    ("ids_bytes", "u64", "size of the block of ids, without padding"),
    ("metadata_bytes", "u64", "size of the block of metadata, without padding; 0: no id has any"),
    ("columns_crc", "u32", "CRC-32 of all columns, padding included"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALIMG",
)
HEADER_BYTES = SECTION.size

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
Block = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Place:
    """Where a section stands and what it belongs to."""

    store_id: bytes
    image_number: int
    offset: int
    previous_crc: int


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a section that was read. Ids and metadata are blocks, checked by whoever takes them apart."""

    ids: Block
    rows: I64
    lsns: U64
    checksums: U32
    metadata: Block
    limbo: I64


@dataclass(frozen=True, slots=True)
class NewColumns:
    """The columns of a section that is to be written."""

    ids: BlockColumn
    rows: I64
    lsns: U64
    checksums: U32
    metadata: BlockColumn
    limbo: I64


@dataclass(frozen=True, slots=True)
class Section:
    """A section as it is written: what is stored one behind the other, their size, and the header's CRC."""

    parts: list[Block]
    section_bytes: int
    crc: int


class BlockColumn:
    """A block of ids or of metadata made of smaller ones, each of the next rows, and never put together in memory.

    A block is a table of u32, one for each row, and the bytes of all rows behind it; one of metadata in which no row
    says anything is empty.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[Block, int]] = []

    def add(self, block: Block, rows: int) -> None:
        """Adds the block of the next ``rows`` rows."""
        self._blocks.append((block, rows))

    def parts(self) -> list[Block]:
        """Returns what, one behind the other, is the block of all rows."""
        if not any(len(block) for block, _ in self._blocks):
            return []
        tables = [memoryview(block)[: 4 * rows] for block, rows in self._blocks]
        tables = [table or _says_nothing(rows) for table, (_, rows) in zip(tables, self._blocks, strict=True)]
        return [*tables, *(memoryview(block)[4 * rows :] for block, rows in self._blocks)]


def _says_nothing(rows: int) -> memoryview:
    return memoryview(NO_METADATA.to_bytes(4, "little") * rows)


def cut_block(block: Block, rows: int, first: int) -> tuple[Block, Block]:
    """Returns a block of ``rows`` rows as two: of the ``first`` ones, and of the rest.

    Raises `ValueError` where it is too short for its table.
    """
    if not len(block) or first == rows:
        return block, b""
    sizes = np.frombuffer(block[: 4 * rows], "<u4", rows)[:first].astype(np.int64)
    sizes[sizes == NO_METADATA] = 0
    cut = 4 * rows + int((sizes & ~ID_IS_INT).sum())
    head, tail = block[: 4 * first], block[4 * first : 4 * rows]
    return b"".join((head, block[4 * rows : cut])), b"".join((tail, block[cut:]))


def encode_section(
    place: Place,
    *,
    kind: int,
    sequence: int,
    redo_lsn: int,
    rows_high: int,
    live_rows: int,
    columns: NewColumns,
) -> Section:
    """Returns a section, whose parts are those of the columns: not copied, so that nothing here holds the GIL long."""
    ids, metadata = columns.ids.parts(), columns.metadata.parts()
    parts: list[Block] = []
    columns_crc = 0
    for column in (
        ids,
        [_stored(columns.rows, "<i8")],
        [_stored(columns.lsns, "<u8")],
        [_stored(columns.checksums, "<u4")],
        metadata,
        [_stored(columns.limbo, "<i8")],
    ):
        size = sum(map(len, column))
        for part in [*column, bytes(align(size) - size)]:
            columns_crc = zlib.crc32(part, columns_crc)
            parts.append(part)
    section_bytes = HEADER_BYTES + sum(map(len, parts))
    header = SECTION.pack(
        version=FORMAT_VERSION,
        kind=kind,
        reserved=0,
        previous_crc=place.previous_crc,
        store_id=place.store_id,
        image_number=place.image_number,
        offset=place.offset,
        section_bytes=section_bytes,
        sequence=sequence,
        redo_lsn=redo_lsn,
        rows_high=rows_high,
        live_rows=live_rows,
        entries=len(columns.rows),
        limbo_rows=len(columns.limbo),
        ids_bytes=sum(map(len, ids)),
        metadata_bytes=sum(map(len, metadata)),
        columns_crc=columns_crc,
    )
    crc = int.from_bytes(header[-4:], "little")
    return Section([header, *filter(len, parts)], section_bytes, crc)


def _stored(array: npt.NDArray[Any], dtype: str) -> memoryview:
    """Returns the bytes of an array as they are stored; a copy only where the machine's order is another."""
    return np.ascontiguousarray(array, dtype).view(np.uint8).data


def section_header(content: bytes, place: Place, room: int) -> dict[str, Any]:
    """Returns the fields of the header that begins ``content``, checked against its place.

    Raises `ValueError`, which says what is wrong, before anything is read or allocated by the sizes it names.
    """
    fields = SECTION.unpack(content)
    if fields is None:
        raise ValueError("no valid section header")
    if fields["version"] != FORMAT_VERSION:
        raise ValueError(f"section of format version {fields['version']}, expected {FORMAT_VERSION}")
    for name in ("store_id", "image_number", "offset", "previous_crc"):
        if fields[name] != getattr(place, name):
            raise ValueError(f"section with another {name}: {fields[name]!r}, expected {getattr(place, name)!r}")
    if fields["kind"] != (DELTA if place.offset else BASE):
        raise ValueError(f"section of kind {fields['kind']} at {place.offset}")
    expected = HEADER_BYTES + sum(map(align, _column_sizes(fields)))
    if fields["section_bytes"] != expected or expected > room:
        raise ValueError(f"section of {fields['section_bytes']} bytes, expected {expected} of at most {room}")
    return fields


def decode_columns(content: bytes, fields: dict[str, Any]) -> Columns:
    """Returns the columns that follow a header which `section_header` accepted.

    Raises `ValueError` where they contradict the header, their checksum or themselves.
    """
    if len(content) != fields["section_bytes"] - HEADER_BYTES:
        raise ValueError(f"columns of {len(content)} bytes, expected {fields['section_bytes'] - HEADER_BYTES}")
    if zlib.crc32(content) != fields["columns_crc"]:
        raise ValueError("columns with another checksum than the header's")
    view, at, columns = memoryview(content), 0, []
    for size in _column_sizes(fields):
        columns.append(view[at : at + size])
        at += align(size)
    ids, rows, lsns, checksums, metadata, limbo = columns
    return Columns(
        ids,
        np.frombuffer(rows, "<i8").astype(np.int64, copy=False),
        np.frombuffer(lsns, "<u8").astype(np.uint64, copy=False),
        np.frombuffer(checksums, "<u4").astype(np.uint32, copy=False),
        metadata,
        np.frombuffer(limbo, "<i8").astype(np.int64, copy=False),
    )


def _column_sizes(fields: dict[str, Any]) -> tuple[int, ...]:
    count = fields["entries"]
    return fields["ids_bytes"], 8 * count, 8 * count, 4 * count, fields["metadata_bytes"], 8 * fields["limbo_rows"]


assert align(HEADER_BYTES) == HEADER_BYTES
