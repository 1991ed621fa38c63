"""``mmwal recover``: recovery of a store, or what it would find; `tools/recover.py` is the same from a checkout.

* A dry run opens the directory for reading only: it changes no byte, and may run beside a live writer.
* Neither does a recovery to a point in the past (`past.py`): it is a dry run, or makes a new store of what was there.
* A recovery is `CrashRecoveryManager`'s, and then a clean close. With ``--workers`` above 1 it runs in a pool of
  processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

import mmwal
from mmwal import kernel as kernels
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.cli.app import OK
from mmwal.cli.past import check_out, moment, position_of, write_new
from mmwal.cli.place import directories, json_option, kernel_option, print_json
from mmwal.config import KernelName
from mmwal.log.control import open_control
from mmwal.opening import open_store
from mmwal.recovery.log_opening import default_disk
from mmwal.recovery.salvage import salvage

_PHASES = {"verify": "verifying the log", "copy": "copying vectors"}


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=str))
@click.option("--wal-dir", type=click.Path(path_type=str), help="The log's directory, where PATH is not given.")
@click.option("--data-dir", type=click.Path(path_type=str), help="The directory of matrix and checkpoints.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes that verify and copy; left out: threads.")
@click.option("--dry-run", is_flag=True, help="Say what recovery would find, and change nothing.")
@click.option("--to-lsn", type=click.IntRange(0), help="The state as of this LSN; needs --out or --dry-run.")
@click.option("--to-time", callback=moment, help="The same as of a time, such as 2026-01-31T12:00:00Z.")
@click.option("--out", type=click.Path(path_type=str), help="A new directory for the store as of then.")
@click.option("--skip-corrupted", is_flag=True, help="Leave damaged entries out. Loses data; says which.")
@click.option("--strict", is_flag=True, help="Refuse a log whose last write was cut short, and change nothing.")
@click.option("--max-time-ms", type=click.IntRange(1), help="Give up, with nothing changed, if reading takes longer.")
@json_option
@kernel_option
def recover(
    path: str | None,
    wal_dir: str | None,
    data_dir: str | None,
    workers: int | None,
    dry_run: bool,
    to_lsn: int | None,
    to_time: int | None,
    out: str | None,
    skip_corrupted: bool,
    strict: bool,
    max_time_ms: int | None,
    as_json: bool,
    kernel: KernelName | None,
) -> int:
    """Recover the store in PATH, and close it cleanly; or say with --dry-run what that would find.

    With --to-lsn or --to-time PATH is only read, and the store as it was then is written to --out as a new one.

    Exit codes: 0 recovered, 1 it failed (locked, no space, over its time), 2 the command line is wrong, 3 durable data
    is damaged and nothing was changed.
    """
    _check_past(to_lsn, to_time, out, dry_run=dry_run, skip_corrupted=skip_corrupted, strict=strict)
    wal_dir, data_dir = places(path, wal_dir, data_dir)
    if out is not None:
        check_out(out, wal_dir, data_dir)
    if to_time is not None:
        to_lsn = position_of(wal_dir, data_dir, to_time, kernel)
    losses: list[str] = []
    if to_lsn is not None:
        with opened(wal_dir, data_dir, workers, max_time_ms, kernel, to_lsn) as store:
            stats: mmwal.RecoveryStats | None = store.recovery_stats
            if out is not None:
                write_new(store, wal_dir, out, kernel)
    elif dry_run:
        stats, losses = _would_be(wal_dir, data_dir, workers, skip_corrupted, max_time_ms, kernel)
    else:
        stats = _recovered(wal_dir, data_dir, workers, skip_corrupted, strict, max_time_ms, kernel)
    if as_json:
        found = stats.to_dict() if stats is not None else None
        where = {"wal_dir": wal_dir, "data_dir": data_dir, "target_lsn": to_lsn, "out": out}
        print_json({"dry_run": dry_run, **where, "stats": found, "losses": losses})
        return OK
    if to_lsn is not None:
        click.echo(f"as of LSN {to_lsn}" + (f", written to {out} as a new store" if out is not None else ""))
    if stats is not None:
        click.echo(f"dry run: nothing was changed\n{stats}" if dry_run else str(stats))
    if dry_run and skip_corrupted:
        click.echo(f"{len(losses):,} stretches would be left out" if losses else "nothing is damaged")
    for loss in losses:
        click.echo(f"  {loss}")
    return OK


def _check_past(
    to_lsn: int | None, to_time: int | None, out: str | None, *, dry_run: bool, skip_corrupted: bool, strict: bool
) -> None:
    """Raises `click.UsageError` for options that contradict each other."""
    if to_lsn is not None and to_time is not None:
        raise click.UsageError("give --to-lsn or --to-time, not both")
    is_past = to_lsn is not None or to_time is not None
    if is_past and (out is not None) == dry_run:
        raise click.UsageError(
            "--to-lsn and --to-time leave the directory as it is: give --out DIR for the store as of then, or --dry-run"
        )
    if out is not None and not is_past:
        raise click.UsageError("--out goes with --to-lsn or --to-time")
    if strict and (is_past or dry_run or skip_corrupted):
        raise click.UsageError(
            "--strict is for a recovery to the end of a whole log: without --skip-corrupted, --dry-run or a past"
        )
    if is_past and skip_corrupted:
        raise click.UsageError("--skip-corrupted goes with a recovery to the end of the log only")


def places(path: str | None, wal_dir: str | None, data_dir: str | None) -> tuple[str, str]:
    """Returns the directories of a store's log and data. Raises `click.UsageError`, `StoreMissingError`."""
    if (path is None) == (wal_dir is None):
        raise click.UsageError("give the directory of the store, or --wal-dir and --data-dir")
    found_wal, found_data = directories(path if path is not None else str(wal_dir), data_dir)
    if found_data is None:
        raise click.UsageError(
            f"{path or wal_dir} is a log alone, which opening recovers by itself (see 'mmwal repair'); "
            "for a store, give --data-dir, too"
        )
    return found_wal, found_data


