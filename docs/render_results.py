"""Render every number that the documentation shows from the files in results/; nothing is typed by hand.

python docs/render_results.py            write the tables and the picture
python docs/render_results.py --check    exit 1 and name the files that are out of date
python docs/render_results.py --claim    write the six-scene averages into the shipped checkpoints first

results/*.json           `bitlens evaluate ... --json FILE`      -> docs/results.md, the table in README.md; with the
                                                                    times of benchmark-*.json docs/tradeoff.png
results/benchmark-*.json, results/engine-*.json: docs/render_speed.py; results/sr/*.json: docs/render_pictures.py;
results/costs-*.json     `bitlens costs`: for choosing bits, shown nowhere
    of unfolding networks, measured with --stages         -> stages in docs/dun.md
results/experiments/cameras.json `bitlens cameras ... --json FILE` -> cameras in docs/dun.md
results/training-*.json  `bitlens train`, RUN/record.json        -> the table in docs/training.md,
                                                                    docs/learning-curve.png
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, drawn_fingerprint, markdown, read_json

from bitlens import checkpoint
from bitlens.cli.info import bits_in_words
from bitlens.inference.evaluation import Score

BENCHMARK = "six-scenes"
FINGERPRINT = "bitlens curves"
"""Text field of the PNG: which curves it shows. Pixels differ between machines, this does not."""

TRADEOFF = "bitlens tradeoff"
"""The same of the picture of dB, milliseconds and MB."""

PAPER = (
    ("GAP-TV", "no weights", 26.94, 0.833),
    ("EfficientSCI-T †", "float", 34.22, 0.961),
    ("EfficientSCI-S", "float", 35.51, 0.970),
    ("Q-SCI on EfficientSCI-S", "8", 35.57, 0.969),
    ("Q-SCI on EfficientSCI-S", "4", 34.69, 0.963),
    ("Q-SCI on EfficientSCI-S", "3", 33.62, 0.953),
    ("Q-SCI on EfficientSCI-S", "2", 31.62, 0.928),
)
"""Published averages over the six scenes: method, bits, PSNR in dB, SSIM."""

PAPER_NOTE = (
    "These were trained by their authors on another training set (DAVIS 2017) and for far longer, and measured with "
    "another mask: they say what the method can reach, and are no comparison of implementations. Q-SCI published no "
    "EfficientSCI-T; compare what it loses against its own float network. GAP-TV has no training, and is comparable. "
    "† quoted second hand, not checked against the paper."
)


@dataclass(frozen=True)
class Evaluation:
    """One model on one test set, as `bitlens evaluate` measured it."""

    model: str
    source: str
    """Name of the file it was read from."""
    scenes: dict[str, Score]
    average: Score
    settings: dict[str, Any]
    bits: str
    """Bits of weights and activations, in words."""
    size: int | None
    """Bytes of the checkpoint; None: it is not here."""
    stages: tuple[float, ...] = ()
    """PSNR in dB after each stage of an unfolding network, where it was measured."""

    @property
    def data(self) -> str:
        """The test set: its name, or the last part of its path."""
        return Path(self.settings["data"]).name

    @property
    def conditions(self) -> tuple[str, str, int]:
        """What results in one table share."""
        return self.data, self.settings["mask"], self.settings["frames_per_measurement"]


@dataclass(frozen=True)
class TrainingRun:
    """One training run."""

    name: str
    steps: int
    samples: int
    minutes: float
    curve: list[tuple[int, float]]
    """(step, PSNR in dB on validation clips)."""
    kinds: dict[str, float]
    """The last PSNR of each kind of camera, where several were validated; the curve has their mean."""
    crops: int = 0
    """That it was validated on; 0: it was not counted then."""


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Every evaluation of the folder's `*.json`, gap-tv first, then by name.

    Raises:
        ValueError: a file is not an evaluation, the checkpoint here is not the one that was measured, or a model
            was measured twice under the same conditions.
    """
    found: dict[tuple[str, tuple[str, str, int]], Evaluation] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("training-", "benchmark-", "engine-", "costs-")):
            continue
        content = read_json(path)
        for one in content if isinstance(content, list) else [content]:
            made = as_evaluation(one, path)
            key = made.model, made.conditions
            if key in found:
                raise ValueError(
                    f"{path} and {found[key].source} both hold {made.model} on {made.data}; wanted it once; remove one"
                )
            found[key] = made
    return sorted(found.values(), key=lambda one: (one.model != checkpoint.CLASSICAL, _family(one.model)))


