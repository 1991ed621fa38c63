"""Counts the branches of log, recovery and kernel that the quick tests of those rooms take.

    tools/branches.py           a line for each room, Python and C; the branches that no test takes, by file and line
    tools/branches.py --json    {"rooms": {room: {"branches", "taken"}}, "missed": {file: [lines]}, "violation"}

The Python rooms are measured by coverage.py, in the tests' child processes too; the C sources of kernel and sync gate,
compiled without optimization, by gcov. All of it happens in a temporary copy. A branch that a killed child took counts
for nothing: neither tool sees it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.mutate import EXTENSIONS, build, mutated_copy

ROOMS = ("log", "recovery", "kernel")
TESTS = ("tests/log", "tests/recovery", "tests/kernel", "tests/manager", "tests/opening", "tests/disk")
DATA = "coverage-data"  # in the copy
CONFIG = """
[run]
branch = true
parallel = true
patch = subprocess
source = {sources}
[report]
exclude_also =
    if TYPE_CHECKING:
    @overload
    assert_never
"""


class NotMeasured(Exception):
    """The tests failed, or a tool said nothing that can be read."""


def measure(folder: Path, workers: int) -> dict[str, Any]:
    """Runs the tests in a copy; returns the report."""
    copy = mutated_copy([], folder, tests=True)
    for room, (source, extension, flags) in EXTENSIONS.items():
        build(copy / "mmwal" / room, source, extension, (*flags, "-O0", "--coverage"))
        counts = copy / "mmwal" / room / f"{extension}-{Path(source).stem}.gcda"
        counts.touch()
        counts.chmod(0o666)  # a test's child that runs as another user adds to them, too
    sources = "".join(f"\n    {copy / 'mmwal' / room}" for room in ROOMS)
    (copy / ".coveragerc").write_text(CONFIG.format(sources=sources))
    (copy / DATA).mkdir()
    (copy / DATA).chmod(0o1777)  # as above
    run(copy, "coverage", "run", "-m", "pytest", "-q", "-n", str(workers), "-m", "not slow", *TESTS)
    run(copy, "coverage", "combine", "-q")
    run(copy, "coverage", "json", "-q", "-o", "coverage.json")
    report: dict[str, Any] = {"rooms": {}, "missed": {}, "violation": None}
    for name, found in json.loads((copy / "coverage.json").read_text())["files"].items():
        path = Path(name)
        path = path.relative_to(copy) if path.is_absolute() else path
        summary, room = found["summary"], path.parts[1]
        missed = sorted({f"{a}->{b}" if b > 0 else f"{a}->end" for a, b in found["missing_branches"]})
        note(report, f"mmwal/{room}, Python", str(path), summary["num_branches"], summary["covered_branches"], missed)
    for room, (source, extension, _) in EXTENSIONS.items():
        for name, lines in c_lines(copy / "mmwal" / room, source, extension):
            counts = [branch["count"] for line in lines for branch in line["branches"]]
            missed = [str(line["line_number"]) for line in lines if not all(b["count"] for b in line["branches"])]
            note(report, f"mmwal/{room}, C", f"mmwal/{room}/{name}", len(counts), sum(map(bool, counts)), missed)
    return report


def note(report: dict[str, Any], room: str, file: str, branches: int, taken: int, missed: list[str]) -> None:
    """Adds a file to its room."""
    counted = report["rooms"].setdefault(room, {"branches": 0, "taken": 0})
    counted["branches"] += branches
    counted["taken"] += taken
    if missed:
        report["missed"][file] = missed


def c_lines(folder: Path, source: str, extension: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns the lines of a C source and of our headers in it, with their branches, as gcov tells them."""
    notes = folder / f"{extension}-{Path(source).stem}.gcno"
    command = ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(notes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    try:
        files = json.loads(done.stdout)["files"]
    except (ValueError, KeyError):
        raise NotMeasured(f"gcov: {done.stderr[-300:] or 'said nothing that can be read'}") from None
    ours = [(Path(file["file"]), file["lines"]) for file in files]
    return [(path.name, lines) for path, lines in ours if (folder / path.name).is_file()]


def run(copy: Path, *module: str) -> None:
    """Runs a Python module on the copy. Raises `NotMeasured`."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONSAFEPATH": "1",
        "COVERAGE_FILE": str(copy / DATA / "counts"),
    }
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=copy, env=environment)
    if done.returncode:
        raise NotMeasured(f"{' '.join(module[:3])}: {(done.stdout + done.stderr)[-800:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmwal-branches-") as folder:
        os.chmod(folder, 0o755)  # some tests run as another user
        try:
            report = measure(Path(folder), arguments.workers)
        except NotMeasured as error:
            report = {"rooms": {}, "missed": {}, "violation": {"problem": str(error), "line": "tools/branches.py"}}
    if arguments.json:
        print(json.dumps(report))
    else:
        for file, missed in sorted(report["missed"].items()):
            print(f"{file}: {', '.join(missed)}")
        for room, counted in sorted(report["rooms"].items()):
            share = counted["taken"] / counted["branches"]
            print(f"{room:26} {counted['taken']:5,} of {counted['branches']:5,}  {share:.1%}")
        if report["violation"]:
            print(report["violation"]["problem"])
    return 1 if report["violation"] else 0


if __name__ == "__main__":
    sys.exit(main())
