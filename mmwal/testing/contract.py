"""What every `Disk` must do, as far as a running process can see: a suite for pytest.

What survives a power loss is not checked here: no running process can see it (`mmwal.testing.simulator` can).

To check a disk, derive a test class and say how to make one, and where it may write:

    class TestMyDisk(DiskContract):
        @pytest.fixture
        def disk(self):
            return MyDisk()

        @pytest.fixture
        def root(self, tmp_path):
            return str(tmp_path)        # an existing, empty directory of that disk

Tell pytest to explain its assertions, in a conftest: `pytest.register_assert_rewrite("mmwal.testing.contract")`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from mmwal.disk.interface import Condition, Disk, File, Worker

PAGE_BYTES = 4096
PATIENCE_S = 60.0


class NamesContract:
    """Directories and the names in them."""

    def test_new_directory_is_reported_as_new_once(self, disk: Disk, root: str) -> None:
        assert disk.make_directory(f"{root}/a") is True
        assert disk.make_directory(f"{root}/a") is False

    def test_parents_of_a_directory_are_made(self, disk: Disk, root: str) -> None:
        assert disk.make_directory(f"{root}/a/b/c") is True
        assert disk.list_directory(f"{root}/a") == ["b"]
        assert disk.list_directory(f"{root}/a/b/c") == []
        assert disk.make_directory(f"{root}/a/b") is False

    def test_directory_over_or_below_a_file_is_refused(self, disk: Disk, root: str) -> None:
        disk.create(f"{root}/file").close()
        with refused(NotADirectoryError):
            disk.make_directory(f"{root}/file")
        with refused(NotADirectoryError):
            disk.make_directory(f"{root}/file/below")

    def test_names_are_listed_in_order(self, disk: Disk, root: str) -> None:
        disk.make_directory(f"{root}/m")
        for name in ("z", "a", "10", "9"):
            disk.create(f"{root}/{name}").close()
        assert disk.list_directory(root) == ["10", "9", "a", "m", "z"]

    def test_missing_directory_is_an_error(self, disk: Disk, root: str) -> None:
        for call in (disk.list_directory, disk.sync_directory):
            with refused(FileNotFoundError):
                call(f"{root}/missing")
        with refused(FileNotFoundError):
            disk.create(f"{root}/missing/file")

    def test_exists_knows_files_and_directories(self, disk: Disk, root: str) -> None:
        disk.create(f"{root}/file").close()
        disk.make_directory(f"{root}/directory")
        assert disk.exists(f"{root}/file")
        assert disk.exists(f"{root}/directory")
        assert not disk.exists(f"{root}/missing")
        assert not disk.exists(f"{root}/missing/below")
        assert not disk.exists(f"{root}/file/below")

    def test_create_refuses_a_taken_name(self, disk: Disk, root: str) -> None:
        path = f"{root}/file"
        disk.create(path).close()
        with refused(FileExistsError, path):
            disk.create(path)

    def test_open_refuses_what_is_no_file(self, disk: Disk, root: str) -> None:
        disk.make_directory(f"{root}/directory")
        for writable in (False, True):
            with refused(FileNotFoundError, f"{root}/missing"):
                disk.open(f"{root}/missing", writable=writable)
            with refused(IsADirectoryError, f"{root}/directory"):
                disk.open(f"{root}/directory", writable=writable)

    def test_rename_replaces_its_target(self, disk: Disk, root: str) -> None:
        for name, content in (("old", b"from old"), ("new", b"replaced")):
            with_content(disk, f"{root}/{name}", content)
        disk.rename(f"{root}/old", f"{root}/new")
        disk.sync_directory(root)
        assert disk.list_directory(root) == ["new"]
        assert content_of(disk, f"{root}/new") == b"from old"

    def test_open_file_follows_its_rename(self, disk: Disk, root: str) -> None:
        file = disk.create(f"{root}/old")
        disk.rename(f"{root}/old", f"{root}/new")
        file.write(0, b"after")
        file.sync()
        file.close()
        assert content_of(disk, f"{root}/new") == b"after"

    def test_removed_file_lives_on_for_those_who_have_it(self, disk: Disk, root: str) -> None:
        with_content(disk, f"{root}/file", b"still here")
        file = disk.open(f"{root}/file", writable=False)
        view = file.map(10, writable=False).view
        disk.unlink(f"{root}/file")
        assert not disk.exists(f"{root}/file")
        assert file.read(0, 10) == b"still here"
        file.close()
        assert bytes(view) == b"still here"

    def test_rename_and_unlink_of_a_missing_file_are_errors(self, disk: Disk, root: str) -> None:
        with refused(FileNotFoundError):
            disk.rename(f"{root}/missing", f"{root}/new")
        with refused(FileNotFoundError, f"{root}/missing"):
            disk.unlink(f"{root}/missing")


class FileContract:
    """Reading, writing and growing a file."""

    def test_new_file_is_empty(self, disk: Disk, root: str) -> None:
        file = disk.create(f"{root}/file")
        assert (file.size(), file.read(0, 100), file.path) == (0, b"", f"{root}/file")

    def test_read_ends_with_the_file(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"0123456789")
        assert file.read(2, 3) == b"234"
        assert file.read(8, 100) == b"89"
        assert file.read(10, 1) == b""
        assert file.read(1 << 40, 1) == b""
        assert file.read(0, 0) == b""

    def test_write_past_the_end_leaves_zeros_between(self, disk: Disk, root: str) -> None:
        file = disk.create(f"{root}/file")
        file.write(5000, b"end")
        assert (file.size(), file.read(0, 5003)) == (5003, bytes(5000) + b"end")

    def test_write_takes_any_contiguous_buffer(self, disk: Disk, root: str) -> None:
        file = disk.create(f"{root}/file")
        file.write(0, np.arange(3, dtype="<u4"))
        file.write(12, memoryview(b"abcdef")[2:4])
        file.write(14, bytearray(b"z"))
        file.write(15, b"")
        assert file.read(0, 100) == b"\0\0\0\0\1\0\0\0\2\0\0\0cdz"

    def test_allocate_grows_with_zeros_and_never_shrinks(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"kept")
        file.allocate(3 * PAGE_BYTES)
        assert (file.size(), file.read(0, 1 << 20)) == (3 * PAGE_BYTES, b"kept" + bytes(3 * PAGE_BYTES - 4))
        file.allocate(PAGE_BYTES)
        assert file.size() == 3 * PAGE_BYTES

    def test_zero_clears_its_range_and_nothing_else(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"x" * 20_000)
        file.zero(100, 10_000)
        assert file.read(0, 20_000) == b"x" * 100 + bytes(10_000) + b"x" * 9_900
        file.zero(19_000, 2_000)
        assert (file.size(), file.read(19_000, 3_000)) == (21_000, bytes(2_000))
        file.zero(50_000, 0)
        assert file.size() == 21_000

    def test_content_is_kept_when_synced_and_reopened(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"content")
        file.sync()
        file.close()
        assert content_of(disk, f"{root}/file") == b"content"

    def test_file_opened_for_reading_takes_no_write(self, disk: Disk, root: str) -> None:
        with_content(disk, f"{root}/file", b"content").close()
        file = disk.open(f"{root}/file", writable=False)
        for call in (
            lambda: file.write(0, b"x"),
            lambda: file.allocate(100),
            lambda: file.zero(0, 1),
            lambda: file.map(7, writable=True),
        ):
            with refused(OSError, f"{root}/file"):
                call()
        assert file.read(0, 100) == b"content"

    def test_closed_file_is_an_error_but_closing_twice_is_not(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"content")
        file.close()
        file.close()
        for call in (
            file.size,
            file.sync,
            lambda: file.read(0, 1),
            lambda: file.write(0, b"x"),
            lambda: file.map(7, writable=False),
        ):
            with refused(OSError, f"{root}/file", errno.EBADF):
                call()


class MappingContract:
    """Shared mappings."""

    def test_stores_and_writes_see_each_other(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", bytes(PAGE_BYTES))
        view = file.map(PAGE_BYTES, writable=True).view
        view[10:15] = b"store"
        file.write(20, b"write")
        assert file.read(10, 15) == b"store\0\0\0\0\0write"
        assert bytes(view[20:25]) == b"write"

    def test_all_mappings_of_a_file_are_one_memory(self, disk: Disk, root: str) -> None:
        with_content(disk, f"{root}/file", bytes(PAGE_BYTES)).close()
        writer = disk.open(f"{root}/file", writable=True).map(PAGE_BYTES, writable=True)
        reader = disk.open(f"{root}/file", writable=False).map(PAGE_BYTES, writable=False)
        writer.view[0] = 7
        assert reader.view[0] == 7

    def test_view_is_flat_bytes_writable_as_asked(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", bytes(100))
        for writable in (False, True):
            view = file.map(100, writable=writable).view
            assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, 100, not writable)

    def test_mapping_outlives_its_file_and_a_view_outlives_the_mapping(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"x" * PAGE_BYTES)
        mapping = file.map(PAGE_BYTES, writable=True)
        file.close()
        mapping.view[0] = ord("y")
        mapping.sync(0, PAGE_BYTES)
        array = np.frombuffer(mapping.view[:2], np.uint8)
        del mapping
        assert array.tobytes() == b"yx"
        assert content_of(disk, f"{root}/file") == b"y" + b"x" * (PAGE_BYTES - 1)

    def test_mapping_longer_than_its_file_sees_it_grow(self, disk: Disk, root: str) -> None:
        file = with_content(disk, f"{root}/file", b"x" * PAGE_BYTES)
        mapping = file.map(64 * PAGE_BYTES, writable=True)
        file.allocate(8 * PAGE_BYTES)
        mapping.populate(PAGE_BYTES, 7 * PAGE_BYTES)
        mapping.view[8 * PAGE_BYTES - 3 : 8 * PAGE_BYTES] = b"end"
        mapping.sync(0, 8 * PAGE_BYTES)
        assert file.size() == 8 * PAGE_BYTES
        assert file.read(8 * PAGE_BYTES - 4, 4) == b"\0end"

    def test_sync_populate_rewrite_and_stored_change_no_byte(self, disk: Disk, root: str) -> None:
        content = np.arange(5 * PAGE_BYTES, dtype=np.uint32).astype(np.uint8).tobytes()
        file = with_content(disk, f"{root}/file", content)
        mapping = file.map(len(content), writable=True)
        for offset, length in ((0, len(content)), (5000, 3), (PAGE_BYTES, PAGE_BYTES), (7, 0), (len(content), 0)):
            mapping.populate(offset, length)
            mapping.rewrite(offset, length)
            mapping.stored(offset, length)
            mapping.sync(offset, length)
        assert bytes(mapping.view) == file.read(0, 1 << 20) == content

    def test_range_outside_of_the_mapping_is_refused(self, disk: Disk, root: str) -> None:
        mapping = with_content(disk, f"{root}/file", bytes(PAGE_BYTES)).map(PAGE_BYTES, writable=True)
        for call in (mapping.sync, mapping.populate, mapping.rewrite, mapping.stored):
            for offset, length in ((0, PAGE_BYTES + 1), (PAGE_BYTES, 1), (-1, 1), (5, -1)):
                with refused(OSError, f"{root}/file"):
                    call(offset, length)

    def test_mapping_of_nothing_is_refused(self, disk: Disk, root: str) -> None:
        with refused(OSError, f"{root}/file"):
            disk.create(f"{root}/file").map(0, writable=False)


class LockContract:
    """The one writer and the readers."""

    def test_writers_lock_is_had_once_at_a_time(self, disk: Disk, root: str) -> None:
        path = f"{root}/lock"
        held = disk.lock(path)
        with refused(BlockingIOError, path) as caught:
            disk.lock(path)
        assert isinstance(getattr(caught[0], "holder_pid", None), int)
        held.release()
        held.release()
        again = disk.lock(path)
        held.release()  # of a lock that is no longer its own
        with refused(BlockingIOError, path):
            disk.lock(path)
        again.release()

    def test_readers_are_many_and_seen(self, disk: Disk, root: str) -> None:
        path = f"{root}/control"
        with_content(disk, path, b"content").close()
        assert not disk.has_readers(path)
        first, second = disk.lock_shared(path), disk.lock_shared(path)
        assert disk.has_readers(path)
        first.release()
        first.release()
        assert disk.has_readers(path)
        second.release()
        assert not disk.has_readers(path)
        assert content_of(disk, path) == b"content"

    def test_looking_for_readers_takes_no_lock_away(self, disk: Disk, root: str) -> None:
        path = f"{root}/control"
        with_content(disk, path, b"content").close()
        held = disk.lock_shared(path)
        disk.open(path, writable=True).close()
        assert [disk.has_readers(path) for _ in range(3)] == [True, True, True]
        held.release()

    def test_readers_of_a_missing_file_are_an_error(self, disk: Disk, root: str) -> None:
        for call in (disk.lock_shared, disk.has_readers):
            with refused(FileNotFoundError, f"{root}/missing"):
                call(f"{root}/missing")
        assert disk.list_directory(root) == []


class BackgroundContract:
    """Clocks, chance, workers and the rest."""

    def test_monotonic_clock_never_goes_back(self, disk: Disk) -> None:
        times = [disk.monotonic_ns() for _ in range(100)]
        assert times == sorted(times)

    def test_wall_clock_counts_nanoseconds_since_1970(self, disk: Disk) -> None:
        assert 1_500_000_000 * 10**9 < disk.time_ns() < 10_000_000_000 * 10**9

    def test_random_bytes_differ_each_time(self, disk: Disk) -> None:
        assert disk.random_bytes(0) == b""
        drawn = {disk.random_bytes(16) for _ in range(10)}
        assert len(drawn) == 10
        assert {len(each) for each in drawn} == {16}

    def test_worker_steps_at_once_and_when_woken(self, disk: Disk) -> None:
        counter = StepCounter(disk, lambda: None)
        with counter.worker(disk) as worker:
            counter.wait_for(1)
            worker.wake()
            counter.wait_for(2)

    def test_worker_steps_again_after_the_seconds_it_returned(self, disk: Disk) -> None:
        counter = StepCounter(disk, lambda: 0.001)
        with counter.worker(disk):
            counter.wait_for(3)

    def test_wake_during_a_step_leads_to_another(self, disk: Disk) -> None:
        workers: list[Worker] = []
        asked: list[int] = []

        def step() -> float | None:
            if workers and not asked:
                asked.append(1)
                workers[0].wake()
            return None

        counter = StepCounter(disk, step)
        with counter.worker(disk) as worker:
            counter.wait_for(1)
            workers.append(worker)
            worker.wake()
            counter.wait_for(3)

    def test_stopped_worker_steps_no_more(self, disk: Disk) -> None:
        counter = StepCounter(disk, lambda: None)
        with counter.worker(disk) as worker:
            counter.wait_for(1)
        worker.stop()
        worker.wake()
        with counter.changed:
            assert not counter.changed.wait(0.01)
        assert counter.steps == 1

    def test_condition_wait_without_news_ends_in_time(self, disk: Disk) -> None:
        condition = disk.condition()
        with condition:
            started_ns = disk.monotonic_ns()
            assert condition.wait(0.01) is False
            assert disk.monotonic_ns() - started_ns >= 9_000_000

    def test_fork_callback_can_be_ended_more_than_once(self, disk: Disk) -> None:
        end = disk.on_fork(lambda: None)
        end()
        end()

    def test_warnings_are_sentences(self, disk: Disk, root: str) -> None:
        assert all(warning.endswith(".") for warning in disk.warnings_for(root))

    def test_compiled_gate_is_a_gate_or_none(self, disk: Disk) -> None:
        gate = disk.compiled_gate(bytearray(4096), 1 << 16)
        assert gate is None or gate.sync(0)


class DiskContract(NamesContract, FileContract, MappingContract, LockContract, BackgroundContract):
    """All of it."""


class StepCounter:
    """A worker's step that counts itself, and a way to wait for a count."""

    def __init__(self, disk: Disk, step: Callable[[], float | None]) -> None:
        self.steps = 0
        self.changed: Condition = disk.condition()
        self._step = step

    def __call__(self) -> float | None:
        pause_s = self._step()
        with self.changed:
            self.steps += 1
            self.changed.notify_all()
        return pause_s

    def wait_for(self, steps: int) -> None:
        """Waits until the step has run so often."""
        with self.changed:
            while self.steps < steps:
                assert self.changed.wait(PATIENCE_S), f"{self.steps} steps of {steps} in {PATIENCE_S} s"

    @contextmanager
    def worker(self, disk: Disk) -> Iterator[Worker]:
        """Runs the step in a worker, and stops that."""
        worker = disk.start_worker("contract", self)
        try:
            yield worker
        finally:
            worker.stop()


@contextmanager
def refused(kind: type[OSError], path: str | None = None, code: int | None = None) -> Iterator[list[OSError]]:
    """Asserts that an `OSError` of a kind is raised, with an errno, about a file; the list holds it afterwards."""
    caught: list[OSError] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"{kind.__name__} was not raised"
    assert caught[0].errno is not None
    assert path is None or caught[0].filename == path
    assert code is None or caught[0].errno == code


def with_content(disk: Disk, path: str, content: bytes) -> File:
    """Creates a file that holds ``content``."""
    file = disk.create(path)
    file.write(0, content)
    return file


def content_of(disk: Disk, path: str) -> bytes:
    """Returns what a file holds."""
    file = disk.open(path, writable=False)
    try:
        return file.read(0, file.size())
    finally:
        file.close()
