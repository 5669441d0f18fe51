"""What a network computes, operation by operation, for any graph that can be built op by op.

The network runs once, as its own code says, on a `Value`: a tensor with a shape and, where its numbers would be, an op
of the graph. torch hands every ATen operation on a Value to a `Writer`, which adds the op; layers arrive whole, so that
they can be integers. What does not depend on the inputs (masks, position biases) torch computes, as always; it becomes
a constant where it meets a Value. So a new network needs nothing here, unless it uses an operation that is new too.
"""

import copy
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from bitlens.engine.functional import FUNCTIONAL, denoise_tv
from bitlens.engine.lower import IntegerLayer, IntegerProduct, Lowered, Operand, layers_of, operand, runs_in_integers
from bitlens.engine.steps import Tap
from bitlens.quant.layers import Quantized

__all__ = ["Value", "Writer", "trace"]

Extent = Any
"""A size or a position: a whole number, or one of torch's symbols (`sizes.py`)."""
UNCHANGED = {"view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "detach", "_to_copy"}
"""Operations that change at most the shape: elements keep their order."""

BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
UNARY = ("relu", "sigmoid", "sqrt", "gelu", "abs", "exp", "tanh")


class Value(Tensor):
    """A tensor of a graph under construction: it has a shape, a dtype and an op, but no numbers."""

    op: Any
    writer: "Writer"

    @staticmethod
    def __new__(cls, shape: Sequence[Extent], op: Any, writer: "Writer", dtype: torch.dtype = torch.float32) -> "Value":
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)  # type: ignore[attr-defined]

    def __init__(self, shape: Sequence[Extent], op: Any, writer: "Writer", dtype: torch.dtype = torch.float32):
        self.op, self.writer = op, writer

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Value{tuple(self.shape)}"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.interpolate and any(not isinstance(size, int) for size in args[0].shape):
            return enlarged(*args, **kwargs)
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        writer = next(value.writer for value in tensors_of(args) if isinstance(value, Value))
        shapes = writer.shapes(function, *args, **kwargs)
        name = function.overloadpacket.__name__
        if not name.endswith("_"):
            return writer.write(name, shapes, args, kwargs)
        args[0].op = writer.write(name[:-1], shapes, args, kwargs).op  # in place
        return args[0]


