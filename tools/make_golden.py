"""Make the golden files of this format version: `python -m tools.make_golden`.

* The segment: a fixed sequence of appends, with fixed salt, ids and times, through a kernel; header, link and footer
  around them as the log writes them.
* The store: the directory of one that was killed, on a simulated disk of a fixed seed: both control files, a base and a
  delta of an image, the matrix, and a tail of the log that only a recovery applies.

Both kernels give the same bytes, and they are those of `tests/golden/`: a difference is a change of the format. The
files of an older version are never made again, only read.
"""

from __future__ import annotations

import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import mmwal
from mmwal.errors import DurabilityWarning
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
from mmwal.testing.simulator import SimulatedDisk

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden"
GOLDEN = FOLDER / f"segment-v{FORMAT_VERSION}.bin"
GOLDEN_STORE = FOLDER / f"store-v{FORMAT_VERSION}"
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


def golden_store(kernel: Any) -> dict[str, bytes]:
    """Returns the files of the golden store, by path, as this kernel writes them; empty ones left out."""
    disk = SimulatedDisk(seed="golden")
    config = mmwal.WalConfig(
        wal_dir="/wal",
        data_dir="/data",
        dimension=3,
        metric="cosine",
        segment_size=SEGMENT_BYTES,
        max_wal_size=16 * SEGMENT_BYTES,
        sync_interval_ms=0,
        checkpoint_interval=None,
        runway_segments=1,
        kernel=kernel.NAME,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DurabilityWarning)
        store = mmwal.open(config=config, disk=disk)
    # A base: both kinds of ids, with metadata, empty metadata and none.
    store.insert("doc-1", [1.0, -2.5, 3.25], metadata={"title": "Wörter", "year": 2026})
    store.insert_many(["a", 2, "é" * 20], np.arange(1.0, 10.0).reshape(3, 3), metadata=[{}, None, {"n": 1}])
    store.checkpoint()
    # A delta: a row that moved, an id that is gone, a new one.
    store.update("doc-1", [9.0, 9.0, 9.5])
    store.delete("a")
    store.insert(-7, [1.0, 2.0, 3.0])
    store.checkpoint()
    # The tail.
    store.upsert(2, [4.0, 5.0, 6.0], metadata={"tail": True})
    store.delete("é" * 20)
    store.insert_many(["t1", "t2"], np.ones((2, 3)))
    left = disk.kill()
    names = [f"{folder}/{name}" for folder in ("wal", "data") for name in left.list_directory(f"/{folder}")]
    files = {name: left.open(f"/{name}", writable=False) for name in names}
    return {name: file.read(0, file.size()) for name, file in files.items() if file.size()}


def main() -> int:
    """Writes the files, unless they are there and would change."""
    kernel = mmwal.kernel.load("py")
    files = {GOLDEN: golden_segment(kernel)}
    files |= {GOLDEN_STORE / name: content for name, content in golden_store(kernel).items()}
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content and "--replace" not in sys.argv:
            print(f"{path.name} would change, and so the format; pass --replace if that is meant", file=sys.stderr)
            return 1
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path.relative_to(FOLDER)}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
