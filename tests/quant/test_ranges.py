"""Searched ranges lose less than simple ones where tails are long, and agree with the official search."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bitlens.quant.grid import StepGrid, code_range
from bitlens.quant.ranges import (
    BINS,
    EXACT,
    Summary,
    before,
    choose_range,
    dobi,
    ema,
    lsq,
    minmax,
    mse,
    percentile,
    places,
    squared_errors,
    summarize,
)  # fmt: skip


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


DATA = ["gaussian", "gelu", "longtail", "softmax"]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("one_sided", [True, False])
def test_dobi_agrees_with_the_official_search(golden_root: Path, data: str, bits: int, one_sided: bool) -> None:
    """The same bounds within one step of the search, and `mse`, which searches on, loses no more."""
    golden = load_file(golden_root / "dobi_bounds.safetensors")
    values, official = golden[data], golden[f"{data}/bits{bits}/{'one' if one_sided else 'two'}_sided"]
    step = float(values.max() - values.min()) / (100 if one_sided else 200)
    found = torch.stack(dobi(values, bits, one_sided))
    assert float((found - official).abs().max()) <= 1.001 * step
    chosen = torch.stack(dobi(values, bits, one_sided=None))
    searched = torch.cat(mse(values[None], bits, False))
    theirs = error(values[None], official[:1], official[1:], bits, False)
    assert float(error(values[None], chosen[:1], chosen[1:], bits, False)) <= float(theirs) * (1 + 1e-5)
    if not one_sided:
        assert float(error(values[None], searched[:1], searched[1:], bits, False)) <= float(theirs) * (1 + 1e-5)


def distributions(n: int) -> dict[str, Tensor]:
    """What networks hold, and what is hard for bins."""
    normal = torch.randn(n)
    return {
        "normal": normal,
        "long tails": normal**5,
        "cauchy": normal / torch.randn(n),
        "softmax": torch.softmax(3 * normal.view(-1, 100), 1).flatten(),
        "gelu": torch.nn.functional.gelu(2 * normal),
        "one outlier": torch.cat([normal[1:], torch.tensor([1e5])]),
        "two values": (normal > 1).float(),
        "whole numbers": (3 * normal).round(),
        "far from zero": normal + 1e4,
        "sorted": normal.sort().values,
        "all equal": torch.full((n,), 0.3),
    }


def plain(values: Tensor, bits: int, one_sided: bool) -> Tensor:
    """The squared errors of the 100 candidates, one after the other."""
    low, high = values.min(), values.max()
    errors, n = [], 2**bits - 1
    for i in range(100):
        a = low if one_sided else low + i * (high - low) / 200
        b = high - i * (high - low) / (100 if one_sided else 200)
        step = (b - a).clamp_min(1e-10) / n
        near = ((values.clamp(a, b) - a) / step).round() * step + a
        errors.append((near - values).square().sum(dtype=torch.float64))
    return torch.stack(errors)


@pytest.mark.parametrize("n", [EXACT, EXACT + 1])
def test_places_count_what_is_below(n: int) -> None:
    """Of short rows and of long ones, which are searched in another order."""
    row, values = torch.randn(1, n, dtype=torch.float64).sort().values, torch.randn(1, 50, dtype=torch.float64)
    assert torch.equal(places(row, values), (row[:, None] < values[:, :, None]).sum(2))


@pytest.mark.parametrize("name", distributions(100))
@pytest.mark.parametrize("one_sided", [True, False])
def test_dobi_in_bins_is_the_plain_loop(name: str, one_sided: bool) -> None:
    """For tensors too large to be sorted: within one step of the loop over 100 candidates, or as good."""
    values = distributions(40_000)[name]
    assert values.numel() > EXACT
    for bits in (2, 4, 8):
        errors = plain(values, bits, one_sided)
        step = float(values.max() - values.min()) / (100 if one_sided else 200)
        upper = float(dobi(values, bits, one_sided)[1])
        index = round((float(values.max()) - upper) / step) if step else 0
        assert abs(index - int(errors.argmin())) <= 1 or float(errors[index]) <= float(errors.min()) * (1 + 1e-3)


@pytest.mark.parametrize("name", distributions(100))
def test_the_error_of_rounded_values_is_bounded(name: str) -> None:
    """Each value's distance from the grid is wrong by at most half the bins' width, in the square and the sum."""
    values = distributions(40_000)[name].double()
    low, high = values.min(), values.max()
    width = float(high - low) / (BINS - 1)
    ordered = values.sort().values[None]
    exact = Summary(ordered, torch.arange(40_001.0).double()[None], before(ordered), values.square().sum()[None])
    for bits in (2, 8):
        ends = torch.linspace(0, 0.49, 20).double()[None] * (high - low)
        step = (high - low - 2 * ends).clamp_min(1e-9) / (2**bits - 1)
        rounded = squared_errors(summarize(values.float()[None]), low + ends, step, 2**bits)
        true = squared_errors(exact, low + ends, step, 2**bits)
        # ||d + e||^2 - ||d||^2 <= 2 ||d|| ||e|| + ||e||^2, all |e| <= w / 2 but for float32's rounding of v - low
        most = 0.5 * 1.01 * width * len(values) ** 0.5
        assert bool(((rounded - true).abs() <= 2 * true.clamp_min(0).sqrt() * most + most**2 + 1e-12).all())


def test_the_data_chooses_the_branch() -> None:
    """Softmax and GELU keep their lowest value; a normal distribution loses both tails."""
    data = distributions(10_000)
    for name in ("softmax", "gelu"):
        assert float(dobi(data[name], 3, one_sided=None)[0]) == float(data[name].min())
    assert float(dobi(data["normal"], 3, one_sided=None)[0]) > float(data["normal"].min())


@pytest.mark.parametrize("bits", [2, 3])
def test_mse_knows_the_grid_that_rounds_its_zero_point(bits: int) -> None:
    """At few bits a rounded zero-point moves the range; a search that knows loses no more than one that does not."""
    losses = {}
    for integer in (True, False):
        losses[integer] = 0.0
        for shift in torch.linspace(0, 2, 9):
            values = torch.randn(1, 4000, generator=torch.Generator().manual_seed(3)) + shift
            grid = StepGrid(bits, False, (1, 1), "integer")
            grid.set_range(*mse(values, bits, False, integer=integer))
            with torch.no_grad():
                losses[integer] += float((grid(values) - values).square().mean())
    assert losses[True] < 0.99 * losses[False]


@pytest.mark.slow
def test_dobi_is_much_faster_than_the_loop() -> None:
    """In processor time, measured in turn against a tenth of the loop: 40 times and more were seen, 10 are asserted."""
    values = torch.randn(1_000_000)
    dobi(values, 4)
    fast, slow = [], []
    for _ in range(10):
        start = time.process_time()
        dobi(values, 4)
        fast.append(time.process_time() - start)
        start = time.process_time()
        for i in range(10):
            a, b = -4.0 + 0.04 * i, 4.0 - 0.04 * i
            (((values.clamp(a, b) - a) / ((b - a) / 15)).round() * ((b - a) / 15) + a - values).square().sum()
        slow.append(time.process_time() - start)
    assert 10 * min(slow) >= 10 * min(fast)


def test_dobi_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="no values to choose bounds for"):
        dobi(torch.zeros(0), 4)
