"""Steps of the protocol that random crashes seldom reach, a directed test for each; `tools/mutants.py` breaks them.

Each test was seen to fail on the breakage that names it.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal.kernel.reference
from mmwal import kernel as kernels
from mmwal.checkpoint.image import image_numbers, write_section
from mmwal.checkpoint.load import create_data, load_checkpoint
from mmwal.disk.posix import PosixDisk
from mmwal.errors import (
    CheckpointFailedError,
    ConsistencyError,
    ForeignDirectoryError,
    HeaderCorruptionError,
    SyncFailedError,
    WalConfigError,
    WalCorruptionError,
)
from mmwal.format.control import LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import COMMIT, Kind, commit_word, pack_ids, pack_metadata
from mmwal.format.image import BASE, BlockColumn, NewColumns, Place, encode_section
from mmwal.format.metadata import encode_metadata
from mmwal.format.segment import DATA_OFFSET, LINK, LINK_OFFSET, SECTOR_BYTES, SEGMENT_BYTES_MIN, data_start
from mmwal.kernel import interface as words
from mmwal.log.control import create_control, open_control
from mmwal.log.gate import PythonGate
from mmwal.log.segment import Predecessor, Segment, inspect_segment, segment_number
from mmwal.opening import open_store
from mmwal.state.matrix import Matrix
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import new_identity
from tests.checkpoint.homes import IDENTITY, START_LSN, Home, check_whole
from tests.kernel.memory_log import MemoryLog, salt_of
from tests.log.fixtures import OpenWal, open_wal, wal_dir
from tests.log.logs import (
    DIMENSION,
    NOTHING_UNSYNCED,
    ROOM,
    SEGMENT,
    config,
    fill,
    frame_kinds,
    ids,
    segment_path,
    vector,
)
from tests.store import stores

__all__ = ["open_wal", "wal_dir"]
pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

FRAME = 192  # bytes of one entry of `fill`
PER_SEGMENT = ROOM // FRAME
assert PER_SEGMENT * FRAME == ROOM  # so that entries fill a segment to the brim


# -- append, publish


def test_append_returns_only_once_its_neighbour_is_published(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    log = wal._log
    fill(wal, 3)
    disk.run_workers()
    hole = log.cursor.reserved
    log._words[words.RESERVED // 8] = hole + 64  # a neighbour reserves, and takes its time
    segment = log._attached[0]
    finished: list[int] = []

    def neighbour() -> float | None:
        if not finished and log.cursor.reserved > hole + 64:
            finished.append(hole)
            segment.view[hole : hole + 8] = commit_word(segment.salt, hole, 64).to_bytes(8, "little")
        return 0.0001

    worker = disk.start_worker("neighbour", neighbour)
    lsn = wal.log_insert("after", vector(1))
    worker.stop()
    published = log.cursor.published
    neighbour()  # or closing would wait for it
    assert published >= lsn


def test_commit_word_of_the_twin_is_stored_last() -> None:
    log = MemoryLog(mmwal.kernel.reference, fill=0x55)
    start = DATA_OFFSET
    seen: list[bool] = []

    def look(frame: Any, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != mmwal.kernel.reference.__file__:
            return None
        word = int(log.memory[0][start : start + 8].view("<u8")[0])
        length = (word & 0x3FF_FFFF) * 64
        if word == commit_word(salt_of(0), start, length):
            found: list[int] = []
            sys.settrace(None)
            found.append(log.scan()[0])
            sys.settrace(look)
            seen.append(found[0] == start + length)
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        log.append("a", np.ones(4, np.float32), b"{}")
    finally:
        sys.settrace(before)
    assert seen, "the frame was never looked at once it was published"
    assert all(seen), "a published frame was not whole"


def test_compiled_sync_covers_what_was_published_when_it_began(tmp_path: Path) -> None:
    """Another thread publishes all the while: `durable` moves by no more than what was synced."""
    size, disk = 16 << 20, PosixDisk()
    block = bytearray(words.BLOCK_BYTES)
    gate = disk.compiled_gate(block, size)
    if gate is None:
        pytest.skip("mmwal.disk._sync is not built")
    file = disk.create(f"{tmp_path}/segment")
    file.allocate(size)
    file.sync()
    mapping = file.map(size, writable=True)
    u64 = memoryview(block).cast("Q")
    u64[words.RING // 8 + 1] = ctypes.addressof(ctypes.c_char.from_buffer(mapping.view))
    u64[words.RING // 8] = 1
    u64[words.PUBLISHED // 8] = u64[words.DURABLE // 8] = DATA_OFFSET
    ends = range(DATA_OFFSET + 8192, size - 8192, 8192)
    done = threading.Event()

    def publish() -> None:
        for end in ends:
            mapping.view[end - 64 : end] = bytes(64)
            u64[words.PUBLISHED // 8] = end
            if done.wait(0):
                return

    u64[words.PUBLISHED // 8] = ends[0]
    publisher = threading.Thread(target=publish)
    publisher.start()
    syncs = 0
    while publisher.is_alive() or u64[words.DURABLE // 8] < ends[-1]:
        durable, synced = u64[words.DURABLE // 8], u64[words.GATE_BYTES // 8]
        gate.sync(min(durable + 1, ends[-1]))
        moved = u64[words.DURABLE // 8] - durable
        assert moved <= u64[words.GATE_BYTES // 8] - synced, "durable moved over what no sync covered"
        syncs += 1
    publisher.join()
    assert syncs > 1
    file.close()


def test_sync_that_failed_is_not_tried_again_by_the_twin(open_wal: OpenWal) -> None:
    """The next one may find the pages clean in the cache and absent from the disk."""
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    disk.fail("sync", 1)
    with pytest.raises(SyncFailedError):
        wal.log_insert("a", vector(1), durable=True)
    with pytest.raises(SyncFailedError):
        wal.sync()


def test_sync_of_the_twin_covers_what_was_published_when_it_began(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    gate = PythonGate(disk, wal._log._block, SEGMENT, lambda number: wal._log._attached[number].mapping)
    first = fill(wal, 1)[0]
    late: list[int] = []

    def publish(_disk: SimulatedDisk, _step: int, label: str) -> None:
        if label.endswith("sync") and not late:
            late.extend(fill(wal, 1, 1))

    disk.on_step = publish
    assert gate.sync(first)
    disk.on_step = None
    assert late
    assert wal._log.cursor.durable == first


def test_idle_mark_is_durable(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, sync_interval_ms=0)
    fill(wal, 1)
    for _ in range(4):
        disk.advance(0.06)
        disk.run_workers()
    assert Kind.IDLE in frame_kinds(wal)
    assert Kind.IDLE in frame_kinds(open_wal(disk=disk.image(NOTHING_UNSYNCED)))


# -- recovery of the log


def cut_behind_ten(open_wal: OpenWal) -> SimulatedDisk:
    """Returns what a power cut left of three full segments, none of it synced: all but the eleventh entry."""
    disk = SimulatedDisk()
    wal = open_wal(disk=disk, runway_segments=4)
    while disk.run_workers():
        pass
    lsns = fill(wal, 3 * PER_SEGMENT)  # the segments are ready, so that nobody waits and nothing is synced
    assert wal.durable_lsn < lsns[9]
    disk = disk.kill()
    file = disk.open(f"/wal/{segment_path(Path(), 0)}", writable=True)
    file.write(lsns[9], bytes(FRAME))
    file.sync()
    return disk


def test_entries_that_were_cut_off_do_not_come_back_behind_a_full_segment(open_wal: OpenWal) -> None:
    """Behind a cut lie whole segments that nothing proves. The log goes on with their numbers, and ends at a brim."""
    disk = cut_behind_ten(open_wal)
    wal = open_wal(disk=disk)
    kept = [f"id-{i}" for i in range(10)]
    assert ids(wal) == kept
    fresh = [f"id-{i}" for i in range(5000, 5000 + PER_SEGMENT)]
    last = fill(wal, PER_SEGMENT, 5000)[-1]
    assert last % SEGMENT == SEGMENT - 512  # to the brim, before the next segment is begun
    assert ids(open_wal(disk=disk.kill())) == kept + fresh
    wal.sync()
    assert ids(open_wal(disk=disk.image(NOTHING_UNSYNCED))) == kept + fresh


def test_what_was_cut_off_cannot_stop_a_later_opening(open_wal: OpenWal) -> None:
    disk = cut_behind_ten(open_wal)
    open_wal(disk=disk)
    disk = disk.kill()
    for name in disk.list_directory("/wal"):
        if (segment_number(name) or 0) > 1:  # behind the one in which the log goes on
            file = disk.open(f"/wal/{name}", writable=True)
            file.write(0, b"rot" * 3000)
            file.sync()
    assert ids(open_wal(disk=disk)) == [f"id-{i}" for i in range(10)]


def test_recovery_recycles_no_segment_under_a_reader(open_wal: OpenWal) -> None:
    disk = cut_behind_ten(open_wal)
    reader = disk.lock_shared("/wal/control")
    views = [
        disk.open(f"/wal/{segment_path(Path(), number)}", writable=False).map(SEGMENT, writable=False).view
        for number in (1, 2)
    ]
    before = [bytes(view) for view in views]
    wal = open_wal(disk=disk)
    fill(wal, 3 * PER_SEGMENT, 5000)
    assert [bytes(view) for view in views] == before
    reader.release()


def link_after_recovery(open_wal: OpenWal, disk: SimulatedDisk, end: Callable[[Segment], None]) -> Any:
    """Lets a writer store the link of segment 1, and ``end`` say what becomes of its sync; kills it, recovers, and
    returns the link that a power cut then leaves."""

    def link(self: Segment, previous: Predecessor) -> None:
        content = LINK.pack(
            number=self.number,
            salt=self.salt,
            previous_number=previous.number,
            previous_end_lsn=previous.end_lsn,
            previous_last_crc=previous.last_crc,
        )
        self.view[LINK_OFFSET : LINK_OFFSET + len(content)] = content
        self.linked = True
        linked.append(self.number)
        end(self)

    linked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Segment, "link", link)
        wal = open_wal(disk=disk)
        fill(wal, PER_SEGMENT + 5)
        wal.sync()
        wal._log.wake_keeper()
        disk.run_workers()
    assert linked == [1]
    disk = disk.kill()
    identity = open_wal(disk=disk)._log.identity
    info = inspect_segment(disk.image(NOTHING_UNSYNCED), "/wal", identity, 1)
    assert info is not None
    return info.link


def test_link_of_a_killed_writer_becomes_durable_with_the_recovery(open_wal: OpenWal) -> None:
    link = link_after_recovery(open_wal, SimulatedDisk(), lambda segment: None)
    assert link is not None
    assert link["previous_number"] == 0


def test_link_whose_sync_failed_becomes_durable_with_the_recovery(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()

    def fail(segment: Segment) -> None:
        disk.fail("sync")
        segment.mapping.sync(LINK_OFFSET, SECTOR_BYTES)

    link = link_after_recovery(open_wal, disk, fail)
    assert link is not None
    assert link["previous_number"] == 0


def test_spare_of_another_size_is_removed(open_wal: OpenWal) -> None:
    disk = SimulatedDisk()
    fill(open_wal(disk=disk), 3)
    disk = disk.kill()
    names = [f"spare-{number:016x}.wal" for number in range(2)]
    for name, size in zip(names, (0, SEGMENT - 4096), strict=True):
        disk.create(f"/wal/{name}").allocate(size)
    open_wal(disk=disk)
    assert not set(names) & set(disk.list_directory("/wal"))


def test_name_below_the_oldest_lsn_is_removed_whatever_it_holds(open_wal: OpenWal) -> None:
    """As after a crash that undid the recycling of a file: it holds another segment by now, or rubbish."""
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    fill(wal, 4 * PER_SEGMENT)
    wal.release(wal.last_lsn)
    while disk.run_workers():
        pass
    wal.sync()
    assert not disk.exists(f"/wal/{segment_path(Path(), 0)}")
    for number, content in ((0, bytes(SEGMENT)), (1, b"x" * SEGMENT)):
        file = disk.create(f"/wal/{segment_path(Path(), number)}")
        file.write(0, content)
        file.sync()
    newest = max(name for name in disk.list_directory("/wal") if name.startswith("segment-"))
    copy = (
        disk.create(f"/wal/{segment_path(Path(), 2)}") if not disk.exists(f"/wal/{segment_path(Path(), 2)}") else None
    )
    if copy is not None:
        copy.write(0, disk.open(f"/wal/{newest}", writable=False).read(0, SEGMENT))
        copy.sync()
    disk = disk.kill()
    again = open_wal(disk=disk)
    assert ids(again) == []
    assert not disk.exists(f"/wal/{segment_path(Path(), 0)}")
    assert not disk.exists(f"/wal/{segment_path(Path(), 1)}")


def test_directory_under_the_name_of_a_file_is_refused() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/wal/control")
    with pytest.raises(ForeignDirectoryError):
        open_control(disk, "/wal")


# -- opening a store


def test_new_store_is_whole_or_not_there_at_every_step(kernel: Any) -> None:
    """Power fails at every step of creation and of the first writes; each time what returned is there."""
    disk = SimulatedDisk(seed=3)
    acknowledged: list[str] = []
    rng, images = random.Random(5), 0

    def cut(on: SimulatedDisk, _step: int, _label: str) -> None:
        nonlocal images
        for choice in on.images(rng, 2):
            images += 1
            found = open_store(stores.config("/store", kernel, sync_interval_ms=0), on.image(choice))
            assert set(acknowledged) <= set(found.ids()) <= {"a", "b"}

    disk.on_step = cut
    store = open_store(stores.config("/store", kernel, sync_interval_ms=0), disk)
    for id in ("a", "b"):
        store.insert(id, stores.vector(1))
        acknowledged.append(id)
    store.checkpoint()
    disk.on_step = None
    assert images > 50


def test_first_checkpoint_begins_where_the_log_is_durable(kernel: Any) -> None:
    """The first vector tells the dimension; what lies before it in the log, a mark, may not be durable yet."""
    disk = SimulatedDisk()
    fields: dict[str, Any] = {"dimension": ...}
    store = open_store(stores.config("/store", kernel, **fields), disk)
    log = store._log
    log.append_frame(Kind.IDLE, 0, 0, 0)
    assert log.cursor.durable < log.cursor.published
    looked = 0

    def cut(on: SimulatedDisk, _step: int, _label: str) -> None:
        nonlocal looked
        looked += 1
        assert open_store(stores.config("/store", kernel, **fields), on.image(NOTHING_UNSYNCED)).ids() == []

    disk.on_step = cut
    store.insert("a", stores.vector(1))
    disk.on_step = None
    assert looked > 5


class Killed(Exception):
    """Ends a process of the simulation at a step."""


def test_name_that_a_killed_process_did_not_sync_is_synced_by_the_next(kernel: Any) -> None:
    """Killed between the rename of the data's control file and the sync of its directory; then rows, then a power cut
    that takes the name and leaves the matrix with its rows."""
    disk = SimulatedDisk(seed=2)
    chosen = stores.config("/store", kernel, sync_interval_ms=0)

    def kill(on: SimulatedDisk, _step: int, label: str) -> None:
        if label == "data sync_directory" and on.exists("/store/data/control"):
            raise Killed

    disk.on_step = kill
    with pytest.raises(Killed):
        open_store(chosen, disk)
    disk = disk.kill()
    store = open_store(chosen, disk)
    store.insert("a", stores.vector(1))
    rng = random.Random(4)
    for choice in disk.images(rng, 60, names="weak"):
        assert open_store(chosen, disk.image(choice)).ids() == ["a"], choice
    store.close()


def test_log_is_kept_for_the_older_checkpoint_when_a_store_is_opened(kernel: Any) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 20)
    chosen = stores.config("/store", kernel, dimension=128, checkpoint_interval=None)
    store = open_store(chosen, disk)
    redo_lsns = []
    for start in (0, 300):
        for id in range(start, start + 300):
            store.insert(id, stores.vector(id, 128))
        redo_lsns.append(store.checkpoint().redo_lsn)
    disk = disk.kill()
    store = open_store(chosen, disk)
    while disk.run_workers():
        pass
    assert redo_lsns[1] - redo_lsns[0] > 2 * SEGMENT
    assert store.wal is not None and store.wal.get_metrics().oldest_lsn <= redo_lsns[0]


def test_refused_opening_frees_the_lock(kernel: Any) -> None:
    disk = SimulatedDisk()
    store = open_store(stores.config("/store", kernel), disk)
    store.insert("a", stores.vector(1))
    store.close()
    with pytest.raises(WalConfigError):
        open_store(stores.config("/store", kernel, dimension=stores.DIMENSION + 1), disk)
    assert open_store(stores.config("/store", kernel), disk).ids() == ["a"]


def test_entry_without_a_vector_keeps_that_of_the_checkpoint(kernel: Any) -> None:
    """A store logs the full value; a log that was written by another may not."""
    disk = SimulatedDisk()
    chosen = stores.config("/store", kernel)
    store = open_store(chosen, disk)
    store.insert("a", stores.vector(1), {"n": 1})
    store.insert("b", stores.vector(2))
    store.checkpoint()
    content = encode_metadata({"n": 2})
    store._log.append_frame(Kind.UPDATE, 0, 1, 0, None, pack_ids(["a"]), pack_metadata([content]))
    again = open_store(chosen, disk.kill())
    record = again.get("a")
    assert record is not None
    assert (record.vector.tolist(), record.metadata) == (stores.vector(1).tolist(), {"n": 2})


def test_log_and_data_of_two_metrics_are_refused(kernel: Any) -> None:
    disk = SimulatedDisk()
    store = open_store(stores.config("/store", kernel), disk)
    store.insert("a", stores.vector(1))
    store.close()
    file = disk.open("/store/wal/control", writable=True)
    for offset in SLOT_OFFSETS:
        fields = LOG_CONTROL.unpack(file.read(offset, LOG_CONTROL.size))
        if fields is not None:
            file.write(offset, LOG_CONTROL.pack(**{**fields, "metric": fields["metric"] % 3 + 1}))
    with pytest.raises(ConsistencyError):
        open_store(stores.config("/store", kernel), disk)


# -- transactions


def test_commit_of_members_that_are_not_there_is_refused(kernel: Any) -> None:
    disk = SimulatedDisk()
    wal = mmwal.WalManager(config("/store/wal", kernel), disk=disk)
    log = wal._log
    txn = log.new_transaction()
    lsn = log.append_frame(Kind.INSERT, 1, 1, txn, vector(1), pack_ids(["a"]))
    content = COMMIT.pack(first_lsn=lsn - FRAME, rows=1, members_crc=1, reserved=0)
    log.append_frame(Kind.COMMIT, 0, 1, txn, content)
    fields = {"dimension": DIMENSION, "segment_size": SEGMENT}
    with pytest.raises(ConsistencyError, match="commits entries that the log does not hold"):
        open_store(stores.config("/store", kernel, **fields), disk.kill())


def test_replay_of_half_a_transaction_is_refused(open_wal: OpenWal) -> None:
    wal = open_wal(disk=SimulatedDisk())
    log = wal._log
    txn = log.new_transaction()
    lsn = log.append_frame(Kind.INSERT, 1, 1, txn, vector(1), pack_ids(["a"]))
    content = COMMIT.pack(first_lsn=lsn - FRAME, rows=2, members_crc=0, reserved=0)
    log.append_frame(Kind.COMMIT, 0, 2, txn, content)
    with pytest.raises(WalCorruptionError, match="has 1 of its 2 rows"):
        list(wal.replay())


# -- checkpoints


def test_checkpoint_does_not_run_ahead_of_what_is_applied(kernel: Any) -> None:
    disk = SimulatedDisk()
    store = open_store(stores.config("/store", kernel, sync_interval_ms=0), disk)
    store.insert("a", stores.vector(1))
    while disk.run_workers():
        pass
    state = store._state
    assert state is not None
    applied: list[tuple[int, int]] = []

    def look(_disk: SimulatedDisk, _step: int, label: str) -> None:
        if store._pending:
            before = state.applied_lsn
            store.quiesce()
            applied.append((before, state.applied_lsn))

    disk.on_step = look
    store.insert("b", stores.vector(2))
    disk.on_step = None
    assert applied, "nothing was ever pending"
    assert all(before == after for before, after in applied)
    store.close()


def test_slot_that_stood_in_memory_only_is_written_before_anything_is_let_go(kernel: Any) -> None:
    """A slot whose sync failed, a restart, the next checkpoint, and a power cut in the middle of writing its slot.

    The next checkpoint overwrites the older slot. Unless the newer one was stored again, what the disk has in its place
    is the slot before both: its log is gone.
    """
    disk = SimulatedDisk(reserve_bytes_max=1 << 20)
    fields: dict[str, Any] = {
        "dimension": 128,
        "segment_size": SEGMENT,
        "sync_interval_ms": 0,
        "checkpoint_interval": None,
    }
    held: dict[int, bytes] = {}

    def opened(on: SimulatedDisk) -> mmwal.VectorStore:
        return open_store(stores.config("/store", kernel, **fields), on)

    def write(store: mmwal.VectorStore, count: int) -> None:
        for id in range(len(held), len(held) + count):
            store.insert(id, stores.vector(id, 128))
            held[id] = stores.vector(id, 128).tobytes()
        while disk.run_workers():
            pass

    store = opened(disk)
    write(store, 5)
    store.checkpoint()  # the slot before both
    write(store, 400)
    older_lsn = store.checkpoint().redo_lsn  # the older slot
    write(store, 5)
    fault = disk.fail("control sync")
    with pytest.raises(CheckpointFailedError):
        store.checkpoint()  # the newer slot, in memory only
    assert fault.hits
    disk = disk.kill()
    store = opened(disk)
    assert store.recovery_stats.redo_lsn > older_lsn  # of the newer one
    while disk.run_workers():  # segments below the older slot's redo point go
        pass
    write(store, 1)
    rng, images = random.Random(1), 0

    def cut(on: SimulatedDisk, _step: int, label: str) -> None:
        nonlocal images
        if label != "control sync":
            return
        for choice in on.images(rng, 24):
            images += 1
            found = opened(on.image(choice))
            assert {id: record.vector.tobytes() for id in found if (record := found.get(id))} == held, choice

    disk.on_step = cut
    store.checkpoint()
    disk.on_step = None
    assert images > 10


def test_image_of_the_older_checkpoint_stays(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer one is a new base, in a file of its own; then its slot is damaged."""
    monkeypatch.setattr("mmwal.checkpoint.checkpoint.DELTAS_BYTES_LEAST", 0)
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    home = Home.create(disk, kernel)
    home.put("a", "b")
    home.checkpoint()
    older = dict(home.content)
    home.put("c")
    home.checkpoint()
    assert len(image_numbers(disk, "/data")) == 2
    newest = home.loaded.control.current.index
    home.close()
    file = disk.open("/data/control", writable=True)
    file.write(SLOT_OFFSETS[newest] + 20, b"damage")
    loaded = load_checkpoint(disk, "/data")
    assert loaded is not None
    check_whole(kernel, loaded, older)


