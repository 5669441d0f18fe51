"""Lowering says of every layer what an integer kernel can do with it, and gives the codes that checkpoints hold."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitlens.engine.lower import IntegerLayer, IntegerProduct, lower
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.layers import Quantized, quantized_layers, real_weight
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule


def network_with(bits: Bits | None, layer: nn.Module | None = None) -> nn.Module:
    """Two layers: the first (a convolution where none is given) by `bits`, the second at 8 bits."""
    network = nn.Sequential(layer or nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    prepare(network, Recipe("one", (Rule("0", bits), Rule("*", Bits()))))
    for quantized in quantized_layers(network).values():
        assert isinstance(quantized, Quantized)
        for grid in (quantized.input_grid, quantized.weight_grid):
            grid.set_range(-torch.linspace(0.1, 0.3, grid.scales), torch.linspace(0.5, 1.0, grid.scales))
    return network


WAYS: dict[str, tuple[Bits | None, str, str]] = {
    "defaults": (Bits(4, 4), "direct", "codes"),
    "symmetric activations": (Bits(4, 4, zero_point="none"), "direct", "codes"),
    "one bit": (Bits(1, 1), "direct", "codes"),
    "free offsets": (Bits(4, 4, zero_point="free"), "corrected", "offset"),
    "bounds": (Bits(4, 4, parametrization="bound"), "corrected", "offset"),
    "one symmetric bit": (Bits(1, 1, zero_point="none"), "corrected", "offset"),
    "input channels": (Bits(4, 4, activation_granularity="input_channel"), "folded", "a scale per channel"),
    "float": (None, "float", "not quantized"),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways(name: str) -> None:
    bits, way, why = WAYS[name]
    lowered = lower(network_with(bits))
    first, second = lowered.report
    assert (first.name, first.kind, first.way) == ("0", "Conv2d", way) and why in first.why
    assert (first.weight_bits, first.activation_bits) == ((bits.weight, bits.activation) if bits else (32, 32))
    assert (first.error > 0) == (way == "folded")
    assert (second.name, second.way) == ("1", "direct")
    assert set(lowered.layers) == ({"1"} if way == "float" else {"0", "1"})


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 4, 3, dilation=2)]
)
def test_what_has_no_integer_form_stays_float(layer: nn.Module) -> None:
    outcome = lower(network_with(Bits(), layer)).report[0]
    assert outcome.way == "float" and ("reflect" in outcome.why or "dilated" in outcome.why)


def test_a_scale_for_the_only_input_channel_is_one_for_the_tensor() -> None:
    bits = Bits(4, 4, activation_granularity="input_channel")
    assert lower(network_with(bits, nn.Conv2d(1, 4, 3))).report[0].way == "direct"


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("settings", [{}, dict(weight_granularity="tensor"), dict(parametrization="bound")])
def test_codes_are_the_real_weights(settings: dict[str, Any], bits: int) -> None:
    network = network_with(Bits(bits, bits, **settings))
    layer, integer = network.get_submodule("0"), lower(network).layers["0"]
    assert isinstance(integer, IntegerLayer) and isinstance(layer, Quantized)
    scale, offset = integer.weight_scale.reshape(-1, 1, 1, 1), integer.weight_zero_point.reshape(-1, 1, 1, 1)
    torch.testing.assert_close((integer.weight - offset) * scale, real_weight(layer), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [False, True])
def test_efficientsci_is_direct_throughout(shift: bool) -> None:
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    data: tuple[Tensor, Tensor] = (mask * torch.rand(1, 4, 16, 16)).sum(1), mask
    network, decisions = quantize(EfficientSCI(8, 1, 2), "qsci" if shift else "direct", [data], bits=4)
    lowered = lower(network)
    assert [outcome.name for outcome in lowered.report] == [decision.name for decision in decisions if decision.bits]
    assert {outcome.way for outcome in lowered.report} == {"direct"}
    assert isinstance(lowered.layers["resdnet_list.0.cformer_list.1.tsab.scores"], IntegerProduct)


def test_a_network_without_ranges_is_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    prepare(network, Recipe("one", (Rule("*", Bits()),)))
    with pytest.raises(ValueError, match="layer 0 has no range yet; wanted a calibrated network"):
        lower(network)
