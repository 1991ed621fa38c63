"""The frames of a segment as arrays, through the kernel's scan.

Not here: what an invalid frame means (`recovery/tail.py`), entries with values (`reader.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmwal.format.frame import FRAME_DTYPE, HEADER_BYTES
from mmwal.kernel.interface import SCAN_END, SCAN_FULL

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

Frames = npt.NDArray[np.void]
_FRAMES_FIRST = 1 << 10
_FRAMES_MAX = 1 << 16


def scan_frames(
    kernel: Kernel, view: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int, *, verify: bool = True
) -> tuple[Frames, int, int]:
    """Returns the headers (`FRAME_DTYPE`) of the valid frames from ``start_lsn`` on, where they stop, and why.

    ``start_lsn`` is the position of a frame; ``end_lsn`` at most the end of the segment's data.
    """
    parts: list[Frames] = []
    room = _FRAMES_FIRST
    reason = SCAN_FULL
    while reason == SCAN_FULL:
        frames, start_lsn, reason = scan_some(kernel, view, base_lsn, salt, start_lsn, end_lsn, room, verify=verify)
        parts.append(frames)
        room = min(room * 4, _FRAMES_MAX)
    return parts[0] if len(parts) == 1 else np.concatenate(parts), start_lsn, reason


def scan_some(
    kernel: Kernel, view: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int, room: int, *, verify: bool = True
) -> tuple[Frames, int, int]:
    """As `scan_frames`, of ``room`` frames at most."""
    out = np.empty(room, dtype=FRAME_DTYPE)
    stop_lsn, count, reason = kernel.scan(view, base_lsn, salt, start_lsn, end_lsn, out.view(np.uint8).data, verify)
    return out[:count], stop_lsn, reason


def find_frames(kernel: Kernel, view: Any, base_lsn: int, salt: int, start_lsn: int, end_lsn: int) -> Frames:
    """Returns the headers of all valid frames in a range of which some bytes are not frames: the look-ahead."""
    parts: list[Frames] = []
    while start_lsn < end_lsn:
        found = kernel.find_frame(view, base_lsn, salt, start_lsn, end_lsn)
        if found < 0:
            break
        frames, start_lsn, reason = scan_frames(kernel, view, base_lsn, salt, found, end_lsn)
        parts.append(frames)
        if reason == SCAN_END:
            break
        start_lsn += HEADER_BYTES
    return np.concatenate(parts) if parts else np.empty(0, dtype=FRAME_DTYPE)
