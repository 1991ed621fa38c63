"""The best k of a stream of chunks, with room for rounding.

A chunk brings, for each query and row, a goodness (higher is better) and a bound on its rounding error. A row is let
go only if it is certainly not among the best: its goodness plus its error lies below the bar, which at least k rows
reach with their goodness minus error. What is left holds the true best k, and is hardly longer than k.

A goodness that is not a number says nothing: such a row always stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BLOCK = 64

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class Candidates:
    """What may be among the best ``k``, for one query."""

    __slots__ = ("_k", "_lower", "_rows", "_upper", "bar")

    def __init__(self, k: int) -> None:
        self._k = k
        self.bar = -np.inf  # a row below it is out
        self._rows: I64 = np.empty(0, np.int64)
        self._lower: F32 = np.empty(0, np.float32)
        self._upper: F32 = np.empty(0, np.float32)

    def rows(self) -> I64:
        """Returns the rows that are left."""
        return self._rows

    def offer(self, rows: I64, lower: F32, upper: F32) -> None:
        """Takes rows in, and lets go of those that the new bar leaves behind."""
        self._rows = np.concatenate((self._rows, rows))
        self._lower = np.concatenate((self._lower, np.fmax(lower, np.float32(-np.inf))))  # NaN becomes -inf
        self._upper = np.concatenate((self._upper, np.fmin(upper, np.float32(np.inf))))  # NaN becomes inf
        if len(self._rows) <= self._k:
            return
        self.bar = _kth_greatest(self._lower, self._k)
        kept = self._upper >= self.bar
        self._rows, self._lower, self._upper = self._rows[kept], self._lower[kept], self._upper[kept]


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """The goodness of a chunk, (q, n). The error of row r for a query of length l is l * growth[r] + fixed[r]."""

    goodness: F32
    growth: F32
    fixed: F32 | None

    def offer(self, candidates: list[Candidates], lengths: F32, alive: npt.NDArray[np.bool_], start: int) -> None:
        """Offers to each query the rows, numbered from ``start``, that it may want."""
        if not alive.all():
            np.copyto(self.goodness, np.float32(-np.inf), where=~alive)
        slack = lengths * self.growth.max() + (0 if self.fixed is None else self.fixed.max())
        reach = self.goodness.max(axis=1) + slack
        for best, goodness, length, greatest in zip(candidates, self.goodness, lengths, reach, strict=True):
            if greatest < best.bar:
                continue
            error = length * self.growth if self.fixed is None else length * self.growth + self.fixed
            upper, lower = goodness + error, goodness - error
            bar = max(best.bar, _low_bar(lower, best._k))
            places = np.flatnonzero(alive & ~(upper < bar))
            best.offer((places + start).astype(np.int64), lower[places], upper[places])


def _kth_greatest(values: F32, k: int) -> float:
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _low_bar(lower: F32, k: int) -> float:
    """Returns a value that at least ``k`` of many values reach: the k-th greatest of the maxima of blocks."""
    blocks = len(lower) // _BLOCK
    if blocks < k:
        return float(-np.inf)
    maxima = lower[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
    return _kth_greatest(np.fmax(maxima, np.float32(-np.inf)), k)
