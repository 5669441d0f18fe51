"""Counts what a network computes: multiply-accumulates (MACs) of each layer, and their price in low bits.

Counted are convolutions, linear layers and attention products, in MACs without biases; nothing else (softmax,
activations, additions, quantization itself). Counting rules for b bits [Q-SCI tab. 2, read off its numbers]:

    paper        MACs of convolutions and linear layers times 1/4, 1/8, 1/16, 1/32 for 8, 4, 3, 2 bits
    linear       MACs times b/32, b the larger of weight and activation bits
    bit product  MACs times w a / 1024, w weight and a activation bits

The first prices 3 bits as half of 4 and leaves attention products out. None is a time: that is measured.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from bitlens import tasks
from bitlens.networks.parts import MatMul
from bitlens.quant.layers import LAYERS, QUANTIZED, TRANSPOSED, float_mode

__all__ = ["PAPER_RATIO", "RULES", "LayerCount", "count", "operations"]

PAPER_RATIO = {32: 1.0, 8: 1 / 4, 4: 1 / 8, 3: 1 / 16, 2: 1 / 32}
"""Price of one MAC under the paper's rule, by bits."""

RULES = ("paper", "linear", "bit product")


@dataclass(frozen=True)
class LayerCount:
    """What one layer holds and computes for one measurement."""

    name: str
    """Dotted module name."""
    kind: str
    """Class of the float layer: Conv3d, Linear, MatMul ..."""
    macs: int
    """Multiply-accumulates for one measurement of the size asked for."""
    weights: int
    """Parameters, biases too."""
    weight_bits: int
    """32: float. For a product, the bits of its right factor."""
    activation_bits: int
    """32: float. For a product, the bits of its left factor."""


def count(network: nn.Module, frames: int = 8, height: int = 256, width: int = 256) -> list[LayerCount]:
    """MACs of every convolution, linear layer and product for one measurement, in the order of execution.

    A network that enlarges pictures is counted for one picture of that size before it is enlarged.

    A measurement of that size goes through a copy of the network on torch's meta device, where tensors have shapes and
    no values: nothing is computed. What a network pads is counted as padded, and a layer that runs several times
    counts all of them.

    >>> from bitlens.networks.efficientsci import efficientsci
    >>> round(sum(layer.macs for layer in count(efficientsci("t"))) / 1e9, 1)
    141.9

    Raises:
        ValueError: a size below 1.
    """
    if min(frames, height, width) < 1:
        raise ValueError(f"frames={frames}, height={height}, width={width}; wanted at least 1 each; change them")
    found: dict[str, LayerCount] = {}
    copied = copy.deepcopy(network).to("meta").eval()
    layers = _layers(copied)
    for name, module in layers:
        module.register_forward_hook(_recorder(name, module, found))
    if layers:
        with torch.no_grad(), torch.device("meta"), float_mode(copied):  # grids need not be calibrated to be counted
            task = tasks.of(network)
            copied(*task.ones(*(frames, height, width)[-len(task.axes) :]))
    return list(found.values())


def operations(layers: list[LayerCount], rule: str) -> float | None:
    """The sum over layers of MACs times price under a rule of `RULES`; None where the rule has no price.

    Raises:
        ValueError: no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"no counting rule '{rule}'; wanted one of {', '.join(RULES)}; choose one")
    total = 0.0
    for layer in layers:
        if rule == "bit product":
            price = layer.weight_bits * layer.activation_bits / 1024
        elif rule == "linear":
            price = max(layer.weight_bits, layer.activation_bits) / 32
        elif layer.kind == MatMul.__name__:
            price = 0.0
        elif (bits := max(layer.weight_bits, layer.activation_bits)) in PAPER_RATIO:
            price = PAPER_RATIO[bits]
        else:
            return None
        total += layer.macs * price
    return total


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that are counted; what a quantized layer wraps is counted with its wrapper."""
    kinds = (*QUANTIZED, *LAYERS, MatMul)
    named = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    wrapped = {id(module.layer) for _, module in named if isinstance(module, QUANTIZED)}
    return [(name, module) for name, module in named if id(module) not in wrapped]


def _recorder(name: str, module: nn.Module, found: dict[str, LayerCount]) -> Callable[..., None]:
    """A forward hook that adds one run of the layer to `found`."""
    layer, weight_bits, activation_bits = module, 32, 32
    if isinstance(module, QUANTIZED):
        layer, weight_bits, activation_bits = module.layer, module.weight_bits, module.activation_bits
    weights = sum(each.numel() for each in layer.parameters())

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs = _macs(layer, inputs, output) + (found[name].macs if name in found else 0)
        found[name] = LayerCount(name, type(layer).__name__, macs, weights, weight_bits, activation_bits)

    return record


def _macs(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """Multiply-accumulates of one run, biases left out."""
    if isinstance(layer, LAYERS):
        weight = layer.get_parameter("weight")  # out, in / groups, kernel; transposed: in, out / groups, kernel
        positions = inputs[0] if isinstance(layer, TRANSPOSED) else output
        return positions.numel() * prod(weight.shape[1:])
    return output.numel() * inputs[0].shape[-2]  # b n i k p times b n k j p
