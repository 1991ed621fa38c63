"""Processes that take part in two-phase commits and wait to be killed.

    python -m tests.process.parties participant SOCKET DIRECTORY KERNEL    a store behind a socket; says ``open``
    python -m tests.process.parties coordinator ROOT KERNEL FIRST          commits number after number over two stores

The coordinator says ``open``, then ``commit N`` or ``rollback N`` for each that returned.
"""

import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np

import mmwal
from mmwal.two_phase import Operation, StoreParticipant, TwoPhaseCommit

STORES = ("east", "west")
VECTOR = np.ones(4, np.float32)


def open_store(directory: Path, kernel: Any) -> mmwal.VectorStore:
    return mmwal.open(
        directory, dimension=4, segment_size=64 << 10, sync_interval_ms=100, checkpoint_interval=20, kernel=kernel
    )


def operations(number: int) -> list[Any]:
    """Of transaction ``number``: a row of its own, and one that all write."""
    return [Operation.Insert(number, VECTOR), Operation.Upsert("shared", VECTOR, {"number": number})]


class Remote:
    """A participant in another process: a connection for each call, and `ConnectionError` where nobody answers."""

    def __init__(self, address: str) -> None:
        self._address = address

    def _call(self, name: str, *args: Any) -> Any:
        try:
            with Client(self._address, "AF_UNIX") as line:
                line.send((name, args))
                answer = line.recv()
        except (OSError, EOFError) as error:
            raise ConnectionError(f"{self._address}: {error!r}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def prepare(self, gid: str, operations: Sequence[Any]) -> None:
        plain = [(operation.kind, operation.id, operation.metadata) for operation in operations]
        self._call("prepare", gid, plain)

    def commit(self, gid: str) -> None:
        self._call("commit", gid)

    def rollback(self, gid: str) -> None:
        self._call("rollback", gid)

    def list_in_doubt(self) -> Sequence[str]:
        return list(self._call("list_in_doubt"))

    def ids(self) -> set[Any]:
        return set(self._call("ids"))


def participate(address: str, directory: str, kernel: str) -> None:
    """Serves a store until killed."""
    store = open_store(Path(directory), kernel)
    participant = StoreParticipant(store)
    with Listener(address, "AF_UNIX") as listener:
        print("open", flush=True)
        while True:
            with listener.accept() as line:
                name, args = line.recv()
                try:
                    if name == "ids":
                        answer: Any = store.ids()
                    elif name == "prepare":
                        answer = participant.prepare(args[0], [_operation(*row) for row in args[1]])
                    else:
                        answer = getattr(participant, name)(*args)
                except Exception as error:  # noqa: BLE001 (told to whoever asked)
                    answer = RuntimeError(repr(error))
                line.send(answer)


def _operation(kind: str, id: Any, metadata: Any) -> Any:
    return (Operation.Insert if kind == "insert" else Operation.Upsert)(id, VECTOR, metadata)


def coordinate(root: str, kernel: Any, first: str) -> None:
    """Commits, and rolls back every fifth, until killed."""
    stores = {name: open_store(Path(root) / name, kernel) for name in STORES}
    tpc = TwoPhaseCommit(stores, Path(root) / "decisions", kernel=kernel)
    print("open", flush=True)
    for number in range(int(first), 1_000_000):
        transaction = tpc.prepare(operations(number))
        if number % 5 == 4:
            transaction.rollback()
            print("rollback", number, flush=True)
        else:
            transaction.commit()
            print("commit", number, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", mmwal.DurabilityWarning)
    {"participant": participate, "coordinator": coordinate}[sys.argv[1]](*sys.argv[2:])
