"""SMFANet, a convolutional super-resolution network that approximates attention by pooled, modulated features.

[SMFANet] Zheng, Sun, Dong, Pan: "SMFANet: A Lightweight Self-Modulation Feature Aggregation Network for Efficient Image
Super-Resolution", ECCV 2024.

    image -> to_feat -> block x 8 (12 in SMFANet+), skip -> to_img

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIZES = {"s": dict(dim=36, units=8), "plus": dict(dim=48, units=12)}
"""SMFANet and SMFANet+: 185,628 and 480,300 parameters for scale 2."""

POOLING = 8
"""Pixels, in height and in width, that become one for the global branch."""


def smfanet(size: str, scale: int) -> "SMFANet":
    """Build one of the published sizes, `"s"` or `"plus"`.

    >>> sum(p.numel() for p in smfanet("plus", 2).parameters())
    480300

    Raises:
        ValueError: the size is not one of the two.
    """
    if size not in SIZES:
        raise ValueError(f"SMFANet has no size {size!r}; the published ones are {', '.join(SIZES)}: choose one.")
    return SMFANet(scale, **SIZES[size])


class SMFANet(nn.Module):
    """SMFANet of any width and depth.

    Args:
        scale: how many times higher and wider the output is.
        dim: channels.
        units: number of blocks.
        hidden: width of the feed-forward networks; 0: twice `dim`.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.
    """

    def __init__(self, scale: int, dim: int = 48, units: int = 12, hidden: int = 0):
        super().__init__()
        self.config = dict(scale=scale, dim=dim, units=units, hidden=hidden or 2 * dim)
        self.scale = scale
        self.to_feat = nn.Conv2d(3, dim, 3, padding=1)
        self.feats = nn.Sequential(*(Block(dim, hidden or 2 * dim) for _ in range(units)))
        self.to_img = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        x = self.to_feat(image)  # b c h w
        return self.to_img(self.feats(x) + x)

    @property
    def radius(self) -> None:
        """None: every output pixel depends on the whole picture, through the variances of its channels."""
        return None

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this pools the same pixels as the whole picture."""
        return POOLING


class Block(nn.Module):
    """Self-modulated aggregation, then a feed-forward network, each of features with unit length in every pixel."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.smfa = Aggregation(dim)
        self.pcfn = FeedForward(dim, hidden)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = self.smfa(F.normalize(x, dim=1)) + x
        return self.pcfn(F.normalize(x, dim=1)) + x


class Aggregation(nn.Module):
    """A global branch, features modulated by what they are on the whole, beside a local one [SMFANet sec. 3.2].

    global = x * gelu(linear(alpha * pooled(x) + belt * variance(x))),   local = lde(y)
    """

    def __init__(self, dim: int):
        super().__init__()
        self.linear_0 = nn.Conv2d(dim, 2 * dim, 1)
        self.linear_1 = nn.Conv2d(dim, dim, 1)
        self.linear_2 = nn.Conv2d(dim, dim, 1)
        self.lde = LocalDetail(dim)
        self.dw_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.alpha = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h, w = x.shape[-2:]
        local, whole = self.linear_0(x).chunk(2, dim=1)
        pooled = self.dw_conv(F.adaptive_max_pool2d(whole, (max(h // POOLING, 1), max(w // POOLING, 1))))
        variance = whole.var((2, 3), keepdim=True) if h * w > 1 else torch.zeros_like(whole)  # of one pixel: none
        factor = F.gelu(self.linear_1(pooled * self.alpha + variance * self.belt))
        return self.linear_2(whole * F.interpolate(factor, size=(h, w), mode="nearest") + self.lde(local))


class LocalDetail(nn.Module):
    """A feed-forward network that looks at 3x3 pixels of each channel first [SMFANet fig. 3]."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv_0 = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1, groups=dim), nn.Conv2d(2 * dim, 2 * dim, 1))
        self.conv_1 = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.conv_1(F.gelu(self.conv_0(x)))


class FeedForward(nn.Module):
    """A feed-forward network, a quarter of whose hidden channels pass a 3x3 convolution [SMFANet sec. 3.3]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.part = hidden // 4
        self.conv_0 = nn.Conv2d(dim, hidden, 1)
        self.conv_1 = nn.Conv2d(self.part, self.part, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = F.gelu(self.conv_0(x))
        return self.conv_2(torch.cat([F.gelu(self.conv_1(x[:, : self.part])), x[:, self.part :]], dim=1))


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read scale, width and depth off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        return dict(
            scale=isqrt(state["to_img.0.weight"].shape[0] // 3),
            dim=state["to_feat.weight"].shape[0],
            units=1 + max(int(key.split(".")[1]) for key in state if key.startswith("feats.")),
            hidden=state["feats.0.pcfn.conv_0.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not SMFANet's: to_feat.weight, to_img.0.weight and feats are wanted; give the whole "
            "state dict of an SMFANet checkpoint."
        ) from error
