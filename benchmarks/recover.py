"""Recovery of a killed store, nothing of it checkpointed, beside the limit in the same run.

python benchmarks/recover.py [--mib N ...] [--dimension D ...] [--way WAY ...] [--cache warm|cold ...] [--dir DIRECTORY]
                             [--repetitions N] [--json]

A child fills a store until its log holds so many MiB, and kills itself: inserts, updates and deletes, in frames of one
row and of a thousand. Each measurement opens a fresh copy of what it left in a process of its own, with the files in
the page cache (warm) or not (cold: written back, and dropped from it), in one of these ways:

    1 worker       CrashRecoveryManager, the caller alone
    as chosen      the same with workers=None: what mmwal.open() does
    N threads      executor=ThreadPoolExecutor(N); by default 2, 4 and so on, up to the number of cores
    N processes    executor=ProcessPoolExecutor(N), spawned and at work before the clock starts; by default as threads

Printed: reading (every frame verified and listed) and the whole, without the last checkpoint; and the limit, by as many
threads as the way has workers (as chosen: as there are cores), measured right after each: the log's bytes checksummed,
in C, with nothing else done; and with the vectors that survive copied into a fresh mapping like the matrix. A ratio is
limit over recovery: how much of the limit's speed was reached. Cold, the limit reads the same file cold.

Memory is measured in a run of its own: anonymous memory at its most during recovery, less what the recovered store
keeps, for each row in the log. The directory needs three times the largest log.

--json writes ``{"machine", "cases": [{"mib", "dimension", "log_bytes", "entries", "rows", "memory_bytes_per_entry",
"pool_start_s", "ways": [{"way", "cache", "workers", "read_s", "recovery_s", "open_s", "limit_read_s", "limit_s":
[...]}]}]}``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH leaves it out: a quick test runs this script

import machine
from limits import Helper
from process import Sampler, anonymous_bytes, child, drop, fresh

CORES = os.cpu_count() or 1
COUNTS = [2 << step for step in range(8) if 2 << step <= max(CORES, 2)]
WAYS = ("1 worker", "as chosen", *(f"{count} {kind}" for kind in ("threads", "processes") for count in COUNTS))
CACHES = ("warm", "cold")
BATCH = 1000
SEGMENT_BYTES = 64 << 20


# ---- what a child does


def fill(directory: str, log_bytes: int, dimension: int) -> None:
    """Fills a store and dies: of ten rows, five are inserted, three updated and two deleted; half in frames of a
    thousand rows, half one by one."""
    import mmwal

    config = mmwal.WalConfig(
        wal_dir=f"{directory}/wal",
        data_dir=f"{directory}/data",
        dimension=dimension,
        segment_size=SEGMENT_BYTES,
        max_wal_size=16 << 30,
        checkpoint_interval=None,
    )
    store = mmwal.open(config=config)
    assert store.wal is not None
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((BATCH, dimension), np.float32)
    entries = written = 0
    while store.wal.last_lsn < log_bytes:
        new = list(range(written, written + BATCH))
        written += BATCH
        if (written // BATCH) % 2:
            store.insert_many(new, matrix)
            store.update_many(new[: 3 * BATCH // 5], matrix[: 3 * BATCH // 5])
            store.delete_many(new[3 * BATCH // 5 :])
        else:
            for id in new:
                store.insert(id, matrix[id % BATCH])
            for id in new[: 3 * BATCH // 5]:
                store.update(id, matrix[-1 - id % BATCH])
            for id in new[3 * BATCH // 5 :]:
                store.delete(id)
        entries += 2 * BATCH
    store.sync()
    print(json.dumps({"entries": entries, "rows": len(store), "log_bytes": store.wal.last_lsn}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def recover(directory: str, rows: int, way: str, *, sample: bool) -> None:
    """Recovers what the other one left, and says how long it took and what memory."""
    import mmwal

    started = time.perf_counter()
    pool = _pool_of(way)
    pool_start_s = time.perf_counter() - started
    read_s = 0.0

    def progress(now: mmwal.RecoveryProgress) -> None:
        nonlocal read_s
        if now.phase == "verify" and now.done_bytes == now.total_bytes:
            read_s = time.perf_counter() - started

    config = mmwal.RecoveryConfig(
        wal_dir=f"{directory}/wal",
        data_dir=f"{directory}/data",
        workers=1 if way == "1 worker" else None,
        max_recovery_time_ms=None,
    )
    manager = mmwal.CrashRecoveryManager(config, executor=pool, progress=progress)
    with Sampler(sample) as sampler:
        started = time.perf_counter()
        store = manager.recover()
        open_s = time.perf_counter() - started
    assert len(store) == rows, f"{len(store)} of {rows} rows came back"
    stats = manager.get_recovery_stats()
    found = {
        "read_s": read_s,
        "recovery_s": stats.recovery_time_ms / 1e3,
        "open_s": open_s,
        "workers": stats.workers,
        "pool_start_s": pool_start_s,
        "extra_bytes": sampler.most - anonymous_bytes(),
    }
    if pool is not None:
        pool.shutdown()
    print(json.dumps(found), flush=True)
    os._exit(0)  # a close would take a checkpoint, which nobody measures


def way_of(text: str) -> str:
    """Returns what is measured, as the command line names it. Raises `ValueError` for anything else."""
    number, _, kind = text.partition(" ")
    if text in WAYS or (kind in ("threads", "processes") and 1 <= int(number) <= 64):
        return text
    raise ValueError(text)


def workers_of(way: str) -> int:
    """Returns how many workers a way has, those of "as chosen" at most."""
    return CORES if way == "as chosen" else int(way.partition(" ")[0])


def _pool_of(way: str) -> Executor | None:
    workers = workers_of(way)
    if way.endswith("threads"):
        return ThreadPoolExecutor(workers)
    if not way.endswith("processes"):
        return None
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    for started in [pool.submit(_import_mmwal, 0.2) for _ in range(workers)]:
        started.result()
    return pool


def _import_mmwal(seconds: float) -> None:
    import mmwal.recovery.workers  # noqa: F401 (what a worker needs)

    time.sleep(seconds)  # so that the other one gets a task of its own


# ---- the limit


def limit(
    helper: Any, directory: Path, wal: Path, log_bytes: int, rows: int, dimension: int, threads: int
) -> tuple[float, float]:
    """Returns how long it takes to checksum a log, and to do that and to fill a fresh matrix from it."""
    stride = -(-4 * dimension // 64) * 64
    segments = sorted(wal.glob("segment-*.wal"))[: -(-log_bytes // SEGMENT_BYTES)]
    parts = [segments[part::threads] for part in range(threads)]
    shares = [rows // threads + (part < rows % threads) for part in range(threads)]
    target = directory / "limit"
    with target.open("w+b") as file, ThreadPoolExecutor(threads) as pool:
        os.posix_fallocate(file.fileno(), 0, max(rows * stride, mmap.PAGESIZE))
        with mmap.mmap(file.fileno(), max(rows * stride, mmap.PAGESIZE)) as mapping:
            mapping.madvise(mmap.MADV_RANDOM)  # as the matrix is, so that a later sync of one row stays small
            started = time.perf_counter()
            list(pool.map(lambda part: [_checksum(helper, path, log_bytes) for path in part], parts))
            read_s = time.perf_counter() - started
            whole = memoryview(mapping)
            places = [sum(shares[:part]) * stride for part in range(threads)]
            views = [whole[at : at + share * stride] for at, share in zip(places, shares, strict=True)]
            list(pool.map(lambda view: helper.copy(view, 4 * dimension, stride), views))
            taken_s = time.perf_counter() - started
            for view in (*views, whole):
                view.release()
    target.unlink()
    return read_s, taken_s


def _checksum(helper: Any, path: Path, log_bytes: int) -> None:
    """Checksums what a segment holds of the log."""
    start = int(path.stem.removeprefix("segment-"), 16) * SEGMENT_BYTES
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
        memoryview(mapping) as whole,
        whole[: log_bytes - start] as held,
    ):
        helper.checksum(held)


# ---- one case


def measure(helper: Any, mib: int, dimension: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fills a store, and recovers it in every way."""
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="mmwal-recover-") as folder:
        left, copy = Path(folder) / "left", Path(folder) / "copy"
        left.mkdir()
        filled = child(__file__, "fill", left, mib << 20, dimension)
        rows, log_bytes = filled["rows"], filled["log_bytes"]
        ways: dict[tuple[str, str], dict[str, Any]] = {}
        for _ in range(options.repetitions):
            for way in options.way:
                for cache in options.cache:
                    fresh(left, copy, cold=cache == "cold")
                    found = child(__file__, "recover", copy, rows, way)
                    threads = workers_of(way)
                    if cache == "cold":
                        drop(left)
                    limit_read_s, limit_s = limit(
                        helper, Path(folder), left / "wal", log_bytes, rows, dimension, threads
                    )
                    entry = ways.setdefault((way, cache), {"way": way, "cache": cache})
                    entry["workers"] = found["workers"]
                    said = {**found, "limit_read_s": limit_read_s, "limit_s": limit_s}
                    for name in ("read_s", "recovery_s", "open_s", "limit_read_s", "limit_s", "pool_start_s"):
                        entry.setdefault(name, []).append(said[name])
        fresh(left, copy, cold=False)
        extra_bytes = child(__file__, "memory", copy, rows, "1 worker")["extra_bytes"]
        shutil.rmtree(copy)
    return {
        "mib": mib,
        "dimension": dimension,
        **filled,
        "memory_bytes_per_entry": extra_bytes / filled["entries"],
        "ways": list(ways.values()),
    }


