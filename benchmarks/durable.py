"""One thread, each insert durable on return, in blocks between blocks of the limit: target 4."""

from __future__ import annotations

from collections.abc import Iterator

from figures import Row, beside, percentile
from limits import SYNC_STEP_BYTES, WriteLimit
from subject import LAYERS, POOL_ROWS, Run, pool, subject, timed_us


def measure_durable(run: Run) -> Iterator[Row]:
    """Yields target 4: one thread, each insert durable on return, in blocks between blocks of the limit."""
    sizes = run.sizes
    limit = WriteLimit(run.root, "sync", 4 << 20, SYNC_STEP_BYTES)
    for kernel, dimension in run.each():
        given = pool(dimension)
        taken: dict[str, list[float]] = {name: [] for name in ("sync", *LAYERS)}
        with subject(run, "log", kernel, dimension, 0) as log, subject(run, "store", kernel, dimension, 0) as store:
            for _ in range(sizes.repetitions):
                found: dict[str, list[float]] = {name: [] for name in taken}
                for _ in range(sizes.durable_blocks):
                    for _ in range(sizes.durable_rows):
                        found["sync"].append(timed_us(limit.once))
                    for layer, opened in (("log", log), ("store", store)):
                        for number, id in enumerate(opened.ids(sizes.durable_rows)):
                            found[layer].append(timed_us(opened.insert, id, given[number % POOL_ROWS]))
                for name, values in found.items():
                    taken[name].append(percentile(sorted(values), 0.5))
        for layer in LAYERS:
            yield beside(
                "durable",
                f"4: {layer}, one durable insert, {dimension}, {kernel}, p50",
                "us",
                taken[layer],
                "4 KiB write + fdatasync",
                taken["sync"],
                most=1.15 if kernel == "c" else None,
                of={"number": 4, "layer": layer, "kernel": kernel, "dimension": dimension},
            )
    limit.close()
