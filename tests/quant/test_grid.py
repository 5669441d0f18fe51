"""Grids round to their codes and learn by the papers' gradients, which are written out here once more."""

import math
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitlens.quant.grid import (
    BoundGrid,
    Grid,
    StepGrid,
    TruncationGrid,
    code_range,
    dequantize,
    fake_quantize,
    lsq_factor,
    quantize,
    scale_gradient,
)
from bitlens.quant.ranges import mse

ZERO_POINTS: tuple[Any, ...] = ("none", "integer", "rounded", "free")
GRIDS = [*ZERO_POINTS, "bound", "bound-integer"]


def make(kind: Any, bits: int, shape: tuple[int, ...] = (), low: float = -1.3, high: float = 2.1) -> Grid:
    """A calibrated grid of each sort."""
    if kind in ZERO_POINTS:
        grid: Grid = StepGrid(bits, kind == "none", shape, kind)
    else:
        grid = BoundGrid(bits, shape, integer=kind == "bound-integer")
    grid.set_range(torch.full(shape, low), torch.full(shape, high))
    return grid


def spread(grid: Grid, n: int = 2001) -> Tensor:
    """Values that reach well beyond both ends of a grid."""
    return torch.linspace(-4.0, 5.0, n)


@pytest.mark.parametrize("bits", range(1, 9))
def test_code_range(bits: int) -> None:
    low, high = code_range(bits, signed=True)
    assert (low, high) == (-(1 << bits) // 2, (1 << bits) // 2 - 1)
    assert code_range(bits, signed=False) == (0, (1 << bits) - 1)


@pytest.mark.parametrize("bits", [0, 9, -3])
def test_code_range_refuses(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits; wanted 1 to 8"):
        code_range(bits, signed=True)


def test_rounding_is_half_to_even() -> None:
    values = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    wanted = torch.tensor([-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 4.0])
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    assert torch.equal(quantize(values, one, zero, -8, 7), wanted)
    assert torch.equal(fake_quantize(values, one, zero, -8, 7), wanted)


@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-4, 1e3),
    share=st.floats(0, 1),
    integer=st.booleans(),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
)
def test_laws_of_codes(bits: int, signed: bool, scale: float, share: float, integer: bool, values: list[float]) -> None:
    """Codes lie in the range; values of codes are quantized to themselves; the error is half a step inside."""
    qmin, qmax = code_range(bits, signed)
    centre = qmin + share * (qmax - qmin)
    step, zero = torch.tensor(scale), torch.tensor(float(round(centre)) if integer else centre)
    x = torch.tensor(values)
    codes = quantize(x, step, zero, qmin, qmax)
    assert torch.equal(codes, codes.round()) and codes.min() >= qmin and codes.max() <= qmax
    once = fake_quantize(x, step, zero, qmin, qmax)
    assert torch.equal(once, dequantize(codes, step, zero))
    assert torch.equal(quantize(once, step, zero, qmin, qmax), codes)
    assert torch.equal(fake_quantize(once, step, zero, qmin, qmax), once)
    low, high = (qmin - zero) * step, (qmax - zero) * step
    inside = x.clamp(low, high)
    slack = 1e-5 * max(1.0, float(inside.abs().max())) + 1e-4 * scale
    assert float((once - inside).abs().max()) <= scale / 2 + slack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", GRIDS)
def test_forward_is_values_of_codes(kind: str, bits: int) -> None:
    """Bit for bit: what a checkpoint packs and what an integer kernel runs is what training saw."""
    grid = make(kind, bits)
    x = spread(grid)
    with torch.no_grad():
        codes, forward = grid.codes(x), grid(x)
        assert codes.dtype == torch.int16
        assert torch.equal(grid.values(codes), forward)
        assert torch.equal(grid(forward), forward)
    assert codes.min() == grid.qmin and codes.max() == grid.qmax
    assert len(codes.unique()) == 2**bits


@pytest.mark.parametrize("kind", GRIDS)
def test_forward_and_codes_agree_at_ties(kind: str) -> None:
    """A value half way between two codes goes the same way in training as in the checkpoint."""
    torch.manual_seed(3)
    for _ in range(50):
        grid = make(kind, 8, low=-float(torch.rand(())) - 0.1, high=float(torch.rand(())) + 0.1)
        scale, zero_point = grid.scale_and_zero_point()
        x = ((torch.arange(grid.qmin, grid.qmax) + 0.5 - zero_point) * scale).detach()
        with torch.no_grad():
            assert torch.equal(grid.values(grid.codes(x)), grid(x))


