"""Integer convolutions, their output stage and temporal attention on CPUs, for codes of 8, 4, 3 and 2 bits.

    codes (t, h, w, c) u8  ->  Convolution  ->  sums, values, and codes of the next layers' grids

Memory is channels-last; a range of an array's channels is an array too. Every kernel has a scalar reference (level
"scalar") and equals it exactly, at every level that the CPU has. See docs/kernels.md for the mathematics.

>>> import numpy as np, bitlens_kernels as bk  # doctest: +SKIP
>>> convolution = bk.Convolution(weights, padding=(1, 1, 1), zero=3, largest=15, method="winograd2")  # doctest: +SKIP
>>> totals = convolution.totals(codes)  # (t, h, w, outputs) int32  # doctest: +SKIP
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitlens_kernels import library
from bitlens_kernels.library import LEVELS, METHODS, MOST_TARGETS

__version__ = "0.1.0"

Triple = tuple[int, int, int]


def best_level() -> str:
    """The newest instruction set of this CPU that there are kernels for, or what BITLENS_KERNELS_LEVEL names."""
    return levels()[-1]


def levels() -> tuple[str, ...]:
    """All that this CPU has, the oldest first."""
    return library.levels()


@dataclass(frozen=True)
class Target:
    """A grid that channels begin .. end - 1 of a result are written on.

    code = clamp(round(value / step + zero), low, high) - low, rounded half to even. `step` and `zero` are one number,
    or one for each of these channels.
    """

    codes: np.ndarray
    """(t, h, w, end - begin) uint8, the memory written to."""
    step: float | np.ndarray
    zero: float | np.ndarray
    low: int
    high: int
    begin: int = 0
    end: int | None = None
    """None: as many channels as `codes` has."""


@dataclass(frozen=True)
class Side:
    """A second convolution whose values, leaky(total * scale + bias), are added to those of another.

    It is direct, of the same level, and its outputs have the same size.
    """

    convolution: "Convolution"
    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None = None
    slope: float = 1.0


@dataclass(frozen=True)
class Handed:
    """Codes of as many channels as there are outputs, each of which is added to its own: code * weight."""

    codes: np.ndarray
    """(t, h, w, outputs) uint8."""
    weight: np.ndarray
    """(outputs,) float32."""


@dataclass(frozen=True)
class Output:
    """What becomes of sums: value = leaky(total * scale + bias + handed) + side + add, stored, and written on grids.

    Values (and what is added) are float32, or bfloat16 in arrays of uint16. `values` may be one of `add`. Arrays are
    channels-last memory or, with a spread s, array[:, i::s, j::s] of such: a pixel shuffle is s x s convolutions.
    """

    totals: np.ndarray | None = None
    """(t, h, w, outputs) int32."""
    scale: np.ndarray | None = None
    """(outputs,) float32; None: the totals are all that is wanted."""
    bias: np.ndarray | None = None
    handed: Handed | None = None
    slope: float = 1.0
    """Of LeakyReLU; 1: none."""
    add: Sequence[np.ndarray] = ()
    """At most two (t, h, w, outputs)."""
    side: Side | None = None
    values: np.ndarray | None = None
    targets: Sequence[Target] = ()
    spread: int = 1
    """Of pixels in all of the arrays, along rows and columns."""


class Convolution:
    """A convolution of u8 codes with s8 weights, packed for one method and one instruction set.

    Args:
        weights: (outputs, kt, kh, kw, channels) int8.
        stride, padding: of t, h, w; padded with the code `zero`.
        zero: the code of the value 0.
        largest: no input code is larger.
        method: "direct"; "winograd2", F(2x2,3x3); "winograd2wide", F(3x3,3x3); "winograd3", F(2x2x2,3x3x3);
            "lookup", of 2 bits.
        level: one of `levels()`; None: the best.

    Raises:
        ValueError: the method is not exact for these weights and codes, or does not do this geometry.
        TypeError: weights are not int8 of five axes.
    """

    def __init__(
        self,
        weights: np.ndarray,
        *,
        stride: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
        zero: int = 0,
        largest: int = 255,
        method: str = "direct",
        level: str | None = None,
    ):
        if weights.dtype != np.int8 or weights.ndim != 5:
            raise TypeError(f"weights {weights.dtype} {weights.shape}; wanted int8 (outputs, t, h, w, channels)")
        self.method, self.level = method, level or best_level()
        self.layer = library.layer(weights.shape, stride, padding, zero, largest)
        message = ctypes.create_string_buffer(160)
        packed = np.ascontiguousarray(weights)
        places = index(METHODS, method, "method"), index(LEVELS, self.level, "level")
        self.handle = library.functions().bk_create(self.layer, packed.ctypes.data, *places, message)
        if not self.handle:
            raise ValueError(f"{method} at level {self.level}: {message.value.decode()}; choose another one")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            library.functions().bk_destroy(self.handle)
            self.handle = None

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return library.functions().bk_packed_bytes(self.handle)

    def output_size(self, size: Triple) -> Triple:
        """(t, h, w) of the output for that of an input."""
        sizes = zip(size, self.layer.kernel, self.layer.stride, self.layer.padding, strict=True)
        t, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
        return t, h, w

    def workspace(self, size: Triple, threads: int = 1, side: "Convolution | None" = None) -> int:
        """Bytes of scratch memory that a run wants, with a `Side` that is computed by `side`."""
        source = library.Input(None, self.layer.channels, library.triple(size))
        own = library.functions().bk_workspace(self.handle, source, threads)
        return own if side is None else own + side.workspace(size, threads)

    def bind(self, codes: np.ndarray, output: Output, workspace: np.ndarray | None = None, threads: int = 1) -> "Call":
        """A call that is ready to be made again and again on the same memory.

        Raises:
            ValueError: an array has the wrong type, shape or strides, or the workspace is too small.
        """
        place(codes, np.uint8, (*codes.shape[:3], self.layer.channels), "codes")
        size = codes.shape[:3]
        shape = self.output_size(size)
        if min(shape) < 1 or threads < 1:
            raise ValueError(f"codes {codes.shape} on {threads} threads; wanted an output of one pixel or more")
        needed = self.workspace(size, threads, output.side and output.side.convolution)
        workspace = library.aligned(needed) if workspace is None else workspace
        if workspace.nbytes < needed or workspace.ctypes.data % library.ALIGN:
            raise ValueError(f"a workspace of {workspace.nbytes} bytes; wanted {needed}, aligned; see `workspace`")
        source = library.Input(codes.ctypes.data, pixel_stride(codes), library.triple(size))
        written, kept = output_struct(output, (*shape, self.layer.outputs))
        if output.side is not None:
            written.side, more = side_struct(output.side, (*shape, self.layer.outputs), self.level)
            kept += more
        arguments = (self.handle, source, written, workspace.ctypes.data, threads)
        return Call(library.functions().bk_run, arguments, (self, codes, workspace, *kept))

    def run(self, codes: np.ndarray, output: Output, threads: int = 1) -> None:
        """Convolve once, into the arrays of `output`."""
        self.bind(codes, output, threads=threads)()

    def totals(self, codes: np.ndarray, threads: int = 1) -> np.ndarray:
        """sum (x - zero) w: (t, h, w, outputs) int32."""
        totals = np.empty((*self.output_size(codes.shape[:3]), self.layer.outputs), np.int32)
        self.run(codes, Output(totals=totals), threads)
        return totals


class Call:
    """A kernel with its arguments, and what must stay alive while it may be called."""

    def __init__(self, function, arguments: tuple, kept: tuple):
        self.function, self.arguments, self.kept = function, arguments, kept

    def __call__(self) -> None:
        self.function(*self.arguments)


def fits(
    weights_shape: Sequence[int],
    lowest: int,
    highest: int,
    *,
    zero: int,
    largest: int,
    method: str,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
) -> bool:
    """Whether a method is exact for weights lowest .. highest and codes 0 .. largest, and does the geometry."""
    layer = library.layer(weights_shape, stride, padding, zero, largest)
    return bool(library.functions().bk_fits(layer, index(METHODS, method, "method"), lowest, highest))


def bind_finish(values: np.ndarray, output: Output, level: str | None = None, threads: int = 1) -> Call:
    """A call of the output stage alone, on values (t, h, w, c), float32 or bfloat16 (uint16)."""
    place(values, values_type(output, values), values.shape, "values")
    if output.side is not None or output.spread != 1:
        raise ValueError("a side or a spread came; wanted none: values have no convolution of their own")
    written, kept = output_struct(output, values.shape, values)
    t, h, w, c = values.shape
    arguments = (t * h * w, c, values.ctypes.data, pixel_stride(values), written)
    return Call(library.functions().bk_finish, (*arguments, level_index(level), threads), (values, *kept))


@dataclass(frozen=True)
class Attention:
    """The grids of temporal attention over codes of q, k and v, of each head unless said otherwise."""

    heads: int
    zeros: np.ndarray
    """(4, heads): codes of zero of q, k, weights and v, in the u8 container; integers."""
    score_unit: np.ndarray
    """(heads,): value of one unit of the sum q k, times the scale of scores."""
    weight_step: np.ndarray
    weight_low: int
    """The smallest code of the weights on their own grid; the container's is 0."""
    weight_high: int
    mixed_unit: np.ndarray
    """(heads,): value of one unit of the sum of weights v."""


