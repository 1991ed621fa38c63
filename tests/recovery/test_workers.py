"""Who recovers makes no difference: the caller, threads, or processes; and a worker that dies costs time only."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmwal
import mmwal.recovery.workers
from mmwal.disk.posix import PosixDisk
from mmwal.disk.worker import usable_cores
from mmwal.errors import ConsistencyError, RecoveryTimeoutError, WalConfigError, WalCorruptionError
from mmwal.format.segment import DATA_OFFSET
from mmwal.log.control import open_control
from mmwal.log.segment import inspect_segment
from mmwal.recovery.workers import Workers, _mapped
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import disk, open_store, root, simulated
from tests.store.stores import DIMENSION, SEGMENT, contents, crashed_copy, digests, rows, vector

__all__ = ["disk", "open_store", "root", "simulated"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def killed(open_store: Any, root: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A store that was killed behind a checkpoint: many segments, entries of every kind, a torn tail; and what it
    held."""
    store = open_store()
    store.insert_many(range(500), rows(range(500)))
    store.checkpoint()
    for n in range(900):
        store.upsert(f"id-{n % 300}", vector(n), {"n": n})
    store.update_many(range(0, 500, 3), rows(range(0, 500, 3)), [{"many": n} for n in range(0, 500, 3)])
    store.update("id-7", None, {"only": "metadata"})
    store.delete_many(range(1, 500, 7))
    store.insert_many([f"new-{n}" for n in range(3000)], rows(range(3000)))
    store.sync()
    seal_durable(store.wal._log)
    held = contents(store)
    torn = vector(12_345)
    store.insert("torn", torn)  # not durable yet
    path = crashed_copy(root, tmp_path / "killed")
    assert len(segments(path)) > 5
    newest = segments(path)[(store.wal.get_metrics().reserved_lsn - 1) // SEGMENT]
    flip(newest, newest.read_bytes().index(torn.tobytes()))
    return path, held


def segments(path: Path) -> dict[int, Path]:
    """The segments of a store's log by number."""
    return {int(file.stem.split("-")[1], 16): file for file in sorted((path / "wal").glob("segment-*"))}


def seal_durable(log: Any) -> None:
    """Waits until every segment is sealed that is durable to its end; those are verified by workers."""
    with log.keeper.changed:
        while log.keeper.sealed[-1:] != [log.cursor.durable // SEGMENT - 1]:
            log.wake_keeper()
            log.keeper.changed.wait(1.0)


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 1]))


def recover(path: Path, executor: Executor | None = None, **fields: Any) -> tuple[Any, mmwal.RecoveryStats]:
    """Recovers a copy of a killed store; returns what it holds, and the report."""
    copy = path.with_name(f"copy-{time.monotonic_ns()}")
    shutil.copytree(path, copy)
    config = mmwal.RecoveryConfig(wal_dir=copy / "wal", data_dir=copy / "data", **fields)
    with mmwal.CrashRecoveryManager(config, executor=executor).recover() as store:
        return contents(store), store.recovery_stats


def pool(kind: str) -> Executor:
    if kind == "threads":
        return ThreadPoolExecutor(3)
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(kind))


@pytest.mark.parametrize("kind", ["threads", "spawn", "forkserver"])
def test_any_executor_gives_the_same_store_and_report(killed: tuple[Path, Any], kind: str, kernel: Any) -> None:
    path, held = killed
    expected, serial = recover(path, workers=1, kernel=kernel.NAME)
    assert expected == held and serial.workers == 1 and serial.torn_tail_bytes > 0
    with pool(kind) as executor:
        found, stats = recover(path, executor, kernel=kernel.NAME)
        assert executor.submit(int, "7").result() == 7  # it was not shut down
    assert found == held
    assert stats.workers == (3 if kind == "threads" else 2)
    differ = {"recovery_time_ms": 0.0, "workers": 0}
    assert replace(stats, **differ) == replace(serial, **differ)


