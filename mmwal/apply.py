"""`apply_entry`: one entry of a log into a store, for those who replay by hand.

    store = mmwal.VectorStore(dimension=768)
    for entry in WalManager.new_from_path("wal/").iter_entries():
        apply_entry(store, entry)

Not here: what recovery does, with arrays and in parallel (`recovery/recover.py`); it comes to the same.
"""

from __future__ import annotations

from typing import Any

from mmwal.entry import WalEntry
from mmwal.store import VectorStore
from mmwal.transaction import StoreTransaction


def apply_entry(store: VectorStore, entry: Any) -> int:
    """Does to a store what an entry says; returns how many rows it changed.

    As in a recovery, an insert of an id that exists replaces it, metadata included, and an update or delete of one that
    does not exist is skipped. Markers (`WalEntry.Commit` and its like) and `WalEntry.Custom` change nothing:
    entries of a transaction come only once it is committed. A store with a log logs what is done to it, under LSNs of
    its own.

    Raises:
        TypeError: it is no entry of a log, or that is no store.
        VectorError, MetadataError: as the store's own methods, such as for another dimension; nothing was changed.

    Example:
        >>> store = VectorStore(dimension=2)
        >>> apply_entry(store, WalEntry.Insert("a", [1.0, 0.0])), apply_entry(store, WalEntry.Delete("b")), len(store)
        (1, 0, 1)
    """
    if not isinstance(store, VectorStore):
        raise TypeError(f"store is a {type(store).__name__}; pass a VectorStore")
    match entry:
        case WalEntry.Commit() | WalEntry.Prepare() | WalEntry.Rollback() | WalEntry.Checkpoint() | WalEntry.Custom():
            return 0
        case WalEntry.Batch():
            return _apply_batch(store, entry)
        case WalEntry.Insert() if entry.id in store:  # nothing is kept of what was there
            with store.transaction() as txn:
                _replace(txn, entry)
                txn.commit(durable=False)
        case WalEntry.Insert():
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
    """Applies a batch as one write where it can be, else as a transaction: an id comes twice, or not all are there."""
    there = sum(id in store for id in batch.ids)
    whole = len(set(batch.ids)) == len(batch.ids) and {
        "insert": there == 0,
        "upsert": True,
        "update": there == len(batch.ids),
        "delete": there == len(batch.ids),
    }.get(batch.operation, False)
    if not whole:
        with store.transaction() as txn:
            changed = sum(_apply_within(txn, single) for single in batch.singles())
            txn.commit(durable=False)
        return changed
    if batch.operation == "delete":
        store.delete_many(batch.ids)
    else:
        getattr(store, f"{batch.operation}_many")(batch.ids, batch.vectors, batch.metadata)
    return len(batch.ids)


def _apply_within(txn: StoreTransaction, entry: Any) -> int:
    """Applies a row of a batch to a transaction."""
    match entry:
        case WalEntry.Insert():
            _replace(txn, entry)
        case WalEntry.Upsert():
            txn.upsert(entry.id, entry.vector, entry.metadata)
        case WalEntry.Update() if entry.id in txn:
            txn.update(entry.id, entry.vector, entry.metadata)
        case WalEntry.Delete() if entry.id in txn:
            txn.delete(entry.id)
        case _:
            return 0
    return 1


def _replace(txn: StoreTransaction, entry: Any) -> None:
    if entry.id in txn:
        txn.delete(entry.id)
    txn.insert(entry.id, entry.vector, entry.metadata)
