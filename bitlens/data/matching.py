"""Whether a mask can have made a measurement, told by physics: the light of its pixels, and its fine structure."""

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np

__all__ = [
    "closed_note",
    "displacement",
    "gain_notes",
    "match_note",
    "mosaic_note",
    "order_note",
    "plate_note",
    "steps",
]

MATCH = 0.1
"""Least correlation of the fine structures of measurement and mask. Measured: 0.76 to 0.96 for the six
scenes and two real captures (14 frames, 256x256); at most 0.02 with another, flipped or transposed mask."""


LIT, SOME = 0.1, 16
"""Share of the others' light that closed pixels may hold, where there are so many of them; few are no average."""

MOSAIC, COLOURFUL = 8.0, 0.05
"""How much more the sites of a 2x2 pattern differ than by chance (F statistic), and by what share of their mean."""


ALIKE = 0.35
"""The two green sites, on a diagonal, differ by at most this share of what the most different two do."""


ORDERED, DISORDERED = 0.82, 0.55
"""Frames are out of order where time and change correlate at least so much in another order, and at most so much as
they are. Measured, 8 frames: 0.84 to 0.99 for five of six scenes, and at most 0.47 once they are rolled, shuffled or
two are swapped; scenes at rest, or with no steady motion, reach at most 0.78 in any order."""

MOVES_ON = 0.3
"""Least correlation of successive frames of a mask that is one moving pattern; independent patterns have about 0."""

UNSTEADY = 0.5
"""Pixels by which a step of such a mask may differ from the usual one."""


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
    """A note where the pixels of the mean measurement (h, w) that no frame opens have light.

    Of independent frames one missing in eight leaves them an eighth of the light of the others.
    """
    closed = mask.max(axis=0) == 0
    if not closed.any() or closed.all():
        return None
    ratio = float(picture[closed].mean() / picture[~closed].mean())
    if ratio < (LIT if closed.sum() >= SOME else 0.5):
        return None
    why = (
        "the mask is probably another camera's, or a dark level was not subtracted"
        if ratio > 0.5
        else "frames of the mask are missing, or closed cells let light through (calibrate the mask), or a dark level "
        "was not subtracted"
    )
    return (
        f"warning: the {int(closed.sum())} pixels that the mask never opens hold {ratio:.0%} of the light of "
        f"the others; {why}"
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


def order_note(measurements: np.ndarray, mask: np.ndarray) -> str | None:
    """A note where the frames of a mask (t, h, w) are out of order, by what the measurements (n, h, w) show.

    Masks in another order give the frames of the scene in another order, and explain the measurements as well. But a
    scene moves on: the further apart two frames are, the more they differ. So the frames are estimated in blocks of 8x8
    pixels by least squares, and the mean square differences d_ij are correlated with |i - j|: `given`. Where another
    order (of the graph's second eigenvector) makes that correlation high and the given one does not, it is named.

    Only the upper left 512x512 pixels are looked at. Not told: a scene played backwards, frames that are missing,
    scenes that hardly move or move in circles, fewer than 8 frames, and fewer than 144 blocks.
    """
    frames, size = len(mask), 8
    rows, columns = (min(length, 512) // size for length in mask.shape[1:])
    if not 8 <= frames <= 32 or rows * columns < 144:
        return None
    shape = rows, size, columns, size
    part = np.s_[..., : rows * size, : columns * size]
    codes = mask[part].reshape(frames, *shape).transpose(1, 3, 2, 4, 0).reshape(-1, size * size, frames).astype(float)
    squares = codes.transpose(0, 2, 1) @ codes  # blocks t t
    ridge = 0.02 * np.trace(squares, axis1=1, axis2=2)[:, None, None] / frames
    squares = squares + (ridge + 1e-12 * squares.max()) * np.eye(frames)
    different = np.zeros((frames, frames))
    for one in measurements:
        seen = one[part].reshape(shape).transpose(0, 2, 1, 3).reshape(-1, size * size, 1).astype(float)
        mean = seen.sum(axis=1, keepdims=True) / np.maximum(codes.sum(axis=(1, 2))[:, None, None], 1e-12)
        rest = codes.transpose(0, 2, 1) @ (seen - mean * codes.sum(axis=2, keepdims=True))
        scene = np.linalg.solve(squares, rest)[..., 0]  # blocks t, about the mean
        different += ((scene[:, :, None] - scene[:, None]) ** 2).mean(axis=0)

    pairs = np.triu_indices(frames, 1)

    def agrees(place: np.ndarray) -> float:
        return float(np.corrcoef(different[pairs], np.abs(np.subtract.outer(place, place))[pairs])[0, 1])

    alike = np.exp(-different / max(float(np.median(different[pairs])), 1e-30))
    _, vectors = np.linalg.eigh(np.diag(alike.sum(axis=1)) - alike)
    order = np.argsort(vectors[:, 1])
    given, best = agrees(np.arange(frames)), agrees(np.argsort(order))
    if best < ORDERED or given > DISORDERED:
        return None
    order = order if order[0] < order[-1] else order[::-1]
    return (
        "warning: the frames of the mask are out of order: as they are, the scene jumps to and fro; it moves steadily "
        f"in the order {' '.join(map(str, order))} or its reverse (counted from 0; correlation of time and change "
        f"{best:.2f}, now {given:.2f})"
    )


def plate_note(mask: np.ndarray) -> str | None:
    """A note where a mask (t, h, w) is one pattern that is moved on, but not always by the same step."""
    found = steps(mask[:, :512, :512])
    if found is None or found[1].max() <= UNSTEADY:
        return None
    (rows, columns), away = found
    worst = int(away.argmax())
    return (
        f"warning: the mask is one pattern that moves by {rows:+.2f} rows and {columns:+.2f} columns a frame, but from "
        f"frame {worst} to {worst + 1} it is {away[worst]:.1f} pixels off: frames are missing or out of order"
    )


def steps(patterns: np.ndarray) -> tuple[tuple[float, float], np.ndarray] | None:
    """(usual step in rows and columns, distance of each of the t - 1 steps from it); None: no pattern that moves on."""
    if len(patterns) < 3 or min(patterns.shape[1:]) < 16:
        return None
    found = []
    for one, following in pairwise(patterns):
        rows, columns, alike = displacement(one, following)
        if alike < MOVES_ON:
            return None
        found.append((rows, columns))
    usual = np.median(found, axis=0)
    return (float(usual[0]), float(usual[1])), np.hypot(*(np.array(found) - usual).T)


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
