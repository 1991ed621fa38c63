"""A segment as a list of frames that can be changed and put together again, every checksum right.

What is hostile afterwards is what the checksums cover: lengths, counts, places, kinds, blocks.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from mmwal.format.frame import (
    COMMIT,
    FRAME,
    HEADER_BYTES,
    LENGTH_MASK,
    NO_METADATA,
    ROW_KINDS,
    Kind,
    align,
    commit_word,
)
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    LSN_MAX,
    SEGMENT_HEADER,
)
from mmwal.kernel import reference
from tools.fuzzing.msgpack import hostile_metadata
from tools.fuzzing.values import hostile_int

Fields = dict[str, Any]
_KINDS = (*(int(kind) for kind in Kind), 0, 5, 17, 200)
_HEADER_FIELDS = {
    "kind": 8,
    "flags": 8,
    "dtype": 8,
    "reserved": 8,
    "start_lsn": 64,
    "txn": 64,
    "time_ns": 64,
    "durable_lsn": 64,
    "rows": 32,
    "vector_bytes": 32,
    "id_bytes": 32,
    "meta_bytes": 32,
    "length": 64,
}


@dataclass
class Frame:
    """A frame to be: the fields of its header, its three blocks, and fields that lie about them (``lies``)."""

    fields: Fields
    blocks: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    lies: Fields = field(default_factory=dict)

    def size(self) -> int:
        if "length" in self.fields:  # a pad: as long as it is said to be
            return int(self.fields["length"])
        return align(HEADER_BYTES + sum(map(len, self.blocks)))


@lru_cache(maxsize=64)
def frames_of(segment: bytes, base_lsn: int, salt: int) -> list[Frame]:
    """Returns the frames of an honest segment; to be copied, not changed."""
    found = []
    lsn, end = base_lsn + DATA_OFFSET, base_lsn + len(segment) - FOOTER_BYTES
    out = bytearray(HEADER_BYTES)
    while reference.scan(segment, base_lsn, salt, lsn, end, out, True)[1]:
        fields = FRAME.unpack(out)
        assert fields is not None
        length = (fields["commit"] & LENGTH_MASK) * 64
        at = lsn - base_lsn + HEADER_BYTES
        blocks = []
        for name in ("vector_bytes", "id_bytes", "meta_bytes"):
            blocks.append(segment[at : at + fields[name]])
            at += fields[name]
        if fields["kind"] == Kind.PAD:
            fields["length"] = length
        found.append(Frame(fields, (blocks[0], blocks[1], blocks[2])))
        lsn += length
    return found


def assembled(
    frames: list[Frame], salt: int, start_lsn: int, room: int, members: dict[int, list[int]], *, honest_commits: bool
) -> tuple[bytes, int, int]:
    """Returns frames back to back as bytes, where they end, and the CRC of the last; those beyond ``room`` are left
    out. ``members`` holds the CRCs of open transactions from frame to frame; ``honest_commits`` makes commits fit."""
    parts = []
    lsn, last_crc = start_lsn, 0
    for frame in frames:
        size = frame.size()
        if size > start_lsn + room - lsn:
            break
        blocks = frame.blocks
        fields = {
            **frame.fields,
            "start_lsn": lsn,
            "vector_bytes": len(blocks[0]),
            "id_bytes": len(blocks[1]),
            "meta_bytes": len(blocks[2]),
        }
        txn, kind = fields["txn"], fields["kind"]
        if kind == Kind.COMMIT and honest_commits:
            crcs = members.pop(txn, [])
            said = COMMIT.unpack(blocks[0])
            if said is not None:
                said["members_crc"] = _crc_of(crcs)
                blocks = (COMMIT.pack(**said), *blocks[1:])
                fields["rows"] = len(crcs)
        fields.update(frame.lies)
        fields["commit"] = commit_word(salt, lsn, fields.get("length", size) & (LENGTH_MASK * 64))
        fields["frame_crc"] = 0
        body = b"".join(blocks)
        raw = bytearray((FRAME.pack(**fields) + body).ljust(size, b"\0")[:size])
        covered = HEADER_BYTES if kind == Kind.PAD else fields.get("length", size)
        last_crc = zlib.crc32(raw[12:covered], zlib.crc32(raw[0:8], salt & 0xFFFF_FFFF))
        raw[8:12] = last_crc.to_bytes(4, "little")
        if txn and kind in ROW_KINDS:
            members.setdefault(txn, []).append(last_crc)
        parts.append(bytes(raw))
        lsn += size
    return b"".join(parts), lsn, last_crc


def _crc_of(crcs: list[int]) -> int:
    crc = 0
    for member in crcs:
        crc = zlib.crc32(member.to_bytes(4, "little"), crc)
    return crc


# -- what is done to frames ---------------------------------------------------------------------------------------


def mutated_frames(rng: random.Random, frames: list[Frame]) -> list[Frame]:
    """Returns frames with some of them changed, doubled, gone, or new."""
    frames = [*frames]
    for _ in range(rng.choice((1, 1, 2, 4))):
        chance = rng.random()
        at = rng.randrange(len(frames)) if frames else 0
        if not frames or chance < 0.1:
            frames.insert(at, made_frame(rng))
        elif chance < 0.55:
            frames[at] = with_lies(rng, frames[at])
        elif chance < 0.8:
            frames[at] = with_blocks(rng, frames[at])
        elif chance < 0.88:
            frames.insert(rng.randrange(len(frames) + 1), frames[at])
        elif chance < 0.94:
            del frames[at]
        else:
            other = rng.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
    return frames


def with_lies(rng: random.Random, frame: Frame) -> Frame:
    """Returns a frame with one or two fields of its header that lie."""
    lies: Fields = {}
    for name in rng.sample(tuple(_HEADER_FIELDS), rng.choice((1, 1, 2))):
        if name == "kind":
            lies[name] = rng.choice(_KINDS)
        else:
            near = frame.size() if name == "length" else frame.fields.get(name, 0)
            lies[name] = hostile_int(rng, _HEADER_FIELDS[name], near)
    return replace(frame, lies=lies)


def with_blocks(rng: random.Random, frame: Frame) -> Frame:
    """Returns a frame with other blocks, its sizes right."""
    payload, ids, metadata = frame.blocks
    rows = frame.fields["rows"]
    chance = rng.random()
    if chance < 0.35:
        ids = hostile_ids(rng, ids, rows)
    elif chance < 0.7:
        metadata = hostile_metadata_block(rng, metadata, rows)
    elif chance < 0.85:
        payload = payload[: rng.choice((0, 1, 4, len(payload) // 2))] if rng.random() < 0.5 else payload * 2
    else:
        payload = rng.randbytes(len(payload))
    fields = {**frame.fields}
    if rng.random() < 0.2:
        fields["rows"] = rng.choice((0, 1, rows + 1, max(0, rows - 1)))
    return Frame(fields, (payload, ids, metadata), frame.lies)


def made_frame(rng: random.Random) -> Frame:
    """Returns a frame that nobody wrote: a mark, a pad, an empty batch, a commit of nothing."""
    kind = rng.choice(_KINDS)
    fields = dict.fromkeys(FRAME.names, 0)
    fields.update(kind=kind, time_ns=rng.getrandbits(62), rows=rng.choice((0, 0, 1, 2)), dtype=rng.choice((0, 1, 2)))
    fields["txn"] = rng.choice((0, 0, 1, 1 << 32, (1 << 64) - 1))
    fields["durable_lsn"] = hostile_int(rng, 64) if rng.random() < 0.3 else 0
    if kind == Kind.PAD:
        fields["length"] = rng.choice((64, 128, 4096))
        lies = {"length": 0} if rng.random() < 0.2 else {}  # what steps over it would never get on
        return Frame({**fields, "rows": 0, "dtype": 0, "txn": 0}, lies=lies)
    payload = b""
    if kind == Kind.COMMIT:
        payload = COMMIT.pack(
            first_lsn=hostile_int(rng, 64, DATA_OFFSET), rows=hostile_int(rng, 64), members_crc=0, reserved=0
        )
    elif kind == Kind.CHECKPOINT:
        payload = rng.randbytes(rng.choice((0, 8, 16, 24)))
    elif kind in ROW_KINDS and rng.random() < 0.5:
        payload = rng.randbytes(16 * fields["rows"])
    ids = hostile_ids(rng, b"", fields["rows"]) if rng.random() < 0.5 else b""
    return Frame(fields, (payload, ids, b""))


def hostile_ids(rng: random.Random, block: bytes, rows: int) -> bytes:
    """Returns a block of ids: a right one with a wrong word, or one made up."""
    if len(block) >= 4 and rng.random() < 0.5:
        at = 4 * rng.randrange(max(1, min(rows, len(block) // 4)))
        near = int.from_bytes(block[at : at + 4], "little")
        return block[:at] + struct.pack("<I", hostile_int(rng, 32, near)) + block[at + 4 :]
    if block and rng.random() < 0.3:
        return rng.choice((block[:-1], block + b"x", block[:4], b"", block + block))
    names = [rng.choice((b"a", b"7", b"\xc3\xa9", b"\xff\xfe", b"\xed\xa0\x80", b"id", b"", b"z" * 70_000))]
    names += [rng.choice((b"a", b"b", b"\0", b"12345678")) for _ in range(max(0, min(rows, 50) - 1))]
    tables = [len(name) | (0x8000_0000 if len(name) == 8 or rng.random() < 0.05 else 0) for name in names]
    return struct.pack(f"<{len(tables)}I", *tables) + b"".join(names)


def hostile_metadata_block(rng: random.Random, block: bytes, rows: int) -> bytes:
    """Returns a block of metadata: a right one with a wrong word, or of hostile values."""
    if len(block) >= 4 and rng.random() < 0.5:
        at = 4 * rng.randrange(max(1, min(rows, len(block) // 4)))
        near = int.from_bytes(block[at : at + 4], "little")
        return block[:at] + struct.pack("<I", hostile_int(rng, 32, near)) + block[at + 4 :]
    items = [hostile_metadata(rng) if rng.random() < 0.7 else None for _ in range(min(rows, 20))]
    table = [NO_METADATA if item is None else len(item) for item in items]
    whole = struct.pack(f"<{len(table)}I", *table) + b"".join(item for item in items if item is not None)
    return whole if rng.random() < 0.8 else whole[: rng.randrange(len(whole) + 1)]


# -- the fixed places of a segment file ---------------------------------------------------------------------------

PLACES = (
    *((SEGMENT_HEADER, offset) for offset in HEADER_OFFSETS),
    (LINK, LINK_OFFSET),
    (FOOTER, -FOOTER_BYTES),
)


def with_field(content: bytes, layout: Any, offset: int, changes: Fields) -> bytes:
    """Returns a file with fields of a sealed record changed and its CRC right; as it is where there is no record."""
    at = offset % len(content) if content else 0
    found = layout.unpack(content, at)
    if found is None:
        return content
    return content[:at] + layout.pack(**{**found, **changes}) + content[at + layout.size :]


def hostile_changes(rng: random.Random, layout: Any, content: bytes, offset: int) -> Fields:
    """Returns hostile values for one or two fields of a record."""
    found = layout.unpack(content, offset % len(content)) if content else None
    changes: Fields = {}
    places = [one for one in layout.fields if one.name not in ("magic", "crc")]
    for one in rng.sample(places, rng.choice((1, 1, 1, 2, 3))):
        if one.type.endswith("bytes"):
            changes[one.name] = rng.randbytes(16) if rng.random() < 0.8 else bytes(16)
        else:
            near = found[one.name] if found else 0
            changes[one.name] = hostile_int(rng, int(one.type[1:]), near)
        if one.name.endswith("_lsn") and rng.random() < 0.3:  # a place where an entry may end, in no segment there is
            changes[one.name] = rng.choice((0, 1, 3, 9, 1 << 20, 1 << 40, 1 << 47)) * 16384 + DATA_OFFSET + 64
    if "clean" in {place.name for place in places} and rng.random() < 0.1:
        changes["clean"] = 1
    return changes


def mutated_segment(
    rng: random.Random, content: bytes, members: dict[int, list[int]] | None = None
) -> tuple[bytes, int, int]:
    """Returns a segment with other frames, where they end, and the CRC of the last; its footer, if it has one, fits.

    A segment without a valid header comes back as it is, with an end of 0.
    """
    header = SEGMENT_HEADER.unpack(content) or SEGMENT_HEADER.unpack(content, HEADER_OFFSETS[1])
    short = len(content) < DATA_OFFSET + FOOTER_BYTES
    if header is None or short or header["base_lsn"] % 64 or header["base_lsn"] >= LSN_MAX - len(content):
        return content, 0, 0
    salt, base_lsn = header["salt"], header["base_lsn"]
    frames = mutated_frames(rng, frames_of(content, base_lsn, salt))
    room = len(content) - DATA_OFFSET - FOOTER_BYTES
    body, end_lsn, last_crc = assembled(
        frames,
        salt,
        base_lsn + DATA_OFFSET,
        room,
        {} if members is None else members,
        honest_commits=rng.random() < 0.8,
    )
    rest = room - len(body)
    tail = content[DATA_OFFSET + len(body) : -FOOTER_BYTES] if rng.random() < 0.3 else bytes(rest)
    whole = content[:DATA_OFFSET] + body + tail + content[-FOOTER_BYTES:]
    if rng.random() < 0.9:
        whole = with_field(whole, FOOTER, -FOOTER_BYTES, {"end_lsn": end_lsn, "last_crc": last_crc})
    return whole, end_lsn, last_crc
