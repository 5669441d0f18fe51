"""Made masks have the properties that they promise; files that cannot be a camera's mask are refused."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from bitlens.data.arrays import write_npz
from bitlens.data.masks import check_mask, random_mask, read_mask, real_valued_mask, scale_mask, shifted_mask
from bitlens.data.video import write_video

MASK = random_mask(8, 24, 20, 0)


def test_random_mask() -> None:
    mask = random_mask(8, 64, 64, torch.Generator().manual_seed(1), density=0.3)
    assert mask.shape == (8, 64, 64) and mask.dtype == np.float32 and set(np.unique(mask)) == {0.0, 1.0}
    assert abs(mask.mean() - 0.3) < 0.02
    np.testing.assert_array_equal(mask, random_mask(8, 64, 64, 1, density=0.3))
    assert (mask != random_mask(8, 64, 64, 2, density=0.3)).any()
    with pytest.raises(ValueError, match=r"density=1.0; wanted sizes of at least 1 and a density between 0 and 1"):
        random_mask(8, 4, 4, 0, density=1.0)


@pytest.mark.parametrize("step", [1, 2])
def test_shifted_mask(step: int) -> None:
    mask = shifted_mask(6, 32, 16, 0, step=step)
    for before, after in pairwise(mask):
        np.testing.assert_array_equal(after[step:], before[:-step])
    check_mask(mask)
    with pytest.raises(ValueError, match=r"step=0; wanted at least 1"):
        shifted_mask(6, 32, 16, 0, step=0)


def test_real_valued_mask() -> None:
    mask = real_valued_mask(MASK, 3, lowest_gain=0.7, leak=0.04)
    assert mask.dtype == np.float32 and mask.min() >= 0.7 * 0.0399 and mask.max() <= 1
    assert (mask[MASK == 1] > 0.69).all() and (mask[MASK == 0] < 0.05).all()
    np.testing.assert_allclose(real_valued_mask(MASK, 3, lowest_gain=1.0, leak=0.0), MASK)
    with pytest.raises(ValueError, match=r"lowest_gain=0, leak=0.05; wanted"):
        real_valued_mask(MASK, 3, lowest_gain=0)


def test_readers(tmp_path: Path) -> None:
    field = np.moveaxis(MASK, 0, -1)  # h w t
    scipy.io.savemat(tmp_path / "a.mat", {"mask": (field * 115).astype(np.uint8)})
    np.savez(tmp_path / "a.npz", mask=field.astype(np.uint8))
    write_npz(tmp_path / "b.npz", mask=MASK, axes="thw")
    np.save(tmp_path / "a.npy", MASK)
    write_video(tmp_path / "a.tif", MASK)
    write_video(tmp_path / "pages", MASK)
    scipy.io.savemat(tmp_path / "c.mat", {"Phi": field})
    for name in ("a.mat", "a.npz", "b.npz", "a.npy", "a.tif", "pages"):
        found = read_mask(tmp_path / name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, MASK)
    np.testing.assert_array_equal(read_mask(tmp_path / "c.mat", key="Phi", axes="hwt"), MASK)
    with pytest.raises(ValueError, match=r"suffix '.bmp'; wanted a mask in .mat"):
        read_mask(tmp_path / "a.bmp")


def test_scale() -> None:
    assert scale_mask(np.array([[[0, 57, 115]]], np.uint8)).max() == 1
    np.testing.assert_allclose(scale_mask(np.array([[[0.0, 127.5, 255.0]]])), [[[0, 0.5, 1]]])
    np.testing.assert_allclose(scale_mask(np.array([[[0.0, 0.8]]])), [[[0, 0.8]]])  # transmission is kept


def bad(change: str) -> np.ndarray:
    mask = MASK.copy()
    if change == "nan":
        mask[0, 0, 0] = np.nan
    elif change == "infinite":
        mask[0, 0, 0] = np.inf
    elif change == "negative":
        mask[0, 0, 0] = -0.5
    elif change == "dark frame":
        mask[3] = 0
    elif change == "constant":
        mask[:] = 1
    elif change == "closed":
        mask[:, :10] = 0
    elif change == "other byte order":
        mask = mask.astype(np.float32).byteswap()
    return {"empty": mask[:, :0], "one frame": mask[:1], "text": np.full((2, 4, 4), "x")}.get(change, mask)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("nan", "holds NaN or infinite values; wanted finite numbers; repair"),
        ("infinite", "holds NaN or infinite values; wanted finite numbers; repair"),
        ("negative", "goes down to -0.5; wanted values >= 0; subtract"),
        ("empty", r"shape \(8, 0, 20\); wanted"),
        ("dark frame", "frame 3 is all zero; wanted light in every frame; leave it out"),
        ("constant", "is 1 everywhere; wanted a coded mask that differs .*; give"),
        ("closed", "of the pixels are closed in all 8 frames; wanted at most 1.8%; crop"),
        ("other byte order", r"goes up to 4\.6.*e-41; wanted values of about 1.*; check the byte order"),
        ("one frame", "has 1 frame; wanted one mask per frame, at least 2; give"),
        ("text", "dtype <U1; wanted real numbers; save"),
    ],
)
def test_refusals(tmp_path: Path, change: str, match: str) -> None:
    np.save(tmp_path / "a.npy", bad(change))
    with pytest.raises(ValueError, match=match):
        read_mask(tmp_path / "a.npy")


def test_closed_pixels_can_be_allowed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", bad("closed"))
    assert read_mask(tmp_path / "a.npy", max_closed=0.5).shape == MASK.shape
