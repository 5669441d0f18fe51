"""What a measurement must look like before a network sees it, and whether a mask can have made it."""

from collections.abc import Callable

import numpy as np

__all__ = ["check_measurement", "closed_note", "mask_match", "match_note"]

SATURATED_SHARE = 0.01
"""A measurement with more of its pixels at the maximum is refused: clipped light breaks y = sum mask x."""

MATCH = 0.1
"""Least correlation of the fine structures of measurement and mask. Measured: 0.76 to 0.96 for the six
scenes and two real captures (14 frames, 256x256); at most 0.02 with another, flipped or transposed mask."""


def check_measurement(raw: np.ndarray, label: str, allow_saturated: bool = False) -> list[str]:
    """Check raw measurements (n, h, w); return notes on what was let through.

    Raises:
        ValueError: not real numbers, empty, NaN or infinite, negative beyond noise, constant, or saturated.
    """
    if raw.dtype.kind not in "iuf":
        raise ValueError(
            f"{label}: the measurement has dtype {raw.dtype}; wanted real numbers (integers or floats); "
            "export the camera's raw values"
        )
    if raw.size == 0:
        raise ValueError(f"{label}: the measurement is empty {raw.shape}; wanted (h, w) pixels; check the file")
    if not np.isfinite(raw).all():
        count = int((~np.isfinite(raw)).sum())
        raise ValueError(
            f"{label}: {count} pixel(s) of the measurement are NaN or infinite; wanted finite numbers; "
            "repair the dead pixels or crop them away"
        )
    for index, one in enumerate(raw):
        if one.max() == one.min():
            what = "all zero" if one.max() == 0 else f"{one.max():g} everywhere"
            raise ValueError(f"{label}: measurement {index} is {what}; wanted a picture; check shutter and file")
    return _negative_notes(raw, label) + _saturation_notes(raw, label, allow_saturated)


def closed_note(raw: np.ndarray, mask: np.ndarray) -> str | None:
    """A note where pixels that no frame of the mask opens hold more than half the light of the others."""
    closed = mask.max(axis=0) == 0
    if not closed.any() or closed.all():
        return None
    ratio = float(raw[:, closed].mean() / raw[:, ~closed].mean())
    if ratio < 0.5:
        return None
    return (
        f"warning: the {int(closed.sum())} pixels that the mask never opens hold {ratio:.0%} of the light of "
        "the others; the mask is probably another camera's, or a dark level was not subtracted"
    )


def match_note(raw: np.ndarray, mask: np.ndarray) -> str | None:
    """A note where the measurement's fine structure does not follow the mask's, naming a turn that would."""
    picture, pattern = _fine_structure(raw.mean(axis=0)), _fine_structure(mask.sum(axis=0))
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


def mask_match(raw: np.ndarray, mask: np.ndarray) -> float:
    """Correlation in [-1, 1] of the fine structure of mean_n raw (n, h, w) and sum_t mask (t, h, w)."""
    return _correlation(_fine_structure(raw.mean(axis=0)), _fine_structure(mask.sum(axis=0)))


def _negative_notes(raw: np.ndarray, label: str) -> list[str]:
    """Dark subtraction leaves a few small negative values: kept, with a note; more than that is refused."""
    low, high = float(raw.min()), float(raw.max())
    if low >= 0:
        return []
    share = float((raw < 0).mean())
    if low < -0.05 * high or share > 0.05:
        raise ValueError(
            f"{label}: the measurement goes down to {low:g} ({share:.1%} of the pixels are negative); "
            "wanted light, >= 0 but for noise; check the dark level that was subtracted, and the data type"
        )
    return [
        f"negative: {share:.2%} of the pixels are below 0 (lowest {low:g}), as after subtracting a dark level; kept"
    ]


def _saturation_notes(raw: np.ndarray, label: str, allow_saturated: bool) -> list[str]:
    top = raw.max()
    counts = (raw == top).reshape(len(raw), -1).sum(axis=1)
    worst = int(counts.argmax())
    share = float(counts[worst] / raw[0].size)
    if share <= SATURATED_SHARE or counts[worst] < 2:
        return []
    text = f"{share:.1%} of the pixels of measurement {worst} sit at the maximum {top:g}"
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
