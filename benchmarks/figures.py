"""Figures: median and spread over repetitions, ratios to a limit, and the table that is printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """The same thing measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        """Returns median, spread and all values."""
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)}


@dataclass(frozen=True)
class Row:
    """One line: a figure, the limit it stands beside, and what was hoped for.

    ``ratios`` are figure to limit within each repetition. ``most`` or ``least`` is the target for their median; with
    neither the row is for context.
    """

    group: str
    what: str
    unit: str
    figure: Figure
    limit_name: str = ""
    limit: Figure | None = None
    ratios: Figure | None = None
    most: float | None = None
    least: float | None = None
    note: str = ""
    of: Mapping[str, Any] = field(default_factory=dict)  # target, layer, kernel, dimension, ...
    more: Mapping[str, float] = field(default_factory=dict)  # further percentiles and the like, in the row's unit

    @property
    def target(self) -> str:
        """The target in words."""
        if self.most is not None:
            return f"at most {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the target; None where there is none."""
        if self.ratios is None or (self.most is None and self.least is None):
            return None
        ratio = self.ratios.median
        return ratio <= self.most if self.most is not None else ratio >= (self.least or 0.0)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            "group": self.group,
            **self.of,
            "what": self.what,
            "unit": self.unit,
            "figure": self.figure.as_json(),
            "limit_name": self.limit_name,
            "limit": self.limit.as_json() if self.limit else None,
            "ratio": self.ratios.as_json() if self.ratios else None,
            "target": self.target,
            "met": self.met,
            "more": dict(self.more),
            "note": self.note,
        }


def beside(
    group: str,
    what: str,
    unit: str,
    values: Sequence[float],
    limit_name: str = "",
    limits: Sequence[float] | None = None,
    *,
    most: float | None = None,
    least: float | None = None,
    note: str = "",
    of: Mapping[str, Any] | None = None,
    more: Mapping[str, float] | None = None,
) -> Row:
    """Makes a row from one value, and one limit, for each repetition."""
    limit = Figure(tuple(limits)) if limits else None
    ratios = Figure(tuple(a / b for a, b in zip(values, limits, strict=True))) if limits else None
    return Row(
        group, what, unit, Figure(tuple(values)), limit_name, limit, ratios, most, least, note, of or {}, more or {}
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns the value below which a share of an ordered sequence lies."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows, ratios first."""
    heads = ("ratio (min..max)", "target", "met", "what", "figure (min..max)", "limit")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    group = ""
    for number, line in enumerate(cells):
        if number and rows[number - 1].group != group:
            group = rows[number - 1].group
            print(f"\n-- {group}")
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number and (aside := _aside(rows[number - 1])):
            print(f"{'':{widths[0]}}    {aside}")


def _aside(row: Row) -> str:
    more = ", ".join(f"{name} {value:.4g}" for name, value in row.more.items())
    return "; ".join(part for part in (more, row.note) if part)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = (
        f"{row.ratios.median:.2f} ({min(row.ratios.values):.2f}..{max(row.ratios.values):.2f})" if row.ratios else ""
    )
    met = {True: "yes", False: "NO", None: ""}[row.met]
    limit = f"{row.limit.median:.4g} {row.unit}, {row.limit_name}" if row.limit else ""
    spread = f"{row.figure.median:.4g} {row.unit} ({min(row.figure.values):.4g}..{max(row.figure.values):.4g})"
    return ratio, row.target, met, row.what, spread, limit
