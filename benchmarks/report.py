"""What stands around the rows of a benchmark: on what machine, how many targets were met, was anybody else at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from figures import Row


def print_head(described: dict[str, Any], measured: str, load: float, *, note: str = "") -> None:
    """Prints what the figures are taken on, and how; ``described`` is `machine.facts`."""
    print(f"mmwal {described['mmwal']}, {described['python']}, numpy {described['numpy']}")
    print(
        f"{described['cpu']}, {described['cores']} cores; {described['system']}; "
        f"{described['file_system']} on {described['device']}"
    )
    print(f"{measured}; median (min..max); load {load:.2f}\n")
    if described["file_system"] in ("tmpfs", "ramfs"):
        print("! this directory is in memory: figures of syncs and devices mean nothing; choose another with --dir\n")
    if note:
        print(f"! {note}\n")


def print_foot(rows: Sequence[Row], before: float, after: float, elapsed_s: float, *, smoke: bool) -> None:
    """Prints how many targets were met, and whether the machine had anything else to do."""
    met = [row.met for row in rows if row.met is not None]
    print(f"\n{sum(met)} of {len(met)} targets met (measured, not gated)")
    if smoke:
        print("! a smoke run: it shows that everything runs; its figures say nothing")
    print(f"{elapsed_s:.0f} s; load {before:.2f} before, {after:.2f} after")
    if max(before, after - 1) > 1:  # the benchmark itself is one
        print(
            "! the load was above 1 beside the benchmark: others were at work, the figures are worse than the machine's"
        )


def report_of(
    described: dict[str, Any],
    rows: Sequence[Row],
    before: float,
    after: float,
    elapsed_s: float,
    *,
    smoke: bool,
    **more: Any,
) -> dict[str, Any]:
    """Returns all of it as plain values."""
    return {
        "machine": described,
        "load_average": {"before": before, "after": after},
        "smoke": smoke,
        **more,
        "seconds": round(elapsed_s, 1),
        "results": [row.as_json() for row in rows],
    }
