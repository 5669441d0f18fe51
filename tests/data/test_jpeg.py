"""What a JPEG says of its image: steps turned as the image is, bounds that are kept, in bands as in one piece."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from bitlens.data import jpeg
from bitlens.data.images import Picture, load_picture

STEPS = (3 + np.add.outer(5 * np.arange(8), np.arange(8))).ravel().tolist()
"""Other steps down than across."""


def photograph(height: int, width: int) -> np.ndarray:
    """RGB between 50 and 210, with edges."""
    random = np.random.default_rng(3)
    small = random.integers(50, 210, (height // 5 + 1, width // 5 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR)).clip(50, 210)


def saved(path: Path, levels: np.ndarray, orientation: int = 1, **options: Any) -> Picture:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(levels).save(path, exif=exif, **options)
    return load_picture(path)


def planes(levels: np.ndarray) -> np.ndarray:
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


def codes(image: np.ndarray, about: jpeg.Jpeg) -> np.ndarray:
    """Coefficients of whole blocks of luma (c, h, w) in levels, in steps."""
    top, left = about.first
    down, across = (image.shape[1] - top) // 8 * 8, (image.shape[2] - left) // 8 * 8
    plane = jpeg.luma(image[:, top : top + down, left : left + across].astype(np.float32))
    return dctn(jpeg.blocks(plane - 128), axes=(2, 3), norm="ortho") / about.steps


@pytest.mark.parametrize("orientation", range(1, 9))
def test_steps_are_turned_with_the_image(tmp_path: Path, orientation: int) -> None:
    """Coefficients of what was decoded are whole numbers of steps, but for the rounding of its levels."""
    picture = saved(tmp_path / "a.jpg", photograph(61, 83), orientation, qtables=[STEPS, STEPS], subsampling=2)
    assert picture.jpeg is not None and picture.levels.shape[:2] == ((61, 83) if orientation < 5 else (83, 61))
    found = codes(planes(picture.levels), picture.jpeg)
    assert found.shape[:2] == ((7, 10) if orientation < 5 else (10, 7))
    assert float(np.abs(found - found.round()).mean()) < 0.03 and np.abs(found.round()).max() > 3


@pytest.mark.parametrize("grey", [False, True])
def test_a_restored_image_is_held_and_no_farther_from_the_truth(
    tmp_path: Path, grey: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = photograph(70, 90)[..., 0] if grey else photograph(70, 90)
    picture = saved(tmp_path / "a.jpg", truth, quality=60)
    assert picture.jpeg is not None
    given, truth = planes(picture.levels), np.broadcast_to(planes(truth) / np.float32(255), (3, 70, 90))
    noise = np.random.default_rng(0).normal(0, 0.06, truth.shape).astype(np.float32)
    restored = (truth + (noise[:1] if grey else noise)).astype(np.float32)
    errors = []
    for bound in (0.5, jpeg.NARROW):
        monkeypatch.setattr(jpeg, "NARROW", bound)
        held = np.concatenate(list(picture.jpeg.hold([restored], given)), 1)
        wanted = codes(given, picture.jpeg).round()
        assert np.abs(codes(255 * held if not grey else 255 * held[:1], picture.jpeg) - wanted).max() < bound + 1e-3
        np.testing.assert_allclose(held[0] - held[2], restored[0] - restored[2], atol=1e-5)  # colours as they were
        np.testing.assert_array_equal(held[:, 64:], restored[:, 64:])  # blocks that the border cuts
        np.testing.assert_array_equal(held[..., 88:], restored[..., 88:])
        errors.append(float(np.square(jpeg.luma(held - truth)).mean()))
    assert max(errors) < 0.85 * float(np.square(jpeg.luma(restored - truth)).mean())


@pytest.mark.parametrize("cut", [[1, 2, 3, 64], [8, 8, 54], [70], [69, 1], [5] * 14])
@pytest.mark.parametrize("orientation", [1, 3])
def test_bands_give_what_one_piece_gives(tmp_path: Path, cut: list[int], orientation: int) -> None:
    picture = saved(tmp_path / "a.jpg", photograph(70, 90), orientation, quality=30)
    assert picture.jpeg is not None and picture.jpeg.first == ((0, 0) if orientation == 1 else (6, 2))
    given = planes(picture.levels)
    restored = np.random.default_rng(1).random((3, 70, 90), np.float32)
    wanted = np.concatenate(list(picture.jpeg.hold([restored], given)), 1)
    found = list(picture.jpeg.hold(np.split(restored, np.cumsum(cut)[:-1], axis=1), given))
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, atol=1e-6)
    assert np.abs(wanted - restored).max() > 0.1


def test_images_smaller_than_a_block_are_left(tmp_path: Path) -> None:
    picture = saved(tmp_path / "a.jpg", photograph(7, 30), quality=30)
    assert picture.jpeg is not None
    image = np.full((3, 7, 30), 0.5, np.float32)
    np.testing.assert_array_equal(np.concatenate(list(picture.jpeg.hold([image], planes(picture.levels))), 1), image)


def test_files_that_do_not_say(tmp_path: Path) -> None:
    levels = photograph(16, 16)
    assert saved(tmp_path / "a.png", levels).jpeg is None
    assert saved(tmp_path / "rgb.jpg", levels, keep_rgb=True).jpeg is None
    Image.fromarray(levels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert load_picture(tmp_path / "cmyk.jpg").jpeg is None
    assert saved(tmp_path / "full.jpg", levels, subsampling=0).jpeg is not None
