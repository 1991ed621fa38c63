"""A process that writes, acknowledges each operation that returned, and waits to be killed.

    python -m tests.process.writer store DIRECTORY KERNEL SYNC_INTERVAL_MS FIRST_OPERATION
    python -m tests.process.writer log   DIRECTORY KERNEL SYNC_INTERVAL_MS FIRST_OPERATION

It says ``open``, then ``<operation number> <LSN>`` for each operation. Operation n is the same in every process.
"""

import os
import sys
import warnings
from typing import Any

import numpy as np

import mmwal
from mmwal.cli.demo.plan import Operation

DIMENSION = 24
VECTORS = np.random.default_rng(5).standard_normal((512, DIMENSION)).astype(np.float32)
OPERATIONS = 100_000


def operation(number: int) -> Operation:
    """Operation ``number``: all of 0 to ``number`` in order are valid; ids come, change and go."""
    decade, kind = divmod(number, 10)
    row = number % len(VECTORS)
    match kind:
        case 0 | 1 | 2:
            return Operation("insert", [f"single-{decade}-{kind}"], [row], [{"n": number}])
        case 3:
            return Operation("insert_many", [f"many-{decade}-{i}" for i in range(12)], [row] * 12)
        case 4:
            return Operation("update", [f"single-{decade}-0"], [row])
        case 5:
            return Operation("update", [f"single-{decade}-2"], None, [{"n": -number}])
        case 6:
            return Operation("delete", [f"single-{decade}-1"])
        case 7:
            return Operation("upsert", [number % 300], [row], [{"n": number}])
        case 8:
            return Operation("delete_many", [f"many-{decade}-{i}" for i in range(0, 12, 2)])
        case _:
            return Operation("update_many", [f"many-{decade}-1", f"many-{decade}-3"], [row, 0])


def open_store(directory: str, kernel: Any, sync_interval_ms: int) -> mmwal.VectorStore:
    """Opens the store so that even a short life rotates, recycles and takes checkpoints."""
    return mmwal.open(
        directory,
        dimension=DIMENSION,
        kernel=kernel,
        sync_interval_ms=sync_interval_ms,
        segment_size=64 << 10,
        max_wal_size=1 << 20,
        checkpoint_interval=400,
    )


def open_log(directory: str, kernel: Any, sync_interval_ms: int) -> mmwal.WalManager:
    return mmwal.WalManager(
        mmwal.WalConfig(
            wal_dir=directory,
            dimension=DIMENSION,
            kernel=kernel,
            sync_interval_ms=sync_interval_ms,
            segment_size=64 << 10,
        )
    )


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def main(what: str, directory: str, kernel: str, sync_interval_ms: str, first: str) -> None:
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)
    if what == "store":
        store = open_store(directory, kernel, int(sync_interval_ms))
        say("open")
        for number in range(int(first), OPERATIONS):
            say(f"{number} {operation(number).carry_out(store, VECTORS)}")
    else:
        log = open_log(directory, kernel, int(sync_interval_ms))
        say("open")
        for number in range(int(first), OPERATIONS):
            say(f"{number} {log.log_insert(f'row-{number}', VECTORS[number % len(VECTORS)])}")


if __name__ == "__main__":
    main(*sys.argv[1:])
