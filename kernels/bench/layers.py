"""Each kernel on layers of networks, against this CPU's own peak and other int8 convolutions, in turn, on one thread.

    python kernels/bench/layers.py [--only efficientsci-s] [--rounds 7] [--json results/experiments/kernels.json]

Times are processor times: what other processes take does not count, only how they disturb caches and clock. Effective
GMAC/s are those of the direct convolution, whatever the method multiplies. Every kernel writes u8 codes of the next
grid; ours apply LeakyReLU on the way. A method takes the same time at any bits that it is exact for, so each runs at
the most. Videos are 8 x 256 x 256, pictures 128 x 128.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bitlens_kernels as bk
import numpy as np

from bitlens.bench import environment

BITS = {"direct": 8, "winograd2": 4, "winograd3": 3, "winograd2wide": 2, "lookup": 2}
"""The most bits of weights and activations alike that each method is exact for."""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Layer:
    """A convolution of a network."""

    network: str
    name: str
    channels: int
    outputs: int
    kernel: Triple
    size: Triple
    """Of the input: frames, height, width."""
    stride: Triple = (1, 1, 1)

    @property
    def padding(self) -> Triple:
        """As much as keeps the size where the stride is 1."""
        t, h, w = (k // 2 for k in self.kernel)
        return t, h, w

    @property
    def output_size(self) -> Triple:
        """Frames, height, width."""
        sizes = zip(self.size, self.kernel, self.padding, self.stride, strict=True)
        t, h, w = ((n + 2 * p - k) // s + 1 for n, k, p, s in sizes)
        return t, h, w

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct convolution."""
        return self.channels * self.outputs * int(np.prod(self.kernel)) * int(np.prod(self.output_size))


def efficientsci(name: str, c: int) -> list[Layer]:
    """The kinds of layers that take most of an EfficientSCI of width c."""
    half, full, g = (8, 128, 128), (8, 256, 256), 2 * c
    return [
        Layer(name, "fem.2", c, g, (3, 3, 3), full),
        Layer(name, "fem.4", g, 4 * c, (3, 3, 3), full, (1, 2, 2)),
        Layer(name, "scb.0", g, g, (1, 3, 3), half),
        Layer(name, "tsab.qkv", g, 3 * c, (1, 1, 1), half),
        Layer(name, "ffn.0", g, g, (3, 3, 3), half),
        Layer(name, "ffn.2", g, g, (1, 1, 1), half),
        Layer(name, "last_conv", 4 * c, 4 * c, (1, 1, 1), half),
        Layer(name, "vrm.0", g, g, (3, 3, 3), full),
    ]


SWINIR, PICTURE = "swinir-light", (1, 128, 128)
LAYERS = (
    *efficientsci("efficientsci-s", 32),
    *efficientsci("efficientsci-t", 16),
    Layer(SWINIR, "layers.0.conv", 60, 60, (1, 3, 3), PICTURE),
    Layer(SWINIR, "upsample.0", 60, 48, (1, 3, 3), PICTURE),
    Layer(SWINIR, "attn.qkv", 60, 180, (1, 1, 1), PICTURE),
    Layer(SWINIR, "mlp.fc1", 60, 120, (1, 1, 1), PICTURE),
)


def measure(layer: Layer, rounds: int) -> dict[str, Any]:
    """Median seconds of one layer, by every method that does it and by torch's and OpenVINO's int8."""
    calls = {method: ours(layer, method, bits) for method, bits in BITS.items() if does(layer, method, bits)}
    calls |= {name: call for name, make in OTHERS.items() if (call := make(layer)) is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks = []
    for _ in range(rounds + 1):
        peaks.append(bk.peak())
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}
    return dict(
        network=layer.network, layer=layer.name, channels=layer.channels, outputs=layer.outputs, kernel=layer.kernel,
        size=layer.size, stride=layer.stride, macs=layer.macs, peak=statistics.median(peaks), seconds=medians,
    )  # fmt: skip


def does(layer: Layer, method: str, bits: int) -> bool:
    """Whether a method does a layer, and with its own means."""
    half, shape = 2 ** (bits - 1), (layer.outputs, *layer.kernel, layer.channels)
    options: dict[str, Any] = dict(stride=layer.stride, padding=layer.padding, zero=1, largest=2**bits - 1)
    if method == "lookup" and bk.best_level() != "avx512-vbmi":
        return False  # it would convolve directly
    return bk.fits(shape, -half, half - 1, method=method, **options)


