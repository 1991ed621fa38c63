"""Transactions on a log alone: whole or not at all, one commit, one sync, whatever their size (items 4, 49, 66, 67)."""

import gc
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mmwal.transaction
from mmwal.errors import (
    IdTypeError,
    MetadataError,
    TransactionClosedError,
    TransactionError,
    UnavailableError,
    VectorError,
    WalClosedError,
    WalError,
    WalFullError,
)
from mmwal.log.segment import segment_name
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import DIMENSION, HUGE_INTERVAL, SEGMENT, assert_ordered, fill, ids, segments, until_full, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.fixture
def held_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transactions that log their members as they come."""
    monkeypatch.setattr(mmwal.transaction.WalTransaction.__init__, "__kwdefaults__", {"held_bytes_max": 1})


@pytest.fixture(params=["held", "logged at once"])
def how(request: pytest.FixtureRequest) -> str:
    if request.param != "held":
        request.getfixturevalue("held_little")
    return str(request.param)


def seen(wal: WalManager) -> list[Any]:
    """What a replay gives: kind, id and LSN of each row, commits left out."""
    found: list[Any] = []
    for entry in wal.replay():
        if entry.kind == "batch":
            found += [(entry.operation, id, entry.lsn) for id in entry.ids]
        elif entry.kind != "commit":
            found.append((entry.kind, entry.id, entry.lsn))
    return found


def to_the_brim(wal: WalManager) -> None:
    until_full(wal)
    with suppress(WalFullError):  # the last bytes too
        while True:
            wal.log_delete("x")


def test_everything_in_a_transaction_shares_one_commit_and_one_sync(open_wal: OpenWal, how: str) -> None:
    wal = open_wal(disk=SimulatedDisk())  # where nothing is synced in the background meanwhile
    fill(wal, 1)
    wal.sync()
    syncs = wal.get_metrics().syncs
    txn = wal.begin_transaction()
    for i in range(20):
        txn.log_insert(f"t{i}", vector(i), {"n": i})
    assert ids(wal) == ["id-0"]
    lsn = txn.commit()
    assert wal.get_metrics().syncs == syncs + 1
    assert wal.durable_lsn >= lsn == wal.last_lsn
    commits = [entry for entry in wal.replay() if entry.kind == "commit"]
    assert seen(wal)[1:] == [("insert", f"t{i}", lsn) for i in range(20)]
    assert [commit.rows for commit in commits] == ([20] if how != "held" else [])  # one frame needs no commit


def test_operations_come_back_in_their_order_with_all_they_said(open_wal: OpenWal, how: str) -> None:
    wal = open_wal()
    with wal.begin_transaction() as txn:
        txn.log_insert("a", vector(1), {"n": 1})
        txn.log_insert(7, vector(2))
        txn.log_update("a", metadata={"n": 2})
        txn.log_update("a", vector(3))
        txn.log_delete(7)
        txn.log_batch(["b", "c"], np.stack([vector(4), vector(5)]), [None, {}], operation="upsert")
        txn.log_insert(SimpleNamespace(id="d", vector=vector(6), metadata={"of": "it"}))
        txn.log_update(SimpleNamespace(id="e", vector=vector(7)))
        txn.log_batch(["b"], operation="delete")
    lsn = wal.last_lsn
    kinds = ["insert", "insert", "update", "update", "delete", "upsert", "upsert", "insert", "update", "delete"]
    assert seen(wal) == [(kind, id, lsn) for kind, id in zip(kinds, ["a", 7, "a", "a", 7, *"bcdeb"], strict=True)]
    told = {}
    for entry in wal.replay():
        for single in entry.singles() if entry.kind == "batch" else [entry]:
            if single.kind not in ("commit", "delete"):
                told[single.kind, single.id] = (None if single.vector is None else single.vector[0], single.metadata)
    assert told["insert", "a"] == (1, {"n": 1})
    assert told["update", "a"] == (3, None)
    assert told["upsert", "c"] == (5, {})
    assert told["insert", "d"] == (6, {"of": "it"})
    assert told["update", "e"] == (7, None)
    assert all(entry.lsn == lsn for entry in wal.replay())


@pytest.mark.parametrize("way", ["rollback", "exception", "garbage", "close"])
def test_what_is_not_committed_has_no_effect(open_wal: OpenWal, how: str, way: str) -> None:
    wal = open_wal()
    first = fill(wal, 1)
    txn: Any = wal.begin_transaction()
    for i in range(5):
        txn.log_insert(i, vector(i))
        txn.log_delete("id-0")
    if way == "rollback":
        txn.rollback()
        txn.rollback()
    elif way == "exception":
        with pytest.raises(KeyError), txn:
            raise KeyError
    elif way == "garbage":
        del txn
        gc.collect()
    else:
        wal.close()
        with pytest.raises(WalClosedError):
            txn.commit()
        wal = open_wal()
    last = fill(wal, 1, 1)
    assert ids(wal) == ["id-0", "id-1"]
    assert not wal._log.keeper.transactions
    wal.close()
    again = open_wal()
    assert seen(again) == [("insert", "id-0", first[0]), ("insert", "id-1", last[0])]


def test_use_after_the_end_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal()
    committed, rolled_back = wal.begin_transaction(), wal.begin_transaction()
    committed.log_insert("a", vector(1))
    committed.commit()
    rolled_back.rollback()
    for txn, how in ((committed, "committed"), (rolled_back, "rolled back")):
        uses: list[Callable[[], Any]] = [
            lambda txn=txn: txn.log_insert("b", vector(1)),
            lambda txn=txn: txn.log_update("b", vector(1)),
            lambda txn=txn: txn.log_delete("b"),
            lambda txn=txn: txn.log_batch(["b"], [vector(1)]),
            txn.commit,
            txn.__enter__,
        ]
        for use in uses:
            with pytest.raises(TransactionClosedError, match=f"was {how}; begin another"):
                use()
        txn.rollback()
        assert not txn.is_open
    assert ids(wal) == ["a"]
    assert issubclass(TransactionClosedError, TransactionError)


def test_bad_input_leaves_the_transaction_as_it_was(open_wal: OpenWal, how: str) -> None:
    wal = open_wal()
    txn = wal.begin_transaction()
    txn.log_insert("a", vector(1))
    wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
        (VectorError, lambda: txn.log_insert("b", vector(1, 3))),
        (VectorError, lambda: txn.log_insert("b", [float("nan")] * DIMENSION)),
        (VectorError, lambda: txn.log_insert(SimpleNamespace(id="b", vector=None))),
        (IdTypeError, lambda: txn.log_delete(1.5)),
        (MetadataError, lambda: txn.log_update("b", metadata={"t": (1,)})),
        (TypeError, lambda: txn.log_insert("b")),
        (WalError, lambda: txn.log_insert("x" * 65_000, vector(1), {"m": "y" * 65_000})),
        (ValueError, lambda: txn.log_batch(["b"], [vector(1)], operation="replace")),  # type: ignore[arg-type]
        (ValueError, lambda: txn.log_batch([], operation="delete")),
        (VectorError, lambda: txn.log_batch(["b", "c"], [vector(1)])),
    ]
    for kind, call in wrong:
        with pytest.raises(kind):
            call()
    txn.log_insert("z", vector(2))
    lsn = txn.commit()
    assert seen(wal) == [("insert", "a", lsn), ("insert", "z", lsn)]


def test_what_the_caller_does_to_an_array_afterwards_does_not_matter(open_wal: OpenWal, how: str) -> None:
    wal = open_wal()
    one, many = vector(1), np.stack([vector(2), vector(3)])
    with wal.begin_transaction() as txn:
        txn.log_insert("a", one)
        txn.log_batch(["b", "c"], many)
        one[:], many[:] = 99, 99
    found = {
        single.id: single.vector[0]
        for e in wal.replay()
        if e.kind != "commit"
        for single in (e.singles() if e.kind == "batch" else [e])
    }
    assert found == {"a": 1, "b": 2, "c": 3}


def test_empty_transaction_logs_nothing(open_wal: OpenWal) -> None:
    wal = open_wal()
    fill(wal, 1)
    before = wal.get_metrics().reserved_lsn
    assert wal.begin_transaction().commit() == before == wal.get_metrics().reserved_lsn


def test_transaction_larger_than_segment_and_runway_is_whole(open_wal: OpenWal, wal_dir: Any, how: str) -> None:
    wal = open_wal(append_timeout_ms=60_000)
    rows = 5 * SEGMENT // (DIMENSION * 4)
    with wal.begin_transaction() as txn:
        for i in range(rows):
            txn.log_insert(i, vector(i))
            if i % 500 == 0:
                wal.log_insert(f"between-{i}", vector(i))
    assert len(segments(wal_dir)) > 5
    wal.close()
    again = open_wal()
    inside = [id for kind, id, lsn in seen(again) if isinstance(id, int)]
    assert inside == list(range(rows))
    assert len(ids(again)) == rows + len(range(0, rows, 500))
    assert again.verify_wal().ok


def test_released_log_keeps_what_an_open_transaction_logged(open_wal: OpenWal, held_little: None) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    txn = wal.begin_transaction()
    txn.log_insert("first", vector(1))
    txn.log_insert("second", vector(2))  # logs the first
    begins = wal.last_lsn // SEGMENT
    for i in range(20):
        fill(wal, 200, 200 * i)
        disk.run_workers()
    wal.release(wal.last_lsn)
    disk.run_workers()
    live = wal.get_metrics().current_size_mb
    assert live * 1e6 > 2 * SEGMENT
    assert segment_name(begins) in disk.list_directory("/wal")
    lsn = txn.commit()
    assert [entry[1] for entry in seen(wal) if entry[2] == lsn] == ["first", "second"]
    wal.release(lsn)
    disk.run_workers()
    assert wal.get_metrics().current_size_mb == 0
    assert segment_name(begins) not in disk.list_directory("/wal")


def test_released_log_keeps_a_transaction_that_ends_behind_it(open_wal: OpenWal, held_little: None) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    txn = wal.begin_transaction()
    txn.log_insert("first", vector(1))
    txn.log_insert("second", vector(2))  # logs the first
    between = fill(wal, 2000)[-1]
    lsn = txn.commit()
    disk.run_workers()
    wal.release(between)
    disk.run_workers()
    assert segment_name(0) in disk.list_directory("/wal")
    assert [entry[1] for entry in seen(wal) if entry[2] == lsn] == ["first", "second"]


def test_open_transaction_counts_within_the_budget_and_says_so(open_wal: OpenWal, held_little: None) -> None:
    wal = open_wal(max_wal_size=4 * SEGMENT, append_timeout_ms=200)
    txn = wal.begin_transaction()
    txn.log_insert("first", vector(1))
    txn.log_insert("second", vector(2))
    logged, error = until_full(wal)
    assert "end the transactions that are open" in str(error)
    wal.release(logged[-1])
    with pytest.raises(WalFullError):  # what was released is not let go of
        fill(wal, 100)
    txn.rollback()
    wal.release(wal.last_lsn)
    fill(wal, 100)
    assert_ordered(wal)


def test_end_of_a_transaction_lets_those_who_wait_for_its_room_go_on(open_wal: OpenWal, held_little: None) -> None:
    wal = open_wal(max_wal_size=4 * SEGMENT, append_timeout_ms=300)
    txn = wal.begin_transaction()
    txn.log_insert("first", vector(1))
    txn.log_insert("second", vector(2))
    logged, _ = until_full(wal)
    wal.release(logged[-1])
    with pytest.raises(WalFullError):
        fill(wal, 100)
    wal._log._append_timeout_s = 60
    waiting = threading.Thread(target=fill, args=(wal, 100))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    txn.rollback()
    waiting.join(30)
    assert not waiting.is_alive()


def test_full_log_leaves_the_transaction_open_to_be_committed_again(open_wal: OpenWal, how: str) -> None:
    wal = open_wal(max_wal_size=4 * SEGMENT, append_timeout_ms=200)
    txn = wal.begin_transaction()
    for i in range(10):
        txn.log_insert(f"t{i}", vector(i))
    to_the_brim(wal)
    with pytest.raises(WalFullError):
        txn.commit()
    assert txn.is_open
    if how == "held":
        wal.release(wal.last_lsn)
        lsn = txn.commit()
        assert [id for _, id, at in seen(wal) if at == lsn] == [f"t{i}" for i in range(10)]
    else:
        txn.rollback()  # its own members keep the log
        wal.release(wal.last_lsn)
        fill(wal, 1)


def test_end_of_a_with_block_rolls_back_what_a_full_log_did_not_take(open_wal: OpenWal) -> None:
    wal = open_wal(max_wal_size=4 * SEGMENT, append_timeout_ms=200)
    txn = wal.begin_transaction()
    txn.log_insert("a", vector(1))
    to_the_brim(wal)
    with pytest.raises(WalFullError), txn:
        pass
    assert not txn.is_open
    assert not wal._log.keeper.transactions


def test_interrupted_member_ends_the_transaction(open_wal: OpenWal, held_little: None, monkeypatch: Any) -> None:
    """A member that stands in the log uncounted would make the commit record contradict it."""
    wal = open_wal()
    txn = wal.begin_transaction()
    txn.log_insert("a", vector(1))
    checksum_at = wal._log.checksum_at

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(wal._log, "checksum_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        txn.log_insert("b", vector(2))
    monkeypatch.setattr(wal._log, "checksum_at", checksum_at)
    with pytest.raises(TransactionClosedError):
        txn.commit()
    fill(wal, 1)
    wal.close()
    assert ids(open_wal()) == ["id-0"]


def test_interrupted_commit_may_count_and_so_keeps_its_log(open_wal: OpenWal, held_little: None) -> None:
    wal = open_wal()
    txn = wal.begin_transaction()
    txn.log_insert("a", vector(1))
    txn.log_insert("b", vector(2))
    log, append_frame = wal._log, wal._log.append_frame

    def interrupted(kind: int, *rest: Any) -> int:
        lsn = append_frame(kind, *rest)
        if kind == 16:
            raise KeyboardInterrupt
        return lsn

    log.append_frame = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        txn.commit()
    del log.append_frame
    assert ids(wal) == ["a", "b"]
    fill(wal, 2000)
    wal.release(wal.last_lsn)
    assert wal._log.keeper.needed_lsn < SEGMENT


def test_interleaved_transactions_of_many_threads_are_each_whole(open_wal: OpenWal, how: str) -> None:
    wal = open_wal(sync_interval_ms=1, append_timeout_ms=60_000)
    together = threading.Barrier(8)
    lsns: dict[str, int] = {}

    def work(thread: int) -> None:
        together.wait()
        for turn in range(15):
            name = f"{thread}.{turn}"
            txn = wal.begin_transaction()
            for i in range(7):
                txn.log_insert(f"{name}.{i}", vector(i))
                txn.log_delete(f"{name}.{i}.gone")
            if turn % 5 == 4:
                txn.rollback()
            else:
                lsns[name] = txn.commit(durable=turn % 2 == 0)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wal.close()
    again = open_wal()
    expected = []
    for name, lsn in sorted(lsns.items(), key=lambda item: item[1]):
        for i in range(7):
            expected += [("insert", f"{name}.{i}", lsn), ("delete", f"{name}.{i}.gone", lsn)]
    assert seen(again) == expected
    assert len(lsns) == 8 * 12


def test_power_cut_before_the_commit_leaves_nothing_and_behind_it_everything(open_wal: OpenWal, how: str) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=HUGE_INTERVAL)
    first = fill(wal, 1)[0]
    txn = wal.begin_transaction()
    for i in range(5):
        txn.log_insert(i, vector(i))
        txn.log_delete(i)
    wal.sync()
    for choice in disk.images(random.Random(1), 10):
        assert seen(open_wal(disk=disk.image(choice))) == [("insert", "id-0", first)]
    txn.commit()
    for choice in disk.images(random.Random(2), 10):
        assert len(seen(open_wal(disk=disk.image(choice)))) == 11


def test_log_that_takes_no_more_is_said_at_once(open_wal: OpenWal) -> None:
    wal = open_wal()
    txn = wal.begin_transaction()
    txn.log_insert("a", vector(1))
    wal.close()
    with pytest.raises(WalClosedError):
        txn.log_insert("b", vector(1))
    with pytest.raises(WalClosedError):
        wal.begin_transaction()


def test_reader_alone_and_the_log_of_a_store_begin_none(open_wal: OpenWal, wal_dir: Any, tmp_path: Any) -> None:
    open_wal().close()
    with WalManager.new_from_path(wal_dir) as reader, pytest.raises(mmwal.ReadOnlyError):
        reader.begin_transaction()
    with mmwal.open(tmp_path / "store", dimension=4) as store:
        assert store.wal is not None
        with pytest.raises(UnavailableError, match=r"store.transaction\(\)"):
            store.wal.begin_transaction()


def test_rows_may_be_logged_as_entries(open_wal: OpenWal) -> None:
    wal = open_wal()
    entries = [
        mmwal.WalEntry.Insert("a", vector(1), {"n": 1}),
        mmwal.WalEntry.Upsert("b", vector(2)),
        mmwal.WalEntry.Update("a", None, {"n": 2}),
        mmwal.WalEntry.Delete("b"),
        mmwal.WalEntry.Batch("insert", ["c", "d"], np.stack([vector(3), vector(4)])),
    ]
    with wal.begin_transaction() as txn:
        for entry in entries:
            txn.log_entry(entry)
        for refused in (mmwal.CustomEntry(b"x"), mmwal.WalEntry.Custom(mmwal.CustomEntry(b"x"))):
            with pytest.raises(TypeError, match="a custom entry stands alone"):
                txn.log_entry(refused)
        with pytest.raises(TypeError, match="a int is no entry to log"):
            txn.log_entry(5)
        with pytest.raises(VectorError, match="upsert of id 'e' without a vector"):
            txn.log_entry(mmwal.WalEntry.Upsert("e", None))  # type: ignore[arg-type]
    kinds = [(entry.kind, getattr(entry, "id", None)) for entry in wal.replay()]
    assert kinds == [
        ("insert", "a"),
        ("upsert", "b"),
        ("update", "a"),
        ("delete", "b"),
        ("batch", None),
        ("commit", None),
    ]
