"""IMDN, a convolutional super-resolution network that sets features aside as it goes deeper.

[IMDN] Hui, Gao, Yang, Wang: "Lightweight Image Super-Resolution with Information Multi-distillation Network", ACM
Multimedia 2019.

    image -> fea_conv -> block x 6, their outputs merged -> LR_conv, skip -> upsampler

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class IMDN(nn.Module):
    """IMDN of any width and depth; the published one has 694,404 parameters for scale 2.

    >>> sum(p.numel() for p in IMDN(2).parameters())
    694404

    Args:
        scale: how many times higher and wider the output is.
        dim: channels, a multiple of 16.
        units: number of blocks.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.
    """

    def __init__(self, scale: int, dim: int = 64, units: int = 6):
        super().__init__()
        self.config = dict(scale=scale, dim=dim, units=units)
        self.scale, self.units = scale, units
        self.fea_conv = nn.Conv2d(3, dim, 3, padding=1)
        for i in range(units):
            self.add_module(f"IMDB{i + 1}", Block(dim))
        self.c = nn.Sequential(nn.Conv2d(units * dim, dim, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        x = shallow = self.fea_conv(image)  # b c h w
        outputs = []
        for i in range(self.units):
            x = self.get_submodule(f"IMDB{i + 1}")(x)
            outputs.append(x)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, dim=1))) + shallow)

    @property
    def radius(self) -> None:
        """None: every output pixel depends on the whole picture, through the means of its channels."""
        return None

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: any does."""
        return 1


class Block(nn.Module):
    """Four convolutions, each of which sets a quarter of the channels aside, then channel attention [IMDN eq. 3-5]."""

    def __init__(self, dim: int):
        super().__init__()
        self.kept = dim // 4
        rest = dim - self.kept
        self.c1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.c2 = nn.Conv2d(rest, dim, 3, padding=1)
        self.c3 = nn.Conv2d(rest, dim, 3, padding=1)
        self.c4 = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.c5 = nn.Conv2d(dim, dim, 1)
        self.cca = ContrastAttention(dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        kept, rest = [], x
        for conv in (self.c1, self.c2, self.c3):
            y = F.leaky_relu(conv(rest), 0.05)
            kept.append(y[:, : self.kept])
            rest = y[:, self.kept :]
        return self.c5(self.cca(torch.cat([*kept, self.c4(rest)], dim=1))) + x


class ContrastAttention(nn.Module):
    """Weighs each channel by its mean plus its standard deviation over the image [IMDN eq. 6]."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(dim, dim // 16, 1), nn.ReLU(), nn.Conv2d(dim // 16, dim, 1), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean = x.mean((2, 3), keepdim=True)
        variance = (x - mean).square().mean((2, 3), keepdim=True)  # of 0, the root has no gradient
        return x * self.conv_du(mean + variance.clamp_min(1e-20).sqrt())


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read scale, width and depth off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        return dict(
            scale=isqrt(state["upsampler.0.weight"].shape[0] // 3),
            dim=state["fea_conv.weight"].shape[0],
            units=sum(key.startswith("IMDB") and key.endswith(".c1.weight") for key in state),
        )
    except KeyError as error:
        raise ValueError(
            "These weights are not IMDN's: fea_conv.weight and upsampler.0.weight are wanted; give the whole state "
            "dict of an IMDN checkpoint."
        ) from error
