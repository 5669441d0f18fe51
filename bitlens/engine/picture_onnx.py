"""Networks that enlarge pictures, and DUN, as ONNX files that need nothing of bitlens, for one size.

What is computed is read off the network by `trace.py`; this file says how ONNX writes it down. Quantized layers and
products are QuantizeLinear, DequantizeLinear and float arithmetic (`qdq`, see `onnx.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.lower import Lowered, Operand, folded_weight
from bitlens.engine.onnx import Nodes, onnx
from bitlens.engine.steps import Tap
from bitlens.engine.trace import Value, Writer, trace
from bitlens.quant.layers import Quantized

KINDS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "power": "Pow",
    "equal": "Equal",
    "greater": "Greater",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sqrt": "Sqrt",
    "gelu": "Gelu",
}
"""ONNX's names of operations on every element."""


class PictureFile(Nodes, Writer):
    """The nodes of a network for one size of picture; values are names."""

    def __init__(self, lowered: Lowered):
        Nodes.__init__(self)
        Writer.__init__(self, lowered)
        self.known: dict[Any, tuple[Tensor, str]] = {}

    def constant(self, value: Any, kind: type = np.float32) -> str:
        """Numbers of the file; those of one tensor once, however many views of it come."""
        if not isinstance(value, Tensor):
            return super().constant(value, kind)
        key = value.data_ptr(), value.shape, value.stride(), kind
        if key not in self.known:  # the tensor is kept: no other may come to lie where it lies
            self.known[key] = value, super().constant(value, kind)
        return self.known[key][1]

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """The elements of x, in their order, in another shape."""
        return self.op("Reshape", x, self.integers_of(*shape))

    def transpose(self, x: str, axes: Sequence[int]) -> str:
        """x with its axes in another order."""
        return self.op("Transpose", x, perm=tuple(axes))

    def broadcast(self, x: str, shape: Sequence[int]) -> str:
        """x repeated along its axes of size 1."""
        return self.op("Expand", x, self.integers_of(*shape))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        """x[start:stop] along an axis."""
        return self.op("Slice", x, *(self.integers_of(number) for number in (start, stop, axis)))

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Several values as one."""
        return self.op("Concat", *values, axis=axis)

    def gather(self, x: str, axis: int, positions: Sequence[int]) -> str:
        """x at some positions of an axis."""
        return self.op("Gather", x, self.integers_of(*positions), axis=axis)

    def elementwise(self, kind: str, *values: str) -> str:
        """An operation on every element, with broadcasting."""
        return self.op(KINDS[kind], *values)

    def leaky(self, x: str, slope: float) -> str:
        """LeakyReLU."""
        return self.op("LeakyRelu", x, alpha=slope)

    def mean(self, x: str, axes: Sequence[int]) -> str:
        """The mean over some axes, which stay with size 1."""
        return self.op("ReduceMean", x, self.integers_of(*axes))

    def total(self, x: str, axes: Sequence[int]) -> str:
        """The sum over some axes, which stay with size 1."""
        return self.op("ReduceSum", x, self.integers_of(*axes))

    def where(self, condition: str, x: str, other: str) -> str:
        """x where the condition holds, else the other one, with broadcasting."""
        return self.op("Where", condition, x, other)

    def most(self, x: str, axes: Sequence[int]) -> str:
        """The largest along some axes, which stay with size 1."""
        return self.op("ReduceMax", x, self.integers_of(*axes))

    def length(self, x: str, axes: Sequence[int]) -> str:
        """The square root of the sum of squares over some axes, which stay with size 1."""
        return self.op("ReduceL2", x, self.integers_of(*axes))

    def softmax(self, x: str, axis: int) -> str:
        """Softmax along an axis."""
        return self.op("Softmax", x, axis=axis)

    def standardize(self, x: str, epsilon: float) -> str:
        """(x - mean) / sqrt(variance + epsilon) along the last axis."""
        around = self.op("Sub", x, self.mean(x, [-1]))
        variance = self.mean(self.op("Mul", around, around), [-1])
        return self.op("Div", around, self.op("Sqrt", self.op("Add", variance, self.constant(epsilon))))

    def largest(self, x: Value, height: int, width: int) -> str:
        """Max pooling of x (b, c, h, w) to a height and width.

        Raises:
            ValueError: that takes windows of several sizes, which ONNX has not.
        """
        h, w = x.shape[2:]
        if h % height or w % width:
            raise ValueError(
                f"the network pools {h}x{w} pixels to {height}x{width}, which ONNX cannot say; wanted a height and a "
                "width that are multiples of 8; choose another size, or --format openvino"
            )
        window = [h // height, w // width]
        return self.op("MaxPool", x.op, kernel_shape=window, strides=window)

    def resize(self, x: str, height: int, width: int, mode: str) -> str:
        """x (b, c, h, w) in another size."""
        near = mode == "nearest"
        places = "asymmetric" if near else "half_pixel"
        how: dict[str, Any] = dict(mode=mode, axes=(2, 3), coordinate_transformation_mode=places)
        if near:
            how["nearest_mode"] = "floor"
        return self.op("Resize", x, "", "", self.integers_of(height, width), **how)

    def layer(self, name: str, module: nn.Module, x: Value) -> str:
        """A convolution or linear layer."""
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        inputs, weight = self.entered(name, module, x), self.weight(name, module)
        bias = [] if geometry.bias is None else [self.constant(geometry.bias)]
        if isinstance(geometry, nn.Linear):
            product = self.op("MatMul", inputs, weight, name=name)
            return self.op("Add", product, *bias) if bias else product
        settings = dict(strides=geometry.stride, pads=(*geometry.padding, *geometry.padding), group=geometry.groups)
        return self.op("Conv", inputs, weight, *bias, name=name, dilations=geometry.dilation, **settings)

    def entered(self, name: str, module: nn.Module, x: Value) -> str:
        """The input of a layer on its grid."""
        integers = self.exact(name)
        return self.in_float(module, x) if integers is None else self.quantized(integers.input, x.op)

    def weight(self, name: str, module: nn.Module) -> str:
        """A layer's weight; a linear layer's as (in, out)."""
        integers = self.exact(name)
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        linear = isinstance(geometry, nn.Linear)
        if integers is not None:
            codes = integers.weight.t() if linear else integers.weight
            return self.dequantized(codes, integers.weight_scale, axis=1 if linear else 0)
        values = folded_weight(module).float() if isinstance(module, Quantized) else geometry.weight
        return self.constant(values.t() if linear else values)

    def product(self, name: str, module: nn.Module, left: Value, right: Value) -> str:
        """An attention product; the pixels, where there are several, become part of the batch."""
        grids = self.grids(name)
        first, second = (left.op, right.op) if grids is None else (
            self.factor(grids.left, left), self.factor(grids.right, right)
        )  # fmt: skip
        first, second = (self.transpose(one, (0, 1, 4, 2, 3)) for one in (first, second))
        return self.transpose(self.op("MatMul", first, second, name=name), (0, 1, 3, 4, 2))

    def factor(self, grid: Operand, x: Value) -> str:
        """A factor of a product on its grid; axis 1 runs over the heads."""
        if grid.fits and not grid.scale.ndim:
            return self.quantized(grid, x.op)
        # ONNX Runtime fuses a product of quantized factors, and then refuses zero-points of several heads.
        return self.op("Mul", self.offsets(grid, x.op), self.constant(grid.scale))


@torch.no_grad()
def build_traced(network: nn.Module, lowered: Lowered, *size: int, taps: bool = False) -> tuple[Any, dict[str, Tap]]:
    """The model for one size, and its layers' taps.

    From image (1, 3, h, w) to large (1, 3, scale h, scale w) for a size (h, w), from measurement (1, h, w) and mask
    (1, t, h, w) to video (1, 1, t, h, w) for (t, h, w). With `taps` the inputs and outputs of all layers are outputs of
    the model too.

    Raises:
        ValueError: the network does something at this size that ONNX cannot say.
    """
    g = PictureFile(lowered)
    video = {"measurement": [1, *size[1:]], "mask": [1, *size]}
    inputs, output = (video, "video") if len(size) == 3 else ({"image": [1, 3, *size]}, "large")
    found = trace(network, g, *inputs.items())
    g.nodes.append(onnx().helper.make_node("Identity", [found.op], [output], output))
    info, kind = onnx().helper.make_tensor_value_info, onnx().TensorProto.FLOAT
    entries = [info(name, kind, shape) for name, shape in inputs.items()]
    ends = list(g.taps.values()) if taps else []
    return g.file(type(network).__name__.lower(), entries, [info(output, kind, list(found.shape))], ends), g.taps
