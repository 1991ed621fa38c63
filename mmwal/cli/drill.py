"""``mmwal drill``: recovers a copy of a store for practice, and compares; `tools/drill.py` is the same from a checkout.

The store that is drilled is read only, and may be open in another process. The copy is of one position of its log, the
one at which a reader found it:

* The control files are copied before the reader comes, so they promise nothing behind its position.
* Of the log, what lies before that position is copied. Behind it stands zero, as in a segment that is prepared.
* The checkpoint that the copied control file names must still count when the copy ends, and the log must still begin
  where it did; else what they name may be gone, and the copy is made again.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeVar

import click

import mmwal
from mmwal.checkpoint.control import open_control as open_data_control
from mmwal.cli.app import CORRUPTION, OK
from mmwal.cli.place import json_option, kernel_option, print_json
from mmwal.cli.recover import opened, places, progress_bar
from mmwal.config import KernelName
from mmwal.entry import Id, Record
from mmwal.errors import StoreMissingError
from mmwal.format.metadata import encode_metadata
from mmwal.format.segment import DATA_OFFSET, data_end
from mmwal.log.control import LogIdentity, open_control
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.segment import inspect_segment, segment_number
from mmwal.recovery.log_opening import default_disk

ATTEMPTS = 10
DIFFERENCES_KEPT = 100
_DIFFERENCES_SHOWN = 10
_CHUNK_BYTES = 8 << 20
_ROWS_AT_ONCE = 4096
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Drill:
    """What a drill found. ``differences`` names the first ids whose rows differ, with what differs."""

    rows: int
    lsn: int
    copied_bytes: int
    copy_s: float
    recovery_s: float
    verify_s: float
    compare_s: float
    stats: mmwal.RecoveryStats
    report: mmwal.VerifyReport
    differing: int
    differences: tuple[tuple[Id, str], ...]

    @property
    def ok(self) -> bool:
        """Whether the copy came back whole and alike."""
        return self.report.ok and not self.differing

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` takes."""
        plain = {"stats": self.stats.to_dict(), "report": self.report.to_dict()}
        return {"ok": self.ok, **{name: value for name, value in asdict(self).items() if name not in plain}, **plain}


class MovedOn(Exception):
    """The store has moved on so far that the copy may lack something."""


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=str))
@click.option("--wal-dir", type=click.Path(path_type=str), help="The log's directory, where PATH is not given.")
@click.option("--data-dir", type=click.Path(path_type=str), help="The directory of matrix and checkpoints.")
@click.option("--work", type=click.Path(path_type=str), help="Where to copy to; left out: beside the store.")
@click.option("--keep", is_flag=True, help="Leave the recovered copy where it is, and say where.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes that verify and copy; left out: threads.")
@json_option
@kernel_option
def drill(
    path: str | None,
    wal_dir: str | None,
    data_dir: str | None,
    work: str | None,
    keep: bool,
    workers: int | None,
    as_json: bool,
    kernel: KernelName | None,
) -> int:
    """Recover a copy of the store in PATH, as after a crash now, and compare it with the store.

    PATH may be the directory of a store that is open, closed or crashed, or a backup of one; it is only read. Every id,
    vector, metadata and LSN of the copy is compared, and everything in it with its checksums. It needs the store's size
    in free space, and twice its vectors in memory.

    Exit codes: 0 all came back, 1 it could not be tried, 2 the command line is wrong, 3 something is damaged or
    differs.
    """
    wal_dir, data_dir = places(path, wal_dir, data_dir)
    with _work_directory(work or os.path.dirname(os.path.realpath(path or wal_dir)), keep=keep) as place:
        found = rehearse(wal_dir, data_dir, place, workers=workers, kernel=kernel)
    kept = place if keep else None
    if as_json:
        print_json({**found.to_dict(), "wal_dir": wal_dir, "data_dir": data_dir, "kept": kept})
    else:
        _show(found, kept)
    return OK if found.ok else CORRUPTION


