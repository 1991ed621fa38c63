"""The data's control file: whose data it is, and the two newest checkpoints.

Not here: the log's control file (`log/control.py`), the layout (`format/control.py`).

* The slot that a store was loaded from, or published last, is `current` and is not overwritten by `publish`.
* A slot counts once it is synced. If that fails, either checkpoint may be found later: both must stay usable.
* A slot with ``image_bytes`` 0 is that of an empty store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from mmwal.disk.interface import Disk
from mmwal.errors import ForeignDirectoryError, FormatVersionError, HeaderCorruptionError
from mmwal.format.control import DATA_CONTROL, SLOT_OFFSETS, read_slots
from mmwal.format.frame import align
from mmwal.format.segment import FORMAT_VERSION
from mmwal.kernel.interface import DTYPES
from mmwal.log.control_file import CONTROL_NAME, publish_control, read_control, store_slot


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """What is fixed when a store's data is created; dtype and metric are codes of `format.control`."""

    store_id: bytes
    history_id: bytes
    epoch: int
    dimension: int
    dtype: int
    metric: int
    created_ns: int

    @property
    def stride(self) -> int:
        """Bytes from one row of the matrix to the next."""
        return align(self.dimension * DTYPES[self.dtype].itemsize)


@dataclass(frozen=True, slots=True)
class Slot:
    """One valid slot: its index, and its fields as in `DATA_CONTROL`."""

    index: int
    fields: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise AttributeError(name) from None


class DataControl:
    """The two slots of ``data_dir/control``. One thread at a time: opening, then the checkpointer."""

    def __init__(self, disk: Disk, path: str, slots: list[Slot]) -> None:
        """``slots`` are the valid ones, the newest first."""
        self._disk = disk
        self.path = path
        self.slots = slots
        self.current = slots[0]
        fields = self.current.fields
        self.identity = DataIdentity(**{name: fields[name] for name in DataIdentity.__dataclass_fields__})

    @property
    def other(self) -> Slot | None:
        """The valid slot that is not current, if there is one."""
        return next((slot for slot in self.slots if slot.index != self.current.index), None)

    @property
    def redo_lsn(self) -> int:
        """Where replay starts for the current checkpoint."""
        return int(self.current.redo_lsn)

    @property
    def older_redo_lsn(self) -> int:
        """The lesser redo point of the valid slots."""
        return min(int(slot.redo_lsn) for slot in self.slots)

    @property
    def sequence(self) -> int:
        """The number of the current checkpoint."""
        return int(self.current.sequence)

    def choose(self, slot: Slot) -> Self:
        """Makes a valid slot current: the checkpoint in the newer one cannot be used."""
        self.current = slot
        return self

    def publish(self, **changes: Any) -> None:
        """Writes a newer slot, with these fields changed, over the one that is not current; durable on return.

        Raises `OSError`: whether the new slot or the one it overwrites will be found is unknown then.
        """
        self._write(1 - self.current.index, changes)

    def restate(self) -> None:
        """Writes the current checkpoint as the newest once more; durable on return.

        After a failed sync and a restart a slot may stand in the page cache only, and a slot whose image is damaged
        may come out whole the next time. So before a row is reused or the log trimmed by the current slot, it is
        stored over the newest one; if that tears, the other valid one still stands. The file's name, too, may stand
        in memory only: a process that was killed while it created the data may not have come to sync it.
        """
        self._disk.sync_directory(self.path.rpartition("/")[0])
        other = self.other
        if other is not None and other.fields["sequence"] < self.current.fields["sequence"]:
            self._write(self.current.index, {})
        else:
            self._write(1 - self.current.index, {})

    def _write(self, index: int, changes: dict[str, Any]) -> None:
        sequence = 1 + max(slot.fields["sequence"] for slot in self.slots)
        slot = Slot(index, {**self.current.fields, **changes, "sequence": sequence})
        store_slot(self._disk, self.path, index, DATA_CONTROL.pack(**slot.fields))
        self.slots = [slot, *(kept for kept in self.slots if kept.index != index)]
        self.current = slot


def create_control(disk: Disk, data_dir: str, identity: DataIdentity, redo_lsn: int) -> DataControl:
    """Creates the control file of an empty store. Durable on return, name included; a crash before leaves none."""
    fields = {
        **identity.__dict__,
        "version": FORMAT_VERSION,
        "features_required": 0,
        "sequence": 1,
        "redo_lsn": redo_lsn,
        "checkpoint_ns": identity.created_ns,
        "row_bytes": identity.stride,
        "rows_high": 0,
        "live_rows": 0,
        "image_number": 0,
        "image_bytes": 0,
        "image_crc": 0,
    }
    path = publish_control(disk, data_dir, DATA_CONTROL.pack(**fields))
    return DataControl(disk, path, [Slot(0, fields)])


def open_control(disk: Disk, data_dir: str) -> DataControl | None:
    """Reads the control file, changing nothing; None where there is none.

    Raises:
        HeaderCorruptionError: no slot is valid.
        FormatVersionError: a newer mmwal wrote it.
        ForeignDirectoryError: it is no control file of data.
    """
    path = f"{data_dir}/{CONTROL_NAME}"
    content = read_control(disk, path)
    if content is None:
        return None
    slots = [Slot(index, fields) for index, fields in read_slots(DATA_CONTROL, content)]
    if not slots:
        raise _unreadable(path, content)
    for slot in slots:
        _check(path, slot.fields)
    return DataControl(disk, path, slots)


def _unreadable(path: str, content: bytes) -> Exception:
    versions = [
        int.from_bytes(content[offset + 8 : offset + 10], "little")
        for offset in SLOT_OFFSETS
        if content[offset : offset + 8] == DATA_CONTROL.magic
    ]
    if not versions and any(content):
        return ForeignDirectoryError(path, "is not a control file of mmwal's data; choose another directory")
    if versions and min(versions) > FORMAT_VERSION:
        return FormatVersionError(path, min(versions), FORMAT_VERSION)
    return HeaderCorruptionError(
        path, "both slots of the control file are damaged; restore it from a backup of this directory"
    )


def _check(path: str, fields: dict[str, Any]) -> None:
    if fields["version"] > FORMAT_VERSION or fields["features_required"]:
        raise FormatVersionError(path, fields["version"], FORMAT_VERSION)
    identity = DataIdentity(**{name: fields[name] for name in DataIdentity.__dataclass_fields__})
    if (
        fields["dtype"] not in DTYPES
        or not fields["dimension"]
        or not 1 <= fields["metric"] <= 3
        or fields["row_bytes"] != identity.stride
    ):
        raise HeaderCorruptionError(
            path,
            f"dimension {fields['dimension']}, dtype {fields['dtype']}, metric {fields['metric']} and rows of "
            f"{fields['row_bytes']} bytes contradict each other; restore the file from a backup",
        )
