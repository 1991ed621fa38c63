"""Entries without what they need are refused before they are logged: a log that holds one could not be read."""

import numpy as np
import pytest

from mmwal.entry import WalEntry
from mmwal.errors import VectorError
from tests.log.fixtures import OpenWal, open_wal, wal_dir

__all__ = ["open_wal", "wal_dir"]
pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


def test_row_without_a_vector_is_refused_and_the_log_stays_readable(open_wal: OpenWal) -> None:
    wal = open_wal()
    with pytest.raises(VectorError, match="without a vector"):
        wal.log_entry(WalEntry.Upsert("a", None))  # type: ignore[arg-type]
    wal.log_entry(WalEntry.Upsert("a", np.ones(wal._log.dimension or 4, np.float32)))
    assert [found.id for found in wal.read_all_entries()] == ["a"]
