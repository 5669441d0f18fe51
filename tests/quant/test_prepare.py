"""Preparation finds the layers of any tree, replaces each once by the first rule that matches, and reports all."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.grid import BoundGrid
from bitlens.quant.layers import Quantized, QuantizedMatMul, quantized_layers, real_weight
from bitlens.quant.prepare import prepare, unprepare
from bitlens.recipe import Bits, Recipe, Rule


class MatMul(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.norm = nn.LayerNorm(6)
        self.steps = nn.ModuleList([nn.ModuleList([nn.Linear(6, 6), nn.GELU()]), nn.ModuleList([nn.Linear(6, 6)])])
        self.product = MatMul()


class Toy(nn.Module):
    """Nested lists, a block used twice, one layer under two names, and layers that are not quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.stem = nn.Conv2d(1, 6, 3)
        self.block = Block()
        self.again = self.block
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.PReLU())
        self.tied = self.head[0]


def recipe(*rules: Rule) -> Recipe:
    return Recipe("toy", rules)


def test_report_tells_of_every_layer_and_why() -> None:
    network = Toy()
    small, wide = Bits(3, 3), Bits(8, 8)
    rules = (Rule("*.steps.1.*"), Rule("*.steps.*", small), Rule("*product", wide), Rule("head*", small))
    decisions = prepare(network, recipe(*rules))
    assert [(d.name, d.kind, d.bits, d.why) for d in decisions] == [
        ("stem", "Conv2d", None, "no rule matches"),
        ("block.norm", "LayerNorm", None, "not a layer that bitlens quantizes"),
        ("block.steps.0.0", "Linear", small, "rule '*.steps.*'"),
        ("block.steps.1.0", "Linear", None, "rule '*.steps.1.*' leaves it float"),
        ("block.product", "MatMul", wide, "rule '*product'"),
        ("again.norm", "LayerNorm", None, "the same layer as block.norm"),
        ("again.steps.0.0", "Linear", small, "the same layer as block.steps.0.0"),
        ("again.steps.1.0", "Linear", None, "the same layer as block.steps.1.0"),
        ("again.product", "MatMul", wide, "the same layer as block.product"),
        ("head.0", "Linear", small, "rule 'head*'"),
        ("head.2", "PReLU", None, "not a layer that bitlens quantizes"),
        ("tied", "Linear", small, "the same layer as head.0"),
    ]
    assert set(quantized_layers(network)) == {"block.steps.0.0", "block.product", "head.0"}
    assert isinstance(network.stem, nn.Conv2d) and isinstance(network.block.get_submodule("steps.1.0"), nn.Linear)


def test_shared_layers_stay_shared() -> None:
    """A layer under two names must not be quantized under one of them only."""
    network = Toy()
    prepare(network, recipe(Rule("*", Bits(4, 4))))
    assert network.again is network.block
    assert isinstance(network.tied, Quantized) and network.tied is network.head[0]


def test_first_rule_decides() -> None:
    network = Toy()
    prepare(network, recipe(Rule("head.0", Bits(2, 5)), Rule("h*", Bits(7, 7)), Rule("*", Bits(4, 4))))
    layers = quantized_layers(network)
    assert (layers["head.0"].weight_bits, layers["head.0"].activation_bits) == (2, 5)
    assert layers["stem"].weight_bits == 4
    assert (layers["block.product"].weight_bits, layers["block.product"].activation_bits) == (4, 4)


def test_parameters_are_kept() -> None:
    network = Toy()
    before = {id(p) for p in network.parameters()}
    prepare(network, recipe(Rule("*", Bits(4, 4))))
    assert before <= {id(p) for p in network.parameters()}


@pytest.mark.parametrize(("granularity", "scales"), [("head", 2), ("tensor", 1)])
def test_heads_come_from_the_parent(granularity: Any, scales: int) -> None:
    network = Toy()
    prepare(network, recipe(Rule("*", Bits(4, 4, product_granularity=granularity))))
    product = network.block.product
    assert isinstance(product, QuantizedMatMul)
    assert product.left_grid.scales == product.right_grid.scales == scales


def test_bound_parametrization() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    prepare(network, recipe(Rule("*", Bits(4, 4, parametrization="bound"))))
    layer = network[0]
    assert isinstance(layer, Quantized)
    assert isinstance(layer.weight_grid, BoundGrid) and isinstance(layer.input_grid, BoundGrid)


def test_every_layer_of_the_network() -> None:
    network = EfficientSCI(8, 1, 2, shift=True, shortcuts=True)
    decisions = prepare(network, recipe(Rule("*", Bits(4, 4))))
    left = {d.name.rpartition(".")[2]: d.kind for d in decisions if d.bits is None}
    assert left == {"moveq": "HeadShift", "movek": "HeadShift"}
    kinds = {d.kind for d in decisions if d.bits}
    assert kinds == {"Conv3d", "Linear", "MatMul"}
    names = set(quantized_layers(network))
    assert {"fem.0", "fem_shortcut.2", "vrm_shortcut.2", "resdnet_list.0.cformer_list.1.tsab.scores"} <= names


def test_unprepare_keeps_what_the_weights_were_rounded_to() -> None:
    network = Toy()
    names = [name for name, _ in network.named_modules(remove_duplicate=False)]
    prepare(network, recipe(Rule("*", Bits(4, 4))))
    for layer in quantized_layers(network).values():
        if isinstance(layer, Quantized):
            ends = torch.ones(layer.weight_grid.scales)
            layer.weight_grid.set_range(-ends, ends)
    stem = network.get_submodule("stem")
    assert isinstance(stem, Quantized)
    rounded, old = real_weight(stem), stem.layer.get_parameter("weight").clone()
    unprepare(network)
    assert not quantized_layers(network) and network.tied is network.head[0] is not None
    assert [name for name, _ in network.named_modules(remove_duplicate=False)] == names
    assert torch.equal(network.stem.weight, rounded) and not torch.equal(rounded, old)
    assert any(decision.bits for decision in prepare(network, recipe(Rule("*", Bits(3, 3)))))


def test_refuses_twice() -> None:
    network = Toy()
    prepare(network, recipe(Rule("stem", Bits(4, 4))))
    with pytest.raises(ValueError, match="quantized already; wanted a float one"):
        prepare(network, recipe(Rule("head.0", Bits(4, 4))))


@pytest.mark.parametrize("rules", [(Rule("nothing.*", Bits(4, 4)), Rule("x")), (Rule("*"),)])
def test_refuses_to_quantize_nothing(rules: tuple[Rule, ...]) -> None:
    network = Toy()
    with pytest.raises(
        ValueError, match=rf"no layer .* by the rules '{re.escape(rules[0].pattern)}.*correct the patterns"
    ):
        prepare(network, recipe(*rules))
    assert not quantized_layers(network)


def test_refuses_a_bare_layer() -> None:
    with pytest.raises(ValueError, match=r"single Linear.*put it into nn\.Sequential"):
        prepare(nn.Linear(2, 2), recipe(Rule("*", Bits(4, 4))))
