"""Fails every disk call of every public operation, one after the other, and checks what a caller and a crash then find.

    tools/sweep.py --kernel c --workers 2              everything; exit code 1 and one line at the first wrong answer
    tools/sweep.py insert                              one operation (also: store/insert, store/insert/fresh)
    tools/sweep.py --replay 'py/store/close/midlife/3/EIO/once/0.5'    that answer again
    tools/sweep.py --list                              operations and situations, without running them
    tools/sweep.py --kinds                             the kinds of faults on one machine, and what covers each

What is checked after each failing call stands at the top of `mmwal/testing/sweep.py`. Each call fails once in its
likeliest way and for ever in one of its ways, by turns; with --thorough in each of its ways, once and for ever.

Keys of the JSON object:
    kernel, operations, situations     operations swept; operations times the situations of each
    calls                              disk calls of all of them in a run without faults: each was made to fail
    trials, struck                     runs with a fault; calls that failed in them
    recoveries                         directories opened after a crash or a close, and compared
    outcomes                           what the operation did: returned, or the error's type: count
    faults                             errno and call: trials
    fault_kinds                        kind: what covers it ("sweep: 12", a tool, a test), null where nothing does
    fault_kinds_swept, fault_kinds_covered, fault_kinds_machine     counts of these
    seconds                            of CPU time
    violation                          null, or {line, problem}
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.testing.sweep import Failure, Sweep

ROOT = Path(__file__).resolve().parent.parent
REAL = "tools/realfaults.py"
ROT = "tools/bitrot.py"
CRASH = "tools/crash.py"


class FaultKind(NamedTuple):
    """A way in which one machine fails: what the sweep calls it, if it injects it, and who else covers it."""

    name: str
    swept: str = ""  # a regular expression of "errno at label"
    elsewhere: tuple[str, ...] = ()


FAULT_KINDS = [
    FaultKind("msync EIO once", r"EIO at (segment|spare)\.wal sync, once"),
    FaultKind("msync EIO for ever", r"EIO at (segment|spare)\.wal sync, ever"),
    FaultKind("fsync EIO on a directory", r"EIO at \w+ sync_directory", (REAL,)),
    FaultKind("sync delayed 1 s", r"a second lost at .* sync", (REAL,)),
    FaultKind("sync interrupted: SIGKILL before", "", (CRASH,)),
    FaultKind("sync interrupted: SIGKILL after", "", (CRASH,)),
    FaultKind("ENOSPC at fallocate", r"ENOSPC at .* allocate", (REAL,)),
    FaultKind("ENOSPC at rename", r"ENOSPC at .* rename"),
    FaultKind("ENOSPC at the control file", r"ENOSPC at control(\.tmp)? (write|create|sync)"),
    FaultKind("SIGBUS from a full disk", "", (REAL,)),
    FaultKind("SIGBUS from truncation", "", (REAL,)),
    FaultKind("SIGBUS from a bad block", "", (REAL,)),
    FaultKind("reflinked segment", "", (REAL,)),
    FaultKind("EFBIG", r"EFBIG at", (REAL,)),
    FaultKind("short write", r" write, .*, short", (REAL,)),
    FaultKind("EMFILE", r"EMFILE at", (REAL,)),
    FaultKind("ENOMEM at mmap", r"ENOMEM at .* map", (REAL,)),
    FaultKind("EROFS", r"EROFS at", (REAL,)),
    FaultKind("process SIGKILL", "", ("tools/kills.py",)),
    FaultKind("SIGSTOP", "", (REAL,)),
    FaultKind("OOM kill", "", (REAL,)),
    FaultKind("bit flip", "", (ROT,)),
    FaultKind("zeroed sector", "", (ROT,)),
    FaultKind("stale sector", "", (ROT,)),
    FaultKind("swapped sectors", "", (ROT,)),
    FaultKind("missing segment", "", ("tests/recovery/test_verdicts.py", REAL)),
    FaultKind("duplicate segment", "", ("tests/recovery/test_verdicts.py", REAL)),
    FaultKind("unknown file", "", ("tests/recovery/test_verdicts.py", REAL)),
    FaultKind("clock +1 year", r"a year later at"),
    FaultKind("clock -1 day", r"a day earlier at"),
    FaultKind("monotonic jump", r"an hour lost at"),
]
SUMS = ("calls", "trials", "struck", "recoveries", "seconds")


def sweep_cases(kernel: str, names: list[str], thorough: bool) -> dict[str, Any]:
    """Sweeps some cases; the report has the violation, if any."""
    logging.getLogger("mmwal").setLevel(logging.CRITICAL)  # automatic checkpoints that fail say so
    sweep = Sweep(kernel, thorough=thorough)
    started = time.process_time()
    calls = trials = 0
    violation = None
    try:
        for case in sweep.cases():
            if case.name in names:
                calls += len(sweep.calls(case))
                for trial in sweep.trials(case):
                    trials += 1
                    sweep.run(trial)
    except Failure as failure:
        violation = {"line": failure.line, "problem": failure.problem}
    return {
        "calls": calls,
        "trials": trials,
        "struck": sweep.struck,
        "recoveries": sweep.recoveries,
        "outcomes": sweep.outcomes,
        "faults": sweep.faults,
        "seconds": round(time.process_time() - started, 1),
        "violation": violation,
    }


def merged(kernel: str, names: list[str], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of the reports of several workers."""
    whole: dict[str, Any] = {
        "kernel": kernel,
        "operations": len({name.rpartition("/")[0] for name in names}),
        "situations": len(names),
    }
    whole |= {field: round(sum(report[field] for report in reports), 1) for field in SUMS}
    for field in ("outcomes", "faults"):
        whole[field] = dict(sorted(sum((report[field] for report in reports), Counter()).items()))
    whole["fault_kinds"] = covered(whole["faults"])
    covers = [cover for cover in whole["fault_kinds"].values() if cover]
    whole["fault_kinds_swept"] = sum(1 for cover in covers if cover.startswith("sweep"))
    whole["fault_kinds_covered"] = len(covers)
    whole["fault_kinds_machine"] = len(FAULT_KINDS)
    whole["violation"] = next((report["violation"] for report in reports if report["violation"]), None)
    return whole


