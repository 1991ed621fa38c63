"""The kernel room: append, publish, scan, checksum, over memory that others own; and the directory of ids.

`load("c")` gives the compiled kernel, `load("py")` its twin, `load()` the best one that is installed.
What both provide stands in `interface.py`; the twin, `reference.py`, is the specification in Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel

_MODULES = {"c": "mmwal.kernel._kernel", "py": "mmwal.kernel.reference"}


def load(name: str | None = None) -> Kernel:
    """Returns a kernel: ``"c"``, ``"py"``, or the best one installed for ``None``.

    Raises `ImportError` when the named kernel is not installed.
    """
    if name is not None:
        return cast("Kernel", importlib.import_module(_MODULES[name]))
    try:
        return load("c")
    except ImportError:
        return load("py")
