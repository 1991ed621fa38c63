"""``mmwal inspect PATH``: what is in a directory, on one screen.

Not here: how it is found out (`recovery/tail.py`, `checkpoint/`), whether all of it is sound (`verify.py`).

* Nothing is changed, and nobody is kept waiting: it works beside a live writer, after a crash, and on what opening
  refuses, of which it shows what can be read.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmwal.checkpoint.control import DataControl
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.checkpoint.image import image_path
from mmwal.cli.app import CORRUPTION, FAILURE, OK, told
from mmwal.cli.place import directories, directory_arguments, json_option, kernel_option, look_at, print_json
from mmwal.config import KernelName
from mmwal.disk.interface import Disk
from mmwal.errors import OpenError
from mmwal.kernel.interface import DTYPES
from mmwal.log.control import LogControl, open_control
from mmwal.log.segment import is_spare, segment_number
from mmwal.recovery.log_opening import METRIC_NAMES, default_disk
from mmwal.recovery.tail import Survey
from mmwal.state.matrix import MATRIX_NAME


@click.command()
@directory_arguments
@json_option
@kernel_option
def inspect(path: str, data_dir: str | None, as_json: bool, kernel: KernelName | None) -> int:
    """Show what is in PATH, the directory of a store or of a log: whose it is, what it holds, what a crash left.

    Nothing is changed, and it may be open in another process. The exit code is 3 if opening would refuse it, 1 if the
    system does not let it be read.
    """
    wal_dir, found_dir = directories(path, data_dir)
    facts, code = _facts(wal_dir, found_dir, kernel)
    if as_json:
        print_json(facts)
    else:
        _show(Console(highlight=False), path, facts)
    return code


def _facts(wal_dir: str, data_dir: str | None, kernel: KernelName | None) -> tuple[dict[str, Any], int]:
    """Returns what is there, and the exit code: what was found damaged weighs more than what could not be read."""
    disk, problems, codes = default_disk(), list[str](), {OK}

    def attempt(read: Any) -> Any:
        try:
            return read()
        except (OpenError, OSError) as error:
            problems.append(told(error))
            codes.add(CORRUPTION if isinstance(error, OpenError) else FAILURE)
            return None

    data = attempt(lambda: open_data_control(disk, data_dir)) if data_dir is not None else None
    control = attempt(lambda: open_control(disk, wal_dir))
    judged = None
    if control is not None:
        judged = attempt(lambda: look_at(wal_dir, data, kernel))
    elif not problems:
        problems.append(f"{wal_dir}: there is no control file")
        codes.add(CORRUPTION)
    facts: dict[str, Any] = {
        "wal_dir": wal_dir,
        "data_dir": data_dir,
        "identity": _identity(control, data),
        "writer": writer_of(wal_dir),
        "log": _log(disk, wal_dir, control, judged, data),
        "data": _data(data_dir, data) if data is not None and data_dir is not None else None,
        "notes": judged.notes if judged is not None else [],
        "problems": problems,
    }
    return facts, max(codes)


def _identity(control: LogControl | None, data: DataControl | None) -> dict[str, Any] | None:
    known = control.identity if control is not None else data.identity if data is not None else None
    if known is None:
        return None
    dimension = data.identity.dimension if data is not None else known.dimension
    return {
        "store_id": known.store_id,
        "history_id": known.history_id,
        "epoch": known.epoch,
        "created": datetime.fromtimestamp(known.created_ns / 1e9, UTC).isoformat(timespec="seconds"),
        "dimension": dimension or None,
        "dtype": DTYPES[known.dtype].name,
        "metric": METRIC_NAMES[known.metric],
    }


def _log(
    disk: Disk, wal_dir: str, control: LogControl | None, judged: Survey | None, data: DataControl | None
) -> dict[str, Any]:
    names = disk.list_directory(wal_dir) if disk.exists(wal_dir) else []
    facts: dict[str, Any] = {
        "files": sum(segment_number(name) is not None for name in names),
        "spares": sum(map(is_spare, names)),
        "bytes_on_disk": sum(_size(f"{wal_dir}/{name}") for name in names),
        "free_bytes": shutil.disk_usage(wal_dir).free if os.path.isdir(wal_dir) else None,
    }
    if control is not None:
        facts |= {
            "segment_bytes": control.identity.segment_bytes,
            "oldest_lsn": control.oldest_lsn,
            "owned_by_a_store": control.owned,
            "closed_cleanly": control.clean_end_lsn is not None,
        }
    if judged is not None:
        redo_lsn = data.redo_lsn if data is not None else control.released_lsn if control is not None else 0
        facts |= {
            "segments": len(judged.segments),
            "sealed": len(judged.sealed),
            "redo_lsn": redo_lsn,
            "durable_lsn": judged.durable_lsn,
            "end_lsn": judged.end_lsn,
            "live_bytes": max(judged.end_lsn - redo_lsn, 0),
            "torn_tail_bytes": judged.torn_tail_bytes,
        }
    return facts


def _data(data_dir: str, data: DataControl) -> dict[str, Any]:
    slot = data.current
    return {
        "checkpoint": data.sequence,
        "redo_lsn": data.redo_lsn,
        "checkpoint_time": datetime.fromtimestamp(slot.checkpoint_ns / 1e9, UTC).isoformat(timespec="seconds"),
        "older_checkpoint_redo_lsn": int(data.other.redo_lsn) if data.other is not None else None,
        "live_rows": int(slot.live_rows),
        "rows_high": int(slot.rows_high),
        "image": os.path.basename(image_path(data_dir, int(slot.image_number))) if slot.image_bytes else None,
        "image_bytes": int(slot.image_bytes),
        "matrix_bytes": _size(f"{data_dir}/{MATRIX_NAME}"),
        "free_bytes": shutil.disk_usage(data_dir).free,
    }


def writer_of(wal_dir: str) -> int | None:
    """Returns the process that has the directory open for writing, None for nobody, and where nobody can tell.

    It is read from the kernel's list of locks: trying the lock would for an instant keep a writer out.
    """
    with suppress(OSError, ValueError):
        found = os.stat(f"{wal_dir}/lock")
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        with open("/proc/locks", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if "FLOCK" in words and place in words and "->" not in words:
                    return int(words[words.index(place) - 1])
    return None


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return 0


def _show(console: Console, path: str, facts: dict[str, Any]) -> None:
    identity, log, data, writer = facts["identity"], facts["log"], facts["data"], facts["writer"]
    table = Table.grid(padding=(0, 2))
    if identity:
        vectors = f"{identity['dimension'] or '?'} x {identity['dtype']}, {identity['metric']}"
        table.add_row("store", f"{identity['store_id'].hex()}, created {identity['created']}")
        table.add_row("history", f"{identity['history_id'].hex()}, epoch {identity['epoch']}")
        table.add_row("vectors", vectors)
    state = f"open in process {writer}" if writer else "closed" if log.get("closed_cleanly") else "not closed cleanly"
    table.add_row("state", state)
    if "end_lsn" in log:
        table.add_row(
            "log",
            f"LSN {log['oldest_lsn']:,} to {log['end_lsn']:,}, durable {log['durable_lsn']:,}, "
            f"replay from {log['redo_lsn']:,} ({_mb(log['live_bytes'])})",
        )
    if "segment_bytes" in log:
        sealed = f", {log['sealed']} sealed" if "sealed" in log else ""
        table.add_row(
            "segments",
            f"{log['files']} of {_mb(log['segment_bytes'])}{sealed}, {log['spares']} spare; "
            f"{_mb(log['bytes_on_disk'])} on disk, {_mb(log['free_bytes'] or 0)} free",
        )
    if log.get("torn_tail_bytes"):
        table.add_row("tail", f"{log['torn_tail_bytes']:,} bytes were cut short; opening cuts them off")
    if data:
        table.add_row("checkpoint", f"{data['checkpoint']} of {data['checkpoint_time']}, at LSN {data['redo_lsn']:,}")
        table.add_row(
            "data",
            f"{data['live_rows']:,} ids in {data['rows_high']:,} rows; matrix {_mb(data['matrix_bytes'])}, "
            f"image {_mb(data['image_bytes'])}, {_mb(data['free_bytes'])} free",
        )
    elif facts["data_dir"] is None:
        table.add_row("data", "none: a log alone")
    console.print(f"[bold]{escape(path)}[/]", soft_wrap=True)
    console.print(table)
    for note in facts["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}", soft_wrap=True)
    for problem in facts["problems"]:
        console.print(f"[bold red]problem[/] {escape(problem)}", soft_wrap=True)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
