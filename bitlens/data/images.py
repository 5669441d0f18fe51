"""Reads and writes still images, folders of frames and .tif stacks, at the levels that the file stores."""

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.files import atomic_path

__all__ = [
    "IMAGE_SUFFIXES", "TIF_SUFFIXES", "folder_images", "natural_key", "read_folder", "read_image", "read_tif",
    "stack_frames", "to_float", "to_grey", "to_levels", "write_png",
]  # fmt: skip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TIF_SUFFIXES = (".tif", ".tiff")

TIF_DAMAGE = (OSError, ValueError, TypeError, LookupError, RuntimeError, zlib.error)
"""What tifffile raises for files that are no whole .tif, beside its own error."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601 luma of R, G, B, full range."""


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that counts: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one image as it is stored: (h, w) or (h, w, 3), uint8, uint16 or float32. Transparency is dropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that Pillow reads, or damaged.
    """
    return next(_pages(Path(path)))


def read_tif(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read pages [start, stop) of a .tif as stored, (t, h, w) or (t, h, w, 3); by tifffile, else Pillow.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .tif, damaged, pages of different size, or a kind that only tifffile reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a .tif file; check the path")
    try:
        import tifffile
    except ImportError:
        return stack_frames(list(islice(_tif_pages_pillow(path), start, stop)), path)
    try:
        with tifffile.TiffFile(path) as file:
            stack, kind = file.series[0].asarray(), file.series[0].axes
    except (*TIF_DAMAGE, tifffile.TiffFileError) as error:
        raise _unreadable(path, error) from error
    if stack.size == 0 or ("S" in kind and not (kind.endswith("S") and stack.shape[-1] in (3, 4))):
        raise ValueError(
            f"{path} has axes '{kind}' {stack.shape}; wanted grey or interleaved colour pages, not empty; "
            "save it again so"
        )
    if kind.endswith("S"):
        stack = stack[..., :3].reshape(-1, *stack.shape[-3:-1], 3)  # ... h w s -> t h w 3
    else:
        stack = stack.reshape(-1, *stack.shape[-2:])  # ... h w -> t h w
    return _as_levels(stack[start:stop])


def read_folder(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read images [start, stop) of a folder, sorted naturally, as stored: (t, h, w) or (t, h, w, 3).

    Hidden files and files that are no images by their suffix are not frames.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: frames of different size, depth or number of channels.
    """
    chosen = folder_images(path)[start:stop]
    return stack_frames([read_image(file) for file in chosen], Path(path), [file.name for file in chosen])


def folder_images(path: str | os.PathLike[str]) -> list[Path]:
    """The images of a folder, sorted naturally; hidden files are none.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; wanted a folder of frames; check the path")
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    if not files:
        raise FileNotFoundError(
            f"folder {folder} holds no images; wanted frames ({', '.join(IMAGE_SUFFIXES)}); check the path"
        )
    return sorted(files, key=natural_key)


def to_float(levels: np.ndarray) -> np.ndarray:
    """Levels to float32: integers are divided by their type's maximum (255, 65535), floats stay."""
    if levels.dtype.kind in "iu":
        return levels.astype(np.float32) / np.float32(np.iinfo(levels.dtype).max)
    return levels.astype(np.float32)


def to_levels(values: np.ndarray, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Values in [0, 1] to integer levels, clipped and rounded half to even."""
    top = np.iinfo(dtype).max
    return np.round(np.clip(values, 0.0, 1.0).astype(np.float64) * top).astype(dtype)


def to_grey(values: np.ndarray) -> np.ndarray:
    """Luma Y = 0.299 R + 0.587 G + 0.114 B (BT.601, full range) of values in [0, 1]; (..., 3) -> (...)."""
    return np.minimum(values @ LUMA, np.float32(1)).astype(np.float32)  # white rounds to 1 + 1e-7 otherwise


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write (h, w) or (h, w, 3) as an 8-bit PNG, whole or not at all: floats in [0, 1], or uint8 as they are."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image if image.dtype == np.uint8 else to_levels(image)).save(temporary, format="PNG")


def _pages(path: Path) -> Iterator[np.ndarray]:
    """The pages of any image that Pillow reads, one after the other."""
    from PIL import Image

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted an image; check the path")
    try:
        with Image.open(path) as image:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                yield _pillow_levels(image)
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError) as error:
        raise _unreadable(path, error) from error


def _pillow_levels(image: Any) -> np.ndarray:
    """One Pillow page as (h, w) or (h, w, 3) in the depth that it has."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode == "I":
        return _as_levels(np.asarray(image))
    if image.mode in ("L", "1", "LA"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _tif_pages_pillow(path: Path) -> Iterator[np.ndarray]:
    """Pages of a .tif without tifffile; an ImageJ stack that hides its pages in one directory is refused."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            description = str(getattr(image, "tag_v2", {}).get(270, ""))
            pages = getattr(image, "n_frames", 1)
    except (OSError, ValueError, SyntaxError, TypeError, LookupError) as error:
        raise ValueError(
            f"{path} cannot be read by Pillow ({error}); wanted a plain .tif; "
            "run pip install 'bitlens[video]' (tifffile reads more kinds), or save it again"
        ) from error
    stated = re.search(r"^images=(\d+)", description, re.MULTILINE)
    if stated and int(stated[1]) != pages:
        raise ValueError(
            f"{path} is an ImageJ stack of {stated[1]} images in {pages} page(s); wanted one page per image; "
            "run pip install 'bitlens[video]' (tifffile reads it)"
        )
    yield from _pages(path)


def _as_levels(values: np.ndarray) -> np.ndarray:
    """Narrow to uint8, uint16 or float32, which hold every camera level; other integers must fit uint16."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype in (np.uint8, np.uint16, np.float32):
        return values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    if values.dtype.kind in "iu" and values.size and values.min() >= 0 and values.max() <= 65535:
        return values.astype(np.uint16)
    raise ValueError(
        f"an image of dtype {values.dtype} with values beyond 0..65535; wanted 8-bit, 16-bit or float; save it so"
    )


def stack_frames(frames: Sequence[np.ndarray], path: Path, names: Sequence[str] = ()) -> np.ndarray:
    """Stack frames after checking that all are alike; no frames give an empty (0, 0, 0)."""
    for index, frame in enumerate(frames):
        if frame.shape != frames[0].shape or frame.dtype != frames[0].dtype:
            name = names[index] if names else f"page {index}"
            raise ValueError(
                f"{path}: {name} is {frame.shape} {frame.dtype}, the first is {frames[0].shape} "
                f"{frames[0].dtype}; "
                "wanted frames of one size and depth; crop or convert them, or remove the odd one"
            )
    return np.stack(frames) if frames else np.zeros((0, 0, 0), np.float32)


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as an image ({type(error).__name__}: {error}); wanted a complete image file; "
        "it is damaged or of another kind: save or copy it again"
    )
