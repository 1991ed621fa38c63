"""What stores and reports look like when they are printed, and the answer to a wrong keyword or a poor place."""

import warnings
from pathlib import Path
from typing import Any

import pytest

import mmwal
from mmwal.errors import DurabilityWarning
from mmwal.testing.simulator import SimulatedDisk
from tests.store.stores import DIMENSION, SEGMENT, rows, vector


def test_store_in_memory_says_what_it_holds() -> None:
    store = mmwal.VectorStore(metric="l2", dtype="int8")
    assert repr(store) == "<VectorStore: 0 ids, no dimension yet, int8, l2, in memory>"
    store.insert_many(range(1200), rows([1] * 1200).astype("i1"))
    assert repr(store) == f"<VectorStore: 1,200 ids, dimension {DIMENSION}, int8, l2, in memory>"
    store.close()
    assert repr(store) == "<VectorStore: closed, in memory>"


def test_durable_store_says_what_it_holds_and_where(open_store: Any, simulated: SimulatedDisk) -> None:
    store = open_store(disk=simulated, metric="cosine")
    store.insert("a", vector(1))
    assert repr(store) == f"<VectorStore: 1 ids, dimension {DIMENSION}, float32, cosine, log in /store/wal>"
    simulated.fork()
    assert repr(store) == "<VectorStore: closed, log in /store/wal>"


def test_metrics_print_as_lines_that_can_be_read(open_store: Any, simulated: SimulatedDisk, kernel: Any) -> None:
    store = open_store(disk=simulated)
    lsn = store.insert("a", vector(1), durable=True)
    store.checkpoint()
    lines = str(store.wal.get_metrics()).splitlines()
    assert [line.partition(":")[0].strip() for line in lines] == ["log", "LSN", "syncs", "segments", "checkpoints"]
    assert lines[0].endswith(f"kernel {kernel.NAME}")
    assert f"durable {lsn}, published " in lines[1]
    assert lines[-1] == "  checkpoints: 1"


@pytest.mark.parametrize(
    ("keyword", "near"),
    [
        ("sync_intervall", "sync_interval_ms"),
        ("sync_interval", "sync_interval_ms"),
        ("dimensions", "dimension"),
        ("readonly", "read_only"),
        ("max_wal_bytes", "max_wal_size"),
    ],
)
def test_unknown_keyword_is_named_with_the_field_it_resembles(tmp_path: Path, keyword: str, near: str) -> None:
    with pytest.raises(TypeError, match=rf"'{keyword}'; did you mean '{near}'\?"):
        mmwal.open(tmp_path / "store", **{keyword: 1})
    assert list(tmp_path.iterdir()) == []


def test_unknown_keyword_that_resembles_nothing_is_answered_with_all_fields(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'zzz'; the fields of WalConfig are sync_interval_ms, .*kernel"):
        mmwal.open(tmp_path / "store", zzz=1)


def test_temporary_place_is_warned_of_once_per_open_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    root = tmp_path / "store"
    with pytest.warns(DurabilityWarning, match="Use a directory") as caught:
        mmwal.open(root, dimension=2, segment_size=SEGMENT).close()
    assert [(warning.category, warning.filename) for warning in caught] == [(DurabilityWarning, __file__)]
    assert f"{root}/wal" in str(caught[0].message)
    recovery = mmwal.CrashRecoveryManager(mmwal.RecoveryConfig(wal_dir=root / "wal", data_dir=root / "data"))
    with pytest.warns(DurabilityWarning) as caught:
        recovery.recover().close()
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mmwal.open(root, read_only=True).close()  # nothing is kept there by it
