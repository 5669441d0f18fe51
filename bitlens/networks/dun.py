"""DUN: a deep unfolding network for any camera; physics and small learned priors take turns.

    x_0 = a dozen iterations of GAP-TV, which knows nothing but the mask
    z_k = x_{k-1} + eta_k A^+ (y - A x_{k-1})          what was measured is put right, in closed form
    x_k = z_k + P_k(z_k, mask, y / sum(mask), A^+ (y - A x_{k-1}); h_{k-1})        what is likely is put in

A P_k is a U-net of three scales on the frames at half their size: 3 x 3 convolutions within each frame, 3 x 1
convolutions over time, and h_k, its last features, which the next stage reads. Everything in it is a convolution of
two-dimensional pictures. Any mask, any number of frames, any size.

Relatives: GAP-net [Meng et al., arXiv 2012.08364] (stages of U-nets), SPA-DUN [Zhang et al., ACM MM 2023] (mask and
normalized measurement as inputs, one network for all masks and ratios), ELP-Unfolding [Yang et al., ECCV 2022]
(features that go from stage to stage).
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.networks.classical import GapTV
from bitlens.networks.memory import Memory
from bitlens.networks.parts import as_read
from bitlens.operators import normalized_measurement

__all__ = ["DUN", "begin", "deepened"]

INPUTS = 4
"""Pictures that a prior sees of each frame: estimate, mask, normalized measurement, what the projection corrected."""
MULTIPLE = 8
"""Heights and widths are padded to multiples of this: a square of pixels, halved twice."""


WEAK = 0.005
"""A pixel whose mask energy is at most this share of the picture's largest counts as closed: A^+ would turn its noise
into much more light than there is."""


def untrained(size: str, frames: int) -> "DUN":
    """Where training begins; there is one size, for any number of frames."""
    return DUN()


class DUN(nn.Module):
    """Deep unfolding: GAP-TV's start, then `stages` times a projection onto the measurement and a learned prior.

    Args:
        stages: projections and priors, each with weights of its own.
        widths: channels of the three scales of a prior, at 1/2, 1/4 and 1/8 of the frame's size.
        blocks: residual blocks at each scale, on the way down and, but for the last, on the way up again.
        iterations: of GAP-TV, for the start.
        mask_gain: factor of the mask where priors read it; another one with `with_mask_gain` changes no result.

    Call:
        `network(measurement, mask)`: measurement (b, h, w), the plain sum over time of mask * frame, and mask
        (1 or b, t, h, w), real values in [0, 1], give the video (b, 1, t, h, w) in [0, 1] (not clipped). Any t, h and
        w. With `every_stage` it is the list of the videos after each stage, x_1 to x_K, which training looks at.

    Raises:
        ValueError: an argument is not positive, or there are not three widths and numbers of blocks.
    """

    def __init__(
        self,
        stages: int = 4,
        widths: Sequence[int] = (32, 48, 64),
        blocks: Sequence[int] = (1, 1, 2),
        iterations: int = 12,
        mask_gain: float | int = 1.0,
    ):
        super().__init__()
        if len(widths) != 3 or len(blocks) != 3 or min(stages, iterations, *widths, *blocks) < 1:
            raise ValueError(
                f"stages={stages}, widths={list(widths)}, blocks={list(blocks)}, iterations={iterations} came; wanted "
                "numbers from 1, three widths and three numbers of blocks; leave them out for the published ones"
            )
        if not 0 < mask_gain <= 1:
            raise ValueError(f"mask_gain={mask_gain} came; wanted more than 0 and at most 1; leave it out")
        self.config: dict[str, Any] = {
            "stages": stages, "widths": list(widths), "blocks": list(blocks), "iterations": iterations,
            **({} if mask_gain == 1 else {"mask_gain": mask_gain}),
        }  # fmt: skip
        self.start = GapTV(iterations)
        self.priors = nn.ModuleList(Prior(widths, blocks, follows=stage > 0) for stage in range(stages))
        self.steps = nn.Parameter(torch.ones(stages))  # eta

    @property
    def radius(self) -> int:
        """How far away, in pixels, a measured pixel may lie that an output pixel depends on.

        The start's, and for each stage that of its convolutions: a 3 x 3 convolution reaches 2, 4 and 8 pixels far at
        the three scales. Cuts keep to `alignment`, so that cells of 2, 4 and 8 pixels are those of the whole picture;
        in each of them a pixel sees all others.
        """
        fine, middle, coarse = self.config["blocks"]
        stage = 4 + 8 * fine + 16 * middle + 16 * coarse + (1 + 3 + 7)
        return self.start.radius + self.config["stages"] * stage

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture."""
        return MULTIPLE

    @property
    def memory(self) -> Memory:
        """What it takes while it runs: features at half of height and width, no attention; the kernels plan 2.7 c."""
        c = self.config["widths"][0]
        return Memory({"torch": (12.0 * c, 0.0), "native": (4.0 * c, 0.0)})

    @torch.no_grad()
    def with_mask_gain(self, gain: float | int) -> "DUN":
        """A copy that computes the same from a mask which its priors see `gain` times as bright.

        Raises:
            ValueError: the gain is not in (0, 1], or the network has grids.
        """
        other = DUN(**{**self.config, "mask_gain": gain})
        state = copy.deepcopy(self.state_dict())
        if set(state) != set(other.state_dict()):
            raise ValueError("a network with grids came; wanted a float one; change its gain before quantizing")
        for number in range(len(self.priors)):
            state[f"priors.{number}.head.weight"][:, 4:8] *= self.config.get("mask_gain", 1.0) / gain
        other.load_state_dict(state)
        return other.train(self.training)

    def forward(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"], every_stage: bool = False
    ) -> Float[Tensor, "b 1 t h w"] | list[Float[Tensor, "b 1 t h w"]]:
        height, width = measurement.shape[1:]
        found = self.unfold(*begin(self.start, measurement, mask))
        videos = [video[..., :height, :width].unsqueeze(1) for video in found]
        return videos if every_stage else videos[-1]

    def unfold(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "b t h w"], video: Float[Tensor, "b t h w"]
    ) -> list[Float[Tensor, "b t h w"]]:
        """The video after each stage, from what `begin` gives.

        Where the first layer of a prior rounds what it reads, the prior's change is added to the video as it was read
        (`as_read`): a prior takes the error of rounding for noise, and would take away what was never added.
        Priors see squares of 2 x 2 pixels as channels. So does the physics, which knows pixels one by one: what it
        gives needs no rearrangement on its way into a prior, nor what comes out.
        """
        energy = mask.square().sum(1)  # b h w
        energy = squares(torch.where(energy == 0, 1.0, energy))  # b 4 h2 w2
        mean = squares(normalized_measurement(measurement, mask).unsqueeze(1).expand_as(mask))  # b t 4 h2 w2
        measurement, mask, video = squares(measurement), squares(mask), squares(video)
        gain = self.config.get("mask_gain", 1.0)
        seen = mask if gain == 1 else gain * mask
        features, found = None, []
        for step, prior in zip(self.steps, self.priors, strict=True):
            residual = (measurement - (mask * video).sum(1)) / energy  # b 4 h2 w2
            correction = mask * residual.unsqueeze(1)  # b t 4 h2 w2
            video = as_read(prior.head, video + step * correction)  # type: ignore[union-attr]
            change, features = prior(torch.cat([video, seen, mean, correction], dim=2), features)
            video = video + change
            found.append(F.pixel_shuffle(video, 2).squeeze(2))
        return found