def as_score(one: dict[str, float]) -> Score:
    """One scene's scores; results before there were flicker and banding have none."""
    return Score(one["psnr"], one["ssim"], one.get("flicker"), one.get("banding"))


def as_evaluation(content: Any, path: Path) -> Evaluation:
    """Check one object of `bitlens evaluate`, and look its checkpoint up."""
    try:
        settings = content["settings"]
        scenes = {name: as_score(one) for name, one in content["scenes"].items()}
        average = as_score(content["average"])
        model, digest = settings["model"], settings["sha256"]
        stages = tuple(content.get("stages", ()))
        for key in ("data", "mask", "frames_per_measurement", "seconds_per_measurement", "threads", "dtype"):
            settings[key]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a result of `bitlens evaluate` ({type(error).__name__}: {error}); wanted scenes, average "
            "and settings; write it with --json, or move it elsewhere"
        ) from error
    for name in (model, settings.get("checkpoint")):
        try:
            about = checkpoint.describe(name) if name else None
        except FileNotFoundError:
            continue
        if about is None:
            continue
        if about.path is not None and checkpoint.weights_sha256(about.path) != digest:
            raise ValueError(
                f"{path} measured another {model} than the one here (SHA-256 {str(digest)[:12]}...); wanted a result "
                f"of this checkpoint; run bitlens evaluate {model} again"
            )
        bits = bits_in_words(about).replace("float, float", "float").replace("bf16, float", "float (bf16)")
        return Evaluation(model, path.name, scenes, average, settings, bits, about.bytes, stages)
    return Evaluation(model, path.name, scenes, average, settings, "unknown", None, stages)


def read_training(folder: Path) -> list[TrainingRun]:
    """Every `training-*.json` of the folder.

    Raises:
        ValueError: a key is missing or is not what it should be.
    """
    runs = []
    for path in sorted(folder.glob("training-*.json")):
        content = read_json(path)
        try:
            curve = [(int(step), float(psnr)) for step, psnr in content["curve"]]
            numbers = int(content["steps"]), int(content["samples"]), float(content["minutes"])
            kinds = {str(kind): float(psnr) for kind, psnr in content.get("kinds", {}).items()}
            runs.append(TrainingRun(str(content["name"]), *numbers, curve, kinds, int(content.get("crops", 0))))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not the record of a training run ({type(error).__name__}: {error}); wanted name, steps, "
                "samples, minutes and curve, a list of [step, psnr]; write it again"
            ) from error
    return runs


def fastest(folder: Path) -> dict[str, tuple[float, str]]:
    """Seconds of each model on the engine that was fastest in results/benchmark-*.json, and that engine."""
    found: dict[str, tuple[float, str]] = {}
    for path in sorted(folder.glob("benchmark-*.json")):
        for row in read_json(path)["rows"]:
            if row["failure"] is None:
                now = row["median_s"], f"{row['engine']}, {row['precision']}"
                found[row["model"]] = min(now, found.get(row["model"], now))
    return found


def readme_table(evaluations: Sequence[Evaluation], speeds: dict[str, tuple[float, str]]) -> str:
    """dB, MB and ms of every model on the benchmark."""
    chosen = [one for one in evaluations if one.settings["data"] == BENCHMARK]
    if not chosen:
        return NOT_MEASURED
    rows = []
    for one in chosen:
        seconds, engine = speeds.get(one.model, (None, ""))
        time = "–" if seconds is None else f"{1000 * seconds:,.0f} ({engine})"
        rows.append([f"`{one.model}`", one.bits, _db(one.average), _ssim(one.average), _mb(one), time])
    columns = ["network", "bits (weights, activations)", "PSNR (dB)", "SSIM", "MB", "ms per measurement"]
    return (
        f"{markdown(columns, rows, texts=2)}\n\n"
        f"Six grey 256 x 256 scenes, 8 frames from each coded picture, `psnr_sci` and `ssim_sci`. MB: the checkpoint "
        "file. ms: on the fastest of the engines that `bitlens benchmark` compares. Scene by scene, with the papers' "
        "numbers: [docs/results.md](docs/results.md). Rendered by `docs/render_results.py`."
    )


