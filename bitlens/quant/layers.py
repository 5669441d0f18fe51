"""Fake-quantized layers: one wrapper for any convolution or linear layer, one for attention products.

    y = layer(input_grid(balance x); weight = weight_grid(w), bias)          product(left_grid(a), right_grid(b))

`balance`, where a recipe asks for it, is one factor for each input channel, by which w was divided
(`bitlens.quant.equalization`). Zero padding happens after quantization, with the real value 0: integer kernels pad with
the code of zero.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitlens.quant.grid import BoundGrid, Grid, StepGrid, TruncationGrid
from bitlens.recipe import Bits

LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
"""Layers with a weight that `Quantized` wraps."""

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Quantized(nn.Module):
    """A convolution or linear layer whose weight and input pass through grids.

    Args:
        layer: the float layer; it stays inside as `layer`, with its parameters.
        bits: how to quantize it.
    """

    balance: Tensor | None
    """What each input channel is multiplied by, shaped to broadcast; None: the recipe asks for no factors."""

    def __init__(self, layer: nn.Module, bits: Bits):
        super().__init__()
        if not isinstance(layer, LAYERS):
            raise TypeError(
                f"{type(layer).__name__}; wanted a convolution or linear layer; leave it float in the recipe"
            )
        self.layer, self.bits, self.quantizing = layer, bits, True
        weight = layer.weight
        per_channel = bits.weight_granularity == "channel"
        self.channel_axis = 1 if isinstance(layer, TRANSPOSED) else 0
        shape = [1] * weight.ndim if per_channel else []
        if per_channel:
            shape[self.channel_axis] = weight.shape[self.channel_axis]
        self.weight_grid = weight_grid(bits, tuple(shape))
        linear = isinstance(layer, nn.Linear)
        channels = layer.in_features if linear else layer.in_channels
        column = (channels,) if linear else (1, channels) + (1,) * (weight.ndim - 2)
        self.input_grid = activation_grid(bits, column if bits.activation_granularity == "input_channel" else ())
        balanced = bits.activation_granularity == "balanced"
        self.register_buffer("balance", torch.ones(column) if balanced else None)

    @property
    def weight_bits(self) -> int:
        return self.bits.weight

    @property
    def activation_bits(self) -> int:
        return self.bits.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.balanced(x)
        if not self.quantizing:
            return self.layer(x)
        weight = self.weight_grid(self.layer.get_parameter("weight"))
        return functional_call(self.layer, {"weight": weight}, (self.input_grid(x),))

    def balanced(self, x: Tensor) -> Tensor:
        """What the grid of the input sees."""
        return x if self.balance is None else x * self.balance

    def rounded(self, x: Tensor) -> Tensor:
        """An input, or some of its channels, as the layer sees it: rounded, if one grid serves all channels.

        Values beyond the grid's range stay as they are: a sum that goes on with them must not be clipped. In training
        the rounding is no more than noise: it moves neither step nor zero-point.
        """
        if not self.quantizing or self.balance is not None or self.input_grid.scales > 1:
            return x
        grid = self.input_grid
        with torch.no_grad():
            scale, zero_point = grid.scale_and_zero_point()
            low, high = ((end - zero_point) * scale for end in (grid.qmin, grid.qmax))
            error = grid(x) - x.clamp(low, high)
        return x + error

    def calibration_groups(self) -> dict[str, tuple[Grid, int | None]]:
        """Each activation grid by name, with the axis that its scales run along (None: one scale)."""
        if self.bits.activation_granularity != "input_channel":
            return {"input_grid": (self.input_grid, None)}
        return {"input_grid": (self.input_grid, self.input_axis)}

    @property
    def input_axis(self) -> int:
        """The axis of the input that runs over its channels."""
        return -1 if isinstance(self.layer, nn.Linear) else 1


class QuantizedMatMul(nn.Module):
    """An attention product whose factors (b, heads, i, k, pixels) pass through grids.

    Args:
        layer: the float product.
        bits: how to quantize it; both factors get the bits of activations.
        heads: number of heads; None gives each factor one scale.
    """

    def __init__(self, layer: nn.Module, bits: Bits, heads: int | None):
        super().__init__()
        self.layer, self.bits, self.quantizing = layer, bits, True
        shape = (1, heads, 1, 1, 1) if heads and bits.product_granularity == "head" else ()
        self.left_grid = activation_grid(bits, shape)
        self.right_grid = activation_grid(bits, shape)

    @property
    def weight_bits(self) -> int:
        return self.bits.activation

    @property
    def activation_bits(self) -> int:
        return self.bits.activation

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        if not self.quantizing:
            return self.layer(left, right)
        return self.layer(self.left_grid(left), self.right_grid(right))

    def calibration_groups(self) -> dict[str, tuple[Grid, int | None]]:
        """Each factor's grid by name, with the axis that its scales run along (None: one scale)."""
        axis = 1 if self.left_grid.scales > 1 else None
        return {"left_grid": (self.left_grid, axis), "right_grid": (self.right_grid, axis)}


