"""`bitlens evaluate`: PSNR and SSIM of networks on a test set, scene by scene, as a table and as JSON.

Video networks are scored on scenes here, super-resolution networks on pictures by `pictures.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.engine.registry import Name

if TYPE_CHECKING:
    import numpy as np

    from bitlens.data.benchmarks import Scene


@dataclass(frozen=True)
class Evaluate:
    """Measure the scenes of a test set with one mask, reconstruct them, and compare with the truth.

    PSNR and SSIM are video SCI's: grey floats, neither rounded nor clipped, mean over the frames of a scene,
    then mean over the scenes. Numbers are comparable only with the same mask.

    Super-resolution networks enlarge the pictures of a test set, made small by bicubic interpolation. PSNR and SSIM are
    then super-resolution's: luma of pictures rounded to 8 bits, a border as wide as the scale left out.

    Example:
        bitlens evaluate gap-tv efficientsci-t-qsci-w4a4 --data six-scenes --json results.json
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """One or more checkpoints: shipped names (see `bitlens models`), paths of .safetensors, or gap-tv."""
    data: str = "six-scenes"
    """A named test set (six-scenes), or a folder or file of scenes (.npz .mat .mp4 .avi .mkv .gif .avif); for
    super-resolution set5, set14, b100, urban100, manga109 or urban10, or a folder of large pictures."""
    json: Path | None = None
    """Write scenes, average and settings to this file: one object, or for several models a list of them."""
    mask: Path | None = None
    """The mask to measure with. Default: the benchmark's for six-scenes, else a random one from --seed."""
    frames: int = 8
    """Frames per measurement of a random mask."""
    seed: int = 0
    """Seed of a random mask."""
    ssim: bool = True
    """Compute SSIM too, which takes longer."""
    engine: Name = "torch"
    """What computes, as for `bitlens reconstruct`. Claims of checkpoints are of torch."""
    stages: bool = False
    """Of unfolding networks: also the PSNR of the video after each stage, in torch."""

    def run(self) -> None:
        from bitlens.cli.shared import output_file
        from bitlens.report import console

        with output_file(self.json) as json_path:
            results = self.results()
            if json_path is not None:
                content = results[0] if len(results) == 1 else results
                json_path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        out = console()
        out.print(self._table(results))
        for result in results:
            if "stages" in result:
                reached = ", ".join(f"{psnr:.2f}" for psnr in result["stages"])
                out.print(f"{result['settings']['model']}: {reached} dB after each stage")
            out.print(speed_in_words(result["settings"]))
        if self.json:
            out.print(f"settings and scores: {self.json}")

    def results(self) -> list[dict[str, Any]]:
        """Scores of the scenes, their average, and all settings: one for each model, as written to the file."""
        from bitlens import checkpoint
        from bitlens.cli.pictures import evaluate_pictures, scale_of
        from bitlens.cli.shared import check_seed
        from bitlens.data.benchmarks import load_scenes

        if not self.models:
            raise ValueError("no model; wanted at least one name or path; for example gap-tv")
        check_seed(self.seed)
        networks = [(checkpoint.describe(model), checkpoint.load(model)) for model in self.models]
        if any(scale_of(network) for _, network in networks):
            return evaluate_pictures(networks, self.data, self.engine, self.ssim)
        scenes = load_scenes(self.data)
        masks, source = self._masks(scenes)
        return [self._evaluate(about, network, scenes, masks, source) for about, network in networks]

    def _masks(self, scenes: "list[Scene]") -> "tuple[list[np.ndarray], str]":
        """The mask of every scene, and where it comes from in words."""
        from bitlens.data.benchmarks import BENCHMARKS, benchmark_mask
        from bitlens.data.masks import random_mask, read_mask

        if self.mask is not None:
            return [read_mask(self.mask)] * len(scenes), f"mask from {self.mask}"
        if self.data in BENCHMARKS:
            return [benchmark_mask()] * len(scenes), "mask benchmark.npz, stored with the scenes"
        sizes = [scene.video.shape[1:] for scene in scenes]
        masks = [random_mask(self.frames, height, width, self.seed) for height, width in sizes]
        return masks, f"random mask with half the pixels open, seed {self.seed}"

    def _evaluate(self, about: Any, network: Any, scenes: "list[Scene]", masks: list, source: str) -> dict[str, Any]:
        """One model's result, as it is written to the file."""
        from statistics import fmean, median

        from bitlens.checkpoint import weights_sha256
        from bitlens.cli.shared import describe_run, reconstruct, score
        from bitlens.data.capture import simulate
        from bitlens.engine.registry import choose_engine

        stages = stages_psnr(network, about.name, scenes, masks) if self.stages else None
        network, how = choose_engine(network, self.engine)
        scores: dict[str, Any] = {}
        seconds, used = [], {}
        for scene, mask in zip(scenes, masks, strict=True):
            if scene.name in scores:
                raise ValueError(f"{scene.source}: a second scene '{scene.name}'; wanted one of each name; rename one")
            try:
                capture = simulate(scene.video, mask)
            except ValueError as error:
                raise ValueError(f"{scene.source}: {error}") from error
            label = f"{about.name}: {scene.name}"
            video, times = reconstruct(network, capture.measurement, capture.mask, label)
            assert capture.reference is not None
            scores[scene.name] = score(video, capture.reference, self.ssim)
            used[scene.name] = len(video)
            seconds += times
        average: dict[str, Any] = {"psnr": fmean(one["psnr"] for one in scores.values())}
        average["ssim"] = fmean(one["ssim"] for one in scores.values()) if self.ssim else None
        settings = {
            "model": about.name,
            "checkpoint": None if about.path is None else about.path.name,
            "sha256": None if about.path is None else weights_sha256(about.path),
            "data": self.data,
            "mask": source,
            "frames_per_measurement": len(masks[0]),
            "frames_used": used,
            "psnr": "psnr_sci: grey floats, not rounded, not clipped, mean over frames, then over scenes",
            "ssim": "ssim_sci: as psnr_sci, Gaussian window 11x11, sigma 1.5" if self.ssim else None,
            "engine": how,
            "seconds_per_measurement": median(seconds),
            **describe_run(),
        }
        head = {} if len(self.models) == 1 else {"model": about.name}
        more = {} if stages is None else {"stages": stages}
        return head | {"scenes": scores, "average": average, **more, "settings": settings}

    def _table(self, results: list[dict[str, Any]]) -> Any:
        from bitlens.report import table

        columns = ["scene"]
        for result in results:
            columns += [f"{result['settings']['model']}\nPSNR (dB)", *(["\nSSIM"] if self.ssim else [])]
        rows = []
        for name in [*results[0]["scenes"], "average"]:
            row = [name]
            for result in results:
                one = result["average"] if name == "average" else result["scenes"][name]
                row += [f"{one['psnr']:.2f}", *([f"{one['ssim']:.4f}"] if self.ssim else [])]
            rows.append(row)
        return table(f"{self.data}", columns, rows)


def stages_psnr(network: Any, label: str, scenes: "list[Scene]", masks: "list[np.ndarray]") -> list[float]:
    """PSNR of the video after each stage of an unfolding network, mean over scenes.

    Raises:
        ValueError: the network has no stages.
    """
    from statistics import fmean

    import torch

    from bitlens.cli.shared import progress
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


def speed_in_words(settings: dict[str, Any]) -> str:
    """How long one model took, and on what."""
    if "scale" in settings:
        return (
            f"{settings['model']}: {settings['seconds_per_megapixel']:.1f} s per million pixels of the small pictures, "
            f"{settings['threads']} threads, {settings['engine']}; small pictures {settings['low_resolution']}"
        )
    return (
        f"{settings['model']}: {settings['seconds_per_measurement']:.2f} s per measurement of "
        f"{settings['frames_per_measurement']} frames, {settings['threads']} threads, {settings['engine']}; "
        f"{settings['mask']}"
    )
