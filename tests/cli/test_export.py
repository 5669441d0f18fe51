"""`bitlens export` writes a whole file or none, and says what it checked."""

import os
from pathlib import Path

import pytest
import torch

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.pan import PAN


@pytest.fixture
def model(tmp_path: Path) -> str:
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    network, _ = quantize(EfficientSCI(8, 1, 2).eval(), "direct", [(mask.sum(1) / 2, mask)])
    checkpoint.save(network, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_both_formats(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["export", model, "--format", "onnx", "--out", f"{tmp_path}/new/a.onnx"]) == 0
    assert "25 layers agree with the reference" in capsys.readouterr().out.replace("\n", " ")
    onnx = pytest.importorskip("onnx")
    file = onnx.load(f"{tmp_path}/new/a.onnx")
    told = {entry.key: entry.value for entry in file.metadata_props}
    assert told["network"] == "efficientsci" and "plain sum" in told["measurement"] and "gain" in told["measurement"]
    for value in (*file.graph.input, *file.graph.output):
        assert value.doc_string == told[value.name] and len(told[value.name]) > 60
    size = ["--frames", "4", "--height", "16", "--width", "16"]
    assert main(["export", model, "--format", "openvino", "--out", f"{tmp_path}/new/a.xml", *size]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.bin", "a.onnx", "a.xml"]


@pytest.mark.parametrize("last", [".bin", ".xml"])
def test_weights_are_never_read_with_another_graph(
    last: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export over an older one, interrupted before either of its two files is in place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "new"
    place.mkdir()
    for name in ("a.xml", "a.bin"):
        (place / name).write_text("old")
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target == place / f"a{last}":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("bitlens.files.os.replace", interrupted)
    size = ["--frames", "4", "--height", "16", "--width", "16"]
    assert main(["export", model, "--format", "openvino", "--out", f"{place}/a.xml", *size]) == 130
    assert [path.name for path in place.iterdir()] == ["a.bin"]
    monkeypatch.undo()


def test_what_cannot_be_exported(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (["gap-tv", "--out", "a.onnx"], "network GapTV has no layers; wanted one with convolutions or linear layers"),
        ([model, "--out", "a.xml"], "wanted a name that ends in .onnx"),
        ([model, "--format", "openvino", "--out", "a.xml", "--height", "15"], "wanted 1 frame or more, and an even"),
    ]
    for (source, *flags), said in cases:
        flags = [f"{tmp_path}/{flag}" if flag.startswith("a.") else flag for flag in flags]
        assert main(["export", source, *flags]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("bitlens export: ") and shown.count("\n") == 1 and said in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.safetensors"]


def test_networks_that_enlarge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    low, _ = quantize(PAN(2, 8, 4, 1).eval(), "minmax", [(torch.rand(2, 3, 24, 24),)], bits=8)
    model = str(checkpoint.save(low, tmp_path / "pan.safetensors"))
    size = ["--height", "20", "--width", "21"]
    assert main(["export", model, "--out", f"{tmp_path}/new/a.onnx", *size]) == 0
    assert main(["export", model, "--format", "openvino", "--out", f"{tmp_path}/new/a.xml", *size]) == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert shown.count("image -> large") == 2
    assert "sizes: any height and width; batches of one" in shown and "sizes: 20x21; batches of one" in shown
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.bin", "a.onnx", "a.xml"]
    file = pytest.importorskip("onnx").load(f"{tmp_path}/new/a.onnx")
    assert {entry.key for entry in file.metadata_props} == {"network", "image", "large", "sizes"}
    assert main(["export", model, "--out", f"{tmp_path}/b.onnx", "--form", "integer"]) == 2
    assert main(["export", model, "--out", f"{tmp_path}/b.onnx", "--height", "0"]) == 2
    assert "pictures of 0x256; wanted" in capsys.readouterr().err and not (tmp_path / "b.onnx").exists()
