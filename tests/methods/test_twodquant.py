"""2DQuant and its kin: which layers they quantize, with which grids, and that both stages help."""

import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from marks import some
from torch import Tensor, nn

from bitlens.methods import METHODS, quantize, recipe_of
from bitlens.methods.twodquant import TwoStage
from bitlens.networks import swinir as published
from bitlens.networks.imdn import IMDN
from bitlens.networks.parts import MatMul
from bitlens.networks.swinir import SwinIR
from bitlens.quant.distill import Refined, Refinement
from bitlens.quant.grid import BoundGrid, StepGrid
from bitlens.quant.layers import Quantized, QuantizedMatMul, quantized_layers
from bitlens.recipe import Recipe

KIN = ("dbdc-pac", "dqc", "2dquant", "balanced", "gptq", "2dquant-plus", "brecq")


def swinir() -> SwinIR:
    torch.manual_seed(2)
    return SwinIR(2, dim=8, units=2, depth=1, heads=2, window=4, hidden=16).eval()


def image(seed: int = 1) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def distance(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).abs().mean())


def test_transformers_keep_convolutions() -> None:
    """Four linear layers and two products in each of the blocks, and nothing else [2DQuant sec. 4.1]."""
    quantized, decisions = quantize(swinir(), "2dquant", [(image(),)], bits=4, grid="official")
    layers = quantized_layers(quantized)
    assert len(layers) == 2 * 6
    assert all(isinstance(layer, QuantizedMatMul) or isinstance(layer.layer, nn.Linear) for layer in layers.values())
    assert {d.name for d in decisions if d.bits is None and d.kind == "Conv2d"} >= {"conv_first", "conv_after_body"}
    for layer in layers.values():
        grids = [grid for grid, _ in layer.calibration_groups().values()]
        grids += [layer.weight_grid] if isinstance(layer, Quantized) else []
        assert all(isinstance(grid, BoundGrid) and grid.scales == 1 for grid in grids)  # two bounds for each tensor
    network = quantized.get_submodule("layers.0.residual_group.blocks.0")
    softmax = network.get_submodule("attn.mix").left_grid  # type: ignore[union-attr]
    assert float(softmax.low.detach()) < 0.05  # type: ignore[union-attr, operator]


def test_convolutional_networks_keep_their_ends() -> None:
    network = IMDN(scale=2, dim=16, units=1).eval()
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    for method in (*KIN, "minmax", "percentile", "dobi"):
        recipe = METHODS[method].recipe_for(network, 4, "deployable")  # type: ignore[attr-defined]
        assert [name for name in convolutions if recipe.bits_of(name) is None] == [convolutions[0], convolutions[-1]]


def test_what_is_balanced() -> None:
    """All convolutions, and the transformers' layers that read a normalization or a residual sum."""
    convolutional, transformer = IMDN(scale=2, dim=16, units=1), swinir()
    for grid in ("deployable", "official"):
        low, _ = quantize(transformer, "2dquant-plus", [(image(),)], bits=4, grid=grid)
        found = {name for name, layer in quantized_layers(low).items() if getattr(layer, "balance", None) is not None}
        assert found == {name for name in quantized_layers(low) if name.endswith(("attn.qkv", "mlp.fc1"))} != set()
    for method, expected in (("balanced", "balanced"), ("2dquant", "tensor")):
        rules = METHODS[method].recipe_for(convolutional, 4).rules  # type: ignore[attr-defined]
        assert {rule.bits.activation_granularity for rule in rules if rule.bits is not None} == {expected}
    assert recipe_of("2dquant-plus", 4).rules[0].bits.activation_granularity == "tensor"  # type: ignore[union-attr]


def test_convolutions_named_like_linear_layers_stay_float() -> None:
    class Mixed(nn.Module):
        config: ClassVar = {"scale": 2}

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleDict(dict(proj=nn.Conv2d(3, 4, 1), scores=MatMul()))
            self.second = nn.ModuleDict(dict(proj=nn.Linear(4, 4)))

    recipe = METHODS["minmax"].recipe_for(Mixed(), 4)  # type: ignore[attr-defined]
    assert recipe.bits_of("first.proj") is None
    assert recipe.bits_of("second.proj") == recipe.bits_of("first.scores") is not None


