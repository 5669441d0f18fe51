"""How the range [low, high] of a grid is chosen: minmax, percentile, MSE search (DOBI), LSQ's start, PAMS's average.

All but `dobi` work on values reshaped to (groups, n), one row for each scale of the grid, and return low and high
(groups,). The searches compare candidates on a `Summary` of the values: cumulative counts and sums, from which the
squared error of a grid follows in as many steps as it has levels, however many values there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from bitlens.quant.grid import code_range

Method = Literal["minmax", "percentile", "mse", "dobi", "dbdc", "lsq"]
Rows = Float[Tensor, "groups n"]
Bound = Float[Tensor, "groups"]
Candidates = Float[Tensor, "groups steps"]

CANDIDATES = 100
"""K of 2DQuant's algorithm 1."""

EXACT = 1 << 14
"""Rows of up to this many values are sorted; longer ones are put into bins."""

BINS = 1 << 16
"""Values that those of a long row are rounded to."""

PIECE = 1 << 18
"""Values of a long row that are counted at once."""

AT_ONCE = 1 << 21
"""Levels times candidates times rows that are compared at once, which bounds the memory."""


@dataclass(frozen=True)
class Summary:
    """Rows of values in ascending order, or of how many there are of each, with what comes before each."""

    centres: Float[Tensor, "groups m"]
    """The values, ascending; float64."""
    counts: Float[Tensor, "groups m1"]
    """How many there are before each of them, and in all (m + 1)."""
    sums: Float[Tensor, "groups m1"]
    """Their sum, likewise."""
    squares: Bound
    """Sum of the squares of all values."""


def choose_range(
    values: Rows, method: Method, bits: int, symmetric: bool, integer: bool = False
) -> tuple[Bound, Bound]:
    """Choose [low, high] of each row for a grid of `bits`.

    Args:
        values: (groups, n).
        method: see the functions of the same names.
        symmetric: the grid has no zero-point: signed codes, range around zero.
        integer: the grid rounds its zero-point, which `mse` takes into account.
    """
    if method == "minmax":
        return minmax(values)
    if method == "percentile":
        return percentile(values)
    if method == "dbdc":
        return dbdc(values)
    if method == "lsq":
        return lsq(values, bits, symmetric)
    if method == "dobi" and not symmetric:
        return dobi_rows(values, bits)
    return mse(values, bits, symmetric, integer=integer)


def minmax(values: Rows) -> tuple[Bound, Bound]:
    """Smallest and largest value."""
    return values.amin(1), values.amax(1)


def percentile(values: Rows, share: float = 0.999) -> tuple[Bound, Bound]:
    """The range that keeps the middle `share` of the values."""
    n = values.shape[1]
    drop = int((1 - share) / 2 * n)
    ordered = values.sort(dim=1).values
    return ordered[:, drop], ordered[:, n - 1 - drop]


def dbdc(values: Rows, dropped: float = 5e-4, bins: int = 2048) -> tuple[Bound, Bound]:
    """The range that is left when the emptier of the two outer bins is dropped while 1 - `dropped` of all stays [DBDC].

    Density-based dual clipping of Tu et al. (CVPR 2023), for activations.

    Differs: all calibration data goes into one histogram, where the official code averages the bounds of batches.
    """
    bounds = []
    for row in values:
        low, high = float(row.min()), float(row.max())
        counts = torch.histc(row, bins, low, high).tolist() if high > low else [float(len(row))] + [0.0] * (bins - 1)
        first, last, left = 0, bins - 1, dropped * len(row)
        while first < last and min(counts[first], counts[last]) <= left:
            if counts[first] < counts[last]:
                left, first = left - counts[first], first + 1
            else:
                left, last = left - counts[last], last - 1
        width = (high - low) / bins
        bounds.append((low + first * width, low + (last + 1) * width))
    ends = torch.tensor(bounds, dtype=values.dtype, device=values.device)
    return ends[:, 0], ends[:, 1]


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


