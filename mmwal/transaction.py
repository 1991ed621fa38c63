"""Several writes as one: `WalTransaction` on a log alone, `StoreTransaction` on a store.

    with store.transaction() as txn:        # committed at the end of the block, rolled back by an exception
        txn.insert("a", vector)
        txn.delete("b")

Not here: frames and the commit record (`log/transaction.py`), how a store logs and applies (`store.py`).

* Nothing of a transaction is seen outside before its commit, and then all of it, under the LSN that `commit` returns.
* Bad input is raised by the call that brings it; the transaction stays as it was before that call.
* A log's transaction is held in memory up to `HELD_BYTES_MAX`; beyond that its members go to the log, where they count
  for nothing until the commit. A store's is held in memory: of an id that is written twice only the last value counts.
* Used by one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from mmwal.entry import CustomEntry, Id, OperationName, Record, WalEntry
from mmwal.errors import (
    DuplicateIdError,
    TransactionClosedError,
    TransactionConflictError,
    UnknownIdError,
    VectorError,
    WalFullError,
)
from mmwal.format.frame import Kind
from mmwal.format.metadata import decode_metadata, encode_metadata
from mmwal.log.batch import (
    Batch,
    append_frames,
    checked_batch,
    checked_row,
    distinct_ids,
    encode_many,
    frames_of,
    plain_id,
    plain_matrix,
    unwrap,
    update_of,
)
from mmwal.log.transaction import Frame, LogTransaction

if TYPE_CHECKING:
    from mmwal.log.log import Log
    from mmwal.log.unlogged import Unlogged
    from mmwal.state.state import Entry

HELD_BYTES_MAX = 4 << 20
_ROW_BYTES = 64  # what a row takes beside its vector and metadata, about


class _Ending:
    """Open, until it is committed or rolled back; the end of a ``with`` block does either."""

    _ended: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether more can be written."""
        return self._ended is None

    def commit(self, *, durable: bool | None = True) -> int:
        """Makes everything in the transaction count; see the class."""
        raise NotImplementedError

    def rollback(self) -> None:
        """Ends the transaction; nothing of it has any effect. Idempotent, and nothing after a commit."""
        if self._ended is None:
            self._end("rolled back")

    def _end(self, how: str) -> None:
        self._ended = how

    def _check_open(self) -> None:
        if self._ended is not None:
            raise TransactionClosedError(f"the transaction was {self._ended}; begin another one")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.rollback()
        elif self._ended is None:
            try:
                self.commit()
            finally:
                self.rollback()  # should the log be full: who left the block cannot try again


@dataclass
class _Run:
    """Rows of one kind and width that follow each other, to be one frame."""

    kind: int
    width: int | None
    ids: list[Id] = field(default_factory=list)
    vectors: list[npt.NDArray[Any]] = field(default_factory=list)
    metadata: list[bytes | None] = field(default_factory=list)

    def batch(self) -> Batch:
        """Returns the rows as a batch."""
        return Batch(self.kind, self.ids, np.stack(self.vectors) if self.vectors else None, self.metadata)


