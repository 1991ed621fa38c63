"""Exact search against plain NumPy in float64: every metric and dtype, with dead rows, ties and strange vectors."""

import threading
from typing import Any

import numpy as np
import pytest

import mmwal.search.exact
from mmwal.errors import VectorError
from mmwal.kernel.interface import NO_ROW
from mmwal.search.exact import ExactSearch
from mmwal.state.matrix import MemoryMatrix
from mmwal.state.state import State

METRICS = ["inner_product", "cosine", "l2"]
CODES = {"float32": 1, "float16": 2, "int8": 3}


@pytest.fixture(autouse=True, params=[None, 512], ids=["one-chunk", "small-chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(mmwal.search.exact, "SCORES_BYTES", request.param)
        monkeypatch.setattr(mmwal.search.exact, "WIDENED_BYTES", request.param)


def vectors(rng: np.random.Generator, rows: int, dimension: int, dtype: str) -> Any:
    if dtype == "int8":
        return rng.integers(-128, 128, (rows, dimension)).astype(np.int8)
    return rng.standard_normal((rows, dimension)).astype(dtype)


def store(content: Any, dtype: str = "float32") -> State:
    """A state whose ids are the numbers of the rows of ``content``, each logged by itself."""
    state = State(MemoryMatrix(content.shape[1], CODES[dtype]))
    add(state, range(len(content)), content)
    return state


def add(state: State, ids: Any, content: Any) -> None:
    with state.lock:
        for id, vector in zip(ids, content, strict=True):
            lsn = state.applied_lsn + 64
            row = state.take_row()
            state.matrix.array[row] = vector
            state.put(id, row, lsn, None)
            state.advance(lsn)


def search(state: State, metric: Any, query: Any, k: int) -> tuple[list[Any], list[float]]:
    with state.reading() as view:
        rows, scores = ExactSearch(metric).one(view, query, k)
        assert rows.dtype == np.int64
        assert scores.dtype == np.float32
        return [id for id, _, _ in view.records(rows)], scores.tolist()


def brute(content: dict[Any, Any], metric: str, query: Any, k: int) -> tuple[list[Any], list[float]]:
    """The same by definition; ``content`` in the order in which it was logged."""
    query = np.asarray(query, np.float32).astype(np.float64)
    scored = []
    for order, (id, vector) in enumerate(content.items()):
        wide = np.asarray(vector).astype(np.float64)
        if metric == "inner_product":
            score = float((wide * query).sum())
        elif metric == "l2":
            score = float(np.square(wide - query).sum())
        else:
            lengths = np.sqrt(np.square(wide).sum()) * np.sqrt(np.square(query).sum())
            score = float((wide * query).sum() / lengths) if lengths else 0.0
        rounded = float(np.float32(score))
        scored.append((rounded if metric == "l2" else -rounded, order, id, rounded))
    scored.sort()
    return [id for _, _, id, _ in scored[:k]], [score for _, _, _, score in scored[:k]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("dimension", [1, 3, 16, 100])
def test_best_rows_and_scores_are_those_of_brute_force(metric: str, dtype: str, dimension: int) -> None:
    rng = np.random.default_rng(dimension)
    content = vectors(rng, 400, dimension, dtype)
    state = store(content, dtype)
    alive = dict(enumerate(content))
    with state.lock:
        for id in range(0, 400, 3):
            state.remove(id, state.applied_lsn + 64)
            del alive[id]
        state.advance(state.applied_lsn + 64)
    changed = vectors(rng, 50, dimension, dtype)
    add(state, range(1, 101, 2), changed)
    for id, vector in zip(range(1, 101, 2), changed, strict=True):
        alive.pop(id, None)
        alive[id] = vector
    for query in vectors(rng, 5, dimension, "float32"):
        assert search(state, metric, query, 7) == brute(alive, metric, query, 7)


@pytest.mark.parametrize("metric", METRICS)
def test_many_queries_answer_like_each_alone(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.search.exact, "QUERIES_MOST", 4)
    rng = np.random.default_rng(1)
    state = store(vectors(rng, 300, 20, "float32"))
    queries = vectors(rng, 11, 20, "float32")
    searcher = ExactSearch(metric)  # type: ignore[arg-type]
    with state.reading() as view:
        together = searcher.many(view, queries, 5)
        for query, (rows, scores) in zip(queries, together, strict=True):
            alone = searcher.one(view, query, 5)
            assert rows.tolist() == alone[0].tolist()
            assert scores.tolist() == alone[1].tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_scores_come_in_the_order_they_were_logged(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmwal.state.state._COLLECT_ROWS_LEAST", 1)
    rng = np.random.default_rng(2)
    one, other = vectors(rng, 2, 24, "float32")
    content = np.stack([one if n % 3 else other for n in range(200)])
    state = store(content)
    again = [1, 2, 4, 5, 7, 8, 10, 11]
    with state.lock:
        state.put_many(again, [NO_ROW] * len(again), state.applied_lsn + 64, None)
        state.advance(state.applied_lsn + 64)
    add(state, again, content[again])  # logged last, into rows that others had before
    assert any(state.directory.get(id) < 20 for id in again)
    best = [n for n in range(200) if n % 3 and n not in again] + again
    for k in (20, len(best)):
        assert search(state, metric, one, k)[0] == best[:k]


@pytest.mark.parametrize("metric", METRICS)
def test_more_than_there_is_gives_all(metric: str) -> None:
    state = store(np.eye(5, 4, dtype=np.float32))
    assert len(search(state, metric, [1, 2, 3, 4], 100)[0]) == 5


@pytest.mark.parametrize("metric", METRICS)
def test_empty_store_gives_nothing(metric: str) -> None:
    state = store(np.empty((0, 4), np.float32))
    assert search(state, metric, [1, 2, 3, 4], 3) == ([], [])
    add(state, [1], np.ones((1, 4), np.float32))
    with state.lock:
        state.remove(1, state.applied_lsn + 64)
        state.advance(state.applied_lsn + 64)
    assert search(state, metric, [1, 2, 3, 4], 3) == ([], [])


def test_cosine_with_a_vector_of_length_zero_is_zero() -> None:
    state = store(np.array([[0, 0], [1, 0], [-1, 0]], np.float32))
    assert search(state, "cosine", [2, 0], 3) == ([1, 0, 2], [1.0, 0.0, -1.0])
    assert search(state, "cosine", [0, 0], 3) == ([0, 1, 2], [0.0, 0.0, 0.0])


def test_l2_of_near_duplicates_far_from_the_origin_is_exact() -> None:
    rng = np.random.default_rng(3)
    center = rng.standard_normal(64).astype(np.float32) * 1000
    content = (center + rng.standard_normal((300, 64)) * 0.01).astype(np.float32)
    state = store(content)
    assert search(state, "l2", center, 10) == brute(dict(enumerate(content)), "l2", center, 10)
    assert search(state, "l2", content[17], 1) == ([17], [0.0])


@pytest.mark.parametrize("metric", METRICS)
def test_one_enormous_row_does_not_disturb_the_others(metric: str) -> None:
    rng = np.random.default_rng(4)
    content = vectors(rng, 200, 16, "float32")
    content[50] *= 1e30
    state = store(content)
    query = vectors(rng, 1, 16, "float32")[0]
    with np.errstate(over="ignore"):  # its squared distance is above what float32 holds
        assert search(state, metric, query, 10) == brute(dict(enumerate(content)), metric, query, 10)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite_come_last(metric: str) -> None:
    content = np.ones((100, 4), np.float32) * np.arange(1, 101, dtype=np.float32)[:, None]
    content[3] = np.nan
    content[70, 1] = np.nan
    state = store(content)
    ids, scores = search(state, metric, [1, 1, 1, 1], 100)
    assert ids[-2:] == [3, 70]
    assert np.isnan(scores[-2:]).all()
    assert not np.isnan(scores[:-2]).any()


def test_reader_searches_what_was_alive_when_it_began() -> None:
    state = store(np.eye(4, dtype=np.float32))
    searcher = ExactSearch("inner_product")
    with state.reading() as view:
        add(state, [0, 9], np.ones((2, 4), np.float32) * 5)
        with state.lock:
            state.remove(1, state.applied_lsn + 64)
            state.advance(state.applied_lsn + 64)
        rows, scores = searcher.one(view, [4, 3, 2, 1], 10)
        assert [id for id, _, _ in view.records(rows)] == [0, 1, 2, 3]
        assert scores.tolist() == [4, 3, 2, 1]


def test_row_that_changed_hands_is_judged_by_its_new_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmwal.state.state._COLLECT_ROWS_LEAST", 1)
    axes = np.eye(4, dtype=np.float32)
    state = store(axes)
    searcher = ExactSearch("cosine")
    for n in range(200):
        with state.reading() as view:
            rows, _ = searcher.one(view, axes[n % 4] + axes[(n + 1) % 4] / 2, 1)
            assert [id for id, _, _ in view.records(rows)] == [n % 4]
        add(state, [n % 4], [axes[n % 4] * (1000 if n % 3 else 0.001)])
    assert state.rows.high < 20


@pytest.mark.parametrize("query", [[1, 2, 3], [[1, 2, 3, 4]], [1, 2, 3, np.nan], "abcd", [1, 2, 3, 1e40], None])
def test_query_that_fits_no_row_is_a_vector_error(query: Any) -> None:
    state = store(np.eye(4, dtype=np.float32))
    with pytest.raises(VectorError):
        search(state, "cosine", query, 1)


def test_queries_of_another_shape_are_a_vector_error() -> None:
    state = store(np.eye(4, dtype=np.float32))
    with state.reading() as view:
        for queries in (np.ones((2, 3)), np.ones(4), np.ones((1, 2, 4)), 5):
            with pytest.raises(VectorError):
                ExactSearch("l2").many(view, queries, 1)
        assert ExactSearch("l2").many(view, np.empty((0, 4)), 1) == []


def test_k_below_one_and_unknown_metric_are_refused() -> None:
    state = store(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="k=0"):
        search(state, "cosine", [1, 2, 3, 4], 0)
    with pytest.raises(ValueError, match="metric"):
        ExactSearch("hamming")  # type: ignore[arg-type]


def test_strided_rows_are_multiplied_without_a_copy() -> None:
    state = store(np.ones((10, 100), np.float32))
    with state.reading() as view:
        assert view.array.strides == (448, 4)
        assert np.shares_memory(view.array[0:5].astype(np.float32, copy=False), view.array)


def test_threads_that_search_at_once_agree() -> None:
    rng = np.random.default_rng(5)
    content = vectors(rng, 500, 32, "float32")
    state = store(content)
    searcher = ExactSearch("cosine")
    query = vectors(rng, 1, 32, "float32")[0]
    found = []

    def run() -> None:
        for _ in range(20):
            with state.reading() as view:
                rows, scores = searcher.one(view, query, 10)
                found.append((rows.tolist(), scores.tolist()))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(answer == found[0] for answer in found)
