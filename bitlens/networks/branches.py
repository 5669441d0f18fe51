"""Branches that a convolution has while it learns, and that are one kernel again when it has learned.

    y = x + point * x + kernel * x + bias,     kernel 3 x 3, point 1 x 1          (trained)
    y = (identity + point at its centre + kernel) * x + bias                      (kept)

[RepVGG, Ding et al., CVPR 2021; ECBSR, Zhang et al., ACM MM 2021]. The sum is taken of the kernels, before they meet
the image, so that branches cost next to nothing [SESR, Bhardwaj et al., MLSys 2022, sec. 3.3].
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Branched", "branch", "collapse"]


class Branched(nn.Conv2d):
    """A 3 x 3 convolution that learns as its change of the input, and by a 1 x 1 branch."""

    identity: Float[Tensor, "out in 3 3"]

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)
        self.point = nn.Parameter(torch.zeros(channels, channels, 1, 1))
        identity = torch.zeros_like(self.weight)
        identity[range(channels), range(channels), 1, 1] = 1
        self.register_buffer("identity", identity, persistent=False)

    def kernel(self) -> Float[Tensor, "out in 3 3"]:
        """The one kernel that its branches are."""
        return self.identity + F.pad(self.point, (1, 1, 1, 1)) + self.weight

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.conv2d(input, self.kernel(), self.bias, padding=1)


@torch.no_grad()
def branch(network: nn.Module, fresh: bool) -> None:
    """Give every 3 x 3 convolution of a network that keeps the number of channels its branches, in place.

    Args:
        fresh: its weights are random, and stay beside the identity; else it computes the same as before.
    """
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d) or isinstance(layer, Branched) or layer.bias is None:
            continue
        shape = (layer.in_channels, layer.in_channels, 3, 3)
        if layer.weight.shape == shape and layer.stride == (1, 1) and layer.padding == (1, 1):
            other = Branched(layer.in_channels).to(layer.weight.device)
            other.weight.copy_(layer.weight if fresh else layer.weight - other.identity)
            other.get_parameter("bias").copy_(layer.bias)
            put(network, name, other)


@torch.no_grad()
def collapse(network: nn.Module) -> None:
    """Make every branched convolution of a network a plain one that computes the same, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, Branched):
            other = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1).to(layer.weight)
            other.weight.copy_(layer.kernel())
            other.get_parameter("bias").copy_(layer.get_parameter("bias"))
            put(network, name, other)


def put(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Set the module of a dotted name."""
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, layer)
