"""Crops of photographs: shrunk as test pictures are, the same for the same seed, small pictures left out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.data.crops import crops, photographs
from bitlens.data.images import write_png
from bitlens.operators import Downsample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "inner").mkdir()
    write_png(tmp_path / "a10.png", generator.random((30, 26, 3), np.float32))
    write_png(tmp_path / "a9.png", generator.random((12, 12, 3), np.float32))
    write_png(tmp_path / "inner" / "grey.png", generator.random((24, 24), np.float32))
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_files_in_order(folder: Path) -> None:
    assert [file.name for file in photographs(folder)] == ["a9.png", "a10.png", "grey.png"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        photographs(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        photographs(folder / "empty")


def test_the_same_seed_gives_the_same_crops(folder: Path) -> None:
    files = photographs(folder)
    one, two, other = (crops(files, 2, 3, 2, 8, seed) for seed in (0, 0, 1))
    assert len(one) == 3 and all(batch.shape == (2, 3, 8, 8) for (batch,) in one)
    assert all(torch.equal(a, b) for (a,), (b,) in zip(one, two, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    whole = torch.stack([batch for (batch,) in one])
    assert float(whole.min()) >= 0 and float(whole.max()) <= 1


def test_a_whole_picture_is_what_downsample_makes(folder: Path) -> None:
    """A crop as large as the shrunken picture is one of its eight positions."""
    file = folder / "inner" / "grey.png"
    ((made,),) = crops([file], 2, 1, 1, 12, seed=3)
    from bitlens.data.pairs import read_picture

    small = Downsample(2).shrink_levels(torch.from_numpy(read_picture(file))[None])[0].float() / 255
    positions = [torch.rot90(turned, k, (1, 2)) for turned in (small, small.flip(2)) for k in range(4)]
    assert any(torch.allclose(made[0], position) for position in positions)


def test_too_small(folder: Path) -> None:
    with pytest.raises(ValueError, match="no photograph has 80 pixels in height and width"):
        crops(photographs(folder), 2, 1, 1, 40)
