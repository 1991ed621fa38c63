"""Inserts while checkpoints run, beside the same inserts without: what an automatic checkpoint costs the writers.

python benchmarks/checkpoint.py [--dir DIRECTORY] [--seconds S] [--repetitions N] [--json FILE]

Each repetition inserts the same number of rows twice into one store, in turn: idle, then with checkpoints taken back to
back by another thread. First at the steady pace of target 2 (`tail.py`), as in a service; then flat out, where the
writer, the syncs and the checkpoints want more than two cores have. Printed are the medians of the percentiles and of
their ratio within a repetition, with the spread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import Row, beside, percentile, print_table
from limits import Helper
from tail import PACE_PER_SECOND

import mmwal

DIMENSION = 768
POOL_ROWS = 64
WARM_ROWS = 20_000
FLAT_OUT_ROWS = 20_000
SHARES = (0.5, 0.99, 0.999)
MOST = 3.0  # item 23: p99.9 beside a checkpoint, to idle


@dataclass
class Pace:
    """One way to insert, and what came of it: for each repetition the ordered latencies in us."""

    name: str
    rows: int
    step_ns: int
    idle: list[list[float]] = field(default_factory=list)
    busy: list[list[float]] = field(default_factory=list)
    checkpoints: int = 0


def inserts(helper: Helper, store: mmwal.VectorStore, pace: Pace, names: str, vectors: list[Any]) -> list[float]:
    """Inserts one by one; returns the ordered latencies in us."""
    clock, taken = time.perf_counter_ns, [0.0] * pace.rows
    ids = [f"{names}-{number}" for number in range(pace.rows)]
    due = clock()
    for number, id in enumerate(ids):
        if pace.step_ns:
            due += pace.step_ns
            helper.wait_until(due)
        started = clock()
        store.insert(id, vectors[number % POOL_ROWS])
        taken[number] = (clock() - started) / 1e3
    return sorted(taken)


@contextmanager
def checkpoints(store: mmwal.VectorStore) -> Iterator[list[int]]:
    """Takes checkpoints back to back; gives a list whose only item is how many."""
    over, taken = threading.Event(), [0]

    def take() -> None:
        while not over.is_set():
            store.checkpoint()
            taken[0] += 1

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


def measure(root: Path, seconds: float, repetitions: int) -> list[Row]:
    """Returns the rows of the table."""
    helper = Helper(root)
    vectors = list(np.random.default_rng(0).random((POOL_ROWS, DIMENSION), np.float32))
    steady = Pace(f"{PACE_PER_SECOND:,} a second", int(seconds * PACE_PER_SECOND), 1_000_000_000 // PACE_PER_SECOND)
    flat_out = Pace("flat out", FLAT_OUT_ROWS, 0)
    with mmwal.open(root / "store", dimension=DIMENSION, sync_interval_ms=100, checkpoint_interval=None) as store:
        inserts(helper, store, Pace("warm", WARM_ROWS, 0), "warm", vectors)
        for pace in (steady, flat_out):
            for repetition in range(repetitions):
                store.checkpoint()
                pace.idle.append(inserts(helper, store, pace, f"{pace.name} idle {repetition}", vectors))
                store.checkpoint()
                with checkpoints(store) as taken:
                    pace.busy.append(inserts(helper, store, pace, f"{pace.name} busy {repetition}", vectors))
                pace.checkpoints += taken[0]
    return [
        beside(
            "checkpoint",
            f"store, {DIMENSION}, {pace.name}, p{100 * share:g} beside checkpoints",
            "us",
            [percentile(taken, share) for taken in pace.busy],
            "idle",
            [percentile(taken, share) for taken in pace.idle],
            most=MOST if share == SHARES[-1] and pace is steady else None,
            of={"number": 10, "layer": "store", "dimension": DIMENSION, "pace": pace.name},
            note=f"{pace.checkpoints} checkpoints meanwhile" if share == SHARES[-1] else "",
        )
        for pace in (steady, flat_out)
        for share in SHARES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", help="where to measure; a temporary directory in it is removed afterwards")
    parser.add_argument("--seconds", type=float, default=2.0, help="each half of a repetition at the steady pace")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        rows = measure(Path(folder), arguments.seconds, arguments.repetitions)
    print_table(rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
