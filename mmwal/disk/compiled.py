"""The compiled half of this room, `_sync.c`: None without a C compiler at installation, or where this is not Linux."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

sync: Any = None
with suppress(ImportError):
    sync = importlib.import_module("mmwal.disk._sync")
