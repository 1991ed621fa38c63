"""The table of what is fuzzed: how an input is made, who reads it, which refusals are right.

An input that is accepted must not contradict itself: `Inconsistent` says that it did.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import mmwal
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.checkpoint.load import Loaded, load_checkpoint
from mmwal.config import RecoveryConfig
from mmwal.entry import WalEntry
from mmwal.errors import IdError, MetadataError, WalError
from mmwal.format.frame import FRAME_DTYPE, HEADER_BYTES, pack_ids, pack_metadata, unpack_ids, unpack_metadata
from mmwal.format.metadata import DEPTH_MAX, decode_metadata, encode_metadata
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, data_end, data_start
from mmwal.kernel import reference
from mmwal.kernel.interface import BLOCK_BYTES, SCAN_END, SCAN_FULL
from mmwal.log.control import LogIdentity, open_control
from mmwal.log.reader import Extent, decode_entry, frame_end, read_entries, read_extents
from mmwal.log.scan import find_frames, scan_frames
from mmwal.log.segment import inspect_segment, segment_number
from mmwal.manager import WalManager
from mmwal.opening import CrashRecoveryManager
from mmwal.recovery.recover import build_index
from mmwal.recovery.tail import survey
from mmwal.recovery.workers import Workers
from tools.fuzzing.disk import DATA, WAL, Files, FrozenDisk, simulated
from tools.fuzzing.images import CONTROLS, mutated_control, mutated_image
from tools.fuzzing.msgpack import hostile_metadata
from tools.fuzzing.seeds import DIMENSION, Seed, config, seeds
from tools.fuzzing.segments import (
    PLACES,
    Frame,
    assembled,
    frames_of,
    hostile_changes,
    hostile_ids,
    hostile_metadata_block,
    mutated_frames,
    with_field,
)
from tools.fuzzing.stores import hostile_files, segments_of
from tools.fuzzing.values import damaged, hostile_int, hostile_row

_PAGE = mmap.PAGESIZE
_OUT_HEADERS = 40


class Inconsistent(Exception):
    """What was accepted contradicts itself."""


@dataclass(frozen=True, slots=True)
class Input:
    """Something to be read: what is handed over, and its bytes (what makes it distinct, and its size)."""

    thing: Any
    content: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Structure:
    """What is fuzzed: ``make`` an input, ``read`` it with a kernel, expecting these refusals.

    ``weight`` is how many of each `CYCLE` of inputs are of it, ``memory_bytes`` what reading may take beside 96 times
    the input's size.
    """

    name: str
    weight: int
    make: Callable[[random.Random], Input]
    read: Callable[[Any, Any], None]
    refusals: tuple[type[BaseException], ...]
    memory_bytes: int = 1 << 18


def require(holds: bool, problem: str) -> None:
    """Raises `Inconsistent` unless something holds."""
    if not holds:
        raise Inconsistent(problem)


def _files_input(files: Files) -> Input:
    content = b"".join(path.encode() + b"\0" + files[path] for path in sorted(files))
    return Input(files, content, len(content))


# -- blocks and records -------------------------------------------------------------------------------------------


def _make_ids(rng: random.Random) -> Input:
    rows = rng.choice((0, 1, 2, 3, 8, hostile_int(rng, 32)))
    honest = pack_ids([f"id-{n}" if rng.random() < 0.5 else n for n in range(min(rows, 8))] or ["a"])
    block = hostile_ids(rng, honest, rows) if rng.random() < 0.8 else damaged(rng, honest)
    return Input((block, rows), block + rows.to_bytes(8, "little"), len(block))


def _ids_of_a_directory(kernel: Any, block: memoryview, rows: int) -> list[Any]:
    if rows > len(block):
        raise ValueError  # and no array is made for so many
    directory = kernel.Directory()
    directory.put_block(block, b"", np.arange(rows), np.empty(rows, np.int64))
    return [directory.name(row) for row in range(rows)]


def _read_ids(kernel: Any, thing: Any) -> None:
    block, rows = thing
    answers = []
    for unpack in (unpack_ids, partial(_ids_of_a_directory, kernel)):
        try:
            answers.append(unpack(memoryview(block), rows))
        except ValueError:
            answers.append(ValueError)
    require(answers[0] == answers[1], f"two readers of one block of ids: {answers[0]!r:.80} and {answers[1]!r:.80}")
    if answers[0] is ValueError:
        raise ValueError
    require(len(answers[0]) == rows, f"{len(answers[0])} ids for {rows} rows")
    try:
        require(pack_ids(answers[0]) == block if answers[0] else block == b"", "ids that are not stored like that")
    except IdError as error:
        raise Inconsistent(f"an id that nobody could have written: {error}") from error


def _make_metadata_block(rng: random.Random) -> Input:
    rows = rng.choice((0, 1, 2, 3, 8, hostile_int(rng, 20)))
    honest = pack_metadata([encode_metadata({"n": n}) if rng.random() < 0.7 else None for n in range(min(rows, 8))])
    block = hostile_metadata_block(rng, honest, rows) if rng.random() < 0.8 else damaged(rng, honest)
    return Input((block, rows), block + rows.to_bytes(8, "little"), len(block) + 8 * rows)


def _read_metadata_block(kernel: Any, thing: Any) -> None:
    block, rows = thing
    found = unpack_metadata(memoryview(block), rows)
    require(len(found) == rows, f"{len(found)} items for {rows} rows")
    if any(item is not None for item in found):
        require(pack_metadata(found) == block, "a block of metadata that is not stored like that")


def _make_metadata(rng: random.Random) -> Input:
    raw = hostile_metadata(rng)
    return Input(raw, raw, len(raw))


def _read_metadata(kernel: Any, raw: bytes) -> None:
    found = decode_metadata(raw)
    again = decode_metadata(encode_metadata(found))
    require(repr(again) == repr(found), "metadata that does not come back")
    require(_levels(found) <= DEPTH_MAX, f"metadata of {_levels(found)} levels")


def _levels(value: Any) -> int:
    """Returns how deep lists and mappings nest."""
    levels, here = 0, [value]
    while here := [one for one in here if isinstance(one, (dict, list))]:
        levels += 1
        here = [one for parent in here for one in (parent.values() if isinstance(parent, dict) else parent)]
    return levels


def _make_control(rng: random.Random) -> Input:
    seed = rng.choice(_owned())
    files = {path: seed.files[path] for _, path in CONTROLS}
    for layout, path in CONTROLS:
        if rng.random() < 0.85:
            mutated_control(rng, files, layout, path)
        else:
            files[path] = damaged(rng, files[path])
    return _files_input(files)


def _read_control(kernel: Any, files: Files) -> None:
    disk: Any = FrozenDisk(files)
    try:
        control = open_control(disk, WAL)
        require(control is not None, "a control file that is there and not found")
        identity = control.identity  # type: ignore[union-attr]
        _check_position(identity, control.durable_lsn)  # type: ignore[union-attr]
        if control.clean_end_lsn is not None:  # type: ignore[union-attr]
            _check_position(identity, control.clean_end_lsn)  # type: ignore[union-attr]
    finally:
        data = open_data_control(disk, DATA)
        require(data is not None, "a control file that is there and not found")
        for slot in data.slots:  # type: ignore[union-attr]
            require(slot.row_bytes >= slot.dimension > 0, f"rows of {slot.row_bytes} bytes")


def _make_segment(rng: random.Random) -> Input:
    path, content = rng.choice(_segments())
    number = segment_number(path.rpartition("/")[2])
    for _ in range(rng.choice((1, 1, 2))):
        layout, offset = rng.choice(PLACES)
        changes = hostile_changes(rng, layout, content, offset)
        both = PLACES[:2] if offset in (PLACES[0][1], PLACES[1][1]) and rng.random() < 0.8 else ((layout, offset),)
        for one, place in both:
            content = with_field(content, one, place, changes)
    if rng.random() < 0.15:
        content = damaged(rng, content)
    return Input((path, number, content), content, len(content))


def _read_segment(kernel: Any, thing: Any) -> None:
    path, number, content = thing
    info = inspect_segment(FrozenDisk({path: content}), WAL, _identity(), number)  # type: ignore[arg-type]
    if info is None:
        require(not any(content[:DATA_OFFSET]), "a segment that is not empty is taken for one that never was")
        return
    require(info.first_lsn <= info.end_lsn <= info.data_end_lsn, f"a segment that ends at {info.end_lsn}")
    require(len(content) >= info.segment_bytes, "a segment that is shorter than it says")


# -- frames -------------------------------------------------------------------------------------------------------


def _make_frames(rng: random.Random) -> Input:
    """Makes a few frames of honest logs, some of them changed, at a place and under a salt of their own."""
    pool = _frames()
    chosen = [rng.choice(pool) for _ in range(rng.choice((1, 2, 3, 5, 9)))]
    if rng.random() < 0.9:
        chosen = mutated_frames(rng, chosen)
    number = rng.choice((0, 0, 1, 77, (1 << 40)))
    base_lsn, salt = number * 16384, rng.getrandbits(64)
    room = rng.choice((512, 1024, 2048, 4096)) if rng.random() < 0.9 else 16384 - DATA_OFFSET - FOOTER_BYTES
    body, end_lsn, _ = assembled(chosen, salt, base_lsn, room, {}, honest_commits=rng.random() < 0.7)
    if rng.random() < 0.3 and body:  # something of an earlier life behind it, or overlapping it
        again, _, _ = assembled(chosen[::-1], salt, end_lsn, max(0, room - len(body)), {}, honest_commits=False)
        body += rng.choice((again, rng.randbytes(64) + again, again[64:], body[-128:]))
    body = body[:room]
    if rng.random() < 0.7:
        body = body.ljust(room, b"\0")
    if rng.random() < 0.15:
        body = damaged(rng, body)
    return Input((body, base_lsn, salt, rng.random()), body + salt.to_bytes(8, "little"), len(body))


def _read_scan(kernel: Any, thing: Any) -> None:
    """Scans and searches with a kernel, in memory that ends where a page ends that must not be touched."""
    body, base_lsn, salt, chance = thing
    rng = random.Random(chance)
    guarded = _guarded(0, body) if kernel.NAME == "c" else memoryview(body)
    start, end = base_lsn, base_lsn + len(body)
    if rng.random() < 0.3:
        start = min(end, start + 64 * rng.randrange(12))
        end = max(start, end - rng.choice((0, 1, 32, 64, 512)))
    if rng.random() < 0.05:
        start, end, salt = hostile_int(rng, 64, start), hostile_int(rng, 64, end), hostile_int(rng, 64, salt)
    room = rng.choice((1, 3, _OUT_HEADERS, _OUT_HEADERS))
    for verify in (True, False):
        answers = [
            _answer_of_scan(one, memory, base_lsn, salt, start, end, room, verify)
            for one, memory in _readers(kernel, guarded, body)
        ]
        require(len(set(answers)) == 1, f"the kernels differ, verify={verify}: {[a[:-1] for a in answers]}")
        if len(answers[0]) == 4:
            _check_scan(answers[0], start, end, room)
    found = {
        _answer_of_find(one, memory, base_lsn, salt, start, end) for one, memory in _readers(kernel, guarded, body)
    }
    require(len(found) == 1, f"the kernels differ: find_frame gives {found}")
    if isinstance(answers[0][0], str):
        raise ValueError


def _readers(kernel: Any, guarded: memoryview, body: bytes) -> list[tuple[Any, Any]]:
    return [(kernel, guarded)] if kernel is reference else [(kernel, guarded), (reference, body)]


def _answer_of_scan(
    kernel: Any, memory: Any, base_lsn: int, salt: int, start: int, end: int, room: int, verify: bool
) -> tuple[Any, ...]:
    out = _guarded(1, bytes(room * HEADER_BYTES)) if kernel.NAME == "c" else memoryview(bytearray(room * HEADER_BYTES))
    try:
        stop, count, reason = kernel.scan(memory, base_lsn, salt, start, end, out, verify)
    except (ValueError, OverflowError):
        return "refused", ""
    return stop, count, reason, bytes(out[: count * HEADER_BYTES])


def _answer_of_find(kernel: Any, memory: Any, base_lsn: int, salt: int, start: int, end: int) -> int | str:
    try:
        found: int = kernel.find_frame(memory, base_lsn, salt, start, end)
    except (ValueError, OverflowError):
        return "refused"
    require(found == -1 or (start <= found < end and found % 64 == 0), f"a frame found at {found}")
    return found


def _check_scan(answer: tuple[Any, ...], start: int, end: int, room: int) -> None:
    stop, count, reason, headers = answer
    require(start <= stop <= end and count <= room, f"a scan of {start} to {end} stopped at {stop} with {count} frames")
    require((reason == SCAN_END) <= (stop == end) and (reason == SCAN_FULL) <= (count == room), f"stopped for {reason}")
    at = start
    for frame in np.frombuffer(headers, FRAME_DTYPE):
        require(int(frame["start_lsn"]) == at, f"a frame at {frame['start_lsn']} where {at} is next")
        require(frame_end(frame) > at, f"a frame of no length at {at}")
        at = frame_end(frame)
    require(at == stop, f"frames end at {at}, the scan at {stop}")


def _read_frames(kernel: Any, thing: Any) -> None:
    """Decodes every frame that a scan finds."""
    body, base_lsn, salt, _ = thing
    frames, stop, _ = scan_frames(kernel, body, base_lsn, salt, base_lsn, base_lsn + len(body))
    later = find_frames(kernel, body, base_lsn, salt, stop, base_lsn + len(body))
    require(
        not len(later) or int(later["start_lsn"][0]) > stop - 1, "a frame found before the place that was asked for"
    )
    extent = Extent("segment", base_lsn, memoryview(body), frames)
    refused: BaseException | None = None
    for frame in frames:
        if int(frame["kind"]) in _DECODED:
            try:
                _check_entry(decode_entry(extent, frame, frame_end(frame), _identity()))
            except WalError as error:
                refused = error
    if refused is not None:
        raise refused


_DECODED = (1, 2, 3, 4, 16, 18)


def _check_entry(entry: Any) -> None:
    if isinstance(entry, WalEntry.Batch):
        if entry.vectors is not None:
            require(len(entry.vectors) == len(entry.ids), f"{len(entry.vectors)} vectors for {len(entry.ids)} ids")
            require(not entry.vectors.flags.writeable, "vectors of the log can be written to")
        require(entry.metadata is None or len(entry.metadata) == len(entry.ids), "metadata of other rows")
    elif getattr(entry, "vector", None) is not None:
        require(entry.vector.ndim == 1 and not entry.vector.flags.writeable, "a vector of the log can be written to")


def _make_rows(rng: random.Random) -> Input:
    stride = rng.choice((64, 64, 128, hostile_int(rng, 64)))
    row_bytes = rng.choice((16, 64, stride, hostile_int(rng, 64, 64)))
    high = rng.choice((0, 1, 8, 40))
    count = rng.choice((0, 1, 1, 2, 5))
    rows = [hostile_row(rng, high) if rng.random() < 0.4 else rng.randrange(max(1, high)) for _ in range(count)]
    source = rng.choice((0, 64, 1000))
    offsets = [hostile_row(rng, source) if rng.random() < 0.4 else rng.randrange(max(1, source)) for _ in range(count)]
    thing = (stride, row_bytes, 64 * high - rng.choice((0, 0, 1)) if high else 0, rows, source, offsets)
    return Input(thing, repr(thing).encode(), 64 * high + source + 16 * count)


def _read_rows(kernel: Any, thing: Any) -> None:
    stride, row_bytes, size, rows, source, offsets = thing
    numbers, places = np.array(rows, np.int64), np.array(offsets, np.int64)
    seeds_, outs = np.arange(len(rows), dtype=np.uint32), []
    for one in (kernel, reference):
        guarded = one.NAME == "c"
        target = _guarded(0, bytes(size)) if guarded else memoryview(bytearray(size))
        origin = _guarded(1, bytes(range(200)) * 5)[:source] if guarded and source else bytes(range(200)) * 5
        out = np.zeros(len(rows), np.uint32)
        answer: list[Any] = []
        for call in (
            lambda o=one, s=origin, t=target: o.gather(memoryview(s)[:source], places, row_bytes, t, numbers, stride),
            lambda o=one, t=target, out=out: o.row_checksums(t, numbers, row_bytes, stride, seeds_, out),
        ):
            try:
                call()
                answer.append("done")
            except (ValueError, OverflowError):
                answer.append("refused")
        outs.append((answer, bytes(target), out.tobytes()))
    require(outs[0] == outs[1], f"the kernels differ: {outs[0][0]} and {outs[1][0]}")
    if "refused" in outs[0][0]:
        raise ValueError


# -- directories --------------------------------------------------------------------------------------------------


def _make_image(rng: random.Random) -> Input:
    seed = rng.choice([one for one in _owned() if any("/image-" in path for path in one.files)])
    files = {path: content for path, content in seed.files.items() if path.startswith(DATA)}
    chance = rng.random()
    if chance < 0.75:
        mutated_image(rng, files)
    elif chance < 0.9:
        mutated_control(rng, files, *CONTROLS[1])
    else:
        path = rng.choice(sorted(files))
        files[path] = damaged(rng, files[path])
    return _files_input(files)


def _read_image(kernel: Any, files: Files) -> None:
    loaded = load_checkpoint(FrozenDisk(files), DATA, writable=False)  # type: ignore[arg-type]
    if loaded is not None:
        _check_loaded(loaded)


def _check_loaded(loaded: Loaded) -> None:
    state, slot = loaded.state, loaded.control.current
    ids = state.ids()
    rows = [state.directory.get(id) for id in ids]
    require(len(rows) == slot.live_rows, f"{len(rows)} ids, {slot.live_rows} said")
    require(len(set(rows)) == len(rows), "two ids in one row")
    require(all(0 <= row < slot.rows_high for row in rows), f"rows outside of {slot.rows_high}")
    require(len(loaded.matrix.view) >= slot.rows_high * loaded.matrix.stride, "rows beyond the matrix")
    for id in ids:
        entry = state.get(id)
        require(entry is not None and 0 <= entry.lsn <= loaded.redo_lsn, f"id {id!r} with another LSN than its row")
        require(type(id) is int or 1 <= len(str(id).encode()) <= 65_535, "an id that nobody could have written")


def _make_wal(rng: random.Random) -> Input:
    files = hostile_files(rng, rng.choice(seeds()))
    return _files_input({path: content for path, content in files.items() if path.startswith(WAL)})


def _read_wal(kernel: Any, files: Files) -> None:
    disk: Any = FrozenDisk(files)
    control = open_control(disk, WAL)
    if control is None:
        return
    judged = survey(disk, kernel, WAL, control)
    identity = control.identity
    size = identity.segment_bytes
    numbers = [info.number for info in judged.segments]
    require(numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, f"segments {numbers}")
    least = control.oldest_lsn - (DATA_OFFSET + FOOTER_BYTES)  # a log may end where a segment does, and begin behind it
    require(judged.end_lsn >= least, f"a log from {control.oldest_lsn} to {judged.end_lsn}")
    next_lsn = judged.end_lsn if judged.resume else data_start(numbers[-1] + 1 if numbers else 0, size)
    cursor = kernel.Cursor(memoryview(bytearray(BLOCK_BYTES)), size, identity.dtype, identity.dimension, True)
    cursor.start(next_lsn)
    index = build_index(kernel, Workers(disk), judged, control.oldest_lsn, control.oldest_lsn)
    lsns = index.ordered.lsns.tolist() if index.ordered else []
    require(lsns == sorted(lsns), f"entries out of order: {lsns}")
    before = 0
    extents = partial(read_extents, disk, kernel, WAL, identity)
    for entry in read_entries(extents, identity, control.oldest_lsn, None, judged.end_lsn):
        require(before <= entry.lsn <= judged.end_lsn, f"an entry with LSN {entry.lsn} after {before}")
        before = entry.lsn
        _check_entry(entry)


def _make_store(rng: random.Random) -> Input:
    return _files_input(hostile_files(rng, rng.choice(_owned() if rng.random() < 0.8 else seeds())))


def _make_log(rng: random.Random) -> Input:
    chosen = [seed for seed in seeds() if not seed.owned] if rng.random() < 0.95 else seeds()
    return _files_input(hostile_files(rng, rng.choice(chosen)))


def _read_store_read_only(kernel: Any, files: Files) -> None:
    with mmwal.open(config=config(kernel.NAME), disk=FrozenDisk(files), read_only=True) as store:  # type: ignore[arg-type]
        _contents(store)


def _read_store(kernel: Any, files: Files) -> None:
    """Opens a store for writing, writes to it, and opens it again."""
    disk = simulated(files)
    with mmwal.open(config=config(kernel.NAME), disk=disk) as store:
        before = _contents(store)
        dimension = store._state.matrix.dimension if store._state else DIMENSION
        lsn = store.upsert("a new id", np.ones(dimension, store._state.matrix.dtype if store._state else np.float32))
        require(all(lsn > seen for _, _, seen in before.values()), "a new entry with an LSN of the past")
    _same(before, disk, kernel)


def _recover(kernel: Any, files: Files) -> None:
    disk = simulated(files)
    with CrashRecoveryManager(RecoveryConfig(wal_dir=WAL, data_dir=DATA), disk=disk).recover() as store:
        before = _contents(store)
    _same(before, disk, kernel)


def _same(before: dict[Any, Any], disk: Any, kernel: Any) -> None:
    with mmwal.open(config=config(kernel.NAME), disk=disk, read_only=True) as store:
        after = _contents(store)
        after.pop("a new id", None)
        before.pop("a new id", None)
        require(after == before, f"{len(before)} ids before, {len(after)} ids after, not the same")


def _contents(store: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for id in store.ids():
        try:
            record = store.get(id)
        except MetadataError:  # it is read when it is asked for
            found[id] = (b"", "unreadable", 0)
            continue
        require(record is not None and record.id == id, f"id {id!r} is listed and not there")
        found[id] = (record.vector.tobytes(), repr(record.metadata), record.lsn)
    require(len(found) == len(store), f"{len(store)} ids, {len(found)} different")
    if store._state is not None and found:
        query = np.ones(store._state.matrix.dimension, np.float32)
        with np.errstate(all="ignore"):
            try:
                hits = store.search(query, k=3)
            except MetadataError:
                return found
        require(len(hits) == min(3, len(found)), f"{len(hits)} hits among {len(found)} ids")
    return found


def _read_log(kernel: Any, files: Files) -> None:
    """Opens a log for writing, reads it, writes to it, and opens it again."""
    disk = simulated(files)
    log_config = config(kernel.NAME)
    refused: WalError | None = None
    with WalManager(log_config, disk=disk) as wal:
        try:
            before = [entry.lsn for entry in wal.replay()]
            require(before == sorted(before), "entries out of order")
        except WalError as error:
            refused = error
        dimension = wal._log.dimension or DIMENSION
        fits = (
            dimension * _dtype(wal).itemsize < wal._log.identity.segment_bytes
        )  # else the vector is what takes memory
        added = [wal.log_insert("a new id", np.ones(dimension, _dtype(wal)))] if fits else []
    if refused is not None:
        raise refused
    with WalManager(log_config, disk=disk) as wal:
        require([entry.lsn for entry in wal.replay()] == [*before, *added], "other entries after a clean close")


def _read_path(kernel: Any, files: Files) -> None:
    """Opens a log for reading, and every segment of it by itself."""
    refused: WalError | None = None
    for path in (WAL, *segments_of(files)):
        try:
            with WalManager.new_from_path(path, kernel=kernel.NAME, disk=FrozenDisk(files)) as wal:  # type: ignore[arg-type]
                lsns = [entry.lsn for entry in wal.replay()]
            require(lsns == sorted(lsns), f"entries out of order in {path}")
        except WalError as error:
            refused = error
    if refused is not None:
        raise refused


def _dtype(wal: WalManager) -> Any:
    from mmwal.kernel.interface import DTYPES

    return DTYPES[wal._log.identity.dtype]


# -- what inputs are made of --------------------------------------------------------------------------------------


@cache
def _owned() -> list[Seed]:
    return [seed for seed in seeds() if seed.owned]


@cache
def _segments() -> list[tuple[str, bytes]]:
    return [(path, seed.files[path]) for seed in seeds() for path in segments_of(seed.files)]


@cache
def _identity() -> LogIdentity:
    control = open_control(FrozenDisk(seeds()[0].files), WAL)  # type: ignore[arg-type]
    assert control is not None
    return control.identity


@cache
def _frames() -> list[Frame]:
    found = []
    for path, content in _segments():
        info = inspect_segment(FrozenDisk({path: content}), WAL, _identity(), int(path[-20:-4], 16))  # type: ignore[arg-type]
        if info is not None:
            found += [frame for frame in frames_of(content, info.base_lsn, info.salt) if frame.size() <= 2048]
    return found


def _check_position(identity: LogIdentity, lsn: int) -> None:
    size = identity.segment_bytes
    number = (lsn - 1) // size
    require(
        lsn % 64 == 0 and data_start(number, size) <= lsn <= data_end(number, size) < 1 << 62,
        f"the control file names position {lsn}",
    )


@cache
def _room(which: int) -> tuple[memoryview, int]:
    """Returns memory with a page behind it that must not be touched, and its size."""
    size = 1 << 16
    memory = mmap.mmap(-1, size + _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address + size, _PAGE, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    return memoryview(memory), size


def _guarded(which: int, content: bytes) -> memoryview:
    """Returns a writable copy of some bytes that ends where a page ends that must not be touched.

    Valid until the next call with the same number.
    """
    memory, size = _room(which)
    view = memory[size - len(content) : size]
    view[:] = content
    return view


_FORMAT = (ValueError,)
_TYPED = (WalError,)
_OPENING_BYTES = 12 << 20
STRUCTURES = {
    one.name: one
    for one in (
        Structure("ids", 28, _make_ids, _read_ids, _FORMAT),
        Structure("metadata-block", 28, _make_metadata_block, _read_metadata_block, _FORMAT),
        Structure("metadata", 32, _make_metadata, _read_metadata, (MetadataError,)),
        Structure("control", 32, _make_control, _read_control, _TYPED),
        Structure("segment", 40, _make_segment, _read_segment, _TYPED),
        Structure("scan", 60, _make_frames, _read_scan, _FORMAT),
        Structure("frames", 48, _make_frames, _read_frames, _TYPED, 6 << 20),
        Structure("rows", 32, _make_rows, _read_rows, _FORMAT),
        Structure("image", 18, _make_image, _read_image, _TYPED, 1 << 20),
        Structure("wal", 4, _make_wal, _read_wal, _TYPED, _OPENING_BYTES),
        Structure("open-read-only", 1, _make_store, _read_store_read_only, _TYPED, _OPENING_BYTES),
        Structure("open", 1, _make_store, _read_store, _TYPED, _OPENING_BYTES),
        Structure("open-log", 1, _make_log, _read_log, _TYPED, _OPENING_BYTES),
        Structure("new-from-path", 1, _make_log, _read_path, _TYPED, _OPENING_BYTES),
        Structure("recover", 1, _make_store, _recover, _TYPED, _OPENING_BYTES),
    )
}
