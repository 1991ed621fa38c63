"""Fixtures of the store's tests, also for the rooms that open whole stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.disk.posix import PosixDisk
from mmwal.opening import open_store as open_configured
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import close_quietly, config

OpenStore = Callable[..., mmwal.VectorStore]


@pytest.fixture(params=["posix", "simulated"])
def disk(request: pytest.FixtureRequest) -> Any:
    """The real disk and the simulated one."""
    return PosixDisk() if request.param == "posix" else SimulatedDisk()


@pytest.fixture
def simulated() -> SimulatedDisk:
    return SimulatedDisk()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory of the store on the real disk."""
    return tmp_path / "store"


@pytest.fixture
def open_store(root: Path, kernel: Any) -> Iterator[OpenStore]:
    """Open a store in `root`, or in /store of a given simulated disk; what is open at the end is closed."""
    opened: list[mmwal.VectorStore] = []

    def open_one(*, path: Any = None, disk: Any = None, **fields: Any) -> mmwal.VectorStore:
        simulated = isinstance(disk, SimulatedDisk)
        place = path or ("/store" if simulated else root)
        store = open_configured(config(place, kernel, **fields), disk or PosixDisk())
        opened.append(store)
        if simulated and store._state is not None:
            store._state.lock = SimulatedMutex()  # type: ignore[assignment]  # workers run on this thread's stack
        return store

    yield open_one
    for store in opened:
        close_quietly(store)
