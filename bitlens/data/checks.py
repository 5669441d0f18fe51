"""What a measurement must look like before a network sees it, and whether a mask can have made it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitlens.data.stacks import Stack

__all__ = ["Survey", "check_measurement", "closed_note", "match_note", "survey"]

SATURATED_SHARE = 0.01
"""A measurement with more of its pixels at the maximum is refused: clipped light breaks y = sum mask x."""

MATCH = 0.1
"""Least correlation of the fine structures of measurement and mask. Measured: 0.76 to 0.96 for the six
scenes and two real captures (14 frames, 256x256); at most 0.02 with another, flipped or transposed mask."""


@dataclass
class Survey:
    """What one pass over raw measurements finds out."""

    mean: np.ndarray
    """(h, w), float64, over the measurements."""
    low: float = math.inf
    high: float = -math.inf
    not_finite: int = 0
    """Pixels."""
    negative: int = 0
    """Pixels."""
    constant: tuple[int, float] | None = None
    """The first measurement that has one value everywhere, and the value."""
    at_top: tuple[int, int] = (0, 0)
    """The measurement with the most pixels at `high`, and how many these are."""


def survey(raw: np.ndarray | Stack) -> Survey:
    """Look at every measurement (n, h, w) once, one at a time."""
    found = Survey(np.zeros(raw.shape[1:]))
    for index, one in enumerate(raw):
        wrong = int((~np.isfinite(one)).sum())
        found.not_finite += wrong
        if wrong:
            continue
        low, high = float(one.min()), float(one.max())
        if low == high and found.constant is None:
            found.constant = index, high
        if high > found.high:
            found.high, found.at_top = high, (index, 0)
        at_top = int((one == one.max()).sum()) if high == found.high else 0
        if at_top > found.at_top[1]:
            found.at_top = index, at_top
        found.low = min(found.low, low)
        found.negative += int((one < 0).sum()) if low < 0 else 0
        found.mean += one
    found.mean /= max(1, len(raw))
    return found


def check_measurement(raw: np.ndarray | Stack, label: str, allow_saturated: bool = False) -> tuple[list[str], Survey]:
    """Check raw measurements (n, h, w); return notes on what was let through, and what they rest on.

    Raises:
        ValueError: not real numbers, empty, NaN or infinite, negative beyond noise, constant, or saturated.
    """
    if raw.dtype.kind not in "iuf":
        raise ValueError(
            f"{label}: the measurement has dtype {raw.dtype}; wanted real numbers (integers or floats); "
            "export the camera's raw values"
        )
    if 0 in raw.shape:
        raise ValueError(f"{label}: the measurement is empty {raw.shape}; wanted (h, w) pixels; check the file")
    found = survey(raw)
    if found.not_finite:
        raise ValueError(
            f"{label}: {found.not_finite} pixel(s) of the measurement are NaN or infinite; wanted finite numbers; "
            "repair the dead pixels or crop them away"
        )
    if found.constant is not None:
        index, value = found.constant
        what = "all zero" if value == 0 else f"{value:g} everywhere"
        raise ValueError(f"{label}: measurement {index} is {what}; wanted a picture; check shutter and file")
    pixels = math.prod(raw.shape[1:])
    share = found.negative / (len(raw) * pixels)
    return _negative_notes(found, share, label) + _saturation_notes(found, pixels, label, allow_saturated), found


def closed_note(picture: np.ndarray, mask: np.ndarray) -> str | None:
    """A note where the pixels of the mean measurement (h, w) that no frame opens have over half the others' light."""
    closed = mask.max(axis=0) == 0
    if not closed.any() or closed.all():
        return None
    ratio = float(picture[closed].mean() / picture[~closed].mean())
    if ratio < 0.5:
        return None
    return (
        f"warning: the {int(closed.sum())} pixels that the mask never opens hold {ratio:.0%} of the light of "
        "the others; the mask is probably another camera's, or a dark level was not subtracted"
    )


