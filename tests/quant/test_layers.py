"""A fake-quantized layer computes what integer arithmetic on its codes would, for every layer and granularity."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens.quant.calibrate import calibrate
from bitlens.quant.grid import BoundGrid, StepGrid
from bitlens.quant.layers import Quantized, QuantizedMatMul, float_mode, fuse_grids, quantized_layers, real_weight
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (2, 4, 7, 6)),
    "conv3d": (nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1), bias=False), (2, 2, 3, 5, 4)),
    "transposed1d": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 5)),
    "transposed2d": (nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1), (2, 3, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 3, 2, 3)),
    "linear": (nn.Linear(5, 4), (2, 3, 5)),
}
FUNCTIONS: dict[str, Any] = {
    "conv1d": lambda x, w: F.conv1d(x, w, padding=1),
    "conv2d": lambda x, w: F.conv2d(x, w, padding=1, stride=2, groups=2),
    "conv3d": lambda x, w: F.conv3d(x, w, padding=(0, 1, 1)),
    "transposed1d": lambda x, w: F.conv_transpose1d(x, w, stride=2),
    "transposed2d": lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
    "transposed3d": lambda x, w: F.conv_transpose3d(x, w, stride=2),
    "linear": lambda x, w: F.linear(x, w),
}
GRANULARITIES = [("tensor", "tensor"), ("channel", "tensor"), ("tensor", "input_channel"), ("channel", "input_channel")]


def calibrated(name: str, bits: Bits) -> tuple[Quantized, Tensor]:
    """A layer with random weights, its ranges set from one batch, and that batch."""
    layer, shape = CASES[name]
    torch.manual_seed(1)
    layer.reset_parameters()  # type: ignore[operator]
    network = nn.Sequential(layer)
    recipe = Recipe("one", (Rule("*", bits),), weight_range="mse", activation_range="mse")
    prepare(network, recipe)
    x = torch.randn(shape) + 0.3
    calibrate(network, [(x,)], recipe)
    quantized = network[0]
    assert isinstance(quantized, Quantized)
    return quantized, x


def on_grid(values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, shape: list[int]) -> Tensor:
    """The fake-quantized tensor, written out."""
    s, z = scale.detach().reshape(shape), zero_point.detach().reshape(shape)
    return s * (torch.clamp(torch.round(values / s + z), qmin, qmax) - z)


@pytest.mark.parametrize(("weights", "inputs"), GRANULARITIES)
@pytest.mark.parametrize("name", CASES)
def test_output_is_the_layer_of_rounded_weight_and_input(name: str, weights: Any, inputs: Any) -> None:
    layer, x = calibrated(name, Bits(3, 4, weights, inputs))
    w = layer.layer.get_parameter("weight").detach()
    out_axis = 1 if name.startswith("transposed") else 0
    w_shape, x_shape = [1] * w.ndim, [1] * x.ndim
    if weights == "channel":
        w_shape[out_axis] = w.shape[out_axis]
    if inputs == "input_channel":
        in_axis = -1 if name == "linear" else 1
        x_shape[in_axis] = x.shape[in_axis]
    assert isinstance(layer.weight_grid, StepGrid) and isinstance(layer.input_grid, StepGrid)
    assert layer.weight_grid.scales == torch.Size(w_shape).numel()
    assert layer.input_grid.scales == torch.Size(x_shape).numel()
    rounded_w = on_grid(w, layer.weight_grid.scale, torch.zeros(w_shape), -4, 3, w_shape)
    rounded_x = on_grid(x, layer.input_grid.scale, layer.input_grid.zero_point, 0, 15, x_shape)
    wanted = FUNCTIONS[name](rounded_x, rounded_w)
    if layer.layer.bias is not None:
        bias_shape = [-1] if name == "linear" else [1, -1] + [1] * (x.ndim - 2)
        wanted = wanted + layer.layer.get_parameter("bias").detach().reshape(bias_shape)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(real_weight(layer), rounded_w)
        assert not torch.allclose(layer(x), layer.layer(x), atol=1e-3)  # it does round


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("weights", ["tensor", "channel"])
@pytest.mark.parametrize("name", CASES)
def test_integer_arithmetic_gives_the_same(name: str, weights: Any, bits: int) -> None:
    """s_x s_w sum (x_code - zero_point) w_code + bias, summed in 64-bit integers; padding is the code of zero."""
    layer, x = calibrated(name, Bits(bits, bits, weights))
    w = layer.layer.get_parameter("weight").detach()
    w_codes, x_codes = layer.weight_grid.codes(w).long(), layer.input_grid.codes(x).long()
    s_w, z_w = (value.detach() for value in layer.weight_grid.scale_and_zero_point())
    s_x, z_x = (value.detach() for value in layer.input_grid.scale_and_zero_point())
    doubled = (2 * w_codes - (2 * z_w).long()).long()  # one signed bit stands for -1/2 and +1/2
    sums = FUNCTIONS[name](x_codes - z_x.long(), doubled)
    assert sums.dtype == torch.int64
    channel = [-1] if name == "linear" else [1, -1] + [1] * (x.ndim - 2)
    step = s_w.reshape(channel) if weights == "channel" else s_w
    if weights == "channel" and name == "conv2d":
        assert s_w.numel() == 6
    wanted = sums.double() / 2 * s_x * step
    if layer.layer.bias is not None:
        wanted = wanted + layer.layer.get_parameter("bias").detach().reshape(channel)
    with torch.no_grad():
        torch.testing.assert_close(layer(x).double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parametrization", ["step", "bound"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_everything(name: str, parametrization: Any) -> None:
    layer, x = calibrated(name, Bits(3, 3, parametrization=parametrization))
    layer(1.5 * x).square().sum().backward()  # wider than calibrated: some values saturate
    parameters = dict(layer.named_parameters())
    ends = ["low", "high"] if parametrization == "bound" else ["scale"]
    expected = {f"{grid}.{end}" for grid in ("weight_grid", "input_grid") for end in ends}
    expected |= {"input_grid.zero_point"} if parametrization == "step" else set()
    assert {"layer.weight", *expected} <= set(parameters)
    for key, parameter in parameters.items():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), key
        assert float(parameter.grad.abs().sum()) > 0, key


@pytest.mark.parametrize("name", CASES)
def test_float_mode_is_the_float_layer(name: str) -> None:
    layer, x = calibrated(name, Bits(2, 2))
    network = nn.Sequential(layer)
    with torch.no_grad():
        rounded = network(x)
        with float_mode(network):
            assert torch.equal(network(x), layer.layer(x))
        assert torch.equal(network(x), rounded)
        with pytest.raises(RuntimeError), float_mode(network):
            raise RuntimeError
        assert torch.equal(network(x), rounded)


class MatMul(nn.Module):
    """Stands in for a network's own product."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("bnikp,bnkjp->bnijp", left, right)


