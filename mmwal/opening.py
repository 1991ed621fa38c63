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

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mmwal import kernel as kernels
from mmwal.checkpoint.checkpoint import Checkpointer
from mmwal.checkpoint.control import CONTROL_NAME as DATA_CONTROL_NAME
from mmwal.checkpoint.control import DataIdentity
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.checkpoint.load import Loaded, create_data, load_checkpoint
from mmwal.config import RecoveryConfig, WalConfig
from mmwal.disk.interface import Disk, Worker
from mmwal.entry import RecoveryStats
from mmwal.errors import (
    ConsistencyError,
    UnavailableError,
    WalConfigError,
    WalError,
)
from mmwal.format.frame import CHECKPOINT, Kind
from mmwal.format.segment import data_start
from mmwal.kernel.interface import DTYPES
from mmwal.log.control import CONTROL_NAME, LogControl, LogIdentity
from mmwal.log.log import Log, OverBudget
from mmwal.manager import StoreWal
from mmwal.recovery.log_opening import (
    METRIC_NAMES,
    absolute,
    default_disk,
    lock_directory,
    open_identity,
    prepare_directory,
    refuse_unbuilt,
    start_log,
)
from mmwal.recovery.recover import Decision, Index, build_index, copy_winners, decide
from mmwal.recovery.tail import Survey, survey
from mmwal.state.state import State
from mmwal.store import Parts, VectorStore

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_logger = logging.getLogger("mmwal")


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    config: WalConfig | None = None,
    disk: Disk | None = None,
    **fields: Any,
) -> VectorStore:
    """Opens a store, new or old, and recovers it; returns it ready for reads and writes.

    Args:
        path: its directory: the log is in ``path/wal``, the matrix in ``path/data``.
        config: instead of ``path`` and ``fields``, a whole `WalConfig` with ``wal_dir`` and ``data_dir``.
        disk: another operating system, such as `mmwal.testing.SimulatedDisk`.
        fields: fields of `WalConfig`: ``dimension``, ``metric``, ``sync_interval_ms`` and so on.

    Raises:
        WalLockedError: another process has it open for writing.
        WalConfigError: a field is wrong, or contradicts what the store was created with.
        WalCorruptionError, HeaderCorruptionError, SegmentMissingError, ConsistencyError: what is on disk contradicts what
            was recorded; nothing was changed.
        ForeignDirectoryError, FormatVersionError: not this store's, or of a newer mmwal.
        WalFullError: no space to recover into; nothing was lost.

    Durability: what was acknowledged before is there, see `VectorStore`. Everything returned by reads is durable from
    now on, and the checkpoint that follows a crash is durable before anything is removed.

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
        root = absolute(path)
        config = WalConfig(**{"wal_dir": f"{root}/wal", "data_dir": f"{root}/data", **fields})
    elif path is not None or fields:
        raise WalConfigError("config", config, "comes instead of path and fields; use dataclasses.replace to change it")
    return open_store(config, disk or default_disk())


def open_store(config: WalConfig, disk: Disk, *, workers: int | None = None) -> VectorStore:
    """Opens the store of a config; the steps stand at the top of this file."""
    started_ns = disk.monotonic_ns()
    refuse_unbuilt(config)
    if config.data_dir is None:
        raise WalConfigError("data_dir", None, "a store needs a directory for its matrix; a log alone is a WalManager")
    kernel = kernels.load(config.kernel)
    wal_dir, data_dir = absolute(config.wal_dir), absolute(config.data_dir)
    for directory in (wal_dir, data_dir):
        prepare_directory(disk, directory)
    # 1. lock
    lock = lock_directory(disk, wal_dir)
    try:
        # 2. identity
        data = open_data_control(disk, data_dir)
        if data is not None and not disk.exists(f"{wal_dir}/{CONTROL_NAME}"):
            raise ConsistencyError(
                f"{wal_dir}/{CONTROL_NAME}",
                f"the log of the checkpoint in {data_dir} is missing; give its wal_dir, or restore it from a backup",
            )
        control = open_identity(disk, config, wal_dir)
        # 3. survey
        judged = survey(disk, kernel, wal_dir, control, max((slot.redo_lsn for slot in data.slots), default=0) if data else 0)
        # 4. load
        loaded = _load(disk, config, control, data_dir)
        # 5. index, decide
        redo_lsn = loaded.redo_lsn if loaded else control.oldest_lsn
        index = build_index(disk, kernel, judged, redo_lsn, workers=workers)
        loaded = loaded or _create_data(disk, config, control.identity, index, data_dir)
        decision = decide(index, loaded.state) if loaded else Decision({})
        # 6. repair
        log = start_log(disk, kernel, config, wal_dir, lock, judged)
    except BaseException:
        lock.release()
        raise
    try:
        # 7. copy
        if loaded is not None:
            loaded.control.restate()
            copy_winners(kernel, index, decision, loaded.state)
        stats = _stats(judged, index, decision, loaded, (disk.monotonic_ns() - started_ns) / 1e6)
        # 8. checkpoint
        return _serve(disk, kernel, config, data_dir, log, loaded, stats, bool(decision.winners))
    except BaseException:
        log.close(clean=False)
        raise


def _load(disk: Disk, config: WalConfig, control: LogControl, data_dir: str) -> Loaded | None:
    """Loads the newest whole checkpoint; None where there is no data yet and the log holds everything."""
    loaded = load_checkpoint(
        disk,
        data_dir,
        store_id=control.identity.store_id,
        dimension=config.dimension,
        dtype=config.dtype,
        metric=config.metric,
    )
    if loaded is None and control.oldest_lsn > data_start(0, control.identity.segment_bytes):
        raise ConsistencyError(
            f"{data_dir}/{DATA_CONTROL_NAME}",
            f"the log begins at LSN {control.oldest_lsn}, and the checkpoint that covers all before is missing; give "
            "the data_dir that belongs to it, or restore it from a backup",
        )
    return loaded


def _create_data(
    disk: Disk, config: WalConfig, identity: LogIdentity, index: Index, data_dir: str
) -> Loaded | None:
    """Creates the data of a store whose dimension is known; None where the first vector will tell."""
    from_log = index.dimension_bytes
    dimension = config.dimension or identity.dimension
    if not dimension and from_log is not None:
        dimension = from_log // DTYPES[identity.dtype].itemsize
    return _new_data(disk, identity, data_dir, dimension, index.redo_lsn) if dimension else None


def _new_data(disk: Disk, identity: LogIdentity, data_dir: str, dimension: int, redo_lsn: int) -> Loaded:
    fixed = DataIdentity(
        store_id=identity.store_id,
        history_id=identity.history_id,
        epoch=identity.epoch,
        dimension=dimension,
        dtype=identity.dtype,
        metric=identity.metric,
        created_ns=disk.time_ns(),
    )
    return create_data(disk, data_dir, fixed, redo_lsn)


def _serve(
    disk: Disk,
    kernel: Kernel,
    config: WalConfig,
    data_dir: str,
    log: Log,
    loaded: Loaded | None,
    stats: RecoveryStats,
    changed: bool,
) -> VectorStore:
    """Makes the store, takes the checkpoint that follows a recovery, and starts the automatic ones."""
    log.has_owner = True
    opened: list[VectorStore] = []

    def checkpointer_of(data: Loaded) -> Checkpointer:
        log.release(data.older_redo_lsn)
        return Checkpointer(
            disk,
            data_dir,
            kernel,
            data,
            wait_durable=log.make_durable,
            on_published=lambda older, newest, sequence: _published(log, older, newest, sequence),
            before_capture=lambda: opened[0].quiesce(),
        )

    def begin(dimension: int) -> tuple[State, Checkpointer]:
        data = _new_data(disk, log.identity, data_dir, dimension, log.cursor.published)
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
        )
    )
    opened.append(store)
    store.wal = StoreWal(log, disk, config, stats, store)
    if changed:
        store.checkpoint()
    keep = Upkeep(store, log)
    worker = disk.start_worker("checkpoint", keep.step)
    store.request_checkpoint = keep.request = worker.wake
    log.keeper.on_pressure = worker.wake
    store.on_close(lambda: keep.close(worker))
    return store


def _published(log: Log, older_redo_lsn: int, redo_lsn: int, sequence: int) -> None:
    """Lets the log go up to the older checkpoint, and notes the newer one in it."""
    log.release(older_redo_lsn)
    with suppress(OverBudget, UnavailableError):  # a mark for readers of the log: nothing depends on it
        log.append_frame(Kind.CHECKPOINT, 0, 0, 0, CHECKPOINT.pack(sequence=sequence, redo_lsn=redo_lsn))


class Upkeep:
    """The automatic checkpoints of a store, and its end."""

    def __init__(self, store: VectorStore, log: Log) -> None:
        self._store = store
        self._log = log
        self._asked = False
        self._closed = False
        self.request: Callable[[], None] = lambda: None

    def step(self) -> float | None:
        """Takes a checkpoint when woken; the first call, at the start, takes none."""
        if not self._asked:
            self._asked = True
            return None
        try:
            self._store.checkpoint()
        except WalError as error:
            _logger.warning("an automatic checkpoint failed: %s", error)
        return None

    def close(self, worker: Worker) -> None:
        """Stops the automatic checkpoints, takes the last one, closes the log."""
        if self._closed:
            return
        self._closed = True
        worker.stop()
        try:
            if not self._log.failed and self._store.changed:
                self._store.checkpoint()
        finally:
            self._log.close()


def _stats(
    judged: Survey, index: Index, decision: Decision, loaded: Loaded | None, elapsed_ms: float
) -> RecoveryStats:
    return RecoveryStats(
        completed=True,
        clean_shutdown=judged.clean,
        total_entries=decision.applied + decision.skipped + index.rolled_back + index.markers,
        applied_entries=decision.applied,
        skipped_entries=decision.skipped,
        rolled_back_entries=index.rolled_back,
        marker_entries=index.markers,
        recovery_time_ms=elapsed_ms,
        bytes_scanned=judged.bytes_scanned + index.bytes_scanned,
        segments=len(index.extents),
        workers=index.workers,
        first_lsn=index.redo_lsn,
        last_lsn=judged.end_lsn,
        torn_tail_bytes=judged.torn_tail_bytes,
        checkpoint_sequence=loaded.sequence if loaded else 0,
        redo_lsn=index.redo_lsn,
        notes=(*judged.notes, *(loaded.notes if loaded else ())),
    )


class CrashRecoveryManager:
    """Recovers a store with settings of its own; the guide's name for it.

    Args:
        config: where log and data are, and how to recover.

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

    def __init__(self, config: RecoveryConfig, *, disk: Disk | None = None) -> None:
        for field in ("target",):
            if getattr(config, field) is not None:
                raise WalConfigError(field, getattr(config, field), "this version recovers to the end of the log only")
        self.config = config
        self._disk = disk or default_disk()
        self._stats = RecoveryStats()

    def recover(self) -> VectorStore:
        """Returns the recovered store, open for reads and writes. Raises as `open`."""
        data_dir = self.config.data_dir
        if data_dir is None:
            raise WalConfigError("data_dir", None, "give the directory of the matrix")
        config = WalConfig(wal_dir=self.config.wal_dir, data_dir=data_dir)
        try:
            store = open_store(config, self._disk, workers=self.config.workers)
        except WalError as error:
            self._stats = RecoveryStats(errors=(str(error),))
            raise
        self._stats = store.recovery_stats
        return store

    def get_recovery_stats(self) -> RecoveryStats:
        """Returns what `recover` found; all zero and ``completed=False`` before."""
        return self._stats
