"""Logs on a simulated disk, small enough to be made by the hundred, and hands that put any state into any place.

Not here: what must be found then (`test_verdicts_log.py`).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mmwal.errors import DurabilityWarning, OpenError
from mmwal.format.control import SLOT_OFFSETS
from mmwal.format.frame import LENGTH_MASK
from mmwal.format.layout import Layout
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER,
    FOOTER_BYTES,
    HEADER_OFFSETS,
    LINK,
    LINK_OFFSET,
    PAGE_BYTES,
    SEGMENT_BYTES_MIN,
    SEGMENT_HEADER,
)
from mmwal.log.control import create_control, open_control
from mmwal.log.segment import NO_PREDECESSOR, prepare_segment, segment_name
from mmwal.manager import WalManager
from mmwal.recovery.tail import Survey, survey
from mmwal.testing.simulator import SimulatedDisk
from mmwal.testing.target_log import new_identity
from mmwal.verdicts import Reached
from tests.log.logs import DIMENSION, config, fill, ids

SIZE = SEGMENT_BYTES_MIN
FRAME = 192  # bytes of one entry of `fill`
PER_SEGMENT = (SIZE - DATA_OFFSET - FOOTER_BYTES) // FRAME  # 40, to the last byte
WAL = "/wal"
NEWER = {"version": 2}


@dataclass
class Log:
    """A log that is not open, and what was promised of it."""

    disk: SimulatedDisk
    kernel: Any
    lsns: list[int] = field(default_factory=list)
    durable: int = 0  # entries that were acknowledged as durable
    logged: int = 0  # entries in all

    def copy(self) -> Log:
        return Log(self.disk.kill(), self.kernel, self.lsns, self.durable, self.logged)

    # ---- making it

    def open(self, **fields: Any) -> WalManager:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DurabilityWarning)
            if not self.disk.exists(f"{WAL}/control"):
                self.disk.make_directory(WAL)
                create_control(self.disk, WAL, new_identity(self.disk, DIMENSION))  # smaller than a config may ask for
            chosen = {"segment_size": None, "max_wal_size": 64 * SIZE, "runway_segments": 4, **fields}
            return WalManager(config(WAL, self.kernel, **chosen), disk=self.disk)

    def begun(self) -> Log:
        """Is opened for the first time, by a writer that dies before the control file knows of it."""
        self.disk.make_directory(WAL)
        control = create_control(self.disk, WAL, new_identity(self.disk, DIMENSION))
        prepare_segment(self.disk, WAL, control.identity, 0, spare=None, previous=NO_PREDECESSOR)
        self.disk = self.disk.kill()
        return self

    def killed(self, *bursts: int) -> Log:
        """Logs bursts of entries with a sync after each but the last, and dies."""
        wal = self.open()
        self.disk.run_workers()
        for number, count in enumerate(bursts):
            self.lsns = self.lsns + fill(wal, count, self.logged)
            self.logged += count
            if number < len(bursts) - 1:
                wal.sync()
                self.durable = self.logged
        self.disk = self.disk.kill()
        return self

    def closed(self, count: int) -> Log:
        wal = self.open()
        self.disk.run_workers()
        self.lsns = self.lsns + fill(wal, count, self.logged)
        self.logged += count
        self.durable = self.logged
        wal.close()
        self.disk = self.disk.kill()
        return self

    def cut(self) -> Log:
        """Loses the last entry of all, which was not durable, and is opened and killed again: sealed before its end."""
        self.zero(self.lsns[-2], FRAME)
        self.lsns, self.logged = self.lsns[:-1], self.logged - 1
        return self

    # ---- hands

    def path(self, number: int) -> str:
        return f"{WAL}/{segment_name(number)}"

    def read(self, path: str, offset: int, length: int) -> bytes:
        return self.disk.open(path, writable=False).read(offset, length)

    def write(self, path: str, offset: int, content: bytes) -> None:
        """Puts bytes into a file, as durable as a disk's own mistakes are."""
        file = self.disk.open(path, writable=True)
        file.write(offset, content)
        file.sync()

    def make(self, path: str, content: bytes) -> None:
        """Puts a whole file in the place of what is there."""
        if self.disk.exists(path):
            self.disk.unlink(path)
        file = self.disk.create(path)
        file.write(0, content)
        file.sync()
        self.disk.sync_directory(path.rpartition("/")[0])

    def unlink(self, path: str) -> None:
        self.disk.unlink(path)
        self.disk.sync_directory(path.rpartition("/")[0])

    def zero(self, lsn_start: int, length: int) -> None:
        self.write(self.path(lsn_start // SIZE), lsn_start % SIZE, bytes(length))

    def flip(self, lsn_start: int, offset: int = 70) -> None:
        number, at = divmod(lsn_start + offset, SIZE)
        self.write(self.path(number), at, bytes([self.read(self.path(number), at, 1)[0] ^ 4]))

    def start_of(self, index: int) -> int:
        """Where the frame of an entry begins."""
        return self.lsns[index] - FRAME

    def fields(self, layout: Layout, path: str, offset: int) -> dict[str, Any]:
        found = layout.unpack(self.read(path, offset, layout.size))
        assert found is not None
        return found

    # ---- looking

    def survey(self) -> tuple[Survey | OpenError, list[Reached]]:
        """Judges it; returns the survey or the error, and every verdict reached."""
        reached: list[Reached] = []
        try:
            control = open_control(self.disk, WAL)
            assert control is not None
            return survey(self.disk, self.kernel, WAL, control, reached=reached), reached
        except OpenError as error:
            return error, reached

    def ids(self) -> list[Any]:
        """Opens it and reads everything; leaves it as a kill does."""
        wal = self.open()
        found = ids(wal)
        self.disk = self.disk.kill()
        return found


def names(count: int) -> list[str]:
    return [f"id-{i}" for i in range(count)]


# -- what may be in a place


def slot_states(layout: Layout, fields: dict[str, Any]) -> dict[str, bytes]:
    """A page of a control file in every state that the table knows."""
    sound = layout.pack(**fields).ljust(PAGE_BYTES, b"\0")
    return {
        "sound": sound,
        "other": layout.pack(**{**fields, "store_id": b"other store, yes"}).ljust(PAGE_BYTES, b"\0"),
        "impossible": layout.pack(**{**fields, "metric": 9}).ljust(PAGE_BYTES, b"\0"),
        "newer": layout.pack(**{**fields, **NEWER}).ljust(PAGE_BYTES, b"\0"),
        "blank": bytes(PAGE_BYTES),
        "damaged": sound[:60] + bytes([sound[60] ^ 1]) + sound[61:],
        "alien": b"hello, this is not yours".ljust(PAGE_BYTES, b"x"),
        "later": sound[:8] + (7).to_bytes(2, "little") + b"\1" * (PAGE_BYTES - 10),
    }


def slot_pages(layout: Layout, content: bytes, facts: dict[str, str]) -> bytes:
    """A whole control file, its two slots in the states of the facts; whichever is sound says the same."""
    fields = next(found for offset in SLOT_OFFSETS if (found := layout.unpack(content, offset)))
    second = "other" if facts["agree"] == "no" else facts["second"]
    first_page = slot_states(layout, fields)[facts["first"]]
    return first_page + slot_states(layout, {**fields, "sequence": fields["sequence"] + 1})[second]


def header_states(fields: dict[str, Any], page: bytes) -> dict[str, bytes]:
    """A page with a segment's header in every state that the table knows; the rest of the page is kept."""
    rest = page[SEGMENT_HEADER.size :]

    def changed(**changes: Any) -> bytes:
        return SEGMENT_HEADER.pack(**{**fields, **changes}) + rest

    return {
        "sound": page,
        "other": changed(salt=fields["salt"] ^ 1),
        "misplaced": changed(number=fields["number"] + 5, base_lsn=(fields["number"] + 5) * SIZE),
        "overlapping": changed(base_lsn=fields["base_lsn"] - DATA_OFFSET if fields["number"] else DATA_OFFSET),
        "history": changed(history_id=b"another history!"),
        "foreign": changed(store_id=b"other store, yes"),
        "newer": changed(**NEWER),
        "blank": bytes(PAGE_BYTES),
        "damaged": page[:30] + bytes([page[30] ^ 1]) + page[31:],
    }


def put_header(log: Log, number: int, facts: dict[str, str], *, misplaced: str = "misplaced") -> None:
    """Brings the two copies of a segment's header, and the length of its file, into the states of the facts."""
    path = log.path(number)
    content = log.read(path, 0, SIZE)
    fields = SEGMENT_HEADER.unpack(content)
    assert fields is not None
    for offset, state in zip(HEADER_OFFSETS, (facts["first"], facts["second"]), strict=True):
        wanted = misplaced if state == "misplaced" else "other" if offset and facts["agree"] == "no" else state
        page = header_states(fields, content[offset : offset + PAGE_BYTES])[wanted]
        content = content[:offset] + page + content[offset + PAGE_BYTES :]
    log.make(path, content[: SIZE - PAGE_BYTES] if facts["file"] == "short" else content)


def link_states(fields: dict[str, Any]) -> dict[str, list[bytes]]:
    """A link in every state that the table knows, in every way in which it can be there."""
    names_it = LINK.pack(**fields)

    def changed(**changes: Any) -> bytes:
        return LINK.pack(**{**fields, **changes})

    end = fields["previous_end_lsn"]
    return {
        "names": [names_it],
        "elsewhere": [changed(previous_end_lsn=end - FRAME)],
        "none": [
            bytes(LINK.size),  # never written
            names_it[:20] + b"rot" + names_it[23:],
            changed(salt=fields["salt"] ^ 1),  # of an earlier life
            changed(number=fields["number"] + 1),
            changed(previous_end_lsn=end + 2 * SIZE),  # impossible
            changed(previous_end_lsn=end - 1),
            changed(previous_number=fields["previous_number"] + 7),
        ],
    }


def put_link(log: Log, number: int, content: bytes) -> None:
    log.write(log.path(number), LINK_OFFSET, content)


def footer_states(fields: dict[str, Any]) -> dict[str, list[bytes]]:
    """A footer in every state that the table knows, in every way in which it can be there."""
    sound = FOOTER.pack(**fields)

    def changed(**changes: Any) -> bytes:
        return FOOTER.pack(**{**fields, **changes})

    return {
        "sound": [sound],
        "none": [
            bytes(FOOTER.size),
            sound[:40] + b"rot" + sound[43:],
            changed(salt=fields["salt"] ^ 1),
            changed(number=fields["number"] + 1),
            changed(end_lsn=fields["end_lsn"] + SIZE),
            changed(end_lsn=fields["first_lsn"] - 64),
            changed(end_lsn=fields["end_lsn"] - 1),
            changed(first_lsn=fields["first_lsn"] + 64),
        ],
    }


def put_footer(log: Log, number: int, content: bytes) -> None:
    log.write(log.path(number), SIZE - FOOTER_BYTES, content)


def resealed(segment: bytes, at: int, change: Callable[[bytearray], None]) -> bytes:
    """Returns a frame with its bytes changed and the checksum that they ask for: what no accident does."""
    header = SEGMENT_HEADER.unpack(segment)
    assert header is not None
    length = (int.from_bytes(segment[at : at + 8], "little") & LENGTH_MASK) * 64
    frame = bytearray(segment[at : at + length])
    change(frame)
    crc = zlib.crc32(frame[12:], zlib.crc32(frame[:8], header["salt"] & 0xFFFF_FFFF))
    frame[8:12] = crc.to_bytes(4, "little")
    return bytes(frame)


def each(combinations: Iterator[dict[str, str]], **fixed: str) -> Iterator[dict[str, str]]:
    """The combinations that have these facts."""
    return (facts for facts in combinations if all(facts[name] == value for name, value in fixed.items()))
