"""Fixtures of the log's tests, also for the rooms that test whole logs."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmwal.errors import SyncFailedError
from mmwal.manager import WalManager
from tests.log.logs import config

OpenWal = Callable[..., WalManager]


@pytest.fixture
def wal_dir(tmp_path: Path) -> Path:
    return tmp_path / "wal"


@pytest.fixture
def open_wal(wal_dir: Path, kernel: Any) -> Iterator[OpenWal]:
    """Open a log in `wal_dir` with fields of a config; what is still open at the end is closed."""
    opened: list[WalManager] = []

    def open_one(*, path: Any = None, disk: Any = None, **fields: Any) -> WalManager:
        wal = WalManager(config(path or ("/wal" if disk else wal_dir), kernel, **fields), disk=disk)
        opened.append(wal)
        return wal

    yield open_one
    for wal in opened:
        with suppress(SyncFailedError):
            wal.close()
