"""The mask of a camera, from recordings of a white scene, one for each of its positions, and pictures in the dark.

    recording_t = white * mask_t + dark + noise          (all products per pixel; white: counts of an open pixel)

Vignetting is part of the mask, as the scene is seen through it too; what the lamp does to the white scene alone is
taken out by a flat picture.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from bitlens.data.checks import SATURATED_SHARE
from bitlens.data.masks import check_mask
from bitlens.data.matching import displacement, steps

__all__ = ["Calibration", "calibrate"]

HOT = 8.0
"""A pixel is hot where it differs from the median of the dark picture by so many standard deviations of the others."""

MOVED = 0.2
"""Pixels by which a position may move before it is named."""

DIMMED = 0.02
"""Share by which the light may change before it is named."""

FLAT_CONTRAST = 0.5
"""(open - closed) / (open + closed) below which a mask is called flat."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """A mask, and what was found out about it."""

    mask: Float32[np.ndarray, "t h w"]
    """In [0, 1]; 1 is the light of an open pixel where the picture is brightest. A stuck pixel is 0 in all frames."""
    white: float
    """Counts of such a pixel: the gain of measurements whose frames are exposed like the recordings."""
    hot: Float64[np.ndarray, "pixels 2"]
    """(row, column) of the hot pixels of the dark picture."""
    coverage: float
    """Share of the pixels that at least one frame opens."""
    contrast: float
    """(open - closed) / (open + closed), of the 95 % and 5 % quantiles."""
    notes: tuple[str, ...]
    """The checks, for people; what is probably wrong starts with 'warning:'."""


def calibrate(
    recordings: Iterable[np.ndarray],
    dark: np.ndarray,
    *,
    flat: np.ndarray | None = None,
    again: np.ndarray | None = None,
    label: str = "the recordings",
) -> Calibration:
    """Compute the mask of a camera and check it.

    Args:
        recordings: raw pictures (h, w) of a white scene, one for each position of the mask, each the mean of as many
            as were taken.
        dark: (h, w), the mean picture in the dark, at the same exposure time.
        flat: (h, w), the white scene without the mask, where its own brightness is to be divided out; it takes the
            vignetting with it.
        again: (h, w), the first position once more, recorded last: what moved or dimmed in between is named.
        label: what the messages call the recordings.

    Raises:
        ValueError: sizes that differ, recordings that clip or hold no light, or a mask that `check_mask` refuses.
    """
    first: np.ndarray | None = None
    light = []  # of each position
    for index, one in enumerate(recordings):
        _check_recording(one, dark, f"{label}, position {index}")
        light.append(_linear(one, dark, flat))
        first = one if first is None else first
    if len(light) < 2:
        raise ValueError(
            f"{label}: {len(light)} position(s) of the mask; wanted one recording of each, at least 2; give all"
        )
    values = np.stack(light)  # t h w
    hot = _outliers(dark)
    stuck = hot & (values.max(axis=0) - values.min(axis=0) < 0.02 * np.quantile(values, 0.95))
    usable = np.where(hot, np.median(values), values.max(axis=0))  # h w
    white = _white_level(values, usable)
    mask = np.clip(values / white, 0, 1).astype(np.float32)
    mask[:, stuck] = 0
    check_mask(mask, f"the mask of {label}", max_closed=0.5)

    coverage = float((mask.max(axis=0) > 0.25 * _around(mask.max(axis=0))).mean())
    closed, opened = np.quantile(mask, [0.05, 0.95])
    contrast = float((opened - closed) / (opened + closed))
    notes = [
        f"white: an open pixel gives {white:.4g} counts where the picture is brightest",
        f"coverage: {coverage:.1%} of the pixels are opened by some position; {float(mask.mean()):.0%} of the light "
        "passes",
        f"contrast: {contrast:.2f} (open {opened:.3f}, closed {closed:.3f})",
    ]
    if contrast < FLAT_CONTRAST:
        notes.append("warning: open and closed differ little; focus the mask, or subtract the right dark picture")
    if coverage < 0.9:
        notes.append(f"warning: {1 - coverage:.1%} of the pixels are never opened; crop to the coded area")
    notes += _hot_notes(hot, stuck)
    notes += _drift_notes(values, None if again is None else _linear(again, dark, flat))
    return Calibration(mask, white, np.argwhere(hot).astype(np.float64), coverage, contrast, tuple(notes))


def _linear(one: np.ndarray, dark: np.ndarray, flat: np.ndarray | None) -> np.ndarray:
    """Light, in counts."""
    light = one.astype(np.float64) - dark
    if flat is None:
        return light
    even = flat.astype(np.float64) - dark
    if not even.min() > 0.05 * even.mean():
        raise ValueError(
            "the flat picture, less the dark one, is dark in places; wanted an even white scene without the mask; "
            "record it again"
        )
    return light / (even / np.quantile(even, 0.99))


def _check_recording(one: np.ndarray, dark: np.ndarray, label: str) -> None:
    if one.shape != dark.shape:
        raise ValueError(
            f"{label} is {one.shape[0]}x{one.shape[1]}, the dark picture {dark.shape[0]}x{dark.shape[1]}; wanted one "
            "size; record both with the same settings"
        )
    if not np.isfinite(one).all():
        raise ValueError(f"{label} holds NaN or infinite values; wanted finite numbers; record it again")
    if not one.mean() > dark.mean():
        raise ValueError(
            f"{label} has a mean of {one.mean():.4g}, the dark picture one of {dark.mean():.4g}; wanted more light "
            "than in the dark; check which is which"
        )
    top = float(np.sort(one, axis=None)[-max(1, one.size // 500)])  # hot pixels beyond it do not hide it
    share = float((one == top).mean())
    if share > SATURATED_SHARE:
        raise ValueError(
            f"{label}: {share:.1%} of the pixels sit at {top:g}: saturated; wanted at most {SATURATED_SHARE:.0%}; "
            "shorten the exposure or dim the lamp, and record all again"
        )


def _outliers(dark: np.ndarray) -> np.ndarray:
    """(h, w) bool: the hot pixels of a dark picture."""
    away = dark - np.median(dark)
    spread = 1.4826 * float(np.median(np.abs(away)))
    return away > HOT * max(spread, 0.5)


def _white_level(values: np.ndarray, brightest: np.ndarray) -> float:
    """Light of an open pixel where the picture is brightest: means over 8x8 pixels of what comes near the local top.

    The top itself, of noisy values, would be too high.
    """
    levels = [0.0]
    height, width = brightest.shape
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            part = np.s_[..., top : top + 8, left : left + 8]
            near = values[part] / max(float(np.quantile(brightest[part], 0.95)), 1e-30)
            near = values[part][(near > 0.875) & (near < 1.125)]
            if near.size >= 16:
                levels.append(float(near.mean()))
    return max(*levels, 1e-30)


def _around(brightest: np.ndarray) -> np.ndarray:
    """The brightness of open pixels nearby, (h, w)."""
    from scipy.ndimage import percentile_filter

    return percentile_filter(brightest, 80, size=15, mode="nearest")


def _hot_notes(hot: np.ndarray, stuck: np.ndarray) -> list[str]:
    if not hot.any():
        return ["hot pixels: none"]
    places = "; ".join(f"row {row}, column {column}" for row, column in np.argwhere(hot)[:8])
    more = "; ..." if hot.sum() > 8 else ""
    said = f"hot pixels: {int(hot.sum())} ({places}{more}); subtract the dark picture from measurements too"
    if stuck.any():
        said += f"; {int(stuck.sum())} of them do not follow the mask and are left out of it"
    return [said]


def _drift_notes(values: np.ndarray, again: np.ndarray | None) -> list[str]:
    """How the light changed over the positions, and whether the mask moved."""
    notes = []
    levels = np.quantile(values.reshape(len(values), -1), 0.9, axis=1)
    change = levels / levels.mean() - 1
    worst = int(np.abs(change).argmax())
    text = f"light: position {worst} is {change[worst]:+.1%} from the mean, the last {change[-1] - change[0]:+.1%} from"
    notes.append(f"{'warning: ' if np.abs(change).max() > DIMMED else ''}{text} the first")
    if again is not None:
        rows, columns, alike = displacement(values[0], again)
        dimmed = float(again.mean() / values[0].mean()) - 1
        moved = float(np.hypot(rows, columns))
        text = f"drift: from first to last the mask moved by {rows:+.2f} rows and {columns:+.2f} columns"
        bad = moved > MOVED or abs(dimmed) > DIMMED or alike < 0.5
        notes.append(
            f"{'warning: ' if bad else ''}{text} (correlation {alike:.2f}), the light changed by {dimmed:+.1%}"
            + ("; fix the mount and let the lamp warm up, then record again" if bad else "")
        )
    found = steps(values)
    if found is not None:
        (rows, columns), away = found
        text = f"steps: each position is the one before, moved by {rows:+.2f} rows and {columns:+.2f} columns"
        if away.max() > MOVED:
            text = f"warning: {text}, but from {int(away.argmax())} to {int(away.argmax()) + 1} it is {away.max():.2f} "
            text += "pixels off; a position is missing, out of order, or the mask slipped"
        notes.append(text)
    return notes
