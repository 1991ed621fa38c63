"""Which places are called poor, and that each warning says what to do."""

from pathlib import Path

import pytest

from mmwal.disk import place
from mmwal.disk.place import Mount, mount_of
from mmwal.disk.posix import PosixDisk
from tests.disk.conftest import Mount as MountTmpfs

HERE = Path(__file__).resolve().parent
ROOT = Mount("/", "ext4", ("rw",))


def warnings_with(monkeypatch: pytest.MonkeyPatch, mount: Mount) -> list[str]:
    monkeypatch.setattr(place, "mounts", lambda: [ROOT, mount])
    return place.warnings_for(f"{mount.point}/data")


def test_memory_is_no_place_to_keep_things(disk: PosixDisk, mount_tmpfs: MountTmpfs) -> None:
    point = mount_tmpfs(name="with space")
    [warning] = disk.warnings_for(f"{point}/not yet there")
    assert warning.startswith(f"{point}/not yet there is on tmpfs (mounted at {point})")
    assert warning.endswith("Use a directory on a disk.")


@pytest.mark.parametrize(
    ("mount", "advice"),
    [
        (Mount("/mnt", "nfs4", ("rw",)), "Use a directory on a local disk."),
        (Mount("/mnt", "cifs", ("rw",)), "Use a directory on a local disk."),
        (Mount("/mnt", "fuse.sshfs", ("rw",)), "Use a directory on a local disk."),
        (Mount("/mnt", "overlay", ("rw",)), "Mount a volume and use that."),
        (Mount("/mnt", "ext4", ("rw", "nobarrier")), "Mount it without them."),
    ],
)
def test_poor_file_system_is_named_with_advice(monkeypatch: pytest.MonkeyPatch, mount: Mount, advice: str) -> None:
    [warning] = warnings_with(monkeypatch, mount)
    assert f"/mnt/data is on {mount.kind} (mounted at /mnt)" in warning
    assert warning.endswith(advice)


def test_plain_disk_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings_with(monkeypatch, Mount("/mnt", "ext4", ("rw", "relatime"))) == []
    assert warnings_with(monkeypatch, Mount("/mnt", "xfs", ("rw",))) == []


@pytest.mark.parametrize("path", ["/tmp/data", "/var/tmp/a/b", "/elsewhere/data"])
def test_temporary_directory_is_named_with_advice(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(place, "mounts", lambda: [ROOT])
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    [warning] = place.warnings_for(path)
    assert warning.endswith("Use a directory that is kept.")


def test_name_that_only_begins_like_a_temporary_one_is_not_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "mounts", lambda: [ROOT])
    assert place.warnings_for("/tmpfiles/data") == []


def test_path_belongs_to_its_longest_mount_and_the_latest_of_equals() -> None:
    table = [ROOT, Mount("/data", "xfs", ()), Mount("/data/deep", "tmpfs", ()), Mount("/data", "nfs", ())]
    assert mount_of("/data/x", table) == Mount("/data", "nfs", ())
    assert mount_of("/data/deep/x", table) == Mount("/data/deep", "tmpfs", ())
    assert mount_of("/database", table) == ROOT


def test_file_system_of_a_path_is_that_of_its_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "mounts", lambda: [ROOT, Mount("/data", "xfs", ())])
    assert (place.file_system_of("/data/x"), place.file_system_of("/other")) == ("xfs", "ext4")
    monkeypatch.setattr(place, "mounts", list)
    assert place.file_system_of("/data/x") is None


def test_mounts_of_this_machine_can_be_read() -> None:
    assert mount_of(str(HERE), place.mounts()) is not None
