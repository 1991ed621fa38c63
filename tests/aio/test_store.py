"""The store on an event loop: it promises what a store promises, the loop never waits, and cancelling costs nothing."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal import AsyncVectorStore
from mmwal.errors import (
    DuplicateIdError,
    ForkedProcessError,
    MetadataError,
    ReadOnlyError,
    SyncFailedError,
    TransactionClosedError,
    TransactionConflictError,
    TransactionInDoubtError,
    UnknownIdError,
    VectorError,
    WalClosedError,
    WalFullError,
    WalLockedError,
)
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import HUGE_INTERVAL, SEGMENT, close_quietly, config, contents, rows, vector
from tests.store.test_fork import in_child

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

OpenAsync = Callable[..., Any]
WAIT_S = 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def opened(root: Path, kernel: Any) -> OpenAsync:
    """Opens a store within a coroutine, and closes it."""

    @asynccontextmanager
    async def opened(**fields: Any) -> AsyncIterator[AsyncVectorStore]:
        async with AsyncVectorStore(config=config(root, kernel, **fields)) as store:
            yield store

    return opened


@pytest.fixture(params=[0, HUGE_INTERVAL], ids=["each durable", "at an interval"])
def sync_interval_ms(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@contextmanager
def slow_syncs(store: AsyncVectorStore, seconds: float) -> Iterator[list[int]]:
    """Makes each sync take long; gives the positions that they were asked for."""
    log, asked = store.store._log, list[int]()
    gate = log.gate

    class Slow:
        def sync(self, lsn: int, timeout_s: float | None = None) -> bool:
            asked.append(lsn)
            time.sleep(seconds)
            return bool(gate.sync(lsn, timeout_s))

        def __getattr__(self, name: str) -> Any:
            return getattr(gate, name)

    log.gate = Slow()
    yield asked
    log.gate = gate


@contextmanager
def locked(store: AsyncVectorStore) -> Iterator[None]:
    """Holds the store's lock in another thread, as a large batch does."""
    assert store.store._state is not None
    held, enough = threading.Event(), threading.Event()
    lock = store.store._state.lock

    def hold() -> None:
        with lock:
            held.set()
            enough.wait(WAIT_S)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(WAIT_S)
    try:
        yield
    finally:
        enough.set()
        thread.join()


async def turns_until(done: Callable[[], bool]) -> int:
    """Counts how often the loop comes round until something is done."""
    turns = 0
    while not done():
        await asyncio.sleep(0.001)
        turns += 1
    return turns


