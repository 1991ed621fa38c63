"""Numbers and bytes that break careless readers."""

from __future__ import annotations

import random

_EDGES = (
    0,
    1,
    7,
    63,
    64,
    65,
    (1 << 16) - 1,
    1 << 16,
    (1 << 26) - 1,
    1 << 26,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 64,
    (1 << 32) - 1,
    1 << 32,
    (1 << 62) - 64,
    (1 << 62) - 1,
    1 << 62,
    (1 << 63) - 64,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 16384,
    (1 << 64) - 64,
    (1 << 64) - 1,
)
_STEPS = (1, 2, 7, 8, 16, 63, 64, 128, 512, 4096, 8192, 16384)


def hostile_int(rng: random.Random, bits: int, near: int = 0) -> int:
    """Returns a number of so many bits: an edge, one near a right one, or any."""
    chance = rng.random()
    if chance < 0.4:
        value = rng.choice(_EDGES)
    elif chance < 0.85:
        value = near + rng.choice((-1, 1)) * rng.choice(_STEPS) * rng.choice((1, 1, 2, 3))
    elif chance < 0.92:
        value = near * rng.choice((2, 3, 1 << 16, 1 << 32))
    else:
        value = rng.getrandbits(rng.choice((8, bits)))
    return value & ((1 << bits) - 1)


def hostile_row(rng: random.Random, high: int) -> int:
    """Returns a signed number for a row: negative, huge, or just outside."""
    return rng.choice((-(1 << 63), -1, -2, high, high + 1, (1 << 63) - 1, 1 << 62, 0, rng.randrange(max(1, high))))


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Returns bytes with plain damage: bits, a run of them, a cut, something added."""
    if not content:
        return rng.randbytes(rng.randrange(1, 64))
    raw = bytearray(content)
    chance = rng.random()
    if chance < 0.45:
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif chance < 0.7:
        at, size = rng.randrange(len(raw)), rng.choice((1, 8, 64, 512, 4096))
        part = len(raw[at : at + size])
        raw[at : at + part] = rng.choice((bytes(part), b"\xff" * part, rng.randbytes(part)))
    elif chance < 0.9:
        del raw[rng.choice((0, 1, len(raw) // 2, len(raw) - 1, rng.randrange(len(raw)))) :]
    else:
        raw += rng.choice((bytes(1), bytes(512), rng.randbytes(64)))
    return bytes(raw)
