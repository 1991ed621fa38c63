"""Breaks the durability protocol, one line at a time, and proves that each breakage is found.

    tools/mutate.py                          every mutant of `mutants.py`; exit code 1 if one survives
    tools/mutate.py no_directory_sync        some of them, by name
    tools/mutate.py --list                   what there is, and what each would cost a user
    tools/mutate.py --unmutated              the same explorations and tests on the package as it is: nothing is found
    tools/mutate.py --equivalents            those that cannot cost anything: they survive, and their defence is tested
    tools/mutate.py --retune 8               tries eight seeds for each and names the one that finds it soonest

A mutant is applied to a temporary copy of the package, never here, and compiled there where it is one of the C source.
It is found by what it names:

    log-py, log-c, store-py, store-c    the crash explorer on that target, as `tools/crash.py` runs it; up to 3 seeds
    tests/...::test_name                that test, which must fail, and pass on the package as it is
    race, race -D..., race -f...        the race test of the compiled kernel with these compiler flags

--json FILE (- is standard output) writes ``{"mutants": [...], "found": n, "seeded": n, "survived": [names],
"broken": [names], "not_run": [names], "seconds": CPU seconds of all}``; each mutant has ``name``, ``file``, ``steps``,
``loses``, ``by``, ``verdict`` (``found``; ``survived``; ``broken``: it cannot be applied, or fails for another reason
than its breakage; ``not run``), ``images`` (None for a test), ``seconds`` of CPU time, ``problem`` (what was wrong, or
why it was not run) and ``replay`` (the line for tools/crash.py --replay on the mutated package, if any).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.mutants import EQUIVALENT, MUTANTS, Edit, Equivalent, Mutant

ROOT = Path(__file__).resolve().parent.parent
IMAGES_MAX = 3_000  # of one exploration
SECONDS_MAX = 8.0  # of CPU time, of one exploration
SEEDS_MAX = 3
SECONDS_MOST = 120.0  # of wall-clock time: what does not end has found nothing
TARGETS = ("log-py", "log-c", "store-py", "store-c")
EXTENSIONS = {  # folder of the sources, to source, extension and the flags that setup.py gives
    "kernel": ("_kernel.c", "_kernel.abi3.so", ("-std=c11", "-fno-strict-aliasing", "-DPy_LIMITED_API=0x030B0000")),
    "disk": ("_sync.c", "_sync.abi3.so", ("-std=gnu11", "-fno-strict-aliasing", "-DPy_LIMITED_API=0x030B0000")),
}
# A mutant that is no Python any more proves nothing when it fails.
BROKEN = re.compile(r"\b(NameError|UnboundLocalError|SyntaxError|IndentationError|ImportError|ModuleNotFoundError)\b")


class BrokenMutant(Exception):
    """A mutant that cannot be applied, or fails for a reason that has nothing to do with what it breaks."""


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant; the fields as in the JSON."""

    name: str
    file: str
    steps: tuple[str, ...]
    loses: str
    by: str
    verdict: str
    images: int | None
    seconds: float
    problem: str
    replay: str

    @property
    def line(self) -> str:
        images = f"{self.images:7,} images" if self.images is not None else " " * 14
        word = self.verdict.upper() if self.verdict in ("survived", "broken") else self.verdict
        return f"{word:9}{images} {self.seconds:6.1f} s"


# -- a copy of the package


def mutated_copy(edits: Iterable[Edit], folder: Path, *, tests: bool = False) -> Path:
    """Copies package and tools into a folder, tests (and the docs that they read) too if asked, with the edits applied;
    returns the folder."""
    left_out = shutil.ignore_patterns("data", ".pytest_cache")  # compiled modules too: they are valid where unchanged
    for room in ("mmwal", "tools", *(["tests", "docs"] if tests else [])):
        shutil.copytree(ROOT / room, folder / room, ignore=left_out)
    if tests:
        shutil.copy(ROOT / "pyproject.toml", folder)
    changed = set()
    for edit in edits:
        path = folder / "mmwal" / edit.file
        text = path.read_text("utf-8")
        if text.count(edit.old) != 1:
            raise BrokenMutant(f"its text occurs {text.count(edit.old)} times in {edit.file}: {edit.old!r}")
        text = text.replace(edit.old, edit.new)
        path.write_text(text, "utf-8")
        if path.suffix == ".py":
            try:
                compile(text, edit.file, "exec")
            except SyntaxError as error:
                raise BrokenMutant(f"it is no Python any more: {error}") from error
        else:
            changed.add(edit.file.split("/")[0])
    for room in changed:
        build(folder / "mmwal" / room, *EXTENSIONS[room])
    return folder


