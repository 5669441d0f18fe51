"""Pairs of crops to train super-resolution networks on: of photographs, and of the same made small."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bitlens.data.pairs import read_picture
from bitlens.operators import Downsample

__all__ = ["PatchSampler", "Patches", "held_out"]

EVERY = 20
"""Of so many photographs one is held out for validation."""


class Patches(NamedTuple):
    """What a step is trained on."""

    small: Float[Tensor, "b 3 h w"]
    """RGB in [0, 1]."""
    large: Float[Tensor, "b 3 h2 w2"]
    """The truth."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network is called with."""
        return (self.small,)

    @property
    def truth(self) -> Tensor:
        """What it should give."""
        return self.large

    @property
    def error_axes(self) -> tuple[int, ...]:
        """Over which squared errors are averaged for one PSNR: a whole image."""
        return (-3, -2, -1)


class PatchSampler:
    """Random crops of photographs, turned and mirrored, as batches that depend only on (seed, step, rank).

    Every photograph is shrunk as a whole, as test images are (`Downsample.shrink_levels`); each crop is taken from it
    and from the photograph at the same place.

    Args:
        files: photographs.
        scale: how many times they are shrunk.
        crop: height and width of a shrunken crop.
        batch: crops of a batch.
        seed: what decides everything.

    Raises:
        ValueError: no photograph is large enough; smaller ones among others are left out.
    """

    def __init__(self, files: Sequence[Path], scale: int, *, crop: int = 48, batch: int = 16, seed: int = 0):
        self.scale, self.crop, self.batch, self.seed = scale, crop, batch, seed
        self.names: list[str] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []  # (3, h, w) and (3, scale h, scale w), 8 bits
        shrink = Downsample(scale)
        for file in files:
            levels = read_picture(file)
            height, width = (length // scale * scale for length in levels.shape[1:])
            if min(height, width) < scale * crop:
                continue
            whole = np.ascontiguousarray(levels[:, :height, :width])
            self.pairs.append((shrink.shrink_levels(torch.from_numpy(whole)[None])[0].numpy(), whole))
            self.names.append(f"{file.name} {height}x{width}")
        if not self.pairs:
            raise ValueError(
                f"no photograph has {scale * crop} pixels in height and width; wanted larger ones; give others, or a "
                "smaller --crop"
            )
        areas = np.array([small[0].size for small, _ in self.pairs], np.float64)
        self.weights = areas / areas.sum()

    def identity(self) -> dict[str, object]:
        """What decides the batches, so that a run is only resumed on the same data."""
        return {
            "images": self.names,
            "scale": self.scale,
            "crop": self.crop,
            "batch": self.batch,
            "data_seed": self.seed,
        }

    def draw(self, step: int, rank: int = 0) -> Patches:
        """The crops of one step."""
        random = np.random.default_rng([self.seed, step, rank])
        samples = [self.sample(random) for _ in range(self.batch)]
        return Patches(*(torch.stack(part) for part in zip(*samples, strict=True)))

    def sample(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One crop (3, crop, crop), and the same of the photograph."""
        small, large = self.pairs[random.choice(len(self.weights), p=self.weights)]
        top, left = (int(random.integers(length - self.crop + 1)) for length in small.shape[1:])
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))

        def cut(levels: np.ndarray, factor: int) -> Tensor:
            rows, columns = (slice(factor * start, factor * (start + self.crop)) for start in (top, left))
            turned = np.rot90(levels[:, rows, columns], turns, (1, 2))
            turned = turned[:, :, ::-1] if mirrored else turned
            return torch.from_numpy(np.ascontiguousarray(turned)).float().div_(255)

        return cut(small, 1), cut(large, self.scale)


def held_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(photographs to train on, those to validate on): one of twenty, where there are so many."""
    validated = list(files[EVERY - 1 :: EVERY])
    return [file for file in files if file not in validated], validated
