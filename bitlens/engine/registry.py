"""The engines, one entry each, and which one runs a network: verbs, the benchmark, tiles and "auto" read this table.

Read without torch; an engine's module is imported when it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from bitlens.networks.catalog import SCI, entry_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ENGINES", "NATIVE", "TIMED", "Entry", "Name", "choose_engine", "describe", "fast_here", "in_order", "memory_of",
    "native_engine", "native_module", "own_graph", "start_engine",
]  # fmt: skip

Running = Callable[..., Any]
"""What is called like a network."""


@dataclass(frozen=True)
class Entry:
    """One engine."""

    label: str
    """In tables and pictures."""
    missing: "Callable[[nn.Module], str | None]"
    """Why it cannot run a network; None: it can."""
    start: "Callable[[nn.Module, int], tuple[Running, str]]"
    """What runs a network with a number of threads, and a line that says so.

    Raises: TypeError, where `missing` gives a reason; ValueError; ComputesWrongly.
    """
    float32: "Callable[[nn.Module, int], Running] | None" = None
    """What runs a float network in float32, with a number of threads; None: it runs low bits only.

    Raises: as `start`.
    """
    outside: "Callable[..., float | None]" = lambda running, *inputs: None
    """(what runs, *its inputs) -> the share of its time that is not in kernels which multiply integers, measured now;
    None where the engine does not tell."""
    modules: tuple[str, ...] = ()
    """Of this folder, whose classes run on it."""


@dataclass(frozen=True)
class OwnGraph:
    """How a family of networks runs on the native kernels."""

    module: str
    """Of this folder: its `Engine`, and `missing`, why that cannot run a network."""
    fast: int
    """The most bits of all layers at which it was found faster than OpenVINO on other machines, with AVX512."""


NATIVE = {
    "efficientsci": OwnGraph("native", 7),
    "swinir": OwnGraph("swin", 8),
}
"""By the family's name in the catalogue; any other network is read off its code, and was not found faster."""


def own_graph(network: "nn.Module") -> OwnGraph:
    """How a network runs on the native kernels."""
    entry = entry_of(network)
    return NATIVE.get("" if entry is None else entry.name, OwnGraph("traced", 0))


def native_module(network: "nn.Module") -> Any:
    """The module that runs a network on the native kernels: its `Engine`, and `missing`, why it could not.

    Some families have graphs of their own (`NATIVE`); what these refuse, and any other network, is read off its code.
    """
    from bitlens.engine import traced

    own = import_module(f"{__package__}.{own_graph(network).module}")
    return own if own.missing(network) is None or traced.missing(network) is not None else traced


def native_engine(network: "nn.Module", threads: int | None = None) -> Any:
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


def _native_missing(network: "nn.Module") -> str | None:
    return native_module(network).missing(network)


def _native(network: "nn.Module", threads: int) -> tuple[Running, str]:
    running = native_engine(network, threads)
    exact, count = getattr(running, "integer_layers", (0, 0))
    some = "all quantized layers" if exact == count else f"{exact} of {count} quantized layers"
    return running, f"native kernels ({running.level}), int8 in {some}, the rest in {running.precision}"


def _native_outside(running: Any, *inputs: Any) -> float:
    from bitlens.engine.native import INTEGERS

    return 1 - sum(share for kind, share in running.shares(*inputs).items() if kind in INTEGERS)


def _openvino_missing(network: "nn.Module") -> str | None:
    from bitlens.engine import openvino

    return openvino.missing(network)


def _openvino(network: "nn.Module", threads: int) -> tuple[Running, str]:
    from bitlens.engine import openvino

    running = openvino.Engine(network, threads=threads)
    return running, describe(running)


def _openvino_float32(network: "nn.Module", threads: int) -> Running:
    from bitlens.engine import openvino

    return openvino.Engine(network, precision="f32", threads=threads)


def _openvino_outside(running: Any, *inputs: Any) -> float | None:
    from bitlens.engine.checks import in_integers

    costs = running.profile(*inputs)
    whole = sum(cost.milliseconds for cost in costs)
    return 1 - sum(cost.milliseconds for cost in costs if in_integers(cost.kernel)) / whole if whole else None


def _onnxruntime_missing(network: "nn.Module") -> str | None:
    from bitlens.engine import openvino

    return openvino.missing(network)  # ONNX files hold the same graphs


def _onnxruntime(network: "nn.Module", threads: int) -> tuple[Running, str]:
    from bitlens.engine import onnxruntime

    running = onnxruntime.Engine(network, threads=threads)
    return running, describe(running, "ONNX Runtime")


