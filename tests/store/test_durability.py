"""What is seen, and what holds, around a sync: nothing is read before it is durable, and a failed sync is final."""

import errno
import random
import threading
from typing import Any

import pytest

import mmwal
from mmwal.errors import DuplicateIdError, SyncFailedError, UnknownIdError
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import close_quietly, contents, rows, vector

SYNC = "spare.wal sync"  # makes frames durable: a new segment is mapped under the name that it is prepared with

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def store(open_store: Any, simulated: SimulatedDisk) -> Any:
    """A store where every write is durable on return, with two rows, on the simulated disk."""
    made = open_store(disk=simulated, sync_interval_ms=0)
    made.insert("a", vector(1), {"n": 1})
    made.insert_many(["b", "c"], rows([2, 3]))
    while simulated.run_workers():  # the runway is ready: no other syncs than those of the writes
        pass
    return made


def test_write_is_durable_on_return_at_interval_zero(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk, sync_interval_ms=0)
    for write in (
        lambda: store.insert("a", vector(1)),
        lambda: store.update("a", vector(2)),
        lambda: store.upsert_many(["a", "b"], rows([3, 4])),
        lambda: store.delete("a"),
    ):
        lsn = write()
        assert store.durable_lsn >= lsn
    assert store.ids() == ["b"]


WRITES = {
    "insert": lambda store: store.insert("new", vector(9)),
    "update": lambda store: store.update("a", vector(9), {"n": 9}),
    "upsert": lambda store: store.upsert("b", vector(9)),
    "delete": lambda store: store.delete("a"),
    "insert_many": lambda store: store.insert_many(["new", "more"], rows([8, 9])),
    "update_many": lambda store: store.update_many(["a", "b"], rows([8, 9])),
    "upsert_many": lambda store: store.upsert_many(["a", "new"], rows([8, 9])),
    "delete_many": lambda store: store.delete_many(["a", "b"]),
    "batch larger than a segment": lambda store: store.insert_many(range(2000), rows(range(2000))),
}


def seen(store: mmwal.VectorStore) -> Any:
    """What readers see, in every way."""
    hits = store.search(vector(1), k=10)
    return contents(store), hits, [record and record.lsn for record in store.get_many(["a", "b", "new"])]


@pytest.mark.parametrize("name", WRITES)
def test_readers_see_nothing_before_it_is_durable(store: Any, simulated: SimulatedDisk, name: str) -> None:
    before = seen(store)
    looked = []

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        if label == SYNC and store.durable_lsn < end:
            looked.append(seen(store) == before)

    end = 1 << 60
    simulated.on_step = look
    end = WRITES[name](store)
    simulated.on_step = None
    assert looked and all(looked)
    assert seen(store) != before


def test_writers_see_what_is_logged_and_not_yet_durable(store: Any, simulated: SimulatedDisk) -> None:
    refused = []

    def write_too(disk: SimulatedDisk, step: int, label: str) -> None:
        if label != SYNC or refused:
            return
        simulated.on_step = None
        for write, error in (
            (lambda: store.insert("new", vector(1)), DuplicateIdError),
            (lambda: store.insert_many(["other", "new"], rows([1, 2])), DuplicateIdError),
        ):
            with pytest.raises(error):
                write()
            refused.append(error)

    simulated.on_step = write_too
    store.insert("new", vector(9))
    assert len(refused) == 2

    def delete_seen(disk: SimulatedDisk, step: int, label: str) -> None:
        if label != SYNC or len(refused) > 2:
            return
        simulated.on_step = None
        for write in (
            lambda: store.delete("a"),
            lambda: store.update("a", vector(1)),
            lambda: store.delete_many(["a"]),
        ):
            with pytest.raises(UnknownIdError):
                write()
            refused.append(UnknownIdError)
        assert "a" in store

    simulated.on_step = delete_seen
    store.delete("a")
    assert len(refused) == 5 and "a" not in store


