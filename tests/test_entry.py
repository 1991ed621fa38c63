"""What a caller logs and reads back: entries that match, reports that print and add up, vectors made ready to log."""

import dataclasses
import doctest
import json
import pickle
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal import entry as entry_module
from mmwal.entry import (
    CheckpointInfo,
    Hit,
    Record,
    RecoveryStats,
    WalEntry,
    WalMetrics,
    normalize_matrix,
    normalize_vector,
)
from mmwal.errors import InputError, VectorError

VECTOR = np.array([1.0, 2.0], np.float32)
WHERE: dict[str, int] = {"lsn": 8448, "timestamp_ns": 1_700_000_000_123_456_789, "txn": 3}
ENTRIES = [
    WalEntry.Insert("a", VECTOR, {"k": 1}, **WHERE),
    WalEntry.Update("a", None, {"k": 2}, **WHERE),
    WalEntry.Upsert(7, VECTOR, **WHERE),
    WalEntry.Delete("a", **WHERE),
    WalEntry.Batch("insert", ["a", 7], np.zeros((2, 2), np.float32), [None, {}], **WHERE),
    WalEntry.Commit(8192, 2, **WHERE),
    WalEntry.Checkpoint(4, 8192, **WHERE),
]
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.kind for entry in ENTRIES])


def story(entry: WalEntry) -> str:
    match entry:
        case WalEntry.Insert(id, vector, metadata):
            return f"insert {id} {vector.tolist()} {metadata}"
        case WalEntry.Update(id=id, metadata=metadata):
            return f"update {id} {metadata}"
        case WalEntry.Upsert(id=id):
            return f"upsert {id}"
        case WalEntry.Delete(id=id):
            return f"delete {id}"
        case WalEntry.Batch(operation=operation, ids=ids):
            return f"batch {operation} {ids}"
        case WalEntry.Commit(rows=rows, txn=txn):
            return f"commit {txn} {rows}"
        case WalEntry.Checkpoint(seq=seq):
            return f"checkpoint {seq}"
    return "?"


# ---- entries


def test_entries_match_by_kind_and_field() -> None:
    assert [story(entry) for entry in ENTRIES] == [
        "insert a [1.0, 2.0] {'k': 1}",
        "update a {'k': 2}",
        "upsert 7",
        "delete a",
        "batch insert ['a', 7]",
        "commit 3 2",
        "checkpoint 4",
    ]


@each_entry
def test_every_entry_carries_position_time_and_transaction(entry: WalEntry) -> None:
    assert isinstance(entry, WalEntry)
    assert (entry.lsn, entry.timestamp_ns, entry.txn) == (8448, 1_700_000_000_123_456_789, 3)
    assert entry.timestamp == datetime(2023, 11, 14, 22, 13, 20, 123_456, UTC)
    assert entry.timestamp.tzinfo is UTC


