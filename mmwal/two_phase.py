"""`TwoPhaseCommit`: one transaction over several stores, which all commit it or all do not.

    with TwoPhaseCommit({"east": east, "west": west}, log_dir="decisions/") as tpc:
        tpc.prepare({"east": [Operation.Insert("1", vector)], "west": [Operation.Delete("2")]}).commit()

The protocol is two-phase commit with presumed abort (C. Mohan, B. Lindsay, R. Obermarck, "Transaction Management in the
R* Distributed Database Management System", 1986):

    1. prepare    every participant forces a record by which it can commit, whatever happens; refusing is an answer, too
    2. decide     the coordinator forces the decision to commit into its own log; a rollback is not logged
    3. tell       every participant, again and again, until it has acknowledged
    4. forget     the coordinator notes that all know

Not here: what a store does to prepare (`store.py`), what it holds meanwhile (`prepared.py`).

* Only the decision log tells what was decided. A transaction that it does not know, and that nobody is deciding, is
  rolled back: so a crash before step 2 needs no record.
* A participant may be told more than once. One that does not know a transaction has done before what it is told.
* A rollback is told to a participant only once its prepare has ended: the other way round it would prepare for ever.
* One coordinator at a time: the lock of the decision log sees to that, and the global ids carry its name.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import msgspec

from mmwal.config import KernelName, WalConfig
from mmwal.custom import register_entry
from mmwal.disk.interface import Disk
from mmwal.disk.posix import PosixDisk
from mmwal.entry import CustomEntry, WalEntry
from mmwal.errors import (
    ConsistencyError,
    DecisionPendingError,
    PrepareFailedError,
    SyncFailedError,
    TransactionClosedError,
    TransactionError,
    UnavailableError,
    UnknownTransactionError,
)
from mmwal.manager import WalManager
from mmwal.opening import open as open_store
from mmwal.recovery.log_opening import absolute, default_disk
from mmwal.store import VectorStore

Decision = Literal["commit", "rollback"]

_SEGMENT_BYTES = 1 << 20  # of the decision log: a decision takes about 200 bytes
_RELEASE_EVERY = 256  # transactions
_RETRY_S = (0.05, 2.0)  # before a participant is told again: at first, at most
_TRIES_REFUSED = 3  # to tell of a rollback who refused to prepare
_logger = logging.getLogger("mmwal")


class Operation:
    """What a participant is asked to do: `Operation.Insert` and its like hold what the store's methods take."""

    Insert: ClassVar = WalEntry.Insert
    Update: ClassVar = WalEntry.Update
    Upsert: ClassVar = WalEntry.Upsert
    Delete: ClassVar = WalEntry.Delete


class Participant(Protocol):
    """Who takes part in a transaction: a store elsewhere, behind these four calls.

    Each may be called by several threads, and again after a failure. What a call raises is logged, and the call
    repeated, but for `prepare`.
    """

    def prepare(self, gid: str, operations: Sequence[Any]) -> None:
        """Promises that the operations can be committed, as a whole and under this global id, whatever happens.

        Durable on return. What it raises is the refusal; nothing may be left of the operations then.
        """

    def commit(self, gid: str) -> None:
        """Commits what was prepared. Durable on return; nothing to do for a global id that is not in doubt."""

    def rollback(self, gid: str) -> None:
        """Lets go of what was prepared; nothing to do for a global id that is not in doubt."""

    def list_in_doubt(self) -> Sequence[str]:
        """Returns the global ids that are prepared and not decided."""


