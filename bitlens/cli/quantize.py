"""`bitlens quantize`: a float network becomes a low-bit one by a published method, calibrated, without labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitlens.methods.catalog import in_words

CROP = 64
"""Height and width of a crop for calibration and refinement, before it is enlarged."""

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Quantize:
    """Quantize a float checkpoint after training: choose every layer's grid from calibration data.

    Video networks: good at 8 bits; at 4 bits and below go on with `bitlens train --start ... --method ...`, which also
    trains. Super-resolution networks: 2dquant and its kin refine the grids against the float network for --minutes.

    Example:
        bitlens quantize efficientsci-t --method qsci --bits 8 --clips clips --out t8.safetensors
        bitlens quantize ngswin.safetensors --method 2dquant --bits 4 --calibration photographs --out n4.safetensors
    """

    model: tyro.conf.Positional[str]
    """A float checkpoint: a shipped name or the path of a .safetensors."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    method: Annotated[str, tyro.conf.arg(help=f"The published method, {in_words()}.")] = "qsci"
    bits: int = 8
    """Bits of weights and activations, 1 to 8."""
    grid: Literal["deployable", "official"] = "deployable"
    """What integer kernels execute, or the grids of the method's official code."""
    recipe: Path | None = None
    """A recipe in TOML instead of --method, --bits and --grid."""
    clips: Path | None = None
    """Folder of videos to calibrate on. Default: made scenes, which need no files."""
    calibration: Path | None = None
    """Folder of photographs to calibrate a super-resolution network on; they are shrunk to its input here."""
    batches: int = 8
    """Calibration batches of 4 crops of 64 x 64."""
    minutes: float = 15.0
    """Longest time of a method's refinement."""
    steps: int | None = None
    """Most steps of a method's refinement. Default: the method's own, 3,000 for 2dquant."""
    state: Path | None = None
    """File that holds an unfinished refinement: the same command goes on from it."""
    seed: int = 0
    """Decides crops and masks."""

    def run(self) -> int:
        from bitlens import checkpoint
        from bitlens.cli.shared import check_positive, check_seed
        from bitlens.cli.train import check_target
        from bitlens.inference.machine import describe_run, keep_freed_memory
        from bitlens.methods import METHODS, quantize
        from bitlens.recipe import Recipe
        from bitlens.report import console, table

        check_target(self.out)
        check_seed(self.seed)
        check_positive("--batches", self.batches)
        check_positive("--minutes", self.minutes)
        if self.steps is not None:
            check_positive("--steps", self.steps)
        keep_freed_memory()
        recipe = self.method if self.recipe is None else Recipe.from_toml(self.recipe)
        about = checkpoint.describe(self.model)
        if about.recipe is not None or about.path is None:
            raise ValueError(f"{about.name} is not a float network; wanted one to quantize; give a float checkpoint")
        network = checkpoint.load(self.model)
        data, identity, pool = self.data(network)
        with console().status("calibrating"):
            quantized, decisions = quantize(network, recipe, data, bits=self.bits, grid=self.grid)
        method = METHODS.get(recipe if isinstance(recipe, str) else recipe.method)
        refined = self.refined(method, quantized, network, pool) if hasattr(method, "refine") else "no training"
        provenance: dict[str, Any] = {
            "quantized": f"bitlens quantize, {self.batches} calibration batches, {refined}",
            "start": about.name,
            "start_provenance": about.provenance,
            "data": identity,
            "run": describe_run(),
        }
        checkpoint.save(quantized, self.out, provenance=provenance)
        rows = [(d.name, d.kind, d.bits.label if d.bits else "float", d.why) for d in decisions]
        console().print(table("what became of each layer", ("layer", "kind", "bits", "why"), rows, texts=4))
        print(f"wrote {self.out} ({self.out.stat().st_size / 1e6:.2f} MB)")
        return 0

    def data(self, network: "nn.Module") -> tuple[list[Any], dict[str, Any], list[Any]]:
        """What the network is calibrated on, what to say of it, and what it is refined on."""
        from bitlens.inference.images import scale_of

        scale = scale_of(network)
        if scale is None:
            from bitlens.data.clips import Clips, ClipSampler, load_clips, measurements

            if self.calibration is not None:
                raise ValueError(
                    "--calibration holds photographs, and the network reconstructs video; wanted clips; use --clips"
                )
            clips = Clips(made_videos(self.seed), ["made"]) if self.clips is None else load_clips(self.clips)
            made = measurements(ClipSampler(clips, seed=self.seed), self.batches)
            return made, {"clips": len(clips.videos), "identity": clips.identity()}, made
        from bitlens.data.crops import crops, photographs
        from bitlens.data.damage import RestorationSampler
        from bitlens.data.patches import in_sizes

        if self.calibration is None or self.clips is not None:
            raise ValueError(
                "a network for images is calibrated on photographs; wanted a folder of them; "
                "use --calibration FOLDER (and no --clips)"
            )
        files = photographs(self.calibration)
        if scale == 1:
            sampler = RestorationSampler(in_sizes(files, (1,)), crop=2 * CROP, batch=4, seed=self.seed)
            made = [sampler.draw(step).inputs for step in range(5 * self.batches)]
            about = {"photographs": len(files), "crops": 4 * len(made), "size": 2 * CROP, "damaged": "noise and JPEG"}
            return made[: self.batches], about, made[self.batches :]
        made = crops(files, scale, self.batches, 4, CROP, self.seed)
        pool = crops(files, scale, 8 * self.batches, 2, CROP, self.seed + 1)
        return made, {"photographs": len(files), "crops": 4 * self.batches + 16 * self.batches, "size": CROP}, pool

    def refined(self, method: Any, quantized: "nn.Module", network: "nn.Module", pool: list[Any]) -> str:
        """Refine under a progress bar, which shows the share of the time or of the steps; says what was done."""
        import time

        from bitlens.progress import progress

        with progress("% of the time") as bar:
            task, started = bar.add_task("refining", total=100), time.monotonic()

            def show(step: int, loss: float) -> None:
                done = (time.monotonic() - started) / (60 * self.minutes)
                if self.steps:
                    done = max(done, step / self.steps)
                bar.update(task, completed=round(100 * min(done, 1.0)), description=f"step {step}, loss {loss:.5f}")

            results = method.refine(
                quantized, network, pool,
                steps=self.steps, minutes=self.minutes, seed=self.seed, state=self.state, on_step=show,
            )  # fmt: skip
        return f"{sum(r.steps for r in results)} steps of refinement in {sum(r.seconds for r in results):.0f} s"


def made_videos(seed: int) -> list[Any]:
    """A made scene as calibration data, uint8 (t, h, w)."""
    import numpy as np

    from bitlens.data.synthetic import high_speed_scene

    return [np.round(high_speed_scene(seed, frames=32) * 255).astype(np.uint8)]
