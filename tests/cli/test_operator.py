"""The operator's commands: what they print, their exit codes, and that looking changes nothing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.cli.app import COMMANDS, CORRUPTION, FAILURE, OK, run
from mmwal.cli.inspect import writer_of
from mmwal.format.segment import DATA_OFFSET
from tests.disk.conftest import mount_tmpfs

__all__ = ["mount_tmpfs"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
USAGE = 2
WRITER = """
import os, sys
import numpy as np
import mmwal
store = mmwal.open(sys.argv[1], dimension=4, segment_size=64 << 10)
store.insert_many([f"id-{n}" for n in range(300)], np.ones((300, 4), np.float32), [{"n": n} for n in range(300)])
store.checkpoint()
store.checkpoint()
for n in range(900):
    store.upsert(n % 400, [n, 0, 0, 0])
store.sync()
store.delete("id-3")
store.update("id-4", None, {"title": "four"})
store.sync()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="session")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "store"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WRITER, str(path)], check=False, cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    return path


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """A store that was killed: a checkpoint, and some segments of the log behind it."""
    path = tmp_path / "store"
    shutil.copytree(killed_once, path)
    return path


@pytest.fixture
def closed(killed: Path) -> Path:
    """The same, recovered and closed cleanly."""
    mmwal.open(killed).close()
    return killed


def state_of(root: Path) -> dict[str, tuple[str, int, int]]:
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_size,
            path.stat().st_mtime_ns,
        )
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "lock"  # it says who held it last
    }


def contents_of(root: Path) -> dict[str, str]:
    return {name: content for name, (content, _, _) in state_of(root).items()}


