"""The fixtures of this room."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.kernel import load
from mmwal.testing.simulator import SimulatedDisk
from tests.conftest import _require_compiled_kernel
from tests.store.fixtures import disk, open_store, root, simulated
from tests.store.stores import DIMENSION, close_quietly, config

__all__ = ["disk", "open_store", "root", "simulated"]


@pytest.fixture(params=["c-posix", "py-posix", "c-simulated", "py-simulated", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[mmwal.VectorStore]:
    """A new store of dimension 8: durable on either disk with either kernel, and in memory."""
    made: Any
    if request.param == "memory":
        made = mmwal.VectorStore(DIMENSION)
    else:
        name, _, place = request.param.partition("-")
        if name == "c":
            _require_compiled_kernel()
        simulator = SimulatedDisk() if place == "simulated" else None
        made = mmwal.open(config=config("/store" if simulator else tmp_path, load(name)), disk=simulator)
    yield made
    close_quietly(made)
