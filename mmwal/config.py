"""How a log and its recovery are set up: `WalConfig`, `RecoveryConfig`, the policies and the presets.

A config is frozen, takes keywords only and is checked when it is built; `dataclasses.replace` checks again.
What depends on the disk (does the directory exist, does it hold another dimension?) is found out at opening.

* Every refusal is a `WalConfigError` that names the field and ends with what to do.
* ``None`` in a field of the persisted group means "as persisted", and for a new log the ``DEFAULT_*`` below.
* Sizes are bytes, decimal unless they say MiB; times carry their unit in the name.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Self, TypeAlias

from mmwal.errors import WalConfigError

DTypeName: TypeAlias = Literal["float32", "float16", "int8"]
MetricName: TypeAlias = Literal["inner_product", "cosine", "l2"]
KernelName: TypeAlias = Literal["c", "py"]

DTYPES: tuple[DTypeName, ...] = ("float32", "float16", "int8")
METRICS: tuple[MetricName, ...] = ("inner_product", "cosine", "l2")
KERNELS: tuple[KernelName, ...] = ("c", "py")

DEFAULT_DTYPE: DTypeName = "float32"
DEFAULT_METRIC: MetricName = "inner_product"
DEFAULT_SEGMENT_SIZE = 64 << 20
SEGMENT_SIZE_LEAST = 64 << 10
SEGMENT_SIZE_GREATEST = 1 << 30
SEGMENT_SIZE_STEP = 4096
DIMENSION_GREATEST = 1 << 20
COMPRESSION_AGE_HOURS = 24

_VALUE_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_SEGMENT_OVERHEAD_BYTES = 16 << 10  # headers, footer, frame header and a short id, rounded up
_HOUR_MS = 3_600_000


class RotationPolicy:
    """When the log moves on to its next segment: `RotationPolicy.SizeBased` or `RotationPolicy.TimeBased`.

    A segment that is full is always left, whatever the policy.
    """

    __slots__ = ()
    SizeBased: ClassVar[RotationPolicy]
    TimeBased: ClassVar[type[TimeBased]]


@dataclass(frozen=True, slots=True, repr=False)
class _SizeBased(RotationPolicy):
    def __repr__(self) -> str:
        return "RotationPolicy.SizeBased"


@dataclass(frozen=True, slots=True)
class TimeBased(RotationPolicy):
    """Rotates when a segment with entries is ``interval_hours`` old (above 0), and when it is full.

    This version accepts and records it; nothing acts on it yet: segments rotate by size.
    """

    __qualname__ = "RotationPolicy.TimeBased"
    interval_hours: float = 24

    def __post_init__(self) -> None:
        _check_number("interval_hours", self.interval_hours, "give the hours between rotations, above 0")
        if self.interval_hours <= 0:
            raise WalConfigError("interval_hours", self.interval_hours, "must be above 0; a day is 24")


RotationPolicy.SizeBased = _SizeBased()
RotationPolicy.TimeBased = TimeBased


class RetentionPolicy:
    """How much history outlives a checkpoint: `RetentionPolicy.KeepLast` (n) or `RetentionPolicy.KeepAll`.

    What recovery, a reader or a standby needs is kept whatever the policy says.
    """

    __slots__ = ()
    KeepAll: ClassVar[RetentionPolicy]
    KeepLast: ClassVar[type[KeepLast]]


@dataclass(frozen=True, slots=True, repr=False)
class _KeepAll(RetentionPolicy):
    def __repr__(self) -> str:
        return "RetentionPolicy.KeepAll"


@dataclass(frozen=True, slots=True)
class KeepLast(RetentionPolicy):
    """Keeps the newest ``n`` checkpoints (at least 1) and the log from the oldest of them on.

    This version accepts and records it; nothing acts on it yet: kept is what the two newest checkpoints need.
    """

    __qualname__ = "RetentionPolicy.KeepLast"
    n: int

    def __post_init__(self) -> None:
        _check_int("n", self.n, 1, None, "give the number of checkpoints to keep, or use RetentionPolicy.KeepAll")


RetentionPolicy.KeepAll = _KeepAll()
RetentionPolicy.KeepLast = KeepLast


@dataclass(frozen=True, kw_only=True)
class WalConfig:
    """Describes a log: where it is, what a crash may cost, what its entries hold, how much room it takes.

    Every field has a default, so ``WalConfig()`` is valid; ``dataclasses.replace`` gives a changed copy.

    Raises:
        WalConfigError: a field has the wrong type or value (``bool`` is no int, ``1.0`` is no int).
        TypeError: a keyword is unknown.

    Example:
        >>> WalConfig(wal_dir="wal", data_dir="data", dimension=768, sync_interval_ms=100).checkpoint_interval
        10000
        >>> WalConfig(sync_interval_ms=-1)
        Traceback (most recent call last):
        ...
        mmwal.errors.WalConfigError: sync_interval_ms=-1: must be an int from 0 to 3,600,000; \
