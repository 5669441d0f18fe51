"""One set of weights in several widths: the codes of few bits are those of the widest, rounded once more.

    c_b = clamp(round(s_B c_B / s_b), -2^(b-1), 2^(b-1) - 1)          value = s_b c_b

One file then serves every width, and a stream can change between them [Double Rounding: Huang et al., "Nearly Lossless
Adaptive Bit Switching", 2025]. Steps s, ranges of activations and biases are each width's own: they are small.
Differs: the paper takes the last bits off, s_b = 2^(B - b) s_B. But the widest grid spans a channel's largest weight,
and few bits are best spent on a part of that, so each width keeps the step that it was calibrated to, and learns it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.quant.grid import StepGrid, code_range, quantize
from bitlens.quant.layers import Quantized, quantized_layers

__all__ = ["Nested", "NestedGrid", "nest", "rounded_again"]


def rounded_again(codes: Tensor, wide: Tensor, step: Tensor, bits: int) -> Tensor:
    """Signed codes of a grid with the step `wide` in one of fewer bits with another step.

    >>> rounded_again(torch.tensor([-128.0, -9.0, 7.0, 9.0, 20.0, 127.0]), torch.tensor(0.1), torch.tensor(1.6), 4)
    tensor([-8., -1.,  0.,  1.,  1.,  7.])
    """
    return quantize(codes * wide, step, torch.zeros_like(step), *code_range(bits, True))


class NestedGrid(StepGrid):
    """A weight grid that sees weights as a wider one rounds them; its step is its own, and learns by LSQ.

    Args:
        outer: the wider grid, no part of this module.
        own: the grid of fewer bits that it takes the place of.
    """

    def __init__(self, outer: StepGrid, own: StepGrid):
        super().__init__(own.bits, True, tuple(own.scale.shape))
        self.wider = (outer,)  # in a tuple: not registered, or its step would be here too
        with torch.no_grad():
            self.scale.copy_(own.scale)
        self.ready = own.ready

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values + (self.rounded(values) - values).detach())

    def codes(self, values: Tensor) -> Tensor:
        return super().codes(self.rounded(values))

    @torch.no_grad()
    def rounded(self, values: Tensor) -> Tensor:
        """Values on the wider grid."""
        (outer,) = self.wider
        return outer.values(outer.codes(values))


class Nested(nn.Module):
    """A network in several widths that share their weights, to be trained together.

    Args:
        networks: fake-quantized networks by width, as `nest` makes them.

    Call:
        as each of them. In training the widths take turns, from call to call; else the narrowest answers.
    """

    turn: Tensor

    def __init__(self, networks: Mapping[int, nn.Module]):
        super().__init__()
        self.widths = sorted(networks, reverse=True)
        self.networks = nn.ModuleDict({str(width): networks[width] for width in self.widths})
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))

    @property
    def widest(self) -> nn.Module:
        """The network whose codes the others' are rounded from."""
        return self.networks[str(self.widths[0])]

    def forward(self, *inputs: Any) -> Any:
        if not self.training:
            return self.networks[str(self.widths[-1])](*inputs)
        width = self.widths[int(self.turn) % len(self.widths)]
        self.turn += 1
        found = self.networks[str(width)](*inputs)
        idle = {id(p): p for p in self.parameters()}
        for used in self.networks[str(width)].parameters():
            idle.pop(id(used), None)
        # Processes that train together wait for a gradient of every parameter.
        return found + 0.0 * torch.stack([p.sum() for p in idle.values()]).sum()

    @torch.no_grad()
    def alone(self, width: int) -> nn.Module:
        """A width as a network of its own, with weights that are rounded to its codes, in ordinary grids.

        Raises:
            KeyError: it has no such width.
        """
        found = copy.deepcopy(self.networks[str(width)]).eval()
        for layer in quantized_layers(found).values():
            if isinstance(layer, Quantized) and isinstance(layer.weight_grid, NestedGrid):
                grid, weight = StepGrid(layer.weight_bits, True, layer.weight_grid.scale.shape), layer.layer.weight
                grid.scale.copy_(layer.weight_grid.scale)
                grid.declare_ready()
                weight.copy_(grid.values(layer.weight_grid.codes(weight)))
                layer.weight_grid = grid
        return found


def nest(networks: Mapping[int, nn.Module]) -> Nested:
    """Networks that differ in bits alone, from one float network, in one: the others take the widest one's weights.

    Args:
        networks: fake-quantized, by bits; they are changed. A layer may have as many bits in several of them.

    Raises:
        ValueError: fewer than two widths, other layers, or grids that are not signed steps for weights.
    """
    widths = sorted(networks, reverse=True)
    if len(widths) < 2:
        raise ValueError(f"the widths {widths} came; wanted two or more; add one")
    outer = quantized_layers(networks[widths[0]])
    for width in widths[1:]:
        own = quantized_layers(networks[width])
        if set(own) != set(outer):
            raise ValueError(f"{width} bits have other layers than {widths[0]}; wanted the same; change the recipe")
        for name, layer in own.items():
            wide = outer[name]
            if not isinstance(layer, Quantized) or not isinstance(wide, Quantized):
                continue
            plain = isinstance(wide.weight_grid, StepGrid) and isinstance(layer.weight_grid, StepGrid)
            if not plain or wide.balance is not None or not 1 < layer.weight_bits <= wide.weight_bits:
                raise ValueError(
                    f"layer {name} has {wide.bits.label} and {layer.bits.label}; wanted steps as grids, no factors of "
                    "channels, and 2 bits or more, no more than the widest; use the method direct or ends"
                )
            assert isinstance(wide.weight_grid, StepGrid)
            layer.layer.weight = wide.layer.weight
            same = layer.weight_bits == wide.weight_bits
            assert isinstance(layer.weight_grid, StepGrid)
            layer.weight_grid = wide.weight_grid if same else NestedGrid(wide.weight_grid, layer.weight_grid)
    return Nested(networks)
