"""Reads the grey pages of a .tif as raw values, one at a time, and makes sure that all that the file states arrives.

By tifffile; without it, and where tifffile lacks the codec (LZW, JPEG), by Pillow. [TIFF] Adobe: TIFF 6.0, 1992;
BigTIFF has the same directories with longer numbers. ImageJ, OME and tifffile state in the description of the first
page how many pictures follow, ImageJ and tifffile also where only the first has a directory.
"""

import logging
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from json import JSONDecodeError, loads
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bitlens.data.images import libraries_silent

__all__ = ["grey_pages", "read_grey_tif"]

MOST_PIXELS = 2**28
"""Of a page: beyond it a number in the file is damaged."""

MOSAIC = 32803
"""PhotometricInterpretation of raw values behind a colour filter array."""

REDUCED = 1
"""Bit of the tag NewSubfileType: a small version of another page."""


def read_grey_tif(path: str | os.PathLike[str]) -> np.ndarray:
    """All grey pages of a .tif, (t, h, w), as stored. Raises: as `grey_pages`."""
    _, _, pages = grey_pages(path)
    return np.stack(list(pages()))


def grey_pages(
    path: str | os.PathLike[str],
) -> tuple[tuple[int, int, int], np.dtype, Callable[[], Iterator[np.ndarray]]]:
    """Shape (t, h, w), type and pages of a .tif, in the order of the file; small versions of pages are left out.

    Returns:
        (shape, dtype, pages): every call of `pages` reads them anew, one (h, w) at a time, at the levels that are
        stored, 10, 12 and 14 bits packed or not; a page of one bit is 0 and 255.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .tif, damaged or cut short (also while its pages are read), fewer pictures than it states,
            several channels, colours, white stored as 0, pages that differ in size or depth, or a codec that nothing
            here reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a .tif file; check the path")
    _follow_directories(path)
    open_ = _by_pillow if find_spec("tifffile") is None else _by_tifffile
    try:
        with _whatever_it_raises(path):
            shape, dtype, pages = open_(path)
    except _NoCodec:
        open_ = _by_pillow
        with _whatever_it_raises(path):
            shape, dtype, pages = open_(path)

    def read() -> Iterator[np.ndarray]:
        iterator = pages()
        while True:
            with _whatever_it_raises(path):
                page = next(iterator, None)
            if page is None:
                return
            if page.shape != shape[1:] or page.dtype != dtype:
                raise _differs(path, page.shape, page.dtype, shape[1:], dtype)
            yield page

    return shape, dtype, read


class _NoCodec(Exception):
    """tifffile cannot decode this file here."""


class _Refused(ValueError):
    """What was refused for a reason of its own, not for damage."""


@contextmanager
def _whatever_it_raises(path: Path) -> Iterator[None]:
    """Say that the file is damaged, whatever a decoder raises on it: that depends on where the damage is.

    What decoders only log or warn of is left out: whether all pages came is checked here.
    """
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (_NoCodec, _Refused):
        raise
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); wanted a complete .tif file; "
            "it is damaged, cut short or of another kind: save or copy it again"
        ) from error
    finally:
        log.disabled = before


def _by_tifffile(path: Path) -> tuple[tuple[int, int, int], np.dtype, Callable[[], Iterator[np.ndarray]]]:
    import tifffile

    size = path.stat().st_size
    with tifffile.TiffFile(path) as file:
        chosen = [index for index, page in enumerate(file.pages) if not page.subfiletype & REDUCED]  # type: ignore
        first: Any = file.pages[chosen[0]] if chosen else None
        if first is None or prod(first.shape) == 0 or first.dtype is None:
            raise _Refused(f"{path} holds no picture; wanted grey pages; save it again")
        grey = first.ndim == 2 and first.photometric in (0, 1, MOSAIC)
        _check_page(path, first.shape, "inverted" if first.photometric == 0 else "grey" if grey else "colour")
        for index in chosen:
            page: Any = file.pages[index]
            last = max(
                (at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0
            )
            if last > size:
                raise _ends_early(path, f"page {index} goes on to byte {last}, the file ends at {size}")
            if page.shape != first.shape or page.dtype != first.dtype:
                raise _differs(path, page.shape, page.dtype, first.shape, first.dtype)
            if (page.compression, page.bitspersample) != (first.compression, first.bitspersample):
                raise _NoCodec
        stated = _stated(path, first.description, first.shape)
        hidden = len(file.pages) == 1 and stated > 1  # all pictures lie behind one directory
        if not hidden and stated > len(chosen):
            raise _ends_early(path, f"it states {stated} pictures and holds {len(chosen)}")
        count = stated if hidden else len(chosen)
        last = first.dataoffsets[0] + count * first.nbytes
        if hidden and last > size:
            raise _ends_early(path, f"it states {stated} pictures, to byte {last}, the file ends at {size}")
        sample = _decoded(first)  # whether there is a codec

    def pages() -> Iterator[np.ndarray]:
        with tifffile.TiffFile(path) as file:
            if hidden:
                yield from file.series[0].asarray().reshape(-1, *sample.shape).astype(sample.dtype)
            for index in () if hidden else chosen:
                yield _decoded(file.pages[index])

    return (count, *sample.shape), sample.dtype, pages


def _decoded(page: Any) -> np.ndarray:
    """The values (h, w) of a page of tifffile."""
    bits, height, width = page.bitspersample, *page.shape
    if bits in (8, 16, 32, 64):
        try:
            return _native(page.asarray())
        except (ValueError, ImportError) as error:
            if "imagecodecs" in str(error):
                raise _NoCodec from error
            raise
    if page.compression != 1 or page.fillorder != 1 or page.is_tiled or bits > 16:
        raise _NoCodec
    file = page.parent.filehandle  # packed: every row begins with a new byte
    data = bytearray()
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        data += file.read(count)
    rows = np.frombuffer(data, np.uint8).reshape(height, -1)
    each = np.unpackbits(rows, axis=1)[:, : width * bits].reshape(height, width, bits)
    values = each @ (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
    return np.uint8(255) * values.astype(np.uint8) if bits == 1 else values


def _by_pillow(path: Path) -> tuple[tuple[int, int, int], np.dtype, Callable[[], Iterator[np.ndarray]]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            tags: Any = getattr(image, "tag_v2", {})
            description, count, shape = str(tags.get(270, "")), getattr(image, "n_frames", 1), image.size[::-1]
            grey = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
            _check_page(path, shape, "inverted" if tags.get(262) == 0 else "grey" if grey else "colour")
            sample = _pillow_values(image)
    except UnidentifiedImageError as error:
        raise _Refused(
            f"{path} holds {_about(path)}, which Pillow does not read here; wanted grey pages of 8, 16 or 32 bits; run "
            "pip install tifffile imagecodecs, or save it uncompressed, at 16 bits"
        ) from error
    stated = _stated(path, description, sample.shape)
    if stated > count and count == 1:
        raise _Refused(
            f"{path} is a stack of {stated} images in {count} page(s); wanted one page per image; "
            "run pip install 'bitlens[video]' (tifffile reads it), or save it so"
        )
    if stated > count:
        raise _ends_early(path, f"it states {stated} pictures and holds {count}")

    def chosen() -> Iterator[np.ndarray]:
        with Image.open(path) as image:
            for index in range(count):
                image.seek(index)
                if not int(image.tag_v2.get(254, 0)) & REDUCED:  # type: ignore[attr-defined]
                    yield _pillow_values(image)

    with Image.open(path) as image:
        kept = 0
        for index in range(count):
            image.seek(index)
            kept += not int(image.tag_v2.get(254, 0)) & REDUCED  # type: ignore[attr-defined]
    return (kept, *sample.shape), sample.dtype, chosen


def _pillow_values(image: Any) -> np.ndarray:
    """The values (h, w) of Pillow's page."""
    with libraries_silent():
        values = np.asarray(image)
    return np.uint8(255) * values.astype(np.uint8) if values.dtype == bool else _native(values)


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_page(path: Path, shape: tuple[int, ...], kind: str) -> None:
    """Refuse what is not grey or absurdly large, before it is decoded."""
    if kind == "colour":
        raise _Refused(
            f"{path} is colour {shape}; wanted raw grey values, one (h, w) a page; save it as one channel (three "
            "grey pictures are written as such with photometric='minisblack')"
        )
    if kind == "inverted":
        raise _Refused(
            f"{path} says that 0 is white; wanted values that grow with the light; save it again with "
            "photometric='minisblack', inverted if that is what it is"
        )
    if prod(shape) > MOST_PIXELS:
        raise _Refused(
            f"{path} has pages of {shape}; wanted at most {MOST_PIXELS} pixels; it is damaged: copy it again"
        )


