"""Hands hostile bytes with valid checksums to everything that reads files, and reports what came of it.

tools/fuzz.py --inputs 100000 --workers 2     exit code 1 and one line at the first wrong answer
tools/fuzz.py --replay 'image py 1:4711'      that input again
tools/fuzz.py --sanitize                      the C kernel built with the address and undefined-behaviour sanitizers

Right is: a typed error, or an answer that does not contradict itself. Wrong is any other exception, a crash, more than
a second of CPU time, or memory out of proportion to the input. What is fuzzed stands in tools/fuzzing/structures.py.

JSON: inputs, distinct (by content), accepted, refused (by type of error), crashes, inconsistent (accepted and
contradicting itself), hangs, memory_over_cap, cpu_seconds, inputs_per_second (of CPU time), by_structure (inputs,
accepted, refused, inputs_per_second), kernels, sanitized, violation (kind, problem, place, line; null if none) and
violations (one for each place; more than one only with --all).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal import kernel as kernels
from tools.fuzzing.building import SANITIZED, run_sanitized
from tools.fuzzing.judge import CYCLE, Case, Tally, begin, judge, limit_memory
from tools.fuzzing.seeds import seeds
from tools.fuzzing.structures import STRUCTURES

STALL_SECONDS = 60  # of wall-clock time without a finished input: a loop that no signal ends
_FORKED = multiprocessing.get_context("fork")


def case_of(number: int, seed: int, kernel: str, names: list[str]) -> Case:
    """Returns the input with a number; ``kernel`` is ``c``, ``py`` or ``both``."""
    used = kernel if kernel != "both" else ("c", "py")[number // len(names) % 2]
    return Case(names[number % len(names)], used, seed, number)


def work(arguments: argparse.Namespace, names: list[str], worker: int, current: Any, results: Any) -> None:
    """Judges every block of inputs that is this worker's; sends its tally."""
    faulthandler.enable()
    begin()
    if not os.environ.get(SANITIZED):
        limit_memory()
    tally = Tally()
    block = worker
    while block * len(names) < arguments.inputs and time.process_time() < arguments.seconds:
        for number in range(block * len(names), min((block + 1) * len(names), arguments.inputs)):
            current[worker] = number
            judge(case_of(number, arguments.seed, arguments.kernel, names), tally)
            if tally.violations and not arguments.all:
                results.send(tally)
                return
        block += arguments.workers
    results.send(tally)


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the workers and watches them; returns the report."""
    names = [name for name in CYCLE if name in (arguments.structure or STRUCTURES)]
    seeds()  # once, for all workers
    current = _FORKED.RawArray("Q", arguments.workers)
    running: dict[Any, tuple[int, Any]] = {}
    for worker in range(arguments.workers):
        receiver, sender = _FORKED.Pipe(duplex=False)
        process = _FORKED.Process(target=work, args=(arguments, names, worker, current, sender), daemon=True)
        process.start()
        sender.close()
        running[receiver] = worker, process
    whole = Tally()
    seen, moved = list(current), time.monotonic()
    while running:
        for receiver in wait([*running], timeout=1.0):
            worker, process = running.pop(receiver)
            try:
                whole.merge(receiver.recv())
            except EOFError:
                process.join()
                case = case_of(current[worker], arguments.seed, arguments.kernel, names)
                problem = f"the process died: {_how(process.exitcode)}"
                whole.violate({"kind": "crash", "problem": problem, "place": problem, "line": case.line})
            process.join()
        if list(current) != seen:
            seen, moved = list(current), time.monotonic()
        elif time.monotonic() - moved > STALL_SECONDS:
            for worker, process in running.values():
                case = case_of(current[worker], arguments.seed, arguments.kernel, names)
                problem = f"no end within {STALL_SECONDS} s"
                whole.violate({"kind": "hang", "problem": problem, "place": case.line, "line": case.line})
                process.kill()
            break
        if whole.violations and not arguments.all:
            for _, process in running.values():
                process.terminate()
            break
    return {**whole.report(), "kernels": arguments.kernel, "sanitized": bool(os.environ.get(SANITIZED))}


def _how(exitcode: int | None) -> str:
    return signal.Signals(-exitcode).name if exitcode and exitcode < 0 else f"exit code {exitcode}"


def replay(line: str) -> int:
    """Judges one input again, in this process; returns the exit code."""
    begin()
    tally = Tally()
    judge(Case.parse(line), tally)
    for violation in tally.violations:
        print(f"{violation['kind']}: {violation['problem']}\n  at {violation['place']}")
    if not tally.violations:
        print(f"nothing wrong with it any more: {'accepted' if tally.accepted else dict(tally.refused)}")
    return 1 if tally.violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000, help="over all workers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of CPU time for each worker: end then")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kernel", default="both", choices=("both", "c", "py"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--structure", action="append", choices=tuple(STRUCTURES), help="only this one; again for more")
    parser.add_argument("--all", action="store_true", help="go on after a wrong answer; tell one for each place")
    parser.add_argument("--replay", metavar="LINE")
    parser.add_argument(
        "--sanitize", action="store_true", help="build the C kernel with sanitizers, in a copy, and fuzz that"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.sanitize:
        return run_sanitized(sys.argv[1:])
    if arguments.kernel != "py":
        kernels.load("c")  # an ImportError now, not later
    if arguments.replay:
        return replay(arguments.replay)
    report = fuzz(arguments)
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def _readable(report: dict[str, Any]) -> str:
    shown = {
        name: value for name, value in report.items() if not isinstance(value, (dict, list)) and name != "violation"
    }
    lines = [
        f"{name.replace('_', ' '):20}{value:,}" if type(value) is int else f"{name:20}{value}"
        for name, value in shown.items()
    ]
    lines += [f"  {count:10,}  refused with {name}" for name, count in report["refused"].items()]
    for name, counts in report["by_structure"].items():
        lines.append(f"  {name:16}" + "".join(f"{key.replace('_', ' ')} {value:,}  " for key, value in counts.items()))
    for violation in report["violations"]:
        lines += ["", f"{violation['kind']}: {violation['problem']}", f"  at {violation['place']}"]
        lines.append(f"replay: tools/fuzz.py --replay '{violation['line']}'")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
