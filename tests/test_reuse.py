"""Frames whose result is kept: equal to computing everything, and nothing is kept that must not be."""

import numpy as np
import pytest

from bitlens.inference import reuse
from bitlens.inference.reuse import Reuse

RADIUS = 2


def network(frame: np.ndarray) -> np.ndarray:
    """Twice as large; each pixel is the sum of those within two pixels of it, zeros around the image."""
    height, width = frame.shape[1:]
    padded = np.pad(frame, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS)))
    total = np.zeros_like(frame)
    for row in range(2 * RADIUS + 1):
        for column in range(2 * RADIUS + 1):
            total = total + padded[:, row : row + height, column : column + width]
    return total.repeat(2, 1).repeat(2, 2)


class Counted:
    """The network, and how many pixels it was given."""

    def __init__(self) -> None:
        self.pixels = 0

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        self.pixels += frame[0].size
        return network(frame)


def started(monkeypatch: pytest.MonkeyPatch, still: float = 0.0) -> tuple[Reuse, Counted]:
    monkeypatch.setattr(reuse, "TILE", 16)
    counted = Counted()
    return Reuse(counted, counted, scale=2, overlap=RADIUS + 1, multiple=1, still=still), counted


def film(frames: int = 12) -> list[np.ndarray]:
    """A still background, before which a square of 4 x 4 moves."""
    random = np.random.default_rng(0)
    background = random.integers(0, 256, (3, 40, 60)).astype(np.float32) / 256
    made = []
    for index in range(frames):
        frame = background.copy()
        frame[:, 10 + index : 14 + index, 3 * index : 3 * index + 4] = 0.5
        made.append(frame)
    return made


def test_the_same_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    run, counted = started(monkeypatch)
    frames = film()
    for frame in [*frames, frames[-1]]:
        np.testing.assert_array_equal(run(frame), network(frame))
    assert counted.pixels == run.computed < 0.7 * run.pixels and run.kept == 1 - run.computed / run.pixels
    before = counted.pixels
    np.testing.assert_array_equal(run(frames[-1]), network(frames[-1]))
    assert counted.pixels == before  # nothing changed
    other = np.random.default_rng(1).random((3, 40, 60), np.float32)
    np.testing.assert_array_equal(run(other), network(other))
    assert counted.pixels == before + 40 * 60  # a cut: the whole frame at once
    small = other[:, :20, :30]
    np.testing.assert_array_equal(run(small), network(small))


def test_slow_changes_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame a little brighter: a result is never of a frame farther away than `still`, and seldom computed."""
    run, counted = started(monkeypatch, still=0.05)
    frames = [np.full((3, 40, 60), 0.01 * index, np.float32) for index in range(21)]
    for frame in frames:
        apart = np.abs(run(frame) - network(frame)).max()
        assert apart <= 25 * 0.05 + 1e-4
    assert counted.pixels <= 5 * 40 * 60


def test_noise_below_the_threshold_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run, counted = started(monkeypatch, still=2 / 255)
    random = np.random.default_rng(2)
    frames = [film(1)[0] + random.integers(-1, 2, (3, 40, 60)).astype(np.float32) / 255 for _ in range(5)]
    first = run(frames[0]).copy()
    for frame in frames[1:]:
        np.testing.assert_array_equal(run(frame), first)
    assert counted.pixels == 40 * 60
