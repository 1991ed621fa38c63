"""Metadata to bytes and back: msgpack, of exactly what comes back unchanged.

Metadata is valid if and only if it is a mapping whose keys are ``str`` and whose values, at every depth, are
exactly (no subclass) ``None``, ``bool``, ``int`` from -2**63 to 2**64 - 1, ``float``, ``str`` without lone
surrogates, ``bytes``, ``list``, or ``dict`` with ``str`` keys; mappings and lists nest to at most 32 levels.

* What is stored is read back equal and of the same types; what could not be is refused when it is written.
* Bytes from a file obey the same rule: msgpack's extensions, its other keys, and whatever stands behind the
  value are refused. Hostile bytes cost an error, and memory in proportion to their number.
* How large metadata may be is the frame's business, not ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from reprlib import repr as short
from typing import Any, Final

import msgspec

from mmwal.errors import MetadataError

DEPTH_MAX = 32

_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))
_STR: Final = frozenset((str,))
_ADVICE: Final = {
    "tuple": "make it a list",
    "set": "make it a sorted list",
    "frozenset": "make it a sorted list",
    "datetime": "store .isoformat() or .timestamp()",
    "date": "store .isoformat()",
    "time": "store .isoformat()",
    "timedelta": "store .total_seconds()",
    "Decimal": "store str(value)",
    "UUID": "store str(value) or value.bytes",
    "bytearray": "store bytes(value)",
    "memoryview": "store bytes(value)",
    "ndarray": "store .tolist()",
}
_RESTORE: Final = "verify the log and restore the entry from a copy"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def encode_metadata(metadata: Mapping[str, Any] | None) -> bytes | None:
    """Returns metadata as msgpack; ``None`` stays ``None`` (nothing is said), ``{}`` is a value.

    Raises:
        MetadataError: it is no mapping, is nested too deeply, or holds what would come back changed.

    Format: section Metadata of docs/format.md.

    Example:
        >>> decode_metadata(encode_metadata({"title": "WAL", "tags": ["log"]}))
        {'title': 'WAL', 'tags': ['log']}
        >>> encode_metadata({"size": (1, 2)})
        Traceback (most recent call last):
        ...
        mmwal.errors.MetadataError: metadata['size'] is a tuple, which would come back changed; \
make it a list
    """
    if metadata is None:
        return None
    if type(metadata) is not dict:
        if not isinstance(metadata, Mapping):
            raise MetadataError(f"metadata is a {type(metadata).__name__}; pass a dict with str keys, or None")
        metadata = dict(metadata)
    if not _comes_back_unchanged(metadata, DEPTH_MAX):
        raise MetadataError(_first_problem(metadata, "metadata", DEPTH_MAX))
    try:
        return _encode(metadata)
    except (OverflowError, UnicodeEncodeError) as error:
        raise MetadataError(_first_problem(metadata, "metadata", DEPTH_MAX)) from error


def decode_metadata(raw: bytes | memoryview | None) -> dict[str, Any] | None:
    """Returns the metadata that `encode_metadata` made ``raw`` of; ``None`` for ``None``.

    Raises:
        MetadataError: ``raw`` is not what `encode_metadata` writes.
    """
    if raw is None:
        return None
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MetadataError(f"{len(raw)} bytes of metadata are not msgpack ({error}); {_RESTORE}") from error
    if type(found) is not dict:
        raise MetadataError(f"metadata is stored as {type(found).__name__}, not as a mapping; {_RESTORE}")
    if not _comes_back_unchanged(found, DEPTH_MAX):
        problem = _first_problem(found, "metadata", DEPTH_MAX)
        raise MetadataError(f"{problem.partition(';')[0]}; mmwal does not write this, {_RESTORE}")
    return found


def _comes_back_unchanged(mapping: dict[Any, Any], levels: int) -> bool:
    """Whether a mapping obeys the rule, ranges of ints and surrogates apart: those the encoder finds."""
    return _STR.issuperset(map(type, mapping)) and _values_come_back_unchanged(mapping.values(), levels)


def _values_come_back_unchanged(values: Collection[Any], levels: int) -> bool:
    if _PLAIN.issuperset(map(type, values)):  # the common case, in one call
        return True
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if levels <= 1:
            return False
        if kind is list:
            if not _values_come_back_unchanged(value, levels - 1):
                return False
        elif kind is not dict or not _comes_back_unchanged(value, levels - 1):
            return False
    return True


def _first_problem(value: Any, place: str, levels: int) -> str:
    """Says what is wrong with the first value that breaks the rule, and what to do; empty if none does."""
    kind = type(value)
    if kind in (dict, list):
        if levels < 1:
            return f"metadata is nested deeper than {DEPTH_MAX} levels, from {place} on; flatten it"
        return _first_problem_within(value, place, levels)
    if kind not in _PLAIN:
        advice = _ADVICE.get(kind.__name__) or _advice(value)
        return f"{place} is a {kind.__name__}, which would come back changed; {advice}"
    if kind is int and not -(1 << 63) <= value < 1 << 64:
        return f"{place} is an int outside the 64-bit range; store str(value)"
    if kind is str and not _is_encodable(value):
        return f"{place} is a str with lone surrogates; remove them"
    return ""


def _first_problem_within(value: dict[Any, Any] | list[Any], place: str, levels: int) -> str:
    if isinstance(value, list):
        problems = (_first_problem(item, f"{place}[{at}]", levels - 1) for at, item in enumerate(value))
        return next(filter(None, problems), "")
    for key, item in value.items():
        if type(key) is not str:
            return f"{place} has the key {short(key)}, a {type(key).__name__}; use exactly str for keys"
        if not _is_encodable(key):
            return f"{place} has the key {short(key)} with lone surrogates; remove them"
        if problem := _first_problem(item, f"{place}[{short(key)}]", levels - 1):
            return problem
    return ""


def _advice(value: object) -> str:
    if hasattr(value, "dtype") and hasattr(value, "item"):
        return "store .item()"
    for plain in (bool, int, float, str, bytes, list, dict):
        if isinstance(value, plain):
            return f"store {plain.__name__}(value)"
    return "store plain values: None, bool, int, float, str, bytes, list, dict"


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
