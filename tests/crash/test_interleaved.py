"""Interleaved writers on one log, crashed wherever the schedule may switch; and the scheduler itself."""

import random
from collections.abc import Callable

import pytest

from mmwal.kernel import reference
from mmwal.kernel.interface import BLOCK_BYTES
from mmwal.testing.explorer import Explorer, Violation, replay
from mmwal.testing.inode import PAGE, SimulatorError
from mmwal.testing.interleaved import PACE, WritersModel, WritersTarget
from mmwal.testing.model import Found, Group
from mmwal.testing.scheduler import Mutex, Pressure, Scheduler
from mmwal.testing.simulator import SimulatedDisk
from tests.conftest import _require_compiled_kernel

STORES = {"append body", "append header", "append commit", "append committed"}
ONLY_IN_SOME_STORIES = {"control.tmp unlink", "end", "segment.wal unlink", "spare.wal unlink"}
ALWAYS = Pressure(switch=1.0, stall=0.0, jump=0.0)


def explored(kernel: str, seed: int, images: int) -> tuple[Explorer, WritersTarget]:
    target = WritersTarget(kernel)
    explorer = Explorer(target, seed=seed, pace=PACE)
    explorer.run(images)
    return explorer, target


def assert_explored(explorer: Explorer, target: WritersTarget, images: int) -> None:
    report = explorer.report()
    assert report["distinct"] >= images
    assert report["kills"] > images / 50
    assert target.switches > images / 10
    assert set(report["crashed_labels"]) > STORES | {"lock", "segment.wal sync", "append returned", "append begins"}


@pytest.mark.parametrize("kernel", ["c", "py"])
def test_no_schedule_loses_what_a_writer_was_promised(kernel: str) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    explorer, target = explored(kernel, 1, 600)
    assert_explored(explorer, target, 600)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kernel", "seed"), [("c", 2), ("c", 3), ("py", 4), ("py", 5)])
def test_no_schedule_of_thousands_loses_what_a_writer_was_promised(kernel: str, seed: int) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    explorer, target = explored(kernel, seed, 15_000)
    assert_explored(explorer, target, 15_000)
    missed = {label for label in explorer.report()["labels_without_crash"] if not label.startswith("after")}
    assert missed <= ONLY_IN_SOME_STORIES


def test_same_seed_makes_the_same_schedule_and_images() -> None:
    (first, one), (second, two) = explored("py", 7, 60), explored("py", 7, 60)
    assert one.switches == two.switches > 0
    assert (first.labels, first.acts, first._distinct) == (second.labels, second.acts, second._distinct)


def test_append_that_does_not_wait_for_its_neighbour_is_found_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = reference.Cursor._log
    monkeypatch.setattr(reference.Cursor, "_log", lambda *what: result if (result := plain(*what)) > -64 else -result)
    with pytest.raises(Violation, match=r"promised groups lost|does not exist yet") as first:
        explored("py", 4, 5_000)
    with pytest.raises(Violation) as again:
        replay(first.value.line, WritersTarget("py"), PACE)
    assert (again.value.line, again.value.problem) == (first.value.line, first.value.problem)
    monkeypatch.undo()
    replay(first.value.line, WritersTarget("py"), PACE)


# ---- the scheduler


def interleaved(
    bodies: dict[str, Callable[[Scheduler], None]], seed: int = 1, pressure: Pressure = ALWAYS
) -> Scheduler:
    scheduler = Scheduler(SimulatedDisk())
    scheduler.interleave(
        {name: lambda body=body: body(scheduler) for name, body in bodies.items()},  # type: ignore[misc]
        random.Random(seed),
        pressure,
    )
    return scheduler


def test_schedules_differ_by_seed_and_by_nothing_else() -> None:
    def schedule(seed: int) -> str:
        went: list[str] = []

        def walk(scheduler: Scheduler) -> None:
            for _ in range(8):
                went.append(scheduler.current)
                scheduler.point("step")

        interleaved({"a": walk, "b": walk, "c": walk}, seed)
        return "".join(went)

    assert schedule(1) == schedule(1)
    assert len({schedule(seed) for seed in range(10)}) == 10


def test_store_made_during_a_sync_is_not_made_durable_by_it() -> None:
    disk = SimulatedDisk()
    file = disk.create("/file")
    file.allocate(PAGE)
    file.sync()
    disk.sync_directory("/")
    mapping = file.map(PAGE, writable=True)
    scheduler = Scheduler(disk)
    mapping.view[0] = 1
    disk.observe()

    def store(at: int) -> None:
        mapping.view[at] = 1
        disk.observe()

    beside = [lambda: store(8)]
    disk.on_step = lambda disk, step, label: beside.pop()() if label == "file sync" and beside else None
    scheduler.interleave({"sync": lambda: mapping.sync(0, PAGE)}, random.Random(1), ALWAYS)
    assert not beside
    found = {
        disk.image(choice).open("/file", writable=False).read(0, 9) for choice in disk.images(random.Random(1), 50)
    }
    assert found == {b"\1" + bytes(8), b"\1" + bytes(7) + b"\1"}


