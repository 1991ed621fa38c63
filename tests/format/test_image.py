"""The directory image: sections come back as they were written, and whatever else is there is a `ValueError`."""

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmwal.format.frame import NO_METADATA, pack_ids, pack_metadata, unpack_ids, unpack_metadata
from mmwal.format.image import (
    BASE,
    DELTA,
    HEADER_BYTES,
    SECTION,
    BlockColumn,
    Columns,
    NewColumns,
    Place,
    cut_block,
    decode_columns,
    encode_section,
    section_header,
)

PLACE = Place(b"S" * 16, 3, 0, 0)
IDS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()))
ENTRIES = st.lists(
    st.tuples(IDS, st.integers(-1, 2**40), st.integers(0, 2**64 - 1), st.none() | st.binary(max_size=9)), max_size=12
)


def encode(entries: list[Any], limbo: Any = (), place: Place = PLACE, kind: int = BASE) -> bytes:
    ids, metadata = BlockColumn(), BlockColumn()
    for start in range(0, len(entries), 3):
        part = entries[start : start + 3]
        ids.add(pack_ids([entry[0] for entry in part]), len(part))
        metadata.add(pack_metadata([entry[3] for entry in part]), len(part))
    section = encode_section(
        place,
        kind=kind,
        sequence=9,
        redo_lsn=1000,
        rows_high=50,
        live_rows=len(entries),
        columns=NewColumns(
            ids=ids,
            rows=np.array([entry[1] for entry in entries], np.int64),
            lsns=np.array([entry[2] for entry in entries], np.uint64),
            checksums=np.arange(len(entries), dtype=np.uint32),
            metadata=metadata,
            limbo=np.array(limbo, np.int64),
        ),
    )
    content = b"".join(section.parts)
    assert len(content) == section.section_bytes
    assert len(content) % 64 == 0
    assert section.crc.to_bytes(4, "little") == content[HEADER_BYTES - 4 : HEADER_BYTES]
    return content


def decode(content: bytes, place: Place = PLACE) -> Columns:
    """The columns of a section, its blocks checked as whoever loads it does."""
    fields = section_header(content[:HEADER_BYTES], place, len(content))
    columns = decode_columns(content[HEADER_BYTES : fields["section_bytes"]], fields)
    unpack_ids(columns.ids, len(columns.rows))
    unpack_metadata(columns.metadata, len(columns.rows))
    return columns


def edited(content: bytes, **changes: Any) -> bytes:
    """The section with other fields, and a header CRC that says they are right."""
    fields = SECTION.unpack(content)
    assert fields is not None
    return SECTION.pack(**{**fields, **changes}) + content[HEADER_BYTES:]


def with_columns(content: bytes, columns: bytes) -> bytes:
    return edited(content[:HEADER_BYTES] + columns, columns_crc=zlib.crc32(columns))


@given(ENTRIES, st.lists(st.integers(0, 2**40), max_size=5))
def test_section_comes_back_as_it_was(entries: list[Any], limbo: list[int]) -> None:
    columns = decode(encode(entries, limbo))
    ids = unpack_ids(columns.ids, len(entries))
    assert ids == [entry[0] for entry in entries]
    assert [type(id) for id in ids] == [type(entry[0]) for entry in entries]
    assert columns.rows.tolist() == [entry[1] for entry in entries]
    assert columns.lsns.tolist() == [entry[2] for entry in entries]
    assert columns.checksums.tolist() == list(range(len(entries)))
    assert unpack_metadata(columns.metadata, len(entries)) == [entry[3] for entry in entries]
    assert columns.limbo.tolist() == limbo


