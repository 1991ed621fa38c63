"""The fixtures of this room."""

from tests.log.fixtures import open_wal, wal_dir

__all__ = ["open_wal", "wal_dir"]
