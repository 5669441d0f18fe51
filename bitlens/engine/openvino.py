"""Networks on a CPU through OpenVINO: int8 where the network is quantized, bf16 or float32 between.

EfficientSCI has a graph of its own (graph.py). Those of all other networks, for video (video.py) and for pictures
(picture.py), are read off their code.

Every layer is compared with the integer reference before the first use, because OpenVINO falls back to float, or
computes wrongly, without a word (docs/engine.md lists when). On CPUs without VNNI, where sums of two products of 8 bits
saturate, such layers are built in float.
"""

import json
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn

from bitlens import tasks
from bitlens.engine.checks import Check, ComputesWrongly, compare_layers, example, fingerprint
from bitlens.engine.graph import PART, build
from bitlens.engine.lower import Lowered, lower, without, without_saturation
from bitlens.engine.picture import build_picture
from bitlens.engine.refusals import additions, check_settings
from bitlens.engine.runtime import (
    Compiled,
    PictureRuntime,
    Runtime,
    Size,
    VideoRuntime,
    code_and_machine,
    cpu_features,
    openvino,
    user_cache,
)
from bitlens.engine.steps import Tap
from bitlens.engine.traced_native import unreadable
from bitlens.engine.video import build_video
from bitlens.files import atomic_path
from bitlens.networks.catalog import entry_of
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.layers import quantized_layers

WRONG = {"f32": 40.0, "bf16": 10.0}
"""dB. A layer further from the reference is wrong. In f32 one code may fall to the other side of a tie; in bf16, where
grids see inputs that only their fused kernel knows in full, a few percent of the codes of a 2-bit grid do."""


PRODUCTS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
"""OpenVINO's kinds of ops that layers become."""


@dataclass(frozen=True)
class Cost:
    """What one op of a compiled model took."""

    name: str
    """The layer's, for convolutions and linear layers."""
    kind: str
    kernel: str
    """OpenVINO's name of what ran; it ends in I8 where it computed in integers."""
    milliseconds: float


@dataclass(frozen=True)
class Kind:
    """What networks of one kind have in common here."""

    build: Callable[..., tuple[Any, dict[str, Tap]]]
    """(network, lowered, *size) -> OpenVINO's model, and its layers' taps."""
    runtime: type[Compiled]
    channels: int
    """The axis of linear layers' channels in the model."""
    precision: str
    """What "auto" is where all grids have 8 bits: pictures are nearer to the truth than videos, and bf16 shows."""
    smallest: Size
    """What is smaller in any direction has its layers in float: some kernels are wrong there (docs/engine.md)."""


BY_HAND = Kind(build, Runtime, 1, "bf16", (2, 16, 16))
TRACED_IMAGES = Kind(build_picture, PictureRuntime, -1, "f32", (16, 16))
TRACED_VIDEOS = Kind(build_video, VideoRuntime, -1, "f32", (2, 16, 16))
"""Of networks whose graph is read off their code."""


def kind_of(network: nn.Module) -> Kind:
    """The kind of a network."""
    if reconstructs(network):
        return BY_HAND
    return TRACED_IMAGES if tasks.of(network).still else TRACED_VIDEOS


def missing(network: nn.Module) -> str | None:
    """Why there is no graph for a network; None: there is one."""
    return None if reconstructs(network) else unreadable(network)


def reconstructs(network: nn.Module) -> TypeGuard[EfficientSCI]:
    """Whether a network has a graph that is written by hand (`steps.py`): EfficientSCI as it was published."""
    if getattr(entry_of(network), "name", None) != "efficientsci":
        return False
    return not network.config["normalize"] and additions(network) is None  # type: ignore[index]


def held_back(*isas: str) -> bool:
    """Whether ONEDNN_MAX_CPU_ISA names one of these instruction sets as the most that OpenVINO may use."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in isas


def computes_bf16(core: Any) -> bool:
    """Whether OpenVINO computes in bf16 here. Where ONEDNN_MAX_CPU_ISA forbids what it takes, it says that it does."""
    narrow = held_back("SSE41", "AVX", "AVX2", "AVX2_VNNI")
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and not narrow


def adds_in_16_bits() -> bool:
    """Whether OpenVINO's int8 kernels add pairs of products in 16 bits: on x86 CPUs without VNNI."""
    flags = cpu_features().split()
    vnni = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)
    return held_back("SSE41", "AVX", "AVX2", "AVX512_CORE") or ("avx2" in flags and not vnni)


