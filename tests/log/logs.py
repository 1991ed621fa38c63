"""Logs made from words: a config with small segments, entries by number, what must hold of positions, children."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mmwal.config import WalConfig
from mmwal.errors import WalFullError
from mmwal.format.segment import DATA_OFFSET, FOOTER_BYTES, frame_bytes_max
from mmwal.log.reader import read_extents
from mmwal.log.segment import segment_name
from mmwal.manager import WalManager

SEGMENT = 64 << 10
DIMENSION = 16
ROOM = SEGMENT - DATA_OFFSET - FOOTER_BYTES  # bytes of frames in a segment
LARGEST = frame_bytes_max(SEGMENT)  # of one frame
HUGE_INTERVAL = 3_600_000  # no background sync will come by itself while a test runs


def config(wal_dir: Any, kernel: Any, **fields: Any) -> WalConfig:
    """A log of 64 KiB segments and vectors of 16 values."""
    fields = {"segment_size": SEGMENT, "dimension": DIMENSION, "sync_interval_ms": HUGE_INTERVAL} | fields
    return WalConfig(wal_dir=wal_dir, kernel=kernel.NAME, **fields)


def vector(i: int, dimension: int = DIMENSION) -> np.ndarray[Any, Any]:
    """A vector that tells its number."""
    return np.full(dimension, i, np.float32)


def fill(wal: WalManager, count: int, start: int = 0) -> list[int]:
    """Logs `count` inserts; returns their LSNs."""
    return [wal.log_insert(f"id-{i}", vector(i)) for i in range(start, start + count)]


def until_full(wal: WalManager) -> tuple[list[int], WalFullError]:
    """Logs inserts of 0, 1, 2... until there is no room; returns their LSNs and the error."""
    logged: list[int] = []
    while True:
        try:
            logged.append(wal.log_insert(len(logged), vector(1)))
        except WalFullError as error:
            return logged, error


def ids(wal: WalManager, from_lsn: int | None = None) -> list[str | int]:
    """The ids of all rows that a replay gives, in order."""
    found: list[str | int] = []
    for entry in wal.replay(from_lsn):
        match entry.kind:
            case "batch":
                found += entry.ids
            case "commit" | "checkpoint":
                pass
            case _:
                found.append(entry.id)
    return found


def assert_ordered(wal: WalManager) -> None:
    """oldest <= released <= durable <= published <= reserved, in one reading and across two."""
    m = wal.get_metrics()
    assert 0 < m.oldest_lsn <= m.redo_lsn <= m.durable_lsn <= m.published_lsn <= m.reserved_lsn
    assert wal.oldest_lsn <= wal.durable_lsn <= wal.last_lsn


def segments(wal_dir: Path) -> list[str]:
    return sorted(name for name in os.listdir(wal_dir) if name.startswith("segment-"))


def segment_path(wal_dir: Path, number: int) -> Path:
    return wal_dir / segment_name(number)


def reserved(wal: WalManager) -> int:
    return wal.get_metrics().reserved_lsn


CHILD_HEAD = """
import os, signal, sys, threading, time, warnings
import numpy as np
from mmwal.errors import *
warnings.simplefilter("ignore", DurabilityWarning)
from mmwal.config import WalConfig
from mmwal.manager import WalManager
from mmwal.kernel import load
from tests.log.logs import *
wal_dir, kernel, args = sys.argv[1], load(sys.argv[2]), sys.argv[3:]
def die():
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), root])}


def start_child(code: str, wal_dir: Any, kernel: Any, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD_HEAD + code, str(wal_dir), kernel.NAME, *args]
    return subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def child(code: str, wal_dir: Any, kernel: Any, *args: str, killed: bool = False) -> list[str]:
    """Runs code in a process of its own; returns what it printed. It must end well, or by SIGKILL."""
    process = start_child(code, wal_dir, kernel, *args)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (-9 if killed else 0), f"exit status {process.returncode}\n{err}"
    return out.splitlines()


NOTHING_UNSYNCED = "0/0/old"  # the simulated power cut that loses all that was not synced


def frame_kinds(wal: WalManager) -> list[int]:
    """The kinds of all frames on disk, marks and pads included, up to the published end."""
    log = wal._log
    oldest = log.control.oldest_lsn
    start = max(oldest - 1, 0) // log.segment_bytes * log.segment_bytes + DATA_OFFSET
    extents = read_extents(wal._disk, log.kernel, log.wal_dir, log.identity, start, wal.last_lsn)
    return [int(kind) for extent in extents for kind in extent.frames["kind"]]
