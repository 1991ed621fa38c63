"""Verification of stores: control slots, images and rows; damage is named by file, offset and, of a row, its id."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal.entry import VerifyReport
from mmwal.format.control import DATA_CONTROL, SLOT_OFFSETS
from mmwal.format.image import HEADER_BYTES
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import OpenStore
from tests.store.stores import digests, rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

STRIDE = 64


def flip(path: Path, offset: int) -> None:
    """Flips a bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def told(report: VerifyReport) -> list[tuple[str, str, str, int | None]]:
    """What each finding says: kind of place, severity, file name, offset."""
    return [(one.what, one.severity, os.path.basename(one.path), one.offset) for one in report.findings]


def place_of(store: mmwal.VectorStore, id: Any) -> int:
    """Where the row of an id begins in the matrix."""
    assert store._state is not None
    row = store._state.directory.get(id)
    assert row is not None
    return int(row) * STRIDE


@pytest.fixture
def made(open_store: OpenStore) -> Callable[[], mmwal.VectorStore]:
    """A store of two checkpoints, the second a delta, and some writes since."""

    def make() -> mmwal.VectorStore:
        store = open_store()
        store.insert_many([f"a{n}" for n in range(50)], rows(range(50)), [{"n": n} for n in range(50)])
        store.checkpoint()
        store.update("a3", vector(333))
        store.insert_many(list(range(20)), rows(range(100, 120)))
        store.delete("a4")
        store.checkpoint()
        store.insert("late", vector(5))
        store.sync()
        return store

    return make


def test_whole_store_has_no_finding_open_or_closed(made: Any, root: Path) -> None:
    store = made()
    report = store.verify()
    assert report.findings == ()
    assert (report.rows, report.sections) == (71, 2)  # 69 alive, and two that only the older checkpoint names
    store.close()
    before = digests(root)
    report = mmwal.verify(root)
    assert report.findings == ()
    assert report.rows >= 70
    assert digests(root) == before
    assert sorted(os.listdir(root)) == ["data", "wal"]


def test_damaged_row_is_named_by_offset_id_and_lsn(made: Any, root: Path, kernel: Any) -> None:
    store = made()
    record, offset = store.get("a7"), place_of(store, "a7")
    store.close()
    flip(root / "data" / "matrix", offset + 9)
    with mmwal.open(root, read_only=False, kernel=kernel.NAME) as again:  # a clean open does not look at rows
        assert not (again["a7"] == vector(7)).all()
        for report in (again.verify(), mmwal.verify(root, kernel=kernel.NAME)):
            assert told(report) == [("row", "damaged", "matrix", offset)]
            assert (report.findings[0].id, report.findings[0].lsn) == ("a7", record.lsn)
            assert not report.ok


def test_padding_of_a_row_and_rows_of_no_checkpoint_are_nobodys(made: Any, root: Path) -> None:
    store = made()
    offset = place_of(store, "late")
    flip(root / "data" / "matrix", offset)
    flip(root / "data" / "matrix", 7 * STRIDE + 40)  # vectors have 32 bytes
    assert store.verify().ok


def test_row_that_only_the_older_checkpoint_names_is_covered(made: Any, root: Path) -> None:
    store = made()
    flip(root / "data" / "matrix", 3 * STRIDE)  # a3 was updated since
    report = store.verify()
    assert told(report) == [("row", "covered", "matrix", 3 * STRIDE)]
    assert report.findings[0].id == "a3"


@pytest.mark.parametrize("slot", [0, 1])
def test_one_surviving_data_slot_is_named(made: Any, root: Path, slot: int) -> None:
    store = made()
    flip(root / "data" / "control", SLOT_OFFSETS[slot] + DATA_CONTROL.offset_of("image_bytes"))
    assert told(store.verify()) == [("control slot", "covered", "control", SLOT_OFFSETS[slot])]


