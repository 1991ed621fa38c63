"""Put the table of verdicts into `docs/verdicts.md`: `python -m tools.render_verdicts`.

The prose of the page is written by hand; what stands between ``<!-- rendered: PLACE -->`` and ``<!-- end -->`` comes
from `mmwal/verdicts.py`. ``--check`` changes nothing and fails where the page is not up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mmwal.verdicts import PLACES, Place, Verdict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "verdicts.md"
_MARKED = re.compile(r"(<!-- rendered: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BY_NAME = {place.name: place for place in PLACES}


def rendered(page: str) -> str:
    """Returns the page with everything between its marks made anew. Raises `KeyError` for an unknown place."""
    return _MARKED.sub(lambda mark: f"{mark[1]}{table(_BY_NAME[mark[2]])}\n{mark[3]}", page)


def table(place: Place) -> str:
    """Returns what the page says of a place: what is looked at there, and its rows."""
    combinations = list(place.combinations())
    facts = [f"* `{name}`: {', '.join(f'`{value}`' for value in values)}" for name, values in place.facts.items()]
    rows = []
    for row in place.rows:
        count = sum(row.matches(combination) for combination in combinations)
        rows.append(
            f"| `{row.label}` | {_capital(row.found)} | {_capital(row.means)} | {_capital(row.done)} | {_costs(row)} | "
            f"{count} |"
        )
    head = "| verdict | found | means | done | raised or reported | of |"
    return "\n".join([place.about, "", *facts, "", head, "|---|---|---|---|---|---|", *rows])


def _costs(row: Verdict) -> str:
    if row.error is not None:
        return f"`{row.error.__name__}`"
    return "a note" if row.noted else "nothing"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def main(arguments: list[str]) -> int:
    """Renders the page, or checks it."""
    page = PAGE.read_text("utf-8")
    wanted = rendered(page)
    if "--check" in arguments:
        print("up to date" if page == wanted else "stale: run python -m tools.render_verdicts")
        return int(page != wanted)
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
