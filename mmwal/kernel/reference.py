"""The twin: the kernel as a readable specification in Python.

It has the interface of `interface.py` and writes the same bytes as `_kernel.c`. It is the oracle of the tests, and what
runs where no compiler was at hand at installation. What a frame is, and when it is valid: `format/frame.py`.

* An append is four steps: check, reserve, write, publish. Nothing that can fail stands between reserve and publish,
  except an interrupt; then the reserved range is published as a PAD, so that nothing ever waits for it.
* The commit word is stored last.
* One lock is held from reserve to publish. The compiled kernel needs none; this is the only promise that differs.
* A nested call (from a signal handler of the thread that holds the lock) gets a range of its own, and "settle".
"""

from __future__ import annotations

import contextlib
import struct
import threading
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from mmwal.format.frame import (
    ALIGNMENT,
    HEADER_BYTES,
    ID_BYTES_MAX,
    ID_IS_INT,
    LENGTH_MASK,
    Kind,
    commit_word,
    frame_crc,
)
from mmwal.format.segment import (
    DATA_OFFSET,
    FOOTER_BYTES,
    LSN_MAX,
    PAGE_BYTES,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    data_end,
    data_start,
    frame_bytes_max,
)
from mmwal.kernel import directory, interface
from mmwal.kernel.interface import (
    BLOCK_BYTES,
    CONVERT,
    DTYPES,
    NONFINITE,
    NOT_READY,
    REFUSED,
    RING,
    RING_SLOT_BYTES,
    RING_SLOTS,
    SCAN_CHECKSUM,
    SCAN_END,
    SCAN_FULL,
    SCAN_MALFORMED,
    SCAN_NO_FRAME,
    TOO_LARGE,
)

NAME = "py"
Directory, id_seeds = directory.Directory, directory.id_seeds

FIND_BUDGET = 8  # find_frame checksums at most this many times its range
_CODES = {"f": 1, "e": 2, "b": 3}  # buffer format -> dtype code
_SIZES = {0: 0, 1: 4, 2: 2, 3: 1}
_COVERED = struct.Struct("<QBBBBQQQQIIII")  # the header without its crc: what the checksum is of
_HEADER = struct.Struct("<QIBBBBQQQQIIII")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PAD = int(Kind.PAD)
_ZEROS = [bytes(size) for size in range(ALIGNMENT)]
_FIND_CHUNK = 1 << 16  # positions looked at in one array operation

# Indexes of the block's 64-bit words.
_RESERVED, _PUBLISHED, _DURABLE = interface.RESERVED // 8, interface.PUBLISHED // 8, interface.DURABLE // 8
_STATE, _ATTENTION = interface.STATE // 8, interface.ATTENTION // 8


