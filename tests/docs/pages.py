"""The pages of the documentation, and the Python in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Snippet:
    """A fenced block of Python: the page, the line of its first statement, the text."""

    page: Path
    line: int
    text: str


def pages() -> list[Path]:
    """README and everything below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def snippets(page: Path) -> list[Snippet]:
    """Lists the Python blocks of a page, in order."""
    text = page.read_text("utf-8")
    return [
        Snippet(page, text.count("\n", 0, match.start(2)) + 1, match[2])
        for match in _FENCE.finditer(text)
        if match[1] in ("python", "py", "pycon")
    ]


def name(page: Path) -> str:
    """A page's path as it is linked to from the top."""
    return page.relative_to(ROOT).as_posix()
