"""One file of the simulated disk: what the process sees, and what the disk may hold instead.

A page is either *settled* (the disk holds what the process sees) or has a `History`: the content it had when
last durable, and every content since. A power cut may leave any mixture of these. Names are in `names.py`.

* ``pages[p]`` is the content seen last; with a history, it is also the history's newest content.
* Pages are immutable bytes, shared freely between disks; the array under a mapping lives as long as a view.
* Bytes past ``size`` are zero, in the pages and under a mapping.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = 4096
WORDS = PAGE // 8
ZEROS = bytes(PAGE)
EARLIER = 1 << 40  # more steps than any process takes


class SimulatorError(AssertionError):
    """The code under test did what no file system defines, or met a limit of the simulator."""


class History:
    """The contents of a page since it was last durable: ``contents[0]`` is the durable one."""

    __slots__ = ("_changed", "_stack", "_updates", "contents", "lost", "sequence")

    def __init__(self, durable: bytes) -> None:
        self.contents = [durable]
        self.sequence = [0]  # when each content was seen; the durable one at 0
        self.lost = False  # a sync of it failed: the page is clean, and no later sync writes it
        self._changed: list[npt.NDArray[np.bool_]] = []  # words, by version
        self._stack: npt.NDArray[np.uint64] | None = None
        self._updates: dict[int, list[list[int]]] = {}

    def copy(self) -> History:
        """Returns an independent copy that shares the contents."""
        other = History.__new__(History)
        other.contents = self.contents.copy()
        other.sequence = [seen - EARLIER for seen in self.sequence]  # another process, whose steps begin anew
        other.lost = self.lost
        other._changed = self._changed.copy()
        other._stack = self._stack
        other._updates = self._updates.copy()
        return other

    def add(self, content: bytes, sequence: int) -> None:
        """Appends a new content."""
        self.contents.append(content)
        self.sequence.append(sequence)
        self.lost = False
        self._forget()

    def settle(self, begun: int) -> bool:
        """Makes the newest content durable that was seen by ``begun``; returns whether there are newer ones."""
        kept = sum(1 for seen in self.sequence if seen <= begun) - 1
        del self.contents[:kept], self.sequence[:kept], self._changed[:kept]
        self.sequence[0] = 0
        self._forget()
        return len(self.contents) > 1

    def _forget(self) -> None:
        self._stack = None
        self._updates.clear()

    def stack(self) -> npt.NDArray[np.uint64]:
        """Returns all contents as one array of 8-byte words, a row for each."""
        if self._stack is None:
            self._stack = np.frombuffer(b"".join(self.contents), np.uint64).reshape(-1, WORDS)
        return self._stack

    def updates(self, unit: int) -> list[list[int]]:
        """Returns for each content, the durable one left out, which units differ from the content before it."""
        found = self._updates.get(unit)
        if found is None:
            while len(self._changed) < len(self.contents) - 1:
                before, after = self.contents[len(self._changed) : len(self._changed) + 2]
                self._changed.append(np.frombuffer(before, np.uint64) != np.frombuffer(after, np.uint64))
            found = self._updates[unit] = [
                np.flatnonzero(
                    words if unit == 8 else np.logical_or.reduce(words.reshape(-1, unit // 8), axis=1)
                ).tolist()
                for words in self._changed
            ]
        return found

    def units(self, unit: int) -> list[int]:
        """Returns the units with more than one content."""
        updates = self.updates(unit)
        return updates[0] if len(updates) == 1 else sorted(set().union(*updates))

    def distinct(self, unit: int, index: int) -> list[int]:
        """Returns one version of every distinct content of a unit."""
        low, high = index * unit, (index + 1) * unit
        return sorted({content[low:high]: version for version, content in enumerate(self.contents)}.values())


class Content:
    """A file as a crash leaves it, without its name: all durable. Shared between images, so never changed."""

    __slots__ = ("_key", "_whole", "number", "pages", "size")

    def __init__(self, number: int, pages: list[bytes], size: int) -> None:
        self.number = number
        self.pages = pages
        self.size = size
        self._key: int | None = None
        self._whole: bytes | None = None

    def whole(self) -> bytes:
        """Returns all pages as one."""
        if self._whole is None:
            self._whole = b"".join(self.pages)
        return self._whole

    def key(self) -> int:
        """Returns a hash of size and bytes; equal files have equal ones, in one process."""
        if self._key is None:
            self._key = hash((self.size, *self.pages))  # bytes remember their hash: only new pages are read
        return self._key


class Inode:
    """A file without its name. ``number`` orders the inodes of a disk by creation."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pages: list[bytes] = []
        self.size = 0
        self.durable_size = 0
        self.history: dict[int, History] = {}
        self._array: npt.NDArray[np.uint8] | None = None  # under the mappings; its address never changes
        self._seen = b""  # the array's content at the last look
        self._stored = False  # whether anybody may have stored into it
        self._views: list[weakref.ref[npt.NDArray[np.uint8]]] = []
        self._content: Content | None = None  # all of it, until it changes

    def copy(self) -> Inode:
        """Returns the file as another process finds it in the page cache: same state, no mappings."""
        other = Inode(self.number)
        other.pages = self.pages.copy()
        other.size = self.size
        other.durable_size = self.durable_size
        other.history = {page: history.copy() for page, history in self.history.items()}
        return other

    def cut(self, size: int, replaced: dict[int, bytes]) -> Content:
        """Returns the file as found after a power cut: ``size`` bytes, some pages replaced."""
        if size == self.size and not replaced:
            return self._whole()
        pages = self.pages.copy()
        for page, content in replaced.items():
            pages[page] = content
        count = -(-size // PAGE)
        del pages[count:]
        rest = size % PAGE
        if rest and size != self.size:
            pages[-1] = pages[-1][:rest] + bytes(PAGE - rest)
        return Content(self.number, pages, size)

    def survivor(self, *, evicted: bool = False) -> Content:
        """Returns the file as another process sees it, also after its clean pages have left the page cache."""
        lost = {page: history.contents[0] for page, history in self.history.items() if history.lost} if evicted else {}
        return self.cut(self.size, lost)

    @classmethod
    def found(cls, content: Content) -> Inode:
        """Returns the file that a content stands for."""
        inode = cls(content.number)
        inode.pages = content.pages.copy()
        inode.size = inode.durable_size = content.size
        inode._content = content
        return inode

    # ---- what a process does with it

    def read(self, offset: int, length: int) -> bytes:
        """Returns the bytes of the range; fewer at the end of the file."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first = offset // PAGE
        content = b"".join(self.pages[first : -(-end // PAGE)])
        return content[offset - first * PAGE : end - first * PAGE]

    def write(self, offset: int, content: bytes, sequence: int) -> None:
        """Stores bytes, growing the file; pages that keep their content are dirty all the same."""
        end = offset + len(content)
        if not content:
            return
        if end > self.size:
            self.grow(end)
        if self._array is not None:
            self._array[offset:end] = np.frombuffer(content, np.uint8)
            self._stored = True
            self.look(sequence)
        else:
            for page in range(offset // PAGE, -(-end // PAGE)):
                start = page * PAGE
                old = self.pages[page]
                low, high = max(offset, start), min(end, start + PAGE)
                new = old[: low - start] + content[low - offset : high - offset] + old[high - start :]
                if new != old:
                    self._change(page, new, sequence)
        self.dirty(offset, len(content))

    def grow(self, size: int) -> None:
        """Makes the file longer; the new bytes are zero."""
        if size <= self.size:
            return
        count = -(-size // PAGE)
        added = count - len(self.pages)
        if self._array is not None:
            if count * PAGE > len(self._array) and not self._mapped():
                self._array = None
            elif count * PAGE > len(self._array):
                raise SimulatorError(
                    f"the file grew to {size} bytes under a mapping with room for {len(self._array)}: map it "
                    "with a larger length, or give the simulator a larger reserve_bytes_max"
                )
            elif self._array[len(self.pages) * PAGE : count * PAGE].any():
                raise SimulatorError("bytes were stored through a mapping beyond the end of the file")
        if added:
            self.pages.extend([ZEROS] * added)
            if self._array is not None:
                self._seen += bytes(added * PAGE)
        self.size = size
        self._content = None

    def map(self, length: int, reserve_bytes_max: int, *, writable: bool) -> npt.NDArray[np.uint8]:
        """Returns the bytes from the beginning as an array; it may reach beyond the file's end."""
        held = len(self.pages) * PAGE
        if self._array is None:
            room = -(-max(held, min(length, reserve_bytes_max)) // PAGE) * PAGE
            memory = np.zeros(room + PAGE, np.uint8)
            start = -memory.__array_interface__["data"][0] % PAGE
            self._array = memory[start : start + room]
            self._seen = b"".join(self.pages)
            self._array[:held] = np.frombuffer(self._seen, np.uint8)
            self._stored = False
        self._stored = self._stored or writable
        view = self._array[:length]
        self._views.append(weakref.ref(view))
        return view

    def look(self, sequence: int) -> bool:
        """Compares the mapped array with what was seen last; returns whether anything was stored."""
        if self._array is None:
            return False
        before = self._seen
        if self._stored:
            self._seen = self._array[: len(self.pages) * PAGE].tobytes()
        changed = self._seen != before
        if changed:
            rest = self.size % PAGE
            if rest and self._seen[self.size :].strip(b"\0"):
                raise SimulatorError("bytes were stored through a mapping beyond the end of the file")
            for page, old in enumerate(self.pages):
                new = self._seen[page * PAGE : (page + 1) * PAGE]
                if new != old:
                    self._change(page, new, sequence)
        if not self._mapped():
            self._array = None
        return changed

    @property
    def is_mapped(self) -> bool:
        """Whether a view of the file may still be stored to."""
        return self._array is not None

    # ---- what becomes durable

    def sync(self, offset: int, length: int, begun: int) -> None:
        """Settles the dirty pages of the range, and the size. What came after ``begun``, during the sync, stays."""
        for page in self._dirty_pages(offset, length):
            if not self.history[page].settle(begun):
                del self.history[page]
        self.durable_size = self.size

    def lose(self, offset: int, length: int) -> None:
        """Fails to write the dirty pages of the range: clean in memory, unsettled on disk."""
        for page in self._dirty_pages(offset, length):
            self.history[page].lost = True

    def dirty(self, offset: int, length: int) -> None:
        """Marks the pages of the range dirty, so that the next sync writes those that were lost."""
        for page in range(offset // PAGE, -(-(offset + length) // PAGE)):
            if page in self.history:
                self.history[page].lost = False

    def evict(self) -> None:
        """Drops clean pages from memory: lost ones show what the disk holds, here the durable content."""
        for page in [page for page, history in self.history.items() if history.lost]:
            self.pages[page] = self.history.pop(page).contents[0]
            self._content = None

    # ---- parts

    def _change(self, page: int, content: bytes, sequence: int) -> None:
        if page not in self.history:
            self.history[page] = History(self.pages[page])
        self.history[page].add(content, sequence)
        self.pages[page] = content
        self._content = None

    def _whole(self) -> Content:
        if self._content is None:
            self._content = Content(self.number, self.pages.copy(), self.size)
        return self._content

    def _dirty_pages(self, offset: int, length: int) -> list[int]:
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        return [page for page, history in self.history.items() if first <= page < end and not history.lost]

    def _mapped(self) -> bool:
        self._views = [view for view in self._views if view() is not None]
        return bool(self._views)


def mapped_view(array: Any, writable: bool) -> memoryview:
    """Returns the memory of an array as a mapping shows it."""
    view = memoryview(array)
    return view if writable else view.toreadonly()
