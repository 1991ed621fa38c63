"""The overhead benchmark runs, small, with and without an index library. What the figures say is judged by nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # `make bench-smoke`, which .ci/run calls, runs the same measurement

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "overhead.py"


def run(*arguments: str, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the benchmark with the mmwal under test, and with modules that hide others."""
    paths = [*([str(first)] if first else []), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def no_usearch(tmp_path: Path) -> Path:
    """A folder with a usearch that cannot be imported."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "usearch.py").write_text("raise ImportError('hidden')\n")
    return folder


def measured(report: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(report.read_text("utf-8"))["results"]
    return rows


def test_every_interval_is_measured_and_the_targets_are_judged(tmp_path: Path, no_usearch: Path) -> None:
    place, report = tmp_path / "place", tmp_path / "report.json"
    place.mkdir()
    done = run("--smoke", "--dir", str(place), "--json", str(report), first=no_usearch)
    assert done.returncode == 0, done.stderr
    rows = measured(report)
    found = {(row["sync_interval_ms"], row["batch_rows"]) for row in rows}
    assert found == {(None, 1), (5000, 1), (1000, 1), (100, 1), (0, 1), (100, 100), (0, 100)}
    assert [row["sync_interval_ms"] for row in rows if row["met"] is not None] == [100, 0]
    assert all(row["more"]["syncs a block"] > 0 for row in rows if row["sync_interval_ms"] == 0)
    assert "targets met" in done.stdout and str(tmp_path) not in done.stdout + report.read_text("utf-8")
    assert list(place.iterdir()) == []


def test_without_an_index_a_smoke_run_says_what_stands_in_for_it(tmp_path: Path, no_usearch: Path) -> None:
    done = run("--smoke", "--dir", str(tmp_path), first=no_usearch)
    assert "! a stand-in of" in done.stdout and "pip install usearch" in done.stdout


def test_without_an_index_nothing_is_measured(tmp_path: Path, no_usearch: Path) -> None:
    done = run("--dir", str(tmp_path), first=no_usearch)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install usearch" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["modules"]
