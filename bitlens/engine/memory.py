"""How much memory a network needs for each pixel of its input: what tiles are chosen by.

Networks for video whose memory was measured state it (`networks.memory`): t (features + attention t) bytes for each
pixel and t frames. The numbers are the largest peaks (VmHWM) that `tests/engine/test_memory.py` and docs/engine.md
describe, times `MARGIN`. The tensors of any other network are followed on torch's meta device, times `HEADROOM`. What
does not grow with the input (weights, compiled kernels, code) is not counted here.

torch convolves small inputs, of at most 20,480 channels x frames x rows, by a product with their patches: a copy 27
times as large (`patches_mb`). Larger inputs go to oneDNN, which makes none.
"""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bitlens.networks.memory import Memory
from bitlens.quant.layers import float_mode, quantized_layers

__all__ = ["FIXED_MB", "HEADROOM", "MARGIN", "alive_per_pixel", "bytes_per_pixel", "fixed_mb", "patches_mb"]

MARGIN = 1.25
"""Factor over what was measured: other thread counts, versions and CPUs."""
HEADROOM = {"torch": 2.5, "low-bit": 4.0, "openvino": 1.5, "onnxruntime": 12.0}
"""Factor over the tensors that are alive at once, by engine: operators copy their inputs, simulated grids more so, and
what is freed leaves gaps. An engine that is not named counts as low-bit.

Measured in float: 1.0 to 1.4 for one picture of 320 x 320 (PAN, IMDN, SwinIR), 2.0 after many tiles (PAN). OpenVINO, 8
bits, 256 x 256, compilation included: 0.4 (IMDN), 0.6 (PAN).
"""
FIXED_MB = 80
"""What running takes beside, at any size: scratch of kernels, compilation."""
SMALL = 20_480
"""Inputs of at most this many channels x frames x rows are convolved by patches in torch."""
SIDE = 64
"""Pixels along the sides of the picture that is followed through the network."""


def stated(network: nn.Module) -> Memory | None:
    """What a network says of its memory; None where it says nothing."""
    memory = getattr(network, "memory", None)
    return memory if isinstance(memory, Memory) else None


def patches_mb(network: nn.Module, frames: int, height: int, width: int) -> float:
    """MB that torch takes for patches of 3x3x3 convolutions, for a picture (or tile) of one size.

    Those of each kind of input count together, and half as much again: what one frees is not always what another takes.
    """
    volumes = () if (memory := stated(network)) is None else memory.volumes
    inputs = [(n, (height + down - 1) // down, (width + down - 1) // down) for n, down in volumes]
    values = sum(n * frames * rows * columns for n, rows, columns in inputs if n * frames * rows <= SMALL)
    return 1.5 * 27 * 4 * values / 2**20


def fixed_mb(network: nn.Module, threads: int = 1) -> float:
    """MB that running takes at any size: `FIXED_MB`, and the weights twice, in the order that kernels like."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) / 2**20
    each = 0.0 if (memory := stated(network)) is None else memory.thread_mb
    return FIXED_MB + 2 * weights + each * threads


def bytes_per_pixel(network: nn.Module, frames: int | None, engine: str = "torch", precision: str = "f32") -> float:
    """Bytes that a tile's pixel needs while the network runs, all frames together.

    Args:
        network: quantized or not.
        frames: of one measurement; None: the network enlarges pictures.
        engine: a name of `engine.registry.ENGINES`, as whose the memory counts.
        precision: of the engine's floats, "f32" or "bf16".

    Raises:
        TypeError: the network is called with something else than networks of its task.
    """
    kind = "low-bit" if engine == "torch" and quantized_layers(network) else engine
    if (memory := stated(network)) is None or frames is None:
        return HEADROOM.get(kind, HEADROOM["low-bit"]) * alive_per_pixel(network, frames)
    low = "low-bit" if quantized_layers(network) and "low-bit" in memory.needs else "torch"
    features, attention = memory.needs.get(engine) or memory.needs[low]
    copies = engine in ("reference", "onnxruntime") and engine not in memory.needs  # of sums in 64 or 32 bits
    half = 0.5 if engine == "openvino" and precision == "bf16" and engine in memory.needs else 1.0
    return MARGIN * (4 if copies else 1) * half * frames * (features + attention * frames)


class Following(TorchDispatchMode):
    """Adds up the storages of all tensors that are alive, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def follow(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, if it is new, until it is freed."""
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.leave, key)

    def leave(self, key: int) -> None:
        """Forget a storage that was freed."""
        self.now -= self.alive.pop(key)


def alive_per_pixel(network: nn.Module, frames: int | None = None) -> float:
    """Bytes of tensors that are alive at once, for each pixel of a measurement; of a picture where there are no frames.

    Nothing is computed: a copy of the network runs on torch's meta device, where tensors have sizes and no values.
    What the operators need inside themselves, a copy of their input at times, is not seen, nor what grids need.
    """
    copied = copy.deepcopy(network).to("meta").eval()
    sizes = [(1, 3, SIDE, SIDE)] if frames is None else [(1, SIDE, SIDE), (1, frames, SIDE, SIDE)]
    inputs, following = [torch.ones(size, device="meta") for size in sizes], Following()
    with torch.no_grad(), float_mode(copied), following:
        copied(*inputs)
    return following.peak / SIDE**2
