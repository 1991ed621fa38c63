"""What other logs did to their users, each as a test named after what the user would see.

The failures are of published systems: a log that does not open after a power cut, a stray file that blocks the start,
acknowledged entries that are gone. Here none of them may happen, at any step and with any legal image of the disk.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mmwal import kernel as kernels
from mmwal.errors import (
    DamageError,
    HeaderCorruptionError,
    OpenError,
    SegmentMissingError,
    WalError,
)
from mmwal.format.segment import SEGMENT_HEADER
from mmwal.opening import open_store
from mmwal.testing.simulator import SimulatedDisk
from tests.log.logs import NOTHING_UNSYNCED, fill
from tests.recovery.damage import PER_SEGMENT, SIZE, Log, names, resealed
from tests.store.stores import config, contents, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
PY = kernels.load("py")


def new(kernel: Any = PY) -> Log:
    return Log(SimulatedDisk(seed=7), kernel)


def crashes(disk: SimulatedDisk, rng: random.Random, budget: int) -> Iterator[SimulatedDisk]:
    """Disks as they may be found after a crash now: a kill, a power cut that loses all it may, and some others."""
    yield disk.kill()
    yield disk.image(NOTHING_UNSYNCED)
    for choice in disk.images(rng, budget):
        yield disk.image(choice)


def test_segment_creation_cut_short_anywhere_opens(kernel: Any) -> None:
    """A power cut while a segment is made: the log opens, with all that was durable."""
    log = new(kernel)
    wal = log.open(runway_segments=1)
    log.disk.run_workers()
    lsns = fill(wal, 10)
    wal.sync()
    rng = random.Random(1)
    labels = set()
    cut = [0]

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        labels.add(label)
        for left in crashes(disk, rng, 3):
            found = Log(left, kernel).ids()
            assert found == names(len(found)) and len(found) >= 10, (step, label)
            cut[0] += 1

    log.disk.on_step = look
    lsns += fill(wal, PER_SEGMENT, 10)
    log.disk.run_workers()
    log.disk.on_step = None
    assert lsns[-1] // SIZE == 1
    for label in ("spare.wal create", "spare.wal allocate", "spare.wal zero", "spare.wal write", "spare.wal rename"):
        assert label in labels
    assert cut[0] > 30


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4095, 4096, 8191, 8192, SIZE - 1, SIZE])
@pytest.mark.parametrize("number", [1, 2, 7])
def test_segment_that_is_empty_or_all_zero_is_no_segment(number: int, size: int) -> None:
    log = new().closed(20)
    log.make(log.path(number), bytes(size))
    assert log.ids() == names(20)


def test_unknown_file_in_the_directory_is_ignored() -> None:
    disk = SimulatedDisk(seed=7)
    store = open_store(config("/store", PY), disk)
    for number in range(20):
        store.insert(number, vector(number))
    store.checkpoint()
    store.insert("late", vector(1))
    store.sync()
    held = contents(store)
    disk = disk.kill()
    strays = [
        f"/store/{folder}/{name}"
        for folder in ("wal", "data")
        for name in ("x.tmp", ".control.swp", "image-1", "segment-1.wal", "matrix.bak", "lost+found", "wal.tmp")
    ]
    for path in strays:
        disk.create(path).write(0, b"whatever")
    disk.make_directory("/store/wal/snapshots")
    disk.make_directory("/store/data/spare-0000000000000000.wal")
    disk.make_directory("/store/wal/spare-0000000000000000.wal")
    store = open_store(config("/store", PY), disk)
    assert contents(store) == held
    store.insert("more", vector(2))
    store.close()
    assert all(disk.exists(path) for path in strays)
    assert set(contents(open_store(config("/store", PY), disk))) == {*held, "more"}


def three() -> Log:
    return new().closed(PER_SEGMENT * 2 + 10).killed(10, 2)


@pytest.mark.parametrize("source", [0, 1, 2])
@pytest.mark.parametrize("target", [0, 1, 2, 3, 9])
def test_duplicate_segment_is_a_typed_error_that_names_the_file(source: int, target: int) -> None:
    log = three()
    content = log.read(log.path(source), 0, SIZE)
    log.make(log.path(target), content)
    if source == target:
        assert log.ids() == names(log.logged)
        return
    with pytest.raises(HeaderCorruptionError) as caught:
        log.open()
    assert (caught.value.verdict, caught.value.path) == ("header-misplaced", log.path(target))


def test_overlapping_segments_are_a_typed_error() -> None:
    """A header that claims positions of its neighbour, under a valid checksum."""
    log = three()
    fields = log.fields(SEGMENT_HEADER, log.path(1), 0)
    for offset in (0, 4096):
        log.write(log.path(1), offset, SEGMENT_HEADER.pack(**{**fields, "base_lsn": fields["base_lsn"] - 4096}))
    with pytest.raises(HeaderCorruptionError) as caught:
        log.open()
    assert (caught.value.verdict, caught.value.path) == ("header-misplaced", log.path(1))


@pytest.mark.parametrize("how", ["killed", "closed"])
@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_segment_deleted_by_hand_is_found_at_open_as_a_gap(gone: tuple[int, ...], how: str) -> None:
    """Never a shorter log, and never a hole: the error names the first file that is not there."""
    log = three() if how == "killed" else new().closed(PER_SEGMENT * 2 + 10)
    for number in gone:
        log.unlink(log.path(number))
    before = log.disk.digest()
    with pytest.raises(SegmentMissingError) as caught:
        log.open()
    assert caught.value.path == log.path(gone[0])
    assert caught.value.verdict in ("oldest-missing", "mark-gap", "end-missing")
    assert caught.value.lsn is not None and caught.value.lsn // SIZE == gone[0]
    assert log.disk.digest() == before


@pytest.mark.parametrize("bursts", [(0,), (5,), (5, 0)], ids=["nothing_logged", "nothing_synced", "synced"])
def test_all_segments_of_a_first_run_deleted_by_hand_are_found_at_open(bursts: tuple[int, ...]) -> None:
    """Nothing on record says how far such a log came: no idle mark, no clean close. That it had a writer is enough."""
    log = new().killed(*bursts)
    for number in range(5):  # the runway, too
        if log.disk.exists(log.path(number)):
            log.unlink(log.path(number))
    with pytest.raises(SegmentMissingError) as caught:
        log.open()
    assert (caught.value.verdict, caught.value.path) == ("oldest-missing", log.path(0))


def test_segment_of_a_store_deleted_by_hand_is_found_at_open_as_a_gap() -> None:
    disk = SimulatedDisk(seed=7)
    store = open_store(config("/store", PY, checkpoint_interval=None), disk)
    disk.run_workers()
    for number in range(0, 4800, 400):
        last_lsn = store.insert_many(range(number, number + 400), np.ones((400, 8), np.float32))
        disk.run_workers()
    store.sync()
    assert last_lsn > 3 * 65536
    disk = disk.kill()
    disk.unlink("/store/wal/segment-0000000000000001.wal")
    with pytest.raises(SegmentMissingError) as caught:
        open_store(config("/store", PY), disk)
    assert caught.value.path.endswith("segment-0000000000000001.wal")


def test_first_segment_after_a_rotation_keeps_its_name_through_a_power_cut(kernel: Any) -> None:
    """An entry in a new segment is durable only if the segment's name is."""
    log = new(kernel)
    wal = log.open(sync_interval_ms=0)
    log.disk.run_workers()
    rng = random.Random(2)
    for number in range(PER_SEGMENT * 3):
        fill(wal, 1, number)
        if number % PER_SEGMENT < 2:
            for choice in [NOTHING_UNSYNCED, *log.disk.images(rng, 6, names="weak")]:
                assert Log(log.disk.image(choice), kernel).ids() == names(number + 1)
            log.disk.run_workers()


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b"stale by", b"MMWALSEG"], ids=repr)
def test_whatever_stands_behind_the_tail_reads_as_the_end_of_the_log(filler: bytes, kernel: Any) -> None:
    """Un-synced writes lost, and zeros or an earlier life's bytes in their place: no entry of a monstrous size."""
    log = new(kernel).killed(10, 5)
    for cut in range(10, 15):
        case = log.copy()
        start = case.start_of(cut)
        length = SIZE - 512 - start % SIZE
        case.write(case.path(0), start % SIZE, (filler * length)[:length])
        assert case.ids() == names(cut)


