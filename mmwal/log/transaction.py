"""A transaction in the log: member frames, and the commit frame by which they count together or not at all.

Not here: rows to frames (`batch.py`), what a caller sees of a transaction (`mmwal/transaction.py`), how one is read
back (`reader.py`, `recovery/recover.py`).

* Between the first member and the end of the transaction the log keeps every segment from that member on; behind the
  commit frame, until it is released as a whole.
* Members without a commit frame count for nothing, whoever reads them, and so may be left anywhere.
* Frames of other writers may stand between members.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from mmwal.format.frame import COMMIT, HEADER_BYTES, Kind, align

if TYPE_CHECKING:
    from mmwal.log.log import Log

COMMIT_BYTES = align(HEADER_BYTES + COMMIT.size)


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
        self._first_lsn = 0
        self._members = self._rows = self._members_crc = 0
        self._may_count = False  # the commit frame may stand in the log, though nobody was told
        self._spans[self._number] = (log.cursor.published, 0)

    def append(self, frame: Frame) -> None:
        """Logs a member. Raises as `Log.settle`; the member is not logged then, and may be appended again."""
        attached = self._log.attached()
        lsn = self._log.append_frame(frame.kind, frame.dtype, frame.rows, self._number, *frame[3:])
        start_lsn = lsn - frame.size
        self._first_lsn = self._first_lsn or start_lsn
        self._members += 1
        self._rows += frame.rows
        self._members_crc = zlib.crc32(self._log.checksum_at(start_lsn, attached), self._members_crc)

    def commit(self) -> int:
        """Logs the commit frame; returns its LSN, which is that of every row. Raises as `append`."""
        content = COMMIT.pack(first_lsn=self._first_lsn, rows=self._rows, members_crc=self._members_crc, reserved=0)
        self._may_count = True  # should the thread be interrupted
        try:
            lsn = self._log.append_frame(Kind.COMMIT, 0, self._members, self._number, content)
        except Exception:  # refused: only an interrupt comes between the frame and its return
            self._may_count = False
            raise
        self._spans[self._number] = (self._first_lsn, lsn)
        return lsn

    def abandon(self) -> None:
        """Lets the log go that the members stand in, unless they may count. Idempotent."""
        if not self._may_count:
            self._spans.pop(self._number, None)
