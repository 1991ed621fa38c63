"""The whole store, crashed everywhere: 30,000 power cuts distinct by content, a third and more in or after a recovery.

Log, matrix, images and both control files together; every operation, checkpoint, close and open. Six shards for two
processes, one of them on the twin.
"""

import pytest

from mmwal.testing.explorer import DENSE, Explorer, Violation
from mmwal.testing.target_store import StoreFound, StoreModel, StoreTarget
from tests.conftest import _require_compiled_kernel

SHARDS = [*(("c", seed) for seed in range(1, 6)), ("py", 6)]
DISTINCT = 5_000
IN_EVERY_RUN = {
    "control write",
    "control sync",
    "image sync",
    "image write",
    "matrix allocate",
    "matrix sync",
    "segment.wal sync",
    "spare.wal sync",
    "wal sync_directory",
    "data sync_directory",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kernel", "seed"), SHARDS)
def test_no_crash_loses_invents_tears_or_refuses_anything(kernel: str, seed: int) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    explorer = Explorer(StoreTarget(kernel), seed=seed, pace=DENSE)
    explorer.run(DISTINCT)
    report = explorer.report()
    assert report["distinct"] >= DISTINCT
    assert report["nested_share"] >= 0.4
    assert report["kills"] > 200
    assert report["damages"] > 10
    assert report["faults_struck"] > 2
    assert set(report["crashed_labels"]) >= IN_EVERY_RUN


class Forgetful(StoreTarget):
    """Loses an id whenever there are many."""

    def glance(self, disk, story):  # type: ignore[no-untyped-def]
        found = super().glance(disk, story)
        if len(found.contents) > 6:
            lost = sorted(found.contents, key=str)[0]
            del found.contents[lost], found.lsns[lost]
        return found


def test_lost_row_is_noticed() -> None:
    with pytest.raises(Violation):
        Explorer(Forgetful("py"), seed=1).run(20_000)


# ---- the checker itself


def told() -> StoreModel:
    model = StoreModel()
    for lsn, rows in (
        (10, (("a", b"1", None),)),
        (20, (("a", b"2", None), ("b", b"3", {"n": 1}))),
        (30, (("a", None, None),)),
    ):
        model.begin(rows)
        model.finish(lsn)
    return model


def shown(contents: dict[str, tuple[bytes, object]], lsns: dict[str, int]) -> StoreFound:
    return StoreFound(0, [], (), dict(contents), lsns)


def test_state_after_a_prefix_that_holds_the_promised_writes_is_right() -> None:
    found = shown({"a": (b"2", None), "b": (b"3", {"n": 1})}, {"a": 20, "b": 20})
    assert told().problem(found, 2) is None


def test_state_before_the_promised_writes_is_a_loss() -> None:
    assert "1 promised writes lost, from LSN 20" in (told().problem(shown({"a": (b"1", None)}, {"a": 10}), 2) or "")


def test_half_of_a_batch_is_no_state_that_ever_was() -> None:
    assert "no state" in (told().problem(shown({"a": (b"2", None)}, {"a": 20}), 1) or "")


def test_row_under_the_lsn_of_another_write_is_wrong() -> None:
    found = shown({"a": (b"2", None), "b": (b"3", {"n": 1})}, {"a": 10, "b": 20})
    assert told().problem(found, 1) is not None
