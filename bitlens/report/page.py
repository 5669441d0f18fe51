"""One HTML page of results: it loads nothing, reads on a phone, and is light or dark as the reader's system is.

    result files ── sections ──> page.html, a template of Jinja ──> one file

A section is plain data: a title, and what it shows: text, a table, a chart, bars for layers, or videos to compare.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from bitlens.report.charts import Point, Series, scatter
from bitlens.report.pictures import Panel

__all__ = ["Bar", "Section", "page", "read", "sections_of", "videos"]

QUALITY = 90
"""Of the WebP images in a page."""
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
    chart: str = ""
    """SVG, of `charts`."""
    bars: Sequence[Bar] = ()
    videos: Sequence[Mapping[str, Any]] = ()
    """Each with title, caption and frames as data URLs, as many of each; at first the last two are shown."""
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


def sections_of(results: Iterable[tuple[str, Any]]) -> list[Section]:
    """The sections of result files, by name: of `tune`, `benchmark` and `evaluate`; all evaluations are one table.

    Raises:
        ValueError: a file holds something else.
    """
    found: list[Section] = []
    evaluated: list[tuple[str, Mapping[str, Any]]] = []
    for name, content in results:
        shown = content if isinstance(content, dict) else {}
        if shown.get("format") == "bitlens-tuned-1":
            found += list(tuned(name, shown))
        elif {"rows", "float_model", "environment"} <= set(shown):
            found.append(benchmarked(shown))
        elif {"scenes", "average", "settings"} <= set(shown):
            evaluated.append((name, shown))
        else:
            raise ValueError(
                f"{name} is no result that a page shows; wanted one of tune, benchmark or evaluate; leave it out"
            )
    return [*evaluations(evaluated), *found]


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
    yield Section(f"{name}: bits for a budget", text, chart=chart, facts=facts)
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


def evaluations(results: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterable[Section]:
    """PSNR and SSIM of networks, scene by scene; one section for each test set."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for _, content in results:
        sets.setdefault(str(content["settings"]["data"]), []).append(content)
    for name, own in sets.items():
        scenes = list(own[0]["scenes"])
        rows = [
            [
                str(one["settings"]["model"]),
                *(f"{one['scenes'][scene]['psnr']:.2f}" if scene in one["scenes"] else "" for scene in scenes),
                f"{one['average']['psnr']:.2f}",
                f"{one['average'].get('ssim') or 0:.4f}",
            ]
            for one in own
        ]
        facts = {str(one["settings"]["model"]): one["settings"] for one in own}
        text = f"PSNR in dB ({own[0]['settings'].get('psnr', 'as the set is scored')}), and SSIM."
        columns = ["network", *scenes, "mean", "SSIM"]
        yield Section(f"Quality on {name}", text, columns=columns, rows=rows, facts=facts)


def videos(title: str, text: str, panels: Sequence[Panel]) -> Section:
    """Videos to compare, two at a time under a slider, frame by frame; of long ones the first `SHOWN` frames.

    Args:
        panels: of one size; a single frame goes with any length.
    """
    frames = min(SHOWN, max(len(panel.video) for panel in panels))
    shown = []
    for panel in panels:
        picked = [webp(panel.video[min(index, len(panel.video) - 1)]) for index in range(frames)]
        shown.append({"title": panel.title, "caption": panel.caption, "frames": picked})
    return Section(title, text, videos=shown)


def webp(frame: np.ndarray) -> str:
    """A frame (h, w) in [0, 1] as a data URL."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)).save(stream, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
