"""Real faults: the cases of `tools/realfaults.py`, those that need neither root nor a package at once."""

import faulthandler
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.process.test_kills_tool import run_tool
from tools import realfaults
from tools.history import Wrong
from tools.realfaults import CASES, Case, run_case, summary

QUICK = [
    "file-size-limit",
    "no-descriptors",
    "segment-is-a-link",
    "segment-removed",
    "segment-truncated",
    "segment-twice",
    "short-write",
    "unknown-files",
]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 25
    assert len({case.fault for case in CASES}) >= 20


def test_quick_cases_need_nothing_and_are_right(tmp_path: Path) -> None:
    assert not any(case_named(name).root for name in QUICK)
    code, report = run_tool("realfaults.py", "--dir", str(tmp_path), *QUICK)
    wrong = {row["name"]: row["seen"] for row in report["cases"] if row["verdict"] != "right"}
    assert (code, wrong, report["right"]) == (0, {}, len(QUICK))
    assert list(tmp_path.iterdir()) == [], "it cleans up"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(case.name for case in CASES if case.name not in QUICK))
def test_user_sees_an_error_and_loses_nothing(tmp_path: Path, name: str) -> None:
    code, report = run_tool("realfaults.py", "--dir", str(tmp_path), name)
    if report["skipped"]:
        pytest.skip(report["skipped"])
    assert code == 0, report["cases"]


# ---- a wrong answer is seen as one


def lose_a_row(folder: Path) -> tuple[str, str]:
    writer = realfaults._killed_store(folder)
    writer.reopens()
    writer.handle.delete(writer.handle.ids()[0])
    writer.ends()
    writer.reopens()
    return "a row was deleted", "nobody noticed"


def end_by_a_signal(folder: Path) -> tuple[str, str]:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGBUS)
    return "a signal was sent", "it did nothing"


def say_nothing(folder: Path) -> tuple[str, str]:
    realfaults._refused(folder, realfaults._killed_store(folder), "segment", mended=lambda: None)
    return "nothing", "refused"


@pytest.mark.parametrize(
    ("act", "seen"),
    [(lose_a_row, "lost"), (end_by_a_signal, "SIGBUS"), (say_nothing, "as if nothing were wrong")],
    ids=["row-lost", "signal", "not-refused"],
)
def test_wrong_case_is_called_wrong(tmp_path: Path, act: Any, seen: str) -> None:
    row = run_case(Case("seeded", "seeded", act), tmp_path)
    assert row["verdict"] == "wrong"
    assert seen in row["seen"]
    assert summary([row], 1.0)["wrong"] == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_machine_lacks_is_skipped_with_its_reason(tmp_path: Path) -> None:
    assert shutil.which("no-such-program") is None
    row = run_case(Case("lacking", "none", lose_a_row, programs=("no-such-program",)), tmp_path)
    assert (row["verdict"], "no-such-program" in row["seen"]) == ("skipped", True)
    assert summary([row], 1.0)["skipped"] == row["seen"]


def test_fact_that_does_not_hold_is_a_wrong_answer() -> None:
    realfaults.ensure(True, "fine")
    with pytest.raises(Wrong, match="not so"):
        realfaults.ensure(False, "not so")
