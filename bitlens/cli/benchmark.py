"""`bitlens benchmark`: measured speed of a checkpoint against every float engine on this machine, taking turns."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from bitlens.engine.registry import ENGINES

TIMED = tuple(name for name in ENGINES if name != "reference")
"""Engines that are made to be fast."""
if TYPE_CHECKING:
    from rich.console import Console

    from bitlens.bench import Contestant, Timing
    from bitlens.cli.subjects import Subject

    Timed = str
else:
    Timed = Literal[TIMED]

PEAKS = ("f32", "bf16", "u8s8")


@dataclass(frozen=True)
class Row:
    """One contestant: a network, run by an engine in a precision."""

    name: str
    model: str
    engine: str
    precision: str
    """float32, bf16, or the bits of a low-bit network with the precision between: "8 bits, bf16"."""
    kind: str
    """official float32, float32, bf16 or low-bit."""
    contestant: "Contestant"


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
    picture: Path | None = None
    """Draw the medians as bars (.png; needs matplotlib)."""

    def run(self) -> None:
        import tempfile

        from bitlens.cli.shared import check_positive, check_seed, output_file
        from bitlens.report import console

        for flag in ("size", "frames", "threads", "rounds"):
            check_positive(f"--{flag}", getattr(self, flag) if getattr(self, flag) is not None else 1)
        check_seed(self.seed)
        scale = self.checked_scale()
        if self.picture is not None and find_spec("matplotlib") is None:
            raise ValueError("--picture needs matplotlib; wanted it installed; run pip install 'bitlens[report]'")
        subject = self.subject(scale)
        with (
            output_file(self.json, ".json") as json_path,
            output_file(self.picture, ".png") as picture_path,
            tempfile.TemporaryDirectory() as folder,
        ):
            result = self.measure(subject, Path(folder))
            show(result, console())
            if json_path is not None:
                json_path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            if picture_path is not None:
                draw(result, picture_path)

    def checked_scale(self) -> int | None:
        """The scale of the checkpoints; None where they reconstruct video.

        Raises:
            ValueError: no low-bit checkpoint, or networks of several kinds, which cannot be compared.
        """
        from bitlens.checkpoint import describe

        wanted = "wanted low-bit checkpoints for video, or of one scale; for example dun-w8a8"
        if not self.models:
            raise ValueError(f"no model; {wanted}")
        kinds = {}
        for model in self.models:
            about = describe(model)
            kinds[model] = about.task, about.config.get("scale")
            if about.method is None:
                raise ValueError(f"{model} is a float network; {wanted}")
            if kinds[model] != kinds[self.models[0]]:
                raise ValueError(f"{model} is a network of another kind than {self.models[0]}; {wanted}")
        return kinds[self.models[0]][1]

    def subject(self, scale: int | None) -> "Subject":
        """What the networks run on."""
        from bitlens.cli.subjects import PICTURE_SIZE, VIDEO_SIZE, measured_scene, small_picture

        if scale is None:
            return measured_scene(self.frames, self.size or VIDEO_SIZE, self.seed)
        return small_picture(scale, self.size or PICTURE_SIZE, self.seed)

    def measure(self, subject: "Subject", folder: Path) -> dict[str, Any]:
        """Everything that the JSON holds."""
        from bitlens.bench import environment
        from bitlens.checkpoint import describe
        from bitlens.cli.shared import describe_run

        machine = environment()  # its load is that of others
        float_model = self.float_model or float_of(self.models[0], folder)
        networks = dict.fromkeys((float_model, *self.models))
        rows = self.rows(float_model, subject, folder)
        timings, first_starts, peaks = self.time(rows, folder)
        work = {model: gmacs(model, *subject.counted) for model in networks}
        about = [describe_row(*pair, work, peaks) for pair in zip(rows, timings, strict=True)]
        add_quality(about, folder, subject)
        add_first_starts(about, first_starts)
        for model in self.models:
            remember_engines(model, about, self.threads)
        return {
            "models": [describe(model).name for model in self.models],
            "float_model": describe(float_model).name,
            "unit": subject.unit,
            "size": subject.size,
            "threads": self.threads,
            "rounds": self.rounds,
            "environment": machine,
            "run": describe_run(),
            "gmacs": {describe(model).name: value for model, value in work.items()},
            "peaks_gmacs_per_s": peaks,
            "rows": about,
            "ratios": ratios(about),
            "layers": {describe(model).name: layer_costs(model, subject, self.threads) for model in self.models},
            "native_shares": {
                describe(model).name: native_shares(model, subject, self.threads)
                for model in self.models
                if "native" in self.engines
            },
        }

    def rows(self, float_model: str, subject: "Subject", folder: Path) -> list[Row]:
        """The contestants: the float network on every engine, then the low-bit ones."""
        from bitlens.bench import Contestant
        from bitlens.checkpoint import describe, load
        from bitlens.cli import contestants
        from bitlens.engine.registry import own_graph

        def row(model: str, engine: str, precision: str, kind: str, prepare: Any, *more: Any) -> Row:
            name = f"{describe(model).name}, {engine}, {precision}"
            contestant = Contestant(name, prepare, (model, subject.inputs, self.threads, *more))
            return Row(name, model, engine, precision, kind, contestant)

        cache, rows = str(folder / "cache"), []
        others = [name for name in self.engines if name not in ("torch", "openvino")]
        eager, compiled, openvino = contestants.torch_eager, contestants.torch_compiled, contestants.openvino_run
        if "torch" in self.engines:
            rows.append(row(float_model, "PyTorch eager", "float32", "official float32", eager))
        for kind, hint in (("float32", "f32"), ("bf16", "bf16")):
            if "torch" in self.engines:
                rows.append(row(float_model, "PyTorch compiled", kind, kind, compiled, kind == "bf16"))
            if "openvino" in self.engines:
                rows.append(row(float_model, ENGINES["openvino"].label, kind, kind, openvino, hint, cache))
        for model in (float_model, *self.models):
            network, low = load(model), model != float_model
            precision, kind = (f"{bits_of(model)} bits", "low-bit") if low else ("float32", "float32")
            if low:
                rows.append(row(model, ENGINES["openvino"].label, precision, kind, openvino, "auto", cache))
            if precision == "8 bits" and own_graph(network).module != "native":  # else it is so without being asked
                more = f"{precision}, bf16 between"
                rows.append(row(model, ENGINES["openvino"].label, more, kind, openvino, "bf16", cache))
            for name in others:
                if ENGINES[name].missing(network) is None:
                    rows.append(row(model, ENGINES[name].label, precision, kind, contestants.engine_run, name, cache))
        return rows

    def time(self, rows: list[Row], folder: Path) -> "tuple[list[Timing], dict[str, float], dict[str, float]]":
        """Timings of the rows, seconds of first starts by row, and the CPU's peaks in GMAC/s."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from bitlens.bench import Contestant, interleave
        from bitlens.cli import contestants

        (folder / "cache").mkdir()
        cold = [row for row in rows if row.kind == "low-bit"]
        peaks = [Contestant(f"peak {name}", contestants.convolution_peak, (self.threads, name)) for name in PEAKS]
        turns = len(cold) + (len(rows) + len(peaks)) * (self.rounds + 1)
        console = Console(stderr=True)
        text = TextColumn("{task.description}")
        columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("starting", total=turns)

            def on_turn(name: str) -> None:
                progress.update(task, advance=1, description=name)

            starts = interleave([row.contestant for row in cold], 1, threads=self.threads, on_turn=on_turn)
            everyone = [*(row.contestant for row in rows), *peaks]
            timings = interleave(everyone, self.rounds, threads=self.threads, keep=folder, on_turn=on_turn)
        openvino = ENGINES["openvino"].label
        needed = {row.name for row in cold if row.engine == openvino and "bf16" not in row.precision}
        for timing in timings:
            if timing.failure is not None and timing.name in needed:
                raise ValueError(f"{timing.name} does not run ({timing.failure}); wanted a network that OpenVINO knows")
        rates = {name: timing.value or 0.0 for name, timing in zip(PEAKS, timings[len(rows) :], strict=True)}
        return timings[: len(rows)], {one.name: one.start for one in starts}, rates


