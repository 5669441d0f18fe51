"""Test pictures come in pairs: stored small ones, or made ones that equal them; bad folders are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens.data.pairs import load_pairs, read_picture
from bitlens.metrics import psnr_y
from bitlens.operators import Downsample


def write(path: Path, height: int, width: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["set5", "set14"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_made_pictures_equal_the_published_ones(data_root: Path, name: str, scale: int) -> None:
    pairs = load_pairs(name, scale, data_root)
    assert len(pairs) == int(name.removeprefix("set"))
    for pair in pairs:
        low, high = pair.read()
        levels = torch.from_numpy(np.rint(high * 255).astype(np.uint8))[None]
        made = Downsample(scale).shrink_levels(levels)[0].numpy()
        np.testing.assert_array_equal(made, np.rint(low * 255))


@pytest.mark.parametrize(("scale", "psnr"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_bicubic_baseline_of_set5(data_root: Path, scale: int, psnr: float) -> None:
    """The published PSNR of bicubic interpolation, rounded to 8 bits."""
    found = []
    for pair in load_pairs("set5", scale, data_root):
        low, high = pair.read()
        large = enlarge_bicubic(low, scale)
        found.append(psnr_y(np.rint(np.clip(large, 0, 1) * 255) / 255, high, shave=scale))
    assert np.mean(found) == pytest.approx(psnr, abs=0.02)


def enlarge_bicubic(low: np.ndarray, scale: int) -> np.ndarray:
    """imresize(low, scale): Keys's cubic with a = -1/2, mirrored borders."""
    out = low.astype(np.float64)
    for axis in (1, 2):
        size = out.shape[axis]
        centre = (np.arange(size * scale) + 0.5) / scale - 0.5
        taps = np.floor(centre)[:, None].astype(int) + np.arange(-1, 3)
        x = np.abs(centre[:, None] - taps)
        weight = np.where(x <= 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        place = np.minimum(taps % (2 * size), 2 * size - 1 - taps % (2 * size))
        out = sum(np.moveaxis(np.take(out, place[:, k], axis), axis, -1) * weight[:, k] for k in range(4))
        out = np.moveaxis(np.asarray(out), -1, axis)
    return out


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    write(tmp_path / "b10.png", 13, 16)
    write(tmp_path / "b9.jpg", 12, 12, "L")
    write(tmp_path / ".hidden.png", 8, 8)
    pairs = load_pairs(tmp_path, 3)
    assert [pair.name for pair in pairs] == ["b9", "b10"] and all(pair.low is None for pair in pairs)
    low, high = pairs[1].read()
    assert low.shape == (3, 4, 5) and high.shape == (3, 12, 15) and low.dtype == high.dtype == np.float32
    assert np.array_equal(low * 255, np.rint(low * 255))
    grey, _ = pairs[0].read()
    assert np.array_equal(grey[0], grey[2])
    assert [pair.name for pair in load_pairs(tmp_path / "b10.png", 2)] == ["b10"]


def test_stored_small_pictures(tmp_path: Path) -> None:
    write(tmp_path / "sr" / "Urban10" / "HR" / "one.png", 9, 9)
    assert load_pairs("urban10", 2, tmp_path)[0].low is None
    small = write(tmp_path / "sr" / "Urban10" / "LR_bicubic" / "X2" / "onex2.png", 4, 4)
    (pair,) = load_pairs("urban10", 2, tmp_path)
    assert pair.low == small and pair.read()[1].shape == (3, 8, 8)
    write(small, 5, 4)
    with pytest.raises(ValueError, match=r"onex2\.png has 5x4 pixels; wanted 4x4, 1/2 of .*one\.png; make it again"):
        pair.read()
    small.unlink()
    with pytest.raises(FileNotFoundError, match=r"no picture .*onex2\.png; wanted one for every picture"):
        load_pairs("urban10", 2, tmp_path)


def test_bad_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no test set 'set-5' of pictures; did you mean 'set5'\? wanted one of set5, "
    ):
        load_pairs("set-5", 2)
    with pytest.raises(FileNotFoundError, match="wanted the pictures of b100 there; copy them, or set BITLENS_DATA"):
        load_pairs("b100", 2, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no images; wanted files \.png"):
        load_pairs(tmp_path, 2)
    with pytest.raises(ValueError, match="is smaller than 4 pixels"):
        load_pairs(write(tmp_path / "dot.png", 3, 9), 4)[0].read()


def test_pictures_of_other_depths(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 65535 // 2, np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png").shape == (3, 4, 5)
    assert set(read_picture(tmp_path / "deep.png").flat) == {127}
