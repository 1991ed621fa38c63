"""The table of verdicts on real stores: directories, the data's control file, entries, images, checkpoints, the matrix.

As in `test_verdicts_log.py`: each combination of facts is brought about, exactly its row is reached, an error says the
label and changes no byte, and what opens holds everything that was acknowledged.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import mmwal
from mmwal import kernel as kernels
from mmwal.checkpoint.image import image_path
from mmwal.checkpoint.load import load_checkpoint
from mmwal.errors import ConsistencyError, DurabilityWarning, OpenError
from mmwal.format.control import CONTROL_BYTES, DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.frame import FRAME, Kind
from mmwal.format.layout import Layout
from mmwal.format.segment import DATA_OFFSET, PAGE_BYTES
from mmwal.log.control import open_control
from mmwal.log.segment import segment_name, segment_number
from mmwal.manager import WalManager
from mmwal.opening import open_store
from mmwal.recovery.recover import load_newest
from mmwal.testing.faults import label_of
from mmwal.testing.simulator import SimulatedDisk
from mmwal.verdicts import CHECKPOINT, DIRECTORY, ENTRY, IMAGE, MATRIX, SLOTS, Place, Reached, Verdict
from tests.checkpoint.homes import Home, content_of
from tests.recovery.damage import resealed, slot_pages
from tests.store.stores import SEGMENT, config, contents, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
PY = kernels.load("py")
ROOT, WAL, DATA = "/store", "/store/wal", "/store/data"
Facts = dict[str, str]
Contents = dict[Any, tuple[bytes, Any, int]]


def row_of(place: Place, facts: Facts) -> Verdict:
    [verdict] = place.rows_of(facts)
    return verdict


class Left:
    """A store as a kill left it, and what it holds."""

    def __init__(self, disk: SimulatedDisk, held: Contents) -> None:
        self.disk = disk
        self.held = held

    def copy(self) -> Left:
        return Left(self.disk.kill(), self.held)

    # ---- hands

    def read(self, path: str) -> bytes:
        file = self.disk.open(path, writable=False)
        return file.read(0, file.size())

    def write(self, path: str, offset: int, content: bytes) -> None:
        file = self.disk.open(path, writable=True)
        file.write(offset, content)
        file.sync()

    def make(self, path: str, content: bytes) -> None:
        if self.disk.exists(path):
            self.disk.unlink(path)
        file = self.disk.create(path)
        file.write(0, content)
        file.sync()
        self.disk.sync_directory(path.rpartition("/")[0])

    def unlink(self, *paths: str) -> None:
        for path in paths:
            self.disk.unlink(path)
            self.disk.sync_directory(path.rpartition("/")[0])

    def flip(self, path: str, offset: int) -> None:
        self.write(path, offset, bytes([self.read(path)[offset] ^ 4]))

    def slots(self, path: str, layout: Layout) -> list[tuple[int, dict[str, Any]]]:
        """The offsets and fields of the slots, the newest first."""
        content = self.read(path)
        found = [(offset, layout.unpack(content, offset)) for offset in SLOT_OFFSETS]
        return sorted(((at, fields) for at, fields in found if fields), key=lambda slot: -int(slot[1]["sequence"]))

    def edit(self, path: str, layout: Layout, *which: int, **changes: Any) -> None:
        """Changes slots (0 the newest, 1 the older) and gives them their checksums; without numbers, all."""
        for number, (offset, fields) in enumerate(self.slots(path, layout)):
            if number in which or not which:
                self.write(path, offset, layout.pack(**{**fields, **changes}))

    # ---- looking

    def open(self, **fields: Any) -> mmwal.VectorStore:
        return open_store(config(ROOT, PY, checkpoint_interval=None, **fields), self.disk)

    def refused(self, facts: Facts, verdict: Verdict) -> None:
        """Opening raises this row, twice, and changes no byte."""
        for _ in range(2):
            before = self.disk.digest()
            with pytest.raises(OpenError) as caught:
                self.open()
            assert (type(caught.value), caught.value.verdict) == (verdict.error, verdict.label), facts
            assert ROOT in str(caught.value), facts
            self.disk = self.disk.kill()
            assert self.disk.digest() == before, facts

    def opens(self, facts: Facts) -> None:
        """It holds what it held, the next time as well, and goes on."""
        for _ in range(2):
            store = self.open()
            assert contents(store) == self.held, facts
            self.disk = self.disk.kill()
        store = self.open()
        store.insert("on", vector(1))
        store.close()
        assert set(contents(self.open())) == {*self.held, "on"}, facts


def left(rounds: int, *, after: int = 3, count: int = 5, released: bool = False) -> Left:
    """A store with some checkpoints, and some entries behind the last."""
    disk = SimulatedDisk(seed=3)
    store = open_store(config(ROOT, PY, checkpoint_interval=None), disk)
    number = 0
    for _ in range(rounds):
        for _ in range(count):
            store.insert(number, vector(number), {"n": number})
            number += 1
        store.checkpoint()
    if released:
        while open_control_of(disk).oldest_lsn < 2 * SEGMENT:
            store.insert_many(range(number, number + 200), np.ones((200, 8), np.float32))
            number += 200
            disk.run_workers()
            store.checkpoint()
            disk.run_workers()
    for _ in range(after):
        store.insert(number, vector(number))
        number += 1
    store.sync()
    held = contents(store)
    return Left(disk.kill(), held)


def open_control_of(disk: SimulatedDisk) -> Any:
    control = open_control(disk, WAL)
    assert control is not None
    return control


# -- directories


def segment_names(disk: SimulatedDisk) -> list[str]:
    return [name for name in disk.list_directory(WAL) if segment_number(name) is not None]


def put_directory(base: Left, facts: Facts) -> Left:
    case = base.copy()
    if facts["segments"] == "none":
        case.unlink(*(f"{WAL}/{name}" for name in segment_names(case.disk)))
    control = f"{DATA}/control"
    if facts["data"] == "missing":
        case.unlink(*(f"{DATA}/{name}" for name in case.disk.list_directory(DATA)))
    elif facts["data"] == "orphan":
        case.unlink(control)
        case.make(f"{DATA}/matrix", bytes(PAGE_BYTES))
    elif facts["data"] == "other-store":
        case.edit(control, DATA_CONTROL, store_id=b"other store, yes")
    elif facts["data"] == "other-history":
        case.edit(control, DATA_CONTROL, history_id=b"another history!")
    if facts["log"] == "missing":
        case.unlink(f"{WAL}/control")
    else:
        changes = {"owned": int(facts["log"] == "owned")}
        if (facts["segments"], facts["begins"]) == ("none", "start"):  # its first writer died before it had any
            changes["incarnation"] = 0
        case.edit(f"{WAL}/control", LOG_CONTROL, **changes)
    return case


def open_as(case: Left, facts: Facts) -> tuple[str | None, type[Exception] | None]:
    """Opens it as a store or as a log; returns the label of the directory, or of the error, and its class."""
    try:
        if facts["opened"] == "store":
            reached = case.open().wal._log.control.reached  # type: ignore[union-attr]
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DurabilityWarning)
                fields = {"segment_size": SEGMENT, "dimension": 8, "kernel": "py"}
                reached = WalManager(mmwal.WalConfig(wal_dir=WAL, **fields), disk=case.disk)._log.control.reached
    except OpenError as error:
        return error.verdict, type(error)
    return next(one.verdict.label for one in reached if one.verdict in DIRECTORY.rows), None


def test_every_pair_of_directories_has_one_verdict() -> None:
    fresh, later = left(0, after=0), left(1, released=True)
    seen = set()
    for facts in DIRECTORY.combinations():
        verdict = row_of(DIRECTORY, facts)
        case = put_directory(later if facts["begins"] == "later" else fresh, facts)
        label, error = open_as(case, facts)
        if facts["begins"] == "later" and facts["segments"] == "none" and label != verdict.label:
            assert label == "oldest-missing", facts  # the log is looked at first, and it is not there
            continue
        assert (label, error) == (verdict.label, verdict.error), facts
        seen.add(label)
    assert seen == {verdict.label for verdict in DIRECTORY.rows}


def test_store_whose_first_vector_tells_the_dimension_refuses_an_orphan_then() -> None:
    disk = SimulatedDisk()
    disk.make_directory(DATA)
    file = disk.create(f"{DATA}/matrix")
    file.write(0, bytes(PAGE_BYTES))
    store = open_store(config(ROOT, PY, dimension=...), disk)
    with pytest.raises(mmwal.ForeignDirectoryError) as caught:
        store.insert("a", vector(1))
    assert caught.value.verdict == "directory-orphan"


# -- the control file of the data


def test_every_pair_of_slots_of_the_data_has_one_verdict() -> None:
    base = left(2)
    content = base.read(f"{DATA}/control")
    [(_, newest), _] = base.slots(f"{DATA}/control", DATA_CONTROL)
    both = DATA_CONTROL.pack(**newest).ljust(PAGE_BYTES, b"\0")
    assert len(content) == CONTROL_BYTES
    seen = set()
    for facts in SLOTS.combinations():
        verdict = row_of(SLOTS, facts)
        case = base.copy()
        case.write(f"{DATA}/control", 0, slot_pages(DATA_CONTROL, both + both, facts))
        if verdict.error is not None:
            case.refused(facts, verdict)
        else:
            loaded = load_checkpoint(case.disk, DATA, writable=False)
            assert loaded is not None
            assert [one.verdict.label for one in loaded.reached if one.verdict in SLOTS.rows] == [verdict.label]
            assert any("[slots-one-lost]" in note for note in loaded.notes) == verdict.noted
            case.opens(facts)
        seen.add(verdict.label)
    assert seen == {verdict.label for verdict in SLOTS.rows}


# -- entries


def with_batch() -> Left:
    """A store without a checkpoint: single rows, then a batch larger than a segment, all of it in sealed segments."""
    disk = SimulatedDisk(seed=3, reserve_bytes_max=1 << 20)
    store = open_store(config(ROOT, PY, checkpoint_interval=None), disk)
    disk.run_workers()
    for number in range(5):
        store.insert(number, vector(number))
    store.insert_many([f"row-{i}" for i in range(1500)], np.ones((1500, 8), np.float32))
    store.insert_many([f"more-{i}" for i in range(1000)], np.ones((1000, 8), np.float32))
    store.sync()
    disk.run_workers()
    return Left(disk.kill(), contents(store))


def frames_of(case: Left, number: int) -> list[dict[str, Any]]:
    """The headers of the frames of a segment, from the first on."""
    content = case.read(f"{WAL}/{segment_name(number)}")
    found, at = [], DATA_OFFSET
    while (fields := FRAME.unpack(content, at)) is not None and fields["start_lsn"] == number * SEGMENT + at:
        found.append(fields)
        at += (fields["commit"] & (1 << 26) - 1) * 64
    return found


def test_every_entry_has_one_verdict() -> None:
    base = with_batch()
    singles = [frame for frame in frames_of(base, 0) if frame["kind"] == Kind.INSERT and frame["rows"] == 1]
    member = next(frame for frame in frames_of(base, 0) if frame["txn"])

    def contradict(frame: bytearray) -> None:
        at = 64 + int.from_bytes(frame[52:56], "little")
        frame[at : at + 4] = (60_000).to_bytes(4, "little")

    def reshape(frame: bytearray) -> None:
        frame[14] = 2  # float16

    def rewrite(frame: bytearray) -> None:
        frame[70] ^= 1

    changes = {
        "sound": (singles[2], None),
        "contradicts": (singles[2], contradict),
        "shape": (singles[2], reshape),
        "half": (member, rewrite),
    }
    seen = set()
    for facts in ENTRY.combinations():
        case = base.copy()
        frame, change = changes[facts["content"]]
        if change is not None:
            path, at = f"{WAL}/{segment_name(0)}", frame["start_lsn"]
            case.write(path, at, resealed(case.read(path), at, change))
        if facts["checksum"] == "damaged":
            case.flip(f"{WAL}/{segment_name(0)}", frame["start_lsn"] + 80)
        verdict = row_of(ENTRY, facts)
        if verdict.error is None:
            case.opens(facts)
        else:
            case.refused(facts, verdict)
        seen.add(verdict.label)
    assert seen == {verdict.label for verdict in ENTRY.rows}


# -- images


def home(deltas: str) -> Home:
    """Data whose newest checkpoint is a base alone, or a base and a delta; the older one is empty, or the base."""
    made = Home.create(SimulatedDisk(seed=1), PY)
    made.put(*range(40), "a")
    made.checkpoint()
    if deltas != "none":
        made.put("a", "b")
        made.remove(3)
        made.checkpoint()
    made.disk = made.disk.kill()
    return made


def put_image(case: Left, facts: Facts) -> str:
    """Brings the image of the newest slot into the state of the facts; returns its path."""
    [(_, newest), *_] = case.slots("/data/control", DATA_CONTROL)
    path = image_path("/data", newest["image_number"])
    base_bytes = int.from_bytes(case.read(path)[48:56], "little")
    if facts["base"] == "damaged":
        case.flip(path, 300)
    if facts["deltas"] == "damaged":
        assert newest["image_bytes"] > base_bytes
        case.flip(path, newest["image_bytes"] - 70)
    if facts["slot"] == "contradicts":
        case.edit("/data/control", DATA_CONTROL, 0, live_rows=newest["live_rows"] + 1)
    if facts["file"] == "missing":
        case.unlink(path)
    if facts["file"] == "short":
        case.make(path, case.read(path)[: newest["image_bytes"] - 64])
    if facts["file"] == "unreadable":
        case.disk.fail(label_of("read", path), forever=True)
    return path


def test_every_image_has_one_verdict() -> None:
    homes = {deltas: home(deltas) for deltas in IMAGE.facts["deltas"]}
    seen = set()
    for facts in IMAGE.combinations():
        made = homes[facts["deltas"]]
        case = Left(made.disk.kill(), {})
        path = put_image(case, facts)
        verdict = row_of(IMAGE, facts)
        reached: list[Reached] = []
        try:
            loaded = load_checkpoint(case.disk, "/data", writable=False, reached=reached)
        except ConsistencyError as error:
            loaded, refusal = None, (error.verdict, path in str(error))
            assert refusal == ("checkpoint-lost", True), facts
        all_reached = loaded.reached if loaded else reached
        labels = [one.verdict.label for one in all_reached if one.verdict in IMAGE.rows and one.path == path]
        assert labels[0] == verdict.label, (facts, labels)
        seen.add(labels[0])
        if loaded is not None and verdict.label == "image-sound":
            assert content_of(loaded.state) == made.content
            assert loaded.notes == []
        elif loaded is not None:
            assert loaded.fell_back
            assert any(f"[{verdict.label}]" in note for note in loaded.notes), facts
            assert loaded.redo_lsn < made.lsn
    assert seen == {verdict.label for verdict in IMAGE.rows}


# -- checkpoints


def test_every_pair_of_checkpoints_has_one_verdict() -> None:
    base = left(2)
    control = f"{DATA}/control"
    [(_, newer), (older_at, older)] = base.slots(control, DATA_CONTROL)
    assert older["redo_lsn"] < newer["redo_lsn"]
    behind = open_control_of(base.disk)  # a position of an entry behind both checkpoints
    assert behind.oldest_lsn <= older["redo_lsn"]
    last = max(lsn for _, _, lsn in base.held.values())
    reaches = {"older": behind.oldest_lsn, "newer": newer["redo_lsn"], "behind": last}
    seen = set()
    for facts in CHECKPOINT.combinations():
        case = base.copy()
        for number, fact in enumerate(("newer", "older")):
            if facts[fact] == "damaged":
                case.edit(control, DATA_CONTROL, number, live_rows=1234)
        if facts["older"] == "none":
            case.write(control, older_at, bytes(PAGE_BYTES))
        case.edit(f"{WAL}/control", LOG_CONTROL, oldest_lsn=reaches[facts["log"]], durable_lsn=last)
        verdict = row_of(CHECKPOINT, facts)
        if verdict.error is not None:
            case.refused(facts, verdict)
        else:
            loaded = load_newest(case.disk, config(ROOT, PY), open_control_of(case.disk), DATA, writable=False)
            assert loaded is not None
            labels = [one.verdict.label for one in loaded.reached if one.verdict in CHECKPOINT.rows]
            assert labels == [verdict.label], facts
            assert any(f"[{verdict.label}]" in note for note in loaded.notes) == verdict.noted, facts
            case.opens(facts)
        seen.add(verdict.label)
    assert seen == {verdict.label for verdict in CHECKPOINT.rows}


def test_checkpoint_ahead_of_its_log_is_refused_as_a_log_that_lost_its_end() -> None:
    """Log and data of two backups: the checkpoint proves that more of the log was durable than there is."""
    base = left(2, after=0)
    older_log = {name: base.read(f"{WAL}/{name}") for name in base.disk.list_directory(WAL)}
    store = base.open()
    for number in range(100, 120):
        store.insert(number, vector(number))
    store.checkpoint()
    base.disk = base.disk.kill()
    for name in base.disk.list_directory(WAL):
        base.unlink(f"{WAL}/{name}")
    for name, content in older_log.items():
        base.make(f"{WAL}/{name}", content)
    with pytest.raises(mmwal.DamageError) as caught:
        base.open()
    assert caught.value.verdict in ("end-damaged", "end-missing")
    assert caught.value.lsn is not None


# -- the matrix


def test_every_matrix_has_one_verdict() -> None:
    base = left(2, after=0)
    path = f"{DATA}/matrix"
    store = base.copy().open()
    row = int(store._state.get(2).row)  # type: ignore[union-attr]
    stride = store._state.matrix.stride  # type: ignore[union-attr]
    seen = set()
    for facts in MATRIX.combinations():
        case = base.copy()
        if facts["rows"] == "damaged":
            case.flip(path, row * stride + 4)
        if facts["file"] == "missing":
            case.unlink(path)
        if facts["file"] == "short":
            case.make(path, case.read(path)[: 3 * stride])
        verdict = row_of(MATRIX, facts)
        reached: list[Reached] = []
        if verdict.label == "matrix-missing":
            case.refused(facts, verdict)
        elif verdict.label == "matrix-short":
            with pytest.raises(ConsistencyError) as caught:
                load_checkpoint(case.disk, DATA, writable=False, reached=reached)
            assert caught.value.verdict == "checkpoint-lost"
            assert [one.verdict.label for one in reached if one.verdict in MATRIX.rows] == ["matrix-short"] * 2
        elif verdict.label == "matrix-row-damaged":
            before = case.disk.digest()
            with pytest.raises(ConsistencyError) as caught:
                open_store(config(ROOT, PY), case.disk, read_only=True)
            assert (caught.value.verdict, caught.value.path) == (verdict.label, path)
            assert caught.value.offset == row * stride
            assert case.disk.digest() == before
        else:
            case.opens(facts)
        seen.add(verdict.label)
    assert seen == {verdict.label for verdict in MATRIX.rows}


def test_matrix_too_short_for_the_newer_checkpoint_alone_falls_back_to_the_older() -> None:
    base = left(2, after=2, count=60)
    path = f"{DATA}/matrix"
    [(_, newer), (_, older)] = base.slots(f"{DATA}/control", DATA_CONTROL)
    assert older["rows_high"] < newer["rows_high"]
    base.make(path, base.read(path)[: older["rows_high"] * older["row_bytes"]])
    store = base.copy().open()
    labels = [note.rpartition("[")[2].rstrip("]") for note in store.recovery_stats.notes]
    assert labels == ["matrix-short", "checkpoint-older"]
    base.opens({})
