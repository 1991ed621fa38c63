"""``mmwal demo``: the command line of the story, where it takes place, and the exit code."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console

import mmwal
from mmwal.cli.app import FAILURE, OK, exit_code
from mmwal.cli.demo.child import Settings
from mmwal.cli.demo.report import as_dict
from mmwal.cli.demo.screen import Screen
from mmwal.cli.demo.story import Outcome, Watcher, tell


@click.command()
@click.option(
    "--dir",
    "path",
    type=click.Path(file_okay=False),
    help="Where to put the store: a new or empty directory. Without it, a temporary one in the current directory.",
)
@click.option("--keep", is_flag=True, help="Leave the store there when all is done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@click.option(
    "--kill-at",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="FRACTION",
    help="The part of the operations after which the writing process is killed.",
)
@click.option(
    "--sync-interval-ms",
    type=click.IntRange(0, 3_600_000),
    default=0,
    show_default=True,
    metavar="N",
    help="0: each write is durable on return. Killing a process loses nothing at any interval.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws another mix of operations.")
@click.option("--kernel", type=click.Choice(["c", "py"]), help="The compiled kernel or its twin in Python.")
def demo(
    path: str | None,
    keep: bool,
    as_json: bool,
    kill_at: float,
    sync_interval_ms: int,
    seed: int,
    kernel: str | None,
) -> int:
    """Load real embeddings, kill the process in the middle, recover, compare, search.

    6,411 embeddings of a standard library's documentation are inserted, updated and deleted by a child process that
    acknowledges each operation. It is killed; everything acknowledged must be there, and the finished load must
    answer 30 questions exactly. The exit code is 0 only if all of it holds.
    """
    with _place(path, keep) as directory:
        settings = Settings(directory=directory, sync_interval_ms=sync_interval_ms, seed=seed, kernel=kernel)
        if as_json:
            outcome = tell(settings, kill_at, Watcher())
            click.echo(json.dumps(as_dict(outcome)))
        else:
            outcome = _show(settings, kill_at)
        if keep and not as_json:
            click.echo(f"The store is in {directory}")
    return code_of(outcome)


def code_of(outcome: Outcome) -> int:
    """Returns the exit code of an outcome: 0 only if everything held."""
    if outcome.error is not None:
        return exit_code(outcome.error)
    return OK if outcome.holds else FAILURE


def _show(settings: Settings, kill_at: float) -> Outcome:
    console = Console(highlight=False)
    screen = Screen(console)
    relative = os.path.relpath(settings.directory)
    place = settings.directory if relative.startswith(os.pardir) else relative
    screen.introduce(place, settings.kernel or mmwal.kernel_in_use(), settings.sync_interval_ms)
    with screen:
        outcome = tell(settings, kill_at, screen)
    screen.conclude(outcome)
    return outcome


@contextmanager
def _place(path: str | None, keep: bool) -> Iterator[str]:
    """Yields an empty directory; afterwards what was made goes, unless it is to be kept."""
    if path is None:
        directory = tempfile.mkdtemp(prefix="mmwal-demo-", dir=os.getcwd())
        made: str | None = directory
    else:
        directory = os.path.abspath(path)
        if os.path.isdir(directory) and os.listdir(directory):
            raise click.BadParameter("it is not empty; choose a new directory", param_hint="--dir")
        made = _first_missing(directory)
        os.makedirs(directory, exist_ok=True)
    try:
        yield directory
    finally:
        if not keep:
            _clear(directory, made)


def _first_missing(directory: str) -> str | None:
    """Returns the highest folder on the way that does not exist yet; None if all do."""
    missing = None
    while not os.path.exists(directory):
        missing, directory = directory, os.path.dirname(directory)
    return missing


def _clear(directory: str, made: str | None) -> None:
    if made is not None:
        shutil.rmtree(made)
        return
    for name in os.listdir(directory):
        shutil.rmtree(os.path.join(directory, name))
