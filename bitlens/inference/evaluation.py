"""PSNR and SSIM of networks on a test set: `evaluate`, scenes for video, images for super-resolution."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from bitlens.engine.registry import Name
from bitlens.progress import progress

if TYPE_CHECKING:
    from bitlens.data.benchmarks import Scene

__all__ = ["Evaluation", "Score", "evaluate", "stages_psnr"]


@dataclass(frozen=True)
class Score:
    """How close a result is to the truth."""

    psnr: float
    """dB."""
    ssim: float | None
    """None where it was not asked for."""
    flicker: float | None = None
    """Of videos, in levels of 1 (`metrics.flicker`); None of images."""
    banding: float | None = None
    """Of videos, in levels of 255 (`metrics.banding`); None of images, and where the truth has no flat place."""


@dataclass(frozen=True)
class Evaluation:
    """One network's scores on a test set, and all settings that they depend on."""

    model: str
    scenes: dict[str, Score]
    """Of every scene or image."""
    average: Score
    settings: dict[str, Any]
    """Checkpoint and its hash, data, mask, the conventions of PSNR and SSIM, engine, seconds, versions."""
    stages: list[float] | None = None
    """Of an unfolding network, where it was asked for: dB after each stage."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        scenes, stages = {name: asdict(score) for name, score in self.scenes.items()}, self.stages
        more = {} if stages is None else {"stages": stages}
        return {"scenes": scenes, "average": asdict(self.average), **more, "settings": self.settings}


def evaluate(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str] = "six-scenes",
    *,
    mask: str | os.PathLike[str] | None = None,
    frames: int = 8,
    seed: int = 0,
    ssim: bool = True,
    engine: Name = "torch",
    stages: bool = False,
    faithful: bool = False,
) -> list[Evaluation]:
    """Measure networks on a test set, one after the other.

    Networks for video: every scene is measured with one mask, rebuilt, and compared with the truth; grey floats,
    neither rounded nor clipped, mean over the frames of a scene, then over the scenes (`metrics.psnr_sci`). For
    super-resolution: images made small by bicubic interpolation are enlarged; luma of images rounded to 8 bits, a
    border as wide as the scale left out (`metrics.psnr_y`). For restoration: images are damaged as "+jpeg-10" or
    "+noise-25" behind the test set's name says; luma after JPEG, all colours of noisy ones (`metrics.psnr_rgb`).

    Args:
        models: shipped names, paths of checkpoints, or "gap-tv"; all for one task.
        data: a named test set, or a folder or file of scenes or images; for restoration "set14+jpeg-10".
        mask: to measure with, a file. None: the test set's, else a random one.
        frames, seed: of a random mask.
        ssim: compute SSIM too, which takes longer.
        engine: what computes. Claims of checkpoints are of torch.
        stages: of unfolding networks also the PSNR after each stage.
        faithful: of restored JPEGs: hold them to what their files say (`restore`).

    Raises:
        FileNotFoundError: a model or file is missing.
        ValueError: no model, networks for several tasks, an unknown test set, or two scenes of one name.

    Example:
        >>> bitlens.evaluate("dun-w4a4", "six-scenes")[0].average.psnr  # doctest: +SKIP
        31.03
    """
    from bitlens import checkpoint
    from bitlens.data.benchmarks import load_scenes

    models, data = [models] if isinstance(models, str | os.PathLike) else list(models), os.fspath(data)
    if not models:
        raise ValueError("no model; wanted at least one name or path; for example gap-tv")
    named = [os.fspath(model) for model in models]
    networks = [(checkpoint.describe(model), checkpoint.load(model)) for model in named]
    tasks = {about.task for about, _ in networks}
    if len(tasks) > 1:
        found = ", ".join(f"{about.name} for {about.task}" for about, _ in networks)
        raise ValueError(f"networks for several tasks came ({found}); wanted one kind; evaluate them apart")
    if faithful and not (tasks == {"restoration"} and "+jpeg" in data):
        raise ValueError(f"faithful restoring of {data}; wanted a network for it and JPEGs; for example set14+jpeg-10")
    of_images = {"super-resolution": _of_enlarged, "restoration": partial(_of_restored, faithful=faithful)}
    for task in tasks & set(of_images):
        return [of_images[task](about, network, data, engine, ssim) for about, network in networks]
    scenes = load_scenes(data)
    masks, source = _masks(scenes, data, mask, frames, seed)
    return [
        _of_scenes(about, network, scenes, masks, data, source, engine, ssim, stages) for about, network in networks
    ]


def _masks(
    scenes: "list[Scene]", data: str, mask: str | os.PathLike[str] | None, frames: int, seed: int
) -> tuple[list[np.ndarray], str]:
    """The mask of every scene, and where it comes from in words."""
    from bitlens.data.benchmarks import BENCHMARKS, benchmark_mask
    from bitlens.data.masks import random_mask, read_mask

    if mask is not None:
        return [read_mask(mask)] * len(scenes), f"mask from {mask}"
    if data in BENCHMARKS:
        return [benchmark_mask()] * len(scenes), "mask benchmark.npz, stored with the scenes"
    sizes = [scene.video.shape[1:] for scene in scenes]
    masks = [random_mask(frames, height, width, seed) for height, width in sizes]
    return masks, f"random mask with half the pixels open, seed {seed}"


def _of_scenes(
    about: Any,
    network: Any,
    scenes: "list[Scene]",
    masks: list[np.ndarray],
    data: str,
    source: str,
    engine: Name,
    ssim: bool,
    stages: bool,
) -> Evaluation:
    """One network for video."""
    from bitlens.data.capture import simulate
    from bitlens.engine.registry import choose_engine
    from bitlens.inference.videos import rebuilt, score

    reached = stages_psnr(network, about.name, scenes, masks) if stages else None
    running, how = choose_engine(network, engine)
    scores: dict[str, Score] = {}
    seconds, used = [], {}
    for scene, mask in zip(scenes, masks, strict=True):
        if scene.name in scores:
            raise ValueError(f"{scene.source}: a second scene '{scene.name}'; wanted one of each name; rename one")
        try:
            capture = simulate(scene.video, mask)
        except ValueError as error:
            raise ValueError(f"{scene.source}: {error}") from error
        video, times = rebuilt(running, capture.measurement, capture.mask, f"{about.name}: {scene.name}")
        assert capture.reference is not None
        scores[scene.name] = Score(**score(video, capture.reference, ssim, film=True))
        used[scene.name] = len(video)
        seconds += times
    settings = {
        **_identity(about),
        "data": data,
        "mask": source,
        "frames_per_measurement": len(masks[0]),
        "frames_used": used,
        "psnr": "psnr_sci: grey floats, not rounded, not clipped, mean over frames, then over scenes",
        "ssim": "ssim_sci: as psnr_sci, Gaussian window 11x11, sigma 1.5" if ssim else None,
        "flicker": "flicker: rms of the errors of changes from frame to frame, white 1",
        "banding": "banding: distance of the histograms of gradients in flat places, levels of 255",
        "engine": how,
        "seconds_per_measurement": median(seconds),
    }
    return _evaluation(about.name, scores, settings, reached)


def _of_enlarged(about: Any, network: Any, data: str, engine: Name, ssim: bool) -> Evaluation:
    """One network for super-resolution."""
    from bitlens.data.pairs import load_pairs
    from bitlens.metrics import psnr_y, ssim_y

    scale = network.scale
    pairs = load_pairs(data, scale)
    stored = all(pair.low is not None for pair in pairs)

    def score(large: np.ndarray, high: np.ndarray) -> Score:
        return Score(psnr_y(large, high, shave=scale), ssim_y(large, high, shave=scale) if ssim else None)

    settings = {
        "data": data,
        "scale": scale,
        "low_resolution": "stored with the pictures" if stored else "made by Downsample.shrink_levels",
        "psnr": f"psnr_y: RGB rounded to 8 bits, luma of BT.601, border of {scale} shaved, mean over pictures",
        "ssim": "ssim_y: as psnr_y, Gaussian window 11x11, sigma 1.5" if ssim else None,
    }
    return _of_images(
        about, network, ((pair.name, *pair.read()) for pair in pairs), len(pairs), score, settings, engine
    )


def _of_restored(about: Any, network: Any, data: str, engine: Name, ssim: bool, faithful: bool = False) -> Evaluation:
    """One network for restoration."""
    from bitlens.data.damage import KINDS, damaged, parse, steps_of
    from bitlens.data.levels import to_float, to_levels
    from bitlens.data.pairs import load_pairs, read_picture
    from bitlens.metrics import psnr_rgb, psnr_y, ssim_y

    name, _, kind = data.rpartition("+")
    if not name:
        raise ValueError(
            f"the test set {data} has no damage to restore; wanted {data}+{KINDS}; for example {data}+jpeg-10"
        )
    what, amount = parse(kind)
    noise = what == "noise"
    psnr = psnr_rgb if noise else partial(psnr_y, shave=0)
    pairs = load_pairs(name, 1)

    def images() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for pair in pairs:
            levels = read_picture(pair.high)
            yield pair.name, to_float(damaged(levels, kind)), to_float(levels)

    def held(found: np.ndarray, given: np.ndarray) -> np.ndarray:
        return np.concatenate(list(steps_of(amount).hold([found], to_levels(given))), 1)

    def score(restored: np.ndarray, truth: np.ndarray) -> Score:
        return Score(psnr(restored, truth), ssim_y(restored, truth, shave=0) if ssim else None)

    settings = {
        "data": data,
        "damage": "normal noise, seed 0, rounded to 8 bits" if noise else "JPEG, 4:2:0",
        "psnr": f"{'psnr_rgb, all colours' if noise else 'psnr_y, luma of BT.601'}: 8 bits, mean over images",
        "ssim": "ssim_y: luma rounded to 8 bits, Gaussian window 11x11, sigma 1.5" if ssim else None,
    }
    if faithful:
        settings["held"] = "luma, to the file's steps (data.jpeg)"
    return _of_images(about, network, images(), len(pairs), score, settings, engine, held if faithful else None)


def _of_images(
    about: Any,
    network: Any,
    images: Iterable[tuple[str, np.ndarray, np.ndarray]],
    count: int,
    score: Callable[[np.ndarray, np.ndarray], Score],
    settings: dict[str, Any],
    engine: Name,
    after: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Evaluation:
    """One network on images: (name, what it is given, the truth); `after` makes more of what was found and given."""
    from bitlens.engine.registry import choose_engine
    from bitlens.inference.images import enlarge
    from bitlens.inference.machine import keep_freed_memory

    keep_freed_memory()
    running, how = choose_engine(network, engine)
    scores: dict[str, Score] = {}
    seconds = pixels = 0.0
    with progress("pictures") as bar:
        for name, given, truth in bar.track(images, total=count, description=about.name):
            if name in scores:
                raise ValueError(
                    f"a second picture '{name}' in {settings['data']}; wanted one of each name; rename one"
                )
            begun = time.perf_counter()
            found = enlarge(running, given, f"{about.name}: {name}")
            found = after(found, given) if after else found
            seconds, pixels = seconds + time.perf_counter() - begun, pixels + given[0].size
            scores[name] = score(found, truth)
    settings = {**_identity(about), **settings, "seconds_per_megapixel": seconds / pixels * 1e6, "engine": how}
    return _evaluation(about.name, scores, settings, None)


def _identity(about: Any) -> dict[str, Any]:
    """Which checkpoint it was."""
    from bitlens.checkpoint import weights_sha256

    return {
        "model": about.name,
        "checkpoint": None if about.path is None else about.path.name,
        "sha256": None if about.path is None else weights_sha256(about.path),
    }


def _evaluation(
    model: str, scores: dict[str, Score], settings: dict[str, Any], stages: list[float] | None
) -> Evaluation:
    """Scores with their average and the facts of the run."""
    from bitlens.inference.machine import describe_run

    def mean(measure: str) -> float | None:
        known = [value for one in scores.values() if (value := getattr(one, measure)) is not None]
        return fmean(known) if known else None

    average = Score(fmean(one.psnr for one in scores.values()), mean("ssim"), mean("flicker"), mean("banding"))
    return Evaluation(model, scores, average, settings | describe_run(), stages)


def stages_psnr(network: Any, label: str, scenes: "list[Scene]", masks: list[np.ndarray]) -> list[float]:
    """PSNR of the video after each stage of an unfolding network, mean over scenes.

    Raises:
        ValueError: the network has no stages.
    """
    import torch

    from bitlens.data.capture import simulate
    from bitlens.metrics import psnr_sci

    if not hasattr(network, "priors"):
        raise ValueError(f"{label} has no stages; wanted an unfolding network; leave --stages out")
    found: list[list[float]] = []
    with progress("scenes") as bar:
        for scene, mask in zip(bar.track(scenes, description=f"{label}, stage by stage"), masks, strict=True):
            capture = simulate(scene.video, mask)
            assert capture.reference is not None
            with torch.inference_mode():
                videos = network(torch.from_numpy(capture.measurement), torch.from_numpy(mask)[None], True)
            found.append([psnr_sci(video.flatten(0, 2).numpy(), capture.reference) for video in videos])
    return [fmean(scores) for scores in zip(*found, strict=True)]
