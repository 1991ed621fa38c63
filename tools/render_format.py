"""Put the tables and the worked example of `docs/format.md` where its marks are: `python -m tools.render_format`.

The prose of the page is written by hand; what stands between ``<!-- rendered: NAME -->`` and ``<!-- end -->`` comes
from the layouts of `mmwal.format`. ``--check`` changes nothing and fails where the page is not up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import mmwal.kernel
from mmwal.format import control, frame, image, segment
from mmwal.format.frame import FRAME, HEADER_BYTES, LENGTH_MASK, Kind, unpack_ids
from mmwal.format.layout import Layout
from mmwal.format.metadata import decode_metadata, encode_metadata
from mmwal.kernel.interface import BLOCK_BYTES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "format.md"

KINDS = {
    Kind.INSERT: "rows with ids that are new",
    Kind.UPDATE: "rows with ids that exist; without vectors (dtype 0): new metadata only",
    Kind.DELETE: "ids that end; no vectors, no metadata",
    Kind.UPSERT: "rows with ids that may be new or not",
    Kind.COMMIT: "transaction `txn` counts; `rows` is the number of its member frames",
    Kind.PREPARE: "transaction `txn` may be committed later; `rows` is the number of its member frames, the one id its "
    "global id",
    Kind.CHECKPOINT: "a checkpoint is durable",
    Kind.IDLE: "nothing; its `durable_lsn` says how far the last sync of a burst came",
    Kind.ROLLBACK: "transaction `txn` counts for nothing",
    Kind.CUSTOM: "an entry of an application: the one id names its type, its bytes are the payload",
    Kind.PAD: "nothing; the rest of a segment, or a range that was reserved and not used",
}

EXAMPLE_SALT = 0x0123_4567_89AB_CDEF
EXAMPLE_LSN = 8192
EXAMPLE_NS = 1_767_225_600_000_000_000  # 2026-01-01
_MARKED = re.compile(r"(<!-- rendered: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rendered(page: str) -> str:
    """Returns the page with everything between its marks made anew. Raises `KeyError` for an unknown mark."""
    return _MARKED.sub(lambda mark: f"{mark[1]}{RENDERED[mark[2]]()}\n{mark[3]}", page)


def kinds_table() -> str:
    """Returns the table of the kinds of frames."""
    rows = [f"| {kind.value} | {kind.name} | {meaning} |" for kind, meaning in KINDS.items()]
    return "\n".join(["| kind | name | says |", "|---|---|---|", *rows])


def example_frame(kernel: Any) -> bytes:
    """Returns the frame of the worked example, as a kernel writes it."""
    segment_bytes = 64 << 10
    content, block = bytearray(segment_bytes), bytearray(BLOCK_BYTES)
    cursor = kernel.Cursor(block, segment_bytes, 1, 4, True)
    cursor.start(EXAMPLE_LSN)
    cursor.attach(0, content, EXAMPLE_SALT)
    vector = np.array([1.0, 2.0, -0.5, 0.25], np.float32)
    metadata = encode_metadata({"lang": "en"})
    end_lsn = cursor.append(Kind.INSERT, "doc-1", vector, metadata, EXAMPLE_NS, -1)
    assert end_lsn > 0
    return bytes(content[EXAMPLE_LSN:end_lsn])


def example() -> str:
    """Returns the worked example: every byte of one frame, with what it says."""
    raw = example_frame(mmwal.kernel.load("py"))
    lines = [f"{at:>4}  {_hex(piece):<47}  {meaning}" for at, piece, meaning in _example_pieces(raw)]
    return "\n".join(["```text", *lines, "```"])


def _example_pieces(raw: bytes) -> Iterator[tuple[int, bytes, str]]:
    fields = FRAME.unpack(raw)
    assert fields is not None
    for field in FRAME.fields:
        at = FRAME.offset_of(field.name)
        yield at, raw[at : at + int(field.type[1:]) // 8], f"{field.name} = {_value(field.name, fields[field.name])}"
    cuts = np.cumsum([HEADER_BYTES, fields["vector_bytes"], fields["id_bytes"], fields["meta_bytes"]]).tolist()
    vector, ids, metadata = (raw[a:b] for a, b in pairwise(cuts))
    yield cuts[0], vector, f"the vector: {np.frombuffer(vector, '<f4').tolist()}"
    yield cuts[1], ids[:4], "ids, the table: one str of 5 bytes"
    yield cuts[1] + 4, ids[4:], f"ids, the bytes: {unpack_ids(ids, 1)[0]!r}"
    yield cuts[2], metadata[:4], f"metadata, the table: {len(metadata) - 4} bytes"
    yield cuts[2] + 4, metadata[4:], f"metadata, the bytes: {decode_metadata(metadata[4:])}"
    yield cuts[3], raw[cuts[3] :], "zeros up to the next 64-byte boundary"


def _value(name: str, value: int) -> str:
    if name == "commit":
        return f"tag 0x{value >> 26:x}, length 64 * {value & LENGTH_MASK}"
    return f"0x{value:08x}" if name == "frame_crc" else f"{value:,}"


def _hex(piece: bytes) -> str:
    return piece.hex(" ") if len(piece) <= 16 else f"{piece[:2].hex(' ')} ... ({len(piece)} bytes)"


def _table_of(layout: Layout) -> Callable[[], str]:
    return lambda: f"{layout.size} bytes:\n\n{layout.render()}"


RENDERED: dict[str, Callable[[], Any]] = {
    "FRAME": _table_of(frame.FRAME),
    "COMMIT": _table_of(frame.COMMIT),
    "CHECKPOINT": _table_of(frame.CHECKPOINT),
    "CUSTOM": _table_of(frame.CUSTOM),
    "SEGMENT_HEADER": _table_of(segment.SEGMENT_HEADER),
    "LINK": _table_of(segment.LINK),
    "FOOTER": _table_of(segment.FOOTER),
    "LOG_CONTROL": _table_of(control.LOG_CONTROL),
    "DATA_CONTROL": _table_of(control.DATA_CONTROL),
    "SECTION": _table_of(image.SECTION),
    "KINDS": kinds_table,
    "EXAMPLE": example,
}


def main() -> int:
    """Renders the page, or checks that it is rendered."""
    before = PAGE.read_text("utf-8")
    after = rendered(before)
    if after == before:
        return 0
    if "--check" in sys.argv:
        print(f"{PAGE.name} is not up to date: run python -m tools.render_format", file=sys.stderr)
        return 1
    PAGE.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