class Engine:
    """A network compiled for this CPU; called like the network.

    Args:
        network: for video or for pictures, fake-quantized or float; it is not changed.
        precision: of everything that is not integer; "auto" is bf16 for videos where the CPU computes in it and no grid
            has fewer than 8 bits, else f32. Coarse grids turn what bf16 rounds away into whole codes (docs/engine.md).
        threads: CPU threads; None leaves it to OpenVINO.
        cache: folder of compiled models and of the results of checks; None is `user_cache("openvino")`.
        check: compare every layer with the integer reference, once for these weights on this machine.

    Raises:
        TypeError: `missing` names a reason why there is no graph for the network.
        ValueError: unknown precision, threads below 1, a grid without a range.
        ComputesWrongly: a layer does, on this machine.

    >>> engine = Engine(bitlens.load("efficientsci-t-qsci-w8a8"), threads=2)  # doctest: +SKIP
    >>> video = engine(measurement, mask)  # doctest: +SKIP
    >>> large = Engine(bitlens.load("imdn-x2-w8a8.safetensors"))(image)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        precision: str = "auto",
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        check: bool = True,
    ):
        if (reason := missing(network)) is not None:
            raise TypeError(f"{reason}; run it in torch")
        kind = kind_of(network)
        check_settings(threads, precision, "auto", "bf16", "f32")
        lowered = lower(network)
        self.kind, self.network = kind, network
        self.lowered = without_saturation(lowered) if adds_in_16_bits() else lowered
        self.core = openvino().Core()
        capable = computes_bf16(self.core)
        if precision == "bf16" and not capable:
            raise ValueError("precision bf16, which this CPU has not; wanted f32 or auto; choose one")
        coarse = any(layer.activation_bits < 8 for layer in quantized_layers(network).values())
        self.precision = (kind.precision if capable and not coarse else "f32") if precision == "auto" else precision
        self.settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self.settings["INFERENCE_NUM_THREADS"] = threads
        self.cache = Path(cache) if cache is not None else user_cache("openvino")
        self.cache.mkdir(parents=True, exist_ok=True)
        identity = fingerprint(network, self.lowered, (code_and_machine(), self.settings))
        self.runtime: Any = kind.runtime(identity, self.settings, self.cache, self.build)
        self.names = {outcome.name for outcome in self.lowered.report}
        self.checks = self.checked() if check else []

    def __call__(self, *inputs: Any) -> Any:
        """What the network returns, float32: of measurement (b, h, w) and mask (1 or b, t, h, w) the video
        (b, c, t, h, w), of an image (b, 3, h, w) the large one.

        Arrays of numpy give an array, tensors a tensor. The first call for a size compiles it, or finds it in the
        cache.
        """
        result = self.runtime(*(np.asarray(one, np.float32) for one in inputs))
        return result if isinstance(inputs[0], np.ndarray) else torch.from_numpy(result)

    def entered(self, *inputs: Any) -> tuple[Size, tuple[np.ndarray, ...]]:
        """The size of the model that runs these inputs, and what enters it."""
        return self.runtime.enter(*(np.asarray(one, np.float32) for one in inputs))

    def build(self, *size: int) -> Any:
        """The OpenVINO model for one size."""
        return self.kind.build(self.network, self.lowered_at(*size), *size)[0]

    def lowered_at(self, *size: int) -> Lowered:
        """The integers that a model of this size computes with: none where it is smaller than `kind.smallest`."""
        tiny = any(one < least for one, least in zip(size, self.kind.smallest, strict=True))
        return without(self.lowered, "the input is tiny") if tiny else self.lowered

    def profile(self, *inputs: Any, runs: int = 3) -> list[Cost]:
        """What OpenVINO's own counters say of each op, in order: the fastest of some runs, in a model of its own."""
        size, entered = self.entered(*inputs)
        model = self.build(*size)
        compiled = self.core.compile_model(model, "CPU", {**self.settings, "PERF_COUNT": True})
        request, layers, counters = compiled.create_infer_request(), layers_of(compiled, self.names), []
        for _ in range(runs + 1):
            request.infer([one[:1] for one in entered])
            counters.append(request.profiling_info)
        costs: dict[str, Cost] = {}
        for infos in zip(*counters[1:], strict=True):
            seconds = [info.real_time.total_seconds() for info in infos if info.status == info.Status.EXECUTED]
            node = str(infos[0].node_name)
            name = layers.get(node, node)
            if seconds or node in layers:  # a counter of small layers may stand at 0
                before = costs[name].milliseconds if name in costs else 0.0  # of the layer's other parts
                spent = before + 1e3 * min(seconds, default=0.0)
                costs[name] = Cost(name, infos[0].node_type, infos[0].exec_type, spent)
        return list(costs.values())

    def checked(self) -> list[Check]:
        """The checks of all layers, from the cache or made now; refuses a layer that computes wrongly."""
        file = self.cache / f"{self.runtime.identity}-checks.json"
        if file.is_file():
            try:
                return [Check(**check) for check in json.loads(file.read_text(encoding="utf-8"))]
            except (ValueError, TypeError):
                file.unlink(missing_ok=True)  # damaged: checked anew
        checks = check_layers(self)
        for check in checks:
            if check.snr_f32 < WRONG["f32"] or check.snr < WRONG[self.precision]:
                raise ComputesWrongly(
                    f"OpenVINO computes layer {check.name} ({check.kernel}) wrongly: {check.snr_f32:.0f} dB from the "
                    f"integer reference, {check.snr:.0f} dB in {self.precision}; wanted {WRONG['f32']:.0f} and "
                    f"{WRONG[self.precision]:.0f} or more; run the network in torch"
                )
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps([asdict(check) for check in checks]), encoding="utf-8")
        return checks


