"""Recovery of a store: what comes back, what is refused, and what the report says."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal import opening
from mmwal.errors import ConsistencyError, SegmentMissingError, WalCorruptionError, WalError
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, read_slots
from mmwal.testing.simulator import SimulatedDisk
from tests.disk.conftest import environment
from tests.store.fixtures import disk, open_store, root, simulated
from tests.store.stores import (
    DIMENSION,
    SEGMENT,
    close_quietly,
    config,
    contents,
    crashed_copy,
    digests,
    rows,
    vector,
)

__all__ = ["disk", "open_store", "root", "simulated"]

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def mixed_writes(store: Any, count: int, seed: int = 1) -> None:
    """Writes of every kind on some forty ids."""
    rng = random.Random(seed)
    for n in range(count):
        ids = list(store)
        new = [id for id in (*range(20), *(f"id-{i}" for i in range(20))) if id not in store]
        match rng.randrange(7):
            case 0 | 1 if new:
                store.insert(rng.choice(new), vector(n), rng.choice([None, {"n": n}]))
            case 2 if ids:
                store.update(rng.choice(ids), vector(n))
            case 3 if ids:
                store.update(rng.choice(ids), None, {"m": n})
            case 4 if ids:
                store.delete(rng.choice(ids))
            case 5 if len(new) > 3:
                store.insert_many(new[:3], rows(range(n, n + 3)), [None, {"n": n}, {}])
            case _:
                chosen = rng.sample([*new, *ids], 4)
                store.upsert_many(chosen, rows(range(n, n + 4)))


# -- all that returned comes back


def test_250_inserts_with_a_checkpoint_every_100_all_come_back(open_store: Any, root: Path, tmp_path: Path) -> None:
    store = open_store(checkpoint_interval=100)
    for n in range(250):
        store.insert(f"id-{n}", vector(n), {"n": n})
    before = contents(store)
    again = open_store(path=crashed_copy(root, tmp_path / "crashed"))
    assert len(before) == 250 and contents(again) == before


def test_20000_writes_under_fast_rotation_all_come_back(open_store: Any, root: Path, tmp_path: Path) -> None:
    store = open_store(max_wal_size=8 * SEGMENT, checkpoint_interval=3000)
    values = rows(range(20_000))
    for n in range(20_000):
        store.upsert(n % 5000, values[n])
    expected = {n % 5000: float(n) for n in range(15_000, 20_000)}
    assert store.wal.get_metrics().rotations > 20
    crashed = crashed_copy_while_quiet(store, root, tmp_path)
    again = open_store(path=crashed)
    assert {id: row[0] for ids, part in again.batches() for id, row in zip(ids, part, strict=True)} == expected
    assert not again.recovery_stats.clean_shutdown


def crashed_copy_while_quiet(store: Any, root: Path, tmp_path: Path) -> Path:
    """A copy takes a while, and segments must not be recycled meanwhile."""
    store.checkpoint()
    store.wal._log.keeper.worker.stop()
    return crashed_copy(root, tmp_path / "crashed")


def test_large_batches_come_back_whole(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, dimension=64)
    store.insert_many(range(700), rows(range(700), 64), [{"n": n} for n in range(700)])
    store.update_many(range(0, 700, 2), rows(range(0, -700, -2), 64))
    store.delete_many(range(600))
    before = contents(store)
    again = open_store(disk=simulated.kill(), dimension=64)
    assert contents(again) == before
    assert again.recovery_stats.applied_entries == 700 + 350 + 600


@pytest.mark.parametrize("seed", range(4))
def test_mixed_writes_come_back_with_values_metadata_and_lsns(
    open_store: Any, simulated: SimulatedDisk, seed: int
) -> None:
    store = open_store(disk=simulated, checkpoint_interval=40, sync_interval_ms=[0, 100][seed % 2])
    for round in range(4):
        mixed_writes(store, 60, seed * 10 + round)
        before = contents(store)
        simulated = simulated.kill()
        store = open_store(disk=simulated, checkpoint_interval=40, sync_interval_ms=[0, 100][seed % 2])
        assert contents(store) == before


def test_lsns_are_higher_after_recovery_than_any_before(open_store: Any, simulated: SimulatedDisk) -> None:
    highest = 0
    for round in range(5):
        store = open_store(disk=simulated)
        lsn = store.upsert("a", vector(round))
        assert lsn > highest
        highest = store.upsert_many([1, 2], rows([1, 2]))
        if round % 2:
            store.close()
        simulated = simulated.kill()


KILLS = int(os.environ.get("MMWAL_KILLS", "5"))  # 84 make 504 in all, for a run by hand
ZYGOTE = """
import os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import mmwal
from tests.recovery.test_recover import write_until_killed
for line in sys.stdin:  # each line: what one writer is told; its pid goes back
    pid = os.fork()
    if not pid:
        try:
            write_until_killed(line)
        finally:
            os._exit(9)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


