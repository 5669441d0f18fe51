"""EfficientSCI as an OpenVINO graph that its int8 kernels can execute, built op by op, for one size of video.

The same steps as `networks/efficientsci.py`, with four differences of form, none of result:

* activations pass a FakeQuantize of 256 levels, whose zero-point lies in u8, in front of each convolution; grids below
  8 bits are clamped first: any other number of levels runs in float, without a word
* weights are constants of s8 codes, times one scale per output channel
* linear layers are 1x1x1 convolutions
* attention, over a handful of frames, is sums of element-wise products with the pixels last

What no int8 kernel of OpenVINO can execute (attention's products; layers that `lower` reports corrected, folded or
float) computes in float what fake quantization computes.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.lower import (
    LARGEST_CODE,
    IntegerLayer,
    IntegerProduct,
    Lowered,
    Operand,
    folded_weight,
    operand,
    runs_in_integers,
)
from bitlens.engine.steps import Steps, Tap
from bitlens.networks.efficientsci import EfficientSCI, TemporalAttention
from bitlens.networks.parts import HeadShift
from bitlens.quant.layers import Quantized


def openvino() -> ModuleType:
    """The `openvino` package, without its telemetry.

    `openvino_telemetry` writes an identity into the home folder when it is imported, and counts calls. Hidden from
    the import, OpenVINO puts its own empty stand-in into its place.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


