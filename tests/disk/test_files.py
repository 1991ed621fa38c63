"""Files and directories of the real disk: modes, links, owners, full disks, errors that name their file."""

import errno
import gc
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmwal.disk import posix
from mmwal.disk.posix import PosixDisk
from tests.disk.conftest import Mount, Script

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")
SOMEBODY = 54321


@pytest.fixture(params=[0o000, 0o777], ids=["umask-000", "umask-777"])
def any_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.fixture
def public_root() -> Iterator[str]:
    """A directory that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield path


@pytest.fixture(params=["compiled", "python"])
def zeroing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of writing zeros in turn."""
    if request.param == "python":
        monkeypatch.setattr(posix, "_sync", None)
    elif posix._sync is None:
        pytest.skip("mmwal.disk._sync is not built")


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def descriptors_below(root: str) -> list[int]:
    """List this process's descriptors of files in a directory."""
    links = [(int(link.name), link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [fd for fd, link in links if os.path.realpath(link).startswith(root)]


@pytest.mark.usefixtures("any_umask")
def test_modes_do_not_depend_on_the_umask(disk: PosixDisk, root: str) -> None:
    disk.make_directory(f"{root}/a/b")
    disk.create(f"{root}/a/b/file").close()
    disk.lock(f"{root}/a/b/lock").release()
    assert [mode_of(f"{root}/{path}") for path in ("a", "a/b")] == [0o700, 0o700]
    assert [mode_of(f"{root}/a/b/{name}") for name in ("file", "lock")] == [0o600, 0o600]


def test_planted_link_is_not_followed(disk: PosixDisk, root: str) -> None:
    victim, link = f"{root}/victim", f"{root}/link"
    Path(victim).write_bytes(b"precious")
    os.symlink(victim, link)
    calls = {
        errno.EEXIST: [lambda: disk.create(link)],
        errno.ELOOP: [
            lambda: disk.open(link, writable=False),
            lambda: disk.open(link, writable=True),
            lambda: disk.lock(link),
            lambda: disk.lock_shared(link),
            lambda: disk.has_readers(link),
        ],
    }
    for code, refusals in calls.items():
        for call in refusals:
            with pytest.raises(OSError, match=r"\[Errno ") as caught:
                call()
            assert (caught.value.errno, caught.value.filename) == (code, link)
    assert Path(victim).read_bytes() == b"precious"


def test_link_that_leads_nowhere_takes_its_name(disk: PosixDisk, root: str) -> None:
    os.symlink(f"{root}/nowhere", f"{root}/link")
    assert disk.exists(f"{root}/link")
    with pytest.raises(FileExistsError):
        disk.create(f"{root}/link")
    assert not disk.exists(f"{root}/nowhere")


def test_planted_pipe_is_refused_without_waiting(disk: PosixDisk, root: str) -> None:
    os.mkfifo(f"{root}/pipe")
    for call in (
        lambda: disk.open(f"{root}/pipe", writable=False),
        lambda: disk.open(f"{root}/pipe", writable=True),
        lambda: disk.lock(f"{root}/pipe"),
        lambda: disk.lock_shared(f"{root}/pipe"),
    ):
        with pytest.raises(OSError, match="not a regular file"):
            call()


def test_descriptors_are_not_passed_on_to_other_programs(disk: PosixDisk, root: str) -> None:
    file, lock = disk.create(f"{root}/file"), disk.lock(f"{root}/lock")
    own = descriptors_below(root)
    assert len(own) == 2
    assert not any(os.get_inheritable(fd) for fd in own)
    file.close()
    lock.release()


def test_dropped_file_gives_its_descriptor_back(disk: PosixDisk, root: str) -> None:
    for number in range(10):
        disk.create(f"{root}/{number}").write(0, b"x")
    gc.collect()
    assert descriptors_below(root) == []


def test_parents_are_synced_before_the_next_name_is_made(
    disk: PosixDisk, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, make = os.fsync, os.mkdir

    def recording_sync(fd: int) -> None:
        done.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root))
        sync(fd)

    def recording_make(path: str, mode: int) -> None:
        done.append("make " + os.path.relpath(path, root))
        make(path, mode)

    monkeypatch.setattr(os, "fsync", recording_sync)
    monkeypatch.setattr(os, "mkdir", recording_make)
    disk.make_directory(f"{root}/a/b")
    assert done == ["sync ..", "make a", "sync .", "make a/b", "sync a"]
    done.clear()
    disk.make_directory(f"{root}/a/b")  # its maker may have died before it synced the name
    assert done == ["sync a"]


@needs_root
def test_directory_of_another_user_is_refused_by_names(disk: PosixDisk, root: str) -> None:
    disk.make_directory(f"{root}/theirs")
    os.chown(f"{root}/theirs", SOMEBODY, -1)
    with pytest.raises(PermissionError, match=f"user {SOMEBODY}.* as user {os.geteuid()};") as caught:
        disk.make_directory(f"{root}/theirs")
    assert caught.value.filename == f"{root}/theirs"


@needs_root
def test_directory_of_root_is_taken_if_it_can_be_written_to(public_root: str, script: Script) -> None:
    for name, mode in (("closed", 0o755), ("shared", 0o2775)):
        os.mkdir(f"{public_root}/{name}")
        os.chown(f"{public_root}/{name}", 0, SOMEBODY)
        os.chmod(f"{public_root}/{name}", mode)
    printed = script(
        f"""
os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})
print(disk.make_directory(args[0] + "/shared"))
try:
    disk.make_directory(args[0] + "/closed")
except PermissionError as error:
    print(errno.errorcode[error.errno], error.filename == args[0] + "/closed")
""",
        public_root,
    )
    assert printed == ["False", "EACCES True"]


@needs_root
def test_name_that_may_not_be_looked_up_is_an_error_and_not_absent(public_root: str, script: Script) -> None:
    os.makedirs(f"{public_root}/closed/log")
    os.chmod(f"{public_root}/closed", 0o700)
    printed = script(
        f"""
os.setuid({SOMEBODY})
try:
    disk.exists(args[0] + "/closed/log")
except PermissionError as error:
    print(errno.errorcode[error.errno])
""",
        public_root,
    )
    assert printed == ["EACCES"]


def test_file_system_mounted_for_reading_is_named_as_such(disk: PosixDisk, mount_tmpfs: Mount) -> None:
    point = mount_tmpfs("ro")
    with pytest.raises(OSError, match=r"\[Errno ") as caught:
        disk.make_directory(point)
    assert (caught.value.errno, caught.value.filename) == (errno.EROFS, point)


@pytest.mark.usefixtures("zeroing")
def test_full_disk_is_an_error_that_names_the_file(disk: PosixDisk, mount_tmpfs: Mount) -> None:
    point = mount_tmpfs("size=1m")
    file = disk.create(f"{point}/file")
    for call in (
        lambda: file.allocate(2 << 20),
        lambda: file.zero(0, 2 << 20),
        lambda: file.write(0, bytes(2 << 20)),
    ):
        with pytest.raises(OSError, match=r"\[Errno ") as caught:
            call()
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, file.path)
    assert file.read(0, 10) == bytes(10)


