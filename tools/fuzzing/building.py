"""A copy of the package with another kernel: built with sanitizers, or with a bug.

The copy is a temporary folder; nothing is built or changed in the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SANITIZED = "MMWAL_FUZZ_SANITIZED"
_PLAIN = ("-O2",)
_SANITIZE = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)


def copied(folder: Path) -> Path:
    """Copies package and tools into a folder, without built files; returns it."""
    skipped = shutil.ignore_patterns("__pycache__", "data", "*.so")
    for name in ("mmwal", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    return folder


def build_kernel(folder: Path, *, sanitize: bool) -> None:
    """Compiles the kernel of a copy. Raises `subprocess.CalledProcessError`."""
    compiler = os.environ.get("CC", "gcc")
    source = folder / "mmwal" / "kernel" / "_kernel.c"
    command = [compiler, "-std=c11", "-shared", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wextra"]
    command += _SANITIZE if sanitize else _PLAIN
    command += ["-DPy_LIMITED_API=0x030B0000", f"-I{sysconfig.get_path('include')}", str(source)]
    subprocess.run([*command, "-o", str(source.with_name("_kernel.abi3.so"))], check=True)


def run_copy(folder: Path, arguments: list[str], *, sanitize: bool) -> subprocess.CompletedProcess[str]:
    """Runs the fuzzer of a copy; returns what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if sanitize:
        compiler = os.environ.get("CC", "gcc")
        found = subprocess.run([compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True)
        environment |= {
            SANITIZED: "1",
            "LD_PRELOAD": found.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:max_allocation_size_mb=256",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",
        }
    command = [sys.executable, str(folder / "tools" / "fuzz.py"), *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def run_sanitized(arguments: list[str]) -> int:
    """Runs the fuzzer on a kernel built with sanitizers; returns its exit code."""
    kept = [argument for argument in arguments if argument != "--sanitize"]
    with tempfile.TemporaryDirectory(prefix="mmwal-fuzz-") as name:
        folder = copied(Path(name))
        build_kernel(folder, sanitize=True)
        if "--kernel" not in kept and "--replay" not in kept:
            kept += ["--kernel", "c"]
        done = run_copy(folder, kept, sanitize=True)
    print(done.stdout, end="")
    print(done.stderr[-8000:], end="", file=sys.stderr)
    return done.returncode