def test_number_of_workers_is_a_pool_of_processes(killed: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Noted(ProcessPoolExecutor):
        def __init__(self, *given: Any, **named: Any) -> None:
            made.append((given, named["mp_context"].get_start_method()))
            super().__init__(*given, **named)

    monkeypatch.setattr(mmwal.recovery.workers, "ProcessPoolExecutor", Noted)
    path, held = killed
    found, stats = recover(path, workers=2)
    assert (found, stats.workers, made) == (held, 2, [((2,), "spawn")])
    assert recover(path)[1].workers == 1  # a small log stays with the caller
    assert len(made) == 1


@pytest.mark.parametrize("read_only", [True, False])
def test_open_uses_threads_only(
    killed: tuple[Path, Any], kernel: Any, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmwal.recovery.workers, "_THREADS_FROM_BYTES", 1)
    monkeypatch.setattr(mmwal.recovery.workers, "usable_cores", lambda: 5)
    monkeypatch.setattr(mmwal.recovery.workers, "ProcessPoolExecutor", None)
    path, held = killed
    with mmwal.open(path, kernel=kernel.NAME, read_only=read_only) as store:
        assert (contents(store), store.recovery_stats.workers) == (held, 5 if kernel.NAME == "c" else 1)


def test_recovery_that_is_asked_for_no_number_uses_threads_only(
    killed: tuple[Path, Any], kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmwal.recovery.workers, "_THREADS_FROM_BYTES", 1)
    monkeypatch.setattr(mmwal.recovery.workers, "ProcessPoolExecutor", None)
    path, held = killed
    found, stats = recover(path, kernel=kernel.NAME)
    assert found == held
    assert (stats.workers > 1) == (kernel.NAME == "c")
    assert not any("worker" in note for note in stats.notes)


@pytest.mark.parametrize(("cores", "threads"), [(1, 4), (2, 4), (8, 8), (64, 16)])
def test_threads_follow_the_cores_where_there_is_much_to_do(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmwal.recovery.workers, "usable_cores", lambda: cores)
    compiled, twin = SimpleNamespace(NAME="c"), SimpleNamespace(NAME="py")
    much, parts = mmwal.recovery.workers._THREADS_FROM_BYTES, 1000
    workers = Workers(PosixDisk())

    def count(phase: Any, kernel: Any, size: int, parts: int) -> int:
        return workers._count(phase, kernel, size, parts)

    assert count("verify", compiled, much, parts) == threads
    assert count("verify", compiled, much, 1) == 1
    assert count("verify", compiled, much - 1, parts) == 1
    assert count("verify", twin, much, parts) == 1  # it never lets go of the GIL
    assert count("copy", compiled, much, parts) == 1  # threads take longer


def test_first_damaged_entry_is_named_whoever_finds_another(killed: tuple[Path, Any]) -> None:
    path, _ = killed
    control = open_control(PosixDisk(), str(path / "wal"))
    infos = [inspect_segment(PosixDisk(), str(path / "wal"), control.identity, number) for number in segments(path)]
    numbers = [info.number for info in infos if info is not None and info.footer is not None][-3:]
    for number in numbers:
        flip(segments(path)[number], DATA_OFFSET + 90)
    errors = []
    with pool("threads") as threads, pool("spawn") as processes:
        for executor in (None, threads, processes):
            before = digests(path)
            with pytest.raises(WalCorruptionError) as raised:
                recover(path, executor, workers=1)
            assert digests(path) == before
            errors.append((raised.value.lsn, raised.value.offset, os.path.basename(str(raised.value.path))))
    assert errors[0] == errors[1] == errors[2]
    assert len(numbers) == 3 and errors[0][2] == segments(path)[numbers[0]].name


class Killing(ProcessPoolExecutor):
    """A pool one of whose processes is killed when its part begins."""

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        return super().submit(_die_in if function.__name__ == self.phase else function, *arguments)

    phase = ""


def _die_in(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("phase", ["_scan", "_copy"])
def test_worker_that_is_killed_costs_time_only(
    killed: tuple[Path, Any], phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, held = killed
    with Killing(2, mp_context=multiprocessing.get_context("spawn")) as executor, caplog.at_level(logging.WARNING):
        executor.phase = phase
        found, stats = recover(path, executor)
    assert found == held
    assert "a worker of the recovery died" in caplog.text
    assert any("a worker of the recovery died" in note for note in stats.notes)


def test_executor_that_is_shut_down_is_refused_and_nothing_is_changed(killed: tuple[Path, Any]) -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    path, _ = killed
    before = digests(path)
    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data")
    with pytest.raises(WalConfigError, match=r"executor=.*takes no work"):
        mmwal.CrashRecoveryManager(config, executor=executor).recover()
    assert digests(path) == before


@pytest.mark.parametrize("given", [2, ThreadPoolExecutor, object()])
def test_what_is_no_executor_is_refused(given: Any) -> None:
    with pytest.raises(WalConfigError, match=r"executor=.*concurrent\.futures\.Executor"):
        mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir="wal", data_dir="data"), executor=given)


def test_progress_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(WalConfigError, match=r"^progress=5: must be callable"):
        mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir="wal", data_dir="data"), progress=5)  # type: ignore[arg-type]


