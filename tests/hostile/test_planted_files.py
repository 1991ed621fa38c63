"""What somebody put in a file's place on the real disk: links, pipes, directories, devices; and modes and owners."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.errors import OpenError
from tests.disk.conftest import environment

pytestmark = [
    pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="what is opened and mapped is asked of Linux"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices, change owners, become others")
SOMEBODY = 54321
SEGMENT = "wal/segment-0000000000000000.wal"
FILES = (SEGMENT, "wal/control", "wal/lock", "data/control", "data/matrix", "data/image-0000000000000001")
NOT_READ = {"wal/lock"}  # a reader needs no writer's lock


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed, with a checkpoint."""
    root = tmp_path_factory.mktemp("honest") / "store"
    with mmwal.open(root, dimension=4, segment_size=1 << 16) as store:
        store.insert_many(["a", "b", 3], np.ones((3, 4), np.float32))
        store.checkpoint()
    return root


@pytest.fixture
def root(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Fails a test that waits, as for somebody at the other end of a pipe."""

    def fail(*_: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def content_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refused(root: Path, name: str) -> None:
    """Opens a store for writing and for reading; both must be refused, naming the file."""
    for read_only in (False, True):
        if read_only and name in NOT_READ:
            continue
        with pytest.raises((OpenError, OSError)) as caught:
            mmwal.open(root, read_only=read_only)
        assert name in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_link_in_a_files_place_is_refused_and_not_written_through(root: Path, tmp_path: Path, name: str) -> None:
    """Its target holds what the file held: whoever followed it would find all in order."""
    target = tmp_path / "victim"
    (root / name).rename(target)
    before = content_of(tmp_path)
    (root / name).symlink_to(target)
    refused(root, name)
    (root / name).unlink()
    after = content_of(tmp_path)
    after.pop("store/wal/lock", None)
    before.pop("store/wal/lock", None)
    assert after == before


@pytest.mark.parametrize("name", ["wal/spare-0123456789abcdef.wal", "wal/control.tmp", "data/control.tmp"])
def test_link_under_a_name_to_be_reused_is_not_written_through(root: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "victim"
    target.write_bytes(bytes(1 << 16))
    (root / name).symlink_to(target)
    with mmwal.open(root) as store:
        store.insert_many([f"new-{i}" for i in range(2000)], np.ones((2000, 4), np.float32))  # several segments
        store.checkpoint()
    assert target.read_bytes() == bytes(1 << 16)


@pytest.mark.parametrize("directory", ["wal", "data"])
def test_link_waiting_for_a_new_store_is_not_written_through(tmp_path: Path, directory: str) -> None:
    target = tmp_path / "victim"
    target.write_bytes(b"precious")
    (tmp_path / "store" / directory).mkdir(parents=True, mode=0o700)
    (tmp_path / "store" / directory / "control.tmp").symlink_to(target)
    with mmwal.open(tmp_path / "store", dimension=4, segment_size=1 << 16) as store:
        store.insert("a", np.ones(4, np.float32))
    assert target.read_bytes() == b"precious"


def make_directory(path: Path) -> None:
    path.mkdir()


def make_device(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, make_directory, pytest.param(make_device, marks=needs_root)],
    ids=["pipe", "directory", "device"],
)
def test_what_is_no_file_in_a_files_place_is_refused_at_once(
    root: Path, name: str, make: Callable[[Path], None]
) -> None:
    (root / name).unlink()
    make(root / name)
    refused(root, name)


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=["umask-000", "umask-077"])
def test_every_file_and_directory_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with mmwal.open(tmp_path / "a" / "store", dimension=64, segment_size=1 << 16, max_wal_size=1 << 20) as store:
            for start in range(0, 1200, 200):  # rotates, recycles
                ids = [f"id-{i}" for i in range(start, start + 200)]
                store.insert_many(ids, np.ones((200, 64), np.float32))
                store.checkpoint()
        with mmwal.open(tmp_path / "a" / "store", read_only=True) as store:
            assert len(store) == 1200
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (tmp_path / "a").rglob("*")}
    assert len(modes) > 6
    wrong = {path.name: oct(mode) for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)}
    assert wrong == {}


@needs_root
@pytest.mark.parametrize("part", ["wal", "data"])
def test_directory_of_somebody_else_is_refused(root: Path, part: str) -> None:
    os.chown(root / part, SOMEBODY, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {SOMEBODY}"):
        mmwal.open(root)


@needs_root
def test_somebody_else_can_neither_write_nor_read(honest: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copytree(honest, f"{name}/store")
        os.chmod(f"{name}/store", 0o755)
        child = os.fork()
        if child == 0:
            answers = []
            os.setgroups([])
            os.setuid(SOMEBODY)
            for read_only in (False, True):
                try:
                    mmwal.open(f"{name}/store", read_only=read_only)
                    answers.append(False)
                except (PermissionError, OpenError):
                    answers.append(True)
                except BaseException:  # noqa: BLE001 (a child tells by its exit code)
                    answers.append(False)
            os._exit(0 if all(answers) else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "name",
    ["a\nb", "x" * 255, b"\xff\xfe.wal", "segment-0.wal", "segment-000000000000000Z.wal", "image-1", "..wal", "-rf"],
)
def test_name_that_is_none_of_ours_is_ignored_and_kept(root: Path, name: Any) -> None:
    for part in ("wal", "data"):
        with open(os.path.join(os.fsencode(root / part), os.fsencode(name)), "wb") as file:
            file.write(b"theirs")
    with mmwal.open(root) as store:
        store.insert("new", np.ones(4, np.float32))
        store.checkpoint()
        assert len(store) == 4
    with mmwal.open(root, read_only=True) as store:
        assert len(store) == 4
    for part in ("wal", "data"):
        with open(os.path.join(os.fsencode(root / part), os.fsencode(name)), "rb") as file:
            assert file.read() == b"theirs"


def test_image_with_the_greatest_number_does_not_end_checkpoints(root: Path) -> None:
    planted = root / "data" / "image-ffffffffffffffff"
    with mmwal.open(root) as store:
        planted.write_bytes(b"not an image")
        store.insert_many([f"id-{i}" for i in range(4000)], np.ones((4000, 4), np.float32))  # more than a delta takes
        store.checkpoint()
    with mmwal.open(root, read_only=True) as store:
        assert len(store) == 4003
    images = sorted(path.name for path in (root / "data").glob("image-*") if path != planted)
    assert images[-1] == "image-0000000000000002"


CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
import mmwal
wal = mmwal.WalManager.new_from_path(sys.argv[1])
entries = list(wal.replay())
mapped = [line.split() for line in open("/proc/self/maps") if ".wal" in line]
assert mapped, "nothing is mapped"
assert all(words[1] in ("r--s", "r--p") for words in mapped), mapped
arrays = [vector for entry in entries for vector in (getattr(entry, "vectors", None),) if vector is not None]
assert arrays
for array in arrays:
    try:
        array[0] = 1
    except ValueError:
        continue
    raise SystemExit("a vector of the log was written to")
"""


def test_reader_maps_for_reading_and_its_arrays_take_no_stores(root: Path) -> None:
    before = content_of(root)
    command = [sys.executable, "-c", CHILD, str(root)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert content_of(root) == before
