"""The log alone as a target of the crash explorer: segments of 16 KiB, small vectors, every operation.

Not here: crashes (`explorer.py`), what is right (`model.py`).
"""

from __future__ import annotations

import posixpath
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmwal.entry import OperationName, WalEntry
from mmwal.errors import OpenError, UnavailableError, WalFullError
from mmwal.format.frame import ALIGNMENT, LENGTH_MASK, NO_TIME, ROW_KINDS, Kind
from mmwal.format.metadata import encode_metadata
from mmwal.format.segment import DATA_OFFSET, SEGMENT_BYTES_MIN, data_start
from mmwal.kernel import load
from mmwal.log.batch import Batch, append_batches, append_frames, custom_frame
from mmwal.log.control import LogControl, LogIdentity, create_control, open_control
from mmwal.log.log import Log, Tail
from mmwal.log.reader import Extent, decode_entry, read_entries, read_extents
from mmwal.log.segment import segment_name, segment_number
from mmwal.recovery.tail import repair, survey
from mmwal.testing.model import Found, Group, Model
from mmwal.testing.simulator import SimulatedDisk
from mmwal.transaction import HELD_BYTES_MAX, WalTransaction

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

WAL = "/wal"
DECODED_MAX = 8192
KNOWN_MAX = 1024
FAULTS = (
    *("sync", "sync", "spare.wal sync", "spare.wal sync", "segment.wal sync", "control sync", "sync_directory"),
    *("allocate", "zero", "create", "rename", "unlink", "write", "control write", "spare.wal write", "step", "any"),
)


@dataclass(frozen=True)
class LogStory:
    """What is fixed for a story."""

    dimension: int
    runway_segments: int
    sync_interval_ms: int
    live_bytes_max: int
    faulty: bool


