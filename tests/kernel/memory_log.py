"""A log in plain memory, for tests: a cursor, its block, a few segments; and frames written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmwal.format.frame import FRAME, FRAME_DTYPE, align, commit_word, frame_crc
from mmwal.format.segment import data_end, data_start
from mmwal.kernel import interface

SEGMENT_BYTES = 16_384  # the least: 7,680 bytes of frames
DATA_BYTES = 7_680


def salt_of(number: int) -> int:
    """The salt of a segment in these tests: any 64 bits."""
    return (0xC3A5C85C97CB3127 * (number + 1)) & 0xFFFF_FFFF_FFFF_FFFF


class MemoryLog:
    """A cursor over segments ``first`` up, all attached, each of them with a memory of its own."""

    def __init__(
        self,
        kernel: Any,
        *,
        segments: int = 3,
        segment_bytes: int = SEGMENT_BYTES,
        dtype: int = 1,
        dimension: int = 4,
        check_finite: bool = True,
        first: int = 0,
        fill: int = 0,
    ) -> None:
        self.kernel = kernel
        self.segment_bytes = segment_bytes
        self.first = first
        self.words = np.zeros(interface.BLOCK_BYTES // 8, np.uint64)
        self.memory = {n: np.full(segment_bytes, fill, np.uint8) for n in range(first, first + segments)}
        self.cursor = kernel.Cursor(self.words, segment_bytes, dtype, dimension, check_finite)
        self.cursor.start(data_start(first, segment_bytes))
        for number, memory in self.memory.items():
            self.cursor.attach(number, memory, salt_of(number))

    def append(self, id: Any = "a", vector: Any = None, metadata: Any = None, row: int = -1) -> int:
        return int(self.cursor.append(1, id, vector, metadata, 77, row))

    def append_sized(self, length: int) -> int:
        """Logs a frame of exactly ``length`` bytes."""
        return int(self.cursor.append_frame(32, 0, 0, 0, 77, bytes(length - 64), None, None))

    def set(self, offset: int, value: int) -> None:
        """Stores a word of the block, as its owner would."""
        self.words[offset // 8] = value

    def put(self, lsn: int, frame: bytes) -> None:
        """Stores bytes at a position of the log."""
        number, at = divmod(lsn, self.segment_bytes)
        self.memory[number][at : at + len(frame)] = np.frombuffer(frame, np.uint8)

    def frame(self, lsn: int, **fields: Any) -> bytes:
        """A frame for a position of this log; see `frame`."""
        return frame(lsn, salt_of(lsn // self.segment_bytes), **fields)

    def scan(self, number: int | None = None, *, end: int | None = None) -> tuple[int, int, np.ndarray]:
        """Scans a segment from its first frame: (stop LSN, reason, headers)."""
        number = self.first if number is None else number
        out = np.zeros(self.segment_bytes // 64, FRAME_DTYPE)
        start = data_start(number, self.segment_bytes)
        end = data_end(number, self.segment_bytes) if end is None else end
        stop, count, reason = self.kernel.scan(
            self.memory[number], number * self.segment_bytes, salt_of(number), start, end, out, True
        )
        return stop, reason, out[:count]

    def headers(self) -> np.ndarray:
        """Every header below `published`; asserts that the frames are whole and without a gap."""
        found = []
        for number in self.memory:
            end = min(self.cursor.published, data_end(number, self.segment_bytes))
            if end <= data_start(number, self.segment_bytes):
                break
            stop, reason, headers = self.scan(number, end=end)
            assert (stop, reason) == (end, interface.SCAN_END)
            found.append(headers)
        return np.concatenate(found) if found else np.zeros(0, FRAME_DTYPE)


def frame(
    lsn: int,
    salt: int,
    *,
    kind: int = 1,
    vector: bytes = b"",
    ids: bytes = b"",
    meta: bytes = b"",
    length: int | None = None,
    crc: int | None = None,
    **fields: int,
) -> bytes:
    """A frame built from the format's description alone: valid, unless a field says otherwise."""
    content = vector + ids + meta
    length = align(64 + len(content)) if length is None else length
    values: dict[str, int] = {
        "commit": commit_word(salt, lsn, length),
        "frame_crc": 0,
        "kind": kind,
        "flags": 0,
        "dtype": 0,
        "reserved": 0,
        "start_lsn": lsn,
        "txn": 0,
        "time_ns": 77,
        "durable_lsn": 0,
        "rows": 0,
        "vector_bytes": len(vector),
        "id_bytes": len(ids),
        "meta_bytes": len(meta),
    }
    values.update(fields)
    raw = bytearray(FRAME.pack(**values) + content)
    raw += bytes(-len(raw) % 64)
    covered = 64 if kind == 255 else len(raw)
    checksum = frame_crc(bytes(raw), covered, salt) if crc is None else crc
    raw[8:12] = checksum.to_bytes(4, "little")
    return bytes(raw)