def dobi(values: Float[Tensor, "..."], bits: int, one_sided: bool | None = False) -> tuple[Tensor, Tensor]:
    """2DQuant's first stage: the bounds with the least ||v - v'||^2 among K = 100 [2DQuant alg. 1].

        low_i = low + i dl,  high_i = high - i dh,  i < K
        two-sided: dl = dh = (max - min) / 2K         one-sided: dl = 0, dh = (max - min) / K

    Up to 16,384 values are compared exactly. More are rounded first to the nearest of 65,536 values, w apart, from the
    smallest to the largest: every distance from the grid changes by at most w / 2, which at 8 bits and the full range
    is a 514th of the grid's step.

    Differs: the paper prints high + i dh, a misprint, and halves the one-sided dh too, so that the upper bound ends at
    mid-range; here it runs through the whole range, as in the official code.

    Args:
        values: any shape.
        bits: 1 to 8.
        one_sided: the lower bound stays (softmax, GELU). None: whichever of the two branches has the smaller error.

    Returns:
        (lower, upper), each a tensor without axes.

    Raises:
        ValueError: no values, or bits out of range.
    """
    if values.numel() == 0:
        raise ValueError("no values to choose bounds for; wanted at least one; give a tensor that is not empty")
    low, high = dobi_rows(values.detach().reshape(1, -1).float(), bits, one_sided)
    return low[0], high[0]


def dobi_rows(values: Rows, bits: int, one_sided: bool | None = None) -> tuple[Bound, Bound]:
    """`dobi` of each row.

    Differs: the paper decides by eye which tensors are one-sided, and its code treats none so; by default the data
    decides here, by its squared error in both branches.
    """
    summary = summarize(values)
    low, high = minmax(values)
    step = (high - low).clamp_min(1e-8) / (2 * CANDIDATES)
    flat = torch.zeros_like(step)
    if one_sided is not None:
        down, up = (flat, 2 * step) if one_sided else (step, step)
        return search(summary, bits, low, high, down, up, CANDIDATES)[:2]
    both = search(summary, bits, low, high, step, step, CANDIDATES)
    one = search(summary, bits, low, high, flat, 2 * step, CANDIDATES)
    better = one[2] < both[2]
    return torch.where(better, one[0], both[0]), torch.where(better, one[1], both[1])


