"""Parts that several networks share: attention products as modules, and what quantization methods add.

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


def as_read(layer: nn.Module, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """An input as a layer sees it: the same in a float network, rounded where the layer has been given a grid."""
    rounded = getattr(layer, "rounded", None)
    return x if rounded is None else rounded(x)


class HeadShift(nn.Module):
    """Adds one learned scalar per head [Q-SCI eq. 8]; the official code calls the parameter `bias` too."""

    def __init__(self, heads: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, heads, 1, 1))

    def forward(self, x: Float[Tensor, "b n t d p"]) -> Float[Tensor, "b n t d p"]:
        return x + self.bias.unsqueeze(-1)


class HeadNorm(nn.Module):
    """Normalizes the d channels of a token in a head [Q-ViT, information rectification].

    gamma (x - mean(x)) / sqrt(var(x) + 1e-5) + beta        gamma, beta: one per channel, shared by the heads
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "b n t d p"]) -> Float[Tensor, "b n t d p"]:
        return F.layer_norm(x.transpose(3, 4), self.weight.shape, self.weight, self.bias).transpose(3, 4)


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


@torch.no_grad()
def start_shortcuts(convolutions: list[nn.Module], shortcuts: nn.ModuleList) -> None:
    """Let new shortcuts take over the strongest weights of the convolutions beside them (lists as in `with_shortcuts`).

    A weight far above the others of its row makes a low-bit grid so coarse that it rounds the others to zero. Those
    at the taps that a shortcut sees move there: W x = (W - S) x + S x. The two sums pass through LeakyReLUs of their
    own, so the function is kept where both are positive. Where what is left of a row sharpens, it often is negative,
    and is sent through two other channels instead. Where there is no LeakyReLU, or all taps are the shortcut's, the
    move is exact and all of them go. All other weights of the shortcuts start small.

    Differs: the official code starts the convolutions and the shortcuts from PyTorch's default initialization.
    """
    generator = torch.Generator().manual_seed(0)
    for i, shortcut in enumerate(shortcuts):
        conv = convolutions[2 * i]
        weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        side, side_bias = shortcut.get_parameter("weight"), shortcut.get_parameter("bias")
        taps = shared_taps(weight, strided=side.shape[1] > weight.shape[1])
        alike, last = weight[0, 0].numel() == 1, 2 * i + 1 >= len(convolutions)
        typical = weight.abs().flatten(1).median(dim=1).values[:, None, None, None]
        strong = taps * (taps.abs() > (0.0 if alike or last else 10.0) * typical)
        rows = strong.flatten(1).any(1)
        small = torch.randn(strong.flatten(1).shape, generator=generator) * 0.01 / strong.flatten(1).shape[1] ** 0.5
        side.copy_((strong.flatten(1) + small * ~rows[:, None])[..., None, None, None])
        side_bias.zero_()
        taps -= strong
        if alike:  # nothing is left beside the shortcut
            side_bias.copy_(bias)
            weight.copy_(small.reshape(weight.shape))
            bias.zero_()
        elif 2 * i + 2 < len(convolutions):
            sharpening = weight.sum(dim=(1, 2, 3, 4)) < -0.1 * strong.abs().sum(dim=(1, 2, 3))
            for row in (rows & sharpening).nonzero().flatten().tolist():
                split_row(conv, shortcut, convolutions[2 * i + 2], row)


def shared_taps(weight: Float[Tensor, "o i t h w"], strided: bool) -> Float[Tensor, "o i h2 w2"]:
    """The weights at the taps that a shortcut sees too: the centre, or the 2x2 block of a stride. A view."""
    t, h, w = (size // 2 for size in weight.shape[2:])
    return weight[:, :, t, h : h + 2, w : w + 2] if strided else weight[:, :, t, h : h + 1, w : w + 1]


def split_row(conv: nn.Module, shortcut: nn.Module, following: nn.Module, row: int) -> None:
    """Send what is left of a row, r, through the two weakest other rows: 1.01 r = LeakyReLU(r) - LeakyReLU(-r)."""
    weight, bias, reader = conv.get_parameter("weight"), conv.get_parameter("bias"), following.get_parameter("weight")
    side = shortcut.get_parameter("weight")
    power = weight.square().sum(dim=(1, 2, 3, 4)) * reader.square().sum(dim=(0, 2, 3, 4))
    power[side.abs().amax(dim=(1, 2, 3, 4)) > 0.1] = torch.inf  # rows whose scene is in the shortcut stay
    for channel, sign in zip(power.topk(2, largest=False).indices.tolist(), (1.0, -1.0), strict=True):
        weight[channel], bias[channel] = sign * weight[row], sign * bias[row]
        side[channel] = 0.0
        reader[:, channel] = sign / 1.01 * reader[:, row]
    weight[row], bias[row] = 0.0, 0.0


def pixel_shuffle(x: Float[Tensor, "b c4 t h w"]) -> Float[Tensor, "b c t h2 w2"]:
    """PixelShuffle(2) of every frame."""
    return rearrange(x, "b (c i j) t h w -> b c t (h i) (w j)", i=2, j=2)


def pixel_unshuffle(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c4 t h2 w2"]:
    """PixelUnshuffle(2) of every frame."""
    return rearrange(x, "b c t (h i) (w j) -> b (c i j) t h w", i=2, j=2)
