"""The Swin block in one pass over windows: normalization, attention and feed-forward network, on codes of every grid.

    x (t, h, w, c) f32  ->  SwinBlock  ->  x + attention + feed-forward (t, h, w, c) f32

Every level equals the scalar reference bit for bit. See docs/kernels.md.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitlens_kernels import LEVELS, Call, best_level, index, library, pixel_stride, place

GRIDS = ("q", "k", "attention", "v")


@dataclass(frozen=True)
class Grid:
    """code = clamp(round(value / step) + zero, 0, largest), rounded half to even."""

    step: float
    zero: int
    """The code of the value 0, in 0 .. 255."""
    largest: int


@dataclass(frozen=True)
class Linear:
    """value = sum (x - zero) w * scale + bias, for codes x of values on the grid of the input."""

    input: Grid
    weights: np.ndarray
    """(outputs, inputs) int8."""
    scale: np.ndarray
    """(outputs,): value of one unit of each output's sum."""
    bias: np.ndarray


@dataclass(frozen=True)
class Swin:
    """What a Swin block computes with.

    score = q k factor + position [- 100 where two tokens of a shifted window were apart]; q, k, v: outputs of qkv, in
    this order, the channels of one head after those of the other.
    """

    heads: int
    window: int
    norm1: tuple[np.ndarray, np.ndarray]
    """Weight and bias of each channel."""
    norm2: tuple[np.ndarray, np.ndarray]
    qkv: Linear
    proj: Linear
    fc1: Linear
    fc2: Linear
    q: Sequence[Grid]
    """Of each head, as the three others."""
    k: Sequence[Grid]
    attention: Sequence[Grid]
    """Of the weights of attention."""
    v: Sequence[Grid]
    factor: float
    position: np.ndarray
    """(heads, tokens, tokens): of query and key; tokens = window * window, row by row."""
    epsilon: float = 1e-5


