"""Loading: what is refused, what falls back, and that nothing is changed."""

from pathlib import Path
from typing import Any

import pytest

from mmwal.checkpoint.control import open_control
from mmwal.checkpoint.image import image_path
from mmwal.checkpoint.load import load_checkpoint
from mmwal.checkpoint.verify import damaged_rows
from mmwal.disk.posix import PosixDisk
from mmwal.errors import (
    ConsistencyError,
    ForeignDirectoryError,
    FormatVersionError,
    HeaderCorruptionError,
    WalConfigError,
)
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, SLOT_OFFSETS
from tests.checkpoint.homes import Content, Home, check_whole


@pytest.fixture
def disk() -> PosixDisk:
    return PosixDisk()


@pytest.fixture
def stored(home: Home, data_dir: str) -> tuple[Path, Content, Content]:
    """A directory whose two checkpoints are in one image file, closed; the contents of the older and the newer."""
    home.put(*range(40), "a")
    home.checkpoint()
    home.put("a", "b")
    home.remove(3)
    home.checkpoint()
    older = dict(home.content)
    home.put("b", "c")
    home.remove(4, "a")
    home.checkpoint()
    return Path(data_dir), older, dict(home.content)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def image_of(directory: Path) -> Path:
    [path] = directory.glob("image-*")
    return path


def edit_slots(directory: Path, **changes: Any) -> None:
    path = directory / "control"
    content = bytearray(path.read_bytes())
    for offset in SLOT_OFFSETS:
        fields = DATA_CONTROL.unpack(content, offset)
        assert fields is not None
        content[offset : offset + DATA_CONTROL.size] = DATA_CONTROL.pack(**{**fields, **changes})
    path.write_bytes(content)


