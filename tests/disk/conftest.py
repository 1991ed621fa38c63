"""What the tests of the disk room share: the real disk, file systems of their own, child processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("mmwal.testing.contract")

from mmwal.disk.posix import PosixDisk  # noqa: E402 (after the line above, which would come too late)

Mount = Callable[..., str]
Script = Callable[..., list[str]]


@pytest.fixture
def disk() -> PosixDisk:
    return PosixDisk()


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Mount]:
    """Mount a tmpfs with given options and return where; skip where this process may not."""
    mounted = []

    def mount(options: str = "size=1m", name: str = "mounted") -> str:
        point = tmp_path / name
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(point)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
        mounted.append(point)
        return str(point)

    yield mount
    for point in mounted:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture
def script() -> Script:
    """Run Python code in a process of its own and return what it printed, line by line.

    The process has `disk`, and its arguments as `args`. A signal, an exception or a warning there fails the test.
    """

    def run(code: str, *args: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT_HEAD + code, *args],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


SCRIPT_HEAD = """
import errno, os, signal, sys
from mmwal.disk.posix import PosixDisk
args = sys.argv[1:]
disk = PosixDisk()
"""


def environment() -> dict[str, str]:
    """Return an environment in which a child finds the same mmwal as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
