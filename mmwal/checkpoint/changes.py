"""What changed since the checkpoint before, and the columns that say so: of a delta section, or of a base.

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

_SLICE_ROWS = 64  # some 0.1 ms: what another thread may have to wait for the GIL
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


@dataclass(frozen=True, slots=True)
class SectionColumns:
    """The columns of a section as `format.image.encode_section` takes them; deleted ids come last, with row -1."""

    ids: bytes
    rows: I64
    lsns: npt.NDArray[np.uint64]
    checksums: U32
    metadata: list[bytes | None]
    limbo: I64


def changes_since(state: State, capture: Capture) -> Changes:
    """Returns what changed since the checkpoint before."""
    touched = np.unique(np.frombuffer(capture.touched, np.int64))
    died = state.rows.died[touched]
    born = state.rows.born[touched]
    since, until = np.uint64(capture.since_lsn), np.uint64(capture.applied_lsn)
    new = touched[(since < born) & (born <= until) & (until < died)]
    limbo = touched[(born <= since) & (since < died) & (died <= until)]
    deleted = dict(_named(state, limbo))
    if deleted:
        for id, _ in _named(state, new):
            deleted.pop(id, None)
    return Changes(new, limbo, np.fromiter(deleted.values(), np.int64, len(deleted)))


def delta_columns(kernel: Kernel, state: State, capture: Capture, changes: Changes) -> SectionColumns:
    """Returns the columns of a delta section; the table keeps the checksums of the new rows."""
    ids, checksums, metadata = _described(kernel, state, capture, changes.new)
    gone = changes.deleted
    for part in _slices(len(gone)):
        ids.add(_ids(state, gone[part].tolist()))
    return SectionColumns(
        ids.block(),
        np.concatenate((changes.new, np.full(len(gone), DELETED))),
        np.concatenate((state.rows.born[changes.new], state.rows.died[gone])),
        np.concatenate((checksums, np.zeros(len(gone), np.uint32))),
        metadata + [None] * len(gone),
        changes.limbo,
    )


def base_columns(kernel: Kernel, state: State, capture: Capture, changes: Changes) -> SectionColumns:
    """Returns the columns of a base section; the table keeps the checksums of the new rows."""
    high, table = capture.rows_high, state.rows
    rows = np.flatnonzero(visible(table.born[:high], table.died[:high], capture.applied_lsn))
    ids, checksums, metadata = _described(kernel, state, capture, rows)
    return SectionColumns(ids.block(), rows, state.rows.born[rows], checksums, metadata, changes.limbo)


def row_checksums(kernel: Kernel, state: State, rows: I64, raw_ids: list[bytes]) -> U32:
    """Returns the checksums of rows whose ids have these bytes."""
    checksums = np.empty(len(rows), np.uint32)
    matrix = state.matrix
    seeds = row_seeds(raw_ids, state.rows.born[rows])
    kernel.row_checksums(matrix.view, rows, matrix.row_bytes, matrix.stride, seeds, checksums)
    return checksums


def _described(kernel: Kernel, state: State, capture: Capture, rows: I64) -> tuple[IdColumn, U32, list[bytes | None]]:
    """Returns ids, checksums and metadata of rows; those of older rows were computed by an earlier checkpoint."""
    ids = IdColumn()
    metadata: list[bytes | None] = []
    checksums = state.rows.checksums[rows]
    fresh = state.rows.born[rows] > np.uint64(capture.since_lsn)
    for part in _slices(len(rows)):
        numbers = rows[part].tolist()
        raw_ids = ids.add(_ids(state, numbers))
        metadata += [state.rows.metadata[row] for row in numbers]
        wanted = np.flatnonzero(fresh[part])
        if len(wanted):
            names = raw_ids if len(wanted) == len(raw_ids) else [raw_ids[index] for index in wanted.tolist()]
            found = row_checksums(kernel, state, rows[part][wanted], names)
            checksums[part][wanted] = found
            with state.lock:
                state.rows.checksums[rows[part][wanted]] = found
    return ids, checksums, metadata


def _named(state: State, rows: I64) -> Iterator[tuple[Id, int]]:
    """Yields id and number of rows that have one."""
    for part in _slices(len(rows)):
        numbers = rows[part].tolist()
        yield from zip(_ids(state, numbers), numbers, strict=True)


def _ids(state: State, rows: list[int]) -> list[Id]:
    names = state.rows.ids
    found = [id for row in rows if (id := names[row]) is not None]
    assert len(found) == len(rows), "a row that a checkpoint names has an id"
    return found


def _slices(count: int) -> Iterator[slice]:
    """Yields slices over ``count`` items, and lets other threads run between them."""
    held = threading.Lock()
    held.acquire()
    for start in range(0, count, _SLICE_ROWS):
        if start:
            held.acquire(timeout=_BREATH_S)  # held for ever: this waits without the GIL
        yield slice(start, min(start + _SLICE_ROWS, count))
