"""What users of another implementation of the same guide have met, each as a test of what they should have seen."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.entry import WalEntry
from tests.store.stores import crashed_copy, digests, settled

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
SEGMENT = 64 << 10


def row(number: int) -> Any:
    return np.full(8, number, np.float32)


def vectors(store: mmwal.VectorStore) -> dict[Any, float]:
    return {record.id: float(record.vector[0]) for record in store.get_many(store.ids()) if record is not None}


@pytest.mark.parametrize("ending", ["closed", "killed"])
def test_250_inserts_with_a_checkpoint_every_100_all_come_back(tmp_path: Path, kernel: Any, ending: str) -> None:
    path = tmp_path / "store"
    with mmwal.open(
        path, dimension=8, checkpoint_interval=100, segment_size=SEGMENT, kernel=kernel.NAME, sync_interval_ms=0
    ) as store:
        for number in range(250):
            store.insert(f"doc-{number}", row(number))
        if ending == "killed":
            path = crashed_copy(path, tmp_path / "killed")
    for _ in range(3):  # each opening may take a checkpoint and trim: what it trims must not be needed
        with mmwal.open(path, kernel=kernel.NAME) as store:
            assert vectors(store) == {f"doc-{number}": number for number in range(250)}


def test_restart_with_the_default_configuration_recovers_all(tmp_path: Path) -> None:
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", data_dir=tmp_path / "data")
    store = mmwal.open(config=config)
    for number in range(1000):
        store.insert(f"doc-{number}", row(number))
    store.update("doc-1", row(-1))
    store.delete("doc-2")
    expected = {f"doc-{number}": float(number) for number in range(1000) if number != 2} | {"doc-1": -1.0}
    (tmp_path / "crashed").mkdir()
    for name in ("wal", "data"):
        crashed_copy(tmp_path / name, tmp_path / "crashed" / name)
    store.close()
    for root in (tmp_path, tmp_path / "crashed"):
        with mmwal.open(config=mmwal.WalConfig(wal_dir=root / "wal", data_dir=root / "data")) as again:
            assert vectors(again) == expected
    recovered = mmwal.CrashRecoveryManager(
        mmwal.RecoveryConfig(wal_dir=tmp_path / "crashed" / "wal", data_dir=tmp_path / "crashed" / "data")
    ).recover()
    with recovered:
        assert vectors(recovered) == expected


def test_20_000_writes_under_fast_rotation_all_come_back(tmp_path: Path, kernel: Any) -> None:
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", segment_size=SEGMENT, max_wal_size=1 << 30, kernel=kernel.NAME)
    with mmwal.WalManager(config) as wal:
        lsns = [wal.log_insert(number, row(number)) for number in range(20_000)]
        assert wal.get_metrics().rotations > 30
        crashed_copy(tmp_path / "wal", tmp_path / "killed")
    for name in ("wal", "killed"):
        config = mmwal.WalConfig(wal_dir=tmp_path / name, max_wal_size=1 << 30, kernel=kernel.NAME)
        with mmwal.WalManager(config) as wal:
            found = [(entry.id, entry.lsn, float(entry.vector[0])) for entry in wal.iter_entries()]
        assert found == [(number, lsn, float(number)) for number, lsn in enumerate(lsns)]


def test_read_only_scan_during_writes_changes_nothing(tmp_path: Path, kernel: Any) -> None:
    path = tmp_path / "store"
    with mmwal.open(path, dimension=8, segment_size=SEGMENT, kernel=kernel.NAME, checkpoint_interval=None) as store:
        for number in range(1500):
            store.insert(number, row(number))
        lsn = store.sync()
        before = settled(path)
        with mmwal.WalManager.new_from_path(path, kernel=kernel.NAME) as log:
            assert sum(isinstance(entry, WalEntry.Insert) for entry in log.iter_entries()) == 1500
        with mmwal.open(path, read_only=True, kernel=kernel.NAME) as reader:
            assert len(reader) == 1500
        assert digests(path) == before
        for number in range(1500, 3000):
            assert store.insert(number, row(number)) > lsn
    with mmwal.open(path, kernel=kernel.NAME) as store:
        assert vectors(store) == {number: float(number) for number in range(3000)}


def damaged_log(tmp_path: Path, kernel: Any) -> tuple[Path, list[Any]]:
    """Returns a log that was killed, each entry durable, and its entries."""
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", segment_size=SEGMENT, sync_interval_ms=0, kernel=kernel.NAME)
    with mmwal.WalManager(config) as wal:
        for number in range(200):
            wal.log_insert(number, row(number))
        entries = wal.read_all_entries()
        return crashed_copy(tmp_path / "wal", tmp_path / "killed"), entries


def write(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_flipped_bit_is_reported_not_replayed(tmp_path: Path, kernel: Any) -> None:
    folder, entries = damaged_log(tmp_path, kernel)
    start, place = entries[99].lsn, folder / "segment-0000000000000000.wal"
    content = bytearray(place.read_bytes())
    content[start + 64] ^= 1  # a bit of the first value of entry 100
    place.write_bytes(content)
    (tmp_path / "data").mkdir()
    before = digests(folder)
    config = mmwal.WalConfig(wal_dir=folder, sync_interval_ms=0, kernel=kernel.NAME)
    for open_it in (
        lambda: mmwal.WalManager(config),
        lambda: mmwal.WalManager.new_from_path(folder, kernel=kernel.NAME),
        lambda: mmwal.open(config=mmwal.WalConfig(wal_dir=folder, data_dir=tmp_path / "data", kernel=kernel.NAME)),
    ):
        with pytest.raises(mmwal.WalCorruptionError) as caught:
            open_it()
        assert (caught.value.path, caught.value.offset, caught.value.lsn) == (str(place), start, start)
    assert digests(folder) == before


def test_one_damaged_length_does_not_hide_the_rest(tmp_path: Path, kernel: Any) -> None:
    folder, entries = damaged_log(tmp_path, kernel)
    start, place = entries[99].lsn, folder / "segment-0000000000000000.wal"
    (word,) = struct.unpack_from("<Q", place.read_bytes(), start)
    write(place, start, struct.pack("<Q", word + 5000))  # the length says 5000 lines more
    with pytest.raises(mmwal.WalCorruptionError) as caught:
        mmwal.WalManager(mmwal.WalConfig(wal_dir=folder, kernel=kernel.NAME))
    assert caught.value.lsn == start
    report = mmwal.verify(folder)
    assert [(found.what, found.offset, found.lsn) for found in report.damage] == [("entry", start, entries[100].lsn)]
    assert report.entries == 200  # 199 whole ones, and this
    recovery = mmwal.RecoveryConfig(
        wal_dir=folder, data_dir=tmp_path / "data", skip_corrupted_entries=True, kernel=kernel.NAME
    )
    with mmwal.CrashRecoveryManager(recovery).recover() as store:
        assert vectors(store) == {number: float(number) for number in range(200) if number != 100}
