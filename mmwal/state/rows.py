"""The table of rows: since when and until when each row holds its vector, whose it is, and its checksum.

* A row is visible at LSN s if and only if ``born <= s < died``. A row that is free, or taken and not yet put, has
  both at `NEVER`, so nobody sees it.
* Whoever asks reads ``died`` first and ``born`` after it; whoever frees or puts a row writes ``born`` first. So a
  row that changes hands under a reader is never seen by mistake.
* Arrays grow by doubling into new ones. A reader keeps those it began with: rows it may see do not change, and
  what is written later lies beyond its LSN.
* ``checksums`` is known for rows born up to the newest published checkpoint.

Writers hold the state's lock for everything here; readers hold nothing.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mmwal.entry import Id

NEVER = (1 << 64) - 1
_CAPACITY_LEAST = 64

U64 = npt.NDArray[np.uint64]
_Number = TypeVar("_Number", bound=np.generic)


class Rows:
    """What is known of each row. ``high`` is the number of rows ever used."""

    __slots__ = ("born", "born_cells", "capacity", "checksums", "died", "died_cells", "high", "ids", "metadata")

    born_cells: memoryview
    died_cells: memoryview

    def __init__(self) -> None:
        self.high = 0
        self.capacity = 0
        self.born: U64 = np.empty(0, np.uint64)
        self.died: U64 = np.empty(0, np.uint64)
        self.checksums: npt.NDArray[np.uint32] = np.empty(0, np.uint32)
        self.ids: list[Id | None] = []
        self.metadata: list[bytes | None] = []
        self.reserve(_CAPACITY_LEAST)

    def reserve(self, rows: int) -> None:
        """Makes room for at least ``rows`` rows."""
        if rows <= self.capacity:
            return
        capacity = max(rows, 2 * self.capacity)
        self.born = _longer(self.born, capacity, NEVER)
        self.died = _longer(self.died, capacity, NEVER)
        self.checksums = _longer(self.checksums, capacity, 0)
        self.ids.extend([None] * (capacity - len(self.ids)))
        self.metadata.extend([None] * (capacity - len(self.metadata)))
        self.born_cells, self.died_cells = self.born.data, self.died.data
        self.capacity = capacity

    def forget(self, rows: npt.NDArray[np.int64]) -> list[int]:
        """Makes rows that nobody may see any more free; returns them."""
        self.born[rows] = NEVER
        self.died[rows] = NEVER
        freed: list[int] = rows.tolist()
        for row in freed:
            self.ids[row] = self.metadata[row] = None
        return freed


def visible(born: U64, died: U64, lsn: int) -> npt.NDArray[np.bool_]:
    """Returns which rows of two slices belong to an LSN. Reads ``died`` first."""
    alive: npt.NDArray[np.bool_] = died > np.uint64(lsn)
    alive &= born <= np.uint64(lsn)
    return alive


def _longer(array: npt.NDArray[_Number], capacity: int, fill: int) -> npt.NDArray[_Number]:
    longer = np.full(capacity, fill, array.dtype)
    longer[: len(array)] = array
    return longer
