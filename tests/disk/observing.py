"""How the tests of this room watch other threads."""

import os
import threading
import time
from collections.abc import Callable

PATIENCE_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    """Let other threads run until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


def progress_beside(call: Callable[[], object]) -> float:
    """Return how fast a busy Python thread runs while something is called, as a share of its speed before."""
    counted = [0]
    stopping: list[bool] = []

    def count() -> None:
        while not stopping:
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        until(lambda: counted[0] > 1000)
        alone = rate_during(lambda: thread.join(0.1), counted)
        beside = rate_during(call, counted)
    finally:
        stopping.append(True)
        thread.join()
    return beside / alone


def rate_during(call: Callable[[], object], counted: list[int]) -> float:
    started, before = time.monotonic(), counted[0]
    call()
    return (counted[0] - before) / (time.monotonic() - started)


class Asking:
    """A thread that asks a question, and its answer or error."""

    def __init__(self, question: Callable[[], object]) -> None:
        self.answer: object = None
        self.error: BaseException | None = None
        self._question = question
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def result(self) -> object:
        """Wait for the answer, and raise the error if there was one."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "no answer"
        if self.error is not None:
            raise self.error
        return self.answer

    def _ask(self) -> None:
        try:
            self.answer = self._question()
        except BaseException as error:  # noqa: BLE001 (raised again by `result`)
            self.error = error
