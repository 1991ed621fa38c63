"""Entries of a caller's own types: registered, logged, handed to their handlers; unknown ones are kept (item 114)."""

import dataclasses
import json
import logging
import pickle
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import numpy as np
import pytest

import mmwal
import mmwal.custom
from mmwal.cli.app import run
from mmwal.entry import CustomEntry, WalEntry
from mmwal.errors import EntryTooLargeError, ReadOnlyError, UnavailableError
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.log.fixtures import OpenWal
from tests.log.logs import SEGMENT, fill, vector

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")
WHEN = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC)


class Rename(msgspec.Struct, frozen=True):
    old: str
    new: str
    payload: bytes = b""


@dataclasses.dataclass(frozen=True)
class Tag:
    name: str
    count: int = 0


class Odd:
    """Nothing that msgspec knows."""

    def __init__(self, value: int) -> None:
        self.value = value


@pytest.fixture(autouse=True)
def types(monkeypatch: pytest.MonkeyPatch) -> mmwal.custom.EntryTypes:
    """A registry of the test's own."""
    fresh = mmwal.custom.EntryTypes()
    for module in ("mmwal.custom", "mmwal.manager", "mmwal.log.reader"):
        monkeypatch.setattr(f"{module}.TYPES", fresh)
    return fresh


def test_operation_and_time_come_back_as_they_were_logged(open_wal: OpenWal, types: Any) -> None:
    types.register("rename", Rename)
    types.register("tag", Tag)
    types.register("raw", bytes)
    wal = open_wal()
    fill(wal, 1)
    lsns = [
        wal.log_entry(WalEntry.Custom(CustomEntry(Rename("a", "b", b"\0\xff"), WHEN))),
        wal.log_entry(CustomEntry(Tag("x", 7)), durable=True),
        wal.log_entry(CustomEntry(b"\x80bytes as they are", WHEN.astimezone(timezone(timedelta(hours=5))))),
        wal.log_entry(CustomEntry(b"")),
    ]
    assert wal.durable_lsn >= lsns[1]
    wal.close()
    found = list(open_wal().replay())[1:]
    assert [entry.lsn for entry in found] == lsns
    assert [(entry.name, entry.operation, entry.entry.timestamp, entry.known) for entry in found] == [
        ("rename", Rename("a", "b", b"\0\xff"), WHEN, True),
        ("tag", Tag("x", 7), None, True),
        ("raw", b"\x80bytes as they are", WHEN, True),
        ("raw", b"", None, True),
    ]
    assert all(isinstance(entry, WalEntry.Custom) and entry.kind == "custom" and entry.txn == 0 for entry in found)
    assert found[0].timestamp > WHEN - timedelta(days=36500)
    match found[0]:
        case WalEntry.Custom(entry=CustomEntry(operation=Rename(old=old))):
            assert old == "a"


def test_codec_of_ones_own(open_wal: OpenWal, types: Any) -> None:
    types.register(
        "odd", Odd, encode=lambda odd: json.dumps(odd.value).encode(), decode=lambda raw: Odd(json.loads(raw))
    )
    wal = open_wal()
    wal.log_entry(CustomEntry(Odd(5)))
    (entry,) = wal.replay()
    assert entry.operation.value == 5


def test_handlers_get_their_entries_in_their_place(open_wal: OpenWal, types: Any) -> None:
    seen: list[Any] = []
    types.register("rename", Rename, on_replay=lambda entry: seen.append((entry.operation.new, entry.lsn)))
    types.register("tag", Tag)
    wal = open_wal()
    first = wal.log_entry(CustomEntry(Rename("a", "b")))
    fill(wal, 2)
    wal.log_entry(CustomEntry(Tag("x")))
    last = wal.log_entry(CustomEntry(Rename("b", "c")))
    order = [("yielded", entry.kind) for entry in wal.replay() if not seen.append(entry.kind)]  # type: ignore[func-returns-value]
    assert len(order) == 5
    assert seen == [("b", first), "custom", "insert", "insert", "custom", ("c", last), "custom"]
    seen.clear()
    assert len(list(wal.iter_entries())) == 5
    assert seen == []  # a replay alone calls them
    list(wal.replay(first))
    assert seen == [("c", last)]


def test_what_a_handler_raises_ends_the_replay(open_wal: OpenWal, types: Any) -> None:
    def refuse(entry: Any) -> None:
        raise KeyError(entry.operation.name)

    types.register("tag", Tag, on_replay=refuse)
    wal = open_wal()
    fill(wal, 1)
    wal.log_entry(CustomEntry(Tag("x")))
    entries = wal.replay()
    assert next(entries).kind == "insert"
    with pytest.raises(KeyError, match="x"):
        next(entries)


