"""Address space for tables that grow: nothing is on disk, and nothing is shared."""

from __future__ import annotations

import mmap


def address_space(length: int) -> mmap.mmap:
    """Returns a buffer of zeros that takes memory a page at a time, as it is used. It lives as long as its views.

    Raises `OSError` where the system grants no such range.
    """
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
