"""A process that counts in a store until it is killed, so that a reader can tell a prefix from anything else.

    python -m tests.opening.counting_writer DIRECTORY KERNEL SYNC_INTERVAL_MS PROGRESS_FILE

Round n sets every counter to n in one batch, then ``last`` to n, then lets some ids come and go, so that rows and
segments are reused. The progress file then holds n, in 8 bytes.
"""

import itertools
import os
import sys
import warnings
from typing import Any

import numpy as np

import mmwal

DIMENSION = 24
COUNTERS = [f"counter-{i}" for i in range(16)]
LAST = "last"
PASSING = 5  # ids of one round that the next one deletes


def vector(number: int) -> Any:
    return np.full(DIMENSION, number, np.float32)


def passing(number: int) -> list[int]:
    return [number * PASSING + i for i in range(PASSING)]


def count(store: mmwal.VectorStore, number: int) -> None:
    """Round ``number``, from 0 on."""
    store.upsert_many(COUNTERS, [vector(number)] * len(COUNTERS), [{"n": number}] * len(COUNTERS))
    store.upsert(LAST, vector(number), {"n": number})
    store.insert_many(passing(number), [vector(number)] * PASSING)
    if number:
        store.delete_many(passing(number - 1))


def main(directory: str, kernel: Any, sync_interval_ms: str, progress_file: str) -> None:
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)
    store = mmwal.open(
        directory,
        dimension=DIMENSION,
        kernel=kernel,
        sync_interval_ms=int(sync_interval_ms),
        segment_size=64 << 10,
        max_wal_size=1 << 20,
        checkpoint_interval=300,
    )
    progress = os.open(progress_file, os.O_WRONLY | os.O_CREAT)
    for number in itertools.count():
        count(store, number)
        os.pwrite(progress, number.to_bytes(8, "little"), 0)
        if number == 0:
            os.write(1, b"counting\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
