"""Mappings of the real disk: how long they live, what a sync reaches, who waits meanwhile."""

import ctypes
import errno
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmwal.disk import mapping as posix_mapping
from mmwal.disk.posix import PosixDisk
from tests.disk.conftest import Mount, Script
from tests.disk.observing import progress_beside

PAGE = 4096
MIB = 1 << 20


def is_mapped(path: str) -> bool:
    return path in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    "view_of",
    [
        lambda mapping: mapping,
        lambda mapping: mapping.view,
        lambda mapping: mapping.view[5:9],
        lambda mapping: mapping.view.cast("Q"),
        lambda mapping: np.frombuffer(mapping.view, np.float32)[3:],
    ],
    ids=["mapping", "view", "slice", "cast", "array"],
)
def test_memory_is_unmapped_when_its_last_view_dies(disk: PosixDisk, root: str, view_of: Callable[..., object]) -> None:
    path = f"{root}/mapped"
    file = disk.create(path)
    file.allocate(PAGE)
    mapping = file.map(PAGE, writable=True)
    view = view_of(mapping)
    del mapping
    file.close()
    gc.collect()
    assert is_mapped(path)
    del view
    gc.collect()
    assert not is_mapped(path)


def test_64_gib_can_be_reserved_for_a_small_file(disk: PosixDisk, root: str) -> None:
    file = disk.create(f"{root}/matrix")
    file.allocate(PAGE)
    mapping = file.map(64 << 30, writable=True)
    assert len(mapping.view) == 64 << 30
    file.allocate(2 * MIB)
    mapping.populate(0, 2 * MIB)
    mapping.view[2 * MIB - 1] = 9
    mapping.sync(0, 2 * MIB)
    assert file.read(2 * MIB - 1, 1) == b"\x09"


def test_sync_cleans_the_pages_of_its_range_only(disk: PosixDisk, root: str) -> None:
    dirty = dirty_pages_of(f"{root}/mapped")
    file = disk.create(f"{root}/mapped")
    file.zero(0, 64 * PAGE)
    file.sync()
    mapping = file.map(64 * PAGE, writable=True)
    mapping.view[:] = b"x" * (64 * PAGE)
    if dirty(0, 64) != 64:
        pytest.skip("this file system does not count dirty pages")
    mapping.sync(10 * PAGE + 1, PAGE)  # parts of two pages
    assert (dirty(0, 10), dirty(10, 2), dirty(12, 52)) == (10, 0, 52)


def test_rewrite_makes_clean_pages_dirty(disk: PosixDisk, root: str) -> None:
    dirty = dirty_pages_of(f"{root}/mapped")
    file = disk.create(f"{root}/mapped")
    file.zero(0, 8 * PAGE)
    if dirty(0, 8) != 8:
        pytest.skip("this file system does not count dirty pages")
    file.sync()
    mapping = file.map(8 * PAGE, writable=True)
    mapping.rewrite(2 * PAGE, 3 * PAGE)
    assert (dirty(0, 2), dirty(2, 3), dirty(5, 3)) == (0, 3, 0)


def test_storing_the_bytes_that_are_there_makes_clean_pages_dirty(disk: PosixDisk, root: str) -> None:
    """Why `stored` need not do anything here: the system sees the store and not the bytes."""
    dirty = dirty_pages_of(f"{root}/mapped")
    file = disk.create(f"{root}/mapped")
    file.zero(0, 8 * PAGE)
    if dirty(0, 8) != 8:
        pytest.skip("this file system does not count dirty pages")
    mapping = file.map(8 * PAGE, writable=True)
    mapping.view[: 8 * PAGE] = bytes(8 * PAGE)
    for _ in range(2):  # a page that was never synced from here, then one that was
        file.sync()
        assert dirty(0, 8) == 0
        mapping.stored(0, 8 * PAGE)
        assert dirty(0, 8) == 0
        mapping.view[2 * PAGE : 5 * PAGE] = bytes(3 * PAGE)
        assert (dirty(0, 2), dirty(2, 3), dirty(5, 3)) == (0, 3, 0)


def test_read_only_mapping_takes_no_faults_for_writing(disk: PosixDisk, root: str) -> None:
    file = disk.create(f"{root}/mapped")
    file.allocate(PAGE)
    mapping = file.map(PAGE, writable=False)
    for call in (mapping.populate, mapping.rewrite):
        with pytest.raises(PermissionError):
            call(0, PAGE)
    mapping.sync(0, PAGE)


def test_populate_of_a_sparse_file_on_a_full_disk_is_an_error_and_no_signal(mount_tmpfs: Mount, script: Script) -> None:
    printed = script(
        """
file = disk.create(args[0] + "/sparse")
file.write((4 << 20) - 1, b"x")                 # 4 MiB, of which one page is there
mapping = file.map(4 << 20, writable=True)
try:
    mapping.populate(0, 4 << 20)
except OSError as error:
    print(errno.errorcode[error.errno], error.filename == file.path)
""",
        mount_tmpfs("size=1m"),
    )
    assert printed == ["ENOSPC True"]