def write_until_killed(line: str) -> None:
    """The writer: says before each write what it will do, and after it that it returned."""
    task = json.loads(line)
    out = os.open(task["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    rng = random.Random(task["seed"])
    store = mmwal.open(
        task["root"],
        dimension=DIMENSION,
        segment_size=SEGMENT,
        checkpoint_interval=25,
        sync_interval_ms=task["sync_interval_ms"],
        kernel=task["kernel"],
        max_wal_size=8 * SEGMENT,
    )
    held = set(store)
    kill_at, n = rng.randrange(5, 260), 0
    if rng.random() < 0.5:  # from another thread, at any instant
        import threading

        threading.Timer(rng.random() * 0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        n += 1
        number = task["seed"] * 1000 + n
        kind, ids = next_write(rng, held)
        os.write(out, json.dumps([kind, ids, number]).encode() + b"\n")
        apply(store, kind, ids, number)
        held = held - set(ids) if kind == "delete" else held | set(ids)
        os.write(out, b"returned\n")
        if n == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def next_write(rng: random.Random, held: set[Any]) -> tuple[str, list[Any]]:
    ids = rng.sample([*range(15), *(f"id-{n}" for n in range(15))], rng.choice([1, 1, 1, 5]))
    if all(id in held for id in ids):
        return rng.choice(["delete", "update", "metadata", "upsert"]), ids
    if not any(id in held for id in ids):
        return "insert", ids
    return "upsert", ids


def apply(store: Any, kind: str, ids: list[Any], number: int) -> None:
    if kind == "metadata":
        ids = ids[:1]
        store.update(ids[0], None, {"n": number})
    elif kind == "delete":
        store.delete(ids[0]) if len(ids) == 1 else store.delete_many(ids)
    elif len(ids) == 1:
        getattr(store, kind)(ids[0], vector(number))
    else:
        getattr(store, f"{kind}_many")(ids, rows(range(number, number + len(ids))))


def plain(store: Any) -> dict[Any, Any]:
    return {id: entry[:2] for id, entry in contents(store).items()}


@pytest.fixture
def zygote() -> Iterator[Any]:
    """A process that forks writers: one interpreter start for many kills."""
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def run(task: dict[str, Any]) -> None:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ended\n"

        yield run
        process.stdin.close()


@pytest.mark.parametrize("sync_interval_ms", [0, 100, 5000])
def test_killed_at_a_random_point_all_that_returned_is_there(
    open_store: Any, root: Path, tmp_path: Path, kernel: Any, zygote: Any, sync_interval_ms: int
) -> None:
    """The write in flight may be there, whole, or not: nothing else may differ from a store that was never killed."""
    model = mmwal.VectorStore(DIMENSION)
    for kill in range(KILLS):
        journal = tmp_path / f"journal-{kill}"
        zygote(
            {
                "root": str(root),
                "journal": str(journal),
                "seed": kill + sync_interval_ms * 7,
                "sync_interval_ms": sync_interval_ms,
                "kernel": kernel.NAME,
            }
        )
        lines = journal.read_text().splitlines() if journal.exists() else []
        pending = None
        for line in lines:
            if line == "returned":
                assert pending is not None
                apply(model, *pending)
                pending = None
            else:
                pending = json.loads(line)
        store = open_store()
        found = plain(store)
        if found != plain(model):
            assert pending is not None, "nothing was in flight"
            apply(model, *pending)
            assert found == plain(model)
        store.close()


# -- the report


def test_clean_close_replays_nothing_and_says_so(open_store: Any, disk: Any) -> None:
    store = open_store(disk=disk)
    mixed_writes(store, 50)
    before = contents(store)
    store.close()
    again = open_store(disk=disk)
    stats = again.recovery_stats
    assert (stats.completed, stats.clean_shutdown, stats.applied_entries, stats.torn_tail_bytes) == (True, True, 0, 0)
    assert contents(again) == before
    assert stats.checkpoint_sequence > 0 and stats.recovery_time_ms > 0


def test_kill_is_reported_as_unclean_with_counts_that_add_up(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert_many(range(5), rows(range(5)))
    store.checkpoint()
    store.update(1, vector(9))
    store.delete(2)
    store.insert_many([10, 11], rows([1, 2]))
    stats = open_store(disk=simulated.kill()).recovery_stats
    assert stats.completed and not stats.clean_shutdown
    assert (stats.applied_entries, stats.skipped_entries, stats.rolled_back_entries) == (4, 0, 0)
    assert stats.redo_lsn == stats.first_lsn <= stats.last_lsn
    assert "4 applied" in str(stats) and stats.to_dict()["applied_entries"] == 4


def test_recovery_manager_recovers_what_open_does(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, checkpoint_interval=30)
    mixed_writes(store, 80)
    before = contents(store)
    crashed = simulated.kill()
    for workers in (None, 1, 3):
        manager = mmwal.CrashRecoveryManager(
            mmwal.RecoveryConfig(wal_dir="/store/wal", data_dir="/store/data", workers=workers), disk=crashed.kill()
        )
        assert manager.get_recovery_stats() == mmwal.RecoveryStats()
        recovered = manager.recover()
        assert contents(recovered) == before
        assert manager.get_recovery_stats() == recovered.recovery_stats
        recovered.insert("more", vector(1))
        recovered.close()


def test_recovery_manager_without_anything_gives_an_empty_store(tmp_path: Path) -> None:
    manager = mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir=tmp_path / "wal", data_dir=tmp_path / "data"))
    with manager.recover() as store:
        assert len(store) == 0
    stats = manager.get_recovery_stats()
    assert (stats.completed, stats.total_entries, stats.clean_shutdown) == (True, 0, True)
    with pytest.raises(mmwal.WalConfigError, match="data_dir"):
        mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir=tmp_path / "wal")).recover()


