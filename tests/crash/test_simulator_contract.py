"""The simulated disk keeps the contract that the real one keeps too, also where it is not watched any more."""

import pytest

pytest.register_assert_rewrite("mmwal.testing.contract")

from mmwal.testing.contract import DiskContract  # noqa: E402 (after the line above, which would come too late)
from mmwal.testing.leaf import LeafDisk  # noqa: E402
from mmwal.testing.simulator import SimulatedDisk  # noqa: E402


class TestSimulatedDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> SimulatedDisk:
        return SimulatedDisk()

    @pytest.fixture
    def root(self, disk: SimulatedDisk) -> str:
        disk.make_directory("/root")
        return "/root"


class TestLeafDisk(DiskContract):
    @pytest.fixture
    def disk(self) -> LeafDisk:
        return LeafDisk.after(SimulatedDisk(), "0/0/new", {})

    @pytest.fixture
    def root(self, disk: LeafDisk) -> str:
        disk.make_directory("/root")
        return "/root"
