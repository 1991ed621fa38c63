"""Several writers on one log as a target of the crash explorer: a seeded schedule decides who goes on, at every step.

Two to four writers append rows, batches and transactions, wait for durability, sync and release, each a script of its
own; in some runs one more thread closes the log meanwhile. Power fails and the process dies wherever the schedule may
switch: between two stores of one frame, in a sync that others append beside, while a late writer waits for the next.

Not here: how threads are switched (`scheduler.py`), crashes (`explorer.py`), what is right (`model.py`).

* ``writers-py`` runs the twin. Its lock is the scheduler's; or it has none, and then its appends interleave store by
  store as those of the compiled kernel do. A reservation, and a move of `published`, is one step, as it is there.
* ``writers-c`` runs the compiled kernel, one call one step; some appends the twin makes, over the same cursor block and
  the same segments: appenders that are paused between reserve, each store, and publish.
* A group takes its place in the model when its range is reserved; it is promised when the call returned.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mmwal.errors import UnavailableError, WalFullError
from mmwal.format.frame import Kind
from mmwal.format.metadata import encode_metadata
from mmwal.kernel import reference
from mmwal.kernel.interface import SETTLE
from mmwal.log.batch import Batch, append_batches
from mmwal.log.log import Log
from mmwal.testing.explorer import Pace
from mmwal.testing.model import Group, Model, Rows
from mmwal.testing.scheduler import Mutex, Pressure, Scheduler
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import KINDS, WAL, LogSession, LogStory, LogTarget

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel
    from mmwal.log.control import LogControl

PACE = Pace(life=0.012, nested_look=0.3, acts=(2, 6), nested_acts=(1, 2))  # an act is hundreds of looks
COMMIT_BYTES = 8
HEADER_REST_BYTES = 56
KERNEL_FUNCTIONS = ("NAME", "crc32", "all_finite", "scan", "find_frame", "gather", "row_checksums")


@dataclass(frozen=True)
class WritersStory(LogStory):
    """What is fixed for a story."""

    locked: bool  # the twin's appends exclude each other, as they do in production
    pressure: Pressure


class WritersModel(Model):
    """A model whose groups are issued by several writers at once: their order is that of their reservations."""

    def place(self, rows: Rows, lsn: int, known_durable_lsn: int) -> None:
        """Notes that a call reserved the range of a group: from now on the group may be found, there."""
        assert not self.groups or lsn > self.groups[-1].lsn, f"LSN {lsn} was reserved behind {self.groups[-1].lsn}"
        self.groups.append(Group(rows, lsn, known_durable_lsn))

    def returned_up_to(self, lsn: int) -> None:
        """Notes that the call with this LSN returned: the group is promised, and so is everything below it."""
        index = len(self.groups)
        while index and self.groups[index - 1].lsn != lsn:
            index -= 1
        assert index, f"LSN {lsn} was returned and never reserved"
        self.returned = max(self.returned, index)

    def finished(self) -> Model:
        """Returns a model that says of no frame where it is, unless it is certainly whole."""
        unsure = [group._replace(lsn=0) for group in self.groups[self.returned :]]
        return Model(self.groups[: self.returned] + unsure, self.durable, self.returned, self.released_lsn)

    def fork(self, *, power: bool) -> WritersModel:
        """Returns what is promised after a crash."""
        plain = super().fork(power=power)
        return WritersModel(plain.groups, plain.durable, plain.returned, plain.released_lsn)


class Memory(np.ndarray[Any, Any]):
    """The bytes of a segment: each store into them is a point of the schedule, before it and after the last."""

    content: memoryview
    storing: Callable[[str], None]

    def __getitem__(self, key: Any) -> Any:
        return self.content[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        size = len(value)
        what = {COMMIT_BYTES: "commit", HEADER_REST_BYTES: "header"}.get(size, "body")
        self.storing(f"append {what}")
        self.content[key] = value
        if size == COMMIT_BYTES:
            self.storing("append committed")

    def release(self) -> None:
        """Lets go of the mapping."""
        self.content = memoryview(b"")


class SteppedCursor(reference.Cursor):
    """The twin's cursor, stopped between its stores; with a compiled cursor over the same block, both of them."""

    def __init__(
        self, shape: tuple[Any, ...], scheduler: Scheduler, on_reserved: Callable[[int], None], *, locked: bool
    ) -> None:
        super().__init__(*shape)
        self._scheduler = scheduler
        self._on_reserved = on_reserved
        self._compiled: Any = None
        self._counting: dict[str, bool] = {}  # by thread: its append has not reserved yet, and counts once it has
        self._lock = cast("Any", Mutex(scheduler, "append lock") if locked else contextlib.nullcontext())

    def share(self, compiled: Any) -> None:
        """Makes appends through a compiled cursor over the same block, and now and then itself."""
        self._compiled = compiled

    def attach(self, number: int, segment: Any, salt: int) -> None:
        if self._compiled is None:
            super().attach(number, segment, salt)
        else:
            self._compiled.attach(number, segment, salt)
        memory = np.frombuffer(segment, np.uint8).view(Memory)
        memory.content, memory.storing = memoryview(segment), self._storing
        self._segments[number] = cast("Any", memory), salt

    def detach(self, number: int) -> None:
        if self._compiled is None:
            super().detach(number)
            return
        self._compiled.detach(number)
        self._segments.pop(number)[0].release()

    def append(self, kind: int, id: Any, vector: Any, metadata: bytes | None, time_ns: int, row: int, /) -> int:
        plain = super().append
        compiled = self._compiled.append if self._compiled is not None else None
        return self._either(True, plain, compiled, kind, id, vector, metadata, time_ns, row)

    def append_frame(self, kind: int, dtype: int, rows: int, txn: int, *rest: Any) -> int:
        counts = kind == Kind.COMMIT or (kind != Kind.IDLE and txn == 0)
        plain = super().append_frame
        compiled = self._compiled.append_frame if self._compiled is not None else None
        return self._either(counts, plain, compiled, kind, dtype, rows, txn, *rest)

    def _either(self, counts: bool, plain: Callable[..., int], compiled: Any, *what: Any) -> int:
        self._scheduler.point("append begins")
        if compiled is not None and self._scheduler.chance(0.6):
            result: int = compiled(*what)
            lsn = result if result > 0 else -result if result < SETTLE else 0
            if lsn and counts:
                self._on_reserved(lsn)
            self._scheduler.point("append returns")
            return result
        self._counting[self._scheduler.current] = counts
        return plain(*what)

    def _storing(self, label: str) -> None:
        if self._counting.pop(self._scheduler.current, False):  # its first store: nobody has gone on since it reserved
            self._on_reserved(self.reserved)
        self._scheduler.point(label)


