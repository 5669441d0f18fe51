"""One HTML page of results: it loads nothing, reads on a phone, and is light or dark as the reader's system is.

    result files ── sections ──> page.html, a template of Jinja ──> one file

A section is plain data: a title, and what it shows: text, a table, a chart, bars for layers, or videos to compare.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.metrics import psnr_sci, ssim_sci
from bitlens.report.charts import Point, Series, scatter
from bitlens.report.pictures import Panel

__all__ = ["Bar", "Section", "page", "read", "sections_of", "videos", "write_page"]

QUALITY = 90
"""Of the WebP images in a page."""
FILM = (
    "Flicker: the rms error of changes from frame to frame; banding: how far apart the histograms of gradients lie in "
    "flat places; both in levels of 255, 0 is best."
)
SHOWN = 24
"""Most frames of a video that a page holds."""


@dataclass(frozen=True)
class Bar:
    """One layer."""

    name: str
    tag: str
    """Its bits."""
    value: float
    """What the length of its bar is."""
    note: str


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    charts: Sequence[str] = ()
    """SVG, of `charts`."""
    bars: Sequence[Bar] = ()
    videos: Sequence[Mapping[str, Any]] = ()
    """Each with title, caption and frames as data URLs, as many of each; at first the last two are shown."""
    truth: bool = False
    """Whether the last video is the truth, of which the others' errors are shown."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, folded away."""

    @property
    def longest(self) -> float:
        """The value of the longest bar."""
        return max((bar.value for bar in self.bars), default=0.0) or 1.0


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML.

    Raises:
        ValueError: no section.
    """
    from jinja2 import Environment

    if not sections:
        raise ValueError("nothing to show; wanted one section or more; give result files")
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text).render(
        title=title, sections=sections
    )  # fmt: skip


def read(path: Path) -> Any:
    """A result file.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is no JSON of results.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}; wanted a result of bitlens (.json); check the path") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); wanted a result of bitlens; write it again") from error


def write_page(path: Path, title: str, results: Iterable[tuple[str, Any]]) -> None:
    """The page of result files, by name, as a file.

    Raises:
        ValueError: as `sections_of`, or there is none.
    """
    path.write_text(page(title, sections_of(results)), encoding="utf-8")


def sections_of(results: Iterable[tuple[str, Any]]) -> list[Section]:
    """The sections of result files, by name: of `tune`, `benchmark`, `experiment` and `evaluate`.

    All evaluations on a test set are one table, and those of networks that a benchmark timed one chart.

    Raises:
        ValueError: a file holds something else.
    """
    found: list[Section] = []
    evaluated: list[Mapping[str, Any]] = []
    timed: list[Mapping[str, Any]] = []
    for name, content in results:
        shown = content if isinstance(content, dict) else {}
        if shown.get("format") == "bitlens-tuned-1":
            found += list(tuned(name, shown))
        elif {"rows", "float_model", "environment"} <= set(shown):
            found.append(benchmarked(shown))
            timed += [row for row in shown["rows"] if row["failure"] is None]
        elif {"experiment", "float", "rows"} <= set(shown):
            found.append(experimented(shown))
        elif {"scenes", "average", "settings"} <= set(shown):
            evaluated.append(shown)
        else:
            raise ValueError(
                f"{name} is no result that a page shows; wanted one of tune, benchmark, experiment or evaluate; leave "
                "it out"
            )
    return [*evaluations(evaluated, timed), *found]


