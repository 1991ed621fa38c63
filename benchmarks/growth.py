"""Ids are added one by one until there are millions: what an insert takes on the way, and the longest stop of one.

A part of `opening.py`; targets 13 and 14. Each of the ways below runs in a process of its own.

    store            as it comes: a checkpoint each 10,000 rows, a sync each second
    no checkpoints   the same without
    log              `WalManager`, released each 100,000 rows
    directory        the directory of ids alone, as the kernel has it
    spin             calls that only spin as long as the store takes: the stops are the machine's
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from figures import Row, beside, percentile
from process import anonymous_bytes
from subject import POOL_ROWS, cost_of_the_clock_ns, pool, wait_ready
from tail import spinner

import mmwal
from mmwal import kernel as kernels

WAYS = ("store", "no checkpoints", "log", "directory", "spin")
STORES = WAYS[:2]
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
STOP_MS_MOST = 5  # target 13
FLAT_MOST = 1.3  # target 14
LONGEST_KEPT = 5
_BLOCK_ROWS = 10_000
_RELEASE_ROWS = 100_000


def ids(kind: str, first: int, number: int) -> list[Any]:
    """Returns ids in order: ints, or strs of 20 bytes."""
    numbers = range(first, first + number)
    return [f"document-{each:011d}" for each in numbers] if kind == "str" else list(numbers)


# ---- what a child does


def grow(
    directory: str, way: str, kind: str, dimension: str, segment_bytes: str, window_rows: str, spin_us: str, *marks: str
) -> None:
    """Adds ids up to the last mark; prints the latencies of the window before each mark, the longest stops, memory."""
    given, rows_at, window = pool(int(dimension)), [int(mark) for mark in marks], int(window_rows)
    clock_us = cost_of_the_clock_ns() / 1e3
    windows: dict[int, dict[str, float]] = {}
    longest: list[tuple[float, int]] = []
    before = anonymous_bytes()
    insert, release = _target(directory, way, int(dimension), int(segment_bytes), float(spin_us))
    kept: list[float] = []
    for first in range(0, rows_at[-1], block := min(_BLOCK_ROWS, window)):
        taken = _timed(insert, ids(kind, first, block), given)
        longest = _longest(longest, taken, first)
        kept = [*kept, *taken][-window:]
        if first + block in rows_at:
            ordered = sorted(max(each - clock_us, 0.0) for each in kept)
            windows[first + block] = {name: percentile(ordered, share) for name, share in SHARES.items()}
        if (first + block) % _RELEASE_ROWS == 0:
            release()
    grown_bytes = anonymous_bytes() - before
    found = {"windows": windows, "longest": longest, "bytes_per_id": grown_bytes / rows_at[-1]}
    print(json.dumps(found), flush=True)
    os._exit(0)  # a close would take a checkpoint, which nobody measures


def _target(
    directory: str, way: str, dimension: int, segment_bytes: int, spin_us: float
) -> tuple[Callable[[Any, Any], Any], Callable[[], Any]]:
    """Opens what ids are added to; returns how, and what is called now and then."""

    def nothing() -> None:
        pass

    if way == "spin":
        return spinner(spin_us), nothing
    if way == "directory":
        put, rows = kernels.load().Directory().put, count()
        return lambda id, vector: put(id, next(rows), None), nothing
    fields: dict[str, Any] = {"dimension": dimension, "segment_size": segment_bytes}
    if way == "log":
        wal = mmwal.WalManager(mmwal.WalConfig(wal_dir=directory, **fields))
        wait_ready(wal, segment_bytes * wal.config.runway_segments)
        return wal.log_insert, lambda: wal.release(wal.last_lsn)
    if way == "no checkpoints":
        fields |= {"checkpoint_interval": None, "max_wal_size": 64 << 30}
    store = mmwal.open(directory, **fields)
    wait_ready(store.wal, segment_bytes * mmwal.WalConfig().runway_segments)
    return store.insert, nothing


def _timed(insert: Callable[[Any, Any], Any], names: list[Any], given: list[Any]) -> list[float]:
    """Inserts; returns what each took in us, one reading of the clock included."""
    clock, taken = time.perf_counter_ns, [0] * len(names)
    last = clock()
    for number, id in enumerate(names):
        insert(id, given[number % POOL_ROWS])
        now = clock()
        taken[number] = now - last
        last = now
    return [each / 1e3 for each in taken]


def _longest(known: list[tuple[float, int]], taken: list[float], first: int) -> list[tuple[float, int]]:
    """Returns the longest stops so far, in us, and at which row each was."""
    order = np.argsort(taken)[-LONGEST_KEPT:]
    return sorted([*known, *((taken[at], first + int(at)) for at in order)], reverse=True)[:LONGEST_KEPT]


# ---- what is made of it


def measure(
    child: Callable[..., Any],
    root: Path,
    kind: str,
    *,
    rows: tuple[int, ...],
    dimension: int,
    segment_bytes: int,
    window_rows: int,
    repetitions: int,
    memory_bytes: int,
    judged: bool,
) -> Iterator[Row]:
    """Yields the rows of one kind of ids."""
    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    for _ in range(repetitions):
        spin_us = 0.0
        for way in WAYS:
            with tempfile.TemporaryDirectory(dir=root, prefix="grow-") as directory:
                found[way].append(child(directory, way, kind, dimension, segment_bytes, window_rows, spin_us, *rows))
            if way in STORES:
                spin_us = found[way][-1]["windows"][str(rows[-1])]["p50"]
    for way in WAYS:
        of = {"kind": kind, "way": way, "rows": rows[-1]}
        yield from _flat(way, kind, found[way], rows, {"number": 14, **of}, judged=judged and way in STORES)
    for way in WAYS:
        of = {"kind": kind, "way": way, "rows": rows[-1]}
        yield _stop(way, kind, found, rows[-1], {"number": 13, **of}, judged=judged and way in STORES)
    for way in (*STORES, "directory"):
        of = {"kind": kind, "way": way, "rows": rows[-1]}
        kept = [each["bytes_per_id"] for each in found[way]]
        yield beside(
            "growth",
            f"13: {way}, memory for each of {rows[-1]:,} {kind} ids",
            "B",
            kept,
            "the target",
            [memory_bytes] * repetitions,
            most=1 if judged and way in STORES else None,
            of={"number": 13, **of},
        )


def _flat(
    way: str, kind: str, found: list[Any], rows: tuple[int, ...], of: dict[str, Any], *, judged: bool
) -> Iterator[Row]:
    first, *later = rows
    for at in later:
        last = {name: [each["windows"][str(at)][name] for each in found] for name in SHARES}
        yield beside(
            "growth",
            f"{'14: ' if way in STORES else '    '}{way}, an insert at {at:,} {kind} ids, p50",
            "us",
            last["p50"],
            f"at {first:,}",
            [each["windows"][str(first)]["p50"] for each in found],
            most=FLAT_MOST if judged and at == rows[-1] else None,
            of={**of, "at": at},
            more={name: sorted(last[name])[len(found) // 2] for name in ("p99", "p99.9")},
        )


def _stop(way: str, kind: str, found: dict[str, list[Any]], rows: int, of: dict[str, Any], *, judged: bool) -> Row:
    worst = max(found[way], key=lambda each: each["longest"][0][0])["longest"]
    return beside(
        "growth",
        f"{'13: ' if way in STORES else '    '}{way}, longest stop of an insert, {rows:,} {kind} ids",
        "ms",
        [each["longest"][0][0] / 1e3 for each in found[way]],
        "the target" if way in STORES else "",
        [float(STOP_MS_MOST)] * len(found[way]) if way in STORES else None,
        most=1 if judged else None,
        of=of,
        note="the longest: " + ", ".join(f"{us / 1e3:.2f} ms at {at:,}" for us, at in worst),
    )
