"""A fake-quantized network as integers: codes, scales, zero-points and biases of each layer, and a report.

    y = s_w sum (x - z_x) (w - z_w) s_x + bias,    x, w, z integers where an integer kernel is to run it

| way       | what an integer kernel does with the layer                                                         |
|-----------|----------------------------------------------------------------------------------------------------|
| direct    | u8 codes times s8 codes; the zero-point of x is a code, subtracted once per channel: exact         |
| balanced  | the same, after a factor for each input channel that the weights take back: exact                  |
| corrected | the same, and rank-one terms for offsets that are no codes (sums of x, or of w near borders): exact |
| folded    | scales of x per input channel become part of the weights, rounded again to 8 bits: `error`         |
| float     | none: the layer stays as it is                                                                     |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int, Int8
from torch import Tensor, nn

from bitlens.quant.grid import Grid, quantize
from bitlens.quant.layers import LAYERS, QUANTIZED, TRANSPOSED, Quantized, QuantizedMatMul, real_weight, times_inputs

Way = Literal["direct", "balanced", "corrected", "folded", "float"]

LARGEST_CODE = 255
"""Of the u8 containers that hold activations."""


@dataclass(frozen=True)
class Operand:
    """The grid of an activation: code = clamp(round(value / scale + zero_point), qmin, qmax)."""

    scale: Float[Tensor, "..."]
    """One, or one per head or input channel, shaped to broadcast against the values."""
    zero_point: Float[Tensor, "..."]
    """The code of the value 0, integer or not; shaped like the scale."""
    qmin: int
    qmax: int

    def codes(self, values: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The integer codes of values, by the arithmetic of `quant.grid`."""
        return quantize(values.float(), self.scale, self.zero_point, self.qmin, self.qmax).int()

    @property
    def fits(self) -> bool:
        """Whether zero is a code of the container: an integer in qmin .. qmin + 255."""
        container = self.zero_point - self.qmin
        whole = self.zero_point == self.zero_point.round()
        return bool((whole & (container >= 0) & (container <= LARGEST_CODE)).all())


@dataclass(frozen=True)
class IntegerLayer:
    """One convolution or linear layer in integers."""

    geometry: nn.Module
    """The layer inside the fake-quantized one: stride, padding, groups; its weights are not used."""
    input: Operand
    weight: Int8[Tensor, "..."]
    """Codes, shaped like the layer's weight; one-bit codes are -1 and +1."""
    weight_scale: Float[Tensor, "out"]
    """Of each output channel."""
    weight_zero_point: Float[Tensor, "out"]
    """Of each output channel; 0 where the weights are symmetric."""
    bias: Float[Tensor, "out"] | None
    folded: bool
    """The scale of the input is part of the weights."""
    balance: Float[Tensor, "..."] | None = None
    """What the values of the input are multiplied by before their grid, shaped to broadcast against them."""

    @property
    def scale(self) -> Float64[Tensor, "out"]:
        """Value of one unit of each output channel's sum."""
        weight_scale = self.weight_scale.double()
        return weight_scale if self.folded else weight_scale * self.input.scale.double()

    @property
    def is_exact(self) -> bool:
        """Whether the layer's sum is one of integers: no offset but a zero-point that is a code."""
        return self.input.fits and not bool(self.weight_zero_point.any())

    @property
    def bound(self) -> int:
        """No sum of the layer, and no part of one, is larger: 255 times the largest sum of |w| of an output.

        32 bits hold every layer of at most 65,793 terms: 65,793 * 255 * 128 < 2^31.
        """
        axis = channel_axis(self.geometry)
        return LARGEST_CODE * int(self.weight.long().abs().movedim(axis, 0).flatten(1).sum(1).max())

    @property
    def saturates(self) -> bool:
        """Whether two products of a code and a weight may not fit in 16 bits, where CPUs without VNNI add them up."""
        return 2 * (self.input.qmax - self.input.qmin) * int(self.weight.long().abs().max()) > 32_767


