"""Exact search: the k best rows of the matrix for one query or many, through BLAS, in chunks.

Two passes. The first multiplies chunks of the matrix with the queries in float32 and lets go of every row that is
certainly not among the best (`top.py`). The second computes the few that are left in float64, row by row, and sorts
them. So the answer does not depend on how BLAS rounds, on chunks or on threads.

* Score: inner product, cosine, or squared l2 distance; best first, which is least first for l2.
* Equal scores: the row that was logged first comes first; rows of one LSN in the order of their numbers.
* The cosine with a vector of length zero is 0.
* A row scored NaN (which takes ``allow_nonfinite``) comes last.
* float16 and int8 are widened by chunk; the matrix is never copied whole, and a strided one is not copied at all.

Not here: ids and metadata of the rows. The store looks them up while its view is open.
"""

from __future__ import annotations

import operator
from collections.abc import Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.config import METRICS, MetricName
from mmwal.entry import normalize_matrix, normalize_vector
from mmwal.errors import VectorError
from mmwal.search.norms import Norms
from mmwal.search.top import Candidates, ScoredChunk
from mmwal.state.state import View

SCORES_BYTES = 8 << 20  # of one chunk; more would leave the cache, less would divide BLAS's work too finely
WIDENED_BYTES = 8 << 20  # of one chunk in float32
QUERIES_MOST = 256  # multiplied at once
_RESCORED_ROWS = 512  # widened to float64 at once
_ROUNDING = 2.0**-23

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Found = tuple[I64, F32]


class ExactSearch:
    """Searches of one store under one metric. For any number of threads."""

    def __init__(self, metric: MetricName) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
        self.metric = metric
        self._norms = Norms()

    def one(self, view: View, query: object, k: int) -> Found:
        """Returns the rows and scores of the best ``k`` for one query, fewer if fewer are alive.

        Args:
            view: the open view to search.
            query: a vector of the store's dimension: finite numbers, of any real dtype.
            k: at least 1.

        Raises:
            VectorError: the query has another dimension or shape, or is not finite.
            TypeError, ValueError: ``k`` is no int, or less than 1.
        """
        dimension = view.array.shape[1]
        return self._search(view, normalize_vector(query, np.float32, dimension)[None, :], k)[0]

    def many(self, view: View, queries: object, k: int) -> list[Found]:
        """Returns the same for each row of ``queries``, an array of shape (q, d). Raises as `one`."""
        matrix = _query_matrix(queries, view.array.shape[1])
        blocks = range(0, len(matrix), QUERIES_MOST)
        return [found for start in blocks for found in self._search(view, matrix[start : start + QUERIES_MOST], k)]

    def _search(self, view: View, queries: F32, k: int) -> list[Found]:
        k = count_of(k)
        with np.errstate(all="ignore"):
            candidates = self._select(view, queries, k)
            return [self._settle(view, query, kept.rows(), k) for query, kept in zip(queries, candidates, strict=True)]

    # -- first pass: who may be among the best --------------------------------------------------------------------

    def _select(self, view: View, queries: F32, k: int) -> list[Candidates]:
        candidates = [Candidates(k) for _ in queries]
        factors, lengths = self._prepared(queries)
        step = _chunk_rows(view.array, len(queries))
        for start in range(0, view.rows_high, step):
            stop = min(start + step, view.rows_high)
            alive = view.visible(start, stop)
            if not alive.any():
                continue
            chunk = view.array[start:stop].astype(np.float32, copy=False)
            norms = self._norms.of(chunk, start, view.born[start:stop], alive)
            scored = self._scored(np.matmul(factors, chunk.T), norms, chunk.shape[1])
            scored.offer(candidates, lengths, alive, start)
        return candidates

    def _prepared(self, queries: F32) -> tuple[F32, F32]:
        """Returns what the matrix is multiplied with, and a length for each query by which its error grows."""
        lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries))
        if self.metric == "inner_product":
            return queries, lengths
        if self.metric == "l2":
            return queries * np.float32(2), 2 * lengths
        ones = np.ones_like(lengths)
        return queries / np.where(lengths > 0, lengths, ones)[:, None], ones

    def _scored(self, products: F32, norms: F32, dimension: int) -> ScoredChunk:
        """Turns products into goodness, in place, and says how far rounding may be off."""
        unit = np.float32((dimension + 16) * _ROUNDING)
        if self.metric == "inner_product":
            return ScoredChunk(products, norms * unit, None)
        if self.metric == "l2":
            squares = norms * norms
            products -= squares
            return ScoredChunk(products, norms * unit, squares * unit)
        products *= np.where(norms > 0, 1 / norms, np.float32(0))
        return ScoredChunk(products, np.full(len(norms), unit), None)

    # -- second pass: in which order ------------------------------------------------------------------------------

    def _settle(self, view: View, query: F32, rows: I64, k: int) -> Found:
        """Scores the candidates exactly and returns the best ``k``."""
        wide = query.astype(np.float64)
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _RESCORED_ROWS):
            part = slice(start, start + _RESCORED_ROWS)
            scores[part] = self._scores(view.array[rows[part]].astype(np.float64), wide)
        key = scores if self.metric == "l2" else -scores
        key = np.where(np.isnan(key), np.float32(np.inf), key)
        order = np.lexsort((rows, view.born[rows], np.isnan(scores), key))[:k]
        return rows[order], scores[order]

    def _scores(self, vectors: F64, query: F64) -> F64:
        # Sums along rows, not BLAS: equal rows get equal scores wherever they stand.
        if self.metric == "l2":
            return np.asarray(np.square(vectors - query).sum(axis=1))
        products: F64 = np.asarray((vectors * query).sum(axis=1))
        if self.metric == "inner_product":
            return products
        lengths = np.sqrt(np.square(vectors).sum(axis=1)) * np.sqrt(np.square(query).sum())
        return np.where(lengths == 0, 0.0, products / lengths)


def count_of(k: object) -> int:
    """Returns how many rows to search for as an int. Raises `TypeError` or `ValueError`, which name ``k``."""
    try:
        count = operator.index(k)  # type: ignore[arg-type]  # what is no int is refused right here
    except TypeError:
        raise TypeError(f"k={k!r} is a {type(k).__name__}; pass an int of at least 1") from None
    if isinstance(k, bool | np.bool_):
        raise TypeError(f"k={k!r} is a bool; pass an int of at least 1")
    if count < 1:
        raise ValueError(f"k={count}: search for at least 1")
    return count


def _query_matrix(queries: Any, dimension: int) -> F32:
    """Returns queries as a (q, d) array. Raises `VectorError`, which speaks of queries where their shape is wrong."""
    try:
        shape: tuple[int, ...] | None = np.shape(queries)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        shape = None
    if shape is not None and shape != (0,):
        if len(shape) != 2:
            one = "; search() takes a single query" if len(shape) == 1 else ""
            raise VectorError(
                f"expected queries of shape (q, {dimension}), found shape {shape}; pass one row for each query{one}"
            )
        if shape[1] != dimension:
            raise VectorError(
                f"expected queries of dimension {dimension}, found {shape[1]}; pass rows of {dimension} values"
            )
    count = len(queries) if isinstance(queries, Sized) else 0
    return normalize_matrix(queries, count, np.float32, dimension)


def _chunk_rows(array: npt.NDArray[Any], queries: int) -> int:
    """Returns how many rows to multiply at once: as many as scores may take, and fewer if they must be widened."""
    rows = SCORES_BYTES // (4 * queries)
    if array.dtype != np.float32:
        rows = min(rows, WIDENED_BYTES // (4 * array.shape[1]))
    return max(rows, 1)
