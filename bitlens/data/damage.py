"""Damage that images suffer without changing size: a sensor's noise, and what JPEG leaves out.

A kind is written `noise-25` (standard deviation in levels of 255) or `jpeg-10` (quality, 1 to 100).
"""

import re
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import torch
from jaxtyping import UInt8

from bitlens.data.jpeg import Jpeg, jpeg_of
from bitlens.data.patches import Crops, by_area, turned

__all__ = ["Damage", "RestorationSampler", "as_jpeg", "damaged", "parse", "steps_of"]

KINDS = "noise-SIGMA (1 to 100) or jpeg-QUALITY (1 to 100)"
NOISY, COMPRESSED = 0.55, 0.55
"""How often a training crop is noisy, and how often it was a JPEG: a tenth is both, noise first."""
SIGMAS, QUALITIES = (0.0, 55.0), (5, 90)
"""Ranges of training; every value in them is as likely."""
MARGIN = 8
"""Pixels around a crop when it becomes a JPEG, whose blocks of 8 x 8 may then begin anywhere."""

Damage = tuple[str, int]
"""Its kind, "noise" or "jpeg", and how much."""


def parse(name: str) -> Damage:
    """A kind of damage by its name.

    >>> parse("jpeg-40")
    ('jpeg', 40)

    Raises:
        ValueError: there is no such kind.
    """
    found = re.fullmatch(r"(noise|jpeg)-(\d{1,3})", name)
    if found is None or not 1 <= int(found[2]) <= 100:
        raise ValueError(f"no damage {name!r}; wanted {KINDS}; for example jpeg-10")
    return found[1], int(found[2])


def damaged(levels: UInt8[np.ndarray, "c h w"], name: str, seed: int = 0) -> UInt8[np.ndarray, "c h w"]:
    """An image (RGB, or one grey channel) with that damage, in 8 bits as files have it: rounded and clipped.

    Raises:
        ValueError: there is no such kind of damage.
    """
    kind, amount = parse(name)
    if kind == "noise":
        return noisy(levels, amount, np.random.default_rng(seed))
    return compressed(levels, amount)


def noisy(
    levels: UInt8[np.ndarray, "c h w"], sigma: float | int, random: np.random.Generator
) -> UInt8[np.ndarray, "c h w"]:
    """Independent normal noise of a standard deviation in levels, added to each channel."""
    noise = random.standard_normal(levels.shape, dtype=np.float32)
    return (levels + np.float32(sigma) * noise).round().clip(0, 255).astype(np.uint8)


def compressed(
    levels: UInt8[np.ndarray, "c h w"], quality: int, full_colour: bool = False
) -> UInt8[np.ndarray, "c h w"]:
    """The image after JPEG, colours at half the resolution (4:2:0), as most files have them, unless `full_colour`."""
    from PIL import Image

    found = np.asarray(Image.open(as_jpeg(levels, quality, full_colour)))
    return found[None] if found.ndim == 2 else np.ascontiguousarray(found.transpose(2, 0, 1))


def as_jpeg(levels: UInt8[np.ndarray, "c h w"], quality: int, full_colour: bool = False) -> BytesIO:
    """A file of the image, as `compressed` reads it."""
    from PIL import Image

    stream = BytesIO()
    image = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    image.save(stream, "JPEG", quality=quality, subsampling=0 if full_colour else 2)
    return stream


def steps_of(quality: int) -> Jpeg:
    """What files of `as_jpeg` say of their images, whose blocks begin in the corner."""
    from PIL import Image

    with Image.open(as_jpeg(np.zeros((3, 8, 8), np.uint8), quality)) as file:
        found = jpeg_of(file, 1)
    assert found is not None
    return found


class RestorationSampler(Crops):
    """Random crops of photographs and the same damaged, as batches that depend only on (seed, step, rank).

    Args:
        photographs: with their names, RGB or grey.
        kind: damage that all crops have; None: the mixture for training.
        crop: height and width.
        batch: crops of a batch.
        seed: what decides everything.

    Raises:
        ValueError: no photograph is large enough; smaller ones among others are left out.
    """

    def __init__(
        self,
        photographs: Iterable[tuple[str, UInt8[np.ndarray, "c h w"]]],
        kind: str | None = None,
        *,
        crop: int = 64,
        batch: int = 8,
        seed: int = 0,
    ):
        self.kind, self.crop, self.batch, self.seed = kind, crop, batch, seed
        large = [(name, levels) for name, levels in photographs if min(levels.shape[1:]) >= crop + MARGIN]
        if not large:
            raise ValueError(
                f"no photograph has {crop + MARGIN} pixels in height and width; wanted larger ones; give others, or a "
                "smaller --crop"
            )
        self.names = [f"{name} {levels.shape[1]}x{levels.shape[2]}" for name, levels in large]
        self.images = [levels for _, levels in large]
        self.weights = by_area(self.images)

    def identity(self) -> dict[str, object]:
        """What decides the batches, so that a run is only resumed on the same data."""
        return {
            "images": self.names, "damage": self.kind, "crop": self.crop, "batch": self.batch, "data_seed": self.seed,
        }  # fmt: skip

    def sample(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A crop (3, crop, crop) as it was damaged, and as it was."""
        image = self.images[random.choice(len(self.weights), p=self.weights)]
        size = self.crop + MARGIN
        top, left = (int(random.integers(length - size + 1)) for length in image.shape[1:])
        truth = image[:, top : top + size, left : left + size]
        found = damaged(truth, self.kind, int(random.integers(2**31))) if self.kind else mixed(truth, random)
        down, right = (int(random.integers(MARGIN)) for _ in range(2))
        place = np.s_[:, down : down + self.crop, right : right + self.crop]
        turns, mirrored = int(random.integers(4)), bool(random.integers(2))
        return turned(found[place], turns, mirrored), turned(truth[place], turns, mirrored)


def mixed(levels: UInt8[np.ndarray, "c h w"], random: np.random.Generator) -> UInt8[np.ndarray, "c h w"]:
    """An image with damage of the training's mixture."""
    share = random.random()
    if share < NOISY:
        levels = noisy(levels, random.uniform(*SIGMAS), random)
    if share >= 1 - COMPRESSED:
        quality = int(random.integers(QUALITIES[0], QUALITIES[1] + 1))
        levels = compressed(levels, quality, random.random() < 0.3)
    return levels
