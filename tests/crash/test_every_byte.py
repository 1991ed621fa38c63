"""A batch of twenty rows and a transaction of twenty operations, cut at every byte: all or none (checklist, item 4)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.log.segment import segment_name
from mmwal.testing.simulator import SimulatedDisk
from mmwal.transaction import HELD_BYTES_MAX, WalTransaction

SEGMENT = 64 << 10
HUGE_INTERVAL = 3_600_000  # nothing is synced by itself


def opened(disk: SimulatedDisk, kernel: Any) -> mmwal.VectorStore:
    config = mmwal.WalConfig(
        wal_dir="/store/wal",
        data_dir="/store/data",
        dimension=4,
        segment_size=SEGMENT,
        max_wal_size=64 * SEGMENT,
        sync_interval_ms=HUGE_INTERVAL,
        kernel=kernel.NAME,
    )
    return mmwal.open(config=config, disk=disk)


def cut(disk: SimulatedDisk, at_lsn: int, end_lsn: int, filler: bytes) -> tuple[SimulatedDisk, bool]:
    """What a power cut leaves that wrote the log up to a byte, behind which stands what the file held before; and
    whether that makes a difference: the padding behind a frame is zero anyway."""
    left = disk.kill()
    file = left.open(f"/store/wal/{segment_name(at_lsn // SEGMENT)}", writable=True)
    size = end_lsn - at_lsn
    old = (filler * (size // len(filler) + 1))[:size]
    differs = file.read(at_lsn % SEGMENT, size) != old
    file.write(at_lsn % SEGMENT, old)
    file.sync()
    file.close()
    return left, differs


@pytest.mark.parametrize("filler", [b"\0", b"\xa5stale"], ids=["zeros", "stale-bytes"])
def test_batch_cut_at_any_byte_is_there_whole_or_not_at_all(kernel: Any, filler: bytes) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    store = opened(disk, kernel)
    before = store.insert_many([1, 2, 3], np.ones((3, 4), np.float32), durable=True)
    vectors = np.arange(80, dtype=np.float32).reshape(20, 4)
    end = store.insert_many([f"row-{i}" for i in range(20)], vectors, [{"n": i} for i in range(20)])
    assert end - before < 1024
    torn = 0
    for at in range(before, end):
        left, differs = cut(disk, at, end, filler)
        again = opened(left, kernel)
        assert len(again) == (3 if differs else 23)
        assert again.ids()[:3] == [1, 2, 3]
        torn += differs
    assert torn > end - before - 64
    whole = opened(disk.kill(), kernel)
    assert len(whole) == 23
    assert (whole["row-19"] == vectors[19]).all()


def test_batch_larger_than_a_segment_cut_anywhere_is_there_whole_or_not_at_all(kernel: Any) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 20)
    store = opened(disk, kernel)
    before = store.insert_many([1, 2, 3], np.ones((3, 4), np.float32), durable=True)
    rows = 2500
    end = store.insert_many([f"row-{i}" for i in range(rows)], np.ones((rows, 4), np.float32))
    assert end // SEGMENT > before // SEGMENT
    commit = end - 128  # the last frame: the commit, with its payload
    durable = store.durable_lsn  # rotation syncs what is behind it
    for at in [*range(max(before, durable), commit, 7919), *range(commit, end)]:
        inside = min(at, (at // SEGMENT + 1) * SEGMENT - 512)
        if inside % SEGMENT < 8192:
            continue
        stop = min(end, (inside // SEGMENT + 1) * SEGMENT - 512)
        left, differs = cut(disk, inside, stop, b"\0")
        again = opened(left, kernel)
        assert len(again) == (3 if differs else 3 + rows)
    assert len(opened(disk.kill(), kernel)) == 3 + rows


def cuts(disk: SimulatedDisk, before: int, end: int, filler: bytes) -> Iterator[tuple[SimulatedDisk, bool]]:
    """`cut` at every byte of what one segment holds from an LSN to another."""
    assert before // SEGMENT == (end - 1) // SEGMENT
    for at in range(before, end):
        yield cut(disk, at, end, filler)


@pytest.mark.parametrize("filler", [b"\0", b"\xa5stale"], ids=["zeros", "stale-bytes"])
def test_transaction_of_a_store_cut_at_any_byte_is_there_whole_or_not_at_all(kernel: Any, filler: bytes) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    store = opened(disk, kernel)
    before = store.insert_many(range(10), np.ones((10, 4), np.float32), [{"n": n} for n in range(10)], durable=True)
    old = everything(store)
    txn = store.transaction()
    for n in range(5):
        txn.insert(f"new-{n}", np.full(4, 10 + n, np.float32), {"new": n})
        txn.update(n, np.full(4, 20 + n, np.float32))
        txn.update(f"new-{n}", metadata={"newer": n})
        txn.delete(5 + n)
    end = txn.commit(durable=False)
    new = everything(store)
    assert len(new) == 10
    found = [(everything(opened(left, kernel)), differs) for left, differs in cuts(disk, before, end, filler)]
    assert all(shown == (old if differs else new) for shown, differs in found)
    assert sum(differs for _, differs in found) > (end - before) // 2
    assert everything(opened(disk.kill(), kernel)) == new


@pytest.mark.parametrize("held", [True, False], ids=["held", "logged-as-they-come"])
def test_transaction_of_a_log_cut_at_any_byte_is_there_whole_or_not_at_all(kernel: Any, held: bool) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    wal = opened_log(disk, kernel)
    before = wal.log_batch(range(3), np.ones((3, 4), np.float32), durable=True)
    old = list(map(str, wal.replay()))
    txn = WalTransaction(wal._log, each_durable=False, held_bytes_max=HELD_BYTES_MAX if held else 1)
    for n in range(10):
        txn.log_insert(f"row-{n}", np.full(4, n, np.float32), {"n": n})
        txn.log_delete(f"row-{n - 1}")
    end = txn.commit(durable=False)
    new = list(map(str, wal.replay()))
    assert len(new) == len(old) + 20 + 1  # the commit
    torn = 0
    for left, differs in cuts(disk, before, end, b"\xa5stale"):
        again = opened_log(left, kernel)
        assert list(map(str, again.replay())) == (old if differs else new)
        torn += differs
    assert torn > (end - before) // 2
    assert list(map(str, opened_log(disk.kill(), kernel).replay())) == new


def everything(store: mmwal.VectorStore) -> dict[Any, tuple[bytes, Any, int]]:
    records = store.get_many(store.ids())
    return {record.id: (record.vector.tobytes(), record.metadata, record.lsn) for record in records if record}


def opened_log(disk: SimulatedDisk, kernel: Any) -> mmwal.WalManager:
    config = mmwal.WalConfig(
        wal_dir="/store/wal",
        dimension=4,
        segment_size=SEGMENT,
        max_wal_size=64 * SEGMENT,
        sync_interval_ms=HUGE_INTERVAL,
        kernel=kernel.NAME,
    )
    return mmwal.WalManager(config, disk=disk)
