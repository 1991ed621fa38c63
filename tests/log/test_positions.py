"""LSNs: what they are, that they only grow, and the order of the log's positions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmwal.format.segment import DATA_OFFSET, data_start
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import NOTHING_UNSYNCED, ROOM, SEGMENT, assert_ordered, child, fill, ids, reserved, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_lsn_is_the_position_just_past_the_frame(open_wal: OpenWal) -> None:
    wal = open_wal()
    assert wal.last_lsn == data_start(0, SEGMENT) == DATA_OFFSET
    first = wal.log_insert("a", vector(1))  # 64 of header, 64 of vector, 4 + 1 of id, padded
    assert type(first) is int
    assert first == DATA_OFFSET + 192 == wal.last_lsn == reserved(wal)
    assert wal.log_delete("a") == first + 128
    assert_ordered(wal)


def test_lsns_strictly_increase_over_all_kinds_of_entries(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsns = [
        wal.log_insert("a", vector(1)),
        wal.log_update("a", vector(2), {"k": 1}),
        wal.log_update("a", metadata={"k": 2}),
        wal.log_delete("a"),
        wal.log_batch(["b", 7], np.ones((2, 16), np.float32)),
        wal.log_batch(["b", 7], operation="delete"),
    ]
    assert lsns == sorted(set(lsns))
    assert_ordered(wal)


def test_lsns_increase_across_a_clean_close(open_wal: OpenWal, wal_dir: Path) -> None:
    last = 0
    for _ in range(4):
        wal = open_wal()
        assert wal.last_lsn >= last
        assert_ordered(wal)
        lsns = fill(wal, 100)
        assert lsns[0] > last
        assert lsns == sorted(set(lsns))
        last = lsns[-1]
        assert_ordered(wal)
        wal.close()
        assert wal.durable_lsn >= last
        assert_ordered(wal)
    assert open_wal().recovery_stats.clean_shutdown


def test_clean_close_goes_on_at_the_very_position(open_wal: OpenWal) -> None:
    wal = open_wal()
    last = fill(wal, 3)[-1]
    wal.close()
    assert open_wal().log_insert("next", vector(0)) == last + 192


def test_lsns_increase_after_kill_and_what_was_returned_is_there(open_wal: OpenWal, wal_dir: Path, kernel: Any) -> None:
    code = """
wal = WalManager(config(wal_dir, kernel))
print(*fill(wal, 700))
print(wal.durable_lsn)
die()
"""
    lsns, (durable,) = [[int(word) for word in line.split()] for line in child(code, wal_dir, kernel, killed=True)]
    assert durable <= lsns[-1]
    wal = open_wal()
    assert not wal.recovery_stats.clean_shutdown
    assert [entry.lsn for entry in wal.replay()] == lsns
    assert wal.durable_lsn >= lsns[-1]
    assert wal.log_insert("next", vector(0)) > lsns[-1]
    assert_ordered(wal)


def test_close_makes_unsynced_entries_durable(open_wal: OpenWal) -> None:
    disk = SimulatedDisk(seed=3)
    wal = open_wal(disk=disk)
    last = fill(wal, 900)[-1]
    wal.close()
    assert wal.durable_lsn >= last
    after_power_loss = open_wal(disk=disk.image(NOTHING_UNSYNCED))
    assert ids(after_power_loss) == [f"id-{i}" for i in range(900)]
    assert after_power_loss.recovery_stats.clean_shutdown


def test_positions_keep_their_order_through_rotation_and_release(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=1)
    for i in range(3000):
        lsn = wal.log_insert(i, vector(i))
        if i % 100 == 0:
            assert_ordered(wal)
        if i % 500 == 499:
            wal.release(lsn)
            assert_ordered(wal)
    wal.sync()
    assert_ordered(wal)


def test_release_of_what_is_not_durable_makes_it_durable(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsn = fill(wal, 1000)[-1]
    wal.release(lsn)
    assert wal.durable_lsn >= lsn == wal.oldest_lsn
    assert_ordered(wal)


def test_release_of_a_position_that_does_not_exist_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsn = fill(wal, 1)[0]
    with pytest.raises(ValueError, match="does not exist yet"):
        wal.release(lsn + 64)
    assert wal.oldest_lsn == DATA_OFFSET


def test_positions_keep_their_order_when_a_segment_is_full_to_the_brim(open_wal: OpenWal) -> None:
    wal = open_wal(dimension=None)
    wal.log_insert("a", np.ones((ROOM - 256) // 4, np.float32))
    lsn = wal.log_delete("a")
    assert lsn == DATA_OFFSET + ROOM == SEGMENT - 512
    assert_ordered(wal)
    wal.close()
    again = open_wal(dimension=None)
    assert again.recovery_stats.clean_shutdown
    assert again.last_lsn >= lsn
    assert again.log_delete("a") > lsn
    assert_ordered(again)
    assert ids(again) == ["a", "a", "a"]
