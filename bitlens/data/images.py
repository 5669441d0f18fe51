"""Reads and writes still images, folders of frames and .tif stacks, at the levels that the file stores.

What a file says of itself is honoured: EXIF orientation, transparency, planes of colours, 16 bits, ICC profiles.
"""

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from bitlens.data.jpeg import Jpeg, jpeg_of
from bitlens.data.levels import to_float, to_levels
from bitlens.data.metadata import (
    DAMAGE,
    ORIENTATION,
    PROFILE,
    RESOLUTION,
    RESOLUTION_UNIT,
    dpi_of,
    exif_of,
    fitting_profile,
    rgb_or_grey,
    turned,
)
from bitlens.files import atomic_path, remark

__all__ = [
    "IMAGE_SUFFIXES",
    "MANY_FRAMES",
    "TIF_SUFFIXES",
    "Picture",
    "count_frames",
    "folder_images",
    "import_tifffile",
    "libraries_silent",
    "load_picture",
    "natural_key",
    "opened",
    "picture_of",
    "read_folder",
    "read_image",
    "read_tif",
    "stack_frames",
    "write_png",
]  # fmt: skip

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TIF_SUFFIXES = (".tif", ".tiff")

MANY_FRAMES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")
"""Formats, as Pillow calls them, whose further images are frames or pages; those of a phone's JPEG are previews."""


SILENCE = RLock()


class Refused(ValueError):
    """A file that is read no further; the message says all."""


PLANE = ("height", "width", "sample")
"""What tifffile calls the axes of one picture."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as a viewer shows it: turned the right way round."""

    levels: np.ndarray
    """(h, w) or (h, w, 3), uint8, uint16 or float32."""
    alpha: np.ndarray | None = None
    """(h, w) of the same type: how opaque each pixel is. None: the file knows no transparency."""
    profile: bytes | None = None
    """ICC profile of the levels."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down."""
    exif: bytes | None = None
    """EXIF, without orientation."""
    gamma: float | None = None
    """The exponent from light to levels, where a .png states it."""
    jpeg: Jpeg | None = None
    """What a .jpg says of luma before it was compressed."""

    def on_black(self) -> np.ndarray:
        """The levels, laid on black where they are transparent."""
        if self.alpha is None:
            return self.levels
        alpha = to_float(self.alpha)
        laid = to_float(self.levels) * (alpha[..., None] if self.levels.ndim == 3 else alpha)
        return laid if self.levels.dtype.kind == "f" else to_levels(laid, self.levels.dtype.type)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that counts: frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read one image as it is shown: (h, w) or (h, w, 3), uint8, uint16 or float32; on black where transparent.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that Pillow reads, too large, or damaged.
    """
    return load_picture(path).on_black()


def load_picture(path: str | os.PathLike[str]) -> Picture:
    """Read one image, the first of several, with what its file says of it.

    Over 8 bits, colours come from PyAV (.png) and tifffile (.tif), since Pillow halves them; where those are missing,
    a remark says that 8 bits are read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that Pillow or tifffile reads, too large, or damaged.
    """
    path = Path(path)
    picture = _plain_tif(path) if path.suffix.lower() in TIF_SUFFIXES else None
    if picture is None:
        with opened(path) as image:
            picture = picture_of(image, path)
    return picture


def count_frames(path: str | os.PathLike[str]) -> int:
    """How many frames or pages an image file has: of .gif, .png, .webp, .avif and .tif; 1 for other kinds.

    Pages of a .tif that are of another size than the first one are none.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    path = Path(path)
    tifffile = import_tifffile() if path.suffix.lower() in TIF_SUFFIXES and path.is_file() else None
    if tifffile is not None:
        try:
            with tifffile.TiffFile(path) as file:
                first = file.series[0]
                alike = [each.sizes for each in file.series if _plane(each) == _plane(first)]
                return sum(math.prod(size for axis, size in sizes.items() if axis not in PLANE) for sizes in alike)
        except (*DAMAGE, tifffile.TiffFileError) as error:
            raise _unreadable(path, error) from error
    with opened(path) as image:
        if image.format not in MANY_FRAMES:
            return 1
        return getattr(image, "n_frames", 1) - first_frame(image)


