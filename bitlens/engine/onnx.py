"""EfficientSCI as an ONNX file that needs nothing of bitlens: measurement and mask in, video out, of any size.

The steps are those of `steps.py`; the initial estimate and the padding of odd sizes are part of the file. Quantized
layers compute what was trained, in one of two forms:

| form      | a quantized convolution or linear layer                     | for whom                              |
|-----------|-------------------------------------------------------------|---------------------------------------|
| `qdq`     | QuantizeLinear, DequantizeLinear, Conv in float             | other tools, which fuse it or read it |
| `integer` | QuantizeLinear, patches of codes, MatMulInteger (u8 · s8)   | ONNX Runtime, which fuses no `qdq`    |

Grids of activations are moved into u8, with a zero-point that is a code; those below 8 bits are clipped. Weights are
codes of 4 bits where they fit and the form is `qdq`, else of 8, with one scale per output channel; biases are float32.
Linear layers are 1x1x1 convolutions. Attention's products have grids too, and sum element by element in float.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from bitlens.engine.graph import as_volume
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

Form = Literal["qdq", "integer"]

OPSET, IR_VERSION = 21, 10
"""Of the file: the first operator set with 4-bit weights, read by ONNX Runtime 1.20 and newer."""
TO_THE_END = 2**62
ABOUT = {
    "measurement": "What the camera gave: y = sum over frames of mask times frame, the plain sum, not divided by the "
    "number of frames or of open pixels. Less the dark level, and divided by the value that one white frame gives "
    "through an open pixel (the gain), so that a white frame through an open pixel counts 1. (batch, height, width)",
    "mask": "How open each pixel is in each frame, calibrated, from 0 (closed) to 1 (open); frames in the order in "
    "which they were exposed. (1 or batch, frames, height, width)",
    "video": "The frames, black 0 and white 1; values may go a little beyond and are to be clipped. (batch, channels, "
    "frames, height, width)",
    "image": "RGB, black 0 and white 1, as the levels of an sRGB picture divided by 255. (1, 3, height, width)",
    "large": "The enlarged RGB picture, black 0 and white 1; values may go a little beyond and are to be clipped.",
}
"""Inputs and outputs of files, for the people who run them: as their `doc_string`, and in the file's metadata."""
OF_ONE_SIZE = "measurement and mask must have one height and one width"
"""What runtimes name when they differ."""


