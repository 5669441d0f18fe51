"""What networks are timed on: a made scene seen through a mask, or a made picture, small or noisy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt8

VIDEO_SIZE, PICTURE_SIZE = 256, 128
"""Pixels in height and width, where none are asked for."""
NOISE = 25
"""Standard deviation of the noise that is restored, in levels of 255."""


@dataclass(frozen=True)
class Subject:
    """One input and what is known of it."""

    unit: str
    """What a network takes at a time."""
    inputs: tuple[np.ndarray, ...]
    """What networks are called with, in batches of one, float32."""
    size: list[int]
    """(frames,) height and width of the input."""
    quality: Callable[[np.ndarray], float]
    """PSNR in dB of a result (t, h, w) or (3, h, w), as results of such networks are scored."""

    @property
    def counted(self) -> tuple[int, int, int]:
        """Frames, height and width, for which multiply-accumulates are counted."""
        frames, height, width = [1, *self.size][-3:]
        return frames, height, width


def subject_of(scale: int | None, size: int | None, frames: int, seed: int) -> Subject:
    """What networks run on, by how many times they enlarge images; None: they reconstruct video."""
    if scale is None:
        return measured_scene(frames, size or VIDEO_SIZE, seed)
    return (noisy_picture if scale == 1 else partial(small_picture, scale))(size or PICTURE_SIZE, seed)


def measured_scene(frames: int, size: int, seed: int) -> Subject:
    """A made scene behind a random mask."""
    from bitlens.data.capture import simulate
    from bitlens.data.masks import random_mask
    from bitlens.data.synthetic import high_speed_scene
    from bitlens.metrics import psnr_sci

    scene = high_speed_scene(seed, frames, size, size)
    capture = simulate(scene, random_mask(frames, size, size, seed))
    inputs = tuple(np.ascontiguousarray(part, np.float32) for part in (capture.measurement[:1], capture.mask[None]))
    return Subject("measurement", inputs, [frames, size, size], lambda video: psnr_sci(video, scene))


def small_picture(scale: int, size: int, seed: int) -> Subject:
    """A made picture made small."""
    import torch

    from bitlens.data.levels import to_float
    from bitlens.metrics import psnr_y
    from bitlens.operators import Downsample

    levels = made_picture(scale * size, seed)
    small = to_float(Downsample(scale).shrink_levels(torch.from_numpy(levels)[None])[0].numpy())
    large = to_float(levels)
    return Subject("picture", (small[None],), [size, size], lambda found: psnr_y(found, large, shave=scale))


def noisy_picture(size: int, seed: int) -> Subject:
    """A made picture with noise."""
    from bitlens.data.damage import noisy
    from bitlens.data.levels import to_float
    from bitlens.metrics import psnr_rgb

    levels = made_picture(size, seed)
    given, truth = to_float(noisy(levels, NOISE, np.random.default_rng(seed))), to_float(levels)
    return Subject("picture", (given[None],), [size, size], lambda found: psnr_rgb(found, truth))


def made_picture(size: int, seed: int) -> UInt8[np.ndarray, "3 h w"]:
    """Levels of a picture: three frames of the made scene are its colours."""
    from bitlens.data.levels import to_levels
    from bitlens.data.synthetic import high_speed_scene

    return to_levels(high_speed_scene(seed, 3, size, size))
