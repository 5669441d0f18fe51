"""Pairs of crops to train super-resolution networks on: of photographs, and of the same made small."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from bitlens.data.clips import Clips
from bitlens.data.pairs import read_picture
from bitlens.operators import Downsample

__all__ = ["Crops", "PatchSampler", "Patches", "by_area", "frames_of", "held_out", "in_sizes", "turned"]

EVERY = 20
"""Of so many photographs one is held out for validation."""
SIZES = (1, 0.8, 0.6)
"""Every photograph is trained on in these sizes: made smaller, one shows finer detail, and less of what JPEG did."""
FILM_STEP, FILM_SIZE = 8, 0.6
"""Of a film every eighth frame is taken, in this size: its compression shows less."""


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


class Crops:
    """Batches of random crops of images: what samplers of them share. Each has `sample`, one crop and its truth."""

    batch: int
    seed: int

    def draw(self, step: int, rank: int = 0) -> Patches:
        """The crops of one step."""
        random = np.random.default_rng([self.seed, step, rank])
        samples = [self.sample(random) for _ in range(self.batch)]
        return Patches(*(torch.stack(part) for part in zip(*samples, strict=True)))

    def sample(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What a network is given, and the truth."""
        raise NotImplementedError


def by_area(images: Iterable[np.ndarray]) -> Float[np.ndarray, " n"]:
    """How often crops are taken of each of some images (c, h, w): by its area."""
    areas = np.array([image[0].size for image in images], np.float64)
    return areas / areas.sum()


class PatchSampler(Crops):
    """Random crops of photographs, turned and mirrored, as batches that depend only on (seed, step, rank).

    Every photograph is shrunk as a whole, as test images are (`Downsample.shrink_levels`); each crop is taken from it
    and from the photograph at the same place.

    Args:
        photographs: with their names, RGB or grey.
        scale: how many times they are shrunk.
        crop: height and width of a shrunken crop.
        batch: crops of a batch.
        seed: what decides everything.

    Raises:
        ValueError: no photograph is large enough; smaller ones among others are left out.
    """

    def __init__(
        self,
        photographs: Iterable[tuple[str, UInt8[np.ndarray, "c h w"]]],
        scale: int,
        *,
        crop: int = 48,
        batch: int = 16,
        seed: int = 0,
    ):
        self.scale, self.crop, self.batch, self.seed = scale, crop, batch, seed
        self.names: list[str] = []
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []  # (c, h, w) and (c, scale h, scale w), 8 bits
        shrink = Downsample(scale)
        for name, levels in photographs:
            height, width = (length // scale * scale for length in levels.shape[1:])
            if min(height, width) < scale * crop:
                continue
            whole = np.ascontiguousarray(levels[:, :height, :width])
            self.pairs.append((shrink.shrink_levels(torch.from_numpy(whole)[None])[0].numpy(), whole))
            self.names.append(f"{name} {height}x{width}")
        if not self.pairs:
            raise ValueError(
                f"no photograph has {scale * crop} pixels in height and width; wanted larger ones; give others, or a "
                "smaller --crop"
            )
        self.weights = by_area(small for small, _ in self.pairs)

    def identity(self) -> dict[str, object]:
        """What decides the batches, so that a run is only resumed on the same data."""
        return {
            "images": self.names,
            "scale": self.scale,
            "crop": self.crop,
            "batch": self.batch,
            "data_seed": self.seed,
        }

    def sample(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One crop (3, crop, crop), and the same of the photograph."""
        small, large = self.pairs[random.choice(len(self.weights), p=self.weights)]
        top, left = (int(random.integers(length - self.crop + 1)) for length in small.shape[1:])
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))

        def cut(levels: np.ndarray, factor: int) -> Tensor:
            rows, columns = (slice(factor * start, factor * (start + self.crop)) for start in (top, left))
            return turned(levels[:, rows, columns], turns, mirrored)

        return cut(small, 1), cut(large, self.scale)


def turned(levels: UInt8[np.ndarray, "c h w"], turns: int, mirrored: bool) -> Float[Tensor, "3 h2 w2"]:
    """Levels, RGB or grey, turned by right angles and mirrored, as RGB in [0, 1]."""
    found = np.rot90(levels, turns, (1, 2))
    found = np.ascontiguousarray(found[:, :, ::-1] if mirrored else found)
    return torch.from_numpy(found).float().div_(255).expand(3, -1, -1)


def in_sizes(
    files: Sequence[Path], sizes: Sequence[float | int] = SIZES
) -> Iterator[tuple[str, UInt8[np.ndarray, "3 h w"]]]:
    """Photographs, each in several sizes, with their names."""
    for file in files:
        levels = read_picture(file)
        for size in sizes:
            yield f"{file.name} at {size}", resized(levels, size)


def frames_of(clips: Clips) -> Iterator[tuple[str, UInt8[np.ndarray, "1 h w"]]]:
    """Some frames of grey films, made smaller, with their names."""
    for name, video in zip(clips.names, clips.videos, strict=True):
        for index in range(0, len(video), FILM_STEP):
            yield f"{name} {index}", resized(video[index][None], FILM_SIZE)


def resized(levels: UInt8[np.ndarray, "c h w"], size: float | int) -> UInt8[np.ndarray, "c h2 w2"]:
    """An image `size` times as high and wide, by antialiased bicubic interpolation; 1: as it is."""
    if size == 1:
        return levels
    values = torch.from_numpy(np.array(levels))[None].float()
    shape = [max(1, round(size * length)) for length in levels.shape[1:]]
    found = F.interpolate(values, shape, mode="bicubic", antialias=True, align_corners=False)
    return found[0].round().clamp(0, 255).byte().numpy()


def held_out(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(photographs to train on, those to validate on): one of twenty, where there are so many."""
    validated = list(files[EVERY - 1 :: EVERY])
    return [file for file in files if file not in validated], validated