def tuned(name: str, content: Mapping[str, Any]) -> Iterable[Section]:
    """What was possible, what was chosen, and each layer."""
    measured, predicted = content["measured"], content["predicted"]
    unit = next(name for name in ("ms", "MB") if name in predicted)

    def points(rows: Iterable[Mapping[str, Any]], label: str | None) -> list[Point]:
        return [
            Point(row[unit], row["loss"], row.get("bits", "") if label is None else label, in_words(row))
            for row in rows
        ]

    def in_words(row: Mapping[str, Any]) -> str:
        costs = ", ".join(f"{row[one]:.3g} {one}" for one in ("ms", "MB", "GMAC") if one in row)
        return f"{row.get('bits', 'chosen exactly')}: {row['loss']:.3f} dB, {costs}"

    near = [row for row in content["uniform"] if row["loss"] < 3]
    drawn = [Series("chosen exactly, foretold", points([row for row in content["curve"] if row["loss"] < 3], ""), True)]
    drawn += [Series("the same bits everywhere", points(near, None))]
    drawn += [Series("this network, measured", points([{**predicted, **measured}], "this one"))]
    asked = ", ".join(f"{key} {value:g}" for key, value in content["budgets"].items() if value is not None)
    text = (
        f"Budget: {asked}. {measured['psnr_float']:.2f} dB in float, {measured['psnr']:.2f} dB here, on samples that "
        f"nothing was chosen by; {measured['MB']:.2f} MB"
        + (f", {measured['ms']:.1f} ms, threads: {content['threads']}" if "ms" in measured else "")
        + f". Calibrated by {content['calibrated']}, {content['steps']} steps of refinement."
    )
    facts = {key: content[key] for key in ("start", "budgets", "data", "measure", "timed", "threads", "run")}
    chart = scatter(drawn, {"ms": "milliseconds", "MB": "MB"}[unit], "loss of PSNR (dB)")
    yield Section(f"{name}: bits for a budget", text, charts=[chart], facts=facts)
    spent, bars = content.get("milliseconds") or {}, []
    for layer, label in content["chosen"].items():
        spoils = content["errors"][layer][label]
        value = spent.get(layer, {}).get(label, 0.0) if spent else spoils
        costs = f"{value:.3f} ms, " if spent else ""
        bars.append(Bar(layer, label, value, f"{layer}: {label}, {costs}adds {spoils:.2e} to the squared error"))
    what = "Length: milliseconds." if spent else "Length: what its rounding adds to the squared error."
    yield Section(f"{name}: the layers", f"{what} Rest the pointer on one for its numbers.", bars=bars)


def benchmarked(content: Mapping[str, Any]) -> Section:
    """Networks on engines, by their medians."""
    rows = [row for row in content["rows"] if row["failure"] is None]
    ordered = sorted(rows, key=lambda row: row["median_s"])
    bars = [
        Bar(row["name"], f"{1e3 * row['median_s']:.0f} ms", row["median_s"], f"{row['psnr']:.2f} dB") for row in ordered
    ]
    machine, size = content["environment"], " x ".join(map(str, content["size"]))
    text = (
        f"One {content['unit']} of {size}, {content['threads']} threads, {machine['cpu']}; medians of interleaved runs."
    )
    facts = {"environment": machine, "run": content["run"]}
    return Section(f"Speed: {', '.join(content['models'])}", text, bars=bars, facts=facts)


def experimented(content: Mapping[str, Any]) -> Section:
    """Methods by what they cost, in dB against float, beside what their paper says."""
    scored = [row for row in content["rows"] if row.get("against_float") is not None]
    first = scored[0]["against_float"] if scored else 0.0
    sets = list(first) if isinstance(first, Mapping) else [str(content.get("data", "PSNR"))]

    def number(of: Any, name: str) -> str:
        value = of.get(name) if isinstance(of, Mapping) else of
        return "" if value is None else f"{value:+.2f}"

    rows = [
        [
            str(row["variant"]),
            str(row.get("bits", "")),
            *(number(row[key], name) for name in sets for key in ("against_float", "paper") if key in row),
        ]
        for row in scored
    ]
    columns = ["method", "bits", *(words for name in sets for words in (f"{name}: here", "paper"))]
    text = f"{content['start']}: PSNR against its float network in dB, beside the paper's."
    facts = {"budget": content.get("budget"), "float": content["float"]}
    return Section(f"Experiment {content['experiment']}", text, columns=columns, rows=rows, facts=facts)


