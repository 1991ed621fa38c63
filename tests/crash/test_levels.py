"""What a returned write survives, by the level that its caller asked for: the rows of docs/durability.md, one by one.

The power cut is simulated: some of the images that it may leave, and the worst one, in which nothing unsynced is left.
The kill is real. At each level the write is of every kind: a row, a batch, a transaction.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.testing.simulator import SimulatedDisk
from tests.log.logs import NOTHING_UNSYNCED, child
from tests.log.logs import vector as log_vector
from tests.store.stores import close_quietly, config, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

HOUR = 3_600_000


@dataclass(frozen=True)
class Level:
    """How a write is asked for, how its caller waits, and whether it survives a power cut as soon as that returns."""

    sync_interval_ms: int
    durable: bool | None
    wait: Callable[[Any, int], object] = lambda handle, lsn: None
    survives_power: bool = True


LEVELS = {
    "no wait, interval 0": Level(0, None, survives_power=False),
    "no wait, interval N": Level(HOUR, None, survives_power=False),
    "interval N": Level(HOUR, False, survives_power=False),
    "interval 0": Level(0, False),
    "durable=True": Level(HOUR, True),
    "sync()": Level(HOUR, False, lambda handle, lsn: handle.sync()),
    "no wait, then sync()": Level(0, None, lambda handle, lsn: handle.sync()),
    "wait_durable()": Level(0, None, lambda handle, lsn: handle.wait_durable(lsn)),
    "receipt": Level(0, None, lambda handle, lsn: handle.receipt(lsn).wait()),
}


def to_store(store: mmwal.VectorStore, durable: bool | None) -> int:
    """Writes of every kind; returns the last LSN."""
    store.insert("row", vector(1), durable=durable)
    store.update("row", vector(2), durable=durable)
    store.insert_many(["many", "gone"], rows([3, 4]), durable=durable)
    store.delete("gone", durable=durable)
    txn = store.transaction()
    txn.insert("txn", vector(5))
    txn.insert("txn too", vector(6))
    return txn.commit(durable=durable)


WRITTEN_TO_STORE = {"row": 2, "many": 3, "txn": 5, "txn too": 6}


def to_log(wal: mmwal.WalManager, durable: bool | None) -> int:
    """The same to a log."""
    wal.log_insert("row", log_vector(1), durable=durable)
    wal.log_update("row", log_vector(2), durable=durable)
    wal.log_batch(["many", "gone"], [log_vector(3), log_vector(4)], durable=durable)
    wal.log_delete("gone", durable=durable)
    txn = wal.begin_transaction()
    txn.log_insert("txn", log_vector(5))
    txn.log_insert("txn too", log_vector(6))
    return txn.commit(durable=durable)


WRITTEN_TO_LOG = ["row", "row", "many", "gone", "gone", "txn", "txn too"]


def in_store(disk: SimulatedDisk, kernel: Any) -> dict[Any, float]:
    """What a store on a disk holds."""
    store = mmwal.open(config=config("/store", kernel), disk=disk)
    found = {id: float(store[id][0]) for id in store}
    close_quietly(store)
    return found


def in_log(wal: mmwal.WalManager) -> list[Any]:
    """The ids of the rows of a log, in order."""
    found: list[Any] = []
    for entry in wal.replay():
        found += (
            entry.ids if entry.kind == "batch" else [entry.id] if entry.kind in ("insert", "update", "delete") else []
        )
    return found


def log_config(kernel: Any, **fields: Any) -> mmwal.WalConfig:
    return mmwal.WalConfig(wal_dir="/wal", segment_size=64 << 10, dimension=16, kernel=kernel.NAME, **fields)


def rest(disk: SimulatedDisk, handle: Any) -> None:
    """Lets the workers of a handle finish, so that an hour of its interval begins."""
    handle.sync()
    while disk.run_workers():
        pass


@pytest.mark.parametrize("name", LEVELS)
def test_level_of_a_store(kernel: Any, name: str) -> None:
    level, disk = LEVELS[name], SimulatedDisk()
    store = mmwal.open(config=config("/store", kernel, sync_interval_ms=level.sync_interval_ms), disk=disk)
    store.insert("before", vector(0), durable=True)
    rest(disk, store)
    with pytest.raises(KeyError, match="an exception"):  # of the program, after the write has returned
        write(to_store, store, level)
    before, after = {"before": 0.0}, {"before": 0.0, **WRITTEN_TO_STORE}
    assert in_store(disk.kill(), kernel) == after
    assert in_store(disk.image(NOTHING_UNSYNCED), kernel) == (after if level.survives_power else before)
    for choice in disk.images(random.Random(name), 6):
        found = in_store(disk.image(choice), kernel)
        assert found == after or not level.survives_power
        assert found.items() <= {**after, "row": found.get("row"), "gone": 4.0}.items()
        assert ("txn" in found) == ("txn too" in found)
    store.close()  # the program handled it and goes on
    assert in_store(disk.image(NOTHING_UNSYNCED), kernel) == after


@pytest.mark.parametrize("name", LEVELS)
def test_level_of_a_log(kernel: Any, name: str) -> None:
    level, disk = LEVELS[name], SimulatedDisk()
    wal = mmwal.WalManager(log_config(kernel, sync_interval_ms=level.sync_interval_ms), disk=disk)
    wal.log_insert("before", log_vector(0), durable=True)
    rest(disk, wal)
    with pytest.raises(KeyError, match="an exception"):
        write(to_log, wal, level)
    after = ["before", *WRITTEN_TO_LOG]
    assert in_log(mmwal.WalManager(log_config(kernel), disk=disk.kill())) == after
    worst = in_log(mmwal.WalManager(log_config(kernel), disk=disk.image(NOTHING_UNSYNCED)))
    assert worst == (after if level.survives_power else ["before"])
    for choice in disk.images(random.Random(name), 6):
        found = in_log(mmwal.WalManager(log_config(kernel), disk=disk.image(choice)))
        assert found == (after if level.survives_power else after[: len(found)])
        assert len(found) != len(after) - 1, "half a transaction"
    wal.close()
    assert in_log(mmwal.WalManager(log_config(kernel), disk=disk.image(NOTHING_UNSYNCED))) == after


def write(act: Callable[[Any, bool | None], int], handle: Any, level: Level) -> None:
    level.wait(handle, act(handle, level.durable))
    raise KeyError("an exception")


KILLED = """
import mmwal
from tests.crash.test_levels import LEVELS, to_log, to_store
from tests.store.stores import config as store_config
level = LEVELS[args[0]]
if args[1] == "store":
    handle = mmwal.open(config=store_config(wal_dir, kernel, sync_interval_ms=level.sync_interval_ms))
else:
    handle = WalManager(config(wal_dir, kernel, sync_interval_ms=level.sync_interval_ms))
level.wait(handle, (to_store if args[1] == "store" else to_log)(handle, level.durable))
die()
"""


@pytest.mark.parametrize("name", [name for name in LEVELS if LEVELS[name].wait is Level.wait])
@pytest.mark.parametrize("what", ["store", "log"])
def test_level_survives_a_real_kill(tmp_path: Path, kernel: Any, what: str, name: str) -> None:
    child(KILLED, tmp_path, kernel, name, what, killed=True)
    if what == "store":
        with mmwal.open(config=config(tmp_path, kernel)) as store:
            assert {id: float(store[id][0]) for id in store} == WRITTEN_TO_STORE
    else:
        with mmwal.WalManager.new_from_path(tmp_path) as wal:
            assert in_log(wal) == WRITTEN_TO_LOG
