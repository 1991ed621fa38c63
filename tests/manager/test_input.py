"""What may be logged, what is converted, and what is refused before anything is logged."""

import array
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.entry import Record
from mmwal.errors import IdError, IdTypeError, InputError, MetadataError, VectorError
from tests.log.fixtures import OpenWal
from tests.log.logs import ids, reserved, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
V = vector(1)
SIXTEEN = [float(i) for i in range(16)]


class Name(str):
    """A subclass of str, as an enum's or a framework's."""

    __slots__ = ()


@dataclass
class Document:
    id: Any
    vector: Any
    metadata: Any = None


BAD_VECTORS = {
    "short": np.ones(15, np.float32),
    "long": np.ones(17, np.float32),
    "empty": np.ones(0, np.float32),
    "scalar": np.float32(1),
    "number": 3.0,
    "two dimensions": np.ones((1, 16), np.float32),
    "three dimensions": np.ones((1, 1, 16), np.float32),
    "nan": np.array([*SIXTEEN[:15], np.nan], np.float32),
    "infinity": np.array([np.inf, *SIXTEEN[:15]], np.float32),
    "minus infinity": np.array([-np.inf, *SIXTEEN[:15]], np.float32),
    "nan in a list": [*SIXTEEN[:15], float("nan")],
    "overflow": np.full(16, 1e39),
    "complex": np.ones(16, np.complex64),
    "bool": np.ones(16, bool),
    "objects": np.array([1.0] * 16, object),
    "text": "sixteen letters.",
    "strings": ["1.0"] * 16,
    "bytes": b"\0" * 64,
    "nested": [SIXTEEN, SIXTEEN],
    "ragged": [[1.0], [1.0, 2.0]],
    "dates": np.array(["2024-01-01"] * 16, "datetime64[D]"),
    "a dict": {"a": 1},
    "an object": object(),
}


@pytest.mark.parametrize("what", BAD_VECTORS)
def test_bad_vector_is_refused_before_anything_is_logged(open_wal: OpenWal, what: str) -> None:
    wal = open_wal()
    wal.log_insert("before", V)
    before = reserved(wal)
    for log in (
        lambda: wal.log_insert("a", BAD_VECTORS[what]),
        lambda: wal.log_update("a", BAD_VECTORS[what]),
        lambda: wal.log_insert(Document("a", BAD_VECTORS[what])),
        lambda: wal.log_batch(["a", "b"], [BAD_VECTORS[what], BAD_VECTORS[what]]),
        lambda: wal.log_batch(["a", "b", "c"], BAD_VECTORS[what]),
    ):
        with pytest.raises(VectorError) as caught:
            log()
        assert isinstance(caught.value, ValueError)
    assert reserved(wal) == before
    wal.log_insert("after", V)
    assert ids(wal) == ["before", "after"]


def test_masked_array_that_needs_conversion_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal()
    for log in (
        lambda: wal.log_insert("a", np.ma.masked_array(np.ones(16))),
        lambda: wal.log_batch(["a"], np.ma.masked_array(np.ones((1, 16), np.float32))),
    ):
        with pytest.raises(VectorError, match="masked"):
            log()
    assert ids(wal) == []


BAD_IDS = {
    "empty": ("", IdError),
    "too long": ("x" * 65_536, IdError),
    "too long in bytes": ("ü" * 32_768, IdError),
    "surrogate": ("\ud800", IdError),
    "too large": (1 << 63, IdError),
    "too small": (-(1 << 63) - 1, IdError),
    "numpy too large": (np.uint64((1 << 64) - 1), IdError),
    "true": (True, IdTypeError),
    "numpy bool": (np.True_, IdTypeError),
    "float": (1.0, IdTypeError),
    "numpy float": (np.float64(1), IdTypeError),
    "bytes": (b"a", IdTypeError),
    "none": (None, IdTypeError),
    "tuple": (("a", 1), IdTypeError),
    "uuid": (uuid.UUID(int=1), IdTypeError),
    "empty of a subclass": (Name(), IdError),
}


