"""The surface of a store: every method, on both kernels, on the real and the simulated disk, and in memory."""

from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import DuplicateIdError, NoStoreError, UnavailableError, UnknownIdError, WalClosedError
from tests.store.stores import DIMENSION, contents, reserved, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_inserted_vector_is_read_back_with_its_metadata_and_lsn(store: mmwal.VectorStore) -> None:
    lsn = store.insert("a", vector(1), {"title": "one"})
    record = store.get("a")
    assert record is not None
    assert record._fields == ("id", "vector", "metadata", "lsn")
    assert (record.id, record.metadata, record.lsn) == ("a", {"title": "one"}, lsn)
    assert np.array_equal(record.vector, vector(1))
    assert record.vector.dtype == np.float32
    assert np.array_equal(store["a"], vector(1))


def test_vector_that_was_read_is_a_copy(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1))
    store["a"][:] = 9
    record = store.get("a")
    assert record is not None
    record.vector[:] = 9
    assert np.array_equal(store["a"], vector(1))


def test_vector_of_the_caller_is_not_kept(store: mmwal.VectorStore) -> None:
    mine = vector(1)
    many = rows([2, 3])
    store.insert("a", mine)
    store.insert_many(["b", "c"], many)
    mine[:] = 9
    many[:] = 9
    assert [store[id][0] for id in "abc"] == [1, 2, 3]


@pytest.mark.parametrize(
    "given",
    [[1] * DIMENSION, (1.0,) * DIMENSION, vector(1, dtype=np.float64), vector(1, dtype=np.int16), rows([1, 0]).T[:, 0]],
    ids=["list", "tuple", "float64", "int16", "strided"],
)
def test_vector_of_another_kind_is_converted(store: mmwal.VectorStore, given: Any) -> None:
    store.insert("a", given)
    store.upsert_many(["b"], [given])
    assert np.array_equal(store["a"], np.asarray(given, np.float32))
    assert np.array_equal(store["b"], np.asarray(given, np.float32))


def test_update_replaces_the_vector_and_keeps_the_metadata(store: mmwal.VectorStore) -> None:
    first = store.insert("a", vector(1), {"n": 1})
    lsn = store.update("a", vector(2))
    assert lsn > first
    assert contents(store) == {"a": (vector(2).tobytes(), {"n": 1}, lsn)}


def test_update_of_metadata_alone_keeps_the_vector(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1), {"n": 1})
    lsn = store.update("a", metadata={"m": 2})
    assert contents(store) == {"a": (vector(1).tobytes(), {"m": 2}, lsn)}


def test_update_to_empty_metadata_is_not_the_same_as_none(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1), {"n": 1})
    store.update("a", None, {})
    record = store.get("a")
    assert record is not None and record.metadata == {}


def test_upsert_inserts_then_updates_and_keeps_the_metadata(store: mmwal.VectorStore) -> None:
    store.upsert("a", vector(1), {"n": 1})
    lsn = store.upsert("a", vector(2))
    assert contents(store) == {"a": (vector(2).tobytes(), {"n": 1}, lsn)}


def test_deleted_id_is_gone_and_comes_back_without_its_metadata(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1), {"n": 1})
    assert store.delete("a") > 0
    assert store.get("a") is None and "a" not in store and len(store) == 0 and store.ids() == []
    lsn = store.upsert("a", vector(2))
    assert contents(store) == {"a": (vector(2).tobytes(), None, lsn)}


def test_str_and_int_ids_differ(store: mmwal.VectorStore) -> None:
    store.insert("7", vector(1))
    store.insert(7, vector(2))
    store.insert(-(1 << 63), vector(3))
    store.insert((1 << 63) - 1, vector(4))
    assert (store["7"][0], store[7][0]) == (1, 2)
    store.delete("7")
    assert 7 in store and "7" not in store
    assert sorted(store.ids()) == [-(1 << 63), 7, (1 << 63) - 1]  # type: ignore[type-var]


def test_numpy_ids_are_the_plain_ids_they_stand_for(store: mmwal.VectorStore) -> None:
    store.insert_many(np.arange(3), rows([0, 1, 2]))
    store.insert(np.int64(3), vector(3))
    store.upsert(np.str_("s"), vector(4))
    assert store.ids() == [0, 1, 2, 3, "s"]
    assert {type(id) for id in store.ids()} == {int, str}
    record = store.get(np.int64(3))
    assert record is not None and type(record.id) is int
    assert np.int32(2) in store
    store.delete(np.int64(2))
    assert 2 not in store