class StoreParticipant:
    """A `VectorStore` of this process as a `Participant`."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store

    def prepare(self, gid: str, operations: Sequence[Any]) -> None:
        """Raises as the store's methods, `TypeError` for what is no operation; nothing was logged."""
        with self._store.transaction() as txn:
            for operation in operations:
                match operation:
                    case WalEntry.Insert():
                        txn.insert(operation.id, operation.vector, operation.metadata)
                    case WalEntry.Update():
                        txn.update(operation.id, operation.vector, operation.metadata)
                    case WalEntry.Upsert():
                        txn.upsert(operation.id, operation.vector, operation.metadata)
                    case WalEntry.Delete():
                        txn.delete(operation.id)
                    case _:
                        raise TypeError(f"a {type(operation).__qualname__} is no Operation; pass Operation.Insert(...)")
            txn.prepare(gid)

    def commit(self, gid: str) -> None:
        """As `VectorStore.commit_prepared`; durable on return."""
        with suppress(UnknownTransactionError):
            self._store.commit_prepared(gid)

    def rollback(self, gid: str) -> None:
        """As `VectorStore.rollback_prepared`."""
        with suppress(UnknownTransactionError):
            self._store.rollback_prepared(gid)

    def list_in_doubt(self) -> Sequence[str]:
        """As `VectorStore.list_in_doubt`."""
        return [one.gid for one in self._store.list_in_doubt()]


class Decided(msgspec.Struct, frozen=True):
    """In the decision log: a transaction is to be committed by these participants."""

    gid: str
    participants: list[str]


class Ended(msgspec.Struct, frozen=True):
    """In the decision log: every participant has committed it."""

    gid: str


_NAMES = "mmwal.two_phase.commit", "mmwal.two_phase.end"
register_entry(_NAMES[0], Decided)
register_entry(_NAMES[1], Ended)


class Doubt(NamedTuple):
    """A transaction that some participants have prepared and not ended.

    ``decision`` is what they are told as soon as they can be: "commit", or "rollback" where none was logged; None where
    it is not this coordinator's to say, or its caller has not decided yet.
    """

    gid: str
    participants: list[str]
    decision: Decision | None


class GlobalTransaction:
    """A transaction that every participant has prepared; `TwoPhaseCommit.prepare` gives one. For one thread.

    As a ``with`` block it is committed at the end, and rolled back by an exception. One that is dropped is rolled back
    by the next `TwoPhaseCommit.recover`.
    """

    def __init__(self, coordinator: TwoPhaseCommit, gid: str, participants: list[str]) -> None:
        self._coordinator = coordinator
        self.gid = gid
        self.participants = participants
        self._decision: Decision | Literal["unknown"] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._decision is not None or self._coordinator._wal._log.forked:
            return
        if kind is not None:
            # Who is away is told in the background, or by the next coordinator; the block's own error counts.
            with suppress(DecisionPendingError, UnavailableError):
                self.rollback(timeout_ms=1000)
            return
        try:
            self.commit()
        finally:
            if self._decision is None:
                self.rollback()

    def __del__(self) -> None:
        if self._decision is None:  # nobody can decide it any more
            self._coordinator._active.discard(self.gid)

    def commit(self, *, timeout_ms: int | None = 30_000) -> None:
        """Commits it everywhere; does nothing where it is committed already.

        The decision is durable before the first participant is told; from then on a crash changes nothing of it.

        Args:
            timeout_ms: how long to wait until every participant has acknowledged; None: as long as it takes.

        Raises:
            DecisionPendingError: it is committed, and some participants do not answer. They are told again in the
                background, and after a restart.
            TransactionClosedError: it was rolled back; or an earlier call was interrupted.
            WalFullError: no room for the decision. It stays prepared: commit again, or roll it back.
            SyncFailedError: whether it is committed shows when the coordinator is opened again.
            WalClosedError: the coordinator is closed; the next one rolls it back.
            ValueError: ``timeout_ms`` is no such number; nothing is decided.
        """
        _check_timeout(timeout_ms)
        if self._decision == "rollback":
            raise TransactionClosedError(f"transaction {self.gid!r} was rolled back; prepare another one")
        self._check_known()
        if self._decision is None:
            self._decision = "unknown"  # should this be interrupted, or the sync fail: nobody is told
            try:
                self._coordinator._log_commit(self.gid, self.participants)
            except SyncFailedError:
                raise
            except Exception:  # nothing was logged
                self._decision = None
                raise
            self._decision = "commit"
            self._coordinator._finish(self.gid, "commit", self.participants, timeout_ms)

    def rollback(self, *, timeout_ms: int | None = 30_000) -> None:
        """Rolls it back everywhere; does nothing where that was done. Raises as `commit`; `TransactionClosedError`
        where it is committed."""
        _check_timeout(timeout_ms)
        if self._decision == "commit":
            raise TransactionClosedError(f"transaction {self.gid!r} is committed; undo it with another one")
        self._check_known()
        if self._decision is None:
            self._coordinator._check_usable()
            self._decision = "rollback"
            self._coordinator._finish(self.gid, "rollback", self.participants, timeout_ms)

    def _check_known(self) -> None:
        if self._decision == "unknown":
            raise TransactionClosedError(
                f"whether transaction {self.gid!r} is committed shows when its coordinator is opened again"
            )


