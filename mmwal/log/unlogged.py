"""What stands in for the log of a store that has none: it counts LSNs and fills rows, and keeps nothing.

The part of `Log` and its cursor that a store uses. Not thread-safe: the store's lock is held around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmwal.errors import UnavailableError, WalClosedError
from mmwal.format.frame import encode_id
from mmwal.kernel.interface import CONVERT, DTYPES, NONFINITE

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_STEP = 64


@dataclass(frozen=True)
class _Identity:
    dtype: int


class Unlogged:
    """Takes entries and forgets them."""

    segment_end_lsn = 1 << 62
    frame_bytes_max = 1 << 62
    failed = False
    ready = True
    dimension = 0  # any: the store checks it

    def __init__(self, kernel: Kernel, dtype: int, *, check_finite: bool = True) -> None:
        self.kernel = kernel
        self.identity = _Identity(dtype)
        self.check_finite = check_finite
        self.cursor = self  # a store appends through the cursor
        self.published = 0
        self._dtype = dtype
        self._matrix: Any = None
        self._row_bytes = 0

    def time_ns(self) -> int:
        """Returns 0: nothing is stamped."""
        return 0

    def bind_rows(self, matrix: Any, row_bytes: int) -> None:
        """As `Cursor.bind_rows`."""
        self._matrix, self._row_bytes = matrix, row_bytes

    def append(self, kind: int, id: Any, vector: Any, metadata: bytes | None, time_ns: int, row: int) -> int:
        """As `Cursor.append`: fills the row and returns the next LSN, or says what is wrong with the vector."""
        encode_id(id)
        if vector is not None:
            if type(vector) is not np.ndarray or vector.dtype != DTYPES[self._dtype] or vector.ndim != 1:
                return CONVERT
            content = np.ascontiguousarray(vector).view(np.uint8).data
            if self.check_finite and not self.kernel.all_finite(content, self._dtype):
                return NONFINITE
            if row >= 0:
                start = row * self._row_bytes
                self._matrix[start : start + content.nbytes] = content
        return self._next()

    def append_frame(self, *_: Any) -> int:
        """As `Log.append_frame`: returns the next LSN."""
        return self._next()

    def append_transaction(self, *_: Any) -> int:
        """As `Log.append_transaction`: returns the next LSN."""
        return self._next()

    def settle(self, result: int, attempt: Any) -> int:
        """Never has anything to wait for."""
        return result

    def refusal(self) -> UnavailableError:
        """As `Log.refusal`: asked for once the store is closed."""
        return WalClosedError("the store is closed, and it lived in memory; make a new one")

    def make_durable(self, lsn: int, timeout_s: float | None = None) -> None:
        """Returns: there is nothing to lose."""

    def acknowledge(self, lsn: int, durable: bool | None) -> None:
        """As `make_durable`."""

    def _next(self) -> int:
        self.published += _STEP
        return self.published
