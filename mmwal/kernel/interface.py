"""What both kernels provide: `_kernel.c` (compiled) and `reference.py` (its twin, the readable specification).

A kernel takes memory that somebody else owns, allocates nothing on disk and makes no system call.
Both write the same bytes. They differ in one promise only: the compiled cursor is lock-free, the twin takes a lock.

The cursor block
    A page of private memory shared by the cursor and the sync gate, in 64-bit words:

    byte     word        who writes                     who reads, and what orders it
    0        reserved    appenders, compare-and-swap    everybody
    64       published   appenders, compare-and-swap max, release    everybody, acquire: all bytes below are complete
    128      durable     the holder of the sync role, release        everybody, acquire: all bytes below survived a sync
    192      state       whoever closes or poisons      appenders: non-zero refuses before anything is reserved
    200      attention   the idle sync worker sets it   appenders: non-zero asks for the slow path after publishing
    256      gate        the sync gate's own words
    1024     ring        `RING_SLOTS` slots of 32 bytes: segment number + 1 (0: empty), its address, salt, 0

Segment ``n`` uses slot ``n % RING_SLOTS``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 4096
RESERVED, PUBLISHED, DURABLE, STATE, ATTENTION, GATE, RING = 0, 64, 128, 192, 200, 256, 1024
RING_SLOTS = 16
RING_SLOT_BYTES = 32

# The gate's words, from GATE: u32 role held, u32 futex epoch, u32 waiters, i32 errno of the failed sync;
# then u64 syncs completed, bytes synced, nanoseconds in syncs, longest sync in ns, ns of the latest sync.
GATE_ROLE, GATE_EPOCH, GATE_WAITERS, GATE_ERRNO = GATE, GATE + 4, GATE + 8, GATE + 12
GATE_SYNCS, GATE_BYTES, GATE_NS, GATE_NS_MAX, GATE_NS_LAST = (GATE + 16 + 8 * i for i in range(5))

# Bits of the state word. Each has a byte of its own, set by a plain one-byte store, so that no writer loses another's.
STATE_POISONED, STATE_CLOSED, STATE_FORKED = 1, 1 << 8, 1 << 16

# What an append returns when it is not a plain LSN. All but "settle" reserved and wrote nothing.
# A result below -64 is "settle": the frame is published at LSN ``-result``, but either `published` does not cover it
# yet (an unfinished neighbour stands before it) or the attention word is set.
NOT_READY = -1  # the next segment is not attached
REFUSED = -2  # the state word is not zero
CONVERT = -3  # id, vector or metadata is not of the exact shape of the fast path: the caller converts and explains
NONFINITE = -4  # the vector holds NaN or infinity
TOO_LARGE = -5  # the frame does not fit into a segment
SETTLE = -64

# Why a scan stopped.
SCAN_END = 0  # reached the end position
SCAN_NO_FRAME = 1  # the commit word carries another tag: nothing was published here
SCAN_MALFORMED = 2  # the commit word matches, the header contradicts itself or the bounds
SCAN_CHECKSUM = 3  # the checksum differs
SCAN_FULL = 4  # the output is full: call again from the stop position

# Rows of the directory, and what a replay notes of one.
ROWS_MAX = (1 << 32) - 1
NO_ROW = -1  # of an id that is not there
NOT_TAKEN, FROM_MATRIX, FROM_EXTENT = 0, 1, 2  # an origin: none, the matrix, the first extent

# Why a replay stopped.
REPLAY_DONE = 0
REPLAY_SHAPE = 1  # vectors of another dtype or size than the store's
REPLAY_CONTRADICTS = 2  # blocks that contradict themselves or each other

DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f2"), 3: np.dtype("i1")}
DTYPE_CODES = {"float32": 1, "float16": 2, "int8": 3}


class Cursor(Protocol):
    """The write position of a log, over the cursor block and a ring of attached segments."""

    def __init__(self, block: Any, segment_bytes: int, dtype: int, dimension: int, check_finite: bool) -> None:
        """Takes a writable block of `BLOCK_BYTES`; ``dtype`` is a code, ``dimension`` 0 means not fixed."""

    @property
    def reserved(self) -> int: ...
    @property
    def published(self) -> int: ...
    @property
    def durable(self) -> int: ...

    def start(self, lsn: int) -> None:
        """Sets reserved, published and durable. Before the first append only."""

    def attach(self, number: int, segment: Any, salt: int) -> None:
        """Adds a segment (a writable buffer of segment_bytes) to its ring slot.

        Raises `ValueError` where the slot is taken or the buffer has another size. Keeps the buffer until `detach`.
        """

    def detach(self, number: int) -> None:
        """Empties a segment's slot and lets go of its buffer. The caller knows that it is published and durable."""

    def bind_rows(self, matrix: Any, row_bytes: int) -> None:
        """Names the matrix (a writable buffer, or None) that `append` also copies to; rows are ``row_bytes`` apart."""

    def append(self, kind: int, id: Any, vector: Any, metadata: bytes | None, time_ns: int, row: int) -> int:
        """Logs one row: the hot path, one call.

        Fast path only: ``id`` exactly a str of 1 to 65,535 UTF-8 bytes or exactly an int of 64 bits; ``vector`` a
        C-contiguous one-dimensional native buffer of the cursor's dtype (format f, e or b) and dimension, or None for
        no vector; ``metadata`` bytes or None. Else `CONVERT`. ``row`` >= 0: the vector's bytes are also copied to that
        row of the bound matrix, after the frame is published (IndexError-free: a row out of range is `CONVERT`).

        Returns the LSN just past the frame once `published` covers it, or one of the codes above.
        """

    def append_frame(
        self, kind: int, dtype: int, rows: int, txn: int, time_ns: int, payload: Any, ids: Any, metadata: Any
    ) -> int:
        """Logs one frame of given blocks: ``payload`` (vectors of ``dtype``, or a fixed payload with dtype 0), ``ids``
        and ``metadata`` as `format.frame` packs them; each a contiguous buffer or None. Checks sizes only, not
        finiteness. Large payloads are copied with the GIL released. Returns as `append` (never CONVERT or NONFINITE).
        """

    def advance(self) -> int:
        """Moves `published` over every finished frame, pads and segment ends included; returns it."""


