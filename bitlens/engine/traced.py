"""Any network that `trace.py` reads on our kernels: integer layers, torch's float operations between, as one plan."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.fusion import codes_first, fused, reached, users_of
from bitlens.engine.lower import IntegerLayer, IntegerProduct, lower, runs_in_integers
from bitlens.engine.native import Packed
from bitlens.engine.plan import Memory, Part, Plan, kernels
from bitlens.engine.selfcheck import check_layers
from bitlens.engine.swin import as_volumes, torch_threads
from bitlens.engine.traced_native import by_itself, on_kernels, unreadable, write
from bitlens.engine.views import Codes, Constant, Denoising, Layer, Op, View
from bitlens.quant.layers import Quantized, quantized_layers

__all__ = ["Engine", "missing"]

Array = TypeVar("Array", Tensor, np.ndarray)

KINDS = {torch.float32: np.float32, torch.uint8: np.uint8, torch.bool: np.bool_}
SHORT = 8
"""Runs of fewer elements are copied one by one."""
OVER_INPUTS = {"add", "subtract", "multiply", "divide", "leaky", "relu", "sigmoid", "where", "maximum", "minimum"}
"""Ops whose result may take the place of an input that nothing reads afterwards."""


class Engine(Packed):
    """A low-bit network on the native kernels, read off its code; called like the network.

    Args:
        network: fake-quantized; it is not changed.
        precision: "f32", of all that is not integers.
        threads: CPU threads; None: as many as this process may use.
        level: instruction set, one of `bitlens_kernels.levels()`; None: the best.
        check: compare each kind of layer with its scalar reference first.

    Raises:
        TypeError: `missing` names a reason why the kernels cannot run the network.
        ValueError: unknown precision, threads below 1, or a grid without a range.
        ComputesWrongly: a kernel differs from its scalar reference on this machine.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str = "f32",
        threads: int | None = None,
        level: str | None = None,
        check: bool = True,
    ):
        if (reason := missing(network)) is not None:
            raise TypeError(f"{reason}; choose another engine")
        if precision != "f32":
            raise ValueError(f"precision {precision!r}; wanted f32; leave it out")
        self.network, self.lowered = network, lower(network)
        self.exact = [name for name, layer in self.lowered.layers.items() if is_exact(layer)]
        """The layers on the kernels."""
        handed = [one for one in self.lowered.layers.values() if isinstance(one, IntegerLayer) and by_itself(one)]
        self.handed = len(handed)
        """How many hand each channel on, which other layers do on their way."""
        exact = {name: self.lowered.layers[name] for name in self.exact}
        super().__init__(as_volumes(exact), precision, threads, level)
        self.plans: dict[tuple[tuple[int, ...], ...], Program] = {}
        if check and self.level != "scalar":
            check_layers({name: self.integers[name] for name in self.exact}, self.level, np.float32)

    @torch.no_grad()
    def __call__(self, *inputs: Array) -> Array:
        """What the network gives for its inputs, float32: a video (b, c, t, h, w), or an image (b, c, h, w).

        Arrays of numpy give an array, tensors a tensor. The first call for a size plans it.
        """
        tensors = [torch.as_tensor(one).float() for one in inputs]
        batch = max(len(one) for one in tensors)
        program = self.program(*(tuple(one.shape[1:]) for one in tensors))
        with torch_threads(self.threads):
            found = torch.cat([program(*(one[min(i, len(one) - 1)] for one in tensors)) for i in range(batch)])
        return found if isinstance(inputs[0], Tensor) else found.numpy()  # type: ignore[return-value]

    def program(self, *sizes: tuple[int, ...]) -> "Program":
        """The calls for inputs of given sizes, without the batch."""
        if sizes not in self.plans:
            self.plans[sizes] = Program(self, sizes)
        return self.plans[sizes]

    @property
    def integer_layers(self) -> tuple[int, int]:
        """How many of the quantized convolutions and linear layers run on the kernels, and how many there are."""
        layers = quantized_layers(self.network).values()
        return len(self.exact) + self.handed, sum(isinstance(one, Quantized) for one in layers)

    def pixels(self, name: str, square: int) -> list[str]:
        """The names of the layers that a layer is for each pixel of the squares that its outputs are."""
        if square == 1:
            return [name]
        layer, count = self.integers[name], square**2
        assert isinstance(layer, IntegerLayer)
        names = [f"{name}, pixel {place}" for place in range(count)]
        for place, one in enumerate(names):
            own = slice(place, None, count)
            self.integers[one] = replace(
                layer,
                weight=layer.weight[own],
                weight_scale=layer.weight_scale[own],
                weight_zero_point=layer.weight_zero_point[own],
                bias=None if layer.bias is None else layer.bias[own],
            )
        return names


