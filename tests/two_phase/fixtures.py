"""Participants that fail when told to, over stores on disks of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.two_phase import StoreParticipant, TwoPhaseCommit
from tests.store.stores import close_quietly, config

Open = Callable[..., TwoPhaseCommit]


class Unreliable:
    """A store behind a line that can break: each call in `broken` raises that many times, before or after it is done;
    `waits` are called first."""

    def __init__(self, store: mmwal.VectorStore) -> None:
        self.store = store
        self.calls: list[str] = []
        self.broken: dict[str, list[str]] = {}
        self.waits: dict[str, Callable[[], object]] = {}

    def _call(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        self.waits.get(name, lambda: None)()
        when = self.broken[name].pop(0) if self.broken.get(name) else ""
        if when == "before":
            raise ConnectionError("the line is dead")
        answer = getattr(StoreParticipant(self.store), name)(*args)
        if when == "after":
            raise ConnectionError("the line went dead")
        return answer

    def prepare(self, gid: str, operations: Sequence[Any]) -> None:
        self._call("prepare", gid, operations)

    def commit(self, gid: str) -> None:
        self._call("commit", gid)

    def rollback(self, gid: str) -> None:
        self._call("rollback", gid)

    def list_in_doubt(self) -> Sequence[str]:
        return list(self._call("list_in_doubt"))


@pytest.fixture
def parties(tmp_path: Path, kernel: Any) -> Iterator[dict[str, Unreliable]]:
    """Two stores, `east` and `west`."""
    opened = {
        name: Unreliable(mmwal.open(config=config(tmp_path / name, kernel, sync_interval_ms=0)))
        for name in ("east", "west")
    }
    yield opened
    for party in opened.values():
        close_quietly(party.store)


@pytest.fixture
def coordinate(tmp_path: Path, kernel: Any, parties: dict[str, Unreliable]) -> Iterator[Open]:
    """Open a coordinator over them; each call is another process's, so the one before is closed."""
    opened: list[TwoPhaseCommit] = []

    def open_one(**how: Any) -> TwoPhaseCommit:
        for one in opened:
            one.close()
        opened.append(TwoPhaseCommit(parties, tmp_path / "decisions", kernel=kernel.NAME, **how))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
