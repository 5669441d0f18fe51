"""`bitlens benchmark` measures small networks, and tells what it measured."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitlens import checkpoint
from bitlens.bench import networks
from bitlens.bench.subjects import subject_of
from bitlens.cli import benchmark, main
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.ffdnet import FFDNet
from bitlens.networks.pan import PAN


def small(folder: Path, bits: int, **provenance: str) -> Path:
    network = EfficientSCI(8, 1, 2).eval()
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    low, _ = quantize(network, "qsci", [(torch.rand(1, 16, 16), mask)], bits=bits)
    path = folder / f"small-w{bits}.safetensors"
    checkpoint.save(low, path, provenance=provenance)
    return path


def test_small_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(networks, "PEAKS", ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, out, picture = small(tmp_path, 8), tmp_path / "speed.json", tmp_path / "speed.png"
    command = ["benchmark", str(model), "--size", "32", "--frames", "4", "--rounds", "1", "--threads", "1"]
    paged = ["--page", str(tmp_path / "speed.html")]
    assert main([*command, "--engines", "openvino", "--json", str(out), "--picture", str(picture), *paged]) == 0
    assert "small-w8" in (tmp_path / "speed.html").read_text()
    result = json.loads(out.read_text())
    assert result["ratios"]["official_float32"] is None and result["ratios"]["best_float32"] > 0
    rows = {row["kind"]: row for row in result["rows"]}
    assert set(rows) == {"float32", "bf16", "low-bit"} or rows["bf16"]["failure"]  # where the CPU has no bf16
    assert rows["low-bit"]["median_s"] > 0 and rows["low-bit"]["peak_mb"] > 50 and rows["low-bit"]["psnr"] > 0
    assert rows["low-bit"]["first_start_s"] > 0 and rows["float32"]["psnr_to_float"] is None
    layers = [cost for cost in result["layers"][model.stem] if cost["gmacs"] is not None]
    assert len(layers) == 21 and all(cost["kernel"].endswith("I8" if vnni else "f32") for cost in layers)
    assert result["size"] == [4, 32, 32] and result["float_model"] == "float"
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "times as fast as the fastest float32" in shown and "in integers, by OpenVINO's counters" in shown


@pytest.mark.slow
def test_networks_that_enlarge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(networks, "PEAKS", ())
    network = PAN(2, 8, 4, 2).eval()
    models = [checkpoint.save(network, tmp_path / "pan.safetensors")]
    for bits in (8, 4):
        low, _ = quantize(network, "minmax", [(torch.rand(2, 3, 24, 24),)], bits=bits)
        models.append(checkpoint.save(low, tmp_path / f"pan-w{bits}.safetensors"))
    wide = checkpoint.save(PAN(3, 8, 4, 2), tmp_path / "wide.safetensors")
    low = [str(model) for model in models[1:]]
    assert (
        main(["benchmark", *low, str(wide)]) == 2 and "wide.safetensors is a float network" in capsys.readouterr().err
    )
    out, command = tmp_path / "speed.json", ["--size", "24", "--rounds", "1", "--threads", "1"]
    flags = ["--engines", "openvino", "native", "--float-model", str(models[0]), "--json", str(out)]
    assert main(["benchmark", *low, *command, *flags]) == 0
    result = json.loads(out.read_text())
    assert result["unit"] == "picture" and result["size"] == [24, 24]
    low_bit = [row["model"] for row in result["rows"] if row["kind"] == "low-bit"]  # 8 bits with bf16 between, too
    assert list(dict.fromkeys(low_bit)) == ["pan-w8", "pan-w4"]
    rows = {row["model"]: row for row in result["rows"] if row["failure"] is None}
    assert rows["pan-w8"]["psnr_to_float"] > rows["pan-w4"]["psnr_to_float"] > 10 and rows["pan-w8"]["psnr"] > 0
    layers = [cost for cost in result["layers"]["pan-w8"] if cost["gmacs"] is not None]
    assert len(layers) == 20 and sum(cost["kernel"].endswith("I8") for cost in layers) == 18 * vnni
    assert "one picture of 24x24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("scale", "unit", "size"), [(None, "measurement", [2, 32, 32]), (1, "picture", [32, 32]), (3, "picture", [32, 32])]
)
def test_what_networks_run_on(scale: int | None, unit: str, size: list[int]) -> None:
    one = subject_of(scale, 32, 2, 4)
    assert (one.unit, one.size) == (unit, size) and all(part.dtype == np.float32 for part in one.inputs)
    assert one.inputs[0].shape == ((1, 32, 32) if scale is None else (1, 3, 32, 32))
    if scale == 1:
        assert one.quality(one.inputs[0][0]) == pytest.approx(
            20.2, abs=0.5
        )  # clipping takes some of 20 log10(255 / 25)


def test_networks_that_restore_are_known_by_their_task(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 16, 16)
    for name, network, scale in (("a", FFDNet(dim=8, depth=3), 1), ("b", PAN(2, 8, 4, 1), 2)):
        low, _ = quantize(network.eval(), "direct", [(image,)], bits=8)
        assert networks.scale_of([str(checkpoint.save(low, tmp_path / f"{name}.safetensors"))]) == scale
    assert networks.scale_of([str(small(tmp_path, 4))]) is None


def test_rows_that_failed_have_no_first_start() -> None:
    """On a CPU without bf16, say: what shows a first start shows the later one too."""
    rows: list[dict[str, Any]] = [{"name": "a", "failure": None}, {"name": "b", "failure": "no bf16"}]
    networks.add_first_starts(rows, {"a": 3.0, "b": 2.0})
    assert rows == [{"name": "a", "failure": None, "first_start_s": 3.0}, {"name": "b", "failure": "no bf16"}]


def test_float_network_is_the_one_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    assert networks.float_of(str(small(tmp_path, 4, start="efficientsci-t")), tmp_path) == "efficientsci-t"
    assert networks.float_of("efficientsci-t-qsci-w8a8", tmp_path) == "efficientsci-t"  # trained on from 8 bits
    path = networks.float_of(str(small(tmp_path, 4, start="of-another-machine")), tmp_path / "made")
    assert checkpoint.describe(path).method is None and networks.bits_of(path) == 32
    assert networks.bits_of(str(tmp_path / "small-w4.safetensors")) == 4


def row(kind: str, seconds: float, failure: str | None = None, model: str = "w8") -> dict[str, Any]:
    return {"kind": kind, "median_s": seconds, "failure": failure, "model": model}


def test_ratios_are_to_the_fastest_of_each_kind() -> None:
    rows = [
        row("official float32", 6.0), row("float32", 3.0), row("float32", 1.0, "no"), row("float32", 4.0),
        row("bf16", 1.5), row("low-bit", 0.7), row("low-bit", 0.5),
        row("low-bit", 0.1, "no"), row("low-bit", 0.1, model="w4"),
    ]  # fmt: skip
    assert networks.ratios(rows) == {"official_float32": 12.0, "best_float32": 6.0, "best_bf16": 3.0}
    assert networks.ratios(rows[5:])["best_float32"] is None


@pytest.mark.parametrize("model", ["gap-tv", "efficientsci-t"])
def test_float_networks_are_no_contestants(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "efficientsci-t-qsci-w8a8", model]) == 2
    assert f"{model} is a float network; wanted low-bit checkpoints" in capsys.readouterr().err


def test_a_picture_needs_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    assert main(["benchmark", "efficientsci-t-qsci-w8a8", "--picture", f"{tmp_path}/a.png"]) == 2
    assert "run pip install 'bitlens[report]'" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--size", "-4"], ["--threads", "0"], ["--seed", "-1"]])
def test_bad_numbers(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "efficientsci-t-qsci-w8a8", *flags]) == 2
    assert flags[0] in capsys.readouterr().err