class WritersTarget(LogTarget):
    """Several writers on one log, on one of the two kernels."""

    def __init__(self, kernel: str = "py") -> None:
        super().__init__(kernel)
        self.name = f"writers-{kernel}"
        self.pace = PACE
        self.switches = 0  # of all runs

    def story(self, rng: random.Random) -> WritersStory:
        plain = super().story(rng)
        return WritersStory(
            dimension=plain.dimension,
            runway_segments=plain.runway_segments,
            sync_interval_ms=plain.sync_interval_ms,
            live_bytes_max=plain.live_bytes_max,
            faulty=rng.random() < 0.4,
            locked=self.kernel.NAME == "py" and rng.random() < 0.25,
            pressure=Pressure(switch=rng.choice((0.2, 0.5, 0.9)), stall=rng.choice((0.02, 0.1, 0.3))),
        )

    def model(self) -> WritersModel:
        return WritersModel()

    def open(self, disk: SimulatedDisk, story: LogStory) -> WritersSession:
        assert isinstance(story, WritersStory)
        scheduler = Scheduler(disk)
        tail = self._recover(disk, story)

        def reserved(lsn: int) -> None:
            session.reserved(lsn)

        log = Log(
            disk,
            self._stepped(scheduler, reserved, locked=story.locked),
            WAL,
            tail,
            sync_interval_ms=story.sync_interval_ms,
            append_timeout_ms=100,
            live_bytes_max=story.live_bytes_max,
            runway_segments=story.runway_segments,
            check_finite=True,
        )
        session = WritersSession(disk, log, tail.control, story, scheduler, self)
        return session

    def damage(self, disk: SimulatedDisk, story: LogStory, model: Model, rng: random.Random) -> str | None:
        assert isinstance(model, WritersModel)
        return super().damage(disk, story, model.finished(), rng)

    def _stepped(self, scheduler: Scheduler, on_reserved: Callable[[int], None], *, locked: bool) -> Kernel:
        """Returns the kernel with a cursor that the scheduler can stop."""

        def cursor(*shape: Any) -> SteppedCursor:
            stepped = SteppedCursor(shape, scheduler, on_reserved, locked=locked)
            if self.kernel.NAME == "c":
                stepped.share(self.kernel.Cursor(*shape))
            return stepped

        functions = {name: getattr(self.kernel, name) for name in KERNEL_FUNCTIONS}
        return cast("Kernel", SimpleNamespace(Cursor=cursor, **functions))


