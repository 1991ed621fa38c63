"""Durability mutants: breakages of the protocol, one line each, that the crash explorer must find, every one.

    tools/mutate.py                      all of them, one after the other; exit code 1 if one survives
    tools/mutate.py no_directory_sync    one of them
    tools/mutate.py --unmutated          the same budgets on the package as it is: nothing may be found

A mutant is applied to a temporary copy of the package, never here. `EQUIVALENT` keeps the breakages that were tried and
cannot cost anything, each with the defence that stands behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES_MAX = 12_000
SECONDS_MAX = 30  # of CPU time


@dataclass(frozen=True)
class Mutant:
    """One breakage: where, what becomes of it, and what a user would lose."""

    name: str
    file: str
    old: str
    new: str
    loses: str
    target: str = "log"
    seed: int = 1  # of the stories that find it soon


MUTANTS = [
    Mutant(
        "acknowledged_without_sync",
        "log/gate.py",
        "self._mapping_of(number).sync(offset, length)",
        "self._mapping_of(number)",
        "every write acknowledged since the last write-back",
    ),
    Mutant(
        "sync_one_page_short",
        "log/gate.py",
        "stop = min(-(-(end - base) // PAGE_BYTES) * PAGE_BYTES, segment_bytes)",
        "stop = max(offset, (end - base) // PAGE_BYTES * PAGE_BYTES)",
        "acknowledged entries in the last page of a sync",
    ),
    Mutant(
        "durable_moves_before_the_sync",
        "log/gate.py",
        "started_ns = self._disk.monotonic_ns()",
        "started_ns, self._u64[words.DURABLE // 8] = self._disk.monotonic_ns(), published",
        "entries whose durability was reported while the sync was still running",
    ),
    Mutant(
        "failed_sync_forgotten",
        "log/gate.py",
        "self._u8[words.STATE] = words.STATE_POISONED",
        "pass",
        "entries acknowledged by a second sync of pages that the first had failed to write",
    ),
    Mutant(
        "new_segment_without_directory_sync",
        "log/segment.py",
        'disk.rename(path, f"{wal_dir}/{segment_name(number)}")\n        disk.sync_directory(wal_dir)',
        'disk.rename(path, f"{wal_dir}/{segment_name(number)}")',
        "a whole segment of acknowledged entries, with its name",
    ),
    Mutant(
        "new_segment_without_sync",
        "log/segment.py",
        "file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))\n        file.sync()",
        "file.write(size - FOOTER_BYTES, bytes(FOOTER_BYTES))",
        "a segment of acknowledged entries whose header never reached the disk: the log does not open",
    ),
    Mutant(
        "sealed_before_durable",
        "log/keeper.py",
        "while self._cursor.durable >= data_end(",
        "while self._cursor.published >= data_end(",
        "entries behind a footer that vouched for them too early: the log does not open or has a hole",
    ),
    Mutant(
        "footer_not_synced_nor_link",
        "log/segment.py",
        "self.mapping.sync(offset, len(content))",
        "pass",
        "the proof that a cut was final: entries cut off come back behind newer ones, or the log does not open",
    ),
    Mutant(
        "recovery_exposes_what_is_only_in_memory",
        "recovery/tail.py",
        "segment.mapping.sync(start, stop - start)",
        "pass",
        "entries that a recovery showed and a power cut took away",
    ),
    Mutant(
        "recovery_trusts_clean_pages",
        "recovery/tail.py",
        "segment.mapping.rewrite(start, end - start)",
        "pass",
        "entries shown after a failed sync and a restart, of which the disk knows nothing",
    ),
    Mutant(
        "control_trusted_after_failed_sync",
        "recovery/tail.py",
        "judged.control.store_again()",
        "pass",
        "both slots of the control file: the log does not open",
        seed=4,
    ),
    Mutant(
        "control_not_synced",
        "log/control_file.py",
        "file.write(SLOT_OFFSETS[index], slot)\n        file.sync()",
        "file.write(SLOT_OFFSETS[index], slot)",
        "segments that the durable control file still names: the log does not open",
    ),
    Mutant(
        "clean_mark_kept_while_appending",
        "log/log.py",
        "            clean=0,\n            end_lsn=0,\n",
        "",
        "everything logged since the last clean close",
    ),
    Mutant(
        "retired_before_the_control_file_says_so",
        "log/keeper.py",
        "self._control.write_both(oldest_lsn=oldest_lsn, durable_lsn=durable_lsn)",
        "pass",
        "a log that begins in a segment that is gone: it does not open",
        seed=4,
    ),
    Mutant(
        "checksum_not_verified",
        "kernel/reference.py",
        "if verify and frame_crc(",
        "if False and frame_crc(",
        "torn vectors come back as if they were whole",
    ),
    Mutant(
        "salt_not_renewed",
        "log/segment.py",
        'salt = int.from_bytes(disk.random_bytes(8), "little")',
        "salt = 7",
        "nothing, at once; then frames of the segment's earlier life come back behind new ones",
    ),
    Mutant(
        "look_ahead_dropped",
        "recovery/tail.py",
        "if len(beyond):",
        "if False:",
        "durable entries behind a damaged one, silently cut off as a torn tail",
        seed=6,
    ),
    Mutant(
        "transaction_without_commit_frame",
        "log/log.py",
        "lsn = self.append_frame(Kind.COMMIT, 0, len(frames), txn, content)",
        "pass",
        "whole batches larger than a segment",
    ),
    Mutant(
        "identity_renamed_before_sync",
        "log/control_file.py",
        'file.write(0, slot.ljust(CONTROL_BYTES, b"\\0"))\n        file.sync()',
        'file.write(0, slot.ljust(CONTROL_BYTES, b"\\0"))',
        "a new log, which does not open",
    ),
    Mutant(
        "spares_renamed_without_directory_sync",
        "recovery/tail.py",
        "    disk.sync_directory(wal_dir)\n    return spares",
        "    return spares",
        "a discarded segment comes back under its old name",
        seed=4,
    ),
    Mutant(
        "old_segment_left_out_of_the_sync",
        "log/gate.py",
        "for number in range(durable // segment_bytes, -(-published // segment_bytes)):",
        "for number in range((published - 1) // segment_bytes, -(-published // segment_bytes)):",
        "the end of the old segment when a sync spans a rotation",
    ),
    Mutant(
        "checkpoint_without_matrix_sync",
        "checkpoint/checkpoint.py",
        "self._finally(self._matrix.sync)",
        "pass",
        "the vectors of rows that a checkpoint names, once their log is gone",
        "store",
    ),
    Mutant(
        "image_not_synced_before_the_slot",
        "checkpoint/checkpoint.py",
        "            image.file.sync()\n",
        "            pass\n",
        "a checkpoint, and the log that it replaced",
        "store",
    ),
    Mutant(
        "image_name_not_synced",
        "checkpoint/checkpoint.py",
        "            self._disk.sync_directory(self._data_dir)",
        "            pass",
        "a checkpoint in a new image file, and the log that it replaced",
        "store",
    ),
    Mutant(
        "checkpoint_ahead_of_the_log",
        "checkpoint/checkpoint.py",
        "            self._wait_durable(capture.applied_lsn)",
        "            pass",
        "the store: its checkpoint names what the log lost",
        "store",
        seed=3,
    ),
    Mutant(
        "log_released_up_to_the_newer_checkpoint",
        "opening.py",
        "    log.release(older_redo_lsn)\n",
        "    log.release(redo_lsn)\n",
        "everything since the older checkpoint when the newer one is damaged",
        "store",
        seed=3,
    ),
    Mutant(
        "rows_reused_while_a_slot_names_them",
        "state/pins.py",
        "return sorted(self._counts)",
        "return []",
        "rows of a checkpoint, when the log that replaced them was not yet durable",
        "store",
        seed=2,
    ),
    Mutant(
        "recovered_rows_trust_clean_pages",
        "recovery/recover.py",
        "        state.matrix.rewrite(rows)\n",
        "",
        "vectors that an earlier process could not sync",
        "store",
    ),
    Mutant(
        "members_not_bound_to_their_commit",
        "log/log.py",
        "members_crc = zlib.crc32(self._checksum_at(start), members_crc)",
        "members_crc = 0",
        "batches larger than a segment: recovery cannot tell their members",
        "store",
    ),
]

EQUIVALENT = {
    "slot published over the current one": "the log is released, and images are removed, by what the two slots really "
    "say: the other slot just stays behind, and still finds everything it names",
    "rows reused that only the older slot names": "the log is durable up to the newer slot, and has a later write for "
    "every row that died before it; the rule is kept for states as of an earlier time, and held by tests/state",
    "tail not cleared behind the cut": "the footer that recovery writes, durable before anything new is logged, ends "
    "the segment at the cut, and so does the next segment's link; the zeros keep what was cut off from lying about",
}


def mutated_copy(mutant: Mutant | None, folder: Path) -> Path:
    """Copies the package into a folder, with the mutant applied; returns the folder."""
    shutil.copytree(ROOT / "mmwal", folder / "mmwal", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        path = folder / "mmwal" / mutant.file
        text = path.read_text("utf-8")
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: its text occurs {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
    return folder


def hunt(
    mutant: Mutant | None,
    images: int = IMAGES_MAX,
    seconds: float = SECONDS_MAX,
    seed: int | None = None,
    target: str = "log",
) -> dict[str, Any]:
    """Explores a copy; returns the report of `tools/crash.py`, in which ``violation`` says whether it was found."""
    with tempfile.TemporaryDirectory() as folder:
        copy = mutated_copy(mutant, Path(folder))
        command = [
            sys.executable,
            "-W",
            "ignore",
            str(copy / "tools" / "crash.py"),
            "--target",
            mutant.target if mutant else target,
            "--json",
        ]
        command += [
            "--images",
            str(images),
            "--seconds",
            str(seconds),
            "--seed",
            str(seed or (mutant.seed if mutant else 1)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, cwd=copy, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise RuntimeError(f"the explorer broke: {done.stderr[-2000:]}")
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--unmutated", action="store_true")
    parser.add_argument("--seed", type=int, help="another than the one that finds it soon")
    arguments = parser.parse_args()
    if arguments.unmutated:
        report = hunt(None, seed=arguments.seed)
        print(report["violation"] or f"nothing found in {report['distinct']:,} images")
        return 1 if report["violation"] else 0
    survivors = []
    for mutant in MUTANTS:
        if arguments.names and mutant.name not in arguments.names:
            continue
        started = time.perf_counter()
        report = hunt(mutant, seed=arguments.seed)
        found = report["violation"]
        word = "found" if found else "SURVIVED"
        seconds = time.perf_counter() - started
        print(f"{word:9}{report['distinct']:7,} images {seconds:6.1f} s  {mutant.name}", flush=True)
        if found:
            print(f"{'':10}{found['problem'].splitlines()[0][:150]}", flush=True)
        else:
            survivors.append(mutant.name)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
