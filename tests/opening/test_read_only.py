"""Opening for reading: nothing is changed, a prefix is seen, beside a writer, after a kill, after a close."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.cli.demo.model import Model, differences
from mmwal.disk.posix import PosixDisk
from mmwal.errors import (
    ConsistencyError,
    DamageError,
    ForkedProcessError,
    OpenError,
    ReadOnlyError,
    SegmentMissingError,
    StoreMissingError,
    WalClosedError,
    WalConfigError,
    WalCorruptionError,
)
from mmwal.format.frame import FRAME_DTYPE, commit_word
from mmwal.format.segment import data_end
from mmwal.log.control import open_control
from mmwal.log.segment import inspect_segment, segment_name
from mmwal.opening import open_store as open_configured
from mmwal.recovery.read_only import settled
from mmwal.testing.simulator import SimulatedDisk
from tests.opening import counting_writer
from tests.process.conftest import environment
from tests.process.test_kill import acknowledged, writer
from tests.process.writer import VECTORS, operation
from tests.process.writer import open_store as open_written
from tests.store.stores import DIMENSION, SEGMENT, config, contents, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

OpenStore = Callable[..., mmwal.VectorStore]
Read = Callable[..., mmwal.VectorStore]


@pytest.fixture
def read(root: Path, kernel: Any) -> Iterator[Read]:
    """Opens the store in `root`, or in /store of a given simulated disk, for reading; closes it at the end."""
    opened: list[mmwal.VectorStore] = []

    def read_one(*, path: Any = None, disk: Any = None, **fields: Any) -> mmwal.VectorStore:
        place = path or ("/store" if isinstance(disk, SimulatedDisk) else root)
        plain = {"dimension": ..., "segment_size": ..., "sync_interval_ms": ..., **fields}
        opened.append(open_configured(config(place, kernel, **plain), disk or PosixDisk(), read_only=True))
        return opened[-1]

    yield read_one
    for store in opened:
        store.close()


def fingerprint(root: Path) -> dict[str, Any]:
    """Everything about every file and directory that a careless reader might change."""
    found: dict[str, Any] = {}
    for path in sorted([root, *root.rglob("*")]):
        facts = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (
            facts.st_size,
            facts.st_blocks,
            facts.st_mtime_ns,
            facts.st_ctime_ns,
            facts.st_mode,
            content,
        )
    return found


def files_of(disk: Any, root: str = "/store") -> dict[str, bytes]:
    """The content of every file of a store on any disk."""
    found = {}
    for directory in (f"{root}/wal", f"{root}/data"):
        for name in disk.list_directory(directory):
            file = disk.open(f"{directory}/{name}", writable=False)
            found[f"{directory}/{name}"] = file.read(0, file.size())
            file.close()
    return found


def flip(disk: Any, path: str, offset: int) -> None:
    """Flips a bit, as durably as a disk's own mistakes are."""
    file = disk.open(path, writable=True)
    file.write(offset, bytes([file.read(offset, 1)[0] ^ 4]))
    file.sync()
    file.close()


# -- nothing is changed


def test_closed_store_is_read_and_no_file_is_changed(open_store: OpenStore, read: Read, root: Path) -> None:
    store = open_store()
    store.insert_many(range(300), rows(range(300)), [{"n": n} for n in range(300)])
    store.checkpoint()
    store.delete_many(range(0, 300, 3))
    store.update("7", vector(1)) if "7" in store else store.insert("7", vector(7))
    expected = contents(store)
    store.close()
    before = fingerprint(root)
    reader = read()
    assert contents(reader) == expected
    assert reader.recovery_stats.completed and reader.recovery_stats.clean_shutdown
    assert reader.durable_lsn >= max(lsn for _, _, lsn in expected.values())
    reader.close()
    assert fingerprint(root) == before


