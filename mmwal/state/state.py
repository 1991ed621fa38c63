"""The state of a store: which ids are alive, in which rows, and what was so at an earlier LSN.

This is what a log entry is applied to, what a search reads and what a checkpoint captures. The spine of a write:

    row = state.take_row()               # a row that nobody can see; its vector may now be stored
    lsn = <the log takes the entry>      # refused: state.give_back(row), and nothing has changed
    state.put(id, row, lsn, metadata)    # or remove(id, lsn)
    state.advance(lsn)                   # once the whole frame is applied: readers to come see all of it

Not here: the log, vectors (`matrix.py`), the order of writes (`store.py`), what is on disk (`checkpoint/`).

* Every change is made by the holder of `lock`. Reading takes no lock, or for an instant that of the pins.
* A row is written once between two lives. It is taken again only when no pin can see it: no control slot, no
  running checkpoint, no reader, no exported view; see `pins.py`.
* One row, one version: a change of metadata alone takes a row of its own too, with the vector copied.
* LSNs only grow: ``put`` and ``remove`` take LSNs above ``applied_lsn``, and ``advance`` moves there.
"""

from __future__ import annotations

import threading
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmwal import kernel as kernels
from mmwal.entry import Id
from mmwal.errors import WalFullError
from mmwal.format.frame import pack_ids, pack_metadata
from mmwal.kernel.interface import NO_ROW, Directory
from mmwal.state.limbo import STEP_ROWS, Limbo
from mmwal.state.matrix import RowMatrix
from mmwal.state.pins import Pins
from mmwal.state.replay import Replay
from mmwal.state.rows import NEVER, Rows, distinct, visible

_COLLECT_ROWS_LEAST = 64  # dead rows that are worth looking at before a new row is used, more in a large store
_JOURNAL_SLACK = 1 << 16


class Entry(NamedTuple):
    """What the directory knows of an id."""

    row: int
    lsn: int
    metadata: bytes | None


@dataclass(frozen=True, slots=True)
class Capture:
    """The state at one LSN, for a checkpoint. Its rows stay as they are until the capture is dropped or its
    checkpoint superseded."""

    applied_lsn: int
    since_lsn: int  # of the newest checkpoint before
    rows_high: int
    live_rows: int
    touched: array[int]  # int64: rows born or died since then, some twice


