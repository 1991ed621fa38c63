"""Commits that share a sync: durable commits a second, how long each took, and how many syncs that were.

python benchmarks/commit.py [--seconds S] [--repetitions N] [--dimension D] [--kernel c|py] [--dir DIRECTORY] [--smoke]
                            [--json]

    threads        1, 4, 16, 64: each inserts a row and waits until it is durable, again and again, at interval 0
    tasks          1, 16, 256 of one event loop, the same with `AsyncWalManager`; and 256 that do not wait for a sync
    transactions   of 1, 10, 100, 1000 rows, one thread, each commit durable
    loop           how late the event loop wakes a task that sleeps 1 ms, while 256 others commit; and while none does
    LevelDB        16 threads, each put synced, where `plyvel` is installed

Each repetition runs all of them in turn, between two measurements of the limit: 4 KiB written to a preallocated file,
and fdatasync. Printed: median and spread of commits a second, the medians of p50 and p99, syncs for each commit, and
the rate beside that of one thread. Nothing is gated.

--json writes ``{"machine", "limit_us", "rows": {name: [{"rate", "p50_us", "p99_us", "syncs", "commits"}]}}``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import machine
import numpy as np
from figures import percentile
from limits import SYNC_STEP_BYTES, WriteLimit
from peers import LeveldbPeer

import mmwal

THREADS = (1, 4, 16, 64)
TASKS = (1, 16, 256)
TRANSACTIONS = (1, 10, 100, 1000)
Taken = tuple[float, list[float], int]  # seconds in all, microseconds of each commit, syncs


def config(directory: Path, options: argparse.Namespace, interval_ms: int = 0) -> mmwal.WalConfig:
    return mmwal.WalConfig(
        wal_dir=directory,
        dimension=options.dimension,
        sync_interval_ms=interval_ms,
        max_wal_size=16 << 30,
        append_timeout_ms=60_000,
        kernel=options.kernel,
    )


def by_threads(count: int, wal: mmwal.WalManager, vector: Any, seconds: float) -> Taken:
    """Each of several threads logs and waits, until the time is over."""
    taken: list[list[float]] = [[] for _ in range(count)]
    together = threading.Barrier(count + 1)
    end = 0.0

    def write(mine: list[float]) -> None:
        together.wait()
        while not mine or time.perf_counter() < end:
            started = time.perf_counter()
            wal.log_insert(len(mine), vector)
            mine.append((time.perf_counter() - started) * 1e6)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    syncs = wal.get_metrics().syncs
    started = time.perf_counter()
    end = started + seconds
    together.wait()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, list(chain.from_iterable(taken)), wal.get_metrics().syncs - syncs


async def by_tasks(count: int, wal: mmwal.AsyncWalManager, vector: Any, seconds: float, *, durable: bool) -> Taken:
    """The same by tasks; without ``durable`` each gives way to the others after its entry."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def write() -> None:
        while not taken or time.perf_counter() < end:
            started = time.perf_counter()
            await wal.log_insert_async(len(taken), vector, durable=durable)
            taken.append((time.perf_counter() - started) * 1e6)
            if not durable:
                await asyncio.sleep(0)

    syncs = wal.get_metrics().syncs
    started = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(count)))
    return time.perf_counter() - started, taken, wal.get_metrics().syncs - syncs


async def lag_of(wal: mmwal.AsyncWalManager, vector: Any, seconds: float, tasks: int) -> list[float]:
    """Returns how late, in microseconds, a task is woken that sleeps a millisecond."""
    late: list[float] = []
    end = time.perf_counter() + seconds

    async def sleep() -> None:
        while not late or time.perf_counter() < end:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - started - 0.001) * 1e6)

    async def commit() -> None:
        while time.perf_counter() < end:
            await wal.log_insert_async(1, vector, durable=True)

    await asyncio.gather(sleep(), *(commit() for _ in range(tasks)))
    return late


def by_transactions(size: int, wal: mmwal.WalManager, vector: Any, seconds: float) -> Taken:
    """One thread commits transactions of so many rows."""
    taken: list[float] = []
    syncs = wal.get_metrics().syncs
    begun = time.perf_counter()
    while not taken or time.perf_counter() < begun + seconds:
        started = time.perf_counter()
        transaction = wal.begin_transaction()
        for id in range(size):
            transaction.log_insert(id, vector)
        transaction.commit()
        taken.append((time.perf_counter() - started) * 1e6)
    return time.perf_counter() - begun, taken, wal.get_metrics().syncs - syncs


def by_leveldb(count: int, root: Path, vector: Any, seconds: float) -> Taken | None:
    """The same as `by_threads` with LevelDB; None where it is not installed."""
    try:
        (root / "leveldb").mkdir(exist_ok=True)
        peer = LeveldbPeer(root / "leveldb")
    except ImportError:
        return None

    class Log:
        def log_insert(self, id: int, vector: Any) -> None:
            peer.insert_durable(str(id), vector)

        def get_metrics(self) -> Any:
            return argparse.Namespace(syncs=0)

    try:
        return by_threads(count, Log(), vector, seconds)  # type: ignore[arg-type]
    finally:
        peer.close()