@torch.no_grad()
def check_layers(engine: Engine) -> list[Check]:
    """Compare every layer on the engine with the integer reference, for the input that the engine gives it.

    The inputs come from the engine so that one layer's rounding ties do not count against the next one. Listening to
    the layers keeps OpenVINO from fusing some of them: kernels are read off the model as it will be used.
    """
    size, _ = engine.entered(*example(engine.network))
    model, taps = engine.kind.build(engine.network, engine.lowered, *size)
    exact = layer_snrs(engine, model, taps, "f32")
    found = exact if engine.precision == "f32" else layer_snrs(engine, model, taps, engine.precision)
    kernels = kernels_of(engine.core.compile_model(model, "CPU", engine.settings), engine.names)
    return [Check(name, kernels.get(name, "element-wise"), found[name], exact[name]) for name in taps]


def layer_snrs(engine: Engine, model: Any, taps: dict[str, Tap], precision: str) -> dict[str, float]:
    """dB of each layer's output against its reference's, for the input that the layer has."""
    ends = [end for tap in taps.values() for end in (*tap.inputs, tap.output)]
    listening = openvino().Model(ends, model.get_parameters(), "check")
    settings = {**engine.settings, "INFERENCE_PRECISION_HINT": precision}
    _, entered = engine.entered(*example(engine.network))
    found = engine.core.compile_model(listening, "CPU", settings)(list(entered))
    results = (torch.from_numpy(found[index]) for index in range(len(ends)))
    heard = {name: ([next(results) for _ in tap.inputs], next(results)) for name, tap in taps.items()}
    return compare_layers(engine.network, engine.lowered, heard, engine.kind.channels)


def kernels_of(compiled: Any, names: Collection[str]) -> dict[str, str]:
    """The name of the kernel that runs each layer of these names; of parts that differ, the first."""
    layers, kernels = layers_of(compiled, names), {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        if op.get_friendly_name() in layers:
            kernels.setdefault(layers[op.get_friendly_name()], op.get_rt_info()["primitiveType"].value)
    return kernels


def layers_of(compiled: Any, names: Collection[str]) -> dict[str, str]:
    """The layer, of these names, that each product of a compiled model is, or is a part of, by the op's own name."""
    layers = {}
    for op in compiled.get_runtime_model().get_ordered_ops():
        about = {key: value.value for key, value in op.get_rt_info().items()}
        if about["layerType"] in PRODUCTS:  # with the ops that were fused into it, which are unnamed: Add_17
            originals = about["originalLayersNames"].split(",")  # NAME, NAME#bias, NAME/DequantizationMultiply
            fused = (original.partition(PART)[0].partition("/")[0] for original in originals)
            layer = next((name for name in fused if name in names), None)
            if layer is not None:
                layers[op.get_friendly_name()] = layer
    return layers
