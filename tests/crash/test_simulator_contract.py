"""The simulated disk keeps the contract that the real one keeps too."""

import pytest

pytest.register_assert_rewrite("mmwal.testing.contract")

from mmwal.testing.contract import DiskContract  # noqa: E402 (after the line above, which would come too late)
from mmwal.testing.simulator import SimulatedDisk  # noqa: E402


class TestSimulatedDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> SimulatedDisk:
        return SimulatedDisk()

    @pytest.fixture
    def root(self, disk: SimulatedDisk) -> str:
        disk.make_directory("/root")
        return "/root"
