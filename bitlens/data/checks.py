"""What a measurement must look like before a network sees it: finite, not clipped, from a sensor without bad pixels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bitlens.data.stacks import Stack

__all__ = ["LARGEST", "Survey", "check_measurement", "depth_note", "hot_note", "lines_note", "survey", "top_pile"]

SATURATED_SHARE = 0.01
"""A measurement with more of its pixels piled up at the top is refused: clipped light breaks y = sum mask x."""

HOT_SHARE = 0.005
"""So many of the pixels may lie above the level at which the others are clipped, and are taken for hot."""

SHARPER = 1.35
"""So many times as far apart as the values at the top must be those below them, where the top is clipped and smeared.
Measured, 64x64 to 256x256 pixels: at most 0.93 for natural video, coded and noisy; at least 1.26 (mostly 2 to 10) where
1.5 % to 30 % clip and a flat field of 2 % is divided out afterwards (`top_pile`)."""

SMEAR = 0.1
"""What smears a pile moves its pixels by a few percent of its level. A bright object before a dark ground, which looks
like a wide pile, spreads more: 0.28 and more in the real captures that hold one."""

HOT = 3.0
"""A hot pixel is so many times as bright, for the light that the mask lets through, as all but two within 2 pixels,
and far beyond the tail of the picture's brightness. Weaker ones look like small lights; only a dark picture tells."""

LARGEST = 1e30
"""No camera counts so far; larger numbers would leave float32 on the way."""

DEAD_LINE, HOT_LINE = 0.2, 3.0
"""A row or column of less or more than this share of the light of those on both sides of it is none of the picture."""


@dataclass(frozen=True)
class Pile:
    """Pixels at or just below one value, above which there are none but hot ones."""

    level: float
    """The value, or the lower end of the pile where it is smeared."""
    count: int
    """Pixels; about so many where it is smeared."""
    hot: int
    """Pixels far above it."""
    smeared: bool


@dataclass
class Survey:
    """What one pass over raw measurements finds out."""

    mean: np.ndarray
    """(h, w), float64, over the measurements, corrected."""
    low: float = math.inf
    """Of the corrected measurements, as are the next."""
    high: float = -math.inf
    """The highest value but for the share of pixels that may be hot."""
    not_finite: int = 0
    """Pixels that are NaN, or beyond `LARGEST`."""
    negative: int = 0
    """Pixels."""
    constant: tuple[int, float] | None = None
    """The first measurement that has one value everywhere, and the value."""
    pile: tuple[int, Pile] | None = None
    """The measurement with the largest pile of clipped pixels, before it was corrected."""
    bits: int = 0
    """All bits that are set in some raw value; 0: no unsigned integers."""


