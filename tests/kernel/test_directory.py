"""The directory: the compiled one and its twin give the same answers, whatever is asked of them."""

from __future__ import annotations

import random
import threading
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmwal.format.frame import FRAME, Kind, encode_id, pack_ids, pack_metadata
from mmwal.kernel.interface import (
    FROM_MATRIX,
    NO_ROW,
    NOT_TAKEN,
    REPLAY_CONTRADICTS,
    REPLAY_DONE,
    REPLAY_SHAPE,
    ROWS_MAX,
)

NEVER = (1 << 64) - 1
IDS = ["a", "b", "é", "日本", "x" * 300, "🙂", 0, -1, 7, "7", (1 << 63) - 1, -(1 << 63)]
ROWS = 12
ids = st.sampled_from(IDS)
rows = st.integers(0, ROWS - 1)
metadata = st.sampled_from([None, b"", b"m", b"longer metadata" * 9])


def i64(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def state_of(directory: Any) -> Any:
    named = [row for row in range(ROWS) if directory.name(row) is not None]
    return (
        len(directory),
        [directory.get(id) for id in IDS],
        [id in directory for id in IDS],
        [(directory.name(row), directory.metadata(row)) for row in range(ROWS)],
        directory.pack_ids(i64(*named)),
        directory.pack_metadata(i64(*named)),
    )


@st.composite
def blocks(draw: Any) -> Any:
    taken = draw(st.lists(rows, min_size=1, max_size=6, unique=True))
    places = [row if draw(st.booleans()) else NO_ROW for row in taken]
    names = draw(st.lists(ids, min_size=len(places), max_size=len(places)))
    said = draw(st.lists(metadata, min_size=len(places), max_size=len(places)))
    return pack_ids(names), pack_metadata(said), places


calls = st.one_of(
    st.tuples(st.just("put"), ids, rows, metadata),
    st.tuples(st.just("pop"), ids),
    st.tuples(st.just("forget"), st.lists(rows, max_size=4)),
    st.tuples(st.just("put_block"), blocks()),
    st.tuples(st.sampled_from(["find_block", "pop_block"]), st.lists(ids, max_size=6)),
)


def call(directory: Any, name: str, *given: Any) -> Any:
    if name == "forget":
        return directory.forget(i64(*given[0]))
    if name == "put_block":
        block, said, places = given[0]
        before = i64(*places)
        directory.put_block(block, said, i64(*places), before)
        return before.tolist()
    if name in ("find_block", "pop_block"):
        out = np.full(len(given[0]), 99, np.int64)
        getattr(directory, name)(pack_ids(given[0]) if given[0] else b"", out)
        return out.tolist()
    try:
        return getattr(directory, name)(*given)
    except KeyError as error:
        return repr(error)


@settings(max_examples=300, deadline=None)
@given(script=st.lists(calls, max_size=40))
def test_both_answer_alike(script: list[Any]) -> None:
    import mmwal.kernel

    try:
        compiled = mmwal.kernel.load("c").Directory()
    except ImportError:
        pytest.skip("mmwal.kernel._kernel is not built")
    twin = mmwal.kernel.load("py").Directory()
    for step in script:
        assert call(compiled, *step) == call(twin, *step), step
        assert state_of(compiled) == state_of(twin), step


@pytest.fixture(params=["c", "py"])
def kernel(request: pytest.FixtureRequest, twins: tuple[Any, Any]) -> Any:
    return twins[request.param == "py"]


def test_what_is_no_id_is_not_there_and_cannot_be_put(kernel: Any) -> None:
    directory = kernel.Directory()
    for wrong in ("", "x" * 65536, "\ud800", 1 << 63, -(1 << 63) - 1, 1.0, None, b"a", ("a",)):
        assert directory.get(wrong) is None
        assert wrong not in directory
        with pytest.raises(KeyError):
            directory.pop(wrong)
        with pytest.raises(ValueError, match="is no id"):
            directory.put(wrong, 0, None)
    assert len(directory) == 0


def test_a_row_or_metadata_of_the_wrong_kind_is_refused(kernel: Any) -> None:
    directory = kernel.Directory()
    for row in (-2, ROWS_MAX, 1 << 40):
        with pytest.raises(ValueError, match="out of range"):
            directory.put("a", row, None)
        with pytest.raises(ValueError, match="out of range"):
            directory.name(row)
        with pytest.raises(ValueError, match="out of range"):
            directory.put_block(pack_ids(["a"]), b"", i64(row), i64(0))
    with pytest.raises(TypeError):
        directory.put("a", 0, "text")
    with pytest.raises(ValueError, match="row 3 has no id"):
        directory.pack_ids(i64(3))
    assert len(directory) == 0


def test_rows_are_packed_while_others_come_and_go(kernel: Any) -> None:
    """Who packs many rows releases the GIL: others are put into the same chunks, and into new ones, and forgotten."""
    many = 20_000  # more than one chunk
    directory = kernel.Directory()
    kept = np.arange(0, 2 * many, 2)
    names: list[str | int] = [f"name {row}" if row % 3 else row for row in kept.tolist()]
    said = [None if row % 5 else b"m" * (row % 50) for row in kept.tolist()]
    directory.put_block(pack_ids(names), pack_metadata(said), kept, np.empty(many, np.int64))
    others = np.arange(1, 4 * many, 2)
    ends = threading.Event()
    turns = 0

    def disturb() -> None:
        nonlocal turns
        while not ends.is_set():
            for start in range(0, len(others), 4000):
                part = others[start : start + 4000]
                block = pack_ids([f"other {row}" for row in part.tolist()])
                directory.put_block(block, b"", part, np.empty(len(part), np.int64))
            directory.forget(others)
            turns += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        expected_ids, expected_metadata = pack_ids(names), pack_metadata(said)
        until = time.monotonic() + 60
        while turns < 2 and time.monotonic() < until:
            assert directory.pack_ids(kept) == expected_ids
            assert directory.pack_metadata(kept) == expected_metadata
    finally:
        ends.set()
        thread.join()
    assert turns >= 2
    assert len(directory) == many


def test_the_first_row_without_an_id_is_named(kernel: Any) -> None:
    directory = kernel.Directory()
    for count in (3, 3000):
        named = np.arange(count)
        directory.put_block(pack_ids(named.tolist()), b"", named, np.empty(count, np.int64))
        for missing in (count, 1 << 40, -1):
            with pytest.raises(ValueError, match=f"row {missing} has no id"):
                directory.pack_ids(np.append(named, [missing, 7777777]))


def test_many_ids_come_and_go(kernel: Any) -> None:
    """Far more than a shard's first slots, so that shards grow and removal closes gaps; against a dict."""
    directory, model, dice = kernel.Directory(), dict[Any, int](), random.Random(5)
    free = list(range(30_000))
    for number in range(60_000):
        id = dice.choice([f"id-{dice.randrange(20_000)}", dice.randrange(20_000)])
        if dice.random() < 0.4 and id in model:
            row = model.pop(id)
            assert directory.pop(id) == row
        elif free:
            row = free.pop()
            before = model.get(id)
            assert directory.put(id, row, None) == before, number
            model[id] = row
            if before is None:
                continue
            row = before
        else:
            continue
        directory.forget(i64(row))
        free.append(row)
    assert len(directory) == len(model)
    assert {id: directory.get(id) for id in model} == model
    assert all(directory.name(row) == id for id, row in model.items())
    assert sum(id in directory for id in range(20_000)) == sum(type(id) is int for id in model)


GOOD = pack_ids(["a", 5, "é"])


@pytest.mark.parametrize(
    "block",
    [
        b"",
        GOOD[:8],
        GOOD[:-1],
        GOOD + b"x",
        b"\x00\x00\x00\x00" + GOOD[4:],
        (5 | 1 << 31).to_bytes(4, "little") + GOOD[4:],
        (70_000).to_bytes(4, "little") + GOOD[4:] + b"x" * 70_000,
        pack_ids(["a", 5, "xy"])[:-2] + b"\xc3\x28",
    ],
)
def test_a_malformed_block_of_ids_changes_nothing(kernel: Any, block: bytes) -> None:
    directory = kernel.Directory()
    directory.put("a", 0, b"kept")
    for act in (
        lambda: directory.put_block(block, b"", i64(1, 2, 3), i64(0, 0, 0)),
        lambda: directory.find_block(block, i64(0, 0, 0)),
        lambda: directory.pop_block(block, i64(0, 0, 0)),
        lambda: kernel.id_seeds(block, np.zeros(3, np.uint64), np.zeros(3, np.uint32)),
    ):
        with pytest.raises(ValueError, match="id"):
            act()
    assert (directory.get("a"), directory.metadata(0), len(directory)) == (0, b"kept", 1)


@pytest.mark.parametrize(
    "block", [b"abc", pack_metadata([b"xy", None, b""])[:-1], pack_metadata([b"", None, None]) + b"x"]
)
def test_a_malformed_block_of_metadata_changes_nothing(kernel: Any, block: bytes) -> None:
    directory = kernel.Directory()
    with pytest.raises(ValueError, match="metadata"):
        directory.put_block(GOOD, block, i64(1, 2, 3), i64(0, 0, 0))
    assert (len(directory), directory.name(1)) == (0, None)


@settings(max_examples=500, deadline=None)
@given(
    raw=st.one_of(
        st.binary(min_size=1, max_size=12),
        st.text(min_size=1, max_size=4).map(lambda text: text.encode(errors="surrogatepass")),
    )
)
def test_an_id_is_utf8_as_python_says(raw: bytes) -> None:
    import mmwal.kernel

    block = len(raw).to_bytes(4, "little") + raw
    for name in ("c", "py"):
        try:
            directory = mmwal.kernel.load(name).Directory()
        except ImportError:
            continue
        try:
            expected = raw.decode()
        except UnicodeDecodeError:
            with pytest.raises(ValueError, match=r"UTF-8|utf-8"):
                directory.find_block(block, i64(0))
        else:
            directory.put_block(block, b"", i64(3), i64(0))
            assert (directory.get(expected), directory.name(3)) == (3, expected)


def test_seeds_bind_a_row_to_id_and_lsn(twins: tuple[Any, Any]) -> None:
    names = ["a", 7, "日本", "x" * 65_535]
    lsns = np.array([64, 1 << 40, (1 << 62) + 64, 128], np.uint64)
    for kernel in twins:
        out = np.zeros(4, np.uint32)
        kernel.id_seeds(pack_ids(names), lsns, out)
        starts = [(lsn ^ lsn >> 32) & 0xFFFF_FFFF for lsn in lsns.tolist()]
        assert out.tolist() == list(map(zlib.crc32, map(encode_id, names), starts))


# -- replay ---------------------------------------------------------------------------------------------------------

ROW_BYTES = 8


def frame(kind: int, names: list[Any], said: list[bytes | None] | None = None, *, vectors: bool = True) -> bytes:
    vector_bytes = ROW_BYTES * len(names) if vectors and kind != Kind.DELETE else 0
    block, meta = pack_ids(names), pack_metadata(said or [None])
    header = FRAME.pack(
        commit=0, frame_crc=0, kind=kind, flags=0, dtype=int(vector_bytes > 0), reserved=0, start_lsn=0, txn=0,
        time_ns=0, durable_lsn=0, rows=len(names), vector_bytes=vector_bytes, id_bytes=len(block), meta_bytes=len(meta),
    )  # fmt: skip
    content = header + bytes(vector_bytes) + block + meta
    return content + bytes(-len(content) % 64)


class Replayed:
    """A directory of two checkpointed rows, and what a replay makes of it."""

    def __init__(self, kernel: Any, rows: int = 16) -> None:
        self.directory = kernel.Directory()
        self.directory.put("old", 0, b"old metadata")
        self.directory.put(1, 1, None)
        self.supply = np.arange(rows - 1, 1, -1).astype(np.int64)
        self.left = len(self.supply)
        self.origins = np.full(rows, NOT_TAKEN, np.int32)
        self.places = np.zeros(rows, np.int64)
        self.born, self.died = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
        self.born[:2], self.died[:2] = 64, NEVER

    def run(self, *frames: bytes, origin: int = 2, **instead: Any) -> Any:
        offsets = np.cumsum([0, *map(len, frames)])[:-1].astype(np.int64)
        lsns = (offsets + 128).astype(np.uint64)
        given = {"supply": self.supply, "left": self.left, "origins": self.origins, "row_bytes": ROW_BYTES} | instead
        done, reason, self.left, applied, skipped = self.directory.replay(
            segment=b"".join(frames), offsets=offsets, lsns=lsns, origin=origin, dtype=1,
            places=self.places, born=self.born, died=self.died, **given,
        )  # fmt: skip
        return done, reason, applied, skipped

    def facts(self) -> Any:
        names = ["old", 1, "a", "b", "c", 2]
        taken = np.flatnonzero(self.origins != NOT_TAKEN).tolist()
        return (
            {name: (self.directory.get(name), self._said(name)) for name in names if name in self.directory},
            {row: (int(self.origins[row]), int(self.places[row]), int(self.born[row])) for row in taken},
            self.died.tolist(), sorted(self.supply[: self.left].tolist()), len(self.directory),
        )  # fmt: skip

    def _said(self, name: Any) -> bytes | None:
        said: bytes | None = self.directory.metadata(self.directory.get(name))
        return said


def test_last_writer_wins_and_takes_a_fresh_row(kernel: Any) -> None:
    replayed = Replayed(kernel)
    frames = [frame(Kind.INSERT, ["a", "b"], [b"ma", None]), frame(Kind.UPSERT, ["a"]), frame(Kind.DELETE, ["b", "zz"])]
    assert replayed.run(*frames, origin=4) == (3, REPLAY_DONE, 4, 1)
    alive, taken, _, _, count = replayed.facts()
    row, said = alive["a"]
    assert (set(alive), said, count) == ({"old", 1, "a"}, b"ma", 3)  # an upsert that says nothing keeps the metadata
    assert taken == {row: (4, len(frames[0]) + 64, len(frames[0]) + 128)}
    assert replayed.left == len(replayed.supply) - 1  # replaced and deleted rows are free again


def test_rows_of_the_checkpoint_end_but_stay_named(kernel: Any) -> None:
    replayed = Replayed(kernel)
    replayed.run(frame(Kind.UPDATE, ["old"], [b"new"], vectors=False), frame(Kind.DELETE, [1]))
    alive, taken, died, _, _ = replayed.facts()
    row, said = alive["old"]
    assert (taken[row][:2], said, set(alive)) == ((FROM_MATRIX, 0), b"new", {"old"})
    assert (died[0] < NEVER, died[1] < NEVER, replayed.directory.name(0), replayed.directory.name(1)) == (
        True,
        True,
        "old",
        1,
    )
    replayed.run(frame(Kind.UPDATE, ["old"], [b"newer"], vectors=False))
    (row, said), taken = replayed.facts()[0]["old"], replayed.facts()[1]
    assert (taken[row][:2], said) == ((FROM_MATRIX, 0), b"newer")  # of an update of an update, still the first's vector


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (frame(Kind.INSERT, ["b"], vectors=False), REPLAY_CONTRADICTS),
        (frame(Kind.UPSERT, ["b"])[:64] + bytes(64), REPLAY_CONTRADICTS),
        (frame(Kind.UPDATE, ["a", 1], [b"x", b"y"]).replace(b"xy", b"xyz"), REPLAY_DONE),
    ],
)
def test_of_a_frame_that_contradicts_itself_nothing_is_applied(kernel: Any, wrong: bytes, reason: int) -> None:
    replayed, good = Replayed(kernel), frame(Kind.INSERT, ["a"])
    result = replayed.run(good, wrong)
    if reason == REPLAY_DONE:
        assert result == (2, reason, 3, 0)  # bytes behind the blocks are padding
        return
    assert result == (1, reason, 1, 0)
    assert set(replayed.facts()[0]) == {"old", 1, "a"}


