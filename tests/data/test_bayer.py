"""A Bayer mosaic is four grey pictures, and becomes colours again; one that is read as grey is recognised."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.cli import main
from bitlens.data.arrays import read_arrays, write_npz
from bitlens.data.bayer import PATTERNS, demosaic, join, pattern_at, split
from bitlens.data.masks import random_mask, shifted_mask
from bitlens.data.matching import mosaic_note
from bitlens.data.synthetic import high_speed_scene
from bitlens.operators import VideoSCI

LEFT, RIGHT, DISC = (0.9, 0.1, 0.1), (0.1, 0.15, 0.9), (0.1, 0.9, 0.15)


def colourful(frames: int = 8, height: int = 64, width: int = 64) -> np.ndarray:
    """(t, h, w, 3): red on the left, blue on the right, a green disc that moves over both."""
    rows, columns = np.mgrid[:height, :width]
    video = np.where((columns < width // 2)[None, ..., None], LEFT, RIGHT).repeat(frames, 0).astype(np.float32)
    for index, frame in enumerate(video):
        frame[(rows - 32) ** 2 + (columns - 16 - 4 * index) ** 2 < 100] = DISC
    return video


def measured(video: np.ndarray, pattern: str, mask: np.ndarray) -> np.ndarray:
    """(h, w), by the operator."""
    colours = torch.from_numpy(np.moveaxis(video, -1, 0)[None])  # 1 3 t h w
    return VideoSCI(torch.from_numpy(mask), pattern.lower()).A(colours)[0].numpy()


def test_join_is_the_inverse_of_split() -> None:
    mosaic = np.random.default_rng(0).random((3, 6, 10), np.float32)
    np.testing.assert_array_equal(join(split(mosaic)), mosaic)
    assert [part[0, 0, 0] for part in split(mosaic)] == [
        mosaic[0, 0, 0],
        mosaic[0, 0, 1],
        mosaic[0, 1, 0],
        mosaic[0, 1, 1],
    ]
    with pytest.raises(ValueError, match=r"a mosaic of 5x6 pixels; wanted an even .*; cut it with crop=.*4, 6"):
        split(np.zeros((5, 6)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_demosaic(pattern: str) -> None:
    """Even colours come back exactly, known samples stay, and smooth pictures come back closely."""
    rows, columns = np.mgrid[:32, :40] / 40
    smooth = np.stack([0.5 + 0.3 * np.sin(5 * rows + phase + 3 * columns) for phase in (0, 0.3, 0.6)], -1)
    for colours, error in ((np.full((32, 40, 3), (0.7, 0.2, 0.4)), 1e-6), (smooth, 0.005)):
        letters = np.array([["RGB".index(pattern[2 * (r % 2) + c % 2]) for c in range(40)] for r in range(32)])
        mosaic = np.take_along_axis(colours, letters[..., None], -1)[..., 0].astype(np.float32)
        found = demosaic(mosaic[None], pattern)[0]
        assert np.abs(found - colours)[2:-2, 2:-2].max() < error
        np.testing.assert_array_equal(np.take_along_axis(found, letters[..., None], -1)[..., 0], mosaic)


def test_the_pattern_of_a_cut() -> None:
    assert pattern_at("rggb") == "RGGB" == pattern_at("RGGB", 2, 4)
    assert [pattern_at("RGGB", *corner) for corner in ((0, 1), (1, 0), (1, 1))] == ["GRBG", "GBRG", "BGGR"]
    with pytest.raises(ValueError, match=r"the mosaic is 'RGBG'; wanted one of RGGB, BGGR, GRBG, GBRG, .*; the camera"):
        pattern_at("RGBG")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reconstruct_in_colour(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = random_mask(8, 64, 64, 0)
    video = colourful()
    write_npz(tmp_path / "y.npz", measurement=255 * measured(video, pattern, mask), mask=mask, gain=255.0, axes="thw")
    flags = ["--model", "gap-tv", "--out", f"{tmp_path}/v.npz"]
    assert main(["reconstruct", f"{tmp_path}/y.npz", *flags, "--bayer", pattern]) == 0
    assert "warning" not in capsys.readouterr().out
    found = read_arrays(tmp_path / "v.npz")["video"]
    assert found.shape == (8, 64, 64, 3)
    np.testing.assert_allclose(found[:, 4:20, 4:24].mean((0, 1, 2)), LEFT, atol=0.02)
    np.testing.assert_allclose(found[:, 44:60, 40:60].mean((0, 1, 2)), RIGHT, atol=0.02)
    assert np.square(found - video).mean() < 0.01
    assert main(["reconstruct", f"{tmp_path}/y.npz", *flags, "--bayer", pattern, "--crop", "1,3,60,56"]) == 0
    np.testing.assert_allclose(read_arrays(tmp_path / "v.npz")["video"][:, 4:20, 4:20].mean((0, 1, 2)), LEFT, atol=0.02)


def test_a_mosaic_read_as_grey_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = random_mask(8, 64, 64, 0)
    for pattern, guess in (("RGGB", "RGGB or BGGR"), ("GRBG", "GRBG or GBRG")):
        write_npz(tmp_path / "y.npz", measurement=measured(colourful(), pattern, mask), mask=mask, gain=1.0, axes="thw")
        assert main(["reconstruct", f"{tmp_path}/y.npz", "--model", "gap-tv", "--out", f"{tmp_path}/v.npz"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "warning: neighbouring pixels differ like a colour mosaic" in shown
        assert "read as grey" in shown and f"--bayer ... ({guess}" in shown


def test_grey_captures_are_no_mosaics() -> None:
    scene = high_speed_scene(frames=16, height=96, width=96, oversample=1)
    for frames in (4, 8, 16):
        for mask in (random_mask(frames, 96, 96, 0), shifted_mask(frames, 96, 96, 0)):
            y, light = (scene[:frames] * mask).sum(axis=0), mask.sum(axis=0)
            assert mosaic_note(y, light) is None
            assert mosaic_note(y * np.where(np.arange(96) % 2, 1, 1.3)[:, None], light) is None  # rows alternate
            coloured = y * np.where(np.add.outer(np.arange(96), np.arange(96)) % 2, 1, 0.6)
            assert mosaic_note(coloured, light) is not None


def test_bad_mosaics_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = random_mask(4, 33, 32, 0)
    y = np.random.default_rng(0).random((33, 32)) * mask.sum(axis=0)
    write_npz(tmp_path / "y.npz", measurement=y, mask=mask, gain=1.0, axes="thw")
    for pattern, said in (("RGBG", "wanted one of RGGB"), ("RGGB", "cut it with --crop top,left,32,32")):
        command = ["reconstruct", f"{tmp_path}/y.npz", "--model", "gap-tv", "--out", f"{tmp_path}/v.npz"]
        assert main([*command, "--bayer", pattern]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "v.npz").exists()
