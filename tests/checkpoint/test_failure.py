"""Checkpoints that fail: what is final, what may be tried again, and what is left alone."""

import errno
from typing import Any

import pytest

from mmwal.checkpoint.image import image_numbers
from mmwal.checkpoint.load import load_checkpoint
from mmwal.errors import CheckpointFailedError, WalFullError
from mmwal.testing.simulator import SimulatedDisk
from tests.checkpoint.homes import Home, check_whole


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk()


@pytest.fixture
def home(disk: SimulatedDisk, kernel: Any) -> Home:
    made = Home.create(disk, kernel)
    made.put("a", "b")
    made.checkpoint()
    made.put("a", "c")
    return made


@pytest.mark.parametrize("nth", [1, 2, 3], ids=["matrix", "image", "control"])
def test_failed_sync_ends_checkpointing_with_the_same_cause(home: Home, disk: SimulatedDisk, nth: int) -> None:
    before = dict(home.content)
    fault = disk.fail("sync", nth)
    with pytest.raises(CheckpointFailedError) as first:
        home.checkpoint()
    assert fault.hits == 1
    home.put("d")
    steps = disk.steps
    with pytest.raises(CheckpointFailedError) as second:
        home.checkpoint()
    assert disk.steps == steps, "nothing is tried again"
    assert first.value.__cause__ is second.value.__cause__
    assert isinstance(first.value.__cause__, OSError)
    assert first.value.__cause__.errno == errno.EIO
    assert home.checkpointer.failure is first.value.__cause__
    # Writing goes on, and takes no row that either checkpoint may name.
    taken = {entry.row for id in before if (entry := home.state.get(id))}
    for n in range(200):
        home.put("a", n % 7)
        entry = home.state.get("a")
        assert entry is not None
        assert entry.row not in taken


def test_failed_write_of_the_control_file_is_final(home: Home, disk: SimulatedDisk) -> None:
    disk.fail("control write")
    with pytest.raises(CheckpointFailedError):
        home.checkpoint()
    with pytest.raises(CheckpointFailedError):
        home.checkpoint()


@pytest.mark.parametrize("operation", ["allocate", "write"])
@pytest.mark.parametrize("base", [True, False], ids=["base", "delta"])
def test_full_disk_is_not_final_and_loses_no_change(
    disk: SimulatedDisk, kernel: Any, operation: str, base: bool
) -> None:
    home = Home.create(disk, kernel)
    home.put("a", "b")
    if not base:
        home.checkpoint()
        home.put("a", "c")
        home.remove("b")
    numbers = image_numbers(disk, "/data")
    disk.fail(operation)
    with pytest.raises(WalFullError) as raised:
        home.checkpoint()
    assert raised.value.errno == errno.ENOSPC
    assert image_numbers(disk, "/data") == numbers, "half an image is left"
    home.put("e")
    home.checkpoint()
    loaded = load_checkpoint(disk, "/data")
    assert loaded is not None
    check_whole(kernel, loaded, home.content)


def test_image_that_cannot_be_removed_is_removed_the_next_time(home: Home, disk: SimulatedDisk) -> None:
    disk.create("/data/image-00000000000000ff").close()
    disk.fail("unlink", errno=errno.EBUSY)
    home.checkpoint()
    assert 255 in image_numbers(disk, "/data")
    home.checkpoint()
    assert 255 not in image_numbers(disk, "/data")


def test_checkpoint_interrupted_before_it_is_published_may_be_taken_again(home: Home, kernel: Any) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*arguments: Any) -> None:
        raise Interrupted

    home.checkpointer._encode = interrupt  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        home.checkpoint()
    del home.checkpointer._encode
    home.checkpoint()
    loaded = load_checkpoint(home.disk, home.path)
    assert loaded is not None
    check_whole(kernel, loaded, home.content)