class SwinBlock:
    """A Swin block, packed for one instruction set.

    Args:
        swin: its weights, grids and constants.
        level: one of `levels()`; None: the best.

    Raises:
        ValueError: arrays of the wrong shape, or grids that are none.
        TypeError: weights that are not int8.
    """

    def __init__(self, swin: Swin, level: str | None = None):
        self.swin, self.level = swin, level or best_level()
        self.channels = len(swin.fc2.weights)
        struct, kept = swin_struct(swin, self.channels)
        message = ctypes.create_string_buffer(160)
        create = library.functions().bk_swin_create
        self.handle = create(struct, index(LEVELS, self.level, "level"), message)
        del kept
        if not self.handle:
            raise ValueError(f"a Swin block at level {self.level}: {message.value.decode()}; correct it")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            library.functions().bk_swin_destroy(self.handle)
            self.handle = None

    def workspace(self, threads: int = 1) -> int:
        """Bytes of scratch memory that a run wants."""
        return library.functions().bk_swin_workspace(self.handle, threads)

    def trace_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """(windows, bytes of one window's codes) for values of a shape; see `split_trace`."""
        t, h, w, _ = shape
        return t * (h // self.swin.window) * (w // self.swin.window), library.functions().bk_swin_trace(self.handle)

    def bind(
        self,
        values: np.ndarray,
        result: np.ndarray | None = None,
        *,
        shift: int = 0,
        workspace: np.ndarray | None = None,
        threads: int = 1,
        trace: np.ndarray | None = None,
    ) -> Call:
        """A call that is ready to be made again and again on the same memory.

        Args:
            values: (t, h, w, c) float32, h and w in whole windows.
            result: the same shape; None: `values` is written over.
            shift: where the first window begins, in both directions.
            trace: at the scalar level, takes the codes of every grid: `trace_shape`, uint8.

        Raises:
            ValueError: an array has the wrong type, shape or strides, or the workspace is too small.
        """
        result, window = values if result is None else result, self.swin.window
        shape = (*values.shape[:3], self.channels)
        place(values, np.float32, shape, "values")
        place(result, np.float32, shape, "the result")
        if values.shape[1] % window or values.shape[2] % window or not 0 <= shift < window or threads < 1:
            raise ValueError(
                f"values {values.shape}, shift {shift}, {threads} threads; wanted whole windows of {window} pixels, "
                "a shift below that, one thread or more"
            )
        needed = self.workspace(threads)
        workspace = library.aligned(needed) if workspace is None else workspace
        if workspace.nbytes < needed or workspace.ctypes.data % library.ALIGN:
            raise ValueError(f"a workspace of {workspace.nbytes} bytes; wanted {needed}, aligned; see `workspace`")
        if trace is not None and (trace.dtype != np.uint8 or trace.shape != self.trace_shape(shape)):
            raise ValueError(f"a trace {trace.dtype} {trace.shape}; wanted uint8 {self.trace_shape(shape)}")
        call = library.SwinCall(
            *(values.ctypes.data, result.ctypes.data, pixel_stride(values), pixel_stride(result)),
            *(library.triple(values.shape[:3]), shift, None if trace is None else trace.ctypes.data),
        )
        arguments = (self.handle, call, workspace.ctypes.data, threads)
        return Call(library.functions().bk_swin_run, arguments, (self, values, result, workspace, trace))

    def split_trace(self, trace: np.ndarray) -> dict[str, np.ndarray]:
        """The codes in a trace by name of their grid: (windows, tokens, channels); attention (windows, heads, s, s)."""
        swin, s, c = self.swin, self.swin.window**2, self.channels
        shapes = dict.fromkeys(("normed1", "q", "k", "v"), (s, c)) | {"attention": (swin.heads, s, s)}
        shapes |= {"mixed": (s, c), "normed2": (s, c), "hidden": (s, len(swin.fc1.weights))}
        ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
        parts = np.split(trace, ends[:-1], axis=1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def swin_struct(swin: Swin, channels: int):
    """The C struct of a block, and what must stay alive with it."""
    struct, kept, hidden = library.SwinStruct(), [], len(swin.fc1.weights)
    struct.channels, struct.heads, struct.hidden, struct.window = channels, swin.heads, hidden, swin.window
    struct.epsilon, struct.factor = swin.epsilon, swin.factor

    def numbers(array: np.ndarray, shape: tuple[int, ...], what: str) -> int:
        if array.shape != shape:
            raise ValueError(f"{what} {array.shape}; wanted {shape}")
        kept.append(np.ascontiguousarray(array, np.float32))
        return kept[-1].ctypes.data

    for name in ("norm1", "norm2"):
        for i, array in enumerate(getattr(swin, name)):
            getattr(struct, name)[i] = numbers(array, (channels,), name)
    shapes = dict(qkv=(3 * channels, channels), proj=(channels, channels))
    shapes |= dict(fc1=(hidden, channels), fc2=(channels, hidden))
    for name, shape in shapes.items():
        layer = getattr(swin, name)
        if layer.weights.dtype != np.int8:
            raise TypeError(f"weights of {name} {layer.weights.dtype}; wanted int8")
        if layer.weights.shape != shape:
            raise ValueError(f"weights of {name} {layer.weights.shape}; wanted {shape}")
        kept.append(np.ascontiguousarray(layer.weights))
        vectors = (numbers(getattr(layer, key), shape[:1], f"{key} of {name}") for key in ("scale", "bias"))
        setattr(struct, name, library.LinearStruct(grid_struct(layer.input), kept[-1].ctypes.data, *vectors))
    for name in GRIDS:
        grids = getattr(swin, name)
        if len(grids) != swin.heads:
            raise ValueError(f"{len(grids)} grids of {name}; wanted one for each of {swin.heads} heads")
        kept.append((library.GridStruct * swin.heads)(*map(grid_struct, grids)))
        setattr(struct, name, kept[-1])
    struct.position = numbers(swin.position, (swin.heads, swin.window**2, swin.window**2), "position")
    return struct, kept


def grid_struct(grid: Grid) -> library.GridStruct:
    """The C struct of a grid."""
    return library.GridStruct(grid.step, grid.zero, grid.largest)
