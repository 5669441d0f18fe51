"""Codes and values: the only place in bitlens that rounds and clamps.

    code  = clamp(round(value / scale + zero_point), qmin, qmax)          value' = scale * (code - zero_point)

One grid, three trainable parametrizations of it: `StepGrid` learns scale and zero-point (LSQ, LSQ+, Q-SCI),
`BoundGrid` the lowest and highest value (2DQuant), `TruncationGrid` one bound on both sides (PAMS). Rounding is half
to even and passes gradients straight through; what else is differentiated is in each class's docstring.

| granularity    | tensor it is for                   | shape of scale and zero_point    |
|----------------|------------------------------------|----------------------------------|
| tensor         | anything                           | ()                               |
| channel        | weight (out, in, ...)              | (out, 1, ...)                    |
| head           | attention operand (b, heads, ...)  | (1, heads, 1, 1, 1)              |
| input_channel  | input of a convolution / linear    | (1, c, 1, 1, 1) / (c,)           |
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

Granularity = Literal["tensor", "channel", "head", "input_channel"]


def round_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    return x + (x.round() - x).detach()


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, with its gradient multiplied by `factor` [LSQ sec. 2.2]."""
    if factor == 1.0:
        return x
    scaled = x * factor
    return x.detach() + (scaled - scaled.detach())  # the bracket is exactly 0, so the value is exactly x


