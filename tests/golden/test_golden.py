"""The format stays what it was: checked-in files are read as ever, and written byte for byte as ever."""

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import mmwal
from tests.golden import reader
from tools import make_golden

HERE = Path(__file__).resolve().parent
SEGMENTS = sorted(HERE.glob("segment-v*.bin"))
STORES = sorted(HERE.glob("store-v*"))
FIRST_FRAME, LAST_FRAME_END = 8192, 9856
each_segment = pytest.mark.parametrize("path", SEGMENTS, ids=lambda path: path.stem)


def test_golden_file_of_this_version_is_checked_in() -> None:
    assert make_golden.GOLDEN in SEGMENTS


@each_segment
def test_standard_library_reader_tells_the_story_that_is_checked_in(path: Path) -> None:
    story = "\n".join(reader.story(path.read_bytes())) + "\n"
    assert story == path.with_suffix(".txt").read_text("utf-8")


def test_kernel_writes_the_golden_segment_byte_for_byte(kernel: Any) -> None:
    assert make_golden.golden_segment(kernel) == make_golden.GOLDEN.read_bytes()


@each_segment
def test_kernel_finds_every_frame_of_the_golden_segment(path: Path, kernel: Any) -> None:
    content = path.read_bytes()
    headers = bytearray(64 * 100)
    end = len(content) - 512
    stop, count, reason = kernel.scan(content, 0, make_golden.SALT, FIRST_FRAME, end, headers, True)
    frames = sum(1 for line in reader.story(content) if line[0].isdigit())
    assert (stop, count, reason) == (end, frames, 0)


def test_golden_store_of_this_version_is_written_byte_for_byte(kernel: Any) -> None:
    checked_in = {
        path.relative_to(make_golden.GOLDEN_STORE).as_posix(): path.read_bytes()
        for path in make_golden.GOLDEN_STORE.rglob("*")
        if path.is_file()
    }
    assert make_golden.golden_store(kernel) == checked_in


@pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_golden_store_opens_with_all_that_was_written(path: Path, kernel: Any, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "store")
    with mmwal.open(tmp_path / "store", kernel=kernel.NAME) as store:
        assert store.dimension == 3
        assert (store.recovery_stats.clean_shutdown, store.recovery_stats.torn_tail_bytes) == (False, 0)
        assert store.recovery_stats.applied_entries == 4
        assert {record.id: (record.vector.tolist(), record.metadata) for record in store.get_many(store.ids())} == {
            "doc-1": ([9.0, 9.0, 9.5], {"title": "Wörter", "year": 2026}),
            2: ([4.0, 5.0, 6.0], {"tail": True}),
            -7: ([1.0, 2.0, 3.0], None),
            "t1": ([1.0, 1.0, 1.0], None),
            "t2": ([1.0, 1.0, 1.0], None),
        }
    assert not mmwal.verify(tmp_path / "store").findings


def test_reader_is_short_and_shares_nothing_with_the_package() -> None:
    source = Path(reader.__file__).read_text("utf-8")
    assert len(source.splitlines()) < 100
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("at", range(FIRST_FRAME, LAST_FRAME_END, 37))
def test_reader_and_kernels_stop_at_a_damaged_frame(at: int, kernel: Any) -> None:
    content = bytearray(make_golden.GOLDEN.read_bytes())
    whole = list(reader.story(bytes(content)))
    content[at] ^= 0x10
    told = list(reader.story(bytes(content)))
    ends = [int(line.partition(":")[0]) for line in told if line[0].isdigit()]
    stop, count, reason = kernel.scan(
        bytes(content), 0, make_golden.SALT, FIRST_FRAME, len(content) - 512, bytearray(64 * 100), True
    )
    assert told[:-1] == whole[: len(told) - 1]
    assert (stop, count) == (ends[-1] if ends else FIRST_FRAME, len(ends))
    assert stop <= at
    assert reason != 0


def test_either_copy_of_the_header_will_do_but_one_must() -> None:
    content = bytearray(make_golden.GOLDEN.read_bytes())
    whole = list(reader.story(bytes(content)))
    content[20] ^= 1
    assert list(reader.story(bytes(content))) == whole
    content[4096 + 20] ^= 1
    with pytest.raises(AssertionError, match="both copies"):
        list(reader.story(bytes(content)))
