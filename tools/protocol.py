"""The steps of the durability protocol, as data: which places in the source do what, and must not be left out.

A place is found by machine, not by memory. `places()` reads the source of the package and lists

    calls       of the disk's methods that change, sync or lock something, and of our own that publish or let go
    stores      to the words of a cursor block, to mapped files, and (in C) to both
    refusals    every `raise` of recovery that says: this is damage, or another's

Each place belongs to a step of `STEPS`; a place that is not claimed, and a step whose place is gone, fail
`tests/crash/test_mutants.py`. Each step has a mutant that is found, or a reason why none can be: see `mutants.py`.

Not here: what each step is for (the code says), what breaks it (`mutants.py`), how that is found (`mutate.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "mmwal"

# What a disk, a file, a mapping, a lock or a gate does to the outside; `open`, `read`, `size`, `map` change nothing.
DISK_CALLS = frozenset(
    [
        "make_directory",
        "sync_directory",
        "create",
        "rename",
        "unlink",
        "lock",
        "lock_shared",
        "has_readers",
        "write",
        "allocate",
        "zero",
        "sync",
        "populate",
        "rewrite",
        "stored",
        "release",
    ]
)
# What our own rooms offer to publish a thing, to make it durable, or to let go of it.
TURNING_POINTS = frozenset(
    [
        "store_again",
        "restate",
        "publish",
        "write_both",
        "link",
        "seal",
        "checkpoint_published",
        "drop_capture",
        "name_slots",
        "remove_images",
        "make_durable",
        "give_back",
        "quiesce",
        "acknowledge",
        "ask_for_sync",
        "show_durable",
    ]
)
# Attributes of these names that are no calls of a disk: mutexes, and buffers.
NOT_OF_A_DISK = re.compile(r"(.*\.)?(_?state|_pins|tail|self)\.lock|self\._segments\.pop\(number\)\[0\]\.release\(\)")
ROOMS_WITHOUT_STEPS = frozenset({"disk", "testing", "cli"})  # implement the disk, or stand on public names

FILES_WITHOUT_STEPS = frozenset({"log/unlogged.py"})  # keeps nothing

WORDS = frozenset(["RESERVED", "PUBLISHED", "DURABLE", "STATE", "_RESERVED", "_PUBLISHED", "_DURABLE", "_STATE"])
MAPPED = re.compile(r"(.*\.)?(view|segment|_matrix|array|goal|block)")

# Where recovery decides that something is damaged, or another's. What `verify` reports and refuses not is none of it.
REFUSING = re.compile(r"(recovery/(tail|recover)|checkpoint/(load|image|control)|format/image|opening)\.py|log/.*\.py")
REFUSALS = re.compile(
    r"(WalCorruption|SegmentMissing|HeaderCorruption|Consistency|FormatVersion|ForeignDirectory|ShortImage)Error|_Unusable"
    r"|.*\.mark"
)
IMAGES = re.compile(r"(checkpoint|format)/.*")  # of an image, what is wrong with it is first a `ValueError`

C_SOURCES = ("kernel/frame.h", "kernel/cursor.h", "disk/_sync.c")
C_STORES = re.compile(r"__atomic_(store|compare_exchange)_n\(|\bmsync\(|memcpy\(range->at|mm_store_commit\(range")


@dataclass(frozen=True)
class Step:
    """One step: its name, and the places in the source that take it."""

    name: str
    places: tuple[str, ...]


def places(package: Path = PACKAGE) -> set[str]:
    """Returns every place of the package that takes a step of the protocol: ``file function: source``."""
    found: set[str] = set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.split("/")[0] not in ROOMS_WITHOUT_STEPS and name not in FILES_WITHOUT_STEPS:
            found |= {f"{name} {place}" for place in places_in(path.read_text("utf-8"), name)}
    for name in C_SOURCES:
        found |= {f"{name} {place}" for place in places_in_c((package / name).read_text("utf-8"))}
    return found


def places_in(source: str, name: str = "") -> set[str]:
    """Returns the places of a Python source: ``function: source``; what it refuses too, if ``name`` is such a file."""
    return set(_walk(ast.parse(source), (), name))


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _walk(node: ast.AST, scope: tuple[str, ...], name: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = (*scope, child.name) if isinstance(child, _SCOPES) else scope
        text = _place(child, node) or (_refusal(child, node, name) if REFUSING.fullmatch(name) else None)
        if text is not None:
            yield f"{'.'.join(inner) or 'module'}: {text}"
        yield from _walk(child, inner, name)


def _place(node: ast.AST, parent: ast.AST) -> str | None:
    """Returns the source of a node that calls or stores; None for any other."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) if name in DISK_CALLS | TURNING_POINTS:
            text = f"{ast.unparse(node.func)}({', '.join(map(_short, [*node.args, *node.keywords]))})"
            return None if NOT_OF_A_DISK.fullmatch(text) else text
        case ast.Call(func=ast.Name("_copy")):  # the twin's store into a mapping
            return ast.unparse(node)
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in DISK_CALLS | {"make_durable"}:
            text = ast.unparse(node)  # a method handed on, to be called by another
            called = isinstance(parent, ast.Call) and parent.func is node
            return None if called or NOT_OF_A_DISK.fullmatch(text) else text
        case ast.Subscript(ctx=ast.Store(), value=value, slice=index):
            named = {part.id for part in ast.walk(index) if isinstance(part, ast.Name)}
            named |= {part.attr for part in ast.walk(index) if isinstance(part, ast.Attribute)}
            stores = named & WORDS or MAPPED.fullmatch(ast.unparse(value))
            return f"{ast.unparse(node)} =" if stores else None
    return None


