"""``mmwal completion SHELL``: the script that lets a shell complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mmwal.cli.app import OK


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of SHELL.

    bash: eval "$(mmwal completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: mmwal completion fish >
    ~/.config/fish/completions/mmwal.fish
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None, "click knows each of the choices"
    click.echo(kind(root, {}, "mmwal", "_MMWAL_COMPLETE").source())
    return OK