@pytest.mark.parametrize(
    ("method", "grid"),
    some(
        [
            ("dbdc-pac", "official"),
            ("dqc", "official"),
            ("2dquant", "official"),
            ("2dquant", "deployable"),
            ("condiquant", "official"),
            ("gptq", "deployable"),
            ("2dquant-plus", "deployable"),
            ("svdquant", "deployable"),
            ("brecq", "deployable"),
        ],
        *[("2dquant", "official"), ("2dquant", "deployable"), ("svdquant", "deployable"), ("brecq", "deployable")],
    ),
)
def test_the_second_stage_helps(method: str, grid: str) -> None:
    """On inputs that were not refined on, too."""
    network, batches = swinir(), [(image(seed),) for seed in (1, 2, 3, 4)]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    quantized, _ = quantize(network, method, batches, bits=3, grid=grid)
    before = distance(quantized, network, image(9))
    assert isinstance(METHODS[method], TwoStage)
    results = METHODS[method].refine(quantized, network, batches, steps=16)  # type: ignore[attr-defined]
    assert sum(result.steps for result in results) == 16
    assert distance(quantized, network, image(9)) < before


def test_deployable_grids() -> None:
    quantized, _ = quantize(swinir(), "2dquant", [(image(),)], bits=4)
    for layer in quantized_layers(quantized).values():
        for grid, _ in layer.calibration_groups().values():
            assert isinstance(grid, StepGrid) and grid.kind == "integer"
        if isinstance(layer, Quantized):
            assert isinstance(layer.weight_grid, StepGrid) and layer.weight_grid.kind == "none"
            assert layer.weight_grid.scales == layer.layer.get_parameter("weight").shape[0]


def test_free_bounds_move_in_values_and_scales_in_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    units: list[str] = []

    def distilled(student: nn.Module, teacher: nn.Module, batches: Any, settings: Refinement, **_: Any) -> Refined:
        units.append(settings.unit)
        return Refined(settings.steps, 0.0, (0.0, 0.0))

    monkeypatch.setattr("bitlens.methods.twodquant.distill", distilled)
    for grid in ("official", "deployable"):
        quantized, _ = quantize(swinir(), "dqc", [(image(),)], bits=4, grid=grid)
        METHODS["dqc"].refine(quantized, swinir(), [(image(),)])  # type: ignore[attr-defined]
    assert units == ["value", "range"]


@pytest.mark.parametrize("method", KIN)
def test_recipes_survive_toml(method: str, tmp_path: Path) -> None:
    for grid in ("official", "deployable"):
        recipe = METHODS[method].recipe_for(swinir(), 3, grid)  # type: ignore[attr-defined]
        assert (recipe.method, recipe.name) == (method, f"{method}-w3a3")
        (tmp_path / "recipe.toml").write_text(recipe.to_toml())
        assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_both_stages_of_one_method_share_their_states(tmp_path: Path) -> None:
    network, batches = swinir(), [(image(),)]
    quantized, _ = quantize(network, "dbdc-pac", batches, bits=4, grid="official")
    steps: list[int] = []
    METHODS["dbdc-pac"].refine(  # type: ignore[attr-defined]
        quantized, network, batches, steps=4, state=tmp_path / "s.pt", on_step=lambda step, loss: steps.append(step)
    )
    assert steps == [1, 2, 3, 4] and {file.name for file in tmp_path.iterdir()} == {"s.pt", "s-1.pt"}


@pytest.mark.slow
def test_dobi_of_a_whole_network_takes_less_than_a_minute() -> None:
    """SwinIR-light, not trained, with the paper's 32 crops of 64 x 64: 15 s of one core were measured."""
    network = published.swinir("light", 2).eval()
    batches = [(torch.rand(4, 3, 64, 64),) for _ in range(8)]
    start = time.process_time()
    quantized, _ = quantize(network, "dobi", batches, bits=4, grid="official")
    assert time.process_time() - start < 60
    assert len(quantized_layers(quantized)) == 24 * 6
