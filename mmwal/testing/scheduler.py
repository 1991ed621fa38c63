"""A seeded scheduler: several threads on one simulated disk, of which exactly one runs, and a seed decides which.

    scheduler = Scheduler(disk)                # from now on the disk's conditions and workers are the scheduler's
    log = Log(disk, ...)                       # the product's code as it is
    scheduler.interleave({"a": append_some, "b": sync_now}, random.Random(7), Pressure())

The threads are real, so the code under test needs no hook: whoever runs holds the baton, all others sleep. It may
change hands at a *point*: each step of the disk (before the call takes effect: a sync is in flight while others go on),
each lock taken, each wait, and each `point` that the harness adds. The disk's workers take part like everybody else.

Not here: who writes what (`interleaved.py`), crashes (`explorer.py`; it looks at every point, as points are steps).

* The same seed and the same code make the same schedule: what real time does decides nothing.
* Nothing else runs between two points. So what has no point within is atomic here, whatever it is on real threads.
* Time passes when nobody can go on, and now and then earlier: a timeout may strike any wait that has one.
* Where nobody can go on and no time would help, that is a deadlock, and an error; so is a run that does not end.
* Outside of a run it is the plain `Background`: one thread, workers run when somebody waits.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmwal.testing.background import Background, SimulatedCondition, SimulatedWorker
from mmwal.testing.inode import SimulatorError
from mmwal.testing.simulator import SimulatedDisk

SWITCHES_MAX = 20_000  # of one run
HANG_S = 600.0  # of real time, for code that blocks where the scheduler cannot see it


class Stopped(BaseException):
    """The run ended with an error in another thread: this one unwinds."""


@dataclass(frozen=True)
class Pressure:
    """How hard a schedule is: the chance that a point switches, that who stops there stops long, that time jumps."""

    switch: float = 0.5
    stall: float = 0.05
    stall_switches_max: int = 60
    jump: float = 0.02


class Task:
    """One thread of a run. It may go on if it is not waiting, or what it waits for has come, or its time is up."""

    def __init__(self, name: str, worker: ScheduledWorker | None = None) -> None:
        self.name = name
        self.worker = worker  # whose steps it runs; None: it belongs to the harness
        self.baton = threading.Lock()
        self.baton.acquire()
        self.done = False
        self.idle = worker is not None  # between two steps of its worker
        self.ready: Callable[[], bool] | None = None
        self.deadline_ns: int | None = None
        self.what = ""  # it waits for
        self.stalled_until = 0  # a number of switches

    def may_go(self, now_ns: int) -> bool:
        """Whether it has something to do now."""
        if self.ready is None or self.ready():
            return True
        return (until := self.until_ns()) is not None and until <= now_ns

    def until_ns(self) -> int | None:
        """Returns when time alone lets it go on."""
        return self.worker.waits_until() if self.idle and self.worker is not None else self.deadline_ns


class Scheduler(Background):
    """The background of a disk, and its threads while a run lasts."""

    def __init__(self, disk: SimulatedDisk) -> None:
        """Takes the place of the disk's background. Before anybody has a condition or a worker of it."""
        super().__init__(disk._clock)
        disk._background = self
        self.disk = disk
        self.switches = 0
        self.running = False
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._random = random.Random(0)
        self._pressure = Pressure()
        self._switches_max = 0
        self._error: BaseException | None = None
        self._stopping = False
        self._ended = threading.Lock()

    # ---- for the harness

    @property
    def current(self) -> str:
        """The name of the thread that runs; empty outside of a run."""
        return self._current.name if self._current is not None else ""

    def interleave(self, bodies: Mapping[str, Callable[[], None]], rng: random.Random, pressure: Pressure) -> None:
        """Runs all bodies to their end, interleaved with each other and with the workers.

        Returns once they ended and no worker is within a step. Raises the first error of any thread, `SimulatorError`
        for a deadlock.
        """
        assert not self.running, "a run within a run"
        self._random, self._pressure = rng, pressure
        self._switches_max = self.switches + SWITCHES_MAX
        self._error, self._stopping = None, False
        self._tasks = [Task(name) for name in bodies]
        works = list(bodies.values())
        for worker in self.workers:
            assert isinstance(worker, ScheduledWorker)
            task = Task(worker.name, worker)
            self._tasks.append(task)
            works.append(lambda task=task: self._work(task))  # type: ignore[misc]
        threads = [
            threading.Thread(target=self._main, args=(task, work), name=task.name, daemon=True)
            for task, work in zip(self._tasks, works, strict=True)
        ]
        outer = self.disk.on_step
        self.disk.on_step = lambda disk, step, label: self._step(outer, disk, step, label)
        self._ended = threading.Lock()
        self._ended.acquire()
        self.running = True
        try:
            for thread in threads:
                thread.start()
            self._pass_on(self._tasks[0])
            if not self._ended.acquire(timeout=HANG_S):
                raise SimulatorError(f"{self.current} blocks where the scheduler cannot see it")
            for thread in threads:
                thread.join()
        finally:
            self.running = False
            self.disk.on_step = outer
            self._tasks, self._current = [], None
        if self._error is not None:
            raise self._error

    def point(self, label: str) -> None:
        """Lets power fail, and another thread go on, here."""
        if self.running:
            self.disk.observe(label)

    def chance(self, of: float) -> bool:
        """Draws from the schedule."""
        return self.running and self._random.random() < of

    def block(self, ready: Callable[[], bool], deadline_ns: int | None, what: str) -> bool:
        """Returns True once ``ready`` holds, False once the clock passed the deadline before."""
        task = self._current
        assert task is not None
        task.ready, task.deadline_ns, task.what = ready, deadline_ns, what
        try:
            self._hand_over(task)
            return ready()
        finally:
            task.ready = task.deadline_ns = None

    # ---- for the disk

    def start(self, name: str, step: Callable[[], float | None]) -> SimulatedWorker:
        """Registers a worker; due at once."""
        assert not self.running, "a worker begins within a run"
        worker = ScheduledWorker(self, name, step)
        self.workers.append(worker)
        return worker

    def condition(self) -> SimulatedCondition:
        """Returns a condition on which threads of a run wait."""
        return ScheduledCondition(self)

    # ---- threads

    def _main(self, task: Task, body: Callable[[], None]) -> None:
        task.baton.acquire()
        try:
            if not self._stopping:
                body()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again by `interleave`)
            self._stop(error)
        task.done = True
        self._follow()

    def _work(self, task: Task) -> None:
        worker = task.worker
        assert worker is not None
        while worker in self.workers and not self._is_over():
            task.idle = False
            worker.run()
            task.idle = True
            self.block(lambda: worker not in self.workers or self._is_over(), None, "its time")

    def _is_over(self) -> bool:
        """Whether all bodies ended and every worker is between two steps."""
        return all(task.done or task.idle for task in self._tasks)

    def _stop(self, error: BaseException) -> None:
        self._error = self._error or error
        self._stopping = True

    # ---- switching

    def _step(self, outer: Any, disk: SimulatedDisk, step: int, label: str) -> None:
        """Runs the explorer's look, then perhaps another thread; the call that begins here takes effect after that."""
        if self._stopping:
            raise Stopped
        task = self._current
        assert task is not None
        if outer is not None:
            try:
                outer(disk, step, label)
            except BaseException as error:
                self._stop(error)
                raise Stopped from error
        if self._random.random() >= self._pressure.switch:
            return
        if self._random.random() < self._pressure.stall:
            task.stalled_until = self.switches + self._random.randint(1, self._pressure.stall_switches_max)
        self._hand_over(task)

    def _hand_over(self, task: Task) -> None:
        if not self._stopping:
            following = self._choose()
            if following is None:
                self._stop(SimulatorError(self._complaint()))
            elif following is not task:
                self._pass_on(following)
                task.baton.acquire()
        if self._stopping:
            raise Stopped

    def _follow(self) -> None:
        """Lets somebody go on in place of a thread that ended."""
        left = [task for task in self._tasks if not task.done]
        if not left:
            self._current = None
            self._ended.release()
            return
        following = None if self._stopping else self._choose()
        if following is None and not self._stopping:
            self._stop(SimulatorError(self._complaint()))
        self._pass_on(following or left[0])

    def _pass_on(self, task: Task) -> None:
        self.switches += 1
        self._current = task
        task.baton.release()

    def _choose(self) -> Task | None:
        """Returns who goes on; None for a deadlock or a run without end."""
        if self.switches >= self._switches_max:
            return None
        left = [task for task in self._tasks if not task.done]
        if all(task.worker is not None for task in left) and not self._is_over():
            left = (
                self._able([task for task in left if not task.idle]) or left
            )  # a step more only where one waits for it
        while True:
            able = self._able(left)
            awake = [task for task in able if task.stalled_until <= self.switches]
            times = [until for task in left if task not in able and (until := task.until_ns()) is not None]
            tempted = self._random.random() < (self._pressure.jump if awake else 0.5)
            if able and not (times and tempted):
                return self._random.choice(awake or able)
            if not times:
                return None
            self._pass(min(times))

    def _able(self, tasks: list[Task]) -> list[Task]:
        now_ns = self.clock.monotonic_ns
        return [task for task in tasks if task.may_go(now_ns)]

    def _complaint(self) -> str:
        waiting = ", ".join(
            f"{task.name} waits for {task.what}" for task in self._tasks if not task.done and task.ready is not None
        )
        what = "no end" if self.switches >= self._switches_max else "deadlock"
        return f"{what}: {waiting or 'nobody waits'}"


