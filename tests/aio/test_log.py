"""The asyncio face: what it promises of LSNs and durability, that the loop never waits, and what cancellation costs."""

import array
import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmwal import AsyncWalManager, Receipt
from mmwal.errors import (
    EntryTooLargeError,
    IdTypeError,
    MetadataError,
    SyncFailedError,
    VectorError,
    WalClosedError,
    WalFullError,
    WalLockedError,
)
from mmwal.kernel.interface import NOT_READY
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.logs import HUGE_INTERVAL, SEGMENT, config, fill, ids, until_full, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

OpenLog = Callable[..., Any]


@pytest.fixture
def opened(wal_dir: Path, kernel: Any) -> OpenLog:
    """Opens a log within a coroutine, and closes it."""

    @asynccontextmanager
    async def opened(**fields: Any) -> AsyncIterator[AsyncWalManager]:
        async with AsyncWalManager(config(wal_dir, kernel, **fields)) as wal:
            yield wal

    return opened


def slow_syncs(wal: AsyncWalManager, seconds: float) -> list[int]:
    """Makes each sync take long; returns the positions that they were asked for."""
    gate, asked = wal.wal._log.gate, list[int]()

    class Slow:
        def sync(self, lsn: int, timeout_s: float | None = None) -> bool:
            asked.append(lsn)
            time.sleep(seconds)
            return gate.sync(lsn, timeout_s)

        def __getattr__(self, name: str) -> Any:
            return getattr(gate, name)

    wal.wal._log.gate = Slow()
    return asked


async def between_syncs(wal: AsyncWalManager) -> None:
    """The first entry is synced at once; from then on an interval of an hour begins."""
    await wal.wait_durable(await wal.log_insert_async("first", vector(0)))
    await asyncio.sleep(0.05)


def test_what_is_awaited_is_in_the_log_in_order(opened: OpenLog, wal_dir: Path, kernel: Any) -> None:
    async def main() -> list[int]:
        async with opened() as wal:
            lsns = [
                await wal.log_insert_async("a", vector(1), {"n": 1}),
                await wal.log_insert_async(7, vector(2).tolist()),
                await wal.log_update_async("a", metadata={"n": 2}),
                await wal.log_update_async("a", vector(3).astype(np.float64)),
                await wal.log_delete_async(7),
                await wal.log_batch_async(["b", "c"], np.stack([vector(4), vector(5)]), [None, {"c": 1}]),
                await wal.log_batch_async(["b"], operation="delete"),
                await wal.log_insert_async(SimpleNamespace(id="d", vector=vector(6))),
                await wal.log_update_async(SimpleNamespace(id="d", vector=vector(7))),
            ]
            assert wal.last_lsn == lsns[-1]
            return lsns

    lsns = asyncio.run(main())
    assert lsns == sorted(lsns)
    with WalManager(config(wal_dir, kernel)) as wal:
        assert wal.recovery_stats.clean_shutdown
        assert ids(wal) == ["a", 7, "a", "a", 7, "b", "c", "b", "d", "d"]
        entries = list(wal.replay())
        assert [entry.lsn for entry in entries] == lsns
        assert entries[0].metadata == {"n": 1}
        assert entries[1].vector[0] == 2
        assert entries[3].vector[0] == 3