def _stated(path: Path, description: str, shape: tuple[int, ...]) -> int:
    """How many pictures of a shape the description of ImageJ, OME or tifffile states; 0: it states none.

    Raises:
        ValueError: several channels of each.
    """
    channels, count = 1, 0
    if description.startswith("ImageJ="):
        found = dict(re.findall(r"^(images|channels)=(\d+)", description, re.MULTILINE))
        count, channels = int(found.get("images", 0)), int(found.get("channels", 1))
    elif description.startswith("{"):
        try:
            about = loads(description)
            whole, axes = [int(one) for one in about["shape"]], str(about.get("axes", ""))
        except (JSONDecodeError, KeyError, TypeError, ValueError):
            return 0
        count = prod(whole) // max(1, prod(shape))
        channels = whole[axes.index("C")] if len(axes) == len(whole) and "C" in axes else 1
    elif "<OME" in description:
        sizes = [int(one[1]) if (one := re.search(rf'\bSize{axis}="(\d+)"', description)) else 1 for axis in "TZC"]
        count, channels = prod(sizes), sizes[2]
    if 1 < channels < count:
        raise _Refused(
            f"{path} holds {count // channels} pictures in {channels} channels; wanted one grey picture for each "
            "measurement or frame; save the channel that the camera's mask belongs to"
        )
    return count


