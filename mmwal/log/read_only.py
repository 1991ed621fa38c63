"""What stands in for the log of a store that was opened for reading: it takes nothing, and says why.

Not here: how that store was read (`recovery/read_only.py`), the log that takes entries (`log.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from mmwal.errors import ForkedProcessError, ReadOnlyError, UnavailableError, WalClosedError
from mmwal.log.unlogged import Unlogged

if TYPE_CHECKING:
    from mmwal.kernel.interface import Kernel


class ReadOnlyLog(Unlogged):
    """Refuses every entry.

    ``durable_lsn`` is the greatest durable position that the log had on record when it was read.
    """

    def __init__(self, kernel: Kernel, dtype: int, wal_dir: str, durable_lsn: int) -> None:
        super().__init__(kernel, dtype)
        self.wal_dir = wal_dir
        self.durable_lsn = durable_lsn
        self.closed = False
        self.forked = False  # the forked child sets it

    def append(self, *_: Any) -> NoReturn:
        """Raises `ReadOnlyError`, or says that the handle is dead."""
        raise self.refusal()

    def append_frame(self, *_: Any) -> NoReturn:
        """Raises as `append`."""
        raise self.refusal()

    def append_transaction(self, *_: Any) -> NoReturn:
        """Raises as `append`."""
        raise self.refusal()

    def make_durable(self, lsn: int, timeout_s: float | None = None) -> NoReturn:
        """Raises as `append`."""
        raise self.refusal()

    def acknowledge(self, lsn: int, durable: bool | None) -> NoReturn:
        """Raises as `append`."""
        raise self.refusal()

    def refusal(self) -> UnavailableError:
        """Returns the error that says why nothing is taken."""
        if self.forked:
            return ForkedProcessError("this handle belongs to the parent process; open the directory in the child anew")
        if self.closed:
            return WalClosedError("the store is closed; open the directory again")
        return ReadOnlyError(
            f"{self.wal_dir}: the store was opened with read_only=True; close it and open it without, to write to it"
        )
