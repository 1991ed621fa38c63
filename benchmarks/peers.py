"""Others that keep vectors by id, beside the log, for context: the same record into SQLite, LMDB, LevelDB or RocksDB.

Each is set up as its users do who want a single insert to be quick, and told to sync where it says "durable".
Only SQLite comes with Python; the others are measured where they can be imported.
"""

from __future__ import annotations

import importlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from figures import Row, beside, percentile
from single import Latencies
from subject import BATCH_DIMENSION, BATCH_ROWS, POOL_ROWS, Run, Subject, pool, subject, timed_us, vectors


class SqlitePeer:
    """A table of blobs in WAL mode; its own sync at a checkpoint only, unless a write is to be durable."""

    NAME: ClassVar[str] = "SQLite"

    def __init__(self, directory: Path) -> None:
        self._database = sqlite3.connect(directory / "peer.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE vectors (id TEXT PRIMARY KEY, vector BLOB)")

    def insert(self, id: str, vector: Any) -> None:
        """Inserts without a sync."""
        self._database.execute("INSERT INTO vectors VALUES (?, ?)", (id, vector.data))

    def insert_durable(self, id: str, vector: Any) -> None:
        """Inserts with a sync."""
        self._database.execute("PRAGMA synchronous=FULL")
        self.insert(id, vector)
        self._database.execute("PRAGMA synchronous=NORMAL")

    def insert_batch_durable(self, ids: list[str], matrix: Any) -> None:
        """Inserts many rows with one sync."""
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO vectors VALUES (?, ?)", ((id, row.data) for id, row in zip(ids, matrix, strict=True))
        )
        self._database.execute("COMMIT")
        self._database.execute("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        """Closes the database."""
        self._database.close()


class LmdbPeer:
    """LMDB with a writable map and asynchronous flushes: the quickest there is for a single insert."""

    NAME: ClassVar[str] = "LMDB, writemap"

    def __init__(self, directory: Path) -> None:
        lmdb = importlib.import_module("lmdb")
        self._environment = lmdb.open(str(directory), map_size=16 << 30, writemap=True, map_async=True, metasync=False)

    def insert(self, id: str, vector: Any) -> None:
        """Inserts without a sync."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(id.encode(), vector.tobytes())

    def insert_durable(self, id: str, vector: Any) -> None:
        """Inserts with a sync."""
        self.insert(id, vector)
        self._environment.sync(True)

    def insert_batch_durable(self, ids: list[str], matrix: Any) -> None:
        """Inserts many rows with one sync."""
        with self._environment.begin(write=True) as transaction:
            for id, row in zip(ids, matrix, strict=True):
                transaction.put(id.encode(), row.tobytes())
        self._environment.sync(True)

    def close(self) -> None:
        """Closes the environment."""
        self._environment.close()


class LeveldbPeer:
    """LevelDB through plyvel."""

    NAME: ClassVar[str] = "LevelDB"

    def __init__(self, directory: Path) -> None:
        self._database = importlib.import_module("plyvel").DB(
            str(directory / "db"), create_if_missing=True, compression=None
        )

    def insert(self, id: str, vector: Any) -> None:
        """Inserts without a sync."""
        self._database.put(id.encode(), vector.tobytes())

    def insert_durable(self, id: str, vector: Any) -> None:
        """Inserts with a sync."""
        self._database.put(id.encode(), vector.tobytes(), sync=True)

    def insert_batch_durable(self, ids: list[str], matrix: Any) -> None:
        """Inserts many rows with one sync."""
        with self._database.write_batch(sync=True) as batch:
            for id, row in zip(ids, matrix, strict=True):
                batch.put(id.encode(), row.tobytes())

    def close(self) -> None:
        """Closes the database."""
        self._database.close()


class RocksdbPeer:
    """RocksDB through rocksdict, raw bytes."""

    NAME: ClassVar[str] = "RocksDB"

    def __init__(self, directory: Path) -> None:
        self._rocksdict = importlib.import_module("rocksdict")
        self._database = self._rocksdict.Rdict(str(directory / "db"), self._rocksdict.Options(raw_mode=True))
        self._synced = self._rocksdict.WriteOptions()
        self._synced.sync = True

    def insert(self, id: str, vector: Any) -> None:
        """Inserts without a sync."""
        self._database.put(id.encode(), vector.tobytes())

    def insert_durable(self, id: str, vector: Any) -> None:
        """Inserts with a sync."""
        self._database.put(id.encode(), vector.tobytes(), write_opt=self._synced)

    def insert_batch_durable(self, ids: list[str], matrix: Any) -> None:
        """Inserts many rows with one sync."""
        batch = self._rocksdict.WriteBatch(raw_mode=True)
        for id, row in zip(ids, matrix, strict=True):
            batch.put(id.encode(), row.tobytes())
        self._database.write(batch, self._synced)

    def close(self) -> None:
        """Closes the database."""
        self._database.close()


_MODULES = {"sqlite3": SqlitePeer, "lmdb": LmdbPeer, "plyvel": LeveldbPeer, "rocksdict": RocksdbPeer}


def available() -> list[Any]:
    """Returns the peers whose modules can be imported."""
    found = []
    for module, peer in _MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        found.append(peer)
    return found


def measure_peers(run: Run) -> Iterator[Row]:
    """Yields what others take for the same, beside the log in the same repetition."""
    sizes, kernel, dimension = run.sizes, run.kernels[0], BATCH_DIMENSION
    given, matrix = pool(dimension), vectors(BATCH_ROWS, BATCH_DIMENSION)
    for peer in available():
        single: dict[str, list[float]] = {"log": [], "peer": []}
        durable: dict[str, list[float]] = {"log": [], "peer": []}
        batch: dict[str, list[float]] = {"log": [], "peer": []}
        directory = Path(tempfile.mkdtemp(dir=run.root, prefix="peer-"))
        other = peer(directory)
        with subject(run, "log", kernel, dimension, 1000) as log:
            for _ in range(sizes.repetitions):
                for name, target in (("log", log), ("peer", other)):
                    latencies = Latencies(run.clock_ns)
                    for _ in range(sizes.bursts):
                        latencies.burst(target.insert, log.ids(sizes.burst_rows), given)
                    single[name].append(latencies.p50_us())
                    call = _log_durably(log) if name == "log" else other.insert_durable
                    waits = [
                        timed_us(call, id, given[number % POOL_ROWS])
                        for number, id in enumerate(log.ids(sizes.durable_rows))
                    ]
                    durable[name].append(percentile(sorted(waits), 0.5))
                    write = _log_batch_durably(log) if name == "log" else other.insert_batch_durable
                    rounds = max(sizes.batches // 10, 2)
                    started = time.perf_counter()
                    for _ in range(rounds):
                        write(log.ids(BATCH_ROWS), matrix)
                    batch[name].append(rounds * matrix.nbytes / (time.perf_counter() - started) / 1e6)
                    log.release()
        other.close()
        shutil.rmtree(directory)
        for what, unit, found in (
            (f"one insert, {dimension}, not synced, p50", "us", single),
            (f"one durable insert, {dimension}, p50", "us", durable),
            (f"batches of {BATCH_ROWS} x {dimension}, durable", "MB/s", batch),
        ):
            yield beside(
                "peers", f"   {peer.NAME}, {what}", unit, found["peer"], "log", found["log"], of={"peer": peer.NAME}
            )


def _log_durably(log: Subject) -> Callable[[Any, Any], Any]:
    return lambda id, vector: log.insert(id, vector, durable=True)


def _log_batch_durably(log: Subject) -> Callable[[Any, Any], Any]:
    return lambda ids, matrix: log.insert_many(ids, matrix, durable=True)
