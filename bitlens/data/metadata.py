"""What an image file says of itself: orientation, EXIF, resolution, colour profile."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.files import remark

__all__ = [
    "DAMAGE", "ORIENTATION", "PROFILE", "RESOLUTION", "RESOLUTION_UNIT", "dpi_of", "exif_of", "fitting_profile",
    "mirrored", "rgb_or_grey", "turned",
]  # fmt: skip

DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, AttributeError,
    AssertionError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow and tifffile raise for files that are no whole images, beside their own errors."""


ORIENTATION, RESOLUTION, RESOLUTION_UNIT, EXIF, PROFILE = 274, (282, 283), 296, 34665, 34675
"""Tags of TIFF and EXIF."""


def turned(levels: np.ndarray | None, orientation: int) -> Any:
    """(h, w, ...) turned and mirrored as EXIF orientation 1 to 8 says that it is to be shown; None stays None."""
    if levels is None or orientation not in range(2, 9):
        return levels
    if orientation >= 5:
        levels = levels.swapaxes(0, 1)
    down, across = (-1 if mirror else 1 for mirror in mirrored(orientation))
    return levels[::down, ::across]


def mirrored(orientation: int) -> tuple[bool, bool]:
    """Whether an EXIF orientation, 1 to 8, mirrors rows, and columns, after axes are swapped where it is 5 or more."""
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def exif_of(image: Any, path: Path) -> tuple[int, bytes | None]:
    """Orientation, 1 to 8, and EXIF without it; damaged EXIF is left out with a remark."""
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION, 1)
        exif.pop(ORIENTATION, None)
        inner = exif.get_ifd(EXIF) if EXIF in exif else {}
        for tag in (40962, 40963):  # width and height, which will be others
            inner.pop(tag, None)
        kept = exif.tobytes() if len(exif) and image.format != "TIFF" else None  # a .tif's are those of its strips
    except DAMAGE as error:
        remark(f"{path} has damaged EXIF, which is left out ({error}); wanted whole EXIF; write it again if it matters")
        return 1, None
    return (orientation if orientation in range(1, 9) else 1), kept


def dpi_of(stated: Any) -> tuple[float, float] | None:
    """Pixels per inch, where they are two positive numbers."""
    try:
        across, down = (float(each) for each in stated)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (across, down) if 1 < across < 1e6 and 1 < down < 1e6 else None  # 1: a .tif without a unit


def rgb_or_grey(image: Any, profile: bytes | None, path: Path) -> Any:
    """A Pillow image of 8 bits in L, LA, RGB or RGBA. CMYK goes through its profile, where it has one."""
    from PIL import ImageCms

    if image.mode == "CMYK" and profile:
        try:
            source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, *DAMAGE) as error:
            remark(f"{path} has a CMYK profile that cannot be used ({error}); wanted a whole one; convert it to RGB")
    clear = image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    return image.convert(("LA" if clear else "L") if grey else "RGBA" if clear else "RGB")


def fitting_profile(profile: bytes | None, colours: np.ndarray, path: Path) -> bytes | None:
    """The ICC profile, where it is one of grey or RGB as the levels are. That of CMYK has been used."""
    space = profile[16:20] if isinstance(profile, bytes) and len(profile) >= 128 else b""
    if space == (b"RGB " if colours.ndim == 3 else b"GRAY"):
        return profile
    if profile and space != b"CMYK":
        remark(
            f"{path} has a colour profile that does not fit its levels, and is left out; wanted one of "
            f"{'RGB' if colours.ndim == 3 else 'grey'}; convert the picture to sRGB if its colours matter"
        )
    return None
