"""A network as a list of kernel calls over one block of memory, planned before and used again for every video.

Arrays are channels-last, (t, h, w, c). First every call is noted with the arrays it touches; then each array gets a
place that is free while it is in use; then the calls are bound to that memory.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bitlens.engine.lower import Operand

ALIGN = 64


def kernels(part: str = "") -> Any:
    """The `bitlens_kernels` package, or a module of it."""
    return importlib.import_module(f"bitlens_kernels.{part}" if part else "bitlens_kernels")


@runtime_checkable
class Convolutions(Protocol):
    """Who knows the layers: `native.Engine`."""

    threads: int
    level: str

    def convolution(
        self, name: str, shape: tuple[int, ...], method: str | None = None
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """The kernel of a layer for inputs of a shape, by a method or the fastest one, and its scale and bias."""
        ...


@dataclass(eq=False)
class Memory:
    """An array (t, h, w, c) of a plan, and the calls between which it is in use."""

    shape: tuple[int, ...]
    kind: Any
    uses: list[int] = field(default_factory=list)
    offset: int = 0

    @property
    def bytes(self) -> int:
        size = int(np.prod(self.shape)) * np.dtype(self.kind).itemsize
        return (size + 2 * ALIGN - 1) // ALIGN * ALIGN  # a cache line between arrays


ORDERS: tuple[Callable[[Memory], Any], ...] = (lambda m: -m.bytes, lambda m: (min(m.uses), -m.bytes))
"""In which arrays may be given their places: the largest first, or as they are needed."""


@dataclass(frozen=True)
class Part:
    """A range of an array's channels."""

    memory: Memory
    begin: int = 0
    end: int | None = None

    def view(self, block: np.ndarray) -> np.ndarray:
        """The array in the block of memory."""
        m = self.memory
        count = int(np.prod(m.shape)) * np.dtype(m.kind).itemsize
        return block[m.offset : m.offset + count].view(m.kind).reshape(m.shape)[..., self.begin : self.end]

    def __getitem__(self, channels: slice) -> "Part":
        return Part(self.memory, channels.start, channels.stop)


@dataclass(frozen=True)
class Grid:
    """Where the codes of an operand go: channels `begin` on of what is computed."""

    codes: Part
    operand: Operand
    begin: int = 0
    depth: int = 0
    """Channels of a head, where the operand has a scale per head."""


@dataclass(frozen=True)
class Side:
    """A layer whose values are added to another's; `slope` is its own LeakyReLU's."""

    name: str
    codes: Part
    slope: float = 1.0


@dataclass
class Epilogue:
    """What becomes of a layer's sums; `slope` 1 is no LeakyReLU."""

    slope: float = 1.0
    side: Side | None = None
    add: Sequence[Part] = ()
    values: Part | None = None
    grids: Sequence[Grid] = ()

    @property
    def parts(self) -> list[Part]:
        side = [self.side.codes] if self.side else []
        return [*side, *self.add, *([self.values] if self.values else []), *(grid.codes for grid in self.grids)]


