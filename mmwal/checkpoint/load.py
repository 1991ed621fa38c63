"""The newest checkpoint that is whole, as a state; and the data directory of a new store.

    for each slot, the newest first
        1. read its image, section by section
        2. merge: of each id the last word counts
        3. check it against the slot and the matrix
    4. open the matrix, fill a state

* Loading changes no byte. `DataControl.restate` is for the one who is about to write.
* The older slot is used only where the newer one's image is missing or damaged, and the result says so. Rows that the
  newer one alone names are then free, so its slot must be gone first: that too is `restate`.
* Nothing is believed that a checksum does not cover; memory follows the sizes of the files.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmwal import kernel as kernels
from mmwal.checkpoint.control import DataControl, DataIdentity, Slot, create_control, open_control
from mmwal.checkpoint.image import ShortImageError, image_path, read_sections
from mmwal.config import METRICS
from mmwal.disk.interface import Disk
from mmwal.errors import ConsistencyError, ForeignDirectoryError, WalConfigError
from mmwal.format.image import DELETED, Columns, cut_block
from mmwal.kernel.interface import DTYPE_CODES, Directory, Kernel
from mmwal.log.control_file import CONTROL_NAME
from mmwal.state.matrix import MATRIX_NAME, Matrix
from mmwal.state.state import State, load_state
from mmwal.verdicts import CHECKPOINT, DIRECTORY, IMAGE, MATRIX, Reached, Verdict

METRIC_CODES: dict[str, int] = {name: code for code, name in enumerate(METRICS, start=1)}  # as `format.control` says

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A data directory, ready to be recovered: the state as of ``redo_lsn``, and where it came from.

    ``base_bytes`` of the image are its base section; ``fell_back`` says that the newer slot could not be used.
    """

    state: State
    matrix: Matrix
    control: DataControl
    base_bytes: int
    fell_back: bool = False
    reached: list[Reached] = field(default_factory=list)  # every verdict reached

    @property
    def notes(self) -> list[str]:
        """What the report says of damage that cost nothing."""
        return [str(note) for note in self.reached if note.verdict.noted]

    @property
    def redo_lsn(self) -> int:
        """Where replay starts."""
        return self.control.redo_lsn

    @property
    def pinned_lsn(self) -> int:
        """Where the log is needed from; see `DataControl.pinned_lsn`."""
        return self.control.pinned_lsn

    @property
    def needed_lsn(self) -> int:
        """Where the log is needed from for either of the two slots; below, it is not."""
        return self.control.needed_lsn

    @property
    def sequence(self) -> int:
        """The number of the checkpoint."""
        return self.control.sequence


@dataclass(slots=True)
class Content:
    """A merged image: the ids that are alive, and of each their row, LSN and checksum."""

    directory: Directory
    rows: I64
    lsns: npt.NDArray[np.uint64]
    checksums: npt.NDArray[np.uint32]
    limbo: I64
    base_bytes: int


class _Unusable(ValueError):
    """What a slot names cannot be used: the verdict, the file, and why."""

    def __init__(self, verdict: Verdict, path: str, problem: str) -> None:
        super().__init__(problem)
        self.verdict = verdict
        self.path = path


def create_data(disk: Disk, kernel: Kernel, data_dir: str, identity: DataIdentity, redo_lsn: int) -> Loaded:
    """Creates matrix and control file of an empty store as of ``redo_lsn``. Durable on return; a crash before leaves
    nothing that `load_checkpoint` takes for a store."""
    matrix = Matrix.create(disk, f"{data_dir}/{MATRIX_NAME}", identity.dimension, identity.dtype)
    try:
        control = create_control(disk, data_dir, identity, redo_lsn)
    except BaseException:
        matrix.close()
        raise
    state = State(matrix, kernel.Directory(), applied_lsn=redo_lsn)
    return Loaded(state=state, matrix=matrix, control=control, base_bytes=0)


