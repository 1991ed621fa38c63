"""Batches, each durable, and what reached the device for them and for single durable inserts: targets 6 and 7."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
from figures import Row, beside
from limits import SEQUENTIAL_STEP_BYTES, WriteLimit
from subject import BATCH_DIMENSION, BATCH_ROWS, LAYERS, POOL_ROWS, Run, Subject, pool, subject, vectors


class Written:
    """Bytes that reached the device, and bytes that this process made dirty, since it was made."""

    def __init__(self, directory: Path) -> None:
        self._device = machine.Device(directory)
        self._before = (self._device.written_bytes(), machine.dirtied_bytes())

    def per(self, payload_bytes: int) -> tuple[float | None, float | None]:
        """Returns both for each byte of payload; None where nobody counts."""
        device, dirtied = self._device.written_bytes(), machine.dirtied_bytes()
        return (
            (device - self._before[0]) / payload_bytes if device is not None and self._before[0] is not None else None,
            (dirtied - self._before[1]) / payload_bytes
            if dirtied is not None and self._before[1] is not None
            else None,
        )


def _written_rows(
    what: str, shares: list[tuple[float | None, float | None]], most: float | None, of: dict[str, Any]
) -> Iterator[Row]:
    for name, values, note in (
        ("device bytes", [device for device, _ in shares], "of the whole device: whoever else writes disturbs it"),
        ("bytes made dirty", [dirtied for _, dirtied in shares], "by this process; without the journal"),
    ):
        counted = [value for value in values if value is not None]
        if len(counted) == len(values):
            yield beside(
                "device" if of["way"] == "single" else "batch",
                f"7: {what}, {name}",
                "B",
                counted,
                "payload byte",
                [1.0] * len(counted),
                most=most,
                note=note,
                of={"number": 7, **of, "counted": name},
            )


def measure_batch(run: Run) -> Iterator[Row]:
    """Yields target 6, and target 7 for batches: each batch durable, the log released as it goes."""
    sizes = run.sizes
    matrix = vectors(BATCH_ROWS, BATCH_DIMENSION)
    limit = WriteLimit(run.root, "sequential", sizes.sequential_bytes, SEQUENTIAL_STEP_BYTES)
    for kernel in run.kernels:
        for layer in LAYERS:
            batches = sizes.batches if layer == "log" else sizes.batches // 4
            rates: list[float] = []
            limits: list[float] = []
            shares = []
            with subject(run, layer, kernel, BATCH_DIMENSION, 0) as opened:
                _batches(opened, matrix, 5 * sizes.segment_bytes // matrix.nbytes)  # beyond the first runway
                for _ in range(sizes.repetitions):
                    opened.wait_ready()
                    limits.append(_sequential(limit, sizes.sequential_bytes))
                    written = Written(run.root)
                    rates.append(_batches(opened, matrix, batches))
                    shares.append(written.per(batches * matrix.nbytes))
            judged = kernel == "c" and layer == "log"
            what = f"{layer}, batches of {BATCH_ROWS} x {BATCH_DIMENSION}, {kernel}"
            of = {"layer": layer, "kernel": kernel, "dimension": BATCH_DIMENSION, "way": "batch"}
            yield beside(
                "batch",
                f"6: {what}",
                "MB/s",
                rates,
                "sequential",
                limits,
                least=0.7 if judged else None,
                of={"number": 6, **of},
            )
            yield from _written_rows(what, shares, 1.1 if judged else None, of)
    limit.close()


def _batches(opened: Subject, matrix: Any, count: int) -> float:
    """Inserts batches; returns MB/s."""
    started = time.perf_counter()
    for number in range(count):
        opened.insert_batch(matrix)
        if number % 8 == 7:
            opened.release()
    return count * matrix.nbytes / (time.perf_counter() - started) / 1e6 if count else 0.0


def _sequential(limit: WriteLimit, size: int) -> float:
    started = time.perf_counter()
    written = 0
    while written < size:
        written += limit.once()
    return written / (time.perf_counter() - started) / 1e6


def measure_device(run: Run) -> Iterator[Row]:
    """Yields target 7 for single durable inserts of 768, in segments small enough to be recycled meanwhile."""
    sizes = run.sizes
    given = pool(BATCH_DIMENSION)
    for layer in LAYERS:
        shares = []
        with subject(run, layer, run.kernels[0], BATCH_DIMENSION, 0, sizes.device_segment_bytes) as opened:
            _durably(opened, given, 4 * sizes.device_segment_bytes // given[0].nbytes)
            for _ in range(sizes.repetitions):
                written = Written(run.root)
                _durably(opened, given, sizes.device_rows)
                shares.append(written.per(sizes.device_rows * given[0].nbytes))
        kernel = run.kernels[0]
        of = {"layer": layer, "kernel": kernel, "dimension": BATCH_DIMENSION, "way": "single"}
        most = 3 if layer == "log" and kernel == "c" else None
        yield from _written_rows(f"{layer}, single durable {BATCH_DIMENSION}, {kernel}", shares, most, of)


def _durably(opened: Subject, given: list[Any], rows: int) -> None:
    for number, id in enumerate(opened.ids(rows)):
        opened.insert(id, given[number % POOL_ROWS])
        if number % 500 == 499:
            opened.release()