class Graph(Steps):
    """The ops of a network of one size; values are OpenVINO outputs."""

    def __init__(self, network: EfficientSCI, lowered: Lowered):
        super().__init__(network, lowered)
        self.ops = openvino().opset13

    def constant(self, value: Tensor | Sequence[float] | float, *shape: int) -> Any:
        """Float32 numbers, reshaped where a shape is given."""
        array = np.asarray(value.detach() if isinstance(value, Tensor) else value, np.float32)
        return self.ops.constant(array.reshape(shape) if shape else array)

    def reshape(self, x: Any, *shape: int) -> Any:
        """x in another shape."""
        return self.ops.reshape(x, np.array(shape, np.int64), False).output(0)

    def transpose(self, x: Any, *axes: int) -> Any:
        """x with its axes in another order."""
        return self.ops.transpose(x, np.array(axes, np.int64)).output(0)

    def split(self, x: Any, axis: int, parts: int) -> list[Any]:
        """Equal parts along an axis."""
        return self.ops.split(x, axis, parts).outputs()

    def concat(self, values: list[Any]) -> Any:
        """Several values as one, along the channels."""
        return self.ops.concat(values, 1).output(0)

    def plus(self, a: Any, b: Any) -> Any:
        """The sum, element by element."""
        return self.ops.add(a, b).output(0)

    def multiply(self, a: Any, b: Any) -> Any:
        """The product, element by element."""
        return self.ops.multiply(a, b).output(0)

    def leaky(self, x: Any) -> Any:
        """LeakyReLU with torch's slope."""
        return self.ops.prelu(x, self.constant([0.01])).output(0)

    def layer(self, module: nn.Module, x: Any) -> Any:
        """A convolution, or a linear layer as one, quantized or not."""
        name = self.names[id(module)]
        geometry = module.layer if isinstance(module, Quantized) else module
        integers = self.integers.get(name)
        if isinstance(integers, IntegerLayer) and runs_in_integers(integers):
            inputs, weight = self.fake_quantize(integers.input, x), self.codes(integers)
        elif isinstance(module, Quantized):
            grid, column = operand(module.input_grid), (1, -1, 1, 1, 1)
            grid = replace(grid, scale=grid.scale.reshape(column), zero_point=grid.zero_point.reshape(column))
            inputs, weight = self.offsets(grid, x), self.constant(as_volume(folded_weight(module)))
        else:
            inputs, weight = x, self.constant(as_volume(geometry.get_parameter("weight")))
        linear = isinstance(geometry, nn.Linear)
        stride, padding = ((1,) * 3, (0,) * 3) if linear else (geometry.stride, geometry.padding)
        node = self.ops.convolution(inputs, weight, stride, padding, padding, (1,) * 3)
        node.set_friendly_name(name)  # the compiled model tells by it which kernel runs the layer
        out = node.output(0)
        if geometry.bias is not None:
            out = self.add(out, self.constant(geometry.get_parameter("bias"), 1, -1, 1, 1, 1))
        self.taps[name] = Tap((x,), out)
        return out

    def codes(self, layer: IntegerLayer) -> Any:
        """Weights as s8 codes times a scale per output channel."""
        codes = self.ops.constant(as_volume(layer.weight).numpy())
        return self.multiply(self.ops.convert(codes, "f32"), self.constant(layer.weight_scale, -1, 1, 1, 1, 1))

    def fake_quantize(self, grid: Operand, x: Any) -> Any:
        """The values of an input with one scale on its grid, as the u8 convolutions want to see it."""
        zero, scale, last = float(grid.zero_point) - grid.qmin, float(grid.scale), grid.qmax - grid.qmin
        low, high = -zero * scale, (LARGEST_CODE - zero) * scale
        if last < LARGEST_CODE:
            x = self.ops.clamp(x, low, (last - zero) * scale)
        ends = [self.constant(end, 1, 1, 1, 1, 1) for end in (low, high, low, high)]
        return self.ops.fake_quantize(x, *ends, LARGEST_CODE + 1).output(0)

    def offsets(self, grid: Operand, x: Any) -> Any:
        """code - zero_point, computed in float; bf16 holds it exactly where the zero-point is an integer."""
        zero_point = self.constant(grid.zero_point)
        place = self.add(self.ops.divide(x, self.constant(grid.scale)), zero_point)
        codes = self.ops.round(self.ops.clamp(place, grid.qmin, grid.qmax), "half_to_even")
        return self.ops.subtract(codes, zero_point).output(0)

    def factors(self, module: nn.Module, left: Any, right: Any) -> tuple[Any, Any, Tensor]:
        """Both factors of a product through their grids, and the value of one unit of it, for each head."""
        grids = self.integers.get(self.names[id(module)])
        if not isinstance(grids, IntegerProduct):
            return left, right, torch.ones(1)
        unit = grids.left.scale * grids.right.scale
        return self.offsets(grids.left, left), self.offsets(grids.right, right), unit

    def attention(self, module: TemporalAttention, x: Any) -> Any:
        """Temporal attention; q, k, v, what is mixed: (1, heads, d, t, pixels); scores: (1, heads, t, t, pixels)."""
        _, c, t, h, w = x.get_shape()
        n, d = module.heads, c // 2 // module.heads
        q, k, v = self.split(self.reshape(self.layer(module.qkv, x), 3, n, d, t, h * w), 0, 3)
        if isinstance(module.moveq, HeadShift) and isinstance(module.movek, HeadShift):
            q = self.add(q, self.constant(module.moveq.bias, 1, n, 1, 1, 1))
            k = self.add(k, self.constant(module.movek.bias, 1, n, 1, 1, 1))

        left, right, unit = self.factors(module.scores, q, k)
        columns = [self.reshape(part, 1, n, t, 1, h * w) for part in self.split(left, 2, d)]
        scores = self.add(*map(self.multiply, columns, self.split(right, 2, d)))
        scores = self.multiply(scores, self.constant(unit))
        self.taps[self.names[id(module.scores)]] = Tap((self.transpose(q, 0, 1, 3, 2, 4), k), scores)

        weights = self.ops.softmax(self.multiply(scores, self.constant(module.scale)), 3).output(0)
        left, right, unit = self.factors(module.mix, weights, v)
        rows = [self.reshape(part, 1, n, 1, t, h * w) for part in self.split(left, 3, t)]
        mixed = self.multiply(self.add(*map(self.multiply, rows, self.split(right, 3, t))), self.constant(unit))
        swap = (0, 1, 3, 2, 4)
        self.taps[self.names[id(module.mix)]] = Tap((weights, self.transpose(v, *swap)), self.transpose(mixed, *swap))
        return self.layer(module.proj, self.reshape(mixed, 1, n * d, t, h, w))

    def pixel_shuffle(self, x: Any) -> Any:
        """PixelShuffle(2) of every frame."""
        _, c, t, h, w = x.get_shape()
        x = self.transpose(self.reshape(x, c // 4, 2, 2, t, h, w), 0, 3, 4, 1, 5, 2)
        return self.reshape(x, 1, c // 4, t, 2 * h, 2 * w)

    def pixel_unshuffle(self, x: Any) -> Any:
        """PixelUnshuffle(2) of every frame."""
        _, c, t, h, w = x.get_shape()
        x = self.transpose(self.reshape(x, c, t, h // 2, 2, w // 2, 2), 0, 3, 5, 1, 2, 4)
        return self.reshape(x, 1, 4 * c, t, h // 2, w // 2)


def as_volume(weight: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1x1x1 convolution; that of a 3-D convolution as it is."""
    return weight.detach().reshape(*weight.shape, *[1] * (5 - weight.ndim))


def build(network: EfficientSCI, lowered: Lowered, frames: int, height: int, width: int) -> tuple[Any, dict[str, Tap]]:
    """The model from initial estimate (1, 1, t, h, w), h and w even, to video (1, c, t, h, w), and its layers' taps."""
    g = Graph(network, lowered)
    estimate = g.ops.parameter([1, 1, frames, height, width], np.float32, "estimate")
    video = g.reconstruct(network, estimate.output(0))
    return openvino().Model([video], [estimate], "efficientsci"), g.taps


def build_camera(network: EfficientSCI, lowered: Lowered, frames: int, height: int, width: int) -> Any:
    """The model from measurement (1, h, w) and mask (1, t, h, w) to video (1, c, t, h, w), h and w even."""
    g = Graph(network, lowered)
    measurement = g.ops.parameter([1, height, width], np.float32, "measurement")
    mask = g.ops.parameter([1, frames, height, width], np.float32, "mask")
    total = g.ops.reduce_sum(mask, np.array([1], np.int64), True)  # 1 1 h w
    total = g.ops.select(g.ops.equal(total, g.constant(0.0)), g.constant(1.0), total)
    mean = g.ops.divide(g.reshape(measurement, 1, 1, height, width), total)
    estimate = g.plus(mean, g.multiply(mask, mean))  # 1 t h w
    video = g.reconstruct(network, g.reshape(estimate, 1, 1, frames, height, width))
    parameters = [measurement, mask]
    for node, name in ((measurement, "measurement"), (mask, "mask"), (video.get_node(), "video")):
        node.output(0).get_tensor().set_names({name})
    return openvino().Model([video], parameters, "efficientsci")
