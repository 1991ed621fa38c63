"""A process follows a log that another one writes: closed, killed and opened again, all the while."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmwal
from tests.process.test_kill import KILLS, acknowledged, writer
from tests.process.writer import VECTORS

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")
PATIENT = 60.0  # seconds; a test that needs them has failed


def is_right(entry: Any) -> bool:
    number = int(entry.id.removeprefix("row-"))
    return bool(entry.vector.tobytes() == VECTORS[number % len(VECTORS)].tobytes())


def first_log(directory: Path, kernel: str) -> None:
    """A log without an entry, so that there is something to follow."""
    with writer("log", directory, kernel, 100, 100_000) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"


@pytest.mark.parametrize("sync_interval_ms", [0, 100, 5000])
def test_follower_sees_each_entry_of_killed_writers_once(
    tmp_path: Path, kernel_name: str, sync_interval_ms: int
) -> None:
    """What a writer did not live to acknowledge may come as well, one entry at most: it is in the log."""
    choose = random.Random(f"follow {kernel_name} {sync_interval_ms}")
    first_log(tmp_path, kernel_name)
    with mmwal.WalManager.new_from_path(tmp_path, kernel=kernel_name) as log:
        entries = log.iter_entries(follow=True, timeout=PATIENT, poll_interval_ms=1)
        seen: list[tuple[str, int]] = []
        for _ in range(KILLS[kernel_name]):
            with writer("log", tmp_path, kernel_name, sync_interval_ms, len(seen)) as process:
                told = acknowledged(process, choose.choice([0, 1, 50, 400, 800]) if seen else 800)
            for number, lsn in told:
                entry = next(entries)
                assert (entry.id, entry.lsn) == (f"row-{number}", lsn)
                assert is_right(entry)
                seen.append((entry.id, entry.lsn))
            last = seen[-1][1] if seen else None
            for entry in log.iter_entries(last, follow=True, timeout=0):
                assert entry.id == f"row-{len(seen)}"
                assert next(entries).lsn == entry.lsn
                seen.append((entry.id, entry.lsn))
        with mmwal.WalManager(mmwal.WalConfig(wal_dir=tmp_path, kernel=kernel_name)) as wal:
            assert [(entry.id, entry.lsn) for entry in wal.iter_entries()] == seen
            assert seen[-1][1] > 3 * (64 << 10)


def test_follower_stands_by_while_writers_are_killed_in_it(tmp_path: Path, kernel_name: str) -> None:
    """It waits in a thread of its own, so that it looks while recoveries run."""
    choose = random.Random(f"stand by {kernel_name}")
    first_log(tmp_path, kernel_name)
    found: list[tuple[str, int]] = []
    with mmwal.WalManager.new_from_path(tmp_path, kernel=kernel_name) as log:

        def follow() -> None:
            for entry in log.iter_entries(follow=True, poll_interval_ms=0.1):
                assert is_right(entry)
                found.append((entry.id, entry.lsn))
                if entry.id == "row-90000":
                    return

        thread = threading.Thread(target=follow)
        thread.start()
        next_number = 0  # one that was logged without being acknowledged is not logged again
        for _ in range(KILLS[kernel_name]):
            with writer("log", tmp_path, kernel_name, 5000, next_number) as process:
                told = acknowledged(process, choose.choice([0, 0, 1, 40, 400]))
            next_number += len(told) + 1
        with writer("log", tmp_path, kernel_name, 5000, 90_000) as process:
            acknowledged(process, 1)
        thread.join(PATIENT)
        assert not thread.is_alive()
    with mmwal.WalManager(mmwal.WalConfig(wal_dir=tmp_path, kernel=kernel_name)) as wal:
        every = [(entry.id, entry.lsn) for entry in wal.iter_entries()]
    assert found == every[: len(found)]
    assert len(found) > next_number - KILLS[kernel_name] - 1


def test_slow_follower_of_another_process_is_told_so(tmp_path: Path, kernel_name: str) -> None:
    """The store's checkpoints let its log go; the follower shows no entry behind a gap."""
    with writer("store", tmp_path, kernel_name, 100, 0) as process:
        assert process.stdout is not None
        for _ in range(50):
            assert process.stdout.readline()
        with mmwal.WalManager.new_from_path(tmp_path, kernel=kernel_name) as log:
            entries = log.iter_entries(follow=True, timeout=PATIENT)
            lsns = [next(entries).lsn for _ in range(20)]
            for _ in range(6000):
                assert process.stdout.readline()
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(mmwal.LsnUnavailableError, match="Start from a snapshot") as caught:
                lsns += (entry.lsn for entry in rest(entries))
            assert lsns == sorted(lsns)
            assert lsns[-1] <= caught.value.lsn < caught.value.oldest_lsn


def rest(entries: Iterator[Any]) -> Iterator[Any]:
    """The entries that come; that of no segment were left out."""
    segment = None
    for entry in entries:
        assert segment is None or entry.lsn // (64 << 10) - segment <= 1
        segment = entry.lsn // (64 << 10)
        yield entry