def _short(argument: ast.expr | ast.keyword) -> str:
    """Returns an argument as it stands, but for its value where it is named."""
    if not isinstance(argument, ast.keyword):
        return ast.unparse(argument)
    return f"{argument.arg}=" if argument.arg else f"**{ast.unparse(argument.value)}"


def _refusal(node: ast.AST, parent: ast.AST, name: str) -> str | None:
    """Returns on what condition a node refuses, and with what; None for any other node."""
    if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
        return None
    error = ast.unparse(node.exc.func)
    if not REFUSALS.fullmatch(error) and not (error == "ValueError" and IMAGES.fullmatch(name)):
        return None
    condition = f"if {ast.unparse(parent.test)}: " if isinstance(parent, ast.If) and node in parent.body else ""
    return f"{condition}raise {error}"


def places_in_c(source: str) -> set[str]:
    """Returns the lines of a C source that store to a word or a frame, or sync: ``function: line``."""
    found: set[str] = set()
    function = "module"
    for line in source.splitlines():
        if match := re.match(r"static [^=;]*?\b(\w+)\(", line):
            function = match[1]
        if C_STORES.search(line) and "GATE_NS" not in line and not line.startswith(("#", "static")):
            found.add(f"{function}: {line.strip()}")
    return found


STEPS = (
    # -- append: reserve, copy, publish (twin, then compiled)
    Step(
        "kernel.reserve",
        (
            "kernel/reference.py Cursor._log: words[_RESERVED] =",
            (
                "kernel/cursor.h mm_reserve: } else if (__atomic_compare_exchange_n(mm_word(cursor, MM_RESERVED), "
                "&lsn, at + length, false,"
            ),
        ),
    ),
    Step(
        "kernel.copy",
        (
            "kernel/reference.py Cursor._log: _copy(segment, body, payload)",
            "kernel/reference.py Cursor._log: _copy(segment, body + sizes[0], tail)",
        ),
    ),
    Step(
        "kernel.header",
        (
            "kernel/reference.py Cursor._log: segment[start + 8:body] =",
            "kernel/cursor.h mm_publish: memcpy(range->at + 8, (const uint8_t *)header + 8, sizeof *header - 8);",
        ),
    ),
    Step(
        "kernel.commit_word",
        (
            "kernel/reference.py Cursor._log: segment[start:start + 8] =",
            "kernel/cursor.h mm_publish: mm_store_commit(range->at, header->commit);",
            "kernel/frame.h mm_store_commit: __atomic_store_n((uint64_t *)(void *)frame, word, MM_ORDER_PUBLISH);",
        ),
    ),
    Step(
        "kernel.pad",
        (
            "kernel/reference.py Cursor._pad: segment[start + 8:start + HEADER_BYTES] =",
            "kernel/reference.py Cursor._pad: segment[start:start + 8] =",
        ),
    ),
    Step(
        "kernel.published",
        (
            "kernel/reference.py Cursor._log: words[_PUBLISHED] =",
            "kernel/reference.py Cursor.advance: words[_PUBLISHED] =",
            (
                "kernel/cursor.h mm_advance: if (__atomic_compare_exchange_n(mm_word(cursor, MM_PUBLISHED), "
                "&before, lsn, false, __ATOMIC_SEQ_CST,"
            ),
        ),
    ),
    Step(
        "kernel.row",
        ("kernel/reference.py Cursor._log: _copy(self._matrix, row * self._row_bytes, segment[body:body + sizes[0]])",),
    ),
    Step(
        "kernel.start",
        (
            "kernel/reference.py Cursor.start: self._words[_DURABLE] =",
            "kernel/reference.py Cursor.start: self._words[_PUBLISHED] =",
            "kernel/reference.py Cursor.start: self._words[_RESERVED] =",
        ),
    ),
    Step(
        "kernel.ring",
        (
            (
                "kernel/cursor.h mm_attach: __atomic_store_n(mm_word(cursor, slot + 8), "
                "(uint64_t)(uintptr_t)segment, __ATOMIC_RELAXED);"
            ),
            "kernel/cursor.h mm_attach: __atomic_store_n(mm_word(cursor, slot + 16), salt, __ATOMIC_RELAXED);",
            "kernel/cursor.h mm_attach: __atomic_store_n(mm_word(cursor, slot), number + 1, __ATOMIC_RELEASE);",
            "kernel/cursor.h mm_detach: __atomic_store_n(mm_word(cursor, slot), 0, __ATOMIC_SEQ_CST);",
            "kernel/cursor.h mm_detach: __atomic_store_n(mm_word(cursor, slot + 8), 0, __ATOMIC_RELAXED);",
            "kernel/cursor.h mm_detach: __atomic_store_n(mm_word(cursor, slot + 16), 0, __ATOMIC_RELAXED);",
        ),
    ),
    Step(
        "kernel.gather", ("kernel/reference.py gather: _copy(goal, row * stride, origin[offset:offset + row_bytes])",)
    ),
    Step("frame.durable_lsn", ()),
    # -- what makes a frame valid: `_check` of the twin, `mm_check` of the compiled kernel, `format/frame.py`
    Step("check.commit_word", ()),
    Step("check.checksum", ()),
    Step("check.length", ()),
    Step("check.place", ()),
    Step("check.salt", ()),
    # -- the sync
    Step(
        "gate.sync",
        (
            "log/gate.py PythonGate._sync_published: self._mapping_of(number).sync(offset, length)",
            (
                "disk/_sync.c sync_segment: return msync((void *)(uintptr_t)(address + first), (size_t)(stop - "
                "first), MS_SYNC) == 0 ? 0 : errno;"
            ),
        ),
    ),
    Step(
        "gate.durable",
        (
            "log/gate.py PythonGate._sync_published: self._u64[words.DURABLE // 8] =",
            "disk/_sync.c sync_published: __atomic_store_n(u64_at(gate, DURABLE), published, __ATOMIC_RELEASE);",
        ),
    ),
    Step(
        "gate.poison",
        (
            "log/gate.py PythonGate._poison: self._u8[words.STATE] =",
            "disk/_sync.c poison: __atomic_store_n(u32_at(gate, GATE_ERRNO), (uint32_t)code, __ATOMIC_RELAXED);",
            (
                "disk/_sync.c poison: __atomic_store_n(gate->words + STATE, STATE_POISONED, __ATOMIC_RELEASE); /* "
                "the bit has a byte to itself */"
            ),
        ),
    ),
    Step(
        "gate.role",
        (
            (
                "disk/_sync.c take_role: return __atomic_compare_exchange_n(u32_at(gate, GATE_ROLE), &nobody, 1, "
                "0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);"
            ),
            "disk/_sync.c release_role: __atomic_store_n(u32_at(gate, GATE_ROLE), 0, __ATOMIC_RELEASE);",
        ),
    ),
    Step(
        "log.make_durable",
        ("log/log.py Log.make_durable: self.gate.sync", "log/log.py Log.wait_durable: self.gate.sync"),
    ),
    Step(
        "write.durable",
        (
            "log/log.py Log.acknowledge: self.make_durable(lsn)",
            "manager.py WalManager.log_insert: self._log.acknowledge(lsn, durable)",
            "manager.py WalManager._log_row: self._log.acknowledge(lsn, durable)",
            "manager.py WalManager._log_named: self._log.acknowledge(lsn, durable)",
            "manager.py WalManager.log_batch: self._log.acknowledge(lsn, durable)",
            "transaction.py WalTransaction.commit: self._log.acknowledge(lsn, durable)",
            "manager.py WalManager.sync: self._log.make_durable(self._log.cursor.published)",
            "store.py VectorStore._make_durable: self._log.acknowledge(lsn, durable)",
        ),
    ),
    Step(
        "write.asked",
        (
            "log/log.py Log.acknowledge: self.ask_for_sync()",
            "aio/handle.py AsyncHandle._acknowledged: self._log_in_use().ask_for_sync()",
            "aio/waiting.py Waiting.until: self._log.ask_for_sync()",
            "log/receipt.py Callbacks.add: log.ask_for_sync()",
        ),
    ),
    Step("receipt.told", ()),
    Step("log.interval_sync", ("log/log.py Log._sync_due: self.gate.sync(published)",)),
    Step("log.idle_mark", ("log/log.py Log._mark_idle: self.gate.sync(self._idle_lsn)",)),
    Step("log.settle", ()),
    Step("log.poison", ("log/log.py Log._end_writing: self._block[STATE] =",)),
    Step("log.closed", ("log/log.py Log.close: self._block[STATE + 1] =",)),
    Step("log.forked", ("log/log.py Log._forked: self._block[STATE + 2] =",)),
    Step("log.commit", ()),
    Step("log.transaction_kept", ()),
    Step("transaction.whole", ()),
    Step("transaction.seen", ()),
    Step("two_phase.prepare", ("store.py VectorStore._prepare: log.make_durable(lsn)",)),
    Step("two_phase.in_doubt", ()),
    Step("two_phase.pin", ()),
    Step("two_phase.held", ()),
    Step("two_phase.end", ()),
    Step("two_phase.decide", ()),
    Step("two_phase.tell", ()),
    Step("two_phase.forget", ("two_phase.py TwoPhaseCommit._release: self._wal.release(needed_lsn)",)),
    Step(
        "log.release",
        ("log/log.py Log.release: self.make_durable(lsn)", "manager.py WalManager.release: self._log.release(lsn)"),
    ),
    # -- the log, begun and ended
    Step(
        "log.clean_mark_cleared",
        ("log/log.py Log.__init__: self.control.write_both(clean=, end_lsn=, owned=, incarnation=, durable_lsn=)",),
    ),
    Step("log.finish_sync", ("log/log.py Log._finish: self.gate.sync(end_lsn)",)),
    Step("log.clean_mark", ("log/log.py Log._finish: self.control.write_both(clean=, end_lsn=, durable_lsn=)",)),
    Step("log.idle_noted", ("log/keeper.py Keeper._note_idle: self._control.write_both(durable_lsn=)",)),
    Step("log.unlock", ("log/log.py Log.close: self._lock.release()",)),
    Step(
        "populate",
        (
            "log/log.py Log._first_segment: segment.mapping.populate(0, self.segment_bytes)",
            "log/keeper.py Keeper._populate: self._attached[number].mapping.populate(0, self._segment_bytes)",
            "log/segment.py Segment._put: self.mapping.populate(offset, len(content))",
            "state/matrix.py Matrix._work_ahead: self._mapping.populate(start, end - start)",
            "state/matrix.py Matrix.prepare: self._mapping.populate(start, length)",
        ),
    ),
    # -- a new segment
    Step("segment.create", ("log/segment.py prepare_segment: disk.create(path)",)),
    Step("segment.salt", ()),
    Step(
        "segment.blocks",
        ("log/segment.py _reserve_blocks: file.allocate(size)", "log/segment.py _reserve_blocks: file.zero(0, size)"),
    ),
    Step("segment.blocks_given_back", ("log/segment.py _reserve_blocks: disk.unlink(path)",)),
    Step("segment.header", ("log/segment.py prepare_segment: file.write(offset, header)",)),
    Step(
        "segment.link_sector",
        ("log/segment.py prepare_segment: file.write(LINK_OFFSET, link.ljust(SECTOR_BYTES, b'\\x00'))",),
    ),
    Step(
        "segment.footer_sector",
        ("log/segment.py prepare_segment: file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))",),
    ),
    Step("segment.sync", ("log/segment.py prepare_segment: file.sync()",)),
    Step("segment.rename", ("log/segment.py prepare_segment: disk.rename(path, f'{wal_dir}/{segment_name(number)}')",)),
    Step("segment.directory", ("log/segment.py prepare_segment: disk.sync_directory(wal_dir)",)),
    # -- seal and link
    Step("keeper.ring_sync", ("log/keeper.py Keeper.seal_behind: self._gate.sync(self._cursor.published)",)),
    Step("keeper.seal", ("log/keeper.py Keeper._seal: segment.seal(segment.scan(self._kernel), end_lsn)",)),
    Step("keeper.link", ("log/keeper.py Keeper._seal: following.link(predecessor)",)),
    Step("seal.store", ("log/segment.py Segment._put: self.view[offset:offset + len(content)] =",)),
    Step("seal.sync", ("log/segment.py Segment._put: self.mapping.sync(offset, len(content))",)),
    # -- retirement
    Step("retire.oldest_needed", ()),
    Step(
        "retire.control",
        ("log/keeper.py Keeper._retire: self._control.write_both(oldest_lsn=, released_lsn=, durable_lsn=)",),
    ),
    Step("retire.readers", ("log/keeper.py Keeper._retire: self._disk.has_readers(self._control.path)",)),
    Step("retire.unlink", ("log/keeper.py Keeper._retire: self._disk.unlink(path)",)),
    Step("retire.rename", ("log/keeper.py Keeper._retire: self._disk.rename(path, f'{self._wal_dir}/{spare}')",)),
    Step("retire.directory", ("log/keeper.py Keeper._retire: self._disk.sync_directory(self._wal_dir)",)),
    # -- a control file
    Step("control.leftover", ("log/control_file.py publish_control: disk.unlink(temporary)",)),
    Step(
        "control.create",
        (
            "log/control_file.py publish_control: disk.create(temporary)",
            "log/control_file.py publish_control: file.write(0, slot.ljust(CONTROL_BYTES, b'\\x00'))",
            "log/control_file.py publish_control: disk.rename(temporary, path)",
        ),
    ),
    Step("control.create_sync", ("log/control_file.py publish_control: file.sync()",)),
    Step("control.create_directory", ("log/control_file.py publish_control: disk.sync_directory(directory)",)),
    Step("control.slot", ("log/control_file.py store_slot: file.write(SLOT_OFFSETS[index], slot)",)),
    Step("control.slot_sync", ("log/control_file.py store_slot: file.sync()",)),
    Step("control.both", ("log/control.py LogControl.write_both: self.write(**changes)",)),
    # -- one writer, some readers
    Step("open.directory", ("recovery/log_opening.py prepare_directories: disk.make_directory(path)",)),
    Step("open.lock", ("recovery/log_opening.py lock_directory: disk.lock(f'{wal_dir}/lock')",)),
    Step("open.unlock", ("recovery/log_opening.py open_log: lock.release()", "opening.py _open_store: lock.release()")),
    Step("open.wal_directory", ("recovery/log_opening.py open_identity: disk.sync_directory(wal_dir)",)),
    Step(
        "read.lock",
        (
            "recovery/read_only.py lock_for_reading: disk.lock_shared(control)",
            "manager.py ReadOnlyWal.__init__: disk.lock_shared(control)",
            "recovery/verify.py _shared_locks: disk.lock_shared(f'{directory}/{CONTROL_NAME}')",
            "recovery/follow.py reading_beside: disk.lock_shared(f'{wal_dir}/{CONTROL_NAME}')",
        ),
    ),
    Step("read.lock_data", ("recovery/read_only.py lock_for_reading: disk.lock_shared(data)",)),
    Step(
        "read.unlock",
        (
            "opening.py _open_read_only: lock.release()",
            "opening.py _open_read_only.close: lock.release()",
            "recovery/read_only.py lock_for_reading: locks[0].release()",
            "manager.py ReadOnlyWal._unlock: self._lock.release()",
            "recovery/verify.py verify_directory: lock.release()",
            "recovery/follow.py reading_beside: lock.release()",
        ),
    ),
    # -- recovery: what it refuses
    Step("check.names", ("log/control_file.py open_to_read: raise NAME.verdict(name=name, kind='other').mark",)),
    Step("check.layout", ()),
    Step(
        "check.slots",
        (
            "log/control_file.py judge_slots: if verdict.error is not None: raise verdict.mark",
            "checkpoint/load.py load_checkpoint: raise CHECKPOINT.verdict(newer='damaged', older='damaged').mark",
        ),
    ),
    Step(
        "check.segment_header",
        (
            "log/segment.py inspect_file: if verdict.error is not None: raise verdict.mark",
            "log/segment.py identify_file: raise HeaderCorruptionError",
        ),
    ),
    Step("segment.bound", ()),
    Step("check.oldest", ("recovery/tail.py _find_oldest: if verdict.error is not None: raise verdict.mark",)),
    Step("check.mark", ("recovery/tail.py _take_mark: if verdict.error is not None: raise verdict.mark",)),
    Step("check.sealed", ("recovery/tail.py _follow_sealed: if verdict.error is not None: raise verdict.mark",)),
    Step("check.chain", ("recovery/tail.py _joins: if verdict.error is not None: raise verdict.mark",)),
    Step("check.look_ahead", ("recovery/tail.py _look_ahead: raise WalCorruptionError",)),
    Step(
        "check.end",
        (
            "recovery/tail.py _check_end: if verdict.label == 'end-missing': raise verdict.mark",
            "recovery/tail.py _check_end: if verdict.label == 'end-damaged': raise verdict.mark",
        ),
    ),
    Step(
        "check.index",
        (
            "log/reader.py checked_extent: if stop != end_lsn: raise ENTRY.verdict(checksum='damaged').mark",
            "log/reader.py _inspect: if info is None: raise SegmentMissingError",
        ),
    ),
    Step(
        "check.members",
        (
            "log/reader.py _check_members: if rows != commit.rows: raise WalCorruptionError",
            (
                "recovery/recover.py _check_members: if fields is None or (fields['members_crc'], "
                "int(frame['rows'])) != (members_crc, members): raise ENTRY.verdict(checksum='sound', "
                "content='half').mark"
            ),
        ),
    ),
    Step(
        "check.entry",
        (
            "log/reader.py decode_entry: raise ENTRY.verdict(checksum='sound', content='contradicts').mark",
            "recovery/recover.py _refuse: raise _CONTRADICTS.mark",
            "recovery/recover.py _undecided: raise _CONTRADICTS.mark",
            "recovery/recover.py _batch_of: raise _CONTRADICTS.mark",
            (
                "recovery/recover.py _refuse: if found != (state.matrix.dtype, rows * state.matrix.row_bytes): raise "
                "ENTRY.verdict(checksum='sound', content='shape').mark"
            ),
        ),
    ),
    Step(
        "check.redo",
        (
            (
                "recovery/recover.py check_reaches: if control.oldest_lsn > pinned_lsn: raise "
                "CHECKPOINT.verdict(newer='whole', log='behind').mark"
            ),
            "recovery/recover.py load_newest: if verdict.error is not None: raise verdict.mark",
            (
                "opening.py _open_store: if data is not None and (not disk.exists(f'{wal_dir}/{CONTROL_NAME}')): "
                "raise DIRECTORY.verdict(log='missing', data='same').mark"
            ),
        ),
    ),
    Step(
        "check.alike",
        (
            "recovery/recover.py _check_alike: if not alike: raise ConsistencyError",
            "recovery/recover.py dimension_of: if identity.dimension not in (0, from_log): raise ConsistencyError",
        ),
    ),
    Step(
        "check.store",
        (
            (
                "checkpoint/load.py check_identity: if store_id is not None and store_id != identity.store_id: "
                "raise DIRECTORY.verdict(opened='store', log='owned', data='other-store').mark"
            ),
            (
                "checkpoint/load.py check_identity: if history_id is not None and history_id != "
                "identity.history_id: raise DIRECTORY.verdict(opened='store', log='owned', "
                "data='other-history').mark"
            ),
        ),
    ),
    Step(
        "check.image",
        (
            "checkpoint/image.py read_sections: if file.size() < image_bytes: raise ShortImageError",
            "checkpoint/image.py read_sections: if place.previous_crc != image_crc: raise ValueError",
            "checkpoint/image.py read_sections: raise ValueError",
            "checkpoint/load.py _sections: raise _Unusable",
            "format/image.py section_header: if fields is None: raise ValueError",
            "format/image.py section_header: if fields[name] != getattr(place, name): raise ValueError",
            "format/image.py section_header: if fields['kind'] != (DELTA if place.offset else BASE): raise ValueError",
            (
                "format/image.py section_header: if fields['section_bytes'] != expected or expected > room: raise "
                "ValueError"
            ),
            (
                "format/image.py decode_columns: if len(content) != fields['section_bytes'] - HEADER_BYTES: raise "
                "ValueError"
            ),
            "format/image.py decode_columns: if zlib.crc32(content) != fields['columns_crc']: raise ValueError",
        ),
    ),
    Step(
        "check.version", ("format/image.py section_header: if fields['version'] != FORMAT_VERSION: raise ValueError",)
    ),
    Step(
        "check.slot",
        (
            "checkpoint/load.py content_of: if last[name] != slot.fields[name]: raise ValueError",
            "checkpoint/load.py content_of: if slot.rows_high * slot.row_bytes > matrix_bytes: raise _Unusable",
            "checkpoint/load.py content_of: raise _Unusable",
            "checkpoint/load.py _size: if not disk.exists(path): raise MATRIX.verdict(file='missing').mark",
        ),
    ),
    Step(
        "check.columns",
        (
            (
                "checkpoint/load.py _check_content: if not len(content.directory) == len(content.rows) == "
                "slot.live_rows: raise ValueError"
            ),
            (
                "checkpoint/load.py _check_rows: if len(used) and (not (used.min() >= 0 and used.max() < high)): "
                "raise ValueError"
            ),
            "checkpoint/load.py _check_rows: if int(taken.sum()) != len(used): raise ValueError",
            (
                "checkpoint/load.py _check_content: if len(content.lsns) and int(content.lsns.max()) > "
                "slot.redo_lsn: raise ValueError"
            ),
        ),
    ),
    # -- recovery: what it writes
    Step(
        "tail.control_again",
        (
            "recovery/tail.py repair: judged.control.store_again()",
            "recovery/salvage.py Salvage.tail: self.control.store_again()",
        ),
    ),
    Step("tail.rewrite", ("recovery/tail.py _store_again: segment.mapping.rewrite(start, end - start)",)),
    Step("tail.zero", ("recovery/tail.py _store_again: segment.view[offset:offset + size] =",)),
    Step("tail.sync", ("recovery/tail.py _store_again: segment.mapping.sync(start, stop - start)",)),
    Step(
        "tail.seal_again",
        (
            "recovery/tail.py _seal_again: segment.seal(frames, info.end_lsn)",
            "recovery/tail.py _seal_again: segment.mapping.rewrite(offset, FOOTER_BYTES)",
            "recovery/tail.py _seal_again: segment.mapping.sync(offset, FOOTER_BYTES)",
        ),
    ),
    Step("tail.link", ("recovery/tail.py repair: segment.link(predecessor)",)),
    Step(
        "tail.link_again",
        (
            "log/segment.py Segment.store_link_again: self.mapping.rewrite(LINK_OFFSET, SECTOR_BYTES)",
            "log/segment.py Segment.store_link_again: self.mapping.sync(LINK_OFFSET, SECTOR_BYTES)",
        ),
    ),
    Step("tail.seal", ("recovery/tail.py repair: segment.seal(part.frames, part.end_lsn)",)),
    Step("tail.readers", ("recovery/tail.py _clear: disk.has_readers(judged.control.path)",)),
    Step("tail.unlink_spare", ("recovery/tail.py _clear: disk.unlink(f'{wal_dir}/{name}')",)),
    Step("tail.unlink", ("recovery/tail.py _clear: disk.unlink(path)",)),
    Step("tail.rename", ("recovery/tail.py _clear: disk.rename(path, f'{wal_dir}/{spares[-1]}')",)),
    Step("tail.directory", ("recovery/tail.py _clear: disk.sync_directory(wal_dir)",)),
    Step("recover.restate", ("opening.py _open_store: loaded.control.restate()",)),
    Step(
        "recover.data_directory",
        (
            "opening.py _open_store: disk.sync_directory(data_dir)",
            "checkpoint/control.py DataControl.restate: self._disk.sync_directory(self.path.rpartition('/')[0])",
        ),
    ),
    Step("recover.copy", ("recovery/recover.py copy_winners: matrix.array[rows[kept]] =",)),
    Step(
        "recover.stored",
        (
            "recovery/recover.py copy_winners: matrix.stored(rows)",
            "state/matrix.py Matrix.stored: self._mapping.stored(start, length)",
        ),
    ),
    # -- the matrix
    Step(
        "matrix.create",
        (
            (
                "checkpoint/load.py create_data: Matrix.create(disk, f'{data_dir}/{MATRIX_NAME}', "
                "identity.dimension, identity.dtype)"
            ),
            "state/matrix.py Matrix.create: disk.create(path)",
        ),
    ),
    Step("matrix.name", ("state/matrix.py Matrix.create: disk.sync_directory(path.rpartition('/')[0])",)),
    Step("matrix.allocate", ("state/matrix.py Matrix._allocate: self._file.allocate(size)",)),
    Step("matrix.holes", ("state/matrix.py Matrix._fill_holes: self._file.allocate(size)",)),
    Step("matrix.sync", ("state/matrix.py Matrix.sync: self._file.sync()",)),
    # -- the checkpoint
    Step("checkpoint.quiesce", ("opening.py _serve.checkpointer_of: opened[0].quiesce()",)),
    Step("checkpoint.log_durable", ("opening.py _serve.checkpointer_of: log.make_durable",)),
    Step("checkpoint.first", ("opening.py _serve.begin: log.make_durable(redo_lsn)",)),
    Step("checkpoint.matrix_sync", ("checkpoint/checkpoint.py Checkpointer._take: self._matrix.sync",)),
    Step("checkpoint.final", ()),
    Step("image.create", ("checkpoint/image.py write_section: disk.create(path)",)),
    Step("image.allocate", ("checkpoint/image.py write_section: file.allocate(place.offset + section.section_bytes)",)),
    Step("image.write", ("checkpoint/image.py write_section: file.write(at, part)",)),
    Step("image.given_back", ("checkpoint/image.py write_section: disk.unlink(path)",)),
    Step("image.sync", ("checkpoint/checkpoint.py Checkpointer._sync_image: image.file.sync()",)),
    Step(
        "image.directory",
        ("checkpoint/checkpoint.py Checkpointer._sync_image: self._disk.sync_directory(self._data_dir)",),
    ),
    Step(
        "checkpoint.publish",
        (
            (
                "checkpoint/checkpoint.py Checkpointer._publish: self._control.publish(redo_lsn=, pinned_lsn=, "
                "checkpoint_ns=, rows_high=, live_rows=, image_number=, image_bytes=, image_crc=)"
            ),
        ),
    ),
    Step("image.remove", ("checkpoint/image.py remove_images: disk.unlink(image_path(data_dir, number))",)),
    Step("image.remove_directory", ("checkpoint/image.py remove_images: disk.sync_directory(data_dir)",)),
    Step("checkpoint.release_log", ("opening.py _published: log.release(needed_lsn)",)),
    Step("opening.release_log", ("opening.py _serve.checkpointer_of: log.release(data.needed_lsn)",)),
    # -- rows and who sees them
    Step(
        "state.pins",
        (
            "state/state.py State.__init__: self.name_slots([applied_lsn] if durable else [])",
            "state/state.py load_state: state.name_slots(slots)",
        ),
    ),
    Step(
        "state.published",
        (
            "checkpoint/checkpoint.py Checkpointer._publish: self._state.checkpoint_published(capture)",
            "state/state.py State.checkpoint_published: self._pins.release(lsn)",
        ),
    ),
    Step(
        "state.capture",
        (
            "checkpoint/checkpoint.py Checkpointer._give_up: self._state.drop_capture(capture)",
            "state/state.py State.drop_capture: self._pins.release(capture.applied_lsn)",
        ),
    ),
    Step(
        "state.released",
        (
            "state/state.py State.export: self._pins.release",
            "state/state.py State.name_slots: self._pins.release(lsn)",
            "state/state.py View.close: self._pins.release(self.lsn)",
        ),
    ),
    Step("state.limbo", ()),
    Step("store.turn", ()),
    Step("store.settled", ("store.py VectorStore.settle: self.sync()",)),
    Step(
        "store.shown",
        (
            "log/log.py Log._tell_durable: self.show_durable()",
            "log/log.py Log._await: self.show_durable()",
        ),
    ),
    Step("store.applied", ()),
    Step(
        "store.give_back",
        (
            "store.py VectorStore._log_row: state.give_back(row)",
            (
                "store.py VectorStore._log_batches.write: state.give_back(*(row for rows in taken for row in rows if "
                "row != NO_ROW))"
            ),
        ),
    ),
)
