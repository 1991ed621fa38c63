"""The names of the simulated disk: a tree of directories, and which changes to it a power cut may undo.

A name operation is pending until its directory is synced. It acts on an inode, not on a name: replayed after
an earlier one was lost, a rename moves *its* file or does nothing, never another file that bears the name.

* An operation is feasible on a state if and only if it could have been issued there: a create needs the name
  free, a rename or an unlink needs the name to be its inode's. Others of a chosen subset have no effect.
* Directories are durable once made, as the interface promises. Renames stay in one directory (else EXDEV).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mmwal.testing.inode import Inode

Entries = dict[str, Inode]


@lru_cache(maxsize=4096)
def parts_of(path: str) -> tuple[str, str]:
    """Returns the directory of a path and the name in it."""
    return posixpath.split(path)


@dataclass(frozen=True, slots=True)
class NameOperation:
    """A create (``new`` only), an unlink (``old`` only) or a rename (both) of one inode."""

    inode: Inode
    old: str | None
    new: str | None

    @property
    def directory(self) -> str:
        return parts_of(self.new or self.old or "")[0]

    def apply(self, entries: Entries) -> bool:
        """Changes the entries where that is feasible; returns whether it was."""
        if self.old is not None:
            if entries.get(self.old) is not self.inode:
                return False
            del entries[self.old]
        elif self.new in entries:
            return False
        if self.new is not None:
            entries[self.new] = self.inode
        return True


class Names:
    """Paths to inodes: as the process sees them, as they are durable, and the operations between the two."""

    def __init__(self, entries: Entries, directories: list[str]) -> None:
        self.entries = entries
        self.durable = dict(entries)
        self.pending: list[NameOperation] = []
        self.directories = directories

    def copy(self, copied: Callable[[Inode], Inode]) -> Names:
        """Returns the same state over copies of the inodes."""
        other = Names({path: copied(inode) for path, inode in self.durable.items()}, self.directories.copy())
        other.entries = {path: copied(inode) for path, inode in self.entries.items()}
        other.pending = [NameOperation(copied(op.inode), op.old, op.new) for op in self.pending]
        return other

    def change(self, operation: NameOperation) -> None:
        """Performs an operation in memory; durable with the next sync of its directory."""
        operation.apply(self.entries)
        self.pending.append(operation)

    def sync(self, directory: str) -> None:
        """Makes the operations in a directory durable."""
        for operation in self.pending:
            if operation.directory == directory:
                operation.apply(self.durable)
        self.pending = [operation for operation in self.pending if operation.directory != directory]

    def in_directory(self, directory: str) -> list[str]:
        """Returns the names in a directory, sorted."""
        parts = map(parts_of, (*self.entries, *self.directories))
        return sorted({name for parent, name in parts if parent == directory} - {""})

    def reachable(self) -> list[Inode]:
        """Returns the inodes that some power cut leaves with a name, oldest first."""
        found = {inode.number: inode for inode in self.durable.values()}
        found.update((op.inode.number, op.inode) for op in self.pending if op.new is not None)
        return [found[number] for number in sorted(found)]

    def after(self, mask: int) -> tuple[Entries, int]:
        """Returns the names left when the operations of ``mask`` survive, and which were feasible."""
        entries = dict(self.durable)
        applied = 0
        for index, operation in enumerate(self.pending):
            if mask >> index & 1 and operation.apply(entries):
                applied |= 1 << index
        return entries, applied
