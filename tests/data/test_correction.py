"""A dark level and a flat field are taken out of measurements; pictures that are none are refused."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bitlens.cli import main
from bitlens.data.arrays import write_npz
from bitlens.data.capture import read_capture
from bitlens.data.masks import random_mask
from bitlens.data.recording import open_recording
from bitlens.data.synthetic import high_speed_scene

MASK = random_mask(8, 48, 40, 0)
SCENE = high_speed_scene(frames=16, height=48, width=40, oversample=1)
TRUE = np.einsum("nthw,thw->nhw", SCENE.reshape(2, 8, 48, 40), MASK)
ROWS, COLUMNS = np.mgrid[-1:1:48j, -1:1:40j]
FLAT = 1 - 0.3 * (ROWS**2 + COLUMNS**2) / 2
RANDOM = np.random.default_rng(0)
DARK = 64 + RANDOM.normal(0, 2, (48, 40)) + 3000 * (RANDOM.random((48, 40)) < 0.002)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Raw counts with 400 of them for white, a dark level with hot pixels and a vignette; dark and flat recordings."""
    random = np.random.default_rng(1)
    raw = np.round(400 * TRUE * FLAT + DARK + random.normal(0, 3, TRUE.shape))
    write_npz(tmp_path / "y.npz", measurement=raw.clip(0).astype(np.uint16), mask=MASK, axes="thw")
    dark = np.round(DARK + random.normal(0, 3, (16, 48, 40))).astype(np.uint16)
    flat = np.round(2500 * FLAT + DARK + random.normal(0, 3, (16, 48, 40))).astype(np.uint16)
    np.save(tmp_path / "dark.npy", dark)
    np.savez(tmp_path / "flat.npz", white=flat)
    scipy.io.savemat(tmp_path / "dark.mat", {"dark": np.moveaxis(dark, 0, -1)})
    pages = [Image.fromarray(page) for page in flat]
    pages[0].save(tmp_path / "flat.tif", save_all=True, append_images=pages[1:])
    return tmp_path


@pytest.mark.parametrize(("dark", "flat"), [("dark.npy", "flat.npz"), ("dark.mat", "flat.tif")])
def test_dark_and_flat(dark: str, flat: str, files: Path) -> None:
    capture = read_capture(files / "y.npz", dark=files / dark, flat=files / flat, gain=400 * FLAT.mean())
    assert np.sqrt(np.square(capture.measurement - TRUE).mean()) < 0.015
    assert capture.notes[0].startswith("dark: 70.17 subtracted") and capture.notes[1].startswith("flat: divided by 0.")
    assert not any(note.startswith("warning") for note in capture.notes)
    bare = read_capture(files / "y.npz", gain=400)
    assert any(note.startswith("warning: ") and "as hot pixels are" in note for note in bare.notes)
    cut = open_recording(
        files / "y.npz", dark=files / dark, flat=files / flat, crop=(4, 6, 40, 32), gain=400 * FLAT.mean()
    )
    np.testing.assert_array_equal(cut.measurement.read(), capture.measurement[:, 4:44, 6:38])


def test_negative_values_are_kept_and_said(files: Path) -> None:
    dim = np.round(20 * TRUE[:1] * (SCENE[0] > 0.3) + DARK + np.random.default_rng(2).normal(0, 3, (1, 48, 40)))
    write_npz(files / "dim.npz", measurement=dim.clip(0).astype(np.uint16), mask=MASK, axes="thw")
    capture = read_capture(files / "dim.npz", dark=files / "dark.npy", gain=20)
    assert capture.measurement.min() < 0
    assert any(note.startswith("negative: ") and note.endswith("; kept") for note in capture.notes)


def test_clipping_is_seen_before_the_correction(files: Path) -> None:
    raw = np.minimum(np.round(400 * TRUE * FLAT + DARK), 1000).astype(np.uint16)
    write_npz(files / "y.npz", measurement=raw, mask=MASK, axes="thw")
    with pytest.raises(ValueError, match="sit at the maximum 1000: saturated"):
        read_capture(files / "y.npz", dark=files / "dark.npy", flat=files / "flat.npz")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dark", "none.npy"], "no file .*none.npy; wanted a dark; check"),
        (["--dark", "small.npy"], "dark picture .*small.npy is 20x40, the measurement 48x40; wanted one size"),
        (["--dark", "flat.npz"], "has a mean of .*; wanted less light in the dark"),
        (["--flat", "dark.npy", "--dark", "dark.npy"], "flat picture .*dark.npy is dark in .*; wanted an even white"),
        (["--flat", "nan.npy"], "nan.npy holds NaN or infinite values, or beyond 1e30; wanted finite"),
    ],
)
def test_what_is_no_correction_is_one_line(
    flags: list[str], said: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    monkeypatch.chdir(files)
    np.save("small.npy", DARK[:20])
    np.save("nan.npy", np.full((48, 40), np.nan))
    assert main(["reconstruct", "y.npz", "--model", "gap-tv", "--out", "v.npz", *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1 and not Path("v.npz").exists()
