"""Clipped light is named whatever hides it, and nothing else is; so are hot pixels, dead lines and odd gains."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from bitlens.data.capture import read_capture
from bitlens.data.checks import depth_note, hot_note, lines_note, top_pile
from bitlens.data.masks import random_mask, real_valued_mask
from bitlens.data.matching import gain_notes

SIZE = 96


def scene(frames: int, seed: int) -> np.ndarray:
    """(t, h, w) in [0, 1]: bright and dark blobs of many sizes that drift, as in natural video."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    shape = SIZE + frames, SIZE
    drawn = sum(sigma * gaussian_filter(random.standard_normal(shape), sigma) for sigma in (1, 3, 9, 20))
    still = np.exp(1.2 * (drawn - drawn.mean()) / drawn.std())
    still = still / (still + 1.5)
    return np.stack([still[index : index + SIZE] for index in range(frames)]).astype(np.float32)


def measured(frames: int = 8, seed: int = 0, real: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A measurement (h, w) and the sum of its mask."""
    mask = random_mask(frames, SIZE, SIZE, seed)
    mask = real_valued_mask(mask, seed) if real else mask
    return np.einsum("thw,thw->hw", scene(frames, seed), mask), mask.sum(axis=0)


def clipped(share: float, how: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """12-bit counts of which a share clips, and what happened afterwards."""
    y, light = measured(seed=seed)
    random = np.random.default_rng(seed)
    level = np.quantile(y, 1 - share)
    y = np.minimum(y, level) / level * 4095
    if "flat field" in how:
        y = y / (1 + 0.02 * random.standard_normal(y.shape))
    if "vignetting" in how:
        rows, columns = np.mgrid[-1 : 1 : 1j * SIZE, -1 : 1 : 1j * SIZE]
        y = y / (1 - 0.04 * (rows**2 + columns**2))
    if "noise" in how:
        y = y + random.normal(0, 10, y.shape)
    y = np.round(y)
    if "left" in how:
        y = y * 16
    if "hot" in how:
        y[random.integers(0, SIZE, 5), random.integers(0, SIZE, 5)] = 65535
    if "one higher" in how:
        y[5, 5] = 4096
    return np.clip(y, 0, 65535).astype(np.uint16), light


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
@pytest.mark.parametrize(
    "how", ["", "hot", "one higher", "left", "left, hot", "flat field", "flat field, hot", "vignetting", "noise"]
)
def test_clipped_light_is_named(share: float, how: str) -> None:
    for seed in range(3):
        y, light = clipped(share, how, seed)
        pile = top_pile(y, light)
        assert pile is not None
        assert 0.4 * share < pile.count / y.size < 2 * share
        if how in ("hot", "flat field, hot"):
            assert 1 <= pile.hot <= 5
        else:  # a pixel just beyond the clipped ones is hot or belongs to them
            assert pile.hot <= ("higher" in how) + 5 * ("hot" in how)


@pytest.mark.parametrize("frames", [4, 8, 14])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("kind", ["floats", "12 bits", "8 bits", "noise", "hot"])
def test_light_that_is_not_clipped_is_not(frames: int, real: bool, kind: str) -> None:
    for seed in range(4):
        y, light = measured(frames, seed, real)
        random = np.random.default_rng(seed)
        if kind != "floats":
            y = np.round(y / y.max() * (250 if kind == "8 bits" else 4000))
        if kind == "noise":
            y = y + random.normal(0, 40, y.shape)
        if kind == "hot":
            y[random.integers(0, SIZE, 5), random.integers(0, SIZE, 5)] = 65535
        assert top_pile(y, light) is None


def test_white_surfaces_are_not_clipped() -> None:
    """Half of the picture white: as many levels as frames, and beyond them the light of the mask."""
    for frames, density in ((8, 0.5), (8, 0.7), (16, 0.6)):
        mask = random_mask(frames, SIZE, SIZE, 1, density)
        light = mask.sum(axis=0)
        y = light * np.where(np.arange(SIZE) < SIZE // 2, 0.3, 1.0)
        noisy = y + np.random.default_rng(0).normal(0, 0.05, y.shape)
        assert top_pile(noisy, light) is None


def test_half_a_percent_may_clip() -> None:
    for seed in range(4):
        y, light = clipped(0.005, "left", seed)
        assert top_pile(y, light) is None


def capture_of(path: Path, *pictures: np.ndarray, **options: object) -> tuple[str, ...]:
    """The notes of measurements (h, w) with the mask that `measured` uses."""
    mask = np.moveaxis(random_mask(8, SIZE, SIZE, 0), 0, -1)
    scipy.io.savemat(path, {"meas": np.stack(pictures, -1), "mask": mask})
    return read_capture(path, **options).notes  # type: ignore[arg-type]


def test_each_measurement_is_looked_at_for_itself(tmp_path: Path) -> None:
    y, _ = clipped(0.05, "")
    brighter = (measured()[0] * 900).astype(np.uint16)
    assert y.max() < brighter.max()
    for pictures in ((y, brighter), (brighter, y)):
        with pytest.raises(
            ValueError, match=r"5.0% of the pixels of measurement \d sit at the maximum 4095: saturated; "
        ):
            capture_of(tmp_path / "a.mat", *pictures)
    notes = capture_of(tmp_path / "a.mat", clipped(0.05, "flat field, hot")[0], allow_saturated=True)
    assert any(note.startswith("saturated: about ") and "below 5 hot pixel(s)" in note for note in notes)


def test_a_hot_pixel_does_not_hide_negative_values(tmp_path: Path) -> None:
    y = measured()[0].astype(np.float32) * 250
    y[:3] = -3000
    for hot in (y.max(), 65535):
        y[40, 40] = hot
        with pytest.raises(ValueError, match=r"goes down to -3000 .*; wanted light, >= 0 but for noise; check"):
            capture_of(tmp_path / "a.mat", y)


def test_counts_in_the_upper_bits_are_noted(tmp_path: Path) -> None:
    counts = (measured()[0] / 8 * 4000).astype(np.uint16)
    notes = capture_of(tmp_path / "a.mat", counts * np.uint16(16))
    assert any(note.startswith("depth: all values are multiples of 16, as counts of 12 bits") for note in notes)
    assert not any(note.startswith("depth") for note in capture_of(tmp_path / "b.mat", counts))
    assert depth_note(0xFFC0, np.dtype(np.uint16)) is not None
    for bits, kind in ((0x0FF0, np.uint16), (0xFFFF, np.uint16), (0, np.float32), (0xF0, np.uint8)):
        assert depth_note(bits, np.dtype(kind)) is None


def test_hot_pixels_are_named() -> None:
    for frames, real in ((4, False), (8, False), (8, True), (14, True)):
        y, light = measured(frames, real=real)
        assert hot_note(y, light) is None
        for row, column in ((10, 20), (11, 21), (95, 0)):
            y[row, column] = 3 * y.max() if row == 10 else y.max()
        note = hot_note(y, light)
        assert note is not None
        assert note.startswith("warning: 3 pixels (row 10, column 20; row 11, column 21; row 95, column 0): several")
    square = np.zeros((8, SIZE, SIZE))
    for index, frame in enumerate(square):
        frame[30:50, 10 + 4 * index : 40 + 4 * index] = 1
    for density in (0.3, 0.5):
        mask = random_mask(8, SIZE, SIZE, 2, density)
        assert hot_note((square * mask).sum(axis=0), mask.sum(axis=0)) is None


@pytest.mark.parametrize("value", [65535, 40000])
def test_bright_lines_hide_no_clipped_light(value: int) -> None:
    counts, light = clipped(0.05, "")
    random = np.random.default_rng(1)
    counts[:, 7:9] = value - random.integers(0, 500, (SIZE, 2))
    counts[40] = value
    pile = top_pile(counts, light)
    assert pile is not None and pile.level == 4095
    y, light = measured()
    y[:, 7] = 10 * y.max()
    assert top_pile(np.round(4000 * y), light) is None


@pytest.mark.parametrize("value", [0.0, 100.0, "stuck"])
def test_dead_lines_are_named(value: float | str) -> None:
    y, light = measured()
    assert lines_note(y, light) is None
    y[40] = y[:, 7:9] = y.mean() if value == "stuck" else value
    note = lines_note(y, light)
    assert note is not None and note.startswith("warning: row 40 and columns 7, 8 of the measurement: dark, bright")


def test_black_bars_are_no_dead_lines() -> None:
    y, light = measured()
    y[:12] = y[-12:] = 0
    assert lines_note(y, light) is None


def test_gains_far_off_are_noted() -> None:
    y, light = measured()
    assert gain_notes(500 * y, light, 500) == gain_notes(500 * y, light, 350) == gain_notes(50 * y, light, 200) == []
    (large,) = gain_notes(50 * y, light, 5000)
    assert "makes the brightest pixels 0." in large and large.endswith("; the gain is too large")
    assert "brighter than white in all frames; the gain is too small" in gain_notes(500 * y, light, 250)[0]
    assert "times white; the gain is too small" in gain_notes(500 * y, light, 20)[0]
