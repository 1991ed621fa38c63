"""`apply_entry`: one entry of a log into a store, for those who replay by hand.

    store = mmwal.VectorStore(dimension=768)
    for entry in WalManager.new_from_path("wal/").iter_entries():
        apply_entry(store, entry)

Not here: what recovery does, with arrays and in parallel (`recovery/recover.py`); it comes to the same.
"""

from __future__ import annotations

from typing import Any

from mmwal.entry import WalEntry, normalize_vector
from mmwal.store import VectorStore


def apply_entry(store: VectorStore, entry: Any) -> int:
    """Does to a store what an entry says; returns how many rows it changed.

    As in a recovery, an insert of an id that exists replaces it, metadata included, and an update or delete of one that
    does not exist is skipped. Markers (`WalEntry.Commit` and its like) and `WalEntry.Custom` change nothing:
    entries of a transaction come only once it is committed. A store with a log logs what is done to it, under LSNs of
    its own.

    Raises:
        TypeError: it is no entry of a log.
        VectorError: the vector has another dimension than the store; nothing was changed.

    Example:
        >>> store = VectorStore(dimension=2)
        >>> apply_entry(store, WalEntry.Insert("a", [1.0, 0.0])), apply_entry(store, WalEntry.Delete("b")), len(store)
        (1, 0, 1)
    """
    match entry:
        case WalEntry.Commit() | WalEntry.Prepare() | WalEntry.Rollback() | WalEntry.Checkpoint() | WalEntry.Custom():
            return 0
        case WalEntry.Batch():
            return _apply_batch(store, entry)
        case WalEntry.Insert():
            if entry.id in store and store.dtype is not None:  # nothing is kept of what was there
                normalize_vector(entry.vector, store.dtype, store.dimension, allow_nonfinite=True)
                store.delete(entry.id)
            store.insert(entry.id, entry.vector, entry.metadata)
        case WalEntry.Upsert():
            store.upsert(entry.id, entry.vector, entry.metadata)
        case WalEntry.Update() if entry.id in store:
            store.update(entry.id, entry.vector, entry.metadata)
        case WalEntry.Delete() if entry.id in store:
            store.delete(entry.id)
        case WalEntry.Update() | WalEntry.Delete():
            return 0
        case _:
            raise TypeError(f"{type(entry).__name__} is no entry of a log; pass what iter_entries() yields")
    return 1


def _apply_batch(store: VectorStore, batch: Any) -> int:
    """Applies a batch whole where the store can, else row by row: where an id comes twice, or not all are there."""
    there = sum(id in store for id in batch.ids)
    whole = len(set(batch.ids)) == len(batch.ids) and {
        "insert": there == 0,
        "upsert": True,
        "update": there == len(batch.ids),
        "delete": there == len(batch.ids),
    }.get(batch.operation, False)
    if not whole:
        return sum(apply_entry(store, single) for single in batch.singles())
    if batch.operation == "delete":
        store.delete_many(batch.ids)
    else:
        getattr(store, f"{batch.operation}_many")(batch.ids, batch.vectors, batch.metadata)
    return len(batch.ids)
