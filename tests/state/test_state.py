"""The state: what is alive, who sees what, and when a row is taken again."""

import gc
import threading
from typing import Any

import numpy as np
import pytest

import mmwal.state.state
from mmwal import kernel as kernels
from mmwal.disk.posix import PosixDisk
from mmwal.errors import WalFullError
from mmwal.kernel.interface import NO_ROW
from mmwal.state.matrix import Matrix, MemoryMatrix
from mmwal.state.state import State, load_state


@pytest.fixture(autouse=True)
def rows_are_reused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.state.state, "_COLLECT_ROWS_LEAST", 1)


@pytest.fixture
def state() -> State:
    return State(MemoryMatrix(4, 1))


def write(state: State, id: Any, metadata: bytes | None = None) -> int:
    """Puts an id as a store would; its vector is its LSN. Returns the row."""
    with state.lock:
        lsn = state.applied_lsn + 64
        row = state.take_row()
        state.matrix.array[row] = lsn
        state.put(id, row, lsn, metadata)
        state.advance(lsn)
    return row


def remove(state: State, id: Any) -> None:
    with state.lock:
        lsn = state.applied_lsn + 64
        state.remove(id, lsn)
        state.advance(lsn)


def checkpoint(state: State) -> None:
    with state.lock:
        capture = state.capture()
    state.checkpoint_published(capture)


def taken_soon(state: State, row: int) -> bool:
    """Tells whether a row is handed out again to one of the next few writes of another id."""
    return any(write(state, "another") == row for _ in range(20))


# ---- what is alive


def test_put_id_is_found_with_row_lsn_and_metadata(state: State) -> None:
    row = write(state, "a", b"meta")
    assert state.get("a") == (row, 64, b"meta")
    assert "a" in state
    assert len(state) == 1


def test_str_and_int_of_the_same_digits_are_two_ids(state: State) -> None:
    assert write(state, "7") != write(state, 7)
    assert len(state) == 2


def test_replaced_id_lives_in_another_row(state: State) -> None:
    first, second = write(state, "a"), write(state, "a")
    assert first != second
    assert state.get("a") == (second, 128, None)
    assert len(state) == 1


def test_removed_id_is_gone_and_removing_it_again_is_a_key_error(state: State) -> None:
    write(state, "a")
    remove(state, "a")
    assert state.get("a") is None
    assert "a" not in state
    with state.lock, pytest.raises(KeyError):
        state.remove("a", 1000)


def test_read_returns_a_copy_of_the_vector(state: State) -> None:
    write(state, "a")
    found = state.read("a")
    assert found is not None
    write(state, "a")
    assert found[0].tolist() == [64.0] * 4
    assert state.read("b") is None


def test_put_many_replaces_old_rows_and_of_an_id_given_twice_the_last_counts(state: State) -> None:
    old = write(state, "a")
    with state.lock:
        rows = state.take_rows(3)
        state.put_many(["a", "b", "a"], rows, 128, [b"1", None, b"3"])
        state.advance(128)
    assert state.get("a") == (rows[2], 128, b"3")
    with state.reading() as view:
        assert set(view.rows().tolist()) == {rows[1], rows[2]}
    assert len({old, *rows}) == 4


# ---- who sees what


def test_reader_sees_what_was_applied_when_it_began(state: State) -> None:
    kept, replaced = write(state, "kept"), write(state, "replaced")
    removed = write(state, "removed")
    with state.reading() as view:
        write(state, "replaced")
        remove(state, "removed")
        write(state, "new")
        assert view.rows().tolist() == [kept, replaced, removed]
        assert list(view.records(view.rows())) == [("kept", 64, None), ("replaced", 128, None), ("removed", 192, None)]
        assert view.array[view.rows()][:, 0].tolist() == [64.0, 128.0, 192.0]


def test_half_applied_frame_is_not_seen(state: State) -> None:
    write(state, "a")
    with state.lock:
        state.put("b", state.take_row(), 128, None)
        with state.reading() as view:
            assert [id for id, _, _ in view.records(view.rows())] == ["a"]
        state.put("c", state.take_row(), 128, None)
        state.advance(128)
    with state.reading() as view:
        assert [id for id, _, _ in view.records(view.rows())] == ["a", "b", "c"]


def test_reader_keeps_its_view_while_the_tables_grow(state: State) -> None:
    rows = [write(state, n) for n in range(10)]
    with state.reading() as view:
        for n in range(1000):
            write(state, n)
        assert view.rows().tolist() == rows
        assert view.array[rows][:, 0].tolist() == [64.0 * (n + 1) for n in range(10)]


# ---- when a row is taken again


def test_row_born_and_replaced_between_checkpoints_is_taken_again(state: State) -> None:
    row = write(state, "a")
    write(state, "a")
    assert taken_soon(state, row)


def test_row_named_by_a_slot_waits_until_both_slots_have_moved_on(state: State) -> None:
    row = write(state, "a")
    checkpoint(state)
    write(state, "a")
    assert not taken_soon(state, row)
    checkpoint(state)  # the older slot still names it
    assert not taken_soon(state, row)
    checkpoint(state)
    assert taken_soon(state, row)


def test_row_named_by_a_running_checkpoint_is_not_taken(state: State) -> None:
    row = write(state, "a")
    with state.lock:
        capture = state.capture()
    write(state, "a")
    assert not taken_soon(state, row)
    with state.lock:
        state.drop_capture(capture)
    assert taken_soon(state, row)


