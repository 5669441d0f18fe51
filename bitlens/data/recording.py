"""A camera's recording, opened: measurements of any number with their mask, checked, and read one after another.

Model: y = gain * sum_t mask_t * x_t with the scene x_t in [0, 1]. Everything past this door works in mask
units, y / gain.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import NAMED_SUFFIXES, array_names, find_array, frames_first, read_arrays
from bitlens.data.bayer import pattern_at, split
from bitlens.data.checks import LARGEST, check_measurement, depth_note, hot_note, lines_note
from bitlens.data.correction import open_correction
from bitlens.data.levels import to_float
from bitlens.data.masks import check_mask, read_mask, scale_mask
from bitlens.data.matching import closed_note, gain_notes, match_note, mosaic_note, order_note, plate_note
from bitlens.data.stacks import Stack, array_stack, open_raw, stored_stack
from bitlens.data.video import read_video

__all__ = ["Crop", "Recording", "cut", "open_recording", "size_of"]

Crop = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


@dataclass(frozen=True, eq=False)
class Recording:
    """What a camera delivers, ready for reconstruction, one measurement at a time."""

    measurement: Stack
    """n pictures (h, w), float32: the plain sum over time in mask units, y / gain."""
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
    reference: Stack | None = None
    """Frames (h, w) of the true video in [0, 1] where it is known (simulations), whole groups of t."""


def open_recording(
    measurement_path: str | os.PathLike[str] | np.ndarray,
    mask_path: str | os.PathLike[str] | np.ndarray | None = None,
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
) -> Recording:
    """As `read_capture`, which see, without holding the measurements in memory where their file allows it.

    They are read twice: once to be checked here, and again by whoever iterates. .npy, .npz, .tif and folders of images
    are read picture by picture, .zarr chunk by chunk (`stored_stack`, `tif_stack`); the arrays of other files are held
    as they are stored. Arrays may come in the place of files: measurements (h, w) or (n, h, w), the mask (t, h, w).
    """
    if gain is not None and not (np.isfinite(gain) and gain > 0):
        raise ValueError(f"gain={gain}; wanted a positive number; pass the raw value of one white open frame, or None")
    if not 0 < brightness <= 1:
        raise ValueError(f"brightness={brightness}; wanted the mean brightness of the scene in (0, 1]; pass 0.4, say")
    if isinstance(measurement_path, np.ndarray):
        path, raw = Path("the measurement"), array_stack(_stacked(measurement_path))
    else:
        path = Path(measurement_path)
        raw = open_raw(path, key, axes)  # n h w
    beside = array_names(path) if path.suffix.lower() in NAMED_SUFFIXES else []
    mask = _find_mask(path, mask_path, mask_key, mask_axes, raw, beside)
    reference = _open_reference(path) if "orig" in beside else None
    _check_sizes(raw, mask, reference, crop, path, path if mask_path is None else _named(mask_path))
    correction = None if dark is None and flat is None else open_correction(dark, flat, raw)
    if crop is not None:
        raw, mask = cut_stack(raw, crop, "measurement"), cut(mask, crop, "mask")
        reference = None if reference is None else cut_stack(reference, crop, "reference")
        correction = None if correction is None else correction.cut(crop)
    sums = mask.sum(axis=0, dtype=np.float64)  # h w
    correct = None if correction is None else correction.apply
    notes, seen = check_measurement(raw, str(path), allow_saturated, sums, correct)
    picture = seen.mean  # h w, of all measurements
    check_mask(mask, f"the mask for {path}" + (" after the crop" if crop else ""))

    notes += [note for note in (depth_note(seen.bits, raw.dtype),) if note]
    if correction is not None:
        notes = [*correction.notes, *notes]
        raw = raw.map(correction.apply)
    fitted = None
    if reference is not None:
        reference, fitted, remarks = _fit_reference(raw, mask, reference)
        notes += remarks
    stated = _stated_gain(path) if "gain" in beside else fitted
    level, light = float(picture.mean()), float(sums.mean())
    if gain is not None:
        value, source, how = float(gain), "given", "given"
    elif stated is not None:
        value, source, how = stated, "file", "from the file"
    else:
        value, source = level / (light * brightness), "estimated"
        how = f"estimated for a scene of mean brightness {brightness:g}; pass gain=... where it is known"
    if not 1 / LARGEST < abs(value) < LARGEST:
        raise ValueError(
            f"{path}: a gain of {value:.4g} came ({how}); wanted one that float32 can hold, from {1 / LARGEST:g} to "
            f"{LARGEST:g}; check the byte order and the unit of measurement and mask"
        )
    notes.append(f"exposure: mean(y)={level:.4g}, mean(sum mask)={light:.4g}, gain {value:.4g} {how}")
    exposure = level / value / light
    notes += gain_notes(picture, sums, value)
    notes += _odd_notes(raw, picture, mask, bayer and pattern_at(bayer, *(crop or (0, 0))[:2]))
    scaled = raw.map(lambda one: one.astype(np.float32) / np.float32(value))
    return Recording(scaled, mask, value, source, exposure, tuple(notes), reference)


def _odd_notes(raw: Stack, picture: np.ndarray, mask: np.ndarray, bayer: str | None) -> list[str]:
    """What looks odd about measurements, their mean (h, w) and mask (t, h, w); of a mosaic, each colour for itself."""
    few = raw.first(min(4, len(raw))).map(lambda one: one[:512, :512]).read()
    if bayer is None:
        sums = mask.sum(axis=0, dtype=np.float64)
        found = [closed_note(picture, mask), match_note(picture, mask), mosaic_note(picture, sums)]
        if found[1] is None:  # the same mask
            found += [plate_note(mask) or order_note(few, mask)]
        return [note for note in (*found, hot_note(picture, sums), lines_note(picture, sums)) if note]
    notes = []
    for letter, part, part_mask in zip(bayer, split(picture), split(mask), strict=True):
        sums = part_mask.sum(axis=0, dtype=np.float64)
        found = [
            closed_note(part, part_mask),
            match_note(part, part_mask),
            hot_note(part, sums),
            lines_note(part, sums),
        ]
        notes += [f"{note} (among the {letter} pixels, counted alone)" for note in found if note]
    return notes


def cut(array: np.ndarray, crop: Crop, label: str) -> np.ndarray:
    """array[..., top:top+height, left:left+width], refusing a crop that is not inside."""
    if len(crop) != 4 or any(int(number) != number for number in crop):
        raise ValueError(f"crop={crop}; wanted four whole numbers (top, left, height, width); pass them")
    top, left, height, width = (int(number) for number in crop)
    if min(top, left) < 0 or min(height, width) < 1 or top + height > array.shape[-2] or left + width > array.shape[-1]:
        raise ValueError(
            f"crop {tuple(crop)} does not lie inside the {label} of size {size_of(array)}; "
            "wanted (top, left, height, width) inside it; change the crop"
        )
    return array[..., top : top + height, left : left + width]


def cut_stack(stack: Stack, crop: Crop, label: str) -> Stack:
    """Every picture, cut when it is read."""
    return stack.map(lambda picture: cut(picture, crop, label))


def size_of(array: np.ndarray | Stack) -> str:
    """`height x width` of the last two axes."""
    return f"{array.shape[-2]}x{array.shape[-1]}"


def _stacked(array: np.ndarray) -> np.ndarray:
    """Measurements in memory as (n, h, w)."""
    stacked = array[None] if array.ndim == 2 else array
    if stacked.ndim != 3 or stacked.dtype.kind not in "biuf":
        raise ValueError(
            f"measurements {array.shape} of {array.dtype} came; wanted real numbers (h, w) or (n, h, w); convert them"
        )
    return stacked


def _named(mask: str | os.PathLike[str] | np.ndarray) -> str:
    """What to call a mask in messages."""
    return "that came" if isinstance(mask, np.ndarray) else os.fspath(mask)


def _find_mask(
    path: Path,
    mask_path: str | os.PathLike[str] | np.ndarray | None,
    key: str | None,
    axes: str | None,
    raw: Stack,
    beside: list[str],
) -> np.ndarray:
    """The mask (t, h, w) from its own file, or from the measurement's."""
    if isinstance(mask_path, np.ndarray):
        if mask_path.ndim != 3:
            raise ValueError(f"a mask {mask_path.shape} came; wanted (t, h, w), one mask for each frame; stack them")
        return scale_mask(mask_path, "the mask")
    if mask_path is not None:
        return read_mask(mask_path, key=key, axes=axes)
    if (key or "mask") not in beside:
        raise ValueError(
            f"{path}: the measurement of size {size_of(raw)} needs the camera's calibrated mask, and none came "
            "with it; pass the file that holds it (mask_path)"
        )
    name, array, axes = find_array(path, ("mask",), key, axes, argument="mask_key")
    return scale_mask(frames_first(array, name, path, axes, argument="mask_axes"), f"{path}: '{name}'")