@each_entry
def test_entries_are_frozen_and_have_no_room_for_more(entry: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.lsn = 1
    with pytest.raises((AttributeError, TypeError)):
        entry.colour = "red"
    assert not hasattr(entry, "__dict__")


@each_entry
def test_entries_survive_pickling_and_print_under_their_public_name(entry: WalEntry) -> None:
    copied = pickle.loads(pickle.dumps(entry))  # noqa: S301  # our own bytes
    assert copied == entry
    assert hash(copied) == hash(entry)
    assert repr(entry).startswith(f"WalEntry.{entry.kind.capitalize()}(")


def test_entries_are_equal_only_with_equal_vectors_of_one_dtype() -> None:
    entry = WalEntry.Insert("a", VECTOR)
    assert entry == WalEntry.Insert("a", VECTOR.copy())
    assert entry != WalEntry.Insert("a", VECTOR + 1)
    assert entry != WalEntry.Insert("a", VECTOR.astype(np.float16))
    assert entry != WalEntry.Insert("a", VECTOR, lsn=64)
    assert entry != WalEntry.Upsert("a", VECTOR)
    assert WalEntry.Update("a") != WalEntry.Update("a", VECTOR)


def test_entry_made_by_a_caller_has_no_position_yet() -> None:
    entry = WalEntry.Insert(id="a", vector=VECTOR)
    assert (entry.metadata, entry.lsn, entry.timestamp_ns, entry.txn) == (None, 0, 0, 0)


def test_time_beyond_the_range_of_floats_keeps_its_microseconds() -> None:
    entry = WalEntry.Delete("a", timestamp_ns=4_102_444_800_000_001_999)
    assert entry.timestamp == datetime(2100, 1, 1, 0, 0, 0, 1, UTC)


def test_batch_unfolds_into_single_entries() -> None:
    batch = WalEntry.Batch("update", ["a", 7], np.eye(2, dtype=np.float32), [None, {"k": 1}], **WHERE)
    assert len(batch) == 2
    assert list(batch.singles()) == [
        WalEntry.Update("a", np.array([1, 0], np.float32), None, **WHERE),
        WalEntry.Update(7, np.array([0, 1], np.float32), {"k": 1}, **WHERE),
    ]
    deletes = WalEntry.Batch("delete", ["a", "b"], **WHERE)
    assert list(deletes.singles()) == [WalEntry.Delete("a", **WHERE), WalEntry.Delete("b", **WHERE)]


# ---- answers and reports


def test_record_and_hit_unpack() -> None:
    id, vector, metadata, lsn = Record("a", VECTOR, {"k": 1}, 64)
    assert (id, vector is VECTOR, metadata, lsn) == ("a", True, {"k": 1}, 64)
    assert Hit("a", 0.5, None)._asdict() == {"id": "a", "score": 0.5, "metadata": None}


def test_checkpoint_info_is_frozen() -> None:
    info: Any = CheckpointInfo(
        sequence=1, lsn=9000, redo_lsn=8192, elapsed_ms=1.5, bytes_written=10, rows_changed=2, live_rows=3
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.lsn = 1


def test_recovery_stats_before_a_recovery_are_zero() -> None:
    stats = RecoveryStats()
    assert stats.completed is False
    assert not any(stats.to_dict().values())


def test_recovery_stats_add_up_or_are_refused() -> None:
    stats = RecoveryStats(
        total_entries=15,
        applied_entries=5,
        skipped_entries=4,
        corrupted_entries=3,
        rolled_back_entries=2,
        marker_entries=1,
    )
    assert stats.total_entries == 15
    with pytest.raises(ValueError, match="add up"):
        RecoveryStats(total_entries=2, applied_entries=1)


def test_recovery_stats_print_as_a_few_lines() -> None:
    stats = RecoveryStats(
        completed=True,
        total_entries=12_001,
        applied_entries=12_000,
        marker_entries=1,
        recovery_time_ms=12.34,
        bytes_scanned=3_000_000,
        segments=2,
        workers=2,
        first_lsn=8192,
        last_lsn=3_008_192,
        torn_tail_bytes=128,
        checkpoint_sequence=9,
        redo_lsn=8192,
        notes=("an idle mark was found",),
        errors=("one thing", "another"),
    )
    assert str(stats).splitlines() == [
        "recovery: completed, after an unclean shutdown",
        "  entries: 12,001 (12,000 applied, 0 skipped, 0 corrupted, 0 rolled back, 1 markers)",
        "  log: LSN 8192 to 3008192, 3,000,000 bytes scanned in 2 segments by 2 workers in 12.3 ms",
        "  checkpoint: number 9, replay from LSN 8192",
        "  tail: torn, 128 bytes cut",
        "  note: an idle mark was found",
        "  error: one thing",
        "  error: another",
    ]
    assert json.loads(json.dumps(stats.to_dict()))["errors"] == ["one thing", "another"]


def test_metrics_are_a_frozen_snapshot_ready_for_json() -> None:
    numbers: dict[str, Any] = {field.name: 1 for field in dataclasses.fields(WalMetrics)}
    metrics: Any = WalMetrics(**numbers | {"kernel": "py"})
    assert json.loads(json.dumps(metrics.to_dict())) == numbers | {"kernel": "py"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.syncs = 2


# ---- vectors


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_array_that_is_right_already_is_not_copied(dtype: str) -> None:
    vector = np.arange(4).astype(dtype)
    matrix = vector.reshape(2, 2)
    assert normalize_vector(vector, dtype, 4) is vector
    assert normalize_matrix(matrix, 2, dtype, 2) is matrix
    vector.flags.writeable = False
    assert normalize_vector(vector, np.dtype(dtype)) is vector


@pytest.mark.parametrize(
    "vector",
    [
        [1, 2],
        (1.0, 2.0),
        range(1, 3),
        np.array([1, 2], np.uint8),
        np.array([1, 2], np.int64),
        np.array([1, 2], np.float64),
        np.array([1, 2], np.float16),
        np.array([1, 2], np.longdouble),
        np.array([1, 2], ">f4"),
        np.array([1, 9, 2, 9], np.float32)[::2],
        np.array([2, 1], np.float32)[::-1],
        np.frombuffer(b"x" + np.array([1, 2], np.float32).tobytes(), np.uint8)[1:].view(np.float32),
        memoryview(np.array([1, 2], np.float32)),
    ],
    ids=lambda vector: f"{type(vector).__name__}-{getattr(vector, 'dtype', '')}",
)
def test_whatever_is_a_row_of_numbers_becomes_a_plain_array(vector: Any) -> None:
    array = normalize_vector(vector, "float32", 2)
    assert array.tolist() == [1.0, 2.0]
    assert array.dtype == np.dtype("float32")
    assert array.dtype.isnative
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert memoryview(array).format == "f"


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([1.0, 2.0, 3.0], "expected a vector of dimension 2, found 3"),
        ([], "expected a vector of dimension 2, found 0"),
        ([[1.0, 2.0]], r"shape \(d,\), found shape \(1, 2\); use .ravel"),
        ([[1.0, 2.0], [3.0, 4.0]], r"found shape \(2, 2\); log several"),
        (1.0, r"found shape \(\)"),
        (None, "found a NoneType"),
        ({1, 2}, "found a set"),
        ({"a": 1}, "found a dict"),
        ("ab", "found dtype <U2"),
        (b"\0\0\0\0\0\0\0\0", "found bytes; use np.frombuffer"),
        (bytearray(8), "found bytearray; use np.frombuffer"),
        (["1", "2"], "found dtype <U1"),
        ([True, False], "found dtype bool"),
        ([1 + 2j, 3], "found dtype complex128"),
        ([None, 1], "found dtype object"),
        ([10**30, 1], "found dtype object"),
        ([[1, 2], [3]], "dimension 2, found 1 in row 1"),
        (np.array(["2026-01-01"] * 2, "M8[D]"), "found dtype datetime64"),
        (np.zeros(2, [("x", "f4")]), "found dtype"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), "masked array; use .filled"),
        ([1.0, float("nan")], "found nan at index 1; replace it, or set allow_nonfinite=True"),
        ([float("-inf"), 1.0], "found -inf at index 0"),
        ([1e39, 1.0], r"found 1e\+39 at index 0; it is too large"),
    ],
    ids=str,
)
def test_wrong_vector_is_refused_with_what_was_expected_and_found(vector: Any, problem: str) -> None:
    with pytest.raises(VectorError, match=problem) as caught:
        normalize_vector(vector, "float32", 2)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ([[1, 2, 3], [4, 5, 6]], "expected vectors of dimension 2, found 3"),
        ([[1, 2]], "expected 2 vectors, one for each id, found 1"),
        ([1, 2], r"expected vectors of shape \(2, d\), found shape \(2,\)"),
        ([], r"expected vectors of shape \(2, d\), found shape \(0,\)"),
        ([[1, 2], [3, 4, 5]], "found 3 in row 1"),
        ([np.ones(2), np.ones(3)], "found 3 in row 1"),
        ([[1, 2], [3, float("nan")]], "found nan at row 1, index 1"),
        ([[1, 2], [3, 1e39]], r"found 1e\+39 at row 1, index 1; it is too large"),
        ([[1, 2], ["a", "b"]], "found dtype <U"),
        (np.zeros((2, 2), bool), "found dtype bool"),
    ],
    ids=str,
)
def test_wrong_matrix_is_refused_with_what_was_expected_and_found(matrix: Any, problem: str) -> None:
    with pytest.raises(VectorError, match=problem):
        normalize_matrix(matrix, 2, "float32", 2)


