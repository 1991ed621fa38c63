"""How a fixed layout on disk is declared: once, as data.

A `Layout` is a list of fields in little-endian order without gaps. It packs, unpacks and renders itself.
A layout with a ``crc`` field (last) is *sealed*: a record is valid if and only if its magic matches and the
CRC-32 of all bytes before the ``crc`` field equals it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

_SIZES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}


@dataclass(frozen=True)
class Field:
    """One field: its name, its type (``u8 u16 u32 u64 i64``, or ``N bytes``) and what it says."""

    name: str
    type: str
    meaning: str

    @property
    def code(self) -> str:
        return _SIZES.get(self.type) or f"{int(self.type.split()[0])}s"


class Layout:
    """A packed record: ``pack(**values)``, ``unpack(buffer, offset) -> dict``; ``size`` in bytes."""

    def __init__(self, title: str, *fields: tuple[str, str, str], magic: bytes | None = None) -> None:
        self.title = title
        self.magic = magic
        head = [Field("magic", f"{len(magic)} bytes", f"`{magic.decode()}`")] if magic else []
        self.fields = head + [Field(*field) for field in fields]
        self._struct = struct.Struct("<" + "".join(field.code for field in self.fields))
        self.names = tuple(field.name for field in self.fields)
        self.size = self._struct.size
        self.sealed = self.names[-1] == "crc"
        self._body = struct.Struct("<" + "".join(field.code for field in self.fields[: -1 if self.sealed else None]))

    def pack(self, **values: Any) -> bytes:
        """Packs the record; a sealed one gets its magic and its CRC. Raises `KeyError` for a missing field."""
        if self.magic is not None:
            values["magic"] = self.magic
        names = self.names[:-1] if self.sealed else self.names
        body = self._body.pack(*[values[name] for name in names])
        return body + zlib.crc32(body).to_bytes(4, "little") if self.sealed else body

    def unpack(self, buffer: Any, offset: int = 0) -> dict[str, Any] | None:
        """Returns the fields, or `None` where the record is short, has another magic or fails its CRC."""
        record = bytes(buffer[offset : offset + self.size]) if offset >= 0 else b""
        if len(record) < self.size or (self.magic is not None and not record.startswith(self.magic)):
            return None
        values = self._struct.unpack(record)
        if self.sealed and zlib.crc32(record[:-4]) != values[-1]:
            return None
        return dict(zip(self.names, values, strict=True))

    def broken_field(self, buffer: Any, offset: int = 0) -> str:
        """Returns what is wrong with a record that `unpack` refuses: "magic", or the field that seals it."""
        magic = self.magic or b""
        return self.names[-1] if bytes(buffer[offset : offset + len(magic)]) == magic else "magic"

    def offset_of(self, name: str) -> int:
        """Returns the byte offset of a field."""
        before = self.fields[: self.names.index(name)]
        return struct.calcsize("<" + "".join(field.code for field in before))

    def render(self) -> str:
        """Returns the Markdown table that `docs/format.md` shows."""
        rows = [f"| {self.offset_of(f.name)} | `{f.name}` | {f.type} | {f.meaning} |" for f in self.fields]
        return "\n".join(["| offset | field | type | meaning |", "|---|---|---|---|", *rows])
