"""Reshapes and transposes that are remembered instead of written: a rewrite between `trace.py` and an OpenVINO graph.

A network of videos that is made of pictures, such as DUN, convolves (b t, c, h, w), then (b, c, t, h w), and so on; one
with attention, such as STFormer, has its channels last in between. Written down, each change of shape is a pass over
memory, and ends what kernels fuse. Here a value is an array, and for each axis of the value the array's axes that it
runs over (`Laid`). Reshapes and transposes change only the latter. A convolution takes the array as it lies, with all
of its axes at once: both of DUN's are convolutions of (b, c, t, h, w), with windows of 1 x 3 x 3 and 3 x 1 x 1, and
there is nothing between them. Where values meet that lie differently, the older one stays as it lies: the residual
stream.

OpenVINO keeps what convolutions read and write with the channels innermost, which the shapes of its ops do not show.
So what has to be moved is written as three transposes: to channels last, the move itself, and back. The first and the
last move nothing, as OpenVINO notices.
"""

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from torch import nn

from bitlens.engine.lower import Operand
from bitlens.engine.picture import PictureGraph, Window, windows_of
from bitlens.engine.trace import Value, Writer
from bitlens.quant.layers import Quantized

__all__ = ["Laid", "Layout"]

MOST_AXES = 3
"""Spatial axes that a convolution may have."""
births = itertools.count()


@dataclass(frozen=True, eq=False)
class Axis:
    """Of an array; two of the same size are not the same."""

    size: int


