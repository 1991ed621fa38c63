"""The background acts on segments: runway ahead of the cursor, sealing behind the durable end, retirement of the old.

Not here: what is done to one file (`segment.py`), the append path (`log.py`), syncing the frames (`gate.py`).

One worker runs `step`; so does nobody else. Invariants:

* A segment is attached only with durable blocks, header and name, and only while the live bytes stay within budget.
* Footer, then link, each durable, in the order of the log; only after every frame below is durable.
* The control file says durably that segments may be gone before the first of them is touched; the oldest goes first.
* No transaction is cut in two, whoever wrote it: what ends behind the released LSN is kept from its first frame on.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmwal.disk.interface import Disk, Worker
from mmwal.errors import DamageError
from mmwal.format.frame import ALIGNMENT, COMMIT, LENGTH_MASK, Kind
from mmwal.format.segment import data_end, data_start
from mmwal.kernel.interface import RING_SLOTS
from mmwal.log.control import LogControl
from mmwal.log.reader import read_extents
from mmwal.log.segment import Predecessor, Segment, prepare_segment, segment_name, spare_name

if TYPE_CHECKING:
    from mmwal.disk.interface import SyncGate
    from mmwal.kernel.interface import Cursor, Kernel

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_PRESSURE = 0.8


class Keeper:
    """Keeps segments attached ahead of the cursor and lets go of them behind it."""

    def __init__(
        self,
        disk: Disk,
        kernel: Kernel,
        wal_dir: str,
        control: LogControl,
        cursor: Cursor,
        gate: SyncGate,
        *,
        attached: dict[int, Segment],
        sealed: list[int],
        spares: list[str],
        runway_segments: int,
        live_bytes_max: int,
        inherited_end_lsn: int,
        on_failure: Callable[[OSError], None],
    ) -> None:
        self._disk = disk
        self._kernel = kernel
        self._wal_dir = wal_dir
        self._control = control
        self._cursor = cursor
        self._gate = gate
        self._segment_bytes = control.identity.segment_bytes
        self._runway_segments = runway_segments
        self.live_bytes_max = live_bytes_max
        self._inherited_end_lsn = inherited_end_lsn  # of transactions of earlier processes; 0: there are none to mind
        self._on_failure = on_failure
        self._attached = (
            attached  # the keeper writes, appenders and the gate read; a dict item is set or deleted at once
        )
        self._populated = max(attached)
        self._spares = spares
        self.sealed = sealed
        self.released_lsn = control.released_lsn  # release() writes, the keeper reads; only grows
        # Appenders write, the keeper reads and deletes: number -> where it begins or less, its LSN (0: still open).
        self.transactions: dict[int, tuple[int, int]] = {}
        self._readings: set[object] = set()  # readers of this process add and take out, the keeper looks
        self.idle_lsn = 0  # of the last idle mark, durable; the sync worker writes, the keeper reads
        self.on_pressure: Callable[[], None] = lambda: None
        self.changed = disk.condition()
        self.attempts = 0
        self.full: OSError | None = None
        self.over_budget = False
        self.lending = False  # appenders set it: one segment more than the budget has room for
        self.rotations = 0
        self.worker: Worker | None = None

    def step(self) -> float | None:
        """Does what is due. A full disk is remembered for whoever waits; any other failure ends the log."""
        try:
            self.seal_behind()
            self._retire()
            self._note_idle()
            self._extend_ahead()
            self.full = None
        except OSError as error:
            if error.errno in NO_SPACE:
                self.full = error
            else:
                self._on_failure(error)
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
        return None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While it lasts, a segment that is not needed any more loses its name, and its blocks are not reused."""
        one = object()
        self._readings.add(one)
        try:
            yield
        finally:
            self._readings.discard(one)

    @property
    def live_bytes(self) -> int:
        """Bytes of the log that replay would need."""
        return self._cursor.reserved - self.needed_lsn

    @property
    def needed_lsn(self) -> int:
        """Where the log begins that somebody needs: the released LSN, or an earlier one of a transaction that is open
        or ends behind it."""
        released_lsn = self.released_lsn
        spans = self.transactions.copy().values()
        return min([released_lsn, *(first for first, commit in spans if not 0 < commit <= released_lsn)])

    @property
    def prepared_bytes(self) -> int:
        """Bytes of segments and spares that hold nothing yet."""
        ahead = max(self._attached, default=0) - self._cursor.reserved // self._segment_bytes
        return (max(ahead, 0) + len(self._spares)) * self._segment_bytes

    def seal_behind(self) -> None:
        """Seals every attached segment that is durable to its end, and lets go of its mapping."""
        lowest = min(self._attached)
        if self._cursor.reserved // self._segment_bytes - lowest > RING_SLOTS // 2:
            self._gate.sync(self._cursor.published)
        while self._cursor.durable >= data_end(lowest, self._segment_bytes) and lowest + 1 in self._attached:
            self._seal(self._attached[lowest], self._attached[lowest + 1])
            lowest += 1

    def _seal(self, segment: Segment, following: Segment) -> None:
        end_lsn = data_end(segment.number, self._segment_bytes)
        predecessor = segment.seal(segment.scan(self._kernel), end_lsn)
        following.link(predecessor)
        self._cursor.detach(segment.number)
        del self._attached[segment.number]
        self.sealed.append(segment.number)
        self.rotations += 1

    def _retire(self) -> None:
        durable_lsn = self._cursor.durable
        released_lsn = min(self.released_lsn, durable_lsn)  # never behind the log's durable end
        if self.sealed and self.sealed[0] < max(released_lsn - 1, 0) // self._segment_bytes:
            self._recall_transactions(released_lsn)
        oldest_lsn = self._oldest_needed(released_lsn)
        floor = max(oldest_lsn - 1, 0) // self._segment_bytes
        unneeded = [number for number in self.sealed if number < floor]
        if not unneeded:
            return
        self._control.write_both(oldest_lsn=oldest_lsn, released_lsn=released_lsn, durable_lsn=durable_lsn)
        readers = bool(self._readings) or self._disk.has_readers(self._control.path)
        for number in unneeded:
            path = f"{self._wal_dir}/{segment_name(number)}"
            if readers or len(self._spares) >= self._runway_segments:
                self._disk.unlink(path)
            else:
                spare = spare_name(self._disk)
                self._disk.rename(path, f"{self._wal_dir}/{spare}")
                self._spares.append(spare)
            self.sealed.remove(number)
        self._disk.sync_directory(self._wal_dir)

    def _note_idle(self) -> None:
        """Notes in the control file, too, how far the log was durable when a burst ended: damage that takes the end of
        the log takes the mark that stands there as well. In both slots, since sectors may be swapped."""
        if self.idle_lsn > self._control.durable_lsn:
            self._control.write_both(durable_lsn=self.idle_lsn)

    def _recall_transactions(self, lsn: int) -> None:
        """Learns, once, of the transactions of earlier processes that end behind ``lsn``."""
        end_lsn, oldest_lsn, size = self._inherited_end_lsn, self._control.oldest_lsn, self._segment_bytes
        if lsn < end_lsn:
            start_lsn = data_start((lsn - 1) // size, size)
            identity = self._control.identity
            try:
                for extent in read_extents(self._disk, self._kernel, self._wal_dir, identity, start_lsn, end_lsn):
                    for frame in extent.frames[extent.frames["kind"] == Kind.COMMIT]:
                        fields = COMMIT.unpack(extent.blocks(frame)[0])
                        commit_lsn = int(frame["start_lsn"]) + (int(frame["commit"]) & LENGTH_MASK) * ALIGNMENT
                        first_lsn = fields["first_lsn"] if fields else oldest_lsn
                        self.transactions[int(frame["txn"])] = first_lsn, commit_lsn
            except DamageError:  # reading will say so; until it is released as a whole, nothing of it goes
                self.transactions[0] = oldest_lsn, end_lsn
        self._inherited_end_lsn = 0

    def _oldest_needed(self, lsn: int) -> int:
        """Returns ``lsn``, or less: where the first transaction begins of those that end behind it."""
        needed = [lsn]
        for txn, (first_lsn, commit_lsn) in list(self.transactions.items()):
            if 0 < commit_lsn <= lsn:
                del self.transactions[txn]
            else:
                needed.append(first_lsn)
        return min(needed)

    def _extend_ahead(self) -> None:
        size = self._segment_bytes
        if self.live_bytes > _PRESSURE * self.live_bytes_max:
            self.on_pressure()
        while True:
            active = self._cursor.reserved // size
            self._populate(active + 1)
            number = max(self._attached) + 1
            if number > active + self._runway_segments or number - min(self._attached) >= RING_SLOTS - 1:
                return
            end = (number + 1) * size
            self.over_budget = end - self.needed_lsn > self.live_bytes_max
            if self.over_budget:
                if end - self._cursor.reserved <= self.live_bytes_max:  # else no checkpoint could make room for it
                    self.on_pressure()
                if not self.lending:
                    return
                self.lending = False
            self._attach(self._prepare(number, None))

    def _prepare(self, number: int, previous: Predecessor | None) -> Segment:
        spare = self._spares.pop() if self._spares else None
        return prepare_segment(
            self._disk, self._wal_dir, self._control.identity, number, spare=spare, previous=previous
        )

    def _attach(self, segment: Segment) -> None:
        self._attached[segment.number] = segment
        self._cursor.attach(segment.number, segment.view, segment.salt)
        with self.changed:
            self.changed.notify_all()

    def _populate(self, number: int) -> None:
        # Populating dirties every page, so it comes late: one segment ahead, in time for the cursor.
        if number > self._populated and number in self._attached:
            self._attached[number].mapping.populate(0, self._segment_bytes)
            self._populated = number
