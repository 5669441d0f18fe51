"""The cost model: what each layer costs is measured, and the sum of any choice of bits is the time of the network."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens.cli import main
from bitlens.engine import plan, traced
from bitlens.engine.costs import CostModel, Run, choices_of, measure
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI, efficientsci
from bitlens.quant.layers import Quantized
from bitlens.recipe import Bits, Recipe, Rule

MIXED = {"*.ffn.*": 4, "*.scb.0": 2, "*.scb.2": 3, "fem.0": 2, "*": 8}
"""Bits by pattern of a layer's name."""


def at(network: nn.Module, bits: dict[str, int]) -> nn.Module:
    rules = tuple(Rule(pattern, Bits(width, width)) for pattern, width in bits.items())
    recipe = Recipe("costs", rules, "direct", "lsq", "percentile")
    return quantize(network, recipe, [(torch.rand(1, 16, 16), torch.ones(1, 2, 16, 16))])[0]


def capture(frames: int, side: int) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, frames, side, side) < 0.5).float()
    return (mask * torch.rand(1, 1, side, side)).sum(1), mask


def predicted_and_measured(network: EfficientSCI, frames: int, side: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of a network with mixed bits."""
    data, mixed = capture(frames, side), at(network, MIXED)
    assert len(set(choices_of(mixed).values())) == 4
    costs = measure({f"w{bits}a{bits}": at(network, {"*": bits}) for bits in (8, 4, 3, 2)}, *data, rounds=rounds)
    run = Run(mixed, threads=1)
    for _ in range(rounds + 1):
        run(*data)
    return costs.milliseconds(choices_of(mixed)), min(run.whole[1:])


@pytest.mark.slow
@pytest.mark.kernels
def test_the_sum_is_the_time_of_a_network_with_mixed_bits() -> None:
    predicted, measured = predicted_and_measured(EfficientSCI(16, 2, 2, shortcuts=True).eval(), 4, 48, rounds=12)
    assert 0.8 * measured < predicted < 1.2 * measured, (predicted, measured)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("size", ["t", "s"])
def test_the_sum_is_the_time_of_a_published_network(size: str) -> None:
    network = efficientsci(size, shift=True, shortcuts=True).eval()
    predicted, measured = predicted_and_measured(network, 8, 128, rounds=4)
    assert 0.85 * measured < predicted < 1.15 * measured, (predicted, measured)


@pytest.mark.kernels
def test_every_layer_is_measured_and_a_file_keeps_it(tmp_path: Path) -> None:
    network, calls = EfficientSCI(8, 1, 2).eval(), []
    low = {f"w{bits}a{bits}": at(network, {"*": bits}) for bits in (8, 4)}
    costs = measure(low, *capture(2, 16), rounds=2, on_run=lambda: calls.append(0))
    names = {name for name, layer in low["w8a8"].named_modules() if isinstance(layer, Quantized)}
    assert set(costs.layers) == set(costs.methods) == names and len(calls) == 6
    assert all(ms > 0 for row in costs.layers.values() for ms in row.values())
    assert {method for row in costs.methods.values() for method in row.values()} <= {"direct", "winograd2", "winograd3"}
    assert set(costs.between) == {"estimate and copies", "grids", "attention", "shuffle"}
    assert costs.size == (2, 16, 16) and set(costs.whole) == {"w8a8", "w4a4"}
    costs.write(tmp_path / "costs.json")
    assert CostModel.read(tmp_path / "costs.json") == costs


def test_layers_of_one_call_share_its_time_by_their_weights() -> None:
    def layer(weights: int) -> SimpleNamespace:
        return SimpleNamespace(weight=torch.zeros(weights))

    run = object.__new__(Run)
    run.engine = SimpleNamespace(integers={"a": layer(30), "b": layer(10), "c": layer(7)})  # type: ignore[assignment]
    run.names = {0: ["a", "b"], 2: ["c"]}
    run.plan = SimpleNamespace(kinds=["layer", "attention", "layer"])  # type: ignore[assignment]
    run.steps, run.whole = [[8.0, 9.0], [2.0, 1.0], [5.0, 4.0]], [99.0, 16.0, 15.5]
    assert run.layers() == {"a": 6.0, "b": 2.0, "c": 4.0}
    assert run.between() == {"estimate and copies": 1.0, "attention": 1.0}


@pytest.mark.kernels
def test_networks_must_have_the_bits_they_come_under() -> None:
    network, data = EfficientSCI(8, 1, 2).eval(), capture(2, 16)
    with pytest.raises(ValueError, match="is not w8a8"):
        measure({"w8a8": at(network, {"up_conv": 4, "*": 8})}, *data)
    with pytest.raises(ValueError, match="0 rounds"):
        measure({"w8a8": at(network, {"*": 8})}, *data, rounds=0)


def test_a_choice_of_bits_is_a_sum() -> None:
    layers = {"a": {"w8a8": 3.0, "w4a6": 2.0}, "b": {"w8a8": 1.0, "w4a6": 0.5}}
    methods = {"a": {"w8a8": "direct", "w4a6": "winograd2"}}
    costs = CostModel(layers, methods, {"attention": 0.25}, {"w8a8": 4.25}, (8, 16, 16), 1, "avx2")
    assert costs.milliseconds({"a": "w4a6", "b": "w8a8"}) == 3.25
    with pytest.raises(ValueError, match="a layer without bits, 'b'"):
        costs.milliseconds({"a": "w8a8"})
    with pytest.raises(ValueError, match="that was not measured, 'c'"):
        costs.milliseconds(dict.fromkeys("abc", "w8a8"))
    with pytest.raises(ValueError, match="w3a3 for layer 'b'; measured were w8a8, w4a6"):
        costs.milliseconds({"a": "w8a8", "b": "w3a3"})


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "bitlens-costs-2", "layers": 3}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is no cost file"):
        CostModel.read(tmp_path / "a.json")


@pytest.mark.kernels
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bitlens.save(at(EfficientSCI(8, 1, 2).eval(), {"*": 4}), tmp_path / "small.safetensors")
    small = ["--size", "16", "--frames", "2", "--threads", "1", "--rounds", "1", "--bits", "w8a8", "w2a2"]
    assert main(["costs", str(tmp_path / "small.safetensors"), "--out", str(tmp_path / "c.json"), *small]) == 0
    shown, costs = capsys.readouterr().out, CostModel.read(tmp_path / "c.json")
    assert "w8a8 everywhere" in shown and "resdnet_list.*.last_conv" in shown and len(costs.layers) == 21
    about = json.loads((tmp_path / "c.json").read_text())["about"]
    assert about["config"]["in_ch"] == 8 and about["environment"]["cores"] and about["run"]["threads"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gap-tv"], "no layer of the network is quantized"),
        (["efficientsci-t", "--bits", "w4a4", "w4a4"], "--bits w4a4 w4a4; wanted different ones"),
        (["efficientsci-t", "--bits", "w9a9"], "no bits 'w9a9'"),
        (["efficientsci-t", "--rounds", "0"], "--rounds 0"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["costs", *arguments, "--out", str(tmp_path / "c.json")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_without_kernels_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Callable[[], None]:
        raise ImportError("No module named 'bitlens_kernels'")

    for module in (plan, traced):
        monkeypatch.setattr(module, "kernels", absent)
    assert main(["costs", "efficientsci-t", "--bits", "w8a8", "--out", str(tmp_path / "c.json")]) == 2
    assert "the native kernels are not built" in capsys.readouterr().err and not list(tmp_path.iterdir())