@pytest.mark.parametrize("sync_interval_ms", [0, 5000])
def test_killed_store_is_read_whole_and_no_file_is_changed(
    tmp_path: Path, kernel: Any, read: Read, sync_interval_ms: int
) -> None:
    root, model = tmp_path / "killed", Model()
    with writer("store", root, kernel.NAME, sync_interval_ms, 0) as process:
        told = acknowledged(process, 250)
    for number, lsn in told:
        model.apply(operation(number), lsn)
    before = fingerprint(root)
    reader = read(path=root)
    found = differences(reader, model, VECTORS)
    if found:  # then the operation on its way must be there, and nothing else
        model.apply(operation(len(told)), None)
        assert differences(reader, model, VECTORS) == [], found
    assert not reader.recovery_stats.clean_shutdown
    assert reader.recovery_stats.applied_entries > 0
    assert "reading" in str(reader.recovery_stats)
    assert fingerprint(root) == before
    again = read(path=root)
    assert contents(again) == contents(reader)
    with open_written(str(root), kernel.NAME, sync_interval_ms) as store:
        assert contents(store) == contents(reader)


def test_reader_beside_a_writer_changes_no_file_and_sees_what_was_written(
    open_store: OpenStore, read: Read, root: Path
) -> None:
    store = open_store()
    store.insert_many(range(50), rows(range(50)))
    store.checkpoint()
    store.update_many(range(10), rows(range(100, 110)))
    store.sync()
    before = fingerprint(root)
    reader = read()
    assert contents(reader) == contents(store)
    assert fingerprint(root) == before
    store.insert("later", vector(1))
    assert "later" not in reader
    assert "later" in read()


def test_what_was_read_stays_whatever_becomes_of_the_files(open_store: OpenStore, read: Read, root: Path) -> None:
    store = open_store()
    store.insert_many(range(2000), rows(range(2000)))
    store.checkpoint()
    store.update_many(range(100), rows(range(100)))
    expected = contents(store)
    reader = read()
    for round in range(6):
        store.upsert_many(range(2000), rows(range(round, 2000 + round)))
        store.checkpoint()
    store.close()
    assert contents(reader) == expected
    shutil.rmtree(root)
    assert contents(reader) == expected
    assert [hit.id for hit in reader.search(vector(1), k=2)] == [1999, 1998]


# -- beside a writer


@contextmanager
def counting(directory: Path, kernel: str, sync_interval_ms: int) -> Iterator[Callable[[], int]]:
    """A process that counts; yields what returns the newest round that it finished."""
    progress = directory.parent / "progress"
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "tests.opening.counting_writer"),
            *(str(directory), kernel, str(sync_interval_ms), str(progress)),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def finished() -> int:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        return int.from_bytes(progress.read_bytes(), "little")

    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "counting\n", process.stderr.read()
        yield finished
    finally:
        process.kill()
        process.communicate()


