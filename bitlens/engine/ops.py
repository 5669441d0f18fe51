"""The ops that a graph is made of, and the tensors that stand for their results while a network is traced.

Every operation of torch's comes down to these (`aten.py`); each engine writes them down in its own way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bitlens.engine.functional import denoise_tv
from bitlens.engine.lower import IntegerLayer, IntegerProduct, Lowered, Operand, operand, runs_in_integers
from bitlens.engine.steps import Tap
from bitlens.quant.layers import Quantized

__all__ = ["Extent", "Ops", "Value"]

Extent = Any
"""A size or a position: a whole number, or one of torch's symbols (`sizes.py`)."""


class Value(Tensor):
    """A tensor of a graph under construction: it has a shape, a dtype and an op, but no numbers."""

    op: Any
    writer: "Ops"

    @staticmethod
    def __new__(cls, shape: Sequence[Extent], op: Any, writer: "Ops", dtype: torch.dtype = torch.float32) -> "Value":
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)  # type: ignore[attr-defined]

    def __init__(self, shape: Sequence[Extent], op: Any, writer: "Ops", dtype: torch.dtype = torch.float32):
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


class Ops:
    """A graph under construction: what it can do. Subclasses say how an op is written down.

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
        """One of `trace.BINARY`'s and `trace.UNARY`'s, "power", "equal" or "greater", with broadcasting."""
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
        """Add the ops of one ATen operation; `shapes` are its results on torch's meta device."""
        raise NotImplementedError

    def op_of(self, value: Any) -> Any:
        """The op of a Value, of a condition 1 or 0; a constant for all else."""
        if not isinstance(value, Value):
            return self.constant(value)
        return self.where(value.op, self.constant(1), self.constant(0)) if value.dtype == torch.bool else value.op

    def binary(self, kind: str, a: Any, b: Any, alpha: float | int = 1) -> Any:
        """a + alpha b, or another of `trace.BINARY`."""
        first, second = self.op_of(a), self.op_of(b)
        second = second if alpha == 1 else self.elementwise("multiply", second, self.constant(alpha))
        return self.elementwise(kind, first, second)

    def squared(self, x: Any) -> Any:
        """x x."""
        return self.elementwise("multiply", x, x)


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


def without_numbers(value: Any) -> Any:
    """A tensor as one on torch's meta device; all else as it is."""
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value


def tensors_of(args: Any) -> list[Tensor]:
    """The tensors among the arguments of an operation, and in their lists."""
    found = []
    for value in args:
        found += tensors_of(value) if isinstance(value, (list, tuple)) else [value] if isinstance(value, Tensor) else []
    return found
