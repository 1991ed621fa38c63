"""Power cuts on real file systems: crash images made from a log of every write to a block device, then recovered.

    tools/blocks.py --file-system ext4 --images 2000 --workers 2      exit code 1 at the first wrong answer
    tools/blocks.py --prove                                           known mutants must be found, the package not
    tools/blocks.py --replay DIRECTORY                                the image that a failing run kept, again

A process writes to a store, or to a log alone, on ext4, xfs or btrfs, is killed or closes, and opens it again. Under
the file system QEMU notes every write and flush in order (`blklogwrites`). Acknowledgements are marked in the same log,
by a write beyond the file system and without a flush. From each point of it images are built: everything written, or
any subset of what was written since the last flush, or single sectors of that. Each is mounted, which replays the file
system's journal, recovered and compared with what had been promised by then (`history.py`). Some images are written
on, and cut again: recovery on a crash image lies in the next block log.

JSON: file_system, images (recovered), distinct (by content), nested (share from a block log that began with a crash
image), lost, phantom, refused, unmountable (the file system itself gave up), stories, seconds, images_per_second,
violation (kind, problem, kept: the directory to replay) or null, skipped (a reason, or null). Needs root, QEMU's
storage daemon, FUSE and mkfs; without them it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # forks come from here: no threads
sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.errors import DurabilityWarning, OpenError
from tools import devices
from tools.devices import MIB, SIZES, Skip
from tools.forks import in_child
from tools.history import Wrong, check, look, new_truth, open_handle, write_on

KINDS = ("ext4", "xfs", "btrfs")
IMAGES_A_STORY = 120
MARKS_BYTES = MIB
_BLOCK, _SECTOR = 4096, 512
_FLUSH, _FUA, _DISCARD, _MARK = 1, 2, 4, 8
_LOG_MAGIC = 0x6A736677736872
_MARK_LAYOUT = struct.Struct("<8s6Q")  # magic, returned, LSN of the last, durable LSN, exposed, released LSN, begun
_MARK_MAGIC = b"MMWALACK"
_TELL = struct.Struct("<6Q")
_BTRFS_SUPERBLOCKS = ((64 << 10, 68 << 10), (64 << 20, (64 << 20) + 4096))  # one sector to a btrfs device
_RECOVERY_S = 60


@dataclass
class Promise:
    """What was promised at a point of the block log: writes that are durable, writes that had begun."""

    durable: int = 0
    begun: int = 0
    released_lsn: int = 0


@dataclass
class Event:
    """A write (``data``; None: zeros), a flush, or a mark."""

    offset: int = 0
    length: int = 0
    data: bytes | None = None
    flush: bool = False
    mark: tuple[int, ...] | None = None


@dataclass
class Story:
    """One block log: what the device held before, what happened to it, what the writer was told."""

    what: str
    kernel: str
    sync_interval_ms: int
    seed: int
    before: bytearray
    events: list[Event]
    lsns: list[int]
    start: Promise  # what the image before promised
    nested: bool


@dataclass
class Report:
    """The sums of a run."""

    file_system: str
    images: int = 0
    distinct: int = 0
    nested_images: int = 0
    lost: int = 0
    phantom: int = 0
    refused: int = 0
    unmountable: int = 0
    stories: int = 0
    seconds: float = 0.0
    violation: dict[str, Any] | None = None
    skipped: str | None = None
    variants: dict[str, int] = field(default_factory=dict)


# ---- writing


def tell_story(
    folder: Path, kind: str, seed: int, number: int, base: Story | None, image: Any, only: dict[str, Any]
) -> Story:
    """Runs a writer, in some lives, on a logged disk; ``base`` and ``image``: on a crash image of that story."""
    rng = random.Random(f"{kind} {seed} {number}")
    raw, log, export = (str(folder / name) for name in ("disk.raw", "disk.log", "disk.export"))
    size = SIZES[kind]
    if base is None:
        what = only.get("what") or rng.choice(("store", "store", "log"))
        kernel = only.get("kernel") or rng.choice(("c", "py"))
        interval, story_seed, start = rng.choice((0, 0, 3, 20)), seed * 1000 + number, Promise()
        devices.make_file_system(kind, raw, size)
    else:
        what, kernel, interval, story_seed = base.what, base.kernel, base.sync_interval_ms, base.seed
        start = image[1]
        Path(raw).write_bytes(image[0])
    os.truncate(raw, size + MARKS_BYTES)
    with open(raw, "rb") as file:
        before = bytearray(file.read(size))
    truth = new_truth(what, story_seed)
    truth.lsns = base.lsns.copy() if base else []
    truth.released_lsn = start.released_lsn
    truth.advance_to(start.durable)
    begun = max(start.begun, truth.count)
    with devices.logged_disk(raw, log, export) as marks, devices.loop_over(export) as loop:
        point = str(folder / "mount")
        with devices.mounted(loop.path, point, kind):
            for _ in range(rng.choice((2, 3))):
                begun = _life(truth, begun, what, f"{point}/x", kernel, interval, marks, size, rng)
    return Story(
        what, kernel, interval, story_seed, before, list(read_log(log, size)), truth.lsns, start, base is not None
    )


def _life(
    truth: Any,
    begun: int,
    what: str,
    directory: str,
    kernel: str,
    interval: int,
    marks: int,
    at: int,
    rng: random.Random,
) -> int:
    """Forks a writer, which opens, checks, writes and dies or closes; ``truth`` follows it. Returns writes begun."""
    writes, ends_by_kill, life_seed = rng.randint(40, 160), rng.random() < 0.6, rng.random()
    board = mmap.mmap(
        -1, _TELL.size + 8 * (truth.count + writes + 4)
    )  # shared: count, begun, found, LSNs from there on
    board.write(_TELL.pack(truth.count, begun, 0, truth.released_lsn, 0, 0))
    error = tempfile.TemporaryFile()  # noqa: SIM115 (the child writes to it)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _write(
                truth,
                begun,
                what,
                directory,
                kernel,
                interval,
                marks,
                at,
                board,
                random.Random(life_seed),
                writes,
                ends_by_kill,
            )
        except BaseException as problem:  # noqa: BLE001 (reported by the parent)
            error.write(f"{type(problem).__name__}: {problem}".encode())
            error.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status not in (0, signal.SIGKILL):
        error.seek(0)
        raise Wrong("refused", f"the writer ended with status {status:#x}: {error.read().decode()[:2000]}")
    error.close()
    count, begun, found, released_lsn, first, _ = _TELL.unpack_from(board, 0)
    if found:
        truth.advance_to(first)
        del truth.lsns[first:]
        truth.lsns += struct.unpack_from(f"<{count - first}Q", board, _TELL.size)
        truth.advance_to(count)
        truth.released_lsn = released_lsn
    return int(max(begun, truth.count))


def _write(
    truth: Any,
    begun: int,
    what: str,
    directory: str,
    kernel: str,
    interval: int,
    marks: int,
    at: int,
    board: mmap.mmap,
    rng: random.Random,
    writes: int,
    ends_by_kill: bool,
) -> int:
    handle = open_handle(what, directory, kernel, interval, runway_segments=rng.choice((1, 2)))
    first = check(truth, look(handle), begun)
    truth.advance_to(first)
    truth.lsns += [0] * (first - len(truth.lsns))
    del truth.lsns[first:]
    state = {"exposed": first}

    def tell(act: str) -> None:
        begun = truth.count + (act == "write")
        last = truth.lsns[-1] if truth.lsns else 0
        struct.pack_into(
            "<Q", board, _TELL.size + 8 * max(0, truth.count - first - 1), last if truth.count > first else 0
        )
        _TELL.pack_into(board, 0, truth.count, begun, 1, truth.released_lsn, first, 0)
        if act == "write":
            return  # the mark before said: one more may have begun
        content = _MARK_LAYOUT.pack(
            _MARK_MAGIC, truth.count, last, handle.durable_lsn, state["exposed"], truth.released_lsn, begun + 1
        )
        os.pwrite(marks, content.ljust(_SECTOR, b"\0"), at)
        if act == "pause" and rng.random() < 0.5:
            time.sleep(0.12)  # long enough for an idle mark

    tell("opened")
    write_on(handle, truth, tell, rng, writes)
    if ends_by_kill:
        os.kill(os.getpid(), signal.SIGKILL)
    handle.close()
    state["exposed"] = truth.count
    mark = _MARK_LAYOUT.pack(_MARK_MAGIC, truth.count, truth.lsns[-1], 0, truth.count, truth.released_lsn, truth.count)
    os.pwrite(marks, mark.ljust(_SECTOR, b"\0"), at)
    return 0


def read_log(path: str, size: int) -> Iterator[Event]:
    """Yields what the block log holds, in order."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        magic, version, entries, sector_bytes = struct.unpack_from("<QQQL", content, 0)
        if (magic, version) != (_LOG_MAGIC, 1):
            raise ValueError(f"{path} is no log of block writes")
        at = sector_bytes
        for _ in range(entries):
            sector, sectors, flags, _ = struct.unpack_from("<4Q", content, at)
            at += sector_bytes
            if flags & _MARK:
                raise ValueError(f"{path} has a mark that nobody made")
            if flags & _FLUSH:
                yield Event(flush=True)
            length, offset = sectors * sector_bytes, sector * sector_bytes
            if length == 0:
                continue
            if flags & _DISCARD:
                yield Event(offset, length)
                continue
            data = content[at : at + length]
            at += length
            if offset >= size:
                name, *mark = _MARK_LAYOUT.unpack_from(data)
                if name == _MARK_MAGIC:
                    yield Event(mark=tuple(mark))
                continue
            yield Event(offset, length, data)
            if flags & _FUA:
                yield Event(flush=True)  # at most too much is durable: the file systems here do not rely on FUA


