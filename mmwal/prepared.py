"""The transactions of a store that are prepared and in doubt: what they write, and what they hold meanwhile.

Not here: their frames (`log/transaction.py`), preparing and deciding (`store.py`), who decides (`two_phase.py`).

* An id that one of them writes is written by nobody else until it is decided: its rows were checked once, and count as
  they are.
* A checkpoint says where the first of them begins, so that the log is kept from there on for recovery to find them.
* One that is decided holds the log until a checkpoint covers the decision: before that, a crash needs its entries.
* All of it is guarded by the lock of the store's state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmwal.entry import Id, InDoubt, utc
from mmwal.errors import DuplicateTransactionError, TransactionInDoubtError, UnknownTransactionError
from mmwal.log.batch import Batch
from mmwal.log.transaction import LogTransaction


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction in doubt; ``logged`` is None for one that writes nothing, of which the log does not know."""

    gid: str
    lsn: int
    timestamp_ns: int
    batches: list[Batch]
    logged: LogTransaction | None

    def told(self) -> InDoubt:
        """Returns what a caller sees of it."""
        return InDoubt(self.gid, self.lsn, utc(self.timestamp_ns), sum(len(batch.ids) for batch in self.batches))


class PreparedTransactions:
    """Those of one store."""

    def __init__(self, found: Iterable[Prepared] = ()) -> None:
        self._by_gid: dict[str, Prepared] = {}
        self.holders: dict[Id, str] = {}  # id to the gid of the transaction that writes it
        self._decided: list[tuple[int, int]] = []  # where it begins, LSN of the decision
        for prepared in found:
            self.add(prepared)

    def __len__(self) -> int:
        return len(self._by_gid)

    def add(self, prepared: Prepared) -> None:
        """Takes a transaction that is prepared, and holds its ids."""
        self._by_gid[prepared.gid] = prepared
        for batch in prepared.batches:
            self.holders.update(dict.fromkeys(batch.ids, prepared.gid))

    def decided(self, prepared: Prepared, lsn: int) -> None:
        """Lets go of the ids of a transaction whose end is logged."""
        if self._by_gid.pop(prepared.gid, None) is None:
            raise UnknownTransactionError(prepared.gid)  # another thread was first
        for batch in prepared.batches:
            for id in batch.ids:
                self.holders.pop(id, None)
        if prepared.logged is not None:
            self._decided.append((prepared.logged.first_lsn, lsn))

    def of(self, gid: str) -> Prepared:
        """Returns the transaction of a global id. Raises `UnknownTransactionError`."""
        try:
            return self._by_gid[gid]
        except KeyError:
            raise UnknownTransactionError(gid) from None

    def check_new(self, gid: str) -> None:
        """Raises `DuplicateTransactionError` where one of that global id is in doubt."""
        if gid in self._by_gid:
            raise DuplicateTransactionError(gid)

    def check_free(self, id: Id) -> None:
        """Raises `TransactionInDoubtError` for an id that one of them writes."""
        if id in self.holders:
            raise TransactionInDoubtError(id, self.holders[id])

    def pinned_lsn(self, redo_lsn: int) -> int:
        """Returns where the log is needed from for a checkpoint as of ``redo_lsn``. Redo points only grow."""
        self._decided = [(first_lsn, lsn) for first_lsn, lsn in self._decided if lsn > redo_lsn]
        open_ones = (prepared.logged.first_lsn for prepared in self._by_gid.values() if prepared.logged is not None)
        return min([redo_lsn, *open_ones, *(first_lsn for first_lsn, _ in self._decided)])

    def told(self) -> list[InDoubt]:
        """Returns what a caller sees of them, in the order in which they were prepared."""
        return sorted((prepared.told() for prepared in self._by_gid.copy().values()), key=lambda one: one.lsn)
