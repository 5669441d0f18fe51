"""Levels of images and values in [0, 1]: from one to the other, and to grey."""

from pathlib import Path

import numpy as np

from bitlens.files import remark

__all__ = ["check_white", "in_unit_range", "to_float", "to_grey", "to_levels"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601 luma of R, G, B, full range."""


def to_float(levels: np.ndarray) -> np.ndarray:
    """Levels to float32: integers are divided by their type's maximum (255, 65535), floats stay."""
    if levels.dtype.kind in "iu":
        return levels.astype(np.float32) / np.float32(np.iinfo(levels.dtype).max)
    return levels.astype(np.float32)


def in_unit_range(levels: np.ndarray, white: float | None = None) -> np.ndarray:
    """Levels to float32 in [0, 1], clipped, `white` at 1; None: as `to_float`. White of 8 bits is 255 always."""
    scaled = to_float(levels) if white is None or levels.dtype == np.uint8 else levels / np.float32(white)
    return np.clip(scaled, 0, 1, dtype=np.float32)


def check_white(levels: np.ndarray, path: Path, white: float | None = None) -> None:
    """Refuse floats that are not in [0, white], and say so where levels of 16 bits use few of them, or go beyond white.

    Raises:
        ValueError: floats that are NaN or infinite, or beyond white by more than a hundredth of it.
    """
    low, high = float(levels.min()), float(levels.max())
    if levels.dtype.kind == "f":
        top = 1.0 if white is None else white
        if not (np.isfinite(low) and np.isfinite(high)) or low < -0.01 * top or high > 1.01 * top:
            raise ValueError(
                f"{path} spans [{low:g}, {high:g}]; wanted finite values in [0, {top:g}]; pass white=... (the value of "
                "white, 255 say), or save it so"
            )
    elif levels.dtype == np.uint16 and white is None and 0 < high < 4096:
        remark(
            f"{path} has 16 bits, and its brightest value is {high:.0f} of 65535: the result is nearly black; "
            "wanted the value of white; pass white=... (4095 if a camera of 12 bits took it)"
        )
    elif levels.dtype == np.uint16 and white is not None and high > white:
        remark(f"{path} has values up to {high:.0f}, beyond white, {white:g}; wanted none; they become white")


def to_levels(values: np.ndarray, dtype: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Values in [0, 1] to integer levels, clipped and rounded half to even."""
    top = np.iinfo(dtype).max
    return np.round(np.clip(values, 0.0, 1.0).astype(np.float64) * top).astype(dtype)


def to_grey(values: np.ndarray) -> np.ndarray:
    """Luma Y = 0.299 R + 0.587 G + 0.114 B (BT.601, full range) of values in [0, 1]; (..., 3) -> (...)."""
    return np.minimum(values @ LUMA, np.float32(1)).astype(np.float32)  # white rounds to 1 + 1e-7 otherwise