@pytest.mark.parametrize("what", BAD_IDS)
def test_bad_id_is_refused_before_anything_is_logged(open_wal: OpenWal, what: str) -> None:
    wal = open_wal(segment_size=1 << 20)
    id, error = BAD_IDS[what]
    before = reserved(wal)
    for log in (
        lambda: wal.log_insert(id, V),
        lambda: wal.log_update(id, V),
        lambda: wal.log_delete(id),
        lambda: wal.log_batch(["good", id], np.ones((2, 16), np.float32)),
        lambda: wal.log_batch(["good", id], operation="delete"),
        lambda: wal.log_insert(Document(id, V)),
    ):
        with pytest.raises(error) as caught:
            log()
        assert isinstance(caught.value, InputError)
        assert isinstance(caught.value, TypeError if error is IdTypeError else ValueError)
    assert reserved(wal) == before


BAD_METADATA = {
    "tuple": {"a": (1, 2)},
    "set": {"a": {1}},
    "array": {"a": np.ones(2)},
    "numpy scalar": {"a": np.int64(1)},
    "date": {"a": datetime(2024, 1, 1)},
    "object": {"a": object()},
    "int key": {1: "a"},
    "large int": {"a": 1 << 64},
    "surrogate": {"a": "\ud800"},
    "list": [1],
    "text": "title",
    "bytes": b"\x80",
    "number": 3,
}


@pytest.mark.parametrize("what", BAD_METADATA)
def test_bad_metadata_is_refused_before_anything_is_logged(open_wal: OpenWal, what: str) -> None:
    wal = open_wal()
    metadata: Any = BAD_METADATA[what]
    before = reserved(wal)
    for log in (
        lambda: wal.log_insert("a", V, metadata),
        lambda: wal.log_update("a", V, metadata),
        lambda: wal.log_update("a", metadata=metadata),
        lambda: wal.log_batch(["a", "b"], np.ones((2, 16), np.float32), [None, metadata]),
        lambda: wal.log_insert(Document("a", V, metadata)),
    ):
        with pytest.raises(MetadataError):
            log()
    assert reserved(wal) == before


@pytest.mark.parametrize("what", [V, SIXTEEN, "a", 7, None, object()])
def test_vector_or_id_alone_is_a_type_error(open_wal: OpenWal, what: Any) -> None:
    wal = open_wal()
    before = reserved(wal)
    with pytest.raises(TypeError, match="pass an id and a vector"):
        wal.log_insert(what)
    assert reserved(wal) == before


def test_insert_of_an_object_without_a_vector_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal()
    before = reserved(wal)
    with pytest.raises(VectorError):
        wal.log_insert(Document("a", None))
    assert reserved(wal) == before


