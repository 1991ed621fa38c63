"""What the tests with real processes share: which mmwal they run, and how."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmwal

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment() -> dict[str, str]:
    """The environment in which a child imports the mmwal under test, and this suite."""
    roots = [str(Path(mmwal.__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(roots)), "COLUMNS": "100"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs ``python ARGUMENTS...`` in an empty directory."""

    def run_python(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run_python


@pytest.fixture
def kernel_name(kernel: Any) -> str:
    """Each kernel's name in turn: "c", "py"."""
    name: str = kernel.NAME
    return name