@pytest.mark.parametrize("name", WRITES)
def test_failed_sync_leaves_readers_where_they_were_and_ends_all_writing(
    store: Any, open_store: Any, simulated: SimulatedDisk, name: str
) -> None:
    before = seen(store)
    simulated.fail(SYNC, errno=errno.EIO)
    with pytest.raises(SyncFailedError) as first:
        WRITES[name](store)
    assert isinstance(first.value, OSError) and first.value.errno == errno.EIO
    assert seen(store) == before
    assert store.failed
    for write in (
        lambda: WRITES[name](store),
        lambda: store.insert("later", vector(1)),
        lambda: store.update("c", vector(1)),
        lambda: store.delete("c"),
        lambda: store.upsert_many(["c", "later"], rows([1, 2])),
        store.sync,
    ):
        with pytest.raises(SyncFailedError) as later:
            write()
        assert later.value.__cause__ is first.value.__cause__
    assert seen(store) == before
    with pytest.raises(SyncFailedError):
        store.close()
    legal = [before[0]]
    for found in [simulated.kill(), simulated.kill(evicted=True)] + [
        simulated.image(choice) for choice in simulated.images(random.Random(1), 12)
    ]:
        again = open_store(disk=found, sync_interval_ms=0)
        state = {id: (vector, meta) for id, (vector, meta, _) in contents(again).items()}
        old = {id: (vector, meta) for id, (vector, meta, _) in legal[0].items()}
        model = mmwal.VectorStore(8)
        for id, (_, meta) in old.items():
            model.insert(id, before_vector(legal[0][id]), meta)
        WRITES[name](model)
        new = {id: (vector, meta) for id, (vector, meta, _) in contents(model).items()}
        assert state in (old, new)
        assert not again.recovery_stats.clean_shutdown
        again.insert("later", vector(5))
        again.close()


def before_vector(entry: tuple[bytes, Any, int]) -> Any:
    import numpy as np

    return np.frombuffer(entry[0], np.float32)


def test_failed_background_sync_is_raised_by_later_writes_and_by_close(
    open_store: Any, simulated: SimulatedDisk
) -> None:
    store = open_store(disk=simulated, sync_interval_ms=100)
    store.insert("a", vector(1))
    store.sync()
    store.insert("b", vector(2))
    simulated.fail(SYNC)
    simulated.advance(10)
    while simulated.run_workers():
        pass
    assert store.failed and store.ids() == ["a", "b"]
    with pytest.raises(SyncFailedError):
        store.insert("c", vector(3))
    assert store.ids() == ["a", "b"]
    with pytest.raises(SyncFailedError):
        store.close()
    assert set(open_store(disk=simulated.kill()).ids()) == {"a", "b"}


def test_threads_that_insert_the_same_id_have_one_winner_and_share_syncs(open_store: Any) -> None:
    store = open_store(sync_interval_ms=0)
    threads_count, ids = 6, [f"id-{n}" for n in range(40)]
    barrier = threading.Barrier(threads_count)
    won: list[tuple[str, int, int]] = []
    problems: list[BaseException] = []

    def insert(number: int) -> None:
        try:
            for id in ids:
                barrier.wait(timeout=60)
                try:
                    lsn = store.insert(id, vector(number))
                except DuplicateIdError:
                    continue
                won.append((id, number, lsn))
                assert store.durable_lsn >= lsn
                assert store[id][0] == number
                store.upsert(f"own-{number}-{id}", vector(number))
        except BaseException as error:  # noqa: BLE001 (told to the test below)
            problems.append(error)
            barrier.abort()

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(id for id, _, _ in won) == sorted(ids)
    assert all(store[id][0] == number and store.get(id).lsn == lsn for id, number, lsn in won)


def test_writers_at_one_time_share_syncs(open_store: Any) -> None:
    store = open_store(sync_interval_ms=0)
    store.insert("first", vector(0))
    before = store.wal.get_metrics().syncs

    def write(number: int) -> None:
        for n in range(60):
            store.insert(f"{number}-{n}", vector(n))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 1 + 8 * 60
    assert store.wal.get_metrics().syncs - before < 8 * 60


def test_order_of_the_steps_is_log_then_sync_then_apply(store: Any, simulated: SimulatedDisk) -> None:
    """Seen at each sync: logged already, not yet applied; with an interval the write returns without one."""
    trace: list[tuple[str, bool, bool]] = []
    start = store.wal.last_lsn
    simulated.on_step = lambda disk, step, label: trace.append((label, store.wal.last_lsn > start, "x" in store))
    store.insert("x", vector(1))
    simulated.on_step = None
    assert trace == [(SYNC, True, False)]


def test_write_at_an_interval_returns_without_a_sync(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, sync_interval_ms=1000)
    store.insert("a", vector(1))
    store.sync()
    steps: list[str] = []
    simulated.on_step = lambda disk, step, label: steps.append(label)
    store.insert("b", vector(2))
    store.delete("a")
    simulated.on_step = None
    assert steps == []
    close_quietly(store)