give milliseconds between syncs, 0 to sync every write
    """

    # ---- durability: what a crash may cost

    sync_interval_ms: int = 1000
    """Milliseconds between background syncs, 0 to 3,600,000.

    0: a write returns once it is durable, at the price of a share of a sync (about 0.1 to 0.4 ms on NVMe); a
    crash costs nothing acknowledged. N: a write returns in about a microsecond; a power loss costs what is
    younger than N ms plus one sync. A killed process costs nothing at any setting.
    """
    checkpoint_interval: int | None = 10_000
    """Rows changed between automatic checkpoints, at least 1; ``None``: only when asked.

    Changes no promise. Higher: less disk traffic, longer recovery. Counts rows: a transaction of five counts five.
    """
    retention_policy: RetentionPolicy = field(default_factory=lambda: RetentionPolicy.KeepLast(7))
    """How much history is kept: `RetentionPolicy.KeepLast` (n) or `RetentionPolicy.KeepAll`.

    Costs disk space only, never blocks a write. This version accepts and records it; nothing acts on it yet:
    kept is what the two newest checkpoints need.
    """
    enable_replication: bool = False
    """Ask for a standby. Not built in this version: opening with ``True`` raises, since nothing would be copied."""
    allow_nonfinite: bool = False
    """Accept NaN and infinity in vectors; otherwise they are refused before anything is logged."""

    # ---- persisted: fixed when the directories are created, checked against them at every opening

    wal_dir: str | os.PathLike[str] = "/tmp/wal"
    """Directory of the log, created with its parents. Use a fast disk, and never the default for data to
    keep: systems empty /tmp at boot. Held as ``str``."""
    data_dir: str | os.PathLike[str] | None = None
    """Directory of the matrix and its checkpoints; it may be on another disk. ``None``: a log without a
    store. Held as ``str``."""
    dimension: int | None = None
    """Values per vector, 1 to 1,048,576. ``None``: as persisted; a new store then takes that of its first vector, a new
    log without a store takes vectors of any length."""
    dtype: DTypeName | None = None
    """Type of the values: ``"float32"`` (the default of a new log), ``"float16"`` or ``"int8"``; 4, 2, 1 bytes each."""
    metric: MetricName | None = None
    """Score of a search: ``"inner_product"`` (the default of a new store), ``"cosine"`` or ``"l2"`` (squared)."""
    segment_size: int | None = None
    """Bytes of one segment file: 64 KiB to 1 GiB in steps of 4096; the default of a new log is 64 MiB.

    Bounds the largest entry. Smaller segments rotate and sync more often, and give space back sooner.
    """

    # ---- performance: may change at every opening

    max_wal_size: int = 1_000_000_000
    """Budget in bytes for the live log (what recovery would still read), at least two segments.

    At 80 % a checkpoint is asked for; at 100 % a write waits for one, then raises `WalFullError` with nothing logged.
    """
    append_timeout_ms: int = 10_000
    """Milliseconds that a write waits for room before it raises `WalFullError`, 0 to 3,600,000; 0: not at all."""
    runway_segments: int = 2
    """Segments prepared ahead of the writer, 1 to 8. Each costs its size on disk and in the page cache; too
    few and a burst waits for a new segment to be prepared."""
    rotation_policy: RotationPolicy = RotationPolicy.SizeBased
    """When to leave a segment: `RotationPolicy.SizeBased`, or ``TimeBased(interval_hours=24)``, which this
    version accepts and records; nothing acts on it yet."""
    enable_compression: bool = False
    """Compress old sealed segments, never what is being written. This version accepts and records it; nothing
    acts on it yet. Float vectors hardly shrink: expect a few per cent."""
    compression_threshold_age_hours: float = COMPRESSION_AGE_HOURS
    """Hours after its sealing from which a segment is compressed, 0 or more; without compression it warns.
    This version accepts and records it; nothing acts on it yet."""
    kernel: KernelName | None = None
    """``"c"``: the compiled kernel; ``"py"``: its twin in Python, which takes a lock; ``None``: the best installed."""

    def __post_init__(self) -> None:
        self._check_durability()
        self._check_persisted()
        self._check_performance()

    def _check_durability(self) -> None:
        advice = "give milliseconds between syncs, 0 to sync every write"
        _check_int("sync_interval_ms", self.sync_interval_ms, 0, _HOUR_MS, advice)
        if self.checkpoint_interval is not None:
            advice = "give the rows between checkpoints, or None to checkpoint only by hand"
            _check_int("checkpoint_interval", self.checkpoint_interval, 1, None, advice)
        advice = "use RetentionPolicy.KeepLast(7) or RetentionPolicy.KeepAll"
        _check_kind("retention_policy", self.retention_policy, RetentionPolicy, advice)
        _check_bool("enable_replication", self.enable_replication)
        _check_bool("allow_nonfinite", self.allow_nonfinite)

    def _check_persisted(self) -> None:
        _set_directories(self)
        check_vectors(self.dimension, self.dtype, self.metric)
        if self.segment_size is not None:
            advice = "give bytes in steps of 4096, or None for 64 MiB"
            _check_int("segment_size", self.segment_size, SEGMENT_SIZE_LEAST, SEGMENT_SIZE_GREATEST, advice)
            if self.segment_size % SEGMENT_SIZE_STEP:
                nearest = -(-self.segment_size // SEGMENT_SIZE_STEP) * SEGMENT_SIZE_STEP
                raise WalConfigError("segment_size", self.segment_size, f"must be a multiple of 4096; use {nearest}")
        self._check_that_a_vector_fits()

    def _check_that_a_vector_fits(self) -> None:
        segment_size = DEFAULT_SEGMENT_SIZE if self.segment_size is None else self.segment_size
        vector_bytes = (self.dimension or 0) * _VALUE_BYTES[self.dtype or DEFAULT_DTYPE]
        if vector_bytes > segment_size - _SEGMENT_OVERHEAD_BYTES:
            problem = (
                f"one vector takes {vector_bytes:,} bytes, a segment has {segment_size:,}; pass a larger segment_size"
            )
            raise WalConfigError("dimension", self.dimension, problem)

    def _check_that_two_segments_fit(self) -> None:
        # Without a size given, an existing log's may be smaller than the default: opening checks that.
        segment_size = SEGMENT_SIZE_LEAST if self.segment_size is None else self.segment_size
        if self.max_wal_size >= 2 * segment_size:
            return
        if self.max_wal_size < 2 * SEGMENT_SIZE_LEAST:
            problem = f"must hold two segments of the least size; use {2 * SEGMENT_SIZE_LEAST} or more"
        else:
            half = self.max_wal_size // 2 // SEGMENT_SIZE_STEP * SEGMENT_SIZE_STEP
            problem = (
                f"must be at least two segments, and segment_size is {segment_size:,} bytes; "
                f"pass segment_size={half} or less, or max_wal_size={2 * segment_size} or more"
            )
        raise WalConfigError("max_wal_size", self.max_wal_size, problem)

    def _check_performance(self) -> None:
        advice = "give the budget of the live log in bytes"
        _check_int("max_wal_size", self.max_wal_size, 1, None, advice)
        self._check_that_two_segments_fit()
        _check_int("append_timeout_ms", self.append_timeout_ms, 0, _HOUR_MS, "give milliseconds, 0 not to wait")
        _check_int("runway_segments", self.runway_segments, 1, 8, "2 suits most loads")
        advice = "use RotationPolicy.SizeBased or RotationPolicy.TimeBased(interval_hours=24)"
        _check_kind("rotation_policy", self.rotation_policy, RotationPolicy, advice)
        _check_bool("enable_compression", self.enable_compression)
        self._check_compression_age()
        _check_choice("kernel", self.kernel, KERNELS)

    def _check_compression_age(self) -> None:
        hours = self.compression_threshold_age_hours
        _check_number("compression_threshold_age_hours", hours, "give hours since sealing, 0 or more")
        if hours < 0:
            raise WalConfigError("compression_threshold_age_hours", hours, "must not be negative; 24 is a day")
        if hours != COMPRESSION_AGE_HOURS and not self.enable_compression:
            warnings.warn(
                f"compression_threshold_age_hours={hours} has no effect without compression; "
                "set enable_compression=True",
                UserWarning,
                stacklevel=5,
            )

    # ---- presets: each is one block of the guide, field by field; keywords override

    @classmethod
    def basic(cls, **overrides: Any) -> Self:
        """Returns the guide's basic set-up: 1 GB of log, a sync each second, a checkpoint each 10,000 rows.

        The directory is the guide's; pass your own ``wal_dir``.
        """
        return cls._preset(
            overrides,
            wal_dir="/var/lib/oxirs/wal",
            max_wal_size=1_000_000_000,
            sync_interval_ms=1000,
            checkpoint_interval=10_000,
        )

    @classmethod
    def maximum_durability(cls, **overrides: Any) -> Self:
        """Returns a config where every write is durable on return, with a checkpoint each 1,000 rows."""
        return cls._preset(overrides, sync_interval_ms=0, checkpoint_interval=1000)

    @classmethod
    def balanced(cls, **overrides: Any) -> Self:
        """Returns a config for most loads: a power loss costs at most 100 ms plus one sync."""
        return cls._preset(overrides, sync_interval_ms=100, checkpoint_interval=10_000)

    @classmethod
    def performance(cls, **overrides: Any) -> Self:
        """Returns a config that syncs each 5 s and checkpoints each 100,000 rows."""
        return cls._preset(overrides, sync_interval_ms=5000, checkpoint_interval=100_000)

    @classmethod
    def high_throughput(cls, **overrides: Any) -> Self:
        """Returns a config that syncs each second and checkpoints each 100,000 rows."""
        return cls._preset(overrides, sync_interval_ms=1000, checkpoint_interval=100_000)

    @classmethod
    def development(cls, **overrides: Any) -> Self:
        """Returns a config for work on a laptop: in /tmp, a sync each 10 s, a checkpoint each 100,000 rows."""
        return cls._preset(
            overrides,
            wal_dir="/tmp/wal",
            sync_interval_ms=10_000,
            checkpoint_interval=100_000,
            enable_compression=False,
        )

    @classmethod
    def production(cls, **overrides: Any) -> Self:
        """Returns the guide's production set-up: 10 GB, a sync each 100 ms, a checkpoint each 100,000 rows.

        The directory is the guide's; pass your own ``wal_dir``.
        """
        return cls._preset(
            overrides,
            wal_dir="/mnt/ssd/oxirs/wal",
            max_wal_size=10_000_000_000,
            sync_interval_ms=100,
            checkpoint_interval=100_000,
            enable_compression=True,
            rotation_policy=RotationPolicy.SizeBased,
            retention_policy=RetentionPolicy.KeepLast(7),
        )

    @classmethod
    def production_balanced(cls, **overrides: Any) -> Self:
        """Returns the guide's balanced production example: as `production`, with a checkpoint each 50,000 rows.

        The directory is the guide's; pass your own ``wal_dir``.
        """
        return cls._preset(
            overrides,
            wal_dir="/mnt/ssd/wal",
            max_wal_size=10_000_000_000,
            sync_interval_ms=100,
            checkpoint_interval=50_000,
            enable_compression=True,
            rotation_policy=RotationPolicy.SizeBased,
            retention_policy=RetentionPolicy.KeepLast(7),
        )

    @classmethod
    def production_maximum_durability(cls, **overrides: Any) -> Self:
        """Returns the guide's strictest example: 50 GB, every write durable, nothing deleted, with a standby.

        This version cannot open it without ``enable_replication=False``. The directory is the guide's; pass
        your own.
        """
        return cls._preset(
            overrides,
            wal_dir="/mnt/nvme/wal",
            max_wal_size=50_000_000_000,
            sync_interval_ms=0,
            checkpoint_interval=10_000,
            enable_compression=True,
            rotation_policy=RotationPolicy.SizeBased,
            retention_policy=RetentionPolicy.KeepAll,
            enable_replication=True,
        )

    @classmethod
    def _preset(cls, overrides: dict[str, Any], **fields: Any) -> Self:
        return cls(**(fields | overrides))


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """Describes a recovery: which directories, how strict, how long, how parallel.

    Raises:
        WalConfigError: a field has the wrong type or value.
        TypeError: a keyword is unknown.

    Example:
        >>> RecoveryConfig(wal_dir="wal", data_dir="data").max_recovery_time_ms
        60000
        >>> RecoveryConfig(max_recovery_time_ms=0)
        Traceback (most recent call last):
        ...
        mmwal.errors.WalConfigError: max_recovery_time_ms=0: must be an int of at least 1; \
