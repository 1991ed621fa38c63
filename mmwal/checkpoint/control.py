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
from mmwal.format.control import DATA_CONTROL
from mmwal.format.frame import align
from mmwal.format.segment import FORMAT_VERSION, LSN_MAX
from mmwal.kernel.interface import DTYPES
from mmwal.log.control import SEQUENCE_MAX
from mmwal.log.control_file import CONTROL_NAME, judge_slots, publish_control, read_control, store_slot
from mmwal.verdicts import Reached


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

    def __init__(self, disk: Disk, path: str, slots: list[Slot], reached: list[Reached] | None = None) -> None:
        """``slots`` are the valid ones, the newest first."""
        self._disk = disk
        self.path = path
        self.slots = slots
        self.reached = reached or []
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
    def pinned_lsn(self) -> int:
        """Where the log is needed from for the current checkpoint: before `redo_lsn` where a transaction begins there
        that was in doubt."""
        return int(self.current.pinned_lsn)

    @property
    def needed_lsn(self) -> int:
        """Where the log is needed from for whichever of the valid slots."""
        return min(int(slot.pinned_lsn) for slot in self.slots)

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
        "pinned_lsn": redo_lsn,
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
    """Reads the control file, changing nothing; None where there is none. Raises what `judge_slots` raises."""
    path = f"{data_dir}/{CONTROL_NAME}"
    content = read_control(disk, path)
    if content is None:
        return None
    slots, reached = judge_slots(DATA_CONTROL, path, content, _contradiction, tuple(DataIdentity.__dataclass_fields__))
    return DataControl(disk, path, [Slot(index, fields) for index, fields in slots], reached)


def _contradiction(fields: dict[str, Any]) -> tuple[str, str] | None:
    """Returns a field of a slot that is impossible, and why."""
    if fields["dtype"] not in DTYPES:
        return "dtype", f"dtype {fields['dtype']} is unknown"
    if not 1 <= fields["metric"] <= 3:
        return "metric", f"metric {fields['metric']} is unknown"
    stride = DataIdentity(**{name: fields[name] for name in DataIdentity.__dataclass_fields__}).stride
    if not fields["dimension"] or fields["row_bytes"] != stride:
        found = f"dimension {fields['dimension']}, dtype {fields['dtype']} and rows of {fields['row_bytes']} bytes"
        return "row_bytes", f"{found} contradict each other"
    for name, limit in (("redo_lsn", LSN_MAX), ("sequence", SEQUENCE_MAX), ("image_number", SEQUENCE_MAX)):
        if fields[name] > limit:
            return name, f"{name} {fields[name]} is impossible"
    if fields["pinned_lsn"] > fields["redo_lsn"]:
        return "pinned_lsn", f"pinned_lsn {fields['pinned_lsn']} lies behind redo_lsn {fields['redo_lsn']}"
    return None
