"""What every engine's check shares: the scene to check on, layer-by-layer comparison, and what a check depends on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitlens import tasks
from bitlens.engine.lower import IntegerProduct, Lowered, runs_in_integers
from bitlens.engine.reference import reference_network

CHECK_SIZE = (4, 16, 16)
"""Frames, height and width of the video on which layers are checked."""

PICTURE_SIZE = (24, 20)
"""Height and width of the picture on which layers are checked: not whole windows."""


class ComputesWrongly(ValueError):
    """An engine was compared with the reference on this machine, and a layer differs: it must not run the network."""


@dataclass(frozen=True)
class Check:
    """How one layer fared on an engine."""

    name: str
    kernel: str
    """The engine's name of the kernel that runs it; OpenVINO's ends in I8 where it computes in integers."""
    snr: float
    """dB of the engine's output against the reference's, for the same input, in the engine's precision."""
    snr_f32: float
    """The same where what is not integer is float32."""


def in_integers(kernel: str) -> bool:
    """Whether a kernel, by its engine's name for it, multiplies integers."""
    return kernel.endswith("I8") or "MatMulInteger" in kernel


def example(network: nn.Module, *size: int) -> tuple[Tensor, ...]:
    """What a network is checked with, or written down for: what its task has it called with, always the same.

    Args:
        size: of a picture, or of a video, in place of the usual one.
    """
    if tasks.of(network).still:
        return (check_picture(size or PICTURE_SIZE),)
    return check_capture(size or (made_for(network) or CHECK_SIZE[0], *CHECK_SIZE[1:]))


def made_for(network: nn.Module) -> int | None:
    """The number of frames, or the most, that a network is made for: `frames` in its `config`; None: any."""
    return getattr(network, "config", {}).get("frames")


def check_capture(size: Sequence[int] = CHECK_SIZE) -> tuple[Tensor, Tensor]:
    """Measurement (1, h, w) and mask (1, t, h, w) of a smooth random scene behind a random mask, always the same."""
    generator = torch.Generator().manual_seed(0)
    frames, height, width = size
    scene = F.interpolate(torch.rand(1, 1, 2, 4, 4, generator=generator), tuple(size), mode="trilinear")[0]  # 1 t h w
    mask = (torch.rand(1, frames, height, width, generator=generator) < 0.5).float()
    return (mask * scene).sum(1), mask


def check_picture(size: Sequence[int] = PICTURE_SIZE) -> Tensor:
    """The picture (1, 3, h, w) on which layers are checked: smooth, always the same."""
    coarse = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, tuple(size), mode="bilinear")


@torch.no_grad()
def compare_layers(
    network: nn.Module, lowered: Lowered, heard: Mapping[str, tuple[list[Tensor], Tensor]], channels: int = 1
) -> dict[str, float]:
    """dB of each layer's output against the integer reference's, for the inputs that the engine gave that layer.

    Layers that engines compute in float are compared with fake quantization. The inputs come from the engine so that
    one layer's rounding ties do not count against the next one.

    Args:
        heard: inputs and output of each layer, by dotted name.
        channels: the axis in which linear layers were heard to have their channels; -1: the last, as in torch.
    """
    twin, snrs = reference_network(network), {}
    for name, (inputs, output) in heard.items():
        layer = lowered.layers.get(name)
        in_integers = isinstance(layer, IntegerProduct) or (layer is not None and runs_in_integers(layer))
        reference = (twin if in_integers else network).get_submodule(name)
        if is_linear(network.get_submodule(name)):
            wanted = reference(inputs[0].movedim(channels, -1)).movedim(-1, channels)
        else:
            wanted = reference(*inputs)
        snrs[name] = snr(output, wanted)
    return snrs


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer, quantized or not, is linear: its channels come last."""
    return isinstance(getattr(layer, "layer", layer), nn.Linear)


def snr(value: Tensor, wanted: Tensor) -> float:
    """10 log10(||wanted||^2 / ||value - wanted||^2), capped at 200 dB."""
    error, power = (value - wanted).double().square().sum(), wanted.double().square().sum()
    return float(10 * torch.log10((power + 1e-30) / (error + 1e-20 * power + 1e-50)))


def fingerprint(network: nn.Module, lowered: Lowered, facts: Any) -> str:
    """A hash of a network, its weights, what became of its layers, and `facts`."""
    digest = hashlib.sha256(repr((facts, getattr(network, "config", None), lowered.report)).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
