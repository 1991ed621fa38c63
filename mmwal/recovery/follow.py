"""Following a log while it grows: what was published since is read, one segment after the other, by name.

    1. read      a segment that is let go of is meanwhile unlinked, and recycled under nobody
    2. step      the frames behind the last one, as far as they are whole
    3. look      where nothing came for a while: the names and the control file, for what will never come
    4. wait      until it is time to step again

Not here: what entries are made of frames (`log/reader.py`), a log as it was at one moment (`read_only.py`).

* A file is only ever opened for reading; none is created, and nothing is synced.
* What is shown is the gapless beginning of the log, each frame proven by its checksum, which the salt of this life of
  the segment starts. A frame without its commit word is still being written: it is waited for, and is no damage.
* A segment is left where its data end, or where a footer or the next link says that it was cut. Behind a cut only the
  segment that links to it goes on: an older one of that name may hold frames that recovery is about to discard.
* Damage is what is not there although a footer or the control file says that it was durable.
* Nothing is skipped: where the log was let go of before it was read, `LsnUnavailableError` says so.
* Memory stays constant: one mapping, some thousand frame headers, and those of open transactions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmwal.disk.interface import Condition, Disk
from mmwal.errors import (
    ForeignDirectoryError,
    ForkedProcessError,
    LsnUnavailableError,
    SegmentMissingError,
    StoreMissingError,
    UnavailableError,
    WalClosedError,
    WalConfigError,
)
from mmwal.format.frame import FRAME_DTYPE
from mmwal.format.segment import LSN_MAX, data_start
from mmwal.log.control import LogControl, LogIdentity, open_control
from mmwal.log.control_file import CONTROL_NAME
from mmwal.log.reader import Extent, checked_extent, frame_ends, map_segment, read_entries, read_extents
from mmwal.log.scan import scan_some
from mmwal.log.segment import SegmentInfo, inspect_segment, sealed_end, segment_name

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

POLL_INTERVAL_MS = 50.0
_FRAMES_FEW, _FRAMES_MANY = 1 << 6, 1 << 12
_LOOK_NS = 1_000_000_000


@dataclass(frozen=True)
class Followed:
    """The handle whose log is followed.

    ``reading``: what keeps segments from being recycled meanwhile. ``oldest_lsn``: where what it can show begins.
    ``refusal``: why nothing more comes through it, None while something may; ``drained``: what is there by then is
    still shown. ``changed`` is notified when it is closed. ``durable_lsn``: what it knows itself to be durable, None if
    only the record tells. ``held``: segments that it has mapped.
    """

    reading: Callable[[], AbstractContextManager[None]]
    oldest_lsn: Callable[[], int]
    refusal: Callable[[], UnavailableError | None]
    changed: Condition
    drained: bool = False
    durable_lsn: Callable[[], int] | None = None
    held: tuple[tuple[SegmentInfo, memoryview], ...] = ()


@contextmanager
def reading_beside(disk: Disk, wal_dir: str) -> Iterator[None]:
    """While it lasts, no writer, of whichever process, recycles a segment of the log."""
    lock = disk.lock_shared(f"{wal_dir}/{CONTROL_NAME}")
    try:
        yield
    finally:
        lock.release()


class Follower:
    """One pass over a log that grows; single-threaded, but for the handle, which any thread may close.

    Raises `WalConfigError` for an interval or a timeout that is none.
    """

    def __init__(
        self,
        disk: Disk,
        kernel: Kernel,
        wal_dir: str,
        identity: LogIdentity,
        followed: Followed,
        *,
        durable_only: bool,
        poll_interval_ms: float,
        timeout: float | None,
    ) -> None:
        if not poll_interval_ms > 0:
            raise WalConfigError("poll_interval_ms", poll_interval_ms, "must be above 0")
        if timeout is not None and not timeout >= 0:
            raise WalConfigError("timeout", timeout, "must be seconds, 0 or more, or None to wait without end")
        self._disk = disk
        self._kernel = kernel
        self._wal_dir = wal_dir
        self._identity = identity
        self._followed = followed
        self._durable_only = durable_only
        self._poll_s = poll_interval_ms / 1000
        self._timeout_s = timeout
        self._quiet_since_ns = 0
        self._looked_ns = 0
        self._expected_lsn: int | None = None  # an entry must end here, until it was found
        self._until_lsn = LSN_MAX

    def entries(self, start_lsn: int | None, end_lsn: int | None) -> Iterator[Any]:
        """Yields the entries with ``start_lsn < lsn <= end_lsn``, waiting for those to come.

        Raises `LsnUnavailableError`, `DamageError`, and what the handle refuses with, unless it was closed.
        """
        with self._followed.reading():
            oldest_lsn = self._followed.oldest_lsn()
            self._expected_lsn = start_lsn if start_lsn is not None and start_lsn > oldest_lsn else None
            self._until_lsn = LSN_MAX if end_lsn is None else end_lsn
            self._quiet_since_ns = self._disk.monotonic_ns()
            for entry in read_entries(self._extents, self._identity, oldest_lsn, start_lsn, LSN_MAX, end_lsn):
                yield entry
                if self._is_over(self._followed.refusal()):
                    return
                self._quiet_since_ns = self._disk.monotonic_ns()

    def _extents(self, start_lsn: int, end_lsn: int) -> Iterator[Extent]:
        """Yields the frames from a position on, as they come; those before another position, where that is behind."""
        walk = Walk(self._disk, self._kernel, self._wal_dir, self._identity, self._followed.held, start_lsn)
        if end_lsn < LSN_MAX:
            yield from self._earlier(walk, end_lsn)
            return
        if self._expected_lsn == start_lsn:
            self._expected_lsn = None
        kept: deque[Extent] = deque()  # read, and not yet to be shown
        while kept or walk.lsn < self._until_lsn:
            refusal = self._followed.refusal()
            if self._is_over(refusal):
                return
            extent = self._next(walk)
            if extent is not None:
                self._check_start(extent, walk)
                kept.append(extent)
            elif self._expected_lsn is not None:
                raise LsnUnavailableError(self._expected_lsn, self._followed.oldest_lsn(), walk.lsn)
            yield from self._shown(kept, walk)
            if extent is not None or not (kept or walk.lsn < self._until_lsn):
                continue
            if self._is_over(refusal, drained=True) or not self._wait():
                return

    def _is_over(self, refusal: UnavailableError | None, *, drained: bool = False) -> bool:
        """Whether the handle was closed, and nothing is left to show. Raises what else it refuses with."""
        if refusal is None or not (drained or not self._followed.drained or isinstance(refusal, ForkedProcessError)):
            return False
        if not isinstance(refusal, WalClosedError):
            raise refusal
        return True

    def _earlier(self, walk: Walk, end_lsn: int) -> Iterator[Extent]:
        """Yields frames from before the one at which the reading began."""
        try:
            yield from read_extents(self._disk, self._kernel, self._wal_dir, self._identity, walk.lsn, end_lsn)
        except SegmentMissingError:
            walk.check_kept()
            raise

    def _next(self, walk: Walk) -> Extent | None:
        extent = walk.step()
        if extent is None:
            now_ns = self._disk.monotonic_ns()
            if now_ns - self._looked_ns >= _LOOK_NS or self._left_s(now_ns) <= 0:
                self._looked_ns = now_ns
                extent = walk.look()
        return extent

    def _check_start(self, extent: Extent, walk: Walk) -> None:
        """Refuses to begin where no entry ends: what was read up to there is not what this log holds."""
        if self._expected_lsn is None:
            return
        ends = frame_ends(extent.frames)
        if (ends == self._expected_lsn).any():
            self._expected_lsn = None
        elif int(ends[-1]) > self._expected_lsn:
            raise LsnUnavailableError(self._expected_lsn, self._followed.oldest_lsn(), walk.lsn)

    def _shown(self, kept: deque[Extent], walk: Walk) -> Iterator[Extent]:
        """Takes from what is kept, and yields, what may be shown by now."""
        limit_lsn = LSN_MAX
        if self._durable_only:
            known = self._followed.durable_lsn
            limit_lsn = walk.durable_lsn if known is None else known()
        while kept:
            extent = kept[0]
            count = int(np.searchsorted(frame_ends(extent.frames), limit_lsn, side="right"))
            if count < len(extent.frames):
                kept[0] = replace(extent, frames=extent.frames[count:])
                if count:
                    yield replace(extent, frames=extent.frames[:count])
                return
            yield kept.popleft()

    def _wait(self) -> bool:
        """Lets some time pass; returns False once too much has passed without an entry."""
        left_s = self._left_s(self._disk.monotonic_ns())
        if left_s <= 0:
            return False
        with self._followed.changed:
            self._followed.changed.wait(min(self._poll_s, left_s))
        return True

    def _left_s(self, now_ns: int) -> float:
        if self._timeout_s is None:
            return self._poll_s
        return self._timeout_s - (now_ns - self._quiet_since_ns) / 1e9


class Walk:
    """A place between two frames of a log that grows, from which it can be read on.

    ``lsn`` is that place, at first the beginning of a segment; ``durable_lsn`` the greatest durable position seen on
    record: in frames, footers, links and the control file.
    """

    def __init__(
        self,
        disk: Disk,
        kernel: Kernel,
        wal_dir: str,
        identity: LogIdentity,
        held: tuple[tuple[SegmentInfo, memoryview], ...],
        lsn: int,
    ) -> None:
        self._disk = disk
        self._kernel = kernel
        self._wal_dir = wal_dir
        self._identity = identity
        self._held = {info.number: (info, view) for info, view in held}
        self._number = lsn // identity.segment_bytes
        self._mapped: tuple[SegmentInfo, memoryview] | None = None  # None: it is not there yet
        self._cut_lsn: int | None = None  # where the segment before was cut, if it was
        self._room = _FRAMES_FEW
        self.lsn = lsn
        self.durable_lsn = 0

    def step(self) -> Extent | None:
        """Returns frames that follow, some thousand at most; None where there are none yet.

        Raises `WalCorruptionError` where a footer proves that there were some, `LsnUnavailableError` where it proves
        that what was read is not the log any more, and what `inspect_segment` raises.
        """
        while self._mapped is not None or self._enter():
            assert self._mapped is not None
            info, view = self._mapped
            sealed_lsn = sealed_end(view, info)  # first: all that it speaks of is there by then
            if sealed_lsn is not None and self.lsn > sealed_lsn:
                raise LsnUnavailableError(self.lsn, self._control().released_lsn, sealed_lsn)
            stop_lsn = info.data_end_lsn if sealed_lsn is None else sealed_lsn
            if self.lsn < stop_lsn:
                return self._scan(info, view, stop_lsn, sealed=sealed_lsn is not None)
            self._leave(proven=sealed_lsn is not None)
        return None

    def look(self) -> Extent | None:
        """The same, having looked at the names and the control file first: raises what keeps it from ever going on.

        `DamageError`; `LsnUnavailableError`, where the log was let go of before it was read; `StoreMissingError` and
        `ForeignDirectoryError`, where it is another one by now.
        """
        control = self._control()
        self.durable_lsn = max(self.durable_lsn, control.durable_lsn)
        extent = self.step()
        if extent is not None:
            return extent
        if self._mapped is None:
            self.check_kept()
            if control.durable_lsn > data_start(self._number, self._identity.segment_bytes):
                raise self._missing()
            return None
        info, view = self._mapped
        named, following = self._inspect(self._number), self._inspect(self._number + 1)
        if self.lsn == info.first_lsn and (named is None or named.salt != info.salt):
            self._mapped = None  # prepared, never part of the log, and replaced when that was recovered
            return self.step()
        if following is not None and self._is_linked(following, self.lsn):
            self._leave(proven=True)
            return self.step()
        self.check_kept()
        if control.durable_lsn > self.lsn:
            return checked_extent(info, view, np.empty(0, FRAME_DTYPE), self.lsn, control.durable_lsn)
        return None

    def check_kept(self) -> None:
        """Raises `LsnUnavailableError` where the log does not reach back to here any more."""
        control = self._control()
        if self._number < max(control.oldest_lsn - 1, 0) // self._identity.segment_bytes:
            raise LsnUnavailableError(self.lsn, control.released_lsn)

    def _scan(self, info: SegmentInfo, view: memoryview, stop_lsn: int, *, sealed: bool) -> Extent | None:
        frames, lsn, _ = scan_some(self._kernel, view, info.base_lsn, info.salt, self.lsn, stop_lsn, self._room)
        self._room = _FRAMES_MANY if len(frames) == self._room else _FRAMES_FEW
        if len(frames):
            self.lsn = lsn
            self.durable_lsn = max(self.durable_lsn, int(frames["durable_lsn"].max()))
            return Extent(info.path, info.base_lsn, view, frames)
        return checked_extent(info, view, frames, self.lsn, stop_lsn) if sealed else None

    def _enter(self) -> bool:
        """Maps the segment that goes on, if it is there by now."""
        found = self._held.pop(self._number, None)
        if found is None:
            info = self._inspect(self._number)
            if info is None or not (self._cut_lsn is None or self._is_linked(info, self._cut_lsn)):
                return False
            try:
                found = info, map_segment(self._disk, info)
            except FileNotFoundError:  # it went just now
                return False
        self._mapped = found
        self.lsn = max(self.lsn, found[0].first_lsn)
        return True

    def _leave(self, *, proven: bool) -> None:
        """Goes behind a segment that was read to its end; ``proven``: that all of it was durable."""
        assert self._mapped is not None
        info, _ = self._mapped
        if proven:
            self.durable_lsn = max(self.durable_lsn, self.lsn)
        self._cut_lsn = self.lsn if self.lsn != info.data_end_lsn else None
        self._number += 1
        self._mapped = None

    @staticmethod
    def _is_linked(info: SegmentInfo, end_lsn: int) -> bool:
        """Whether a segment says that it goes on behind this end of the one before."""
        return info.link is not None and (info.link["previous_number"], info.link["previous_end_lsn"]) == (
            info.number - 1,
            end_lsn,
        )

    def _inspect(self, number: int) -> SegmentInfo | None:
        try:
            return inspect_segment(self._disk, self._wal_dir, self._identity, number)
        except FileNotFoundError:
            return None

    def _control(self) -> LogControl:
        control = open_control(self._disk, self._wal_dir)
        if control is None:
            raise StoreMissingError(self._wal_dir)
        if control.identity != self._identity:
            raise ForeignDirectoryError(control.path, "another log is here by now; open it anew")
        return control

    def _missing(self) -> SegmentMissingError:
        return SegmentMissingError(
            f"{self._wal_dir}/{segment_name(self._number)}",
            f"the log goes on behind LSN {self.lsn}, and the segment that does is missing, or goes on elsewhere; put "
            "the file back, or restore the directory from a backup",
            lsn=self.lsn,
        )
