"""Recovery of a store: what the log says since the checkpoint, applied to it.

    load      the newest checkpoint that is whole
    index     verify every frame behind the redo point and list its rows (in threads, where there is enough to do)
    decide    committed rows only; the last writer of each id wins, in the order of effective LSNs
    copy      the winners' vectors, straight from the mapped log into fresh rows of the mapped matrix

Not here: where the log ends (`tail.py`), loading the checkpoint (`checkpoint/load.py`), opening (`opening.py`).

* Nothing is written before everything is verified and decided: a failure leaves every file as it was.
* Rows that a control slot names are not touched: winners take fresh rows. So it can be done again after any crash.
* A row takes the LSN of its frame, or of the commit of its transaction.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmwal.checkpoint.load import Loaded, load_checkpoint
from mmwal.config import WalConfig
from mmwal.disk.interface import Disk
from mmwal.entry import Id
from mmwal.errors import ConsistencyError, DamageError, WalConfigError, WalCorruptionError
from mmwal.format.frame import COMMIT, HEADER_BYTES, ROW_KINDS, Kind, unpack_ids, unpack_metadata
from mmwal.format.segment import data_start
from mmwal.kernel.interface import DTYPES
from mmwal.log.control import LogControl, LogIdentity
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.reader import Extent, frame_end, read_extent
from mmwal.recovery.tail import Survey
from mmwal.state.state import State
from mmwal.verdicts import CHECKPOINT, DIRECTORY, ENTRY, Reached

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_THREADS_FROM_BYTES = 32 << 20
_THREADS_MAX = 4


class Source(NamedTuple):
    """Where the vector of a winner is: a place in an extent, or (extent None) a row of the matrix."""

    extent: int | None
    offset: int


class Winner(NamedTuple):
    """What an id ends up with; ``source`` None: deleted."""

    lsn: int
    source: Source | None
    metadata: bytes | None


@dataclass
class Index:
    """Verified frames behind the redo point, and what they amount to."""

    extents: list[Extent]
    redo_lsn: int
    end_lsn: int
    workers: int
    frames: list[tuple[int, int, np.void]] = field(default_factory=list)  # (effective LSN, extent, frame), in order
    markers: int = 0
    rolled_back: int = 0
    losses: list[str] | None = None  # what was left out of a damaged log; None: nothing may be

    def lose(self, error: DamageError) -> None:
        """Leaves out what an error is about, where that may be; else raises it."""
        if self.losses is None:
            raise error
        self.losses.append(str(error))

    @property
    def bytes_scanned(self) -> int:
        """Bytes that were verified."""
        return self.end_lsn - self.redo_lsn if self.extents else 0

    @property
    def dimension_bytes(self) -> int | None:
        """Bytes of a vector, as the first frame that holds one says."""
        for _, _, frame in self.frames:
            if frame["dtype"] and frame["rows"] and frame["vector_bytes"]:
                return int(frame["vector_bytes"]) // int(frame["rows"])
        return None


@dataclass
class Decision:
    """The winners by id, and how many entries counted for what."""

    winners: dict[Id, Winner]
    applied: int = 0
    skipped: int = 0


def load_newest(
    disk: Disk, config: WalConfig, control: LogControl, data_dir: str, *, writable: bool = True
) -> Loaded | None:
    """Loads the newest whole checkpoint; None where there is no data yet and the log holds everything.

    Raises as `load_checkpoint`, and `ConsistencyError` where the checkpoint that the log goes on from is missing.
    """
    loaded = load_checkpoint(
        disk,
        data_dir,
        store_id=control.identity.store_id,
        history_id=control.identity.history_id,
        dimension=config.dimension,
        dtype=config.dtype,
        metric=config.metric,
        writable=writable,
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
    disk: Disk, kernel: Kernel, judged: Survey, redo_lsn: int, *, workers: int | None = None, verify: bool = True
) -> Index:
    """Verifies every frame from ``redo_lsn`` to the end of the log and orders those that count.

    With ``verify=False`` checksums are left alone: `survey` has verified those of the unsealed run, by which alone a
    torn frame is known. Raises `WalCorruptionError`, `ConsistencyError`. Changes nothing.
    """
    check_reaches(judged.control, redo_lsn)
    ranges = [
        (info, max(redo_lsn, info.first_lsn), judged.end_of(info))
        for info in judged.segments
        if judged.end_of(info) > max(redo_lsn, info.first_lsn)
    ]
    total = sum(stop - start for _, start, stop in ranges)
    if workers is None:
        workers = _THREADS_MAX if kernel.NAME == "c" and total >= _THREADS_FROM_BYTES else 1
    workers = max(1, min(workers, len(ranges)))

    def read(part: Any) -> Extent:
        return read_extent(disk, kernel, *part, verify=verify)

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            extents = list(pool.map(read, ranges))
    else:
        extents = [read(part) for part in ranges]
    index = Index(extents, redo_lsn, judged.end_lsn, workers)
    order(index)
    return index


def check_reaches(control: LogControl, redo_lsn: int) -> None:
    """Raises `ConsistencyError` where the log begins behind the checkpoint that it goes on from."""
    if control.oldest_lsn > redo_lsn:
        raise CHECKPOINT.verdict(newer="whole", log="behind").mark(
            ConsistencyError(
                control.path,
                f"the log begins at LSN {control.oldest_lsn}, behind the checkpoint that it should go on from, "
                "and what lies between is missing; give the data_dir that belongs to it, or restore both from one "
                "backup",
                lsn=redo_lsn,
            )
        )


def decide(index: Index, state: State) -> Decision:
    """Finds what each id ends up with. ``state`` is that of the checkpoint; it is only read.

    Raises `ConsistencyError` for vectors of another dimension or dtype, `WalCorruptionError` for a frame that
    contradicts itself.
    """
    decision = Decision({})
    winners = decision.winners
    for lsn, number, frame in index.frames:
        extent = index.extents[number]
        kind = int(frame["kind"])
        try:
            rows = list(_rows(extent, number, frame, state))
        except DamageError as error:
            index.lose(error)
            continue
        for id, source, metadata in rows:
            before = winners.get(id) or _before(state, id)
            alive = before is not None and before.source is not None
            if kind in (Kind.DELETE, Kind.UPDATE) and not alive:
                decision.skipped += 1
                continue
            decision.applied += 1
            if kind == Kind.DELETE:
                winners[id] = Winner(lsn, None, None)
            elif kind == Kind.INSERT or not alive:
                winners[id] = Winner(lsn, source, metadata)
            else:
                assert before is not None
                winners[id] = Winner(lsn, source or before.source, before.metadata if metadata is None else metadata)
    return decision


def copy_winners(kernel: Kernel, index: Index, decision: Decision, state: State) -> None:
    """Applies the winners: fresh rows filled from the log, the directory turned, in the order of LSNs.

    Raises `WalFullError` where the matrix cannot grow; the checkpoint is untouched then.
    """
    ordered = sorted(decision.winners.items(), key=lambda item: item[1].lsn)
    put = [(id, winner, winner.source) for id, winner in ordered if winner.source is not None]
    for id, winner in ordered:
        if winner.source is None and id in state:
            state.remove(id, winner.lsn)
    if put:
        rows = np.array(state.take_rows(len(put)), np.int64)
        numbers = np.array([-1 if source.extent is None else source.extent for _, _, source in put], np.int64)
        offsets = np.array([source.offset for _, _, source in put], np.int64)
        _fill(kernel, index, state, rows, numbers, offsets)
        state.matrix.rewrite(rows)
        lsns = np.array([winner.lsn for _, winner, _ in put], np.uint64)
        state.put_many([id for id, _, _ in put], rows, lsns, [winner.metadata for _, winner, _ in put])
    state.advance(max(index.end_lsn, state.applied_lsn))


def _fill(
    kernel: Kernel,
    index: Index,
    state: State,
    rows: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
) -> None:
    matrix = state.matrix
    for number in np.unique(numbers).tolist():
        chosen = numbers == number
        if number < 0:
            matrix.array[rows[chosen]] = matrix.array[offsets[chosen]]
        else:
            kernel.gather(
                index.extents[number].view,
                offsets[chosen],
                matrix.row_bytes,
                matrix.view,
                np.ascontiguousarray(rows[chosen]),
                matrix.stride,
            )


def order(index: Index) -> None:
    """Keeps the frames that count, each with its effective LSN, in that order."""
    open_transactions: dict[int, list[tuple[int, np.void]]] = {}
    for number, extent in enumerate(index.extents):
        for frame in extent.frames:
            kind, txn = int(frame["kind"]), int(frame["txn"])
            if kind not in ROW_KINDS:
                if kind == Kind.COMMIT:
                    lsn = frame_end(frame)
                    members = open_transactions.pop(txn, [])
                    try:
                        _check_commit(extent, frame, members)
                    except ConsistencyError as error:
                        index.lose(error)
                        open_transactions[txn] = members
                    else:
                        index.frames.extend((lsn, *member) for member in members)
                index.markers += kind != Kind.PAD
            elif txn:
                open_transactions.setdefault(txn, []).append((number, frame))
            else:
                index.frames.append((frame_end(frame), number, frame))
    index.rolled_back = sum(int(frame["rows"]) for rest in open_transactions.values() for _, frame in rest)


def _check_commit(extent: Extent, commit: np.void, members: list[tuple[int, np.void]]) -> None:
    """Raises `ConsistencyError` unless the commit frame names exactly these members."""
    fields = COMMIT.unpack(extent.blocks(commit)[0])
    crc = 0
    for _, frame in members:
        crc = zlib.crc32(int(frame["frame_crc"]).to_bytes(4, "little"), crc)
    if fields is None or (fields["members_crc"], int(commit["rows"])) != (crc, len(members)):
        raise ENTRY.verdict(checksum="sound", content="half").mark(
            ConsistencyError(
                extent.path,
                f"transaction {int(commit['txn'])} commits entries that the log does not hold; restore it from a "
                "backup",
                offset=extent.offset_of(commit),
                lsn=frame_end(commit),
            )
        )


def _rows(
    extent: Extent, number: int, frame: np.void, state: State
) -> Iterator[tuple[Id, Source | None, bytes | None]]:
    rows = int(frame["rows"])
    row_bytes = state.matrix.row_bytes
    offset = extent.offset_of(frame)
    if frame["dtype"]:
        found = (DTYPES.get(int(frame["dtype"])), int(frame["vector_bytes"]))
        if found != (state.matrix.dtype, rows * row_bytes):
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
    try:
        if frame["kind"] in (Kind.INSERT, Kind.UPSERT) and not frame["dtype"]:
            raise ValueError("rows without vectors")
        ids = unpack_ids(ids_block, rows)
        metadata = unpack_metadata(metadata_block, rows)
    except ValueError as error:
        raise ENTRY.verdict(checksum="sound", content="contradicts").mark(
            WalCorruptionError(
                extent.path,
                f"an entry contradicts itself ({error}); it was not written by mmwal",
                offset=offset,
                lsn=frame_end(frame),
            )
        ) from error
    first = offset + HEADER_BYTES
    for row, (id, meta) in enumerate(zip(ids, metadata, strict=True)):
        yield id, Source(number, first + row * row_bytes) if frame["dtype"] else None, meta


def _before(state: State, id: Id) -> Winner | None:
    entry = state.get(id)
    return None if entry is None else Winner(entry.lsn, Source(None, entry.row), entry.metadata)