def test_loading_changes_no_byte(disk: PosixDisk, stored: Any) -> None:
    directory, _, newer = stored
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    loaded = load_checkpoint(disk, str(directory), writable=False)
    assert loaded is not None
    assert len(loaded.state) == len(newer)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_damaged_newest_section_falls_back_to_the_older_checkpoint(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, older, _ = stored
    flip(image_of(directory), image_of(directory).stat().st_size - 70)
    loaded = load_checkpoint(disk, str(directory))
    assert loaded is not None
    check_whole(kernel, loaded, older)
    assert loaded.fell_back
    assert "checkpoint 4 cannot be used" in loaded.notes[0]
    assert image_of(directory).name in loaded.notes[0]
    assert "checkpoint 3 is used instead" in loaded.notes[1]
    # Once restated, the damaged one is out of the way for good, and the next image begins a new file.
    loaded.control.restate()
    control = open_control(disk, str(directory))
    assert control is not None
    assert {slot.redo_lsn for slot in control.slots} == {loaded.redo_lsn}
    home = Home(disk, kernel, str(directory), loaded)
    home.put("d")
    home.checkpoint()
    again = load_checkpoint(disk, str(directory))
    assert again is not None
    check_whole(kernel, again, home.content)
    assert again.notes == []
    home.close()
    again.matrix.close()


def test_damage_below_both_checkpoints_names_the_file(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    flip(image_of(directory), 300)
    with pytest.raises(ConsistencyError, match=image_of(directory).name) as raised:
        load_checkpoint(disk, str(directory))
    assert "Restore" in str(raised.value)


def test_missing_image_names_the_file(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    name = image_of(directory).name
    image_of(directory).unlink()
    with pytest.raises(ConsistencyError, match=name):
        load_checkpoint(disk, str(directory))


def test_every_flipped_bit_of_the_image_is_noticed(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, older, _ = stored
    path = image_of(directory)
    whole = path.read_bytes()
    for offset in range(0, len(whole), 7):
        flip(path, offset)
        try:
            loaded = load_checkpoint(disk, str(directory), writable=False)
        except ConsistencyError:
            pass
        else:
            assert loaded is not None
            assert loaded.fell_back, offset
            check_whole(kernel, loaded, older)
        path.write_bytes(whole)


def test_every_cut_of_the_image_is_noticed(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, older, _ = stored
    path = image_of(directory)
    whole = path.read_bytes()
    for size in range(0, len(whole), 64):
        path.write_bytes(whole[:size])
        try:
            loaded = load_checkpoint(disk, str(directory), writable=False)
        except ConsistencyError:
            continue
        assert loaded is not None
        check_whole(kernel, loaded, older)


def test_damaged_row_is_found_by_its_checksum(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, _, _ = stored
    loaded = load_checkpoint(disk, str(directory), writable=False)
    assert loaded is not None
    entry = loaded.state.get("b")
    assert entry is not None
    flip(directory / "matrix", entry.row * 64 + 5)
    assert [(damage.id, damage.row, damage.lsn) for damage in damaged_rows(kernel, loaded.state)] == [
        ("b", entry.row, entry.lsn)
    ]


def test_swapped_rows_are_found_by_their_checksums(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, _, _ = stored
    content = bytearray((directory / "matrix").read_bytes())
    content[0:64], content[64:128] = content[64:128], content[0:64]
    (directory / "matrix").write_bytes(content)
    loaded = load_checkpoint(disk, str(directory), writable=False)
    assert loaded is not None
    assert {damage.row for damage in damaged_rows(kernel, loaded.state)} == {0, 1}


def test_matrix_shorter_than_its_rows_or_missing_is_refused(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    matrix = directory / "matrix"
    matrix.write_bytes(matrix.read_bytes()[: 40 * 64])
    with pytest.raises(ConsistencyError, match="matrix"):
        load_checkpoint(disk, str(directory))
    matrix.unlink()
    with pytest.raises(ConsistencyError, match="missing"):
        load_checkpoint(disk, str(directory))


@pytest.mark.parametrize("field", ["live_rows", "rows_high", "image_crc", "image_number", "redo_lsn", "image_bytes"])
def test_slot_that_contradicts_its_image_is_refused(disk: PosixDisk, stored: Any, field: str) -> None:
    directory, _, _ = stored
    edit_slots(directory, **{"pinned_lsn": 8} if field == "redo_lsn" else {}, **{field: 8})
    with pytest.raises(ConsistencyError):
        load_checkpoint(disk, str(directory))


def test_slot_that_needs_the_log_from_behind_its_redo_point_is_refused(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    edit_slots(directory, redo_lsn=8)
    with pytest.raises(HeaderCorruptionError, match="pinned_lsn"):
        load_checkpoint(disk, str(directory))


def test_monstrous_sizes_cost_an_error_and_no_memory(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    for changes in ({"rows_high": 1 << 60}, {"image_bytes": 1 << 60}, {"live_rows": 1 << 60}):
        edit_slots(directory, **changes)
        with pytest.raises(ConsistencyError):
            load_checkpoint(disk, str(directory))


# ---- control file


def test_one_damaged_slot_costs_one_checkpoint_and_two_are_an_error(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, older, _ = stored
    control = open_control(disk, str(directory))
    assert control is not None
    flip(directory / "control", SLOT_OFFSETS[control.slots[0].index] + 20)
    loaded = load_checkpoint(disk, str(directory), writable=False)
    assert loaded is not None
    check_whole(kernel, loaded, older)
    flip(directory / "control", SLOT_OFFSETS[control.slots[1].index] + 20)
    with pytest.raises(HeaderCorruptionError):
        load_checkpoint(disk, str(directory))


def test_single_slot_is_restated_beside_itself(disk: PosixDisk, kernel: Any, stored: Any) -> None:
    directory, _, _ = stored
    control = open_control(disk, str(directory))
    assert control is not None
    flip(directory / "control", SLOT_OFFSETS[control.slots[0].index] + 20)
    control = open_control(disk, str(directory))
    assert control is not None
    kept = control.current
    control.restate()
    assert control.current.index != kept.index
    again = open_control(disk, str(directory))
    assert again is not None
    assert [slot.redo_lsn for slot in again.slots] == [kept.redo_lsn] * 2


def test_newest_slot_is_restated_over_itself(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    control = open_control(disk, str(directory))
    assert control is not None
    before = control.slots
    control.restate()
    again = open_control(disk, str(directory))
    assert again is not None
    assert again.current.index == before[0].index
    assert again.current.sequence == before[0].sequence + 1
    assert again.current.redo_lsn == before[0].redo_lsn
    assert again.slots[1].fields == before[1].fields


@pytest.mark.parametrize(
    ("field", "value", "kept"), [("dimension", 5, "4"), ("dtype", "int8", "float32"), ("metric", "l2", "cosine")]
)
def test_other_configuration_is_refused_naming_both(
    disk: PosixDisk, stored: Any, field: str, value: Any, kept: str
) -> None:
    directory, _, _ = stored
    with pytest.raises(WalConfigError) as raised:
        load_checkpoint(disk, str(directory), **{field: value})
    assert (raised.value.field, raised.value.value) == (field, value)
    assert kept in str(raised.value)


def test_same_configuration_is_accepted(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    accepted = {"store_id": b"S" * 16, "dimension": 4, "dtype": "float32", "metric": "cosine"}
    assert load_checkpoint(disk, str(directory), writable=False, **accepted) is not None


def test_data_of_another_store_is_refused(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    with pytest.raises(ForeignDirectoryError):
        load_checkpoint(disk, str(directory), store_id=b"X" * 16)


def test_control_file_of_a_newer_version_is_refused(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    edit_slots(directory, version=2)
    with pytest.raises(FormatVersionError):
        load_checkpoint(disk, str(directory))
    edit_slots(directory, version=1, features_required=4)
    with pytest.raises(FormatVersionError):
        load_checkpoint(disk, str(directory))


def test_unknown_layout_of_a_newer_version_is_refused_as_such(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    slot = DATA_CONTROL.magic + (9).to_bytes(2, "little")
    (directory / "control").write_bytes((slot.ljust(4096, b"\1")) * 2)
    with pytest.raises(FormatVersionError):
        load_checkpoint(disk, str(directory))


def test_file_that_is_no_control_file_is_foreign(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    (directory / "control").write_bytes(b"hello".ljust(CONTROL_BYTES, b"x"))
    with pytest.raises(ForeignDirectoryError):
        load_checkpoint(disk, str(directory))
    (directory / "control").write_bytes(b"")
    with pytest.raises(HeaderCorruptionError):
        load_checkpoint(disk, str(directory))


def test_impossible_identity_is_a_damaged_header(disk: PosixDisk, stored: Any) -> None:
    directory, _, _ = stored
    for changes in ({"dtype": 9}, {"dtype": 1, "dimension": 0}, {"dimension": 4, "metric": 0}, {"row_bytes": 1}):
        edit_slots(directory, **changes)
        with pytest.raises(HeaderCorruptionError):
            load_checkpoint(disk, str(directory))


def test_image_name_is_padded(data_dir: str) -> None:
    assert image_path("/d", 26) == "/d/image-000000000000001a"
