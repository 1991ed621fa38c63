"""``mmwal verify PATH``: what is damaged in a directory, where, what that means and what to do.

Not here: how it is found (`recovery/verify.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import mmwal
from mmwal.checkpoint.verify import Moved
from mmwal.cli.app import CORRUPTION, OK
from mmwal.cli.place import directory_arguments, json_option, kernel_option, print_json
from mmwal.recovery.verify import size_of

FINDINGS_SHOWN = 50
_STYLES = {"damaged": "bold red", "covered": "yellow", "torn": "dim"}
_MEANINGS = {
    "damaged": "What stood there is lost from this file.",
    "covered": "The disk lost something that it holds twice.",
    "torn": "This is no damage.",
}


@click.command()
@directory_arguments
@json_option
@kernel_option
def verify(path: str, data_dir: str | None, as_json: bool, kernel: mmwal.config.KernelName | None) -> int:
    """Compare everything in PATH with its checksums, and name what is damaged.

    PATH is the directory of a store or of a log. Nothing is changed, and nothing has to work: it may be open in another
    process, crashed, or too damaged to be opened. The exit code is 0 if all is whole, 3 if anything is damaged.
    """
    with _progress(size_of(path, data_dir=data_dir)) as moved:
        report = mmwal.verify(path, data_dir=data_dir, kernel=kernel, moved=moved)
    if as_json:
        print_json(report.to_dict())
    else:
        _show(Console(highlight=False), path, report)
    return OK if report.ok else CORRUPTION


@contextmanager
def _progress(total: int) -> Iterator[Moved]:
    """Shows a bar on a terminal's standard error, gone when it is done."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda more: bar.update(task, advance=more)


def _show(console: Console, path: str, report: mmwal.VerifyReport) -> None:
    console.print(
        f"[bold]mmwal verify[/] {escape(path)}: {report.bytes_read / 1e6:,.1f} MB read\n"
        f"  log   {report.entries:,} entries in {report.segments:,} segments, LSN {report.first_lsn} to "
        f"{report.last_lsn}\n"
        f"  data  {report.rows:,} rows, {report.sections:,} image sections\n",
        soft_wrap=True,
    )
    for finding in report.findings[:FINDINGS_SHOWN]:
        console.print(_place(finding, path))
        console.print(Text(f"    {finding.problem}"), soft_wrap=True)
    if len(report.findings) > FINDINGS_SHOWN:
        console.print(f"  … and {len(report.findings) - FINDINGS_SHOWN:,} more; --json lists all")
    if not report.findings:
        console.print("[bold green]Everything is whole.[/]")
        return
    table = Table.grid(padding=(0, 2))
    for severity, meaning in _MEANINGS.items():
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            table.add_row(
                Text(f"{len(found):,} {severity}", style=_STYLES[severity]), f"{meaning} To do: {found[0].advice}."
            )
    console.print()
    console.print(table)
    if report.ok:
        console.print("[bold green]Nothing is damaged.[/]")


def _place(finding: mmwal.Finding, path: str) -> Text:
    relative = os.path.relpath(finding.path, path)
    file = finding.path if relative.startswith(os.pardir) or relative == os.curdir else relative
    facts = (("offset", finding.offset), ("LSN", finding.lsn), ("id", finding.id))
    place = "".join(f", {name} {value!r}" for name, value in facts if value is not None)
    return Text.assemble(
        "  ", (f"{finding.severity:<8}", _STYLES[finding.severity]), f"{finding.what}: ", (file, "cyan"), place
    )