def measure(root: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """One repetition of everything."""
    vector = np.random.default_rng(0).standard_normal(options.dimension, np.float32)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, taken: Taken | None) -> None:
        if taken is not None:
            seconds, each, syncs = taken
            each.sort()
            found[name] = {
                "rate": len(each) / seconds,
                "p50_us": percentile(each, 0.5),
                "p99_us": percentile(each, 0.99),
                "syncs": syncs,
                "commits": len(each),
            }

    for count in THREADS:
        with opened(root, options) as wal:
            note(f"{count} threads" if count > 1 else "1 thread", by_threads(count, wal, vector, options.seconds))

    async def asynchronous(act: Callable[[mmwal.AsyncWalManager], Any], interval_ms: int) -> Any:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            async with mmwal.AsyncWalManager(config(Path(folder), options, interval_ms)) as wal:
                return await act(wal)

    for count in TASKS:
        taken = asyncio.run(
            asynchronous(lambda wal, count=count: by_tasks(count, wal, vector, options.seconds, durable=True), 0)
        )
        note(f"{count} tasks" if count > 1 else "1 task", taken)
    taken = asyncio.run(
        asynchronous(lambda wal: by_tasks(TASKS[-1], wal, vector, options.seconds, durable=False), 1000)
    )
    note(f"{TASKS[-1]} tasks, not durable", taken)
    for size in TRANSACTIONS:
        with opened(root, options) as wal:
            note(f"transactions of {size}", by_transactions(size, wal, vector, options.seconds))
    for tasks in (0, TASKS[-1]):
        late = asyncio.run(asynchronous(lambda wal, tasks=tasks: lag_of(wal, vector, options.seconds, tasks), 0))
        note(f"loop, {tasks} tasks commit", (options.seconds, late, 0))
    note("LevelDB, 16 threads", by_leveldb(16, root, vector, options.seconds))
    return found


class opened:  # noqa: N801 (used as a context manager)
    """A log in a directory of its own."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=root)
        self._config = config(Path(self._folder.name), options)

    def __enter__(self) -> mmwal.WalManager:
        self._wal = mmwal.WalManager(self._config)
        return self._wal

    def __exit__(self, *_: object) -> None:
        self._wal.close()
        self._folder.cleanup()


def sync_us(root: Path, count: int) -> float:
    """Returns how long the limit takes: a small write and its sync."""
    limit = WriteLimit(root, "sync", 4 << 20, SYNC_STEP_BYTES)
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        limit.once()
        taken.append((time.perf_counter() - started) * 1e6)
    limit.close()
    return statistics.median(taken)


def show(rows: dict[str, list[dict[str, float]]], limits: list[float]) -> None:
    """Prints the table, and the targets."""
    print(f"limit: 4 KiB and fdatasync {statistics.median(limits):.0f} us ({min(limits):.0f} to {max(limits):.0f})\n")
    print("what                        commits/s (spread)             p50 us    p99 us  syncs/commit  to 1 thread")
    alone = [each["rate"] for each in rows["1 thread"]]
    for name, each in rows.items():
        rates = [one["rate"] for one in each]
        middle = {key: statistics.median(one[key] for one in each) for key in ("p50_us", "p99_us")}
        spread = f"{statistics.median(rates):9,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        if name.startswith("loop"):
            print(f"{name:<27} {'late by':<30} {middle['p50_us']:6,.0f} {middle['p99_us']:9,.0f}")
            continue
        syncs = statistics.median(one["syncs"] / one["commits"] for one in each)
        ratio = statistics.median(rate / one for rate, one in zip(rates, alone, strict=True))
        print(f"{name:<27} {spread:<30} {middle['p50_us']:6,.0f} {middle['p99_us']:9,.0f} {syncs:13.3f} {ratio:12.2f}")

    def beside(name: str, other: str) -> str:
        ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(rows[name], rows[other], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

    print(f"\ntarget 5: 16 threads beside one: {beside('16 threads', '1 thread')}; at least 6")
    if "LevelDB, 16 threads" in rows:
        print(f"target 5: 16 threads beside LevelDB's: {beside('16 threads', 'LevelDB, 16 threads')}; at least 2")
    ratio = beside("256 tasks", "256 tasks, not durable")
    print(f"target 5: 256 tasks beside the same not durable: {ratio}; at least 0.5")


def main() -> int:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--kernel", choices=["c", "py"])
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--smoke", action="store_true", help="seconds: does it run?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.seconds, options.repetitions = 0.05, 1
    rows: dict[str, list[dict[str, float]]] = {}
    limits: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="mmwal-commit-") as folder:
        root = Path(folder)
        for _ in range(options.repetitions):
            limits.append(sync_us(root, 500))
            for name, figures in measure(root, options).items():
                rows.setdefault(name, []).append(figures)
        limits.append(sync_us(root, 500))
        facts = machine.facts(root)
    if options.json:
        print(json.dumps({"machine": facts, "limit_us": limits, "rows": rows}))
        return 0
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    show(rows, limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
