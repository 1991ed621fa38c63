"""Many threads at once: the final state is the model's, no reader sees half of a batch, nobody meets an error."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import DuplicateIdError, UnknownIdError
from tests.store.stores import DIMENSION, SEGMENT, contents, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

WRITERS = 8
OPERATIONS = 120
TEAM = [f"team-{n}" for n in range(6)]  # written as one batch, always


def run_all(acts: list[Callable[[], None]], background: list[Callable[[threading.Event], None]]) -> None:
    """Runs acts to their end, and the background until then; raises what any of them raised."""
    done, problems = threading.Event(), []

    def guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 (told to the test)
            problems.append(error)

    writers = [threading.Thread(target=guarded, args=(act,)) for act in acts]
    others = [threading.Thread(target=guarded, args=(lambda act=act: act(done),)) for act in background]
    for thread in writers + others:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in others:
        thread.join()
    if problems:
        raise problems[0]


@pytest.mark.parametrize("sync_interval_ms", [0, 50])
def test_writers_readers_and_checkpoints_at_once(open_store: Any, sync_interval_ms: int) -> None:
    store = open_store(sync_interval_ms=sync_interval_ms, checkpoint_interval=60, max_wal_size=6 * SEGMENT)
    store.insert_many(TEAM, rows([0.0] * len(TEAM)), [{"n": 0}] * len(TEAM))
    models: list[dict[Any, tuple[bytes, Any]]] = [{} for _ in range(WRITERS)]
    shared: dict[Any, list[tuple[int, float | None]]] = {id: [] for id in range(5)}

    def write(number: int) -> None:
        rng = random.Random(number)
        model = models[number]
        for n in range(OPERATIONS):
            id = f"{number}-{rng.randrange(15)}"
            value = number * 1000.0 + n
            match rng.randrange(6):
                case 0:
                    ids = [f"{number}-b{i}" for i in range(rng.randrange(1, 9))]
                    store.upsert_many(ids, rows(value + i for i in range(len(ids))), [{"n": n}] * len(ids))
                    model.update({id: (vector(value + i).tobytes(), {"n": n}) for i, id in enumerate(ids)})
                case 1 if id in model:
                    store.delete(id)
                    del model[id]
                case 2 if id in model:
                    store.update(id, None, {"m": n})
                    model[id] = (model[id][0], {"m": n})
                case 3:
                    write_shared(rng.randrange(5), value)
                case 4:
                    store.update_many(TEAM, rows([value] * len(TEAM)), [{"n": value}] * len(TEAM))
                case _:
                    store.upsert(id, vector(value))
                    model[id] = (vector(value).tobytes(), model[id][1] if id in model else None)

    def write_shared(id: int, value: float) -> None:
        try:
            shared[id].append((store.insert(id, vector(value)), value))
        except DuplicateIdError:
            try:
                if value % 2:
                    shared[id].append((store.update(id, vector(value)), value))
                else:
                    shared[id].append((store.delete(id), None))
            except UnknownIdError:
                pass

    def search(done: threading.Event) -> None:
        query = np.ones(DIMENSION, np.float32)
        while not done.is_set():
            hits = {hit.id: (hit.score, hit.metadata) for hit in store.search(query, k=1000)}
            team = [hits[id] for id in TEAM]
            assert len({score for score, _ in team}) == 1, "half of a batch"
            assert {meta["n"] * DIMENSION for _, meta in team if meta} == {team[0][0]}

    def read(done: threading.Event) -> None:
        while not done.is_set():
            records = [record for record in store.get_many(TEAM) if record]
            assert len(records) == len(TEAM)
            assert len({(record.lsn, record.vector.tobytes()) for record in records}) == 1, "half of a batch"
            for ids, chunk in store.batches(16):
                assert len(ids) == len(chunk)
                assert (chunk == chunk[:, :1]).all(), "a torn row"
            assert set(TEAM) <= set(store.ids())
            record = store.get(TEAM[0])
            assert record is not None and record.metadata == {"n": record.vector[0]}

    def checkpoint(done: threading.Event) -> None:
        while not done.is_set():
            store.checkpoint()
            done.wait(0.005)

    run_all([lambda number=n: write(number) for n in range(WRITERS)], [search, read, checkpoint])  # type: ignore[misc]

    def expected(found: dict[Any, Any]) -> None:
        own = {id: entry[:2] for id, entry in found.items() if id not in TEAM and id not in shared}
        assert own == {id: entry for model in models for id, entry in model.items()}
        for id, history in shared.items():
            last = max(history, default=(0, None))
            assert (found[id][2] if id in found else None) == (last[0] if last[1] is not None else None)
            assert last[1] is None or found[id][0] == vector(last[1]).tobytes()

    before = contents(store)
    expected(before)
    store.close()
    assert contents(open_store()) == before


def test_store_in_memory_bears_threads() -> None:
    store = mmwal.VectorStore(DIMENSION)

    def write(number: int) -> None:
        for n in range(300):
            store.insert((number << 20) + n, vector(n))
            if n % 3 == 0:
                store.delete((number << 20) + n)

    def search(done: threading.Event) -> None:
        while not done.is_set():
            store.search(vector(1), k=5)

    run_all([lambda number=n: write(number) for n in range(6)], [search])  # type: ignore[misc]
    assert len(store) == 6 * 200


@pytest.mark.parametrize("attempt", range(3))
def test_first_vectors_of_many_threads_make_one_store(open_store: Any, attempt: int) -> None:
    store = open_store(dimension=...)
    barrier = threading.Barrier(6)
    taken: list[int] = []

    def insert(number: int) -> None:
        barrier.wait(30)
        dimension = 3 + number % 2
        try:
            store.insert(number, vector(number, dimension))
        except mmwal.VectorError:
            return
        taken.append(dimension)

    run_all([lambda number=n: insert(number) for n in range(6)], [])  # type: ignore[misc]
    assert set(taken) == {store.dimension} and len(store) == len(taken) == 3
    before = contents(store)
    store.close()
    assert contents(open_store(dimension=...)) == before


def test_close_while_others_write_and_read_ends_them_all(open_store: Any) -> None:
    store = open_store(sync_interval_ms=0)
    returned: list[str] = []
    started = threading.Barrier(5)

    def write(number: int) -> None:
        started.wait(30)
        for n in range(100_000):
            try:
                store.insert(f"{number}-{n}", vector(n))
            except mmwal.WalClosedError:
                return
            returned.append(f"{number}-{n}")

    def read() -> None:
        started.wait(30)
        while True:
            try:
                store.search(vector(1), k=3)
                store.get_many(["0-0"])
            except mmwal.WalClosedError:
                return

    def close() -> None:
        started.wait(30)
        while len(returned) < 20:
            pass
        store.close()

    run_all([lambda: write(0), lambda: write(1), lambda: write(2), read, close], [])
    again = open_store()
    assert set(returned) <= set(again.ids())