def test_store_and_log_never_disagree_about_what_was_applied() -> None:
    """A crash at any step of a checkpoint: what is found is what was written, not more, not less, not twice."""
    disk = SimulatedDisk(seed=9)
    store = open_store(config("/store", PY, sync_interval_ms=0, checkpoint_interval=None), disk)
    for number in range(8):
        store.insert(number, vector(number), {"n": number})
    store.checkpoint()
    store.update(3, vector(33))
    store.delete(4)
    store.insert("new", vector(5))
    held = contents(store)
    rng = random.Random(3)
    looked = [0]

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        for left in crashes(disk, rng, 2):
            assert contents(open_store(config("/store", PY), left)) == held, (step, label)
            looked[0] += 1

    disk.on_step = look
    store.checkpoint()
    disk.on_step = None
    assert looked[0] > 20


def test_no_write_is_acknowledged_before_it_is_durable(kernel: Any) -> None:
    log = new(kernel)
    wal = log.open(sync_interval_ms=0)
    for number in range(PER_SEGMENT + 5):
        lsn = fill(wal, 1, number)[0]
        assert wal.durable_lsn >= lsn
        assert Log(log.disk.image(NOTHING_UNSYNCED), kernel).ids() == names(number + 1)


@pytest.mark.parametrize("field", [52, 56, 60, 48], ids=["vector_bytes", "id_bytes", "meta_bytes", "rows"])
@pytest.mark.parametrize("value", [0, 1, 65_536, 0x7FFF_FFFF, 0xFFFF_FFFF], ids=hex)
def test_length_that_reaches_past_the_end_is_an_error_and_no_crash(field: int, value: int, kernel: Any) -> None:
    """A valid checksum over a length that lies: a typed error or a cut, and never an entry that was not written."""
    for proven in (False, True):
        log = new(kernel).killed(20, 1) if proven else new(kernel).killed(21)
        start = log.start_of(12)
        segment = log.read(log.path(0), 0, SIZE)
        at = start % SIZE

        def lie(frame: bytearray) -> None:
            frame[field : field + 4] = value.to_bytes(4, "little")

        frame = resealed(segment, at, lie)
        log.write(log.path(0), at, frame)
        if frame == segment[at : at + len(frame)]:  # that was the truth
            assert log.ids() == names(log.logged)
            continue
        label, lsn = None, None
        try:
            found = log.ids()
        except DamageError as error:
            label, lsn = error.verdict, error.lsn
        if label is None:
            assert not proven
            assert found == names(12)
        else:
            assert label in ("end-damaged", "entry-contradicts")
            assert lsn is not None


