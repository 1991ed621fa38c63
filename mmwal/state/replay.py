"""Replay: frames of the log applied to a state that nobody else has yet.

Only what is in memory changes: the directory turns to rows whose vectors are still in the log, and the matrix grows
and is filled once everything is decided. So a replay that ends in an error costs the state, and no file.

* Winners take rows that are free, then rows the matrix does not have yet. A row that was taken and replaced within the
  replay is taken again, so an id that is written a million times needs no more than two rows.
* Rows of the checkpoint that lose their id end, and keep their name, as they would have in a running store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmwal.kernel.interface import NOT_TAKEN
from mmwal.state.rows import NEVER, U64

if TYPE_CHECKING:
    from mmwal.state.state import State

I64 = npt.NDArray[np.int64]


class Replay:
    """What the log makes of a state.

    ``origins`` and ``places`` say by row where the vector of a winner is: see `kernel.interface.Directory.replay`.
    ``applied`` and ``skipped`` count rows.
    """

    def __init__(self, state: State, free: list[int]) -> None:
        self.state = state
        self.origins = np.zeros(state.rows.high, np.int32)
        self.places = np.zeros(state.rows.high, np.int64)
        self.applied = self.skipped = 0
        self._live = state.rows.live()
        self.high_before = state.rows.high
        self._supply = np.array(free, np.int64)
        self._left = len(free)

    def apply(self, segment: Any, offsets: I64, lsns: U64, rows: int, origin: int, dtype: int) -> tuple[int, int]:
        """Applies frames that hold no more than ``rows`` rows; returns how many, and why it stopped.

        The other arguments are those of `kernel.interface.Directory.replay`.
        """
        self._provide(rows)
        table = self.state.rows
        done, reason, self._left, applied, skipped = self.state.directory.replay(
            segment=segment,
            offsets=offsets,
            lsns=lsns,
            origin=origin,
            row_bytes=self.state.matrix.row_bytes,
            dtype=dtype,
            supply=self._supply,
            left=self._left,
            origins=self.origins,
            places=self.places,
            born=table.born,
            died=table.died,
        )
        self.applied += applied
        self.skipped += skipped
        return done, reason

    @property
    def taken(self) -> I64:
        """The rows of the winners, ascending."""
        return np.flatnonzero(self.origins != NOT_TAKEN)

    @property
    def ended(self) -> I64:
        """The rows of the checkpoint that have lost their id."""
        ended: I64 = self._live[self.state.rows.died[self._live] != np.uint64(NEVER)]
        return ended

    @property
    def unused(self) -> I64:
        """The rows that were free and still are, and those below the last winner that were not taken; last first."""
        return self._supply[: self._left]

    def _provide(self, rows: int) -> None:
        """Sees to it that ``rows`` rows can be taken, and as many be given back."""
        table = self.state.rows
        missing = max(rows - self._left, 0)
        high = table.high + missing
        supply = np.empty(self._left + missing + rows, np.int64)
        supply[:missing] = np.arange(high - 1, table.high - 1, -1)
        supply[missing : missing + self._left] = self._supply[: self._left]
        self._supply, self._left = supply, self._left + missing
        table.reserve(high)
        table.high = high
        if high > len(self.origins):
            size = min(max(high, 2 * len(self.origins)), table.capacity)
            self.origins, self.places = _longer(self.origins, size), _longer(self.places, size)


def _longer(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    longer = np.zeros(size, array.dtype)
    longer[: len(array)] = array
    return longer
