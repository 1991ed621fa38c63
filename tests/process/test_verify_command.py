"""``mmwal verify``: what it prints, its exit codes, and that it changes nothing."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

import mmwal
from tests.process.conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A closed store of 40 vectors."""
    path = tmp_path / "store"
    with mmwal.open(path, dimension=4, segment_size=64 << 10) as store:
        store.insert_many([f"id-{n}" for n in range(40)], np.ones((40, 4), np.float32))
    return path


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


def state_of(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_whole_store_exits_0_and_is_left_alone(run: Run, root: Path) -> None:
    before = state_of(root)
    done = run("-m", "mmwal", "verify", "store")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Everything is whole." in done.stdout
    assert state_of(root) == before


def test_damage_exits_3_and_is_named_with_what_to_do(run: Run, root: Path) -> None:
    flip(root / "data" / "matrix", 7 * 64)
    flip(root / "data" / "control", 4196)
    before = state_of(root)
    done = run("-m", "mmwal", "verify", "store")
    assert done.returncode == 3
    assert "data/matrix, offset 448, LSN" in done.stdout
    assert "'id-7'" in done.stdout
    assert "data/control" in done.stdout
    assert "backup" in done.stdout
    assert "Traceback" not in done.stderr
    assert state_of(root) == before


def test_directory_that_refuses_to_open_is_verified(run: Run, root: Path) -> None:
    for offset in (100, 4196):
        flip(root / "wal" / "control", offset)
    with pytest.raises(mmwal.HeaderCorruptionError):
        mmwal.open(root)
    done = run("-m", "mmwal", "verify", "store", "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [(finding["what"], os.path.basename(finding["path"])) for finding in found["findings"]] == [
        ("control file", "control")
    ]
    assert (found["entries"], found["rows"]) == (2, 40)


def test_it_works_beside_a_live_writer(run: Run, root: Path) -> None:
    with mmwal.open(root) as store:
        store.insert("more", [1, 2, 3, 4])
        done = run("-m", "mmwal", "verify", "store", "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["findings"] == []


def test_a_log_alone_and_a_missing_directory(run: Run, tmp_path: Path) -> None:
    with mmwal.WalManager(mmwal.WalConfig(wal_dir=tmp_path / "log", dimension=4, segment_size=64 << 10)) as wal:
        wal.log_insert("a", np.ones(4, np.float32))
    assert run("-m", "mmwal", "verify", "log").returncode == 0
    done = run("-m", "mmwal", "verify", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("arguments", [[], ["store", "--kernel", "rust"]], ids=["no-path", "unknown-kernel"])
def test_mistakes_exit_2(run: Run, arguments: list[str]) -> None:
    assert run("-m", "mmwal", "verify", *arguments).returncode == 2
