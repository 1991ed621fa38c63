"""Scan and find: every clause of the validity rule, bounds, false tags."""

from typing import Any

import numpy as np
import pytest

from mmwal.format.frame import FRAME, FRAME_DTYPE, Kind, commit_word, frame_crc
from mmwal.kernel import interface
from mmwal.kernel.interface import SCAN_CHECKSUM, SCAN_END, SCAN_FULL, SCAN_MALFORMED, SCAN_NO_FRAME
from tests.kernel.memory_log import SEGMENT_BYTES, MemoryLog, frame, salt_of

START, END = 8192, SEGMENT_BYTES - 512
SALT = salt_of(0)
U32 = 0xFFFF_FFFF


def segment_with(*frames: bytes) -> np.ndarray:
    """A segment that holds the frames one behind the other."""
    memory = np.zeros(SEGMENT_BYTES, np.uint8)
    content = b"".join(frames)
    memory[START : START + len(content)] = np.frombuffer(content, np.uint8)
    return memory


def scan(kernel: Any, memory: Any, *, start: int = START, end: int = END, room: int = 200, verify: bool = True) -> Any:
    return kernel.scan(memory, 0, SALT, start, end, np.zeros(room, FRAME_DTYPE), verify)


def three(**last: int) -> np.ndarray:
    """Two valid frames and a third with fields as given, of the length that the given blocks need."""
    first = frame(START, SALT, vector=bytes(100), ids=b"12345")
    second = frame(START + 192, SALT, kind=Kind.PAD, length=64)
    third = frame(START + 256, SALT, **({"vector": bytes(128)} | last))
    return segment_with(first, second, third)


# ---- valid frames


def test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop(kernel: Any) -> None:
    memory = three()
    out = np.zeros(5, FRAME_DTYPE)
    assert kernel.scan(memory, 0, SALT, START, END, out, True) == (START + 448, 3, SCAN_NO_FRAME)
    assert out["start_lsn"].tolist() == [START, START + 192, START + 256, 0, 0]
    assert out[0].tobytes() == memory[START : START + 64].tobytes()


def test_scan_stops_at_the_end_it_was_given(kernel: Any) -> None:
    assert scan(kernel, three(), end=START + 256) == (START + 256, 2, SCAN_END)
    assert scan(kernel, three(), end=START) == (START, 0, SCAN_END)


@pytest.mark.parametrize("end", [START + 257, START + 256 + 63, START + 447])
def test_frame_that_ends_behind_the_end_is_not_taken(kernel: Any, end: int) -> None:
    expected = SCAN_NO_FRAME if end < START + 256 + 64 else SCAN_MALFORMED
    assert scan(kernel, three(), end=end) == (START + 256, 2, expected)


def test_scan_goes_on_where_the_output_was_full(kernel: Any) -> None:
    memory = three()
    out = bytearray(64 * 2 + 63)
    assert kernel.scan(memory, 0, SALT, START, END, out, True) == (START + 256, 2, SCAN_FULL)
    assert kernel.scan(memory, 0, SALT, START + 256, END, out, True) == (START + 448, 1, SCAN_NO_FRAME)
    assert kernel.scan(memory, 0, SALT, START, START + 256, out, True) == (START + 256, 2, SCAN_END)
    assert kernel.scan(memory, 0, SALT, START, END, bytearray(), True) == (START, 0, SCAN_FULL)


def test_flag_kind_and_dtype_are_left_to_the_reader(kernel: Any) -> None:
    assert scan(kernel, three(flags=255, kind=77, dtype=9, rows=U32))[1:] == (3, SCAN_NO_FRAME)


def test_scan_takes_memory_at_any_address(kernel: Any) -> None:
    for shift in range(9):
        raw = bytearray(SEGMENT_BYTES + shift)
        raw[shift:] = three().tobytes()
        assert scan(kernel, memoryview(raw)[shift:]) == (START + 448, 3, SCAN_NO_FRAME)


# ---- the validity rule, clause by clause


