"""``mmwal dump PATH``: the entries of a log, oldest first, one line each.

* Entries are streamed: memory does not grow with the log.
* Whoever reads the output may stop reading; that is no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

import mmwal
from mmwal.cli.app import OK
from mmwal.cli.place import kernel_option, print_json
from mmwal.config import KernelName
from mmwal.entry import WalEntry

KINDS = ("insert", "update", "upsert", "delete", "checkpoint", "commit", "prepare", "rollback", "custom")
_VALUES_SHOWN = 4
_SHOWN_BY_NAME = ("gid", "sequence", "redo_lsn", "first_lsn", "rows", "name", "operation")


@click.command()
@click.argument("path", type=click.Path(path_type=str))
@click.option("--from-lsn", type=click.IntRange(0), help="Only entries behind this LSN.")
@click.option("--to-lsn", type=click.IntRange(0), help="Only entries up to this LSN.")
@click.option("--id", "ids", multiple=True, help="Only rows of this id; a number means the int id, too. Repeatable.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only entries of this kind. Repeatable.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many entries.")
@click.option("--vectors/--no-vectors", help="Print whole vectors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@kernel_option
def dump(
    path: str,
    from_lsn: int | None,
    to_lsn: int | None,
    ids: tuple[str, ...],
    kinds: tuple[str, ...],
    limit: int | None,
    vectors: bool,
    as_json: bool,
    kernel: KernelName | None,
) -> int:
    """Print the entries of a log: PATH is the directory of a store or a log, or one segment file.

    Nothing is changed. A row of a batch is a line of its own, with the batch's LSN. Entries of transactions that never
    committed do not count, and are not shown. The exit code is 3 at a damaged entry, once those before are printed.
    """
    wanted = {*ids, *(int(id) for id in ids if id.removeprefix("-").isdecimal())}
    with mmwal.WalManager.new_from_path(path, kernel=kernel) as wal:
        rows = (
            row
            for entry in wal.iter_entries(from_lsn, to_lsn)
            for row in _rows(entry)
            if (not kinds or row["kind"] in kinds) and (not wanted or row.get("id") in wanted)
        )
        for row in islice(rows, limit):
            if as_json:
                print_json(row if vectors else {name: value for name, value in row.items() if name != "vector"})
            else:
                click.echo(_line(row, vectors))
    return OK


def _rows(entry: Any) -> Iterator[dict[str, Any]]:
    """Yields what an entry says, row by row."""
    where = {"lsn": entry.lsn, "time": entry.timestamp.isoformat(), "txn": entry.txn}
    match entry:
        case WalEntry.Batch():
            for index, id in enumerate(entry.ids):
                yield {
                    **where,
                    "kind": entry.operation,
                    "id": id,
                    "vector": None if entry.vectors is None else entry.vectors[index],
                    "metadata": None if entry.metadata is None else entry.metadata[index],
                    "batch": len(entry.ids),
                }
        case WalEntry.Checkpoint():
            yield {**where, "kind": "checkpoint", "sequence": entry.seq, "redo_lsn": entry.redo_lsn}
        case WalEntry.Commit():
            yield {**where, "kind": "commit", "first_lsn": entry.first_lsn, "rows": entry.rows}
        case WalEntry.Prepare():
            yield {**where, "kind": "prepare", "gid": entry.gid, "first_lsn": entry.first_lsn, "rows": entry.rows}
        case WalEntry.Rollback():
            yield {**where, "kind": "rollback"}
        case WalEntry.Custom():
            timestamp = entry.entry.timestamp.isoformat() if entry.entry.timestamp else None
            operation = entry.operation if isinstance(entry.operation, bytes) else repr(entry.operation)
            yield {**where, "kind": "custom", "name": entry.name, "operation": operation, "timestamp": timestamp}
        case WalEntry.Delete():
            yield {**where, "kind": "delete", "id": entry.id}
        case _:
            kind = type(entry).__name__.lower()
            yield {**where, "kind": kind, "id": entry.id, "vector": entry.vector, "metadata": entry.metadata}


def _line(row: dict[str, Any], vectors: bool) -> str:
    parts = [f"{row['lsn']:>12}", row["time"][:26], f"{row['kind']:<10}"]
    if row["txn"]:
        parts.append(f"txn {row['txn']:x}")
    if "id" in row:
        parts.append(repr(row["id"]))
    if (vector := row.get("vector")) is not None:
        shown = vector if vectors else vector[:_VALUES_SHOWN]
        values = ", ".join(f"{value:g}" for value in shown.tolist())
        parts.append(f"[{values}{', …' if len(shown) < len(vector) else ''}]")
    if row.get("metadata"):
        parts.append(str(row["metadata"]))
    parts += [f"{name} {row[name]}" for name in _SHOWN_BY_NAME if name in row]
    return "  ".join(parts)
