"""The scoreboard: a tool that gives no report is a wrong row, and runs that were kept make a page."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import reliability
from tools.reliability import BEGIN, END, PARTS, Part, Row, Run


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(reliability, "PAGE", path)
    return path


def kept(path: Path, commit: str, *rows: dict[str, Any]) -> Path:
    facts = {"date": "2026-01-02", "commit": commit, "machine": "2 cores", "minutes": 3.2, "reports": {}}
    path.write_text(json.dumps({**facts, "rows": rows}))
    return path


def test_tables_of_kept_runs_take_the_place_of_the_old_one(page: Path, tmp_path: Path) -> None:
    row = {"number": "1", "what": "lost", "reached": "0", "asked": "0", "ok": True}
    files = [kept(tmp_path / "a", "abc", row), kept(tmp_path / "b", "def", {**row, "ok": False})]
    reliability.write_page_of(files)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n2026-01-02, commit abc, 3 minutes on 2 cores.\n\n| # |")
    assert text.endswith(f"| **NO** |\n{END}\nafter\n")
    assert text.count("| 1 | lost | 0 | 0 |") == 2
    assert "\nold\n" not in text


def test_tool_that_gives_no_report_is_a_wrong_row(tmp_path: Path) -> None:
    run = Run(18, 1, 1, tmp_path)
    for part in PARTS:
        broken = Part(part.name, 0.1, 0, lambda run, share_s: [["tools/no_such_tool.py"]], part.rows)
        rows = reliability.run_part(broken, run)
        assert any(row.ok is False for row in rows), part.name
        assert "no_such_tool" in json.dumps(run.reports[part.name])


def test_what_is_asked_grows_with_the_length_of_a_run(tmp_path: Path) -> None:
    assert Run(18, 1, 1, tmp_path).ask(30_000, 1_000_000) == 30_000
    assert Run(reliability.LONG_MINUTES, 1, 1, tmp_path).ask(30_000, 1_000_000) == 1_000_000


def test_short_count_and_a_fault_are_wrong_and_say_so() -> None:
    assert reliability.counted("2", "images", 99, 100, []).ok is False
    assert reliability.counted("2", "images", 100, 100, []) == Row("2", "images", "100", "at least 100", True)
    assert "WRONG: lost" in reliability.counted("2", "images", 100, 100, ["lost"]).reached


@pytest.mark.parametrize("verdict", ["survived", "broken", "not_run"])
def test_mutant_that_was_not_found_is_a_wrong_row_that_names_it(tmp_path: Path, verdict: str) -> None:
    report: dict[str, Any] = {"mutants": [], "found": 40, "seeded": 41, "seconds": 9, "survived": [], "broken": []}
    report |= {"not_run": [], verdict: ["the_one"]}
    [row] = reliability.mutant_rows(Run(18, 1, 1, tmp_path), [report])
    assert not row.ok
    assert "the_one" in row.reached
    [row] = reliability.mutant_rows(Run(18, 1, 1, tmp_path), [{**report, "seeded": 40, verdict: []}])
    assert row.ok
