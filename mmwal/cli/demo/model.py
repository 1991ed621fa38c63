"""What a store must hold after a list of operations, as a plain dict; and the comparison with a store.

The model knows nothing of logs: it says what each method of `VectorStore` means, in a line or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal import VectorStore
from mmwal.cli.demo.plan import Operation

Id = str | int


@dataclass(frozen=True)
class Expected:
    """What an id must have: the vector of an embedding, metadata, and the LSN of who wrote it (None: not known)."""

    row: int
    metadata: dict[str, Any] | None
    lsn: int | None


class Model:
    """What the acknowledged operations amount to."""

    def __init__(self, held: dict[Id, Expected] | None = None) -> None:
        self.held: dict[Id, Expected] = dict(held or {})

    def copy(self) -> Model:
        """Returns a model that goes its own way from here."""
        return Model(self.held)

    def apply(self, operation: Operation, lsn: int | None) -> None:
        """Follows an operation; ``lsn`` is what it returned, None where that is not known."""
        for index, id in enumerate(operation.ids):
            if operation.method.startswith("delete"):
                del self.held[id]
                continue
            before = self.held.get(id)
            if operation.rows is not None:
                row = operation.rows[index]
            else:
                assert before is not None
                row = before.row
            metadata = operation.metadata[index] if operation.metadata is not None else None
            if metadata is None and before is not None:
                metadata = before.metadata
            self.held[id] = Expected(row, metadata, lsn)


def differences(store: VectorStore, model: Model, vectors: npt.NDArray[np.float32]) -> list[str]:
    """Returns, as sentences, everything in which a store differs from a model; nothing if they agree."""
    found = [f"id {id!r} is there, and must not be" for id in store.ids() if id not in model.held]
    if len(store) != len(model.held):
        found.append(f"the store says that it holds {len(store):,} ids; it must be {len(model.held):,}")
    for id, record in zip(model.held, store.get_many(model.held), strict=True):
        expected = model.held[id]
        if record is None:
            found.append(f"id {id!r} is missing; it was acknowledged{_at(expected.lsn)}")
            continue
        if record.vector.tobytes() != vectors[expected.row].tobytes():
            found.append(f"id {id!r} has another vector than the one acknowledged{_at(expected.lsn)}")
        if record.metadata != expected.metadata:
            found.append(f"id {id!r} has metadata {record.metadata!r}; it must be {expected.metadata!r}")
        if expected.lsn is not None and record.lsn != expected.lsn:
            found.append(f"id {id!r} says it was written at LSN {record.lsn}; acknowledged was {expected.lsn}")
    return found


def wrong_answers(
    answers: list[list[Id]], ids: list[str], top10: npt.NDArray[np.int32], queries: list[str]
) -> list[str]:
    """Returns, as sentences, the queries whose ids are not exactly those of ``top10``, in that order."""
    found = []
    for query, answer, rows in zip(queries, answers, top10.tolist(), strict=True):
        expected = [ids[row] for row in rows]
        if answer != expected:
            place = next((n for n, pair in enumerate(zip(answer, expected, strict=False)) if pair[0] != pair[1]), None)
            where = "has another length" if place is None else f"has {answer[place]!r} at place {place + 1}"
            what = f"{len(expected)} ids" if place is None else f"{expected[place]!r}"
            found.append(f"the answer to {query!r} {where}; it must be {what}")
    return found


def _at(lsn: int | None) -> str:
    return "" if lsn is None else f" at LSN {lsn}"
