"""mmwal: a write-ahead log of mapped segments, and a durable vector store on it.

    mmwal.open(path, dimension=...)   a recovered `VectorStore`; keywords are fields of `WalConfig`
    WalManager(config)                the log alone, for those who keep their own index
    CrashRecoveryManager(config)      recovery with its own settings and statistics
    mmwal.verify(path)                what is damaged in a directory, and where

The rooms, lowest first; imports run one way:

    errors.py                    the whole error tree
    config.py, entry.py, custom.py    what a caller sets, logs and reads back; types of the caller's own
    format/  kernel/  disk/      bytes and values; append, scan and checksum over memory; the operating system
    log/                         one endless log in preallocated segments
    state/  checkpoint/          what is alive in which row; state to image to redo point
    recovery/                    from what a crash left to a state that serves
    search/                      exact nearest neighbours
    manager.py  store.py  opening.py    the public handles, and how they are opened
    transaction.py  prepared.py  several writes as one, on either handle; those that wait for a decision
    two_phase.py                 one transaction over several stores
    aio/                         log and store for asyncio
    apply.py                     an entry of a log into a store, for those who replay by hand
    cli/                         the `mmwal` command
    testing/                     the shipped test kit: a disk that can lose power
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmwal import errors
from mmwal.apply import apply_entry
from mmwal.config import RecoveryConfig, RetentionPolicy, RotationPolicy, WalConfig
from mmwal.custom import register_entry
from mmwal.entry import (
    CheckpointInfo,
    CustomEntry,
    EntryReport,
    Finding,
    Hit,
    InDoubt,
    LogReport,
    Record,
    RecoveryProgress,
    RecoveryStats,
    VerifyReport,
    WalEntry,
    WalMetrics,
)
from mmwal.errors import *  # noqa: F403  (every name there is an error of the public tree)
from mmwal.kernel import load as _load_kernel
from mmwal.log.receipt import Receipt
from mmwal.manager import WalManager
from mmwal.opening import CrashRecoveryManager, open
from mmwal.recovery.verify import verify
from mmwal.store import VectorStore
from mmwal.transaction import StoreTransaction, WalTransaction
from mmwal.two_phase import GlobalTransaction, Operation, Participant, TwoPhaseCommit

if TYPE_CHECKING:
    from mmwal.aio import AsyncStoreTransaction, AsyncVectorStore, AsyncWalManager

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("Async"):  # loaded when used: it brings asyncio
        from mmwal import aio

        if name in aio.__all__:
            return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def kernel_in_use() -> str:
    """Returns ``"c"`` where the compiled kernel is installed, ``"py"`` where its twin in Python does the work."""
    return _load_kernel().NAME


__all__ = [
    "AsyncStoreTransaction",
    "AsyncVectorStore",
    "AsyncWalManager",
    "CheckpointInfo",
    "CrashRecoveryManager",
    "CustomEntry",
    "EntryReport",
    "Finding",
    "GlobalTransaction",
    "Hit",
    "InDoubt",
    "LogReport",
    "Operation",
    "Participant",
    "Receipt",
    "Record",
    "RecoveryConfig",
    "RecoveryProgress",
    "RecoveryStats",
    "RetentionPolicy",
    "RotationPolicy",
    "StoreTransaction",
    "TwoPhaseCommit",
    "VectorStore",
    "VerifyReport",
    "WalConfig",
    "WalEntry",
    "WalManager",
    "WalMetrics",
    "WalTransaction",
    "__version__",
    "apply_entry",
    "errors",
    "kernel_in_use",
    "open",
    "register_entry",
    "verify",
]
__all__ += errors.__all__
