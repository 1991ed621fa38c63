"""The fixtures of this room: a data directory on the real disk and on the simulated one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmwal.disk.posix import PosixDisk
from mmwal.testing.simulator import SimulatedDisk
from tests.checkpoint.homes import Home


@pytest.fixture(params=["posix", "simulated"])
def disk(request: pytest.FixtureRequest) -> Any:
    return PosixDisk() if request.param == "posix" else SimulatedDisk()


@pytest.fixture
def data_dir(disk: Any, tmp_path: Path) -> str:
    return str(tmp_path / "data") if isinstance(disk, PosixDisk) else "/data"


@pytest.fixture
def home(disk: Any, kernel: Any, data_dir: str) -> Iterator[Home]:
    made = Home.create(disk, kernel, data_dir)
    yield made
    made.close()
