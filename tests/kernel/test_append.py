"""One append: the bytes it writes, the codes it returns, what it refuses."""

import array
from typing import Any

import numpy as np
import pytest

from mmwal.format.frame import FRAME, pack_ids, pack_metadata, unpack_ids, unpack_metadata
from mmwal.kernel import interface
from mmwal.kernel.interface import CONVERT, NONFINITE, NOT_READY, REFUSED, TOO_LARGE
from tests.kernel.memory_log import DATA_BYTES, SEGMENT_BYTES, MemoryLog, salt_of

VECTOR = np.array([1, 2, 3, 4], np.float32)
START = 8192


def test_append_writes_the_bytes_that_the_format_describes(kernel: Any) -> None:
    log = MemoryLog(kernel, fill=0xEE)
    log.set(interface.DURABLE, 4711)
    lsn = log.cursor.append(3, "größe", VECTOR, b"meta", 123, -1)
    expected = log.frame(
        START,
        kind=3,
        dtype=1,
        rows=1,
        time_ns=123,
        durable_lsn=4711,
        vector=VECTOR.tobytes(),
        ids=pack_ids(["größe"]),
        meta=pack_metadata([b"meta"]),
    )
    assert lsn == START + len(expected) == START + 128
    assert log.memory[0][START : START + 128].tobytes() == expected
    assert (log.memory[0][:START] == 0xEE).all()
    assert (log.memory[0][START + 128 :] == 0xEE).all()


@pytest.mark.parametrize("id", ["x", "ü" * 30, "e" * 65_535, 0, -1, 2**63 - 1, -(2**63)])
def test_ids_come_back_as_they_were_logged(kernel: Any, id: str | int) -> None:
    log = MemoryLog(kernel, segment_bytes=1 << 20)
    assert log.append(id) > 0
    header = log.headers()[0]
    at = START + 64
    assert unpack_ids(log.memory[0][at : at + int(header["id_bytes"])].tobytes(), 1) == [id]


@pytest.mark.parametrize("metadata", [None, b"", b"m" * 300])
def test_metadata_comes_back_as_it_was_logged(kernel: Any, metadata: bytes | None) -> None:
    log = MemoryLog(kernel)
    assert log.append("a", None, metadata) > 0
    header = log.headers()[0]
    at = START + 64 + int(header["id_bytes"])
    block = log.memory[0][at : at + int(header["meta_bytes"])].tobytes()
    assert unpack_metadata(block, 1) == [metadata]


