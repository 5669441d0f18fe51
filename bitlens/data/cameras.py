"""Cameras as they are, drawn at random: what a network must have seen to serve any of them.

A training sample's mask is of one of these kinds, its measurement has the noise of a sensor or none, and what the light
saw may differ a little from the mask that was calibrated.

* `binary`: every pixel of every frame open with probability 1/2: the benchmark's.
* `density`: the same, with a probability of 0.2 to 0.8.
* `shifted`: one binary pattern, moved by 1 or 2 whole pixels a frame.
* `plate`: one pattern of cells of 1 to 2.7 pixels, moved by fractions of a pixel and blurred by pixels and lens,
  with what closed cells let through, vignetting, and rows that the plate does not cover: a CACTI camera's
  [Llull et al., Optics Express 2013].
* `grey`: independent grey values, or binary ones behind vignetting and leaking cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

__all__ = ["KINDS", "Cameras", "draw_mask", "draw_noise", "sensed"]

KINDS = ("binary", "density", "shifted", "plate", "grey")
FINE = 4
"""Subpixels a pixel of a plate's pattern is the mean of, along each axis."""


@dataclass(frozen=True)
class Cameras:
    """A mixture of cameras for training.

    Raises:
        ValueError: an unknown kind of mask, shares that are not probabilities, or frames that are no range.
    """

    shares: Mapping[str, float] = field(
        default_factory=lambda: {"binary": 0.55, "density": 0.1, "shifted": 0.15, "plate": 0.15, "grey": 0.05}
    )
    """How often each kind of mask is drawn."""
    frames: tuple[int, int] = (2, 24)
    """Fewest and most frames of a measurement."""
    usual: float = 0.75
    """Share of the steps that have the sampler's own number of frames."""
    noisy: float = 0.35
    """Share of the samples with a sensor's noise."""
    miscalibrated: float = 0.2
    """Share of the samples whose light saw a slightly different mask."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shares) - set(KINDS))
        if unknown or not self.shares or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise ValueError(f"shares {dict(self.shares)}; wanted shares from 0 of {', '.join(KINDS)}; correct them")
        for name in ("usual", "noisy", "miscalibrated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 to 1; change it")
        if not 1 <= self.frames[0] <= self.frames[1]:
            raise ValueError(f"frames {self.frames}; wanted the fewest and the most, from 1; change them")

    def draw_frames(self, usual: int, random: np.random.Generator) -> int:
        """The number of frames of one step."""
        return usual if random.random() < self.usual else int(random.integers(self.frames[0], self.frames[1] + 1))

    def draw(
        self, video: Float[Tensor, "t h w"], random: np.random.Generator
    ) -> tuple[Float[Tensor, "t h w"], Float[Tensor, "h w"]]:
        """A mask for a video, and what a camera with it measures."""
        kinds = list(self.shares)
        weights = np.array([self.shares[kind] for kind in kinds], dtype=np.float64)
        kind = kinds[random.choice(len(kinds), p=weights / weights.sum())]
        mask = torch.from_numpy(draw_mask(kind, *video.shape, random=random))
        seen = miscalibrated(mask, random) if random.random() < self.miscalibrated else mask
        measurement = (seen * video).sum(0)
        if random.random() < self.noisy:
            measurement = sensed(measurement, *draw_noise(random), random)
        return mask, measurement


def draw_noise(random: np.random.Generator) -> tuple[float, float]:
    """Electrons and read noise of some sensor, as `sensed` takes them."""
    return np.exp(random.uniform(np.log(200), np.log(20_000))), random.uniform(0, 0.02)


def draw_mask(
    kind: str, frames: int, height: int, width: int, random: np.random.Generator
) -> Float32[np.ndarray, "t h w"]:
    """A mask of one of `KINDS`, in [0, 1]; every pixel but a plate's uncovered rows is open in some frame or leaks."""
    shape = frames, height, width
    if kind == "plate":
        return plate(frames, height, width, random)
    if kind == "shifted":
        step = int(random.integers(1, 3)) * (1 if random.random() < 0.5 else -1)
        mask = shifted(frames, height, width, step, random)
    elif kind == "grey" and random.random() < 0.5:
        mask = random.random(shape, dtype=np.float32)
    else:
        density = random.uniform(0.2, 0.8) if kind == "density" else 0.5
        mask = (random.random(shape, dtype=np.float32) < density).astype(np.float32)
        if kind == "grey":
            mask = behind_glass(mask, random)
    return np.ascontiguousarray(mask, dtype=np.float32)


