"""Which directories a command is about, and how their content is printed; shared by the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

import mmwal
from mmwal import kernel as kernels
from mmwal.checkpoint.control import DataControl
from mmwal.config import KernelName
from mmwal.errors import StoreMissingError
from mmwal.log.control import open_control
from mmwal.recovery.log_opening import default_disk
from mmwal.recovery.read_only import settled
from mmwal.recovery.tail import Survey, survey
from mmwal.recovery.verify import directories_of

Command = TypeVar("Command", bound=Callable[..., Any])


def directory_arguments(command: Command) -> Command:
    """Adds PATH and ``--data-dir``."""
    command = click.option(
        "--data-dir",
        type=click.Path(file_okay=False),
        help="Where the matrix is, if PATH is the log's directory of a store on two disks.",
    )(command)
    return click.argument("path", type=click.Path(path_type=str))(command)


def json_option(command: Command) -> Command:
    """Adds ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def kernel_option(command: Command) -> Command:
    """Adds ``--kernel``."""
    return click.option("--kernel", type=click.Choice(["c", "py"]), help="The compiled kernel or its twin in Python.")(
        command
    )


def directories(path: str, data_dir: str | None) -> tuple[str, str | None]:
    """Returns the directories of log and data; None for a log alone. Raises `StoreMissingError`."""
    return directories_of(default_disk(), path, data_dir)


def look_at(wal_dir: str, data: DataControl | None, kernel: KernelName | None) -> Survey:
    """Judges the log as opening would, changing nothing; beside a live writer, once two looks agree.

    Raises what opening would: `DamageError` and other `OpenError`.
    """
    disk = default_disk()
    proven_lsn = max((int(slot.redo_lsn) for slot in data.slots), default=0) if data else 0

    def look() -> Survey:
        control = open_control(disk, wal_dir)
        if control is None:
            raise StoreMissingError(wal_dir)
        return survey(disk, kernels.load(kernel), wal_dir, control, proven_lsn)

    return settled(wal_dir, look)


def print_json(value: Any) -> None:
    """Prints a value as one line; bytes become hexadecimal, a time in ns stays a number.

    NaN and the infinities, for which JSON has no numbers, become the strings "NaN", "Infinity" and "-Infinity".
    """
    try:
        line = json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        line = json.dumps(_with_names(value), allow_nan=False)
    click.echo(line)


def _with_names(value: Any) -> Any:
    """Returns a value of plain ones, with names in place of the numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else json.dumps(value)
        case dict():
            return {key: _with_names(each) for key, each in value.items()}
        case list() | tuple():
            return [_with_names(each) for each in value]
        case str() | int() | None:
            return value
    return _with_names(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, mmwal.VerifyReport):
        return value.to_dict()
    return value.tolist() if hasattr(value, "tolist") else str(value)