def test_objects_with_id_and_vector_are_logged(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_insert(Document("a", V, {"k": 1}))
    wal.log_insert(Record("b", V, None, 0))
    wal.log_insert(Document("c", SIXTEEN, {"k": 1}), metadata={"k": 2})
    wal.log_update(Document("d", None, {"k": 3}))
    found = [(entry.kind, entry.id, entry.metadata) for entry in wal.replay()]
    assert found == [
        ("insert", "a", {"k": 1}),
        ("insert", "b", None),
        ("insert", "c", {"k": 2}),
        ("update", "d", {"k": 3}),
    ]


@pytest.mark.parametrize(
    "given",
    [
        SIXTEEN,
        tuple(SIXTEEN),
        np.array(SIXTEEN, np.float64),
        np.array(SIXTEEN, np.float16),
        np.array(SIXTEEN, ">f4"),
        np.arange(16),
        np.arange(16, dtype=np.uint8),
        np.arange(32, dtype=np.float32)[::2] / 2,
        np.arange(16, dtype=np.float32)[::-1][::-1],
        np.array([SIXTEEN] * 3, np.float32).T[:, 1],
        array.array("f", SIXTEEN),
        array.array("d", SIXTEEN),
        memoryview(np.array(SIXTEEN, np.float32)),
        range(16),
        np.frombuffer(b"\0" + np.array(SIXTEEN, np.float32).tobytes(), np.float32, 16, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_vector_that_can_be_converted_is_logged(open_wal: OpenWal, given: Any) -> None:
    wal = open_wal()
    wal.log_insert("a", given)
    wal.log_update("a", given)
    wal.log_batch(["b"], [given])
    for entry in wal.replay():
        assert entry.vector.dtype == np.float32
        assert entry.vector.tolist() == SIXTEEN


@pytest.mark.parametrize(
    "given",
    [
        np.array([SIXTEEN] * 2),
        [SIXTEEN, SIXTEEN],
        np.array([SIXTEEN] * 4, np.float32)[::2],
        np.array([SIXTEEN] * 2, np.float32, order="F"),
        np.array([[*SIXTEEN, 0.0]] * 2, np.float32)[:, :16],
        [V, SIXTEEN],
    ],
    ids=lambda value: type(value).__name__,
)
def test_matrix_that_can_be_converted_is_logged(open_wal: OpenWal, given: Any) -> None:
    wal = open_wal()
    wal.log_batch(["a", "b"], given)
    (entry,) = wal.replay()
    assert entry.vectors.tolist() == np.array(given, np.float32).tolist()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (np.int64(7), 7),
        (np.int8(-7), -7),
        (np.uint64(7), 7),
        (Name("seven"), "seven"),
        (np.str_("seven"), "seven"),
        ((1 << 63) - 1, (1 << 63) - 1),
        (-(1 << 63), -(1 << 63)),
        ("短い\0", "短い\0"),
    ],
)
def test_id_that_can_be_converted_is_logged(open_wal: OpenWal, given: Any, stored: str | int) -> None:
    wal = open_wal()
    wal.log_insert(given, V)
    wal.log_update(given, metadata={"k": 1})
    wal.log_delete(given)
    wal.log_batch([given], [V])
    wal.log_batch([given, "x"], operation="delete")
    found = ids(wal)
    assert found == [stored] * 5 + ["x"]
    assert {type(id) for id in found[:5]} == {type(stored)}


def test_array_of_ids_is_taken(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_batch(np.arange(3), np.ones((3, 16), np.float32))
    wal.log_batch(np.array(["a", "b"]), operation="delete")
    assert ids(wal) == [0, 1, 2, "a", "b"]


def test_str_and_int_of_one_look_differ(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_insert("7", V)
    wal.log_insert(7, V)
    wal.log_batch([7, "7"], operation="delete")
    assert [repr(id) for id in ids(wal)] == ["'7'", "7", "7", "'7'"]


def test_what_was_logged_is_a_copy(open_wal: OpenWal) -> None:
    wal = open_wal()
    mine = vector(3)
    wal.log_insert("a", mine)
    mine[:] = 9
    assert [entry.vector.tolist() for entry in wal.replay()] == [[3.0] * 16]


def test_nonfinite_values_are_logged_where_the_config_allows_them(open_wal: OpenWal) -> None:
    wal = open_wal(allow_nonfinite=True)
    wal.log_insert("a", np.array([np.nan, np.inf, -np.inf, *SIXTEEN[:13]], np.float32))
    wal.log_batch(["b"], [[float("nan")] * 16])
    assert len(ids(wal)) == 2
    with pytest.raises(VectorError):
        wal.log_insert("c", np.full(16, 1e39))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("float16", np.arange(16), np.full(16, 70_000.0)),
        ("int8", np.arange(-8, 8), np.full(16, 128)),
        ("int8", [1] * 16, np.full(16, 0.5)),
    ],
)
def test_vectors_have_the_log_s_dtype(open_wal: OpenWal, dtype: str, good: Any, bad: Any) -> None:
    wal = open_wal(dtype=dtype)
    wal.log_insert("a", good)
    wal.log_insert("b", np.array(good, dtype))
    wal.log_batch(["c"], [good])
    before = reserved(wal)
    for log in (lambda: wal.log_insert("x", bad), lambda: wal.log_batch(["x"], [bad])):
        with pytest.raises(VectorError):
            log()
    assert reserved(wal) == before
    for entry in wal.replay():
        assert entry.vector.dtype == dtype
        assert entry.vector.tolist() == list(good)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error"),
    [
        ((["a"], [V]), {"operation": "replace"}, ValueError),
        (([], np.ones((0, 16), np.float32)), {}, ValueError),
        ((["a", "b"], [V]), {}, VectorError),
        ((["a"], [V, V]), {}, VectorError),
        ((["a"],), {}, VectorError),
        ((["a"],), {"operation": "update"}, VectorError),
        ((["a"], [V]), {"operation": "delete"}, VectorError),
        ((["a", "b"], [V, V], [None]), {}, ValueError),
        (("ab", [V, V]), {}, IdTypeError),
        ((b"ab", [V, V]), {}, IdTypeError),
        ((3, [V]), {}, TypeError),
        ((np.ones((2, 2), int), [V, V]), {}, IdTypeError),
        ((np.ones(2), [V, V]), {}, IdTypeError),
    ],
)
def test_batch_that_does_not_fit_together_is_refused(
    open_wal: OpenWal, arguments: Any, keywords: Any, error: type[Exception]
) -> None:
    wal = open_wal()
    before = reserved(wal)
    with pytest.raises(error):
        wal.log_batch(*arguments, **keywords)
    assert reserved(wal) == before


def test_ids_of_a_batch_may_come_from_a_generator(open_wal: OpenWal) -> None:
    wal = open_wal()
    wal.log_batch((f"g{i}" for i in range(3)), np.ones((3, 16), np.float32))
    assert ids(wal) == ["g0", "g1", "g2"]


def test_metadata_comes_back_as_it_was(open_wal: OpenWal) -> None:
    wal = open_wal()
    metadata = {"t": "ü", "n": None, "i": -(1 << 63), "f": 0.1, "b": b"\0", "l": [1, [True]], "d": {"x": {}}}
    wal.log_insert("a", V, metadata)
    wal.log_update("a", metadata=metadata)
    assert [entry.metadata for entry in wal.replay()] == [metadata, metadata]


LSN_CALLS: list[tuple[str, Callable[[Any, Any], Any]]] = [
    ("start_lsn", lambda wal, lsn: list(wal.iter_entries(lsn))),
    ("end_lsn", lambda wal, lsn: list(wal.iter_entries(None, lsn))),
    ("start_lsn", lambda wal, lsn: next(wal.iter_entries(lsn, follow=True))),
    ("start_lsn", lambda wal, lsn: list(wal.replay(lsn))),
    ("lsn", lambda wal, lsn: wal.wait_durable(lsn)),
    ("lsn", lambda wal, lsn: wal.receipt(lsn)),
    ("lsn", lambda wal, lsn: wal.release(lsn)),
]


@pytest.mark.parametrize("lsn", ["x", 1.5, True, None, -1], ids=repr)
@pytest.mark.parametrize(("name", "call"), LSN_CALLS)
def test_what_is_no_lsn_is_refused_by_name(
    open_wal: OpenWal, name: str, call: Callable[[Any, Any], Any], lsn: Any
) -> None:
    if lsn is None and name != "lsn":
        pytest.skip("None is where the log begins or ends")
    wal = open_wal()
    wal.log_insert("a", V)
    with pytest.raises(ValueError if lsn == -1 else TypeError, match=rf"^{name}={lsn!r}"):
        call(wal, lsn)


def test_update_that_says_nothing_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal()
    before = wal.last_lsn
    with pytest.raises(VectorError, match="nothing to update for id 'a'"):
        wal.log_update("a")
    with wal.begin_transaction() as transaction, pytest.raises(VectorError, match="nothing to update for id 7"):
        transaction.log_update(7)
    wal.log_update("a", metadata={"only": "this"})
    assert [entry.id for entry in wal.replay() if isinstance(entry, mmwal.WalEntry.Update)] == ["a"]
    assert wal.last_lsn > before


@pytest.mark.parametrize("config", [None, {}, "wal/", 5], ids=repr)
def test_what_is_no_configuration_is_refused_by_name(config: Any) -> None:
    for kind in (mmwal.WalManager, mmwal.AsyncWalManager, mmwal.CrashRecoveryManager):
        with pytest.raises(mmwal.WalConfigError, match=r"^config=.*pass (Wal|Recovery)Config\(") as caught:
            kind(config)
        assert caught.value.field == "config"
