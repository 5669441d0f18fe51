"""`bitlens quantize`: a float network becomes a low-bit one by a published method, calibrated, without training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class Quantize:
    """Quantize a float checkpoint after training: choose every layer's grid from calibration data.

    Good at 8 bits. At 4 bits and below go on with `bitlens train --start ... --method ...`, which also trains.

    Example:
        bitlens quantize efficientsci-t --method qsci --bits 8 --clips clips --out t8.safetensors
    """

    model: tyro.conf.Positional[str]
    """A float checkpoint: a shipped name or the path of a .safetensors."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    method: str = "qsci"
    """The published method: qsci or direct; dobi, percentile or minmax; pams or qvit, which need training."""
    bits: int = 8
    """Bits of weights and activations, 1 to 8."""
    grid: Literal["deployable", "official"] = "deployable"
    """What integer kernels execute, or the grids of the method's official code."""
    recipe: Path | None = None
    """A recipe in TOML instead of --method, --bits and --grid."""
    clips: Path | None = None
    """Folder of videos to calibrate on. Default: made scenes, which need no files."""
    batches: int = 8
    """Calibration batches of 4 crops of 64 x 64."""
    seed: int = 0
    """Decides crops and masks."""

    def run(self) -> int:
        from bitlens import checkpoint
        from bitlens.cli.shared import check_positive, check_seed, describe_run, keep_freed_memory
        from bitlens.cli.train import check_target
        from bitlens.data.clips import Clips, ClipSampler, load_clips, measurements
        from bitlens.methods import quantize
        from bitlens.recipe import Recipe
        from bitlens.report import console, table

        check_target(self.out)
        check_seed(self.seed)
        check_positive("--batches", self.batches)
        keep_freed_memory()
        recipe = self.method if self.recipe is None else Recipe.from_toml(self.recipe)
        about = checkpoint.describe(self.model)
        if about.recipe is not None or about.path is None:
            raise ValueError(f"{about.name} is not a float network; wanted one to quantize; give a float checkpoint")
        network = checkpoint.load(self.model)
        clips = Clips(made_videos(self.seed), ["made"]) if self.clips is None else load_clips(self.clips)
        data = measurements(ClipSampler(clips, seed=self.seed), self.batches)
        with console().status("calibrating"):
            quantized, decisions = quantize(network, recipe, data, bits=self.bits, grid=self.grid)
        provenance: dict[str, Any] = {
            "quantized": f"bitlens quantize, {self.batches} calibration batches, no training",
            "start": about.name,
            "start_provenance": about.provenance,
            "data": {"clips": len(clips.videos), "identity": clips.identity()},
            "run": describe_run(),
        }
        checkpoint.save(quantized, self.out, provenance=provenance)
        rows = [(d.name, d.kind, bits_text(d.bits), d.why) for d in decisions]
        console().print(table("what became of each layer", ("layer", "kind", "bits", "why"), rows, texts=4))
        print(f"wrote {self.out} ({self.out.stat().st_size / 1e6:.2f} MB)")
        return 0


def bits_text(bits: Any) -> str:
    """w4a4, or float."""
    return "float" if bits is None else f"w{bits.weight}a{bits.activation}"


def made_videos(seed: int) -> list[Any]:
    """A made scene as calibration data, uint8 (t, h, w)."""
    import numpy as np

    from bitlens.data.synthetic import high_speed_scene

    return [np.round(high_speed_scene(seed, frames=32) * 255).astype(np.uint8)]
