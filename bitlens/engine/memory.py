"""How much memory a reconstruction needs for each pixel, from the network's widths: what tiles are chosen by.

A network of width c (`in_ch`) holds some feature maps of about 2c channels in full resolution at its busiest place, FEM
or VRM, and attention holds (t x t) scores per pixel. So the need is t (features + attention t), with

    features: A c                     bytes per pixel and frame
    attention: B w, w channels of a group, where products are expanded (OpenVINO), else B per head

DUN has its c channels at half of height and width, and no attention.

The numbers are the largest peaks (VmHWM) that `tests/engine/test_memory.py` and docs/engine.md describe, times
`MARGIN`. What does not grow with the picture (weights, compiled kernels, code) is not counted here.

torch convolves small inputs, of at most 20,480 channels x frames x rows, by a product with their patches: a copy 27
times as large (`patches_mb`). Larger inputs go to oneDNN, which makes none.
"""

from torch import nn

from bitlens.engine.refusals import unknown
from bitlens.networks.classical import GapTV
from bitlens.networks.dun import DUN
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.stformer import STFormer
from bitlens.quant.layers import quantized_layers

__all__ = ["FIXED_MB", "MARGIN", "bytes_per_pixel", "fixed_mb", "patches_mb"]

MARGIN = 1.25
"""Factor over what was measured: other thread counts, versions and CPUs."""
FIXED_MB = 80
"""What running takes beside, at any size: scratch of kernels, compilation."""

SMALL = 20_480
"""Inputs of at most this many channels x frames x rows are convolved by patches in torch."""


def patches_mb(network: nn.Module, frames: int, height: int, width: int) -> float:
    """MB that torch takes for patches of the 3x3x3 convolutions of EfficientSCI, for a picture (or tile) of one size.

    Those of each kind of input count together, and half as much again: what one frees is not always what another takes.
    """
    if not isinstance(network, EfficientSCI):
        return 0.0
    c, group = network.config["in_ch"], 4 * network.config["in_ch"] // network.config["group_num"]
    inputs = (c, height, width), (2 * c, height, width), (group, height // 2 + 1, width // 2 + 1)
    values = sum(n * frames * rows * columns for n, rows, columns in inputs if n * frames * rows <= SMALL)
    return 1.5 * 27 * 4 * values / 2**20


def fixed_mb(network: nn.Module, threads: int = 1) -> float:
    """MB that running takes at any size: `FIXED_MB`, and the weights twice, in the order that kernels like.

    STFormer was seen to take 100 MB more for each of torch's threads.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters()) / 2**20
    return FIXED_MB + 2 * weights + (100 * threads if isinstance(network, STFormer) else 0)


def bytes_per_pixel(network: nn.Module, frames: int, engine: str = "torch", precision: str = "f32") -> float:
    """Bytes that a tile's pixel needs while the network runs, all frames together.

    Args:
        network: EfficientSCI, STFormer or DUN, quantized or not, or GapTV.
        frames: of one measurement.
        engine: "openvino", "native", "reference"; all others count as "torch".
        precision: of the engine's floats, "f32" or "bf16".

    Raises:
        TypeError: there are no measurements for this network.
    """
    low = bool(quantized_layers(network))
    if isinstance(network, GapTV):
        features, attention = 72.0, 0.0
    elif isinstance(network, EfficientSCI):
        c = network.config["in_ch"]
        width = 4 * c // network.config["group_num"]
        if engine == "openvino":
            features, attention = 16.0 * c, (0.5 if low else 0.38) * width
            if precision == "f32":
                features, attention = 2 * features, 2 * attention
        elif engine == "native":  # its memory is planned: at most 10.8 c in float32, 8.8 c in bf16 (-B with shortcuts)
            features, attention = (11.0 if precision == "f32" else 9.0) * c, 0.0
        else:
            features, attention = (70.0 if low else 60.0) * c, 24.0 if low else 8.0
    elif isinstance(network, DUN):
        planned = 4.0 if engine == "native" else 12.0  # 2.7 is planned
        features, attention = planned * network.config["widths"][0], 0.0
    elif isinstance(network, STFormer):
        planned = 100.0 if engine == "native" else 240.0 if low else 200.0  # 36 is planned, and torch copies
        features, attention = planned * network.config["dim"], 24.0 if low else 8.0
    else:
        measured = "EfficientSCI, STFormer, DUN or GapTV, whose memory was measured"
        raise TypeError(f"{unknown(network, measured)}; run it on whole pictures")
    several = 4.0 if engine == "reference" else 1.0  # 64-bit integers and their copies
    return MARGIN * several * frames * (features + attention * frames)