class Writer:
    """A graph under construction. Subclasses say how an op is written down; what arrives is said here, once.

    Args:
        lowered: the integers of the network's layers.
    """

    def __init__(self, lowered: Lowered):
        self.integers = lowered.layers
        self.taps: dict[str, Tap] = {}

    def shapes(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a function of torch gives, without numbers."""
        return function(*tree_map(without_numbers, args), **tree_map(without_numbers, kwargs))

    def constant(self, numbers: Any) -> Any:
        """Float32 numbers: a tensor, or one number."""
        raise NotImplementedError

    def reshape(self, x: Any, shape: Sequence[Extent]) -> Any:
        """The elements of x, in their order, in another shape."""
        raise NotImplementedError

    def transpose(self, x: Any, axes: Sequence[int]) -> Any:
        """x with its axes in another order."""
        raise NotImplementedError

    def broadcast(self, x: Any, shape: Sequence[Extent]) -> Any:
        """x repeated along its axes of size 1."""
        raise NotImplementedError

    def slice(self, x: Any, axis: int, start: Extent, stop: Extent) -> Any:
        """x[start:stop] along an axis."""
        raise NotImplementedError

    def concat(self, values: Sequence[Any], axis: int) -> Any:
        """Several values as one."""
        raise NotImplementedError

    def gather(self, x: Any, axis: int, positions: Sequence[int]) -> Any:
        """x at some positions of an axis."""
        raise NotImplementedError

    def extend(
        self, x: Any, shape: Sequence[Extent], axis: int, before: Extent, after: Extent, value: float | None
    ) -> Any:
        """x, of a shape, with more elements at the ends of an axis: a number; None: its first and its last ones."""
        ends: list[Any] = []
        for position, count in ((0, before), (shape[axis] - 1, after)):
            if value is None:
                ends.append([self.slice(x, axis, position, position + 1)] * count)
            else:
                size = (*shape[:axis], count, *shape[axis + 1 :])
                ends.append([self.constant(torch.full(size, value))] if count else [])
        return self.concat([*ends[0], x, *ends[1]], axis)

    def elementwise(self, kind: str, *values: Any) -> Any:
        """One of `BINARY`'s and `UNARY`'s, "power", "equal" or "greater", with broadcasting."""
        raise NotImplementedError

    def leaky(self, x: Any, slope: float) -> Any:
        """LeakyReLU."""
        raise NotImplementedError

    def mean(self, x: Any, axes: Sequence[int]) -> Any:
        """The mean over some axes, which stay with size 1."""
        raise NotImplementedError

    def total(self, x: Any, axes: Sequence[int]) -> Any:
        """The sum over some axes, which stay with size 1."""
        raise NotImplementedError

    def where(self, condition: Any, x: Any, other: Any) -> Any:
        """x where the condition holds, else the other one, with broadcasting."""
        raise NotImplementedError

    def most(self, x: Any, axes: Sequence[int]) -> Any:
        """The largest along some axes, which stay with size 1."""
        raise NotImplementedError

    def length(self, x: Any, axes: Sequence[int]) -> Any:
        """The square root of the sum of squares over some axes, which stay with size 1."""
        raise NotImplementedError

    def softmax(self, x: Any, axis: int) -> Any:
        """Softmax along an axis."""
        raise NotImplementedError

    def standardize(self, x: Any, epsilon: float) -> Any:
        """(x - mean) / sqrt(variance + epsilon) along the last axis."""
        raise NotImplementedError

    def largest(self, x: "Value", height: Extent, width: Extent) -> Any:
        """Adaptive max pooling of x (b, c, h, w) to a height and width."""
        raise NotImplementedError

    def resize(self, x: Any, height: Extent, width: Extent, mode: str) -> Any:
        """x (b, c, h, w) in another size: "nearest", as torch chooses it, or "linear" between pixel centres."""
        raise NotImplementedError

    def denoise(self, x: "Value", weight: float, steps: int) -> Any:
        """Total-variation denoising of each frame, a Value; here its formulas, op by op."""
        return denoise_tv(x, weight, steps)

    def layer(self, name: str, module: nn.Module, x: "Value") -> Any:
        """A convolution (of images) or linear layer, quantized or not."""
        raise NotImplementedError

    def product(self, name: str, module: nn.Module, left: "Value", right: "Value") -> Any:
        """An attention product of left (b, n, i, k, p) and right (b, n, k, j, p), quantized or not."""
        raise NotImplementedError

    def offsets(self, grid: Operand, x: Any) -> Any:
        """code - zero_point of x on a grid, in float."""
        raise NotImplementedError

    def as_read(self, grid: Operand, x: Any) -> Any:
        """x rounded as a grid has it; what is beyond its range stays as it is."""
        low, high = (self.constant((end - grid.zero_point) * grid.scale) for end in (grid.qmin, grid.qmax))
        inside = self.elementwise("minimum", self.elementwise("maximum", x, low), high)
        known = self.elementwise("multiply", self.offsets(grid, x), self.constant(grid.scale))
        return self.elementwise("add", x, self.elementwise("subtract", known, inside))

    def in_float(self, module: nn.Module, x: "Value") -> Any:
        """The input of a layer that is computed in float; of a quantized one the offsets: see `folded_weight`."""
        return self.offsets(operand(module.input_grid), x.op) if isinstance(module, Quantized) else x.op

    def exact(self, name: str) -> IntegerLayer | None:
        """The integers of a layer, if it runs in them."""
        integers = self.integers.get(name)
        return integers if isinstance(integers, IntegerLayer) and runs_in_integers(integers) else None

    def grids(self, name: str) -> IntegerProduct | None:
        """The grids of a product's factors, if it has some."""
        integers = self.integers.get(name)
        return integers if isinstance(integers, IntegerProduct) else None

    def write(self, name: str, shapes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Add the ops of one ATen operation; `shapes` are its results on torch's meta device.

        Raises:
            TypeError: the operation has no counterpart here.
        """
        if name in UNCHANGED:
            written = self.reshape(args[0].op, shapes.shape)
        elif name in BINARY:
            written = self.binary(BINARY[name], *args, **kwargs)
        elif name in UNARY and not (name == "gelu" and kwargs.get("approximate", "none") != "none"):
            written = self.elementwise(name, self.op_of(args[0]))
        elif name in OPERATIONS:
            written = OPERATIONS[name](self, shapes, *args, **kwargs)
        else:
            raise TypeError(f"the network uses {name}; wanted operations that a graph here has; run it in torch")
        if isinstance(written, list):
            return [Value(shape.shape, op, self, shape.dtype) for shape, op in zip(shapes, written, strict=True)]
        if isinstance(shapes, tuple):  # what nothing here asks for: indices of a maximum, statistics of a norm
            return Value(shapes[0].shape, written, self), *shapes[1:]
        dtype = shapes.dtype if shapes.dtype == torch.bool else torch.float32  # sums of conditions are floats here
        return Value(shapes.shape, written, self, dtype)

    def op_of(self, value: Any) -> Any:
        """The op of a Value, of a condition 1 or 0; a constant for all else."""
        if not isinstance(value, Value):
            return self.constant(value)
        return self.where(value.op, self.constant(1), self.constant(0)) if value.dtype == torch.bool else value.op

    def binary(self, kind: str, a: Any, b: Any, alpha: float | int = 1) -> Any:
        """a + alpha b, or another of `BINARY`."""
        first, second = self.op_of(a), self.op_of(b)
        second = second if alpha == 1 else self.elementwise("multiply", second, self.constant(alpha))
        return self.elementwise(kind, first, second)

    def squared(self, x: Any) -> Any:
        """x x."""
        return self.elementwise("multiply", x, x)


def trace(network: nn.Module, writer: Writer, *inputs: tuple[Any, Sequence[Extent]]) -> Any:
    """Write down what a network computes from the graph's inputs.

    Args:
        network: it is not changed.
        writer: of the graph.
        inputs: op and shape of each argument of the network.

    Returns:
        What the network does; its tensors are Values.

    Raises:
        TypeError: the network does something that the graph has no op for.
    """
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})  # shares the numbers
    for name, module in list(layers_of(twin)):
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, Layer(name, module))
    for name, module in list(twin.named_children()):
        if type(module) in FUNCTIONAL:
            setattr(twin, name, FUNCTIONAL[type(module)](module))
    with torch.inference_mode(False), torch.no_grad():
        return twin.eval()(*(Value(shape, op, writer) for op, shape in inputs))


class Layer(nn.Module):
    """Takes the place of a layer while the network is traced: the writer gets it as a whole."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name = name
        self.inside: tuple[nn.Module] = (module,)  # in a tuple it is no part of this module

    def forward(self, *inputs: Any) -> Value:
        [module], writer = self.inside, inputs[0].writer
        geometry: Any = getattr(module, "layer", module)
        if len(inputs) == 1:
            numbers = dict(geometry.named_parameters())
            shape = writer.shapes(lambda own, x: functional_call(geometry, own, (x,)), numbers, *inputs).shape
        else:  # b n i k p, b n k j p
            shape = (*inputs[0].shape[:3], *inputs[1].shape[3:])
        entered = (module.balanced(inputs[0]),) if isinstance(module, Quantized) else inputs
        if not plainly_padded(geometry):
            ends = geometry._reversed_padding_repeated_twice  # before and after, the last axis first
            within = ends[-2::-2] if geometry.padding_mode == "zeros" and ends[::2] == ends[1::2] else None
            if within is None:
                mode = geometry.padding_mode
                entered = (F.pad(entered[0], ends, "constant" if mode == "zeros" else mode),)
            module = with_padding(module, within or [0] * len(geometry.kernel_size))
        written = (writer.layer if len(inputs) == 1 else writer.product)(self.name, module, *entered)
        writer.taps[self.name] = Tap(tuple(value.op for value in inputs), written)
        return Value(shape, written, writer)

    def rounded(self, x: "Value") -> "Value":
        """Some channels as the layer sees them (`networks.parts.as_read`), computed in float."""
        [module], writer = self.inside, x.writer
        if not isinstance(module, Quantized) or module.balance is not None or module.input_grid.scales > 1:
            return x
        return Value(x.shape, writer.as_read(operand(module.input_grid), x.op), writer)


def enlarged(
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    **_: Any,
) -> Value:
    """`F.interpolate` of pictures whose sizes are symbols, which torch's own shapes do not know.

    Raises:
        TypeError: by no whole factor, or in another way than "nearest" and "bilinear" between the centres of pixels.
    """
    whole = size is not None or (isinstance(scale_factor, int | float) and int(scale_factor) == scale_factor)
    if mode not in ("nearest", "bilinear") or align_corners or x.ndim != 4 or not whole:
        raise TypeError(f"the network resizes by {mode}, {scale_factor}; wanted whole factors, nearest or bilinear")
    height, width = (n * int(scale_factor) for n in x.shape[2:]) if size is None else size
    written = x.writer.resize(x.op, height, width, "nearest" if mode == "nearest" else "linear")
    return Value((*x.shape[:2], height, width), written, x.writer)


def plainly_padded(geometry: Any) -> bool:
    """Whether a layer pads by given numbers of zeros, the same before and after; or not at all."""
    named = isinstance(getattr(geometry, "padding", ()), str)  # "same" or "valid"
    return getattr(geometry, "padding_mode", "zeros") == "zeros" and not named


def with_padding(module: nn.Module, padding: Sequence[int]) -> nn.Module:
    """A convolution, quantized or not, that pads by these numbers of zeros; it shares its numbers with the first."""
    module = copy.copy(module)
    if isinstance(module, Quantized):
        module._modules = {**module._modules, "layer": with_padding(module.layer, padding)}
        return module
    module.padding, module.padding_mode = tuple(padding), "zeros"  # type: ignore[arg-type,assignment]
    return module


def without_numbers(value: Any) -> Any:
    """A tensor as one on torch's meta device; all else as it is."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def tensors_of(args: Any) -> list[Tensor]:
    """The tensors among the arguments of an operation, and in their lists."""
    found = []
    for value in args:
        found += tensors_of(value) if isinstance(value, (list, tuple)) else [value] if isinstance(value, Tensor) else []
    return found


def cat(w: Writer, shapes: Tensor, values: list[Any], dim: int = 0) -> Any:
    """torch.cat"""
    return w.concat([w.op_of(value) for value in values], dim % shapes.ndim)


def stack(w: Writer, shapes: Tensor, values: list[Any], dim: int = 0) -> Any:
    """torch.stack"""
    dim %= shapes.ndim
    each = (*shapes.shape[:dim], 1, *shapes.shape[dim + 1 :])
    return w.concat([w.reshape(w.op_of(value), each) for value in values], dim)


def cut(w: Writer, shapes: Tensor, x: Value, dim: int = 0, start: Extent = None, end: Extent = None) -> Any:
    """x[start:end] along an axis."""
    size, length = x.shape[dim], shapes.shape[dim]
    if length == size:
        return x.op
    start = start or 0
    start = max(start + size, 0) if start < 0 else start
    return w.slice(x.op, dim % x.ndim, start, start + length)


def select(w: Writer, shapes: Tensor, x: Value, dim: int, index: Extent) -> Any:
    """x[index] along an axis."""
    index += x.shape[dim] if index < 0 else 0
    return w.reshape(w.slice(x.op, dim % x.ndim, index, index + 1), shapes.shape)


def split(w: Writer, shapes: Sequence[Tensor], x: Value, _: Any, dim: int = 0) -> list[Any]:
    """torch.split and torch.chunk: parts of any sizes."""
    written, start = [], 0
    for part in shapes:
        written.append(w.slice(x.op, dim % x.ndim, start, start := start + part.shape[dim]))
    return written


def unbind(w: Writer, shapes: Sequence[Tensor], x: Value, dim: int = 0) -> list[Any]:
    """x[i] along an axis, for all i."""
    return [w.reshape(w.slice(x.op, dim % x.ndim, i, i + 1), part.shape) for i, part in enumerate(shapes)]


def permute(w: Writer, shapes: Tensor, x: Value, dims: Sequence[int]) -> Any:
    """torch.permute"""
    return w.transpose(x.op, [dim % x.ndim for dim in dims])


def transpose(w: Writer, shapes: Tensor, x: Value, first: int, second: int) -> Any:
    """torch.transpose"""
    axes = list(range(x.ndim))
    axes[first], axes[second] = axes[second], axes[first]
    return w.transpose(x.op, axes)


def expand(w: Writer, shapes: Tensor, x: Value, size: Sequence[Extent]) -> Any:
    """torch.expand"""
    return x.op if x.shape == shapes.shape else w.broadcast(x.op, shapes.shape)


def roll(w: Writer, shapes: Tensor, x: Value, shifts: Sequence[Extent], dims: Sequence[int]) -> Any:
    """torch.roll: what leaves at one end of an axis comes in at the other."""
    written = x.op
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        at = -shift % size
        if at:
            written = w.concat([w.slice(written, dim, at, size), w.slice(written, dim, 0, at)], dim)
    return written


def index_select(w: Writer, shapes: Tensor, x: Value, dim: int, index: Tensor) -> Any:
    """torch.index_select, for positions that do not depend on the picture."""
    return w.gather(x.op, dim, index.tolist())


def power(w: Writer, shapes: Tensor, x: Value, exponent: float | int) -> Any:
    """x to a constant power."""
    return w.squared(x.op) if exponent == 2 else w.elementwise("power", x.op, w.constant(float(exponent)))


def clamp(w: Writer, shapes: Tensor, x: Value, low: float | int | None = None, high: float | int | None = None) -> Any:
    """min(max(x, low), high)"""
    written = x.op if low is None else w.elementwise("maximum", x.op, w.constant(float(low)))
    return written if high is None else w.elementwise("minimum", written, w.constant(float(high)))


def clamp_max(w: Writer, shapes: Tensor, x: Value, high: float | int) -> Any:
    """min(x, high)"""
    return clamp(w, shapes, x, None, high)


def negative(w: Writer, shapes: Tensor, x: Value) -> Any:
    """-x"""
    return w.elementwise("multiply", x.op, w.constant(-1.0))


def reverse(w: Writer, shapes: Tensor, x: Value, other: Any, alpha: float | int = 1) -> Any:
    """other - alpha x"""
    return w.binary("subtract", other, x, alpha)


def silu(w: Writer, shapes: Tensor, x: Value) -> Any:
    """x sigmoid(x)"""
    return w.elementwise("multiply", x.op, w.elementwise("sigmoid", x.op))


def prelu(w: Writer, shapes: Tensor, x: Value, slope: Tensor) -> Any:
    """PReLU: slope x for negative x, a slope for each channel or one for all."""
    zero = w.constant(0.0)
    below = w.elementwise("multiply", w.elementwise("minimum", x.op, zero), w.constant(slope))
    return w.elementwise("add", w.elementwise("maximum", x.op, zero), below)


def leaky_relu(w: Writer, shapes: Tensor, x: Value, slope: float | int = 0.01) -> Any:
    """LeakyReLU"""
    return w.leaky(x.op, float(slope))


def mean(w: Writer, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.mean over some axes."""
    return w.reshape(w.mean(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def total(w: Writer, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.sum over some axes."""
    return w.reshape(w.total(w.op_of(x), [dim % x.ndim for dim in dims]), shapes.shape)


def amax(w: Writer, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.amax over some axes."""
    return w.reshape(w.most(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def greater(w: Writer, shapes: Tensor, x: Value, other: Any) -> Any:
    """x > other"""
    return w.elementwise("greater", x.op, w.op_of(other))


def equal(w: Writer, shapes: Tensor, x: Value, other: Any) -> Any:
    """x == other"""
    return w.elementwise("equal", x.op, w.op_of(other))


def where(w: Writer, shapes: Tensor, condition: Value, x: Any, other: Any) -> Any:
    """torch.where"""
    return w.where(condition.op, w.op_of(x), w.op_of(other))


def ones_like(w: Writer, shapes: Tensor, x: Value, **_: Any) -> Any:
    """torch.ones_like"""
    return w.broadcast(w.constant(torch.ones([1] * shapes.ndim)), shapes.shape)


def zeros_like(w: Writer, shapes: Tensor, x: Value, **_: Any) -> Any:
    """torch.zeros_like"""
    return w.broadcast(w.constant(torch.zeros([1] * shapes.ndim)), shapes.shape)


def var(w: Writer, shapes: Tensor, x: Value, dims: Sequence[int], correction: int = 1, keepdim: bool = False) -> Any:
    """The variance over some axes: the mean of squares around the mean, times n / (n - correction)."""
    dims = [dim % x.ndim for dim in dims]
    n = 1
    for dim in dims:
        n *= x.shape[dim]
    around = w.elementwise("subtract", x.op, w.mean(x.op, dims))
    scaled = w.elementwise("multiply", w.mean(w.squared(around), dims), w.constant(n / (n - correction)))
    return w.reshape(scaled, shapes.shape)


def vector_norm(
    w: Writer, shapes: Tensor, x: Value, order: float | int, dims: Sequence[int], keepdim: bool = False
) -> Any:
    """The Euclidean length along some axes.

    Raises:
        TypeError: another norm.
    """
    if order != 2:
        raise TypeError(f"the network uses the norm of order {order}, which no graph here has; run it in torch")
    return w.reshape(w.length(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def softmax(w: Writer, shapes: Tensor, x: Value, dim: int, half: bool) -> Any:
    """Softmax"""
    return w.softmax(x.op, dim % x.ndim)


def layer_norm(
    w: Writer, shapes: Any, x: Value, size: Sequence[Extent], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    """LayerNorm over the last axis."""
    written = w.standardize(x.op, eps)
    written = written if weight is None else w.elementwise("multiply", written, w.constant(weight))
    return written if bias is None else w.elementwise("add", written, w.constant(bias))


def batch_norm(
    w: Writer,
    shapes: Any,
    x: Value,
    weight: Any,
    bias: Any,
    center: Tensor,
    spread: Tensor,
    _: Any,
    __: Any,
    eps: float,
) -> Any:
    """BatchNorm as it is used after training: a factor and an offset for each channel."""
    column = (-1, *[1] * (x.ndim - 2))
    factor = torch.rsqrt(spread + eps) * (1 if weight is None else weight)
    offset = (0 if bias is None else bias) - center * factor
    scaled = w.elementwise("multiply", x.op, w.constant(factor.reshape(column)))
    return w.elementwise("add", scaled, w.constant(offset.reshape(column)))


def pixel_shuffle(w: Writer, shapes: Tensor, x: Value, r: int) -> Any:
    """(..., c r r, h, w) as (..., c, h r, w r)."""
    *rest, c, h, width = x.shape
    apart = w.reshape(x.op, (prod(rest), c // r**2, r, r, h, width))
    return w.reshape(w.transpose(apart, (0, 1, 4, 2, 5, 3)), shapes.shape)


def pixel_unshuffle(w: Writer, shapes: Tensor, x: Value, r: int) -> Any:
    """(..., c, h r, w r) as (..., c r r, h, w)."""
    *rest, c, h, width = x.shape
    apart = w.reshape(x.op, (prod(rest), c, h // r, r, width // r, r))
    return w.reshape(w.transpose(apart, (0, 1, 3, 5, 2, 4)), shapes.shape)


def replication_pad(w: Writer, shapes: Tensor, x: Value, padding: Sequence[Extent]) -> Any:
    """The first and the last element along each of the last axes repeated."""
    return padded(w, x, padding, None)


def constant_pad(w: Writer, shapes: Tensor, x: Value, padding: Sequence[Extent], value: float | int = 0) -> Any:
    """One number before and after the elements of each of the last axes; where there are to be fewer, they are cut."""
    return padded(w, x, padding, float(value))


def reflection_pad(w: Writer, shapes: Tensor, x: Value, padding: Sequence[Extent]) -> Any:
    """The last axes mirrored at their ends, which are not repeated."""
    written = x.op
    for place in range(len(padding) // 2):
        axis, (before, after) = x.ndim - 1 - place, padding[2 * place : 2 * place + 2]
        period = max(2 * x.shape[axis] - 2, 1)
        whole = [position % period for position in range(-before, x.shape[axis] + after)]
        written = w.gather(written, axis, [min(position, period - position) for position in whole])
    return written


def padded(w: Writer, x: Value, padding: Sequence[Extent], value: float | None) -> Any:
    """x with more or fewer elements before and after each of the last axes, in torch's order: the last one first."""
    written, size = x.op, list(x.shape)
    for place in range(len(padding) // 2):
        axis, (before, after) = x.ndim - 1 - place, padding[2 * place : 2 * place + 2]
        start, stop = -before if before < 0 else 0, size[axis] + after if after < 0 else size[axis]
        if before < 0 or after < 0:
            written = w.slice(written, axis, start, stop)
            size[axis] = stop - start
        before, after = (0 if count < 0 else count for count in (before, after))
        if before or after:
            written = w.extend(written, size, axis, before, after, value)
            size[axis] = size[axis] + before + after
    return written


def largest(w: Writer, shapes: Any, x: Value, size: Sequence[Extent], *_: Any) -> Any:
    """Max pooling to a size, or with windows that lie side by side."""
    return w.largest(x, *shapes[0].shape[2:])


def nearest(w: Writer, shapes: Tensor, x: Value, *_: Any) -> Any:
    """Enlarged: each pixel is the one whose place it falls on."""
    height, width = shapes.shape[2:]
    return w.resize(x.op, height, width, "nearest")


def bilinear(w: Writer, shapes: Tensor, x: Value, size: Any, corners: bool, *_: Any) -> Any:
    """Enlarged: linear between the centres of pixels.

    Raises:
        TypeError: corners are to lie on corners.
    """
    if corners:
        raise TypeError("the network aligns corners when it resizes, which no graph here has; run it in torch")
    height, width = shapes.shape[2:]
    return w.resize(x.op, height, width, "linear")


OPERATIONS: dict[str, Callable[..., Any]] = {
    "cat": cat,
    "stack": stack,
    "slice": cut,
    "select": select,
    "split": split,
    "split_with_sizes": split,
    "unbind": unbind,
    "permute": permute,
    "transpose": transpose,
    "expand": expand,
    "roll": roll,
    "index_select": index_select,
    "pow": power,
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp_max,
    "hardtanh": clamp,
    "neg": negative,
    "rsub": reverse,
    "silu": silu,
    "_prelu_kernel": prelu,
    "native_batch_norm": batch_norm,
    "leaky_relu": leaky_relu,
    "mean": mean,
    "sum": total,
    "amax": amax,
    "eq": equal,
    "gt": greater,
    "where": where,
    "ones_like": ones_like,
    "zeros_like": zeros_like,
    "var": var,
    "linalg_vector_norm": vector_norm,
    "_softmax": softmax,
    "native_layer_norm": layer_norm,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "constant_pad_nd": constant_pad,
    "reflection_pad1d": reflection_pad,
    "reflection_pad2d": reflection_pad,
    "reflection_pad3d": reflection_pad,
    "replication_pad1d": replication_pad,
    "replication_pad2d": replication_pad,
    "replication_pad3d": replication_pad,
    "adaptive_max_pool2d": largest,
    "max_pool2d_with_indices": largest,
    "upsample_nearest2d": nearest,
    "upsample_bilinear2d": bilinear,
}
"""ATen's names, without overloads."""
