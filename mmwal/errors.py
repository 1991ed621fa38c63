"""Every error that mmwal raises, as one tree.

Each error carries its facts as attributes and ends its message with what to do.
Errors that a Python programmer would look for under a built-in name also derive from it:
``DuplicateIdError`` is a ``KeyError``, ``VectorError`` a ``ValueError``, ``WalLockedError`` a ``BlockingIOError``.

    WalError
    |-- WalConfigError (ValueError)          a field of a config is wrong
    |-- InputError                           what the caller passed cannot be logged
    |   |-- VectorError (ValueError)             dimension, dtype, shape, NaN or infinity
    |   |-- IdError (ValueError)                 too long, empty, not encodable
    |   |-- IdTypeError (TypeError)              neither str nor int
    |   |-- MetadataError (ValueError)           a value that msgpack would change silently
    |   `-- EntryTooLargeError (ValueError)      does not fit
    |-- DuplicateIdError (KeyError), UnknownIdError (KeyError)
    |-- TransactionError                     a transaction cannot go on
    |   |-- TransactionClosedError               it was committed or rolled back
    |   |-- TransactionConflictError             another writer was first; nothing was logged
    |   |   `-- TransactionInDoubtError              an id waits for the decision on a prepared transaction
    |   |-- DuplicateTransactionError (ValueError)   a global id that is in doubt already
    |   |-- UnknownTransactionError (KeyError)       no transaction of that global id is in doubt
    |   |-- PrepareFailedError                   a participant refused; all rolled back
    |   `-- DecisionPendingError (TimeoutError)  decided, and not every participant knows yet
    |-- LsnUnavailableError (LookupError)    the log does not reach back that far
    |-- UnavailableError                     the handle takes no more writes
    |   |-- WalClosedError, ReadOnlyError, ForkedProcessError, NoStoreError
    |   |-- SyncFailedError (OSError)            a sync failed: the outcome is known after recovery
    |   |-- WalFullError (OSError)               disk or budget exhausted, nothing was logged
    |   `-- CheckpointFailedError                checkpointing has ended for this process
    `-- OpenError                            the directory cannot be opened
        |-- WalLockedError (BlockingIOError)     another writer holds it
        |-- StoreMissingError (FileNotFoundError)    there is none to read
        |-- ForeignDirectoryError                not ours, or of another store
        |-- FormatVersionError                   written by a newer mmwal
        |-- RecoveryTimeoutError                 recovery took longer than it was given
        |-- TornTailError                        the log's last write was cut short, and ``strict`` was asked for
        `-- DamageError                          what is on disk contradicts what was recorded
            |-- WalCorruptionError, HeaderCorruptionError, SegmentMissingError, ConsistencyError
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointFailedError",
    "ConsistencyError",
    "DamageError",
    "DecisionPendingError",
    "DuplicateIdError",
    "DuplicateTransactionError",
    "DurabilityWarning",
    "EntryTooLargeError",
    "ForeignDirectoryError",
    "ForkedProcessError",
    "FormatVersionError",
    "HeaderCorruptionError",
    "IdError",
    "IdTypeError",
    "InputError",
    "LsnUnavailableError",
    "MetadataError",
    "NoStoreError",
    "OpenError",
    "PrepareFailedError",
    "ReadOnlyError",
    "RecoveryTimeoutError",
    "SegmentMissingError",
    "StoreMissingError",
    "SyncFailedError",
    "TornTailError",
    "TransactionClosedError",
    "TransactionConflictError",
    "TransactionError",
    "TransactionInDoubtError",
    "UnavailableError",
    "UnknownIdError",
    "UnknownTransactionError",
    "VectorError",
    "WalClosedError",
    "WalConfigError",
    "WalCorruptionError",
    "WalError",
    "WalFullError",
    "WalLockedError",
]


class WalError(Exception):
    """Base of every error of this package."""


class WalConfigError(WalError, ValueError):
    """A field of a configuration is wrong; ``field`` and ``value`` say which."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field = field
        self.value = value
        super().__init__(f"{field}={value!r}: {problem}")


class InputError(WalError):
    """What the caller passed cannot be logged; nothing was."""


class VectorError(InputError, ValueError):
    """A vector has the wrong dimension, shape or dtype, or holds NaN or infinity."""


class IdError(InputError, ValueError):
    """An id is empty, too long, out of the 64-bit range or not encodable as UTF-8."""


class IdTypeError(InputError, TypeError):
    """An id is neither ``str`` nor ``int`` (``bool`` is refused)."""


class MetadataError(InputError, ValueError):
    """Metadata is not a mapping of plain values, or holds a value that would come back changed."""


class EntryTooLargeError(InputError, ValueError):
    """An entry does not fit into a segment; ``entry_bytes`` and ``entry_bytes_max`` say by how much."""

    def __init__(self, entry_bytes: int, entry_bytes_max: int) -> None:
        self.entry_bytes = entry_bytes
        self.entry_bytes_max = entry_bytes_max
        super().__init__(
            f"an entry of {entry_bytes:,} bytes does not fit: at most {entry_bytes_max:,} fit into a segment; "
            "create the log with a larger segment_size, or store less metadata with the vector"
        )


