"""Real faults, one by one: what was done to a store, what its user saw, and whether that was right.

    tools/realfaults.py                     every case; exit code 1 if one is wrong
    tools/realfaults.py --list              their names, and what each needs
    tools/realfaults.py full-disk-ext4      only this one: how to see a wrong one again

Errors of a device (nbdkit), full disks, limits of a process, a stopped and a killed one, files cut, removed or replaced
under us. Each case runs in a child with a mount namespace of its own: what a user would see as a signal is seen as one,
and nothing stays behind. Right means, whatever the case:

* no signal, no hang, and an error that names what is wrong: of the package's tree, or an `OSError`;
* reads go on where the process does; nothing is acknowledged after a failed sync;
* once the fault is gone writing goes on, or the handle says why not and the directory opens again: with every write
  that was acknowledged as durable (or, where the page cache lives, that returned), and nothing that never was.

Not here: kills at random (`kills.py`), power cuts (`blocks.py`), faults at each disk call in turn (the simulator's).

JSON: cases (each with name, fault, done, seen, verdict: right, wrong or skipped, seconds), right, wrong, skipped (the
reason where all of them were, else null), skipped_cases, faults (how many different kinds were injected), seconds.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # forks come from here: no threads
sys.path.append(str(Path(__file__).resolve().parent.parent))

import mmwal
from mmwal.errors import DurabilityWarning, SyncFailedError, UnavailableError, WalError, WalFullError
from tools import devices
from tools.devices import MIB, MS_RDONLY, MS_REMOUNT, SIZES, Skip
from tools.forks import in_child
from tools.history import DIMENSION, SEGMENT_BYTES, Wrong, check, look, new_truth, open_handle, write_on

CASE_S = 120
_FICLONE = 0x40049409
_GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN


@dataclass(frozen=True)
class Case:
    """One fault: its kind, what it needs, and the function that does it, returning (done, seen)."""

    name: str
    fault: str
    act: Callable[[Path], tuple[str, str]]
    programs: tuple[str, ...] = ()
    file_systems: tuple[str, ...] = ()
    root: bool = False
    fuse: bool = False


CASES: list[Case] = []


def case(name: str, fault: str, **needs: Any) -> Callable[[Any], Any]:
    """Enters a function in the table."""

    def enter(act: Any) -> Any:
        CASES.append(Case(name, fault, act, **needs))
        return act

    return enter


# ---- what the cases share


def ensure(fact: object, otherwise: str) -> None:
    if not fact:
        raise Wrong("phantom", otherwise)


class Writer:
    """A store or a log, the truth beside it, and what its user sees."""

    def __init__(
        self, directory: str, what: str = "store", interval: int = 0, kernel: Any = None, seed: int = 1
    ) -> None:
        self.directory, self.what, self.interval, self.kernel = directory, what, interval, kernel
        self.truth = new_truth(what, seed)
        self.begun = 0
        self.tell_to: int | None = None  # a pipe that hears of every write
        self._rng = random.Random(seed)
        self.handle = open_handle(what, directory, kernel, interval)

    def write(self, writes: int) -> Exception | None:
        """Writes on; returns the error that ended it, if any."""

        def tell(act: str) -> None:
            self.begun = self.truth.count + (act == "write")
            if self.tell_to is not None and act == "write":
                os.write(self.tell_to, json.dumps(self.stands()).encode() + b"\n")

        try:
            write_on(self.handle, self.truth, tell, self._rng, writes)
        except (WalError, OSError) as error:
            return error
        return None

    def stands(self) -> dict[str, Any]:
        """Returns how far it came, for another process."""
        return {"lsns": self.truth.lsns, "begun": self.begun, "released": self.truth.released_lsn}

    def write_until_it_fails(self, writes: int) -> Exception:
        error = self.write(writes)
        ensure(error is not None, f"{writes} writes, and no error was seen")
        assert error is not None
        return error

    def still_reads(self) -> None:
        """What had returned is read as before."""
        if self.what == "store":
            check(self.truth, look(self.handle), self.begun)

    def nothing_was_logged(self) -> None:
        """The write that failed left nothing."""
        self.begun = self.truth.count

    def ends(self) -> None:
        with suppress(WalError, OSError):
            self.handle.close()

    def reopens(self, durable: int | None = None) -> int:
        """Opens again: what had returned is there, or at least the first ``durable`` writes. Returns how many."""
        truth = self.truth
        if durable is not None:
            truth = new_truth(self.what, self.truth.seed)
            truth.lsns, truth.released_lsn = self.truth.lsns, self.truth.released_lsn
            truth.advance_to(durable)
        self.handle = open_handle(self.what, self.directory, self.kernel, self.interval)
        count = check(truth, look(self.handle), self.begun)
        truth = truth.copy()
        truth.advance_to(count)
        truth.lsns = [*self.truth.lsns[:count], *[0] * (count - len(self.truth.lsns))]
        self.truth, self.begun = truth, count
        return count

    def reads_at_least_all(self) -> int:
        """A reader, who changes nothing, sees what had returned. Returns how many writes it sees."""
        with mmwal.open(self.directory, read_only=True) as reader:
            return check(self.truth, look(reader), self.begun)

    def goes_on(self, writes: int = 30) -> None:
        """Writes, closes, opens: all of it is there."""
        error = self.write(writes)
        ensure(error is None, f"writing did not go on: {error!r}")
        self.handle.close()
        self.reopens()
        self.handle.close()


def lived(directory: str, act: Callable[[Writer], dict[str, Any]], **settings: Any) -> tuple[Writer, dict[str, Any]]:
    """Runs a writer's life in a child, which ends without closing anything; returns its truth, without a handle.

    ``act`` returns what its user saw. A child that ended by a signal gives ``{"signal": its name}``.
    """
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(out)
            inner = Writer(directory, **settings)
            inner.tell_to = into
            facts = act(inner)
            os.write(into, json.dumps({**inner.stands(), **facts}).encode() + b"\n")
            code = 0
        except BaseException as error:  # noqa: BLE001 (the parent raises it)
            os.write(into, json.dumps({"raised": said(error)}).encode() + b"\n")
        finally:
            os._exit(code)
    os.close(into)
    with open(out, "rb") as told:
        lines = [json.loads(line) for line in told.read().splitlines()]
    _, status = os.waitpid(pid, 0)
    facts = lines[-1] if lines else {}
    ensure("raised" not in facts, str(facts.get("raised")))
    ensure("lsns" in facts, f"the writer ended with status {status:#x} ({_signal(status)})")
    if status:
        facts["signal"] = _signal(status)
    writer = left_behind(directory, facts["lsns"], facts["begun"], **settings)
    writer.truth.released_lsn = facts["released"]
    return writer, facts


def left_behind(
    directory: str, lsns: list[int], begun: int, *, what: str = "store", interval: int = 0, seed: int = 1
) -> Writer:
    """Returns what a writer that is gone left: no handle, only the truth."""
    writer = Writer.__new__(Writer)
    writer.directory, writer.what, writer.interval, writer.kernel, writer.handle = directory, what, interval, None, None
    writer.truth, writer._rng, writer.tell_to = new_truth(what, seed), random.Random(seed + 1), None
    writer.truth.lsns = lsns
    writer.truth.advance_to(len(lsns))
    writer.begun = max(begun, len(lsns))
    return writer


def said(error: BaseException | None) -> str:
    """Returns an error as a row of a table shows it."""
    return "no error" if error is None else f"{type(error).__name__}: {str(error)[:160]}"


def forked(act: Callable[[], object]) -> int:
    """Runs ``act`` in a forked child; returns its exit status as `os.waitpid` gives it: 0, or the signal's number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException as error:  # noqa: BLE001 (printed; the parent sees the code)
            print(f"child: {error!r}", file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


@contextmanager
def file_system(folder: Path, kind: str, size: int | None = None) -> Iterator[str]:
    """Has a new file system mounted; yields where."""
    point = str(folder / "mount")
    with ExitStack() as stack:
        if kind == "tmpfs":
            stack.enter_context(devices.mounted("none", point, "tmpfs", options=f"size={size or 8 * MIB}"))
        else:
            raw = str(folder / "disk.raw")
            devices.make_file_system(kind, raw, size or SIZES[kind])
            loop = stack.enter_context(devices.loop_over(raw))
            stack.enter_context(devices.mounted(loop.path, point, kind))
        yield point


def fill(point: str) -> str:
    """Takes all room that is left; returns the file that has it."""
    path, step = f"{point}/ballast", MIB
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while step >= 512:
            try:
                if os.write(fd, os.urandom(step)) < step:
                    step //= 2
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
    return path


# ---- full disks


def make_room(point: str) -> None:
    """Gives the room back that `fill` took."""
    os.truncate(f"{point}/ballast", 0)
    os.sync()


def still_full(point: str) -> bool:
    """Returns whether the file system refuses a new file of a segment's size to anybody."""
    path = f"{point}/probe"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(fd, 0, SEGMENT_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno == errno.ENOSPC
    os.unlink(path)
    return False


def patiently(act: Callable[[], Exception | None]) -> Exception | None:
    """Tries again while there is no room: btrfs gives freed blocks back some transactions later, if at all."""
    for _ in range(12):
        try:
            error = act()
        except WalFullError as problem:
            error = problem
        if not isinstance(error, WalFullError):
            return error
        os.sync()
        time.sleep(0.25)
    return error


def _full_disk(folder: Path, kind: str) -> tuple[str, str]:
    with file_system(folder, kind) as point:

        def live(writer: Writer) -> dict[str, Any]:
            writer.write(60)
            fill(point)
            error = writer.write_until_it_fails(4000)
            ensure(isinstance(error, WalFullError), f"expected WalFullError, saw {said(error)}")
            writer.nothing_was_logged()
            writer.still_reads()
            written = writer.truth.count
            make_room(point)
            again = patiently(lambda: writer.write(50))
            stuck = isinstance(again, WalFullError) and still_full(point)
            ensure(again is None or stuck, f"room again, and {said(again)}")
            writer.nothing_was_logged()
            writer.still_reads()
            writer.ends()
            went_on = f"{kind} itself gave no room back" if stuck else "then it went on"
            return {"saw": f"{said(error)}; after {written} writes; {went_on}", "stuck": stuck}

        writer, facts = lived(f"{point}/x", live)
        ensure("signal" not in facts, f"after {writer.truth.count} writes the process ended by {facts.get('signal')}")
        if facts["stuck"]:
            writer.reads_at_least_all()
        else:
            writer.reopens()
            writer.goes_on()
        return "the disk filled up beside the writer; then room was made", str(facts["saw"])


for _kind in ("ext4", "xfs", "btrfs", "tmpfs"):
    case(
        f"full-disk-{_kind}",
        "ENOSPC at allocation of a segment",
        root=True,
        file_systems=() if _kind == "tmpfs" else (_kind,),
    )(lambda folder, kind=_kind: _full_disk(folder, kind))


@case("full-disk-at-creation", "ENOSPC at creation", root=True)
def _full_at_creation(folder: Path) -> tuple[str, str]:
    with file_system(folder, "tmpfs", 2 * MIB) as point:
        ballast = fill(point)
        os.truncate(ballast, os.stat(ballast).st_size - (96 << 10))  # for one segment and no more
        try:
            writer = Writer(f"{point}/x")
            error: Exception | None = writer.write(400)
        except (WalError, OSError) as problem:
            error = problem
        ensure(isinstance(error, WalFullError), f"expected WalFullError, saw {said(error)}")
        os.unlink(ballast)
        Writer(f"{point}/x").goes_on() if not os.path.exists(f"{point}/x/wal/segment-0000000000000000.wal") else None
        return "a store was created where there was room for a segment and no more", said(error)


@case("full-disk-at-checkpoint", "ENOSPC at a checkpoint's image", root=True, file_systems=("ext4",))
def _full_at_checkpoint(folder: Path) -> tuple[str, str]:
    with file_system(folder, "ext4") as point:
        writer = Writer(f"{point}/x", interval=0)
        writer.write(120)
        ballast = fill(point)
        error = None
        for _ in range(200):  # an image or two may still find room in what the files have
            try:
                writer.handle.checkpoint()
            except (WalError, OSError) as problem:
                error = problem
                break
            if writer.write(5):
                break
        ensure(error is None or isinstance(error, (WalFullError, UnavailableError)), f"saw {said(error)}")
        writer.nothing_was_logged()
        writer.still_reads()
        os.unlink(ballast)
        os.sync()
        writer.goes_on()
        return "checkpoints on a full disk; then room was made", f"{said(error)}; then it went on"


def _reflinked(folder: Path, kind: str) -> tuple[str, str]:
    """A backup by reflink shares every block: each first store to a page needs a new one."""
    with file_system(folder, kind) as point:
        writer, _ = lived(f"{point}/x", lambda writer: {"saw": said(writer.write(120))})
        if kind == "btrfs":  # whose files of ours refuse a single reflink, but not a snapshot of all
            subprocess.run(["btrfs", "-q", "subvolume", "snapshot", point, f"{point}/backup"], check=True)
        else:
            os.mkdir(f"{point}/backup")
            for path in [*Path(f"{point}/x/wal").iterdir(), *Path(f"{point}/x/data").iterdir()]:
                with open(path, "rb") as source, open(f"{point}/backup/{path.name}", "wb") as target:
                    fcntl.ioctl(target, _FICLONE, source.fileno())
        os.sync()
        fill(point)

        def work() -> None:
            try:
                again = Writer(f"{point}/x", interval=0)
                again.truth, again.begun = writer.truth, writer.begun
                seen = said(again.write(2000))
            except (WalError, OSError) as error:
                seen = said(error)
            Path(folder / "seen").write_text(seen, "utf-8")

        status = forked(work)
        ensure(status == 0, f"the writer ended with status {status:#x} ({_signal(status)})")
        seen = (folder / "seen").read_text("utf-8")
        ensure(seen.startswith("WalFullError"), f"expected WalFullError, saw {seen}")
        make_room(point)
        writer.begun = writer.truth.count + 2000
        error = patiently(lambda: writer.reopens() and None)
        if error is None:
            count = writer.truth.count
            writer.ends()
        else:
            ensure(still_full(point), f"room again, and {said(error)}")
            count, seen = writer.reads_at_least_all(), f"{seen}; {kind} itself gave no room back"
        return (
            "every file of a killed store was reflinked, the disk filled, the store opened",
            f"{seen}; {count} writes there",
        )


for _kind in ("xfs", "btrfs"):
    case(f"reflinked-then-full-{_kind}", "reflinked segment, full disk", root=True, file_systems=(_kind,))(
        lambda folder, kind=_kind: _reflinked(folder, kind)
    )


# ---- errors of the device


@contextmanager
def faulty(
    folder: Path, kind: str, *filters: str, direct: bool = False
) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """Has a file system on nbdkit's filters; yields where, the trigger file, and what mounts it anew."""
    raw, trigger = str(folder / "disk.raw"), folder / "trigger"
    devices.make_file_system(kind, raw, SIZES[kind])
    point = str(folder / "mount")
    words = [word.replace("TRIGGER", str(trigger)) for word in filters]
    with devices.filtered_disk(str(folder), raw, *words) as export, devices.loop_over(export, direct=direct) as loop:
        os.makedirs(point)

        def mount_again() -> None:
            devices.unmount(point)
            loop.forget()
            devices.mount(loop.path, point, kind)

        devices.mount(loop.path, point, kind)
        try:
            yield point, trigger, mount_again
        finally:
            trigger.unlink(missing_ok=True)
            with suppress(OSError):
                devices.unmount(point, lazily=True)


_WRITE_ERRORS = ("--filter=error", "error-pwrite=EIO", "error-pwrite-rate=100%", "error-pwrite-file=TRIGGER")
_READ_ERRORS = ("--filter=error", "error-pread=EIO", "error-pread-rate=100%", "error-pread-file=TRIGGER")


def _failing_sync(folder: Path, kind: str) -> tuple[str, str]:
    with faulty(folder, kind, *_WRITE_ERRORS) as (point, trigger, mount_again):

        def live(writer: Writer) -> dict[str, Any]:
            writer.write(80)
            writer.handle.sync()
            trigger.touch()
            error = writer.write_until_it_fails(2000)
            durable = writer.truth.count
            ensure(isinstance(error, UnavailableError), f"expected SyncFailedError, saw {said(error)}")
            unknown = writer.begun
            writer.still_reads()
            trigger.unlink()  # from here on the device works, and says that every sync succeeds
            for _ in range(3):
                later = writer.write_until_it_fails(1)
                ensure(isinstance(later, UnavailableError), f"after a failed sync a write gave {said(later)}")
            try:
                writer.handle.sync()
            except SyncFailedError:
                pass
            else:
                ensure(False, "a sync after a failed one succeeded")
            writer.begun = unknown  # the one whose outcome is not known
            writer.ends()
            return {"saw": said(error)[:100], "durable": durable}

        writer, facts = lived(f"{point}/x", live)
        mount_again()  # the cache is gone: only what is on the disk counts
        count = writer.reopens(facts["durable"])
        writer.goes_on()
        return (
            "the first sync met EIO; then the device worked again; the file system was mounted anew",
            f"{facts['saw']}; {count} of {facts['durable']} acknowledged writes there",
        )


for _kind in ("ext4", "xfs", "btrfs"):
    case(
        f"eio-on-sync-{_kind}",
        "msync EIO once, then success for ever" if _kind != "btrfs" else "EIO, then forced read-only (EROFS)",
        root=True,
        fuse=True,
        programs=("nbdkit", "nbdfuse"),
        file_systems=(_kind,),
    )(lambda folder, kind=_kind: _failing_sync(folder, kind))


@case("eio-on-sync-reopened-in-cache", "clean pages after a failed msync", root=True, fuse=True,
      programs=("nbdkit", "nbdfuse"), file_systems=("ext4",))  # fmt: skip
def _failing_sync_reopened(folder: Path) -> tuple[str, str]:
    """No eviction in between: the page cache shows what the disk does not have. What opening shows must then stay."""
    with faulty(folder, "ext4", *_WRITE_ERRORS) as (point, trigger, mount_again):

        def live(writer: Writer) -> dict[str, Any]:
            writer.write(60)
            writer.handle.sync()
            durable = writer.truth.count
            writer.write(1)
            trigger.touch()
            try:
                writer.handle.sync()
            except (WalError, OSError) as error:
                trigger.unlink()
                writer.begun = writer.truth.count
                return {"saw": said(error)[:80], "durable": durable}
            raise Wrong("lost", "the sync succeeded")

        settings: dict[str, Any] = {"what": "log", "interval": 5000}
        writer, facts = lived(f"{point}/x", live, **settings)

        def look_again() -> dict[str, Any]:
            try:
                return {"shown": writer.reopens(facts["durable"]), "refused": ""}
            except OSError as problem:  # the file system has had enough
                return {"shown": facts["durable"], "refused": f"; opening in that cache: {said(problem)[:80]}"}

        again = in_child(look_again)()
        mount_again()
        count = writer.reopens(again["shown"])
        writer.goes_on()
        return (
            "a sync met EIO, the log was opened again in the same cache, then the cache was lost",
            f"{facts['saw']}{again['refused']}; {again['shown']} writes shown, {count} on disk",
        )


@case("eio-on-directory-sync", "fsync EIO on a directory", root=True, fuse=True, programs=("nbdkit", "nbdfuse"),
      file_systems=("ext4",))  # fmt: skip
def _failing_directory(folder: Path) -> tuple[str, str]:
    with faulty(folder, "ext4", *_WRITE_ERRORS) as (point, trigger, mount_again):
        os.makedirs(f"{point}/y")
        os.sync()

        def create() -> str:
            try:
                Writer(f"{point}/y/x")
            except (WalError, OSError) as error:
                return said(error)
            return ""

        trigger.touch()
        seen = in_child(create)()
        trigger.unlink()
        ensure(seen, "a store was created, and nothing of it can be on disk")
        mount_again()
        Writer(f"{point}/y/x").goes_on()
        return "every write to the device failed while a store was created", f"{seen}; later it was created"


@case("eio-on-read", "bad block on read", root=True, fuse=True, programs=("nbdkit", "nbdfuse"), file_systems=("ext4",))
def _failing_reads(folder: Path) -> tuple[str, str]:
    with faulty(folder, "ext4", *_READ_ERRORS, direct=True) as (point, trigger, mount_again):
        writer, _ = lived(f"{point}/x", lambda writer: {"saw": said(writer.write(150))})
        seen = []
        for hidden in ("wal/segment", "data/image", "wal/control", "data/control", "data/matrix"):
            mount_again()
            for path in [*Path(f"{point}/x/wal").iterdir(), *Path(f"{point}/x/data").iterdir()]:
                path.stat()
                if hidden not in str(path):
                    path.read_bytes()  # in the cache now, and spared
            trigger.touch()
            status, told = _opened_in_child(folder, writer)
            trigger.unlink()
            ensure(status == 0, f"no block of {hidden} can be read, and opening ended by {_signal(status)}")
            ensure(told != "no error", f"the store opened and was read, and no block of {hidden} can be read")
            ensure("/mount/x/" in told, f"the error names no file of the store: {told}")
            seen.append(f"{hidden}: {told.split(':')[0]}")
        mount_again()
        writer.reopens()
        writer.goes_on()
        return (
            "no block of some files could be read while the store was opened",
            f"{'; '.join(seen)}; later all was there",
        )


@case("slow-device", "sync delayed", root=True, fuse=True, programs=("nbdkit", "nbdfuse"), file_systems=("ext4",))
def _slow_device(folder: Path) -> tuple[str, str]:
    interval_ms = 100
    with faulty(folder, "ext4", "--filter=delay", "wdelay=20ms") as (point, _, _):
        writer = Writer(f"{point}/x", what="log", interval=interval_ms)
        log, told = writer.handle, []
        longest = 0.0
        deadline = time.monotonic() + 4
        vector = [0.0] * DIMENSION
        number = 0
        while time.monotonic() < deadline:
            told.append((time.monotonic(), log.log_insert(number, vector)))
            number += 1
            time.sleep(0.002)
            durable = log.durable_lsn
            now = time.monotonic()
            while told and told[0][1] <= durable:
                longest = max(longest, now - told.pop(0)[0])
            ensure(not told or now - told[0][0] < 5, "a write is not durable after 5 s")
        sync_ms = log.get_metrics().max_sync_latency_ms
        window_ms = interval_ms + 2 * sync_ms  # it came while one sync ran, and waits for the next
        ensure(longest * 1000 <= window_ms + 250, f"{longest * 1000:.0f} ms until durable; promised {window_ms:.0f} ms")
        log.close()
        return (
            "every write to the device took 20 ms longer",
            f"{number} writes, the longest sync {sync_ms:.0f} ms, until durable at most {longest * 1000:.0f} ms",
        )


@case("read-only-remount", "EROFS", root=True, file_systems=("ext4",))
def _read_only(folder: Path) -> tuple[str, str]:
    with file_system(folder, "ext4") as point:

        def live(writer: Writer) -> dict[str, Any]:
            writer.write(60)
            writer.handle.close()
            return {}

        writer, _ = lived(f"{point}/x", live)
        devices.mount("none", point, "ext4", MS_REMOUNT | MS_RDONLY)
        status, seen = _opened_in_child(folder, writer)
        ensure(status == 0 and seen != "no error", f"a writer where nothing can be written: {seen} {_signal(status)}")
        ensure("Read-only file system" in seen, f"saw {seen}")
        try:
            with mmwal.open(f"{point}/x", read_only=True) as reader:
                check(writer.truth, look(reader), writer.begun)
            read = "a reader saw everything"
        except (WalError, OSError) as problem:
            read = f"a reader saw {said(problem)}"
        devices.mount("none", point, "ext4", MS_REMOUNT)
        writer.reopens()
        writer.goes_on()
        return "the file system was remounted read-only between two lives", f"{seen}; {read}; later it went on"


@case("file-system-shut-down", "EIO from every call", root=True, file_systems=("xfs",))
def _shut_down(folder: Path) -> tuple[str, str]:
    """What a pulled cable looks like: the file system gives up under the writer.

    The first store to a page that was synced before is a signal then, and no program with a mapping can prevent that.
    """
    with file_system(folder, "xfs") as point:

        def live(writer: Writer) -> dict[str, Any]:
            writer.write(60)
            directory = os.open(point, os.O_RDONLY)
            fcntl.ioctl(directory, _GOING_DOWN, struct.pack("<I", 2))  # without the file system's own log
            return {"saw": said(writer.write_until_it_fails(2000))}

        writer, facts = lived(f"{point}/x", live)
        seen = facts.get("saw") or f"the process ended by {facts['signal']}"
        ensure(facts.get("signal") in (None, "SIGBUS"), seen)
        durable = writer.truth.count
        mounts = Path("/proc/self/mounts").read_text("utf-8").splitlines()
        source = next(line.split()[0] for line in mounts if f" {os.path.realpath(point)} " in line)
        devices.unmount(point)
        devices.mount(source, point, "xfs")
        count = writer.reopens(durable)
        writer.goes_on()
        return (
            "the file system shut itself down under the writer, and was mounted anew",
            f"{seen[:100]}; opened again: {count} of {durable} acknowledged writes there",
        )


# ---- limits of the process


@contextmanager
def limited(which: int, value: int) -> Iterator[None]:
    old = resource.getrlimit(which)
    resource.setrlimit(which, (value, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, old)


@case("file-size-limit", "EFBIG")
def _file_size(folder: Path) -> tuple[str, str]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = Writer(str(folder / "x"), interval=0)
    writer.write(60)
    with limited(resource.RLIMIT_FSIZE, 40 << 10):  # less than a segment
        error = writer.write_until_it_fails(4000)
        ensure(isinstance(error, WalFullError), f"expected WalFullError, saw {said(error)}")
        writer.nothing_was_logged()
        writer.still_reads()
    writer.write(30)
    writer.goes_on()
    return "no file might exceed 40 KiB; then the limit was lifted", f"{said(error)}; then it went on"


@case("short-write", "short write, then EFBIG")
def _short_write(folder: Path) -> tuple[str, str]:
    """A write across the limit writes a part: an image of a checkpoint is cut in its middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = Writer(str(folder / "x"), interval=0)
    writer.write(200)
    writer.handle.checkpoint()
    writer.write(20)
    sizes = [
        path.stat().st_size for path in (folder / "x" / "data").iterdir() if path.name not in ("matrix", "control")
    ]
    with limited(resource.RLIMIT_FSIZE, max(sizes) + 100):
        try:
            writer.handle.checkpoint()
            ensure(False, "a checkpoint was taken whose image cannot be whole")
        except (WalError, OSError) as problem:
            error = problem
        ensure(isinstance(error, WalError), f"expected an error of the package, saw {said(error)}")
        writer.still_reads()
    writer.nothing_was_logged()
    seen = "then it went on"
    try:
        writer.handle.checkpoint()
    except UnavailableError:
        writer.ends()
        writer.reopens()
        seen = "opened again, all was there"
    writer.goes_on()
    return "a checkpoint's image met the file size limit in the middle of a write", f"{said(error)}; {seen}"


@case("no-descriptors", "EMFILE")
def _no_descriptors(folder: Path) -> tuple[str, str]:
    writer = Writer(str(folder / "x"), interval=0)
    writer.write(60)
    with limited(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1):
        error = writer.write_until_it_fails(4000)
        ensure(isinstance(error, (UnavailableError, OSError)), f"saw {said(error)}")
        writer.still_reads()
    durable = writer.truth.count
    writer.ends()
    count = writer.reopens(durable)
    writer.goes_on()
    return (
        "the process ran out of descriptors; then it had some",
        f"{said(error)}; opened again: {count} of {durable} there",
    )


@case("no-address-space", "ENOMEM at mmap")
def _no_address_space(folder: Path) -> tuple[str, str]:
    writer = Writer(str(folder / "x"), interval=0)
    writer.write(60)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    with limited(resource.RLIMIT_AS, pages * resource.getpagesize() + (16 << 10)):
        error: BaseException
        try:
            error = writer.write_until_it_fails(20_000)
        except MemoryError as problem:
            error = problem
        said_then = said(error)
    durable = writer.truth.count
    writer.still_reads()
    writer.ends()
    count = writer.reopens(durable)
    writer.goes_on()
    return "the process could map nothing more; then it could", f"{said_then}; opened again: {count} of {durable} there"


@case("stopped", "SIGSTOP, SIGCONT")
def _stopped(folder: Path) -> tuple[str, str]:
    """A writer that stands still for 3 s beside a reader, then goes on."""
    directory = str(folder / "x")
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            writer = Writer(directory, interval=100)
            error = None
            for _ in range(400):
                error = error or writer.write(5)
                os.write(into, struct.pack("<Q", writer.truth.count))
                time.sleep(0.005)
            writer.handle.close()
            code = 0 if error is None else 2
        finally:
            os._exit(code)
    os.close(into)
    with open(out, "rb") as told:
        for _ in range(20):
            (count,) = struct.unpack("<Q", told.read(8))
        os.kill(pid, signal.SIGSTOP)
        truth = new_truth("store", 1)
        truth.advance_to(count)
        until, seen = time.monotonic() + 3, set()
        while time.monotonic() < until:
            with mmwal.open(directory, read_only=True) as reader:
                seen.add(check(truth, look(reader), count + 100))
            time.sleep(0.2)
        try:
            Writer(directory)
            ensure(False, "a second writer opened the directory")
        except WalError as error:
            locked = type(error).__name__
        os.kill(pid, signal.SIGCONT)
        rest = told.read()
    _, status = os.waitpid(pid, 0)
    ensure(status == 0, f"the writer ended with status {status:#x}")
    ensure(len(seen) == 1, f"readers beside a writer that stood still saw {sorted(seen)} writes")
    (count,) = struct.unpack("<Q", rest[-8:])
    truth.advance_to(count)
    with mmwal.open(directory, read_only=True) as reader:
        check(truth, look(reader), count)
    return (
        "the writer was stopped for 3 s beside readers, then went on",
        f"readers saw {seen.pop()} writes, a second writer {locked}; {count} writes at the end",
    )


@case("out-of-memory", "OOM kill by a memory limit", root=True)
def _out_of_memory(folder: Path) -> tuple[str, str]:
    group = Path("/sys/fs/cgroup/memory") / f"mmwal-{os.getpid()}"
    limit = "memory.limit_in_bytes"
    if not group.parent.joinpath(limit).exists() and not group.parent.joinpath("memory.usage_in_bytes").exists():
        group, limit = Path("/sys/fs/cgroup") / f"mmwal-{os.getpid()}", "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        raise Skip(f"needs a memory cgroup that it may make: {error}") from error
    try:
        if not (group / limit).exists():
            raise Skip(f"the memory cgroup has no {limit}")
        (group / limit).write_text(str(96 * MIB), "ascii")
        directory, out, into = str(folder / "x"), *os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                (group / "cgroup.procs").write_text(str(os.getpid()), "ascii")
                writer, held = Writer(directory, interval=100), []
                while writer.write(5) is None:
                    os.write(into, struct.pack("<Q", writer.truth.count))
                    if writer.truth.count > 100:
                        held.append(b"x" * MIB)
            finally:
                os._exit(3)
        os.close(into)
        with open(out, "rb") as told:
            content = told.read()
        _, status = os.waitpid(pid, 0)
        ensure(status == signal.SIGKILL, f"the writer ended with status {status:#x}, not by the limit")
        (count,) = struct.unpack("<Q", content[-8:])
        writer = left_behind(directory, [0] * count, count + 6, interval=100)
        found = writer.reopens()
        writer.goes_on()
        return "the kernel killed the writer over a memory limit", f"opened again: {found} of {count} told writes there"
    finally:
        with suppress(OSError):
            group.rmdir()


# ---- files cut, removed, replaced while nobody has them open


def _killed_store(folder: Path) -> Writer:
    """Returns a store whose writer was killed."""
    writer, _ = lived(str(folder / "x"), lambda writer: {"saw": said(writer.write(150))})
    return writer


def _opened_in_child(folder: Path, writer: Writer) -> tuple[int, str]:
    """Opens and reads all of it in a child; returns its status and what its user saw."""

    def work() -> None:
        try:
            handle = open_handle(writer.what, writer.directory, None, writer.interval)
            check(writer.truth, look(handle), writer.begun)
            seen = "no error"
        except (WalError, OSError) as error:
            seen = said(error)
        (folder / "seen").write_text(seen, "utf-8")

    status = forked(work)
    return status, "" if status else (folder / "seen").read_text("utf-8")


def _refused(folder: Path, writer: Writer, name: str, *, mended: Callable[[], None]) -> str:
    """Opening is refused by an error that names the file, in a child; mended, all is there."""
    status, seen = _opened_in_child(folder, writer)
    ensure(status == 0, f"opening ended by {_signal(status)}")
    ensure(seen != "no error", "the store opened as if nothing were wrong")
    ensure(name in seen, f"the error does not name {name}: {seen}")
    mended()
    writer.reopens()
    writer.goes_on()
    return f"{seen}; mended, all was there"


def _segment(writer: Writer, back: int = 0) -> Path:
    """Returns the segment that holds the newest entry, or one so many before it."""
    number = (writer.truth.lsns[-1] - 1) // SEGMENT_BYTES - back
    folder = f"{writer.directory}/wal" if writer.what == "store" else writer.directory
    return Path(folder, f"segment-{number:016x}.wal")


@case("segment-truncated", "truncation by another process")
def _truncated(folder: Path) -> tuple[str, str]:
    writer = _killed_store(folder)
    path = _segment(writer)
    content = path.read_bytes()
    os.truncate(path, 20_000)
    return "another process cut a segment while the store was closed", _refused(
        folder, writer, path.name, mended=lambda: path.write_bytes(content) and None
    )


@case("segment-is-a-link", "symbolic link planted")
def _linked(folder: Path) -> tuple[str, str]:
    writer = _killed_store(folder)
    path = _segment(writer)
    elsewhere = folder / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()

    def mend() -> None:
        ensure(elsewhere.read_bytes() == before, "the file behind the link was written to")
        path.unlink()
        elsewhere.rename(path)

    return "a segment was replaced by a link to itself elsewhere", _refused(folder, writer, path.name, mended=mend)


@case("segment-removed", "missing segment")
def _removed(folder: Path) -> tuple[str, str]:
    """Of a log, which needs every segment. Not its newest: nothing behind it says that it was there."""
    directory, kept = str(folder / "x"), folder / "kept"
    writer, _ = lived(directory, lambda writer: {"saw": said(writer.write(500))}, what="log")
    path = _segment(writer, 1)
    path.rename(kept)
    return "a segment in the middle of a log was deleted by hand", _refused(
        folder, writer, path.name, mended=lambda: kept.rename(path) and None
    )


@case("segment-twice", "duplicate segment")
def _twice(folder: Path) -> tuple[str, str]:
    writer = _killed_store(folder)
    path = _segment(writer)
    number = int(path.stem.split("-")[1], 16)
    second = path.with_name(f"segment-{number + 1:016x}.wal")
    kept = second.read_bytes() if second.exists() else None
    shutil.copy(path, second)
    status, seen = _opened_in_child(folder, writer)
    ensure(status == 0, f"opening ended by {_signal(status)}")
    if not seen.startswith("no error"):
        second.unlink()
        if kept is not None:
            second.write_bytes(kept)
    writer.reopens()
    writer.goes_on()
    return "a segment was copied to the name of the next one", seen


@case("unknown-files", "unknown file")
def _unknown(folder: Path) -> tuple[str, str]:
    writer = _killed_store(folder)
    for name in (
        "wal/.tmp",
        "wal/segment-zz.wal",
        "wal/notes.txt",
        "data/notes.txt",
        "wal/spare-0000000000000000.wal.old",
    ):
        Path(writer.directory, name).write_bytes(b"what is this?")
    Path(writer.directory, "wal/folder").mkdir()
    writer.reopens()
    writer.goes_on()
    left = Path(writer.directory, "wal/notes.txt").exists()
    ensure(left, "a file that is not ours was removed")
    return "files that are none of ours lay in both directories", "ignored, and left where they were"


@case("not-ours-to-write", "EACCES")
def _not_ours(folder: Path) -> tuple[str, str]:
    writer = _killed_store(folder)
    os.chmod(folder / "x" / "wal", 0o500)

    def work() -> None:
        if os.geteuid() == 0:
            os.chmod(folder, 0o755)
            for path in [folder / "x", *(folder / "x").rglob("*")]:
                os.chown(path, 65534, 65534)
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_handle("store", writer.directory, None, 0)
            seen = "no error"
        except (WalError, OSError) as error:
            seen = said(error)
        os.write(into, seen.encode())

    out, into = os.pipe()
    status = forked(work)
    os.close(into)
    with open(out, "rb") as told:
        seen = told.read().decode()
    ensure(status == 0, f"opening ended with status {status:#x}")
    ensure(seen.startswith("PermissionError"), f"expected PermissionError, saw {seen}")
    if os.geteuid() == 0:
        for path in [folder / "x", *(folder / "x").rglob("*")]:
            os.chown(path, 0, 0)
    os.chmod(folder / "x" / "wal", 0o700)
    writer.reopens()
    writer.goes_on()
    return "the directory of the log was not writable", f"{seen}; made writable, all was there"


# ---- runs


def _signal(status: int) -> str:
    number = status & 0x7F
    return signal.Signals(number).name if number else f"exit code {status >> 8}"


def run_case(found: Case, root: Path) -> dict[str, Any]:
    """Runs a case in a child; returns its row."""
    started = time.monotonic()
    row: dict[str, Any] = {"name": found.name, "fault": found.fault, "done": "", "seen": "", "verdict": "wrong"}
    folder = root / found.name
    try:
        devices.need(*found.programs, file_systems=found.file_systems, root=found.root, fuse=found.fuse)
        folder.mkdir()
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run_in_child(found, folder, into)
        os.close(into)
        with open(out, "rb") as file:
            told = file.read()
        _, status = os.waitpid(pid, 0)
        row |= json.loads(told) if told else {"seen": f"the process of the case ended by {_signal(status)}"}
    except Skip as skip:
        row |= {"verdict": "skipped", "seen": str(skip)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row["seconds"] = round(time.monotonic() - started, 1)
    return row


def _run_in_child(found: Case, folder: Path, into: int) -> None:
    """Runs a case and ends: mounts and daemons die with this process, whatever becomes of it."""
    row: dict[str, Any] = {}
    try:
        os.setpgid(0, 0)
        signal.alarm(CASE_S)
        warnings.simplefilter("ignore", DurabilityWarning)
        if found.root:
            devices.make_mounts_private()
        done, seen = found.act(folder)
        row = {"done": done, "seen": " ".join(seen.replace(str(folder), "").split()), "verdict": "right"}
    except Skip as skip:
        row = {"verdict": "skipped", "seen": str(skip)}
    except BaseException as error:  # noqa: BLE001 (a row of the table says what it was)
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        row = {"verdict": "wrong", "seen": f"{said(error)} ({Path(place.filename).name}:{place.lineno})"}
        traceback.print_exc()
    finally:
        os.write(into, json.dumps(row).encode())
        os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--rootless", action="store_true", help="only what needs neither root nor a package")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after so many")
    parser.add_argument(
        "--seed", type=int, default=1, help="accepted for the scoreboard's sake: nothing here is random"
    )
    parser.add_argument("--dir", type=Path, help="where the files and images go; default: the system's temporary one")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {found.name for found in CASES}:
        parser.error(f"no case {', '.join(sorted(unknown))}; --list names them")
    chosen = [found for found in CASES if found.name in arguments.names or not arguments.names]
    chosen = [found for found in chosen if not (arguments.rootless and found.root)]
    if arguments.list:
        for found in chosen:
            needs = [*(["root"] if found.root else []), *found.file_systems, *found.programs]
            print(f"{found.name:32}{found.fault:44}{' '.join(needs)}")
        return 0
    started, rows = time.monotonic(), []
    root = Path(tempfile.mkdtemp(prefix="mmwal-faults-", dir=arguments.dir))
    try:
        for found in chosen:
            if time.monotonic() - started > arguments.seconds:
                break
            rows.append(run_case(found, root))
            if not arguments.json:
                row = rows[-1]
                print(f"{row['verdict']:8} {row['name']:32} {row['done']}\n{'':9}{row['seen']}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    report = summary(rows, time.monotonic() - started)
    if arguments.json:
        print(json.dumps(report))
    else:
        sums = [f"{report[name]} {name.split('_')[0]}" for name in ("right", "wrong", "skipped_cases", "seconds")]
        print("\n" + ", ".join(sums))
        for row in rows:
            if row["verdict"] == "wrong":
                print(f"again: tools/realfaults.py {row['name']}")
    return 1 if report["wrong"] else 0


def summary(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Returns the rows with their sums."""
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("right", "wrong", "skipped")}
    reasons = sorted({row["seen"] for row in rows if row["verdict"] == "skipped"})
    return {
        "cases": rows,
        "right": count["right"],
        "wrong": count["wrong"],
        "skipped": "; ".join(reasons) if rows and count["skipped"] == len(rows) else None,
        "skipped_cases": count["skipped"],
        "faults": len({row["fault"] for row in rows if row["verdict"] != "skipped"}),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