BROKEN = {
    "tag of another salt": ({"commit": commit_word(SALT ^ 1, START + 256, 192)}, SCAN_NO_FRAME),
    "tag of another place": ({"commit": commit_word(SALT, START + 320, 192)}, SCAN_NO_FRAME),
    "lowest bit of the tag": ({"commit": commit_word(SALT, START + 256, 192) ^ 1 << 26}, SCAN_NO_FRAME),
    "highest bit of the tag": ({"commit": commit_word(SALT, START + 256, 192) ^ 1 << 63}, SCAN_NO_FRAME),
    "length 0": ({"commit": commit_word(SALT, START + 256, 0)}, SCAN_MALFORMED),
    "length beyond the end": ({"commit": commit_word(SALT, START + 256, END - START - 192)}, SCAN_MALFORMED),
    "greatest length": ({"commit": commit_word(SALT, START + 256, ((1 << 26) - 1) * 64)}, SCAN_MALFORMED),
    "frame that reaches beyond the memory": (
        {"commit": commit_word(SALT, START + 256, 1 << 26), "vector_bytes": (1 << 26) - 64},
        SCAN_MALFORMED,
    ),
    "length other than the blocks": ({"commit": commit_word(SALT, START + 256, 256)}, SCAN_MALFORMED),
    "start elsewhere": ({"start_lsn": START + 320}, SCAN_MALFORMED),
    "reserved byte": ({"reserved": 1}, SCAN_MALFORMED),
    "vectors too short": ({"vector_bytes": 64}, SCAN_MALFORMED),
    "vectors too long": ({"vector_bytes": 129}, SCAN_MALFORMED),
    "ids too long": ({"id_bytes": 1}, SCAN_MALFORMED),
    "metadata too long": ({"meta_bytes": 1}, SCAN_MALFORMED),
    "sizes that overflow 32 bits": ({"vector_bytes": U32, "id_bytes": 129}, SCAN_MALFORMED),
    "greatest sizes": ({"vector_bytes": U32, "id_bytes": U32, "meta_bytes": U32}, SCAN_MALFORMED),
    "pad with a size": ({"kind": int(Kind.PAD), "vector_bytes": 128}, SCAN_MALFORMED),
    "no pad, no sizes": ({"vector_bytes": 0}, SCAN_MALFORMED),
    "checksum": ({"crc": 0}, SCAN_CHECKSUM),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("verify", [True, False])
def test_frame_that_breaks_one_clause_is_not_valid(kernel: Any, name: str, verify: bool) -> None:
    fields, reason = BROKEN[name]
    if reason == SCAN_CHECKSUM and not verify:
        expected = (START + 448, 3, SCAN_NO_FRAME)
    else:
        expected = (START + 256, 2, reason)
    assert scan(kernel, three(**fields), verify=verify) == expected


def test_every_changed_byte_of_a_frame_is_noticed(kernel: Any) -> None:
    whole = three()
    for at in range(START + 256, START + 448):
        memory = whole.copy()
        memory[at] ^= 0x10
        stop, count, reason = scan(kernel, memory)
        assert (stop, count) == (START + 256, 2)
        assert reason == SCAN_CHECKSUM or at < START + 320


def test_content_of_a_pad_is_not_covered_and_its_header_is(kernel: Any) -> None:
    memory = segment_with(frame(START, SALT, kind=Kind.PAD, length=END - START))
    memory[START + 64 :] = 0x5A
    assert scan(kernel, memory) == (END, 1, SCAN_END)
    for at in range(8, 64):
        broken = memory.copy()
        broken[START + at] ^= 1
        assert scan(kernel, broken)[:2] == (START, 0)


def test_frame_with_the_checksum_of_another_salt_is_not_valid(kernel: Any) -> None:
    memory = three(crc=0)
    raw = bytearray(memory[START + 256 : START + 448].tobytes())
    raw[8:12] = frame_crc(bytes(raw), 192, SALT ^ 1).to_bytes(4, "little")
    memory[START + 256 : START + 448] = np.frombuffer(raw, np.uint8)
    assert scan(kernel, memory) == (START + 256, 2, SCAN_CHECKSUM)


# ---- bounds


@pytest.mark.parametrize("start", [START + 1, START + 8, START + 63])
def test_no_frame_begins_off_a_boundary(kernel: Any, start: int) -> None:
    memory = np.zeros(SEGMENT_BYTES, np.uint8)
    memory[start : start + 64] = np.frombuffer(frame(start, SALT), np.uint8)
    assert scan(kernel, memory, start=start) == (start, 0, SCAN_NO_FRAME)


@pytest.mark.parametrize(
    ("size", "base", "start", "end"),
    [
        (SEGMENT_BYTES, 0, 0, SEGMENT_BYTES + 1),
        (SEGMENT_BYTES, 0, 128, 64),
        (SEGMENT_BYTES, 64, 0, 128),
        (SEGMENT_BYTES, 63, 64, 128),
        (SEGMENT_BYTES, 0, -64, 64),
        (SEGMENT_BYTES, 0, 0, -64),
        (SEGMENT_BYTES, -64, 0, 64),
        (SEGMENT_BYTES, (1 << 62) - 64, (1 << 62) - 64, 1 << 62),
        (SEGMENT_BYTES, (1 << 64) - 64, (1 << 64) - 64, (1 << 64) - 1),
        (SEGMENT_BYTES, 0, 0, 1 << 70),
        (0, 0, 0, 64),
    ],
)
def test_range_outside_the_memory_is_an_error(kernel: Any, size: int, base: int, start: int, end: int) -> None:
    memory = bytearray(size)
    with pytest.raises((ValueError, OverflowError)):
        kernel.scan(memory, base, SALT, start, end, bytearray(64), True)
    with pytest.raises((ValueError, OverflowError)):
        kernel.find_frame(memory, base, SALT, start, end)


def test_salt_beyond_64_bits_is_an_error(kernel: Any) -> None:
    for salt in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            kernel.scan(bytearray(64), 0, salt, 0, 64, bytearray(64), True)
        with pytest.raises(OverflowError):
            kernel.find_frame(bytearray(64), 0, salt, 0, 64)


def test_output_that_cannot_be_written_is_an_error(kernel: Any) -> None:
    with pytest.raises((TypeError, BufferError)):
        kernel.scan(bytearray(64), 0, SALT, 0, 64, bytes(64), True)


def test_empty_range_has_no_frame(kernel: Any) -> None:
    assert kernel.scan(b"", 0, SALT, 0, 0, bytearray(64), True) == (0, 0, SCAN_END)
    assert kernel.find_frame(b"", 0, SALT, 0, 0) == -1
    assert kernel.find_frame(bytes(64), 64, SALT, 128, 128) == -1


# ---- find


def test_find_gives_the_first_valid_frame_at_or_behind_the_start(kernel: Any) -> None:
    memory = three()
    found = {start: kernel.find_frame(memory, 0, SALT, start, END) for start in range(START, START + 330)}
    assert found[START] == START
    assert {found[start] for start in range(START + 1, START + 193)} == {START + 192}
    assert {found[start] for start in range(START + 193, START + 257)} == {START + 256}
    assert {found[start] for start in range(START + 257, START + 330)} == {-1}


def test_find_takes_no_frame_that_ends_behind_the_end(kernel: Any) -> None:
    assert kernel.find_frame(three(), 0, SALT, START + 200, START + 447) == -1
    assert kernel.find_frame(three(), 0, SALT, START + 200, START + 448) == START + 256
    assert kernel.find_frame(three(), 0, SALT, START + 200, START + 256 + 8) == -1


def test_find_passes_over_whatever_breaks_a_clause(kernel: Any) -> None:
    at = START
    parts = []
    for fields, _ in BROKEN.values():
        spoiled = {} if "commit" in fields else {key: value for key, value in fields.items() if key != "start_lsn"}
        broken = bytearray(frame(at, SALT, **({"vector": bytes(128)} | spoiled)))
        if not spoiled:
            broken[20] ^= 1
        parts.append(bytes(broken))
        at += len(broken)
    memory = segment_with(*parts)
    assert kernel.find_frame(memory, 0, SALT, 0, END) == -1
    memory[at : at + 128] = np.frombuffer(frame(at, SALT, vector=bytes(64)), np.uint8)
    assert kernel.find_frame(memory, 0, SALT, 0, END) == at


def test_find_is_not_misled_by_copies_of_frames_at_other_places(kernel: Any) -> None:
    copied = frame(START, SALT, vector=bytes(64))
    memory = segment_with(*[frame(START + 128 * i, SALT ^ 1, vector=copied[:64]) for i in range(20)])
    assert kernel.find_frame(memory, 0, SALT, START, END) == -1
    memory[START + 640 : START + 768] = np.frombuffer(copied, np.uint8)
    assert kernel.find_frame(memory, 0, SALT, START, END) == -1


def test_find_searches_a_large_range_to_its_end(kernel: Any) -> None:
    size, base = 9 << 20, 7 << 40
    memory = np.random.default_rng(5).integers(0, 256, size, np.uint8)
    assert kernel.find_frame(memory, base, SALT, base, base + size) == -1
    lsn = base + size - 128
    memory[-128:] = np.frombuffer(frame(lsn, SALT, vector=bytes(64)), np.uint8)
    assert kernel.find_frame(memory, base, SALT, base, base + size) == lsn
    assert kernel.find_frame(memory, base, SALT, base, base + size - 64) == -1


def test_file_made_to_waste_time_is_an_error_and_not_a_hang(kernel: Any) -> None:
    """Every position claims a frame up to the end, with a wrong checksum: quadratic work, if it were done."""
    size = 1 << 20
    lsns = range(0, size, 64)
    headers = np.zeros(len(lsns), FRAME_DTYPE)
    headers["commit"] = [commit_word(SALT, lsn, size - lsn) for lsn in lsns]
    headers["start_lsn"] = lsns
    headers["vector_bytes"] = size - 64 - headers["start_lsn"].astype(np.uint32)
    with pytest.raises(ValueError, match="made up"):
        kernel.find_frame(headers.tobytes(), 0, SALT, 0, size)


def test_damaged_frames_side_by_side_are_within_what_find_checks(kernel: Any) -> None:
    size = 1 << 20
    memory = b"".join(frame(lsn, SALT, vector=bytes(4032), crc=1) for lsn in range(0, size, 4096))
    assert kernel.find_frame(memory, 0, SALT, 0, size) == -1


def test_log_that_was_appended_scans_whole_and_is_found(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=4)
    lsns = [log.append(n, np.full(4, n, np.float32), b"m" * n) for n in range(60)]
    headers = log.headers()
    entries = headers[headers["kind"] != Kind.PAD]
    assert len(entries) == len(lsns)
    assert FRAME.unpack(entries[7].tobytes())["start_lsn"] == lsns[6]
    assert kernel.find_frame(log.memory[0], 0, SALT, lsns[6] + 1, END) == lsns[7]
    log.memory[0][lsns[6] + 70] ^= 1
    assert log.scan(0)[:2] == (lsns[6], interface.SCAN_CHECKSUM)
