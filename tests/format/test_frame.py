"""The frame's arithmetic, its checksum, and its blocks of ids and metadata, hostile ones included."""

import contextlib
import struct
import zlib
from reprlib import repr as short

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal.errors import IdError, IdTypeError
from mmwal.format.frame import (
    ALIGNMENT,
    COMMIT,
    FRAME,
    FRAME_BYTES_MAX,
    FRAME_DTYPE,
    HEADER_BYTES,
    LENGTH_MASK,
    ROW_KINDS,
    Kind,
    align,
    commit_word,
    encode_id,
    frame_crc,
    pack_ids,
    pack_metadata,
    unpack_ids,
    unpack_metadata,
)

U64 = st.integers(0, 2**64 - 1)
LSN = st.integers(0, 2**56).map(lambda n: n * ALIGNMENT)
LENGTH = st.integers(1, LENGTH_MASK).map(lambda n: n * ALIGNMENT)
IDS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=20,
)
METADATA = st.lists(st.none() | st.binary(max_size=20), max_size=20)


# ---- header and commit word


def test_header_is_one_cache_line_and_reads_alike_through_numpy() -> None:
    values = {name: at + 1 for at, name in enumerate(FRAME.names)}
    raw = FRAME.pack(**values)
    assert len(raw) == HEADER_BYTES == 64
    row = np.frombuffer(raw, FRAME_DTYPE)[0]
    assert {name: int(row[name]) for name in FRAME.names} == values == FRAME.unpack(raw)


def test_checksum_follows_the_commit_word() -> None:
    """Both kernels and the stand-alone reader count on these two places."""
    assert (FRAME.offset_of("commit"), FRAME.offset_of("frame_crc"), FRAME.offset_of("kind")) == (0, 8, 12)


def test_payloads_of_markers_have_no_gaps() -> None:
    assert COMMIT.size == 24


def test_kinds_that_carry_rows_stay_below_16() -> None:
    assert {kind for kind in Kind if kind < 16} == ROW_KINDS


@given(st.integers(0, 2**40))
def test_align_rounds_up_to_64(size: int) -> None:
    assert align(size) % ALIGNMENT == 0
    assert 0 <= align(size) - size < ALIGNMENT


@given(U64, LSN, LENGTH)
def test_commit_word_holds_the_length_and_is_never_zero_for_a_frame(salt: int, lsn: int, length: int) -> None:
    word = commit_word(salt, lsn, length)
    assert 0 < word < 2**64
    assert (word & LENGTH_MASK) * ALIGNMENT == length


@given(U64, LSN, LENGTH, LENGTH)
def test_tag_depends_on_the_place_and_not_on_the_length(salt: int, lsn: int, one: int, other: int) -> None:
    assert commit_word(salt, lsn, one) & ~LENGTH_MASK == commit_word(salt, lsn, other) & ~LENGTH_MASK


def test_tags_of_neighbouring_places_and_salts_differ() -> None:
    tags = {commit_word(salt, lsn * ALIGNMENT, 0) for salt in range(32) for lsn in range(512)}
    assert len(tags) == 32 * 512


def test_commit_word_of_a_known_place_is_what_it_always_was() -> None:
    """A change here is a change of the format."""
    assert commit_word(0x0123456789ABCDEF, 8192, 128) == GOLDEN_COMMIT_WORD
    assert commit_word(0, 0, FRAME_BYTES_MAX) == LENGTH_MASK


GOLDEN_COMMIT_WORD = 0x9D73C41D90000002


def test_checksum_covers_all_but_itself_and_starts_from_the_salt() -> None:
    frame = bytes(range(128))
    expected = zlib.crc32(frame[:8] + frame[12:], 0x89ABCDEF)
    assert frame_crc(frame, 128, 0x0123456789ABCDEF) == expected
    assert frame_crc(memoryview(frame), 128, 0x89ABCDEF) == expected
    assert frame_crc(frame, 128, 0) != expected


