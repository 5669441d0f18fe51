"""SwinIR-light x4 on the native kernels against the same network in float through OpenVINO and compiled torch.

    python kernels/bench/swin.py [--size 128] [--threads 2] [--rounds 9] [--only native openvino] [--json results.json]

Weights are random: how fast a network runs does not depend on them. Contestants live in processes of their own and take
turns; given are the medians of wall time and of processor time, which other processes on the machine do not count in.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitlens.bench import Contestant, environment, interleave

SCALE = 4


def image(size: int) -> Any:
    """A smooth picture (1, 3, size, size)."""
    import torch
    import torch.nn.functional as F

    few = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(few, (size, size), mode="bicubic").clamp(0, 1)


def untrained() -> Any:
    """SwinIR-light with random weights."""
    import torch

    from bitlens.networks.swinir import swinir

    torch.manual_seed(0)
    return swinir("light", SCALE).eval().requires_grad_(False)


def timed(run: Callable[[], Any]) -> Callable[[], float]:
    """The run, which returns the median of its processor times after the first."""
    spent: list[float] = []

    def call() -> float:
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
        return statistics.median(spent[1:] or spent)

    return call


def native(size: int, threads: int, bits: int, everything: bool, precision: str) -> Callable[[], float]:
    """Our kernels: 2DQuant's layers quantized, or the convolutions too."""
    from bitlens.engine.swin import Engine
    from bitlens.methods import quantize, recipe_of

    recipe = recipe_of("minmax", bits) if everything else "minmax"
    network, _ = quantize(untrained(), recipe, [(image(32),)], bits=bits)
    engine, x = Engine(network, threads=threads, precision=precision), image(size)
    return timed(lambda: engine(x))


def openvino(size: int, threads: int, precision: str) -> Callable[[], float]:
    """OpenVINO, converted from torch."""
    import warnings

    import torch

    from bitlens.engine.runtime import openvino as load

    package, x = load(), image(size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = package.convert_model(untrained(), example_input=x, input=list(x.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = package.Core().compile_model(model, "CPU", settings).create_infer_request()
    array = x.numpy()
    return timed(lambda: request.infer({0: array}))


def torch_compiled(size: int, threads: int, precision: str) -> Callable[[], float]:
    """torch.compile with frozen weights."""
    import torch

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True  # type: ignore[attr-defined]
    network, x = torch.compile(untrained()), image(size)

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            network(x)

    return timed(run)


def contestants(size: int, threads: int) -> list[Contestant]:
    """All that can be compared: the engines of float networks first."""
    found = [
        Contestant(f"{name} {precision}", function, (size, threads, precision))
        for name, function in (("openvino", openvino), ("torch compiled", torch_compiled))
        for precision in ("f32", "bf16")
    ]
    for bits in (8, 4):
        for name, everything, precision in (
            ("convolutions f32", False, "f32"),
            ("convolutions bf16", False, "bf16"),
            ("all layers", True, "f32"),
        ):
            arguments = (size, threads, bits, everything, precision)
            found.append(Contestant(f"native W{bits}A{bits}, {name}", native, arguments))
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Milliseconds, and how many times faster than the fastest float32 and bfloat16 engine, by processor time."""
    others = {r["name"]: r["processor"] for r in results if not r["name"].startswith("native")}
    base = {
        kind: min((spent for name, spent in others.items() if name.endswith(kind)), default=float("nan"))
        for kind in ("f32", "bf16")
    }
    lines = ["| engine | ms | processor ms | x fastest f32 | x fastest bf16 |", "|---|---|---|---|---|"]
    for r in results:
        ratios = " | ".join(f"{base[kind] / r['processor']:.2f}" for kind in ("f32", "bf16"))
        lines.append(f"| {r['name']} | {1e3 * r['seconds']:.0f} | {1e3 * r['processor']:.0f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=[""], help="contestants whose names begin so")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    chosen = [c for c in contestants(asked.size, asked.threads) if c.name.startswith(tuple(asked.only))]
    timings = interleave(chosen, asked.rounds, threads=asked.threads)
    for timing in timings:
        if timing.failure:
            print(f"{timing.name}: {timing.failure}")
    results = [dict(name=t.name, seconds=t.median, processor=t.value, runs=t.seconds) for t in timings if not t.failure]
    size = f"{asked.size} x {asked.size}"
    print(f"SwinIR-light x{SCALE}, {size}, {asked.threads} threads, {asked.rounds} rounds, medians\n")
    print(table(results))
    if asked.json:
        about = dict(size=asked.size, threads=asked.threads, rounds=asked.rounds, machine=environment())
        asked.json.write_text(json.dumps(about | dict(results=results), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
