"""The model of the simulated disk: what each operation may leave behind, all outcomes of it and no others.

The cases are tiny, so that every image can be drawn: `outcomes` asserts that the budget was not reached.
"""

import errno
import gc
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmwal.testing.simulator import SimulatedDisk, SimulatorError

PAGE = 4096
EVERYTHING = 4000


@pytest.fixture
def disk() -> SimulatedDisk:
    disk = SimulatedDisk(seed=7)
    disk.make_directory("/d")
    return disk


def durable_file(disk: SimulatedDisk, name: str = "/d/file", content: bytes = bytes(PAGE)) -> Any:
    file = disk.create(name)
    file.write(0, content)
    file.sync()
    disk.sync_directory("/d")
    return file


def outcomes(disk: SimulatedDisk, see: Callable[[SimulatedDisk], Any], names: str = "both") -> set[Any]:
    """What `see` returns over every image."""
    choices = list(disk.images(random.Random(1), EVERYTHING, names=names))
    assert len(choices) < EVERYTHING
    return {see(disk.image(choice)) for choice in choices}


def content(disk: SimulatedDisk, path: str = "/d/file") -> bytes | None:
    return disk.open(path, writable=False).read(0, 1 << 20) if disk.exists(path) else None


def words(*offsets: int) -> Callable[[SimulatedDisk], Any]:
    """Sees the 8-byte words at some offsets of the file."""
    return lambda disk: tuple(struct.unpack_from("<Q", content(disk) or b"", offset)[0] for offset in offsets)


def listing(disk: SimulatedDisk) -> tuple[str, ...]:
    return tuple(disk.list_directory("/d"))


# ---- content


@pytest.mark.parametrize("offsets", [(0, 8), (0, 504), (0, 512), (0, 4088), (0, 4096), (3584, 8192)])
def test_unsynced_words_survive_independently_of_each_other(disk: SimulatedDisk, offsets: tuple[int, int]) -> None:
    file = durable_file(disk, content=bytes(3 * PAGE))
    for offset in offsets:
        file.write(offset, struct.pack("<Q", 5))
    assert outcomes(disk, words(*offsets)) == {(0, 0), (0, 5), (5, 0), (5, 5)}


