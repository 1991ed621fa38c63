"""What happens in a forked child: lock descriptors are closed, and whoever asked is told.

* One hook for the whole process, registered on import. Python can add such hooks but never remove them, so
  the hook walks registries that can.
* Descriptors go first: a callback that fails cannot leave a child holding the parent's lock.
* Only `os.fork` runs the hook. A child that C code forks keeps the descriptors until it calls exec.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Protocol


class HoldsDescriptor(Protocol):
    """Something with a descriptor that must not outlive a fork."""

    def close_in_child(self) -> None:
        """Closes the descriptor in the child; the lock that the parent holds through it stays."""


_holders: weakref.WeakSet[HoldsDescriptor] = weakref.WeakSet()
_callbacks: dict[object, Callable[[], Callable[[], None] | None]] = {}


def close_in_children(holder: HoldsDescriptor) -> None:
    """Closes ``holder`` in every child forked while it is alive."""
    _holders.add(holder)


def call_in_children(callback: Callable[[], None]) -> Callable[[], None]:
    """Calls ``callback`` in every forked child; returns a function that ends that.

    A bound method is held weakly: it does not keep its object alive. Any other callable is held until the
    end.
    """
    for token in [token for token, reference in _callbacks.items() if reference() is None]:
        del _callbacks[token]
    token = object()
    _callbacks[token] = _weakly(callback)

    def end() -> None:
        _callbacks.pop(token, None)

    return end


def _weakly(callback: Callable[[], None]) -> Callable[[], Callable[[], None] | None]:
    """Returns what returns the callback while its object lives. (`WeakMethod` complains when the program ends.)"""
    if not isinstance(callback, MethodType):
        return lambda: callback
    owner, function = weakref.ref(callback.__self__), callback.__func__

    def method() -> Callable[[], None] | None:
        alive = owner()
        return None if alive is None else MethodType(function, alive)

    return method


def _after_fork_in_child() -> None:
    for holder in list(_holders):
        holder.close_in_child()
    for reference in list(_callbacks.values()):
        callback = reference()
        if callback is None:
            continue
        try:
            callback()
        except Exception:  # the child goes on, and the other callbacks must run
            logging.getLogger("mmwal").exception("a callback in a forked child failed")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
