"""Two-phase commit: all or none over several stores, whoever fails (items 104 to 107)."""

import contextlib
import gc
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import (
    DecisionPendingError,
    DuplicateIdError,
    ForkedProcessError,
    IdTypeError,
    MetadataError,
    PrepareFailedError,
    SyncFailedError,
    TransactionClosedError,
    TransactionError,
    TransactionInDoubtError,
    UnknownIdError,
    UnknownTransactionError,
    VectorError,
    WalClosedError,
    WalLockedError,
)
from mmwal.two_phase import Operation, TwoPhaseCommit
from tests.store.stores import SEGMENT, vector
from tests.store.test_fork import in_child
from tests.two_phase.fixtures import Open, Unreliable

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

Parties = dict[str, Unreliable]


def insert(id: Any, number: float = 1) -> Any:
    return Operation.Insert(id, vector(number))


def ids(parties: Parties) -> dict[str, list[Any]]:
    return {name: party.store.ids() for name, party in parties.items()}


def in_doubt(parties: Parties) -> int:
    return sum(len(party.store.list_in_doubt()) for party in parties.values())


def settles(condition: Callable[[], bool]) -> None:
    """Waits for what happens in the background."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


# -- the guide's example


def test_one_list_is_for_every_participant(coordinate: Open, parties: Parties) -> None:
    coordinate().prepare([insert("1", 1), insert("2", 2)]).commit()
    assert ids(parties) == {"east": ["1", "2"], "west": ["1", "2"]}


def test_each_participant_gets_its_own_and_who_has_none_is_not_asked(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    tpc.prepare({"east": [insert("1"), Operation.Upsert("2", vector(2), {"n": 2})], "west": [insert(7)]})
    assert ids(parties) == {"east": [], "west": []}
    tpc.commit()
    assert ids(parties) == {"east": ["1", "2"], "west": [7]}
    parties["west"].calls.clear()
    tpc.prepare({"east": [Operation.Update("1", metadata={"m": 1}), Operation.Delete("2")], "west": []}).commit()
    assert parties["west"].calls == []
    record = parties["east"].store.get("1")
    assert record is not None
    assert (record.vector[0], record.metadata) == (1, {"m": 1})
    assert ids(parties) == {"east": ["1"], "west": [7]}


def test_prepare_and_decision_are_forced_before_anything_else_happens(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    told: list[bool] = []
    for party in parties.values():
        party.waits["commit"] = lambda: told.append(tpc._wal.durable_lsn == tpc._wal.last_lsn > decided_lsn)
    decided_lsn = tpc._wal.last_lsn
    transaction = tpc.prepare([insert("1")])
    for party in parties.values():
        (doubt,) = party.store.list_in_doubt()
        assert party.store.durable_lsn >= doubt.lsn
        assert doubt.gid == transaction.gid
    assert tpc._wal.last_lsn == decided_lsn  # nobody decided
    transaction.commit()
    assert told == [True, True]


def test_second_commit_is_nothing_and_one_before_prepare_an_error(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    for act in (tpc.commit, tpc.rollback):
        with pytest.raises(TransactionError, match="prepare"):
            act()
    transaction = tpc.prepare([insert("1")])
    tpc.commit()
    calls = len(parties["east"].calls)
    tpc.commit()
    transaction.commit()
    assert len(parties["east"].calls) == calls
    with pytest.raises(TransactionClosedError, match="committed"):
        transaction.rollback()
    other = tpc.prepare([insert("2")])
    tpc.rollback()
    other.rollback()
    with pytest.raises(TransactionClosedError, match="rolled back"):
        tpc.commit()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


def test_block_commits_and_an_exception_in_it_rolls_back(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    with tpc.prepare([insert("1")]):
        pass
    with pytest.raises(RuntimeError), tpc.prepare([insert("2")]):
        raise RuntimeError
    assert ids(parties) == {"east": ["1"], "west": ["1"]}
    assert in_doubt(parties) == 0


# -- refusals


@pytest.mark.parametrize(
    ("operation", "cause"),
    [
        (Operation.Insert("there", vector(1)), DuplicateIdError),
        (Operation.Update("not there", vector(1)), UnknownIdError),
        (Operation.Delete("not there"), UnknownIdError),
        (Operation.Insert("x", np.ones(3, np.float32)), VectorError),
        (Operation.Insert("x", [1.0] * 7 + [float("nan")]), VectorError),
        (Operation.Insert(True, vector(1)), IdTypeError),
        (Operation.Insert("x", vector(1), {"n": object()}), MetadataError),
        ("no operation", TypeError),
    ],
)
def test_what_one_participant_refuses_none_does(
    coordinate: Open, parties: Parties, operation: Any, cause: type[Exception]
) -> None:
    parties["west"].store.insert("there", vector(1))
    tpc = coordinate()
    with pytest.raises(PrepareFailedError, match="'west'") as caught:
        tpc.prepare({"east": [insert("1")], "west": [insert("1"), operation]})
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.participant == "west"
    assert ids(parties) == {"east": [], "west": ["there"]}
    assert in_doubt(parties) == 0
    assert [entry.kind for entry in parties["west"].store.wal.replay()] == ["insert"]  # type: ignore[union-attr]
    tpc.prepare([insert("1")]).commit()  # it may be tried again at once
    assert tpc.list_in_doubt() == []


def test_plan_that_makes_no_sense_is_refused_before_anybody_is_asked(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    for party in parties.values():
        party.calls.clear()
    with pytest.raises(ValueError, match="'north' is no participant; the participants are 'east', 'west'"):
        tpc.prepare({"east": [insert("1")], "north": [insert("1")]})
    for nothing in ([], {}, {"east": []}):
        with pytest.raises(ValueError, match="empty"):
            tpc.prepare(nothing)  # type: ignore[arg-type]
    assert parties["east"].calls == parties["west"].calls == []


def test_id_that_is_in_doubt_is_a_refusal(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    first = tpc.prepare([insert("1")])
    with pytest.raises(PrepareFailedError) as caught:
        tpc.prepare([insert("1")])
    assert isinstance(caught.value.__cause__, TransactionInDoubtError)
    first.commit()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


def test_participant_that_does_not_answer_in_time_is_rolled_back_when_it_does(
    coordinate: Open, parties: Parties
) -> None:
    answer = threading.Event()
    parties["west"].waits["prepare"] = answer.wait
    tpc = coordinate(prepare_timeout_ms=20)
    with pytest.raises(PrepareFailedError, match="no answer in 20 ms") as caught:
        tpc.prepare([insert("1")])
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert in_doubt(parties) == 0
    assert "rollback" not in parties["west"].calls
    answer.set()
    settles(lambda: "rollback" in parties["west"].calls and in_doubt(parties) == 0)
    parties["west"].waits.clear()
    settles(lambda: not tpc._active)
    tpc.prepare([insert("1")], timeout_ms=5000).commit()


# -- telling until all know


@pytest.mark.parametrize("when", ["before", "after"])
def test_commit_is_told_until_it_is_acknowledged(coordinate: Open, parties: Parties, when: str) -> None:
    parties["west"].broken["commit"] = [when] * 3
    coordinate().prepare([insert("1")]).commit()
    assert parties["west"].calls.count("commit") == 4
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


@pytest.mark.parametrize("when", ["before", "after"])
def test_rollback_is_told_until_it_is_acknowledged(coordinate: Open, parties: Parties, when: str) -> None:
    parties["west"].broken["rollback"] = [when] * 2
    coordinate().prepare([insert("1")]).rollback()
    assert parties["west"].calls.count("rollback") == 3
    assert in_doubt(parties) == 0


def test_participant_that_is_away_hears_of_the_commit_when_it_is_back(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    tpc = coordinate()
    transaction = tpc.prepare([insert("1")])
    parties["west"].broken["commit"] = ["before"] * 1000
    with pytest.raises(DecisionPendingError, match="recover") as caught:
        transaction.commit(timeout_ms=30)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.gid, caught.value.decision, set(caught.value.participants)) == (
        transaction.gid,
        "commit",
        {"west"},
    )
    assert ids(parties) == {"east": ["1"], "west": []}
    (doubt,) = tpc.list_in_doubt()
    assert doubt == (transaction.gid, ["west"], "commit")
    with pytest.raises(ValueError, match="is decided: commit"):
        tpc.resolve(transaction.gid, "rollback")
    parties["west"].broken.clear()
    settles(lambda: ids(parties)["west"] == ["1"])
    settles(lambda: tpc.list_in_doubt() == [])


def test_next_coordinator_tells_what_the_last_one_had_decided(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    transaction = coordinate().prepare([insert("1")])
    parties["west"].broken["commit"] = ["before"] * 1000
    with pytest.raises(DecisionPendingError):
        transaction.commit(timeout_ms=1)
    parties["west"].broken["list_in_doubt"] = ["before"]  # not there yet
    tpc = coordinate(prepare_timeout_ms=20)
    assert [doubt.decision for doubt in tpc.list_in_doubt()] == ["commit"]
    parties["west"].broken.clear()
    settles(lambda: tpc.list_in_doubt() == [])
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


def test_decision_whose_sync_failed_is_nobodys_to_change(
    coordinate: Open, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in the log; a participant that is told of a rollback would contradict what the next one reads there."""
    tpc = coordinate()
    transaction, log = tpc.prepare([insert("1")]), tpc._wal._log

    def failing(lsn: int, timeout_s: float | None = None) -> None:
        log.poison(OSError(5, "EIO"))
        raise log.refusal()

    monkeypatch.setattr(log, "make_durable", failing)
    with pytest.raises(SyncFailedError), transaction:
        pass
    for act in (transaction.commit, transaction.rollback):
        with pytest.raises(TransactionClosedError, match="opened again"):
            act()
    with pytest.raises(SyncFailedError):
        tpc.recover()
    assert in_doubt(parties) == 2
    with pytest.raises(SyncFailedError):
        tpc.close()
    parties_know = TwoPhaseCommit(parties, log.wal_dir)
    assert parties_know.list_in_doubt() == []
    parties_know.close()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}  # the page cache had it