def float_of(model: str, folder: Path) -> str:
    """The float network that a low-bit one was made from or is named after, else a copy of it without its grids."""
    from bitlens import checkpoint
    from bitlens.quant.prepare import unprepare

    about = checkpoint.describe(model)
    named = re.sub(rf"(-{about.method})?-w\da\d$", "", about.name)
    # A network that was trained on from a low-bit one names no float one: its own name may.
    for name in (about.provenance.get("teacher"), about.provenance.get("start"), named):
        if name in checkpoint.shipped() and not checkpoint.describe(name).method:
            return name
    network = checkpoint.load(model)
    unprepare(network)
    network.recipe = None  # type: ignore[assignment]
    checkpoint.save(network, folder / "float.safetensors", provenance={"start": model})
    return str(folder / "float.safetensors")


def bits_of(model: str) -> int:
    """Bits of most of a checkpoint's weights."""
    from bitlens.checkpoint import describe

    held: dict[int, int] = {}
    for layer in describe(model).layers:
        held[layer.weight_bits] = held.get(layer.weight_bits, 0) + layer.weights
    return max(held, key=lambda bits: held[bits])


def gmacs(model: str, frames: int, height: int, width: int) -> float:
    """10^9 multiply-accumulates of one measurement or picture in convolutions, linear layers and attention products."""
    from bitlens.checkpoint import load
    from bitlens.count import count

    return sum(layer.macs for layer in count(load(model), frames, height, width)) / 1e9