def first_frame(image: Any) -> int:
    """Where the frames of an animation begin in what Pillow counts: an animated .png may have a still one before."""
    return int(bool(getattr(image, "default_image", False)))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An image file, opened by Pillow.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image that Pillow reads, too large, or damaged, whenever that is found.
    """
    from PIL import Image, features

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted an image; check the path")
    if path.suffix.lower() == ".avif" and not features.check("avif"):
        raise ValueError(f"{path} is AVIF, which this Pillow cannot read; wanted Pillow 11.3 or newer; upgrade it")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of it is an error below
            with Image.open(path) as image:
                yield image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} cannot be read: {str(error).split(', could')[0]}; wanted at most "
            f"{2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels; cut it, or copy it again if it should be smaller"
        ) from error
    except Refused:
        raise
    except DAMAGE as error:
        raise _unreadable(path, error) from error


@contextmanager
def libraries_silent() -> Iterator[None]:
    """Leave out what libtiff and libjpeg print of a damaged file, past Python, where errors are printed.

    What matters of it is an error of Pillow's too. One thread at a time, since it is the process that prints.
    """
    with SILENCE:
        try:
            kept = os.dup(2)
        except OSError:  # nobody listens
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def picture_of(image: Any, path: Path) -> Picture:
    """The image that Pillow is at, in the file at `path`, as it is shown.

    Raises:
        ValueError: colours of 16 bits in separate planes, which Pillow reads as noise.
    """
    stored = str(image.tile[0].args) if image.tile else ""  # before it is loaded: the levels as they lie in the file
    deep = ";16" in stored and not image.mode.startswith("I")
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and max(image.tag_v2.get(258, (8,))) > 8:
        raise Refused(
            f"{path} has colours of 16 bits in separate planes; wanted tifffile to read them; "
            "run pip install 'bitlens[video]', or save it with interleaved colours"
        )
    levels = _deep_png(path) if deep and image.format == "PNG" else None
    if deep and levels is None:
        remark(
            f"{path} has colours of 16 bits, of which 8 are read; wanted PyAV (.png) and tifffile (.tif) for all of "
            "them; run pip install 'bitlens[video]'"
        )
    with libraries_silent():
        image.load()
    gamma = image.info.get("gamma")  # of a .png
    orientation, exif = exif_of(image, path)
    jpeg = jpeg_of(image, orientation)
    dpi, profile = dpi_of(image.info.get("dpi")), image.info.get("icc_profile")
    if levels is None and (image.mode in ("F", "I") or image.mode.startswith("I;16")):
        colours, alpha = _as_levels(np.asarray(image)), None
        if image.mode != "F" and isinstance(image.info.get("transparency"), int):
            alpha = np.where(colours == image.info["transparency"], 0, 65535).astype(np.uint16)
    else:
        if levels is None:
            image = rgb_or_grey(image, profile, path)
            levels = np.asarray(image)
        clear = levels.ndim == 3 and levels.shape[-1] in (2, 4)
        colours, alpha = (levels[..., :-1], levels[..., -1]) if clear else (levels, None)
        colours = colours[..., 0] if colours.ndim == 3 and colours.shape[-1] == 1 else colours
    profile = fitting_profile(profile, colours, path)
    gamma = gamma if isinstance(gamma, float) and 0.01 < gamma < 100 else None
    return Picture(turned(colours, orientation), turned(alpha, orientation), profile, dpi, exif, gamma, jpeg)


def read_tif(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read pages [start, stop) of a .tif as stored, (t, h, w) or (t, h, w, 3); by tifffile, else Pillow.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .tif, damaged, pages of different size, or a kind that only tifffile reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; wanted a .tif file; check the path")
    tifffile = import_tifffile()
    if tifffile is None:
        return stack_frames(list(islice(_tif_pages_pillow(path), start, stop)), path)
    try:
        with tifffile.TiffFile(path) as file:
            kind, first = file.series[0].axes, file.series[0]
            alike = [each for each in file.series if _plane(each) == _plane(first) and each.dtype == first.dtype]
            stacks = [each.asarray() for each in alike]  # pages that were written one by one are series of their own
            left, orientation = len(file.series) - len(alike), _tag(file.pages[0], ORIENTATION, 1)
    except (*DAMAGE, tifffile.TiffFileError) as error:
        if "imagecodecs" in str(error):  # a compression that Pillow knows: LZW, JPEG, packed 12 bits
            return stack_frames(list(islice(_tif_pages_pillow(path), start, stop)), path)
        raise _unreadable(path, error) from error
    colour = kind.endswith("S")
    if stacks[0].size == 0 or ("S" in kind and not (colour and stacks[0].shape[-1] in (3, 4))):
        raise ValueError(
            f"{path} has axes '{kind}' {stacks[0].shape}; wanted grey or interleaved colour pages, not empty; "
            "save it again so"
        )
    if left:
        remark(f"{path} has {left} page(s) of another size or kind, which are left out; wanted pages that are alike")
    stack = np.concatenate([each.reshape(-1, *each.shape[-2 - colour :]) for each in stacks])[start:stop]
    if orientation != 1:
        stack = np.moveaxis(turned(np.moveaxis(stack, 0, -1), orientation), -1, 0)
    stack = _as_levels(stack)  # t h w, or t h w s
    return Picture(stack[..., :3], stack[..., 3]).on_black() if colour and stack.shape[-1] == 4 else stack


def read_folder(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> np.ndarray:
    """Read images [start, stop) of a folder, sorted naturally, as stored: (t, h, w) or (t, h, w, 3).

    Hidden files and files that are no images by their suffix are not frames.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: frames of different size, depth or number of channels.
    """
    chosen = folder_images(path)[start:stop]
    return stack_frames([read_image(file) for file in chosen], Path(path), [file.name for file in chosen])


def folder_images(
    path: str | os.PathLike[str], suffixes: Sequence[str] = IMAGE_SUFFIXES, recursive: bool = False
) -> list[Path]:
    """The images of a folder, sorted naturally; hidden files are none. `recursive`: and those of its folders.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; wanted a folder of frames; check the path")
    files = [
        file
        for file in (folder.rglob("*") if recursive else folder.iterdir())
        if file.suffix.lower() in suffixes and not any(part[0] == "." for part in file.relative_to(folder).parts)
    ]
    if not files:
        raise FileNotFoundError(
            f"folder {folder} holds no images; wanted frames ({', '.join(suffixes)}); check the path"
        )
    return sorted(files, key=lambda file: (file.parent, natural_key(file)))


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write (h, w) or (h, w, 3) as an 8-bit PNG, whole or not at all: floats in [0, 1], or uint8 as they are."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image if image.dtype == np.uint8 else to_levels(image)).save(temporary, format="PNG")