def test_start_after_a_crash_reads_no_more_than_the_log_behind_the_checkpoint() -> None:
    disk = SimulatedDisk(seed=7)
    store = open_store(config("/store", PY, checkpoint_interval=None), disk)
    for number in range(300):
        store.insert(number, vector(number))
    store.checkpoint()
    for number in range(300, 310):
        store.insert(number, vector(number))
    store.sync()
    stats = open_store(config("/store", PY), disk.kill()).recovery_stats
    assert stats.applied_entries == 10
    assert stats.redo_lsn == stats.first_lsn > 300 * 64
    assert stats.recovery_time_ms > 0
    assert "replay from LSN" in str(stats)


def test_one_rotten_byte_anywhere_costs_a_typed_error_at_most() -> None:
    """No assertion, no signal, no built-in error on any content of any file; and never a wrong vector in silence."""
    disk = SimulatedDisk(seed=7)
    store = open_store(config("/store", PY, checkpoint_interval=None), disk)
    for number in range(12):
        store.insert(number, vector(number))
        if number in (4, 8):
            store.checkpoint()
    store.sync()
    held = contents(store)
    disk = disk.kill()
    paths = [
        f"/store/{folder}/{name}" for folder in ("wal", "data") for name in disk.list_directory(f"/store/{folder}")
    ]
    rng = np.random.default_rng(5)
    refused = unlabelled = 0
    for trial in range(100):
        left = disk.kill()
        path = paths[trial % len(paths)]
        file = left.open(path, writable=True)
        at = int(rng.integers(min(file.size(), 9000))) if file.size() else 0
        file.write(at, bytes([(file.read(at, 1) or b"\0")[0] ^ (1 << int(rng.integers(8)))]))
        try:
            found = contents(open_store(config("/store", PY), left, read_only=True))
        except WalError as error:
            refused += 1
            unlabelled += not (isinstance(error, OpenError) and error.verdict)
            continue
        assert found.items() <= held.items(), (path, at)
        assert len(found) >= 12 or "segment" in path, (path, at)
    assert unlabelled == 0
    assert refused > 3