def missing(network: nn.Module) -> str | None:
    """Why the kernels cannot run a network; None: they can."""
    if not quantized_layers(network):  # asked each time: grids may have been taken away
        return f"nothing of {type(network).__name__} is quantized; wanted a low-bit network"
    try:
        kernels().best_level()
    except ImportError as error:
        return f"the native kernels are not built ({error})"
    return unreadable(network)


def is_exact(layer: IntegerLayer | IntegerProduct) -> bool:
    """Whether the kernels have a layer."""
    return isinstance(layer, IntegerLayer) and runs_in_integers(layer) and on_kernels(layer.geometry, (1,))


class Program:
    """The calls of a network for one size of its inputs.

    Args:
        engine: who knows the layers.
        sizes: of the inputs, without the batch.
    """

    def __init__(self, engine: Engine, sizes: tuple[tuple[int, ...], ...]):
        self.engine, self.plan = engine, Plan(engine)
        self.inputs, ops, output = write(engine.network, engine.lowered, *sizes)
        ops, self.output = fused(reached(ops, output), output)
        ops = codes_first(ops)
        self.memories: dict[Op, Memory] = {}
        self.within: dict[Op, tuple[Memory, int, int, int]] = {}
        """Codes that lie in those of a concatenation: its memory, the first channel, a pixel's channels, and theirs."""
        self.layers: dict[int, Layer] = {}
        """Of the plan's steps that are layers."""
        self.users = users_of(ops)
        self.index = {op: index for index, op in enumerate(ops)}
        self.build(ops)
        self.plan.place()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result for inputs without a batch, with one of 1."""
        for view, one in zip(self.inputs, inputs, strict=True):
            if view.op in self.memories:
                self.tensor(self.plan.block, view).copy_(one)
        self.plan.run()
        return self.tensor(self.plan.block, self.output).clone(memory_format=torch.contiguous_format)

    def build(self, ops: list[Op]) -> None:
        """Append the calls of all ops."""
        for op in ops:
            if op.kind == "concat" and op.dtype == torch.uint8:
                self.lay_within(op)
        for view in self.inputs:
            if view.op in self.index:
                self.memory(view.op).uses.append(0)
        done: set[Op] = set()
        for op in ops:
            if op in done or isinstance(op, Constant) or op.kind == "input":
                continue
            if isinstance(op, Layer):
                self.layer(op)
            elif isinstance(op, Codes):
                source = op.inputs[0].op
                if not isinstance(source, Layer):
                    together = [one for one, _ in self.users[source] if isinstance(one, Codes)]
                    done.update(together)
                    for first in range(0, len(together), 8):
                        self.grids(source, together[first : first + 8])
            elif op.kind == "concat":
                self.concat(op)
            else:
                self.operation(op)
        self.memory(self.output.op).uses.append(len(self.plan.steps) - 1)

    def memory(self, op: Op) -> Memory:
        """The memory of an op's result."""
        if op in self.within:
            return self.within[op][0]
        if op not in self.memories:
            self.memories[op] = self.plan.new((1, 1, op.count), 1, KINDS[op.dtype]).memory
        return self.memories[op]

    def parts(self, *views: View) -> list[Part]:
        """What a call reads or writes, for the plan."""
        return [Part(self.memory(view.op)) for view in views if not isinstance(view.op, Constant)]

    def tensor(self, block: np.ndarray, view: View) -> Tensor:
        """What a look sees, in the block of memory."""
        if isinstance(view.op, Constant):
            numbers = view.op.tensor  # which may be part of others
            return numbers.as_strided(view.size, view.stride, numbers.storage_offset() + view.offset)
        return (
            torch.from_numpy(Part(self.memory(view.op)).view(block))
            .flatten()
            .as_strided(view.size, view.stride, view.offset)
        )

    def over(self, op: Op) -> None:
        """Let an op write to where an input lies that it is the last to read."""
        for view in op.inputs:
            source = view.op
            if (
                source not in self.within
                and not isinstance(source, Constant)
                and source is not self.output.op
                and source.dtype == op.dtype
                and source.count == op.count
                and view.is_whole
                and view.lies_as(op)
                and [user for user, _ in self.users[source]].count(op) == 1
                and all(self.index[user] <= self.index[op] for user, _ in self.users[source])
            ):
                self.memories[op] = self.memory(source)
                return

    def operation(self, op: Op) -> None:
        """A function of torch, a copy, or denoising."""
        if op.kind in OVER_INPUTS:
            self.over(op)

        def bind(block: np.ndarray) -> Callable[[], Any]:
            out, *inputs = (self.tensor(block, view) for view in (op.whole, *op.inputs))
            if isinstance(op, Denoising):
                engine, arrays = self.engine, (inputs[0].numpy(), out.numpy())
                return kernels().bind_denoise(*arrays, op.weight, op.steps, engine.level, engine.threads)
            if op.kernel is None:
                return copying(out, inputs[0])
            kernel = op.kernel
            return lambda: kernel(*inputs, out=out)

        self.plan.step(bind, self.parts(op.whole, *op.inputs), op.kind)

    def lay_within(self, op: Op) -> None:
        """Let the codes that are put together be written where they will lie, if they are channels of pixels there."""
        begin, whole = 0, op.size[op.axis]
        for view in op.inputs:
            c, code = view.size[op.axis], view.op
            alike = all(
                axis == op.axis or n == 1 or step * whole == at * c
                for axis, (n, step, at) in enumerate(zip(view.size, view.stride, op.stride, strict=True))
            )
            inner = op.stride[op.axis] == 1 and (c == 1 or view.stride[op.axis] == 1)
            if alike and inner and isinstance(code, Codes) and len(self.users[code]) == 1 and view.is_whole:
                self.within[code] = self.memory(op), begin, whole, c
            begin += c

    def concat(self, op: Op) -> None:
        """What of a concatenation is not written where it lies."""
        begin, copied = 0, []
        for view in op.inputs:
            n = view.size[op.axis]
            if view.op not in self.within:
                copied.append((op.whole.through(lambda x, b=begin, n=n: x.narrow(op.axis, b, n)), view))
            begin += n
        if not copied:
            return

        def bind(block: np.ndarray) -> Callable[[], None]:
            return one_by_one([copying(*(self.tensor(block, view) for view in pair)) for pair in copied])

        self.plan.step(bind, self.parts(op.whole, *(view for _, view in copied)), "concat")

    def volume(self, block: np.ndarray, op: Op, size: tuple[int, ...], offset: int = 0) -> np.ndarray:
        """An op's result as an array (t, h, w, c) for the kernels."""
        _, begin, pixel, _ = self.within.get(op, (None, offset, size[-1], None))
        _, h, w, _ = size
        return self.tensor(block, View(op, size, (h * w * pixel, w * pixel, pixel, 1), begin)).numpy()

    def targets(self, block: np.ndarray, codes: list[Codes], size: tuple[int, ...]) -> list[Any]:
        """Grids, as the kernels want them."""
        found = []
        for op in codes:
            grid = op.operand
            assert grid is not None
            array = self.volume(block, op, size)
            found.append(kernels().Target(array, float(grid.scale), float(grid.zero_point), grid.qmin, grid.qmax))
        return found

    def layer(self, op: Layer) -> None:
        """A layer, with what is added to it, its values where something reads them, and the codes that follow."""
        engine, plan = self.engine, self.plan
        codes, added, handed = op.inputs[0], op.added, op.handed
        packed = [engine.convolution(name, codes.size) for name in engine.pixels(op.name, op.spread)]
        for convolution, *_ in packed:
            plan.workspace = max(plan.workspace, convolution.workspace(codes.size[:3], engine.threads))
        users = [user for user, _ in self.users[op]]
        grids = [user for user in users if isinstance(user, Codes)]
        valued = op is self.output.op or len(grids) < len(users) or len(grids) > 8
        if valued:
            self.over(op)

        def bind(block: np.ndarray) -> Callable[[], None]:
            add = [self.volume(block, view.op, op.volume, view.offset) for view in added]
            values = self.volume(block, op, op.volume) if valued else None
            on = handed and kernels().Handed(self.volume(block, op.inputs[1].op, op.volume), handed.weight.numpy())
            targets, source = self.targets(block, grids[:8], op.volume), self.tensor(block, codes).numpy()
            calls = []
            for place, (convolution, scale, bias) in enumerate(packed):
                at = np.s_[:, place // op.spread :: op.spread, place % op.spread :: op.spread]
                output = kernels().Output(
                    scale=scale,
                    bias=bias if handed is None else bias + handed.offset.numpy(),
                    handed=on,
                    slope=op.slope,
                    add=[one[at] for one in add],
                    values=None if values is None else values[at],
                    targets=[replace(target, codes=target.codes[at]) for target in targets],
                    spread=op.spread,
                )
                calls.append(convolution.bind(source, output, block[: plan.workspace], engine.threads))
            return one_by_one(calls)

        self.layers[len(plan.steps)] = op
        written = [op.whole] if valued else []
        plan.step(bind, self.parts(*op.inputs, *written, *(grid.whole for grid in grids[:8])), "layer")
        for first in range(8, len(grids), 8):
            self.grids(op, grids[first : first + 8])

    def grids(self, source: Op, codes: list[Codes]) -> None:
        """The codes of values that no layer of the kernels made."""
        width = next((self.within[op][3] for op in codes if op in self.within), row_of(source.count))
        size = (1, 1, source.count // width, width)

        def bind(block: np.ndarray) -> Callable[[], None]:
            output = kernels().Output(targets=self.targets(block, codes, size))
            values = self.volume(block, source, size)
            return kernels().bind_finish(values, output, self.engine.level, self.engine.threads)

        self.plan.step(bind, self.parts(source.whole, *(op.whole for op in codes)), "grids")


def row_of(count: int) -> int:
    """A length of rows that fills vectors and divides a number of elements."""
    return next((width for width in (256, 128, 64, 32, 16) if count % width == 0), 1)


def one_by_one(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    """Several calls as one."""

    def call() -> None:
        for one in calls:
            one()

    return calls[0] if len(calls) == 1 else call


def copying(to: Tensor, source: Tensor) -> Callable[[], Any]:
    """A copy of an array into another, whose axes may be several of its; of bytes four at a time, if they lie so."""
    try:
        to = to.view(source.shape)
    except RuntimeError:  # neither's axes are the other's cut
        return lambda: to.copy_(source.reshape(to.shape))
    if to.dtype == torch.uint8:
        order = sorted(range(to.ndim), key=lambda axis: -to.stride(axis))
        with suppress(RuntimeError):
            to, source = (one.permute(order).view(torch.int32) for one in (to, source))
    inner = min(range(to.ndim), key=to.stride) if to.ndim > 1 else 0
    if to.ndim > 1 and to.shape[inner] < SHORT:  # torch would loop over so few
        return one_by_one([copying(*pair) for pair in zip(to.unbind(inner), source.unbind(inner), strict=True)])
    return lambda: to.copy_(source)
