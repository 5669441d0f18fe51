"""A low-rank branch beside a layer, which takes the strongest part of its weights over, at 8 bits.

    W x = (W - U V) x + U (V x),      V: (rank, k), U: (out, rank)

U V is the matrix of this rank for which E |(W - U V) x|^2 is smallest, x being the layer's (unfolded) inputs: what is
left for the low-bit grids is small, and so are the errors that they make. V is scaled so that the channels between have
a mean square of 1 and share one grid.

[SVDQuant] Li et al.: "SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models", ICLR 2025.

Differs: the paper's branch has 16 bits and reads the float input, this one is in integers of 8 bits; the paper takes
the singular vectors of the weights after smoothing, this one of the weights on the data.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.quant.inputs import Moments, watch
from bitlens.quant.layers import Quantized
from bitlens.recipe import Bits


class LowRankBranch(nn.Module):
    """A quantized layer with a branch of `rank` channels beside it; together they start as the layer alone.

    Args:
        layer: the float layer, one that `has_room`; it stays inside, as `main.layer`.
        bits: of the layer; `rank` is the number of channels.
    """

    def __init__(self, layer: nn.Module, bits: Bits):
        super().__init__()
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        if isinstance(layer, nn.Linear):
            down: nn.Module = nn.Linear(layer.in_features, bits.rank, bias=False)
            up: nn.Module = nn.Linear(bits.rank, layer.out_features, bias=False)
        else:
            options: dict[str, Any] = dict(stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
            down = nn.Conv2d(layer.in_channels, bits.rank, layer.kernel_size, bias=False, **options)  # type: ignore[arg-type]
            up = nn.Conv2d(bits.rank, layer.out_channels, 1, bias=False)
        fine = replace(bits, weight=8, activation=8, rank=0)
        even = "tensor" if fine.activation_granularity == "balanced" else fine.activation_granularity
        self.main = Quantized(layer, replace(bits, rank=0))
        self.down = Quantized(down, fine)
        self.up = Quantized(up, replace(fine, activation_granularity=even))
        nn.init.zeros_(up.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.up(self.down(x))

    @property
    def weight(self) -> Float[Tensor, "out k"]:
        """W: what the layer would compute with alone."""
        main, down, up = (part.layer.get_parameter("weight").flatten(1) for part in (self.main, self.down, self.up))
        return main + up @ down

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the branch's weights into the layer's again."""
        weight = self.main.layer.get_parameter("weight")
        weight.copy_(self.weight.view_as(weight))

    @torch.no_grad()
    def split(self, second_moments: Float[Tensor, "k k"]) -> None:
        """Divide the weights anew between the layer and the branch, for inputs x with this E x x^T."""
        weight = self.weight.double()
        up, down = strongest(weight, second_moments, self.down.layer.get_parameter("weight").shape[0])
        for part, values in ((self.main, weight - up @ down), (self.down, down), (self.up, up)):
            parameter = part.layer.get_parameter("weight")
            parameter.copy_(values.view_as(parameter))


def has_room(layer: nn.Module, rank: int) -> bool:
    """Whether a branch beside a layer would take at most half of the layer's own multiplications."""
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    else:
        plain = isinstance(layer, nn.Linear)
    if not plain:
        return False
    out, k = layer.get_parameter("weight").flatten(1).shape
    return 2 * rank * (out + k) <= out * k


def strongest(
    weight: Float[Tensor, "out k"], second_moments: Float[Tensor, "k k"], rank: int
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank k"]]:
    """U and V with the smallest E |(W - U V) x|^2 of this rank, and E (V x)(V x)^T = 1."""
    values, vectors = torch.linalg.eigh(second_moments.to(weight.dtype))
    size = values.clamp_min(1e-6 * float(values[-1].clamp_min(1e-30))).sqrt()  # no direction is taken for silent
    left, strength, right = torch.linalg.svd(weight @ vectors * size, full_matrices=False)
    return left[:, :rank] * strength[:rank], right[:rank] / size @ vectors.T


@torch.no_grad()
def split_low_rank(network: nn.Module, batches: Iterable[tuple[Any, ...]]) -> None:
    """Divide the weights of all layers that have a branch beside them, in place.

    Args:
        network: prepared, its grids switched off: what it computes does not change.
        batches: what it is called with.
    """
    paths = [module for module in network.modules() if isinstance(module, LowRankBranch)]
    moments = [Moments(path.main.layer) for path in paths]
    watch(network, batches, [(path, each.see) for path, each in zip(paths, moments, strict=True)])
    for path, each in zip(paths, moments, strict=True):
        if each.n:  # a layer that no data reached is refused when ranges are chosen
            path.split(each.second)
