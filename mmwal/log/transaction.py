"""A transaction in the log: member frames, and the commit frame by which they count together or not at all.

One that is prepared has a frame that says so, and by which name; its commit or rollback may follow at any time, even
by a later process.

Not here: rows to frames (`batch.py`), what a caller sees of a transaction (`mmwal/transaction.py`), how one is read
back (`reader.py`, `recovery/recover.py`).

* Between the first member and the end of the transaction the log keeps every segment from that member on; behind the
  commit frame, until it is released as a whole.
* Members without a commit frame count for nothing, whoever reads them, and so may be left anywhere.
* Frames of other writers may stand between members.
* What ends a prepared transaction is logged once: a store whose thread is interrupted over it takes no more writes.
* A store keeps the log for its prepared transactions by itself (`mmwal/prepared.py`).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mmwal.format.frame import COMMIT, HEADER_BYTES, Kind, align, pack_ids

if TYPE_CHECKING:
    from mmwal.log.log import Log

COMMIT_BYTES = align(HEADER_BYTES + COMMIT.size)


def prepare_bytes(gid: str) -> int:
    """Returns the size of a prepare frame."""
    return align(HEADER_BYTES + COMMIT.size + len(pack_ids([gid])))


class Frame(NamedTuple):
    """A frame to be logged: blocks that `format.frame` packed, or None."""

    kind: int
    dtype: int
    rows: int
    payload: Any
    ids: Any
    metadata: Any

    @property
    def size(self) -> int:
        """Bytes of the frame in the log."""
        return align(HEADER_BYTES + sum(0 if block is None else memoryview(block).nbytes for block in self[3:]))


class LogTransaction:
    """An open transaction of a log. Used by one thread at a time."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._number = log.new_transaction()
        self._spans = {} if log.has_owner else log.keeper.transactions  # a store's redo point lies in no transaction
        self.first_lsn = 0
        self.prepared_lsn = 0  # of the prepare frame; 0: there is none
        self._members = self._rows = self._members_crc = 0
        self._may_count = False  # the commit frame may stand in the log, though nobody was told
        self._spans[self._number] = (log.cursor.published, 0)

    @classmethod
    def of_prepared(
        cls, log: Log, number: int, *, first_lsn: int, prepared_lsn: int, members: int, rows: int, members_crc: int
    ) -> Self:
        """Returns a transaction that an earlier process prepared, to be decided; for a log that a store owns."""
        transaction = cls.__new__(cls)
        transaction._log, transaction._number, transaction._spans = log, number, {}
        transaction.first_lsn, transaction.prepared_lsn = first_lsn, prepared_lsn
        transaction._members, transaction._rows, transaction._members_crc = members, rows, members_crc
        transaction._may_count = False
        return transaction

    def append(self, frame: Frame) -> None:
        """Logs a member. Raises as `Log.settle`; the member is not logged then, and may be appended again."""
        attached = self._log.attached()
        lsn = self._log.append_frame(frame.kind, frame.dtype, frame.rows, self._number, *frame[3:])
        start_lsn = lsn - frame.size
        self.first_lsn = self.first_lsn or start_lsn
        self._members += 1
        self._rows += frame.rows
        self._members_crc = zlib.crc32(self._log.checksum_at(start_lsn, attached), self._members_crc)

    def prepare(self, gid: str) -> int:
        """Logs the prepare frame; returns its LSN. Raises as `append`."""
        ids = pack_ids([gid])
        lsn = self._log.append_frame(Kind.PREPARE, 0, self._members, self._number, self._summary(), ids)
        self.prepared_lsn = lsn
        return lsn

    def commit(self) -> int:
        """Logs the commit frame; returns its LSN, which is that of every row. Raises as `append`."""
        lsn = self._end(Kind.COMMIT, self._members, self._summary())
        self._spans[self._number] = (self.first_lsn, lsn)
        return lsn

    def rollback(self) -> int:
        """Logs that a prepared transaction counts for nothing; returns the LSN of that. Raises as `commit`."""
        return self._end(Kind.ROLLBACK, 0, None)

    def _summary(self) -> bytes:
        """Returns what the frames behind the members say of them."""
        return COMMIT.pack(first_lsn=self.first_lsn, rows=self._rows, members_crc=self._members_crc, reserved=0)

    def _end(self, kind: int, members: int, content: bytes | None) -> int:
        append = self._log.append_decision if self.prepared_lsn else self._log.append_frame
        self._may_count = True  # should the thread be interrupted
        try:
            return append(kind, 0, members, self._number, content)
        except Exception:  # refused: only an interrupt comes between the frame and its return
            self._may_count = False
            raise

    def abandon(self) -> None:
        """Lets the log go that the members stand in, unless they may count. Idempotent."""
        if not self._may_count:
            self._spans.pop(self._number, None)