def describe_row(row: Row, timing: "Timing", work: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
    """A row of the JSON; without times where it failed."""
    from bitlens.checkpoint import describe

    about = describe(row.model)
    told: dict[str, Any] = {
        "name": row.name,
        "model": about.name,
        "engine": row.engine,
        "precision": row.precision,
        "kind": row.kind,
        "weights_mb": about.bytes / 1e6,
        "failure": timing.failure,
    }
    if timing.failure is not None:
        return told
    rate = work[row.model] / timing.median
    peak = peaks.get("bf16" if row.kind == "bf16" else "u8s8" if row.kind == "low-bit" else "f32")
    return told | {
        "median_s": timing.median,
        "fastest_s": min(timing.seconds),
        "slowest_s": max(timing.seconds),
        "all_s": timing.seconds,
        "start_s": timing.start,
        "start_mb": timing.start_mb,
        "peak_mb": timing.peak_mb,
        "gmacs_per_s": rate,
        "fraction_of_peak": rate / peak if peak else None,
    }


def add_first_starts(rows: list[dict[str, Any]], seconds: dict[str, float]) -> None:
    """How long the first start of each engine took; not of rows that failed, which have no later start beside it."""
    for row in rows:
        if row["name"] in seconds and row["failure"] is None:
            row["first_start_s"] = seconds[row["name"]]


def add_quality(rows: list[dict[str, Any]], folder: Path, subject: "Subject") -> None:
    """PSNR of each row's result to the truth, and to the result of the first float32 row (of floats, over all)."""
    import numpy as np

    from bitlens.metrics import psnr_sci

    first = None
    for row in rows:
        if row["failure"] is None:
            result = np.load(folder / f"{row['name']}.npy")
            first = result if first is None else first
            row["psnr"] = subject.quality(result)
            row["psnr_to_float"] = None if result is first else psnr_sci(result, first)


def ratios(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Speed of the first low-bit network, on its fastest engine, relative to the fastest float of each kind."""

    def fastest(*kinds: str) -> float | None:
        return min((row["median_s"] for row in rows if row["kind"] in kinds and row["failure"] is None), default=None)

    first = next(row["model"] for row in rows if row["kind"] == "low-bit")
    running = [row for row in rows if row["kind"] == "low-bit" and row["failure"] is None and row["model"] == first]
    ours = min(row["median_s"] for row in running)
    kinds = {
        "official_float32": ("official float32",),
        "best_float32": ("official float32", "float32"),
        "best_bf16": ("bf16",),
    }
    found = {name: fastest(*these) for name, these in kinds.items()}
    return {name: None if seconds is None else seconds / ours for name, seconds in found.items()}


def remember_engines(model: str, rows: list[dict[str, Any]], threads: int) -> None:
    """Keep how fast each engine ran a checkpoint: what --engine auto goes by."""
    from bitlens.checkpoint import describe, load
    from bitlens.engine.speeds import remember

    own = [row for row in rows if row["model"] == describe(model).name and row["failure"] is None]
    own = [row for row in own if not row["precision"].endswith("between")]  # which auto does not choose
    names = {ENGINES[name].label: name for name in ("openvino", "native")}
    medians = {names[row["engine"]]: row["median_s"] for row in own if row["engine"] in names}
    remember(load(model), threads, medians)


def layer_costs(model: str, subject: "Subject", threads: int) -> list[dict[str, Any]]:
    """Every op of the integer network by OpenVINO's own counters: name, kind, kernel, milliseconds, GMACs."""
    from bitlens.checkpoint import load
    from bitlens.count import count
    from bitlens.engine.openvino import Engine

    network = load(model)
    work = {layer.name: layer.macs / 1e9 for layer in count(network, *subject.counted)}
    costs = Engine(network, threads=threads, check=False).profile(*subject.inputs)
    return [asdict(cost) | {"gmacs": work.get(cost.name)} for cost in costs]


def native_shares(model: str, subject: "Subject", threads: int) -> dict[str, float]:
    """Which share of one run on the native kernels each kind of call takes; empty where they cannot run the network."""
    from bitlens.checkpoint import load
    from bitlens.engine.registry import native_engine

    network = load(model)
    if ENGINES["native"].missing(network) is not None:
        return {}
    return native_engine(network, threads).shares(*subject.inputs)


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
