"""A checkpoint on OpenVINO, started as quickly as can be: what ran before is found without torch and the network."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitlens import checkpoint
from bitlens.engine.runtime import Compiled, Size, code_and_machine, user_cache

Running = Callable[..., np.ndarray]
"""Measurement (b, h, w) and mask (1 or b, t, h, w) -> video (b, c, t, h, w); or image (b, 3, h, w) -> a larger one."""


def start(
    model: str | os.PathLike[str],
    size: Size,
    threads: int | None = None,
    precision: str = "auto",
    cache: Path | None = None,
) -> tuple[Running, str]:
    """What runs a checkpoint on OpenVINO, and a line that says in what.

    The first start builds, checks and compiles. Later ones recall that, for the same file, threads and precision, on
    the same machine, with the same code.

    Args:
        model: name or path of a checkpoint.
        size: (frames, height, width) of a video, (height, width) of a picture.
        threads, precision, cache: as `Engine` takes them.

    Raises:
        TypeError, ValueError: as `Engine`.
    """
    folder = user_cache("openvino") if cache is None else cache
    facts = precision, threads, code_and_machine()
    key = hashlib.sha256(checkpoint.find(model).read_bytes() + repr(facts).encode()).hexdigest()[:32]
    recalled = Compiled.recall(key, folder, size)
    if recalled is not None:
        return recalled
    from bitlens.engine.openvino import Engine

    engine = Engine(checkpoint.load(model), precision=precision, threads=threads, cache=folder)
    note = describe(engine)
    engine.runtime.remember(key, note)
    return engine.runtime, note


def native_module(network: Any) -> Any:
    """The module that runs a network on the native kernels: its `Engine`, and `missing`, why it could not.

    SwinIR and EfficientSCI have graphs of their own; what these refuse, and any other network, is read off its code.
    """
    from bitlens.engine import native, swin, traced
    from bitlens.engine.openvino import reconstructs
    from bitlens.networks.swinir import SwinIR

    own = swin if isinstance(network, SwinIR) else native if reconstructs(network) else traced
    return own if own.missing(network) is None or traced.missing(network) is not None else traced


def native_engine(network: Any, threads: int | None = None) -> Any:
    """A low-bit network on the native kernels; residual sums of video in bf16 where no grid has fewer than 8 bits.

    Raises:
        TypeError: the kernels are not built, or cannot run the network.
    """
    from bitlens.engine import native
    from bitlens.quant.layers import quantized_layers

    module = native_module(network)
    coarse = any(layer.activation_bits < 8 for layer in quantized_layers(network).values())
    precision = "bf16" if module is native and not coarse else "f32"
    return module.Engine(network, precision=precision, threads=threads)


def describe(engine: Any, name: str = "OpenVINO") -> str:
    """OpenVINO, int8 in 119 of 119 layers, the rest in bf16."""
    from bitlens.engine.checks import in_integers
    from bitlens.quant.layers import Quantized, quantized_layers

    wanted = [name for name, layer in quantized_layers(engine.network).items() if isinstance(layer, Quantized)]
    integer = sum(check.name in wanted and in_integers(check.kernel) for check in engine.checks)
    low = f"int8 in {integer} of {len(wanted)} layers, the rest in " if wanted else ""
    return f"{name}, {low}{getattr(engine, 'precision', 'f32')}"
