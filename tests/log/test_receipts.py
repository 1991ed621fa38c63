"""Receipts: an LSN without a wait, and every way to learn what became of it."""

import asyncio
import errno
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

from mmwal import CustomEntry, Receipt, WalManager, register_entry
from mmwal.errors import ForkedProcessError, ReadOnlyError, SyncFailedError, WalClosedError
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import NOTHING_UNSYNCED, fill, ids, vector
from tests.store.test_fork import in_child

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def simulated() -> SimulatedDisk:
    return SimulatedDisk()


def resting(open_wal: OpenWal, disk: SimulatedDisk, **fields: Any) -> WalManager:
    """A log with a few durable entries, whose workers have nothing to do for an hour."""
    wal = open_wal(disk=disk, **fields)
    fill(wal, 3)
    while disk.run_workers():
        pass
    wal.sync()
    return wal


def test_receipt_says_whether_it_is_durable_by_now(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)
    receipt = wal.receipt(wal.log_insert("a", vector(1)))
    assert receipt.lsn == wal.last_lsn
    assert not receipt.durable
    assert receipt.error is None
    assert repr(receipt) == f"<Receipt: LSN {receipt.lsn}, not durable>"
    with pytest.raises(TimeoutError):
        receipt.wait(timeout=0.1)
    wal.sync()
    assert receipt.durable
    receipt.wait()
    assert wal.receipt(receipt.lsn).durable
    assert repr(receipt) == f"<Receipt: LSN {receipt.lsn}, durable>"


def test_callback_comes_once_from_whoever_made_it_durable(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)
    told: list[tuple[Receipt, bool, Any]] = []

    def tell(receipt: Receipt) -> None:
        told.append((receipt, receipt.durable, receipt.error))

    first, second = (wal.receipt(wal.log_insert(id, vector(1))) for id in "ab")
    second.add_done_callback(tell)
    first.add_done_callback(tell)
    assert told == []
    wal.sync()
    assert told == [(first, True, None), (second, True, None)]
    wal.log_insert("c", vector(1), durable=True)
    assert len(told) == 2
    second.add_done_callback(tell)  # known already
    assert told[2:] == [(second, True, None)]


def test_callback_comes_with_the_interval(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=100)
    told: list[Receipt] = []
    receipt = wal.receipt(wal.log_insert("a", vector(1)))
    receipt.add_done_callback(told.append)
    assert told == []
    simulated.advance(0.2)
    simulated.run_workers()
    assert told == [receipt]


def log_custom(wal: WalManager) -> int:
    register_entry("tests.receipts.number", Number)
    return wal.log_entry(CustomEntry(Number(7)), durable=None)


class Number(NamedTuple):
    """A custom entry."""

    value: int


def commit(wal: WalManager) -> int:
    txn = wal.begin_transaction()
    txn.log_insert("t", vector(1))
    txn.log_delete("u")
    return txn.commit(durable=None)


WRITES = {
    "insert": lambda wal: wal.log_insert("a", vector(1), durable=None),
    "update": lambda wal: wal.log_update("a", vector(1), durable=None),
    "delete": lambda wal: wal.log_delete("a", durable=None),
    "batch": lambda wal: wal.log_batch(["a", "b"], np.ones((2, 16), np.float32), durable=None),
    "entry": log_custom,
    "commit": commit,
}


@pytest.mark.parametrize("name", WRITES)
def test_write_that_waits_for_nothing_syncs_nothing(open_wal: OpenWal, simulated: SimulatedDisk, name: str) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    steps: list[str] = []
    simulated.on_step = lambda disk, step, label: steps.append(label)
    lsn = WRITES[name](wal)
    simulated.on_step = None
    assert steps == []
    assert wal.durable_lsn < lsn
    simulated.run_workers()
    assert wal.durable_lsn >= lsn


