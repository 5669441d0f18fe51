"""Calibration sets every range from the data that passes, keeps more quality at more bits, and refuses bad data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitlens.methods import recipe_of
from bitlens.networks.efficientsci import EfficientSCI, initialize_identity
from bitlens.quant.calibrate import KEPT, calibrate
from bitlens.quant.grid import Grid, StepGrid
from bitlens.quant.layers import Quantized, float_mode
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule


def toy() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))


def recipe(bits: Bits, **ranges: Any) -> Recipe:
    return Recipe("toy", (Rule("*", bits),), **ranges)


def span(grid: Grid) -> tuple[Tensor, Tensor]:
    """Lowest and highest value of a grid."""
    with torch.no_grad():
        scale, zero_point = grid.scale_and_zero_point()
        return (grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale


def test_ranges_come_from_all_batches() -> None:
    network = toy()
    made = recipe(Bits(8, 8, zero_point="free"), activation_range="minmax", weight_range="minmax")
    prepare(network, made)
    batches = [(torch.rand(1, 2, 8, 8) - 0.5,), (torch.rand(2, 2, 4, 6) * 3,), (-2 * torch.rand(1, 2, 5, 5),)]
    calibrate(network, iter(batches), made)
    first, second = network[0], network[2]
    assert isinstance(first, Quantized) and isinstance(second, Quantized)
    low, high = span(first.input_grid)
    assert float(low) == pytest.approx(min(float(x.min()) for (x,) in batches), rel=1e-5)
    assert float(high) == pytest.approx(max(float(x.max()) for (x,) in batches), rel=1e-5)
    with torch.no_grad(), float_mode(network):
        seen = max(float(network[1](network[0](x)).max()) for (x,) in batches)
    low, high = span(second.input_grid)
    assert float(low) == 0.0 and float(high) == pytest.approx(seen, rel=1e-5)
    scale = second.weight_grid.get_parameter("scale")
    wanted = second.layer.get_parameter("weight").detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    torch.testing.assert_close(scale.detach(), wanted)


def test_ranges_of_input_channels() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    made = recipe(Bits(8, 8, activation_granularity="input_channel", zero_point="free"), activation_range="minmax")
    prepare(network, made)
    x = torch.randn(50, 3) * torch.tensor([0.1, 1.0, 10.0])
    calibrate(network, [(x,)], made)
    layer = network[0]
    assert isinstance(layer, Quantized)
    low, high = span(layer.input_grid)
    torch.testing.assert_close(low, x.amin(0))
    torch.testing.assert_close(high, x.amax(0))


@pytest.mark.parametrize("shape", [(1, 2, 300, 300), (1, 2, 256, 256)])
def test_extremes_of_large_tensors_are_seen(shape: tuple[int, ...]) -> None:
    """Of a large tensor only some values are kept, but never without its ends."""
    network = nn.Sequential(nn.Conv2d(2, 1, 1))
    made = recipe(Bits(8, 8), activation_range="minmax")
    prepare(network, made)
    x = torch.rand(shape)
    assert x.numel() > KEPT
    x[0, 1, 17, 23], x[0, 0, 200, 7] = 50.0, -30.0
    calibrate(network, [(x,)], made)
    layer = network[0]
    assert isinstance(layer, Quantized)
    low, high = span(layer.input_grid)
    step = float(layer.input_grid.get_parameter("scale").detach())
    assert abs(float(low) + 30) <= step and abs(float(high) - 50) <= step


def test_methods_of_the_recipe_are_used() -> None:
    ranges = {}
    x = torch.randn(1, 2, 90, 90) ** 3
    for method in ("minmax", "percentile", "mse", "lsq"):
        network = toy()
        made = recipe(Bits(4, 4, zero_point="none"), activation_range=method, weight_range=method)
        prepare(network, made)
        calibrate(network, [(x,)], made)
        layer = network[0]
        assert isinstance(layer, Quantized) and isinstance(layer.input_grid, StepGrid)
        ranges[method] = float(layer.input_grid.scale.detach())
        if method == "lsq":
            assert ranges[method] == pytest.approx(2 * float(x.abs().mean()) / 7**0.5, rel=0.05)
    assert ranges["mse"] < ranges["percentile"] < ranges["minmax"]
    assert len(set(ranges.values())) == 4


def test_observes_the_float_network() -> None:
    """Rounding of the first layer does not change what the second one sees."""
    x = torch.rand(1, 2, 8, 8)
    spans = []
    for bits in (1, 8):
        torch.manual_seed(0)
        network = toy()
        made = Recipe("toy", (Rule("0", Bits(bits, bits)), Rule("2", Bits(8, 8))), activation_range="minmax")
        prepare(network, made)
        calibrate(network, [(x,)], made)
        layer = network[2]
        assert isinstance(layer, Quantized)
        spans.append(span(layer.input_grid))
    assert spans[0] == spans[1]


def test_mode_and_hooks_are_as_before() -> None:
    network = toy().train()
    made = recipe(Bits(4, 4))
    prepare(network, made)
    x = torch.rand(1, 2, 8, 8)
    calibrate(network, [(x,)], made)
    assert network.training
    layer = network[0]
    assert isinstance(layer, Quantized) and layer.quantizing and not layer._forward_pre_hooks
    before = span(layer.input_grid)
    with torch.no_grad():
        network(100 * x)
    assert span(layer.input_grid) == before  # frozen


def test_refuses_no_batches() -> None:
    network, made = toy(), recipe(Bits(4, 4))
    prepare(network, made)
    with pytest.raises(ValueError, match=r"no data reached 0\.input_grid; wanted calibration batches"):
        calibrate(network, [], made)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_refuses_a_layer_that_no_data_reaches() -> None:
    network, made = Branches(), recipe(Bits(4, 4))
    prepare(network, made)
    with pytest.raises(ValueError, match=r"no data reached unused\.input_grid"):
        calibrate(network, [(torch.rand(3, 2),)], made)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_values_that_are_not_finite(bad: float) -> None:
    network, made = nn.Sequential(nn.Conv2d(2, 1, 1)), recipe(Bits(4, 4))
    prepare(network, made)
    x = torch.rand(1, 2, 300, 300)
    x[0, 1, 17, 23] = bad
    with pytest.raises(ValueError, match=r"0\.input_grid saw NaN or infinite values"):
        calibrate(network, [(x,)], made)
    layer = network[0]
    assert isinstance(layer, Quantized) and layer.quantizing and not layer._forward_pre_hooks


@pytest.mark.parametrize("grid", ["deployable", "official"])
@pytest.mark.parametrize("method", ["direct", "qsci"])
def test_more_bits_are_closer_to_the_float_network(method: str, grid: str) -> None:
    network = EfficientSCI(8, 1, 2, shift=method == "qsci", shortcuts=method == "qsci").eval()
    initialize_identity(network)
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    measurement = (mask * torch.rand(1, 4, 16, 16)).sum(1)
    with torch.no_grad():
        exact = network(measurement, mask)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    errors = []
    for bits in (8, 4, 2):
        copied = EfficientSCI(**network.config).eval()
        copied.load_state_dict(state)
        made = recipe_of(method, bits, grid)
        if grid == "official":  # LSQ's start is for training; here only the granularity is of interest
            made = Recipe(made.name, made.rules, method)
        prepare(copied, made)
        calibrate(copied, [(measurement, mask)], made)
        with torch.no_grad():
            errors.append(float((copied(measurement, mask) - exact).square().mean().sqrt()))
    assert errors[0] < 0.02 and 3 * errors[0] < errors[1] < errors[2]
