"""Opening, holding and closing a log: one writer, forks, what is persisted, what refuses to open."""

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmwal.config import WalConfig
from mmwal.errors import (
    DurabilityWarning,
    ForeignDirectoryError,
    FormatVersionError,
    HeaderCorruptionError,
    NoStoreError,
    OpenError,
    WalClosedError,
    WalConfigError,
    WalLockedError,
)
from mmwal.format.control import CONTROL_BYTES, LOG_CONTROL, SLOT_OFFSETS, read_slots
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import SEGMENT, assert_ordered, child, config, fill, ids, reserved, start_child, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


# -- one writer


def test_second_writer_is_refused_and_told_who_holds_the_log(open_wal: OpenWal, kernel: Any, wal_dir: Path) -> None:
    wal = open_wal()
    lsn = fill(wal, 3)[-1]
    with pytest.raises(WalLockedError, match=f"process {os.getpid()} has it open") as caught:
        open_wal()
    assert caught.value.holder_pid == os.getpid()
    assert isinstance(caught.value, OpenError)
    code = """
try:
    WalManager(config(wal_dir, kernel))
except WalLockedError as error:
    print(error.holder_pid)
"""
    assert child(code, wal_dir, kernel) == [str(os.getpid())]
    assert wal.log_delete("a") > lsn
    wal.close()
    open_wal()