def import_tifffile() -> Any:
    """Tifffile, that logs nothing (what it cannot read, it raises); None where it is not installed."""
    try:
        import tifffile
    except ImportError:
        return None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def _plain_tif(path: Path) -> Picture | None:
    """The first page of a .tif in grey or RGB; None where that is for Pillow: palettes, CMYK, JPEG, LZW, 12 bits.

    Pillow halves colours of 16 bits, reads planes of them as noise, and has libtiff print what is damaged.
    """
    tifffile = import_tifffile()
    if tifffile is None or not path.is_file():
        return None
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if page.bitspersample not in (8, 16, 32, 64) or page.photometric not in (0, 1, 2):
                return None
            samples = page.asarray()
            orientation, inverted = _tag(page, ORIENTATION, 1), page.photometric == 0
            axes, extra = page.axes, [int(each) for each in page.extrasamples]
            unit = {2: 1.0, 3: 2.54}.get(_tag(page, RESOLUTION_UNIT, 2))
            across, down = (_tag(page, tag, (0, 1)) for tag in RESOLUTION)
            dpi = (
                None
                if unit is None
                else dpi_of([unit * over / below if below else 0 for over, below in (across, down)])
            )
            profile = _tag(page, PROFILE, None)
    except (*DAMAGE, tifffile.TiffFileError) as error:
        if "imagecodecs" in str(error):
            return None  # a compression that Pillow knows
        raise _unreadable(path, error) from error
    if sorted(axes) not in (list("XY"), list("SXY")) or samples.size == 0:
        return None
    if "S" in axes:
        samples = np.moveaxis(samples, axes.index("S"), -1)
    levels = _as_levels(samples)
    colours = levels.reshape(*levels.shape[:2], -1)
    wanted = 1 if page.photometric in (0, 1) else 3
    alpha = None
    if extra and extra[0] in (1, 2) and colours.shape[-1] > wanted:
        alpha = colours[..., wanted]
    left = colours.shape[-1] - wanted - (alpha is not None)
    if left > 0:
        remark(
            f"{path} has {left} more channel(s) than {'grey' if wanted == 1 else 'colours'}, which are left out; "
            "wanted grey or RGB, and transparency; save the others as pictures of their own if they matter"
        )
    colours = colours[..., 0] if wanted == 1 else colours[..., :3]
    if inverted and colours.dtype.kind == "u":
        colours = np.iinfo(colours.dtype).max - colours
    if alpha is not None and extra[0] == 1:  # colours were multiplied by it
        whole = to_float(alpha) if wanted == 1 else to_float(alpha)[..., None]
        plain = np.divide(to_float(colours), whole, out=np.zeros(colours.shape, np.float32), where=whole > 0)
        colours = plain if colours.dtype.kind == "f" else to_levels(plain, colours.dtype.type)
    profile = fitting_profile(profile, colours, path)
    return Picture(turned(colours, orientation), turned(alpha, orientation), profile, dpi)


