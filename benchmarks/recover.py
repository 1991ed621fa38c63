"""Recovery of a killed store, nothing of it checkpointed, beside the limit in the same run.

python benchmarks/recover.py [--mib N] [--dimension D] [--dir DIRECTORY] [--repetitions N] [--json]

For each repetition a child inserts rows, in batches of 1,000, until the log holds so many MiB, and kills itself. One
more opens the store: what it prints is `recovery_stats`, and how long `mmwal.open` took, its last checkpoint included.
The limit is one core's: the same payload bytes checksummed, and copied into a fresh mapping as large as the matrix.

--json writes ``{"payload_bytes", "rows", "repetitions": [{"open_s", "recovery_s", "limit_s", "workers"}]}``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1000
PIECE_BYTES = 4 << 20


def write(directory: str, rows: int, dimension: int) -> None:
    """Inserts rows and dies."""
    import mmwal

    config = mmwal.WalConfig(
        wal_dir=f"{directory}/wal",
        data_dir=f"{directory}/data",
        dimension=dimension,
        max_wal_size=8 << 30,
        checkpoint_interval=None,
    )
    store = mmwal.open(config=config)
    matrix = np.random.default_rng(0).standard_normal((BATCH, dimension), np.float32)
    for start in range(0, rows, BATCH):
        store.insert_many(list(range(start, start + BATCH)), matrix)
    store.sync()
    os.kill(os.getpid(), signal.SIGKILL)


def recover(directory: str, rows: int, dimension: int) -> None:
    """Opens what the other one left, and says how long it took."""
    import mmwal

    started = time.perf_counter()
    store = mmwal.open(directory)
    open_s = time.perf_counter() - started
    assert len(store) == rows, f"{len(store)} of {rows} rows came back"
    stats = store.recovery_stats
    print(json.dumps({"open_s": open_s, "recovery_s": stats.recovery_time_ms / 1e3, "workers": stats.workers}))
    store.close()


def limit_s(directory: Path, payload_bytes: int) -> float:
    """Returns how long one core takes to checksum so many bytes and to copy them into a fresh mapping."""
    piece = np.random.default_rng(0).bytes(PIECE_BYTES)
    with (directory / "limit").open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, payload_bytes)
        with mmap.mmap(file.fileno(), payload_bytes) as target:
            started = time.perf_counter()
            for start in range(0, payload_bytes, PIECE_BYTES):
                size = min(PIECE_BYTES, payload_bytes - start)
                zlib.crc32(piece)
                target[start : start + size] = piece[:size]
            return time.perf_counter() - started


def child(act: str, directory: str, rows: int, dimension: int) -> subprocess.CompletedProcess[str]:
    """Runs a part of this script in a process of its own."""
    command = [sys.executable, __file__, "--act", act, directory, str(rows), str(dimension)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measure(root: Path, rows: int, dimension: int) -> dict[str, Any]:
    """Writes, kills, opens: one repetition."""
    with tempfile.TemporaryDirectory(dir=root, prefix="mmwal-recover-") as folder:
        written = child("write", folder, rows, dimension)
        if written.returncode != -signal.SIGKILL:
            raise SystemExit(f"the writer ended with {written.returncode}: {written.stderr[-500:]}")
        opened = child("recover", folder, rows, dimension)
        if opened.returncode:
            raise SystemExit(f"opening failed: {opened.stderr[-500:]}")
        return {**json.loads(opened.stdout), "limit_s": limit_s(Path(folder), rows * dimension * 4)}


def main() -> int:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--act"]:
        act, directory, rows, dimension = sys.argv[2:6]
        (write if act == "write" else recover)(directory, int(rows), int(dimension))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="of payload")
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = max(1, (options.mib << 20) // (4 * options.dimension) // BATCH) * BATCH
    runs = [measure(options.dir, rows, options.dimension) for _ in range(options.repetitions)]
    payload_bytes = rows * options.dimension * 4
    if options.json:
        print(json.dumps({"payload_bytes": payload_bytes, "rows": rows, "repetitions": runs}))
        return 0
    print(f"{rows:,} rows of {options.dimension}, {payload_bytes / 1e6:,.0f} MB; {options.repetitions} repetitions")
    for name in ("recovery_s", "open_s", "limit_s"):
        values = [run[name] for run in runs]
        median = statistics.median(values)
        rate = payload_bytes / median / 1e6
        print(f"{name:12} {median:6.3f} ({min(values):.3f}..{max(values):.3f})  {rate:8,.0f} MB/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
