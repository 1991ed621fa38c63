"""Bounds checks that were taken out: the fuzzer must find each, in the C kernel, in its twin, in the decoders."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.fuzzing.building import ROOT, build_kernel, copied, run_copy

INPUTS_MAX = 60_000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif(not (ROOT / "mmwal" / "kernel" / "_kernel.c").exists(), reason="needs the sources"),
]


@dataclass(frozen=True)
class Bug:
    """A check that is missing: where, and which structure and kernel show it."""

    file: str
    old: str
    new: str
    structure: str
    kernel: str = "py"


BUGS = {
    "c: a length may reach beyond the end": Bug(
        "kernel/frame.h", "*length > end - lsn || header->start_lsn", "header->start_lsn", "scan", "c"
    ),
    "c: more headers than there is room for": Bug(
        "kernel/frame.h", "if (result.count == room) {", "if (room == 0) {", "scan", "c"
    ),
    "c: a header is read at the very end": Bug(
        "kernel/frame.h", "if (end - lsn < sizeof *header || lsn", "if (lsn", "scan", "c"
    ),
    "c: a place times a stride may wrap around": Bug(
        "kernel/rows.h",
        "!__builtin_mul_overflow((uint64_t)row, stride, &at) && at <= size",
        "((at = (uint64_t)row * stride), true)",
        "rows",
        "c",
    ),
    "c: a row may be longer than its source": Bug(
        "kernel/rows.h", "return offset >= 0 && row_bytes <= size &&", "return offset >= 0 &&", "rows", "c"
    ),
    "twin: a length may reach beyond the end": Bug(
        "kernel/reference.py",
        "if not HEADER_BYTES <= length <= end - lsn or",
        "if not HEADER_BYTES <= length or",
        "scan",
    ),
    "twin: a length may be zero": Bug(
        "kernel/reference.py", "if not HEADER_BYTES <= length <= end - lsn or", "if not length <= end - lsn or", "scan"
    ),
    "image: a row may lie outside of the matrix": Bug(
        "checkpoint/load.py", "used.min() >= 0 and used.max() < high", "True", "image"
    ),
    "image: two ids may share a row": Bug(
        "checkpoint/load.py", "if int(taken.sum()) != len(used):", "if False:", "image"
    ),
    "control: any position will do": Bug(
        "log/control.py", "return _impossible_position(fields, size)", "return None", "control"
    ),
    "survey: every number up to the mark is looked at": Bug(
        "recovery/tail.py",
        "gap = next((n for n in before if n not in found), number)",
        "gap = min([*(n for n in before if n not in found), number])",
        "wal",
    ),
    "metadata: any depth": Bug(
        "format/metadata.py", "        if levels <= 1:\n            return False\n", "", "metadata"
    ),
    "ids: any length": Bug("format/frame.py", "elif size > ID_BYTES_MAX:", "elif size < 0:", "ids"),
}


def fuzzed(folder: Path, structure: str, kernel: str, inputs: int) -> dict[str, Any]:
    """Fuzzes a structure of a copy of the package; returns the report."""
    arguments = ["--json", "--structure", structure, "--kernel", kernel, "--inputs", str(inputs), "--seconds", "60"]
    done = run_copy(folder, arguments, sanitize=False)
    assert done.stdout, done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", BUGS)
def test_missing_check_is_found(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    folder = copied(tmp_path / "copy")
    path = folder / "mmwal" / bug.file
    text = path.read_text("utf-8")
    assert text.count(bug.old) == 1, f"{bug.file}: {bug.old!r} is there {text.count(bug.old)} times"
    path.write_text(text.replace(bug.old, bug.new), "utf-8")
    if bug.kernel == "c":
        build_kernel(folder, sanitize=False)
    report = fuzzed(folder, bug.structure, bug.kernel, INPUTS_MAX)
    found = report["violation"]
    assert found, f"not found in {report['inputs']:,} inputs"
    needed = int(found["line"].rpartition(":")[2]) + 1
    print(f"found after {needed:,} inputs: {found['problem'][:100]}")


def test_sound_copy_is_not_accused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "copy")
    build_kernel(folder, sanitize=False)
    for structure, kernel in sorted({(bug.structure, bug.kernel) for bug in BUGS.values()}):
        report = fuzzed(folder, structure, kernel, 400 if structure == "wal" else 3000)
        assert report["violation"] is None
        assert report["inputs"] >= 400
