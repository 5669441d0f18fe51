"""The shared library through ctypes: its structs and functions, as src/abi.h has them."""

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np

ABI = 7
ALIGN = 64
MOST_TARGETS = 8
LEVELS = ("scalar", "avx2", "avx512-vnni", "avx512-vbmi", "neon")
"""Instruction sets, as abi.h numbers them; of those of one CPU, each includes those before it."""
METHODS = ("direct", "winograd2", "winograd3", "lookup", "winograd2wide")

Triple = c_int32 * 3


class Layer(ctypes.Structure):
    _fields_ = [
        *[("channels", c_int32), ("outputs", c_int32), ("kernel", Triple), ("stride", Triple), ("padding", Triple)],
        *[("zero", c_int32), ("largest", c_int32)],
    ]


class Input(ctypes.Structure):
    _fields_ = [("codes", c_void_p), ("stride", c_int64), ("size", Triple)]


class TargetStruct(ctypes.Structure):
    _fields_ = [
        *[("codes", c_void_p), ("stride", c_int64), ("begin", c_int32), ("end", c_int32)],
        *[("step", c_void_p), ("zero", c_void_p), ("inverse", c_void_p), ("low", c_float), ("high", c_float)],
    ]


class SideStruct(ctypes.Structure):
    _fields_ = [
        *[("convolution", c_void_p), ("input", Input), ("scale", c_void_p), ("bias", c_void_p), ("slope", c_float)],
    ]


class HandedStruct(ctypes.Structure):
    _fields_ = [("codes", c_void_p), ("stride", c_int64), ("weight", c_void_p)]


class OutputStruct(ctypes.Structure):
    _fields_ = [
        *[("totals", c_void_p), ("totals_stride", c_int64), ("scale", c_void_p), ("bias", c_void_p)],
        *[
            ("handed", HandedStruct),
            ("slope", c_float),
            ("half", c_int32),
            ("spread", c_int32),
            ("add", c_void_p * 2),
            ("add_stride", c_int64 * 2),
        ],
        *[("side", SideStruct), ("values", c_void_p), ("values_stride", c_int64), ("targets", c_int32)],
        ("target", TargetStruct * MOST_TARGETS),
    ]


class AttentionStruct(ctypes.Structure):
    _fields_ = [
        *[("tokens", c_int32), ("heads", c_int32), ("depth", c_int32)],
        *[("pixels", c_int64), ("stride", c_int64), ("output_stride", c_int64), ("codes", c_void_p)],
        *[("zeros", c_void_p), ("score_unit", c_void_p), ("mixed_unit", c_void_p), ("weight_step", c_void_p)],
        *[("weight_low", c_float), ("weight_high", c_float), ("output", c_void_p)],
        *[("output_step", c_float), ("output_zero", c_float), ("output_low", c_float), ("output_high", c_float)],
        *[("scores", c_void_p), ("mixed", c_void_p)],
    ]


class DenoisingStruct(ctypes.Structure):
    _fields_ = [
        *[("frames", c_void_p), ("result", c_void_p), ("count", c_int64)],
        *[("height", c_int32), ("width", c_int32), ("steps", c_int32), ("weight", c_float)],
    ]


class GridStruct(ctypes.Structure):
    _fields_ = [("step", c_float), ("zero", c_int32), ("largest", c_int32)]


class LinearStruct(ctypes.Structure):
    _fields_ = [("input", GridStruct), ("weights", c_void_p), ("scale", c_void_p), ("bias", c_void_p)]


class SwinStruct(ctypes.Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("channels", "heads", "hidden", "window")],
        *[("epsilon", c_float), ("norm1", c_void_p * 2), ("norm2", c_void_p * 2)],
        *[(name, LinearStruct) for name in ("qkv", "proj", "fc1", "fc2")],
        *[(name, POINTER(GridStruct)) for name in ("q", "k", "attention", "v")],
        *[("factor", c_float), ("position", c_void_p)],
    ]


class SwinCall(ctypes.Structure):
    _fields_ = [
        *[("input", c_void_p), ("output", c_void_p), ("input_stride", c_int64), ("output_stride", c_int64)],
        *[("size", Triple), ("shift", c_int32), ("trace", c_void_p)],
    ]


SIGNATURES = {
    "bk_abi": (c_int, []),
    "bk_has": (c_int, [c_int]),
    "bk_fits": (c_int, [POINTER(Layer), c_int, c_int, c_int]),
    "bk_create": (c_void_p, [POINTER(Layer), c_void_p, c_int, c_int, c_char_p]),
    "bk_destroy": (None, [c_void_p]),
    "bk_packed_bytes": (c_int64, [c_void_p]),
    "bk_workspace": (c_int64, [c_void_p, POINTER(Input), c_int]),
    "bk_run": (None, [c_void_p, POINTER(Input), POINTER(OutputStruct), c_void_p, c_int]),
    "bk_finish": (None, [c_int64, c_int32, c_void_p, c_int64, POINTER(OutputStruct), c_int, c_int]),
    "bk_attend": (None, [POINTER(AttentionStruct), c_int, c_int]),
    "bk_denoise": (None, [POINTER(DenoisingStruct), c_int, c_int]),
    "bk_swin_create": (c_void_p, [POINTER(SwinStruct), c_int, c_char_p]),
    "bk_swin_destroy": (None, [c_void_p]),
    "bk_swin_workspace": (c_int64, [c_void_p, c_int]),
    "bk_swin_trace": (c_int64, [c_void_p]),
    "bk_swin_run": (None, [c_void_p, POINTER(SwinCall), c_void_p, c_int]),
    "bk_peak": (c_double, [c_int]),
}


@functools.cache
def functions() -> ctypes.CDLL:
    """The library beside this file, or the one that BITLENS_KERNELS_LIBRARY names.

    Raises:
        ImportError: it is not there, or it is of another version.
    """
    path = Path(os.environ.get("BITLENS_KERNELS_LIBRARY") or Path(__file__).parent / "_kernels.so")
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"no kernels at {path} ({error}); wanted the built package; run pip install ./kernels"
        ) from error
    if found.bk_abi() != ABI:
        raise ImportError(f"the kernels at {path} are of version {found.bk_abi()}; wanted {ABI}; build them again")
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def levels() -> tuple[str, ...]:
    """What this CPU has, the oldest first, up to the one that BITLENS_KERNELS_LEVEL names."""
    there = tuple(name for place, name in enumerate(LEVELS) if functions().bk_has(place))
    asked = os.environ.get("BITLENS_KERNELS_LEVEL")
    if asked is None:
        return there
    if asked not in there:
        wanted = f"wanted one of {', '.join(there)}; choose one, or unset it"
        raise ValueError(f"BITLENS_KERNELS_LEVEL is {asked!r}; {wanted}")
    return there[: there.index(asked) + 1]


def layer(shape: Sequence[int], stride: Sequence[int], padding: Sequence[int], zero: int, largest: int) -> Layer:
    """The struct of a layer with weights (outputs, kt, kh, kw, channels)."""
    outputs, *kernel, channels = shape
    return Layer(channels, outputs, triple(kernel), triple(stride), triple(padding), zero, largest)


def triple(numbers: Sequence[int]) -> "ctypes.Array[c_int32]":
    """Three numbers of t, h, w."""
    return Triple(*numbers)


def aligned(count: int) -> np.ndarray:
    """Bytes of memory whose address is a multiple of ALIGN."""
    count = max(count, 1)
    memory = np.empty(count + ALIGN, np.uint8)
    skip = -memory.ctypes.data % ALIGN
    return memory[skip : skip + count]
