"""Power fails at every step of checkpoints, and again while what is left is taken up: this checkpoint or the one
before is always whole, never a mix, and every row that it names is there to the last bit.

`CRASH_SEEDS` widens the search; a failing case names seed, step and choice.
"""

import os
import random
from typing import Any

import pytest

import mmwal.checkpoint.checkpoint
import mmwal.state.state
from mmwal.checkpoint.load import load_checkpoint
from mmwal.format.control import DATA_CONTROL, SLOT_OFFSETS
from mmwal.testing.simulator import SimulatedDisk
from tests.checkpoint.homes import START_LSN, Content, Home, check_whole

SEEDS = int(os.environ.get("CRASH_SEEDS", "2"))
IMAGES = 6  # drawn at each step
NESTED_STEPS = 12  # of the work done on an image, each with images of its own
NESTED_IMAGES = 2


@pytest.fixture(autouse=True)
def small_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmwal.checkpoint.checkpoint, "DELTAS_BYTES_LEAST", 0)  # bases and deltas take turns
    monkeypatch.setattr(mmwal.state.state, "_COLLECT_ROWS_LEAST", 1)  # rows are reused as soon as they may be


class Expectation:
    """Which checkpoints may be found: the last that was taken, and the one being taken."""

    def __init__(self, contents: dict[int, Content], least_lsn: int) -> None:
        self.contents = contents
        self.least_lsn = least_lsn

    def of(self, home: Home) -> None:
        """Follows a home's checkpoints."""

        def begins(lsn: int, content: Content) -> None:
            self.contents = {**self.contents, lsn: content}

        home.before_checkpoint = begins


def check_image(image: SimulatedDisk, kernel: Any, expected: Expectation, where: str) -> Home | None:
    """The newest checkpoint and the older one can be loaded, whole; returns what was loaded."""
    loaded = load_checkpoint(image, "/data")
    if loaded is None:
        assert expected.least_lsn < 0, f"{where}: the data is gone"
        return None
    assert not loaded.fell_back, where
    assert all("slots-one-lost" in note for note in loaded.notes), where  # a torn slot is what a crash leaves
    assert expected.least_lsn <= loaded.redo_lsn, f"{where}: checkpoint {loaded.redo_lsn} is an old one"
    check_whole(kernel, loaded, expected.contents[loaded.redo_lsn])
    other = loaded.control.other
    if other is not None and other.redo_lsn in expected.contents:
        file = image.open("/data/control", writable=True)
        whole = file.read(0, 8192)
        file.write(SLOT_OFFSETS[loaded.control.current.index], bytes(DATA_CONTROL.size))
        older = load_checkpoint(image, "/data")
        assert older is not None
        check_whole(kernel, older, expected.contents[older.redo_lsn])
        file.write(0, whole)
    return Home(image, kernel, "/data", loaded)


def work(home: Home, rng: random.Random, checkpoints: int, expected: Expectation) -> None:
    """Changes and checkpoints; what `expected` says is true at every step of it."""
    expected.of(home)
    for _ in range(checkpoints):
        home.change(rng, rng.randrange(1, 8))
        home.disk.observe("changes")
        lsn = home.checkpoint().lsn
        expected.least_lsn = lsn
    home.change(rng, 4)
    home.disk.observe("changes")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_power_cut_at_any_step_leaves_a_whole_checkpoint(kernel: Any, seed: int) -> None:
    expected = Expectation({START_LSN: {}}, -1)
    rng = random.Random(seed)
    examined = 0

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        nonlocal examined
        for choice in [*disk.images(rng, IMAGES), "kill"]:
            where = f"seed {seed}, step {step} ({label}), choice {choice}"
            image = disk.kill() if choice == "kill" else disk.image(choice)
            home = check_image(image, kernel, expected, where)
            examined += 1
            if home is not None and rng.random() < 0.3:
                examined += go_on(image, kernel, home, expected, random.Random(f"{seed} {step} {choice}"), where)

    disk = SimulatedDisk(seed=seed, on_step=look)
    home = Home.create(disk, kernel)
    expected.least_lsn = START_LSN
    # A long history reuses rows; the looks are at its last part.
    disk.on_step = None
    work(home, rng, 3, expected)
    disk.on_step = look
    work(home, rng, 5, expected)
    assert examined > 400


def go_on(image: SimulatedDisk, kernel: Any, home: Home, expected: Expectation, rng: random.Random, where: str) -> int:
    """Takes up what a power cut left and checkpoints again, with power failing on the way; returns images examined."""
    # The newest slot is restated over itself; where that tears, the older one counts again.
    expected = Expectation(expected.contents, min(expected.least_lsn, home.loaded.needed_lsn))
    examined = 0
    looked_at = set(rng.sample(range(1, 40), NESTED_STEPS))

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        nonlocal examined
        if step - first in looked_at:
            for choice in disk.images(rng, NESTED_IMAGES):
                inner = f"{where}, then step {step} ({label}), choice {choice}"
                check_image(disk.image(choice), kernel, expected, inner)
                examined += 1

    first = image.steps
    image.on_step = look
    home.loaded.control.restate()
    expected.least_lsn = home.loaded.redo_lsn
    work(Home(image, kernel, "/data", home.loaded), rng, 2, expected)
    image.on_step = None
    return examined


@pytest.mark.parametrize("what", ["matrix sync", "image-* sync", "control sync"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_failed_sync_and_a_restart_leave_a_whole_checkpoint(kernel: Any, what: str, seed: int) -> None:
    """After a failed sync pages are clean in memory and old on disk; a process that starts then believes memory."""
    rng = random.Random(f"{what} {seed}")
    for evicted in (False, True):
        disk = SimulatedDisk(seed=seed)
        home = Home.create(disk, kernel)
        expected = Expectation({START_LSN: {}}, START_LSN)
        work(home, rng, 3, expected)
        fault = disk.fail("sync", {"matrix sync": 1, "image-* sync": 2, "control sync": 3}[what])
        with pytest.raises(mmwal.checkpoint.checkpoint.CheckpointFailedError):
            home.checkpoint()
        assert fault.hits == 1
        again = disk.kill(evicted=evicted)
        found = check_image(again, kernel, expected, f"{what}, evicted {evicted}")
        assert found is not None
        go_on(again, kernel, found, expected, rng, f"{what}, evicted {evicted}")
        for choice in disk.images(rng, 20):
            check_image(disk.image(choice), kernel, expected, f"{what}, {choice}")


def test_every_kind_of_step_of_a_checkpoint_was_crashed_at(kernel: Any) -> None:
    disk = SimulatedDisk(seed=1)
    home = Home.create(disk, kernel)
    work(home, random.Random(1), 12, Expectation({START_LSN: {}}, START_LSN))
    labels = {" ".join(label.split()) for label in disk.labels}
    for name in ("matrix sync", "control sync", "control write"):
        assert name in labels, labels
    for operation in ("create", "allocate", "write", "sync", "unlink"):
        assert any("image" in label and operation in label for label in labels), (operation, labels)
