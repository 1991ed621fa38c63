"""docs/format.md says what the layouts say, about every kind of frame and every version."""

import importlib
import pkgutil
import re
from typing import Any

import pytest

from mmwal import format
from mmwal.format.frame import Kind
from mmwal.format.layout import Layout
from mmwal.format.segment import FORMAT_VERSION
from mmwal.kernel import load
from tools import render_format

PAGE = render_format.PAGE.read_text("utf-8")
ROOT = render_format.PAGE.parent.parent


def test_page_is_up_to_date() -> None:
    """If this fails: python -m tools.render_format."""
    assert render_format.rendered(PAGE) == PAGE


def test_page_shows_everything_that_can_be_rendered_once() -> None:
    marks = re.findall(r"<!-- rendered: (\w+) -->", PAGE)
    assert sorted(marks) == sorted(render_format.RENDERED)
    assert PAGE.count("<!-- end -->") == len(marks)


def test_every_layout_of_the_room_is_on_the_page() -> None:
    modules = [importlib.import_module(f"mmwal.format.{info.name}") for info in pkgutil.iter_modules(format.__path__)]
    layouts = {id(value): value for module in modules for value in vars(module).values() if isinstance(value, Layout)}
    assert [layout.title for layout in layouts.values() if layout.render() not in PAGE] == []


def test_stale_page_is_noticed() -> None:
    stale = PAGE.replace("| `start_lsn` | u64 |", "| `start_lsn` | u32 |")
    assert stale != PAGE
    assert render_format.rendered(stale) == PAGE


def test_unknown_mark_is_refused() -> None:
    with pytest.raises(KeyError, match="NOWHERE"):
        render_format.rendered("<!-- rendered: NOWHERE -->\n<!-- end -->")


def test_every_kind_of_frame_is_explained() -> None:
    assert set(render_format.KINDS) == set(Kind)


def test_worked_example_is_what_the_kernel_writes(kernel: Any) -> None:
    assert render_format.example_frame(kernel) == render_format.example_frame(load("py"))


def test_every_byte_of_the_worked_example_is_shown() -> None:
    shown = re.findall(r"^ *(\d+)  ([0-9a-f .]+?)(?: \((\d+) bytes\))?  +\S", render_format.example(), re.MULTILINE)
    sizes = [int(size) if size else len(raw.split()) for _, raw, size in shown]
    assert [int(at) for at, _, _ in shown] == [sum(sizes[:index]) for index in range(len(sizes))]
    assert sum(sizes) == len(render_format.example_frame(load("py")))


def test_ledger_has_a_line_and_a_golden_file_for_every_version() -> None:
    ledger = PAGE.partition("\n## Versions\n")[2]
    lines = re.findall(r"^\| (\d+) \| .* \| `(\S+)`, `(\S+)` \|$", ledger, re.MULTILINE)
    assert [int(version) for version, *_ in lines] == list(range(1, FORMAT_VERSION + 1))
    assert all((ROOT / segment).is_file() and (ROOT / store).is_dir() for _, segment, store in lines)
