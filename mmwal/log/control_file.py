"""A control file as a file: published whole, read whole, judged, one slot stored at a time.

Shared by the log's control (`control.py`) and the data's (`checkpoint/control.py`), which know what is in it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from mmwal.disk.interface import Disk, File
from mmwal.errors import ForeignDirectoryError, FormatVersionError, HeaderCorruptionError, OpenError
from mmwal.format.control import CONTROL_BYTES, SLOT_OFFSETS
from mmwal.format.layout import Layout
from mmwal.format.segment import FORMAT_VERSION, PAGE_BYTES
from mmwal.verdicts import NAME, SLOTS, Reached

CONTROL_NAME = "control"
TEMPORARY_NAME = "control.tmp"
NOT_A_FILE = frozenset((errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO))  # how opening no regular file fails

Contradiction = Callable[[dict[str, Any]], tuple[str, str] | None]  # the field, and what is impossible about it
_VERSION_AT = slice(8, 10)  # behind the magic, in every version


def publish_control(disk: Disk, directory: str, slot: bytes) -> str:
    """Creates the control file with one slot; returns its path. Durable on return, name included; a crash before
    leaves none, or the whole file."""
    temporary, path = f"{directory}/{TEMPORARY_NAME}", f"{directory}/{CONTROL_NAME}"
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
    file = open_to_read(disk, path, "control")
    try:
        return file.read(0, CONTROL_BYTES)
    finally:
        file.close()


def open_to_read(disk: Disk, path: str, name: str) -> File:
    """Opens a file of ours. Raises `ForeignDirectoryError` where a link, a directory or a device has its name."""
    try:
        return disk.open(path, writable=False)
    except OSError as error:
        if error.errno not in NOT_A_FILE:
            raise
        raise NAME.verdict(name=name, kind="other").mark(
            ForeignDirectoryError(path, "a link, directory or device is where a file should be; move it away")
        ) from error


def judge_slots(
    layout: Layout, path: str, content: bytes, contradiction: Contradiction, shared: tuple[str, ...]
) -> tuple[list[tuple[int, dict[str, Any]]], list[Reached]]:
    """Returns the sound slots as (slot index, fields), the newest first, and what was found.

    ``contradiction`` says what is impossible in a slot, ``shared`` names the fields that both must have alike.
    Raises `HeaderCorruptionError`, `FormatVersionError` or `ForeignDirectoryError`, as the table of verdicts says.
    """
    slots = [layout.unpack(content, offset) for offset in SLOT_OFFSETS]
    states = [
        _state(layout, fields, content[offset : offset + PAGE_BYTES], contradiction)
        for fields, offset in zip(slots, SLOT_OFFSETS, strict=True)
    ]
    sound = [(index, fields) for index, fields in enumerate(slots) if fields is not None and states[index] == "sound"]
    agree = len({tuple(fields[name] for name in shared) for _, fields in sound}) <= 1
    verdict = SLOTS.verdict(first=states[0], second=states[1], agree="yes" if agree else "no")
    if verdict.error is not None:
        raise verdict.mark(_refusal(verdict.label, layout, path, content, slots, contradiction, shared))
    return sorted(sound, key=lambda slot: -int(slot[1]["sequence"])), [Reached(verdict, path)]


def _state(layout: Layout, fields: dict[str, Any] | None, page: bytes, contradiction: Contradiction) -> str:
    if fields is not None:
        if fields["version"] > FORMAT_VERSION or fields["features_required"]:
            return "newer"
        return "impossible" if contradiction(fields) else "sound"
    if page == bytes(len(page)):
        return "blank"
    if not page.startswith(layout.magic or b""):
        return "alien"
    return "later" if _version(page) > FORMAT_VERSION else "damaged"


def _version(page: bytes) -> int:
    return int.from_bytes(page[_VERSION_AT], "little")


def _refusal(
    label: str,
    layout: Layout,
    path: str,
    content: bytes,
    slots: list[dict[str, Any] | None],
    contradiction: Contradiction,
    shared: tuple[str, ...],
) -> OpenError:
    """Returns the error that a verdict on two slots asks for."""
    whole = [fields for fields in slots if fields is not None]
    match label:
        case "slots-newer":
            pages = [content[offset : offset + PAGE_BYTES] for offset in SLOT_OFFSETS]
            found = [fields["version"] for fields in whole] or [
                _version(page) for page in pages if page.startswith(layout.magic or b"")
            ]
            return FormatVersionError(path, max(found), FORMAT_VERSION)
        case "slots-alien":
            return ForeignDirectoryError(path, f"is not mmwal's {layout.title.lower()}; choose another directory")
        case "slots-impossible":
            named, reason = next(wrong for fields in whole if (wrong := contradiction(fields)))
            return HeaderCorruptionError(path, f"{reason}; restore the file from a backup", field=named)
        case "slots-contradict":
            field = next(name for name in whole[0] if name in shared and whole[0][name] != whole[1][name])
            problem = "its two slots are of two stores; restore the file from a backup of this directory"
        case _:
            field = layout.broken_field(content, SLOT_OFFSETS[0])
            problem = "both slots of the control file are damaged; restore it from a backup of this directory"
    return HeaderCorruptionError(path, problem, field=field)


def store_slot(disk: Disk, path: str, index: int, slot: bytes) -> None:
    """Overwrites one slot, durably. Raises `OSError`: whether the old or the new one will be found is unknown then."""
    file = disk.open(path, writable=True)
    try:
        file.write(SLOT_OFFSETS[index], slot)
        file.sync()
    finally:
        file.close()
