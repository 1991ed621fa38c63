"""`AsyncWalManager`: the log alone for asyncio. The loop never waits for the disk.

    async with AsyncWalManager(config) as wal:
        lsn = await wal.log_insert_async("1", vector)      # in the log, safe from a kill
        await wal.wait_durable(lsn)                        # safe from a power cut

Not here: the log and its promises (`manager.py`), who syncs when (`log/log.py`), who waits (`waiting.py`).

* An append that finds its segment ready is done at once, on the loop: it takes about a microsecond. What would wait
  (for a segment, for a neighbour that copies) and what copies much (a batch) goes to a thread of an executor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from mmwal.aio.handle import AsyncHandle
from mmwal.config import WalConfig, check_config
from mmwal.disk.interface import Disk
from mmwal.entry import OperationName, RecoveryStats, WalMetrics, normalize_vector
from mmwal.errors import VectorError
from mmwal.format.frame import Kind
from mmwal.format.metadata import encode_metadata
from mmwal.kernel.interface import CONVERT, DTYPES, NONFINITE, NOT_READY, SETTLE
from mmwal.log.batch import append_batches, checked_batch, finish_row, plain_id, unwrap, update_of
from mmwal.log.receipt import Receipt
from mmwal.manager import WalManager
from mmwal.recovery.log_opening import default_disk

if TYPE_CHECKING:
    from mmwal.log.log import Log


class AsyncWalManager(AsyncHandle[WalManager]):
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
        check_config(config)
        super().__init__(partial(WalManager, config, disk=disk or default_disk()))
        self.config = config

    async def open(self) -> Self:
        """Opens the log. Raises as `WalManager`; `RuntimeError` where it is open."""
        await super().open()
        self._append = self.wal._log.cursor.append
        self._now = self.wal._log.time_ns
        return self

    @property
    def wal(self) -> WalManager:
        """The log itself. Its methods that log or sync may wait for the disk: do not call those on the loop."""
        return self._opened()

    def _log_of(self, handle: WalManager) -> Log:
        return handle._log

    def _log_in_use(self) -> Log:
        return self.wal._log

    def _check_usable(self) -> None:
        self.wal._log.check_usable()

    # -- logging ----------------------------------------------------------------------------------------------------

    async def log_insert_async(
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
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
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """As `WalManager.log_update` and `log_insert_async`."""
        id, vector, metadata = update_of(id, vector, metadata)
        return await self._row(Kind.UPDATE, id, vector, metadata, durable)

    async def log_delete_async(self, id: Any, *, durable: bool | None = False) -> int:
        """As `WalManager.log_delete` and `log_insert_async`."""
        return await self._row(Kind.DELETE, id, None, None, durable)

    async def log_batch_async(
        self,
        ids: Sequence[Any],
        vectors: Any = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        operation: OperationName = "insert",
        durable: bool | None = False,
    ) -> int:
        """As `WalManager.log_batch`, in a thread: what is passed must not be changed until this returns.

        Cancelled, it may still log the batch.
        """
        log = self.wal._log
        lsn = await self._write(lambda: append_batches(log, [checked_batch(log, ids, vectors, metadata, operation)]))
        return await self._acknowledged(lsn, durable)

    async def _row(
        self, kind: int, id: Any, vector: Any, metadata: Mapping[str, Any] | None, durable: bool | None
    ) -> int:
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
                lsn = await self._write(partial(finish_row, log, lsn, kind, id, kept, meta, -1))
            elif lsn < SETTLE and log.cursor.advance() < -lsn:  # it is logged, behind a neighbour that still copies
                lsn = await asyncio.shield(self._write(partial(log.settle, lsn, lambda: 0)))
            elif not 0 < lsn <= log.segment_end_lsn:
                lsn = finish_row(log, lsn, kind, id, vector, meta, -1)  # says what is wrong, or wakes the keeper
        return await self._acknowledged(lsn, durable)

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
        return await self._flush()

    async def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Returns once ``lsn`` is durable, leaving the syncing to the interval.

        Raises `TimeoutError` after ``timeout`` seconds, `SyncFailedError`; `ValueError` for an LSN that does not exist.
        """
        await self._wait_durable(lsn, timeout)

    def receipt(self, lsn: int) -> Receipt:
        """As `WalManager.receipt`; to be awaited, or to call somebody."""
        return self.wal.receipt(lsn)

    # -- the rest ---------------------------------------------------------------------------------------------------

    @property
    def recovery_stats(self) -> RecoveryStats:
        """What opening found."""
        return self.wal.recovery_stats

    def get_metrics(self) -> WalMetrics:
        """As `WalManager.get_metrics`."""
        return self.wal.get_metrics()
