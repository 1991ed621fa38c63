"""One input under limits of time and memory, and the counts of many.

* Time: an input that takes more than `SECONDS_MAX` of CPU time is a hang. A loop in C is ended from outside, by the
  process that watches this one.
* Memory: a worker has `ADDRESS_SPACE_BYTES` beside what it had at its start, so a number from a file cannot become an
  allocation; and of every input in `TRACED_EACH` the peak is measured against its structure's limit.
* A warning is an error: of NumPy it says that a number did not fit.
"""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from mmwal import kernel as kernels
from mmwal.errors import DurabilityWarning
from tools.fuzzing.structures import STRUCTURES, Input, Structure

SECONDS_MAX = 1.0
ADDRESS_SPACE_BYTES = 256 << 20
BYTES_PER_BYTE = 96  # an empty mapping takes one byte on disk, and as many in memory
TRACED_EACH = 16
CYCLE = [name for name, structure in STRUCTURES.items() for _ in range(structure.weight)]
random.Random(0).shuffle(CYCLE)


class Hang(BaseException):
    """The input took too long."""


@dataclass(frozen=True)
class Case:
    """What identifies an input: its line says it all."""

    structure: str
    kernel: str
    seed: int
    number: int

    @property
    def line(self) -> str:
        """The line that `tools/fuzz.py --replay` takes."""
        return f"{self.structure} {self.kernel} {self.seed}:{self.number}"

    @classmethod
    def parse(cls, line: str) -> Case:
        """Returns the case of a line. Raises `ValueError`."""
        structure, kernel, numbers = line.split()
        seed, _, number = numbers.partition(":")
        if structure not in STRUCTURES or kernel not in ("c", "py"):
            raise ValueError(f"no such structure or kernel: {line}")
        return cls(structure, kernel, int(seed), int(number))

    def make(self) -> Input:
        """Returns the input."""
        return STRUCTURES[self.structure].make(random.Random(f"{self.structure} {self.seed}:{self.number}"))


@dataclass
class Tally:
    """Counts of one worker; `merge` adds those of another."""

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)
    by_structure: dict[str, Counter[str]] = field(default_factory=dict)
    seconds_by_structure: Counter[str] = field(default_factory=Counter)
    digests: set[bytes] = field(default_factory=set)
    violations: list[dict[str, str]] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def merge(self, other: Tally) -> None:
        """Adds what another worker counted."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.seconds += other.seconds
        self.refused += other.refused
        for name, counts in other.by_structure.items():
            self.by_structure.setdefault(name, Counter()).update(counts)
        self.seconds_by_structure.update(other.seconds_by_structure)
        self.digests |= other.digests
        for violation in other.violations:
            self.violate(violation)

    def violate(self, violation: dict[str, str]) -> None:
        """Notes a wrong answer, one for each place in the code."""
        if violation["place"] not in self.places:
            self.places.add(violation["place"])
            self.violations.append(violation)

    def report(self) -> dict[str, Any]:
        """Returns the figures; their meaning is in the help of `tools/fuzz.py`."""
        kinds = Counter(violation["kind"] for violation in self.violations)
        return {
            "inputs": self.inputs,
            "distinct": len(self.digests),
            "accepted": self.accepted,
            "refused": dict(sorted(self.refused.items())),
            "crashes": kinds["crash"],
            "inconsistent": kinds["inconsistent"],
            "hangs": kinds["hang"],
            "memory_over_cap": kinds["memory"],
            "cpu_seconds": round(self.seconds, 2),
            "inputs_per_second": round(self.inputs / self.seconds) if self.seconds else 0,
            "by_structure": {
                name: {
                    **dict(sorted(counts.items())),
                    "inputs_per_second": round(counts["inputs"] / max(1e-9, self.seconds_by_structure[name])),
                }
                for name, counts in sorted(self.by_structure.items())
            },
            "violation": self.violations[0] if self.violations else None,
            "violations": self.violations,
        }


def limit_memory() -> None:
    """Lets this process have `ADDRESS_SPACE_BYTES` more than it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))


def begin() -> None:
    """Prepares a process for judging: what a hang raises, what a warning is."""
    signal.signal(signal.SIGPROF, _hang)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DurabilityWarning)


def judge(case: Case, tally: Tally) -> None:
    """Makes an input, has it read, and notes what came of it."""
    structure = STRUCTURES[case.structure]
    kernel = kernels.load(case.kernel)
    started = time.process_time()
    made = case.make()
    tally.digests.add(blake2b(made.content, digest_size=8, person=case.structure.encode()[:16]).digest())
    traced = case.number % TRACED_EACH == 0
    if traced:
        tracemalloc.start()
    outcome, violation = _read(structure, kernel, made)
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        cap = structure.memory_bytes + BYTES_PER_BYTE * made.size
        if peak > cap:
            violation = {
                "kind": "memory",
                "problem": f"{peak:,} bytes for {made.size:,}",
                "place": f"memory {case.structure}",
            }
    tally.inputs += 1
    counts = tally.by_structure.setdefault(case.structure, Counter())
    counts["inputs"] += 1
    if violation is not None:
        tally.violate({**violation, "line": case.line})
    elif outcome == "accepted":
        tally.accepted += 1
        counts["accepted"] += 1
    else:
        tally.refused[outcome] += 1
        counts["refused"] += 1
    elapsed = time.process_time() - started
    tally.seconds += elapsed
    tally.seconds_by_structure[case.structure] += elapsed


def _read(structure: Structure, kernel: Any, made: Input) -> tuple[str, dict[str, str] | None]:
    """Returns what came of an input, and what was wrong with that."""
    kind = "crash"
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
        try:
            structure.read(kernel, made.thing)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return "accepted", None
    except structure.refusals as error:
        return type(error).__name__, None
    except MemoryError as error:
        kind, found = "memory", error
    except Hang as error:
        kind, found = "hang", error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (whatever comes is what is asked)
        kind, found = "inconsistent" if type(error).__name__ == "Inconsistent" else "crash", error
    frames = traceback.extract_tb(found.__traceback__)
    ours = [frame for frame in frames if "mmwal" in frame.filename] or frames
    last = ours[-1] if kind != "hang" else ours[min(len(ours) - 1, 3)]
    where = f"{last.filename.rpartition('mmwal/')[2]}:{last.name}"
    problem = f"{type(found).__name__}: {found}"[:300]
    return kind, {"kind": kind, "problem": problem, "place": f"{structure.name} {type(found).__name__} {where}"}


def _hang(*_: Any) -> None:
    raise Hang(f"more than {SECONDS_MAX} s of CPU time")