def test_unknown_type_is_kept_as_bytes_and_stops_nothing(
    open_wal: OpenWal, types: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    types.register("rename", Rename)
    wal = open_wal()
    wal.log_entry(CustomEntry(Rename("a", "b"), WHEN))
    fill(wal, 1)
    fresh = mmwal.custom.EntryTypes()
    monkeypatch.setattr("mmwal.log.reader.TYPES", fresh)
    monkeypatch.setattr("mmwal.manager.TYPES", fresh)
    unknown, row = wal.replay()
    assert (unknown.known, unknown.name, unknown.entry.timestamp) == (False, "rename", WHEN)
    assert unknown.operation == msgspec.msgpack.encode(Rename("a", "b"))
    assert row.id == "id-0"
    fresh.register("rename", Tag, on_replay=lambda entry: pytest.fail("it is not a Tag"))
    with caplog.at_level(logging.WARNING, "mmwal"):
        changed, _ = wal.replay()
    assert not changed.known
    assert "'rename' is kept as bytes" in caplog.text


def test_store_made_of_a_log_skips_and_counts_them(tmp_path: Any, types: Any, kernel: Any) -> None:
    types.register("tag", Tag)
    config = mmwal.WalConfig(wal_dir=tmp_path / "wal", dimension=4, segment_size=SEGMENT, kernel=kernel.NAME)
    with WalManager(config) as wal:
        wal.log_insert("a", np.ones(4, np.float32))
        wal.log_entry(CustomEntry(Tag("x")))
        wal.log_entry(CustomEntry(Tag("y")))
    with mmwal.open(config=dataclasses.replace(config, data_dir=str(tmp_path / "data"))) as store:
        assert store.ids() == ["a"]
        stats = store.recovery_stats
        assert (stats.applied_entries, stats.skipped_entries, stats.total_entries) == (1, 2, 3 + stats.marker_entries)
        assert store.wal is not None
        assert store.wal.verify_wal().ok
        with pytest.raises(UnavailableError):
            store.wal.log_entry(CustomEntry(Tag("z")))


def test_nothing_is_unpickled(open_wal: OpenWal, types: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    types.register("raw", bytes)
    wal = open_wal()
    wal.log_entry(CustomEntry(pickle.dumps(Bomb())))
    assert next(wal.replay()).operation.startswith(b"\x80")


def test_what_cannot_be_logged_is_said_and_nothing_is(open_wal: OpenWal, types: Any) -> None:
    types.register("rename", Rename)
    types.register("odd", Odd, encode=lambda odd: odd.value, decode=Odd)
    wal = open_wal()
    before = wal.get_metrics().reserved_lsn
    wrong: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "not registered", CustomEntry(Tag("x"))),
        (TypeError, "must make bytes", CustomEntry(Odd(3))),
        (ValueError, "no time zone", CustomEntry(Rename("a", "b"), datetime(2026, 1, 31))),
        (EntryTooLargeError, "does not fit", CustomEntry(Rename("a", "b", bytes(SEGMENT)))),
        (TypeError, "no entry to log", WalEntry.Commit(1, 2)),
        (TypeError, "no entry to log", "text"),
    ]
    for kind, words, entry in wrong:
        with pytest.raises(kind, match=words):
            wal.log_entry(entry)
    assert wal.get_metrics().reserved_lsn == before


def test_registration_that_cannot_work_is_refused(types: Any) -> None:
    types.register("rename", Rename)
    types.register("rename", Rename)  # again: no harm
    for name, kind in (("rename", Tag), ("other", Rename), ("", Tag), ("x" * 256, Tag), (7, Tag)):
        with pytest.raises(ValueError, match=r"registered as|must be a str"):
            types.register(name, kind)
    with pytest.raises(ValueError, match="both encode and decode"):
        types.register("tag", Tag, encode=bytes)
    with pytest.raises(TypeError, match="pass encode and decode"):
        types.register("odd", Odd)


def test_row_entries_are_logged_as_their_methods_do(open_wal: OpenWal) -> None:
    wal = open_wal()
    given = [
        WalEntry.Insert("a", vector(1), {"n": 1}),
        WalEntry.Update("a", None, {"n": 2}),
        WalEntry.Upsert(7, vector(3)),
        WalEntry.Delete("a"),
        WalEntry.Batch("insert", ["b", "c"], np.stack([vector(4), vector(5)]), [None, {}]),
        WalEntry.Batch("delete", ["b", "c"]),
    ]
    lsns = [wal.log_entry(entry) for entry in given]
    found = list(wal.replay())
    assert [entry.lsn for entry in found] == lsns
    for ours, theirs in zip(given, found, strict=True):
        assert dataclasses.replace(theirs, lsn=0, timestamp_ns=0) == ours


