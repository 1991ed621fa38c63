"""Inserts at a steady pace beside frequent syncs: target 2.

Between two inserts the thread spins with the GIL released: it is neither asleep, which would cool its caches, nor in
the way of the log's own threads, as it would be in Python.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from figures import Figure, Row, beside, percentile
from subject import POOL_ROWS, Run, pool, subject

PACE_PER_SECOND = 20_000
NAP_NS = 200_000


class StopWatch:
    """A thread that asks how long it must wait for the GIL: the longest stop of any other thread."""

    def __init__(self, nap: Callable[[int], int]) -> None:
        self._nap = nap
        self._going = True
        self._longest_ns = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self._going:
            self._longest_ns = max(self._longest_ns, self._nap(NAP_NS))

    def stop(self) -> float:
        """Ends the thread; returns the longest stop in ms."""
        self._going = False
        self._thread.join()
        return self._longest_ns / 1e6


def paced(run: Run, insert: Callable[[Any, Any], Any], ids: list[str], given: list[Any]) -> tuple[list[float], float]:
    """Inserts at the pace; returns the latencies in us, ordered, and the longest stop of another thread in ms."""
    clock, wait_until, step_ns = time.perf_counter_ns, run.helper.wait_until, 1_000_000_000 // PACE_PER_SECOND
    taken = [0.0] * len(ids)
    watch = StopWatch(run.helper.nap)
    due = clock()
    for number, id in enumerate(ids):
        due += step_ns
        wait_until(due)
        t0 = clock()
        insert(id, given[number % POOL_ROWS])
        taken[number] = clock() - t0
    stopped_ms = watch.stop()
    return sorted((each - run.clock_ns) / 1e3 for each in taken), stopped_ms


def spinner(length_us: float) -> Callable[[Any, Any], None]:
    """Returns a call that takes as long and does nothing: what the machine does to it, it does to an insert."""
    clock, length_ns = time.perf_counter_ns, int(length_us * 1e3)

    def spin(id: Any, vector: Any) -> None:
        until_ns = clock() + length_ns
        while clock() < until_ns:
            pass

    return spin


def measure_tail(run: Run) -> Iterator[Row]:
    """Yields target 2: inserts at a steady pace beside frequent syncs."""
    rows = int(run.sizes.pace_s * PACE_PER_SECOND)
    for kernel, dimension in run.each():
        for layer, interval_ms in (("log", 10), ("log", 100), ("store", 100)):
            given = pool(dimension)
            runs: list[tuple[list[float], float]] = []
            idle: list[tuple[list[float], float]] = []
            with subject(run, layer, kernel, dimension, interval_ms) as opened:
                for _ in range(run.sizes.repetitions):
                    ids = opened.ids(rows)
                    opened.wait_ready()
                    runs.append(paced(run, opened.insert, ids, given))
                    idle.append(paced(run, spinner(percentile(runs[-1][0], 0.5)), ids, given))
                    opened.release()
            of = {
                "number": 2,
                "layer": layer,
                "kernel": kernel,
                "dimension": dimension,
                "sync_interval_ms": interval_ms,
            }
            yield from _tail_rows(of, runs, idle)


def _tail_rows(
    of: dict[str, Any], runs: list[tuple[list[float], float]], idle: list[tuple[list[float], float]]
) -> Iterator[Row]:
    judged = of["kernel"] == "c" and of["layer"] == "log"
    named = f"{of['layer']}, {of['dimension']}, {of['kernel']}, sync each {of['sync_interval_ms']} ms"
    middle = [percentile(taken, 0.5) for taken, _ in runs]
    highest = Figure(tuple(taken[-1] for taken, _ in runs)).median
    for share, most in ((0.99, 4), (0.999, 15)):
        idle_us = Figure(tuple(percentile(taken, share) for taken, _ in idle)).median
        yield beside(
            "tail",
            f"2: {named}, p{100 * share:g}",
            "us",
            [percentile(taken, share) for taken, _ in runs],
            "p50",
            middle,
            most=most if judged else None,
            of=of,
            more={"max": highest, "a call that only spins as long": idle_us},
        )
    yield beside(
        "tail",
        f"2: {named}, longest stop of a thread",
        "ms",
        [stopped for _, stopped in runs],
        "1 ms",
        [1.0] * len(runs),
        most=1 if judged else None,
        of=of,
        more={"beside calls that only spin": Figure(tuple(stopped for _, stopped in idle)).median},
    )
