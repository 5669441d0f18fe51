"""The camera's front door: measurements and their mask as arrays, checked and brought to one scale; its simulation.

`recording.py` holds the checks, and what is read one measurement at a time.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import write_npz
from bitlens.data.masks import check_mask, read_mask
from bitlens.data.recording import Crop, cut, open_recording, size_of
from bitlens.data.video import check_video, read_video

if TYPE_CHECKING:
    import torch

__all__ = ["Capture", "Crop", "measure", "read_capture", "simulate", "write_capture"]


@dataclass(frozen=True, eq=False)
class Capture:
    """What a camera delivers, ready for reconstruction."""

    measurement: Float32[np.ndarray, "n h w"]
    """The plain sum over time in mask units: y / gain."""
    mask: Float32[np.ndarray, "t h w"]
    """Calibrated masks in [0, 1]."""
    gain: float
    """Raw value of one white frame through an open pixel."""
    gain_source: str
    """"file" (stated by the file, or fitted to the reference it holds), "given" or "estimated"."""
    exposure: float
    """mean(measurement) / mean(sum_t mask): the mean brightness of the scene that this gain implies."""
    notes: tuple[str, ...] = ()
    """What was decided or looks odd, for people; what is probably wrong starts with 'warning:'."""
    reference: Float32[np.ndarray, "frames h w"] | None = None
    """The true video in [0, 1] where it is known (simulations)."""


def read_capture(
    measurement_path: str | os.PathLike[str],
    mask_path: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    axes: str | None = None,
    mask_axes: str | None = None,
    mask_key: str | None = None,
    crop: Crop | None = None,
    gain: float | int | None = None,
    brightness: float | int = 0.4,
    allow_saturated: bool = False,
    dark: str | os.PathLike[str] | None = None,
    flat: str | os.PathLike[str] | None = None,
    bayer: str | None = None,
) -> Capture:
    """Read a camera's measurement(s) and mask, check that they belong together, and bring them to one scale.

    Args:
        measurement_path: .mat (`meas`, (h, w) or (h, w, n)), .npz (`measurement`, (h, w) or (n, h, w)), .npy,
            .tif, .png with 8 or 16 bits, or a folder of those images. Raw camera values.
        mask_path: the calibrated mask, see `read_mask`. None: `mask` of the measurement's own file.
        key, mask_key: names of the measurement and of the mask in a .mat or .npz.
        axes, mask_axes: order of axes, "thw" (numbers of measurements or frames first) or "hwt". None: by
            name.
        crop: (top, left, height, width), cut from both; without it both must have one size.
        gain: raw value of one white frame through an open pixel. None: the file's `gain`, or fitted to the
            file's reference video `orig`, or estimated: gain = mean(y) / (mean(sum_t mask) * brightness).
        brightness: mean brightness of the scene in [0, 1] that the estimate assumes; 0.4 is typical of
            natural video.
        allow_saturated: accept measurements in which more than 1 % of the pixels clip (`top_pile`).
        dark: pictures that the camera took in the dark, subtracted; may leave values below 0.
        flat: pictures of an even white surface without a mask, whose shape is divided out; less the dark ones.
        bayer: the sensor's colour mosaic, "RGGB" and so on (`bayer.PATTERNS`); what is checked differs, the capture is
            the mosaic as it is: see `bayer.split` and `bayer.demosaic`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no mask, sizes that differ, or a measurement or mask that cannot be one.

    Example:
        >>> capture = read_capture("4fan14_cacti.mat")  # doctest: +SKIP
        >>> capture.measurement.shape, capture.mask.shape  # doctest: +SKIP
        ((1, 256, 256), (14, 256, 256))
    """
    opened = open_recording(
        measurement_path, mask_path, key=key, axes=axes, mask_axes=mask_axes, mask_key=mask_key, crop=crop, gain=gain,
        brightness=brightness, allow_saturated=allow_saturated, dark=dark, flat=flat, bayer=bayer,
    )  # fmt: skip
    reference = None if opened.reference is None else opened.reference.read()
    return Capture(
        opened.measurement.read(),
        opened.mask,
        opened.gain,
        opened.gain_source,
        opened.exposure,
        opened.notes,
        reference,
    )


def write_capture(path: str | os.PathLike[str], capture: Capture) -> None:
    """Write a capture to .npz: `measurement` in mask units, `mask`, `gain` 1, `orig` where known."""
    reference = {} if capture.reference is None else {"orig": capture.reference}
    write_npz(path, measurement=capture.measurement, mask=capture.mask, gain=1.0, axes="thw", **reference)


def measure(
    video: "np.ndarray | torch.Tensor | str | os.PathLike[str]",
    mask: "np.ndarray | torch.Tensor | str | os.PathLike[str]",
    noise: float | int = 0.0,
    generator: "torch.Generator | int | None" = None,
    crop: Crop | None = None,
) -> Float32[np.ndarray, "n h w"]:
    """Simulate the camera: y_n = sum_t mask_t * x_{nT + t} + noise; leftover frames are dropped.

    `simulate` does the same and also returns notes (how many frames were dropped) and the reference.

    Example:
        >>> from bitlens.data.masks import random_mask
        >>> measure(np.full((16, 4, 4), 0.5, np.float32), random_mask(8, 4, 4, generator=0)).shape
        (2, 4, 4)
    """
    return simulate(video, mask, noise, generator, crop).measurement


def simulate(
    video: "np.ndarray | torch.Tensor | str | os.PathLike[str]",
    mask: "np.ndarray | torch.Tensor | str | os.PathLike[str]",
    noise: float | int = 0.0,
    generator: "torch.Generator | int | None" = None,
    crop: Crop | None = None,
) -> Capture:
    """Simulate the camera and return the whole capture, with the frames that were measured as `reference`.

    Args:
        video: (frames, h, w) in [0, 1], or the path of one; groups of T frames make one measurement each.
        mask: (T, h, w), or the path of one.
        noise: standard deviation of Gaussian noise on the measurement, in mask units (a white open frame
            counts 1).
        generator: torch.Generator or seed for the noise; required where noise > 0.
        crop: (top, left, height, width) cut from the video; it must have the mask's size.

    Raises:
        TypeError: the video is no float array.
        ValueError: sizes that differ, fewer frames than the mask has, noise without a generator.
    """
    video = read_video(video) if isinstance(video, (str, os.PathLike)) else np.asarray(video)
    mask = read_mask(mask) if isinstance(mask, (str, os.PathLike)) else np.asarray(mask)
    check_video(video)
    check_mask(mask)
    if video.ndim != 3:
        raise ValueError(f"video has shape {video.shape}; wanted grey (t, h, w); read it with grey=True")
    if crop is not None:
        video = cut(video, crop, "video")
    if video.shape[1:] != mask.shape[1:]:
        raise ValueError(
            f"the video is {size_of(video)}, the mask {size_of(mask)}; wanted one size; "
            f"cut the video with crop=(top, left, {mask.shape[1]}, {mask.shape[2]})"
        )
    frames = len(mask)
    count, left = divmod(len(video), frames)
    if count == 0:
        raise ValueError(
            f"the video has {len(video)} frame(s), the mask {frames}; wanted at least {frames} frames; "
            "give a longer video or a mask with fewer frames"
        )
    if noise < 0 or (noise > 0 and generator is None):
        raise ValueError(f"noise={noise}, generator={generator}; wanted noise >= 0 with a generator; pass generator=0")
    reference = video[: count * frames].astype(np.float32)
    groups = reference.reshape(count, frames, *reference.shape[1:])  # n t h w
    measurement = np.einsum("nthw,thw->nhw", groups, mask.astype(np.float32))  # n h w
    if noise > 0:
        import torch

        source = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
        measurement = measurement + np.float32(noise) * torch.randn(measurement.shape, generator=source).numpy()
    dropped = f"the last {left} of {len(video)} frames were dropped: {frames} frames make one measurement"
    notes = (dropped,) if left else ()
    exposure = float(measurement.mean(dtype=np.float64) / mask.sum(axis=0).mean(dtype=np.float64))
    return Capture(measurement.astype(np.float32), mask.astype(np.float32), 1.0, "given", exposure, notes, reference)
