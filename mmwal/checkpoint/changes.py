"""What changed since the checkpoint before, as columns: for a delta section, or everything for a base.

All of it is told from the table of rows. With p the LSN of the checkpoint before and c that of this one, of the rows
touched since,

    p < born <= c < died            is new, and its id is written with it
    born <= p < died <= c           is in limbo: that checkpoint names it, this one does not. Its id was deleted,
                                    unless it is among the new

Every row of the two kinds is pinned, by p's slot or by the capture, so nothing here changes while it is read; what
happens to other rows meanwhile puts them into neither kind. Reads take no lock; the checksums of new rows are stored
under the state's lock, since the table may grow.

Work in Python goes in slices with a breath in between, in which other threads get the GIL without waiting for the
interpreter's switch interval.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmwal.entry import Id
from mmwal.format.image import DELETED, IdColumn, row_seeds
from mmwal.kernel.interface import Kernel
from mmwal.state.rows import visible
from mmwal.state.state import Capture, State

_SLICE_ROWS = 256
_BREATH_S = 50e-6

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """The columns of a section: deleted ids are at the end of ``ids``, with row -1."""

    ids: bytes
    rows: I64
    lsns: npt.NDArray[np.uint64]
    checksums: npt.NDArray[np.uint32]
    metadata: list[bytes | None]
    limbo: I64
    new_rows: int


def changes_since(kernel: Kernel, state: State, capture: Capture) -> Change:
    """Returns what changed since the checkpoint before, and remembers the checksums of new rows."""
    touched = np.unique(np.array(capture.touched, np.int64))
    died = state.rows.died[touched]
    born = state.rows.born[touched]
    since, until = np.uint64(capture.since_lsn), np.uint64(capture.applied_lsn)
    new = touched[(since < born) & (born <= until) & (until < died)]
    left = (born <= since) & (since < died) & (died <= until)
    limbo, limbo_died = touched[left], died[left]
    # 1. The new rows: their ids and checksums.
    ids, checksums, metadata = _columns(kernel, state, new)
    with state.lock:
        state.rows.checksums[new] = checksums
    # 2. The ids that are gone.
    names = state.rows.ids
    kept = {names[row] for row in new.tolist()}
    gone = [index for index, row in enumerate(limbo.tolist()) if names[row] not in kept]
    for part in _slices(len(gone)):
        ids.add([_known(names[row]) for row in limbo[gone[part]].tolist()])
    return Change(
        ids.block(),
        np.concatenate((new, np.full(len(gone), DELETED))),
        np.concatenate((state.rows.born[new], limbo_died[gone])),
        np.concatenate((checksums, np.zeros(len(gone), np.uint32))),
        metadata + [None] * len(gone),
        limbo,
        len(new),
    )


def everything(state: State, capture: Capture, limbo: I64) -> Change:
    """Returns all that is alive in a capture, after `changes_since` has remembered the checksums."""
    table = state.rows
    high = capture.rows_high
    rows = np.flatnonzero(visible(table.born[:high], table.died[:high], capture.applied_lsn))
    ids, metadata = IdColumn(), []
    for part in _slices(len(rows)):
        numbers = rows[part].tolist()
        ids.add([_known(table.ids[row]) for row in numbers])
        metadata += [table.metadata[row] for row in numbers]
    return Change(ids.block(), rows, table.born[rows], table.checksums[rows], metadata, limbo, len(rows))


def row_checksums(kernel: Kernel, state: State, rows: I64, raw_ids: list[bytes]) -> npt.NDArray[np.uint32]:
    """Returns the checksums of rows whose ids have these bytes."""
    checksums = np.empty(len(rows), np.uint32)
    matrix = state.matrix
    seeds = row_seeds(raw_ids, state.rows.born[rows])
    kernel.row_checksums(matrix.view, rows, matrix.row_bytes, matrix.stride, seeds, checksums)
    return checksums


def _columns(kernel: Kernel, state: State, rows: I64) -> tuple[IdColumn, npt.NDArray[np.uint32], list[bytes | None]]:
    table = state.rows
    ids, metadata = IdColumn(), []
    checksums = np.empty(len(rows), np.uint32)
    for part in _slices(len(rows)):
        numbers = rows[part].tolist()
        raw_ids = ids.add([_known(table.ids[row]) for row in numbers])
        metadata += [table.metadata[row] for row in numbers]
        checksums[part] = row_checksums(kernel, state, rows[part], raw_ids)
    return ids, checksums, metadata


def _slices(count: int) -> Iterator[slice]:
    """Yields slices over ``count`` items, and lets other threads run between them."""
    held = threading.Lock()
    held.acquire()
    for start in range(0, count, _SLICE_ROWS):
        if start:
            held.acquire(timeout=_BREATH_S)  # held for ever: this waits without the GIL
        yield slice(start, min(start + _SLICE_ROWS, count))


def _known(id: Id | None) -> Id:
    assert id is not None, "a row that a checkpoint names has an id"
    return id