def test_failed_recovery_is_in_its_report(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1))
    crashed = simulated.kill()
    recovery = mmwal.RecoveryConfig(wal_dir="/store/wal", data_dir="/store/data")
    manager = mmwal.CrashRecoveryManager(recovery, disk=crashed)
    fault = crashed.fail("any", 5, errno.EIO, forever=True)
    with pytest.raises((OSError, WalError)):
        manager.recover()
    assert fault.hits
    stats = manager.get_recovery_stats()
    assert not stats.completed and len(stats.errors) == 1
    crashed.faults.clear()
    crashed = crashed.kill()
    manager = mmwal.CrashRecoveryManager(recovery, disk=crashed)
    assert manager.recover().ids() == ["a"]
    assert manager.get_recovery_stats().completed


# -- again, and again


def test_recovering_twice_gives_the_same_state(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, checkpoint_interval=30)
    mixed_writes(store, 100)
    before = contents(store)
    for _ in range(4):
        simulated = simulated.kill()
        assert contents(open_store(disk=simulated)) == before


def test_recovery_that_is_killed_at_any_step_and_runs_again_gives_the_same_state(
    open_store: Any, simulated: SimulatedDisk
) -> None:
    store = open_store(disk=simulated, checkpoint_interval=None)
    mixed_writes(store, 40, 1)
    store.checkpoint()
    mixed_writes(store, 40, 2)
    store.checkpoint()
    mixed_writes(store, 40, 3)
    before = contents(store)
    crashes: list[SimulatedDisk] = []
    recovering = simulated.kill()
    recovering.on_step = lambda disk, step, label: crashes.append(disk.kill())
    assert contents(open_store(disk=recovering)) == before
    recovering.on_step = None
    assert len(crashes) > 10
    for crash in crashes:
        assert contents(open_store(disk=crash)) == before


# -- a log that a store did not write


def open_log(disk: Any, root: Path, kernel: Any, **fields: Any) -> mmwal.WalManager:
    place = "/store" if isinstance(disk, SimulatedDisk) else root
    return mmwal.WalManager(config(place, kernel, **fields), disk=disk)


