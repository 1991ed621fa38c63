"""What the log costs whoever keeps a vector index in memory: target 12, beside the guide's table.

python benchmarks/overhead.py [--rows N] [--seconds S] [--rounds N] [--dimension D] [--dir DIRECTORY] [--smoke]
                              [--json FILE]

The index is usearch's HNSW, filled with ``--rows`` vectors before anything is timed. What is measured inserts further
ones: a row is logged and then added to the index, one thread, in these cases:

    5000, 1000, 100 ms    `log_insert`, then `add`; the log syncs in the background
    0 ms                  the same: `log_insert` returns once the entry is durable, then `add`
    0 ms, meanwhile       `log_insert` in a thread, `add` meanwhile; the insert is done when both are
    batches of 100        `log_batch` at 100 and at 0 ms, then one `add` of them all
    log off, again        no log on either side: what this machine calls a difference where there is none

Each case is a pair of copies of the index, one with the log and one without, which are given the same rows in the same
order. A round is a block of both, by turns one or the other first, each at least as long as the interval. The overhead
is the time of an insert beyond that without the log, in the same round; between blocks, untimed, the log is synced and
let go, so that no sync is left to the block without it.

Vectors are pairs of the demo's sentence embeddings, side by side, of unit length: random ones lie as no text does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import machine
import numpy as np
from figures import Figure, Row, beside, percentile, print_table
from limits import SYNC_STEP_BYTES, Helper, WriteLimit
from report import print_foot, print_head, report_of
from subject import SMOKE, Run, Sizes, Subject, cost_of_the_clock_ns, subject, timed_us

import mmwal

NEEDS_USEARCH = (
    "overhead.py measures beside a usearch index, and usearch is not installed (mmwal itself does not need it): "
    "pip install usearch"
)
BATCH_ROWS = 100
STAND_IN_US = 200
TRIED_ROWS = 200
Piece = tuple[Any, Any, Any]  # ids for the log, keys for the index, vectors: of one call
Timed = Callable[[Any, Sequence[Piece], Subject | None], tuple[float, list[float]]]


@dataclass(frozen=True)
class Case:
    """One line of the table: how the log is used. ``most`` is the target in per cent, ``guide`` the guide's words."""

    what: str
    interval_ms: int | None  # None: no log
    insert: Timed
    guide: str = ""
    guide_most: float | None = None
    most: float | None = None
    batch_rows: int = 1


class StandIn:
    """Takes as long as a small index would, where none is installed: a smoke run only."""

    def __init__(self, helper: Helper) -> None:
        self._wait_until = helper.wait_until

    def copy(self) -> StandIn:
        """Nothing is kept, so nothing is copied."""
        return self

    def add(self, keys: Any, vectors: Any, *, threads: int) -> None:
        """Spins with the GIL released."""
        self._wait_until(time.perf_counter_ns() + STAND_IN_US * 1000 * np.size(keys))