def shifted(
    frames: int, height: int, width: int, step: int, random: np.random.Generator
) -> Float32[np.ndarray, "t h w"]:
    """One binary pattern, moved by `step` rows a frame, or by as many columns."""
    across = random.random() < 0.5
    rows, columns = (width, height) if across else (height, width)
    pattern = (random.random((rows + abs(step) * (frames - 1), columns)) < 0.5).astype(np.float32)
    starts = [abs(step) * (t if step > 0 else frames - 1 - t) for t in range(frames)]
    mask = np.stack([pattern[start : start + rows] for start in starts])
    return mask.transpose(0, 2, 1) if across else mask


def plate(frames: int, height: int, width: int, random: np.random.Generator) -> Float32[np.ndarray, "t h w"]:
    """A printed pattern on a moving plate, as a sensor behind a lens sees it."""
    cell, step = random.uniform(1, 2.7), random.uniform(0.5, 2) * (1 if random.random() < 0.5 else -1)
    travel = int(np.ceil(abs(step) * FINE * (frames - 1)))
    rows, columns = FINE * height + travel + 1, FINE * width  # in subpixels
    pattern = random.random((int(rows / (FINE * cell)) + 2, int(columns / (FINE * cell)) + 2)) < random.uniform(
        0.4, 0.6
    )
    places = (np.arange(size) / (FINE * cell) + random.random() for size in (rows, columns))
    down, right = (place.astype(int) for place in places)
    fine = torch.from_numpy(pattern[down][:, right].astype(np.float32))
    starts = [round(abs(step) * FINE * (t if step > 0 else frames - 1 - t)) for t in range(frames)]
    seen = torch.stack([fine[start : start + FINE * height] for start in starts]).unsqueeze(1)
    mask = F.avg_pool2d(seen, FINE)  # t 1 h w
    blur = random.uniform(0, 0.8)
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / max(blur, 0.1)) ** 2)
    taps = (taps / taps.sum()).float()
    mask = F.conv2d(F.pad(mask, (2, 2, 2, 2), "replicate"), (taps[:, None] * taps).view(1, 1, 5, 5))[:, 0]
    found = behind_glass(mask.numpy(), random)
    if random.random() < 0.15:  # the plate's end
        edge = int(random.integers(1, max(2, height // 8)))
        for t, start in enumerate(starts):
            found[t, : max(0, edge - start // FINE)] *= 0.02
    return found.transpose(0, 2, 1).copy() if height == width and random.random() < 0.5 else found


def behind_glass(mask: Float32[np.ndarray, "t h w"], random: np.random.Generator) -> Float32[np.ndarray, "t h w"]:
    """The mask with what closed cells let through, and less light toward some side or corner."""
    leak, lowest = random.uniform(0, 0.1), random.uniform(0.6, 1)
    height, width = mask.shape[1:]
    coarse = torch.from_numpy(random.random((1, 1, 3, 3), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0, 0]
    gain = lowest + (1 - lowest) * smooth.clamp(0, 1).numpy()
    return (gain * (leak + (1 - leak) * mask)).astype(np.float32)


def miscalibrated(mask: Float[Tensor, "t h w"], random: np.random.Generator) -> Float[Tensor, "t h w"]:
    """What the light saw where `mask` was calibrated: some per cent more or less, over the picture and the frames."""
    frames, height, width = mask.shape
    coarse = torch.from_numpy(random.normal(0, random.uniform(0, 0.03), (1, 1, 3, 3)).astype(np.float32))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)[0]
    each = torch.from_numpy(random.normal(0, random.uniform(0, 0.02), (frames, 1, 1)).astype(np.float32))
    return (mask * (1 + smooth + each)).clamp_min(0)


def sensed(
    measurement: Float[Tensor, "h w"],
    electrons: float,
    read_noise: float | int,
    random: np.random.Generator,
) -> Float[Tensor, "h w"]:
    """A measurement with shot and read noise; values below 0 stay, as a dark frame's subtraction leaves them.

    Args:
        measurement: the plain sum over time of mask * frame; 1 is one open white frame.
        electrons: that an open white frame frees in a pixel: the fewer, the more shot noise.
        read_noise: standard deviation, in open white frames.
        random: where the noise comes from.
    """
    normal = torch.from_numpy(random.standard_normal((2, *measurement.shape)).astype(np.float32))
    return measurement + (measurement.clamp_min(0) / electrons).sqrt() * normal[0] + read_noise * normal[1]