give milliseconds, or None for no limit
    """

    # ---- durability: what is believed

    verify_checksums: bool = True
    """Check every entry's checksum before it is applied. ``False`` still checks structure and sequence, and
    the result is marked unverified; it saves little, since checking runs at memory speed."""
    skip_corrupted_entries: bool = False
    """Dangerous: leave damaged entries, and whole transactions that hold one, out instead of raising
    `WalCorruptionError`. Loses acknowledged data, counts what it lost. A torn tail is cut in either mode."""
    strict: bool = False
    """Raise `TornTailError` where the last write was cut short, as a crash leaves it, instead of cutting it off. For a
    log that should be complete: a copy, a backup."""
    target: int | datetime | str | None = None
    """Where to stop: an LSN, an aware datetime or the name of a mark; ``None``: at the end of the log. This
    version accepts and records it; nothing acts on it yet."""

    # ---- persisted: what is recovered

    wal_dir: str | os.PathLike[str] = "/tmp/wal"
    """Directory of the log. Held as ``str``."""
    data_dir: str | os.PathLike[str] | None = None
    """Directory of the matrix and its checkpoints. Held as ``str``."""

    # ---- performance

    max_recovery_time_ms: int | None = 60_000
    """Budget in milliseconds, at least 1; ``None``: no limit. Over it `recover` raises and changes no file."""
    workers: int | None = None
    """Who verifies and copies: 1 is the caller alone, up to 1024 are processes of a pool. ``None``: the caller, but
    threads verify a large log if the kernel is compiled: as many as there are cores, at least 4 and at most 16."""
    kernel: KernelName | None = None
    """As in `WalConfig`."""

    def __post_init__(self) -> None:
        _set_directories(self)
        if self.kernel is not None:
            _check_choice("kernel", self.kernel, KERNELS)
        _check_bool("verify_checksums", self.verify_checksums)
        _check_bool("skip_corrupted_entries", self.skip_corrupted_entries)
        _check_bool("strict", self.strict)
        if self.strict and self.skip_corrupted_entries:
            raise WalConfigError("strict", True, "contradicts skip_corrupted_entries=True; choose one")
        if self.max_recovery_time_ms is not None:
            advice = "give milliseconds, or None for no limit"
            _check_int("max_recovery_time_ms", self.max_recovery_time_ms, 1, None, advice)
        if self.workers is not None:
            advice = "give the number of workers, or None to let recovery choose"
            _check_int("workers", self.workers, 1, 1024, advice)
        _check_target(self.target)


def _set_directories(config: WalConfig | RecoveryConfig) -> None:
    """Holds both directories as str, and refuses one directory for both: each has a control file of that name."""
    wal_dir = _path("wal_dir", config.wal_dir)
    object.__setattr__(config, "wal_dir", wal_dir)
    if config.data_dir is None:
        return
    data_dir = _path("data_dir", config.data_dir)
    object.__setattr__(config, "data_dir", data_dir)
    if os.path.abspath(wal_dir) == os.path.abspath(data_dir):
        raise WalConfigError("data_dir", data_dir, "must not be wal_dir itself; give the matrix its own directory")


def _path(name: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str):
        raise WalConfigError(name, value, "must be a str or a PathLike of str; use pathlib.Path or os.fsdecode")
    if not path or "\0" in path:
        raise WalConfigError(name, value, "must be a path without NUL characters; name a directory")
    return path


def check_vectors(dimension: object, dtype: object, metric: object) -> None:
    """Raises `WalConfigError` for what vectors cannot be; None is left open."""
    if dimension is not None:
        advice = "give the number of values per vector, or None to leave it open"
        _check_int("dimension", dimension, 1, DIMENSION_GREATEST, advice)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("metric", metric, METRICS)


def check_config(config: object) -> None:
    """Raises `WalConfigError` for what is no configuration of a log."""
    if not isinstance(config, WalConfig):
        raise WalConfigError("config", config, "must be a WalConfig; pass WalConfig(wal_dir=...)")


def _check_int(name: str, value: Any, least: int, greatest: int | None, advice: str) -> None:
    known = isinstance(value, int) and not isinstance(value, bool)
    if known and value >= least and (greatest is None or value <= greatest):
        return
    bounds = f"of at least {least:,}" if greatest is None else f"from {least:,} to {greatest:,}"
    raise WalConfigError(name, value, f"must be an int {bounds}; {advice}")


def _check_number(name: str, value: object, advice: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise WalConfigError(name, value, f"must be a finite int or float; {advice}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise WalConfigError(name, value, "must be a bool; use True or False")


def _check_kind(name: str, value: object, kind: type, advice: str) -> None:
    if not isinstance(value, kind):
        raise WalConfigError(name, value, f"must be a {kind.__name__}; {advice}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value is not None and not (isinstance(value, str) and value in choices):
        names = ", ".join(f'"{choice}"' for choice in choices)
        raise WalConfigError(name, value, f"is not known; use one of {names}, or None")


def _check_target(target: object) -> None:
    if target is None:
        return
    if isinstance(target, str):
        if not target:
            raise WalConfigError("target", target, "must not be empty; name a mark, or use None for the end of the log")
    elif isinstance(target, datetime):
        if target.utcoffset() is None:
            raise WalConfigError("target", target, "has no time zone; use datetime.now(timezone.utc) or set tzinfo")
    else:
        _check_int("target", target, 0, None, "give an LSN, an aware datetime or the name of a mark")