def test_flush_and_durable_and_waiting(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened() as wal:
            await between_syncs(wal)
            lsn = await wal.log_insert_async("a", vector(1))
            assert wal.durable_lsn < lsn
            assert await asyncio.wait_for(wal.flush(), 20) >= lsn
            assert wal.durable_lsn >= lsn
            lsn = await wal.log_insert_async("b", vector(1), durable=True)
            assert wal.durable_lsn >= lsn
            await wal.wait_durable(lsn)
            lsn = await wal.log_insert_async("c", vector(1))
            with pytest.raises(TimeoutError):
                await wal.wait_durable(lsn, timeout=0.05)
            with pytest.raises(ValueError, match="does not exist yet"):
                await wal.wait_durable(lsn + (1 << 30))

    asyncio.run(main())


def test_interval_lets_those_who_wait_go_on(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=20) as wal:
            syncs = wal.get_metrics().syncs
            for turn in range(3):
                lsns = [await wal.log_insert_async(f"{turn}.{n}", vector(n)) for n in range(50)]
                await asyncio.wait_for(asyncio.gather(*(wal.wait_durable(lsn) for lsn in lsns)), 60)
                assert wal.durable_lsn >= lsns[-1]
            assert wal.get_metrics().syncs - syncs < 100

    asyncio.run(main())


def test_interval_zero_means_durable_on_return(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as wal:
            for n in range(5):
                assert await wal.log_insert_async(n, vector(n)) <= wal.durable_lsn
            assert await wal.log_batch_async(range(3), np.ones((3, 16), np.float32)) <= wal.durable_lsn
            assert await wal.log_delete_async(1) <= wal.durable_lsn

    asyncio.run(main())


def test_write_that_waits_for_nothing_and_its_receipt(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as wal:
            slow_syncs(wal, 0.2)
            lsns = [
                await wal.log_insert_async("a", vector(1), durable=None),
                await wal.log_batch_async(["b", "c"], [vector(2), vector(3)], durable=None),
                await wal.log_delete_async("a", durable=None),
            ]
            receipts = [wal.receipt(lsn) for lsn in lsns]
            assert not receipts[-1].durable
            await asyncio.wait_for(asyncio.gather(*(awaited(receipt) for receipt in receipts)), 20)
            assert wal.durable_lsn >= lsns[-1]

    asyncio.run(main())


async def awaited(receipt: Receipt) -> None:
    await receipt


def test_tasks_share_a_sync(opened: OpenLog) -> None:
    async def main() -> int:
        async with opened(sync_interval_ms=0) as wal:
            asked = slow_syncs(wal, 0.05)
            first = asyncio.create_task(wal.log_insert_async("first", vector(1)))
            await asyncio.sleep(0.02)  # its sync is under way
            later = [asyncio.create_task(wal.log_insert_async(n, vector(n))) for n in range(200)]
            lsns = await asyncio.gather(first, *later)
            assert max(lsns) <= wal.durable_lsn
            return len(asked)

    assert asyncio.run(main()) <= 2


def test_loop_goes_on_while_a_sync_takes_long(opened: OpenLog) -> None:
    async def main() -> int:
        async with opened(sync_interval_ms=0) as wal:
            slow_syncs(wal, 0.3)
            waiting = asyncio.create_task(wal.log_insert_async("a", vector(1)))
            turns = 0
            while not waiting.done():
                await asyncio.sleep(0.001)
                turns += 1
            return turns

    assert asyncio.run(main()) > 50


def test_loop_goes_on_while_an_append_waits_for_room(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=60_000) as wal:
            logged: list[int] = []

            async def write() -> None:
                for n in range(3000):
                    logged.append(await wal.log_insert_async(n, vector(n)))

            task = asyncio.create_task(write())
            while len(logged) < 900:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            turns = 0
            while not task.done():  # full: only what is released lets it go on
                await asyncio.sleep(0.005)
                turns += 1
                if logged:
                    await asyncio.get_running_loop().run_in_executor(None, wal.wal.release, logged[-1])
            await task
            assert logged == sorted(logged)
            assert len(logged) == 3000
            assert turns > 3

    asyncio.run(main())


def test_full_log_is_said(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=100) as wal:
            until_full(wal.wal)
            with pytest.raises(WalFullError):
                await wal.log_insert_async("more", vector(1))
            with pytest.raises(WalFullError):
                await wal.log_batch_async(range(100), np.ones((100, 16), np.float32))

    asyncio.run(main())


def test_bad_input_is_said_and_nothing_logged(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened() as wal:
            wrong: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
                (VectorError, lambda: wal.log_insert_async("a", vector(1, 3))),
                (VectorError, lambda: wal.log_insert_async("a", [float("nan")] * 16)),
                (VectorError, lambda: wal.log_insert_async(SimpleNamespace(id="a", vector=None))),
                (TypeError, lambda: wal.log_insert_async("a")),
                (IdTypeError, lambda: wal.log_delete_async(1.5)),
                (MetadataError, lambda: wal.log_update_async("a", metadata={"t": (1,)})),
                (EntryTooLargeError, lambda: wal.log_insert_async("a", vector(1), {"m": "x" * SEGMENT})),
                (ValueError, lambda: wal.log_batch_async([])),
                (VectorError, lambda: wal.log_batch_async(["a", "b"], [vector(1)])),
            ]
            before = wal.last_lsn
            for kind, call in wrong:
                with pytest.raises(kind):
                    await call()
            assert wal.last_lsn == before

    asyncio.run(main())


def test_cancelled_waiter_loses_nothing_and_leaves_nothing(opened: OpenLog, wal_dir: Path, kernel: Any) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as wal:
            slow_syncs(wal, 0.1)
            tasks = [asyncio.create_task(wal.log_insert_async(n, vector(n))) for n in range(20)]
            await asyncio.sleep(0.01)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, False] * 10
            await wal.flush()
            assert wal._waiting is not None
            assert not wal._waiting._waiters

    asyncio.run(main())
    with WalManager(config(wal_dir, kernel)) as wal:
        assert sorted(ids(wal)) == list(range(20))  # type: ignore[type-var]


def test_failed_sync_is_told_to_everybody_who_waits(wal_dir: Path, kernel: Any) -> None:
    disk = SimulatedDisk()

    async def main() -> None:
        wal = await AsyncWalManager(config("/wal", kernel), disk=disk).open()
        lsn = await wal.log_insert_async("a", vector(1))
        waiting = [asyncio.create_task(wal.wait_durable(lsn)) for _ in range(3)]
        await asyncio.sleep(0.01)
        disk.fail("sync", forever=True)
        flushing = asyncio.create_task(wal.flush())
        await asyncio.sleep(0)
        disk.run_workers()
        for task in (*waiting, flushing):
            with pytest.raises(SyncFailedError):
                await asyncio.wait_for(task, 10)
        for call in (wal.flush, lambda: wal.log_insert_async("b", vector(1)), lambda: wal.wait_durable(lsn)):
            with pytest.raises(SyncFailedError):
                await call()
        with pytest.raises(SyncFailedError):
            await wal.close()

    asyncio.run(main())


def test_close_makes_everything_durable_and_tells_who_waits(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened() as wal:
            await between_syncs(wal)
            lsn = await wal.log_insert_async("a", vector(1))
            waiting = asyncio.create_task(wal.wait_durable(lsn))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 10)
        await wal.close()
        for call in (
            wal.flush,
            lambda: wal.log_insert_async("b", vector(1)),
            lambda: wal.log_batch_async(["c"], [vector(1)]),
        ):
            with pytest.raises(WalClosedError):
                await call()

    asyncio.run(main())


def test_handle_that_is_not_open_says_so(wal_dir: Path, kernel: Any) -> None:
    async def main() -> None:
        wal = AsyncWalManager(config(wal_dir, kernel))
        for call in (wal.flush, lambda: wal.log_insert_async("a", vector(1)), lambda: wal.wait_durable(1)):
            with pytest.raises(WalClosedError, match="not open yet"):
                await call()
        await wal.close()
        async with wal:
            with pytest.raises(RuntimeError, match="open already"):
                await wal.open()
            with pytest.raises(WalLockedError):
                await AsyncWalManager(config(wal_dir, kernel)).open()

    asyncio.run(main())


def test_cancelled_opening_lets_the_directory_go(wal_dir: Path, kernel: Any) -> None:
    async def main() -> None:
        opening = asyncio.create_task(AsyncWalManager(config(wal_dir, kernel)).open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        deadline = time.monotonic() + 60
        while True:
            try:
                async with AsyncWalManager(config(wal_dir, kernel)) as wal:
                    await wal.log_insert_async("a", vector(1))
                return
            except WalLockedError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

    asyncio.run(main())


def test_vector_may_be_any_buffer_that_the_kernel_takes(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened() as wal:
            for n in range(3):
                await asyncio.sleep(0.1)  # the first entry after a pause wakes the sync worker
                await wal.log_insert_async(n, array.array("f", [float(n)] * 16))
                await wal.log_insert_async(f"{n}", memoryview(vector(n)))
            assert [entry.vector[0] for entry in wal.wal.replay()] == [0, 0, 1, 1, 2, 2]

    asyncio.run(main())


def test_many_that_wait_for_room_do_not_stand_in_the_way_of_who_makes_some(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=60_000) as wal:
            logged, _ = until_full_at_once(wal.wal)
            tasks = [asyncio.create_task(wal.log_insert_async(f"t{n}", vector(n))) for n in range(100)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in tasks)
            await asyncio.wait_for(asyncio.to_thread(wal.wal.release, logged), 30)
            assert len(set(await asyncio.wait_for(asyncio.gather(*tasks), 60))) == 100

    asyncio.run(main())


def until_full_at_once(wal: WalManager) -> tuple[int, int]:
    """Fills a log without waiting for room; returns the last LSN, and how many entries that were."""
    log, count, last = wal._log, 0, 0
    while (lsn := log.cursor.append(1, count, vector(1), None, 1, -1)) != NOT_READY or not log.keeper.over_budget:
        if lsn == NOT_READY:  # the keeper is behind
            log.wake_keeper()
            time.sleep(0.002)
            continue
        if not 0 < lsn <= log.segment_end_lsn:
            log.settle(lsn, lambda: 0)
        last, count = abs(lsn), count + 1
    return last, count


def test_close_wakes_those_who_wait_for_room(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=600_000) as wal:
            until_full_at_once(wal.wal)
            tasks = [asyncio.create_task(wal.log_insert_async(f"t{n}", vector(n))) for n in range(20)]
            await asyncio.sleep(0.1)
            await asyncio.wait_for(asyncio.gather(wal.close(), wal.close()), 60)
            assert wal.wal._log.ended
            done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            assert {type(one) for one in done} == {WalClosedError}

    asyncio.run(main())


def test_sync_of_another_thread_is_told_at_once(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened() as wal:
            await between_syncs(wal)
            lsn = await wal.log_insert_async("a", vector(1))
            waiting = asyncio.create_task(wal.wait_durable(lsn))
            await asyncio.sleep(0.01)
            await asyncio.to_thread(wal.wal.sync)
            await asyncio.wait_for(waiting, 20)

    asyncio.run(main())


def test_other_threads_write_to_the_same_log(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=5, append_timeout_ms=60_000) as wal:
            threads = [threading.Thread(target=fill, args=(wal.wal, 200, 1000 * turn)) for turn in range(3)]
            for thread in threads:
                thread.start()
            lsns = await asyncio.gather(*(wal.log_insert_async(n, vector(n), durable=True) for n in range(200)))
            for thread in threads:
                await asyncio.get_running_loop().run_in_executor(None, thread.join)
            assert len(set(lsns)) == 200
            assert len(ids(wal.wal)) == 800

    asyncio.run(main())


def test_no_thread_and_no_descriptor_for_a_waiter(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=HUGE_INTERVAL) as wal:
            await between_syncs(wal)
            lsns = [await wal.log_insert_async(n, vector(n)) for n in range(500)]
            threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
            tasks = [asyncio.create_task(wal.wait_durable(lsn)) for lsn in lsns]
            await asyncio.sleep(0.05)
            assert threading.active_count() == threads
            assert len(os.listdir("/proc/self/fd")) < files + 10
            await wal.flush()
            await asyncio.wait_for(asyncio.gather(*tasks), 10)

    asyncio.run(main())
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) < files + 5


def test_import_of_the_package_does_not_bring_asyncio() -> None:
    code = (
        "import sys, mmwal; assert 'asyncio' not in sys.modules; mmwal.AsyncWalManager; assert 'asyncio' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_opens_once(wal_dir: Path, kernel: Any) -> None:
    async def main() -> None:
        wal = AsyncWalManager(config(wal_dir, kernel))
        first, second = await asyncio.gather(wal.open(), wal.open(), return_exceptions=True)
        assert first is wal
        assert isinstance(second, RuntimeError)
        assert "it is open already" in str(second)
        await wal.close()
        with pytest.raises(RuntimeError, match="it is closed; an AsyncWalManager opens once"):
            await wal.open()

    asyncio.run(main())


def test_it_may_be_opened_again_where_opening_failed(wal_dir: Path, kernel: Any) -> None:
    async def main() -> None:
        wal = AsyncWalManager(config(wal_dir, kernel))
        with WalManager(config(wal_dir, kernel)), pytest.raises(WalLockedError):
            await wal.open()
        async with wal:
            assert await wal.log_insert_async("a", vector(1)) > 0

    asyncio.run(main())


def test_wait_that_takes_too_long_says_for_what(opened: OpenLog) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=HUGE_INTERVAL) as wal:
            await wal.log_insert_async("a", vector(1), durable=True)
            lsn = await wal.log_insert_async("b", vector(1))
            with pytest.raises(TimeoutError, match=rf"^LSN {lsn} was not durable after 0\.05 s"):
                await wal.wait_durable(lsn, 0.05)
            for timeout in ("x", float("nan")):
                with pytest.raises((TypeError, ValueError), match=r"^timeout="):
                    await wal.wait_durable(lsn, timeout)
            with pytest.raises(TypeError, match=r"^lsn='x'"):
                await wal.wait_durable("x")

    asyncio.run(main())