def quantize(values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Integer codes (as floats) of values; broadcasts scale and zero_point."""
    return (values / scale + zero_point).clamp(qmin, qmax).round()


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of codes."""
    return (codes - zero_point) * scale


def fake_quantize(
    values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, fused: bool = False
) -> Tensor:
    """`dequantize(quantize(values))` with straight-through gradients, computed in float32, in the type of `values`.

    d/d values = 1 inside the range, 0 outside; d/d scale = code - zero_point - values/scale inside,
    code - zero_point outside; d/d zero_point = 0 inside, -scale outside [LSQ eq. 3, LSQ+ eq. 5].
    With `fused` the same arithmetic runs as one compiled loop forward and one back.
    """
    return cast(Tensor, FakeQuantize.apply(values, scale, zero_point, qmin, qmax, fused))


class FakeQuantize(torch.autograd.Function):
    """`fake_quantize` with its gradients written out: a third of the memory traffic of composing operators."""

    @staticmethod
    def forward(ctx, values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, fused: bool) -> Tensor:
        ctx.save_for_backward(values, scale, zero_point)
        ctx.range, ctx.fused = (qmin, qmax), fused
        return kernel(there_and_back, fused)(values, scale, zero_point, qmin, qmax)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = kernel(slopes, ctx.fused)(gradients[0], *ctx.saved_tensors, *ctx.range, *ctx.needs_input_grad[1:3])
        return *found, None, None, None


def there_and_back(values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Values to codes and back, in place where it can be."""
    codes = (values.float() / scale).add_(zero_point).clamp_(qmin, qmax).round_()
    return codes.sub_(zero_point).mul_(scale).to(values.dtype)


def slopes(
    gradient: Tensor, values: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, steps: bool, zeros: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients to values, scale (where `steps`) and zero-point (where `zeros`)."""
    position = (values.float() / scale).add_(zero_point)  # where the value lies, in codes
    clamped = position.clamp(qmin, qmax)
    inside = clamped == position
    to_values = gradient * inside
    to_scale = to_zero_point = None
    if zeros:
        to_zero_point = reduce_like((to_values - gradient).float().mul_(scale), zero_point)
    if steps:
        # inside: round(position) - position; outside: bound - zero_point
        slope = torch.where(inside, clamped.round().sub_(position), clamped.sub_(zero_point))
        to_scale = reduce_like(slope.mul_(gradient.float()), scale)
    return to_values, to_scale, to_zero_point


@functools.cache
def kernel(function: Callable[..., Any], fused: bool) -> Callable[..., Any]:
    """A function as it is, or compiled into one loop over its tensors."""
    return torch.compile(function, dynamic=True) if fused else function


def reduce_like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Sum a gradient over the axes along which its parameter was broadcast."""
    return gradient.sum_to_size(parameter.shape)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code: -2^(b-1) .. 2^(b-1) - 1 signed, 0 .. 2^b - 1 unsigned.

    Raises:
        ValueError: bits is not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits; wanted 1 to 8; change the recipe (float layers need no rule)")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class Grid(nn.Module):
    """What every grid has: bits, code range, and the calibrated / frozen state.

    A grid is calibrated from outside (`set_range`) and refuses to run before; nothing initializes itself in
    `forward`.
    """

    def __init__(self, bits: int, signed: bool, shape: tuple[int, ...]):
        super().__init__()
        self.bits, self.signed = bits, signed
        self.qmin, self.qmax = code_range(bits, signed)
        self.scales = math.prod(shape)
        self.ready = False
        self.fused = False

    def scale_and_zero_point(self, values_per_scale: int = 0) -> tuple[Tensor, Tensor]:
        """The step and the code of zero, as tensors that broadcast against the values.

        `values_per_scale`, where it is not 0, tells LSQ how far to scale the gradients down.
        """
        raise NotImplementedError

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Calibrate: choose the grid that spans [low, high]."""
        raise NotImplementedError

    def declare_ready(self) -> None:
        """The parameters were loaded and hold a calibrated range."""
        self.ready = True

    def forward(self, values: Tensor) -> Tensor:
        if not self.ready:
            raise ValueError("a grid has no range yet; wanted a calibrated network; run bitlens.quant.calibrate first")
        with torch.autocast(values.device.type, enabled=False):
            scale, zero_point = self.scale_and_zero_point(values.numel() // self.scales)
            return fake_quantize(values, scale, zero_point, self.qmin, self.qmax, self.fused)

    def codes(self, values: Tensor) -> Tensor:
        """The integer codes of values, as int16 (they all fit)."""
        scale, zero_point = self.scale_and_zero_point()
        return quantize(values.detach().float(), scale, zero_point, self.qmin, self.qmax).to(torch.int16)

    def values(self, codes: Tensor) -> Tensor:
        """The values of integer codes."""
        scale, zero_point = self.scale_and_zero_point()
        return dequantize(codes.float(), scale, zero_point)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, codes={self.qmin}..{self.qmax}"


NOTHING = 1e-8
"""A range this wide or less is that of values that are all zero."""


class StepGrid(Grid):
    """A grid that learns its step (LSQ) and, if asymmetric, its zero-point (LSQ+).

    Gradients of scale and zero-point are multiplied by 1 / sqrt(N Qp), N values per scale [LSQ sec. 2.2].

    Args:
        bits: 1 to 8. One signed bit stands for -scale/2 and +scale/2.
        signed: signed codes.
        shape: shape of scale and zero_point (see the table above).
        zero_point: "none" (symmetric), "integer" (a code of the grid: what integer kernels execute), "rounded"
            (an integer, but it may leave the code range: Q-SCI's code), "free" (any real number).
    """

    def __init__(
        self,
        bits: int,
        signed: bool,
        shape: tuple[int, ...] = (),
        zero_point: Literal["none", "integer", "rounded", "free"] = "none",
    ):
        super().__init__(bits, signed, shape)
        self.kind = zero_point
        self.scale = nn.Parameter(torch.ones(shape))
        if zero_point == "none":
            centre = -0.5 if bits == 1 and signed else 0.0
            self.register_buffer("zero_point", torch.full(shape, centre), persistent=False)
        else:
            self.zero_point = nn.Parameter(torch.zeros(shape))
        if zero_point == "rounded":  # official checkpoints choose the sign of each grid's codes
            self.register_buffer("signed_codes", torch.tensor(float(signed)))

    def declare_ready(self) -> None:
        if self.kind == "rounded":
            self.signed = bool(self.signed_codes)
            self.qmin, self.qmax = code_range(self.bits, self.signed)
        super().declare_ready()

    def scale_and_zero_point(self, values_per_scale: int = 0) -> tuple[Tensor, Tensor]:
        factor = lsq_factor(values_per_scale, self.qmax) if values_per_scale else 1.0
        scale = scale_gradient(self.scale, factor)
        if self.kind == "none":
            return scale, self.zero_point
        zero_point = scale_gradient(self.zero_point, factor)
        if self.kind == "integer":
            zero_point = zero_point.clamp(self.qmin, self.qmax)
        return scale, zero_point if self.kind == "free" else round_through(zero_point)

    @torch.no_grad()
    def upright(self) -> None:
        """Give a scale that training drove below zero its sign back; the grid has the same values as before.

        s (c - z) = |s| (c' - z') with c' = qmin + qmax - c and z' = qmin + qmax - z: the grid was mirrored, which is a
        grid too, but none that an integer kernel knows. (A grid without zero-point keeps its values but for the
        outermost one, where it has one more on one side.)
        """
        below = self.scale < 0
        if self.kind != "none" and bool(below.any()):
            mirrored = self.qmin + self.qmax - self.zero_point
            self.zero_point.copy_(torch.where(below, mirrored, self.zero_point))
        self.scale.copy_(self.scale.abs().clamp_min(1e-8))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Span [low, high]; a symmetric grid spans max(|low|, |high|) on both sides.

        Where all values are zero the scale is the mean of the other channels' scales, or 1: one that is next to
        nothing would keep the values at zero in training, for all that they move.
        """
        low, high = low.reshape(self.scale.shape), high.reshape(self.scale.shape)
        if self.kind == "none":
            reach = torch.maximum(low.abs(), high.abs())
            scale = 2 * reach if self.bits == 1 and self.signed else reach / max(self.qmax, 1)
        else:
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # zero stays inside: padding and silence are exact
            scale = (high - low) / (self.qmax - self.qmin)
            reach = high - low
        empty = ~(reach > NOTHING)
        usual = scale[~empty].mean() if bool((~empty).any()) else scale.new_ones(())
        scale = torch.where(empty, usual, scale).clamp_min(1e-8)
        self.scale.copy_(scale)
        if self.kind != "none":
            zero_point = (self.qmin - low / scale).clamp(self.qmin, self.qmax)
            self.zero_point.copy_(zero_point if self.kind == "free" else zero_point.round())
        self.ready = True


class BoundGrid(Grid):
    """A grid that learns the values `low` and `high` of its first and last code [2DQuant eq. 1-3].

        d v'/d high = [v > high] + [inside] * (code / n - (v - low) / (high - low)),   n = 2^bits - 1
        d v'/d low  = [v < low]  + [inside] * ((v - low) / (high - low) - code / n)

    Differs: eq. 2 of the paper prints [high - v] for the first term, a sign error.
    With `integer`, the zero-point is rounded, so that integer kernels can execute the grid; the gradients above
    then hold up to that rounding, which is passed straight through.
    """

    def __init__(self, bits: int, shape: tuple[int, ...] = (), integer: bool = False):
        super().__init__(bits, False, shape)
        self.integer = integer
        self.low = nn.Parameter(torch.zeros(shape))
        self.high = nn.Parameter(torch.ones(shape))

    def scale_and_zero_point(self, values_per_scale: int = 0) -> tuple[Tensor, Tensor]:
        scale = ((self.high - self.low) / self.qmax).clamp_min(1e-8)  # training may let the bounds meet
        zero_point = -self.low / scale
        return scale, round_through(zero_point) if self.integer else zero_point

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.low.copy_(low.reshape(self.low.shape))
        self.high.copy_(torch.maximum(high, low + 1e-8).reshape(self.high.shape))
        self.ready = True


class TruncationGrid(Grid):
    """A symmetric grid that learns where it truncates, alpha [PAMS, Li et al., ECCV 2020].

        v' = s round(clamp(v, -alpha, alpha) / s),   s = alpha / (2^(bits-1) - 1)
        d v'/d alpha = sign(v) where |v| > alpha, 0 inside;   d v'/d v = 1 inside, 0 outside

    The step passes no gradient to alpha, as in the paper; `StepGrid` without a zero-point does (LSQ). The codes are
    as many below zero as above it: -(2^(bits-1) - 1) .. 2^(bits-1) - 1.

    Raises:
        ValueError: one bit, which would leave the code 0 alone.
    """

    def __init__(self, bits: int, shape: tuple[int, ...] = ()):
        super().__init__(bits, True, shape)
        if bits == 1:
            raise ValueError("1 bit on PAMS's grid, which has only the code 0; wanted 2 to 8; change the recipe")
        self.qmin = -self.qmax
        self.alpha = nn.Parameter(torch.ones(shape))

    def scale_and_zero_point(self, values_per_scale: int = 0) -> tuple[Tensor, Tensor]:
        scale = self.alpha.detach() / self.qmax
        return scale, torch.zeros_like(scale)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Span max(|low|, |high|) on both sides."""
        reach = torch.maximum(low.abs(), high.abs()).reshape(self.alpha.shape)
        self.alpha.copy_(torch.where(reach > 0, reach, torch.ones_like(reach)).clamp_min(1e-8))
        self.ready = True

    def forward(self, values: Tensor) -> Tensor:
        clamped = values.float().clamp(-self.alpha, self.alpha)
        with torch.no_grad():
            rounded = super().forward(clamped)
        return (rounded + (clamped - clamped.detach())).to(values.dtype)  # the bracket is 0: it carries the gradient


def lsq_factor(values_per_scale: int, qmax: int) -> float:
    """LSQ's gradient scale, 1 / sqrt(N Qp) [LSQ sec. 2.2]."""
    return 1.0 / math.sqrt(values_per_scale * max(qmax, 1))