def test_longest_id_and_any_text_come_back(store: mmwal.VectorStore) -> None:
    for number, id in enumerate(["\0", "ä" * 1000, "🦀", "x" * 20_000]):
        store.insert(id, vector(number))
        assert store[id][0] == number


def test_batch_has_one_lsn_and_is_atomic_in_its_rows(store: mmwal.VectorStore) -> None:
    lsn = store.insert_many(["a", "b", 3], rows([1, 2, 3]), [{"n": 1}, None, {}])
    assert contents(store) == {
        "a": (vector(1).tobytes(), {"n": 1}, lsn),
        "b": (vector(2).tobytes(), None, lsn),
        3: (vector(3).tobytes(), {}, lsn),
    }
    updated = store.update_many(["b", "a"], rows([20, 10]), [{"m": 1}, None])
    assert contents(store)["a"] == (vector(10).tobytes(), {"n": 1}, updated)
    assert contents(store)["b"] == (vector(20).tobytes(), {"m": 1}, updated)
    upserted = store.upsert_many(["a", "new"], rows([11, 5]))
    assert contents(store)["a"] == (vector(11).tobytes(), {"n": 1}, upserted)
    assert contents(store)["new"] == (vector(5).tobytes(), None, upserted)
    store.delete_many(["a", 3])
    assert set(contents(store)) == {"b", "new"}


@pytest.mark.parametrize("count", [1, 400])
def test_batches_of_any_size_replace_rows_that_lie_apart(store: mmwal.VectorStore, count: int) -> None:
    ids = list(range(count))
    store.insert_many(ids, rows(ids))
    store.update_many(ids[::-1], rows(i + 0.5 for i in ids[::-1]))
    store.delete_many(ids[::2])
    assert {id: store[id][0] for id in store} == {id: id + 0.5 for id in ids[1::2]}


def test_existing_id_is_refused_on_insert_and_missing_one_on_update_and_delete(store: mmwal.VectorStore) -> None:
    store.insert("a", vector(1))
    before, end = contents(store), reserved(store)
    with pytest.raises(DuplicateIdError) as duplicate:
        store.insert("a", vector(2))
    assert isinstance(duplicate.value, KeyError) and duplicate.value.id == "a"
    with pytest.raises(DuplicateIdError):
        store.insert_many(["b", "a"], rows([2, 3]))
    with pytest.raises(UnknownIdError) as unknown:
        store.update("b", vector(2))
    assert isinstance(unknown.value, KeyError) and unknown.value.id == "b"
    for refused in (
        lambda: store.delete("b"),
        lambda: store.update("b", metadata={}),
        lambda: store.update_many(["a", "b"], rows([2, 3])),
        lambda: store.delete_many(["a", "b"]),
        lambda: store["b"],
    ):
        with pytest.raises(UnknownIdError):
            refused()
    assert (contents(store), reserved(store)) == (before, end)


