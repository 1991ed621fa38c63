"""What both faces for asyncio share: opening, closing, threads, and when a write is acknowledged.

Not here: who waits for which LSN (`waiting.py`), what may be done on the loop (`wal.py`, `store.py`).

* An opening that is cancelled is closed as soon as it is done: nobody keeps the lock.
* A close that is cancelled goes on, and everybody who waits is told how it ended.
* A cancelled task takes nothing back: an entry that has an LSN stays logged.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from mmwal.aio.waiting import Waiting
from mmwal.entry import check_timeout
from mmwal.errors import WalClosedError

if TYPE_CHECKING:
    from mmwal.log.log import Log

_THREADS = 4


class Closable(Protocol):
    """What is opened and closed."""

    def close(self) -> None:
        """Closes it."""


_Handle = TypeVar("_Handle", bound=Closable)
_Result = TypeVar("_Result")


class AsyncHandle(Generic[_Handle]):
    """A handle, open on one event loop."""

    def __init__(self, make: Callable[[], _Handle]) -> None:
        """``make`` opens the handle; it is called in a thread."""
        self._make = make
        self._handle: _Handle | None = None
        self._is_opening = False  # and stays so once it is open
        self._waiting: Waiting | None = None  # None: its log takes no entries
        self._closing: asyncio.Future[None] | None = None
        self._each_durable = False
        self._locking: set[Future[Any]] = set()  # off the loop, and may hold the lock of a store for long

    async def open(self) -> Self:
        """Opens it, in a thread; `RuntimeError` where it is open."""
        name = type(self).__name__
        if self._is_opening or self._handle is not None:
            how = "is closed" if self._closing is not None else "is open already"
            raise RuntimeError(f"it {how}; an {name} opens once")
        loop = asyncio.get_running_loop()
        opening = Opening(self._make)
        self._is_opening = True
        try:
            handle = await asyncio.shield(in_thread(loop, opening.open))
            log = self._log_of(handle)
            self._waiting = Waiting(log, loop) if log is not None else None
        except BaseException:
            opening.give_up()
            self._is_opening = False
            raise
        self._each_durable = log is not None and log.sync_interval_ms == 0
        # Of its own: writes that wait for room must not stand in the way of whoever makes some, nor of who reads.
        self._writers = ThreadPoolExecutor(_THREADS, thread_name_prefix="mmwal-async-write")
        self._readers = ThreadPoolExecutor(_THREADS, thread_name_prefix="mmwal-async-read")
        self._handle = handle
        return self

    async def close(self) -> None:
        """Makes everything durable, marks the log clean and frees the directory. Idempotent.

        Raises `SyncFailedError` if the last sync failed; the directory is free then, too. Whoever still waits gets its
        LSN, or that error.
        """
        if self._handle is None:
            return
        if self._closing is None:
            waiting = self._waiting
            self._closing = in_thread(asyncio.get_running_loop(), self._handle.close)
            if waiting is not None:
                self._closing.add_done_callback(lambda _: waiting.end())
            self._writers.shutdown(wait=False)
            self._readers.shutdown(wait=False)
        await asyncio.shield(self._closing)  # cancelled or not, it is closed, and everybody is told

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    # -- for the two faces ------------------------------------------------------------------------------------------

    def _opened(self) -> _Handle:
        if self._handle is None:
            raise WalClosedError("it is not open yet; use 'async with', or await open()")
        return self._handle

    def _log_of(self, handle: _Handle) -> Log | None:
        """Returns the log that the handle writes to, if it writes."""
        raise NotImplementedError

    def _log_in_use(self) -> Log:
        """Returns the log. Raises why there is none to write to."""
        raise NotImplementedError

    def _check_usable(self) -> None:
        """Raises why nothing can be done with the handle, in a forked child above all: its threads are not there."""
        raise NotImplementedError

    async def _acknowledged(self, lsn: int, durable: bool | None) -> int:
        """Returns the LSN of what was logged, once it is as durable as a write promises; None: no wait is promised."""
        if durable is None and self._each_durable:
            self._log_in_use().ask_for_sync()
        elif durable or self._each_durable:
            await self._settled(lsn, sync=True)
        return lsn

    async def _settled(self, lsn: int, *, sync: bool) -> None:
        """Returns once ``lsn`` is durable, and seen; asks for a sync, or leaves that to the interval."""
        if self._log_in_use().settled_lsn() < lsn:
            assert self._waiting is not None
            await self._waiting.until(lsn, sync=sync)

    async def _flush(self) -> int:
        log = self._log_in_use()
        log.check_usable()
        await self._settled(log.cursor.published, sync=True)
        return log.cursor.durable

    async def _wait_durable(self, lsn: int, timeout: float | None) -> None:
        lsn = self._log_in_use().check_exists(lsn)
        check_timeout(timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._settled(lsn, sync=self._each_durable)
        except TimeoutError:
            problem = f"LSN {lsn} was not durable after {timeout:g} s; it will be with a later sync"
            raise TimeoutError(problem) from None

    async def _write(self, act: Callable[[], _Result]) -> _Result:
        """Runs what logs in a thread. Cancelled before it begins, it does not."""
        return await self._off_loop(self._writers, act, locks=True)

    async def _read(self, act: Callable[[], _Result], *, locks: bool = False) -> _Result:
        """Runs what reads in a thread."""
        return await self._off_loop(self._readers, act, locks=locks)

    async def _off_loop(self, threads: ThreadPoolExecutor, act: Callable[[], _Result], *, locks: bool) -> _Result:
        self._check_usable()
        try:
            future = threads.submit(act)
        except RuntimeError as error:  # it takes no more
            if self._closing is None:
                raise
            raise WalClosedError("it is closed; open the directory again") from error
        if locks:
            self._locking.add(future)
            future.add_done_callback(self._locking.discard)
        return await asyncio.wrap_future(future)


class Opening(Generic[_Handle]):
    """A handle that is being opened in a thread for somebody who may not want it any more."""

    def __init__(self, make: Callable[[], _Handle]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._opened: _Handle | None = None
        self._given_up = False

    def open(self) -> _Handle:
        """Opens it; closes it again where nobody wants it."""
        handle = self._make()
        with self._lock:
            self._opened = handle
            given_up = self._given_up
        if given_up:
            handle.close()
        return handle

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
