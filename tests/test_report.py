"""Side-by-side films and contact sheets hold the pixels they were given, in the places they say."""

from pathlib import Path

import numpy as np
import pytest

from bitlens.data.images import read_image
from bitlens.data.video import read_video
from bitlens.report.pictures import (
    GAP,
    HEAD,
    Panel,
    contact_sheet,
    exposed,
    fitted,
    side_by_side,
    write_contact_sheet,
    write_side_by_side,
)


def panel(title: str, frames: int = 4, size: tuple[int, int] = (200, 256)) -> Panel:
    seed = sum(map(ord, title))
    return Panel(title, "27.31 dB", np.random.default_rng(seed).random((frames, *size), np.float32))


@pytest.mark.parametrize(("panels", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (5, 2, 3), (6, 2, 3)])
def test_side_by_side(panels: int, rows: int, columns: int) -> None:
    chosen = [panel(f"method {index}") for index in range(panels)]
    film = side_by_side(chosen)
    assert film.shape == (4, rows * (HEAD + 200 + GAP) + 2 * GAP, columns * (256 + GAP) + GAP)
    for index, one in enumerate(chosen):
        top = GAP + HEAD + (index // columns) * (HEAD + 200 + GAP)
        left = GAP + (index % columns) * (256 + GAP)
        np.testing.assert_array_equal(film[:, top : top + 200, left : left + 256], one.video)
    assert film[0, GAP : GAP + HEAD].max() > 0.9  # there is text


def test_contact_sheet() -> None:
    measurement, truth = panel("measurement", 1), panel("truth", 8)
    sheet = contact_sheet(measurement, [panel("gap-tv", 8), truth])
    top, left = GAP + HEAD + HEAD + 200 + GAP, 256 + 4 * GAP
    for column, index in enumerate((0, 2, 5, 7)):
        start = left + column * (256 + GAP)
        np.testing.assert_array_equal(sheet[top : top + 200, start : start + 256], truth.video[index])
    np.testing.assert_array_equal(sheet[GAP + HEAD : GAP + HEAD + 200, GAP : GAP + 256], measurement.video[0])


@pytest.mark.parametrize(
    ("size", "shown"), [((30, 40), (150, 200)), ((100, 200), (100, 200)), ((400, 1030), (133, 343))]
)
def test_panels_are_neither_tiny_nor_huge(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert fitted(np.full((2, *size), 0.5, np.float32)).shape == (2, *shown)
    assert fitted(np.full((2, *size), 1.5, np.float32)).max() == 1


def test_exposed() -> None:
    shown = exposed(np.arange(1000, dtype=np.float32).reshape(2, 20, 25), 3)
    assert shown.shape == (6, 20, 25) and shown.dtype == np.float32 and (shown.min(), shown.max()) == (0, 1)
    assert not exposed(np.zeros((1, 4, 4), np.float32), 2).any()


def test_files(tmp_path: Path) -> None:
    chosen = [
        panel("measurement", 1),
        panel("a long name of a method that does not fit over its panel at all"),
    ]
    write_side_by_side(tmp_path / "a.gif", chosen)
    write_contact_sheet(tmp_path / "a.png", chosen[0], chosen[1:])
    assert np.abs(read_video(tmp_path / "a.gif") - side_by_side(chosen)).max() < 0.003
    assert read_image(tmp_path / "a.png").shape == contact_sheet(chosen[0], chosen[1:]).shape


@pytest.mark.parametrize("panels", [[], [panel("a"), panel("b", 5)], [panel("a"), panel("b", 4, (200, 255))]])
def test_refusals(panels: list[Panel]) -> None:
    with pytest.raises(ValueError, match=r"wanted videos .* of one size and length"):
        side_by_side(panels)
