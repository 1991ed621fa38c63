"""A part of a benchmark in a process of its own: what it prints, its memory, and the files that it finds.

A script that has such parts begins its ``main`` with them: ``--act NAME WORDS``, and prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

_SAMPLE_S = 0.002


def child(script: str, *words: object) -> Any:
    """Runs a part of a script in a process of its own; returns what it printed."""
    command = [sys.executable, script, "--act", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL) or not done.stdout:
        raise SystemExit(f"{words[0]} ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout)


def anonymous_bytes() -> int:
    """Returns this process's memory that is no file's."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


class Sampler:
    """Notes the most memory that is in use while it lasts."""

    def __init__(self, active: bool) -> None:
        self.most = 0
        self._active = active
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self.most = max(self.most, anonymous_bytes())

    def __enter__(self) -> Sampler:
        if self._active:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._active:
            self._thread.join()


def fresh(left: Path, copy: Path, *, cold: bool) -> None:
    """Makes a copy of a store, in the page cache or out of it."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(left, copy)
    if cold:
        drop(copy)


def drop(directory: Path) -> None:
    """Writes a directory's files back, and drops them from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
