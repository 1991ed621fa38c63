"""Work in forked processes, for tools that fork from a warm parent; results come back as JSON."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def in_child(act: Callable[[], Any]) -> Callable[[], Any]:
    """Calls ``act`` in a forked child; returns a function that waits for what it returned.

    That function raises `RuntimeError` where ``act`` raised. The caller has no threads.
    """
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(out)
            with open(into, "wb") as file:
                file.write(json.dumps(act()).encode())
            code = 0
        except BaseException:  # noqa: BLE001 (printed, and the parent raises)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(into)

    def result() -> Any:
        with open(out, "rb") as file:
            said = file.read()
        os.waitpid(pid, 0)
        if not said:
            raise RuntimeError("a worker broke; its traceback stands above")
        return json.loads(said)

    return result
