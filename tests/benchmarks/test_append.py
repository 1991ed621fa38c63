"""The append benchmark runs, small, and its JSON says what a reader needs. What the figures say is judged by nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # `make bench-smoke`, which .ci/run calls, runs the same measurement

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "append.py"


def run(*arguments: str, **environment: str) -> str:
    """Run the benchmark with the mmwal under test; return what it printed."""
    finished = subprocess.run(
        [sys.executable, str(BENCHMARK), "--smoke", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What one smoke run of everything printed and wrote, and where it measured."""
    directory = tmp_path_factory.mktemp("benchmark")
    report = directory / "report.json"
    printed = run("--peers", "--json", str(report), "--dir", str(directory))
    return printed, json.loads(report.read_text("utf-8")), directory


def test_smoke_run_measures_every_group(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    assert {row["group"] for row in report["results"]} == {"single", "tail", "durable", "batch", "device", "peers"}


def test_smoke_run_measures_every_target_on_both_layers(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    measured = {(row["number"], row["layer"]) for row in report["results"] if "number" in row}
    both = {(number, layer) for number in (2, 4, 6, 7) for layer in ("log", "store")}
    if not any(row.get("number") == 7 for row in report["results"]):  # nobody counts the device's bytes here
        both = {(number, layer) for number, layer in both if number != 7}
    assert measured == {(1, "log"), (3, "store"), *both}


def test_json_figures_have_a_median_within_their_spread(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    for row in report["results"]:
        figure = row["figure"]
        assert len(figure["values"]) == report["sizes"]["repetitions"], row["what"]
        assert figure["min"] <= figure["median"] <= figure["max"], row["what"]


def test_json_ratio_is_taken_within_each_repetition(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, _ = smoke
    with_a_limit = [row for row in report["results"] if row["limit"] is not None]
    assert with_a_limit
    for row in with_a_limit:
        expected = [a / b for a, b in zip(row["figure"]["values"], row["limit"]["values"], strict=True)]
        assert row["ratio"]["values"] == pytest.approx(expected), row["what"]


def test_json_names_the_machine_and_no_path_of_it(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, report, directory = smoke
    assert {"cpu", "cores", "system", "file_system", "python"} <= report["machine"].keys()
    assert {"before", "after"} == report["load_average"].keys()
    assert str(directory) not in json.dumps(report)


def test_table_says_which_targets_were_met(smoke: tuple[str, dict[str, Any], Path]) -> None:
    printed, report, _ = smoke
    judged = [row for row in report["results"] if row["met"] is not None]
    assert f"{sum(row['met'] for row in judged)} of {len(judged)} targets met" in printed


def test_run_leaves_nothing_behind(smoke: tuple[str, dict[str, Any], Path]) -> None:
    _, _, directory = smoke
    assert [path.name for path in directory.iterdir()] == ["report.json"]


def test_without_a_compiler_stand_ins_are_named(tmp_path: Path) -> None:
    printed = run("--only", "durable", "--kernel", "py", "--dimension", "16", "--dir", str(tmp_path), CC="false")
    assert "! no C compiler" in printed


def test_twin_is_measured_but_not_judged(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    run("--only", "single", "--kernel", "py", "--dimension", "16", "--dir", str(tmp_path), "--json", str(report))
    rows = json.loads(report.read_text("utf-8"))["results"]
    assert rows
    assert [row["met"] for row in rows] == [None] * len(rows)
