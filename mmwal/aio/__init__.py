"""mmwal for asyncio: the loop never waits for the disk.

handle.py     what both faces share: opening, closing, threads, acknowledgement
waiting.py    who waits for which LSN on a loop
wal.py        `AsyncWalManager`: the log alone
store.py      `AsyncVectorStore`, and its transactions
"""

from mmwal.aio.store import AsyncStoreTransaction, AsyncVectorStore
from mmwal.aio.wal import AsyncWalManager

__all__ = ["AsyncStoreTransaction", "AsyncVectorStore", "AsyncWalManager"]
