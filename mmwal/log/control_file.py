"""A control file as a file: published whole, read whole, one slot stored at a time.

Shared by the log's control (`control.py`) and the data's (`checkpoint/control.py`), which know what is in it.
"""

from __future__ import annotations

from mmwal.disk.interface import Disk
from mmwal.format.control import CONTROL_BYTES, SLOT_OFFSETS

CONTROL_NAME = "control"
_TEMPORARY_NAME = "control.tmp"


def publish_control(disk: Disk, directory: str, slot: bytes) -> str:
    """Creates the control file with one slot; returns its path. Durable on return, name included; a crash before
    leaves none, or the whole file."""
    temporary, path = f"{directory}/{_TEMPORARY_NAME}", f"{directory}/{CONTROL_NAME}"
    if disk.exists(temporary):
        disk.unlink(temporary)
    file = disk.create(temporary)
    try:
        file.write(0, slot.ljust(CONTROL_BYTES, b"\0"))
        file.sync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(directory)
    return path


def read_control(disk: Disk, path: str) -> bytes | None:
    """Returns the content of a control file, changing nothing; None where there is none."""
    if not disk.exists(path):
        return None
    file = disk.open(path, writable=False)
    try:
        return file.read(0, CONTROL_BYTES)
    finally:
        file.close()


def store_slot(disk: Disk, path: str, index: int, slot: bytes) -> None:
    """Overwrites one slot, durably. Raises `OSError`: whether the old or the new one will be found is unknown then."""
    file = disk.open(path, writable=True)
    try:
        file.write(SLOT_OFFSETS[index], slot)
        file.sync()
    finally:
        file.close()
