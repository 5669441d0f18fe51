"""Any network that `trace.py` reads, written down for our kernels: integer layers, and torch's operations between them.

What it is written down as is in `views.py`. `fusion.py` finds what a kernel can do on its way; `traced.py` runs the
rest in order.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bitlens.engine.checks import example
from bitlens.engine.lower import IntegerLayer, Lowered, Operand, folded_weight, layers_of, lower, runs_in_integers
from bitlens.engine.trace import Value, Writer, trace
from bitlens.engine.views import (
    Constant,
    Denoising,
    Handed,
    Layer,
    Op,
    View,
    codes_of,
    dense,
    dense_as,
    laid,
    regular,
    volume_of,
)
from bitlens.quant.layers import Quantized

__all__ = ["NativeGraph", "by_itself", "known", "on_kernels", "unreadable", "write"]

ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "power": torch.pow,
    "equal": torch.eq,
    "greater": torch.gt,
    "relu": lambda x, **out: torch.clamp_min(x, 0.0, **out),
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "gelu": torch._C._nn.gelu,  # type: ignore[attr-defined]
    "abs": torch.abs,
    "exp": torch.exp,
    "tanh": torch.tanh,
}


class NativeGraph(Writer):
    """The ops of a network for one size; values are `View`s."""

    def __init__(self, lowered: Lowered):
        super().__init__(lowered)
        self.ops: list[Op] = []
        self.known: dict[Any, Op] = {}
        """Constants and codes, which are there once."""
        self.kept: list[Any] = []

    def append(self, op: Op) -> View:
        """All of a new op."""
        self.ops.append(op)
        return op.whole

    def op(self, kind: str, kernel: Callable[..., Any], *inputs: View, size: Sequence[int] | None = None) -> View:
        """A new op that a function of torch computes; what it gives lies as torch has it, or dense in a given size."""
        if size is None:
            like = kernel(*(view.empty for view in inputs))
            return self.append(Op(kind, list(inputs), tuple(like.shape), dense_as(like), kernel, like.dtype))
        return self.append(Op(kind, list(inputs), tuple(size), dense(size), kernel))

    def input(self, shape: Sequence[int]) -> View:
        """What the network is called with."""
        return self.append(Op("input", [], tuple(shape), dense(shape)))

    def constant(self, numbers: Any) -> View:
        """Float32 numbers; those of one tensor once."""
        key = (numbers.data_ptr(), numbers.shape, numbers.stride()) if isinstance(numbers, Tensor) else float(numbers)
        if key not in self.known:
            tensor = torch.as_tensor(numbers, dtype=torch.float32).detach().contiguous()
            self.known[key] = Constant("constant", [], tuple(tensor.shape), dense(tensor.shape), tensor=tensor)
            self.kept.append(numbers)  # no other may come to lie where it lies
        return self.known[key].whole

    def reshape(self, x: View, shape: Sequence[int]) -> View:
        """A look where there is one; else a copy. Pictures are copied with their channels innermost."""
        size = tuple(shape)
        try:
            return x.through(lambda seen: seen.view(size))
        except RuntimeError:
            axes = [*range(len(size))]
            rows = len(size) < 4 or (x.size[-1] == size[-1] and x.stride[-1] == 1)
            order = axes if rows else [*axes[:-3], *axes[-2:], axes[-3]]
            return self.append(Op("copy", [x], size, laid(size, order), None, x.op.dtype))

    def transpose(self, x: View, axes: Sequence[int]) -> View:
        """A look."""
        return x.through(lambda seen: seen.permute(*axes))

    def broadcast(self, x: View, shape: Sequence[int]) -> View:
        """A look."""
        return x.through(lambda seen: seen.expand(*shape))

    def slice(self, x: View, axis: int, start: int, stop: int) -> View:
        """A look."""
        return x.through(lambda seen: seen.narrow(axis, start, stop - start))

    def concat(self, values: Sequence[View], axis: int) -> View:
        """Several values as one; channels of pictures stay, or come to lie, innermost."""
        longest = max(values, key=lambda x: prod(x.size))
        size = (*longest.size[:axis], sum(x.size[axis] for x in values), *longest.size[axis + 1 :])
        inner = axis == len(size) - 3 and longest.size[axis] == 1
        order = sorted(range(len(size)), key=lambda place: (inner and place == axis) or -longest.stride[place])
        return self.append(Op("concat", list(values), size, laid(size, order), None, longest.op.dtype, axis=axis))

    def gather(self, x: View, axis: int, positions: Sequence[int]) -> View:
        """x at some positions of an axis."""
        index = torch.tensor(positions)
        shape = *x.size[:axis], len(positions), *x.size[axis + 1 :]
        return self.op("gather", lambda x, **out: torch.index_select(x, axis, index, **out), x, size=shape)

    def elementwise(self, kind: str, *values: View) -> View:
        """An operation on every element, with broadcasting."""
        return self.op(kind, ELEMENTWISE[kind], *values)

    def leaky(self, x: View, slope: float) -> View:
        """LeakyReLU."""
        function = torch._C._nn.leaky_relu  # type: ignore[attr-defined]
        found = self.op("leaky", lambda x, **out: function(x, slope, **out), x)
        found.op.slope = slope
        return found

    def where(self, condition: View, x: View, other: View) -> View:
        """x where the condition holds, else the other one, with broadcasting."""
        return self.op("where", torch.where, condition, x, other)

    def mean(self, x: View, axes: Sequence[int]) -> View:
        """The mean over some axes, which stay with size 1."""
        return self.op("mean", lambda x, **out: torch.mean(x, list(axes), True, **out), x)

    def total(self, x: View, axes: Sequence[int]) -> View:
        """The sum over some axes, which stay with size 1."""
        return self.op("total", lambda x, **out: torch.sum(x, list(axes), True, **out), x)

    def most(self, x: View, axes: Sequence[int]) -> View:
        """The largest along some axes, which stay with size 1."""
        return self.op("most", lambda x, **out: torch.amax(x, list(axes), True, **out), x)

    def length(self, x: View, axes: Sequence[int]) -> View:
        """The square root of the sum of squares over some axes, which stay with size 1."""
        return self.op("length", lambda x, **out: torch.linalg.vector_norm(x, 2, list(axes), True, **out), x)

    def softmax(self, x: View, axis: int) -> View:
        """Softmax along an axis."""
        return self.op("softmax", lambda x, **out: torch.softmax(x, axis, **out), x)

    def standardize(self, x: View, epsilon: float) -> View:
        """(x - mean) / sqrt(variance + epsilon) along the last axis."""
        return self.op("normalization", returning(lambda x: F.layer_norm(x, x.shape[-1:], eps=epsilon)), x, size=x.size)

    def largest(self, x: Value, height: int, width: int) -> View:
        """Adaptive max pooling of x (b, c, h, w) to a height and width."""
        return self.op("pooling", returning(lambda x: F.adaptive_max_pool2d(x, (height, width))), x.op)

    def resize(self, x: View, height: int, width: int, mode: str) -> View:
        """x (b, c, h, w) in another size."""
        mode = "nearest" if mode == "nearest" else "bilinear"
        return self.op("resize", returning(lambda x: F.interpolate(x, (height, width), mode=mode)), x)

    def denoise(self, x: Value, weight: float, steps: int) -> Value:
        """Total-variation denoising of each frame."""
        view, size = x.op, x.op.size
        if not View(view.op, size, dense(size)).lies_as(view):
            view = self.append(Op("copy", [view], size, dense(size)))
        op = Denoising("denoising", [view], size, dense(size), weight=weight, steps=steps)
        return Value(x.shape, self.append(op), self)

    def layer(self, name: str, module: nn.Module, x: Value) -> View:
        """A convolution or linear layer: on the kernels where it is integers that they know, else in float."""
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        integers = self.exact(name)
        if integers is not None and on_kernels(integers.geometry, x.op.size):
            return self.on_codes(name, integers, geometry, x.op)
        if integers is not None and by_itself(integers):
            return self.handed(integers, x.op)
        own = {key: value.detach() for key, value in geometry.named_parameters()}
        if isinstance(module, Quantized):
            own["weight"] = folded_weight(module).float()

        def kernel(x: Tensor) -> Tensor:
            return functional_call(geometry, {key: value.to(x.device) for key, value in own.items()}, (x,))

        return self.op("float layer", returning(kernel), self.in_float(module, x))

    def on_codes(self, name: str, integers: IntegerLayer, geometry: Any, x: View) -> View:
        """A layer on the kernels; what it gives has its channels innermost."""
        codes, outputs = self.codes(x, integers.input), len(integers.weight)
        if isinstance(geometry, nn.Linear):
            inner, spatial = len(x.size) - 1, x.size[1:-1]
        else:
            inner, spatial = 1, output_size(geometry, x.size[2:])
        last = [0, *(axis for axis in range(1, len(x.size)) if axis != inner), inner]
        size = (x.size[0], *spatial, outputs) if inner > 1 else (x.size[0], outputs, *spatial)
        volume = View(codes.op, *volume_of([size[axis] for axis in last]))
        volumes = self.volume(codes, last)
        layer = Layer("layer", [volumes], size, laid(size, last), name=name, volume=volume.size)
        return self.append(layer)

    def handed(self, layer: IntegerLayer, x: View) -> View:
        """A layer that hands each channel on, which lies as its codes do."""
        codes, grid = self.codes(x, layer.input), layer.input
        weight = (layer.scale * layer.weight.flatten()).float()
        offset = (layer.scale * layer.weight.flatten() * (grid.qmin - grid.zero_point)).float()
        offset = offset if layer.bias is None else offset + layer.bias
        column = (-1, *[1] * (len(x.size) - 2))

        def kernel(codes: Tensor) -> Tensor:
            own, more = (numbers.to(codes.device).reshape(column) for numbers in (weight, offset))
            return codes.float() * own + more

        op = Handed("handed", [codes], x.size, dense_as(codes.empty), returning(kernel), weight=weight, offset=offset)
        return self.append(op)

    def volume(self, codes: View, last: Sequence[int]) -> View:
        """Codes as (t, h, w, c), pixels equally far apart, their axes in an order; copied where they lie otherwise."""

        def look(x: View) -> View | None:
            moved = x.through(lambda seen: seen.permute(*last))
            size, _ = volume_of(moved.size)
            try:
                return regular(moved.through(lambda seen: seen.view(size)))
            except RuntimeError:
                return None

        found = look(codes)
        if found is None:
            copied = Op("copy", [codes], codes.size, laid(codes.size, last), None, torch.uint8)
            found = look(self.append(copied))
        assert found is not None
        return found

    def codes(self, x: View, operand: Operand) -> View:
        """The codes of what a look sees: the look at codes. Those of a concatenation are put together."""
        source = x.op
        key = source, float(operand.scale), float(operand.zero_point), operand.qmin, operand.qmax
        if key not in self.known:
            if source.kind == "concat":
                parts = [self.codes(part, operand) for part in source.inputs]
                found = Op("concat", parts, source.size, source.stride, None, torch.uint8, axis=source.axis)
            else:
                found = codes_of(source, operand)
            self.ops.append(found)
            self.known[key] = found
        return x.of(self.known[key])

    def as_read(self, grid: Operand, x: View) -> View:
        """x rounded as a grid has it; what is beyond its range stays as it is."""
        low, high = (float((end - grid.zero_point) * grid.scale) for end in (grid.qmin, grid.qmax))

        def kernel(x: Tensor) -> Tensor:
            scale, zero_point = grid.scale.to(x.device), grid.zero_point.to(x.device)
            inside = x.clamp(low, high)
            known = (x / scale).add_(zero_point).round_().clamp_(grid.qmin, grid.qmax).sub_(zero_point).mul_(scale)
            return known.sub_(inside).add_(x)

        return self.op("rounded", returning(kernel), x)

    def offsets(self, grid: Operand, x: View) -> View:
        """code - zero_point of x on a grid, in float."""

        def kernel(x: Tensor) -> Tensor:
            scale, zero_point = grid.scale.to(x.device), grid.zero_point.to(x.device)
            return (x / scale + zero_point).clamp_(grid.qmin, grid.qmax).round_() - zero_point

        return self.op("grids in float", returning(kernel), x)

    def product(self, name: str, module: nn.Module, left: Value, right: Value) -> View:
        """An attention product: of offsets, exact in float where they are integers, times the value of a unit."""
        grids, first, second = self.grids(name), left.op, right.op
        unit = torch.ones(())
        if grids is not None:
            first, second = self.offsets(grids.left, first), self.offsets(grids.right, second)
            unit = grids.left.scale * grids.right.scale

        def kernel(left: Tensor, right: Tensor) -> Tensor:  # b n i k p, b n k j p
            found = left.permute(0, 1, 4, 2, 3) @ right.permute(0, 1, 4, 2, 3)
            return found.permute(0, 1, 3, 4, 2) * unit.to(left.device)

        return self.op("attention", returning(kernel), first, second)


def returning(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of torch that has no `out` as one that has: its result is copied."""

    def run(*inputs: Tensor, out: Tensor | None = None) -> Tensor:
        found = kernel(*inputs)
        return found if out is None else out.copy_(found)

    return run


