"""Limbo: rows that died and that somebody may still see.

A dead row waits under the lowest pin that can see it, and is looked at again only when that pin is gone. So each
row is looked at once for each pin that it outlives, and the lowest pin, an old checkpoint as a rule, goes first.

The caller holds the state's lock.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmwal.state.rows import U64

STEP_ROWS = 1024  # looked at in one call: some 50 microseconds, which an insert may wait


class Limbo:
    """Dead rows. ``buried`` takes those that died since the last `collect`; the hot path appends to it."""

    def __init__(self) -> None:
        self.buried: list[int] = []
        self._held: dict[int, list[int]] = {}  # pin to the rows that wait for it
        self._due: list[list[int]] = []  # to be looked at

    def __len__(self) -> int:
        return len(self.buried) + sum(map(len, self._held.values())) + sum(map(len, self._due))

    @property
    def unfinished(self) -> bool:
        """Whether rows wait to be looked at."""
        return bool(self._due)

    def collect(self, born: U64, died: U64, pins: list[int], applied_lsn: int) -> npt.NDArray[np.int64]:
        """Looks at up to `STEP_ROWS` rows and returns those that nobody can see now or later.

        Args:
            born, died: the table of rows.
            pins: ascending.
            applied_lsn: taken together with ``pins``; readers to come begin there or later.
        """
        for pin in self._held.keys() - set(pins):
            self._due.append(self._held.pop(pin))
        if self.buried:
            self._due.append(self.buried.copy())
            self.buried.clear()
        rows = np.array(self._next(), np.int64)
        if not len(rows):
            return rows
        return self._sort(rows, born[rows], died[rows], np.array(pins, np.uint64), applied_lsn)

    def _next(self) -> list[int]:
        """Takes up to `STEP_ROWS` of the rows that are due."""
        rows: list[int] = []
        while self._due and len(rows) < STEP_ROWS:
            due = self._due[-1]
            wanted = STEP_ROWS - len(rows)
            rows += due[-wanted:]
            del due[-wanted:]
            if not due:
                self._due.pop()
        return rows

    def _sort(
        self, rows: npt.NDArray[np.int64], born: U64, died: U64, pins: U64, applied_lsn: int
    ) -> npt.NDArray[np.int64]:
        """Puts rows under their lowest pin, those still visible back to the buried; returns the rest."""
        lowest = np.searchsorted(pins, born)
        guarded = np.append(pins, np.uint64(died.max()))[lowest] < died
        unsettled = ~guarded & (died > np.uint64(applied_lsn))
        for index in np.unique(lowest[guarded]).tolist():
            waiting = rows[guarded & (lowest == index)]
            self._held.setdefault(int(pins[index]), []).extend(waiting.tolist())
        self.buried.extend(rows[unsettled].tolist())
        freed: npt.NDArray[np.int64] = rows[~guarded & ~unsettled]
        return freed
