"""Time and background work of the simulated disk: a clock that moves when used, workers that run when asked.

There is one thread. A wait runs the workers that are due, then moves the clock to the next one, up to its
deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmwal.testing.inode import SimulatorError

TICK_NS = 1_000
ROUNDS_MAX = 1_000
FRUITLESS_MAX = 100


class Clock:
    """Two clocks that go on by a microsecond with each call."""

    def __init__(self, time_ns: int, monotonic_ns: int) -> None:
        self.time_ns = time_ns
        self.monotonic_ns = monotonic_ns

    def advance(self, ns: int) -> None:
        """Lets time pass."""
        self.time_ns += ns
        self.monotonic_ns += ns


class Blocked(BaseException):
    """A mutex is held further out on this stack: with threads, this one would wait there."""


class SimulatedMutex:
    """A `threading.Lock` of the simulation.

    Taking it in a worker while its waker holds it ends the worker's step, which is tried again later; anywhere else
    that is a deadlock, and `Blocked` says so.
    """

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> bool:
        if self._held:
            raise Blocked("a lock is taken that this thread holds")
        self._held = True
        return True

    def __exit__(self, *error: object) -> None:
        self._held = False

    def locked(self) -> bool:
        """Whether it is held."""
        return self._held


class SimulatedWorker:
    """A step function that runs when due: at once, then when woken or after the seconds it returned."""

    def __init__(self, background: Background, name: str, step: Callable[[], float | None]) -> None:
        self.name = name
        self.due_ns: int | None = 0
        self._background = background
        self._step = step
        self._running = False

    def wake(self) -> None:
        self.due_ns = 0

    def stop(self) -> None:
        if self in self._background.workers:
            self._background.workers.remove(self)

    def run(self) -> bool:
        """Runs the step if it is due and not running; returns whether it ran."""
        clock = self._background.clock
        if self._running or self.due_ns is None or self.due_ns > clock.monotonic_ns:
            return False
        self.due_ns = None
        self._running = True
        try:
            pause_s = self._step()
        except Blocked:
            self.due_ns = clock.monotonic_ns + TICK_NS
            return False
        finally:
            self._running = False
        if pause_s is not None and self.due_ns is None:
            self.due_ns = clock.monotonic_ns + max(TICK_NS, int(pause_s * 1e9))
        return True

    @property
    def is_running(self) -> bool:
        """Whether its step is on the stack."""
        return self._running

    def waits_until(self) -> int | None:
        return None if self._running else self.due_ns


class SimulatedCondition:
    """A condition whose `wait` runs the workers instead of blocking."""

    def __init__(self, background: Background) -> None:
        self.notifications = 0
        self._background = background

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *error: object) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        return self._background.wait(self, timeout)

    def notify_all(self) -> None:
        self.notifications += 1


class Background:
    """The workers of one simulated process and its clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.workers: list[SimulatedWorker] = []
        self._fruitless = 0

    def start(self, name: str, step: Callable[[], float | None]) -> SimulatedWorker:
        """Registers a worker; due at once."""
        worker = SimulatedWorker(self, name, step)
        self.workers.append(worker)
        return worker

    def condition(self) -> SimulatedCondition:
        """Returns a condition on which one waits for the workers."""
        return SimulatedCondition(self)

    def run(self) -> bool:
        """Runs every worker that is due, once; returns whether one ran."""
        ran = [worker.run() for worker in self.workers.copy()]
        return any(ran)

    def wait(self, condition: SimulatedCondition, timeout: float | None) -> bool:
        """Lets workers run until the condition is notified; False where that cannot happen in time."""
        before = condition.notifications
        deadline = None if timeout is None else self.clock.monotonic_ns + int(timeout * 1e9)
        for _ in range(ROUNDS_MAX):
            ran = self.run()
            if condition.notifications != before:
                self._fruitless = 0
                return True
            if not ran:
                times = [due for worker in self.workers if (due := worker.waits_until()) is not None]
                if not times or (deadline is not None and min(times) > deadline):
                    break
                self._pass(min(times))
        if deadline is not None:
            self._pass(deadline)
        else:
            self._fruitless += 1
            if any(worker.is_running for worker in self.workers):  # it waits for who waits for it, further out
                raise Blocked("a worker waits for somebody on whose stack it runs")
            if self._fruitless > FRUITLESS_MAX:
                raise SimulatorError("deadlock: a wait without timeout that no worker can end")
        return False

    def _pass(self, until_ns: int) -> None:
        self.clock.advance(max(0, until_ns - self.clock.monotonic_ns))


class SimulatedLock:
    """A lock in a table; gone with the process."""

    def __init__(self, release: Callable[[], Any]) -> None:
        self._release = release

    def release(self) -> None:
        self._release()