def results_page(evaluations: Sequence[Evaluation]) -> str:
    """docs/results.md."""
    parts = ["# Results", "Rendered by `docs/render_results.py` from `results/*.json`; do not edit."]
    if not evaluations:
        parts.append(NOT_MEASURED)
    for conditions in dict.fromkeys(one.conditions for one in evaluations):
        group = [one for one in evaluations if one.conditions == conditions]
        data, mask, frames = conditions
        parts += [f"## {data}", f"{frames} frames in each measurement; {_mask_words(mask)}."]
        parts += [_scene_table(group), _cost_table(group)]
        if data == BENCHMARK:
            parts += ["### The papers' numbers", _paper_table(group), PAPER_NOTE]
        parts += ["### How it was measured", _settings_list(group)]
    return "\n\n".join(parts) + "\n"


def stages_table(evaluations: Sequence[Evaluation]) -> str:
    """dB after each stage, of float and low-bit unfolding networks, and what rounding costs there."""
    chosen = [one for one in evaluations if one.stages and one.settings["data"] == BENCHMARK]
    if not chosen:
        return NOT_MEASURED
    floats = {one.model: one.stages for one in chosen}
    rows = []
    for one in chosen:
        base = floats.get(_family(one.model)[0], one.stages)
        same = base is one.stages
        values = [f"{a:.2f}" if same else f"{a:.2f} ({a - b:+.2f})" for a, b in zip(one.stages, base, strict=True)]
        rows.append([f"`{one.model}`", *values])
    numbers = range(1, 1 + max(len(one.stages) for one in chosen))
    return (
        f"{markdown(['network', *(f'stage {number}' for number in numbers)], rows, texts=1)}\n\n"
        "PSNR in dB on the six scenes of the video after each stage; in brackets against the same stage in float."
    )


def cameras_table(content: dict[str, Any]) -> str:
    """PSNR of each model through each camera, and the mean over all of them."""
    models = content["models"]
    means = {
        one["camera"]: {model: sum(one["psnr"][model].values()) / len(one["psnr"][model]) for model in models}
        for one in content["cameras"]
    }
    rows = [[camera, *(f"{scores[model]:.2f}" for model in models)] for camera, scores in means.items()]
    overall = {model: sum(scores[model] for scores in means.values()) / len(means) for model in models}
    rows.append(["**mean**", *(f"**{overall[model]:.2f}**" for model in models)])
    return markdown(["camera", *(f"`{model}`" for model in models)], rows, texts=1)


def training_table(runs: Sequence[TrainingRun]) -> str:
    """What each run cost, and what it gained on its validation clips."""
    if not runs:
        return NOT_MEASURED
    rows = []
    for run in runs:
        ends = [f"{run.curve[0][1]:.2f}", f"{run.curve[-1][1]:.2f}"] if run.curve else ["–", "–"]
        numbers = [f"{run.steps:,}", f"{run.samples:,}", f"{run.minutes:.0f}"]
        rows.append([f"`{run.name}`", *numbers, *ends, f"{run.crops}" if run.crops else "–"])
    table = markdown(["run", "steps", "samples", "minutes", "first dB", "last dB", "of crops"], rows, texts=1)
    drawn = "\n\n![learning curves](learning-curve.png)" if any(run.curve for run in runs) else ""
    about = "dB: PSNR on validation clips (of ABPN and FFDNet: photographs), which is not the PSNR on test sets. "
    about += "Runs of one family compare where they have as many crops (–: not counted; of ABPN and FFDNet a quarter)."
    validated = [
        run for run in runs if run.kinds and not any(kind.startswith(("noise-", "jpeg-")) for kind in run.kinds)
    ]
    if validated:
        kinds = list(dict.fromkeys(kind for run in validated for kind in run.kinds))
        rows = [[f"`{run.name}`", *(f"{run.kinds[kind]:.2f}" for kind in kinds)] for run in validated]
        table_of_kinds = markdown(["run", *kinds], rows, texts=1)
        about += f" Of DUN it is the mean over kinds of cameras, with other crops for each:\n\n{table_of_kinds}"
    return f"{table}\n\n{about}{drawn}"


