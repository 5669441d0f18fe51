"""Searched ranges lose less than simple ones where tails are long, and agree with the official search."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitlens.quant.grid import StepGrid, code_range
from bitlens.quant.ranges import choose_range, ema, lsq, minmax, mse, percentile, search


def long_tailed() -> Tensor:
    """Three rows of 4000 values with heavy tails: on both sides, skewed, and as LeakyReLU leaves them."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(3, 4000, generator=generator)
    tails = normal * (0.3 * torch.randn(3, 4000, generator=generator)).exp() ** 3
    tails[1] = tails[1] + 0.5 * tails[1].abs()
    tails[2] = torch.where(tails[2] > 0, tails[2], 0.01 * tails[2])
    return tails


def error(values: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Squared error of each row on the grid that spans [low, high], written without the grid."""
    n = 2**bits - 1
    if symmetric:
        reach = torch.maximum(low.abs(), high.abs())[:, None]
        step = reach / (2 ** (bits - 1) - 1)
        near = (values / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    else:
        step = (high - low)[:, None] / n
        near = ((values - low[:, None]) / step).round().clamp(0, n) * step + low[:, None]
    return (near - values).square().sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("other", ["minmax", "percentile"])
def test_mse_loses_least(other: Any, bits: int, symmetric: bool) -> None:
    values = long_tailed()
    searched = error(values, *choose_range(values, "mse", bits, symmetric), bits, symmetric)
    simple = error(values, *choose_range(values, other, bits, symmetric), bits, symmetric)
    assert bool((searched < simple).all())


def test_mse_is_near_the_best_of_all(bits: int = 4) -> None:
    """No range of a 30 x 30 lattice of bounds is better by a tenth."""
    values = long_tailed()
    found = error(values, *mse(values, bits, False), bits, False)
    low, high = minmax(values)
    best = torch.full((3,), torch.inf)
    for a in torch.linspace(0, 0.98, 30):
        for b in torch.linspace(0.02, 1, 30):
            best = torch.minimum(best, error(values, low * (1 - a), high * b, bits, False))
    assert bool((found < 1.1 * best).all())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rows_are_independent(bits: int) -> None:
    values = long_tailed()
    for symmetric in (True, False):
        together = mse(values, bits, symmetric)
        for row in range(3):
            alone = mse(values[row : row + 1], bits, symmetric)
            for whole, part in zip(together, alone, strict=True):
                torch.testing.assert_close(whole[row : row + 1], part)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_one_sided_data_keeps_its_lowest_value(bits: int) -> None:
    softmax = torch.softmax(3 * torch.randn(2, 64, 32), dim=2).flatten(1)
    low, high = mse(softmax, bits, symmetric=False)
    assert torch.equal(low, softmax.amin(1))
    assert bool((high <= softmax.amax(1)).all())
    relu = torch.randn(2, 5000).relu()
    low, high = mse(relu, bits, symmetric=False)
    assert torch.equal(low, torch.zeros(2))


@pytest.mark.parametrize("bits", range(1, 9))
def test_symmetric_ranges_are_symmetric(bits: int) -> None:
    low, high = mse(long_tailed(), bits, symmetric=True)
    assert torch.equal(low, -high) and bool((high > 0).all())


def test_one_bit_symmetric_is_near_the_optimum() -> None:
    """The best pair of values -a, +a has a = mean |v|."""
    values = torch.randn(1, 20_000)
    grid = StepGrid(1, signed=True, shape=(1, 1))
    grid.set_range(*mse(values, 1, symmetric=True))
    assert float(grid.scale.detach()) / 2 == pytest.approx(float(values.abs().mean()), rel=0.03)


def test_minmax() -> None:
    low, high = minmax(torch.tensor([[1.0, -2.0, 3.0], [0.0, 5.0, 4.0]]))
    assert low.tolist() == [-2.0, 0.0] and high.tolist() == [3.0, 5.0]


def test_ema() -> None:
    """The average of the batches' largest magnitudes, later ones weighing more, for each row."""
    batches = [torch.tensor([[1.0, -4.0], [0.5, 0.2]]), torch.tensor([[2.0, 0.0], [-0.1, 0.3]])]
    low, high = ema(batches, decay=0.5)
    assert high.tolist() == pytest.approx([(0.5 * 4 + 2) / 1.5, (0.5 * 0.5 + 0.3) / 1.5])
    assert torch.equal(low, -high)
    assert ema(batches[:1])[1].tolist() == [4.0, 0.5]
    torch.testing.assert_close(ema([torch.full((1, 3), 0.7)] * 9)[1], torch.tensor([0.7]))


def test_percentile() -> None:
    values = torch.arange(10_000.0)[torch.randperm(10_000)][None]
    low, high = percentile(values)
    assert (float(low), float(high)) == (5.0, 9994.0)  # half of 0.1 % dropped at each end
    low, high = percentile(values, share=0.5)
    assert (float(low), float(high)) == (2500.0, 7499.0)
    few = torch.tensor([[3.0, 1.0, 2.0]])
    assert [float(end) for end in percentile(few)] == [1.0, 3.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_start(bits: int) -> None:
    """The step is 2 mean|v| / sqrt(Qp)."""
    values = torch.randn(3, 1000)
    grid = StepGrid(bits, signed=True, shape=(3, 1))
    grid.set_range(*lsq(values, bits, symmetric=True))
    step = 2 * values.abs().mean(1) / code_range(bits, True)[1] ** 0.5
    torch.testing.assert_close(grid.scale.detach().flatten(), step)
    low, high = lsq(values, bits, symmetric=False)
    n = 2**bits - 1
    torch.testing.assert_close((high - low) / n, 2 * values.abs().mean(1) / n**0.5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "lsq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_values(method: Any, symmetric: bool) -> None:
    """Rows without any width give finite ranges and a grid that runs."""
    rows = torch.tensor([[0.0] * 9, [0.7] * 9, [-0.7] * 9])
    low, high = choose_range(rows, method, 4, symmetric)
    grid = StepGrid(4, symmetric, (3, 1), "none" if symmetric else "integer")
    grid.set_range(low, high)
    with torch.no_grad():
        out = grid(rows)
    assert bool(out.isfinite().all()) and bool((out[0] == 0).all())


@pytest.mark.parametrize("data", ["gaussian", "gelu", "longtail", "softmax"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_agrees_with_the_official_search(golden_root: Path, data: str, bits: int) -> None:
    """The first search of `mse` finds the official bounds; the second one, which is bitlens's, only improves."""
    golden = load_file(golden_root / "dobi_bounds.safetensors")
    values = golden[data][None]
    low, high = minmax(values)
    step = (high - low) / 200
    official = golden[f"{data}/bits{bits}/two_sided"]
    found = torch.cat(search(values, bits, low, high, step, step, 100, False))
    torch.testing.assert_close(found, official)
    theirs = error(values, official[:1], official[1:], bits, False)
    ours = error(values, *mse(values, bits, False), bits, False)
    assert float(ours) <= float(theirs) * (1 + 1e-5)
    official = golden[f"{data}/bits{bits}/one_sided"]  # the upper bound alone, all the way down
    found = torch.cat(search(values, bits, low, high, torch.zeros_like(step), 2 * step, 100, False))
    torch.testing.assert_close(found, official)