def on_kernels(geometry: Any, size: Sequence[int]) -> bool:
    """Whether the kernels have a layer's geometry, for an input of a size."""
    if isinstance(geometry, nn.Linear):
        return True
    known = isinstance(geometry, nn.Conv2d) or (isinstance(geometry, nn.Conv3d) and size[0] == 1)
    return known and geometry.groups == 1 and not isinstance(geometry.padding, str)


def by_itself(layer: IntegerLayer) -> bool:
    """Whether a layer in integers makes each channel of that channel of its input alone, pixel by pixel."""
    geometry: Any = layer.geometry
    alone = isinstance(geometry, nn.Conv2d) and geometry.groups == geometry.in_channels == geometry.out_channels
    return alone and runs_in_integers(layer) and windows_of(geometry) == {(1, 1, 0)}


def windows_of(geometry: Any) -> set[tuple[int, int, int]]:
    """Size, stride and padding of a convolution along its axes."""
    return set(zip(geometry.kernel_size, geometry.stride, geometry.padding, strict=True))


def output_size(geometry: Any, size: Sequence[int]) -> list[int]:
    """Of a convolution's spatial axes."""
    axes = zip(size, geometry.kernel_size, geometry.stride, geometry.padding, strict=True)
    return [(n + 2 * padding - kernel) // stride + 1 for n, kernel, stride, padding in axes]


known: WeakSet[nn.Module] = WeakSet()
"""Networks that were written down before."""


def unreadable(network: nn.Module) -> str | None:
    """Why a network cannot be read off its code; None: it can. It is written down once, for a small input, to know."""
    if network in known:
        return None
    if not any(True for _ in layers_of(network)):
        return f"network {type(network).__name__} has no layers; wanted one with convolutions or linear layers"
    try:
        write(network, lower(network), *(tuple(one.shape[1:]) for one in example(network)))
    except TypeError as error:
        return str(error).partition("; run it in torch")[0]
    known.add(network)
    return None


def write(network: nn.Module, lowered: Lowered, *sizes: tuple[int, ...]) -> tuple[list[View], list[Op], View]:
    """A network's inputs, ops and output, for sizes of inputs without the batch.

    Raises:
        TypeError: it does something that the graph has no op for.
    """
    graph = NativeGraph(lowered)
    inputs = [graph.input((1, *size)) for size in sizes]
    with torch.no_grad():
        output = trace(network, graph, *((view, view.size) for view in inputs)).op
    return inputs, graph.ops, output
