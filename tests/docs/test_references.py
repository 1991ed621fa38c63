"""What the pages point to is there: files and headings of links, targets of make, functions with their files."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name, pages

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:mmwal|tests|tools|benchmarks|docs)/[\w./-]*)`")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_MAKE = re.compile(r"`make ([\w-]+)`")
_CALL = re.compile(r"`((?:mmwal/)[\w/]+\.py)`: `([\w.]+)`")


def anchor(heading: str) -> str:
    """A heading as a link names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if heading:
            assert heading in {anchor(line) for line in _HEADING.findall(found.read_text("utf-8"))}, target


@pytest.mark.parametrize("page", pages(), ids=name)
def test_paths_in_backticks_exist(page: Path) -> None:
    missing = [path for path in _PATH.findall(page.read_text("utf-8")) if not (ROOT / path).exists()]
    assert missing == []


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {target for page in pages() for target in _MAKE.findall(page.read_text("utf-8"))}
    assert {"demo", "test"} <= named
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_functions_that_are_named_with_their_file_exist(page: Path) -> None:
    """`mmwal/room/file.py`: `function`, as the trails of architecture.md name them."""
    for path, function in _CALL.findall(page.read_text("utf-8")):
        source = (ROOT / path).read_text("utf-8")
        plain = function.rpartition(".")[2]
        assert re.search(rf"^\s*(?:def|class) {plain}\b", source, re.MULTILINE), f"{path}: {function}"
