"""The demo's spine: what happens, step by step, and whether all that was promised held.

The steps, in this order; the first that does not hold is the last but for what can still be shown:

    1. load      a child process writes, and acknowledges over a pipe each operation that returned
    2. kill      SIGKILL, in the middle of an operation or between two
    3. recover   the directory is opened
    4. check     every acknowledged operation against the model; the one on its way: there or not, nothing else
    5. finish    the rest of the plan, in this process; then all embeddings stand
    6. search    all questions, exactly the known answers
    7. close     cleanly, with a checkpoint
    8. reopen    nothing is replayed, and the same is there

Not here: how it is shown (`screen.py`, `report.py`), what is written (`plan.py`), what must be there (`model.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import mmwal
from mmwal.cli.demo.child import OPEN_LINE, Settings
from mmwal.cli.demo.embeddings import Embeddings, load_embeddings
from mmwal.cli.demo.model import Model, differences, wrong_answers
from mmwal.cli.demo.plan import Operation, make_plan
from mmwal.entry import Hit, RecoveryStats

STEPS = ("load", "kill", "recover", "check", "finish", "search", "close", "reopen")
SHOWN_QUESTIONS = (0, 5, 12)
SHOWN_HITS = 3
DISK_BYTES_MAX = 32 << 20


class Watcher:
    """Is told of what happens while it happens; this one does not care."""

    def step_began(self, name: str, total: int) -> None:
        """``total``: how many operations the step has; 0 where it is not counted."""

    def step_moved(self, done: int) -> None:
        """So many operations of the step are done."""

    def step_ended(self, step: Step) -> None:
        """The step is over."""

    def noticed(self, sentence: str) -> None:
        """Something that a person should know, and that is no failure."""


@dataclass(frozen=True)
class Step:
    """What one step did."""

    name: str
    what: str
    seconds: float


@dataclass
class Outcome:
    """What the whole demo found. It holds if ``failures`` is empty and ``error`` is None."""

    directory: str
    kernel: str
    steps: list[Step] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    error: Exception | None = None
    notices: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)
    recovery: RecoveryStats | None = None
    reopening: RecoveryStats | None = None
    searches: list[tuple[str, list[Hit]]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything that was promised held."""
        return not self.failures and self.error is None


class Broken(Exception):
    """Told to the spine: what comes next makes no sense. The failures are noted."""


def tell(settings: Settings, kill_at: float, watcher: Watcher) -> Outcome:
    """Carries out the demo in ``settings.directory``; returns what was found, failures included.

    Args:
        settings: where, and how.
        kill_at: the part of the operations after which the child is killed, from 0 to 1.
        watcher: is told meanwhile.
    """
    outcome = Outcome(settings.directory, settings.kernel or mmwal.kernel_in_use())
    with _noticing(outcome, watcher):
        try:
            _Story(settings, kill_at, watcher, outcome).tell()
        except Broken:
            pass
        except (mmwal.WalError, OSError) as error:
            outcome.error = error
    return outcome


