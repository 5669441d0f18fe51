"""The camera's front door lets good pairs in at one scale, refuses bad ones and notes what looks odd."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bitlens.data.arrays import write_npz
from bitlens.data.capture import Capture, measure, read_capture, simulate, write_capture
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene

SCENE = high_speed_scene(frames=19, height=64, width=48, oversample=1)
MASK = random_mask(8, 64, 48, 0)
GOOD = measure(SCENE, MASK)  # 2 64 48


def write(path: Path, measurement: np.ndarray, mask: np.ndarray | None = None, **more: object) -> Path:
    """A .mat as the field lays it out: time last."""
    moved = {"meas": np.moveaxis(measurement, 0, -1)}
    if mask is not None:
        moved["mask"] = np.moveaxis(mask, 0, -1)
    scipy.io.savemat(path, moved | more)
    return path


def has_warning(capture: Capture) -> bool:
    return any(note.startswith("warning:") for note in capture.notes)


def test_measure_is_the_plain_sum() -> None:
    assert GOOD.shape == (2, 64, 48) and GOOD.dtype == np.float32
    np.testing.assert_allclose(GOOD[1], (SCENE[8:16] * MASK).sum(axis=0), atol=1e-5)
    capture = simulate(SCENE, MASK)
    assert capture.notes == ("the last 3 of 19 frames were dropped: 8 frames make one measurement",)
    np.testing.assert_array_equal(capture.reference, SCENE[:16])
    assert simulate(SCENE[:16], MASK).notes == ()
    np.testing.assert_array_equal(measure(SCENE, MASK[:, :32, :32], crop=(4, 8, 32, 32)), GOOD_CROPPED)


GOOD_CROPPED = measure(np.ascontiguousarray(SCENE[:, 4:36, 8:40]), np.ascontiguousarray(MASK[:, :32, :32]))


def test_noise_is_seeded() -> None:
    noisy = measure(SCENE, MASK, noise=0.1, generator=5)
    np.testing.assert_array_equal(noisy, measure(SCENE, MASK, noise=0.1, generator=5))
    assert abs(float((noisy - GOOD).std()) - 0.1) < 0.01


@pytest.mark.parametrize(
    ("video", "named", "match"),
    [
        (SCENE[:, :32], {}, r"video is 32x48, the mask 64x48; wanted one size; cut the video with crop="),
        (SCENE[:5], {}, r"video has 5 frame\(s\), the mask 8; wanted at least 8 frames; give"),
        (np.stack([SCENE] * 3, axis=-1), {}, r"shape \(19, 64, 48, 3\); wanted grey \(t, h, w\); read it"),
        (SCENE * 2, {}, r"spans \[.*\]; wanted \[0, 1\]; divide"),
        (SCENE, {"noise": 0.1}, "noise=0.1, generator=None; wanted noise >= 0 with a generator; pass"),
        (SCENE, {"crop": (10, 0, 64, 48)}, "does not lie inside the video of size 64x48; wanted .*; change"),
    ],
)
def test_measure_refuses(video: np.ndarray, named: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        measure(video, MASK, **named)


def test_bitlens_capture_comes_back(tmp_path: Path) -> None:
    write_capture(tmp_path / "a.npz", simulate(SCENE, MASK))
    capture = read_capture(tmp_path / "a.npz")
    np.testing.assert_array_equal(capture.measurement, GOOD)
    np.testing.assert_array_equal(capture.mask, MASK)
    np.testing.assert_array_equal(capture.reference, SCENE[:16])
    assert (capture.gain, capture.gain_source) == (1.0, "file") and not has_warning(capture)
    assert 0.3 < capture.exposure < 0.6


def test_every_kind_of_file(tmp_path: Path) -> None:
    """The same counts in every container give the same capture."""
    counts = np.round(GOOD * 500).astype(np.uint16)
    np.save(tmp_path / "mask.npy", MASK)
    write(tmp_path / "a.mat", counts)
    np.savez(tmp_path / "a.npz", measurement=counts)
    np.save(tmp_path / "a.npy", counts)
    pages = [Image.fromarray(page) for page in counts]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "pages").mkdir()
    for index, page in enumerate(pages):
        page.save(tmp_path / "pages" / f"{index}.png")
    for name in ("a.mat", "a.npz", "a.npy", "a.tif", "pages"):
        capture = read_capture(tmp_path / name, tmp_path / "mask.npy", gain=500)
        np.testing.assert_allclose(capture.measurement, GOOD, atol=0.002)
        assert capture.gain_source == "given" and capture.measurement.dtype == np.float32
    pages[1].save(tmp_path / "a.png")
    one = read_capture(tmp_path / "a.png", tmp_path / "mask.npy", gain=500)
    np.testing.assert_allclose(one.measurement, GOOD[1:], atol=0.002)
    write(tmp_path / "one.mat", counts[:1])  # savemat keeps (64, 48, 1)
    scipy.io.savemat(tmp_path / "flat.mat", {"meas": counts[0]})
    for name in ("one.mat", "flat.mat"):
        assert read_capture(tmp_path / name, tmp_path / "mask.npy", gain=500).measurement.shape == (1, 64, 48)


def test_exposure_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", GOOD * 300, MASK)
    capture = read_capture(path)
    assert capture.gain_source == "estimated" and capture.exposure == pytest.approx(0.4, rel=1e-5)
    assert capture.gain == pytest.approx((GOOD * 300).mean() / (MASK.sum(0).mean() * 0.4), rel=1e-5)
    assert any("exposure: mean(y)=" in note and "estimated" in note for note in capture.notes)
    true = float(GOOD.mean() / MASK.sum(0).mean())
    assert read_capture(path, brightness=true).gain == pytest.approx(300, rel=1e-4)
    dim = read_capture(path, gain=10)
    assert dim.gain == 10 and any("times white; the gain is too small" in note for note in dim.notes)
    with pytest.raises(ValueError, match=r"a gain of 1e-40 came \(given\); wanted one that float32 can hold.*; check"):
        read_capture(path, gain=1e-40)
    write_npz(tmp_path / "b.npz", measurement=GOOD * 300, mask=MASK, gain=300.0, axes="thw")
    stated = read_capture(tmp_path / "b.npz")
    assert (stated.gain, stated.gain_source) == (300.0, "file")
    np.testing.assert_allclose(stated.measurement, GOOD, rtol=1e-5)


def test_reference_sets_the_gain(tmp_path: Path) -> None:
    levels = np.round(SCENE * 255).astype(np.uint8)
    counts = (levels[:8] * MASK).sum(axis=0)[None].astype(np.uint16)
    path = write(tmp_path / "a.mat", counts, MASK, orig=np.moveaxis(levels[:8], 0, -1))
    capture = read_capture(path)
    assert capture.gain == pytest.approx(255, rel=1e-5) and capture.gain_source == "file"
    assert capture.reference is not None and capture.reference.shape == (8, 64, 48)
    wrong = write(tmp_path / "b.mat", counts, MASK, orig=np.moveaxis(levels[8:16, ::-1], 0, -1))
    capture = read_capture(wrong)
    assert capture.reference is None and capture.gain_source == "estimated"
    assert any("does not explain the measurement" in note for note in capture.notes)


def test_crop_is_applied_to_both(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", GOOD, MASK)
    capture = read_capture(path, crop=(8, 4, 40, 32), gain=1.0)
    np.testing.assert_array_equal(capture.measurement, GOOD[:, 8:48, 4:36])
    np.testing.assert_array_equal(capture.mask, MASK[:, 8:48, 4:36])
    np.save(tmp_path / "wide.npy", np.pad(MASK, ((0, 0), (0, 6), (0, 0)), mode="wrap"))
    bare = write(tmp_path / "b.mat", GOOD)
    with pytest.raises(
        ValueError, match=r"is 64x48, the mask .* is 70x48; wanted one size; pass the right mask, or crop="
    ):
        read_capture(bare, tmp_path / "wide.npy")
    assert read_capture(bare, tmp_path / "wide.npy", crop=(0, 0, 64, 48)).mask.shape == MASK.shape
    with pytest.raises(
        ValueError, match=r"does not lie inside the measurement of size 64x48; wanted .*; change the crop"
    ):
        read_capture(bare, tmp_path / "wide.npy", crop=(0, 0, 70, 48))


def changed(how: str) -> np.ndarray:
    """A good measurement with one thing wrong."""
    y = GOOD.astype(np.float64)
    if how == "nan":
        y[0, 3, 3] = np.nan
    elif how == "infinite":
        y[1, 3, 3] = np.inf
    elif how == "negative":
        y = y - 2
    elif how == "zero":
        y[1] = 0
    elif how == "constant":
        y[0] = 7
    elif how == "saturated":
        y = np.minimum(y, np.quantile(y, 0.9))
    elif how == "8-bit saturated":
        return np.minimum(y * 80, 255).astype(np.uint8)
    elif how == "empty":
        return y[:, :0]
    elif how == "complex":
        return y.astype(complex)
    elif how == "text":
        return np.full((2, 64, 48), "light")
    elif how == "logical":
        return y > 2
    elif how == "four":
        return y[None]
    elif how == "one":
        return y[0, 0]
    return y


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("nan", r"1 pixel\(s\) of the measurement are NaN or infinite, or beyond 1e30; wanted finite numbers"),
        ("infinite", r"1 pixel\(s\) of the measurement are NaN or infinite, or beyond 1e30; wanted finite numbers"),
        ("negative", r"goes down to -2 .* are negative\); wanted light, >= 0 but for noise; check"),
        ("zero", "measurement 1 is all zero; wanted a picture; check"),
        ("constant", "measurement 0 is 7 everywhere; wanted a picture; check"),
        ("saturated", "sit at the maximum .*: saturated; wanted at most 1%; shorten"),
        ("8-bit saturated", "sit at the maximum 255: saturated; wanted at most 1%; shorten"),
        ("empty", r"'array' has shape \(2, 0, 48\); wanted"),
        ("complex", "dtype complex128; wanted real numbers .*; export"),
        ("text", "dtype <U5; wanted real numbers .*; export"),
        ("logical", "dtype bool; wanted real numbers .*; export"),
        ("four", r"measurement 'array' has 4 dimensions \(1, 2, 64, 48\); wanted \(h, w\), or several"),
        ("one", r"measurement 'array' has 1 dimensions \(48,\); wanted \(h, w\), or several"),
    ],
)
def test_bad_measurements_are_refused(tmp_path: Path, how: str, match: str) -> None:
    np.save(tmp_path / "mask.npy", MASK)
    np.save(tmp_path / "a.npy", changed(how))
    with pytest.raises(ValueError, match=match):
        read_capture(tmp_path / "a.npy", tmp_path / "mask.npy")


def test_objects_are_refused(tmp_path: Path) -> None:
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = GOOD[0], GOOD[1]
    scipy.io.savemat(tmp_path / "a.mat", {"meas": cell})
    with pytest.raises(ValueError, match=r"variable 'meas' is a cell, struct or object array; wanted"):
        read_capture(tmp_path / "a.mat")
    np.savez(tmp_path / "a.npz", measurement=np.array([{}], object))
    with pytest.raises(ValueError, match=r"entry 'measurement' is a pickled object; wanted"):
        read_capture(tmp_path / "a.npz")


def test_files_that_are_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*; wanted a measurement; check"):
        read_capture(tmp_path / "absent.mat")
    path = write(tmp_path / "a.mat", GOOD)
    with pytest.raises(
        ValueError, match=r"the measurement of size 64x48 needs the camera's calibrated mask, and none came"
    ):
        read_capture(path)
    Image.new("RGB", (48, 64), (1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"is colour .*; wanted the raw grey measurement"):
        read_capture(tmp_path / "a.png", path)
    with pytest.raises(ValueError, match=r"suffix '.jpg'; wanted raw values in .*; convert it without loss"):
        Image.new("L", (48, 64)).save(tmp_path / "a.jpg")
        read_capture(tmp_path / "a.jpg", path)
    for named in ({"gain": 0}, {"gain": float("nan")}, {"brightness": 0}, {"brightness": 1.5}):
        with pytest.raises(ValueError, match=r"(gain|brightness)=.*; wanted .*; pass"):
            read_capture(path, **named)
    write_npz(tmp_path / "b.npz", measurement=GOOD, mask=MASK, gain=-1.0, axes="thw")
    with pytest.raises(ValueError, match=r"'gain' is -1.0; wanted one positive number; correct"):
        read_capture(tmp_path / "b.npz")


def test_saturation_can_be_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", changed("saturated"), MASK)
    capture = read_capture(path, allow_saturated=True)
    assert any(note.startswith("saturated: ") for note in capture.notes)


def test_small_negatives_are_kept(tmp_path: Path) -> None:
    y = GOOD.copy()
    y[0, 0, :3] = -0.01
    capture = read_capture(write(tmp_path / "a.mat", y, MASK), gain=1)
    assert any(note.startswith("negative: ") for note in capture.notes)
    assert capture.measurement.min() == np.float32(-0.01)


@pytest.mark.parametrize(
    ("turn", "named"),
    [
        (lambda mask: mask[:, ::-1], "flipped upside down would match"),
        (lambda mask: mask[:, :, ::-1], "flipped left to right would match"),
        (lambda mask: mask[:, ::-1, ::-1], "rotated by 180 degrees would match"),
        (lambda mask: np.roll(mask, (-5, 3), (1, 2)), "shifted by 5 rows and -3 columns would match"),
        (lambda mask: random_mask(8, 64, 48, 99), "check that the mask is this camera's"),
    ],
)
def test_wrong_mask_is_noted(tmp_path: Path, turn, named: str) -> None:
    assert not has_warning(read_capture(write(tmp_path / "good.mat", GOOD, MASK)))
    capture = read_capture(write(tmp_path / "a.mat", GOOD, turn(MASK)))
    note = next(note for note in capture.notes if "do not belong together" in note)
    assert named in note and note.startswith("warning:")


@pytest.mark.parametrize("kept", [6, 7])
def test_missing_frames_of_a_mask_are_noted(tmp_path: Path, kept: int) -> None:
    mask = random_mask(8, 96, 96, 5)
    scene = np.random.default_rng(5).uniform(0.2, 0.9, (8, 12, 12)).repeat(8, 1).repeat(8, 2)
    picture = (mask * scene).sum(0, dtype=np.float32)[None]
    noted = [
        any(
            "frames of the mask are missing" in note
            for note in read_capture(write(tmp_path / "a.mat", picture, some)).notes
        )
        for some in (mask, mask[:kept])
    ]
    assert noted == [False, True]


def test_light_behind_closed_pixels_is_noted(tmp_path: Path) -> None:
    mask = random_mask(8, 64, 48, 7)
    assert (mask.max(axis=0) == 0).any()
    capture = read_capture(write(tmp_path / "a.mat", GOOD, mask))
    assert any("pixels that the mask never opens hold" in note for note in capture.notes)
