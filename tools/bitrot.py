"""Damages synced files of logs and stores at random, opens them, and counts what came of it.

tools/bitrot.py --trials 20000 --workers 2         exit code 1 and one line at the first wrong answer
tools/bitrot.py --replay 'log-py 1.4.17'           that answer again

A *life* is a small log or store on the simulated disk, brought to a stage: active (groups of entries, each synced),
idle (a mark follows the last sync), clean (closed), checkpoint, recycled. All its files are durable. A *trial* damages
one file of a copy of it, verifies the copy, and opens it.

Right is: a typed error that names the file (for an entry offset and LSN too), or all that was acknowledged. Losing
entries silently is right only where the damage took every proof that they were durable: what lies above the greatest
durable position that an undamaged entry, footer, link, control slot or checkpoint records. A vector that comes back
changed is right only from a damaged row that verification names. Verification must name a file for each damage that
reached bytes with a meaning; where it may not, is counted and said why.

Keys of the JSON object:
    trials, refused, harmless     harmless: everything is there
    no_change                     the damage put there what was there
    silent_loss_before_last_group     wrong: something that proves it durable survived
    silent_loss_after_mark        wrong: any loss once the log was closed or marked idle
    silent_loss_last_group        entries of the last synced group, of which nothing that survived tells
    silent_loss_with_its_proof    the damage took the last group as well as what was lost before it
    served_damaged_rows           damaged vectors that a clean open served; verification named each
    verify_found, verify_missed   of the damage that reached bytes with a meaning
    verify_excused                by reason: why nothing can tell this damage from a legal state
    table                         kind of damage: verdict: count
    stages                        stage: verdict: count
    seconds, trials_per_second    of CPU time
    violation                     null, or {line, problem}
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
import warnings
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np

from mmwal.checkpoint.image import image_path
from mmwal.checkpoint.load import load_checkpoint
from mmwal.config import KernelName, WalConfig
from mmwal.entry import Finding, VerifyReport
from mmwal.errors import DamageError, DurabilityWarning, OpenError, WalCorruptionError
from mmwal.format.control import DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import ALIGNMENT, HEADER_BYTES, LENGTH_MASK, Kind
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    SECTOR_BYTES,
    SEGMENT_BYTES_MIN,
    SEGMENT_HEADER,
)
from mmwal.kernel import load
from mmwal.log.control import create_control
from mmwal.log.scan import scan_frames
from mmwal.log.segment import segment_name, segment_number
from mmwal.manager import WalManager
from mmwal.opening import open_store
from mmwal.recovery.verify import verify
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import new_identity

WAL, DATA = "/store/wal", "/store/data"
PAGE = 4096
SIZE = SEGMENT_BYTES_MIN
TRIALS_OF_A_LIFE = 60
SECONDS_OF_A_TRIAL = 20
KINDS = (
    *("bit", "bits", "random bytes", "zeroed sector", "stale sector", "swapped sectors", "zeroed page"),
    *("truncated", "removed", "duplicated"),
)
WEIGHTS = (5, 3, 3, 5, 5, 3, 2, 1, 1, 1)
LOG_STAGES = ("active", "idle", "clean", "recycled", "recycled idle", "recycled clean")
STORE_STAGES = ("active", "idle", "clean", "checkpoint", "recycled", "recycled clean")
SUMS = (
    *("trials", "refused", "harmless", "no_change", "silent_loss_before_last_group", "silent_loss_after_mark"),
    *("silent_loss_last_group", "silent_loss_with_its_proof", "served_damaged_rows", "verify_found", "verify_missed"),
)

Range = tuple[int, int]
Entry = tuple[Any, ...]


class Wrong(Exception):
    """A wrong answer; ``line`` replays it."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


# -- lives --------------------------------------------------------------------------------------------------------


@dataclass
class Fact:
    """A frame of a life's log."""

    start: int
    end: int
    durable: int
    kind: int


@dataclass
class Life:
    """A log or a store, everything in it durable, and the plain truth about it."""

    stage: str
    disk: SimulatedDisk
    config: WalConfig
    end_lsn: int
    group_lsn: int  # where the last synced group begins
    contents: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))  # earlier contents of files
    frames: list[Fact] = field(default_factory=list)
    meaning: dict[str, list[Range]] = field(default_factory=dict)  # bytes that say something, by file
    truth: list[Any] = field(default_factory=list)  # log: entries; store: (LSN, contents) after each write

    @property
    def is_store(self) -> bool:
        return self.config.data_dir is not None