def _check_sizes(
    raw: Stack, mask: np.ndarray, reference: Stack | None, crop: Crop | None, path: Path, mask_path
) -> None:
    """Refuse sizes that differ: without a crop, of measurement and mask; of measurement and reference always."""
    if crop is None and raw.shape[1:] != mask.shape[1:]:
        frames, height, width = mask.shape
        other = raw.shape[1:] in ((width, frames), (frames, height))  # as the other order of axes would have it
        todo = "name the order of the mask's axes with mask_axes=..." if other else "pass the right mask"
        raise ValueError(
            f"the measurement {path} is {size_of(raw)}, the mask {mask_path} is {size_of(mask)}; "
            f"wanted one size; {todo}, or crop=(top, left, height, width), which is cut from both"
        )
    if reference is not None and reference.shape[1:] != raw.shape[1:]:
        raise ValueError(
            f"{path}: the reference 'orig' is {size_of(reference)}, the measurement {size_of(raw)}; "
            "wanted one size; repair it"
        )


def _open_reference(path: Path) -> Stack:
    """The true video in [0, 1]; integers are divided by their white. What else there may be is read as a whole."""
    stored = stored_stack(path, ("orig",))
    if stored.dtype in (np.uint8, np.uint16) and len(stored.shape) == 3:
        return stored.map(to_float)
    if stored.dtype == np.float32 and len(stored.shape) == 3:
        lows, highs = zip(*((float(one.min()), float(one.max())) for one in stored), strict=True)
        if min(lows) >= 0 and max(highs) <= 1:
            return stored
    return array_stack(read_video(path, key="orig"))