class Plan:
    """The calls that compute a network for one size of video, in one block of memory."""

    def __init__(self, engine: Convolutions):
        self.engine = engine
        self.steps: list[Callable[[np.ndarray], Callable[[], None]]] = []
        self.kinds: list[str] = []
        """Of each step: "layer", "grids", "attention", "shuffle" or "other"."""
        self.layers: dict[int, tuple[str, Part, Epilogue]] = {}
        """Of the steps that are convolutions: name, input and what becomes of the sums."""
        self.memories: list[Memory] = []
        self.workspace = 0
        self.calls: list[Callable[[], None]] = []
        self.block = np.empty(0, np.uint8)

    def new(self, size: Sequence[int], channels: int, kind: Any = np.uint8) -> Part:
        """A new array (t, h, w, channels)."""
        self.memories.append(Memory((*size, channels), kind))
        return Part(self.memories[-1])

    def step(
        self, bind: Callable[[np.ndarray], Callable[[], None]], parts: Sequence[Part], kind: str = "other"
    ) -> None:
        """Append a call of a kind, which reads or writes `parts`."""
        for part in parts:
            part.memory.uses.append(len(self.steps))
        self.steps.append(bind)
        self.kinds.append(kind)

    def convolve(self, name: str, codes: Part, epilogue: Epilogue) -> None:
        """The layer `name`."""
        convolution, scale, bias = self.engine.convolution(name, codes.memory.shape)
        threads, side, beside = self.engine.threads, epilogue.side, None
        if side is not None:
            beside, *numbers = self.engine.convolution(side.name, side.codes.memory.shape, "direct")
        self.workspace = max(self.workspace, convolution.workspace(codes.memory.shape[:3], threads, beside))

        def bind(block: np.ndarray) -> Callable[[], None]:
            output = self.output(block, epilogue, scale, bias)
            if side is not None:
                source = side.codes.view(block)
                output = replace(output, side=kernels().Side(beside, source, *numbers, slope=side.slope))
            return convolution.bind(codes.view(block), output, block[: self.workspace], threads)

        self.layers[len(self.steps)] = name, codes, epilogue
        self.step(bind, [codes, *epilogue.parts], "layer")

    def finish(self, values: Part, epilogue: Epilogue) -> None:
        """The output stage on values, on grids; values of one channel as rows of pixels, which fill vectors."""

        def bind(block: np.ndarray) -> Callable[[], None]:
            output, source = self.output(block, epilogue, None, None), values.view(block)
            if source.shape[-1] == 1:
                targets = [replace(target, codes=target.codes[..., 0][None]) for target in output.targets]
                output, source = replace(output, targets=targets), source[..., 0][None]
            return kernels().bind_finish(source, output, self.engine.level, self.engine.threads)

        self.step(bind, [values, *epilogue.parts], "grids")

    def attend(self, constants: Any, codes: Part, target: Grid) -> None:
        """Temporal attention on codes of q, k and v."""

        def bind(block: np.ndarray) -> Callable[[], None]:
            operand, bk = target.operand, kernels()
            step, zero = per_channel(target)
            written = bk.Target(target.codes.view(block), step, zero, operand.qmin, operand.qmax)
            options = dict(level=self.engine.level, threads=self.engine.threads)
            return bk.bind_attend(constants, codes.view(block), written, **options)

        self.step(bind, [codes, target.codes], "attention")

    def shuffle(self, codes: Part, result: Part) -> None:
        """PixelShuffle(2) where the channels of the four pixels come one pixel after the other."""

        def bind(block: np.ndarray) -> Callable[[], None]:
            t, h, w, c = codes.memory.shape
            source = codes.view(block).reshape(t, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
            target = result.view(block).reshape(t, h, 2, w, 2, c // 4)
            return lambda: np.copyto(target, source)

        self.step(bind, [codes, result], "shuffle")

    def output(self, block: np.ndarray, epilogue: Epilogue, scale: Any, bias: Any) -> Any:
        """What the kernels call an output."""
        bk = kernels()
        targets = [
            bk.Target(grid.codes.view(block), *per_channel(grid), grid.operand.qmin, grid.operand.qmax, grid.begin)
            for grid in epilogue.grids
        ]
        values = epilogue.values.view(block) if epilogue.values else None
        add = [part.view(block) for part in epilogue.add]
        return bk.Output(scale=scale, bias=bias, slope=epilogue.slope, add=add, values=values, targets=targets)

    def place(self) -> None:
        """Give every array its place, in the order of ORDERS that takes the least memory. Then bind the calls."""
        self.arrange(min(ORDERS, key=self.arrange))
        self.block = kernels().library.aligned(max(m.offset + m.bytes for m in self.memories))
        self.block.fill(0)  # touches every page
        self.calls = [bind(self.block) for bind in self.steps]

    def arrange(self, order: Callable[[Memory], Any]) -> int:
        """Give the arrays, in an order, the first gap that is free while they are in use; returns the end of all."""
        start = (self.workspace + ALIGN - 1) // ALIGN * ALIGN
        placed: list[Memory] = []
        for memory in sorted(self.memories, key=order):
            first, last = min(memory.uses), max(memory.uses)
            beside = [m for m in placed if min(m.uses) <= last and first <= max(m.uses)]
            memory.offset = start
            for other in sorted(beside, key=lambda m: m.offset):
                if memory.offset + memory.bytes <= other.offset:
                    break
                memory.offset = max(memory.offset, other.offset + other.bytes)
            placed.append(memory)
        return max(m.offset + m.bytes for m in placed)

    def run(self) -> None:
        """Compute the video from the estimate."""
        for call in self.calls:
            call()


def per_channel(grid: Grid) -> tuple[Any, Any]:
    """Scale and zero-point of each channel where they belong to heads, else one number each."""
    scale, zero = grid.operand.scale, grid.operand.zero_point
    if not grid.depth:
        return float(scale), float(zero)
    heads = ((grid.codes.end or 0) - grid.codes.begin) // grid.depth
    first, second = (x.flatten().expand(heads).repeat_interleave(grid.depth).numpy() for x in (scale, zero))
    return first, second
