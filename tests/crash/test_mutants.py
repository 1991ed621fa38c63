"""Every breakage of the durability protocol is found, and every step of the protocol has one.

The steps are `tools/protocol.py`, the breakages `tools/mutants.py`, the hunt `tools/mutate.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools.mutants import EQUIVALENT, MUTANTS, Edit
from tools.mutate import ROOT, TARGETS, BrokenMutant, mutated_copy
from tools.protocol import PACKAGE, STEPS, places, places_in, places_in_c

# Found in no time, without a compiler: the whole table is slow.
QUICK = (
    "acknowledged_without_sync",
    "identity_renamed_before_sync",
    "checksum_not_verified",
    "checkpoint_without_matrix_sync",
    "commit_word_first",
)
FINDER = "tests/crash/test_protocol_steps.py::test_sync_of_the_twin_covers_what_was_published_when_it_began[py]"


# -- the registry

PLACES = places()


def test_every_place_of_the_source_belongs_to_a_step() -> None:
    claimed = {place for step in STEPS for place in step.places}
    assert sorted(PLACES - claimed) == [], "tools/protocol.py: add these places to a step; give a new step a mutant"


def test_every_place_of_a_step_is_in_the_source() -> None:
    claimed = {place for step in STEPS for place in step.places}
    assert sorted(claimed - PLACES) == [], "tools/protocol.py: these places are gone"


def test_every_place_belongs_to_one_step() -> None:
    counted = Counter(place for step in STEPS for place in step.places)
    assert [place for place, count in counted.items() if count > 1] == []
    assert [name for name, count in Counter(step.name for step in STEPS).items() if count > 1] == []


def test_every_step_has_a_mutant_or_a_reason_why_none_can_be() -> None:
    names = {step.name for step in STEPS}
    broken = {step for mutant in (*MUTANTS, *EQUIVALENT) for step in mutant.steps}
    assert sorted(names - broken) == [], "tools/mutants.py: break these steps"
    assert sorted(broken - names) == [], "tools/mutants.py: no such steps"


def test_source_that_syncs_or_publishes_somewhere_new_is_noticed() -> None:
    source = """
class Log:
    def append(self):
        self.file.write(0, header)
        self._finally(self.file.sync)
        with self._state.lock:
            self._block[STATE + 3] = 1
            segment.view[0:8], done = word, True
        self.control.write(clean=1, end_lsn=end_lsn)
        if stop != end:
            raise WalCorruptionError(path)
        raise TypeError(path)
"""
    assert places_in(source, "recovery/tail.py") == {
        "Log.append: self.file.write(0, header)",
        "Log.append: self.file.sync",
        "Log.append: self._block[STATE + 3] =",
        "Log.append: segment.view[0:8] =",
        "Log.append: self.control.write(clean=, end_lsn=)",
        "Log.append: if stop != end: raise WalCorruptionError",
    }
    assert "Log.append: if stop != end: raise WalCorruptionError" not in places_in(source, "store.py")


def test_c_source_that_stores_somewhere_new_is_noticed() -> None:
    source = """
static int sync_more(Gate *gate)
{
    uint64_t seen = load_acquire(gate, DURABLE);
    __atomic_store_n(u64_at(gate, DURABLE), seen + 64, __ATOMIC_RELEASE);
    return msync(gate->at, 4096, MS_SYNC);
}
"""
    assert places_in_c(source) == {
        "sync_more: __atomic_store_n(u64_at(gate, DURABLE), seen + 64, __ATOMIC_RELEASE);",
        "sync_more: return msync(gate->at, 4096, MS_SYNC);",
    }


# -- the table of mutants


def test_text_that_a_mutant_breaks_is_there_once() -> None:
    counts = {
        (one.name, edit.old): (PACKAGE / edit.file).read_text("utf-8").count(edit.old)
        for one in (*MUTANTS, *EQUIVALENT)
        for edit in one.edits
    }
    assert {where: count for where, count in counts.items() if count != 1} == {}


def test_mutants_have_names_of_their_own_and_say_what_they_cost() -> None:
    names = [one.name for one in (*MUTANTS, *EQUIVALENT)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert len(MUTANTS) >= 40
    assert all(mutant.loses and mutant.steps for mutant in MUTANTS)
    assert all(one.defence and one.steps for one in EQUIVALENT)
    assert all(edit.old != edit.new for one in (*MUTANTS, *EQUIVALENT) for edit in one.edits)


def test_what_finds_a_mutant_exists() -> None:
    ways = {mutant.by for mutant in MUTANTS} | {one.by for one in EQUIVALENT} | {one.test for one in EQUIVALENT}
    tests = {way for way in ways if way not in TARGETS and not way.startswith("race")}
    missing = {way for way in tests if not is_a_test(way)}
    assert missing == set()


def is_a_test(node: str) -> bool:
    """Returns whether a node's file has such a function; a whole file is too much to find one mutant."""
    path, _, name = node.partition("::")
    return bool(name) and name.partition("[")[0] in functions_of(path)


