"""The fault sweep: every disk call of every public operation fails, one after the other, and nothing may go wrong.

    sweep = Sweep("py")
    for case in sweep.cases():           # an operation in a situation
        for trial in sweep.trials(case): # its first call fails, its second, ... until none is left
            sweep.run(trial)             # raises Failure, which names the trial in one line

A trial makes the situation anew from the same seed, lets the nth call of the operation (and of the background work
that follows it) fail *once*, or it and every later call that can fail in this way *for ever*, and then checks, in this
order:

    1. the call returned and its promise holds, or it raised what it documents, with the ordered error as its cause
    2. background workers live on
    3. reads go on, and show what was acknowledged; nothing of a call that raised, unless its outcome is unknown
    4. kill -9 and power cuts now: what comes back is legal and holds what was promised
    5. further writes work, or raise the same cause; once there is space again they work
    6. close() works or raises what it documents, twice, and leaves no file open, no lock held, no worker running
    7. the directory opens again, holds what was promised and no leftover file, takes a write, and closes clean

Not here: what is swept (`sweep_cases.py`), the disk (`simulator.py`), what is right (`model.py`).
"""

from __future__ import annotations

import errno
import gc
import posixpath
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mmwal.errors import CheckpointFailedError, DamageError, OpenError, SyncFailedError, UnavailableError, WalFullError
from mmwal.testing.faults import Fault
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.sweep_cases import DATA, EXPECTED_FILE, OPERATIONS, Operation, Scene, Wrong, require

RESERVE_BYTES = 1 << 18
CALLS_MAX = 2_000  # of one trial: more is an endless retry
SPARES_MAX = 6  # files kept for reuse; more of them means that each retry leaves one behind
SPACE = ("ENOSPC", "EDQUOT", "EFBIG")

# How each call of the disk can fail; the first is the most likely.
PLAUSIBLE: dict[str, tuple[str, ...]] = {
    "allocate": ("ENOSPC", "EFBIG", "EDQUOT", "EIO", "EROFS"),
    "create": ("ENOSPC", "EMFILE", "ENFILE", "EROFS", "EIO"),
    "exists": ("EIO",),
    "has_readers": ("EMFILE", "ENOLCK"),
    "list_directory": ("EIO", "EMFILE"),
    "lock": ("EAGAIN", "ENOLCK", "EMFILE", "ENOSPC", "EROFS"),
    "lock_shared": ("EAGAIN", "ENOLCK", "EMFILE"),
    "make_directory": ("ENOSPC", "EROFS", "EIO"),
    "map": ("ENOMEM",),
    "open": ("EMFILE", "ENFILE", "EIO"),
    "populate": ("ENOSPC", "ENOMEM"),
    "read": ("EIO",),
    "rename": ("ENOSPC", "EIO", "EROFS"),
    "start_worker": ("EAGAIN",),
    "sync": ("EIO", "ENOSPC", "EINTR", "EDQUOT", "EROFS"),
    "sync_directory": ("EIO", "EMFILE", "EINTR"),
    "unlink": ("EIO", "EROFS"),
    "write": ("ENOSPC", "EIO", "EROFS", "EFBIG"),
    "zero": ("ENOSPC", "EIO"),
}
# How much of it a failing write has written.
WRITTEN = {"write": (0.5, 0.0, 0.9, 1.0), "zero": (0.5, 0.9)}
# What may happen at any call and is no error: the wall clock is set, a device takes a second, time leaps.
EVENTS = ("a year later", "a day earlier", "a second lost", "an hour lost")


class Call(NamedTuple):
    """A call of the disk."""

    operation: str
    label: str


class Case(NamedTuple):
    """An operation in a situation."""

    operation: Operation
    situation: str

    @property
    def name(self) -> str:
        return f"{self.operation.what}/{self.operation.name}/{self.situation}"


@dataclass(frozen=True)
class Trial:
    """One call that fails, and how. ``nth`` 0: none does."""

    case: Case
    nth: int
    kind: str = ""  # an errno's name, or an event
    forever: bool = False
    written: float = 0.5

    def line(self, kernel: str) -> str:
        """Returns what replays it."""
        mode = "ever" if self.forever else "once"
        return f"{kernel}/{self.case.name}/{self.nth}/{self.kind or 'nothing'}/{mode}/{self.written:g}"


class Failure(Exception):
    """A wrong answer to a fault; ``line`` replays it."""

    def __init__(self, line: str, problem: str) -> None:
        self.line = line
        self.problem = problem
        super().__init__(f"{problem}\n  replay: tools/sweep.py --replay '{line}'")


class Endless(BaseException):
    """A call went on and on."""