def load_checkpoint(
    disk: Disk,
    data_dir: str,
    *,
    kernel: Kernel | None = None,
    store_id: bytes | None = None,
    history_id: bytes | None = None,
    dimension: int | None = None,
    dtype: str | None = None,
    metric: str | None = None,
    writable: bool = True,
    until_lsn: int | None = None,
    reached: list[Reached] | None = None,
) -> Loaded | None:
    """Returns the newest checkpoint that is whole; None where there is no data yet.

    Args:
        kernel: whose directory holds the ids; None: that of the best one installed.
        store_id, history_id: those of the log; None accepts any.
        dimension, dtype, metric: as configured, by name; None accepts what is there.
        writable: whether the matrix is opened for writing.
        until_lsn: a checkpoint behind it is left alone, for whoever wants the state as of then.
        reached: where the verdicts go, for whoever wants to see them when it raises, too.

    Raises:
        WalConfigError: the store was created with another dimension, dtype or metric; or every checkpoint lies behind
            ``until_lsn``.
        ForeignDirectoryError: the data belongs to another store, or another history of it.
        FormatVersionError: a newer mmwal wrote it.
        HeaderCorruptionError: no control slot is valid.
        ConsistencyError: no slot's checkpoint is whole, or the matrix is missing.
    """
    control = open_control(disk, data_dir)
    if control is None:
        return None
    check_identity(control, store_id=store_id, history_id=history_id, dimension=dimension, dtype=dtype, metric=metric)
    kernel = kernel or kernels.load()
    reached = [] if reached is None else reached
    reached += control.reached
    unusable: list[Reached] = []
    for slot in _slots_until(control, until_lsn):
        try:
            content = content_of(disk, kernel, data_dir, slot)
            return _loaded(disk, data_dir, control, slot, content, reached, writable, fell_back=bool(unusable))
        except _Unusable as error:
            problem = f"checkpoint {slot.sequence} cannot be used: {error}"
            unusable.append(Reached(error.verdict, error.path, problem))
            reached.append(unusable[-1])
    raise CHECKPOINT.verdict(newer="damaged", older="damaged").mark(
        ConsistencyError(
            control.path,
            f"no checkpoint is whole: {'; '.join(note.detail for note in unusable)}. "
            "Restore the named files from a backup of this directory",
        )
    )


def _slots_until(control: DataControl, until_lsn: int | None) -> list[Slot]:
    """Returns the slots that a state as of a position can begin with, the newest first."""
    slots = [slot for slot in control.slots if until_lsn is None or slot.redo_lsn <= until_lsn]
    if not slots:
        raise WalConfigError(
            "target",
            until_lsn,
            f"the oldest checkpoint in {control.path} is as of LSN {control.older_redo_lsn}, and what was before is "
            "gone; give that or more, or take an older backup",
        )
    return slots


def _used(data_dir: str, slot: Slot, *, fell_back: bool) -> list[Reached]:
    """Returns the verdicts on a slot that is used. That the log reaches back so far is for its replay to check."""
    newer = "damaged" if fell_back else "whole"
    used = f"checkpoint {slot.sequence} is used instead, and more of the log is replayed"
    reached = [
        Reached(
            CHECKPOINT.verdict(newer=newer, older="whole", log="older"),
            f"{data_dir}/{CONTROL_NAME}",
            used if fell_back else "",
        ),
        Reached(MATRIX.verdict(file="whole", rows="sound"), f"{data_dir}/{MATRIX_NAME}"),  # rows are not read here
    ]
    if slot.image_bytes:
        image = IMAGE.verdict(file="whole", base="sound", deltas="sound", slot="agrees")
        reached.append(Reached(image, image_path(data_dir, slot.image_number)))
    return reached


