"""The command line: its commands, and how errors become messages and exit codes.

* A user's mistake, a full disk, a locked directory end in one message and an exit code, never in a traceback. A
  traceback is a defect of ours.
* Commands are imported when they are called, so that none pays for another.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence

import click

from mmwal.cli import USAGE
from mmwal.errors import DamageError, WalConfigError, WalError

OK, FAILURE, CORRUPTION = 0, 1, 3
INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended

# Name, module and function of each command. The module is imported when the command is called.
COMMANDS = {
    "bench-fsync": ("mmwal.cli.bench_fsync", "bench_fsync"),
    "completion": ("mmwal.cli.completion", "completion"),
    "control": ("mmwal.cli.control", "control"),
    "demo": ("mmwal.cli.demo.command", "demo"),
    "drill": ("mmwal.cli.drill", "drill"),
    "dump": ("mmwal.cli.dump", "dump"),
    "inspect": ("mmwal.cli.inspect", "inspect"),
    "recover": ("mmwal.cli.recover", "recover"),
    "repair": ("mmwal.cli.repair", "repair"),
    "verify": ("mmwal.cli.verify", "verify"),
    "version": ("mmwal.cli.version", "version"),
}


class Commands(click.Group):
    """A group that finds its commands in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), function)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def mmwal() -> None:
    """A write-ahead log and a durable vector store: what was acknowledged comes back.

    Exit codes: 0 all is well, 1 it failed, 2 the command line is wrong, 3 data on disk is damaged.
    """


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # of what it is given, the text is enough
            result = mmwal.main(args=list(arguments), prog_name="mmwal", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except (WalError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone
            sys.stderr.close()
            return FAILURE
        click.echo(f"mmwal: {told(error)}", err=True)
        return exit_code(error)
    return result if isinstance(result, int) else OK


def _show_warning(message: Warning | str, *_: object) -> None:
    click.echo(f"mmwal: warning: {message}", err=True)


def told(error: BaseException) -> str:
    """Returns what is said of an error: its message, and of a missing right what to do."""
    if isinstance(error, PermissionError):
        return f"{error}; run this as the user to whom it belongs"
    return str(error)


def exit_code(error: BaseException) -> int:
    """Returns the exit code that an error ends a command with."""
    if isinstance(error, DamageError):
        return CORRUPTION
    return USAGE if isinstance(error, WalConfigError) else FAILURE
