"""Named nasty files, every checksum right: what each costs, for a writer and a reader, and that nothing is changed."""

import struct
from collections.abc import Callable
from typing import Any

import pytest

import mmwal
from mmwal.errors import (
    ConsistencyError,
    ForeignDirectoryError,
    FormatVersionError,
    HeaderCorruptionError,
    OpenError,
    SegmentMissingError,
    WalCorruptionError,
)
from mmwal.format.control import DATA_CONTROL, LOG_CONTROL, SLOT_OFFSETS
from mmwal.format.segment import FOOTER, FOOTER_BYTES, HEADER_OFFSETS, LINK, LINK_OFFSET, SEGMENT_HEADER
from tests.conftest import _require_compiled_kernel
from tools.fuzzing.disk import DATA, WAL, Files, FrozenDisk, simulated
from tools.fuzzing.images import sealed_image, sections_of
from tools.fuzzing.seeds import config, seeds
from tools.fuzzing.segments import DATA_OFFSET, Frame, assembled, frames_of, with_field

FIRST = f"{WAL}/segment-0000000000000000.wal"
SECOND = f"{WAL}/segment-0000000000000001.wal"
ALL_ONES = (1 << 64) - 1


def files_of(name: str) -> Files:
    return {**next(seed.files for seed in seeds() if seed.name == name)}


def in_control(layout: Any, **changes: Any) -> Callable[[Files], None]:
    """Changes both slots of a control file."""

    def change(files: Files) -> None:
        path = f"{WAL if layout is LOG_CONTROL else DATA}/control"
        for offset in SLOT_OFFSETS:
            files[path] = with_field(files[path], layout, offset, changes)

    return change


def of_another_dimension_without_data(files: Files) -> None:
    for path in [path for path in files if path.startswith(DATA)]:
        del files[path]
    in_control(LOG_CONTROL, dimension=65)(files)


