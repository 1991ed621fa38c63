"""Which dimension a log alone takes: what it was created with, else what this opening says, else any."""

from pathlib import Path

import numpy as np
import pytest

from mmwal import VectorError, WalConfig, WalManager

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")


def opened(directory: Path, dimension: int | None) -> WalManager:
    return WalManager(WalConfig(wal_dir=directory, segment_size=1 << 16, max_wal_size=1 << 20, dimension=dimension))


def test_log_without_a_dimension_takes_vectors_of_any(tmp_path: Path) -> None:
    with opened(tmp_path, None) as wal:
        wal.log_insert("a", np.ones(3, np.float32))
        wal.log_insert("b", np.ones(5, np.float32))
        assert [len(entry.vector) for entry in wal.replay()] == [3, 5]


def test_log_without_a_dimension_takes_that_of_its_opening(tmp_path: Path) -> None:
    opened(tmp_path, None).close()
    with opened(tmp_path, 8) as wal:
        for vectors in (np.ones(3, np.float32), [1.0] * 3):
            with pytest.raises(VectorError, match="dimension 8, found 3"):
                wal.log_insert("a", vectors)
        with pytest.raises(VectorError, match="dimension 8, found 3"):
            wal.log_batch(["a"], np.ones((1, 3), np.float32))
        assert wal.log_insert("a", np.ones(8, np.float32)) > 0