def round_seen(store: mmwal.VectorStore) -> int:
    """The round in which the writer was, if what the store holds is the state after some prefix of its writes."""
    found = {record.metadata["n"] for record in store.get_many(counting_writer.COUNTERS) if record and record.metadata}
    assert len(found) == 1, "a batch was seen in part"
    number: int = found.pop()
    last = store.get(counting_writer.LAST)
    seen = last.metadata["n"] if last and last.metadata else -1
    assert seen in (number - 1, number)
    assert all((store[id] == number).all() for id in counting_writer.COUNTERS)
    come = [set(counting_writer.passing(n)) for n in (number - 1, number) if n >= 0]
    possible = [come[0]] if seen < number else [come[0], set.union(*come), come[-1]]
    assert {id for id in store if isinstance(id, int)} in possible
    for ids, vectors in store.batches(5):
        for id, values in zip(ids, vectors, strict=True):
            assert not isinstance(id, int) or (values == id // counting_writer.PASSING).all()
    return number


@pytest.mark.parametrize("sync_interval_ms", [0, 5000])
def test_readers_beside_a_writing_process_see_prefixes_that_grow(
    root: Path, read: Read, kernel: Any, sync_interval_ms: int
) -> None:
    root.parent.mkdir(exist_ok=True)
    with counting(root, kernel.NAME, sync_interval_ms) as finished:
        seen, sequences = [-1], set()
        while len(seen) < 25 or len(sequences) < 4:
            acknowledged_round = finished()
            reader = read()
            seen.append(round_seen(reader))
            assert seen[-1] >= max(seen[-2], acknowledged_round)
            sequences.add(reader.recovery_stats.checkpoint_sequence)
            if len(seen) % 3:  # some stay open: the writer then recycles nothing
                reader.close()
    assert seen[-1] > seen[1]


def test_writer_recycles_segments_only_while_nobody_reads(
    open_store: OpenStore, read: Read, disk: Any, root: Path
) -> None:
    place = Path("/store") if isinstance(disk, SimulatedDisk) else root
    wal_dir = str(place / "wal")
    store = open_store(disk=disk)
    store.insert_many(range(50), rows(range(50)))
    expected = contents(store)
    store.close()
    reader = read(disk=disk)
    store = open_store(disk=disk)  # a reader is in nobody's way

    def recycled() -> bool:
        """Writes until a segment goes; returns whether its file is used again, or kept for that."""
        newest = max(name for name in disk.list_directory(wal_dir) if name.startswith("segment-"))
        file = disk.open(f"{wal_dir}/{newest}", writable=False)
        before = file.read(0, 512)
        for round in range(8):
            store.upsert_many(range(1000), rows(range(round, 1000 + round)))
            store.checkpoint()
            if isinstance(disk, SimulatedDisk):
                disk.run_workers()
        names = disk.list_directory(wal_dir)
        assert newest not in names
        after = file.read(0, 512)
        file.close()
        return after != before or any(start(name) == before for name in names if name.startswith("spare-"))

    def start(name: str) -> bytes | None:
        """The first bytes of a file of the log; None if the keeper has renamed it meanwhile."""
        try:
            file = disk.open(f"{wal_dir}/{name}", writable=False)
        except FileNotFoundError:
            return None
        with contextlib.closing(file):
            return bytes(file.read(0, 512))

    assert disk.has_readers(f"{wal_dir}/control") and disk.has_readers(str(place / "data" / "control"))
    assert not recycled()
    assert contents(reader) == expected
    reader.close()
    assert not disk.has_readers(f"{wal_dir}/control") and not disk.has_readers(str(place / "data" / "control"))
    assert any(recycled() for _ in range(5))  # the keeper of a real disk comes when it comes


# -- writes are refused


def test_every_write_is_refused_and_says_what_to_do(open_store: OpenStore, read: Read, disk: Any) -> None:
    open_store(disk=disk).insert("a", vector(1))
    reader = read(disk=disk)
    for refused in (
        lambda: reader.insert("b", vector(1)),
        lambda: reader.insert("a", vector(1)),
        lambda: reader.update("a", vector(1), durable=True),
        lambda: reader.update("missing", metadata={}),
        lambda: reader.upsert("a", vector(1)),
        lambda: reader.delete("a"),
        lambda: reader.insert_many(["b"], rows([1])),
        lambda: reader.update_many(["a"], rows([1])),
        lambda: reader.upsert_many(["a"], rows([1])),
        lambda: reader.delete_many(["a"]),
        lambda: reader.checkpoint(),
        lambda: reader.sync(),
        lambda: reader.wait_durable(1),
    ):
        with pytest.raises(ReadOnlyError, match="open it without"):
            refused()
    assert reader.ids() == ["a"] and reader.wal is None
    assert "read-only" in repr(reader)


def test_closed_reader_refuses_reads_and_writes(open_store: OpenStore, read: Read) -> None:
    open_store().insert("a", vector(1))
    reader = read()
    reader.close()
    reader.close()
    for refused in (lambda: reader.get("a"), lambda: len(reader), lambda: reader.insert("b", vector(1)), reader.sync):
        with pytest.raises(WalClosedError):
            refused()
    assert "closed" in repr(reader)


def test_reader_is_dead_in_a_forked_child(open_store: OpenStore, simulated: SimulatedDisk, read: Read) -> None:
    open_store(disk=simulated).insert("a", vector(1))
    reader = read(disk=simulated)
    simulated.fork()
    for refused in (lambda: reader.get("a"), lambda: reader.insert("b", vector(1))):
        with pytest.raises(ForkedProcessError):
            refused()


def test_reader_leaves_no_descriptor_and_no_thread(open_store: OpenStore, read: Read) -> None:
    import threading

    store = open_store()
    store.insert_many(range(100), rows(range(100)))
    store.close()
    descriptors, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        read().close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert set(threading.enumerate()) == threads


# -- what there is to read


def test_missing_store_is_an_error_and_nothing_is_created(tmp_path: Path, kernel: Any) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StoreMissingError, match="no store here") as error:
            mmwal.open(place, read_only=True, kernel=kernel.NAME)
        assert isinstance(error.value, FileNotFoundError) and isinstance(error.value, OpenError)
        assert error.value.path == f"{place}/wal"
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_without_its_log_is_an_error(open_store: OpenStore, read: Read, root: Path) -> None:
    store = open_store()
    store.insert("a", vector(1))
    store.close()
    shutil.rmtree(root / "wal")
    with pytest.raises(ConsistencyError, match="the log of the checkpoint"):
        read()