def rehearse(
    wal_dir: str, data_dir: str, place: str, *, workers: int | None = None, kernel: KernelName | None = None
) -> Drill:
    """Copies a store to an empty directory, recovers the copy, and compares. Raises as an opening of either would."""
    for attempt in range(ATTEMPTS):
        started = time.monotonic()
        wal, data = _control_of(wal_dir, data_dir)
        with opened(wal_dir, data_dir, workers, None, kernel) as store:
            try:
                copied_bytes = _copy(wal_dir, data_dir, place, store.recovery_stats.last_lsn, wal, data)
            except (MovedOn, FileNotFoundError) as error:
                shutil.rmtree(place)
                os.makedirs(place)
                if attempt + 1 == ATTEMPTS:
                    raise OSError(
                        errno.EAGAIN,
                        f"{wal_dir}: the store takes checkpoints faster than it can be copied; try again in a quiet "
                        "hour, or drill a backup",
                    ) from error
                continue
            copy_s = time.monotonic() - started
            return _recover_and_compare(store, place, workers, kernel, copied_bytes, copy_s)
    raise AssertionError("unreachable")


def _recover_and_compare(
    store: mmwal.VectorStore,
    place: str,
    workers: int | None,
    kernel: KernelName | None,
    copied_bytes: int,
    copy_s: float,
) -> Drill:
    config = mmwal.RecoveryConfig(
        wal_dir=f"{place}/wal", data_dir=f"{place}/data", workers=workers, max_recovery_time_ms=None, kernel=kernel
    )
    with progress_bar() as progress:
        recovered, recovery_s = _timed(mmwal.CrashRecoveryManager(config, progress=progress).recover)
    with recovered:
        if recovered.dimension is not None:
            recovered.checkpoint()  # the older slot may name rows that were written over while they were copied
        report, verify_s = _timed(recovered.verify)
        (differing, differences), compare_s = _timed(lambda: _compare(store, recovered))
        stats = recovered.recovery_stats
    return Drill(
        rows=len(store),
        lsn=store.recovery_stats.last_lsn,
        copied_bytes=copied_bytes,
        copy_s=copy_s,
        recovery_s=recovery_s,
        verify_s=verify_s,
        compare_s=compare_s,
        stats=stats,
        report=report,
        differing=differing,
        differences=tuple(differences),
    )


def _timed(act: Callable[[], _Result]) -> tuple[_Result, float]:
    """Returns what something returns, and how many seconds it took."""
    started = time.monotonic()
    return act(), time.monotonic() - started


# -- the copy


def _control_of(wal_dir: str, data_dir: str) -> tuple[bytes, bytes]:
    """Returns the control files as they are now."""
    found = []
    for directory in (wal_dir, data_dir):
        with open(f"{directory}/{CONTROL_NAME}", "rb") as file:
            found.append(file.read())
    return found[0], found[1]


def _copy(wal_dir: str, data_dir: str, place: str, end_lsn: int, wal: bytes, data: bytes) -> int:
    """Copies a store as of a position of its log; returns the bytes. Raises `MovedOn`, `FileNotFoundError`."""
    for name, content in (("wal", wal), ("data", data)):
        os.makedirs(f"{place}/{name}", mode=0o700)
        with open(f"{place}/{name}/{CONTROL_NAME}", "xb") as file:
            file.write(content)
    disk = default_disk()
    copied = open_control(disk, f"{place}/wal")
    named = open_data_control(disk, f"{place}/data")
    if copied is None or named is None:
        raise StoreMissingError(wal_dir)
    segments = {number: name for name in os.listdir(wal_dir) if (number := segment_number(name)) is not None}
    size = copied.identity.segment_bytes
    lengths = {number: _bytes_before(end_lsn, number, size) for number in segments}
    last = (end_lsn - 1) // size
    if last in segments and _is_sealed(wal_dir, copied.identity, last, end_lsn):
        lengths[last] = size
        if last + 1 in segments:
            lengths[last + 1] = DATA_OFFSET
    images = [name for name in os.listdir(data_dir) if name not in (CONTROL_NAME, "lock")]
    data_bytes = sum(os.path.getsize(f"{data_dir}/{name}") for name in images)
    needed = size * sum(1 for length in lengths.values() if length) + data_bytes
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the copy takes {needed:,} bytes and {free:,} are free; give another directory with --work",
            place,
        )
    for name in images:
        _copy_file(f"{data_dir}/{name}", f"{place}/data/{name}")
    for number in sorted(segments):
        if lengths[number]:
            name = segments[number]
            _copy_file(f"{wal_dir}/{name}", f"{place}/wal/{name}", lengths[number], size)
    now, still = open_control(disk, wal_dir), open_data_control(disk, data_dir)
    if (
        now is None
        or still is None
        or (now.oldest_lsn, now.incarnation, now.clean_end_lsn)
        != (copied.oldest_lsn, copied.incarnation, copied.clean_end_lsn)
        or named.sequence not in [slot.sequence for slot in still.slots]
    ):
        raise MovedOn
    return needed + len(wal) + len(data)


