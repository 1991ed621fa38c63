"""The checkpoint: what is alive in memory becomes a redo point on disk. This file is its spine.

Not here: what changed (`changes.py`), how it is written (`image.py`, `control.py`), how it is read (`load.py`).

* Writes and reads go on during a checkpoint; the state's lock is held for two instants only.
* A crash at any instant finds this checkpoint or the one before, whole: rows, image regions and the slot of the one
  before are not touched until this one is durable, and the one before that is let go of only then.
* A failed sync or a failed write of matrix, image or control is final: no further checkpoint is taken by this process,
  and nothing that may be named by a slot is reused. A disk too full for the image is not: it shows before anything
  is published, and the next attempt may succeed.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mmwal.checkpoint.changes import Changes, base_columns, changes_since, delta_columns
from mmwal.checkpoint.image import image_numbers, remove_images, write_section
from mmwal.checkpoint.load import Loaded
from mmwal.disk.interface import Disk, File
from mmwal.entry import CheckpointInfo
from mmwal.errors import CheckpointFailedError, WalClosedError, WalFullError
from mmwal.format.control import DATA_CONTROL
from mmwal.format.image import BASE, DELTA, NewColumns, Place, Section, encode_section
from mmwal.kernel.interface import Kernel
from mmwal.state.state import Capture

DELTAS_BYTES_LEAST = 64 << 10  # below this, deltas are never merged into a new base
_NUMBER_MOST = 1 << 62
_ENTRY_BYTES_LEAST = 25  # in a section: length and a byte of id, row, LSN, checksum
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class _Image:
    """Where a section was written, and what the image is with it."""

    number: int
    base_bytes: int
    image_bytes: int
    crc: int
    section_bytes: int
    file: File


class Checkpointer:
    """Takes the checkpoints of one store; any number of threads may ask."""

    def __init__(
        self,
        disk: Disk,
        data_dir: str,
        kernel: Kernel,
        loaded: Loaded,
        *,
        wait_durable: Callable[[int], None],
        on_published: Callable[[int, int, int], None],
        before_capture: Callable[[], None] = lambda: None,
        pinned_lsn: Callable[[int], int] = lambda redo_lsn: redo_lsn,
    ) -> None:
        """Goes on from what `load_checkpoint` (and then `DataControl.restate`) or `create_data` returned.

        Args:
            wait_durable: returns once the log is durable up to an LSN, or raises; called with no lock held.
            on_published: called with where the log is needed from for either slot, the newer one's redo LSN, and the
                checkpoint's number, once that is durable: the log below is not needed any more.
            before_capture: called under the state's lock right before the capture.
            pinned_lsn: called right behind it, with the redo LSN: where the log is needed from for this checkpoint.
        """
        self._disk = disk
        self._data_dir = data_dir
        self._kernel = kernel
        self._state = loaded.state
        self._matrix = loaded.matrix
        self._control = loaded.control
        self._base_bytes = loaded.base_bytes
        self._begin_anew = loaded.fell_back  # the image's file has a damaged end
        self._wait_durable = wait_durable
        self._on_published = on_published
        self._before_capture = before_capture
        self._pinned_lsn = pinned_lsn
        # Whoever asks waits for a checkpoint that began after he asked; `_turn` orders who takes it.
        self._turn = disk.condition()
        self._begun = self._ended = 0  # under `_turn`: checkpoints begun, and the last one that succeeded
        self._running = False
        self._info: CheckpointInfo | None = None
        self._failure: BaseException | None = None
        self._closed = False  # under `_turn`

    @property
    def redo_lsn(self) -> int:
        """Where replay starts for the newest checkpoint."""
        return self._control.redo_lsn

    @property
    def needed_lsn(self) -> int:
        """Where the log is needed from for either of the two that count."""
        return self._control.needed_lsn

    @property
    def sequence(self) -> int:
        """The number of the newest checkpoint."""
        return self._control.sequence

    @property
    def failure(self) -> BaseException | None:
        """What ended checkpointing, if anything did."""
        return self._failure

    def take(self) -> CheckpointInfo:
        """Takes a checkpoint that holds everything applied when this was called; calls at one time share it.

        Raises:
            CheckpointFailedError: this one or an earlier one failed on disk; its cause is the `OSError`.
            WalFullError: the disk has no room for the image. Nothing was published; try again when it has.
            What ``wait_durable`` raises; nothing was published then.

        Durability: on return a crash needs the log from ``redo_lsn`` on only.
        """
        with self._turn:
            wanted = self._begun + 1
            while True:
                if self._closed:
                    raise WalClosedError("the store is closed; open the directory again")
                if self._failure is not None:
                    raise self._refusal()
                if self._ended >= wanted and self._info is not None:
                    return self._info
                if not self._running:
                    break
                self._turn.wait()
            self._running = True
            self._begun += 1
            begun = self._begun
        try:
            info = self._take()
            with self._turn:
                self._ended, self._info = begun, info
        finally:
            with self._turn:
                self._running = False
                self._turn.notify_all()
        return info

    def close(self) -> None:
        """Waits for a checkpoint that runs, and refuses later ones."""
        with self._turn:
            self._closed = True
            while self._running:
                self._turn.wait()

    # -- the steps ------------------------------------------------------------------------------------------------

    def _take(self) -> CheckpointInfo:
        started_ns = self._disk.monotonic_ns()
        # 1. Capture: an LSN, and what was touched since the checkpoint before.
        with self._state.lock:
            self._before_capture()
            capture = self._state.capture()
            pinned_lsn = self._pinned_lsn(capture.applied_lsn)
        try:
            # 2. The log is durable up to there: what the image names must not vanish from the log.
            self._wait_durable(capture.applied_lsn)
            # 3. The rows.
            self._finally(self._matrix.sync)
            # 4. What changed.
            changes = changes_since(self._state, capture)
            # 5. The image, with a checksum for every new row: a delta behind the last one, or a new base.
            image = self._write_image(capture, changes)
            self._finally(lambda: self._sync_image(image))
            # 6. The slot: from here on a crash finds this checkpoint.
            self._finally(lambda: self._publish(capture, image, pinned_lsn))
        except BaseException:
            self._give_up(capture)
            raise
        # 7. What only the overwritten slot named is let go: rows (in `_publish`), image files, the log.
        self._base_bytes, self._begin_anew = image.base_bytes, False
        self._remove_images()
        self._on_published(self.needed_lsn, self.redo_lsn, self.sequence)
        return CheckpointInfo(
            sequence=self.sequence,
            lsn=capture.applied_lsn,
            redo_lsn=self.redo_lsn,
            elapsed_ms=(self._disk.monotonic_ns() - started_ns) / 1e6,
            bytes_written=image.section_bytes + DATA_CONTROL.size + len(changes.new) * self._matrix.stride,
            rows_changed=len(changes),
            live_rows=capture.live_rows,
        )

    def _write_image(self, capture: Capture, changes: Changes) -> _Image:
        current = self._control.current
        room = max(DELTAS_BYTES_LEAST, self._base_bytes // 2) - (current.image_bytes - self._base_bytes)
        if current.image_bytes and not self._begin_anew and len(changes) * _ENTRY_BYTES_LEAST <= room:
            place = Place(current.store_id, current.image_number, current.image_bytes, current.image_crc)
            columns = delta_columns(self._kernel, self._state, capture, changes)
            section = self._encode(place, DELTA, capture, columns)
            if section.section_bytes <= room:
                return self._write(place, section, self._base_bytes)
        try:
            found = image_numbers(self._disk, self._data_dir)
        except OSError as error:
            raise self._fail(error) from error
        taken = [number for number in found if number < _NUMBER_MOST]  # any other file with such a name is none of ours
        taken += [slot.image_number for slot in self._control.slots]
        place = Place(current.store_id, 1 + max(taken), 0, 0)
        columns = base_columns(self._kernel, self._state, capture, changes)
        section = self._encode(place, BASE, capture, columns)
        return self._write(place, section, section.section_bytes)

    def _encode(self, place: Place, kind: int, capture: Capture, columns: NewColumns) -> Section:
        return encode_section(
            place,
            kind=kind,
            sequence=self.sequence + 1,
            redo_lsn=capture.applied_lsn,
            rows_high=capture.rows_high,
            live_rows=capture.live_rows,
            columns=columns,
        )

    def _write(self, place: Place, section: Section, base_bytes: int) -> _Image:
        try:
            file = write_section(self._disk, self._data_dir, place, section)
        except OSError as error:
            if error.errno not in _FULL:
                raise self._fail(error) from error
            raise WalFullError(
                f"{self._data_dir}: no space for a checkpoint of {section.section_bytes:,} bytes ({error.strerror}); "
                "the one before stands. Free some space, then take it again",
                error.errno,
            ) from error
        return _Image(
            number=place.image_number,
            base_bytes=base_bytes,
            image_bytes=place.offset + section.section_bytes,
            crc=section.crc,
            section_bytes=section.section_bytes,
            file=file,
        )

    def _sync_image(self, image: _Image) -> None:
        """Makes the image durable, and the name of a new file."""
        try:
            image.file.sync()
        finally:
            image.file.close()
        if image.image_bytes == image.section_bytes:
            self._disk.sync_directory(self._data_dir)

    def _publish(self, capture: Capture, image: _Image, pinned_lsn: int) -> None:
        self._control.publish(
            redo_lsn=capture.applied_lsn,
            pinned_lsn=pinned_lsn,
            checkpoint_ns=self._disk.time_ns(),
            rows_high=capture.rows_high,
            live_rows=capture.live_rows,
            image_number=image.number,
            image_bytes=image.image_bytes,
            image_crc=image.crc,
        )
        self._state.checkpoint_published(capture)

    def _remove_images(self) -> None:
        """Removes files that no slot names; those that cannot be removed now are tried again next time."""
        kept = {slot.image_number for slot in self._control.slots if slot.image_bytes}
        with suppress(OSError):  # the checkpoint is durable; a file too many does no harm
            remove_images(self._disk, self._data_dir, kept)

    # -- failure --------------------------------------------------------------------------------------------------

    def _finally(self, step: Callable[[], None]) -> None:
        """Runs a step that may not be tried again; whatever it raises ends checkpointing."""
        try:
            step()
        except BaseException as error:
            failure = self._fail(error)
            if isinstance(error, OSError):
                raise failure from error
            raise

    def _fail(self, error: BaseException) -> CheckpointFailedError:
        self._failure = error
        return self._refusal()

    def _refusal(self) -> CheckpointFailedError:
        refusal = CheckpointFailedError(
            f"{self._data_dir}: a checkpoint failed ({self._failure}), and none is tried again on the same pages. "
            f"The one of LSN {self.redo_lsn} stands and the log holds everything since: check the disk, then open the "
            "store again"
        )
        refusal.__cause__ = self._failure
        return refusal

    def _give_up(self, capture: Capture) -> None:
        """Takes a capture back, unless it is unknown whether a slot names it."""
        if self._failure is None:
            with self._state.lock:
                self._state.drop_capture(capture)
