"""A point in the past: the state as of a position, which position a time means, and what is refused."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.disk.posix import PosixDisk
from mmwal.errors import WalConfigError, WalCorruptionError
from mmwal.format.segment import DATA_OFFSET
from mmwal.log.segment import segment_name
from mmwal.opening import open_store as open_configured
from mmwal.recovery.read_only import lock_for_reading, read_log
from mmwal.recovery.target import position_at
from mmwal.testing.simulator import SimulatedDisk
from tests.recovery.test_recover import mixed_writes
from tests.store.fixtures import disk, open_store, root, simulated
from tests.store.stores import config, contents, digests, rows, vector

__all__ = ["disk", "open_store", "root", "simulated"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

SECOND = 1_000_000_000
NOON = 1_800_000_000 * SECOND


def as_of(disk: Any, kernel: Any, lsn: int, place: Any = "/store", **fields: Any) -> Any:
    """What a store held at a position."""
    with open_configured(config(place, kernel, **fields), disk, read_only=True, until_lsn=lsn) as store:
        assert store.recovery_stats.last_lsn == lsn
        return contents(store)


def end_of(store: mmwal.VectorStore) -> int:
    return int(store.wal.get_metrics().published_lsn)


def time_of(disk: Any, kernel: Any, time_ns: int) -> int:
    locks = lock_for_reading(disk, "/store/wal", "/store/data")
    try:
        return position_at(kernel, read_log(disk, kernel, "/store/wal"), time_ns)
    finally:
        for lock in locks:
            lock.release()


@pytest.mark.parametrize("killed", [False, True], ids=["live", "killed"])
@pytest.mark.parametrize("seed", range(3))
def test_each_position_gives_what_the_store_held_then(
    open_store: Any, simulated: SimulatedDisk, kernel: Any, seed: int, killed: bool
) -> None:
    store = open_store(disk=simulated)
    history = []
    for round in range(40):
        mixed_writes(store, 4, seed * 100 + round)
        if round in (8, 20, 30):
            store.checkpoint()
        history.append((end_of(store), contents(store)))
    older, newer = history[20][0], history[30][0]
    end = history[-1][0]
    seen = simulated.kill() if killed else simulated
    reachable = [moment for moment in history if moment[0] >= older]
    assert reachable[0][0] < newer < end
    for lsn, expected in reachable:
        assert as_of(seen, kernel, lsn) == expected
    rng = random.Random(seed)
    for (lsn, expected), (later, _) in itertools.pairwise(reachable[1:]):
        assert as_of(seen, kernel, lsn + 1) == expected  # in the middle of the next entry
        position = rng.randrange(lsn, later)  # the writes of a round are not recorded one by one
        assert {row[2] for row in as_of(seen, kernel, position).values()} <= set(range(position + 1))


def test_position_at_a_checkpoint_and_one_before_it(open_store: Any, simulated: SimulatedDisk, kernel: Any) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1))
    first = store.checkpoint().lsn
    store.insert("b", vector(2))
    store.update("a", vector(3))
    before = contents(store)
    second = store.checkpoint().lsn
    store.delete("a")
    assert set(as_of(simulated, kernel, first)) == {"a"}
    assert as_of(simulated, kernel, second) == before
    assert set(as_of(simulated, kernel, second - 1)) == {"a", "b"}  # from the older slot: the row of "a" is still there
    assert as_of(simulated, kernel, second - 1)["a"][0] == vector(1).tobytes()


def test_transaction_counts_by_its_commit(open_store: Any, simulated: SimulatedDisk, kernel: Any) -> None:
    store = open_store(disk=simulated, dimension=64)
    alone = store.insert("a", vector(1, 64))
    lsn = store.insert_many(range(700), rows(range(700), 64))  # several segments
    whole = contents(store)
    assert len(whole) == 701
    for position in (alone, (alone + lsn) // 2, lsn - 1):
        assert set(as_of(simulated, kernel, position, dimension=64)) == {"a"}
    assert as_of(simulated, kernel, lsn, dimension=64) == whole


def test_positions_out_of_reach_are_refused_with_the_nearest(
    open_store: Any, simulated: SimulatedDisk, kernel: Any
) -> None:
    store = open_store(disk=simulated)
    redo = []
    for n in range(3):
        store.insert(n, vector(n))
        redo.append(store.checkpoint().lsn)
    store.insert("last", vector(9))
    end = end_of(store)
    with pytest.raises(WalConfigError, match=f"LSN {redo[1]}, and what was before is gone") as error:
        as_of(simulated, kernel, redo[1] - 1)
    assert (error.value.field, error.value.value) == ("target", redo[1] - 1)
    with pytest.raises(WalConfigError, match=f"the log ends at LSN {end}"):
        as_of(simulated, kernel, end + 1)
    assert set(as_of(simulated, kernel, redo[1])) == {0, 1}
    assert set(as_of(simulated, kernel, end)) == {0, 1, 2, "last"}


def test_damage_behind_the_position_does_not_matter(open_store: Any, root: Path, kernel: Any) -> None:
    store = open_store()
    lsns = [store.insert(n, vector(n), {"pad": "x" * 3000}) for n in range(80)]
    store.close()
    numbers = sorted((root / "wal").glob("segment-*"))
    assert len(numbers) > 4
    # Undo the checkpoint of the close: the log is all there is.
    for path in (root / "data").iterdir():
        path.unlink()
    content = bytearray(numbers[3].read_bytes())
    content[DATA_OFFSET + 100] ^= 1
    numbers[3].write_bytes(content)
    before = digests(root)
    assert set(as_of(PosixDisk(), kernel, lsns[10], root)) == set(range(11))
    with pytest.raises(WalCorruptionError):
        as_of(PosixDisk(), kernel, lsns[79], root)
    assert digests(root) == before


# -- times


def test_time_means_the_position_before_the_first_later_entry(
    open_store: Any, simulated: SimulatedDisk, kernel: Any
) -> None:
    simulated.set_time_ns(NOON)
    store = open_store(disk=simulated)
    lsns = []
    for n, seconds in enumerate([0, 10, 5, 10, 20]):  # the clock was set back at the third
        simulated.set_time_ns(NOON + seconds * SECOND)
        lsns.append(store.insert(n, vector(n)))
    expected = {-1: set(), 0: {0}, 9: {0}, 10: {0, 1, 2, 3}, 19: {0, 1, 2, 3}, 20: {0, 1, 2, 3, 4}, 99: {0, 1, 2, 3, 4}}
    for seconds, ids in expected.items():
        lsn = time_of(simulated, kernel, NOON + seconds * SECOND + SECOND // 2)
        assert set(as_of(simulated, kernel, lsn)) == ids, seconds
    assert time_of(simulated, kernel, NOON + 5 * SECOND + SECOND // 2) == lsns[0]


def test_time_before_all_that_is_left_is_refused(open_store: Any, simulated: SimulatedDisk, kernel: Any) -> None:
    simulated.set_time_ns(NOON)
    store = open_store(disk=simulated, dimension=64)
    for _ in range(3):
        store.upsert_many(range(300), rows(range(300), 64))
        store.checkpoint()
        simulated.run_workers()
    simulated.set_time_ns(NOON + 60 * SECOND)
    lsn = store.insert("late", vector(1, 64))
    assert not simulated.exists(f"/store/wal/{segment_name(0)}")
    with pytest.raises(WalConfigError, match="what was before is gone"):
        time_of(simulated, kernel, NOON - SECOND)
    assert time_of(simulated, kernel, NOON + 61 * SECOND) >= lsn