def test_scale_gradient_keeps_the_value() -> None:
    x = torch.rand(1000, requires_grad=True)
    y = scale_gradient(x, 0.0123)
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((1000,), 0.0123))


@pytest.mark.parametrize(("n", "qmax", "wanted"), [(100, 7, 700**-0.5), (9, 255, 2295**-0.5), (4, 0, 0.5)])
def test_lsq_factor(n: int, qmax: int, wanted: float) -> None:
    assert lsq_factor(n, qmax) == pytest.approx(wanted)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", ["none", "free", "integer", "rounded"])
def test_lsq_gradients(kind: Any, bits: int) -> None:
    """[LSQ eq. 3 and sec. 2.2, LSQ+ eq. 5], value by value, inside and outside the range."""
    grid = make(kind, bits)
    assert isinstance(grid, StepGrid)
    scale = float(grid.scale.detach())
    zero_point = float(grid.zero_point.detach())
    x = torch.tensor([-9.0, -1.213, -0.417, -0.0521, 0.0713, 0.3017, 0.811, 1.893, 9.0])  # no ties
    seen = {"below": 0, "inside": 0, "above": 0}
    for i in range(len(x)):
        one = x[i : i + 1].clone().requires_grad_()
        grid.zero_grad()
        grid(one).sum().backward()
        place = float(one.detach()) / scale + zero_point
        factor = 1 / math.sqrt(1 * max(grid.qmax, 1))
        if place < grid.qmin:
            seen["below"] += 1
            d_value, d_scale, d_zero = 0.0, grid.qmin - zero_point, -scale
        elif place > grid.qmax:
            seen["above"] += 1
            d_value, d_scale, d_zero = 0.0, grid.qmax - zero_point, -scale
        else:
            seen["inside"] += 1
            d_value, d_scale, d_zero = 1.0, round(place) - place, 0.0
        assert one.grad is not None and grid.scale.grad is not None
        assert float(one.grad) == pytest.approx(d_value, abs=1e-6)
        assert float(grid.scale.grad) == pytest.approx(d_scale * factor, abs=2e-5 * max(1, abs(place)))
        if kind != "none":
            assert grid.zero_point.grad is not None
            assert float(grid.zero_point.grad) == pytest.approx(d_zero * factor, abs=1e-5)
    assert all(seen.values())


def test_lsq_gradient_is_scaled_by_the_values_of_each_scale() -> None:
    x = torch.full((4, 25), 9.0)  # all above the range: d/d scale = qmax each
    grid = make("none", 4, (4, 1))
    grid(x).sum().backward()
    assert isinstance(grid, StepGrid) and grid.scale.grad is not None
    torch.testing.assert_close(grid.scale.grad, torch.full((4, 1), 25 * 7 / math.sqrt(25 * 7)))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bound_gradients(bits: int) -> None:
    """[2DQuant eq. 2, with the sign of its first term put right]."""
    low, high, n = -1.3, 2.1, 2**bits - 1
    for v in (-9.0, -1.35, -1.213, -0.417, 0.0713, 0.3017, 1.893, 2.15, 9.0):  # no ties
        grid = make("bound", bits, low=low, high=high)
        assert isinstance(grid, BoundGrid)
        x = torch.tensor([v], requires_grad=True)
        grid(x).sum().backward()
        inside = float(low <= v <= high)
        share = (min(max(v, low), high) - low) / (high - low)
        step = round(share * n) / n
        assert x.grad is not None and grid.low.grad is not None and grid.high.grad is not None
        assert float(x.grad) == inside
        assert float(grid.high.grad) == pytest.approx(float(v > high) + inside * (step - share), abs=1e-5)
        assert float(grid.low.grad) == pytest.approx(float(v < low) + inside * (share - step), abs=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("which", ["low", "high"])
@pytest.mark.parametrize("v", [-3.0, 5.0])
def test_bound_gradients_outside_by_finite_differences(bits: int, which: str, v: float) -> None:
    """Where the value saturates nothing is rounded, so the true derivative exists."""
    results = []
    for shift in (-0.01, 0.01):
        ends = {"low": -1.3, "high": 2.1}
        ends[which] += shift
        with torch.no_grad():
            results.append(float(make("bound", bits, **ends)(torch.tensor([v]))))
    grid = make("bound", bits)
    grid(torch.tensor([v])).sum().backward()
    gradient = grid.get_parameter(which).grad
    assert gradient is not None
    assert float(gradient) == pytest.approx((results[1] - results[0]) / 0.02, abs=1e-3)


def truncation(bits: int, reach: float = 1.3) -> TruncationGrid:
    grid = TruncationGrid(bits)
    grid.set_range(torch.tensor(-reach), torch.tensor(0.4 * reach))
    return grid


@pytest.mark.parametrize("bits", range(2, 9))
def test_truncation_grid(bits: int) -> None:
    """Its codes lie evenly on both sides of zero; forward, codes and values are one, bit for bit, in bfloat16 too."""
    grid = truncation(bits)
    x = spread(grid)
    with torch.no_grad():
        codes, forward = grid.codes(x), grid(x)
        assert torch.equal(grid.values(codes), forward) and torch.equal(grid(forward), forward)
        assert (int(codes.min()), int(codes.max())) == (-grid.qmax, grid.qmax) == (grid.qmin, 2 ** (bits - 1) - 1)
        assert len(codes.unique()) == 2**bits - 1
        step = 1.3 / grid.qmax
        torch.testing.assert_close(forward, (x.clamp(-1.3, 1.3) / step).round() * step)
        low = grid(x.bfloat16())
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, grid.values(grid.codes(x.bfloat16())).bfloat16())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_truncation_gradients(bits: int) -> None:
    """[PAMS]: alpha is moved by what is truncated alone, values by what is not."""
    for v in (-9.0, -1.31, -1.213, -0.417, 0.0713, 1.29, 1.31, 9.0):
        grid, x = truncation(bits), torch.tensor([v], requires_grad=True)
        (3 * grid(x)).sum().backward()
        assert x.grad is not None and grid.alpha.grad is not None
        assert float(x.grad) == (3.0 if abs(v) < 1.3 else 0.0)
        assert float(grid.alpha.grad) == (0.0 if abs(v) < 1.3 else math.copysign(3.0, v))


