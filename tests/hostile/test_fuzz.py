"""The fuzzer: a short burst of it, and that it sees what is wrong."""

import random
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import _require_compiled_kernel
from tools.fuzzing import judge as judging
from tools.fuzzing.judge import CYCLE, Case, Tally, begin, judge
from tools.fuzzing.seeds import seeds
from tools.fuzzing.structures import STRUCTURES, Inconsistent

SEED = 20
SLOW = ("wal", "open", "open-read-only", "open-log", "new-from-path", "recover")
INPUTS = {name: 8 if name in SLOW else 40 for name in STRUCTURES}


@pytest.fixture(autouse=True)
def judged() -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    with warnings.catch_warnings():
        begin()
        yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("kernel", ["c", "py"])
def test_burst_of_every_structure_costs_typed_errors_only(kernel: str) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    tally = Tally()
    for name, count in INPUTS.items():
        for number in range(count):
            judge(Case(name, kernel, SEED, number), tally)
    report = tally.report()
    assert report["violations"] == []
    assert report["inputs"] == sum(INPUTS.values())
    for name, counts in report["by_structure"].items():
        assert counts.get("accepted") and counts.get("refused"), f"{name}: nothing is reached by {counts}"


def test_every_structure_is_in_the_cycle() -> None:
    assert set(CYCLE) == set(STRUCTURES)


def test_line_makes_the_same_input_again() -> None:
    for name in STRUCTURES:
        case = Case(name, "py", SEED, 3)
        assert Case.parse(case.line) == case
        assert case.make().content == Case.parse(case.line).make().content


def test_seeds_are_honest() -> None:
    """What hostile inputs are made of is accepted as it is, else nothing behind the first check would be reached."""
    for structure in ("open-read-only", "wal"):
        for seed in seeds():
            if seed.owned:
                STRUCTURES[structure].read(judging.kernels.load("py"), seed.files)


def _answer_badly(how: str) -> Any:
    def read(kernel: Any, thing: Any) -> None:
        if how == "crash":
            raise KeyError("a bug")
        if how == "inconsistent":
            raise Inconsistent("two ids in one row")
        if how == "hang":
            while True:
                pass
        bytearray(64 << 20)

    return read


@pytest.mark.parametrize("how", ["crash", "inconsistent", "hang", "memory"])
def test_wrong_answer_is_seen(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS_MAX", 0.05)
    monkeypatch.setitem(STRUCTURES, "ids", replace(STRUCTURES["ids"], read=_answer_badly(how)))
    tally = Tally()
    judge(Case("ids", "py", SEED, 0), tally)
    assert [violation["kind"] for violation in tally.violations] == [how]
    assert tally.violations[0]["line"] == f"ids py {SEED}:0"


def test_read_beyond_the_end_of_a_buffer_would_kill_the_process() -> None:
    """The C kernel scans in memory behind which a page must not be touched."""
    from tools.fuzzing.structures import _guarded, _room

    view = _guarded(0, b"x" * 100)
    _, size = _room(0)
    assert bytes(view) == b"x" * 100
    with open("/proc/self/maps", encoding="ascii") as file:
        mapped = [line.split()[:2] for line in file]
    import ctypes

    end = ctypes.addressof(ctypes.c_char.from_buffer(view)) + 100
    protection = {int(span.split("-")[0], 16): mode for span, mode in mapped}
    assert size % 4096 == 0
    assert protection[end].startswith("---")


def test_different_numbers_make_different_inputs() -> None:
    made = {Case("scan", "py", SEED, number).make().content for number in range(50)}
    assert len(made) > 40
    assert random.Random(f"scan {SEED}:0").random() != random.Random(f"scan {SEED}:1").random()
