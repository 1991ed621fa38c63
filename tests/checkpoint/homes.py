"""A data directory without a log: what a store does to it, with LSNs counted by hand and a dict as the model."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mmwal.checkpoint.checkpoint import Checkpointer
from mmwal.checkpoint.control import DataIdentity
from mmwal.checkpoint.load import Loaded, create_data, load_checkpoint
from mmwal.checkpoint.verify import damaged_rows
from mmwal.entry import CheckpointInfo
from mmwal.state.state import State

DIMENSION = 4
START_LSN = 8192
IDENTITY = DataIdentity(
    store_id=b"S" * 16, history_id=b"H" * 16, epoch=1, dimension=DIMENSION, dtype=1, metric=2, created_ns=5
)

Content = dict[Any, tuple[int, bytes | None]]  # id to (LSN, metadata); the vector follows from both


def vector_of(id: Any, lsn: int) -> Any:
    seed = zlib.crc32(repr((id, lsn)).encode())
    return np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)


class Home:
    """A store's data on a disk."""

    def __init__(self, disk: Any, kernel: Any, path: str, loaded: Loaded) -> None:
        self.disk = disk
        self.kernel = kernel
        self.path = path
        self.loaded = loaded
        self.state = loaded.state
        self.content: Content = content_of(self.state)
        self.lsn = loaded.redo_lsn
        self.waited: list[int] = []
        self.published: list[tuple[int, int, int]] = []
        self.before_checkpoint: Callable[[int, Content], None] = lambda lsn, content: None
        self.checkpointer = Checkpointer(
            disk,
            path,
            kernel,
            loaded,
            wait_durable=self.waited.append,
            on_published=lambda *facts: self.published.append(facts),
        )

    @classmethod
    def create(cls, disk: Any, kernel: Any, path: str = "/data") -> Home:
        disk.make_directory(path)
        return cls(disk, kernel, path, create_data(disk, kernel, path, IDENTITY, START_LSN))

    @classmethod
    def open(cls, disk: Any, kernel: Any, path: str = "/data", *, restate: bool = True) -> Home:
        loaded = load_checkpoint(disk, path)
        assert loaded is not None
        if restate:
            loaded.control.restate()
        return cls(disk, kernel, path, loaded)

    def put(self, *ids: Any, metadata: bytes | None = None) -> None:
        """Puts ids, each under an LSN of its own."""
        for id in ids:
            self.lsn += 64
            with self.state.lock:
                row = self.state.take_row()
                self.state.matrix.array[row] = vector_of(id, self.lsn)
                self.state.put(id, row, self.lsn, metadata)
                self.state.advance(self.lsn)
            self.content[id] = (self.lsn, metadata)

    def remove(self, *ids: Any) -> None:
        for id in ids:
            self.lsn += 64
            with self.state.lock:
                self.state.remove(id, self.lsn)
                self.state.advance(self.lsn)
            del self.content[id]

    def checkpoint(self) -> CheckpointInfo:
        self.before_checkpoint(self.lsn, dict(self.content))
        return self.checkpointer.take()

    def change(self, rng: random.Random, count: int, ids: int = 6) -> None:
        """Does some puts and removes."""
        for _ in range(count):
            id = rng.choice([f"id-{n}" if n % 2 else n for n in range(ids)])
            if id in self.content and rng.random() < 0.4:
                self.remove(id)
            else:
                self.put(id, metadata=rng.choice([None, None, b"m" * rng.randrange(9)]))

    def close(self) -> None:
        self.loaded.matrix.close()


def content_of(state: State) -> Content:
    with state.reading() as view:
        return {id: (lsn, metadata) for id, lsn, metadata in view.records(view.rows())}


def check_whole(kernel: Any, loaded: Loaded, expected: Content) -> None:
    """What was loaded is what was checkpointed, to the last bit of every row."""
    state = loaded.state
    assert content_of(state) == expected
    assert len(state) == len(expected)
    for id, (lsn, metadata) in expected.items():
        found = state.read(id)
        assert found is not None
        assert (found[1].lsn, found[1].metadata) == (lsn, metadata)
        assert found[0].tobytes() == vector_of(id, lsn).tobytes()
    assert damaged_rows(kernel, state) == []
