"""Both sync gates, the compiled one (`c`) and its twin (`py`), under one suite."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal.disk.interface import Mapping, SyncGate
from mmwal.disk.posix import PosixDisk
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, data_end, data_start
from mmwal.kernel import interface as words
from mmwal.log.gate import PythonGate, sync_ranges
from mmwal.testing.simulator import SimulatedDisk
from tests.disk.observing import PATIENCE_S, Asking, progress_beside, until

PAGE = 4096
SEGMENT = 16 * PAGE
START = DATA_OFFSET  # the position of the first frame of segment 0
MIB = 1 << 20
INVALID = rf"\[Errno {errno.EINVAL}\]"  # what a broken segment gives


class Log:
    """A cursor block with its gate, over real segments: as much of a log as a gate can see."""

    def __init__(self, kind: str, disk: PosixDisk, root: str, segment_bytes: int = SEGMENT) -> None:
        self.kind = kind
        self.segment_bytes = segment_bytes
        self.mappings: dict[int, Mapping] = {}
        self.block = bytearray(words.BLOCK_BYTES)
        self._u64 = memoryview(self.block).cast("Q")
        self._u32 = memoryview(self.block).cast("I")
        self._disk = disk
        self._root = root
        self._publishing = threading.Lock()
        self.gate = self._make_gate()
        self.start(START)

    def _make_gate(self) -> SyncGate:
        if self.kind == "py":
            return PythonGate(self._disk, self.block, self.segment_bytes, self.mappings.__getitem__)
        gate = self._disk.compiled_gate(self.block, self.segment_bytes)
        if gate is None:
            if os.environ.get("MMWAL_REQUIRE_EXTENSION", "") not in ("", "0"):
                pytest.fail("MMWAL_REQUIRE_EXTENSION is set and mmwal.disk._sync is not built", pytrace=False)
            pytest.skip("mmwal.disk._sync is not built")
        return gate

    # ---- what a log does

    def start(self, lsn: int) -> None:
        self._u64[words.PUBLISHED // 8] = self._u64[words.DURABLE // 8] = lsn

    def attach(self, *numbers: int) -> None:
        for number in numbers:
            file = self._disk.create(f"{self._root}/{number}")
            file.allocate(self.segment_bytes)
            file.sync()
            self.mappings[number] = file.map(self.segment_bytes, writable=True)
            address = np.frombuffer(self.mappings[number].view, np.uint8).ctypes.data
            slot = self._slot(number)
            slot[1], slot[0] = address, number + 1

    def publish(self, length: int = 64) -> int:
        """Store some bytes behind `published` and move it; return the position just past them."""
        with self._publishing:
            number, offset = divmod(self.published, self.segment_bytes)
            if offset + length > self.segment_bytes - FOOTER_BYTES:
                number, offset = number + 1, DATA_OFFSET
            self.mappings[number].view[offset : offset + length] = b"x" * length
            lsn = number * self.segment_bytes + offset + length
            self._u64[words.PUBLISHED // 8] = lsn
            return lsn

    def publish_to(self, lsn: int) -> None:
        self._u64[words.PUBLISHED // 8] = lsn

    # ---- what another thread, or a broken disk, would do

    def take_role(self) -> None:
        self._u32[words.GATE_ROLE // 4] = 1

    def give_role_back(self, durable: int | None = None) -> None:
        if durable is not None:
            self._u64[words.DURABLE // 8] = durable
        self._u32[words.GATE_ROLE // 4] = 0
        self.gate.wake()

    def break_segment(self, number: int) -> None:
        """Let every sync of a segment fail with EINVAL."""
        if self.kind == "c":
            self._slot(number)[1] += 1  # msync takes no address within a page
            return
        broken = SimulatedDisk()
        file = broken.create("/broken")
        file.allocate(self.segment_bytes)
        self.mappings[number] = file.map(self.segment_bytes, writable=True)
        broken.fail("sync", errno=errno.EINVAL, forever=True)

    def repair_segment(self, number: int) -> None:
        if self.kind == "c":
            self._slot(number)[1] -= 1

    def poison(self) -> None:
        self._u64[words.STATE // 8] |= words.STATE_POISONED

    def close(self) -> None:
        self._u64[words.STATE // 8] |= words.STATE_CLOSED

    # ---- what can be seen

    @property
    def published(self) -> int:
        return self._u64[words.PUBLISHED // 8]

    @property
    def durable(self) -> int:
        return self._u64[words.DURABLE // 8]

    @property
    def poisoned(self) -> bool:
        return bool(self._u64[words.STATE // 8] & words.STATE_POISONED)

    @property
    def waiters(self) -> int:
        return self._u32[words.GATE_WAITERS // 4]

    @property
    def role_is_free(self) -> bool:
        return self._u32[words.GATE_ROLE // 4] == 0

    @property
    def figures(self) -> dict[str, int]:
        names = ("syncs", "bytes", "ns", "ns_max", "ns_last")
        return {name: self._u64[words.GATE_SYNCS // 8 + i] for i, name in enumerate(names)}

    def _slot(self, number: int) -> Any:
        first = words.RING // 8 + number % words.RING_SLOTS * words.RING_SLOT_BYTES // 8
        return self._u64[first : first + 4]


@pytest.fixture(params=["c", "py"])
def make_log(request: pytest.FixtureRequest, disk: PosixDisk, root: str) -> Callable[..., Log]:
    return lambda **options: Log(request.param, disk, root, **options)


@pytest.fixture
def log(make_log: Callable[..., Log]) -> Log:
    made = make_log()
    made.attach(0, 1, 2)
    return made


# ---- one thread


def test_sync_makes_everything_published_durable(log: Log) -> None:
    first, second = log.publish(), log.publish()
    assert log.gate.sync(first) is True
    assert log.durable == second
    assert log.figures["syncs"] == 1
    assert log.role_is_free


def test_nothing_is_synced_when_all_is_durable(log: Log) -> None:
    assert log.gate.sync(START) is True
    assert log.gate.sync(0) is True
    assert log.gate.wait(START) is True
    assert log.figures == dict.fromkeys(log.figures, 0)


def test_figures_tell_of_each_sync(log: Log) -> None:
    for pages in (1, 3):
        log.gate.sync(log.publish(pages * PAGE))
    figures = log.figures
    assert (figures["syncs"], figures["bytes"]) == (2, 4 * PAGE)
    assert 0 < figures["ns_last"] <= figures["ns_max"] < figures["ns"]


def test_part_of_a_page_is_synced_as_a_page(log: Log) -> None:
    log.publish(64)
    log.gate.sync(log.publish(64))
    log.gate.sync(log.publish(64))
    assert log.figures["bytes"] == 2 * PAGE


def test_position_beyond_published_times_out(log: Log) -> None:
    lsn = log.publish()
    assert log.gate.sync(lsn + 64, timeout_s=0.01) is False
    assert log.durable == lsn
    assert log.gate.sync(lsn + 64, timeout_s=0) is False


def test_position_published_while_waited_for_is_synced(log: Log) -> None:
    asking = Asking(lambda: log.gate.sync(START + 64, PATIENCE_S))
    until(lambda: log.waiters == 1)
    log.publish()
    assert asking.result() is True


def test_wait_never_syncs(log: Log) -> None:
    lsn = log.publish()
    assert log.gate.wait(lsn, 0) is False
    assert log.gate.wait(lsn, timeout_s=0.01) is False
    assert (log.durable, log.figures["syncs"]) == (START, 0)


@pytest.mark.parametrize("timeout_s", [-1, 0, 0.01])
def test_timeout_while_another_syncs_returns_false(log: Log, timeout_s: float) -> None:
    lsn = log.publish()
    log.take_role()
    assert log.gate.sync(lsn, timeout_s) is False
    assert log.gate.wait(lsn, timeout_s) is False
    assert (log.waiters, log.durable) == (0, START)


@pytest.mark.parametrize("timeout_s", [None, 0, float("inf"), 1e300])
def test_free_role_is_taken_whatever_the_timeout(log: Log, timeout_s: float | None) -> None:
    assert log.gate.sync(log.publish(), timeout_s) is True


def test_timeout_that_is_no_number_is_refused(log: Log) -> None:
    with pytest.raises(ValueError, match=r"(?i)not a number|nan"):
        log.gate.sync(log.publish(), float("nan"))
    assert log.gate.sync(log.published) is True


# ---- segments


def test_sync_spans_segments_and_leaves_out_what_is_between(log: Log) -> None:
    log.publish_to(data_start(2, SEGMENT) + 64)
    assert log.gate.sync(log.published) is True
    assert log.figures["bytes"] == 2 * (SEGMENT - DATA_OFFSET) + PAGE
    assert log.durable == log.published


def test_end_of_a_segment_needs_no_sync(log: Log) -> None:
    log.start(data_end(0, SEGMENT))
    log.publish_to(data_start(1, SEGMENT))
    assert log.gate.sync(log.published) is True
    assert (log.durable, log.figures["bytes"]) == (log.published, 0)


def test_last_page_of_a_segment_is_synced_with_its_footer(log: Log) -> None:
    log.start(data_end(0, SEGMENT) - 64)
    log.publish_to(data_end(0, SEGMENT))
    log.gate.sync(log.published)
    assert log.figures["bytes"] == PAGE


def test_ring_slots_are_used_again(make_log: Callable[..., Log]) -> None:
    log = make_log()
    log.start(data_start(40, SEGMENT))
    log.attach(40, 41)
    log.publish(SEGMENT - DATA_OFFSET - FOOTER_BYTES)
    assert log.gate.sync(log.publish()) is True


positions = st.integers(0, 5 * SEGMENT)


@given(first=positions, second=positions)
def test_ranges_cover_each_frame_once_in_whole_pages(first: int, second: int) -> None:
    durable, published = sorted((first, second))
    covered: set[int] = set()
    for number, offset, length in sync_ranges(durable, published, SEGMENT):
        assert offset % PAGE == length % PAGE == 0
        assert DATA_OFFSET <= offset < offset + length <= SEGMENT
        pages = set(range(number * SEGMENT + offset, number * SEGMENT + offset + length, PAGE))
        assert not covered & pages
        covered |= pages
    needed = {
        lsn // PAGE * PAGE
        for lsn in range(durable, published, 64)
        if DATA_OFFSET <= lsn % SEGMENT < SEGMENT - FOOTER_BYTES
    }
    assert needed <= covered
    assert len(covered) <= len(needed) + 1  # the last byte may be on a page of its own


@pytest.mark.parametrize(
    ("durable", "published"),
    [
        (START, START + 1),
        (START + PAGE - 1, START + PAGE + 1),
        (START, data_end(0, SEGMENT) - 1),
        (START, data_end(0, SEGMENT)),
        (START, SEGMENT),
        (START, data_start(1, SEGMENT)),
        (START, data_start(1, SEGMENT) + 1),
        (data_end(0, SEGMENT) + 8, 2 * SEGMENT + 100),
        (START + 5000, data_end(2, SEGMENT)),
    ],
)
def test_both_gates_sync_the_same_ranges(log: Log, durable: int, published: int) -> None:
    log.start(durable)
    log.publish_to(published)
    assert log.gate.sync(published) is True
    assert log.figures["bytes"] == sum(length for _, _, length in sync_ranges(durable, published, SEGMENT))
    assert log.durable == published


# ---- many threads


def test_waiters_of_a_running_sync_share_the_next_one(log: Log) -> None:
    log.take_role()
    asking = [Asking(partial(log.gate.sync, log.publish(), PATIENCE_S)) for _ in range(8)]
    until(lambda: log.waiters == 8)
    log.give_role_back()
    assert [each.result() for each in asking] == [True] * 8
    assert (log.figures["syncs"], log.waiters) == (1, 0)


def test_late_arrival_is_not_covered_by_the_running_sync(log: Log) -> None:
    log.take_role()
    early = log.publish()
    first = Asking(lambda: log.gate.sync(early, PATIENCE_S))
    late = log.publish()
    second = Asking(lambda: log.gate.sync(late, PATIENCE_S))
    until(lambda: log.waiters == 2)
    log.give_role_back(durable=early)
    assert (first.result(), second.result()) == (True, True)
    assert (log.figures["syncs"], log.durable) == (1, late)


def test_waiter_that_never_syncs_is_woken_by_one_that_does(log: Log) -> None:
    lsn = log.publish()
    asking = [Asking(lambda: log.gate.wait(lsn, PATIENCE_S)) for _ in range(3)]
    until(lambda: log.waiters == 3)
    assert log.gate.sync(lsn) is True
    assert [each.result() for each in asking] == [True] * 3


def test_concurrent_appenders_share_syncs(log: Log) -> None:
    """Eight threads, each of which waits for each of its entries: across a segment's end."""
    threads, entries = 8, 150
    log.start(data_end(0, SEGMENT) - 100 * 64)
    seen: list[bool] = []

    def append() -> bool:
        for _ in range(entries):
            lsn = log.publish()
            seen.append(log.gate.sync(lsn, PATIENCE_S) is True and log.durable >= lsn)
        return True

    asking = [Asking(append) for _ in range(threads)]
    assert all(each.result() for each in asking)
    assert seen == [True] * (threads * entries)
    assert log.figures["syncs"] < threads * entries
    assert (log.durable, log.waiters, log.role_is_free) == (log.published, 0, True)


