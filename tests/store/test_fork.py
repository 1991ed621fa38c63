"""A forked child: every use of the handle is refused there, and the parent and its files are unharmed."""

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.errors import ForkedProcessError
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import contents, digests, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def in_child(act: Callable[[], None]) -> str:
    """Runs it in a forked child; returns "" or what went wrong there."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork with threads
        pid = os.fork()
    if not pid:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (told to the parent)
            os.write(send, repr(error).encode())
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as told:
        problem = told.read().decode()
    os.waitpid(pid, 0)
    return problem


def refuse_everything(store: mmwal.VectorStore) -> None:
    for use in (
        lambda: store.insert("b", vector(2)),
        lambda: store.insert("a", vector(2)),
        lambda: store.update("a", vector(2)),
        lambda: store.upsert("a", vector(2)),
        lambda: store.delete("a"),
        lambda: store.insert_many(["b"], rows([1])),
        lambda: store.delete_many(["a"]),
        store.sync,
        store.checkpoint,
        lambda: store.get("a"),
        lambda: store.get_many(["a"]),
        lambda: store.search(vector(1)),
    ):
        with pytest.raises(ForkedProcessError):
            use()


def test_child_is_refused_and_the_parent_goes_on(open_store: Any, root: Path) -> None:
    store = open_store(sync_interval_ms=0)
    store.insert("a", vector(1))
    before = digests(root / "data")
    assert in_child(lambda: refuse_everything(store)) == ""
    assert digests(root / "data") == before
    store.insert("b", vector(2))
    assert store.checkpoint().live_rows == 2
    expected = contents(store)
    store.close()
    assert contents(open_store()) == expected


def test_child_that_closes_the_store_changes_nothing(open_store: Any, root: Path) -> None:
    store = open_store()
    store.insert("a", vector(1))
    store.sync()
    before = digests(root / "data")

    def close() -> None:
        with store:
            pass
        store.close()

    assert in_child(close) == ""
    assert digests(root / "data") == before
    with pytest.raises(mmwal.WalLockedError):
        open_store()
    store.insert("b", vector(2))
    store.close()
    again = open_store()
    assert again.ids() == ["a", "b"] and again.recovery_stats.clean_shutdown


def test_child_of_a_store_that_another_thread_is_writing_to_does_not_hang(open_store: Any) -> None:
    store = open_store()
    store.insert("a", vector(1))
    with store._state.lock:  # as a thread of the parent may hold it at the fork
        waiting = threading.Thread(target=lambda: store.insert("b", vector(2)))
        waiting.start()
        assert in_child(lambda: refuse_everything(store)) == ""
    waiting.join()
    assert store.ids() == ["a", "b"]


def test_child_of_a_store_without_a_dimension_creates_nothing(open_store: Any, root: Path) -> None:
    store = open_store(dimension=...)

    def write() -> None:
        with pytest.raises(ForkedProcessError):
            store.insert("a", vector(1))
        with pytest.raises(ForkedProcessError):
            store.upsert_many(["a"], rows([1]))

    assert in_child(write) == ""
    assert os.listdir(root / "data") == []
    store.insert("a", vector(1))


def test_simulated_fork_refuses_too(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1))
    simulated.fork()
    before = simulated.digest()
    refuse_everything(store)
    store.close()
    assert simulated.digest() == before