class Vectors:
    """As many vectors as are asked for, each another one."""

    _NAME: ClassVar[str] = "data/stdlib_minilm.npz"

    def __init__(self, dimension: int) -> None:
        with np.load(str(files("mmwal") / self._NAME)) as kept:
            known = kept["vectors"].astype(np.float32)
        half = -(-dimension // 2)
        known = np.tile(known, (1, -(-half // known.shape[1])))[:, :half]
        self._known = known[np.random.default_rng(0).permutation(len(known))]
        self._dimension = dimension

    def pieces(self, first: int, count: int, batch_rows: int) -> list[Piece]:
        """Returns the rows from ``first`` on, each under its number, in calls of so many."""
        numbers = np.arange(first, first + count)
        left, shift = numbers % len(self._known), numbers // len(self._known)
        both = np.hstack((self._known[left], self._known[(left + 1 + shift) % len(self._known)]))[:, : self._dimension]
        matrix = np.ascontiguousarray(both / np.linalg.norm(both, axis=1, keepdims=True))
        if batch_rows == 1:
            return [(number, number, vector) for number, vector in zip(numbers.tolist(), matrix, strict=True)]
        starts = range(0, count, batch_rows)
        parts = [(numbers[at : at + batch_rows], matrix[at : at + batch_rows]) for at in starts]
        return [(keys.tolist(), keys, rows) for keys, rows in parts]


def without_log(index: Any, pieces: Sequence[Piece], log: Subject | None) -> tuple[float, list[float]]:
    """Adds to the index; returns seconds, and what the log took of them, call by call."""
    add, started = index.add, time.perf_counter()
    for _, keys, vectors in pieces:
        add(keys, vectors, threads=1)
    return time.perf_counter() - started, []


def log_first(index: Any, pieces: Sequence[Piece], log: Subject | None) -> tuple[float, list[float]]:
    """Logs, then adds to the index."""
    assert log is not None
    add, clock, taken = index.add, time.perf_counter, [0.0] * len(pieces)
    write = log.insert_many if isinstance(pieces[0][0], list) else log.insert
    started = clock()
    for number, (ids, keys, vectors) in enumerate(pieces):
        begun = clock()
        write(ids, vectors)
        taken[number] = clock() - begun
        add(keys, vectors, threads=1)
    return clock() - started, taken


def log_meanwhile(index: Any, pieces: Sequence[Piece], log: Subject | None) -> tuple[float, list[float]]:
    """Logs in a thread, adds to the index, and waits for the thread; the log's share is handing over and waiting."""
    assert log is not None
    add, clock, taken, write = index.add, time.perf_counter, [0.0] * len(pieces), log.insert
    with ThreadPoolExecutor(1) as thread:
        submit = thread.submit
        submit(clock).result()  # so that the thread is there
        started = clock()
        for number, (ids, keys, vectors) in enumerate(pieces):
            begun = clock()
            logged = submit(write, ids, vectors)
            handed_over = clock()
            add(keys, vectors, threads=1)
            added = clock()
            logged.result()
            taken[number] = handed_over - begun + clock() - added
        return clock() - started, taken


CASES = (
    Case("log off, again", None, without_log),
    Case("sync each 5000 ms", 5000, log_first, "1 to 2 %", 2),
    Case("sync each 1000 ms", 1000, log_first),
    Case("sync each 100 ms", 100, log_first, "5 to 10 %", 10, 0.5),
    Case("0 ms, durable and then added", 0, log_first, "20 to 30 %", 30),
    Case("0 ms, durable while it is added", 0, log_meanwhile, "20 to 30 %", 30, 10),
    Case(f"sync each 100 ms, batches of {BATCH_ROWS}", 100, log_first, "5 to 10 %", 10, batch_rows=BATCH_ROWS),
    Case(f"0 ms, batches of {BATCH_ROWS}", 0, log_first, "20 to 30 %", 30, batch_rows=BATCH_ROWS),
)


class Pair:
    """Two copies of an index, one with a log beside it, that are given the same rows."""

    def __init__(self, case: Case, index: Any, vectors: Vectors, rows: int) -> None:
        self._case = case
        self._with, self._without = index.copy(), index.copy()
        self._vectors = vectors
        self._next = rows
        tried = vectors.pieces(rows, TRIED_ROWS, 1)
        self._row_s = without_log(index.copy(), tried, None)[0] / TRIED_ROWS  # how long a row takes
        self.rounds: list[dict[str, float]] = []

    def round(self, log: Subject | None, seconds: float, sync_us: float) -> None:
        """Inserts the same rows on both sides, for about so long on each."""
        batch_rows = self._case.batch_rows
        count = max(round(seconds / self._row_s / batch_rows), 2) * batch_rows
        pieces = self._vectors.pieces(self._next, count, batch_rows)
        self._next += count
        if len(self.rounds) % 2:
            (on_s, logged_s, syncs), (off_s, _) = self._on(pieces, log), without_log(self._without, pieces, None)
        else:
            (off_s, _), (on_s, logged_s, syncs) = without_log(self._without, pieces, None), self._on(pieces, log)
        self._row_s = off_s / count
        self.rounds.append(
            {
                "overhead": 100 * (on_s / off_s - 1),
                "off_us": off_s / count * 1e6,
                "on_us": on_s / count * 1e6,
                "share": 100 * sum(logged_s) / off_s,
                "call_us": percentile(sorted(logged_s), 0.5) * 1e6 if logged_s else 0.0,
                "syncs": syncs,
                "sync_us": sync_us,
            }
        )

    def _on(self, pieces: Sequence[Piece], log: Subject | None) -> tuple[float, list[float], int]:
        """Inserts on the side with the log; returns how long it took, each call of the log, and how many syncs."""
        before = log.syncs if log is not None else 0
        seconds, logged_s = self._case.insert(self._with, pieces, log)
        syncs = log.syncs - before if log is not None else 0
        if log is not None:
            log.release()
            log.wait_ready()
        return seconds, logged_s, syncs

    def row(self, of: dict[str, Any]) -> Row:
        """Returns the line of the table."""
        case = self._case
        limit = case.most or case.guide_most
        named = {"index alone us": "off_us", "with the log us": "on_us"}
        if case.interval_ms is not None:
            named |= {"a call of the log p50 us": "call_us", "the log's calls %": "share", "syncs a block": "syncs"}
        if case.interval_ms == 0:
            named["a sync of 4 KiB us"] = "sync_us"
        return beside(
            "overhead",
            f"{'12: ' if case.most else '    '}{case.what}",
            "%",
            [each["overhead"] for each in self.rounds],
            "the target" if case.most else "the guide's most" if limit else "",
            [limit] * len(self.rounds) if limit else None,
            most=1 if case.most else None,
            note=f"the guide: {case.guide}" if case.guide else "",
            of={"number": 12, "sync_interval_ms": case.interval_ms, "batch_rows": case.batch_rows, **of},
            more={name: Figure(tuple(each[key] for each in self.rounds)).median for name, key in named.items()},
        )


def measure(run: Run, index: Any, vectors: Vectors, options: argparse.Namespace) -> list[Row]:
    """Returns the rows of the table."""
    rows: list[Row] = []
    for case in CASES:
        if sys.stderr.isatty():
            print(f"measuring {case.what} ...", file=sys.stderr)
        pair = Pair(case, index, vectors, options.rows)
        seconds = max(options.seconds, 0 if options.smoke else 1.1 * (case.interval_ms or 0) / 1e3)
        with log_of(run, case) as log:
            for _ in range(options.rounds):
                pair.round(log, seconds, sync_us(run.root, options.syncs))
        rows.append(pair.row({"dimension": options.dimension, "rows_before": options.rows}))
    return rows


def log_of(run: Run, case: Case) -> AbstractContextManager[Subject | None]:
    """Opens the log of a case for a ``with`` block."""
    if case.interval_ms is None:
        return nullcontext()
    return subject(run, "log", run.kernels[0], run.dimensions[0], case.interval_ms)


def sync_us(root: Path, count: int) -> float:
    """Returns what the limit takes: a small write and its sync."""
    limit = WriteLimit(root, "sync", 4 << 20, SYNC_STEP_BYTES)
    taken = sorted(timed_us(limit.once) for _ in range(count))
    limit.close()
    return percentile(taken, 0.5)


def filled(helper: Helper, vectors: Vectors, options: argparse.Namespace) -> tuple[Any, str]:
    """Returns the index with its first rows, and its name. Without usearch: a stand-in for a smoke run, else exits."""
    try:
        module = importlib.import_module("usearch.index")
    except ImportError:
        if not options.smoke:
            raise SystemExit(NEEDS_USEARCH) from None
        return StandIn(helper), f"a stand-in of {STAND_IN_US} us a row"
    index = module.Index(ndim=options.dimension, metric="ip", dtype="f32")
    for _, keys, rows in vectors.pieces(0, options.rows, BATCH_ROWS):
        index.add(keys, rows, threads=1)
    version = importlib.import_module("usearch").__version__
    return index, f"usearch {version}, {options.rows:,} x {options.dimension} float32"


def main() -> int:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="in the index before anything is timed")
    parser.add_argument("--seconds", type=float, default=1.0, help="each block; at least 1.1 intervals")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--kernel", choices=["c", "py"])
    parser.add_argument("--dir", help="where the log is; a new directory in it is removed afterwards")
    parser.add_argument("--smoke", action="store_true", help="seconds: does it run? the figures say nothing")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file, too")
    options = parser.parse_args()
    options.syncs = 5 if options.smoke else 100
    if options.smoke:
        options.rows, options.seconds, options.rounds = 300, 0.02, 2
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)  # the file system is printed below
    started = time.monotonic()
    root = Path(tempfile.mkdtemp(dir=options.dir, prefix="mmwal-overhead-"))
    try:
        helper = Helper(root)
        described, before = machine.facts(root), machine.load_average()
        vectors = Vectors(options.dimension)
        index, name = filled(helper, vectors, options)
        kernel = options.kernel or mmwal.kernel_in_use()
        run = Run(
            root=root,
            helper=helper,
            sizes=replace(SMOKE if options.smoke else Sizes(), repetitions=options.rounds),
            kernels=(kernel,),
            dimensions=(options.dimension,),
            clock_ns=cost_of_the_clock_ns(),
        )
        sync = sync_us(root, options.syncs)
        measured = f"{name}; kernel: {kernel}; {options.rounds} rounds; 4 KiB and fdatasync {sync:.0f} us"
        print_head(described, measured, before, note="" if "usearch" in name else f"{name}: {NEEDS_USEARCH}")
        rows = measure(run, index, vectors, options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    after, elapsed_s = machine.load_average(), time.monotonic() - started
    print_table(rows)
    print_foot(rows, before, after, elapsed_s, smoke=options.smoke)
    if options.json:
        report = report_of(
            described, rows, before, after, elapsed_s, smoke=options.smoke, index=name, kernel=kernel, sync_us=sync
        )
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
