"""Makes coded masks of several kinds, and reads a camera's calibrated masks, refusing what cannot be one."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from bitlens.data.arrays import ARRAY_SUFFIXES, find_array, frames_first
from bitlens.data.images import TIF_SUFFIXES
from bitlens.data.stacks import folder_stack
from bitlens.data.tif import read_grey_tif

if TYPE_CHECKING:
    import torch

__all__ = ["check_mask", "random_mask", "read_mask", "real_valued_mask", "scale_mask", "shifted_mask"]

FAINTEST = 1e-6
"""What the most open pixel of a mask lets through, at the least: below it is no mask, but numbers read wrongly."""


def random_mask(
    frames: int, height: int, width: int, generator: "torch.Generator | int", density: float | int = 0.5
) -> Float32[np.ndarray, "t h w"]:
    """Independent binary masks: each pixel of each frame is open (1) with probability `density`, else 0.

    `generator` is a torch.Generator or a seed; the same one gives the same masks.

    Example:
        >>> random_mask(8, 256, 256, generator=0).shape
        (8, 256, 256)
    """
    import torch

    if min(frames, height, width) < 1 or not 0 < density < 1:
        raise ValueError(
            f"frames={frames}, height={height}, width={width}, density={density}; "
            "wanted sizes of at least 1 and a density between 0 and 1; change the numbers"
        )
    draw = torch.rand((frames, height, width), generator=_generator(generator))
    return (draw < density).numpy().astype(np.float32)


def shifted_mask(
    frames: int,
    height: int,
    width: int,
    generator: "torch.Generator | int",
    density: float | int = 0.5,
    step: int = 1,
) -> Float32[np.ndarray, "t h w"]:
    """One binary pattern moved down by `step` pixel rows per frame, like the moving plate of a CACTI camera.

    mask_t[i, j] = pattern[i + (frames - 1 - t) step, j].
    """
    if step < 1:
        raise ValueError(f"step={step}; wanted at least 1 pixel row per frame; pass step=1")
    pattern = random_mask(1, height + step * (frames - 1), width, generator, density)[0]
    starts = [step * (frames - 1 - index) for index in range(frames)]
    return np.stack([pattern[first : first + height] for first in starts])


def real_valued_mask(
    mask: Float32[np.ndarray, "t h w"],
    generator: "torch.Generator | int",
    lowest_gain: float | int = 0.6,
    leak: float | int = 0.05,
) -> Float32[np.ndarray, "t h w"]:
    """A mask as a camera would calibrate it: gain * (leak + (1 - leak) mask), in [0, 1].

    `gain` is smooth over the picture (vignetting, uneven light), the same in every frame, between
    `lowest_gain` and 1; `leak` is the light that a closed pixel lets through.
    """
    import torch

    if not 0 < lowest_gain <= 1 or not 0 <= leak < 1:
        raise ValueError(
            f"lowest_gain={lowest_gain}, leak={leak}; wanted 0 < lowest_gain <= 1 and 0 <= leak < 1; change the numbers"
        )
    coarse = torch.rand((1, 1, 4, 4), generator=_generator(generator))
    smooth = torch.nn.functional.interpolate(coarse, size=mask.shape[1:], mode="bicubic", align_corners=True)[0, 0]
    gain = lowest_gain + (1 - lowest_gain) * smooth.clamp(0, 1).numpy()  # h w
    return (gain * (leak + (1 - leak) * mask)).astype(np.float32)


def read_mask(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    axes: str | None = None,
    max_closed: float | int | None = None,
) -> Float32[np.ndarray, "t h w"]:
    """Read a camera's masks as float32 (t, h, w) in [0, 1] and check that they can code a video.

    Args:
        path: .mat, .npz or .zarr (`mask`, the field's (h, w, t) unless the file says otherwise), .npy (t, h, w),
            .tif stack, or a folder of images. Integer masks, and any that go beyond 1, are divided by their
            maximum.
        key: name of the array in a .mat or .npz. None: `mask`.
        axes: order of axes, "thw" or "hwt". None: by name.
        max_closed: share of pixels that no frame may open. None: 2 * 0.5**t + 0.01.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or a mask that `check_mask` refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        name, array, axes = find_array(path, ("mask",), key, axes, argument="mask_key")
        mask = frames_first(array, name, path, axes, argument="mask_axes")
    elif path.is_dir():
        mask = folder_stack(path).read()
    elif suffix in TIF_SUFFIXES:
        mask = read_grey_tif(path)
    else:
        raise ValueError(
            f"{path} has suffix '{suffix}'; wanted a mask in {', '.join((*ARRAY_SUFFIXES, *TIF_SUFFIXES))} "
            "or a folder of images; convert it"
        )
    return check_mask(scale_mask(mask, str(path)), str(path), max_closed)


def scale_mask(mask: np.ndarray, label: str = "mask") -> np.ndarray:
    """Mask as float32; integers, and floats beyond 1, are divided by their maximum (0..115 becomes 0..1).

    Raises:
        ValueError: empty, not real numbers, NaN or infinite.
    """
    if mask.dtype.kind not in "biuf":
        raise ValueError(f"{label} has dtype {mask.dtype}; wanted real numbers; save the mask as a numeric array")
    if mask.size == 0:
        raise ValueError(f"{label} is empty {mask.shape}; wanted (t, h, w); check the file")
    if not np.isfinite(mask).all():
        raise ValueError(f"{label} holds NaN or infinite values; wanted finite numbers; repair the calibration")
    top = float(mask.max())
    if (mask.dtype.kind in "iu" and top > 0) or top > 1:
        return (mask / np.float64(top)).astype(np.float32)
    return mask.astype(np.float32)


def check_mask(mask: np.ndarray, label: str = "mask", max_closed: float | int | None = None) -> np.ndarray:
    """Return `mask` (t, h, w) as it is, after checking that it can code a video.

    Raises:
        ValueError: wrong shape, fewer than two frames, NaN, negative, a frame that is all zero, the same
            value everywhere, next to nothing everywhere, or too many pixels that no frame opens.
    """
    if mask.ndim != 3 or mask.size == 0:
        raise ValueError(f"{label} has shape {mask.shape}; wanted (t, h, w), not empty; check the file and its axes")
    frames = mask.shape[0]
    if frames < 2:
        raise ValueError(f"{label} has {frames} frame; wanted one mask per frame, at least 2; give all of them")
    if not np.isfinite(mask).all():
        raise ValueError(f"{label} holds NaN or infinite values; wanted finite numbers; repair the calibration")
    if mask.min() < 0:
        raise ValueError(
            f"{label} goes down to {mask.min():g}; wanted values >= 0; subtract the dark level and clip at 0"
        )
    dark = [index for index in range(frames) if not mask[index].any()]
    if dark:
        raise ValueError(
            f"{label}: frame {dark[0]} is all zero; wanted light in every frame; leave it out or recalibrate"
        )
    if mask.max() == mask.min():
        raise ValueError(
            f"{label} is {mask.max():g} everywhere; wanted a coded mask that differs between pixels and "
            "frames; give the camera's calibrated mask"
        )
    if mask.max() < FAINTEST:
        raise ValueError(
            f"{label} goes up to {mask.max():g}; wanted values of about 1, what an open pixel lets through; check the "
            "byte order and the unit"
        )
    allowed = 2 * 0.5**frames + 0.01 if max_closed is None else max_closed
    closed = float((mask.max(axis=0) == 0).mean())
    if closed > allowed:
        raise ValueError(
            f"{label}: {closed:.1%} of the pixels are closed in all {frames} frames; "
            f"wanted at most {allowed:.1%}; crop to the coded area, or allow it with max_closed=..."
        )
    return mask


def _generator(generator: "torch.Generator | int") -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
