"""`bitlens benchmark`: measured speed of a checkpoint against every float engine on this machine, taking turns."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bitlens.engine.registry import TIMED

if TYPE_CHECKING:
    from rich.console import Console

    Timed = str
else:
    Timed = Literal[TIMED]


@dataclass(frozen=True)
class Benchmark:
    """Time checkpoints and their float network on every engine, interleaved, each in a process of its own.

    Float32 runs as the official code does (PyTorch, eager), in PyTorch at its best, in OpenVINO and in ONNX Runtime;
    bf16 in the first two; the checkpoints in integers. Prints medians and spread, memory, PSNR, how much of the CPU's
    measured peak is reached, and which kernel ran every layer by the engine's own counters. Close other programs first.

    Example:
        bitlens benchmark efficientsci-t-qsci-w8a8 efficientsci-t-qsci-w4a4 --json speed.json --picture speed.png
    """

    models: tyro.conf.Positional[tuple[str, ...]]
    """Low-bit checkpoints, shipped names or paths. Ratios are of the first."""
    engines: tuple[Timed, ...] = TIMED
    """Engines that take part, where they know the network. OpenVINO runs low bits in any case."""
    float_model: str | None = None
    """Their float network. Default: what the first one was made from, else itself without its grids."""
    size: int | None = None
    """Height and width in pixels of the measurement (default: 256), or of the picture before it is enlarged (128)."""
    frames: int = 8
    """Frames in the measurement."""
    threads: int = 2
    """Threads of every engine."""
    rounds: int = 7
    """Timed runs of each."""
    seed: int = 0
    """Seed of the made scene and of its mask."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    page: Path | None = None
    """Also write a page for the browser to this file (.html), as `bitlens report` does."""
    picture: Path | None = None
    """Draw the medians as bars (.png; needs matplotlib)."""

    def run(self) -> None:
        from bitlens.bench.networks import benchmark
        from bitlens.cli.shared import PAGES, check_positive, check_seed, output_file
        from bitlens.report import console
        from bitlens.report.page import write_page

        for flag in ("size", "frames", "threads", "rounds"):
            check_positive(f"--{flag}", getattr(self, flag) if getattr(self, flag) is not None else 1)
        check_seed(self.seed)
        if self.picture is not None and find_spec("matplotlib") is None:
            raise ValueError("--picture needs matplotlib; wanted it installed; run pip install 'bitlens[report]'")
        with (
            output_file(self.json, ".json") as json_path,
            output_file(self.page, *PAGES) as page_path,
            output_file(self.picture, ".png") as picture_path,
        ):
            result = benchmark(
                self.models, engines=self.engines, float_model=self.float_model, size=self.size, frames=self.frames,
                threads=self.threads, rounds=self.rounds, seed=self.seed,
            )  # fmt: skip
            show(result, console())
            if json_path is not None:
                json_path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            if page_path is not None:
                write_page(page_path, "bitlens benchmark", [("benchmark", result)])
            if picture_path is not None:
                draw(result, picture_path)


