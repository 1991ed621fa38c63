"""Make the golden segment of this format version: `python -m tools.make_golden`.

A fixed sequence of appends, with fixed salt, ids and times, through a kernel; header, link and footer around them as
the log writes them. Both kernels give the same bytes, and they are those of `tests/golden/`: a difference is a change
of the format. The file of an older version is never made again, only read.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

import mmwal.kernel
from mmwal.format.frame import CHECKPOINT, COMMIT, FRAME, Kind, frame_crc, pack_ids, pack_metadata
from mmwal.format.metadata import encode_metadata
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
    SEGMENT_HEADER,
    data_end,
)
from mmwal.kernel.interface import BLOCK_BYTES, DURABLE

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / f"segment-v{FORMAT_VERSION}.bin"
SEGMENT_BYTES = 64 << 10
SALT = 0x0123_4567_89AB_CDEF
FIRST_NS = 1_767_225_600_000_000_001  # 2026-01-01
TXN = 1 << 32 | 1


class Scribe:
    """Appends to a cursor, each frame a millisecond after the one before."""

    def __init__(self, kernel: Any) -> None:
        self.content = bytearray(SEGMENT_BYTES)
        self.next_segment = bytearray(SEGMENT_BYTES)
        self.block = bytearray(BLOCK_BYTES)
        self.time_ns = FIRST_NS
        self.cursor = kernel.Cursor(self.block, SEGMENT_BYTES, 0, 0, True)
        self.cursor.start(DATA_OFFSET)
        self.cursor.attach(0, self.content, SALT)
        self.cursor.attach(1, self.next_segment, SALT + 1)

    def row(self, kind: Kind, id: str | int, vector: Any = None, metadata: dict[str, Any] | None = None) -> None:
        """Logs one row by the hot path."""
        self._logged(self.cursor.append(kind, id, vector, encode_metadata(metadata), self.time_ns, -1))

    def frame(self, kind: Kind, dtype: int, rows: int, txn: int, *blocks: Any) -> int:
        """Logs a frame of given blocks; returns where it begins."""
        start = int(self.cursor.published)
        payload, ids, metadata = (*blocks, None, None, None)[:3]
        self._logged(self.cursor.append_frame(kind, dtype, rows, txn, self.time_ns, payload, ids, metadata))
        return start

    def synced(self) -> None:
        """Moves `durable` to the end, as a sync would."""
        struct.pack_into("<Q", self.block, DURABLE, self.cursor.published)

    def header_at(self, lsn: int) -> dict[str, Any]:
        """Returns the header of the frame at a position."""
        fields = FRAME.unpack(self.content, lsn)
        assert fields is not None
        return fields

    def _logged(self, lsn: int) -> None:
        assert lsn > 0, f"the kernel answered {lsn}"
        self.time_ns += 1_000_000


def golden_segment(kernel: Any) -> bytes:
    """Returns the golden segment as this kernel writes it."""
    scribe = Scribe(kernel)
    one = np.array([1.0, -2.5, 3.25], np.float32)

    # Single rows: every kind, both kinds of ids, every dtype, with and without metadata.
    scribe.row(Kind.INSERT, "doc-1", one, {"title": "Wörter", "year": 2026})
    scribe.row(Kind.INSERT, -7, one + 1)
    scribe.synced()
    scribe.row(Kind.UPDATE, "doc-1", None, {"title": "words"})
    scribe.row(Kind.UPSERT, "é" * 40, np.array([0.5, 65_504], np.float16), {})
    scribe.row(Kind.UPSERT, 1 << 40, np.array([-128, 0, 127], np.int8))
    scribe.row(Kind.DELETE, -7)

    # A batch, of which the second row says nothing about metadata.
    ids, matrix = pack_ids(["a", 2, "c"]), np.arange(6, dtype=np.float32)
    meta = pack_metadata([encode_metadata({"n": 1}), None, encode_metadata({})])
    scribe.frame(Kind.INSERT, 1, 3, 0, matrix.tobytes(), ids, meta)
    scribe.synced()

    # A transaction of two frames, with a row between them that does not belong to it.
    members = [scribe.frame(Kind.UPSERT, 1, 1, TXN, one.tobytes(), pack_ids(["t1"]))]
    scribe.row(Kind.DELETE, "between")
    members.append(scribe.frame(Kind.DELETE, 0, 2, TXN, None, pack_ids(["a", 2])))
    crc = 0
    for start in members:
        crc = kernel.crc32(struct.pack("<I", scribe.header_at(start)["frame_crc"]), crc)
    commit = COMMIT.pack(first_lsn=members[0], rows=3, members_crc=crc, reserved=0)
    scribe.frame(Kind.COMMIT, 0, 2, TXN, commit)

    # Marks.
    scribe.frame(Kind.CHECKPOINT, 0, 0, 0, CHECKPOINT.pack(sequence=1, redo_lsn=members[0]))
    scribe.synced()
    scribe.frame(Kind.IDLE, 0, 0, 0)

    # A frame that no longer fits: the rest of the segment becomes a pad, and the frame opens the next segment.
    end_lsn = data_end(0, SEGMENT_BYTES)
    scribe.row(Kind.INSERT, "next", np.ones(14_000, np.float32))
    return _finished(scribe, end_lsn)


def _finished(scribe: Scribe, end_lsn: int) -> bytes:
    """Puts header, link and footer around the frames."""
    lsn, headers = DATA_OFFSET, []
    while lsn < end_lsn:
        headers.append(scribe.header_at(lsn))
        length = (headers[-1]["commit"] & 0x3FF_FFFF) * 64
        covered = 64 if headers[-1]["kind"] == Kind.PAD else length
        assert frame_crc(bytes(scribe.content[lsn : lsn + covered]), covered, SALT) == headers[-1]["frame_crc"]
        lsn += length
    header = SEGMENT_HEADER.pack(
        version=FORMAT_VERSION,
        checksum=CHECKSUM_CRC32,
        dtype=0,
        dimension=0,
        features=0,
        features_required=0,
        store_id=bytes(range(16)),
        history_id=bytes(range(16, 32)),
        epoch=1,
        number=0,
        base_lsn=0,
        segment_bytes=SEGMENT_BYTES,
        salt=SALT,
        created_ns=FIRST_NS - 1,
    )
    link = LINK.pack(number=0, salt=SALT, previous_number=NO_SEGMENT, previous_end_lsn=0, previous_last_crc=0)
    footer = FOOTER.pack(
        number=0,
        salt=SALT,
        first_lsn=DATA_OFFSET,
        end_lsn=end_lsn,
        frames=len(headers),
        entries=sum(fields["rows"] for fields in headers if fields["kind"] < Kind.COMMIT),
        time_least_ns=min(fields["time_ns"] for fields in headers),
        time_greatest_ns=max(fields["time_ns"] for fields in headers),
        open_transactions=0,
        last_crc=headers[-1]["frame_crc"],
    )
    places = [(offset, header) for offset in HEADER_OFFSETS]
    places += [(LINK_OFFSET, link), (SEGMENT_BYTES - FOOTER_BYTES, footer)]
    for offset, raw in places:
        scribe.content[offset : offset + len(raw)] = raw
    return bytes(scribe.content)


def main() -> int:
    """Writes the file, unless it is there and would change."""
    content = golden_segment(mmwal.kernel.load("py"))
    if GOLDEN.exists() and GOLDEN.read_bytes() != content and "--replace" not in sys.argv:
        print(f"{GOLDEN.name} would change, and so the format; pass --replace if that is meant", file=sys.stderr)
        return 1
    GOLDEN.write_bytes(content)
    print(f"{GOLDEN.name}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