def survey(
    raw: np.ndarray | Stack,
    light: np.ndarray | None = None,
    correct: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Survey:
    """Look at every measurement (n, h, w) once, one at a time.

    Args:
        raw: as the camera gives them; clipping is looked for here.
        light: (h, w), the sum of the mask over its frames, to tell white from clipped (`top_pile`).
        correct: what is done to each of them (dark level, flat field) before all else is looked at.
    """
    found = Survey(np.zeros(raw.shape[1:]))
    for index, one in enumerate(raw):
        if raw.dtype.kind == "u":
            found.bits |= int(np.bitwise_or.reduce(one, axis=None))
        values = one if correct is None else correct(one)
        wrong = int((~(np.abs(values) < LARGEST)).sum())
        found.not_finite += wrong
        if wrong:
            continue
        pile = top_pile(one, light)
        if pile is not None and (found.pile is None or pile.count > found.pile[1].count):
            found.pile = index, pile
        low, high = float(values.min()), float(values.max())
        if low == high and found.constant is None:
            found.constant = index, high
        spared = values.size - 1 - int(HOT_SHARE * values.size)
        found.high = max(found.high, float(np.partition(values, spared, axis=None)[spared]))
        found.low = min(found.low, low)
        found.negative += int((values < 0).sum()) if low < 0 else 0
        found.mean += values
    found.mean /= max(1, len(raw))
    return found


def check_measurement(
    raw: np.ndarray | Stack,
    label: str,
    allow_saturated: bool = False,
    light: np.ndarray | None = None,
    correct: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[list[str], Survey]:
    """Check raw measurements (n, h, w); return notes on what was let through, and what they rest on.

    `light` and `correct` as for `survey`.

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
    found = survey(raw, light, correct)
    if found.not_finite:
        raise ValueError(
            f"{label}: {found.not_finite} pixel(s) of the measurement are NaN or infinite, or beyond 1e30; wanted "
            "finite numbers; repair the dead pixels or crop them away"
        )
    if found.constant is not None:
        index, value = found.constant
        what = "all zero" if value == 0 else f"{value:g} everywhere"
        raise ValueError(f"{label}: measurement {index} is {what}; wanted a picture; check shutter and file")
    pixels = math.prod(raw.shape[1:])
    share = found.negative / (len(raw) * pixels)
    notes = _negative_notes(found, share, label, corrected=correct is not None)
    return notes + _saturation_notes(found, pixels, label, allow_saturated), found


def top_pile(one: np.ndarray, light: np.ndarray | None = None) -> Pile | None:
    """The pile of clipped pixels of a raw measurement (h, w); None: it has none of more than `SATURATED_SHARE`.

    Many pixels at one value are a pile, where only hot ones (at most `HOT_SHARE`, far beyond the tail) lie above it. So
    is a share s of the pixels at the top, smeared by noise or a flat field, that lie closer together than is natural:
    with Q(s) the value that a share s exceeds,

        Q(1.2 s) - Q(2.4 s) > SHARPER (Q(0.05 s) - Q(0.75 s))

    as the tail of light that is not clipped thins out. Where its pixels follow the light (h, w) that the mask lets
    through, or all get the same, it is a white surface; where the values below it have a gap, they are few levels.
    Single rows and columns that are bright as a whole hide no pile: they are left out.
    """
    one, light = _without_bright_lines(one, light)
    values = np.sort(one, axis=None)[::-1].astype(np.float64)
    size = values.size
    if size < 64:
        return None
    reach = values[int(HOT_SHARE * size)]
    hot = int((values > reach + 3 * (reach - values[int(0.05 * size)])).sum())
    values = values[hot:]
    count = int((values == values[0]).sum())
    if count > max(SATURATED_SHARE * size, 1) and (not hot or not _white(one, one == values[0], light)):
        return Pile(float(values[0]), count, hot, smeared=False)

    found, sharpest = None, SHARPER
    for share in (0.014, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.2, 0.3):
        first, last, after, middle, end = (values[int(part * share * size)] for part in (0.05, 0.75, 1.2, 1.7, 2.4))
        narrow = first - last < SMEAR * last
        even = 0.1 < (after - middle) / max(after - end, 1e-30) < 0.9
        if narrow and even and after - end > sharpest * (first - last) and not _white(one, one >= last, light):
            sharpest = (after - end) / max(first - last, 1e-30)
            found = Pile(float(last), int(share * size), hot, smeared=True)
    return found


def depth_note(bits: int, dtype: np.dtype) -> str | None:
    """A note where counts of 10, 12 or 14 bits lie in the upper bits of 16."""
    unused = (bits & -bits).bit_length() - 1 if bits else 0
    if dtype != np.uint16 or unused < 2 or bits < 1 << 15:
        return None
    return (
        f"depth: all values are multiples of {1 << unused}, as counts of {16 - unused} bits in the upper bits of 16; "
        f"a gain counts in their unit: {1 << unused} for each of the camera's counts"
    )


def hot_note(picture: np.ndarray, light: np.ndarray) -> str | None:
    """A note that names the pixels of the mean measurement (h, w) that are far too bright for the light they get."""
    from scipy.ndimage import rank_filter

    if min(picture.shape) < 5:
        return None
    reached = light + 0.5 * light.mean()
    others = np.ones((5, 5), bool)
    others[2, 2] = False
    bright = picture / reached
    expected = np.maximum(rank_filter(bright, -3, footprint=others, mode="constant"), 0)
    reach, below = np.quantile(bright, [1 - HOT_SHARE, 0.95])
    hot = (bright > HOT * expected) & (bright > reach + 3 * (reach - below))
    if not hot.any():
        return None
    return (
        f"warning: {_named(hot)}: several times as bright as all around, as hot pixels are; they leave spots in the "
        "video: subtract a dark frame (dark=...)"
    )


def lines_note(picture: np.ndarray, light: np.ndarray) -> str | None:
    """A note that names rows and columns of the mean measurement (h, w) that are dark, bright or stuck as a whole."""
    found = []
    for name, values, sums in (("row", picture, light), ("column", picture.T, light.T)):
        share = values.mean(axis=1) / np.maximum(sums.mean(axis=1), 1e-30)
        stuck = (values.min(axis=1) == values.max(axis=1)) & (sums.min(axis=1) < sums.max(axis=1))
        wrong = []
        for index in range(2, len(share) - 2):  # the border has one side only
            sides = share[max(0, index - 4) : index], share[index + 1 : index + 5]
            around = [float(np.median(side)) for side in sides]
            dead = share[index] < DEAD_LINE * min(around)
            bright = share[index] > HOT_LINE * max(around) > 0
            if dead or bright or (stuck[index] and min(around) > 0 < share[index]):
                wrong.append(index)
        if wrong:
            listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            found.append(f"{name}{'s' if len(wrong) > 1 else ''} {listed}")
    if not found:
        return None
    return (
        f"warning: {' and '.join(found)} of the measurement: dark, bright or stuck as a whole, as where a sensor is "
        "defective; the video is wrong there: crop them away or repair them"
    )


def _without_bright_lines(one: np.ndarray, light: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A measurement, and the light it gets, without the rows and columns far brighter than those on both sides."""
    for axis in (0, 1):
        middle = np.median(one, axis=1 - axis).astype(np.float64)
        if len(middle) < 9:
            continue
        near = np.lib.stride_tricks.sliding_window_view(np.pad(middle, 4, mode="reflect"), 9)
        sides = np.maximum(np.median(near[:, :4], axis=1), np.median(near[:, 5:], axis=1))
        kept = ~((middle > HOT_LINE * sides) & (sides > 0))
        if not kept.all():
            one, light = (None if a is None else np.compress(kept, a, axis) for a in (one, light))  # type: ignore
    return one, light


def _named(where: np.ndarray) -> str:
    """`3 pixels (row 4, column 7; ...)`"""
    places = np.argwhere(where)
    listed = "; ".join(f"row {row}, column {column}" for row, column in places[:4])
    return f"{len(places)} pixel{'s' if len(places) > 1 else ''} ({listed}{'; ...' if len(places) > 4 else ''})"


def _white(one: np.ndarray, where: np.ndarray, light: np.ndarray | None) -> bool:
    """Whether pixels are as bright as the light (h, w) that the mask lets through to them, or all get the same."""
    if light is None or not where.any():
        return False
    sums, values = light[where].astype(np.float64), one[where].astype(np.float64)
    spread = float(sums.std())
    if spread < 0.05 * float(sums.mean()):
        return True
    return float(values.std()) > 0 and float(np.corrcoef(sums, values)[0, 1]) > 0.5


def _negative_notes(found: Survey, share: float, label: str, corrected: bool) -> list[str]:
    """Dark subtraction leaves a few small negative values: kept, with a note; more than that is refused.

    Where it was done here, single pixels may be anything: hot ones of the dark frame.
    """
    low = found.low
    if low >= 0:
        return []
    if (low < -0.05 * found.high and not corrected) or share > (0.25 if corrected else 0.05):
        raise ValueError(
            f"{label}: the measurement goes down to {low:g} ({share:.1%} of the pixels are negative); "
            "wanted light, >= 0 but for noise; check the dark level that was subtracted, and the data type"
        )
    return [
        f"negative: {share:.2%} of the pixels are below 0 (lowest {low:g}), as after subtracting a dark level; kept"
    ]


def _saturation_notes(found: Survey, pixels: int, label: str, allow_saturated: bool) -> list[str]:
    if found.pile is None:
        return []
    worst, pile = found.pile
    text = f"{pile.count / pixels:.1%} of the pixels of measurement {worst} "
    if pile.smeared:
        text = f"about {text}pile up around {pile.level:.4g}, as clipped light does that noise or a correction smeared"
    else:
        text += f"sit at {pile.level:g}" if pile.hot else f"sit at the maximum {pile.level:g}"
    text += f", below {pile.hot} hot pixel(s)" if pile.hot else ""
    if not allow_saturated:
        raise ValueError(
            f"{label}: {text}: saturated; wanted at most {SATURATED_SHARE:.0%}; "
            "shorten the exposure, or accept it with allow_saturated=True"
        )
    return [f"saturated: {text}; reconstruction is wrong there"]
