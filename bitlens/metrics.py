"""PSNR and SSIM, one function per convention of the published tables, which differ by tenths of a dB.

    function            pixels                                    border       peak   averaged over
    psnr_sci, ssim_sci  grey floats, not rounded, not clipped     kept         1      the frames of a video
    psnr_y, ssim_y      RGB rounded to 8 bits, then luma Y        shave off    255    (one image)

SSIM is Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP
2004, with its Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = 0.01 and K2 = 0.03, at every place where the
window fits into the picture.
All arithmetic is float64. NaN in gives NaN out.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter
from torch import Tensor

__all__ = ["PSNR_CAP", "banding", "flicker", "psnr_rgb", "psnr_sci", "psnr_y", "ssim_sci", "ssim_y"]

PSNR_CAP = 100.0
"""dB. The most that a PSNR here can be, and what equal pictures get: infinity would swallow every average."""

WINDOW = 11
SIGMA = 1.5
FLAT, AROUND = 2.0, 7
"""A place is flat where no pixel of the `AROUND` x `AROUND` around it differs from its neighbours by more than `FLAT`
levels of 255."""


def psnr_sci(
    video: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
    reference: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
) -> float:
    """PSNR in dB as in video SCI: per frame, floats in [0, 1] neither rounded nor clipped; mean over frames.

        10 log10(1 / mean (video_t - reference_t)^2), at most `PSNR_CAP` per frame

    >>> round(psnr_sci(np.full((8, 16, 16), 0.5), np.full((8, 16, 16), 0.6)), 6)
    20.0

    Raises:
        TypeError: integers came, which would be taken for values in [0, 255].
        ValueError: the shapes differ, are not (t, h, w), or are empty.
    """
    return _mean_over_frames(lambda a, b: _psnr(a, b, peak=1.0), video, reference)


def ssim_sci(
    video: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
    reference: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
) -> float:
    """SSIM as in video SCI: per frame, floats in [0, 1] neither rounded nor clipped; mean over frames.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 255].
        ValueError: the shapes differ, are not (t, h, w), are empty, or a frame is smaller than 11 x 11.
    """
    return _mean_over_frames(lambda a, b: _ssim(a, b, peak=1.0), video, reference)


def flicker(
    video: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
    reference: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
) -> float:
    """How much more or less a video changes from frame to frame than its reference: rms of the difference of changes.

        rms over t, h, w of (x_t - x_(t-1)) - (r_t - r_(t-1))

    0: every pixel changes as the reference's does. An error that stays where it is does not flicker.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 1].
        ValueError: the shapes differ, are not (t, h, w), or there are fewer than two frames.
    """
    a, b = _float64(video, "video"), _float64(reference, "reference")
    if a.shape != b.shape or a.ndim != 3 or len(a) < 2:
        raise ValueError(
            f"the video has shape {a.shape} and the reference {b.shape}; wanted the same (t, h, w) for both, of two "
            "frames or more"
        )
    return float(np.sqrt(np.square(np.diff(a, axis=0) - np.diff(b, axis=0)).mean()))


def banding(
    video: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
    reference: Float[Tensor, "t h w"] | Float[np.ndarray, "t h w"],
) -> float:
    """How far flat places are from changing as the reference's do: in levels of 255 from pixel to pixel.

        mean over i of | g_i - r_i |,        g, r: sorted |differences of neighbours| of both, at the flat places of r

    This is the distance of Wasserstein between the two histograms of gradients. Bands have many gradients of 0 and some
    large ones where the reference has small ones all over; grain enlarges all of them. An error without edges, as of
    brightness, is none.

    Returns:
        0 for equal histograms; NaN where the reference has no flat place.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 1].
        ValueError: the shapes differ or are not (t, h, w).
    """
    a, b = _float64(video, "video"), _float64(reference, "reference")
    if a.shape != b.shape or a.ndim != 3 or min(a.shape[1:], default=0) < 2:
        raise ValueError(
            f"the video has shape {a.shape} and the reference {b.shape}; wanted the same (t, h, w) for both, of two "
            "pixels or more each way"
        )
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for one, other in zip(a, b, strict=True):
        steps = (
            np.pad(np.abs(np.diff(other, axis=0)), ((0, 1), (0, 0))),
            np.pad(np.abs(np.diff(other, axis=1)), ((0, 0), (0, 1))),
        )
        flat = maximum_filter(np.maximum(*steps), AROUND, mode="nearest") * 255 <= FLAT
        for axis, of_reference in enumerate(steps):
            of_video = np.abs(np.diff(one, axis=axis, append=one.take([-1], axis)))
            found.append((of_video[flat], of_reference[flat]))
    mine, true = (np.sort(np.concatenate(parts)) for parts in zip(*found, strict=True))
    return float(255 * np.abs(mine - true).mean()) if mine.size else float("nan")


def psnr_y(
    image: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
    reference: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
    shave: int,
) -> float:
    """PSNR in dB as in super-resolution: RGB in [0, 1] clipped and rounded to 8 bits, luma Y, border shaved.

        Y = 16 + 65.481 R + 128.553 G + 24.966 B        [BT.601], 16 to 235, not rounded again

    The peak is 255 all the same [test scripts of BasicSR, SwinIR and 2DQuant].

    Differs: equal pictures get `PSNR_CAP`, where those scripts return infinity.

    Args:
        image, reference: RGB (3, h, w) in [0, 1].
        shave: pixels left out along every side; the tables use the up-scaling factor.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 255].
        ValueError: the shapes differ or are not (3, h, w), or the border leaves no pixel.
    """
    return _psnr(*_shaved_luma(image, reference, shave), peak=255.0)


def psnr_rgb(
    image: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
    reference: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
) -> float:
    """PSNR in dB over all three colours of images that are clipped and rounded to 8 bits, as in colour denoising.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 255].
        ValueError: the shapes differ or are not (3, h, w).
    """
    a, b = (np.rint(np.clip(each, 0, 1) * 255) for each in _alike(image, reference))
    return _psnr(a, b, peak=255.0)


def ssim_y(
    image: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
    reference: Float[Tensor, "3 h w"] | Float[np.ndarray, "3 h w"],
    shave: int,
) -> float:
    """SSIM as in super-resolution: on the same rounded and shaved luma as `psnr_y`, which see.

    Raises:
        TypeError: integers came, which would be taken for values in [0, 255].
        ValueError: as `psnr_y`, or less than 11 x 11 pixels are left inside the border.
    """
    return _ssim(*_shaved_luma(image, reference, shave), peak=255.0)


def _psnr(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """Peak signal-to-noise ratio of two arrays in dB, at most `PSNR_CAP`."""
    error = np.square((a - b) / peak).mean()
    return float(-10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP / 10))))


def _ssim(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """Structural similarity of two pictures (h, w), mean over the places where the window fits."""
    if min(a.shape) < WINDOW:
        raise ValueError(
            f"SSIM of {a.shape[0]} x {a.shape[1]} pixels (inside the border, if one is shaved); wanted "
            f"at least {WINDOW} x {WINDOW}, the size of its window: use a larger picture, or PSNR alone"
        )
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def _blur(picture: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h-10 w-10"]:
    """Weighted mean under the Gaussian window, one direction after the other, where it fits."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weight = np.exp(-(offset**2) / (2 * SIGMA**2))
    weight /= weight.sum()
    rows = sliding_window_view(picture, WINDOW, axis=0) @ weight  # h-10 w
    return sliding_window_view(rows, WINDOW, axis=1) @ weight  # h-10 w-10