@pytest.mark.parametrize("dimension", [DIMENSION, ...])
@pytest.mark.parametrize("closed", [True, False])
def test_log_alone_becomes_a_store_where_the_last_writer_of_each_id_wins(
    open_store: Any, disk: Any, root: Path, kernel: Any, dimension: Any, closed: bool
) -> None:
    if not closed and not isinstance(disk, SimulatedDisk):
        pytest.skip("a kill is for the simulated disk")
    wal = open_log(disk, root, kernel, dimension=dimension)
    wal.log_delete("never")  # skipped
    wal.log_update("never", vector(1))  # skipped
    wal.log_insert("a", vector(1), {"n": 1})
    a = wal.log_update("a", vector(2))  # metadata stays
    wal.log_insert("b", vector(3), {"n": 3})
    b = wal.log_update("b", None, {"n": 4})  # the vector stays
    wal.log_insert("c", vector(5))
    wal.log_delete("c")
    wal.log_delete("c")  # skipped
    wal.log_update("c", None, {"n": 6})  # skipped
    wal.log_insert("d", vector(6), {"n": 6})
    d = wal.log_insert("d", vector(7))  # the later one wins, without metadata
    batch = wal.log_batch([1, 2, 3], rows([1, 2, 3]), [{"n": 1}, None, {}])
    upserted = wal.log_batch([1, "new"], rows([10, 11]), operation="upsert")
    wal.log_batch(["x", 3, "y"], None, operation="delete")  # two skipped
    large = wal.log_batch([f"l-{n}" for n in range(2000)], rows(range(2000)))
    wal.log_delete("l-0")
    if closed:
        wal.close()
    else:
        disk = disk.kill()
    store = open_store(disk=disk, dimension=dimension)
    found = contents(store)
    stats = store.recovery_stats
    rest = {id: entry for id, entry in found.items() if not str(id).startswith("l-")}
    assert rest == {
        "a": (vector(2).tobytes(), {"n": 1}, a),
        "b": (vector(3).tobytes(), {"n": 4}, b),
        "d": (vector(7).tobytes(), None, d),
        1: (vector(10).tobytes(), {"n": 1}, upserted),
        2: (vector(2).tobytes(), None, batch),
        "new": (vector(11).tobytes(), None, upserted),
    }
    lsns = {entry[2] for id, entry in found.items() if id not in rest}
    assert (len(found) - len(rest), lsns) == (1999, {large})
    assert (stats.skipped_entries, stats.rolled_back_entries) == (6, 0)
    assert stats.applied_entries == 8 + 3 + 2 + 1 + 2000 + 1
    store.insert("never", vector(1))


def test_batch_whose_end_is_missing_leaves_no_trace(open_store: Any, simulated: SimulatedDisk, kernel: Any) -> None:
    """A power cut in the middle of a transaction: whatever survives of it counts for nothing."""
    wal = open_log(simulated, Path("/"), kernel, dimension=64)
    wal.log_insert("a", vector(1, 64))
    wal.sync()
    log = wal._log
    txn = log.new_transaction()
    payload = rows(range(100), 64).reshape(-1)
    from mmwal.format.frame import Kind, pack_ids

    for part in range(3):
        log.append_frame(Kind.INSERT, 1, 100, txn, payload, pack_ids(list(range(part * 100, part * 100 + 100))))
    wal.log_insert("b", vector(2, 64))
    store = open_store(disk=simulated.kill(), dimension=64)
    assert store.ids() == ["a", "b"]
    assert store.recovery_stats.rolled_back_entries == 300
    store.insert_many(range(300), rows(range(300), 64))
    store.checkpoint()
    store.checkpoint()


# -- damage


@pytest.fixture
def damaged(open_store: Any, root: Path, tmp_path: Path) -> tuple[Path, dict[Any, Any], Any]:
    """A killed store with two checkpoints and writes behind them; what it held; its open handle's redo points."""
    store = open_store(checkpoint_interval=None, max_wal_size=64 * SEGMENT)
    mixed_writes(store, 60, 1)
    store.checkpoint()
    mixed_writes(store, 60, 2)
    store.checkpoint()
    mixed_writes(store, 60, 3)
    store.sync()
    store.upsert("last", vector(1))  # its frame records what was durable
    before = contents(store)
    copy = crashed_copy(root, tmp_path / "crashed")
    redo_lsn = store._checkpointer.redo_lsn
    close_quietly(store)
    return copy, before, redo_lsn


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def newest_slot(root: Path) -> dict[str, Any]:
    return read_slots(DATA_CONTROL, (root / "data" / "control").read_bytes()[:CONTROL_BYTES])[0][1]


