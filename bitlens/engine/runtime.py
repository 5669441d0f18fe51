"""Runs what OpenVINO has compiled: numpy in, numpy out, without torch and without the network.

`Engine` (openvino.py) builds, checks and compiles; a `Compiled` of some kind finds that in the cache, so a second
start is quick and small. It knows the network as an identity, and a size: that of a video as (frames, height,
width), that of a picture as (height, width).
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from bitlens.files import atomic_path

Size = tuple[int, ...]
Entered = tuple[np.ndarray, ...]
"""The inputs of a model, each with the same batch."""

KEPT = 2
"""Compiled models that are held at once: each has the memory that it computes in."""


def openvino() -> ModuleType:
    """The `openvino` package, without its telemetry.

    `openvino_telemetry` writes an identity into the home folder when it is imported, and counts calls. Hidden from
    the import, OpenVINO puts its own empty stand-in into its place.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def user_cache(engine: str) -> Path:
    """The user's folder for an engine's models: XDG_CACHE_HOME, or .cache in the home folder, and bitlens/ENGINE."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlens" / engine


def code() -> str:
    """A hash of the code of this folder."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def code_and_machine() -> str:
    """A hash of what every compiled model depends on: this folder's code, OpenVINO's version, the CPU."""
    facts = code(), openvino().__version__, openvino().Core().get_property("CPU", "FULL_DEVICE_NAME")
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def cpu_features() -> str:
    """What decides which kernels a library chooses: architecture and, where Linux tells them, the CPU's features."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


class Compiled:
    """The compiled models of one network, one for each size.

    Args:
        identity: hash of the network and of all that compiling it depends on.
        settings: OpenVINO's.
        cache: folder of compiled models.
        build: makes the OpenVINO model for a size that is not in the cache; None: such sizes are refused.
    """

    def __init__(
        self,
        identity: str,
        settings: dict[str, Any],
        cache: Path,
        build: Callable[..., Any] | None = None,
    ):
        self.identity, self.settings, self.cache, self.build = identity, settings, cache, build
        self.core = openvino().Core()
        self.compiled: dict[Size, Any] = {}

    def run(self, size: Size, entered: Entered) -> Float[np.ndarray, "b *result"]:
        """What the model for a size computes of its inputs, one of a batch after the other."""
        compiled = self.compile(*size)
        batch = range(len(entered[0]))
        return np.concatenate([compiled([one[i : i + 1] for one in entered])[0] for i in batch])

    def fit(self, size: Size) -> Size:
        """The size of the model that runs inputs of a size."""
        return size

    def compile(self, *size: int) -> Any:
        """The compiled model for a size that `fit` gives, from the cache if it is there.

        Raises:
            LookupError: it is not, and nothing can build it.
        """
        if size not in self.compiled:
            compiled = self.cached(size)
            if compiled is None:
                if self.build is None:
                    raise LookupError(f"no compiled model of {'x'.join(map(str, size))} here; build one with Engine")
                compiled = self.core.compile_model(self.build(*size), "CPU", self.settings)
                blob = compiled.export_model().getvalue()
                with atomic_path(self.file(size)) as temporary:
                    temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
            while len(self.compiled) >= KEPT:
                del self.compiled[next(iter(self.compiled))]
            self.compiled[size] = compiled
        return self.compiled[size]

    def cached(self, size: Size) -> Any:
        """The compiled model of a file of the cache; None where there is none, or a damaged one."""
        file = self.file(size)
        content = file.read_bytes() if file.is_file() else b""
        digest, blob = content[:32], content[32:]
        if hashlib.sha256(blob).digest() != digest:
            return None  # it is built, and written, anew
        return self.core.import_model(blob, "CPU", self.settings)

    def file(self, size: Size) -> Path:
        """Where a compiled model is kept."""
        return self.cache / f"{self.identity}-{'x'.join(map(str, size))}.blob"

    def remember(self, key: str, note: str) -> None:
        """Write down what this runtime is, under a key that names what it was made of, with a note for people."""
        about = {name: getattr(self, name) for name in ("identity", "settings")}
        about |= {"kind": type(self).__name__, "note": note}
        with atomic_path(self.cache / f"{key}-runtime.json") as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")

    @staticmethod
    def recall(key: str, cache: Path, size: Size) -> tuple[Any, str] | None:
        """What `remember` wrote down, with its note, if a model for this size is there too and whole."""
        file = cache / f"{key}-runtime.json"
        if not file.is_file():
            return None
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            kind, note = RUNTIMES[about["kind"]], str(about["note"])
            runtime = kind(about["identity"], about["settings"], cache)
        except (ValueError, KeyError, TypeError):
            return None  # damaged: made anew
        fitting = runtime.fit(size)
        compiled = runtime.cached(fitting)
        if compiled is None:
            return None
        runtime.compiled[fitting] = compiled
        return runtime, note


class Runtime(Compiled):
    """The compiled models of EfficientSCI's own graph, which its initial estimate enters."""

    def __call__(
        self, measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
    ) -> Float[np.ndarray, "b c t h w"]:
        """The video of a measurement, which is the plain sum over time, and its mask."""
        h, w = measurement.shape[-2:]
        return self.run(*self.enter(measurement, mask))[..., :h, :w]

    def enter(
        self, measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
    ) -> tuple[Size, Entered]:
        """The size of the model, and its input: the initial estimate (b, 1, t, h2, w2), padded to even h and w."""
        estimate = initial_estimate(measurement, mask)
        h, w = estimate.shape[-2:]
        if h % 2 or w % 2:
            estimate = np.pad(estimate, [(0, 0)] * 3 + [(0, h % 2), (0, w % 2)], mode="edge")
        return estimate.shape[2:], (estimate,)

    def fit(self, size: Size) -> Size:
        """Frames, and even height and width."""
        frames, height, width = size
        return frames, height + height % 2, width + width % 2


class PictureRuntime(Compiled):
    """The compiled models of a network that enlarges pictures."""

    def __call__(self, image: Float[np.ndarray, "b 3 h w"]) -> Float[np.ndarray, "b 3 h2 w2"]:
        """The enlarged picture, not clipped, of RGB in [0, 1]."""
        return self.run(*self.enter(image))

    def enter(self, image: Float[np.ndarray, "b 3 h w"]) -> tuple[Size, Entered]:
        """The size of the model, and its input: the picture as it is."""
        return image.shape[2:], (np.ascontiguousarray(image, np.float32),)


class VideoRuntime(Compiled):
    """The compiled models of a network for video that was read off its code."""

    def __call__(
        self, measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
    ) -> Float[np.ndarray, "b c t h w"]:
        """The video of a measurement, which is the plain sum over time, and its mask."""
        return self.run(*self.enter(measurement, mask))

    def enter(
        self, measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
    ) -> tuple[Size, Entered]:
        """The size of the model, and its inputs: measurement, and a mask for each."""
        size = mask.shape[1:]
        return size, (np.ascontiguousarray(measurement), np.broadcast_to(mask, (len(measurement), *size)))


RUNTIMES = {kind.__name__: kind for kind in (Runtime, PictureRuntime, VideoRuntime)}


def initial_estimate(
    measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
) -> Float[np.ndarray, "b 1 t h w"]:
    """`networks.efficientsci.initial_estimate`, in numpy and float32."""
    measurement, mask = np.asarray(measurement, np.float32), np.asarray(mask, np.float32)
    total = mask.sum(1)
    mean = (measurement / np.where(total == 0, np.float32(1), total))[:, None]  # b 1 h w
    return (mean + mask * mean)[:, None]
