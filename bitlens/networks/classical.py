"""GAP-TV: reconstruct a video without any weights; the baseline of every video-SCI table.

[GAP-TV] Yuan: "Generalized alternating projection based total variation minimization for compressive
sensing", ICIP 2016: project onto the videos that explain the measurement, denoise, repeat.
[TV] Chambolle: "An algorithm for total variation minimization and applications", JMIV 2004: the denoiser.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.networks.memory import Memory
from bitlens.operators import VideoSCI

__all__ = ["GapTV", "denoise_tv"]


class GapTV(nn.Module):
    """Accelerated generalized alternating projection with a total-variation denoiser on each frame.

        residual sum  s <- s + (y - A x)                   (s = 0 and x = A^+ y at the start)
        projection    x <- x + A^+ (s - A x)
        denoising     x <- argmin_u 1/2 ||u - x||^2 + tv_weight TV(u), stopped after `dual_steps` steps

    The defaults are the published settings. With them `psnr_sci` and `ssim_sci` give 26.94 dB and 0.833 on
    average over the six grey 256x256x8 scenes, as published (tests/networks/test_classical.py).

    Differs: the published code starts from A^T y. A^+ y changes no scene by more than 0.01 dB, and makes the
    result independent of the mask's unit. The published denoiser counts 5 iterations, of which the last does
    not reach its output; `dual_steps` counts the 4 that do (0 dB).

    Args:
        iterations: projections and denoisings.
        tv_weight: strength of the denoiser, for videos in [0, 1].
        dual_steps: steps of the denoiser each time. Few: at convergence this weight would blur all texture.

    Call:
        `network(measurement, mask)`: measurement (b, h, w), the plain sum over time of mask * frame, and mask
        (1 or b, t, h, w), real values too, give the video (b, 1, t, h, w) in [0, 1] (not clipped). Any t, h
        and w. No gradient flows through it.

    Raises:
        ValueError: an argument is not positive; at the call, what `VideoSCI` refuses.
    """

    def __init__(self, iterations: int = 40, tv_weight: float = 0.3, dual_steps: int = 4):
        super().__init__()
        if iterations < 1 or dual_steps < 1 or not tv_weight > 0:
            raise ValueError(
                f"iterations={iterations}, tv_weight={tv_weight}, dual_steps={dual_steps} came; "
                "wanted all of them > 0: leave them out for the published settings (40, 0.3, 4)"
            )
        self.iterations, self.tv_weight, self.dual_steps = iterations, tv_weight, dual_steps

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, tv_weight={self.tv_weight}, dual_steps={self.dual_steps}"

    @property
    def radius(self) -> int:
        """How far away, in pixels, a measured pixel may lie that an output pixel depends on: one for a dual step.

        The first projection returns zeros, whatever was measured, which no denoiser spreads.
        """
        return (self.iterations - 1) * self.dual_steps

    @property
    def alignment(self) -> int:
        """A cut that starts at a multiple of this is computed as it is within the whole picture: any does."""
        return 1

    @property
    def memory(self) -> Memory:
        """What it takes while it runs."""
        return Memory({"torch": (72.0, 0.0)})

    @torch.no_grad()
    def forward(
        self, measurement: Float[Tensor, "b h w"], mask: Float[Tensor, "#b t h w"]
    ) -> Float[Tensor, "b 1 t h w"]:
        camera = VideoSCI(mask.to(measurement))
        video = camera.A_dagger(measurement)  # b 1 t h w
        residual_sum = torch.zeros_like(measurement)  # b h w
        for _ in range(self.iterations):
            predicted = camera.A(video)  # b h w
            residual_sum += measurement - predicted
            video += camera.A_dagger(residual_sum - predicted)
            video = denoise_tv(video, self.tv_weight, self.dual_steps)
        return video


@torch.no_grad()
def denoise_tv(frames: Float[Tensor, "*batch h w"], weight: float, steps: int) -> Float[Tensor, "*batch h w"]:
    """Isotropic total-variation denoising of each frame, by a fixed number of Chambolle's dual steps.

        argmin_u 1/2 ||u - frame||^2 + weight sum_pixels |grad u|
        u = frame - grad^T p,   p <- (p + tau grad u) / (1 + tau/weight |grad u|),   |p| <= weight  [TV eq. 9]

    grad is the forward difference, 0 across the last row and column; tau = 1/4. p starts at 0.
    """
    tau = 0.25
    dual_v, dual_h = torch.zeros_like(frames), torch.zeros_like(frames)
    grad_v, grad_h = torch.zeros_like(frames), torch.zeros_like(frames)  # last row, last column stay 0
    length = torch.empty_like(frames)
    denoised = frames.clone()
    for _ in range(steps):
        torch.sub(denoised[..., 1:, :], denoised[..., :-1, :], out=grad_v[..., :-1, :])
        torch.sub(denoised[..., :, 1:], denoised[..., :, :-1], out=grad_h[..., :, :-1])
        torch.mul(grad_v, grad_v, out=length).addcmul_(grad_h, grad_h).sqrt_().mul_(tau / weight).add_(1)
        dual_v.add_(grad_v, alpha=tau).div_(length)
        dual_h.add_(grad_h, alpha=tau).div_(length)

        torch.add(frames, dual_v, out=denoised).add_(dual_h)  # frame - grad^T p, in three shifted sums
        denoised[..., 1:, :].sub_(dual_v[..., :-1, :])
        denoised[..., :, 1:].sub_(dual_h[..., :, :-1])
    return denoised
