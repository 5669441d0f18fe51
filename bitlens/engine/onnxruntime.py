"""Networks through ONNX Runtime: the same files that are exported, every layer checked before the first use.

EfficientSCI has one file for all sizes, in integers (onnx.py). Those of all other networks are read off their code, one
for each size (traced_onnx.py); there ONNX Runtime computes in float what was trained.
"""

import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.engine.checks import Check, compare_layers, example, fingerprint
from bitlens.engine.lower import Lowered, lower
from bitlens.engine.onnx import Form, build
from bitlens.engine.openvino import missing, reconstructs
from bitlens.engine.refusals import check_settings
from bitlens.engine.runtime import KEPT, Size, code, cpu_features, user_cache
from bitlens.engine.steps import Tap
from bitlens.engine.traced_onnx import build_traced
from bitlens.files import atomic_path
from bitlens.tasks import of

Array = TypeVar("Array", Tensor, np.ndarray)

WRONG = 40.0
"""dB. A layer further from the reference is wrong; one code that falls to the other side of a tie is not."""
CHECKED = (24, 16)
"""Height and width of the image on which ONNX is checked: multiples of 8, which SMFANet's pooling needs there."""


@cache
def onnxruntime() -> ModuleType:
    """The package `onnxruntime`, without its telemetry.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            "ONNX Runtime is not installed; wanted the package onnxruntime; run pip install 'bitlens[onnx]'"
        ) from None
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises where a model does not fit its inputs."""
    state = onnxruntime().capi.onnxruntime_pybind11_state
    return state.Fail, state.InvalidArgument, state.RuntimeException, state.NotImplemented


class Engine:
    """A network in ONNX Runtime; called like the network.

    Args:
        network: for video or for pictures, fake-quantized or float; it is not changed.
        form: of quantized layers (see `engine.onnx`); None: "integer" for EfficientSCI, and "qdq", the only one that
            they have, for all others.
        threads: CPU threads; None leaves it to ONNX Runtime.
        cache: folder of optimized models and of the results of checks; None is `user_cache("onnxruntime")`.
        check: compare every layer with the integer reference, once for these weights on this machine.

    Raises:
        TypeError: there is no graph for the network.
        ValueError: `onnx` or `onnxruntime` is not installed, unknown form, threads below 1, a grid without a range, or
            a layer computes wrongly.

    >>> engine = Engine(bitlens.load("efficientsci-t-qsci-w8a8"), threads=2)  # doctest: +SKIP
    >>> video = engine(measurement, mask)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        form: Form | None = None,
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        check: bool = True,
    ):
        if (reason := missing(network)) is not None:
            raise TypeError(f"{reason}; run it in torch")
        check_settings(threads)
        self.network, self.lowered, self.threads = network, lower(network), threads
        self.form: Form = form_of(network, form)
        self.cache = Path(cache) if cache is not None else user_cache("onnxruntime")
        self.identity = fingerprint(
            network, self.lowered, (code(), onnxruntime().__version__, self.form, cpu_features())
        )
        self.cache.mkdir(parents=True, exist_ok=True)
        self.sessions: dict[Size, Any] = {}
        """By size; () where one is for all."""
        self.checks = self.checked() if check else []

    def __call__(self, *inputs: Array) -> Array:
        """What the network returns, float32: of measurement (b, h, w) and mask (1 or b, t, h, w) the video
        (b, c, t, h, w), of an image (b, 3, h, w) the large one.

        Arrays of numpy give an array, tensors a tensor. The first call for a size makes its model, or finds it in the
        cache.
        """
        arrays = [np.ascontiguousarray(torch.as_tensor(value).float().numpy()) for value in inputs]
        task = of(self.network)
        session = self.session(*arrays[-1].shape[-len(task.axes) :])
        if reconstructs(self.network):
            (found,) = session.run([task.output], dict(zip(task.inputs, arrays, strict=True)))
        else:  # batches of one
            batch = max(map(len, arrays))
            ones = ([one[min(i, len(one) - 1)][None] for one in arrays] for i in range(batch))
            runs = (session.run([task.output], dict(zip(task.inputs, one, strict=True)))[0] for one in ones)
            found = np.concatenate(list(runs))
        return found if isinstance(inputs[0], np.ndarray) else torch.from_numpy(found)  # type: ignore[return-value]

    def session(self, *size: int) -> Any:
        """The model for a size, ready to run: optimized now, or found optimized in the cache."""
        size = () if reconstructs(self.network) else size
        if size not in self.sessions:
            while len(self.sessions) >= KEPT:
                del self.sessions[next(iter(self.sessions))]
            self.sessions[size] = self.opened(size)
        return self.sessions[size]

    def opened(self, size: Size) -> Any:
        """A new session for a size."""
        file = self.cache / f"{'-'.join([self.identity, *map(str, size)])}.onnx"
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content[32:]).digest() == content[:32]:  # else there is none, or it is damaged
            return open_session(content[32:], self.threads, optimize=False)
        model, _ = model_of(self.network, self.lowered, self.form, size)
        with atomic_path(file) as temporary:
            session = open_session(model.SerializeToString(), self.threads, optimized_model_filepath=str(temporary))
            optimized = temporary.read_bytes()
            temporary.write_bytes(hashlib.sha256(optimized).digest() + optimized)
        return session

    def checked(self) -> list[Check]:
        """The checks of all layers, from the cache or made now; refuses a layer that computes wrongly."""
        file = self.cache / f"{self.identity}-checks.json"
        if file.is_file():
            try:
                return [Check(**check) for check in json.loads(file.read_text(encoding="utf-8"))]
            except (ValueError, TypeError):
                file.unlink(missing_ok=True)  # damaged: checked anew
        snrs, kernels = check_layers(self.network, self.lowered, self.form, self.threads), self.kernels()
        checks = [Check(name, kernels.get(name, "element-wise"), value, value) for name, value in snrs.items()]
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps([asdict(check) for check in checks]), encoding="utf-8")
        return checks

    def kernels(self) -> dict[str, str]:
        """What ran each convolution and linear layer, by ONNX Runtime's own profile: op and provider, by layer."""
        layers = sorted((outcome.name for outcome in self.lowered.report), key=len, reverse=True)
        found = {}
        inputs = check_arrays(self.network)
        model, _ = model_of(self.network, self.lowered, self.form, size_of(inputs))
        for event in profile(model, inputs, self.threads):
            kind = event["args"]["op_name"]
            if "Conv" in kind or "MatMul" in kind or "Gemm" in kind:
                name = next((layer for layer in layers if layer in event["name"]), None)
                if name is not None:
                    found[name] = f"{kind} on {event['args']['provider']}"
        return found