def test_other_threads_run_during_a_long_sync(make_log: Callable[..., Log]) -> None:
    log = make_log(segment_bytes=64 * MIB)
    log.attach(0)
    log.mappings[0].populate(0, 64 * MIB)
    log.publish_to(data_end(0, 64 * MIB))
    assert progress_beside(lambda: log.gate.sync(log.published)) > 0.2
    assert log.durable == log.published


# ---- failures


def test_failed_sync_poisons_and_everybody_gets_its_errno(log: Log) -> None:
    lsn = log.publish()
    log.take_role()
    asking = [Asking(lambda: log.gate.sync(lsn, PATIENCE_S)) for _ in range(3)]
    asking += [Asking(lambda: log.gate.wait(lsn, PATIENCE_S)) for _ in range(3)]
    until(lambda: log.waiters == 6)
    log.break_segment(0)
    log.give_role_back()
    for each in asking:
        with pytest.raises(OSError, match=INVALID):
            each.result()
    assert (log.poisoned, log.durable, log.waiters, log.role_is_free) == (True, START, 0, True)


def test_failed_sync_is_final(log: Log) -> None:
    lsn = log.publish()
    log.break_segment(0)
    for _ in range(2):
        for call in (log.gate.sync, log.gate.wait):
            if call == log.gate.wait and not log.poisoned:
                continue
            with pytest.raises(OSError, match=INVALID):
                call(lsn)
    log.repair_segment(0)
    for position in (START, lsn):
        with pytest.raises(OSError, match=INVALID):
            log.gate.sync(position)
    assert (log.durable, log.figures["syncs"]) == (START, 0)