def assert_refused(open_store: Any, root: Path, error: type[WalError], *, path: Path | None = None) -> WalError:
    """Opening raises the error and changes no file; again, too."""
    before = digests(root)
    for _ in range(2):
        with pytest.raises(error) as refused:
            open_store(path=root)
        assert digests(root) == before
    if path is not None:
        assert refused.value.path == str(path)  # type: ignore[attr-defined]
    return refused.value


def test_damaged_newest_image_makes_the_older_checkpoint_count(damaged: Any, open_store: Any) -> None:
    root, before, _ = damaged
    slot = newest_slot(root)
    image = root / "data" / f"image-{slot['image_number']:016x}"
    flip(image, slot["image_bytes"] - 1)
    store = open_store(path=root)
    assert contents(store) == before
    assert any("is used instead" in note for note in store.recovery_stats.notes)
    store.insert("more", vector(1))
    store.close()
    again = open_store(path=root)
    assert set(contents(again)) == {*before, "more"} and again.recovery_stats.notes == ()


def test_damaged_newest_slot_makes_the_older_checkpoint_count(damaged: Any, open_store: Any) -> None:
    root, before, _ = damaged
    control = root / "data" / "control"
    slots = read_slots(DATA_CONTROL, control.read_bytes()[:CONTROL_BYTES])
    from mmwal.format.control import SLOT_OFFSETS

    flip(control, SLOT_OFFSETS[slots[0][0]] + 40)
    assert contents(open_store(path=root)) == before


def test_both_images_damaged_is_an_error(damaged: Any, open_store: Any) -> None:
    root, _, _ = damaged
    for image in (root / "data").glob("image-*"):
        flip(image, 100)
    error = assert_refused(open_store, root, ConsistencyError)
    assert "no checkpoint is whole" in str(error)


def test_missing_matrix_is_an_error(damaged: Any, open_store: Any) -> None:
    root, _, _ = damaged
    (root / "data" / "matrix").unlink()
    assert_refused(open_store, root, ConsistencyError, path=root / "data" / "matrix")


def test_shortened_matrix_is_an_error(damaged: Any, open_store: Any) -> None:
    root, _, _ = damaged
    os.truncate(root / "data" / "matrix", 64)
    assert_refused(open_store, root, ConsistencyError)


def test_missing_control_of_the_log_is_an_error(damaged: Any, open_store: Any) -> None:
    root, _, _ = damaged
    (root / "wal" / "control").unlink()
    assert_refused(open_store, root, ConsistencyError)


def test_missing_log_with_data_is_an_error(damaged: Any, open_store: Any) -> None:
    root, _, _ = damaged
    shutil.rmtree(root / "wal")
    (root / "wal").mkdir(mode=0o700)
    assert_refused(open_store, root, ConsistencyError)


def test_missing_segments_are_an_error(damaged: Any, open_store: Any) -> None:
    root, _, redo_lsn = damaged
    (root / "wal" / f"segment-{redo_lsn // SEGMENT:016x}.wal").unlink()
    assert_refused(open_store, root, SegmentMissingError)


def test_missing_data_with_the_whole_log_is_a_full_replay(damaged: Any, open_store: Any) -> None:
    root, before, _ = damaged
    shutil.rmtree(root / "data")
    store = open_store(path=root, dimension=...)
    assert contents(store) == before
    assert store.recovery_stats.applied_entries > len(before)


def test_missing_data_with_a_trimmed_log_is_an_error(open_store: Any, root: Path) -> None:
    store = open_store(max_wal_size=4 * SEGMENT)
    for n in range(3000):
        store.upsert(n % 50, vector(n))
    store.checkpoint()
    store.checkpoint()
    store.close()
    shutil.rmtree(root / "data")
    (root / "data").mkdir(mode=0o700)
    error = assert_refused(open_store, root, ConsistencyError)
    assert "the log begins at LSN" in str(error)


