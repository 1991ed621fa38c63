"""A store's search against NumPy brute force: three metrics, three dtypes, after inserts, updates and deletes."""

from typing import Any

import numpy as np
import pytest

import mmwal
from tests.store.stores import close_quietly, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

DIMENSION = 24


def brute_force(metric: str, matrix: Any, query: Any) -> np.ndarray[Any, Any]:
    wide, wanted = matrix.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return np.asarray(((wide - wanted) ** 2).sum(axis=1))
    products = wide @ wanted
    if metric == "inner_product":
        return np.asarray(products)
    return np.asarray(products / (np.linalg.norm(wide, axis=1) * np.linalg.norm(wanted)))


def random_rows(rng: Any, count: int, dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "int8":
        return np.asarray(rng.integers(-128, 128, (count, DIMENSION)), np.int8)
    return np.asarray(rng.standard_normal((count, DIMENSION)), dtype)


@pytest.fixture
def filled(open_store: Any, disk: Any, request: pytest.FixtureRequest) -> Any:
    """A store of a metric and dtype, and what it must hold, after writes of every kind."""

    def fill(metric: str, dtype: str) -> tuple[mmwal.VectorStore, dict[Any, Any]]:
        rng = np.random.default_rng(7)
        store = open_store(disk=disk, dimension=DIMENSION, metric=metric, dtype=dtype)
        model: dict[Any, Any] = {}
        first = random_rows(rng, 300, dtype)
        store.insert_many(range(300), first, [{"n": n} for n in range(300)])
        model.update(zip(range(300), first, strict=True))
        for n in range(0, 300, 3):
            model[n] = random_rows(rng, 1, dtype)[0]
            store.update(n, model[n])
        store.checkpoint()
        store.delete_many(range(0, 300, 7))
        for n in range(0, 300, 7):
            del model[n]
        for n in range(20):
            model[f"id-{n}"] = random_rows(rng, 1, dtype)[0]
            store.upsert(f"id-{n}", model[f"id-{n}"])
        return store, model

    return fill


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("metric", ["inner_product", "cosine", "l2"])
def test_search_finds_what_brute_force_finds(filled: Any, metric: str, dtype: str) -> None:
    store, model = filled(metric, dtype)
    ids, matrix = list(model), np.stack(list(model.values()))
    queries = np.random.default_rng(8).standard_normal((9, DIMENSION)).astype(np.float32)
    found_ids, found_scores = store.search_batch(queries, k=12)
    assert found_scores.shape == (9, 12) and found_scores.dtype == np.float32
    for query, batch_ids, batch_scores in zip(queries, found_ids, found_scores, strict=True):
        scores = brute_force(metric, matrix, query)
        best = np.argsort(scores if metric == "l2" else -scores, kind="stable")[:12]
        hits = store.search(query, k=12)
        assert [hit.id for hit in hits] == batch_ids == [ids[row] for row in best]
        assert np.allclose([hit.score for hit in hits], scores[best], rtol=1e-5, atol=1e-5)
        assert np.array_equal(batch_scores, np.array([hit.score for hit in hits], np.float32))
        for hit in hits:
            assert hit._fields == ("id", "score", "metadata")
            assert hit.metadata == (None if isinstance(hit.id, str) else {"n": hit.id})


def test_search_answers_the_same_after_reopening(filled: Any, open_store: Any, disk: Any) -> None:
    store, _ = filled("cosine", "float16")
    query = vector(1, DIMENSION)
    before = store.search(query, k=25)
    store.close()
    assert open_store(disk=disk, dimension=..., metric=None).search(query, k=25) == before


def test_search_for_more_than_there_is_gives_all(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b"], rows([1, 2]))
    assert [hit.id for hit in store.search(vector(1), k=50)] == ["b", "a"]
    ids, scores = store.search_batch(rows([1, -1]), k=50)
    assert ids == [["b", "a"], ["a", "b"]] and scores.shape == (2, 2)


def test_no_queries_give_no_answers(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1))
    ids, scores = store.search_batch(np.empty((0, 8), np.float32), k=3)
    assert ids == [] and scores.shape == (0, 0)


@pytest.mark.parametrize("query", [vector(1, 7), rows([1]), vector(np.nan), ["a"] * 8, None])
def test_query_that_is_no_vector_is_refused(store: mmwal.VectorStore, query: Any) -> None:
    store.insert("a", vector(1))
    with pytest.raises(mmwal.VectorError):
        store.search(query)


def test_search_for_less_than_one_is_refused(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1))
    with pytest.raises(ValueError, match="k=0"):
        store.search(vector(1), k=0)


def test_score_and_order_of_equal_rows_follow_the_log() -> None:
    store = mmwal.VectorStore(2, metric="l2")
    for id in "cab":
        store.insert(id, [1, 1])
    assert store.search([1, 2], k=3) == [("c", 1.0, None), ("a", 1.0, None), ("b", 1.0, None)]
    close_quietly(store)
