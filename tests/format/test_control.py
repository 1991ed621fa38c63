"""Two slots, of which the newest valid one counts; a torn or damaged slot leaves the other."""

from reprlib import repr as short
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal.config import DTYPES, METRICS
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS, read_slots
from mmwal.format.layout import Layout
from mmwal.kernel.interface import DTYPE_CODES

LAYOUTS = [LOG_CONTROL, DATA_CONTROL]


def slot(layout: Layout, **fields: Any) -> bytes:
    empty = {
        field.name: bytes(16) if field.type == "16 bytes" else 0
        for field in layout.fields
        if field.name not in ("magic", "crc")
    }
    return layout.pack(**empty | fields)


def control_file(*slots: bytes) -> bytearray:
    content = bytearray(CONTROL_BYTES)
    for offset, raw in zip(SLOT_OFFSETS, slots, strict=False):
        content[offset : offset + len(raw)] = raw
    return content


@pytest.mark.parametrize("layout", LAYOUTS)
def test_newest_slot_comes_first_wherever_it_stands(layout: Layout) -> None:
    older, newer = slot(layout, sequence=4), slot(layout, sequence=5)
    for content in (control_file(older, newer), control_file(newer, older)):
        assert [fields["sequence"] for _, fields in read_slots(layout, bytes(content))] == [5, 4]
    assert [index for index, _ in read_slots(layout, bytes(control_file(older, newer)))] == [1, 0]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(bit=st.integers(0, 8 * LOG_CONTROL.size - 1))
def test_damaged_slot_leaves_the_other(layout: Layout, bit: int) -> None:
    content = control_file(slot(layout, sequence=4), slot(layout, sequence=5))
    content[SLOT_OFFSETS[1] + bit // 8] ^= 1 << bit % 8
    assert [fields["sequence"] for _, fields in read_slots(layout, bytes(content))] == [4]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("written", range(0, LOG_CONTROL.size, 7))
def test_torn_write_of_a_slot_leaves_the_other(layout: Layout, written: int) -> None:
    newer = slot(layout, sequence=5)
    content = control_file(slot(layout, sequence=4), slot(layout, sequence=3))
    content[SLOT_OFFSETS[1] : SLOT_OFFSETS[1] + written] = newer[:written]
    assert read_slots(layout, bytes(content))[0][1]["sequence"] == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 100, bytes(CONTROL_BYTES), b"\xff" * CONTROL_BYTES], ids=short)
def test_content_without_a_valid_slot_has_none(content: bytes) -> None:
    assert all(read_slots(layout, content) == [] for layout in LAYOUTS)


def test_slots_of_the_other_control_file_are_not_taken_for_ours() -> None:
    assert read_slots(LOG_CONTROL, bytes(control_file(slot(DATA_CONTROL), slot(DATA_CONTROL)))) == []


def test_short_file_still_gives_its_first_slot() -> None:
    content = bytes(control_file(slot(LOG_CONTROL, sequence=1))[: LOG_CONTROL.size])
    assert [index for index, _ in read_slots(LOG_CONTROL, content)] == [0]


def test_slots_are_on_pages_of_their_own() -> None:
    assert [offset % 4096 for offset in SLOT_OFFSETS] == [0, 0]
    assert max(LOG_CONTROL.size, DATA_CONTROL.size) <= 512


def test_codes_in_the_layouts_are_those_of_kernel_and_config() -> None:
    meanings = {field.name: field.meaning for field in LOG_CONTROL.fields}
    assert list(DTYPE_CODES) == list(DTYPES)
    assert all(f"{code} {name}" in meanings["dtype"] for name, code in DTYPE_CODES.items())
    assert all(
        f"{code} {name.replace('_', ' ').replace('l2', 'squared l2')}" in meanings["metric"]
        for code, name in enumerate(METRICS, 1)
    )
