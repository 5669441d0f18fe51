"""EfficientSCI as an OpenVINO graph that its int8 kernels can execute, built op by op, for one size of video.

The same steps as `networks/efficientsci.py`, with five differences of form, none of result:

* activations pass a FakeQuantize of 256 levels, whose zero-point lies in u8, in front of each convolution; grids below
  8 bits are clamped first: any other number of levels runs in float, without a word
* weights are constants of s8 codes, times one scale per output channel
* linear layers are 1x1x1 convolutions
* attention, over a handful of frames, is sums of element-wise products with the pixels last
* a layer whose output is cut into groups is a convolution for each group; pixels are shuffled as codes

What no int8 kernel of OpenVINO can execute (attention's products; layers that `lower` reports corrected, folded or
float) computes in float what fake quantization computes.
"""

from collections.abc import Sequence
from dataclasses import replace
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
from bitlens.engine.runtime import openvino
from bitlens.engine.steps import Steps, Tap
from bitlens.networks.efficientsci import EfficientSCI, TemporalAttention
from bitlens.networks.parts import HeadShift
from bitlens.quant.layers import Quantized

PART = "#"
"""Between the name of a layer and the number of one of its parts, in the names of the compiled model's ops."""


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
        return self.layers(module, x, 1)[0]

    def layers(self, module: nn.Module, x: Any, parts: int) -> list[Any]:
        """What `layer` gives, its channels in equal parts: convolutions of their own, as a split would copy."""
        outs = self.convolve(module, self.enter(module, x), parts=parts)
        self.taps[self.names[id(module)]] = Tap((x,), self.concat(outs) if parts > 1 else outs[0])
        return outs

    def shuffled_layer(self, module: nn.Module, x: Any) -> Any:
        """A layer of the shuffled pixels: of codes where they have one scale, as bytes move faster than floats."""
        moved = self.pixel_shuffle(x)
        inputs = self.pixel_shuffle(self.enter(module, x)) if self.exact(module) else self.enter(module, moved)
        [out] = self.convolve(module, inputs)
        self.taps[self.names[id(module)]] = Tap((moved,), out)
        return out

    def exact(self, module: nn.Module) -> IntegerLayer | None:
        """The integers of a layer, if it runs in them; its input has one scale then."""
        integers = self.integers.get(self.names[id(module)])
        return integers if isinstance(integers, IntegerLayer) and runs_in_integers(integers) else None

    def enter(self, module: nn.Module, x: Any, columns: Tensor | None = None) -> Any:
        """The input of a layer on its grid; `columns`: which of its channels lie where."""
        integers = self.exact(module)
        if integers is not None:
            return self.fake_quantize(integers.input, x)
        if not isinstance(module, Quantized):
            return x
        grid = operand(module.input_grid)
        scale, zero_point = grid.scale.reshape(1, -1, 1, 1, 1), grid.zero_point.reshape(1, -1, 1, 1, 1)
        if columns is not None and scale.numel() > 1:
            scale, zero_point = scale[:, columns], zero_point[:, columns]
        return self.offsets(replace(grid, scale=scale, zero_point=zero_point), x)

    def convolve(
        self,
        module: nn.Module,
        inputs: Any,
        *,
        parts: int = 1,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> list[Any]:
        """A layer's convolution in parts; `rows` and `columns`: the order of its output and of its input channels."""
        name = self.names[id(module)]
        geometry = module.layer if isinstance(module, Quantized) else module
        linear = isinstance(geometry, nn.Linear)
        stride, padding = ((1,) * 3, (0,) * 3) if linear else (geometry.stride, geometry.padding)
        channels = geometry.get_parameter("weight").shape[0]
        outs = []
        for index, part in enumerate((torch.arange(channels) if rows is None else rows).chunk(parts)):
            weight = self.weight(module, part, columns)
            node = self.ops.convolution(inputs, weight, stride, padding, padding, (1,) * 3)
            node.set_friendly_name(name if parts == 1 else f"{name}{PART}{index}")  # kernels and times are found by it
            out = node.output(0)
            if geometry.bias is not None:
                out = self.add(out, self.constant(geometry.get_parameter("bias")[part], 1, -1, 1, 1, 1))
                out.get_node().set_friendly_name(f"{name}{PART}bias{index}")  # a last convolution goes by this name
            outs.append(out)
        return outs

    def weight(self, module: nn.Module, rows: Tensor, columns: Tensor | None) -> Any:
        """Some rows of a layer's weight: s8 codes times a scale per row where it runs in integers, else floats."""
        integers = self.exact(module)
        if integers is not None:
            values = integers.weight
        else:
            values = folded_weight(module) if isinstance(module, Quantized) else module.get_parameter("weight")
        values = as_volume(values)[rows] if columns is None else as_volume(values)[rows][:, columns]
        if integers is None:
            return self.constant(values)
        scale = self.constant(integers.weight_scale[rows], -1, 1, 1, 1, 1)
        return self.multiply(self.ops.convert(self.ops.constant(values.numpy()), "f32"), scale)

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

    def factors(self, product: nn.Module, left: Any, right: Any, heads: tuple[int, int]) -> tuple[Any, Any, Tensor]:
        """Both factors of a product through their grids, with heads in these axes, and the value of one unit of it."""
        grids = self.integers.get(self.names[id(product)])
        if not isinstance(grids, IntegerProduct):
            return left, right, torch.ones(1)
        sides = zip((grids.left, grids.right), (left, right), heads, strict=True)
        left, right = (self.offsets(along(grid, axis), x) for grid, x, axis in sides)
        return left, right, (grids.left.scale * grids.right.scale).reshape(1, 1, -1, 1, 1)

    def attention(self, module: TemporalAttention, x: Any) -> Any:
        """Temporal attention; q, k, v, what is mixed: (1, d, heads, t, pixels); scores: (1, heads, t, t, pixels).

        With d outermost a column of q is a piece of memory, not a copy. The value of a product's unit is multiplied
        into q and v, which are smaller than scores and weights.
        """
        _, c, t, h, w = x.get_shape()
        n, d = module.heads, c // 2 // module.heads
        order = torch.arange(3 * n * d).reshape(3, n, d).transpose(1, 2).flatten()  # (3, heads, d) -> (3, d, heads)
        [qkv] = self.convolve(module.qkv, self.enter(module.qkv, x), rows=order)
        self.taps[self.names[id(module.qkv)]] = Tap((x,), self.take(qkv, order.argsort()))
        q, k, v = self.split(self.reshape(qkv, 3, d, n, t, h * w), 0, 3)
        if isinstance(module.moveq, HeadShift) and isinstance(module.movek, HeadShift):
            q = self.add(q, self.constant(module.moveq.bias, 1, 1, n, 1, 1))
            k = self.add(k, self.constant(module.movek.bias, 1, 1, n, 1, 1))

        left, right, unit = self.factors(module.scores, q, k, (2, 2))
        left = self.multiply(left, self.constant(unit * module.scale))
        columns = [self.reshape(part, 1, n, t, 1, h * w) for part in self.split(left, 1, d)]
        others = [self.reshape(part, 1, n, 1, t, h * w) for part in self.split(right, 1, d)]
        scores = self.add(*map(self.multiply, columns, others))
        both = self.transpose(q, 0, 2, 3, 1, 4), self.transpose(k, 0, 2, 1, 3, 4)
        unscaled = self.multiply(scores, self.constant(1 / module.scale))
        self.taps[self.names[id(module.scores)]] = Tap(both, unscaled)

        weights = self.ops.softmax(scores, 3).output(0)
        left, right, unit = self.factors(module.mix, weights, v, (1, 2))
        right = self.multiply(right, self.constant(unit))
        rows = [self.reshape(part, 1, 1, n, t, h * w) for part in self.split(left, 3, t)]
        mixed = self.add(*map(self.multiply, rows, self.split(right, 3, t)))
        both = weights, self.transpose(v, 0, 2, 3, 1, 4)
        self.taps[self.names[id(module.mix)]] = Tap(both, self.transpose(mixed, 0, 2, 3, 1, 4))

        mixed, order = self.reshape(mixed, 1, d * n, t, h, w), torch.arange(n * d).reshape(n, d).t().flatten()
        [out] = self.convolve(module.proj, self.enter(module.proj, mixed, order), columns=order)
        self.taps[self.names[id(module.proj)]] = Tap((self.take(mixed, order.argsort()),), out)
        return out

    def take(self, x: Any, channels: Tensor) -> Any:
        """Channels of x, in the order given."""
        return self.ops.gather(x, channels.numpy(), np.int64(1)).output(0)

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


def along(grid: Operand, axis: int) -> Operand:
    """A grid with a scale per head, for heads in this axis of five."""
    shape = [-1 if i == axis else 1 for i in range(5)]
    return replace(grid, scale=grid.scale.reshape(shape), zero_point=grid.zero_point.reshape(shape))


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
