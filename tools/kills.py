"""kill -9 of real writers, thousands of times on the same directories: everything that had returned must be there.

    tools/kills.py --kills 2000 --workers 2       exit code 1 at the first wrong answer
    tools/kills.py --replay DIRECTORY             the directory that a failing run kept, again

Each life is a process forked from a warm one: it opens what the last left behind, compares all of it with a plain model
(`history.py`), and writes on, acknowledging through shared memory, until it is killed: at a random instant from its
first one on, at a random number of acknowledgements, before or after its nth call that changes a directory, or while it
checkpoints or closes. Stores and logs alone, both kernels, sync intervals 0, 100 and 5000 ms, each with one long
history of lives.

It says nothing about power cuts: what was written is still in the page cache (`blocks.py`).

JSON: kills, lost, phantom, refused, kills_by_phase (open, write, sync, checkpoint, release, close; rotation: while
segments were made, named or removed beside the writes), kills_by_combination, writes (that returned), seconds,
kills_per_second, violation (kind, problem, kept: the directory to replay) or null, skipped (always null: it needs
neither root nor a package).
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # forks come from here: no threads
sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.disk.posix import PosixDisk
from mmwal.errors import DurabilityWarning, OpenError
from mmwal.kernel import load
from tools.forks import in_child
from tools.history import Wrong, check, look, new_truth, open_handle, write_on

INTERVALS_MS = (0, 100, 5000)
PHASES = ("open", "write", "sync", "checkpoint", "release", "close", "rotation")
WAYS = ("instant", "acknowledged", "disk call", "checkpoint", "close")
WRITES_MOST = 400  # of one life
LIFE_S = 60
_BOARD = struct.Struct("<5QBB")  # returned, begun, opened, first, released LSN; phase; at work in the background
_PHASE_AT, _BUSY_AT = _BOARD.size - 2, _BOARD.size - 1


@dataclass
class Report:
    """The sums of a run."""

    kills: int = 0
    lost: int = 0
    phantom: int = 0
    refused: int = 0
    writes: int = 0
    seconds: float = 0.0
    kills_by_phase: dict[str, int] = field(default_factory=dict)
    kills_by_combination: dict[str, int] = field(default_factory=dict)
    violation: dict[str, Any] | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class Combination:
    """What is written, and how."""

    what: str
    kernel: str
    sync_interval_ms: int

    @property
    def name(self) -> str:
        return f"{self.what}-{self.kernel}-{self.sync_interval_ms}"


# ---- in the writer


class WatchedDisk(PosixDisk):
    """The real disk; it says on the board when a directory is being changed, and may kill itself at such a call."""

    def __init__(self, board: mmap.mmap, die_at: int, before: bool) -> None:
        super().__init__()
        self._board, self._die_at, self._before = board, die_at, before
        self._calls = 0

    @contextmanager
    def _changing(self, path: str) -> Iterator[None]:
        self._calls += 1
        mine = self._calls == self._die_at
        self._board[_BUSY_AT] = 2 if os.path.basename(path).startswith(("image", "matrix")) else 1
        if mine and self._before:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            yield
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            self._board[_BUSY_AT] = 0

    def create(self, path: str) -> Any:
        with self._changing(path):
            return super().create(path)

    def rename(self, old: str, new: str) -> None:
        with self._changing(old):
            super().rename(old, new)

    def unlink(self, path: str) -> None:
        with self._changing(path):
            super().unlink(path)

    def sync_directory(self, path: str) -> None:
        with self._changing(path):
            super().sync_directory(path)


def _live(
    combination: Combination, directory: str, truth: Any, begun: int, board: mmap.mmap, die_at: int, way: str, seed: int
) -> None:
    """One life: opens, compares, writes, and closes if nobody kills it before."""
    rng = random.Random(seed)
    disk = WatchedDisk(board, die_at, rng.random() < 0.5)
    handle = open_handle(
        combination.what, directory, combination.kernel, combination.sync_interval_ms, disk=disk,
        runway_segments=rng.choice((1, 2)),
    )  # fmt: skip
    first = check(truth, look(handle), begun)
    truth.advance_to(first)
    del truth.lsns[first:]
    truth.lsns += [0] * (first - len(truth.lsns))
    _BOARD.pack_into(board, 0, first, first, 1, first, truth.released_lsn, PHASES.index("write"), 0)

    def tell(act: str) -> None:
        if act == "returned":
            struct.pack_into("<Q", board, _BOARD.size + 8 * (truth.count - first - 1), truth.lsns[-1])
            struct.pack_into("<Q", board, 0, truth.count)
        elif act == "write":
            struct.pack_into("<Q", board, 8, truth.count + 1)
        elif act == "release":
            struct.pack_into("<Q", board, 32, truth.released_lsn)
        board[_PHASE_AT] = PHASES.index(act if act in PHASES else "write")

    writes = WRITES_MOST if way in ("instant", "acknowledged", "disk call") else rng.randint(1, 40)
    write_on(handle, truth, tell, rng, writes)
    if way == "checkpoint" and combination.what == "store":
        tell("checkpoint")
        handle.checkpoint()
    tell("close")
    handle.close()


def _live_and_tell(into: int, *life: Any) -> None:
    """Lives; what was wrong goes into a pipe."""
    code = 1
    try:
        signal.alarm(LIFE_S)  # then it ends by SIGALRM: a hang
        _live(*life)
        code = 0
    except Wrong as wrong:
        os.write(into, json.dumps([wrong.kind, str(wrong)]).encode())
    except (OpenError, OSError) as error:
        os.write(into, json.dumps(["refused", f"{type(error).__name__}: {error}"]).encode())
    except BaseException as error:  # noqa: BLE001 (whatever it is, a user would see it)
        os.write(into, json.dumps(["refused", f"it broke: {error!r}"]).encode())
    finally:
        os._exit(code)


# ---- in the one who kills


class Killer:
    """One directory, and what must be in it."""

    def __init__(self, combination: Combination, root: Path, seed: int, report: Report) -> None:
        self._combination, self._report = combination, report
        self._directory = root / combination.name
        self._copy = root / f"{combination.name}-before"
        self._truth = new_truth(combination.what, seed)
        self._begun = 0
        self._rng = random.Random(f"{combination.name} {seed}")
        self._open_s = 0.02  # how long an opening takes, as seen lately
        load(combination.kernel)  # type: ignore[arg-type]

    def life(self, keep: Path) -> None:
        """Lets a writer live and kills it. Raises `Wrong`, and keeps the directory as it was found."""
        rng, way = self._rng, self._rng.choices(WAYS, (5, 4, 4, 1, 1))[0]
        shutil.rmtree(self._copy, ignore_errors=True)
        if self._directory.exists():
            shutil.copytree(self._directory, self._copy, copy_function=shutil.copyfile)
        board = mmap.mmap(-1, _BOARD.size + 8 * (WRITES_MOST + 8))
        _BOARD.pack_into(board, 0, self._truth.count, self._begun, 0, 0, self._truth.released_lsn, 0, 0)
        out, into = os.pipe()
        die_at = rng.randint(1, 14) if way == "disk call" else 0
        life = (
            self._combination,
            str(self._directory),
            self._truth,
            self._begun,
            board,
            die_at,
            way,
            rng.getrandbits(32),
        )
        pid = os.fork()
        if pid == 0:
            _live_and_tell(into, *life)
        os.close(into)
        try:
            self._kill_in_time(pid, board, way)
            with open(out, "rb") as file:
                said = file.read()
            _, status = os.waitpid(pid, 0)
            self._follow(board, status, said)
        except Wrong as wrong:
            kept = self._keep(keep, str(wrong))
            self._report.violation = {"kind": wrong.kind, "problem": f"{self._combination.name}: {wrong}", "kept": kept}
            setattr(self._report, wrong.kind, getattr(self._report, wrong.kind) + 1)
            raise
        finally:
            board.close()

    def _kill_in_time(self, pid: int, board: mmap.mmap, way: str) -> None:
        """Kills the writer when its time has come; one that dies or closes on its own is left alone."""
        rng, started = self._rng, time.monotonic()
        if way == "disk call":
            self._wait(pid, board, lambda: board[0:8] != board[24:32] and time.monotonic() - started > 4 * self._open_s)
            time.sleep(rng.random() * 0.01)
        elif way == "instant":
            time.sleep(rng.random() * 1.5 * self._open_s)
        elif way == "acknowledged":
            wanted = rng.randrange(150)
            self._wait(pid, board, lambda: _opened(board) and _written(board) >= wanted)
            time.sleep(rng.random() * 0.003)
        else:
            self._wait(pid, board, lambda: board[_PHASE_AT] == PHASES.index(way))
            time.sleep(rng.random() ** 2 * 0.02)
        os.kill(pid, signal.SIGKILL)

    def _wait(self, pid: int, board: mmap.mmap, arrived: Any) -> None:
        started, opened = time.monotonic(), False
        while not arrived():
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            if time.monotonic() - started > LIFE_S:
                return
            if not opened and _opened(board):
                opened = True
                self._open_s = 0.8 * self._open_s + 0.2 * (time.monotonic() - started)
            time.sleep(0.0005)

    def _follow(self, board: mmap.mmap, status: int, said: bytes) -> None:
        if said:
            raise Wrong(*json.loads(said))
        if status not in (0, signal.SIGKILL):
            raise Wrong("refused", f"the writer ended with status {status:#x}")
        returned, begun, opened, first, released_lsn, phase, busy = _BOARD.unpack_from(board, 0)
        report = self._report
        if status == signal.SIGKILL:
            report.kills += 1
            name = PHASES[phase]
            if name in ("write", "sync", "release") and busy:
                name = "checkpoint" if busy == 2 else "rotation"
            report.kills_by_phase[name] = report.kills_by_phase.get(name, 0) + 1
            combination = self._combination.name
            report.kills_by_combination[combination] = report.kills_by_combination.get(combination, 0) + 1
        if opened:
            truth = self._truth
            truth.advance_to(first)
            del truth.lsns[first:]
            truth.lsns += [0] * (first - len(truth.lsns))
            truth.lsns += struct.unpack_from(f"<{returned - first}Q", board, _BOARD.size)
            truth.advance_to(returned)
            truth.released_lsn = released_lsn
            self._begun = begun
            report.writes += returned - first
            if self._combination.what == "log":
                truth.forget()

    def _keep(self, keep: Path, problem: str) -> str:
        """Keeps the directory as the last writer found it, and what must be in it."""
        folder = keep / self._combination.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self._copy.exists():
            shutil.copytree(self._copy, folder / "directory")
        case = {
            **vars(self._combination),
            "seed": self._truth.seed,
            "count": self._truth.count,
            "begun": self._begun,
            "lsns": self._truth.lsns,
            "released_lsn": self._truth.released_lsn,
            "problem": problem,
        }
        (folder / "case.json").write_text(json.dumps(case), "utf-8")
        return str(folder)


def _opened(board: mmap.mmap) -> bool:
    return board[16] == 1


def _written(board: mmap.mmap) -> int:
    returned, _, _, first, *_ = _BOARD.unpack_from(board, 0)
    return int(returned - first)


def replay(kept: Path, root: Path) -> None:
    """Opens a kept directory again and compares. Raises `Wrong`."""
    case = json.loads((kept / "case.json").read_text("utf-8"))
    truth = new_truth(case["what"], case["seed"])
    truth.lsns, truth.released_lsn = case["lsns"], case["released_lsn"]
    truth.advance_to(case["count"])
    if (kept / "directory").exists():
        shutil.copytree(kept / "directory", root / "directory")
    try:
        handle = open_handle(case["what"], str(root / "directory"), case["kernel"], case["sync_interval_ms"])
    except (OpenError, OSError) as error:
        raise Wrong("refused", f"{type(error).__name__}: {error}") from error
    check(truth, look(handle), case["begun"])
    handle.close()


# ---- runs


def run(combinations: list[Combination], kills: int, seconds: float, seed: int, root: Path, keep: Path) -> Report:
    """Kills so many writers, of one combination after the other."""
    report, started = Report(), time.monotonic()
    root.mkdir()
    killers = [Killer(combination, root, seed, report) for combination in combinations]
    gc.freeze()  # a child's collector would copy our pages
    try:
        while report.kills < kills and time.monotonic() - started < seconds:
            for killer in killers:
                if report.kills < kills and time.monotonic() - started < seconds:
                    killer.life(keep)
    except Wrong:
        pass  # it is in the report
    report.seconds = round(time.monotonic() - started, 1)
    return report


def combinations_of(arguments: argparse.Namespace) -> list[Combination]:
    """Returns those that the arguments leave; without the compiled kernel, only its twin's."""
    found = []
    for kernel in (arguments.kernel,) if arguments.kernel else ("c", "py"):
        try:
            load(kernel)
        except ImportError:
            continue
        for what in (arguments.what,) if arguments.what else ("store", "log"):
            found += [Combination(what, kernel, interval) for interval in INTERVALS_MS]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="over all workers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of wall-clock time: end earlier than that")
    parser.add_argument(
        "--seed", type=int, default=1, help="of what is written and the kind of kill; when is the machine's"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kernel", choices=("c", "py"), help="only this one")
    parser.add_argument("--what", choices=("store", "log"), help="only this")
    parser.add_argument("--dir", type=Path, help="where the directories are; default: the system's temporary one")
    parser.add_argument("--keep", type=Path, default=Path("kept-kills"), help="where a wrong answer's directory goes")
    parser.add_argument("--replay", type=Path, metavar="DIRECTORY")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DurabilityWarning)
    keep = arguments.keep.absolute()
    root = Path(tempfile.mkdtemp(prefix="mmwal-kills-", dir=arguments.dir))
    try:
        if arguments.replay:
            return _replayed(arguments.replay, root)
        report = run_workers(arguments, root, keep)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def run_workers(arguments: argparse.Namespace, root: Path, keep: Path) -> dict[str, Any]:
    """Runs on every worker; returns the sum."""
    combinations = combinations_of(arguments)
    workers = min(max(1, arguments.workers), len(combinations))
    results = []
    for worker in range(workers):
        share = arguments.kills // workers + (worker < arguments.kills % workers)
        call = (combinations[worker::workers], share, arguments.seconds, arguments.seed, root / str(worker), keep)
        results.append(in_child(lambda call=call: vars(run(*call))))
    whole = vars(Report())
    for report in [result() for result in results]:
        for name, value in report.items():
            if isinstance(value, dict) and name != "violation":
                for key, count in value.items():
                    whole[name][key] = whole[name].get(key, 0) + count
            elif isinstance(value, int):
                whole[name] += value
        whole["seconds"] = max(whole["seconds"], report["seconds"])
        whole["violation"] = whole["violation"] or report["violation"]
    whole["kills_per_second"] = round(whole["kills"] / max(0.1, whole["seconds"]), 1)
    return whole


def _replayed(kept: Path, root: Path) -> int:
    try:
        replay(kept, root)
    except Wrong as wrong:
        print(wrong)
        return 1
    print("nothing wrong with this directory any more")
    return 0


def _readable(report: dict[str, Any]) -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and name != "violation":
            lines += [f"{name.replace('_', ' ')}:", *(f"  {count:8,}  {key}" for key, count in sorted(value.items()))]
        elif name != "violation":
            lines.append(f"{name.replace('_', ' '):20}{value}")
    if found := report["violation"]:
        lines += ["", found["problem"], f"replay: tools/kills.py --replay {found['kept']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
