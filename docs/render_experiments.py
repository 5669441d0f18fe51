"""Render the tables of the papers' experiments from results/experiments/*.json; nothing is typed by hand.

python docs/render_experiments.py            write the tables
python docs/render_experiments.py --check    exit 1 and name the pages that are out of date

results/experiments/qsci-*.json   `bitlens experiment qsci-... --json FILE`     -> docs/qsci.md
results/experiments/adapt-*.json  `bitlens adapt ... --scenes ... --json FILE`  -> docs/training.md
results/experiments/swinir-*.json `kernels/bench/swin.py --json FILE`           -> docs/kernels.md
results/experiments/kernels.json  `kernels/bench/layers.py --json FILE`         -> docs/kernels.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, markdown, read_json

from bitlens.experiments import EXPERIMENTS


def experiment_table(content: dict[str, Any]) -> str:
    """One experiment of Q-SCI's beside the paper's numbers."""
    drifts = [key for key in content["rows"][0] if key.endswith(("_max", "_mean"))]
    rows = [
        ["float", f"{content['float']['psnr']:.2f}", f"{content['float']['ssim']:.4f}", "", "", *("" for _ in drifts)]
    ]
    for row in content["rows"]:
        paper = "–" if row["paper"] is None else f"{row['paper']:+.2f}"
        scores = [row["variant"], f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['against_float']:+.2f}", paper]
        rows.append([*scores, *(f"{row[key]:.3f}" for key in drifts)])
    columns = ["variant", "PSNR (dB)", "SSIM", "against float", "in the paper"]
    budget = content["budget"]
    return (
        f"### {EXPERIMENTS[content['experiment']].title}\n\n"
        f"{markdown([*columns, *(key.replace('_', ' ') + ' drift' for key in drifts)], rows, texts=1)}\n\n"
        f"`{content['start']}` on {content['data']}; {budget['steps']:,} steps of {budget['batch']} samples of "
        f"{budget['crop']} x {budget['crop']} for each variant, from the float network. In the paper: EfficientSCI-S, "
        "trained for days."
    )


def adapt_table(contents: Sequence[dict[str, Any]]) -> str:
    """dB before and after `bitlens adapt`, mask by mask."""
    if not contents:
        return NOT_MEASURED
    rows = []
    for one in sorted(contents, key=lambda one: (one["mask"], one["settings"]["steps"])):
        psnr, residual = one["psnr"], one["residual"]
        how = f"ranges{'' if residual['kept'] else ', not kept'}"
        how += f", {one['settings']['steps']} steps" if one["settings"]["steps"] else ""
        numbers = [f"{psnr[key]:.2f}" if key in psnr else "–" for key in ("float", "as it came", "adapted")]
        rows.append([f"`{one['model']}`", one["mask"], how, *numbers, f"{psnr['adapted'] - psnr['as it came']:+.2f}"])
    columns = ["network", "mask", "adapted", "float (dB)", "as it came", "after", "gain"]
    return markdown(columns, rows, texts=3)


def swin_table(content: dict[str, Any]) -> str:
    """SwinIR on the native kernels beside the fastest float engines."""
    floats = {row["name"]: row["seconds"] for row in content["results"] if not row["name"].startswith("native")}
    best = [min(spent for name, spent in floats.items() if name.endswith(kind)) for kind in (" f32", " bf16")]
    rows = []
    for row in content["results"]:
        times = f"{1e3 * row['seconds']:.0f}", f"{1e3 * row['processor']:.0f}"
        rows.append([row["name"], *times, *(f"{one / row['seconds']:.2f}" for one in best)])
    machine, size = content["machine"], content["size"]
    return (
        f"{markdown(['engine', 'ms', 'processor ms', 'x fastest float32', 'x fastest bf16'], rows, texts=1)}\n\n"
        f"SwinIR-light x4, {size} x {size}, {content['threads']} threads, medians of {content['rounds']} interleaved "
        f"runs, {machine['cpu']} ({', '.join(machine['features'])}), load {machine['load']} before."
    )


OTHER_INT8 = ("oneDNN", "OpenVINO")
"""Kernels that ours are compared with, as the results name them."""


def kernels_table(content: dict[str, Any]) -> str:
    """The fastest of our kernels that is exact, layer by layer and for each number of bits, beside other int8."""
    rows = []
    for one in content["results"]:

        def cell(name: str, one: dict[str, Any] = one) -> str:
            if name not in one["seconds"]:
                return "–"
            rate = one["macs"] / one["seconds"][name] / 1e9
            share = f", {rate / one['peak']:.0%}" if one["peak"] else ""
            return f"{1e3 * one['seconds'][name]:.2f} ({rate:.0f}{share})"

        ours = []
        for bits in (8, 4, 3, 2):
            exact = [name for name, most in content["bits"].items() if most >= bits and name in one["seconds"]]
            best = min(exact, key=one["seconds"].__getitem__)
            ours.append(f"{best} {cell(best)}")
        shape = f"{one['channels']} -> {one['outputs']}, {'x'.join(map(str, one['kernel']))}"
        rows.append(
            [one["network"], one["layer"], shape, "x".join(map(str, one["size"])), *ours, *map(cell, OTHER_INT8)]
        )
    others = [f"{name} int8" for name in OTHER_INT8]
    columns = ["network", "layer", "channels, kernel", "input", *(f"{b} bits" for b in (8, 4, 3, 2)), *others]
    machine = content["machine"]
    return (
        f"{markdown(columns, rows, texts=4)}\n\n"
        f"Milliseconds, in brackets effective GMAC/s and their part of what `vpdpbusd` reaches in registers, in the "
        f"same rounds. {content['level']}, one thread, medians of processor time of {content['rounds']} interleaved "
        f"runs, {machine['cpu']} ({', '.join(machine['features'])}), load {machine['load']} before."
    )


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring the pages up to date, or with `check` only find out; the pages that were (or are) out of date."""
    folder = root / "results" / "experiments"
    found = [read_json(folder / f"{name}.json") for name in EXPERIMENTS if (folder / f"{name}.json").is_file()]
    adapted = [read_json(path) for path in sorted(folder.glob("adapt-*.json"))]
    tables = "\n\n".join(map(experiment_table, found)) or NOT_MEASURED
    swin = [swin_table(read_json(path)) for path in sorted(folder.glob("swinir-*.json"))]
    layers = folder / "kernels.json"
    bench = kernels_table(read_json(layers)) if layers.is_file() else NOT_MEASURED
    qsci, training, kernels = (root / "docs" / name for name in ("qsci.md", "training.md", "kernels.md"))
    pages = {
        qsci: between_marks(qsci, experiments=tables),
        training: between_marks(training, adapt=adapt_table(adapted)),
        kernels: between_marks(kernels, bench=bench, swin="\n\n".join(swin) or NOT_MEASURED),
    }
    return bring_up_to_date(pages, check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    return command("render_experiments", __doc__ or "", render, arguments)


if __name__ == "__main__":
    sys.exit(main())