def show(case: dict[str, Any]) -> None:
    """Prints a case as a table."""
    print(
        f"\n{case['log_bytes'] / 1e6:,.0f} MB of log, {case['dimension']} values: {case['entries']:,} rows logged, "
        f"{case['rows']:,} come back; {case['memory_bytes_per_entry']:.0f} bytes of memory for each logged row beyond "
        "the store's own"
    )
    print("way           cache   read s  ratio (spread)           whole s  ratio (spread)           MB/s  opened s")
    for way in case["ways"]:
        cells = [f"{way['way']:<13} {way['cache']:<5}"]
        for name, beside in (("read_s", "limit_read_s"), ("recovery_s", "limit_s")):
            ratios = [ours / mine for mine, ours in zip(way[name], way[beside], strict=True)]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            cells.append(f"{statistics.median(way[name]):8.3f}  {statistics.median(ratios):.2f} {spread:<18}")
        rate = case["log_bytes"] / statistics.median(way["recovery_s"]) / 1e6
        print(" ".join(cells), f"{rate:7,.0f}  {statistics.median(way['open_s']):.3f}")
    for way in case["ways"]:
        if way["way"].endswith("processes"):
            start_s = statistics.median(way["pool_start_s"])
            print(f"the start of {way['way']}, {way['cache']}, counted in none of these: {start_s:.2f} s")