class State:
    """What is alive. Built empty, or full by `load_state`."""

    def __init__(
        self, matrix: RowMatrix, directory: Directory | None = None, *, applied_lsn: int = 0, durable: bool = True
    ) -> None:
        """Makes an empty state as of ``applied_lsn``; ``durable`` is False for a store that takes no checkpoints.

        ``directory`` is an empty one; None: that of the best kernel installed.
        """
        self.lock = threading.Lock()
        self.matrix = matrix
        self.applied_lsn = applied_lsn  # the holder of `lock` writes, anybody reads: see `advance`
        self.rows = Rows()
        self.directory = directory if directory is not None else kernels.load().Directory()
        self._pins = Pins()
        self._limbo = Limbo()
        self._bury = self._limbo.buried.append
        self._free: list[int] = []
        self._ready_rows = 0  # rows below need no growing of table or matrix
        self._collect_rows = _COLLECT_ROWS_LEAST
        self._collect_due = False  # a pin is known to be gone
        self._durable = durable
        self._touched = array("q")
        self._slots: list[int] = []  # LSNs that the two control slots pin, the older first
        self.name_slots([applied_lsn] if durable else [])

    # -- write: the caller holds `lock` ---------------------------------------------------------------------------

    def take_row(self) -> int:
        """Returns a row whose vector may now be stored. Raises `WalFullError` where there is no space for one."""
        if self._free:
            return self._free.pop()
        if self._collect_due or len(self._limbo.buried) >= self._collect_rows:
            self._collect()
            if self._free:
                return self._free.pop()
        rows = self.rows
        row = rows.high
        if row >= self._ready_rows and not self._make_ready(row + 1):
            return self._free.pop()
        rows.high = row + 1
        return row

    def take_rows(self, count: int) -> list[int]:
        """Returns ``count`` rows as `take_row`, all or none."""
        taken: list[int] = []
        try:
            taken.extend(self.take_row() for _ in range(count))
        except BaseException:
            self._free.extend(reversed(taken))
            raise
        return taken

    def give_back(self, *rows: int) -> None:
        """Takes back rows that were taken and not put: the append was refused."""
        self._free.extend(rows)

    def put(self, id: Id, row: int, lsn: int, metadata: bytes | None) -> None:
        """Lets ``id`` live in ``row`` from ``lsn`` on; the row it lived in, if any, dies."""
        rows = self.rows
        rows.born_cells[row] = lsn
        rows.died_cells[row] = NEVER
        before = self.directory.put(id, row, metadata)
        self._touched.append(row)
        if before is not None:
            self._die(before, lsn)

    def put_many(
        self, ids: Sequence[Id], taken: Sequence[int], lsn: int, metadata: Sequence[bytes | None] | None
    ) -> None:
        """Puts many ids, and removes those whose row is `NO_ROW`; of an id that comes twice the last one counts. All
        ids turn over in one step.

        ``metadata`` None: none has any.
        """
        places = np.array(taken, np.int64)
        before = np.empty(len(places), np.int64)
        fresh = places[places != NO_ROW]
        self.rows.born[fresh] = lsn
        self.rows.died[fresh] = NEVER
        said = b"" if metadata is None else pack_metadata(metadata)
        self.directory.put_block(pack_ids(ids), said, places, before)
        self._note(fresh)
        self._end_lives(before[before != NO_ROW], lsn)

    def remove(self, id: Id, lsn: int) -> None:
        """Ends the life of ``id`` at ``lsn``. Raises `KeyError` where it is not alive."""
        self._die(self.directory.pop(id), lsn)

    def advance(self, lsn: int) -> None:
        """Lets everything up to ``lsn`` be seen: the frame that ends there is applied whole."""
        self.applied_lsn = lsn

    def replay(self) -> Replay:
        """Begins to apply the log; nobody else may have the state, and only `admit` may follow."""
        return Replay(self, self._free)

    def admit(self, replay: Replay) -> npt.NDArray[np.int64]:
        """Makes room for the rows of a replay and lets go of those it ended; returns them, to be filled.

        Raises `WalFullError` where the matrix cannot grow.
        """
        taken, ended, unused = replay.taken, replay.ended, replay.unused
        high = max(replay.high_before, int(taken[-1]) + 1 if len(taken) else 0)
        if len(taken) and high > self._ready_rows:
            ready = self.matrix.ensure(high)
            self.rows.reserve(ready)
            self._ready_rows = ready
        self.rows.high = high
        self._free = unused[unused < high].tolist()
        self._note(np.concatenate((taken, ended)))
        self._limbo.buried.extend(ended.tolist())
        return taken

    # -- read: no lock --------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.directory)

    def __contains__(self, id: object) -> bool:
        return id in self.directory

    def get(self, id: Id) -> Entry | None:
        """Returns where an id lives now, or None. The row may be gone a moment later: see `read`."""
        rows, directory = self.rows, self.directory
        while (row := directory.get(id)) is not None:
            lsn, metadata = rows.born_cells[row], directory.metadata(row)
            if directory.get(id) == row and rows.born_cells[row] == lsn:
                return Entry(row, lsn, metadata)
        return None

    def ids(self) -> list[Id]:
        """Returns the ids that are alive now, in the order of their rows. The caller holds `lock`, or is alone."""
        return self.names(self.rows.live())

    def names(self, rows: npt.NDArray[np.int64]) -> list[Id]:
        """Returns the ids of rows that have one."""
        found = [name for row in rows.tolist() if (name := self.directory.name(row)) is not None]
        assert len(found) == len(rows), "a row that was put and is not free has an id"
        return found

    def read(self, id: Id) -> tuple[npt.NDArray[Any], Entry] | None:
        """Returns a copy of an id's vector and its entry, or None.

        Concurrency: takes no lock. A row that is replaced while it is copied is looked up anew: its LSN differs then,
        since a row is put under a new LSN only after its vector was stored, and stored only after the id had left.
        """
        while (entry := self.get(id)) is not None:
            vector = self.matrix.array[entry.row].copy()
            if self.get(id) == entry:
                return vector, entry
        return None

    def reading(self) -> View:
        """Registers a reader at the applied LSN; ends with the ``with`` block."""
        with self._pins.lock:
            lsn = self.applied_lsn
            self._pins.add(lsn)
        return View(self, lsn, self._pins)

    def export(self) -> npt.NDArray[Any]:
        """Returns the matrix as a read-only array of all rows ever used, dead ones included.

        The rows that are alive now stay as they are until the array, and all that was cut from it, is garbage.
        """
        with self._pins.lock:
            lsn = self.applied_lsn
            self._pins.add(lsn)
        owner = _Exported(self.matrix.array[: self.rows.high])
        weakref.finalize(owner, self._pins.release, lsn).atexit = False
        exported: npt.NDArray[Any] = np.asarray(owner)
        return exported

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def checkpoint_lsn(self) -> int:
        """The LSN of the newest published checkpoint; rows born up to it have a known checksum."""
        return self._slots[-1]

    def capture(self) -> Capture:
        """Takes the state as of ``applied_lsn``, in constant time; pins it. The caller holds `lock`."""
        with self._pins.lock:
            self._pins.add(self.applied_lsn)
        touched, self._touched = self._touched, array("q")
        return Capture(self.applied_lsn, self._slots[-1], self.rows.high, len(self.directory), touched)

    def drop_capture(self, capture: Capture) -> None:
        """Takes back a capture whose checkpoint was given up before it was published. The caller holds `lock`."""
        capture.touched.extend(self._touched)
        self._touched = capture.touched
        self._pins.release(capture.applied_lsn)

    def checkpoint_published(self, capture: Capture) -> None:
        """Lets go of what only the overwritten control slot named; the capture's pin is now that of its slot.

        The caller holds nothing.
        """
        kept = self._slots[-1:]
        for lsn in self._slots[:-1]:
            self._pins.release(lsn)
        self._slots = [*kept, capture.applied_lsn]
        self._collect_due = True

    def name_slots(self, lsns: Sequence[int]) -> None:
        """Pins what the control slots name, the older first, in place of what they named before.

        For loading and creation; the caller is alone.
        """
        with self._pins.lock:
            for lsn in lsns:
                self._pins.add(lsn)
        for lsn in self._slots:
            self._pins.release(lsn)
        self._slots = list(lsns)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _end_lives(self, rows: npt.NDArray[np.int64], lsns: int | npt.NDArray[np.uint64]) -> None:
        self.rows.died[rows] = lsns
        self._note(rows)
        self._limbo.buried.extend(rows.tolist())

    def _note(self, rows: npt.NDArray[np.int64]) -> None:
        self._touched.frombytes(rows.tobytes())

    def _die(self, row: int, lsn: int) -> None:
        self.rows.died_cells[row] = lsn
        self._touched.append(row)
        self._bury(row)

    def _collect(self, *, all_rows: bool = False) -> None:
        """Frees dead rows that nobody can see: one step of it, or all."""
        with self._pins.lock:
            pins, applied_lsn = self._pins.standing(), self.applied_lsn
        rows, limbo = self.rows, self._limbo
        while True:
            self._set_free(limbo.collect(rows.born, rows.died, pins, applied_lsn))
            self._collect_due = limbo.unfinished
            if not (all_rows and self._collect_due):
                break
        self._trim_journal()

    def _set_free(self, rows: npt.NDArray[np.int64]) -> None:
        """Frees rows that nobody may see any more."""
        self.rows.died[rows] = 0
        self.directory.forget(rows)
        self._free.extend(rows.tolist())

    def _trim_journal(self) -> None:
        """Keeps the journal in proportion to the rows, however long no checkpoint is taken."""
        if not self._durable:
            self._touched = array("q")
        elif len(self._touched) > 4 * self.rows.high + _JOURNAL_SLACK:
            self._touched = array("q", distinct(np.frombuffer(self._touched, np.int64)).tobytes())

    def _make_ready(self, rows: int) -> bool:
        """Makes room for ``rows`` rows; returns False where instead a row became free."""
        try:
            ready = self.matrix.ensure(rows)
        except WalFullError:
            self._collect(all_rows=True)
            if self._free:
                return False
            raise
        self.rows.reserve(ready)  # first: it may fail, and what is said to be ready is written to
        self._ready_rows = ready
        self._trim_journal()
        self._collect_rows = min(max(_COLLECT_ROWS_LEAST, rows // 64), STEP_ROWS)
        return True


class _Exported:
    """What an exported array, and every array cut from it, keeps alive. (An array as base would be skipped.)"""

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.__array_interface__ = {**rows.__array_interface__, "data": (rows.ctypes.data, True)}


class View:
    """A reader at one LSN: what was alive then stays readable until the end of the ``with`` block.

    ``array`` is the matrix, ``rows_high`` how many of its rows to look at. Used by one thread.
    """

    __slots__ = ("_pins", "array", "born", "died", "lsn", "rows_high", "state")

    def __init__(self, state: State, lsn: int, pins: Pins) -> None:
        self._pins: Pins | None = pins
        self.state = state
        self.lsn = lsn
        # First how many rows, then the arrays: they are grown in the other order.
        rows = state.rows
        self.rows_high = rows.high
        self.born, self.died = rows.born, rows.died
        self.array = state.matrix.array

    def __enter__(self) -> View:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reader. Does nothing the second time."""
        if self._pins is not None:
            self._pins.release(self.lsn)
            self._pins = None

    def visible(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Returns which rows of a range are alive at ``lsn``."""
        return visible(self.born[start:stop], self.died[start:stop], self.lsn)

    def rows(self) -> npt.NDArray[np.int64]:
        """Returns the rows alive at ``lsn``, in the order of their LSNs, then of their numbers."""
        found = np.flatnonzero(self.visible(0, self.rows_high))
        ordered: npt.NDArray[np.int64] = found[np.argsort(self.born[found], kind="stable")]
        return ordered

    def records(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[Id, int, bytes | None]]:
        """Yields id, LSN and metadata of rows that are alive at ``lsn``."""
        metadata = self.state.directory.metadata
        numbers, lsns = rows.tolist(), self.born[rows].tolist()
        for id, row, lsn in zip(self.state.names(rows), numbers, lsns, strict=True):
            yield id, lsn, metadata(row)


def load_state(
    matrix: RowMatrix,
    directory: Directory,
    *,
    rows: npt.NDArray[np.int64],
    lsns: npt.NDArray[np.uint64],
    checksums: npt.NDArray[np.uint32],
    limbo: npt.NDArray[np.int64],
    rows_high: int,
    slots: Sequence[int],
) -> State:
    """Returns the state of a checkpoint, as of the last of ``slots``.

    ``directory`` has the ids, ``rows`` those that are alive, ``lsns`` and ``checksums`` are theirs. ``limbo`` are rows
    that the older slot names and this one does not: they wait until that slot is overwritten. All other rows below
    ``rows_high`` are free. The caller has checked that rows are in range and none comes twice.
    """
    state = State(matrix, directory, applied_lsn=slots[-1])
    table = state.rows
    table.reserve(rows_high)
    table.high = rows_high
    table.born[rows] = lsns
    table.died[rows] = NEVER
    table.checksums[rows] = checksums
    table.died[limbo] = slots[-1]
    state.name_slots(slots)
    state._limbo.buried.extend(limbo.tolist())
    unused = np.ones(rows_high, np.bool_)
    unused[rows] = unused[limbo] = False
    state._free.extend(np.flatnonzero(unused)[::-1].tolist())
    return state
