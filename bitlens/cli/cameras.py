"""`bitlens cameras`: PSNR of networks through many cameras: other masks, other numbers of frames, noise."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bitlens.engine.registry import Name

if TYPE_CHECKING:
    import numpy as np

    from bitlens.data.benchmarks import Scene

FRAMES = (4, 10, 16, 24)
NOISES = ((1000.0, 0.01), (200.0, 0.02))
"""Electrons of an open white frame, and read noise in open white frames: a good sensor, and a dim scene."""


@dataclass(frozen=True)
class Cameras:
    """Measure the scenes of a test set through many cameras, reconstruct them with each model, and compare.

    The cameras: a random binary mask of 8 frames (for six-scenes the benchmark's own), --camera-mask whole and its
    first 8 frames, one pattern shifted by a pixel a frame, random masks of 4, 10, 16 and 24 frames, and the first mask
    with the noise of two sensors. A scene with fewer frames than a mask is played to and fro. PSNR is psnr_sci: mean
    over frames, then over scenes.

    Example:
        bitlens cameras gap-tv efficientsci-t dun --camera-mask camera.mat --json cameras.json
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """One or more checkpoints: shipped names (see `bitlens models`), paths of .safetensors, or gap-tv."""
    data: str = "six-scenes"
    """A named test set, or a folder or file of scenes, as for bitlens evaluate."""
    camera_mask: Path | None = None
    """A real camera's calibrated mask, at least as large as the scenes: .mat .npz .npy .tif, or a folder of images."""
    seed: int = 0
    """Decides random masks and noise."""
    engine: Name = "auto"
    """What computes, as for `bitlens reconstruct`."""
    json: Path | None = None
    """Also write scenes, averages and settings to this file."""

    def run(self) -> None:
        from bitlens import checkpoint
        from bitlens.cli.shared import check_seed, output_file
        from bitlens.data.benchmarks import load_scenes
        from bitlens.engine.registry import choose_engine
        from bitlens.inference.machine import describe_run
        from bitlens.report import console, table

        if not self.models:
            raise ValueError("no model; wanted at least one name or path; for example gap-tv")
        check_seed(self.seed)
        with output_file(self.json) as json_path:
            scenes = load_scenes(self.data)
            masks = self.masks(scenes[0].video.shape[1:])
            networks = {checkpoint.describe(name).name: checkpoint.load(name) for name in self.models}
            results = []
            for camera, (mask, noise) in masks.items():
                psnr = {}
                for name, network in networks.items():
                    running, _ = choose_engine(network, self.engine)
                    psnr[name] = self.scores(running, scenes, mask, noise, f"{camera}: {name}")
                results.append({"camera": camera, "frames": len(mask), "noise": noise, "psnr": psnr})
            if json_path is not None:
                masked = None if self.camera_mask is None else self.camera_mask.name
                settings = {"data": self.data, "camera_mask": masked, "seed": self.seed, "engine": self.engine}
                content = {"models": list(networks), "cameras": results, "settings": settings | describe_run()}
                json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        rows = [[one["camera"], *(f"{mean(one['psnr'][name]):.2f}" for name in networks)] for one in results]
        console().print(table(f"{self.data}, PSNR (dB)", ["camera", *networks], rows))

    def masks(self, size: tuple[int, ...]) -> "dict[str, tuple[np.ndarray, tuple[float, float] | None]]":
        """Each camera's mask (t, h, w) and noise, by what it is called in the table."""
        from bitlens.data.benchmarks import BENCHMARKS, benchmark_mask
        from bitlens.data.masks import random_mask, read_mask, shifted_mask

        height, width = size
        first = benchmark_mask() if self.data in BENCHMARKS else random_mask(8, height, width, self.seed)
        chosen: dict[str, Any] = {"binary, 8 frames": (first, None)}
        if self.camera_mask is not None:
            mask = read_mask(self.camera_mask)
            if min(mask.shape[1] - height, mask.shape[2] - width) < 0:
                raise ValueError(
                    f"--camera-mask {self.camera_mask} is {mask.shape[1]}x{mask.shape[2]}; wanted at least the scenes' "
                    f"{height}x{width}; give another mask"
                )
            mask = mask[:, :height, :width]
            chosen[f"a real camera's, {min(8, len(mask))} of its frames"] = mask[:8], None
            chosen[f"a real camera's, all {len(mask)} frames"] = mask, None
        chosen["shifted by a pixel a frame, 8 frames"] = shifted_mask(8, height, width, self.seed), None
        for frames in FRAMES:
            chosen[f"binary, {frames} frames"] = random_mask(frames, height, width, self.seed + frames), None
        for electrons, read in NOISES:
            chosen[f"binary, 8 frames, {electrons:g} electrons and {read:.0%} read noise"] = first, (electrons, read)
        return chosen

    def scores(
        self, running: Any, scenes: "list[Scene]", mask: "np.ndarray", noise: tuple[float, float] | None, label: str
    ) -> dict[str, float]:
        """PSNR of each scene."""
        import numpy as np
        import torch

        from bitlens.data.cameras import sensed
        from bitlens.data.clips import to_and_fro
        from bitlens.inference.videos import rebuilt
        from bitlens.metrics import psnr_sci

        found, frames = {}, len(mask)
        for scene in scenes:
            count = max(1, len(scene.video) // frames)
            video = scene.video[to_and_fro(0, 1, count * frames, len(scene.video))]
            measured = (mask * video.reshape(count, frames, *mask.shape[1:])).sum(1, dtype=np.float32)
            if noise is not None:
                random = np.random.default_rng(self.seed)
                measured = np.stack([sensed(torch.from_numpy(one), *noise, random).numpy() for one in measured])
            result, _ = rebuilt(running, measured, mask, f"{label}, {scene.name}")
            found[scene.name] = psnr_sci(result, video)
        return found


def mean(scores: dict[str, float]) -> float:
    """The mean over scenes."""
    return sum(scores.values()) / len(scores)