def begin(
    start: GapTV, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
) -> tuple[Float[Tensor, "b h2 w2"], Float[Tensor, "b t h2 w2"], Float[Tensor, "b t h2 w2"]]:
    """Measurement, mask and x_0 as the stages take them.

    Height and width are padded to multiples of 8 by repeated pixels, which are measured as the pixels are. Pixels that
    hardly any light reaches (`WEAK`) are closed.
    """
    below, beside = -measurement.shape[1] % MULTIPLE, -measurement.shape[2] % MULTIPLE
    if below or beside:
        pad = (0, beside, 0, below)
        measurement, mask = F.pad(measurement, pad, "replicate"), F.pad(mask, pad, "replicate")
    mask = mask.to(measurement)
    energy = mask.square().sum(1)  # 1 or b, h w
    seen = energy > WEAK * energy.amax(dim=(1, 2), keepdim=True)
    measurement, mask = measurement * seen, mask * seen.unsqueeze(1)
    video = start(measurement, mask).squeeze(1)
    return measurement, mask.expand_as(video), video


class Prior(nn.Module):
    """P_k: a U-net on every frame, with convolutions over time in its blocks.

    Args:
        widths, blocks: as for `DUN`.
        follows: whether there is a stage before, whose features are read.
    """

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], follows: bool):
        super().__init__()
        fine, middle, coarse = widths
        self.head = nn.Conv2d(4 * INPUTS, fine, 3, padding=1)
        self.fuse = nn.Conv2d(fine, fine, 1, bias=False) if follows else None
        self.down = nn.ModuleList([nn.Conv2d(fine, middle, 2, 2), nn.Conv2d(middle, coarse, 2, 2)])
        self.up = nn.ModuleList([nn.Conv2d(middle, 4 * fine, 1), nn.Conv2d(coarse, 4 * middle, 1)])
        self.encoder = nn.ModuleList(run(Block, width, count) for width, count in zip(widths, blocks, strict=True))
        self.decoder = nn.ModuleList(run(Block, width, count) for width, count in zip(widths[:2], blocks, strict=False))
        self.tail = nn.Conv2d(fine, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    def forward(
        self, known: Float[Tensor, "b t n h2 w2"], features: Float[Tensor, "bt c h2 w2"] | None
    ) -> tuple[Float[Tensor, "b t 4 h2 w2"], Float[Tensor, "bt c h2 w2"]]:
        frames = known.shape[1]
        x = self.head(known.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        if self.fuse is not None and features is not None:
            x = x + self.fuse(features)
        skips = []
        for scale, blocks in enumerate(self.encoder):
            for block in blocks:  # type: ignore[union-attr]
                x = block(x, frames)
            if scale < 2:
                skips.append(x)
                x = self.down[scale](x)
        for scale in (1, 0):
            x = F.pixel_shuffle(self.up[scale](x), 2) + skips[scale]
            for block in self.decoder[scale]:  # type: ignore[union-attr]
                x = block(x, frames)
        return self.tail(x).unflatten(0, (-1, frames)), x


class Block(nn.Module):
    """A residual block: a convolution within frames, one over time, one within frames."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.LeakyReLU(0.1)

    def forward(self, x: Float[Tensor, "bt c h w"], frames: int) -> Float[Tensor, "bt c h w"]:
        height, width = x.shape[2:]
        y = self.act(self.first(x))
        y = y.view(-1, frames, y.shape[1], height * width).transpose(1, 2)  # b c t hw
        y = self.act(self.time(y)).transpose(1, 2)
        return x + self.last(y.reshape(-1, y.shape[2], height, width))


@torch.no_grad()
def deepened(network: DUN, stages: int) -> DUN:
    """A float network with `stages` stages more that computes the same, with room to learn.

    Each of them is a copy of the last, whose projection and last layer start at 0.

    Raises:
        ValueError: fewer than 1 stage more, or the network has grids (deepen it before they are made).
    """
    deep = DUN(**{**network.config, "stages": network.config["stages"] + max(stages, 0)})
    state = network.state_dict()
    unknown = set(state) - set(deep.state_dict())
    if stages < 1 or unknown:
        what = "a network with grids" if unknown else f"{stages} stages more"
        raise ValueError(f"{what} came; wanted a float network and 1 stage or more; deepen it before quantizing")
    last = network.config["stages"] - 1
    for number in range(last + 1, last + 1 + stages):
        for name, value in network.priors[last].state_dict().items():
            state[f"priors.{number}.{name}"] = torch.zeros_like(value) if name.startswith("tail.") else value
    state["steps"] = torch.cat([state["steps"], torch.zeros(stages)])
    deep.load_state_dict(state, strict=False)  # a first stage has no layer that reads features: later ones keep theirs
    return deep.train(network.training)


def squares(x: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b 4 h2 w2"]:
    """The pixels of each square of 2 x 2 as four channels."""
    return F.pixel_unshuffle(x.unsqueeze(-3), 2)


def run(kind: type[nn.Module], width: int, count: int) -> nn.ModuleList:
    """`count` modules of one width."""
    return nn.ModuleList(kind(width) for _ in range(count))
