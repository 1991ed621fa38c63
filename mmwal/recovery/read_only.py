"""Reading a store into memory, changing no byte, beside a writer or without one.

    1. hold      shared locks: the writer then unlinks what it no longer needs, and recycles no segment under us
    2. load      the newest checkpoint that is whole: which ids are alive, in which rows
    3. read      where the log ends, and what it says since then
    4. decide    what each id ends up with
    5. copy      the rows of the checkpoint, into memory, then proven by their checksums
    6. apply     the winners, from the mapped log into that memory

Not here: the handle over what was read (`opening.py`), the repair that a writer does instead (`tail.py`).

* A file is only ever opened for reading; none is created, and nothing is synced.
* What is returned is the state after a prefix of the log, whatever the writer does meanwhile. A row counts once its
  copy is proven by its checksum; a frame does not change any more. A torn tail is left out, and left alone.
* A live writer can make any single step look like damage: it trims the log and reuses rows that we still wanted, and
  it publishes a frame behind our back that a later one proves durable. So a failure is believed only when the next
  try, which begins with the control files, fails at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mmwal.checkpoint.load import Loaded
from mmwal.checkpoint.verify import damaged_rows
from mmwal.config import WalConfig
from mmwal.disk.interface import Disk, Lock
from mmwal.entry import Id
from mmwal.errors import LEAVE_OUT, ConsistencyError, DamageError, OpenError, StoreMissingError, WalCorruptionError
from mmwal.kernel.interface import FROM_EXTENT
from mmwal.log.control import LogControl, LogIdentity, open_control
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.reader import Extent, map_segment, verified_extent
from mmwal.log.scan import find_frames, scan_frames
from mmwal.log.segment import SegmentInfo, identify_file, inspect_file
from mmwal.recovery.log_opening import check_persisted
from mmwal.recovery.recover import (
    Decision,
    Index,
    build_index,
    copy_winners,
    decide,
    dimension_of,
    load_newest,
)
from mmwal.recovery.tail import Survey, survey
from mmwal.recovery.target import index_until
from mmwal.recovery.workers import Workers
from mmwal.state.matrix import MemoryMatrix
from mmwal.state.state import State
from mmwal.verdicts import DIRECTORY, MATRIX

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_TRIES_MOST = 32

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Reading:
    """A store as it was at one moment, in memory; ``state`` is None where nothing says its dimension yet."""

    identity: LogIdentity
    state: State | None
    judged: Survey
    index: Index
    decision: Decision
    loaded: Loaded | None


@dataclass(frozen=True, slots=True)
class LogReading:
    """A log as it was at one moment: its segments, mapped, each with where its frames end."""

    identity: LogIdentity
    oldest_lsn: int
    end_lsn: int
    durable_lsn: int
    segments: list[tuple[SegmentInfo, memoryview, int]]
    clean: bool = False
    torn_tail_bytes: int = 0
    notes: tuple[str, ...] = ()

    def extents(self, kernel: Kernel, start_lsn: int, end_lsn: int) -> Iterator[Extent]:
        """Yields the segments of [start_lsn, end_lsn) with their verified frames. Raises `WalCorruptionError`."""
        for info, view, stop in self.segments:
            start = max(start_lsn, info.first_lsn)
            if start < min(stop, end_lsn):
                yield verified_extent(kernel, info, view, start, min(stop, end_lsn))


def read_log(disk: Disk, kernel: Kernel, wal_dir: str) -> LogReading:
    """Maps the log of a directory as it is now; the caller holds the reader's lock.

    Raises what `survey` raises, and `OpenError` when a writer trims the log faster than it can be read.
    """

    def read() -> LogReading:
        control = _control(disk, wal_dir)
        judged = survey(disk, kernel, wal_dir, control)
        return LogReading(
            identity=control.identity,
            oldest_lsn=control.released_lsn,
            end_lsn=judged.end_lsn,
            durable_lsn=judged.durable_lsn,
            segments=[(info, map_segment(disk, info), judged.end_of(info)) for info in judged.segments],
            clean=judged.clean,
            torn_tail_bytes=judged.torn_tail_bytes,
            notes=tuple(judged.notes),
        )

    return settled(wal_dir, read)


def read_segment(disk: Disk, kernel: Kernel, path: str) -> LogReading:
    """Maps one segment file, wherever it is, and finds where its frames end.

    Raises `HeaderCorruptionError`, `FormatVersionError`, and `WalCorruptionError` where something behind the first
    damaged entry was durable.
    """
    identity, number = identify_file(disk, path)
    info = inspect_file(disk, path, identity, number)
    assert info is not None
    view = map_segment(disk, info)
    end_lsn, durable_lsn = info.end_lsn, info.end_lsn
    if info.footer is None:
        frames, end_lsn, _ = scan_frames(kernel, view, info.base_lsn, info.salt, info.first_lsn, info.data_end_lsn)
        beyond = find_frames(kernel, view, info.base_lsn, info.salt, end_lsn, info.data_end_lsn)
        durable_lsn = max((int(part["durable_lsn"].max()) for part in (frames, beyond) if len(part)), default=0)
        if len(beyond) and int(beyond["durable_lsn"].max()) > end_lsn:
            raise WalCorruptionError(
                path,
                f"a damaged entry, and a later one proves that it was durable; {LEAVE_OUT}",
                offset=end_lsn - info.base_lsn,
                lsn=end_lsn,
            )
    return LogReading(identity, info.first_lsn, end_lsn, min(durable_lsn, end_lsn), [(info, view, end_lsn)])


def lock_for_reading(disk: Disk, wal_dir: str, data_dir: str) -> list[Lock]:
    """Takes a reader's lock on the control files that are there.

    Raises `StoreMissingError` where there is no store, `ConsistencyError` where its log is missing.
    """
    control, data = f"{wal_dir}/{CONTROL_NAME}", f"{data_dir}/{CONTROL_NAME}"
    if not disk.exists(control):
        if disk.exists(data):
            raise DIRECTORY.verdict(log="missing", data="same").mark(
                ConsistencyError(
                    control, f"the log of the checkpoint in {data_dir} is missing; give its wal_dir, or restore it"
                )
            )
        raise StoreMissingError(wal_dir)
    locks = [disk.lock_shared(control)]
    try:
        if disk.exists(data):
            locks.append(disk.lock_shared(data))
    except BaseException:
        locks[0].release()
        raise
    return locks


def read_store(
    disk: Disk,
    kernel: Kernel,
    config: WalConfig,
    wal_dir: str,
    data_dir: str,
    workers: Workers,
    until_lsn: int | None = None,
) -> Reading:
    """Reads the store of a config, as it is or as it was at a position; the caller holds the locks.

    As of ``until_lsn`` an entry counts if its LSN is not above it, one of a transaction if the commit's is not.

    Raises:
        WalConfigError: the config contradicts what the store was created with; or ``until_lsn`` lies before the oldest
            checkpoint, or behind the end of the log.
        DamageError: what is on disk contradicts what was recorded.
        OpenError: a writer changes the store faster than it can be read.
    """
    check_persisted(config, _control(disk, wal_dir).identity)
    return settled(wal_dir, lambda: _read(disk, kernel, config, wal_dir, data_dir, workers, until_lsn))


def settled(place: str, read: Callable[[], Result]) -> Result:
    """Returns what ``read`` returns, once it does.

    A failure that a live writer may have caused is believed when it comes twice in a row at the same place: each try
    begins with what is on record by then. Raises it, or `OpenError` when the writer was faster each time.
    """
    before: Hashable = None
    failure: DamageError | FileNotFoundError | None = None
    for _ in range(_TRIES_MOST):
        try:
            return read()
        except (DamageError, FileNotFoundError) as error:
            failure = error
            if _place_of(error) == before:
                raise
            before = _place_of(error)
    raise OpenError(
        f"{place}: a writer changed it faster than it could be read, {_TRIES_MOST} times; try again when it writes less"
    ) from failure


def _place_of(error: DamageError | FileNotFoundError) -> Hashable:
    if isinstance(error, DamageError) and error.lsn is not None:
        return type(error), error.path, error.offset, error.lsn
    return type(error), str(error)


def _read(
    disk: Disk,
    kernel: Kernel,
    config: WalConfig,
    wal_dir: str,
    data_dir: str,
    workers: Workers,
    until_lsn: int | None,
) -> Reading:
    loaded = load_newest(disk, config, _control(disk, wal_dir), data_dir, writable=False, until_lsn=until_lsn)
    try:
        # The rows come after the log: of an id that it speaks of, the row may be another's by now.
        judged, index = settled(wal_dir, lambda: _read_log(disk, kernel, wal_dir, loaded, workers, until_lsn))
        identity = judged.control.identity
        state = loaded.state if loaded else _new_state(kernel, config, identity, index)
        decision = decide(index, state) if state is not None else Decision()
        if loaded is not None:
            _copy_rows(kernel, loaded, decision)
        if state is not None:
            copy_winners(kernel, workers, index, decision, state)
        return Reading(identity, state, judged, index, decision, loaded)
    finally:
        if loaded is not None:
            loaded.matrix.close()


def _read_log(
    disk: Disk, kernel: Kernel, wal_dir: str, loaded: Loaded | None, workers: Workers, until_lsn: int | None
) -> tuple[Survey, Index]:
    """Finds the end of the log, and maps and verifies it from the checkpoint on, up to ``until_lsn``."""
    control = _control(disk, wal_dir)
    proven_lsn = max((int(slot.redo_lsn) for slot in loaded.control.slots), default=0) if loaded else 0
    judged = survey(disk, kernel, wal_dir, control, proven_lsn)
    redo_lsn, pinned_lsn = (loaded.redo_lsn, loaded.pinned_lsn) if loaded else (control.oldest_lsn,) * 2
    if until_lsn is None:
        return judged, build_index(kernel, workers, judged, redo_lsn, pinned_lsn)
    return judged, index_until(kernel, workers, judged, redo_lsn, pinned_lsn, until_lsn)


def _control(disk: Disk, wal_dir: str) -> LogControl:
    control = open_control(disk, wal_dir)
    if control is None:
        raise StoreMissingError(wal_dir)
    return control


def _new_state(kernel: Kernel, config: WalConfig, identity: LogIdentity, index: Index) -> State | None:
    dimension = dimension_of(config, identity, index)
    if not dimension:
        return None
    matrix = MemoryMatrix(dimension, identity.dtype)
    return State(matrix, kernel.Directory(), applied_lsn=index.redo_lsn, durable=False)


def _copy_rows(kernel: Kernel, loaded: Loaded, decision: Decision) -> None:
    """Lets the state live in memory, with the rows of its checkpoint proven there."""
    state, matrix = loaded.state, loaded.matrix
    with state.reading() as view:
        rows = np.sort(view.rows())
    memory = MemoryMatrix(matrix.dimension, loaded.control.identity.dtype)
    memory.ensure(state.rows.high)
    kernel.gather(matrix.view, rows * matrix.stride, matrix.row_bytes, memory.view, rows, matrix.stride)
    state.matrix = memory
    for damaged in damaged_rows(kernel, state):
        if not _is_replaced(state, decision, damaged.id):
            raise MATRIX.verdict(file="whole", rows="damaged").mark(
                ConsistencyError(
                    matrix.path,
                    f"the vector of id {damaged.id!r} is damaged; restore the file from a backup of this directory",
                    offset=damaged.row * matrix.stride,
                    lsn=damaged.lsn,
                )
            )


def _is_replaced(state: State, decision: Decision, id: Id) -> bool:
    """Whether the log alone says what the id ends up with: its row of the checkpoint may be another's by now."""
    row = state.directory.get(id)
    if row is None:
        return True
    assert decision.replay is not None
    return row < len(decision.replay.origins) and int(decision.replay.origins[row]) >= FROM_EXTENT