class Directory(Protocol):
    """Which id stands in which row, and what each row's id and metadata are. A method is one step for other threads.
    Packing is not: its rows must keep their names meanwhile.

    An id is a str of 1 to 65,535 UTF-8 bytes or an int of 64 bits; what is neither is never there. A row that an id has
    left keeps id and metadata until it is forgotten, or put again. Blocks are those of `format.frame`; one that is
    malformed raises `ValueError` before anything changes. Rows are int64 arrays.
    """

    def __len__(self) -> int: ...

    def __contains__(self, id: object) -> bool: ...

    def get(self, id: object, /) -> int | None:
        """Returns the row of an id, or None."""

    def put(self, id: str | int, row: int, metadata: bytes | None, /) -> int | None:
        """Lets an id stand in a row; returns the row in which it stood until then, or None."""

    def pop(self, id: object, /) -> int:
        """Takes an id out; returns its row. Raises `KeyError`."""

    def name(self, row: int, /) -> str | int | None:
        """Returns the id of a row, or None."""

    def metadata(self, row: int, /) -> bytes | None:
        """Returns the metadata of a row, or None."""

    def forget(self, rows: npt.NDArray[np.int64], /) -> None:
        """Lets the names and metadata of rows go."""

    def put_block(self, ids: Any, metadata: Any, rows: npt.NDArray[np.int64], before: npt.NDArray[np.int64], /) -> None:
        """Puts a block of ids with a block of metadata (b"": none has any) into rows, no two of them the same; takes
        those out whose row is `NO_ROW`.

        The row in which each id stood until then goes to ``before``: `NO_ROW`, or that of an earlier place of the
        block.
        """

    def find_block(self, ids: Any, out: npt.NDArray[np.int64], /) -> None:
        """Writes the row of each id of a block, -1 for one that is not there."""

    def pop_block(self, ids: Any, out: npt.NDArray[np.int64], /) -> None:
        """Takes the ids of a block out, and writes their rows as `find_block`."""

    def pack_ids(self, rows: npt.NDArray[np.int64], /) -> bytes:
        """Returns the block of the ids of rows. Raises `ValueError` where a row has none."""

    def pack_metadata(self, rows: npt.NDArray[np.int64], /) -> bytes:
        """Returns the block of the metadata of rows; b"" where none has any."""

    def replay(
        self,
        segment: Any,
        offsets: npt.NDArray[np.int64],
        lsns: npt.NDArray[np.uint64],
        origin: int,
        row_bytes: int,
        dtype: int,
        supply: npt.NDArray[np.int64],
        left: int,
        origins: npt.NDArray[np.int32],
        places: npt.NDArray[np.int64],
        born: npt.NDArray[np.uint64],
        died: npt.NDArray[np.uint64],
    ) -> tuple[int, int, int, int, int]:
        """Applies verified frames of one segment, in order: the last writer of an id wins.

        Args:
            offsets, lsns: each frame's place in ``segment``, and the LSN that its rows take.
            origin: what is noted of vectors that stand in this segment, from `FROM_EXTENT` on.
            row_bytes, dtype: what a vector must be.
            supply: rows that nobody sees, of which the first ``left`` are there and the last of these is taken first;
                rows that were taken and replaced come back. Has room for as many more as the frames have rows.
            origins, places: by row, of those taken: origin and offset of the vector, or `FROM_MATRIX` and a row of the
                matrix, for an update that says nothing of it; `NOT_TAKEN` else.
            born, died: by row, as in `state/rows.py`; those of rows that lose their id are ended.

        Returns frames applied, why it stopped (`REPLAY_DONE`, or what is wrong with the frame behind them, of which
        nothing was applied), rows left, rows applied, and rows skipped: updates and deletes of ids that are not there.
        """


