"""The benchmark of stores that grow runs, small. What the figures say is judged by nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # `make bench-smoke`, which .ci/run calls, runs the same measurement

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "opening.py"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What one smoke run of everything printed and wrote, and where it measured."""
    directory = tmp_path_factory.mktemp("benchmark")
    report = directory / "report.json"
    words = ["--smoke", "--ids=str", "--ids=int", "--cache=warm", "--cache=cold"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *words, "--dir", str(directory), "--json", str(report)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(report.read_text("utf-8")), directory


def test_every_group_and_target_is_measured_for_both_kinds_of_ids(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    rows = report["results"]
    assert {row["group"] for row in rows} == {"open", "memory", "checkpoint", "recovery", "growth"}
    measured = {(row["number"], row["kind"]) for row in rows}
    assert measured >= {(number, kind) for number in (9, 10, 13, 14) for kind in ("str", "int")}


def test_open_stands_beside_the_bytes_of_the_image(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    beside = [row["limit_name"] for row in report["results"] if row["group"] == "open" and row["limit"]]
    assert sum(name.startswith("reading ") for name in beside) == 2 * 2 * 2 * 2  # rows, kinds, caches, with checksums


def test_growth_says_where_the_longest_stops_were(smoke: tuple[str, dict[str, Any], Path]) -> None:
    printed, report, _ = smoke
    stops = [row for row in report["results"] if "longest stop" in row["what"]]
    ways = {"store", "no checkpoints", "log", "directory", "spin"}
    assert {(row["way"], row["kind"]) for row in stops} == {(way, kind) for way in ways for kind in ("str", "int")}
    assert all(" ms at " in row["note"] for row in stops)
    assert "targets met" in printed


def test_run_leaves_nothing_behind_and_names_no_path(smoke: tuple[str, dict[str, Any], Path]) -> None:
    printed, report, directory = smoke
    assert [path.name for path in directory.iterdir()] == ["report.json"]
    assert str(directory) not in printed + json.dumps(report)
