"""The crash explorer: runs stories on the simulated disk, crashes them everywhere, and checks what comes back.

    explorer = Explorer(LogTarget("py"), seed=1)
    explorer.run(images_max=10_000)          # raises Violation at the first wrong answer
    print(explorer.report())
    replay(violation.line)                   # the same failure again, and nothing else

A *story* is a life of a target (`target_log.py` has the log alone) on a fresh disk: open, act, close, kill, open again.
At every *look* (before each disk call, and after each act) some crashes are made: power cuts drawn by the disk, and
kills. Each leaves a new disk, on which the target is opened and compared with the model. Some of these go on to a life
of their own, with looks of their own: crashes during a recovery, after it, and after new appends.

* Nothing is left to chance but by seed: a crash is named by the look's number in its life and the disk's choice, so a
  path of such names replays a failure. ``+`` after a choice: the crashed disk had a life; else it was only opened.
* Images are counted when distinct by content, and each is opened. One that comes again, with other promises, is what
  it was: its answer is compared again.
"""

from __future__ import annotations

import gc
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmwal.testing.leaf import LeafDisk
from mmwal.testing.model import Found, Model
from mmwal.testing.power import key_of
from mmwal.testing.simulator import SimulatedDisk

DEPTH_MAX = 3
THOROUGH = 8  # one image in so many is opened for writing, killed and opened again; the others are recovered and read
WIDE = 64  # unsettled words from which on a look has so many images that few were seen before
WIDER = 2  # so many times as many are drawn there
ANSWERS_MAX = 4096
GARBAGE = 100_000
RESERVE_BYTES = 1 << 18  # of a file that is mapped longer than it is: a small matrix
EVERYTHING = f"{(1 << 256) - 1:x}/{(1 << 256) - 1:x}/new"  # the power cut that loses nothing


class Session(Protocol):
    """An opened target."""

    def found(self) -> Found:
        """Reads everything back."""

    def durable_lsn(self) -> int:
        """Returns the durable position that anybody could read now."""

    def problem(self) -> str | None:
        """Returns what is wrong with the positions of the live target; None if nothing is."""

    def act(self, rng: random.Random, model: Model) -> str:
        """Draws one operation, does it, notes it in the model; returns its name. ``close`` and ``kill`` are asked of
        the explorer, ``failed`` says that the target takes no more writes."""

    def close(self) -> None:
        """Closes cleanly; everything that returned is durable then."""


class Target(Protocol):
    """What is crashed."""

    name: str

    def story(self, rng: random.Random) -> Any:
        """Draws what is fixed for a story: geometry and modes."""

    def model(self) -> Model: ...

    def open(self, disk: SimulatedDisk, story: Any) -> Session:
        """Opens with the real recovery, creating what is not there. Raises only for a fault that was ordered."""

    def glance(self, disk: SimulatedDisk, story: Any) -> Found:
        """Recovers as `open` does and reads everything; may be quicker, as nothing follows."""

    def damage(self, disk: SimulatedDisk, story: Any, model: Model, rng: random.Random) -> str | None:
        """Damages durable bytes, opens, and returns what is wrong: to refuse is right, to lose silently is not."""

    def faults(self, rng: random.Random, disk: SimulatedDisk, story: Any) -> None:
        """Orders the failing calls of a life; often none."""

    def expected(self, error: Exception, disk: SimulatedDisk) -> bool:
        """Whether opening or closing may raise this: an ordered fault struck."""


class Violation(Exception):
    """A wrong answer after a crash; ``line`` replays it."""

    def __init__(self, line: str, problem: str) -> None:
        self.line = line
        self.problem = problem
        super().__init__(f"{problem}\n  replay: tools/crash.py --replay '{line}'")


@dataclass(frozen=True)
class Pace:
    """How densely crashes are made: images at a look of a story; chances of the rest."""

    images: int = 2
    kill: float = 0.15
    damage: float = 0.4
    life: float = 0.06  # that a crashed disk gets a life of its own; a quarter of it one crash deeper
    nested_look: float = 0.4  # that a look of such a life makes crashes
    nested_images: int = 2
    acts: tuple[int, int] = (4, 20)
    nested_acts: tuple[int, int] = (1, 6)