def _follow_directories(path: Path) -> None:
    """Follow the chain of directories to its end [TIFF, section 2]; a reader ends a broken one without a word.

    Raises:
        ValueError: no .tif, or the chain leaves the file or goes in circles.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        version = struct.unpack(order + "H", head[2:4])[0] if order and len(head) > 7 else None
        if version not in (42, 43) or (version == 43 and len(head) < 16):
            raise ValueError(
                f"{path} ({size} bytes) cannot be read as an image: it does not start like a .tif; "
                "wanted a complete .tif file; it is damaged or of another kind: save or copy it again"
            )
        big = version == 43
        at = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
        seen: set[int] = set()
        while at:
            if at in seen:
                raise _ends_early(path, f"its directories go in circles at byte {at}")
            seen.add(at)
            file.seek(min(at, size))
            count = _number(file, f"{order}Q" if big else f"{order}H") or 0
            file.seek(min(at + (8 + 20 * count if big else 2 + 12 * count), size))
            following = _number(file, f"{order}Q" if big else f"{order}I")
            if following is None:
                raise _ends_early(path, f"directory {len(seen)}, at byte {at}, goes past the end at {size}")
            at = following


def _number(file: BinaryIO, kind: str) -> int | None:
    """The number that stands here; None at the end of the file."""
    data = file.read(struct.calcsize(kind))
    return struct.unpack(kind, data)[0] if len(data) == struct.calcsize(kind) else None


def _about(path: Path) -> str:
    """Bits and codec of the first page, for people."""
    if find_spec("tifffile") is None:
        return "a depth or a compression"
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = next(islice(file.pages, 1))
        packed = "" if page.bitspersample in (8, 16, 32, 64) else ", packed"
        name = getattr(page.compression, "name", page.compression)
        return f"{page.bitspersample} bits{packed}" + ("" if name == "NONE" else f", compressed as {name}")


def _ends_early(path: Path, what: str) -> ValueError:
    return _Refused(f"{path} ends early ({what}); wanted all the pages that it states; copy or record it again")


def _differs(path: Path, shape: Any, dtype: Any, first: Any, kind: Any) -> ValueError:
    return _Refused(
        f"{path} has a page of {shape} {dtype} among pages of {first} {kind}; wanted pages of one size and depth; "
        "remove the odd one"
    )
