"""How every file descriptor of this room is opened, and how its errors get the file's name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

# Never through a link, never passed on to another program, never waiting (as for a pipe in a file's place).
# By name, because Windows, which has none of them, must get as far as being refused.
SAFELY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700


def open_regular(path: str, flags: int) -> int:
    """Opens a regular file, or raises `OSError`. A file that it creates has a mode less the umask."""
    fd = os.open(path, flags | SAFELY, FILE_MODE)
    try:
        _check_regular(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_directory(path: str) -> int:
    """Opens a directory."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | (SAFELY & ~os.O_NOFOLLOW))


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Adds the file's name to an error of a call that knew only the descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _check_regular(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory where a file should be; move it away", path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is not a regular file; remove what was put in its place", path)
