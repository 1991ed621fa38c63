"""The real disk keeps the contract that the simulated one keeps too."""

from mmwal.testing.contract import DiskContract


class TestPosixDisk(DiskContract):
    """With the fixtures `disk` and `root` of this room."""
