"""The sync gate, step by step: who syncs, up to where, and who waits for it.

Syncing is a role, not a thread: the first who needs it takes it and syncs for all; those who come meanwhile
wait and share the next sync. This is the readable twin of `mmwal/disk/_sync.c`; the log uses it with the
kernel's twin, and the crash simulator uses it always. One test suite holds both.

* A sync covers what was published when it began, snapshot as late as possible.
* `durable` moves only after a sync that succeeded, and never back.
* A failed sync is final: the state word is poisoned, `durable` stands still, everybody gets the error.
* The sync itself runs outside of the lock, and nothing of a segment is touched once `durable` covers it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from mmwal.disk.interface import Disk, Mapping
from mmwal.format.segment import PAGE_BYTES, data_end, data_start
from mmwal.kernel import interface as words

_EPOCH_MASK = (1 << 32) - 1
# How long to look away when ``lsn`` is not yet published: publishing wakes nobody.
_UNPUBLISHED_WAIT_S = 0.001
_FOREVER_S = 1e9


class PythonGate:
    """The syncing role of one log over a cursor block; see `mmwal.disk.interface.SyncGate`.

    Args:
        disk: gives the clock and the condition.
        cursor_block: the block of `mmwal.kernel.interface`, writable; kept.
        segment_bytes: size of a segment.
        mapping_of: returns the mapping of an attached segment by its number.
    """

    def __init__(self, disk: Disk, cursor_block: Any, segment_bytes: int, mapping_of: Callable[[int], Mapping]) -> None:
        self._u8 = memoryview(cursor_block).cast("B")
        self._u64 = self._u8.cast("Q")
        self._u32 = self._u8.cast("I")
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._mapping_of = mapping_of
        self._changed = disk.condition()  # guards the role, epoch and waiters words
        self._holder: object | None = None
        self._cause: OSError | None = None

    def sync(self, lsn: int, timeout_s: float | None = None) -> bool:
        """Returns True once `durable` covers ``lsn``, by taking the role or by waiting; False on timeout.

        A sync that this call began is finished even if it outlasts the timeout.
        Raises `OSError` with the errno of the failed sync, now or earlier.
        """
        me = object()
        deadline_ns = self._deadline_ns(timeout_s)
        try:
            while (covered := self._wait_or_take_role(lsn, deadline_ns, me)) is None:
                self._sync_published()
                self._release_role(me)
            return covered
        finally:
            self._release_role(me)  # an interrupt must not leave the role with nobody

    def wait(self, lsn: int, timeout_s: float | None = None) -> bool:
        """Like `sync`, but never takes the role."""
        return bool(self._wait_or_take_role(lsn, self._deadline_ns(timeout_s), None))

    def wake(self) -> None:
        """Lets every waiter look again (after the state word changed). Not in a forked child."""
        with self._changed:
            self._announce()

    # ---- waiting

    def _wait_or_take_role(self, lsn: int, deadline_ns: int | None, me: object | None) -> bool | None:
        """Returns True once `durable` covers ``lsn``, False on timeout, None once ``me`` has the role."""
        with self._changed:
            while True:
                self._raise_if_poisoned()
                if self._durable >= lsn:
                    return True
                left_s = self._left_s(deadline_ns)
                if me is not None and not self._u32[words.GATE_ROLE // 4]:
                    if self._published > self._durable:
                        self._holder = me
                        self._u32[words.GATE_ROLE // 4] = 1
                        return None
                    left_s = _UNPUBLISHED_WAIT_S if left_s is None else min(left_s, _UNPUBLISHED_WAIT_S)
                if left_s is not None and left_s <= 0:
                    return False
                self._sleep(left_s)

    def _sleep(self, left_s: float | None) -> None:
        self._u32[words.GATE_WAITERS // 4] += 1
        try:
            self._changed.wait(left_s)
        finally:
            self._u32[words.GATE_WAITERS // 4] -= 1

    def _announce(self) -> None:
        self._u32[words.GATE_EPOCH // 4] = (self._u32[words.GATE_EPOCH // 4] + 1) & _EPOCH_MASK
        self._changed.notify_all()

    # ---- the role

    def _sync_published(self) -> None:
        durable, published = self._durable, self._published
        started_ns = self._disk.monotonic_ns()
        synced_bytes = 0
        try:
            for number, offset, length in sync_ranges(durable, published, self._segment_bytes):
                self._mapping_of(number).sync(offset, length)
                synced_bytes += length
        except OSError as error:
            self._poison(error)
            return
        except Exception as error:  # nothing that we know of; what the sync did is not known either
            self._poison(OSError(errno.EIO, f"the sync ended in {error!r}"))
            raise
        self._count(synced_bytes, self._disk.monotonic_ns() - started_ns)
        self._u64[words.DURABLE // 8] = published

    def _release_role(self, me: object) -> None:
        if self._holder is not me:
            return
        with self._changed:
            self._holder = None
            self._u32[words.GATE_ROLE // 4] = 0
            self._announce()

    def _poison(self, cause: OSError) -> None:
        self._cause = cause
        self._u32[words.GATE_ERRNO // 4] = cause.errno or errno.EIO
        self._u8[words.STATE] = words.STATE_POISONED  # the bit has a byte to itself

    def _raise_if_poisoned(self) -> None:
        if not self._u64[words.STATE // 8] & words.STATE_POISONED:
            return
        code = self._u32[words.GATE_ERRNO // 4] or errno.EIO
        text = self._cause.strerror if self._cause is not None else errno.errorcode.get(code, "unknown error")
        raise OSError(code, text) from self._cause

    def _count(self, synced_bytes: int, took_ns: int) -> None:
        self._u64[words.GATE_SYNCS // 8] += 1
        self._u64[words.GATE_BYTES // 8] += synced_bytes
        self._u64[words.GATE_NS // 8] += took_ns
        self._u64[words.GATE_NS_MAX // 8] = max(self._u64[words.GATE_NS_MAX // 8], took_ns)
        self._u64[words.GATE_NS_LAST // 8] = took_ns

    # ---- words and clock

    @property
    def _published(self) -> int:
        return self._u64[words.PUBLISHED // 8]

    @property
    def _durable(self) -> int:
        return self._u64[words.DURABLE // 8]

    def _deadline_ns(self, timeout_s: float | None) -> int | None:
        if timeout_s is None or timeout_s >= _FOREVER_S:
            return None
        return self._disk.monotonic_ns() + int(timeout_s * 1e9)

    def _left_s(self, deadline_ns: int | None) -> float | None:
        return None if deadline_ns is None else (deadline_ns - self._disk.monotonic_ns()) / 1e9


def sync_ranges(durable: int, published: int, segment_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yields (segment number, offset in its file, length) of whole pages that hold [durable, published).

    What lies between two segments' frames (footer, headers, link) holds no frame and is left out; a range
    that reaches the end of a segment's frames goes to the end of its file.
    """
    for number in range(durable // segment_bytes, -(-published // segment_bytes)):
        start = max(durable, data_start(number, segment_bytes))
        end = min(published, data_end(number, segment_bytes))
        if start >= end:
            continue
        base = number * segment_bytes
        offset = (start - base) // PAGE_BYTES * PAGE_BYTES
        stop = min(-(-(end - base) // PAGE_BYTES) * PAGE_BYTES, segment_bytes)
        yield number, offset, stop - offset
