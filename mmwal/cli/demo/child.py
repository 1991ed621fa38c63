"""The process of the demo that writes, and is killed.

Run as ``python -m mmwal.cli.demo.child SETTINGS`` with the settings as JSON. It opens the store, carries out the plan
and writes one line to standard output for each thing that is done, when it is done:

    open
    <operation number> <LSN>          the operation returned: it is acknowledged

Then it waits to be killed: it never closes the store.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import mmwal
from mmwal.cli.demo.embeddings import load_embeddings
from mmwal.cli.demo.plan import make_plan

OPEN_LINE = b"open\n"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How parent and child open the store, and what they do with it."""

    directory: str
    sync_interval_ms: int
    seed: int
    kernel: Any
    # Small segments and early checkpoints, so that a small load rotates, recycles and trims as a large one does, and
    # takes little of the disk.
    segment_size: int = 1 << 20
    checkpoint_interval: int = 1_000
    max_wal_size: int = 8 << 20
    runway_segments: int = 1

    def open(self, dimension: int) -> mmwal.VectorStore:
        """Opens the store."""
        return mmwal.open(
            self.directory,
            dimension=dimension,
            metric="inner_product",
            sync_interval_ms=self.sync_interval_ms,
            checkpoint_interval=self.checkpoint_interval,
            segment_size=self.segment_size,
            max_wal_size=self.max_wal_size,
            runway_segments=self.runway_segments,
            kernel=self.kernel,
        )

    def to_json(self) -> str:
        """Returns what the child is told."""
        return json.dumps(asdict(self))


def main(arguments: list[str]) -> None:
    """Carries out the plan, acknowledging, and waits to be killed."""
    settings = Settings(**json.loads(arguments[0]))
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)  # the parent opens the same directory, and says it
    embeddings = load_embeddings()
    plan = make_plan(embeddings, settings.seed)
    store = settings.open(embeddings.dimension)
    _say(OPEN_LINE)
    for number, operation in enumerate(plan):
        lsn = operation.carry_out(store, embeddings.vectors)
        _say(b"%d %d\n" % (number, lsn))
    sys.stdin.read()  # ends with the parent, should that die without killing us
    os._exit(0)


def _say(line: bytes) -> None:
    os.write(sys.stdout.fileno(), line)  # one write, so that a kill cannot cut a line in two


if __name__ == "__main__":
    main(sys.argv[1:])
