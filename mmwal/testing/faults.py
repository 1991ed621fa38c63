"""Faults on order: which call of the simulated disk fails, with which errno.

A fault names its calls by operation (``sync``), by label (``segment sync``), by ``step`` (every call that
changes or syncs something) or by ``any`` (every call that can fail). A few calls fail so rarely that ``any`` leaves
them out, and must be named: ``exists``, ``has_readers``, ``start_worker``.
"""

from __future__ import annotations

import errno
import posixpath
import re
from dataclasses import dataclass
from functools import lru_cache

ERRNO_DEFAULT = {
    "allocate": errno.ENOSPC,
    "create": errno.ENOSPC,
    "lock": errno.ENOLCK,
    "lock_shared": errno.ENOLCK,
    "make_directory": errno.ENOSPC,
    "map": errno.ENOMEM,
    "open": errno.EMFILE,
    "populate": errno.ENOSPC,
    "rename": errno.ENOSPC,
    "write": errno.ENOSPC,
    "zero": errno.ENOSPC,
}
NUMBER = re.compile(r"[0-9a-f]*\d[0-9a-f]*|[0-9a-f]{8,}")


@dataclass
class Fault:
    """One order: the ``nth`` matching call from now fails, or that one and all later ones."""

    what: str
    nth: int
    errno: int | None
    forever: bool
    calls: int = 0
    hits: int = 0  # how often it struck
    written: float = 0.5  # how much of it a write that fails has written: a short write

    def strikes(self, operation: str, label: str, step: bool, *, rare: bool = False) -> bool:
        """Counts a call; returns whether it fails."""
        named = {operation, label} if rare else {operation, label, "any"}
        if self.what not in named and not (step and self.what == "step"):
            return False
        self.calls += 1
        hit = self.calls >= self.nth if self.forever else self.calls == self.nth
        self.hits += hit
        return hit

    def error(self, operation: str, path: str) -> OSError:
        """Returns the exception of the failing call."""
        return failure(self.errno or ERRNO_DEFAULT.get(operation, errno.EIO), path, "injected")


def failure(number: int, path: str, reason: str = "simulated") -> OSError:
    """Returns an `OSError` of the subclass that its errno calls for."""
    return OSError(number, f"{errno.errorcode.get(number, number)} ({reason})", path)


@lru_cache(maxsize=1024)
def label_of(operation: str, path: str) -> str:
    """Returns the file's name without its numbers, and the operation: ``segment sync``."""
    words = re.split(r"[-_.]+", posixpath.basename(path))
    kept = [re.sub(r"\d+", "", word) for word in words if not NUMBER.fullmatch(word)]
    return f"{'.'.join(filter(None, kept)) or 'file'} {operation}"
