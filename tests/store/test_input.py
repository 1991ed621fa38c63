"""Bad input: a typed error before anything is logged, and the store as it was."""

from functools import partial
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import (
    DuplicateIdError,
    EntryTooLargeError,
    IdError,
    IdTypeError,
    MetadataError,
    UnknownIdError,
    VectorError,
)
from tests.store.stores import DIMENSION, contents, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def filled(store: mmwal.VectorStore) -> mmwal.VectorStore:
    store.insert("a", vector(1), {"n": 1})
    store.insert("b", vector(2))
    return store


def assert_refused(store: mmwal.VectorStore, error: Any, *writes: Any) -> None:
    """Each write raises the error, logs nothing and leaves the store as it was, ready for the next one."""
    before, end = contents(store), reserved(store)
    for write in writes:
        with pytest.raises(error):
            write()
        assert (contents(store), reserved(store)) == (before, end)
    after = f"after {len(store)}"
    store.insert(after, vector(3))
    assert store[after][0] == 3
    assert contents(store) == {**before, after: contents(store)[after]}


def nan_at_the_end(bad: float) -> np.ndarray[Any, Any]:
    array = vector(1)
    array[-1] = bad
    return array


BAD_VECTORS = {
    "none": None,
    "too short": vector(1, DIMENSION - 1),
    "too long": vector(1, DIMENSION + 1),
    "fits the stride": vector(1, 16),
    "beyond the stride": vector(1, 17),
    "list too long": [1.0] * (DIMENSION + 1),
    "empty": [],
    "two-dimensional": rows([1]),
    "scalar": 1.0,
    "text": "vector",
    "texts": ["1"] * DIMENSION,
    "objects": [object()] * DIMENSION,
    "complex": vector(1, dtype=np.complex64),
    "bool": vector(1, dtype=np.bool_),
    "bytes": bytes(4 * DIMENSION),
    "NaN": nan_at_the_end(np.nan),
    "infinity": nan_at_the_end(np.inf),
    "list with NaN": nan_at_the_end(np.nan).tolist(),
    "too large for float32": vector(1e300, dtype=np.float64),
}


def test_bad_vector_is_refused(filled: mmwal.VectorStore) -> None:
    for bad in BAD_VECTORS.values():
        assert_refused(filled, VectorError, partial(filled.insert, "c", bad), partial(filled.upsert, "c", bad))
        if bad is not None:
            assert_refused(filled, VectorError, partial(filled.update, "a", bad), partial(filled.upsert, "a", bad))


BAD_MATRICES = {
    "none": None,
    "one row too few": rows([1, 2]),
    "one row too many": rows([1, 2, 3, 4]),
    "wrong dimension": rows([1, 2, 3], DIMENSION + 1),
    "flat": vector(1, 3 * DIMENSION),
    "ragged": [vector(1), vector(2, DIMENSION + 1), vector(3)],
    "ragged lists": [[1.0] * DIMENSION, [1.0], [1.0] * DIMENSION],
    "NaN in the last row": np.stack([vector(1), vector(2), nan_at_the_end(np.nan)]),
    "infinity": np.stack([vector(1), nan_at_the_end(-np.inf), vector(2)]),
    "texts": [["x"] * DIMENSION] * 3,
    "no rows": np.empty((0, DIMENSION), np.float32),
}


def test_bad_vectors_of_a_batch_are_refused_whole(filled: mmwal.VectorStore) -> None:
    filled.insert("c", vector(3))
    for bad in BAD_MATRICES.values():
        assert_refused(
            filled,
            VectorError,
            partial(filled.insert_many, ["x", "y", "z"], bad),
            partial(filled.upsert_many, ["a", "y", "z"], bad),
            partial(filled.update_many, ["a", "b", "c"], bad),
        )


BAD_IDS = {
    "bool": (True, IdTypeError),
    "numpy bool": (np.True_, IdTypeError),
    "float": (1.0, IdTypeError),
    "bytes": (b"a", IdTypeError),
    "none": (None, IdTypeError),
    "tuple": (("a",), IdTypeError),
    "empty": ("", IdError),
    "65,536 bytes": ("x" * 65_536, IdError),
    "32,768 characters of two bytes": ("ä" * 32_768, IdError),
    "lone surrogate": ("\ud800", IdError),
    "beyond 64 bits": (1 << 63, IdError),
    "below 64 bits": (-(1 << 63) - 1, IdError),
}


def test_bad_id_is_refused(filled: mmwal.VectorStore) -> None:
    for bad, error in BAD_IDS.values():
        assert_refused(
            filled,
            error,
            partial(filled.insert, bad, vector(1)),
            partial(filled.upsert, bad, vector(1)),
            partial(filled.insert_many, ["x", bad], rows([1, 2])),
            partial(filled.upsert_many, ["a", bad], rows([1, 2])),
        )


def test_bad_id_is_refused_where_it_would_have_to_exist(filled: mmwal.VectorStore) -> None:
    for bad, error in BAD_IDS.values():
        assert_refused(
            filled,
            (error, UnknownIdError),
            partial(filled.update, bad, vector(1)),
            partial(filled.update, bad, metadata={}),
            partial(filled.delete, bad),
            partial(filled.delete_many, ["a", bad]),
            partial(filled.update_many, ["a", bad], rows([1, 2])),
        )