@cache
def functions_of(path: str) -> frozenset[str]:
    if not (ROOT / path).is_file():
        return frozenset()
    return frozenset(re.findall(r"^def (\w+)", (ROOT / path).read_text("utf-8"), re.MULTILINE))


def test_what_holds_in_both_kernels_is_broken_in_both() -> None:
    """A check of the frame, or of the sync, that has a mutant in C has one in the twin, and the other way round."""
    sides: dict[str, set[str]] = {}
    for mutant in MUTANTS:
        c = mutant.by.startswith("race") or any(not edit.file.endswith(".py") for edit in mutant.edits)
        for step in mutant.steps:
            sides.setdefault(step, set()).add("c" if c else "py")
    both = [name for name in sides if name.startswith(("check.c", "check.l", "gate.", "frame.", "kernel."))]
    one_sided = {
        "kernel.copy",
        "kernel.header",
        "kernel.row",
        "kernel.start",
        "kernel.gather",
        "kernel.ring",
        "gate.role",
    }
    one_sided |= {"check.layout", "check.look_ahead", "check.chain", "check.columns"}  # Python's alone
    assert {name: sides[name] for name in both if name not in one_sided and sides[name] != {"c", "py"}} == {}


def test_mutant_whose_text_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokenMutant, match="occurs 0 times"):
        mutated_copy((Edit("log/gate.py", "no such text", ""),), tmp_path)


# -- the hunt


def hunted(*names: str, mutants: str = "") -> dict[str, Any]:
    """Runs the command, in a process of its own; returns its report. ``mutants``: code that changes what there is."""
    code = f"import sys\nsys.argv[1:] = {[*names, '--json', '-']!r}\nfrom tools import mutate\n"
    code += f"from tools.mutants import Edit, Mutant\n{mutants}\nsys.exit(mutate.main())\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if report["survived"] or report["broken"] else 0)
    return report


def test_quick_mutants_are_found_and_the_hunt_can_fail() -> None:
    """What changes nothing survives, and what is no Python any more, or nowhere to be found, is not found."""
    line = "durable, published = self._durable, self._published"
    edits = {"harmless": (line, f"{line}  # so"), "wrong": (line, "no_such_name"), "gone": ("no such text", "")}
    made = [
        f"Mutant({name!r}, ('gate.sync',), 'nothing', (Edit('log/gate.py', {old!r}, {new!r}),), {FINDER!r})"
        for name, (old, new) in edits.items()
    ]
    report = hunted(*QUICK, *edits, mutants=f"mutate.MUTANTS += [{', '.join(made)}]")
    assert (report["survived"], report["broken"]) == (["harmless"], ["wrong", "gone"])
    assert (report["found"], report["seeded"]) == (len(QUICK), len(QUICK) + len(edits))
    found = [mutant for mutant in report["mutants"] if mutant["verdict"] == "found"]
    assert all(mutant["problem"] and mutant["seconds"] > 0 for mutant in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS if mutant.name not in QUICK])
def test_mutant_is_found(name: str) -> None:
    [verdict] = hunted(name)["mutants"]
    if verdict["verdict"] == "not run":
        pytest.skip(verdict["problem"])
    said = f"{name} {verdict['verdict']}; a user would lose {verdict['loses']}. {verdict['problem']}"
    assert verdict["verdict"] == "found", said


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--equivalents", "--unmutated"])
def test_nothing_is_found_where_nothing_is_broken(option: str) -> None:
    command = [sys.executable, str(ROOT / "tools/mutate.py"), option]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