class Still(PosixDisk):
    """A disk without workers: what they do is not done by the one who opens."""

    def start_worker(self, name: str, step: Any) -> Any:
        return _Idle()


class _Idle:
    def wake(self) -> None: ...
    def stop(self) -> None: ...


def test_holes_of_a_copied_matrix_are_filled(tmp_path: Path) -> None:
    disk, path = PosixDisk(), f"{tmp_path}/matrix"
    matrix = Matrix.create(disk, path, 256, 1)
    matrix.ensure(1000)
    matrix.close()
    size = os.stat(path).st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    assert os.stat(path).st_blocks == 0
    Matrix.open(Still(), path, 256, 1, 1000).close()
    assert os.stat(path).st_blocks * 512 >= size


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "fewer ids than the slot says": {"live_rows": 3},
    "a row outside of the matrix": {"rows": [0, 7]},
    "a row below zero": {"rows": [0, -3]},
    "two ids in one row": {"rows": [1, 1]},
    "a row that is alive and in limbo": {"limbo": [1]},
    "an LSN behind the redo point": {"lsns": [START_LSN + 64, START_LSN + 4096]},
    "an id twice": {"ids": ["a", "a"]},
    "a redo point that is not that of its image": {"redo_lsn": START_LSN + 192},
}


@pytest.mark.parametrize("what", ["nothing", *CONTRADICTIONS], ids=lambda what: what.replace(" ", "_"))
def test_image_that_contradicts_itself_is_refused(what: str) -> None:
    columns: dict[str, Any] = {
        "ids": ["a", "b"],
        "rows": [0, 1],
        "lsns": [START_LSN + 64, START_LSN + 128],
        "limbo": [],
        "live_rows": 2,
        "redo_lsn": START_LSN + 128,  # as the slot says
    } | CONTRADICTIONS.get(what, {})
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    disk.make_directory("/data")
    made = create_data(disk, kernels.load(), "/data", IDENTITY, START_LSN)
    made.matrix.ensure(4)
    place = Place(IDENTITY.store_id, 1, 0, 0)
    ids = BlockColumn()
    ids.add(pack_ids(columns["ids"]), len(columns["ids"]))
    section = encode_section(
        place,
        kind=BASE,
        sequence=2,
        redo_lsn=START_LSN + 128,
        rows_high=4,
        live_rows=columns["live_rows"],
        columns=NewColumns(
            ids=ids,
            rows=np.array(columns["rows"], np.int64),
            lsns=np.array(columns["lsns"], np.uint64),
            checksums=np.zeros(2, np.uint32),
            metadata=BlockColumn(),
            limbo=np.array(columns["limbo"], np.int64),
        ),
    )
    write_section(disk, "/data", place, section).close()
    made.control.publish(
        redo_lsn=columns["redo_lsn"],
        rows_high=4,
        live_rows=columns["live_rows"],
        image_number=1,
        image_bytes=section.section_bytes,
        image_crc=section.crc,
    )
    made.matrix.close()
    if what == "nothing":
        loaded = load_checkpoint(disk, "/data")
        assert loaded is not None
        assert (sorted(loaded.state.ids()), loaded.fell_back) == (["a", "b"], False)
        return
    try:
        loaded = load_checkpoint(disk, "/data")
    except ConsistencyError:
        return
    assert loaded is not None and loaded.fell_back, f"an image with {what} was believed"
    assert len(loaded.state) == 0


IMPOSSIBLE: dict[str, dict[str, int]] = {
    "segments too small": {"segment_bytes": 4096},
    "segments too large": {"segment_bytes": 1 << 40},
    "segments of half a page": {"segment_bytes": SEGMENT_BYTES_MIN + 2048},
    "an unknown dtype": {"dtype": 9},
    "an unknown metric": {"metric": 200},
}


@pytest.mark.parametrize("what", IMPOSSIBLE, ids=lambda what: what.replace(" ", "_"))
def test_impossible_identity_of_a_log_is_refused(what: str) -> None:
    disk = SimulatedDisk()
    disk.make_directory("/wal")
    control = create_control(disk, "/wal", new_identity(disk, 4))
    content = LOG_CONTROL.pack(**{**control._fields, **IMPOSSIBLE[what]})
    file = disk.open(control.path, writable=True)
    file.write(0, content)
    file.sync()
    with pytest.raises(HeaderCorruptionError):
        open_control(disk, "/wal")


def test_log_begins_where_its_first_segment_does() -> None:
    """What the tests above count on: positions of a new log."""
    assert data_start(0, SEGMENT) == DATA_OFFSET == 8192