def runs_in_integers(layer: IntegerLayer) -> bool:
    """Whether the layer is in the form of int8 kernels: one scale of the input, zero-points that are codes."""
    return layer.is_exact and not layer.folded


@dataclass(frozen=True)
class IntegerProduct:
    """One attention product in integers: two activations (b, heads, i, k, pixels) and (b, heads, k, j, pixels)."""

    left: Operand
    right: Operand


@dataclass(frozen=True)
class Outcome:
    """What became of one layer."""

    name: str
    kind: str
    way: Way
    why: str
    weight_bits: int
    """32: float. For a product, the bits of its left factor."""
    activation_bits: int
    """32: float."""
    error: float = 0.0
    """Relative error of the weights by folding, ||w' - w|| / ||w||."""


@dataclass(frozen=True)
class Lowered:
    """The integers of a network, by dotted name of the layer, and what became of each layer."""

    layers: dict[str, IntegerLayer | IntegerProduct]
    report: list[Outcome]


def lower(network: nn.Module) -> Lowered:
    """The integers of every fake-quantized layer of a network, which is not changed.

    Raises:
        ValueError: a grid without a range.
    """
    layers: dict[str, IntegerLayer | IntegerProduct] = {}
    report = []
    for name, module in layers_of(network):
        kind = type(module.layer if isinstance(module, QUANTIZED) else module).__name__
        if not isinstance(module, QUANTIZED):
            report.append(Outcome(name, kind, "float", "it is not quantized", 32, 32))
            continue
        if not all(grid.ready for grid, _ in module.calibration_groups().values()):
            raise ValueError(f"layer {name} has no range yet; wanted a calibrated network; calibrate it first")
        bits = module.weight_bits, module.activation_bits
        if isinstance(module, QuantizedMatMul):
            layers[name] = product = IntegerProduct(operand(module.left_grid), operand(module.right_grid))
            direct = product.left.fits and product.right.fits
            report.append(Outcome(name, kind, *way_of(direct), *bits))
        elif (reason := obstacle(module.layer)) is not None:
            report.append(Outcome(name, kind, "float", reason, *bits))
        else:
            layers[name] = layer = lower_layer(module)
            if layer.folded:
                error = folding_error(module, layer)
                why = "its input has a scale per channel, which the sum over channels would mix"
                report.append(Outcome(name, kind, "folded", why, *bits, error))
            else:
                report.append(Outcome(name, kind, *way_of(layer.is_exact, layer.balance is not None), *bits))
    return Lowered(layers, report)


def without_saturation(lowered: Lowered) -> Lowered:
    """The integers without the layers that may saturate, which stay float."""
    why = "two products of it may not fit in the 16 bits that this CPU, which has no VNNI, adds them up in"
    return without(lowered, why, lambda layer: layer.saturates)


def without(lowered: Lowered, why: str, floats: Callable[[IntegerLayer], bool] = lambda layer: True) -> Lowered:
    """The integers without those of all layers, or of some, which compute in float what fake quantization does."""
    integers = {name: layer for name, layer in lowered.layers.items() if isinstance(layer, IntegerLayer)}
    out = {name for name, layer in integers.items() if runs_in_integers(layer) and floats(layer)}
    return Lowered(
        {name: layer for name, layer in lowered.layers.items() if name not in out},
        [replace(outcome, way="float", why=why) if outcome.name in out else outcome for outcome in lowered.report],
    )


