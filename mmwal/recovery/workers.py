"""Who does the parts of a recovery: the caller, threads, or the processes of a pool.

    scan    verify the frames of many ranges and list them
    copy    vectors, from the mapped log to rows of the matrix

Not here: what a frame is (`log/scan.py`), which rows (`recover.py`).

* Results, and the error that is raised, do not depend on who did the parts: they are looked at in the order of the log.
* A part for another process is a path and numbers, and for copying, arrays of places. It maps the files itself; what
  comes back is the headers of its frames. No vector travels.
* A worker that dies costs time: its parts, and all that were not done, are done by the caller. Copying them again does
  no harm, since nobody has seen the rows yet.
* Nobody is still at work when a phase ends, however it ends: a late copy would reach rows that are others' by then.
* Only the operating system's disk can be reached from another process. Recovery from any other runs in the caller.
* What is chosen where nobody asks (threads verify, the caller copies), and why, stands in docs/decisions/0005.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mmwal import kernel as kernels
from mmwal.disk.interface import Disk
from mmwal.disk.posix import PosixDisk
from mmwal.disk.worker import usable_cores
from mmwal.entry import RecoveryPhase
from mmwal.errors import ConsistencyError, WalConfigError
from mmwal.format.frame import FRAME_DTYPE
from mmwal.log.reader import Extent, checked_extent, map_segment, read_extent
from mmwal.log.scan import scan_frames
from mmwal.log.segment import SegmentInfo
from mmwal.state.matrix import Matrix, RowMatrix

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_logger = logging.getLogger("mmwal")

_THREADS_FROM_BYTES = 32 << 20
_THREADS_LEAST, _THREADS_MAX = 4, 16  # more than there are cores: some wait for the disk
_COPY_BYTES = 16 << 20  # in one part

I64 = npt.NDArray[np.int64]
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")
_Call = tuple[Callable[..., Any], tuple[Any, ...]]  # of a function, with what travels to the worker

Between = Callable[[RecoveryPhase, int, int], None]  # phase, bytes done (0 as it begins), bytes in all; may raise


class Range(NamedTuple):
    """A part of the log: from a frame's position to where the frames of its segment end."""

    info: SegmentInfo
    start_lsn: int
    end_lsn: int


class Copy(NamedTuple):
    """Vectors at offsets of an extent, and the rows that they go to."""

    extent: Extent
    offsets: I64
    rows: I64


