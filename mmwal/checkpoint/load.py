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
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.checkpoint.control import DataControl, DataIdentity, Slot, create_control, open_control
from mmwal.checkpoint.image import image_path, read_sections
from mmwal.config import METRICS
from mmwal.disk.interface import Disk
from mmwal.entry import Id
from mmwal.errors import ConsistencyError, ForeignDirectoryError, WalConfigError
from mmwal.format.image import DELETED, Columns
from mmwal.kernel.interface import DTYPE_CODES
from mmwal.log.control_file import CONTROL_NAME
from mmwal.state.matrix import MATRIX_NAME, Matrix
from mmwal.state.state import State, load_state

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
    notes: list[str] = field(default_factory=list)

    @property
    def redo_lsn(self) -> int:
        """Where replay starts."""
        return self.control.redo_lsn

    @property
    def older_redo_lsn(self) -> int:
        """The lesser redo point of the two slots: the log below it is not needed."""
        return self.control.older_redo_lsn

    @property
    def sequence(self) -> int:
        """The number of the checkpoint."""
        return self.control.sequence


@dataclass(slots=True)
class _Content:
    """A merged image."""

    columns: Columns
    base_bytes: int


def create_data(disk: Disk, data_dir: str, identity: DataIdentity, redo_lsn: int) -> Loaded:
    """Creates matrix and control file of an empty store as of ``redo_lsn``. Durable on return; a crash before leaves
    nothing that `load_checkpoint` takes for a store."""
    matrix = Matrix.create(disk, f"{data_dir}/{MATRIX_NAME}", identity.dimension, identity.dtype)
    control = create_control(disk, data_dir, identity, redo_lsn)
    state = State(matrix, applied_lsn=redo_lsn)
    return Loaded(state=state, matrix=matrix, control=control, base_bytes=0)


def load_checkpoint(
    disk: Disk,
    data_dir: str,
    *,
    store_id: bytes | None = None,
    dimension: int | None = None,
    dtype: str | None = None,
    metric: str | None = None,
    writable: bool = True,
) -> Loaded | None:
    """Returns the newest checkpoint that is whole; None where there is no data yet.

    Args:
        store_id: that of the log; None accepts any.
        dimension, dtype, metric: as configured, by name; None accepts what is there.
        writable: whether the matrix is opened for writing.

    Raises:
        WalConfigError: the store was created with another dimension, dtype or metric.
        ForeignDirectoryError: the data belongs to another store.
        FormatVersionError: a newer mmwal wrote it.
        HeaderCorruptionError: no control slot is valid.
        ConsistencyError: no slot's checkpoint is whole, or the matrix is missing.
    """
    control = open_control(disk, data_dir)
    if control is None:
        return None
    check_identity(control, store_id=store_id, dimension=dimension, dtype=dtype, metric=metric)
    notes: list[str] = []
    for slot in control.slots:
        try:
            content = _content(disk, data_dir, slot)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EIO):
                raise
            notes.append(f"checkpoint {slot.sequence} cannot be used: {error}")
            continue
        if notes:
            notes.append(f"checkpoint {slot.sequence} is used instead, and more of the log is replayed")
        return _loaded(disk, data_dir, control.choose(slot), content, notes, writable)
    raise ConsistencyError(
        f"{data_dir}/{CONTROL_NAME}",
        "no checkpoint is whole: " + "; ".join(notes) + ". Restore the named files from a backup of this directory",
    )