@cache
def onnx() -> ModuleType:
    """The package `onnx`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError(
            "the package onnx is not installed; wanted it to write ONNX files; run pip install 'bitlens[onnx]'"
        ) from None
    return onnx


class Nodes:
    """The nodes and constants of a file under construction; values are names.

    Args:
        form: of quantized layers.
    """

    def __init__(self, form: Form = "qdq"):
        self.form = form
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append a node with one output; an empty input is one that is left out."""
        output = f"{name or kind}/{len(self.nodes)}"
        self.nodes.append(onnx().helper.make_node(kind, inputs, [output], name or output, **attributes))
        return output

    def constant(self, value: Any, kind: type = np.float32) -> str:
        """Numbers of the file."""
        array = np.asarray(value.detach() if isinstance(value, Tensor) else value).astype(kind)
        name = f"constant/{len(self.constants)}"
        self.constants[name] = onnx().numpy_helper.from_array(array, name)
        return name

    def integers_of(self, *values: int) -> str:
        """Axes, positions or a shape."""
        return self.constant(values, np.int64)

    def of_one_size(self, measurement: str, mask: str) -> str:
        """The measurement; with a mask of another height or width the runtime stops here, by the name of this node."""
        return self.op("Expand", measurement, self.op("Shape", mask, start=2), name=OF_ONE_SIZE)

    def zero(self, grid: Operand, repeat: int = 1) -> str:
        """The u8 code of the value 0, of each head `repeat` times."""
        zero = grid.zero_point - grid.qmin
        return self.constant(zero.flatten().repeat_interleave(repeat) if zero.ndim else zero, np.uint8)

    def codes(self, grid: Operand, x: str, repeat: int = 1) -> str:
        """The u8 codes of values; where the grid has several scales, axis 1 runs over them, `repeat` times each."""
        scale = grid.scale.flatten().repeat_interleave(repeat) if grid.scale.ndim else grid.scale
        last = grid.qmax - grid.qmin
        if self.form == "qdq" and last < LARGEST_CODE:  # tools want to see the clip in front of the codes
            limit = (last - (grid.zero_point - grid.qmin)) * grid.scale
            if grid.scale.ndim:
                limit = column_of(limit, repeat)
            x = self.op("Min", x, self.constant(limit))
        codes = self.op("QuantizeLinear", x, self.constant(scale), self.zero(grid, repeat))
        if self.form == "integer" and last < LARGEST_CODE:
            codes = self.op("Clip", codes, "", self.constant(last, np.uint8))
        return codes

    def quantized(self, grid: Operand, x: str, repeat: int = 1) -> str:
        """The values of x on a grid whose zero-points are codes."""
        scale = grid.scale.flatten().repeat_interleave(repeat) if grid.scale.ndim else grid.scale
        codes = self.codes(grid, x, repeat)
        return self.op("DequantizeLinear", codes, self.constant(scale), self.zero(grid, repeat))

    def dequantized(self, codes: Tensor, scale: Tensor, axis: int) -> str:
        """The values of a weight's codes, of 4 bits where they fit; the scales run along an axis."""
        if codes.min() >= -8 and codes.max() <= 7:
            weight = f"constant/{len(self.constants)}"
            kind = onnx().TensorProto.INT4
            numbers = codes.flatten().tolist()
            self.constants[weight] = onnx().helper.make_tensor(weight, kind, codes.shape, numbers)
        else:
            weight = self.constant(codes, np.int8)
        return self.op("DequantizeLinear", weight, self.constant(scale), axis=axis)

    def offsets(self, grid: Operand, x: str) -> str:
        """code - zero_point, for zero-points that are any numbers."""
        zero_point = self.constant(grid.zero_point)
        place = self.op("Add", self.op("Div", x, self.constant(grid.scale)), zero_point)
        codes = self.op("Round", self.op("Clip", place, self.constant(grid.qmin), self.constant(grid.qmax)))
        return self.op("Sub", codes, zero_point)

    def needed(self, outputs: Sequence[str]) -> tuple[list[Any], list[Any]]:
        """The nodes and the constants that outputs depend on."""
        wanted, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                nodes.append(node)
                wanted |= set(node.input)
        return nodes[::-1], [constant for name, constant in self.constants.items() if name in wanted]

    def file(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any], taps: Sequence[Tap] = ()) -> Any:
        """The model; the inputs and outputs of layers, where they are listened to, are outputs of the model too."""
        ends = {end for tap in taps for end in (*tap.inputs, tap.output)}
        kind = onnx().TensorProto.FLOAT
        outputs = [*outputs, *(onnx().helper.make_tensor_value_info(end, kind, None) for end in sorted(ends))]
        nodes, constants = self.needed([output.name for output in outputs])
        graph = onnx().helper.make_graph(nodes, name, inputs, outputs, constants)
        opsets = [onnx().helper.make_opsetid("", OPSET)]
        model = onnx().helper.make_model(graph, producer_name="bitlens", opset_imports=opsets, ir_version=IR_VERSION)
        known = [value for value in (*model.graph.input, *model.graph.output) if value.name in ABOUT]
        for value in known:
            value.doc_string = ABOUT[value.name]
        model.doc_string = f"{name}, written by bitlens export; inputs and outputs are float32, see the metadata"
        onnx().helper.set_model_props(model, {"network": name} | {value.name: value.doc_string for value in known})
        return model


