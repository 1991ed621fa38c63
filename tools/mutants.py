"""The breakages of the durability protocol that must be found, and those that were tried and cannot cost anything.

Each mutant names the steps of `protocol.py` that it breaks, what a user would lose, and what finds it; `mutate.py` runs
them. Each equivalent names the defence that stands behind the step, and a test that holds that defence.

A mutant is one edit, or two where a step is guarded twice and only both together cost something.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """A text that occurs once in a file of the package, and what becomes of it."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """One breakage: the steps it breaks, what a user would lose, and what finds it (see `mutate.py`)."""

    name: str
    steps: tuple[str, ...]
    loses: str
    edits: tuple[Edit, ...]
    by: str = "log-py"
    seed: int = 1  # of the stories that find it soon


@dataclass(frozen=True)
class Equivalent:
    """A breakage that costs nothing: why, what it survives, and the test that holds the defence behind it."""

    name: str
    steps: tuple[str, ...]
    defence: str
    test: str
    edits: tuple[Edit, ...]
    by: str = "log-py"


def _one(file: str, old: str, new: str) -> tuple[Edit, ...]:
    return (Edit(file, old, new),)


_STEPS = "tests/crash/test_protocol_steps.py::"
_TAIL = "tests/recovery/test_tail.py::"
_RECOVER = "tests/recovery/test_recover.py::"
_LOAD = "tests/checkpoint/test_load.py::"
_GATE = "tests/disk/test_gate.py::"
_SCAN = "tests/kernel/test_scan.py::"
_PUBLISH = "tests/kernel/test_publish.py::"
_APPEND = "tests/kernel/test_append.py::"
_DURABILITY = "tests/log/test_durability.py::"
_SEGMENTS = "tests/log/test_segments.py::"
_STATE = "tests/state/test_state.py::"
_TRANSACTIONS = "tests/manager/test_transactions.py::"
_AIO = "tests/aio/test_log.py::"
_RECEIPTS = "tests/log/test_receipts.py::"
_STORE_RECEIPTS = "tests/store/test_receipts.py::"
_AIO_STORE = "tests/aio/test_store.py::"
_STORE_TRANSACTIONS = "tests/store/test_transactions.py::"
_PREPARED = "tests/store/test_prepared.py::"
_INTERRUPTS = "tests/store/test_interrupts.py::"
_COORDINATOR = "tests/two_phase/test_two_phase.py::"
_TWO_PHASE = "tests/crash/test_two_phase_crash.py::"

MUTANTS = [
    # -- the sync of the log, and `durable`
    Mutant(
        "acknowledged_without_sync",
        ("gate.sync",),
        "every write acknowledged since the last write-back",
        _one("log/gate.py", "self._mapping_of(number).sync(offset, length)", "self._mapping_of(number)"),
    ),
    Mutant(
        "sync_one_page_short",
        ("gate.sync",),
        "acknowledged entries in the last page of a sync",
        _one(
            "log/gate.py",
            "stop = min(-(-(end - base) // PAGE_BYTES) * PAGE_BYTES, segment_bytes)",
            "stop = max(offset, (end - base) // PAGE_BYTES * PAGE_BYTES)",
        ),
    ),
    Mutant(
        "old_segment_left_out_of_the_sync",
        ("gate.sync",),
        "the end of the old segment when a sync spans a rotation",
        _one(
            "log/gate.py",
            "for number in range(durable // segment_bytes, -(-published // segment_bytes)):",
            "for number in range((published - 1) // segment_bytes, -(-published // segment_bytes)):",
        ),
    ),
    Mutant(
        "durable_moves_before_the_sync",
        ("gate.durable",),
        "entries whose durability was reported while the sync was still running",
        _one(
            "log/gate.py",
            "started_ns = self._disk.monotonic_ns()",
            "started_ns, self._u64[words.DURABLE // 8] = self._disk.monotonic_ns(), published",
        ),
    ),
    Mutant(
        "durable_moves_after_a_failed_sync",
        ("gate.durable",),
        "entries reported durable although their sync failed",
        _one(
            "log/gate.py", "            self._poison(error)\n            return\n", "            self._poison(error)\n"
        ),
    ),
    Mutant(
        "durable_covers_what_came_during_the_sync",
        ("gate.durable",),
        "entries that were published while a sync ran, and which it did not cover",
        _one(
            "log/gate.py",
            "self._u64[words.DURABLE // 8] = published",
            "self._u64[words.DURABLE // 8] = self._published",
        ),
        "tests/crash/test_protocol_steps.py::test_sync_of_the_twin_covers_what_was_published_when_it_began",
    ),
    Mutant(
        "failed_sync_forgotten",
        ("gate.poison",),
        "entries acknowledged by a second sync of pages that the first had failed to write",
        _one("log/gate.py", "self._u8[words.STATE] = words.STATE_POISONED", "pass"),
        _STEPS + "test_sync_that_failed_is_not_tried_again_by_the_twin[py]",
    ),
    Mutant(
        "acknowledged_without_sync_c",
        ("gate.sync",),
        "every write acknowledged since the last write-back",
        _one(
            "disk/_sync.c",
            "return msync((void *)(uintptr_t)(address + first), (size_t)(stop - first), MS_SYNC) == 0 ? 0 : errno;",
            "return stop > first ? 0 : EIO;",
        ),
        "tests/disk/test_gate.py::test_failed_sync_poisons_and_everybody_gets_its_errno[c]",
    ),
    Mutant(
        "sync_one_page_short_c",
        ("gate.sync",),
        "acknowledged entries in the last page of a sync",
        _one(
            "disk/_sync.c",
            "uint64_t stop = (end - base + page - 1) / page * page;",
            "uint64_t stop = (end - base) / page * page > first ? (end - base) / page * page : first;",
        ),
        "tests/disk/test_gate.py::test_part_of_a_page_is_synced_as_a_page[c]",
    ),
    Mutant(
        "old_segment_left_out_of_the_sync_c",
        ("gate.sync",),
        "the end of the old segment when a sync spans a rotation",
        _one(
            "disk/_sync.c",
            "for (uint64_t number = durable / size; number * size < published; number++) {",
            "for (uint64_t number = (published - 1) / size; number * size < published; number++) {",
        ),
        "tests/disk/test_gate.py::test_sync_spans_segments_and_leaves_out_what_is_between[c]",
    ),
    Mutant(
        "durable_moves_after_a_failed_sync_c",
        ("gate.durable",),
        "entries reported durable although their sync failed",
        _one("disk/_sync.c", "        poison(gate, code);\n        return;\n", "        poison(gate, code);\n"),
        "tests/disk/test_gate.py::test_failed_sync_poisons_and_everybody_gets_its_errno[c]",
    ),
    Mutant(
        "durable_covers_what_came_during_the_sync_c",
        ("gate.durable",),
        "entries that were published while a sync ran, and which it did not cover",
        _one(
            "disk/_sync.c",
            "__atomic_store_n(u64_at(gate, DURABLE), published, __ATOMIC_RELEASE);",
            "__atomic_store_n(u64_at(gate, DURABLE), load_acquire(gate, PUBLISHED), __ATOMIC_RELEASE);",
        ),
        _STEPS + "test_compiled_sync_covers_what_was_published_when_it_began",
    ),
    Mutant(
        "failed_sync_forgotten_c",
        ("gate.poison",),
        "entries acknowledged by a second sync of pages that the first had failed to write",
        (
            Edit(
                "disk/_sync.c",
                "            return POISONED;\n        if (load_acquire",
                "            return __atomic_store_n(gate->words + STATE, 0, __ATOMIC_RELEASE), POISONED;\n"
                "        if (load_acquire",
            ),
        ),
        "tests/disk/test_gate.py::test_failed_sync_is_final[c]",
    ),
    Mutant(
        "two_sync_at_a_time_c",
        ("gate.role",),
        "nothing by itself; two who sync at one time each move `durable` by their own snapshot",
        _one(
            "disk/_sync.c",
            "return __atomic_compare_exchange_n(u32_at(gate, GATE_ROLE), &nobody, 1, 0, __ATOMIC_ACQ_REL, "
            "__ATOMIC_RELAXED);",
            "return nobody == 0;",
        ),
        "tests/disk/test_gate.py::test_waiters_of_a_running_sync_share_the_next_one[c]",
    ),
    Mutant(
        "role_kept_c",
        ("gate.role",),
        "every later sync: whoever waits for one waits for ever",
        _one("disk/_sync.c", "__atomic_store_n(u32_at(gate, GATE_ROLE), 0, __ATOMIC_RELEASE);", "(void)gate;"),
        _GATE + "test_sync_makes_everything_published_durable",
    ),
    Mutant(
        "make_durable_only_waits",
        ("log.make_durable",),
        "nothing that was acknowledged; writes at interval 0 never return",
        _one(
            "log/log.py", "self._await(self.gate.sync, lsn, timeout_s)", "self._await(lambda *_: True, lsn, timeout_s)"
        ),
        "tests/log/test_durability.py::test_at_interval_zero_every_method_returns_durable[py]",
    ),
    Mutant(
        "written_at_interval_zero_without_a_sync",
        ("write.durable",),
        "writes of a log alone that returned at sync_interval_ms=0",
        _one(
            "manager.py",
            "self._log.make_durable(self._log.cursor.published)",
            "self._log.wait_for_room",
        ),
        "tests/log/test_durability.py::test_sync_covers_all_that_was_logged[c]",
    ),
    Mutant(
        "interval_never_syncs",
        ("log.interval_sync",),
        "everything since the last explicit sync, however long ago it was written",
        _one("log/log.py", "                self.gate.sync(published)\n", "                pass\n"),
        "tests/log/test_durability.py::test_at_an_interval_the_background_syncs[c]",
    ),
    Mutant(
        "idle_mark_not_synced",
        ("log.idle_mark",),
        "the proof that the last burst was durable: damage in it passes for a torn tail",
        _one(
            "log/log.py",
            "self._idle_lsn = abs(mark)\n        self.gate.sync(self._idle_lsn)",
            "self._idle_lsn = abs(mark)",
        ),
        "tests/crash/test_protocol_steps.py::test_idle_mark_is_durable",
    ),
    Mutant(
        "append_returns_before_published_covers_it",
        ("log.settle",),
        "an entry that returned, when the process dies before its neighbour is finished",
        _one("log/log.py", "result = self._settle_published(-result)", "result = -result"),
        _STEPS + "test_append_returns_only_once_its_neighbour_is_published",
    ),
    Mutant(
        "failure_of_the_logs_own_files_forgotten",
        ("log.poison",),
        "entries acknowledged behind a segment whose seal never reached the disk",
        _one("log/log.py", "self._block[STATE] = 1\n        self.gate.wake()", "self.gate.wake()"),
        "tests/log/test_durability.py::test_failed_write_of_the_log_s_own_files_is_final_too[c]",
    ),
    Mutant(
        "closed_log_takes_writes",
        ("log.closed",),
        "what is written behind the mark of a clean close, which the next opening does not look at",
        _one("log/log.py", "self._block[STATE + 1] = 1", "pass"),
        "tests/manager/test_lifecycle.py::test_use_after_close_raises[c]",
    ),
    Mutant(
        "forked_child_writes",
        ("log.forked",),
        "entries of parent and child over each other",
        _one("log/log.py", "self._block[STATE + 2] = 1", "pass"),
        "tests/store/test_fork.py::test_child_is_refused_and_the_parent_goes_on[c]",
    ),
    Mutant(
        "lock_kept_after_close",
        ("log.unlock",),
        "nothing; the directory cannot be opened again",
        _one("log/log.py", "            self._lock.release()\n", ""),
    ),
    # -- a new segment
    Mutant(
        "segment_born_under_its_own_name",
        ("segment.create", "segment.rename"),
        "a log that crashed while a segment was prepared: it does not open",
        _one("log/segment.py", "{spare or spare_name(disk)}", "{spare or segment_name(number)}"),
    ),
    Mutant(
        "segment_named_before_its_sync",
        ("segment.rename",),
        "a log that crashed while a segment was prepared: it does not open",
        _one(
            "log/segment.py",
            '        file.sync()\n        disk.rename(path, f"{wal_dir}/{segment_name(number)}")\n',
            '        disk.rename(path, f"{wal_dir}/{segment_name(number)}")\n        file.sync()\n',
        ),
    ),
    Mutant(
        "segment_without_real_blocks",
        ("segment.blocks",),
        "the process: a signal in the append that meets a full disk",
        (
            Edit("log/segment.py", "            _reserve_blocks(disk, file, path, size)\n", "            pass\n"),
            Edit("log/log.py", "        segment.mapping.populate(0, self.segment_bytes)\n", ""),
        ),
        "tests/log/test_segments.py::test_a_segment_s_blocks_are_really_there",
    ),
    Mutant(
        "blocks_not_given_back",
        ("segment.blocks_given_back",),
        "the room that a full disk had left",
        _one("log/segment.py", "        disk.unlink(path)  # a full disk gets its blocks back\n", ""),
        "tests/log/test_segments.py::test_full_disk_raises_with_nothing_logged_and_ends_when_there_is_space[c-allocate]",
    ),
    Mutant(
        "one_header_copy",
        ("segment.header",),
        "a segment, by one damaged sector",
        _one(
            "log/segment.py",
            "for offset in HEADER_OFFSETS:\n            file.write",
            "for offset in HEADER_OFFSETS[:1]:\n            file.write",
        ),
        "tests/recovery/test_tail.py::test_one_damaged_header_copy_is_noted",
    ),
    Mutant(
        "new_segment_without_sync",
        ("segment.sync",),
        "a segment of acknowledged entries whose header never reached the disk: the log does not open",
        _one(
            "log/segment.py",
            "file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))\n        file.sync()",
            "file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))",
        ),
    ),
    Mutant(
        "new_segment_without_directory_sync",
        ("segment.directory",),
        "a whole segment of acknowledged entries, with its name",
        _one(
            "log/segment.py",
            'disk.rename(path, f"{wal_dir}/{segment_name(number)}")\n        disk.sync_directory(wal_dir)',
            'disk.rename(path, f"{wal_dir}/{segment_name(number)}")',
        ),
    ),
    Mutant(
        "salt_not_renewed",
        ("segment.salt",),
        "nothing, at once; then frames of the segment's earlier life come back behind new ones",
        _one("log/segment.py", 'salt = int.from_bytes(disk.random_bytes(8), "little")', "salt = 7"),
    ),
    # -- seal and link
    Mutant(
        "sealed_before_durable",
        ("keeper.seal",),
        "entries behind a footer that vouched for them too early: the log does not open or has a hole",
        _one("log/keeper.py", "while self._cursor.durable >= data_end(", "while self._cursor.published >= data_end("),
    ),
    Mutant(
        "footer_not_stored",
        ("seal.store",),
        "the proof that a cut was final: entries cut off come back behind newer ones, or the log does not open",
        _one("log/segment.py", "self.view[offset : offset + len(content)] = content", "pass"),
    ),
    Mutant(
        "footer_not_synced_nor_link",
        ("seal.sync",),
        "the proof that a cut was final: entries cut off come back behind newer ones, or the log does not open",
        _one("log/segment.py", "self.mapping.sync(offset, len(content))", "pass"),
    ),
    Mutant(
        "sealed_segment_not_linked",
        ("keeper.link",),
        "a whole log, by one damaged footer that the next segment's link could stand in for",
        _one("log/keeper.py", "        following.link(predecessor)\n", ""),
        "tests/recovery/test_tail.py::test_damaged_footer_is_replaced_by_the_link_of_the_next_segment[c-closed]",
    ),
    # -- the control file of the log
    Mutant(
        "identity_renamed_before_sync",
        ("control.create_sync",),
        "a new log, which does not open",
        _one(
            "log/control_file.py",
            'file.write(0, slot.ljust(CONTROL_BYTES, b"\\0"))\n        file.sync()',
            'file.write(0, slot.ljust(CONTROL_BYTES, b"\\0"))',
        ),
    ),
    Mutant(
        "control_born_under_its_own_name",
        ("control.create",),
        "a log that crashed in its first milliseconds: it does not open, ever",
        (
            Edit(
                "log/control_file.py",
                'temporary, path = f"{directory}/{TEMPORARY_NAME}", f"{directory}/{CONTROL_NAME}"',
                'temporary = path = f"{directory}/{CONTROL_NAME}"',
            ),
        ),
        "log-py",
    ),
    Mutant(
        "leftover_of_a_crashed_creation_kept",
        ("control.leftover",),
        "a log that crashed in its first milliseconds: it does not open, ever",
        _one("log/control_file.py", "        disk.unlink(temporary)\n", "        pass\n"),
    ),
    Mutant(
        "slot_written_over_the_newer_one",
        ("control.slot",),
        "both slots of the control file: the log does not open",
        _one("log/control.py", "self._put(1 - self._slot, fields)", "self._put(self._slot, fields)"),
    ),
    Mutant(
        "control_not_synced",
        ("control.slot_sync",),
        "segments that the durable control file still names: the log does not open",
        _one(
            "log/control_file.py",
            "file.write(SLOT_OFFSETS[index], slot)\n        file.sync()",
            "file.write(SLOT_OFFSETS[index], slot)",
        ),
    ),
    Mutant(
        "one_slot_forgets_what_was_retired",
        ("control.both",),
        "a log whose newer slot is damaged: the older one names segments that are gone",
        _one(
            "log/control.py",
            "        self.write(**changes)\n        self.write(**changes)\n",
            "        self.write(**changes)\n",
        ),
        "store-py",
        seed=6,
    ),
    Mutant(
        "torn_slot_believed",
        ("check.layout",),
        "a log whose control file was being written: its fields are a mixture of two",
        _one("format/layout.py", "if self.sealed and zlib.crc32(record[:-4]) != values[-1]:", "if False:"),
        seed=5,
    ),
    Mutant(
        "older_slot_believed",
        ("check.slots",),
        "everything since the slot before: the log begins in a segment that is gone",
        (
            Edit(
                "log/control_file.py",
                'return sorted(sound, key=lambda slot: -int(slot[1]["sequence"]))',
                'return sorted(sound, key=lambda slot: int(slot[1]["sequence"]))',
            ),
        ),
        "tests/checkpoint/test_checkpoint.py::test_checkpoint_brings_everything_back",
    ),
    Mutant(
        "control_trusted_after_failed_sync",
        ("tail.control_again",),
        "both slots of the control file: the log does not open",
        _one("recovery/tail.py", "judged.control.store_again()", "pass"),
        seed=4,
    ),
    # -- begin and end
    Mutant(
        "clean_mark_kept_while_appending",
        ("log.clean_mark_cleared",),
        "everything logged since the last clean close",
        _one("log/log.py", "            clean=0,\n            end_lsn=0,\n", ""),
    ),
    Mutant(
        "incarnation_not_counted",
        ("log.clean_mark_cleared",),
        "batches: a commit frame of this life would take members of an earlier one",
        _one("log/log.py", "            incarnation=self.control.incarnation + 1,\n", ""),
        _SEGMENTS + "test_transaction_numbers_never_come_again",
    ),
    Mutant(
        "closed_without_a_sync",
        ("log.finish_sync",),
        "everything since the last sync, after a clean close",
        _one("log/log.py", "            self.gate.sync(end_lsn)\n            self.keeper", "            self.keeper"),
    ),
    Mutant(
        "clean_mark_left_out",
        ("log.clean_mark",),
        "nothing; but damage to the last entries after a clean close passes for a torn tail",
        _one("log/log.py", "            self.control.write_both(clean=1, end_lsn=end_lsn, durable_lsn=end_lsn)\n", ""),
        "tests/recovery/test_tail.py::test_whole_tail_of_a_killed_log_is_kept[c]",
    ),
    Mutant(
        "idle_end_not_noted",
        ("log.idle_noted",),
        "nothing; but damage that takes the end of an idle log, mark included, passes for a torn tail",
        _one(
            "log/keeper.py", "            self._control.write_both(durable_lsn=self.idle_lsn)\n", "            pass\n"
        ),
        "tests/crash/test_bit_rot.py::test_end_of_an_idle_log_zeroed_with_its_mark_is_refused[c]",
    ),
    # -- retirement
    Mutant(
        "retired_before_the_control_file_says_so",
        ("retire.control",),
        "a log that begins in a segment that is gone: it does not open",
        _one(
            "log/keeper.py",
            "self._control.write_both(oldest_lsn=oldest_lsn, released_lsn=released_lsn, durable_lsn=durable_lsn)",
            "pass",
        ),
        seed=4,
    ),
    Mutant(
        "transaction_cut_in_two",
        ("retire.oldest_needed",),
        "batches larger than a segment that a reader of the log still needs whole",
        _one("log/keeper.py", "return min(needed)", "return lsn"),
        "tests/log/test_segments.py::test_replay_from_within_a_transaction_gives_all_of_it[c-True]",
    ),
    Mutant(
        "recycled_under_a_reader",
        ("retire.readers", "read.lock"),
        "what a reader beside the writer still reads",
        _one("log/keeper.py", " or self._disk.has_readers(self._control.path)", ""),
        "tests/opening/test_read_only.py::test_writer_recycles_segments_only_while_nobody_reads[py-simulated]",
    ),
    Mutant(
        "recycled_under_an_iteration",
        ("retire.readers",),
        "what an iteration over the log still reads: it gets the bytes of a later segment",
        _one("log/keeper.py", "readers = bool(self._readings) or ", "readers = "),
        "tests/manager/test_replay.py::test_log_that_is_let_go_of_is_not_recycled_under_an_iteration[c]",
    ),
    Mutant(
        "reader_takes_no_lock",
        ("read.lock",),
        "what a reader beside the writer still reads",
        _one("recovery/read_only.py", "locks = [disk.lock_shared(control)]", "locks: list[Lock] = []"),
        "tests/opening/test_read_only.py::test_writer_recycles_segments_only_while_nobody_reads[py-simulated]",
    ),
    Mutant(
        "released_log_kept_for_ever",
        ("retire.unlink",),
        "the disk, which fills up",
        _one("log/keeper.py", "                self._disk.unlink(path)\n", "                pass\n"),
        "tests/log/test_segments.py::test_of_segments_released_at_once_only_a_runway_of_files_is_kept[c]",
    ),
    Mutant(
        "recycled_under_its_old_name",
        ("retire.rename",),
        "a new segment's entries, under a name that is about to be removed",
        _one("log/keeper.py", 'self._disk.rename(path, f"{self._wal_dir}/{spare}")\n', "pass\n"),
        "tests/log/test_segments.py::test_steady_state_reuses_its_files",
    ),
    Mutant(
        "release_of_what_is_not_durable",
        ("log.release",),
        "a log that begins behind its own end: it does not open",
        _one(
            "log/log.py", "        self.make_durable(lsn)\n        if lsn > self.keeper", "        if lsn > self.keeper"
        ),
        "tests/log/test_positions.py::test_release_of_what_is_not_durable_makes_it_durable",
    ),
    # -- the frame, in both kernels
    Mutant(
        "payload_not_copied",
        ("kernel.copy",),
        "vectors: frames whose checksum holds over what was there before",
        _one("kernel/reference.py", "_copy(segment, body, payload)", "pass"),
    ),
    Mutant(
        "header_not_stored",
        ("kernel.header",),
        "every entry",
        _one("kernel/reference.py", "segment[start + 8 : body] = _U32.pack(crc) + header[8:]", "pass"),
    ),
    Mutant(
        "commit_word_first",
        ("kernel.commit_word",),
        "an entry that returned behind one that never became whole",
        _one(
            "kernel/reference.py",
            "                _copy(segment, body, payload)",
            "                segment[start : start + 8] = _U64.pack(commit_word(salt, at, length))\n"
            "                _copy(segment, body, payload)",
        ),
        _STEPS + "test_commit_word_of_the_twin_is_stored_last",
    ),
    Mutant(
        "commit_word_before_the_header_c",
        ("kernel.commit_word",),
        "an entry that returned behind one that never became whole",
        (
            Edit(
                "kernel/cursor.h",
                "    memcpy(range->at + 8, (const uint8_t *)header + 8, sizeof *header - 8);\n"
                "    mm_store_commit(range->at, header->commit);\n",
                "    mm_store_commit(range->at, header->commit);\n"
                "    for (volatile int pause = 0; pause < 20000; pause++)\n        ;\n"
                "    memcpy(range->at + 8, (const uint8_t *)header + 8, sizeof *header - 8);\n",
            ),
        ),
        "race",
    ),
    Mutant(
        "commit_word_stored_without_release_c",
        ("kernel.commit_word",),
        "what a reader on another core takes for a whole frame",
        (),
        "race -fsanitize=thread -DMM_ORDER_PUBLISH=__ATOMIC_RELAXED",
    ),
    Mutant(
        "commit_word_read_without_acquire_c",
        ("check.commit_word",),
        "what a reader on another core takes for a whole frame",
        (),
        "race -fsanitize=thread -DMM_ORDER_LOOK=__ATOMIC_RELAXED",
    ),
    Mutant(
        "append_returns_before_published_covers_it_c",
        ("log.settle", "kernel.published"),
        "an entry that returned, when the process dies before its neighbour is finished",
        _one("kernel/cursor.h", "covered = mm_advance(cursor) >= end", "covered = mm_advance(cursor) > 0"),
        "race",
    ),
    Mutant(
        "published_walks_over_holes_c",
        ("kernel.published",),
        "an entry that returned behind one that was never finished",
        (
            Edit("kernel/cursor.h", "if (length == 0 || length", "if (length"),
            Edit("kernel/cursor.h", "lsn = at + length;", "lsn = at + (length != 0 ? length : 64);"),
        ),
        "race",
    ),
    Mutant(
        "published_walks_over_holes",
        ("kernel.published",),
        "an entry that returned behind one that was never finished",
        _one(
            "kernel/reference.py",
            "if words[_PUBLISHED] == at and words[_RESERVED] == end:",
            "if words[_RESERVED] == end:",
        ),
        "tests/kernel/test_publish.py::test_append_behind_an_unfinished_neighbour_settles_once_that_is_published[py]",
    ),
    Mutant(
        "published_not_moved",
        ("kernel.published",),
        "nothing that returned; appends wait for ever for a neighbour that finished long ago",
        _one("kernel/reference.py", "words[_PUBLISHED] = lsn = end", "lsn = end"),
        "tests/kernel/test_publish.py::test_frame_that_would_cross_the_end_pads_the_rest_and_lands_in_the_next_segment[py]",
    ),
    Mutant(
        "two_take_the_same_range_c",
        ("kernel.reserve",),
        "one of two entries that were written over each other",
        (
            Edit(
                "kernel/cursor.h",
                "        } else if (__atomic_compare_exchange_n(mm_word(cursor, MM_RESERVED), &lsn, at + "
                "length, false,\n"
                "                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))\n"
                "            return 0;",
                "        } else {\n            for (volatile int pause = 0; pause < 50000; pause++)\n"
                "                ;\n"
                "            __atomic_store_n(mm_word(cursor, MM_RESERVED), at + length, __ATOMIC_SEQ_CST);\n"
                "            return 0;\n        }",
            ),
        ),
        "race",
    ),
    Mutant(
        "segment_filled_before_there_is_another",
        ("kernel.reserve",),
        "a whole log: a full segment without a successor seems to miss one, and is refused",
        _one(
            "kernel/reference.py",
            "if number not in segments or (end == data_end(number, size) and number + 1 not in segments):",
            "if number not in segments:",
        ),
        "tests/kernel/test_publish.py::test_nothing_fills_a_segment_before_the_next_one_is_there[py]",
    ),
    Mutant(
        "segment_filled_before_there_is_another_c",
        ("kernel.reserve",),
        "a whole log: a full segment without a successor seems to miss one, and is refused",
        _one(
            "kernel/cursor.h",
            "(at + length < mm_data_end(cursor, number) || mm_load(cursor, mm_slot(number + 1)) == number + 2);",
            "true;",
        ),
        "tests/kernel/test_publish.py::test_nothing_fills_a_segment_before_the_next_one_is_there[c]",
    ),
    Mutant(
        "reserved_not_moved",
        ("kernel.reserve",),
        "each entry, by the next one",
        (
            Edit(
                "kernel/reference.py",
                "words[_RESERVED], held = end, True",
                "words[_RESERVED], held = max(end - 64, pad_at), True",
            ),
        ),
        "tests/kernel/test_publish.py::test_frame_that_fits_exactly_needs_no_pad[py]",
    ),
    Mutant(
        "rest_of_a_segment_not_padded",
        ("kernel.pad",),
        "everything in the next segment: published stops at the gap",
        _one(
            "kernel/reference.py",
            "                if pad_at != at:\n                    self._pad_rest(pad_at, time_ns)\n"
            "                segment, salt",
            "                segment, salt",
        ),
        "tests/kernel/test_publish.py::test_frame_that_would_cross_the_end_pads_the_rest_and_lands_in_the_next_segment[py]",
    ),
    Mutant(
        "rest_of_a_segment_not_padded_c",
        ("kernel.pad",),
        "everything in the next segment: published stops at the gap",
        _one("kernel/cursor.h", "        mm_publish(&claim->pad, &pad);\n", ""),
        "tests/kernel/test_publish.py::test_frame_that_would_cross_the_end_pads_the_rest_and_lands_in_the_next_segment[c]",
    ),
    Mutant(
        "row_not_copied",
        ("kernel.row",),
        "the vectors of a store, until the next recovery",
        _one(
            "kernel/reference.py", "_copy(self._matrix, row * self._row_bytes, segment[body : body + sizes[0]])", "pass"
        ),
        "store-py",
    ),
    Mutant(
        "slot_of_the_ring_filled_in_the_wrong_order_c",
        ("kernel.ring",),
        "entries written to an address that is not there yet",
        _one(
            "kernel/cursor.h",
            "    __atomic_store_n(mm_word(cursor, slot + 8), (uint64_t)(uintptr_t)segment, __ATOMIC_RELAXED);\n"
            "    __atomic_store_n(mm_word(cursor, slot + 16), salt, __ATOMIC_RELAXED);\n"
            "    __atomic_store_n(mm_word(cursor, slot), number + 1, __ATOMIC_RELEASE);\n",
            "    __atomic_store_n(mm_word(cursor, slot), number + 1, __ATOMIC_RELEASE);\n"
            "    __atomic_store_n(mm_word(cursor, slot + 8), (uint64_t)(uintptr_t)segment, __ATOMIC_RELAXED);\n"
            "    for (int pause = 0; pause < 100000; pause++)\n"
            "        __atomic_signal_fence(__ATOMIC_SEQ_CST);\n"
            "    __atomic_store_n(mm_word(cursor, slot + 16), salt, __ATOMIC_RELAXED);\n",
        ),
        "race",
    ),
    Mutant(
        "slot_of_the_ring_not_emptied_c",
        ("kernel.ring",),
        "entries written to a segment that was let go of",
        _one("kernel/cursor.h", "    __atomic_store_n(mm_word(cursor, slot), 0, __ATOMIC_SEQ_CST);\n", ""),
        "tests/kernel/test_publish.py::test_nothing_is_taken_while_the_next_segment_is_missing",
    ),
    Mutant(
        "log_begins_elsewhere",
        ("kernel.start",),
        "what a cleanly closed log holds, by the first append",
        _one(
            "kernel/reference.py",
            "self._words[_PUBLISHED] = self._words[_RESERVED] = lsn",
            "self._words[_PUBLISHED] = lsn",
        ),
    ),
    Mutant(
        "durable_position_not_recorded",
        ("frame.durable_lsn",),
        "durable entries behind a damaged one, silently cut off as a torn tail",
        _one("kernel/reference.py", "                durable = words[_DURABLE]\n", "                durable = 0\n"),
        "tests/recovery/test_tail.py::test_flipped_bit_that_a_later_frame_proves_durable_is_corruption[py-0]",
    ),
    Mutant(
        "durable_position_not_recorded_c",
        ("frame.durable_lsn",),
        "durable entries behind a damaged one, silently cut off as a torn tail",
        _one(
            "kernel/cursor.h",
            "header->durable_lsn = __atomic_load_n(mm_word(cursor, MM_DURABLE), __ATOMIC_ACQUIRE);",
            "header->durable_lsn = 0;",
        ),
        "tests/recovery/test_tail.py::test_flipped_bit_that_a_later_frame_proves_durable_is_corruption[c-0]",
    ),
    # -- what a valid frame is, in both kernels
    Mutant(
        "checksum_not_verified",
        ("check.checksum",),
        "torn vectors come back as if they were whole",
        _one("kernel/reference.py", "if verify and frame_crc(", "if False and frame_crc("),
    ),
    Mutant(
        "checksum_not_verified_c",
        ("check.checksum",),
        "torn vectors come back as if they were whole",
        _one("kernel/frame.h", "if (verify && mm_frame_crc(", "if (!verify && mm_frame_crc("),
        "log-c",
    ),
    Mutant(
        "checksum_of_the_header_alone_c",
        ("check.checksum",),
        "torn vectors come back as if they were whole",
        _one(
            "kernel/frame.h",
            "(header, frame, pad ? sizeof *header : *length, salt)",
            "(header, frame, sizeof *header, salt)",
        ),
        "tests/kernel/test_scan.py::test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop[c]",
    ),
    Mutant(
        "checksum_of_the_first_vectors_of_a_batch_only_c",
        ("check.checksum",),
        "torn batches come back as if they were whole",
        _one(
            "kernel/cursor.h",
            "        state = mm_frame_crc_next(state, piece, MM_PIECE_BYTES);\n",
            "        state = piece == claim->frame.at + sizeof header ? mm_frame_crc_next(state, piece, "
            "MM_PIECE_BYTES) : state;\n",
        ),
        "tests/kernel/test_publish.py::test_array_changed_during_a_large_copy_leaves_a_valid_frame[c]",
    ),
    Mutant(
        "checksum_without_the_length",
        ("check.length",),
        "an entry, when a bit of its length is damaged",
        _one(
            "format/frame.py", "zlib.crc32(frame[0:8], salt & 0xFFFF_FFFF)", "zlib.crc32(bytes(8), salt & 0xFFFF_FFFF)"
        ),
        "tests/kernel/test_scan.py::test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop[c]",
    ),
    Mutant(
        "checksum_without_the_length_c",
        ("check.length",),
        "an entry, when a bit of its length is damaged",
        _one(
            "kernel/frame.h",
            "const uint64_t message = header->commit ^",
            "const uint64_t message = 0 * header->commit ^",
        ),
        "tests/kernel/test_scan.py::test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop[c]",
    ),
    Mutant(
        "checksum_without_the_salt",
        ("check.salt",),
        "nothing while the tag has the salt; the second of two defences against an earlier life's frames",
        _one("format/frame.py", "zlib.crc32(frame[0:8], salt & 0xFFFF_FFFF)", "zlib.crc32(frame[0:8])"),
        "tests/kernel/test_scan.py::test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop[c]",
    ),
    Mutant(
        "checksum_without_the_salt_c",
        ("check.salt",),
        "nothing while the tag has the salt; the second of two defences against an earlier life's frames",
        _one("kernel/frame.h", "^ (uint32_t)~(uint32_t)salt;", "^ (uint32_t)~(uint32_t)(0 * salt);"),
        "tests/kernel/test_scan.py::test_scan_copies_the_headers_of_valid_frames_and_says_where_they_stop[c]",
    ),
    Mutant(
        "tag_not_checked",
        ("check.commit_word",),
        "nothing of the durable log; a commit word that tore passes for a frame",
        _one(
            "kernel/reference.py",
            "    if word != commit_word(salt, lsn, length):\n        return 0",
            "    if word == 0:\n        return 0",
        ),
        "tests/kernel/test_scan.py::test_frame_that_breaks_one_clause_is_not_valid",
    ),
    Mutant(
        "tag_not_checked_c",
        ("check.commit_word",),
        "nothing of the durable log; a commit word that tore passes for a frame",
        _one(
            "kernel/frame.h",
            "if (word != mm_commit_word(salt, lsn, *length))\n        return",
            "if (word == 0)\n        return",
        ),
        "tests/kernel/test_scan.py::test_frame_that_breaks_one_clause_is_not_valid[c-True-tag of another salt]",
    ),
    Mutant(
        "tag_without_the_salt_c",
        ("check.commit_word", "check.salt"),
        "entries behind the stale commit words of a recycled segment: published walks over a hole",
        _one("kernel/frame.h", "uint64_t x = salt ^ (lsn", "uint64_t x = 0 * salt ^ (lsn"),
        "race",
    ),
    Mutant(
        "tag_without_the_salt",
        ("check.commit_word", "check.salt"),
        "entries behind the stale commit words of a recycled segment: published walks over a hole",
        _one("format/frame.py", "x = (salt ^ (lsn * 0x9E37", "x = (0 * salt ^ (lsn * 0x9E37"),
        "tests/kernel/test_publish.py::test_frame_that_would_cross_the_end_pads_the_rest_and_lands_in_the_next_segment[c]",
    ),
    Mutant(
        "tag_without_the_place",
        ("check.place",),
        "entries, by copies of frames at other places",
        _one("format/frame.py", "(lsn * 0x9E3779B97F4A7C15)) & _U64", "(0 * lsn * 0x9E3779B97F4A7C15)) & _U64"),
        "tests/kernel/test_twins.py::test_random_operations_give_the_same_results_and_bytes[0]",
    ),
    Mutant(
        "tag_without_the_place_c",
        ("check.place",),
        "entries, by copies of frames at other places",
        _one("kernel/frame.h", "(lsn * UINT64_C(0x9E3779B97F4A7C15))", "(0 * lsn * UINT64_C(0x9E3779B97F4A7C15))"),
        "tests/kernel/test_twins.py::test_random_operations_give_the_same_results_and_bytes[0]",
    ),
    Mutant(
        "place_not_compared",
        ("check.place",),
        "entries, by copies of frames at other places",
        _one("kernel/reference.py", "or start_lsn != lsn or zero != 0", "or zero != 0"),
        "tests/kernel/test_scan.py::test_frame_that_breaks_one_clause_is_not_valid",
    ),
    Mutant(
        "place_not_compared_c",
        ("check.place",),
        "entries, by copies of frames at other places",
        _one("kernel/frame.h", "|| header->start_lsn != lsn || ", "|| "),
        "tests/kernel/test_scan.py::test_frame_that_breaks_one_clause_is_not_valid[c-True-start elsewhere]",
    ),
    Mutant(
        "length_not_held_against_the_end",
        ("check.length",),
        "the process: a read behind the mapping",
        _one(
            "kernel/reference.py", "if not HEADER_BYTES <= length <= end - lsn or", "if not HEADER_BYTES <= length or"
        ),
        "tests/kernel/test_scan.py::test_frame_that_ends_behind_the_end_is_not_taken[py-8639]",
    ),
    Mutant(
        "length_not_held_against_the_end_c",
        ("check.length",),
        "the process: a read behind the mapping",
        _one("kernel/frame.h", "*length > end - lsn ||", ""),
        "tests/kernel/test_scan.py::test_frame_that_ends_behind_the_end_is_not_taken[c-8639]",
    ),
    Mutant(
        "blocks_not_held_against_the_length",
        ("check.length",),
        "the process: blocks that reach into the next frame",
        _one("kernel/reference.py", "    if sizes != 0 if kind == _PAD else", "    if False if kind != _PAD else"),
        "tests/kernel/test_scan.py::test_frame_that_breaks_one_clause_is_not_valid[py-True-length other than "
        "the blocks]",
    ),
    # -- the tail, judged
    Mutant(
        "look_ahead_dropped",
        ("check.look_ahead",),
        "durable entries behind a damaged one, silently cut off as a torn tail",
        _one("recovery/tail.py", "if len(beyond):", "if False:"),
    ),
    Mutant(
        "look_ahead_without_a_budget",
        ("check.look_ahead",),
        "hours: a file made up to waste time",
        _one(
            "recovery/tail.py",
            "    except ValueError as error:\n        raise WalCorruptionError(\n            info.path,\n"
            '            f"what lies',
            "    except ZeroDivisionError as error:\n        raise WalCorruptionError(\n"
            '            info.path,\n            f"what lies',
        ),
        "tests/opening/test_read_only.py::test_tail_made_up_to_waste_time_is_corruption",
    ),
    Mutant(
        "end_below_what_was_durable_accepted",
        ("check.end",),
        "durable entries behind a damaged one, silently cut off as a torn tail",
        (
            Edit(
                "recovery/tail.py",
                "proof=_yes(proven_lsn > end_lsn or (at is None and _is_full(result))),",
                'proof="no",',
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_end_has_one_verdict",
    ),
    Mutant(
        "durable_position_of_the_control_file_ignored",
        ("check.end",),
        "a log all of whose segments were deleted: it opens empty",
        _one(
            "recovery/tail.py",
            "result.durable_lsn = max(control.durable_lsn, known_durable_lsn)",
            "result.durable_lsn = 0",
        ),
        "tests/recovery/test_tail.py::test_all_segments_missing_is_an_error[c]",
    ),
    Mutant(
        "missing_segment_at_the_end_accepted",
        ("check.end",),
        "a whole segment of durable entries that somebody deleted",
        (
            Edit(
                "recovery/tail.py",
                '    if verdict.label == "end-missing":\n',
                '    if verdict.label == "end-missing" and last is None:\n',
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_end_has_one_verdict",
    ),
    Mutant(
        "missing_segment_behind_a_full_one_accepted",
        ("check.end",),
        "all newest segments that somebody deleted, where nothing else tells of what was in them",
        _one("recovery/tail.py", "proven_lsn > end_lsn or (at is None and _is_full(result))", "proven_lsn > end_lsn"),
        "tests/recovery/test_tail.py::"
        "test_missing_last_segments_are_noticed_though_nothing_that_is_left_tells_what_was_in_them[py]",
    ),
    Mutant(
        "empty_segment_behind_a_full_one_cut_off",
        ("check.end",),
        "a whole log: after a second crash it seems to miss a segment, and is refused",
        _one("recovery/tail.py", "    if _is_full(result):\n        return True\n", ""),
    ),
    Mutant(
        "empty_first_segment_cut_off",
        ("check.end",),
        "a whole log: after a second crash its first segment seems to be missing, and it is refused",
        _one("recovery/tail.py", "control.incarnation > 0 and any(", "control.oldest_lsn > size and any("),
    ),
    Mutant(
        "first_segment_behind_the_mark_of_a_writer",
        ("log.clean_mark_cleared",),
        "a new log whose first writer died early: its first segment seems to be missing, and it is refused",
        (
            Edit("log/log.py", "        segment = self._first_segment(tail)\n        # 2.", "        # 2."),
            Edit(
                "log/log.py",
                "            durable_lsn=tail.end_lsn,\n        )\n",
                "            durable_lsn=tail.end_lsn,\n        )\n        segment = self._first_segment(tail)\n",
            ),
        ),
    ),
    Mutant(
        "writer_without_segments_believed",
        ("check.oldest",),
        "a whole log whose segments somebody deleted before anything noted how far it came",
        _one("recovery/tail.py", "segment_bytes) or written\n", "segment_bytes)\n"),
        "tests/recovery/test_failures_seen_elsewhere.py"
        "::test_all_segments_of_a_first_run_deleted_by_hand_are_found_at_open",
    ),
    Mutant(
        "missing_first_segment_accepted",
        ("check.oldest",),
        "a whole log whose segments somebody deleted",
        (Edit("recovery/tail.py", 'segment="found" if floor in found else "missing",', 'segment="found",'),),
        "tests/recovery/test_verdicts_log.py::test_every_beginning_has_one_verdict",
    ),
    Mutant(
        "missing_segment_of_a_closed_log_accepted",
        ("check.mark",),
        "a whole segment of durable entries that somebody deleted",
        (Edit("recovery/tail.py", "gap = next((n for n in before if n not in found), number)", "gap = number"),),
        "tests/recovery/test_verdicts_log.py::test_every_mark_of_a_clean_close_has_one_verdict",
    ),
    Mutant(
        "segment_that_lost_its_footer_not_verified",
        ("check.sealed",),
        "entries of a sealed segment, by damage that the opening does not see",
        (Edit("recovery/tail.py", 'frames = "whole" if stop == named.end_lsn else "broken"', 'frames = "whole"'),),
        "tests/recovery/test_verdicts_log.py::test_every_seal_has_one_verdict",
    ),
    Mutant(
        "segment_that_does_not_continue_accepted",
        ("check.chain",),
        "entries cut off come back behind newer ones",
        (
            Edit(
                "recovery/tail.py",
                'link = "names" if named == (previous.number, previous.end_lsn) else "elsewhere"',
                'link = "names"',
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_link_behind_a_sealed_segment_has_one_verdict",
    ),
    Mutant(
        "durable_entries_behind_another_end_cut_off",
        ("check.chain",),
        "durable entries behind a link that somebody damaged under a valid checksum",
        (Edit("recovery/tail.py", 'frames = "record" if len(scanned)', 'frames = "silent" if len(scanned)'),),
        "tests/recovery/test_verdicts_log.py::test_every_link_behind_a_sealed_segment_has_one_verdict",
    ),
    Mutant(
        "unlinked_segment_behind_a_cut_accepted",
        ("check.chain",),
        "entries cut off come back behind newer ones",
        (
            Edit(
                "recovery/tail.py",
                'before = "full" if previous.end_lsn == previous.data_end_lsn else "cut"',
                'before = "full"',
            ),
        ),
        "log-py",
        seed=3,
    ),
    Mutant(
        "footer_outside_of_its_segment_believed",
        ("segment.bound",),
        "the process, or every entry of the segment",
        (
            Edit(
                "log/segment.py",
                "return bound and start <= end <= data_end(number, size) and (end - start) % ALIGNMENT == 0",
                "return bound",
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_seal_has_one_verdict",
    ),
    Mutant(
        "link_of_another_place_believed",
        ("segment.bound",),
        "entries behind an end that was another segment's",
        (Edit("log/segment.py", 'return int(link["previous_number"]) == number - 1 and inside', "return True"),),
        "tests/recovery/test_verdicts_log.py::test_every_link_behind_a_sealed_segment_has_one_verdict",
    ),
    Mutant(
        "damaged_header_taken_for_an_unused_file",
        ("check.segment_header",),
        "a segment of entries whose header is damaged",
        (
            Edit(
                "log/segment.py",
                '    return "newer" if none_sound and _unknown_version(page) else "damaged"\n',
                '    return "blank"\n',
            ),
        ),
        "tests/recovery/test_tail.py::test_two_damaged_header_copies_are_an_error",
    ),
    Mutant(
        "segment_of_a_newer_version_accepted",
        ("check.segment_header",),
        "entries of a format that this version does not know",
        (
            Edit(
                "log/segment.py",
                '    if fields["version"] > FORMAT_VERSION or fields["features_required"]:\n        return "newer"',
                '    if False:\n        return "newer"',
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is",
    ),
    Mutant(
        "segment_of_another_store_accepted",
        ("check.segment_header",),
        "another store's entries, mixed into this one's",
        (Edit("log/segment.py", '    if fields["store_id"] != identity.store_id:', "    if False:"),),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is",
    ),
    Mutant(
        "segment_of_another_history_accepted",
        ("check.segment_header",),
        "another history's entries, mixed into this one's",
        (Edit("log/segment.py", '    if fields["history_id"] != identity.history_id:', "    if False:"),),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is",
    ),
    Mutant(
        "segment_under_another_name_accepted",
        ("check.segment_header",),
        "entries at places where they never were",
        (
            Edit(
                "log/segment.py",
                'return "sound" if found == (number, size, number * size) else "misplaced"',
                'return "sound"',
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is",
    ),
    Mutant(
        "short_segment_mapped",
        ("check.segment_header",),
        "the process: a signal behind the end of the file",
        (Edit("log/segment.py", 'file="whole" if len(tail) == FOOTER_BYTES else "short",', 'file="whole",'),),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_header_copies_has_one_verdict_wherever_the_segment_is",
    ),
    # -- the tail, repaired
    Mutant(
        "recovery_trusts_clean_pages",
        ("tail.rewrite",),
        "entries shown after a failed sync and a restart, of which the disk knows nothing",
        _one("recovery/tail.py", "segment.mapping.rewrite(start, end - start)", "pass"),
    ),
    Mutant(
        "recovery_exposes_what_is_only_in_memory",
        ("tail.sync",),
        "entries that a recovery showed and a power cut took away",
        _one("recovery/tail.py", "segment.mapping.sync(start, stop - start)", "pass"),
    ),
    Mutant(
        "last_seal_not_made_durable",
        ("tail.seal_again",),
        "the log does not open: a footer that was in memory only, and the segment whose link told the same, are gone",
        _one("recovery/tail.py", "        _seal_again(disk, kernel, judged.sealed[-1])\n", "        pass\n"),
        "tests/recovery/test_tail.py::test_footer_that_is_in_memory_only_is_durable_before_the_link_to_it_goes[c]",
    ),
    Mutant(
        "cut_not_sealed",
        ("tail.seal",),
        "entries cut off come back behind newer ones, or the log does not open",
        _one(
            "recovery/tail.py",
            "predecessor = segment.seal(part.frames, part.end_lsn)",
            "predecessor = Predecessor(part.info.number, part.end_lsn, 0)",
        )
        + _one("recovery/tail.py", "    NO_PREDECESSOR,\n", "    NO_PREDECESSOR,\n    Predecessor,\n"),
        "tests/recovery/test_tail.py::test_damaged_link_behind_a_cut_is_accepted_since_the_cut_is_sealed[c]",
    ),
    Mutant(
        "run_not_linked",
        ("tail.link",),
        "the log, by one damaged footer that the next segment's link could stand in for",
        _one("recovery/tail.py", "            segment.link(predecessor)\n", "            pass\n"),
        "tests/recovery/test_tail.py::test_damaged_footer_is_replaced_by_the_link_of_the_next_segment[c-killed]",
    ),
    Mutant(
        "spares_renamed_without_directory_sync",
        ("tail.directory",),
        "a discarded segment comes back under its old name",
        _one("recovery/tail.py", "    disk.sync_directory(wal_dir)\n    return spares", "    return spares"),
        seed=4,
    ),
    Mutant(
        "link_of_a_killed_writer_left_in_memory",
        ("tail.link_again",),
        "the link of a segment that is sealed then: verification reports damage that a second crash made of nothing",
        _one("recovery/tail.py", "            segment.store_link_again()", "            pass"),
        _STEPS + "test_link_of_a_killed_writer_becomes_durable_with_the_recovery[py]",
    ),
    Mutant(
        "link_of_a_killed_writer_not_stored_again",
        ("tail.link_again",),
        "the same where the sync had failed before the kill: its page is clean, and not on disk",
        _one("log/segment.py", "        self.mapping.rewrite(LINK_OFFSET, SECTOR_BYTES)\n", ""),
        _STEPS + "test_link_whose_sync_failed_becomes_durable_with_the_recovery[py]",
    ),
    Mutant(
        "short_spares_kept",
        ("tail.unlink_spare",),
        "the disk, which fills up with files that were never whole",
        (Edit("recovery/tail.py", '            disk.unlink(f"{wal_dir}/{name}")\n', "            pass\n"),),
        "tests/crash/test_protocol_steps.py::test_spare_of_another_size_is_removed",
    ),
    Mutant(
        "discarded_segments_kept",
        ("tail.unlink", "tail.rename"),
        "the log: a segment behind the end that is damaged later stops it from opening",
        _one("recovery/tail.py", "judged.leftover_numbers + judged.discarded_numbers[::-1]", "judged.leftover_numbers"),
        _STEPS + "test_what_was_cut_off_cannot_stop_a_later_opening",
    ),
    Mutant(
        "discarded_segment_recycled_under_a_reader",
        ("tail.readers",),
        "what a reader beside the recovery still reads",
        _one("recovery/tail.py", "readers = disk.has_readers(judged.control.path)", "readers = False"),
        _STEPS + "test_recovery_recycles_no_segment_under_a_reader",
    ),
    # -- transactions
    Mutant(
        "transaction_without_commit_frame",
        ("log.commit",),
        "whole batches larger than a segment",
        _one(
            "log/transaction.py",
            "lsn = self._end(Kind.COMMIT, self._members, self._summary())",
            "lsn = self._log.cursor.published",
        ),
    ),
    Mutant(
        "members_not_bound_to_their_commit",
        ("log.commit", "check.members"),
        "batches larger than a segment: recovery cannot tell their members",
        _one(
            "log/transaction.py",
            "self._members_crc = zlib.crc32(self._log.checksum_at(start_lsn, attached), self._members_crc)",
            "pass",
        ),
        "store-py",
        seed=2,
    ),
    Mutant(
        "members_not_counted",
        ("check.members",),
        "half a batch comes back as if it were whole",
        (
            Edit(
                "recovery/recover.py",
                "            _check_members(*frame_at(at), zlib.crc32(crcs), len(members))",
                "            pass",
            ),
        ),
        "tests/crash/test_protocol_steps.py::test_commit_of_members_that_are_not_there_is_refused",
    ),
    Mutant(
        "members_not_counted_by_readers",
        ("check.members",),
        "half a batch is replayed as if it were whole",
        _one("log/reader.py", "    if rows != commit.rows:", "    if False:"),
        _STEPS + "test_replay_of_half_a_transaction_is_refused",
    ),
    Mutant(
        "open_transaction_not_kept",
        ("log.transaction_kept",),
        "the first members of a transaction that is open while the log is released",
        _one("log/transaction.py", "self._spans[self._number] = (log.cursor.published, 0)", "pass"),
        _TRANSACTIONS + "test_released_log_keeps_what_an_open_transaction_logged[py]",
    ),
    Mutant(
        "committed_transaction_not_kept",
        ("log.transaction_kept",),
        "half a transaction that ends behind what is released",
        _one(
            "log/transaction.py", "self._spans[self._number] = (self.first_lsn, lsn)", "del self._spans[self._number]"
        ),
        _TRANSACTIONS + "test_released_log_keeps_a_transaction_that_ends_behind_it[py]",
    ),
    Mutant(
        "abandoned_transaction_kept",
        ("log.transaction_kept",),
        "the disk: the log of a transaction that was rolled back is never let go of",
        _one("log/transaction.py", "            self._spans.pop(self._number, None)", "            pass"),
        _TRANSACTIONS + "test_what_is_not_committed_has_no_effect",
    ),
    Mutant(
        "interrupted_commit_let_go_of",
        ("log.transaction_kept",),
        "the first members of a transaction whose commit stands in the log, though its thread was interrupted",
        _one("log/transaction.py", "self._may_count = True  # should the thread be interrupted", "pass"),
        _TRANSACTIONS + "test_interrupted_commit_may_count_and_so_keeps_its_log[py]",
    ),
    Mutant(
        "open_transactions_not_in_the_budget",
        ("log.transaction_kept",),
        "the disk, beyond max_wal_size",
        _one(
            "log/keeper.py",
            "self.over_budget = end - self.needed_lsn >",
            "self.over_budget = end - self.released_lsn >",
        ),
        _TRANSACTIONS + "test_open_transaction_counts_within_the_budget_and_says_so[py]",
    ),
    Mutant(
        "transaction_goes_on_after_an_uncounted_member",
        ("transaction.whole",),
        "the log: a commit that names fewer members than it holds stops recovery",
        _one(
            "transaction.py",
            "            self.rollback()  # a member may stand in the log uncounted",
            "            pass",
        ),
        _TRANSACTIONS + "test_interrupted_member_ends_the_transaction[py]",
    ),
    Mutant(
        "members_logged_one_by_one",
        ("transaction.whole",),
        "all or nothing: a crash leaves half of a transaction",
        _one(
            "log/transaction.py",
            "frame.rows, self._number, *frame[3:])",
            "frame.rows, 0, *frame[3:])",
        ),
    ),
    Mutant(
        "commit_not_durable",
        ("write.durable",),
        "transactions whose commit had returned",
        _one("transaction.py", "            self._log.acknowledge(lsn, durable)", "            pass"),
        _TRANSACTIONS + "test_everything_in_a_transaction_shares_one_commit_and_one_sync",
    ),
    Mutant(
        "async_waiter_told_before_it_is_durable",
        ("write.durable",),
        "what a task was told is durable, though its sync failed",
        _one(
            "aio/waiting.py",
            "settled_lsn = self._log.settled_lsn()",
            "settled_lsn = self._log.cursor.published",
        ),
        _AIO + "test_failed_sync_is_told_to_everybody_who_waits[py]",
    ),
    Mutant(
        "async_sync_left_out",
        ("write.asked",),
        "durability on time: tasks that ask for a sync wait for ever",
        _one("aio/waiting.py", "            self._log.ask_for_sync()", "            pass"),
        _AIO + "test_flush_and_durable_and_waiting[py]",
    ),
    Mutant(
        "async_write_does_not_wait",
        ("write.asked",),
        "writes of a task that returned at sync_interval_ms=0",
        _one("aio/handle.py", "        elif durable or self._each_durable:", "        elif durable:"),
        _AIO_STORE + "test_at_interval_zero_a_task_reads_what_it_wrote_and_others_nothing_sooner[py]",
    ),
    Mutant(
        "asked_sync_left_out",
        ("write.asked",),
        "what was written with durable=None at interval 0, in any power cut, however late",
        _one("log/log.py", "self._sync_asked, wanted = False, True", "self._sync_asked = False"),
        _RECEIPTS + "test_at_interval_zero_nobody_waits_and_the_worker_syncs[py]",
    ),
    Mutant(
        "write_that_waits_for_nothing_asks_for_nothing",
        ("write.asked",),
        "what was written with durable=None at interval 0, in any power cut, however late; readers never see it",
        _one("log/log.py", "            self.ask_for_sync()\n        else", "            pass\n        else"),
        _RECEIPTS + "test_at_interval_zero_nobody_waits_and_the_worker_syncs[py]",
    ),
    Mutant(
        "receipt_calls_before_it_is_durable",
        ("receipt.told",),
        "what a callback was told is durable, though its sync failed",
        _one(
            "log/receipt.py",
            "self._waiters.pop(EVERYBODY if over else self._log.settled_lsn())",
            "self._waiters.pop(EVERYBODY if over else self._log.cursor.published)",
        ),
        _RECEIPTS + "test_callback_comes_once_from_whoever_made_it_durable[py]",
    ),
    Mutant(
        "receipt_of_what_is_published_says_durable",
        ("receipt.told",),
        "what a receipt said is durable, in a power cut",
        _one(
            "log/receipt.py",
            "return self._log.settled_lsn() >= self.lsn",
            "return self._log.cursor.published >= self.lsn",
        ),
        _RECEIPTS + "test_receipt_says_whether_it_is_durable_by_now[py]",
    ),
    Mutant(
        "failed_sync_tells_no_callback",
        ("receipt.told",),
        "the answer: callbacks of a log whose sync failed never come",
        _one(
            "log/receipt.py",
            "over = self._log.failed or self._log.ended\n        with",
            "over = self._log.ended\n        with",
        ),
        _RECEIPTS + "test_failed_sync_is_handed_to_every_callback[py]",
    ),
    Mutant(
        "durable_and_never_shown",
        ("store.shown",),
        "what was written with durable=None at interval 0: readers never see it",
        _one("log/log.py", "        self.show_durable()\n        for tell", "        for tell"),
        _STORE_RECEIPTS + "test_write_that_waits_for_nothing_is_seen_once_it_is_durable[py-insert]",
    ),
    Mutant(
        "told_before_it_is_seen",
        ("store.shown",),
        "read-your-writes of a task at interval 0",
        _one("store.py", "        return min(durable_lsn, state.applied_lsn)", "        return durable_lsn"),
        _STORE_RECEIPTS + "test_nobody_is_told_before_readers_see_it[py]",
    ),
    Mutant(
        "closed_with_something_left_to_show",
        ("store.settled",),
        "time: what nobody had waited for is in no checkpoint, and the next opening replays it",
        _one("opening.py", "                self._store.settle()", "                pass"),
        _STORE_RECEIPTS + "test_close_leaves_nothing_to_replay[py]",
    ),
    Mutant(
        "waited_for_and_not_shown",
        ("store.shown",),
        "read-your-writes of whoever waited for what another had made durable",
        _one("log/log.py", "            self.show_durable()  # whoever", "            pass  # whoever"),
        _STORE_RECEIPTS + "test_who_waits_sees_what_another_is_about_to_show[py]",
    ),
    Mutant(
        "transaction_conflict_not_seen",
        ("transaction.seen",),
        "what another writer wrote between a transaction's read and its commit",
        _one(
            "store.py",
            "                if self._lsn_of(state, change.id) != change.seen_lsn:",
            "                if False:",
        ),
        _STORE_TRANSACTIONS + "test_first_committer_wins",
    ),
    Mutant(
        "conflict_with_an_unsynced_write_not_seen",
        ("transaction.seen",),
        "what another writer logged and had not synced yet",
        _one("store.py", "            lsn, row, _ = latest\n", "            lsn, row = state.get(id).lsn, 0\n"),
        _STORE_TRANSACTIONS + "test_write_that_waits_for_its_sync_is_a_conflict_too[py]",
    ),
    Mutant(
        "reread_not_compared",
        ("transaction.seen",),
        "what another writer wrote between two reads of a transaction, of which the second is what it goes on from",
        _one("transaction.py", "if self._seen.setdefault(id, lsn) != lsn:", "if self._seen.__setitem__(id, lsn):"),
        _STORE_TRANSACTIONS + "test_reading_again_what_another_changed_is_refused_at_once",
    ),
    Mutant(
        "deleted_and_inserted_again_is_an_update",
        ("transaction.whole",),
        "metadata that a transaction deleted comes back with a recovery",
        _one(
            "transaction.py",
            "return Kind.UPDATE if self.seen_lsn and not self.renewed else Kind.INSERT",
            "return Kind.UPDATE if self.seen_lsn else Kind.INSERT",
        ),
        _STORE_TRANSACTIONS + "test_renewed_id_keeps_nothing_of_what_it_was_after_a_kill[py]",
    ),
    # -- transactions that wait for a decision
    Mutant(
        "prepare_record_not_forced",
        ("two_phase.prepare",),
        "the promise of a participant: after a power cut it cannot commit what everybody else has committed",
        _one("store.py", "        log.make_durable(lsn)\n", "        pass\n"),
        "store-py",
    ),
    Mutant(
        "prepared_transaction_rolled_back_by_recovery",
        ("two_phase.in_doubt",),
        "what a participant had promised to be able to commit",
        _one("recovery/recover.py", "        if whole(at, open_transactions.get(txn, [])):", "        if False:"),
        "store-py",
    ),
    Mutant(
        "members_of_a_prepared_transaction_not_compared",
        ("two_phase.in_doubt",),
        "half of a prepared transaction is committed as if it were whole",
        _one(
            "recovery/recover.py",
            "        if whole(at, open_transactions.get(txn, [])):",
            "        if txn in open_transactions:",
        ),
        _PREPARED + "test_half_of_a_prepared_transaction_is_refused[py]",
    ),
    Mutant(
        "what_the_checkpoint_holds_applied_again",
        ("two_phase.in_doubt",),
        "rows of a checkpoint: older ones take their place, which stand in the log that is kept for what is in doubt",
        _one(
            "recovery/recover.py",
            "is_new = np.isin(kinds, _ROW_KINDS), ends > index.redo_lsn",
            "is_new = np.isin(kinds, _ROW_KINDS), ends > 0",
        ),
        _PREPARED + "test_what_was_decided_before_the_checkpoint_is_not_looked_at_again[py]",
    ),
    Mutant(
        "log_not_pinned_by_what_is_in_doubt",
        ("two_phase.pin",),
        "the entries of a transaction in doubt, once checkpoints have passed it",
        _one("store.py", "        return self._prepared.pinned_lsn(redo_lsn)\n", "        return redo_lsn\n"),
        "store-py",
    ),
    Mutant(
        "log_not_pinned_by_a_decision_without_checkpoint",
        ("two_phase.pin",),
        "the entries of a transaction that was committed behind the last checkpoint and began before it",
        _one("prepared.py", "            self._decided.append((prepared.logged.first_lsn, lsn))", "            pass"),
        _PREPARED + "test_decision_that_is_not_applied_yet_pins_the_log_for_a_checkpoint[py]",
    ),
    Mutant(
        "log_let_go_up_to_the_redo_point",
        ("two_phase.pin", "checkpoint.release_log"),
        "the entries of a transaction in doubt, with the segments that no checkpoint needs for its rows",
        _one(
            "checkpoint/control.py",
            "        return min(int(slot.pinned_lsn) for slot in self.slots)\n",
            "        return min(int(slot.redo_lsn) for slot in self.slots)\n",
        ),
        _PREPARED + "test_it_keeps_the_log_from_its_first_entry_on_until_a_checkpoint_covers_its_end[py]",
    ),
    Mutant(
        "ids_in_doubt_written_by_others",
        ("two_phase.held",),
        "what another writer wrote to an id that a prepared transaction then overwrites",
        _one("prepared.py", "        if id in self.holders:", "        if False:"),
        _PREPARED + "test_its_ids_are_held_against_every_other_writer[py]",
    ),
    Mutant(
        "ids_in_doubt_not_held_after_a_restart",
        ("two_phase.held",),
        "the same, by a writer of the process that comes after",
        _one(
            "prepared.py",
            "        for prepared in found:\n            self.add(prepared)",
            "        for prepared in found:\n            self._by_gid[prepared.gid] = prepared",
        ),
        _PREPARED + "test_it_outlives_the_process_and_its_checkpoints",
    ),
    Mutant(
        "decision_finds_no_room",
        ("two_phase.end",),
        "every later write: the log is full of what only the decision lets go of",
        _one("log/log.py", "            self.keeper.lending = True\n", "            pass\n"),
        _PREPARED + "test_full_log_takes_the_decision_that_makes_room_again[py]",
    ),
    Mutant(
        "prepared_members_forgotten_by_readers",
        ("two_phase.end",),
        "entries of a transaction that a later process committed: readers of the log never see them",
        _one("log/reader.py", "                prepared.add(txn)", "                pass"),
        _PREPARED + "test_readers_of_the_log_see_its_entries_at_its_commit[py]",
    ),
    Mutant(
        "salvage_forgets_what_is_in_doubt",
        ("two_phase.in_doubt",),
        "a promise, though nothing of it was damaged",
        _one(
            "opening.py",
            "                store.log_prepared(undecided.gid, undecided.batches())",
            "                pass",
        ),
        _PREPARED + "test_salvaged_log_keeps_what_is_in_doubt[py]",
    ),
    Mutant(
        "decision_to_commit_not_forced",
        ("two_phase.decide",),
        "agreement: some have committed what the coordinator then rolls back",
        _one(
            "two_phase.py",
            "CustomEntry(Decided(gid, participants)), durable=True)",
            "CustomEntry(Decided(gid, participants)))",
        ),
        _TWO_PHASE + "test_every_message_and_some_of_the_disk_calls[py]",
    ),
    Mutant(
        "decision_not_logged",
        ("two_phase.decide",),
        "agreement: after a crash the coordinator rolls back what some have committed",
        _one(
            "two_phase.py",
            "            self._wal.log_entry(CustomEntry(Decided(gid, participants)), durable=True)",
            "            pass",
        ),
        _TWO_PHASE + "test_every_message_and_some_of_the_disk_calls[py]",
    ),
    Mutant(
        "decision_that_may_be_logged_taken_back",
        ("two_phase.decide",),
        "agreement: what the next coordinator finds decided was rolled back by hand",
        _one("two_phase.py", '            self._decision = "unknown"  #', "            pass  #"),
        _COORDINATOR + "test_interrupted_decision_is_nobodys_to_change[py]",
    ),
    Mutant(
        "open_transaction_rolled_back_by_recover",
        ("two_phase.decide",),
        "what a thread is about to commit",
        _one("two_phase.py", "        if gid in self._active:\n            return None\n", ""),
        _COORDINATOR + "test_transaction_without_a_decision_is_rolled_back_by_the_next_coordinator[py]",
    ),
    Mutant(
        "commit_told_once",
        ("two_phase.tell",),
        "a commit at a participant whose line was dead for a moment",
        _one(
            "two_phase.py",
            "                    if self._closing or (self._retry.wait(pause_s) and self._closing):",
            "                    if True:",
        ),
        _COORDINATOR + "test_commit_is_told_until_it_is_acknowledged",
    ),
    Mutant(
        "rollback_told_before_the_prepare_has_ended",
        ("two_phase.tell",),
        "ids of a participant that was slow: they stay in doubt",
        _one("two_phase.py", "                wait([preparing[name]])", "                pass"),
        _COORDINATOR + "test_participant_that_does_not_answer_in_time_is_rolled_back_when_it_does[py]",
    ),
    Mutant(
        "participant_commits_without_a_sync",
        ("two_phase.tell",),
        "a commit that was acknowledged, and that the coordinator has forgotten",
        _one(
            "two_phase.py",
            "            self._store.commit_prepared(gid)",
            "            self._store.commit_prepared(gid, durable=False)",
        ),
        _TWO_PHASE + "test_every_message_and_some_of_the_disk_calls[py]",
    ),
    Mutant(
        "decision_forgotten_before_all_know",
        ("two_phase.forget",),
        "a commit at a participant that was away",
        _one(
            "two_phase.py",
            "            if gid not in self._telling or not all(map(_has_succeeded, told.values())):",
            "            if gid not in self._telling:",
        ),
        _COORDINATOR + "test_next_coordinator_tells_what_the_last_one_had_decided[py]",
    ),
    Mutant(
        "decision_log_released_too_far",
        ("two_phase.forget",),
        "a decision that a participant has not heard of",
        _one(
            "two_phase.py",
            "needed_lsn = min([self._ended_lsn, *(lsn for lsn, _ in self._decided.values())])",
            "needed_lsn = self._ended_lsn",
        ),
        _COORDINATOR + "test_decision_log_stays_small_and_keeps_what_is_not_acknowledged[py]",
    ),
    # -- recovery of a store
    Mutant(
        "recovered_frames_not_verified",
        ("check.index",),
        "vectors that rotted in the log come back as if they were whole",
        _one("log/reader.py", "    if stop != end_lsn:\n        raise", "    if False:\n        raise"),
        "tests/recovery/test_verdicts_store.py::test_every_entry_has_one_verdict",
    ),
    Mutant(
        "log_that_begins_behind_the_checkpoint_accepted",
        ("check.redo",),
        "everything between a checkpoint and the log that should go on from it",
        (Edit("recovery/recover.py", "    if control.oldest_lsn > pinned_lsn:\n", "    if False:\n"),),
        "tests/opening/test_read_only.py::test_checkpoint_older_than_the_log_goes_back_is_an_error_for_readers_and_writers",
    ),
    Mutant(
        "trimmed_log_without_its_checkpoint_accepted",
        ("check.redo",),
        "everything that the missing checkpoint held",
        _one(
            "recovery/recover.py",
            'begins = "later" if control.oldest_lsn >',
            'begins = "start" if control.oldest_lsn >',
        ),
        "tests/recovery/test_recover.py::test_missing_data_with_a_trimmed_log_is_an_error",
    ),
    Mutant(
        "data_without_its_log_accepted",
        ("check.redo",),
        "everything since the checkpoint, silently",
        _one(
            "opening.py",
            '        if data is not None and not disk.exists(f"{wal_dir}/{CONTROL_NAME}"):',
            "        if False:",
        ),
        "tests/recovery/test_recover.py::test_missing_control_of_the_log_is_an_error[c]",
    ),
    Mutant(
        "vectors_of_another_dimension_accepted",
        ("check.entry",),
        "vectors: rows filled with bytes of others",
        _one(
            "recovery/recover.py",
            "        if found != (state.matrix.dtype, rows * state.matrix.row_bytes):",
            "        if False:",
        ),
        "tests/recovery/test_recover.py::test_vectors_of_two_dimensions_in_one_log_are_an_inconsistency[c]",
    ),
    Mutant(
        "recovered_rows_not_copied",
        ("recover.copy",),
        "the vectors of rows whose metadata alone was logged",
        (
            Edit(
                "recovery/recover.py",
                "            matrix.array[rows[kept]] = matrix.array[places[kept]]\n",
                "            pass\n",
            ),
        ),
        "tests/crash/test_protocol_steps.py::test_entry_without_a_vector_keeps_that_of_the_checkpoint",
    ),
    Mutant(
        "recovered_rows_gathered_elsewhere",
        ("recover.copy", "kernel.gather"),
        "the vectors of every entry since the checkpoint",
        _one(
            "kernel/reference.py",
            "        _copy(goal, row * stride, origin",
            "        _copy(goal, row * row_bytes, origin",
        ),
        "tests/kernel/test_rows.py::test_gather_copies_rows_from_offsets_to_places[py]",
    ),
    Mutant(
        "recovered_rows_trust_clean_pages",
        ("recover.stored",),
        "vectors that an earlier process could not sync",
        _one("recovery/recover.py", "        matrix.stored(rows)\n", ""),
        "store-py",
        seed=6,
    ),
    Mutant(
        "slot_trusted_after_failed_sync",
        ("recover.restate",),
        "a store whose newest slot was in memory only: its log was trimmed and its rows reused by that slot",
        _one("opening.py", "            loaded.control.restate()\n", ""),
        _STEPS + "test_slot_that_stood_in_memory_only_is_written_before_anything_is_let_go",
    ),
    Mutant(
        "names_in_the_data_directory_trusted_after_a_kill",
        ("recover.data_directory",),
        "a store whose first checkpoint's process was killed before its names were synced",
        (
            Edit(
                "opening.py",
                "            disk.sync_directory(data_dir)  # names may be in memory only, after a kill before "
                "their sync\n",
                "",
            ),
            Edit("checkpoint/control.py", '        self._disk.sync_directory(self.path.rpartition("/")[0])\n', ""),
        ),
        "tests/crash/test_protocol_steps.py::test_name_that_a_killed_process_did_not_sync_is_synced_by_the_next",
    ),
    # -- the checkpoint
    Mutant(
        "checkpoint_ahead_of_the_log",
        ("checkpoint.log_durable",),
        "the store: its checkpoint names what the log lost",
        _one("checkpoint/checkpoint.py", "            self._wait_durable(capture.applied_lsn)", "            pass"),
        "store-py",
        seed=3,
    ),
    Mutant(
        "checkpoint_without_matrix_sync",
        ("checkpoint.matrix_sync", "matrix.sync"),
        "the vectors of rows that a checkpoint names, once their log is gone",
        _one("checkpoint/checkpoint.py", "self._finally(self._matrix.sync)", "pass"),
        "store-py",
    ),
    Mutant(
        "checkpoint_after_a_failed_one",
        ("checkpoint.final",),
        "the vectors of pages that the first checkpoint had failed to write",
        _one("checkpoint/checkpoint.py", "        self._failure = error\n", "        pass\n"),
        "tests/checkpoint/test_failure.py::test_failed_sync_ends_checkpointing_with_the_same_cause[c-matrix]",
    ),
    Mutant(
        "image_over_another_one",
        ("image.create",),
        "the older checkpoint, by the base of the newer one",
        (
            Edit(
                "checkpoint/image.py",
                "disk.open(path, writable=True) if place.offset else disk.create(path)",
                "disk.open(path, writable=True) if disk.exists(path) else disk.create(path)",
            ),
            Edit(
                "checkpoint/checkpoint.py",
                "place = Place(current.store_id, 1 + max(taken), 0, 0)",
                "place = Place(current.store_id, max(1, *taken), 0, 0)",
            ),
        ),
        "tests/crash/test_protocol_steps.py::test_image_of_the_older_checkpoint_stays",
    ),
    Mutant(
        "image_not_written_whole",
        ("image.write",),
        "a checkpoint",
        _one("checkpoint/image.py", "            file.write(at, part)\n", "            file.write(at, part[:-1])\n"),
        "store-py",
        seed=2,
    ),
    Mutant(
        "half_an_image_kept",
        ("image.given_back",),
        "the room that a full disk had left",
        _one(
            "checkpoint/image.py",
            "                disk.unlink(path)\n        raise",
            "                pass\n        raise",
        ),
        "tests/checkpoint/test_failure.py::test_full_disk_is_not_final_and_loses_no_change[c-base-allocate]",
    ),
    Mutant(
        "image_not_synced_before_the_slot",
        ("image.sync",),
        "a checkpoint, and the log that it replaced",
        _one("checkpoint/checkpoint.py", "            image.file.sync()\n", "            pass\n"),
        "store-py",
    ),
    Mutant(
        "image_name_not_synced",
        ("image.directory",),
        "a checkpoint in a new image file, and the log that it replaced",
        _one("checkpoint/checkpoint.py", "            self._disk.sync_directory(self._data_dir)", "            pass"),
        "store-py",
        seed=2,
    ),
    Mutant(
        "slot_published_with_the_redo_point_of_later",
        ("checkpoint.publish",),
        "everything that was logged while a checkpoint ran",
        _one(
            "checkpoint/checkpoint.py",
            "            redo_lsn=capture.applied_lsn,\n            pinned_lsn",
            "            redo_lsn=capture.applied_lsn + 64,\n            pinned_lsn",
        ),
        "store-py",
    ),
    Mutant(
        "image_of_the_older_checkpoint_removed",
        ("image.remove",),
        "the older of two checkpoints, which a damaged newer one falls back to",
        _one(
            "checkpoint/checkpoint.py",
            "kept = {slot.image_number for slot in self._control.slots if slot.image_bytes}",
            "kept = {self._control.current.image_number}",
        ),
        "tests/crash/test_protocol_steps.py::test_image_of_the_older_checkpoint_stays",
    ),
    Mutant(
        "images_kept_for_ever",
        ("image.remove",),
        "the disk, which fills up",
        _one("checkpoint/image.py", "        disk.unlink(image_path(data_dir, number))\n", "        pass\n"),
        "tests/checkpoint/test_checkpoint.py::test_changes_are_appended_as_deltas_until_they_are_merged[posix-c]",
    ),
    Mutant(
        "log_released_up_to_the_newer_checkpoint",
        ("checkpoint.release_log",),
        "everything since the older checkpoint when the newer one is damaged",
        _one("opening.py", "    log.release(needed_lsn)\n", "    log.release(redo_lsn)\n"),
        "store-py",
        seed=3,
    ),
    Mutant(
        "log_released_up_to_the_newer_checkpoint_when_opening",
        ("opening.release_log",),
        "everything since the older checkpoint when the newer one is damaged",
        (Edit("opening.py", "        log.release(data.needed_lsn)\n", "        log.release(data.redo_lsn)\n"),),
        "tests/crash/test_protocol_steps.py::test_log_is_kept_for_the_older_checkpoint_when_a_store_is_opened",
    ),
    Mutant(
        "rows_reused_while_a_slot_names_them",
        ("state.pins",),
        "rows of a checkpoint, when the log that replaced them was not yet durable",
        _one("state/pins.py", "return sorted(self._counts)", "return []"),
        "tests/recovery/test_target.py::test_each_position_gives_what_the_store_held_then",
    ),
    Mutant(
        "rows_of_a_given_up_capture_kept",
        ("state.capture",),
        "nothing but room; and the changes that the next checkpoint has to write",
        _one(
            "state/state.py",
            "        capture.touched.extend(self._touched)\n        self._touched = capture.touched\n",
            "",
        ),
        "tests/state/test_state.py::test_capture_tells_what_was_touched_and_dropping_it_keeps_that_for_the_next",
    ),
    Mutant(
        "checkpoint_of_what_is_not_applied",
        ("checkpoint.quiesce",),
        "writes that were logged and not yet applied when a checkpoint began",
        _one("store.py", "if self._state is not None and not self._pending:", "if self._state is not None:"),
        _STEPS + "test_checkpoint_does_not_run_ahead_of_what_is_applied",
    ),
    Mutant(
        "readers_see_what_is_not_durable",
        ("store.turn",),
        "what a reader saw at interval 0 and a power cut took away",
        _one(
            "store.py",
            "            if self._each_durable:\n                self._pending.append((lsn, [(id, row, meta)]))",
            "            if False:\n                self._pending.append((lsn, [(id, row, meta)]))",
        ),
        "tests/store/test_durability.py::test_readers_see_nothing_before_it_is_durable",
    ),
    Mutant(
        "row_given_back_although_logged",
        ("store.give_back",),
        "vectors: two ids in one row",
        _one(
            "store.py",
            "            if self._each_durable:\n                self._pending.append((lsn, [(id, row, meta)]))",
            "            state.give_back(row)\n"
            "            if self._each_durable:\n                self._pending.append((lsn, [(id, row, meta)]))",
        ),
        "store-py",
    ),
    Mutant(
        "interrupted_write_forgotten",
        ("store.applied",),
        "what is logged: it is not applied, and the checkpoint of a close passes it",
        _one("store.py", "            self._log.stop(OSError(", "            str(OSError("),
        _INTERRUPTS + "test_what_is_in_the_log_is_there_after_a_close_as_after_a_kill",
    ),
    Mutant(
        "checkpoint_passes_an_interrupted_write",
        ("store.applied",),
        "the same, by a checkpoint that is taken by hand",
        _one(
            "store.py",
            "            raise self._log.refusal()  # what was logged last may not be applied",
            "            pass",
        ),
        _INTERRUPTS + "test_what_is_in_the_log_is_there_after_a_close_as_after_a_kill",
    ),
    Mutant(
        "growth_said_to_be_done_before_it_is",
        ("store.applied",),
        "every write behind a growth that failed: each is logged, raises and is not applied",
        _one(
            "state/state.py",
            "            ready = self.matrix.ensure(rows)\n        except",
            "            ready = self._ready_rows = self.matrix.ensure(rows)\n        except",
        ),
        _INTERRUPTS + "test_growth_that_fails_once_costs_one_write",
    ),
    # -- the matrix
    Mutant(
        "matrix_without_real_blocks",
        ("matrix.allocate",),
        "the process: a signal in the write that meets a full disk",
        _one(
            "state/matrix.py",
            "        self._file.allocate(size)\n        self._reach(size)\n",
            "        self._file.write(size - 1, bytes(1))\n        self._reach(size)\n",
        ),
        "tests/state/test_matrix.py::test_full_disk_is_an_error_that_changes_nothing",
    ),
    Mutant(
        "holes_of_a_copied_matrix_kept",
        ("matrix.holes",),
        "the process: a signal in the write that meets a full disk",
        _one("state/matrix.py", "                self._fill_holes(size)\n", "                pass\n"),
        "tests/crash/test_protocol_steps.py::test_holes_of_a_copied_matrix_are_filled",
    ),
    # -- the checkpoint, loaded
    Mutant(
        "image_checksum_not_compared",
        ("check.image",),
        "ids, by a flipped bit of an image",
        _one("format/image.py", '    if zlib.crc32(content) != fields["columns_crc"]:', "    if False:"),
        "tests/checkpoint/test_load.py::test_every_flipped_bit_of_the_image_is_noticed",
    ),
    Mutant(
        "image_section_of_another_place_accepted",
        ("check.image",),
        "ids, by a section that belongs to another image",
        _one("format/image.py", "        if fields[name] != getattr(place, name):", "        if False:"),
        "tests/format/test_image.py::test_delta_is_bound_to_its_place_and_its_predecessor",
    ),
    Mutant(
        "image_section_of_impossible_size_accepted",
        ("check.image",),
        "memory: whatever a damaged length asks for",
        _one("format/image.py", '    if fields["section_bytes"] != expected or expected > room:', "    if False:"),
        "tests/format/test_image.py::test_section_longer_than_the_room_is_refused_before_it_is_read",
    ),
    Mutant(
        "image_section_of_another_kind_accepted",
        ("check.image",),
        "ids: a delta without its base",
        _one("format/image.py", '    if fields["kind"] != (DELTA if place.offset else BASE):', "    if False:"),
        "tests/format/test_image.py::test_header_that_contradicts_its_place_or_its_sizes_is_refused",
    ),
    Mutant(
        "image_section_of_another_version_accepted",
        ("check.version",),
        "ids of a format that this version does not know",
        _one("format/image.py", '    if fields["version"] != FORMAT_VERSION:', "    if False:"),
        "tests/format/test_image.py::test_header_that_contradicts_its_place_or_its_sizes_is_refused",
    ),
    Mutant(
        "end_of_the_image_not_compared_with_the_slot",
        ("check.image",),
        "ids: an image that was written by another checkpoint",
        _one("checkpoint/image.py", "        if place.previous_crc != image_crc:", "        if False:"),
        "tests/checkpoint/test_load.py::test_slot_that_contradicts_its_image_is_refused",
    ),
    Mutant(
        "short_image_read",
        ("check.image",),
        "nothing while its sections are checked; a clear word about a cut image",
        _one("checkpoint/image.py", "        if file.size() < image_bytes:", "        if False:"),
        "tests/recovery/test_verdicts_store.py::test_every_image_has_one_verdict",
    ),
    Mutant(
        "slot_that_contradicts_its_image_accepted",
        ("check.slot",),
        "ids, or entries: the slot's redo point is not that of its image",
        _one("checkpoint/load.py", "        if last[name] != slot.fields[name]:", "        if False:"),
        "tests/crash/test_protocol_steps.py::test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "matrix_shorter_than_its_rows_accepted",
        ("check.slot",),
        "the process: a signal behind the end of the matrix",
        _one("checkpoint/load.py", "    if slot.rows_high * slot.row_bytes > matrix_bytes:", "    if False:"),
        "tests/recovery/test_verdicts_store.py::test_matrix_too_short_for_the_newer_checkpoint_alone_falls_back_to_the_older",
    ),
    Mutant(
        "missing_matrix_created_anew",
        ("check.slot",),
        "every vector of the checkpoint",
        _one(
            "checkpoint/load.py",
            "    if not disk.exists(path):\n        raise",
            "    if not disk.exists(path):\n        return 1 << 40\n        raise",
        ),
        "tests/recovery/test_verdicts_store.py::test_every_matrix_has_one_verdict",
    ),
    Mutant(
        "checkpoint_that_is_not_whole_taken_for_none",
        ("check.slots",),
        "the store, silently: it opens empty",
        _one(
            "checkpoint/load.py",
            '    raise CHECKPOINT.verdict(newer="damaged", older="damaged").mark(',
            '    return None\n    raise CHECKPOINT.verdict(newer="damaged", older="damaged").mark(',
        ),
        "tests/recovery/test_verdicts_store.py::test_every_pair_of_checkpoints_has_one_verdict",
    ),
    Mutant(
        "count_of_ids_not_compared",
        ("check.columns",),
        "ids",
        _one(
            "checkpoint/load.py",
            "    if not len(content.directory) == len(content.rows) == slot.live_rows:",
            "    if False:",
        ),
        _STEPS + "test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "row_out_of_range_accepted",
        ("check.columns",),
        "the process, or another id's vector",
        _one(
            "checkpoint/load.py",
            "    if len(used) and not (used.min() >= 0 and used.max() < high):",
            "    if False:",
        ),
        _STEPS + "test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "row_of_two_ids_accepted",
        ("check.columns",),
        "a vector: two ids in one row",
        _one("checkpoint/load.py", "    if int(taken.sum()) != len(used):", "    if False:"),
        _STEPS + "test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "lsn_behind_the_redo_point_accepted",
        ("check.columns",),
        "the order of writes: an older one wins in recovery",
        _one(
            "checkpoint/load.py",
            "    if len(content.lsns) and int(content.lsns.max()) > slot.redo_lsn:",
            "    if False:",
        ),
        _STEPS + "test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "id_that_stands_twice_accepted",
        ("check.columns",),
        "one of the two rows of an id",
        _one(
            "checkpoint/load.py",
            "not len(content.directory) == len(content.rows) == slot.live_rows:",
            "len(content.rows) != slot.live_rows:",
        ),
        _STEPS + "test_image_that_contradicts_itself_is_refused",
    ),
    Mutant(
        "data_of_another_store_accepted",
        ("check.store",),
        "another store's vectors under this one's log",
        _one("checkpoint/load.py", "    if store_id is not None and store_id != identity.store_id:", "    if False:"),
        "tests/checkpoint/test_load.py::test_data_of_another_store_is_refused",
    ),
    Mutant(
        "control_of_a_newer_version_accepted",
        ("check.slots",),
        "a store of a format that this version does not know",
        (
            Edit(
                "log/control_file.py",
                '        if fields["version"] > FORMAT_VERSION or fields["features_required"]:\n'
                '            return "newer"\n',
                "",
            ),
        ),
        "tests/checkpoint/test_load.py::test_control_file_of_a_newer_version_is_refused",
    ),
    Mutant(
        "impossible_identity_accepted",
        ("check.slots",),
        "the process: rows or segments of an impossible size",
        (Edit("log/control_file.py", 'return "impossible" if contradiction(fields) else "sound"', 'return "sound"'),),
        "tests/crash/test_protocol_steps.py::test_impossible_identity_of_a_log_is_refused",
    ),
    Mutant(
        "damaged_control_taken_for_a_new_one",
        ("check.slots",),
        "every entry or checkpoint, silently: a new one begins",
        (
            Edit(
                "log/control_file.py",
                "    if verdict.error is not None:\n        raise verdict.mark(_refusal(",
                "    if verdict.error is not None and any(content):\n        return [], []\n"
                "    if verdict.error is not None:\n        raise verdict.mark(_refusal(",
            ),
        ),
        "tests/recovery/test_verdicts_log.py::test_every_pair_of_slots_has_one_verdict",
    ),
    Mutant(
        "reader_keeps_its_locks",
        ("read.unlock",),
        "nothing; the writer unlinks what it could recycle, for ever",
        (
            Edit(
                "opening.py",
                "            store.end()\n        for lock in locks:\n            lock.release()\n",
                "            store.end()\n",
            ),
        ),
        "tests/opening/test_read_only.py::test_writer_recycles_segments_only_while_nobody_reads[py-simulated]",
    ),
    Mutant(
        "name_of_a_new_matrix_not_synced",
        ("matrix.name",),
        "every vector, with the name of the file",
        (Edit("state/matrix.py", '        disk.sync_directory(path.rpartition("/")[0])\n', ""),),
        "tests/state/test_matrix.py::test_name_of_a_new_matrix_survives_a_power_cut",
    ),
    Mutant(
        "leftover_of_a_crashed_creation_refused",
        ("matrix.create",),
        "a store that crashed in its first milliseconds: it does not open, ever",
        (
            Edit(
                "state/matrix.py",
                "disk.open(path, writable=True) if disk.exists(path) else disk.create(path)",
                "disk.create(path)",
            ),
        ),
        "store-py",
    ),
    Mutant(
        "image_written_without_room",
        ("image.allocate",),
        "nothing; a full disk shows only in the middle of an image",
        (Edit("checkpoint/image.py", "        file.allocate(place.offset + section.section_bytes)\n", ""),),
        "tests/checkpoint/test_failure.py::test_full_disk_is_not_final_and_loses_no_change",
    ),
    Mutant(
        "first_checkpoint_ahead_of_the_log",
        ("checkpoint.first",),
        "a new store: its checkpoint begins behind the end of its log, and it does not open",
        (Edit("opening.py", "        log.make_durable(redo_lsn)  #", "        #"),),
        "tests/crash/test_protocol_steps.py::test_first_checkpoint_begins_where_the_log_is_durable",
    ),
    Mutant(
        "rows_of_the_older_slot_reused",
        ("state.published",),
        "rows of the older checkpoint, when the newer one is damaged",
        (Edit("state/state.py", "        for lsn in self._slots[:-1]:\n", "        for lsn in self._slots:\n"),),
        "tests/state/test_state.py::test_row_named_by_a_slot_waits_until_both_slots_have_moved_on",
    ),
    Mutant(
        "pins_never_released",
        ("state.released", "state.capture"),
        "nothing; rows are never reused, and the matrix grows for ever",
        (Edit("state/pins.py", "        self._released.append(lsn)\n", "        pass\n"),),
        "tests/state/test_state.py::test_row_that_a_reader_sees_is_not_taken",
    ),
    Mutant(
        "rows_taken_from_under_a_reader",
        ("state.limbo", "state.pins"),
        "vectors: a reader sees another id's",
        (Edit("state/limbo.py", "rows[~guarded & ~unsettled]", "rows[~unsettled]"),),
        "tests/state/test_state.py::test_row_that_a_reader_sees_is_not_taken",
    ),
    Mutant(
        "directory_under_the_name_of_a_file_not_named",
        ("check.names",),
        "nothing; an error that says what is in the way",
        (Edit("log/control_file.py", "        if error.errno not in NOT_A_FILE:\n", "        if error.errno:\n"),),
        "tests/crash/test_protocol_steps.py::test_directory_under_the_name_of_a_file_is_refused",
    ),
    Mutant(
        "data_of_another_shape_than_the_log_accepted",
        ("check.alike",),
        "vectors: rows of one dtype read as another",
        (Edit("recovery/recover.py", "    if not alike:\n", "    if False:\n"),),
        "tests/crash/test_protocol_steps.py::test_log_and_data_of_two_metrics_are_refused",
    ),
    Mutant(
        "entries_of_another_dimension_than_the_log_accepted",
        ("check.alike",),
        "nothing; but every insert that follows fails with an error that is none of ours",
        _one("recovery/recover.py", "    if identity.dimension not in (0, from_log):\n", "    if False:\n"),
        "tests/hostile/test_nasty_files.py::"
        "test_nasty_file_is_refused_by_name_and_nothing_is_changed[dimension that the entries contradict]",
    ),
    # -- one writer
    Mutant(
        "two_writers",
        ("open.lock",),
        "everything: two processes append to one log",
        _one(
            "recovery/log_opening.py",
            'return disk.lock(f"{wal_dir}/lock")',
            'return disk.lock(f"{wal_dir}/lock-{disk.random_bytes(4).hex()}")',
        ),
        "tests/opening/test_open.py::test_second_writer_is_refused_and_told_who_the_first_is",
    ),
    Mutant(
        "lock_kept_after_a_refused_opening",
        ("open.unlock",),
        "nothing; the directory cannot be opened again",
        (
            Edit(
                "opening.py",
                "            found.close()\n        lock.release()\n        raise",
                "            found.close()\n        raise",
            ),
        ),
        "tests/crash/test_protocol_steps.py::test_refused_opening_frees_the_lock",
    ),
    Mutant(
        "name_of_a_new_directory_not_synced",
        ("open.directory",),
        "a whole new store, with its directory",
        _one("disk/posix.py", "            self.sync_directory(os.path.dirname(directory))\n", ""),
        "tests/disk/test_files.py::test_parents_are_synced_before_the_next_name_is_made",
    ),
]

EQUIVALENT = [
    Equivalent(
        "nothing_populated",
        ("populate",),
        "blocks are allocated before anything is mapped, so a fault costs time and nothing else; populating "
        "takes it where nobody waits",
        "tests/log/test_segments.py::test_full_file_system_is_an_exception_never_a_signal",
        (
            Edit("log/log.py", "        segment.mapping.populate(0, self.segment_bytes)\n", ""),
            Edit("log/keeper.py", "            self._attached[number].mapping.populate(0, self._segment_bytes)\n", ""),
            Edit("log/segment.py", "        self.mapping.populate(offset, len(content))", "        pass"),
            Edit("state/matrix.py", "                self._mapping.populate(start, end - start)\n", ""),
        ),
        "store-py",
    ),
    Equivalent(
        "retired_names_not_synced",
        ("retire.directory",),
        "a name that comes back lies below the oldest LSN, which both slots of the control file name durably "
        "before: recovery removes it, whatever it holds; and a name is used again only after a sync of the "
        "directory",
        "tests/crash/test_protocol_steps.py::test_name_below_the_oldest_lsn_is_removed_whatever_it_holds",
        (
            Edit(
                "log/keeper.py",
                "            self.sealed.remove(number)\n        self._disk.sync_directory(self._wal_dir)\n",
                "            self.sealed.remove(number)\n",
            ),
        ),
        "log-py",
    ),
    Equivalent(
        "ring_not_freed_early",
        ("keeper.ring_sync",),
        "a segment leaves the ring only once it is durable; without the early sync, appends at a long interval "
        "wait for a slot",
        "tests/kernel/test_publish.py::test_nothing_is_taken_while_the_next_segment_is_missing",
        (Edit("log/keeper.py", "            self._gate.sync(self._cursor.published)\n", "            pass\n"),),
        "log-py",
    ),
    Equivalent(
        "reader_takes_no_lock_on_the_data",
        ("read.lock_data",),
        "the writer asks for readers at the control file of the log, where every reader holds a lock too; and "
        "a reader copies rows, which it proves by their checksums",
        "tests/opening/test_read_only.py::test_writer_recycles_segments_only_while_nobody_reads[py-simulated]",
        (Edit("recovery/read_only.py", "            locks.append(disk.lock_shared(data))\n", "            pass\n"),),
        "store-py",
    ),
    Equivalent(
        "removed_images_not_synced",
        ("image.remove_directory",),
        "an image that comes back is named by no slot, its number is not used again, and the next checkpoint "
        "removes it",
        "tests/checkpoint/test_failure.py::test_image_that_cannot_be_removed_is_removed_the_next_time",
        (Edit("checkpoint/image.py", "    if removed:\n        disk.sync_directory(data_dir)\n", ""),),
        "store-py",
    ),
    Equivalent(
        "tail_not_cleared_behind_the_cut",
        ("tail.zero",),
        "the footer that recovery writes, durable before anything new is logged, ends the segment at the cut, "
        "and so does the next segment's link; the zeros keep what was cut off from lying about",
        "tests/recovery/test_tail.py::test_damaged_footer_of_a_cut_segment_is_replaced_by_the_link_too",
        (Edit("recovery/tail.py", "        segment.view[offset : offset + size] = bytes(size)\n", "        pass\n"),),
        "log-py",
    ),
    Equivalent(
        "slot_published_over_the_current_one",
        ("checkpoint.publish",),
        "the log is released, and images are removed, by what the two slots really say: the other slot just "
        "stays behind, and still finds everything it names",
        "tests/checkpoint/test_checkpoint.py::test_both_slots_can_be_loaded",
        (
            Edit(
                "checkpoint/control.py",
                "        self._write(1 - self.current.index, changes)\n",
                "        self._write(self.current.index, changes)\n",
            ),
        ),
        "store-py",
    ),
    Equivalent(
        "name_of_the_control_file_not_synced_when_created",
        ("control.create_directory",),
        "every directory is synced again before anything in it is acknowledged: that of the log by its first "
        "segment, that of the data by the first image",
        "tests/crash/test_protocol_steps.py::test_new_store_is_whole_or_not_there_at_every_step",
        (
            Edit(
                "log/control_file.py",
                "    disk.rename(temporary, path)\n    disk.sync_directory(directory)\n",
                "    disk.rename(temporary, path)\n",
            ),
        ),
        "store-py",
    ),
    Equivalent(
        "name_of_the_log_not_synced_when_opened",
        ("open.wal_directory",),
        "recovery syncs the directory when it has cleared it, before anything is appended",
        "tests/recovery/test_recover.py::test_recovery_that_is_killed_at_any_step_and_runs_again_gives_the_same_state",
        (Edit("recovery/log_opening.py", "    disk.sync_directory(wal_dir)  #", "    #"),),
        "store-py",
    ),
    Equivalent(
        "footer_of_an_earlier_life_left_there",
        ("segment.footer_sector",),
        "a footer counts only under the number and the salt of its header, and for an end within the segment",
        "tests/recovery/test_verdicts_log.py::test_every_seal_has_one_verdict",
        (Edit("log/segment.py", "file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))\n", "pass\n"),),
        "log-py",
    ),
    Equivalent(
        "columns_of_another_size_accepted",
        ("check.image",),
        "the checksum of the columns, which the header names, covers their length too",
        "tests/checkpoint/test_load.py::test_every_cut_of_the_image_is_noticed",
        (Edit("format/image.py", '    if len(content) != fields["section_bytes"] - HEADER_BYTES:', "    if False:"),),
        "store-py",
    ),
    Equivalent(
        "run_that_does_not_continue_accepted",
        ("check.chain",),
        "a link counts only if it names an end in the segment before, and then it seals that one: no run goes "
        "on behind another end",
        "tests/recovery/test_verdicts_log.py::test_every_link_behind_a_sealed_segment_has_one_verdict",
        (
            Edit(
                "recovery/tail.py",
                'if result.run and info.link and info.link["previous_end_lsn"] != result.end_lsn:',
                "if False:",
            ),
        ),
        "log-py",
    ),
    Equivalent(
        "link_of_a_new_segment_left_out",
        ("segment.link_sector",),
        "the durable position begins at the first entry behind a cut, so each of these entries records that "
        "all before it was durable, and recovery follows that where the link is missing",
        "tests/recovery/test_verdicts_log.py::test_every_link_behind_a_sealed_segment_has_one_verdict",
        (Edit("log/segment.py", 'link = _link(number, salt, previous) if previous else b""', 'link = b""'),),
        "log-py",
    ),
]
