"""How long a write takes, beside what the machine can do: `python benchmarks/append.py [--smoke]`.

Groups, each with the targets it measures (see README.md of this folder; nothing is gated, the exit code is 0):

    single   one insert, not synced by the call, log and store             targets 1 and 3
    tail     20,000 inserts a second beside a sync each 10 and 100 ms      target 2
    durable  one insert, durable on return                                 target 4
    batch    1,000 x 768, each durable; what reached the device            targets 6 and 7
    device   what single durable inserts wrote to the device               target 7
    peers    SQLite, and what else is installed of others, for context     with --peers

Limits (`limits.py`) and figures alternate in the same run on the same directory; a ratio is taken within a repetition.
Latencies of single inserts are taken in groups of 63, and one in 64 by itself, less what the clock takes.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import batch
import durable
import machine
import peers
import single
import tail
from figures import Row, print_table
from limits import Helper
from report import print_foot, print_head, report_of
from subject import SMOKE, Run, Sizes, cost_of_the_clock_ns

import mmwal
from mmwal import kernel as kernels

GROUPS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "single": single.measure_single,
    "tail": tail.measure_tail,
    "durable": durable.measure_durable,
    "batch": batch.measure_batch,
    "device": batch.measure_device,
    "peers": peers.measure_peers,
}


def main() -> int:
    """Runs the groups that were asked for, prints the table, writes the JSON."""
    options = _options()
    sizes = replace(
        SMOKE if options.smoke else Sizes(), **({"repetitions": options.repetitions} if options.repetitions else {})
    )
    groups = [name for name in GROUPS if (name in options.only if options.only else name != "peers" or options.peers)]
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)  # the file system is printed below
    root = Path(tempfile.mkdtemp(dir=options.dir, prefix="mmwal-benchmark-"))
    started = time.monotonic()
    try:
        helper = Helper(root)
        run = Run(
            root=root,
            helper=helper,
            sizes=sizes,
            kernels=tuple(options.kernel or _installed_kernels()),
            dimensions=tuple(options.dimension or (128, 768)),
            clock_ns=cost_of_the_clock_ns(),
        )
        described = machine.facts(root)
        load_before = machine.load_average()
        kinds = f"kernels: {', '.join(run.kernels)}"
        measured = f"{sizes.repetitions} repetitions; {kinds}; a reading of the clock: {run.clock_ns:.0f} ns"
        print_head(described, measured, load_before, note=helper.note)
        rows: list[Row] = []
        for name in groups:
            if sys.stderr.isatty():
                print(f"measuring {name} ...", file=sys.stderr)
            gc.collect()
            rows.extend(GROUPS[name](run))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    load_after = machine.load_average()
    elapsed_s = time.monotonic() - started
    print_table(rows)
    print_foot(rows, load_before, load_after, elapsed_s, smoke=options.smoke)
    if options.json:
        report = report_of(
            described,
            rows,
            load_before,
            load_after,
            elapsed_s,
            smoke=options.smoke,
            sizes=asdict(sizes),
            compiled_limits=helper.compiled,
            clock_ns=run.clock_ns,
        )
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="seconds: does it run? the figures say nothing")
    parser.add_argument("--json", metavar="FILE", help="write everything to a file, too")
    parser.add_argument(
        "--dir", metavar="DIRECTORY", help="measure in a new directory in this one (default: the temporary one)"
    )
    parser.add_argument(
        "--only", metavar="GROUP", action="append", choices=GROUPS, help=f"of {', '.join(GROUPS)}; may be repeated"
    )
    parser.add_argument("--kernel", action="append", choices=("c", "py"), help="only this one; may be repeated")
    parser.add_argument("--dimension", action="append", type=int, help="instead of 128 and 768; may be repeated")
    parser.add_argument("--repetitions", type=int, metavar="N", help="instead of 5")
    parser.add_argument(
        "--peers", action="store_true", help="also measure SQLite, LMDB, LevelDB and RocksDB, where installed"
    )
    return parser.parse_args()


def _installed_kernels() -> list[str]:
    return ["c", "py"] if mmwal.kernel_in_use() == "c" else [kernels.load().NAME]


if __name__ == "__main__":
    sys.exit(main())