DENSE = Pace(images=6, nested_images=4)  # fewer stories for as many images, in less time


@dataclass
class Explorer:
    """Explores one target from one seed."""

    target: Target
    seed: int = 0
    pace: Pace = field(default_factory=Pace)
    stories: int = 0
    images: int = 0  # power cuts drawn
    images_nested: int = 0  # of these, during a recovery or after one
    distinct_nested: int = 0
    kills: int = 0
    damages: int = 0
    recoveries: int = 0
    repeated: int = 0  # recoveries that were killed and run again, and gave the same state
    faults_struck: int = 0
    seconds: float = 0.0  # of CPU time
    labels: Counter[str] = field(default_factory=Counter)  # looks by label
    crashed_labels: Counter[str] = field(default_factory=Counter)  # crashes by the label of the look
    acts: Counter[str] = field(default_factory=Counter)
    _distinct: set[int] = field(default_factory=set)  # images
    _seen: set[int] = field(default_factory=set)  # images with what was promised of them
    _answers: dict[int, Found] = field(default_factory=dict)  # what the latest images showed
    violation: Violation | None = None
    _images_max: float = float("inf")
    _deadline: float = float("inf")

    @property
    def distinct(self) -> int:
        """Images distinct by content."""
        return len(self._distinct)

    def run(self, images_max: int, *, seconds_max: float = float("inf")) -> None:
        """Tells stories until so many distinct images were checked, or so many CPU seconds used. Raises `Violation`."""
        started = time.process_time()
        self._images_max, self._deadline = images_max, started + seconds_max
        thresholds = gc.get_threshold()
        gc.set_threshold(GARBAGE, 20, 100)  # every opened log is a cycle; the default looks far too often
        gc.freeze()  # and what is there already will stay
        try:
            while not self._is_done():
                story = f"{self.seed}.{self.stories}"
                self.stories += 1
                _Life(
                    self,
                    story,
                    (),
                    SimulatedDisk(seed=story, reserve_bytes_max=RESERVE_BYTES),
                    self.target.model(),
                    None,
                ).run()
                if self.violation is not None:  # the code under test swallowed it
                    raise self.violation
        finally:
            gc.unfreeze()
            gc.set_threshold(*thresholds)
            self.seconds += time.process_time() - started

    def _is_done(self) -> bool:
        return self.distinct >= self._images_max or time.process_time() >= self._deadline

    def report(self) -> dict[str, Any]:
        """Returns the figures, by name."""
        distinct = max(1, self.distinct)
        return {
            "target": self.target.name,
            "seed": self.seed,
            "stories": self.stories,
            "images": self.images,
            "distinct": self.distinct,
            "distinct_nested": self.distinct_nested,
            "nested_share": round(self.distinct_nested / distinct, 3),
            "kills": self.kills,
            "damages": self.damages,
            "recoveries": self.recoveries,
            "repeated": self.repeated,
            "faults_struck": self.faults_struck,
            "seconds": round(self.seconds, 1),
            "recoveries_per_second": round(self.recoveries / max(self.seconds, 1e-9)),
            "crashed_labels": dict(sorted(self.crashed_labels.items())),
            "labels_without_crash": sorted(set(self.labels) - set(self.crashed_labels)),
            "acts": dict(sorted(self.acts.items())),
        }