def check_identity(
    control: DataControl,
    *,
    store_id: bytes | None = None,
    history_id: bytes | None = None,
    dimension: int | None = None,
    dtype: str | None = None,
    metric: str | None = None,
) -> None:
    """Raises `ForeignDirectoryError` or `WalConfigError` where the data is not what was expected; see
    `load_checkpoint`."""
    identity = control.identity
    if store_id is not None and store_id != identity.store_id:
        raise DIRECTORY.verdict(opened="store", log="owned", data="other-store").mark(
            ForeignDirectoryError(
                control.path,
                f"belongs to store {identity.store_id.hex()}, the log to {store_id.hex()}; "
                "give the wal_dir and the data_dir of one store",
            )
        )
    if history_id is not None and history_id != identity.history_id:
        raise DIRECTORY.verdict(opened="store", log="owned", data="other-history").mark(
            ForeignDirectoryError(
                control.path,
                f"belongs to history {identity.history_id.hex()} of the store, the log to {history_id.hex()}; "
                "restore both from one backup",
            )
        )
    found = {
        "dimension": identity.dimension,
        "dtype": _name_of(DTYPE_CODES, identity.dtype),
        "metric": _name_of(METRIC_CODES, identity.metric),
    }
    for name, wanted in (("dimension", dimension), ("dtype", dtype), ("metric", metric)):
        if wanted is not None and wanted != found[name]:
            raise WalConfigError(
                name, wanted, f"the store in {control.path} was created with {found[name]!r}; use that or leave it out"
            )


def content_of(disk: Disk, kernel: Kernel, data_dir: str, slot: Slot) -> Content:
    """Reads and checks what a slot names. Raises `_Unusable`, or `OSError`."""
    matrix = f"{data_dir}/{MATRIX_NAME}"
    matrix_bytes = _size(disk, matrix)
    if slot.rows_high * slot.row_bytes > matrix_bytes:
        raise _Unusable(
            MATRIX.verdict(file="short"),
            matrix,
            f"{matrix} has {matrix_bytes:,} bytes, too few for {slot.rows_high:,} rows of {slot.row_bytes:,}",
        )
    path = image_path(data_dir, slot.image_number)
    sections, base_bytes, last = _sections(disk, data_dir, slot, path)
    try:
        for name in ("redo_lsn", "rows_high", "live_rows"):
            if last[name] != slot.fields[name]:
                raise ValueError(f"{path} ends with {name} {last[name]}, the control file names {slot.fields[name]}")
        content = _merge(kernel, path, sections, slot, base_bytes)
        _check_content(path, content, slot)
    except ValueError as error:
        verdict = IMAGE.verdict(file="whole", base="sound", deltas="sound", slot="contradicts")
        raise _Unusable(verdict, path, str(error)) from error
    return content


def _sections(disk: Disk, data_dir: str, slot: Slot, path: str) -> tuple[list[Columns], int, dict[str, int]]:
    """Reads the image of a slot: its sections, the size of the first, and what the header of the last says."""
    sections: list[Columns] = []
    base_bytes = 0
    last = {"redo_lsn": slot.redo_lsn, "rows_high": 0, "live_rows": 0}  # an empty store has no image
    if not slot.image_bytes:
        return sections, base_bytes, last
    try:
        for fields, columns in read_sections(
            disk, data_dir, slot.store_id, slot.image_number, slot.image_bytes, slot.image_crc
        ):
            sections.append(columns)
            base_bytes = base_bytes or fields["section_bytes"]
            last = fields
    except ShortImageError as error:
        raise _Unusable(IMAGE.verdict(file="short"), path, str(error)) from error
    except ValueError as error:
        raise _Unusable(IMAGE.verdict(file="whole", base="damaged"), path, str(error)) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EIO):
            raise
        verdict = IMAGE.verdict(file="missing" if error.errno == errno.ENOENT else "unreadable")
        raise _Unusable(verdict, path, str(error)) from error
    return sections, base_bytes, last


