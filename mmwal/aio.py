"""`AsyncWalManager`: the log alone for asyncio. The loop never waits for the disk.

    async with AsyncWalManager(config) as wal:
        lsn = await wal.log_insert_async("1", vector)      # in the log, safe from a kill
        await wal.wait_durable(lsn)                        # safe from a power cut

Not here: the log and its promises (`manager.py`), who syncs when (`log/log.py`).

* An append that finds its segment ready is done at once, on the loop: it takes about a microsecond. What would wait
  (for a segment, for a neighbour that copies) and what copies much (a batch) goes to a thread of an executor.
* Waiting takes no thread and polls nothing. Whoever moves `durable` writes to an eventfd; the loop wakes once and
  resolves every waiter that it covers.
* Waiters who ask for a sync share it: one worker syncs, and whoever comes meanwhile is covered by the next.
* A cancelled waiter takes nothing back: an entry that has an LSN stays logged.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from mmwal.config import WalConfig
from mmwal.disk.interface import Disk, Worker
from mmwal.entry import OperationName, RecoveryStats, WalMetrics, normalize_vector
from mmwal.errors import UnavailableError, VectorError, WalClosedError
from mmwal.format.frame import Kind
from mmwal.format.metadata import encode_metadata
from mmwal.kernel.interface import CONVERT, DTYPES, NONFINITE, NOT_READY, SETTLE
from mmwal.log.batch import append_batches, checked_batch, finish_row, plain_id, unwrap
from mmwal.manager import WalManager
from mmwal.recovery.log_opening import default_disk

if TYPE_CHECKING:
    from mmwal.log.log import Log

_THREADS = 4  # for appends that wait and for batches
_Result = TypeVar("_Result")


class AsyncWalManager:
    """A write-ahead log for one event loop; `WalManager` underneath, as ``wal``, for reading and all else.

    Args:
        config: as `WalManager`.

    ``async with`` opens the log and closes it; `open` and `close` do the same by hand. Opening recovers the tail of the
    log, in a thread; it raises as `WalManager`.

    Durability: as said there. With ``sync_interval_ms=0`` every method that logs returns once its entry is durable.

    Concurrency: any number of tasks of the loop that opened it. Other threads may use ``wal``.

    Example:
        >>> import asyncio, tempfile, numpy as np
        >>> directory = getfixture("tmp_path") if "getfixture" in globals() else tempfile.mkdtemp()
        >>> async def main():
        ...     config = WalConfig(wal_dir=directory, segment_size=1 << 20, sync_interval_ms=100)
        ...     async with AsyncWalManager(config) as wal:
        ...         lsn = await wal.log_insert_async("1", np.ones(4, np.float32))
        ...         return await wal.flush() >= lsn, [entry.id for entry in wal.wal.replay()]
        >>> asyncio.run(main())
        (True, ['1'])
    """

    def __init__(self, config: WalConfig, *, disk: Disk | None = None) -> None:
        self.config = config
        self._disk = disk or default_disk()
        self._wal: WalManager | None = None
        self._waiting: Waiting | None = None
        self._closing: asyncio.Future[None] | None = None

    async def open(self) -> Self:
        """Opens the log. Raises as `WalManager`; `RuntimeError` where it is open."""
        if self._wal is not None:
            raise RuntimeError("the log is open already; an AsyncWalManager opens its log once")
        loop = asyncio.get_running_loop()
        opening = Opening(partial(WalManager, self.config, disk=self._disk))
        try:
            wal = await asyncio.shield(in_thread(loop, opening.open))
        except asyncio.CancelledError:
            opening.give_up()
            raise
        try:
            self._waiting = Waiting(wal._log, self._disk, loop)
        except BaseException:
            wal.close()
            raise
        # Of its own: appends that wait for room must not stand in the way of whoever makes some.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="mmwal-async")
        self._wal = wal
        self._log = wal._log
        self._append = self._log.cursor.append
        self._now = self._disk.time_ns
        self._each_durable = self.config.sync_interval_ms == 0
        return self

    async def close(self) -> None:
        """Makes everything durable, marks the log clean and frees the directory. Idempotent.

        Raises `SyncFailedError` if the last sync failed; the directory is free then, too. Whoever still waits gets its
        LSN, or that error.
        """
        if self._wal is None or self._waiting is None:
            return
        if self._closing is None:
            waiting, executor = self._waiting, self._executor
            self._closing = in_thread(asyncio.get_running_loop(), self._wal.close)
            self._closing.add_done_callback(lambda _: waiting.end())
            executor.shutdown(wait=False)
        await asyncio.shield(self._closing)  # cancelled or not, it is closed, and everybody is told

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    @property
    def wal(self) -> WalManager:
        """The log itself. Its methods that log or sync may wait for the disk: do not call those on the loop."""
        if self._wal is None:
            raise WalClosedError("the log is not open yet; use 'async with', or await open()")
        return self._wal

    # -- logging ----------------------------------------------------------------------------------------------------

    async def log_insert_async(
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool = False
    ) -> int:
        """Logs an insert; returns its LSN once it is in the log. Args and Raises as `WalManager.log_insert`.

        Cancelled while it waits for room in the log, it may still log the entry; later, the entry is logged.
        """
        if vector is None:
            id, vector, metadata = unwrap(id, metadata)
            if vector is None:
                raise VectorError(f"insert of id {id!r} without a vector; log_update_async() may leave it out")
        return await self._row(Kind.INSERT, id, vector, metadata, durable)

    async def log_update_async(
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool = False
    ) -> int:
        """As `WalManager.log_update` and `log_insert_async`."""
        if vector is None and not isinstance(id, (str, int, np.integer)):
            id, vector, metadata = unwrap(id, metadata)
        return await self._row(Kind.UPDATE, id, vector, metadata, durable)

    async def log_delete_async(self, id: Any, *, durable: bool = False) -> int:
        """As `WalManager.log_delete` and `log_insert_async`."""
        return await self._row(Kind.DELETE, id, None, None, durable)

    async def log_batch_async(
        self,
        ids: Sequence[Any],
        vectors: Any = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        operation: OperationName = "insert",
        durable: bool = False,
    ) -> int:
        """As `WalManager.log_batch`, in a thread: what is passed must not be changed until this returns.

        Cancelled, it may still log the batch.
        """
        log = self.wal._log
        lsn = await self._off_loop(lambda: append_batches(log, [checked_batch(log, ids, vectors, metadata, operation)]))
        if durable or self._each_durable:
            await self._wait(lsn, sync=True)
        return lsn

    async def _row(self, kind: int, id: Any, vector: Any, metadata: Mapping[str, Any] | None, durable: bool) -> int:
        log, meta = self.wal._log, encode_metadata(metadata)
        lsn = self._append(kind, id, vector, meta, self._now(), -1)
        if not 0 < lsn <= log.segment_end_lsn:
            if lsn in (CONVERT, NONFINITE):
                id = plain_id(id)
                if vector is not None:
                    dtype = DTYPES[log.identity.dtype]
                    vector = normalize_vector(vector, dtype, log.dimension, not log.check_finite)
                lsn = self._append(kind, id, vector, meta, self._now(), -1)
            if lsn == NOT_READY:
                kept = None if vector is None else np.array(vector)  # the caller may be cancelled, and change it
                lsn = await self._off_loop(finish_row, log, lsn, kind, id, kept, meta, -1)
            elif lsn < SETTLE and log.cursor.advance() < -lsn:  # it is logged, behind a neighbour that still copies
                lsn = await asyncio.shield(self._off_loop(log.settle, lsn, lambda: 0))
            elif not 0 < lsn <= log.segment_end_lsn:
                lsn = finish_row(log, lsn, kind, id, vector, meta, -1)  # says what is wrong, or wakes the keeper
        if durable or self._each_durable:
            await self._wait(lsn, sync=True)
        return lsn

    # -- durability -------------------------------------------------------------------------------------------------

    @property
    def durable_lsn(self) -> int:
        """Everything with an LSN at or below this survives a power cut."""
        return self.wal.durable_lsn

    @property
    def last_lsn(self) -> int:
        """The LSN of the newest entry that is visible to readers of the log."""
        return self.wal.last_lsn

    async def flush(self) -> int:
        """Makes everything logged so far durable; returns `durable_lsn`. Raises `SyncFailedError`."""
        self.wal._log.check_usable()
        await self._wait(self._log.cursor.published, sync=True)
        return self._log.cursor.durable

    async def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Returns once ``lsn`` is durable, leaving the syncing to the interval.

        Raises `TimeoutError` after ``timeout`` seconds, `SyncFailedError`; `ValueError` for an LSN that does not exist.
        """
        if lsn > self.wal._log.cursor.reserved:
            raise ValueError(f"LSN {lsn} does not exist yet: the log ends at {self._log.cursor.reserved}")
        async with asyncio.timeout(timeout):
            await self._wait(lsn, sync=self._each_durable)

    async def _wait(self, lsn: int, *, sync: bool) -> None:
        if self._log.cursor.durable < lsn:
            assert self._waiting is not None
            await self._waiting.until(lsn, sync=sync)

    # -- the rest ---------------------------------------------------------------------------------------------------

    @property
    def recovery_stats(self) -> RecoveryStats:
        """What opening found."""
        return self.wal.recovery_stats

    def get_metrics(self) -> WalMetrics:
        """As `WalManager.get_metrics`."""
        return self.wal.get_metrics()

    async def _off_loop(self, act: Callable[..., _Result], *args: Any) -> _Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, act, *args)
        except RuntimeError as error:  # the executor takes no more
            if self._closing is None:
                raise
            raise WalClosedError("the log is closed; open the directory again") from error


