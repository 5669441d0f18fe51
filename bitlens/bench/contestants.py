"""What `bitlens benchmark` lets run against each other: a checkpoint, made ready by each engine in each precision.

Each function is called in a process of its own, with the path or name of a checkpoint, its inputs and a number of
threads. Inputs are a measurement (1, h, w) and its mask (1, t, h, w), or a picture (1, 3, h, w). It returns the run
that is timed, which returns the video (t, h, w) or the large picture (3, h, w).
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlens import checkpoint
from bitlens.engine.runtime import Compiled, Size, code_and_machine, openvino, user_cache
from bitlens.inference.machine import keep_freed_memory

if TYPE_CHECKING:
    from torch import nn

Run = Callable[[], np.ndarray]
Inputs = tuple[np.ndarray, ...]

PEAK_SHAPE = (128, 8, 64, 64)
"""Channels (in and out), frames, height and width of the convolution that shows how fast this CPU can be."""


def torch_eager(model: str, inputs: Inputs, threads: int) -> Run:
    """PyTorch in float32 as the official code runs it: eager, contiguous, the allocator as it comes."""
    return torch_run(checkpoint.load(model), inputs, threads)


def torch_compiled(model: str, inputs: Inputs, threads: int, bf16: bool) -> Run:
    """PyTorch at its best: compiled, weights frozen and in bf16 if asked for, channels last, freed memory kept."""
    import torch

    keep_freed_memory()
    torch._inductor.config.freezing = True  # type: ignore[attr-defined]
    network: Any = checkpoint.load(model)
    if not hasattr(network, "extract_features"):
        compiled = network.priors if hasattr(network, "priors") else [network]  # unfolding networks prior by prior
        for part in compiled:
            part.compile()
        return torch_run(network, inputs, threads, torch.autocast("cpu", torch.bfloat16, enabled=bf16))
    network = network.to(torch.bfloat16 if bf16 else torch.float32)
    network.compile_parts()
    inner = network.extract_features
    network.extract_features = lambda estimate: inner(estimate.to(torch.bfloat16 if bf16 else torch.float32))
    return torch_run(network, inputs, threads)


def torch_run(network: "nn.Module", inputs: Inputs, threads: int, mode: Any = nullcontext()) -> Run:  # noqa: B008
    """A run of a network that is ready, within a context of torch's."""
    import torch

    torch.set_num_threads(threads)
    network.eval().requires_grad_(False)
    tensors = [torch.from_numpy(one) for one in inputs]

    def run() -> np.ndarray:
        with torch.no_grad(), mode:
            return alone(network(*tensors).float().numpy())

    return run


def alone(result: np.ndarray) -> np.ndarray:
    """The first channel of a batch's first video, or a batch's first picture."""
    return result[0, 0] if result.ndim == 5 else result[0]


def openvino_run(model: str, inputs: Inputs, threads: int, precision: str, cache: str) -> Run:
    """OpenVINO: integers where the network is quantized, `precision` elsewhere."""
    running, _ = recalled_or_built(
        model, inputs[-1].shape[-3 if len(inputs) == 2 else -2 :], threads, precision, Path(cache)
    )
    return lambda: alone(running(*inputs))


def recalled_or_built(
    model: str | os.PathLike[str],
    size: Size,
    threads: int | None = None,
    precision: str = "auto",
    cache: Path | None = None,
) -> tuple[Callable[..., np.ndarray], str]:
    """What runs a checkpoint on OpenVINO, started as quickly as can be, and a line that says in what.

    The first start builds, checks and compiles. Later ones recall that, for the same file, threads and precision, on
    the same machine, with the same code; what ran before is found without torch and the network.

    Args:
        model: name or path of a checkpoint.
        size: (frames, height, width) of a video, (height, width) of a picture.
        threads, precision, cache: as `Engine` takes them.

    Raises:
        TypeError, ValueError: as `Engine`.
    """
    folder = user_cache("openvino") if cache is None else cache
    facts = precision, threads, checkpoint.describe(model).name, code_and_machine()
    key = hashlib.sha256(checkpoint.find(model).read_bytes() + repr(facts).encode()).hexdigest()[:32]
    recalled = Compiled.recall(key, folder, size)
    if recalled is not None:
        return recalled
    from bitlens.engine.openvino import Engine
    from bitlens.engine.registry import describe

    engine = Engine(checkpoint.load(model), precision=precision, threads=threads, cache=folder)
    note = describe(engine)
    engine.runtime.remember(key, note)
    return engine.runtime, note


def engine_run(model: str, inputs: Inputs, threads: int, engine: str, cache: str) -> Run:
    """An engine as --engine starts it, which keeps what it compiles in a cache of its own."""
    from bitlens.engine.registry import ENGINES

    os.environ["XDG_CACHE_HOME"] = cache
    running, _ = ENGINES[engine].start(checkpoint.load(model), threads)
    return lambda: alone(running(*inputs))


def convolution_peak(threads: int, precision: str) -> Callable[[], float]:
    """The rate of a large 3x3x3 convolution alone, in GMAC/s, as OpenVINO's counter has it; the best run so far.

    Args:
        threads: of OpenVINO.
        precision: f32, bf16, or u8s8 (u8 activations, s8 weights).
    """
    channels = PEAK_SHAPE[0]
    ops, shape, column = openvino().opset13, (channels, channels, 3, 3, 3), (1,) * 5
    x = ops.parameter([1, *PEAK_SHAPE], np.float32)
    inputs, weights = x, ops.constant(np.full(shape, 1.0, np.float32))
    if precision == "u8s8":
        ends = [ops.constant(np.full(column, end, np.float32)) for end in (0, 255, 0, 255)]
        inputs, scale = ops.fake_quantize(x, *ends, 256), ops.constant(np.full((channels, 1, 1, 1, 1), 1.0, np.float32))
        weights = ops.multiply(ops.convert(ops.constant(np.full(shape, 1, np.int8)), "f32"), scale)
    node = ops.convolution(inputs, weights, (1,) * 3, (1,) * 3, (1,) * 3, (1,) * 3)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "f32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    model = openvino().Model([node], [x], "peak")
    request = openvino().Core().compile_model(model, "CPU", settings).create_infer_request()
    values, work = np.zeros((1, *PEAK_SHAPE), np.float32), 27 * channels * np.prod(PEAK_SHAPE) / 1e9
    rates: list[float] = []

    def run() -> float:
        request.infer(values)
        times = [info.real_time.total_seconds() for info in request.profiling_info if info.node_type == "Convolution"]
        rates.append(float(work / times[0]))
        return max(rates)

    return run