def test_allocated_file_on_a_full_disk_takes_every_store(mount_tmpfs: Mount, script: Script) -> None:
    printed = script(
        """
file = disk.create(args[0] + "/allocated")
file.allocate(512 << 10)
try:
    disk.create(args[0] + "/rest").write(0, bytes(1 << 20))
except OSError as error:
    print(errno.errorcode[error.errno])
mapping = file.map(512 << 10, writable=True)
mapping.populate(0, 512 << 10)
mapping.view[:] = b"x" * (512 << 10)
mapping.sync(0, 512 << 10)
print(file.read(0, 1 << 20) == b"x" * (512 << 10))
""",
        mount_tmpfs("size=1m"),
    )
    assert printed == ["ENOSPC", "True"]


def test_other_threads_run_while_a_mapping_is_synced_and_populated(disk: PosixDisk, root: str) -> None:
    file = disk.create(f"{root}/mapped")
    file.allocate(64 * MIB)
    mapping = file.map(64 * MIB, writable=True)

    def populate_and_sync() -> None:
        mapping.populate(0, 64 * MIB)
        mapping.sync(0, 64 * MIB)

    assert progress_beside(populate_and_sync) > 0.2


def test_interrupt_during_a_failing_sync_does_not_hide_the_failure(disk: PosixDisk, root: str) -> None:
    """Python runs signal handlers before it would look at msync's result."""
    file = disk.create(f"{root}/mapped")
    file.allocate(64 * PAGE)
    mapping = file.map(64 * PAGE, writable=True)
    libc = ctypes.CDLL(None)
    address = np.frombuffer(mapping.view, np.uint8).ctypes.data
    try:
        libc.munmap(ctypes.c_void_p(address + PAGE), ctypes.c_size_t(PAGE))  # msync now fails with ENOMEM
        outcomes = [outcome_when_interrupted(lambda: mapping.sync(0, 64 * PAGE)) for _ in range(200)]
    finally:
        fixed, anonymous, private = 0x10, 0x20, 0x2
        libc.mmap(
            ctypes.c_void_p(address + PAGE), ctypes.c_size_t(PAGE), 3, fixed | anonymous | private, -1, ctypes.c_long(0)
        )
    # The interrupt may also come first; if failures could be hidden, nearly all of them would be.
    assert outcomes.count(errno.ENOMEM) > len(outcomes) / 2


def outcome_when_interrupted(call: Callable[[], None]) -> int | str | None:
    """Call something while another thread interrupts the main one; return what came out of it."""
    import _thread

    begun = threading.Event()

    def interrupt() -> None:
        begun.wait()
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    failed: int | str | None = None
    try:
        begun.set()
        call()
    except OSError as error:
        failed = error.errno
    except KeyboardInterrupt:
        failed = "interrupted"
    try:
        thread.join()
        time.thread_time()
    except KeyboardInterrupt:
        thread.join()
    return failed


def dirty_pages_of(path: str) -> Callable[[int, int], int]:
    """Return what counts a file's dirty pages, by the system call cachestat of Linux 6.5."""
    libc = ctypes.CDLL(None, use_errno=True)
    cachestat = 451

    def count(first: int, pages: int) -> int:
        fd = os.open(path, os.O_RDONLY)
        try:
            span = (ctypes.c_uint64 * 2)(first * PAGE, pages * PAGE)
            answer = (ctypes.c_uint64 * 5)()
            if libc.syscall(cachestat, fd, ctypes.byref(span), ctypes.byref(answer), 0) != 0:
                pytest.skip(f"no cachestat here: {os.strerror(ctypes.get_errno())}")
            return int(answer[1])
        finally:
            os.close(fd)

    return count


def test_populate_asks_ahead_for_what_the_disk_must_be_read_for(
    disk: PosixDisk, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since each fault alone would wait for a page of its own: a matrix of 400 MB took six seconds instead of 0.2."""
    size = 40 * MIB + PAGE
    file = disk.create(f"{root}/cold")
    file.allocate(size)
    mapping = file.map(size, writable=True)
    start, length = 3 * PAGE, size - 3 * PAGE
    calls: list[tuple[str, int, int]] = []
    names = {posix_mapping.MADV_WILLNEED: "ask", posix_mapping.MADV_POPULATE_WRITE: "take"}
    base = mapping._address
    advise = posix_mapping._libc().madvise

    class Libc:
        @staticmethod
        def madvise(address: int, size: int, advice: int) -> int:
            calls.append((names[advice], address - base, address - base + size))
            return int(advise(address, size, advice))

    monkeypatch.setattr(posix_mapping, "_libc", lambda: Libc)
    monkeypatch.setattr(posix_mapping, "_sync", None)
    mapping.populate(start, length)
    asked = start
    taken = start
    for what, first, stop in calls:
        assert stop - first <= posix_mapping.POPULATE_STEP_BYTES
        if what == "ask":
            assert first == asked
            asked = stop
        else:
            assert (first, min(taken + posix_mapping.READ_AHEAD_BYTES, size) <= asked) == (taken, True)
            taken = stop
    assert asked == taken == size
