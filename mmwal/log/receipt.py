"""Receipts: an LSN, and what becomes of it.

    receipt = store.receipt(store.insert("a", vector, durable=None))    # no wait so far
    receipt.durable                                                     # is it, by now?
    receipt.wait(timeout=10)                                            # a thread waits
    await receipt                                                       # a task waits
    receipt.add_done_callback(answer)                                   # nobody waits

Not here: who syncs when (`log.py`), many tasks that wait on one loop (`mmwal/aio/waiting.py`).

* A receipt remembers nothing: whatever it says is read off the positions of its log.
* Who moved `durable`, or ended the log, calls back. No thread and no timer belongs to a receipt.
* Durable is what readers see, too: a store that shows only what is durable has shown it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from mmwal.errors import UnavailableError
    from mmwal.log.log import Log

_Waiter = TypeVar("_Waiter")
EVERYBODY = 1 << 64


class Receipt:
    """What a caller needs to reason about a write whose LSN it has; `VectorStore.receipt` gives one.

    Receipts cost nothing until they are waited for, and may be thrown away at any time.

    Durability: at an interval above 0 the sync comes with the interval, and `VectorStore.sync` hastens it; at 0 whoever
    waits, or asks to be called, asks for it.

    Concurrency: any number of threads, and of tasks of any event loops.

    Example:
        >>> import mmwal, tempfile
        >>> directory = getfixture("tmp_path") if "getfixture" in globals() else tempfile.mkdtemp()
        >>> with mmwal.WalManager(mmwal.WalConfig(wal_dir=directory, segment_size=1 << 20)) as wal:
        ...     receipt = wal.receipt(wal.log_insert("a", [1.0, 0.0], durable=None))
        ...     receipt.add_done_callback(lambda receipt: print(receipt.durable, receipt.error))
        ...     receipt.wait(timeout=60)
        True None
    """

    __slots__ = ("_log", "lsn")

    def __init__(self, lsn: int, log: Log) -> None:
        """Raises `ValueError` for an LSN that the log has not reached, `TypeError`."""
        self.lsn = log.check_exists(lsn)
        self._log = log

    @property
    def durable(self) -> bool:
        """Whether it survives a power cut, by now."""
        return self._log.settled_lsn() >= self.lsn

    @property
    def error(self) -> UnavailableError | None:
        """Why this handle will never say that it is durable; None where it is, or may still be.

        `SyncFailedError`: whether the write is there is known after recovery. `WalClosedError`: so, too; the log was
        closed without its last sync. `ForkedProcessError`: ask in the parent.
        """
        log = self._log
        over = log.failed or log.ended or log.forked  # before the position, which then moves no more
        return log.refusal() if over and not self.durable else None

    def wait(self, timeout: float | None = None) -> None:
        """Returns once it is durable. Raises `TimeoutError` after ``timeout`` seconds, or `error`."""
        self._log.wait_durable(self.lsn, timeout)

    def __await__(self) -> Generator[Any, None, None]:
        """Returns once it is durable, in any running event loop. Raises `error`."""
        return self._durably().__await__()

    async def _durably(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        told = loop.create_future()

        def resolve() -> None:
            if not told.done():
                told.set_result(None)

        def tell(_: Receipt) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(resolve)

        self.add_done_callback(tell)
        await told
        if (error := self.error) is not None:
            raise error

    def add_done_callback(self, act: Callable[[Receipt], object]) -> None:
        """Calls ``act(receipt)`` once: as soon as it is durable, or as `error` says why it will not be.

        It is called by the thread that made it durable, with no lock held, or by this one where that is known already.
        Others wait meanwhile: it must be short, and wait for nothing of the log or store. What it raises is logged.

        Raises `TypeError` for what cannot be called.
        """
        if not callable(act):
            raise TypeError(f"act={act!r} is a {type(act).__name__}; pass what can be called with the receipt")
        self._log.callbacks.add(self.lsn, lambda: act(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: LSN {self.lsn}, {'durable' if self.durable else 'not durable'}>"


class Waiters(Generic[_Waiter]):
    """Who waits for which LSN, the least first. Not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, _Waiter]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, lsn: int, waiter: _Waiter) -> None:
        """Adds one."""
        heapq.heappush(self._heap, (lsn, next(self._order), waiter))

    def pop(self, lsn: int) -> _Waiter | None:
        """Takes the next one that waits for nothing beyond ``lsn``; None: there is none."""
        return heapq.heappop(self._heap)[2] if self._heap and self._heap[0][0] <= lsn else None


class Callbacks:
    """Whom to call once an LSN is settled, or never will be. ``_lock`` guards all, and is held during no call."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiters: Waiters[Callable[[], object]] = Waiters()
        self._lock = threading.Lock()

    def add(self, lsn: int, act: Callable[[], object]) -> None:
        """Calls ``act`` once ``lsn`` is settled; at interval 0, where nobody else may sync, asks for that."""
        log = self._log
        if log.forked:  # a thread of the parent may have held the lock
            _call(act)
            return
        with self._lock:
            self._waiters.add(lsn, act)
        log.on_durable.add(self.tell)
        if log.sync_interval_ms == 0 and log.settled_lsn() < lsn:
            log.ask_for_sync()
        self.tell()  # it may have moved before anybody knew of this one

    def tell(self) -> None:
        """Calls those who need not wait any more; one by one, so that an interrupt costs nobody else his call."""
        while (act := self._next()) is not None:
            _call(act)

    def _next(self) -> Callable[[], object] | None:
        over = self._log.failed or self._log.ended
        with self._lock:
            return self._waiters.pop(EVERYBODY if over else self._log.settled_lsn())


def _call(act: Callable[[], object]) -> None:
    """Calls; the caller is whoever happened to sync, and has others to tell. Only who interrupts the main thread, or
    ends the process there, means this thread and not the callback."""
    try:
        act()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit) and threading.current_thread() is threading.main_thread():
            raise
        logging.getLogger("mmwal").exception("a callback of a receipt failed")
