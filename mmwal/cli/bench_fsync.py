"""``mmwal bench-fsync DIR``: is this disk fit for a log, and how fast can durable writes be there?

    sync          4 KiB written into an allocated, written file, then fdatasync: what a lone durable insert waits for
    sequential    3 MiB written and fdatasync: what a stream of large batches can reach

* All is written to one temporary file in DIR, which has no name left once it is open: it goes with the process.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from mmwal.cli.app import OK
from mmwal.cli.place import json_option, print_json
from mmwal.disk.place import file_system_of
from mmwal.recovery.log_opening import default_disk

_FILE_BYTES = 64 << 20
_PIECE_BYTES, _STREAM_BYTES = 4096, 3 << 20
_SUSPICIOUS_US = 20.0  # no disk without a battery behind it is so fast


@click.command(name="bench-fsync")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=str))
@click.option("--seconds", type=click.FloatRange(0.1), default=5.0, show_default=True, help="How long to measure.")
@json_option
def bench_fsync(directory: str, seconds: float, as_json: bool) -> int:
    """Measure what a sync costs in DIRECTORY, and say what that means for durable writes.

    It writes some 64 MB to a temporary file there, which is gone afterwards, also after Ctrl-C.
    """
    found = _measure(directory, seconds)
    if as_json:
        print_json(found)
    else:
        _show(Console(highlight=False, soft_wrap=True), directory, found)
    return OK


def _measure(directory: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile(dir=directory, prefix="mmwal-bench-") as file:
        fd = file.fileno()
        block = os.urandom(_STREAM_BYTES)
        for offset in range(0, _FILE_BYTES, 1 << 20):
            os.pwrite(fd, block[: 1 << 20], offset)
        os.fsync(fd)
        syncs = _timed(fd, block[:_PIECE_BYTES], seconds / 2)
        streams = _timed(fd, block, seconds / 2)
    ordered = sorted(syncs)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    warnings = default_disk().warnings_for(os.path.abspath(directory))
    if p50 * 1e6 < _SUSPICIOUS_US:
        warnings.append(
            f"a sync took {p50 * 1e6:.1f} us: this is memory, a cache with a battery, or a device that promises "
            "what it does not keep. Find out which before you rely on it."
        )
    return {
        "directory": os.path.abspath(directory),
        "file_system": file_system_of(directory),
        "syncs": len(syncs),
        "sync_us_p50": p50 * 1e6,
        "sync_us_p99": p99 * 1e6,
        "sync_us_max": ordered[-1] * 1e6,
        "durable_inserts_per_s": 1 / p50,
        "sequential_mb_per_s": _STREAM_BYTES / sorted(streams)[len(streams) // 2] / 1e6,
        "warnings": warnings,
    }


def _timed(fd: int, block: bytes, seconds: float) -> list[float]:
    """Writes and syncs a block at places one behind the other; returns how long each took."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        offset = len(taken) * len(block) % (_FILE_BYTES - len(block) + 1) // _PIECE_BYTES * _PIECE_BYTES
        started = time.perf_counter()
        os.pwrite(fd, block, offset)
        os.fdatasync(fd)
        taken.append(time.perf_counter() - started)
    return taken


def _show(console: Console, directory: str, found: dict[str, Any]) -> None:
    console.print(
        f"[bold]mmwal bench-fsync[/] {escape(directory)}, {found['file_system'] or 'file system unknown'}\n"
        f"  sync        p50 {found['sync_us_p50']:,.0f} us, p99 {found['sync_us_p99']:,.0f} us, "
        f"longest {found['sync_us_max']:,.0f} us, of {found['syncs']:,}\n"
        f"  sequential  {found['sequential_mb_per_s']:,.0f} MB/s\n\n"
        f"A thread that waits for each insert (sync_interval_ms=0) can expect up to "
        f"{found['durable_inserts_per_s']:,.0f} a second here; many threads share syncs. With an interval of N ms no "
        "insert waits, and a power cut takes at most the last N ms and one sync."
    )
    for warning in found["warnings"]:
        console.print(f"[bold yellow]warning[/] {escape(warning)}")
    if not found["warnings"]:
        console.print("[bold green]Nothing speaks against this directory.[/]")