QUANTIZED = (Quantized, QuantizedMatMul)


def weight_grid(bits: Bits, shape: tuple[int, ...]) -> Grid:
    """A symmetric signed grid for weights, or free bounds for 2DQuant's parametrization."""
    if bits.parametrization == "bound":
        return BoundGrid(bits.weight, shape)
    return StepGrid(bits.weight, signed=True, shape=shape)


def activation_grid(bits: Bits, shape: tuple[int, ...]) -> Grid:
    """An unsigned grid with a zero-point for activations, or a signed one without (PAMS's, where it is truncated)."""
    if bits.parametrization == "truncation":
        return TruncationGrid(bits.activation, shape)
    if bits.parametrization == "bound":
        return BoundGrid(bits.activation, shape, integer=bits.zero_point == "integer")
    return StepGrid(bits.activation, bits.zero_point == "none", shape, bits.zero_point)


def quantized_layers(network: nn.Module) -> dict[str, Quantized | QuantizedMatMul]:
    """The fake-quantized layers of a network, by dotted name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QUANTIZED)}


@contextmanager
def float_mode(network: nn.Module) -> Iterator[None]:
    """Run the network without its grids inside the block."""
    layers: list[Any] = list(quantized_layers(network).values())
    before = [layer.quantizing for layer in layers]
    for layer in layers:
        layer.quantizing = False
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.quantizing = state


def declare_ready(network: nn.Module) -> None:
    """Declare all grids of a network calibrated, after their parameters were loaded."""
    for module in network.modules():
        if isinstance(module, Grid):
            module.declare_ready()


def fuse_grids(network: nn.Module) -> None:
    """Compile the arithmetic of activation grids and lay weights out for fast convolutions, for training on a CPU.

    Whole fake-quantized networks take torch.compile minutes, and come out no faster; their grids are the slow part.
    Where ATEN_CPU_CAPABILITY holds torch back to an older CPU than this one, they stay uncompiled: torch 2.13 compiles
    wrong code then.
    """
    # A kernel for each type, rank and layout of a tensor that meets a grid; torch stops at 8 of them.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # type: ignore[assignment]
    for layer in quantized_layers(network).values():
        for grid, _ in layer.calibration_groups().values():
            grid.fused = "ATEN_CPU_CAPABILITY" not in os.environ
        if isinstance(layer, Quantized) and isinstance(layer.layer, nn.Conv3d):
            layer.layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def times_inputs(layer: nn.Module, weight: Tensor, factors: Tensor) -> Tensor:
    """A layer's weights, each times the factor of the input channel that it multiplies."""
    factors = factors.flatten()
    if isinstance(layer, TRANSPOSED):
        return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
    groups: int = getattr(layer, "groups", 1)
    rows = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)  # groups out/groups in/groups taps
    return (rows * factors.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def real_weight(layer: Quantized) -> Tensor:
    """The values that the layer computes with: its weight, through its grid."""
    with torch.no_grad():
        return layer.weight_grid(layer.layer.get_parameter("weight"))
