"""Pins: the LSNs at which somebody looks at the state, each counted.

A pin at LSN s keeps every row that is visible at s from being written again. The two control slots pin the LSNs of
their checkpoints, a running checkpoint pins the one it captured, a reader the one it began at, an exported view the
one it was made at.

* `lock` orders two things: a reader that takes the applied LSN and pins it, and a collector that takes the applied
  LSN and all pins. So no row is freed between a reader's two steps.
* `release` takes no lock, since a finalizer may call it at any instant, even inside `add`: it leaves a note, which
  the next holder of the lock reads.
"""

from __future__ import annotations

import threading
from collections import deque


class Pins:
    """A multiset of LSNs; every method may be called by any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._counts: dict[int, int] = {}  # under the lock
        self._released: deque[int] = deque()  # any thread appends, the holder of the lock takes away

    def add(self, lsn: int) -> None:
        """Adds a pin. The caller holds `lock`."""
        self._settle()
        self._counts[lsn] = self._counts.get(lsn, 0) + 1

    def release(self, lsn: int) -> None:
        """Takes one pin at ``lsn`` away, soon."""
        self._released.append(lsn)

    def standing(self) -> list[int]:
        """Returns the pinned LSNs, ascending. The caller holds `lock`."""
        self._settle()
        return sorted(self._counts)

    def _settle(self) -> None:
        while self._released:
            lsn = self._released.popleft()
            count = self._counts[lsn] - 1
            if count:
                self._counts[lsn] = count
            else:
                del self._counts[lsn]
