"""The checksum: zlib's, on every path; and where its constants come from."""

import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

POLYNOMIAL = 0x1_04C1_1DB7


def power_of_x(exponent: int) -> int:
    """x^exponent modulo the polynomial."""
    value = 1
    for _ in range(exponent):
        value <<= 1
        value ^= POLYNOMIAL if value >> 32 else 0
    return value


def quotient_of_x64() -> int:
    """x^64 divided by the polynomial, without remainder."""
    rest, quotient = 1 << 64, 0
    for shift in range(32, -1, -1):
        if rest >> (shift + 32) & 1:
            rest ^= POLYNOMIAL << shift
            quotient |= 1 << shift
    return quotient


def reflected(value: int, bits: int) -> int:
    return int(f"{value:0{bits}b}"[::-1], 2)


def test_folding_constants_are_the_powers_of_x_that_the_comment_derives(c_sources: Path) -> None:
    found = {
        name: int(value, 16)
        for name, value in re.findall(r"#define (MM_\w+) (0x\w+)", (c_sources / "crc32.h").read_text())
    }
    expected = {"MM_X95": reflected(power_of_x(95), 64), "MM_X63": reflected(power_of_x(63), 64)}
    expected |= {"MM_MU": reflected(quotient_of_x64(), 33), "MM_P": reflected(POLYNOMIAL, 33)}
    for distance in (128, 256, 384, 512, 1024, 1536, 2048):
        expected[f"MM_FOLD_{distance}_H"] = reflected(power_of_x(distance + 63), 64)
        expected[f"MM_FOLD_{distance}_L"] = reflected(power_of_x(distance - 1), 64)
    assert found == expected


def test_every_length_offset_and_seed_gives_the_checksum_of_zlib(kernel: Any) -> None:
    raw = np.random.default_rng(1).integers(0, 256, 1200, np.uint8).tobytes()
    for length in range(1101):
        offset = length * 7 % 66
        piece = memoryview(raw)[offset : offset + length]
        for seed in (0, 1, 0xFFFF_FFFF, length * 0x9E37_79B9 & 0xFFFF_FFFF):
            assert kernel.crc32(piece, seed) == zlib.crc32(piece, seed)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, (1 << 20) + 13])
def test_large_buffers_give_the_checksum_of_zlib(kernel: Any, size: int) -> None:
    raw = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert kernel.crc32(raw) == zlib.crc32(raw)
    assert kernel.crc32(raw, seed=5) == zlib.crc32(raw, 5)


def test_checksum_goes_on_from_a_seed(kernel: Any) -> None:
    raw = bytes(range(256)) * 3
    for cut in (0, 1, 3, 4, 63, 64, 65, 300, 768):
        assert kernel.crc32(raw[cut:], kernel.crc32(raw[:cut])) == zlib.crc32(raw)


def test_known_answer(kernel: Any) -> None:
    assert kernel.crc32(b"123456789") == 0xCBF4_3926
    assert kernel.crc32(b"") == 0
    assert kernel.crc32(b"", 7) == 7


def test_checksum_of_what_is_no_buffer_is_a_type_error(kernel: Any) -> None:
    for wrong in ("text", 5, None):
        with pytest.raises(TypeError):
            kernel.crc32(wrong)


def test_every_fold_of_this_machine_agrees_with_the_bitwise_checksum(c_test: Any) -> None:
    done = subprocess.run([c_test("crc_test")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "portable: agrees" in done.stdout
