"""``mmwal repair PATH``: what opening does to a log after a crash, without anybody using it.

The judgement is that of `recovery/tail.py`, and so is the repair: without ``--dry-run`` the directory is opened and
closed. What opening refuses is not repaired here either; the error names what to do.
"""

from __future__ import annotations

import os
from typing import Any

import click

import mmwal
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.cli.app import OK
from mmwal.cli.place import directories, directory_arguments, json_option, kernel_option, look_at, print_json
from mmwal.cli.recover import progress_bar
from mmwal.config import KernelName
from mmwal.log.segment import segment_name
from mmwal.opening import open_store
from mmwal.recovery.log_opening import default_disk
from mmwal.recovery.tail import Survey


@click.command()
@directory_arguments
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@json_option
@kernel_option
def repair(path: str, data_dir: str | None, dry_run: bool, as_json: bool, kernel: KernelName | None) -> int:
    """Make a log that was not closed cleanly ready to go on: what opening would do first, step by step.

    Exit codes: 0 done or nothing to do, 1 it failed, 3 durable data is damaged, which is not repaired: see
    'mmwal recover --skip-corrupted'.
    """
    wal_dir, found_dir = directories(path, data_dir)
    data = open_data_control(default_disk(), found_dir) if found_dir is not None else None
    judged = look_at(wal_dir, data, kernel)
    steps = _steps(wal_dir, judged)
    if not dry_run:
        _open_and_close(wal_dir, found_dir, kernel)
    if as_json:
        print_json({"dry_run": dry_run, "clean": judged.clean, "end_lsn": judged.end_lsn, "steps": steps})
        return OK
    if not steps:
        click.echo("nothing to repair: the log was closed cleanly" if judged.clean else "nothing to repair")
    for step in steps:
        click.echo(f"{'would ' if dry_run else ''}{step['what']}: {step['path']}")
    return OK


def _steps(wal_dir: str, judged: Survey) -> list[dict[str, Any]]:
    """Returns what a repair does, in order."""
    steps: list[dict[str, Any]] = []

    def step(what: str, name: str) -> None:
        steps.append({"what": what, "path": f"{wal_dir}/{name}"})

    for note in judged.reached:
        if note.verdict.noted:
            steps.append({"what": f"{note.verdict.done} ({note.verdict.found})", "path": note.path})
    if judged.torn_tail_bytes and judged.run:
        step(f"cut {judged.torn_tail_bytes:,} bytes that were never whole, at LSN {judged.end_lsn}", _last(judged))
    for part in judged.run:
        step(
            f"store again what may be in memory only, and seal at LSN {part.end_lsn}", os.path.basename(part.info.path)
        )
    for number in judged.leftover_numbers:
        step("let go of a segment that was released", segment_name(number))
    for number in [] if judged.clean else judged.discarded_numbers:  # a clean log has them ready for use
        step("let go of a segment behind the end, which nothing makes durable", segment_name(number))
    return steps


def _last(judged: Survey) -> str:
    return os.path.basename(judged.run[-1].info.path)


def _open_and_close(wal_dir: str, data_dir: str | None, kernel: KernelName | None) -> None:
    config = mmwal.WalConfig(wal_dir=wal_dir, data_dir=data_dir, kernel=kernel)
    if data_dir is None:
        mmwal.WalManager(config).close()
        return
    with progress_bar() as progress:
        open_store(config, default_disk(), progress=progress).close()
