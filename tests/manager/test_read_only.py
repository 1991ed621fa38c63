"""`WalManager.new_from_path`: reading the log of a directory, of a store or of one file, and changing nothing."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.entry import WalEntry
from mmwal.errors import (
    HeaderCorruptionError,
    LsnUnavailableError,
    ReadOnlyError,
    StoreMissingError,
    WalClosedError,
    WalCorruptionError,
)
from mmwal.format.segment import DATA_OFFSET
from tests.store.stores import crashed_copy, digests

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
SEGMENT = 64 << 10


def new_log(path: Path, kernel: Any, **fields: Any) -> mmwal.WalManager:
    config = mmwal.WalConfig(wal_dir=path, segment_size=SEGMENT, kernel=kernel.NAME, max_wal_size=1 << 30, **fields)
    return mmwal.WalManager(config)


def row(number: int) -> Any:
    return np.full(16, number, np.float32)


def test_directory_is_read_as_it_was_written(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel) as wal:
        for number in range(2000):
            wal.log_insert(number, row(number), {"n": number})
        wal.log_batch(["x", "y"], np.zeros((2, 16), np.float32))
        wal.log_delete("x")
        written = wal.read_all_entries()
        lsn = written[1500].lsn
    with mmwal.WalManager.new_from_path(tmp_path / "wal", kernel=kernel.NAME) as log:
        assert log.read_all_entries() == written
        assert list(log.iter_entries(lsn)) == written[1501:]
        assert list(log.iter_entries(lsn, written[1600].lsn)) == written[1501:1601]
        assert (log.oldest_lsn, log.last_lsn) == (DATA_OFFSET, log.durable_lsn)
        assert log.recovery_stats.clean_shutdown
        assert log.get_metrics().published_lsn == log.last_lsn


def test_reading_changes_no_byte_also_of_a_log_that_was_killed(tmp_path: Path, kernel: Any) -> None:
    wal = new_log(tmp_path / "wal", kernel)
    for number in range(1000):
        wal.log_insert(number, row(number))
    crashed_copy(tmp_path / "wal", tmp_path / "killed")
    wal.close()
    before = digests(tmp_path / "killed")
    with mmwal.WalManager.new_from_path(tmp_path / "killed", kernel=kernel.NAME) as log:
        assert [entry.id for entry in log.iter_entries()] == list(range(1000))
        assert not log.recovery_stats.clean_shutdown
    assert digests(tmp_path / "killed") == before


def test_reader_beside_a_writer_shows_a_prefix_and_keeps_it(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel) as wal:
        for number in range(1500):
            wal.log_insert(number, row(number))
        with mmwal.WalManager.new_from_path(tmp_path / "wal", kernel=kernel.NAME) as log:
            for number in range(1500, 6000):
                lsn = wal.log_insert(number, row(number))
                if number % 1000 == 0:
                    wal.release(lsn)  # the segments that the reader shows go away under it
            wal.sync()
            assert [entry.id for entry in log.iter_entries()] == list(range(1500))


def test_path_of_a_store_shows_its_log(tmp_path: Path, kernel: Any) -> None:
    with mmwal.open(tmp_path / "store", dimension=4, segment_size=SEGMENT, kernel=kernel.NAME) as store:
        store.insert("a", [1, 2, 3, 4])
        with mmwal.WalManager.new_from_path(tmp_path / "store", kernel=kernel.NAME) as log:
            (entry,) = log.read_all_entries()
            assert (entry.kind, entry.id) == ("insert", "a")


def test_one_segment_file_is_read_wherever_it_is(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel) as wal:
        for number in range(2000):
            wal.log_insert(number, row(number))
        lsns = [entry.lsn for entry in wal.iter_entries()]
    names = sorted(name for name in os.listdir(tmp_path / "wal") if name.startswith("segment"))
    shutil.copy(tmp_path / "wal" / names[1], tmp_path / "copy.bin")
    with mmwal.WalManager.new_from_path(tmp_path / "copy.bin", kernel=kernel.NAME) as log:
        assert [entry.lsn for entry in log.iter_entries()] == [lsn for lsn in lsns if SEGMENT < lsn < 2 * SEGMENT]
        assert not log.recovery_stats.clean_shutdown
        with pytest.raises(LsnUnavailableError):
            list(log.iter_entries(lsns[0]))


def test_one_segment_file_leaves_out_a_batch_that_begins_before_it(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel) as wal:
        wal.log_batch([f"b{n}" for n in range(1500)], np.ones((1500, 16), np.float32))
        wal.log_insert("after", row(1))
        batches = [entry for entry in wal.iter_entries() if entry.txn]
        assert len(batches) > 1
    names = sorted(name for name in os.listdir(tmp_path / "wal") if name.startswith("segment"))
    last = names[batches[-1].lsn // SEGMENT]
    with mmwal.WalManager.new_from_path(tmp_path / "wal" / last, kernel=kernel.NAME) as log:
        assert [entry.id for entry in log.iter_entries()] == ["after"]


def test_damaged_entry_of_one_file_is_an_error_where_it_was_durable(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel, sync_interval_ms=0) as wal:
        for number in range(10):
            wal.log_insert(number, row(number))
        second, third = wal.read_all_entries()[1:3]
        crashed_copy(tmp_path / "wal", tmp_path / "killed")
    path = tmp_path / "killed" / "segment-0000000000000000.wal"
    with path.open("r+b") as file:
        file.seek(third.lsn - 64)
        file.write(b"damaged")
    with pytest.raises(WalCorruptionError) as caught:
        mmwal.WalManager.new_from_path(path, kernel=kernel.NAME)
    assert (caught.value.path, caught.value.offset) == (str(path), second.lsn)


def test_everything_that_writes_is_refused(tmp_path: Path, kernel: Any) -> None:
    with new_log(tmp_path / "wal", kernel) as wal:
        wal.log_insert(1, row(1))
    log = mmwal.WalManager.new_from_path(tmp_path / "wal", kernel=kernel.NAME)
    for write in (
        lambda: log.log_insert(2, row(2)),
        lambda: log.log_update(1, row(2)),
        lambda: log.log_delete(1),
        lambda: log.log_batch([2], [row(2)]),
        log.sync,
        lambda: log.release(1),
        lambda: log.wait_durable(1),
    ):
        with pytest.raises(ReadOnlyError, match="WalManager"):
            write()
    log.close()
    log.close()
    for read in (log.read_all_entries, log.get_metrics, lambda: log.last_lsn, lambda: log.log_delete(1)):
        with pytest.raises(WalClosedError):
            read()


def test_missing_path_and_foreign_file_are_typed_errors(tmp_path: Path, kernel: Any) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreMissingError) as caught:
            mmwal.WalManager.new_from_path(path, kernel=kernel.NAME)
        assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(HeaderCorruptionError, match=r"notes\.txt"):
        mmwal.WalManager.new_from_path(tmp_path / "notes.txt", kernel=kernel.NAME)


# ---- apply_entry


def test_entries_applied_by_hand_come_to_what_recovery_does(tmp_path: Path, kernel: Any) -> None:
    rng = np.random.default_rng(3)
    with new_log(tmp_path / "wal", kernel) as wal:
        for _ in range(400):
            ids = [f"id{n}" for n in rng.integers(0, 30, rng.integers(1, 5))]
            vectors = rng.random((len(ids), 16), np.float32)
            match rng.integers(0, 6):
                case 0:
                    wal.log_insert(ids[0], vectors[0], {"n": int(rng.integers(9))} if rng.random() < 0.5 else None)
                case 1:
                    wal.log_update(ids[0], vectors[0] if rng.random() < 0.5 else None, {"u": 1})
                case 2:
                    wal.log_delete(ids[0])
                case 3:
                    wal.log_batch(ids, vectors, operation="insert")
                case 4:
                    wal.log_batch(ids, vectors, operation="update")
                case 5:
                    wal.log_batch(ids, None, operation="delete")
    by_hand = mmwal.VectorStore(dimension=16)
    with mmwal.WalManager.new_from_path(tmp_path / "wal", kernel=kernel.NAME) as log:
        for entry in log.iter_entries():
            mmwal.apply_entry(by_hand, entry)
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", data_dir=tmp_path / "data", kernel=kernel.NAME)
    with mmwal.open(config=config) as recovered:
        assert sorted(recovered.ids()) == sorted(by_hand.ids())
        for id in recovered.ids():
            one, other = recovered.get(id), by_hand.get(id)
            assert one is not None
            assert other is not None
            assert one.vector.tobytes() == other.vector.tobytes()
            assert one.metadata == other.metadata


def test_what_cannot_be_applied_is_refused() -> None:
    store = mmwal.VectorStore(dimension=2)
    store.insert("a", [1, 2])
    for entry in (
        WalEntry.Insert("a", row(1)),
        WalEntry.Insert("b", row(1)),
        WalEntry.Batch("insert", ["c"], row(1)[None]),
    ):
        with pytest.raises(mmwal.VectorError):
            mmwal.apply_entry(store, entry)
    with pytest.raises(TypeError, match="dict is no entry"):
        mmwal.apply_entry(store, {})
    with pytest.raises(TypeError, match="store is a NoneType; pass a VectorStore"):
        mmwal.apply_entry(None, WalEntry.Delete("a"))  # type: ignore[arg-type]
    assert store.ids() == ["a"]
    assert mmwal.apply_entry(store, WalEntry.Commit(0, 1)) == mmwal.apply_entry(store, WalEntry.Checkpoint(1, 2)) == 0
    assert store["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "entry",
    [
        WalEntry.Insert("a", [float("nan"), 1.0]),
        WalEntry.Insert("a", [1.0, 1.0], {"n": object()}),
        WalEntry.Batch("insert", ["a", "b", "c"], np.ones((3, 2), np.float32), [None, None, {"n": object()}]),
        WalEntry.Batch("update", ["a", "gone", "a"], np.full((3, 2), np.nan, np.float32)),
    ],
)
def test_entry_that_cannot_be_applied_changes_nothing(entry: Any) -> None:
    store = mmwal.VectorStore(2)
    store.insert("a", [1.0, 2.0], {"kept": True})
    with pytest.raises(ValueError, match=r"NaN|finite|object|metadata"):
        mmwal.apply_entry(store, entry)
    record = store.get("a")
    assert record is not None
    assert (store.ids(), record.vector.tolist(), record.metadata) == (["a"], [1.0, 2.0], {"kept": True})
