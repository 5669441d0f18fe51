"""Checkpoints timed on every engine beside their float network, taking turns: `benchmark`."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bitlens import checkpoint
from bitlens.bench import contestants
from bitlens.bench.subjects import Subject, subject_of
from bitlens.bench.turns import Contestant, Timing, environment, interleave
from bitlens.checkpoint import describe, load
from bitlens.count import count
from bitlens.engine.openvino import Engine
from bitlens.engine.registry import ENGINES, TIMED, native_engine, own_graph
from bitlens.engine.speeds import remember
from bitlens.inference.machine import describe_run
from bitlens.metrics import psnr_sci
from bitlens.progress import progress
from bitlens.quant.prepare import unprepare
from bitlens.tasks import TASKS

__all__ = ["benchmark"]

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
    contestant: Contestant


def benchmark(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    engines: Sequence[str] = TIMED,
    float_model: str | os.PathLike[str] | None = None,
    size: int | None = None,
    frames: int = 8,
    threads: int = 2,
    rounds: int = 7,
    seed: int = 0,
) -> dict[str, Any]:
    """Time low-bit checkpoints and their float network on every engine, each in a process of its own, interleaved.

    Float32 runs as the official code does (PyTorch, eager), in PyTorch at its best, in OpenVINO and in ONNX Runtime;
    bf16 in the first two; the checkpoints in integers. Close other programs first.

    Args:
        models: low-bit checkpoints for one task, shipped names or paths. Ratios are of the first.
        engines: that take part, where they know the network. OpenVINO runs low bits in any case.
        float_model: their float network. None: what the first one was made from, else itself without its grids.
        size: height and width in pixels of the measurement (None: 256), or of the image before it is enlarged (128).
        frames: in the measurement.
        threads: of every engine.
        rounds: timed runs of each.
        seed: of the made scene and of its mask.

    Returns:
        Plain data for JSON: "rows", one for each contestant (seconds, memory, PSNR, share of the CPU's peak), "ratios"
        of the first model to the fastest float engines, "layers" with the kernel that ran each, and what the machine
        is.

    Raises:
        ValueError: no low-bit checkpoint, networks of several kinds, or one that OpenVINO does not run.

    Example:
        >>> bitlens.benchmark(["dun-w8a8", "dun-w4a4"])["ratios"]["best_float32"]  # doctest: +SKIP
        2.8
    """
    named = [os.fspath(models)] if isinstance(models, str | os.PathLike) else [os.fspath(model) for model in models]
    subject = subject_of(scale_of(named), size, frames, seed)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        machine = environment()  # its load is that of others
        own = os.fspath(float_model) if float_model is not None else float_of(named[0], folder)
        networks = dict.fromkeys((own, *named))
        rows = contestants_of(own, named, subject, tuple(engines), threads, folder)
        timings, first_starts, peaks = timed(rows, rounds, threads, folder)
        work = {model: gmacs(model, *subject.counted) for model in networks}
        about = [describe_row(*pair, work, peaks) for pair in zip(rows, timings, strict=True)]
        add_quality(about, folder, subject)
        add_first_starts(about, first_starts)
        for model in named:
            remember_engines(model, about, threads)
        return {
            "models": [describe(model).name for model in named],
            "float_model": describe(own).name,
            "unit": subject.unit,
            "size": subject.size,
            "threads": threads,
            "rounds": rounds,
            "environment": machine,
            "run": describe_run(),
            "gmacs": {describe(model).name: value for model, value in work.items()},
            "peaks_gmacs_per_s": peaks,
            "rows": about,
            "ratios": ratios(about),
            "layers": {describe(model).name: layer_costs(model, subject, threads) for model in named},
            "native_shares": {
                describe(model).name: native_shares(model, subject, threads) for model in named if "native" in engines
            },
        }


def scale_of(models: Sequence[str]) -> int | None:
    """The scale of the checkpoints, 1 where they restore images; None where they reconstruct video.

    Raises:
        ValueError: no low-bit checkpoint, or networks of several kinds, which cannot be compared.
    """
    wanted = "wanted low-bit checkpoints for video, or of one scale; for example dun-w8a8"
    if not models:
        raise ValueError(f"no model; {wanted}")
    kinds = {}
    for model in models:
        about = describe(model)
        kinds[model] = about.task, about.config.get("scale", 1 if TASKS[about.task].still else None)
        if about.method is None:
            raise ValueError(f"{model} is a float network; {wanted}")
        if kinds[model] != kinds[models[0]]:
            raise ValueError(f"{model} is a network of another kind than {models[0]}; {wanted}")
    return kinds[models[0]][1]


def contestants_of(
    float_model: str, models: Sequence[str], subject: Subject, engines: Sequence[str], threads: int, folder: Path
) -> list[Row]:
    """The contestants: the float network on every engine, then the low-bit ones."""

    def row(model: str, engine: str, precision: str, kind: str, prepare: Any, *more: Any) -> Row:
        name = f"{describe(model).name}, {engine}, {precision}"
        contestant = Contestant(name, prepare, (model, subject.inputs, threads, *more))
        return Row(name, model, engine, precision, kind, contestant)

    cache, rows = str(folder / "cache"), []
    others = [name for name in engines if name not in ("torch", "openvino")]
    eager, compiled, openvino = contestants.torch_eager, contestants.torch_compiled, contestants.openvino_run
    if "torch" in engines:
        rows.append(row(float_model, "PyTorch eager", "float32", "official float32", eager))
    for kind, hint in (("float32", "f32"), ("bf16", "bf16")):
        if "torch" in engines:
            rows.append(row(float_model, "PyTorch compiled", kind, kind, compiled, kind == "bf16"))
        if "openvino" in engines:
            rows.append(row(float_model, ENGINES["openvino"].label, kind, kind, openvino, hint, cache))
    for model in (float_model, *models):
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


def timed(
    rows: Sequence[Row], rounds: int, threads: int, folder: Path
) -> tuple[list[Timing], dict[str, float], dict[str, float]]:
    """Timings of the rows, seconds of first starts by row, and the CPU's peaks in GMAC/s."""
    (folder / "cache").mkdir()
    cold = [row for row in rows if row.kind == "low-bit"]
    peaks = [Contestant(f"peak {name}", contestants.convolution_peak, (threads, name)) for name in PEAKS]
    turns = len(cold) + (len(rows) + len(peaks)) * (rounds + 1)
    with progress("turns") as bar:
        task = bar.add_task("starting", total=turns)

        def on_turn(name: str) -> None:
            bar.update(task, advance=1, description=name)

        starts = interleave([row.contestant for row in cold], 1, threads=threads, on_turn=on_turn)
        everyone = [*(row.contestant for row in rows), *peaks]
        timings = interleave(everyone, rounds, threads=threads, keep=folder, on_turn=on_turn)
    openvino = ENGINES["openvino"].label
    needed = {row.name for row in cold if row.engine == openvino and "bf16" not in row.precision}
    for timing in timings:
        if timing.failure is not None and timing.name in needed:
            raise ValueError(f"{timing.name} does not run ({timing.failure}); wanted a network that OpenVINO knows")
    rates = {name: timing.value or 0.0 for name, timing in zip(PEAKS, timings[len(rows) :], strict=True)}
    return timings[: len(rows)], {one.name: one.start for one in starts}, rates


def float_of(model: str, folder: Path) -> str:
    """The float network that a low-bit one was made from or is named after, else a copy of it without its grids."""
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
    held: dict[int, int] = {}
    for layer in describe(model).layers:
        held[layer.weight_bits] = held.get(layer.weight_bits, 0) + layer.weights
    return max(held, key=lambda bits: held[bits])


def gmacs(model: str, frames: int, height: int, width: int) -> float:
    """10^9 multiply-accumulates of one measurement or picture in convolutions, linear layers and attention products."""
    return sum(layer.macs for layer in count(load(model), frames, height, width)) / 1e9


def describe_row(row: Row, timing: Timing, work: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
    """A row of the JSON; without times where it failed."""
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


def add_quality(rows: list[dict[str, Any]], folder: Path, subject: Subject) -> None:
    """PSNR of each row's result to the truth, and to the result of the first float32 row (of floats, over all)."""
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
    own = [row for row in rows if row["model"] == describe(model).name and row["failure"] is None]
    own = [row for row in own if not row["precision"].endswith("between")]  # which auto does not choose
    names = {ENGINES[name].label: name for name in ("openvino", "native")}
    medians = {names[row["engine"]]: row["median_s"] for row in own if row["engine"] in names}
    remember(load(model), threads, medians)


def layer_costs(model: str, subject: Subject, threads: int) -> list[dict[str, Any]]:
    """Every op of the integer network by OpenVINO's own counters: name, kind, kernel, milliseconds, GMACs."""
    network = load(model)
    work = {layer.name: layer.macs / 1e9 for layer in count(network, *subject.counted)}
    costs = Engine(network, threads=threads, check=False).profile(*subject.inputs)
    return [asdict(cost) | {"gmacs": work.get(cost.name)} for cost in costs]


def native_shares(model: str, subject: Subject, threads: int) -> dict[str, float]:
    """Which share of one run on the native kernels each kind of call takes; empty where they cannot run the network."""
    network = load(model)
    if ENGINES["native"].missing(network) is not None:
        return {}
    return native_engine(network, threads).shares(*subject.inputs)
