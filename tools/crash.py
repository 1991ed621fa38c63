"""Crashes a target on the simulated disk, everywhere and again during its recovery, and reports what came back.

tools/crash.py --target log --images 100000 --workers 2     exit code 1 and one line at the first wrong answer
tools/crash.py --replay 'log-py 1.0 61:0/0/new+ 22:kill'    that answer again

The report (`--json`): "crashed_labels" has the number of crashes at each step of the protocol (a disk call, or a
publish: "published", "written"), "labels_without_crash" the steps that the stories reached and no crash hit yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.testing.explorer import DENSE, Explorer, Pace, Target, Violation, replay

SUMS = (
    "stories",
    "images",
    "distinct",
    "distinct_nested",
    "kills",
    "damages",
    "recoveries",
    "repeated",
    "faults_struck",
)


def target_named(name: str) -> Target:
    """Returns the target that a replay line names: ``log-py``, ``log-c``, ``writers-py``, ``store-c`` and so on."""
    what, _, kernel = name.partition("-")
    if what == "log":
        from mmwal.testing.target_log import LogTarget

        return LogTarget(kernel)
    if what == "writers":
        from mmwal.testing.interleaved import WritersTarget

        return WritersTarget(kernel)
    from mmwal.testing.target_store import StoreTarget

    return StoreTarget(kernel)


def pace_of(target: Target, *, dense: bool = False) -> Pace:
    """Returns how densely a target is crashed: its own way, or the common one."""
    return getattr(target, "pace", DENSE if dense else Pace())


def explore(name: str, seed: int, images: int, seconds: float, dense: bool = False) -> dict[str, Any]:
    """Explores with one seed; the report has the violation, if any."""
    target = target_named(name)
    explorer = Explorer(target, seed=seed, pace=pace_of(target, dense=dense))
    found: Violation | None = None
    try:
        explorer.run(images, seconds_max=seconds)
    except Violation as violation:
        found = violation
    report = explorer.report()
    report["violation"] = {"line": found.line, "problem": found.problem} if found else None
    return report


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of the reports of several seeds; their images differ, as their stories do."""
    whole: dict[str, Any] = {field: sum(report[field] for report in reports) for field in SUMS}
    whole["target"] = reports[0]["target"]
    whole["nested_share"] = round(whole["distinct_nested"] / max(1, whole["distinct"]), 3)
    whole["seconds"] = max(report["seconds"] for report in reports)
    whole["recoveries_per_second"] = sum(report["recoveries_per_second"] for report in reports)
    for field in ("crashed_labels", "acts"):
        whole[field] = dict(sorted(sum((Counter(report[field]) for report in reports), Counter()).items()))
    missed = set().union(*(report["labels_without_crash"] for report in reports))
    whole["labels_without_crash"] = sorted(missed - set(whole["crashed_labels"]))
    whole["violation"] = next((report["violation"] for report in reports if report["violation"]), None)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="log", choices=("log", "writers", "store"))
    parser.add_argument("--kernel", default="py", choices=("py", "c"))
    parser.add_argument("--images", type=int, default=10_000, help="distinct images, over all workers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of CPU time: end earlier than that")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dense", action="store_true", help="more images in fewer stories: the most per second")
    parser.add_argument("--replay", metavar="LINE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.replay:
        try:
            target = target_named(arguments.replay.split(" ")[0])
            replay(arguments.replay, target, pace_of(target))
        except Violation as violation:
            print(violation.problem)
            return 1
        print("nothing wrong on this path any more")
        return 0
    name, workers = f"{arguments.target}-{arguments.kernel}", max(1, arguments.workers)
    share = -(-arguments.images // workers)
    jobs = [(name, arguments.seed + worker, share, arguments.seconds, arguments.dense) for worker in range(workers)]
    if workers == 1:
        report = merged([explore(*jobs[0])])
    else:
        with ProcessPoolExecutor(workers) as pool:
            report = merged(list(pool.map(explore, *zip(*jobs, strict=True))))
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def _readable(report: dict[str, Any]) -> str:
    lines = [f"{name.replace('_', ' '):24}{value}" for name, value in report.items() if not isinstance(value, dict)]
    lines += [f"  {count:8,}  crashes at {label}" for label, count in report["crashed_labels"].items()]
    if report["violation"]:
        found = report["violation"]
        lines += ["", found["problem"], f"replay: tools/crash.py --replay '{found['line']}'"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