class DuplicateIdError(WalError, KeyError):
    """``insert`` of an id that exists, or an id twice where it may be once; ``id`` names it."""

    def __init__(
        self, id: str | int, problem: str = "exists already; use update() to change it or upsert() for either"
    ) -> None:
        self.id = id
        super().__init__(f"id {id!r} {problem}")

    __str__ = Exception.__str__


class UnknownIdError(WalError, KeyError):
    """``update`` or ``delete`` of an id that is not there; ``id`` names it."""

    def __init__(self, id: str | int) -> None:
        self.id = id
        super().__init__(f"id {id!r} is not in the store; use insert() to add it or upsert() for either")

    __str__ = Exception.__str__


class TransactionError(WalError):
    """A transaction cannot go on; what it held has no effect unless its commit returned."""


class TransactionClosedError(TransactionError):
    """The transaction was committed or rolled back before."""


class TransactionConflictError(TransactionError):
    """Another writer changed ``id`` since the transaction saw it; nothing was logged."""

    def __init__(self, id: str | int) -> None:
        self.id = id
        super().__init__(
            f"id {id!r} was changed by another writer since this transaction saw it; nothing was logged. "
            "Run the transaction again"
        )


class TransactionInDoubtError(TransactionConflictError):
    """A prepared transaction writes ``id``, and whether it counts is not decided; ``gid`` names it. Nothing was
    logged."""

    def __init__(self, id: str | int, gid: str) -> None:
        self.id = id
        self.gid = gid
        Exception.__init__(
            self,
            f"id {id!r} is written by transaction {gid!r}, which is prepared and in doubt; nothing was logged. Try "
            "again once it is decided, or decide it with commit_prepared() or rollback_prepared()",
        )


class DuplicateTransactionError(TransactionError, ValueError):
    """A transaction with the global id ``gid`` is in doubt already; nothing was logged."""

    def __init__(self, gid: str) -> None:
        self.gid = gid
        super().__init__(f"a transaction {gid!r} is in doubt already; decide it first, or prepare under another gid")


class UnknownTransactionError(TransactionError, KeyError):
    """No transaction with the global id ``gid`` is in doubt: it was decided before, or never prepared."""

    def __init__(self, gid: str) -> None:
        self.gid = gid
        super().__init__(f"no transaction {gid!r} is in doubt; list_in_doubt() names those that are")

    __str__ = Exception.__str__


class PrepareFailedError(TransactionError):
    """A participant refused to prepare, or did not answer in time; everybody rolls back. ``participant`` names it."""

    def __init__(self, gid: str, participant: str, problem: str) -> None:
        self.gid = gid
        self.participant = participant
        super().__init__(
            f"transaction {gid!r}: participant {participant!r} did not prepare ({problem}); it is rolled back "
            "everywhere. Run it again once that is mended"
        )


class DecisionPendingError(TransactionError, TimeoutError):
    """A transaction is decided for good, and ``participants`` do not know yet; they will be told by a later
    `TwoPhaseCommit.recover`. ``decision`` is "commit" or "rollback"."""

    def __init__(self, gid: str, decision: str, participants: dict[str, str]) -> None:
        self.gid = gid
        self.decision = decision
        self.participants = participants
        problems = "; ".join(f"{name!r}: {problem}" for name, problem in participants.items())
        super().__init__(
            f"transaction {gid!r} is decided ({decision}), and not every participant has acknowledged ({problems}); "
            "call recover() once they are back"
        )


class LsnUnavailableError(WalError, LookupError):
    """The log was released up to ``oldest_lsn`` and does not reach back to ``lsn``; or, where ``end_lsn`` is given, it
    holds no entry that ends there."""

    def __init__(self, lsn: int, oldest_lsn: int, end_lsn: int | None = None) -> None:
        self.lsn = lsn
        self.oldest_lsn = oldest_lsn
        self.end_lsn = end_lsn
        super().__init__(
            f"the log does not reach back to LSN {lsn}; it begins at {oldest_lsn}. Start from a snapshot that covers "
            "all before that"
            if end_lsn is None
            else f"no entry ends at LSN {lsn}; the log begins at {oldest_lsn} and was read up to {end_lsn}. If a power "
            "cut took it back, start again from what was durable"
        )


class UnavailableError(WalError):
    """The handle takes no (more) writes."""


class WalClosedError(UnavailableError):
    """The handle was closed; open the directory again."""


class ReadOnlyError(UnavailableError):
    """The handle was opened for reading."""


class ForkedProcessError(UnavailableError):
    """The handle belongs to the parent process; open the directory anew in the child once the parent has closed it."""


class NoStoreError(UnavailableError):
    """The operation needs the store that owns the data, and this log has none."""