class Kernel(Protocol):
    """The functions of a kernel module beside its types. All release the GIL for long ranges (compiled)."""

    NAME: str  # "c" or "py"
    Cursor: type[Cursor]
    Directory: type[Directory]

    def id_seeds(self, ids: Any, lsns: npt.NDArray[np.uint64], out: npt.NDArray[np.uint32], /) -> None:
        """Writes what the checksum of each row starts from, so that it is bound to id and LSN: the CRC-32 of the id's
        bytes, itself started from the two halves of the LSN, one xored with the other. ``ids`` is a block of ids."""

    def crc32(self, data: Any, seed: int = 0) -> int:
        """Returns zlib's CRC-32 of a buffer."""

    def all_finite(self, data: Any, dtype: int) -> bool:
        """Returns whether a buffer of values of ``dtype`` holds neither NaN nor infinity."""

    def scan(
        self, segment: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int, out: Any, verify: bool
    ) -> tuple[int, int, int]:
        """Walks the frames of [start_lsn, end_lsn) in a segment whose first byte is at ``base_lsn``.

        Copies each valid frame's 64-byte header into ``out`` (a writable buffer; as many as fit). ``verify=False``
        checks all but the checksum. Returns (stop LSN, headers written, reason).
        """

    def find_frame(self, segment: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int) -> int:
        """Returns the position of the first valid frame (checksum included) that begins at or after ``start_lsn`` on a
        64-byte boundary and ends by ``end_lsn``; -1 if there is none.

        Raises `ValueError` for a range that was made to waste time: frames that are wrong in their checksum only, and
        overlap, many times over.
        """

    def gather(
        self,
        source: Any,
        offsets: npt.NDArray[np.int64],
        row_bytes: int,
        target: Any,
        rows: npt.NDArray[np.int64],
        stride: int,
    ) -> None:
        """Copies ``row_bytes`` from each offset of ``source`` to ``rows[i] * stride`` of ``target``.
        Raises `ValueError`, before anything is copied, where a place is out of bounds."""

    def row_checksums(
        self,
        matrix: Any,
        rows: npt.NDArray[np.int64],
        row_bytes: int,
        stride: int,
        seeds: npt.NDArray[np.uint32],
        out: npt.NDArray[np.uint32],
    ) -> None:
        """Writes the CRC-32 of each row, started from its seed, to ``out``. Raises `ValueError` as `gather`."""