@given(st.lists(st.tuples(IDS, st.none() | st.binary(max_size=9)), max_size=20), st.integers(0, 20))
def test_blocks_made_of_parts_and_cut_are_those_of_frames(entries: list[Any], cut: int) -> None:
    cut = min(cut, len(entries))
    for pack, values in ((pack_ids, [id for id, _ in entries]), (pack_metadata, [meta for _, meta in entries])):
        parts = [pack(values[:cut]), pack(values[cut:])]
        column = BlockColumn()
        column.add(parts[0], cut)
        column.add(parts[1], len(values) - cut)
        block = b"".join(column.parts())
        assert block == pack(values)
        empty = [NO_METADATA.to_bytes(4, "little") * (len(values) - cut), b""]
        first, rest = cut_block(block, len(values), cut)
        assert unpack(pack, first, cut) == values[:cut]
        assert unpack(pack, rest, len(values) - cut) == values[cut:] or rest in empty


def unpack(pack: Any, block: Any, rows: int) -> list[Any]:
    found: list[Any] = (unpack_ids if pack is pack_ids else unpack_metadata)(block, rows)
    return found


def test_block_shorter_than_its_table_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="buffer"):
        cut_block(b"\x01\x00\x00", 3, 1)


@settings(max_examples=300)
@given(st.data())
def test_any_changed_byte_is_a_value_error(data: st.DataObject) -> None:
    content = bytearray(encode([("a", 1, 64, b"m"), (7, 2, 128, None)], [5]))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r".+"):
        decode(bytes(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": 3},
        {"entries": 2**62},
        {"limbo_rows": 2**61},
        {"ids_bytes": 2**63},
        {"metadata_bytes": 2**64 - 1},
        {"section_bytes": 64},
        {"kind": DELTA},
        {"kind": 3},
        {"version": 2},
        {"offset": 64},
        {"image_number": 4},
        {"store_id": b"X" * 16},
        {"previous_crc": 1},
    ],
)
def test_header_that_contradicts_its_place_or_its_sizes_is_refused(changes: dict[str, Any]) -> None:
    content = encode([("a", 1, 64, b"m"), (7, 2, 128, None)], [5])
    with pytest.raises(ValueError, match=r".+"):
        decode(edited(content, **changes))


def test_sizes_that_add_up_and_lie_are_refused() -> None:
    content = encode([("a" * 40, 1, 64, b"m" * 40), (7, 2, 128, None)])
    fields = SECTION.unpack(content)
    assert fields is not None
    for ids_bytes, metadata_bytes in ((63, fields["metadata_bytes"]), (1, 1), (0, 49), (56, 63), (64, 64), (3, 48)):
        with pytest.raises(ValueError, match=r".+"):
            decode(edited(content, ids_bytes=ids_bytes, metadata_bytes=metadata_bytes))


@settings(max_examples=300)
@given(st.data())
def test_hostile_columns_with_right_checksums_cost_an_error_or_come_back_typed(data: st.DataObject) -> None:
    content = encode([("a", 1, 64, b"m"), ("bc", 2, 128, None), ("d", 3, 192, b"")], [5])
    columns = bytearray(content[HEADER_BYTES:])
    for _ in range(data.draw(st.integers(1, 4))):
        columns[data.draw(st.integers(0, len(columns) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(with_columns(content, bytes(columns)))
    except ValueError:
        return
    ids = unpack_ids(found.ids, 3)
    assert len(ids) == len(found.rows) == len(unpack_metadata(found.metadata, 3)) == 3
    assert all(type(id) in (str, int) for id in ids)


def test_delta_is_bound_to_its_place_and_its_predecessor() -> None:
    place = Place(b"S" * 16, 3, 640, 0xABCD)
    content = encode([("a", -1, 0, None)], place=place, kind=DELTA)
    assert decode(content, place).rows.tolist() == [-1]
    for other in (PLACE, Place(b"S" * 16, 3, 704, 0xABCD), Place(b"S" * 16, 3, 640, 0xABCE)):
        with pytest.raises(ValueError, match="section"):
            decode(content, other)


def test_section_longer_than_the_room_is_refused_before_it_is_read() -> None:
    content = encode([("a", 1, 64, None)])
    with pytest.raises(ValueError, match="at most"):
        section_header(content[:HEADER_BYTES], PLACE, len(content) - 1)