class Workers:
    """Does parts of a recovery; ends what it began with the ``with`` block.

    Args:
        count: how many; None: threads where there is much to verify and the kernel is compiled, else the caller alone.
        executor: does the parts, in whatever threads or processes it has. It is not shut down, unless it breaks.
        processes: whether ``count`` may be met by a pool of processes (``spawn``: the caller's main module is imported
            by each); else by threads.
        between: told before the first part of a phase and after each how far it is; what it raises ends the recovery.

    Raises:
        WalConfigError: ``executor`` is none.
    """

    def __init__(
        self,
        disk: Disk,
        count: int | None = None,
        *,
        executor: Executor | None = None,
        processes: bool = False,
        between: Between = lambda phase, done, total: None,
    ) -> None:
        if executor is not None and not isinstance(executor, Executor):
            raise WalConfigError("executor", executor, "must be a concurrent.futures.Executor; or give workers")
        reachable = type(disk) is PosixDisk
        self._disk = disk
        self._asked = count if reachable else 1
        self._own: ProcessPoolExecutor | None = None
        self._executor = executor if reachable else None
        self._processes = processes and reachable and count is not None  # unasked, nobody's main module is imported
        self._between = between
        self.used = 1  # the most that any phase had
        self.notes: list[str] = []
        if not reachable and (executor is not None or (count or 1) > 1):
            self.notes.append(f"{type(disk).__name__} can be used by the caller alone, which did all the parts")

    def scan(self, kernel: Kernel, ranges: Sequence[Range], *, verify: bool, known_bytes: int = 0) -> list[Extent]:
        """Returns the verified frames of ranges. Raises `WalCorruptionError` for the first that is damaged.

        ``known_bytes``: of the log, done by somebody else before.
        """

        def near(part: Range) -> Extent:
            return read_extent(self._disk, kernel, *part, verify=verify)

        def settle(part: Range, found: tuple[bytes, int]) -> Extent:
            frames = np.frombuffer(found[0], FRAME_DTYPE)
            return checked_extent(part.info, map_segment(self._disk, part.info), frames, found[1], part.end_lsn)

        sizes = [part.end_lsn - part.start_lsn for part in ranges]
        calls: list[_Call] = [(_scan, (kernel.NAME, *part, verify)) for part in ranges]
        return self._do("verify", kernel, ranges, sizes, near, calls, settle, known_bytes)

    def copy(self, kernel: Kernel, copies: Sequence[Copy], matrix: RowMatrix) -> None:
        """Copies vectors to rows of the matrix, which nobody else can see yet."""

        def near(part: Copy) -> None:
            kernel.gather(part.extent.view, part.offsets, matrix.row_bytes, matrix.view, part.rows, matrix.stride)

        step = max(_COPY_BYTES // matrix.stride, 1)
        parts = [
            Copy(copy.extent, copy.offsets[at : at + step], copy.rows[at : at + step])
            for copy in copies
            for at in range(0, len(copy.rows), step)
        ]
        calls: list[_Call] = []
        if isinstance(matrix, Matrix):
            target = (matrix.path, len(matrix.view), matrix.row_bytes, matrix.stride)
            calls = [
                (_copy, (kernel.NAME, p.extent.path, len(p.extent.view), p.offsets, p.rows, *target)) for p in parts
            ]
        sizes = [len(part.rows) * matrix.row_bytes for part in parts]
        self._do("copy", kernel, parts, sizes, near, calls, lambda part, found: None)

    def _do(
        self,
        phase: RecoveryPhase,
        kernel: Kernel,
        parts: Sequence[_Part],
        sizes: list[int],
        near: Callable[[_Part], _Result],
        calls: Sequence[_Call],
        settle: Callable[[_Part, Any], _Result],
        known_bytes: int = 0,
    ) -> list[_Result]:
        """Does parts in the executor, in threads, or one by one; what a dead worker left is done here."""
        count = self._count(phase, kernel, sum(sizes), len(parts))
        reached = list(accumulate(sizes, initial=known_bytes))  # bytes done with so many parts
        done: list[_Result] = []

        def add(result: _Result) -> None:
            done.append(result)
            self._between(phase, reached[len(done)], reached[-1])

        self._between(phase, 0, reached[-1])
        if known_bytes:
            self._between(phase, known_bytes, reached[-1])
        executor = self._pool(count) if calls else None
        if executor is not None:
            self.used = max(self.used, min(getattr(executor, "_max_workers", 1), len(parts)))
            try:
                self._collect(executor, calls, lambda found: add(settle(parts[len(done)], found)))
                return done
            except (BrokenExecutor, CancelledError) as error:
                self._go_on_alone(executor, error)
                count = 1
        rest = parts[len(done) :]
        if count > 1:
            self.used = max(self.used, count)
            with ThreadPoolExecutor(count) as threads:
                self._collect(threads, [(near, (part,)) for part in rest], add)
        else:
            for part in rest:
                add(near(part))
        return done

    def _collect(self, executor: Executor, calls: Sequence[_Call], add: Callable[[Any], None]) -> None:
        """Adds results in order. Where one is an error the rest is let go, and what already runs is waited for."""
        futures: list[Future[Any]] = []
        try:
            for function, arguments in calls:
                futures.append(_submit(executor, function, arguments))
            for future in futures:
                add(future.result())
        finally:
            wait([future for future in futures if not future.cancel()])

    def _go_on_alone(self, executor: Executor, error: Exception) -> None:
        """Gives up on an executor that lost a worker, or whose owner ended it."""
        note = f"a worker of the recovery died ({str(error) or type(error).__name__}); what it left was done here"
        _logger.warning("%s", note)
        self.notes.append(note)
        self._executor, self._processes = None, False
        if isinstance(error, BrokenExecutor):
            executor.shutdown()  # it takes no more work; afterwards none of its other processes is alive

    def _count(self, phase: RecoveryPhase, kernel: Kernel, size: int, parts: int) -> int:
        count = self._asked
        if count is None:
            many = phase == "verify" and kernel.NAME == "c" and size >= _THREADS_FROM_BYTES
            count = min(max(usable_cores(), _THREADS_LEAST), _THREADS_MAX) if many else 1
        return max(1, min(count, parts))

    def _pool(self, count: int) -> Executor | None:
        """Returns who does parts elsewhere, None for threads or the caller."""
        if self._executor is None and self._processes and count > 1:
            self._own = ProcessPoolExecutor(self._asked, mp_context=multiprocessing.get_context("spawn"))
            self._executor = self._own
        return self._executor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._own is not None:
            self._own.shutdown(wait=True, cancel_futures=True)


def _submit(executor: Executor, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Future[Any]:
    try:
        return executor.submit(function, *arguments)
    except BrokenExecutor:
        raise
    except RuntimeError as error:
        raise WalConfigError("executor", executor, f"takes no work ({error}); give one that runs") from error


# -- what runs in a worker: with a disk of its own, from paths and numbers ------------------------------------------


def _scan(kernel_name: Any, info: SegmentInfo, start_lsn: int, end_lsn: int, verify: bool) -> tuple[bytes, int]:
    view = map_segment(PosixDisk(), info)
    kernel = kernels.load(kernel_name)
    frames, stop, _ = scan_frames(kernel, view, info.base_lsn, info.salt, start_lsn, end_lsn, verify=verify)
    return frames.tobytes(), stop


def _copy(
    kernel_name: Any,
    segment: str,
    segment_bytes: int,
    offsets: I64,
    rows: I64,
    matrix: str,
    matrix_bytes: int,
    row_bytes: int,
    stride: int,
) -> None:
    source, target = (_mapped(segment, segment_bytes, writable=False), _mapped(matrix, matrix_bytes, writable=True))
    kernels.load(kernel_name).gather(source, offsets, row_bytes, target, rows, stride)


def _mapped(path: str, size: int, *, writable: bool) -> memoryview:
    file = PosixDisk().open(path, writable=writable)
    try:
        if (found := file.size()) < size:  # a page behind the end would be a signal
            raise ConsistencyError(path, f"shrank to {found:,} bytes of {size:,} while it was recovered; open it again")
        return file.map(size, writable=writable).view
    finally:
        file.close()
