"""Inserts while checkpoints run, beside the same inserts without: what an automatic checkpoint costs the writers.

python benchmarks/checkpoint.py [--dir DIRECTORY] [--rows N] [--repetitions N]

Each repetition inserts the same number of rows twice into one store, in turn: idle, then with checkpoints taken back
to back by another thread. Printed are the medians of the percentiles
and of their ratio, with the spread; nothing is gated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
import warnings
from typing import Any

import numpy as np

import mmwal

PERCENTILES = (50.0, 99.0, 99.9)


def inserts(store: mmwal.VectorStore, ids: list[str], vectors: Any) -> list[float]:
    """Inserts one by one; returns the percentiles of the latencies in us."""
    clock, taken = time.perf_counter_ns, np.empty(len(ids))
    for number, id in enumerate(ids):
        started = clock()
        store.insert(id, vectors[number % len(vectors)])
        taken[number] = clock() - started
    return [float(value) / 1e3 for value in np.percentile(taken, PERCENTILES)]


def beside_checkpoints(store: mmwal.VectorStore, ids: list[str], vectors: Any) -> tuple[list[float], int]:
    """The same while checkpoints are taken back to back; also returns how many."""
    going, taken = threading.Event(), [0]

    def take() -> None:
        while not going.is_set():
            store.checkpoint()
            taken[0] += 1

    thread = threading.Thread(target=take)
    thread.start()
    try:
        return inserts(store, ids, vectors), taken[0]
    finally:
        going.set()
        thread.join()


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):8.2f} ({min(values):.2f}..{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure; a temporary directory in it is removed afterwards")
    parser.add_argument("--rows", type=int, default=20_000, help="rows in each half of a repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)
    vectors = np.random.default_rng(0).random((256, 768), np.float32)
    idle: list[list[float]] = []
    busy: list[list[float]] = []
    checkpoints = 0
    with (
        tempfile.TemporaryDirectory(dir=arguments.dir) as folder,
        mmwal.open(folder, dimension=768, sync_interval_ms=100, checkpoint_interval=None) as store,
    ):
        inserts(store, [f"warm-{i}" for i in range(arguments.rows)], vectors)
        for repetition in range(arguments.repetitions):
            names = [f"{repetition}-{i}" for i in range(2 * arguments.rows)]
            idle.append(inserts(store, names[: arguments.rows], vectors))
            store.checkpoint()
            figures, count = beside_checkpoints(store, names[arguments.rows :], vectors)
            busy.append(figures)
            checkpoints += count
    print(f"store, one insert of 768, us; {arguments.repetitions} repetitions, {checkpoints} checkpoints meanwhile")
    for index, percentile in enumerate(PERCENTILES):
        a, b = [each[index] for each in idle], [each[index] for each in busy]
        ratio = [with_them / without for with_them, without in zip(b, a, strict=True)]
        print(f"p{percentile:<5g} idle {spread(a)}   beside checkpoints {spread(b)}   ratio {spread(ratio)}")


if __name__ == "__main__":
    main()