def test_at_interval_zero_nobody_waits_and_the_worker_syncs(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    lsn = wal.log_insert("a", vector(1), durable=None)
    assert "a" not in ids(open_wal(disk=simulated.image(NOTHING_UNSYNCED)))
    simulated.run_workers()
    assert wal.durable_lsn >= lsn
    assert ids(open_wal(disk=simulated.image(NOTHING_UNSYNCED)))[-1] == "a"


def test_at_interval_zero_a_callback_asks_for_the_sync(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    log = wal._log
    told: list[Receipt] = []
    lsn = log.cursor.append(1, "a", vector(1), None, 1, -1)  # asks for nothing
    wal.receipt(abs(lsn)).add_done_callback(told.append)
    simulated.run_workers()
    assert [receipt.durable for receipt in told] == [True]


def test_at_interval_zero_a_thread_that_waits_syncs(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    receipt = wal.receipt(wal.log_insert("a", vector(1), durable=None))
    receipt.wait(timeout=10)
    assert receipt.durable


def test_failed_sync_is_handed_to_every_callback(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)
    safe = wal.receipt(wal.durable_lsn)
    receipts = [wal.receipt(wal.log_insert(id, vector(1))) for id in "abc"]
    told: list[Any] = []
    for receipt in receipts:
        receipt.add_done_callback(lambda receipt: told.append(receipt.error))
    simulated.fail("sync", 1, errno.EIO)
    with pytest.raises(SyncFailedError) as raised:
        wal.sync()
    assert [type(error) for error in told] == [SyncFailedError] * 3
    assert {error.__cause__ for error in told} == {raised.value.__cause__}
    receipts[0].add_done_callback(lambda receipt: told.append(receipt.error))
    assert len(told) == 4
    for receipt in receipts:
        assert not receipt.durable
        assert isinstance(receipt.error, SyncFailedError)
        with pytest.raises(SyncFailedError):
            receipt.wait()
    assert (safe.durable, safe.error) == (True, None)


def test_failed_sync_of_the_worker_is_handed_over_too(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    told: list[Any] = []
    simulated.fail("sync", 1, errno.EIO)
    receipt = wal.receipt(wal.log_insert("a", vector(1), durable=None))
    receipt.add_done_callback(lambda receipt: told.append(receipt.error))
    assert told == []
    simulated.run_workers()
    assert [type(error) for error in told] == [SyncFailedError]


def test_close_makes_it_durable_and_calls_back(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    for interval in (3_600_000, 0):
        wal = resting(open_wal, SimulatedDisk(), sync_interval_ms=interval)
        told: list[Any] = []
        receipt = wal.receipt(wal.log_insert("a", vector(1), durable=None))
        receipt.add_done_callback(lambda receipt, told=told: told.append((receipt.durable, receipt.error)))
        wal.close()
        assert told == [(True, None)]
        assert receipt.durable
        receipt.wait()


def test_log_that_ends_without_its_last_sync_says_so(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)
    told: list[Any] = []
    receipt = wal.receipt(wal.log_insert("a", vector(1)))
    receipt.add_done_callback(lambda receipt: told.append(receipt.error))
    wal._log.close(clean=False)
    receipt.add_done_callback(lambda receipt: told.append(receipt.error))
    assert [type(error) for error in told] == [WalClosedError] * 2
    with pytest.raises(WalClosedError):
        receipt.wait()


def test_forked_child_is_told_that_it_is_one(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.wait_durable(fill(wal, 1)[0], timeout=60)
    wal.sync()
    durable, receipt = wal.receipt(wal.durable_lsn), wal.receipt(wal.log_insert("a", vector(1)))
    told: list[Any] = []
    receipt.add_done_callback(told.append)

    def ask() -> None:
        assert durable.durable
        assert durable.error is None
        assert isinstance(receipt.error, ForkedProcessError)
        with pytest.raises(ForkedProcessError):
            receipt.wait()
        receipt.add_done_callback(told.append)
        assert told == [receipt]
        with pytest.raises(ForkedProcessError):
            asyncio.run(wait(receipt))

    with wal._log.callbacks._lock:  # as a thread of the parent may hold it
        assert in_child(ask) == ""
    assert told == []
    wal.sync()
    assert told == [receipt]


async def wait(receipt: Receipt) -> None:
    await receipt


def test_lsn_that_does_not_exist_has_no_receipt(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsn = fill(wal, 1)[0]
    with pytest.raises(ValueError, match="does not exist yet"):
        wal.receipt(lsn + 1_000_000)


def test_reader_of_a_log_gives_no_receipt(open_wal: OpenWal, wal_dir: Any) -> None:
    lsn = fill(open_wal(), 1)[0]
    with WalManager.new_from_path(wal_dir) as reader, pytest.raises(ReadOnlyError):
        reader.receipt(lsn)


def test_callback_that_raises_is_logged_and_costs_nobody_else_his_call(
    open_wal: OpenWal, simulated: SimulatedDisk, caplog: pytest.LogCaptureFixture
) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    told: list[Receipt] = []
    for id in "ab":
        receipt = wal.receipt(wal.log_insert(id, vector(1), durable=None))
        receipt.add_done_callback(lambda _: 1 / 0)
        receipt.add_done_callback(told.append)
    with caplog.at_level(logging.ERROR, "mmwal"):
        simulated.run_workers()
    assert len(told) == 2
    assert caplog.text.count("ZeroDivisionError") == 2
    lsn = wal.log_insert("c", vector(1), durable=None)  # the worker lives
    simulated.run_workers()
    assert wal.durable_lsn >= lsn


def test_interrupt_in_a_callback_costs_nobody_else_his_call(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)
    told: list[Receipt] = []

    def interrupt(_: Receipt) -> None:
        raise KeyboardInterrupt

    receipt = wal.receipt(wal.log_insert("a", vector(1)))
    receipt.add_done_callback(interrupt)
    receipt.add_done_callback(told.append)
    with pytest.raises(KeyboardInterrupt):
        wal.sync()
    assert told == []
    wal.log_insert("b", vector(1), durable=True)
    assert told == [receipt]


@pytest.mark.parametrize("sync_interval_ms", [0, 5])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_whatever_a_callback_raises_in_the_background_syncs_go_on(
    open_wal: OpenWal, sync_interval_ms: int, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    wal = open_wal(sync_interval_ms=sync_interval_ms)
    told = threading.Event()

    def end(_: Receipt) -> None:
        told.set()
        raise error

    receipt = wal.receipt(wal.log_insert("a", vector(1), durable=None))
    if receipt.durable:
        pytest.skip("the sync was faster than this test")
    receipt.add_done_callback(end)
    assert told.wait(30)
    wal.receipt(wal.log_insert("b", vector(1), durable=None)).wait(30)
    assert not wal._log.failed
    deadline = time.monotonic() + 30
    while "a callback of a receipt failed" not in caplog.text:  # by the thread that called, behind the call
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_error_that_ends_the_sync_worker_ends_writing(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)

    def fail() -> None:
        raise LookupError("a mistake of ours")

    wal._log.on_durable.add(fail)
    wal.log_insert("a", vector(1), durable=None)
    wal._log.ask_for_sync()
    with pytest.raises(LookupError, match="a mistake of ours"):
        simulated.run_workers()
    wal._log.on_durable.discard(fail)
    with pytest.raises(SyncFailedError) as caught:
        wal.log_insert("b", vector(1))
    assert "the sync worker ended in LookupError('a mistake of ours')" in str(caught.value)


@pytest.mark.parametrize("act", [None, 5, "f"], ids=repr)
def test_callback_that_cannot_be_called_is_refused(open_wal: OpenWal, act: Any) -> None:
    wal = open_wal()
    receipt = wal.receipt(wal.log_insert("a", vector(1)))
    with pytest.raises(TypeError, match=rf"^act={act!r} is a"):
        receipt.add_done_callback(act)


@pytest.mark.parametrize("timeout", ["x", True, float("nan")], ids=repr)
def test_timeout_that_is_none_is_refused(open_wal: OpenWal, timeout: Any) -> None:
    wal = open_wal()
    receipt = wal.receipt(wal.log_insert("a", vector(1), durable=True))
    for wait in (receipt.wait, lambda timeout: wal.wait_durable(receipt.lsn, timeout)):
        with pytest.raises((TypeError, ValueError), match=rf"^timeout={timeout!r}"):
            wait(timeout)
    receipt.wait(np.float64(1))


def test_callback_may_write_and_ask_for_a_receipt(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    told: list[int] = []

    def go_on(receipt: Receipt) -> None:
        told.append(receipt.lsn)
        if len(told) < 4:
            wal.receipt(wal.log_insert(len(told), vector(1), durable=None)).add_done_callback(go_on)

    wal.receipt(wal.log_insert("a", vector(1), durable=None)).add_done_callback(go_on)
    for _ in range(5):
        simulated.run_workers()
    assert len(told) == 4
    assert told == sorted(told)


@pytest.mark.parametrize("sync_interval_ms", [0, 5])
def test_threads_are_each_told_once(open_wal: OpenWal, sync_interval_ms: int) -> None:
    wal = open_wal(sync_interval_ms=sync_interval_ms, append_timeout_ms=60_000)
    threads, each = 6, 60
    told: list[int] = []
    done = threading.Semaphore(0)

    def tell(receipt: Receipt) -> None:
        assert receipt.durable
        told.append(receipt.lsn)
        done.release()

    def write(thread: int) -> list[int]:
        lsns = []
        for n in range(each):
            receipt = wal.receipt(wal.log_insert(f"{thread}.{n}", vector(n), durable=None if n % 3 else False))
            receipt.add_done_callback(tell)
            lsns.append(receipt.lsn)
            if n % 10 == 9:
                receipt.wait(timeout=60)
        return lsns

    with ThreadPoolExecutor(threads) as pool:
        written = [lsn for lsns in pool.map(write, range(threads)) for lsn in lsns]
    for _ in written:
        assert done.acquire(timeout=60)
    assert sorted(told) == sorted(written)
    assert not done.acquire(timeout=0)


# -- in a task


def test_task_awaits_a_receipt_in_any_loop(open_wal: OpenWal) -> None:
    for interval in (0, 20):
        wal = open_wal(path=None, sync_interval_ms=interval)

        async def main(wal: WalManager = wal) -> None:
            receipts = [wal.receipt(wal.log_insert(n, vector(n), durable=None)) for n in range(20)]
            await asyncio.wait_for(asyncio.gather(*map(wait, receipts)), 60)
            assert all(receipt.durable for receipt in receipts)
            await receipts[0]

        asyncio.run(main())
        asyncio.run(main())
        wal.close()


def test_task_that_awaits_a_receipt_gets_the_error(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated, sync_interval_ms=0)
    simulated.fail("sync", 1, errno.EIO)

    async def main() -> None:
        receipt = wal.receipt(wal.log_insert("a", vector(1), durable=None))
        waiting = asyncio.create_task(wait(receipt))
        cancelled = asyncio.create_task(wait(receipt))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.sleep(0)
        simulated.run_workers()
        with pytest.raises(SyncFailedError):
            await asyncio.wait_for(waiting, 60)
        with pytest.raises(SyncFailedError):
            await receipt
        assert cancelled.cancelled()

    asyncio.run(main())


def test_loop_that_is_gone_keeps_nobody_from_syncing(open_wal: OpenWal, simulated: SimulatedDisk) -> None:
    wal = resting(open_wal, simulated)

    async def main() -> None:
        task = asyncio.create_task(wait(wal.receipt(wal.log_insert("a", vector(1)))))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    wal.sync()
