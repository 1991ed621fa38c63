"""Rows to frames, beyond the one kernel call of the hot path.

A row that the kernel did not take as it is: converted or explained. A batch: one frame, or a transaction of several if
it is larger than a segment. Not here: the hot path itself (`manager.py`, `store.py`), what vectors may be (`entry.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmwal.entry import normalize_matrix, normalize_vector
from mmwal.errors import EntryTooLargeError, IdTypeError
from mmwal.format.frame import HEADER_BYTES, align, encode_id, pack_ids, pack_metadata
from mmwal.kernel.interface import CONVERT, DTYPES, NONFINITE, TOO_LARGE

if TYPE_CHECKING:
    from mmwal.log.log import Log

_ROW_BYTES = 8  # the two table entries of a row


def finish_row(
    log: Log,
    result: int,
    kind: int,
    id: Any,
    vector: Any,
    metadata: bytes | None,
    row: int,
    dimension: int | None = None,
) -> int:
    """Finishes the append of one row for which the kernel returned ``result``; returns its LSN.

    Converts what can be converted without loss. Raises `IdTypeError`, `IdError`, `VectorError`, `EntryTooLargeError`
    before anything is logged, and what `Log.settle` raises.
    """
    if result in (CONVERT, NONFINITE):
        id = plain_id(id)
        if vector is not None:
            dtype = DTYPES[log.identity.dtype]
            vector = normalize_vector(vector, dtype, dimension or log.dimension, not log.check_finite)

    def attempt() -> int:
        return log.cursor.append(kind, id, vector, metadata, log.time_ns(), row)

    if result in (CONVERT, NONFINITE):
        result = attempt()
    if result == TOO_LARGE:
        vector_bytes = memoryview(vector).nbytes if vector is not None else 0
        content = vector_bytes + len(encode_id(id)) + len(metadata or b"") + _ROW_BYTES
        raise EntryTooLargeError(align(HEADER_BYTES + content), log.frame_bytes_max)
    if result == CONVERT:
        raise TypeError(f"cannot log id {id!r} with metadata {metadata!r}: metadata is not bytes")
    return log.settle(result, attempt) if not 0 < result <= log.segment_end_lsn else result


def check_fits(log: Log, id: Any, vector_bytes: int, metadata: bytes | None) -> None:
    """Raises `IdTypeError`, `IdError` or `EntryTooLargeError` where a row could not be logged in a frame of its own."""
    metadata_bytes = 4 + len(metadata) if metadata is not None else 0
    frame_bytes = align(HEADER_BYTES + vector_bytes + 4 + len(encode_id(id)) + metadata_bytes)
    if frame_bytes > log.frame_bytes_max:
        raise EntryTooLargeError(frame_bytes, log.frame_bytes_max)


def plain_id(id: Any) -> str | int:
    """Returns an id as exactly a str or an int. Raises `IdTypeError` or `IdError`."""
    encode_id(id)
    return str(id) if isinstance(id, str) else int(id)


def plain_ids(ids: Any) -> list[str | int]:
    """Returns the ids of a batch as a list of exact str and int. Raises `IdTypeError` or `IdError`."""
    if isinstance(ids, (str, bytes)):
        raise IdTypeError(f"ids {ids!r} is one {type(ids).__name__}; pass a sequence of ids")
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    return listed if set(map(type, listed)) <= {str, int} else [plain_id(id) for id in listed]


def plain_matrix(log: Log, vectors: Any, rows: int, dimension: int | None = None) -> npt.NDArray[Any]:
    """Returns the vectors of a batch as a C-contiguous (rows, d) array of the log's dtype, itself if it is one.

    Raises `VectorError`.
    """
    dtype, code = DTYPES[log.identity.dtype], log.identity.dtype
    expected = dimension or log.dimension
    if (
        type(vectors) is np.ndarray
        and vectors.dtype == dtype
        and vectors.ndim == 2
        and vectors.flags.c_contiguous
        and vectors.shape[0] == rows
        and vectors.shape[1] == (expected or vectors.shape[1]) > 0
        and (not log.check_finite or log.kernel.all_finite(vectors.reshape(-1), code))
    ):
        return vectors
    return normalize_matrix(vectors, rows, dtype, expected, not log.check_finite)


def append_rows(
    log: Log,
    kind: int,
    ids: Sequence[str | int],
    vectors: npt.NDArray[Any] | None,
    metadata: Sequence[bytes | None] | None,
) -> int:
    """Logs rows that count together or not at all; returns their LSN.

    ``vectors`` is a C-contiguous (n, d) array of the log's dtype, or None. Raises `IdError`, `IdTypeError`,
    `EntryTooLargeError` (one row alone does not fit), all before anything is logged, and what `Log.settle` raises.
    """
    id_block = pack_ids(ids)
    metadata_block = pack_metadata(metadata) if metadata is not None else b""
    payload_bytes = vectors.nbytes if vectors is not None else 0
    dtype = log.identity.dtype if vectors is not None else 0
    whole = align(HEADER_BYTES + payload_bytes + len(id_block) + len(metadata_block))
    if whole <= log.frame_bytes_max:
        payload = vectors.reshape(-1) if vectors is not None else None
        return log.append_frame(kind, dtype, len(ids), 0, payload, id_block, metadata_block or None)
    return log.append_transaction(list(_pieces(log, kind, dtype, ids, vectors, metadata)))


def _pieces(
    log: Log,
    kind: int,
    dtype: int,
    ids: Sequence[str | int],
    vectors: npt.NDArray[Any] | None,
    metadata: Sequence[bytes | None] | None,
) -> Iterator[tuple[int, int, int, Any, Any, Any]]:
    for start, stop in _cuts(log, ids, vectors, metadata):
        payload = vectors[start:stop].reshape(-1) if vectors is not None else None
        block = pack_metadata(metadata[start:stop]) if metadata is not None else b""
        yield kind, dtype, stop - start, payload, pack_ids(ids[start:stop]), block or None


def _cuts(
    log: Log,
    ids: Sequence[str | int],
    vectors: npt.NDArray[Any] | None,
    metadata: Sequence[bytes | None] | None,
) -> Iterator[tuple[int, int]]:
    """Yields ranges of rows, each as long as fits into a frame."""
    room = log.frame_bytes_max - HEADER_BYTES
    vector_bytes = vectors.nbytes // len(ids) if vectors is not None else 0
    start = filled = 0
    for row, id in enumerate(ids):
        meta = metadata[row] if metadata is not None else None
        size = vector_bytes + len(encode_id(id)) + _ROW_BYTES + (len(meta) if meta is not None else 0)
        alone = align(HEADER_BYTES + size - (0 if meta is not None else 4))  # no metadata, no table of metadata
        if alone > log.frame_bytes_max:
            raise EntryTooLargeError(alone, log.frame_bytes_max)
        if row > start and align(filled + size) > room:
            yield start, row
            start, filled = row, 0
        filled += size
    yield start, len(ids)