async def soon(awaited: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(asyncio.ensure_future(awaited), WAIT_S)


# ---- what it does


def test_every_write_is_there_when_it_returns(
    opened: OpenAsync, root: Path, kernel: Any, sync_interval_ms: int
) -> None:
    async def main() -> dict[Any, Any]:
        async with opened(sync_interval_ms=sync_interval_ms) as store:
            lsns = [
                await store.insert("a", vector(1), {"n": 1}),
                await store.insert(7, vector(2).tolist()),
                await store.update("a", vector(3)),
                await store.update("a", metadata={"n": 2}),
                await store.upsert(7, vector(4)),
                await store.upsert("new", vector(5)),
                await store.delete(7),
                await store.insert_many(["b", "c"], rows([6, 7]), [None, {"c": 1}]),
                await store.update_many(["b", "c"], rows([8, 9])),
                await store.upsert_many(["c", "d"], rows([10, 11])),
                await store.delete_many(["b"]),
            ]
            assert lsns == sorted(lsns)
            assert (store.durable_lsn >= lsns[-1]) == (sync_interval_ms == 0)
            assert len(store) == 4
            assert ("a" in store, "b" in store, None in store) == (True, False, False)
            record = store.get("a")
            assert record is not None
            assert (record.vector[0], record.metadata) == (3, {"n": 2})
            assert store["d"][0] == 11
            assert store.get("b") is None
            return contents(store.store)

    expected = asyncio.run(main())
    with mmwal.open(config=config(root, kernel)) as store:
        assert store.recovery_stats.clean_shutdown
        assert store.recovery_stats.applied_entries == 0
        assert contents(store) == expected


def test_reading_in_threads(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert_many(range(20), rows(range(20)), [{"n": n} for n in range(20)])
            assert await store.ids() == list(range(20))
            assert [record and record.id for record in await store.get_many([3, 99, 4])] == [3, None, 4]
            found = [(ids, vectors.shape) async for ids, vectors in store.batches(8)]
            assert found == [(list(range(8)), (8, 8)), (list(range(8, 16)), (8, 8)), (list(range(16, 20)), (4, 8))]
            hits = await store.search(vector(1), k=2)
            assert [(hit.id, hit.metadata) for hit in hits] == [(19, {"n": 19}), (18, {"n": 18})]
            ids, scores = await store.search_batch(rows([1, 1]), k=1)
            assert (ids, scores.shape) == ([[19], [19]], (2, 1))
            assert (store.dimension, store.dtype) == (8, np.float32)
            async for _ in store.batches(1):
                break
            with pytest.raises(VectorError):
                await store.search(vector(1, 3))
            with pytest.raises(ValueError, match="rows=0"):
                await anext(store.batches(0))
            assert (await store.verify()).ok
            info = await store.checkpoint()
            assert info.live_rows == 20
            assert store.recovery_stats.completed
            assert not store.failed

    asyncio.run(main())


def test_at_interval_zero_a_task_reads_what_it_wrote_and_others_nothing_sooner(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as store:
            with slow_syncs(store, 0.1):
                writes = {
                    "one": store.insert("one", vector(1)),
                    "many": store.insert_many(["many", "more"], rows([1, 2])),
                }
                tasks = {id: asyncio.create_task(write) for id, write in writes.items()}
                for id, task in tasks.items():
                    while not task.done():
                        assert id not in store or store.durable_lsn >= store.get(id).lsn
                        await asyncio.sleep(0.002)
                    assert id in store
                    assert store.durable_lsn >= store.get(id).lsn == await task
            for n in range(50):
                await store.insert(n, vector(n))
                assert store[n][0] == n

    asyncio.run(main())


def test_durability_asked_for(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.wait_durable(await store.insert("first", vector(0)))  # synced at once; then an hour begins
            await asyncio.sleep(0.05)
            lsn = await store.insert("a", vector(1))
            assert store.durable_lsn < lsn
            receipt = store.receipt(lsn)
            assert not receipt.durable
            assert await soon(store.sync()) >= lsn
            await receipt
            lsn = await soon(store.insert("b", vector(1), durable=True))
            assert store.durable_lsn >= lsn
            await store.wait_durable(lsn)
            lsn = await store.insert_many(["c", "d"], rows([1, 2]))
            with pytest.raises(TimeoutError):
                await store.wait_durable(lsn, timeout=0.05)
            with pytest.raises(ValueError, match="does not exist yet"):
                await store.wait_durable(lsn + (1 << 30))
            assert await soon(store.flush()) >= lsn

    asyncio.run(main())


def test_interval_lets_those_who_wait_go_on(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=20) as store:
            lsns = [await store.insert(n, vector(n)) for n in range(50)]
            await soon(asyncio.gather(*map(store.wait_durable, lsns)))
            assert store.durable_lsn >= lsns[-1]

    asyncio.run(main())


@pytest.mark.parametrize("way", ["one", "many", "commit"])
def test_write_that_waits_for_nothing(opened: OpenAsync, way: str) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as store:
            with slow_syncs(store, 0.2):
                match way:
                    case "one":
                        lsn = await store.insert("a", vector(1), durable=None)
                    case "many":
                        lsn = await store.insert_many(["a", "b"], rows([1, 2]), durable=None)
                    case _:
                        txn = store.transaction()
                        txn.insert("a", vector(1))
                        lsn = await txn.commit(durable=None)
                assert "a" not in store
                assert store.durable_lsn < lsn
                await soon(store.receipt(lsn))
                assert "a" in store
                assert store.durable_lsn >= lsn

    asyncio.run(main())


def test_tasks_share_a_sync(opened: OpenAsync) -> None:
    async def main() -> int:
        async with opened(sync_interval_ms=0) as store:
            with slow_syncs(store, 0.05) as asked:
                first = asyncio.create_task(store.insert("first", vector(1)))
                await asyncio.sleep(0.02)  # its sync is under way
                later = [asyncio.create_task(store.insert(n, vector(n))) for n in range(200)]
                lsns = await asyncio.gather(first, *later)
                assert max(lsns) <= store.durable_lsn
                assert len(store) == 201
                return len(asked)

    assert asyncio.run(main()) <= 2


def test_bad_input_is_said_and_nothing_logged(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("a", vector(1))
            before = store.store.wal.last_lsn
            wrong: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
                (DuplicateIdError, lambda: store.insert("a", vector(1))),
                (UnknownIdError, lambda: store.update("b", vector(1))),
                (UnknownIdError, lambda: store.delete("b")),
                (VectorError, lambda: store.insert("b", vector(1, 3))),
                (VectorError, lambda: store.update("a")),
                (MetadataError, lambda: store.insert("b", vector(1), {"t": {1}})),
                (DuplicateIdError, lambda: store.insert_many(["b", "a"], rows([1, 2]))),
                (UnknownIdError, lambda: store.delete_many(["a", "b"])),
                (ValueError, lambda: store.insert_many([], rows([1])[:0])),
            ]
            for kind, call in wrong:
                with pytest.raises(kind):
                    await call()
            assert store.store.wal.last_lsn == before

    asyncio.run(main())


# ---- the loop goes on


WRITES: dict[str, Callable[[AsyncVectorStore], Awaitable[Any]]] = {
    "insert": lambda store: store.insert("a", vector(1)),
    "insert_many": lambda store: store.insert_many(["a", "b"], rows([1, 2])),
    "delete": lambda store: store.delete("old"),
    "sync": lambda store: store.sync(),
    "checkpoint": lambda store: store.checkpoint(),
    "commit": lambda store: committed(store),
}


async def committed(store: AsyncVectorStore) -> None:
    async with store.transaction() as txn:
        txn.insert("a", vector(1))
        txn.delete("old")


@pytest.mark.parametrize("name", WRITES)
def test_loop_goes_on_while_a_sync_takes_long(opened: OpenAsync, name: str) -> None:
    async def main() -> int:
        interval = HUGE_INTERVAL if name == "checkpoint" else 0  # it syncs what readers see already
        async with opened(sync_interval_ms=interval) as store:
            await store.wait_durable(await store.insert("old", vector(0)))
            await asyncio.sleep(0.2)  # the idle mark is behind us, whose sync would be a quick one
            with slow_syncs(store, 0.3):
                await store.insert("unsynced", vector(0), durable=None)
                waiting = asyncio.create_task(WRITES[name](store))  # type: ignore[arg-type]
                turns = await turns_until(waiting.done)
                await waiting
                return turns

    assert asyncio.run(main()) > 30


@pytest.mark.parametrize("name", WRITES)
def test_loop_goes_on_while_another_holds_the_lock(opened: OpenAsync, name: str) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("old", vector(0))
            with locked(store):
                waiting = asyncio.create_task(WRITES[name](store))  # type: ignore[arg-type]
                for _ in range(20):
                    await asyncio.sleep(0.002)
                    assert name == "sync" or not waiting.done()
                assert store["old"][0] == 0
                assert len(store) == 1
                assert [hit.id for hit in await soon(store.search(vector(1)))] == ["old"]
            await soon(waiting)

    asyncio.run(main())


def test_row_goes_to_a_thread_while_a_batch_is_on_its_way(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("old", vector(0))
            with locked(store):
                batch = asyncio.create_task(store.insert_many(["a", "b"], rows([1, 2])))
                await asyncio.sleep(0.02)
                assert store._locking
                row = asyncio.create_task(store.insert("c", vector(3)))
                await asyncio.sleep(0.02)
                assert len(store._locking) == 2
            await soon(asyncio.gather(batch, row))
            assert not store._locking

    asyncio.run(main())


def test_loop_goes_on_while_writes_wait_for_room(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=60_000) as store:
            tasks = [asyncio.create_task(store.insert(n, vector(n))) for n in range(3000)]
            turns = await turns_until(lambda: all(task.done() for task in tasks))
            assert len(set(await asyncio.gather(*tasks))) == 3000
            assert len(store) == 3000
            assert turns >= 1
            assert store.store.checkpoints_taken > 0

    asyncio.run(main())


def test_no_thread_and_no_descriptor_for_a_waiter(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.wait_durable(await store.insert("first", vector(0)))
            await asyncio.sleep(0.05)
            lsns = [await store.insert(n, vector(n)) for n in range(500)]
            threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
            tasks = [asyncio.create_task(store.wait_durable(lsn)) for lsn in lsns]
            await asyncio.sleep(0.05)
            assert threading.active_count() == threads
            assert len(os.listdir("/proc/self/fd")) < files + 10
            await store.sync()
            await soon(asyncio.gather(*tasks))

    asyncio.run(main())


# ---- transactions


def test_transaction_is_committed_at_the_end_of_its_block(opened: OpenAsync, sync_interval_ms: int) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=sync_interval_ms) as store:
            await store.insert_many(["a", "b", "c"], rows([1, 2, 3]), [{"n": 1}, None, None])
            async with store.transaction() as txn:
                txn.insert("new", vector(4), {"n": 4})
                txn.update("a", vector(10))
                txn.delete("b")
                txn.upsert("up", vector(5))
                await txn.insert_many(["m", "n"], rows([6, 7]))
                await txn.update_many(["m"], rows([8]))
                await txn.upsert_many(["n", "o"], rows([9, 10]))
                await txn.delete_many(["o", "c"])
                assert ("new" in txn, "new" in store, "b" in txn, "b" in store) == (True, False, False, True)
                record = txn.get("a")
                assert record is not None
                assert (record.vector[0], record.metadata, record.lsn) == (10, {"n": 1}, 0)
                assert txn.is_open
            assert not txn.is_open
            assert sorted(await store.ids()) == ["a", "m", "n", "new", "up"]
            lsns = {store.get(id).lsn for id in await store.ids()}
            assert len(lsns) == 1
            assert store.durable_lsn >= lsns.pop()
            with pytest.raises(TransactionClosedError):
                txn.insert("late", vector(1))
            with pytest.raises(TransactionClosedError):
                await txn.commit()
            async with store.transaction():
                pass

    asyncio.run(main())


def test_exception_rolls_a_transaction_back(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("a", vector(1))
            before = store.store.wal.last_lsn

            async def fail() -> None:
                async with store.transaction() as txn:
                    txn.delete("a")
                    await txn.insert_many(["b", "c"], rows([1, 2]))
                    raise KeyError

            with pytest.raises(KeyError):
                await fail()
            assert store.store.wal.last_lsn == before
            assert await store.ids() == ["a"]
            txn = store.transaction()
            txn.insert("d", vector(1))
            txn.rollback()
            assert "d" not in store

    asyncio.run(main())


def test_cancelled_transaction_is_rolled_back(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("a", vector(1))
            before, inside = store.store.wal.last_lsn, asyncio.Event()

            async def write() -> None:
                async with store.transaction() as txn:
                    txn.delete("a")
                    inside.set()
                    await asyncio.sleep(WAIT_S)

            task = asyncio.create_task(write())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert store.store.wal.last_lsn == before
            assert await store.ids() == ["a"]

    asyncio.run(main())


def test_first_committer_wins(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("counter", vector(0))
            conflicts = 0

            async def add(times: int) -> None:
                nonlocal conflicts
                for _ in range(times):
                    while True:
                        try:
                            async with store.transaction() as txn:
                                now = txn.get("counter")
                                assert now is not None
                                await asyncio.sleep(0)
                                txn.update("counter", now.vector + 1)
                            break
                        except TransactionConflictError:
                            conflicts += 1

            await asyncio.gather(*(add(10) for _ in range(4)))
            assert store["counter"][0] == 40
            assert conflicts

    asyncio.run(main())


def test_prepared_transaction_is_decided(opened: OpenAsync, sync_interval_ms: int) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=sync_interval_ms) as store:
            for gid, decide in (("yes", store.commit_prepared), ("no", store.rollback_prepared)):
                async with store.transaction() as txn:
                    txn.insert(gid, vector(1))
                    lsn = await txn.prepare(gid)
                    assert store.durable_lsn >= lsn
                assert [found.gid for found in store.list_in_doubt()] == [gid]
                assert gid not in store
                with pytest.raises(TransactionInDoubtError):
                    await store.insert(gid, vector(2))
                await soon(decide(gid, durable=True))
                assert store.list_in_doubt() == []
            assert await store.ids() == ["yes"]

    asyncio.run(main())


# ---- cancelled, at each place


@pytest.mark.parametrize("name", ["insert", "insert_many", "commit"])
def test_cancelled_while_it_waits_for_the_sync_it_is_logged_and_seen(
    opened: OpenAsync, root: Path, kernel: Any, name: str
) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0) as store:
            await store.insert("old", vector(0))
            with slow_syncs(store, 0.2) as asked:
                task = asyncio.create_task(WRITES[name](store))  # type: ignore[arg-type]
                await turns_until(lambda: bool(asked))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert "a" not in store
                await store.sync()
                assert "a" in store
                assert store._waiting is not None
                assert not store._waiting._waiters

    asyncio.run(main())
    with mmwal.open(config=config(root, kernel)) as store:
        assert "a" in store


@pytest.mark.parametrize("name", ["insert", "insert_many", "delete", "commit"])
def test_cancelled_while_a_thread_logs_it_whole_or_not_at_all(opened: OpenAsync, name: str) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("old", vector(0))
            with locked(store):
                task = asyncio.create_task(WRITES[name](store))  # type: ignore[arg-type]
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await turns_until(lambda: not store._locking)
            found = sorted(await store.ids())
            assert found in (
                ["old"],
                {"delete": [], "commit": ["a"], "insert": ["a", "old"]}.get(name, ["a", "b", "old"]),
            )
            await soon(store.upsert("later", vector(1), durable=True))

    asyncio.run(main())


def test_cancelled_before_a_thread_begins_nothing_is_logged(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("old", vector(0))
            with locked(store):
                first = [asyncio.create_task(store.insert(n, vector(n))) for n in range(4)]
                await asyncio.sleep(0.05)  # all threads wait for the lock
                later = [asyncio.create_task(store.insert(f"later-{n}", vector(n))) for n in range(20)]
                await asyncio.sleep(0.05)
                for task in later[::2]:
                    task.cancel()
                await asyncio.sleep(0)
            await soon(asyncio.gather(*first))
            done = await soon(asyncio.gather(*later, return_exceptions=True))
            assert [isinstance(one, asyncio.CancelledError) for one in done] == [True, False] * 10
            expected = {"old", *range(4), *(f"later-{n}" for n in range(1, 20, 2))}
            assert set(await store.ids()) == expected

    asyncio.run(main())


def test_what_a_cancelled_caller_changes_is_not_logged(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert("old", vector(0))
            mine = vector(1)
            with locked(store):
                task = asyncio.create_task(store.insert("a", mine))
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.sleep(0)
                mine[:] = 99
            await turns_until(lambda: not store._locking)
            assert store["a"][0] == 1

    asyncio.run(main())


def test_cancelled_opening_lets_the_directory_go(root: Path, kernel: Any) -> None:
    async def main() -> None:
        opening = asyncio.create_task(AsyncVectorStore(config=config(root, kernel)).open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                async with AsyncVectorStore(config=config(root, kernel)) as store:
                    await store.insert("a", vector(1))
                return
            except WalLockedError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

    asyncio.run(main())


def test_cancelled_close_goes_on(root: Path, kernel: Any) -> None:
    async def main() -> None:
        store = await AsyncVectorStore(config=config(root, kernel)).open()
        lsn = await store.insert("a", vector(1))
        waiting = asyncio.create_task(store.wait_durable(lsn))
        with slow_syncs(store, 0.2):
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0.02)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            await soon(waiting)
            await soon(store.close())
        with mmwal.open(config=config(root, kernel)) as again:
            assert again.recovery_stats.clean_shutdown
            assert again.ids() == ["a"]

    asyncio.run(main())


def test_cancelled_reader_lets_go(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.insert_many(range(100), rows(range(100)))
            searching = asyncio.create_task(store.search(vector(1)))
            reading = asyncio.create_task(anext(store.batches(1)))
            await asyncio.sleep(0)
            searching.cancel()
            reading.cancel()
            done = await asyncio.gather(searching, reading, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in done)
            await store.search(vector(1))
            state = store.store._state
            slots = state._slots
            await turns_until(lambda: set(state._pins.standing()) <= set(slots))

    asyncio.run(main())


# ---- how it ends


def test_close_tells_everybody_who_waits(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.wait_durable(await store.insert("first", vector(0)))
            await asyncio.sleep(0.05)
            lsn = await store.insert("a", vector(1))
            receipt = store.receipt(lsn)
            waiting = [asyncio.create_task(store.wait_durable(lsn)), asyncio.ensure_future(awaited(receipt))]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
        await soon(asyncio.gather(*waiting))
        assert receipt.durable
        await store.close()
        for call in (
            store.sync,
            lambda: store.insert("b", vector(1)),
            lambda: store.insert_many(["c"], rows([1])),
            lambda: store.delete("a"),
            lambda: store.search(vector(1)),
            lambda: store.ids(),
            lambda: store.checkpoint(),
            lambda: committed(store),
        ):
            with pytest.raises(WalClosedError):
                await call()
        with pytest.raises(WalClosedError):
            store.get("a")

    asyncio.run(main())


async def awaited(receipt: mmwal.Receipt) -> None:
    await receipt


def test_close_at_interval_zero_answers_what_is_on_its_way(opened: OpenAsync, root: Path, kernel: Any) -> None:
    async def main() -> list[Any]:
        async with opened(sync_interval_ms=0) as store:
            await store.insert("old", vector(0))
            with slow_syncs(store, 0.05):
                tasks = [asyncio.create_task(store.insert(n, vector(n))) for n in range(20)]
                tasks += [asyncio.create_task(store.insert_many([f"m{n}"], rows([n]))) for n in range(20)]
                await asyncio.sleep(0.01)
                await soon(store.close())
            return list(await soon(asyncio.gather(*tasks, return_exceptions=True)))

    done = asyncio.run(main())
    assert all(isinstance(one, (int, WalClosedError)) for one in done)
    assert all(isinstance(one, int) for one in done[:20])
    with mmwal.open(config=config(root, kernel)) as store:
        assert store.recovery_stats.clean_shutdown
        for n, one in enumerate(done[20:]):
            assert f"m{n}" in store or not isinstance(one, int)
        assert all(n in store for n in range(20))


def test_failed_sync_is_told_to_everybody_and_readers_have_seen_nothing(kernel: Any) -> None:
    disk = SimulatedDisk()

    async def main() -> None:
        store = await AsyncVectorStore(config=config("/store", kernel, sync_interval_ms=0), disk=disk).open()
        first = asyncio.create_task(store.insert("old", vector(0)))
        await asyncio.sleep(0)
        while disk.run_workers():
            pass
        await soon(first)
        disk.fail("spare.wal sync", errno=errno.EIO)
        tasks = [asyncio.create_task(WRITES[name](store)) for name in ("insert", "sync")]  # type: ignore[arg-type]
        tasks.append(asyncio.create_task(store.delete("old")))
        receipts = [asyncio.create_task(awaited(store.receipt(await store.upsert("up", vector(1), durable=None))))]
        await asyncio.sleep(0)
        while disk.run_workers():
            pass
        for task in (*tasks, *receipts):
            with pytest.raises(SyncFailedError):
                await soon(task)
        assert store.failed
        assert await store.ids() == ["old"]
        for call in (
            lambda: store.insert("b", vector(1)),
            lambda: store.insert("a", vector(1)),
            lambda: store.insert_many(["c"], rows([1])),
            store.sync,
            lambda: committed(store),
        ):
            with pytest.raises(SyncFailedError):
                await call()
        with pytest.raises(SyncFailedError):
            await store.close()

    asyncio.run(main())
    again = mmwal.open(config=config("/store", kernel), disk=disk.kill())
    assert sorted(again.ids()) in (["a", "up"], ["old"], ["a", "old"], ["a"])
    close_quietly(again)


def test_forked_child_is_told_that_it_is_one(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened() as store:
            await store.wait_durable(await store.insert("first", vector(0)))
            await asyncio.sleep(0.05)
            lsn = await store.insert_many(["a", "b"], rows([1, 2]))  # its threads are there, in the parent

            def use() -> None:
                for call in (
                    lambda: store.insert("c", vector(1)),
                    lambda: store.insert_many(["c"], rows([1])),
                    lambda: store.search(vector(1)),
                    lambda: store.wait_durable(lsn),
                    store.sync,
                    store.checkpoint,
                ):
                    with pytest.raises(ForkedProcessError):
                        asyncio.run(call())  # type: ignore[arg-type]

            assert in_child(use) == ""
            await soon(store.insert("c", vector(3), durable=True))
            assert await store.ids() == ["first", "a", "b", "c"]

    asyncio.run(main())


def test_full_log_is_said(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened(max_wal_size=4 * SEGMENT, append_timeout_ms=100) as store:
            store.store._checkpointer.close()  # nobody makes room
            written = 0
            with suppress(WalFullError):
                while True:
                    await store.insert(written, vector(1))
                    written += 1
            txn = store.transaction()
            txn.insert("t", vector(1))
            with pytest.raises(WalFullError):
                await txn.commit()
            assert txn.is_open
            txn.rollback()
            assert len(store) == written

    with pytest.raises(WalClosedError):  # the last checkpoint was refused
        asyncio.run(main())


def test_handle_that_is_not_open_says_so(root: Path, kernel: Any) -> None:
    async def main() -> None:
        store = AsyncVectorStore(config=config(root, kernel))
        for call in (store.sync, lambda: store.insert("a", vector(1)), lambda: store.search(vector(1))):
            with pytest.raises(WalClosedError, match="not open yet"):
                await call()
        await store.close()
        async with store:
            with pytest.raises(RuntimeError, match="open already"):
                await store.open()
            with pytest.raises(WalLockedError):
                await AsyncVectorStore(config=config(root, kernel)).open()
        with pytest.raises(TypeError, match="did you mean 'dimension'"):
            await AsyncVectorStore(root, dimensions=8).open()

    asyncio.run(main())


def test_first_vector_decides_the_dimension(root: Path) -> None:
    async def main() -> None:
        async with AsyncVectorStore(root, segment_size=SEGMENT) as store:
            assert (store.dimension, len(store), store.get("a")) == (None, 0, None)
            await asyncio.gather(*(store.insert(n, vector(n, 5)) for n in range(20)))
            assert (store.dimension, len(store)) == (5, 20)

    asyncio.run(main())


def test_store_opened_for_reading_reads(opened: OpenAsync, root: Path, kernel: Any) -> None:
    async def main() -> None:
        async with opened() as store:
            lsn = await store.insert("a", vector(1), durable=True)
            async with AsyncVectorStore(config=config(root, kernel), read_only=True) as reader:
                assert reader["a"][0] == 1
                assert [hit.id for hit in await reader.search(vector(1))] == ["a"]
                assert await reader.ids() == ["a"]
                for call in (
                    lambda: reader.insert("b", vector(1)),
                    lambda: reader.delete_many(["a"]),
                    reader.sync,
                    reader.checkpoint,
                    lambda: reader.wait_durable(lsn),
                ):
                    with pytest.raises(ReadOnlyError):
                        await call()
                with pytest.raises(ReadOnlyError):
                    reader.transaction()
                with pytest.raises(ReadOnlyError):
                    reader.receipt(lsn)

    asyncio.run(main())


def test_other_threads_write_to_the_same_store(opened: OpenAsync) -> None:
    async def main() -> None:
        async with opened(sync_interval_ms=0, append_timeout_ms=60_000) as store:

            def write(thread: int) -> None:
                for n in range(40):
                    store.store.insert(f"{thread}.{n}", vector(n), durable=None if n % 2 else False)
                store.store.insert_many([f"{thread}.many.{n}" for n in range(40)], rows(range(40)))

            threads = [asyncio.to_thread(write, thread) for thread in range(3)]
            mine = [store.insert(n, vector(n)) for n in range(100)]
            await soon(asyncio.gather(*threads, *mine))
            await store.sync()
            assert len(store) == 3 * 80 + 100
            assert not store.store._latest

    asyncio.run(main())


def test_import_of_the_package_does_not_bring_asyncio() -> None:
    code = (
        "import sys, mmwal; assert 'asyncio' not in sys.modules; mmwal.AsyncVectorStore; mmwal.AsyncStoreTransaction; "
        "assert 'asyncio' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