@given(st.integers(0, 8 * 128 - 1))
def test_checksum_sees_every_bit_but_its_own(bit: int) -> None:
    frame = bytearray(range(128))
    before = frame_crc(bytes(frame), 128, 7)
    frame[bit // 8] ^= 1 << bit % 8
    assert (frame_crc(bytes(frame), 128, 7) == before) == (8 <= bit // 8 < 12)


# ---- ids


@given(IDS)
def test_ids_come_back_as_they_were(ids: list[str | int]) -> None:
    found = unpack_ids(pack_ids(ids), len(ids))
    assert found == ids
    assert [type(id) for id in found] == [type(id) for id in ids]


def test_number_and_its_digits_are_two_ids() -> None:
    assert encode_id(7) != encode_id("7")
    assert unpack_ids(pack_ids(["7", 7]), 2) == ["7", 7]


def test_block_of_ids_is_a_table_of_lengths_and_then_the_bytes() -> None:
    assert pack_ids(["é", -2]) == struct.pack("<II", 2, 8 | 0x8000_0000) + "é".encode() + b"\xfe" + b"\xff" * 7


def test_numpy_integers_are_ints() -> None:
    assert unpack_ids(pack_ids([np.int32(-3), np.uint8(4)]), 2) == [-3, 4]


@pytest.mark.parametrize("id", ["", "x" * 65_536, "é" * 32_768, "\ud800", 2**63, -(2**63) - 1], ids=short)
def test_id_out_of_bounds_is_refused(id: str | int) -> None:
    with pytest.raises(IdError):
        encode_id(id)


@pytest.mark.parametrize("id", ["x" * 65_535, "é" * 32_767, 2**63 - 1, -(2**63)], ids=short)
def test_id_at_the_bounds_is_accepted(id: str | int) -> None:
    assert unpack_ids(pack_ids([id]), 1) == [id]


@pytest.mark.parametrize("id", [True, None, 1.0, b"a", ("a",), np.float32(1), np.bool_(True)], ids=repr)
def test_id_of_another_type_is_refused(id: object) -> None:
    with pytest.raises(IdTypeError):
        encode_id(id)  # type: ignore[arg-type]


# ---- metadata blocks


@given(METADATA)
def test_metadata_comes_back_as_it_was(metadata: list[bytes | None]) -> None:
    assert unpack_metadata(pack_metadata(metadata), len(metadata)) == metadata


def test_nothing_said_about_any_row_takes_no_bytes() -> None:
    assert pack_metadata([None, None]) == b""
    assert unpack_metadata(b"", 2) == [None, None]


def test_nothing_said_and_empty_are_two_things() -> None:
    assert unpack_metadata(pack_metadata([None, b""]), 2) == [None, b""]


# ---- hostile blocks: an error, never a crash, and no more memory than the block has


@pytest.mark.parametrize(
    ("block", "rows"),
    [
        (b"", 1),
        (b"\1\0\0", 1),
        (b"\1\0\0\0", 1),
        (b"\0\0\0\0", 1),
        (b"\1\0\0\0ab", 1),
        (b"\xff\xff\xff\x7f" + b"a", 1),
        (struct.pack("<I", 0x8000_0007) + b"1234567", 1),
        (struct.pack("<I", 0x8000_0000), 1),
        (b"\1\0\0\0\xff", 1),
        (b"\1\0\0\0a", -1),
        (b"\1\0\0\0a", 2**32 - 1),
    ],
)
def test_block_of_ids_that_contradicts_itself_is_refused(block: bytes, rows: int) -> None:
    with pytest.raises(ValueError, match=r"ids|id|utf-8"):
        unpack_ids(block, rows)


@pytest.mark.parametrize(
    ("block", "rows"),
    [
        (b"\1\0\0", 1),
        (b"\1\0\0\0", 1),
        (b"\1\0\0\0ab", 1),
        (b"\xfe\xff\xff\xffab", 1),
        (b"\xff\xff\xff\xffa", 1),
        (b"\0\0\0\0", -1),
        (b"\0\0\0\0", 2**32 - 1),
    ],
)
def test_block_of_metadata_that_contradicts_itself_is_refused(block: bytes, rows: int) -> None:
    with pytest.raises(ValueError, match="metadata"):
        unpack_metadata(block, rows)


@given(st.binary(max_size=200), st.integers(0, 60))
def test_arbitrary_blocks_cost_a_value_error_at_most(block: bytes, rows: int) -> None:
    for unpack in (unpack_ids, unpack_metadata):
        with contextlib.suppress(ValueError):
            assert len(unpack(memoryview(block), rows)) == rows
