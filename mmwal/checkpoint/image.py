"""The image files of a data directory: which there are, and how a section gets into one.

* What a control slot names is never overwritten: a delta goes behind the end of the newest checkpoint's image, which
  lies behind the older one's wherever both are in one file; a base goes into a new file.
* A new file is durable, name included, before a slot names it.
* Room is allocated before it is written, so that a full disk shows before anything is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from mmwal.disk.interface import Disk, File
from mmwal.format.image import HEADER_BYTES as SECTION_HEADER_BYTES
from mmwal.format.image import Columns, Place, Section, decode_columns, section_header

_NAME = re.compile(r"image-([0-9a-f]{16})")
_JOINED_BYTES_MOST = 1 << 20


class ShortImageError(ValueError):
    """An image file is shorter than its slot says."""


def image_path(data_dir: str, number: int) -> str:
    """Returns the path of an image file."""
    return f"{data_dir}/image-{number:016x}"


def image_numbers(disk: Disk, data_dir: str) -> list[int]:
    """Returns the numbers of the image files that are there; names of any other kind are none of ours."""
    matches = map(_NAME.fullmatch, disk.list_directory(data_dir))
    return [int(match[1], 16) for match in matches if match]


def write_section(disk: Disk, data_dir: str, place: Place, section: Section) -> File:
    """Writes a section to its place: into a new file for a base, behind what is there for a delta. Not synced.

    Raises `OSError`; ENOSPC leaves nothing behind that a slot names.
    """
    path = image_path(data_dir, place.image_number)
    file = disk.open(path, writable=True) if place.offset else disk.create(path)
    try:
        file.allocate(place.offset + section.section_bytes)
        at = place.offset
        small = section.section_bytes <= _JOINED_BYTES_MOST
        for part in [b"".join(section.parts)] if small else section.parts:
            file.write(at, part)
            at += len(part)
    except BaseException:
        file.close()
        if not place.offset:
            with suppress(OSError):  # a full disk had better not keep half an image
                disk.unlink(path)
        raise
    return file


def read_sections(
    disk: Disk, data_dir: str, store_id: bytes, number: int, image_bytes: int, image_crc: int
) -> Iterator[tuple[dict[str, int], Columns]]:
    """Yields each section's header fields and columns, checked; ends where the image does.

    Raises `ValueError`, which says what is wrong, or `OSError`. Reads no more than the file holds.
    """
    path = image_path(data_dir, number)
    file = disk.open(path, writable=False)
    try:
        if file.size() < image_bytes:
            raise ShortImageError(f"{path} has {file.size():,} bytes, the control file names {image_bytes:,}")
        place = Place(store_id, number, 0, 0)
        while place.offset < image_bytes:
            try:
                fields = section_header(
                    file.read(place.offset, SECTION_HEADER_BYTES), place, image_bytes - place.offset
                )
                content = file.read(place.offset + SECTION_HEADER_BYTES, fields["section_bytes"] - SECTION_HEADER_BYTES)
                yield fields, decode_columns(content, fields)
            except ValueError as error:
                raise ValueError(f"{path}, offset {place.offset}: {error}") from error
            place = Place(store_id, number, place.offset + fields["section_bytes"], fields["crc"])
        if place.previous_crc != image_crc:
            raise ValueError(f"{path}: checksum {place.previous_crc:08x}, the control file names {image_crc:08x}")
    finally:
        file.close()


def remove_images(disk: Disk, data_dir: str, kept: set[int]) -> None:
    """Removes the image files whose numbers are not to be kept."""
    removed = [number for number in image_numbers(disk, data_dir) if number not in kept]
    for number in removed:
        disk.unlink(image_path(data_dir, number))
    if removed:
        disk.sync_directory(data_dir)
