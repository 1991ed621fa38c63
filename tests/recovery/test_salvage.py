"""`skip_corrupted_entries` and `verify_checksums=False`: what they cost is said, and nothing else is lost."""

import logging
import random
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import DamageError, HeaderCorruptionError, SegmentMissingError, WalCorruptionError
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, HEADER_OFFSETS, LINK_OFFSET, SECTOR_BYTES
from mmwal.testing.simulator import SimulatedDisk

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
SEGMENT = 64 << 10
DIMENSION = 128


def row(number: int) -> Any:
    return np.full(DIMENSION, number, np.float32)


def segment(number: int) -> str:
    return f"/wal/segment-{number:016x}.wal"


def settings(kernel: Any) -> mmwal.WalConfig:
    return mmwal.WalConfig(
        wal_dir="/wal",
        data_dir="/data",
        dimension=DIMENSION,
        segment_size=SEGMENT,
        sync_interval_ms=0,
        checkpoint_interval=None,
        kernel=kernel.NAME,
    )


def written(kernel: Any, batch: int = 0) -> tuple[SimulatedDisk, list[int]]:
    """Returns the disk that a killed store left, every row durable, and the LSNs of rows 0 to 199; then a ``batch``."""
    disk = SimulatedDisk(seed=1)
    store = mmwal.open(config=settings(kernel), disk=disk)
    lsns = []
    for number in range(200):
        lsns.append(store.insert(number, row(number)))
        disk.run_workers()  # what is full is sealed
    if batch:
        store.insert_many([f"b{n}" for n in range(batch)], np.ones((batch, DIMENSION), np.float32))
        store.insert("last", row(0))
    return disk.kill(), lsns


def change(disk: SimulatedDisk, path: str, offset: int, content: bytes) -> None:
    file = disk.open(path, writable=True)
    file.write(offset, content)
    file.sync()
    file.close()


def recover(disk: SimulatedDisk, kernel: Any, **fields: Any) -> mmwal.VectorStore:
    config = mmwal.RecoveryConfig(wal_dir="/wal", data_dir="/data", kernel=kernel.NAME, **fields)
    return mmwal.CrashRecoveryManager(config, disk=disk).recover()


def contents(store: mmwal.VectorStore) -> dict[Any, float]:
    return {record.id: float(record.vector[0]) for record in store.get_many(store.ids()) if record is not None}


def rows(*left_out: int) -> dict[Any, float]:
    return {number: float(number) for number in range(200) if number not in left_out}