def test_lock_holds_on_a_full_disk(disk: PosixDisk, mount_tmpfs: Mount) -> None:
    point = mount_tmpfs("size=1m")
    with pytest.raises(OSError, match="No space"):
        disk.create(f"{point}/filler").write(0, bytes(2 << 20))
    held = disk.lock(f"{point}/lock")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{point}/lock")
    held.release()


def test_limit_on_file_size_is_an_error_and_no_signal(root: str, script: Script) -> None:
    printed = script(
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
file = disk.create(args[0] + "/file")
for call in (
    lambda: file.allocate(2 << 20),
    lambda: file.zero(0, 2 << 20),
    lambda: file.write(0, bytes(2 << 20)),
):
    try:
        call()
    except OSError as error:
        print(errno.errorcode[error.errno], error.filename == file.path)
print(file.size())
""",
        root,
    )
    assert printed == ["EFBIG True"] * 3 + [str(1 << 20)]


@pytest.mark.usefixtures("zeroing")
@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 4096), (1, 4096), (4095, 2), (100, 70_000)])
def test_zero_clears_to_the_byte_wherever_it_begins(disk: PosixDisk, root: str, offset: int, length: int) -> None:
    file = disk.create(f"{root}/file")
    file.write(0, b"x" * 100_000)
    file.zero(offset, length)
    assert file.read(0, 200_000) == b"x" * offset + bytes(length) + b"x" * (100_000 - offset - length)


def test_allocated_blocks_are_real(disk: PosixDisk, root: str) -> None:
    file = disk.create(f"{root}/file")
    file.allocate(1 << 20)
    assert os.stat(file.path).st_blocks * 512 >= 1 << 20


def test_read_of_a_huge_range_allocates_what_the_file_holds(disk: PosixDisk, root: str) -> None:
    file = disk.create(f"{root}/file")
    file.write(0, b"small")
    assert file.read(0, 1 << 60) == b"small"


def test_windows_is_refused_with_a_clear_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(OSError, match="use Linux"):
        PosixDisk()
