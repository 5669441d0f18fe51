"""`bitlens adapt`: a low-bit network for a camera's own mask, from its measurements, without any true video."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from bitlens.training.adapt import Adaptation


@dataclass(frozen=True)
class Adapt:
    """Choose the ranges of a low-bit checkpoint's activations anew, from measurements taken with a new mask.

    With --steps it is also trained to explain the measurements, or, with --pairs, on known videos made of them. Weights
    keep their codes. What is printed is the residual ||A x - y|| / ||y||: how well the videos explain the measurements,
    which is not how good they are.

    With --scenes, videos that are known are measured through the mask instead: the first measurement of each fits the
    network, and what that is worth is printed in dB, over all of them.

    Example:
        bitlens adapt efficientsci-t-qsci-w4a4 --mask mask.mat --measurements a.mat b.mat --out mine.safetensors
        bitlens adapt efficientsci-t-qsci-w4a4 --mask mask.mat --scenes six-scenes --out mine.safetensors
    """

    model: tyro.conf.Positional[str]
    """A low-bit checkpoint: a shipped name or the path of a .safetensors."""
    mask: Path
    """The camera's calibrated mask: .mat .npz .npy .tif, or a folder of images."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    measurements: tuple[Path, ...] = ()
    """Measurements taken with it, one file or more: .npz .mat .npy .tif, .png, or a folder of images."""
    scenes: str | None = None
    """Instead of --measurements: scenes to measure, as --data of bitlens evaluate."""
    json: Path | None = None
    """With --scenes: also write the dB before and after to this file."""
    teacher: str | None = None
    """A float checkpoint, for the ranges where it has the same layers, and to teach during --steps."""
    steps: int = 0
    """Steps of fine-tuning on the residual. 0: ranges only."""
    learning_rate: float = 1e-4
    """Learning rate of the steps."""
    distill: float = 1.0
    """Weight of the distance to the teacher's video."""
    pairs: bool = False
    """Have the steps learn from known videos instead: those rebuilt from the measurements (by the teacher, where there
    is one), mirrored, moved against the mask and measured again, half of them with noise."""
    gain: float | None = None
    """Raw value of one white frame through an open pixel. Default: from the file, or estimated."""
    brightness: float = 0.4
    """Mean brightness of the scene that the estimate of the gain assumes, in (0, 1]."""
    crop: str | None = None
    """Cut top,left,height,width (pixels) from measurements and mask, for example 0,0,256,256."""
    key: str | None = None
    """Name of the measurement in a .mat or .npz. Default: measurement or meas."""
    axes: str | None = None
    """Order of the measurement's axes, thw or hwt. Default: by name."""
    mask_axes: str | None = None
    """Order of the mask's axes, thw or hwt. Default: by name."""
    mask_key: str | None = None
    """Name of the mask in a .mat or .npz. Default: mask."""
    dark: Path | None = None
    """Pictures in the dark, whose mean is subtracted, as for bitlens reconstruct."""
    flat: Path | None = None
    """Pictures of an even white surface without a mask, whose shape is divided out, as for bitlens reconstruct."""
    bayer: str | None = None
    """The colour mosaic of the sensor, RGGB and so on: each measurement is four grey ones of half the size, as for
    bitlens reconstruct."""
    allow_saturated: bool = False
    """Accept measurements in which more than 1 percent of the pixels are at the maximum."""
    seed: int = 0
    """Decides the windows of the steps, and the noise of --pairs."""

    def run(self) -> int:
        import torch
        from rich.progress import Progress

        from bitlens import checkpoint
        from bitlens.cli.shared import check_positive, check_seed
        from bitlens.cli.train import check_target
        from bitlens.inference.machine import keep_freed_memory
        from bitlens.report import console, table
        from bitlens.training.adapt import adapt

        check_target(self.out)
        check_seed(self.seed)
        check_positive("--learning-rate", self.learning_rate)
        if self.steps < 0 or not self.distill >= 0:
            raise ValueError(f"--steps {self.steps}, --distill {self.distill}; wanted numbers from 0; change them")
        if self.pairs and not self.steps:
            raise ValueError("--pairs without steps that learn from them; wanted --steps too; give some, 40 say")
        if self.json and not self.scenes:
            raise ValueError("--json holds dB, which needs videos that are known; wanted --scenes too; or leave it out")
        network, teacher = self.networks()
        raw, mask = self.measure() if self.scenes else self.read()
        keep_freed_memory()
        with Progress(console=console(), transient=True) as progress:
            task = progress.add_task("fine-tuning" if self.steps else "choosing ranges", total=self.steps or None)
            result = adapt(
                network,
                torch.from_numpy(raw),
                torch.from_numpy(mask),
                teacher=teacher,
                steps=self.steps,
                learning_rate=self.learning_rate,
                distill=self.distill,
                pairs=self.pairs,
                seed=self.seed,
                on_step=lambda step: progress.update(task, completed=step),
            )
        checkpoint.save(network, self.out, provenance=self.provenance(len(raw), result))
        rows = [("as it came", f"{result.before:.4f}")]
        rows += [("with new ranges" + ("" if result.kept else ", not kept"), f"{result.ranges:.4f}")]
        rows += [(f"after {self.steps} steps", f"{result.after:.4f}")] if self.steps else []
        out = console()
        out.print(table(f"{self.model} on {len(raw)} measurement(s)", ("", "||A x - y|| / ||y||"), rows))
        out.print(f"ranges of the activations of {result.observed}")
        if self.scenes:
            out.print(table(f"{self.scenes} through {self.mask.name}", ("", "PSNR (dB)"), self.scored(result)))
        out.print(f"wrote {self.out} ({self.out.stat().st_size / 1e6:.2f} MB)")
        return 0

    def networks(self) -> "tuple[nn.Module, nn.Module | None]":
        """The low-bit network and its float teacher.

        Raises:
            ValueError: a float network to adapt, or a low-bit teacher.
        """
        from bitlens import checkpoint

        about = checkpoint.describe(self.model)
        if about.recipe is None:
            raise ValueError(
                f"{about.name} is not a low-bit network; wanted a quantized checkpoint, whose ranges can be chosen; "
                "quantize it with bitlens quantize"
            )
        if self.teacher is not None and checkpoint.describe(self.teacher).network != about.network:
            raise ValueError(f"--teacher {self.teacher} is not an {about.network}; wanted one; give its float network")
        if self.teacher is not None and checkpoint.describe(self.teacher).recipe is not None:
            raise ValueError(f"--teacher {self.teacher} is a low-bit network; wanted a float one; give another")
        teacher = None if self.teacher is None else checkpoint.load(self.teacher)
        return checkpoint.load(self.model), teacher

    def measure(self) -> "tuple[np.ndarray, np.ndarray]":
        """The first measurement of each scene (n, h, w), and the mask (t, h, w)."""
        import numpy as np

        from bitlens.data.benchmarks import load_scenes
        from bitlens.data.capture import simulate
        from bitlens.data.masks import read_mask

        assert self.scenes is not None
        of_files = (
            "measurements", "gain", "brightness", "crop", "key", "axes", "dark", "flat", "bayer", "allow_saturated",
        )  # fmt: skip
        if given := [name for name in of_files if getattr(self, name) != getattr(Adapt, name)]:
            flag = given[0].replace("_", "-")
            raise ValueError(f"--{flag} and --scenes came; wanted one of the two; leave the other out")
        mask = read_mask(self.mask, key=self.mask_key, axes=self.mask_axes)
        firsts = [simulate(scene.video[: len(mask)], mask).measurement for scene in load_scenes(self.scenes)]
        if len({first.shape for first in firsts}) > 1:
            raise ValueError(f"the scenes of {self.scenes} differ in size; wanted one size, the mask's; choose others")
        return np.concatenate(firsts), mask

    def scored(self, result: "Adaptation") -> list[tuple[str, str]]:
        """PSNR over all measurements of the scenes: the teacher's, before and after; written as JSON too."""
        from bitlens.cli.shared import output_file
        from bitlens.inference.evaluation import evaluate

        assert self.scenes is not None
        models = [*([self.teacher] if self.teacher else []), self.model, str(self.out)]
        scores = evaluate(models, self.scenes, mask=self.mask, ssim=False, engine="auto")
        labels = [*(["float"] if self.teacher else []), "as it came", "adapted"]
        psnr = {label: score.average.psnr for label, score in zip(labels, scores, strict=True)}
        with output_file(self.json, ".json") as path:
            if path is not None:
                names = ("teacher", "steps", "learning_rate", "distill", "pairs", "seed")
                content = {
                    "model": scores[-2].model,
                    "mask": self.mask.name,
                    "data": self.scenes,
                    "psnr": psnr,
                    "residual": asdict(result),
                    "settings": {name: getattr(self, name) for name in names},
                    "run": {**scores[-1].settings, "mask": self.mask.name},
                }
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return [(label, f"{value:.2f}") for label, value in psnr.items()]

    def read(self) -> "tuple[np.ndarray, np.ndarray]":
        """All measurements (n, h, w) in mask units, and the mask (t, h, w); notes on them are printed.

        Of mosaics: the four sites of each measurement, (4 n, h/2, w/2), and those of the mask, (4, t, h/2, w/2).
        """
        import numpy as np

        from bitlens.cli import in_flags
        from bitlens.cli.shared import parse_crop
        from bitlens.data.bayer import split
        from bitlens.data.capture import read_capture
        from bitlens.report import console

        if not self.measurements:
            raise ValueError("no measurement; wanted one file or more; give them after --measurements, or --scenes")
        captures = []
        for path in self.measurements:
            capture = read_capture(
                path, self.mask, key=self.key, axes=self.axes, mask_axes=self.mask_axes, crop=parse_crop(self.crop),
                mask_key=self.mask_key, gain=self.gain, brightness=self.brightness,
                allow_saturated=self.allow_saturated, dark=self.dark, flat=self.flat, bayer=self.bayer,
            )  # fmt: skip
            for note in capture.notes:
                console().print(f"{path.name}: {in_flags(note)}", style="yellow" if "warning:" in note else None)
            captures.append(capture)
        measurements, mask = np.concatenate([capture.measurement for capture in captures]), captures[0].mask
        if self.bayer is None:
            return measurements, mask
        sites = np.stack(split(measurements), axis=1)  # n 4 h/2 w/2
        return sites.reshape(-1, *sites.shape[2:]), np.stack(split(mask))

    def provenance(self, count: int, result: "Adaptation") -> dict[str, Any]:
        """What the checkpoint will say about its origin; claims of the one it came from do not hold for it."""
        from bitlens import checkpoint
        from bitlens.inference.machine import describe_run

        about = checkpoint.describe(self.model)
        settings = (
            "teacher", "steps", "learning_rate", "distill", "pairs", "seed", "gain", "brightness", "crop", "bayer",
        )  # fmt: skip
        return {
            "adapted": f"bitlens adapt, {count} measurements, no true video",
            "start": about.name,
            "start_sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
            "start_provenance": about.provenance,
            "mask": self.mask.name,
            "measurements": [path.name for path in self.measurements] or f"the first of each of {self.scenes}",
            "settings": {name: getattr(self, name) for name in settings}
            | {name: None if file is None else file.name for name, file in (("dark", self.dark), ("flat", self.flat))},
            "residual": asdict(result),
            "run": describe_run(),
        }