def test_damaged_entry_is_left_out_counted_and_warned_of(kernel: Any, caplog: pytest.LogCaptureFixture) -> None:
    disk, lsns = written(kernel)
    place = lsns[99]
    change(disk, segment(place // SEGMENT), place % SEGMENT + 70, b"!")
    with pytest.raises(DamageError):
        recover(disk.kill(), kernel)
    with caplog.at_level(logging.WARNING, "mmwal"):
        store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(100)
    stats = store.recovery_stats
    assert (stats.corrupted_entries, stats.applied_entries) == (1, 199)
    assert f"{segment(place // SEGMENT)}, LSN {place} to {lsns[100]}" in stats.errors[0]
    assert stats.errors[0] in caplog.text
    # the log goes on, and the damage is behind it: no later opening needs to be asked
    assert store.insert("new", row(7)) > lsns[-1]
    after = disk.kill()
    for again in (after, disk):
        if again is disk:
            store.close()
        with mmwal.open(config=settings(kernel), disk=again) as reopened:
            assert contents(reopened) == rows(100) | {"new": 7.0}
            assert reopened.recovery_stats.corrupted_entries == 0


def test_damaged_length_costs_one_entry(kernel: Any) -> None:
    disk, lsns = written(kernel)
    change(disk, segment(lsns[99] // SEGMENT), lsns[99] % SEGMENT, b"\xff\xff\xff")
    assert contents(recover(disk, kernel, skip_corrupted_entries=True)) == rows(100)


def test_several_damaged_places_in_sealed_and_open_segments(kernel: Any) -> None:
    disk, lsns = written(kernel)
    for number in (3, 4, 60, 150, 198):
        change(disk, segment(lsns[number - 1] // SEGMENT), lsns[number - 1] % SEGMENT + 64, b"!")
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(3, 4, 60, 150, 198)
    assert store.recovery_stats.corrupted_entries == 4  # 3 and 4 are one stretch


def test_transaction_that_lost_an_entry_is_left_out_whole(kernel: Any) -> None:
    disk, lsns = written(kernel, batch=300)
    number = lsns[-1] // SEGMENT + 1  # a member in the middle
    change(disk, segment(number), DATA_OFFSET + 100, b"!")
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows() | {"last": 0.0}
    assert store.recovery_stats.rolled_back_entries > 0
    assert any("transaction" in error for error in store.recovery_stats.errors)


def blank_headers(disk: SimulatedDisk, number: int) -> None:
    for offset in HEADER_OFFSETS:
        change(disk, segment(number), offset, b"damaged!" * (SECTOR_BYTES // 8))


@pytest.mark.parametrize("left", ["link", "footer"])
def test_header_is_rebuilt_from_what_else_knows_its_salt(kernel: Any, left: str) -> None:
    disk, _ = written(kernel)
    blank_headers(disk, 1)
    offset = SEGMENT - FOOTER_BYTES if left == "link" else LINK_OFFSET
    change(disk, segment(1), offset, bytes(SECTOR_BYTES))
    with pytest.raises(HeaderCorruptionError):
        recover(disk.kill(), kernel)
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows()
    assert store.recovery_stats.corrupted_entries == 0
    store.close()
    with mmwal.open(config=settings(kernel), disk=disk) as again:
        assert contents(again) == rows()


def test_segment_that_nothing_identifies_is_left_out(kernel: Any) -> None:
    disk, lsns = written(kernel)
    blank_headers(disk, 1)
    for offset in (LINK_OFFSET, SEGMENT - FOOTER_BYTES):
        change(disk, segment(1), offset, bytes(SECTOR_BYTES))
    gone = [number for number, lsn in enumerate(lsns) if (lsn - 1) // SEGMENT == 1]
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(*gone)
    assert "nothing that stands in for it" in store.recovery_stats.errors[0]


def test_missing_segment_is_left_out(kernel: Any) -> None:
    disk, lsns = written(kernel)
    disk.unlink(segment(1))
    disk.sync_directory("/wal")
    with pytest.raises(SegmentMissingError):
        recover(disk.kill(), kernel)
    gone = [number for number, lsn in enumerate(lsns) if (lsn - 1) // SEGMENT == 1]
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(*gone)
    assert "missing" in store.recovery_stats.errors[0]


def closed(kernel: Any) -> tuple[SimulatedDisk, list[int]]:
    """Returns a store of 200 rows that was closed, and their LSNs; its checkpoint and its mark know them all."""
    disk, lsns = written(kernel)
    mmwal.open(config=settings(kernel), disk=disk).close()
    return disk, lsns


def test_newest_segment_lost_gives_no_lsn_a_second_time(kernel: Any) -> None:
    disk, lsns = closed(kernel)
    names = [name for name in disk.list_directory("/wal") if name.startswith("segment")]
    for name in names[1:]:
        disk.unlink(f"/wal/{name}")
    disk.sync_directory("/wal")
    with pytest.raises(DamageError):
        recover(disk.kill(), kernel)
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows()  # the checkpoint has them
    assert store.insert("new", row(7)) > lsns[-1]
    store.close()
    with mmwal.open(config=settings(kernel), disk=disk) as again:
        assert contents(again) == rows() | {"new": 7.0}


@pytest.mark.parametrize("name", ["segment-ffffffffffffffff.wal", "segment-00000fffffffffff.wal"])
def test_file_with_a_far_name_does_not_move_the_log_there(kernel: Any, name: str) -> None:
    disk, lsns = written(kernel)
    change(disk, segment(lsns[99] // SEGMENT), lsns[99] % SEGMENT + 70, b"!")
    disk.create(f"/wal/{name}").write(0, b"somebody's")
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(100)
    assert store.insert("new", row(7)) < 100 * SEGMENT


def test_torn_tail_is_cut_and_not_counted_as_damage(kernel: Any) -> None:
    disk, lsns = written(kernel)
    change(disk, segment(lsns[49] // SEGMENT), lsns[49] % SEGMENT + 64, b"!")
    change(disk, segment(lsns[-1] // SEGMENT), lsns[-1] % SEGMENT, random.Random(1).randbytes(500))
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows(50)
    assert store.recovery_stats.corrupted_entries == 1


def test_whole_log_is_recovered_as_without_the_flag(kernel: Any) -> None:
    disk, _ = written(kernel)
    store = recover(disk, kernel, skip_corrupted_entries=True)
    assert contents(store) == rows()
    assert store.recovery_stats.corrupted_entries == 0
    assert not store.recovery_stats.unverified


def test_salvage_cut_short_anywhere_gives_the_same_the_next_time(kernel: Any) -> None:
    disk, lsns = written(kernel)
    for number in (20, 150):
        change(disk, segment(lsns[number - 1] // SEGMENT), lsns[number - 1] % SEGMENT + 64, b"!")
    images: list[tuple[str, SimulatedDisk]] = []
    rng = random.Random(5)

    def look(running: SimulatedDisk, step: int, label: str) -> None:
        for choice in running.images(rng, 3):
            images.append((f"{step} {label} {choice}", running.image(choice)))

    disk.on_step = look
    recover(disk, kernel, skip_corrupted_entries=True)
    assert len(images) > 60
    for name, image in images:
        with recover(image, kernel, skip_corrupted_entries=True) as store:
            assert contents(store) == rows(20, 150), name
        with mmwal.open(config=settings(kernel), disk=image) as again:
            assert contents(again) == rows(20, 150), name


# ---- verify_checksums=False


def test_unverified_recovery_says_so_and_checks_structure(kernel: Any) -> None:
    disk, lsns = written(kernel)
    change(disk, segment(lsns[9] // SEGMENT), lsns[9] % SEGMENT + 64, np.float32(-1).tobytes())
    damaged = disk.kill()
    with pytest.raises(WalCorruptionError):
        recover(disk, kernel)
    with recover(damaged, kernel, verify_checksums=False) as store:
        assert store.recovery_stats.unverified
        assert "unverified" in str(store.recovery_stats)
        assert contents(store) == rows() | {10: -1.0}


def test_unverified_recovery_refuses_a_frame_out_of_place(kernel: Any) -> None:
    disk, lsns = written(kernel)
    change(disk, segment(lsns[9] // SEGMENT), lsns[9] % SEGMENT, bytes(8))
    with pytest.raises(WalCorruptionError) as caught:
        recover(disk, kernel, verify_checksums=False)
    assert caught.value.lsn == lsns[9]


def test_unverified_recovery_still_cuts_a_torn_tail(kernel: Any) -> None:
    disk, lsns = written(kernel)
    start = lsns[-2]
    change(disk, segment(start // SEGMENT), start % SEGMENT + 64, b"!")  # nothing behind it proves that it was durable
    with recover(disk, kernel, verify_checksums=False) as store:
        assert contents(store) == rows(199)
        assert store.recovery_stats.torn_tail_bytes > 0
