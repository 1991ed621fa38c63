"""The table of verdicts as a table: no combination without a row, none with two, no row without one; and its page."""

import re
from pathlib import Path

import pytest

from mmwal import errors, verdicts
from mmwal.errors import HeaderCorruptionError, OpenError, WalCorruptionError
from mmwal.verdicts import PLACES, Place, Reached, Verdict
from tools import render_verdicts

PACKAGE = Path(verdicts.__file__).parent
PAGE = render_verdicts.PAGE.read_text("utf-8")


def row(label: str, *cases: dict[str, str | tuple[str, ...]]) -> Verdict:
    return Verdict(label=label, when=cases, found="f", means="m", done="d")


def mistakes(place: Place) -> list[str]:
    """What is wrong with the rows of a place."""
    found = []
    used: set[str] = set()
    for facts in place.combinations():
        rows = [verdict.label for verdict in place.rows_of(facts)]
        used.update(rows)
        if len(rows) != 1:
            found.append(f"{facts} has the rows {rows}")
    found += [f"no combination has {verdict.label}" for verdict in place.rows if verdict.label not in used]
    for case in [case for verdict in place.rows for case in verdict.when] + [case for case, _ in place.impossible]:
        for fact, values in case.items():
            known = place.facts.get(fact, ())
            chosen = (values,) if isinstance(values, str) else values
            found += [f"{fact}={value} is no fact" for value in chosen if value not in known]
    return found


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_combination_has_exactly_one_row_and_every_row_a_combination(place: Place) -> None:
    assert mistakes(place) == []
    assert all(len(reason) > 10 for _, reason in place.impossible)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        pytest.param([row("a", {"x": "1"})], "has the rows []", id="none"),
        pytest.param([row("a", {}), row("b", {"x": "2"})], "has the rows ['a', 'b']", id="two"),
        pytest.param([row("a", {}), row("b", {"x": ()})], "no combination has b", id="never"),
        pytest.param([row("a", {}, {"x": "3"})], "x=3 is no fact", id="unknown-value"),
    ],
)
def test_checker_finds_a_wrong_table(rows: list[Verdict], problem: str) -> None:
    found = mistakes(Place("place", "about", {"x": ("1", "2")}, rows))
    assert any(problem in line for line in found), found


def test_checker_accepts_a_right_table() -> None:
    rows = [row("a", {"x": "1"}), row("b", {"x": "2"})]
    place = Place("p", "", {"x": ("1", "2", "3")}, rows, impossible=[({"x": "3"}, "cannot be")])
    assert mistakes(place) == []
    assert list(place.combinations()) == [{"x": "1"}, {"x": "2"}]


def test_labels_are_unique_and_say_their_place() -> None:
    labels = [verdict.label for place in PLACES for verdict in place.rows]
    assert len(set(labels)) == len(labels)
    assert [place.name for place in PLACES for verdict in place.rows if not verdict.label.startswith(place.name)] == []
    assert len({place.name for place in PLACES}) == len(PLACES)


def test_a_refusal_is_an_error_of_opening_and_no_note() -> None:
    rows = [verdict for place in PLACES for verdict in place.rows]
    assert all(issubclass(verdict.error, OpenError) for verdict in rows if verdict.error)
    assert not [verdict.label for verdict in rows if verdict.error and verdict.noted]
    assert not [verdict.label for verdict in rows if not (verdict.found and verdict.means and verdict.done)]


def test_lookup_needs_no_fact_that_does_not_matter_and_refuses_one_that_does() -> None:
    assert verdicts.SEAL.verdict(footer="sound").label == "seal-footer"
    with pytest.raises(LookupError, match="seal-by-link"):
        verdicts.SEAL.verdict(footer="none")
    with pytest.raises(LookupError):
        verdicts.SEAL.verdict(footer="no such")
    with pytest.raises(LookupError):
        verdicts.SEAL.verdict(footer="sound", nothing="x")


def test_an_error_carries_the_label_of_its_row_and_only_of_its_own_kind() -> None:
    verdict = verdicts.ENTRY.verdict(checksum="damaged")
    assert verdict.mark(WalCorruptionError("/f", "p", offset=1, lsn=2)).verdict == "entry-damaged"
    with pytest.raises(AssertionError):
        verdict.mark(HeaderCorruptionError("/f", "p"))
    assert OpenError("p").verdict is None


def test_a_note_ends_with_the_label_of_its_row() -> None:
    verdict = verdicts.SEAL.verdict(footer="none", next="names", frames="whole")
    assert str(Reached(verdict, "/f")).endswith("[seal-by-link]")
    assert str(Reached(verdict, "/f", "why")) == "/f: why [seal-by-link]"


def test_package_looks_up_every_place() -> None:
    """A place that no code looks up would be a table of wishes."""
    sources = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path.name != "verdicts.py"]
    names = {place: name for name, place in vars(verdicts).items() if isinstance(place, Place)}
    used = {place.name for place in PLACES if any(f"{names[place]}.verdict(" in source for source in sources)}
    assert used == {place.name for place in PLACES}


# ---- the page


def test_page_is_up_to_date() -> None:
    """If this fails: python -m tools.render_verdicts."""
    assert render_verdicts.rendered(PAGE) == PAGE


def test_page_shows_every_place_once() -> None:
    marks = re.findall(r"<!-- rendered: (\w+) -->", PAGE)
    assert sorted(marks) == sorted(place.name for place in PLACES)
    assert PAGE.count("<!-- end -->") == len(marks)


def test_page_shows_every_row_and_only_errors_that_there_are() -> None:
    for place in PLACES:
        for verdict in place.rows:
            assert PAGE.count(f"| `{verdict.label}` |") == 1
    assert all(hasattr(errors, name) for name in re.findall(r"\| `(\w+Error)` \|", PAGE))


def test_stale_page_is_noticed() -> None:
    stale = PAGE.replace("| `seal-footer` |", "| `seal-footed` |")
    assert stale != PAGE
    assert render_verdicts.rendered(stale) == PAGE


def test_unknown_mark_is_refused() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        render_verdicts.rendered("<!-- rendered: nowhere -->\n<!-- end -->")
