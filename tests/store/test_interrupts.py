"""An interrupt between the log and the store: nothing is lost, and nothing differs, whoever closes behind it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import mmwal
from mmwal.errors import SyncFailedError
from mmwal.state import rows as rows_room
from mmwal.testing.simulator import SimulatedDisk
from tests.store.fixtures import OpenStore
from tests.store.stores import rows, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

Write = Callable[[mmwal.VectorStore], Any]
WRITES: dict[str, Write] = {
    "insert": lambda store: store.insert("new", vector(1)),
    "update": lambda store: store.update("a", vector(9)),
    "delete": lambda store: store.delete("a"),
    "insert_many": lambda store: store.insert_many(["new", "newer"], rows([1, 2])),
    "delete_many": lambda store: store.delete_many(["a", "b"]),
}
STEPS = ["state.put", "state.put_many", "state.remove", "append", "append_frame"]


def interrupt(store: Any, step: str, patch: pytest.MonkeyPatch) -> list[str]:
    """Lets Ctrl-C arrive right behind a step; returns whether it did."""
    arrived: list[str] = []

    def behind(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **how: Any) -> Any:
            act(*args, **how)
            arrived.append(step)
            store._log.gate.sync(store._log.cursor.published)  # another thread's: a checkpoint need not wait for it
            raise KeyboardInterrupt

        return run

    if step == "append":
        patch.setattr(store, "_append", behind(store._append))
    elif step == "append_frame":
        patch.setattr(store._log, "append_frame", behind(store._log.append_frame))
    else:
        name = step.removeprefix("state.")
        patch.setattr(store._state, name, behind(getattr(store._state, name)))
    return arrived


@pytest.mark.parametrize("interval", [0, 3_600_000])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("write", WRITES)
def test_what_is_in_the_log_is_there_after_a_close_as_after_a_kill(
    open_store: OpenStore, write: str, step: str, interval: int
) -> None:
    disk = SimulatedDisk()
    store = open_store(disk=disk, sync_interval_ms=interval)
    store.insert_many(["a", "b"], rows([1, 2]))
    with pytest.MonkeyPatch.context() as patch:
        arrived = interrupt(store, step, patch)
        with suppress(KeyboardInterrupt):
            WRITES[write](store)
    if not arrived:
        return
    killed = open_store(disk=disk.kill())
    if store.failed:
        with pytest.raises(SyncFailedError, match="interrupted"):
            store.insert("later", vector(3))
        with pytest.raises(SyncFailedError):
            store.checkpoint()
        with pytest.raises(SyncFailedError):
            store.close()
    else:
        store.close()
    closed = open_store(disk=disk)
    assert {id: closed[id].tolist() for id in closed} == {id: killed[id].tolist() for id in killed}
    assert sorted(map(str, closed.ids())) == sorted(map(str, killed.ids()))


def test_growth_that_fails_once_costs_one_write(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SimulatedDisk(reserve_bytes_max=1 << 18)
    store = open_store(disk=disk)
    longer, failed = rows_room._longer, []

    def once(*args: Any) -> Any:
        if not failed:
            failed.append(True)
            raise MemoryError
        return longer(*args)

    monkeypatch.setattr(rows_room, "_longer", once)
    written = []
    for number in range(300):
        try:
            store.insert(number, vector(number))
        except MemoryError:
            continue
        written.append(number)
    assert failed
    assert len(written) >= 299
    assert store.ids() == written
    store.close()
    assert open_store(disk=disk).ids() == written
