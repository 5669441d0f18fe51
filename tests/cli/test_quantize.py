"""`bitlens quantize` reaches every method by its name, and writes what it says."""

from pathlib import Path

import pytest

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.methods import METHODS, recipe_of
from bitlens.networks.efficientsci import EfficientSCI


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(EfficientSCI(4, 1, 1), tmp_path / "float.safetensors")
    out = tmp_path / "low.safetensors"
    command = ["quantize", str(tmp_path / "float.safetensors"), "--method", method, "--bits", "4", "--batches", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    about = checkpoint.describe(out)
    assert about.method == method and checkpoint.load(out).recipe == recipe_of(method, 4)


def test_unknown_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(EfficientSCI(4, 1, 1), tmp_path / "float.safetensors")
    command = ["quantize", str(tmp_path / "float.safetensors"), "--method", "pam", "--batches", "1"]
    assert main([*command, "--out", str(tmp_path / "low.safetensors")]) == 2
    assert "no method 'pam'; did you mean 'pams'?" in capsys.readouterr().err