def main() -> int:
    warnings.simplefilter("ignore")
    if sys.argv[1:2] == ["--act"]:
        act, directory, number, *rest = sys.argv[2:]
        if act == "fill":
            fill(directory, int(number), int(rest[0]))
        recover(directory, int(number), rest[0], sample=act == "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--mib", type=int, action="append", help="of log; default: 100 and 1024, and 2048 of 768 values"
    )
    parser.add_argument("--dimension", type=int, action="append", help="default: 128 and 768")
    parser.add_argument("--way", type=way_of, action="append", metavar="WAY", help=f"default: {', '.join(WAYS)}")
    parser.add_argument("--cache", choices=CACHES, action="append")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = [(mib, dimension) for dimension in options.dimension or (128, 768) for mib in options.mib or (100, 1024)]
    if not options.mib and not options.dimension:
        cases.append((2048, 768))
    options.way, options.cache = options.way or WAYS, options.cache or CACHES
    facts = machine.facts(options.dir or Path(tempfile.gettempdir()))
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
    found = []
    with tempfile.TemporaryDirectory(prefix="mmwal-limits-") as folder:
        helper = Helper(Path(folder))
        for mib, dimension in cases:
            found.append(measure(helper, mib, dimension, options))
            if not options.json:
                show(found[-1])
    if options.json:
        print(json.dumps({"machine": facts, "cases": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