class Attention(nn.Module):
    def __init__(self, heads: int | None) -> None:
        super().__init__()
        if heads:
            self.heads = heads
        self.scores = MatMul()

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.scores(left, right)


@pytest.mark.parametrize(("heads", "granularity"), [(3, "head"), (3, "tensor"), (None, "head")])
@pytest.mark.parametrize("bits", [2, 8])
def test_products(heads: int | None, granularity: Any, bits: int) -> None:
    network = Attention(heads)
    recipe = Recipe("one", (Rule("*", Bits(1, bits, product_granularity=granularity)),))
    prepare(network, recipe)
    gains = torch.tensor([0.1, 1.0, 10.0])[None, :, None, None, None]
    left, right = torch.randn(2, 3, 4, 5, 6) * gains, torch.rand(2, 3, 5, 4, 6)
    calibrate(network, [(left, right)], recipe)
    product = network.scores
    assert isinstance(product, QuantizedMatMul)
    per_head = bool(heads) and granularity == "head"
    shape = [1, 3, 1, 1, 1] if per_head else [1] * 5
    rounded = []
    for grid, values in ((product.left_grid, left), (product.right_grid, right)):
        assert isinstance(grid, StepGrid) and grid.scales == (3 if per_head else 1)
        rounded.append(on_grid(values, grid.scale, grid.zero_point, 0, 2**bits - 1, shape))
    with torch.no_grad():
        out = network(left, right)
        torch.testing.assert_close(out, torch.einsum("bnikp,bnkjp->bnijp", *rounded))
        with float_mode(network):
            assert torch.equal(network(left, right), MatMul()(left, right))
    if bits == 8 and per_head:  # the small head is not drowned by the large one
        exact = MatMul()(left, right)
        for head in range(3):
            assert float((out - exact)[:, head].norm() / exact[:, head].norm()) < 0.02


def test_symmetric_and_bound_activations() -> None:
    layer, _ = calibrated("linear", Bits(4, 4, zero_point="none"))
    assert (layer.input_grid.qmin, layer.input_grid.qmax) == (-8, 7)
    layer, _ = calibrated("linear", Bits(4, 4, parametrization="bound"))
    assert isinstance(layer.input_grid, BoundGrid) and layer.input_grid.integer
    zero_point = float(layer.input_grid.scale_and_zero_point()[1].detach())
    assert zero_point == round(zero_point)


def test_refuses_other_layers() -> None:
    with pytest.raises(TypeError, match="LayerNorm; wanted a convolution or linear layer"):
        Quantized(nn.LayerNorm(3), Bits())


def test_names() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    prepare(network, Recipe("one", (Rule("2", Bits()),)))
    assert list(quantized_layers(network)) == ["2"]


@pytest.mark.parametrize("held_back", [False, True])
def test_fuse_grids_is_for_activations(held_back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are too small to be worth a kernel; convolutions get the layout that is fast.

    Where torch is held back to an older CPU, it compiles wrong code: nothing is compiled.
    """
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    if held_back:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    network = nn.Sequential(nn.Conv3d(2, 3, 3), nn.LeakyReLU(), nn.Conv3d(3, 2, 1))
    prepare(network, Recipe("r", (Rule("*", Bits(4, 4)),)))
    fuse_grids(network)
    for layer in quantized_layers(network).values():
        assert isinstance(layer, Quantized) and layer.input_grid.fused != held_back and not layer.weight_grid.fused
        assert layer.layer.get_parameter("weight").is_contiguous(memory_format=torch.channels_last_3d)
