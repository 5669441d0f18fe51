"""The camera's front door: a measurement and its mask, checked and brought to one scale; and its simulation.

Model: y = gain * sum_t mask_t * x_t with the scene x_t in [0, 1]. Everything past this door works in mask
units, y / gain.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import ARRAY_SUFFIXES, array_names, find_array, frames_first, read_arrays, write_npz
from bitlens.data.checks import check_measurement, closed_note, match_note
from bitlens.data.images import TIF_SUFFIXES, read_folder, read_image, read_tif
from bitlens.data.masks import check_mask, read_mask, scale_mask
from bitlens.data.video import check_video, read_video

if TYPE_CHECKING:
    import torch

__all__ = ["Capture", "Crop", "measure", "read_capture", "simulate", "write_capture"]

Crop = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


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
    crop: Crop | None = None,
    gain: float | int | None = None,
    brightness: float | int = 0.4,
    allow_saturated: bool = False,
) -> Capture:
    """Read a camera's measurement(s) and mask, check that they belong together, and bring them to one scale.

    Args:
        measurement_path: .mat (`meas`, (h, w) or (h, w, n)), .npz (`measurement`, (h, w) or (n, h, w)), .npy,
            .tif, .png with 8 or 16 bits, or a folder of those images. Raw camera values.
        mask_path: the calibrated mask, see `read_mask`. None: `mask` of the measurement's own file.
        key: name of the measurement in a .mat or .npz.
        axes, mask_axes: order of axes, "thw" (numbers of measurements or frames first) or "hwt". None: by
            name.
        crop: (top, left, height, width), cut from both; without it both must have one size.
        gain: raw value of one white frame through an open pixel. None: the file's `gain`, or fitted to the
            file's reference video `orig`, or estimated: gain = mean(y) / (mean(sum_t mask) * brightness).
        brightness: mean brightness of the scene in [0, 1] that the estimate assumes; 0.4 is typical of
            natural video.
        allow_saturated: accept measurements with more than 1 % of the pixels at the maximum.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no mask, sizes that differ, or a measurement or mask that cannot be one.

    Example:
        >>> capture = read_capture("4fan14_cacti.mat")  # doctest: +SKIP
        >>> capture.measurement.shape, capture.mask.shape  # doctest: +SKIP
        ((1, 256, 256), (14, 256, 256))
    """
    path = Path(measurement_path)
    if gain is not None and not (np.isfinite(gain) and gain > 0):
        raise ValueError(f"gain={gain}; wanted a positive number; pass the raw value of one white open frame, or None")
    if not 0 < brightness <= 1:
        raise ValueError(f"brightness={brightness}; wanted the mean brightness of the scene in (0, 1]; pass 0.4, say")
    raw = _read_raw(path, key, axes)  # n h w
    notes = check_measurement(raw, str(path), allow_saturated)
    beside = array_names(path) if path.suffix.lower() in (".mat", ".npz") else []
    mask = _find_mask(path, mask_path, mask_axes, raw, beside)
    reference = read_video(path, key="orig") if "orig" in beside else None
    raw, mask, reference = _same_size(raw, mask, reference, crop, path, mask_path or path)
    check_mask(mask, f"the mask for {path}" + (" after the crop" if crop else ""))

    raw = raw.astype(np.float32)
    if reference is not None:
        reference, fitted, remarks = _fit_reference(raw, mask, reference)
        notes += remarks
    else:
        fitted = None
    stated = _stated_gain(path) if "gain" in beside else fitted
    level, light = float(raw.mean(dtype=np.float64)), float(mask.sum(axis=0).mean(dtype=np.float64))
    if gain is not None:
        value, source, how = float(gain), "given", "given"
    elif stated is not None:
        value, source, how = stated, "file", "from the file"
    else:
        value, source = level / (light * brightness), "estimated"
        how = f"estimated for a scene of mean brightness {brightness:g}; pass gain=... where it is known"
    notes.append(f"exposure: mean(y)={level:.4g}, mean(sum mask)={light:.4g}, gain {value:.4g} {how}")
    exposure = level / value / light
    if exposure > 1:
        notes.append(f"exposure: gain {value:.4g} makes the scene {exposure:.2f} times white; the gain is too small")
    notes += [note for note in (closed_note(raw, mask), match_note(raw, mask)) if note]
    return Capture(raw / np.float32(value), mask, value, source, exposure, tuple(notes), reference)


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
        video = _cut(video, crop, "video")
    if video.shape[1:] != mask.shape[1:]:
        raise ValueError(
            f"the video is {_size(video)}, the mask {_size(mask)}; wanted one size; "
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


def _read_raw(path: Path, key: str | None, axes: str | None) -> np.ndarray:
    """Raw measurements (n, h, w) as the file stores them."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; wanted a measurement; check the path")
    if suffix in ARRAY_SUFFIXES:
        name, array, axes = find_array(path, ("measurement", "meas"), key, axes)
        if array.ndim not in (2, 3):
            raise ValueError(
                f"{path}: measurement '{name}' has {array.ndim} dimensions {array.shape}; "
                "wanted (h, w), or several of them; store it so, or choose another array with key=..."
            )
        return frames_first(array, name, path, axes)
    if path.is_dir():
        raw = read_folder(path)
    elif suffix in TIF_SUFFIXES:
        raw = read_tif(path)
    elif suffix == ".png":
        raw = read_image(path)[None]  # h w -> 1 h w
    else:
        raise ValueError(
            f"{path} has suffix '{suffix}'; wanted raw values in "
            f"{', '.join((*ARRAY_SUFFIXES, *TIF_SUFFIXES, '.png'))} or a folder of images; "
            "convert it without loss"
        )
    if raw.ndim != 3:
        raise ValueError(
            f"{path} is colour {raw.shape}; wanted the raw grey measurement (h, w); save it as one channel"
        )
    return raw