def test_entry_without_a_vector_has_no_dtype(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.append("a")
    log.append("b", VECTOR)
    assert log.headers()["dtype"].tolist() == [0, 1]
    assert log.headers()["vector_bytes"].tolist() == [0, 16]


@pytest.mark.parametrize(
    "id", ["", "\ud800", "e" * 65_536, "ü" * 32_768, 2**63, -(2**63) - 1, True, 1.0, None, b"a", np.int64(3)]
)
def test_id_that_is_not_exact_is_left_to_the_caller_to_convert(kernel: Any, id: object) -> None:
    log = MemoryLog(kernel, segment_bytes=1 << 20)
    assert log.append(id) == CONVERT
    assert log.cursor.reserved == START


class Text(str):
    """A str, but not exactly."""


def test_subclass_of_str_is_left_to_the_caller_to_convert(kernel: Any) -> None:
    assert MemoryLog(kernel).append(Text("a")) == CONVERT


@pytest.mark.parametrize(
    "vector",
    [
        [1.0, 2.0, 3.0, 4.0],
        np.arange(8, dtype=np.float32)[::2],
        np.zeros((1, 4), np.float32),
        np.zeros((), np.float32),
        np.zeros(5, np.float32),
        np.zeros(3, np.float32),
        np.zeros(0, np.float32),
        np.zeros(4, np.float64),
        np.zeros(4, np.float16),
        np.zeros(4, ">f4"),
        np.zeros(4, np.int32),
        np.zeros(4, "M8[s]"),
        np.zeros(4, object),
        np.zeros(2, [("x", "f4"), ("y", "f4")]),
        b"\0" * 16,
        memoryview(b"\0" * 16),
        "text",
        4,
    ],
    ids=lambda vector: (
        type(vector).__name__ + (f"-{vector.dtype.str}-{vector.ndim}d" if isinstance(vector, np.ndarray) else "")
    ),
)
def test_vector_that_is_not_exact_is_left_to_the_caller_to_convert(kernel: Any, vector: object) -> None:
    log = MemoryLog(kernel)
    assert log.append("a", vector) == CONVERT
    assert log.cursor.reserved == START


@pytest.mark.parametrize("metadata", ["text", bytearray(b"x"), memoryview(b"x"), {}, 1])
def test_metadata_other_than_bytes_is_left_to_the_caller_to_convert(kernel: Any, metadata: object) -> None:
    assert MemoryLog(kernel).append("a", None, metadata) == CONVERT


def test_any_native_buffer_of_the_dtype_is_a_vector(kernel: Any) -> None:
    log = MemoryLog(kernel)
    read_only = VECTOR.copy()
    read_only.flags.writeable = False
    for vector in (VECTOR, read_only, memoryview(VECTOR), array.array("f", VECTOR), np.arange(5, dtype="f4")[1:]):
        assert log.append("a", vector) > 0
    assert len(log.headers()) == 5


@pytest.mark.parametrize(("dtype", "type"), [(1, np.float32), (2, np.float16), (3, np.int8)])
def test_cursor_takes_vectors_of_its_dtype_only(kernel: Any, dtype: int, type: Any) -> None:
    log = MemoryLog(kernel, dtype=dtype)
    results = [log.append("a", np.ones(4, other)) > 0 for other in (np.float32, np.float16, np.int8)]
    assert results == [type is np.float32, type is np.float16, type is np.int8]
    assert log.headers()["dtype"].tolist() == [dtype]


def test_cursor_without_dtype_and_dimension_takes_what_comes(kernel: Any) -> None:
    log = MemoryLog(kernel, dtype=0, dimension=0)
    for vector in (np.ones(3, np.float32), np.ones(7, np.float16), np.ones(1, np.int8)):
        assert log.append("a", vector) > 0
    assert log.append("a", np.ones(0, np.float32)) == CONVERT
    assert log.headers()["dtype"].tolist() == [1, 2, 3]
    assert log.headers()["vector_bytes"].tolist() == [12, 14, 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_vector_with_nan_or_infinity_is_refused_wherever_it_stands(kernel: Any, dtype: Any, wrong: float) -> None:
    log = MemoryLog(kernel, dtype=1 if dtype is np.float32 else 2, dimension=101)
    for place in range(101):
        vector = np.ones(101, dtype)
        vector[place] = wrong
        assert log.append("a", vector) == NONFINITE
    assert log.cursor.reserved == START


def test_largest_values_are_finite(kernel: Any) -> None:
    log = MemoryLog(kernel, dtype=0, dimension=0)
    for dtype in (np.float32, np.float16):
        for value in (np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).smallest_subnormal):
            assert log.append("a", np.full(33, value, dtype)) > 0


def test_cursor_that_does_not_check_takes_nan(kernel: Any) -> None:
    log = MemoryLog(kernel, check_finite=False)
    assert log.append("a", np.full(4, np.nan, np.float32)) > 0


def test_largest_frame_leaves_64_bytes_of_a_segment_and_one_byte_more_does_not_fit(kernel: Any) -> None:
    log = MemoryLog(kernel)
    largest = DATA_BYTES - 64
    room = largest - 64 - 5 - 4  # header, id, table of the metadata
    assert log.append("a", None, bytes(room + 1)) == TOO_LARGE
    assert log.cursor.append_frame(32, 0, 0, 0, 0, bytes(largest), None, None) == TOO_LARGE
    assert log.cursor.reserved == START
    assert log.append("a", None, bytes(room)) == START + largest
    assert log.headers()["meta_bytes"].tolist() == [4 + room]


@pytest.mark.parametrize("state", [interface.STATE_POISONED, interface.STATE_CLOSED, interface.STATE_FORKED])
def test_any_bit_of_the_state_refuses(kernel: Any, state: int) -> None:
    log = MemoryLog(kernel)
    log.set(interface.STATE, state)
    assert log.append("a") == REFUSED
    assert log.append_sized(64) == REFUSED
    assert log.cursor.reserved == START
    log.set(interface.STATE, 0)
    assert log.append("a") > 0


def test_attention_asks_for_the_slow_path_after_publishing(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.set(interface.ATTENTION, 1)
    assert log.append("a") == -(START + 128)
    assert log.append_sized(64) == -(START + 192)
    assert log.cursor.published == START + 192
    log.set(interface.ATTENTION, 0)
    assert log.append("a") == START + 320


def test_nothing_is_reserved_where_no_segment_is_attached(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=0)
    assert log.append("a") == NOT_READY
    assert log.cursor.reserved == START


def test_row_of_the_matrix_gets_the_vector(kernel: Any) -> None:
    log = MemoryLog(kernel)
    matrix = np.zeros((4, 16), np.float32)
    log.cursor.bind_rows(matrix, 64)
    assert log.append("a", VECTOR, None, row=2) > 0
    assert log.append("a", None, None, row=3) > 0
    assert np.flatnonzero(matrix.any(axis=1)).tolist() == [2]
    assert (matrix[2, :4] == VECTOR).all()
    assert not matrix[2, 4:].any()


def test_row_out_of_the_matrix_is_left_to_the_caller(kernel: Any) -> None:
    log = MemoryLog(kernel)
    assert log.append("a", VECTOR, None, row=0) == CONVERT
    log.cursor.bind_rows(bytearray(64 * 4 + 63), 64)
    assert log.append("a", VECTOR, None, row=3) > 0
    for row in (4, 5, 2**62, 2**63 - 1):
        assert log.append("a", VECTOR, None, row=row) == CONVERT
    log.cursor.bind_rows(bytearray(64), 15)
    assert log.append("a", VECTOR, None, row=0) == CONVERT
    log.cursor.bind_rows(None, 0)
    assert log.append("a", VECTOR, None, row=0) == CONVERT


def test_row_is_not_written_when_the_append_is_refused(kernel: Any) -> None:
    log = MemoryLog(kernel)
    matrix = bytearray(64)
    log.cursor.bind_rows(matrix, 64)
    log.set(interface.STATE, interface.STATE_CLOSED)
    assert log.append("a", VECTOR, None, row=0) == REFUSED
    assert log.append("a", VECTOR * np.nan, None, row=0) == NONFINITE
    assert matrix == bytearray(64)


def test_append_frame_writes_the_bytes_that_the_format_describes(kernel: Any) -> None:
    log = MemoryLog(kernel, fill=0xEE)
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids, meta = pack_ids(["a", 7]), pack_metadata([None, b"seven"])
    lsn = log.cursor.append_frame(1, 1, 2, 2**64 - 1, 2**64 - 1, vectors, bytearray(ids), memoryview(meta))
    fields = {"dtype": 1, "rows": 2, "txn": 2**64 - 1, "time_ns": 2**64 - 1, "durable_lsn": START}
    expected = log.frame(START, kind=1, vector=vectors.tobytes(), ids=ids, meta=meta, **fields)
    assert lsn == START + len(expected)
    assert log.memory[0][START:lsn].tobytes() == expected


def test_append_frame_of_nothing_is_a_header(kernel: Any) -> None:
    log = MemoryLog(kernel)
    assert log.cursor.append_frame(19, 0, 0, 0, 5, None, None, None) == START + 64
    assert log.cursor.append_frame(19, 0, 0, 0, 5, b"", b"", b"") == START + 128
    assert log.headers()["kind"].tolist() == [19, 19]


@pytest.mark.parametrize("kind", [-1, 0, 255, 256, 2**70])
def test_kind_that_no_entry_has_is_an_error(kernel: Any, kind: int) -> None:
    log = MemoryLog(kernel)
    with pytest.raises((ValueError, OverflowError)):
        log.cursor.append(kind, "a", None, None, 0, -1)
    with pytest.raises((ValueError, OverflowError)):
        log.cursor.append_frame(kind, 0, 0, 0, 0, None, None, None)
    assert log.cursor.reserved == START


@pytest.mark.parametrize(
    ("dtype", "rows", "txn", "time_ns"),
    [
        (4, 0, 0, 0),
        (-1, 0, 0, 0),
        (0, 2**32, 0, 0),
        (0, -1, 0, 0),
        (0, 0, 2**64, 0),
        (0, 0, -1, 0),
        (0, 0, 0, -1),
        (0, 0, 0, 2**64),
    ],
)
def test_number_beyond_its_field_is_an_error(kernel: Any, dtype: int, rows: int, txn: int, time_ns: int) -> None:
    log = MemoryLog(kernel)
    with pytest.raises((ValueError, OverflowError)):
        log.cursor.append_frame(1, dtype, rows, txn, time_ns, None, None, None)
    assert log.cursor.reserved == START


def test_append_frame_refuses_what_is_no_contiguous_buffer(kernel: Any) -> None:
    log = MemoryLog(kernel)
    for wrong in ("text", 5, np.zeros((4, 4), np.float32)[:, ::2]):
        with pytest.raises((TypeError, ValueError, BufferError)):
            log.cursor.append_frame(1, 0, 0, 0, 0, wrong, None, None)
    assert log.cursor.reserved == START


def test_missing_argument_is_a_type_error(kernel: Any) -> None:
    log = MemoryLog(kernel)
    with pytest.raises(TypeError):
        log.cursor.append(1, "a", None, None, 0)
    with pytest.raises(TypeError):
        log.cursor.append_frame(1, 0, 0, 0, 0, None, None)


def test_buffers_are_let_go_after_the_append(kernel: Any) -> None:
    log = MemoryLog(kernel, dimension=0)
    vector, payload = array.array("f", [1.0]), bytearray(5)
    log.append("a", vector)
    log.append("a", array.array("d", [1.0]))
    log.cursor.append_frame(1, 0, 0, 0, 0, payload, None, None)
    vector.append(2.0)  # BufferError while it is exported
    payload.append(2)


@pytest.mark.parametrize(
    ("segment_bytes", "dtype", "dimension"),
    [
        (0, 1, 4),
        (8192, 1, 4),
        (16_385, 1, 4),
        (1 << 31, 1, 4),
        (16_384, 4, 4),
        (16_384, -1, 4),
        (16_384, 1, 1 << 31),
        (16_384, 1, -1),
    ],
)
def test_cursor_refuses_sizes_out_of_range(kernel: Any, segment_bytes: int, dtype: int, dimension: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        kernel.Cursor(bytearray(4096), segment_bytes, dtype, dimension, True)


def test_cursor_refuses_a_block_that_is_short_read_only_or_askew(kernel: Any) -> None:
    for block in (bytearray(4095), bytes(4096), memoryview(bytearray(8192))[1:4097]):
        with pytest.raises((ValueError, TypeError, BufferError)):
            kernel.Cursor(block, SEGMENT_BYTES, 1, 4, True)


@pytest.mark.parametrize("lsn", [0, 8191, 8192 + 1, 8192 + 32, 15_872 + 64, 16_384, -64, 1 << 62])
def test_start_refuses_a_position_where_no_frame_can_begin(kernel: Any, lsn: int) -> None:
    log = MemoryLog(kernel)
    with pytest.raises((ValueError, OverflowError)):
        log.cursor.start(lsn)
    assert log.cursor.reserved == START


def test_start_sets_all_three_positions(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.cursor.start(15_872)
    assert (log.cursor.reserved, log.cursor.published, log.cursor.durable) == (15_872,) * 3


def test_header_layout_is_the_one_of_the_format() -> None:
    names = ["commit", "frame_crc", "kind", "flags", "dtype", "reserved", "start_lsn", "txn", "time_ns", "durable_lsn"]
    assert list(FRAME.names) == [*names, "rows", "vector_bytes", "id_bytes", "meta_bytes"]
    assert salt_of(0) != salt_of(1)
