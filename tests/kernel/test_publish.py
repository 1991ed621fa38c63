"""Reserve and publish: segment ends, unfinished neighbours, the ring, stale bytes, threads, interrupts."""

import itertools
import sys
import threading
from typing import Any

import numpy as np
import pytest

import mmwal.kernel.reference
from mmwal.format.frame import FRAME_DTYPE, Kind, commit_word, pack_ids
from mmwal.format.segment import data_end, data_start
from mmwal.kernel import interface
from mmwal.kernel.interface import NOT_READY, RING, RING_SLOT_BYTES, RING_SLOTS, SCAN_END, SCAN_NO_FRAME
from tests.kernel.memory_log import DATA_BYTES, SEGMENT_BYTES, MemoryLog, salt_of

START = 8192
END = data_end(0, SEGMENT_BYTES)
NEXT = data_start(1, SEGMENT_BYTES)


# ---- segment ends


def test_frame_that_would_cross_the_end_pads_the_rest_and_lands_in_the_next_segment(kernel: Any) -> None:
    log = MemoryLog(kernel, fill=0xEE)
    log.append_sized(DATA_BYTES - 640)
    log.set(interface.DURABLE, 4242)
    assert log.append_sized(704) == NEXT + 704
    assert (log.cursor.published, log.cursor.reserved) == (NEXT + 704, NEXT + 704)
    pad = log.frame(END - 640, kind=Kind.PAD, length=640, durable_lsn=4242)
    assert log.memory[0][END - 640 : END - 576].tobytes() == pad
    assert (log.memory[0][END - 576 :] == 0xEE).all()
    assert log.headers()["kind"].tolist() == [32, 255, 32]


