"""Each kernel against this CPU's own peak and against other int8 convolutions, interleaved in one run, on one thread.

    python kernels/bench/layers.py [--channels 64] [--size 8x128x128] [--rounds 7] [--json results.json]

Times are processor times: what other processes take does not count, only how they disturb caches and clock. Effective
GMAC/s are those of the direct convolution, whatever the method multiplies. Every kernel writes u8 codes of the next
grid; ours apply LeakyReLU on the way.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import bitlens_kernels as bk
import numpy as np

KERNELS = ((3, 3, 3), (1, 3, 3), (1, 1, 1))
LAYERS = (
    *(("direct", 8, 8), ("winograd2", 4, 4), ("winograd3", 3, 3)),
    *(("winograd2wide", 2, 2), ("lookup", 2, 2)),
)
"""Method, bits of weights, bits of activations."""


def measure(channels: int, kernel: Sequence[int], size: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians of one layer, channels -> channels, by every method that does it and by torch's and OpenVINO's int8."""
    calls = {
        f"{method} W{weight_bits}A{bits}": ours(channels, kernel, size, method, weight_bits, bits)
        for method, weight_bits, bits in LAYERS
        if bk.fits(
            (channels, *kernel, channels), -(2 ** (weight_bits - 1)), 1, zero=1, largest=2**bits - 1, method=method
        )
        and not (method == "lookup" and bk.best_level() != bk.LEVELS[-1])
        and (method == "direct" or max(kernel) > 1)
    }
    calls |= {name: call for name, make in OTHERS.items() if (call := make(channels, kernel, size)) is not None}
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks = []
    for _ in range(rounds + 1):
        peaks.append(bk.peak())
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    macs = channels * channels * float(np.prod(kernel)) * float(np.prod(size))
    medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}
    return dict(channels=channels, kernel=list(kernel), macs=macs, peak=statistics.median(peaks), seconds=medians)


def ours(
    channels: int, kernel: Sequence[int], size: Sequence[int], method: str, weight_bits: int, bits: int
) -> Callable:
    """A call of one of our methods, with the output stage."""
    random, largest = np.random.default_rng(0), 2**bits - 1
    weights = random.integers(-(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1), (channels, *kernel, channels))
    codes = random.integers(0, largest + 1, (*size, channels)).astype(np.uint8)
    padding = tuple(k // 2 for k in kernel)
    convolution = bk.Convolution(weights.astype(np.int8), padding=padding, zero=1, largest=largest, method=method)
    target = bk.Target(np.empty((*size, channels), np.uint8), 0.3217, 3.0, 0, largest)
    scale, bias = random.uniform(0.5, 1, channels) / largest / 300, random.normal(size=channels)
    return convolution.bind(codes, bk.Output(scale=scale, bias=bias, slope=0.01, targets=[target]))


def onednn(channels: int, kernel: Sequence[int], size: Sequence[int]) -> Callable | None:
    """oneDNN's int8 convolution, through torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    x = torch.randint(0, 255, (1, channels, *size), dtype=torch.uint8).contiguous(memory_format=torch.channels_last_3d)
    weights = torch.randint(-127, 127, (channels, channels, *kernel), dtype=torch.int8)
    scales, zeros = torch.rand(channels) * 0.01 + 0.001, torch.zeros(channels, dtype=torch.int32)
    ones, padding, bias = [1, 1, 1], [k // 2 for k in kernel], torch.randn(channels)
    ops = torch.ops.onednn
    packed = ops.qconv_prepack(weights, scales, 0.02, 37, ones, padding, ones, 1, list(x.shape))
    rest = (scales, zeros, bias, ones, padding, ones, 1, 0.5, 128, torch.uint8, "none", [], "")
    return lambda: ops.qconv3d_pointwise(x, 0.02, 37, packed, *rest)


def openvino(channels: int, kernel: Sequence[int], size: Sequence[int]) -> Callable | None:
    """OpenVINO's int8 convolution between two grids of 256 levels."""
    try:
        from bitlens.engine.graph import openvino as load

        package = load()
    except ImportError:
        return None
    ops, random = package.opset13, np.random.default_rng(0)
    ends = [ops.constant(np.float32(end)) for end in (0.0, 255.0)] * 2
    x = ops.parameter([1, channels, *size], np.uint8)
    quantized = ops.fake_quantize(ops.convert(x, "f32"), *ends, 256)
    weights = ops.constant(random.integers(-127, 128, (channels, channels, *kernel)).astype(np.int8))
    scaled = ops.multiply(ops.convert(weights, "f32"), ops.constant(np.full((channels, 1, 1, 1, 1), 1e-4, np.float32)))
    padding = [k // 2 for k in kernel]
    out = ops.convolution(quantized, scaled, [1, 1, 1], padding, padding, [1, 1, 1])
    out = ops.convert(ops.fake_quantize(out, *ends, 256), "u8")
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = package.Core().compile_model(package.Model([out], [x], "one"), "CPU", settings).create_infer_request()
    codes = random.integers(0, 256, (1, channels, *size)).astype(np.uint8)
    request.set_input_tensor(package.Tensor(codes))
    return request.infer


OTHERS = {"oneDNN W8A8": onednn, "OpenVINO W8A8": openvino}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown; ratios are to oneDNN, or to our own direct convolution where torch is not there."""
    lines = [
        "| channels | kernel | what | ms | effective GMAC/s | of the VNNI peak | x oneDNN int8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        base = result["seconds"].get("oneDNN W8A8", result["seconds"]["direct W8A8"])
        for name, seconds in result["seconds"].items():
            rate = result["macs"] / seconds / 1e9
            kernel = "x".join(map(str, result["kernel"]))
            share = f"{rate / result['peak']:.2f}" if result["peak"] else "-"
            lines.append(
                f"| {result['channels']} | {kernel} | {name} | {seconds * 1e3:.1f} | {rate:.0f} | {share} "
                f"| {base / seconds:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 32])
    parser.add_argument("--size", default="8x128x128", help="frames x height x width")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    size = [int(n) for n in asked.size.split("x")]
    results = [measure(c, kernel, size, asked.rounds) for c in asked.channels for kernel in KERNELS]
    print(f"{bk.best_level()}, one thread, {asked.rounds} rounds, medians of processor time\n\n{table(results)}")
    if asked.json:
        about = dict(level=bk.best_level(), size=size, rounds=asked.rounds, threads=1, clock="process_time")
        asked.json.write_text(json.dumps(about | dict(results=results), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
