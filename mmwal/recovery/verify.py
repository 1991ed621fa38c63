"""A directory against what was recorded: the log, and the data that belongs to it.

    verify              the directory of a store or of a log alone; for a person, so nothing has to be open
    verify_directory    the same, for whoever knows more of it
    report_log          the log alone, with a report of each entry; `report_segment`: of one file

Not here: how a log is verified (`verify_log.py`), how data is (`checkpoint/verify.py`).

* It works on what opening refuses, beside a live writer, and without a control file; it changes nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mmwal import kernel as kernels
from mmwal.checkpoint.verify import Known, Moved, read_slots_of, verify_data
from mmwal.config import KernelName
from mmwal.disk.interface import Disk, Lock
from mmwal.entry import EntryReport, LogReport, VerifyReport
from mmwal.errors import StoreMissingError
from mmwal.format.segment import data_start
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.segment import segment_number
from mmwal.recovery.log_opening import absolute, default_disk
from mmwal.recovery.verify_log import LogCheck, Told, verify_log, verify_segment
from mmwal.state.matrix import MATRIX_NAME

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel


def verify(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    kernel: KernelName | None = None,
    disk: Disk | None = None,
    moved: Moved = lambda _: None,
) -> VerifyReport:
    """Compares everything in a directory with its checksums; returns what is damaged, and where.

    Nothing has to be open, and what opening refuses is looked at like anything else. It changes no byte, creates no
    file, and never raises on damage. Segments are read one at a time; of the data, the ids are held in memory.

    Args:
        path: the directory of a store, or of a log alone.
        data_dir: where the matrix is, for a ``path`` that is the log's directory of a store on two disks.
        kernel: "c" or "py"; None: the compiled one where it is installed.
        disk: another operating system, such as `mmwal.testing.SimulatedDisk`.
        moved: called now and then with how many more bytes were looked at, to show progress.

    Raises:
        StoreMissingError: there is neither a store nor a log.

    Concurrency: works beside a live writer, who reuses no file meanwhile; what is written later is not looked at.

    Example:
        >>> import tempfile, warnings, mmwal
        >>> warnings.simplefilter("ignore", mmwal.DurabilityWarning)
        >>> root = tempfile.mkdtemp()
        >>> with mmwal.open(root, dimension=2, segment_size=1 << 20) as store:
        ...     lsn = store.insert("a", [1.0, 0.0])
        >>> report = mmwal.verify(root)
        >>> report.ok, report.rows, report.findings
        (True, 1, ())
    """
    disk = disk or default_disk()
    wal_dir, found_dir = directories_of(disk, path, data_dir)
    return verify_directory(disk, kernels.load(kernel), wal_dir, found_dir, moved=moved)


def size_of(path: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> int:
    """Returns about how many bytes `verify` will look at. Raises `StoreMissingError`."""
    disk = default_disk()
    wal_dir, found_dir = directories_of(disk, path, data_dir)
    total = 0
    for name in disk.list_directory(wal_dir):
        if segment_number(name) is not None:
            total += _size_of(disk, f"{wal_dir}/{name}")
    if found_dir is not None:
        for slot in read_slots_of(disk, found_dir)[:1]:
            total += int(slot.image_bytes) + int(slot.live_rows) * int(slot.row_bytes)
    return total


def _size_of(disk: Disk, path: str) -> int:
    """Returns the size of a file; 0 where it cannot be opened."""
    try:
        file = disk.open(path, writable=False)
    except OSError:
        return 0
    try:
        return file.size()
    finally:
        file.close()


def directories_of(
    disk: Disk, path: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, str | None]:
    """Returns the directories of the log and of the data (None: a log alone) of a store or log at ``path``.

    ``data_dir`` says where the data is, if ``path`` is the log's directory of a store on two disks. Raises
    `StoreMissingError`.
    """
    wal_dir, found_dir = _directories(disk, absolute(path))
    return wal_dir, found_dir if data_dir is None else absolute(data_dir)


def _directories(disk: Disk, root: str) -> tuple[str, str | None]:
    if any(_is_log(disk, f"{root}/{name}") or disk.exists(f"{root}/{name}/{CONTROL_NAME}") for name in ("wal", "data")):
        return f"{root}/wal", f"{root}/data"
    if not _is_log(disk, root):
        raise StoreMissingError(root)
    return root, None


def _is_log(disk: Disk, path: str) -> bool:
    try:
        names = disk.list_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return CONTROL_NAME in names or any(segment_number(name) is not None for name in names)


def verify_directory(
    disk: Disk,
    kernel: Kernel,
    wal_dir: str,
    data_dir: str | None,
    *,
    published_lsn: int | None = None,
    told: Told | None = None,
    moved: Moved = lambda _: None,
) -> VerifyReport:
    """Verifies the log of a directory and, where ``data_dir`` is given, the data that belongs to it.

    Args:
        published_lsn: where the log ends, from a writer of this process that is alive and well.
        told: gets a report of each entry, oldest first.
        moved: told, now and then, how many more bytes were looked at.

    Concurrency: beside a live writer, whose files are not reused meanwhile.
    """
    locks = _shared_locks(disk, wal_dir, data_dir)
    try:
        slots = read_slots_of(disk, data_dir) if data_dir is not None else []
        redo_lsn = max((int(slot.redo_lsn) for slot in slots), default=0)
        log = verify_log(
            disk, kernel, wal_dir, published_lsn=published_lsn, known_durable_lsn=redo_lsn, told=told, moved=moved
        )
        report = _report_of(log)
        if data_dir is None or not _has_data(disk, data_dir, log):
            return report
        known = Known(
            store_id=log.identity.store_id if log.identity else None,
            oldest_lsn=log.first_lsn,
            checkpoint_noted=log.checkpoint_noted,
        )
        data = verify_data(disk, kernel, data_dir, known, moved)
        return replace(
            report,
            findings=(*report.findings, *data.findings),
            slots=report.slots + data.slots_read,
            sections=data.sections,
            rows=data.rows,
            bytes_read=report.bytes_read + data.bytes_read,
        )
    finally:
        for lock in locks:
            lock.release()


def report_log(disk: Disk, kernel: Kernel, wal_dir: str, *, published_lsn: int | None = None) -> LogReport:
    """Verifies a log and returns a report of each entry; as `verify_directory`."""
    entries: list[EntryReport] = []
    whole = verify_directory(disk, kernel, wal_dir, None, published_lsn=published_lsn, told=entries.append)
    return LogReport(tuple(entries), whole)


def report_segment(disk: Disk, kernel: Kernel, path: str) -> LogReport:
    """Verifies one segment file, wherever it is; as `report_log`."""
    entries: list[EntryReport] = []
    whole = _report_of(verify_segment(disk, kernel, path, entries.append))
    return LogReport(tuple(entries), whole)


def _report_of(log: LogCheck) -> VerifyReport:
    return VerifyReport(
        findings=tuple(log.findings),
        segments=log.segments,
        entries=log.entries,
        slots=log.slots,
        bytes_read=log.bytes_read,
        first_lsn=log.first_lsn,
        last_lsn=log.last_lsn,
    )


def _shared_locks(disk: Disk, wal_dir: str, data_dir: str | None) -> list[Lock]:
    """Takes a reader's lock on each control file that is there, so that a writer reuses no file that is read."""
    locks = []
    for directory in (wal_dir, data_dir):
        if directory is not None:
            with suppress(OSError):  # without the file nobody writes there
                locks.append(disk.lock_shared(f"{directory}/{CONTROL_NAME}"))
    return locks


def _has_data(disk: Disk, data_dir: str, log: LogCheck) -> bool:
    """Whether there must be data: a checkpoint was there once, or something of it still is."""
    if log.identity is not None and log.owned and log.first_lsn > data_start(0, log.identity.segment_bytes):
        return True
    if log.checkpoint_noted > 0:
        return True
    names = disk.list_directory(data_dir) if disk.exists(data_dir) else []
    is_filled = MATRIX_NAME in names and _size_of(disk, f"{data_dir}/{MATRIX_NAME}") > 0  # a crash leaves it empty
    return CONTROL_NAME in names or is_filled or any(name.startswith("image-") for name in names)