def test_damaged_sections_are_named_by_their_place(made: Any, root: Path) -> None:
    store = made()
    image = next(path for path in (root / "data").iterdir() if path.name.startswith("image-"))
    flip(image, image.stat().st_size - 80)  # the delta
    assert [finding[:3] for finding in told(store.verify())] == [("image section", "covered", image.name)]
    delta = store.verify().findings[0].offset
    assert delta is not None
    assert delta > HEADER_BYTES
    flip(image, HEADER_BYTES + 3)  # the base, which both checkpoints need
    assert told(store.verify()) == [
        ("image section", "damaged", image.name, 0),
        ("image section", "damaged", image.name, delta),
    ]


def test_damaged_header_of_a_section_does_not_hide_the_next(made: Any, root: Path) -> None:
    store = made()
    image = next(path for path in (root / "data").iterdir() if path.name.startswith("image-"))
    flip(image, image.stat().st_size - 80)
    delta = store.verify().findings[0].offset
    flip(image, 40)
    assert [finding[3] for finding in told(store.verify())] == [0, delta]


@pytest.mark.parametrize("name", ["control", "image", "matrix"])
@pytest.mark.parametrize("how", ["removed", "emptied"])
def test_missing_file_is_named(made: Any, root: Path, name: str, how: str) -> None:
    made().close()
    path = next(path for path in (root / "data").iterdir() if path.name.startswith(name))
    path.unlink()
    if how == "emptied":
        path.touch()
    report = mmwal.verify(root)
    assert not report.ok
    assert {finding.path for finding in report.damage} == {str(path)}


def test_everything_at_once_is_found(made: Any, root: Path) -> None:
    store = made()
    entries = store.wal.verify_wal()
    offset = place_of(store, "a9")
    store.close()
    flip(Path(entries[1].segment), entries[1].offset + 90)
    flip(root / "data" / "control", SLOT_OFFSETS[0] + 100)
    flip(root / "wal" / "control", SLOT_OFFSETS[0] + 100)
    flip(root / "data" / "matrix", offset)
    found = told(mmwal.verify(root))
    assert ("entry", "damaged", os.path.basename(entries[1].segment), entries[1].offset) in found
    assert ("control slot", "covered", "control", 0) in found
    assert ("row", "damaged", "matrix", offset) in found
    assert [finding[0] for finding in found].count("control slot") == 2


def test_stale_slot_is_told_by_the_log(made: Any, root: Path) -> None:
    store = made()
    store.checkpoint()
    store.checkpoint()
    content = (root / "data" / "control").read_bytes()
    store.upsert("x", vector(1))
    store.checkpoint()
    store.sync()
    (root / "data" / "control").write_bytes(content)
    assert [finding[:3] for finding in told(store.verify())] == [("control slot", "covered", "control")]


def test_data_of_another_store_is_named(made: Any, root: Path, tmp_path: Path, kernel: Any) -> None:
    made().close()
    other = tmp_path / "other"
    with mmwal.open(other, dimension=8, segment_size=64 << 10, kernel=kernel.NAME) as store:
        store.insert("a", vector(1))
    report = mmwal.verify(other / "wal", data_dir=root / "data")
    assert any("belongs to store" in finding.problem for finding in report.damage)


def test_read_only_store_verifies_beside_its_writer(made: Any, root: Path, kernel: Any) -> None:
    store = made()
    with mmwal.open(root, read_only=True, kernel=kernel.NAME) as reader:
        assert reader.verify().findings == ()
        flip(root / "data" / "matrix", place_of(store, "a7"))
        assert [finding[0] for finding in told(reader.verify())] == ["row"]


def test_unreadable_page_of_the_matrix_is_a_finding(open_store: OpenStore) -> None:
    disk = SimulatedDisk()
    store = open_store(disk=disk)
    store.insert_many([f"a{n}" for n in range(200)], np.ones((200, 8), np.float32))
    store.checkpoint()
    disk.fail("matrix read", forever=True)
    report = store.verify()
    assert len(report.findings) == 200
    assert all("cannot be read" in finding.problem for finding in report.findings)


def test_store_without_a_log_has_nothing_to_verify() -> None:
    with pytest.raises(mmwal.NoStoreError):
        mmwal.VectorStore(2).verify()


def test_closed_store_refuses(made: Any) -> None:
    store = made()
    store.close()
    with pytest.raises(mmwal.WalClosedError):
        store.verify()