def draw_curves(runs: Sequence[TrainingRun], path: Path) -> None:
    """The validation PSNR of every run over its steps, as a PNG that carries a fingerprint of its data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families: dict[str, list[TrainingRun]] = {}
    for run in runs:
        if run.curve:
            family = " ".join(re.findall(r"^[a-z]+|x\d", run.name))
            families.setdefault(family + (f", {run.crops} crops" if run.crops else ""), []).append(run)
    figure = Figure(figsize=(11, 3.2 * math.ceil(len(families) / 2)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (family, alike) in enumerate(families.items()):
        axes = figure.add_subplot(math.ceil(len(families) / 2), 2, number + 1)
        for run in alike:
            steps, values = zip(*run.curve, strict=True)
            label = f"{run.name}: {values[-1]:.2f} dB, {run.minutes:.0f} min"
            axes.plot(steps, values, linewidth=1.8, marker="o", markersize=3, label=label)
        axes.set_title(family, fontsize=12)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel("validation PSNR (dB)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={FINGERPRINT: fingerprint(runs)})


LABELS = {32: ((0, 15), "center"), 4: ((-9, -4), "right"), 3: ((8, -11), "left"), 2: ((-9, -4), "right")}
"""Where the label of a disc stands by its bits, in points: neighbours lie close."""


def draw_tradeoff(points: Sequence[tuple[str, float, float, int]], path: Path) -> None:
    """dB over milliseconds of every shipped network, as discs with the area of its file, families joined by lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, family in enumerate(dict.fromkeys(_family(model)[0] for model, *_ in points)):
        alike = [point for point in points if _family(point[0])[0] == family]
        colour = f"C{number}"
        axes.plot([ms for _, _, ms, _ in alike], [psnr for _, psnr, _, _ in alike], color=colour, alpha=0.5)
        areas = [120 * size / 1e6 for *_, size in alike]
        axes.scatter([ms for _, _, ms, _ in alike], [psnr for _, psnr, _, _ in alike], areas, colour, label=family)
        for model, psnr, ms, size in alike:
            bits = -_family(model)[1]
            label = f"{'float' if bits == 32 else f'{bits} bits'}, {size / 1e6:.1f} MB"
            shift, side = LABELS.get(bits, ((8, 7), "left"))
            axes.annotate(label, (ms, psnr), shift, textcoords="offset points", fontsize=8, ha=side)
    axes.set_xscale("log")
    axes.set_xlabel("ms per measurement of 256 x 256 x 8, on the fastest engine (2 threads)", fontsize=12)
    axes.set_ylabel("PSNR on the six scenes (dB)", fontsize=12)
    axes.grid(alpha=0.3, which="both")
    axes.margins(0.12)
    legend = axes.legend(fontsize=11, loc="best")
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]
    figure.savefig(path, metadata={TRADEOFF: tradeoff_fingerprint(points)})


def tradeoff(evaluations: Sequence[Evaluation], speeds: dict[str, tuple[float, str]]) -> list[Any]:
    """Name, dB, milliseconds and bytes of every model on the benchmark whose speed was measured."""
    return [
        (one.model, one.average.psnr, 1000 * speeds[one.model][0], one.size)
        for one in evaluations
        if one.settings["data"] == BENCHMARK and one.model in speeds and one.size
    ]


def tradeoff_fingerprint(points: Sequence[Any]) -> str:
    """A hash of what the picture of dB, milliseconds and MB shows."""
    return hashlib.sha256(json.dumps(points).encode()).hexdigest()