def test_true_is_not_the_id_one(filled: mmwal.VectorStore) -> None:
    filled.insert(1, vector(1))
    assert True not in filled and 1 in filled
    assert filled.get(True) is None
    assert_refused(
        filled,
        IdTypeError,
        lambda: filled.delete(True),
        lambda: filled.update(True, vector(2)),
        lambda: filled.upsert(True, vector(2)),
        lambda: filled.delete_many([True]),
    )


BAD_METADATA: list[Any] = [
    {"t": (1,)},
    {1: 2},
    {"s": {1}},
    {"o": object()},
    {"i": 1 << 64},
    {"s": "\ud800"},
    {"n": np.float32(1)},
    [1],
    "m",
]


def test_metadata_that_would_change_is_refused(filled: mmwal.VectorStore) -> None:
    for bad in BAD_METADATA:
        assert_refused(
            filled,
            MetadataError,
            partial(filled.insert, "c", vector(1), bad),
            partial(filled.update, "a", vector(1), bad),
            partial(filled.update, "a", metadata=bad),
            partial(filled.upsert, "a", vector(1), bad),
            partial(filled.insert_many, ["c", "d"], rows([1, 2]), [None, bad]),
            partial(filled.update_many, ["a", "b"], rows([1, 2]), [bad, None]),
        )


def test_batches_of_lengths_that_differ_are_refused(filled: mmwal.VectorStore) -> None:
    assert_refused(
        filled,
        ValueError,
        lambda: filled.insert_many(["c"], rows([1, 2])),
        lambda: filled.insert_many(["c", "d"], rows([1])),
        lambda: filled.insert_many(["c", "d"], rows([1, 2]), [None]),
        lambda: filled.insert_many(["c"], rows([1]), [None, {}]),
        lambda: filled.insert_many([], np.empty((0, DIMENSION), np.float32)),
        lambda: filled.delete_many([]),
        lambda: filled.insert_many([], []),
    )


def test_one_text_is_no_batch_of_ids(filled: mmwal.VectorStore) -> None:
    assert_refused(
        filled,
        IdTypeError,
        lambda: filled.insert_many("cd", rows([1, 2])),
        lambda: filled.delete_many("ab"),
        lambda: filled.delete_many(b"ab"),
    )


def test_id_that_comes_twice_in_a_batch_is_refused(filled: mmwal.VectorStore) -> None:
    assert_refused(
        filled,
        DuplicateIdError,
        lambda: filled.insert_many(["c", "d", "c"], rows([1, 2, 3])),
        lambda: filled.upsert_many(["a", "a"], rows([1, 2])),
        lambda: filled.update_many(["a", "b", "a"], rows([1, 2, 3])),
        lambda: filled.delete_many(["a", "b", "a"]),
    )
    filled.insert_many(["7", 7], rows([1, 2]))


def test_entry_that_no_segment_holds_is_refused(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.insert("a", vector(1))
    large = {"m": b"x" * 60_000}
    assert_refused(
        store,
        EntryTooLargeError,
        lambda: store.insert("c", vector(1), large),
        lambda: store.update("a", metadata=large),
        lambda: store.insert_many(["c", "d"], rows([1, 2]), [large, None]),
        lambda: store.insert("x" * 65_535, vector(1)),
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_value_that_the_dtype_cannot_hold_is_refused(open_store: Any, disk: Any, dtype: str) -> None:
    store = open_store(disk=disk, dtype=dtype)
    store.insert("a", vector(1, dtype=dtype))
    before, end = contents(store), reserved(store)
    bad = vector(1000, dtype=np.int32) if dtype == "int8" else vector(1e6)
    for write in (
        lambda: store.insert("b", bad),
        lambda: store.insert_many(["b"], [bad]),
        lambda: store.update("a", bad),
    ):
        with pytest.raises(VectorError):
            write()
    assert (contents(store), reserved(store)) == (before, end)


def test_nonfinite_values_are_taken_where_that_was_asked_for(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk, allow_nonfinite=True, dimension=...)
    store.insert("a", nan_at_the_end(np.nan))
    store.insert("b", nan_at_the_end(np.inf).tolist())
    store.insert_many(["c"], [nan_at_the_end(-np.inf)])
    assert np.isnan(store["a"][-1]) and store["b"][-1] == np.inf and store["c"][-1] == -np.inf


def test_refused_batch_gives_its_rows_back(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.insert("a", vector(1))
    for _ in range(50):
        with pytest.raises(EntryTooLargeError):
            store.insert_many(range(10), rows(range(10)), [{"m": b"x" * 60_000}] + [None] * 9)
        with pytest.raises(EntryTooLargeError):
            store.insert("b", vector(1), {"m": b"x" * 60_000})
    assert len(store.matrix) <= 11


@pytest.mark.parametrize(
    ("field", "value"), [("dimension", 0), ("dimension", "x"), ("dtype", "float64"), ("metric", "l3"), ("metric", 1)]
)
def test_store_in_memory_refuses_by_name_what_vectors_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(mmwal.WalConfigError, match=rf"^{field}={value!r}"):
        mmwal.VectorStore(**{field: value})
