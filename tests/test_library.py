"""The functions under the verbs: what they take and give, on files and on arrays, without a command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bitlens
from bitlens.data.capture import simulate, write_capture
from bitlens.data.images import read_image
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import read_video
from bitlens.inference.videos import score
from bitlens.networks.dun import DUN
from bitlens.networks.pan import PAN

FRAMES, SIZE = 4, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture with its truth, a network for video, one for images, and an image."""
    folder = tmp_path_factory.mktemp("library")
    scene = high_speed_scene(0, 2 * FRAMES, SIZE, SIZE)
    write_capture(folder / "y.npz", simulate(scene, random_mask(FRAMES, SIZE, SIZE, 0)))
    torch.manual_seed(0)
    bitlens.save(DUN(1, (4, 4, 4), (1, 1, 1), 2), folder / "video.safetensors")
    bitlens.save(PAN(2, 8, 8, 1), folder / "large.safetensors")
    Image.fromarray((255 * scene[:3].transpose(1, 2, 0)).astype(np.uint8)).save(folder / "image.png")
    return folder


def test_a_file_and_its_arrays_give_one_video(folder: Path) -> None:
    said: list[str] = []
    of_file = bitlens.reconstruct(folder / "y.npz", model=folder / "video.safetensors", say=said.append)
    assert of_file.video is not None and of_file.video.shape == (2 * FRAMES, SIZE, SIZE)
    assert of_file.size == (FRAMES, SIZE, SIZE) and len(of_file.seconds_per_measurement) == 2
    assert of_file.psnr is not None and of_file.psnr > 10
    assert said == [*of_file.notes, f"engine: {of_file.engine}"]

    stored = np.load(folder / "y.npz")
    started = bitlens.start(folder / "video.safetensors")
    of_arrays = bitlens.reconstruct(stored["measurement"], stored["mask"], model=started, gain=1.0)
    assert of_arrays.video is not None and of_arrays.psnr is None and of_arrays.gain_source == "given"
    np.testing.assert_allclose(of_arrays.video, of_file.video, atol=1e-6)
    one = bitlens.reconstruct(stored["measurement"][1], stored["mask"], model=started, gain=1.0)
    assert one.video is not None
    np.testing.assert_allclose(one.video, of_file.video[FRAMES:], atol=1e-6)

    written = bitlens.reconstruct(folder / "y.npz", model=started, out=folder / "video.npz")
    assert written.video is None and written.frames == 2 * FRAMES
    np.testing.assert_allclose(read_video(folder / "video.npz"), np.clip(of_file.video, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("measurement", "mask", "message"),
    [
        (np.ones((SIZE,)), np.ones((FRAMES, SIZE, SIZE)), "measurements .32,. of float64 came; wanted real numbers"),
        (np.ones((SIZE, SIZE), complex), np.ones((FRAMES, SIZE, SIZE)), "of complex128 came; wanted real numbers"),
        (np.ones((SIZE, SIZE)), np.ones((SIZE, SIZE)), "a mask .32, 32. came; wanted .t, h, w."),
        (np.ones((SIZE, SIZE)), np.ones((FRAMES, SIZE, 20)), "is 32x32, the mask that came is 32x20; wanted one size"),
        (np.ones((SIZE, SIZE)), None, "the measurement of size 32x32 needs the camera's calibrated mask"),
        (np.full((SIZE, SIZE), np.nan), np.ones((FRAMES, SIZE, SIZE)), "the measurement"),
    ],
)
def test_arrays_that_are_no_capture_are_refused(measurement: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bitlens.reconstruct(measurement, mask, model="gap-tv")


def test_an_image_is_enlarged_as_file_and_as_array(folder: Path) -> None:
    levels = read_image(folder / "image.png")
    started = bitlens.start(folder / "large.safetensors", "torch", "super-resolution")
    of_file = bitlens.upscale(folder / "image.png", folder / "large.safetensors", engine="torch")
    assert of_file.levels is not None and of_file.levels.shape == (2 * SIZE, 2 * SIZE, 3)
    assert of_file.levels.dtype == np.uint8 and of_file.frames == 0
    assert np.array_equal(np.asarray(bitlens.upscale(levels, started).levels), of_file.levels)
    grey = bitlens.upscale(levels[..., 0].astype(np.float32) / 255, started).levels
    assert grey is not None and grey.shape == (2 * SIZE, 2 * SIZE) and grey.dtype == np.uint16
    assert bitlens.upscale(levels, started, out=folder / "large.png").levels is None
    assert np.array_equal(read_image(folder / "large.png"), of_file.levels)
    for wrong in (np.zeros((2, 3, 4, 5), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), complex)):
        with pytest.raises(ValueError, match=r"wanted .h, w. or .h, w, 3. of uint8, uint16 or floats"):
            bitlens.upscale(wrong, started)


def test_a_network_for_other_things_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="large is a network for super-resolution; wanted one that reconstructs video"):
        bitlens.reconstruct(folder / "y.npz", model=folder / "large.safetensors")
    with pytest.raises(ValueError, match="video is a network for video-sci; wanted a super-resolution network"):
        bitlens.upscale(folder / "image.png", folder / "video.safetensors")
    with pytest.raises(ValueError, match=r"video for video-sci, large for super-resolution.*; wanted one kind"):
        bitlens.evaluate([folder / "video.safetensors", folder / "large.safetensors"], folder)


def test_an_evaluation_is_the_mean_over_scenes(folder: Path) -> None:
    videos = folder / "scenes"
    videos.mkdir()
    for seed in (1, 2):
        np.savez(videos / f"{seed}.npz", video=high_speed_scene(seed, FRAMES, SIZE, SIZE))
    video, gap_tv = bitlens.evaluate([folder / "video.safetensors", "gap-tv"], videos, frames=FRAMES)
    assert (video.model, gap_tv.model) == ("video", "gap-tv") and list(video.scenes) == ["1", "2"]
    assert video.average.psnr == pytest.approx(sum(score.psnr for score in video.scenes.values()) / 2)
    assert gap_tv.to_dict()["settings"]["frames_used"] == {"1": FRAMES, "2": FRAMES}
    assert bitlens.evaluate(folder / "video.safetensors", videos, frames=FRAMES, ssim=False)[0].average.ssim is None
    with pytest.raises(ValueError, match="no model; wanted at least one"):
        bitlens.evaluate([])


def test_films_are_scored_as_films_where_that_is_asked_for() -> None:
    """What is not shown is not computed: flicker and banding of large frames take long."""
    truth = np.tile(np.linspace(0.45, 0.55, 24, dtype=np.float32), (3, 16, 1))
    video = truth + np.float32(0.01) * np.arange(3, dtype=np.float32)[:, None, None]
    plain, whole = score(video, truth), score(video, truth, film=True)
    assert plain["flicker"] is None and plain["banding"] is None
    assert whole["flicker"] == pytest.approx(0.01, rel=1e-4) and whole["banding"] is not None
    assert plain["psnr"] == whole["psnr"] and plain["ssim"] == whole["ssim"]
