"""`AsyncVectorStore`: a durable store for asyncio. The loop never waits for the disk.

    async with AsyncVectorStore("data/", dimension=768, sync_interval_ms=0) as store:
        lsn = await store.insert("a", vector)              # durable, and readers see it
        hits = await store.search(query)

Not here: what a store does and promises (`mmwal/store.py`), who waits (`waiting.py`), how it is opened (`handle.py`).

* A write of one row that finds lock, row and segment ready is logged at once, on the loop: that takes a few
  microseconds. Any other is logged in a thread, and so is whatever copies much: batches, commits.
* Either way it is logged with ``durable=None``, which waits for no sync. Then the task waits, where it is to; the log's
  sync worker makes it durable, lets readers see it, and only then tells the loop.
* Reads that copy one row at most are plain methods: they take no lock. The others run in threads of their own, which
  writers that wait for room do not hold up.
* A cancelled task takes nothing back: what has an LSN is in the log, and becomes durable and visible as ever.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mmwal.aio.handle import AsyncHandle, in_thread
from mmwal.config import WalConfig
from mmwal.disk.interface import Disk
from mmwal.entry import CheckpointInfo, Hit, Id, InDoubt, Record, RecoveryStats, VerifyReport
from mmwal.errors import WalClosedError
from mmwal.log.log import Log
from mmwal.log.receipt import Receipt
from mmwal.opening import open as open_store
from mmwal.store import VectorStore
from mmwal.transaction import StoreTransaction

_Metadata = Mapping[str, Any] | None
_Metadatas = Sequence[Mapping[str, Any] | None] | None


class AsyncVectorStore(AsyncHandle[VectorStore]):
    """Vectors by id for one event loop; `VectorStore` underneath, as ``store``.

    Args: as `mmwal.open`.

    ``async with`` opens the store and closes it; `open` and `close` do the same by hand. Opening recovers, in a thread;
    it raises as `mmwal.open`. A write takes and raises what that of `VectorStore` does. What is passed to one that runs
    in a thread, a batch for instance, must not be changed until it returns.

    Durability: as `VectorStore`, on the return of the ``await``. A write that is cancelled before it has an LSN may
    still be logged where a thread had begun with it; after that, it is.

    Concurrency: any number of tasks of the loop that opened it. Other threads may use ``store``; a large batch of
    theirs may hold up the loop where it begins in the same microsecond as a write there.

    Example:
        >>> import asyncio, tempfile
        >>> directory = getfixture("tmp_path") if "getfixture" in globals() else tempfile.mkdtemp()
        >>> async def main():
        ...     async with AsyncVectorStore(directory, dimension=2, segment_size=1 << 20, sync_interval_ms=0) as store:
        ...         lsn = await store.insert("a", [1.0, 0.0])
        ...         async with store.transaction() as txn:
        ...             txn.insert("b", [0.0, 1.0])
        ...         return store.durable_lsn >= lsn, "b" in store, [hit.id for hit in await store.search([1, 0], k=2)]
        >>> asyncio.run(main())
        (True, True, ['a', 'b'])
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        config: WalConfig | None = None,
        disk: Disk | None = None,
        read_only: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__(partial(open_store, path, config=config, disk=disk, read_only=read_only, **fields))

    @property
    def store(self) -> VectorStore:
        """The store itself. Its methods may wait for the disk or for other threads: do not call those on the loop."""
        return self._opened()

    def _log_of(self, handle: VectorStore) -> Log | None:
        return handle._log if isinstance(handle._log, Log) else None

    def _log_in_use(self) -> Log:
        log = self.store._log
        if not isinstance(log, Log):
            raise log.refusal()
        return log

    def _check_usable(self) -> None:
        self.store._check_open()

    # -- write ------------------------------------------------------------------------------------------------------

    async def insert(self, id: Id, vector: Any, metadata: _Metadata = None, *, durable: bool | None = False) -> int:
        """As `VectorStore.insert`."""
        return await self._row(self.store.insert, durable, id, vector, metadata)

    async def update(
        self, id: Id, vector: Any = None, metadata: _Metadata = None, *, durable: bool | None = False
    ) -> int:
        """As `VectorStore.update`."""
        return await self._row(self.store.update, durable, id, vector, metadata)

    async def upsert(self, id: Id, vector: Any, metadata: _Metadata = None, *, durable: bool | None = False) -> int:
        """As `VectorStore.upsert`."""
        return await self._row(self.store.upsert, durable, id, vector, metadata)

    async def delete(self, id: Id, *, durable: bool | None = False) -> int:
        """As `VectorStore.delete`."""
        return await self._row(self.store.delete, durable, id)

    async def insert_many(
        self, ids: Iterable[Id], vectors: Any, metadata: _Metadatas = None, *, durable: bool | None = False
    ) -> int:
        """As `VectorStore.insert_many`, in a thread."""
        return await self._many(self.store.insert_many, durable, ids, vectors, metadata)

    async def update_many(
        self, ids: Iterable[Id], vectors: Any = None, metadata: _Metadatas = None, *, durable: bool | None = False
    ) -> int:
        """As `VectorStore.update_many`, in a thread."""
        return await self._many(self.store.update_many, durable, ids, vectors, metadata)

    async def upsert_many(
        self, ids: Iterable[Id], vectors: Any, metadata: _Metadatas = None, *, durable: bool | None = False
    ) -> int:
        """As `VectorStore.upsert_many`, in a thread."""
        return await self._many(self.store.upsert_many, durable, ids, vectors, metadata)

    async def delete_many(self, ids: Iterable[Id], *, durable: bool | None = False) -> int:
        """As `VectorStore.delete_many`, in a thread."""
        return await self._many(self.store.delete_many, durable, ids)

    def transaction(self) -> AsyncStoreTransaction:
        """Begins a transaction, for an ``async with``: committed at its end, rolled back by an exception or where the
        task is cancelled. Raises `WalClosedError`, `ReadOnlyError`."""
        return AsyncStoreTransaction(self.store.transaction(), self._write, self._acknowledged)

    def list_in_doubt(self) -> list[InDoubt]:
        """As `VectorStore.list_in_doubt`."""
        return self.store.list_in_doubt()

    async def commit_prepared(self, gid: str, *, durable: bool | None = True) -> int:
        """As `VectorStore.commit_prepared`, in a thread."""
        return await self._many(self.store.commit_prepared, durable, gid)

    async def rollback_prepared(self, gid: str, *, durable: bool | None = False) -> int:
        """As `VectorStore.rollback_prepared`, in a thread."""
        return await self._many(self.store.rollback_prepared, durable, gid)

    async def _row(self, write: Callable[..., int], durable: bool | None, id: Id, *content: Any) -> int:
        if self.store.ready and not self._locking:
            lsn = write(id, *content, durable=None)
        else:  # the caller may be cancelled, and change the vector
            kept = [part.copy() if isinstance(part, np.ndarray) else part for part in content]
            lsn = await self._write(partial(write, id, *kept, durable=None))
        return await self._acknowledged(lsn, durable)

    async def _many(self, write: Callable[..., int], durable: bool | None, *arguments: Any) -> int:
        lsn = await self._write(partial(write, *arguments, durable=None))
        return await self._acknowledged(lsn, durable)

    # -- read, on the loop --------------------------------------------------------------------------------------------

    def get(self, id: Id) -> Record | None:
        """As `VectorStore.get`: at once, without a lock."""
        return self.store.get(id)

    def __getitem__(self, id: Id) -> npt.NDArray[Any]:
        return self.store[id]

    def __contains__(self, id: object) -> bool:
        return id in self.store

    def __len__(self) -> int:
        return len(self.store)

    @property
    def dimension(self) -> int | None:
        """As `VectorStore.dimension`."""
        return self.store.dimension

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """As `VectorStore.dtype`."""
        return self.store.dtype

    # -- read, in a thread --------------------------------------------------------------------------------------------

    async def get_many(self, ids: Iterable[Id]) -> list[Record | None]:
        """As `VectorStore.get_many`."""
        return await self._read(partial(self.store.get_many, ids), locks=True)

    async def ids(self) -> list[Id]:
        """As `VectorStore.ids`."""
        return await self._read(self.store.ids)

    async def batches(self, rows: int = 1024) -> AsyncIterator[tuple[list[Id], npt.NDArray[Any]]]:
        """Yields as `VectorStore.batches`, all as of the first one."""
        chunks, turn = self.store.batches(rows), threading.Lock()  # a step that was cancelled may still be running

        def step() -> tuple[list[Id], npt.NDArray[Any]] | None:
            with turn:
                return next(chunks, None)

        def end() -> None:
            with turn:
                chunks.close()

        try:
            while (chunk := await self._read(step)) is not None:
                yield chunk
        finally:
            with suppress(WalClosedError):  # then nobody needs the rows that it kept
                await self._read(end)

    async def search(self, query: Any, k: int = 10) -> list[Hit]:
        """As `VectorStore.search`."""
        return await self._read(partial(self.store.search, query, k))

    async def search_batch(self, queries: Any, k: int = 10) -> tuple[list[list[Id]], npt.NDArray[np.float32]]:
        """As `VectorStore.search_batch`."""
        return await self._read(partial(self.store.search_batch, queries, k))

    async def verify(self) -> VerifyReport:
        """As `VectorStore.verify`."""
        return await self._read(self.store.verify)

    # -- durability -------------------------------------------------------------------------------------------------

    @property
    def durable_lsn(self) -> int:
        """Everything with an LSN at or below this survives a power cut."""
        return self.store.durable_lsn

    @property
    def failed(self) -> bool:
        """Whether a failed sync has ended all writing; reads go on."""
        return self.store.failed

    async def sync(self) -> int:
        """Makes every write so far durable; returns `durable_lsn`. Raises `SyncFailedError`, `ReadOnlyError`."""
        return await self._flush()

    flush = sync  #: as `AsyncWalManager.flush`

    async def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Returns once ``lsn`` is durable, leaving the syncing to the interval.

        Raises `TimeoutError` after ``timeout`` seconds, `SyncFailedError`; `ValueError` for an LSN that does not exist.
        """
        await self._wait_durable(lsn, timeout)

    def receipt(self, lsn: int) -> Receipt:
        """As `VectorStore.receipt`; to be awaited, or to call somebody."""
        return self.store.receipt(lsn)

    async def checkpoint(self) -> CheckpointInfo:
        """As `VectorStore.checkpoint`, in a thread of its own. Cancelled, it goes on."""
        return await in_thread(asyncio.get_running_loop(), self.store.checkpoint)

    @property
    def recovery_stats(self) -> RecoveryStats:
        """What opening found."""
        return self.store.recovery_stats


class AsyncStoreTransaction:
    """Writes to a store that count together; `AsyncVectorStore.transaction` gives one.

    As `StoreTransaction`. What touches one row is a plain method: everything is in memory until the commit. Belongs to
    one task.
    """

    def __init__(
        self,
        txn: StoreTransaction,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
        acknowledged: Callable[[int, bool | None], Awaitable[int]],
    ) -> None:
        """Takes from its store how to run something that takes long, and how to wait for an LSN."""
        self._txn = txn
        self._in_thread = in_thread
        self._acknowledged = acknowledged

    @property
    def is_open(self) -> bool:
        """Whether more can be written."""
        return self._txn.is_open

    def get(self, id: Id) -> Record | None:
        """As `StoreTransaction.get`."""
        return self._txn.get(id)

    def __contains__(self, id: Id) -> bool:
        return id in self._txn

    def insert(self, id: Id, vector: Any, metadata: _Metadata = None) -> None:
        """As `StoreTransaction.insert`."""
        self._txn.insert(id, vector, metadata)

    def update(self, id: Id, vector: Any = None, metadata: _Metadata = None) -> None:
        """As `StoreTransaction.update`."""
        self._txn.update(id, vector, metadata)

    def upsert(self, id: Id, vector: Any, metadata: _Metadata = None) -> None:
        """As `StoreTransaction.upsert`."""
        self._txn.upsert(id, vector, metadata)

    def delete(self, id: Id) -> None:
        """As `StoreTransaction.delete`."""
        self._txn.delete(id)

    async def insert_many(self, ids: Iterable[Id], vectors: Any, metadata: _Metadatas = None) -> None:
        """As `StoreTransaction.insert_many`, in a thread."""
        await self._in_thread(partial(self._txn.insert_many, ids, vectors, metadata))

    async def update_many(self, ids: Iterable[Id], vectors: Any = None, metadata: _Metadatas = None) -> None:
        """As `StoreTransaction.update_many`, in a thread."""
        await self._in_thread(partial(self._txn.update_many, ids, vectors, metadata))

    async def upsert_many(self, ids: Iterable[Id], vectors: Any, metadata: _Metadatas = None) -> None:
        """As `StoreTransaction.upsert_many`, in a thread."""
        await self._in_thread(partial(self._txn.upsert_many, ids, vectors, metadata))

    async def delete_many(self, ids: Iterable[Id]) -> None:
        """As `StoreTransaction.delete_many`, in a thread."""
        await self._in_thread(partial(self._txn.delete_many, ids))

    async def commit(self, *, durable: bool | None = True) -> int:
        """As `StoreTransaction.commit`: logged in a thread, then the task waits.

        Cancelled before a thread has begun with it, nothing counts; later it may count whole, and once it has an LSN it
        does.
        """
        lsn: int = await self._in_thread(partial(self._txn.commit, durable=None))
        return await self._acknowledged(lsn, durable)

    async def prepare(self, gid: str) -> int:
        """As `StoreTransaction.prepare`, in a thread that waits for its sync, too. Cancelled, it may be in doubt."""
        lsn: int = await self._in_thread(partial(self._txn.prepare, gid))
        return lsn

    def rollback(self) -> None:
        """As `StoreTransaction.rollback`."""
        self._txn.rollback()

    async def __aenter__(self) -> Self:
        self._txn.__enter__()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.rollback()
        elif self.is_open:
            try:
                await self.commit()
            finally:
                self.rollback()  # should the log be full, or the task be cancelled: who left the block cannot try again