class Ended(ThreadPoolExecutor):
    """An executor whose owner ends it while the parts wait."""

    def submit(self, *_: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        future.cancel()
        future.set_running_or_notify_cancel()
        return future


def test_executor_that_is_ended_meanwhile_costs_time_only(killed: tuple[Path, Any]) -> None:
    path, held = killed
    with Ended(2) as executor:
        found, stats = recover(path, executor)
    assert found == held
    assert any("CancelledError" in note for note in stats.notes)


class Following(ThreadPoolExecutor):
    """Threads that begin a second part only when the first is done, and take their time over it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.first_done = threading.Event()
        self.begun = 0
        self.at_work = 0

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        self.begun += 1
        if self.begun == 1:
            return super().submit(function, *arguments)
        return super().submit(self._follow, function, *arguments)

    def _follow(self, function: Any, *arguments: Any) -> Any:
        self.at_work += 1
        self.first_done.wait()
        time.sleep(0.05)
        try:
            return function(*arguments)
        finally:
            self.at_work -= 1


def test_nobody_is_at_work_any_more_when_recovery_ends_early(killed: tuple[Path, Any]) -> None:
    path, _ = killed

    def stop(progress: mmwal.RecoveryProgress) -> None:
        if progress.done_bytes and executor.begun:  # not what the survey has done before
            executor.first_done.set()
            raise InterruptedError("enough")

    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data")
    with Following() as executor:
        with pytest.raises(InterruptedError):
            mmwal.CrashRecoveryManager(config, executor=executor, progress=stop).recover()
        assert (executor.begun > 1, executor.at_work) == (True, 0)


def test_file_that_shrinks_is_refused_where_it_is_mapped_again(tmp_path: Path) -> None:
    path = tmp_path / "matrix"
    path.write_bytes(bytes(4096))
    assert len(_mapped(str(path), 4096, writable=True)) == 4096
    with pytest.raises(ConsistencyError, match=r"shrank to 4,096 bytes of 8,192"):
        _mapped(str(path), 8192, writable=True)


# -- progress and time


def test_progress_says_how_far_it_is(killed: tuple[Path, Any]) -> None:
    path, _ = killed
    said: list[mmwal.RecoveryProgress] = []
    threads: set[int] = set()

    def note(progress: mmwal.RecoveryProgress) -> None:
        said.append(progress)
        threads.add(threading.get_ident())

    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data")
    with ThreadPoolExecutor(2) as executor:
        mmwal.CrashRecoveryManager(config, executor=executor, progress=note).recover().close()
    assert threads == {threading.get_ident()}
    for phase in ("verify", "copy"):
        steps = [(one.done_bytes, one.total_bytes) for one in said if one.phase == phase]
        assert steps == sorted(steps) and steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 0
    for one in said:
        assert (one.seconds_left is None) == (one.done_bytes == 0)
        assert one.seconds_left is None or one.seconds_left >= 0
    assert said[0].phase == "verify" and said[-1].phase == "copy"


@pytest.mark.parametrize("kind", [None, "threads", "spawn"])
def test_what_progress_raises_ends_recovery_with_nothing_changed(killed: tuple[Path, Any], kind: str | None) -> None:
    path, held = killed
    before = digests(path)

    def stop(progress: mmwal.RecoveryProgress) -> None:
        if progress.done_bytes:
            raise InterruptedError("enough")

    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data")
    executor = pool(kind) if kind else None
    manager = mmwal.CrashRecoveryManager(config, executor=executor, progress=stop)
    with pytest.raises(InterruptedError, match="enough"):
        manager.recover()
    if executor is not None:
        executor.shutdown()
    assert digests(path) == before
    stats = manager.get_recovery_stats()
    assert (stats.completed, stats.errors) == (False, ("enough",))
    assert stats.bytes_scanned > 0 and stats.recovery_time_ms > 0
    assert recover(path)[0] == held


class Slow(ThreadPoolExecutor):
    def submit(self, function: Any, *arguments: Any) -> Future[Any]:  # type: ignore[override]
        return super().submit(_slowly, function, *arguments)


def _slowly(function: Any, *arguments: Any) -> Any:
    time.sleep(0.05)
    return function(*arguments)


def test_recovery_over_its_time_changes_nothing(killed: tuple[Path, Any]) -> None:
    path, held = killed
    before = digests(path)
    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data", max_recovery_time_ms=20)
    with Slow(1) as executor, pytest.raises(RecoveryTimeoutError) as raised:
        mmwal.CrashRecoveryManager(config, executor=executor).recover()
    assert raised.value.limit_ms == 20 < raised.value.elapsed_ms
    assert digests(path) == before
    assert recover(path, max_recovery_time_ms=None)[0] == held


@pytest.mark.parametrize("kind", [None, "threads", "spawn"])
def test_time_is_looked_at_between_parts_whoever_does_them(killed: tuple[Path, Any], kind: str | None) -> None:
    path, _ = killed
    before = digests(path)
    seen: list[int] = []

    def wait(progress: mmwal.RecoveryProgress) -> None:
        seen.append(progress.done_bytes)
        if progress.done_bytes:
            time.sleep(limit_ms / 1e3)

    limit_ms = 1000
    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data", max_recovery_time_ms=limit_ms)
    with ExitStack() as stack:
        executor = stack.enter_context(pool(kind)) if kind else None
        if executor is not None:
            executor.submit(int, "7").result()  # begun before the time runs
        with pytest.raises(RecoveryTimeoutError):
            mmwal.CrashRecoveryManager(config, executor=executor, progress=wait).recover()
    assert seen[0] == 0 and len(seen) == 2  # nobody waited for the other parts
    assert digests(path) == before


# -- where another process cannot help


def test_another_disk_is_recovered_in_the_caller(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, dimension=DIMENSION)
    store.insert_many(range(900), rows(range(900)))
    held = contents(store)

    class Refusing(ThreadPoolExecutor):
        def submit(self, *_: Any) -> Future[Any]:  # type: ignore[override]
            raise AssertionError("this disk is in the memory of one process")

    config = mmwal.RecoveryConfig(wal_dir="/store/wal", data_dir="/store/data")
    with Refusing(2) as executor:
        again = mmwal.CrashRecoveryManager(config, executor=executor, disk=simulated.kill()).recover()
    assert contents(again) == held
    assert again.recovery_stats.workers == 1
    assert any("SimulatedDisk can be used by the caller alone" in note for note in again.recovery_stats.notes)


def test_a_pool_of_its_own_is_ended() -> None:
    with Workers(PosixDisk(), 2, processes=True) as workers:
        executor = workers._pool(2)
        assert executor is not None
        assert executor.submit(int, "7").result() == 7
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(int, "7")


UNGUARDED = textwrap.dedent(
    """
    import sys, warnings
    import mmwal
    print("the script runs")
    warnings.simplefilter("ignore")
    root, workers = sys.argv[1], int(sys.argv[2])
    if workers:
        config = mmwal.RecoveryConfig(wal_dir=root + "/wal", data_dir=root + "/data", workers=workers)
        store = mmwal.CrashRecoveryManager(config).recover()
    else:
        store = mmwal.open(root)
    print(len(store), store.recovery_stats.bytes_scanned > 64 << 20)
    print(store.recovery_stats.workers, [note for note in store.recovery_stats.notes if "worker" in note])
    store.close()
    """
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A killed store whose log holds more than 64 MB, nothing of it checkpointed."""
    path = tmp_path_factory.mktemp("large") / "store"
    program = (
        "import sys, os, time, numpy as np, mmwal\n"
        "store = mmwal.open(sys.argv[1], dimension=256, segment_size=8 << 20, checkpoint_interval=None)\n"
        "for start in range(0, 70_000, 1000):\n"
        "    store.insert_many(range(start, start + 1000), np.full((1000, 256), start, np.float32))\n"
        "store.sync()\n"
        "until = time.monotonic() + 60\n"
        "while store.wal.get_metrics().rotations < 8 and time.monotonic() < until:\n"  # what is not sealed, one scans
        "    time.sleep(0.01)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    yield path
    shutil.rmtree(path)


def run_unguarded(large: Path, tmp_path: Path, workers: int) -> list[str]:
    script, copy = tmp_path / "service.py", tmp_path / "copy"
    script.write_text(UNGUARDED)
    shutil.copytree(large, copy)
    command = [sys.executable, str(script), str(copy), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.splitlines()


def test_unguarded_script_opens_a_large_killed_store(large: Path, tmp_path: Path) -> None:
    said = run_unguarded(large, tmp_path, 0)
    threads = min(max(usable_cores(), 4), 16) if mmwal.kernel_in_use() == "c" else 1
    assert said == ["the script runs", "70000 True", f"{threads} []"]


def test_unguarded_script_that_asks_for_processes_recovers_all_the_same(large: Path, tmp_path: Path) -> None:
    said = run_unguarded(large, tmp_path, 2)  # each process runs the script again, is refused the lock, and ends
    assert "70000 True" in said
    assert "a worker of the recovery died" in said[-1]