def build(folder: Path, source: str, extension: str, flags: tuple[str, ...]) -> None:
    """Compiles an extension of a copy where it stands. Raises `BrokenMutant`."""
    (folder / extension).unlink(missing_ok=True)
    include = f"-I{sysconfig.get_path('include')}"
    command = [*_compiler(), "-O1", *flags, "-shared", "-fPIC", include, str(folder / source)]
    done = subprocess.run([*command, "-o", str(folder / extension)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokenMutant(f"it does not compile: {done.stderr[-500:]}")


def _compiler() -> list[str]:
    return os.environ.get("CC", "gcc").split()


def missing_for(by: str, edits: Iterable[Edit]) -> str:
    """Returns what this machine lacks to run a mutant; an empty string if nothing."""
    compiles = by.startswith("race") or any(not edit.file.endswith(".py") for edit in edits)
    if compiles and shutil.which(_compiler()[0]) is None:
        return f"no C compiler: {_compiler()[0]}"
    if "-fsanitize" in by and not Path(_say([*_compiler(), "-print-file-name=libtsan.so"])).is_absolute():
        return "the compiler has no thread sanitizer"
    uses_c = by.endswith("-c") or "[c" in by
    if uses_c and not compiles and not (ROOT / "mmwal/kernel/_kernel.abi3.so").exists():
        return "the compiled kernel is not built here"
    return ""


def _say(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


# -- the three ways to find a mutant: each returns (found, images, problem, replay)

Outcome = tuple[bool, int | None, str, str]


def explore(copy: Path, target: str, seed: int, images: int, seconds: float) -> Outcome:
    """Runs the crash explorer of a copy with one seed."""
    what, _, kernel = target.partition("-")
    arguments = ["crash.py", "--json", "--target", what, "--kernel", kernel]
    arguments += ["--images", str(images), "--seconds", str(seconds), "--seed", str(seed)]

    def act() -> int:
        import warnings

        warnings.simplefilter("ignore")
        sys.argv = arguments
        from tools.crash import main as crash

        return crash()

    code, said, complained = _in_a_copy(copy, act)
    if not said.startswith("{"):
        raise BrokenMutant(f"the explorer ended with {code}: {complained[-2000:]}")
    report: dict[str, Any] = json.loads(said)
    found = report["violation"]
    if not found:
        return False, report["distinct"], "", ""
    if BROKEN.search(found["problem"]):
        raise BrokenMutant(found["problem"])
    return True, report["distinct"], found["problem"].splitlines()[0], found["line"]


def run_tests(copy: Path, *nodes: str) -> Outcome:
    """Runs tests of a copy; found if one fails, or ends the process."""

    def act() -> int:
        import pytest

        quiet = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        own = f"--basetemp={copy / 'pytest'}"  # of a shared one, others remove what this one lists
        return int(pytest.main(["-q", "-x", "--tb=short", own, *quiet, *nodes]))

    code, said, complained = _in_a_copy(copy, act)
    if code < 0:
        return True, None, f"the process was ended by signal {-code}", ""
    if code not in (0, 1) or BROKEN.search(said):
        raise BrokenMutant(f"the tests ended with {code}: {said[-2000:]}{complained[-500:]}")
    if code == 0 and " passed" not in said:
        raise BrokenMutant(f"no test was run: {said[-500:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    lines = [line[2:].strip() for line in said.splitlines() if line.startswith("E ")]
    return code == 1, None, f"{failed[1] if failed else 'a test'}: {lines[0] if lines else ''}" if code else "", ""


def race(copy: Path, *flags: str) -> Outcome:
    """Builds and runs the race test of a copy, as tools/sanitize.sh does."""
    source, program = copy / "tests/kernel/race_test.c", copy / "race_test"
    command = [*_compiler(), "-std=c11", "-O1", "-g", "-pthread", *flags, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BrokenMutant(f"it does not compile: {done.stderr[-500:]}")
    for _ in range(SEEDS_MAX):  # threads have no seed
        done = _run([str(program)], copy, TSAN_OPTIONS="halt_on_error=1")
        said = [line for line in done.stderr.splitlines() if "data race" in line or "does not hold" in line]
        if done.returncode and not said:
            raise BrokenMutant(f"the race test broke: {done.stderr[-500:]}")
        if done.returncode:
            return True, None, said[0].strip(), ""
    return False, None, "", ""


def _run(command: list[str], copy: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, **environment},
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS_MOST,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenMutant(f"it did not end within {SECONDS_MOST:g} s") from error


def _in_a_copy(copy: Path, act: Callable[[], int]) -> tuple[int, str, str]:
    """Runs a function in a forked child where ``mmwal``, ``tools`` and ``tests`` are those of a copy.

    Returns its exit status (negative: the signal that ended it) and what it wrote. A fork, because importing numpy and
    pytest takes longer than most mutants live.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(complained.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
                _move_to(copy)
                code = act()
            except BaseException:  # noqa: BLE001 (nothing may leave the child)
                traceback.print_exc()
            finally:
                with suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        code = _wait_for(child)
        said.seek(0)
        complained.seek(0)
        return code, said.read(), complained.read()


def _move_to(copy: Path) -> None:
    """Turns this process to the modules of a copy."""
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), PYTHONSAFEPATH="1", PYTHONDONTWRITEBYTECODE="1")  # for its own children
    sys.dont_write_bytecode = True
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (as long as the process)
    for name in list(sys.modules):
        if name.split(".")[0] in ("mmwal", "tools", "tests"):
            del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tools"))]
    importlib.invalidate_caches()


def _wait_for(child: int) -> int:
    deadline = time.monotonic() + SECONDS_MOST
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise BrokenMutant(f"it did not end within {SECONDS_MOST:g} s")
        time.sleep(0.02)


def warm_up() -> None:
    """Imports what every child needs, and nothing that a mutant changes."""
    for name in ("numpy", "numpy.random", "psutil", "pytest", "hypothesis", "hypothesis.strategies"):
        with suppress(ImportError):
            importlib.import_module(name)


# -- one mutant


def outcome_of(
    edits: tuple[Edit, ...],
    by: str,
    seeds: Iterable[int] = (1,),
    images: int = IMAGES_MAX,
    seconds: float = SECONDS_MAX,
) -> Outcome:
    """Applies edits to a copy and runs what is to find them; explorations with one seed after the other."""
    with tempfile.TemporaryDirectory(prefix="mmwal-mutant-") as folder:
        copy = mutated_copy(edits, Path(folder), tests=by not in TARGETS)
        if by.startswith("race"):
            return race(copy, *by.split()[1:])
        if by not in TARGETS:
            return run_tests(copy, by)
        images_all = 0
        for seed in seeds:
            found, count, problem, replay = explore(copy, by, seed, images, seconds)
            images_all += count or 0
            if found:
                return True, images_all, problem, replay
        return False, images_all, "", ""


def hunt(mutant: Mutant, seed: int | None = None) -> Verdict:
    """Runs one mutant: with its own seed and the two after it, or with the one given."""
    seeds = range(mutant.seed, mutant.seed + SEEDS_MAX) if seed is None else (seed,)
    before = _children_seconds()
    verdict, images = "not run", None
    replay = ""
    problem = missing_for(mutant.by, mutant.edits)
    if not problem:
        try:
            found, images, problem, replay = outcome_of(mutant.edits, mutant.by, seeds)
            verdict = "found" if found else "survived"
        except BrokenMutant as error:
            verdict, problem = "broken", str(error)
    seconds = round(_children_seconds() - before, 2)
    file = mutant.edits[0].file if mutant.edits else "kernel/frame.h"
    fixed = (mutant.name, file, mutant.steps, mutant.loses, mutant.by)
    return Verdict(*fixed, verdict, images, seconds, problem[-400:] if verdict == "broken" else problem[:200], replay)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def hunt_all(mutants: list[Mutant], workers: int, seed: int | None = None) -> Iterable[Verdict]:
    """Runs mutants, in processes; yields their verdicts in order."""
    if workers <= 1:
        warm_up()
        yield from (hunt(mutant, seed) for mutant in mutants)
        return
    with ProcessPoolExecutor(workers, initializer=warm_up) as pool:
        yield from pool.map(hunt, mutants, [seed] * len(mutants))


# -- the command


def _chosen(names: list[str], known: list[Any]) -> list[Any]:
    unknown = set(names) - {item.name for item in known}
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}; --list names them")
    return [item for item in known if not names or item.name in names]


def _hunt_and_print(arguments: argparse.Namespace) -> int:
    verdicts = []
    for verdict in hunt_all(_chosen(arguments.names, MUTANTS), arguments.workers, arguments.seed):
        verdicts.append(verdict)
        if arguments.json != "-":
            print(f"{verdict.line}  {verdict.name}  ({verdict.by})", flush=True)
            print(f"{'':10}loses {verdict.loses}", flush=True)
            print(f"{'':10}{verdict.problem[:150]}", flush=True)
    by_verdict = {
        word: [one.name for one in verdicts if one.verdict == word] for word in ("survived", "broken", "not run")
    }
    found = sum(one.verdict == "found" for one in verdicts)
    total = round(sum(one.seconds for one in verdicts), 1)
    report = {
        "mutants": [asdict(one) for one in verdicts],
        "found": found,
        "seeded": len(verdicts),
        "survived": by_verdict["survived"],
        "broken": by_verdict["broken"],
        "not_run": by_verdict["not run"],
        "seconds": total,
    }
    if arguments.json == "-":
        print(json.dumps(report))
    else:
        print(f"{found} of {len(verdicts)} found, {len(by_verdict['not run'])} not run, {total:.0f} s of CPU time")
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    wrong = [*by_verdict["survived"], *by_verdict["broken"]]
    if wrong:
        print(f"again: tools/mutate.py {' '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def hunt_unmutated(images: int = IMAGES_MAX // 4) -> list[str]:
    """Runs what finds the mutants on a copy without any; returns what is found, which is wrong."""
    ways = sorted({mutant.by for mutant in MUTANTS} | {one.by for one in EQUIVALENT})
    runs = [way for way in ways if not missing_for(way, ())]
    wrong = []
    nodes = [way for way in runs if way not in TARGETS and not way.startswith("race")]
    with tempfile.TemporaryDirectory(prefix="mmwal-mutant-") as folder:
        copy = mutated_copy((), Path(folder), tests=True)
        for way in runs:
            if way in TARGETS:
                found, _, problem, _ = explore(copy, way, 1, images, SECONDS_MAX)
            elif way.startswith("race") and "-DMM_ORDER" not in way:
                found, _, problem, _ = race(copy, *way.split()[1:])
            else:
                continue
            wrong += [f"{way}: {problem}"] if found else []
        found, _, problem, _ = run_tests(copy, *nodes)
        wrong += [f"tests: {problem}"] if found else []
    return wrong


def survives(one: Equivalent, images: int = IMAGES_MAX // 4) -> str:
    """Returns what finds a breakage that should cost nothing; an empty string if it survives, as it should."""
    if missing_for(one.by, one.edits):
        return ""
    found, _, problem, _ = outcome_of(one.edits, one.by, (1,), images)
    return problem if found else ""


def _print_equivalents(names: list[str]) -> int:
    wrong = 0
    for one in _chosen(names, EQUIVALENT):
        problem = survives(one)
        wrong += bool(problem)
        print(f"{'FOUND' if problem else 'survives':9} {one.name}  ({one.by})", flush=True)
        print(f"{'':10}{problem or one.defence}", flush=True)
    return 1 if wrong else 0


def _retune(names: list[str], seeds: int) -> int:
    for mutant in _chosen(names, MUTANTS):
        if mutant.by not in TARGETS:
            continue
        tries = [(outcome_of(mutant.edits, mutant.by, (seed,)), seed) for seed in range(1, seeds + 1)]
        ranked = sorted((images or 0, seed) for (found, images, _, _), seed in tries if found)
        best = f"seed={ranked[0][1]}: {ranked[0][0]:,} images" if ranked else "no seed finds it"
        print(f"{mutant.name}  {best} (now seed={mutant.seed}); found by {len(ranked)} of {seeds}", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--unmutated", action="store_true")
    parser.add_argument("--equivalents", action="store_true")
    parser.add_argument("--retune", type=int, metavar="SEEDS")
    parser.add_argument("--seed", type=int, help="one other than each mutant's own, and no other")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.list:
        for mutant in _chosen(arguments.names, MUTANTS):
            print(f"{mutant.name:45} {mutant.by:9}  {mutant.loses}")
        return 0
    if arguments.unmutated:
        wrong = hunt_unmutated()
        print("\n".join(wrong) or "nothing found")
        return 1 if wrong else 0
    if arguments.equivalents:
        return _print_equivalents(arguments.names)
    if arguments.retune:
        return _retune(arguments.names, arguments.retune)
    return _hunt_and_print(arguments)


if __name__ == "__main__":
    sys.exit(main())
