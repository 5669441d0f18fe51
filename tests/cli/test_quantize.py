"""`bitlens quantize` reaches every method by its name, and writes what it says."""

from pathlib import Path

import numpy as np
import pytest
from marks import some

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.images import write_png
from bitlens.methods import METHODS, recipe_of
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.imdn import IMDN
from bitlens.quant.layers import quantized_layers


@pytest.mark.parametrize("method", some(METHODS, "direct", "qsci", "2dquant", "svdquant"))
def test_every_method(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(EfficientSCI(4, 1, 1), tmp_path / "float.safetensors")
    out = tmp_path / "low.safetensors"
    command = ["quantize", str(tmp_path / "float.safetensors"), "--method", method, "--bits", "4", "--batches", "1"]
    if method == "shortcuts":
        assert main([*command, "--steps", "1", "--out", str(out)]) == 2
        assert "no layer of EfficientSCI hands its channels on" in capsys.readouterr().err
        return
    assert main([*command, "--steps", "1", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"wrote {out}" in shown
    less = method in ("balanced", "2dquant-plus", "svdquant", "brecq")
    assert (f"note: {method} gives balanced channels" in shown and "EfficientSCI is none" in shown) == less
    about = checkpoint.describe(out)
    wanted = recipe_of(method, 4)
    if method == "ends":  # whose rules name the layers
        wanted = METHODS[method].recipe_for(EfficientSCI(4, 1, 1), 4)  # type: ignore[attr-defined]
    assert about.method == method and checkpoint.load(out).recipe == wanted


def test_unknown_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(EfficientSCI(4, 1, 1), tmp_path / "float.safetensors")
    command = ["quantize", str(tmp_path / "float.safetensors"), "--method", "pam", "--batches", "1"]
    assert main([*command, "--out", str(tmp_path / "low.safetensors")]) == 2
    assert "no method 'pam'; did you mean 'pams'?" in capsys.readouterr().err


def photographs(folder: Path, count: int = 2) -> Path:
    """Small coloured pictures."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for i in range(count):
        write_png(folder / f"{i}.png", generator.random((140, 130, 3), np.float32))
    return folder


def test_super_resolution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photographs in; both ends stay float; an interrupted refinement goes on."""
    start, out = tmp_path / "float.safetensors", tmp_path / "low.safetensors"
    checkpoint.save(IMDN(scale=2, dim=16, units=1).eval(), start)
    folder = photographs(tmp_path / "photographs")
    command = ["quantize", str(start), "--method", "2dquant", "--bits", "4", "--batches", "1", "--out", str(out)]
    assert main([*command, "--calibration", str(folder), "--steps", "2", "--state", str(tmp_path / "s.pt")]) == 0
    assert (tmp_path / "s.pt").is_file()
    about = checkpoint.describe(out)
    assert "2 steps of refinement" in about.provenance["quantized"]
    layers = quantized_layers(checkpoint.load(out))
    assert layers and "fea_conv" not in layers and "upsampler.0" not in layers
    capsys.readouterr()
    assert main(command) == 2
    assert "wanted a folder of them; use --calibration FOLDER" in capsys.readouterr().err
    assert main([*command, "--calibration", str(folder), "--minutes", "0"]) == 2
    assert "--minutes 0; wanted a finite number above 0" in capsys.readouterr().err
    assert main([*command, "--calibration", str(tmp_path / "nowhere")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_photographs_are_not_for_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(EfficientSCI(4, 1, 1), tmp_path / "float.safetensors")
    command = ["quantize", str(tmp_path / "float.safetensors"), "--calibration", str(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "low.safetensors")]) == 2
    assert "the network reconstructs video" in capsys.readouterr().err