def layers_of(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers, quantized or not, by dotted name; the float layer inside a quantized one is no layer of its own."""
    inside = {id(module.layer) for module in network.modules() if isinstance(module, QUANTIZED)}
    for name, module in network.named_modules():
        product = type(module).__name__ == "MatMul"
        if id(module) not in inside and (product or isinstance(module, (*LAYERS, *QUANTIZED))):
            yield name, module


def obstacle(geometry: nn.Module) -> str | None:
    """Why the reference cannot run a layer in integers; None: it can."""
    if getattr(geometry, "padding_mode", "zeros") != "zeros":
        return f"it pads by {geometry.padding_mode}"
    if any(step != 1 for step in getattr(geometry, "dilation", ())):
        return "it is dilated, and torch has no such convolution of integers"
    return None


def way_of(direct: bool, balanced: bool = False) -> tuple[Way, str]:
    """The way of a layer whose input has one scale, with the reason."""
    if direct and balanced:
        return "balanced", "integer zero-points that are codes, of inputs times a factor for each channel"
    if direct:
        return "direct", "integer zero-points that are codes"
    return "corrected", "an offset that is no code of the container"


@torch.no_grad()
def lower_layer(layer: Quantized) -> IntegerLayer:
    """The integers of one convolution or linear layer."""
    geometry, inputs = layer.layer, operand(layer.input_grid)
    folded = inputs.scale.numel() > 1
    if folded:
        weight, scale = round_again(geometry, folded_weight(layer))
        offset = torch.zeros_like(scale)
    else:
        weight, scale, offset = weight_codes(layer)
    outputs = geometry.out_features if isinstance(geometry, nn.Linear) else geometry.out_channels
    bias = None if geometry.bias is None else geometry.get_parameter("bias").detach().clone()
    balance = None if layer.balance is None else layer.balance.detach().clone()
    per_channel = per_output(scale, outputs), per_output(offset, outputs)
    return IntegerLayer(geometry, inputs, weight, *per_channel, bias, folded, balance)


def weight_codes(layer: Quantized) -> tuple[Int8[Tensor, "..."], Tensor, Tensor]:
    """The codes of the weights in the s8 container, their scale and their zero-point."""
    grid = layer.weight_grid
    codes = grid.codes(layer.layer.get_parameter("weight"))
    scale, offset = (value.detach().clone() for value in grid.scale_and_zero_point())
    if grid.bits == 1 and bool((offset == -0.5).all()):  # -1/2 and +1/2 of a step are -1 and +1 of half a step
        codes, scale, offset = 2 * codes + 1, scale / 2, torch.zeros_like(offset)
    elif not grid.signed:  # 0 .. 2^b - 1 moves into the signed container
        middle = 2 ** (grid.bits - 1)
        codes, offset = codes - middle, offset - middle
    return codes.to(torch.int8), scale, offset


@torch.no_grad()
def operand(grid: Grid) -> Operand:
    """The constants of an activation's grid; a single scale has no axes."""
    scale, zero_point = (value.detach().clone() for value in grid.scale_and_zero_point())
    if scale.numel() == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return Operand(scale, zero_point, grid.qmin, grid.qmax)


def per_output(values: Tensor, outputs: int) -> Float[Tensor, "out"]:
    """One value for each output channel; the groups of a transposed convolution share theirs."""
    flat = values.flatten().float()
    return flat.repeat(outputs // len(flat))


def channel_axis(geometry: nn.Module) -> int:
    """The axis of the weight that runs over output channels."""
    return 1 if isinstance(geometry, TRANSPOSED) else 0


def folded_weight(layer: Quantized) -> Float64[Tensor, "..."]:
    """The values of the weights times the scale of the input channel that each multiplies."""
    weight, scale = real_weight(layer).double(), layer.input_grid.scale_and_zero_point()[0].detach().double()
    return weight * scale if scale.numel() == 1 else times_inputs(layer.layer, weight, scale)


def round_again(geometry: nn.Module, weight: Float64[Tensor, "..."]) -> tuple[Int8[Tensor, "..."], Tensor]:
    """Symmetric 8-bit codes of weights, and the scale of each output channel, shaped to broadcast."""
    others = [axis for axis in range(weight.ndim) if axis != channel_axis(geometry)]
    scale = (weight.abs().amax(others, keepdim=True) / 127).clamp_min(1e-30)
    return quantize(weight, scale, torch.zeros_like(scale), -127, 127).to(torch.int8), scale


def folding_error(layer: Quantized, lowered: IntegerLayer) -> float:
    """||w' - w|| / ||w|| of the folded weights w and what 8 bits keep of them."""
    exact = folded_weight(layer)
    _, scale = round_again(lowered.geometry, exact)
    return float((lowered.weight.double() * scale - exact).norm() / exact.norm())
