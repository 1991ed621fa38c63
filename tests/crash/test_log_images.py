"""The log alone, crashed everywhere: 100,000 power cuts distinct by content, two fifths in or after a recovery.

Ten shards, so that two processes share them evenly; each has stories of its own. Two of them run on the twin.
"""

import pytest

from mmwal.testing.explorer import DENSE, Explorer, Pace, Violation, replay
from mmwal.testing.model import Found, Group, Model
from mmwal.testing.target_log import LogTarget
from tests.conftest import _require_compiled_kernel

SHARDS = [*(("c", seed) for seed in range(1, 9)), ("py", 9), ("py", 10)]
DISTINCT = 10_000
ONLY_IN_SOME_STORIES = {"control.tmp unlink", "end", "segment.wal unlink", "spare.wal unlink"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kernel", "seed"), SHARDS)
def test_no_crash_loses_invents_tears_or_refuses_anything(kernel: str, seed: int) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    explorer = Explorer(LogTarget(kernel), seed=seed, pace=DENSE)
    explorer.run(DISTINCT)
    report = explorer.report()
    assert report["distinct"] >= DISTINCT
    assert report["nested_share"] >= 0.4
    assert report["kills"] > 200
    assert report["faults_struck"] > 4
    missed = {label for label in report["labels_without_crash"] if not label.startswith("after")}
    assert missed <= ONLY_IN_SOME_STORIES


def test_same_seed_makes_the_same_crashes() -> None:
    first, second = Explorer(LogTarget("py"), seed=5), Explorer(LogTarget("py"), seed=5)
    for explorer in (first, second):
        explorer.run(300)
    assert {**first.report(), "seconds": 0, "recoveries_per_second": 0} == {
        **second.report(),
        "seconds": 0,
        "recoveries_per_second": 0,
    }


def test_every_crash_is_counted_at_the_step_that_it_hit() -> None:
    explorer = Explorer(LogTarget("py"), seed=6)
    explorer.run(300)
    report = explorer.report()
    hit, missed = report["crashed_labels"], report["labels_without_crash"]
    assert list(hit) == sorted(hit) and missed == sorted(missed)
    assert set(hit) | set(missed) == set(explorer.labels)
    assert 0 not in hit.values()
    crashes = sum(hit.values())
    assert report["images"] + report["damages"] < crashes < report["images"] + report["damages"] + report["kills"]


class Forgetful(LogTarget):
    """Shows one group less than there is, whenever there are many."""

    def glance(self, disk, story):  # type: ignore[no-untyped-def]
        found = super().glance(disk, story)
        return Found(found.oldest_lsn, found.groups[:8], found.positions)


def test_violation_is_replayed_by_its_line() -> None:
    with pytest.raises(Violation) as first:
        Explorer(Forgetful("py"), seed=1, pace=Pace(life=0.1)).run(20_000)
    with pytest.raises(Violation) as again:
        replay(first.value.line, Forgetful("py"))
    assert (again.value.line, again.value.problem) == (first.value.line, first.value.problem)
    replay(first.value.line, LogTarget("py"))


# ---- the checker itself


def told(*lsns: int) -> Model:
    model = Model()
    for lsn in lsns:
        model.begin((f"row {lsn}",))
        model.finish(lsn)
    return model


def shown(*lsns: int, oldest: int = 0) -> Found:
    return Found(oldest, [Group((f"row {lsn}",), lsn) for lsn in lsns])


def test_prefix_that_holds_all_promised_groups_is_right() -> None:
    assert told(10, 20, 30).problem(shown(10, 20), 2) is None


def test_group_whose_call_has_not_returned_may_be_found() -> None:
    model = told(10)
    model.begin(("row 20",))
    assert model.problem(shown(10, 20), 1) is None
    assert model.problem(shown(10), 1) is None


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (shown(10), "1 promised groups lost"),
        (shown(10, 30), "group 1 differs"),
        (shown(20), "group 0 differs"),
        (shown(10, 20, 30, 40), "phantom"),
        (shown(20, 10), "LSNs do not grow"),
        (Found(0, [Group(("row 10",), 10), Group(("row 21",), 20)]), "group 1 differs"),
        (Found(0, [], (2, 1)), "positions out of order"),
        (shown(20, oldest=10), "begins at LSN 10, never released"),
    ],
)
def test_wrong_answer_is_named(found: Found, problem: str) -> None:
    assert problem in (told(10, 20, 30).problem(found, 2) or "nothing")


def test_log_may_begin_where_it_was_released_or_earlier() -> None:
    model = told(10, 20, 30)
    model.released_lsn = 20
    assert model.problem(shown(20, 30, oldest=10), 3) is None
    assert model.problem(shown(30, oldest=20), 3) is None
    assert "never released" in (model.problem(shown(oldest=30), 3) or "")


def test_what_was_found_is_promised_from_then_on() -> None:
    model = told(10, 20, 30)
    model.adopt(shown(10, 20))
    assert "lost" in (model.problem(shown(10), model.durable) or "")


def test_power_cut_forgets_what_only_the_process_was_promised() -> None:
    model = told(10, 20, 30)
    model.promise(20)
    assert model.fork(power=True).returned == 2
    assert model.fork(power=False).returned == 3