class _Story:
    def __init__(self, settings: Settings, kill_at: float, watcher: Watcher, outcome: Outcome) -> None:
        self._settings = settings
        self._kill_at = kill_at
        self._watcher = watcher
        self._outcome = outcome
        self._embeddings: Embeddings = load_embeddings()
        self._plan: list[Operation] = make_plan(self._embeddings, settings.seed)
        self._model = Model()
        self._next = 0  # the first operation that was not acknowledged
        outcome.figures["operations"] = len(self._plan)
        outcome.figures["embeddings"] = len(self._embeddings.ids)

    def tell(self) -> None:
        # 1., 2.
        self._load_and_kill()
        # 3.
        store = self._recover()
        try:
            # 4.
            self._check(store)
            # 5.
            self._finish(store)
            # 6.
            self._search(store)
            self._measure(store)
        finally:
            # 7.
            self._close(store)
        # 8.
        self._reopen()

    def _load_and_kill(self) -> None:
        stop_at = round(self._kill_at * len(self._plan))
        with _Writer(self._settings) as writer:
            with self._step("load", stop_at) as says:
                if not writer.is_open():
                    self._fail([f"the writing process could not begin: {writer.last_words()}"], fatal=True)
                for number, lsn in writer.acknowledged(stop_at):
                    self._acknowledge(number, lsn)
                if self._next < stop_at:
                    self._fail([f"the writing process ended by itself: {writer.last_words()}"], fatal=True)
                says.append(f"a process of its own was acknowledged {self._next:,} of {len(self._plan):,} operations")
            with self._step("kill") as says:
                writer.kill()
                for number, lsn in writer.acknowledged():
                    self._acknowledge(number, lsn)
                late = self._next - stop_at
                says.append(f"SIGKILL{f'; before it came, {late:,} more had been acknowledged' if late else ''}")
        self._outcome.figures["acknowledged"] = self._next
        self._outcome.figures["acknowledged_ids"] = len(self._model.held)

    def _acknowledge(self, number: int, lsn: int) -> None:
        self._model.apply(self._plan[number], lsn)
        self._next = number + 1
        self._watcher.step_moved(self._next)

    def _recover(self) -> mmwal.VectorStore:
        with self._step("recover") as says:
            store = self._settings.open(self._embeddings.dimension)
            stats = self._outcome.recovery = store.recovery_stats
            says.append(f"{stats.applied_entries:,} entries of the log applied")
            if stats.clean_shutdown:
                self._fail(["the report speaks of a clean shutdown; the process was killed"])
        return store

    def _check(self, store: mmwal.VectorStore) -> None:
        with self._step("check") as says:
            without = self._different(store, self._model)
            on_its_way = "there was no operation on its way"
            if self._next < len(self._plan):
                with_it = self._model.copy()
                with_it.apply(self._plan[self._next], None)
                if not without:
                    on_its_way = "the operation on its way is not there"
                elif not self._different(store, with_it):
                    on_its_way = "the operation on its way is there, whole"
                    without = []
                    self._model, self._next = with_it, self._next + 1
            self._fail(without, fatal=True)
            says.append(f"all {len(self._model.held):,} ids are as acknowledged; {on_its_way}")

    def _finish(self, store: mmwal.VectorStore) -> None:
        rest = self._plan[self._next :]
        with self._step("finish", len(rest)) as says:
            for done, operation in enumerate(rest, start=1):
                self._model.apply(operation, operation.carry_out(store, self._embeddings.vectors))
                self._watcher.step_moved(done)
            self._fail(self._different(store, self._model))
            self._fail(self._not_as_they_should_be())
            says.append(f"{len(rest):,} operations more; all {len(store):,} embeddings stand")

    def _search(self, store: mmwal.VectorStore) -> None:
        embeddings = self._embeddings
        with self._step("search") as says:
            self._fail(self._answers_wrong(store))
            for number in SHOWN_QUESTIONS:
                hits = store.search(embeddings.query_vectors[number], k=SHOWN_HITS)
                self._outcome.searches.append((embeddings.queries[number], hits))
            says.append(f"{len(embeddings.queries)} questions, the ten nearest of each exactly as known")

    def _close(self, store: mmwal.VectorStore) -> None:
        with self._step("close") as says:
            store.close()
            says.append("with a last checkpoint, and a mark that says so")

    def _reopen(self) -> None:
        with self._step("reopen") as says:
            with self._settings.open(self._embeddings.dimension) as store:
                stats = self._outcome.reopening = store.recovery_stats
                if not stats.clean_shutdown:
                    self._fail(["the report speaks of an unclean shutdown; the store was closed"])
                if stats.applied_entries:
                    self._fail(
                        [f"{stats.applied_entries:,} entries were replayed after a clean close; it must be none"]
                    )
                self._fail(self._different(store, self._model))
                self._fail(self._answers_wrong(store))
            says.append("nothing was replayed; the same ids, vectors and answers")
            taken = self._outcome.figures["disk_bytes"] = disk_bytes(self._settings.directory)
            if taken > DISK_BYTES_MAX:
                self._fail([f"the directory takes {taken:,} bytes; it must be at most {DISK_BYTES_MAX:,}"])

    def _measure(self, store: mmwal.VectorStore) -> None:
        assert store.wal is not None
        metrics = store.wal.get_metrics()
        self._outcome.figures["log_bytes"] = metrics.published_lsn
        self._outcome.figures["rotations"] = metrics.rotations
        self._outcome.figures["checkpoints"] = metrics.checkpoints
        self._outcome.figures["syncs"] = metrics.syncs

    # -- shared

    def _different(self, store: mmwal.VectorStore, model: Model) -> list[str]:
        return differences(store, model, self._embeddings.vectors)

    def _answers_wrong(self, store: mmwal.VectorStore) -> list[str]:
        embeddings = self._embeddings
        answers, _ = store.search_batch(embeddings.query_vectors, k=embeddings.top10.shape[1])
        return wrong_answers(answers, embeddings.ids, embeddings.top10, embeddings.queries)

    def _not_as_they_should_be(self) -> list[str]:
        """Holds the plan, and so the model, to what it is for: all embeddings, nothing else."""
        held = {id: (expected.row, expected.metadata) for id, expected in self._model.held.items()}
        wanted = {
            id: (row, {"summary": summary})
            for row, (id, summary) in enumerate(zip(self._embeddings.ids, self._embeddings.summaries, strict=True))
        }
        return [] if held == wanted else ["the plan did not end with every embedding under its id"]

    def _fail(self, sentences: list[str], *, fatal: bool = False) -> None:
        self._outcome.failures.extend(sentences)
        if sentences and fatal:
            raise Broken

    @contextmanager
    def _step(self, name: str, total: int = 0) -> Iterator[list[str]]:
        """Times a step; what it says of itself is the text that it appends to the list."""
        self._watcher.step_began(name, total)
        says: list[str] = []
        failures = len(self._outcome.failures)
        started = time.monotonic()
        try:
            yield says
        finally:
            seconds = time.monotonic() - started
            held = len(self._outcome.failures) == failures and says
            step = Step(name, says[0] if held else "did not hold", seconds)
            self._outcome.steps.append(step)
            self._watcher.step_ended(step)


