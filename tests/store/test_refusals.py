"""What a store says no to, and how: odd numbers, queries of another shape, nothing to update, a closed handle."""

from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import UnknownIdError, VectorError, WalClosedError
from tests.store.stores import DIMENSION, contents, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.mark.parametrize(
    ("k", "kind"),
    [
        (2.5, TypeError),
        (2.0, TypeError),
        (np.float32(2), TypeError),
        ("2", TypeError),
        (None, TypeError),
        (True, TypeError),
        (np.True_, TypeError),
        (0, ValueError),
        (-1, ValueError),
        (np.int64(0), ValueError),
    ],
    ids=str,
)
@pytest.mark.parametrize("filled", [True, False], ids=["filled", "empty"])
def test_k_that_is_no_count_is_refused_by_name(k: Any, kind: type[Exception], filled: bool) -> None:
    store = mmwal.VectorStore()
    if filled:
        store.insert("a", vector(1))
    for search in (lambda: store.search(vector(1), k=k), lambda: store.search_batch(rows([1]), k=k)):
        with pytest.raises(kind, match=r"^k="):
            search()


def test_k_may_be_any_int(store: mmwal.VectorStore) -> None:
    store.insert_many(range(5), rows(range(5)))
    for k in (np.int64(2), np.uint8(2), 2):
        assert [hit.id for hit in store.search(vector(1), k)] == [4, 3]
        assert store.search_batch(rows([1]), k)[0] == [[4, 3]]
    assert len(store.search(vector(1), 10**12)) == 5


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        (vector(1), f"shape (q, {DIMENSION}), found shape ({DIMENSION},)"),
        (vector(1).tolist(), "search() takes a single query"),
        (rows([1])[None], f"shape (1, 1, {DIMENSION})"),
        (np.float32(1), "shape ()"),
        (rows([1], 3), f"dimension {DIMENSION}, found 3"),
        ([[1.0, 2.0]], f"dimension {DIMENSION}, found 2"),
    ],
    ids=["one-dimensional", "list", "three-dimensional", "scalar", "other-dimension", "list-of-lists"],
)
def test_queries_of_another_shape_are_spoken_of_as_queries(store: mmwal.VectorStore, queries: Any, said: str) -> None:
    store.insert("a", vector(1))
    with pytest.raises(VectorError) as refused:
        store.search_batch(queries)
    assert said in str(refused.value) and "queries" in str(refused.value)
    assert " id" not in str(refused.value)


def test_update_to_nothing_is_refused_before_anything_is_logged(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b"], rows([1, 2]), [{"n": 1}, None])
    before, end = contents(store), reserved(store)
    for refused in (
        lambda: store.update("a"),
        lambda: store.update("missing", None, None),
        lambda: store.update_many(["a", "b"]),
        lambda: store.update_many(["a", "b"], None, [None, None]),
    ):
        with pytest.raises(ValueError, match="nothing to update"):
            refused()
    assert (contents(store), reserved(store)) == (before, end)


def test_update_of_many_metadata_alone_keeps_the_vectors(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b", "c"], rows([1, 2, 3]), [{"n": 1}, None, {"n": 3}])
    store.update("b", vector(20))
    lsn = store.update_many(["c", "b"], metadata=[None, {"m": 2}])
    assert contents(store)["b"] == (vector(20).tobytes(), {"m": 2}, lsn)
    assert contents(store)["c"] == (vector(3).tobytes(), {"n": 3}, lsn)
    assert contents(store)["a"][1] == {"n": 1}
    with pytest.raises(UnknownIdError):
        store.update_many(["a", "missing"], None, [{}, {}])
    with pytest.raises(ValueError, match="1 items for 2 ids"):
        store.update_many(["a", "b"], None, [{}])


@pytest.mark.parametrize("sync_interval_ms", [0, 3_600_000])
def test_update_of_many_metadata_alone_logs_the_full_value(open_store: Any, disk: Any, sync_interval_ms: int) -> None:
    store = open_store(disk=disk, sync_interval_ms=sync_interval_ms)
    store.insert_many(range(3000), rows(range(3000)))
    store.update_many(range(3000), metadata=[{"n": n} for n in range(3000)])  # more than a segment holds
    expected = contents(store)
    assert all(np.array_equal(store[n], vector(n)) for n in range(3000))
    newest = [entry for entry in store.wal.iter_entries() if entry.kind == "batch"][-1]
    assert newest.vectors is not None and newest.vectors[-1][0] == 2999
    store.close()
    assert contents(open_store(disk=disk, sync_interval_ms=sync_interval_ms)) == expected


def test_closed_store_refuses_every_read_alike(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b", "c"], rows([1, 2, 3]))
    chunks = store.batches(1)
    next(chunks)
    store.close()
    store.close()
    strange: Any = None
    for refused in (
        lambda: store.get("a"),
        lambda: store.get(strange),
        lambda: store.get_many([]),
        lambda: store["a"],
        lambda: "a" in store,
        lambda: strange in store,
        lambda: len(store),
        lambda: iter(store),
        lambda: store.ids(),
        lambda: next(store.batches()),
        lambda: next(chunks),
        lambda: store.matrix,
        lambda: store.dimension,
        lambda: store.search(vector(1)),
        lambda: store.search_batch(rows([1])),
        lambda: store.insert("b", vector(1)),
        lambda: store.update("a", vector(1)),
        lambda: store.upsert("a", vector(1)),
        lambda: store.delete("a"),
        lambda: store.insert_many(["b"], rows([1])),
        lambda: store.update_many(["a"], None, [{}]),
        lambda: store.delete_many(["a"]),
    ):
        with pytest.raises(WalClosedError, match="closed"):
            refused()
    assert "closed" in repr(store)
