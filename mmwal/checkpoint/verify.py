"""Rows against the checksums that a checkpoint recorded: for verification, scrubbing and tests."""

from __future__ import annotations

from dataclasses import dataclass

from mmwal.checkpoint.changes import row_checksums
from mmwal.entry import Id
from mmwal.format.frame import encode_id
from mmwal.kernel.interface import Kernel
from mmwal.state.state import State

_SLICE_ROWS = 4096


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row whose bytes are not those that were checkpointed."""

    id: Id
    row: int
    lsn: int


def damaged_rows(kernel: Kernel, state: State) -> list[DamagedRow]:
    """Returns the live rows that the newest checkpoint names and whose checksum differs.

    Concurrency: reads as of now; writes go on.
    """
    found = []
    with state.reading() as view:
        rows = view.rows()
        rows = rows[view.born[rows] <= state.checkpoint_lsn]
        for start in range(0, len(rows), _SLICE_ROWS):
            part = rows[start : start + _SLICE_ROWS]
            records = list(view.records(part))
            checksums = row_checksums(kernel, state, part, [encode_id(id) for id, _, _ in records])
            for index in (checksums != state.rows.checksums[part]).nonzero()[0].tolist():
                found.append(DamagedRow(records[index][0], int(part[index]), records[index][1]))
    return found
