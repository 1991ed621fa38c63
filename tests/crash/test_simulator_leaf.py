"""A leaf is what the crash left, and a glance shows what opening for writing shows."""

import random
from typing import Any

import pytest

from mmwal.testing.explorer import Target
from mmwal.testing.leaf import LeafDisk
from mmwal.testing.simulator import SimulatedDisk, SimulatorError
from mmwal.testing.target_log import LogTarget
from mmwal.testing.target_store import StoreFound, StoreTarget
from tests.conftest import _require_compiled_kernel
from tests.crash.test_simulator import busy


def files(disk: SimulatedDisk) -> dict[str, bytes]:
    read = {}
    for name in disk.list_directory("/d"):
        file = disk.open(f"/d/{name}", writable=False)
        read[name] = file.read(0, file.size() + 1)
        assert len(read[name]) == file.size()
    return read


@pytest.mark.parametrize("seed", range(4))
def test_leaf_has_the_files_clock_and_chance_of_the_image(seed: int) -> None:
    disk = busy(seed)
    for choice in disk.images(random.Random(seed), 60):
        image, leaf = disk.image(choice), LeafDisk.after(disk, choice, disk.contents(choice))
        assert files(leaf) == files(image), choice
        assert leaf.time_ns() >> 30 == image.time_ns() >> 30
        assert leaf.random_bytes(8) == image.random_bytes(8)


@pytest.mark.parametrize("evicted", [False, True])
def test_leaf_has_the_files_that_a_kill_left(evicted: bool) -> None:
    disk = busy(3)
    disk.fail("sync")
    with pytest.raises(OSError, match="injected"):
        disk.open("/d/segment-0", writable=True).sync()
    leaf = LeafDisk.after(disk, "kill", disk.survivors(evicted=evicted))
    assert files(leaf) == files(disk.kill(evicted=evicted))
    assert (files(leaf) == files(disk)) is not evicted


def test_what_is_done_on_a_leaf_changes_no_other_image() -> None:
    disk = busy(1)
    (choice,) = list(disk.images(random.Random(1), 1))
    before = files(disk), files(LeafDisk.after(disk, choice, disk.contents(choice)))
    leaf = LeafDisk.after(disk, choice, disk.contents(choice))
    for name in leaf.list_directory("/d"):
        file = leaf.open(f"/d/{name}", writable=True)
        file.write(0, b"changed" * 1000)
        file.map(4096, writable=True).view[:3] = b"and"
    assert (files(disk), files(LeafDisk.after(disk, choice, disk.contents(choice)))) == before
    assert files(leaf) != before[1]


def test_leaf_is_not_crashed_again() -> None:
    leaf = LeafDisk.after(SimulatedDisk(), "0/0/new", {})
    for crash in (
        lambda: leaf.images(random.Random(1), 1),
        lambda: leaf.contents("0/0/new"),
        lambda: leaf.image("0/0/new"),
        leaf.kill,
        leaf.survivors,
        leaf.digest,
        lambda: leaf.fail("sync"),
    ):
        with pytest.raises(SimulatorError, match="a leaf"):
            crash()


# ---- glance


class Comparison:
    """Looks at a story now and then: the glance at a crash against the real opening of the same one."""

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.rng = random.Random(seed)
        self.story = target.story(self.rng)
        self.compared = 0
        self.shown = 0  # groups or ids, at most

    def run(self, acts: int) -> None:
        disk, model = SimulatedDisk(seed=7, reserve_bytes_max=1 << 18), self.target.model()
        disk.on_step = self.look
        session = self.target.open(disk, self.story)
        for _ in range(acts):
            session.act(self.rng, model)

    def look(self, disk: SimulatedDisk, step: int, label: str) -> None:
        if self.rng.random() < 0.5:
            for choice in disk.images(self.rng, 2):
                glanced = self.target.glance(LeafDisk.after(disk, choice, disk.contents(choice)), self.story)
                opened = self.target.open(disk.image(choice), self.story).found()
                assert (glanced.oldest_lsn, glanced.groups) == (opened.oldest_lsn, opened.groups), (label, choice)
                if isinstance(glanced, StoreFound) and isinstance(opened, StoreFound):
                    assert (glanced.contents, glanced.lsns) == (opened.contents, opened.lsns), (label, choice)
                    self.shown = max(self.shown, len(opened.contents))
                self.shown = max(self.shown, len(opened.groups))
                self.compared += 1


TARGETS = [LogTarget, StoreTarget]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kernel", ["c", "py"])
@pytest.mark.parametrize("target", TARGETS, ids=["log", "store"])
def test_glance_shows_what_opening_shows(target: type[LogTarget | StoreTarget], kernel: Any, seed: int) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    comparison = Comparison(target(kernel), seed)
    comparison.run(30)
    assert comparison.compared > 60
    assert comparison.shown > 3


class Misread(LogTarget):
    """Glances past the last group."""

    def glance(self, disk, story):  # type: ignore[no-untyped-def]
        found = super().glance(disk, story)
        del found.groups[-1:]
        return found


def test_glance_that_differs_is_noticed() -> None:
    with pytest.raises(AssertionError):
        Comparison(Misread("py"), 1).run(25)
