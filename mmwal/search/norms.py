"""The length of each row's vector, computed once in the row's life and remembered.

* A length counts only for the life it was computed in: it is kept together with the LSN at which the row was born.
* It is computed and stored only for rows that the asking reader sees. Such a row cannot change hands meanwhile, so
  two searches that store a row's length store the same one.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_STEP_ROWS = 1024

F32 = npt.NDArray[np.float32]


class Norms:
    """Euclidean lengths of rows; 12 bytes each. For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._norms: F32 = np.empty(0, np.float32)
        self._born: npt.NDArray[np.uint64] = np.empty(0, np.uint64)  # 0: none, no row is born there

    def of(
        self,
        chunk: npt.NDArray[Any],
        start: int,
        born: npt.NDArray[np.uint64],
        alive: npt.NDArray[np.bool_],
    ) -> F32:
        """Returns the length of each row of a chunk of float32 rows that begins at row ``start``.

        Those of rows that are not ``alive`` are arbitrary, but finite or not, they are numbers of their own.
        """
        stop = start + len(chunk)
        with self._lock:
            self._reserve(stop)
            norms, known = self._norms[start:stop], self._born[start:stop]
        missing = np.flatnonzero(alive & (known != born))
        for first in range(0, len(missing), _STEP_ROWS):
            rows = missing[first : first + _STEP_ROWS]
            found = chunk[rows]
            norms[rows] = np.sqrt(np.einsum("ij,ij->i", found, found))
            known[rows] = born[rows]
        return norms

    def _reserve(self, rows: int) -> None:
        if rows > len(self._norms):
            capacity = max(rows, 2 * len(self._norms))
            norms, born = np.ones(capacity, np.float32), np.zeros(capacity, np.uint64)
            norms[: len(self._norms)], born[: len(self._born)] = self._norms, self._born
            self._norms, self._born = norms, born
