"""`WalManager`: a face over the log, for those who keep their own index; and the two that stand in for it: `StoreWal`
over the log of a store, `ReadOnlyWal` over what `WalManager.new_from_path` found.

Not here: the log itself (`log/log.py`), the store that owns a log (`store.py`).

* A method that logs returns the LSN just past the entry; `durable_lsn` at or above it means that the entry is durable.
* Whatever is wrong with the input is raised before anything is logged.
* One Python frame and one kernel call for a row in its usual shape; all else takes the long way in `log/batch.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, NoReturn, Self

from mmwal import kernel as kernels
from mmwal.config import WalConfig
from mmwal.custom import TYPES
from mmwal.disk.interface import Disk
from mmwal.entry import (
    CustomEntry,
    LogReport,
    OperationName,
    RecoveryStats,
    WalEntry,
    WalMetrics,
    nanoseconds,
    plain_lsn,
)
from mmwal.errors import (
    ForkedProcessError,
    LsnUnavailableError,
    NoStoreError,
    ReadOnlyError,
    SegmentMissingError,
    StoreMissingError,
    UnavailableError,
    VectorError,
    WalClosedError,
)
from mmwal.format.frame import NO_TIME, Kind
from mmwal.format.metadata import encode_metadata
from mmwal.log.batch import append_batches, append_frames, checked_batch, custom_frame, finish_row, unwrap, update_of
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.log import Log
from mmwal.log.reader import read_entries, read_extents
from mmwal.log.receipt import Receipt
from mmwal.recovery.follow import POLL_INTERVAL_MS, Followed, Follower, reading_beside
from mmwal.recovery.log_opening import absolute, default_disk, open_log
from mmwal.recovery.read_only import LogReading, read_log, read_segment
from mmwal.recovery.verify import report_log, report_segment
from mmwal.transaction import WalTransaction

_INSERT = int(Kind.INSERT)  # looking up a member of an enum takes as long as a small kernel call


class WalManager:
    """A write-ahead log alone: log, sync, replay, release.

    Args:
        config: where the log is and what it promises; ``data_dir`` is not used.

    Raises:
        WalLockedError: another process writes to the directory.
        WalConfigError: the config contradicts what the log was created with.
        OpenError: the directory is foreign, of a newer version, or damaged.

    Durability: what an entry's LSN says. With ``sync_interval_ms=0`` every method that logs returns once its entry is
    durable; with N a power cut costs at most what is younger than N ms plus one sync. A killed process costs nothing
    that was returned, at any interval.

    Concurrency: any number of threads of one process.

    Example:
        >>> import tempfile, numpy as np
        >>> directory = getfixture("tmp_path") if "getfixture" in globals() else tempfile.mkdtemp()
        >>> config = WalConfig(wal_dir=directory, segment_size=1 << 20, sync_interval_ms=0)
        >>> with WalManager(config) as wal:
        ...     lsn = wal.log_insert("1", np.ones(4, np.float32), {"title": "one"})
        ...     wal.durable_lsn >= lsn, [entry.id for entry in wal.replay()]
        (True, ['1'])
    """

    def __init__(self, config: WalConfig, *, disk: Disk | None = None) -> None:
        disk = disk or default_disk()
        log, judged = open_log(config, disk)
        stats = RecoveryStats(
            completed=True,
            clean_shutdown=judged.clean,
            bytes_scanned=judged.bytes_scanned,
            segments=len(judged.segments),
            first_lsn=judged.control.oldest_lsn,
            last_lsn=judged.end_lsn,
            torn_tail_bytes=judged.torn_tail_bytes,
            redo_lsn=judged.control.oldest_lsn,
            notes=tuple(judged.notes),
        )
        self._take(log, disk, config, stats)

    def _take(self, log: Log, disk: Disk, config: WalConfig, stats: RecoveryStats) -> None:
        self.config = config
        self._disk = disk
        self._log = log
        self._stats = stats
        self._append = log.cursor.append
        self._now = disk.time_ns
        self._each_durable = config.sync_interval_ms == 0

    @classmethod
    def new_from_path(
        cls, path: str | os.PathLike[str], *, kernel: Literal["c", "py"] | None = None, disk: Disk | None = None
    ) -> ReadOnlyWal:
        """Opens a log for reading: its directory, the directory of a store, or one segment file.

        It shows the log as it is now, also beside a live writer or after a kill; what is written later comes only with
        ``iter_entries(follow=True)``. Of one file alone it shows the transactions that begin in it. No byte is changed,
        no file created.

        Raises:
            StoreMissingError: nothing there; a `FileNotFoundError`.
            DamageError: what is there contradicts what was recorded.
        """
        return ReadOnlyWal(absolute(path), kernel, disk or default_disk())

    # -- logging ----------------------------------------------------------------------------------------------------

    def log_insert(
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """Logs an insert; returns its LSN.

        Args:
            id: a str of 1 to 65,535 UTF-8 bytes or an int of 64 bits; or one object with ``id`` and ``vector``
                attributes (and ``metadata``, if it has one).
            vector: shape (d,), castable to the log's dtype; borrowed for the call.
            metadata: plain values, see `mmwal.format.metadata`.
            durable: return only once the entry is durable, whatever the interval. None: wait for no sync, whatever the
                interval; at 0 one is on its way, and `receipt` says when.

        Raises:
            IdTypeError, IdError, VectorError, MetadataError, EntryTooLargeError: before anything is logged.
            WalFullError: no room in time; nothing was logged.
            SyncFailedError, WalClosedError, ForkedProcessError: the log takes no more writes.
        """
        if vector is None:
            id, vector, metadata = unwrap(id, metadata)
            if vector is None:
                raise VectorError(f"insert of id {id!r} without a vector; log_update() may leave it out")
        meta = encode_metadata(metadata) if metadata is not None else None
        lsn = self._append(_INSERT, id, vector, meta, self._now(), -1)
        if not 0 < lsn <= self._log.segment_end_lsn:
            lsn = finish_row(self._log, lsn, Kind.INSERT, id, vector, meta, -1)
        if durable or self._each_durable:
            self._log.acknowledge(lsn, durable)
        return lsn

    def log_update(
        self, id: Any, vector: Any = None, metadata: Mapping[str, Any] | None = None, *, durable: bool | None = False
    ) -> int:
        """Logs an update; ``None`` for vector or metadata says "as it was", and one of them says something. Whether the
        id exists is not checked. Args, Returns and Raises as `log_insert`."""
        id, vector, metadata = update_of(id, vector, metadata)
        meta = encode_metadata(metadata) if metadata is not None else None
        return self._log_row(Kind.UPDATE, id, vector, meta, durable)

    def log_delete(self, id: Any, *, durable: bool | None = False) -> int:
        """Logs a delete. Whether the id exists is not checked. Returns and raises as `log_insert`."""
        return self._log_row(Kind.DELETE, id, None, None, durable)

    def log_batch(
        self,
        ids: Sequence[Any],
        vectors: Any = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        *,
        operation: OperationName = "insert",
        durable: bool | None = False,
    ) -> int:
        """Logs several rows of one operation, all of them or none; returns their LSN.

        Args:
            ids: n ids.
            vectors: shape (n, d); None for deletes.
            metadata: n items, or None.
            operation: "insert", "update", "delete" or "upsert".

        Raises: as `log_insert`; `ValueError` for an unknown operation or lengths that differ.
        """
        lsn = append_batches(self._log, [checked_batch(self._log, ids, vectors, metadata, operation)])
        if durable or self._each_durable:
            self._log.acknowledge(lsn, durable)
        return lsn

    def log_entry(self, entry: Any, *, durable: bool | None = False) -> int:
        """Logs an entry that is given as an object; returns its LSN.

        Args:
            entry: a `CustomEntry`, or a `WalEntry.Custom` that holds one, of a type that is registered with
                `mmwal.register_entry`; or a `WalEntry.Insert`, ``Update``, ``Upsert``, ``Delete`` or ``Batch``, as the
                method of that name logs it. Its LSN and time are the log's.

        Raises: as `log_insert`; `TypeError` for a type that is not registered or an entry that only the log makes,
            `ValueError` for a timestamp without a zone, and what the type's codec raises: nothing was logged.
        """
        match entry:
            case CustomEntry():
                return self._log_custom(entry, durable)
            case WalEntry.Custom(known=False):  # of another log: it keeps its name and its bytes
                return self._log_named(*TYPES.opaque(entry.name, entry.operation), entry.entry.timestamp, durable)
            case WalEntry.Custom(entry=CustomEntry()):
                return self._log_custom(entry.entry, durable)
            case WalEntry.Insert():
                return self.log_insert(entry.id, entry.vector, entry.metadata, durable=durable)
            case WalEntry.Update():
                return self.log_update(entry.id, entry.vector, entry.metadata, durable=durable)
            case WalEntry.Upsert():
                if entry.vector is None:
                    raise VectorError(f"upsert of id {entry.id!r} without a vector; WalEntry.Update may leave it out")
                return self._log_row(Kind.UPSERT, entry.id, entry.vector, encode_metadata(entry.metadata), durable)
            case WalEntry.Delete():
                return self.log_delete(entry.id, durable=durable)
            case WalEntry.Batch():
                return self.log_batch(
                    entry.ids, entry.vectors, entry.metadata, operation=entry.operation, durable=durable
                )
        raise TypeError(f"a {type(entry).__qualname__} is no entry to log; pass a CustomEntry, or a row as WalEntry")

    def _log_custom(self, entry: CustomEntry, durable: bool | None) -> int:
        name, content = TYPES.encode(entry.operation)
        return self._log_named(name, content, entry.timestamp, durable)

    def _log_named(self, name: str, content: bytes, timestamp: datetime | None, durable: bool | None) -> int:
        time_ns = NO_TIME if timestamp is None else nanoseconds(timestamp)
        lsn = append_frames(self._log, [custom_frame(self._log, name, content, time_ns)])
        if durable or self._each_durable:
            self._log.acknowledge(lsn, durable)
        return lsn

    def _log_row(self, kind: Kind, id: Any, vector: Any, meta: bytes | None, durable: bool | None) -> int:
        lsn = self._append(kind, id, vector, meta, self._now(), -1)
        if not 0 < lsn <= self._log.segment_end_lsn:
            lsn = finish_row(self._log, lsn, kind, id, vector, meta, -1)
        if durable or self._each_durable:
            self._log.acknowledge(lsn, durable)
        return lsn

    def begin_transaction(self) -> WalTransaction:
        """Begins a transaction: what is logged through it counts from its commit on, as a whole.

        Any number may be open at a time; each belongs to one thread. Raises `WalClosedError`, `ForkedProcessError`.
        """
        self._log.check_usable()
        return WalTransaction(self._log, each_durable=self._each_durable)

    # -- durability -------------------------------------------------------------------------------------------------

    @property
    def durable_lsn(self) -> int:
        """Everything with an LSN at or below this survives a power cut."""
        return self._log.cursor.durable

    @property
    def last_lsn(self) -> int:
        """The LSN of the newest entry that is visible to readers of the log."""
        return self._log.cursor.published

    @property
    def oldest_lsn(self) -> int:
        """Where the log that is still kept begins."""
        return self._log.keeper.released_lsn

    def sync(self) -> int:
        """Makes everything logged so far durable; returns `durable_lsn`. Raises `SyncFailedError`."""
        self._log.check_usable()
        self._log.make_durable(self._log.cursor.published)
        return self._log.cursor.durable

    def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Returns once ``lsn`` is durable. Raises `TimeoutError` after ``timeout`` seconds, or `SyncFailedError`."""
        self._log.wait_durable(lsn, timeout)

    def receipt(self, lsn: int) -> Receipt:
        """Returns what says when ``lsn`` is durable: now, to a thread, to a task or to a callback; see `Receipt`.

        Raises `ValueError` for an LSN that does not exist yet.
        """
        return Receipt(lsn, self._log)

    # -- reading ----------------------------------------------------------------------------------------------------

    def replay(self, from_lsn: int | None = None) -> Iterator[Any]:
        """Yields, in order, the entries logged after ``from_lsn`` (an LSN that it returned; None: from the oldest).

        Entries of a transaction carry the LSN of its commit; without a commit they do not come. Vectors are read-only
        views of the log: copy what you keep. A custom entry is handed to the handler of its type first, if it has one.

        Raises:
            LsnUnavailableError: the log was released beyond ``from_lsn``.
            WalCorruptionError: a durable entry is damaged.
            OSError: the disk cannot be read.
        """
        return _handed(self.iter_entries(from_lsn))

    def iter_entries(
        self,
        start_lsn: int | None = None,
        end_lsn: int | None = None,
        *,
        follow: bool = False,
        durable_only: bool = False,
        poll_interval_ms: float = POLL_INTERVAL_MS,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Yields the entries with ``start_lsn < lsn <= end_lsn``, in constant memory; as `replay`.

        Args:
            follow: wait for entries to come, until ``end_lsn``, ``timeout``, or a close from another thread, of which
                the entries before it still come. ``start_lsn`` must be an LSN that the log returned.
            durable_only: only what a power cut cannot take back; with an interval it comes later by as much.
            poll_interval_ms: how often `follow` looks for new entries.
            timeout: seconds without an entry after which `follow` ends; None: it waits without end.

        Raises: as `replay`; while following also:
            LsnUnavailableError: the log was released beyond what was read; or no entry ends at ``start_lsn``.
            SyncFailedError, ForkedProcessError: nothing more will come.

        Durability: an entry is shown once it is published, so no killed process takes it back; a power cut may, until
        it is durable.

        Concurrency: each iterator belongs to one thread. Until it ends, segments that the log lets go of are removed
        and not recycled.
        """
        log = self._log
        log.check_usable()
        start_lsn, end_lsn = _bounds(start_lsn, end_lsn)
        if follow:
            return self._follower(durable_only, poll_interval_ms, timeout).entries(start_lsn, end_lsn)
        until_lsn = _until(end_lsn, log.cursor.durable if durable_only else None)
        return self._entries(start_lsn, log.cursor.published, until_lsn)

    def _entries(self, start_lsn: int | None, published_lsn: int, until_lsn: int | None) -> Iterator[Any]:
        log = self._log
        extents = partial(read_extents, self._disk, log.kernel, log.wal_dir, log.identity)
        with log.keeper.reading():
            try:
                yield from read_entries(extents, log.identity, self.oldest_lsn, start_lsn, published_lsn, until_lsn)
            except SegmentMissingError as error:
                if error.lsn is not None and error.lsn < self.oldest_lsn:  # it was released meanwhile
                    raise LsnUnavailableError(error.lsn, self.oldest_lsn) from error
                raise

    def _follower(self, durable_only: bool, poll_interval_ms: float, timeout: float | None) -> Follower:
        log = self._log
        followed = Followed(
            reading=log.keeper.reading,
            oldest_lsn=lambda: self.oldest_lsn,
            refusal=lambda: log.refusal() if log.ended or log.failed or log.forked else None,
            changed=log.keeper.changed,
            drained=True,
            durable_lsn=lambda: log.cursor.durable,
        )
        return Follower(
            self._disk,
            log.kernel,
            log.wal_dir,
            log.identity,
            followed,
            durable_only=durable_only,
            poll_interval_ms=poll_interval_ms,
            timeout=timeout,
        )

    def read_all_entries(self) -> list[Any]:
        """Returns every entry that the log still holds, in order."""
        return list(self.iter_entries())

    def verify_wal(self) -> LogReport:
        """Compares the log with its checksums; returns a report of each entry, oldest first, and with it what was found
        in headers, links, footers and control slots. Never raises on damage.

        A damaged entry hides no other, whatever its length says. For a log too large to hold a report of each entry,
        use `mmwal.verify` of its directory.

        Concurrency: writes go on; what is logged after the call began is not looked at.
        """
        log = self._log
        log.check_usable()
        return report_log(self._disk, log.kernel, log.wal_dir, published_lsn=log.cursor.published)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def release(self, lsn: int) -> None:
        """Says that your own snapshot covers everything up to ``lsn``: the log below it may go.

        Durability: your snapshot must be durable before you call this. Makes the log durable up to ``lsn``.
        """
        self._log.check_usable()
        self._log.release(lsn)

    def checkpoint(self) -> Any:
        """Raises `NoStoreError`: a log alone has no data to flush. Nothing is trimmed."""
        raise NoStoreError(
            "this log has no store attached, so there is nothing to checkpoint; call release(lsn) once your own "
            "snapshot is durable, or use mmwal.open()"
        )

    @property
    def recovery_stats(self) -> RecoveryStats:
        """What opening found."""
        return self._stats

    def get_metrics(self) -> WalMetrics:
        """Returns a snapshot of the log's figures: no I/O, safe from any thread."""
        log, keeper = self._log, self._log.keeper
        syncs, total_ns, longest_ns = log.sync_figures()
        # Read from the least on: each only grows, so their order holds while others append.
        oldest, redo, durable = log.control.oldest_lsn, keeper.released_lsn, log.cursor.durable
        published, reserved = log.cursor.published, log.cursor.reserved
        return WalMetrics(
            current_size_mb=keeper.live_bytes / 1e6,
            max_size_mb=self.config.max_wal_size / 1e6,
            preallocated_mb=keeper.prepared_bytes / 1e6,
            reserved_lsn=reserved,
            published_lsn=published,
            durable_lsn=durable,
            redo_lsn=redo,
            oldest_lsn=oldest,
            syncs=syncs,
            avg_sync_latency_ms=total_ns / syncs / 1e6 if syncs else 0.0,
            max_sync_latency_ms=longest_ns / 1e6,
            rotations=keeper.rotations,
            checkpoints=self._checkpoints(),
            append_waits=log.append_waits,
            kernel=log.kernel.NAME,
        )

    def _checkpoints(self) -> int:
        return 0

    # -- ends -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Makes everything durable, marks the log clean and frees the directory. Idempotent.

        Raises `SyncFailedError` if the last sync failed; the directory is free then, too.
        """
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()


class StoreWal(WalManager):
    """The log of a store: readable, syncable, but only the store logs to it."""

    def __init__(self, log: Log, disk: Disk, config: WalConfig, stats: RecoveryStats, store: Any) -> None:
        self._take(log, disk, config, stats)
        self._store = store

    def log_insert(self, *_: Any, **__: Any) -> int:
        """Raises `UnavailableError`: write through the store."""
        raise UnavailableError("a store owns this log; write through the store, or open a WalManager on a log alone")

    log_update = log_delete = log_batch = log_entry = log_insert

    def begin_transaction(self) -> WalTransaction:
        """Raises `UnavailableError`: write through `VectorStore.transaction`."""
        raise UnavailableError("a store owns this log; begin the transaction with store.transaction()")

    def release(self, lsn: int) -> None:
        """Raises `UnavailableError`: the store's checkpoints release its log."""
        raise UnavailableError("a store owns this log and releases it with its checkpoints; call checkpoint()")

    def checkpoint(self) -> Any:
        """Takes a checkpoint of the store; see `VectorStore.checkpoint`."""
        return self._store.checkpoint()

    def close(self) -> None:
        """Closes the store, and with it the log."""
        self._store.close()

    def _checkpoints(self) -> int:
        return int(self._store.checkpoints_taken)


class ReadOnlyWal(WalManager):
    """A log opened with `WalManager.new_from_path`: what it held then, readable by any number of threads.

    Everything that would write raises `ReadOnlyError`.
    """

    def __init__(self, path: str, kernel: Literal["c", "py"] | None, disk: Disk) -> None:
        self._disk = disk
        self._kernel = kernels.load(kernel)
        self._path = path
        self._refusal: UnavailableError | None = None
        self._changed = disk.condition()  # notified when the reader is closed
        wal_dir, segment = _place(disk, path)
        control = f"{wal_dir}/{CONTROL_NAME}"
        self._lock = disk.lock_shared(control) if disk.exists(control) else None
        try:
            reading = read_segment(disk, self._kernel, path) if segment else read_log(disk, self._kernel, wal_dir)
        except BaseException:
            self._unlock()
            raise
        self._reading: LogReading | None = reading
        self._is_segment = segment
        self._forget_fork = disk.on_fork(self._end_in_child)
        self.config = WalConfig(wal_dir=wal_dir, kernel=kernel)
        self._stats = RecoveryStats(
            completed=True,
            clean_shutdown=reading.clean,
            segments=len(reading.segments),
            first_lsn=reading.oldest_lsn,
            last_lsn=reading.end_lsn,
            torn_tail_bytes=reading.torn_tail_bytes,
            redo_lsn=reading.oldest_lsn,
            notes=(*reading.notes, "opened for reading: nothing was changed"),
        )

    def iter_entries(
        self,
        start_lsn: int | None = None,
        end_lsn: int | None = None,
        *,
        follow: bool = False,
        durable_only: bool = False,
        poll_interval_ms: float = POLL_INTERVAL_MS,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """As `WalManager.iter_entries`, of what was there at opening.

        With ``follow=True`` also of all that is written from then on, by whichever process: it goes on when a writer
        closes, or is killed, and another opens the log. It ends where this reader is closed. With ``durable_only`` an
        entry comes once the log itself records that it is durable: with a later entry, or when a burst has ended.

        Raises: as `WalManager.iter_entries`; `ValueError` to follow one segment file.
        """
        reading = self._open_reading()
        start_lsn, end_lsn = _bounds(start_lsn, end_lsn)
        if follow:
            return self._follower(durable_only, poll_interval_ms, timeout).entries(start_lsn, end_lsn)
        until_lsn = _until(end_lsn, reading.durable_lsn if durable_only else None)
        return read_entries(
            partial(reading.extents, self._kernel),
            reading.identity,
            reading.oldest_lsn,
            start_lsn,
            reading.end_lsn,
            until_lsn,
            leave_out_cut=self._is_segment,
        )

    def _follower(self, durable_only: bool, poll_interval_ms: float, timeout: float | None) -> Follower:
        reading = self._open_reading()
        if self._is_segment:
            raise ValueError(f"{self._path}: follow=True of one segment, which does not grow; open its directory")
        followed = Followed(
            reading=partial(reading_beside, self._disk, str(self.config.wal_dir)),
            oldest_lsn=lambda: reading.oldest_lsn,
            refusal=lambda: self._refusal,
            changed=self._changed,
            held=tuple((info, view) for info, view, _ in reading.segments),
        )
        return Follower(
            self._disk,
            self._kernel,
            str(self.config.wal_dir),
            reading.identity,
            followed,
            durable_only=durable_only,
            poll_interval_ms=poll_interval_ms,
            timeout=timeout,
        )

    def verify_wal(self) -> LogReport:
        """As `WalManager.verify_wal`, of what is in the files by now."""
        self._open_reading()
        if self._is_segment:
            return report_segment(self._disk, self._kernel, self._path)
        return report_log(self._disk, self._kernel, str(self.config.wal_dir))

    @property
    def durable_lsn(self) -> int:
        """The greatest durable position on record."""
        return self._open_reading().durable_lsn

    @property
    def last_lsn(self) -> int:
        """Where the log ended at opening."""
        return self._open_reading().end_lsn

    @property
    def oldest_lsn(self) -> int:
        """Where the log began at opening."""
        return self._open_reading().oldest_lsn

    def get_metrics(self) -> WalMetrics:
        """Returns the positions and sizes as of opening; there are no rates."""
        reading = self._open_reading()
        return WalMetrics(
            current_size_mb=(reading.end_lsn - reading.oldest_lsn) / 1e6,
            max_size_mb=self.config.max_wal_size / 1e6,
            preallocated_mb=0.0,
            syncs=0,
            avg_sync_latency_ms=0.0,
            max_sync_latency_ms=0.0,
            rotations=0,
            checkpoints=0,
            append_waits=0,
            reserved_lsn=reading.end_lsn,
            published_lsn=reading.end_lsn,
            durable_lsn=reading.durable_lsn,
            redo_lsn=reading.oldest_lsn,
            oldest_lsn=reading.oldest_lsn,
            kernel=self._kernel.NAME,
        )

    def log_insert(self, *_: Any, **__: Any) -> NoReturn:
        """Raises `ReadOnlyError`."""
        self._open_reading()
        raise ReadOnlyError(f"{self._path}: the log was opened with new_from_path, for reading; open a WalManager")

    log_update = log_delete = log_batch = log_entry = sync = log_insert

    def begin_transaction(self) -> NoReturn:
        """Raises `ReadOnlyError`."""
        self.log_insert()

    def wait_durable(self, lsn: int, timeout: float | None = None) -> None:
        """Raises `ReadOnlyError`."""
        self.log_insert()

    def receipt(self, lsn: int) -> NoReturn:
        """Raises `ReadOnlyError`."""
        self.log_insert()

    def release(self, lsn: int) -> None:
        """Raises `ReadOnlyError`."""
        self.log_insert()

    def close(self) -> None:
        """Lets the files go. Entries that were read stay readable, but a writer may now reuse the blocks that their
        vectors are views of: copy what you keep. Idempotent."""
        if self._refusal is None:
            self._end(WalClosedError(f"{self._path}: the log is closed; open it again"))
            self._forget_fork()
            with self._changed:
                self._changed.notify_all()

    def _open_reading(self) -> LogReading:
        if self._reading is None:
            assert self._refusal is not None
            raise self._refusal
        return self._reading

    def _end_in_child(self) -> None:
        self._end(ForkedProcessError("this handle belongs to the parent process; open the directory in the child anew"))

    def _end(self, refusal: UnavailableError) -> None:
        self._refusal, self._reading = refusal, None
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _handed(entries: Iterator[Any]) -> Iterator[Any]:
    """Yields entries, custom ones once their handlers have had them."""
    for entry in entries:
        if isinstance(entry, WalEntry.Custom):
            TYPES.replayed(entry)
        yield entry


def _bounds(start_lsn: Any, end_lsn: Any) -> tuple[int | None, int | None]:
    """Returns the LSNs of a range that a caller passed. Raises `TypeError` or `ValueError`."""
    start = None if start_lsn is None else plain_lsn("start_lsn", start_lsn)
    return start, None if end_lsn is None else plain_lsn("end_lsn", end_lsn)


def _until(end_lsn: int | None, durable_lsn: int | None) -> int | None:
    """Returns the lesser of two ends, of which either may be None: no end."""
    return min((lsn for lsn in (end_lsn, durable_lsn) if lsn is not None), default=None)


def _place(disk: Disk, path: str) -> tuple[str, bool]:
    """Returns the directory of a log, and whether the path is one of its segments. Raises `StoreMissingError`."""
    for wal_dir in (path, f"{path}/wal"):
        if disk.exists(f"{wal_dir}/{CONTROL_NAME}"):
            return wal_dir, False
    try:
        disk.open(path, writable=False).close()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise StoreMissingError(path) from error
    return os.path.dirname(path), True