class _Writer:
    """The child process and the pipe over which it acknowledges."""

    def __init__(self, settings: Settings) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            # -P and the path: the child runs the very mmwal that we are, from a checkout or installed.
            [sys.executable, "-P", "-m", "mmwal.cli.demo.child", settings.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": _path_of_this_package()},
        )

    def is_open(self) -> bool:
        """Waits until the child has opened the store; returns False if it ended instead."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == OPEN_LINE

    def acknowledged(self, stop_at: int | None = None) -> Iterator[tuple[int, int]]:
        """Yields number and LSN of what was acknowledged, up to operation ``stop_at`` or until the child has gone."""
        assert self._process.stdout is not None
        while stop_at is None or stop_at > 0:
            line = self._process.stdout.readline()
            if not line:
                return
            number, lsn = map(int, line.split())
            yield number, lsn
            if number + 1 == stop_at:
                return

    def kill(self) -> None:
        """Ends the child with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """Returns how a child that was not killed ended."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}{f', {said[-1]}' if said else ''}"

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            self.kill()
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._process.stdout.close()
        self._process.stdin.close()
        self._stderr.close()


def _path_of_this_package() -> str:
    root = str(Path(mmwal.__file__).resolve().parent.parent)
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def _noticing(outcome: Outcome, watcher: Watcher) -> Iterator[None]:
    """Turns warnings into notices, each once."""

    def notice(message: Warning | str, *_: Any, **__: Any) -> None:
        sentence = str(message)
        if sentence not in outcome.notices:
            outcome.notices.append(sentence)
            watcher.noticed(sentence)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = notice
        yield


def disk_bytes(directory: str) -> int:
    """Returns how many bytes of disk the files of a directory take."""
    return sum(path.stat().st_blocks * 512 for path in Path(directory).rglob("*") if path.is_file())