def in_header(path: str = FIRST, **changes: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for offset in HEADER_OFFSETS:
            files[path] = with_field(files[path], SEGMENT_HEADER, offset, changes)

    return change


def in_record(layout: Any, offset: int, path: str, **changes: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        before = files[path]
        files[path] = with_field(before, layout, offset, changes)
        assert files[path] != before

    return change


def in_frame(number: int, change_frame: Callable[[Frame], None]) -> Callable[[Files], None]:
    """Changes one frame of the first segment, and seals it and its commit again."""

    def change(files: Files) -> None:
        content = files[FIRST]
        header = SEGMENT_HEADER.unpack(content)
        assert header is not None
        frames = [
            Frame({**one.fields}, one.blocks, {}) for one in frames_of(content, header["base_lsn"], header["salt"])
        ]
        change_frame(frames[number])
        room = len(content) - DATA_OFFSET - FOOTER_BYTES
        body, _, _ = assembled(frames, header["salt"], header["base_lsn"] + DATA_OFFSET, room, {}, honest_commits=True)
        rest = content[DATA_OFFSET + len(body) :]
        files[FIRST] = content[:DATA_OFFSET] + body + rest
        assert files[FIRST] != content

    return change


def with_blocks(payload: Any = None, ids: Any = None, metadata: Any = None, **fields: Any) -> Callable[[Frame], None]:
    def change(frame: Frame) -> None:
        frame.blocks = tuple(  # type: ignore[assignment]
            before if after is None else after
            for before, after in zip(frame.blocks, (payload, ids, metadata), strict=True)
        )
        frame.fields.update(fields)

    return change


def with_lies(**lies: Any) -> Callable[[Frame], None]:
    return lambda frame: frame.lies.update(lies)


def as_pad(frame: Frame) -> None:
    frame.fields.update(kind=255, rows=0, dtype=0, txn=0, length=frame.size())
    frame.blocks = (b"", b"", b"")


def in_image(change_sections: Callable[[list[Any], dict[int, dict[str, Any]]], None]) -> Callable[[Files], None]:
    """Changes the sections of the image; both control slots name what comes of it."""

    def change(files: Files) -> None:
        path = f"{DATA}/image-0000000000000001"
        sections = [(fields, [*columns]) for fields, columns in sections_of(files[path])]
        lies: dict[int, dict[str, Any]] = {}
        change_sections(sections, lies)
        files[path], crc = sealed_image(sections, lies)
        last = sections[-1][0]
        names = {"image_bytes": len(files[path]), "image_crc": crc}
        names |= {name: last[name] for name in ("redo_lsn", "rows_high", "live_rows")}
        in_control(DATA_CONTROL, **names)(files)

    return change


def column(number: int, value: bytes, section: int = 0) -> Callable[[list[Any], dict[int, dict[str, Any]]], None]:
    """Puts a value at the beginning of a column."""

    def change(sections: list[Any], lies: dict[int, dict[str, Any]]) -> None:
        columns = sections[section][1]
        columns[number] = value + columns[number][len(value) :]

    return change


def lie(**fields: int) -> Callable[[list[Any], dict[int, dict[str, Any]]], None]:
    return lambda sections, lies: lies.setdefault(0, {}).update(fields)


def planted(name: str, content: bytes | str = b"") -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files[f"{WAL}/{name}"] = files[content] if isinstance(content, str) else content

    return change


def both(*changes: Callable[[Files], None]) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        for one in changes:
            one(files)

    return change


LOG, DAT = f"{WAL}/control", f"{DATA}/control"
IMAGE = f"{DATA}/image-0000000000000001"
Nasty = tuple[str, Callable[[Files], None], type[OpenError], str, str]
# What was done to which store; the error, the file that it names, and a part of what it says.
NASTY: dict[str, Nasty] = {
    "log control of a newer version": (
        "few",
        in_control(LOG_CONTROL, version=2),
        FormatVersionError,
        LOG,
        "format version 2, this mmwal reads up to 1",
    ),
    "log control with a feature that must be known": (
        "few",
        in_control(LOG_CONTROL, features_required=1 << 63),
        FormatVersionError,
        LOG,
        "a newer mmwal",
    ),
    "segment size of 2 to the 64": (
        "few",
        in_control(LOG_CONTROL, segment_bytes=ALL_ONES),
        HeaderCorruptionError,
        LOG,
        "segment size",
    ),
    "segment size that is no multiple of a page": (
        "few",
        in_control(LOG_CONTROL, segment_bytes=16385),
        HeaderCorruptionError,
        LOG,
        "segment size 16385",
    ),
    "dimension of four milliards": (
        "few",
        in_control(LOG_CONTROL, dimension=(1 << 32) - 1),
        HeaderCorruptionError,
        LOG,
        "dimension 4294967295",
    ),
    "dimension that the entries contradict": (
        "few",
        of_another_dimension_without_data,
        ConsistencyError,
        "segment-",
        "the log's control file says 65",
    ),
    "incarnation that cannot be counted on": (
        "few",
        in_control(LOG_CONTROL, incarnation=ALL_ONES),
        HeaderCorruptionError,
        LOG,
        "incarnation",
    ),
    "sequence that cannot be counted on": (
        "few",
        in_control(LOG_CONTROL, sequence=ALL_ONES),
        HeaderCorruptionError,
        LOG,
        "sequence",
    ),
    "log that begins at the end of the number line": (
        "few",
        in_control(LOG_CONTROL, oldest_lsn=ALL_ONES),
        HeaderCorruptionError,
        LOG,
        "lies below oldest_lsn",
    ),
    "clean end far beyond every segment": (
        "closed",
        in_control(LOG_CONTROL, end_lsn=(1 << 61) + 8192),
        SegmentMissingError,
        "segment-",
        "is missing",
    ),
    "clean end at zero": (
        "closed",
        in_control(LOG_CONTROL, end_lsn=0),
        HeaderCorruptionError,
        LOG,
        "end_lsn 0",
    ),
    "clean end in the middle of a header": (
        "closed",
        in_control(LOG_CONTROL, end_lsn=16384 + 64),
        HeaderCorruptionError,
        LOG,
        "end_lsn 16448",
    ),
    "durable position beyond the log": (
        "few",
        in_control(LOG_CONTROL, durable_lsn=(1 << 50) + 8192),
        WalCorruptionError,
        FIRST,
        "was durable",
    ),
    "data of another dimension than the log": (
        "checkpoints",
        in_control(LOG_CONTROL, dimension=8),
        ConsistencyError,
        DAT,
        "dimension 4",
    ),
    "data control of a newer version": (
        "checkpoints",
        in_control(DATA_CONTROL, version=7),
        FormatVersionError,
        DAT,
        "format version 7",
    ),
    "data control with a feature that must be known": (
        "checkpoints",
        in_control(DATA_CONTROL, features_required=1),
        FormatVersionError,
        DAT,
        "newer mmwal",
    ),
    "image of a newer version": (
        "checkpoints",
        in_image(lie(version=3)),
        ConsistencyError,
        DAT,
        "format version 3",
    ),
    "data control with rows of no bytes": (
        "checkpoints",
        in_control(DATA_CONTROL, row_bytes=0),
        HeaderCorruptionError,
        DAT,
        "contradict each other",
    ),
    "data control with 2 to the 63 rows": (
        "checkpoints",
        in_control(DATA_CONTROL, rows_high=1 << 63),
        ConsistencyError,
        DAT,
        "too few for",
    ),
    "data control with a redo position at the end of the number line": (
        "checkpoints",
        in_control(DATA_CONTROL, redo_lsn=ALL_ONES),
        HeaderCorruptionError,
        DAT,
        "redo_lsn",
    ),
    "image number that no name can follow": (
        "checkpoints",
        in_control(DATA_CONTROL, image_number=ALL_ONES),
        HeaderCorruptionError,
        DAT,
        "image_number",
    ),
    "image of more bytes than its file": (
        "checkpoints",
        in_control(DATA_CONTROL, image_bytes=1 << 62),
        ConsistencyError,
        DAT,
        "no checkpoint is whole",
    ),
    "image section of entries whose sizes wrap around": (
        "checkpoints",
        in_image(lie(entries=1 << 61)),
        ConsistencyError,
        DAT,
        "section of",
    ),
    "image section longer than the image": (
        "checkpoints",
        in_image(lie(ids_bytes=(1 << 64) - 64)),
        ConsistencyError,
        DAT,
        "section of",
    ),
    "image that names a negative row": (
        "checkpoints",
        in_image(column(1, struct.pack("<q", -7))),
        ConsistencyError,
        DAT,
        "a row outside of",
    ),
    "image that names a huge row": (
        "checkpoints",
        in_image(column(1, struct.pack("<q", 1 << 62))),
        ConsistencyError,
        DAT,
        "a row outside of",
    ),
    "image that names one row twice": (
        "checkpoints",
        in_image(column(1, struct.pack("<q", 4))),
        ConsistencyError,
        DAT,
        "names a row twice",
    ),
    "image with an id of 2 gigabytes": (
        "checkpoints",
        in_image(column(0, struct.pack("<I", 0x7FFF_FFFF))),
        ConsistencyError,
        DAT,
        "block of ids",
    ),
    "image with an LSN above its redo position": (
        "checkpoints",
        in_image(column(2, struct.pack("<Q", ALL_ONES))),
        ConsistencyError,
        DAT,
        "LSN",
    ),
    "segment of a newer version": (
        "few",
        in_header(version=9),
        FormatVersionError,
        FIRST,
        "format version 9",
    ),
    "segment with a feature that must be known": (
        "few",
        in_header(features_required=4),
        FormatVersionError,
        FIRST,
        "newer mmwal",
    ),
    "segment of another store": (
        "few",
        in_header(store_id=b"another store!!!"),
        ForeignDirectoryError,
        FIRST,
        "another store",
    ),
    "segment that says another number": (
        "few",
        in_header(number=5),
        HeaderCorruptionError,
        FIRST,
        "segment 5",
    ),
    "segment that says another size": (
        "few",
        in_header(segment_bytes=1 << 40),
        HeaderCorruptionError,
        FIRST,
        "of 1,099,511,627,776 bytes",
    ),
    "segment that says another place": (
        "few",
        in_header(base_lsn=64),
        HeaderCorruptionError,
        FIRST,
        "from LSN 64",
    ),
    "sealed end before the frames that were durable": (
        "segments",
        in_record(FOOTER, -FOOTER_BYTES, FIRST, end_lsn=8192 + 64),
        WalCorruptionError,
        "segment-",
        "",
    ),
    "batch of four milliard rows": (
        "few",
        in_frame(0, with_lies(rows=(1 << 32) - 1)),
        ConsistencyError,
        FIRST,
        "4294967295 rows",
    ),
    "entry whose blocks add up to another length": (
        "few",
        in_frame(0, with_lies(vector_bytes=(1 << 32) - 1)),
        WalCorruptionError,
        FIRST,
        "damaged entry",
    ),
    "entry of a length of a gigabyte": (
        "few",
        in_frame(0, with_lies(length=1 << 30)),
        WalCorruptionError,
        FIRST,
        "damaged entry",
    ),
    "entry with an id that ends outside its block": (
        "few",
        in_frame(0, with_blocks(ids=struct.pack("<I", 200) + b"short")),
        WalCorruptionError,
        FIRST,
        "ends inside an id",
    ),
    "entry with an id that is not UTF-8": (
        "few",
        in_frame(0, with_blocks(ids=struct.pack("<I", 2) + b"\xff\xfe")),
        WalCorruptionError,
        FIRST,
        "contradicts itself",
    ),
    "entry with vectors of another dtype": (
        "few",
        in_frame(0, with_blocks(dtype=3)),
        ConsistencyError,
        FIRST,
        "int8",
    ),
    "entry with an unknown dtype": (
        "few",
        in_frame(0, with_blocks(dtype=200)),
        ConsistencyError,
        FIRST,
        "None",
    ),
    "insert without a vector": (
        "few",
        in_frame(0, with_blocks(payload=b"", dtype=0)),
        WalCorruptionError,
        FIRST,
        "rows without vectors",
    ),
    "segment with the greatest number": (
        "few",
        both(
            planted("segment-ffffffffffffffff.wal", FIRST),
            in_header(f"{WAL}/segment-ffffffffffffffff.wal", number=ALL_ONES),
        ),
        HeaderCorruptionError,
        f"{WAL}/segment-ffffffffffffffff.wal",
        "its name and the log say",
    ),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_file_is_refused_by_name_and_nothing_is_changed(name: str) -> None:
    _require_compiled_kernel()
    seed, change, kind, place, says = NASTY[name]
    files = files_of(seed)
    change(files)
    disk = simulated(files)
    before = disk.digest()
    for opened in ((FrozenDisk(files), True), (disk, False)):
        with pytest.raises(kind) as caught:
            mmwal.open(config=config("c"), disk=opened[0], read_only=opened[1])  # type: ignore[arg-type]
        assert place in str(caught.value) and says in str(caught.value), str(caught.value)
        assert place in getattr(caught.value, "path", place)
    lock = disk.lock(f"{WAL}/lock")  # it is free again
    lock.release()
    assert disk.digest() == before


HARMLESS: dict[str, tuple[str, Callable[[Files], None]]] = {
    "names that are none of ours": (
        "checkpoints",
        both(*(planted(name, b"x") for name in ("segment-0.wal", "../x", "a\nb", "x" * 255, "segment-g.wal", "notes"))),
    ),
    "image name without a number behind it": (
        "checkpoints",
        lambda files: files.update({f"{DATA}/image-ffffffffffffffff": b"not an image"}),
    ),
    "pad in the place of an entry": ("few", in_frame(2, as_pad)),
    "clean end that is too low": ("closed", in_control(LOG_CONTROL, end_lsn=8192)),
    "spare of another size": ("checkpoints", planted("spare-0123456789abcdef.wal", b"short")),
    "link that says nothing true": ("few", in_record(LINK, LINK_OFFSET, FIRST, previous_last_crc=5)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_oddity_costs_nothing(name: str, kernel: Any) -> None:
    seed, change = HARMLESS[name]
    files = files_of(seed)
    change(files)
    with mmwal.open(config=config(kernel.NAME), disk=FrozenDisk(files), read_only=True) as store:  # type: ignore[arg-type]
        expected = {id: store.get(id).lsn for id in store}
    disk = simulated({path: content for path, content in files.items() if ".." not in path})
    with mmwal.open(config=config(kernel.NAME), disk=disk) as store:
        assert {id: store.get(id).lsn for id in store} == expected
        store.checkpoint()
    honest = files_of(seed)
    with mmwal.open(config=config(kernel.NAME), disk=FrozenDisk(honest), read_only=True) as store:  # type: ignore[arg-type]
        lost = {id for id in store if id not in expected}
    assert lost == ({"é"} if name.startswith("pad") else set())