def test_interrupted_decision_is_nobodys_to_change(
    coordinate: Open, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpc = coordinate()
    transaction, log_entry = tpc.prepare([insert("1")]), tpc._wal.log_entry

    def interrupted(*args: Any, **how: Any) -> int:
        log_entry(*args, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(tpc._wal, "log_entry", interrupted)
    with pytest.raises(KeyboardInterrupt), transaction:
        pass
    for act in (transaction.commit, transaction.rollback):
        with pytest.raises(TransactionClosedError, match="opened again"):
            act()
    assert tpc.recover() == {}
    coordinate()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


def test_exception_behind_the_commit_is_the_callers_own(coordinate: Open, parties: Parties) -> None:
    transaction = coordinate().prepare([insert("1")])

    def fail_behind_the_commit() -> None:
        with transaction:
            transaction.commit()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_behind_the_commit()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


# -- what is in doubt


def test_transaction_without_a_decision_is_rolled_back_by_the_next_coordinator(
    coordinate: Open, parties: Parties
) -> None:
    tpc = coordinate()
    transaction = tpc.prepare([insert("1")])
    assert tpc.list_in_doubt() == [(transaction.gid, ["east", "west"], None)]
    assert tpc.recover() == {}  # somebody is about to decide it
    assert in_doubt(parties) == 2
    assert coordinate().list_in_doubt() == []
    assert in_doubt(parties) == 0
    with pytest.raises(WalClosedError):
        transaction.commit()
    assert ids(parties) == {"east": [], "west": []}


def test_participant_that_prepared_after_the_recovery_is_rolled_back_by_the_next(
    coordinate: Open, parties: Parties
) -> None:
    gid = coordinate().prepare({"east": [insert("1")]}).gid
    parties["east"].broken["list_in_doubt"] = ["before"]
    tpc = coordinate()
    assert tpc.list_in_doubt() == [(gid, ["east"], "rollback")]
    assert tpc.recover() == {gid: "rollback"}
    assert tpc.list_in_doubt() == []


@pytest.mark.parametrize("decision", ["commit", "rollback"])
def test_transaction_of_another_coordinator_is_left_to_it_or_resolved_by_hand(
    coordinate: Open, parties: Parties, tmp_path: Path, kernel: Any, decision: Any
) -> None:
    with TwoPhaseCommit(parties, tmp_path / "other", kernel=kernel.NAME) as other:
        gid = other.prepare([insert("1")]).gid
    tpc = coordinate()
    assert tpc.recover() == {}
    assert tpc.list_in_doubt() == [(gid, ["east", "west"], None)]
    with pytest.raises(ValueError, match="'commit' or 'rollback'"):
        tpc.resolve(gid, "abort")  # type: ignore[arg-type]
    with pytest.raises(UnknownTransactionError):
        tpc.resolve("unheard of", decision)
    tpc.resolve(gid, decision)
    assert ids(parties) == dict.fromkeys(parties, ["1"] if decision == "commit" else [])
    assert tpc.list_in_doubt() == []


def test_store_that_was_opened_again_takes_its_place(
    coordinate: Open, parties: Parties, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    tpc = coordinate()
    transaction = tpc.prepare([insert("1")])
    west = parties["west"].store
    config = west.wal.config  # type: ignore[union-attr]
    west.close()
    with pytest.raises(DecisionPendingError):
        transaction.commit(timeout_ms=10)
    with mmwal.open(config=config) as again:
        assert [one.gid for one in again.list_in_doubt()] == [transaction.gid]
        tpc.participants["west"] = again
        settles(lambda: again.ids() == ["1"])
        settles(lambda: tpc.list_in_doubt() == [])


def test_recover_tells_at_once_who_is_back(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    tpc = coordinate()
    committed, rolled_back = tpc.prepare([insert("1")]), tpc.prepare([insert("2")])
    parties["west"].broken = {"commit": ["before"] * 1000, "rollback": ["before"] * 1000}
    for act in (committed.commit, rolled_back.rollback):
        with pytest.raises(DecisionPendingError):
            act(timeout_ms=1)
    told = {committed.gid: "commit", rolled_back.gid: "rollback"}
    assert {doubt.gid: doubt.decision for doubt in tpc.list_in_doubt()} == told
    parties["west"].broken.clear()
    assert tpc.recover() == told
    assert tpc.list_in_doubt() == []
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


# -- the decision log


def test_one_coordinator_at_a_time(coordinate: Open, parties: Parties, tmp_path: Path) -> None:
    coordinate()
    with pytest.raises(WalLockedError):
        TwoPhaseCommit(parties, tmp_path / "decisions")


def test_decision_log_stays_small_and_keeps_what_is_not_acknowledged(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    monkeypatch.setattr("mmwal.two_phase._RELEASE_EVERY", 5)
    monkeypatch.setattr("mmwal.two_phase._SEGMENT_BYTES", SEGMENT)
    tpc = coordinate()

    def work() -> None:
        for _ in range(40):
            tpc.prepare({"east": [Operation.Upsert("1", vector(1))]}).commit()

    def rotations() -> int:
        return (tpc._wal.last_lsn - 1) // SEGMENT

    def oldest() -> int:
        return (tpc._wal.oldest_lsn - 1) // SEGMENT

    work()
    pending = tpc.prepare({"west": [insert("pending")]})
    parties["west"].broken["commit"] = ["before"] * 100_000
    with pytest.raises(DecisionPendingError):
        pending.commit(timeout_ms=1)
    began = rotations()
    while rotations() < began + 3:
        work()
    assert oldest() <= began
    tpc = coordinate(prepare_timeout_ms=20)
    assert [doubt.gid for doubt in tpc.list_in_doubt()] == [pending.gid]
    parties["west"].broken.clear()
    settles(lambda: tpc.list_in_doubt() == [])
    assert ids(parties)["west"] == ["pending"]
    work()
    settles(lambda: oldest() > began)


def test_many_threads_share_a_coordinator(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    problems: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(12):
                transaction = tpc.prepare([insert(f"{thread}-{number}")])
                if number % 3:
                    transaction.commit()
                else:
                    transaction.rollback()
        except Exception as error:  # noqa: BLE001 (told below)
            problems.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert problems == []
    expected = {f"{thread}-{number}" for thread in range(4) for number in range(12) if number % 3}
    assert {name: set(found) for name, found in ids(parties).items()} == {"east": expected, "west": expected}
    settles(lambda: not tpc._active and not tpc._decided and not tpc._telling)


# -- what a review found


def test_none_given_is_one_local_participant_and_a_list_is_named_by_number(tmp_path: Path, kernel: Any) -> None:
    with TwoPhaseCommit(log_dir=tmp_path / "alone", kernel=kernel.NAME) as tpc:
        tpc.prepare([insert("1")]).commit()
        (store,) = tpc.participants.values()
        assert isinstance(store, mmwal.VectorStore)
        assert store.ids() == ["1"]
    with TwoPhaseCommit(log_dir=tmp_path / "alone", kernel=kernel.NAME) as tpc:
        assert list(tpc.participants) == ["local"]
        assert "1" in tpc.participants["local"]  # type: ignore[operator]
    stores = [mmwal.VectorStore(8), mmwal.VectorStore(8)]
    with TwoPhaseCommit(stores, tmp_path / "two", kernel=kernel.NAME) as tpc:
        assert list(tpc.participants) == ["0", "1"]


@pytest.mark.parametrize("name", [1, "", None])
def test_name_that_is_no_str_is_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ValueError, match="a name is a str"):
        TwoPhaseCommit({name: mmwal.VectorStore(8)}, tmp_path)


@pytest.mark.parametrize("timeout_ms", ["x", -1, 0.5, True])
def test_bad_timeout_is_refused_before_anybody_is_asked(coordinate: Open, parties: Parties, timeout_ms: Any) -> None:
    tpc = coordinate()
    for act in (
        lambda: tpc.prepare([insert("1")], timeout_ms=timeout_ms),
        lambda: coordinate(prepare_timeout_ms=timeout_ms),
    ):
        with pytest.raises(ValueError, match="milliseconds"):
            act()
    assert in_doubt(parties) == 0


def test_failed_prepare_leaves_nothing_for_commit_to_commit(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    tpc.prepare([insert("1")]).commit()
    with pytest.raises(PrepareFailedError):
        tpc.prepare([insert("1")])
    with pytest.raises(TransactionError, match="prepare"):
        tpc.commit()


def test_nobody_resolves_what_its_own_thread_decides(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    transaction = tpc.prepare([insert("1")])
    for decision in ("commit", "rollback"):
        with pytest.raises(TransactionError, match="about to be decided"):
            tpc.resolve(transaction.gid, decision)  # type: ignore[arg-type]
    transaction.commit()
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


def test_rollback_that_is_being_told_is_not_turned_into_a_commit(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    tpc = coordinate()
    transaction = tpc.prepare([insert("1")])
    parties["west"].broken["rollback"] = ["before"] * 1000
    with pytest.raises(DecisionPendingError):
        transaction.rollback(timeout_ms=10)
    with pytest.raises(ValueError, match="is decided: rollback"):
        tpc.resolve(transaction.gid, "commit")
    parties["west"].broken.clear()
    assert tpc.recover() == {transaction.gid: "rollback"}
    assert in_doubt(parties) == 0
    assert ids(parties) == {"east": [], "west": []}


def test_transaction_that_is_dropped_is_rolled_back_by_recover(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    gid = tpc.prepare([insert("1")]).gid
    tpc.prepare([insert("2")]).commit()
    gc.collect()
    assert tpc.recover() == {gid: "rollback"}
    assert ids(parties) == {"east": ["2"], "west": ["2"]}


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_thread_that_cannot_be_started_leaves_nothing_undecided(
    coordinate: Open, parties: Parties, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tpc = coordinate()
    begin, starts = tpc._begin, itertools.count(1)

    def starve(*args: Any) -> Any:
        if next(starts) == fails:
            raise RuntimeError("can't start new thread")
        return begin(*args)

    monkeypatch.setattr(tpc, "_begin", starve)
    if fails <= 2:
        with pytest.raises(RuntimeError):
            tpc.prepare([insert("1")])
    else:
        transaction = tpc.prepare([insert("1")])
        with pytest.raises(DecisionPendingError, match="start new thread"):
            transaction.commit(timeout_ms=5000)
    monkeypatch.undo()
    tpc.recover()
    settles(lambda: in_doubt(parties) == 0 and not tpc._active and not tpc._telling)
    assert ids(parties) == dict.fromkeys(parties, ["1"] if fails > 2 else [])


def test_participant_that_is_down_costs_one_timeout_and_no_pile_of_threads(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    monkeypatch.setattr("mmwal.two_phase._RETRY_S", (0.001, 0.01))
    tpc = coordinate(prepare_timeout_ms=50)
    parties["west"].broken = {name: ["before"] * 10_000 for name in ("prepare", "rollback", "commit")}
    threads = threading.active_count()
    for number in range(20):
        with pytest.raises(PrepareFailedError):
            tpc.prepare([insert(number)])
    settles(lambda: not tpc._active and not tpc._telling and threading.active_count() <= threads)
    parties["west"].broken = {"commit": ["before"] * 10_000}
    for number in range(6):
        with pytest.raises(DecisionPendingError):
            tpc.prepare([insert(f"c{number}")]).commit(timeout_ms=1)
    started = time.monotonic()
    assert tpc.recover() == {}
    assert time.monotonic() - started < 6 * 0.05 + 2  # not one wait for each
    parties["west"].broken.clear()
    settles(lambda: tpc.list_in_doubt() == [])


def test_participant_that_hangs_does_not_hang_the_coordinator(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    answer = threading.Event()
    parties["west"].waits["list_in_doubt"] = answer.wait
    assert coordinate(prepare_timeout_ms=20).list_in_doubt() == []
    answer.set()


def test_error_of_a_block_is_not_hidden_by_who_is_away(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, "mmwal")
    tpc = coordinate()
    parties["west"].broken["rollback"] = ["before"] * 1000
    with pytest.raises(ZeroDivisionError), tpc.prepare([insert("1")]):
        raise ZeroDivisionError
    parties["west"].broken.clear()
    settles(lambda: in_doubt(parties) == 0)


def test_forked_child_that_leaves_a_block_tells_nobody(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    with tpc.prepare([insert("1")]):
        calls = len(parties["east"].calls)
        pid = os.fork()
        if not pid:
            try:
                with contextlib.suppress(ForkedProcessError):
                    tpc.rollback()
                    os._exit(1)
                tpc._last.__exit__(SystemExit, None, None)  # type: ignore[union-attr]
                os._exit(len(parties["east"].calls) - calls)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
    assert ids(parties) == {"east": ["1"], "west": ["1"]}


# -- what is no coordinator's to say, and what no caller may pass


def test_closed_coordinator_says_nothing_of_what_another_one_is_deciding(coordinate: Open, parties: Parties) -> None:
    closed = coordinate()
    closed.close()
    transaction = coordinate().prepare({"east": [insert("x")]})
    for call in (
        closed.list_in_doubt,
        closed.recover,
        lambda: closed.resolve(transaction.gid, "rollback"),
        lambda: closed.resolve(transaction.gid, "commit"),
    ):
        with pytest.raises(WalClosedError):
            call()
    transaction.commit()
    assert ids(parties) == {"east": ["x"], "west": []}


def test_child_of_a_coordinator_says_nothing_of_its_transactions(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()
    transaction = tpc.prepare({"east": [insert("x")]})

    def ask() -> None:
        for call in (tpc.list_in_doubt, lambda: tpc.resolve(transaction.gid, "rollback")):
            with pytest.raises(ForkedProcessError):
                call()

    in_child(ask)
    transaction.commit()
    assert ids(parties)["east"] == ["x"]


@pytest.mark.parametrize("timeout_ms", ["30", 1.5, -1, True], ids=repr)
def test_timeout_that_is_none_is_refused_before_anything_is_decided(
    coordinate: Open, parties: Parties, timeout_ms: Any
) -> None:
    tpc = coordinate()
    transaction = tpc.prepare({"east": [insert("x")]})
    for call in (transaction.commit, transaction.rollback, tpc.commit, tpc.rollback):
        with pytest.raises(ValueError, match=rf"^timeout_ms={timeout_ms!r}"):
            call(timeout_ms=timeout_ms)
    with pytest.raises(ValueError, match=rf"^timeout_ms={timeout_ms!r}"):
        tpc.resolve(transaction.gid, "rollback", timeout_ms=timeout_ms)
    assert in_doubt(parties) == 1
    transaction.commit(timeout_ms=None)
    assert ids(parties)["east"] == ["x"]


def test_what_is_no_participant_is_refused_by_name(tmp_path: Path, coordinate: Open, parties: Parties) -> None:
    store = parties["east"].store
    for given in (5, "ab", store):
        with pytest.raises(TypeError, match=r"^participants is a (int|str|VectorStore); pass a mapping"):
            TwoPhaseCommit(given, tmp_path / "log")  # type: ignore[arg-type]
    for given in ({"a": 5}, [store, None]):
        with pytest.raises(
            TypeError, match=r"^participant '[a1]' is a (int|NoneType) without prepare, commit, rollback"
        ):
            TwoPhaseCommit(given, tmp_path / "log")  # type: ignore[arg-type]
    for name in ("", 7, "\ud800"):
        with pytest.raises(ValueError, match=r"^participant .*: a name is a str of UTF-8"):
            TwoPhaseCommit({name: store}, tmp_path / "log")  # type: ignore[dict-item]
    tpc = coordinate()
    tpc.participants["late"] = 7  # type: ignore[assignment]
    with pytest.raises(TypeError, match="participant 'late' is a int"):
        tpc.prepare([insert("x")])
    assert in_doubt(parties) == 0


@pytest.mark.parametrize(
    "operations", [None, 5, "ab", insert("x"), {"east": None}, {"east": insert("x")}, {"east": "x"}]
)
def test_what_is_no_list_of_operations_is_refused_by_name(coordinate: Open, parties: Parties, operations: Any) -> None:
    with pytest.raises(TypeError, match=r"^operations(\['east'\])? is a .*; pass a list of Operation"):
        coordinate().prepare(operations)
    assert parties["east"].calls.count("prepare") == 0


def test_operations_may_be_any_iterable(coordinate: Open, parties: Parties) -> None:
    coordinate().prepare(insert(id) for id in ("a", "b")).commit()
    assert ids(parties) == {"east": ["a", "b"], "west": ["a", "b"]}


def test_participant_whose_doubts_are_no_global_ids_is_left_out_and_logged(
    coordinate: Open, parties: Parties, caplog: pytest.LogCaptureFixture
) -> None:
    tpc = coordinate()
    tpc.participants["odd"] = odd = Unreliable(parties["east"].store)
    odd.list_in_doubt = lambda: [5]  # type: ignore[method-assign, assignment, list-item, return-value]
    assert tpc.list_in_doubt() == []
    assert "'odd' does not say what is in doubt: its list_in_doubt() gave a int, 5" in caplog.text


def test_error_of_a_block_is_not_hidden_by_a_closed_coordinator(coordinate: Open, parties: Parties) -> None:
    tpc = coordinate()

    def block() -> None:
        with tpc.prepare({"east": [insert("x")]}):
            tpc.close()
            raise LookupError("the block's own")

    with pytest.raises(LookupError, match="the block's own"):
        block()
    coordinate()
    assert (in_doubt(parties), ids(parties)["east"]) == (0, [])
