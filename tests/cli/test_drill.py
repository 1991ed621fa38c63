"""The recovery drill: a copy of a store comes back alike, in whatever state it is; what does not is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
import mmwal.cli.drill as drills
from mmwal.cli.app import CORRUPTION, FAILURE, OK
from mmwal.format.segment import DATA_OFFSET
from tests.cli.test_operator import REPOSITORY, USAGE, Said, closed, flip, killed, killed_once, said, segments, state_of
from tests.store.stores import crashed_copy

__all__ = ["closed", "killed", "killed_once", "said"]
pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def drilled(said: Said, store: Path, *words: Any) -> dict[str, Any]:
    """A drill that must go well, and leave nothing behind."""
    before = sorted(store.parent.iterdir())
    code, found = said.json("drill", store, *words)
    assert code == OK, found
    assert found["ok"]
    assert sorted(store.parent.iterdir()) == before
    return dict(found)


@pytest.mark.parametrize("state", ["killed", "closed"])
def test_copy_of_a_store_comes_back_alike_and_the_store_is_not_changed(
    said: Said, request: pytest.FixtureRequest, state: str, kernel: Any
) -> None:
    store: Path = request.getfixturevalue(state)
    before = state_of(store)
    found = drilled(said, store, "--kernel", kernel.NAME)
    assert state_of(store) == before
    with mmwal.open(store, read_only=True) as reader:
        assert found["rows"] == len(reader)
    assert found["report"]["ok"]
    assert found["stats"]["clean_shutdown"] == (state == "closed")
    assert found["copied_bytes"] > 0


def test_it_says_what_it_did_on_one_screen(said: Said, killed: Path) -> None:
    code, out, _ = said("drill", killed)
    assert code == OK
    words = [line.split()[0] for line in out.splitlines()]
    assert words == ["copied", "recovered", "verified", "compared"]
    assert "whole" in out
    assert "alike" in out


def test_kept_copy_is_a_store(said: Said, killed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    code, found = said.json("drill", killed, "--work", work, "--keep")
    assert code == OK
    kept = Path(found["kept"])
    assert kept.parent == work
    with mmwal.open(kept) as copy, mmwal.open(killed, read_only=True) as store:
        assert copy.ids() == store.ids()
        assert copy.recovery_stats.clean_shutdown


def test_store_on_two_disks(said: Said, killed: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.move(killed / "data", tmp_path / "other" / "data")
    code, found = said.json("drill", "--wal-dir", killed / "wal", "--data-dir", tmp_path / "other" / "data")
    assert code == OK
    assert found["ok"]


def test_store_that_is_written_to_meanwhile(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "store"
    stop = threading.Event()
    with mmwal.open(path, dimension=16, segment_size=64 << 10, max_wal_size=64 << 20) as store:
        store.insert_many(range(500), np.ones((500, 16), np.float32))
        store.checkpoint()

        def write() -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                store.upsert_many(range(50), np.full((50, 16), turn, np.float32), [{"turn": turn}] * 50)
                with store.transaction() as txn:
                    txn.upsert("left", np.full(16, turn, np.float32))
                    txn.upsert("right", np.full(16, turn, np.float32))
                if turn % 40 == 0:
                    store.checkpoint()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            lsns = [drilled(said, path)["lsn"] for _ in range(4)]
        finally:
            stop.set()
            writer.join()
    assert sorted(set(lsns)) == lsns


def test_store_that_moves_on_too_fast_is_given_up_in_words(said: Said, killed: Path, monkeypatch: Any) -> None:
    def moved(*_: Any) -> int:
        raise drills.MovedOn

    monkeypatch.setattr(drills, "_copy", moved)
    code, _, err = said("drill", killed)
    assert code == FAILURE
    assert "faster than it can be copied" in err


def test_log_that_ends_with_a_full_segment(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "store"
    size = 64 << 10
    store = mmwal.open(path, dimension=16, segment_size=size, sync_interval_ms=3_600_000)
    assert store.wal is not None
    n = 0
    while store.wal.last_lsn % size != size - 512:
        left = size - 512 - store.wal.last_lsn % size
        if left >= 4096 or left < 192:
            store.insert(n, np.full(16, n, np.float32))
        else:  # fits exactly: header, vector, table, id
            store.insert("x" * (left - 64 - 64 - 4), np.full(16, n, np.float32))
        n += 1
    assert drilled(said, path)["rows"] == n
    store.close()


def test_damaged_vector_is_refused_as_opening_would(said: Said, closed: Path) -> None:
    flip(closed / "data" / "matrix", 1)
    code, _, err = said("drill", closed)
    assert code == CORRUPTION
    assert "data/matrix" in err


def test_log_that_ends_where_recovery_cut_it(said: Said, tmp_path: Path) -> None:
    """The last segment that holds anything is sealed there, and an empty one stands behind it."""
    fields: dict[str, Any] = {"segment_size": 64 << 10, "sync_interval_ms": 3_600_000}
    with mmwal.open(tmp_path / "first", dimension=16, **fields) as store:
        store.insert_many(range(3000), np.ones((3000, 16), np.float32))
        store.checkpoint()
        store.checkpoint()
        killed = crashed_copy(tmp_path / "first", tmp_path / "killed")
    with mmwal.open(killed, **fields) as store:
        assert store.recovery_stats.applied_entries == 0
        left = crashed_copy(killed, tmp_path / "left")
    assert drilled(said, left)["rows"] == 3000


def test_copy_that_came_back_damaged_is_named(said: Said, closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_file = drills._copy_file

    def copy_badly(source: str, to: str, *sizes: int) -> None:
        copy_file(source, to, *sizes)
        if to.endswith("matrix"):
            flip(Path(to), 1)

    monkeypatch.setattr(drills, "_copy_file", copy_badly)
    code, found = said.json("drill", closed)
    assert code == CORRUPTION
    assert not found["ok"]
    assert [finding["what"] for finding in found["report"]["findings"]] == ["row"]
    assert found["differing"] == 1
    code, out, _ = said("drill", closed)
    assert code == CORRUPTION
    assert "1 damaged" in out


def test_damaged_log_is_refused_as_opening_would(said: Said, killed: Path) -> None:
    before = sorted(killed.parent.iterdir())
    flip(segments(killed)[1], DATA_OFFSET + 100)
    code, _, err = said("drill", killed)
    assert code == CORRUPTION
    assert segments(killed)[1].name in err
    assert sorted(killed.parent.iterdir()) == before


def test_what_differs_is_named(said: Said, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recover = mmwal.CrashRecoveryManager.recover

    def otherwise(self: Any) -> mmwal.VectorStore:
        store = recover(self)
        store.delete("id-7")
        store.update("id-8", np.zeros(4, np.float32), {"n": 8})
        store.update("id-9", None, {"n": -9})
        store.insert("more", np.zeros(4, np.float32))
        return store

    monkeypatch.setattr(mmwal.CrashRecoveryManager, "recover", otherwise)
    code, found = said.json("drill", killed)
    assert code == CORRUPTION
    assert dict(map(tuple, found["differences"])) == {
        "id-7": "is missing from the copy",
        "id-8": "differs in vector and LSN",
        "id-9": "differs in metadata and LSN",
        "more": "is in the copy alone",
    }
    assert found["differing"] == 4
    _, out, _ = said("drill", killed)
    assert "4 differ" in out
    assert "id 'id-7' is missing from the copy" in out


def test_no_room_for_the_copy_is_said_before_it_begins(said: Said, killed: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(killed)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, _, err = said("drill", killed)
    assert code == FAILURE
    assert "1,000 are free" in err
    assert "--work" in err


@pytest.mark.parametrize("words", [(), ("{store}", "--wal-dir", "x"), ("{store}/wal", "--workers", "0")])
def test_command_line_that_is_wrong(said: Said, killed: Path, words: tuple[str, ...]) -> None:
    assert said("drill", *(word.format(store=killed) for word in words))[0] == USAGE


def test_what_is_no_store(said: Said, tmp_path: Path) -> None:
    code, _, err = said("drill", tmp_path / "none")
    assert code == FAILURE
    assert "none" in err


def test_script_of_the_checkout_does_the_same(killed: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(REPOSITORY / "tools" / "drill.py"),
        str(killed),
        "--json",
        "--workers",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout)["ok"]
