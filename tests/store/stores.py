"""Stores made from words: small segments, vectors by number, what a store holds, what a directory holds."""

from __future__ import annotations

import hashlib
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import mmwal
from mmwal.errors import WalError

SEGMENT = 64 << 10
DIMENSION = 8
HUGE_INTERVAL = 3_600_000  # no background sync will come by itself while a test runs
FIELDS: dict[str, Any] = {"segment_size": SEGMENT, "dimension": DIMENSION, "sync_interval_ms": HUGE_INTERVAL}


def config(root: Any, kernel: Any, **fields: Any) -> mmwal.WalConfig:
    """A store in `root` with 64 KiB segments and vectors of 8 values; a field that is `...` is left out."""
    chosen = {**FIELDS, **fields}
    chosen = {name: value for name, value in chosen.items() if value is not ...}
    return mmwal.WalConfig(wal_dir=f"{root}/wal", data_dir=f"{root}/data", kernel=kernel.NAME, **chosen)


def vector(number: float, dimension: int = DIMENSION, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """A vector that tells its number."""
    return np.full(dimension, number, dtype)


def rows(numbers: Any, dimension: int = DIMENSION) -> np.ndarray[Any, Any]:
    """Vectors that tell their numbers."""
    return np.stack([vector(number, dimension) for number in numbers])


def contents(store: mmwal.VectorStore) -> dict[Any, tuple[bytes, Any, int]]:
    """Everything a store holds: vector, metadata and LSN of each id, each read in two ways that must agree."""
    found = {}
    for ids, vectors in store.batches(7):
        for id, row in zip(ids, vectors, strict=True):
            record = store.get(id)
            assert record is not None
            assert record.vector.tobytes() == row.tobytes()
            found[id] = (row.tobytes(), record.metadata, record.lsn)
    assert list(found) == store.ids() == list(store)
    assert len(store) == len(found)
    return found


def reserved(store: mmwal.VectorStore) -> int:
    """Where the log ends, reservations included; 0 for a store without one."""
    return store.wal.get_metrics().reserved_lsn if store.wal is not None else 0


def digests(root: Path) -> dict[str, str]:
    """A digest of every file below a directory but the lock."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def settled(root: Path) -> dict[str, str]:
    """The digests of a live writer's files, once it has nothing left to do in the background."""
    before: dict[str, str] = {}
    while True:
        try:
            now = digests(root)
        except FileNotFoundError:  # a spare was taken meanwhile
            continue
        if now == before:
            return now
        before = now
        time.sleep(0.3)


def crashed_copy(root: Path, to: Path) -> Path:
    """Copies what a kill leaves of a live writer's files: the mappings share the page cache. A copy takes a while, and
    is made again until nothing has changed meanwhile: with an idle mark between two files it is what no kill leaves."""
    settled(root)
    while True:
        with suppress(FileNotFoundError, shutil.Error):  # a spare was taken meanwhile
            shutil.copytree(root, to, ignore=shutil.ignore_patterns("lock"))
            if digests(to) == digests(root):
                return to
        shutil.rmtree(to)


def allocated(root: Path) -> int:
    """Bytes of real blocks below a directory."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def close_quietly(store: Any) -> None:
    """Closes what a test left open, perhaps broken."""
    with suppress(WalError, OSError):
        store.close()
