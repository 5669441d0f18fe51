"""What a JPEG file says of the image that was compressed, so that a restored one can be held to it.

JPEG rounds the cosine coefficients c of each block of 8 x 8 pixels of luma to steps q, which the file states:

    c' = q round(c / q),    so that    |c - c'| <= q / 2                      [Zakhor, IEEE TCSVT 1992]

A restored image fulfils that when its coefficients are clipped to it: the nearest image that does, and one that is no
farther from the truth. Most of c lie far from the ends, so narrower bounds come nearer still [Park, Kim: "Theory of
projection onto the narrow quantization constraint set and its application", IEEE TIP 1999].
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from bitlens.data.levels import LUMA
from bitlens.data.metadata import mirrored

__all__ = ["Jpeg", "jpeg_of"]

SIDE = 8
"""Pixels along a block."""

ROWS = 64
"""That are transformed at a time."""

NARROW = 0.3
"""Of a step, to both sides: chosen on held-out photographs (docs/restoration.md); 0.5 is what is certain."""


@dataclass(frozen=True, eq=False)
class Jpeg:
    """Luma's blocks in an image that was a JPEG, as it lies after it was turned the right way round."""

    steps: Float32[np.ndarray, "8 8"]
    """Of each coefficient (down, across), in levels of 255."""
    first: tuple[int, int]
    """Row and column at which the first whole block begins."""

    def hold(
        self, bands: Iterable[Float32[np.ndarray, "3 _ w"]], given: UInt8[np.ndarray, "c h w"]
    ) -> Iterator[Float32[np.ndarray, "3 _ w"]]:
        """A restored image that contradicts the file nowhere, from one that may, in bands of rows.

        Colours keep their difference from luma. Blocks that the image's border cuts stay as they are.

        Args:
            bands: the restored image in [0, 1], from top to bottom; all rows in all.
            given: levels as they came out of the file, RGB or grey.
        """
        height, done = given.shape[1], 0
        rest = np.zeros((3, 0, given.shape[2]), np.float32)
        for band in (each[:, row : row + ROWS] for each in bands for row in range(0, each.shape[1], ROWS)):
            rest = np.concatenate([rest, band], 1)
            last = done + rest.shape[1] == height
            whole = (
                rest.shape[1] if last else (done + rest.shape[1] - self.first[0]) // SIDE * SIDE + self.first[0] - done
            )
            if whole > 0:
                yield self._held(rest[:, :whole], given[:, done : done + whole], 0 if done else self.first[0])
                rest, done = rest[:, whole:], done + whole

    def _held(
        self, band: Float32[np.ndarray, "3 n w"], given: UInt8[np.ndarray, "c n w"], top: int
    ) -> Float32[np.ndarray, "3 n w"]:
        """A band whose first whole block begins in row `top`."""
        from scipy.fft import dctn, idctn

        left = self.first[1]
        down, across = (
            max(0, length - begin) // SIDE for length, begin in zip(band.shape[1:], (top, left), strict=True)
        )
        place = np.s_[:, top : top + SIDE * down, left : left + SIDE * across]
        if not down or not across:
            return band
        stored, found = luma(given[place].astype(np.float32)), luma(255 * band[place])
        codes = np.round(dctn(blocks(stored - 128), axes=(2, 3), norm="ortho") / self.steps)
        coefficients: Any = dctn(blocks(found - 128), axes=(2, 3), norm="ortho")
        clipped = np.clip(coefficients, self.steps * (codes - NARROW), self.steps * (codes + NARROW))
        change: Any = idctn(clipped - coefficients, axes=(2, 3), norm="ortho")
        held = band.copy()
        held[place] += change.transpose(0, 2, 1, 3).reshape(SIDE * down, SIDE * across) / 255
        return held


def luma(image: Float32[np.ndarray, "c h w"]) -> Float32[np.ndarray, "h w"]:
    """Luma of RGB, as JPEG has it, or the one channel of a grey image."""
    return image[0] if len(image) == 1 else np.tensordot(LUMA, image, 1)


def blocks(plane: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "y x 8 8"]:
    """Its blocks of 8 x 8 pixels."""
    height, width = plane.shape
    return plane.reshape(height // SIDE, SIDE, width // SIDE, SIDE).transpose(0, 2, 1, 3)


def jpeg_of(image: Any, orientation: int) -> Jpeg | None:
    """The blocks of an image that Pillow has opened, turned by its EXIF orientation.

    None where it is no JPEG, or one whose channels are not luma and differences of colour: CMYK, or RGB as it is.
    """
    layers, tables = getattr(image, "layer", None), getattr(image, "quantization", None)
    if not layers or not tables or image.mode not in ("L", "RGB"):
        return None
    if image.mode == "RGB" and (layers[0][0] == ord("R") or image.info.get("adobe_transform") == 0):
        return None
    if any(layer[1] > layers[0][1] or layer[2] > layers[0][2] for layer in layers):  # luma at less than full resolution
        return None
    steps = np.array(tables[layers[0][3]], np.float32).reshape(SIDE, SIDE)
    height, width = image.size[:: 1 if orientation >= 5 else -1]
    down, across = mirrored(orientation)
    first = height % SIDE if down else 0, width % SIDE if across else 0
    return Jpeg(steps.T if orientation >= 5 else steps, first)
