"""Rows to frames, beyond the one kernel call of the hot path.

A row that the kernel did not take as it is: converted or explained. A batch: one frame, or a transaction of several if
it is larger than a segment. Not here: the hot path itself (`manager.py`, `store.py`), what vectors may be (`entry.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from mmwal.entry import OperationName, normalize_matrix, normalize_vector
from mmwal.errors import DuplicateIdError, EntryTooLargeError, IdTypeError, MetadataError, VectorError
from mmwal.format.frame import CUSTOM, HEADER_BYTES, Kind, align, encode_id, pack_ids, pack_metadata
from mmwal.format.metadata import encode_metadata
from mmwal.kernel.interface import CONVERT, DTYPES, NONFINITE, TOO_LARGE
from mmwal.log.transaction import Frame

if TYPE_CHECKING:
    from mmwal.log.log import Log

_ROW_BYTES = 8  # the two table entries of a row
_KINDS = {"insert": Kind.INSERT, "update": Kind.UPDATE, "delete": Kind.DELETE, "upsert": Kind.UPSERT}


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


def checked_row(
    log: Log, id: Any, vector: Any, metadata: bytes | None, dimension: int | None = None
) -> npt.NDArray[Any] | None:
    """Returns a copy of a row's vector as the log's dtype, None for none. Raises `VectorError`, and as `check_fits`."""
    row, expected = None, dimension or log.dimension
    if vector is not None:
        if not _is_plain(log, vector, (), expected):
            vector = normalize_vector(vector, DTYPES[log.identity.dtype], expected, not log.check_finite)
        row = vector.copy()
    check_fits(log, id, row.nbytes if row is not None else 0, metadata)
    return row


def plain_id(id: Any) -> str | int:
    """Returns an id as exactly a str or an int. Raises `IdTypeError` or `IdError`."""
    encode_id(id)
    return str(id) if isinstance(id, str) else int(id)


def plain_ids(ids: Any) -> list[str | int]:
    """Returns the ids of a batch as a list of exact str and int. Raises `IdTypeError` or `IdError`."""
    if isinstance(ids, (str, bytes)):
        raise IdTypeError(f"ids {ids!r} is one {type(ids).__name__}; pass a sequence of ids")
    if not isinstance(ids, Iterable):
        raise IdTypeError(f"ids={ids!r} is a {type(ids).__name__}; pass a sequence of ids")
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    return listed if set(map(type, listed)) <= {str, int} else [plain_id(id) for id in listed]


def distinct_ids(ids: Any) -> list[str | int]:
    """Returns `plain_ids`, each of them once. Raises `DuplicateIdError`; `ValueError` where there is none."""
    plain = plain_ids(ids)
    if not plain:
        raise ValueError("ids is empty: pass at least one")
    if len(set(plain)) != len(plain):
        seen: set[str | int] = set()
        twice = next(id for id in plain if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise DuplicateIdError(twice, "comes twice in one batch; pass each id once")
    return plain


def unwrap(item: Any, metadata: Any) -> tuple[Any, Any, Any]:
    """Returns id, vector and metadata of an object that carries them. Raises `TypeError`."""
    if hasattr(item, "id") and hasattr(item, "vector"):
        return item.id, item.vector, getattr(item, "metadata", None) if metadata is None else metadata
    raise TypeError(f"a {type(item).__name__} alone: pass an id and a vector, or an object with both as attributes")


def update_of(id: Any, vector: Any, metadata: Any) -> tuple[Any, Any, Any]:
    """Returns id, vector and metadata of an update, those of an object that carries them where one is passed alone.

    Raises `TypeError`, or `VectorError` where it says nothing.
    """
    if vector is None and not isinstance(id, (str, int, np.integer)):
        id, vector, metadata = unwrap(id, metadata)
    if vector is None and metadata is None:
        raise VectorError(f"nothing to update for id {id!r}: pass a vector, metadata or both")
    return id, vector, metadata


def encode_many(metadata: Sequence[Mapping[str, Any] | None] | None, rows: int) -> list[bytes | None] | None:
    """Returns the metadata of a batch as bytes. Raises `ValueError` where the lengths differ, `MetadataError`."""
    if metadata is None:
        return None
    if isinstance(metadata, str | bytes | Mapping) or not isinstance(metadata, Collection):
        raise MetadataError(f"metadata is a {type(metadata).__name__}; pass a list with one for each id, or None")
    if len(metadata) != rows:
        raise ValueError(f"metadata has {len(metadata)} items for {rows} ids; pass one for each id, or None")
    return [encode_metadata(item) if item is not None else None for item in metadata]


def plain_matrix(log: Log, vectors: Any, rows: int, dimension: int | None = None) -> npt.NDArray[Any]:
    """Returns the vectors of a batch as a C-contiguous (rows, d) array of the log's dtype, itself if it is one.

    Raises `VectorError`.
    """
    expected = dimension or log.dimension
    if _is_plain(log, vectors, (rows,), expected):
        return cast("npt.NDArray[Any]", vectors)
    return normalize_matrix(vectors, rows, DTYPES[log.identity.dtype], expected, not log.check_finite)


def _is_plain(log: Log, values: Any, rows: tuple[int, ...], dimension: int) -> bool:
    """Returns whether values are what `normalize_matrix` or `normalize_vector` would return as they are."""
    return (
        type(values) is np.ndarray
        and values.dtype == DTYPES[log.identity.dtype]
        and values.ndim == len(rows) + 1
        and values.flags.c_contiguous
        and values.shape[:-1] == rows
        and values.shape[-1] == (dimension or values.shape[-1]) > 0
        and (not log.check_finite or log.kernel.all_finite(values.reshape(-1), log.identity.dtype))
    )


class Batch(NamedTuple):
    """Rows of one kind: ids, their vectors as a C-contiguous (n, d) array of the log's dtype or None, and their
    metadata as bytes or None."""

    kind: int
    ids: Sequence[str | int]
    vectors: npt.NDArray[Any] | None
    metadata: Sequence[bytes | None] | None


def checked_batch(
    log: Log,
    ids: Any,
    vectors: Any,
    metadata: Sequence[Mapping[str, Any] | None] | None,
    operation: OperationName | Any,
) -> Batch:
    """Returns what a caller passed as a batch; its vectors are the caller's own where they can be.

    Raises `IdTypeError`, `IdError`, `VectorError`, `MetadataError`; `ValueError` for an unknown operation, for no ids
    or for lengths that differ.
    """
    if not isinstance(operation, str) or operation not in _KINDS:
        raise ValueError(f"operation={operation!r}: must be one of {', '.join(_KINDS)}")
    kind = _KINDS[operation]
    plain = plain_ids(ids)
    if not plain:
        raise ValueError("ids is empty: a batch has at least one row")
    if (vectors is None) != (kind == Kind.DELETE):
        raise VectorError(f"a batch of {operation}s {'takes no' if kind == Kind.DELETE else 'needs'} vectors")
    matrix = plain_matrix(log, vectors, len(plain)) if vectors is not None else None
    return Batch(kind, plain, matrix, encode_many(metadata, len(plain)))


def append_batches(log: Log, batches: Sequence[Batch]) -> int:
    """Logs batches that count together or not at all; returns their LSN.

    Raises `IdError`, `IdTypeError`, `EntryTooLargeError` (one row alone does not fit), all before anything is logged,
    and what `Log.settle` raises.
    """
    return append_frames(log, [frame for batch in batches for frame in frames_of(log, batch)])


def append_frames(log: Log, frames: Sequence[Frame]) -> int:
    """Logs frames that count together or not at all; returns their LSN. One alone needs no commit frame."""
    if len(frames) > 1:
        return log.append_transaction(frames)
    kind, dtype, rows, *blocks = frames[0]
    return log.append_frame(kind, dtype, rows, 0, *blocks)


def custom_frame(log: Log, name: str, content: bytes, timestamp_ns: int) -> Frame:
    """Returns the frame of a custom entry: the name of its type, its bytes, the application's time or `NO_TIME`.

    Raises `EntryTooLargeError`.
    """
    frame = Frame(Kind.CUSTOM, 0, 1, CUSTOM.pack(timestamp_ns=timestamp_ns) + content, pack_ids([name]), None)
    if frame.size > log.frame_bytes_max:
        raise EntryTooLargeError(frame.size, log.frame_bytes_max)
    return frame


def frames_of(log: Log, batch: Batch) -> list[Frame]:
    """Returns a batch as one frame, or as several where it does not fit into one. Raises as `append_batches`."""
    whole = _frame_of(log, batch, 0, len(batch.ids))
    if whole.size <= log.frame_bytes_max:
        return [whole]
    return [_frame_of(log, batch, start, stop) for start, stop in _cuts(log, batch)]


def _frame_of(log: Log, batch: Batch, start: int, stop: int) -> Frame:
    kind, ids, vectors, metadata = batch
    return Frame(
        kind,
        log.identity.dtype if vectors is not None else 0,
        stop - start,
        vectors[start:stop].reshape(-1) if vectors is not None else None,
        pack_ids(ids[start:stop]),
        (pack_metadata(metadata[start:stop]) if metadata is not None else b"") or None,
    )


def _cuts(log: Log, batch: Batch) -> Iterator[tuple[int, int]]:
    """Yields ranges of rows, each as long as fits into a frame."""
    _, ids, vectors, metadata = batch
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