def test_store_without_a_checkpoint_is_read_from_its_log(open_store: OpenStore, read: Read, disk: Any) -> None:
    store = open_store(disk=disk, dimension=...)
    empty = read(disk=disk)
    assert (len(empty), empty.dimension, empty.search(vector(1))) == (0, None, [])
    store.insert("a", vector(1), {"n": 1})
    store.insert("b", vector(2))
    store.delete("b")
    reader = read(disk=disk)
    assert contents(reader) == contents(store)
    assert reader.dimension == DIMENSION


def test_config_that_contradicts_the_store_is_refused(open_store: OpenStore, read: Read) -> None:
    open_store(metric="cosine").insert("a", vector(1))
    for name, value in {"dimension": 9, "metric": "l2", "dtype": "int8", "segment_size": 2 * SEGMENT}.items():
        with pytest.raises(WalConfigError, match=name):
            read(**{name: value})
    assert len(read(dimension=DIMENSION, metric="cosine", max_wal_size=2 * SEGMENT)) == 1


def test_public_open_reads(open_store: OpenStore, root: Path, kernel: Any) -> None:
    open_store().insert("a", vector(1))
    with mmwal.open(root, read_only=True, kernel=kernel.NAME) as reader:
        assert isinstance(reader, mmwal.VectorStore)
        assert reader.ids() == ["a"]


# -- damage


def test_torn_tail_is_left_out_and_left_alone(open_store: OpenStore, read: Read, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated)
    simulated.run_workers()
    store.sync()
    lsns = [store.insert(f"id-{i}", vector(i)) for i in range(20)]
    disk = simulated.kill()
    number, offset = divmod(lsns[-2] + 70, SEGMENT)
    flip(disk, f"/store/wal/{segment_name(number)}", offset)
    before = files_of(disk)
    for _ in range(2):
        reader = read(disk=disk)
        assert reader.ids() == [f"id-{i}" for i in range(19)]
        assert reader.recovery_stats.torn_tail_bytes > 0
        assert reader.recovery_stats.last_lsn == lsns[-2]
    assert files_of(disk) == before
    assert open_store(disk=disk).ids() == [f"id-{i}" for i in range(19)]
    assert files_of(disk) != before


def test_damaged_entry_that_was_durable_is_an_error(open_store: OpenStore, read: Read, disk: Any, root: Path) -> None:
    store = open_store(disk=disk)
    lsns = [store.insert(f"id-{i}", vector(i)) for i in range(20)]
    store.sync()
    store.insert("later", vector(1))  # it records what was durable
    wal_dir = "/store/wal" if isinstance(disk, SimulatedDisk) else f"{root}/wal"
    number, offset = divmod(lsns[3] + 70, SEGMENT)
    flip(disk, f"{wal_dir}/{segment_name(number)}", offset)
    with pytest.raises(WalCorruptionError) as error:
        read(disk=disk)
    assert (error.value.path, error.value.lsn) == (f"{wal_dir}/{segment_name(number)}", lsns[3])
    assert not disk.has_readers(f"{wal_dir}/control")


