"""torch's ATen operations in the ops of a graph (`ops.py`).

A function takes the graph, the shapes of its results, and the arguments of the operation.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from bitlens.engine.ops import Extent, Ops, Value

__all__ = ["OPERATIONS"]


def cat(w: Ops, shapes: Tensor, values: list[Any], dim: int = 0) -> Any:
    """torch.cat"""
    return w.concat([w.op_of(value) for value in values], dim % shapes.ndim)


def stack(w: Ops, shapes: Tensor, values: list[Any], dim: int = 0) -> Any:
    """torch.stack"""
    dim %= shapes.ndim
    each = (*shapes.shape[:dim], 1, *shapes.shape[dim + 1 :])
    return w.concat([w.reshape(w.op_of(value), each) for value in values], dim)


def cut(w: Ops, shapes: Tensor, x: Value, dim: int = 0, start: Extent = None, end: Extent = None) -> Any:
    """x[start:end] along an axis."""
    size, length = x.shape[dim], shapes.shape[dim]
    if length == size:
        return x.op
    start = start or 0
    start = max(start + size, 0) if start < 0 else start
    return w.slice(x.op, dim % x.ndim, start, start + length)


def select(w: Ops, shapes: Tensor, x: Value, dim: int, index: Extent) -> Any:
    """x[index] along an axis."""
    index += x.shape[dim] if index < 0 else 0
    return w.reshape(w.slice(x.op, dim % x.ndim, index, index + 1), shapes.shape)


def split(w: Ops, shapes: Sequence[Tensor], x: Value, _: Any, dim: int = 0) -> list[Any]:
    """torch.split and torch.chunk: parts of any sizes."""
    written, start = [], 0
    for part in shapes:
        written.append(w.slice(x.op, dim % x.ndim, start, start := start + part.shape[dim]))
    return written


def unbind(w: Ops, shapes: Sequence[Tensor], x: Value, dim: int = 0) -> list[Any]:
    """x[i] along an axis, for all i."""
    return [w.reshape(w.slice(x.op, dim % x.ndim, i, i + 1), part.shape) for i, part in enumerate(shapes)]


def permute(w: Ops, shapes: Tensor, x: Value, dims: Sequence[int]) -> Any:
    """torch.permute"""
    return w.transpose(x.op, [dim % x.ndim for dim in dims])


def transpose(w: Ops, shapes: Tensor, x: Value, first: int, second: int) -> Any:
    """torch.transpose"""
    axes = list(range(x.ndim))
    axes[first], axes[second] = axes[second], axes[first]
    return w.transpose(x.op, axes)


def expand(w: Ops, shapes: Tensor, x: Value, size: Sequence[Extent]) -> Any:
    """torch.expand"""
    return x.op if x.shape == shapes.shape else w.broadcast(x.op, shapes.shape)


def roll(w: Ops, shapes: Tensor, x: Value, shifts: Sequence[Extent], dims: Sequence[int]) -> Any:
    """torch.roll: what leaves at one end of an axis comes in at the other."""
    written = x.op
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        at = -shift % size
        if at:
            written = w.concat([w.slice(written, dim, at, size), w.slice(written, dim, 0, at)], dim)
    return written


def index_select(w: Ops, shapes: Tensor, x: Value, dim: int, index: Tensor) -> Any:
    """torch.index_select, for positions that do not depend on the picture."""
    return w.gather(x.op, dim, index.tolist())


def power(w: Ops, shapes: Tensor, x: Value, exponent: float | int) -> Any:
    """x to a constant power."""
    return w.squared(x.op) if exponent == 2 else w.elementwise("power", x.op, w.constant(float(exponent)))


def clamp(w: Ops, shapes: Tensor, x: Value, low: float | int | None = None, high: float | int | None = None) -> Any:
    """min(max(x, low), high)"""
    written = x.op if low is None else w.elementwise("maximum", x.op, w.constant(float(low)))
    return written if high is None else w.elementwise("minimum", written, w.constant(float(high)))


def clamp_max(w: Ops, shapes: Tensor, x: Value, high: float | int) -> Any:
    """min(x, high)"""
    return clamp(w, shapes, x, None, high)


def negative(w: Ops, shapes: Tensor, x: Value) -> Any:
    """-x"""
    return w.elementwise("multiply", x.op, w.constant(-1.0))


def reverse(w: Ops, shapes: Tensor, x: Value, other: Any, alpha: float | int = 1) -> Any:
    """other - alpha x"""
    return w.binary("subtract", other, x, alpha)


def silu(w: Ops, shapes: Tensor, x: Value) -> Any:
    """x sigmoid(x)"""
    return w.elementwise("multiply", x.op, w.elementwise("sigmoid", x.op))


def prelu(w: Ops, shapes: Tensor, x: Value, slope: Tensor) -> Any:
    """PReLU: slope x for negative x, a slope for each channel or one for all."""
    zero = w.constant(0.0)
    below = w.elementwise("multiply", w.elementwise("minimum", x.op, zero), w.constant(slope))
    return w.elementwise("add", w.elementwise("maximum", x.op, zero), below)


def leaky_relu(w: Ops, shapes: Tensor, x: Value, slope: float | int = 0.01) -> Any:
    """LeakyReLU"""
    return w.leaky(x.op, float(slope))


def mean(w: Ops, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.mean over some axes."""
    return w.reshape(w.mean(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def total(w: Ops, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.sum over some axes."""
    return w.reshape(w.total(w.op_of(x), [dim % x.ndim for dim in dims]), shapes.shape)


def amax(w: Ops, shapes: Tensor, x: Value, dims: Sequence[int], keepdim: bool = False) -> Any:
    """torch.amax over some axes."""
    return w.reshape(w.most(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def greater(w: Ops, shapes: Tensor, x: Value, other: Any) -> Any:
    """x > other"""
    return w.elementwise("greater", x.op, w.op_of(other))


def equal(w: Ops, shapes: Tensor, x: Value, other: Any) -> Any:
    """x == other"""
    return w.elementwise("equal", x.op, w.op_of(other))


def where(w: Ops, shapes: Tensor, condition: Value, x: Any, other: Any) -> Any:
    """torch.where"""
    return w.where(condition.op, w.op_of(x), w.op_of(other))


def ones_like(w: Ops, shapes: Tensor, x: Value, **_: Any) -> Any:
    """torch.ones_like"""
    return w.broadcast(w.constant(torch.ones([1] * shapes.ndim)), shapes.shape)


def zeros_like(w: Ops, shapes: Tensor, x: Value, **_: Any) -> Any:
    """torch.zeros_like"""
    return w.broadcast(w.constant(torch.zeros([1] * shapes.ndim)), shapes.shape)


def var(w: Ops, shapes: Tensor, x: Value, dims: Sequence[int], correction: int = 1, keepdim: bool = False) -> Any:
    """The variance over some axes: the mean of squares around the mean, times n / (n - correction)."""
    dims = [dim % x.ndim for dim in dims]
    n = 1
    for dim in dims:
        n *= x.shape[dim]
    around = w.elementwise("subtract", x.op, w.mean(x.op, dims))
    scaled = w.elementwise("multiply", w.mean(w.squared(around), dims), w.constant(n / (n - correction)))
    return w.reshape(scaled, shapes.shape)


def vector_norm(
    w: Ops, shapes: Tensor, x: Value, order: float | int, dims: Sequence[int], keepdim: bool = False
) -> Any:
    """The Euclidean length along some axes.

    Raises:
        TypeError: another norm.
    """
    if order != 2:
        raise TypeError(f"the network uses the norm of order {order}, which no graph here has; run it in torch")
    return w.reshape(w.length(x.op, [dim % x.ndim for dim in dims]), shapes.shape)


def softmax(w: Ops, shapes: Tensor, x: Value, dim: int, half: bool) -> Any:
    """Softmax"""
    return w.softmax(x.op, dim % x.ndim)


def layer_norm(
    w: Ops, shapes: Any, x: Value, size: Sequence[Extent], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Any:
    """LayerNorm over the last axis."""
    written = w.standardize(x.op, eps)
    written = written if weight is None else w.elementwise("multiply", written, w.constant(weight))
    return written if bias is None else w.elementwise("add", written, w.constant(bias))


def batch_norm(
    w: Ops,
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


def pixel_shuffle(w: Ops, shapes: Tensor, x: Value, r: int) -> Any:
    """(..., c r r, h, w) as (..., c, h r, w r)."""
    *rest, c, h, width = x.shape
    apart = w.reshape(x.op, (prod(rest), c // r**2, r, r, h, width))
    return w.reshape(w.transpose(apart, (0, 1, 4, 2, 5, 3)), shapes.shape)


def pixel_unshuffle(w: Ops, shapes: Tensor, x: Value, r: int) -> Any:
    """(..., c, h r, w r) as (..., c r r, h, w)."""
    *rest, c, h, width = x.shape
    apart = w.reshape(x.op, (prod(rest), c, h // r, r, width // r, r))
    return w.reshape(w.transpose(apart, (0, 1, 3, 5, 2, 4)), shapes.shape)


def replication_pad(w: Ops, shapes: Tensor, x: Value, padding: Sequence[Extent]) -> Any:
    """The first and the last element along each of the last axes repeated."""
    return padded(w, x, padding, None)


def constant_pad(w: Ops, shapes: Tensor, x: Value, padding: Sequence[Extent], value: float | int = 0) -> Any:
    """One number before and after the elements of each of the last axes; where there are to be fewer, they are cut."""
    return padded(w, x, padding, float(value))


def reflection_pad(w: Ops, shapes: Tensor, x: Value, padding: Sequence[Extent]) -> Any:
    """The last axes mirrored at their ends, which are not repeated."""
    written = x.op
    for place in range(len(padding) // 2):
        axis, (before, after) = x.ndim - 1 - place, padding[2 * place : 2 * place + 2]
        period = max(2 * x.shape[axis] - 2, 1)
        whole = [position % period for position in range(-before, x.shape[axis] + after)]
        written = w.gather(written, axis, [min(position, period - position) for position in whole])
    return written


def padded(w: Ops, x: Value, padding: Sequence[Extent], value: float | None) -> Any:
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


def largest(w: Ops, shapes: Any, x: Value, size: Sequence[Extent], *_: Any) -> Any:
    """Max pooling to a size, or with windows that lie side by side."""
    return w.largest(x, *shapes[0].shape[2:])


def nearest(w: Ops, shapes: Tensor, x: Value, *_: Any) -> Any:
    """Enlarged: each pixel is the one whose place it falls on."""
    height, width = shapes.shape[2:]
    return w.resize(x.op, height, width, "nearest")


def bilinear(w: Ops, shapes: Tensor, x: Value, size: Any, corners: bool, *_: Any) -> Any:
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