def test_survives_a_kill_and_a_power_cut_like_any_entry(open_wal: OpenWal, types: Any) -> None:
    types.register("tag", Tag)
    disk = SimulatedDisk()
    wal = open_wal(disk=disk)
    durable = wal.log_entry(CustomEntry(Tag("durable")), durable=True)
    wal.log_entry(CustomEntry(Tag("later")))
    assert [entry.operation.name for entry in open_wal(disk=disk.kill()).replay()] == ["durable", "later"]
    for choice in disk.images(random.Random(1), 10):
        assert next(open_wal(disk=disk.image(choice)).replay()).lsn == durable


def test_reader_shows_it_and_dump_too(open_wal: OpenWal, wal_dir: Any, types: Any, capsys: Any) -> None:
    types.register("tag", Tag)
    wal = open_wal()
    wal.log_entry(CustomEntry(Tag("x"), WHEN))
    wal.close()
    with WalManager.new_from_path(wal_dir) as reader:
        assert [entry.operation for entry in reader.replay()] == [Tag("x")]
        with pytest.raises(ReadOnlyError):
            reader.log_entry(CustomEntry(Tag("y")))
    assert run(["dump", str(wal_dir)]) == 0
    assert "custom" in capsys.readouterr().out
    assert run(["dump", str(wal_dir), "--json", "--kind", "custom"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["name"], told["timestamp"]) == ("tag", WHEN.isoformat())


def test_what_its_codec_cannot_read_back_is_refused(open_wal: OpenWal, types: Any) -> None:
    types.register("tag", Tag)
    wal = open_wal()
    before = wal.last_lsn
    with pytest.raises(ValueError, match=r"entry type 'tag': its codec cannot read back what it made of Tag\(name=5"):
        wal.log_entry(CustomEntry(Tag(5)))  # type: ignore[arg-type]
    assert wal.last_lsn == before


def test_entry_of_an_unknown_type_is_logged_again_as_it_was(open_wal: OpenWal, types: Any, tmp_path: Any) -> None:
    """As whoever copies a log does, whether or not bytes are a registered type."""
    types.register("tag", Tag)
    source = open_wal()
    source.log_entry(CustomEntry(Tag("a", 3), WHEN))
    types._by_name.clear()
    types._by_type.clear()
    for register in (lambda: None, lambda: types.register("blob", bytes)):
        register()
        [entry] = [entry for entry in source.iter_entries() if isinstance(entry, WalEntry.Custom)]
        assert (entry.name, entry.known) == ("tag", False)
        copy = open_wal(path=tmp_path / f"copy-{len(types._by_name)}")
        copy.log_entry(entry)
        [again] = [entry for entry in copy.iter_entries() if isinstance(entry, WalEntry.Custom)]
        assert (again.name, again.known, again.entry) == (entry.name, False, entry.entry)
    for name, operation in (("", b""), ("\ud800", b""), ("x", 5)):
        with pytest.raises((ValueError, TypeError), match=r"name=|holds bytes"):
            source.log_entry(WalEntry.Custom(CustomEntry(operation), name, known=False))


async def _handler(entry: Any) -> None:
    """Nobody would await it."""


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "\ud800"},
        {"type": None},
        {"type": Any},
        {"type": "Tag"},
        {"type": list[int]},
        {"type": int | str},
        {"type": Tag("a")},
        {"type": []},
        {"encode": 5, "decode": 6},
        {"on_replay": 5},
        {"on_replay": _handler},
    ],
)
def test_registration_of_what_cannot_be_used_is_refused(types: Any, arguments: dict[str, Any]) -> None:
    given = {"name": "tag", "type": Tag, **arguments}
    with pytest.raises((TypeError, ValueError), match=r"name=|is no class|must be a plain function"):
        types.register(given.pop("name"), given.pop("type"), **given)
    types.register("tag", Tag)  # nothing is left of it


@pytest.mark.parametrize(
    "when", ["now", 1.5, WHEN.date(), *(WHEN.replace(year=year) for year in (1, 1677, 2263, 9999))]
)
def test_time_that_no_entry_can_hold_is_refused_by_name(open_wal: OpenWal, types: Any, when: Any) -> None:
    types.register("tag", Tag)
    wal = open_wal()
    with pytest.raises((TypeError, ValueError), match=r"^timestamp="):
        wal.log_entry(CustomEntry(Tag("a"), when))
    for year in (1678, 2261):
        wal.log_entry(CustomEntry(Tag("a"), WHEN.replace(year=year)))


@pytest.mark.parametrize("inner", ["x", None, WalEntry.Delete("a")], ids=repr)
def test_custom_entry_of_anything_else_is_no_entry(open_wal: OpenWal, inner: Any) -> None:
    with pytest.raises(TypeError, match=r"a WalEntry\.Custom is no entry to log; pass a CustomEntry"):
        open_wal().log_entry(WalEntry.Custom(inner))
