"""A mask made from recordings of a white scene is the camera's, and what was wrong with the recordings is said."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.cli import main
from bitlens.data.arrays import read_arrays, write_npz
from bitlens.data.calibration import calibrate
from bitlens.data.images import read_image
from bitlens.data.masks import random_mask, read_mask, shifted_mask
from bitlens.data.matching import displacement
from bitlens.data.recording import open_recording
from bitlens.data.synthetic import high_speed_scene
from bitlens.metrics import psnr_sci
from bitlens.networks.classical import GapTV

SIZE, FRAMES, WHITE = 96, 8, 2600
HOT = ((10, 20), (50, 61), (95, 3))


@dataclass(frozen=True)
class Camera:
    """A 12-bit camera: 4 electrons a count, 2 counts of read noise, dark level, vignetting, hot pixels."""

    pattern: np.ndarray
    """(t, h + 1, w), moved by half a pixel onto the sensor."""
    lamp: float = 0.0
    """How much the light fades from the first to the last position."""

    def vignetting(self) -> np.ndarray:
        rows, columns = np.mgrid[-1 : 1 : 1j * SIZE, -1 : 1 : 1j * SIZE]
        return 1 - 0.3 * (rows**2 + columns**2) / 2

    def dark_level(self) -> np.ndarray:
        level = 64 + np.random.default_rng(7).normal(0, 1, (SIZE, SIZE))
        for index, place in enumerate(HOT):
            level[place] += 400 * (index + 1)
        return level

    def mask(self, moved: float = 0.5) -> np.ndarray:
        seen = (1 - moved) * self.pattern[:, :-1] + moved * self.pattern[:, 1:]
        return seen * self.vignetting()

    def record(self, light: np.ndarray, seed: int, repeats: int = 16) -> np.ndarray:
        """Counts (n, h, w) of light in counts, each the mean of some pictures."""
        random = np.random.default_rng(seed)
        shape = (repeats, *np.broadcast_shapes(light.shape, (1, SIZE, SIZE)))
        pictures = (
            random.poisson(np.broadcast_to(4 * light, shape)) / 4 + random.normal(0, 2, shape) + self.dark_level()
        )
        return np.clip(np.round(pictures), 0, 4095).mean(axis=0)

    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """Recordings of all positions, and the dark."""
        faded = 1 - self.lamp * np.arange(FRAMES) / (FRAMES - 1)
        recordings = self.record(WHITE * self.mask() * faded[:, None, None], 1)
        return recordings, self.record(np.zeros((1, SIZE, SIZE)), 2)[0]


CAMERA = Camera(random_mask(FRAMES, SIZE + 1, SIZE, 0))


def test_the_mask_is_the_camera_s() -> None:
    """Within 1 % RMS, with its hot pixels named; reconstruction with it within 0.2 dB of that with the true mask."""
    recordings, dark = CAMERA.calibration()
    found = calibrate(recordings, dark, again=CAMERA.record(WHITE * CAMERA.mask()[:1], 3)[0])
    true = CAMERA.mask()
    assert np.sqrt(np.square(found.mask - true).mean()) < 0.01
    assert {tuple(map(int, place)) for place in found.hot} == set(HOT)
    assert found.white == pytest.approx(WHITE, rel=0.01)
    assert not any(note.startswith("warning") for note in found.notes)

    scene = high_speed_scene(frames=FRAMES, height=SIZE, width=SIZE, oversample=1)
    y = CAMERA.record(500 * (true * scene).sum(axis=0, keepdims=True), 4, repeats=1) - dark
    psnr = []
    for mask in (true.astype(np.float32), found.mask):
        data = torch.from_numpy((y / 500).astype(np.float32)), torch.from_numpy(mask)[None]
        psnr.append(psnr_sci(GapTV()(*data)[0, 0].numpy(), scene))
    assert psnr[0] > 15 and psnr[1] > psnr[0] - 0.2


def test_drift_is_named() -> None:
    recordings, dark = CAMERA.calibration()
    moved = CAMERA.record(WHITE * CAMERA.mask(moved=1.0)[:1], 3)[0]
    (drift,) = (note for note in calibrate(recordings, dark, again=moved).notes if "drift: " in note)
    assert (
        drift.startswith("warning: drift: from first to last the mask moved by -0.49 rows and")
        and "fix the mount" in drift
    )
    recordings, dark = replace(CAMERA, lamp=0.1).calibration()
    assert any(note.startswith("warning: light: position ") for note in calibrate(recordings, dark).notes)


def test_a_plate_that_slips_is_named() -> None:
    plate = Camera(shifted_mask(FRAMES, SIZE + 1, SIZE, 0))
    recordings, dark = plate.calibration()
    (steps,) = (note for note in calibrate(recordings, dark).notes if "steps: " in note)
    assert steps.startswith("steps: each position is the one before, moved by +1.0")
    for wrong in (np.delete(recordings, 3, axis=0), recordings[[0, 1, 3, 2, 4, 5, 6, 7]]):
        (steps,) = (note for note in calibrate(wrong, dark).notes if "steps: " in note)
        assert steps.startswith("warning: ") and "a position is missing, out of order, or the mask slipped" in steps


def test_uneven_light_is_divided_out() -> None:
    lamp = 1 - 0.4 * np.arange(SIZE) / SIZE
    recordings = CAMERA.record(WHITE * CAMERA.mask() * lamp, 1)
    dark, flat = CAMERA.record(np.zeros((1, SIZE, SIZE)), 2)[0], CAMERA.record(WHITE * lamp[None, None], 5)[0]
    found = calibrate(recordings, dark, flat=flat)
    assert np.sqrt(np.square(found.mask - CAMERA.mask()).mean()) < 0.015


def test_stuck_pixels_are_left_out() -> None:
    recordings, dark = CAMERA.calibration()
    recordings[:, 30, 31], dark[30, 31] = 4095, 4095
    found = calibrate(recordings, dark)
    assert not found.mask[:, 30, 31].any() and found.mask[:, 10, 20].any()
    assert any("1 of them do not follow the mask" in note for note in found.notes)


def test_displacement_to_fractions() -> None:
    pattern = np.random.default_rng(0).random((64, 72))
    for rows, columns in ((0, 0), (3, -5), (-11, 7)):
        found = displacement(pattern, np.roll(pattern, (rows, columns), (0, 1)))
        np.testing.assert_allclose(found[:2], (rows, columns), atol=0.02)
    half = (pattern + np.roll(pattern, 1, 0)) / 2
    np.testing.assert_allclose(displacement(pattern, half)[:2], (0.5, 0), atol=0.05)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    recordings, dark = CAMERA.calibration()
    np.save(tmp_path / "white.npy", recordings.astype(np.float32))
    np.save(tmp_path / "dark.npy", dark.astype(np.float32))
    for index, one in enumerate(recordings):
        np.save(tmp_path / f"position{index + 5}.npy", one.astype(np.float32))
    return tmp_path


def test_the_verb(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(files)
    assert main(["calibrate", "white.npy", "--dark", "dark.npy", "--out", "mask.npz"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "coverage: ",
        "contrast: ",
        "light: ",
        "hot pixels: 3 (row 10, column 20; ",
        "next: bitlens reconstruct",
    ):
        assert part in shown
    mask = read_mask("mask.npz")
    assert np.sqrt(np.square(mask - CAMERA.mask()).mean()) < 0.01
    assert read_arrays("mask.npz")["hot_pixels"].shape == (3, 2)
    assert read_image("mask.png").shape == (SIZE, 3 * SIZE)
    one_by_one = sorted(str(path) for path in files.glob("position*.npy"))  # position10 first
    assert main(["calibrate", *one_by_one, "--dark", "dark.npy", "--out", "other.npz"]) == 0
    np.testing.assert_array_equal(read_mask("other.npz"), mask)
    y = CAMERA.record(300 * CAMERA.mask().sum(axis=0, keepdims=True) * 0.5, 9, repeats=1)
    write_npz("y.npz", measurement=y.astype(np.uint16), axes="thw")
    opened = open_recording("y.npz", "mask.npz", dark="dark.npy")
    assert not any(note.startswith("warning") for note in opened.notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["white.npy", "--dark", "white.npy"], "wanted more light than in the dark; check which is which"),
        (["white.npy", "--dark", "small.npy"], "is 96x96, the dark picture 40x96; wanted one size"),
        (["clipped.npy", "--dark", "dark.npy"], "sit at 1000: saturated; wanted at most 1%; shorten"),
        (["white.npy", "--dark", "dark.npy", "--repeats", "3"], "holds 8 pictures, and --repeats is 3; wanted as many"),
        (["position5.npy", "--dark", "dark.npy"], "1 position(s) of the mask; wanted one recording of each"),
        (["none.npy", "--dark", "dark.npy"], "no file none.npy; wanted a measurement; check"),
    ],
)
def test_bad_recordings_are_one_line(
    arguments: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    np.save("small.npy", np.zeros((40, 96)))
    np.save("clipped.npy", np.minimum(np.load("white.npy"), 1000))
    assert main(["calibrate", *arguments, "--out", "mask.npz"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not Path("mask.npz").exists() and not Path("mask.png").exists()