def segments(root: Path) -> list[Path]:
    return sorted((root / "wal").glob("segment-*"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


class Said:
    """Runs a command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: Any) -> tuple[int, str, str]:
        code = run([str(word) for word in words])
        said = self._capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    def json(self, *words: Any) -> tuple[int, Any]:
        code, out, _ = self(*words, "--json")
        return code, json.loads(out)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(capsys)


# -- looking


def test_inspect_shows_a_killed_store_on_one_screen(said: Said, killed: Path) -> None:
    before = state_of(killed)
    code, out, _ = said("inspect", killed)
    assert code == OK and len(out.splitlines()) < 24
    for word in ("4 x float32, inner_product", "not closed cleanly", "300 ids", "replay from"):
        assert word in out
    code, found = said.json("inspect", killed)
    assert code == OK and found["problems"] == []
    log, data = found["log"], found["data"]
    assert log["oldest_lsn"] <= log["redo_lsn"] <= log["durable_lsn"] <= log["end_lsn"]
    assert (data["live_rows"], found["writer"], log["closed_cleanly"]) == (300, None, False)
    assert log["files"] == len(segments(killed))
    assert state_of(killed) == before


def test_inspect_names_the_process_that_writes(said: Said, closed: Path) -> None:
    with mmwal.open(closed) as store:
        store.insert("more", [1, 2, 3, 4])
        code, found = said.json("inspect", closed)
        assert (code, found["writer"]) == (OK, os.getpid())
        assert f"open in process {os.getpid()}" in said("inspect", closed)[1]
    assert writer_of(str(closed / "wal")) is None
    assert "closed" in said("inspect", closed)[1]


def test_inspect_of_a_damaged_store_shows_the_rest(said: Said, killed: Path) -> None:
    flip(segments(killed)[1], DATA_OFFSET + 70)
    code, out, _ = said("inspect", killed)
    assert code == CORRUPTION
    assert "problem" in out and segments(killed)[1].name in out and "300 ids" in out


def test_control_shows_both_slots_of_both_files(said: Said, killed: Path) -> None:
    code, found = said.json("control", killed)
    assert code == OK
    assert [len(found[name]["slots"]) for name in ("log", "data")] == [2, 2]
    assert sum(slot["newest"] for slot in found["data"]["slots"]) == 1
    newest = next(slot for slot in found["data"]["slots"] if slot["newest"])
    assert newest["live_rows"] == 300
    assert "live_rows" in said("control", killed)[1]
    flip(killed / "data" / "control", 100)
    code, found = said.json("control", killed)
    assert (code, found["data"]["slots"][0], found["data"]["problem"]) == (OK, None, None)
    flip(killed / "data" / "control", 4096 + 100)
    code, found = said.json("control", killed)
    assert code == CORRUPTION and "both slots" in found["data"]["problem"]
    assert "blank or damaged" in said("control", killed)[1]


def test_dump_prints_entries_and_filters_them(said: Said, killed: Path) -> None:
    before = state_of(killed)
    code, out, _ = said("dump", killed, "--json", "--vectors")
    entries = [json.loads(line) for line in out.splitlines()]
    assert code == OK
    assert [entry["lsn"] for entry in entries] == sorted(entry["lsn"] for entry in entries)
    kinds = [entry["kind"] for entry in entries]
    assert (kinds.count("insert"), kinds.count("upsert"), kinds.count("delete")) == (300, 900, 1)
    assert next(entry for entry in entries if entry["kind"] == "upsert")["vector"] == [0.0, 0.0, 0.0, 0.0]

    def ids(*words: Any) -> list[Any]:
        return [json.loads(line).get("id") for line in said("dump", killed, "--json", *words)[1].splitlines()]

    assert ids("--id", "id-3") == ["id-3", "id-3"]
    assert ids("--id", "7") == [7, 7, 7]
    assert ids("--kind", "delete", "--kind", "update") == ["id-3", "id-4"]
    middle = entries[500]["lsn"]
    assert len(ids("--from-lsn", middle)) + len(ids("--to-lsn", middle)) == len(entries)
    assert len(ids("--limit", 5)) == 5
    assert "'id-4'" in said("dump", killed, "--kind", "update")[1]
    assert "vector" not in json.loads(said("dump", killed, "--json", "--limit", 1)[1])
    assert len(said("dump", segments(killed)[0], "--limit", 3)[1].splitlines()) == 3
    assert state_of(killed) == before


def test_dump_stops_at_damage_with_what_stands_before(said: Said, killed: Path) -> None:
    flip(segments(killed)[1], DATA_OFFSET + 70)
    code, _, err = said("dump", killed)
    assert code == CORRUPTION
    assert segments(killed)[1].name in err and "backup" in err


def test_reader_that_stops_reading_is_no_error(killed: Path) -> None:
    command = f"{sys.executable} -m mmwal dump {killed} | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")


# -- recovering


@pytest.mark.parametrize("words", [(), ("--workers", "2")])
def test_recover_gives_back_all_and_closes_cleanly(said: Said, killed: Path, words: tuple[str, ...]) -> None:
    code, found = said.json("recover", killed, *words)
    assert (code, found["dry_run"], found["stats"]["completed"]) == (OK, False, True)
    assert found["stats"]["applied_entries"] == 902
    assert found["stats"]["workers"] == (2 if words else 1)
    with mmwal.open(killed) as store:
        assert store.recovery_stats.clean_shutdown
        assert (len(store), store[399].tolist()[0], "id-3" in store) == (699, 799.0, False)


def test_dry_run_reports_the_same_and_changes_no_byte(said: Said, killed: Path) -> None:
    before = state_of(killed)
    code, found = said.json("recover", "--wal-dir", killed / "wal", "--data-dir", killed / "data", "--dry-run")
    assert (code, found["stats"]["applied_entries"], found["losses"]) == (OK, 902, [])
    assert "nothing was changed" in said("recover", killed, "--dry-run")[1]
    assert state_of(killed) == before
    mmwal_recovered = said.json("recover", killed)[1]["stats"]
    assert mmwal_recovered["applied_entries"] == found["stats"]["applied_entries"]


def test_damaged_middle_is_refused_and_can_be_left_out(said: Said, killed: Path) -> None:
    flip(segments(killed)[1], DATA_OFFSET + 70)
    before = contents_of(killed)
    code, _, err = said("recover", killed)
    assert code == CORRUPTION
    assert segments(killed)[1].name in err and "LSN" in err and "backup" in err
    assert said("recover", killed, "--dry-run")[0] == CORRUPTION
    code, found = said.json("recover", killed, "--dry-run", "--skip-corrupted")
    assert (code, len(found["losses"])) == (OK, 1)
    assert contents_of(killed) == before
    code, found = said.json("recover", killed, "--skip-corrupted")
    assert (code, found["stats"]["corrupted_entries"]) == (OK, 1)
    with mmwal.open(killed) as store:
        assert len(store) > 600


def test_deleted_segment_is_named(said: Said, killed: Path) -> None:
    missing = segments(killed)[1]
    missing.unlink()
    code, _, err = said("recover", killed)
    assert code == CORRUPTION
    assert missing.name in err and "missing" in err


def test_locked_directory_names_who_has_it(said: Said, closed: Path) -> None:
    with mmwal.open(closed):
        code, _, err = said("recover", closed)
        assert code == FAILURE
        assert str(os.getpid()) in err
        assert said("repair", closed)[0] == FAILURE
        assert said("repair", closed, "--dry-run")[0] == OK


@pytest.mark.parametrize("command", ["inspect", "control", "recover", "repair", "dump"])
def test_what_is_no_store_is_said_in_one_line(said: Said, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty", tmp_path / "file"):
        before = state_of(tmp_path)
        code, _, err = said(command, path)
        assert code in (FAILURE, CORRUPTION), path
        assert str(path) in err and len(err.splitlines()) == 1
        assert state_of(tmp_path) == before


def test_foreign_files_are_not_touched(said: Said, closed: Path) -> None:
    (closed / "wal" / "control").write_bytes(b"#!/bin/sh\n" * 1000)
    before = state_of(closed)
    for command in ("recover", "repair"):
        code, _, err = said(command, closed)
        assert code in (CORRUPTION, FAILURE)
        assert "control" in err
    assert state_of(closed) == before


def test_log_alone_is_repaired_and_not_recovered(said: Said, tmp_path: Path) -> None:
    with mmwal.WalManager(mmwal.WalConfig(wal_dir=tmp_path / "wal", segment_size=64 << 10)) as wal:
        wal.log_insert("a", [1.0, 2.0])
    code, _, err = said("recover", "--wal-dir", tmp_path / "wal")
    assert code == USAGE and "log alone" in err
    code, found = said.json("repair", tmp_path / "wal")
    assert (code, found["clean"], found["steps"]) == (OK, True, [])


def test_wrong_command_lines_are_usage_errors(said: Said, killed: Path) -> None:
    for words in (
        ("recover",),
        ("recover", killed, "--wal-dir", killed / "wal"),
        ("recover", killed, "--workers", "0"),
        ("dump", killed, "--kind", "frob"),
        ("bench-fsync", killed / "missing"),
        ("completion", "tcsh"),
        ("frob",),
    ):
        code, _, err = said(*words)
        assert code == USAGE, words
        assert err, words


def test_full_disk_is_said_and_recovery_works_once_there_is_room(said: Said, killed: Path, mount_tmpfs: Any) -> None:
    place = Path(mount_tmpfs("size=4m"))
    shutil.copytree(killed, place / "store")
    free = os.statvfs(place)
    (place / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
    before = contents_of(place / "store")
    for command in ("recover", "repair"):
        code, _, err = said(command, place / "store")
        assert code == FAILURE and "space" in err, command
    assert said("inspect", place / "store")[0] == OK
    code, _, err = said("bench-fsync", place)
    assert (code, "space" in err) == (FAILURE, True)
    assert len(before) == len(contents_of(place / "store"))
    (place / "filler").unlink()
    code, found = said.json("recover", place / "store")
    assert (code, found["stats"]["applied_entries"]) == (OK, 902)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("closed_part", ["", "wal", "wal/control", "data", "data/control"])
def test_missing_rights_are_said(killed: Path, closed_part: str) -> None:
    code = (
        "import encodings.ascii, importlib, os, sys; from mmwal.cli.app import COMMANDS, run;"
        "[importlib.import_module(module) for module, _ in COMMANDS.values()];"
        "os.seteuid(65534); print(*(run([name, sys.argv[1]]) for name in sys.argv[2:]), file=sys.stderr)"
    )
    with tempfile.TemporaryDirectory() as place:  # that of pytest is closed to others
        store = Path(place, "store")
        shutil.copytree(killed, store)
        for path in (Path(place), store, *store.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (store / closed_part).chmod(0o000)
        commands = ["control", "inspect", "recover", "repair", *(["dump"] if "data" not in closed_part else [])]
        words = [sys.executable, "-W", "ignore", "-c", code, str(store), *commands]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    *said, codes = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert set(codes.split()) == {str(FAILURE)}, codes  # nothing is known to be damaged
    problems = "\n".join([done.stdout, *said])
    assert problems.lower().count("permission denied") >= len(commands), problems
    assert problems.count("run this as the user to whom it belongs") >= len(commands), problems


def test_recovery_over_its_time_fails_and_changes_nothing(said: Said, killed: Path, monkeypatch: Any) -> None:
    import time

    from mmwal.disk.posix import PosixDisk

    monkeypatch.setattr(PosixDisk, "monotonic_ns", lambda self: int(time.monotonic_ns() * 1000))
    before = contents_of(killed)
    code, _, err = said("recover", killed, "--max-time-ms", 1)
    assert code == FAILURE and "max_recovery_time_ms" in err
    assert contents_of(killed) == before


# -- the past


def lsns_of(said: Said, root: Path, *words: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said("dump", root, "--json", *words)[1].splitlines()]


def test_recover_to_a_position_makes_a_new_store_and_leaves_the_old(said: Said, killed: Path, tmp_path: Path) -> None:
    before = state_of(killed)
    delete = lsns_of(said, killed, "--kind", "delete")[0]["lsn"]
    out = tmp_path / "new" / "then"
    code, found = said.json("recover", killed, "--to-lsn", delete - 1, "--out", out)
    assert (code, found["target_lsn"], found["out"], found["dry_run"]) == (OK, delete - 1, str(out), False)
    assert found["stats"]["applied_entries"] == 900
    assert state_of(killed) == before
    assert [path.name for path in out.parent.iterdir()] == ["then"]
    with mmwal.open(out) as store, mmwal.open(killed, read_only=True) as now:
        assert store.recovery_stats.clean_shutdown
        assert store.recovery_stats.applied_entries == 0  # its checkpoint has all
        assert (len(store), "id-3" in store, store.get("id-4").metadata) == (700, True, {"n": 4})
        assert (store[7].tolist(), store[399].tolist()[0]) == ([807.0, 0.0, 0.0, 0.0], 799.0)
        assert (len(now), "id-3" in now, now.get("id-4").metadata) == (699, False, {"title": "four"})
    assert mmwal.verify(out).ok
    assert f"written to {tmp_path}/again" in said("recover", killed, "--to-lsn", delete, "--out", tmp_path / "again")[1]
    with mmwal.open(tmp_path / "again") as store:
        assert "id-3" not in store


def test_recover_to_a_time_takes_what_was_before(said: Said, killed: Path, tmp_path: Path) -> None:
    entries = lsns_of(said, killed)
    delete = next(entry for entry in entries if entry["kind"] == "delete")
    code, found = said.json("recover", killed, "--to-time", delete["time"], "--dry-run")
    assert (code, found["dry_run"], found["out"]) == (OK, True, None)
    within = [entry["lsn"] for entry in entries if entry["time"] <= delete["time"]]
    assert delete["lsn"] in within
    assert within[-1] <= found["target_lsn"] <= entries[len(within)]["lsn"]
    (tmp_path / "out").mkdir()
    code, _ = said.json("recover", killed, "--to-time", "2999-01-01T00:00:00Z", "--out", tmp_path / "out")
    assert code == OK
    with mmwal.open(tmp_path / "out") as store, mmwal.open(killed, read_only=True) as now:
        assert store.ids() == now.ids()
        assert [store.get(id)[:3:2] for id in store] == [now.get(id)[:3:2] for id in now]


def test_recover_to_a_position_out_of_reach_names_the_nearest(said: Said, closed: Path, tmp_path: Path) -> None:
    data = said.json("inspect", closed)[1]
    least, end = data["data"]["older_checkpoint_redo_lsn"], data["log"]["end_lsn"]
    before = state_of(tmp_path)
    for lsn, nearest in ((least - 1, least), (end + 1, end)):
        code, _, err = said("recover", closed, "--to-lsn", lsn, "--out", tmp_path / "out")
        assert (code, len(err.splitlines())) == (USAGE, 1)
        assert f"LSN {nearest}" in err
    code, _, err = said("recover", closed, "--to-time", "1999-01-01T00:00:00+01:00", "--dry-run")
    assert code == USAGE and "LSN" in err
    assert state_of(tmp_path) == before


def test_recover_to_a_position_refuses_what_would_change_something(said: Said, killed: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "left.incomplete").mkdir()
    before = state_of(tmp_path)
    to, out = ("--to-lsn", 70_000), ("--out", tmp_path / "out")
    for words in (
        to,
        (*to, "--to-time", "2026-01-01T00:00:00Z", *out),
        (*to, *out, "--dry-run"),
        (*to, *out, "--skip-corrupted"),
        out,
        ("--to-time", "yesterday", *out),
        ("--to-time", "2026-01-01T00:00:00", *out),
        (*to, "--out", tmp_path / "full"),
        (*to, "--out", tmp_path / "full" / "file"),
        (*to, "--out", tmp_path / "left"),
        (*to, "--out", killed / "data"),
        (*to, "--out", killed / "wal" / "then"),
    ):
        code, _, err = said("recover", killed, *words)
        assert code == USAGE, words
        assert err, words
    assert state_of(tmp_path) == before


def test_new_store_on_a_full_disk_leaves_nothing(said: Said, killed: Path, mount_tmpfs: Any) -> None:
    place = Path(mount_tmpfs("size=160k"))
    before = state_of(killed)
    code, _, err = said("recover", killed, "--to-lsn", end_of(killed), "--out", place / "out")
    assert code == FAILURE and "space" in err
    assert list(place.iterdir()) == []
    assert state_of(killed) == before


def end_of(root: Path) -> int:
    with mmwal.open(root, read_only=True) as store:
        return store.recovery_stats.last_lsn


# -- repairing


def test_repair_says_its_steps_and_then_does_them(said: Said, killed: Path) -> None:
    newest = segments(killed)[-1]
    before = state_of(killed)
    code, planned = said.json("repair", killed, "--dry-run")
    assert code == OK and planned["steps"] and not planned["clean"]
    assert all(step["what"] and step["path"].startswith(str(killed)) for step in planned["steps"])
    assert "would " in said("repair", killed, "--dry-run")[1]
    assert state_of(killed) == before
    code, done = said.json("repair", killed)
    assert (code, done["steps"]) == (OK, planned["steps"])
    assert newest.exists() or segments(killed)
    assert said.json("repair", killed)[1]["steps"] == []
    assert "nothing to repair" in said("repair", killed)[1]
    with mmwal.open(killed) as store:
        assert len(store) == 699


def test_repair_restores_a_damaged_slot(said: Said, closed: Path) -> None:
    flip(closed / "wal" / "control", 100)
    _, planned = said.json("repair", closed, "--dry-run")
    assert any(step["path"].endswith("wal/control") for step in planned["steps"])
    assert said("repair", closed)[0] == OK
    assert None not in said.json("control", closed)[1]["log"]["slots"]


def test_damage_that_opening_refuses_is_not_repaired(said: Said, killed: Path) -> None:
    flip(segments(killed)[1], DATA_OFFSET + 70)
    before = contents_of(killed)
    code, _, err = said("repair", killed)
    assert code == CORRUPTION and "backup" in err
    assert contents_of(killed) == before


# -- the disk, the shell, the script


def test_bench_fsync_measures_and_leaves_nothing(said: Said, tmp_path: Path) -> None:
    code, found = said.json("bench-fsync", tmp_path, "--seconds", "0.2")
    assert code == OK
    assert 0 < found["sync_us_p50"] <= found["sync_us_p99"] <= found["sync_us_max"]
    assert found["sequential_mb_per_s"] > 0 and found["syncs"] > 0
    assert found["warnings"]  # a directory below /tmp, or one in memory
    out = said("bench-fsync", tmp_path, "--seconds", "0.2")[1]
    assert "insert" in out and f"{tmp_path}, {found['file_system']}" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(said: Said, shell: str) -> None:
    code, out, _ = said("completion", shell)
    assert code == OK and "_MMWAL_COMPLETE" in out


def test_shell_completes_commands() -> None:
    environment = {**os.environ, "_MMWAL_COMPLETE": "bash_complete", "COMP_WORDS": "mmwal ins", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mmwal"], capture_output=True, text=True, env=environment, check=False, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "plain,inspect"


def test_every_command_has_help(said: Said) -> None:
    for name in COMMANDS:
        code, out, _ = said(name, "--help")
        assert code == OK and "Usage: mmwal" in out


def test_guide_lists_the_commands_and_the_keys_of_their_objects(said: Said, killed: Path) -> None:
    guide = (REPOSITORY / "docs" / "guide.md").read_text("utf-8")
    commands, _, programs = guide.partition("## The command line")[2].partition("### For programs")
    assert set(re.findall(r"`mmwal ([a-z-]+)", commands)) == set(COMMANDS)
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", programs, re.MULTILINE)
    documented = {command: set(re.findall(r"`(\w+)`", keys)) for command, keys in rows}
    assert set(documented) == set(COMMANDS) - {"completion", "demo"}
    words = {
        "recover": ["--dry-run"],
        "repair": ["--dry-run"],
        "bench-fsync": ["--seconds", "0.1"],
        "dump": ["--vectors"],
    }
    for command, keys in documented.items():
        out = said(command, *([killed] if command != "version" else []), *words.get(command, []), "--json")[1]
        found = [json.loads(line) for line in out.splitlines()]
        if command == "control":
            assert set(found[0]) | set(found[0]["data"]) == keys
            continue
        assert {key for each in found for key in each} == keys - ({"first_lsn", "rows"} if command == "dump" else set())


def test_log_alone_that_was_killed_is_repaired(said: Said, tmp_path: Path) -> None:
    code = (
        "import os, sys, mmwal; wal = mmwal.WalManager(mmwal.WalConfig(wal_dir=sys.argv[1], segment_size=64 << 10));"
        "wal.log_insert('a', [1.0, 2.0]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path / "wal"], check=False, cwd=REPOSITORY)
    before = state_of(tmp_path)
    _, planned = said.json("repair", tmp_path / "wal", "--dry-run")
    assert planned["steps"] and state_of(tmp_path) == before
    assert said.json("repair", tmp_path / "wal") == (OK, {**planned, "dry_run": False})
    assert said.json("repair", tmp_path / "wal")[1]["steps"] == []
    assert [entry["id"] for entry in lsns_of(said, tmp_path / "wal", "--kind", "insert")] == ["a"]


def test_script_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import importlib.util, runpy, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *rest: None if name in ('click', 'rich') else find(name, *rest);"
        "script = sys.argv[1]; sys.argv[:] = [script, 'nowhere']; runpy.run_path(script, run_name='__main__')"
    )
    script = REPOSITORY / "tools" / "recover.py"
    done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (USAGE, False)
    assert "needs click and rich" in done.stderr and "pip install" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_script_recovers_from_a_checkout(killed: Path, workers: str) -> None:
    script = REPOSITORY / "tools" / "recover.py"
    words = ["--wal-dir", killed / "wal", "--data-dir", killed / "data", "--workers", workers]
    done = subprocess.run(
        [sys.executable, script, *words, "--json"], capture_output=True, text=True, check=False, cwd=killed
    )
    assert done.returncode == OK
    assert done.stderr.startswith("mmwal: warning: ") and len(done.stderr.splitlines()) == 1  # it is below /tmp
    assert json.loads(done.stdout)["stats"]["applied_entries"] == 902
    with mmwal.open(killed) as store:
        assert len(store) == 699
    done = subprocess.run([sys.executable, script, "nowhere"], capture_output=True, text=True, check=False, cwd=killed)
    assert done.returncode == FAILURE and "nowhere" in done.stderr


def test_ctrl_c_in_bench_fsync_leaves_nothing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mmwal", "bench-fsync", str(tmp_path), "--seconds", "30"]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs us in the background may have it ignored
    options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY, "preexec_fn": heeds}
    with subprocess.Popen(words, **options) as child:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(2)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert (child.returncode, err.strip()) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_whole_where_they_are_asked_for(said: Said, tmp_path: Path) -> None:
    with mmwal.open(tmp_path / "s", dimension=6, segment_size=64 << 10) as store:
        store.insert("a", np.arange(6))
    assert "…" in said("dump", tmp_path / "s")[1]
    assert "[0, 1, 2, 3, 4, 5]" in said("dump", tmp_path / "s", "--vectors")[1]


def test_numbers_that_json_does_not_have_are_named(said: Said, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    with mmwal.open(tmp_path / "s", dimension=4, segment_size=64 << 10, allow_nonfinite=True) as store:
        store.insert("a", [np.nan, np.inf, -np.inf, 0.5], {"score": float("nan"), "parts": [1, None, "x", -math.inf]})
        store.insert("b", [1, 2, 3, 4], {"score": 0.5})
    code, out, _ = said("dump", tmp_path / "s", "--json", "--vectors", "--kind", "insert")
    first, second = (json.loads(line, parse_constant=refuse) for line in out.splitlines())
    assert code == OK
    assert first["vector"] == ["NaN", "Infinity", "-Infinity", 0.5]
    assert first["metadata"] == {"score": "NaN", "parts": [1, None, "x", "-Infinity"]}
    assert (second["vector"], second["metadata"]) == ([1.0, 2.0, 3.0, 4.0], {"score": 0.5})
