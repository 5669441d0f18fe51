"""Tells a file that ends early: an interrupted copy or recording, which readers may take for a shorter one.

What containers state of their own length is compared with what is there: RIFF (.avi, .webp), ISO boxes (.mp4, .mov,
.avif), Matroska (.mkv, .webm), and the closing byte of a .gif.
"""

import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["lacks_bytes"]

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""How a Matroska file begins, and what holds the rest of it."""

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"moof", b"sidx", b"styp", b"mfra", b"meta", b"uuid")
"""Boxes that lie outermost in ISO files."""


def lacks_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes a file lacks at its end, by what it says itself; 0 where it says nothing.

    Raises:
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] == b"RIFF":
            return max(0, 8 + int.from_bytes(head[4:8], "little") - length)
        if head[:4] == b"GIF8":
            file.seek(max(0, length - 64))
            return int(not file.read().rstrip(b"\0\r\n ").endswith(b";"))
        if head[:4] == EBML:
            return max(0, _matroska_end(file) - length)
        if head[4:8] in BOXES:
            return max(0, _boxes_end(file, length) - length)
    return 0


def _boxes_end(file: BinaryIO, length: int) -> int:
    """Where the last of the outermost boxes ends."""
    place = 0
    while place + 8 <= length:
        file.seek(place)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if head[4:8] not in BOXES or size == 0:  # 0: up to the end
            return length
        place += int.from_bytes(head[8:16], "big") if size == 1 else max(size, 8)
    return place if place >= length else length + 1  # else the head of a box was cut


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 where that is not stated, as in a recording that was never closed."""
    file.seek(4)
    size = _number(file)
    if size is None:
        return 0
    file.seek(size, os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return 0
    size = _number(file)
    return 0 if size is None else file.tell() + size


def _number(file: BinaryIO) -> int | None:
    """A number of Matroska, of one to eight bytes; None: unknown, or none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (1 << (8 - count)) - 1]) + file.read(count - 1), "big")
    return None if value == (1 << 7 * count) - 1 else value