def test_object_that_fails_to_become_an_array_is_refused() -> None:
    class OnAnotherDevice:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise TypeError("copy it to the host first")

    with pytest.raises(VectorError, match="copy it to the host first"):
        normalize_vector(OnAnotherDevice(), "float32", 2)


def test_matrix_is_made_of_rows_a_transposed_array_or_nothing() -> None:
    rows = normalize_matrix([np.ones(2), [3, 4]], 2, "float32")
    assert rows.tolist() == [[1.0, 1.0], [3.0, 4.0]]
    transposed = normalize_matrix(np.arange(6.0).reshape(2, 3).T, 3, "float32", 2)
    assert transposed.flags.c_contiguous
    assert transposed.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert normalize_matrix([], 0, "float32", 5).shape == (0, 5)


def test_empty_vector_is_refused_even_where_the_dimension_is_open() -> None:
    with pytest.raises(VectorError, match="at least one value"):
        normalize_vector([], "float32", None)
    with pytest.raises(VectorError, match="at least one value"):
        normalize_matrix(np.zeros((2, 0), np.float32), 2, "float32", 0)


def test_nonfinite_values_pass_when_allowed_but_an_overflow_never_does() -> None:
    array = normalize_vector([float("nan"), float("inf")], "float32", 2, allow_nonfinite=True)
    assert np.isnan(array[0])
    assert np.isposinf(array[1])
    with pytest.raises(VectorError, match=r"found 1e\+39 at index 1; it is too large: scale the vectors$"):
        normalize_vector([float("inf"), 1e39], "float32", 2, allow_nonfinite=True)
    with pytest.raises(VectorError, match=r"found 70000 at index 0; .* or use float32"):
        normalize_vector([70_000, 1], "float16", 2, allow_nonfinite=True)


@pytest.mark.parametrize("vector", [[-128, 127], np.array([-128, 127], np.int64), np.array([-128, 127], ">i2")])
def test_int8_takes_integers_in_range(vector: Any) -> None:
    assert normalize_vector(vector, "int8", 2).tolist() == [-128, 127]


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([1.0, 2.0], "expected integers for a log of int8, found float64; quantize first"),
        (np.ones(2, np.float32), "found float32"),
        ([0, 128], "expected integers from -128 to 127, found 128 at index 1"),
        ([-129, 0], "found -129 at index 0"),
        (np.array([0, 255], np.uint8), "found 255 at index 1"),
        (np.array([2**64 - 1, 0], np.uint64), "found 18446744073709551615 at index 0"),
    ],
)
def test_int8_refuses_what_it_would_have_to_round_or_wrap(vector: Any, problem: str) -> None:
    with pytest.raises(VectorError, match=problem):
        normalize_vector(vector, "int8", 2)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_values_that_fit_are_kept_to_the_bit(values: list[float]) -> None:
    assert normalize_vector(values, "float32", len(values)).tolist() == values
    assert normalize_matrix([values], 1, "float32").tolist() == [values]


def test_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(entry_module)
    assert (result.failed, result.attempted > 0) == (0, True)
