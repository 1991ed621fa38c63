"""Metadata comes back as it was, or is refused when it is written; hostile bytes cost an error."""

import collections
import decimal
import doctest
import enum
import types
import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmwal.errors import InputError, MetadataError
from mmwal.format import metadata as metadata_module
from mmwal.format.metadata import DEPTH_MAX, decode_metadata, encode_metadata


class Colour(enum.IntEnum):
    RED = 1


class Shade(enum.StrEnum):
    DARK = "dark"


Point = collections.namedtuple("Point", "x y")

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.binary(max_size=20)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=30,
)


def nested(levels: int, innermost: Any = 1) -> dict[str, Any]:
    """Return a dict of that many levels, lists and dicts in turn."""
    value = innermost
    for level in range(levels - 1):
        value = [value] if level % 2 else {"k": value}
    return {"k": value}


def shape_of(value: Any) -> Any:
    """Replace every value by its type, so that True and 1, 1 and 1.0, 0.0 and -0.0 differ."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    return type(value), repr(value)


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_metadata_comes_back_equal_and_of_the_same_types(metadata: dict[str, Any]) -> None:
    raw = encode_metadata(metadata)
    assert raw is not None
    found = decode_metadata(raw)
    assert shape_of(found) == shape_of(metadata)
    assert list(found or {}) == list(metadata)
    assert decode_metadata(memoryview(raw)) == metadata


def test_nothing_said_and_empty_are_two_things() -> None:
    assert encode_metadata(None) is None
    assert decode_metadata(None) is None
    assert decode_metadata(encode_metadata({})) == {}


def test_nan_and_infinities_come_back() -> None:
    found = decode_metadata(encode_metadata({"x": [float("nan"), float("inf"), -0.0]}))
    assert repr(found) == "{'x': [nan, inf, -0.0]}"


@pytest.mark.parametrize(
    "mapping",
    [types.MappingProxyType({"a": 1}), collections.OrderedDict(a=1), collections.Counter("a")],
    ids=lambda mapping: type(mapping).__name__,
)
def test_outermost_mapping_may_be_any_and_comes_back_as_a_dict(mapping: Any) -> None:
    assert decode_metadata(encode_metadata(mapping)) == {"a": 1}


CHANGED = [
    ((1, 2), "tuple", "make it a list"),
    (Point(1, 2), "Point", "store plain values"),
    ({1, 2}, "set", "make it a sorted list"),
    (frozenset(), "frozenset", "make it a sorted list"),
    (decimal.Decimal(1), "Decimal", "store str(value)"),
    (uuid.UUID(int=1), "UUID", "store str(value) or value.bytes"),
    (datetime(2026, 1, 1, tzinfo=UTC), "datetime", "store .isoformat() or .timestamp()"),
    (date(2026, 1, 1), "date", "store .isoformat()"),
    (timedelta(1), "timedelta", "store .total_seconds()"),
    (bytearray(b"a"), "bytearray", "store bytes(value)"),
    (memoryview(b"a"), "memoryview", "store bytes(value)"),
    (np.float64(1), "float64", "store .item()"),
    (np.int64(1), "int64", "store .item()"),
    (np.bool_(True), "bool", "store .item()"),
    (np.str_("a"), "str_", "store .item()"),
    (np.ones(2), "ndarray", "store .tolist()"),
    (Colour.RED, "Colour", "store int(value)"),
    (Shade.DARK, "Shade", "store str(value)"),
    (collections.OrderedDict(a=1), "OrderedDict", "store dict(value)"),
    (collections.defaultdict(int), "defaultdict", "store dict(value)"),
    (1j, "complex", "store plain values"),
    (object(), "object", "store plain values"),
    (msgspec.msgpack.Ext(1, b""), "Ext", "store plain values"),
]


@pytest.mark.parametrize(("value", "kind", "advice"), CHANGED, ids=[kind for _, kind, _ in CHANGED])
def test_value_that_would_come_back_changed_is_refused_by_its_place(value: Any, kind: str, advice: str) -> None:
    for metadata, place in (
        ({"a": value}, "metadata['a']"),
        ({"fine": 1, "a": [{"b": value}]}, "metadata['a'][0]['b']"),
        ({"a": {"b": [0, value]}}, "metadata['a']['b'][1]"),
    ):
        with pytest.raises(MetadataError) as caught:
            encode_metadata(metadata)
        assert str(caught.value).startswith(f"{place} is a {kind}")
        assert str(caught.value).endswith(f"; {advice}") or advice == "store plain values"
        assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({1: "a"}, r"metadata has the key 1, a int; use exactly str for keys"),
        ({"a": {None: 1}}, r"metadata\['a'\] has the key None"),
        ({Shade.DARK: 1}, "a Shade; use exactly str"),
        ({"a": 2**64}, r"metadata\['a'\] is an int outside the 64-bit range; store str"),
        ({"a": [-(2**63) - 1]}, r"metadata\['a'\]\[0\] is an int outside"),
        ({"a": "\ud800"}, r"metadata\['a'\] is a str with lone surrogates"),
        ({"a": {"\ud800": 1}}, r"metadata\['a'\] has the key .* with lone surrogates"),
        ([("a", 1)], "metadata is a list; pass a dict"),
        ("a", "metadata is a str; pass a dict"),
        (7, "metadata is a int; pass a dict"),
    ],
    ids=repr,
)
def test_what_is_no_plain_mapping_is_refused(metadata: Any, problem: str) -> None:
    with pytest.raises(MetadataError, match=problem) as caught:
        encode_metadata(metadata)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InputError)


def test_nesting_is_bounded_when_written_and_when_read() -> None:
    deepest = nested(DEPTH_MAX)
    assert decode_metadata(encode_metadata(deepest)) == deepest
    with pytest.raises(MetadataError, match="deeper than 32 levels"):
        encode_metadata(nested(DEPTH_MAX + 1))
    with pytest.raises(MetadataError, match="deeper than 32 levels"):
        decode_metadata(msgspec.msgpack.encode(nested(DEPTH_MAX + 1)))


@pytest.mark.parametrize("innermost", [[], {}])
def test_empty_container_counts_as_a_level(innermost: Any) -> None:
    assert encode_metadata(nested(DEPTH_MAX - 1, innermost))
    with pytest.raises(MetadataError, match="deeper than 32 levels"):
        encode_metadata(nested(DEPTH_MAX, innermost))


def test_metadata_that_holds_itself_is_refused() -> None:
    ring: dict[str, Any] = {}
    ring["again"] = [ring]
    with pytest.raises(MetadataError, match="deeper than 32 levels"):
        encode_metadata(ring)


def test_long_keys_do_not_make_long_errors() -> None:
    with pytest.raises(MetadataError) as caught:
        encode_metadata({"k" * 60_000: {"l" * 60_000: object()}})
    assert len(str(caught.value)) < 300


# ---- hostile bytes


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x00",
        b"\x81",
        b"\x81\xa1a",
        b"\xc0",
        b"\x01",
        b"\x91\x01",
        b"\xa1a",
        b"\x81\x01\x02",
        b"\x81\xc4\x01a\x02",
        b"\x81\x91\x01\x02",
        b"\x81\xc0\x02",
        b"\x81\xa1\xff\x01",
        b"\x81\xa1a\xa1\xff",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
        b"\x81\xa1a\xc7\x02\x05ab",
        b"\x81\xa1a\x91\xd4\x01a",
        b"\x81\xa1a\xc1",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\x81\xa1a\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" * 1000,
        b"\x81\xa1a" * 5000,
        b"\x81\xa1a" + b"\x91" * 100_000,
        b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 900,
    ],
    ids=lambda raw: raw[:12].hex() or "empty",
)
def test_bytes_that_are_not_ours_are_refused(raw: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_metadata(raw)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_cost_a_metadata_error_at_most(raw: bytes) -> None:
    for hostile in (raw, b"\x81\xa1a" + raw, b"\x82\xa1a\x91" + raw):
        try:
            found = decode_metadata(hostile)
        except MetadataError:
            continue
        assert decode_metadata(encode_metadata(found)) == found or "nan" in repr(found)


def test_examples_in_the_docstrings_run() -> None:
    result = doctest.testmod(metadata_module)
    assert (result.failed, result.attempted > 0) == (0, True)
