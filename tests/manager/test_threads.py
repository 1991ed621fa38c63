"""Many threads on one log: every entry once, in each thread's order, without a gap (item 73)."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from mmwal.errors import WalClosedError
from mmwal.format.segment import data_end, data_start
from mmwal.log.reader import frame_end, read_extents
from mmwal.manager import WalManager
from tests.log.fixtures import OpenWal
from tests.log.logs import SEGMENT, assert_ordered, ids, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
THREADS, EACH = 16, 500


def rows_of(thread: int, i: int) -> list[str]:
    """A batch for every tenth entry, else one row."""
    return [f"{thread}.{i}.{row}" for row in range(3 if i % 10 == 0 else 1)]


def write(wal: WalManager, thread: int, together: threading.Barrier) -> list[int]:
    together.wait()
    lsns = []
    for i in range(EACH):
        names = rows_of(thread, i)
        content = vector(thread * EACH + i)
        if len(names) == 1:
            lsns.append(wal.log_insert(names[0], content))
        else:
            lsns.append(wal.log_batch(names, np.tile(content, (3, 1))))
        assert wal.last_lsn >= lsns[-1]
    return lsns


def assert_gapless(wal: WalManager) -> None:
    log = wal._log
    at = data_start(0, SEGMENT)
    for extent in read_extents(wal._disk, log.kernel, log.wal_dir, log.identity, at, wal.last_lsn):
        if at == data_end(at // SEGMENT, SEGMENT):
            at = data_start(at // SEGMENT + 1, SEGMENT)
        for frame in extent.frames:
            assert int(frame["start_lsn"]) == at
            at = frame_end(frame)
    assert at == wal.last_lsn


def test_threads_log_every_entry_once_in_their_order(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=1, append_timeout_ms=60_000)
    together = threading.Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(write, wal, thread, together) for thread in range(THREADS)]
        while not all(task.done() for task in running):
            assert_ordered(wal)
            wait(running, timeout=0.002)
        lsns = [task.result() for task in running]
    every = [lsn for mine in lsns for lsn in mine]
    assert len(set(every)) == THREADS * EACH
    for mine in lsns:
        assert mine == sorted(mine)
    by_lsn = {lsn: (thread, i) for thread, mine in enumerate(lsns) for i, lsn in enumerate(mine)}
    entries = list(wal.replay())
    assert [entry.lsn for entry in entries] == sorted(every)
    for entry in entries:
        thread, i = by_lsn[entry.lsn]
        names = [entry.id] if entry.kind == "insert" else entry.ids
        vectors = entry.vector[None] if entry.kind == "insert" else entry.vectors
        assert names == rows_of(thread, i)
        assert (vectors == thread * EACH + i).all()
    assert_gapless(wal)
    assert_ordered(wal)
    wal.close()
    assert [entry.lsn for entry in open_wal().replay()] == sorted(every)


def test_transactions_of_several_threads_do_not_mix(open_wal: OpenWal) -> None:
    wal = open_wal(append_timeout_ms=60_000)
    together = threading.Barrier(6)

    def batches(thread: int) -> list[int]:
        together.wait()
        found = []
        for part in range(4):
            names = [f"{thread}.{part}.{i}" for i in range(1000)]
            found.append(wal.log_batch(names, np.full((1000, 16), thread, np.float32)))
        return found

    with ThreadPoolExecutor(6) as pool:
        lsns = [lsn for found in pool.map(batches, range(6)) for lsn in found]
    commits = [entry for entry in wal.replay() if entry.kind == "commit"]
    assert sorted(lsns) == [entry.lsn for entry in commits]
    assert len({entry.txn for entry in commits}) == 24
    rows: dict[int, list[Any]] = {}
    for entry in wal.replay():
        if entry.kind == "batch":
            rows.setdefault(entry.lsn, []).extend(entry.ids)
    for found in rows.values():
        thread, part, _ = found[0].split(".")
        assert found == [f"{thread}.{part}.{i}" for i in range(1000)]


def test_threads_and_releases_go_together(open_wal: OpenWal) -> None:
    wal = open_wal(sync_interval_ms=1, max_wal_size=6 * SEGMENT, append_timeout_ms=60_000)
    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, wal, thread, together) for thread in range(4)]
        while not all(task.done() for task in running):
            wal.release(wal.last_lsn)
            assert_ordered(wal)
            wait(running, timeout=0.001)
        for task in running:
            task.result()
    assert_ordered(wal)
    mark = wal.last_lsn
    wal.log_delete("after")
    assert ids(wal, mark) == ["after"]


@pytest.mark.parametrize("interval", [0, 3_600_000])
def test_what_was_returned_before_a_close_from_another_thread_is_there(open_wal: OpenWal, interval: int) -> None:
    for _ in range(3):
        wal = open_wal(sync_interval_ms=interval)
        start = wal.last_lsn
        together = threading.Barrier(4)

        def insert(thread: int, wal: WalManager = wal, together: threading.Barrier = together) -> list[int]:
            together.wait()
            lsns: list[int] = []
            try:
                while True:
                    lsns.append(wal.log_insert(thread, vector(thread)))
            except WalClosedError:
                return lsns

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(insert, thread) for thread in range(3)]
            together.wait()
            while wal.last_lsn < start + 20_000:
                pass
            wal.close()
            returned = sorted(lsn for task in running for lsn in task.result())
        again = open_wal(sync_interval_ms=interval)
        assert again.recovery_stats.clean_shutdown
        found = [entry.lsn for entry in again.iter_entries(start or None)]
        assert set(returned) <= set(found)
        again.close()
