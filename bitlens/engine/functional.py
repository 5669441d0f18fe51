"""GAP-TV as formulas, for graphs: `networks/classical.py` computes in place, which no graph can, and checks numbers."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.networks.classical import GapTV

__all__ = ["FUNCTIONAL", "FunctionalGapTV"]


class FunctionalGapTV(GapTV):
    """What a `GapTV` computes, equal to the last bits; masks are not checked."""

    def __init__(self, network: GapTV):
        super().__init__(network.iterations, network.tv_weight, network.dual_steps)

    def forward(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
    ) -> Float[Tensor, "b 1 t h w"]:
        energy = mask.square().sum(1)  # b h w
        energy = torch.where(energy == 0, 1.0, energy)
        video, residual_sum = mask * (measurement / energy).unsqueeze(1), None  # b t h w
        for _ in range(self.iterations):
            predicted = (mask * video).sum(1)
            residual = measurement - predicted
            residual_sum = residual if residual_sum is None else residual_sum + residual
            video = video + mask * ((residual_sum - predicted) / energy).unsqueeze(1)
            writer = getattr(video, "writer", None)
            video = (denoise_tv if writer is None else writer.denoise)(video, self.tv_weight, self.dual_steps)
        return video.unsqueeze(1)


def denoise_tv(frames: Float[Tensor, "*batch h w"], weight: float, steps: int) -> Float[Tensor, "*batch h w"]:
    """`networks.classical.denoise_tv`; the last row and column are repeated, so that their differences are 0."""
    tau, denoised = 0.25, frames
    dual_v = dual_h = torch.zeros(())
    row, column = torch.zeros_like(frames[..., :1, :]), torch.zeros_like(frames[..., :1])
    for _ in range(steps):
        grad_v = torch.cat([denoised[..., 1:, :], denoised[..., -1:, :]], dim=-2) - denoised
        grad_h = torch.cat([denoised[..., 1:], denoised[..., -1:]], dim=-1) - denoised
        length = 1 + tau / weight * (grad_v.square() + grad_h.square()).sqrt()
        dual_v, dual_h = (dual_v + tau * grad_v) / length, (dual_h + tau * grad_h) / length
        above, left = torch.cat([row, dual_v[..., :-1, :]], dim=-2), torch.cat([column, dual_h[..., :-1]], dim=-1)
        denoised = frames + dual_v + dual_h - above - left
    return denoised


FUNCTIONAL: dict[type[nn.Module], Callable[[Any], nn.Module]] = {GapTV: FunctionalGapTV}
"""What is traced in the place of those parts of a network whose own code cannot be."""
