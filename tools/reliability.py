"""The reliability scoreboard: runs everything that looks for a lost record, and prints a row for each number.

    tools/reliability.py                        what fits into 18 minutes on two cores (`make reliability`)
    tools/reliability.py --minutes 60           more of the same (`make reliability-long MINUTES=60`)
    tools/reliability.py --only images --only mutants
    tools/reliability.py --minutes 60 --page    and writes the table into docs/reliability.md
    tools/reliability.py --page-of A B          writes the tables of runs that were kept with --json into that page

The tools do the work, each a command with a line that replays what it finds; here are only their shares of the
time, and what is asked of each. A row is wrong if anything was lost, invented, torn or refused, or if it stayed below
what is asked of a run of this length; one that could not be run says why. Exit code 1 if a row is wrong.

--json FILE writes ``{"date", "commit", "machine", "minutes", "rows": [{"number", "what", "reached", "asked", "ok"}],
"reports": {part: [what each tool printed with --json]}}``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scoreboard -->", "<!-- end of scoreboard -->"
LONG_MINUTES = 55  # from here on the numbers of a long run are asked for
GRACE_S = 120  # what a tool may take beyond its share, to finish what it is at


@dataclass(frozen=True)
class Row:
    """One number: what was reached, what is asked for; ``ok`` is None where it could not be found out."""

    number: str
    what: str
    reached: str
    asked: str
    ok: bool | None


@dataclass
class Run:
    """How long, and with how many processes."""

    minutes: float
    workers: int
    seed: int
    directory: Path
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_long(self) -> bool:
        return self.minutes >= LONG_MINUTES

    def ask(self, short: int, long: int) -> int:
        """Returns what is asked of a run of this length."""
        return long if self.is_long else short


@dataclass(frozen=True)
class Part:
    """Some tools that share a part of the time, and the rows that come of what they report."""

    name: str
    fixed_s: float  # what it takes on two cores, however long the run
    share: float  # of what is left of the time beside that
    commands: Callable[[Run, float], list[list[str]]]
    rows: Callable[[Run, list[dict[str, Any]]], list[Row]]


def tool(name: str, *words: str, folder: str = "tools", **options: object) -> list[str]:
    """Returns a command of ours that prints JSON."""
    named = [f"--{option.replace('_', '-')}={value}" for option, value in options.items()]
    return [f"{folder}/{name}.py", *words, *named, "--json"]


def seconds(value: float) -> int:
    """Returns an option's value."""
    return max(1, round(value))


def total(reports: Iterable[dict[str, Any]], *names: str) -> int:
    """Returns the sum of fields over reports."""
    return sum(report.get(name) or 0 for report in reports for name in names)


def wrong(reports: list[dict[str, Any]]) -> list[str]:
    """Returns what tools found wrong, each with the line that replays it."""
    return [
        f"{found.get('problem')} ({found.get('line') or found.get('kept')})"
        for report in reports
        if (found := report.get("violation"))
    ]


def skipped(reports: list[dict[str, Any]]) -> str:
    """Returns why nothing was run, if nothing was."""
    reasons = [str(report["skipped"]) for report in reports if report.get("skipped")]
    return reasons[0] if reasons and len(reasons) == len(reports) else ""


def counted(number: str, what: str, found: int, asked: int, faults: list[str], unit: str = "") -> Row:
    """Returns the row of a count that must be reached, with nothing wrong."""
    reached = f"{found:,}{unit}" + (f"; WRONG: {faults[0]}" if faults else "")
    return Row(number, what, reached, f"at least {asked:,}", found >= asked and not faults)


# ---- the parts