class ScheduledWorker(SimulatedWorker):
    """A worker with a thread of its own while a run lasts."""

    def __init__(self, scheduler: Scheduler, name: str, step: Callable[[], float | None]) -> None:
        super().__init__(scheduler, name, step)
        self._scheduler = scheduler

    def stop(self) -> None:
        """Ends the loop and waits for a running step, unless called from it."""
        super().stop()
        if self._scheduler.running and self._scheduler.current != self.name:
            self._scheduler.block(lambda: not self._running, None, f"the end of a step of {self.name}")


class Mutex:
    """A lock that its holder may take again. Threads of a run wait for it; outside of a run it is free."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.name = name
        self.depth = 0
        self._scheduler = scheduler
        self._holder: Task | None = None

    def __enter__(self) -> bool:
        self._scheduler.point(self.name)
        self.take()
        return True

    def __exit__(self, *error: object) -> None:
        self.give()

    def take(self) -> None:
        """Waits until nobody else has it."""
        scheduler = self._scheduler
        if not scheduler.running:
            return
        if self._holder not in (None, scheduler._current):
            scheduler.block(lambda: self._holder is None, None, self.name)
        self._holder = scheduler._current
        self.depth += 1

    def give(self) -> None:
        """Lets go of it once; what a stopped thread never got stays where it is."""
        scheduler = self._scheduler
        if scheduler.running and self._holder is scheduler._current and self.depth:
            self.depth -= 1
            if not self.depth:
                self._holder = None


class ScheduledCondition(SimulatedCondition):
    """A condition with its lock."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._scheduler = scheduler
        self._mutex = Mutex(scheduler, "lock")

    def __enter__(self) -> bool:
        return self._mutex.__enter__()

    def __exit__(self, *error: object) -> None:
        self._mutex.give()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits without the lock until somebody notifies, or for so many seconds."""
        scheduler = self._scheduler
        if not scheduler.running:
            return super().wait(timeout)
        before = self.notifications
        deadline_ns = None if timeout is None else scheduler.clock.monotonic_ns + int(timeout * 1e9)
        self._mutex.give()
        scheduler.point("wait")
        notified = scheduler.block(lambda: self.notifications != before, deadline_ns, "a notification")
        self._mutex.take()
        return notified
