"""Rows in memory: finite values, copies, checksums; and no byte out of bounds."""

import zlib
from typing import Any

import numpy as np
import pytest

FAR = 2**63 - 1


def test_values_without_nan_and_infinity_are_finite(kernel: Any) -> None:
    for dtype, type in ((1, np.float32), (2, np.float16)):
        info = np.finfo(type)
        values = np.array([0, -0.0, 1, info.max, info.min, info.smallest_subnormal, -info.tiny], type)
        for count in range(150):
            assert kernel.all_finite(np.resize(values, count), dtype) is True


@pytest.mark.parametrize(("dtype", "type"), [(1, np.float32), (2, np.float16)])
def test_one_nan_or_infinity_is_seen_at_every_place(kernel: Any, dtype: int, type: Any) -> None:
    for count in (1, 2, 15, 16, 17, 63, 64, 65, 200):
        for place in range(count):
            for wrong in (np.nan, np.inf, -np.inf):
                values = np.full(count, -1.5, type)
                values[place] = wrong
                assert kernel.all_finite(values, dtype) is False


def test_every_pattern_of_bits_is_judged_as_numpy_does(kernel: Any) -> None:
    for dtype, unsigned, type in ((1, np.uint32, np.float32), (2, np.uint16, np.float16)):
        high = np.arange(0, 1 << 16, 7) << (np.iinfo(unsigned).bits - 16)
        for pattern in np.concatenate([high, high + 1]).astype(unsigned):
            value = np.array([pattern]).view(type)
            assert kernel.all_finite(value, dtype) == bool(np.isfinite(value[0]))


def test_values_are_read_at_any_address(kernel: Any) -> None:
    raw = bytearray(4 * 70 + 3)
    for shift in range(4):
        assert kernel.all_finite(memoryview(raw)[shift : shift + 280], 1)


def test_large_ranges_are_looked_at_to_their_end(kernel: Any) -> None:
    values = np.ones(1 << 17, np.float32)
    assert kernel.all_finite(values.reshape(2, -1), 1)
    values[-1] = np.nan
    assert not kernel.all_finite(values, 1)


def test_int8_is_always_finite(kernel: Any) -> None:
    assert kernel.all_finite(bytes(range(256)), 3) is True


@pytest.mark.parametrize(("size", "dtype"), [(4, 0), (4, 4), (4, -1), (5, 1), (3, 2)])
def test_bytes_that_are_no_values_are_an_error(kernel: Any, size: int, dtype: int) -> None:
    with pytest.raises(ValueError, match="no values"):
        kernel.all_finite(bytes(size), dtype)


# ---- gather


def test_gather_copies_rows_from_offsets_to_places(kernel: Any) -> None:
    source = np.arange(256, dtype=np.uint8)
    target = np.zeros(10 * 16, np.uint8)
    kernel.gather(source, np.array([0, 251, 7]), 5, target, np.array([9, 0, 4]), 16)
    rows = target.reshape(10, 16)
    assert rows[9].tolist() == [0, 1, 2, 3, 4] + [0] * 11
    assert rows[0].tolist() == [251, 252, 253, 254, 255] + [0] * 11
    assert rows[4].tolist() == [7, 8, 9, 10, 11] + [0] * 11
    assert np.count_nonzero(target) == 14


def test_gather_of_nothing_copies_nothing(kernel: Any) -> None:
    none = np.zeros(0, np.int64)
    kernel.gather(b"", none, 8, bytearray(), none, 64)


def test_later_row_wins_where_two_go_to_one_place(kernel: Any) -> None:
    target = bytearray(64)
    kernel.gather(b"abcd", np.array([0, 2]), 2, target, np.array([0, 0]), 64)
    assert target[:3] == b"cd\0"


@pytest.mark.parametrize(
    ("offset", "row", "row_bytes", "stride"),
    [
        (-1, 0, 8, 16),
        (93, 0, 8, 16),
        (FAR, 0, 8, 16),
        (-FAR - 1, 0, 8, 16),
        (0, -1, 8, 16),
        (0, 4, 8, 16),
        (0, 3, 10, 17),
        (0, FAR, 8, 16),
        (0, -FAR - 1, 8, 16),
        (0, 1 << 60, 8, 16),
        (0, 1, 8, 1 << 62),
        (0, 0, 0, 16),
        (0, 0, -8, 16),
        (0, 0, 16, 8),
        (0, 0, 101, 101),
        (0, 0, 8, -16),
        (0, 0, FAR, FAR),
    ],
)
def test_gather_out_of_bounds_is_an_error_before_anything_is_copied(
    kernel: Any, offset: int, row: int, row_bytes: int, stride: int
) -> None:
    source, target = b"\1" * 100, bytearray(60)
    with pytest.raises((ValueError, OverflowError)):
        kernel.gather(source, np.array([0, offset]), row_bytes, target, np.array([1, row]), stride)
    assert target == bytearray(60)


