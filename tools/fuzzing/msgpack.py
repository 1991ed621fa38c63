"""Hostile metadata: msgpack that nests, names sizes that it does not have, or holds what mmwal never writes."""

from __future__ import annotations

import random
import struct

_WHOLE = (
    b"\x80",
    b"\xc0",
    b"\x81\xa1k\xc3",
    b"\x81\xa1k\xcb" + struct.pack(">d", 0.5),
    b"\x82\xa1a\x01\xa1a\x02",  # one key twice
    b"\x81\xc4\x01k\x01",  # a key of bytes
    b"\x81\x01\x02",  # a key that is an int
    b"\x81\xa1k\xd6\xff\x00\x00\x00\x00",  # a timestamp
    b"\x81\xa1k\xc7\x01\x05x",  # an extension
    b"\x81\xa1k\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x81\xa1k\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\x81\xa2\xff\xfe\x01",  # a key that is not UTF-8
    b"\x81\xa1k\xa3\xed\xa0\x80",  # a lone surrogate
    b"\x81\xa1k\xc1",  # a byte that msgpack never uses
    b"\x80\x80",  # more behind the value
    b"\x81\x90\x01",  # a key that is an array
)
_HEADS = (
    (b"\xdd", ">I"),  # array32
    (b"\xdf", ">I"),  # map32
    (b"\xdb", ">I"),  # str32
    (b"\xc6", ">I"),  # bin32
    (b"\xc9", ">I"),  # ext32
    (b"\xdc", ">H"),
    (b"\xde", ">H"),
    (b"\xda", ">H"),
    (b"\xc5", ">H"),
)


def hostile_metadata(rng: random.Random) -> bytes:
    """Returns the bytes of one row's metadata."""
    chance = rng.random()
    if chance < 0.35:
        return rng.choice(_WHOLE)
    if chance < 0.6:
        head, size = rng.choice(_HEADS)
        count = rng.choice((0, 1, 31, 1 << 15, (1 << 16) - 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 1))
        raw = head + struct.pack(size, count & ((1 << 8 * struct.calcsize(size)) - 1))
        return rng.choice((raw, b"\x81\xa1k" + raw, raw + b"\x01" * 40, b"\x81" + raw))
    if chance < 0.8:
        depth = rng.choice((1, 2, 30, 31, 32, 33, 34, 60, 1000, 20_000))
        opener, inner = rng.choice(((b"\x91", b"\x01"), (b"\x81\xa1k", b"\x80"), (b"\x92\xc0", b"\xc0")))
        nested = opener * depth + inner
        return nested if rng.random() < 0.3 else b"\x81\xa1k" + nested
    if chance < 0.9:
        raw = bytearray(rng.choice(_WHOLE) + rng.choice(_WHOLE))
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    return rng.randbytes(rng.randrange(40))