def test_word_is_never_torn(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    file.write(16, b"\xff" * 8)
    assert outcomes(disk, words(16)) == {(0,), (2**64 - 1,)}


def test_any_content_since_the_last_sync_may_survive(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    for value in (1, 2, 3):
        file.write(0, struct.pack("<Q", value))
    assert outcomes(disk, words(0)) == {(0,), (1,), (2,), (3,)}


def test_words_of_one_page_survive_in_different_versions(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    for value in (1, 2):
        file.write(0, struct.pack("<QQ", value, value))
    assert outcomes(disk, words(0, 8)) == {(a, b) for a in range(3) for b in range(3)}


def test_content_before_the_last_sync_never_comes_back(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    file.write(0, struct.pack("<Q", 1))
    file.sync()
    file.write(0, struct.pack("<Q", 2))
    assert outcomes(disk, words(0)) == {(1,), (2,)}


def test_sync_in_flight_counts_as_not_done() -> None:
    seen = {}

    def look(disk: SimulatedDisk, step: int, label: str) -> None:
        if disk.exists("/d/file"):
            seen[label] = outcomes(disk, content)

    disk = SimulatedDisk(on_step=look)
    disk.make_directory("/d")
    durable_file(disk, content=b"new.").write(0, b"later")
    disk.observe("end")
    assert seen["file sync"] == {None, b"", b"\0\0\0\0", b"new."}
    assert seen["d sync_directory"] == {None, b"new."}
    assert seen["file write"] == {b"new."}
    assert seen["end"] == {b"new.", b"late", b"later", b"new.\0"}


def test_synced_content_survives_whole(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    file.write(0, b"x" * PAGE)
    file.sync()
    assert outcomes(disk, content) == {b"x" * PAGE}


def test_preallocated_space_never_written_reads_as_zeros(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"")
    file.allocate(3 * PAGE)
    file.sync()
    assert outcomes(disk, content) == {bytes(3 * PAGE)}
    file.write(PAGE, b"\x01" * 8)
    assert outcomes(disk, words(0, PAGE)) == {(0, 0), (0, 0x0101010101010101)}


# ---- size


def test_unsynced_size_is_the_durable_or_the_current_one(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"")
    file.allocate(1000)
    file.allocate(6000)
    file.allocate(3 * PAGE)
    assert outcomes(disk, content) == {b"", bytes(3 * PAGE)}


def test_size_and_content_survive_independently(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"12345678abcd")
    file.write(0, b"ABCDEFGHIJKLMNOP")
    first, second = {b"12345678", b"ABCDEFGH"}, {b"abcd\0\0\0\0", b"IJKLMNOP"}
    whole = {a + b for a in first for b in second}
    assert outcomes(disk, content) == whole | {text[:12] for text in whole}


def test_file_cut_to_its_durable_size_has_nothing_behind_its_end(disk: SimulatedDisk) -> None:
    durable_file(disk, content=b"12345678").write(0, b"abcdefghIJKL")
    for choice in disk.images(random.Random(1), EVERYTHING):
        image = disk.image(choice)
        file = image.open("/d/file", writable=True)
        if file.size() == 8:
            file.allocate(16)
            assert file.read(8, 8) == bytes(8)


# ---- names


def test_synced_file_may_have_no_name(disk: SimulatedDisk) -> None:
    file = disk.create("/d/file")
    file.write(0, b"text")
    file.sync()
    assert outcomes(disk, content) == {None, b"text"}


def test_name_may_be_durable_before_any_content(disk: SimulatedDisk) -> None:
    file = disk.create("/d/file")
    disk.sync_directory("/d")
    file.write(0, b"12345678" * 2)
    assert outcomes(disk, content) == {b"", bytes(16), bytes(8) + b"12345678", b"12345678" + bytes(8), b"12345678" * 2}


def test_ordered_names_are_lost_from_the_end(disk: SimulatedDisk) -> None:
    for name in "abc":
        disk.create(f"/d/{name}")
    assert outcomes(disk, listing, "ordered") == {(), ("a",), ("a", "b"), ("a", "b", "c")}


def test_weak_names_are_lost_in_any_combination(disk: SimulatedDisk) -> None:
    for name in "abc":
        disk.create(f"/d/{name}")
    disk.sync_directory("/d")
    for name in "abc":
        disk.unlink(f"/d/{name}")
    assert len(outcomes(disk, listing, "weak")) == 8
    assert outcomes(disk, listing) == outcomes(disk, listing, "weak")


@pytest.mark.parametrize("names", ["ordered", "weak"])
def test_rename_is_atomic(disk: SimulatedDisk, names: str) -> None:
    durable_file(disk, "/d/old", b"content")
    disk.rename("/d/old", "/d/new")
    assert outcomes(disk, listing, names) == {("old",), ("new",)}


@pytest.mark.parametrize("names", ["ordered", "weak"])
def test_rename_over_a_file_leaves_one_or_the_other(disk: SimulatedDisk, names: str) -> None:
    durable_file(disk, content=b"first")
    durable_file(disk, "/d/next", b"second")
    disk.rename("/d/next", "/d/file")
    assert outcomes(disk, lambda image: (listing(image), content(image)), names) == {
        (("file", "next"), b"first"),
        (("file",), b"second"),
    }


def test_rename_before_sync_may_leave_an_empty_file(disk: SimulatedDisk) -> None:
    durable_file(disk, content=b"first")
    disk.create("/d/next").write(0, b"second")
    disk.rename("/d/next", "/d/file")
    disk.sync_directory("/d")
    assert outcomes(disk, content) == {b"", bytes(6), b"second"}


def test_rename_whose_forerunner_was_lost_never_moves_another_file(disk: SimulatedDisk) -> None:
    """The temporary name is used twice: the second rename alone must not publish the first file."""
    durable_file(disk, "/d/file", b"0")
    durable_file(disk, "/d/tmp", b"1")
    disk.rename("/d/tmp", "/d/file")
    second = disk.create("/d/tmp")
    second.write(0, b"2")
    second.sync()
    disk.rename("/d/tmp", "/d/file")
    seen = outcomes(disk, lambda image: (content(image), content(image, "/d/tmp")), "weak")
    assert seen == {(b"0", b"1"), (b"1", None), (b"1", b"2"), (b"2", None)}


@pytest.mark.parametrize("later", ["rename", "unlink"])
def test_operation_whose_forerunner_was_lost_never_acts_on_another_file(disk: SimulatedDisk, later: str) -> None:
    durable_file(disk, "/d/file", b"0")
    durable_file(disk, "/d/tmp", b"1")
    disk.rename("/d/tmp", "/d/file")
    if later == "rename":
        disk.rename("/d/file", "/d/kept")
    else:
        disk.unlink("/d/file")
    seen = outcomes(disk, lambda image: tuple(content(image, f"/d/{name}") for name in ("tmp", "file", "kept")), "weak")
    assert seen == {(b"1", b"0", None), (None, b"1", None), (None, None, b"1" if later == "rename" else None)}


def test_lost_creation_takes_its_rename_with_it(disk: SimulatedDisk) -> None:
    disk.create("/d/tmp")
    disk.rename("/d/tmp", "/d/file")
    assert outcomes(disk, listing, "weak") == {(), ("tmp",), ("file",)}


def test_sync_of_one_directory_does_nothing_for_another(disk: SimulatedDisk) -> None:
    disk.make_directory("/e")
    disk.create("/d/a")
    disk.create("/e/b")
    disk.sync_directory("/e")
    assert outcomes(disk, lambda image: (image.exists("/d/a"), image.exists("/e/b"))) == {(False, True), (True, True)}


def test_made_directory_is_durable() -> None:
    seen = []
    disk = SimulatedDisk(on_step=lambda disk, step, label: seen.append(outcomes(disk, lambda d: d.exists("/x/y"))))
    assert disk.make_directory("/x/y")
    assert not disk.make_directory("/x/y")
    disk.observe()
    assert seen == [{False}, {False}, {True}]


def test_unlinked_file_stays_usable_and_may_come_back(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"text")
    disk.unlink("/d/file")
    assert file.read(0, 4) == b"text"
    assert outcomes(disk, content) == {None, b"text"}


def test_rename_across_directories_is_refused(disk: SimulatedDisk) -> None:
    durable_file(disk)
    disk.make_directory("/e")
    with pytest.raises(OSError, match=r"simulated|injected|different disks") as caught:
        disk.rename("/d/file", "/e/file")
    assert caught.value.errno == errno.EXDEV


# ---- mappings


def test_store_through_a_mapping_is_seen_and_may_be_lost(disk: SimulatedDisk) -> None:
    mapping = durable_file(disk).map(PAGE, writable=True)
    np.frombuffer(mapping.view, np.uint64)[1] = 9
    assert words(8)(disk) == (9,)
    assert outcomes(disk, words(8)) == {(0,), (9,)}


def test_stores_between_two_looks_are_one_version(disk: SimulatedDisk) -> None:
    mapping = durable_file(disk).map(PAGE, writable=True)
    array = np.frombuffer(mapping.view, np.uint64)
    array[0] = 1
    array[0] = 2
    disk.observe()
    array[0] = 3
    assert outcomes(disk, words(0)) == {(0,), (2,), (3,)}


def test_view_that_outlives_its_mapping_is_watched(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    array = np.frombuffer(file.map(PAGE, writable=True).view, np.uint64)
    file.close()
    gc.collect()
    array[0] = 1
    assert outcomes(disk, words(0)) == {(0,), (1,)}
    array[0] = 2
    del array
    assert outcomes(disk, words(0)) == {(0,), (1,), (2,)}


def test_mapping_and_file_show_the_same_bytes(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    one, two = file.map(PAGE, writable=True), file.map(PAGE, writable=False)
    file.write(0, b"written")
    assert bytes(one.view[:7]) == bytes(two.view[:7]) == b"written"
    one.view[:6] = b"stored"
    assert bytes(two.view[:7]) == file.read(0, 7) == b"storedn"
    with pytest.raises(TypeError):
        two.view[0] = 1


def test_range_sync_settles_the_pages_of_its_range_only(disk: SimulatedDisk) -> None:
    mapping = durable_file(disk, content=bytes(3 * PAGE)).map(3 * PAGE, writable=True)
    array = np.frombuffer(mapping.view, np.uint64)
    array[[0, 512, 1024]] = 1
    mapping.sync(PAGE + 100, 8)
    assert outcomes(disk, words(0, PAGE, 2 * PAGE)) == {(a, 1, c) for a in (0, 1) for c in (0, 1)}
    mapping.sync(0, PAGE + 1)
    assert outcomes(disk, words(0, PAGE, 2 * PAGE)) == {(1, 1, 0), (1, 1, 1)}


def test_range_sync_makes_the_size_durable_but_not_the_name(disk: SimulatedDisk) -> None:
    file = disk.create("/d/file")
    file.allocate(2 * PAGE)
    file.map(2 * PAGE, writable=True).sync(0, PAGE)
    assert outcomes(disk, content) == {None, bytes(2 * PAGE)}


def test_growth_shows_under_a_mapping_at_the_same_address() -> None:
    disk = SimulatedDisk(reserve_bytes_max=16 * PAGE)
    disk.make_directory("/d")
    file = durable_file(disk, content=b"")
    file.allocate(PAGE)
    mapping = file.map(1 << 40, writable=True)
    array = np.frombuffer(mapping.view, np.uint8)
    assert len(array) == 16 * PAGE
    assert array.ctypes.data % PAGE == 0
    file.allocate(3 * PAGE)
    array[2 * PAGE] = 1
    assert file.read(2 * PAGE, 1) == b"\x01"
    file.write(3 * PAGE, b"more")
    assert array[3 * PAGE] == ord("m")
    with pytest.raises(SimulatorError, match="reserve"):
        file.allocate(17 * PAGE)


@pytest.mark.parametrize("offset", [5000, 2 * PAGE + 1])
def test_store_beyond_the_end_of_the_file_is_reported(disk: SimulatedDisk, offset: int) -> None:
    file = durable_file(disk, content=bytes(4200))
    mapping = file.map(16 * PAGE, writable=True)
    mapping.view[offset] = 1
    with pytest.raises(SimulatorError, match="beyond the end"):
        file.allocate(8 * PAGE)


def test_unmapped_file_may_grow_beyond_its_old_mapping(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    file.map(PAGE, writable=True).view[0] = 1
    file.allocate(100 * PAGE)
    assert file.read(0, 1) == b"\x01"
    assert len(file.map(100 * PAGE, writable=True).view) == 100 * PAGE


# ---- failed syncs


def lose(disk: SimulatedDisk) -> Any:
    """A mapped file whose first word was stored, and whose sync failed."""
    mapping = durable_file(disk).map(PAGE, writable=True)
    np.frombuffer(mapping.view, np.uint64)[0] = 1
    disk.fail("sync")
    with pytest.raises(OSError, match=r"simulated|injected|different disks") as caught:
        mapping.sync(0, PAGE)
    assert caught.value.errno == errno.EIO
    return mapping


def test_sync_after_a_failed_one_succeeds_and_writes_nothing(disk: SimulatedDisk) -> None:
    mapping = lose(disk)
    mapping.sync(0, PAGE)
    disk.open("/d/file", writable=True).sync()
    assert words(0)(disk) == (1,)
    assert outcomes(disk, words(0)) == {(0,), (1,)}


def test_lost_page_is_written_once_it_is_dirty_again(disk: SimulatedDisk) -> None:
    for make_dirty in (
        lambda mapping: mapping.rewrite(100, 1),
        lambda mapping: disk.open("/d/file", writable=True).write(0, b"\x01"),
        lambda mapping: mapping.view.__setitem__(8, 1),
    ):
        mapping = lose(disk)
        make_dirty(mapping)
        assert outcomes(disk, words(0)) == {(0,), (1,)}
        mapping.sync(0, PAGE)
        assert outcomes(disk, words(0)) == {(1,)}
        disk.unlink("/d/file")


def test_populate_does_not_rescue_a_lost_page(disk: SimulatedDisk) -> None:
    mapping = lose(disk)
    mapping.populate(0, PAGE)
    mapping.sync(0, PAGE)
    assert outcomes(disk, words(0)) == {(0,), (1,)}


def test_process_started_after_a_failed_sync_reads_what_the_disk_has_not(disk: SimulatedDisk) -> None:
    lose(disk)
    restarted = disk.kill()
    assert words(0)(restarted) == (1,)
    mapping = restarted.open("/d/file", writable=True).map(PAGE, writable=True)
    mapping.sync(0, PAGE)
    assert outcomes(restarted, words(0)) == {(0,), (1,)}
    mapping.rewrite(0, PAGE)
    mapping.sync(0, PAGE)
    assert outcomes(restarted, words(0)) == {(1,)}
    assert outcomes(disk, words(0)) == {(0,), (1,)}


def test_lost_page_that_left_the_cache_shows_the_old_content(disk: SimulatedDisk) -> None:
    lose(disk)
    evicted = disk.kill(evicted=True)
    assert words(0)(evicted) == (0,)
    assert outcomes(evicted, words(0)) == {(0,)}


def test_failed_sync_of_a_file_settles_neither_content_nor_size(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"")
    file.write(0, b"12345678")
    disk.fail("file sync", errno=errno.EROFS)
    with pytest.raises(OSError, match="EROFS"):
        file.sync()
    assert outcomes(disk, content) == {b"", bytes(8), b"12345678"}
    file.sync()
    assert outcomes(disk, content) == {bytes(8), b"12345678"}


# ---- kill -9


def test_kill_keeps_everything_and_makes_nothing_durable(disk: SimulatedDisk) -> None:
    mapping = durable_file(disk).map(PAGE, writable=True)
    mapping.view[0] = 1
    disk.create("/d/second")
    killed = disk.kill()
    assert killed.digest() == disk.digest()
    assert outcomes(killed, lambda image: (words(0)(image), listing(image))) == {
        ((value,), names) for value in (0, 1) for names in (("file",), ("file", "second"))
    }


def test_disks_do_not_share_what_happens_later(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    killed, image = disk.kill(), disk.image(next(disk.images(random.Random(1), 1)))
    before = disk.digest()
    for other in (killed, image):
        other.open("/d/file", writable=True).write(0, b"other")
        other.create("/d/more")
        other.sync_directory("/d")
    assert disk.digest() == before
    file.write(0, b"mine")
    assert content(killed) == content(image) == b"other" + bytes(PAGE - 5)


# ---- choices


def busy(seed: int, **options: Any) -> SimulatedDisk:
    """A disk in the middle of things: several files, sizes, versions and names unsettled."""
    rng, disk = random.Random(seed), SimulatedDisk(seed=seed, **options)
    disk.make_directory("/d")
    for index in range(3):
        file = durable_file(disk, f"/d/segment-{index}", rng.randbytes(16384))
        mapping = file.map(16384, writable=True)
        for _ in range(rng.randrange(4)):
            start = rng.randrange(16000)
            mapping.view[start : start + 300] = rng.randbytes(300)
            disk.observe()
        if index == 1:
            mapping.sync(0, 8192)
    disk.create("/d/control.tmp").write(0, rng.randbytes(600))
    disk.rename("/d/control.tmp", "/d/control")
    disk.create("/d/segment-3").allocate(16384)
    return disk


@pytest.mark.parametrize("seed", range(6))
def test_every_image_holds_only_words_that_were_there_since_the_last_sync(seed: int) -> None:
    disk = busy(seed)
    allowed: dict[str, list[np.ndarray]] = {}
    for path, inode in disk._names.entries.items():
        for page, now in enumerate(inode.pages):
            versions = inode.history[page].contents if page in inode.history else [now]
            allowed.setdefault(path, []).append(np.frombuffer(b"".join(versions), np.uint64).reshape(-1, 512))
    for choice in disk.images(random.Random(seed), 400):
        image = disk.image(choice)
        for path, inode in image._names.entries.items():
            for page, versions in zip(inode.pages, allowed.get(path, []), strict=False):
                assert (np.frombuffer(page, np.uint64) == versions).any(axis=0).all(), choice


def test_images_fill_the_budget_and_differ() -> None:
    kinds: set[str] = set()
    for seed in range(4):
        disk = busy(seed)
        choices = list(disk.images(random.Random(seed), 300))
        assert len(choices) == 300
        assert len({disk.image(choice).digest() for choice in choices}) > 200
        kinds.update(choice.split("/")[2].split(".")[0] for choice in choices)
    assert kinds == {"new", "old", "all", "but", "one", "fwd", "rev", "rnd"}


def test_all_images_are_drawn_where_they_fit_and_no_image_twice(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=bytes(2 * PAGE))
    for offset in (0, 8, 512, PAGE):
        file.write(offset, b"\x01")
    disk.create("/d/new")
    choices = list(disk.images(random.Random(1), 32))
    assert len(choices) == len({disk.image(choice).digest() for choice in choices}) == 2**4 * 2
    some = list(disk.images(random.Random(1), 20))
    assert len(set(some)) == 20
    assert set(some) < set(choices)


def test_settled_disk_has_one_image(disk: SimulatedDisk) -> None:
    durable_file(disk)
    (choice,) = disk.images(random.Random(1), 50)
    assert disk.image(choice).digest() == disk.digest()


def test_prefixes_of_write_back_follow_the_order_of_the_stores(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=bytes(2 * PAGE))
    for value, offset in enumerate((PAGE, 0, 8, PAGE), 1):
        file.write(offset, struct.pack("<Q", value))

    def see(kind: str, count: int) -> list[Any]:
        return [words(PAGE, 0, 8)(disk.image(f"0/0/{kind}.8.{k}")) for k in range(count)]

    assert see("fwd", 5) == [(0, 0, 0), (1, 0, 0), (1, 2, 0), (1, 2, 3), (4, 2, 3)]
    assert see("rev", 5) == [(0, 0, 0), (4, 0, 0), (4, 0, 3), (4, 2, 3), (4, 2, 3)]
    assert see("but", 3) == [(4, 0, 3), (4, 2, 0), (0, 2, 3)]
    assert see("one", 3) == [(0, 2, 0), (0, 0, 3), (4, 0, 0)]


def test_one_line_replays_an_image() -> None:
    for choice in busy(3).images(random.Random(5), 100):
        assert busy(3).image(choice).digest() == busy(3).image(choice).digest()


HISTORY = """
import random
from tests.crash.test_simulator import busy
disk = busy(4)
for choice in disk.images(random.Random(1), 40):
    image = disk.image(choice)
    print(choice, image.digest(), image.random_bytes(4).hex(), image.time_ns())
"""


def test_another_process_meets_the_same_images() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", HISTORY],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0].splitlines()) == 40


def test_lives_of_a_disk_draw_different_random_bytes(disk: SimulatedDisk) -> None:
    lives = [disk, disk.kill(), disk.image("0/0/new"), disk.image("0/0/old"), disk.kill().kill()]
    assert len({life.random_bytes(8) for life in lives}) == len(lives)


# ---- steps and faults


def test_steps_are_numbered_and_labelled_by_file_and_operation() -> None:
    steps = []
    disk = SimulatedDisk(on_step=lambda disk, step, label: steps.append((step, label)))
    disk.make_directory("/wal")
    file = disk.create("/wal/segment-00000000000000a3")
    file.allocate(PAGE)
    file.map(PAGE, writable=True).sync(0, PAGE)
    file.read(0, 1)
    disk.create("/wal/control.tmp")
    disk.rename("/wal/control.tmp", "/wal/control2")
    disk.create("/wal/00000000000000b0")
    disk.observe("publish")
    assert steps == list(
        enumerate(
            ["wal make_directory", "segment create", "segment allocate", "segment sync", "control.tmp create",
             "control.tmp rename", "file create", "publish"], 1
        )
    )  # fmt: skip
    assert list(disk.labels) == [label for _, label in steps]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("sync", errno.EIO), ("sync_directory", errno.EIO), ("allocate", errno.ENOSPC), ("zero", errno.ENOSPC),
        ("write", errno.ENOSPC), ("create", errno.ENOSPC), ("rename", errno.ENOSPC), ("map", errno.ENOMEM),
        ("open", errno.EMFILE), ("read", errno.EIO), ("populate", errno.ENOSPC), ("unlink", errno.EIO),
        ("lock", errno.ENOLCK), ("list_directory", errno.EIO), ("make_directory", errno.ENOSPC),
    ],
)  # fmt: skip
def test_ordered_fault_strikes_its_operation(disk: SimulatedDisk, operation: str, expected: int) -> None:
    durable_file(disk)
    fault = disk.fail(operation)
    with pytest.raises(OSError, match=r"simulated|injected|different disks") as caught:
        everything(disk)
    assert (caught.value.errno, fault.hits) == (expected, 1)


def everything(disk: SimulatedDisk) -> None:
    """Uses every operation that can fail."""
    disk.make_directory("/e")
    file = disk.create("/e/one")
    file.write(0, b"text")
    file.allocate(PAGE)
    file.zero(0, PAGE)
    file.sync()
    file.map(PAGE, writable=True).populate(0, PAGE)
    disk.rename("/e/one", "/e/two")
    disk.sync_directory("/e")
    disk.open("/e/two", writable=False).read(0, 1)
    disk.list_directory("/e")
    disk.lock("/e/lock").release()
    disk.lock_shared("/e/lock").release()
    disk.unlink("/e/two")


def test_sweep_meets_every_call_once_and_ends() -> None:
    failed = []
    for nth in range(1, 100):
        disk = SimulatedDisk()
        fault = disk.fail("any", nth)
        try:
            everything(disk)
        except OSError as error:
            failed.append(error.errno)
        if not fault.hits:
            break
    assert len(failed) == nth - 1 == disk.calls == 16


def test_fault_for_ever_goes_on_and_a_later_call_is_counted_from_the_order() -> None:
    disk = SimulatedDisk()
    disk.make_directory("/d")
    disk.fail("step", 2, errno.EROFS, forever=True)
    disk.create("/d/a")
    for _ in range(3):
        with pytest.raises(OSError, match="EROFS"):
            disk.create("/d/b")
    assert listing(disk) == ("a",)


def test_failed_write_is_short_and_failed_names_change_nothing(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"")
    for operation in ("write", "rename", "create", "unlink", "sync_directory"):
        disk.fail(operation)
    with pytest.raises(OSError, match="ENOSPC"):
        file.write(0, b"12345678")
    assert file.read(0, 100) == b"1234"
    for call in (
        lambda: disk.create("/d/b"), lambda: disk.rename("/d/file", "/d/c"), lambda: disk.unlink("/d/file"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="injected"):
            call()
    assert listing(disk) == ("file",)
    disk.create("/d/b")
    with pytest.raises(OSError, match="EIO"):
        disk.sync_directory("/d")
    assert outcomes(disk, listing) == {("file",), ("b", "file")}


def test_failed_allocation_may_leave_a_short_file(disk: SimulatedDisk) -> None:
    file = durable_file(disk, content=b"")
    disk.fail("allocate")
    with pytest.raises(OSError, match="ENOSPC"):
        file.allocate(4 * PAGE)
    assert file.size() == 2 * PAGE


def test_misuse_is_answered_as_by_a_kernel(disk: SimulatedDisk) -> None:
    file = durable_file(disk)
    reader = disk.open("/d/file", writable=False)
    for call, expected in (
        (lambda: disk.create("/d/file"), FileExistsError),
        (lambda: disk.open("/d/none", writable=True), FileNotFoundError),
        (lambda: disk.create("/none/file"), FileNotFoundError),
        (lambda: disk.unlink("/d/none"), FileNotFoundError),
        (lambda: disk.rename("/d/none", "/d/file"), FileNotFoundError),
        (lambda: disk.list_directory("/d/file"), NotADirectoryError),
        (lambda: disk.make_directory("/d/file/x"), NotADirectoryError),
        (lambda: disk.open("/d", writable=False), IsADirectoryError),
        (lambda: reader.write(0, b"x"), OSError),
        (lambda: reader.map(PAGE, writable=True), OSError),
        (lambda: file.map(PAGE, writable=True).sync(0, PAGE + 1), OSError),
        (lambda: file.map(0, writable=True), OSError),
    ):
        with pytest.raises(expected):
            call()
    file.close()
    with pytest.raises(OSError, match="EBADF"):
        file.read(0, 1)
    with pytest.raises(SimulatorError, match="absolute"):
        disk.exists("relative")


# ---- locks


def test_lock_is_exclusive_and_names_its_holder(disk: SimulatedDisk) -> None:
    lock = disk.lock("/d/lock")
    with pytest.raises(BlockingIOError) as caught:
        disk.lock("/d/lock")
    assert caught.value.holder_pid == disk.pid
    lock.release()
    disk.lock("/d/lock").release()


def test_locks_end_with_the_process(disk: SimulatedDisk) -> None:
    disk.lock("/d/lock")
    disk.sync_directory("/d")
    disk.lock_shared("/d/lock")
    for later in (disk.kill(), disk.image("0/0/new")):
        assert not later.has_readers("/d/lock")
        later.lock("/d/lock").release()


def test_readers_are_counted_and_need_an_existing_file(disk: SimulatedDisk) -> None:
    with pytest.raises(FileNotFoundError):
        disk.lock_shared("/d/file")
    durable_file(disk)
    before = disk.digest()
    one, two = disk.lock_shared("/d/file"), disk.lock_shared("/d/file")
    one.release()
    one.release()
    assert disk.has_readers("/d/file")
    two.release()
    assert not disk.has_readers("/d/file")
    assert disk.digest() == before


# ---- time and workers


def test_clocks_go_on_and_survive_as_clocks_do(disk: SimulatedDisk) -> None:
    times = [disk.time_ns() for _ in range(3)] + [disk.kill().time_ns(), disk.image("0/0/new").time_ns()]
    assert times == sorted(set(times))
    before = disk.monotonic_ns()
    disk.advance(2.5)
    assert disk.monotonic_ns() - before >= 2_500_000_000
    assert disk.kill().monotonic_ns() > before > disk.image("0/0/new").monotonic_ns()


def test_workers_run_when_asked_due_or_woken(disk: SimulatedDisk) -> None:
    ran: list[str] = []
    timed = disk.start_worker("timed", lambda: ran.append("timed") or 1.0)
    waiting = disk.start_worker("waiting", lambda: ran.append("waiting"))
    assert ran == []
    assert disk.run_workers()
    assert not disk.run_workers()
    disk.advance(1.1)
    disk.run_workers()
    waiting.wake()
    disk.run_workers()
    timed.stop()
    disk.advance(5)
    assert not disk.run_workers()
    assert ran == ["timed", "waiting", "timed", "waiting"]


def test_wait_runs_the_worker_that_notifies(disk: SimulatedDisk) -> None:
    condition = disk.condition()
    disk.start_worker("late", iter([0.5, 0.5, None]).__next__)
    notifier = disk.start_worker("notifier", condition.notify_all)
    with condition:
        assert condition.wait()
        assert not condition.wait(0.2)
        notifier.wake()
        assert condition.wait(1)


def test_wait_passes_the_time_until_a_worker_is_due(disk: SimulatedDisk) -> None:
    condition = disk.condition()
    steps = iter([3.0, None])

    def step() -> float | None:
        pause = next(steps)
        if pause is None:
            condition.notify_all()
        return pause

    disk.start_worker("later", step)
    before = disk.monotonic_ns()
    assert not condition.wait(1)
    assert condition.wait()
    assert disk.monotonic_ns() - before >= 3_000_000_000


def test_wait_that_nothing_can_end_returns_and_then_is_an_error(disk: SimulatedDisk) -> None:
    condition = disk.condition()
    assert not condition.wait()
    with pytest.raises(SimulatorError, match="deadlock"):
        any(condition.wait() for _ in range(1000))


def test_fork_callbacks_run_until_ended(disk: SimulatedDisk) -> None:
    called: list[int] = []
    end = disk.on_fork(lambda: called.append(1))
    disk.fork()
    end()
    end()
    disk.fork()
    assert called == [1]