class WritersSession(LogSession):
    """An open log and its writers."""

    story: WritersStory

    def __init__(
        self,
        disk: SimulatedDisk,
        log: Log,
        control: LogControl,
        story: WritersStory,
        scheduler: Scheduler,
        target: WritersTarget,
    ) -> None:
        super().__init__(disk, log, control, story)
        self.scheduler = scheduler
        self._target = target
        self._model = WritersModel()
        self._issued: dict[str, Rows] = {}  # by writer: what it logs just now
        self._counts: dict[str, int] = {}  # by writer: rows so far
        self._last: dict[str, int] = {}  # by writer: the LSN that returned last
        self._closing = False
        self._greatest = (0, 0)

    def problem(self) -> str | None:
        positions = self.log.cursor.durable, self.log.cursor.published
        before, self._greatest = self._greatest, positions
        if positions[0] < before[0] or positions[1] < before[1]:
            return f"durable and published went back, from {before} to {positions}"
        return super().problem()

    def close(self) -> None:
        self.log.close()
        if self.log.failed:  # it says so once only
            raise self.log.refusal()

    def reserved(self, lsn: int) -> None:
        """Notes the place of what the thread that runs is logging."""
        self._model.place(self._issued[self.scheduler.current], lsn, self.log.cursor.durable)

    # ---- operations

    def act(self, rng: random.Random, model: Model) -> str:
        assert isinstance(model, WritersModel)
        self._model = model
        if not self._takes_writes():
            return "failed"
        name = rng.choices(ACTS, WEIGHTS)[0]
        if name == "idle":
            self._idle(rng, model)
        elif name.startswith("write"):
            self._write(rng, closing=name == "write_and_close")
            if self._closing:
                return "failed" if self.log.failed else "close"
            if not self._takes_writes():
                return "failed"
            if rng.random() < 0.1 and (problem := model.problem(self.found(), model.returned)) is not None:
                raise AssertionError(f"read beside no writer: {problem}")
        return name

    def _write(self, rng: random.Random, *, closing: bool) -> None:
        """Lets some writers work at once."""
        bodies: dict[str, Callable[[], None]] = {}
        for number in range(rng.randint(2, 4)):
            name = f"writer {number}"
            bodies[name] = partial(self._work, name, random.Random(rng.getrandbits(64)))
        if closing:
            bodies["closer"] = partial(self._close_beside, rng.randint(0, 6))
        before = self.scheduler.switches
        self.scheduler.interleave(bodies, random.Random(rng.getrandbits(64)), self.story.pressure)
        self._target.switches += self.scheduler.switches - before

    def _work(self, name: str, rng: random.Random) -> None:
        """Does what one writer does until its script ends, or the log."""
        for _ in range(rng.randint(1, 4)):
            operation = getattr(self, f"_{rng.choices(OPERATIONS, CHANCES)[0]}")
            try:
                operation(name, rng)
            except WalFullError:
                assert self.disk.faults or self.log.keeper.over_budget or self.log.append_waits, "full for no reason"
                self._give_room()
            except TimeoutError:
                continue
            except UnavailableError:
                assert self.log.failed or self._closing, "an open log takes no writes"
                return
            except OSError:
                assert any(fault.hits for fault in self.disk.faults), "an error that nobody ordered"

    def _close_beside(self, patience: int) -> None:
        """Closes the log while others write."""
        for _ in range(patience):
            self.scheduler.point("before close")
        self._closing = True
        try:
            self.log.close()
        except UnavailableError:
            assert self.log.failed, "a log that did not fail cannot close"
            return
        self._model.promise(self.log.cursor.durable)

    def _one(self, name: str, rng: random.Random) -> None:
        lsn = self._log(name, rng, 1)
        drawn = rng.random()
        if self.story.sync_interval_ms == 0 or drawn < 0.15:
            self._await(self.log.make_durable, lsn)
        elif drawn < 0.4:
            self._await(self.log.wait_durable, lsn)

    def _batch(self, name: str, rng: random.Random) -> None:
        lsn = self._log(name, rng, rng.randint(2, 12))
        if self.story.sync_interval_ms == 0:
            self._await(self.log.make_durable, lsn)

    def _transaction(self, name: str, rng: random.Random) -> None:
        room = self.log.frame_bytes_max
        lsn = self._log(name, rng, room // (self.story.dimension * 4 + 16) + rng.randint(1, 6))
        if self.story.sync_interval_ms == 0 or rng.random() < 0.5:
            self._await(self.log.make_durable, lsn)

    def _sync_now(self, name: str, rng: random.Random) -> None:
        self._await(self.log.make_durable, self.log.cursor.published)

    def _wait_for_own(self, name: str, rng: random.Random) -> None:
        lsn = self._last.get(name, 0)
        timeout_s = rng.choice((None, None, 0.0, 0.005))
        if lsn > self.log.cursor.durable:
            self._await(self.log.wait_durable, lsn, timeout_s)

    def _let_go(self, name: str, rng: random.Random) -> None:
        """Releases what returned, up to somewhere."""
        model = self._model
        known = [group.lsn for group in model.groups[: model.returned] if group.lsn > model.released_lsn]
        if known:
            self._release_up_to(rng.choice(known[: len(known) // 2 + 1]))

    def _give_room(self) -> None:
        model = self._model
        if model.returned and model.groups[model.returned - 1].lsn > model.released_lsn:
            with contextlib.suppress(UnavailableError):
                self._release_up_to(model.groups[model.returned - 1].lsn)

    def _release_up_to(self, lsn: int) -> None:
        self._model.released_lsn = max(self._model.released_lsn, lsn)
        self._await(self.log.release, lsn)

    def _await(self, wait: Callable[..., None], lsn: int, *timeout_s: float | None) -> None:
        """Waits, and takes the return as the promise that it is."""
        wait(lsn, *timeout_s)
        self._model.promise(lsn)

    def _log(self, name: str, rng: random.Random, count: int) -> int:
        rows, attempt = self._draw(name, rng, count)
        self._issued[name] = rows
        lsn = attempt()
        self._model.returned_up_to(lsn)
        assert lsn > self._last.get(name, 0), f"{name} got LSN {lsn} behind its LSN {self._last[name]}"
        self._last[name] = lsn
        self.scheduler.point("append returned")
        return lsn

    def _draw(self, name: str, rng: random.Random, count: int) -> tuple[Rows, Callable[[], int]]:
        """Returns rows that nobody else logs, and the call that logs them."""
        operation, kind = rng.choice(KINDS) if count == 1 else KINDS[0]
        first = self._counts.get(name, 0)
        self._counts[name] = first + count
        ids: list[str | int] = [f"{name[-1]}.{number}" for number in range(first, first + count)]
        metadata = None if kind == Kind.DELETE or rng.random() < 0.6 else {"n": rng.randrange(1000)}
        vectors = None
        if kind != Kind.DELETE:
            raw = np.frombuffer(rng.randbytes(2 * count * self.story.dimension), np.int16).astype(np.float32)
            vectors = raw.reshape(count, -1)
        rows = tuple(
            (operation, id, None if vectors is None else vectors[row].tobytes(), metadata) for row, id in enumerate(ids)
        )
        log, packed = self.log, encode_metadata(metadata)
        if count > 1:
            return rows, lambda: append_batches(log, [Batch(kind, ids, vectors, [packed] * count)])
        vector = vectors[0] if vectors is not None else None

        def attempt() -> int:
            return log.cursor.append(kind, ids[0], vector, packed, self.disk.time_ns(), -1)

        def settled() -> int:
            lsn = attempt()
            return lsn if 0 < lsn <= log.segment_end_lsn else log.settle(lsn, attempt)

        return rows, settled


_WEIGHED = {"write": 60, "write_and_close": 8, "idle": 6, "close": 3, "kill": 3}
ACTS, WEIGHTS = list(_WEIGHED), list(_WEIGHED.values())
_SCRIPTED = {
    "one": 40,
    "batch": 16,
    "transaction": 4,
    "sync_now": 10,
    "wait_for_own": 10,
    "let_go": 5,
}
OPERATIONS, CHANCES = list(_SCRIPTED), list(_SCRIPTED.values())
