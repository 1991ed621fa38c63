"""The story as a machine reads it: one JSON object."""

from __future__ import annotations

from typing import Any

import mmwal
from mmwal.cli.demo.story import Outcome


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as a dict that `json.dumps` takes."""
    error = outcome.error
    return {
        "holds": outcome.holds,
        "failures": outcome.failures,
        "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        "mmwal": mmwal.__version__,
        "kernel": outcome.kernel,
        "directory": outcome.directory,
        "figures": outcome.figures,
        "steps": [{"name": step.name, "what": step.what, "seconds": step.seconds} for step in outcome.steps],
        "recovery": outcome.recovery and outcome.recovery.to_dict(),
        "reopening": outcome.reopening and outcome.reopening.to_dict(),
        "searches": [{"query": query, "hits": [hit._asdict() for hit in hits]} for query, hits in outcome.searches],
        "notices": outcome.notices,
    }
