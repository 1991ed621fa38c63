"""An endless history of writes that a seed tells, what must be there after each, and the checker of what was found.

For the tools that kill real processes and cut the power of real file systems. Operation n is the same in the process
that writes and in the one that checks: neither tells the other what it wrote, only how far it came.

What is found after a crash is right if and only if it is exactly what stood after some number of operations, not fewer
than were promised and not more than were begun, each with the LSN that its call returned. Not here: crashes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import mmwal
from mmwal.entry import WalEntry

DIMENSION = 24
SEGMENT_BYTES = 64 << 10
IDS = 600
_POOL = np.random.default_rng(5).standard_normal((256, DIMENSION)).astype(np.float32)
_LARGE_ROWS = 400  # more than fit into a segment: a transaction

Id = str | int
Row = tuple[str, Id, bytes | None, dict[str, Any] | None]


class Wrong(Exception):
    """A wrong answer; ``kind`` is "lost", "phantom" or "refused"."""

    def __init__(self, kind: str, problem: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {problem}")


@dataclass(frozen=True)
class Operation:
    """One call: ``insert``, ``update``, ``upsert`` or ``delete`` of one id, or of many at once."""

    kind: str
    ids: list[Id]
    vectors: Any  # (n, d) float32, None for deletes and where only metadata changes
    metadata: list[dict[str, Any] | None]

    def store(self, store: mmwal.VectorStore) -> int:
        """Carries it out; returns the LSN."""
        if len(self.ids) > 1:
            if self.kind == "delete":
                return store.delete_many(self.ids)
            return getattr(store, f"{self.kind}_many")(self.ids, self.vectors, self.metadata)  # type: ignore[no-any-return]
        if self.kind == "delete":
            return store.delete(self.ids[0])
        vector = None if self.vectors is None else self.vectors[0]
        return getattr(store, self.kind)(self.ids[0], vector, self.metadata[0])  # type: ignore[no-any-return]

    def log(self, wal: mmwal.WalManager) -> int:
        """Logs it; returns the LSN."""
        if len(self.ids) > 1 or self.kind == "upsert":
            metadata = None if self.kind == "delete" else self.metadata
            return wal.log_batch(self.ids, self.vectors, metadata, operation=self.kind)  # type: ignore[arg-type]
        if self.kind == "delete":
            return wal.log_delete(self.ids[0])
        vector = None if self.vectors is None else self.vectors[0]
        return getattr(wal, f"log_{self.kind}")(self.ids[0], vector, self.metadata[0])  # type: ignore[no-any-return]

    def rows(self) -> tuple[Row, ...]:
        """Returns what a log must show of it."""
        return tuple(
            (self.kind, id, None if self.vectors is None else self.vectors[row].tobytes(), self.metadata[row])
            for row, id in enumerate(self.ids)
        )


@dataclass
class Truth:
    """What stands after ``count`` operations. ``lsns``: what the calls returned, 0 where that is not known."""

    seed: int
    count: int = 0
    lsns: list[int] = field(default_factory=list)
    released_lsn: int = 0  # up to here a log may be gone

    def operation(self) -> Operation:
        """Returns the next operation."""
        raise NotImplementedError

    def advance(self) -> None:
        """Follows the next operation."""
        raise NotImplementedError

    def agrees(self, found: Any) -> bool:
        """Returns whether exactly this was found."""
        raise NotImplementedError

    def copy(self) -> Any:
        """Returns one that goes its own way."""
        raise NotImplementedError

    def difference(self, found: Any) -> str:
        """Returns where the two differ."""
        raise NotImplementedError

    def advance_to(self, count: int) -> None:
        """Follows operations until there were so many."""
        while self.count < count:
            self.advance()

    def _lsn(self) -> int:
        return self.lsns[self.count] if self.count < len(self.lsns) else 0

    def _vectors(self, rows: int, rng: random.Random) -> Any:
        vectors = _POOL[[rng.randrange(len(_POOL)) for _ in range(rows)]]
        vectors[:, 0], vectors[:, 1] = self.count, range(rows)  # no two operations write the same
        return vectors


def check(truth: Truth, found: Any, most: int) -> int:
    """Returns after how many operations it was as found: at least as many as ``truth`` has followed, at most ``most``.

    Raises `Wrong`.
    """
    later, last = truth.copy(), None
    while True:
        if later.agrees(found):
            last = later.count
        if later.count >= most:
            break
        later.advance()
    if last is not None:
        return int(last)
    earlier = type(truth)(truth.seed, lsns=truth.lsns, released_lsn=truth.released_lsn)
    agreed = None
    while earlier.count < truth.count:
        if earlier.agrees(found):
            agreed = earlier.count
        earlier.advance()
    if agreed is not None:
        raise Wrong("lost", f"{truth.count - agreed} of {truth.count} promised writes, from write {agreed} on")
    kind = "lost" if truth.lacks(found) else "phantom"  # type: ignore[attr-defined]
    raise Wrong(kind, f"no state that ever was, of {truth.count} to {most} writes; {truth.difference(found)}")


# ---- a store

Contents = dict[Id, tuple[bytes, dict[str, Any] | None, int]]


@dataclass
class StoreTruth(Truth):
    """A store: what each id has. An LSN of 0 is one that nobody was told."""

    held: Contents = field(default_factory=dict)

    def copy(self) -> StoreTruth:
        return StoreTruth(self.seed, self.count, self.lsns, self.released_lsn, self.held.copy())

    def operation(self) -> Operation:
        rng = random.Random(self.seed * 1_000_003 + self.count)
        kind, rows = rng.choices(_ACTS, _ODDS)[0]
        rows = rng.randint(2, rows) if 1 < rows < _LARGE_ROWS else rows
        ids = self._ids(rng, rows, None if kind == "upsert" else kind != "insert")
        if len(ids) < rows:
            kind, ids = "upsert", self._ids(rng, rows, None)
        metadata = [{"n": self.count} if rng.random() < 0.5 else None for _ in ids]
        if kind == "delete":
            return Operation(kind, ids, None, [None] * len(ids))
        if kind == "update" and rows == 1 and rng.random() < 0.3:
            return Operation(kind, ids, None, [{"only": self.count}])
        return Operation(kind, ids, self._vectors(rows, rng), metadata)

    def advance(self) -> None:
        operation, lsn = self.operation(), self._lsn()
        for row, id in enumerate(operation.ids):
            before = self.held.pop(id, None) if operation.kind == "delete" else self.held.get(id)
            if operation.kind == "delete":
                continue
            if operation.vectors is not None:
                vector = operation.vectors[row].tobytes()
            else:
                assert before is not None
                vector = before[0]
            metadata = operation.metadata[row]
            if metadata is None and before is not None:
                metadata = before[1]
            self.held[id] = (vector, metadata, lsn)
        self.count += 1

    def agrees(self, found: Contents) -> bool:
        if found.keys() != self.held.keys():
            return False
        for id, (vector, metadata, lsn) in self.held.items():
            there = found[id]
            if there[0] != vector or there[1] != metadata or (lsn and there[2] != lsn):
                return False
        return True

    def lacks(self, found: Contents) -> bool:
        """Returns whether an id is missing, or has an older value than it must."""
        return any(id not in found or found[id][2] < lsn for id, (_, _, lsn) in self.held.items())

    def difference(self, found: Contents) -> str:
        ids = [id for id in self.held.keys() | found.keys() if self.held.get(id) != found.get(id)]
        told = [f"{id!r}: promised {_short(self.held.get(id))}, found {_short(found.get(id))}" for id in ids[:3]]
        return f"{len(ids)} of {len(self.held)} ids differ; " + "; ".join(told)

    def _ids(self, rng: random.Random, rows: int, held: bool | None) -> list[Id]:
        """Returns up to so many ids that are held, or not; None: either."""
        first, ids = rng.randrange(IDS), []
        for number in range(first, first + IDS):
            id = _id(number % IDS)
            if held is None or (id in self.held) is held:
                ids.append(id)
                if len(ids) == rows:
                    break
        return ids


_WEIGHED = {
    ("insert", 1): 25,
    ("insert", 12): 8,
    ("update", 1): 18,
    ("update", 8): 5,
    ("upsert", 1): 15,
    ("upsert", 20): 5,
    ("upsert", _LARGE_ROWS): 1,
    ("delete", 1): 16,
    ("delete", 10): 7,
}
_ACTS, _ODDS = list(_WEIGHED), list(_WEIGHED.values())


# ---- a log alone

Groups = list[tuple[tuple[Row, ...], int]]


@dataclass
class LogTruth(Truth):
    """A log: what counts together, in order; ``groups[0]`` is operation ``first``."""

    first: int = 0
    groups: list[tuple[Row, ...]] = field(default_factory=list)

    def copy(self) -> LogTruth:
        return LogTruth(self.seed, self.count, self.lsns, self.released_lsn, self.first, self.groups.copy())

    def operation(self) -> Operation:
        rng = random.Random(self.seed * 1_000_003 + self.count)
        kind, rows = rng.choices(_ACTS, _ODDS)[0]
        rows = rng.randint(2, rows) if 1 < rows < _LARGE_ROWS else rows
        first = rng.randrange(IDS)
        ids = [_id((first + row) % IDS) for row in range(rows)]
        metadata = [{"n": self.count} if rng.random() < 0.5 else None for _ in ids]
        if kind == "delete":
            return Operation(kind, ids, None, [None] * rows)
        if kind == "update" and rows == 1 and rng.random() < 0.3:
            return Operation(kind, ids, None, [{"only": self.count}])
        return Operation(kind, ids, self._vectors(rows, rng), metadata)

    def advance(self) -> None:
        self.groups.append(self.operation().rows())
        self.count += 1

    def agrees(self, found: tuple[int, Groups]) -> bool:
        oldest_lsn, groups = found
        start = self._below(oldest_lsn)
        if oldest_lsn > self.released_lsn and start > self._below(self.released_lsn):
            return False
        if start < self.first or start + len(groups) != self.count:
            return False
        for index, (rows, lsn) in enumerate(groups, start):
            known = self.lsns[index] if index < len(self.lsns) else 0
            if rows != self.groups[index - self.first] or (known and lsn != known):
                return False
        return True

    def lacks(self, found: tuple[int, Groups]) -> bool:
        """Returns whether the log begins or ends where it may not."""
        start = self._below(found[0])
        return start > self._below(self.released_lsn) or start + len(found[1]) < self.count

    def difference(self, found: tuple[int, Groups]) -> str:
        oldest_lsn, groups = found
        start = self._below(oldest_lsn)
        for index, (rows, lsn) in enumerate(groups, start):
            issued = self.groups[index - self.first] if 0 <= index - self.first < len(self.groups) else None
            known = self.lsns[index] if index < len(self.lsns) else 0
            if rows != issued or (known and lsn != known):
                return f"entry {index} at LSN {lsn} (returned was {known}): {rows[:1]!r:.200}, issued {issued!r:.200}"
        return f"writes {start} to {start + len(groups)}, oldest LSN {oldest_lsn}, released {self.released_lsn}"

    def forget(self) -> None:
        """Drops what was released long ago."""
        keep = max(self.first, self._below(self.released_lsn) - 2000)
        del self.groups[: keep - self.first]
        self.first = keep

    def _below(self, lsn: int) -> int:
        """Returns how many operations an LSN covers."""
        low, high = 0, min(self.count, len(self.lsns))
        known = self.lsns
        while high > low and not known[high - 1]:
            high -= 1
        end = high
        while low < high:
            middle = (low + high) // 2
            at = middle
            while at < end and not known[at]:
                at += 1
            if at < end and known[at] <= lsn:
                low = at + 1
            else:
                high = middle
        return low


def _id(number: int) -> Id:
    return number if number % 2 else f"id-{number}"


def _short(value: tuple[bytes, Any, int] | None) -> str:
    if value is None:
        return "nothing"
    return f"{np.frombuffer(value[0], np.float32)[:2].tolist()}, {value[1]}, LSN {value[2]}"


# ---- the real thing


def open_handle(
    what: str, directory: str, kernel: Any, sync_interval_ms: int, *, disk: Any = None, runway_segments: int = 1
) -> Any:
    """Opens a store or a log alone, in small segments, so that even a short life rotates, recycles, checkpoints."""
    common: dict[str, Any] = {
        "dimension": DIMENSION,
        "segment_size": SEGMENT_BYTES,
        "kernel": kernel,
        "sync_interval_ms": sync_interval_ms,
        "runway_segments": runway_segments,
    }
    if what == "store":
        return mmwal.open(directory, max_wal_size=1 << 20, checkpoint_interval=300, disk=disk, **common)
    return mmwal.WalManager(mmwal.WalConfig(wal_dir=directory, max_wal_size=4 << 20, **common), disk=disk)


def look(handle: Any) -> Any:
    """Returns what a handle shows: contents of a store, or where a log begins and its groups."""
    if isinstance(handle, mmwal.VectorStore):
        ids = handle.ids()
        records = handle.get_many(ids)
        contents = {record.id: (record.vector.tobytes(), record.metadata, record.lsn) for record in records if record}
        if len(contents) != len(ids) or len(handle) != len(ids):
            raise Wrong("phantom", f"{len(ids)} ids, {len(contents)} records, length {len(handle)}")
        return contents
    groups: Groups = []
    for entry in handle.replay():
        if isinstance(entry, (WalEntry.Commit, WalEntry.Checkpoint)):
            continue
        rows = tuple(_rows_of(entry))
        if groups and groups[-1][1] == entry.lsn:
            groups[-1] = (groups[-1][0] + rows, entry.lsn)
        else:
            groups.append((rows, entry.lsn))
    return handle.oldest_lsn, groups


def _rows_of(entry: Any) -> Iterator[Row]:
    if isinstance(entry, WalEntry.Batch):
        for row, id in enumerate(entry.ids):
            vector = None if entry.vectors is None else entry.vectors[row].tobytes()
            yield entry.operation, id, vector, entry.metadata[row] if entry.metadata else None
    elif isinstance(entry, WalEntry.Delete):
        yield "delete", entry.id, None, None
    else:
        yield entry.kind, entry.id, None if entry.vector is None else entry.vector.tobytes(), entry.metadata


def new_truth(what: str, seed: int) -> Any:
    """Returns what stands before the first operation."""
    return StoreTruth(seed) if what == "store" else LogTruth(seed)


def write_on(handle: Any, truth: Any, tell: Callable[[str], None], rng: random.Random, writes: int | None) -> None:
    """Writes on from where ``truth`` stands: operations, and now and then a sync, a checkpoint, a pause, a release.

    ``tell`` is called with "write" before each operation, "returned" once ``truth`` has followed it, and with what
    else is about to be done.
    """
    is_store = isinstance(handle, mmwal.VectorStore)
    stop = None if writes is None else truth.count + writes
    while stop is None or truth.count < stop:
        operation = truth.operation()
        tell("write")
        lsn = operation.store(handle) if is_store else operation.log(handle)
        del truth.lsns[truth.count :]
        truth.lsns.append(lsn)
        truth.advance()
        tell("returned")
        chance = rng.random()
        if chance < 0.04:
            tell("sync")
            handle.sync()
            tell("synced")
        elif chance < 0.06 and is_store:
            tell("checkpoint")
            handle.checkpoint()
            tell("synced")
        elif chance < 0.065:
            tell("pause")
            with suppress(TimeoutError):
                handle.wait_durable(lsn, 0.05)
            tell("synced")
        if not is_store and truth.count % 25 == 0 and truth.lsns[max(0, truth.count - 40)]:
            truth.released_lsn = truth.lsns[max(0, truth.count - 40)]
            tell("release")
            handle.release(truth.released_lsn)
            truth.forget()