def test_get_many_answers_in_the_order_asked(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b"], rows([1, 2]))
    found = store.get_many(["b", "no", "a", "b"])
    assert [record and record.id for record in found] == ["b", None, "a", "b"]
    assert store.get_many([]) == []


def test_what_is_no_id_is_not_in_a_store(store: mmwal.VectorStore) -> None:
    store.insert_many([0, 1, "a"], rows([1, 2, 3]))
    strange: Any
    for strange in (True, False, 1.0, None, b"a", ("a",), ["a"], {}, "\ud800", "", 1 << 63):
        assert strange not in store
        assert store.get(strange) is None
        assert store.get_many([strange]) == [None]
        with pytest.raises(KeyError):
            store[strange]


def test_ids_come_in_the_order_in_which_they_were_written_last(store: mmwal.VectorStore) -> None:
    store.insert_many(["a", "b", "c"], rows([1, 2, 3]))
    store.update("a", vector(4))
    store.delete("b")
    store.insert("b", vector(5))
    assert store.ids() == ["c", "a", "b"]


def test_batches_give_all_live_rows_in_chunks_as_of_their_start(store: mmwal.VectorStore) -> None:
    store.insert_many(range(10), rows(range(10)))
    store.delete_many([0, 5])
    chunks = store.batches(3)
    ids, first = next(chunks)
    store.delete_many([1, 2, 3, 4])
    store.upsert_many([9, 100], rows([-9, 100]))
    rest = list(chunks)
    assert [len(ids), *(len(ids) for ids, _ in rest)] == [3, 3, 2]
    assert [*ids, *(id for ids, _ in rest for id in ids)] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert np.array_equal(np.concatenate([first, *(part for _, part in rest)]), rows([1, 2, 3, 4, 6, 7, 8, 9]))
    with pytest.raises(ValueError, match="rows=0"):
        next(store.batches(0))


def test_matrix_is_a_view_that_cannot_be_written_and_stays(store: mmwal.VectorStore) -> None:
    store.insert_many(range(20), rows(range(20)))
    matrix = store.matrix
    assert matrix.shape == (20, DIMENSION)
    before = matrix.copy()
    with pytest.raises(ValueError, match="read-only"):
        matrix[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        matrix.flags.writeable = True
    part = matrix[3:5]
    for round in range(30):
        store.update_many(range(20), rows(range(round, round + 20)))
        if store.wal is not None and round % 10 == 0:
            store.checkpoint()
    store.delete_many(range(20))
    store.insert_many(range(300), rows(range(300)))
    assert np.array_equal(matrix, before)
    del matrix
    assert np.array_equal(part, before[3:5])


def test_empty_store_answers_everything(store: mmwal.VectorStore) -> None:
    assert (len(store), store.ids(), list(store.batches()), store.get("a")) == (0, [], [], None)
    assert store.search(vector(1)) == []
    ids, scores = store.search_batch(rows([1, 2]))
    assert ids == [[], []] and scores.shape == (2, 0)
    assert store.dimension == DIMENSION
    assert store.matrix.shape == (0, DIMENSION)


def test_every_write_takes_durable(store: mmwal.VectorStore) -> None:
    wal = store.wal
    writes = [
        lambda: store.insert("a", vector(1), durable=True),
        lambda: store.update("a", vector(2), durable=True),
        lambda: store.upsert("a", vector(3), durable=True),
        lambda: store.delete("a", durable=True),
        lambda: store.insert_many(["a", "b"], rows([1, 2]), durable=True),
        lambda: store.update_many(["a", "b"], rows([3, 4]), durable=True),
        lambda: store.upsert_many(["a", "c"], rows([5, 6]), durable=True),
        lambda: store.delete_many(["a", "b"], durable=True),
    ]
    for write in writes:
        lsn = write()
        assert wal is None or store.durable_lsn >= lsn


def test_store_in_memory_has_the_same_methods_and_says_where_it_has_no_log() -> None:
    store = mmwal.VectorStore()
    assert (store.dimension, store.wal, len(store), store.ids()) == (None, None, 0, [])
    assert store.search([1, 2]) == [] and store.matrix.shape == (0, 0)
    lsns = [store.insert(i, [i, 1.0]) for i in range(100)]
    assert lsns == sorted(set(lsns))
    assert store.dimension == 2
    assert [hit.id for hit in store.search([1, 0], k=2)] == [99, 98]
    for logged in (store.checkpoint, store.sync, lambda: store.durable_lsn, lambda: store.wait_durable(1)):
        with pytest.raises(NoStoreError, match="in memory"):
            logged()
    with store:
        store.close()


@pytest.mark.parametrize(("dtype", "metric"), [("float16", "l2"), ("int8", "cosine")])
def test_store_in_memory_takes_dtype_and_metric(dtype: Any, metric: Any) -> None:
    store = mmwal.VectorStore(3, dtype=dtype, metric=metric)
    store.insert("a", np.array([1, 2, 3], dtype))
    assert store["a"].dtype == np.dtype(dtype)
    assert store.search([1, 2, 3])[0].score == pytest.approx(0.0 if metric == "l2" else 1.0)


def test_durability_can_be_asked_waited_for_and_made(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.wait_durable(store.insert("a", vector(1)))  # the first write of a burst is synced at once
    lsn = store.insert("b", vector(1))
    assert store.durable_lsn < lsn
    with pytest.raises(TimeoutError):
        store.wait_durable(lsn, timeout=0.01)
    assert store.sync() >= lsn
    assert store.durable_lsn >= lsn
    store.wait_durable(lsn, timeout=0)
    with pytest.raises(ValueError, match="does not exist yet"):
        store.wait_durable(lsn + (1 << 30))


def test_log_of_a_store_is_readable_and_only_the_store_writes_to_it(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.insert("a", vector(1), {"n": 1})
    store.update("a", None, {"n": 2})
    store.delete("a")
    kinds = [(entry.kind, entry.id) for entry in store.wal.iter_entries()]
    assert kinds == [("insert", "a"), ("update", "a"), ("delete", "a")]
    for refused in (
        lambda: store.wal.log_insert("b", vector(1)),
        lambda: store.wal.log_update("b", vector(1)),
        lambda: store.wal.log_delete("b"),
        lambda: store.wal.log_batch(["b"], rows([1])),
        lambda: store.wal.release(1),
    ):
        with pytest.raises(UnavailableError, match="store"):
            refused()
    assert store.wal.checkpoint().live_rows == 0
    assert store.wal.get_metrics().checkpoints == 1


def test_update_logs_the_full_new_value(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.insert("a", vector(1), {"n": 1})
    store.update("a", vector(2))
    store.update("a", None, {"n": 3})
    found = [(entry.vector[0], entry.metadata) for entry in store.wal.iter_entries()]
    assert found == [(1, {"n": 1}), (2, {"n": 1}), (2, {"n": 3})]


def test_closed_store_refuses_reads_and_writes(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    store.insert("a", vector(1))
    store.close()
    store.close()
    for refused in (
        lambda: store.insert("b", vector(1)),
        lambda: store.insert("a", vector(1)),
        lambda: store.update("a", vector(1)),
        lambda: store.delete("a"),
        lambda: store.upsert_many(["a"], rows([1])),
        lambda: store.get("a"),
        lambda: store.get_many(["a"]),
        lambda: "a" in store,
        lambda: len(store),
        store.ids,
        lambda: next(store.batches()),
        lambda: store.search(vector(1)),
        lambda: store.search_batch(rows([1])),
        lambda: store.matrix,
        store.checkpoint,
        store.sync,
        store.wal.replay,
    ):
        with pytest.raises(WalClosedError):
            list(refused())
    assert store.recovery_stats.completed


def test_closing_leaves_no_thread_and_no_descriptor(open_store: Any) -> None:
    import os
    import threading

    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    store = open_store(checkpoint_interval=10)
    store.insert_many(range(100), rows(range(100)))
    store.close()
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_dimension_is_that_of_the_first_vector_and_is_kept(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk, dimension=...)
    assert (store.dimension, len(store), store.ids(), store.get("a")) == (None, 0, [], None)
    assert (store.search([1, 2]), store.matrix.shape, list(store.batches())) == ([], (0, 0), [])
    with pytest.raises(NoStoreError):
        store.checkpoint()
    with pytest.raises(UnknownIdError):
        store.update("a", [1, 2, 3])
    with pytest.raises(UnknownIdError):
        store.delete_many(["a"])
    lsn = store.insert("a", [1, 2, 3])
    assert store.dimension == 3
    for wrong in (vector(1, 2), vector(1, 4), vector(1, 16), vector(1, 17), [1, 2]):
        with pytest.raises(mmwal.VectorError, match="dimension 3"):
            store.insert("b", wrong)
        with pytest.raises(mmwal.VectorError, match="dimension 3"):
            store.upsert_many(["b"], [wrong])
    store.insert("b", vector(4, 3))
    assert store.get("a").lsn == lsn
    store.close()
    again = open_store(disk=disk, dimension=...)
    assert again.dimension == 3
    assert np.array_equal(again["a"], [1, 2, 3]) and np.array_equal(again["b"], [4, 4, 4])
    with pytest.raises(mmwal.VectorError, match="dimension 3"):
        again.insert("c", vector(1, 4))
    again.close()
    with pytest.raises(mmwal.WalConfigError, match=r"4.*3"):
        open_store(disk=disk, dimension=4)


def test_first_vector_that_is_refused_does_not_fix_the_dimension(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk, dimension=...)
    end = reserved(store)
    for refused in (
        lambda: store.insert("", vector(1, 3)),
        lambda: store.insert("a", vector(1, 20_000)),
        lambda: store.insert("a", vector(1, 3), {"m": b"x" * 70_000}),
        lambda: store.insert("a", vector(np.nan, 3)),
        lambda: store.insert("a", None),
        lambda: store.upsert("a", vector(1, 3), {"m": object()}),
        lambda: store.insert_many(["a", ""], rows([1, 2], 3)),
        lambda: store.insert_many(["a"], rows([1], 20_000)),
        lambda: store.upsert_many(["a"], rows([1], 3), [{"m": b"x" * 70_000}]),
    ):
        with pytest.raises(mmwal.InputError):
            refused()
        assert (store.dimension, reserved(store)) == (None, end)
    store.insert_many(["a", "b"], rows([1, 2], 5))
    assert store.dimension == 5