def _recovered(
    wal_dir: str,
    data_dir: str,
    workers: int | None,
    skip_corrupted: bool,
    strict: bool,
    max_time_ms: int | None,
    kernel: KernelName | None,
) -> mmwal.RecoveryStats:
    config = mmwal.RecoveryConfig(
        wal_dir=wal_dir,
        data_dir=data_dir,
        workers=workers,
        skip_corrupted_entries=skip_corrupted,
        strict=strict,
        max_recovery_time_ms=max_time_ms,
        kernel=kernel,
    )
    with progress_bar() as progress:
        manager = mmwal.CrashRecoveryManager(config, progress=progress)
        manager.recover().close()
    return manager.get_recovery_stats()


@contextmanager
def opened(
    wal_dir: str,
    data_dir: str,
    workers: int | None,
    max_time_ms: int | None,
    kernel: KernelName | None,
    until_lsn: int | None = None,
) -> Iterator[mmwal.VectorStore]:
    """Opens a store for reading, as recovery would find it, now or as of a position."""
    config = mmwal.WalConfig(wal_dir=wal_dir, data_dir=data_dir, kernel=kernel)
    with progress_bar() as progress:
        store = open_store(
            config,
            default_disk(),
            read_only=True,
            workers=workers,
            processes=workers is not None,
            progress=progress,
            limit_ms=max_time_ms,
            until_lsn=until_lsn,
        )
    with store:
        yield store


def _would_be(
    wal_dir: str,
    data_dir: str,
    workers: int | None,
    skip_corrupted: bool,
    max_time_ms: int | None,
    kernel: KernelName | None,
) -> tuple[mmwal.RecoveryStats | None, list[str]]:
    """Returns what a recovery would report, and what it would leave out."""
    disk = default_disk()
    try:
        with opened(wal_dir, data_dir, workers, max_time_ms, kernel) as store:
            return store.recovery_stats, []
    except mmwal.DamageError:
        control = open_control(disk, wal_dir)
        if not skip_corrupted or control is None:
            raise
        data = open_data_control(disk, data_dir)
        proven_lsn = max((int(slot.redo_lsn) for slot in data.slots), default=0) if data else 0
        left = salvage(disk, kernels.load(kernel), wal_dir, control, proven_lsn)
        return None, [str(loss) for loss in left.losses]


@contextmanager
def progress_bar() -> Iterator[Callable[[mmwal.RecoveryProgress], object]]:
    """Shows how far a recovery is on a terminal's standard error, gone when it is done."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def show(progress: mmwal.RecoveryProgress) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bar.add_task(_PHASES[progress.phase], total=progress.total_bytes)
        bar.update(tasks[progress.phase], completed=progress.done_bytes)

    with bar:
        yield show