def test_gather_at_the_very_ends_is_in_bounds(kernel: Any) -> None:
    target = bytearray(60)
    kernel.gather(b"\1" * 100, np.array([91]), 9, target, np.array([3]), 17)
    assert target == bytes(51) + b"\1" * 9


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(2, np.int32), np.zeros(2, np.uint64), np.zeros((1, 2), np.int64), np.zeros(4, np.int64)[::2], b"12"],
)
def test_gather_takes_int64_arrays_only(kernel: Any, wrong: Any) -> None:
    right = np.zeros(2, np.int64)
    with pytest.raises((TypeError, ValueError)):
        kernel.gather(bytes(9), wrong, 1, bytearray(9), right, 1)
    with pytest.raises((TypeError, ValueError)):
        kernel.gather(bytes(9), right, 1, bytearray(9), wrong, 1)


def test_gather_needs_as_many_rows_as_offsets_and_a_target_to_write(kernel: Any) -> None:
    with pytest.raises(ValueError, match="offsets for"):
        kernel.gather(bytes(9), np.zeros(2, np.int64), 1, bytearray(9), np.zeros(3, np.int64), 1)
    with pytest.raises((TypeError, BufferError)):
        kernel.gather(bytes(9), np.zeros(1, np.int64), 1, bytes(9), np.zeros(1, np.int64), 1)


# ---- row checksums


def test_row_checksums_are_those_of_zlib(kernel: Any) -> None:
    random = np.random.default_rng(3)
    for row_bytes, stride in ((1, 1), (12, 64), (200, 256), (3072, 3072)):
        matrix = random.integers(0, 256, stride * 20, np.uint8)
        rows = random.permutation(20).astype(np.int64)
        seeds = random.integers(0, 1 << 32, 20, np.uint32)
        out = np.zeros(20, np.uint32)
        kernel.row_checksums(matrix, rows, row_bytes, stride, seeds, out)
        expected = [
            zlib.crc32(matrix[row * stride : row * stride + row_bytes], int(seed))
            for row, seed in zip(rows, seeds, strict=True)
        ]
        assert out.tolist() == expected


@pytest.mark.parametrize(
    ("row", "row_bytes", "stride"),
    [(-1, 8, 16), (4, 8, 16), (3, 13, 16), (FAR, 8, 16), (0, 0, 16), (0, 17, 16), (0, 61, 61), (1 << 60, 8, 16)],
)
def test_checksum_of_a_row_out_of_bounds_is_an_error(kernel: Any, row: int, row_bytes: int, stride: int) -> None:
    out = np.zeros(2, np.uint32)
    with pytest.raises((ValueError, OverflowError)):
        kernel.row_checksums(bytes(60), np.array([0, row]), row_bytes, stride, np.zeros(2, np.uint32), out)
    assert not out.any()


def test_row_checksums_need_arrays_of_one_length_and_the_right_types(kernel: Any) -> None:
    rows, seeds = np.zeros(2, np.int64), np.zeros(2, np.uint32)
    for bad_seeds, bad_out in ((seeds[:1], seeds), (seeds, seeds[:1])):
        with pytest.raises(ValueError, match="seeds"):
            kernel.row_checksums(bytes(60), rows, 8, 8, bad_seeds, bad_out.copy())
    for wrong in (np.zeros(2, np.int32), np.zeros(2, np.uint64)):
        with pytest.raises(TypeError):
            kernel.row_checksums(bytes(60), rows, 8, 8, wrong, seeds.copy())
        with pytest.raises(TypeError):
            kernel.row_checksums(bytes(60), rows, 8, 8, seeds, wrong)
    seeds.flags.writeable = False
    with pytest.raises((TypeError, ValueError, BufferError)):
        kernel.row_checksums(bytes(60), rows, 8, 8, seeds, seeds)
