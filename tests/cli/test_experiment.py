"""`bitlens experiment` trains and measures every variant once, and writes them beside the paper's numbers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video
from bitlens.experiments import BUDGETS, Budget
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.training.settings import Training


def test_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(BUDGETS, "minutes", Budget(1, 1, 16))
    monkeypatch.setattr("bitlens.quant.calibrate.KEPT", 1 << 8)  # fewer values to search ranges on
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "scene.npz", high_speed_scene(frames=8, height=32, width=32, oversample=1))
    checkpoint.save(EfficientSCI(8, 1, 2).eval(), tmp_path / "float.safetensors")
    places = ["--clips", str(clips), "--run-folder", str(tmp_path / "run"), "--data", str(clips)]
    command = ["experiment", "qsci-ablation", *places, "--start", str(tmp_path / "float.safetensors")]
    out = tmp_path / "ablation.json"
    assert main([*command, "--json", str(out), "--page", str(tmp_path / "ablation.html")]) == 0
    assert "<td>+ VRM</td>" in (tmp_path / "ablation.html").read_text()
    content = json.loads(out.read_text())
    assert [row["variant"] for row in content["rows"]] == ["direct", "+ shift", "+ FEM", "+ VRM"]
    assert [row["paper"] for row in content["rows"]] == [-4.11, -3.58, -1.23, -0.80]
    for row in content["rows"]:
        assert row["against_float"] == pytest.approx(row["psnr"] - content["float"]["psnr"])
    shown = capsys.readouterr().out
    assert "in the paper" in shown and "-4.11" in shown

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished variant was trained again")

    monkeypatch.setattr("bitlens.cli.train.train_in_sight", refuse)
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2
    assert "was measured with other settings" in capsys.readouterr().err


def test_low_bit_start_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    places = ["--clips", str(tmp_path / "clips"), "--run-folder", str(tmp_path / "run")]
    assert main(["experiment", "qsci-table", *places, "--start", "efficientsci-t-qsci-w4a4"]) == 2
    assert "is a low-bit network" in capsys.readouterr().err


def test_a_method_brings_its_own_terms_and_may_need_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each training has its method's terms beside the common one; what needs none is calibrated and measured alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(BUDGETS, "minutes", Budget(1, 1, 16))
    monkeypatch.setattr("bitlens.quant.calibrate.KEPT", 1 << 8)
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "scene.npz", high_speed_scene(frames=8, height=32, width=32, oversample=1))
    checkpoint.save(EfficientSCI(8, 1, 2).eval(), tmp_path / "float.safetensors")
    terms: dict[str, tuple[float, float, float]] = {}

    def see(network: Any, sampler: Any, settings: Training, folder: Path, **about: Any) -> Any:
        terms[about["label"]] = settings.distill_output, settings.distill_attention, settings.distill_similarity
        return SimpleNamespace(reason="finished")

    monkeypatch.setattr("bitlens.cli.train.train_in_sight", see)
    run, out = tmp_path / "run", tmp_path / "baselines.json"
    places = ["--clips", str(clips), "--run-folder", str(run), "--data", str(clips), "--json", str(out)]
    assert main(["experiment", "qsci-baselines", *places, "--start", str(tmp_path / "float.safetensors")]) == 0
    assert terms == {"direct (LSQ)": (1, 0, 0), "PAMS": (1, 1, 0), "Q-ViT": (1, 0, 1), "Q-SCI": (1, 0, 0)}
    names = [row["variant"] for row in json.loads(out.read_text())["rows"]]
    assert names == ["MinMax", "Percentile", "DOBI", *terms]
    assert json.loads((run / "dobi-w4a4.json").read_text())["identity"]["settings"] is None