def match_note(picture: np.ndarray, mask: np.ndarray) -> str | None:
    """A note where the fine structure of the mean measurement (h, w) is not the mask's, naming a turn that would do."""
    picture, pattern = _fine_structure(picture), _fine_structure(mask.sum(axis=0))
    if min(picture.shape) < 16 or float(np.std(pattern)) < 0.01:
        return None
    found = _correlation(picture, pattern)
    if found >= MATCH:
        return None
    text = (
        f"warning: measurement and mask do not belong together: their fine structure correlates {found:.2f} "
        f"(a matching pair: 0.7 or more)"
    )
    better = _where_it_fits(picture, pattern)
    return f"{text}; {better}" if better else f"{text}; check that the mask is this camera's and was not resized"


def _negative_notes(found: Survey, share: float, label: str) -> list[str]:
    """Dark subtraction leaves a few small negative values: kept, with a note; more than that is refused."""
    low = found.low
    if low >= 0:
        return []
    if low < -0.05 * found.high or share > 0.05:
        raise ValueError(
            f"{label}: the measurement goes down to {low:g} ({share:.1%} of the pixels are negative); "
            "wanted light, >= 0 but for noise; check the dark level that was subtracted, and the data type"
        )
    return [
        f"negative: {share:.2%} of the pixels are below 0 (lowest {low:g}), as after subtracting a dark level; kept"
    ]


def _saturation_notes(found: Survey, pixels: int, label: str, allow_saturated: bool) -> list[str]:
    worst, count = found.at_top
    share = count / pixels
    if share <= SATURATED_SHARE or count < 2:
        return []
    text = f"{share:.1%} of the pixels of measurement {worst} sit at the maximum {found.high:g}"
    if not allow_saturated:
        raise ValueError(
            f"{label}: {text}: saturated; wanted at most {SATURATED_SHARE:.0%}; "
            "shorten the exposure, or accept it with allow_saturated=True"
        )
    return [f"saturated: {text}; reconstruction is wrong there"]


def _fine_structure(picture: np.ndarray) -> np.ndarray:
    """High-pass over 7x7 pixels relative to the local brightness: mostly the code is left."""
    from scipy.ndimage import uniform_filter

    picture = picture.astype(np.float64)
    local = uniform_filter(picture, 7, mode="nearest")
    return (picture - local) / (np.abs(local) + 0.02 * abs(picture.mean()) + 1e-30)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second) + 1e-30))


def _where_it_fits(picture: np.ndarray, pattern: np.ndarray) -> str | None:
    """Search the eight turns and flips, and all shifts, of the mask (by FFT) for a match; say which."""
    turns: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "shifted": lambda a: a,
        "flipped upside down": lambda a: a[::-1],
        "flipped left to right": lambda a: a[:, ::-1],
        "rotated by 180 degrees": lambda a: a[::-1, ::-1],
        "transposed": lambda a: a.T,
        "rotated by 90 degrees": lambda a: np.rot90(a, 1),
        "rotated by 270 degrees": lambda a: np.rot90(a, 3),
        "transposed and rotated by 180 degrees": lambda a: a.T[::-1, ::-1],
    }
    spectrum = np.fft.rfft2(picture - picture.mean())
    best, answer = 3 * MATCH, None
    for name, turn in turns.items():
        turned = turn(pattern)
        if turned.shape != picture.shape:
            continue
        products = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(turned - turned.mean())), s=picture.shape)
        score = float(products.max()) / (
            np.linalg.norm(picture - picture.mean()) * np.linalg.norm(turned - turned.mean())
        )
        if score > best:
            peak = np.unravel_index(int(products.argmax()), products.shape)
            rows, columns = (
                int(at) - (size if at > size // 2 else 0) for at, size in zip(peak, products.shape, strict=True)
            )
            best, answer = (
                score,
                f"the mask {name} by {rows} rows and {columns} columns would match ({score:.2f})",
            )
            if name != "shifted":
                moved = f", moved by {rows} rows and {columns} columns" if rows or columns else ""
                answer = f"the mask {name}{moved} would match ({score:.2f})"
    return answer
