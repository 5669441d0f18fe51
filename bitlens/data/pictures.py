"""Writes one picture as its rows come: 8 or 16 bits, with transparency, colour profile, resolution and EXIF.

A .png is put together here, since Pillow wants the whole picture at once and knows no colours of 16 bits. [PNG, third
edition: section 9 for the filters of rows, 11 for chunks]
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from bitlens.data.images import TIF_SUFFIXES, Picture, import_tifffile
from bitlens.files import atomic_path, remark

__all__ = ["PICTURE_SUFFIXES", "write_picture"]

PICTURE_SUFFIXES = (".png", *TIF_SUFFIXES)

STRIP = 16
"""Rows that are compressed at once."""

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Values of a pixel -> what a .png calls it: grey, grey with transparency, RGB, RGB with transparency."""

INCH = 0.0254
"""Metres."""


def write_picture(
    path: str | os.PathLike[str], height: int, width: int, rows: Iterable[np.ndarray], about: Picture | None = None
) -> None:
    """Write a .png or .tif, whole or not at all, from rows of levels that come from top to bottom.

    Args:
        path: a .png or .tif. height, width: in pixels.
        rows: (n, w) or (n, w, channels), uint8 or uint16; channels: 1, 2 (grey and transparency), 3, or 4.
        about: whose colour profile, resolution, EXIF and gamma (both .png) go into the file. None: none.

    Raises:
        ValueError: unknown suffix, not as many rows as announced, levels of another kind, or no tifffile for a .tif.
        OSError: the place cannot be written to.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"cannot write {path}; wanted a name that ends in {' or '.join(PICTURE_SUFFIXES)}; change it")
    with atomic_path(path) as temporary:
        write = _write_png if suffix == ".png" else _write_tif
        write(temporary, height, width, _strips(rows, height, width), about or Picture(np.zeros((0, 0), np.uint8)))


def _strips(rows: Iterable[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    """The same rows as (`STRIP`, w, channels), the last one with what is left."""
    waiting: list[np.ndarray] = []
    count = done = 0
    for some in rows:
        some = some.reshape(*some.shape[:2], -1)
        if some.dtype not in (np.uint8, np.uint16) or some.shape[1] != width or some.shape[2] not in COLOUR_TYPES:
            raise ValueError(
                f"rows of {some.dtype} {some.shape} came; wanted uint8 or uint16 (n, {width}, 1 to 4); correct them"
            )
        for first in range(0, len(some), STRIP):
            waiting.append(some[first : first + STRIP])
            count += len(waiting[-1])
            if count >= STRIP:
                both = np.concatenate(waiting)
                yield both[:STRIP]
                done += STRIP
                waiting, count = [both[STRIP:]], count - STRIP
    if count:
        yield np.concatenate(waiting)
    if done + count != height:
        raise ValueError(f"{done + count} rows came; wanted {height}; announce as many as will come")


def _write_png(path: Path, height: int, width: int, strips: Iterator[np.ndarray], about: Picture) -> None:
    from PIL.PngImagePlugin import putchunk

    with path.open("wb") as file:
        packer, above = zlib.compressobj(6), None
        for strip in strips:
            step = strip.dtype.itemsize * strip.shape[2]  # bytes of a pixel
            if above is None:
                file.write(b"\x89PNG\r\n\x1a\n")
                kind = (8 * strip.dtype.itemsize, COLOUR_TYPES[strip.shape[2]], 0, 0, 0)
                putchunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, *kind))
                if about.gamma:
                    putchunk(file, b"gAMA", struct.pack(">I", round(100_000 * about.gamma)))
                if about.profile:
                    putchunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(about.profile))
                if about.dpi:
                    putchunk(file, b"pHYs", struct.pack(">IIB", *(round(each / INCH) for each in about.dpi), 1))
                if about.exif:
                    putchunk(file, b"eXIf", about.exif.removeprefix(b"Exif\0\0"))
                above = np.zeros(width * step, np.uint8)
            big = strip.astype(strip.dtype.newbyteorder(">"), order="C")
            lines = big.view(np.uint8).reshape(len(strip), -1)
            putchunk(file, b"IDAT", packer.compress(_filtered(lines, above, step).tobytes()))
            above = lines[-1]
        putchunk(file, b"IDAT", packer.flush())
        putchunk(file, b"IEND", b"")


def _filtered(lines: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """Each row of bytes as differences to a guess, behind the guess's number: left, up, or Paeth's predictor.

    Of each row the guess is taken that leaves the smallest sum of absolute differences [PNG 12.7].
    """
    up = np.vstack([above, lines[:-1]])
    left, corner = (np.pad(each, ((0, 0), (step, 0)))[:, :-step] for each in (lines, up))
    a, b, c = (each.astype(np.int16) for each in (left, up, corner))
    p = a + b - c
    nearest_a = (abs(p - a) <= abs(p - b)) & (abs(p - a) <= abs(p - c))
    paeth = np.where(nearest_a, left, np.where(abs(p - b) <= abs(p - c), up, corner))
    differences = np.stack([lines - left, lines - up, lines - paeth])
    best = abs(differences.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64).argmin(axis=0)
    numbers = np.array([1, 2, 4], np.uint8)[best]
    return np.column_stack([numbers, differences[best, np.arange(len(lines))]])


def _write_tif(path: Path, height: int, width: int, strips: Iterator[np.ndarray], about: Picture) -> None:
    tifffile = import_tifffile()
    if tifffile is None:
        raise ValueError(
            f"{path.suffix} is written by tifffile, which is not installed; wanted it; "
            "run pip install 'bitlens[video]', or write a .png"
        )
    if about.exif:
        remark(f"{path.suffix} is written without EXIF, which is left out; wanted .png to keep it")
    first = next(strips)
    channels = first.shape[2]

    def packed() -> Iterator[bytes]:
        for strip in chain([first], strips):
            yield zlib.compress(strip.astype(strip.dtype.newbyteorder("<")).tobytes())

    tifffile.imwrite(
        path, packed(), shape=(height, width, channels)[: 2 if channels == 1 else 3], dtype=first.dtype, byteorder="<",
        photometric="rgb" if channels > 2 else "minisblack", planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None, compression="zlib", rowsperstrip=STRIP,
        iccprofile=about.profile, resolution=about.dpi, resolutionunit="INCH" if about.dpi else None, metadata=None,
    )  # fmt: skip
