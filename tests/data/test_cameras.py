"""The mixture of cameras: its masks, its noise, and batches that stay a function of seed, step and rank."""

from typing import Any

import numpy as np
import pytest
import torch

from bitlens.data.cameras import KINDS, Cameras, draw_mask, sensed
from bitlens.data.clips import Clips, ClipSampler, to_and_fro


def draw(kind: str, seed: int = 0, frames: int = 6, height: int = 40, width: int = 40) -> np.ndarray:
    return draw_mask(kind, frames, height, width, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 16, 16), (6, 40, 40), (24, 17, 30)])
def test_masks(kind: str, size: tuple[int, int, int]) -> None:
    for seed in range(5):
        mask = draw(kind, seed, *size)
        assert mask.shape == size and mask.dtype == np.float32
        assert 0 <= mask.min() < mask.max() <= 1
        assert np.array_equal(mask, draw(kind, seed, *size))
        assert not np.array_equal(mask, draw(kind, seed + 100, *size))


def test_binary_masks_are_the_benchmarks_kind() -> None:
    mask = draw("binary", frames=8, height=64, width=64)
    assert set(np.unique(mask)) == {0.0, 1.0} and abs(mask.mean() - 0.5) < 0.02
    densities = [draw("density", seed).mean() for seed in range(40)]
    assert min(densities) < 0.35 and max(densities) > 0.65


def test_shifted_masks_are_one_pattern() -> None:
    """Every frame is the one before, moved along one axis by a whole number of pixels."""
    for seed in range(10):
        mask = draw("shifted", seed)
        moves = [(0, 1), (0, -1), (0, 2), (0, -2), (1, 1), (1, -1), (1, 2), (1, -2)]

        def explains(axis: int, step: int, mask: np.ndarray = mask) -> bool:
            rolled = np.roll(mask[:-1], step, axis=axis + 1)
            inner = (slice(None), slice(2, -2), slice(2, -2))
            return bool(np.array_equal(rolled[inner], mask[1:][inner]))

        assert sum(explains(*move) for move in moves) == 1


def test_plates_are_smooth_grey_and_move() -> None:
    """Neighbouring frames are alike, distant ones are not; cells are larger than a pixel."""
    near, far, beside = [], [], []
    for seed in range(12):
        mask = draw("plate", seed, frames=14).astype(np.float64)
        assert len(np.unique(mask)) > 100
        near.append(np.corrcoef(mask[0].ravel(), mask[1].ravel())[0, 1])
        far.append(np.corrcoef(mask[0].ravel(), mask[13].ravel())[0, 1])
        beside.append(np.corrcoef(mask[0, :, :-1].ravel(), mask[0, :, 1:].ravel())[0, 1])
    assert np.mean(near) > np.mean(far) + 0.2 and np.mean(beside) > 0.3


def test_shot_and_read_noise_have_their_variance() -> None:
    """var = y / electrons + read^2."""
    measurement = torch.full((200, 200), 3.0)
    noisy = sensed(measurement, 500.0, 0.01, np.random.default_rng(0))
    assert float(noisy.mean()) == pytest.approx(3.0, abs=2e-3)
    assert float(noisy.var()) == pytest.approx(3.0 / 500 + 0.01**2, rel=0.03)
    assert torch.equal(noisy, sensed(measurement, 500.0, 0.01, np.random.default_rng(0)))


def test_measurements_of_quiet_cameras_are_exact() -> None:
    video = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    mask, measurement = Cameras(noisy=0.0, miscalibrated=0.0).draw(video, np.random.default_rng(0))
    assert torch.allclose(measurement, (mask * video).sum(0))
    mask, measurement = Cameras(noisy=0.0, miscalibrated=1.0).draw(video, np.random.default_rng(0))
    error = (measurement - (mask * video).sum(0)).norm() / measurement.norm()
    assert 1e-4 < float(error) < 0.2


def sampler(**settings: Any) -> ClipSampler:
    videos = [np.random.default_rng(i).integers(0, 256, (10 + i, 40, 48), dtype=np.uint8) for i in range(2)]
    chosen = {"crop": 16, "batch": 3, "seed": 5, "cameras": Cameras(usual=0.2), **settings}
    return ClipSampler(Clips(videos, ["a", "b"]), **chosen)


def test_batches() -> None:
    """As many samples as hold the usual number of frames in all; every rank has the same number of frames."""
    made = sampler()
    lengths = set()
    for step in range(30):
        batch, other = made.draw(step, 0), made.draw(step, 1)
        count, frames = batch.videos.shape[:2]
        assert count == max(1, round(3 * 8 / frames)) and other.videos.shape == batch.videos.shape
        assert batch.masks.shape == batch.videos.shape and batch.measurements.shape == (count, 16, 16)
        assert not torch.equal(batch.videos, other.videos)
        lengths.add(frames)
    assert len(lengths) > 8 and min(lengths) >= 2 and max(lengths) <= 24
    again = sampler().draw(7, 1)
    assert all(torch.equal(a, b) for a, b in zip(again, made.draw(7, 1), strict=True))


def test_identity_names_the_mixture() -> None:
    """So that a run is not resumed with another."""
    assert sampler().identity() == sampler().identity()
    assert sampler().identity() != sampler(cameras=Cameras(usual=0.3)).identity()
    assert sampler(cameras=None).identity()["cameras"] is None


def test_short_videos_are_played_to_and_fro() -> None:
    assert to_and_fro(0, 1, 7, 4) == [0, 1, 2, 3, 2, 1, 0]
    assert to_and_fro(1, 2, 5, 4) == [1, 3, 1, 1, 3]
    assert to_and_fro(0, 3, 3, 1) == [0, 0, 0]
    for start, speed, length in ((0, 1, 10), (5, 3, 9), (2, 2, 3)):
        assert max(to_and_fro(start, speed, 24, length)) < length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"round": 1.0}}, "wanted shares from 0 of binary"),
        ({"shares": {"binary": 0.0}}, "wanted shares"),
        ({"noisy": 1.5}, "noisy is 1.5; wanted 0 to 1"),
        ({"frames": (9, 3)}, "wanted the fewest and the most"),
    ],
)
def test_wrong_mixtures(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cameras(**changes)


def test_one_mask_and_many_cameras() -> None:
    with pytest.raises(ValueError, match="wanted one of them"):
        sampler(mask=np.ones((8, 16, 16), np.float32))
