"""Opening a directory: where recovery meets append.

Not here: what recovery does (`recovery/`), what the handles offer (`manager.py`, `store.py`).

The steps of opening a store, in this order; up to the fifth nothing that exists is changed:

    1. lock       one writer
    2. identity   the control files of log and data agree with each other and with the config
    3. survey     where the log ends
    4. load       the newest checkpoint that is whole
    5. index, decide   what the log says since then
    6. repair     the tail becomes durable; the log goes on behind it
    7. copy       the winners into fresh rows
    8. checkpoint before anything is served or removed
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mmwal import kernel as kernels
from mmwal.checkpoint.checkpoint import Checkpointer
from mmwal.checkpoint.control import DataIdentity
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.checkpoint.load import Loaded, create_data
from mmwal.config import RecoveryConfig, WalConfig
from mmwal.disk.interface import Disk, Lock, Worker
from mmwal.entry import RecoveryPhase, RecoveryProgress, RecoveryStats, VerifyReport
from mmwal.errors import (
    ConsistencyError,
    DamageError,
    NoStoreError,
    OpenError,
    RecoveryTimeoutError,
    TornTailError,
    UnavailableError,
    WalClosedError,
    WalConfigError,
    WalError,
)
from mmwal.format.frame import CHECKPOINT, Kind
from mmwal.log.control import LogControl, LogIdentity
from mmwal.log.control import open_control as open_log_control
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.log import Log, OverBudget, Tail
from mmwal.log.read_only import ReadOnlyLog
from mmwal.log.transaction import LogTransaction
from mmwal.manager import StoreWal
from mmwal.prepared import Prepared
from mmwal.recovery.log_opening import (
    METRIC_NAMES,
    absolute,
    default_disk,
    full_disk,
    lock_directory,
    open_identity,
    prepare_directories,
    refuse_unbuilt,
    start_log,
)
from mmwal.recovery.read_only import lock_for_reading, read_store
from mmwal.recovery.recover import (
    Decision,
    Index,
    Undecided,
    build_index,
    copy_winners,
    decide,
    dimension_of,
    load_newest,
)
from mmwal.recovery.salvage import salvage
from mmwal.recovery.tail import Survey, repair, survey
from mmwal.recovery.verify import verify_directory
from mmwal.recovery.workers import Workers
from mmwal.state.state import State
from mmwal.store import Parts, ReadOnlyStore, VectorStore
from mmwal.verdicts import DIRECTORY

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_logger = logging.getLogger("mmwal")


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    config: WalConfig | None = None,
    disk: Disk | None = None,
    read_only: bool = False,
    **fields: Any,
) -> VectorStore:
    """Opens a store, new or old, and recovers it; returns it ready for reads and writes.

    With ``read_only=True`` it reads an existing store into memory as it is now, whether a writer is at work, was killed
    or has closed; it changes no byte and creates no file. Reads are those of any store, and do not follow the writer:
    open again to see more. Writes, `VectorStore.sync` and `VectorStore.checkpoint` raise `ReadOnlyError`.

    Args:
        path: its directory: the log is in ``path/wal``, the matrix in ``path/data``.
        config: instead of ``path`` and ``fields``, a whole `WalConfig` with ``wal_dir`` and ``data_dir``.
        disk: another operating system, such as `mmwal.testing.SimulatedDisk`.
        read_only: read what is there, for any number of processes.
        fields: fields of `WalConfig`: ``dimension``, ``metric``, ``sync_interval_ms`` and so on.

    Raises:
        TypeError: a keyword is no field.
        StoreMissingError: ``read_only`` and there is nothing to read; a `FileNotFoundError`.
        WalLockedError: another process has it open for writing.
        WalConfigError: a field is wrong, or contradicts what the store was created with.
        WalCorruptionError, HeaderCorruptionError, SegmentMissingError, ConsistencyError: what is on disk contradicts
            what was recorded; nothing was changed.
        ForeignDirectoryError, FormatVersionError: not this store's, or of a newer mmwal.
        WalFullError: no space to recover into; nothing was lost.
        OSError: the operating system refused something else (EIO, EMFILE, EACCES); nothing was lost.

    Durability: what was acknowledged before is there, see `VectorStore`. Everything returned by reads is durable from
    now on, and the checkpoint that follows a crash is durable before anything is removed. A reader beside a writer may
    see what is not durable yet, as the writer's own readers do where ``sync_interval_ms`` is above 0.

    Concurrency: one writer, any number of readers. A reader sees the state after some prefix of the log, batches whole.

    Example:
        >>> import tempfile, warnings
        >>> warnings.simplefilter("ignore", DurabilityWarning)
        >>> with open(tempfile.mkdtemp(), dimension=2, segment_size=1 << 20) as store:
        ...     lsn = store.insert("a", [1.0, 0.0])
        ...     len(store)
        1
    """
    if config is None:
        if path is None:
            raise WalConfigError("path", None, "give the directory of the store, or a config")
        _check_keywords(fields)
        root = absolute(path)
        config = WalConfig(**{"wal_dir": f"{root}/wal", "data_dir": f"{root}/data", **fields})
    elif path is not None or fields:
        raise WalConfigError("config", config, "comes instead of path and fields; use dataclasses.replace to change it")
    return open_store(config, disk or default_disk(), read_only=read_only)


def _check_keywords(fields: dict[str, Any]) -> None:
    """Raises `TypeError` for what is no field of a config, with the field that it resembles."""
    known = [field.name for field in fields_of(WalConfig)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, ["read_only", *known], 1)
            advice = f"did you mean {near[0]!r}?" if near else f"the fields of WalConfig are {', '.join(known)}"
            raise TypeError(f"open() got an unexpected keyword argument {name!r}; {advice}")


Progress = Callable[[RecoveryProgress], object]


def open_store(
    config: WalConfig,
    disk: Disk,
    *,
    read_only: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    processes: bool = False,
    progress: Progress | None = None,
    limit_ms: int | None = None,
    verify_checksums: bool = True,
    skip_corrupted_entries: bool = False,
    strict: bool = False,
    until_lsn: int | None = None,
) -> VectorStore:
    """Opens the store of a config. Raises `WalFullError` where the disk has no room for what opening writes, and
    `RecoveryTimeoutError` where reading the log took longer than ``limit_ms``.

    ``workers``, ``executor`` and ``processes`` are those of `recovery.workers.Workers`; the others are described by
    `CrashRecoveryManager` and `RecoveryConfig`. ``until_lsn`` is that of `recovery.read_only.read_store`, and only for
    ``read_only``.
    """
    time = _Time(disk, limit_ms)
    began_ms = 0.0

    def between(phase: RecoveryPhase, done: int, total: int) -> None:
        nonlocal began_ms
        if phase == "verify":
            time.check()
        if progress is not None and total:
            began_ms = began_ms if done else time.elapsed_ms()
            progress(_progress(phase, done, total, time.elapsed_ms() - began_ms))

    with Workers(disk, workers, executor=executor, processes=processes, between=between) as team:
        if read_only:
            return _open_read_only(config, disk, team, until_lsn)
        try:
            way = _Way(team, verify_checksums, skip_corrupted_entries, strict, time)
            return _open_store(config, disk, way)
        except OSError as error:
            raise full_disk(str(config.wal_dir), error) or error from error.__cause__


def _progress(phase: RecoveryPhase, done: int, total: int, elapsed_ms: float) -> RecoveryProgress:
    left = elapsed_ms / 1e3 * (total - done) / done if done else None
    return RecoveryProgress(phase=phase, done_bytes=done, total_bytes=total, seconds_left=left)


class _Time:
    """How long an opening takes, and how long reading the log may."""

    def __init__(self, disk: Disk, limit_ms: int | None) -> None:
        self._disk = disk
        self._limit_ms = limit_ms
        self._started_ns = disk.monotonic_ns()

    def elapsed_ms(self) -> float:
        return (self._disk.monotonic_ns() - self._started_ns) / 1e6

    def check(self) -> None:
        """Raises `RecoveryTimeoutError` where it took longer than it may."""
        if self._limit_ms is not None and (taken_ms := self.elapsed_ms()) > self._limit_ms:
            raise RecoveryTimeoutError(taken_ms, self._limit_ms)


class _Way(NamedTuple):
    """How a log is read."""

    workers: Workers
    verify: bool
    skip_corrupted: bool
    strict: bool
    time: _Time


@dataclass(frozen=True)
class _Found:
    """What was read and decided, steps 3 to 5: nothing is changed yet. ``tail`` makes the log ready to go on."""

    judged: Survey
    loaded: Loaded | None
    index: Index
    decision: Decision
    tail: Callable[[Lock], Tail]
    checkpoints: int = 0  # that must follow before anything is served
    needless_lsn: int = 0  # below, the log must be gone by then

    def close(self) -> None:
        """Gives up."""
        if self.loaded is not None:
            self.loaded.matrix.close()


def _open_store(config: WalConfig, disk: Disk, way: _Way) -> VectorStore:
    """Opens it by the steps that stand at the top of this file."""
    refuse_unbuilt(config)
    if config.data_dir is None:
        raise WalConfigError("data_dir", None, "a store needs a directory for its matrix; a log alone is a WalManager")
    kernel = kernels.load(config.kernel)
    wal_dir, data_dir = absolute(config.wal_dir), absolute(config.data_dir)
    prepare_directories(disk, wal_dir, data_dir, stacklevel=5)
    # 1. lock
    lock = lock_directory(disk, wal_dir)
    found: _Found | None = None
    try:
        # 2. identity
        data = open_data_control(disk, data_dir)
        if data is not None and not disk.exists(f"{wal_dir}/{CONTROL_NAME}"):
            raise DIRECTORY.verdict(log="missing", data="same").mark(
                ConsistencyError(
                    f"{wal_dir}/{CONTROL_NAME}",
                    f"the log of the checkpoint in {data_dir} is missing; give its wal_dir, or restore it from a "
                    "backup",
                )
            )
        control = open_identity(disk, config, wal_dir)
        proven_lsn = max((slot.redo_lsn for slot in data.slots), default=0) if data else 0
        # 3. survey, 4. load, 5. index and decide
        try:
            found = _read(disk, kernel, config, control, proven_lsn, way)
        except DamageError as error:
            if not way.skip_corrupted:
                raise
            found = _salvage(disk, kernel, config, control, proven_lsn, error)
        # 6. repair
        log = start_log(disk, kernel, config, wal_dir, found.tail(lock), owned=True)
    except BaseException:
        if found is not None:
            found.close()
        lock.release()
        raise
    try:
        # 7. copy
        loaded = found.loaded
        if loaded is not None:
            loaded.control.restate()
            disk.sync_directory(data_dir)  # names may be in memory only, after a kill before their sync
            copy_winners(kernel, way.workers, found.index, found.decision, loaded.state)
        stats = _stats(found.judged, found.index, found.decision, loaded, way.workers, way.time.elapsed_ms())
        stats = replace(stats, unverified=not way.verify)
        # 8. checkpoint
        store = _serve(disk, kernel, config, data_dir, log, found, stats)
        _logger.info("recovery complete: %s", stats)
        _let_go(log, found.needless_lsn)
        return store
    except BaseException:
        try:
            log.close(clean=False)
        finally:
            found.close()
        raise


def _read(
    disk: Disk,
    kernel: Kernel,
    config: WalConfig,
    control: LogControl,
    proven_lsn: int,
    way: _Way,
) -> _Found:
    """Surveys the log, loads the checkpoint, and decides what the log says since then."""
    wal_dir = absolute(config.wal_dir)
    judged = survey(disk, kernel, wal_dir, control, proven_lsn)
    if way.strict and judged.torn_tail_bytes:
        raise TornTailError(wal_dir, judged.end_lsn, judged.torn_tail_bytes)

    def index_of(redo_lsn: int, pinned_lsn: int) -> Index:
        index = build_index(kernel, way.workers, judged, redo_lsn, pinned_lsn, verify=way.verify)
        way.time.check()
        if way.strict and not judged.clean and (cut_lsn := index.cut_lsn) is not None:
            raise TornTailError(wal_dir, cut_lsn, judged.end_lsn - cut_lsn)
        return index

    loaded, index, decision = _decide(disk, config, control, index_of)
    tail = partial(repair, disk, kernel, wal_dir, judged=judged)
    return _Found(judged, loaded, index, decision, tail, checkpoints=int(decision.applied > 0))


def _salvage(
    disk: Disk, kernel: Kernel, config: WalConfig, control: LogControl, proven_lsn: int, damage: DamageError
) -> _Found:
    """The same of a damaged log, without what is damaged. Raises ``damage`` where there is nothing to salvage into."""
    left = salvage(disk, kernel, absolute(config.wal_dir), control, proven_lsn)
    loaded, index, decision = _decide(disk, config, control, left.index)
    if loaded is None:
        raise damage
    for loss in index.losses or ():
        _logger.warning("left out, as skip_corrupted_entries asks: %s", loss)
    # Two, so that neither slot of the control file needs the old segments.
    return _Found(left.survey(), loaded, index, decision, left.tail, checkpoints=2, needless_lsn=index.end_lsn)


def _let_go(log: Log, lsn: int) -> None:
    """Waits until the log no longer needs what lies below a position; the checkpoints have released it."""
    with log.keeper.changed:
        while log.control.oldest_lsn < lsn and not log.failed:
            log.wake_keeper()
            log.keeper.changed.wait(1.0)


def _decide(
    disk: Disk, config: WalConfig, control: LogControl, index_of: Callable[[int, int], Index]
) -> tuple[Loaded | None, Index, Decision]:
    assert config.data_dir is not None
    data_dir = absolute(config.data_dir)
    loaded = load_newest(disk, config, control, data_dir)
    try:
        index = index_of(*((loaded.redo_lsn, loaded.pinned_lsn) if loaded else (control.oldest_lsn,) * 2))
        loaded = loaded or _create_data(disk, config, control.identity, index, data_dir)
        return loaded, index, decide(index, loaded.state) if loaded else Decision()
    except BaseException:
        if loaded is not None:
            loaded.matrix.close()
        raise


def _open_read_only(config: WalConfig, disk: Disk, workers: Workers, until_lsn: int | None) -> ReadOnlyStore:
    """Opens it as `recovery.read_only` says, and makes the handle."""
    started_ns = disk.monotonic_ns()
    if config.data_dir is None:
        raise WalConfigError("data_dir", None, "give the directory of the matrix, too")
    kernel = kernels.load(config.kernel)
    wal_dir, data_dir = absolute(config.wal_dir), absolute(config.data_dir)
    locks = lock_for_reading(disk, wal_dir, data_dir)
    try:
        found = read_store(disk, kernel, config, wal_dir, data_dir, workers, until_lsn)
    except BaseException:
        for lock in locks:
            lock.release()
        raise
    log = ReadOnlyLog(kernel, found.identity.dtype, wal_dir, found.judged.durable_lsn)
    elapsed_ms = (disk.monotonic_ns() - started_ns) / 1e6
    stats = _stats(found.judged, found.index, found.decision, found.loaded, workers, elapsed_ms)

    def begin(dimension: int) -> tuple[State, None]:
        raise log.refusal()

    store = ReadOnlyStore(
        _parts=Parts(
            log=log,
            metric=METRIC_NAMES[found.identity.metric],
            each_durable=False,
            begin=begin,
            state=found.state,
            checkpointer=None,
            stats=replace(
                stats,
                last_lsn=found.index.end_lsn,
                notes=(*stats.notes, "opened for reading: nothing was changed"),
            ),
            checkpoint_interval=None,
            prepared=[_prepared(undecided) for undecided in found.index.in_doubt],
        )
    )
    forget_fork = disk.on_fork(store.end_in_child)

    def close() -> None:
        if not log.forked:
            log.closed = True
            forget_fork()
            store.end()
        for lock in locks:
            lock.release()

    store.on_close(close)
    store.on_verify(lambda: verify_directory(disk, kernel, wal_dir, data_dir))
    return store


def _create_data(disk: Disk, config: WalConfig, identity: LogIdentity, index: Index, data_dir: str) -> Loaded | None:
    """Creates the data of a store whose dimension is known; None where the first vector will tell."""
    dimension = dimension_of(config, identity, index)
    kernel = kernels.load(config.kernel)
    return _new_data(disk, kernel, identity, data_dir, dimension, index.redo_lsn) if dimension else None


def _new_data(
    disk: Disk, kernel: Kernel, identity: LogIdentity, data_dir: str, dimension: int, redo_lsn: int
) -> Loaded:
    fixed = DataIdentity(
        store_id=identity.store_id,
        history_id=identity.history_id,
        epoch=identity.epoch,
        dimension=dimension,
        dtype=identity.dtype,
        metric=identity.metric,
        created_ns=disk.time_ns(),
    )
    return create_data(disk, kernel, data_dir, fixed, redo_lsn)


def _serve(
    disk: Disk,
    kernel: Kernel,
    config: WalConfig,
    data_dir: str,
    log: Log,
    found: _Found,
    stats: RecoveryStats,
) -> VectorStore:
    """Makes the store, takes the checkpoints that follow a recovery, and starts the automatic ones."""
    loaded, in_doubt = found.loaded, found.index.in_doubt
    stays = not found.needless_lsn  # the log that holds what is in doubt
    opened: list[VectorStore] = []

    def checkpointer_of(data: Loaded) -> Checkpointer:
        log.release(data.needed_lsn)
        return Checkpointer(
            disk,
            data_dir,
            kernel,
            data,
            wait_durable=log.make_durable,
            on_published=published,
            before_capture=lambda: opened[0].quiesce(),  # noqa: PLW0108 (there is no store yet)
            pinned_lsn=lambda redo_lsn: opened[0].pinned_lsn(redo_lsn),  # noqa: PLW0108
        )

    def published(needed_lsn: int, redo_lsn: int, sequence: int) -> None:
        opened[0].checkpoints_taken += 1
        _published(log, needed_lsn, redo_lsn, sequence)

    def begin(dimension: int) -> tuple[State, Checkpointer]:
        log.check_usable()
        redo_lsn = log.cursor.published
        log.make_durable(redo_lsn)  # a mark may be on its way: a checkpoint must not begin behind the log's durable end
        try:
            data = _new_data(disk, kernel, log.identity, data_dir, dimension, redo_lsn)
        except OSError as error:
            raise full_disk(data_dir, error) or error from error.__cause__
        return data.state, checkpointer_of(data)

    store = VectorStore(
        _parts=Parts(
            log=log,
            metric=METRIC_NAMES[log.identity.metric],
            each_durable=config.sync_interval_ms == 0,
            begin=begin,
            state=loaded.state if loaded else None,
            checkpointer=checkpointer_of(loaded) if loaded else None,
            stats=stats,
            checkpoint_interval=config.checkpoint_interval,
            prepared=[_prepared(undecided, log) for undecided in in_doubt if stays],
        )
    )
    opened.append(store)
    if loaded is not None and not stays:
        with loaded.state.lock:
            for undecided in in_doubt:
                store.log_prepared(undecided.gid, undecided.batches())
    store.wal = StoreWal(log, disk, config, stats, store)
    for _ in range(found.checkpoints):
        store.checkpoint()
    keep = Upkeep(store, log, disk)
    store.request_checkpoint = log.keeper.on_pressure = keep.request
    store.on_close(keep.close)

    def verify() -> VerifyReport:
        published_lsn = log.cursor.published
        return verify_directory(disk, kernel, log.wal_dir, data_dir, published_lsn=published_lsn)

    store.on_verify(verify)
    return store


def _prepared(undecided: Undecided, log: Log | None = None) -> Prepared:
    """Returns a transaction in doubt as the store holds it, to be decided where there is a log."""
    logged = None
    if log is not None:
        logged = LogTransaction.of_prepared(
            log,
            undecided.txn,
            first_lsn=undecided.first_lsn,
            prepared_lsn=undecided.lsn,
            members=len(undecided.frames),
            rows=undecided.rows,
            members_crc=undecided.members_crc,
        )
    return Prepared(undecided.gid, undecided.lsn, undecided.timestamp_ns, undecided.batches(), logged)


def _published(log: Log, needed_lsn: int, redo_lsn: int, sequence: int) -> None:
    """Lets the log go that neither checkpoint needs, and notes the newer one in it."""
    log.release(needed_lsn)
    log.wake_keeper()  # it may need another one: the first after a pause moves only the newer of the two slots
    with suppress(OverBudget, UnavailableError):  # a mark for readers of the log: nothing depends on it
        log.append_frame(Kind.CHECKPOINT, 0, 0, 0, CHECKPOINT.pack(sequence=sequence, redo_lsn=redo_lsn))


class Upkeep:
    """The automatic checkpoints of a store, and its end."""

    def __init__(self, store: VectorStore, log: Log, disk: Disk) -> None:
        self._store = store
        self._log = log
        self._asked = False  # whoever asks sets it, then wakes the worker, which clears it
        self._closed = False
        self._forget_fork = disk.on_fork(store.end_in_child)
        try:
            self._worker: Worker = disk.start_worker("checkpoint", self._step)
        except BaseException:
            self._forget_fork()
            raise

    def request(self) -> None:
        """Asks for a checkpoint, soon."""
        self._asked = True
        self._worker.wake()

    def _step(self) -> float | None:
        """Takes a checkpoint if one was asked for."""
        if not self._asked:
            return None
        self._asked = False
        try:
            self._store.checkpoint()
        except (NoStoreError, WalClosedError):  # nothing was written yet, or nothing will be
            pass
        except WalError as error:
            _logger.warning("an automatic checkpoint failed: %s", error)
        except BaseException:
            self._asked = True  # and not taken
            raise
        return None

    def close(self) -> None:
        """Stops the automatic checkpoints, takes the last one, closes the log. Does nothing in a forked child."""
        if self._closed or self._log.forked:
            return
        self._closed = True
        self._worker.stop()
        try:
            if not self._log.failed:
                self._store.settle()
            if not self._log.failed and self._store.changed:
                self._store.checkpoint()
        finally:
            try:
                self._store.end_checkpoints()
                self._log.close()
            finally:
                self._forget_fork()
                if (state := self._store.end()) is not None:
                    state.matrix.close()


def _stats(
    judged: Survey, index: Index, decision: Decision, loaded: Loaded | None, workers: Workers, elapsed_ms: float
) -> RecoveryStats:
    losses = index.losses or []
    skipped = decision.skipped + index.customs
    in_doubt = sum(undecided.rows for undecided in index.in_doubt)
    return RecoveryStats(
        completed=True,
        clean_shutdown=judged.clean,
        total_entries=decision.applied + skipped + len(losses) + index.rolled_back + in_doubt + index.markers,
        applied_entries=decision.applied,
        skipped_entries=skipped,
        corrupted_entries=len(losses),
        rolled_back_entries=index.rolled_back,
        in_doubt_entries=in_doubt,
        in_doubt=tuple(undecided.gid for undecided in index.in_doubt),
        marker_entries=index.markers,
        recovery_time_ms=elapsed_ms,
        bytes_scanned=judged.bytes_scanned + index.bytes_scanned,
        segments=len(index.extents),
        workers=workers.used,
        first_lsn=index.redo_lsn,
        last_lsn=judged.end_lsn,
        torn_tail_bytes=judged.torn_tail_bytes,
        checkpoint_sequence=loaded.sequence if loaded else 0,
        redo_lsn=index.redo_lsn,
        errors=tuple(losses),
        notes=(*judged.notes, *(loaded.notes if loaded else ()), *workers.notes),
    )


class CrashRecoveryManager:
    """Recovers a store with settings of its own; the guide's name for it.

    Args:
        config: where log and data are, and how to recover. ``workers=None`` verifies a large log in threads where the
            kernel is the compiled one, which lets go of the GIL, and does all else in the caller. A number above 1 is a
            pool of as many processes, started by ``spawn``: that takes half a second and imports the caller's main
            module, so guard that with ``if __name__ == "__main__"``. A worker that dies is a note in the report: the
            caller does its part.
        executor: does the parts instead: any `concurrent.futures.Executor`, with threads or processes, but not the one
            that runs `recover`. It stays open.
        progress: called in this thread, as a phase begins and after each part, with a `RecoveryProgress`. What it
            raises ends recovery: with nothing changed while the phase is "verify", and as a crash would during "copy".

    Raises:
        WalConfigError: ``target`` is given, or one of the others is not what it should be.

    Example:
        >>> import tempfile, warnings
        >>> warnings.simplefilter("ignore", DurabilityWarning)
        >>> root = tempfile.mkdtemp()
        >>> open(root, dimension=2, segment_size=1 << 20).close()
        >>> manager = CrashRecoveryManager(RecoveryConfig(wal_dir=f"{root}/wal", data_dir=f"{root}/data"))
        >>> with manager.recover() as store:
        ...     len(store), manager.get_recovery_stats().clean_shutdown
        (0, True)
    """

    def __init__(
        self,
        config: RecoveryConfig,
        *,
        executor: Executor | None = None,
        progress: Progress | None = None,
        disk: Disk | None = None,
    ) -> None:
        if not isinstance(config, RecoveryConfig):
            raise WalConfigError("config", config, "must be a RecoveryConfig; pass RecoveryConfig(wal_dir=, data_dir=)")
        if config.target is not None:
            raise WalConfigError(
                "target",
                config.target,
                "a store is recovered to the end of its log, of which nothing is given up; the store as of an LSN or a "
                "time is written to a new directory by 'mmwal recover --to-lsn' or '--to-time'",
            )
        if executor is not None and not isinstance(executor, Executor):
            raise WalConfigError("executor", executor, "must be a concurrent.futures.Executor; or give workers")
        if progress is not None and not callable(progress):
            raise WalConfigError("progress", progress, "must be callable; it is passed a RecoveryProgress")
        self.config = config
        self._executor = executor
        self._progress = progress
        self._disk = disk or default_disk()
        self._stats = RecoveryStats()

    def recover(self) -> VectorStore:
        """Returns the recovered store, open for reads and writes.

        Raises as `open`; `RecoveryTimeoutError`, and with ``strict`` `TornTailError`: nothing was changed.
        """
        data_dir = self.config.data_dir
        if data_dir is None:
            raise WalConfigError("data_dir", None, "give the directory of the matrix")
        config = WalConfig(wal_dir=self.config.wal_dir, data_dir=data_dir, kernel=self.config.kernel)
        config = replace(config, max_wal_size=max(config.max_wal_size, self._least_budget()))
        verified_bytes = 0
        time = _Time(self._disk, None)

        def note(progress: RecoveryProgress) -> None:
            nonlocal verified_bytes
            if progress.phase == "verify":
                verified_bytes = progress.done_bytes
            if self._progress is not None:
                self._progress(progress)

        try:
            store = open_store(
                config,
                self._disk,
                workers=self.config.workers,
                executor=self._executor,
                processes=True,
                progress=note,
                limit_ms=self.config.max_recovery_time_ms,
                verify_checksums=self.config.verify_checksums,
                skip_corrupted_entries=self.config.skip_corrupted_entries,
                strict=self.config.strict,
            )
        except Exception as error:
            label = getattr(error, "verdict", None)
            self._stats = RecoveryStats(
                recovery_time_ms=time.elapsed_ms(),
                bytes_scanned=verified_bytes,
                errors=(f"{error} [{label}]" if label else str(error),),
            )
            raise
        self._stats = store.recovery_stats
        return store

    def _least_budget(self) -> int:
        """Returns what a log needs of `max_wal_size`, which is no setting of a recovery; 0 where there is none yet, or
        where opening will say what is wrong with it."""
        with suppress(OpenError, OSError):
            control = open_log_control(self._disk, absolute(self.config.wal_dir))
            return 2 * control.identity.segment_bytes if control is not None else 0
        return 0

    def get_recovery_stats(self) -> RecoveryStats:
        """Returns what `recover` found; all zero and ``completed=False`` before."""
        return self._stats
