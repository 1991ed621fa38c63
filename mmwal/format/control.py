"""The control files: two slots, each in its own page, the older one overwritten.

A slot is valid if and only if its magic and CRC hold; of two valid slots the one with the higher sequence is newer.
``wal_dir/control`` holds what the log must know of itself, ``data_dir/control`` names the newest checkpoints.
"""

from __future__ import annotations

from typing import Any

from mmwal.format.layout import Layout
from mmwal.format.segment import PAGE_BYTES

SLOT_OFFSETS = (0, PAGE_BYTES)
CONTROL_BYTES = 2 * PAGE_BYTES

_IDENTITY = (
    ("version", "u16", "format version, 1"),
    ("dtype", "u8", "of the vectors: 0 not fixed, 1 float32, 2 float16, 3 int8"),
    ("metric", "u8", "0 not fixed, 1 inner product, 2 cosine, 3 squared l2"),
    ("dimension", "u32", "values per vector; 0: not fixed"),
    ("features_required", "u64", "features that a reader must know: none yet"),
    ("store_id", "16 bytes", "random, the same in every file of a store"),
    ("history_id", "16 bytes", "random, one for each branch of the log"),
    ("epoch", "u64", "orders histories"),
    ("created_ns", "u64", "wall clock at creation, nanoseconds since 1970 UTC"),
    ("sequence", "u64", "of this slot; the higher is newer"),
)
LOG_CONTROL = Layout(
    "Control slot of the log",
    *_IDENTITY,
    ("segment_bytes", "u64", "segment size, fixed at creation"),
    ("oldest_lsn", "u64", "everything below may be gone"),
    (
        "released_lsn",
        "u64",
        "entries up to here were released: replay begins behind it; less than oldest_lsn counts as that",
    ),
    ("durable_lsn", "u64", "everything below was durable when this slot was written"),
    ("incarnation", "u64", "counts the writers that opened the log"),
    ("clean", "u8", "1: closed cleanly, the log ends at end_lsn"),
    ("owned", "u8", "1: a store owns the log; its checkpoints release it"),
    ("end_lsn", "u64", "end of the log at a clean close; else 0"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALCTL",
)
DATA_CONTROL = Layout(
    "Control slot of the data",
    *_IDENTITY,
    ("redo_lsn", "u64", "where replay starts"),
    (
        "pinned_lsn",
        "u64",
        "where the log is needed from: redo_lsn, or where a transaction begins that was in doubt then",
    ),
    ("checkpoint_ns", "u64", "wall clock of the checkpoint, nanoseconds since 1970 UTC"),
    ("row_bytes", "u32", "stride of a row of the matrix"),
    ("rows_high", "u64", "rows of the matrix ever used: the high-water mark"),
    ("live_rows", "u64", "ids in the directory"),
    ("image_number", "u64", "which directory image"),
    ("image_bytes", "u64", "how much of it belongs to this checkpoint"),
    ("image_crc", "u32", "checksum of its last section, which chains all before it"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALDAT",
)


def read_slots(layout: Layout, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Returns the valid slots as (slot index, fields), the newest first."""
    slots = [(index, layout.unpack(content, offset)) for index, offset in enumerate(SLOT_OFFSETS)]
    valid = [(index, fields) for index, fields in slots if fields is not None]
    return sorted(valid, key=lambda slot: -int(slot[1]["sequence"]))