def _plane(series: Any) -> list[int | None]:
    """Height, width and colours of the pictures of tifffile's series."""
    return [series.sizes.get(axis) for axis in PLANE]


def _tag(page: Any, number: int, otherwise: Any) -> Any:
    """The value of a tag of tifffile's page."""
    tag = page.tags.get(number)
    return otherwise if tag is None else tag.value


def _deep_png(path: Path) -> np.ndarray | None:
    """Colours of a .png of 16 bits, (h, w, 3), with transparency (h, w, 4), grey as (h, w, 2); None without PyAV."""
    try:
        import av.error
    except ImportError:
        return None
    try:
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
            assert isinstance(frame, av.VideoFrame)
            if frame.format.name == "rgb48be":
                return frame.to_ndarray(format="rgb48le")
            levels = frame.to_ndarray(format="rgba64le")
            return levels[..., [0, 3]] if frame.format.name.startswith("ya") else levels
    except (av.error.FFmpegError, StopIteration) as error:
        raise _unreadable(path, error) from error


def _tif_pages_pillow(path: Path) -> Iterator[np.ndarray]:
    """Pages of a .tif without tifffile; an ImageJ stack that hides its pages in one directory is refused."""
    with opened(path) as image:
        description = str(getattr(image, "tag_v2", {}).get(270, ""))
        pages = getattr(image, "n_frames", 1)
    stated = re.search(r"^images=(\d+)", description, re.MULTILINE)
    if stated and int(stated[1]) != pages:
        raise ValueError(
            f"{path} is an ImageJ stack of {stated[1]} images in {pages} page(s); wanted one page per image; "
            "run pip install 'bitlens[video]' (tifffile reads it)"
        )
    with opened(path) as image:
        for index in range(pages):
            image.seek(index)
            yield picture_of(image, path).on_black()


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
    raise Refused(
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


def _unreadable(path: Path, error: Exception) -> Refused:
    return Refused(
        f"{path} cannot be read as an image ({type(error).__name__}: {error}); wanted a complete image file; "
        "it is damaged, too large, or of another kind: save or copy it again"
    )
