"""Control slots and directory images that can be changed and sealed again: columns, headers, the chain of checksums."""

from __future__ import annotations

import random
import zlib
from typing import Any

from mmwal.format.control import DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import align
from mmwal.format.image import HEADER_BYTES, SECTION
from tools.fuzzing.disk import DATA, WAL, Files
from tools.fuzzing.segments import Fields, hostile_changes, hostile_ids, hostile_metadata_block, with_field
from tools.fuzzing.values import hostile_int, hostile_row

Section = tuple[Fields, list[bytes]]  # header, the six columns without padding
_ROWS, _LSNS, _CHECKSUMS, _METADATA, _LIMBO = 1, 2, 3, 4, 5
CONTROLS = ((LOG_CONTROL, f"{WAL}/control"), (DATA_CONTROL, f"{DATA}/control"))


def mutated_control(rng: random.Random, files: Files, layout: Any, path: str) -> None:
    """Changes one slot of a control file, or both, or lets one take the place of the other."""
    content = files.get(path, b"")
    offset = rng.choice(SLOT_OFFSETS)
    if rng.random() < 0.1:
        other = SLOT_OFFSETS[0] + SLOT_OFFSETS[1] - offset
        content = content[:offset] + content[other : other + layout.size] + content[offset + layout.size :]
    valid = [place for place in SLOT_OFFSETS if layout.unpack(content, place)]
    if valid:
        newest = max(valid, key=lambda place: layout.unpack(content, place)["sequence"])
        offset = newest if rng.random() < 0.7 else rng.choice(valid)
        changes = hostile_changes(rng, layout, content, offset)
        for place in valid if rng.random() < 0.3 else [offset]:
            content = with_field(content, layout, place, changes)
    files[path] = content


def sections_of(content: bytes) -> list[Section]:
    """Returns the sections of an honest image."""
    found = []
    at = 0
    while (fields := SECTION.unpack(content, at)) is not None:
        count = fields["entries"]
        sizes = (
            fields["ids_bytes"],
            8 * count,
            8 * count,
            4 * count,
            fields["metadata_bytes"],
            8 * fields["limbo_rows"],
        )
        columns, place = [], at + HEADER_BYTES
        for size in sizes:
            columns.append(content[place : place + size])
            place += align(size)
        found.append((fields, columns))
        at += fields["section_bytes"]
    return found


def sealed_image(sections: list[Section], lies: dict[int, Fields]) -> tuple[bytes, int]:
    """Returns sections as an image, and the CRC of its last header; ``lies`` are fields that contradict the columns."""
    parts: list[bytes] = []
    offset = crc = 0
    for number, (fields, columns) in enumerate(sections):
        body = b"".join(column.ljust(align(len(column)), b"\0") for column in columns)
        header = SECTION.pack(
            **{
                **fields,
                "offset": offset,
                "previous_crc": crc,
                "section_bytes": HEADER_BYTES + len(body),
                "entries": len(columns[_ROWS]) // 8,
                "limbo_rows": len(columns[_LIMBO]) // 8,
                "ids_bytes": len(columns[0]),
                "metadata_bytes": len(columns[_METADATA]),
                "columns_crc": zlib.crc32(body),
                **lies.get(number, {}),
            }
        )
        crc = int.from_bytes(header[-4:], "little")
        parts += (header, body)
        offset += HEADER_BYTES + len(body)
    return b"".join(parts), crc


def mutated_image(rng: random.Random, files: Files) -> None:
    """Changes the image that the newest slot names, and lets the slot name what came of it."""
    control = files[f"{DATA}/control"]
    slots = [(fields, offset) for offset in SLOT_OFFSETS if (fields := DATA_CONTROL.unpack(control, offset))]
    if not slots:
        return
    newest, place = max(slots, key=lambda slot: slot[0]["sequence"])
    path = f"{DATA}/image-{newest['image_number']:016x}"
    content = files.get(path, b"")[: newest["image_bytes"]]
    if not content:
        return
    sections = [(fields, [*columns]) for fields, columns in sections_of(content)]
    lies: dict[int, Fields] = {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        number = rng.randrange(len(sections)) if sections else 0
        chance = rng.random()
        if not sections:
            break
        if chance < 0.35:
            lies.setdefault(number, {}).update(_section_lies(rng, sections[number][0]))
        elif chance < 0.85:
            _change_column(rng, sections[number], newest["rows_high"])
        elif chance < 0.95:
            sections.insert(rng.randrange(len(sections) + 1), sections[number])
        else:
            del sections[number]
    image, crc = sealed_image(sections, lies)
    files[path] = image
    names: Fields = {"image_bytes": len(image), "image_crc": crc}
    if sections and rng.random() < 0.5:
        names["live_rows"] = sections[-1][0]["live_rows"]
    if rng.random() < 0.15:
        names.update(hostile_changes(rng, DATA_CONTROL, control, place))
    files[f"{DATA}/control"] = with_field(control, DATA_CONTROL, place, names)


def _section_lies(rng: random.Random, fields: Fields) -> Fields:
    if rng.random() < 0.3:  # sizes that add up only where sums wrap around
        big = rng.choice((1 << 63, (1 << 64) - 64, 1 << 61, (1 << 64) - fields["section_bytes"]))
        return {rng.choice(("entries", "ids_bytes", "metadata_bytes", "limbo_rows")): big}
    names = [one for one in SECTION.fields if one.name not in ("magic", "crc", "store_id")]
    chosen = rng.choice(names)
    return {chosen.name: hostile_int(rng, int(chosen.type[1:]), fields[chosen.name])}


def _row_bytes(row: int) -> bytes:
    """Returns a row's number as it is stored; one that has no place in 64 bits, since the control file lies, wraps."""
    return (row % (1 << 64)).to_bytes(8, "little")


def _change_column(rng: random.Random, section: Section, high: int) -> None:
    fields, columns = section
    count = len(columns[_ROWS]) // 8
    which = rng.choice((0, _ROWS, _ROWS, _LSNS, _CHECKSUMS, _METADATA, _LIMBO))
    if which == 0:
        columns[0] = hostile_ids(rng, columns[0], count)
    elif which == _METADATA:
        columns[_METADATA] = hostile_metadata_block(rng, columns[_METADATA], count)
    elif which == _LIMBO:
        rows = [hostile_row(rng, high) for _ in range(rng.choice((1, 1, 2)))]
        columns[_LIMBO] = rng.choice((b"", columns[_LIMBO])) + b"".join(map(_row_bytes, rows))
    elif count:
        at = rng.randrange(count)
        size = 4 if which == _CHECKSUMS else 8
        column = columns[which]
        if which == _ROWS and rng.random() < 0.3:  # a row twice
            value = column[:size]
        elif which == _ROWS:
            value = _row_bytes(hostile_row(rng, high))
        else:
            value = hostile_int(rng, 8 * size, fields["redo_lsn"]).to_bytes(size, "little")
        columns[which] = column[: at * size] + value + column[(at + 1) * size :]
