"""Opening: what is created, what is refused and by which error, and what a refusal leaves behind."""

import errno
import gc
import os
import stat
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.disk.posix import PosixDisk
from mmwal.errors import (
    CheckpointFailedError,
    ConsistencyError,
    DurabilityWarning,
    ForeignDirectoryError,
    FormatVersionError,
    WalConfigError,
    WalFullError,
    WalLockedError,
)
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS, read_slots
from mmwal.format.frame import Kind
from mmwal.log.segment import segment_name
from mmwal.testing.simulator import SimulatedDisk
from tests.disk.conftest import environment, mount_tmpfs
from tests.store.stores import (
    SEGMENT,
    allocated,
    close_quietly,
    config,
    contents,
    crashed_copy,
    digests,
    rows,
    vector,
)

__all__ = ["mount_tmpfs"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_path_holds_log_and_matrix_in_directories_of_their_own(tmp_path: Path, kernel: Any) -> None:
    with mmwal.open(tmp_path / "deep" / "store", dimension=4, segment_size=SEGMENT, kernel=kernel.NAME) as store:
        store.insert("a", [1, 2, 3, 4])
    assert sorted(os.listdir(tmp_path / "deep" / "store")) == ["data", "wal"]
    assert stat.S_IMODE((tmp_path / "deep" / "store" / "wal").stat().st_mode) == 0o700
    with mmwal.open(str(tmp_path / "deep" / "store"), kernel=kernel.NAME) as store:
        assert store.ids() == ["a"]


def test_path_and_config_exclude_each_other(tmp_path: Path, kernel: Any) -> None:
    with pytest.raises(WalConfigError, match="path"):
        mmwal.open()
    with pytest.raises(WalConfigError, match="config"):
        mmwal.open(tmp_path, config=config(tmp_path, kernel))
    with pytest.raises(WalConfigError, match="config"):
        mmwal.open(config=config(tmp_path, kernel), dimension=3)
    with pytest.raises(WalConfigError, match="data_dir"):
        mmwal.open(config=mmwal.WalConfig(wal_dir=tmp_path / "wal"))
    with pytest.raises(TypeError):
        mmwal.open(tmp_path, dimensions=3)
    assert os.listdir(tmp_path) == []


def test_poor_place_is_warned_of_once(tmp_path: Path, kernel: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mmwal.open(tmp_path, dimension=3, segment_size=SEGMENT).close()
    assert {warning.category for warning in caught} <= {DurabilityWarning}
    assert len({str(warning.message) for warning in caught}) == len(caught)


def test_new_store_reports_a_clean_shutdown_and_zero_entries(open_store: Any, disk: Any) -> None:
    stats = open_store(disk=disk).recovery_stats
    assert stats.completed and stats.clean_shutdown
    assert (stats.total_entries, stats.torn_tail_bytes, stats.errors, stats.notes) == (0, 0, (), ())


def test_second_writer_is_refused_and_told_who_the_first_is(open_store: Any) -> None:
    store = open_store()
    store.insert("a", vector(1))
    with pytest.raises(WalLockedError, match=str(os.getpid())) as refused:
        open_store()
    assert isinstance(refused.value, BlockingIOError) and refused.value.holder_pid == os.getpid()
    store.insert("b", vector(2))
    store.close()
    assert open_store().ids() == ["a", "b"]


def test_lock_of_another_process_ends_with_it(open_store: Any, root: Path, kernel: Any) -> None:
    code = (
        "import sys, warnings, mmwal; warnings.simplefilter('ignore')\n"
        "store = mmwal.open(sys.argv[1], dimension=8, segment_size=65536)\n"
        "print(store.insert('a', [1.0] * 8), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lsn = int(process.stdout.readline())
        with pytest.raises(WalLockedError, match=str(process.pid)):
            open_store()
        process.kill()
        process.wait()
    store = open_store()
    assert store.get("a").lsn == lsn and not store.recovery_stats.clean_shutdown


@pytest.mark.parametrize(
    ("field", "value", "persisted"),
    [
        ("dimension", 9, 8),
        ("dtype", "float16", "float32"),
        ("metric", "l2", "inner_product"),
        ("segment_size", 1 << 20, SEGMENT),
    ],
)
def test_other_value_of_a_persisted_field_is_refused_naming_both(
    open_store: Any, root: Path, field: str, value: Any, persisted: Any
) -> None:
    store = open_store()
    store.insert("a", vector(1))
    store.close()
    before = digests(root)
    with pytest.raises(WalConfigError) as refused:
        open_store(**{field: value})
    assert refused.value.field == field
    assert repr(value) in str(refused.value) and repr(persisted) in str(refused.value)
    assert digests(root) == before
    assert open_store(dimension=..., segment_size=...).ids() == ["a"]


def test_dimension_that_contradicts_a_log_without_data_is_refused_and_not_kept(
    open_store: Any, kernel: Any, disk: Any, root: Path
) -> None:
    place = "/store" if isinstance(disk, SimulatedDisk) else root
    with mmwal.WalManager(config(place, kernel, dimension=...), disk=disk) as wal:
        wal.log_insert("a", vector(1, 5))
    with pytest.raises(WalConfigError, match=r"6.*5"):
        open_store(disk=disk, dimension=6)
    assert open_store(disk=disk, dimension=5).ids() == ["a"]


def test_directory_of_other_files_is_refused_and_left_alone(open_store: Any, root: Path) -> None:
    for name in ("wal", "data"):
        place = root / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "control").write_bytes(b"not a control file" * 500)
        before = digests(root)
        with pytest.raises(ForeignDirectoryError, match="control"):
            open_store()
        assert digests(root) == before
        (place / "control").unlink()
    (root / "wal" / "notes.txt").write_text("hello")
    (root / "data" / "notes.txt").write_text("hello")
    open_store().close()
    assert (root / "wal" / "notes.txt").read_text() == "hello"
    assert (root / "data" / "notes.txt").read_text() == "hello"


def test_file_in_the_place_of_a_directory_is_refused(open_store: Any, root: Path) -> None:
    root.mkdir()
    (root / "data").write_text("a file")
    with pytest.raises(NotADirectoryError):
        open_store()
    (root / "data").unlink()
    open_store()


def test_data_of_another_store_is_refused(open_store: Any, tmp_path: Path, kernel: Any) -> None:
    for name in ("one", "two"):
        store = open_store(path=tmp_path / name)
        store.insert(name, vector(1))
        store.close()
    before = digests(tmp_path)
    mixed = mmwal.WalConfig(wal_dir=tmp_path / "one" / "wal", data_dir=tmp_path / "two" / "data", kernel=kernel.NAME)
    with pytest.raises(ForeignDirectoryError, match="belongs to store"):
        mmwal.open(config=mixed)
    assert digests(tmp_path) == before
    assert open_store(path=tmp_path / "one").ids() == ["one"]


@pytest.mark.parametrize(("part", "layout"), [("wal", LOG_CONTROL), ("data", DATA_CONTROL)])
def test_directory_of_a_newer_version_is_refused(open_store: Any, root: Path, part: str, layout: Any) -> None:
    store = open_store()
    store.insert("a", vector(1))
    store.close()
    path = root / part / "control"
    content = bytearray(path.read_bytes()[:CONTROL_BYTES])
    slots = read_slots(layout, bytes(content))
    assert len(slots) == 2
    for index, fields in slots:
        content[SLOT_OFFSETS[index] : SLOT_OFFSETS[index] + layout.size] = layout.pack(**{**fields, "version": 9})
    path.write_bytes(content)
    before = digests(root)
    with pytest.raises(FormatVersionError) as refused:
        open_store()
    assert (refused.value.path, refused.value.found) == (str(path), 9)
    assert digests(root) == before


def test_read_only_directory_is_refused(open_store: Any, kernel: Any, mount_tmpfs: Any) -> None:
    place = mount_tmpfs("size=8m")
    with mmwal.open(config=config(place, kernel)) as store:
        store.insert("a", vector(1))
    del store
    gc.collect()  # a mapping that lives on would keep the mount writable
    before = digests(Path(place))
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    with pytest.raises(OSError, match=r"Read-only|may not") as refused:
        open_store(path=place)
    assert refused.value.errno in (errno.EROFS, errno.EACCES)
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    assert digests(Path(place)) == before
    assert open_store(path=place).ids() == ["a"]


def test_opening_on_a_full_disk_says_so_and_works_once_there_is_room(open_store: Any, mount_tmpfs: Any) -> None:
    place = mount_tmpfs("size=600k")
    filler = Path(place) / "filler"
    filler.write_bytes(bytes(570 << 10))
    with pytest.raises(WalFullError) as refused:
        open_store(path=f"{place}/store")
    assert refused.value.errno == errno.ENOSPC
    filler.unlink()
    store = open_store(path=f"{place}/store", runway_segments=1)
    store.insert("a", vector(1))
    store.close()


def test_disk_that_fills_up_is_an_error_and_reads_go_on(open_store: Any, mount_tmpfs: Any) -> None:
    place = mount_tmpfs("size=1m")
    store = open_store(path=f"{place}/store", dimension=64, runway_segments=1, checkpoint_interval=None)

    def insert_until_it_raises() -> None:
        for n in range(10_000):
            store.insert(n, vector(n, 64), {"m": "x" * 200})

    with pytest.raises(WalFullError) as refused:
        insert_until_it_raises()
    assert refused.value.errno == errno.ENOSPC
    before = contents(store)
    written = len(before)
    assert written > 500 and list(before) == list(range(written))
    with pytest.raises(WalFullError):
        store.insert_many(range(-500, 0), np.ones((500, 64), np.float32))
    assert contents(store) == before
    assert store.search(vector(1, 64), k=1)[0].id == written - 1
    close_quietly(store)
    subprocess.run(["mount", "-o", "remount,size=8m", place], check=True)
    again = open_store(path=f"{place}/store", dimension=64)
    assert {id: entry[:2] for id, entry in contents(again).items()} == {id: entry[:2] for id, entry in before.items()}
    again.insert("more", vector(1, 64))


def test_every_step_of_opening_may_meet_a_full_disk(open_store: Any, kernel: Any) -> None:
    """Whichever call fails, the error is typed, nothing is lost, and the next attempt succeeds."""
    disk = SimulatedDisk()
    store = open_store(disk=disk)
    store.insert_many(range(300), rows(range(300)))
    store.sync()
    before = contents(store)
    crashed = disk.kill()
    for nth in range(1, 200):
        disk = crashed.kill()
        fault = disk.fail("step", nth, errno.ENOSPC)
        try:
            store = open_store(disk=disk)
        except (WalFullError, CheckpointFailedError):  # the latter where a sync fails
            pass
        else:
            assert contents(store) == before
            close_quietly(store)
        if not fault.hits:
            break
        disk.faults.clear()
        assert contents(open_store(disk=disk.kill())) == before
    else:
        pytest.fail("opening takes ever more steps")
    assert nth > 10


def test_new_store_that_meets_a_full_disk_can_be_created_later(open_store: Any) -> None:
    for nth in range(1, 200):
        disk = SimulatedDisk()
        fault = disk.fail("step", nth, errno.ENOSPC)
        try:
            store = open_store(disk=disk)
        except WalFullError:
            pass
        else:
            close_quietly(store)
        if not fault.hits:
            break
        disk.faults.clear()
        store = open_store(disk=disk.kill())
        store.insert("a", vector(1))
        store.close()
        assert open_store(disk=disk.kill()).ids() in (["a"], [])
    assert nth > 10


def test_refused_opening_leaves_no_thread_and_no_descriptor(open_store: Any, root: Path) -> None:
    import threading

    store = open_store()
    store.insert("a", vector(1))
    store.close()
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    segment = sorted((root / "wal").glob("segment*"))[0]
    kept = segment.read_bytes()
    segment.unlink()
    with pytest.raises(mmwal.SegmentMissingError):
        open_store()
    segment.write_bytes(kept)
    with pytest.raises(WalConfigError):
        open_store(dimension=9)
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert open_store().ids() == ["a"]


@pytest.mark.parametrize(("segment_size", "most"), [(SEGMENT, 2 << 20), (1 << 20, 32 << 20)])
def test_small_store_takes_little_of_the_disk(open_store: Any, root: Path, segment_size: int, most: int) -> None:
    store = open_store(segment_size=segment_size)
    store.insert_many(range(100), rows(range(100)))
    store.checkpoint()
    assert 0 < allocated(root) < most
    store.close()
    assert 0 < allocated(root) < most


def test_wal_without_its_directory_but_with_data_is_refused(open_store: Any, root: Path) -> None:
    store = open_store()
    store.insert("a", vector(1))
    store.close()
    (root / "wal").rename(root / "moved")
    with pytest.raises(ConsistencyError, match="log"):
        open_store()
    for left in (root / "wal").iterdir():
        left.unlink()
    (root / "wal").rmdir()
    (root / "moved").rename(root / "wal")
    assert open_store().ids() == ["a"]


@pytest.mark.parametrize(("field", "value"), [("target", 8192)])
def test_recovery_setting_that_is_not_built_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    setting = mmwal.RecoveryConfig(wal_dir=tmp_path / "wal", data_dir=tmp_path / "data", **{field: value})
    with pytest.raises(mmwal.WalConfigError, match=field):
        mmwal.CrashRecoveryManager(setting)
    assert list(tmp_path.iterdir()) == []


class Slow(PosixDisk):
    """A disk on which every look at the clock finds it 10 ms on."""

    late_ns = 0

    def monotonic_ns(self) -> int:
        self.late_ns += 10_000_000
        return super().monotonic_ns() + self.late_ns


@pytest.mark.parametrize("torn", [False, True])
def test_strict_recovery_refuses_a_log_whose_last_write_was_cut_short(tmp_path: Path, kernel: Any, torn: bool) -> None:
    root = tmp_path / "live"
    with mmwal.open(config=config(root, kernel)) as store:
        store.insert_many(list(range(300)), rows(range(300)))
        store.checkpoint()
        kept = store.insert("kept", vector(1))
        end = store.insert("cut", vector(2))
        left = crashed_copy(root, tmp_path / "left")
    if torn:
        segment = left / "wal" / segment_name(end // SEGMENT)
        content = bytearray(segment.read_bytes())
        content[end % SEGMENT - 100] ^= 1
        segment.write_bytes(content)
    before = digests(left)
    setting = mmwal.RecoveryConfig(wal_dir=left / "wal", data_dir=left / "data", strict=True)
    manager = mmwal.CrashRecoveryManager(setting)
    if torn:
        with pytest.raises(mmwal.TornTailError, match="cut short") as raised:
            manager.recover()
        assert raised.value.lsn == kept
        assert raised.value.torn_bytes > 0
        assert manager.get_recovery_stats().errors
        assert digests(left) == before
        manager = mmwal.CrashRecoveryManager(replace(setting, strict=False))
    with manager.recover() as again:
        assert "kept" in again
        assert ("cut" in again) != torn
        assert (again.recovery_stats.torn_tail_bytes > 0) == torn


def test_strict_recovery_refuses_a_log_that_ends_within_a_write_of_several_entries(kernel: Any) -> None:
    disk = SimulatedDisk()
    store = mmwal.open(config=config("/store", kernel), disk=disk)
    kept = store.insert("kept", vector(1))
    log: Any = store._log
    append_frame = log.append_frame

    def interrupted(kind: int, *rest: Any) -> int:
        if kind == Kind.COMMIT:
            raise KeyboardInterrupt
        return int(append_frame(kind, *rest))

    log.append_frame = interrupted
    with pytest.raises(KeyboardInterrupt):
        store.insert_many(range(3000), rows(range(3000)))
    left = disk.kill()
    setting = mmwal.RecoveryConfig(wal_dir="/store/wal", data_dir="/store/data", strict=True)
    with pytest.raises(mmwal.TornTailError) as raised:
        mmwal.CrashRecoveryManager(setting, disk=left).recover()
    assert raised.value.lsn >= kept
    assert raised.value.torn_bytes > SEGMENT
    with mmwal.CrashRecoveryManager(replace(setting, strict=False), disk=left).recover() as again:
        assert again.ids() == ["kept"]
        assert again.recovery_stats.rolled_back_entries == 3000
    with mmwal.CrashRecoveryManager(setting, disk=left).recover() as again:
        assert again.ids() == ["kept"]


def test_recovery_over_its_time_changes_nothing_and_succeeds_with_more(tmp_path: Path, kernel: Any) -> None:
    root = tmp_path / "store"
    with mmwal.open(config=config(root, kernel)) as store:
        store.insert_many(list(range(300)), rows(range(300)))
    before = digests(root)
    setting = mmwal.RecoveryConfig(wal_dir=root / "wal", data_dir=root / "data", max_recovery_time_ms=1)
    manager = mmwal.CrashRecoveryManager(setting, disk=Slow())
    with pytest.raises(mmwal.RecoveryTimeoutError, match="max_recovery_time_ms allows 1"):
        manager.recover()
    assert manager.get_recovery_stats().errors
    assert digests(root) == before
    with mmwal.CrashRecoveryManager(replace(setting, max_recovery_time_ms=None)).recover() as again:
        assert len(again) == 300