def test_row_that_a_reader_sees_is_not_taken(state: State) -> None:
    row = write(state, "a")
    with state.reading():
        write(state, "a")
        assert not taken_soon(state, row)
        with state.reading():  # began later, so it does not matter
            pass
    assert taken_soon(state, row)


def test_row_dead_at_an_lsn_that_readers_may_still_begin_at_is_not_taken(state: State) -> None:
    row = write(state, "a")
    with state.lock:
        lsn = state.applied_lsn + 64
        state.put("a", state.take_row(), lsn, None)
        assert row not in state.take_rows(4)
        state.advance(lsn)
    assert taken_soon(state, row)


def test_exported_matrix_keeps_its_rows_until_it_and_its_slices_are_garbage(state: State) -> None:
    row = write(state, "a")
    matrix = state.export()
    part = matrix[row : row + 1, :2]
    write(state, "a")
    del matrix
    gc.collect()
    assert not taken_soon(state, row)
    assert part.tolist() == [[64.0, 64.0]]
    with pytest.raises(ValueError, match="read-only"):
        part[0, 0] = 1
    del part
    gc.collect()
    assert taken_soon(state, row)


def test_given_back_row_is_taken_next_and_was_never_seen(state: State) -> None:
    with state.lock:
        row = state.take_row()
        state.give_back(row)
        assert state.take_row() == row
    with state.reading() as view:
        assert view.rows().tolist() == []


def test_full_disk_is_answered_with_dead_rows_first_and_then_with_an_error() -> None:
    class Full(MemoryMatrix):
        def ensure(self, rows: int) -> int:
            if rows > 64:
                raise WalFullError("no space")
            return super().ensure(rows)

    state = State(Full(4, 1))
    with state.lock:
        rows = state.take_rows(64)
        state.put_many(list(range(64)), rows, 64, None)
        state.advance(64)
        with pytest.raises(WalFullError):
            state.take_row()
        state.remove(3, 128)
        state.advance(128)
        assert state.take_row() == rows[3]
        with pytest.raises(WalFullError):
            state.take_rows(2)
        state.put_many([4, 5, 6], [NO_ROW] * 3, 192, None)
        state.advance(192)
        assert sorted(state.take_rows(3)) == rows[4:7]


# ---- checkpoints


def test_capture_tells_what_was_touched_and_dropping_it_keeps_that_for_the_next(state: State) -> None:
    first = write(state, "a")
    with state.lock:
        capture = state.capture()
        assert (capture.applied_lsn, capture.since_lsn, capture.live_rows) == (64, 0, 1)
        assert list(capture.touched) == [first]
    second = write(state, "b")
    with state.lock:
        state.drop_capture(capture)
        again = state.capture()
    assert set(again.touched) == {first, second}


def test_store_without_checkpoints_keeps_no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(MemoryMatrix(4, 1), durable=False)
    for _ in range(10_000):
        write(state, "a")
    assert len(state._touched) < 1000
    assert state.rows.high < 100


def test_journal_of_a_store_that_takes_no_checkpoint_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.state.state, "_JOURNAL_SLACK", 100)
    state = State(MemoryMatrix(4, 1))
    for _ in range(5000):
        write(state, "a")
    assert len(state._touched) < 1000


def test_loaded_state_is_that_of_its_image() -> None:
    matrix = MemoryMatrix(4, 1)
    matrix.ensure(10)
    directory = kernels.load().Directory()
    directory.put("a", 4, None)
    directory.put(7, 1, b"m")
    state = load_state(
        matrix,
        directory,
        rows=np.array([4, 1]),
        lsns=np.array([64, 128], np.uint64),
        checksums=np.array([5, 6], np.uint32),
        limbo=np.array([2]),
        rows_high=6,
        slots=[100, 200],
    )
    assert state.get("a") == (4, 64, None)
    assert state.get(7) == (1, 128, b"m")
    assert state.applied_lsn == state.checkpoint_lsn == 200
    assert state.rows.checksums[[4, 1]].tolist() == [5, 6]
    with state.lock:
        assert state.take_rows(4) == [0, 3, 5, 6]
    checkpoint(state)
    assert taken_soon(state, 2)
    remove(state, "a")
    checkpoint(state)
    assert not taken_soon(state, 4)
    checkpoint(state)
    assert taken_soon(state, 4)


# ---- threads


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "mapped"])
def test_readers_never_see_a_row_that_changed_hands(tmp_path: Any, in_memory: bool) -> None:
    matrix = MemoryMatrix(4, 1) if in_memory else Matrix.create(PosixDisk(), str(tmp_path / "matrix"), 4, 1)
    state = State(matrix)
    done, wrong = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            with state.reading() as view:
                rows = view.rows()
                values = view.array[rows][:, 0].astype(np.uint64) * np.uint64(64)
                ids = [id for id, _, _ in view.records(rows)]
                if (values != view.born[rows]).any() or len(set(ids)) != len(ids):
                    wrong.append(rows)
            found = state.read(5)
            if found is not None and found[0][0] * 64 != found[1].lsn:
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(8000):
        with state.lock:
            lsn = state.applied_lsn + 64
            row = state.take_row()
            state.matrix.array[row] = lsn // 64
            state.put(n % 50, row, lsn, None)
            state.advance(lsn)
        if n % 1000 == 0:
            checkpoint(state)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert state.rows.high < 4000
    matrix.close()
