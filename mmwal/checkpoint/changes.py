"""What changed since the checkpoint before, and the columns that say so: of a delta section, or of a base.

All of it is told from the table of rows. With p the LSN of the checkpoint before and c that of this one, of the rows
touched since,

    p < born <= c < died            is new, and its id is written with it
    born <= p < died <= c           is in limbo: that checkpoint names it, this one does not. Its id was deleted,
                                    unless it is among the new

Every row of the two kinds is pinned, by p's slot or by the capture, so nothing here changes while it is read; what
happens to other rows meanwhile puts them into neither kind. Reads take no lock; the checksums of new rows are stored
under the state's lock, since the table may grow.

Long work releases the GIL, and goes in few large slices, since whoever released it may wait for the switch interval of
the interpreter to have it back. What holds the GIL goes in small slices with a breath in between, in which others get
it without waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmwal.format.image import DELETED, BlockColumn, NewColumns
from mmwal.kernel.interface import Kernel
from mmwal.state.rows import distinct, visible
from mmwal.state.state import Capture, State

_SLICE_ROWS = 1 << 16  # of what releases the GIL: a few MB of blocks
_HELD_ROWS = 512  # of what holds it: some 0.1 ms, which another thread may have to wait
_BREATH_S = 50e-6

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Changes:
    """Rows that are new, rows in limbo, and those among them whose ids were deleted."""

    new: I64
    limbo: I64
    deleted: I64

    def __len__(self) -> int:
        return len(self.new) + len(self.deleted)


def changes_since(state: State, capture: Capture) -> Changes:
    """Returns what changed since the checkpoint before."""
    touched = distinct(np.frombuffer(capture.touched, np.int64))
    died = state.rows.died[touched]
    born = state.rows.born[touched]
    since, until = np.uint64(capture.since_lsn), np.uint64(capture.applied_lsn)
    new = touched[(since < born) & (born <= until) & (until < died)]
    limbo = touched[(born <= since) & (since < died) & (died <= until)]
    return Changes(new, limbo, _deleted(state, limbo, new))


def delta_columns(kernel: Kernel, state: State, capture: Capture, changes: Changes) -> NewColumns:
    """Returns the columns of a delta section, deleted ids last; the table keeps the checksums of the new rows."""
    ids, checksums, metadata = _described(kernel, state, capture, changes.new)
    gone = changes.deleted
    for part in _slices(len(gone)):
        ids.add(state.directory.pack_ids(gone[part]), len(gone[part]))
    metadata.add(b"", len(gone))
    return NewColumns(
        ids,
        np.concatenate((changes.new, np.full(len(gone), DELETED))),
        np.concatenate((state.rows.born[changes.new], state.rows.died[gone])),
        np.concatenate((checksums, np.zeros(len(gone), np.uint32))),
        metadata,
        changes.limbo,
    )


def base_columns(kernel: Kernel, state: State, capture: Capture, changes: Changes) -> NewColumns:
    """Returns the columns of a base section; the table keeps the checksums of the new rows."""
    high, table = capture.rows_high, state.rows
    rows = np.flatnonzero(visible(table.born[:high], table.died[:high], capture.applied_lsn))
    ids, checksums, metadata = _described(kernel, state, capture, rows)
    return NewColumns(ids, rows, state.rows.born[rows], checksums, metadata, changes.limbo)


def row_checksums(kernel: Kernel, state: State, rows: I64, ids: bytes) -> U32:
    """Returns the checksums of rows; ``ids`` is the block of their ids."""
    checksums, seeds = np.empty(len(rows), np.uint32), np.empty(len(rows), np.uint32)
    matrix = state.matrix
    kernel.id_seeds(ids, state.rows.born[rows], seeds)
    kernel.row_checksums(matrix.view, rows, matrix.row_bytes, matrix.stride, seeds, checksums)
    return checksums


def _described(kernel: Kernel, state: State, capture: Capture, rows: I64) -> tuple[BlockColumn, U32, BlockColumn]:
    """Returns ids, checksums and metadata of rows; those of older rows were computed by an earlier checkpoint."""
    ids, metadata, directory = BlockColumn(), BlockColumn(), state.directory
    checksums = state.rows.checksums[rows]
    fresh = state.rows.born[rows] > np.uint64(capture.since_lsn)
    for part in _slices(len(rows)):
        block = directory.pack_ids(rows[part])
        ids.add(block, len(rows[part]))
        metadata.add(directory.pack_metadata(rows[part]), len(rows[part]))
        wanted = rows[part][fresh[part]]
        if len(wanted):
            names = block if len(wanted) == len(rows[part]) else directory.pack_ids(wanted)
            found = row_checksums(kernel, state, wanted, names)
            checksums[part][fresh[part]] = found
            with state.lock:
                state.rows.checksums[wanted] = found
    return ids, checksums, metadata


def _deleted(state: State, limbo: I64, new: I64) -> I64:
    """Returns the rows in limbo whose ids are not those of new rows."""
    if not len(limbo):
        return limbo
    later = type(state.directory)()
    for part in _breathing(len(new)):
        later.put_block(state.directory.pack_ids(new[part]), b"", new[part], np.empty(len(new[part]), np.int64))
    found = np.empty(len(limbo), np.int64)
    for part in _breathing(len(limbo)):
        later.find_block(state.directory.pack_ids(limbo[part]), found[part])
    return limbo[found < 0]


def _slices(count: int, rows: int = _SLICE_ROWS) -> Iterator[slice]:
    """Yields slices over ``count`` items."""
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _breathing(count: int) -> Iterator[slice]:
    """Yields slices over ``count`` items, and lets other threads run between them."""
    held = threading.Lock()
    held.acquire()
    for part in _slices(count, _HELD_ROWS):
        if part.start:
            held.acquire(timeout=_BREATH_S)  # held for ever: this waits without the GIL
        yield part
