"""The directory: id to row.

A dict, used through the few methods named here, so that another structure can take its place: ``get``,
``[id] = row``, ``pop``, ``update`` with another directory, ``in``, ``len`` and iteration over the ids.

* ``"7"`` and ``7`` are two ids. What equals an id is that id: callers pass str and int only, never bool or float.
* ``update`` turns all its ids over in one step: no other thread sees half of them.
* Nobody but the holder of the state's lock changes it; anybody may ask it for one id.
"""

from __future__ import annotations

from mmwal.entry import Id


class Directory(dict[Id, int]):
    """id to row; see the module."""

    __slots__ = ()