@pytest.mark.parametrize("place", [0, 9, 40, 70])
def test_flipped_bit_in_a_durable_entry_is_corruption_and_changes_nothing(
    damaged: Any, open_store: Any, place: int
) -> None:
    """In the commit word, the checksum, the header and the payload of the first entry behind the redo point."""
    root, before, redo_lsn = damaged
    segment = root / "wal" / f"segment-{redo_lsn // SEGMENT:016x}.wal"
    flip(segment, redo_lsn % SEGMENT + place)
    error: Any = assert_refused(open_store, root, WalCorruptionError, path=segment)
    assert error.offset == redo_lsn % SEGMENT and error.lsn == redo_lsn
    flip(segment, redo_lsn % SEGMENT + place)
    assert contents(open_store(path=root)) == before


def test_flipped_bit_below_the_redo_point_of_a_log_with_both_checkpoints_is_not_needed(
    damaged: Any, open_store: Any
) -> None:
    root, before, _ = damaged
    flip(root / "wal" / f"segment-{0:016x}.wal", 8192 + 70)
    try:
        found = contents(open_store(path=root))
    except WalCorruptionError:
        pass  # the unsealed run is scanned whole: telling is as good
    else:
        assert found == before


def test_torn_tail_is_cut_and_reported(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert("a", vector(1))
    store.sync()
    store.insert("b", vector(2), {"m": "x" * 3000})
    store.insert("c", vector(3))
    legal = [["a"], ["a", "b"], ["a", "b", "c"]]
    torn = 0
    for choice in simulated.images(random.Random(3), 40):
        found = open_store(disk=simulated.image(choice))
        assert found.ids() in legal
        torn += found.recovery_stats.torn_tail_bytes > 0
        assert not found.recovery_stats.clean_shutdown
        close_quietly(found)
    assert torn


def test_sync_that_fails_at_the_end_of_recovery_ends_it_and_the_next_one_succeeds(
    open_store: Any, simulated: SimulatedDisk
) -> None:
    store = open_store(disk=simulated)
    store.insert_many(range(100), rows(range(100)))
    store.sync()
    before = contents(store)
    crashed = simulated.kill()
    for nth in range(1, 30):
        disk = crashed.kill()
        fault = disk.fail("sync", nth, errno.EIO)
        with suppress(OSError, WalError):
            close_quietly(open_store(disk=disk))
        if not fault.hits:
            break
        disk.faults.clear()
        assert contents(open_store(disk=disk.kill(evicted=True))) == before
    assert nth > 3


def test_vectors_of_two_dimensions_in_one_log_are_an_inconsistency(
    open_store: Any, simulated: SimulatedDisk, kernel: Any
) -> None:
    with open_log(simulated, Path("/"), kernel, dimension=...) as wal:
        wal.log_insert("a", vector(1, 4))
        wal.log_insert("b", vector(1, 5))
    with pytest.raises(ConsistencyError, match="4 values"):
        open_store(disk=simulated, dimension=...)


def test_batches_read_back_after_recovery_are_numpy_rows(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    store.insert_many(range(10), rows(range(10)))
    again = open_store(disk=simulated.kill())
    ids, found = next(again.batches())
    assert ids == list(range(10)) and np.array_equal(found, rows(range(10)))


def test_recovery_says_in_the_log_that_it_is_complete(
    tmp_path: Path, kernel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmwal")
    fields = {"wal_dir": tmp_path / "wal", "data_dir": tmp_path / "data", "kernel": kernel.NAME}
    mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(**fields)).recover().close()
    (said,) = [record.getMessage() for record in caplog.records if "recovery complete" in record.getMessage()]
    assert "0 applied" in said
    assert " ms" in said


def test_budget_of_a_recovery_follows_the_segments_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no field for it, and the default is too little for segments of more than 500 MB."""
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", data_dir=tmp_path / "data", dimension=2, segment_size=64 << 10)
    mmwal.open(config=config).close()
    seen: list[int] = []
    manager = mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir=config.wal_dir, data_dir=config.data_dir))
    assert manager._least_budget() == 2 * (64 << 10)
    monkeypatch.setattr(manager, "_least_budget", lambda: 3_000_000_000)
    opened = opening.open_store

    def see(config: mmwal.WalConfig, *args: Any, **how: Any) -> Any:
        seen.append(config.max_wal_size)
        return opened(config, *args, **how)

    monkeypatch.setattr(opening, "open_store", see)
    manager.recover().close()
    assert seen == [3_000_000_000]