def test_durable_stands_still_when_only_the_second_segment_fails(log: Log) -> None:
    log.publish_to(data_start(1, SEGMENT) + 64)
    log.break_segment(1)
    with pytest.raises(OSError, match=INVALID):
        log.gate.sync(data_end(0, SEGMENT))
    assert (log.durable, log.poisoned) == (START, True)


def test_wake_lets_waiters_see_that_the_log_was_poisoned(log: Log) -> None:
    lsn = log.publish()
    asking = Asking(lambda: log.gate.wait(lsn, PATIENCE_S))
    until(lambda: log.waiters == 1)
    log.poison()
    log.gate.wake()
    with pytest.raises(OSError, match=rf"\[Errno {errno.EIO}\]"):
        asking.result()


def test_other_state_bits_do_not_end_a_wait(log: Log) -> None:
    log.close()
    assert log.gate.sync(log.publish()) is True


# ---- signals


class Interrupted(Exception):
    """Raised by a signal handler."""


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Let something run as a signal handler in the main thread a moment later."""

    def arrange(action: Callable[[], None]) -> None:
        def handler(number: int, frame: FrameType | None) -> None:
            action()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.getsignal(signal.SIGALRM)
    yield arrange
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


Alarm = Callable[[Callable[[], None]], None]


def test_signal_handler_that_raises_ends_a_wait(log: Log, alarm: Alarm) -> None:
    def interrupt() -> None:
        raise Interrupted

    lsn = log.publish()
    log.take_role()
    for call in (log.gate.wait, log.gate.sync):
        alarm(interrupt)
        with pytest.raises(Interrupted):
            call(lsn, PATIENCE_S)
        assert log.waiters == 0
    log.give_role_back()
    assert log.gate.sync(lsn) is True


def test_signal_handler_that_returns_does_not_end_a_wait(log: Log, alarm: Alarm) -> None:
    lsn = log.publish()
    log.take_role()
    handled: list[bool] = []
    alarm(lambda: handled.append(True))
    ending = Asking(lambda: (until(lambda: bool(handled)), log.give_role_back(durable=lsn)))
    assert log.gate.wait(lsn, PATIENCE_S) is True
    assert handled == [True]
    ending.result()


def test_interrupt_in_the_twins_sync_leaves_the_role_free(disk: PosixDisk, root: str) -> None:
    class Interrupting:
        """A mapping whose first sync is interrupted."""

        def __init__(self, mapping: Mapping) -> None:
            self._mapping = mapping
            self._interrupts = [KeyboardInterrupt()]
            self.view = mapping.view
            self.populate, self.rewrite, self.stored = mapping.populate, mapping.rewrite, mapping.stored

        def sync(self, offset: int, length: int) -> None:
            if self._interrupts:
                raise self._interrupts.pop()
            self._mapping.sync(offset, length)

    log = Log("py", disk, root)
    log.attach(0)
    log.mappings[0] = Interrupting(log.mappings[0])
    lsn = log.publish()
    with pytest.raises(KeyboardInterrupt):
        log.gate.sync(lsn)
    assert (log.durable, log.poisoned, log.role_is_free) == (START, False, True)
    assert log.gate.sync(lsn) is True


# ---- what the compiled gate refuses


@pytest.mark.parametrize(
    ("block", "segment_bytes", "error"),
    [
        (bytes(4096), SEGMENT, BufferError),
        (bytearray(4095), SEGMENT, ValueError),
        (memoryview(bytearray(5000))[1:], SEGMENT, ValueError),
        ("block", SEGMENT, TypeError),
        (bytearray(4096), 0, ValueError),
        (bytearray(4096), SEGMENT + 1, ValueError),
    ],
)
def test_compiled_gate_refuses_what_it_cannot_use(
    disk: PosixDisk, block: Any, segment_bytes: int, error: type[Exception]
) -> None:
    if disk.compiled_gate(bytearray(4096), SEGMENT) is None:
        pytest.skip("mmwal.disk._sync is not built")
    with pytest.raises(error):
        disk.compiled_gate(block, segment_bytes)


def test_segment_that_is_not_attached_is_an_error_and_no_crash(make_log: Callable[..., Log]) -> None:
    log = make_log()
    log.publish_to(START + 64)
    with pytest.raises(OSError if log.kind == "c" else KeyError, match=r"Bad address|0"):
        log.gate.sync(START + 64)
    assert (log.durable, log.poisoned, log.role_is_free) == (START, True, True)


@pytest.mark.parametrize("lsn", [-1, 1 << 64])
def test_compiled_gate_refuses_positions_of_more_than_64_bits(disk: PosixDisk, lsn: int) -> None:
    gate = disk.compiled_gate(bytearray(4096), SEGMENT)
    if gate is None:
        pytest.skip("mmwal.disk._sync is not built")
    with pytest.raises(OverflowError):
        gate.sync(lsn)
