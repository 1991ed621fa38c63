"""The fixtures of this room."""

from tests.store.fixtures import disk, open_store, root, simulated

__all__ = ["disk", "open_store", "root", "simulated"]
