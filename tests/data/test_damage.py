"""Damage: how much there is of it, and crops that have it."""

import numpy as np
import pytest
import torch

from bitlens.data.damage import RestorationSampler, compressed, damaged, parse


def photograph(height: int = 64, width: int = 80, channels: int = 3) -> np.ndarray:
    """Smooth, between 60 and 200."""
    rows, columns = np.mgrid[:height, :width]
    planes = [130 + 70 * np.sin(rows / (5 + c)) * np.cos(columns / (7 + c)) for c in range(channels)]
    return np.stack(planes).round().astype(np.uint8)


def test_noise_has_its_standard_deviation() -> None:
    levels = photograph(200, 200)
    found = damaged(levels, "noise-15", seed=1)
    assert found.dtype == np.uint8 and found.shape == levels.shape
    difference = found.astype(float) - levels
    assert abs(difference.std() - 15) < 0.3 and abs(difference.mean()) < 0.3
    assert np.array_equal(found, damaged(levels, "noise-15", seed=1))
    assert not np.array_equal(found, damaged(levels, "noise-15", seed=2))


def test_jpeg_of_less_quality_is_farther_away() -> None:
    for channels in (1, 3):
        levels = photograph(channels=channels)
        errors = [float(np.abs(damaged(levels, f"jpeg-{q}").astype(float) - levels).mean()) for q in (5, 40, 95)]
        assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[2] > 0
        assert damaged(levels, "jpeg-40").shape == levels.shape


def test_colours_have_half_the_resolution_unless_they_are_to_be_full() -> None:
    """Stripes of two colours of the same luma, a pixel wide: at half the resolution nothing is left of them."""
    levels = np.zeros((3, 32, 32), np.uint8)
    levels[:, :, ::2] = np.array([180, 100, 120])[:, None, None]
    levels[:, :, 1::2] = np.array([100, 140, 127])[:, None, None]
    spread = [float(compressed(levels, 95, full)[0].std()) for full in (False, True)]
    assert spread[0] < 10 < 30 < spread[1]
    np.testing.assert_array_equal(damaged(levels, "jpeg-95"), compressed(levels, 95))


@pytest.mark.parametrize("name", ["blur-3", "noise", "noise-0", "jpeg-101", "jpeg-", "jpeg-4.5", ""])
def test_no_such_damage(name: str) -> None:
    with pytest.raises(ValueError, match=r"no damage .*; wanted noise-SIGMA .* or jpeg-QUALITY"):
        parse(name)


def test_crops_are_those_of_the_photograph() -> None:
    """What is damaged lies where the truth does: of all shifts by a pixel, none fits better."""
    images = [("one", photograph()), ("grey", photograph(channels=1)), ("small", photograph(20, 20))]
    for kind in ("noise-5", "jpeg-80", None):
        sampler = RestorationSampler(images, kind, crop=24, batch=6, seed=3)
        assert len(sampler.images) == 2
        given, truth = sampler.draw(2)
        assert given.shape == truth.shape == (6, 3, 24, 24)
        errors = [float((given - truth.roll(shift, -1))[..., 2:-2].abs().mean()) for shift in (-1, 0, 1)]
        assert errors[1] == min(errors) > 0
        again = RestorationSampler(images, kind, crop=24, batch=6, seed=3)
        assert torch.equal(again.draw(2).small, given) and again.identity() == sampler.identity()
        assert not torch.equal(sampler.draw(2, 1).small, given)
    with pytest.raises(ValueError, match="no photograph has 72 pixels"):
        RestorationSampler(images, crop=64)
