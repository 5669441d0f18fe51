"""What the sensor adds and multiplies, taken out of raw measurements: its dark level, and a flat field."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import KEY_AXES, NAMED_SUFFIXES, array_names
from bitlens.data.checks import LARGEST
from bitlens.data.stacks import Stack, open_raw

__all__ = ["Correction", "mean_picture", "open_correction"]


@dataclass(frozen=True, eq=False)
class Correction:
    """corrected = (raw - dark) / flat."""

    dark: Float32[np.ndarray, "h w"]
    """In raw counts; 0 where none was given."""
    flat: Float32[np.ndarray, "h w"]
    """Of mean 1, so that gains keep their unit."""
    notes: tuple[str, ...]
    """What was done, for people."""

    def apply(self, raw: np.ndarray) -> Float32[np.ndarray, "h w"]:
        """One measurement (h, w), corrected; values below 0 stay."""
        return (raw.astype(np.float32) - self.dark) / self.flat

    def cut(self, crop: tuple[int, int, int, int]) -> "Correction":
        """For measurements that were cut out at (top, left, height, width)."""
        top, left, height, width = crop
        part = np.s_[top : top + height, left : left + width]
        return replace(self, dark=self.dark[part], flat=self.flat[part])


def open_correction(dark: str | os.PathLike[str] | None, flat: str | os.PathLike[str] | None, raw: Stack) -> Correction:
    """Read dark and flat pictures, of any format of measurements, and check that they belong to these (n, h, w).

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, of another size, as bright as the measurements (dark), or not bright everywhere (flat).
    """
    notes = []
    level, shape = np.zeros(raw.shape[1:], np.float32), np.ones(raw.shape[1:], np.float32)
    if dark is not None:
        level = mean_picture(dark, "dark").astype(np.float32)
        _check_size(level, raw, dark, "dark")
        first = float(next(iter(raw)).mean())
        if not level.mean() < first:
            raise ValueError(
                f"the dark picture {dark} has a mean of {level.mean():.4g}, the first measurement one of {first:.4g}; "
                "wanted less light in the dark; check which is which, and that their exposure times agree"
            )
        notes.append(f"dark: {float(level.mean()):.4g} subtracted on average, up to {float(level.max()):.4g}")
    if flat is not None:
        shape = mean_picture(flat, "flat").astype(np.float32)
        _check_size(shape, raw, flat, "flat")
        shape = shape - level
        low = int((shape <= 0.05 * shape.mean()).sum())
        if low or not shape.mean() > 0:
            raise ValueError(
                f"the flat picture {flat} is dark in {low} pixel(s)" + (", less the dark one" if dark else "") + "; "
                "wanted an even white surface; record it again, without the mask, or repair the dead pixels"
            )
        shape = shape / shape.mean()
        notes.append(f"flat: divided by {float(shape.min()):.3g} to {float(shape.max()):.3g}")
    return Correction(level, shape, tuple(notes))


def mean_picture(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """The mean (h, w), float64, of the pictures in a file or a folder; of several arrays the only one, or `what`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or values that are no finite real numbers.
    """
    path = Path(path)
    names = [what, "measurement", "meas"]
    axes = None
    if path.suffix.lower() in NAMED_SUFFIXES and path.exists():
        held = [name for name in array_names(path) if name not in ("axes", "gain", "mask", "orig")]
        names = [name for name in names if name in held][:1] or (held if len(held) == 1 else names)
        axes = None if names[0] in KEY_AXES else "hwt" if path.suffix.lower() == ".mat" else "thw"
    pictures = open_raw(path, names[0] if len(names) == 1 else None, axes, names)
    if pictures.dtype.kind not in "iuf":
        raise ValueError(f"{path} has dtype {pictures.dtype}; wanted real numbers; export the camera's raw values")
    total = np.zeros(pictures.shape[1:])
    for picture in pictures:
        total += picture
    if not (np.abs(total) < LARGEST).all():
        raise ValueError(f"{path} holds NaN or infinite values, or beyond 1e30; wanted finite numbers; record it again")
    return total / len(pictures)


def _check_size(picture: np.ndarray, raw: Stack, path: str | os.PathLike[str], what: str) -> None:
    if picture.shape != raw.shape[1:]:
        raise ValueError(
            f"the {what} picture {path} is {picture.shape[0]}x{picture.shape[1]}, the measurement "
            f"{raw.shape[1]}x{raw.shape[2]}; wanted one size, before any crop; record it with the same settings"
        )
