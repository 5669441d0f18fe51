"""Colour from a sensor behind a Bayer mosaic: its four grey pictures of half the size, and the mosaic as colours.

[Malvar] Malvar, He, Cutler: "High-quality linear interpolation for demosaicing of Bayer-patterned color images", ICASSP
2004: a missing colour is interpolated bilinearly and corrected by the Laplacian of the colour that is known there.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

__all__ = ["PATTERNS", "demosaic", "join", "pattern_at", "split"]

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")
"""The colours of the upper left 2x2 pixels, row by row."""

SITES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) of the four pictures, in the order of the letters."""

GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]]) / 8
"""Green at a red or blue pixel [Malvar, fig. 2]."""
BESIDE = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]]) / 8
"""Red or blue at a green pixel that has it on its left and right; transposed: above and below."""
ACROSS = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]]) / 8
"""Red at a blue pixel, and blue at a red one."""


def split(mosaic: np.ndarray) -> list[np.ndarray]:
    """The pixels of each of the four sites: (..., h, w) -> four of (..., h/2, w/2). Tensors are split likewise.

    Raises:
        ValueError: an odd height or width.
    """
    height, width = mosaic.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(
            f"a mosaic of {height}x{width} pixels; wanted an even height and width; cut it with "
            f"crop=(top, left, {height - height % 2}, {width - width % 2})"
        )
    return [mosaic[..., row::2, column::2] for row, column in SITES]


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """What `split` took apart: four of (..., h, w) -> (..., 2 h, 2 w)."""
    height, width = parts[0].shape[-2:]
    mosaic = np.empty((*parts[0].shape[:-2], 2 * height, 2 * width), parts[0].dtype)
    for (row, column), part in zip(SITES, parts, strict=True):
        mosaic[..., row::2, column::2] = part
    return mosaic


def pattern_at(pattern: str, top: int = 0, left: int = 0) -> str:
    """The pattern of a picture that is cut out at row `top` and column `left`, in capitals.

    Raises:
        ValueError: not one of `PATTERNS`.
    """
    letters = pattern.upper()
    if letters not in PATTERNS:
        raise ValueError(
            f"the mosaic is '{pattern}'; wanted one of {', '.join(PATTERNS)}, the colours of the upper left 2x2 "
            "pixels, row by row; the camera's manual has it"
        )
    return "".join(letters[2 * ((row + top) % 2) + (column + left) % 2] for row, column in SITES)


def demosaic(mosaic: Float32[np.ndarray, "t h w"], pattern: str) -> Float32[np.ndarray, "t h w 3"]:
    """The colours R, G, B of a mosaic video [Malvar], as the sensor weights them: no white balance, not clipped.

    Raises:
        ValueError: as `pattern_at`; an odd height or width.

    Example:
        >>> demosaic(np.full((1, 6, 8), 0.5, np.float32), "RGGB").shape
        (1, 6, 8, 3)
    """
    from scipy.ndimage import correlate

    letters = pattern_at(pattern)
    split(mosaic)  # refuses odd sizes
    red_row, red_column = SITES[letters.index("R")]
    colours = np.stack([mosaic] * 3, axis=-1)  # t h w 3
    for frame, out in zip(mosaic, colours, strict=True):
        green, sideways, upright, across = (
            correlate(frame, kernel.astype(np.float32), mode="mirror") for kernel in (GREEN, BESIDE, BESIDE.T, ACROSS)
        )
        for channel, own in ((0, (red_row, red_column)), (2, (1 - red_row, 1 - red_column))):
            there = np.s_[own[0] :: 2, own[1] :: 2]
            out[..., 1][there] = green[there]
            out[..., 2 - channel][there] = across[there]
            for values, site in ((sideways, (own[0], 1 - own[1])), (upright, (1 - own[0], own[1]))):
                there = np.s_[site[0] :: 2, site[1] :: 2]
                out[..., channel][there] = values[there]
    return colours
