"""What a log promised, and the checker that compares it with what a crash left.

A *group* is what counts together or not at all: one entry, a batch, a transaction. The model is a list of groups in
the order of the log, and three marks in it. Not here: how crashes are made (`explorer.py`).

What is found after a crash is right if and only if

* it begins where the log was released at some time, and what it shows is exactly a prefix of what was issued from
  there on: the same values under the same LSN, whole groups, no hole, nothing that was never issued or was refused;
* the prefix holds all that was promised durable, and, when only the process died, all that had returned;
* LSNs grow, and the positions stand in their order.

What was found counts as promised from then on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

Rows = tuple[Any, ...]


class Group(NamedTuple):
    """Rows that count together. ``lsn`` 0: the call that logs them has not returned."""

    rows: Rows
    lsn: int = 0
    known_durable_lsn: int = 0  # the durable position when it was logged


@dataclass(frozen=True)
class Found:
    """What an opened log shows: where it begins, its groups, and its positions from least to greatest."""

    oldest_lsn: int
    groups: list[Group]
    positions: tuple[int, ...] = ()

    def shows_the_same(self, other: Found) -> bool:
        """Whether both show the same content; where the log stands may differ."""
        return replace(self, oldest_lsn=0, positions=()) == replace(other, oldest_lsn=0, positions=())


@dataclass
class Model:
    """The plain truth beside a log. ``durable`` and ``returned`` count groups from the start of the log's life."""

    groups: list[Group] = field(default_factory=list)
    durable: int = 0  # groups promised to survive a power cut
    returned: int = 0  # groups promised to survive the death of the process
    released_lsn: int = 0  # everything up to here may be gone

    def fork(self, *, power: bool) -> Model:
        """Returns what is promised after a crash; a power cut forgets what only the process was promised."""
        returned = self.durable if power else self.returned
        return Model(self.groups.copy(), self.durable, returned, self.released_lsn)

    def begin(self, rows: Rows, known_durable_lsn: int = 0) -> None:
        """Notes that a call begins that logs a group: from now on it may be found."""
        self.groups.append(Group(rows, 0, known_durable_lsn))

    def finish(self, lsn: int) -> None:
        """Notes that the call returned."""
        self.groups[-1] = self.groups[-1]._replace(lsn=lsn)
        self.returned = len(self.groups)

    def withdraw(self) -> None:
        """Notes that the call raised and promised that nothing was logged."""
        self.groups.pop()

    def promise(self, durable_lsn: int) -> None:
        """Notes a durable position that somebody could read."""
        while self.durable < self.returned and 0 < self.groups[self.durable].lsn <= durable_lsn:
            self.durable += 1

    def problem(self, found: Found, required: int) -> str | None:
        """Returns what is wrong with ``found`` when the first ``required`` groups must be there; None if nothing is."""
        if sorted(found.positions) != list(found.positions):
            return f"positions out of order: {found.positions}"
        lsns = [group.lsn for group in found.groups]
        if any(later <= lsn for lsn, later in pairwise(lsns)):
            return f"LSNs do not grow: {lsns}"
        start = self._start(found)
        if start is None:
            return f"begins at LSN {found.oldest_lsn}, never released (at most {self.released_lsn})"
        for index, group in enumerate(found.groups, start):
            if index >= len(self.groups):
                return f"phantom at LSN {group.lsn}: {group.rows[0]!r:.200}"
            issued = self.groups[index]
            if group.rows != issued.rows or (issued.lsn and group.lsn != issued.lsn):
                return f"group {index} differs: {_difference(issued, group)}"
        end = start + len(found.groups)
        if end < required:
            return f"{required - end} promised groups lost, from LSN {self.groups[end].lsn} on"
        return None

    def adopt(self, found: Found) -> None:
        """Takes what was found, and found right, as the truth and as promised."""
        start = self._start(found) or 0
        self.groups[start:] = found.groups
        self.durable = self.returned = len(self.groups)

    def _start(self, found: Found) -> int | None:
        """Returns the index of the first group above the oldest LSN; None if the log may not begin there."""
        below = sum(1 for group in self.groups if 0 < group.lsn <= found.oldest_lsn)
        if below and self.groups[below - 1].lsn > self.released_lsn:
            return None
        return below


def _difference(issued: Group, found: Group) -> str:
    if issued.rows == found.rows or len(issued.rows) != len(found.rows):
        return f"issued LSN {issued.lsn} with {len(issued.rows)} rows, found LSN {found.lsn} with {len(found.rows)}"
    row = next(row for row in range(len(issued.rows)) if issued.rows[row] != found.rows[row])
    pairs = [pair for pair in zip(issued.rows[row], found.rows[row], strict=False) if pair[0] != pair[1]]
    return f"row {row} at LSN {found.lsn}: " + ", ".join(f"{a!r:.80} issued, {b!r:.80} found" for a, b in pairs)