def _torch(network: "nn.Module", threads: int) -> tuple[Running, str]:
    from bitlens.quant.layers import quantized_layers

    return network, f"torch, float32{', integers simulated' if quantized_layers(network) else ''}"


def _reference_missing(network: "nn.Module") -> str | None:
    from bitlens.quant.layers import quantized_layers

    return None if quantized_layers(network) else "the network is float; wanted a low-bit one"


def _reference(network: "nn.Module", threads: int) -> tuple[Running, str]:
    from bitlens.engine.reference import reference_network

    if (reason := _reference_missing(network)) is not None:
        raise ValueError(f"--engine reference, and {reason}; use --engine torch")
    return reference_network(network), "reference, integers in plain torch: exact and slow"


ENGINES = {
    "native": Entry("native kernels", _native_missing, _native, None, _native_outside, ("native", "swin", "traced")),
    "openvino": Entry(
        "OpenVINO", _openvino_missing, _openvino, _openvino_float32, _openvino_outside, ("openvino", "runtime")
    ),
    "onnxruntime": Entry(
        "ONNX Runtime", _onnxruntime_missing, _onnxruntime,
        lambda network, threads: _onnxruntime(network, threads)[0], modules=("onnxruntime",),
    ),
    "torch": Entry("PyTorch", lambda network: None, _torch, lambda network, threads: network),
    "reference": Entry("reference", _reference_missing, _reference),
}  # fmt: skip
"""By the name that --engine takes."""
TIMED = tuple(name for name in ENGINES if name != "reference")
"""Those that are made to be fast."""
if TYPE_CHECKING:
    Name = str
else:
    Name = Literal["auto", *ENGINES]
"""What --engine can be."""


def memory_of(running: Running, network: "nn.Module") -> str:
    """The engine of something running: as whose memory its own is planned (`engine.memory`)."""
    if running is network:
        return "torch"
    room, _, module = type(running).__module__.rpartition(".")
    found = (name for name, entry in ENGINES.items() if room == __package__ and module in entry.modules)
    return next(found, "reference")


def choose_engine(network: "nn.Module", engine: str) -> tuple[Running, str]:
    """What runs a network, called like it, and a line that says so.

    "auto": for networks that they know the native kernels where these are faster, or OpenVINO; else torch. An
    engine that was compared with the reference and computes wrongly here is passed over, and the line says so.

    Raises:
        TypeError: the engine does not know the network.
        ValueError: nothing of the network is quantized, for the reference; ONNX Runtime is not installed; or a layer
            computes wrongly on the engine that was asked for.
    """
    from bitlens.engine.checks import ComputesWrongly

    if engine != "auto":
        return start_engine(network, engine)
    refused: list[str] = []
    *engines, last = in_order(network)
    for name in engines:
        try:
            running, how = start_engine(network, name)
        except ComputesWrongly as error:
            refused.append(str(error).partition(";")[0])
        else:
            return running, "; ".join((how, *refused))
    running, how = start_engine(network, last)
    return running, "; ".join((how, *refused))


def in_order(network: "nn.Module") -> list[str]:
    """The engines that "auto" tries one after the other."""
    from bitlens.quant.layers import quantized_layers

    others = ["torch"] if ENGINES["openvino"].missing(network) else ["openvino", "torch"]
    if not quantized_layers(network) or ENGINES["native"].missing(network) is not None:
        return others
    return ["native", *others] if others == ["torch"] or fast_here(network) else ["openvino", "native", "torch"]


def start_engine(network: "nn.Module", engine: str) -> tuple[Running, str]:
    """What runs a network on an engine, and a line that says so. Raises: as `choose_engine`."""
    import torch

    return ENGINES[engine].start(network, torch.get_num_threads())


def fast_here(network: "nn.Module") -> bool:
    """Whether the native kernels run a network, and faster than OpenVINO.

    As `bitlens benchmark` measured it here, if it did; else by what was found on other machines: with AVX512 networks
    for video that are read off their code at any bits, and others as `NATIVE` has them (engine.md).
    """
    import torch

    from bitlens.engine import traced
    from bitlens.engine.plan import kernels
    from bitlens.engine.speeds import recall
    from bitlens.networks.catalog import task_of
    from bitlens.quant.layers import quantized_layers

    bits = [layer.activation_bits for layer in quantized_layers(network).values()]
    module = native_module(network)
    if not bits or module.missing(network) is not None:
        return False
    measured = recall(network, torch.get_num_threads())
    if {"native", "openvino"} <= set(measured):
        return measured["native"] < measured["openvino"]
    own = own_graph(network)
    video = module is traced and task_of(network) == SCI
    fast = video or (module.__name__ == f"{__package__}.{own.module}" and min(bits) <= own.fast)
    return fast and kernels().best_level().startswith("avx512")
