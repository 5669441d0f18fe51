"""Parts that several networks share: attention products as modules, and Q-SCI's shifts and shortcuts.

[Q-SCI] Cao et al.: "A Simple Low-bit Quantization Framework for Video Snapshot Compressive Imaging", ECCV 2024.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class MatMul(nn.Module):
    """One matrix product per pixel, out[i, j] = sum_k left[i, k] * right[k, j], pixels in the last axis.

    A module, so that it can be quantized, lowered and counted like every layer. Products over a few frames come with
    many pixels, where the processor's vector lanes are; products over a window come with the windows in the batch
    and a single pixel, and go through the matrix kernel.
    """

    def forward(
        self, left: Float[Tensor, "b n i k p"], right: Float[Tensor, "b n k j p"]
    ) -> Float[Tensor, "b n i j p"]:
        if left.shape[4] == 1:
            return (left.squeeze(4) @ right.squeeze(4)).unsqueeze(4)
        if torch.is_grad_enabled():  # one expression: the compiler fuses it, and its gradients, into single loops
            return (left.unsqueeze(4) * right.unsqueeze(2)).sum(3)
        return pixel_product(left, right)


def pixel_product(left: Float[Tensor, "b n i k p"], right: Float[Tensor, "b n k j p"]) -> Float[Tensor, "b n i j p"]:
    """sum_k left[i, k] * right[k, j], accumulated term by term so that no (i, k, j) array is ever stored."""
    total = left[:, :, :, 0, None] * right[:, :, None, 0]
    for k in range(1, left.shape[3]):
        total = total + left[:, :, :, k, None] * right[:, :, None, k]
    return total


class HeadShift(nn.Module):
    """Adds one learned scalar per head [Q-SCI eq. 8]; the official code calls the parameter `bias` too."""

    def __init__(self, heads: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, heads, 1, 1))

    def forward(self, x: Float[Tensor, "b n t d p"]) -> Float[Tensor, "b n t d p"]:
        return x + self.bias.unsqueeze(-1)


def with_shortcuts(
    convolutions: list[nn.Module], shortcuts: nn.ModuleList, x: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b o t h2 w2"]:
    """Run convolutions, each with a 1x1x1 branch beside it, as Q-SCI's FEM and VRM do [Q-SCI sec. 3.2, 3.3].

    LeakyReLU(conv(x)) becomes LeakyReLU(conv(x)) + LeakyReLU(shortcut(x)); a last convolution without LeakyReLU has a
    shortcut without one. Where a convolution strides, the shortcut folds each 2x2 block of pixels into channels.

    Args:
        convolutions: convolution, LeakyReLU, convolution, ... ending in either.
        shortcuts: one convolution for each of theirs.
    """
    for i, shortcut in enumerate(shortcuts):
        main = convolutions[2 * i](x)
        side = shortcut(x if main.shape[-2:] == x.shape[-2:] else pixel_unshuffle(x))
        if 2 * i + 1 < len(convolutions):
            main, side = convolutions[2 * i + 1](main), F.leaky_relu(side)
        x = main + side
    return x


def start_shortcuts(shortcuts: list[nn.Module], last: nn.Module) -> None:
    """Set new shortcuts so that their network computes almost what it computed without them.

    They start small and random, but for the last one: it takes over the centre tap of `last`, the 3x3x3 convolution
    beside it, whose sum with it is linear, so that the strongest weights of the network are those of the shortcut.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for shortcut in shortcuts:
            weight = shortcut.get_parameter("weight")
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.1 / weight.shape[1] ** 0.5))
            shortcut.get_parameter("bias").zero_()
        taps = last.get_parameter("weight")
        shortcuts[-1].get_parameter("weight").copy_(taps[:, :, 1:2, 1:2, 1:2])
        taps[:, :, 1, 1, 1] = 0.0


def pixel_shuffle(x: Float[Tensor, "b c4 t h w"]) -> Float[Tensor, "b c t h2 w2"]:
    """PixelShuffle(2) of every frame."""
    return rearrange(x, "b (c i j) t h w -> b c t (h i) (w j)", i=2, j=2)


def pixel_unshuffle(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c4 t h2 w2"]:
    """PixelUnshuffle(2) of every frame."""
    return rearrange(x, "b c t (h i) (w j) -> b (c i j) t h w", i=2, j=2)
