"""kill -9 loses nothing that was acknowledged, at any sync interval: a writer is killed again and again, at random.

This says nothing about a power cut: what was written is still in the page cache. For that see `tests/crash/`.
"""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmwal.cli.demo.model import Model, differences
from tests.process.conftest import environment
from tests.process.writer import VECTORS, open_log, open_store, operation

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")

KILLS = {"c": 10, "py": 4}
ACKNOWLEDGED_MOST = 300  # before a kill: several segments and a checkpoint or two


@contextmanager
def writer(
    what: str, directory: Path, kernel: str, sync_interval_ms: int, first: int
) -> Iterator["subprocess.Popen[str]"]:
    arguments = [what, str(directory), kernel, str(sync_interval_ms), str(first)]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.process.writer", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def acknowledged(process: "subprocess.Popen[str]", stop_after: int) -> list[tuple[int, int]]:
    """Reads so many acknowledgements, kills, and reads what else had been acknowledged by then."""
    assert process.stdout is not None
    assert process.stderr is not None
    opened = process.stdout.readline()
    assert opened == "open\n", process.stderr.read()
    lines = []
    for _ in range(stop_after):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.kill()
    lines += process.stdout.readlines()
    return [(int(number), int(lsn)) for number, lsn in map(str.split, lines)]


@pytest.mark.slow  # tests/recovery/test_recover.py kills stores in the quick suite, thirty times
@pytest.mark.parametrize("sync_interval_ms", [0, 100, 5000])
def test_killed_store_comes_back_with_all_that_was_acknowledged(
    tmp_path: Path, kernel_name: str, sync_interval_ms: int
) -> None:
    choose = random.Random(f"{kernel_name} {sync_interval_ms}")
    model, next_number = Model(), 0
    for _ in range(KILLS[kernel_name]):
        with writer("store", tmp_path, kernel_name, sync_interval_ms, next_number) as process:
            for number, lsn in acknowledged(process, choose.randrange(ACKNOWLEDGED_MOST)):
                model.apply(operation(number), lsn)
                next_number = number + 1
        store = open_store(str(tmp_path), kernel_name, sync_interval_ms)
        assert not store.recovery_stats.clean_shutdown
        found = differences(store, model, VECTORS)
        if found:  # then the operation on its way must be there, and nothing else
            with_it = model.copy()
            with_it.apply(operation(next_number), None)
            assert differences(store, with_it, VECTORS) == [], found
            model, next_number = with_it, next_number + 1
        store.close()


@pytest.mark.parametrize("sync_interval_ms", [0, 100, 5000])
def test_killed_log_comes_back_with_all_that_was_acknowledged(
    tmp_path: Path, kernel_name: str, sync_interval_ms: int
) -> None:
    choose = random.Random(f"{kernel_name} {sync_interval_ms}")
    expected: list[tuple[str, int]] = []
    for _ in range(KILLS[kernel_name] // 2):
        with writer("log", tmp_path, kernel_name, sync_interval_ms, len(expected)) as process:
            told = acknowledged(process, choose.randrange(ACKNOWLEDGED_MOST))
        expected += [(f"row-{number}", lsn) for number, lsn in told]
        with open_log(str(tmp_path), kernel_name, sync_interval_ms) as log:
            entries = log.read_all_entries()
            found = [(entry.id, entry.lsn) for entry in entries]
            assert found[: len(expected)] == expected
            assert len(found) <= len(expected) + 1
            for number, entry in enumerate(entries):
                assert entry.id == f"row-{number}"
                assert entry.vector.tobytes() == VECTORS[number % len(VECTORS)].tobytes()
            expected = found
