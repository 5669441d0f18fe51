"""EDSR, the plain residual network that super-resolution is measured against.

[EDSR] Lim, Son, Kim, Nah, Lee: "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017.

    image -> head -> (convolution, ReLU, convolution, skip) x units, convolution, skip -> tail

Parameter names are the official ones, so official checkpoints load through `bitlens.from_official`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.networks.swinir import upsampling, upscaling

SIZES = {"baseline": dict(dim=64, units=16), "large": dict(dim=256, units=32)}
"""The published sizes for scale 2: 1.37 and 40.73 million parameters."""

MEAN = (0.4488, 0.4371, 0.4040)
"""Of the training images DIV2K, in R, G, B."""

PEAK = 255.0
"""White, as the network sees it."""


def edsr(size: str, scale: int) -> "EDSR":
    """Build one of the published sizes, `"baseline"` or `"large"`, for scale 2, 3 or 4.

    >>> sum(p.numel() for p in edsr("baseline", 2).parameters())
    1369859

    Raises:
        ValueError: the size is not one of the two, or the scale is none of 2, 3, 4, 8.
    """
    if size not in SIZES:
        raise ValueError(f"EDSR has no size {size!r}; the published ones are {', '.join(SIZES)}: choose one.")
    return EDSR(scale, **SIZES[size])


class EDSR(nn.Module):
    """EDSR of any width and depth. The branches of networks of 256 channels and more are scaled by 0.1 [EDSR sec. 3.3].

    Args:
        scale: how many times higher and wider the output is: 2, 3, 4 or 8.
        dim: channels.
        units: number of residual blocks.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, scale h, scale w), not clipped.
    """

    mean: Float[Tensor, "3 1 1"]

    def __init__(self, scale: int, dim: int = 64, units: int = 16):
        super().__init__()
        self.config = dict(scale=scale, dim=dim, units=units)
        self.scale = scale
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.head = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1))
        blocks = (Block(dim, 0.1 if dim >= 256 else 1.0) for _ in range(units))
        self.body = nn.Sequential(*blocks, nn.Conv2d(dim, dim, 3, padding=1))
        self.tail = nn.Sequential(nn.Sequential(*upsampling(scale, dim)), nn.Conv2d(dim, 3, 3, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        x = self.head((image - self.mean) * PEAK)  # b c h w
        return self.tail(self.body(x) + x) / PEAK + self.mean

    @property
    def radius(self) -> int:
        """How far away, in pixels, an input pixel may lie that an output pixel depends on: one for each convolution."""
        return 2 * self.config["units"] + 5

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: any does."""
        return 1


class Block(nn.Module):
    """x + factor conv(relu(conv(x)))."""

    def __init__(self, dim: int, factor: float):
        super().__init__()
        self.factor = factor
        self.body = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.add(x, self.body(x), alpha=self.factor)


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read scale, width and depth off the shapes of a state dict.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        stages = [value.shape for key, value in state.items() if key.startswith("tail.0.") and key.endswith(".weight")]
        return dict(
            scale=upscaling([shape[0] // shape[1] for shape in stages]),
            dim=state["head.0.weight"].shape[0],
            units=max(int(key.split(".")[1]) for key in state if key.startswith("body.")),
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            "These weights are not EDSR's: head.0.weight, body and tail.0.0.weight are wanted; give the whole state "
            "dict of an EDSR checkpoint."
        ) from error
