"""A reader of one segment file with nothing but the standard library, written from docs/format.md alone.

It shares no code with mmwal: where the two disagree, the page or the package is wrong.
Run it on a file: python tests/golden/reader.py segment-v1.bin
"""

import struct
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

HEADER = struct.Struct("<8sHBBIII16s16sQQQQQQI")
LINK = struct.Struct("<8sQQQQII")
FOOTER = struct.Struct("<8sQQQQQQQQIII")
FRAME = struct.Struct("<QIBBBBQQQQIIII")
KINDS = {1: "insert", 2: "update", 3: "delete", 4: "upsert", 16: "commit", 18: "checkpoint", 19: "idle", 255: "pad"}
VALUES = {1: "f", 2: "e", 3: "b"}


def sealed(layout: struct.Struct, magic: bytes, raw: bytes) -> tuple[Any, ...] | None:
    """Return the fields of a record, or None where its magic or its CRC is wrong."""
    fields = layout.unpack_from(raw)
    whole = fields[0] == magic and zlib.crc32(raw[: layout.size - 4]) == fields[-1]
    return fields if whole else None


def tag(salt: int, lsn: int) -> int:
    """Return the high 38 bits of the commit word of a frame at ``lsn``."""
    mask = (1 << 64) - 1
    x = salt ^ lsn * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return (x ^ x >> 31) >> 26


def table(block: bytes, rows: int) -> Iterator[tuple[int, bytes]]:
    """Yield the items of a block of ids or metadata: what the table says, and the bytes it says it of."""
    at = 4 * rows
    for entry in struct.unpack_from(f"<{rows}I", block) if block else [0xFFFF_FFFF] * rows:
        size = 0 if entry == 0xFFFF_FFFF else entry & 0x7FFF_FFFF
        yield entry, block[at : at + size]
        at += size


def story_of_rows(rows: int, dtype: int, vectors: bytes, ids: bytes, metadata: bytes) -> Iterator[str]:
    """Yield one line for each row of a frame."""
    width = len(vectors) // rows
    said = list(table(metadata, rows))
    for row, (entry, raw) in enumerate(table(ids, rows)):
        id = int.from_bytes(raw, "little", signed=True) if entry >> 31 else raw.decode()
        line = f"    {id!r}"
        if dtype:
            values = struct.iter_unpack("<" + VALUES[dtype], vectors[row * width : (row + 1) * width])
            line += f" {VALUES[dtype]}{[value for (value,) in values]}"
        if said[row][0] != 0xFFFF_FFFF:
            line += f" metadata {said[row][1].hex()}"
        yield line


def story(raw: bytes) -> Iterator[str]:
    """Yield the content of a segment file, line by line; stop at the first frame that is not valid."""
    header = sealed(HEADER, b"MMWALSEG", raw) or sealed(HEADER, b"MMWALSEG", raw[4096:])
    assert header, "both copies of the header are damaged"
    number, base, size, salt = header[10:14]
    yield f"segment {number} of version {header[1]}: {size} bytes from {base}, salt {salt:016x}, epoch {header[9]}"
    if link := sealed(LINK, b"MMWALLNK", raw[512:]):
        yield "link: the log begins here" if link[3] == 2**64 - 1 else f"link: segment {link[3]} ends at {link[4]}"
    lsn, end = base + 8192, base + size - 512
    while lsn + 64 <= end:
        at = lsn - base
        word, crc, kind, _, dtype, zero, start, txn, time_ns, durable, rows, *sizes = FRAME.unpack_from(raw, at)
        length = (word & 0x3FF_FFFF) * 64
        if word >> 26 != tag(salt, lsn) or not 64 <= length <= end - lsn or start != lsn or zero:
            break
        if sum(sizes) != 0 if kind == 255 else (64 + sum(sizes) + 63) // 64 * 64 != length:
            break
        frame = raw[at : at + (64 if kind == 255 else length)]
        if zlib.crc32(frame[12:], zlib.crc32(frame[:8], salt & 0xFFFF_FFFF)) != crc:
            break
        lsn += length
        yield f"{lsn}: {KINDS.get(kind, kind)} rows {rows} txn {txn} time {time_ns} durable {durable}"
        cuts = [64, 64 + sizes[0], 64 + sizes[0] + sizes[1], 64 + sum(sizes)]
        payload, ids, metadata = (frame[a:b] for a, b in pairwise(cuts))
        if kind < 16:
            yield from story_of_rows(rows, dtype, payload, ids, metadata)
        elif payload:
            yield "    " + " ".join(map(str, struct.unpack("<QQII" if kind == 16 else "<QQ", payload)))
    if footer := sealed(FOOTER, b"MMWALFTR", raw[size - 512 :]):
        yield f"footer: {footer[5]} frames, {footer[6]} entries, {footer[3]} to {footer[4]}"


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        print("\n".join(story(file.read())))