def ours(layer: Layer, method: str, bits: int) -> Callable:
    """A call of one of our methods, with the output stage."""
    random, largest, half = np.random.default_rng(0), 2**bits - 1, 2 ** (bits - 1)
    weights = random.integers(-half, half, (layer.outputs, *layer.kernel, layer.channels)).astype(np.int8)
    codes = random.integers(0, largest + 1, (*layer.size, layer.channels)).astype(np.uint8)
    options: dict[str, Any] = dict(stride=layer.stride, padding=layer.padding, zero=1, largest=largest)
    convolution = bk.Convolution(weights, method=method, **options)
    target = bk.Target(np.empty((*layer.output_size, layer.outputs), np.uint8), 0.3217, 3.0, 0, largest)
    scale, bias = random.uniform(0.5, 1, layer.outputs) / largest / 300, random.normal(size=layer.outputs)
    return convolution.bind(codes, bk.Output(scale=scale, bias=bias, slope=0.01, targets=[target]))


def onednn(layer: Layer) -> Callable | None:
    """oneDNN's int8 convolution, through torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    x = torch.randint(0, 255, (1, layer.channels, *layer.size), dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weights = torch.randint(-127, 127, (layer.outputs, layer.channels, *layer.kernel), dtype=torch.int8)
    scales, zeros = torch.rand(layer.outputs) * 0.01 + 0.001, torch.zeros(layer.outputs, dtype=torch.int32)
    geometry, bias = (list(layer.stride), list(layer.padding), [1, 1, 1], 1), torch.randn(layer.outputs)
    ops = torch.ops.onednn
    packed = ops.qconv_prepack(weights, scales, 0.02, 37, *geometry, list(x.shape))
    rest = (scales, zeros, bias, *geometry, 0.5, 128, torch.uint8, "none", [], "")
    return lambda: ops.qconv3d_pointwise(x, 0.02, 37, packed, *rest)


def openvino(layer: Layer) -> Callable | None:
    """OpenVINO's int8 convolution between two grids of 256 levels, from and to memory with channels first."""
    try:
        from bitlens.engine.runtime import openvino as load

        package = load()
    except ImportError:
        return None
    ops, random = package.opset13, np.random.default_rng(0)
    ends = [ops.constant(np.float32(end)) for end in (0.0, 255.0)] * 2
    x = ops.parameter([1, layer.channels, *layer.size], np.uint8)
    quantized = ops.fake_quantize(ops.convert(x, "f32"), *ends, 256)
    weights = random.integers(-127, 128, (layer.outputs, layer.channels, *layer.kernel)).astype(np.int8)
    scale = ops.constant(np.full((layer.outputs, 1, 1, 1, 1), 1e-4, np.float32))
    scaled = ops.multiply(ops.convert(ops.constant(weights), "f32"), scale)
    padding = list(layer.padding)
    out = ops.convolution(quantized, scaled, list(layer.stride), padding, padding, [1, 1, 1])
    out = ops.convert(ops.fake_quantize(out, *ends, 256), "u8")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = package.Core().compile_model(package.Model([out], [x], "one"), "CPU", settings).create_infer_request()
    codes = random.integers(0, 256, (1, layer.channels, *layer.size)).astype(np.uint8)
    request.set_input_tensor(package.Tensor(codes))
    return request.infer


OTHERS = {"oneDNN": onednn, "OpenVINO": openvino}
"""Other int8 convolutions."""


def line(result: dict[str, Any]) -> str:
    """One layer's milliseconds, effective GMAC/s and their part of the peak."""
    parts = []
    for name, seconds in result["seconds"].items():
        rate = result["macs"] / seconds / 1e9
        share = f", {rate / result['peak']:.0%}" if result["peak"] else ""
        parts.append(f"{name} {1e3 * seconds:.1f} ms ({rate:.0f}{share})")
    return f"{result['network']} {result['layer']}: {'; '.join(parts)}"


def main() -> None:
    """Measure, print the lines, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose names begin so")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    layers = [layer for layer in LAYERS if layer.network.startswith(tuple(asked.only))]
    if asked.rounds < 1 or not layers:
        sys.exit(f"layers.py: {asked.rounds} rounds of {len(layers)} layers; wanted one or more of both; change them")
    machine, results = environment(), []  # its load is that of others
    for layer in layers:
        results.append(measure(layer, asked.rounds))
        print(line(results[-1]), flush=True)
    if asked.json:
        about = dict(level=bk.best_level(), rounds=asked.rounds, threads=1, clock="process_time", bits=BITS)
        asked.json.write_text(json.dumps(about | dict(machine=machine, results=results)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