def check_identity(
    control: DataControl,
    *,
    store_id: bytes | None = None,
    dimension: int | None = None,
    dtype: str | None = None,
    metric: str | None = None,
) -> None:
    """Raises `ForeignDirectoryError` or `WalConfigError` where the data is not what was expected; see
    `load_checkpoint`."""
    identity = control.identity
    if store_id is not None and store_id != identity.store_id:
        raise ForeignDirectoryError(
            control.path,
            f"belongs to store {identity.store_id.hex()}, the log to {store_id.hex()}; "
            "give the wal_dir and the data_dir of one store",
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


def _content(disk: Disk, data_dir: str, slot: Slot) -> _Content:
    """Reads and checks what a slot names. Raises `ValueError`, or `OSError`."""
    matrix_bytes = _size(disk, f"{data_dir}/{MATRIX_NAME}")
    if slot.rows_high * slot.row_bytes > matrix_bytes:
        raise ValueError(
            f"{data_dir}/{MATRIX_NAME} has {matrix_bytes:,} bytes, too few for {slot.rows_high:,} rows of "
            f"{slot.row_bytes:,}"
        )
    path = image_path(data_dir, slot.image_number)
    sections: list[Columns] = []
    base_bytes = 0
    last = {"redo_lsn": slot.redo_lsn, "rows_high": 0, "live_rows": 0}  # an empty store has no image
    if slot.image_bytes:
        for fields, columns in read_sections(
            disk, data_dir, slot.store_id, slot.image_number, slot.image_bytes, slot.image_crc
        ):
            sections.append(columns)
            base_bytes = base_bytes or fields["section_bytes"]
            last = fields
    for name in ("redo_lsn", "rows_high", "live_rows"):
        if last[name] != slot.fields[name]:
            raise ValueError(f"{path} ends with {name} {last[name]}, the control file names {slot.fields[name]}")
    columns = _merge(sections)
    _check_columns(path, columns, slot)
    return _Content(columns, base_bytes)


def _merge(sections: Sequence[Columns]) -> Columns:
    """Returns what is alive after all sections: of each id the last word counts."""
    if len(sections) == 1:
        return sections[0]
    ids: list[Id] = []
    metadata: list[bytes | None] = []
    later: set[Id] = set()
    kept: list[npt.NDArray[np.bool_]] = []
    for section in reversed(sections):
        keep = section.rows != DELETED
        if later:
            keep &= np.fromiter((id not in later for id in section.ids), np.bool_, len(section.ids))
        if section is not sections[0]:
            later.update(section.ids)
        kept.append(keep)
    kept.reverse()
    for section, keep in zip(sections, kept, strict=True):
        chosen = keep.tolist()
        ids += itertools.compress(section.ids, chosen)
        metadata += itertools.compress(section.metadata, chosen)

    def joined(name: str, dtype: Any) -> npt.NDArray[Any]:
        parts = [getattr(section, name)[keep] for section, keep in zip(sections, kept, strict=True)]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    limbo = sections[-1].limbo if sections else np.empty(0, np.int64)
    return Columns(
        ids, joined("rows", np.int64), joined("lsns", np.uint64), joined("checksums", np.uint32), metadata, limbo
    )


def _check_columns(path: str, columns: Columns, slot: Slot) -> None:
    """Raises `ValueError` where a merged image contradicts its slot or itself."""
    if len(columns.ids) != slot.live_rows:
        raise ValueError(f"{path} holds {len(columns.ids):,} ids, the control file names {slot.live_rows:,}")
    used = np.concatenate((columns.rows, columns.limbo))
    if len(used) and not (used.min() >= 0 and used.max() < slot.rows_high):
        raise ValueError(f"{path} names a row outside of {slot.rows_high:,}")
    taken = np.zeros(slot.rows_high, np.bool_)
    taken[used] = True
    if int(taken.sum()) != len(used):
        raise ValueError(f"{path} names a row twice")
    if len(columns.lsns) and int(columns.lsns.max()) > slot.redo_lsn:
        raise ValueError(f"{path} names an LSN above its redo LSN {slot.redo_lsn}")


def _loaded(
    disk: Disk, data_dir: str, control: DataControl, content: _Content, notes: list[str], writable: bool
) -> Loaded:
    slot, identity, columns = control.current, control.identity, content.columns
    other = control.other
    fell_back = bool(notes)
    matrix = Matrix.open(
        disk, f"{data_dir}/{MATRIX_NAME}", identity.dimension, identity.dtype, slot.rows_high, writable=writable
    )
    state = load_state(
        matrix,
        ids=columns.ids,
        rows=columns.rows,
        lsns=columns.lsns,
        checksums=columns.checksums,
        metadata=columns.metadata,
        limbo=columns.limbo,
        rows_high=slot.rows_high,
        slots=[other.redo_lsn, slot.redo_lsn] if other and not fell_back else [slot.redo_lsn],
    )
    if len(state) != len(columns.ids):
        matrix.close()
        raise ConsistencyError(
            image_path(data_dir, slot.image_number),
            "an id stands in it twice; restore it from a backup of this directory",
        )
    return Loaded(
        state=state, matrix=matrix, control=control, base_bytes=content.base_bytes, fell_back=fell_back, notes=notes
    )


def _size(disk: Disk, path: str) -> int:
    if not disk.exists(path):
        raise ConsistencyError(path, "the matrix is missing; restore it from a backup of this directory")
    file = disk.open(path, writable=False)
    try:
        return file.size()
    finally:
        file.close()


def _name_of(codes: dict[str, int], code: int) -> str:
    return next((name for name, known in codes.items() if known == code), str(code))
