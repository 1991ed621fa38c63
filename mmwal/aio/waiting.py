"""Who waits for which LSN on one loop.

* Waiting takes no thread and polls nothing. Whoever moves `durable` writes to an eventfd; the loop wakes once and
  resolves every waiter that it covers.
* Waiters who ask for a sync share it: the log's worker syncs, and whoever comes meanwhile is covered by the next.
* Whatever ends the log ends every wait: with a result where its LSN is durable, else with `Log.refusal`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from mmwal.log.receipt import EVERYBODY, Waiters

if TYPE_CHECKING:
    from mmwal.log.log import Log


class Waiting:
    """Who waits, on one loop. ``_lock`` guards the eventfd, which other threads write to. All else is the loop's."""

    def __init__(self, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        self._log = log
        self._loop = loop
        self._waiters: Waiters[asyncio.Future[None]] = Waiters()
        self._lock = threading.Lock()
        self._fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            loop.add_reader(self._fd, self._resolve)
        except BaseException:
            os.close(self._fd)
            raise
        log.on_durable.add(self._tell)

    async def until(self, lsn: int, *, sync: bool) -> None:
        """Returns once ``lsn`` is settled; asks for a sync, or leaves that to the interval. Raises `Log.refusal`."""
        if self._fd is None or self._log.failed or self._log.forked:
            raise self._log.refusal()
        waiter = self._loop.create_future()
        self._waiters.add(lsn, waiter)
        if sync:
            self._log.ask_for_sync()
        if self._log.settled_lsn() >= lsn:  # it moved before anybody knew of this waiter
            self._resolve()
        await waiter

    def end(self) -> None:
        """Lets everybody who waits know how it ended. The log is closed."""
        self._log.on_durable.discard(self._tell)
        self._resolve()
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

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
        settled_lsn = self._log.settled_lsn()
        while (waiter := self._waiters.pop(settled_lsn)) is not None:
            if not waiter.done():
                waiter.set_result(None)
        while over and (waiter := self._waiters.pop(EVERYBODY)) is not None:
            if not waiter.done():
                waiter.set_exception(self._log.refusal())