def covered(faults: dict[str, int]) -> dict[str, str | None]:
    """Returns what covers each kind: this sweep, by what it really injected, else the tool or test that is there."""
    table: dict[str, str | None] = {}
    for kind in FAULT_KINDS:
        count = sum(faults[fault] for fault in faults if kind.swept and re.search(kind.swept, fault))
        there = [path for path in kind.elsewhere if (ROOT / path).exists()]
        parts = ([f"sweep: {count:,}"] if count else []) + there
        table[kind.name] = ", ".join(parts) or None
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operation", nargs="?", default="", help="one operation; default: all")
    parser.add_argument("--kernel", default="py", choices=("py", "c"))
    parser.add_argument(
        "--thorough", action="store_true", help="every way to fail, once and for ever: ten times as long"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--replay", metavar="LINE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.kinds:
        print(_table(covered({}), swept=True))
        return 0
    if arguments.replay:
        return _replay(arguments.replay)
    names = [case.name for case in Sweep(arguments.kernel).cases(arguments.operation)]
    if not names:
        parser.error(f"no operation {arguments.operation!r}; see --list")
    if arguments.list:
        print("\n".join(names))
        return 0
    workers = max(1, arguments.workers)
    shares = [names[worker :: 4 * workers] for worker in range(4 * workers)]
    jobs = [(arguments.kernel, share, arguments.thorough) for share in shares if share]
    if workers == 1:
        reports = [sweep_cases(arguments.kernel, names, arguments.thorough)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            reports = list(pool.map(sweep_cases, *zip(*jobs, strict=True)))
    report = merged(arguments.kernel, names, reports)
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def _replay(line: str) -> int:
    sweep = Sweep(line.partition("/")[0])
    try:
        sweep.run(sweep.trial(line))
    except Failure as failure:
        print(failure.problem)
        return 1
    print("nothing wrong with this trial any more")
    return 0


def _table(kinds: dict[str, str | None], *, swept: bool = False) -> str:
    injected: Iterable[str] = {kind.name for kind in FAULT_KINDS if swept and kind.swept}
    return "\n".join(
        f"  {name:36}{', '.join(filter(None, ['the sweep' if name in injected else '', cover])) or 'NOT COVERED'}"
        for name, cover in kinds.items()
    )


def _readable(report: dict[str, Any]) -> str:
    lines = [f"{name.replace('_', ' '):24}{value}" for name, value in report.items() if not isinstance(value, dict)]
    lines += [f"  {count:8,}  {outcome}" for outcome, count in report["outcomes"].items()]
    lines += ["kinds of faults on one machine:", _table(report["fault_kinds"])]
    if report["violation"]:
        found = report["violation"]
        lines += ["", found["problem"], f"replay: tools/sweep.py --replay '{found['line']}'"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
