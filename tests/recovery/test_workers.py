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
from pathlib import Path
from typing import Any

import pytest

import mmwal
import mmwal.recovery.workers
from mmwal.disk.posix import PosixDisk
from mmwal.errors import RecoveryTimeoutError, WalConfigError, WalCorruptionError
from mmwal.format.segment import DATA_OFFSET
from mmwal.recovery.workers import Workers
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import disk, open_store, root, simulated
from tests.store.stores import DIMENSION, contents, crashed_copy, digests, rows, vector

__all__ = ["disk", "open_store", "root", "simulated"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def killed(open_store: Any, root: Path, tmp_path: Path) -> tuple[Path, Any]:
    """A store that was killed behind a checkpoint: many segments, entries of every kind; and what it held."""
    store = open_store()
    store.insert_many(range(500), rows(range(500)))
    store.checkpoint()
    for n in range(900):
        store.upsert(f"id-{n % 300}", vector(n), {"n": n})
    store.update_many(range(0, 500, 3), rows(range(0, 500, 3)), [{"many": n} for n in range(0, 500, 3)])
    store.update("id-7", None, {"only": "metadata"})
    store.delete_many(range(1, 500, 7))
    store.insert_many([f"new-{n}" for n in range(1500)], rows(range(1500)))
    store.sync()
    store.insert("last", vector(1))  # and this one is not durable yet
    held = contents(store)
    assert len(list((root / "wal").glob("segment-*"))) > 5
    return crashed_copy(root, tmp_path / "killed"), held


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
    assert expected == held and serial.workers == 1
    with pool(kind) as executor:
        found, stats = recover(path, executor, kernel=kernel.NAME)
        assert executor.submit(int, "7").result() == 7  # it was not shut down
    assert found == held
    assert stats.workers == (3 if kind == "threads" else 2)
    counted = ("total_entries", "applied_entries", "skipped_entries", "marker_entries", "bytes_scanned", "last_lsn")
    assert [getattr(stats, name) for name in counted] == [getattr(serial, name) for name in counted]
    assert stats.notes == serial.notes


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


def test_open_uses_threads_only(killed: tuple[Path, Any], kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.recovery.workers, "_THREADS_FROM_BYTES", 1)
    monkeypatch.setattr(mmwal.recovery.workers, "ProcessPoolExecutor", None)
    path, held = killed
    with mmwal.open(path, kernel=kernel.NAME) as store:
        assert (contents(store), store.recovery_stats.workers) == (held, 4 if kernel.NAME == "c" else 1)


def damage(path: Path, number: int, at: int) -> None:
    with (path / "wal" / f"segment-{number:016x}.wal").open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_first_damaged_entry_is_named_whoever_finds_another(killed: tuple[Path, Any]) -> None:
    path, _ = killed
    numbers = sorted(int(file.stem.split("-")[1], 16) for file in (path / "wal").glob("segment-*"))
    for number in numbers[2:5]:
        damage(path, number, DATA_OFFSET + 90)
    errors = []
    with pool("threads") as threads, pool("spawn") as processes:
        for executor in (None, threads, processes):
            before = digests(path)
            with pytest.raises(WalCorruptionError) as raised:
                recover(path, executor, workers=1)
            assert digests(path) == before
            errors.append((raised.value.lsn, raised.value.offset, os.path.basename(str(raised.value.path))))
    assert errors[0] == errors[1] == errors[2]
    assert int(errors[0][2][8:24], 16) == numbers[2]


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
        assert steps == sorted(steps) and steps[-1][0] == steps[-1][1] > 0
    assert all(one.seconds_left is not None and one.seconds_left >= 0 for one in said)
    assert said[0].phase == "verify" and said[-1].phase == "copy"


@pytest.mark.parametrize("kind", [None, "threads", "spawn"])
def test_what_progress_raises_ends_recovery_with_nothing_changed(killed: tuple[Path, Any], kind: str | None) -> None:
    path, held = killed
    before = digests(path)

    def stop(progress: mmwal.RecoveryProgress) -> None:
        raise InterruptedError("enough")

    config = mmwal.RecoveryConfig(wal_dir=path / "wal", data_dir=path / "data")
    executor = pool(kind) if kind else None
    with pytest.raises(InterruptedError, match="enough"):
        mmwal.CrashRecoveryManager(config, executor=executor, progress=stop).recover()
    if executor is not None:
        executor.shutdown()
    assert digests(path) == before
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
    store = mmwal.open(sys.argv[1])
    print(len(store), store.recovery_stats.workers, store.recovery_stats.bytes_scanned > 32 << 20)
    store.close()
    """
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A killed store whose log holds more than 64 MB behind its checkpoint."""
    path = tmp_path_factory.mktemp("large") / "store"
    program = (
        "import sys, os, numpy as np, mmwal\n"
        "store = mmwal.open(sys.argv[1], dimension=256, segment_size=8 << 20)\n"
        "for start in range(0, 70_000, 1000):\n"
        "    store.insert_many(range(start, start + 1000), np.full((1000, 256), start, np.float32))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    yield path
    shutil.rmtree(path)


def test_unguarded_script_opens_a_large_killed_store(large: Path, tmp_path: Path) -> None:
    script, copy = tmp_path / "service.py", tmp_path / "copy"
    script.write_text(UNGUARDED)
    shutil.copytree(large, copy)
    done = subprocess.run([sys.executable, str(script), str(copy)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["the script runs", f"70000 {4 if mmwal.kernel_in_use() == 'c' else 1} True"]