def test_truncation_grid_of_one_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="1 bit on PAMS's grid, which has only the code 0; wanted 2 to 8"):
        TruncationGrid(1)


def test_step_gradients_outside_by_finite_differences() -> None:
    for name in ("scale", "zero_point"):
        grid = make("free", 3)
        parameter = grid.get_parameter(name)
        x = torch.tensor([9.0])
        grid(x).sum().backward()
        assert parameter.grad is not None
        ends = []
        for shift in (-0.01, 0.01):
            with torch.no_grad():
                parameter += shift
                ends.append(float(grid(x)))
                parameter -= shift
        truth = (ends[1] - ends[0]) / 0.02
        assert float(parameter.grad) == pytest.approx(truth * lsq_factor(1, grid.qmax), abs=1e-3)


@pytest.mark.parametrize("kind", GRIDS)
def test_refuses_before_calibration(kind: Any) -> None:
    grid = StepGrid(4, kind == "none", (), kind) if kind in ZERO_POINTS else BoundGrid(4)
    with pytest.raises(ValueError, match="no range yet; wanted a calibrated network"):
        grid(torch.zeros(3))
    grid.declare_ready()
    grid(torch.zeros(3))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.0, 2.0), (0.5, 2.0), (-3.0, -0.5), (-1e-3, 50.0), (0, 0)])
def test_integer_zero_point(bits: int, low: float, high: float) -> None:
    """It is a code of the grid, so padding and silence (real zero) are exact."""
    grid = make("integer", bits, low=low, high=high)
    _, zero_point = grid.scale_and_zero_point()
    assert float(zero_point.detach()) in range(grid.qmin, grid.qmax + 1)
    with torch.no_grad():
        assert float(grid(torch.zeros(1))) == 0.0
        assert float(grid.codes(torch.zeros(1))) == float(zero_point)


@pytest.mark.parametrize("kind", ["integer", "rounded", "free"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.1), (0.5, 2.0), (-3.0, -0.5)])
def test_range_is_spanned(kind: str, bits: int, low: float, high: float) -> None:
    """Every value of the range, widened to hold zero, is a step away from a code at most."""
    grid = make(kind, bits, low=low, high=high)
    x = torch.linspace(min(low, 0), max(high, 0), 99)
    with torch.no_grad():
        assert float((grid(x) - x).abs().max()) <= 1.001 * float(grid.get_parameter("scale"))
    assert float(grid.get_parameter("scale").detach()) <= 1.001 * (max(high, 0) - min(low, 0)) / (2**bits - 1)


def test_integer_zero_point_stays_a_code_in_training() -> None:
    """Trained out of the range, it is held at the end; a `rounded` one may leave."""
    for kind, wanted in (("integer", 15.0), ("rounded", 99.0), ("free", 99.4)):
        grid = make(kind, 4)
        with torch.no_grad():
            grid.get_parameter("zero_point").fill_(99.4)
        assert float(grid.scale_and_zero_point()[1].detach()) == pytest.approx(wanted)


