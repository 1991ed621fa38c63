"""The log: one endless sequence of frames, appended, synced, released.

This is the spine of the write path below the store. Not here: segment files (`segment.py`), background acts
(`keeper.py`), reading (`reader.py`), the tail after a crash (`recovery/tail.py`).

Positions, always:  oldest <= released <= durable <= published <= reserved

* A log is built only from the `Tail` that recovery returned.
* An append returns only once `published` covers its own end; so process death loses nothing that returned.
* Nothing can fail between reserve and publish: whatever is wrong is found before.
* A failed sync or a failed write of the log's own files is final: every later write raises the same cause.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmwal.disk.interface import Disk, Lock, SyncGate
from mmwal.entry import check_timeout, plain_lsn
from mmwal.errors import (
    EntryTooLargeError,
    ForkedProcessError,
    SyncFailedError,
    UnavailableError,
    WalClosedError,
    WalFullError,
)
from mmwal.format.frame import Kind
from mmwal.format.segment import data_end, data_start, frame_bytes_max
from mmwal.kernel.interface import (
    ATTENTION,
    BLOCK_BYTES,
    GATE_NS,
    GATE_NS_MAX,
    GATE_SYNCS,
    NOT_READY,
    REFUSED,
    SETTLE,
    STATE,
    TOO_LARGE,
)
from mmwal.log.control import INCARNATION_SHIFT, LogControl
from mmwal.log.gate import PythonGate
from mmwal.log.keeper import Keeper
from mmwal.log.receipt import Callbacks
from mmwal.log.segment import Predecessor, Segment, SegmentInfo, open_segment, prepare_segment, segment_name
from mmwal.log.transaction import COMMIT_BYTES, Frame, LogTransaction, prepare_bytes

if TYPE_CHECKING:
    from mmwal.disk.interface import Worker
    from mmwal.kernel.interface import Kernel

_BURST_END_NS = 50_000_000
_SETTLE_S = 0.001


class OverBudget(Exception):
    """Told to the owner of a log: no segment until a checkpoint releases some. Nothing was logged.

    Not an error: the owner waits outside its lock (`Log.wait_for_room`) and tries again.
    """


class NoRoomForBatch(OverBudget):
    """The same for a batch of several frames that the budget has no room for until checkpoints make some."""


@dataclass(frozen=True)
class Tail:
    """Where a log ends, as recovery found it and made it durable. The only thing a `Log` can be built from."""

    lock: Lock
    control: LogControl
    end_lsn: int
    resume: SegmentInfo | None  # the segment to go on in, after a clean close
    next_number: int  # else the segment to begin
    predecessor: Predecessor
    sealed: list[int] = field(default_factory=list)
    spares: list[str] = field(default_factory=list)


class Log:
    """Appends frames to segments and makes them durable. Safe for any number of threads of one process."""

    def __init__(
        self,
        disk: Disk,
        kernel: Kernel,
        wal_dir: str,
        tail: Tail,
        *,
        sync_interval_ms: int,
        append_timeout_ms: int,
        live_bytes_max: int,
        runway_segments: int,
        check_finite: bool,
        dimension: int = 0,
        owned: bool = False,
    ) -> None:
        """Begins to append behind a tail.

        ``dimension`` is that of a log whose own is not fixed; 0 takes any. ``owned``: by a store, for ever; it must not
        wait for a checkpoint while it holds its lock.
        """
        self._disk = disk
        self.time_ns = disk.time_ns
        self.kernel = kernel
        self.check_finite = check_finite
        self.wal_dir = wal_dir
        self.control = tail.control
        self.identity = tail.control.identity
        self.dimension = self.identity.dimension or dimension
        self.segment_bytes = self.identity.segment_bytes
        self.frame_bytes_max = frame_bytes_max(self.segment_bytes)
        self.sync_interval_ms = sync_interval_ms
        self._append_timeout_s = append_timeout_ms / 1000
        self._lock = tail.lock
        self._cause: OSError | None = None
        self._closed = False
        self.ended = False  # close() sets it last, followers read: published and durable do not move any more
        self.on_durable: set[Callable[[], None]] = set()  # called once `durable` has moved, or will not move any more
        self.show_durable: Callable[[], None] = lambda: None  # before them: a store lets readers see what is durable
        self.settled_lsn: Callable[[], int] = lambda: self.cursor.durable  # durable up to there, and seen
        self.callbacks = Callbacks(self)
        self._told_lsn = 0
        self._sync_asked = False  # whoever asks sets it, then wakes the sync worker, which clears it
        self._transactions = itertools.count(1)  # threads share it; next() is one step
        self.append_waits = 0
        self.has_owner = owned

        # 1. The first segment: the one that recovery left open, or a new one behind the cut.
        segment = self._first_segment(tail)
        # 2. The mark of a clean close goes, durably, before anything is appended. Behind the segment: a log that has
        #    had a writer without that mark has a first segment, or somebody took it.
        self.control.write_both(
            clean=0,
            end_lsn=0,
            owned=int(owned or self.control.owned),
            incarnation=self.control.incarnation + 1,
            durable_lsn=tail.end_lsn,
        )
        # 3. The cursor over it, and the gate that syncs what it publishes.
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._words = self._block.cast("Q")
        self._attached: dict[int, Segment] = {}
        self.cursor = kernel.Cursor(self._block, self.segment_bytes, self.identity.dtype, self.dimension, check_finite)
        self.cursor.start(tail.end_lsn if tail.resume else data_start(segment.number, self.segment_bytes))
        self._attached[segment.number] = segment
        self.cursor.attach(segment.number, segment.view, segment.salt)
        self.gate = self._make_gate()
        # 4. The background: a runway ahead, sealing behind, and a sync at each interval.
        self.keeper = Keeper(
            disk,
            kernel,
            wal_dir,
            self.control,
            self.cursor,
            self.gate,
            attached=self._attached,
            sealed=tail.sealed,
            spares=tail.spares,
            runway_segments=runway_segments,
            live_bytes_max=live_bytes_max,
            inherited_end_lsn=0 if owned else tail.end_lsn,  # a store logs whole transactions, behind its lock
            on_failure=self.poison,
        )
        self.segment_end_lsn = (segment.number + 1) * self.segment_bytes  # appenders read; crossing it wakes the keeper
        self._forget_fork = disk.on_fork(self._forked)
        self._idle_lsn = self._seen_lsn = self.cursor.published  # of the last idle mark; when it was last seen to move
        self._seen_ns = 0
        self._words[ATTENTION // 8] = 1
        try:
            self.keeper.worker = disk.start_worker("keeper", self.keeper.step)
            self._syncer: Worker = disk.start_worker("sync", self._sync_step)
        except BaseException:  # a limit on threads; nobody may work on once the lock is free
            if self.keeper.worker is not None:
                self.keeper.worker.stop()
            self._forget_fork()
            raise

    # -- append ---------------------------------------------------------------------------------------------------

    def append_frame(
        self,
        kind: int,
        dtype: int,
        rows: int,
        txn: int,
        payload: Any = None,
        ids: Any = None,
        metadata: Any = None,
    ) -> int:
        """Logs one frame of blocks that `format.frame` packed; returns its LSN. Raises as `settle`."""

        def attempt() -> int:
            return self.cursor.append_frame(kind, dtype, rows, txn, self.time_ns(), payload, ids, metadata)

        lsn = attempt()
        return lsn if 0 < lsn <= self.segment_end_lsn else self.settle(lsn, attempt)

    def append_transaction(self, frames: Sequence[Frame]) -> int:
        """Logs frames that count together or not at all.

        Returns the LSN of the commit frame, which is the LSN of every row in them. Raises as `settle`; what was
        logged before the commit frame then counts for nothing.
        """
        with self._transaction_of(frames, COMMIT_BYTES) as transaction:
            return transaction.commit()

    def prepare_transaction(self, frames: Sequence[Frame], gid: str) -> LogTransaction:
        """Logs frames that will count together, or not at all, by what is decided later.

        Returns the transaction, to be decided. Raises as `settle`; what was logged then counts for nothing.
        """
        with self._transaction_of(frames, prepare_bytes(gid) + COMMIT_BYTES) as transaction:
            transaction.prepare(gid)
            return transaction

    def append_decision(self, kind: int, dtype: int, rows: int, txn: int, payload: Any = None) -> int:
        """As `append_frame`, for what decides a prepared transaction: where the budget has no room, since the
        transaction itself keeps the log, it is exceeded by a segment."""
        try:
            return self.append_frame(kind, dtype, rows, txn, payload)
        except OverBudget:
            self.keeper.lending = True
            self.wait_for_room()
            return self.append_frame(kind, dtype, rows, txn, payload)

    @contextmanager
    def _transaction_of(self, frames: Sequence[Frame], more_bytes: int) -> Iterator[LogTransaction]:
        """Logs members, for which and for ``more_bytes`` there must be room."""
        self._check_room([*(frame.size for frame in frames), more_bytes])
        transaction = LogTransaction(self)
        try:
            for frame in frames:
                transaction.append(frame)
            yield transaction
        except BaseException:
            transaction.abandon()
            raise

    def attached(self) -> dict[int, Segment]:
        """Returns the segments that are attached now; for `checksum_at`."""
        return self._attached.copy()

    def checksum_at(self, start_lsn: int, attached: dict[int, Segment]) -> bytes:
        """Returns the checksum of a frame, from the mapping unless the segment came and went during the append."""
        number, offset = divmod(start_lsn, self.segment_bytes)
        segment = self._attached.get(number) or attached.get(number)
        if segment is not None:
            return bytes(segment.view[offset + 8 : offset + 12])
        file = self._disk.open(f"{self.wal_dir}/{segment_name(number)}", writable=False)
        try:
            return file.read(offset + 8, 4)
        finally:
            file.close()

    def _check_room(self, lengths: list[int]) -> None:
        """Refuses a batch before its first frame where its last one would not find a segment.

        Raises `WalFullError` where it never will, `NoRoomForBatch` for an owner that can make room.
        """
        size, budget = self.segment_bytes, self.keeper.live_bytes_max
        reserved = end = self.cursor.reserved
        for length in lengths:
            number = end // size
            if end + length > data_end(number, size):
                end = data_start(number + 1, size)
            end += length
        last = end // size
        if end == data_end(last, size):  # nothing ends there before the next segment is ready
            last += 1
        stop = (last + 1) * size
        if stop - reserved > budget:
            raise WalFullError(
                f"a batch of {sum(lengths):,} bytes does not fit into max_wal_size, {budget:,} bytes in whole "
                "segments; nothing was logged. Split it, or raise max_wal_size",
                errno.ENOSPC,
            )
        if self.has_owner and stop - self.keeper.needed_lsn > budget:
            raise NoRoomForBatch

    def new_transaction(self) -> int:
        """Returns a transaction number that this log never used before."""
        return self.control.incarnation << INCARNATION_SHIFT | next(self._transactions)

    def settle(self, result: int, attempt: Callable[[], int]) -> int:
        """Finishes an append whose kernel call did not return a plain LSN within the current segment.

        Raises `WalFullError` (no segment became ready in time: nothing was logged), `WalClosedError`,
        `ForkedProcessError`, `SyncFailedError` or `EntryTooLargeError`; `OverBudget` if it has an owner.
        """
        while result == NOT_READY:
            self._wait_for_segment(patient=not self.has_owner)
            result = attempt()
        if result == REFUSED:
            raise self.refusal()
        if result == TOO_LARGE:
            raise EntryTooLargeError(self.frame_bytes_max + 1, self.frame_bytes_max)
        if result < SETTLE:
            result = self._settle_published(-result)
        if result > self.segment_end_lsn:
            self.segment_end_lsn = -(-result // self.segment_bytes) * self.segment_bytes
            self.wake_keeper()
        return result

    def _settle_published(self, lsn: int) -> int:
        if self._words[ATTENTION // 8]:
            self._words[ATTENTION // 8] = 0
            self._syncer.wake()
        while self.cursor.advance() < lsn:
            with self.keeper.changed:
                self.keeper.changed.wait(_SETTLE_S)
        return lsn

    @property
    def ready(self) -> bool:
        """Whether a frame of up to an eighth of a segment finds its place without waiting, as things stand."""
        reserved, size = self.cursor.reserved, self.segment_bytes
        number = reserved // size
        return data_end(number, size) - reserved >= size // 8 or number + 1 in self._attached

    def wait_for_room(self) -> None:
        """Returns once another segment is attached; for an owner that was told `OverBudget`. Raises `WalFullError`."""
        self._wait_for_segment(patient=True)

    def _wait_for_segment(self, *, patient: bool) -> None:
        keeper = self.keeper
        self.append_waits += 1
        deadline_ns = self._disk.monotonic_ns() + int(self._append_timeout_s * 1e9)
        wanted = self.cursor.reserved // self.segment_bytes + 1
        first_attempt = keeper.attempts
        self.wake_keeper()
        with keeper.changed:
            while wanted not in self._attached and not self._words[STATE // 8]:
                if keeper.full is not None and keeper.attempts > first_attempt:
                    raise WalFullError(
                        f"{self.wal_dir}: no space for the next segment ({keeper.full.strerror}); nothing was logged. "
                        "Free some space, then write again",
                        keeper.full.errno,
                    ) from keeper.full
                if keeper.over_budget and not patient and keeper.attempts > first_attempt:
                    raise OverBudget
                remaining_s = (deadline_ns - self._disk.monotonic_ns()) / 1e9
                if not keeper.changed.wait(max(remaining_s, 0)) and wanted not in self._attached:
                    raise self._no_segment()

    def _no_segment(self) -> WalFullError:
        if self.keeper.over_budget:
            return WalFullError(
                f"{self.keeper.live_bytes:,} live bytes leave no room for another segment within max_wal_size, and "
                f"nothing was released in {self._append_timeout_s:g} s; nothing was logged. Take a checkpoint, call "
                "release(), end the transactions that are open, or raise max_wal_size",
                errno.ENOSPC,
            )
        return WalFullError(
            f"no segment became ready in {self._append_timeout_s:g} s; nothing was logged. The disk may be too slow: "
            "raise append_timeout_ms or runway_segments",
            errno.ETIMEDOUT,
        )

    # -- durability -----------------------------------------------------------------------------------------------

    def make_durable(self, lsn: int, timeout_s: float | None = None) -> None:
        """Returns once ``lsn`` is durable, syncing for everybody who waits or waiting for who does.

        Raises `SyncFailedError`, or `TimeoutError` after ``timeout_s``.
        """
        self._await(self.gate.sync, lsn, timeout_s)

    def wait_durable(self, lsn: int, timeout_s: float | None = None) -> None:
        """Returns once ``lsn`` is durable, leaving the syncing to the interval. Raises as `make_durable`."""
        lsn = plain_lsn("lsn", lsn)
        check_timeout(timeout_s)
        self._await(self.gate.sync if self.sync_interval_ms == 0 else self.gate.wait, lsn, timeout_s)

    def acknowledge(self, lsn: int, durable: bool | None) -> None:
        """Does what a write that is to be durable owes before it returns: `make_durable`; None: it asks for that."""
        if durable is None:
            self.ask_for_sync()
        else:
            self.make_durable(lsn)

    def ask_for_sync(self) -> None:
        """Has the sync worker make everything published so far durable, soon; waits for nothing."""
        self._sync_asked = True
        self._syncer.wake()

    def check_exists(self, lsn: int) -> int:
        """Returns an LSN that a caller passed. Raises `TypeError`, or `ValueError` for one that does not exist yet."""
        lsn = plain_lsn("lsn", lsn)
        if lsn > self.cursor.reserved:
            raise ValueError(f"LSN {lsn} does not exist yet: the log ends at {self.cursor.reserved}")
        return lsn

    def _await(self, how: Callable[[int, float | None], bool], lsn: int, timeout_s: float | None) -> None:
        if self.cursor.durable >= lsn:
            self.show_durable()  # whoever made it durable may not have come to that
            return
        self.check_exists(lsn)
        if self._words[STATE // 8]:
            raise self.refusal()
        try:
            covered = how(lsn, timeout_s)
        except OSError as error:
            self.poison(error)
            raise self.refusal() from error
        if not covered:
            if self._words[STATE // 8]:
                raise self.refusal()
            raise TimeoutError(f"LSN {lsn} was not durable after {timeout_s:g} s; it will be with a later sync")
        self._tell_durable()

    def _sync_step(self) -> float | None:
        """What the sync worker does: what is due, then tells whoever wants to know how far the log is durable. Without
        it nothing would become durable, so what ends it ends all writing."""
        try:
            pause_s = self._sync_due() if not self.failed else None
            durable_lsn = self.cursor.durable
            if durable_lsn != self._told_lsn:
                self._tell_durable()
                self._told_lsn = durable_lsn
        except Exception as error:
            self._end_writing(OSError(errno.EIO, f"the sync worker ended in {error!r}"))
            raise
        return pause_s

    def _tell_durable(self) -> None:
        """Calls who wants to know that `durable` has moved, or will not move any more. No lock of a store is held."""
        self.show_durable()
        for tell in self.on_durable.copy():
            tell()

    def _sync_due(self) -> float | None:
        """Syncs what is dirty; marks the end of a burst once; sleeps while nothing changes."""
        wanted = self.sync_interval_ms > 0
        if self._sync_asked:
            self._sync_asked, wanted = False, True  # before `published` is read: it covers whoever asked
        now_ns, published = self._disk.monotonic_ns(), self.cursor.published
        if published != self._seen_lsn:
            self._seen_lsn, self._seen_ns = published, now_ns
        try:
            if wanted and published > self.cursor.durable:
                self.gate.sync(published)
            elif published == self._idle_lsn:
                return self._fall_asleep()
            elif published == self.cursor.durable and now_ns - self._seen_ns >= _BURST_END_NS:
                self._mark_idle()
        except OSError as error:
            self.poison(error)
            return None
        return self.sync_interval_ms / 1000 or _BURST_END_NS / 1e9

    def _mark_idle(self) -> None:
        mark = self.cursor.append_frame(Kind.IDLE, 0, 0, 0, self.time_ns(), None, None, None)
        if mark == REFUSED:
            return
        if mark == NOT_READY:  # the log is full to the brim: sleep without a mark
            self._idle_lsn = self.cursor.published
            return
        self._idle_lsn = abs(mark)
        self.gate.sync(self._idle_lsn)
        self.keeper.idle_lsn = self._idle_lsn
        self.wake_keeper()

    def _fall_asleep(self) -> float | None:
        self._words[ATTENTION // 8] = 1
        return None if self.cursor.published == self._idle_lsn else 0.0

    # -- ends -----------------------------------------------------------------------------------------------------

    def release(self, lsn: int) -> None:
        """Says that nobody needs the log below ``lsn`` any more; its segments are reused in the background.

        Makes it durable first: a log must not begin behind its end. Raises as `make_durable`.
        """
        lsn = plain_lsn("lsn", lsn)
        if lsn > self.cursor.published:
            raise ValueError(f"LSN {lsn} does not exist yet: the log ends at {self.cursor.published}")
        self.make_durable(lsn)
        if lsn > self.keeper.released_lsn:
            self.keeper.released_lsn = lsn
            self.wake_keeper()

    def poison(self, cause: OSError) -> None:
        """Ends all writing for good: a sync or a write of the log's own files failed."""
        self._end_writing(cause)
        self._tell_durable()

    def stop(self, cause: OSError) -> None:
        """As `poison`, for who holds the lock of a store: it is the sync worker that tells."""
        self._end_writing(cause)
        self._told_lsn = -1
        self._syncer.wake()

    def _end_writing(self, cause: OSError) -> None:
        if self._cause is None:
            self._cause = cause
        self._block[STATE] = 1
        self.gate.wake()
        self._wake_appenders()

    def refusal(self) -> UnavailableError:
        """Returns the error that says why no write is taken."""
        state = bytes(self._block[STATE : STATE + 8])
        if state[2]:
            return ForkedProcessError(
                "this handle belongs to the parent process; open the directory in the child after the parent closed it"
            )
        if state[0]:
            return SyncFailedError(self._cause, self.cursor.durable)
        return WalClosedError("the log is closed; open the directory again")

    @property
    def failed(self) -> bool:
        """Whether the log is poisoned."""
        return bool(self._block[STATE])

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, where the log is dead."""
        return bool(self._block[STATE + 2])

    def close(self, *, clean: bool = True) -> None:
        """Syncs everything, marks the log clean, frees the lock. Idempotent. Raises `SyncFailedError` if a sync failed.

        Durability: on return everything logged is durable, and the next open replays nothing behind the last
        checkpoint.
        """
        if self._closed:
            return
        self._closed = True
        if self._block[STATE + 2]:
            return
        self._block[STATE + 1] = 1
        self._wake_appenders()
        try:
            if clean:
                self._finish()
        finally:
            self._syncer.stop()
            if self.keeper.worker is not None:
                self.keeper.worker.stop()
            self._forget_fork()
            self._lock.release()
            self.ended = True
            self._wake_appenders()
            self._tell_durable()
        if self.failed:
            raise SyncFailedError(self._cause, self.cursor.durable)

    def _finish(self) -> None:
        self._syncer.stop()
        assert self.keeper.worker is not None
        self.keeper.worker.stop()
        self.cursor.advance()  # behind the twin's lock: whoever did not see the log closed has reserved by now
        end_lsn = self.cursor.reserved
        self._settle_published(end_lsn)
        try:
            self.gate.sync(end_lsn)
            self.keeper.seal_behind()
            self.control.write_both(clean=1, end_lsn=end_lsn, durable_lsn=end_lsn)
        except OSError as error:
            self.poison(error)

    def _wake_appenders(self) -> None:
        """Lets those who wait for a segment look at the state word."""
        with self.keeper.changed:
            self.keeper.changed.notify_all()

    def check_usable(self) -> None:
        """Raises `WalClosedError` or `ForkedProcessError`: reading needs no more than that the handle lives."""
        if self._block[STATE + 1] or self._block[STATE + 2]:
            raise self.refusal()

    def wake_keeper(self) -> None:
        """Asks for segments to be prepared, sealed and retired."""
        if self.keeper.worker is not None:
            self.keeper.worker.wake()

    # -- figures --------------------------------------------------------------------------------------------------

    def sync_figures(self) -> tuple[int, int, int]:
        """Returns how many syncs completed, their nanoseconds in all, and the longest."""
        return self._words[GATE_SYNCS // 8], self._words[GATE_NS // 8], self._words[GATE_NS_MAX // 8]

    # -- inside ---------------------------------------------------------------------------------------------------

    def _first_segment(self, tail: Tail) -> Segment:
        if tail.resume:
            segment = open_segment(self._disk, tail.resume)
        else:
            spare = tail.spares.pop() if tail.spares else None
            segment = prepare_segment(
                self._disk, self.wal_dir, self.identity, tail.next_number, spare=spare, previous=tail.predecessor
            )
        segment.mapping.populate(0, self.segment_bytes)
        return segment

    def _make_gate(self) -> SyncGate:
        compiled = self._disk.compiled_gate(self._block, self.segment_bytes) if self.kernel.NAME == "c" else None
        return compiled or PythonGate(
            self._disk, self._block, self.segment_bytes, lambda number: self._attached[number].mapping
        )

    def _forked(self) -> None:
        self._block[STATE + 2] = 1
