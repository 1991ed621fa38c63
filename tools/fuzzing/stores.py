"""A whole store with something hostile in it: a few changes to the files of an honest one."""

from __future__ import annotations

import random

from mmwal.format.segment import LINK, LINK_OFFSET
from tools.fuzzing.disk import DATA, WAL, Files
from tools.fuzzing.images import CONTROLS, mutated_control, mutated_image
from tools.fuzzing.seeds import Seed
from tools.fuzzing.segments import PLACES, hostile_changes, mutated_segment, with_field
from tools.fuzzing.values import damaged

_STRANGE_NAMES = (
    "segment-ffffffffffffffff.wal",
    "segment-7fffffffffffffff.wal",
    "segment-0003ffffffffffff.wal",
    "segment-00000000000000ff.wal",
    "segment-0000000000000000.wal.tmp",
    "segment-000000000000000G.wal",
    "segment-0.wal",
    "spare-0123456789abcdef.wal",
    "control.tmp",
    "control~",
    "image-ffffffffffffffff",
    "image-0000000000000009",
    "image-zz",
    "notes.txt",
    "a\nb",
)


def hostile_files(rng: random.Random, seed: Seed) -> Files:
    """Returns the files of a seed with one to three changes."""
    files = {**seed.files}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, files)
    return files


def segments_of(files: Files) -> list[str]:
    """Returns the paths of the segments, in the order of their numbers."""
    return sorted(path for path in files if path.startswith(f"{WAL}/segment-") and len(path) == len(WAL) + 29)


def _change(rng: random.Random, files: Files) -> None:
    chance = rng.random()
    segments = segments_of(files)
    if chance < 0.22:
        layout, path = CONTROLS[0] if f"{DATA}/control" not in files else rng.choice(CONTROLS)
        mutated_control(rng, files, layout, path)
    elif chance < 0.34 and f"{DATA}/control" in files:
        mutated_image(rng, files)
    elif chance < 0.5 and segments:
        path = rng.choice(segments)
        layout, offset = rng.choice(PLACES)
        changes = hostile_changes(rng, layout, files[path], offset)
        both = PLACES[:2] if offset in (PLACES[0][1], PLACES[1][1]) and rng.random() < 0.8 else ((layout, offset),)
        for one, place in both:
            files[path] = with_field(files[path], one, place, changes)
    elif chance < 0.8 and segments:
        _change_frames(rng, files, segments)
    elif chance < 0.9:
        path = rng.choice(sorted(files))
        files[path] = damaged(rng, files[path])
    else:
        _change_names(rng, files, segments)


def _change_frames(rng: random.Random, files: Files, segments: list[str]) -> None:
    """Puts other frames into one segment; the next one's link may say so."""
    number = rng.randrange(len(segments))
    path = segments[number]
    files[path], end_lsn, last_crc = mutated_segment(rng, files[path])
    if end_lsn and number + 1 < len(segments) and rng.random() < 0.9:
        following = segments[number + 1]
        named = {"previous_end_lsn": end_lsn, "previous_last_crc": last_crc}
        files[following] = with_field(files[following], LINK, LINK_OFFSET, named)


def _change_names(rng: random.Random, files: Files, segments: list[str]) -> None:
    chance = rng.random()
    if chance < 0.3:
        del files[rng.choice(sorted(files))]
    elif chance < 0.5 and len(segments) > 1:
        one, other = rng.sample(segments, 2)
        files[one], files[other] = files[other], files[one] if rng.random() < 0.5 else files[other]
    else:
        source = files[rng.choice(sorted(files))] if rng.random() < 0.8 else b""
        name = rng.choice(_STRANGE_NAMES)
        path = f"{rng.choice((WAL, WAL, DATA))}/{name}"
        files[path] = source
        if name.startswith(("segment-f", "segment-7", "segment-0003")):
            fitting = {"number": int(name[8:24], 16)}
            for layout, place in PLACES:
                files[path] = with_field(files[path], layout, place, fitting)
