"""``mmwal control PATH``: both slots of the control files of log and data, field by field."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmwal.checkpoint import control as data_control
from mmwal.cli.app import CORRUPTION, FAILURE, OK, told
from mmwal.cli.place import directories, directory_arguments, json_option, print_json
from mmwal.errors import OpenError
from mmwal.format.control import DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.layout import Layout
from mmwal.log import control as log_control
from mmwal.log.control_file import CONTROL_NAME, read_control
from mmwal.recovery.log_opening import default_disk


@click.command()
@directory_arguments
@json_option
def control(path: str, data_dir: str | None, as_json: bool) -> int:
    """Show both slots of each control file, which of them counts, and what is damaged.

    Nothing is changed. The exit code is 0 if each file has a slot that can be used, 1 if the system does not let one be
    read, else 3.
    """
    wal_dir, found_dir = directories(path, data_dir)
    files: dict[str, dict[str, Any]] = {}
    files["log"], code = _file(wal_dir, LOG_CONTROL, log_control.open_control)
    if found_dir is not None:
        files["data"], code_of_data = _file(found_dir, DATA_CONTROL, data_control.open_control)
        code = max(code, code_of_data)
    if as_json:
        print_json(files)
    else:
        for file in files.values():
            _show(Console(highlight=False), file)
    return code


def _file(directory: str, layout: Layout, open_control: Any) -> tuple[dict[str, Any], int]:
    """Returns what a control file says, and the exit code. ``problem``: why opening would refuse it, or None."""
    disk, path = default_disk(), f"{directory}/{CONTROL_NAME}"
    problem, code = None, OK
    try:
        content = read_control(disk, path)
        if open_control(disk, directory) is None:
            problem, code = f"{path}: the file is missing", CORRUPTION
    except (OpenError, OSError) as error:
        content, problem = _readable(path), told(error)
        code = CORRUPTION if isinstance(error, OpenError) else FAILURE
    slots = [layout.unpack(content, offset) if content else None for offset in SLOT_OFFSETS]
    newest = max((slot["sequence"] for slot in slots if slot is not None), default=None)
    facts = {
        "path": path,
        "problem": problem,
        "slots": [None if slot is None else {**slot, "newest": slot["sequence"] == newest} for slot in slots],
    }
    return facts, code


def _readable(path: str) -> bytes | None:
    try:
        return read_control(default_disk(), path)
    except (OpenError, OSError):
        return None


def _show(console: Console, file: dict[str, Any]) -> None:
    console.print(f"[bold]{escape(file['path'])}[/]", soft_wrap=True)
    table = Table("field", "slot 0", "slot 1", box=None, pad_edge=False)
    slots = [slot or {} for slot in file["slots"]]
    for name in dict.fromkeys(name for slot in slots for name in slot):
        table.add_row(name, *(_text(slot.get(name)) for slot in slots))
    if any(slots):
        console.print(table)
    for index, slot in enumerate(file["slots"]):
        if slot is None:
            console.print(f"slot {index}: blank or damaged")
    if file["problem"]:
        console.print(f"[bold red]{escape(file['problem'])}[/]", soft_wrap=True)
    console.print()


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return "" if value is None else str(value)
