"""`bitlens adapt`: a low-bit network for a camera's own mask, from its measurements, without any true video."""

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

    With --steps it is also trained to explain the measurements. Weights keep their codes. What is printed is the
    residual ||A x - y|| / ||y||: how well the videos explain the measurements, which is not how good they are.

    Example:
        bitlens adapt efficientsci-t-qsci-w4a4 --mask mask.mat --measurements a.mat b.mat --out mine.safetensors
    """

    model: tyro.conf.Positional[str]
    """A low-bit checkpoint: a shipped name or the path of a .safetensors."""
    mask: Path
    """The camera's calibrated mask: .mat .npz .npy .tif, or a folder of images."""
    measurements: tuple[Path, ...]
    """Measurements taken with it, one file or more: .npz .mat .npy .tif, .png, or a folder of images."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    teacher: str | None = None
    """A float checkpoint, for the ranges where it has the same layers, and to teach during --steps."""
    steps: int = 0
    """Steps of fine-tuning on the residual. 0: ranges only."""
    learning_rate: float = 1e-4
    """Learning rate of the steps."""
    distill: float = 1.0
    """Weight of the distance to the teacher's video."""
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
    allow_saturated: bool = False
    """Accept measurements in which more than 1 percent of the pixels are at the maximum."""
    seed: int = 0
    """Decides the windows of the steps."""

    def run(self) -> int:
        import torch
        from rich.progress import Progress

        from bitlens import checkpoint
        from bitlens.cli.shared import check_positive, check_seed, keep_freed_memory
        from bitlens.cli.train import check_target
        from bitlens.report import console, table
        from bitlens.training.adapt import adapt

        check_target(self.out)
        check_seed(self.seed)
        check_positive("--learning-rate", self.learning_rate)
        if self.steps < 0 or not self.distill >= 0:
            raise ValueError(f"--steps {self.steps}, --distill {self.distill}; wanted numbers from 0; change them")
        network, teacher = self.networks()
        raw, mask = self.read()
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

    def read(self) -> "tuple[np.ndarray, np.ndarray]":
        """All measurements (n, h, w) in mask units, and the mask (t, h, w); notes on them are printed."""
        import numpy as np

        from bitlens.cli import in_flags
        from bitlens.cli.shared import parse_crop
        from bitlens.data.capture import read_capture
        from bitlens.report import console

        if not self.measurements:
            raise ValueError("no measurement; wanted one file or more; give them after --measurements")
        captures = []
        for path in self.measurements:
            capture = read_capture(
                path, self.mask, key=self.key, axes=self.axes, mask_axes=self.mask_axes, crop=parse_crop(self.crop),
                gain=self.gain, brightness=self.brightness, allow_saturated=self.allow_saturated,
            )  # fmt: skip
            for note in capture.notes:
                console().print(f"{path.name}: {in_flags(note)}", style="yellow" if "warning:" in note else None)
            captures.append(capture)
        return np.concatenate([capture.measurement for capture in captures]), captures[0].mask

    def provenance(self, count: int, result: "Adaptation") -> dict[str, Any]:
        """What the checkpoint will say about its origin; claims of the one it came from do not hold for it."""
        from bitlens import checkpoint
        from bitlens.cli.shared import describe_run

        about = checkpoint.describe(self.model)
        settings = ("teacher", "steps", "learning_rate", "distill", "seed", "gain", "brightness", "crop")
        return {
            "adapted": f"bitlens adapt, {count} measurements, no true video",
            "start": about.name,
            "start_sha256": None if about.path is None else checkpoint.weights_sha256(about.path),
            "start_provenance": about.provenance,
            "mask": self.mask.name,
            "measurements": [path.name for path in self.measurements],
            "settings": {name: getattr(self, name) for name in settings},
            "residual": asdict(result),
            "run": describe_run(),
        }
