"""Runs what OpenVINO has compiled: numpy in, numpy out, without torch and without the network.

`Engine` (openvino.py) builds, checks and compiles; a `Runtime` finds that in the cache, so a second start is quick and
small. It knows the network as an identity, the size of a video as (frames, height, width).
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float

from bitlens.files import atomic_path

Size = tuple[int, int, int]


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


class Runtime:
    """The compiled models of one network, one for each size of video.

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
        build: Callable[[int, int, int], Any] | None = None,
    ):
        self.identity, self.settings, self.cache, self.build = identity, settings, cache, build
        self.core = openvino().Core()
        self.compiled: dict[Size, Any] = {}

    def __call__(
        self, measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
    ) -> Float[np.ndarray, "b c t h w"]:
        """The video of a measurement, which is the plain sum over time, and its mask."""
        estimate = initial_estimate(measurement, mask)  # b 1 t h w
        h, w = estimate.shape[-2:]
        if h % 2 or w % 2:
            estimate = np.pad(estimate, [(0, 0)] * 3 + [(0, h % 2), (0, w % 2)], mode="edge")
        compiled = self.compile(estimate.shape[2], estimate.shape[3], estimate.shape[4])
        return np.concatenate([compiled(one[None])[0] for one in estimate])[..., :h, :w]

    def compile(self, frames: int, height: int, width: int) -> Any:
        """The compiled model for one size of video, with even height and width, from the cache if it is there.

        Raises:
            LookupError: it is not, and nothing can build it.
        """
        size = (frames, height, width)
        if size not in self.compiled:
            compiled = self.cached(size)
            if compiled is None:
                if self.build is None:
                    raise LookupError(f"no compiled model of {frames}x{height}x{width} here; build one with Engine")
                compiled = self.core.compile_model(self.build(*size), "CPU", self.settings)
                blob = compiled.export_model().getvalue()
                with atomic_path(self.file(size)) as temporary:
                    temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
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
        about = {"identity": self.identity, "settings": self.settings, "note": note}
        with atomic_path(self.cache / f"{key}-runtime.json") as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def recall(cls, key: str, cache: Path, size: Size) -> "tuple[Runtime, str] | None":
        """What `remember` wrote down, with its note, if a model for this size is there too and whole."""
        file = cache / f"{key}-runtime.json"
        if not file.is_file():
            return None
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            runtime, note = cls(about["identity"], about["settings"], cache), str(about["note"])
        except (ValueError, KeyError, TypeError):
            return None  # damaged: made anew
        even = size[0], size[1] + size[1] % 2, size[2] + size[2] % 2
        compiled = runtime.cached(even)
        if compiled is None:
            return None
        runtime.compiled[even] = compiled
        return runtime, note


def initial_estimate(
    measurement: Float[np.ndarray, "b h w"], mask: Float[np.ndarray, "b_or_1 t h w"]
) -> Float[np.ndarray, "b 1 t h w"]:
    """`networks.efficientsci.initial_estimate`, in numpy and float32."""
    measurement, mask = np.asarray(measurement, np.float32), np.asarray(mask, np.float32)
    total = mask.sum(1)
    mean = (measurement / np.where(total == 0, np.float32(1), total))[:, None]  # b 1 h w
    return (mean + mask * mean)[:, None]
