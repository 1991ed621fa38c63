"""Which operations the demo carries out, in which order: the same in parent and child, from one seed.

At the end all embeddings stand under their ids, with their own vectors and summaries, and nothing else. On the way
there, before and after any point where the process may be killed,

* some ids get a vector or metadata that are not theirs, and are updated to their own later,
* some are deleted and inserted again,
* short-lived rows come and go under integer ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal import VectorStore
from mmwal.cli.demo.embeddings import Embeddings

Metadata = dict[str, Any] | None


@dataclass(frozen=True)
class Operation:
    """One call of a method of `VectorStore`. ``rows`` says which embedding's vector each id is given."""

    method: str
    ids: list[Any]
    rows: list[int] | None = None
    metadata: list[Metadata] | None = None

    @property
    def many(self) -> bool:
        """Whether it is one of the ``*_many`` methods."""
        return self.method.endswith("_many")

    def carry_out(self, store: VectorStore, vectors: npt.NDArray[np.float32]) -> int:
        """Calls the method; returns the LSN."""
        call: Callable[..., int] = getattr(store, self.method)
        if self.many:
            given = () if self.rows is None else (vectors[self.rows],)
            return call(self.ids, *given, **({} if self.metadata is None else {"metadata": self.metadata}))
        given = () if self.rows is None else (vectors[self.rows[0]],)
        return call(self.ids[0], *given, **({} if self.metadata is None else {"metadata": self.metadata[0]}))


def make_plan(embeddings: Embeddings, seed: int) -> list[Operation]:
    """Returns some 1,250 operations on some 7,100 rows."""
    return _Planner(embeddings, random.Random(seed)).plan()


class _Planner:
    """Draws operations, and remembers what is still owed: rows to be put right, rows to be put back."""

    def __init__(self, embeddings: Embeddings, choose: random.Random) -> None:
        self._embeddings = embeddings
        self._choose = choose
        self._operations: list[Operation] = []
        self._untouched = list(range(len(embeddings.ids)))
        choose.shuffle(self._untouched)
        self._right: list[int] = []  # rows that stand as they should
        self._wrong: list[int] = []  # rows that stand with another's vector
        self._renamed: list[int] = []  # rows that stand with other metadata
        self._gone: list[int] = []  # rows that were deleted
        self._short_lived: list[int] = []
        self._next_short_lived = 1

    def plan(self) -> list[Operation]:
        acts: dict[Callable[[], None], int] = {
            self._insert: 42,
            self._insert_wrong: 10,
            self._insert_many: 16,
            self._correct: 8,
            self._correct_many: 2,
            self._rename: 3,
            self._name_back: 2,
            self._delete: 6,
            self._delete_many: 1,
            self._put_back: 5,
            self._insert_short_lived: 4,
            self._delete_short_lived: 3,
        }
        while self._untouched:
            [act] = self._choose.choices(list(acts), list(acts.values()))
            act()
        self._settle()
        return self._operations

    # -- single rows

    def _insert(self) -> None:
        self._give("insert", [self._untouched.pop()])

    def _insert_wrong(self) -> None:
        row = self._untouched.pop()
        self._add("insert", [row], [self._choose.randrange(len(self._embeddings.ids))], self._own_metadata([row]))
        self._wrong.append(row)

    def _correct(self) -> None:
        if self._wrong:
            row = self._take(self._wrong)
            self._add("update", [row], [row])  # the metadata stays
            self._right.append(row)

    def _rename(self) -> None:
        if self._right:
            row = self._take(self._right)
            self._add("update", [row], None, [{"revision": self._choose.randrange(1000)}])  # the vector stays
            self._renamed.append(row)

    def _name_back(self) -> None:
        if self._renamed:
            row = self._take(self._renamed)
            self._add("update", [row], None, self._own_metadata([row]))
            self._right.append(row)

    def _delete(self) -> None:
        if self._right:
            row = self._take(self._right)
            self._add("delete", [row])
            self._gone.append(row)

    def _put_back(self) -> None:
        if self._gone:
            self._give(self._choose.choice(["insert", "upsert"]), [self._take(self._gone)])

    def _insert_short_lived(self) -> None:
        number, self._next_short_lived = self._next_short_lived, self._next_short_lived + 1
        row = self._choose.randrange(len(self._embeddings.ids))
        self._operations.append(Operation("insert", [number], [row]))
        self._short_lived.append(number)

    def _delete_short_lived(self) -> None:
        if self._short_lived:
            self._operations.append(Operation("delete", [self._take(self._short_lived)]))

    # -- many rows

    def _insert_many(self) -> None:
        count = min(self._choose.randint(8, 48), len(self._untouched))
        self._give("insert_many", [self._untouched.pop() for _ in range(count)])

    def _correct_many(self) -> None:
        if self._wrong:
            rows = self._some(self._wrong)
            self._add("update_many", rows, rows)
            self._right.extend(rows)

    def _delete_many(self) -> None:
        if self._right:
            rows = self._some(self._right)
            self._add("delete_many", rows)
            self._gone.extend(rows)

    def _settle(self) -> None:
        """Pays what is owed."""
        if self._wrong:
            self._add("update_many", self._wrong, self._wrong)
        if self._renamed:
            self._give("update_many", self._renamed)
        if self._gone:
            self._give("upsert_many", self._gone)
        if self._short_lived:
            self._operations.append(Operation("delete_many", list(self._short_lived)))

    # -- shared

    def _give(self, method: str, rows: list[int]) -> None:
        """Gives rows their own vectors and summaries."""
        self._add(method, rows, rows, self._own_metadata(rows))
        self._right.extend(rows)

    def _own_metadata(self, rows: list[int]) -> list[Metadata]:
        return [{"summary": self._embeddings.summaries[row]} for row in rows]

    def _add(
        self, method: str, rows: Iterable[int], given: list[int] | None = None, metadata: list[Metadata] | None = None
    ) -> None:
        ids = [self._embeddings.ids[row] for row in rows]
        self._operations.append(Operation(method, ids, None if given is None else list(given), metadata))

    def _take(self, rows: list[int]) -> int:
        index = self._choose.randrange(len(rows))
        rows[index], rows[-1] = rows[-1], rows[index]
        return rows.pop()

    def _some(self, rows: list[int]) -> list[int]:
        return [self._take(rows) for _ in range(min(self._choose.randint(2, 12), len(rows)))]
