"""What a network is on our kernels: operations with memory of their own, and looks at it.

A value is a look at the memory of an op (`View`): reshapes, transposes, slices and repetitions are strides, and move
nothing. Convolutions write channels last, whatever the shape is called afterwards, so that those of frames and those of
time read what the others wrote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from bitlens.engine.lower import Operand

__all__ = [
    "Codes", "Constant", "Denoising", "Handed", "Layer", "Op", "View", "codes_of", "dense", "dense_as", "laid",
    "regular", "shuffle_of", "volume_of",
]  # fmt: skip


@dataclass(eq=False)
class Op:
    """What a call computes, into dense memory of its own."""

    kind: str
    inputs: list["View"]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    kernel: Callable[..., Any] | None = None
    """A function of torch that takes the inputs' tensors and `out`."""
    dtype: torch.dtype = torch.float32
    slope: float = 1.0
    """Of a LeakyReLU, or of a layer's, which comes before what is added."""
    axis: int = 0
    """Along which a concatenation puts its inputs."""

    @property
    def whole(self) -> "View":
        """All of it."""
        return View(self, self.size, self.stride)

    @property
    def count(self) -> int:
        """Of its elements."""
        return prod(self.size)


@dataclass(eq=False)
class Constant(Op):
    """Numbers that torch knows before."""

    tensor: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(eq=False)
class Codes(Op):
    """The codes of an op's values on a grid; they lie as the values do."""

    operand: Operand | None = None


@dataclass(eq=False)
class Handed(Op):
    """Codes times a number for each channel, plus another: a convolution of each channel by itself, pixel by pixel."""

    weight: Tensor = field(default_factory=lambda: torch.zeros(()))
    offset: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(eq=False)
class Layer(Op):
    """A layer on the kernels. Its first input are codes (t, h, w, c), its second those that are `handed` on, if there
    are some; others are added to its values."""

    name: str = ""
    handed: Handed | None = None
    """What is added before LeakyReLU."""
    volume: tuple[int, ...] = (1, 1, 1, 1)
    """Its values as (t, h, w, outputs)."""
    spread: int = 1
    """Its outputs are squares of pixels, of this many rows and columns."""

    @property
    def added(self) -> list["View"]:
        """What is added to its values, after LeakyReLU."""
        return self.inputs[1 + (self.handed is not None) :]


@dataclass(eq=False)
class Denoising(Op):
    """Total-variation denoising of pictures, contiguous ones."""

    weight: float = 0.0
    steps: int = 0


@dataclass(frozen=True, eq=False)
class View:
    """A look at an op's memory: a size, and how far elements are apart."""

    op: Op
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    @property
    def empty(self) -> Tensor:
        """A tensor of torch's meta device that lies so."""
        return torch.empty_strided(self.size, self.stride, dtype=self.op.dtype, device="meta")

    def through(self, look: Callable[[Tensor], Tensor]) -> "View":
        """Another look, by what torch does with shapes; RuntimeError where that takes a copy."""
        seen = look(self.empty)
        return View(self.op, tuple(seen.shape), seen.stride(), self.offset + int(seen.storage_offset()))

    def of(self, op: Op) -> "View":
        """The same look at another op that lies as this one's does."""
        return View(op, self.size, self.stride, self.offset)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Size and stride of the axes that have more than one element."""
        return [(n, step) for n, step in zip(self.size, self.stride, strict=True) if n > 1]

    @property
    def is_whole(self) -> bool:
        """Whether it sees each element of the op once."""
        return self.offset == 0 and prod(self.size) == self.op.count and all(step for _, step in self.steps)

    def lies_as(self, other: "View | Op") -> bool:
        """Whether elements of the same place are as far apart."""
        both = zip(self.size, self.stride, other.size, other.stride, strict=True) if self.size == other.size else None
        return both is not None and all(n == 1 or mine == theirs for n, mine, _, theirs in both)


def codes_of(source: Op, operand: Operand) -> Codes:
    """The codes of an op's values."""
    return Codes("grids", [source.whole], source.size, source.stride, None, torch.uint8, operand=operand)


def shuffle_of(op: Op) -> int | None:
    """The side of the squares of pixels that a copy makes of channels, which lie innermost; None: it does not."""
    if op.kind != "copy" or op.dtype != torch.float32 or len(op.size) != 4 or len(op.inputs[0].size) != 6:
        return None
    view = op.inputs[0]
    n, c, h, square, w, other = view.size
    last = c * square**2
    wanted = View(view.op, view.size, (h * w * last, square**2, w * last, square, last, 1))
    after = View(op, (n, c, h * square, w * square), laid((n, c, h * square, w * square), (0, 2, 3, 1)))
    fits = square == other and view.is_whole and view.lies_as(wanted) and after.lies_as(op)
    return square if fits else None


def volume_of(size: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(n, h, w, c), (1, t, h, w, c) or (..., c) of a linear layer as (t, h, w, c): size and dense strides."""
    whole = (size[0] * size[1], *size[2:]) if len(size) == 5 else tuple(size)
    whole = (1,) * (4 - len(whole)) + whole if len(whole) <= 4 else (1, 1, prod(size[:-1]), size[-1])
    return whole, dense(whole)


def regular(x: View) -> View | None:
    """(t, h, w, c) with strides as the kernels read them; None: its pixels are not equally far apart."""
    (t, h, w, c), (frame, row, pixel, channel) = x.size, x.stride
    pixel = pixel if w > 1 else row if h > 1 else frame if t > 1 else c
    wanted = (h * w * pixel, w * pixel, pixel, 1)
    fits = pixel >= c and all(
        n == 1 or a == b for n, a, b in zip(x.size, (frame, row, pixel, channel), wanted, strict=True)
    )
    return View(x.op, x.size, wanted, x.offset) if fits else None


def dense(size: Sequence[int]) -> tuple[int, ...]:
    """The strides of contiguous memory."""
    stride, step = [], 1
    for n in reversed(size):
        stride.append(step)
        step *= n
    return tuple(reversed(stride))


def laid(size: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The strides of dense memory with the axes in an order, the innermost last."""
    stride = [0] * len(size)
    for axis, step in zip(order, dense([size[axis] for axis in order]), strict=True):
        stride[axis] = step
    return tuple(stride)


def dense_as(like: Tensor) -> tuple[int, ...]:
    """The strides of dense memory whose axes lie in the order of a tensor's."""
    return laid(like.shape, sorted(range(like.ndim), key=lambda axis: (-like.stride(axis), axis)))