class Graph(Steps, Nodes):
    """The ops of a network of any size; values are names, layers' nodes have the names of the layers."""

    def __init__(self, network: EfficientSCI, lowered: Lowered, form: Form = "qdq"):
        Steps.__init__(self, network, lowered)
        Nodes.__init__(self, form)

    def slice(self, x: str, axes: Sequence[int], start: Sequence[int], end: Sequence[int], step: Sequence[int]) -> str:
        """x[start:end:step] along some axes."""
        return self.op("Slice", x, *(self.integers_of(*part) for part in (start, end, axes, step)))

    def reshape(self, x: str, leading: Sequence[int], like: str) -> str:
        """x as (leading, t, h, w), the latter of `like`; 0 keeps an axis."""
        return self.op("Reshape", x, self.op("Concat", self.integers_of(*leading), self.sizes(like, 2), axis=0))

    def sizes(self, x: str, start: int) -> str:
        """The shape of x from an axis on."""
        return self.op("Shape", x, start=start)

    def plus(self, a: str, b: str) -> str:
        """The sum, element by element."""
        return self.op("Add", a, b)

    def leaky(self, x: str) -> str:
        """LeakyReLU with torch's slope."""
        return self.op("LeakyRelu", x, alpha=0.01)

    def concat(self, values: list[str]) -> str:
        """Several values as one, along the channels."""
        return self.op("Concat", *values, axis=1)

    def split(self, x: str, axis: int, parts: int) -> list[str]:
        """Equal parts along an axis."""
        outputs = [f"Split/{len(self.nodes)}/{i}" for i in range(parts)]
        self.nodes.append(onnx().helper.make_node("Split", [x], outputs, outputs[0], axis=axis, num_outputs=parts))
        return outputs

    def layer(self, module: nn.Module, x: str) -> str:
        """A convolution, or a linear layer as one, quantized or not."""
        name = self.names[id(module)]
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        integers = self.integers.get(name)
        if isinstance(integers, IntegerLayer) and runs_in_integers(integers):
            form = self.product if self.form == "integer" else self.quantized_convolution
            out = form(name, integers, x)
        elif isinstance(module, Quantized):
            grid, column = operand(module.input_grid), (1, -1, 1, 1, 1)
            grid = replace(grid, scale=grid.scale.reshape(column), zero_point=grid.zero_point.reshape(column))
            weight = self.constant(as_volume(folded_weight(module)))
            out = self.convolution(name, geometry, self.offsets(grid, x), weight)
        else:
            out = self.convolution(name, geometry, x, self.constant(as_volume(geometry.weight)))
        self.taps[name] = Tap((x,), out)
        return out

    def convolution(self, name: str, geometry: Any, x: str, weight: str) -> str:
        """A convolution in float."""
        stride, padding = shape_of(geometry)
        bias = [] if geometry.bias is None else [self.constant(geometry.bias)]
        return self.op("Conv", x, weight, *bias, name=name, strides=stride, pads=(*padding, *padding))

    def quantized_convolution(self, name: str, layer: IntegerLayer, x: str) -> str:
        """A convolution of dequantized codes: what int8 tools look for."""
        values = self.dequantized(as_volume(layer.weight), layer.weight_scale, axis=0)
        return self.convolution(name, layer.geometry, self.quantized(layer.input, x), values)

    def product(self, name: str, layer: IntegerLayer, x: str) -> str:
        """The patches of codes times the codes of the weights, summed in 32 bits; NAME/sum is the accumulator."""
        codes = as_volume(layer.weight)
        (patches, order), zero = self.patches(layer, self.codes(layer.input, x), codes.shape), self.zero(layer.input)
        matrix = codes.permute(*(axis + 1 for axis in order), 1, 0).flatten(0, -2)  # terms out
        total = f"{name}/sum"
        inputs = [patches, self.constant(matrix, np.int8), zero]
        self.nodes.append(onnx().helper.make_node("MatMulInteger", inputs, [total], name))
        out = self.op("Cast", total, to=onnx().TensorProto.FLOAT)
        out = self.op("Mul", out, self.constant(layer.scale))
        out = out if layer.bias is None else self.op("Add", out, self.constant(layer.bias))
        return self.op("Transpose", out, perm=(0, 4, 1, 2, 3))

    def patches(self, layer: IntegerLayer, codes: str, shape: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """The codes under the weight (o, c, kt, kh, kw) at each place: (b, t, h, w, terms).

        Also returns the order of the taps' axes (1 t, 2 h, 3 w) among the terms; the input channels vary fastest.
        """
        (stride, padding), taps = shape_of(layer.geometry), shape[2:]
        codes = self.op("Transpose", codes, perm=(0, 2, 3, 4, 1))  # b t h w c
        if any(padding):
            ends = (0, *padding, 0)
            codes = self.op("Pad", codes, self.integers_of(*ends, *ends), self.zero(layer.input))
        # Few bytes are slow to copy one by one: short runs grow along one axis at a time.
        stages = ((1,), (2, 3)) if shape[1] > 1 else ((1,), (2,), (3,))
        for axes in stages:
            sizes, steps = [taps[axis - 1] for axis in axes], [stride[axis - 1] for axis in axes]
            parts = []
            for tap in itertools.product(*map(range, sizes)):
                ends = [at - size + 1 or TO_THE_END for at, size in zip(tap, sizes, strict=True)]
                parts.append(self.slice(codes, axes, tap, ends, steps))
            if len(parts) > 1:
                codes = self.op("Concat", *parts, axis=4)
        return codes, tuple(axis for axes in reversed(stages) for axis in axes)

    def factor(self, grid: Operand | None, x: str, repeat: int = 1) -> str:
        """A factor of a product on its grid; axis 1 of x runs over the heads, `repeat` times each."""
        if grid is None:
            return x
        if grid.fits:
            return self.quantized(grid, x, repeat)
        scale = column_of(grid.scale, repeat)
        grid = replace(grid, scale=scale, zero_point=column_of(grid.zero_point, repeat))
        return self.op("Mul", self.offsets(grid, x), self.constant(scale))

    def attention(self, module: TemporalAttention, x: str) -> str:
        """Temporal attention; q, k, v are (b, heads d, t, pixels), scores (b, heads, t, t, pixels)."""
        n, inner = module.heads, qkv_width(module)
        d = inner // n
        qkv = self.op("Reshape", self.layer(module.qkv, x), self.integers_of(0, 0, 0, -1))
        q, k, v = self.split(qkv, 1, 3)
        if isinstance(module.moveq, HeadShift) and isinstance(module.movek, HeadShift):
            q, k = (
                self.op("Add", part, self.constant(move.bias.flatten().repeat_interleave(d).reshape(-1, 1, 1)))
                for part, move in ((q, module.moveq), (k, module.movek))
            )
        product = self.integers.get(self.names[id(module.scores)])
        left, right = self.grids(product)
        columns, rows = (
            self.channels(self.factor(left, q, d), n, d, 3),
            self.channels(self.factor(right, k, d), n, d, 2),
        )
        scores = self.add(*(self.op("Mul", column, row) for column, row in zip(columns, rows, strict=True)))
        inputs = self.transpose_tokens(self.heads(q, n, d)), self.heads(k, n, d)
        self.taps[self.names[id(module.scores)]] = Tap(inputs, scores)

        weights = self.op("Softmax", self.op("Mul", scores, self.constant(module.scale)), axis=3)
        left, right = self.grids(self.integers.get(self.names[id(module.mix)]))
        factor, last = self.factor(left, weights), self.integers_of(3)
        mixed = [
            self.op("ReduceSum", self.op("Mul", factor, row), last, keepdims=0)  # b n t p
            for row in self.channels(self.factor(right, v, d), n, d, 2)
        ]
        axis = self.integers_of(2)
        joined = self.op("Concat", *(self.op("Unsqueeze", part, axis) for part in mixed), axis=2)  # b n d t p
        inputs = weights, self.transpose_tokens(self.heads(v, n, d))
        self.taps[self.names[id(module.mix)]] = Tap(inputs, self.transpose_tokens(joined))
        return self.layer(module.proj, self.reshape(joined, (0, inner), x))

    def grids(self, product: Any) -> tuple[Operand | None, Operand | None]:
        """The grids of both factors of a product; None where it is float."""
        return (product.left, product.right) if isinstance(product, IntegerProduct) else (None, None)

    def channels(self, x: str, n: int, d: int, axis: int) -> list[str]:
        """Each of the d channels of x (b, n d, t, p), for all heads, with a new axis: (b, n, ..., t, ..., p)."""
        parts = [self.slice(x, [1], [i], [n * d], [d]) for i in range(d)]
        return [self.op("Unsqueeze", part, self.integers_of(axis)) for part in parts]

    def heads(self, x: str, n: int, d: int) -> str:
        """(b, n d, t, p) as (b, n, d, t, p); for taps."""
        shape = self.op("Concat", self.integers_of(0, n, d), self.sizes(x, 2), axis=0)
        return self.op("Reshape", x, shape)

    def transpose_tokens(self, x: str) -> str:
        """(b, n, d, t, p) as (b, n, t, d, p); for taps."""
        return self.op("Transpose", x, perm=(0, 1, 3, 2, 4))

    def pixel_shuffle(self, x: str) -> str:
        """PixelShuffle(2) of every frame."""
        parts = self.op("Transpose", self.reshape(x, (0, -1, 2, 2), x), perm=(0, 1, 4, 5, 2, 6, 3))  # b c t h 2 w 2
        double = self.op("Mul", self.sizes(x, 3), self.integers_of(2))
        return self.op("Reshape", parts, self.op("Concat", self.integers_of(0, 0, 0), double, axis=0))

    def pixel_unshuffle(self, x: str) -> str:
        """PixelUnshuffle(2) of every frame."""
        corners = [self.slice(x, (3, 4), (i, j), (TO_THE_END,) * 2, (2, 2)) for i in range(2) for j in range(2)]
        axis = self.integers_of(2)
        parts = self.op("Concat", *(self.op("Unsqueeze", corner, axis) for corner in corners), axis=2)  # b c 4 t h w
        return self.reshape(parts, (0, -1), corners[0])

    def estimate(self, measurement: str, mask: str) -> str:
        """The initial estimate (b, 1, t, h, w), odd sizes padded by one mirrored row or column."""
        zero, one = self.constant(0.0), self.constant(1.0)
        total = self.op("ReduceSum", mask, self.integers_of(1), keepdims=0)
        total = self.op("Where", self.op("Equal", total, zero), one, total)
        mean = self.op("Unsqueeze", self.op("Div", measurement, total), self.integers_of(1))
        x = self.op("Unsqueeze", self.op("Add", mean, self.op("Mul", mask, mean)), self.integers_of(1))  # b 1 t h w
        odd = self.op("Mod", self.sizes(x, 3), self.integers_of(2))
        return self.op("Pad", x, self.op("Concat", self.integers_of(*[0] * 8), odd, axis=0), mode="edge")


def shape_of(geometry: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Stride and padding of a convolution; those of a linear layer as one."""
    if isinstance(geometry, nn.Linear):
        return (1, 1, 1), (0, 0, 0)
    return geometry.stride, geometry.padding  # type: ignore[return-value]


def column_of(values: Tensor, repeat: int) -> Tensor:
    """One value a head, against attention's weights (b, heads, t, t, p); repeated, against (b, heads repeat, t, p)."""
    return values.flatten().repeat_interleave(repeat).reshape(-1, *[1] * (3 if repeat == 1 else 2))


def qkv_width(module: TemporalAttention) -> int:
    """The channels of q, of k and of v."""
    layer: Any = getattr(module.qkv, "layer", module.qkv)
    return layer.out_features // 3


def build(
    network: EfficientSCI, lowered: Lowered, form: Form = "qdq", taps: bool = False
) -> tuple[Any, dict[str, Tap]]:
    """The model from measurement (b, h, w) and mask (1 or b, t, h, w) to video (b, c, t, h, w), and its layers' taps.

    With `taps` the inputs and outputs of all layers are outputs of the model too.
    """
    if form not in get_args(Form):
        raise ValueError(f"form {form!r}; wanted {' or '.join(get_args(Form))}; choose one")
    g = Graph(network, lowered, form)
    video = g.reconstruct(network, g.estimate(g.of_one_size("measurement", "mask"), "mask"))
    size = g.sizes("measurement", 1)
    g.nodes.append(
        onnx().helper.make_node("Slice", [video, g.integers_of(0, 0), size, g.integers_of(3, 4)], ["video"], "video")
    )
    info, kind = onnx().helper.make_tensor_value_info, onnx().TensorProto.FLOAT
    inputs = [
        info("measurement", kind, ["batch", "height", "width"]),
        info("mask", kind, ["masks", "frames", "height", "width"]),
    ]
    shape = ["batch", network.config["color_ch"], "frames", "height", "width"]
    outputs = [info("video", kind, shape)]
    return g.file("efficientsci", inputs, outputs, list(g.taps.values()) if taps else []), g.taps
