"""The `mmwal` command.

    app.py        the command line: its commands, and how errors become messages and exit codes
    place.py      the arguments and the printing that commands share
    inspect.py    ``mmwal inspect``, and so on: control, dump, verify, recover, repair, bench_fsync, completion, version
    demo/         ``mmwal demo``

A new command is one `click.command` in a module of its own here, and one line in the table of `app.py`.

* `click` and `rich` come with the extra ``cli`` and are imported by nothing outside this room, nor by this module:
  the script exists without them and says what to install.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

USAGE = 2  # the exit code for a mistake on the command line; the others are in app.py


def main() -> None:
    """Runs the command line and leaves the process with its exit code."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        print(
            f"mmwal: the command line needs {' and '.join(missing)}, which came without it.\n"
            'Install the extra that holds it:  pip install "mmwal[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(USAGE)
    from mmwal.cli.app import run

    raise SystemExit(run(sys.argv[1:]))
