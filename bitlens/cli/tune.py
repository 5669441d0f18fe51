"""`bitlens tune`: the best low-bit network for a budget of milliseconds, megabytes, operations or lost dB."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Tune:
    """Choose the bits of every layer of a float network, so that it is as good as can be within budgets.

    What each layer costs on this machine and spoils in the output is measured, then bits are chosen exactly, the
    network is calibrated in the way that fits, refined against the float network, and measured. Beside OUT its recipe
    (.toml) and a report (.json) are written. What was measured stays in --run: a stopped command goes on, and another
    budget takes seconds up to the refinement. Close other programs first.

    Example:
        bitlens tune abpn-x2 --max-loss 0.05 --out abpn-small.safetensors
        bitlens tune dun --budget-ms 100 --out dun-100ms.safetensors
        bitlens tune dun --budget-mb 0.6 --data clips --steps 1000 --out dun-600k.safetensors
    """

    model: tyro.conf.Positional[str]
    """A float checkpoint: a shipped name or the path of a .safetensors."""
    out: Path
    """The checkpoint to write (.safetensors)."""
    budget_ms: float | None = None
    """Most milliseconds for one input, on the native kernels of this machine."""
    budget_mb: float | None = None
    """Most megabytes (10^6 bytes) of the file."""
    budget_gmac: float | None = None
    """Most 10^9 multiply-accumulates, each priced at the larger of its bits / 32."""
    max_loss: float | None = None
    """Most dB of PSNR behind the float network. Alone: the fastest network that keeps it, or, without the kernels, the
    smallest."""
    data: Path | None = None
    """Folder of films, or for images of photographs. Default: made scenes, which need no files."""
    bits: tuple[str, ...] = ()
    """Bits of weights and activations that layers may have, such as w8a8 w4a6. Default: thirteen, w8a8 to w2a2."""
    measure: Literal["alone", "others", "gradient", "sqnr"] = "alone"
    """How a layer's error is measured: with it alone rounded, with all others, by the output's gradient (fast), or by
    its own signal to noise."""
    steps: int = 200
    """Steps of refinement against the float network; 0: none."""
    size: int | None = None
    """Height and width in pixels that milliseconds are measured at. Default: 256, of images 192."""
    frames: int = 8
    """Frames of a measurement."""
    threads: int = 2
    """CPU threads."""
    seed: int = 0
    """Decides crops, scenes and masks. The same seed and measurements give the same file."""
    page: Path | None = None
    """Also write a page for the browser to this file (.html), as `bitlens report` does."""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """Folder where measurements are kept. Default: OUT's name with .tune. Give one to several budgets of a network."""

    def run(self) -> None:
        from bitlens.cli.shared import PAGES, check_other, check_positive, check_seed, output_file
        from bitlens.cli.train import check_target
        from bitlens.report import console
        from bitlens.report.page import write_page
        from bitlens.tuning import CHOICES, Budgets, tune

        check_target(self.out)
        check_seed(self.seed)
        for flag in ("frames", "threads"):
            check_positive(f"--{flag}", getattr(self, flag))
        if self.size is not None and self.size < 16:
            raise ValueError(f"--size {self.size}; wanted 16 pixels or more; change it")
        if self.steps < 0:
            raise ValueError(f"--steps {self.steps}; wanted a whole number from 0; change it")
        for suffix in (".safetensors", ".toml", ".json"):
            check_other(self.out.with_suffix(suffix), self.model)
        budgets = Budgets(self.budget_ms, self.budget_mb, self.budget_gmac, self.max_loss)
        with output_file(self.page, *PAGES) as page_path:
            content = tune(
                self.model, self.out, budgets, folder=self.run_folder, choices=self.bits or CHOICES,
                measure=self.measure, data=self.data, size=self.size, frames=self.frames, threads=self.threads,
                steps=self.steps, seed=self.seed,
            )  # fmt: skip
            if page_path is not None:
                write_page(page_path, f"{content['start']} for a budget", [(self.out.stem, content)])
        out = console()
        out.print(curve_of(content))
        out.print(layers_of(content))
        for line in lines_of(content, self.out):
            out.print(line)


COSTS = ("ms", "MB", "GMAC")


def curve_of(content: dict[str, Any]) -> "Table":
    """Solutions and networks with the same bits everywhere, from dear to cheap."""
    from bitlens.report import table

    resources = [name for name in COSTS if name in content["predicted"]]
    rows = [("chosen exactly", one) for one in content["curve"]]
    rows += [(f"all {one['bits']}", one) for one in content["uniform"]]
    rows.sort(key=lambda row: (-row[1][resources[0]], row[1]["loss"]))
    lines = [[name, f"{one['loss']:.3f}", *(f"{one[resource]:.2f}" for resource in resources)] for name, one in rows]
    return table(f"{content['start']}: what is possible", ["bits", "loss (dB)", *resources], lines)


def layers_of(content: dict[str, Any]) -> "Table":
    """How many layers of each role have which bits."""
    from bitlens.report import table

    roles: dict[str, list[str]] = {}
    for name, label in content["chosen"].items():
        roles.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(label)
    rows = [[role, str(len(labels)), in_counts(labels)] for role, labels in roles.items()]
    return table("chosen", ["layers", "times", "bits"], rows, texts=1)


def in_counts(labels: list[str]) -> str:
    """w4a6 x 3, w8a8"""
    counts = Counter(labels).most_common()
    return ", ".join(label if n == 1 else f"{label} x {n}" for label, n in counts)


def lines_of(content: dict[str, Any], out: Path) -> Iterator[str]:
    """What was foretold, and what was measured of it."""
    predicted, measured = content["predicted"], content["measured"]
    for name in COSTS:
        budget = content["budgets"][{"ms": "ms", "MB": "mb", "GMAC": "gmac"}[name]]
        if name in predicted:
            asked = "" if budget is None else f" of {budget:g}"
            found = f", measured {measured[name]:.3g}" if name in measured else ""
            yield f"{name}: {predicted[name]:.3g} foretold{found}{asked}"
    asked = "" if content["budgets"]["max_loss"] is None else f" of {content['budgets']['max_loss']:g}"
    yield (
        f"loss: {predicted['loss']:.3f} dB foretold without refinement, measured {measured['loss']:.3f}{asked} "
        f"({measured['psnr_float']:.2f} to {measured['psnr']:.2f} dB on other samples)"
    )
    made = "made scenes" if "data" in content["data"] else "your data"
    yield f"calibrated on {made}, by {content['calibrated']}; {content['steps']} steps of refinement"
    if made != "your data":
        yield "give --data FOLDER for numbers on your own material"
    yield f"wrote {out} ({measured['MB']:.2f} MB), {out.with_suffix('.toml')} and {out.with_suffix('.json')}"
