"""The fault sweep: a sample over all operations on both kernels, its checks seen to fail, and no public call left out.

`tools/sweep.py` does all of it.
"""

from __future__ import annotations

import errno
import inspect
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import mmwal
import mmwal.kernel
from mmwal.checkpoint.checkpoint import Checkpointer
from mmwal.errors import CheckpointFailedError, SyncFailedError
from mmwal.log.gate import PythonGate
from mmwal.log.keeper import Keeper
from mmwal.log.log import Log
from mmwal.manager import StoreWal
from mmwal.opening import open_store
from mmwal.state.matrix import Matrix
from mmwal.store import ReadOnlyStore
from mmwal.testing.faults import Fault
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.sweep import EVENTS, PLAUSIBLE, Case, Failure, Order, Sweep, Trial
from mmwal.testing.sweep_cases import CLOSED_SITUATIONS, OPEN_SITUATIONS, OPERATIONS
from tests.conftest import _require_compiled_kernel
from tests.store.stores import config, vector
from tools.sweep import FAULT_KINDS, covered

SEED = 8


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Automatic checkpoints that fail say so."""
    logger = logging.getLogger("mmwal")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


# ---- the sample


def sample(kernel: str) -> list[Case]:
    """One situation of each operation, another for each kernel."""
    rng = random.Random(f"{SEED} {kernel}")
    return [Case(operation, rng.choice(list(operation.situations()))) for operation in OPERATIONS]


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kernel", ["c", "py"])
def test_failing_call_loses_nothing_and_lies_about_nothing(kernel: str, part: int) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    sweep = Sweep(kernel)
    rng = random.Random(f"{SEED} {kernel} {part}")
    for case in sample(kernel)[part::4]:
        trials = list(sweep.trials(case))
        for trial in rng.sample(trials, min(len(trials), 1)):
            sweep.run(trial)
    assert sweep.struck >= 6
    assert sweep.recoveries >= 20


# ---- no public call is left out

NO_DISK: dict[str, Callable[[mmwal.VectorStore], Any]] = {
    "get": lambda store: store.get("a"),
    "get_many": lambda store: store.get_many(["a", "z"]),
    "ids": lambda store: store.ids(),
    "batches": lambda store: list(store.batches()),
    "matrix": lambda store: store.matrix,
    "dimension": lambda store: store.dimension,
    "dtype": lambda store: store.dtype,
    "search": lambda store: store.search(np.ones(8, np.float32)),
    "search_batch": lambda store: store.search_batch(np.ones((2, 8), np.float32)),
    "durable_lsn": lambda store: store.durable_lsn,
    "recovery_stats": lambda store: store.recovery_stats,
    "list_in_doubt": lambda store: store.list_in_doubt(),
    "failed": lambda store: store.failed,
    "changed": lambda store: store.changed,
    "ready": lambda store: store.ready,
    "__getitem__": lambda store: store["a"],
    "__contains__": lambda store: "a" in store,
    "__len__": lambda store: len(store),
    "__iter__": lambda store: list(store),
    "__repr__": lambda store: repr(store),
    "__enter__": lambda store: store.__enter__(),
    "wal.durable_lsn": lambda store: store.wal.durable_lsn,
    "wal.last_lsn": lambda store: store.wal.last_lsn,
    "wal.oldest_lsn": lambda store: store.wal.oldest_lsn,
    "wal.recovery_stats": lambda store: store.wal.recovery_stats,
    "wal.get_metrics": lambda store: store.wal.get_metrics(),
    "wal.__enter__": lambda store: store.wal.__enter__(),
}
FOR_OPENING = {  # not for users
    *(
        "quiesce",
        "pinned_lsn",
        "log_prepared",
        "on_close",
        "on_verify",
        "end_checkpoints",
        "end",
        "end_in_child",
        "settle",
    )
}
REFUSED = {  # they raise before they touch anything; tests/store and tests/opening hold that
    *(f"ReadOnlyStore.{name}" for name in vars(ReadOnlyStore) if not name.startswith("_")),
    *(
        f"StoreWal.{name}"
        for name in ("log_insert", "log_update", "log_delete", "log_batch", "log_entry", "begin_transaction", "release")
    ),
    "WalManager.checkpoint",
}
PURE = {
    "kernel_in_use",
    "register_entry",
    "apply_entry",
    "CrashRecoveryManager.get_recovery_stats",
}  # no disk: the store's calls do it


def public_calls() -> set[str]:
    """Every public callable and property, by class."""
    found = {name for name in mmwal.__all__ if inspect.isfunction(getattr(mmwal, name))}
    for kind in (mmwal.VectorStore, mmwal.WalManager, StoreWal, ReadOnlyStore, mmwal.CrashRecoveryManager):
        for name, value in vars(kind).items():
            special = name.startswith("__") and name not in ("__init__", "__module__", "__doc__")
            if (not name.startswith("_") or special) and (
                callable(value) or isinstance(value, (property, classmethod))
            ):
                found.add(f"{kind.__name__}.{name}")
    return found - {f"VectorStore.{name}" for name in FOR_OPENING}


def test_every_public_call_is_swept_or_known_to_need_no_disk() -> None:
    swept = {api for operation in OPERATIONS for api in operation.api}
    quiet = {f"VectorStore.{name}" for name in NO_DISK if "." not in name}
    quiet |= {f"WalManager.{name.removeprefix('wal.')}" for name in NO_DISK if name.startswith("wal.")}
    assert public_calls() - swept - quiet - REFUSED - PURE == set()


def test_names_of_what_is_swept_are_those_of_public_calls() -> None:
    inherited = {f"{kind.__name__}.{name}" for kind in (StoreWal, ReadOnlyStore) for name in dir(kind)}
    swept = {api for operation in OPERATIONS for api in operation.api}
    assert swept - public_calls() - inherited == {"WalManager"}


@pytest.mark.parametrize("name", NO_DISK)
def test_call_without_disk_calls_none(name: str, py_store: tuple[SimulatedDisk, Any]) -> None:
    disk, store = py_store
    order = Order("every", 1, errno.EIO, True, disk=disk)
    order.kind = "EIO"
    disk.faults[:] = [order]
    NO_DISK[name](store)
    assert order.trace == []


@pytest.fixture
def py_store() -> tuple[SimulatedDisk, Any]:
    disk = SimulatedDisk()
    store = open_store(config("/store", mmwal.kernel.load("py")), disk)
    store.insert("a", vector(1), {"n": 1})
    return disk, store


def test_every_situation_is_used_and_every_call_of_the_disk_can_fail() -> None:
    used = {(operation.what, name) for operation in OPERATIONS for name in operation.situations()}
    spare = {("store", "cut old"), ("log", "cut old"), ("log", "cut sectors")}  # for --thorough runs by name
    every = {
        (what, name) for table in (OPEN_SITUATIONS, CLOSED_SITUATIONS) for what, made in table.items() for name in made
    }
    assert every - used == spare
    assert all(hasattr(errno, kind) for kinds in PLAUSIBLE.values() for kind in kinds)


def test_table_of_kinds_names_what_covers_each() -> None:
    assert len(FAULT_KINDS) == 31
    here = {kind.name for kind in FAULT_KINDS if kind.swept}
    assert {name for name, cover in covered({}).items() if cover is None} <= here
    assert covered({"ENOSPC at spare.wal rename, once": 3})["ENOSPC at rename"] == "sweep: 3"
    assert covered({})["ENOSPC at rename"] is None


# ---- the checks are seen to fail


def failing(monkeypatch: Any, patch: tuple[Any, str, Any], case: str, call: str, kind: str, **options: Any) -> str:
    """Breaks the package, lets a call of a case fail, and returns what the sweep says of it."""
    sweep = Sweep("py")
    (found,) = sweep.cases(case)
    calls = [index for index, made in enumerate(sweep.calls(found), 1) if made.label == call]
    monkeypatch.setattr(*patch)
    failures: list[Failure] = []
    for nth in calls:
        with suppress_failure(failures):
            sweep.run(Trial(found, nth, kind, **options))
        if failures:
            break
    (failure,) = failures
    assert failure.line in str(failure)
    assert sweep.trial(failure.line).kind == kind
    return failure.problem


@contextmanager
def suppress_failure(failures: list[Failure]) -> Iterator[None]:
    """Keeps a failure instead of raising it."""
    try:
        yield
    except Failure as failure:
        failures.append(failure)


def test_forgotten_sync_failure_is_noticed(monkeypatch: Any) -> None:
    problem = failing(
        monkeypatch,
        (PythonGate, "_poison", lambda self, cause: None),
        "store/insert_many large/midlife",
        "spare.wal sync",
        "EIO",
    )
    assert "kill -9 and eviction" in problem


def test_error_of_another_kind_is_noticed(monkeypatch: Any) -> None:
    def refusal(self: Any) -> Exception:
        return AttributeError("_cause")

    problem = failing(monkeypatch, (Log, "refusal", refusal), "store/insert/each durable", "spare.wal sync", "EIO")
    assert "AttributeError is not what it documents" in problem


def test_hidden_cause_is_noticed(monkeypatch: Any) -> None:
    def refusal(self: Any) -> Exception:
        return SyncFailedError(None, 0)

    problem = failing(monkeypatch, (Log, "refusal", refusal), "log/sync/each durable", "spare.wal sync", "EIO")
    assert "hides its cause" in problem


def test_leak_is_noticed(monkeypatch: Any) -> None:
    problem = failing(
        monkeypatch,
        (Matrix, "close", lambda self: None),
        "store/insert/fresh",
        "control.tmp create",
        "EMFILE",
    )
    assert "still held" in problem and "matrix" in problem


def test_dead_worker_is_noticed(monkeypatch: Any) -> None:
    def fail(self: Any, error: BaseException) -> BaseException:
        return error

    problem = failing(
        monkeypatch, (Checkpointer, "_fail", fail), "store/background/checkpoint due", "matrix sync", "EIO"
    )
    assert "a worker ended by" in problem


def test_endless_retry_is_noticed(monkeypatch: Any) -> None:
    def retry(self: Any, number: int, previous: Any) -> Any:
        while True:
            try:
                return prepare(self, number, previous)
            except OSError:
                continue

    prepare = Keeper._prepare
    problem = failing(
        monkeypatch, (Keeper, "_prepare", retry), "log/background/fresh", "spare.wal create", "ENOSPC", forever=True
    )
    assert "Endless" in problem


# ---- faults of the disk


def test_write_that_fails_has_written_as_much_as_ordered() -> None:
    for part, left in ((0.0, 0), (0.5, 4), (1.0, 8)):
        disk = SimulatedDisk()
        disk.make_directory("/d")
        file = disk.create("/d/file")
        disk.faults.append(Fault("write", 1, errno.ENOSPC, False, written=part))
        with pytest.raises(OSError, match="ENOSPC"):
            file.write(0, b"12345678")
        assert file.size() == left


def test_rare_calls_fail_by_name_only() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/d")
    disk.create("/d/file")
    disk.fail("any", forever=True)
    assert disk.exists("/d/file")
    assert not disk.has_readers("/d/file")
    for call in (lambda: disk.exists("/d"), lambda: disk.has_readers("/d/file"), lambda: disk.start_worker("w", int)):
        disk.faults.clear()
        for name in ("exists", "has_readers", "start_worker"):
            disk.fail(name)
        with pytest.raises(OSError, match="injected"):
            call()


def test_disk_tells_what_is_still_held() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/d")
    file, lock, worker = disk.create("/d/file"), disk.lock("/d/lock"), disk.start_worker("w", lambda: None)
    assert disk.held() == {"open files": ["/d/file"], "writer's locks": ["2"], "workers": ["w"]}
    for end in (file.close, lock.release, worker.stop):
        end()
    assert disk.held() == {}


def test_events_are_no_errors() -> None:
    disk = SimulatedDisk()
    for kind in EVENTS:
        order = Order("every", 1, None, False, disk=disk)
        order.kind = kind
        before = disk._clock.time_ns
        assert not order.strikes("sync", "file sync", True)
        assert abs(disk._clock.time_ns - before) >= 10**9


# ---- what the sweep found, one by one


def test_failed_first_write_leaves_no_worker_and_no_open_matrix() -> None:
    disk = SimulatedDisk()
    store = open_store(config("/store", mmwal.kernel.load("py"), dimension=...), disk)
    held = disk.held()
    for _ in range(3):
        disk.fail("control.tmp create", errno=errno.EMFILE)
        with pytest.raises(OSError, match="EMFILE"):
            store.insert("a", vector(1))
    assert disk.held() == held
    store.insert("a", vector(1))
    store.close()
    assert disk.held() == {}


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_thread_that_cannot_start_leaves_nobody_at_work_on_an_unlocked_directory(nth: int) -> None:
    disk = SimulatedDisk()
    fault = disk.fail("start_worker", nth, errno.EAGAIN)
    with pytest.raises(OSError, match="EAGAIN"):
        open_store(config("/store", mmwal.kernel.load("py")), disk)
    assert fault.hits
    assert disk.held() == {}
    open_store(config("/store", mmwal.kernel.load("py")), disk).close()


def test_descriptor_shortage_does_not_come_out_of_a_batch_larger_than_a_segment() -> None:
    disk = SimulatedDisk()
    store = open_store(config("/store", mmwal.kernel.load("py"), runway_segments=4), disk)
    while disk.run_workers():
        pass
    fault = disk.fail("segment.wal open", errno=errno.EMFILE, forever=True)
    store.insert_many(range(1200), np.ones((1200, 8), np.float32))
    assert len(store) == 1200 and not store.failed and not fault.hits


def test_directory_that_cannot_be_listed_is_a_failed_checkpoint_and_ends_no_worker() -> None:
    disk = SimulatedDisk()
    store = open_store(config("/store", mmwal.kernel.load("py"), checkpoint_interval=2), disk)
    while disk.run_workers():
        pass
    fault = disk.fail("list_directory", errno=errno.EMFILE)
    for number in range(3):
        store.insert(number, vector(number))
    while disk.run_workers():
        pass
    assert fault.hits
    with pytest.raises(CheckpointFailedError, match="EMFILE"):
        store.checkpoint()
    assert len(store) == 3
