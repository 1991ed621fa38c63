"""The segment file: header (twice), link, frames, footer.

    0       header                          4096    header, second copy, in a page of its own
    512     link to the predecessor         8192    the first frame
    size - 512   footer; frames end here

* The header is written before the file gets its name, and never again.
* The link is written into its own sector once the predecessor is durable to its end; it proves that.
* The footer is written once every frame of the segment is durable; it proves that.
"""

from __future__ import annotations

from mmwal.format.frame import ALIGNMENT
from mmwal.format.layout import Layout

FORMAT_VERSION = 1
CHECKSUM_CRC32 = 1
PAGE_BYTES = 4096
SECTOR_BYTES = 512
HEADER_OFFSETS = (0, PAGE_BYTES)
LINK_OFFSET = SECTOR_BYTES
DATA_OFFSET = 2 * PAGE_BYTES
FOOTER_BYTES = SECTOR_BYTES
SEGMENT_BYTES_MIN = 4 * PAGE_BYTES
SEGMENT_BYTES_MAX = 1 << 30
NO_SEGMENT = (1 << 64) - 1
LSN_MAX = 1 << 62  # no byte of a log is at or above this position

SEGMENT_HEADER = Layout(
    "Segment header",
    ("version", "u16", "format version, 1"),
    ("checksum", "u8", "1: CRC-32 of zlib's polynomial"),
    ("dtype", "u8", "of the vectors: 0 not fixed, 1 float32, 2 float16, 3 int8"),
    ("dimension", "u32", "values per vector; 0: not fixed"),
    ("features", "u32", "features that a reader may ignore: none yet"),
    ("features_required", "u32", "features that a reader must know: none yet"),
    ("store_id", "16 bytes", "random, the same in every file of a store"),
    ("history_id", "16 bytes", "random, one for each branch of the log"),
    ("epoch", "u64", "orders histories"),
    ("number", "u64", "segment number"),
    ("base_lsn", "u64", "position of the file's first byte: number * segment size"),
    ("segment_bytes", "u64", "size of the file"),
    ("salt", "u64", "random, new in every life of the file's blocks"),
    ("created_ns", "u64", "wall clock, nanoseconds since 1970 UTC"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALSEG",
)
LINK = Layout(
    "Link",
    ("number", "u64", "this segment"),
    ("salt", "u64", "this segment's salt"),
    ("previous_number", "u64", "the predecessor; all ones: none, the log begins here"),
    ("previous_end_lsn", "u64", "where the predecessor's frames end"),
    ("previous_last_crc", "u32", "checksum of its last frame; 0: it has none"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALLNK",
)
FOOTER = Layout(
    "Footer",
    ("number", "u64", "this segment"),
    ("salt", "u64", "this segment's salt"),
    ("first_lsn", "u64", "position of the first frame"),
    ("end_lsn", "u64", "where the frames end"),
    ("frames", "u64", "frames, pads included"),
    ("entries", "u64", "rows in all frames that carry rows"),
    ("time_least_ns", "u64", "least wall clock of a frame; 0: no frame"),
    ("time_greatest_ns", "u64", "greatest wall clock of a frame; 0: no frame"),
    ("open_transactions", "u32", "transactions begun and not ended in this segment"),
    ("last_crc", "u32", "checksum of the last frame; 0: no frame"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MMWALFTR",
)


def data_start(number: int, segment_bytes: int) -> int:
    """Returns the position of a segment's first frame."""
    return number * segment_bytes + DATA_OFFSET


def data_end(number: int, segment_bytes: int) -> int:
    """Returns the position where a segment's frames end."""
    return (number + 1) * segment_bytes - FOOTER_BYTES


def is_position(lsn: int, segment_bytes: int) -> bool:
    """Returns whether a frame can begin or end at a position."""
    number = (lsn - 1) // segment_bytes
    inside = data_start(number, segment_bytes) <= lsn <= data_end(number, segment_bytes)
    return inside and lsn % ALIGNMENT == 0 and 0 < lsn < LSN_MAX


def frame_bytes_max(segment_bytes: int) -> int:
    """Returns the size of the largest frame that is written to a segment: none fills one alone, so that whatever waits
    for room waits for the next segment, never for the one behind that. A reader takes what a segment holds."""
    return segment_bytes - DATA_OFFSET - FOOTER_BYTES - ALIGNMENT


assert max(SEGMENT_HEADER.size, LINK.size, FOOTER.size) <= SECTOR_BYTES
