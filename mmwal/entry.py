"""What a caller logs and reads back, and what operations report.

`WalEntry` and its kinds are for reading a log entry by entry, and for `log_entry`. The named tuples `Record`
and `Hit` are what a store answers with; `CheckpointInfo`, `RecoveryStats`, `WalMetrics` and what verification
returns are reports: frozen, printable. At the end stand the two functions that turn what a caller passed as
vectors into arrays that can be logged as they are.

* Bytes on disk are not here: frames are in `format/frame.py`, metadata in `format/metadata.py`.
* The hot path does not come here: the kernel takes an array of the right type as it is, and asks for help
otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from mmwal.errors import VectorError

Id: TypeAlias = str | int
Metadata: TypeAlias = dict[str, Any]
OperationName: TypeAlias = Literal["insert", "update", "delete", "upsert"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(timestamp_ns: int) -> datetime:
    """Returns a time in nanoseconds as an aware datetime, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=timestamp_ns // 1000)


def nanoseconds(time: datetime) -> int:
    """Returns an aware time in nanoseconds. Raises `TypeError`, or `ValueError` for one without a zone, or out of
    reach of 64 bits: the years 1678 to 2261 are not."""
    if not isinstance(time, datetime):
        raise TypeError(
            f"timestamp={time!r} is a {type(time).__name__}; pass an aware datetime, such as datetime.now(UTC)"
        )
    if time.utcoffset() is None:
        raise ValueError(f"timestamp={time!r} has no time zone; pass an aware datetime, such as datetime.now(UTC)")
    since = time - _EPOCH
    found = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000
    if not -(1 << 63) < found < 1 << 63:
        raise ValueError(f"timestamp={time!r} is out of range; pass one of the years 1678 to 2261")
    return found


# ---- entries


class WalEntry:
    """One entry of a log; its kinds are `WalEntry.Insert`, ``Update``, ``Delete``, ``Upsert``, ``Batch``,
    ``Commit``, ``Prepare``, ``Rollback``, ``Checkpoint`` and ``Custom``.

    Entries read from a log carry ``lsn`` (the position just past the entry), ``timestamp_ns`` (nanoseconds
    since 1970 UTC) and ``txn`` (0: none), and their vectors are read-only arrays of the log's dtype. In an
    entry that a caller makes these three stay 0; the log sets them.

    Two entries are equal if all their fields are, vectors value by value and of one dtype.

    Example:
        >>> vector = np.ones(2, np.float32)
        >>> entry = WalEntry.Insert("doc-1", vector, lsn=8448, timestamp_ns=1_700_000_000_123_456_789)
        >>> match entry:
        ...     case WalEntry.Insert(id=id, vector=vector):
        ...         print(id, vector, entry.timestamp.isoformat())
        doc-1 [1. 1.] 2023-11-14T22:13:20.123456+00:00
    """

    __slots__ = ()
    Insert: ClassVar[type[Insert]]
    Update: ClassVar[type[Update]]
    Delete: ClassVar[type[Delete]]
    Upsert: ClassVar[type[Upsert]]
    Batch: ClassVar[type[Batch]]
    Commit: ClassVar[type[Commit]]
    Prepare: ClassVar[type[Prepare]]
    Rollback: ClassVar[type[Rollback]]
    Checkpoint: ClassVar[type[Checkpoint]]
    Custom: ClassVar[type[Custom]]

    kind: ClassVar[str]
    lsn: int
    timestamp_ns: int
    txn: int

    @property
    def timestamp(self) -> datetime:
        """When it was logged: an aware datetime in UTC, cut to microseconds."""
        return utc(self.timestamp_ns)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]  # every kind is one
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        return hash((type(self), self.lsn))


def _same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


