"""Entries of a kind of your own: types that are registered with a name, how they become bytes, what replay does.

    class Rename(msgspec.Struct): old: str; new: str

    mmwal.register_entry("rename", Rename, on_replay=lambda entry: rename(entry.operation.old, entry.operation.new))
    wal.log_entry(mmwal.CustomEntry(Rename("a", "b")))

Not here: the frame (`format/frame.py`), logging and reading (`manager.py`, `log/reader.py`).

* Only what is registered is ever made of bytes, by the codec that it was registered with; nothing is unpickled.
* An entry whose name nobody registered, or whose bytes its codec refuses, is kept: its operation is the bytes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from mmwal.entry import Custom

NAME_BYTES_MAX = 255
_logger = logging.getLogger("mmwal")

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class EntryType:
    """A registered type."""

    name: str
    type: type
    encode: Encode
    decode: Decode
    on_replay: Callable[[Custom], object] | None


class EntryTypes:
    """The types that a process has registered. Registering is for start-up; looking up is for any thread."""

    def __init__(self) -> None:
        self._by_name: dict[str, EntryType] = {}
        self._by_type: dict[type, EntryType] = {}

    def register(
        self,
        name: str,
        type: type,
        *,
        encode: Encode | None = None,
        decode: Decode | None = None,
        on_replay: Callable[[Custom], object] | None = None,
    ) -> None:
        """Registers a type of custom entries; again with the same name and type, it replaces codec and handler. A class
        that was defined anew, as a cell of a notebook does, is the same type.

        Args:
            name: what the log calls it, 1 to 255 UTF-8 bytes; it must stay what it is as long as logs are kept.
            type: the class of ``operation``: `bytes`, or what `msgspec` takes (a Struct, a dataclass, a NamedTuple), or
                any class with ``encode`` and ``decode``.
            encode, decode: both or none; from an operation to bytes and back. None: msgpack by `msgspec`, and bytes as
                they are.
            on_replay: called by `WalManager.replay` with each `WalEntry.Custom` of this name, in its place in the
                order, before it is yielded. What it raises ends the replay.

        Raises:
            ValueError: the name is empty, too long, or taken by another type; or ``encode`` or ``decode`` alone.
            TypeError: ``type`` is no class, or a codec or handler cannot be called, or is a coroutine, which nobody
                would await; or `msgspec` cannot read such a type: pass ``encode`` and ``decode``.
        """
        _check_name(name)
        if not inspect.isclass(type) or type is Any:
            raise TypeError(f"entry type {name!r}: type={type!r} is no class; pass the class of the operations")
        functions: dict[str, Any] = {"encode": encode, "decode": decode, "on_replay": on_replay}
        for argument, given in functions.items():
            if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
                raise TypeError(f"entry type {name!r}: {argument}={given!r} must be a plain function, or None")
        taken = self._by_name.get(name) or self._by_type.get(type)
        if taken is not None and (taken.name, _place(taken.type)) != (name, _place(type)):
            raise ValueError(
                f"entry type {name!r} of {type.__qualname__}: {taken.type.__qualname__} is registered as "
                f"{taken.name!r}; one name means one type"
            )
        if (encode is None) != (decode is None):
            raise ValueError(f"entry type {name!r}: pass both encode and decode, or neither")
        if encode is None or decode is None:
            encode, decode = _codec(name, type)
        found = EntryType(name, type, encode, decode, on_replay)
        self._by_name[name] = self._by_type[type] = found

    def encode(self, operation: object) -> tuple[str, bytes]:
        """Returns the name of an operation's type, and its bytes, which can be read back. Raises `TypeError` where it
        is not registered, `ValueError` where they could not be, and what its codec raises."""
        found = self._by_type.get(type(operation))
        if found is None:
            raise TypeError(
                f"a custom entry of {type(operation).__qualname__}, which is not registered; "
                f"call mmwal.register_entry(name, {type(operation).__name__}) first"
            )
        content = found.encode(operation)
        if not isinstance(content, bytes):
            raise TypeError(
                f"the codec of entry type {found.name!r} made a {type(content).__name__}; it must make bytes"
            )
        try:
            found.decode(content)
        except Exception as error:
            raise ValueError(
                f"entry type {found.name!r}: its codec cannot read back what it made of {operation!r}: {error}"
            ) from error
        return found.name, content

    def opaque(self, name: str, content: Any) -> tuple[str, bytes]:
        """Returns the name and the bytes of an entry that was read without its type being known, to be logged as it
        was. Raises `ValueError` or `TypeError` for what no log holds."""
        _check_name(name)
        if not isinstance(content, bytes):
            raise TypeError(f"a custom entry {name!r} of no known type holds bytes, not a {type(content).__name__}")
        return name, content

    def decode(self, name: str, content: bytes) -> tuple[Any, bool]:
        """Returns an operation and whether its type is known: if not, its bytes."""
        found = self._by_name.get(name)
        if found is None:
            return content, False
        try:
            return found.decode(content), True
        except Exception as error:  # noqa: BLE001 (whatever a codec raises, the log stays readable)
            _logger.warning("a custom entry %r is kept as bytes: its codec raised %r", name, error)
            return content, False

    def replayed(self, entry: Custom) -> None:
        """Hands an entry to its handler."""
        found = self._by_name.get(entry.name)
        if entry.known and found is not None and found.on_replay is not None:
            found.on_replay(entry)


def _check_name(name: object) -> None:
    try:
        known = isinstance(name, str) and str(name) == name and 1 <= len(name.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        known = False
    if not known:
        raise ValueError(f"name={name!r}: must be a str of 1 to {NAME_BYTES_MAX} UTF-8 bytes")


def _place(type: type) -> tuple[str, str]:
    """Returns where a class is defined."""
    return type.__module__, type.__qualname__


def _codec(name: str, type: type) -> tuple[Encode, Decode]:
    if type is bytes:
        return _as_it_is, _as_it_is
    if isinstance(msgspec.inspect.type_info(type), msgspec.inspect.CustomType):
        raise TypeError(
            f"entry type {name!r}: msgspec does not know what {type.__qualname__} holds; pass encode and decode, or "
            "make it a msgspec.Struct or a dataclass"
        )
    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(type).decode


def _as_it_is(content: bytes) -> bytes:
    return content


TYPES = EntryTypes()
register_entry = TYPES.register
