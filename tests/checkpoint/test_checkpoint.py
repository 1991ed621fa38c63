"""Checkpoints: what they write, what they leave alone, and what comes back."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import mmwal.checkpoint.changes
import mmwal.checkpoint.checkpoint
from mmwal.checkpoint.image import image_numbers, image_path
from mmwal.checkpoint.load import create_data, load_checkpoint
from mmwal.disk.posix import PosixDisk
from mmwal.errors import ForeignDirectoryError
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, SLOT_OFFSETS
from tests.checkpoint.homes import IDENTITY, START_LSN, Home, check_whole, vector_of


def load(home: Home, until_lsn: int | None = None) -> Any:
    loaded = load_checkpoint(home.disk, home.path, until_lsn=until_lsn)
    assert loaded is not None
    loaded.matrix.close()
    return loaded


def test_new_store_is_empty_and_replays_from_the_beginning(home: Home) -> None:
    loaded = load(home)
    check_whole(home.kernel, loaded, {})
    assert (loaded.redo_lsn, loaded.needed_lsn, loaded.sequence) == (START_LSN, START_LSN, 1)
    assert loaded.notes == []


def test_directory_without_control_file_has_no_checkpoint(disk: Any, data_dir: str) -> None:
    disk.make_directory(data_dir)
    assert load_checkpoint(disk, data_dir) is None


def test_checkpoint_brings_everything_back(home: Home) -> None:
    home.put("a", 7, "7", -(2**63), "ü" * 300)
    home.put("b", metadata=b"\x81\xa1a\x01")
    home.put("a", metadata=b"")
    home.remove(7)
    info = home.checkpoint()
    assert (info.sequence, info.lsn, info.redo_lsn) == (2, home.lsn, home.lsn)
    assert (info.rows_changed, info.live_rows) == (5, 5)
    assert info.bytes_written > 5 * 64
    assert info.elapsed_ms > 0
    loaded = load(home)
    check_whole(home.kernel, loaded, home.content)
    assert loaded.redo_lsn == home.lsn
    assert loaded.needed_lsn == START_LSN


def test_checkpoint_waits_for_the_log_before_and_reports_after(home: Home) -> None:
    home.put("a")
    first = home.checkpoint()
    home.put("b")
    second = home.checkpoint()
    assert home.waited == [first.lsn, second.lsn]
    assert home.published == [(START_LSN, first.lsn, 2), (first.lsn, second.lsn, 3)]
    assert (home.checkpointer.needed_lsn, home.checkpointer.redo_lsn) == (first.lsn, second.lsn)
    assert home.checkpointer.sequence == 3


def test_refused_wait_publishes_nothing_and_loses_no_change(home: Home) -> None:
    home.put("a", "b")
    home.checkpoint()
    home.put("a", "c")

    def refuse(lsn: int) -> None:
        raise TimeoutError

    home.checkpointer._wait_durable = refuse
    with pytest.raises(TimeoutError):
        home.checkpoint()
    assert load(home).sequence == 2
    home.checkpointer._wait_durable = home.waited.append
    home.remove("b")
    home.checkpoint()
    check_whole(home.kernel, load(home), home.content)


def test_checkpoint_of_nothing_new_moves_the_redo_point(home: Home) -> None:
    home.put("a")
    home.checkpoint()
    with home.state.lock:
        home.lsn += 640
        home.state.advance(home.lsn)  # the log went on with marks
    info = home.checkpoint()
    assert (info.redo_lsn, info.rows_changed, info.live_rows) == (home.lsn, 0, 1)
    again = home.checkpoint()
    assert (again.redo_lsn, again.sequence) == (home.lsn, info.sequence + 1)
    check_whole(home.kernel, load(home), home.content)


def test_changes_are_appended_as_deltas_until_they_are_merged(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.checkpoint.checkpoint, "DELTAS_BYTES_LEAST", 0)
    home.put(*range(100))
    home.checkpoint()
    [first] = image_numbers(home.disk, home.path)
    numbers = set()
    for n in range(12):
        home.put(n, n + 200)
        home.remove(n + 50)
        home.checkpoint()
        numbers |= set(image_numbers(home.disk, home.path))
        check_whole(home.kernel, load(home), home.content)
    assert first in numbers
    assert len(numbers) > 1
    assert len(image_numbers(home.disk, home.path)) <= 2
    assert first not in image_numbers(home.disk, home.path)


def test_image_is_the_same_whatever_slices_it_is_made_of(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.checkpoint.changes, "_SLICE_ROWS", 7)
    monkeypatch.setattr(mmwal.checkpoint.changes, "_HELD_ROWS", 3)
    for first in (0, 30):  # a base, then a delta with new, changed and deleted ids
        home.put(*(f"id {n}" if n % 2 else n for n in range(first, first + 60)))
        home.put(*range(first, first + 20, 2), metadata=b"m")
        home.remove(*(f"id {n}" for n in range(first + 1, first + 40, 4)))
        home.checkpoint()
        check_whole(home.kernel, load(home), home.content)


def test_cost_of_a_checkpoint_follows_the_changes_not_the_size(home: Home) -> None:
    home.put(*range(3000))
    whole = home.checkpoint()
    home.put(1, 2, 3)
    few = home.checkpoint()
    assert few.rows_changed == 3
    assert few.bytes_written < whole.bytes_written / 100


def test_checkpoints_go_on_after_reopening(disk: Any, kernel: Any, data_dir: str) -> None:
    home = Home.create(disk, kernel, data_dir)
    expected: Any = {}
    for n in range(6):
        home.put(n, "always", metadata=bytes([n]))
        if n % 2:
            home.remove(n - 1)
        home.checkpoint()
        expected = dict(home.content)
        home.put("never checkpointed")
        home.close()
        home = Home.open(disk, kernel, data_dir)
        check_whole(kernel, home.loaded, expected)
    home.close()


def test_both_slots_can_be_loaded(home: Home) -> None:
    contents = {START_LSN: {}}
    for n in range(8):
        home.put(n % 3, metadata=bytes(n))
        if n % 3 == 2:
            home.remove(1)
        home.checkpoint()
        contents[home.lsn] = dict(home.content)
        home.put("beyond", n % 3)  # takes rows that no slot names
        home.remove("beyond")
        newest = load(home)
        check_whole(home.kernel, newest, contents[newest.redo_lsn])
        past = load(home, newest.redo_lsn - 1)
        check_whole(home.kernel, past, contents[past.redo_lsn])
        assert load(home, newest.redo_lsn).redo_lsn == newest.redo_lsn
        content = damage(home, newest.control.current.index)
        older = load(home)
        check_whole(home.kernel, older, contents[older.redo_lsn])
        assert older.redo_lsn == past.redo_lsn < newest.redo_lsn
        write(home, f"{home.path}/control", content)


def damage(home: Home, slot: int) -> bytes:
    """Makes a control slot invalid; returns the file's content before."""
    path = f"{home.path}/control"
    content = home.disk.open(path, writable=False).read(0, CONTROL_BYTES)
    at = SLOT_OFFSETS[slot]
    write(home, path, content[:at] + bytes(DATA_CONTROL.size) + content[at + DATA_CONTROL.size :])
    return bytes(content)


