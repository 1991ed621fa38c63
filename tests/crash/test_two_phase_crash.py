"""Two-phase commit, crashed at every message and at every call of a disk: all participants agree afterwards (item 106).

Coordinator and participants have a disk each. One of them dies, as by SIGKILL or a power cut, and is opened again from
what its disk holds; or the power of all three fails at once. What is right then:

* nothing is in doubt once everybody is back: every participant has a transaction whole, or none has anything of it;
* a transaction whose commit returned is there, and one whose rollback returned, or whose prepare was refused, is not.

The drills run in one thread: messages are calls, so that every place to die has a number.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

import mmwal
from mmwal.errors import PrepareFailedError
from mmwal.opening import open_store
from mmwal.testing.background import SimulatedMutex
from mmwal.testing.simulator import SimulatedDisk
from mmwal.two_phase import GlobalTransaction, Operation, StoreParticipant, TwoPhaseCommit
from tests.store.stores import DIMENSION, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")

STORES = ("east", "west")
COORDINATOR = "coordinator"
ALL = "all"
ARRIVES, ANSWERED = "arrives", "answered"


class Died(BaseException):
    """A process ended here."""


@dataclass
class World:
    """Two participants and a coordinator. Whoever is `victim` dies at place number `at`; None: only count."""

    kernel: str
    rng: random.Random
    at: int | None = None
    victim: str = ALL
    power: bool = True
    places: list[tuple[str, str]] = field(default_factory=list)  # who could die there, and what it is
    disks: dict[str, SimulatedDisk] = field(default_factory=dict)
    stores: dict[str, mmwal.VectorStore] = field(default_factory=dict)
    left: dict[str, SimulatedDisk] = field(default_factory=dict)  # of whoever has died and is not back
    counting: bool = False

    def begin(self) -> None:
        for name in (*STORES, COORDINATOR):
            self._watch(name, SimulatedDisk(seed=name))
        for name in STORES:
            self._open(name)
            self.stores[name].insert_many(["kept", "goes"], [vector(1), vector(2)], durable=True)

    def coordinate(self) -> TwoPhaseCommit:
        lines = {name: Line(self, name) for name in STORES}
        return TwoPhaseCommit(lines, "/decisions", kernel=self.kernel, disk=self.disks[COORDINATOR])

    def place(self, who: str, what: str) -> None:
        """A place where somebody can die: a call of the disk, or a message on its way."""
        if not self.counting:
            return
        self.places.append((who, what))
        if len(self.places) - 1 != self.at:
            return
        self.counting = False
        dying = (*STORES, COORDINATOR) if self.victim == ALL else (self.victim,)
        for name in dying:
            self.left[name] = self._crashed(self.disks[name])
        raise Died

    def _crashed(self, disk: SimulatedDisk) -> SimulatedDisk:
        if not self.power:
            return disk.kill()
        return disk.image(self.rng.choice(list(disk.images(self.rng, 8))))

    def restart(self, name: str) -> None:
        """Opens whoever has died again."""
        if name in self.left:
            self._watch(name, self.left.pop(name))
            if name in STORES:
                self._open(name)

    def _watch(self, name: str, disk: SimulatedDisk) -> None:
        disk.on_step = lambda _, step, label: self.place(name, label)
        self.disks[name] = disk

    def _open(self, name: str) -> None:
        config = mmwal.WalConfig(
            wal_dir="/store/wal",
            data_dir="/store/data",
            dimension=DIMENSION,
            segment_size=64 << 10,
            sync_interval_ms=100,
            kernel=self.kernel,  # type: ignore[arg-type]
        )
        self.stores[name] = open_store(config, self.disks[name])
        self.stores[name]._state.lock = SimulatedMutex()  # type: ignore[assignment, union-attr]


class Line:
    """The way to a participant, who may be dead at either end of a message; it is back for the one after."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    def call(self, what: str, act: Callable[[mmwal.VectorStore], Any]) -> Any:
        world, name = self._world, self._name
        world.restart(name)
        try:
            world.place(name, f"{what} {ARRIVES}")
            answer = act(world.stores[name])
            world.place(name, f"{what} {ANSWERED}")
        except Died:
            if world.victim != name:  # the coordinator is gone, and whoever asked with it
                raise
            raise ConnectionError(f"{name} is gone") from None
        return answer

    def prepare(self, gid: str, operations: Sequence[Any]) -> None:
        self.call("prepare", lambda store: StoreParticipant(store).prepare(gid, operations))

    def commit(self, gid: str) -> None:
        self.call("commit", lambda store: StoreParticipant(store).commit(gid))

    def rollback(self, gid: str) -> None:
        self.call("rollback", lambda store: StoreParticipant(store).rollback(gid))

    def list_in_doubt(self) -> Sequence[str]:
        return list(self.call("list_in_doubt", lambda store: StoreParticipant(store).list_in_doubt()))


def insert(id: str) -> Any:
    return Operation.Insert(id, vector(3))


