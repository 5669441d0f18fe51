"""Whether a mask can have made a measurement, told by physics: the light of its pixels, and its fine structure."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

__all__ = ["closed_note", "displacement", "gain_notes", "match_note", "mosaic_note"]

MATCH = 0.1
"""Least correlation of the fine structures of measurement and mask. Measured: 0.76 to 0.96 for the six
scenes and two real captures (14 frames, 256x256); at most 0.02 with another, flipped or transposed mask."""


MOSAIC, COLOURFUL = 8.0, 0.05
"""How much more the sites of a 2x2 pattern differ than by chance (F statistic), and by what share of their mean."""


ALIKE = 0.35
"""The two green sites, on a diagonal, differ by at most this share of what the most different two do."""


def gain_notes(picture: np.ndarray, light: np.ndarray, gain: float | int) -> list[str]:
    """Notes where a gain makes the mean measurement (h, w) far darker or brighter than the light (h, w) allows.

    No pixel can be brighter than white in all frames, gain * light; in a lit scene some come near it.
    """
    open_ = light > 0.5 * light.mean()
    share = picture[open_] / (gain * light[open_])  # of white
    exposure = float(picture.mean() / gain / light.mean())
    if exposure > 1.001:
        return [f"exposure: gain {gain:.4g} makes the scene {exposure:.2f} times white; the gain is too small"]
    if (beyond := float((share > 1.25).mean())) > 0.05:
        return [
            f"exposure: gain {gain:.4g} makes {beyond:.0%} of the pixels brighter than white in all frames; the gain "
            "is too small, or a dark level was not subtracted"
        ]
    if (brightest := float(np.quantile(share, 0.999))) < 0.1:
        return [f"exposure: gain {gain:.4g} makes the brightest pixels {brightest:.1%} of white; the gain is too large"]
    return []


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
    if found <= -3 * MATCH:
        return (
            f"warning: the mask is inverted: where it says open, the measurement is dark (their fine structure "
            f"correlates {found:.2f}; a matching pair: 0.7 or more); use 1 - mask"
        )
    text = (
        f"warning: measurement and mask do not belong together: their fine structure correlates {found:.2f} "
        f"(a matching pair: 0.7 or more)"
    )
    better = _where_it_fits(picture, pattern)
    return f"{text}; {better}" if better else f"{text}; check that the mask is this camera's and was not resized"


def mosaic_note(picture: np.ndarray, light: np.ndarray) -> str | None:
    """A note where the four sites of a 2x2 pattern differ for the light (h, w) they get, as behind a colour mosaic.

    In blocks of 16x16 pixels the variance between the means of the sites is compared with that within them (F).
    """
    size = 16
    rows, columns = (size * (length // size) for length in picture.shape)
    if min(rows, columns) < 2 * size or float(light.min()) == float(light.max()) == 0:
        return None
    bright = (picture / np.maximum(light, 0.5 * light.mean()))[:rows, :columns]
    blocks = bright.reshape(rows // size, size // 2, 2, columns // size, size // 2, 2)
    sites = blocks.transpose(0, 3, 2, 5, 1, 4).reshape(-1, 4, size * size // 4)  # blocks, sites, pixels
    means = sites.mean(axis=2)
    between = means.var(axis=1, ddof=1) * sites.shape[2]
    lit = means.mean(axis=1) > 0.1 * means.mean()
    ratio = float(between[lit].sum() / max(float(sites[lit].var(axis=2, ddof=1).mean(axis=1).sum()), 1e-30))
    spread = float(np.mean(means[lit].std(axis=1) / means[lit].mean(axis=1)))
    pairs = {pair: float(np.abs(means[:, pair[0]] - means[:, pair[1]]).sum()) for pair in combinations(range(4), 2)}
    falling, rising = pairs[0, 3], pairs[1, 2]
    if ratio < MOSAIC or spread < COLOURFUL or min(falling, rising) > ALIKE * max(pairs.values()):
        return None  # where only rows or only columns alternate, it is texture, or interlacing
    guess = "GRBG or GBRG" if falling < rising else "RGGB or BGGR"  # the two greens are alike
    return (
        f"warning: neighbouring pixels differ like a colour mosaic (by {spread:.0%}, alternating in rows and columns) "
        f"and are read as grey; behind a Bayer filter pass its pattern with bayer=... ({guess}, by the looks of it)"
    )


def displacement(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """By how many rows and columns, to fractions, a pattern (h, w) is moved in the second picture; how alike they are.

    The peak of the circular correlation of their fine structures, refined by a parabola along each axis; the likeness
    is the peak's value, 1 for the same picture.
    """
    one, other = (_fine_structure(picture) for picture in (first, second))
    one, other = one - one.mean(), other - other.mean()
    products = np.fft.irfft2(np.fft.rfft2(other) * np.conj(np.fft.rfft2(one)), s=one.shape)
    products /= np.linalg.norm(one) * np.linalg.norm(other) + 1e-30
    peak = [int(at) for at in np.unravel_index(int(products.argmax()), products.shape)]
    moved = []
    for axis, size in enumerate(products.shape):
        line = np.take(products, peak[1 - axis], axis=1 - axis)
        before, top, after = (float(line[(peak[axis] + step) % size]) for step in (-1, 0, 1))
        bend = before - 2 * top + after
        fraction = 0.5 * (before - after) / bend if bend < 0 else 0.0
        moved.append((peak[axis] + size // 2) % size - size // 2 + fraction)
    return moved[0], moved[1], float(products.max())


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
