"""The integer reference computes what fake quantization simulates, for every layer, bit-width and granularity."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.engine.lower import IntegerLayer, IntegerProduct, Operand, lower, lower_layer
from bitlens.engine.reference import (
    accumulate,
    accumulate_product,
    corrected_sum,
    reference_network,
    requantize,
    values,
)
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI, MatMul
from bitlens.quant.calibrate import calibrate
from bitlens.quant.layers import Quantized, QuantizedMatMul
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding="same", groups=2), (2, 4, 7, 6)),
    "conv3d": (nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1), stride=(1, 2, 2), bias=False), (2, 2, 3, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2, 3)),
    "linear": (nn.Linear(5, 4), (2, 3, 5)),
}
FUNCTIONS: dict[str, Any] = {
    "conv1d": lambda x, w: F.conv1d(x, w, padding=1),
    "conv2d": lambda x, w: F.conv2d(x, w, padding="same", groups=2),
    "conv3d": lambda x, w: F.conv3d(x, w, padding=(0, 1, 1), stride=(1, 2, 2)),
    "transposed1d": lambda x, w: F.conv_transpose1d(x, w, stride=2),
    "transposed2d": lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1, groups=2),
    "transposed3d": lambda x, w: F.conv_transpose3d(x, w, stride=2),
    "linear": F.linear,
}
GRANULARITIES: list[dict[str, Any]] = [
    dict(weight_granularity="channel"),
    dict(weight_granularity="tensor"),
    dict(weight_granularity="channel", zero_point="rounded"),
    dict(weight_granularity="tensor", zero_point="none"),
]


def calibrated(name: str, bits: Bits) -> tuple[Quantized, Tensor]:
    """A layer with random weights, its ranges set from one batch, and that batch."""
    layer, shape = CASES[name]
    layer.reset_parameters()  # type: ignore[operator]
    network = nn.Sequential(layer)
    recipe = Recipe("one", (Rule("*", bits),), weight_range="minmax", activation_range="minmax")
    prepare(network, recipe)
    x = torch.randn(shape) + 0.3
    calibrate(network, [(x,)], recipe)
    quantized = network[0]
    assert isinstance(quantized, Quantized)
    return quantized.eval(), x


def assert_same_values(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to the rounding of sums in float32."""
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 * float(theirs.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("settings", GRANULARITIES, ids=lambda s: "-".join(s.values()))
@pytest.mark.parametrize("name", CASES)
def test_accumulators_are_the_integer_products_of_the_codes(name: str, settings: dict[str, Any], bits: int) -> None:
    layer, x = calibrated(name, Bits(bits, bits, **settings))
    lowered = lower_layer(layer)
    if bits == 1 and settings.get("zero_point") == "none":  # codes -1 and 0 around -1/2
        assert not lowered.is_exact
        assert_same_values(values(lowered, corrected_sum(lowered, lowered.input.codes(x))), layer(x))
        return
    codes = lowered.input.codes(x)
    assert torch.equal(codes, layer.input_grid.codes(x).int())
    _, z_x = layer.input_grid.scale_and_zero_point()
    _, z_w = layer.weight_grid.scale_and_zero_point()
    w = layer.weight_grid.codes(layer.layer.get_parameter("weight"))
    unit = 2 if bits == 1 else 1  # one-bit codes stand for -1/2 and +1/2
    wanted = FUNCTIONS[name](codes.long() - z_x.long(), (unit * (w - z_w)).long())
    total = accumulate(lowered, codes)
    assert total.dtype == (torch.int64 if "transposed" in name else torch.int32)
    assert torch.equal(total.long(), wanted)
    assert int(total.abs().max()) <= lowered.bound
    assert torch.equal(corrected_sum(lowered, codes), wanted.double())  # the general form agrees
    assert_same_values(values(lowered, total), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("settings", [dict(zero_point="free"), dict(zero_point="free", parametrization="bound")])
@pytest.mark.parametrize("name", CASES)
def test_free_offsets_are_corrected(name: str, settings: dict[str, Any], bits: int) -> None:
    layer, x = calibrated(name, Bits(bits, bits, **settings))
    lowered = lower_layer(layer)
    with pytest.raises(ValueError, match="wanted integer zero-points"):
        accumulate(lowered, lowered.input.codes(x))
    assert_same_values(values(lowered, corrected_sum(lowered, lowered.input.codes(x))), layer(x))


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_point", ["integer", "rounded", "free"])
@pytest.mark.parametrize("name", CASES)
def test_input_channel_scales_fold_into_the_weights(name: str, zero_point: Any, bits: int) -> None:
    layer, x = calibrated(name, Bits(bits, bits, activation_granularity="input_channel", zero_point=zero_point))
    network = nn.Sequential(layer)
    lowered = lower(network)
    integer, outcome = lowered.layers["0"], lowered.report[0]
    assert isinstance(integer, IntegerLayer) and outcome.way == "folded"
    assert 0 < outcome.error < 0.01
    out, wanted = reference_network(network)(x), layer(x)
    assert float((out - wanted).norm() / wanted.norm()) < 0.02
    # exact but for the weights: the folded ones, times codes less zero-point, give the same
    transposed = "transposed" in name
    groups = layer.layer.groups if transposed else 1
    assert isinstance(groups, int)
    weight_scale = integer.weight_scale[: len(integer.weight_scale) // groups]  # groups of transposed ones share it
    axes = ([1, -1] if transposed else [-1, 1]) + [1] * (integer.weight.ndim - 2)
    inputs = layer.input_grid(x) / layer.input_grid.scale_and_zero_point()[0]
    again = FUNCTIONS[name](inputs, integer.weight.float() * weight_scale.reshape(axes))
    if layer.layer.bias is not None:
        channel = [-1] if name == "linear" else [1, -1] + [1] * (x.ndim - 2)
        again = again + layer.layer.get_parameter("bias").reshape(channel)
    assert_same_values(out, again)


@torch.no_grad()
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zero_point", ["integer", "rounded", "free", "none"])
@pytest.mark.parametrize("granularity", ["head", "tensor"])
def test_products(granularity: Any, zero_point: Any, bits: int) -> None:
    product = QuantizedMatMul(MatMul(), Bits(8, bits, product_granularity=granularity, zero_point=zero_point), heads=3)
    gains = torch.tensor([0.1, 1.0, 10.0])[None, :, None, None, None]
    left, right = torch.randn(2, 3, 4, 5, 6) * gains, torch.rand(2, 3, 5, 4, 6)
    network = nn.Sequential()
    network.product = product  # type: ignore[assignment]
    for (grid, axis), factor in zip(product.calibration_groups().values(), (left, right), strict=True):
        rows = factor.reshape(1, -1) if axis is None else factor.movedim(axis, 0).flatten(1)
        grid.set_range(rows.amin(1), rows.amax(1))
    lowered = lower(network).layers["product"]
    assert isinstance(lowered, IntegerProduct)
    left_codes, right_codes = lowered.left.codes(left), lowered.right.codes(right)
    total = accumulate_product(lowered, left_codes, right_codes)
    exact = torch.einsum(
        "bnikp,bnkjp->bnijp", left_codes - lowered.left.zero_point, right_codes - lowered.right.zero_point
    )
    whole = zero_point in ("integer", "rounded") or (zero_point == "none" and bits > 1)
    assert total.dtype == (torch.int32 if whole else torch.float64)
    torch.testing.assert_close(total.double(), exact.double(), rtol=0, atol=0 if whole else 0.1)
    assert_same_values(reference_network(network).get_submodule("product")(left, right), product(left, right))


def test_rounding_is_half_to_even() -> None:
    layer, _ = calibrated("linear", Bits(8, 8))
    one = IntegerLayer(
        nn.Linear(1, 1, bias=False), Operand(torch.tensor(1.0), torch.tensor(0.0), 0, 255),
        torch.ones(1, 1, dtype=torch.int8), torch.ones(1), torch.zeros(1), None, False,
    )  # fmt: skip
    target = Operand(torch.tensor(2.0), torch.tensor(3.0), 0, 255)
    total = torch.tensor([[-7], [-5], [-3], [-1], [1], [3], [5], [600]], dtype=torch.int32)
    assert requantize(one, total, target).flatten().tolist() == [0, 0, 2, 2, 4, 4, 6, 255]
    assert lower_layer(layer).is_exact


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_next_codes_differ_in_ties_only(bits: int) -> None:
    layer, _ = calibrated("conv2d", Bits(bits, bits))
    x = torch.randn(8, 4, 24, 24) + 0.3
    lowered = lower_layer(layer)
    out = layer(x)
    target = Operand(torch.tensor(float(out.std()) / 2**bits), torch.tensor(float(2 ** (bits - 1))), 0, 2**bits - 1)
    ours = requantize(lowered, accumulate(lowered, lowered.input.codes(x)), target)
    different = ours != target.codes(out)
    position = out / target.scale + target.zero_point
    assert float(different.float().mean()) < 1e-3
    assert bool(((position[different] % 1) - 0.5).abs().lt(1e-3).all())


def test_the_bound_is_reached_and_decides_the_type() -> None:
    def layer(terms: int) -> IntegerLayer:
        operand = Operand(torch.tensor(1.0), torch.tensor(0.0), 0, 255)
        weight = torch.full((1, terms), -128, dtype=torch.int8)
        zeros = torch.zeros(1)
        return IntegerLayer(nn.Linear(terms, 1), operand, weight, zeros + 1, zeros, None, False)

    largest, beyond = layer(65_793), layer(65_794)
    assert largest.bound == 65_793 * 255 * 128 < 2**31 <= beyond.bound
    for one, kind in ((largest, torch.int32), (beyond, torch.int64)):
        total = accumulate(one, torch.full((1, one.weight.shape[1]), 255, dtype=torch.int32))
        assert total.dtype == kind and int(total) == -one.bound


@torch.no_grad()
@pytest.mark.parametrize(("method", "bits"), [("direct", 8), ("qsci", 4), ("qsci", 2)])
def test_whole_network(method: str, bits: int) -> None:
    """A low-bit network turns a last-bit change into a code; most of the output must still be equal."""
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    measurement = (mask * torch.rand(1, 4, 16, 16)).sum(1)
    recipe_network, _ = quantize(EfficientSCI(8, 1, 2), method, [(measurement, mask)], bits=bits)
    wanted, out = recipe_network(measurement, mask), reference_network(recipe_network)(measurement, mask)
    error = float((out - wanted).norm() / wanted.norm())
    assert error < 0.02