Axes = tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Laid:
    """A value, as it lies in an array."""

    op: Any
    """The array; neighbours of its axes may be one in the op's shape, and axes of size 1 be there too."""
    axes: Axes
    """Of the array, outermost first, but for those of size 1."""
    groups: tuple[Axes, ...]
    """For each axis of the value the array's axes that it runs over, outermost first; none where its size is 1."""
    channels_last: bool = False
    """OpenVINO has the op's axis 1 innermost."""
    born: int = field(default_factory=lambda: next(births))
    """A number that is larger for younger values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the value."""
        return tuple(map(size_of, self.groups))

    @property
    def flat(self) -> Axes:
        """The array's axes in the order of the value's elements."""
        return tuple(axis for group in self.groups for axis in group)

    @property
    def places(self) -> list[Axes]:
        """For each axis of the op the array's axes that it runs over."""
        return runs(self.axes, list(self.op.get_shape()))

    def cut(self, axes: Axes, cuts: Sequence[int]) -> "Laid | None":
        """The same with some of the array's axes as several.

        Args:
            axes: one inside the other, outermost first.
            cuts: how many steps of what is outside of a cut they are to have together; None: they cannot.
        """
        x, outside = self, 1
        for axis in axes:
            end = outside * axis.size
            for here in sorted({here for here in cuts if outside < here < end}):
                if here % outside or end % here:
                    return None
                outer, inner = Axis(here // outside), Axis(end // here)
                x = replace(
                    x,
                    axes=replaced(x.axes, axis, outer, inner),
                    groups=tuple(replaced(group, axis, outer, inner) for group in x.groups),
                )
                axis, outside = inner, here
            outside = end
        return x

    def reshaped(self, shape: Sequence[int]) -> "Laid | None":
        """The same elements, in their order, in another shape; None where that takes more than cutting axes."""
        x = self.cut(self.flat, cuts_of(shape))
        return None if x is None else replace(x, groups=tuple(runs(x.flat, shape)))

    def aligned(self, like: "Laid") -> "tuple[Laid, Laid] | None":
        """Both values, of equal shape or 1 instead, with groups of axes of equal sizes; None: there are none."""
        x: Laid | None = self
        other: Laid | None = like
        for place in range(len(self.groups)):
            if self.groups[place]:
                mine, theirs = (cuts_of([axis.size for axis in one.groups[place]]) for one in (self, like))
                x = x and x.cut(x.groups[place], theirs)
                other = other and other.cut(other.groups[place], mine)
        return None if x is None or other is None else (x, other)


class Layout(Writer):
    """A graph whose values are `Laid`; what has to be written goes to an OpenVINO graph."""

    def __init__(self, graph: PictureGraph):
        self.graph, self.integers, self.taps = graph, graph.integers, {}

    def plain(self, op: Any) -> Laid:
        """An op of the graph as it is."""
        shape = list(op.get_shape())
        axes = tuple(Axis(size) for size in shape if size > 1)
        return Laid(op, axes, tuple(runs(axes, shape)))

    def settled(self, x: Laid) -> Any:
        """The op of a value in its own shape."""
        return self.arranged(x, x.groups)

    def arranged(self, x: Laid, places: Sequence[Axes], channels_last: bool = False) -> Any:
        """An op each of whose axes runs over some of the array's axes.

        Args:
            channels_last: OpenVINO is to have the op's axis 1 innermost.
        """
        shape, flat = list(map(size_of, places)), [axis for place in places for axis in place]
        if [x.axes.index(axis) for axis in flat] == sorted(range(len(flat))):
            return self.graph.reshape(x.op, shape)
        op, lying = x.op, list(x.axes)
        if x.channels_last:
            op = self.graph.transpose(op, last(range(len(x.places))))
            lying = [axis for place in last(x.places) for axis in place]
        if channels_last:
            flat = [axis for place in last(places) for axis in place]
        op = self.graph.reshape(op, [axis.size for axis in lying])
        op = self.graph.transpose(op, [lying.index(axis) for axis in flat])
        if not channels_last:
            return self.graph.reshape(op, shape)
        back = np.argsort(last(range(len(shape)))).tolist()
        return self.graph.transpose(self.graph.reshape(op, last(shape)), back)

    def fitted(self, x: Laid, like: Laid) -> Any:
        """An op of x, as long as another value or 1 along each axis, that lies as that one does; None: none can."""
        missing = len(like.groups) - len(x.groups)
        both = replace(x, groups=((),) * missing + x.groups).aligned(like)
        if both is None:
            return None
        x, like = both
        both = zip(x.groups, like.groups, strict=True)
        pairs = dict(pair for mine, theirs in both if mine for pair in zip(theirs, mine, strict=True))
        places = [tuple(pairs[axis] for axis in place if axis in pairs) for place in like.places]
        if any(0 < len(mine) < len(theirs) for mine, theirs in zip(places, like.places, strict=True)):
            return None
        return self.arranged(x, places, like.channels_last)

    def together(self, write: Callable[..., Any], *values: Laid) -> Laid:
        """An operation on every element, on the arrays as they lie; those that lie unlike the oldest are moved."""
        shape = tuple(np.broadcast_shapes(*(x.shape for x in values)))
        whole = [x for x in values if x.shape == shape]
        if whole:
            like = min(whole, key=lambda x: x.born)
            ops = [x.op if x is like else self.fitted(x, like) for x in values]
            if all(op is not None for op in ops):
                return Laid(write(*ops), like.axes, like.groups, like.channels_last)
        return self.plain(write(*map(self.settled, values)))

    def constant(self, numbers: Any) -> Laid:
        """Float32 numbers: a tensor, or one number."""
        return self.plain(self.graph.constant(numbers))

    def reshape(self, x: Laid, shape: Sequence[int]) -> Laid:
        """Remembered, where its parts are whole axes."""
        return x.reshaped(shape) or self.plain(self.graph.reshape(self.settled(x), shape))

    def transpose(self, x: Laid, axes: Sequence[int]) -> Laid:
        """Remembered."""
        return replace(x, groups=tuple(x.groups[axis] for axis in axes))

    def elementwise(self, kind: str, *values: Laid) -> Laid:
        """An operation on every element, with broadcasting."""
        return self.together(lambda *ops: self.graph.elementwise(kind, *ops), *values)

    def offsets(self, grid: Operand, x: Laid) -> Laid:
        """code - zero_point of x on a grid, in float."""
        return self.together(lambda op: self.graph.offsets(grid, op), x)

    def where(self, condition: Laid, x: Laid, other: Laid) -> Laid:
        """x where the condition holds, else the other one, with broadcasting."""
        return self.together(self.graph.where, condition, x, other)

    def leaky(self, x: Laid, slope: float) -> Laid:
        """LeakyReLU."""
        return self.together(lambda op: self.graph.leaky(op, slope), x)

    def total(self, x: Laid, axes: Sequence[int]) -> Laid:
        """The sum over some axes, which stay with size 1."""
        gone = {axis for place in axes for axis in x.groups[place]}
        over = [place for place, run in enumerate(x.places) if gone.intersection(run)]
        if {axis for place in over for axis in x.places[place]} != gone:
            return self.plain(self.graph.total(self.settled(x), axes))
        left = tuple(tuple(axis for axis in group if axis not in gone) for group in (x.axes, *x.groups))
        return Laid(self.graph.total(x.op, over), left[0], left[1:])

    def concat(self, values: Sequence[Laid], axis: int) -> Laid:
        """Arrays one after the other, along an axis of theirs or, if they are of one shape, a new one outside."""
        like = min(values, key=lambda x: x.born)
        if all(x.shape == like.shape for x in values):
            ops = [x.op if x is like else self.fitted(x, like) for x in values]
            if all(op is not None for op in ops):
                return self.concat_alike(like, ops, axis)
        return self.plain(self.graph.concat([self.settled(x) for x in values], axis))

    def concat_alike(self, like: Laid, ops: Sequence[Any], axis: int) -> Laid:
        """Arrays that lie as one of them."""
        group = like.groups[axis]
        if group in like.places and len(group) == 1:
            [old], new = group, Axis(len(ops) * size_of(group))
            axes, *groups = (replaced(some, old, new) for some in (like.axes, *like.groups))
            op = self.graph.concat(ops, like.places.index(group))
            return Laid(op, axes, tuple(groups), like.channels_last)
        new, shape = Axis(len(ops)), [1, *like.op.get_shape()]
        groups = (*like.groups[:axis], (new, *group), *like.groups[axis + 1 :])
        return Laid(self.graph.concat([self.graph.reshape(op, shape) for op in ops], 0), (new, *like.axes), groups)

    def layer(self, name: str, module: nn.Module, x: Value) -> Laid:
        """A convolution or linear layer; a convolution in integers or of a float network takes the array as it lies."""
        geometry: Any = module.layer if isinstance(module, Quantized) else module
        known = self.exact(name) is not None or not isinstance(module, Quantized)
        if isinstance(geometry, (nn.Conv2d, nn.Conv3d)) and geometry.groups == 1 and known:
            parts = parts_of(geometry, x.op)
            if 2 <= len(parts) <= MOST_AXES:
                return self.convolution(name, module, x.op, parts)
        return self.plain(self.graph.layer(name, module, Value(x.shape, self.settled(x.op), self.graph)))

    def convolution(self, name: str, module: nn.Module, x: Laid, parts: Sequence["Part"]) -> Laid:
        """A convolution with as many spatial axes as there are parts."""
        op = self.graph.enter(
            name, module, Value(list(x.op.get_shape()), x.op, self.graph)
        )  # codes are moved, not values
        op = self.arranged(replace(x, op=op), [(), x.groups[1], *(part.axes for part in parts)], channels_last=True)
        out = self.graph.convolution(name, module, op, [part.window for part in parts])
        axes = [Axis(size) for size in out.get_shape()]
        groups: list[list[Axis]] = [[] for _ in x.groups]
        for axis, place in zip(axes[1:], (1, *(part.place for part in parts)), strict=True):
            groups[place] += [axis] if axis.size > 1 else []
        return Laid(out, tuple(axis for axis in axes if axis.size > 1), tuple(map(tuple, groups)), True)

    def product(self, name: str, module: nn.Module, left: Value, right: Value) -> Laid:
        """An attention product."""
        return self.plain(self.graph.product(name, module, *map(self.in_shape, (left, right))))

    def largest(self, x: Value, height: int, width: int) -> Laid:
        """Adaptive max pooling of x (b, c, h, w) to a height and width."""
        return self.plain(self.graph.largest(self.in_shape(x), height, width))

    def in_shape(self, x: Value) -> Value:
        """A value of the OpenVINO graph."""
        return Value(x.shape, self.settled(x.op), self.graph)

    def broadcast(self, x: Laid, shape: Sequence[int]) -> Laid:
        """x repeated along its axes of size 1."""
        return self.plain(self.graph.broadcast(self.settled(x), shape))

    def slice(self, x: Laid, axis: int, start: int, stop: int) -> Laid:
        """x[start:stop] along an axis."""
        return self.plain(self.graph.slice(self.settled(x), axis, start, stop))

    def gather(self, x: Laid, axis: int, positions: Sequence[int]) -> Laid:
        """x at some positions of an axis."""
        return self.plain(self.graph.gather(self.settled(x), axis, positions))

    def mean(self, x: Laid, axes: Sequence[int]) -> Laid:
        """The mean over some axes, which stay with size 1."""
        return self.plain(self.graph.mean(self.settled(x), axes))

    def most(self, x: Laid, axes: Sequence[int]) -> Laid:
        """The largest along some axes, which stay with size 1."""
        return self.plain(self.graph.most(self.settled(x), axes))

    def length(self, x: Laid, axes: Sequence[int]) -> Laid:
        """The square root of the sum of squares over some axes, which stay with size 1."""
        return self.plain(self.graph.length(self.settled(x), axes))

    def softmax(self, x: Laid, axis: int) -> Laid:
        """Softmax along an axis."""
        return self.plain(self.graph.softmax(self.settled(x), axis))

    def standardize(self, x: Laid, epsilon: float) -> Laid:
        """(x - mean) / sqrt(variance + epsilon) along the last axis."""
        return self.plain(self.graph.standardize(self.settled(x), epsilon))

    def resize(self, x: Laid, height: int, width: int, mode: str) -> Laid:
        """x (b, c, h, w) in another size."""
        return self.plain(self.graph.resize(self.settled(x), height, width, mode))


@dataclass(frozen=True)
class Part:
    """A spatial axis of a convolution."""

    axes: Axes
    """Of the array, that it runs over."""
    place: int
    """The axis of the value that it belongs to: 0 of the batch, 2 and more of what the layer looks along."""
    window: Window


def parts_of(geometry: Any, x: Laid) -> list[Part]:
    """The spatial axes of a convolution that takes an array as it lies: all but the channels, in the array's order.

    Axes that the layer does not look along may be several.
    """
    batch, _, *spatial = x.groups
    parts = [Part((axis,), 0, (1, 1, 0, 1)) for axis in batch]
    for place, (group, window) in enumerate(zip(spatial, windows_of(geometry), strict=True), 2):
        idle = window[:3] == (1, 1, 0)
        parts += [Part(axes, place, window) for axes in ([(axis,) for axis in group] if idle else [group])]
    return sorted(parts, key=lambda part: x.axes.index(part.axes[0]) if part.axes else -1)


def runs(axes: Axes, shape: Sequence[int]) -> list[Axes]:
    """Axes that are one inside the other as those of a shape; it has no ends within them."""
    left, found = list(axes), []
    for size in shape:
        run: list[Axis] = []
        while size_of(run) < size:
            run.append(left.pop(0))
        found.append(tuple(run))
    return found


def replaced(axes: Axes, old: Axis, *new: Axis) -> Axes:
    """Axes with one of them replaced."""
    return tuple(one for axis in axes for one in (new if axis is old else (axis,)))


def cuts_of(shape: Sequence[int]) -> list[int]:
    """The products of the sizes of the outer axes of a shape."""
    return list(itertools.accumulate(shape, operator.mul))


def last(places: Sequence[Any]) -> list[Any]:
    """The same with the second one, the channels', at the end."""
    return [places[0], *places[2:], places[1]]


def size_of(axes: Sequence[Axis]) -> int:
    """Of axes together."""
    return prod(axis.size for axis in axes)
