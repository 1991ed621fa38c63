"""One insert at a time, as fast as it goes, with a sync each second in the background: targets 1 and 3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from figures import Figure, Row, beside, percentile
from limits import MemoryLimit
from subject import LAYERS, SAMPLE_EVERY, Run, pool, subject


class Latencies:
    """What bursts of single inserts took, in ns: the mean of each group, and the sampled ones."""

    def __init__(self, clock_ns: float) -> None:
        self._clock_ns = clock_ns
        self.grouped: list[float] = []
        self.sampled: list[float] = []

    def burst(self, insert: Callable[[Any, Any], Any], ids: list[str], given: list[Any]) -> None:
        """Inserts all ids, as fast as it goes."""
        clock, grouped, sampled = time.perf_counter_ns, self.grouped, self.sampled
        assert len(given) == SAMPLE_EVERY and len(ids) % SAMPLE_EVERY == 0
        for start in range(0, len(ids), SAMPLE_EVERY):
            several = list(zip(ids[start : start + SAMPLE_EVERY - 1], given, strict=False))
            one, vector = ids[start + SAMPLE_EVERY - 1], given[-1]
            t0 = clock()
            for id, each in several:
                insert(id, each)
            t1 = clock()
            insert(one, vector)
            t2 = clock()
            grouped.append((t1 - t0 - self._clock_ns) / (SAMPLE_EVERY - 1))
            sampled.append(t2 - t1 - self._clock_ns)

    def p50_us(self) -> float:
        """Returns the middle group's mean."""
        return percentile(sorted(self.grouped), 0.5) / 1e3

    def sampled_us(self, share: float) -> float:
        """Returns a percentile of the sampled ones."""
        return percentile(sorted(self.sampled), share) / 1e3


def measure_single(run: Run) -> Iterator[Row]:
    """Yields targets 1 and 3: inserts in bursts, with a sync each second in the background."""
    sizes = run.sizes
    memory = MemoryLimit(run.helper, run.root, sizes.memory_bytes)
    for kernel, dimension in run.each():
        given = pool(dimension)
        source = np.array(given).tobytes()
        taken: dict[str, list[Latencies]] = {name: [] for name in ("floor", *LAYERS)}
        memory_us: list[float] = []
        with (
            subject(run, "log", kernel, dimension, 1000) as log,
            subject(run, "store", kernel, dimension, 1000) as store,
        ):
            inserts = {"floor": run.floor().log_insert, "log": log.insert, "store": store.insert}
            for _ in range(sizes.repetitions):
                latencies = {name: Latencies(run.clock_ns) for name in inserts}
                copies = []
                for _ in range(sizes.bursts):
                    copies.append(memory.measure(source, dimension * 4, sizes.burst_rows))
                    for name, insert in inserts.items():
                        ids = (store if name == "store" else log).ids(sizes.burst_rows)
                        latencies[name].burst(insert, ids, given)
                    time.sleep(sizes.burst_pause_s)
                log.release()
                memory_us.append(percentile(sorted(copies), 0.5) / 1e3)
                for name, found in latencies.items():
                    taken[name].append(found)
        yield from _single_rows(kernel, dimension, taken, memory_us)
    memory.close()


def _single_rows(
    kernel: str, dimension: int, taken: dict[str, list[Latencies]], memory_us: list[float]
) -> Iterator[Row]:
    floor, log, store = ([each.p50_us() for each in taken[name]] for name in ("floor", *LAYERS))
    allowed = [3 * call + 2.5 * copy for call, copy in zip(floor, memory_us, strict=True)]
    of = {"kernel": kernel, "dimension": dimension}
    named = f"{dimension}, {kernel}"
    judged = kernel == "c"
    if judged:
        yield beside(
            "single", f"   call floor, {dimension}", "us", floor, of={"dimension": dimension, "layer": "floor"}
        )
        yield beside(
            "single", f"   memory limit, {dimension}", "us", memory_us, of={"dimension": dimension, "layer": "memory"}
        )
    yield beside(
        "single",
        f"1: log, one insert, {named}, p50",
        "us",
        log,
        "3 x floor + 2.5 x memory",
        allowed,
        most=1 if judged else None,
        of={"number": 1, "layer": "log", **of},
        more=_sampled(taken["log"]),
    )
    yield beside(
        "single",
        f"3: store, one insert, {named}, p50",
        "us",
        store,
        "the log's",
        log,
        most=3 if judged else None,
        of={"number": 3, "layer": "store", **of},
        more=_sampled(taken["store"]),
    )


def _sampled(taken: list[Latencies]) -> dict[str, float]:
    """Returns percentiles of the calls that were timed by themselves, the middle repetition's."""
    shares = {"sampled p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {name: Figure(tuple(each.sampled_us(share) for each in taken)).median for name, share in shares.items()}
