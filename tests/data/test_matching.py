"""A mask whose frames are out of order, missing or inverted is named where physics can tell, and no other."""

from pathlib import Path

import numpy as np
import pytest

from bitlens.data.arrays import write_npz
from bitlens.data.capture import read_capture
from bitlens.data.masks import random_mask, real_valued_mask, shifted_mask
from bitlens.data.matching import order_note, plate_note
from bitlens.data.synthetic import high_speed_scene

SIZE, FRAMES = 96, 8
RANDOM = np.random.default_rng(0)
WRONG = {
    "rolled": np.roll(np.arange(FRAMES), 1),
    "rolled by half": np.roll(np.arange(FRAMES), FRAMES // 2),
    "shuffled": np.array([5, 2, 7, 0, 3, 6, 1, 4]),
    "two swapped": np.array([0, 6, 2, 3, 4, 5, 1, 7]),
}


def moving(frames: int = FRAMES, step: int = 2, seed: int = 0) -> np.ndarray:
    """(t, h, w) in [0, 1]: texture of many sizes that moves down."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(seed)
    drawn = sum(
        width * gaussian_filter(random.standard_normal((SIZE + step * frames, SIZE)), width) for width in (3, 9)
    )
    still = np.clip(0.5 + 0.25 * (drawn - drawn.mean()) / drawn.std(), 0, 1)
    return np.stack([still[step * index : step * index + SIZE] for index in range(frames)])


def measured(scene: np.ndarray, mask: np.ndarray, noise: float = 0.02) -> np.ndarray:
    """(1, h, w)."""
    return (scene * mask).sum(axis=0, keepdims=True) + RANDOM.normal(0, noise, (1, SIZE, SIZE))


@pytest.mark.parametrize("wrong", WRONG)
def test_frames_out_of_order_are_named(wrong: str) -> None:
    for mask in (random_mask(FRAMES, SIZE, SIZE, 1), real_valued_mask(random_mask(FRAMES, SIZE, SIZE, 2), 3)):
        y = measured(moving(), mask)
        assert order_note(y, mask) is None and order_note(y, mask[::-1]) is None  # backwards is not told
        note = order_note(y, mask[WRONG[wrong]])
        assert note is not None and note.startswith("warning: the frames of the mask are out of order")
        named = [int(number) for number in note.split("in the order ")[1].split(" or ")[0].split()]
        assert WRONG[wrong][named].tolist() in (list(range(FRAMES)), list(range(FRAMES))[::-1])


def test_scenes_that_do_not_move_on_say_nothing() -> None:
    fast = high_speed_scene(frames=16, height=SIZE, width=SIZE, oversample=1)
    for seed in range(6):
        mask = random_mask(FRAMES, SIZE, SIZE, seed)
        for scene in (np.repeat(fast[seed : seed + 1], FRAMES, 0), fast[seed : seed + FRAMES]):
            assert order_note(measured(scene, mask), mask) is None
    assert order_note(measured(moving(4), random_mask(4, SIZE, SIZE, 0)), random_mask(4, SIZE, SIZE, 0)) is None


def test_a_plate_that_moves_unsteadily_is_named() -> None:
    for step in (1, 3):
        plate = real_valued_mask(shifted_mask(FRAMES, SIZE, SIZE, 0, step=step), 1)
        assert plate_note(plate) is None and plate_note(plate[::-1]) is None
        for wrong in (*WRONG.values(), [0, 1, 2, 4, 5, 6, 7]):
            note = plate_note(plate[wrong])
            assert note is not None and note.endswith("pixels off: frames are missing or out of order")
    assert plate_note(random_mask(FRAMES, SIZE, SIZE, 0)) is None
    assert plate_note(np.repeat(random_mask(1, SIZE, SIZE, 0), 2, 0)) is None


def notes_of(path: Path, y: np.ndarray, mask: np.ndarray) -> list[str]:
    write_npz(path / "y.npz", measurement=400 * y, mask=mask, gain=400.0, axes="thw")
    return [note for note in read_capture(path / "y.npz").notes if note.startswith("warning")]


def test_a_capture_carries_the_note(tmp_path: Path) -> None:
    mask, plate = random_mask(FRAMES, SIZE, SIZE, 1), shifted_mask(FRAMES, SIZE, SIZE, 0)
    y = np.maximum(measured(moving(), mask), 0)
    assert notes_of(tmp_path, y, mask) == []
    (note,) = notes_of(tmp_path, y, mask[WRONG["shuffled"]])
    assert "out of order: as they are, the scene jumps to and fro" in note
    (note,) = notes_of(tmp_path, np.maximum(measured(moving(), plate), 0), np.roll(plate, 2, axis=0))
    assert "is one pattern that moves by" in note and "but from frame 1 to 2" in note


def test_an_inverted_mask_is_named(tmp_path: Path) -> None:
    mask = random_mask(FRAMES, SIZE, SIZE, 1)
    y = np.maximum(measured(moving(), mask), 0)
    assert any(
        "the mask is inverted" in note and note.endswith("use 1 - mask") for note in notes_of(tmp_path, y, 1 - mask)
    )
    for turned, named in ((mask.transpose(0, 2, 1), "transposed"), (mask[:, ::-1], "flipped upside down")):
        assert any(f"the mask {named}" in note and "would match" in note for note in notes_of(tmp_path, y, turned))