def test_damaged_row_is_an_error_unless_the_log_replaces_it(
    open_store: OpenStore, read: Read, simulated: SimulatedDisk
) -> None:
    store = open_store(disk=simulated)
    store.insert_many(["a", "b", "c"], rows([1, 2, 3]))
    store.checkpoint()
    stride = store._state.matrix.stride
    store.update("a", vector(10))
    store.delete("b")
    for row in (0, 1):
        flip(simulated, "/store/data/matrix", row * stride)
    reader = read(disk=simulated)
    assert (reader.ids(), reader["a"][0]) == (["c", "a"], 10)
    flip(simulated, "/store/data/matrix", 2 * stride)
    with pytest.raises(ConsistencyError, match="'c' is damaged") as error:
        read(disk=simulated)
    assert (error.value.path, error.value.offset) == ("/store/data/matrix", 2 * stride)


def test_checkpoint_older_than_the_log_goes_back_is_an_error_for_readers_and_writers(
    open_store: OpenStore, read: Read, root: Path, tmp_path: Path
) -> None:
    store = open_store()
    store.insert_many(range(1000), rows(range(1000)))
    store.close()
    shutil.copytree(root / "data", tmp_path / "backup")
    store = open_store()
    for _ in range(6):
        store.update_many(range(1000), rows(range(1000)))
        store.checkpoint()
    store.close()
    with open_store() as store:  # retires what the last checkpoints released
        store.update_many(range(1000), rows(range(1000)))
    shutil.rmtree(root / "data")
    (tmp_path / "backup").rename(root / "data")
    for opens in (read, open_store):
        with pytest.raises(DamageError, match="missing"):
            opens()


def test_tail_made_up_to_waste_time_is_corruption(open_store: OpenStore, read: Read, simulated: SimulatedDisk) -> None:
    """Every position behind the end claims a frame up to the end of the segment, with a wrong checksum."""
    store = open_store(disk=simulated)
    simulated.run_workers()
    lsn = store.insert("a", vector(1))
    disk = simulated.kill()
    control = open_control(disk, "/store/wal")
    assert control is not None
    number = lsn // SEGMENT
    info = inspect_segment(disk, "/store/wal", control.identity, number)
    assert info is not None
    end = data_end(number, SEGMENT)
    lsns = np.arange(lsn, end, 64)
    headers = np.zeros(len(lsns), FRAME_DTYPE)
    headers["commit"] = [commit_word(info.salt, start, end - start) for start in lsns.tolist()]
    headers["start_lsn"] = lsns
    headers["kind"] = 1
    headers["vector_bytes"] = end - 64 - lsns
    file = disk.open(info.path, writable=True)
    file.write(lsn - info.base_lsn, headers.tobytes())
    file.sync()
    for opens in (read, open_store):
        with pytest.raises(WalCorruptionError, match="not written by mmwal") as error:
            opens(disk=disk)
        assert (error.value.path, error.value.lsn) == (info.path, lsn + 64)


# -- what is believed


def test_failure_is_believed_when_it_comes_twice_in_a_row_at_the_same_place() -> None:
    at = iter([64, 128, 128, 192])

    def read_range() -> None:
        raise WalCorruptionError("/wal/segment", "a damaged entry", offset=0, lsn=next(at))

    with pytest.raises(WalCorruptionError) as error:
        settled("/wal", read_range)
    assert (error.value.lsn, next(at)) == (128, 192)


def test_failures_that_do_not_last_are_not_believed() -> None:
    failures: list[Exception] = [
        SegmentMissingError("/wal/segment-0", "is missing", lsn=64),
        FileNotFoundError(2, "no such file", "/wal/segment-0"),
        ConsistencyError("/data/control", "no checkpoint is whole: checkpoint 3"),
        ConsistencyError("/data/control", "no checkpoint is whole: checkpoint 5"),
    ]

    def read_all() -> str:
        if failures:
            raise failures.pop(0)
        return "whole"

    assert settled("/wal", read_all) == "whole"


def test_writer_that_is_always_faster_is_an_error_that_blames_no_file() -> None:
    failures = iter(range(10**6))

    def read_range() -> None:
        raise WalCorruptionError("/wal/segment", "a damaged entry", lsn=next(failures))

    with pytest.raises(OpenError, match="faster than it could be read") as error:
        settled("/wal", read_range)
    assert not isinstance(error.value, DamageError)
    assert isinstance(error.value.__cause__, WalCorruptionError)
