"""The two kernels side by side: the same operations give the same results and the same bytes."""

import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmwal.format.frame import FRAME_DTYPE, Kind, commit_word, frame_crc
from mmwal.format.segment import data_end
from mmwal.kernel import interface
from tests.kernel.memory_log import SEGMENT_BYTES, MemoryLog, salt_of

START, END = 8192, SEGMENT_BYTES - 512
RING_WORD = interface.RING // 8
Operation = Callable[[MemoryLog], Any]


def same(first: MemoryLog, second: MemoryLog) -> bool:
    """Whether two logs hold the same words (but for addresses) and the same bytes."""
    return first.words[:RING_WORD].tolist() == second.words[:RING_WORD].tolist() and all(
        np.array_equal(memory, second.memory[number]) for number, memory in first.memory.items()
    )


# ---- a long random sequence of operations


IDS = ["a", "größer", "i" * 500, 0, -1, 2**63 - 1, "", "\ud800", 2**63, True, None, 2.5, b"a"]
METADATA = [None, b"", b"m", b"m" * 333, b"m" * 9000, "text"]


def operation(rng: random.Random) -> Operation:
    """Some operation, the same for every log that it is then done to."""
    draw = rng.random()
    kind, time_ns, lsn = rng.randint(1, 254), rng.getrandbits(64), rng.getrandbits(40)
    if draw < 0.55:
        id, metadata = rng.choice(IDS[: rng.choice((6, 6, 6, 13))]), rng.choice(METADATA[: rng.choice((4, 4, 6))])
        values = [rng.choice((0.0, -1.5, 3e38, float("nan") if rng.random() < 0.1 else 7.0)) for _ in range(8)]
        vector = rng.choice(
            [None, np.array(values, np.float32), np.array(values[:7], np.float32), np.array(values, np.float64), values]
        )
        row = rng.choice((-1, -1, 0, 3, 4, 2**40))
        return lambda log: log.cursor.append(kind, id, vector, metadata, time_ns, row)
    if draw < 0.85:
        blocks = [rng.choice((None, rng.randbytes(rng.choice((0, 1, 63, 64, 65, 1000, 4000, 7616))))) for _ in range(3)]
        fields = kind, rng.randint(0, 3), rng.getrandbits(32), rng.getrandbits(64), time_ns
        return lambda log: log.cursor.append_frame(*fields, *blocks)
    if draw < 0.90:
        return lambda log: log.set(interface.DURABLE, lsn)
    if draw < 0.93:
        state = rng.choice((0, 0, 0, 1, 256))
        return lambda log: log.set(interface.STATE, state)
    if draw < 0.96:
        attention = rng.choice((0, 0, 1))
        return lambda log: log.set(interface.ATTENTION, attention)
    if draw < 0.98:
        return lambda log: log.cursor.advance()
    return skip_and_fill


def skip_and_fill(log: MemoryLog) -> Any:
    """A neighbour reserves, another appends behind it, the neighbour publishes, published moves on."""
    hole = log.cursor.reserved
    if hole + 64 > data_end(hole // SEGMENT_BYTES, SEGMENT_BYTES) or hole // SEGMENT_BYTES not in log.memory:
        return None
    log.set(interface.RESERVED, hole + 64)
    behind = log.cursor.append_frame(19, 0, 0, 0, 5, None, None, None)
    log.put(hole, log.frame(hole))
    return behind, log.cursor.advance()


@pytest.mark.parametrize("seed", range(12))
def test_random_operations_give_the_same_results_and_bytes(twins: tuple[Any, Any], seed: int) -> None:
    rng = random.Random(seed)
    logs = [MemoryLog(kernel, segments=2, dimension=8, fill=seed) for kernel in twins]
    matrices = [np.zeros(4 * 32, np.uint8) for _ in logs]
    for log, matrix in zip(logs, matrices, strict=True):
        log.cursor.bind_rows(matrix, 32)
    newest = 1
    for _ in range(400):
        act = operation(rng)
        first, second = (act(log) for log in logs)
        assert first == second
        assert same(*logs)
        if first == interface.NOT_READY:
            newest += 1
            for log in logs:
                log.memory[newest] = np.full(SEGMENT_BYTES, seed, np.uint8)
                log.cursor.attach(newest, log.memory[newest], salt_of(newest))
                if newest >= 12:
                    log.cursor.detach(newest - 12)
    assert np.array_equal(*matrices)
    assert logs[0].headers().tobytes() == logs[1].headers().tobytes()
    assert newest > 3


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=st.lists(
        st.tuples(
            st.one_of(st.text(max_size=40), st.integers(-(2**64), 2**64), st.booleans()),
            st.one_of(st.none(), st.lists(st.floats(width=32), min_size=0, max_size=20)),
            st.one_of(st.none(), st.binary(max_size=200)),
        ),
        max_size=12,
    )
)
def test_any_entries_give_the_same_results_and_bytes(twins: tuple[Any, Any], entries: Any) -> None:
    logs = [MemoryLog(kernel, dimension=0) for kernel in twins]
    for id, values, metadata in entries:
        vector = None if values is None else np.array(values, np.float32)
        first, second = (log.append(id, vector, metadata) for log in logs)
        assert first == second
    assert same(*logs)