def show(result: dict[str, Any], out: "Console") -> None:
    """The tables: contestants, ratios, layers."""
    from bitlens.report import table

    machine, peaks = result["environment"], result["peaks_gmacs_per_s"]
    rows, failures = [], []
    for row in result["rows"]:
        if row["failure"] is not None:
            failures.append(f"{row['name']} did not run: {row['failure']}")
            continue
        spread = f"{row['fastest_s']:.3f} to {row['slowest_s']:.3f}"
        close = "" if row["psnr_to_float"] is None else f"{row['psnr_to_float']:.1f}"
        rows.append([
            row["model"], row["engine"], row["precision"], f"{row['median_s']:.3f}", spread,
            f"{row['gmacs_per_s']:.0f}", percent(row["fraction_of_peak"]), f"{row['peak_mb']:.0f}",
            f"{row['psnr']:.2f}", close,
        ])  # fmt: skip
    columns = [
        "network", "engine", "", "median s", "spread", "GMAC/s", "of peak", "peak MB", "PSNR\n(dB)", "to float\n(dB)",
    ]  # fmt: skip
    size = "x".join(map(str, result["size"]))
    out.print(table(f"one {result['unit']} of {size}, {result['threads']} threads", columns, rows, texts=3))
    for line in failures:
        out.print(line, style="yellow")
    features = ", ".join(machine["features"])
    out.print(f"{machine['cpu']} ({features}), {result['rounds']} interleaved runs each")
    if peaks:
        measured = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items())
        out.print(f"peak of this CPU, a large convolution: {measured} GMAC/s")
    for row in result["rows"]:
        if "first_start_s" in row:
            out.print(f"{row['name']}: first result after {row['first_start_s']:.1f} s, later {row['start_s']:.1f} s")
    words = {"official_float32": "PyTorch float32 as the official code runs it", "best_float32": "the fastest float32",
             "best_bf16": "the fastest bf16"}  # fmt: skip
    for name, ratio in result["ratios"].items():
        if ratio is not None:
            out.print(f"{result['models'][0]} is {ratio:.2f} times as fast as {words[name]}")
    for model, costs in result["layers"].items():
        out.print(layer_table(model, costs, peaks.get("u8s8")))
    for model, shares in result.get("native_shares", {}).items():
        if shares:
            parts = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.01)
            out.print(f"{model} on native kernels, shares of the time: {parts}")


def percent(fraction: float | None) -> str:
    """0.5 as 50%; nothing for None."""
    return "" if fraction is None else f"{fraction:.0%}"


def layer_table(model: str, costs: Sequence[dict[str, Any]], peak: float | None) -> Any:
    """Layers with equal roles in different blocks together; what is between them by its kind."""
    from bitlens.report import table

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cost in costs:
        layer = cost["gmacs"] is not None
        role = re.sub(r"\d+\.", "*.", cost["name"]) if layer else f"({cost['kind'].lower()})"
        groups.setdefault((role, cost["kernel"] if layer else ""), []).append(cost)
    rows = []
    for (role, kernel), group in sorted(groups.items(), key=lambda item: -sum(c["milliseconds"] for c in item[1])):
        spent, work = sum(cost["milliseconds"] for cost in group), sum(cost["gmacs"] or 0.0 for cost in group)
        rate = work / spent * 1e3 if work and spent else None
        speed = ["", ""] if rate is None else [f"{rate:.0f}", percent(rate / peak if peak else None)]
        rows.append([role, kernel, str(len(group)), f"{spent:.1f}", *speed])
    layers = [cost for cost in costs if cost["gmacs"] is not None]
    integer = sum(cost["kernel"].endswith("I8") for cost in layers)
    title = f"{model}: {integer} of {len(layers)} convolutions and linear layers in integers, by OpenVINO's counters"
    return table(title, ["layer", "kernel", "times", "ms", "GMAC/s", "of peak"], rows, texts=2)


def draw(result: dict[str, Any], path: Path, text: dict[str, str] | None = None) -> None:
    """Medians as bars, the fastest below, as a PNG that carries `text`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted((row for row in result["rows"] if row["failure"] is None), key=lambda row: -row["median_s"])
    colours = {"official float32": "#8c8c8c", "float32": "#b3b3b3", "bf16": "#6fa8dc", "low-bit": "#e69138"}
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    medians = [row["median_s"] for row in rows]
    bars = axes.barh([row["name"] for row in rows], medians, color=[colours[row["kind"]] for row in rows])
    axes.bar_label(bars, [f"{seconds:.2f} s" for seconds in medians], padding=4)
    axes.set_xlabel(f"seconds for one {result.get('unit', 'measurement')} (median)")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    size = "x".join(map(str, result["size"]))
    axes.set_title(f"{size}, {result['threads']} threads, {result['environment']['cpu']}", loc="left")
    figure.savefig(path, format="png", metadata=text)
