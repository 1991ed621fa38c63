"""The table of rows: since when and until when each row holds its vector, and its checksum.

* A row is visible at LSN s if and only if ``born <= s < died``. A row that is free, or taken and not yet put, has died
  at 0, so nobody sees it.
* Whoever asks reads ``died`` first and ``born`` after it; whoever puts a row writes ``born`` first. So a row that
  changes hands under a reader is never seen by mistake.
* Arrays grow into new ones. A reader keeps those it began with: rows it may see do not change, and what is written
  later lies beyond its LSN.
* A small table grows by doubling. From `_COPIED_ROWS_MOST` on it has address space for far more rows than it will hold;
  the system gives it memory as rows are used, so that growing copies nothing and no insert waits for it. It is not
  NumPy's, which asks for huge pages: one insert in some 260,000 would wait for two MiB.
* ``checksums`` is known for rows born up to the newest published checkpoint.

Whose a row is, and its metadata, stand in the directory. Writers hold the state's lock for everything here; readers
hold nothing.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mmwal.disk.memory import address_space

NEVER = (1 << 64) - 1
_CAPACITY_LEAST = 64
_COPIED_ROWS_MOST = 1 << 16
_SPACE_ROWS = 1 << 26

U64 = npt.NDArray[np.uint64]
_Number = TypeVar("_Number", bound=np.generic)


class Rows:
    """What is known of each row. ``high`` is the number of rows ever used."""

    __slots__ = ("born", "born_cells", "capacity", "checksums", "died", "died_cells", "high")

    born_cells: memoryview
    died_cells: memoryview

    def __init__(self) -> None:
        self.high = 0
        self.capacity = 0
        self.born: U64 = np.empty(0, np.uint64)
        self.died: U64 = np.empty(0, np.uint64)
        self.checksums: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self.reserve(_CAPACITY_LEAST)

    def reserve(self, rows: int) -> None:
        """Makes room for at least ``rows`` rows."""
        if rows <= self.capacity:
            return
        capacity = max(rows, 2 * self.capacity)
        if capacity > _COPIED_ROWS_MOST:
            with suppress(OSError):  # the system grants no more than it has: then by doubling
                self._grow(max(capacity, 16 * self.capacity, _SPACE_ROWS))
                return
        self._grow(capacity)

    def _grow(self, capacity: int) -> None:
        born, died = _longer(self.born, capacity, self.high), _longer(self.died, capacity, self.high)
        checksums = _longer(self.checksums, capacity, self.high)
        self.born, self.died, self.checksums = born, died, checksums  # only now: what failed before costs nothing
        self.born_cells, self.died_cells = self.born.data, self.died.data
        self.capacity = capacity

    def live(self) -> npt.NDArray[np.int64]:
        """Returns the rows that are alive now, ascending."""
        return np.flatnonzero(self.died[: self.high] == np.uint64(NEVER))


def visible(born: U64, died: U64, lsn: int) -> npt.NDArray[np.bool_]:
    """Returns which rows of two slices belong to an LSN. Reads ``died`` first."""
    alive: npt.NDArray[np.bool_] = died > np.uint64(lsn)
    alive &= born <= np.uint64(lsn)
    return alive


def distinct(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns rows each once, ascending. Releases the GIL, which `numpy.unique` does not, and takes a fraction of its
    time where most are distinct."""
    ordered = np.sort(rows)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _longer(array: npt.NDArray[_Number], capacity: int, used: int) -> npt.NDArray[_Number]:
    if capacity <= _COPIED_ROWS_MOST:
        longer = np.zeros(capacity, array.dtype)
    else:
        longer = np.frombuffer(address_space(capacity * array.itemsize), array.dtype)
    longer[:used] = array[:used]
    return longer
