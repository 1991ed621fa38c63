"""Honest stores, small, written by mmwal itself: the bytes from which hostile ones are made.

The same bytes on every machine and with either kernel: what is random comes from the simulated disk's seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from mmwal.config import WalConfig
from mmwal.format.segment import SEGMENT_BYTES_MIN
from mmwal.log.control import LogIdentity, create_control
from mmwal.manager import WalManager
from mmwal.opening import open_store
from mmwal.testing.simulator import SimulatedDisk
from tools.fuzzing.disk import DATA, WAL, Files

DIMENSION = 4


def config(kernel: Any = "py") -> WalConfig:
    """Returns how the stores are opened."""
    return WalConfig(
        wal_dir=WAL,
        data_dir=DATA,
        sync_interval_ms=10,
        checkpoint_interval=None,
        max_wal_size=1 << 20,
        runway_segments=1,
        append_timeout_ms=100,
        kernel=kernel,
    )


@dataclass(frozen=True)
class Seed:
    """An honest store: what it is called, its files, and whether it has a matrix or is a log alone."""

    name: str
    files: Files
    owned: bool


@cache
def seeds() -> list[Seed]:
    """Returns the honest stores."""
    return [Seed(name, _written(story, dtype, owned, end), owned) for name, story, dtype, owned, end in _STORIES]


def _written(story: Callable[[Any, SimulatedDisk], None], dtype: int, owned: bool, clean: bool) -> Files:
    """Writes a store; a log that is closed cleanly has no fixed dimension."""
    disk = SimulatedDisk(seed=7)
    disk.make_directory(WAL)
    disk.make_directory(DATA)
    identity = LogIdentity(
        store_id=b"store-of-a-seed!",
        history_id=b"history-of-seeds",
        epoch=1,
        segment_bytes=SEGMENT_BYTES_MIN,
        dimension=DIMENSION if owned or not clean else 0,
        dtype=dtype,
        metric=1,
        created_ns=disk.time_ns(),
    )
    create_control(disk, WAL, identity)
    opened = open_store(config(), disk) if owned else WalManager(config(), disk=disk)
    story(opened, disk)
    _work(disk)
    if clean:
        opened.close()
    left = disk.kill()
    files: Files = {}
    for folder in (WAL, DATA):
        for name in left.list_directory(folder):
            file = left.open(f"{folder}/{name}", writable=False)
            files[f"{folder}/{name}"] = file.read(0, file.size())
    if (matrix := files.get(f"{DATA}/matrix")) is not None:  # what no row was ever in is not worth copying
        files[f"{DATA}/matrix"] = matrix[: max(4096, -(-len(matrix.rstrip(b"\0")) // 4096) * 4096)]
    return files


def _work(disk: SimulatedDisk) -> None:
    for _ in range(3):
        disk.run_workers()
        disk.advance(1.0)


def _vector(rng: random.Random, rows: int = 0) -> Any:
    values = np.array([rng.randrange(-60, 60) for _ in range(max(rows, 1) * DIMENSION)], np.float32)
    return values.reshape(rows, DIMENSION) if rows else values


def _few(store: Any, disk: SimulatedDisk) -> None:
    rng = random.Random(1)
    store.insert("a", _vector(rng), {"title": "one", "tags": ["x", 1, None]})
    store.insert(7, _vector(rng))
    store.insert("é", _vector(rng), {})
    store.delete("a")


def _checkpoints(store: Any, disk: SimulatedDisk) -> None:
    rng = random.Random(2)
    store.insert_many([f"id-{n}" for n in range(8)], _vector(rng, 8), [{"n": n} for n in range(8)])
    store.checkpoint()
    for n in (1, 3, 5):
        store.update(f"id-{n}", _vector(rng))
    store.delete("id-2")
    store.checkpoint()
    store.insert_many([1, 2, 3], _vector(rng, 3))
    store.upsert("id-1", _vector(rng), {"b": b"bytes", "f": 0.5})
    store.checkpoint()
    _work(disk)
    store.insert("after", _vector(rng))
    store.update("id-0", metadata={"only": "metadata"})


def _segments(store: Any, disk: SimulatedDisk) -> None:
    rng = random.Random(3)
    for n in range(50):
        store.upsert(f"key-{n % 11}", _vector(rng), {"n": n, "text": "x" * 90} if n % 3 else None)
        _work(disk)
    store.insert_many(list(range(280)), _vector(rng, 280), [{"blob": b"y" * 20}] * 280)  # larger than a segment
    _work(disk)
    store.delete_many(list(range(276)))


def _log(wal: Any, disk: SimulatedDisk) -> None:
    rng = random.Random(4)
    for n in range(24):
        wal.log_insert(f"log-{n}", _vector(rng), {"n": n, "pad": "z" * 200})
        _work(disk)
    wal.log_batch([1, 2, "three"], _vector(rng, 3))
    wal.log_batch(list(range(250)), _vector(rng, 250), [{"blob": b"w" * 20}] * 250)
    _work(disk)
    wal.log_update("log-1", None, {"n": -1})
    wal.log_delete("log-2")


_STORIES: tuple[tuple[str, Any, int, bool, bool], ...] = (
    ("few", _few, 1, True, False),
    ("checkpoints", _checkpoints, 1, True, False),
    ("closed", _checkpoints, 1, True, True),
    ("segments", _segments, 1, True, False),
    ("half values", _checkpoints, 2, True, False),
    ("log", _log, 1, False, False),
    ("closed log", _log, 1, False, True),
)