def test_vectors_of_another_shape_stop_it(kernel: Any) -> None:
    assert Replayed(kernel).run(frame(Kind.INSERT, ["a"]), row_bytes=12) == (0, REPLAY_SHAPE, 0, 0)


def test_what_is_out_of_bounds_is_refused(kernel: Any) -> None:
    replayed = Replayed(kernel)
    with pytest.raises(ValueError, match="out of bounds"):
        replayed.run(frame(Kind.INSERT, ["a"]), left=0)
    with pytest.raises(ValueError, match="out of bounds"):
        replayed.run(frame(Kind.INSERT, ["a"])[:-64])
    assert len(replayed.directory) == 2


@settings(max_examples=200, deadline=None)
@given(
    script=st.lists(
        st.tuples(
            st.sampled_from([Kind.INSERT, Kind.UPDATE, Kind.UPSERT, Kind.DELETE]),
            st.lists(st.sampled_from(["old", 1, "a", "b", "c", 2]), min_size=1, max_size=3),
            st.lists(metadata, min_size=3, max_size=3),
            st.booleans(),
        ),
        max_size=12,
    ),
    cut=st.integers(0, 12),
)
def test_both_replay_alike(script: list[Any], cut: int) -> None:
    import mmwal.kernel

    try:
        pair = [Replayed(mmwal.kernel.load(name), 64) for name in ("c", "py")]
    except ImportError:
        pytest.skip("mmwal.kernel._kernel is not built")
    frames = [frame(kind, names, said[: len(names)], vectors=vectors) for kind, names, said, vectors in script]
    for part in (frames[:cut], frames[cut:]):
        results = [replayed.run(*part, origin=7) for replayed in pair]
        assert results[0] == results[1]
        assert pair[0].facts() == pair[1].facts()
