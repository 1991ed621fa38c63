"""mmwal for asyncio: the loop never waits for the disk.

handle.py     opening, closing, threads, acknowledgement
waiting.py    who waits for which LSN on a loop
wal.py        `AsyncWalManager`: the log alone
"""

from mmwal.aio.wal import AsyncWalManager

__all__ = ["AsyncWalManager"]
