"""Where things stand in a segment file, and that nothing stands in two places."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal import config
from mmwal.format import segment
from mmwal.format.frame import ALIGNMENT, FRAME_BYTES_MAX
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    PAGE_BYTES,
    SECTOR_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEGMENT_HEADER,
    data_end,
    data_start,
    frame_bytes_max,
)

SEGMENT_BYTES = st.integers(SEGMENT_BYTES_MIN // PAGE_BYTES, SEGMENT_BYTES_MAX // PAGE_BYTES).map(
    lambda pages: pages * PAGE_BYTES
)


def test_records_of_a_segment_do_not_overlap_and_keep_to_sectors() -> None:
    places = sorted(
        [
            *((offset, offset + SEGMENT_HEADER.size) for offset in HEADER_OFFSETS),
            (LINK_OFFSET, LINK_OFFSET + LINK.size),
            (DATA_OFFSET, SEGMENT_BYTES_MIN - FOOTER_BYTES),
            (SEGMENT_BYTES_MIN - FOOTER_BYTES, SEGMENT_BYTES_MIN - FOOTER_BYTES + FOOTER.size),
        ]
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert all(start % SECTOR_BYTES == 0 for start, _ in places)


def test_header_copies_are_on_pages_of_their_own() -> None:
    """One damaged page leaves one good header."""
    assert len({offset // PAGE_BYTES for offset in HEADER_OFFSETS}) == 2
    assert DATA_OFFSET // PAGE_BYTES not in {offset // PAGE_BYTES for offset in HEADER_OFFSETS}


@given(st.integers(0, 2**20), SEGMENT_BYTES)
def test_frames_have_their_place_between_header_and_footer(number: int, segment_bytes: int) -> None:
    start, end = data_start(number, segment_bytes), data_end(number, segment_bytes)
    assert start % ALIGNMENT == end % ALIGNMENT == 0
    assert start // segment_bytes == end // segment_bytes == number
    assert start - number * segment_bytes == DATA_OFFSET
    assert (number + 1) * segment_bytes - end == FOOTER_BYTES
    assert end - start == frame_bytes_max(segment_bytes) + ALIGNMENT


@given(SEGMENT_BYTES)
def test_commit_word_can_express_every_frame_that_fits(segment_bytes: int) -> None:
    assert frame_bytes_max(segment_bytes) <= FRAME_BYTES_MAX


@given(st.integers(0, 2**20), SEGMENT_BYTES)
def test_position_in_the_frames_names_its_segment(number: int, segment_bytes: int) -> None:
    """Any end of a frame but the last possible one lies in the segment as well; so does that."""
    assert (data_end(number, segment_bytes) - ALIGNMENT) // segment_bytes == number
    assert data_end(number, segment_bytes) < data_start(number + 1, segment_bytes)


def test_sizes_that_a_config_accepts_are_sizes_of_the_format() -> None:
    assert SEGMENT_BYTES_MIN <= config.SEGMENT_SIZE_LEAST
    assert config.SEGMENT_SIZE_GREATEST == SEGMENT_BYTES_MAX
    assert config.SEGMENT_SIZE_STEP == PAGE_BYTES
    assert config.DEFAULT_SEGMENT_SIZE % PAGE_BYTES == 0


@pytest.mark.parametrize("name", ["SEGMENT_HEADER", "LINK", "FOOTER"])
def test_records_name_their_segment_and_its_life(name: str) -> None:
    """Number and salt bind link and footer to one life of the file: a recycled file's old ones are void."""
    assert {"number", "salt"} <= set(getattr(segment, name).names)
