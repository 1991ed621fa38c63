"""`VectorStore`: vectors by id, logged before they are applied.

This file is the write and read path, top down. Not here: opening and recovery (`opening.py`, `recovery/`), the log
(`log/`), what is alive in which row (`state/`), checkpoints (`checkpoint/`), how a search goes (`search/`).

The steps of every write, in this order, the first four under the store's lock:

    1. check      may this id be inserted, updated, deleted?
    2. take       a row that nobody can see
    3. log        one frame; refused: the row goes back and nothing has changed
    4. apply      the directory turns to the row, the LSN becomes visible
    5. sync       where the write is to be durable on return

* With ``sync_interval_ms=0`` step 5 comes before step 4: readers see nothing that is not durable. Writers do: what is
  logged and not yet applied stands in `_pending`, and its ids in `_latest`.
* Writes apply strictly in the order of their LSNs.
* The lock is never held across a sync, nor while the log waits for a checkpoint.
* With ``durable=None`` at interval 0 nobody waits: the log's sync worker takes steps 5 and 4, or whoever syncs first.
"""

from __future__ import annotations

import errno
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from mmwal import kernel as kernels
from mmwal.config import DEFAULT_DTYPE, DEFAULT_METRIC, DTypeName, MetricName, check_vectors
from mmwal.entry import CheckpointInfo, Hit, Id, InDoubt, Record, RecoveryStats, VerifyReport, normalize_vector
from mmwal.errors import (
    CheckpointFailedError,
    DuplicateIdError,
    IdError,
    IdTypeError,
    InputError,
    NoStoreError,
    TransactionConflictError,
    UnavailableError,
    UnknownIdError,
    VectorError,
    WalFullError,
)
from mmwal.format.frame import ID_BYTES_MAX, Kind, encode_id
from mmwal.format.metadata import decode_metadata, encode_metadata
from mmwal.kernel.interface import DTYPE_CODES, DTYPES, NO_ROW
from mmwal.log.batch import (
    Batch,
    append_batches,
    check_fits,
    distinct_ids,
    encode_many,
    finish_row,
    frames_of,
    plain_id,
    plain_matrix,
)
from mmwal.log.log import Log, NoRoomForBatch, OverBudget
from mmwal.log.read_only import ReadOnlyLog
from mmwal.log.receipt import Receipt
from mmwal.log.transaction import LogTransaction
from mmwal.log.unlogged import Unlogged
from mmwal.manager import StoreWal
from mmwal.prepared import Prepared, PreparedTransactions
from mmwal.search.exact import ExactSearch, count_of
from mmwal.state.matrix import MemoryMatrix
from mmwal.state.state import Entry, State
from mmwal.transaction import Change, StoreTransaction, batches_of

if TYPE_CHECKING:
    from mmwal.checkpoint.checkpoint import Checkpointer

_INSERT = int(Kind.INSERT)  # looking up a member of an enum takes as long as a small kernel call


@dataclass
class Parts:
    """What opening hands to a store."""

    log: Log | Unlogged
    metric: MetricName
    each_durable: bool
    begin: Callable[[int], tuple[State, Checkpointer | None]]  # makes the state once the dimension is known
    state: State | None
    checkpointer: Checkpointer | None
    stats: RecoveryStats
    checkpoint_interval: int | None
    prepared: Sequence[Prepared] = ()


