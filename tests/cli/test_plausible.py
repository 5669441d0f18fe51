"""Results that cannot be right are said, of pictures (test_upscale_files.py) and of videos from measurements."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.cli import main
from bitlens.data.arrays import write_npz
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.networks.classical import GapTV

SCENE = high_speed_scene(frames=8, height=32, width=32, oversample=1)
MASK = random_mask(4, 32, 32, 0)

WRONG: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "sound": (lambda x: x, ""),
    "overshoots": (lambda x: 1.2 * x - 0.1, ""),
    "wild": (lambda x: 6e5 * (x - 0.5), "its video spans [-"),
    "flat": (lambda x: 0 * x, "2 of 2 videos are 0 everywhere"),
    "turned": (lambda x: 1 - x.flip(-1).round(), "2 of 2 videos, measured again, differ from what the camera gave"),
    "another scale": (lambda x: 1.9 * x, "differ from what the camera gave by more than 50%"),
}


@pytest.mark.parametrize("name", WRONG)
def test_videos_that_cannot_be_right_are_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said = WRONG[name]
    true = GapTV.forward
    monkeypatch.setattr(GapTV, "forward", lambda self, *data: change(true(self, *data)))
    measured = np.einsum("nthw,thw->nhw", SCENE.reshape(2, 4, 32, 32), MASK)
    write_npz(tmp_path / "y.npz", measurement=measured, mask=MASK, gain=1.0, axes="thw")
    out = tmp_path / "v.npz"
    assert main(["reconstruct", str(tmp_path / "y.npz"), "--model", "gap-tv", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert out.exists() and shown.count("cannot be right") + shown.count("everywhere") == bool(said)
    assert said in shown


def test_a_video_of_nothing_is_right_where_nothing_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    even = np.full((4, 32, 32), 0.4, np.float32)
    write_npz(tmp_path / "y.npz", measurement=(even * MASK).sum(0)[None], mask=MASK, gain=1.0, axes="thw")
    command = ["reconstruct", str(tmp_path / "y.npz"), "--model", "gap-tv", "--out", str(tmp_path / "v.npz")]
    assert main([*command, "--allow-saturated"]) == 0
    assert "everywhere" not in capsys.readouterr().out
