"""Channels of an input made more alike before they share one grid; the weights take the factors back.

    y = W x = (W diag(1 / b)) (diag(b) x),      b_c = (g / r_c)^(1/2)

r_c is the root mean square of channel c on calibration data and g the geometric mean of all r. With the power 1 every
channel would fill the grid, and the weights would be as uneven as the inputs were: with 1/2 both share it.

[RepQ-ViT] Li et al.: "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers", ICCV
2023. [SmoothQuant] Xiao et al.: "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", ICML 2023.

Differs: both take extremes and not root mean squares (which one outlier does not move); both put the factors into the
normalization before the layer, where there is one. Here they are multiplied in front of the grid, so that layers that
read a residual sum have them too.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.quant.inputs import watch
from bitlens.quant.layers import Quantized, quantized_layers, times_inputs

POWER = 0.5
"""How much of the difference between channels the weights take over."""

MOST = 1e3
"""No factor is larger, or smaller than its inverse: a silent channel stays silent."""


class Power:
    """The mean square of each input channel of a layer, over all that passes."""

    def __init__(self, layer: Quantized):
        self.layer, self.sum, self.n = layer, torch.zeros(()), 0

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook that adds the inputs of one pass."""
        rows = inputs[0].detach().float().movedim(self.layer.input_axis, -1).flatten(0, -2)
        self.sum = self.sum + rows.square().sum(0, dtype=torch.float64)
        self.n += len(rows)


@torch.no_grad()
def equalize_channels(network: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Set the factors of all layers that have some, in place; without its grids the network stays the same function.

    Args:
        network: prepared, not balanced before, its grids switched off.
        batches: what it is called with.
    """
    powers = [
        Power(layer)
        for layer in quantized_layers(network).values()
        if isinstance(layer, Quantized) and layer.balance is not None
    ]
    watch(network, batches, [(each.layer, each.see) for each in powers])
    for each in powers:
        if each.n:  # a layer that no data reached is refused when ranges are chosen
            apply_balance(each.layer, factors_of(each.sum / each.n))


def factors_of(squares: Tensor) -> Tensor:
    """The factor of each channel, from its mean square; 1 where all are silent."""
    size = squares.sqrt()
    loud = size[size > 0]
    middle = loud.log().mean().exp() if len(loud) else size.new_ones(())
    return (middle / size).pow(POWER).clamp(1 / MOST, MOST).where(size > 0, 1.0).float()


@torch.no_grad()
def apply_balance(layer: Quantized, factors: Tensor) -> None:
    """Give a layer its factors, and divide the weights by them."""
    assert layer.balance is not None
    weight = layer.layer.get_parameter("weight")
    weight.copy_(times_inputs(layer.layer, weight, 1 / factors))
    layer.balance.copy_(factors.reshape(layer.balance.shape))