def _find_mask(
    path: Path, mask_path: str | os.PathLike[str] | None, axes: str | None, raw: np.ndarray, beside: list[str]
) -> np.ndarray:
    """The mask (t, h, w) from its own file, or from the measurement's."""
    if mask_path is not None:
        return read_mask(mask_path, axes=axes)
    if "mask" not in beside:
        raise ValueError(
            f"{path}: the measurement of size {_size(raw)} needs the camera's calibrated mask, and none came "
            "with it; pass the file that holds it (mask_path)"
        )
    name, array, axes = find_array(path, ("mask",), None, axes)
    return scale_mask(frames_first(array, name, path, axes), f"{path}: 'mask'")


def _same_size(
    raw: np.ndarray, mask: np.ndarray, reference: np.ndarray | None, crop: Crop | None, path: Path, mask_path
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Cut the one explicit crop from all three; sizes that differ without one are refused."""
    if crop is None and raw.shape[1:] != mask.shape[1:]:
        raise ValueError(
            f"the measurement {path} is {_size(raw)}, the mask {mask_path} is {_size(mask)}; "
            "wanted one size; pass the right mask, or crop=(top, left, height, width), which is cut from both"
        )
    if reference is not None and reference.shape[1:] != raw.shape[1:]:
        raise ValueError(
            f"{path}: the reference 'orig' is {_size(reference)}, the measurement {_size(raw)}; "
            "wanted one size; repair it"
        )
    if crop is None:
        return raw, mask, reference
    cut = None if reference is None else _cut(reference, crop, "reference")
    return _cut(raw, crop, "measurement"), _cut(mask, crop, "mask"), cut


def _cut(array: np.ndarray, crop: Crop, label: str) -> np.ndarray:
    """array[:, top:top+height, left:left+width], refusing a crop that is not inside."""
    if len(crop) != 4 or any(int(number) != number for number in crop):
        raise ValueError(f"crop={crop}; wanted four whole numbers (top, left, height, width); pass them")
    top, left, height, width = (int(number) for number in crop)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > array.shape[1] or left + width > array.shape[2]:
        raise ValueError(
            f"crop {tuple(crop)} does not lie inside the {label} of size {_size(array)}; "
            "wanted (top, left, height, width) inside it; change the crop"
        )
    return array[:, top : top + height, left : left + width]


def _fit_reference(
    raw: np.ndarray, mask: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray | None, float | None, list[str]]:
    """(reference, least-squares gain, notes) for the measurements that the reference covers and explains."""
    count = min(len(reference) // len(mask), len(raw))
    if count == 0:
        return (
            None,
            None,
            [f"reference: {len(reference)} frames are fewer than the mask's {len(mask)}; it is left out"],
        )
    reference = reference[: count * len(mask)]
    groups = reference.reshape(count, len(mask), *raw.shape[1:]).astype(np.float64)  # n t h w
    predicted = np.einsum("nthw,thw->nhw", groups, mask)
    gain = float((raw[:count] * predicted).sum() / np.square(predicted).sum())
    error = float(np.square(raw[:count] - gain * predicted).mean() / np.square(raw[:count]).mean())
    if error > 0.01:
        return (
            None,
            None,
            [f"reference: 'orig' does not explain the measurement (error {error:.0%}); it is left out"],
        )
    notes = [] if count == len(raw) else [f"reference: 'orig' covers the first {count} of {len(raw)} measurements"]
    return reference, gain, notes


def _stated_gain(path: Path) -> float:
    """The `gain` that the file states."""
    gain = read_arrays(path, ["gain"])["gain"]
    if gain.size != 1 or gain.dtype.kind not in "iuf" or not (np.isfinite(gain).all() and gain.min() > 0):
        raise ValueError(f"{path}: 'gain' is {gain.tolist()}; wanted one positive number; correct it or pass gain=...")
    return float(gain.reshape(()))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[2]}"
