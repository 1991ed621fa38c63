"""What is measured: a log or a store with a fresh directory, how much is done with it, and with which vectors.

Not here: what is timed (`single.py`, `tail.py`, `durable.py`, `batch.py`), the limits (`limits.py`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from limits import Floor, Helper, StandInFloor

import mmwal

SAMPLE_EVERY = 64
BATCH_ROWS = 1000
BATCH_DIMENSION = 768
POOL_ROWS = 64  # vectors that are inserted again and again: they stay in the cache, as a fresh embedding would
LAYERS = ("log", "store")


@dataclass(frozen=True)
class Sizes:
    """How much is done in one repetition."""

    repetitions: int = 5
    segment_bytes: int = 64 << 20
    bursts: int = 12
    burst_rows: int = 2048
    burst_pause_s: float = 0.15
    pace_s: float = 2.0
    durable_blocks: int = 6
    durable_rows: int = 40
    batches: int = 340
    device_segment_bytes: int = 8 << 20
    device_rows: int = 6000
    memory_bytes: int = 64 << 20
    sequential_bytes: int = 1 << 30


SMOKE = Sizes(
    repetitions=2,
    segment_bytes=4 << 20,
    bursts=2,
    burst_rows=256,
    burst_pause_s=0.01,
    pace_s=0.1,
    durable_blocks=1,
    durable_rows=10,
    batches=4,
    device_segment_bytes=1 << 20,
    device_rows=200,
    memory_bytes=4 << 20,
    sequential_bytes=12 << 20,
)


@dataclass(frozen=True)
class Run:
    """What every group is given."""

    root: Path
    helper: Helper
    sizes: Sizes
    kernels: tuple[str, ...]
    dimensions: tuple[int, ...]
    clock_ns: float

    def floor(self) -> Floor:
        """Returns the call floor's stand-in for a log."""
        return Floor(self.helper.nothing) if self.helper.compiled else StandInFloor(self.helper.nothing)

    def each(self) -> Iterator[tuple[str, int]]:
        """Yields every kernel with every dimension."""
        for kernel in self.kernels:
            for dimension in self.dimensions:
                yield kernel, dimension


class Subject:
    """A log or a store in a directory of its own, behind the few calls that the groups make."""

    def __init__(self, run: Run, layer: str, kernel: str, dimension: int, interval_ms: int, segment_bytes: int) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=run.root, prefix=f"{layer}-"))
        fields = {
            "wal_dir": self.directory / "wal",
            "data_dir": self.directory / "data",
            "dimension": dimension,
            "sync_interval_ms": interval_ms,
            "segment_size": segment_bytes,
            "max_wal_size": max(1_000_000_000, 8 * segment_bytes),
            "kernel": kernel,
        }
        config = mmwal.WalConfig(**fields)  # type: ignore[arg-type]
        self._runway_bytes = config.runway_segments * segment_bytes
        self._next = 0
        self._target: Any
        if layer == "log":
            self._target = self._wal = mmwal.WalManager(config)
            self.insert, self.insert_many = self._target.log_insert, self._target.log_batch
        else:
            self._target = mmwal.open(config=config)
            self._wal = self._target.wal
            self.insert, self.insert_many = self._target.insert, self._target.insert_many
        self._layer = layer
        self.wait_ready()

    def ids(self, count: int) -> list[str]:
        """Returns ids that were never used before."""
        first, self._next = self._next, self._next + count
        return [f"document-{number:08d}" for number in range(first, first + count)]

    def insert_batch(self, matrix: Any) -> int:
        """Inserts the rows of a matrix at once, durably; returns the LSN."""
        return int(self.insert_many(self.ids(len(matrix)), matrix))

    def release(self) -> None:
        """Lets the log go, as an owner does who took a snapshot; for a store its own checkpoints do."""
        if self._layer == "log":
            self._wal.release(self._wal.last_lsn)

    @property
    def syncs(self) -> int:
        """How many syncs the log has made."""
        return int(self._wal.get_metrics().syncs)

    def wait_ready(self) -> None:
        """Waits until the segments ahead are there, at most some seconds."""
        wait_ready(self._wal, self._runway_bytes)

    def close(self) -> None:
        """Closes it and removes its directory."""
        self._target.close()
        shutil.rmtree(self.directory)


@contextmanager
def subject(
    run: Run, layer: str, kernel: str, dimension: int, interval_ms: int, segment_bytes: int | None = None
) -> Iterator[Subject]:
    """Opens a log or a store for a ``with`` block."""
    opened = Subject(run, layer, kernel, dimension, interval_ms, segment_bytes or run.sizes.segment_bytes)
    try:
        yield opened
    finally:
        opened.close()


def wait_ready(wal: Any, runway_bytes: int) -> None:
    """Waits until a log has prepared so many bytes ahead, at most some seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until and wal.get_metrics().preallocated_mb * 1e6 < runway_bytes:
        time.sleep(0.01)
    time.sleep(0.05)


def pool(dimension: int) -> list[Any]:
    """Returns vectors to insert."""
    return list(vectors(POOL_ROWS, dimension))


def vectors(rows: int, dimension: int) -> Any:
    """Returns a matrix of random vectors."""
    return np.random.default_rng(dimension).standard_normal((rows, dimension), np.float32)


def cost_of_the_clock_ns() -> float:
    """Returns what lies between two readings of the clock."""
    clock = time.perf_counter_ns
    return sorted(-clock() + clock() for _ in range(10_001))[5_000]


def timed_us(call: Callable[..., Any], *given: Any) -> float:
    """Returns how long a call took, in us."""
    started_ns = time.perf_counter_ns()
    call(*given)
    return (time.perf_counter_ns() - started_ns) / 1e3
