"""FFDNet, a plain network that restores images at their size: noise, or whatever else it has learned to take away.

[FFDNet] Zhang, Zuo, Zhang: "FFDNet: Toward a Fast and Flexible Solution for CNN-based Image Denoising", IEEE TIP 2018.

    image -> squares of 2 x 2 pixels as channels (and the noise level) -> 3x3 convolution, ReLU, `depth` - 1 times
          -> 3x3 convolution -> pixel shuffle

Convolutions at half the height and width see twice as far and cost a quarter. Parameter names are the official ones, so
official checkpoints load through `bitlens.from_official`.

Differs: without a `noise` the network is told nothing and learns the change of the image instead of the image: a blind
restorer, as DnCNN is [Zhang et al., IEEE TIP 2017]. It starts as the identity.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class FFDNet(nn.Module):
    """FFDNet of any width and depth, for grey or RGB, told a noise level or blind.

    >>> sum(p.numel() for p in FFDNet(1, 64, 15, 25).parameters())
    485316

    Args:
        channels: 3, or 1: then each colour is restored by itself.
        dim: channels between.
        depth: convolutions.
        noise: standard deviation of the noise that it is told to remove, in levels of 255; 0: blind.

    Call:
        `network(image)`: image (b, 3, h, w), RGB in [0, 1], any h and w, gives (b, 3, h, w), not clipped.

    Raises:
        ValueError: an argument is out of range.
    """

    scale = 1
    """Images keep their size."""
    branches = True
    """Whether training gives its convolutions branches."""

    def __init__(self, channels: int = 3, dim: int = 96, depth: int = 10, noise: int = 0):
        super().__init__()
        if channels not in (1, 3) or dim < 1 or depth < 2 or not 0 <= noise <= 255:
            raise ValueError(
                f"channels={channels}, dim={dim}, depth={depth}, noise={noise} came; wanted 1 or 3 channels, a width "
                "from 1, a depth from 2 and a noise of 0 to 255; correct them"
            )
        self.config = dict(channels=channels, dim=dim, depth=depth, noise=noise)
        widths = [4 * channels + (noise > 0), *(depth - 1) * (dim,), 4 * channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        if not noise:
            last = layers[-2]
            nn.init.zeros_(last.get_parameter("weight"))
            nn.init.zeros_(last.get_parameter("bias"))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        height, width = image.shape[2:]
        channels, noise = self.config["channels"], self.config["noise"]
        planes = image if channels == 3 else image.reshape(-1, 1, height, width)
        if height % 2 or width % 2:
            planes = F.pad(planes, (0, width % 2, 0, height % 2), "replicate")
        folded = F.pixel_unshuffle(planes, 2)
        if noise:
            level = 0 * folded[:, :1] + noise / 255  # a plane, written in what every engine knows
            folded = torch.cat([level, folded], 1)
        found = planes - F.pixel_shuffle(self.model(folded), 2)
        return found[..., :height, :width].reshape(image.shape)

    @property
    def radius(self) -> int:
        """Pixels of the image around its own place that an output pixel depends on."""
        return 2 * self.config["depth"] + 1

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole image."""
        return 2


def untrained(size: str, frames: int) -> FFDNet:
    """A blind restorer to train from nothing."""
    return FFDNet()


NORMALIZED = 1e-5
"""Added to the variance in batch normalization, torch's default."""


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official weights under the names here, with batch normalizations folded into the convolutions before them.

    The network for PyTorch has layers without biases, each but the first and the last with a normalization behind it
    [Tassano, Delon, Veit: "An Analysis and Implementation of the FFDNet Image Denoising Method", IPOL 2019].

    Raises:
        ValueError: a normalization is not whole.
    """
    if "model.0.bias" in state:
        return state
    found: dict[str, Tensor] = {}
    kernels = [key for key in state if key.endswith(".weight") and state[key].ndim == 4]
    try:
        for number, key in enumerate(kernels):
            norm = f"model.{int(key.split('.')[1]) + 1}"
            kernel, bias = folded(state, key, norm)
            found[f"model.{2 * number}.weight"], found[f"model.{2 * number}.bias"] = kernel.float(), bias.float()
    except (LookupError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"these weights are not whole FFDNet's ({error}); wanted each convolution's with its normalization's; give "
            "the whole state dict"
        ) from error
    return found


def folded(state: dict[str, Tensor], key: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias with the batch normalization behind it, if there is one, folded in."""
    kernel = state[key].double()
    if f"{norm}.running_var" not in state:
        return kernel, kernel.new_zeros(len(kernel))
    leaves = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, shift = (state[f"{norm}.{leaf}"].double() for leaf in leaves)
    factor = weight / (variance + NORMALIZED).sqrt()
    return kernel * factor[:, None, None, None], shift - mean * factor


def config_from_state_dict(state: dict[str, Tensor]) -> dict[str, int]:
    """Read channels, width and depth off the shapes of a state dict; it is told a noise of 25.

    Raises:
        ValueError: the keys that decide the architecture are missing.
    """
    try:
        first = state["model.0.weight"].shape
        weights = [key for key in state if key.startswith("model.") and key.endswith(".weight")]
        return dict(channels=first[1] // 4, dim=first[0], depth=len(weights), noise=25 if first[1] % 4 else 0)
    except (KeyError, IndexError) as error:
        raise ValueError(
            "These weights are not FFDNet's: model.0.weight and those that follow are wanted; give the whole state "
            "dict of an FFDNet checkpoint."
        ) from error