def form_of(network: nn.Module, form: Form | None) -> Form:
    """The form of a network's quantized layers.

    Raises:
        ValueError: the network has no such form.
    """
    own = reconstructs(network)
    if form not in (None, "qdq") and not own:
        raise ValueError(f"form {form} of {type(network).__name__}; wanted qdq, the only one it has; leave it out")
    return form or ("integer" if own else "qdq")


def model_of(
    network: nn.Module, lowered: Lowered, form: Form, size: Size, taps: bool = False
) -> tuple[Any, dict[str, Tap]]:
    """The model of a network for a size, or for any where it has one, and its layers' taps."""
    if reconstructs(network):
        return build(network, lowered, form, taps=taps)
    return build_traced(network, lowered, *size, taps=taps)


def check_layers(network: nn.Module, lowered: Lowered, form: Form, threads: int | None = None) -> dict[str, float]:
    """dB of every layer in ONNX Runtime against the integer reference, for the input that the engine gives it.

    Raises:
        ValueError: a layer is beyond `WRONG`.
    """
    inputs = check_arrays(network)
    listening = model_of(network, lowered, form, size_of(inputs), taps=True)
    channels = 1 if reconstructs(network) else -1
    return check_file(network, lowered, *listening, inputs, channels=channels, threads=threads)


@torch.no_grad()
def check_file(
    network: nn.Module,
    lowered: Lowered,
    model: Any,
    taps: dict[str, Tap],
    inputs: dict[str, np.ndarray],
    *,
    channels: int = 1,
    threads: int | None = None,
) -> dict[str, float]:
    """As `check_layers`, of a model whose taps are outputs too.

    Args:
        network, lowered: what the model was built from.
        model, taps: what was built.
        inputs: of the model, by name.
        channels: the axis of linear layers' channels in the model.
        threads: CPU threads; None leaves it to ONNX Runtime.
    """
    session = open_session(model.SerializeToString(), threads)
    names = [output.name for output in session.get_outputs()]
    results = dict(zip(names, map(torch.from_numpy, session.run(names, inputs)), strict=True))
    heard = {name: ([results[end] for end in tap.inputs], results[tap.output]) for name, tap in taps.items()}
    snrs = compare_layers(network, lowered, heard, channels)
    for name, value in snrs.items():
        if value < WRONG:
            raise ValueError(
                f"ONNX Runtime computes layer {name} wrongly: {value:.0f} dB from the integer reference; wanted "
                f"{WRONG:.0f} or more; run the network in torch"
            )
    return snrs


def open_session(model: bytes, threads: int | None, optimize: bool = True, **settings: Any) -> Any:
    """A session on the CPU; `settings` are attributes of ONNX Runtime's SessionOptions."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; it warns that a saved model belongs to this machine
    options.intra_op_num_threads = threads or 0
    # Without VNNI, products of u8 and s8 saturate in 16 bits unless this is asked for.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # No fusion of quantizers applies here; without them, dequantized weights are computed once.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in settings.items():
        setattr(options, name, value)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def profile(model: Any, inputs: dict[str, np.ndarray], threads: int | None) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile, one for each node that ran on some inputs."""
    with TemporaryDirectory() as folder:
        prefix = str(Path(folder) / "profile")
        session = open_session(model.SerializeToString(), threads, enable_profiling=True, profile_file_prefix=prefix)
        session.run(None, inputs)
        file = Path(session.end_profiling())
        try:
            events = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OSError(
                f"{file}, written by ONNX Runtime, is not whole ({error}); wanted room for temporary files; free some"
            ) from error
    return [event for event in events if event.get("cat") == "Node" and "op_name" in event.get("args", {})]


def check_arrays(network: nn.Module, *size: int) -> dict[str, np.ndarray]:
    """The inputs of the model on which layers are checked, or those for a size, by name."""
    task = of(network)
    arrays = (one.numpy() for one in example(network, *(size or (CHECKED if task.still else ()))))
    return dict(zip(task.inputs, arrays, strict=True))


def size_of(inputs: dict[str, np.ndarray]) -> Size:
    """Height and width of a picture; frames, height and width of a video."""
    *_, last = inputs.values()
    return last.shape[2:] if len(inputs) == 1 else last.shape[1:]