def _mean_over_frames(
    measure: Callable[[np.ndarray, np.ndarray], float],
    video: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
) -> float:
    """The mean of a two-picture measure over the frames of two videos (t, h, w)."""
    a, b = _float64(video, "video"), _float64(reference, "reference")
    if a.shape != b.shape or a.ndim != 3 or a.size == 0:
        raise ValueError(
            f"the video has shape {a.shape} and the reference {b.shape}; wanted the same (t, h, w) for both, "
            "not empty: choose one batch item and channel, for example video[0, 0]"
        )
    return float(np.mean([measure(one, other) for one, other in zip(a, b, strict=True)]))


def _shaved_luma(
    image: Tensor | np.ndarray, reference: Tensor | np.ndarray, shave: int
) -> tuple[np.ndarray, np.ndarray]:
    """Y (h - 2 shave, w - 2 shave) of both pictures, on the scale 16 to 235."""
    a, b = _alike(image, reference)
    height, width = a.shape[1:]
    if shave < 0 or 2 * shave >= min(height, width):
        raise ValueError(
            f"a border of {shave} pixels is to be shaved off {height} x {width}; "
            "wanted at least 0 and less than half of either side: the tables use the up-scaling factor"
        )
    inside = np.s_[shave : height - shave, shave : width - shave]
    return _luma(a)[inside], _luma(b)[inside]


def _alike(image: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both images (3, h, w) in float64."""
    a, b = _float64(image, "image"), _float64(reference, "reference")
    if a.shape != b.shape or a.ndim != 3 or len(a) != 3:
        raise ValueError(
            f"the image has shape {a.shape} and the reference {b.shape}; wanted the same (3, h, w) for both: "
            "choose one batch item, and repeat a grey picture three times"
        )
    return a, b


def _luma(image: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w"]:
    """Y of BT.601, 16 to 235, of RGB in [0, 1] that is clipped and rounded to 8 bits first."""
    red, green, blue = np.rint(np.clip(image, 0, 1) * 255) / 255
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def _float64(picture: Tensor | np.ndarray, name: str) -> np.ndarray:
    """A float tensor or array as a float64 array."""
    array = picture.detach().cpu() if isinstance(picture, Tensor) else np.asarray(picture)
    if isinstance(array, Tensor) and array.is_floating_point():
        return array.double().numpy()
    if isinstance(array, np.ndarray) and array.dtype.kind == "f":
        return array.astype(np.float64)
    raise TypeError(f"the {name} has dtype {array.dtype}; wanted floats in [0, 1]: divide 8-bit pictures by 255 first")