def build(name: str, seed: str) -> Life:
    """Returns the life of a seed; ``name`` as in a replay line."""
    what, _, kernel = name.partition("-")
    rng = random.Random(f"life {name} {seed}")
    disk = SimulatedDisk(seed=f"{name} {seed}", reserve_bytes_max=1 << 18)
    stage = rng.choice(LOG_STAGES if what == "log" else STORE_STAGES)
    config = WalConfig(
        wal_dir=WAL,
        data_dir=DATA if what == "store" else None,
        dimension=rng.choice((4, 16, 48)),
        max_wal_size=200 * SIZE,
        sync_interval_ms=rng.choice((0, 10)),
        checkpoint_interval=None,
        kernel=kernel_named(kernel),
    )
    for directory in (WAL, DATA):
        disk.make_directory(directory)
    create_control(disk, WAL, new_identity(disk, config.dimension or 0))  # segments smaller than a config allows
    life = Life(stage, disk, config, 0, 0)
    (_live_log if what == "log" else _live_store)(life, rng)
    life.disk = disk.kill()
    _describe(life)
    return life


def kernel_named(name: str) -> KernelName:
    return "c" if name == "c" else "py"


def _live_log(life: Life, rng: random.Random) -> None:
    disk = life.disk
    wal = WalManager(life.config, disk=disk)
    lsns: list[int] = []
    rounds = 1 if "recycled" not in life.stage else rng.randint(2, 4)
    for round_ in range(rounds):
        for _ in range(rng.randint(3, 9)):
            life.group_lsn = wal.last_lsn
            for _ in range(rng.randint(1, 8)):
                lsns.append(_log_one(wal, rng, life.config.dimension or 4))
            wal.sync()
            if rng.random() < 0.6:
                disk.run_workers()
            _remember(life, rng)
        if round_ < rounds - 1:
            _log_until(wal, disk, rng, life.config.dimension or 4, lsns)
            wal.release(lsns[rng.randrange(len(lsns) * 2 // 3, len(lsns))])
            disk.run_workers()
    life.end_lsn = wal.last_lsn
    if "clean" in life.stage:
        wal.close()
    elif "idle" in life.stage:
        _idle(disk)


def _log_one(wal: WalManager, rng: random.Random, dimension: int) -> int:
    def vectors(count: int) -> Any:
        return np.frombuffer(rng.randbytes(2 * count * dimension), np.int16).astype(np.float32).reshape(count, -1)

    metadata = None if rng.random() < 0.6 else {"n": rng.randrange(1000)}
    draw, id = rng.random(), rng.choice((f"id-{rng.randrange(40)}", rng.randrange(40)))
    if draw < 0.7:
        return wal.log_insert(id, vectors(1)[0], metadata)
    if draw < 0.8:
        return wal.log_delete(id)
    count = rng.randint(2, 6)
    return wal.log_batch([f"{id}-{n}" for n in range(count)], vectors(count), [metadata] * count)


def _log_until(wal: WalManager, disk: SimulatedDisk, rng: random.Random, dimension: int, lsns: list[int]) -> None:
    """Logs until another segment is full."""
    number = wal.last_lsn // SIZE
    while wal.last_lsn // SIZE <= number:
        lsns.append(_log_one(wal, rng, dimension))
        wal.sync()
        disk.run_workers()


def _live_store(life: Life, rng: random.Random) -> None:
    disk, dimension = life.disk, life.config.dimension or 4
    store = open_store(life.config, disk)
    assert store._state is not None
    store._state.lock = SimulatedMutex()  # type: ignore[assignment]  # workers run on this thread's stack
    contents: dict[Any, tuple[bytes, Any, int]] = {}
    life.truth.append((0, {}))

    def write() -> None:
        vector = np.frombuffer(rng.randbytes(2 * dimension), np.int16).astype(np.float32)
        id: Any = rng.choice((f"id-{rng.randrange(30)}", rng.randrange(30)))
        metadata = None if rng.random() < 0.6 else {"n": rng.randrange(1000)}
        if rng.random() < 0.2 and id in contents:
            lsn = store.delete(id)
            del contents[id]
        else:
            lsn = store.upsert(id, vector, metadata)
            kept = contents[id][1] if metadata is None and id in contents else metadata
            contents[id] = (vector.tobytes(), kept, lsn)
        life.truth.append((lsn, dict(contents)))

    rounds = {"checkpoint": rng.randint(1, 3), "recycled": rng.randint(2, 4), "recycled clean": rng.randint(2, 4)}
    for round_ in range(1 + rounds.get(life.stage, 0)):
        if round_:
            store.checkpoint()
            store.checkpoint() if "recycled" in life.stage else None
            disk.run_workers()
        for _ in range(rng.randint(1, 5)):
            assert store.wal is not None
            life.group_lsn = store.wal.last_lsn
            for _ in range(rng.randint(1, 8)):
                write()
            store.sync()
            _remember(life, rng)
        while "recycled" in life.stage and store.wal is not None and store.wal.last_lsn // SIZE <= round_:
            write()
            store.sync()
            disk.run_workers()
    assert store.wal is not None
    life.end_lsn = store.wal.last_lsn
    if "clean" in life.stage:
        store.close()
    elif life.stage == "idle":
        _idle(disk)


def _idle(disk: SimulatedDisk) -> None:
    for _ in range(3):
        disk.advance(0.06)
        disk.run_workers()


def _remember(life: Life, rng: random.Random) -> None:
    """Keeps what the files hold now: what a stale sector may show later."""
    if rng.random() < 0.4:
        for path, content in _files(life.disk).items():
            life.history[path].append(content)


def _files(disk: SimulatedDisk) -> dict[str, bytes]:
    found = {}
    for directory in (WAL, DATA):
        for name in disk.list_directory(directory) if disk.exists(directory) else []:
            if name != "lock":
                file = disk.open(f"{directory}/{name}", writable=False)
                found[file.path] = file.read(0, file.size())
    return found


# -- what the bytes of a life mean --------------------------------------------------------------------------------


def _describe(life: Life) -> None:
    """Reads the files of a life by the layouts alone: its frames, and which bytes say something."""
    life.contents = _files(life.disk)
    life.meaning = {}
    for path, content in life.contents.items():
        name = path.rpartition("/")[2]
        number = segment_number(name)
        if number is not None:
            life.meaning[path] = _segment_meaning(life, number, content)
        elif name == "control":
            layout = LOG_CONTROL if path.startswith(WAL) else DATA_CONTROL
            life.meaning[path] = [(at, at + layout.size) for at in SLOT_OFFSETS if layout.unpack(content, at)]
    for slot in _data_slots(life.contents.get(f"{DATA}/control", b"")):
        if slot["image_bytes"]:
            life.meaning[image_path(DATA, slot["image_number"])] = [(0, slot["image_bytes"])]
    life.meaning[f"{DATA}/matrix"] = sorted(set(_rows_named(life)))
    life.frames.sort(key=lambda fact: fact.start)
    if not life.is_store:
        life.truth = read_log(life.disk.kill(), life.config)


def _data_slots(content: bytes) -> list[dict[str, Any]]:
    slots = [DATA_CONTROL.unpack(content, offset) for offset in SLOT_OFFSETS]
    return sorted((slot for slot in slots if slot), key=lambda slot: slot["sequence"])


def _segment_meaning(life: Life, number: int, content: bytes) -> list[Range]:
    header = SEGMENT_HEADER.unpack(content)
    if header is None or header["number"] != number:
        return []
    base, limit = number * SIZE, max(life.end_lsn, number * SIZE + DATA_OFFSET)
    control = [slot for at in SLOT_OFFSETS if (slot := LOG_CONTROL.unpack(life.contents[f"{WAL}/control"], at))]
    floor = max(max(slot["oldest_lsn"] for slot in control) - 1, 0) // SIZE
    frames, stop, _ = scan_frames(load("py"), content, base, header["salt"], base + DATA_OFFSET, base + SIZE - 512)
    if number < floor or not len(frames):
        return []  # to be removed, or prepared for later
    assert stop >= min(limit, base + SIZE - FOOTER_BYTES), "a life with damage of its own"
    ranges = [(at, at + SEGMENT_HEADER.size) for at in HEADER_OFFSETS]
    footer = FOOTER.unpack(content, SIZE - FOOTER_BYTES)
    is_sealed = footer is not None and footer["salt"] == header["salt"]
    if is_sealed:
        ranges.append((SIZE - FOOTER_BYTES, SIZE - FOOTER_BYTES + FOOTER.size))
    if is_sealed or "clean" in life.stage:  # else opening takes a link that is not whole for one not yet written
        ranges.append((LINK_OFFSET, LINK_OFFSET + LINK.size))
    for frame in frames:
        start = int(frame["start_lsn"])
        end = start + (int(frame["commit"]) & LENGTH_MASK) * ALIGNMENT
        life.frames.append(Fact(start, end, int(frame["durable_lsn"]), int(frame["kind"])))
        ranges.append((start - base, (start + HEADER_BYTES if frame["kind"] == Kind.PAD else end) - base))
    return sorted(ranges)


def _rows_named(life: Life) -> Iterator[Range]:
    """Yields the places of the rows that either slot names."""
    slots = _data_slots(life.contents.get(f"{DATA}/control", b""))
    for index, slot in enumerate(slots):
        disk = life.disk.kill()
        if index + 1 < len(slots):  # let the older one count
            offset = next(
                at for at in SLOT_OFFSETS if DATA_CONTROL.unpack(life.contents[f"{DATA}/control"], at) == slots[-1]
            )
            disk.open(f"{DATA}/control", writable=True).write(offset, bytes(DATA_CONTROL.size))
        loaded = load_checkpoint(disk, DATA, writable=False)
        assert loaded is not None and loaded.sequence == slot["sequence"]
        stride, row_bytes = loaded.matrix.stride, loaded.matrix.row_bytes
        with loaded.state.reading() as view:
            for row in view.rows().tolist():
                yield row * stride, row * stride + row_bytes
        loaded.matrix.close()


# -- damage -------------------------------------------------------------------------------------------------------


@dataclass
class Damage:
    """What was done: new contents by file (None: removed), and which bytes differ from before."""

    kind: str
    contents: dict[str, bytes | None]
    changed: dict[str, list[Range]]

    def __str__(self) -> str:
        places = "; ".join(
            f"{path} " + ", ".join(f"{start} to {end}" for start, end in ranges[:3])
            for path, ranges in self.changed.items()
        )
        return f"{self.kind}: {places}"


def damage(life: Life, disk: SimulatedDisk, rng: random.Random) -> Damage | None:
    """Damages one file (or two) of a copy of a life; None where that changed nothing."""
    kind = rng.choices(KINDS, WEIGHTS)[0]
    paths = sorted(life.contents)
    told = [path for path in paths if life.meaning.get(path)]
    path = rng.choice(told) if rng.random() < 0.9 else rng.choice(paths)
    if kind == "duplicated":
        segments = [path for path in paths if "segment" in path]
        path, other = rng.choice(segments), f"{WAL}/{segment_name(rng.randrange(life.end_lsn // SIZE + 3))}"
        new = {other: life.contents[path]}
    elif kind == "swapped sectors":
        at, (other, to) = _place(life, path, rng), _other_place(life, path, rng)
        mine, its = _sector(life.contents[path], at), _sector(life.contents[other], to)
        new = {path: _put(life.contents[path], at, its)}
        new[other] = _put(new.get(other, life.contents[other]), to, mine)
    else:
        changed = _changed(life, kind, path, rng)
        new = {path: changed}
    ranges: dict[str, list[Range]] = {}
    for path, content in new.items():
        before = life.contents.get(path, b"")
        if content == before and path in life.contents:
            continue
        ranges[path] = list(_differences(before, content)) if content is not None else [(0, max(len(before), 1))]
        _store(disk, path, content)
    return Damage(kind, new, ranges) if ranges else None


def _changed(life: Life, kind: str, path: str, rng: random.Random) -> bytes | None:
    content = life.contents[path]
    at = _place(life, path, rng)
    if kind == "removed":
        return None
    if kind == "truncated":
        return content[: rng.choice((0, at, at // PAGE * PAGE, rng.randrange(len(content) + 1)))]
    if kind == "bit":
        return _put(content, at, bytes([content[at] ^ 1 << rng.randrange(8)])) if content else content
    if kind == "bits":
        for _ in range(rng.randint(2, 8)):
            place = min(at // PAGE * PAGE + rng.randrange(PAGE), len(content) - 1)
            content = _put(content, place, bytes([content[place] ^ 1 << rng.randrange(8)])) if content else content
        return content
    if kind == "random bytes":
        return _put(content, at, rng.randbytes(rng.randint(1, 64)))[: len(content)]
    if kind == "zeroed page":
        return _put(content, at // PAGE * PAGE, bytes(PAGE))[: len(content)]
    sector = at // SECTOR_BYTES * SECTOR_BYTES
    if kind == "zeroed sector":
        return _put(content, sector, bytes(SECTOR_BYTES))[: len(content)]
    assert kind == "stale sector"
    older = [*life.history.get(path, []), *(life.contents[name] for name in life.contents if "segment" in name)]
    if "segment" not in path:
        older = life.history.get(path, [])
    different = [old for old in older if _sector(old, sector) != _sector(content, sector) and len(old) > sector]
    return _put(content, sector, _sector(rng.choice(different), sector))[: len(content)] if different else content


def _place(life: Life, path: str, rng: random.Random) -> int:
    """Draws a byte of a file, mostly one that says something."""
    ranges = life.meaning.get(path)
    size = len(life.contents[path])
    if ranges and rng.random() < 0.85:
        start, end = rng.choice(ranges[-6:]) if rng.random() < 0.3 else rng.choice(ranges)
        return rng.randrange(start, end)
    return rng.randrange(size) if size else 0


def _other_place(life: Life, path: str, rng: random.Random) -> tuple[str, int]:
    other = path if rng.random() < 0.7 else rng.choice([name for name in sorted(life.contents) if life.contents[name]])
    return other, _place(life, other, rng)


def _sector(content: bytes, at: int) -> bytes:
    start = at // SECTOR_BYTES * SECTOR_BYTES
    return content[start : start + SECTOR_BYTES]


def _put(content: bytes, at: int, new: bytes) -> bytes:
    if len(new) == SECTOR_BYTES:
        at = at // SECTOR_BYTES * SECTOR_BYTES
    return content[:at] + new + content[at + len(new) :]


def _differences(before: bytes, after: bytes) -> Iterator[Range]:
    """Yields the ranges in which two contents differ; a length that differs counts too."""
    size = min(len(before), len(after))
    if before[:size] != after[:size]:
        differ = np.frombuffer(before, np.uint8, size) != np.frombuffer(after, np.uint8, size)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], differ, [False]))))
        yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    if len(before) != len(after):
        yield size, max(len(before), len(after))


def _store(disk: SimulatedDisk, path: str, content: bytes | None) -> None:
    if disk.exists(path):
        disk.unlink(path)
    if content is not None:
        file = disk.create(path)
        file.write(0, content)
        file.sync()
    disk.sync_directory(path.rpartition("/")[0])


# -- the judgement ------------------------------------------------------------------------------------------------


@dataclass
class Reached:
    """What a damage reached, and what is still proven durable by what it did not reach."""

    meaning: bool
    proven_lsn: int
    first_lsn: int | None  # of the frames that were reached
    legal_control: bool


def reach(life: Life, done: Damage) -> Reached:
    """Compares what was changed with what the bytes of a life mean."""
    meaning = any(_overlap(life.meaning.get(path, []), ranges) for path, ranges in done.changed.items())
    starts = [fact.start for fact in life.frames]
    hit: set[int] = set()
    for path, ranges in done.changed.items():
        number = segment_number(path.rpartition("/")[2])
        if number is None or not life.meaning.get(path):
            continue
        for start, end in ranges:
            index = max(bisect_right(starts, number * SIZE + start) - 1, 0)
            while index < len(starts) and starts[index] < number * SIZE + end:
                fact = life.frames[index]
                limit = fact.start + HEADER_BYTES if fact.kind == Kind.PAD else fact.end
                if limit > number * SIZE + start:
                    hit.add(index)
                index += 1
    proofs = [fact.durable for index, fact in enumerate(life.frames) if index not in hit]
    for path, content in life.contents.items():
        changed = done.changed.get(path, [])
        name = path.rpartition("/")[2]
        if name == "control" and path.startswith(WAL):
            for slot in _untouched(LOG_CONTROL, content, SLOT_OFFSETS, changed):
                proofs.append(slot["durable_lsn"])
                proofs.append(slot["end_lsn"] if slot["clean"] else 0)
        elif name == "control":
            proofs += [slot["redo_lsn"] for slot in _untouched(DATA_CONTROL, content, SLOT_OFFSETS, changed)]
        elif segment_number(name) is not None and life.meaning.get(path):
            proofs += [slot["end_lsn"] for slot in _untouched(FOOTER, content, (SIZE - FOOTER_BYTES,), changed)]
            links = _untouched(LINK, content, (LINK_OFFSET,), changed)
            proofs += [slot["previous_end_lsn"] for slot in links]
    first = min((life.frames[index].start for index in hit), default=None)
    return Reached(meaning, max(proofs, default=0), first, _is_legal_control(life, done))


def _untouched(layout: Any, content: bytes, offsets: tuple[int, ...], changed: list[Range]) -> list[dict[str, Any]]:
    return [
        fields
        for offset in offsets
        if (fields := layout.unpack(content, offset)) and not _overlap([(offset, offset + layout.size)], changed)
    ]


def _overlap(ranges: list[Range], changed: list[Range]) -> bool:
    return any(start < last and first < end for start, end in ranges for first, last in changed)


def _is_legal_control(life: Life, done: Damage) -> bool:
    """Whether all that was reached is a control file, left as it stood at some time: an old slot in the place of a new
    one, or of the first two slots only one."""
    for path, content in done.contents.items():
        if not _overlap(life.meaning.get(path, []), done.changed.get(path, [])):
            continue
        if not path.endswith("/control") or content is None:
            return False
        layout = LOG_CONTROL if path.startswith(WAL) else DATA_CONTROL
        slots = [layout.unpack(content, offset) for offset in SLOT_OFFSETS]
        blank = not any(content[SLOT_OFFSETS[1] : SLOT_OFFSETS[1] + layout.size])
        if not (all(slots) or (blank and slots[0] is not None and slots[0]["sequence"] == 1)):
            return False
    return True


Opener = Callable[[SimulatedDisk, WalConfig], Any]
Verifier = Callable[[SimulatedDisk, Life], VerifyReport]


def read_log(disk: SimulatedDisk, config: WalConfig) -> list[Entry]:
    """Opens a log; returns its entries as plain values."""
    wal = WalManager(config, disk=disk)
    return [_plain(entry) for entry in wal.iter_entries()]


def _plain(entry: Any) -> Entry:
    if entry.kind == "batch":
        vectors = None if entry.vectors is None else entry.vectors.tobytes()
        return entry.lsn, entry.operation, tuple(entry.ids), vectors, repr(entry.metadata)
    vector = getattr(entry, "vector", None)
    vector = None if vector is None else vector.tobytes()
    return entry.lsn, entry.kind, getattr(entry, "id", None), vector, repr(getattr(entry, "metadata", None))


def read_store(disk: SimulatedDisk, config: WalConfig) -> dict[Any, tuple[bytes, Any, int]]:
    """Opens a store; returns what it holds."""
    store = open_store(config, disk)
    found = {}
    for id in store.ids():
        record = store.get(id)
        assert record is not None
        found[id] = (record.vector.tobytes(), record.metadata, record.lsn)
    return found


def verified(disk: SimulatedDisk, life: Life) -> VerifyReport:
    """Verifies a directory that is not open."""
    return verify("/store" if life.is_store else WAL, disk=disk, kernel=life.config.kernel)


@dataclass
class Trials:
    """Runs trials and counts."""

    name: str
    seed: int
    open_log: Opener = read_log
    open_store: Opener = read_store
    verify: Verifier = verified
    counts: Counter[str] = field(default_factory=Counter)
    excused: Counter[str] = field(default_factory=Counter)
    table: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    stages: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    violation: dict[str, str] | None = None
    seconds: float = 0.0

    def run(self, trials: int, seconds: float = float("inf")) -> None:
        """Runs so many trials, or ends when so many CPU seconds are used, or at the first wrong answer."""
        started = time.process_time()
        number = 0
        while self.counts["trials"] < trials and time.process_time() - started < seconds and not self.violation:
            self.run_life(f"{self.seed}.{number}", min(TRIALS_OF_A_LIFE, trials - self.counts["trials"]))
            number += 1
        self.seconds += time.process_time() - started

    def run_life(self, seed: str, trials: int, only: int | None = None) -> None:
        """Runs the trials of one life."""
        line = f"{self.name} {seed}"
        try:
            life = build(self.name, seed)
            report = self.verify(life.disk.kill(), life)
            if report.findings:
                raise Wrong(f"verification alarms on a whole directory ({life.stage}): {report.findings[0]}")
            for number in range(trials) if only is None else [only]:
                line = f"{self.name} {seed}.{number}"
                self.run_trial(life, random.Random(f"trial {line}"))
        except Wrong as wrong:
            self.violation = {"line": line, "problem": wrong.problem}

    def run_trial(self, life: Life, rng: random.Random) -> None:
        """Damages a copy of a life, verifies and opens it. Raises `Wrong`."""
        self.counts["trials"] += 1
        disk = life.disk.kill()
        done = damage(life, disk, rng)
        if done is None:
            self._count("no change", "no_change", life)
            return
        reached = reach(life, done)
        with _TimeLimit(f"{life.stage}, {done}"):
            findings = list(self._verify(disk.kill(), life, done).findings)
            verdict, problem = self._open(disk, life, done, reached, findings)
        self._count(done.kind, verdict, life)
        if problem is not None:
            raise Wrong(f"{life.stage}, {done}: {problem}")
        self._judge_verify(life, done, reached, verdict, findings)

    def _count(self, kind: str, verdict: str, life: Life) -> None:
        self.counts[verdict] += 1
        self.table[kind][verdict] += 1
        self.stages[life.stage][verdict] += 1

    def _verify(self, disk: SimulatedDisk, life: Life, done: Damage) -> VerifyReport:
        before = disk.digest()
        try:
            report = self.verify(disk, life)
        except Exception as error:
            if isinstance(error, OpenError) and not any(disk.exists(f"{path}/control") for path in (WAL, DATA)):
                return VerifyReport(findings=(_missing(str(error)),))
            raise Wrong(f"{life.stage}, {done}: verification raised {type(error).__name__}: {error}") from error
        if disk.digest() != before:
            raise Wrong(f"{life.stage}, {done}: verification changed the disk")
        return report

    def _open(
        self, disk: SimulatedDisk, life: Life, done: Damage, reached: Reached, findings: list[Finding]
    ) -> tuple[str, str | None]:
        """Returns what opening came to, and what is wrong with that."""
        try:
            found = (self.open_store if life.is_store else self.open_log)(disk, life.config)
        except DamageError as error:
            named = not isinstance(error, WalCorruptionError) or None not in (error.offset, error.lsn)
            return "refused", None if error.path and named else f"an error that does not name its place: {error}"
        except (OpenError, OSError):
            return "refused", None
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the wrong answer)
            return "refused", f"opening raised {type(error).__name__}: {error}"
        if life.is_store:
            found, problem = self._without_damaged_rows(life, found, findings)
            if problem:
                return "harmless", problem
            lost, problem = _lost_of_store(life, found)
        else:
            lost, problem = _lost_of_log(life, found)
        if problem or lost is None:
            return "harmless", problem
        if reached.first_lsn is None or lost < reached.first_lsn:
            return "silent_loss_before_last_group", f"silent loss from LSN {lost} on, and no entry there was damaged"
        if _had_mark(life):
            return "silent_loss_after_mark", f"silent loss from LSN {lost} on, after a mark that all was durable"
        if lost < reached.proven_lsn:
            problem = f"silent loss from LSN {lost} on, though {reached.proven_lsn} is proven durable"
            return "silent_loss_before_last_group", problem
        return "silent_loss_last_group" if lost >= life.group_lsn else "silent_loss_with_its_proof", None

    def _without_damaged_rows(
        self, life: Life, found: dict[Any, Any], findings: list[Finding]
    ) -> tuple[dict[Any, Any], str | None]:
        """Puts the right vector in the place of each that is not, provided that verification named its row."""
        named = {(finding.id, finding.lsn) for finding in findings if finding.what == "row"}
        written = {(id, row[2]): row for _, contents in life.truth for id, row in contents.items()}
        mended = dict(found)
        for id, row in found.items():
            right = written.get((id, row[2]))
            if right is None or right == row:
                continue
            if right[1] != row[1]:
                return found, f"id {id!r} has metadata {row[1]!r}, written was {right[1]!r}"
            if (id, row[2]) not in named:
                return found, f"id {id!r} has another vector than was written, and verification does not name it"
            self.counts["served_damaged_rows"] += 1
            mended[id] = right
        return mended, None

    def _judge_verify(self, life: Life, done: Damage, reached: Reached, verdict: str, findings: list[Finding]) -> None:
        if findings:
            if not any(finding.path in done.changed for finding in findings) and verdict != "refused":
                raise Wrong(f"{life.stage}, {done}: verification names another file: {findings[0]}")
            self.counts["verify_found"] += 1
            return
        if not reached.meaning and verdict in ("harmless", "refused"):
            reason = "bytes without a meaning"
        elif reached.legal_control and verdict == "harmless":
            reason = "a control file as it stood earlier"
        elif reached.first_lsn is not None and reached.first_lsn >= reached.proven_lsn and verdict != "refused":
            reason = "behind all that is proven durable"
        else:
            self.counts["verify_missed"] += 1
            raise Wrong(f"{life.stage}, {done}: {verdict}, and verification finds nothing")
        self.excused[reason] += 1

    def report(self) -> dict[str, Any]:
        """Returns the figures, by name."""
        return {
            "target": self.name,
            "seed": self.seed,
            **{name: self.counts[name] for name in SUMS},
            "verify_excused": dict(self.excused),
            "table": {kind: dict(counts) for kind, counts in sorted(self.table.items())},
            "stages": {stage: dict(counts) for stage, counts in sorted(self.stages.items())},
            "seconds": round(self.seconds, 1),
            "trials_per_second": round(self.counts["trials"] / max(self.seconds, 1e-9)),
            "violation": self.violation,
        }


def _had_mark(life: Life) -> bool:
    """Whether the control file says that all of the log is durable: it was closed, or its idle mark was noted."""
    control = life.contents[f"{WAL}/control"]
    slots = [slot for offset in SLOT_OFFSETS if (slot := LOG_CONTROL.unpack(control, offset))]
    return max(slot["durable_lsn"] for slot in slots) >= life.end_lsn


def _lost_of_log(life: Life, found: list[Entry]) -> tuple[int | None, str | None]:
    """Returns where the first entry begins that is not there (None: all are), and what is wrong otherwise."""
    if found != life.truth[: len(found)]:
        return None, "entries that are no prefix of what was logged"
    if len(found) == len(life.truth):
        return None, None
    lsn = life.truth[len(found)][0]
    return next((fact.start for fact in life.frames if fact.end == lsn), lsn - 1), None


def _lost_of_store(life: Life, found: dict[Any, Any]) -> tuple[int | None, str | None]:
    for index in range(len(life.truth) - 1, -1, -1):
        if life.truth[index][1] == found:
            if index == len(life.truth) - 1:
                return None, None
            lsn = life.truth[index + 1][0]
            return next((fact.start for fact in life.frames if fact.end == lsn), lsn - 1), None
    return None, f"a state that never was: {len(found)} ids"


def _missing(problem: str) -> Finding:
    return Finding(what="control file", severity="damaged", path=f"{WAL}/control", problem=problem)


class _TimeLimit:
    """Turns a hang into a wrong answer."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        signal.alarm(SECONDS_OF_A_TRIAL)

    def __exit__(self, *error: object) -> None:
        signal.alarm(0)

    def _ring(self, *_: object) -> None:
        raise Wrong(f"{self._what}: still not done after {SECONDS_OF_A_TRIAL} s")


# -- the command --------------------------------------------------------------------------------------------------


def try_many(name: str, seed: int, trials: int, seconds: float) -> dict[str, Any]:
    """Runs the trials of one worker."""
    warnings.simplefilter("ignore", DurabilityWarning)
    work = Trials(name, seed)
    work.run(trials, seconds)
    return work.report()


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the sum of several reports."""
    whole: dict[str, Any] = {name: sum(report[name] for report in reports) for name in SUMS}
    whole["verify_excused"] = dict(sum((Counter(report["verify_excused"]) for report in reports), Counter()))
    for name in ("table", "stages"):
        sums: dict[str, Counter[str]] = defaultdict(Counter)
        for report in reports:
            for key, counts in report[name].items():
                sums[key].update(counts)
        whole[name] = {key: dict(counts) for key, counts in sorted(sums.items())}
    whole["seconds"] = round(sum(report["seconds"] for report in reports), 1)
    whole["trials_per_second"] = round(whole["trials"] / max(whole["seconds"], 1e-9))
    whole["violation"] = next((report["violation"] for report in reports if report["violation"]), None)
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="both", choices=("log", "store", "both"))
    parser.add_argument("--kernel", default="py", choices=("py", "c"))
    parser.add_argument("--trials", type=int, default=10_000, help="over all workers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of CPU time of each worker: end then")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replay", metavar="LINE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.replay:
        name, _, place = arguments.replay.partition(" ")
        seed, _, trial = place.rpartition(".") if place.count(".") == 2 else (place, "", "")
        work = Trials(name, int(seed.partition(".")[0]))
        work.run_life(seed, 0, int(trial) if trial else None)
        print(work.violation["problem"] if work.violation else "nothing wrong there any more")
        return 1 if work.violation else 0
    targets = ("log", "store") if arguments.target == "both" else (arguments.target,)
    workers = max(1, arguments.workers)
    share = -(-arguments.trials // (workers * len(targets)))
    seconds = arguments.seconds / len(targets)
    jobs = [
        (f"{target}-{arguments.kernel}", arguments.seed + worker, share, seconds)
        for worker in range(workers)
        for target in targets
    ]
    if workers == 1:
        reports = [try_many(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers) as pool:
            reports = list(pool.map(try_many, *zip(*jobs, strict=True)))
    report = merged(reports)
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def _readable(report: dict[str, Any]) -> str:
    columns = [name for name in SUMS[1:8] if any(counts.get(name) for counts in report["table"].values())]
    heads = [name.replace("silent_loss_", "lost: ").replace("_", " ") for name in columns]
    lines = []
    for title in ("table", "stages"):
        lines.append(f"{'':18}" + "".join(f"{head:>24}" for head in heads))
        for kind, counts in report[title].items():
            lines.append(f"{kind:18}" + "".join(f"{counts.get(name, 0):24,}" for name in columns))
        lines.append("")
    lines += [f"{name.replace('_', ' '):34}{value}" for name, value in report.items() if not isinstance(value, dict)]
    lines += [f"  {count:8,}  damage that nothing can tell: {why}" for why, count in report["verify_excused"].items()]
    if report["violation"]:
        found = report["violation"]
        lines += ["", found["problem"], f"replay: tools/bitrot.py --replay '{found['line']}'"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
