"""Fixtures of the kernel's tests: both kernels side by side, and a C compiler."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import mmwal.kernel


@pytest.fixture
def twins() -> tuple[Any, Any]:
    """The compiled kernel and the twin, for tests that compare them."""
    try:
        return mmwal.kernel.load("c"), mmwal.kernel.load("py")
    except ImportError:
        if os.environ.get("MMWAL_REQUIRE_EXTENSION", "") not in ("", "0"):
            raise
        pytest.skip("mmwal.kernel._kernel is not built")


@pytest.fixture
def c_sources() -> Path:
    """The folder of the C sources; they are not installed with the package."""
    folder = Path(__file__).resolve().parents[2] / "mmwal" / "kernel"
    if not (folder / "cursor.h").exists() and os.environ.get("MMWAL_REQUIRE_EXTENSION", "") in ("", "0"):
        pytest.skip("the C sources are not in this tree")
    return folder


@pytest.fixture
def c_test(tmp_path: Path, c_sources: Path) -> Any:
    """Builds a C test program of this folder and returns its path."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(name: str) -> Path:
        import subprocess

        program = tmp_path / name
        source = Path(__file__).parent / f"{name}.c"
        flags = ["-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*compiler.split(), *flags, str(source), "-o", str(program)], check=True)
        return program

    return build
