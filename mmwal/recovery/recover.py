"""Recovery of a store: what the log says since the checkpoint, applied to it.

    load      the newest checkpoint that is whole
    index     verify every frame behind the redo point and order those that count
    decide    committed rows only; the last writer of each id wins, in the order of effective LSNs
    copy      the winners' vectors, straight from the mapped log into fresh rows of the mapped matrix

Not here: where the log ends (`tail.py`), loading the checkpoint (`checkpoint/load.py`), opening (`opening.py`).

* Nothing is written before everything is verified and decided: a failure leaves every file as it was.
* Rows that a control slot names are not touched: winners take fresh rows. So it can be done again after any crash.
* A row takes the LSN of its frame, or of the commit of its transaction.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from mmwal import kernel as kernels
from mmwal.checkpoint.load import Loaded, load_checkpoint
from mmwal.config import WalConfig
from mmwal.disk.interface import Disk
from mmwal.errors import ConsistencyError, DamageError, WalConfigError, WalCorruptionError
from mmwal.format.frame import ALIGNMENT, COMMIT, FRAME_DTYPE, LENGTH_MASK, ROW_KINDS, Kind, unpack_ids, unpack_metadata
from mmwal.format.segment import data_start
from mmwal.kernel.interface import DTYPES, FROM_EXTENT, FROM_MATRIX, REPLAY_DONE
from mmwal.log.batch import Batch
from mmwal.log.control import LogControl, LogIdentity
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.reader import Extent, decode_vectors, frame_end, unpack_gid
from mmwal.recovery.tail import Survey
from mmwal.recovery.workers import Copy, Range, Workers
from mmwal.state.replay import Replay
from mmwal.state.state import State
from mmwal.verdicts import CHECKPOINT, DIRECTORY, ENTRY, Reached

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_RUN_ROWS = 1 << 16  # applied in one call, for which rows are provided
_ID_BYTES_LEAST = 5  # of an id in a block: its place in the table, and a byte
_ROW_KINDS = sorted(ROW_KINDS)
_CONTRADICTS = ENTRY.verdict(checksum="sound", content="contradicts")
_ENDS = sorted((Kind.COMMIT, Kind.PREPARE, Kind.ROLLBACK))  # what stands behind the members of a transaction


class Ordered(NamedTuple):
    """The frames that count, in the order of their effective LSNs: where each is, and how many rows it may hold."""

    lsns: npt.NDArray[np.uint64]
    extents: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Undecided:
    """A transaction that was prepared and neither committed nor rolled back, as far as the log goes."""

    gid: str
    txn: int
    first_lsn: int
    lsn: int
    timestamp_ns: int
    rows: int
    members_crc: int
    frames: list[tuple[Extent, np.void]]

    def batches(self) -> list[Batch]:
        """Returns its rows, copied from the log. Raises `WalCorruptionError` where they contradict themselves."""
        return [_batch_of(extent, frame) for extent, frame in self.frames]


@dataclass
class Index:
    """Verified frames behind the redo point, those of transactions in doubt there before it, and what they amount
    to."""

    extents: list[Extent]
    redo_lsn: int
    end_lsn: int
    ordered: Ordered | None = None
    markers: int = 0
    customs: int = 0  # entries of applications, which change no row
    rolled_back: int = 0
    in_doubt: list[Undecided] = field(default_factory=list)
    pinned_lsn: int = 0  # where the frames begin
    bytes_scanned: int = 0  # for the index alone, beyond what the survey has verified
    losses: list[str] | None = None  # what was left out of a damaged log; None: nothing may be

    def lose(self, error: DamageError) -> None:
        """Leaves out what an error is about, where that may be; else raises it."""
        if self.losses is None:
            raise error
        self.losses.append(str(error))

    @property
    def cut_lsn(self) -> int | None:
        """Where a write of several frames begins whose end the log does not hold, if it ends within one."""
        for extent in reversed(self.extents):
            counting = extent.frames[np.isin(extent.frames["kind"], [*_ROW_KINDS, *_ENDS])]
            if len(counting):
                txn = int(counting[-1]["txn"]) if counting[-1]["kind"] not in _ENDS else 0
                starts = [each.frames["start_lsn"][each.frames["txn"] == txn] for each in self.extents]
                return int(np.concatenate(starts)[0]) if txn else None
        return None

    @property
    def dimension_bytes(self) -> int | None:
        """Bytes of a vector, as the first frame that holds one says."""
        for extent in self.extents:
            frames = extent.frames
            holds = np.isin(frames["kind"], _ROW_KINDS) & (frames["dtype"] != 0) & (frames["rows"] != 0)
            found = frames[holds & (frames["vector_bytes"] != 0)]
            if len(found):
                return int(found[0]["vector_bytes"]) // int(found[0]["rows"])
        return None


@dataclass
class Decision:
    """What the log makes of the state, and how many entries counted for what."""

    replay: Replay | None = None

    @property
    def applied(self) -> int:
        """Rows that were written or deleted."""
        return self.replay.applied if self.replay else 0

    @property
    def skipped(self) -> int:
        """Updates and deletes of ids that were not there."""
        return self.replay.skipped if self.replay else 0


def load_newest(
    disk: Disk,
    config: WalConfig,
    control: LogControl,
    data_dir: str,
    *,
    writable: bool = True,
    until_lsn: int | None = None,
) -> Loaded | None:
    """Loads the newest whole checkpoint; None where there is no data yet and the log holds everything.

    Raises as `load_checkpoint`, and `ConsistencyError` where the checkpoint that the log goes on from is missing.
    """
    loaded = load_checkpoint(
        disk,
        data_dir,
        kernel=kernels.load(config.kernel),
        store_id=control.identity.store_id,
        history_id=control.identity.history_id,
        dimension=config.dimension,
        dtype=config.dtype,
        metric=config.metric,
        writable=writable,
        until_lsn=until_lsn,
    )
    begins = "later" if control.oldest_lsn > data_start(0, control.identity.segment_bytes) else "start"
    verdict = DIRECTORY.verdict(opened="store", log="owned", data="same" if loaded else "missing", begins=begins)
    if verdict.error is not None:
        raise verdict.mark(
            ConsistencyError(
                f"{data_dir}/{CONTROL_NAME}",
                f"the log begins at LSN {control.oldest_lsn}, and the checkpoint that covers all before is missing; "
                "give the data_dir that belongs to it, or restore it from a backup",
            )
        )
    control.reached.append(Reached(verdict, data_dir))
    if loaded is not None:
        _check_alike(loaded, control)
    return loaded


def _check_alike(loaded: Loaded, control: LogControl) -> None:
    """Raises `ConsistencyError` where log and data were created with other vectors than each other."""
    log, data = control.identity, loaded.control.identity
    alike = (log.dtype, log.metric) == (data.dtype, data.metric) and log.dimension in (0, data.dimension)
    if not alike:
        loaded.matrix.close()
        raise ConsistencyError(
            loaded.control.path,
            f"says dimension {data.dimension}, dtype {data.dtype} and metric {data.metric}, and the log's control file "
            f"says {log.dimension}, {log.dtype} and {log.metric}; restore both from one backup",
        )


def dimension_of(config: WalConfig, identity: LogIdentity, index: Index) -> int | None:
    """Returns the dimension of a store that has no data yet; None where the first vector will tell.

    Raises `WalConfigError` where the log holds vectors of another one than the config says, `ConsistencyError` where it
    holds vectors of another one than it was created with.
    """
    if index.dimension_bytes is None:
        return config.dimension or identity.dimension or None
    from_log = index.dimension_bytes // DTYPES[identity.dtype].itemsize
    if identity.dimension not in (0, from_log):
        raise ConsistencyError(
            index.extents[0].path,
            f"holds vectors of dimension {from_log}, and the log's control file says {identity.dimension}; restore "
            "both from one backup",
        )
    if config.dimension and config.dimension != from_log:
        raise WalConfigError(
            "dimension", config.dimension, f"the log holds vectors of dimension {from_log}; use that or leave it out"
        )
    return from_log


def build_index(
    kernel: Kernel, workers: Workers, judged: Survey, redo_lsn: int, pinned_lsn: int, *, verify: bool = True
) -> Index:
    """Verifies every frame from ``pinned_lsn`` to the end of the log and orders those that count behind ``redo_lsn``.

    `survey` has verified those of the unsealed run, since by that alone a torn frame is known. With ``verify=False``
    the others are left alone. Raises `WalCorruptionError`, `ConsistencyError`. Changes nothing.
    """
    check_reaches(judged.control, pinned_lsn)
    known = {part.info.number for part in judged.run}
    ranges = [
        Range(info, max(pinned_lsn, info.first_lsn), judged.end_of(info))
        for info in judged.segments
        if judged.end_of(info) > max(pinned_lsn, info.first_lsn) and info.number not in known
    ]
    run = [part for part in judged.run if part.end_lsn > pinned_lsn]
    run_bytes = sum(part.end_lsn - max(pinned_lsn, part.info.first_lsn) for part in run)
    extents = workers.scan(kernel, ranges, verify=verify, known_bytes=run_bytes)
    extents += [part.extent(pinned_lsn) for part in run]
    scanned_bytes = sum(part.end_lsn - part.start_lsn for part in ranges)
    index = Index(extents, redo_lsn, judged.end_lsn, pinned_lsn=pinned_lsn, bytes_scanned=scanned_bytes)
    order(index)
    return index


def check_reaches(control: LogControl, pinned_lsn: int) -> None:
    """Raises `ConsistencyError` where the log begins behind the checkpoint that it goes on from."""
    if control.oldest_lsn > pinned_lsn:
        raise CHECKPOINT.verdict(newer="whole", log="behind").mark(
            ConsistencyError(
                control.path,
                f"the log begins at LSN {control.oldest_lsn}, behind the checkpoint that it should go on from, "
                "and what lies between is missing; give the data_dir that belongs to it, or restore both from one "
                "backup",
                lsn=pinned_lsn,
            )
        )


def decide(index: Index, state: State) -> Decision:
    """Finds what each id ends up with, in the memory of ``state``, which is that of the checkpoint.

    Raises `ConsistencyError` for vectors of another dimension or dtype, `WalCorruptionError` for a frame that
    contradicts itself; the state is of no use then.
    """
    replay = state.replay()
    frames = index.ordered
    assert frames is not None
    dtype = next(code for code, known in DTYPES.items() if known == state.matrix.dtype)
    for part in _runs(frames):
        extent = index.extents[int(frames.extents[part.start])]
        start, stop = part.start, part.stop
        while start < stop:
            done, reason = replay.apply(
                extent.view,
                frames.offsets[start:stop],
                frames.lsns[start:stop],
                int(frames.rows[start:stop].sum()),
                FROM_EXTENT + int(frames.extents[start]),
                dtype,
            )
            start += done
            if reason != REPLAY_DONE:
                try:
                    _refuse(extent, int(frames.offsets[start]), state)
                except DamageError as error:
                    index.lose(error)
                start += 1
    return Decision(replay)


def _runs(frames: Ordered) -> Iterator[slice]:
    """Yields frames of one extent that follow each other, with no more than `_RUN_ROWS` rows but for a single one."""
    bounds = np.flatnonzero(np.diff(frames.extents)) + 1
    for start, stop in itertools.pairwise((0, *bounds.tolist(), len(frames.extents))):
        totals = np.cumsum(frames.rows[start:stop])
        first = start
        while first < stop:
            before = int(totals[first - start - 1]) if first > start else 0
            end = start + int(np.searchsorted(totals, before + _RUN_ROWS, side="right"))
            yield slice(first, max(end, first + 1))
            first = max(end, first + 1)


def copy_winners(kernel: Kernel, workers: Workers, index: Index, decision: Decision, state: State) -> None:
    """Fills the rows of the winners from the log.

    Raises `WalFullError` where the matrix cannot grow, `OSError` where its file cannot be read; the checkpoint is
    untouched then.
    """
    if decision.replay is not None:
        rows, matrix = state.admit(decision.replay), state.matrix
        origins, places = decision.replay.origins[rows], decision.replay.places[rows]
        kept = origins == FROM_MATRIX
        matrix.prepare(np.concatenate((rows, places[kept])))
        if kept.any():
            matrix.array[rows[kept]] = matrix.array[places[kept]]
        copies = []
        for origin in np.unique(origins[~kept]).tolist():
            chosen = origins == origin
            copies.append(Copy(index.extents[origin - FROM_EXTENT], places[chosen], rows[chosen]))
        workers.copy(kernel, copies, matrix)
        matrix.stored(rows)
    state.advance(max(index.end_lsn, state.applied_lsn))


def order(index: Index) -> None:
    """Keeps the frames that count behind the redo point, each with its effective LSN, in that order; and the
    transactions that are in doubt."""
    counts = [len(extent.frames) for extent in index.extents]
    firsts = np.cumsum([0, *counts])
    extents = np.repeat(np.arange(len(counts)), counts)

    def column(name: str) -> npt.NDArray[np.int64]:
        parts = [extent.frames[name].astype(np.int64) for extent in index.extents]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def whole(at: int, members: list[int]) -> bool:
        """Whether a commit or prepare frame names exactly these members."""
        found = [frame_at(member) for member in members]
        crcs = b"".join(frame["frame_crc"].tobytes() for _, frame in found)
        try:
            _check_members(*frame_at(at), zlib.crc32(crcs), len(members))
        except ConsistencyError as error:
            index.lose(error)
            return False
        return True

    def frame_at(at: int) -> tuple[Extent, np.void]:
        extent = index.extents[extents[at]]
        return extent, extent.frames[at - firsts[extents[at]]]

    kinds, txns, rows, starts = column("kind"), column("txn"), column("rows"), column("start_lsn")
    ends = starts + (column("commit") & LENGTH_MASK) * ALIGNMENT
    is_row, is_new = np.isin(kinds, _ROW_KINDS), ends > index.redo_lsn
    index.customs = int((is_new & (kinds == Kind.CUSTOM)).sum())
    index.markers = int((is_new & ~is_row & (kinds != Kind.PAD)).sum()) - index.customs
    keys = np.where(is_new & is_row & (txns == 0), np.arange(len(kinds)), -1)  # where each frame takes effect
    open_transactions: dict[int, list[int]] = {}
    prepared: dict[int, int] = {}
    for at in np.flatnonzero((is_row & (txns != 0)) | np.isin(kinds, _ENDS)).tolist():
        txn, kind = int(txns[at]), kinds[at]
        if is_row[at]:
            open_transactions.setdefault(txn, []).append(at)
        elif kind == Kind.PREPARE:
            prepared[txn] = at
        else:
            prepared.pop(txn, None)
            members = open_transactions.pop(txn, [])
            if not is_new[at]:
                continue  # the checkpoint holds what came of it
            if kind == Kind.COMMIT and whole(at, members):
                keys[members] = at
            else:
                index.rolled_back += int(rows[members].sum())
    for txn, at in prepared.items():
        if whole(at, open_transactions.get(txn, [])):
            members = open_transactions.pop(txn)
            index.in_doubt.append(_undecided(*frame_at(at), [frame_at(member) for member in members]))
    index.rolled_back += sum(int(rows[members].sum()) for members in open_transactions.values())
    chosen = np.flatnonzero(keys >= 0)
    if (np.diff(keys[chosen]) < 0).any():
        chosen = chosen[np.argsort(keys[chosen], kind="stable")]
    bases = np.array([extent.base_lsn for extent in index.extents], np.int64)
    where = extents[chosen]
    index.ordered = Ordered(
        ends[keys[chosen]].astype(np.uint64),
        where,
        starts[chosen] - (bases[where] if len(where) else 0),
        np.minimum(rows[chosen], column("id_bytes")[chosen] // _ID_BYTES_LEAST),
    )


def _undecided(extent: Extent, prepare: np.void, frames: list[tuple[Extent, np.void]]) -> Undecided:
    payload, ids_block, _ = extent.blocks(prepare)
    fields = COMMIT.unpack(payload)
    assert fields is not None
    try:
        gid = unpack_gid(ids_block)
    except ValueError as error:
        raise _CONTRADICTS.mark(_contradiction(extent, extent.offset_of(prepare), prepare, str(error))) from error
    return Undecided(
        gid=gid,
        txn=int(prepare["txn"]),
        first_lsn=fields["first_lsn"],
        lsn=frame_end(prepare),
        timestamp_ns=int(prepare["time_ns"]),
        rows=fields["rows"],
        members_crc=fields["members_crc"],
        frames=frames,
    )


def _batch_of(extent: Extent, frame: np.void) -> Batch:
    payload, ids_block, metadata_block = extent.blocks(frame)
    rows = int(frame["rows"])
    try:
        vectors = decode_vectors(payload, int(frame["dtype"]), rows)
        metadata = unpack_metadata(metadata_block, rows) if len(metadata_block) else None
        ids = unpack_ids(ids_block, rows)
        return Batch(int(frame["kind"]), ids, None if vectors is None else vectors.copy(), metadata)
    except ValueError as error:
        raise _CONTRADICTS.mark(_contradiction(extent, extent.offset_of(frame), frame, str(error))) from error


def _check_members(extent: Extent, frame: np.void, members_crc: int, members: int) -> None:
    """Raises `ConsistencyError` unless a commit or prepare frame names exactly these members."""
    fields = COMMIT.unpack(extent.blocks(frame)[0])
    if fields is None or (fields["members_crc"], int(frame["rows"])) != (members_crc, members):
        raise ENTRY.verdict(checksum="sound", content="half").mark(
            ConsistencyError(
                extent.path,
                f"transaction {int(frame['txn'])} commits entries that the log does not hold; restore it from a backup",
                offset=extent.offset_of(frame),
                lsn=frame_end(frame),
            )
        )


def _refuse(extent: Extent, offset: int, state: State) -> NoReturn:
    """Raises what is wrong with a frame that a replay did not take."""
    frame: np.void = np.frombuffer(extent.view, FRAME_DTYPE, 1, offset)[0]
    rows = int(frame["rows"])
    if frame["dtype"]:
        found = (DTYPES.get(int(frame["dtype"])), int(frame["vector_bytes"]))
        if found != (state.matrix.dtype, rows * state.matrix.row_bytes):
            raise ENTRY.verdict(checksum="sound", content="shape").mark(
                ConsistencyError(
                    extent.path,
                    f"an entry holds {found[1]} bytes of {found[0]} for {rows} rows, the store's rows are "
                    f"{state.matrix.dimension} values of {state.matrix.dtype}",
                    offset=offset,
                    lsn=frame_end(frame),
                )
            )
    _, ids_block, metadata_block = extent.blocks(frame)
    problem = "rows without vectors"
    try:
        unpack_ids(ids_block, rows)
        unpack_metadata(metadata_block, rows)
    except ValueError as error:
        problem = str(error)
    raise _CONTRADICTS.mark(_contradiction(extent, offset, frame, problem))


def _contradiction(extent: Extent, offset: int, frame: np.void, problem: str) -> WalCorruptionError:
    return WalCorruptionError(
        extent.path,
        f"an entry contradicts itself ({problem}); it was not written by mmwal",
        offset=offset,
        lsn=frame_end(frame),
    )