def bind_attend(
    attention: Attention,
    codes: np.ndarray,
    target: Target,
    *,
    scores: np.ndarray | None = None,
    mixed: np.ndarray | None = None,
    level: str | None = None,
    threads: int = 1,
) -> Call:
    """A call of attention on codes (t, h, w, 3 inner) of q, k, v; writes (t, h, w, inner) codes of one grid.

    `scores` (pixels, heads, t, t) and `mixed` (pixels, heads, t, depth) take the exact sums.
    """
    t, h, w, channels = codes.shape
    depth = channels // 3 // attention.heads
    if channels != 3 * depth * attention.heads or not 1 <= t <= 64 or not 1 <= depth <= 256:
        raise ValueError(f"codes {codes.shape} for {attention.heads} heads; wanted 3 heads d channels, 1 to 64 frames")
    place(codes, np.uint8, codes.shape, "codes")
    place(target.codes, np.uint8, (t, h, w, channels // 3), "the target's codes")
    pixels, heads = h * w, attention.heads
    shapes = ((4, heads), (heads,), (heads,), (heads,))
    tables = (attention.zeros, attention.score_unit, attention.mixed_unit, attention.weight_step)
    numbers = [np.ascontiguousarray(np.broadcast_to(v, s), np.float32) for v, s in zip(tables, shapes, strict=True)]
    for array, last in ((scores, t), (mixed, depth)):
        if array is not None and (array.shape != (pixels, heads, t, last) or array.dtype != np.int32):
            raise ValueError(f"sums {array.dtype} {array.shape}; wanted int32 {(pixels, heads, t, last)}")
    struct = library.AttentionStruct(
        *(t, heads, depth, pixels, pixel_stride(codes), pixel_stride(target.codes), codes.ctypes.data),
        *(array.ctypes.data for array in numbers),
        *(attention.weight_low, attention.weight_high, target.codes.ctypes.data),
        *(float(target.step), float(target.zero), target.low, target.high),
        *(array.ctypes.data if array is not None else None for array in (scores, mixed)),
    )
    kept = (codes, target, numbers, scores, mixed)
    return Call(library.functions().bk_attend, (struct, level_index(level), threads), kept)


def bind_denoise(
    frames: np.ndarray, result: np.ndarray, weight: float, steps: int, level: str | None = None, threads: int = 1
) -> Call:
    """A call of total-variation denoising on pictures (..., h, w), float32, by a number of dual steps from 0.

        argmin_u 1/2 ||u - frame||^2 + weight sum_pixels |grad u|          as far as the steps come

    Raises:
        ValueError: an array is not float32 or not contiguous, the shapes differ, or there is no pixel, weight or step.
    """
    shapes = frames.shape == result.shape and frames.ndim >= 2 and frames.size > 0
    fine = all(array.dtype == np.float32 and array.flags.c_contiguous for array in (frames, result))
    if not (shapes and fine) or not weight > 0 or steps < 1 or threads < 1 or np.shares_memory(frames, result):
        raise ValueError(
            f"frames {frames.dtype} {frames.shape}, result {result.dtype} {result.shape}, weight {weight}, {steps=}; "
            "wanted float32 of one shape, contiguous and apart, a weight above 0 and a step or more"
        )
    height, width = frames.shape[-2:]
    count = frames.size // (height * width)
    struct = library.DenoisingStruct(frames.ctypes.data, result.ctypes.data, count, height, width, steps, weight)
    return Call(library.functions().bk_denoise, (struct, level_index(level), threads), (frames, result))


def peak(level: str | None = None) -> float:
    """1e9 multiply-accumulates a second of one core in registers, measured now; 0 for the scalar level."""
    return library.functions().bk_peak(level_index(level))


def level_index(level: str | None) -> int:
    """The place of a level that this CPU has; None: of the best one."""
    level = level or best_level()
    index(levels(), level, "level")
    return LEVELS.index(level)


def index(names: Sequence[str], name: str, what: str) -> int:
    """The place of a name in its list."""
    if name not in names:
        raise ValueError(f"{what} {name!r}; wanted one of {', '.join(names)}; choose one")
    return names.index(name)


def place(array: np.ndarray, kind: type, shape: tuple[int, ...], what: str, spread: int = 1) -> None:
    """Refuse an array of another type or shape, or whose pixels are not equally far apart."""
    if array.dtype != kind or array.shape != tuple(shape) or array.ndim != 4:
        raise ValueError(f"{what} {array.dtype} {array.shape}; wanted {np.dtype(kind)} {tuple(shape)}")
    size, (_, h, w, _) = array.itemsize, array.shape
    wanted = (h * w * spread * array.strides[2], w * spread * array.strides[2], array.strides[2], size)
    regular = all(n == 1 or s == want for n, s, want in zip(array.shape, array.strides, wanted, strict=True))
    if not regular or array.strides[2] % (size * spread) or array.strides[2] < 0:
        raise ValueError(f"{what} with strides {array.strides}; wanted channels-last memory: make it contiguous")


def pixel_stride(array: np.ndarray, spread: int = 1) -> int:
    """Elements between neighbouring pixels, `spread` of which are between those of the array."""
    return array.strides[2] // array.itemsize // spread


def values_type(output: Output, values: np.ndarray | None) -> type:
    """float32, or uint16 where the values of an output are bfloat16."""
    present = [v for v in (values, output.values, *output.add) if v is not None]
    return np.uint16 if present and present[0].dtype == np.uint16 else np.float32


def output_struct(output: Output, shape: tuple[int, ...], values: np.ndarray | None = None):
    """The C struct of an output, and what must stay alive with it."""
    struct, kind, kept = library.OutputStruct(), values_type(output, values), [output]
    struct.slope, struct.half, struct.spread = output.slope, int(kind is np.uint16), (spread := output.spread)
    if spread < 1 or not 0 <= output.slope <= 1 or len(output.add) > 2 or len(output.targets) > MOST_TARGETS:
        raise ValueError(
            f"slope {output.slope}, {len(output.add)} sums, {len(output.targets)} targets, spread {spread}; "
            f"wanted 0 to 1, at most 2 and {MOST_TARGETS}, and 1 or more"
        )
    if output.totals is not None:
        place(output.totals, np.int32, shape, "totals", spread)
        struct.totals, struct.totals_stride = output.totals.ctypes.data, pixel_stride(output.totals, spread)
    if output.scale is not None:
        kept += set_scale(struct, output, shape[-1])
    if output.handed is not None:
        codes, weight = output.handed.codes, np.ascontiguousarray(output.handed.weight, np.float32)
        place(codes, np.uint8, shape, "codes that are handed on", spread)
        if weight.shape != shape[-1:]:
            raise ValueError(f"weights {weight.shape} of codes that are handed on; wanted {shape[-1:]}")
        struct.handed = library.HandedStruct(codes.ctypes.data, pixel_stride(codes, spread), weight.ctypes.data)
        kept.append(weight)
    for i, added in enumerate(output.add):
        place(added, kind, shape, "what is added", spread)
        struct.add[i], struct.add_stride[i] = added.ctypes.data, pixel_stride(added, spread)
    if output.values is not None:
        place(output.values, kind, shape, "values", spread)
        struct.values, struct.values_stride = output.values.ctypes.data, pixel_stride(output.values, spread)
    struct.targets = len(output.targets)
    for i, target in enumerate(output.targets):
        channels = target.codes.shape[-1]
        end = target.begin + channels if target.end is None else target.end
        if target.begin < 0 or end > shape[-1] or end - target.begin != channels or target.high - target.low > 255:
            raise ValueError(f"channels {target.begin} to {end} of {shape[-1]} as {channels}; wanted a range of them")
        place(target.codes, np.uint8, (*shape[:3], channels), "a target's codes", spread)
        step, zero = (
            np.ascontiguousarray(np.broadcast_to(v, (channels,)), np.float32) for v in (target.step, target.zero)
        )
        inverse = np.float32(1) / step
        kept += [step, zero, inverse]
        struct.target[i] = library.TargetStruct(
            *(target.codes.ctypes.data, pixel_stride(target.codes, spread), target.begin, end),
            *(step.ctypes.data, zero.ctypes.data, inverse.ctypes.data, target.low, target.high),
        )
    return struct, kept


def set_scale(struct, given: Output | Side, channels: int) -> list[np.ndarray]:
    """Set scale and bias of each channel; returns what must stay alive with them."""
    bias = np.zeros(channels, np.float32) if given.bias is None else given.bias
    numbers = [np.ascontiguousarray(np.broadcast_to(v, (channels,)), np.float32) for v in (given.scale, bias)]
    struct.scale, struct.bias = (array.ctypes.data for array in numbers)
    return numbers


def side_struct(side: Side, shape: tuple[int, ...], level: str):
    """The C struct of a side, and what must stay alive with it."""
    convolution, codes = side.convolution, side.codes
    place(codes, np.uint8, (*codes.shape[:3], convolution.layer.channels), "a side's codes")
    found = (*convolution.output_size(codes.shape[:3]), convolution.layer.outputs)
    if found != shape or (convolution.method, convolution.level) != ("direct", level) or not 0 <= side.slope <= 1:
        raise ValueError(
            f"a side with outputs {found}, {convolution.method}, {convolution.level}, slope {side.slope}; "
            f"wanted {shape}, direct, {level}, 0 to 1"
        )
    source = library.Input(codes.ctypes.data, pixel_stride(codes), library.triple(codes.shape[:3]))
    struct = library.SideStruct(convolution.handle, source)
    struct.slope = side.slope
    return struct, [side, *set_scale(struct, side, shape[-1])]