def fingerprint(runs: Sequence[TrainingRun]) -> str:
    """A hash of what the picture shows."""
    return hashlib.sha256(json.dumps([[run.name, run.minutes, run.curve] for run in runs]).encode()).hexdigest()


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring all files up to date, or with `check` only find out.

    Returns:
        The files that were (or are) out of date.
    """
    evaluations, runs = read_evaluations(root / "results"), read_training(root / "results")
    readme, page, training = root / "README.md", root / "docs" / "results.md", root / "docs" / "training.md"
    pages = {
        readme: between_marks(readme, results=readme_table(evaluations, fastest(root / "results"))),
        page: results_page(evaluations),
        training: between_marks(training, training=training_table(runs)),
    }
    unfolding, cameras = root / "docs" / "dun.md", root / "results" / "experiments" / "cameras.json"
    pages[unfolding] = between_marks(
        unfolding,
        stages=stages_table(evaluations),
        cameras=cameras_table(read_json(cameras)) if cameras.is_file() else NOT_MEASURED,
    )
    stale = bring_up_to_date(pages, check)
    picture = root / "docs" / "learning-curve.png"
    if any(run.curve for run in runs) and drawn_fingerprint(picture, FINGERPRINT) != fingerprint(runs):
        stale.append(picture)
        if not check:
            draw_curves(runs, picture)
    points, picture = tradeoff(evaluations, fastest(root / "results")), root / "docs" / "tradeoff.png"
    if points and drawn_fingerprint(picture, TRADEOFF) != tradeoff_fingerprint(points):
        stale.append(picture)
        if not check:
            draw_tradeoff(points, picture)
    return stale


def _scene_table(group: Sequence[Evaluation]) -> str:
    """PSNR / SSIM of every model, scene by scene."""
    names = list(group[0].scenes)
    rows = []
    for one in group:
        if list(one.scenes) != names:
            raise ValueError(
                f"{one.source} has the scenes {', '.join(one.scenes)}, {group[0].source} {', '.join(names)}; wanted "
                "the same; evaluate both again"
            )
        scores = [one.average, *one.scenes.values()]
        rows.append([f"`{one.model}`", *(f"{_db(score)} / {_ssim(score)}" for score in scores)])
    return "PSNR in dB / SSIM:\n\n" + markdown(["network", "average", *names], rows, texts=1)


def _cost_table(group: Sequence[Evaluation]) -> str:
    """What a model costs, and what it loses against its float network."""
    floats = {one.model: one.average.psnr for one in group}
    rows = []
    for one in group:
        base = _family(one.model)[0]
        loss = f"{one.average.psnr - floats[base]:+.2f}" if base != one.model and base in floats else "–"
        film = ["–" if value is None else f"{value:.3g}" for value in _film(one.average)]
        rows.append([f"`{one.model}`", one.bits, loss, _mb(one), *film])
    columns = ["network", "bits (weights, activations)", "dB against float", "MB", "flicker", "banding"]
    return (
        f"{markdown(columns, rows, texts=2)}\n\nMB: 10^6 bytes of the checkpoint file. Speed: [engine.md](engine.md). "
        "What low bits do to a film: flicker is the rms error of changes from frame to frame, banding how far apart "
        "the histograms of gradients lie in flat places, both in levels of 255 (`bitlens/metrics.py`)."
    )


def _film(score: Score) -> tuple[float | None, float | None]:
    """Flicker and banding in levels of 255."""
    return score.flicker and 255 * score.flicker, score.banding


def _paper_table(group: Sequence[Evaluation]) -> str:
    """Published averages, and ours below them."""
    rows = [[method, bits, f"{psnr:.2f}", f"{ssim:.3f}", "the papers"] for method, bits, psnr, ssim in PAPER]
    rows += [[f"`{one.model}`", one.bits, _db(one.average), _ssim(one.average), "here"] for one in group]
    return markdown(["method", "bits", "PSNR (dB)", "SSIM", "measured by"], rows, texts=2)


def _settings_list(group: Sequence[Evaluation]) -> str:
    """Conventions, versions and identities behind the tables."""
    lines = []
    for one in group:
        held = one.settings
        digest = f", SHA-256 {held['sha256'][:16]}" if held.get("sha256") else ""
        revision = f", revision {held['git_revision'][:12]}" if held.get("git_revision") else ""
        lines.append(
            f"* `{one.model}`: results/{one.source}, {held.get('date', 'undated')}, bitlens {held.get('bitlens', '?')}"
            f"{revision}, torch {held.get('torch', '?')}, {held['dtype']}, {held['threads']} threads{digest}"
        )
    conventions = [f"* {group[0].settings[key]}" for key in ("psnr", "ssim") if group[0].settings.get(key)]
    return "\n".join([*conventions, *lines])


def _mask_words(mask: str) -> str:
    """How it was masked, without the folder of a file."""
    return f"mask from {Path(mask[10:]).name}" if mask.startswith("mask from ") else mask


def _family(model: str) -> tuple[str, int]:
    """Sort key: a float network, then its low-bit ones from many bits to few."""
    low = re.fullmatch(r"(.+?)(?:-qsci|-direct)?-w(\d)a\d", model)
    return (low[1], -int(low[2])) if low else (model, -32)


def _db(score: Score) -> str:
    return f"{score.psnr:.2f}"


def _ssim(score: Score) -> str:
    return "–" if score.ssim is None else f"{score.ssim:.4f}"


def _mb(one: Evaluation) -> str:
    return "–" if one.size is None else f"{one.size / 1e6:.2f}"


def claim(root: Path) -> None:
    """Write each shipped checkpoint's average on the benchmark into its header, as what it claims."""
    shipped = checkpoint.shipped()
    for result in read_evaluations(root / "results"):
        if result.model in shipped and result.settings["data"] == BENCHMARK:
            scores = {"psnr": round(result.average.psnr, 3), "mask": result.settings["mask"]}
            if result.average.ssim is not None:
                scores["ssim"] = round(result.average.ssim, 4)
            checkpoint.set_claims(shipped[result.model], {BENCHMARK: scores})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    switch = "write measured averages into the shipped checkpoints", claim
    return command("render_results", __doc__ or "", render, arguments, claim=switch)


if __name__ == "__main__":
    sys.exit(main())