class SyncFailedError(UnavailableError, OSError):
    """A sync failed. What was not yet durable may or may not be there after recovery; every later write raises this.

    ``durable_lsn`` is the position below which everything is safe.
    """

    def __init__(self, cause: OSError | None, durable_lsn: int) -> None:
        self.durable_lsn = durable_lsn
        reason = cause.strerror or str(cause) if cause is not None else "unknown cause"
        super().__init__(
            cause.errno if cause is not None else None,
            f"a sync of the log failed ({reason}); all up to LSN {durable_lsn} is durable, what came later is unknown "
            "until recovery. The log takes no more writes: check the disk, then open the directory again",
        )
        self.__cause__ = cause


class WalFullError(UnavailableError, OSError):
    """Disk or budget exhausted; nothing was logged, reads go on, and a later write may succeed again."""

    def __init__(self, problem: str, errno_value: int | None = None) -> None:
        super().__init__(errno_value, problem)


class CheckpointFailedError(UnavailableError):
    """A checkpoint failed on disk; no further one is tried by this process. The log still holds everything."""


LEAVE_OUT = "restore the file from a backup, or leave out what is damaged with 'mmwal recover --skip-corrupted'"


class OpenError(WalError):
    """The directory cannot be opened; nothing in it was changed.

    ``verdict`` is the label of what was found, as `docs/verdicts.md` lists them; None where it is no verdict.
    """

    verdict: str | None = None


class WalLockedError(OpenError, BlockingIOError):
    """Another process has the directory open for writing; ``holder_pid`` names it where known."""

    def __init__(self, path: str, holder_pid: int | None) -> None:
        self.path = path
        self.holder_pid = holder_pid
        holder = f"process {holder_pid}" if holder_pid else "another process"
        super().__init__(f"{path}: {holder} has it open for writing; close it there first, or open with read_only=True")


class StoreMissingError(OpenError, FileNotFoundError):
    """There is no store to be read at ``path``."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: there is no store here to read; check the path, or open it without read_only=True to create one"
        )


class ForeignDirectoryError(OpenError):
    """The directory holds something that is not this store; ``path`` names the file."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(f"{path}: {problem}")


class FormatVersionError(OpenError):
    """A file was written by a newer mmwal."""

    def __init__(self, path: str, found: int, supported: int) -> None:
        self.path = path
        self.found = found
        self.supported = supported
        super().__init__(
            f"{path}: format version {found}, this mmwal reads up to {supported}; open it with a newer mmwal"
        )


class RecoveryTimeoutError(OpenError):
    """Recovery took longer than it was given; ``elapsed_ms`` and ``limit_ms`` say by how much."""

    def __init__(self, elapsed_ms: float, limit_ms: int) -> None:
        self.elapsed_ms = elapsed_ms
        self.limit_ms = limit_ms
        super().__init__(
            f"reading the log took {elapsed_ms:.0f} ms, max_recovery_time_ms allows {limit_ms}; nothing was changed. "
            "Try again with a larger limit, or None for no limit"
        )


class TornTailError(OpenError):
    """The last write of a log was cut short, and ``strict`` was asked for; ``torn_bytes`` stand there."""

    def __init__(self, path: str, lsn: int, torn_bytes: int) -> None:
        self.path = path
        self.lsn = lsn
        self.torn_bytes = torn_bytes
        super().__init__(
            f"{path}: behind LSN {lsn} stand {torn_bytes:,} bytes of a write that was cut short, as a crash leaves it; "
            "nothing was changed. Recover without strict to cut them off, or take a copy that is complete"
        )


class DamageError(OpenError):
    """What is on disk contradicts what was recorded. Carries ``path`` and, where known, ``offset``, ``lsn`` and, of a
    header, ``field``: its name in docs/format.md."""

    def __init__(
        self, path: str, problem: str, *, offset: int | None = None, lsn: int | None = None, field: str | None = None
    ) -> None:
        self.path = path
        self.offset = offset
        self.lsn = lsn
        self.field = field
        facts = (("offset", offset), ("LSN", lsn), ("field", field))
        place = "".join(f", {name} {value}" for name, value in facts if value is not None)
        super().__init__(f"{path}{place}: {problem}")

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.args, self.__dict__))


class WalCorruptionError(DamageError):
    """An entry that was durable is damaged."""

    @property
    def segment(self) -> str:
        """The file, as ``path``."""
        return self.path


class HeaderCorruptionError(DamageError):
    """Both copies of a header or control slot are damaged, or one says what is impossible; ``field`` names the first
    field that is wrong, "magic" or "crc"."""


class SegmentMissingError(DamageError):
    """A segment that holds durable entries is not there."""


class ConsistencyError(DamageError):
    """Checkpoint, log and matrix contradict each other."""


class DurabilityWarning(UserWarning):
    """The place or the setting chosen keeps less than a user would expect."""


def _rebuild(kind: type[DamageError], args: tuple[Any, ...], facts: dict[str, Any]) -> DamageError:
    error = kind.__new__(kind, *args)
    Exception.__init__(error, *args)
    error.__dict__.update(facts)
    return error