@dataclass(frozen=True, slots=True, eq=False)
class Insert(WalEntry):
    """A new id with its vector."""

    __qualname__ = "WalEntry.Insert"
    kind: ClassVar[str] = "insert"
    id: Id
    vector: npt.NDArray[Any]
    metadata: Metadata | None = None
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Update(WalEntry):
    """A new vector, new metadata or both for an id; ``None`` means "as it was"."""

    __qualname__ = "WalEntry.Update"
    kind: ClassVar[str] = "update"
    id: Id
    vector: npt.NDArray[Any] | None = None
    metadata: Metadata | None = None
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Upsert(WalEntry):
    """A vector for an id, new or not; ``metadata=None`` keeps what an existing id has."""

    __qualname__ = "WalEntry.Upsert"
    kind: ClassVar[str] = "upsert"
    id: Id
    vector: npt.NDArray[Any]
    metadata: Metadata | None = None
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Delete(WalEntry):
    """The end of an id."""

    __qualname__ = "WalEntry.Delete"
    kind: ClassVar[str] = "delete"
    id: Id
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch(WalEntry):
    """Several rows of one operation, logged as one entry: all of them or none.

    ``vectors`` is (n, d), or ``None`` for deletes; ``metadata`` has one item per row, or is ``None`` if no
    row has any.
    """

    __qualname__ = "WalEntry.Batch"
    kind: ClassVar[str] = "batch"
    operation: OperationName
    ids: Sequence[Id]
    vectors: npt.NDArray[Any] | None = None
    metadata: Sequence[Metadata | None] | None = None
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def singles(self) -> Iterator[Insert | Update | Upsert | Delete]:
        """Yields each row as an entry of its own, with this entry's LSN and time."""
        where = {"lsn": self.lsn, "timestamp_ns": self.timestamp_ns, "txn": self.txn}
        for row, id in enumerate(self.ids):
            if self.operation == "delete":
                yield Delete(id, **where)
                continue
            vector = None if self.vectors is None else self.vectors[row]
            metadata = None if self.metadata is None else self.metadata[row]
            kind: Any = {"insert": Insert, "update": Update, "upsert": Upsert}[self.operation]
            yield kind(id, vector, metadata, **where)


@dataclass(frozen=True, slots=True, eq=False)
class Commit(WalEntry):
    """The end of transaction ``txn``: its entries begin at ``first_lsn`` and hold ``rows`` rows. Only the log
    makes it."""

    __qualname__ = "WalEntry.Commit"
    kind: ClassVar[str] = "commit"
    first_lsn: int
    rows: int
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepare(WalEntry):
    """The promise that transaction ``txn`` can be committed: by the ``gid`` that its coordinator gave it, whatever
    happens meanwhile. Its entries begin at ``first_lsn`` and hold ``rows`` rows. Only the log makes it."""

    __qualname__ = "WalEntry.Prepare"
    kind: ClassVar[str] = "prepare"
    gid: str
    first_lsn: int
    rows: int
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rollback(WalEntry):
    """The end of transaction ``txn``, which counts for nothing. Only the log makes it."""

    __qualname__ = "WalEntry.Rollback"
    kind: ClassVar[str] = "rollback"
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint(WalEntry):
    """A mark that checkpoint ``seq`` is durable; replay for it starts at ``redo_lsn``. Only the log makes it."""

    __qualname__ = "WalEntry.Checkpoint"
    kind: ClassVar[str] = "checkpoint"
    seq: int
    redo_lsn: int
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0


@dataclass(frozen=True, slots=True)
class CustomEntry:
    """What a caller logs of a type of its own: see `mmwal.register_entry`.

    ``operation`` is a value of a registered type; ``timestamp`` an aware time of the caller's, or None. When it was
    logged, the log notes by itself.
    """

    operation: Any
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Custom(WalEntry):
    """A custom entry. ``name`` is that of its type; where that is not registered, ``known`` is False and the operation
    is the bytes that were logged."""

    __qualname__ = "WalEntry.Custom"
    kind: ClassVar[str] = "custom"
    entry: CustomEntry
    name: str = ""
    known: bool = True
    _: dataclasses.KW_ONLY
    lsn: int = 0
    timestamp_ns: int = 0
    txn: int = 0

    @property
    def operation(self) -> Any:
        """What was logged."""
        return self.entry.operation


WalEntry.Insert = Insert
WalEntry.Update = Update
WalEntry.Upsert = Upsert
WalEntry.Delete = Delete
WalEntry.Batch = Batch
WalEntry.Commit = Commit
WalEntry.Prepare = Prepare
WalEntry.Rollback = Rollback
WalEntry.Checkpoint = Checkpoint
WalEntry.Custom = Custom


# ---- what a store answers with


class Record(NamedTuple):
    """What a store holds for an id. ``vector`` is a copy; ``lsn`` is that of the entry that wrote the row last."""

    id: Id
    vector: npt.NDArray[Any]
    metadata: Metadata | None
    lsn: int