def _fit_reference(raw: Stack, mask: np.ndarray, reference: Stack) -> tuple[Stack | None, float | None, list[str]]:
    """(reference, least-squares gain, notes) for the measurements that the reference covers and explains."""
    count = min(len(reference) // len(mask), len(raw))
    if count == 0:
        few = f"reference: {len(reference)} frames are fewer than the mask's {len(mask)}; it is left out"
        return None, None, [few]
    reference = reference.first(count * len(mask))
    sums = np.zeros(3)  # of y^2, y p and p^2, for measured y and predicted p
    for one, frames in zip(raw, reference.groups(len(mask)), strict=False):
        predicted = np.einsum("thw,thw->hw", frames.astype(np.float64), mask)
        sums += np.square(one, dtype=np.float64).sum(), (one * predicted).sum(), np.square(predicted).sum()
    gain = float(sums[1] / sums[2])
    error = float(1 - sums[1] * gain / sums[0])  # of |y - gain p|^2, relative to |y|^2
    if not error <= 0.01:
        return None, None, [f"reference: 'orig' does not explain the measurement (error {error:.0%}); it is left out"]
    notes = [] if count == len(raw) else [f"reference: 'orig' covers the first {count} of {len(raw)} measurements"]
    return reference, gain, notes


def _stated_gain(path: Path) -> float:
    """The `gain` that the file states."""
    gain = read_arrays(path, ["gain"])["gain"]
    if gain.size != 1 or gain.dtype.kind not in "iuf" or not (np.isfinite(gain).all() and gain.min() > 0):
        raise ValueError(f"{path}: 'gain' is {gain.tolist()}; wanted one positive number; correct it or pass gain=...")
    return float(gain.reshape(()))