PLANS: dict[str, Any] = {
    "first": [insert("first"), Operation.Delete("goes")],
    "second": {name: [insert("second")] for name in STORES},
    "refused": [insert("refused"), insert("kept")],
    "third": [insert("third")],
}


def drill(world: World, told: dict[str, bool]) -> TwoPhaseCommit:
    """Four transactions, and checkpoints while two of them are in doubt; notes in ``told`` what anybody was told."""

    def prepared(name: str) -> GlobalTransaction | None:
        try:
            return tpc.prepare(PLANS[name])
        except PrepareFailedError:
            told[name] = False
            return None

    world.counting = True
    tpc = world.coordinate()
    first, second = prepared("first"), prepared("second")
    for name in STORES:
        with suppress(ConnectionError):
            Line(world, name).call("checkpoint", _work)
    if first is not None:
        first.commit()
        told["first"] = True
    if second is not None:
        second.rollback()
        told["second"] = False
    assert prepared("refused") is None
    if (third := prepared("third")) is not None:
        third.commit()
        told["third"] = True
    world.counting = False
    return tpc


def _work(store: mmwal.VectorStore) -> None:
    """What goes on in a store while it waits for a decision."""
    store.upsert("elsewhere", vector(9))
    for _ in range(2):  # so that neither checkpoint is of before the transaction
        store.checkpoint()


def recovered(world: World, seed: int) -> None:
    """Brings everybody back, who may die over it again, and lets the coordinator end what is in doubt."""
    for _ in range(seed % 3):
        world.at = len(world.places) + world.rng.randrange(1, 120)
        world.victim = world.rng.choice((ALL, COORDINATOR))
        world.counting = True
        with suppress(Died):
            for name in (*STORES, COORDINATOR):
                world.restart(name)
            world.coordinate()
        world.counting = False
        for name in (*STORES, COORDINATOR):  # or it ended in peace, and is killed in the end
            world.left.setdefault(name, world.disks[name].kill())
    for name in (*STORES, COORDINATOR):
        world.restart(name)
    assert world.coordinate().list_in_doubt() == []


def check(world: World, told: dict[str, bool]) -> None:
    found = {name: set(store.ids()) for name, store in world.stores.items()}
    for name, ids in found.items():
        assert world.stores[name].list_in_doubt() == []
        assert "kept" in ids
        assert ("first" in ids) == ("goes" not in ids), f"{name} has half of a transaction"
        ids.discard("elsewhere")
    assert found["east"] == found["west"], "they disagree"
    for name, committed in told.items():
        assert (name in found["east"]) == committed, f"{name}: told {committed}"


def victims(who: str, what: str) -> list[str]:
    """Who can die at a place: the one whose disk is called, either end of a message, everybody."""
    either = [who, COORDINATOR] if what.endswith((ARRIVES, ANSWERED)) else [who]
    return sorted({*either, ALL})


def crash_at(kernel: Any, at: int, victim: str, power: bool, seed: int) -> None:
    world = World(kernel.NAME, random.Random(f"{at} {victim} {power} {seed}"), at, victim, power)
    world.begin()
    told: dict[str, bool] = {}
    tpc = None
    with suppress(Died):
        tpc = drill(world, told)
    world.counting = False
    if tpc is not None:  # a participant has died, or nobody: the coordinator itself brings it to an end
        assert told.keys() == PLANS.keys()
        world.restart(victim)
        tpc.recover()  # who was told of a rollback may have forgotten it: it is not forced
        check(world, told)
    for name in (*STORES, COORDINATOR):
        world.left.setdefault(name, world.disks[name].kill())
    recovered(world, seed)
    check(world, told)


def ways(kernel: Any) -> Iterator[tuple[int, str, bool]]:
    world = World(kernel.NAME, random.Random(0))
    world.begin()
    told: dict[str, bool] = {}
    drill(world, told)
    assert told == {"first": True, "second": False, "refused": False, "third": True}
    check(world, told)
    for at, (who, what) in enumerate(world.places):
        for victim, power in itertools.product(victims(who, what), (True, False)):
            yield at, victim, power


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmwal.two_phase._RETRY_S", (0, 0))


def test_every_message_and_some_of_the_disk_calls(kernel: Any) -> None:
    everywhere = list(ways(kernel))
    world = World(kernel.NAME, random.Random(0))
    world.begin()
    drill(world, {})
    messages = [way for way in everywhere if world.places[way[0]][1].endswith((ARRIVES, ANSWERED))]
    assert len(messages) > 100
    for at, victim, power in messages[:: 1 if kernel.NAME == "c" else 3]:
        crash_at(kernel, at, victim, power, seed=1)
    for at, victim, power in random.Random(kernel.NAME).sample(everywhere, 150):
        crash_at(kernel, at, victim, power, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_everywhere(kernel: Any, seed: int) -> None:
    for at, victim, power in ways(kernel):
        crash_at(kernel, at, victim, power, seed)