class WalTransaction(_Ending):
    """Entries of a log that count together; `WalManager.begin_transaction` gives one.

    ``log_insert`` and the others take what those of `WalManager` take and return nothing: entries have no LSN before
    the commit. An open transaction that has logged members keeps the log from its first one on, within
    ``max_wal_size``: end it before long.

    Example:
        >>> import tempfile, mmwal
        >>> directory = getfixture("tmp_path") if "getfixture" in globals() else tempfile.mkdtemp()
        >>> with mmwal.WalManager(mmwal.WalConfig(wal_dir=directory, segment_size=1 << 20)) as wal:
        ...     with wal.begin_transaction() as txn:
        ...         txn.log_insert("a", [1.0, 0.0])
        ...         txn.log_delete("b")
        ...     [(entry.kind, entry.lsn == wal.last_lsn) for entry in wal.replay()]
        [('insert', True), ('delete', True), ('commit', True)]
    """

    def __init__(self, log: Log, *, each_durable: bool, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._logged: LogTransaction | None = None
        self._log = log
        self._each_durable = each_durable
        self._held_bytes_max = held_bytes_max
        self._run: _Run | None = None
        self._frames: deque[Frame] = deque()
        self._held_bytes = 0

    def log_insert(self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
        """As `WalManager.log_insert`. Raises `TransactionClosedError` too."""
        if vector is None:
            id, vector, metadata = unwrap(id, metadata)
            if vector is None:
                raise VectorError(f"insert of id {id!r} without a vector; log_update() may leave it out")
        self._hold_row(Kind.INSERT, id, vector, metadata)

    def log_update(self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
        """As `WalManager.log_update`. Raises `TransactionClosedError` too."""
        id, vector, metadata = update_of(id, vector, metadata)
        self._hold_row(Kind.UPDATE, id, vector, metadata)

    def log_delete(self, id: Any) -> None:
        """As `WalManager.log_delete`. Raises `TransactionClosedError` too."""
        self._hold_row(Kind.DELETE, id, None, None)

    def log_batch(
        self,
        ids: Sequence[Any],
        vectors: Any = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        operation: OperationName = "insert",
    ) -> None:
        """As `WalManager.log_batch`. Raises `TransactionClosedError` too."""
        self._check_usable()
        batch = checked_batch(self._log, ids, vectors, metadata, operation)
        frames = frames_of(
            self._log, batch._replace(vectors=batch.vectors.copy() if batch.vectors is not None else None)
        )
        self._make_room()
        self._end_run()
        self._frames.extend(frames)
        self._held_bytes += sum(frame.size for frame in frames)

    def log_entry(self, entry: Any) -> None:
        """As `WalManager.log_entry`, of rows: a `WalEntry`. Raises `TransactionClosedError` too; `TypeError` for a
        custom entry, which stands alone: log it before the transaction, or behind its commit."""
        match entry:
            case WalEntry.Insert():
                self.log_insert(entry.id, entry.vector, entry.metadata)
            case WalEntry.Update():
                self.log_update(entry.id, entry.vector, entry.metadata)
            case WalEntry.Upsert():
                if entry.vector is None:
                    raise VectorError(f"upsert of id {entry.id!r} without a vector; WalEntry.Update may leave it out")
                self._hold_row(Kind.UPSERT, entry.id, entry.vector, entry.metadata)
            case WalEntry.Delete():
                self.log_delete(entry.id)
            case WalEntry.Batch():
                self.log_batch(entry.ids, entry.vectors, entry.metadata, operation=entry.operation)
            case CustomEntry() | WalEntry.Custom():
                raise TypeError("a custom entry stands alone: log it before the transaction, or behind its commit")
            case _:
                raise TypeError(f"a {type(entry).__qualname__} is no entry to log; pass a row as WalEntry")

    def commit(self, *, durable: bool | None = True) -> int:
        """Makes everything in the transaction count; returns the LSN of all its entries.

        Args:
            durable: return only once it is durable, with one sync; None: wait for none, whatever the interval.

        Raises:
            TransactionClosedError: it was committed or rolled back before.
            WalFullError: no room in time. The transaction has no effect and stays open: commit again once there is
                some, or roll it back.
            SyncFailedError: the outcome is known after recovery.
            WalClosedError, ForkedProcessError: it has no effect.
        """
        self._check_usable()
        self._end_run()
        try:
            if self._logged is not None:
                self._log_held(self._logged)
                lsn = self._logged.commit()
            elif self._frames:
                lsn = append_frames(self._log, self._frames)
            else:
                lsn = self._log.cursor.published
        except WalFullError:
            raise
        except BaseException:
            self.rollback()
            raise
        self._logged = None
        self._end("committed")
        if durable or self._each_durable:
            self._log.acknowledge(lsn, durable)
        return lsn

    def _hold_row(self, kind: int, id: Any, vector: Any, metadata: Mapping[str, Any] | None) -> None:
        self._check_usable()
        id, meta = plain_id(id), encode_metadata(metadata)
        row = checked_row(self._log, id, vector, meta)
        self._make_room()
        width = len(row) if row is not None else None
        run = self._run
        if run is None or (run.kind, run.width) != (kind, width):
            self._end_run()
            run = self._run = _Run(kind, width)
        run.ids.append(id)
        run.metadata.append(meta)
        if row is not None:
            run.vectors.append(row)
        self._held_bytes += (row.nbytes if row is not None else 0) + len(meta or b"") + _ROW_BYTES

    def _make_room(self) -> None:
        """Logs what is held, once it is much. Raises `WalFullError`: what is held is held, and nothing is added."""
        if self._held_bytes < self._held_bytes_max or not (self._run or self._frames):
            return
        self._end_run()
        if self._logged is None:
            self._logged = LogTransaction(self._log)
        try:
            self._log_held(self._logged)
        except WalFullError:
            raise
        except BaseException:
            self.rollback()  # a member may stand in the log uncounted
            raise

    def _log_held(self, logged: LogTransaction) -> None:
        while self._frames:
            logged.append(self._frames[0])
            self._frames.popleft()
        self._held_bytes = 0

    def _end_run(self) -> None:
        if self._run is not None:
            self._frames.extend(frames_of(self._log, self._run.batch()))
            self._run = None

    def _check_usable(self) -> None:
        self._check_open()
        if self._log.failed:
            raise self._log.refusal()
        self._log.check_usable()

    def _end(self, how: str) -> None:
        super()._end(how)
        self._run = None
        self._frames.clear()
        self._held_bytes = 0
        if self._logged is not None:
            self._logged.abandon()
            self._logged = None
            self._log.wake_keeper()  # an append may wait for the room that this one kept

    def __del__(self) -> None:
        if (logged := getattr(self, "_logged", None)) is not None:
            logged.abandon()


class Change(NamedTuple):
    """What a transaction does to an id of a store: its new vector and metadata, or None and None where it goes."""

    id: Id
    vector: npt.NDArray[Any] | None
    metadata: bytes | None
    seen_lsn: int  # of the id when the transaction first looked; 0: it was not there
    renewed: bool  # nothing is kept of what was there

    @property
    def kind(self) -> Kind:
        """What is logged. Replay gives an insert that finds the id the new value alone."""
        if self.vector is None:
            return Kind.DELETE
        return Kind.UPDATE if self.seen_lsn and not self.renewed else Kind.INSERT


def batches_of(changes: Sequence[Change]) -> list[Batch]:
    """Returns changes, no two of the same id, as a batch of each kind."""
    found = []
    for kind in (Kind.DELETE, Kind.INSERT, Kind.UPDATE):
        chosen = [change for change in changes if change.kind == kind]
        if chosen:
            vectors = [change.vector for change in chosen if change.vector is not None]
            metadata = [change.metadata for change in chosen]
            found.append(
                Batch(kind, [change.id for change in chosen], np.stack(vectors) if vectors else None, metadata)
            )
    return found


@dataclass(frozen=True)
class _Value:
    """What an id has inside a transaction."""

    vector: npt.NDArray[Any]
    metadata: bytes | None
    renewed: bool = False


class StoreTransaction(_Ending):
    """Writes to a store that count together; `VectorStore.transaction` gives one.

    Inside it reads its own writes; nothing of them is visible outside before the commit. Methods take what those of
    `VectorStore` take, and return nothing where those return an LSN. Everything is held in memory until the commit.

    The first committer wins: where another writer changed an id that this transaction writes, after it first read or
    wrote it, `commit` raises `TransactionConflictError` and nothing is logged; reading such an id again raises it at
    once. An id that is only read is not guarded against later changes, nor is one that was absent and is absent again:
    what was inserted and deleted in between leaves no trace.
    """

    def __init__(
        self,
        log: Log | Unlogged,
        dimension: Callable[[], int | None],
        read: Callable[[Id], tuple[npt.NDArray[Any], Entry] | None],
        commit: Callable[[Sequence[Change], bool | None], int],
        prepare: Callable[[Sequence[Change], str], int],
    ) -> None:
        """Takes from its store what its log takes, its dimension, how to read an id, and how to log and apply, now or
        later."""
        self._log = log
        self._dimension_of_store = dimension
        self._read = read
        self._commit = commit
        self._prepare = prepare
        self._first_dimension: int | None = None  # of its own vectors, where the store has none yet
        self._seen: dict[Id, int] = {}
        self._values: dict[Id, _Value | None] = {}  # None: deleted

    # -- read -------------------------------------------------------------------------------------------------------

    def get(self, id: Id) -> Record | None:
        """Returns what stands under an id, its vector as a copy, or None. The LSN of a write of this transaction is 0.

        Raises `TransactionClosedError`, `TransactionConflictError`, `IdTypeError`, `IdError`.
        """
        self._check_open()
        id = plain_id(id)
        value = self._now(id)
        if value is None:
            return None
        lsn = 0 if id in self._values else self._seen[id]
        return Record(id, value.vector.copy(), decode_metadata(value.metadata), lsn)

    def __contains__(self, id: Id) -> bool:
        self._check_open()
        return self._now(plain_id(id)) is not None

    # -- write ------------------------------------------------------------------------------------------------------

    def insert(self, id: Id, vector: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """As `VectorStore.insert`."""
        self._check_open()
        id, meta = plain_id(id), encode_metadata(metadata)
        row = self._checked(id, vector, meta)
        if self._now(id) is not None:
            raise DuplicateIdError(id)
        self._put(id, _Value(row, meta, renewed=True))

    def update(self, id: Id, vector: Any = None, metadata: Mapping[str, Any] | None = None) -> None:
        """As `VectorStore.update`."""
        if vector is None and metadata is None:
            raise VectorError(f"nothing to update for id {id!r}: pass a vector, metadata or both")
        self._replace(id, vector, metadata, must_exist=True)

    def upsert(self, id: Id, vector: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """As `VectorStore.upsert`."""
        self._replace(id, vector, metadata, must_exist=False)

    def delete(self, id: Id) -> None:
        """As `VectorStore.delete`."""
        self._check_open()
        id = plain_id(id)
        if self._now(id) is None:
            raise UnknownIdError(id)
        self._values[id] = None

    def insert_many(
        self, ids: Iterable[Id], vectors: Any, metadata: Sequence[Mapping[str, Any] | None] | None = None
    ) -> None:
        """As `VectorStore.insert_many`: all or none."""
        self._each(self.insert, ids, vectors, metadata)

    def update_many(
        self, ids: Iterable[Id], vectors: Any = None, metadata: Sequence[Mapping[str, Any] | None] | None = None
    ) -> None:
        """As `VectorStore.update_many`: all or none."""
        if vectors is None and (metadata is None or all(item is None for item in metadata)):
            raise VectorError("nothing to update: pass vectors, metadata or both")
        self._each(partial(self._replace, must_exist=True), ids, vectors, metadata)

    def upsert_many(
        self, ids: Iterable[Id], vectors: Any, metadata: Sequence[Mapping[str, Any] | None] | None = None
    ) -> None:
        """As `VectorStore.upsert_many`: all or none."""
        self._each(self.upsert, ids, vectors, metadata)

    def delete_many(self, ids: Iterable[Id]) -> None:
        """As `VectorStore.delete_many`: all or none."""
        self._each(lambda id, *_: self.delete(id), ids, None, None)

    # -- ends -------------------------------------------------------------------------------------------------------

    def commit(self, *, durable: bool | None = True) -> int:
        """Logs and applies everything in the transaction as a whole; returns the LSN of every row that it wrote.

        What comes to nothing, such as an insert and its delete, is not logged. Where nothing is left, nothing is.

        Args:
            durable: return only once it is durable, with one sync, whatever the interval; None: wait for none.

        Raises:
            TransactionConflictError: another writer was first; nothing was logged, the transaction is rolled back.
            TransactionClosedError: it was committed or rolled back before.
            WalFullError: no room in time; nothing counts of it, and it stays open: commit again, or roll it back.
            SyncFailedError: the outcome is known after recovery; at interval 0 readers have not seen the change.
            WalClosedError, ForkedProcessError: it has no effect.
        """
        return self._hand_over("committed", lambda changes: self._commit(changes, durable))

    def prepare(self, gid: str) -> int:
        """Logs everything in the transaction so that it can be committed later, whatever happens meanwhile; returns
        the LSN of the prepare record. The first phase of a two-phase commit.

        Until `VectorStore.commit_prepared` or `VectorStore.rollback_prepared` decides it, in this process or a later
        one, nothing of it is seen, and other writers of its ids get `TransactionInDoubtError`. An empty transaction
        has nothing to log: it is in doubt in this process only, and no later one knows its global id.

        Args:
            gid: the global id, by which it is decided: a str of 1 to 65,535 UTF-8 bytes.

        Raises:
            DuplicateTransactionError: one of that global id is in doubt; nothing was logged, the transaction is rolled
                back.
            IdError, IdTypeError: the global id is none; the same.
            What `commit` raises; `NoStoreError` for a store that keeps no log.

        Durability: the prepare record is durable on return.
        """
        return self._hand_over("prepared", lambda changes: self._prepare(changes, gid))

    def _hand_over(self, how: str, log: Callable[[Sequence[Change]], int]) -> int:
        self._check_open()
        try:
            lsn = log(self.changes)
        except WalFullError:
            raise
        except BaseException:
            self._end("ended by an error")
            raise
        self._end(how)
        return lsn

    @property
    def changes(self) -> list[Change]:
        """What would be logged now, in the order in which the ids were first written."""
        return [
            Change(id, None, None, seen, False)
            if value is None
            else Change(id, value.vector, value.metadata, seen, value.renewed)
            for id, value in self._values.items()
            if (seen := self._seen[id]) or value is not None
        ]

    def _end(self, how: str) -> None:
        super()._end(how)
        self._values, self._seen = {}, {}

    # -- inside -----------------------------------------------------------------------------------------------------

    def _look(self, id: Id) -> _Value | None:
        """Returns what the store has under an id, and remembers its LSN. Raises where that is another by now."""
        found = self._read(id)
        lsn = found[1].lsn if found is not None else 0
        if self._seen.setdefault(id, lsn) != lsn:
            raise TransactionConflictError(id)
        return _Value(found[0], found[1].metadata) if found is not None else None

    def _now(self, id: Id) -> _Value | None:
        return self._values[id] if id in self._values else self._look(id)

    def _put(self, id: Id, value: _Value) -> None:
        self._values[id] = value
        self._first_dimension = len(value.vector)

    def _checked(self, id: Id, vector: Any, meta: bytes | None) -> npt.NDArray[Any]:
        if vector is None:
            raise VectorError(f"id {id!r} without a vector; pass one")
        row = checked_row(self._log, id, vector, meta, self._dimension)  # type: ignore[arg-type]
        assert row is not None
        return row

    @property
    def _dimension(self) -> int | None:
        return self._dimension_of_store() or self._first_dimension

    def _replace(self, id: Any, vector: Any, metadata: Mapping[str, Any] | None, *, must_exist: bool) -> None:
        self._check_open()
        id, meta = plain_id(id), encode_metadata(metadata)
        now = self._now(id)
        if now is None and must_exist:
            raise UnknownIdError(id)
        kept = now.metadata if now is not None and meta is None else meta
        row = self._checked(id, now.vector if now is not None and vector is None else vector, kept)
        self._put(id, _Value(row, kept, renewed=True) if now is None else replace(now, vector=row, metadata=kept))

    def _each(
        self,
        write: Callable[..., None],
        ids: Iterable[Id],
        vectors: Any,
        metadata: Sequence[Mapping[str, Any] | None] | None,
    ) -> None:
        """Writes rows one by one; where one is refused, none is written."""
        self._check_open()
        plain = distinct_ids(ids)
        encode_many(metadata, len(plain))  # lengths, before the first
        matrix = None
        if vectors is not None:
            matrix = plain_matrix(self._log, vectors, len(plain), self._dimension)  # type: ignore[arg-type]
        before, dimension = self._values.copy(), self._first_dimension
        try:
            for row, id in enumerate(plain):
                write(id, None if matrix is None else matrix[row], None if metadata is None else metadata[row])
        except BaseException:
            self._values, self._first_dimension = before, dimension
            raise