def crash_commands(run: Run, share_s: float) -> list[list[str]]:
    log, store = run.ask(105_000, 3_060_000), run.ask(32_000, 1_020_000)  # of two kernels some may be the same
    plan = [
        ("log", "c", 0.34, log * 4 // 5),
        ("log", "py", 0.11, log // 5),
        ("store", "c", 0.38, store * 4 // 5),
        ("store", "py", 0.11, store // 5),
        ("writers", "py", 0.04, log),
        ("writers", "c", 0.02, log),
    ]
    return [
        tool(
            "crash",
            "--dense",
            target=target,
            kernel=kernel,
            images=images,
            seconds=seconds(share_s * share),
            workers=run.workers,
            seed=run.seed + 1000 * number,
        )
        for number, (target, kernel, share, images) in enumerate(plan)
    ]


def crash_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    faults = wrong(reports)
    refused = [fault for fault in faults if "refused" in fault]
    lost = [fault for fault in faults if "lost" in fault and fault not in refused]
    other = [fault for fault in faults if fault not in lost and fault not in refused]
    kinds = {
        target: [r for r in reports if str(r["target"]).startswith(target)] for target in ("log", "store", "writers")
    }
    distinct = total(reports, "distinct")
    nested = total(reports, "distinct_nested") / max(1, distinct)
    hit = {label for report in reports for label in report["crashed_labels"]}
    missed = {label for report in reports for label in report["labels_without_crash"]} - hit
    missed = {label for label in missed if not label.startswith("after ")}
    return [
        Row("1", "acknowledged records lost, simulated power cuts and kills", f"{len(lost)}", "0", not lost),
        counted(
            "2",
            "crash images of the log, distinct",
            total(kinds["log"], "distinct"),
            run.ask(100_000, 3_000_000),
            faults,
        ),
        counted(
            "2",
            "crash images of the store, distinct",
            total(kinds["store"], "distinct"),
            run.ask(30_000, 1_000_000),
            faults,
        ),
        counted(
            "2",
            "crash images with interleaved writers, distinct",
            total(kinds["writers"], "distinct"),
            run.ask(2_000, 20_000),
            faults,
        ),
        Row("3", "of these, during or after a recovery", f"{nested:.0%}", "at least 40%", nested >= 0.4),
        Row("4", "phantoms, holes, torn values, partial transactions", f"{len(other)}", "0", not other),
        Row("5", "legal images refused", f"{len(refused)}", "0", not refused),
        Row(
            "6b",
            "disk calls and publishes at which power failed",
            f"{len(hit)} of {len(hit | missed)}" + (f", not {sorted(missed)}" if missed else ""),
            "all",
            not missed,
        ),
        Row(
            "14",
            "recoveries killed and run again, with the same state",
            f"{total(reports, 'repeated'):,}",
            "all",
            not other,
        ),
        Row("9", "simulated kills, beside the real ones", f"{total(reports, 'kills'):,}", "reported", True),
    ]


def mutant_commands(run: Run, share_s: float) -> list[list[str]]:
    return [["tools/mutate.py", f"--workers={run.workers}", "--json=-"]]


def mutant_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    (report,) = reports
    slowest = max(report["mutants"], key=lambda mutant: mutant["seconds"] or 0, default=None)
    aside = f"; slowest {slowest['name']} in {slowest['seconds']:.0f} s" if slowest else ""
    missing = report["survived"] + report["broken"] + report["not_run"]
    reached = f"{report['found']} of {report['seeded']} in {report['seconds']:.0f} CPU s{aside}"
    return [
        Row(
            "6",
            "durability mutants found",
            reached + (f"; NOT {missing}" if missing else ""),
            "all, at least 30",
            not missing and report["found"] >= 30,
        )
    ]


def block_commands(run: Run, share_s: float) -> list[list[str]]:
    plan = [("ext4", 0.45, run.ask(200, 2000)), ("xfs", 0.3, run.ask(20, 300)), ("btrfs", 0.25, run.ask(20, 300))]
    return [
        tool(
            "blocks",
            file_system=kind,
            images=images,
            seconds=seconds(share_s * share),
            workers=run.workers,
            seed=run.seed,
            dir=run.directory,
        )
        for kind, share, images in plan
    ]


def block_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    rows = []
    for report, asked in zip(reports, (run.ask(200, 2000), run.ask(20, 300), run.ask(20, 300)), strict=True):
        what = f"block images of a real {report['file_system']}"
        if report.get("skipped"):
            rows.append(Row("7", what, f"not run: {report['skipped']}", f"at least {asked:,}", None))
        else:
            rows.append(counted("7", what, report["images"], asked, wrong([report])))
    return rows


def kill_commands(run: Run, share_s: float) -> list[list[str]]:
    kills = run.ask(200, 2000)
    limit = seconds(share_s)
    return [tool("kills", kills=kills, seconds=limit, workers=run.workers, seed=run.seed, dir=run.directory)]


def kill_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    return [
        counted(
            "9", "kill -9 and restart of the real process", total(reports, "kills"), run.ask(50, 2000), wrong(reports)
        )
    ]


def fault_commands(run: Run, share_s: float) -> list[list[str]]:
    return [tool("realfaults", dir=run.directory, seconds=seconds(share_s))]


def fault_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    (report,) = reports
    bad = [case["name"] for case in report["cases"] if case["verdict"] == "wrong"]
    reached = f"{report['right']} cases right, {len(bad)} wrong, {report['skipped_cases']} not run"
    return [
        Row(
            "10",
            "real faults: devices, full disks, limits, signals",
            reached + (f": {bad}" if bad else ""),
            "none wrong",
            not bad,
        )
    ]


def sweep_commands(run: Run, share_s: float) -> list[list[str]]:
    return [tool("sweep", kernel=kernel, workers=run.workers) for kernel in ("py", "c")]


def sweep_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    faults = wrong(reports)
    reached = f"{reports[0]['operations']} operations, {total(reports, 'trials'):,} failing calls" + (
        f"; WRONG: {faults[0]}" if faults else ""
    )
    return [
        Row(
            "11",
            "sweeps: every disk call of every public operation fails, once and for ever",
            reached,
            "complete",
            not faults,
        )
    ]


def rot_commands(run: Run, share_s: float) -> list[list[str]]:
    trials, limit = run.ask(10_000, 100_000) // 2, seconds(share_s / 2)
    return [
        tool("bitrot", kernel=kernel, trials=trials, seconds=limit, seed=run.seed + number, workers=run.workers)
        for number, kernel in enumerate(("py", "c"))
    ]


def rot_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    faults = wrong(reports)
    trials = total(reports, "trials")
    before, after = total(reports, "silent_loss_before_last_group"), total(reports, "silent_loss_after_mark")
    last = total(reports, "silent_loss_last_group")
    return [
        counted("12", "damage to synced data", trials, run.ask(4_000, 20_000), faults, " trials"),
        Row(
            "12",
            "... lost silently before the last synced group; behind a mark",
            f"{before}; {after}",
            "0; 0",
            before == after == 0,
        ),
        Row(
            "12",
            "... in the last synced group, of which nothing that survived tells",
            f"{last:,} ({last / max(1, trials):.2%})",
            "reported",
            True,
        ),
        Row(
            "12",
            "... that verify missed",
            f"{total(reports, 'verify_missed')}",
            "0",
            not total(reports, "verify_missed"),
        ),
    ]


def fuzz_commands(run: Run, share_s: float) -> list[list[str]]:
    inputs = run.ask(200_000, 1_000_000)
    return [
        tool(
            "fuzz",
            *words,
            inputs=inputs * tenths // 10,
            seconds=seconds(share_s * tenths / 10),
            workers=run.workers,
            seed=run.seed + tenths,
        )
        for words, tenths in (((), 9), (("--sanitize",), 1))
    ]


def fuzz_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    faults = wrong(reports)
    bad = total(reports, "crashes", "hangs", "memory_over_cap", "inconsistent")
    inputs = total(reports, "inputs")
    aside = f", {total(reports[1:], 'inputs'):,} of them under the address and undefined-behaviour sanitizers"
    return [
        counted("13", "hostile inputs with valid checksums", inputs, run.ask(200_000, 1_000_000), faults, aside),
        Row(
            "13",
            "... that crashed, hung, took memory out of proportion or contradicted themselves",
            f"{bad}",
            "0",
            not bad,
        ),
    ]


def branch_commands(run: Run, share_s: float) -> list[list[str]]:
    return [tool("branches", workers=run.workers)]


def branch_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    (report,) = reports
    faults = wrong(reports)
    shares = {room: counted["taken"] / counted["branches"] for room, counted in sorted(report["rooms"].items())}
    reached = ", ".join(f"{room} {share:.1%}" for room, share in shares.items())
    what = "branches that the tests of the rooms take"
    return [Row("15", what, "; ".join([reached, *faults]), "reported", not faults)]


def recovery_commands(run: Run, share_s: float) -> list[list[str]]:
    case = {"mib": 1024, "dimension": 768, "way": "as chosen", "cache": "warm"}
    return [tool("recover", folder="benchmarks", repetitions=3, dir=run.directory, **case)]


def recovery_rows(run: Run, reports: list[dict[str, Any]]) -> list[Row]:
    faults = wrong(reports)
    case = reports[0]["cases"][0]
    way = case["ways"][0]
    taken, limit_s = sorted(way["recovery_s"]), sorted(way["limit_s"])
    middle = len(taken) // 2
    what = f"recovery of a killed store, {case['log_bytes'] / 1e9:.2f} GB of log, none checkpointed"
    reached = (
        f"{taken[middle]:.2f} s ({taken[0]:.2f} to {taken[-1]:.2f}); as many cores checksum it and copy what "
        f"survives in {limit_s[middle]:.2f} s"
    )
    return [Row("17", what, "; ".join([reached, *faults]), "reported", not faults)]


PARTS = [
    Part("images", 0, 0.71, crash_commands, crash_rows),
    Part("branches", 100, 0, branch_commands, branch_rows),
    Part("recovery", 30, 0, recovery_commands, recovery_rows),
    Part("mutants", 100, 0, mutant_commands, mutant_rows),
    Part("blocks", 0, 0.13, block_commands, block_rows),
    Part("kills", 0, 0.04, kill_commands, kill_rows),
    Part("faults", 60, 0, fault_commands, fault_rows),
    Part("sweeps", 150, 0, sweep_commands, sweep_rows),
    Part("bitrot", 0, 0.03, rot_commands, rot_rows),
    Part("hostile", 0, 0.09, fuzz_commands, fuzz_rows),
]


# ---- running and printing


def report_of(command: list[str], share_s: float) -> dict[str, Any]:
    """Runs a tool; returns what it printed, or what went wrong as a violation."""
    argv = [sys.executable, "-W", "ignore", str(ROOT / command[0]), *command[1:]]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT, timeout=share_s + GRACE_S)
        printed = done.stdout[done.stdout.index("{") :]
        found: dict[str, Any] = json.loads(printed)
    except (ValueError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "stderr", None) or (done.stderr if isinstance(error, ValueError) else "")
        problem = f"no report: {type(error).__name__}; {str(said)[-500:]}"
        return {"violation": {"problem": problem, "line": " ".join(command)}}
    if done.returncode not in (0, 1) or (done.returncode and not found.get("violation") and "survived" not in found):
        found.setdefault("violation", {"problem": f"exit code {done.returncode}", "line": " ".join(command)})
    return found


def run_part(part: Part, run: Run) -> list[Row]:
    """Runs a part's tools one after the other; returns its rows."""
    share_s = part.fixed_s + part.share * (run.minutes * 60 - sum(each.fixed_s for each in PARTS))
    started = time.monotonic()
    print(f"{part.name}: about {share_s / 60:.1f} minutes", end="", flush=True, file=sys.stderr)
    commands = part.commands(run, share_s)
    run.reports[part.name] = reports = [report_of(command, share_s) for command in commands]
    print(f", took {(time.monotonic() - started) / 60:.1f}", flush=True, file=sys.stderr)
    try:
        return part.rows(run, reports)
    except (KeyError, TypeError, ValueError, IndexError):
        return [Row("-", part.name, "; ".join(wrong(reports)) or "no report that can be read", "a report", False)]


def table(rows: list[Row]) -> str:
    """Returns the rows as Markdown."""
    marks = {True: "yes", False: "**NO**", None: "not run"}
    lines = ["| # | number | reached | asked for | holds |", "|---|---|---|---|---|"]
    lines += [f"| {row.number} | {row.what} | {row.reached} | {row.asked} | {marks[row.ok]} |" for row in rows]
    return "\n".join(lines)


def machine() -> str:
    """Says what it ran on."""
    release = platform.release().split("-")[0]
    system = f"{platform.system()} {release}, {platform.machine()}"
    return f"{os.cpu_count()} cores, {system}, CPython {platform.python_version()}"


def commit() -> str:
    """Returns the commit that was run; a sign after it says that files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def write_page(*parts: str) -> None:
    """Puts headings and tables into their page, in place of those there."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    content = "\n\n".join(parts)
    PAGE.write_text(f"{before}{BEGIN}\n{content}\n{END}{after}")


def heading_of(facts: dict[str, Any]) -> str:
    """Returns what stands above the table of a run."""
    return f"{facts['date']}, commit {facts['commit']}, {facts['minutes']:.0f} minutes on {facts['machine']}."


def write_page_of(files: list[Path]) -> None:
    """Puts the tables of runs that were kept into the page."""
    parts = []
    for kept in (json.loads(file.read_text()) for file in files):
        parts += [heading_of(kept), table([Row(**row) for row in kept["rows"]])]
    write_page(*parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=18, help="of wall-clock time, about")
    parser.add_argument(
        "--only", action="append", choices=[part.name for part in PARTS], help="this part; again for more"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="where temporary files go, on a real disk; default: the system's")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", action="store_true", help="write the table into docs/reliability.md")
    parser.add_argument("--page-of", type=Path, nargs="+", metavar="FILE", help="write those of runs that were kept")
    arguments = parser.parse_args()
    if arguments.page_of:
        write_page_of(arguments.page_of)
        return 0
    started, stamp, revision = time.monotonic(), f"{datetime.now(UTC):%Y-%m-%d}", commit()
    rows: list[Row] = []

    def keep() -> str:
        """Writes what there is so far; returns the heading."""
        took = round((time.monotonic() - started) / 60, 1)
        facts = {"date": stamp, "commit": revision, "machine": machine(), "minutes": took}
        if arguments.json:
            kept = {**facts, "rows": [asdict(row) for row in rows], "reports": run.reports}
            arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
        return heading_of(facts)

    place = os.path.abspath(arguments.dir) if arguments.dir else None
    with tempfile.TemporaryDirectory(dir=place, prefix="mmwal-reliability-") as folder:
        os.chmod(folder, 0o755)  # some tests run as another user
        run = Run(arguments.minutes, arguments.workers, arguments.seed, Path(folder))
        for part in PARTS:
            if not arguments.only or part.name in arguments.only:
                rows += run_part(part, run)
                keep()  # a run that is stopped leaves what it has
    heading = keep()
    print(f"{heading}\n\n{table(rows)}")
    if arguments.page:
        write_page(heading, table(rows))
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