class Waiting:
    """Who waits for which LSN to be durable, on one loop.

    ``_lock`` guards the eventfd, which other threads write to. All else belongs to the loop, but for ``_wanted_lsn``:
    the loop writes it, the worker reads it.
    """

    def __init__(self, log: Log, disk: Disk, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._order = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap by LSN
        self._wanted_lsn = 0
        self._lock = threading.Lock()
        self._fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            loop.add_reader(self._fd, self._resolve)
            self._worker: Worker = disk.start_worker("async sync", self._sync)
        except BaseException:
            loop.remove_reader(self._fd)
            os.close(self._fd)
            raise
        log.on_durable.add(self._tell)

    async def until(self, lsn: int, *, sync: bool) -> None:
        """Returns once ``lsn`` is durable; asks for a sync, or leaves that to the interval. Raises `Log.refusal`."""
        if self._fd is None or self._log.failed:
            raise self._log.refusal()
        waiter = self._loop.create_future()
        heapq.heappush(self._waiters, (lsn, next(self._order), waiter))
        if sync and lsn > self._wanted_lsn:
            self._wanted_lsn = lsn
            self._worker.wake()
        if self._log.cursor.durable >= lsn:  # it moved before anybody knew of this waiter
            self._resolve()
        await waiter

    def end(self) -> None:
        """Lets everybody who waits know how it ended. The log is closed."""
        self._log.on_durable.discard(self._tell)
        self._worker.stop()
        self._resolve()
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    def _sync(self) -> None:
        """What the worker does: one sync for everybody who has asked by now."""
        with suppress(UnavailableError):  # everybody is told why
            self._log.make_durable(self._wanted_lsn)
        self._tell()

    def _tell(self) -> None:
        """Wakes the loop; called by any thread that moved `durable`, or ended the log."""
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def _resolve(self) -> None:
        if self._fd is not None:
            with suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        over = self._log.failed or self._log.ended  # before the position, which then moves no more
        durable_lsn, waiters = self._log.cursor.durable, self._waiters
        while waiters and (over or waiters[0][0] <= durable_lsn):
            lsn, _, waiter = heapq.heappop(waiters)
            if waiter.done():
                continue
            if lsn <= durable_lsn:
                waiter.set_result(None)
            else:
                waiter.set_exception(self._log.refusal())


class Opening:
    """A log that is being opened in a thread for somebody who may not want it any more."""

    def __init__(self, make: Callable[[], WalManager]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._opened: WalManager | None = None
        self._given_up = False

    def open(self) -> WalManager:
        """Opens it; closes it again where nobody wants it."""
        wal = self._make()
        with self._lock:
            self._opened = wal
            given_up = self._given_up
        if given_up:
            wal.close()
        return wal

    def give_up(self) -> None:
        """Sees to it that it is closed, now or once it is open."""
        with self._lock:
            self._given_up = True
            opened = self._opened
        if opened is not None:
            threading.Thread(target=opened.close, name="mmwal-async-close").start()


def in_thread(loop: asyncio.AbstractEventLoop, act: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Runs something in a thread of its own, which no executor that is full, or shut down, holds up."""
    future: asyncio.Future[_Result] = loop.create_future()

    def tell(how: Callable[[Any], None], what: Any) -> None:
        def now() -> None:
            if not future.done():
                how(what)

        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(now)

    def work() -> None:
        try:
            result = act()
        except BaseException as error:  # noqa: BLE001 (it is handed on)
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    threading.Thread(target=work, name="mmwal-async").start()
    return future