class TwoPhaseCommit:
    """The coordinator of transactions over several participants.

    Args:
        participants: by name, which must stay what it is over restarts: a `VectorStore` of this process, or a
            `Participant`. One that was opened again takes the place of the old one: ``tpc.participants[name] = store``.
            A list: their names are "0", "1" and so on. None: one, "local", whose store is in ``log_dir/local``.
        log_dir: directory of the decision log, of its own. It must be as safe as the stores: without it, what is in
            doubt can only be decided by hand.
        prepare_timeout_ms: how long a participant may take to prepare.
        kernel: as in `WalConfig`.

    Opening ends what an earlier coordinator left in doubt, see `recover`. Raises as `WalManager`.

    Durability: a participant has forced its prepare record before `prepare` returns, the decision is forced before any
    is told, and `GlobalTransaction.commit` returns once all have committed durably.

    Concurrency: any number of threads, each with what its `prepare` returned.

    Example:
        >>> import tempfile, warnings, mmwal
        >>> warnings.simplefilter("ignore", mmwal.DurabilityWarning)
        >>> root = tempfile.mkdtemp()
        >>> stores = {name: mmwal.open(f"{root}/{name}", dimension=2) for name in ("east", "west")}
        >>> with TwoPhaseCommit(stores, log_dir=f"{root}/decisions") as tpc:
        ...     tpc.prepare([Operation.Insert("1", [1.0, 0.0]), Operation.Insert("2", [0.0, 1.0])]).commit()
        ...     tpc.list_in_doubt()
        []
        >>> [len(store) for store in stores.values()]
        [2, 2]
        >>> for store in stores.values(): store.close()
    """

    def __init__(
        self,
        participants: Mapping[str, VectorStore | Participant] | Sequence[VectorStore | Participant] | None = None,
        log_dir: str | os.PathLike[str] = "two-phase",
        *,
        prepare_timeout_ms: int = 10_000,
        kernel: KernelName | None = None,
        disk: Disk | None = None,
    ) -> None:
        self._prepare_timeout_ms = _checked_timeout("prepare_timeout_ms", prepare_timeout_ms)
        disk = disk or default_disk()
        root = absolute(log_dir)
        self._own = None if participants is not None else open_store(f"{root}/local", disk=disk, kernel=kernel)
        self.participants = _named({"local": self._own} if self._own is not None else participants)
        try:
            self._wal = WalManager(
                WalConfig(wal_dir=root, segment_size=_SEGMENT_BYTES, sync_interval_ms=100, kernel=kernel), disk=disk
            )
        except BaseException:
            if self._own is not None:
                self._own.close()
            raise
        self._begin = _in_thread if type(disk) is PosixDisk else _at_once  # a simulated one belongs to one thread
        control = self._wal._log.control
        self._name = control.identity.history_id.hex()
        self._numbers = itertools.count(1)
        self._incarnation = control.incarnation
        self._closing = False
        self._retry = threading.Condition()  # notified: tell at once who has not acknowledged
        self._lock = threading.Lock()  # guards what follows
        self._active: set[str] = set()  # being prepared, and until they are decided durably
        self._decided: dict[str, tuple[int, list[str]]] = {}  # to commit: where the log ended before, by whom
        self._telling: dict[str, tuple[Decision, dict[str, Future[None]]]] = {}
        self._ended_lsn = self._ended = 0
        self._last: GlobalTransaction | None = None
        try:
            self._read_decisions()
            self.recover()
        except BaseException:
            self.close()
            raise

    # -- a transaction ----------------------------------------------------------------------------------------------

    def prepare(
        self, operations: Sequence[Any] | Mapping[str, Sequence[Any]], *, timeout_ms: int | None = None
    ) -> GlobalTransaction:
        """Lets every participant prepare its operations; returns the transaction, to be committed or rolled back.

        Args:
            operations: a list of `Operation`, for every participant; or a list by the name of the participant.
            timeout_ms: instead of ``prepare_timeout_ms``.

        Raises:
            ValueError: a name is none of a participant's, or there is nothing to do.
            TypeError: ``operations`` is neither, or what stands under a name is no participant.
            PrepareFailedError: a participant refused, its ``__cause__``, or did not answer in time. All that prepared
                are rolled back; one that still works on it is rolled back as soon as it is done.
            WalClosedError, SyncFailedError: the coordinator can decide nothing any more.
        """
        self._check_usable()
        self._last = None
        limit_ms = self._prepare_timeout_ms if timeout_ms is None else _checked_timeout("timeout_ms", timeout_ms)
        plan = self._plan(operations)
        gid = f"{self._name}-{self._incarnation}-{next(self._numbers)}"
        self._active.add(gid)
        preparing: dict[str, Future[None]] = {}
        try:
            for name, wanted in plan.items():
                preparing[name] = self._begin(self._participant(name).prepare, gid, wanted)
            wait(preparing.values(), limit_ms / 1000, return_when="FIRST_EXCEPTION")
            refused = _first_refusal(preparing, limit_ms)
        except BaseException:
            if preparing:
                self._tell(gid, "rollback", list(preparing), preparing)
            else:
                self._active.discard(gid)
            raise
        if refused is not None:
            name, problem = refused
            told = self._tell(gid, "rollback", list(plan), preparing)
            # So that it can be tried again at once. Who refused holds nothing, and who was late is not waited for.
            others = [other for other in plan if other != name and (preparing[name].done() or preparing[other].done())]
            wait([told[other] for other in others if not _has_refused(preparing[other])], limit_ms / 1000)
            raise PrepareFailedError(gid, name, f"{type(problem).__name__}: {problem}") from problem
        self._last = GlobalTransaction(self, gid, list(plan))
        return self._last

    def commit(self, *, timeout_ms: int | None = 30_000) -> None:
        """Commits what `prepare` returned last; see `GlobalTransaction.commit`. Raises `TransactionError` where nothing
        was prepared."""
        self._prepared().commit(timeout_ms=timeout_ms)

    def rollback(self, *, timeout_ms: int | None = 30_000) -> None:
        """Rolls back what `prepare` returned last; see `GlobalTransaction.rollback`. Raises as `commit`."""
        self._prepared().rollback(timeout_ms=timeout_ms)

    def _prepared(self) -> GlobalTransaction:
        if self._last is None:
            raise TransactionError("nothing is prepared; call prepare() first")
        return self._last

    def _plan(self, operations: Sequence[Any] | Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        if not isinstance(operations, Mapping):
            operations = dict.fromkeys(self.participants, _listed("operations", operations))
        plan: dict[str, Sequence[Any]] = {}
        for name, wanted in operations.items():
            self._participant(name)
            if listed := _listed(f"operations[{name!r}]", wanted):
                plan[name] = listed
        if not plan:
            raise ValueError("operations is empty: pass at least one, for at least one participant")
        return plan

    # -- what is in doubt -------------------------------------------------------------------------------------------

    def list_in_doubt(self) -> list[Doubt]:
        """Returns what participants have prepared and not ended. One that does not answer is left out, and logged; but
        what it has not acknowledged of a commit is told. Raises `WalClosedError`, `ForkedProcessError`: then another
        coordinator may be at work, and what it has not decided yet is not this one's to say."""
        self._wal._log.check_usable()
        busy = {*self._active.copy(), *self._telling.copy(), *self._decided.copy()}
        asked = {name: self._begin(self._ask, name) for name in list(self.participants)}
        wait(asked.values(), self._prepare_timeout_ms / 1000)
        found: dict[str, list[str]] = {}
        for name, answer in asked.items():
            problem = "no answer in time" if not answer.done() else answer.exception()
            if problem is not None:
                _logger.warning("two-phase commit: participant %r does not say what is in doubt: %s", name, problem)
                continue
            for gid in answer.result():
                found.setdefault(gid, []).append(name)
        with self._lock:
            for gid, (_, participants) in self._decided.items():
                found.setdefault(gid, participants)
            ended = busy - {*self._active, *self._telling, *self._decided}  # while the participants were asked
            return [Doubt(gid, names, self._decision_on(gid)) for gid, names in found.items() if gid not in ended]

    def recover(self) -> dict[str, Decision]:
        """Ends what is in doubt and this coordinator's to decide: commits what the decision log says, rolls back what
        it does not know and no thread is about to decide. Returns what was ended at the participants that answer.

        It is done on opening; call it when a participant is back. Raises `WalClosedError`.
        """
        self._check_usable()
        told = self._telling.copy()
        self._hurry()
        for doubt in self.list_in_doubt():
            if doubt.decision is not None:
                _, names = self._decided.get(doubt.gid, (0, doubt.participants))
                told[doubt.gid] = doubt.decision, self._tell(doubt.gid, doubt.decision, names)
        wait([answer for _, answers in told.values() for answer in answers.values()], self._prepare_timeout_ms / 1000)
        return {
            gid: decision for gid, (decision, answers) in told.items() if all(map(_has_succeeded, answers.values()))
        }

    def resolve(self, gid: str, decision: Decision, *, timeout_ms: int | None = 30_000) -> None:
        """Decides by hand a transaction that is in doubt: one of another coordinator that is lost for good, say.

        Raises:
            UnknownTransactionError: no participant that answers has it in doubt.
            ValueError: it contradicts what this coordinator has decided; or ``decision`` is none.
            TransactionError: a thread of this coordinator is about to decide it.
            DecisionPendingError: as `GlobalTransaction.commit`.
            WalClosedError, ForkedProcessError: as `list_in_doubt`; nothing was decided.
        """
        _check_timeout(timeout_ms)
        if decision not in ("commit", "rollback"):
            raise ValueError(f"decision={decision!r}: must be 'commit' or 'rollback'")
        doubt = next((doubt for doubt in self.list_in_doubt() if doubt.gid == gid), None)
        if doubt is None:
            raise UnknownTransactionError(gid)
        if doubt.decision is None and self._is_own(gid):
            raise TransactionError(f"transaction {gid!r} is about to be decided by who prepared it")
        if doubt.decision not in (None, decision):
            raise ValueError(f"transaction {gid!r} is decided: {doubt.decision}; some may have done so. Call recover()")
        if decision == "commit" and doubt.decision is None:
            self._log_commit(gid, doubt.participants)
        self._finish(gid, decision, doubt.participants, timeout_ms)

    def _decision_on(self, gid: str) -> Decision | None:
        if gid in self._telling:
            return self._telling[gid][0]
        if gid in self._active:
            return None
        if gid in self._decided:
            return "commit"
        return "rollback" if self._is_own(gid) else None

    def _is_own(self, gid: str) -> bool:
        return gid.startswith(f"{self._name}-")

    def _ask(self, name: str) -> Any:
        gids = list(self._participant(name).list_in_doubt())
        for gid in gids:
            if not isinstance(gid, str):
                raise TypeError(f"its list_in_doubt() gave a {type(gid).__name__}, {gid!r}; it must give global ids")
        return gids

    # -- the decision log -------------------------------------------------------------------------------------------

    def _read_decisions(self) -> None:
        before_lsn = self._wal.oldest_lsn
        for entry in self._wal.replay():
            if getattr(entry, "name", None) in _NAMES and not entry.known:
                raise ConsistencyError(
                    self._wal._log.wal_dir,
                    "an entry of the decision log cannot be read; open it with the mmwal that wrote it",
                    lsn=entry.lsn,
                )
            match getattr(entry, "operation", None):
                case Decided(gid=gid, participants=participants):
                    self._decided[gid] = (before_lsn, participants)
                case Ended(gid=gid):
                    self._decided.pop(gid, None)
                    self._ended_lsn = entry.lsn
            before_lsn = entry.lsn

    def _log_commit(self, gid: str, participants: list[str]) -> None:
        """Forces the decision to commit."""
        self._active.add(gid)
        with self._lock:  # before it is logged: from then on the log must be kept for it
            self._decided[gid] = (self._wal.last_lsn, participants)
        try:
            self._wal.log_entry(CustomEntry(Decided(gid, participants)), durable=True)
        except SyncFailedError:
            raise  # nobody knows until recovery, so nobody is told
        except Exception:
            with self._lock:
                del self._decided[gid]
            raise
        self._active.discard(gid)

    def _note_end(self, gid: str) -> None:
        """Notes that every participant knows. Not forced: told again, they have nothing to do."""
        with suppress(UnavailableError):  # full, or closed: at worst they are told again
            self._ended_lsn = self._wal.log_entry(CustomEntry(Ended(gid)))
        with self._lock:
            self._decided.pop(gid, None)
            self._ended += 1
            is_due = self._ended % _RELEASE_EVERY == 0
        if is_due:
            self._release()

    def _release(self) -> None:
        """Lets go of the decision log up to the first decision that not everybody knows."""
        with self._lock:
            needed_lsn = min([self._ended_lsn, *(lsn for lsn, _ in self._decided.values())])
        with suppress(UnavailableError):  # closed, or failed: it stays a little longer
            self._wal.release(needed_lsn)

    # -- telling ----------------------------------------------------------------------------------------------------

    def _finish(self, gid: str, decision: Decision, participants: list[str], timeout_ms: int | None) -> None:
        """Tells the participants and waits for them. Raises `DecisionPendingError`."""
        told = self._tell(gid, decision, participants)
        wait(told.values(), None if timeout_ms is None else timeout_ms / 1000)
        missing = {
            name: str(answer.exception()) if answer.done() else "no answer yet"
            for name, answer in told.items()
            if not _has_succeeded(answer)
        }
        if missing:
            raise DecisionPendingError(gid, decision, missing)

    def _tell(
        self,
        gid: str,
        decision: Decision,
        participants: list[str],
        preparing: Mapping[str, Future[None]] | None = None,
    ) -> dict[str, Future[None]]:
        """Begins to tell each participant until it has acknowledged; returns what each will have answered.

        Who is being told already is not told by another thread; who could not be told, is.
        """
        with self._lock:
            begun, told = self._telling.setdefault(gid, (decision, {}))
            if begun != decision:
                raise TransactionError(f"transaction {gid!r} is decided: {begun}")
            names = [name for name in participants if name not in told or _has_refused(told[name])]
            told.update({name: Future() for name in names})

        def tell(name: str) -> None:
            refused = False
            if preparing is not None:
                wait([preparing[name]])
                refused = _has_refused(preparing[name])
            self._tell_one(name, gid, decision, tries=_TRIES_REFUSED if refused else None)

        def work(name: str) -> None:
            try:
                tell(name)
            except Exception as error:  # noqa: BLE001 (it is handed on)
                told[name].set_exception(error)
            else:
                told[name].set_result(None)
                self._note_told(gid, decision, told)

        for name in names:
            try:
                self._begin(work, name)
            except RuntimeError as error:  # no thread can be started; recover() tries again
                told[name].set_exception(error)
        return told

    def _note_told(self, gid: str, decision: Decision, told: dict[str, Future[None]]) -> None:
        """Forgets a transaction once every participant has acknowledged."""
        with self._lock:
            if gid not in self._telling or not all(map(_has_succeeded, told.values())):
                return
            del self._telling[gid]
        if decision == "commit":
            self._note_end(gid)
        self._active.discard(gid)

    def _tell_one(self, name: str, gid: str, decision: Decision, tries: int | None) -> None:
        """Tells one until it has acknowledged. Who refused to prepare has promised to hold nothing: it is told a few
        times, and then left to `recover`."""
        pause_s, most_s = _RETRY_S
        for attempt in itertools.count(1):
            try:
                participant = self._participant(name)
                (participant.commit if decision == "commit" else participant.rollback)(gid)
            except Exception as error:
                _logger.warning("two-phase commit: participant %r, %s of %s: %s", name, decision, gid, error)
                if attempt == tries:
                    return
                with self._retry:
                    if self._closing or (self._retry.wait(pause_s) and self._closing):
                        raise
                pause_s = min(2 * pause_s, most_s)
            else:
                return

    def _participant(self, name: str) -> Participant:
        try:
            found = self.participants[name]
        except KeyError:
            known = ", ".join(map(repr, self.participants))
            raise ValueError(f"{name!r} is no participant; the participants are {known}") from None
        _check_participant(name, found)
        return StoreParticipant(found) if isinstance(found, VectorStore) else found

    # -- ends -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the decision log. Idempotent. The participants stay open; the next one ends what is in doubt."""
        if not self._closing:
            self._closing = True
            self._hurry()
            if not self._wal._log.failed:
                self._release()
        try:
            self._wal.close()
        finally:
            if self._own is not None:
                self._own.close()

    def _hurry(self) -> None:
        with self._retry:
            self._retry.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        log = self._wal._log
        if log.failed:
            raise log.refusal()
        log.check_usable()


def _named(participants: Any) -> dict[str, VectorStore | Participant]:
    """Returns participants by name. Raises `TypeError`, or `ValueError` for a name that cannot stand in the log."""
    if not isinstance(participants, Mapping):
        if isinstance(participants, str | bytes | VectorStore) or not isinstance(participants, Iterable):
            raise TypeError(
                f"participants is a {type(participants).__name__}; pass a mapping of names to participants, or a list"
            )
        participants = {str(number): participant for number, participant in enumerate(participants)}
    for name, participant in participants.items():
        if type(name) is not str or not name or not _is_utf8(name):
            raise ValueError(f"participant {name!r}: a name is a str of UTF-8, and must stay what it is over restarts")
        _check_participant(name, participant)
    return dict(participants)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_participant(name: str, participant: object) -> None:
    calls = ("prepare", "commit", "rollback", "list_in_doubt")
    missing = [call for call in calls if not callable(getattr(participant, call, None))]
    if missing and not isinstance(participant, VectorStore):
        raise TypeError(
            f"participant {name!r} is a {type(participant).__name__} without {', '.join(missing)}; pass a VectorStore "
            "or a Participant"
        )


def _listed(name: str, operations: Any) -> list[Any]:
    """Returns the operations for one participant. Raises `TypeError` for what is no list of them."""
    if isinstance(operations, str | bytes | WalEntry) or not isinstance(operations, Iterable):
        raise TypeError(f"{name} is a {type(operations).__qualname__}; pass a list of Operation")
    return list(operations)


def _check_timeout(timeout_ms: int | None) -> None:
    if timeout_ms is not None:
        _checked_timeout("timeout_ms", timeout_ms)


def _checked_timeout(name: str, timeout_ms: int) -> int:
    if type(timeout_ms) is not int or timeout_ms < 0:
        raise ValueError(f"{name}={timeout_ms!r}: must be an int of milliseconds, 0 or more")
    return timeout_ms


def _has_succeeded(answer: Future[None]) -> bool:
    return answer.done() and answer.exception() is None


def _has_refused(answer: Future[None]) -> bool:
    return answer.done() and answer.exception() is not None


def _first_refusal(preparing: Mapping[str, Future[None]], limit_ms: int) -> tuple[str, BaseException] | None:
    """Returns who did not prepare, and why; None where all did."""
    for name, answer in preparing.items():
        if _has_refused(answer) and (problem := answer.exception()) is not None:
            return name, problem
    late = [name for name, answer in preparing.items() if not answer.done()]
    return (late[0], TimeoutError(f"no answer in {limit_ms} ms")) if late else None


def _at_once(act: Callable[..., Any], *args: Any) -> Future[Any]:
    """Does something, and returns how it ended."""
    future: Future[Any] = Future()
    try:
        future.set_result(act(*args))
    except Exception as error:  # noqa: BLE001 (it is handed on)
        future.set_exception(error)
    return future


def _in_thread(act: Callable[..., Any], *args: Any) -> Future[Any]:
    """Begins to do something in a thread of its own, which nobody needs to wait for: a participant may never answer."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(act(*args))
        except BaseException as error:  # noqa: BLE001 (it is handed on)
            future.set_exception(error)

    threading.Thread(target=work, name="mmwal-two-phase", daemon=True).start()
    return future
