"""Crops of photographs for training: the same place in the photograph and in its small version."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens.data.clips import Clips
from bitlens.data.patches import PatchSampler, frames_of, held_out, in_sizes
from bitlens.operators import Downsample


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three photographs, one of them too small for crops of 12."""
    random = np.random.default_rng(0)
    for name, size in (("a", (40, 57)), ("b", (33, 31)), ("c", (20, 60))):
        Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return sorted(tmp_path.glob("*.png"))


@pytest.mark.parametrize("scale", [2, 3])
def test_a_crop_is_the_shrunken_photograph_s(files: list[Path], scale: int) -> None:
    """Away from the crop's borders, which see other pixels. Turned, axes round in the other order: a level, seldom."""
    sampler = PatchSampler(in_sizes(files[:1], (1,)), scale, crop=12, batch=8)
    small, large = sampler.draw(3)
    assert small.shape == (8, 3, 12, 12) and large.shape == (8, 3, 12 * scale, 12 * scale)
    again = Downsample(scale).shrink_levels((255 * large).round().byte()).float() / 255
    inner = (..., slice(3, -3), slice(3, -3))
    assert float((again[inner] - small[inner]).abs().mean()) < 0.1 / 255


def test_batches_depend_on_seed_step_and_rank_alone(files: list[Path]) -> None:
    first, second = (PatchSampler(in_sizes(files, (1,)), 2, crop=12, batch=2, seed=5) for _ in range(2))
    assert first.identity() == second.identity() and len(first.pairs) == 2
    assert torch.equal(first.draw(4, 1).small, second.draw(4, 1).small)
    others = [
        first.draw(4, 0),
        first.draw(5, 1),
        PatchSampler(in_sizes(files, (1,)), 2, crop=12, batch=2, seed=6).draw(4, 1),
    ]
    assert not any(torch.equal(first.draw(4, 1).small, other.small) for other in others)
    assert first.identity() != PatchSampler(in_sizes(files[:1], (1,)), 2, crop=12, batch=2, seed=5).identity()


def test_photographs_that_are_too_small_are_named(files: list[Path]) -> None:
    with pytest.raises(ValueError, match="no photograph has 96 pixels in height and width; wanted larger ones"):
        PatchSampler(in_sizes(files), 2, crop=48)


def test_photographs_in_sizes_and_frames_of_films(files: list[Path]) -> None:
    """One that is made smaller has the mean of what it was; a grey frame is trained on as RGB."""
    whole, smaller = in_sizes(files[:1], (1, 0.5))
    assert whole[1].shape == (3, 40, 57) and smaller[1].shape == (3, 20, 28) and smaller[0] != whole[0]
    assert abs(whole[1].mean() - smaller[1].mean()) < 2
    film = np.random.default_rng(1).integers(0, 256, (17, 50, 40), np.uint8)
    frames = list(frames_of(Clips([film], ["film"])))
    assert [name for name, _ in frames] == ["film 0", "film 8", "film 16"]
    assert all(levels.shape == (1, 30, 24) for _, levels in frames)
    small, large = PatchSampler(frames, 2, crop=8, batch=2).draw(0)
    assert small.shape == (2, 3, 8, 8) and torch.equal(large[:, 0], large[:, 2])


def test_one_of_twenty_is_held_out() -> None:
    files = [Path(f"{index}.png") for index in range(45)]
    trained, validated = held_out(files)
    assert validated == [Path("19.png"), Path("39.png")] and len(trained) == 43 and not set(trained) & set(validated)
