"""How the range [low, high] of a grid is chosen: minmax, percentile, MSE search (DOBI), LSQ's start, PAMS's average.

All work on values reshaped to (groups, n), one row for each scale of the grid, and return low and high (groups,).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from bitlens.quant.grid import code_range, dequantize, quantize

Method = Literal["minmax", "percentile", "mse", "lsq"]
Rows = Float[Tensor, "groups n"]
Bound = Float[Tensor, "groups"]


def choose_range(values: Rows, method: Method, bits: int, symmetric: bool) -> tuple[Bound, Bound]:
    """Choose [low, high] of each row for a grid of `bits`.

    Args:
        values: (groups, n).
        method: see the functions of the same names.
        symmetric: the grid has no zero-point: signed codes, range around zero.
    """
    if method == "minmax":
        return minmax(values)
    if method == "percentile":
        return percentile(values)
    if method == "lsq":
        return lsq(values, bits, symmetric)
    return mse(values, bits, symmetric)


def minmax(values: Rows) -> tuple[Bound, Bound]:
    """Smallest and largest value."""
    return values.amin(1), values.amax(1)


def percentile(values: Rows, share: float = 0.999) -> tuple[Bound, Bound]:
    """The range that keeps the middle `share` of the values."""
    n = values.shape[1]
    drop = int((1 - share) / 2 * n)
    ordered = values.sort(dim=1).values
    return ordered[:, drop], ordered[:, n - 1 - drop]


def ema(batches: Sequence[Rows], decay: float = 0.9997) -> tuple[Bound, Bound]:
    """[-r, r] with r the moving average over batches of max|v| [PAMS].

        r = sum_i decay^(n - i) max|v_i| / sum_i decay^(n - i)

    Differs: PAMS averages over an epoch and starts from the first batch alone; over the few batches of a calibration
    that would be the first batch's maximum, so the weights are divided by their sum here. Not measured.
    """
    peaks = torch.stack([rows.abs().amax(1) for rows in batches])  # batches groups
    weights = decay ** torch.arange(len(peaks) - 1, -1, -1).to(peaks)
    reach = (weights[:, None] * peaks).sum(0) / weights.sum()
    return -reach, reach


def lsq(values: Rows, bits: int, symmetric: bool) -> tuple[Bound, Bound]:
    """The range of the step 2 mean|v| / sqrt(Qp) [LSQ sec. 2.1]."""
    qmin, qmax = code_range(bits, symmetric)
    step = 2 * values.abs().mean(1) / max(qmax, 1) ** 0.5
    if symmetric:
        return -step * max(qmax, 1), step * max(qmax, 1)
    low = values.amin(1).clamp(max=0.0)
    return low, low + step * (qmax - qmin)


def mse(values: Rows, bits: int, symmetric: bool, steps: int = 100) -> tuple[Bound, Bound]:
    """DOBI: of `steps` ever narrower ranges, the one with the smallest ||v - v'||^2 [2DQuant alg. 1].

    low_i = low + i dl, high_i = high - i dh; dl = dh = (max - min) / (2 steps), but dl = 0 where the values do
    not go below zero (one-sided data: softmax, and what follows a ReLU).

    Differs: the paper decides by eye which tensors are one-sided (and prints high + i dh, a misprint); here the
    sign of the smallest value decides. Two-sided data is searched a second time around the winner with low and
    high moving on their own, which the asymmetric outputs of LeakyReLU need.
    """
    low, high = minmax(values)
    if symmetric:
        reach = torch.maximum(low.abs(), high.abs()).clamp_min(1e-8)
        return search(values, bits, -reach, reach, reach / steps, reach / steps, steps, True)
    width = (high - low).clamp_min(1e-8)
    down = torch.where(low < 0, width / (2 * steps), torch.zeros_like(width))
    low, high = search(values, bits, low, high, down, width / (2 * steps), steps, False)
    low, high = search(values, bits, low, high, torch.zeros_like(width), (high - low) / (2 * steps), steps // 2, False)
    rise = torch.where(low < 0, -low / steps, torch.zeros_like(low))
    return search(values, bits, low, high, rise, torch.zeros_like(width), steps // 2, False)


def search(
    values: Rows, bits: int, low: Bound, high: Bound, down: Bound, up: Bound, steps: int, symmetric: bool
) -> tuple[Bound, Bound]:
    """The best of the ranges [low + i down, high - i up], i < steps, for each row."""
    qmin, qmax = code_range(bits, symmetric)
    best = torch.full_like(low, torch.inf)
    best_low, best_high = low.clone(), high.clone()
    for i in range(steps):
        a, b = low + i * down, high - i * up
        if symmetric:
            scale, zero_point = b / max(qmax, 1), torch.full_like(b, -0.5 if bits == 1 else 0.0)
            if bits == 1:
                scale = 2 * b
        else:
            scale = ((b - a) / (qmax - qmin)).clamp_min(1e-10)
            zero_point = qmin - a / scale
        codes = quantize(values, scale[:, None], zero_point[:, None], qmin, qmax)
        error = (dequantize(codes, scale[:, None], zero_point[:, None]) - values).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, a, best_low), torch.where(better, b, best_high)
    return best_low, best_high
