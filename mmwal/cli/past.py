"""A store as it was at a position of its log or at a time: read, and written as a new store in another directory.

    moment         a time on the command line
    position_of    the position of the log that a time means
    write_new      what a store holds, as a new store

* The directory that is read is not changed; it may be open in another process.
* The new store gets its name when it is complete and durable. Until then it is ``OUT.incomplete``, which a failure or
  Ctrl-C takes away again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
import numpy as np

import mmwal
from mmwal import kernel as kernels
from mmwal.config import KernelName
from mmwal.entry import Record
from mmwal.errors import EntryTooLargeError, StoreMissingError
from mmwal.log.control import open_control
from mmwal.recovery.log_opening import DTYPE_NAMES, METRIC_NAMES, default_disk
from mmwal.recovery.read_only import lock_for_reading, read_log
from mmwal.recovery.target import position_at

_ROWS_AT_ONCE = 1024


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Returns the last nanosecond of a time with its zone, as ISO 8601 writes it; a callback of `click.option`.

    `mmwal dump` prints whole microseconds: a time taken from there includes its entry.
    """
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no time; write it as 2026-01-31T12:00:00+00:00") from error
    if found.utcoffset() is None:
        raise click.BadParameter(f"{value!r} has no time zone; append one, such as Z or +01:00")
    since = found - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000 + 999


def position_of(wal_dir: str, data_dir: str, time_ns: int, kernel: KernelName | None) -> int:
    """Returns the position of the log that a time means. Raises as `read_log` and `position_at`."""
    disk, loaded = default_disk(), kernels.load(kernel)
    locks = lock_for_reading(disk, wal_dir, data_dir)
    try:
        return position_at(loaded, read_log(disk, loaded, wal_dir), time_ns)
    finally:
        for lock in locks:
            lock.release()


def check_out(out: str, *sources: str) -> None:
    """Raises `click.UsageError` unless a new store can be made there, outside of what is read."""
    place = os.path.realpath(out)
    for source in map(os.path.realpath, sources):
        if place == source or place.startswith(f"{source}/"):
            raise click.UsageError(f"--out {out} lies in {source}, which is only read; give another directory")
    if os.path.lexists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise click.UsageError(f"--out {out} is there already, and not an empty directory; give another one")
    if os.path.lexists(f"{place}.incomplete"):
        raise click.UsageError(f"{place}.incomplete is left of an attempt that was killed; remove it first")


def write_new(store: mmwal.VectorStore, wal_dir: str, out: str, kernel: KernelName | None) -> None:
    """Writes what a store holds as a new store with one checkpoint, in the order in which it was written."""
    control = open_control(default_disk(), wal_dir)
    if control is None:
        raise StoreMissingError(wal_dir)
    identity = control.identity
    with _complete(out) as place:
        new = mmwal.open(
            place,
            dimension=store.dimension,
            dtype=DTYPE_NAMES[identity.dtype],
            metric=METRIC_NAMES[identity.metric],
            segment_size=identity.segment_bytes,
            sync_interval_ms=1000,
            checkpoint_interval=None,
            allow_nonfinite=True,
            kernel=kernel,
        )
        with new:  # which takes the checkpoint
            ids = store.ids()
            for start in range(0, len(ids), _ROWS_AT_ONCE):
                found = store.get_many(ids[start : start + _ROWS_AT_ONCE])
                _insert(new, [record for record in found if record is not None])


def _insert(new: mmwal.VectorStore, records: list[Record]) -> None:
    """Inserts rows as one entry, or as several where it would be too large."""
    try:
        new.insert_many(
            [record.id for record in records],
            np.stack([record.vector for record in records]),
            [record.metadata for record in records],
        )
    except EntryTooLargeError:
        if len(records) == 1:
            raise
        middle = len(records) // 2
        _insert(new, records[:middle])
        _insert(new, records[middle:])


@contextmanager
def _complete(out: str) -> Iterator[str]:
    """Gives a directory to write into, which becomes ``out`` if all went well, and goes away if not."""
    disk, place = default_disk(), os.path.realpath(out)
    incomplete = f"{place}.incomplete"
    if not disk.make_directory(incomplete):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), incomplete)
    try:
        yield incomplete
        os.rename(incomplete, place)  # over an empty directory, too
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    disk.sync_directory(os.path.dirname(place))