# ---- crash images


class Device:
    """What a device holds, with a digest that follows every write, and the undoing of writes."""

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.touched = {at // _BLOCK for at in range(0, len(content), _BLOCK) if any(content[at : at + _BLOCK])}
        self.digest = 0
        for block in self.touched:
            self.digest ^= self._digest(block)

    def write(self, offset: int, data: bytes) -> bytes:
        """Writes; returns what was there."""
        end = offset + len(data)
        blocks = range(offset // _BLOCK, -(-end // _BLOCK))
        before = bytes(self.content[offset:end])
        if before == data:
            return before
        for block in blocks:
            if block in self.touched:
                self.digest ^= self._digest(block)
        self.content[offset:end] = data
        self.touched.update(blocks)
        for block in blocks:
            self.digest ^= self._digest(block)
        return before

    def store(self, fd: int) -> None:
        """Writes it to an empty memory file, as runs of what was ever written."""
        blocks = sorted(self.touched)
        first = 0
        view = memoryview(self.content)
        for index in range(1, len(blocks) + 1):
            if index == len(blocks) or blocks[index] != blocks[index - 1] + 1:
                start, stop = blocks[first] * _BLOCK, (blocks[index - 1] + 1) * _BLOCK
                os.pwrite(fd, view[start:stop], start)
                first = index

    def _digest(self, block: int) -> int:
        content = self.content[block * _BLOCK : (block + 1) * _BLOCK]
        if not any(content):
            return 0  # whether it was ever written to or not
        return int.from_bytes(
            hashlib.blake2b(content, digest_size=16, key=block.to_bytes(8, "little")).digest(), "little"
        )


VARIANTS = {"all": 40, "none": 20, "some": 15, "all-but-one": 8, "one": 5, "torn": 12}


def survivors(pending: list[Event], variant: str, kind: str, rng: random.Random) -> list[tuple[int, bytes]]:
    """Returns what of the writes since the last flush reached the device, in order."""
    chosen = range(len(pending))
    match variant:
        case "none":
            return []
        case "some":
            share = rng.choice((0.5, 0.1, 0.9))
            chosen = [index for index in chosen if rng.random() < share]  # type: ignore[assignment]
        case "all-but-one" if pending:
            out = rng.randrange(len(pending))
            chosen = [index for index in chosen if index != out]  # type: ignore[assignment]
        case "one" if pending:
            chosen = [rng.randrange(len(pending))]  # type: ignore[assignment]
    found = []
    for index in chosen:
        event = pending[index]
        data = event.data if event.data is not None else bytes(event.length)
        if variant == "torn" and rng.random() < 0.5 and not _atomic(event, kind):
            unit = rng.choice((_SECTOR, _SECTOR, _BLOCK))
            share = rng.choice((0.5, 0.9))
            for at in range(0, len(data), unit):
                if rng.random() < share:
                    found.append((event.offset + at, data[at : at + unit]))
        else:
            found.append((event.offset, data))
    return found


def _atomic(event: Event, kind: str) -> bool:
    """Returns whether a file system takes it for granted that this write is not torn."""
    if kind != "btrfs":
        return False
    return any(start < event.offset + event.length and event.offset < stop for start, stop in _BTRFS_SUPERBLOCKS)


class Cutter:
    """Cuts the power in stories: builds images, recovers each in a child, compares."""

    def __init__(self, folder: Path, kind: str, rng: random.Random, report: Report, keep: Path) -> None:
        self._folder, self._kind, self._rng, self._report, self._keep = folder, kind, rng, report, keep
        self._seen: set[int] = set()
        self.chosen: tuple[bytes, Promise] | None = None  # an image to write on

    def cut(self, story: Story, images: int, deadline: float) -> None:
        """Recovers so many images of a story."""
        points = self._points(story, images)
        device, promise = Device(bytearray(story.before)), Promise(**vars(story.start))
        pending: list[Event] = []
        truth = new_truth(story.what, story.seed)
        truth.lsns = story.lsns
        self.chosen = None
        choose = self._rng.choice(sorted(points)) if points else -1
        for index, event in enumerate(story.events):
            if event.flush:
                for earlier in pending:
                    device.write(earlier.offset, earlier.data if earlier.data is not None else bytes(earlier.length))
                pending = []
            elif event.mark is not None:
                _follow(promise, event.mark, story.lsns)
            else:
                pending.append(event)
            for _ in range(points.get(index, 0)):
                if time.monotonic() > deadline:
                    return
                self._cut_here(story, device, pending, promise, truth, index == choose)

    def _points(self, story: Story, images: int) -> dict[int, int]:
        """Returns where to cut, and how often."""
        events, rng = story.events, self._rng
        weights, pending = [], 0
        for event in events:  # a cut shows most where something is pending, and right after an acknowledgement
            pending = 0 if event.flush else pending + (event.mark is None)
            weights.append((0.3, 1.0)[pending > 0] if event.mark is None else (0.5, 2.0)[pending > 0])
        points: dict[int, int] = {}
        for index in rng.choices(range(len(events)), weights, k=images) if events else []:
            points[index] = points.get(index, 0) + 1
        return points

    def _cut_here(
        self, story: Story, device: Device, pending: list[Event], promise: Promise, truth: Any, choose: bool
    ) -> None:
        variant = self._rng.choices(list(VARIANTS), list(VARIANTS.values()))[0] if pending else "all"
        undo = []
        for offset, data in survivors(pending, variant, self._kind, self._rng):
            undo.append((offset, device.write(offset, data)))
        if device.digest not in self._seen or choose:
            self._seen.add(device.digest)
            if choose:
                self.chosen = (bytes(device.content), Promise(**vars(promise)))
            truth.advance_to(promise.durable)
            truth.released_lsn = promise.released_lsn
            self._report.images += 1
            self._report.distinct = len(self._seen)
            self._report.nested_images += story.nested
            self._report.variants[variant] = self._report.variants.get(variant, 0) + 1
            try:
                recover(self._folder, self._kind, device, story, truth, promise.begun, self._rng.random() < 0.15)
            except Unmountable:
                self._report.unmountable += 1
            except Wrong as wrong:
                setattr(self._report, wrong.kind, getattr(self._report, wrong.kind) + 1)
                kept = keep_case(self._keep, self._kind, device, story, promise, str(wrong))
                self._report.violation = {"kind": wrong.kind, "problem": f"{variant}: {wrong}", "kept": str(kept)}
                raise
        for offset, before in reversed(undo):
            device.write(offset, before)


def _follow(promise: Promise, mark: tuple[int, ...], lsns: list[int]) -> None:
    returned, _, durable_lsn, exposed, released_lsn, begun = mark
    promise.durable = max(promise.durable, exposed)
    while promise.durable < returned and 0 < lsns[promise.durable] <= durable_lsn:
        promise.durable += 1
    promise.begun = max(begun, returned)
    promise.released_lsn = released_lsn


class Unmountable(Exception):
    """The file system refuses an image."""


def recover(folder: Path, kind: str, device: Device, story: Any, truth: Any, begun: int, thoroughly: bool) -> None:
    """Mounts an image, opens what is on it in a child, compares. Raises `Wrong` or `Unmountable`."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, SIZES[kind])
        device.store(fd)
        loop = devices.Loop(fd)
        try:
            try:
                devices.mount(loop.path, str(folder / "image"), kind)
            except OSError as error:
                raise Unmountable(str(error)) from error
            try:
                _recover_in_child(str(folder / "image" / "x"), story, truth, max(begun, truth.count), thoroughly)
            finally:
                devices.unmount(str(folder / "image"))
        finally:
            loop.close()
            if kind == "btrfs":
                devices.forget_btrfs()
    finally:
        os.close(fd)


def _recover_in_child(directory: str, story: Any, truth: Any, begun: int, thoroughly: bool) -> None:
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(_RECOVERY_S)  # then it ends by SIGALRM: a hang
            os.close(out)
            _recover(directory, story, truth, begun, thoroughly)
            code = 0
        except Wrong as wrong:
            os.write(into, json.dumps([wrong.kind, str(wrong)]).encode())
        except (OpenError, OSError) as error:
            os.write(into, json.dumps(["refused", f"{type(error).__name__}: {error}"]).encode())
        except BaseException as error:  # noqa: BLE001 (whatever it is, a user would see it)
            os.write(into, json.dumps(["refused", f"it broke: {error!r}"]).encode())
        finally:
            os._exit(code)
    os.close(into)
    with open(out, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        kind, problem = json.loads(said) if said else ("refused", f"recovery ended with status {status:#x}")
        raise Wrong(kind, problem)


def _recover(directory: str, story: Any, truth: Any, begun: int, thoroughly: bool) -> None:
    handle = open_handle(story.what, directory, story.kernel, story.sync_interval_ms)
    count = check(truth, look(handle), begun)
    if not thoroughly:
        return
    truth = truth.copy()
    truth.advance_to(count)
    truth.lsns = truth.lsns[:count]
    for _ in range(2):  # what was found is there again; what is written now, too
        write_on(handle, truth, lambda act: None, random.Random(count), 12)
        handle.close()
        handle = open_handle(story.what, directory, story.kernel, story.sync_interval_ms)
        if check(truth, look(handle), truth.count) != truth.count:
            raise Wrong("lost", "what was written after recovery")


# ---- what failed, for a person


def keep_case(folder: Path, kind: str, device: Device, story: Story, promise: Promise, problem: str) -> Path:
    """Keeps an image and what was promised of it; `replay` recovers it again."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "image.raw"
    with open(image, "wb") as file:
        file.truncate(SIZES[kind])
        file.flush()
        device.store(file.fileno())
    case = {
        "file_system": kind,
        "what": story.what,
        "kernel": story.kernel,
        "sync_interval_ms": story.sync_interval_ms,
        "seed": story.seed,
        "lsns": story.lsns,
        "promise": vars(promise),
        "problem": problem,
    }
    (folder / "case.json").write_text(json.dumps(case), "utf-8")
    return folder


def replay(kept: Path, folder: Path) -> None:
    """Recovers a kept image again. Raises `Wrong`."""
    case = json.loads((kept / "case.json").read_text("utf-8"))
    device = Device(bytearray((kept / "image.raw").read_bytes()))
    truth = new_truth(case["what"], case["seed"])
    truth.lsns = case["lsns"]
    promise = Promise(**case["promise"])
    truth.advance_to(promise.durable)
    truth.released_lsn = promise.released_lsn
    recover(folder, case["file_system"], device, argparse.Namespace(**case), truth, promise.begun, True)


# ---- runs


def run(kind: str, images: int, seconds: float, seed: int, folder: Path, keep: Path, only: dict[str, Any]) -> Report:
    """Tells stories and cuts them until there were so many distinct images."""
    report, rng = Report(kind), random.Random(f"cut {kind} {seed}")
    (folder / "mount").mkdir()
    (folder / "image").mkdir()
    started = time.monotonic()
    cutter = Cutter(folder, kind, rng, report, keep)
    gc.freeze()  # a child's collector would copy our pages
    base: Story | None = None
    number = 0
    try:
        while report.distinct < images and time.monotonic() - started < seconds:
            story = tell_story(folder, kind, seed, number, base, cutter.chosen, only)
            number += 1
            report.stories += 1
            cutter.cut(story, min(IMAGES_A_STORY, images - report.distinct + 5), started + seconds)
            base = story if cutter.chosen and number % 3 else None
    except Wrong as wrong:
        if report.violation is None:  # the writer itself was refused
            setattr(report, wrong.kind, getattr(report, wrong.kind) + 1)
            report.violation = {"kind": wrong.kind, "problem": f"a writer on {kind}: {wrong}", "kept": None}
    report.seconds = round(time.monotonic() - started, 1)
    return report


def run_workers(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Runs on every worker; returns the sum."""
    kind, workers = arguments.file_system, max(1, arguments.workers)
    share = -(-arguments.images // workers)
    results = []
    for worker in range(workers):
        folder = root / f"worker-{worker}"
        folder.mkdir()
        keep = arguments.keep / f"{kind}-{arguments.seed + worker}"
        only = {"kernel": arguments.kernel, "what": arguments.what}
        call = (kind, share, arguments.seconds, arguments.seed + worker, folder, keep, only)
        results.append(in_child(lambda call=call: vars(run(*call))))
    reports = [result() for result in results]
    whole = vars(Report(kind))
    for report in reports:
        for name, value in report.items():
            if isinstance(value, int):
                whole[name] += value
        for variant, count in report["variants"].items():
            whole["variants"][variant] = whole["variants"].get(variant, 0) + count
    whole["seconds"] = max(report["seconds"] for report in reports)
    whole["violation"] = next((report["violation"] for report in reports if report["violation"]), None)
    whole["nested"] = round(whole.pop("nested_images") / max(1, whole["images"]), 3)
    whole["images_per_second"] = round(whole["images"] / max(0.1, whole["seconds"]), 1)
    return whole


PROVEN = {  # mutants of `mutate.py`: the file system on which, and what of a story, shows them
    "acknowledged_without_sync": "log",
    "acknowledged_without_sync_c": "store",
    "durable_moves_before_the_sync": "log",
    "new_segment_without_directory_sync": "log",
    "sync_one_page_short": "log",
    "old_segment_left_out_of_the_sync": "log",
    "new_segment_without_sync": "log",
    "control_not_synced": "log",
    "identity_renamed_before_sync": "log",
    "checkpoint_without_matrix_sync": "store",
    "image_not_synced_before_the_slot": "store",
}


def prove(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Runs on mutated copies of the package: each mutant must be found."""
    from tools.mutants import MUTANTS
    from tools.mutate import mutated_copy

    found: dict[str, Any] = {}
    known = {mutant.name: mutant for mutant in MUTANTS}
    for mutant in [known[name] for name in arguments.mutants or PROVEN]:
        started = time.monotonic()
        folder = root / mutant.name
        folder.mkdir()
        copy = mutated_copy(mutant.edits, folder)
        kernel = "c" if mutant.name.endswith("_c") else "py"
        command = [sys.executable, "-W", "ignore", str(copy / "tools" / "blocks.py"), "--json", "--kernel", kernel]
        command += ["--file-system", arguments.file_system, "--images", str(arguments.images), "--what"]
        command += [
            PROVEN.get(mutant.name, "store"),
            "--seed",
            str(arguments.seed),
            "--seconds",
            str(arguments.seconds),
        ]
        command += ["--dir", str(folder), "--keep", str(folder / "kept"), "--workers", str(arguments.workers)]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise RuntimeError(f"{mutant.name}: {done.stderr[-2000:]}")
        report = json.loads(done.stdout)
        if report["skipped"]:
            raise Skip(report["skipped"])
        violation = report["violation"]
        found[mutant.name] = {
            "found": violation is not None,
            "images": report["images"],
            "seconds": round(time.monotonic() - started, 1),
            "problem": violation and violation["problem"][:300],
        }
        if not arguments.json:
            word = "found" if violation else "SURVIVED"
            print(
                f"{word:9}{report['images']:6,} images {found[mutant.name]['seconds']:6.1f} s  {mutant.name}",
                flush=True,
            )
            print(f"{'':10}{(found[mutant.name]['problem'] or '')[:150]}", flush=True)
        shutil.rmtree(folder)
    return {"file_system": arguments.file_system, "mutants": found, "skipped": None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file-system", default="ext4", choices=KINDS)
    parser.add_argument("--images", type=int, default=500, help="distinct images, over all workers")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of wall-clock time: end earlier than that")
    parser.add_argument("--seed", type=int, default=1, help="of what is written; when is the machine's own")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kernel", choices=("c", "py"), help="only this one")
    parser.add_argument("--what", choices=("store", "log"), help="only this")
    parser.add_argument("--dir", type=Path, help="where temporary files go; default: the system's")
    parser.add_argument("--keep", type=Path, default=Path("kept-images"), help="where a wrong answer's image goes")
    parser.add_argument("--prove", action="store_true", help="find known mutants; exit code 1 if one survives")
    parser.add_argument("--mutants", nargs="*", help="with --prove: only these, by their names in tools/mutate.py")
    parser.add_argument("--replay", type=Path, metavar="DIRECTORY")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.keep = arguments.keep.absolute()
    warnings.simplefilter("ignore", DurabilityWarning)
    root = Path(tempfile.mkdtemp(prefix="mmwal-blocks-", dir=arguments.dir))
    try:
        kind = arguments.file_system
        if arguments.replay:
            kind = json.loads((arguments.replay / "case.json").read_text("utf-8"))["file_system"]
        devices.need("qemu-storage-daemon", file_systems=(kind,), fuse=True)
        devices.make_mounts_private()
        if arguments.replay:
            return _replayed(arguments.replay, root)
        if arguments.prove:
            report = prove(arguments, root)
            print(json.dumps(report) if arguments.json else "")
            return 0 if all(mutant["found"] for mutant in report["mutants"].values()) else 1
        report = run_workers(arguments, root)
    except Skip as skip:
        report = {**vars(Report(arguments.file_system)), "skipped": str(skip)}
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(report) if arguments.json else _readable(report))
    return 1 if report["violation"] else 0


def _replayed(kept: Path, root: Path) -> int:
    (root / "image").mkdir()
    try:
        replay(kept, root)
    except (Wrong, Unmountable) as error:
        print(error)
        return 1
    print("nothing wrong with this image any more")
    return 0


def _readable(report: dict[str, Any]) -> str:
    lines = [f"{name.replace('_', ' '):20}{value}" for name, value in report.items() if name != "violation"]
    if found := report["violation"]:
        lines += ["", found["problem"]]
        lines += [f"replay: tools/blocks.py --replay {found['kept']}"] if found["kept"] else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