@dataclass
class Order(Fault):
    """A fault that notes every call, the rare ones included, and may be an event instead of an error."""

    disk: SimulatedDisk | None = None
    kind: str = ""
    trace: list[Call] = field(default_factory=list)

    def strikes(self, operation: str, label: str, step: bool, *, rare: bool = False) -> bool:
        self.calls += 1
        self.trace.append(Call(operation, label))
        if self.calls > CALLS_MAX:
            raise Endless(f"{self.calls:,} calls of the disk, and no end")
        struck = self.calls == self.nth
        if self.forever and self.calls > self.nth > 0:
            struck = self.kind in PLAUSIBLE[operation]
        self.hits += struck
        if struck and self.kind in EVENTS:
            self._happen()
            return False
        return struck

    def _happen(self) -> None:
        assert self.disk is not None
        if self.kind == "a second lost":
            self.disk.advance(1)
        elif self.kind == "an hour lost":
            self.disk.advance(3600)
        else:
            days = 365 if self.kind == "a year later" else -1
            self.disk.set_time_ns(self.disk.time_ns() + days * 86_400 * 10**9)


@dataclass
class Sweep:
    """Sweeps with one kernel."""

    kernel: str = "py"
    thorough: bool = False
    runs: int = 0
    struck: int = 0
    recoveries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  # trials, as "ENOSPC at spare.wal write, once, short"
    _traces: dict[str, list[Call]] = field(default_factory=dict)
    _seen: set[Any] = field(default_factory=set)

    def cases(self, only: str = "") -> list[Case]:
        """Returns every operation in each of its situations; with ``only``, those of one operation."""
        return [
            Case(operation, situation)
            for operation in OPERATIONS
            for situation in operation.situations()
            if only in ("", operation.name, f"{operation.what}/{operation.name}", Case(operation, situation).name)
        ]

    def calls(self, case: Case) -> list[Call]:
        """Returns the disk calls of an operation without faults, the background work behind it included.

        Runs the trial in which nothing fails, so raises `Failure` where even that goes wrong.
        """
        if case.name not in self._traces:
            self.run(Trial(case, 0))
        return self._traces[case.name]

    def trials(self, case: Case) -> Iterator[Trial]:
        """Yields the trials of a case, in the order of its calls.

        Every call fails once in its likeliest way and for ever in one of its ways, by turns; writes end short by turns;
        with ``thorough``, in each way, both once and for ever. At every fourth call time leaps instead.
        """
        for nth, call in enumerate(self.calls(case), 1):
            kinds = PLAUSIBLE[call.operation]
            written = WRITTEN.get(call.operation, (0.5,))
            if self.thorough:
                for kind in kinds:
                    yield from (Trial(case, nth, kind, written=part) for part in written)
                    yield Trial(case, nth, kind, forever=True)
            else:
                yield Trial(case, nth, kinds[0], written=written[nth % len(written)])
                yield Trial(case, nth, kinds[nth % len(kinds)], forever=True)
            if self.thorough or nth % 4 == 0:
                yield Trial(case, nth, EVENTS[nth // 4 % len(EVENTS)])

    def run(self, trial: Trial) -> None:
        """Runs one trial. Raises `Failure`."""
        self.runs += 1
        if len(self._seen) > 1 << 20:
            self._seen.clear()
        try:
            _Run(self, trial).run()
        except Failure:
            raise
        except Wrong as wrong:
            raise Failure(trial.line(self.kernel), str(wrong)) from wrong
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            problem = f"{type(error).__name__} came out: {error}"
            raise Failure(trial.line(self.kernel), problem) from error

    def trial(self, line: str) -> Trial:
        """Returns the trial that a line names. Raises `ValueError`."""
        kernel, what, name, situation, nth, kind, mode, written = line.strip().split("/")
        case = next((case for case in self.cases() if case.name == f"{what}/{name}/{situation}"), None)
        if case is None or kernel != self.kernel:
            raise ValueError(f"no such case: {line}")
        return Trial(case, int(nth), "" if kind == "nothing" else kind, mode == "ever", float(written))


class _Run:
    """One trial."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self.sweep = sweep
        self.trial = trial
        self.operation = trial.case.operation
        self.rng = random.Random(f"{trial.case.name} {trial.nth}")
        disk = SimulatedDisk(seed=trial.case.name, reserve_bytes_max=RESERVE_BYTES)
        self.scene: Scene = self.operation.situations()[trial.case.situation](disk, sweep.kernel)
        self.disk = self.scene.disk
        self.failed_before = self.scene.handle is not None and self.scene.failed()
        number = getattr(errno, trial.kind, None)
        self.order = Order("every", trial.nth, number, trial.forever, written=trial.written, disk=self.disk)
        self.order.kind = trial.kind
        self.raised = ""
        self.closed = False

    def run(self) -> None:
        """Goes through the steps that stand at the top of this file."""
        self.disk.faults[:] = [self.order]
        self._operate()
        self._work()
        if self.trial.nth == 0:
            self.sweep._traces[self.trial.case.name] = self.order.trace
        else:
            require(self.order.hits, "the call that was to fail never came: the run is not repeatable")
            call = self.order.trace[self.trial.nth - 1]
            mode = "ever" if self.trial.forever else "once"
            short = ", short" if call.operation in WRITTEN and 0 < self.trial.written < 1 else ""
            self.sweep.faults[f"{self.trial.kind} at {call.label}, {mode}{short}"] += 1
            self.sweep.struck += self.order.hits
        self.sweep.outcomes[self.raised or "returned"] += 1
        self._read()
        self._crash()
        self._go_on()
        self._close()
        self._reopen()

    # 1. the call

    def _operate(self) -> None:
        try:
            self.operation.run(self.scene)
        except Wrong:
            raise
        except Exception as error:  # noqa: BLE001 (each is judged)
            self._judge(error, self.operation.raises, self.operation.name)
            self.raised = type(error).__name__
        self.closed = self.scene.handle is None or (
            self.operation.name in ("close", "with", "wal.close") and self.operation.what == self.scene.what
        )
        if self.closed and not self.raised and not self.operation.opens:
            self.scene.model.durable = self.scene.model.returned

    def _judge(self, error: Exception, documented: tuple[type[BaseException], ...], what: str) -> None:
        """Checks that an error is one that the call documents, and that it tells what happened."""
        if not isinstance(error, documented):
            raise Wrong(f"{what}: {type(error).__name__} is not what it documents: {error}") from error
        if self._is_expected(error):
            return
        if not self.order.hits and not self.failed_before:
            raise Wrong(f"{what}: raised without a fault: {type(error).__name__}: {error}") from error
        if type(error).__module__ == "builtins" and WalFullError in documented and OpenError not in documented:
            path = str(getattr(error, "filename", ""))
            require(
                path.startswith((DATA, "/matrix")),
                f"{what}: a bare {type(error).__name__} of the log came out: {error}",
            )
        if not _tells(error):
            raise Wrong(f"{what}: {type(error).__name__} hides its cause: {error}") from error
        if isinstance(error, DamageError) and self.trial.kind != "EIO":
            raise Wrong(f"{what}: calls a failing call damage: {error}") from error

    def _is_expected(self, error: Exception) -> bool:
        if isinstance(error, WalFullError) and self.scene.handle is not None:
            return self.scene.full or (self.scene.over_budget() and bool(self.order.hits))
        return isinstance(error, CheckpointFailedError) and self.trial.case.situation == "checkpoints ended"

    def _checkpoints_ended(self) -> bool:
        checkpointer = getattr(self.scene.handle, "_checkpointer", None)
        return checkpointer is not None and checkpointer.failure is not None

    # 2. the background

    def _work(self) -> None:
        try:
            for _ in range(2):
                self.disk.run_workers()
                self.disk.advance(0.06)
            self.disk.run_workers()
        except Exception as error:
            raise Wrong(f"a worker ended by {type(error).__name__}: {error}") from error

    # 3. reads

    def _read(self) -> None:
        scene = self.scene
        if self.closed:
            return
        scene.model.promise(scene.handle.durable_lsn)
        if scene.what == "log":  # reading a log takes the disk
            self.disk.faults.clear()
        found = scene.found(scene.handle)
        self.disk.faults[:] = [self.order]
        problem = scene.model.problem(found, scene.model.returned)
        require(problem is None, f"reads show something else: {problem}")
        if scene.what == "store" and scene.each_durable:
            contents = scene.model.states[scene.model.returned][0]  # type: ignore[attr-defined]
            require(found.contents == contents, "reads show what may not be durable")  # type: ignore[attr-defined]

    # 4. crashes

    def _crash(self) -> None:
        """Lets the process die, its clean pages be dropped, or power fail: by turns, and all after a run without
        faults."""
        model = self.scene.model
        turn = self.trial.nth % 3 if self.trial.nth else None
        if turn in (0, None):
            self._check_crashed(self.disk.kill(), "kill -9", model.returned)
        if turn in (1, None):  # pages whose sync failed show what the disk holds
            self._check_crashed(self.disk.kill(evicted=True), "kill -9 and eviction", model.durable)
        if turn in (2, None):
            for choice in self.disk.images(self.rng, 2):
                self._check_crashed(self.disk.image(choice), f"power cut {choice}", model.durable)

    def _check_crashed(self, disk: SimulatedDisk, how: str, required: int) -> None:
        scene = self.scene
        key = (self.trial.case.name, disk.digest(), required, len(scene.model.groups), scene.model.released_lsn)
        if key in self.sweep._seen:
            return
        self.sweep._seen.add(key)
        self.sweep.recoveries += 1
        try:
            found = scene.found(scene.open(disk))
        except Exception as error:
            raise Wrong(f"after {how}: refused: {type(error).__name__}: {error}") from error
        problem = scene.model.problem(found, required)
        require(problem is None, f"after {how}: {problem}")

    # 5. further writes

    def _go_on(self) -> None:
        if self.closed:
            return
        if self.trial.forever and self.trial.nth % 2:
            for _ in range(3):
                self._write_again("with the fault still there")
            self._work()
            spares = sum(1 for name in _files(self.disk) if name.startswith("spare"))
            require(spares <= SPARES_MAX, f"each retry leaves a spare behind: {spares} by now")
        self.disk.faults.clear()
        self._write_again("once the fault is gone")
        self._work()

    def _write_again(self, when: str) -> None:
        scene = self.scene
        gone = not self.disk.faults
        failed = scene.failed()
        try:
            scene.promised(scene.write(durable=True), durable=True)
        except (WalFullError, SyncFailedError) as error:
            if isinstance(error, SyncFailedError):
                require(scene.failed(), f"a write {when} says that the log failed, and it has not: {error}")
                require(failed or not gone, f"a write {when} failed: {error}")
                self._judge(error, (SyncFailedError,), f"a write {when}")
            elif gone and not self._is_expected(error):
                raise Wrong(f"a write {when} finds the log full: {error}") from error
            else:
                self._judge(error, (WalFullError,), f"a write {when}")
        except OSError as error:
            if gone:
                raise Wrong(f"a write {when} raised {type(error).__name__}: {error}") from error
            self._judge(error, (WalFullError, OSError), f"a write {when}")
        else:
            require(not failed, f"a write {when} was taken by a log whose sync had failed")

    # 6. close

    def _close(self) -> None:
        scene = self.scene
        if scene.handle is not None:
            ended = scene.failed() or self._checkpoints_ended()
            if not self.closed:
                try:
                    scene.close()
                except Exception as error:
                    if not ended and not self.disk.faults:
                        raise Wrong(f"close() of a sound handle: {type(error).__name__}: {error}") from error
                    self._judge(error, (SyncFailedError, CheckpointFailedError), "close()")
                else:
                    require(not scene.failed(), "close() of a failed log returned as if all were durable")
                    scene.model.durable = scene.model.returned
            self.disk.faults.clear()
            scene.close()  # again
            try:
                scene.write()
            except UnavailableError:
                pass
            else:
                raise Wrong("a closed handle took a write")
        self.disk.faults.clear()
        if self.disk.held():
            gc.collect()
        require(not self.disk.held(), f"still held after the end: {self.disk.held()}")
        for choice in self.disk.images(self.rng, 1 if self.trial.nth % 2 == 0 else 0):
            self._check_crashed(self.disk.image(choice), f"the end and power cut {choice}", self.scene.model.durable)

    # 7. the next life

    def _reopen(self) -> None:
        scene = self.scene
        disk = self.disk
        key = ("life", self.trial.case.name, disk.digest(), scene.model.returned, len(scene.model.groups))
        if key in self.sweep._seen:
            return
        self.sweep._seen.add(key)
        self.sweep.recoveries += 1
        try:
            scene.handle = scene.open(disk)
            found = scene.found(scene.handle)
        except Exception as error:
            raise Wrong(f"opening again: refused: {type(error).__name__}: {error}") from error
        problem = scene.model.problem(found, scene.model.returned)
        require(problem is None, f"opening again: {problem}")
        scene.model.adopt(found)
        if self.trial.nth % 3:  # the rest of that life, now and then
            return
        try:
            scene.write(durable=True)
        except WalFullError:
            require(scene.full, "the next life finds the log full")
        self._work()
        scene.close()
        scene.model.durable = scene.model.returned
        names = _files(disk)
        strange = [name for name in names if not EXPECTED_FILE.fullmatch(name)]
        require(not strange, f"left behind: {strange}")
        spares = sum(1 for name in names if name.startswith("spare"))
        require(spares <= SPARES_MAX, f"{spares} spares left behind")
        require(not disk.held(), f"still held after the next life: {disk.held()}")
        self._check_crashed(disk.image("0/0/old"), "a power cut behind a clean close", scene.model.returned)


def _files(disk: SimulatedDisk) -> list[str]:
    """Returns the names of all files, without a call of the disk."""
    return [posixpath.basename(path) for path in disk._names.entries]


def _tells(error: BaseException) -> bool:
    """Whether an error, or one in its chain of causes, is the ordered one."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        if "(injected)" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