class Hit(NamedTuple):
    """One result of a search, best first: ``score`` is the inner product, the cosine, or the squared l2 distance."""

    id: Id
    score: float
    metadata: Metadata | None


class InDoubt(NamedTuple):
    """A transaction that is prepared and not decided: the global id that its coordinator gave it, the LSN of its
    prepare record, when that was logged (UTC), and how many rows it writes."""

    gid: str
    lsn: int
    timestamp: datetime
    rows: int


# ---- reports


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint did: it holds everything up to ``lsn``, and replay for it starts at ``redo_lsn``."""

    sequence: int
    lsn: int
    redo_lsn: int
    elapsed_ms: float
    bytes_written: int
    rows_changed: int
    live_rows: int


RecoveryPhase = Literal["verify", "copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryProgress:
    """How far a recovery is: bytes of the log verified, or of vectors copied. ``seconds_left`` is an estimate for the
    phase from its pace so far, None before anything of it is done."""

    phase: RecoveryPhase
    done_bytes: int
    total_bytes: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryStats:
    """What a recovery found and did.

    ``total_entries`` is the sum of ``applied_entries``, ``skipped_entries`` (an update or delete of an id
    that is not there, or a row that the checkpoint holds already), ``corrupted_entries``,
    ``rolled_back_entries`` (of transactions without a commit), ``in_doubt_entries`` (of transactions that are prepared
    and not decided; ``in_doubt`` has their global ids) and ``marker_entries`` (commits, checkpoints, idle marks:
    nothing to apply). A corrupted entry is counted only where ``skip_corrupted_entries`` left it out: one
    for each damaged stretch of the log, which ``errors`` names. ``unverified``: ``verify_checksums`` was off.

    Before a recovery all is zero and ``completed`` is False; after a failed one the counts go as far as it
    came and ``errors`` says why.

    Raises:
        ValueError: the counts do not add up.

    Example:
        >>> print(RecoveryStats())
        recovery: not completed, after an unclean shutdown
          entries: 0 (0 applied, 0 skipped, 0 corrupted, 0 rolled back, 0 markers)
          log: LSN 0 to 0, 0 bytes scanned in 0 segments by 0 workers in 0.0 ms
          checkpoint: none, replay from LSN 0
          tail: whole
    """

    completed: bool = False
    clean_shutdown: bool = False
    total_entries: int = 0
    applied_entries: int = 0
    skipped_entries: int = 0
    corrupted_entries: int = 0
    rolled_back_entries: int = 0
    in_doubt_entries: int = 0
    marker_entries: int = 0
    recovery_time_ms: float = 0.0
    bytes_scanned: int = 0
    segments: int = 0
    workers: int = 0
    first_lsn: int = 0
    last_lsn: int = 0
    torn_tail_bytes: int = 0
    checkpoint_sequence: int = 0
    redo_lsn: int = 0
    unverified: bool = False
    in_doubt: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (
            self.applied_entries
            + self.skipped_entries
            + self.corrupted_entries
            + self.rolled_back_entries
            + self.in_doubt_entries
            + self.marker_entries
        )
        if self.total_entries != parts:
            raise ValueError(
                f"total_entries is {self.total_entries}, its parts add up to {parts}; count each entry once"
            )

    def __str__(self) -> str:
        checkpoint = f"number {self.checkpoint_sequence}" if self.checkpoint_sequence else "none"
        in_doubt = f"{self.in_doubt_entries:,} in doubt, " if self.in_doubt else ""
        entries = (
            f"{self.total_entries:,} ({self.applied_entries:,} applied, {self.skipped_entries:,} skipped, "
            f"{self.corrupted_entries:,} corrupted, {self.rolled_back_entries:,} rolled back, "
            f"{in_doubt}{self.marker_entries:,} markers)"
        )
        scan = (
            f"{self.bytes_scanned:,} bytes scanned in {self.segments:,} segments by {self.workers} workers "
            f"in {self.recovery_time_ms:.1f} ms"
        )
        done = "completed" if self.completed else "not completed"
        lines = [
            f"recovery: {done}, after {'a clean' if self.clean_shutdown else 'an unclean'} shutdown",
            f"  entries: {entries}",
            f"  log: LSN {self.first_lsn} to {self.last_lsn}, {scan}",
            f"  checkpoint: {checkpoint}, replay from LSN {self.redo_lsn}",
            f"  tail: {f'torn, {self.torn_tail_bytes:,} bytes cut' if self.torn_tail_bytes else 'whole'}",
            *(["  unverified: checksums were not checked"] if self.unverified else []),
            *(f"  in doubt: transaction {gid!r}, until it is committed or rolled back" for gid in self.in_doubt),
            *(f"  note: {note}" for note in self.notes),
            *(f"  error: {error}" for error in self.errors),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` takes."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in _fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class WalMetrics:
    """A snapshot of a log's counters. MB are 10^6 bytes; positions keep oldest <= redo <= durable <=
    published <= reserved.

    ``current_size_mb`` is the live log (reserved minus redo), ``max_size_mb`` its budget, ``preallocated_mb``
    the segments prepared and not yet used. ``append_waits`` counts the appends that waited for a segment.
    """

    current_size_mb: float
    max_size_mb: float
    preallocated_mb: float
    reserved_lsn: int
    published_lsn: int
    durable_lsn: int
    redo_lsn: int
    oldest_lsn: int
    syncs: int
    avg_sync_latency_ms: float
    max_sync_latency_ms: float
    rotations: int
    checkpoints: int
    append_waits: int
    kernel: str

    def __str__(self) -> str:
        sizes = f"{self.current_size_mb:,.1f} of {self.max_size_mb:,.1f} MB live"
        positions = (
            f"oldest {self.oldest_lsn}, redo {self.redo_lsn}, durable {self.durable_lsn}, "
            f"published {self.published_lsn}, reserved {self.reserved_lsn}"
        )
        latency = f"{self.avg_sync_latency_ms:.3f} ms on average, {self.max_sync_latency_ms:.3f} ms at most"
        lines = [
            f"log: {sizes}, {self.preallocated_mb:,.1f} MB prepared, kernel {self.kernel}",
            f"  LSN: {positions}",
            f"  syncs: {self.syncs:,}, {latency}",
            f"  segments: {self.rotations:,} rotations, {self.append_waits:,} appends waited for one",
            f"  checkpoints: {self.checkpoints:,}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` takes."""
        return dict(_fields(self))