def test_wait_that_nobody_ends_is_a_deadlock() -> None:
    def wait(scheduler: Scheduler) -> None:
        condition = scheduler.condition()
        with condition:
            condition.wait()

    with pytest.raises(SimulatorError, match="deadlock: b waits for a notification"):
        interleaved({"a": lambda scheduler: scheduler.point("step"), "b": wait})


def test_two_locks_taken_crosswise_are_a_deadlock() -> None:
    scheduler = Scheduler(SimulatedDisk())
    locks = Mutex(scheduler, "left"), Mutex(scheduler, "right")

    def take(first: Mutex, second: Mutex) -> None:
        for _ in range(20):
            with first, second:
                pass

    bodies = {"a": lambda: take(*locks), "b": lambda: take(*locks[::-1])}
    with pytest.raises(SimulatorError, match=r"deadlock: a waits for right, b waits for left"):
        scheduler.interleave(bodies, random.Random(1), ALWAYS)


def test_run_without_end_is_an_error() -> None:
    def spin(scheduler: Scheduler) -> None:
        while True:
            scheduler.point("again")

    with pytest.raises(SimulatorError, match="no end"):
        interleaved({"a": spin, "b": spin})


def test_error_of_one_thread_ends_all_and_is_raised() -> None:
    ended: list[str] = []

    def fail(scheduler: Scheduler) -> None:
        scheduler.point("step")
        raise ValueError("of a")

    def go_on(scheduler: Scheduler) -> None:
        try:
            while True:
                scheduler.point("step")
        finally:
            ended.append("b")

    with pytest.raises(ValueError, match="of a"):
        interleaved({"a": fail, "b": go_on})
    assert ended == ["b"]


def test_lock_keeps_others_out_while_its_holder_is_paused() -> None:
    scheduler = Scheduler(SimulatedDisk())
    lock = Mutex(scheduler, "lock")
    inside: list[str] = []

    def enter() -> None:
        for _ in range(5):
            with lock, lock:
                inside.append(scheduler.current)
                scheduler.point("inside")
                inside.append(scheduler.current)

    scheduler.interleave({"a": enter, "b": enter, "c": enter}, random.Random(3), ALWAYS)
    assert len(inside) == 30
    assert inside[::2] == inside[1::2]


def test_timeout_passes_while_everybody_waits() -> None:
    results: list[bool] = []

    def wait(scheduler: Scheduler) -> None:
        condition = scheduler.condition()
        with condition:
            results.append(condition.wait(5.0))

    scheduler = interleaved({"a": wait})
    assert results == [False]
    assert scheduler.clock.monotonic_ns > 5_000_000_000


def test_stop_of_a_worker_waits_for_its_running_step() -> None:
    disk = SimulatedDisk()
    scheduler = Scheduler(disk)
    steps: list[str] = []

    def step() -> None:
        steps.append("begins")
        for _ in range(5):
            scheduler.point("step")
        steps.append("ends")

    worker = disk.start_worker("worker", step)

    def stop() -> None:
        while not steps:
            scheduler.point("before stop")
        worker.stop()
        steps.append("stopped")

    scheduler.interleave({"a": stop}, random.Random(1), ALWAYS)
    assert steps == ["begins", "ends", "stopped"]


# ---- the model


def reserved(*lsns: int) -> WritersModel:
    model = WritersModel()
    for lsn in lsns:
        model.place((f"row {lsn}",), lsn, 0)
    return model


def shown(*lsns: int) -> Found:
    return Found(0, [Group((f"row {lsn}",), lsn) for lsn in lsns])


def test_return_promises_all_that_was_reserved_before() -> None:
    model = reserved(10, 20, 30)
    model.returned_up_to(20)
    assert model.problem(shown(10, 20), model.returned) is None
    assert model.problem(shown(10, 20, 30), model.returned) is None
    assert "1 promised groups lost" in (model.problem(shown(10), model.returned) or "")
    assert "group 0 differs" in (model.problem(shown(20), model.returned) or "")
    model.promise(30)
    assert model.durable == 2  # nobody was told of the third


def test_position_that_was_never_reserved_is_refused() -> None:
    model = reserved(10, 20)
    with pytest.raises(AssertionError, match="never reserved"):
        model.returned_up_to(15)
    with pytest.raises(AssertionError, match="reserved behind"):
        model.place(("row",), 20, 0)


def test_stepped_cursor_writes_what_the_twin_writes() -> None:
    disk = SimulatedDisk()
    target = WritersTarget("py")
    made = target._stepped(Scheduler(disk), lambda lsn: None, locked=True)
    segments = []
    for cursor_type in (made.Cursor, reference.Cursor):
        segment = memoryview(bytearray(16384 + 64))
        start = -_address(segment) % 8
        segment = segment[start : start + 16384]
        cursor = cursor_type(memoryview(bytearray(BLOCK_BYTES)), 16384, 1, 0, True)
        cursor.start(8192)
        cursor.attach(0, segment, 12345)
        assert cursor.append(1, "id", None, b"\x80", 7, -1) == 8320
        segments.append(bytes(segment))
    assert segments[0] == segments[1]


def _address(view: memoryview) -> int:
    return reference._address(view)