class Cursor:
    """The write position of a log; see `interface.Cursor`."""

    def __init__(self, block: Any, segment_bytes: int, dtype: int, dimension: int, check_finite: bool) -> None:
        view = _writable(block)
        if view.nbytes < BLOCK_BYTES or _address(view) % 8:
            raise ValueError(f"a cursor block has {BLOCK_BYTES} bytes on an 8-byte boundary")
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX or segment_bytes % PAGE_BYTES:
            raise ValueError(f"segment_bytes {segment_bytes} is out of range or no multiple of {PAGE_BYTES}")
        if dtype not in _SIZES:
            raise ValueError(f"dtype {dtype} is unknown")
        if not 0 <= dimension < 1 << 31:
            raise ValueError(f"dimension {dimension} is out of range")
        self._words = view[:BLOCK_BYTES].cast("Q")
        self._segment_bytes = segment_bytes
        self._frame_bytes_max = frame_bytes_max(segment_bytes)
        self._dtype = dtype
        self._dimension = dimension
        self._check_finite = bool(check_finite)
        self._segments: dict[int, tuple[memoryview, int]] = {}  # number -> (bytes, salt)
        self._matrix: memoryview | None = None
        self._row_bytes = 0
        self._lock = threading.RLock()

    @property
    def reserved(self) -> int:
        return self._words[_RESERVED]

    @property
    def published(self) -> int:
        return self._words[_PUBLISHED]

    @property
    def durable(self) -> int:
        return self._words[_DURABLE]

    def start(self, lsn: int) -> None:
        """Sets the three positions; before the first append only."""
        size = self._segment_bytes
        if not 0 <= lsn < LSN_MAX or lsn % ALIGNMENT:
            raise ValueError(f"LSN {lsn} is out of range or not on a {ALIGNMENT}-byte boundary")
        if not data_start(lsn // size, size) <= lsn <= data_end(lsn // size, size):
            raise ValueError(f"LSN {lsn} is not among the frames of a segment")
        self._words[_DURABLE] = self._words[_PUBLISHED] = self._words[_RESERVED] = lsn

    def attach(self, number: int, segment: Any, salt: int) -> None:
        """Adds a segment to its ring slot."""
        view = _writable(segment)
        if not 0 <= number < LSN_MAX // self._segment_bytes:
            raise ValueError(f"segment number {number} is out of range")
        if view.nbytes != self._segment_bytes or _address(view) % 8:
            raise ValueError(f"segment {number} must be {self._segment_bytes} bytes on an 8-byte boundary")
        if not 0 <= salt < 1 << 64:
            raise OverflowError("a salt has 64 bits")
        words, slot = self._words, _slot(number)
        with self._lock:
            if words[slot]:
                raise ValueError(f"segment {number}: segment {words[slot] - 1} is still in its slot; detach that first")
            self._segments[number] = view, salt
            words[slot + 1] = _address(view)
            words[slot + 2] = salt
            words[slot] = number + 1

    def detach(self, number: int) -> None:
        """Empties a segment's slot and lets go of its buffer."""
        words = self._words
        with self._lock:
            if number not in self._segments:
                raise ValueError(f"segment {number} is not attached")
            slot = _slot(number)
            words[slot] = 0
            words[slot + 1] = words[slot + 2] = 0
            self._segments.pop(number)[0].release()

    def bind_rows(self, matrix: Any, row_bytes: int) -> None:
        """Names the matrix that `append` also copies to."""
        if row_bytes < 1 and matrix is not None:
            raise ValueError(f"row_bytes {row_bytes} must be at least 1")
        view = None if matrix is None else _writable(matrix)
        with self._lock:
            self._matrix, self._row_bytes = view, row_bytes

    def append(self, kind: int, id: Any, vector: Any, metadata: bytes | None, time_ns: int, row: int, /) -> int:
        """Logs one row; see `interface.Cursor.append`."""
        if type(id) is str:
            try:
                raw = id.encode()
            except UnicodeEncodeError:
                return CONVERT
            if not 0 < len(raw) <= ID_BYTES_MAX:
                return CONVERT
            ids = _U32.pack(len(raw)) + raw
        elif type(id) is int:
            if not -0x8000_0000_0000_0000 <= id < 0x8000_0000_0000_0000:
                return CONVERT
            ids = _U32.pack(8 | ID_IS_INT) + id.to_bytes(8, "little", signed=True)
        else:
            return CONVERT

        payload: memoryview | bytes = b""
        dtype = 0
        if vector is not None:
            try:
                view = memoryview(vector)
            except (TypeError, BufferError, ValueError):
                return CONVERT
            dtype = _CODES.get(view.format, 0)
            if dtype == 0 or view.ndim != 1 or not view.c_contiguous or (self._dtype and dtype != self._dtype):
                return CONVERT
            if len(view) != (self._dimension or len(view) or -1):
                return CONVERT
            payload = view.cast("B")

        meta = b""
        if metadata is not None:
            if type(metadata) is not bytes:
                return CONVERT
            meta = _U32.pack(len(metadata) & 0xFFFF_FFFF) + metadata  # what does not fit is refused as too large
        if row >= 0 and not self._has_row(row, len(payload)):
            return CONVERT

        if self._check_finite and vector is not None and not _finite(vector, payload, dtype):
            return NONFINITE
        return self._log(kind, dtype, 1, 0, time_ns, payload, ids, meta, row)

    def append_frame(
        self,
        kind: int,
        dtype: int,
        rows: int,
        txn: int,
        time_ns: int,
        payload: Any,
        ids: Any,
        metadata: Any,
        /,
    ) -> int:
        """Logs one frame of given blocks; see `interface.Cursor.append_frame`."""
        if not 0 <= dtype <= 3:
            raise ValueError(f"dtype {dtype} is unknown")
        if not 0 <= rows < 1 << 32:
            raise ValueError(f"rows {rows} is out of range")
        if not 0 <= txn < 1 << 64:
            raise OverflowError("a transaction id has 64 bits")
        return self._log(kind, dtype, rows, txn, time_ns, _block(payload), _block(ids), _block(metadata), -1)

    def advance(self) -> int:
        """Moves `published` over every finished frame; returns it."""
        words, size = self._words, self._segment_bytes
        with self._lock:
            lsn = words[_PUBLISHED]
            while lsn < words[_RESERVED]:
                number = lsn // size
                at = lsn
                if lsn == data_end(number, size):
                    number += 1
                    at = data_start(number, size)
                if number not in self._segments:
                    break
                segment, salt = self._segments[number]
                (word,) = _U64.unpack_from(segment, at - number * size)
                length = (word & LENGTH_MASK) * ALIGNMENT
                end = at + length
                if word != commit_word(salt, at, length) or length == 0:
                    break
                if end > data_end(number, size) or end > words[_RESERVED]:
                    break
                words[_PUBLISHED] = lsn = end
            return words[_PUBLISHED]

    def _log(
        self,
        kind: int,
        dtype: int,
        rows: int,
        txn: int,
        time_ns: int,
        payload: memoryview | bytes,
        ids: memoryview | bytes,
        meta: memoryview | bytes,
        row: int,
    ) -> int:
        if not 1 <= kind < _PAD:
            raise ValueError(f"kind {kind} is out of range")
        if not 0 <= time_ns < 1 << 64:
            raise OverflowError("a time has 64 bits")
        sizes = len(payload), len(ids), len(meta)
        content = HEADER_BYTES + sizes[0] + sizes[1] + sizes[2]
        length = (content + ALIGNMENT - 1) & -ALIGNMENT
        if length > self._frame_bytes_max:
            return TOO_LARGE
        tail = b"".join((ids, meta, _ZEROS[length - content]))

        words, size, segments = self._words, self._segment_bytes, self._segments
        if words[_STATE]:  # before the lock too: in a forked child another thread may hold it for ever
            return REFUSED
        held = finished = False
        number = pad_at = at = end = 0
        with self._lock:
            try:
                # Reserve. No call stands between the comparison and the store, nor between the store and `held`, so
                # CPython lets no signal handler in there.
                while not held:
                    if words[_STATE]:
                        return REFUSED
                    pad_at = at = words[_RESERVED]
                    number = at // size
                    if at + length > (number + 1) * size - FOOTER_BYTES:
                        if at < data_end(number, size) and number not in segments:
                            return NOT_READY
                        number += 1
                        at = number * size + DATA_OFFSET
                    end = at + length
                    if number not in segments or (end == data_end(number, size) and number + 1 not in segments):
                        return NOT_READY  # a full segment always has a successor, which recovery relies on
                    if words[_RESERVED] == pad_at:
                        words[_RESERVED], held = end, True

                # Write.
                if pad_at != at:
                    self._pad_rest(pad_at, time_ns)
                segment, salt = segments[number]
                start = at - number * size
                body = start + HEADER_BYTES
                _copy(segment, body, payload)
                _copy(segment, body + sizes[0], tail)
                commit = commit_word(salt, at, length)
                durable = words[_DURABLE]
                header = _COVERED.pack(commit, kind, 0, dtype, 0, at, txn, time_ns, durable, rows, *sizes)
                crc = zlib.crc32(segment[body : start + length], zlib.crc32(header, salt & 0xFFFF_FFFF))
                segment[start + 8 : body] = _U32.pack(crc) + header[8:]

                # Publish.
                segment[start : start + 8], finished = header[:8], True
                if row >= 0 and payload and self._matrix is not None:
                    _copy(self._matrix, row * self._row_bytes, segment[body : body + sizes[0]])
            finally:
                if held:
                    while not finished:  # a further interrupt starts it over
                        with contextlib.suppress(KeyboardInterrupt):
                            self._void(pad_at, at, number, length, time_ns)
                            finished = True
                    if words[_PUBLISHED] == at and words[_RESERVED] == end:
                        words[_PUBLISHED] = end
                    else:
                        self.advance()
            return end if words[_PUBLISHED] >= end and not words[_ATTENTION] else -end

    def _pad_rest(self, lsn: int, time_ns: int) -> None:
        """Publishes a PAD from ``lsn`` to the end of its segment's data, where there is room left."""
        number = lsn // self._segment_bytes
        rest = data_end(number, self._segment_bytes) - lsn
        if rest:
            self._pad(lsn, number, rest, time_ns)

    def _pad(self, lsn: int, number: int, length: int, time_ns: int) -> None:
        segment, salt = self._segments[number]
        start = lsn - number * self._segment_bytes
        commit, durable = commit_word(salt, lsn, length), self._words[_DURABLE]
        header = _COVERED.pack(commit, _PAD, 0, 0, 0, lsn, 0, time_ns, durable, 0, 0, 0, 0)
        crc = zlib.crc32(header, salt & 0xFFFF_FFFF)
        segment[start + 8 : start + HEADER_BYTES] = _U32.pack(crc) + header[8:]
        segment[start : start + 8] = header[:8]

    def _void(self, pad_at: int, at: int, number: int, length: int, time_ns: int) -> None:
        """Publishes what was reserved and not finished as PAD."""
        if pad_at != at:
            self._pad_rest(pad_at, time_ns)
        self._pad(at, number, length, time_ns)

    def _has_row(self, row: int, vector_bytes: int) -> bool:
        matrix = self._matrix
        return matrix is not None and vector_bytes <= self._row_bytes and row < matrix.nbytes // self._row_bytes


def crc32(data: Any, seed: int = 0) -> int:
    """Returns zlib's CRC-32 of a buffer."""
    return zlib.crc32(data, seed)


def all_finite(data: Any, dtype: int) -> bool:
    """Returns whether a buffer of values of ``dtype`` holds neither NaN nor infinity."""
    if dtype not in DTYPES or memoryview(data).nbytes % DTYPES[dtype].itemsize:
        raise ValueError(f"{memoryview(data).nbytes} bytes are no values of dtype {dtype}")
    return memoryview(data).nbytes == 0 or _finite(None, data, dtype)


def scan(
    segment: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int, out: Any, verify: bool
) -> tuple[int, int, int]:
    """Walks the frames of a range; see `interface.Kernel.scan`."""
    view = _range(segment, base_lsn, salt, start_lsn, end_lsn)
    headers = _writable(out)
    room = headers.nbytes // HEADER_BYTES
    count, lsn = 0, start_lsn
    while lsn < end_lsn:
        if count == room:
            return lsn, count, SCAN_FULL
        length, reason = _check(view, base_lsn, salt, lsn, end_lsn, verify)
        if reason != SCAN_END:
            return lsn, count, reason
        at = lsn - base_lsn
        headers[count * HEADER_BYTES : (count + 1) * HEADER_BYTES] = view[at : at + HEADER_BYTES]
        count += 1
        lsn += length
    return lsn, count, SCAN_END


def find_frame(segment: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int) -> int:
    """Returns the position of the first valid frame of a range; see `interface.Kernel.find_frame`.

    Raises `ValueError` once the frames that looked right, but for their checksum, make up 8 times the range: that many
    overlap only in a file made to waste time.
    """
    view = _range(segment, base_lsn, salt, start_lsn, end_lsn)
    budget = FIND_BUDGET * (end_lsn - start_lsn)
    lsn = (start_lsn + ALIGNMENT - 1) & -ALIGNMENT
    while lsn + HEADER_BYTES <= end_lsn:
        count = min((end_lsn - lsn) // ALIGNMENT, _FIND_CHUNK)
        words = np.frombuffer(view, "<u8", count * (ALIGNMENT // 8), lsn - base_lsn)[:: ALIGNMENT // 8]
        tags = _tags(salt, lsn + ALIGNMENT * np.arange(count, dtype=np.uint64))
        mask = np.uint64(~LENGTH_MASK & 0xFFFF_FFFF_FFFF_FFFF)
        for index in np.flatnonzero((words & mask) == (tags & mask)).tolist():
            at = lsn + ALIGNMENT * index
            length, reason = _check(view, base_lsn, salt, at, end_lsn, True)
            if reason == SCAN_END:
                return int(at)
            if reason == SCAN_CHECKSUM:
                budget -= length
                if budget < 0:
                    raise ValueError("too many overlapping frames with a wrong checksum: this file was made up")
        lsn += ALIGNMENT * count
    return -1


def gather(
    source: Any,
    offsets: npt.NDArray[np.int64],
    row_bytes: int,
    target: Any,
    rows: npt.NDArray[np.int64],
    stride: int,
) -> None:
    """Copies rows from offsets of a source to places of a target; see `interface.Kernel.gather`."""
    origin, goal = _bytes(source), _writable(target)
    _typed(offsets, np.int64)
    _check_rows(rows, row_bytes, stride, goal.nbytes)
    if len(offsets) != len(rows):
        raise ValueError(f"{len(offsets)} offsets for {len(rows)} rows")
    if len(offsets) and not (offsets.min() >= 0 and offsets.max() <= origin.nbytes - row_bytes):
        raise ValueError("an offset is out of bounds")
    for offset, row in zip(offsets.tolist(), rows.tolist(), strict=True):
        _copy(goal, row * stride, origin[offset : offset + row_bytes])


def row_checksums(
    matrix: Any,
    rows: npt.NDArray[np.int64],
    row_bytes: int,
    stride: int,
    seeds: npt.NDArray[np.uint32],
    out: npt.NDArray[np.uint32],
) -> None:
    """Writes each row's CRC-32, started from its seed; see `interface.Kernel.row_checksums`."""
    view = _bytes(matrix)
    _check_rows(rows, row_bytes, stride, view.nbytes)
    _typed(seeds, np.uint32)
    _typed(out, np.uint32)
    _writable(out)
    if not len(rows) == len(seeds) == len(out):
        raise ValueError(f"{len(rows)} rows, {len(seeds)} seeds and {len(out)} places for the checksums")
    for index, (row, seed) in enumerate(zip(rows.tolist(), seeds.tolist(), strict=True)):
        out[index] = zlib.crc32(view[row * stride : row * stride + row_bytes], seed)


def _check(view: memoryview, base: int, salt: int, lsn: int, end: int, verify: bool) -> tuple[int, int]:
    """Applies the validity rule to one position; returns (length, reason), reason `SCAN_END` for a valid frame."""
    if end - lsn < HEADER_BYTES or lsn % ALIGNMENT:
        return 0, SCAN_NO_FRAME
    at = lsn - base
    header = _HEADER.unpack_from(view, at)
    word, crc, kind, _flags, _dtype, zero, start_lsn = header[:7]
    sizes = sum(header[11:14])
    length = (word & LENGTH_MASK) * ALIGNMENT
    if word != commit_word(salt, lsn, length):
        return 0, SCAN_NO_FRAME
    if not HEADER_BYTES <= length <= end - lsn or start_lsn != lsn or zero != 0:
        return length, SCAN_MALFORMED
    if sizes != 0 if kind == _PAD else (HEADER_BYTES + sizes + ALIGNMENT - 1) & -ALIGNMENT != length:
        return length, SCAN_MALFORMED
    covered = HEADER_BYTES if kind == _PAD else length
    if verify and frame_crc(view[at : at + covered], covered, salt) != crc:
        return covered, SCAN_CHECKSUM
    return length, SCAN_END


def _tags(salt: int, lsns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The mixing of `format.frame.commit_word` over an array of positions."""
    x = np.uint64(salt) ^ (lsns * np.uint64(0x9E3779B97F4A7C15))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _finite(vector: Any, payload: memoryview | bytes, dtype: int) -> bool:
    """As `all_finite`, for values whose dtype is known; an array is looked at as it is."""
    if dtype == 3:
        return True
    values = vector if type(vector) is np.ndarray else np.frombuffer(payload, DTYPES[dtype])
    return 0 not in np.isfinite(values).tobytes()  # one byte for each value


def _range(segment: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int) -> memoryview:
    view = _bytes(segment)
    if not 0 <= salt < 1 << 64:
        raise OverflowError("a salt has 64 bits")
    if base_lsn % ALIGNMENT or not 0 <= base_lsn <= start_lsn <= end_lsn <= base_lsn + view.nbytes < LSN_MAX:
        raise ValueError(f"the range {start_lsn} to {end_lsn} does not lie in the {view.nbytes} bytes from {base_lsn}")
    return view


def _check_rows(rows: npt.NDArray[np.int64], row_bytes: int, stride: int, size: int) -> None:
    _typed(rows, np.int64)
    if not 1 <= row_bytes <= stride < LSN_MAX:
        raise ValueError(f"rows of {row_bytes} bytes cannot lie {stride} bytes apart")
    if len(rows) and not (rows.min() >= 0 and int(rows.max()) * stride + row_bytes <= size):
        raise ValueError("a row is out of bounds")


def _typed(array: Any, dtype: Any) -> None:
    view = memoryview(array)
    if view.ndim != 1 or not view.c_contiguous or np.dtype(view.format) != np.dtype(dtype):
        raise TypeError(f"a contiguous one-dimensional array of {np.dtype(dtype).name} is needed")


def _block(buffer: Any) -> memoryview | bytes:
    return b"" if buffer is None else _bytes(buffer)


def _bytes(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _writable(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    if view.readonly:
        raise BufferError("the buffer must be writable")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _copy(target: memoryview, at: int, content: Any) -> None:
    """Stores ``content`` page by page: no store of the C library's may reach over the end of one (``copy.h``)."""
    start = 0
    while start < len(content):
        size = min(len(content) - start, PAGE_BYTES - (at + start) % PAGE_BYTES)
        target[at + start : at + start + size] = content[start : start + size]
        start += size


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data) if view.nbytes else 0


def _slot(number: int) -> int:
    return (RING + number % RING_SLOTS * RING_SLOT_BYTES) // 8
