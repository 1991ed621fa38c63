"""``mmwal version``: what is installed, and which kernel does the work."""

from __future__ import annotations

import json
import platform

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

import mmwal

_KERNELS = {"c": "compiled", "py": "pure Python"}


def facts() -> dict[str, str]:
    """Returns what a bug report should say, by name."""
    return {
        "mmwal": mmwal.__version__,
        "kernel": mmwal.kernel_in_use(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "numpy": np.__version__,
        "msgspec": msgspec.__version__,
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def version(as_json: bool) -> None:
    """Say which mmwal, kernel, Python and platform this is."""
    found = facts()
    if as_json:
        click.echo(json.dumps(found))
        return
    found["kernel"] += f" ({_KERNELS[found['kernel']]})"
    table = Table.grid(padding=(0, 2))
    for name, value in found.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
