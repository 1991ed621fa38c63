"""Stores that grow to ten million ids: targets 9, 13 and 14, and 10. `python benchmarks/opening.py [--smoke]`.

    open        a store that was closed cleanly, opened in a fresh process, by number of ids and their kind, and by
                dimension; beside reading the bytes of its image, right after, and checksumming them, too; memory
                afterwards and at most                                                           targets 9, 13, 14
    checkpoint  of 10,000 changed rows in each of them                                           targets 10, 14
    recovery    a store that was killed, nothing of it checkpointed                              target 14
    growth      ids are added one by one: latencies on the way, the longest stop, memory         targets 13, 14

Each part runs in a process of its own. `open` fills all its stores first and takes them in turn; the page cache is
warm, or cold: the files are written back and dropped from it. Memory is anonymous memory, so without the matrix, which
is a file; the most of it is measured in a run of its own, so that nobody looks while time is taken.

`growth` times every insert, one reading of the clock for each: the store as it comes (a checkpoint each 10,000 rows),
the store without checkpoints, the log alone, the directory alone, and calls that only spin as long, in which the
machine's own stops show.

Ids of kind str have 20 bytes. The dimension is small, 4, since nothing here depends on it; one store of `open` has 768.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import growth
import machine
import numpy as np
from figures import Row, beside, print_table
from limits import Helper
from process import Sampler, anonymous_bytes, child, drop, fresh
from report import print_foot, print_head, report_of

import mmwal
from mmwal.checkpoint.control import open_control
from mmwal.checkpoint.image import image_path
from mmwal.recovery.log_opening import default_disk

KINDS = ("str", "int")
CACHES = ("warm", "cold")
BATCH_ROWS = 1000
CHECKPOINT_ROWS = 200_000  # between the checkpoints of a store that is filled
OPEN_S = {1_000_000: 0.3, 10_000_000: 3.0}  # target 9
GOAL_S = {10_000_000: 0.1}  # and the next round's
MEMORY_BYTES = {"str": 120, "int": 60}  # target 13
BY_HAND: dict[str, Any] = {"checkpoint_interval": None, "max_wal_size": 64 << 30}
LINEAR_MOST = 1.3  # target 14
CHECKPOINT_MOST = 2  # target 10


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    repetitions: int = 5
    growth_repetitions: int = 3
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    wide: tuple[int, int] = (1_000_000, 768)  # the rows and the dimension of the store with another dimension
    changed_rows: int = 10_000
    window_rows: int = 10_000
    segment_bytes: int = 64 << 20


SMOKE = Sizes(
    repetitions=1,
    growth_repetitions=1,
    rows=(1_000, 10_000),
    wide=(10_000, 32),
    changed_rows=100,
    window_rows=1_000,
    segment_bytes=1 << 20,
)


@dataclass(frozen=True)
class Case:
    """A store: how many ids of which kind, and of which dimension."""

    rows: int
    kind: str
    dimension: int

    def __str__(self) -> str:
        return f"{self.rows:,} {self.kind} ids"


@dataclass(frozen=True)
class Run:
    """What every group is given."""

    root: Path
    helper: Helper
    sizes: Sizes
    kinds: tuple[str, ...]
    caches: tuple[str, ...]
    dimension: int
    judged: bool

    def cases(self) -> list[Case]:
        """Returns the stores of the usual dimension."""
        return [Case(rows, kind, self.dimension) for kind in self.kinds for rows in self.sizes.rows]

    def wide(self) -> list[Case]:
        """Returns the store of another dimension, if there is one that is else alike."""
        rows, dimension = self.sizes.wide
        return [Case(rows, self.kinds[0], dimension)] if rows in self.sizes.rows else []


# ---- what a child does


def fill(directory: str, rows: int, kind: str, dimension: int, segment_bytes: int, *, checkpoints: bool) -> None:
    """Fills a store and closes it cleanly; without checkpoints it is killed instead."""
    store = mmwal.open(directory, dimension=dimension, segment_size=segment_bytes, **BY_HAND)
    matrix = np.random.default_rng(0).standard_normal((BATCH_ROWS, dimension), np.float32)
    for first in range(0, rows, BATCH_ROWS):
        ids = growth.ids(kind, first, min(BATCH_ROWS, rows - first))
        store.insert_many(ids, matrix[: len(ids)])
        if checkpoints and (first + BATCH_ROWS) % CHECKPOINT_ROWS == 0:
            store.checkpoint()
    if not checkpoints:
        store.sync()
        print(json.dumps({"log_bytes": store.wal.last_lsn if store.wal else 0}), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    store.close()
    data = open_control(default_disk(), f"{directory}/data")
    assert data is not None
    image = image_path(f"{directory}/data", data.current.image_number)
    print(json.dumps({"image": image, "image_bytes": int(data.current.image_bytes)}))


def open_once(directory: str, rows: int, *, sample: bool, close: bool) -> None:
    """Opens a store and says how long it took and what memory; ``close``: leaves it as it was found."""
    before = anonymous_bytes()
    with Sampler(sample) as sampler:
        started = time.perf_counter()
        store = mmwal.open(directory, **BY_HAND)
        open_s = time.perf_counter() - started
    after = anonymous_bytes()
    assert len(store) == rows, f"{len(store)} of {rows} rows are there"
    stats = store.recovery_stats
    assert stats is not None and stats.clean_shutdown == close
    found = {"open_s": open_s, "kept_bytes": after - before, "most_bytes": max(sampler.most, after) - before}
    if close:
        store.close()
    print(json.dumps(found), flush=True)
    os._exit(0)


def change(directory: str, rows: int, kind: str, changed_rows: int, repetitions: int) -> None:
    """Changes some rows and takes a checkpoint, again and again; says how long the checkpoints took."""
    store = mmwal.open(directory, **BY_HAND)
    rng = np.random.default_rng(0)
    dimension = store.get(growth.ids(kind, 0, 1)[0]).vector.shape[0]
    matrix = rng.standard_normal((changed_rows, dimension), np.float32)
    taken = []
    for _ in range(repetitions):
        numbers = rng.choice(rows, changed_rows, replace=False).tolist()
        store.update_many([growth.ids(kind, number, 1)[0] for number in numbers], matrix)
        started = time.perf_counter()
        store.checkpoint()
        taken.append(time.perf_counter() - started)
    print(json.dumps(taken), flush=True)
    os._exit(0)


def act(name: str, words: list[str]) -> None:
    """Does the part of a child."""
    if name in ("fill", "fill-and-die"):
        directory, rows, kind, dimension, segment_bytes = words
        fill(directory, int(rows), kind, int(dimension), int(segment_bytes), checkpoints=name == "fill")
    elif name == "change":
        directory, rows, kind, changed_rows, repetitions = words
        change(directory, int(rows), kind, int(changed_rows), int(repetitions))
    elif name == "grow":
        growth.grow(*words)
    else:
        open_once(words[0], int(words[1]), sample=name == "memory", close=name != "recover")


# ---- the groups


def measure_open(run: Run) -> Iterator[Row]:
    """Yields targets 9, 13, 14 for stores that were closed cleanly, and target 10."""
    wide = run.wide()
    stores = {case: run.root / f"store-{number}" for number, case in enumerate(run.cases() + wide)}
    images = {case: _filled(run, path, case) for case, path in stores.items()}
    taken: dict[tuple[Case, str, str], list[float]] = {}

    def note(case: Case, cache: str, **found: float) -> None:
        for name, value in found.items():
            taken.setdefault((case, cache, name), []).append(value)

    for _ in range(run.sizes.repetitions):
        for cache in run.caches:
            for case, path in stores.items():
                image, size = images[case]
                if cache == "cold":
                    drop(path)
                found = child(__file__, "open", path, case.rows)
                note(case, cache, open_s=found["open_s"], kept=found["kept_bytes"] / case.rows)
                if cache == "cold":
                    drop(path)
                read_s, checked_s = _read(run.helper, image, size)
                note(case, cache, read_s=read_s, checked_s=checked_s)
    for kind in run.kinds:
        case = Case(run.sizes.rows[-1], kind, run.dimension)
        path = stores[case]
        note(case, "", most=child(__file__, "memory", path, case.rows)["most_bytes"] / case.rows)
    yield from _open_rows(run, taken, images)
    for case in wide:
        yield from _wide_rows(run, taken, case)
    yield from _memory_rows(run, taken)
    yield from _checkpoint_rows(run, stores)
    for path in stores.values():
        shutil.rmtree(path)


def _filled(run: Run, path: Path, case: Case) -> tuple[Path, int]:
    """Fills a store in a process of its own; returns its image, and how much of the file counts."""
    found = child(__file__, "fill", path, case.rows, case.kind, case.dimension, run.sizes.segment_bytes)
    return Path(found["image"]), found["image_bytes"]


def _read(helper: Helper, image: Path, size: int) -> tuple[float, float]:
    """Returns how long reading an image takes, and reading and checksumming it."""
    started = time.perf_counter()
    with image.open("rb", buffering=0) as file:
        content = file.read(size)
    read_s = time.perf_counter() - started
    assert len(content) == size
    helper.checksum(content)
    return read_s, time.perf_counter() - started


def _open_rows(
    run: Run, taken: dict[tuple[Case, str, str], list[float]], images: dict[Case, tuple[Path, int]]
) -> Iterator[Row]:
    for cache in run.caches:
        for case in run.cases():
            open_s = taken[case, cache, "open_s"]
            of = {"number": 9, "cache": cache, **asdict(case)}
            target_s = OPEN_S.get(case.rows)
            yield beside(
                "open",
                f"{'9: ' if target_s else '   '}{case}, {cache}",
                "s",
                open_s,
                "the target" if target_s else "",
                [target_s] * len(open_s) if target_s else None,
                most=1 if target_s and run.judged and cache == "warm" else None,
                of=of,
            )
            if case.rows in GOAL_S:
                goal = [GOAL_S[case.rows]] * len(open_s)
                yield beside("open", f"   {case}, {cache}", "s", open_s, "the next round's goal", goal, of=of)
            size = f"{images[case][1] / 1e6:,.3g} MB"
            for name, limit in (("read_s", f"reading {size}"), ("checked_s", f"reading and checksumming {size}")):
                yield beside("open", f"   {case}, {cache}", "s", open_s, limit, taken[case, cache, name], of=of)
        for kind in run.kinds:
            yield from _linear(
                run,
                f"14: open, {kind} ids, {cache}, for each id",
                {rows: taken[Case(rows, kind, run.dimension), cache, "open_s"] for rows in run.sizes.rows},
                {"number": 14, "kind": kind, "cache": cache},
            )


def _linear(run: Run, what: str, seconds: dict[int, list[float]], of: dict[str, Any]) -> Iterator[Row]:
    """Yields how long the largest store takes for each id, beside the one before it."""
    *_, before, most = sorted(seconds)
    yield beside(
        "recovery" if "recovery" in what else "open",
        f"{what}, {most:,}",
        "ns",
        [each / most * 1e9 for each in seconds[most]],
        f"{before:,}",
        [each / before * 1e9 for each in seconds[before]],
        most=LINEAR_MOST if run.judged else None,
        of=of,
    )


def _wide_rows(run: Run, taken: dict[tuple[Case, str, str], list[float]], wide: Case) -> Iterator[Row]:
    alike = replace(wide, dimension=run.dimension)
    for cache in run.caches:
        yield beside(
            "open",
            f"9: {wide}, {cache}, dimension {wide.dimension}",
            "s",
            taken[wide, cache, "open_s"],
            f"dimension {alike.dimension}",
            taken[alike, cache, "open_s"],
            most=LINEAR_MOST if run.judged and cache == "warm" else None,
            of={"number": 9, "cache": cache, **asdict(wide)},
        )


def _memory_rows(run: Run, taken: dict[tuple[Case, str, str], list[float]]) -> Iterator[Row]:
    for kind in run.kinds:
        case = Case(run.sizes.rows[-1], kind, run.dimension)
        kept, limit = taken[case, run.caches[0], "kept"], MEMORY_BYTES[kind]
        yield beside(
            "memory",
            f"13: {case}, after opening, for each id",
            "B",
            kept,
            "the target",
            [limit] * len(kept),
            most=1 if run.judged else None,
            of={"number": 13, **asdict(case)},
            more={"at most while it opens": taken[case, "", "most"][0]},
        )


def _checkpoint_rows(run: Run, stores: dict[Case, Path]) -> Iterator[Row]:
    changed, repetitions = run.sizes.changed_rows, run.sizes.repetitions
    for kind in run.kinds:
        rows = [rows for rows in run.sizes.rows if rows >= 10 * changed]
        taken = {
            count: child(
                __file__, "change", stores[Case(count, kind, run.dimension)], count, kind, changed, repetitions
            )
            for count in rows
        }
        for count in rows:
            compared = count > rows[0]
            yield beside(
                "checkpoint",
                f"{'14' if count > 10 * rows[0] else '10'}: {changed:,} rows changed in {count:,}, {kind} ids",
                "ms",
                [each * 1e3 for each in taken[count]],
                f"in {rows[0]:,}" if compared else "",
                [each * 1e3 for each in taken[rows[0]]] if compared else None,
                most=CHECKPOINT_MOST if compared and run.judged else None,
                of={"number": 10, "rows": count, "kind": kind},
            )


def measure_recovery(run: Run) -> Iterator[Row]:
    """Yields target 14 for stores that were killed: recovery takes as long for each row, however many there are."""
    left, copy = run.root / "left", run.root / "copy"
    for kind in run.kinds:
        taken: dict[int, list[float]] = {rows: [] for rows in run.sizes.rows[-2:]}
        for rows, seconds in taken.items():
            log_bytes = child(__file__, "fill-and-die", left, rows, kind, run.dimension, run.sizes.segment_bytes)[
                "log_bytes"
            ]
            for _ in range(run.sizes.repetitions):
                fresh(left, copy, cold=False)
                seconds.append(child(__file__, "recover", copy, rows)["open_s"])
            shutil.rmtree(left)
            shutil.rmtree(copy)
            yield beside(
                "recovery",
                f"   recovery, {rows:,} {kind} ids, warm",
                "s",
                seconds,
                of={"number": 14, "rows": rows, "kind": kind},
                note=f"{log_bytes / 1e6:,.3g} MB of log; with the checkpoint that ends it",
            )
        yield from _linear(run, f"14: recovery, {kind} ids, for each id", taken, {"number": 14, "kind": kind})


def measure_growth(run: Run) -> Iterator[Row]:
    """Yields targets 13 and 14 for stores to which ids are added one by one."""
    for kind in run.kinds:
        yield from growth.measure(
            lambda *words: child(__file__, "grow", *words),
            run.root,
            kind,
            rows=run.sizes.rows,
            dimension=run.dimension,
            segment_bytes=run.sizes.segment_bytes,
            window_rows=run.sizes.window_rows,
            repetitions=run.sizes.growth_repetitions,
            memory_bytes=MEMORY_BYTES[kind],
            judged=run.judged,
        )


GROUPS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "open": measure_open,
    "recovery": measure_recovery,
    "growth": measure_growth,
}


def main() -> int:
    """Runs the groups that were asked for, prints the table, writes the JSON."""
    warnings.simplefilter("ignore")  # the file system is printed below
    if sys.argv[1:2] == ["--act"]:
        act(sys.argv[2], sys.argv[3:])
        return 0
    options = _options()
    sizes = SMOKE if options.smoke else Sizes()
    if options.smoke:
        options.ids, options.cache = options.ids or KINDS[:1], options.cache or CACHES[:1]
    if options.rows:
        sizes = replace(sizes, rows=tuple(sorted(set(options.rows))))
    if options.repetitions:
        sizes = replace(sizes, repetitions=options.repetitions, growth_repetitions=options.repetitions)
    root = Path(tempfile.mkdtemp(dir=options.dir, prefix="mmwal-opening-"))
    started = time.monotonic()
    rows: list[Row] = []
    try:
        helper = Helper(root)
        described, before = machine.facts(root), machine.load_average()
        kernel = mmwal.kernel_in_use()
        run = Run(
            root=root,
            helper=helper,
            sizes=sizes,
            kinds=tuple(options.ids or KINDS),
            caches=tuple(options.cache or CACHES),
            dimension=options.dimension,
            judged=kernel == "c",
        )
        repeated = f"{sizes.repetitions} repetitions, of growth {sizes.growth_repetitions}"
        print_head(described, f"{repeated}; kernel: {kernel}", before, note=helper.note)
        for name in options.only or GROUPS:
            if sys.stderr.isatty():
                print(f"measuring {name} ...", file=sys.stderr)
            rows.extend(GROUPS[name](run))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    after, elapsed_s = machine.load_average(), time.monotonic() - started
    print_table(rows)
    print_foot(rows, before, after, elapsed_s, smoke=options.smoke)
    if options.json:
        report = report_of(
            described, rows, before, after, elapsed_s, smoke=options.smoke, sizes=asdict(sizes), kernel=kernel
        )
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append", help="default: 10,000 to 10,000,000; two or more")
    parser.add_argument("--ids", choices=KINDS, action="append", help="kind of the ids; default: both")
    parser.add_argument("--cache", choices=CACHES, action="append", help="the page cache; default: both")
    parser.add_argument("--only", choices=GROUPS, action="append", help="of the groups above; may be repeated")
    parser.add_argument("--dimension", type=int, default=4)
    parser.add_argument("--repetitions", type=int, metavar="N", help="instead of 5, and of 3 for growth")
    parser.add_argument("--dir", help="where to measure; a new directory in it is removed afterwards")
    parser.add_argument("--smoke", action="store_true", help="seconds: does it run? the figures say nothing")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file, too")
    options = parser.parse_args()
    step = (SMOKE if options.smoke else Sizes()).window_rows
    if options.rows and (len(set(options.rows)) < 2 or any(rows < step or rows % step for rows in options.rows)):
        parser.error(f"give --rows twice or more, each time a multiple of {step:,}")
    return options


if __name__ == "__main__":
    sys.exit(main())
