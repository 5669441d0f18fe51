"""PAN, a small convolutional super-resolution network with attention for every pixel of every channel.

[PAN] Zhao, Kong, He, Qiao, Dong: "Efficient Image Super-Resolution Using Pixel Attention", ECCV workshops 2020.

    image -> conv_first -> block x 16, trunk_conv, skip -> enlarge and attend, once or twice -> conv_last, + bilinear

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PAN(nn.Module):
    """PAN of any width and depth; the published one has 261,403 parameters for scale 2.

    >>> sum(p.numel() for p in PAN(2).parameters())
    261403

    Args:
        scale: how many times higher and wider the output is: 2, 3 or 4.
        dim: channels of the trunk.
        features: channels after the first enlargement.
        units: number of blocks.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.

    Raises:
        ValueError: another scale.
    """

    def __init__(self, scale: int, dim: int = 40, features: int = 24, units: int = 16):
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale {scale}; wanted 2, 3 or 4, for which PAN is published: choose one.")
        self.config = dict(scale=scale, dim=dim, features=features, units=units)
        self.scale = scale
        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.SCPA_trunk = nn.Sequential(*(Block(dim) for _ in range(units)))
        self.trunk_conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.upconv1 = nn.Conv2d(dim, features, 3, padding=1)
        self.att1 = PixelAttention(features)
        self.HRconv1 = nn.Conv2d(features, features, 3, padding=1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(features, features, 3, padding=1)
            self.att2 = PixelAttention(features)
            self.HRconv2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        x = self.conv_first(image)  # b c h w
        x = x + self.trunk_conv(self.SCPA_trunk(x))
        x = F.interpolate(x, scale_factor=float(min(self.scale, 3) if self.scale < 4 else 2), mode="nearest")
        x = F.leaky_relu(self.HRconv1(F.leaky_relu(self.att1(self.upconv1(x)), 0.2)), 0.2)
        if self.scale == 4:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.leaky_relu(self.HRconv2(F.leaky_relu(self.att2(self.upconv2(x)), 0.2)), 0.2)
        enlarged = F.interpolate(image, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return self.conv_last(x) + enlarged

    @property
    def radius(self) -> int:
        """How far away, in pixels, an input pixel may lie that an output pixel depends on: a block sees two."""
        return 2 * self.config["units"] + 5

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: any does."""
        return 1


class Block(nn.Module):
    """Two branches of half the channels, one of them with pixel attention, merged and added [PAN fig. 2b]."""

    def __init__(self, dim: int):
        super().__init__()
        half = dim // 2
        self.conv1_a = nn.Conv2d(dim, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(dim, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False))
        self.PAConv = PixelAttentionConv(half)
        self.conv3 = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        plain = F.leaky_relu(self.k1(F.leaky_relu(self.conv1_a(x), 0.2)), 0.2)
        attended = F.leaky_relu(self.PAConv(F.leaky_relu(self.conv1_b(x), 0.2)), 0.2)
        return self.conv3(torch.cat([plain, attended], dim=1)) + x


class PixelAttentionConv(nn.Module):
    """Pixel attention between two convolutions: k4(k3(x) * sigmoid(k2(x)))."""

    def __init__(self, dim: int):
        super().__init__()
        self.k2 = nn.Conv2d(dim, dim, 1)
        self.k3 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.k4(self.k3(x) * self.k2(x).sigmoid())


class PixelAttention(nn.Module):
    """x * sigmoid(conv(x)) [PAN fig. 2a]."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.conv(x).sigmoid()


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read width, depth and scale off a state dict; scales 2 and 3 have the same shapes, and 2 is taken.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        return dict(
            scale=4 if "upconv2.weight" in state else 2,
            dim=state["conv_first.weight"].shape[0],
            features=state["upconv1.weight"].shape[0],
            units=1 + max(int(key.split(".")[1]) for key in state if key.startswith("SCPA_trunk.")),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not PAN's: conv_first.weight, upconv1.weight and SCPA_trunk are wanted; give the whole "
            "state dict of a PAN checkpoint."
        ) from error