def mse(
    values: Rows, bits: int, symmetric: bool, steps: int = CANDIDATES, integer: bool = False
) -> tuple[Bound, Bound]:
    """DOBI, followed by a search for each bound alone: the range with the smallest ||v - v'||^2 that they meet.

    Both bounds of two-sided data move inwards together first, the upper bound alone of data that does not go below
    zero; then high and low move on their own, which the asymmetric outputs of LeakyReLU need. Symmetric grids have
    one bound, and one search.

    Args:
        integer: compare what a grid with a rounded zero-point, zero within its range, makes of each candidate.
    """
    summary = summarize(values)
    low, high = minmax(values)
    if symmetric:
        reach = torch.maximum(low.abs(), high.abs()).clamp_min(1e-8)
        return search(summary, bits, -reach, reach, reach / steps, reach / steps, steps, "symmetric")[:2]
    kind = "integer" if integer else "free"
    width = (high - low).clamp_min(1e-8)
    flat = torch.zeros_like(width)
    down = torch.where(low < 0, width / (2 * steps), flat)
    low, high, _ = search(summary, bits, low, high, down, width / (2 * steps), steps, kind)
    low, high, _ = search(summary, bits, low, high, flat, (high - low) / (2 * steps), steps // 2, kind)
    rise = torch.where(low < 0, -low / steps, flat)
    return search(summary, bits, low, high, rise, flat, steps // 2, kind)[:2]


def summarize(values: Rows) -> Summary:
    """Exact for rows of up to `EXACT` values; longer ones are rounded to `BINS` values between their extremes."""
    groups, n = values.shape
    if n <= EXACT:
        centres = values.double().sort(dim=1).values
        counts = torch.arange(n + 1, dtype=torch.float64, device=values.device).expand(groups, -1)
        return Summary(centres, counts, before(centres), centres.square().sum(1))
    centres, counts = (torch.stack(each) for each in zip(*(histogram(row) for row in values), strict=True))
    sums = counts * centres
    return Summary(centres, before(counts), before(sums), (sums * centres).sum(1))


def histogram(row: Float[Tensor, "n"]) -> tuple[Tensor, Tensor]:
    """`BINS` values of equal distance from the smallest to the largest, and how many of the row are nearest to each."""
    low, high = (float(end) for end in row.aminmax())
    width = max((high - low) / (BINS - 1), 1e-38)
    counts = torch.zeros(BINS, dtype=torch.int64, device=row.device)
    for part in row.split(PIECE):
        place = part.sub(low).mul_(1 / width).add_(0.5).clamp_(0, BINS - 1)
        counts += torch.bincount(place.to(torch.int32), minlength=BINS)
    centres = low + width * torch.arange(BINS, dtype=torch.float64, device=row.device)
    return centres, counts.double()


def before(values: Float[Tensor, "groups m"]) -> Float[Tensor, "groups m1"]:
    """The sum of the values before each, and of all in the end."""
    return torch.nn.functional.pad(values.cumsum(1), (1, 0))


def squared_errors(summary: Summary, first: Candidates, step: Candidates, levels: int) -> Candidates:
    """||v - v'||^2 of each row on the grids first + step * (0 ... levels - 1), every value at its nearest level.

    = sum v^2 + sum_k (q_k^2 n_k - 2 q_k sum_{v in k} v), with n_k values nearest to the level q_k.
    """
    ladder = torch.arange(levels, dtype=torch.float64, device=first.device)
    q = first.double()[:, :, None] + step.double()[:, :, None] * ladder  # groups steps levels
    edges = (q[:, :, 1:] + q[:, :, :-1]) / 2
    index = places(summary.centres, edges.flatten(1))
    ends = q.new_zeros(*q.shape[:2], 1)

    def per_level(cumulative: Tensor) -> Tensor:
        inner = cumulative.gather(1, index).view_as(edges)
        return torch.cat([ends, inner, ends + cumulative[:, -1, None, None]], dim=2).diff(dim=2)

    n, s = per_level(summary.counts), per_level(summary.sums)
    return summary.squares[:, None] + (q * (q * n - 2 * s)).sum(2)


def places(ascending: Float64[Tensor, "groups m"], values: Float64[Tensor, "groups n"]) -> Tensor:
    """How many of each row's ascending numbers are below each value.

    Values in order read neighbours of a long row one after the other, which is worth more than sorting them costs.
    """
    if ascending.shape[1] <= EXACT:
        return torch.searchsorted(ascending, values)
    ordered, place = values.sort(dim=1)
    return torch.empty_like(place).scatter_(1, place, torch.searchsorted(ascending, ordered))


def search(
    summary: Summary,
    bits: int,
    low: Bound,
    high: Bound,
    down: Bound,
    up: Bound,
    steps: int,
    kind: Literal["free", "integer", "symmetric"] = "free",
) -> tuple[Bound, Bound, Bound]:
    """The best of the ranges [low + i down, high - i up], i < steps, of each row, and its squared error.

    Args:
        kind: of grid: low and high are its ends; its zero-point is rounded; or it is symmetric, with signed codes.
    """
    qmin, qmax = code_range(bits, kind == "symmetric")
    i = torch.arange(steps, dtype=low.dtype, device=low.device)
    lows, highs = low[:, None] + i * down[:, None], high[:, None] - i * up[:, None]  # groups steps
    if kind == "symmetric":
        step = highs / max(qmax, 1) if bits > 1 else 2 * highs
        first = qmin * step if bits > 1 else -highs
    elif kind == "integer":
        inner, outer = lows.clamp(max=0.0), highs.clamp(min=0.0)
        step = ((outer - inner) / qmax).clamp_min(1e-10)
        first = (inner / step).round() * step
    else:
        step = ((highs - lows) / qmax).clamp_min(1e-10)
        first = lows
    rows = max(1, AT_ONCE // (steps << bits))
    parts = [
        squared_errors(
            Summary(*(each[g : g + rows] for each in (summary.centres, summary.counts, summary.sums, summary.squares))),
            first[g : g + rows],
            step[g : g + rows],
            qmax - qmin + 1,
        )
        for g in range(0, len(low), rows)
    ]
    error, best = torch.cat(parts).min(dim=1)
    pick = best[:, None]
    return lows.gather(1, pick)[:, 0], highs.gather(1, pick)[:, 0], error
