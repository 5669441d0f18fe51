"""A shortcut of 8 bits beside a layer: what each channel hands on to itself, taken out of the layer's weights.

    W x = (W - D) x + D x,      D: for each channel, the weight of the middle tap from itself to itself

Networks that were trained with identities beside their convolutions (`networks/branches.py`) have most of their weight
there. Without it the steps of the rest are several times finer at as many bits, and what a channel hands on through
many layers is rounded to 8 bits in each, not to the layer's. It takes one multiplication for each output.

[Q-SCI] Cao et al., ECCV 2024: 8-bit 1x1x1 shortcuts around the layers of two modules.
[Bi-Real Net] Liu et al.: "Bi-Real Net: Enhancing the Performance of 1-bit CNNs", ECCV 2018: around each layer.

Differs: Q-SCI's shortcuts have weights of their own, from every channel to every channel; these are taken out of the
weights that there are, and the float network stays what it was.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.quant.layers import Quantized
from bitlens.recipe import Bits


class ChannelShortcut(nn.Module):
    """A quantized layer with a shortcut for each channel beside it; in float they are the layer alone.

    Args:
        layer: a convolution that `hands_on`; it stays inside, as `main.layer`, less what the shortcut takes over.
        bits: of the layer; the shortcut has 8.
    """

    def __init__(self, layer: nn.Module, bits: Bits):
        super().__init__()
        assert isinstance(layer, nn.Conv2d)
        channels = layer.out_channels
        even = "tensor" if bits.activation_granularity == "balanced" else bits.activation_granularity
        fine = replace(bits, weight=8, activation=8, shortcut=False, activation_granularity=even)
        own = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        own.to(layer.weight.device)
        with torch.no_grad():
            taken = through(layer.weight)
            own.weight.copy_(taken.view_as(own.weight))
            taken.zero_()
        self.main = Quantized(layer, replace(bits, shortcut=False))
        self.own = Quantized(own, fine)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.own(x)

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the shortcut's weights into the layer's again."""
        through(self.main.layer.get_parameter("weight")).add_(self.own.layer.get_parameter("weight").flatten())


def through(weight: Tensor) -> Tensor:
    """A look at the weights of the middle tap from each channel to itself."""
    middle: Any = tuple(n // 2 for n in weight.shape[2:])
    return weight[(..., *middle)].diagonal()


def hands_on(layer: nn.Module) -> bool:
    """Whether a layer's outputs are its inputs' channels, pixel by pixel, so that one may be handed on as the other."""
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.in_channels != layer.out_channels:
        return False
    middle = tuple(n // 2 * step for n, step in zip(layer.kernel_size, layer.dilation, strict=True))
    return all(n % 2 for n in layer.kernel_size) and layer.padding in (middle, "same") and set(layer.stride) == {1}