class LogTarget:
    """The log alone, on one of the two kernels."""

    def __init__(self, kernel: str = "py") -> None:
        self.name = f"log-{kernel}"
        self.kernel: Kernel = load(kernel)
        self._decoded: dict[bytes, tuple[Any, ...]] = {}  # by frame
        self._known: dict[Any, list[tuple[Group, int]]] = {}  # what segments tell

    def story(self, rng: random.Random) -> LogStory:
        return LogStory(
            dimension=rng.choice((4, 16, 64, 64)),
            runway_segments=rng.choice((1, 1, 2)),
            sync_interval_ms=rng.choice((0, 0, 10)),
            live_bytes_max=SEGMENT_BYTES_MIN * rng.choice((6, 100, 100)),
            faulty=rng.random() < 0.7,
        )

    def model(self) -> Model:
        return Model()

    def faults(self, rng: random.Random, disk: SimulatedDisk, story: LogStory) -> None:
        if story.faulty:
            disk.fail(rng.choice(FAULTS), rng.randint(1, 12), forever=rng.random() < 0.3)

    def expected(self, error: Exception, disk: SimulatedDisk) -> bool:
        return isinstance(error, OSError) and any(fault.hits for fault in disk.faults)

    def open(self, disk: SimulatedDisk, story: LogStory) -> LogSession:
        tail = self._recover(disk, story)
        log = Log(
            disk,
            self.kernel,
            WAL,
            tail,
            sync_interval_ms=story.sync_interval_ms,
            append_timeout_ms=100,
            live_bytes_max=story.live_bytes_max,
            runway_segments=story.runway_segments,
            check_finite=True,
        )
        return LogSession(disk, log, tail.control, story)

    def glance(self, disk: SimulatedDisk, story: LogStory) -> Found:
        """Recovers and reads, without a `Log`; frames that were decoded before are not decoded again."""
        tail = self._recover(disk, story)
        control, end_lsn = tail.control, tail.end_lsn
        return Found(control.released_lsn, self._read(disk, control, end_lsn), (control.oldest_lsn, end_lsn))

    def damage(self, disk: SimulatedDisk, story: LogStory, model: Model, rng: random.Random) -> str | None:
        listed = disk.list_directory(WAL) if disk.exists(WAL) else []
        names = [name for name in listed if name == "control" or name.startswith("segment")]
        if not names:
            return None
        path = f"{WAL}/{rng.choice(names)}"
        file = disk.open(path, writable=True)
        start = DATA_OFFSET if file.size() > DATA_OFFSET and rng.random() < 0.7 else 0
        at = rng.randrange(start, max(start + 1, file.size()))
        length = rng.choice((1, 1, 8, 512))
        old = file.read(at, length)
        new = bytes(len(old)) if rng.random() < 0.3 else bytes(byte ^ 1 << rng.randrange(8) for byte in old)
        file.write(at, new)
        file.sync()
        if old == new:
            return None
        proven = model.durable
        number = segment_number(posixpath.basename(path))
        if number is not None:
            proven = _proven(model, number * SEGMENT_BYTES_MIN + at + length)
        try:
            found = self.open(disk, story).found()
        except (OpenError, ValueError):
            return None
        problem = model.problem(found, proven)
        return f"{path} damaged from {at}, {length} bytes: {problem}" if problem else None

    def _recover(self, disk: SimulatedDisk, story: LogStory) -> Tail:
        disk.make_directory(WAL)
        lock = disk.lock(f"{WAL}/lock")
        control = open_control(disk, WAL)
        if control is None:
            assert not any("segment" in name for name in disk.list_directory(WAL)), "segments without a control file"
            control = create_control(disk, WAL, new_identity(disk, story.dimension))
        else:
            disk.sync_directory(WAL)  # as `open_identity`: names may be in memory only
        return repair(disk, self.kernel, WAL, lock, survey(disk, self.kernel, WAL, control))

    def _read(self, disk: SimulatedDisk, control: LogControl, end_lsn: int) -> list[Group]:
        """Returns the groups of the log as `read_entries` would."""
        oldest_lsn = control.released_lsn
        if end_lsn <= oldest_lsn:
            return []  # perhaps not even a segment
        groups: list[Group] = []
        members: dict[int, list[Any]] = {}
        for told in self._told(disk, control, end_lsn):
            for group, txn in told:
                if txn and group.rows:
                    members.setdefault(txn, []).extend(group.rows)
                elif group.lsn > oldest_lsn:
                    groups.append(Group(tuple(members.pop(txn, ())), group.lsn) if txn else group)
        return groups

    def _told(self, disk: SimulatedDisk, control: LogControl, end_lsn: int) -> list[list[tuple[Group, int]]]:
        """Returns what each segment tells: groups with the transaction that they belong to, and a group without rows
        for the end of one. Segments are read once and known again by their bytes, those of the successor included:
        its link may stand in for a footer."""
        first_lsn = self._first_frame(control)
        size = control.identity.segment_bytes
        numbers = range(first_lsn // size, (end_lsn - 1) // size + 1)
        contents = [content_of(disk, f"{WAL}/{segment_name(number)}", size) for number in numbers] + [b""]
        keys = [
            (number, control.oldest_lsn, end_lsn if number == numbers[-1] else 0, contents[place], contents[place + 1])
            for place, number in enumerate(numbers)
        ]
        if not all(key in self._known for key in keys):
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            told: dict[Any, list[tuple[Group, int]]] = {key: [] for key in keys}
            for extent in read_extents(disk, self.kernel, WAL, control.identity, first_lsn, end_lsn):
                told[keys[extent.base_lsn // size - numbers[0]]] = self._tell(extent, control.identity)
            self._known.update(told)
        return [self._known[key] for key in keys]

    def _tell(self, extent: Extent, identity: LogIdentity) -> list[tuple[Group, int]]:
        told: list[tuple[Group, int]] = []
        frames = extent.frames
        columns = (frames[name].tolist() for name in ("start_lsn", "commit", "kind", "txn"))
        for index, (start_lsn, commit, kind, txn) in enumerate(zip(*columns, strict=True)):
            length = (commit & LENGTH_MASK) * ALIGNMENT
            lsn = start_lsn + length
            if kind == Kind.COMMIT:
                told.append((Group((), lsn), txn))
            elif kind in ROW_KINDS or kind == Kind.CUSTOM:
                at = start_lsn - extent.base_lsn
                raw = bytes(extent.view[at : at + length])
                if raw not in self._decoded:
                    if len(self._decoded) >= DECODED_MAX:
                        self._decoded.clear()
                    self._decoded[raw] = tuple(rows_of(decode_entry(extent, frames[index], lsn, identity)))
                told.append((Group(self._decoded[raw], lsn), txn))
        return told

    @staticmethod
    def _first_frame(control: LogControl) -> int:
        size = control.identity.segment_bytes
        return data_start(max(control.oldest_lsn - 1, 0) // size, size)


def _proven(model: Model, behind_lsn: int) -> int:
    """Returns how many groups an undamaged later frame, beginning at or behind a position, records as durable."""
    pairs = zip(model.groups, model.groups[1:], strict=False)
    known = [group.known_durable_lsn for before, group in pairs if before.lsn >= behind_lsn and group.lsn]
    return sum(1 for group in model.groups if 0 < group.lsn <= max(known, default=0))


def content_of(disk: SimulatedDisk, path: str, length: int) -> bytes:
    """Returns a file's bytes; none where there is no file."""
    try:
        file = disk.open(path, writable=False)
    except FileNotFoundError:
        return b""
    try:
        return file.read(0, length)
    finally:
        file.close()


def new_identity(disk: SimulatedDisk, dimension: int) -> LogIdentity:
    """Returns the identity of a new log in segments of the least size."""
    return LogIdentity(
        store_id=disk.random_bytes(16),
        history_id=disk.random_bytes(16),
        epoch=1,
        segment_bytes=SEGMENT_BYTES_MIN,
        dimension=dimension,
        dtype=1,
        metric=1,
        created_ns=disk.time_ns(),
    )


class _Made(NamedTuple):
    """Rows made up."""

    operation: OperationName
    kind: int
    ids: list[str | int]
    vectors: Any
    metadata: list[Any]

    @property
    def rows(self) -> list[Any]:
        """The rows as the model holds them."""
        return [
            (self.operation, id, self.vectors[row].tobytes() if self.vectors is not None else None, self.metadata[row])
            for row, id in enumerate(self.ids)
        ]


class LogSession:
    """An open log and the operations on it."""

    def __init__(self, disk: SimulatedDisk, log: Log, control: LogControl, story: LogStory) -> None:
        self.disk = disk
        self.log = log
        self.control = control
        self.story = story
        self.open: list[tuple[WalTransaction, list[Any]]] = []  # transactions, each with its rows

    def durable_lsn(self) -> int:
        return self.log.cursor.durable

    def problem(self) -> str | None:
        cursor = self.log.cursor
        positions = (self.control.oldest_lsn, cursor.durable, cursor.published, cursor.reserved)
        return f"positions out of order: {positions}" if sorted(positions) != list(positions) else None

    def found(self) -> Found:
        log, oldest = self.log, self.control.released_lsn
        positions = (oldest, log.cursor.durable, log.cursor.published, log.cursor.reserved)
        extents = partial(read_extents, self.disk, log.kernel, WAL, log.identity)
        entries = read_entries(extents, log.identity, oldest, None, log.cursor.published)
        groups: list[Group] = []
        rows: list[Any] = []
        for entry in entries:
            if isinstance(entry, WalEntry.Commit):
                assert len(rows) == entry.rows, f"{len(rows)} of {entry.rows} rows of a transaction"
            else:
                rows += rows_of(entry)
            if isinstance(entry, WalEntry.Commit) or not entry.txn:
                groups.append(Group(tuple(rows), entry.lsn))
                rows = []
        assert not rows, "rows of a transaction without its commit"
        return Found(oldest, groups, positions)

    # ---- operations

    def act(self, rng: random.Random, model: Model) -> str:
        if not self._takes_writes():
            return self._failed()
        name = rng.choices(ACTS, WEIGHTS)[0]
        if name in ("close", "kill"):
            return name
        try:
            try:
                getattr(self, f"_{name}")(rng, model)
            except WalFullError:
                assert self.disk.faults or self.log.keeper.over_budget, "the log is full for no reason"
                self._make_room(model)
        except UnavailableError:
            assert not self._takes_writes(), "an open log takes no writes"
            return self._failed()
        except OSError:
            assert any(fault.hits for fault in self.disk.faults), "an error that nobody ordered"
        return name

    def _failed(self) -> str:
        assert any(fault.hits for fault in self.disk.faults), "the log failed, and nothing was ordered to"
        return "failed"

    def _takes_writes(self) -> bool:
        return not self.log.failed

    def close(self) -> None:
        self.log.close()

    def _append(self, rng: random.Random, model: Model) -> None:
        self._log_rows(rng, model, 1)

    def _append_durable(self, rng: random.Random, model: Model) -> None:
        self.log.make_durable(self._log_rows(rng, model, 1))

    def _append_batch(self, rng: random.Random, model: Model) -> None:
        self._log_rows(rng, model, rng.randint(2, 8))

    def _append_custom(self, rng: random.Random, model: Model) -> None:
        content = rng.randbytes(rng.randrange(80))
        frame = custom_frame(self.log, "note", content, NO_TIME)
        self._logged(model, [("custom", "note", content, None)], lambda: append_frames(self.log, [frame]))

    def _append_transaction(self, rng: random.Random, model: Model) -> None:
        room = self.log.frame_bytes_max
        lsn = self._log_rows(rng, model, room // (self.story.dimension * 4 + 40) + rng.randint(1, 12))
        if rng.random() < 0.5:
            self.log.make_durable(lsn)

    def _fill(self, rng: random.Random, model: Model) -> None:
        """Appends across the next segment end."""
        end_lsn = self.log.segment_end_lsn
        while self.log.cursor.reserved < end_lsn:
            self._log_rows(rng, model, rng.randint(1, 12))
            if rng.random() < 0.2:
                self.disk.run_workers()

    def _fit(self, rng: random.Random, model: Model) -> None:
        """Appends a row that ends exactly, or nearly, where the segment does."""
        left = -(self.log.cursor.reserved + 512) % SEGMENT_BYTES_MIN - rng.choice((0, 0, 64))
        id_bytes = left - 64 - 4 * self.story.dimension - 4
        if id_bytes > 0 and left <= self.log.frame_bytes_max:
            self._log_rows(rng, model, 1, "x" * id_bytes)

    def _sync(self, rng: random.Random, model: Model) -> None:
        self.log.make_durable(self.log.cursor.published)

    def _background(self, rng: random.Random, model: Model) -> None:
        self.disk.run_workers()

    def _idle(self, rng: random.Random, model: Model) -> None:
        for _ in range(rng.randint(1, 3)):
            self.disk.advance(0.06)
            self.disk.run_workers()

    def _release(self, rng: random.Random, model: Model) -> None:
        known = [group.lsn for group in model.groups if group.lsn > model.released_lsn]
        if known:
            model.released_lsn = rng.choice(known[: len(known) // 2 + 1])
            self.log.release(model.released_lsn)
            if rng.random() < 0.7:
                self.disk.run_workers()

    def _transact(self, rng: random.Random, model: Model) -> None:
        """Writes to an open transaction, of which some log their members soon."""
        if len(self.open) < 2 and rng.random() < 0.6:
            held_bytes_max = rng.choice((1, 600, HELD_BYTES_MAX))
            self.open.append((WalTransaction(self.log, each_durable=False, held_bytes_max=held_bytes_max), []))
        for transaction, logged in self.open[:1] if rng.random() < 0.5 else self.open:
            made = self._make_rows(rng, rng.randint(1, 12))
            if len(made.ids) == 1 and made.vectors is not None and made.operation == "insert":
                transaction.log_insert(made.ids[0], made.vectors[0], made.metadata[0])
            elif (made.vectors is None) != (made.operation == "delete"):
                continue
            else:
                transaction.log_batch(made.ids, made.vectors, made.metadata, operation=made.operation)
            logged.extend(made.rows)

    def _commit(self, rng: random.Random, model: Model) -> None:
        if self.open:
            transaction, rows = self.open.pop(rng.randrange(len(self.open)))
            if rows:
                lsn = self._logged(model, rows, partial(transaction.commit, durable=False))
                if rng.random() < 0.5:
                    self.log.make_durable(lsn)

    def _rollback(self, rng: random.Random, model: Model) -> None:
        if self.open:
            self.open.pop(rng.randrange(len(self.open)))[0].rollback()

    def _make_room(self, model: Model) -> None:
        for transaction, _ in self.open:
            transaction.rollback()
        self.open.clear()
        lsns = [group.lsn for group in model.groups if group.lsn]
        if lsns and lsns[-1] > model.released_lsn:
            model.released_lsn = lsns[-1]
            self.log.release(lsns[-1])
            try:
                self.log.make_durable(self.log.cursor.published)
            except UnavailableError:
                return
            self.disk.run_workers()

    def _log_rows(self, rng: random.Random, model: Model, count: int, only_id: str | None = None) -> int:
        made = self._make_rows(rng, count, only_id)
        return self._logged(model, made.rows, partial(self._put, made.kind, made.ids, made.vectors, made.metadata))

    def _make_rows(self, rng: random.Random, count: int, only_id: str | None = None) -> _Made:
        operation, kind = rng.choice(KINDS)
        ids: list[str | int] = [_id(rng) for _ in range(count)] if only_id is None else [only_id]
        if only_id is not None:
            operation, kind = "insert", Kind.INSERT
        has_vectors = kind in (Kind.INSERT, Kind.UPSERT) or (kind == Kind.UPDATE and rng.random() < 0.7)
        vectors = None
        if has_vectors:
            size = count * self.story.dimension
            raw = np.frombuffer(rng.randbytes(2 * size), np.int16).astype(np.float32)
            vectors = raw.reshape(count, -1)
        metadata = [_metadata(rng) for _ in range(count)] if kind != Kind.DELETE and only_id is None else [None] * count
        return _Made(operation, kind, ids, vectors, metadata)

    def _logged(self, model: Model, rows: list[Any], log: Callable[[], int]) -> int:
        model.begin(tuple(rows), self.log.cursor.durable)
        try:
            lsn = log()
        except UnavailableError:
            model.withdraw()
            raise
        model.finish(lsn)
        self.disk.observe("published")
        return lsn

    def _put(self, kind: int, ids: list[str | int], vectors: Any, metadata: list[Any]) -> int:
        log = self.log
        packed = [encode_metadata(meta) for meta in metadata]
        if len(ids) > 1:
            return append_batches(log, [Batch(kind, ids, vectors, packed)])
        vector = vectors[0] if vectors is not None else None

        def attempt() -> int:
            return log.cursor.append(kind, ids[0], vector, packed[0], self.disk.time_ns(), -1)

        lsn = attempt()
        return lsn if 0 < lsn <= log.segment_end_lsn else log.settle(lsn, attempt)


KINDS: list[tuple[OperationName, Kind]] = [
    ("insert", Kind.INSERT),
    ("insert", Kind.INSERT),
    ("upsert", Kind.UPSERT),
    ("update", Kind.UPDATE),
    ("delete", Kind.DELETE),
]
_WEIGHED = {
    "append": 20,
    "append_durable": 16,
    "append_batch": 8,
    "append_custom": 2,
    "append_transaction": 5,
    "transact": 8,
    "commit": 4,
    "rollback": 1,
    "fill": 6,
    "fit": 3,
    "sync": 10,
    "background": 14,
    "idle": 6,
    "release": 5,
    "close": 4,
    "kill": 3,
}
ACTS, WEIGHTS = list(_WEIGHED), list(_WEIGHED.values())


def rows_of(entry: Any) -> list[Any]:
    """Returns the rows of an entry as the model holds them."""
    if isinstance(entry, WalEntry.Batch):
        vectors = entry.vectors
        metadata = entry.metadata or [None] * len(entry.ids)
        return [
            (entry.operation, id, None if vectors is None else vectors[row].tobytes(), metadata[row])
            for row, id in enumerate(entry.ids)
        ]
    if isinstance(entry, WalEntry.Custom):
        return [("custom", entry.name, entry.operation, None)]
    if isinstance(entry, WalEntry.Delete):
        return [("delete", entry.id, None, None)]
    vector = entry.vector
    return [(entry.kind, entry.id, None if vector is None else vector.tobytes(), entry.metadata)]


def _id(rng: random.Random) -> str | int:
    number = rng.randrange(40)
    return number if number % 2 else f"id-{number}"


def _metadata(rng: random.Random) -> dict[str, Any] | None:
    return None if rng.random() < 0.6 else {"n": rng.randrange(1000)} if rng.random() < 0.9 else {}
