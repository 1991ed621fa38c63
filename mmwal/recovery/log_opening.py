"""Opening the log of a directory: lock, identity, survey, repair, append.

Not here: opening a store (`opening.py`), judging and repairing the tail (`tail.py`).
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from mmwal import kernel as kernels
from mmwal.checkpoint.load import METRIC_CODES
from mmwal.config import DEFAULT_DTYPE, DEFAULT_METRIC, DEFAULT_SEGMENT_SIZE, MetricName, WalConfig, check_config
from mmwal.disk.interface import Disk
from mmwal.errors import (
    DurabilityWarning,
    ForeignDirectoryError,
    WalConfigError,
    WalError,
    WalFullError,
    WalLockedError,
)
from mmwal.kernel.interface import DTYPE_CODES
from mmwal.log.control import LogControl, LogIdentity, create_control, open_control
from mmwal.log.keeper import NO_SPACE
from mmwal.log.log import Log, Tail
from mmwal.recovery.tail import Survey, repair, survey
from mmwal.verdicts import DIRECTORY, Reached

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

METRIC_NAMES: dict[int, MetricName] = {1: "inner_product", 2: "cosine", 3: "l2"}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}


def default_disk() -> Disk:
    """Returns the operating system's disk."""
    from mmwal.disk.posix import PosixDisk

    return PosixDisk()


def lock_directory(disk: Disk, wal_dir: str) -> Any:
    """Takes the one writer's lock. Raises `WalLockedError` naming the holder."""
    try:
        return disk.lock(f"{wal_dir}/lock")
    except BlockingIOError as error:
        raise WalLockedError(wal_dir, getattr(error, "holder_pid", None)) from error


def prepare_directories(disk: Disk, *paths: str, stacklevel: int) -> None:
    """Creates directories if need be, and warns, once, of places that keep less than a user would expect.

    ``stacklevel`` is that of the user's call, as `warnings.warn` counts from here.
    """
    found: dict[str, str] = {}  # what is wrong, but for the directory, to the first sentence that says so
    for path in paths:
        disk.make_directory(path)
        for sentence in disk.warnings_for(path):
            found.setdefault(sentence.removeprefix(path), sentence)
    if found:
        warnings.warn(" ".join(found.values()), DurabilityWarning, stacklevel=stacklevel)


def refuse_unbuilt(config: WalConfig) -> None:
    """Refuses what is no configuration, and what a user would count on and this version does not do."""
    check_config(config)
    if config.enable_replication:
        raise WalConfigError(
            "enable_replication", True, "no replicator is attached, so nothing would be copied; open without it"
        )


def open_identity(disk: Disk, config: WalConfig, wal_dir: str) -> LogControl:
    """Reads the control file, or creates the log; checks the config against what is persisted."""
    control = open_control(disk, wal_dir)
    if control is None:
        segments = [name for name in disk.list_directory(wal_dir) if name.startswith("segment-")]
        if segments:
            raise DIRECTORY.verdict(log="missing", segments="some", data="missing").mark(
                ForeignDirectoryError(
                    f"{wal_dir}/{segments[0]}",
                    "there are segments but no control file; restore the control file from a backup, or choose another "
                    "directory",
                )
            )
        identity = _new_identity(disk, config)
        _check_budget(config, identity.segment_bytes, "a new log would have")
        created = create_control(disk, wal_dir, identity)
        verdict = DIRECTORY.verdict(log="missing", segments="none", data="missing")
        created.reached.append(Reached(verdict, wal_dir))
        return created
    check_persisted(config, control.identity)
    _check_budget(config, control.identity.segment_bytes, "the log has")
    disk.sync_directory(wal_dir)  # after a kill the name may be in memory only, and what follows relies on it
    return control


def check_persisted(config: WalConfig, identity: LogIdentity) -> None:
    """Raises `WalConfigError`, naming both values, where the config contradicts what the log was created with."""
    persisted = {
        "dimension": identity.dimension or None,
        "dtype": DTYPE_NAMES[identity.dtype],
        "metric": METRIC_NAMES[identity.metric],
        "segment_size": identity.segment_bytes,
    }
    for field, found in persisted.items():
        given = getattr(config, field)
        if given is not None and found is not None and given != found:
            raise WalConfigError(
                field, given, f"the log was created with {found!r}; leave it out, or create a new log elsewhere"
            )


def _check_budget(config: WalConfig, segment_bytes: int, whose: str) -> None:
    if config.max_wal_size < 2 * segment_bytes:
        raise WalConfigError(
            "max_wal_size",
            config.max_wal_size,
            f"must be at least two segments, and {whose} segments of {segment_bytes:,} bytes; raise it"
            + ("" if config.segment_size else ", or pass a smaller segment_size for a new log"),
        )


def start_log(disk: Disk, kernel: Kernel, config: WalConfig, wal_dir: str, tail: Tail, *, owned: bool = False) -> Log:
    """Begins to append behind a tail."""
    return Log(
        disk,
        kernel,
        wal_dir,
        tail,
        sync_interval_ms=config.sync_interval_ms,
        append_timeout_ms=config.append_timeout_ms,
        live_bytes_max=config.max_wal_size,
        runway_segments=config.runway_segments,
        check_finite=not config.allow_nonfinite,
        dimension=config.dimension or 0,
        owned=owned,
    )


def open_log(config: WalConfig, disk: Disk) -> tuple[Log, Survey]:
    """Opens a log alone: lock, identity, survey, repair, append."""
    refuse_unbuilt(config)
    kernel = kernels.load(config.kernel)
    wal_dir = absolute(config.wal_dir)
    prepare_directories(disk, wal_dir, stacklevel=4)
    lock = lock_directory(disk, wal_dir)
    try:
        control = open_identity(disk, config, wal_dir)
        if control.owned:
            raise DIRECTORY.verdict(opened="log", log="owned").mark(
                ForeignDirectoryError(
                    control.path, "a store owns this log and releases it with its checkpoints; open the store instead"
                )
            )
        control.reached.append(Reached(DIRECTORY.verdict(opened="log", log="free"), wal_dir))
        judged = survey(disk, kernel, wal_dir, control)
        return start_log(disk, kernel, config, wal_dir, repair(disk, kernel, wal_dir, lock, judged)), judged
    except OSError as error:
        lock.release()
        raise full_disk(wal_dir, error) or error from error.__cause__
    except BaseException:
        lock.release()
        raise


def full_disk(path: str, error: OSError) -> WalFullError | None:
    """Returns what to raise in place of an error that says the disk is full; None for any other."""
    if isinstance(error, WalError) or error.errno not in NO_SPACE:
        return None
    full = WalFullError(
        f"{error.filename or path}: no space ({error.strerror}); nothing was lost. Free some space, then try again",
        error.errno,
    )
    full.__cause__ = error
    return full


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a path that does not change with the working directory."""
    return os.path.abspath(os.fspath(path))


def _new_identity(disk: Disk, config: WalConfig) -> LogIdentity:
    return LogIdentity(
        store_id=disk.random_bytes(16),
        history_id=disk.random_bytes(16),
        epoch=1,
        segment_bytes=config.segment_size or DEFAULT_SEGMENT_SIZE,
        dimension=config.dimension or 0,
        dtype=DTYPE_CODES[config.dtype or DEFAULT_DTYPE],
        metric=METRIC_CODES[config.metric or DEFAULT_METRIC],
        created_ns=disk.time_ns(),
    )
