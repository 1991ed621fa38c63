"""The tools that kill writers and cut the power: their checker finds what is wrong, and they find it end to end."""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmwal
from tests.process.conftest import environment
from tools import kills
from tools.history import Wrong, check, look, new_truth, open_handle, write_on
from tools.kills import Combination, Killer, Report

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")


def run_tool(name: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / name), "--json", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


# ---- the checker


@pytest.fixture(params=["store", "log"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A truth after 60 writes, what the handle shows, and the truth after 50."""
    truth, earlier = new_truth(request.param, 7), new_truth(request.param, 7)
    handle = open_handle(request.param, str(tmp_path / "x"), None, 5000)
    try:
        write_on(handle, truth, lambda act: None, random.Random(1), 60)
        found = look(handle)
    finally:
        handle.close()
    earlier.lsns, earlier.released_lsn = truth.lsns, truth.released_lsn
    earlier.advance_to(50)
    return truth, found, earlier


def test_checker_says_after_how_many_writes_it_was_so(written: Any) -> None:
    truth, found, earlier = written
    assert check(earlier, found, 70) == 60
    assert check(truth, found, 60) == 60


def test_checker_finds_what_more_was_promised(written: Any) -> None:
    truth, found, _ = written
    later = truth.copy()
    later.advance_to(63)
    with pytest.raises(Wrong, match=r"lost: 3 of 63 promised writes"):
        check(later, found, 70)


def test_checker_finds_what_had_not_begun(written: Any) -> None:
    _, found, earlier = written
    with pytest.raises(Wrong, match=r"no state that ever was, of 50 to 59 writes"):
        check(earlier, found, 59)


@pytest.mark.parametrize("what", ["vector", "metadata", "lsn", "gone", "more"])
def test_checker_finds_one_wrong_value(written: Any, what: str) -> None:
    _, found, earlier = written
    if isinstance(found, dict):
        id = next(reversed(found))
        vector, metadata, lsn = found.pop(id)
        spoilt = {
            "vector": {id: (bytes(len(vector)), metadata, lsn)},
            "metadata": {id: (vector, {"other": 1}, lsn)},
            "lsn": {id: (vector, metadata, lsn + 64)},
            "gone": {},
            "more": {id: (vector, metadata, lsn), "more": (vector, metadata, lsn)},
        }[what]
        found |= spoilt
    else:
        oldest_lsn, groups = found
        rows, lsn = groups[-2]
        kind, id, vector, metadata = rows[0]
        groups[-2] = {
            "vector": (((kind, id, b"other", metadata), *rows[1:]), lsn),
            "metadata": (((kind, id, vector, {"other": 1}), *rows[1:]), lsn),
            "lsn": (rows, lsn + 64),
            "gone": groups[-1],
            "more": (rows * 2, lsn),
        }[what]
        found = oldest_lsn, groups
    with pytest.raises(Wrong, match=r"no state that ever was|promised"):
        check(earlier, found, 70)


def test_log_that_begins_behind_what_was_released_is_wrong(tmp_path: Path) -> None:
    truth = new_truth("log", 3)
    with open_handle("log", str(tmp_path / "x"), None, 5000) as log:
        write_on(log, truth, lambda act: None, random.Random(1), 60)
        oldest_lsn, groups = look(log)
    truth.released_lsn = oldest_lsn
    assert check(truth, (oldest_lsn, groups), 60) == 60
    with pytest.raises(Wrong, match="lost"):
        check(truth, (groups[0][1], groups[1:]), 60)


# ---- kills


@pytest.fixture
def killer(tmp_path: Path) -> Killer:
    kernel = mmwal.kernel_in_use()
    return Killer(Combination("store", kernel, 100), tmp_path / "root", 5, Report())


def test_row_lost_between_two_lives_is_found_and_can_be_seen_again(tmp_path: Path, killer: Killer) -> None:
    (tmp_path / "root").mkdir()
    while killer._report.writes < 20:
        killer.life(tmp_path / "kept")
    assert killer._report.violation is None
    with open_handle("store", str(killer._directory), None, 0) as store:
        store.delete(store.ids()[0])

    def live_on() -> None:
        for _ in range(5):  # the first may be killed before it has looked
            killer.life(tmp_path / "kept")

    with pytest.raises(Wrong):
        live_on()
    assert killer._report.lost + killer._report.phantom == 1
    violation = killer._report.violation
    assert violation is not None
    (tmp_path / "again").mkdir()
    with pytest.raises(Wrong):
        kills.replay(Path(violation["kept"]), tmp_path / "again")


def test_some_kills_of_each_kind_lose_nothing(tmp_path: Path) -> None:
    code, report = run_tool("kills.py", "--kills", "24", "--dir", str(tmp_path), "--keep", str(tmp_path / "kept"))
    assert (code, report["violation"], report["skipped"]) == (0, None, None), report
    assert (report["kills"], report["lost"], report["phantom"], report["refused"]) == (24, 0, 0, 0)
    assert sum(report["kills_by_phase"].values()) == sum(report["kills_by_combination"].values()) == 24
    assert report["writes"] > 0
    assert list(tmp_path.iterdir()) == [], "it cleans up"


@pytest.mark.slow
def test_hundreds_of_kills_lose_nothing(tmp_path: Path) -> None:
    code, report = run_tool("kills.py", "--kills", "400", "--workers", "2", "--dir", str(tmp_path))
    assert (code, report["violation"]) == (0, None), report
    assert report["kills"] == 400
    assert {"open", "write", "rotation", "checkpoint"} <= report["kills_by_phase"].keys()


# ---- power cuts


def test_log_of_block_writes_is_read_in_order(tmp_path: Path) -> None:
    """By hand, a log as QEMU writes it: a write, a mark, a flush, a write of nothing, zeros."""
    import struct

    from tools import blocks

    def entry(sector: int, data: bytes, flags: int = 0) -> bytes:
        return struct.pack("<4Q", sector, len(data) // 512, flags, 0).ljust(512, b"\0") + data

    mark = blocks._MARK_LAYOUT.pack(blocks._MARK_MAGIC, 3, 700, 640, 1, 64, 4).ljust(512, b"\0")
    entries = [entry(8, b"a" * 1024), entry(2048, mark), entry(0, b"", 1), entry(9, b"b" * 512)]
    head = struct.pack("<QQQL", blocks._LOG_MAGIC, 1, len(entries), 512).ljust(512, b"\0")
    (tmp_path / "log").write_bytes(head + b"".join(entries))
    events = list(blocks.read_log(str(tmp_path / "log"), 1 << 20))
    assert [(event.offset, event.length, event.flush, event.mark) for event in events] == [
        (4096, 1024, False, None),
        (0, 0, False, (3, 700, 640, 1, 64, 4)),
        (0, 0, True, None),
        (4608, 512, False, None),
    ]
    promise = blocks.Promise()
    blocks._follow(promise, events[1].mark, [100, 640, 700])
    assert promise == blocks.Promise(durable=2, begun=4, released_lsn=64)


def test_device_undoes_writes_and_knows_what_it_has_seen() -> None:
    from tools.blocks import Device

    device = Device(bytearray(b"x" * 8192 + bytes(8192)))
    digest, content = device.digest, bytes(device.content)
    first = device.write(4000, b"y" * 200)
    second = device.write(4100, b"z" * 9000)
    assert device.digest != digest
    fd = os.memfd_create("test")
    os.truncate(fd, 16384)
    device.store(fd)
    assert os.pread(fd, 16384, 0) == bytes(device.content) == content[:4000] + b"y" * 100 + b"z" * 9000 + bytes(3284)
    os.close(fd)
    device.write(4100, second)
    device.write(4000, first)
    assert (device.digest, bytes(device.content)) == (digest, content)


@pytest.mark.parametrize("variant", ["all", "none", "some", "all-but-one", "one", "torn"])
def test_what_survives_a_cut_is_a_part_of_what_was_written(variant: str) -> None:
    from tools.blocks import Event, survivors

    pending = [Event(n << 16, 8192, bytes([n]) * 8192) for n in range(1, 9)] + [Event(0, 512)]
    whole = {(event.offset, event.data or bytes(512)) for event in pending}
    kept = [survivors(pending, variant, "ext4", random.Random(seed)) for seed in range(20)]
    for found in kept:
        for offset, data in found:
            assert any(at <= offset and offset + len(data) <= at + len(old) for at, old in whole)
            assert set(data) <= {offset >> 16}
    counts = {"all": {9}, "none": {0}, "all-but-one": {8}, "one": {1}}
    if variant in counts:
        assert {len(found) for found in kept} == counts[variant]
    if variant == "torn":
        assert any(len(data) == 512 for found in kept for _, data in found)


def test_mutants_that_the_block_images_must_find_exist() -> None:
    from tools.blocks import PROVEN
    from tools.mutants import MUTANTS

    assert len(PROVEN) >= 3
    assert PROVEN.keys() <= {mutant.name for mutant in MUTANTS}


def test_machine_without_a_program_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import devices

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        devices.Skip, match=r"needs qemu-storage-daemon, mkfs\.xfs: apt-get install .*qemu-system-common"
    ):
        devices.need("qemu-storage-daemon", file_systems=("xfs",), root=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_no_crash_image_of_a_real_file_system_loses_what_was_promised(tmp_path: Path, kind: str) -> None:
    code, report = run_tool("blocks.py", "--file-system", kind, "--images", "120", "--dir", str(tmp_path))
    if report["skipped"]:
        pytest.skip(report["skipped"])
    assert (code, report["violation"], report["unmountable"]) == (0, None, 0), report
    assert report["distinct"] >= 100
    assert list(tmp_path.iterdir()) == [], "it cleans up"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_known_mutants_are_found_in_block_images(tmp_path: Path) -> None:
    names = ["acknowledged_without_sync", "durable_moves_before_the_sync", "new_segment_without_directory_sync"]
    arguments = ["--prove", "--images", "600", "--seconds", "120", "--dir", str(tmp_path), "--mutants", *names]
    code, report = run_tool("blocks.py", *arguments)
    if report["skipped"]:
        pytest.skip(report["skipped"])
    assert {name: mutant["found"] for name, mutant in report["mutants"].items()} == dict.fromkeys(names, True)
    assert code == 0


def test_arguments_leave_the_combinations_they_name() -> None:
    chosen = kills.combinations_of(argparse.Namespace(kernel="py", what="log"))
    assert [combination.name for combination in chosen] == ["log-py-0", "log-py-100", "log-py-5000"]