Severity: TypeAlias = Literal["damaged", "covered", "torn"]
_ADVICE: dict[Severity, str] = {
    "damaged": "restore what is named from a backup of this directory, and check the disk; all else is whole",
    "covered": "nothing is lost: another copy stands in for it. Take a backup now, and check the disk",
    "torn": "what a crash leaves, or a writer at work: opening the directory for writing puts it in order",
}


@dataclass(frozen=True, slots=True)
class EntryReport:
    """What verification says of one entry of a log.

    ``segment`` is the path of its file, ``offset`` its place in it, ``lsn`` the position just past it: what logging
    it returned, but for members of a transaction, which count with the LSN of its commit.
    """

    segment: str
    offset: int
    lsn: int
    checksum_valid: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that verification found wrong on disk.

    ``what`` names the kind of place: an entry, a segment header, a row and so on. ``severity`` says what it amounts to:
    "damaged" (something is lost here), "covered" (a copy elsewhere says the same) or "torn" (no damage: what a crash
    leaves behind the end of the log, or what opening writes anew).
    """

    what: str
    severity: Severity
    path: str
    problem: str
    offset: int | None = None
    lsn: int | None = None
    id: Id | None = None

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self.severity]

    def __str__(self) -> str:
        facts = (("offset", self.offset), ("LSN", self.lsn), ("id", self.id))
        place = "".join(f", {name} {value!r}" for name, value in facts if value is not None)
        return f"{self.severity} {self.what}: {self.path}{place}: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What verification looked at, and what it found.

    ``ok`` says that nothing is damaged, not even a copy. Counts are of what was looked at: whole or damaged.
    """

    findings: tuple[Finding, ...] = ()
    segments: int = 0
    entries: int = 0
    slots: int = 0
    sections: int = 0
    rows: int = 0
    bytes_read: int = 0
    first_lsn: int = 0
    last_lsn: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is whole; what a crash leaves is no damage."""
        return not self.damage

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that are damage."""
        return tuple(finding for finding in self.findings if finding.severity != "torn")

    def __str__(self) -> str:
        lines = [
            f"verify: {'whole' if self.ok else f'{len(self.damage):,} damaged'}, {self.bytes_read:,} bytes read",
            f"  log: LSN {self.first_lsn} to {self.last_lsn}, {self.entries:,} entries in {self.segments:,} segments",
            f"  data: {self.rows:,} rows, {self.sections:,} image sections, {self.slots:,} control slots",
            *(f"  {finding}" for finding in self.findings),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` takes."""
        counts = {name: value for name, value in _fields(self) if name != "findings"}
        return {"ok": self.ok, **counts, "findings": [dataclasses.asdict(finding) for finding in self.findings]}


@dataclass(frozen=True, slots=True)
class LogReport(Sequence[EntryReport]):
    """What verification says of a log: a sequence with a report of each entry, oldest first, and in ``whole`` what it
    found in headers, links, footers and control slots as well.
    """

    entries: tuple[EntryReport, ...]
    whole: VerifyReport

    @property
    def ok(self) -> bool:
        """Whether everything is whole."""
        return self.whole.ok

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything that was found, entries included."""
        return self.whole.findings

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> EntryReport: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[EntryReport, ...]: ...
    def __getitem__(self, index: int | slice) -> EntryReport | tuple[EntryReport, ...]:
        return self.entries[index]


def _fields(report: RecoveryStats | WalMetrics | VerifyReport) -> list[tuple[str, Any]]:
    return [(field.name, getattr(report, field.name)) for field in dataclasses.fields(report)]


# ---- what a caller passes as vectors


def plain_lsn(name: str, lsn: object) -> int:
    """Returns an LSN that a caller passed. Raises `TypeError` or `ValueError`, which name the argument."""
    if isinstance(lsn, bool) or not isinstance(lsn, int | np.integer):
        raise TypeError(f"{name}={lsn!r} is a {type(lsn).__name__}; pass an LSN, the int that a write returned")
    if lsn < 0:
        raise ValueError(f"{name}={lsn}: an LSN is at least 0; pass the int that a write returned")
    return int(lsn)


def check_timeout(timeout: object) -> None:
    """Raises `TypeError` or `ValueError` for what is neither None nor a number of seconds."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number):
        raise TypeError(f"timeout={timeout!r} is a {type(timeout).__name__}; pass seconds, or None for no end")
    if math.isnan(timeout):
        raise ValueError(f"timeout={timeout!r}: pass seconds, or None for no end")


def normalize_vector(
    vector: object, dtype: npt.DTypeLike, dimension: int | None = None, allow_nonfinite: bool = False
) -> npt.NDArray[Any]:
    """Returns ``vector`` as a one-dimensional, C-contiguous, aligned array of ``dtype``; copies only if it must.

    Args:
        vector: anything that NumPy reads as a row of real numbers. Ints become floats and wide floats narrow
            ones, unless one overflows to infinity; ``int8`` takes integers from -128 to 127 only.
        dtype: float32, float16 or int8.
        dimension: how many values there must be; ``None`` or 0: any number but none.
        allow_nonfinite: accept NaN and infinity.

    Raises:
        VectorError: wrong type, shape, dimension or value; it names what was expected and what was found.

    Example:
        >>> normalize_vector([1, 2], "float32", 2)
        array([1., 2.], dtype=float32)
        >>> normalize_vector([1.0, 2.0, 3.0], "float32", 2)
        Traceback (most recent call last):
        ...
        mmwal.errors.VectorError: expected a vector of dimension 2, found 3; pass 2 values
    """
    array = _numbers(vector, "a vector")
    if array.ndim != 1:
        raise VectorError(f"expected a vector of shape (d,), found shape {array.shape}; {_shape_advice(array)}")
    if dimension and array.shape[0] != dimension:
        raise VectorError(
            f"expected a vector of dimension {dimension}, found {array.shape[0]}; pass {dimension} values"
        )
    if array.shape[0] == 0:
        raise VectorError("expected a vector with at least one value, found none; pass its values")
    return _convert(array, np.dtype(dtype), allow_nonfinite)


def normalize_matrix(
    vectors: object, n: int, dtype: npt.DTypeLike, dimension: int | None = None, allow_nonfinite: bool = False
) -> npt.NDArray[Any]:
    """Returns ``vectors`` as an (n, d), C-contiguous, aligned array of ``dtype``; copies only if it must.

    Args and Raises as `normalize_vector`, with ``n`` rows, one for each id.
    """
    array = _numbers(vectors, "vectors", dimension)
    if array.ndim == 1 and array.shape[0] == 0 and n == 0:
        array = array.reshape(0, dimension or 0)
    if array.ndim != 2:
        raise VectorError(f"expected vectors of shape ({n}, d), found shape {array.shape}; pass one row for each id")
    if array.shape[0] != n:
        raise VectorError(f"expected {n} vectors, one for each id, found {array.shape[0]}; pass {n} rows")
    if dimension and array.shape[1] != dimension:
        raise VectorError(
            f"expected vectors of dimension {dimension}, found {array.shape[1]}; pass rows of {dimension} values"
        )
    if n and array.shape[1] == 0:
        raise VectorError("expected vectors with at least one value, found none; pass their values")
    return _convert(array, np.dtype(dtype), allow_nonfinite)


def _shape_advice(array: npt.NDArray[Any]) -> str:
    if array.ndim == 2 and 1 in array.shape:
        return "use .ravel()"
    return "log several vectors with one of the *_many methods" if array.ndim == 2 else "pass a sequence of numbers"


def _numbers(values: object, what: str, dimension: int | None = None) -> npt.NDArray[Any]:
    """Returns what NumPy makes of ``values``, refused unless it is of ints or floats."""
    if isinstance(values, bytes | bytearray):
        raise VectorError(f"expected {what} of numbers, found {type(values).__name__}; use np.frombuffer")
    if isinstance(values, np.ma.MaskedArray):
        raise VectorError(f"expected {what} of numbers, found a masked array; use .filled() to say what stands there")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise VectorError(_unreadable(values, what, dimension, error)) from error
    if array.dtype.kind not in "iuf":
        raise VectorError(
            f"expected {what} of numbers, found {_kind_of(values, array)}; convert to an array of ints or floats first"
        )
    return array


def _kind_of(values: object, array: npt.NDArray[Any]) -> str:
    if array.ndim == 0 and array.dtype.kind == "O":
        return f"a {type(values).__name__}"
    return f"dtype {array.dtype}"


def _unreadable(values: object, what: str, dimension: int | None, error: Exception) -> str:
    """Says why NumPy could not read ``values``: the first row of another length if that is it."""
    if isinstance(values, list | tuple) and all(hasattr(row, "__len__") for row in values):
        expected = dimension or len(values[0])
        for index, row in enumerate(values):
            if len(row) != expected:
                found = f"found {len(row)} in row {index}"
                return f"expected vectors of dimension {expected}, {found}; pass rows of one length"
    return f"expected {what} of numbers, found what NumPy cannot read ({error}); pass an array of ints or floats"


def _convert(array: npt.NDArray[Any], dtype: np.dtype[Any], allow_nonfinite: bool) -> npt.NDArray[Any]:
    """Returns ``array`` as ``dtype``, contiguous and aligned: itself if it is so already."""
    if dtype.kind == "i":
        return _convert_to_int(array, dtype)
    with np.errstate(over="ignore"):
        converted = np.require(array, dtype, ["C", "A"])
    finite = np.isfinite(converted)
    if finite.all():
        return converted
    lost = ~finite if not allow_nonfinite else ~finite & np.isfinite(array)
    if lost.any():
        place = _first(lost)
        value = array[place]
        advice = "replace it, or set allow_nonfinite=True"
        if np.isfinite(value):
            advice = "it is too large: scale the vectors" + (" or use float32" if dtype.itemsize == 2 else "")
        raise VectorError(f"expected finite values of {dtype}, found {value!s} at {_place(place)}; {advice}")
    return converted


def _convert_to_int(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    limits = np.iinfo(dtype)
    if array.dtype.kind == "f":
        raise VectorError(
            f"expected integers for a log of {dtype}, found {array.dtype}; "
            f"quantize first: np.rint(scale * vector).astype(np.{dtype})"
        )
    if array.dtype != dtype:
        outside = (array < limits.min) | (array > limits.max)
        if outside.any():
            place = _first(outside)
            raise VectorError(
                f"expected integers from {limits.min} to {limits.max}, "
                f"found {array[place]} at {_place(place)}; quantize to that range first"
            )
    return np.require(array, dtype, ["C", "A"])


def _first(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _place(place: tuple[int, ...]) -> str:
    return f"index {place[0]}" if len(place) == 1 else f"row {place[0]}, index {place[1]}"
