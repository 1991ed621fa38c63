"""Workers of the real disk: their threads, and how they end."""

import errno
import logging
import threading

import pytest

from mmwal.disk.interface import Worker
from mmwal.disk.posix import PosixDisk
from tests.disk.observing import PATIENCE_S, until


def thread_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_worker_is_a_daemon_thread_with_its_name(disk: PosixDisk) -> None:
    worker = disk.start_worker("probe", lambda: None)
    assert [thread.daemon for thread in thread_named("mmwal-probe")] == [True]
    worker.stop()
    assert thread_named("mmwal-probe") == []


def test_stop_waits_for_a_running_step(disk: PosixDisk) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        began.set()
        may_end.wait(PATIENCE_S)
        ended.set()

    worker = disk.start_worker("test", step)
    assert began.wait(PATIENCE_S)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    assert not ended.is_set()
    may_end.set()
    stopping.join(PATIENCE_S)
    assert ended.is_set()
    assert thread_named("mmwal-test") == []


def test_step_may_stop_its_own_worker(disk: PosixDisk) -> None:
    workers: list[Worker] = []
    started = threading.Event()

    def step() -> float:
        started.wait(PATIENCE_S)
        workers[0].stop()
        return 0.0

    workers.append(disk.start_worker("test", step))
    started.set()
    until(lambda: thread_named("mmwal-test") == [])
    workers[0].stop()


def test_error_in_a_step_is_logged_and_ends_the_worker(disk: PosixDisk, caplog: pytest.LogCaptureFixture) -> None:
    def step() -> None:
        raise LookupError("on purpose")

    worker = disk.start_worker("test", step)
    worker.stop()
    [record] = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == (
        "mmwal",
        logging.ERROR,
        "mmwal-test ended by an error",
    )
    assert record.exc_info is not None
    assert "on purpose" in str(record.exc_info[1])


def test_thread_that_cannot_start_is_an_os_error(disk: PosixDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="mmwal-test cannot start") as caught:
        disk.start_worker("test", lambda: None)
    assert caught.value.errno == errno.EAGAIN
