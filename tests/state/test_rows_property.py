"""Whatever is put, removed, read and checkpointed: no row that somebody may see is ever handed out again.

The model is a plain dict, and a copy of it for each reader, slot and running checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from mmwal.state.matrix import MemoryMatrix
from mmwal.state.state import Capture, State, View

IDS = st.sampled_from(["a", "b", "c", 1, 2])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), IDS),
        st.tuples(st.just("put"), IDS),
        st.tuples(st.just("put_many"), st.lists(IDS, min_size=1, max_size=4)),
        st.tuples(st.just("remove"), IDS),
        st.tuples(st.just("refuse")),
        st.tuples(st.just("open_reader")),
        st.tuples(st.just("close_reader"), st.integers(0, 9)),
        st.tuples(st.just("capture")),
        st.tuples(st.just("publish")),
        st.tuples(st.just("drop")),
    ),
    max_size=60,
)

Alive = dict[Any, tuple[int, int]]  # id to (row, LSN)


class Model:
    def __init__(self) -> None:
        self.state = State(MemoryMatrix(1, 1))
        self.alive: Alive = {}
        self.slots: list[Alive] = [{}]
        self.readers: list[tuple[View, Alive]] = []
        self.captured: tuple[Capture, Alive] | None = None
        self.lsn = 0

    def take(self, count: int) -> list[int]:
        rows = self.state.take_rows(count)
        seen = {row for alive in self.snapshots() for row, _ in alive.values()}
        assert not seen & set(rows)
        assert len(set(rows)) == count
        for row in rows:
            self.state.matrix.array[row] = self.lsn
        return rows

    def snapshots(self) -> Iterator[Alive]:
        yield self.alive
        yield from self.slots
        yield from (alive for _, alive in self.readers)
        if self.captured:
            yield self.captured[1]

    @contextmanager
    def frame(self) -> Iterator[int]:
        self.lsn += 64
        with self.state.lock:
            yield self.lsn
            self.state.advance(self.lsn)

    def put(self, id: Any) -> None:
        with self.frame() as lsn:
            [row] = self.take(1)
            self.state.put(id, row, lsn, None)
        self.alive = {**self.alive, id: (row, lsn)}

    def put_many(self, ids: list[Any]) -> None:
        with self.frame() as lsn:
            rows = self.take(len(ids))
            self.state.put_many(ids, rows, lsn, None)
        self.alive = {**self.alive, **{id: (row, lsn) for id, row in zip(ids, rows, strict=True)}}

    def remove(self, id: Any) -> None:
        if id in self.alive:
            with self.frame() as lsn:
                self.state.remove(id, lsn)
            self.alive = {known: place for known, place in self.alive.items() if known != id}

    def refuse(self) -> None:
        with self.state.lock:
            self.state.give_back(*self.take(1))

    def open_reader(self) -> None:
        self.readers.append((self.state.reading(), self.alive))

    def close_reader(self, index: int) -> None:
        if self.readers:
            self.readers.pop(index % len(self.readers))[0].close()

    def capture(self) -> None:
        if self.captured is None:
            with self.state.lock:
                self.captured = self.state.capture(), self.alive

    def publish(self) -> None:
        if self.captured is not None:
            self.state.checkpoint_published(self.captured[0])
            self.slots = [self.slots[-1], self.captured[1]]
            self.captured = None

    def drop(self) -> None:
        if self.captured is not None:
            with self.state.lock:
                self.state.drop_capture(self.captured[0])
            self.captured = None

    def check(self) -> None:
        assert {
            id: (row := self.state.directory.get(id), self.state.rows.born[row]) for id in self.state.ids()
        } == self.alive
        with self.state.reading() as view:
            for reader, alive in [*self.readers, (view, self.alive)]:
                rows = reader.rows()
                found = {id: (row, lsn) for row, (id, lsn, _) in zip(rows.tolist(), reader.records(rows), strict=True)}
                assert found == alive
                assert [reader.array[row, 0] for row, _ in alive.values()] == [lsn for _, lsn in alive.values()]


@settings(max_examples=300, deadline=None)
@given(OPERATIONS)
def test_no_row_that_somebody_may_see_is_handed_out(operations: list[tuple[Any, ...]]) -> None:
    with (
        mock.patch("mmwal.state.state._COLLECT_ROWS_LEAST", 1),  # so that short histories reuse rows
        mock.patch("mmwal.state.limbo.STEP_ROWS", 2),
    ):
        model = Model()
        for name, *arguments in operations:
            getattr(model, name)(*arguments)
            model.check()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6))
def test_rows_in_use_stay_few_where_nobody_looks(ids: int, batch: int) -> None:
    with mock.patch("mmwal.state.state._COLLECT_ROWS_LEAST", 1):
        model = Model()
        for n in range(200):
            model.put_many([(n + i) % ids for i in range(batch)])
            if n % 10 == 0:
                model.capture()
                model.publish()
        assert model.state.rows.high <= 4 * (ids + 2 * batch) + 8