def _bytes_before(end_lsn: int, number: int, size: int) -> int:
    """Returns how much of a segment belongs to a log that ends at a position. Where it ends with a full segment, header
    and link of the next belong to it, too."""
    base = number * size
    if end_lsn >= data_end(number, size):
        return size
    if end_lsn > base + DATA_OFFSET:
        return end_lsn - base
    return DATA_OFFSET if end_lsn >= data_end(number - 1, size) or end_lsn == base + DATA_OFFSET else 0


def _is_sealed(wal_dir: str, identity: LogIdentity, number: int, end_lsn: int) -> bool:
    """Returns whether a segment was sealed where the log ends, as after a cut: its footer belongs to the log."""
    info = inspect_segment(default_disk(), wal_dir, identity, number)
    return info is not None and info.footer is not None and info.end_lsn == end_lsn


def _copy_file(source: str, to: str, length: int | None = None, size: int | None = None) -> None:
    """Copies a file, or so many bytes of it and zeros up to a size."""
    with open(source, "rb") as old, open(to, "xb") as new:
        left = os.fstat(old.fileno()).st_size if length is None else length
        written = 0
        while left and (chunk := old.read(min(left, _CHUNK_BYTES))):
            new.write(chunk)
            left -= len(chunk)
            written += len(chunk)
        _write_zeros(new, (size or written) - written)
    os.chmod(to, 0o600)


def _write_zeros(file: BinaryIO, count: int) -> None:
    while count > 0:
        file.write(bytes(min(count, _CHUNK_BYTES)))
        count -= _CHUNK_BYTES


@contextmanager
def _work_directory(parent: str, *, keep: bool) -> Iterator[str]:
    """Gives a new directory, and removes it unless it is to be kept."""
    place = tempfile.mkdtemp(prefix="mmwal-drill-", dir=parent)
    try:
        yield place
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


# -- the comparison


def _compare(store: mmwal.VectorStore, recovered: mmwal.VectorStore) -> tuple[int, list[tuple[Id, str]]]:
    """Returns how many ids differ, and the first of them with what differs."""
    differing = 0
    differences: list[tuple[Id, str]] = []

    def differ(id: Id, how: str) -> None:
        nonlocal differing
        differing += 1
        if len(differences) < DIFFERENCES_KEPT:
            differences.append((id, how))

    ids = store.ids()
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        chunk = ids[start : start + _ROWS_AT_ONCE]
        for id, ours, theirs in zip(chunk, store.get_many(chunk), recovered.get_many(chunk), strict=True):
            assert ours is not None, "a reader's store does not change"
            if how := _difference(ours, theirs):
                differ(id, how)
    known = set(ids)
    for id in recovered.ids():
        if id not in known:
            differ(id, "is in the copy alone")
    return differing, differences


def _difference(ours: Record, theirs: Record | None) -> str | None:
    if theirs is None:
        return "is missing from the copy"
    parts = {
        "vector": ours.vector.tobytes() == theirs.vector.tobytes(),
        "metadata": encode_metadata(ours.metadata) == encode_metadata(theirs.metadata),
        "LSN": ours.lsn == theirs.lsn,
    }
    differing = [name for name, same in parts.items() if not same]
    return f"differs in {' and '.join(differing)}" if differing else None


def _show(found: Drill, kept: str | None) -> None:
    click.echo(
        f"copied     {found.copied_bytes / 1e6:,.1f} MB as of LSN {found.lsn} in {found.copy_s:.2f} s\n"
        f"recovered  {found.rows:,} rows in {found.recovery_s:.2f} s\n"
        f"verified   {found.report.bytes_read / 1e6:,.1f} MB in {found.verify_s:.2f} s: "
        f"{'whole' if found.report.ok else f'{len(found.report.damage):,} damaged'}\n"
        f"compared   {found.rows:,} rows in {found.compare_s:.2f} s: "
        f"{f'{found.differing:,} differ' if found.differing else 'alike'}"
    )
    for finding in found.report.damage[:_DIFFERENCES_SHOWN]:
        click.echo(f"  {finding}")
    for id, how in found.differences[:_DIFFERENCES_SHOWN]:
        click.echo(f"  id {id!r} {how}")
    if found.differing > _DIFFERENCES_SHOWN:
        click.echo(f"  … and {found.differing - _DIFFERENCES_SHOWN:,} more")
    if kept is not None:
        click.echo(f"kept       {kept}")
