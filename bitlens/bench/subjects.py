"""What `bitlens benchmark` lets networks run on: a made scene seen through a mask, or a made picture made small."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

VIDEO_SIZE, PICTURE_SIZE = 256, 128
"""Pixels in height and width, where none are asked for."""


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
    """A made picture made small: three frames of the made scene are its colours."""
    import torch

    from bitlens.data.levels import to_float, to_levels
    from bitlens.data.synthetic import high_speed_scene
    from bitlens.metrics import psnr_y
    from bitlens.operators import Downsample

    levels = to_levels(high_speed_scene(seed, 3, scale * size, scale * size))
    small = to_float(Downsample(scale).shrink_levels(torch.from_numpy(levels)[None])[0].numpy())
    large = to_float(levels)
    return Subject("picture", (small[None],), [size, size], lambda found: psnr_y(found, large, shave=scale))
