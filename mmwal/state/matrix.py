"""The matrix: the vectors of a store, one row each, in a mapped file or in memory.

`Matrix` is one file mapped shared; `MemoryMatrix` is its twin for a store without a log. Which rows are in use is
not known here (`state.py`), nor what they mean: rows are bytes, ``row_bytes`` of them, ``stride`` apart.

* A row is stored to only below ``capacity``, and what lies there has real blocks: a full disk is a `WalFullError` in
  the one who asks for rows, never a signal in the one who stores.
* The file is mapped once, with a reserve far longer than the file, so that growing moves nothing. Should the reserve
  run out, the file is mapped anew; views of the old mapping live on, and show the same bytes.
* ``generation`` moves after ``view`` and ``array`` have changed: whoever keeps one of them compares it.
* A background worker grows and populates ahead of use. It is a help only: whoever needs a row grows by himself.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mmwal.disk.interface import Disk, File, Mapping, Worker
from mmwal.errors import ConsistencyError, ForeignDirectoryError, WalFullError
from mmwal.format.frame import align
from mmwal.kernel.interface import DTYPES
from mmwal.verdicts import DIRECTORY

MATRIX_NAME = "matrix"
RESERVE_BYTES = 64 << 30
_FIRST_BYTES_MOST = 1 << 20
_FIRST_ROWS = 64
_STEP_BYTES_MOST = 64 << 20
_AHEAD_BYTES = 8 << 20  # populated before it is used, a step at a time
_PAGE_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RowMatrix(Protocol):
    """What the state, the checkpoint and the search need of a matrix."""

    dimension: int
    dtype: np.dtype[Any]
    row_bytes: int
    stride: int
    capacity: int
    generation: int
    view: memoryview
    array: npt.NDArray[Any]

    def ensure(self, rows: int) -> int: ...
    def prepare(self, rows: npt.NDArray[np.int64]) -> None: ...
    def stored(self, rows: npt.NDArray[np.int64]) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class _Shape:
    """The sizes that follow from dimension and dtype, and the views over the bytes."""

    def __init__(self, dimension: int, dtype_code: int) -> None:
        self.dimension = dimension
        self.dtype = DTYPES[dtype_code]
        self.row_bytes = dimension * self.dtype.itemsize
        self.stride = align(self.row_bytes)
        self.capacity = 0
        self.generation = 0
        self._show(memoryview(bytearray()), 0)

    def _show(self, content: memoryview, capacity: int) -> None:
        """Turns to a capacity. The order matters to those who look without a lock: see ``generation``."""
        self.view = content[: capacity * self.stride]
        self.array = np.ndarray(
            (capacity, self.dimension), self.dtype, buffer=self.view, strides=(self.stride, self.dtype.itemsize)
        )
        self.capacity = capacity
        self.generation += 1


class Matrix(_Shape):
    """The matrix of a durable store: one mapped file. Built by `create` and `open`."""

    def __init__(
        self, disk: Disk, file: File, dimension: int, dtype_code: int, *, writable: bool, reserve_bytes: int
    ) -> None:
        super().__init__(dimension, dtype_code)
        self.path = file.path
        self._file = file
        self._writable = writable
        self._reserve_bytes = reserve_bytes
        self._mapping: Mapping | None = None
        self._growing = threading.Lock()
        self._asked_rows = 0  # the one who asks for rows writes, the worker reads; late is harmless
        self._populated_bytes = 0  # the worker's own
        size = file.size()
        if size:
            if writable:
                self._fill_holes(size)
            self._reach(size)
        self._worker: Worker | None = disk.start_worker("matrix", self._work_ahead) if writable else None

    @classmethod
    def create(
        cls, disk: Disk, path: str, dimension: int, dtype_code: int, *, reserve_bytes: int = RESERVE_BYTES
    ) -> Matrix:
        """Creates an empty matrix. An empty file that a crashed creation left behind is taken over.

        Raises:
            ForeignDirectoryError: a matrix with rows is there.

        Durability: on return the name is durable.
        """
        file = disk.open(path, writable=True) if disk.exists(path) else disk.create(path)
        if file.size():
            file.close()
            raise DIRECTORY.verdict(opened="store", log="owned", data="orphan", begins="start").mark(
                ForeignDirectoryError(
                    path, "a matrix is there without its control file; restore that, or choose another directory"
                )
            )
        disk.sync_directory(path.rpartition("/")[0])
        return cls(disk, file, dimension, dtype_code, writable=True, reserve_bytes=reserve_bytes)

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        dimension: int,
        dtype_code: int,
        rows_high: int,
        *,
        writable: bool = True,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> Matrix:
        """Opens a matrix that a checkpoint says to have ``rows_high`` rows.

        Raises:
            ConsistencyError: there is no such file, or it is shorter.
        """
        if not disk.exists(path):
            raise ConsistencyError(path, "the matrix is missing; restore it from a backup of this directory")
        file = disk.open(path, writable=writable)
        least = rows_high * align(dimension * DTYPES[dtype_code].itemsize)
        if file.size() < least:
            found = file.size()
            file.close()
            raise ConsistencyError(
                path,
                f"{found:,} bytes, and the checkpoint names {rows_high:,} rows in {least:,}; "
                "restore it from a backup of this directory",
            )
        return cls(disk, file, dimension, dtype_code, writable=writable, reserve_bytes=reserve_bytes)

    def ensure(self, rows: int) -> int:
        """Gives room for ``rows`` rows; returns up to how many the caller need not ask again (at least ``rows``).

        Raises `WalFullError` where the disk has no room for them; nothing has changed then.

        Concurrency: the holder of the state's lock only.
        """
        if rows > self.capacity:
            with self._growing:
                if rows > self.capacity:
                    self._grow(rows)
        self._asked_rows = rows
        if self._worker is not None:
            self._worker.wake()
        return min(self.capacity, rows + _AHEAD_BYTES // 4 // self.stride)

    def prepare(self, rows: npt.NDArray[np.int64]) -> None:
        """Takes the faults of rows that are about to be stored or read, so that what cannot be read is an `OSError`
        and no signal. Raises `WalFullError` where the file system has no room for them after all."""
        try:
            for start, length in self._runs(rows):
                assert self._mapping is not None
                self._mapping.populate(start, length)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise WalFullError(
                f"{self.path}: no space for {len(rows):,} rows of {self.stride:,} bytes ({error.strerror}). Free some "
                "space, then open it again",
                error.errno,
            ) from error

    def stored(self, rows: npt.NDArray[np.int64]) -> None:
        """Says that rows were stored to: after an earlier process's failed sync they may be in memory only, and clean,
        and a row that recovery fills with the same bytes again does not look changed to a disk that compares."""
        for start, length in self._runs(rows):
            assert self._mapping is not None
            self._mapping.stored(start, length)

    def _runs(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Yields places and lengths of rows that stand side by side; nothing where nothing is mapped."""
        if self._mapping is None or not len(rows):
            return
        ordered = np.sort(rows)
        bounds = np.flatnonzero(np.diff(ordered) > 1) + 1
        firsts, lasts = ordered[np.append(0, bounds)], ordered[np.append(bounds - 1, len(ordered) - 1)]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            yield first * self.stride, (last + 1 - first) * self.stride

    def sync(self) -> None:
        """Makes every row stored so far durable, and the file's size. Releases the GIL. A failure is final."""
        self._file.sync()

    def close(self) -> None:
        """Ends the worker and closes the file; views live on."""
        if self._worker is not None:
            self._worker.stop()
        self._file.close()

    def _fill_holes(self, size: int) -> None:
        """Gives real blocks to a file that was copied or restored without them."""
        try:
            self._file.allocate(size)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise WalFullError(
                f"{self.path}: no space for the holes of a copied file ({error.strerror}); free {size:,} bytes, then "
                "open it again",
                error.errno,
            ) from error

    def _grow(self, rows: int) -> None:
        """Allocates more than ``rows`` rows, or just those where there is no room for more."""
        size = self.capacity * self.stride
        least = rows * self.stride
        step = min(max(size, min(_FIRST_BYTES_MOST, _FIRST_ROWS * self.stride)), _STEP_BYTES_MOST)
        try:
            try:
                self._allocate(max(size + step, least))
            except OSError as error:
                if error.errno not in _FULL or size + step <= least:
                    raise
                self._allocate(least)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise WalFullError(
                f"{self.path}: no space for {rows:,} rows of {self.stride:,} bytes ({error.strerror}); nothing was "
                "changed. Free some space, then write again",
                error.errno,
            ) from error

    def _allocate(self, size: int) -> None:
        size = -(-size // _PAGE_BYTES) * _PAGE_BYTES
        self._file.allocate(size)
        self._reach(size)

    def _reach(self, size: int) -> None:
        """Maps at least ``size`` bytes, anew only if the reserve is too short, and shows them."""
        if self._mapping is None or len(self._mapping.view) < size:
            self._mapping = self._map(size)
        self._show(self._mapping.view, size // self.stride)

    def _map(self, size: int) -> Mapping:
        if not self._writable:
            return self._file.map(size, writable=False)
        length = self._reserve_bytes
        while length < 2 * size:
            length *= 4
        while True:
            try:
                return self._file.map(length, writable=True)
            except OSError:
                if length == size:
                    raise
                length = max(length // 4, size)  # a limit on the address space

    def _work_ahead(self) -> None:
        """Populates ahead of use, and allocates before the capacity is used up: the worker's step."""
        wanted_bytes = self._asked_rows * self.stride + _AHEAD_BYTES
        try:
            if self._asked_rows > 0 and self.capacity < 2 * self._asked_rows:
                with self._growing:
                    if self.capacity < 2 * self._asked_rows and self.capacity * self.stride < wanted_bytes:
                        self._grow(self.capacity + 1)
            end = min(self.capacity * self.stride, wanted_bytes)
            start = max(self._populated_bytes, self._asked_rows * self.stride // _PAGE_BYTES * _PAGE_BYTES)
            if self._mapping is not None and start < end:
                self._mapping.populate(start, end - start)
                self._populated_bytes = end
        except OSError:  # WalFullError too: whoever needs the rows will meet the same error and say so
            pass


class MemoryMatrix(_Shape):
    """The matrix of a store without a log: memory, and nothing is durable."""

    def prepare(self, rows: npt.NDArray[np.int64]) -> None:
        """Nothing to do: memory is there."""

    def stored(self, rows: npt.NDArray[np.int64]) -> None:
        """Nothing to do: there is no disk that could differ."""

    def ensure(self, rows: int) -> int:
        """Gives room for ``rows`` rows; returns the capacity. Old views keep the rows they show."""
        if rows > self.capacity:
            capacity = max(rows, 2 * self.capacity, _FIRST_ROWS)
            content = np.zeros(capacity * self.stride, np.uint8).data
            content[: len(self.view)] = self.view
            self._show(content, capacity)
        return self.capacity

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