class _Life:
    """One disk from its first open to its end, and the crashes on the way."""

    def __init__(
        self,
        explorer: Explorer,
        story: str,
        path: tuple[str, ...],
        disk: SimulatedDisk,
        model: Model,
        script: tuple[str, ...] | None,
    ) -> None:
        self.explorer = explorer
        self.target = explorer.target
        self.story = story
        self.path = path
        self.disk = disk
        self.model = model
        self.script = script  # of a replay: the path that is left
        self.looks = 0
        self.session: Session | None = None
        self.geometry = self.target.story(random.Random(f"{story} story"))
        way = " ".join((story, *path))
        self.acting = random.Random(f"{way} act")
        self.looking = random.Random(f"{way} look")
        self._looked_at: tuple[int, int, int, int] | None = None

    def run(self) -> None:
        """Opens, acts, closes or dies, opens again, until its acts are done."""
        low, high = self.explorer.pace.nested_acts if self.path else self.explorer.pace.acts
        left = self.acting.randint(low, high)
        self.target.faults(self.acting, self.disk, self.geometry)
        self.disk.on_step = self.look
        while True:
            if not self._open():
                self._die()
                if not self._open():
                    raise self._violation("a fault struck that nobody ordered")
            act = ""
            while left > 0 and act not in ("close", "kill", "failed"):
                left -= 1
                act = self._act()
            if act not in ("close", "kill", "failed"):
                break
            if act == "close" or (act == "failed" and self.acting.random() < 0.5):
                self._close()
            if act != "close":
                self._die()
                self.target.faults(self.acting, self.disk, self.geometry)
        self.disk.observe("end")
        self.explorer.faults_struck += sum(fault.hits for fault in self.disk.faults)

    def look(self, disk: SimulatedDisk, step: int, label: str) -> None:
        """Lets power fail and processes die, here."""
        self.looks += 1
        explorer, model = self.explorer, self.model
        if explorer.violation is not None:
            return
        if self.session is not None:
            model.promise(self.session.durable_lsn())
            if (problem := self.session.problem()) is not None:
                raise self._violation(problem)
        if self.script is not None:
            if self.script and int(self.script[0].partition(":")[0]) == self.looks:
                choice = self.script[0].partition(":")[2]
                self._damage(choice) if choice.startswith("damage") else self._crash(choice)
            return
        if explorer._is_done():
            return
        explorer.labels[label] += 1
        pace, rng = explorer.pace, self.looking
        if self.path and rng.random() >= pace.nested_look:
            return
        state = (disk.changes, len(model.groups), model.durable, model.returned)
        if state == self._looked_at:
            return
        self._looked_at = state
        budget = pace.nested_images if self.path else pace.images
        for choice in disk.images(rng, budget * WIDER if disk.unsettled_words() >= WIDE else budget):
            explorer.crashed_labels[label] += 1
            self._crash(choice + "+" * self._has_life())
        if not self.path and rng.random() < pace.damage:
            explorer.crashed_labels[label] += 1
            self._damage(f"damage.{rng.getrandbits(32):x}")
        if rng.random() < pace.kill:
            explorer.crashed_labels[label] += 1
            self._crash(rng.choice(("kill", "kill", "kill evicted")) + "+" * self._has_life())

    # ---- parts

    def _has_life(self) -> bool:
        depth = len(self.path)
        return depth < DEPTH_MAX and self.looking.random() < self.explorer.pace.life / 4**depth

    def _crash(self, choice: str) -> None:
        """Makes one crash and checks what comes back."""
        explorer = self.explorer
        how, lives = choice.rstrip("+"), choice.endswith("+")
        killed, power = how.startswith("kill"), how != "kill"
        required = self.model.durable if power else self.model.returned
        contents = self.disk.survivors(evicted=power) if killed else self.disk.contents(how)
        image = key_of(contents, self.disk.directories)
        if killed:
            explorer.kills += 1
        else:
            explorer.images += 1
            explorer.images_nested += bool(self.path)
            if image not in explorer._distinct:
                explorer._distinct.add(image)
                explorer.distinct_nested += bool(self.path)
        if not lives and self.script is None:
            promised = hash((image, required, len(self.model.groups), self.model.released_lsn))
            if promised in explorer._seen:
                return
            explorer._seen.add(promised)
        path = (*self.path, f"{self.looks}:{choice}")
        script = self.script[1:] if self.script is not None else None
        if lives:
            crashed = self.disk.kill(evicted=power) if killed else self.disk.image(how)
            _Life(explorer, self.story, path, crashed, self.model.fork(power=power), script).run()
            return
        found = explorer._answers.get(image)
        if found is None:
            explorer.recoveries += 1
            disk = LeafDisk.after(self.disk, how, contents)
            try:
                if zlib.crc32(choice.encode()) % THOROUGH == 0:
                    found = self.target.open(disk, self.geometry).found()
                    again = self.target.open(disk.after_kill(), self.geometry).found()
                    if not found.shows_the_same(again):
                        raise self._violation("a second recovery gives another state than the first", path)
                    explorer.repeated += 1
                else:
                    found = self.target.glance(disk, self.geometry)
            except Violation:
                raise
            except Exception as error:
                raise self._violation(f"refused: {type(error).__name__}: {error}", path) from error
            if len(explorer._answers) >= ANSWERS_MAX:
                explorer._answers.clear()
            explorer._answers[image] = found
        problem = self.model.problem(found, required)
        if problem is not None:
            raise self._violation(problem, path)

    def _damage(self, choice: str) -> None:
        """Damages what the process sees, as if it were all durable."""
        explorer = self.explorer
        explorer.damages += 1
        disk = LeafDisk.after(self.disk, EVERYTHING, self.disk.contents(EVERYTHING))
        try:
            problem = self.target.damage(disk, self.geometry, self.model, random.Random(choice))
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the wrong answer)
            problem = f"damage led to {type(error).__name__}: {error}"
        if problem is not None:
            raise self._violation(problem, (*self.path, f"{self.looks}:{choice}"))

    def _open(self) -> bool:
        """Opens the target and checks what it shows; False where an ordered fault was in the way."""
        self.explorer.recoveries += 1
        try:
            session = self.target.open(self.disk, self.geometry)
            found = session.found()
        except Violation:
            raise
        except Exception as error:
            if self.target.expected(error, self.disk):
                return False
            raise self._violation(f"refused: {type(error).__name__}: {error}") from error
        problem = self.model.problem(found, self.model.returned)
        if problem is not None:
            raise self._violation(problem)
        self.model.adopt(found)
        self.session = session
        self.disk.observe("opened")
        return True

    def _act(self) -> str:
        assert self.session is not None
        try:
            act = self.session.act(self.acting, self.model)
        except Violation:
            raise
        except Exception as error:
            raise self._violation(f"an act raised {type(error).__name__}: {error}") from error
        self.explorer.acts[act] += 1
        self.disk.observe(f"after {act}")
        return act

    def _close(self) -> None:
        assert self.session is not None
        try:
            self.session.close()
            self.model.durable = self.model.returned
        except Violation:
            raise
        except Exception as error:
            if not self.target.expected(error, self.disk):
                raise self._violation(f"close raised {type(error).__name__}: {error}") from error
        self.session = None
        self.disk.observe("closed")

    def _die(self) -> None:
        self.explorer.kills += 1
        self.explorer.faults_struck += sum(fault.hits for fault in self.disk.faults)
        self.session = None
        self.disk = self.disk.kill()
        self.disk.on_step = self.look
        self._looked_at = None

    def _violation(self, problem: str, path: tuple[str, ...] | None = None) -> Violation:
        line = " ".join((self.target.name, self.story, *(self.path if path is None else path)))
        self.explorer.violation = self.explorer.violation or Violation(line, problem)
        return self.explorer.violation


def replay(line: str, target: Target, pace: Pace | None = None) -> None:
    """Runs the one path that a line of a `Violation` names. Raises that `Violation`, or returns if it is gone."""
    _, story, *path = line.split(" ")
    merged: list[str] = []
    for word in path:  # "7:kill evicted" is one name
        if ":" in word:
            merged.append(word)
        else:
            merged[-1] += f" {word}"
    explorer = Explorer(target, pace=pace or Pace())
    _Life(
        explorer, story, (), SimulatedDisk(seed=story, reserve_bytes_max=RESERVE_BYTES), target.model(), tuple(merged)
    ).run()
    if explorer.violation is not None:
        raise explorer.violation
