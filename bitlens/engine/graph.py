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
from dataclasses import dataclass, replace
from functools import reduce
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
)
from bitlens.networks.efficientsci import CFormer, EfficientSCI, ResDNet, TemporalAttention
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


@dataclass(frozen=True)
class Tap:
    """Where a layer can be listened to."""

    inputs: tuple[Any, ...]
    """The graph's values that enter it, in the shapes of the torch layer (linear layers: of a convolution)."""
    output: Any


class Graph:
    """The ops of a network of one size; values are OpenVINO outputs."""

    def __init__(self, network: EfficientSCI, lowered: Lowered):
        self.ops = openvino().opset13
        self.names = {id(module): name for name, module in network.named_modules()}
        self.integers = lowered.layers
        self.taps: dict[str, Tap] = {}

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

    def add(self, *values: Any) -> Any:
        """The sum, in order."""
        return reduce(lambda a, b: self.ops.add(a, b).output(0), values)

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


def runs_in_integers(layer: IntegerLayer) -> bool:
    """Whether the layer is in the form of int8 kernels: one scale of the input, zero-points that are codes."""
    return layer.is_exact and not layer.folded


def as_volume(weight: Tensor) -> Tensor:
    """The weight of a linear layer as that of a 1x1x1 convolution; that of a 3-D convolution as it is."""
    return weight.detach().reshape(*weight.shape, *[1] * (5 - weight.ndim))


def build(network: EfficientSCI, lowered: Lowered, frames: int, height: int, width: int) -> tuple[Any, dict[str, Tap]]:
    """The model from initial estimate (1, 1, t, h, w), h and w even, to video (1, c, t, h, w), and its layers' taps."""
    g = Graph(network, lowered)
    estimate = g.ops.parameter([1, 1, frames, height, width], np.float32, "estimate")
    x = extract_features(g, network, estimate.output(0))
    for block in network.resdnet_list:
        x = resdnet(g, block, x)  # type: ignore[arg-type]
    x = pixel_shuffle(g, g.layer(network.up_conv, x))
    return openvino().Model([reconstruct_video(g, network, x)], [estimate], "efficientsci"), g.taps


def extract_features(g: Graph, network: EfficientSCI, x: Any) -> Any:
    """FEM: (1, 1, t, h, w) to (1, 4c, t, h/2, w/2)."""
    for i in range(3):
        main = g.leaky(g.layer(network.fem[2 * i], x))
        if network.config["shortcuts"]:
            side = g.layer(network.fem_shortcut[i], pixel_unshuffle(g, x) if i == 2 else x)
            main = g.add(main, g.leaky(side))
        x = main
    return x


def reconstruct_video(g: Graph, network: EfficientSCI, x: Any) -> Any:
    """VRM: (1, 2c, t, h, w) to (1, color_ch, t, h, w)."""
    shortcuts = network.config["shortcuts"] is True  # "fem" adds none here
    for i in range(2):
        main = g.leaky(g.layer(network.vrm[2 * i], x))
        x = g.add(main, g.leaky(g.layer(network.vrm_shortcut[i], x))) if shortcuts else main
    out = g.layer(network.vrm[4], x)
    return g.add(out, g.layer(network.vrm_shortcut[2], x)) if shortcuts else out


def resdnet(g: Graph, block: ResDNet, x: Any) -> Any:
    """Residual block with dense connections between channel groups."""
    groups = g.split(x, 1, len(block.cformer_list))
    done: list[Any] = []
    for i, (group, former) in enumerate(zip(groups, block.cformer_list, strict=True)):
        if i:
            merge: Any = block.dense_conv[i - 1]
            group = g.leaky(g.layer(merge[0], g.ops.concat([*done, group], 1).output(0)))
        done.append(cformer(g, former, group))  # type: ignore[arg-type]
    return g.add(g.layer(block.last_conv, g.ops.concat(done, 1).output(0)), x)


def cformer(g: Graph, former: CFormer, x: Any) -> Any:
    """Space and time branch in parallel, then a feed-forward network."""
    space = g.layer(former.scb[2], g.leaky(g.layer(former.scb[0], x)))
    x = g.add(space, attention(g, former.tsab, x), x)
    return g.add(g.layer(former.ffn[2], g.leaky(g.layer(former.ffn[0], x))), x)


def attention(g: Graph, module: TemporalAttention, x: Any) -> Any:
    """Temporal attention; q, k, v and what is mixed are (1, heads, d, t, pixels), scores (1, heads, t, t, pixels)."""
    _, c, t, h, w = x.get_shape()
    n, d = module.heads, c // 2 // module.heads
    q, k, v = g.split(g.reshape(g.layer(module.qkv, x), 3, n, d, t, h * w), 0, 3)
    if isinstance(module.moveq, HeadShift) and isinstance(module.movek, HeadShift):
        q = g.add(q, g.constant(module.moveq.bias, 1, n, 1, 1, 1))
        k = g.add(k, g.constant(module.movek.bias, 1, n, 1, 1, 1))

    left, right, unit = g.factors(module.scores, q, k)
    columns = [g.reshape(part, 1, n, t, 1, h * w) for part in g.split(left, 2, d)]
    scores = g.add(*map(g.multiply, columns, g.split(right, 2, d)))
    scores = g.multiply(scores, g.constant(unit))
    g.taps[g.names[id(module.scores)]] = Tap((g.transpose(q, 0, 1, 3, 2, 4), k), scores)

    weights = g.ops.softmax(g.multiply(scores, g.constant(module.scale)), 3).output(0)
    left, right, unit = g.factors(module.mix, weights, v)
    rows = [g.reshape(part, 1, n, 1, t, h * w) for part in g.split(left, 3, t)]
    mixed = g.multiply(g.add(*map(g.multiply, rows, g.split(right, 3, t))), g.constant(unit))
    swap = (0, 1, 3, 2, 4)
    g.taps[g.names[id(module.mix)]] = Tap((weights, g.transpose(v, *swap)), g.transpose(mixed, *swap))
    return g.layer(module.proj, g.reshape(mixed, 1, n * d, t, h, w))


def pixel_shuffle(g: Graph, x: Any) -> Any:
    """PixelShuffle(2) of every frame."""
    _, c, t, h, w = x.get_shape()
    x = g.transpose(g.reshape(x, c // 4, 2, 2, t, h, w), 0, 3, 4, 1, 5, 2)
    return g.reshape(x, 1, c // 4, t, 2 * h, 2 * w)


def pixel_unshuffle(g: Graph, x: Any) -> Any:
    """PixelUnshuffle(2) of every frame."""
    _, c, t, h, w = x.get_shape()
    x = g.transpose(g.reshape(x, c, t, h // 2, 2, w // 2, 2), 0, 3, 5, 1, 2, 4)
    return g.reshape(x, 1, 4 * c, t, h // 2, w // 2)