def evaluations(results: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]] = ()) -> Iterable[Section]:
    """PSNR, SSIM, flicker and banding of networks, scene by scene; one section for each test set."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for content in results:
        sets.setdefault(str(content["settings"]["data"]), []).append(content)
    for name, own in sets.items():
        scenes = list(own[0]["scenes"])
        films = any(one["average"].get("flicker") is not None for one in own)
        rows = [
            [
                str(one["settings"]["model"]),
                *(f"{one['scenes'][scene]['psnr']:.2f}" if scene in one["scenes"] else "" for scene in scenes),
                f"{one['average']['psnr']:.2f}",
                "" if one["average"].get("ssim") is None else f"{one['average']['ssim']:.4f}",
                *(of_film(one["average"]) if films else ()),
            ]
            for one in own
        ]
        facts = {str(one["settings"]["model"]): one["settings"] for one in own}
        text = f"PSNR in dB ({own[0]['settings'].get('psnr', 'as the set is scored')}), and SSIM."
        columns = ["network", *scenes, "mean", "SSIM"]
        if films:
            columns += ["flicker", "banding"]
            text += f" {FILM}"
        yield Section(
            f"Quality on {name}", text, columns=columns, rows=rows, facts=facts, charts=list(against_costs(own, timed))
        )


def of_film(score: Mapping[str, Any]) -> list[str]:
    """Flicker and banding in levels of 255; empty where they were not measured."""
    flicker, banding = score.get("flicker"), score.get("banding")
    return ["" if value is None else f"{value:.2f}" for value in (flicker and 255 * flicker, banding)]


def against_costs(results: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Mean PSNR against the fastest engine's milliseconds, and against MB, of all networks that were timed."""
    quality = {str(one["settings"]["model"]): one["average"]["psnr"] for one in results}
    for key, factor, unit in (("median_s", 1e3, "milliseconds, fastest engine"), ("weights_mb", 1, "MB")):
        points = []
        for model, psnr in quality.items():
            own = [row for row in timed if row["model"] == model]
            if own:
                best = min(own, key=lambda row: row["median_s"])
                note = f"{best['name']}: {psnr:.2f} dB, {1e3 * best['median_s']:.1f} ms, {best['weights_mb']:.2f} MB"
                points.append(Point(factor * best[key], psnr, model, note))
        if len(points) > 1:
            yield scatter([Series("networks", points)], unit, "PSNR (dB)")


def videos(
    title: str, text: str, panels: Sequence[Panel], measured: Panel | None = None, truth: Panel | None = None
) -> Section:
    """Videos to compare, two at a time under a slider, frame by frame; of long ones the first `SHOWN` frames.

    Args:
        panels: of one size; a single frame goes with any length.
        measured: what they were made from, shown with them.
        truth: with it each side can be shown as its errors, and PSNR and SSIM of the panels are drawn frame by frame.
    """
    every = [panel for panel in (measured, *panels, truth) if panel is not None]
    frames = min(SHOWN, max(len(panel.video) for panel in every))
    shown = []
    for panel in every:
        picked = [webp(panel.video[min(index, len(panel.video) - 1)]) for index in range(frames)]
        shown.append({"title": panel.title, "caption": panel.caption, "frames": picked})
    charts = [] if truth is None else list(by_frame(panels, truth.video))
    return Section(title, text, videos=shown, charts=charts, truth=truth is not None)


def by_frame(panels: Sequence[Panel], truth: np.ndarray) -> Iterable[str]:
    """PSNR and SSIM of every frame of the videos that are as long as the truth."""
    measures: list[tuple[str, Callable[[np.ndarray, np.ndarray], float], str]] = [("PSNR (dB)", psnr_sci, ".2f")]
    if min(truth.shape[1:]) >= 11:
        measures.append(("SSIM", ssim_sci, ".4f"))
    for words, measure, digits in measures:
        drawn = []
        for panel in panels:
            if len(panel.video) == len(truth) > 1:
                values = [measure(panel.video[[index]], truth[[index]]) for index in range(min(SHOWN, len(truth)))]
                points = [
                    Point(index + 1, value, "", f"{panel.title}, frame {index + 1}: {value:{digits}}")
                    for index, value in enumerate(values)
                ]
                drawn.append(Series(panel.title, points, line=True))
        if drawn:
            yield scatter(drawn, "frame", words)


def webp(frame: np.ndarray) -> str:
    """A frame (h, w) in [0, 1] as a data URL."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)).save(stream, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