class VectorStore:
    """Vectors by id, durable in a log and a mapped matrix; `mmwal.open` gives one.

    ``VectorStore()`` by itself keeps nothing: the same methods in memory, without a log.

    Args:
        dimension: values per vector; None: that of the first one.
        dtype: "float32", "float16" or "int8".
        metric: "inner_product", "cosine" or "l2".

    Durability: as said of `sync_interval_ms` in `WalConfig`; ``durable=True`` on any write returns once it is durable.

    Concurrency: any number of threads. Reads never wait for a sync. A write is seen whole or not at all.

    Example:
        >>> store = VectorStore(dimension=2)
        >>> store.insert("a", [1.0, 0.0], {"title": "east"}) > 0
        True
        >>> store.search([0.9, 0.1], k=1)
        [Hit(id='a', score=0.8999999761581421, metadata={'title': 'east'})]
        >>> store.insert("a", [0.0, 1.0])
        Traceback (most recent call last):
        ...
        mmwal.errors.DuplicateIdError: id 'a' exists already; use update() to change it or upsert() for either
    """

    def __init__(
        self,
        dimension: int | None = None,
        *,
        dtype: DTypeName | None = None,
        metric: MetricName | None = None,
        _parts: Parts | None = None,
    ) -> None:
        if _parts is None:
            check_vectors(dimension, dtype, metric)
        parts = _parts or _in_memory(dtype, metric)
        self._log = parts.log
        self._append = parts.log.cursor.append
        self._now = parts.log.time_ns
        self._each_durable = parts.each_durable
        self._begin = parts.begin
        self._starting = threading.Lock()
        self._state: State | None = parts.state
        self._checkpointer = parts.checkpointer
        self._stats = parts.stats
        self._search = ExactSearch(parts.metric)
        self._bound_rows = 0  # rows of the matrix that the kernel knows
        self._shape: tuple[int] | None = None  # of a vector, where the log was created before the dimension was known
        self._pending: deque[tuple[int, list[tuple[Id, int, bytes | None]]]] = deque()
        self._latest: dict[Id, tuple[int, int, bytes | None]] = {}  # id to (lsn, row, metadata) of what is pending
        self._prepared = PreparedTransactions(parts.prepared)
        self._held = self._prepared.holders
        self._changes = 0  # rows changed since the last automatic checkpoint was asked for
        self._checkpoint_interval = parts.checkpoint_interval or 1 << 62
        self.request_checkpoint: Callable[[], None] = lambda: None
        self.checkpoints_taken = 0
        self._close: Callable[[], object] | None = None  # None: nothing but the state to let go of
        self._verify: Callable[[], VerifyReport] | None = None
        if self._each_durable:
            self._logged().show_durable, self._logged().settled_lsn = self._show_durable, self._settled_lsn
        self.wal: StoreWal | None = None  #: the store's log, for reading, syncing and figures; None without one
        if self._state is not None:
            self._expect(self._state.matrix.dimension)
        elif dimension is not None:
            self._start(dimension)

    # -- write, one row ---------------------------------------------------------------------------------------------

    def insert(
        self, id: Id, vector: Any, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """Adds a vector under a new id; returns the LSN of the entry.

        Args:
            id: a str of 1 to 65,535 UTF-8 bytes, or an int of 64 bits; "7" and 7 differ.
            vector: shape (d,), castable to the store's dtype without loss of range; finite.
            metadata: a mapping of plain values (see `mmwal.format.metadata`).
            durable: return only once the entry is durable, whatever the interval. With an interval above 0 it is the
                caller who waits: other readers may see the row before it is durable. None: wait for no sync, whatever
                the interval. At 0 one is on its way, readers see the row once it is durable, and `receipt` says when.

        Raises:
            DuplicateIdError: the id exists.
            TransactionInDoubtError: a prepared transaction writes the id, and is not decided; nothing was logged.
            IdTypeError, IdError, VectorError, MetadataError, EntryTooLargeError: nothing was logged.
            WalFullError: disk or budget exhausted; nothing was logged, reads go on.
            SyncFailedError: the outcome is known after recovery; readers have not seen the change.
            WalClosedError, ReadOnlyError, ForkedProcessError.
            OSError: the matrix cannot be created or grow, and not for want of space (EIO, EROFS); nothing was logged.
        """
        meta = encode_metadata(metadata) if metadata is not None else None
        if type(id) is not str and type(id) is not int:
            id = plain_id(id)
        state = self._state
        if state is None:
            state = self._start_with(id, vector, meta)
        while True:
            with state.lock:
                exists = self._find(id) is not None if self._latest or self._held else id in state.directory
                if exists:
                    raise DuplicateIdError(id)
                lsn = self._log_row(state, _INSERT, id, vector, meta)
                if lsn:
                    break
            self._wait_for_room()
        if durable or self._each_durable:
            self._make_durable(lsn, durable)
        return lsn

    def update(
        self, id: Id, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """Replaces the vector, the metadata or both of an existing id; None keeps what is there. Returns the LSN.

        Raises `UnknownIdError` where the id does not exist, `VectorError` where neither is given; else as `insert`.
        """
        if vector is None and metadata is None:
            raise VectorError(f"nothing to update for id {id!r}: pass a vector, metadata or both")
        return self._replace(Kind.UPDATE, id, vector, metadata, durable)

    def upsert(
        self, id: Id, vector: Any, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """Inserts a new id or updates an existing one, whose metadata is kept unless given. Returns and raises as
        `insert`, but for `DuplicateIdError`."""
        return self._replace(Kind.UPSERT, id, vector, metadata, durable)

    def delete(self, id: Id, *, durable: bool | None = False) -> int:
        """Removes an id; returns the LSN. Raises `UnknownIdError` where it does not exist; else as `insert`."""
        if type(id) is not str and type(id) is not int:
            id = plain_id(id)
        state = self._state
        while state is not None:
            with state.lock:
                if self._find(id) is None:
                    break
                lsn = 0
                try:
                    result = self._append(Kind.DELETE, id, None, None, self._now(), -1)
                    lsn = finish_row(self._log, result, Kind.DELETE, id, None, None, -1)  # type: ignore[arg-type]
                    self._apply(state, lsn, [(id, NO_ROW, None)])
                except BaseException as error:
                    if not self._is_unlogged(error, lsn) or not isinstance(error, OverBudget):
                        raise
            if lsn:
                if durable or self._each_durable:
                    self._make_durable(lsn, durable)
                return lsn
            self._wait_for_room()
        raise UnknownIdError(id)

    def _replace(
        self, kind: Kind, id: Id, vector: Any, metadata: Mapping[str, Any] | None, durable: bool | None
    ) -> int:
        meta = encode_metadata(metadata) if metadata is not None else None
        if type(id) is not str and type(id) is not int:
            id = plain_id(id)
        state = self._state
        if state is None:
            if kind == Kind.UPDATE:
                raise UnknownIdError(id)
            state = self._start_with(id, vector, meta)
        while True:
            with state.lock:
                found = self._find(id)
                if found is None and kind == Kind.UPDATE:
                    raise UnknownIdError(id)
                # The full new value is logged, so that replay needs nothing but the newest entry of an id.
                kept = found[1] if found and meta is None else meta
                value = state.matrix.array[found[0]].copy() if found and vector is None else vector
                lsn = self._log_row(state, kind, id, value, kept)
                if lsn:
                    break
            self._wait_for_room()
        if durable or self._each_durable:
            self._make_durable(lsn, durable)
        return lsn

    # -- write, many rows -------------------------------------------------------------------------------------------

    def insert_many(
        self,
        ids: Iterable[Id],
        vectors: Any,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        durable: bool | None = False,
    ) -> int:
        """Adds many vectors, all or none; returns their LSN.

        Args:
            ids: n new ids, each once.
            vectors: shape (n, d); an array of the store's dtype in C order is borrowed without a copy.
            metadata: n items, or None.

        Raises: as `insert`; `ValueError` where the lengths differ or there is no id.
        """
        return self._write_many(Kind.INSERT, ids, vectors, metadata, durable)

    def update_many(
        self,
        ids: Iterable[Id],
        vectors: Any = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        durable: bool | None = False,
    ) -> int:
        """Replaces many vectors, their metadata or both, all or none; what is None stays as it is.

        As `insert_many`, but raises `UnknownIdError` where an id does not exist.
        """
        if vectors is None and (metadata is None or all(item is None for item in metadata)):
            raise VectorError("nothing to update: pass vectors, metadata or both")
        return self._write_many(Kind.UPDATE, ids, vectors, metadata, durable)

    def upsert_many(
        self,
        ids: Iterable[Id],
        vectors: Any,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        durable: bool | None = False,
    ) -> int:
        """Inserts or updates many vectors, all or none; as `update_many`, whether the ids exist or not."""
        return self._write_many(Kind.UPSERT, ids, vectors, metadata, durable)

    def delete_many(self, ids: Iterable[Id], *, durable: bool | None = False) -> int:
        """Removes many ids, all or none; returns their LSN. Raises `UnknownIdError`; else as `insert_many`."""
        plain = distinct_ids(ids)
        state = self._state
        if state is None:
            raise UnknownIdError(plain[0])
        return self._log_many(state, Kind.DELETE, plain, None, None, durable)

    def _write_many(
        self,
        kind: Kind,
        ids: Iterable[Id],
        vectors: Any,
        metadata: Sequence[Mapping[str, Any] | None] | None,
        durable: bool | None,
    ) -> int:
        plain = distinct_ids(ids)
        metas = encode_many(metadata, len(plain))
        if self._state is None:
            if kind == Kind.UPDATE:
                raise UnknownIdError(plain[0])
            self._start_with_many(plain, vectors, metas)
        state = self._state
        assert state is not None
        matrix = None
        if vectors is not None or kind != Kind.UPDATE:
            matrix = plain_matrix(self._log, vectors, len(plain), state.matrix.dimension)  # type: ignore[arg-type]
        return self._log_many(state, kind, plain, matrix, metas, durable)

    def _log_many(
        self,
        state: State,
        kind: Kind,
        ids: list[Id],
        matrix: npt.NDArray[Any] | None,
        metas: list[bytes | None] | None,
        durable: bool | None,
    ) -> int:
        def check() -> list[Batch]:
            kept = self._check_many(kind, ids, metas)
            vectors = self._current(state, ids) if matrix is None and kind != Kind.DELETE else matrix
            return [Batch(kind, ids, vectors, kept)]

        return self._log_batches(state, check, durable)

    def _log_batches(
        self,
        state: State,
        check: Callable[[], list[Batch]],
        durable: bool | None,
        log: Callable[[list[Batch]], int] | None = None,
    ) -> int:
        """Logs and applies what ``check`` returns, as a whole; returns its LSN. ``log``: not by `append_batches`."""
        log = log or partial(append_batches, self._log)  # type: ignore[arg-type]

        def write() -> int:
            # 1. check
            batches = check()
            taken: list[list[int]] = []
            lsn = 0
            try:
                # 2. take
                for batch in batches:
                    count = len(batch.ids)
                    taken.append(state.take_rows(count) if batch.vectors is not None else [NO_ROW] * count)
                # 3. log
                lsn = log(list(map(partial(self._hold, state), batches, taken)))
                # 4. apply
                self._apply(state, lsn, list(itertools.chain.from_iterable(map(_changes, batches, taken))))
            except BaseException as error:
                if self._is_unlogged(error, lsn):
                    state.give_back(*(row for rows in taken for row in rows if row != NO_ROW))
                raise
            return lsn

        lsn = self._with_room(state, write)
        # 5. sync
        if durable or self._each_durable:
            self._make_durable(lsn, durable)
        return lsn

    def _with_room(self, state: State, write: Callable[[], int]) -> int:
        """Returns what ``write`` does, called with the lock held: again where checkpoints must make room in between."""
        made_room = False
        while True:
            with state.lock:
                try:
                    return write()
                except NoRoomForBatch:
                    if made_room and self._prepared:
                        raise WalFullError(
                            f"no room for the batch within max_wal_size: transactions in doubt keep the log, such as "
                            f"{self._prepared.told()[0].gid!r}; nothing was logged. Decide them, or raise max_wal_size",
                            errno.ENOSPC,
                        ) from None
                    wait, made_room = self._make_room, True
                except OverBudget:
                    wait = self._wait_for_room
            wait()

    # -- write, a transaction ---------------------------------------------------------------------------------------

    def transaction(self) -> StoreTransaction:
        """Begins a transaction: writes that count together, from its commit on. See `StoreTransaction`.

        Concurrency: any number may be open at a time; each belongs to one thread. Raises `WalClosedError`.

        Example:
            >>> store = VectorStore(dimension=2)
            >>> with store.transaction() as txn:
            ...     txn.insert("a", [1.0, 0.0])
            ...     txn.insert("b", [0.0, 1.0])
            ...     "a" in txn, "a" in store
            (True, False)
            >>> len(store)
            2
        """
        self._check_open()
        return StoreTransaction(self._log, lambda: self.dimension, self._read_entry, self._commit, self._prepare)

    def list_in_doubt(self) -> list[InDoubt]:
        """Returns the transactions that are prepared and not decided, the oldest first.

        Each keeps the log from its first entry on, and its ids from other writers. Raises `WalClosedError`.
        """
        self._check_open()
        return self._prepared.told()

    def commit_prepared(self, gid: str, *, durable: bool | None = True) -> int:
        """Applies a prepared transaction as a whole; returns the LSN of every row that it wrote.

        It may be of an earlier process. What its coordinator has decided is for the coordinator to say: by hand this is
        for one that is lost for good.

        Args:
            gid: as given to `StoreTransaction.prepare`.
            durable: return only once it is durable, whatever the interval; None: wait for no sync.

        Raises:
            UnknownTransactionError: none of that global id is in doubt.
            WalFullError: the disk has no room; the transaction stays in doubt: try again. ``max_wal_size`` is exceeded
                where need be.
            SyncFailedError: the outcome is known after recovery.
            WalClosedError, ReadOnlyError, ForkedProcessError: nothing was changed.
        """
        return self._decide(gid, durable, LogTransaction.commit)

    def rollback_prepared(self, gid: str, *, durable: bool | None = False) -> int:
        """Ends a prepared transaction, which has no effect then; returns the LSN of that.

        Raises as `commit_prepared`. Durability: unless ``durable``, a crash may bring it back as in doubt.
        """
        return self._decide(gid, durable, LogTransaction.rollback)

    def _decide(self, gid: str, durable: bool | None, end: Callable[[LogTransaction], int]) -> int:
        """Logs the end of a prepared transaction, and applies it where that is its commit."""
        self._logged().check_usable()
        prepared, state = self._prepared.of(gid), self._state
        if prepared.logged is None or state is None:
            self._prepared.decided(prepared, 0)
            return self._log.cursor.published

        def batches() -> list[Batch]:
            found = self._prepared.of(gid)  # unless another thread has decided it
            return found.batches if end is LogTransaction.commit else []

        def log(_: list[Batch]) -> int:
            found = self._prepared.of(gid)
            assert found.logged is not None
            lsn = end(found.logged)
            self._prepared.decided(found, lsn)
            return lsn

        return self._log_batches(state, batches, durable, log)

    def _prepare(self, changes: Sequence[Change], gid: str) -> int:
        """Logs a transaction to be decided later; returns the LSN of its prepare record, which is durable."""
        log = self._logged()
        log.check_usable()
        if not isinstance(gid, str):
            raise IdTypeError(f"gid {gid!r} is a {type(gid).__name__}; the global id of a transaction is a str")
        if not 1 <= len(gid.encode(errors="replace")) <= ID_BYTES_MAX:
            raise IdError(f"gid {gid[:20]!r}: must have 1 to {ID_BYTES_MAX:,} UTF-8 bytes")
        encode_id(gid)
        if not changes:
            with self._starting:
                self._prepared.check_new(gid)
                self._prepared.add(Prepared(gid, log.cursor.published, log.time_ns(), [], None))
            return log.cursor.published
        state, check = self._checked(changes)

        def write() -> int:
            self._prepared.check_new(gid)
            return self.log_prepared(gid, check())

        lsn = self._with_room(state, write)
        log.make_durable(lsn)
        return lsn

    def log_prepared(self, gid: str, batches: list[Batch]) -> int:
        """Logs rows and their prepare record; returns the LSN of that. The lock is held."""
        log = self._logged()
        frames = [frame for batch in batches for frame in frames_of(log, batch)]
        lsn = 0
        try:
            logged = log.prepare_transaction(frames, gid)
            lsn = logged.prepared_lsn
            self._prepared.add(Prepared(gid, lsn, log.time_ns(), batches, logged))
        except BaseException as error:
            self._is_unlogged(error, lsn)
            raise
        return lsn

    def _read_entry(self, id: Id) -> tuple[npt.NDArray[Any], Entry] | None:
        return self._state.read(id) if self._state is not None else None

    def _commit(self, changes: Sequence[Change], durable: bool | None) -> int:
        """Logs and applies the net effect of a transaction; returns its LSN."""
        self._check_open()
        if not changes:
            return self._log.cursor.published
        return self._log_batches(*self._checked(changes), durable)

    def _checked(self, changes: Sequence[Change]) -> tuple[State, Callable[[], list[Batch]]]:
        """Returns the state that changes are for, and what returns them as batches unless another writer was first."""
        vectors = [change.vector for change in changes if change.vector is not None]
        state = self._state if self._state is not None else self._start(len(vectors[0]))
        for vector in vectors:
            if len(vector) != state.matrix.dimension:  # it was decided meanwhile
                raise VectorError(
                    f"expected vectors of dimension {state.matrix.dimension}, which another writer gave the store "
                    f"first, found {len(vector)}; nothing was logged"
                )
        batches = batches_of(changes)

        def check() -> list[Batch]:
            for change in changes:
                self._prepared.check_free(change.id)
                if self._lsn_of(state, change.id) != change.seen_lsn:
                    raise TransactionConflictError(change.id)
            return batches

        return state, check

    def _lsn_of(self, state: State, id: Id) -> int:
        """Returns the LSN of an id as the newest logged write left it, 0 where it is not there. The lock is held."""
        if (latest := self._latest.get(id)) is not None:
            if self._log.failed:
                raise self._log.refusal()  # readers will never see it: to run a transaction again would help nobody
            lsn, row, _ = latest
        else:
            found = state.directory.get(id)
            row = NO_ROW if found is None else found
            lsn = 0 if found is None else state.rows.born_cells[found]
        return 0 if row == NO_ROW else lsn

    # -- write, the shared steps ------------------------------------------------------------------------------------

    def _check_many(self, kind: Kind, ids: list[Id], metas: list[bytes | None] | None) -> list[bytes | None] | None:
        """Checks that the ids may be written; returns the metadata that the rows will have."""
        found = [self._find(id) for id in ids]
        if kind == Kind.INSERT:
            for id, entry in zip(ids, found, strict=True):
                if entry is not None:
                    raise DuplicateIdError(id)
            return metas
        if kind != Kind.UPSERT:
            for id, entry in zip(ids, found, strict=True):
                if entry is None:
                    raise UnknownIdError(id)
        if kind == Kind.DELETE:
            return None
        given = metas or [None] * len(ids)
        kept = [entry[1] if entry and meta is None else meta for entry, meta in zip(found, given, strict=True)]
        return kept if any(meta is not None for meta in kept) else None

    def _current(self, state: State, ids: list[Id]) -> npt.NDArray[Any]:
        """Returns a copy of the vectors of ids that exist, as the newest logged write left them. The lock is held."""
        rows = [found[0] for id in ids if (found := self._find(id)) is not None]
        return np.ascontiguousarray(state.matrix.array[rows])

    def _find(self, id: Id) -> tuple[int, bytes | None] | None:
        """Returns row and metadata of an id as the newest logged write left it, to a writer. The lock is held.

        Raises `TransactionInDoubtError`.
        """
        if self._held:
            self._prepared.check_free(id)
        state = self._state
        assert state is not None
        if (latest := self._latest.get(id)) is not None:
            if self._log.failed:
                raise self._log.refusal()  # whether it exists is known after recovery
            return None if latest[1] == NO_ROW else latest[1:]
        row = state.directory.get(id)
        return None if row is None else (row, state.directory.metadata(row))

    def _log_row(self, state: State, kind: int, id: Id, vector: Any, meta: bytes | None) -> int:
        """Takes a row, logs and applies; returns 0 where a checkpoint must make room first. The lock is held."""
        if vector is None or (self._shape is not None and getattr(vector, "shape", None) != self._shape):
            vector = normalize_vector(vector, state.matrix.dtype, state.matrix.dimension, not self._log.check_finite)
        row = state.take_row()
        if row >= self._bound_rows:
            self._bind_rows(state)
        lsn = 0
        try:
            lsn = self._append(kind, id, vector, meta, self._now(), row)
            if not 0 < lsn <= self._log.segment_end_lsn:
                lsn = finish_row(self._log, lsn, kind, id, vector, meta, row, state.matrix.dimension)  # type: ignore[arg-type]
            if self._each_durable:
                self._pending.append((lsn, [(id, row, meta)]))
                self._latest[id] = (lsn, row, meta)
            else:
                state.put(id, row, lsn, meta)
                state.applied_lsn = lsn  # as `advance`, without a frame
                self._changes += 1
                if self._changes >= self._checkpoint_interval:
                    self._count(0)
        except BaseException as error:
            if not self._is_unlogged(error, lsn):
                raise
            state.give_back(row)
            if not isinstance(error, OverBudget):
                raise
            lsn = 0
        return lsn

    def _is_unlogged(self, error: BaseException, lsn: int) -> bool:
        """Whether a write that failed is not in the log. If it may be there and is not applied, writing ends: no
        checkpoint may pass it, and recovery applies it. ``lsn``: what is known of it, 0 or less for a refusal."""
        if lsn <= 0 and isinstance(error, Exception):
            return True
        if isinstance(self._log, Log):
            self._log.stop(OSError(errno.EINTR, "a write was interrupted between the log and the store"))
        return False

    def _apply(self, state: State, lsn: int, changes: list[tuple[Id, int, bytes | None]]) -> None:
        """Applies a logged entry, or keeps it until it is durable. The lock is held."""
        if self._each_durable:
            self._pending.append((lsn, changes))
            for id, row, meta in changes:
                self._latest[id] = (lsn, row, meta)
        else:
            _turn(state, lsn, changes)
            self._count(len(changes))

    def _make_durable(self, lsn: int, durable: bool | None = True) -> None:
        """Waits for the sync, and until everything that it covered is seen; None: asks for both, waits for neither."""
        self._log.acknowledge(lsn, durable)

    def _show_durable(self) -> None:
        """Lets everything that is durable by now be seen; for the log, which calls it before it tells anybody."""
        state = self._state
        if not self._each_durable or state is None or isinstance(state, _Ended):
            return
        with state.lock:
            durable_lsn = self._logged().cursor.durable
            while self._pending and self._pending[0][0] <= durable_lsn:
                lsn, changes = self._pending.popleft()
                _turn(state, lsn, changes)
                for id, _, _ in changes:
                    if self._latest[id][0] == lsn:
                        del self._latest[id]
                self._count(len(changes))

    def _settled_lsn(self) -> int:
        """Returns up to where everything is durable and seen, at interval 0. Takes no lock."""
        state, durable_lsn = self._state, self._logged().cursor.durable  # before it is seen whether anything is pending
        if not self._latest or state is None or isinstance(state, _Ended):
            return durable_lsn
        return min(durable_lsn, state.applied_lsn)

    def _hold(self, state: State, batch: Batch, rows: list[int]) -> Batch:
        """Fills rows that nobody can see; returns the same batch, safe from the caller, to be logged."""
        if batch.vectors is None:
            return batch
        matrix = state.matrix
        first, last = rows[0], rows[-1]
        if rows == list(range(first, last + 1)):
            block = matrix.array[first : last + 1]
            np.copyto(block, batch.vectors)
            return batch._replace(vectors=np.ascontiguousarray(block))
        held = batch.vectors.copy()
        offsets = np.arange(len(rows), dtype=np.int64) * matrix.row_bytes
        content = held.reshape(-1).view(np.uint8).data
        self._log.kernel.gather(
            content, offsets, matrix.row_bytes, matrix.view, np.array(rows, np.int64), matrix.stride
        )
        return batch._replace(vectors=held)

    def _bind_rows(self, state: State) -> None:
        view = state.matrix.view  # the matrix may grow meanwhile: its capacity is of a later view
        self._log.cursor.bind_rows(view, state.matrix.stride)
        self._bound_rows = len(view) // state.matrix.stride

    def _count(self, rows: int) -> None:
        self._changes += rows
        if self._changes >= self._checkpoint_interval:
            self._changes = 0
            self.request_checkpoint()

    def _wait_for_room(self) -> None:
        assert isinstance(self._log, Log)
        self.request_checkpoint()
        self._log.wait_for_room()

    def _make_room(self) -> None:
        """Takes two checkpoints: the log goes up to the older of the two that count."""
        try:
            self.checkpoint()
            self.checkpoint()
        except CheckpointFailedError as error:
            raise WalFullError(
                "no room for the batch within max_wal_size, and no checkpoint can make some; nothing was logged. "
                f"{error}"
            ) from error

    def _start_with(self, id: Id, vector: Any, meta: bytes | None) -> State:
        """Makes the state from the first row, which must be one that can be logged: the dimension stays."""
        row = normalize_vector(vector, DTYPES[self._log.identity.dtype], None, not self._log.check_finite)
        check_fits(self._log, id, row.nbytes, meta)  # type: ignore[arg-type]
        return self._start(len(row))

    def _start_with_many(self, ids: list[Id], vectors: Any, metas: list[bytes | None] | None) -> State:
        matrix = plain_matrix(self._log, vectors, len(ids))  # type: ignore[arg-type]
        for id, meta in zip(ids, metas or itertools.repeat(None), strict=False):
            check_fits(self._log, id, matrix[0].nbytes, meta)  # type: ignore[arg-type]
        return self._start(matrix.shape[1])

    def _start(self, dimension: int) -> State:
        """Makes the state, now that the dimension is known."""
        with self._starting:
            if self._state is None:
                state, self._checkpointer = self._begin(dimension)
                self._expect(dimension)
                self._state = state
            return self._state

    def _expect(self, dimension: int) -> None:
        """Checks vectors against a dimension that the kernel was not told."""
        self._shape = (dimension,) if not self._log.dimension else None

    # -- read -------------------------------------------------------------------------------------------------------

    def get(self, id: Id) -> Record | None:
        """Returns what stands under an id, its vector as a copy, or None. Takes no lock that a sync holds."""
        if type(id) is not str and type(id) is not int:
            try:
                id = plain_id(id)
            except InputError:
                self._check_open()
                return None
        if self._state is None:
            return None
        found = self._state.read(id)
        if found is None:
            return None
        vector, entry = found
        return Record(id, vector, decode_metadata(entry.metadata), entry.lsn)

    def get_many(self, ids: Iterable[Id]) -> list[Record | None]:
        """Returns `get` of each id, all as of one moment."""
        wanted = list(ids)
        if self._state is None:
            return [None] * len(wanted)
        with self._state.lock:
            return [self.get(id) for id in wanted]

    def __getitem__(self, id: Id) -> npt.NDArray[Any]:
        """Returns a copy of an id's vector. Raises `UnknownIdError`, a `KeyError`."""
        record = self.get(id)
        if record is None:
            raise UnknownIdError(id)
        return record.vector

    def __contains__(self, id: object) -> bool:
        if type(id) is not str and type(id) is not int:
            try:
                id = plain_id(id)
            except InputError:
                self._check_open()
                return False
        return self._state is not None and id in self._state

    def __len__(self) -> int:
        return len(self._state) if self._state is not None else 0

    def __iter__(self) -> Iterator[Id]:
        return iter(self.ids())

    def ids(self) -> list[Id]:
        """Returns the ids, in the order in which they were last written."""
        if self._state is None:
            return []
        with self._state.reading() as view:
            return [id for id, _, _ in view.records(view.rows())]

    def batches(self, rows: int = 1024) -> Generator[tuple[list[Id], npt.NDArray[Any]], None, None]:
        """Yields all live rows as of now in chunks: ids, and their vectors as an (n, d) copy."""
        if rows < 1:
            raise ValueError(f"rows={rows}: a chunk has at least 1 row")
        if self._state is None:
            return
        with self._state.reading() as view:
            live = view.rows()
            for start in range(0, len(live), rows):
                self._check_open()
                chunk = live[start : start + rows]
                yield [id for id, _, _ in view.records(chunk)], view.array[chunk]

    @property
    def matrix(self) -> npt.NDArray[Any]:
        """All rows ever used as a read-only array without a copy, dead ones included; see `ids` and `batches` for the
        live ones. Rows that are alive now stay as they are while the array lives and the store is open."""
        if self._state is None:
            return np.empty((0, 0), DTYPES[self._log.identity.dtype])
        return self._state.export()

    @property
    def dimension(self) -> int | None:
        """Values per vector; None until the first one."""
        return self._state.matrix.dimension if self._state is not None else None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """What a vector's values are stored as; None until the first one."""
        return self._state.matrix.dtype if self._state is not None else None

    def search(self, query: Any, k: int = 10) -> list[Hit]:
        """Returns the ``k`` nearest rows, best first; fewer if the store has fewer.

        Args:
            query: shape (d,).
            k: an int of at least 1.

        Raises `VectorError`, or `TypeError` or `ValueError` for ``k``.
        """
        k = count_of(k)
        if self._state is None:
            return []
        with self._state.reading() as view:
            rows, scores = self._search.one(view, query, k)
            return [
                Hit(id, score, decode_metadata(meta))
                for (id, _, meta), score in zip(view.records(rows), scores.tolist(), strict=True)
            ]

    def search_batch(self, queries: Any, k: int = 10) -> tuple[list[list[Id]], npt.NDArray[np.float32]]:
        """Returns, for each of (q, d) queries, the ids of its ``k`` nearest rows, and the scores as a float32 array of
        shape (q, k); fewer columns if the store has fewer rows. Raises as `search`."""
        k = count_of(k)
        if self._state is None:
            return [[] for _ in queries], np.empty((len(queries), 0), np.float32)
        with self._state.reading() as view:
            found = self._search.many(view, queries, k)
            ids = [[id for id, _, _ in view.records(rows)] for rows, _ in found]
        columns = len(found[0][1]) if found else 0
        return ids, np.array([scores for _, scores in found], np.float32).reshape(len(found), columns)

    # -- durability -------------------------------------------------------------------------------------------------

    @property
    def durable_lsn(self) -> int:
        """Everything with an LSN at or below this survives a power cut."""
        return self._logged().cursor.durable

    def sync(self) -> int:
        """Makes every write so far durable; returns `durable_lsn`. Raises `SyncFailedError`."""
        log = self._logged()
        log.check_usable()
        self._make_durable(log.cursor.published)
        return log.cursor.durable

    def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Returns once ``lsn`` is durable. Raises `TimeoutError` after ``timeout`` seconds, or `SyncFailedError`."""
        self._logged().wait_durable(lsn, timeout)

    def receipt(self, lsn: int) -> Receipt:
        """Returns what says when ``lsn`` is durable: now, to a thread, to a task or to a callback; see `Receipt`.

        With ``sync_interval_ms=0`` readers see, by then, what was written. Raises `NoStoreError` where there is no log,
        `ValueError` for an LSN that does not exist yet.
        """
        return Receipt(lsn, self._logged())

    def checkpoint(self) -> CheckpointInfo:
        """Flushes the matrix, publishes what is alive, and lets go of the log that no checkpoint needs.

        Raises:
            NoStoreError: the store has no log, or nothing was ever written to it.
            CheckpointFailedError: this or an earlier checkpoint failed; writes go on, the log keeps everything.
            WalFullError: the disk has no room for it; take it again once there is some.
            SyncFailedError: a sync of the log failed.

        Durability: on return a crash needs the log behind this point only. A crash meanwhile finds the checkpoint
        before.

        Concurrency: writes and reads go on; calls at the same time share one checkpoint.
        """
        self._logged().check_usable()
        if self._checkpointer is None:
            raise NoStoreError("nothing was written yet, so there is nothing to checkpoint")
        return self._checkpointer.take()

    def verify(self) -> VerifyReport:
        """Compares log, images and matrix, as they stand on disk, with their checksums. Never raises on damage.

        It reads everything: entries of the log, control slots, sections of the images, and every row that a checkpoint
        names, which a clean opening does not look at. `mmwal.verify` does the same for a directory that is not open.

        Raises `NoStoreError` where the store has no log.

        Concurrency: writes and reads go on; what is written after the call began is not looked at.
        """
        if self._verify is None:
            raise NoStoreError("this store keeps no log: it lives in memory, so there is nothing to verify")
        self._check_open()
        return self._verify()

    @property
    def recovery_stats(self) -> RecoveryStats:
        """What opening found."""
        return self._stats

    @property
    def failed(self) -> bool:
        """Whether a failed sync has ended all writing; reads go on."""
        return isinstance(self._log, Log) and self._log.failed

    @property
    def changed(self) -> bool:
        """Whether anything was written since the newest checkpoint."""
        return (
            self._state is not None
            and self._checkpointer is not None
            and self._state.applied_lsn > self._checkpointer.redo_lsn
        )

    def pinned_lsn(self, redo_lsn: int) -> int:
        """Returns where the log is needed from for a checkpoint as of ``redo_lsn``. The lock is held."""
        return self._prepared.pinned_lsn(redo_lsn)

    @property
    def ready(self) -> bool:
        """Whether a write of one row finds lock, row and segment without waiting, as things stand. For `aio`."""
        state = self._state
        return (
            state is not None
            and not state.lock.locked()
            and state.rows.high < state.matrix.capacity
            and self._log.ready
        )

    def settle(self) -> None:
        """Makes durable and visible what was logged and waits for that. For `opening`."""
        if self._latest:
            self.sync()

    def quiesce(self) -> None:
        """Lets the applied LSN cover everything published that is no write of the store: marks. The lock is held."""
        if isinstance(self._log, Log) and self._log.failed:
            raise self._log.refusal()  # what was logged last may not be applied
        if self._state is not None and not self._pending:
            self._state.advance(max(self._state.applied_lsn, self._log.cursor.published))

    def close(self) -> None:
        """Takes a checkpoint, makes everything durable, marks the log clean and frees the directory. Idempotent.

        Raises `SyncFailedError`, `CheckpointFailedError`, or `WalFullError` for a disk without room for the checkpoint,
        where that did not work; the directory is free then, too, and the log holds everything.
        """
        if self._close is None:
            self.end()
        else:
            self._close()

    def on_close(self, act: Callable[[], None]) -> None:
        """Names what `close` does; for `opening`."""
        self._close = act

    def on_verify(self, act: Callable[[], VerifyReport]) -> None:
        """Names what `verify` does; for `opening`."""
        self._verify = act

    def end_checkpoints(self) -> None:
        """Waits for a checkpoint that runs; later ones are refused. For `opening`."""
        if self._checkpointer is not None:
            self._checkpointer.close()

    def end(self) -> State | None:
        """Lets every later call raise why: the rows may be another's from now on. Returns the state. For `opening`."""
        state, self._state = self._state, cast(State, _Ended(self._log.refusal))
        return state

    def end_in_child(self) -> None:
        """As `end`, in a forked child: a lock that another thread held at the fork would never be free."""
        self.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def __repr__(self) -> str:
        log = self._log
        wal_dir = getattr(log, "wal_dir", None)
        facts = [f"log in {wal_dir}" if wal_dir else "in memory"]
        if isinstance(log, ReadOnlyLog):
            facts.append("read-only")
        state = self._state
        if _is_ended(state):
            facts.insert(0, "closed")
        else:
            ids = len(state) if state is not None else 0
            dimension = f"dimension {state.matrix.dimension}" if state is not None else "no dimension yet"
            facts = [f"{ids:,} ids", dimension, DTYPES[log.identity.dtype].name, self._search.metric, *facts]
        return f"<{type(self).__name__}: {', '.join(facts)}>"

    def _check_open(self) -> None:
        if _is_ended(self._state):
            raise self._log.refusal()

    def _logged(self) -> Log:
        if not isinstance(self._log, Log):
            raise NoStoreError("this store keeps no log: it lives in memory; use mmwal.open() for one that is durable")
        return self._log


class ReadOnlyStore(VectorStore):
    """A store that was opened with ``read_only=True``: as it was then, in memory.

    It reads as `VectorStore`, keeps shared locks until it is closed, and raises `ReadOnlyError` for all else.
    """

    def insert(self, *_: Any, **__: Any) -> int:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    update = upsert = delete = insert_many = update_many = upsert_many = delete_many = insert

    def transaction(self) -> StoreTransaction:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def sync(self) -> int:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def commit_prepared(self, gid: str, *, durable: bool | None = True) -> int:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def rollback_prepared(self, gid: str, *, durable: bool | None = False) -> int:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def receipt(self, lsn: int) -> Receipt:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    def checkpoint(self) -> CheckpointInfo:
        """Raises `ReadOnlyError`."""
        raise self._log.refusal()

    @property
    def durable_lsn(self) -> int:
        """The greatest durable position that the log had on record when it was read."""
        assert isinstance(self._log, ReadOnlyLog)
        return self._log.durable_lsn

    def end_in_child(self) -> None:
        """As `VectorStore.end_in_child`."""
        assert isinstance(self._log, ReadOnlyLog)
        self._log.forked = True
        self.end()


class _Ended:
    """Stands where the state of a store was that is closed, or that belongs to the parent process."""

    def __init__(self, refusal: Callable[[], UnavailableError]) -> None:
        self._refusal = refusal

    def __getattr__(self, name: str) -> Any:
        raise self._refusal()

    def __len__(self) -> int:
        raise self._refusal()

    def __contains__(self, id: object) -> bool:
        raise self._refusal()


def _is_ended(state: object) -> bool:
    return isinstance(state, _Ended)


def _changes(batch: Batch, rows: list[int]) -> Iterator[tuple[Id, int, bytes | None]]:
    """Returns what a batch does to each id."""
    return zip(batch.ids, rows, batch.metadata or itertools.repeat(None), strict=False)


def _turn(state: State, lsn: int, changes: list[tuple[Id, int, bytes | None]]) -> None:
    """Lets the directory follow a logged entry, and its LSN be seen."""
    if len(changes) > 1:
        ids, rows, metas = zip(*changes, strict=True)
        state.put_many(ids, rows, lsn, metas)
    for id, row, meta in changes if len(changes) == 1 else ():
        if row == NO_ROW:
            state.remove(id, lsn)
        else:
            state.put(id, row, lsn, meta)
    state.advance(lsn)


def _in_memory(dtype: DTypeName | None, metric: MetricName | None) -> Parts:
    code, kernel = DTYPE_CODES[dtype or DEFAULT_DTYPE], kernels.load()

    def begin(dimension: int) -> tuple[State, None]:
        return State(MemoryMatrix(dimension, code), kernel.Directory(), durable=False), None

    return Parts(
        log=Unlogged(kernel, code),
        metric=metric or DEFAULT_METRIC,
        each_durable=False,
        begin=begin,
        state=None,
        checkpointer=None,
        stats=RecoveryStats(),
        checkpoint_interval=None,
    )
