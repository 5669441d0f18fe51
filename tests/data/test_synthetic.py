"""Made scenes are seeded, smooth in motion, in [0, 1], and move."""

import numpy as np
import pytest
import torch

from bitlens.data.synthetic import high_speed_scene, moving_layers, poster

PHOTOS = [np.random.default_rng(index).random((40 + 9 * index, 60)).astype(np.float32) for index in range(3)]


@pytest.mark.parametrize("size", [(8, 64, 64), (1, 48, 80), (40, 32, 32)])
def test_scene(size: tuple[int, int, int]) -> None:
    video = high_speed_scene(1, *size)
    assert video.shape == size and video.dtype == np.float32
    assert video.min() >= 0 and video.max() <= 1 and video.std() > 0.1
    np.testing.assert_array_equal(video, high_speed_scene(1, *size))
    assert (video != high_speed_scene(2, *size)).any()


def test_scene_moves_smoothly() -> None:
    video = high_speed_scene(frames=8)
    steps = np.abs(np.diff(video, axis=0)).mean(axis=(1, 2))
    assert steps.min() > 0.01 and steps.max() < 2 * steps.min()
    np.testing.assert_array_equal(video[0], high_speed_scene(frames=1)[0])  # longer videos go on


def test_scene_refuses() -> None:
    with pytest.raises(ValueError, match=r"frames=0, .*; wanted at least 1 frame of 32x32"):
        high_speed_scene(frames=0)


@pytest.mark.parametrize("count", [1, 3])
def test_moving_layers(count: int) -> None:
    video = moving_layers(PHOTOS[:count], 6, 48, 56, torch.Generator().manual_seed(2))
    assert video.shape == (6, 48, 56) and video.dtype == np.float32
    assert video.min() >= 0 and video.max() <= 1
    np.testing.assert_array_equal(video, moving_layers(PHOTOS[:count], 6, 48, 56, 2))
    assert (np.abs(np.diff(video, axis=0)).mean(axis=(1, 2)) > 1e-3).all()
    assert moving_layers(PHOTOS[:count], 1, 48, 56, 2).shape == (1, 48, 56)


def test_still_layers_stand_still() -> None:
    video = moving_layers(PHOTOS, 4, 32, 32, 0, speed=0)
    assert np.abs(np.diff(video, axis=0)).max() < 1e-4


@pytest.mark.parametrize(
    ("images", "match"),
    [
        ([], "no images; wanted at least one"),
        ([np.zeros((4, 4, 3), np.float32)], r"image 0 is \(4, 4, 3\) float32; wanted grey \(h, w\) floats"),
        ([np.zeros((4, 4), np.uint8)], r"image 0 is \(4, 4\) uint8; wanted grey"),
        ([np.full((4, 4), np.nan)], "image 0 .*; wanted grey"),
    ],
)
def test_moving_layers_refuses(images: list[np.ndarray], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        moving_layers(images, 4, 16, 16, 0)


def test_posters() -> None:
    """Two greys with sharp edges between them, another sheet for another seed."""
    sheet = poster(3)
    assert sheet.shape == (160, 160) and sheet.dtype == np.float32 and 0 <= sheet.min() < sheet.max() <= 1
    np.testing.assert_array_equal(sheet, poster(3))
    assert (sheet != poster(4)).any()
    for seed in range(20):
        made = poster(seed, 60, 90)
        assert made.shape == (60, 90) and made.max() - made.min() > 0.3