# ---- hostile bytes: structures that are nearly right


def hostile_segment(rng: random.Random) -> np.ndarray:
    """Frames one behind the other in which something is wrong here and there: a field, a byte, a length, a tag."""
    memory = np.frombuffer(rng.choice((bytes(SEGMENT_BYTES), rng.randbytes(SEGMENT_BYTES))), np.uint8).copy()
    salt, lsn = salt_of(0), START
    while lsn + 64 <= END:
        length = 64 * rng.choice((1, 1, 2, 3, 5, 20, rng.randint(1, 130)))
        size = length - 64 - rng.randint(0, 63) if length > 64 else 0
        sizes = [size, 0, 0]
        if rng.random() < 0.5:
            sizes = [size // 3, size // 3, size - 2 * (size // 3)]
        kind = Kind.PAD if rng.random() < 0.1 else rng.randint(0, 254)
        if kind == Kind.PAD:
            sizes = [0, 0, 0]
        word = commit_word(salt, lsn, length)
        numbers = [lsn, rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(64), rng.getrandbits(32), *sizes]
        lies = rng.random()
        if lies < 0.12:
            numbers[rng.choice((0, 5, 6, 7))] = rng.choice((0, 1, 64, 2**31, 2**32 - 1, lsn & 0xFFFF_FFFF, 2**32 - 64))
        elif lies < 0.2:
            word ^= 1 << rng.randint(0, 63)
        elif lies < 0.26:
            rest = (END - lsn) // 64
            word = commit_word(salt, lsn, 64 * rng.choice((0, 1, 2, 2**26 - 1, 2**25, rest, rest + 1)))
        raw = bytearray(struct.pack("<QIBBBBQQQQIIII", word, 0, kind, 0, 1, rng.random() < 0.03, *numbers))
        raw += rng.randbytes(sum(sizes))
        raw += bytes(-len(raw) % 64)
        if rng.random() < 0.95:
            raw[8:12] = frame_crc(bytes(raw), 64 if kind == Kind.PAD else len(raw), salt).to_bytes(4, "little")
        room = SEGMENT_BYTES - lsn
        memory[lsn : lsn + len(raw)] = np.frombuffer(raw[:room], np.uint8)
        lsn += length if rng.random() < 0.97 else 64
    if rng.random() < 0.3:
        memory[rng.randint(START, END)] ^= 1 << rng.randint(0, 7)
    return memory


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the type of the error that it raises."""
    try:
        return function(*arguments)
    except (ValueError, OverflowError) as error:
        return type(error)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_segments_give_the_same_verdicts(twins: tuple[Any, Any], seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        memory = hostile_segment(rng)
        end = rng.choice((END, END, rng.randint(START, SEGMENT_BYTES)))
        lsn = START
        for _ in range(20):
            room, verify = rng.choice((40, 200)), rng.random() < 0.8
            outs = [np.zeros(room, FRAME_DTYPE) for _ in twins]
            first, second = (
                outcome(kernel.scan, memory, 0, salt_of(0), lsn, end, out, verify)
                for kernel, out in zip(twins, outs, strict=True)
            )
            assert first == second
            assert outs[0].tobytes() == outs[1].tobytes()
            at = min(end, first[0] + rng.choice((0, 1, 64)) if isinstance(first, tuple) else lsn)
            first, second = (outcome(kernel.find_frame, memory, 0, salt_of(0), at, end) for kernel in twins)
            assert first == second
            if not isinstance(first, int) or first < 0:
                break
            lsn = first


@pytest.mark.parametrize("seed", range(4))
def test_hostile_arguments_give_the_same_outcome(twins: tuple[Any, Any], seed: int) -> None:
    rng = random.Random(seed)
    numbers = [-(2**63), -64, -1, 0, 1, 63, 64, 65, 4096, 2**31, 2**32 - 64]
    numbers += [2**61, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    memory = np.frombuffer(rng.randbytes(4096), np.uint8).copy()
    for _ in range(500):
        base, start, end, a, b, c = (rng.choice(numbers) for _ in range(6))
        bounded = [value if -(2**63) <= value < 2**63 else 0 for value in (a, b, c)]
        rows, offsets = np.array(bounded[:2]), np.array(bounded[1:])
        seeds = np.zeros(2, np.uint32)
        calls = (
            ("scan", memory, base, 1, start, end, bytearray(640), True),
            ("find_frame", memory, base, 1, start, end),
            ("gather", memory, offsets, a, memory.copy(), rows, b),
            ("row_checksums", memory, rows, a, b, seeds, seeds.copy()),
        )
        for name, *arguments in calls:
            first, second = (outcome(getattr(kernel, name), *arguments) for kernel in twins)
            errors = (ValueError, OverflowError)
            assert first == second or (first in errors and second in errors)
