"""Any network as an ONNX file that needs nothing of bitlens: measurement and mask, or a picture, in; the result out.

What is computed is read off the network by `trace.py`; this file says how ONNX writes it down. Quantized layers and
products are QuantizeLinear, DequantizeLinear and float arithmetic (`qdq`, see `onnx.py`). Sizes are numbers, or symbols
(`sizes.py`): what the network computes with those is in the file too, from the shapes of its inputs.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.lower import Lowered, Operand, folded_weight
from bitlens.engine.onnx import Nodes, onnx
from bitlens.engine.sizes import Sizes, expression_of
from bitlens.engine.steps import Tap
from bitlens.engine.trace import Extent, Value, Writer, trace
from bitlens.quant.layers import TRANSPOSED, Quantized
from bitlens.tasks import of

KINDS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "power": "Pow",
    "equal": "Equal",
    "greater": "Greater",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sqrt": "Sqrt",
    "gelu": "Gelu",
    "abs": "Abs",
    "exp": "Exp",
    "tanh": "Tanh",
}
"""ONNX's names of operations on every element."""
OF_SIZES = {"Add": "Add", "Mul": "Mul", "Max": "Max", "Min": "Min", "Mod": "Mod", "PythonMod": "Mod"}
"""ONNX's names of what sizes are computed by."""


