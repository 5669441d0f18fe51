"""What a network computes, operation by operation, for any graph that can be built op by op.

The network runs once, as its own code says, on a `Value`: a tensor with a shape and, where its numbers would be, an op
of the graph. torch hands every ATen operation on a Value to a `Writer`, which adds the op; layers arrive whole, so that
they can be integers. What does not depend on the inputs (masks, position biases) torch computes, as always; it becomes
a constant where it meets a Value. So a new network needs nothing here, unless it uses an operation that is new too.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bitlens.engine.aten import OPERATIONS
from bitlens.engine.functional import FUNCTIONAL
from bitlens.engine.lower import layers_of, operand
from bitlens.engine.ops import Extent, Ops, Value
from bitlens.engine.steps import Tap
from bitlens.quant.layers import Quantized

__all__ = ["Extent", "Value", "Writer", "trace"]

UNCHANGED = {"view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "detach", "_to_copy"}
"""Operations that change at most the shape: elements keep their order."""

BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
UNARY = ("relu", "sigmoid", "sqrt", "gelu", "abs", "exp", "tanh")


class Writer(Ops):
    """A graph under construction. Subclasses say how an op is written down; what arrives is said here, once."""

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
