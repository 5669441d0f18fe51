"""bitlens: low-bit networks for video snapshot compressive imaging that keep their quality and run faster.

The public names; everything else is reached through its module (`bitlens.operators`, `bitlens.quant`, ...):

    load           a network from a packed .safetensors checkpoint, float or quantized
    save           a network into one, with its recipe and provenance
    from_official  a network from an official state dict, float or low-bit, with a key-by-key report
    quantize       a float network and a recipe (or a published method's name) -> a fake-quantized network
    lower          a fake-quantized network -> the integers of every layer, and a report of how each runs
    VideoSCI       the camera: A, A_adjoint, A_dagger, prox_l2 for one mask
    measure        a video file or tensor -> the coded measurement that a camera would take of it
    reconstruct    measurements and their mask, files or arrays -> the video, on any engine, in tiles that fit
    upscale        an image or film, a file or an array -> a larger one, on any engine, in tiles that fit
    restore        an image or film -> the same without noise and what JPEG left behind
    start          a network made ready once, for many calls of the three above
    evaluate       networks and a test set -> PSNR and SSIM
    benchmark      low-bit networks -> their measured speed beside every float engine
    tune           a float network and budgets -> the best low-bit network within them, as a file

Nothing is imported before it is used: `import bitlens` takes milliseconds and does not import torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitlens.bench.networks import benchmark
    from bitlens.checkpoint import load, save
    from bitlens.data.capture import measure
    from bitlens.engine.lower import lower
    from bitlens.inference.evaluation import evaluate
    from bitlens.inference.images import restore, upscale
    from bitlens.inference.starting import start
    from bitlens.inference.videos import reconstruct
    from bitlens.methods import quantize
    from bitlens.official import from_official
    from bitlens.operators import VideoSCI
    from bitlens.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "VideoSCI", "__version__", "benchmark", "evaluate", "from_official", "load", "lower", "measure", "quantize",
    "reconstruct", "restore", "save", "start", "tune", "upscale",
]  # fmt: skip

_HOME = {
    "load": "bitlens.checkpoint",
    "save": "bitlens.checkpoint",
    "from_official": "bitlens.official",
    "quantize": "bitlens.methods",
    "VideoSCI": "bitlens.operators",
    "measure": "bitlens.data.capture",
    "lower": "bitlens.engine.lower",
    "reconstruct": "bitlens.inference.videos",
    "upscale": "bitlens.inference.images",
    "restore": "bitlens.inference.images",
    "start": "bitlens.inference.starting",
    "evaluate": "bitlens.inference.evaluation",
    "benchmark": "bitlens.bench.networks",
    "tune": "bitlens.tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or a module of this package, when it is first asked for."""
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module 'bitlens' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
