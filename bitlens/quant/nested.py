"""One set of weights in several widths: the codes of few bits are those of the widest, rounded once more.

    c_b = clamp(round(c_B / 2^(B - b)), -2^(b-1), 2^(b-1) - 1)          value = s_b c_b

One file then serves every width, and a stream can change between them [Double Rounding: Huang et al., "Nearly Lossless
Adaptive Bit Switching", 2025]. Scales, ranges of activations and biases are each width's own: they are small.
Differs: the paper ties s_b to 2^(B - b) s_B; here it is learned, and starts there.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.quant.grid import StepGrid, code_range, lsq_factor, scale_gradient
from bitlens.quant.layers import Quantized, quantized_layers

__all__ = ["Nested", "NestedGrid", "nest", "rounded_again"]


def rounded_again(codes: Tensor, wide: int, narrow: int) -> Tensor:
    """Signed codes of `wide` bits in `narrow` bits.

    >>> rounded_again(torch.tensor([-128.0, -8.0, 7.0, 8.0, 24.0, 127.0]), 8, 4)
    tensor([-8., -0.,  0.,  0.,  2.,  7.])
    """
    return (codes / 2 ** (wide - narrow)).round().clamp(*code_range(narrow, True))


class NestedGrid(StepGrid):
    """A weight grid whose codes are those of a wider one, rounded once more; it learns its step alone (LSQ).

    Args:
        outer: the wider grid; it stays where it is, and is no part of this module.
        bits: fewer than its.
    """

    def __init__(self, outer: StepGrid, bits: int):
        super().__init__(bits, True, tuple(outer.scale.shape))
        self.wider = (outer,)  # in a tuple: not registered, or its step would be here too
        self.set_step()

    @torch.no_grad()
    def set_step(self) -> None:
        """Begin where the codes are the wider ones', divided."""
        (outer,) = self.wider
        self.scale.copy_(outer.scale * 2 ** (outer.bits - self.bits))
        self.ready = outer.ready

    def forward(self, values: Tensor) -> Tensor:
        (outer,) = self.wider
        with torch.autocast(values.device.type, enabled=False):
            scale = scale_gradient(self.scale, lsq_factor(values.numel() // self.scales, self.qmax))
            position = values.float() / (outer.scale.detach() * 2 ** (outer.bits - self.bits))
            inside = position.clamp(self.qmin, self.qmax)
            codes = inside + (self.codes(values) - inside).detach()
            return (codes * scale).to(values.dtype)

    def codes(self, values: Tensor) -> Tensor:
        (outer,) = self.wider
        return rounded_again(outer.codes(values).float(), outer.bits, self.bits).to(torch.int16)


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
            layer.weight_grid = wide.weight_grid if same else NestedGrid(wide.weight_grid, layer.weight_bits)
    return Nested(networks)
