"""A layout is declared once, packs and unpacks itself, and knows its own records from anything else."""

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal.format import control, frame, image, segment
from mmwal.format.layout import Layout

SEALED = Layout(
    "A sealed one",
    ("small", "u8", "a"),
    ("wide", "u64", "b"),
    ("signed", "i64", "c"),
    ("name", "3 bytes", "d"),
    ("crc", "u32", "CRC-32 of all before"),
    magic=b"MAGIC!",
)
OPEN = Layout("An open one", ("first", "u16", "a"), ("second", "u32", "b"))
VALUES: dict[str, Any] = {"small": 1, "wide": 2**64 - 1, "signed": -2, "name": b"abc"}

LAYOUTS = [
    frame.FRAME,
    frame.COMMIT,
    frame.CHECKPOINT,
    segment.SEGMENT_HEADER,
    segment.LINK,
    segment.FOOTER,
    control.LOG_CONTROL,
    control.DATA_CONTROL,
    image.SECTION,
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)


def values_of(layout: Layout) -> dict[str, Any]:
    """Return a different value for every field that a caller gives."""
    given_fields = [field for field in layout.fields if field.name not in ("magic", "crc")]
    return {
        field.name: bytes([at + 1]) * int(field.type.split()[0]) if "bytes" in field.type else at + 1
        for at, field in enumerate(given_fields)
    }


def test_sealed_record_is_little_endian_without_gaps_and_ends_with_its_crc() -> None:
    raw = SEALED.pack(**VALUES)
    body = struct.pack("<6sBQq3s", b"MAGIC!", 1, 2**64 - 1, -2, b"abc")
    assert raw == body + struct.pack("<I", zlib.crc32(body))
    assert len(raw) == SEALED.size == 30


def test_record_without_crc_is_not_sealed() -> None:
    assert not OPEN.sealed
    assert OPEN.pack(first=1, second=2) == b"\1\0\2\0\0\0"
    assert OPEN.unpack(b"\1\0\2\0\0\0") == {"first": 1, "second": 2}


def test_record_is_read_at_an_offset() -> None:
    assert SEALED.unpack(b"xy" + SEALED.pack(**VALUES) + b"z", 2) == SEALED.unpack(SEALED.pack(**VALUES))


@pytest.mark.parametrize("offset", [-1, 1, 29, 1000])
def test_record_that_does_not_fit_into_the_buffer_is_none(offset: int) -> None:
    assert SEALED.unpack(SEALED.pack(**VALUES), offset) is None
    assert OPEN.unpack(b"\0\0\0\0\0") is None


@given(st.integers(0, 8 * 30 - 1))
def test_sealed_record_with_any_bit_flipped_is_none(bit: int) -> None:
    raw = bytearray(SEALED.pack(**VALUES))
    assert SEALED.unpack(raw) is not None
    raw[bit // 8] ^= 1 << bit % 8
    assert SEALED.unpack(raw) is None


def test_record_with_another_magic_is_none_even_with_a_right_crc() -> None:
    body = b"other!" + SEALED.pack(**VALUES)[6:-4]
    assert SEALED.unpack(body + struct.pack("<I", zlib.crc32(body))) is None


def test_missing_field_or_value_out_of_range_is_refused() -> None:
    with pytest.raises(KeyError, match="wide"):
        SEALED.pack(small=1, signed=0, name=b"abc")
    with pytest.raises(struct.error):
        SEALED.pack(**VALUES | {"small": 256})


def test_offsets_and_rendering_follow_the_declaration() -> None:
    assert [OPEN.offset_of(name) for name in OPEN.names] == [0, 2]
    assert OPEN.render().splitlines() == [
        "| offset | field | type | meaning |",
        "|---|---|---|---|",
        "| 0 | `first` | u16 | a |",
        "| 2 | `second` | u32 | b |",
    ]


@each_layout
def test_every_layout_reads_back_what_it_packs(layout: Layout) -> None:
    values = values_of(layout)
    found = layout.unpack(layout.pack(**values))
    assert found is not None
    assert {name: found[name] for name in values} == values


@each_layout
def test_every_layout_fits_a_sector_and_names_each_field_once(layout: Layout) -> None:
    """A sector is what a disk writes whole: a torn record is impossible or shows in its CRC."""
    assert layout.size <= segment.SECTOR_BYTES
    assert len(set(layout.names)) == len(layout.names)
    assert all(field.meaning for field in layout.fields)


def test_no_two_kinds_of_records_share_a_magic() -> None:
    magics = [layout.magic for layout in LAYOUTS if layout.magic]
    assert len(set(magics)) == len(magics)