class TracedFile(Nodes, Writer):
    """The nodes of a network; values are names.

    Args:
        lowered: the integers of its layers.
        sizes: symbols in the place of sizes; None: all are numbers.
    """

    def __init__(self, lowered: Lowered, sizes: Sizes | None = None):
        Nodes.__init__(self)
        Writer.__init__(self, lowered)
        self.sizes = sizes
        self.known: dict[Any, tuple[Tensor, str]] = {}
        self.computed: dict[Any, str] = {}
        """Whole numbers that follow from sizes, each a vector of one, by expression."""

    def shapes(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of torch gives, without numbers, and with symbols where sizes are some."""
        if self.sizes is None:
            return super().shapes(function, *args, **kwargs)
        with self.sizes.mode:
            found = super().shapes(function, *args, **kwargs)
        self.sizes.check()
        return found

    def integers_of(self, *values: Extent) -> str:
        """Axes, positions or a shape, computed where they follow from sizes."""
        numbers = [value for value in values if isinstance(value, int)]
        if len(numbers) == len(values):
            return super().integers_of(*numbers)
        parts = [super(TracedFile, self).integers_of(value) if isinstance(value, int) else
                 self.size(expression_of(value)) for value in values]  # fmt: skip
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def size(self, expression: Any) -> str:
        """A whole number that follows from sizes.

        Raises:
            TypeError: by arithmetic that is not known here.
        """
        if expression not in self.computed:
            kind, parts = type(expression).__name__, expression.args
            if expression.is_Integer:
                found = super().integers_of(int(expression))
            elif kind in ("FloorDiv", "CleanDiv"):  # Div rounds towards 0
                whole, by = map(self.size, parts)
                found = self.op("Div", self.op("Sub", whole, self.op("Mod", whole, by)), by)
            elif kind in ("Pow", "PowByNatural") and parts[1].is_Integer and parts[1] > 0:
                found = reduce(lambda a, b: self.op("Mul", a, b), [self.size(parts[0])] * int(parts[1]))
            elif kind in OF_SIZES:
                found = reduce(lambda a, b: self.op(OF_SIZES[kind], a, b), map(self.size, parts))
            else:
                raise TypeError(f"the network computes the size {expression}; wanted sums, products and remainders")
            self.computed[expression] = found
        return self.computed[expression]

    def number(self, value: torch.SymInt | torch.SymFloat) -> str:
        """A float that follows from sizes: a whole number, or a quotient of such."""
        expression = expression_of(value)
        parts = expression.args if type(expression).__name__ == "IntTrueDiv" else [expression]
        floats = [self.op("Cast", self.size(part), to=onnx().TensorProto.FLOAT) for part in parts]
        return reduce(lambda a, b: self.op("Div", a, b), floats)

    def constant(self, value: Any, kind: type = np.float32) -> str:
        """Numbers of the file; those of one tensor once, however many views of it come."""
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            return self.number(value)
        if not isinstance(value, Tensor):
            return super().constant(value, kind)
        key = value.data_ptr(), value.shape, value.stride(), kind
        if key not in self.known:  # the tensor is kept: no other may come to lie where it lies
            self.known[key] = value, super().constant(value, kind)
        return self.known[key][1]

    def reshape(self, x: str, shape: Sequence[Extent]) -> str:
        """The elements of x, in their order, in another shape."""
        return self.op("Reshape", x, self.integers_of(*shape))

    def transpose(self, x: str, axes: Sequence[int]) -> str:
        """x with its axes in another order."""
        return self.op("Transpose", x, perm=tuple(axes))

    def broadcast(self, x: str, shape: Sequence[Extent]) -> str:
        """x repeated along its axes of size 1."""
        return self.op("Expand", x, self.integers_of(*shape))

    def slice(self, x: str, axis: int, start: Extent, stop: Extent) -> str:
        """x[start:stop] along an axis."""
        return self.op("Slice", x, *(self.integers_of(number) for number in (start, stop, axis)))

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Several values as one."""
        return self.op("Concat", *values, axis=axis)

    def gather(self, x: str, axis: int, positions: Sequence[int]) -> str:
        """x at some positions of an axis."""
        return self.op("Gather", x, self.integers_of(*positions), axis=axis)

    def extend(
        self, x: str, shape: Sequence[Extent], axis: int, before: Extent, after: Extent, value: float | None
    ) -> str:
        """x with more elements at the ends of an axis: a number; None: its first and its last ones."""
        pads, along = self.integers_of(before, after), self.integers_of(axis)
        return self.op("Pad", x, pads, "" if value is None else self.constant(value), along,
                       mode="edge" if value is None else "constant")  # fmt: skip

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

    def largest(self, x: Value, height: Extent, width: Extent) -> str:
        """Max pooling of x (b, c, h, w) to a height and width.

        Raises:
            ValueError: that takes windows of several sizes, which ONNX has not.
        """
        h, w, height, width = map(int, (*x.shape[2:], height, width))  # which fixes symbols
        if h % height or w % width:
            raise ValueError(
                f"the network pools {h}x{w} pixels to {height}x{width}, which ONNX cannot say; wanted a height and a "
                "width that are multiples of 8; choose another size, or --format openvino"
            )
        window = [h // height, w // width]
        return self.op("MaxPool", x.op, kernel_shape=window, strides=window)

    def resize(self, x: str, height: Extent, width: Extent, mode: str) -> str:
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
        kind = "Conv"
        if isinstance(geometry, TRANSPOSED):
            kind, settings["output_padding"] = "ConvTranspose", geometry.output_padding
        return self.op(kind, inputs, weight, *bias, name=name, dilations=geometry.dilation, **settings)

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
            axis = (
                1 if linear or isinstance(geometry, TRANSPOSED) else 0
            )  # groups of transposed ones share their scales
            return self.dequantized(codes, integers.weight_scale[: codes.shape[axis]], axis)
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
def build_traced(
    network: nn.Module, lowered: Lowered, *size: int, sizes: Sizes | None = None, taps: bool = False
) -> tuple[Any, dict[str, Tap]]:
    """The model, and its layers' taps.

    From image (1, 3, h, w) to large (1, 3, scale h, scale w) for a size (h, w), from measurement (1, h, w) and mask
    (1, t, h, w) to video (1, c, t, h, w) for (t, h, w). With `taps` the inputs and outputs of all layers are outputs of
    the model too.

    Args:
        size: of the axes that are no symbols; of others it is not looked at.
        sizes: symbols of axes by name, which the model is free in.

    Raises:
        SizesFixed: the network makes numbers of some symbols.
        ValueError: the network does something at this size that ONNX cannot say.
        TypeError: the network does something that the graph has no op for.
    """
    task, g = of(network), TracedFile(lowered, sizes)
    symbols = sizes.symbols if sizes is not None else {}
    chosen = [symbols.get(axis, n) for axis, n in zip(task.axes, size, strict=True)]
    whole = [1, *chosen] if len(chosen) == 3 else [1, 3, *chosen]
    shapes = dict(zip(task.inputs, [[1, *chosen[1:]], whole] if len(chosen) == 3 else [whole], strict=True))
    for place, symbol in enumerate(chosen, 4 - len(chosen)):
        if not isinstance(symbol, int):
            g.computed[expression_of(symbol)] = g.op("Shape", task.inputs[-1], start=place, end=place + 1)
    with sizes.reading() if sizes is not None else nullcontext():
        first, *others = task.inputs
        entered = [g.of_one_size(first, others[0]) if others else first, *others]
        found = trace(network, g, *zip(entered, shapes.values(), strict=True))
    if sizes is not None:
        sizes.check()
    g.nodes.append(onnx().helper.make_node("Identity", [found.op], [task.output], task.output))

    def info(name: str, shape: Sequence[Any]) -> Any:
        texts = [n if sizes is None else sizes.text(n) for n in shape]
        return onnx().helper.make_tensor_value_info(name, onnx().TensorProto.FLOAT, texts)

    entries, ends = [info(name, shape) for name, shape in shapes.items()], list(g.taps.values()) if taps else []
    return g.file(type(network).__name__.lower(), entries, [info(task.output, found.shape)], ends), g.taps