def test_rest_of_64_bytes_is_padded_with_a_header(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.append_sized(DATA_BYTES - 64)
    assert log.append_sized(128) == NEXT + 128
    assert log.memory[0][END - 64 : END].tobytes() == log.frame(END - 64, kind=Kind.PAD, length=64, durable_lsn=START)


def test_frame_that_fits_exactly_needs_no_pad(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.append_sized(DATA_BYTES - 128)
    assert log.append_sized(128) == END
    assert (log.cursor.published, log.cursor.reserved, log.cursor.advance()) == (END, END, END)
    assert log.append_sized(64) == NEXT + 64
    assert log.headers()["kind"].tolist() == [32, 32, 32]
    assert not log.memory[0][END:].any()


def test_nothing_fills_a_segment_before_the_next_one_is_there(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.cursor.detach(1)
    log.append_sized(DATA_BYTES - 128)
    assert log.append_sized(128) == NOT_READY
    assert log.append_sized(64) == END - 64
    assert log.append_sized(64) == NOT_READY
    assert log.cursor.reserved == log.cursor.published == END - 64
    log.cursor.attach(1, log.memory[1], salt_of(1))
    assert log.append_sized(64) == END


def test_log_begins_at_the_end_of_a_segment_as_well(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.cursor.start(END)
    assert log.append_sized(64) == NEXT + 64
    assert log.cursor.published == NEXT + 64


@pytest.mark.parametrize("rest", [0, 64, 640])
def test_nothing_is_taken_while_the_next_segment_is_missing(kernel: Any, rest: int) -> None:
    log = MemoryLog(kernel)
    log.append_sized(DATA_BYTES - 1280)
    log.append_sized(1280 - rest)
    log.cursor.detach(1)
    before = log.memory[0].copy()
    assert log.append_sized(rest + 64) == NOT_READY
    assert log.append("a", None, bytes(rest)) == NOT_READY
    assert log.cursor.reserved == END - rest
    assert (log.memory[0] == before).all()
    log.cursor.attach(1, log.memory[1], salt_of(1))
    assert log.append_sized(rest + 64) == NEXT + rest + 64
    assert log.cursor.published == log.cursor.reserved


def test_log_goes_on_where_the_numbers_are_great(kernel: Any) -> None:
    first = (1 << 61) // SEGMENT_BYTES
    log = MemoryLog(kernel, first=first)
    for _ in range(20):
        assert log.append_sized(832) == log.cursor.published == log.cursor.reserved
    assert len(log.headers()) == 22


# ---- the ring


def test_ring_slot_tells_number_address_and_salt(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=2)
    for number in (0, 1):
        slot = (RING + number * RING_SLOT_BYTES) // 8
        address = log.memory[number].ctypes.data
        assert log.words[slot : slot + 4].tolist() == [number + 1, address, salt_of(number), 0]
    log.cursor.detach(0)
    slot = RING // 8
    assert log.words[slot : slot + 4].tolist() == [0, 0, 0, 0]


def test_segments_take_turns_in_the_slots(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=RING_SLOTS)
    spare = np.zeros(SEGMENT_BYTES, np.uint8)
    with pytest.raises(ValueError, match="slot"):
        log.cursor.attach(RING_SLOTS, spare, 1)
    for number in range(60):
        log.append_sized(DATA_BYTES - 64)
        assert log.append_sized(64) == data_end(number, SEGMENT_BYTES)
        log.cursor.detach(number)
        recycled = log.memory.pop(number)
        log.memory[number + RING_SLOTS] = recycled
        log.cursor.attach(number + RING_SLOTS, recycled, salt_of(number + RING_SLOTS))
    assert log.cursor.published == data_end(59, SEGMENT_BYTES)


@pytest.mark.parametrize("number", [1, RING_SLOTS, 2**64 - 1])
def test_detach_of_what_is_not_attached_is_an_error(kernel: Any, number: int) -> None:
    log = MemoryLog(kernel, segments=1)
    with pytest.raises((ValueError, OverflowError)):
        log.cursor.detach(number)
    assert log.append_sized(64) > 0


@pytest.mark.parametrize("size", [SEGMENT_BYTES - 1, SEGMENT_BYTES + 1, 0])
def test_segment_of_another_size_is_refused(kernel: Any, size: int) -> None:
    log = MemoryLog(kernel, segments=0)
    with pytest.raises(ValueError, match="must be"):
        log.cursor.attach(0, bytearray(size), 1)
    log.cursor.attach(0, bytearray(SEGMENT_BYTES), 1)


def test_segment_that_is_read_only_askew_or_absurd_is_refused(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=0)
    with pytest.raises((TypeError, BufferError)):
        log.cursor.attach(0, bytes(SEGMENT_BYTES), 1)
    with pytest.raises(ValueError, match="must be"):
        log.cursor.attach(0, memoryview(bytearray(SEGMENT_BYTES + 8))[1 : 1 + SEGMENT_BYTES], 1)
    for number, salt in ((2**62, 1), (2**64, 1), (-1, 1), (0, -1), (0, 2**64)):
        with pytest.raises((ValueError, OverflowError)):
            log.cursor.attach(number, bytearray(SEGMENT_BYTES), salt)
    assert not log.words[RING // 8 :].any()


def test_buffers_are_held_until_detach_and_no_longer(kernel: Any) -> None:
    log = MemoryLog(kernel, segments=0)
    segment, matrix = bytearray(SEGMENT_BYTES), bytearray(64)
    log.cursor.attach(0, segment, 1)
    log.cursor.bind_rows(matrix, 64)
    log.append_sized(64)
    for held in (segment, matrix):
        with pytest.raises(BufferError):
            held.append(0)
    log.cursor.detach(0)
    log.cursor.bind_rows(None, 0)
    segment.append(0)
    matrix.append(0)


# ---- unfinished neighbours


def reserve_by_hand(log: MemoryLog, length: int) -> int:
    """What an appender does that is stopped between reserve and publish; returns where its frame must go."""
    lsn = log.cursor.reserved
    log.set(interface.RESERVED, lsn + length)
    return lsn


def test_append_behind_an_unfinished_neighbour_settles_once_that_is_published(kernel: Any) -> None:
    log = MemoryLog(kernel)
    hole = reserve_by_hand(log, 128)
    assert log.append_sized(64) == -(START + 192)
    assert log.append("a") == -(START + 320)
    assert log.cursor.published == log.cursor.advance() == START
    log.put(hole, log.frame(hole, vector=bytes(64)))
    assert log.cursor.published == START
    assert log.cursor.advance() == START + 320
    assert log.append_sized(64) == START + 384
    assert len(log.headers()) == 4


def test_next_append_moves_published_over_what_a_neighbour_finished(kernel: Any) -> None:
    log = MemoryLog(kernel)
    hole = reserve_by_hand(log, 64)
    assert log.append_sized(64) < interface.SETTLE
    log.put(hole, log.frame(hole))
    assert log.append_sized(64) == log.cursor.published == START + 192


def test_unfinished_neighbour_before_a_segment_end_holds_back_the_next_segment(kernel: Any) -> None:
    log = MemoryLog(kernel)
    hole = reserve_by_hand(log, DATA_BYTES - 64)
    assert log.append_sized(128) == -(NEXT + 128)
    assert log.cursor.published == START
    log.put(hole, log.frame(hole, kind=Kind.PAD, length=DATA_BYTES - 64))
    assert log.cursor.advance() == NEXT + 128


def test_published_waits_at_the_end_of_a_segment_for_the_first_frame_of_the_next(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.append_sized(DATA_BYTES - 64)
    log.append_sized(64)
    log.set(interface.RESERVED, NEXT + 64)
    assert log.cursor.advance() == END
    log.put(NEXT, log.frame(NEXT))
    assert log.cursor.advance() == NEXT + 64


@pytest.mark.parametrize("length", [0, 128, DATA_BYTES + 64])
def test_commit_word_whose_length_leaves_the_reservation_moves_nothing(kernel: Any, length: int) -> None:
    log = MemoryLog(kernel)
    reserve_by_hand(log, 64)
    log.put(START, commit_word(salt_of(0), START, length).to_bytes(8, "little"))
    assert log.cursor.advance() == START


def test_commit_word_whose_length_leaves_the_segment_moves_nothing(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.set(interface.RESERVED, NEXT + 1024)
    log.put(START, commit_word(salt_of(0), START, DATA_BYTES + 64).to_bytes(8, "little"))
    assert log.cursor.advance() == START


def test_published_never_passes_reserved(kernel: Any) -> None:
    log = MemoryLog(kernel)
    log.put(START, log.frame(START))
    log.put(START + 64, log.frame(START + 64))
    assert log.cursor.advance() == START
    log.set(interface.RESERVED, START + 64)
    assert log.cursor.advance() == START + 64


def test_stale_commit_words_of_an_earlier_life_are_not_walked_over(kernel: Any) -> None:
    log = MemoryLog(kernel)
    for _ in range(60):
        log.append_sized(64)
    old = log.memory[0]
    log.cursor.detach(0)
    again = MemoryLog(kernel, segments=0)
    again.memory[0] = old
    again.cursor.attach(0, old, salt_of(0) ^ 1)
    hole = reserve_by_hand(again, 64)
    assert again.append_sized(64) == -(START + 128)
    assert again.cursor.advance() == START
    again.put(hole, log.frame(hole))  # the other salt: still the earlier life
    assert again.cursor.advance() == START
    stop, _, reason = kernel.scan(old, 0, salt_of(0) ^ 1, START, END, bytearray(6400), True)
    assert (stop, reason) == (START, SCAN_NO_FRAME)


# ---- threads


def test_many_threads_leave_a_whole_log_in_their_own_order(kernel: Any) -> None:
    threads, appends = 8, 2000
    log = MemoryLog(kernel, segments=4, segment_bytes=1 << 20, dimension=16)
    results: list[list[int]] = [[] for _ in range(threads)]
    barrier = threading.Barrier(threads)

    def work(me: int) -> None:
        vector = np.full(16, me, np.float32)
        barrier.wait()
        for step in range(appends):
            lsn = log.cursor.append(1, me * appends + step, vector, None, step, -1)
            results[me].append(abs(lsn))

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert log.cursor.published == log.cursor.reserved
    assert len(set(itertools.chain(*results))) == threads * appends
    assert all(lsns == sorted(lsns) for lsns in results)
    headers = log.headers()
    headers = headers[headers["kind"] == 1]
    assert len(headers) == threads * appends
    for me, lsns in enumerate(results):
        for step in (0, appends // 2, appends - 1):
            segment, at = divmod(lsns[step] - 192, 1 << 20)
            memory = log.memory[segment]
            assert (memory[at + 64 : at + 128].view(np.float32) == me).all()
            assert memory[at + 128 : at + 140].tobytes() == pack_ids([me * appends + step])


def test_array_changed_during_a_large_copy_leaves_a_valid_frame(kernel: Any) -> None:
    size, rounds = 8 << 20, 12
    log = MemoryLog(kernel, segments=rounds, segment_bytes=16 << 20)
    payload = np.zeros(size, np.uint8)
    stop = threading.Event()

    def change() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            payload[:] = value

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(rounds):
            assert log.cursor.append_frame(32, 0, 0, 0, 0, payload, None, None) > 0
    finally:
        stop.set()
        changer.join()
    for number in range(rounds):
        end = min(log.cursor.published, data_end(number, 16 << 20))
        _, reason, headers = log.scan(number, end=end)
        assert reason == SCAN_END
        assert headers["kind"].tolist()[0] == 32


# ---- interrupts, which only the twin can meet between reserve and publish


def interrupted(log: MemoryLog, line: int, act: Any) -> bool:
    """Runs ``act`` and interrupts the twin before its line ``line`` is run; tells whether there was such a line."""
    left = line

    def trace(frame: Any, event: str, _argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != mmwal.kernel.reference.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("rest", [DATA_BYTES, 64], ids=["inside", "over the end"])
def test_interrupt_before_any_line_of_the_twin_leaves_no_hole(rest: int) -> None:
    logged = 0
    for line in itertools.count(1):
        log = MemoryLog(mmwal.kernel.reference)
        if rest < DATA_BYTES:
            log.append_sized(DATA_BYTES - rest)
        more = interrupted(log, line, lambda log=log: log.append("interrupted", np.ones(4, np.float32)))
        lsn = log.append("after")
        assert lsn == log.cursor.published == log.cursor.reserved
        headers = log.headers()
        assert headers["id_bytes"][-1] == 4 + len("after")
        logged += 4 + len("interrupted") in headers["id_bytes"]
        if not more:
            break
    assert line > 30
    assert logged > 0
    assert headers.dtype == FRAME_DTYPE
