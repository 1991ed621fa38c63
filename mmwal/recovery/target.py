"""A point in the past of a store: which position of the log a time means, and the log up to a position.

Not here: reading the store as of then (`read_only.py`).

* A position counts with everything whose LSN is not above it; a transaction has the LSN of its commit.
* A time counts with everything before the first entry that is later: the time of an entry is the running maximum in
  the order of the log, so a clock that was set back moves nothing out of order.
* Nothing is changed. Sealed segments that lie behind a position are not verified: damage there does not matter, unless
  it hides where the log ends.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from mmwal.errors import WalConfigError
from mmwal.format.frame import ALIGNMENT, LENGTH_MASK, ROW_KINDS, Kind
from mmwal.format.segment import data_start
from mmwal.recovery.recover import Index, check_reaches, order
from mmwal.recovery.tail import Survey
from mmwal.recovery.workers import Range, Workers

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel
    from mmwal.log.reader import Extent
    from mmwal.recovery.read_only import LogReading

_TIMED_KINDS = sorted({*ROW_KINDS, Kind.COMMIT, Kind.PREPARE, Kind.ROLLBACK, Kind.CHECKPOINT, Kind.CUSTOM})


def index_until(
    kernel: Kernel, workers: Workers, judged: Survey, redo_lsn: int, pinned_lsn: int, until_lsn: int
) -> Index:
    """As `recover.build_index`, of the log as it was at a position. Raises `WalConfigError` for one behind its end."""
    if until_lsn > judged.end_lsn:
        raise WalConfigError("target", until_lsn, f"the log ends at LSN {judged.end_lsn}; give that or less")
    check_reaches(judged.control, pinned_lsn)
    ranges = [
        Range(info, max(pinned_lsn, info.first_lsn), judged.end_of(info))
        for info in judged.segments
        if judged.end_of(info) > max(pinned_lsn, info.first_lsn) and info.first_lsn < until_lsn
    ]
    extents = [_until(extent, until_lsn) for extent in workers.scan(kernel, ranges, verify=True)]
    index = Index(extents, redo_lsn, until_lsn, pinned_lsn=pinned_lsn)
    order(index)
    return index


def _until(extent: Extent, until_lsn: int) -> Extent:
    frames = extent.frames
    ends = frames["start_lsn"].astype(np.int64) + (frames["commit"] & LENGTH_MASK).astype(np.int64) * ALIGNMENT
    return replace(extent, frames=frames[ends <= until_lsn])


def position_at(kernel: Kernel, log: LogReading, time_ns: int) -> int:
    """Returns the position that a time means: where the first entry begins that is later, or the end of the log.

    Raises `WalConfigError` where the log begins with a later one, and what was before is gone.
    """
    reached = log.segments[0][0].first_lsn == data_start(0, log.identity.segment_bytes) if log.segments else True
    for extent in log.extents(kernel, 0, log.end_lsn):
        entries = extent.frames[np.isin(extent.frames["kind"], _TIMED_KINDS)]
        later = np.flatnonzero(entries["time_ns"].astype(np.int64) > time_ns)
        sooner = int(later[0]) if len(later) else len(entries)
        reached = reached or sooner > 0
        if len(later):
            first = entries[sooner]
            if not reached:
                raise WalConfigError(
                    "target",
                    f"{datetime.fromtimestamp(time_ns / 1e9, UTC)}",
                    f"the log begins with an entry of {datetime.fromtimestamp(int(first['time_ns']) / 1e9, UTC)}, and "
                    "what was before is gone; give that or later, or take an older backup",
                )
            return int(first["start_lsn"])
    return log.end_lsn