def test_one_bit_symmetric_is_plus_minus_half_a_step() -> None:
    grid = StepGrid(1, signed=True)
    grid.set_range(torch.tensor(-0.8), torch.tensor(0.6))
    scale = float(grid.scale.detach())
    assert scale == pytest.approx(1.6)
    with torch.no_grad():
        out = grid(torch.tensor([-5.0, -0.3, 0.3, 5.0]))
    torch.testing.assert_close(out, torch.tensor([-scale / 2, -scale / 2, scale / 2, scale / 2]))


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_range_is_reached(bits: int) -> None:
    grid = make("none", bits, low=-1.3, high=2.1)
    with torch.no_grad():
        assert float(grid(torch.tensor([2.1]))) == pytest.approx(2.1)
        assert float(grid(torch.tensor([0.0]))) == 0.0


def test_low_precision_input_keeps_its_dtype() -> None:
    """The grid itself computes in float32, also under autocast."""
    grid = make("integer", 8)
    x = spread(grid).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = grid(x)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, grid(x.float()).bfloat16())


def test_bits_are_shown() -> None:
    assert "bits=4, codes=-8..7" in repr(StepGrid(4, signed=True))


def test_gradients_are_weighted_by_what_comes_back() -> None:
    """Where each value has its own slope of the loss: LSQ eq. 3 and LSQ+ eq. 5, value by value, summed per scale."""
    values = 3 * torch.randn(2, 50)
    weight = torch.randn(2, 50)
    scale = torch.tensor([[0.4], [0.7]], requires_grad=True)
    zero = torch.tensor([[1.3], [-0.6]], requires_grad=True)
    x = values.clone().requires_grad_(True)
    (weight * fake_quantize(x, scale, zero, -4, 3)).sum().backward()
    s, z = scale.detach(), zero.detach()
    place = values / s + z
    code, inside = place.clamp(-4, 3).round(), (place >= -4) & (place <= 3)
    assert 10 < int(inside.sum()) < 90
    to_scale = weight * torch.where(inside, code - place, code - z)
    to_zero = weight * torch.where(inside, 0.0, -s)
    torch.testing.assert_close(x.grad, weight * inside)
    torch.testing.assert_close(scale.grad, to_scale.sum(1, keepdim=True))
    torch.testing.assert_close(zero.grad, to_zero.sum(1, keepdim=True))


FUSED = """
import torch
from bitlens.quant.grid import StepGrid
for dtype in (torch.float32, torch.bfloat16):
    found = []
    for fused in (False, True):
        torch.manual_seed(3)
        grid = StepGrid(4, signed=False, zero_point="integer")
        grid.set_range(torch.tensor(-0.5), torch.tensor(1.5))
        grid.fused = fused
        values = (2 * torch.randn(2, 3, 4, 5, 6)).to(dtype).requires_grad_(True)
        output = grid(values)
        (output.float() * torch.randn(output.shape)).sum().backward()
        found.append((output.detach(), values.grad, grid.scale.grad, grid.zero_point.grad))
    plain, fused = found
    assert plain[0].dtype == dtype and torch.equal(plain[0], fused[0]) and torch.equal(plain[1], fused[1])
    for a, b in zip(plain[2:], fused[2:]):
        torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_fused_grid_is_the_same_grid() -> None:
    """What is compiled for training gives the same values and gradients; in a process without the suite's checks of
    shapes, which cannot be compiled."""
    unchanged = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}  # see `fuse_grids`
    command = [sys.executable, "-W", "ignore", "-c", FUSED]
    done = subprocess.run(command, env=unchanged, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ZERO_POINTS)
def test_channels_of_zeros_have_the_others_scale(kind: Any) -> None:
    """`mse` gives them a range of 1e-8, other searches one of 0: as a scale it would hold the weights at zero."""
    weights = torch.stack([torch.linspace(-1, 1, 9), torch.zeros(9), torch.linspace(-3, 3, 9)])
    grid = StepGrid(4, kind == "none", (3, 1), kind)
    for low, high in (mse(weights, 4, kind == "none"), (weights.amin(1), weights.amax(1))):
        grid.set_range(low, high)
        scale = grid.scale.detach().flatten()
        torch.testing.assert_close(scale[1], scale[[0, 2]].mean())
        assert bool((grid(weights)[1] == 0).all())
    grid.set_range(torch.zeros(3), torch.zeros(3))
    assert bool((grid.scale == 1).all())
