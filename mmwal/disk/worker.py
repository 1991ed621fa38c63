"""A background thread over a step function, and how many threads can run at once."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable


def usable_cores() -> int:
    """Returns how many cores this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ThreadWorker:
    """Calls a step now and then again: after the seconds it returned, or, for None, when woken.

    A wake that arrives while the step runs is kept: the step runs once more. An exception that leaves the
    step is logged and ends the worker. In a forked child there is no thread, and every method does nothing.
    """

    def __init__(self, name: str, step: Callable[[], float | None]) -> None:
        self._step = step
        self._pid = os.getpid()
        self._stopping = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mmwal-{name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # a limit on threads or processes, or the interpreter is on its way out
            raise OSError(errno.EAGAIN, f"thread {self._thread.name} cannot start: {error}") from error

    def wake(self) -> None:
        """Runs the step soon."""
        if os.getpid() == self._pid:
            self._woken.set()

    def stop(self) -> None:
        """Ends the loop and waits for a running step, unless called from it."""
        if os.getpid() != self._pid:
            return
        self._stopping = True
        self._woken.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                self._woken.clear()
                if self._stopping:
                    return
                self._woken.wait(self._step())
        except BaseException:  # the rooms above catch what they expect; this is a mistake in one of them
            logging.getLogger("mmwal").exception("%s ended by an error", self._thread.name)