def write(home: Home, path: str, content: bytes) -> None:
    file = home.disk.open(path, writable=True)
    file.write(0, content)
    file.close()


def test_images_that_no_slot_names_are_removed_and_strangers_are_not(home: Home) -> None:
    home.disk.create(image_path(home.path, 77)).close()
    home.disk.create(f"{home.path}/image-notes.txt").close()
    home.put("a")
    home.checkpoint()
    names = home.disk.list_directory(home.path)
    assert "image-notes.txt" in names
    assert image_numbers(home.disk, home.path) == [78]


def test_creating_over_existing_data_is_refused(home: Home) -> None:
    home.put("a")
    home.checkpoint()
    home.disk.unlink(f"{home.path}/control")
    with pytest.raises(ForeignDirectoryError):
        create_data(home.disk, home.kernel, home.path, IDENTITY, START_LSN)


def test_checkpoints_asked_for_at_one_time_are_shared(kernel: Any, tmp_path: Any) -> None:
    home = Home.create(PosixDisk(), kernel, str(tmp_path / "data"))
    home.put("a")
    entered, leave = threading.Event(), threading.Event()

    def wait(lsn: int) -> None:
        home.waited.append(lsn)
        entered.set()
        leave.wait()

    home.checkpointer._wait_durable = wait
    infos: list[Any] = []
    first = threading.Thread(target=lambda: infos.append(home.checkpoint()))
    first.start()
    entered.wait()
    # These come while one is running, so they need another one: the same for all.
    home.put("b")
    rest = [threading.Thread(target=lambda: infos.append(home.checkpoint())) for _ in range(5)]
    for thread in rest:
        thread.start()
    while len(home.checkpointer._turn._waiters) < 5:  # type: ignore[attr-defined]
        pass
    leave.set()
    for thread in [first, *rest]:
        thread.join()
    assert len(home.waited) == 2
    assert sorted(info.sequence for info in infos) == [2, 3, 3, 3, 3, 3]
    loaded = load(home)
    check_whole(kernel, loaded, home.content)
    home.close()


def test_writes_go_on_during_checkpoints(kernel: Any, tmp_path: Any) -> None:
    home = Home.create(PosixDisk(), kernel, str(tmp_path / "data"))
    contents = {START_LSN: dict(home.content)}
    done = threading.Event()

    def checkpoints() -> int:
        taken = 0
        while not done.is_set():
            home.checkpointer.take()
            loaded = load(home)
            check_whole(kernel, loaded, contents[loaded.redo_lsn])
            taken += 1
        return taken

    with ThreadPoolExecutor(1) as pool:
        checkpointing = pool.submit(checkpoints)
        for n in range(3000):
            lsn = home.state.applied_lsn + 64
            contents[lsn] = {**contents[lsn - 64], n % 20: (lsn, None)}
            with home.state.lock:
                row = home.state.take_row()
                home.state.matrix.array[row] = vector_of(n % 20, lsn)
                home.state.put(n % 20, row, lsn, None)
                home.state.advance(lsn)
            if checkpointing.done():
                break
        done.set()
        assert checkpointing.result() > 0
    home.close()