def _merge(kernel: Kernel, path: str, sections: list[Columns], slot: Slot, base_bytes: int) -> Content:
    """Returns what is alive after all sections: of each id the last word counts.

    Raises `ValueError` where one contradicts itself. An id that stands twice in one leaves two rows alive, which
    `_check_content` finds.
    """
    high = int(slot.rows_high)
    directory = kernel.Directory()
    lsns, checksums = np.zeros(high, np.uint64), np.zeros(high, np.uint32)
    alive, named, limbo = np.zeros(high, np.bool_), np.zeros(high, np.bool_), np.empty(0, np.int64)
    for section in sections:
        count = int((section.rows != DELETED).sum())
        rows, limbo = np.ascontiguousarray(section.rows[:count]), section.limbo
        _check_rows(path, rows, limbo, high)
        ids, deleted = cut_block(section.ids, len(section.rows), count)
        metadata, _ = cut_block(section.metadata, len(section.rows), count)
        gone, before = np.empty(len(section.rows) - count, np.int64), np.empty(count, np.int64)
        directory.pop_block(deleted, gone)
        directory.put_block(ids, metadata, rows, before)
        alive[gone[gone >= 0]] = alive[before[before >= 0]] = False
        alive[rows] = named[rows] = True
        lsns[rows], checksums[rows] = section.lsns[:count], section.checksums[:count]
    directory.forget(np.flatnonzero(named & ~alive))
    found = np.flatnonzero(alive)
    return Content(directory, found, lsns[found], checksums[found], limbo, base_bytes)


def _check_rows(path: str, rows: I64, limbo: I64, high: int) -> None:
    """Raises `ValueError` where a section names rows that are not there, or one twice."""
    used = np.concatenate((rows, limbo))
    if len(used) and not (used.min() >= 0 and used.max() < high):
        raise ValueError(f"{path} names a row outside of {high:,}")
    taken = np.zeros(high, np.bool_)
    taken[used] = True
    if int(taken.sum()) != len(used):
        raise ValueError(f"{path} names a row twice")


def _check_content(path: str, content: Content, slot: Slot) -> None:
    """Raises `ValueError` where a merged image contradicts its slot or itself."""
    if not len(content.directory) == len(content.rows) == slot.live_rows:
        raise ValueError(f"{path} holds {len(content.directory):,} ids, the control file names {slot.live_rows:,}")
    _check_rows(path, content.rows, content.limbo, int(slot.rows_high))
    if len(content.lsns) and int(content.lsns.max()) > slot.redo_lsn:
        raise ValueError(f"{path} names an LSN above its redo LSN {slot.redo_lsn}")


def _loaded(
    disk: Disk,
    data_dir: str,
    control: DataControl,
    slot: Slot,
    content: Content,
    reached: list[Reached],
    writable: bool,
    *,
    fell_back: bool,
) -> Loaded:
    """Opens the matrix and fills a state."""
    identity = control.identity
    is_newer = slot is control.slots[0]
    other = control.choose(slot).other
    matrix = Matrix.open(
        disk, f"{data_dir}/{MATRIX_NAME}", identity.dimension, identity.dtype, slot.rows_high, writable=writable
    )
    state = load_state(
        matrix,
        content.directory,
        rows=content.rows,
        lsns=content.lsns,
        checksums=content.checksums,
        limbo=content.limbo,
        rows_high=slot.rows_high,
        slots=[other.redo_lsn, slot.redo_lsn] if is_newer and other else [slot.redo_lsn],
    )
    return Loaded(
        state=state,
        matrix=matrix,
        control=control,
        base_bytes=content.base_bytes,
        fell_back=fell_back,
        reached=reached + _used(data_dir, slot, fell_back=fell_back),
    )


def _size(disk: Disk, path: str) -> int:
    if not disk.exists(path):
        raise MATRIX.verdict(file="missing").mark(
            ConsistencyError(path, "the matrix is missing; restore it from a backup of this directory")
        )
    file = disk.open(path, writable=False)
    try:
        return file.size()
    finally:
        file.close()


def _name_of(codes: dict[str, int], code: int) -> str:
    return next((name for name, known in codes.items() if known == code), str(code))
