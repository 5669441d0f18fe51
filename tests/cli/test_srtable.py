"""`bitlens experiment sr-table` makes every variant once, evaluates them in the end, and shows the papers' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.cli.experiment import Experiment
from bitlens.cli.srtable import Pictures, chosen_bits, chosen_rows, fidelity
from bitlens.data.images import write_png
from bitlens.experiments import SR_BUDGETS, SR_METHODS, SR_PAPER, Refining
from bitlens.networks.imdn import IMDN


def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SR_BUDGETS, "minutes", Refining(1.0, 2, 1, 8, 2))
    monkeypatch.setattr("bitlens.experiments.SR_BITS", (4,))
    monkeypatch.setattr("bitlens.cli.srtable.CALIBRATION", dict(count=1, batch=2))
    (tmp_path / "photographs").mkdir()
    (tmp_path / "test").mkdir()
    generator = np.random.default_rng(1)
    for i in range(3):
        write_png(tmp_path / "photographs" / f"{i}.png", generator.random((40, 36, 3), np.float32))
    write_png(tmp_path / "test" / "picture.png", generator.random((24, 20, 3), np.float32))
    start, out = tmp_path / "float.safetensors", tmp_path / "table.json"
    checkpoint.save(IMDN(scale=2, dim=16, units=1).eval(), start)
    command = ["experiment", "sr-table", "--start", str(start), "--calibration", str(tmp_path / "photographs")]
    command += ["--run-folder", str(tmp_path / "run"), "--data", str(tmp_path / "test"), "--json", str(out)]
    assert main([*command, "--page", str(tmp_path / "table.html")]) == 0
    page = (tmp_path / "table.html").read_text()
    assert all(f"<td>{label}</td>" in page for label, _, _ in SR_METHODS), page
    content, name = json.loads(out.read_text()), str(tmp_path / "test")
    assert [row["variant"] for row in content["rows"]] == [label for label, _, _ in SR_METHODS]
    for row in content["rows"]:
        assert row["against_float"][name] == pytest.approx(row["psnr"][name] - content["float"][name])
        assert (row["steps"] == 0) == (row["method"] in ("minmax", "percentile", "dobi"))
        assert (tmp_path / "run" / row["checkpoint"]).is_file() and row["held_out"] > 0
    assert "2DQuant plus" in capsys.readouterr().out

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished variant was made again")

    monkeypatch.setattr("bitlens.methods.quantize", refuse)
    monkeypatch.setattr("bitlens.cli.srtable.fidelity", refuse)
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert "was measured with other settings" in capsys.readouterr().err


def test_held_out_photographs_are_not_calibrated_on(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for i in range(13):  # the first and the last are held out, and white
        values = np.full((64, 64, 3), 1.0 if i in (0, 12) else 0.25, np.float32)
        write_png(tmp_path / "photographs" / f"{i:02}.png", values)
    made = Pictures(Experiment("sr-table", tmp_path / "run", calibration=tmp_path / "photographs"), 2)
    assert all(float(batch.max()) < 0.5 for (batch,) in (*made.calibration, *made.pool))
    assert all(float(batch.min()) > 0.5 for (batch,) in made.held_out)


def test_fidelity_is_a_mean_over_batches() -> None:
    class Brighter(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1

    batches = [(torch.full((1, 3, 4, 4), value),) for value in (0.2, 0.5, 1.0)]  # at 1 both are clipped alike
    assert fidelity(Brighter(), nn.Identity(), batches[:2]) == pytest.approx(20, abs=0.01)
    assert fidelity(Brighter(), nn.Identity(), batches) == pytest.approx((20 + 20 + 100) / 3, abs=0.01)


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["experiment", "sr-table", "--run-folder", str(tmp_path / "run")]
    assert main(places) == 2
    assert "efficientsci-t is no float super-resolution network" in capsys.readouterr().err
    checkpoint.save(IMDN(scale=2, dim=16, units=1).eval(), tmp_path / "float.safetensors")
    assert main([*places, "--start", str(tmp_path / "float.safetensors")]) == 2
    assert "use --calibration FOLDER" in capsys.readouterr().err
    assert main(["experiment", "qsci-table", "--run-folder", str(tmp_path / "run")]) == 2
    assert "use --clips FOLDER" in capsys.readouterr().err


def test_some_rows() -> None:
    assert chosen_rows("dobi,2dquant-official") == [("DOBI", "dobi", "official"), ("2DQuant", "2dquant", "official")]
    assert [grid for _, _, grid in chosen_rows("2dquant")] == ["official", "deployable"]
    assert chosen_bits("3,2") == (3, 2) and chosen_bits(None) == (4, 3, 2)
    with pytest.raises(ValueError, match="--methods doby; wanted some of minmax-official"):
        chosen_rows("minmax,doby")
    with pytest.raises(ValueError, match="--bits 5; wanted some of 4, 3, 2"):
        chosen_bits("4,5")


def test_losses_in_the_papers() -> None:
    """Calculated from the tables: 2DQuant and CondiQuant at scale 2 on Set5."""
    assert [SR_PAPER[2, "2DQuant", bits]["set5"] for bits in (4, 3, 2)] == [-0.28, -0.83, -2.15]
    assert [SR_PAPER[2, "CondiQuant", bits]["set5"] for bits in (4, 3, 2)] == [-0.12, -0.38, -1.0]
    assert [SR_PAPER[4, "CondiQuant", bits]["set5"] for bits in (4, 3, 2)] == [-0.36, -0.83, -1.81]