def test_death_of_the_holder_frees_the_log(open_wal: OpenWal, kernel: Any, wal_dir: Path) -> None:
    process = start_child(
        "wal = WalManager(config(wal_dir, kernel)); fill(wal, 9); print('open', flush=True); input()", wal_dir, kernel
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(WalLockedError) as caught:
            open_wal()
        assert caught.value.holder_pid == process.pid
    finally:
        process.kill()
        process.communicate()
    assert len(ids(open_wal())) == 9


def test_opening_that_fails_frees_the_log(open_wal: OpenWal) -> None:
    open_wal().close()
    for _ in range(2):
        with pytest.raises(WalConfigError):
            open_wal(dimension=3)
    open_wal()


# -- forks


def test_forked_child_cannot_use_the_log_and_does_no_harm(open_wal: OpenWal, kernel: Any, wal_dir: Path) -> None:
    code = """
wal = WalManager(config(wal_dir, kernel, sync_interval_ms=5))
fill(wal, 100)
pid = os.fork()
if not pid:
    caught = 0
    for use in (
        lambda: wal.log_insert("child", vector(1)),
        lambda: wal.log_update("child", [1.0] * 16),
        lambda: wal.log_delete("child"),
        lambda: wal.log_batch(["x", "y"], np.ones((2, 16), np.float32)),
        lambda: wal.log_batch(range(2000), np.ones((2000, 16), np.float32)),
        wal.sync,
        lambda: wal.release(wal.last_lsn),
        lambda: list(wal.replay()),
    ):
        try:
            use()
        except ForkedProcessError:
            caught += 1
    wal.close()
    del wal
    os._exit(caught)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
fill(wal, 2000, 100)
assert ids(wal) == [f"id-{i}" for i in range(2100)]
wal.close()
print(WalManager(config(wal_dir, kernel)).recovery_stats.clean_shutdown)
"""
    assert child(code, wal_dir, kernel) == ["8", "True"]
    assert len(ids(open_wal())) == 2100


def test_forked_child_does_not_hold_the_lock(open_wal: OpenWal, kernel: Any, wal_dir: Path) -> None:
    code = """
wal = WalManager(config(wal_dir, kernel))
fill(wal, 10)
reading, writing = os.pipe()
pid = os.fork()
if not pid:
    os.close(writing)
    os.read(reading, 1)  # lives until the parent is done
    os._exit(0)
wal.close()
again = WalManager(config(wal_dir, kernel))
print(len(ids(again)))
again.close()
os.close(writing)
os.waitpid(pid, 0)
"""
    assert child(code, wal_dir, kernel) == ["10"]


# -- closing


def test_use_after_close_raises(open_wal: OpenWal) -> None:
    wal = open_wal()
    lsn = fill(wal, 3)[-1]
    wal.close()
    before = reserved(wal)
    for use in (
        lambda: wal.log_insert("a", vector(1)),
        lambda: wal.log_insert("a", [1.0] * 16),
        lambda: wal.log_update("a", vector(1)),
        lambda: wal.log_delete("a"),
        lambda: wal.log_batch(["a", "b"], np.ones((2, 16), np.float32)),
        lambda: wal.log_batch(range(2000), np.ones((2000, 16), np.float32)),
        wal.sync,
        lambda: wal.release(lsn),
        wal.replay,
        wal.iter_entries,
        wal.read_all_entries,
    ):
        with pytest.raises(WalClosedError, match="open the directory again"):
            use()
    assert reserved(wal) == before
    assert wal.durable_lsn >= lsn
    assert_ordered(wal)


def test_close_may_be_called_again(open_wal: OpenWal) -> None:
    wal = open_wal()
    for _ in range(3):
        wal.close()
    with wal:
        pass


def test_leaving_the_context_closes_whatever_happened(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_insert("a", vector(1))
    with pytest.raises(KeyError, match="mine"), wal:
        raise KeyError("mine")
    with pytest.raises(WalClosedError):
        wal.log_delete("a")
    with open_wal() as again:
        assert again.recovery_stats.clean_shutdown
        assert ids(again) == ["a"]


def test_a_log_that_was_dropped_unclosed_is_recovered(kernel: Any, wal_dir: Path, open_wal: OpenWal) -> None:
    child("wal = WalManager(config(wal_dir, kernel)); fill(wal, 50)", wal_dir, kernel)
    wal = open_wal()
    assert not wal.recovery_stats.clean_shutdown
    assert len(ids(wal)) == 50


def test_clean_mark_is_gone_before_the_next_append(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 3)
    wal.close()
    again = open_wal(disk=disk)
    assert again.recovery_stats.clean_shutdown
    assert not open_wal(disk=disk.image("0/0/old")).recovery_stats.clean_shutdown


def test_checkpoint_of_a_log_alone_trims_nothing(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 3)
    with pytest.raises(NoStoreError, match="release"):
        wal.checkpoint()
    assert len(ids(wal)) == 3


# -- what is persisted


@pytest.mark.parametrize(
    ("field", "value", "created"),
    [
        ("dimension", 8, 16),
        ("dtype", "int8", "float16"),
        ("metric", "l2", "cosine"),
        ("segment_size", 128 << 10, SEGMENT),
    ],
)
def test_reopening_with_another_value_of_what_is_persisted_names_both(
    open_wal: OpenWal, wal_dir: Path, field: str, value: Any, created: Any
) -> None:
    kept = {"dtype": "float16", "metric": "cosine"}
    open_wal(**kept).close()
    before = contents(wal_dir)
    with pytest.raises(WalConfigError) as caught:
        open_wal(**(kept | {field: value}))
    assert (caught.value.field, caught.value.value) == (field, value)
    assert repr(value) in str(caught.value)
    assert repr(created) in str(caught.value)
    assert contents(wal_dir) == before
    open_wal(**kept)


def test_reopening_without_values_takes_the_persisted_ones(open_wal: OpenWal) -> None:
    wal = open_wal(dtype="int8", metric="l2")
    wal.log_insert("a", np.arange(16, dtype=np.int8))
    wal.close()
    again = open_wal(dtype=None, metric=None, dimension=None, segment_size=None)
    again.log_insert("b", np.arange(16, dtype=np.int8))
    assert [entry.vector.dtype for entry in again.replay()] == [np.int8] * 2


def test_replication_is_refused_and_nothing_is_created(open_wal: OpenWal, wal_dir: Path) -> None:
    with pytest.raises(WalConfigError, match="replicator") as caught:
        open_wal(enable_replication=True)
    assert caught.value.field == "enable_replication"
    assert not wal_dir.exists()


# -- the control file


def rewrite_control(wal_dir: Path, **changes: int) -> None:
    path = wal_dir / "control"
    content = bytearray(path.read_bytes())
    for slot, fields in read_slots(LOG_CONTROL, bytes(content)):
        packed = LOG_CONTROL.pack(**(fields | changes))
        content[SLOT_OFFSETS[slot] : SLOT_OFFSETS[slot] + len(packed)] = packed
    path.write_bytes(content)


def created(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 5)
    wal.close()


@pytest.mark.parametrize("changes", [{"version": 2}, {"features_required": 1}])
def test_log_of_a_newer_version_is_refused(open_wal: OpenWal, wal_dir: Path, changes: dict[str, int]) -> None:
    created(open_wal)
    rewrite_control(wal_dir, **changes)
    before = contents(wal_dir)
    with pytest.raises(FormatVersionError, match="newer mmwal") as caught:
        open_wal()
    assert caught.value.path == str(wal_dir / "control")
    assert contents(wal_dir) == before


@pytest.mark.parametrize("changes", [{"dtype": 9}, {"metric": 9}, {"segment_bytes": 3}, {"segment_bytes": 1 << 40}])
def test_control_file_that_says_what_cannot_be_is_damage(
    open_wal: OpenWal, wal_dir: Path, changes: dict[str, int]
) -> None:
    created(open_wal)
    rewrite_control(wal_dir, **changes)
    with pytest.raises(HeaderCorruptionError):
        open_wal()


@pytest.mark.parametrize("content", [b"root:x:0:0\n" * 100, b"MMWALDAT" + bytes(CONTROL_BYTES), b"{}"])
def test_control_file_of_something_else_is_foreign(open_wal: OpenWal, wal_dir: Path, content: bytes) -> None:
    created(open_wal)
    (wal_dir / "control").write_bytes(content)
    before = contents(wal_dir)
    with pytest.raises(ForeignDirectoryError) as caught:
        open_wal()
    assert caught.value.path == str(wal_dir / "control")
    assert contents(wal_dir) == before


def test_two_damaged_control_slots_are_an_error_and_one_is_not(open_wal: OpenWal, wal_dir: Path) -> None:
    created(open_wal)
    whole = (wal_dir / "control").read_bytes()
    assert len(read_slots(LOG_CONTROL, whole)) == 2
    for offsets in ((SLOT_OFFSETS[0],), (SLOT_OFFSETS[1],), SLOT_OFFSETS):
        content = bytearray(whole)
        for offset in offsets:
            content[offset + 40] ^= 1
        (wal_dir / "control").write_bytes(content)
        if len(offsets) == 2:
            with pytest.raises(HeaderCorruptionError) as caught:
                open_wal()
            assert caught.value.path == str(wal_dir / "control")
        else:
            wal = open_wal()
            assert len(ids(wal)) == 5
            wal.close()


@pytest.mark.parametrize("content", [b"", bytes(CONTROL_BYTES)])
def test_empty_control_file_is_damage(open_wal: OpenWal, wal_dir: Path, content: bytes) -> None:
    created(open_wal)
    (wal_dir / "control").write_bytes(content)
    with pytest.raises(HeaderCorruptionError):
        open_wal()


def test_segments_without_a_control_file_are_left_alone(open_wal: OpenWal, wal_dir: Path) -> None:
    created(open_wal)
    (wal_dir / "control").unlink()
    before = contents(wal_dir)
    with pytest.raises(ForeignDirectoryError, match="no control file"):
        open_wal()
    assert contents(wal_dir) == before


# -- the directory


def test_directory_is_created_with_its_parents(open_wal: OpenWal, tmp_path: Path) -> None:
    wal = open_wal(path=tmp_path / "a" / "b" / "wal")
    fill(wal, 1)
    assert (tmp_path / "a" / "b" / "wal").stat().st_mode & 0o777 == 0o700


def test_working_directory_may_change(open_wal: OpenWal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wal = open_wal(path="relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fill(wal, 2000)
    wal.close()
    assert os.listdir() == []
    assert len(ids(open_wal(path=tmp_path / "relative"))) == 2000


def test_file_where_the_directory_should_be_is_an_error(open_wal: OpenWal, wal_dir: Path) -> None:
    wal_dir.write_text("a file")
    with pytest.raises(NotADirectoryError):
        open_wal()
    with pytest.raises(NotADirectoryError):
        open_wal(path=wal_dir / "below")
    assert wal_dir.read_text() == "a file"


def test_place_below_tmp_draws_a_warning(wal_dir: Path, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(wal_dir.parent))
    with pytest.warns(DurabilityWarning, match="Use a directory"):
        WalManager(config(wal_dir, kernel)).close()


def test_directory_that_may_not_be_written_to_is_an_error(kernel: Any, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    for parent in [home, *home.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o055)
    code = """
os.setresuid(65534, 65534, 65534)
for path in (wal_dir, wal_dir + "/new"):
    try:
        WalManager(config(path, kernel))
    except PermissionError as error:
        print("refused", error.filename.startswith(wal_dir))
"""
    assert child(code, home, kernel) == ["refused True"] * 2
    assert os.listdir(home) == []


@pytest.fixture
def read_only(tmp_path: Path, wal_dir: Path) -> Iterator[Path]:
    """Mount `wal_dir` once more, read-only; skip where this process may not."""
    point = tmp_path / "read-only"
    point.mkdir()
    wal_dir.mkdir(mode=0o700)

    def run(*command: str) -> int:
        return subprocess.run(command, capture_output=True, check=False).returncode

    if os.geteuid() != 0 or run("mount", "--bind", str(wal_dir), str(point)):
        pytest.skip("mounting is not allowed here")
    try:
        if run("mount", "-o", "remount,ro,bind", str(point)):
            pytest.skip("mounting is not allowed here")
        yield point
    finally:
        run("umount", "--lazy", str(point))


def test_read_only_file_system_is_an_error(open_wal: OpenWal, wal_dir: Path, read_only: Path) -> None:
    created(open_wal)
    before = contents(wal_dir)
    with pytest.raises(OSError, match="Read-only file system"):
        open_wal(path=read_only)
    assert contents(wal_dir) == before


def test_config_is_kept_and_figures_are_plain(open_wal: OpenWal, kernel: Any) -> None:
    wal = open_wal()
    fill(wal, 3)
    wal.sync()
    m = wal.get_metrics()
    assert isinstance(wal.config, WalConfig)
    assert m.kernel == kernel.NAME
    assert m.syncs >= 1
    assert 0 < m.avg_sync_latency_ms <= m.max_sync_latency_ms
    assert m.current_size_mb == (m.reserved_lsn - m.redo_lsn) / 1e6
    assert m.max_size_mb == 1000.0


def test_nothing_is_logged_as_an_error_in_quiet_times(open_wal: OpenWal, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            wal = open_wal(sync_interval_ms=1)
            wal.release(fill(wal, 1000)[-1])
            wal.close()
    assert caplog.records == []


def test_closing_at_exit_is_not_needed_for_what_was_returned(open_wal: OpenWal, kernel: Any, wal_dir: Path) -> None:
    with contextlib.suppress(AssertionError):
        child("wal = WalManager(config(wal_dir, kernel)); fill(wal, 50); raise SystemExit(3)", wal_dir, kernel)
    assert len(ids(open_wal())) == 50
