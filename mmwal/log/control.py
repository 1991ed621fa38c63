"""The log's control file: who the log is, where it begins, and whether it was closed cleanly.

Not here: the data's control file (`checkpoint/control.py`), the layout (`format/control.py`).

* The newer slot is never overwritten; a write goes to the other one and counts once it is synced.
* Segments below ``oldest_lsn`` may be gone only after a slot that says so is durable.
* ``clean`` is durable only while nothing was appended since; a writer clears it, durably, before its first append.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmwal.disk.interface import Disk
from mmwal.format.control import LOG_CONTROL
from mmwal.format.segment import (
    FORMAT_VERSION,
    PAGE_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    data_end,
    data_start,
    is_position,
)
from mmwal.kernel.interface import DTYPES
from mmwal.log.control_file import CONTROL_NAME, judge_slots, publish_control, read_control, store_slot
from mmwal.verdicts import Reached

METRIC_MAX = 3
DIMENSION_MAX = (1 << 31) - 1
INCARNATION_SHIFT = 32  # it is the high half of a transaction's number
INCARNATION_MAX = (1 << 32) - 2  # of the writer to come too
SEQUENCE_MAX = 1 << 63  # no log gets so far; room to count on


@dataclass(frozen=True, kw_only=True)
class LogIdentity:
    """What is fixed when a log is created."""

    store_id: bytes
    history_id: bytes
    epoch: int
    segment_bytes: int
    dimension: int
    dtype: int
    metric: int
    created_ns: int


class LogControl:
    """The two slots of ``wal_dir/control``. Single-threaded: the keeper writes, open and close do before and after."""

    def __init__(
        self, disk: Disk, path: str, slot: int, fields: dict[str, Any], reached: list[Reached] | None = None
    ) -> None:
        self._disk = disk
        self.path = path
        self.reached = reached or []
        self._slot = slot
        self._fields = fields
        self.identity = LogIdentity(**{name: fields[name] for name in LogIdentity.__dataclass_fields__})

    @property
    def oldest_lsn(self) -> int:
        return int(self._fields["oldest_lsn"])

    @property
    def released_lsn(self) -> int:
        """Where replay begins: above `oldest_lsn` where a transaction that ends behind it begins below."""
        return max(int(self._fields["released_lsn"]), self.oldest_lsn)

    @property
    def durable_lsn(self) -> int:
        return int(self._fields["durable_lsn"])

    @property
    def incarnation(self) -> int:
        return int(self._fields["incarnation"])

    @property
    def owned(self) -> bool:
        """Whether a store owns the log, so that nobody else may write to it or release it."""
        return bool(self._fields["owned"])

    @property
    def clean_end_lsn(self) -> int | None:
        """Where a clean close left the end of the log; None if a writer was there since."""
        return int(self._fields["end_lsn"]) if self._fields["clean"] else None

    def write_both(self, **changes: int) -> None:
        """Publishes twice, so that each slot alone says it: for what must not be forgotten if one is damaged later."""
        self.write(**changes)
        self.write(**changes)

    def write(self, **changes: int) -> None:
        """Publishes a newer slot with these fields changed; durable on return. Raises `OSError`."""
        fields = {**self._fields, **changes, "sequence": self._fields["sequence"] + 1}
        self._put(1 - self._slot, fields)
        self._fields, self._slot = fields, 1 - self._slot

    def store_again(self) -> None:
        """Stores the newer slot over itself, durably. After a failed sync and a restart it may be in memory only, and
        the older one, which the next write replaces, all that the disk has. Raises `OSError`."""
        self._put(self._slot, self._fields)

    def _put(self, slot: int, fields: dict[str, Any]) -> None:
        store_slot(self._disk, self.path, slot, LOG_CONTROL.pack(**fields))


def create_control(disk: Disk, wal_dir: str, identity: LogIdentity) -> LogControl:
    """Creates the control file of a new log. Durable on return, name included; a crash before leaves no log."""
    fields: dict[str, Any] = {
        **identity.__dict__,
        "version": FORMAT_VERSION,
        "features_required": 0,
        "sequence": 1,
        "oldest_lsn": data_start(0, identity.segment_bytes),
        "released_lsn": data_start(0, identity.segment_bytes),
        "durable_lsn": data_start(0, identity.segment_bytes),
        "incarnation": 0,
        "clean": 0,
        "owned": 0,
        "end_lsn": 0,
    }
    return LogControl(disk, publish_control(disk, wal_dir, LOG_CONTROL.pack(**fields)), 0, fields)


def open_control(disk: Disk, wal_dir: str) -> LogControl | None:
    """Reads the control file; None where there is none.

    Raises what `judge_slots` raises.
    """
    path = f"{wal_dir}/{CONTROL_NAME}"
    content = read_control(disk, path)
    if content is None:
        return None
    slots, reached = judge_slots(LOG_CONTROL, path, content, _contradiction, tuple(LogIdentity.__dataclass_fields__))
    slot, fields = slots[0]
    return LogControl(disk, path, slot, fields, reached)


def _contradiction(fields: dict[str, Any]) -> tuple[str, str] | None:
    """Returns a field of a slot that is impossible, and why."""
    if fields["dtype"] not in DTYPES:
        return "dtype", f"dtype {fields['dtype']} is unknown"
    if not 1 <= fields["metric"] <= METRIC_MAX:
        return "metric", f"metric {fields['metric']} is unknown"
    size = fields["segment_bytes"]
    if not SEGMENT_BYTES_MIN <= size <= SEGMENT_BYTES_MAX or size % PAGE_BYTES:
        return "segment_bytes", f"segment size {size} is impossible"
    limits = {"dimension": DIMENSION_MAX, "incarnation": INCARNATION_MAX, "sequence": SEQUENCE_MAX}
    for name, limit in (*limits.items(), ("clean", 1), ("owned", 1)):
        if fields[name] > limit:
            return name, f"{name} {fields[name]} is impossible"
    return _impossible_position(fields, size)


def _impossible_position(fields: dict[str, Any], size: int) -> tuple[str, str] | None:
    for name in ("durable_lsn", "end_lsn") if fields["clean"] else ("durable_lsn",):
        lsn = fields[name]
        if not is_position(lsn, size):
            return name, f"{name} {lsn} is no place where an entry ends"
        for least in ("oldest_lsn", "released_lsn"):
            if fields[least] > _next_start(lsn, size):
                return name, f"{name} {lsn} lies below {least} {fields[least]}"
    return None


def _next_start(lsn: int, size: int) -> int:
    """Returns where the frame behind a position begins."""
    number = (lsn - 1) // size
    return data_start(number + 1, size) if lsn == data_end(number, size) else lsn
