"""Every Python block of README and docs runs: those of one page in order, in one namespace, in an empty directory."""

from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import name, pages, snippets

PAGES = [page for page in pages() if snippets(page)]


def test_readme_and_guide_have_python() -> None:
    assert {"README.md", "docs/guide.md"} <= {name(page) for page in PAGES}


@pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": name(page)}
    for snippet in snippets(page):
        # Blank lines before it, so that a traceback names the line of the page.
        exec(compile("\n" * (snippet.line - 1) + snippet.text, snippet.page, "exec"), namespace)  # noqa: S102


def test_a_page_without_an_end_of_its_block_would_be_seen() -> None:
    """A fence that is never closed hides all that follows from these tests."""
    for page in pages():
        fences = [line for line in page.read_text("utf-8").splitlines() if line.startswith("```")]
        assert len(fences) % 2 == 0, name(page)
