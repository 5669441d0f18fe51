"""Render the measured speeds that the documentation shows from results/benchmark-*.json; nothing is typed by hand.

python docs/render_speed.py            write the tables and the picture
python docs/render_speed.py --check    exit 1 and name the files that are out of date

results/benchmark-*.json, of `bitlens benchmark ... --json FILE` -> README.md, docs/engine.md, docs/speed.png; those of
    networks that enlarge pictures -> docs/super-resolution.md
results/engine-*.json, of `bitlens evaluate W W ... --engine openvino --json FILE` -> docs/engine.md
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, drawn_fingerprint, markdown, read_json

from bitlens.cli.benchmark import draw

FINGERPRINT = "bitlens speeds"
"""Text field of the PNG: which measurement it shows. Pixels differ between machines, this does not."""
QUIET = 0.7
"""Load of the machine before a benchmark; the page says it beyond this."""
WORDS = {
    "official_float32": "PyTorch float32 as the official code runs it",
    "best_float32": "the fastest float32",
    "best_bf16": "the fastest bf16",
}


def read_benchmarks(folder: Path) -> list[dict[str, Any]]:
    """What `bitlens benchmark` wrote, by the name of the file, as `source`.

    Raises:
        ValueError: a file is no such result.
    """
    found = []
    for path in sorted(folder.glob("benchmark-*.json")):
        content = read_json(path)
        missing = {"models", "size", "threads", "rounds", "environment", "run", "rows", "ratios"} - set(content)
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; wanted `bitlens benchmark`'s; write it again")
        found.append(content | {"source": path.name})
    return found


def short_table(benchmarks: Sequence[dict[str, Any]]) -> str:
    """Seconds of every contestant, and how many times as fast as the official way it is."""
    if not benchmarks:
        return NOT_MEASURED
    parts = []
    for one in benchmarks:
        rows = [row for row in one["rows"] if row["failure"] is None]
        slowest = next((row["median_s"] for row in rows if row["kind"] == "official float32"), None)
        lines = []
        for row in rows:
            times = "–" if slowest is None else f"{slowest / row['median_s']:.1f} x"
            memory, seconds = f"{row['peak_mb']:,.0f}", f"{row['median_s']:.2f}"
            lines.append([f"`{row['model']}`", f"{row['engine']}, {row['precision']}", seconds, times, memory])
        columns = ["network", "engine", "s per measurement", "official way", "peak MB"]
        parts += [markdown(columns, lines, texts=2), conditions(one)]
    return "\n\n".join(parts)


def conditions(one: dict[str, Any]) -> str:
    """Where, how often and on what it was measured."""
    machine, size = one["environment"], " x ".join(map(str, one["size"]))
    features = ", ".join(machine["features"])
    load = machine.get("load") or 0.0
    busy = f" Load {load:g} before it began." if load > QUIET else ""
    if load > machine.get("cores", 1):
        busy = f" The machine was busy with other work (load {load:g}): times are too long."
    return (
        f"One {one.get('unit', 'measurement')} of {size}: medians of {one['rounds']} interleaved runs, "
        f"{one['threads']} threads, {machine['cpu']} ({features}). `bitlens benchmark`, results/{one['source']}.{busy}"
    )


def full_tables(benchmarks: Sequence[dict[str, Any]]) -> str:
    """Everything but the layers, one table for each benchmark."""
    if not benchmarks:
        return NOT_MEASURED
    parts = []
    for one in benchmarks:
        lines = []
        for row in one["rows"]:
            if row["failure"] is not None:
                continue
            near = "–" if row["psnr_to_float"] is None else f"{row['psnr_to_float']:.1f}"
            share = "–" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.0%}"
            lines.append([
                f"`{row['model']}`", f"{row['engine']}, {row['precision']}", f"{row['median_s']:.3f}",
                f"{row['fastest_s']:.3f} to {row['slowest_s']:.3f}", f"{row['gmacs_per_s']:.0f}", share,
                f"{row['peak_mb']:,.0f}", f"{row['psnr']:.2f}", near,
            ])  # fmt: skip
        columns = ["network", "engine", "median s", "spread", "GMAC/s", "of peak", "peak MB", "PSNR dB", "to float dB"]
        ratios = [f"{ratio:.2f} times as fast as {WORDS[name]}" for name, ratio in one["ratios"].items() if ratio]
        peaks = ", ".join(f"{name} {rate:.0f}" for name, rate in one["peaks_gmacs_per_s"].items())
        starts = [
            f"`{row['model']}` on {row['engine']}: first video {row['first_start_s']:.1f} s after the first start of "
            f"the process, {row['start_s']:.1f} s after later ones."
            for row in one["rows"]
            if "first_start_s" in row
        ]
        layers = [in_integers(model, costs) for model, costs in one["layers"].items()]
        parts += [
            conditions(one), markdown(columns, lines, texts=2),
            f"`{one['models'][0]}` is {', '.join(ratios)}. Peaks (a large convolution, GMAC/s): {peaks}.",
            "\n".join(f"* {line}" for line in [*starts, *layers]),
        ]  # fmt: skip
    return "\n\n".join(parts)


def picture_tables(benchmarks: Sequence[dict[str, Any]]) -> str:
    """Seconds of every contestant, and how many times as fast as the fastest float32 and bf16 it is."""
    if not benchmarks:
        return NOT_MEASURED
    parts = []
    for one in benchmarks:
        rows = [row for row in one["rows"] if row["failure"] is None]
        lines = []
        for row in rows:
            times = (against(rows, row, *kinds) for kinds in (("official float32", "float32"), ("bf16",)))
            near = "–" if row["psnr_to_float"] is None else f"{row['psnr_to_float']:.1f}"
            lines.append([
                f"`{row['model']}`", f"{row['engine']}, {row['precision']}", f"{row['median_s']:.3f}",
                f"{row['fastest_s']:.3f} to {row['slowest_s']:.3f}", *times, f"{row['peak_mb']:,.0f}",
                f"{row['psnr']:.2f}", near,
            ])  # fmt: skip
        columns = [
            "network", "engine", "median s", "spread", "fastest float32", "fastest bf16", "peak MB", "PSNR dB",
            "to float dB",
        ]  # fmt: skip
        layers = [f"* {in_integers(model, costs)}" for model, costs in one["layers"].items()]
        parts += [conditions(one), markdown(columns, lines, texts=2), "\n".join(layers)]
    return "\n\n".join(parts)


def against(rows: Sequence[dict[str, Any]], row: dict[str, Any], *kinds: str) -> str:
    """How many times as fast as the fastest row of some kinds a row is."""
    fastest = min((other["median_s"] for other in rows if other["kind"] in kinds), default=None)
    return "–" if fastest is None else f"{fastest / row['median_s']:.2f} x"


def in_integers(model: str, costs: Sequence[dict[str, Any]]) -> str:
    """How many layers ran in integers, by the engine's counters."""
    layers = [cost for cost in costs if cost["gmacs"] is not None]
    integer = sum(cost["kernel"].endswith("I8") for cost in layers)
    between = sum(cost["milliseconds"] for cost in costs if cost["gmacs"] is None)
    spent = sum(cost["milliseconds"] for cost in costs)
    return (
        f"`{model}`: {integer} of {len(layers)} convolutions and linear layers in integers, by OpenVINO's counters; "
        f"what lies between them takes {between / spent:.0%} of the time."
    )


def agreement(folder: Path) -> str:
    """PSNR of each network on an engine beside that in torch, where low bits are simulated.

    Raises:
        ValueError: a file is no list of evaluations, or torch's is missing or of other weights.
    """
    lines = []
    for path in sorted(folder.glob("engine-*.json")):
        content = read_json(path)
        for one in content if isinstance(content, list) else [content]:
            about = one["settings"]
            beside = folder / f"{about['model']}.json"
            torch = read_json(beside) if beside.is_file() else None
            if torch is None or torch["settings"]["sha256"] != about["sha256"]:
                raise ValueError(f"{path} has {about['model']}, and {beside} not the same weights; evaluate both again")
            ours, wanted = one["average"]["psnr"], torch["average"]["psnr"]
            most = max(abs(one["scenes"][name]["psnr"] - torch["scenes"][name]["psnr"]) for name in one["scenes"])
            numbers = f"{wanted:.3f}", f"{ours:.3f}", f"{ours - wanted:+.3f}", f"{most:.3f}"
            lines.append([f"`{about['model']}`", about["engine"], *numbers])
    columns = ["network", "engine", "torch, dB", "engine, dB", "difference", "largest of a scene"]
    return markdown(columns, lines, texts=2) if lines else NOT_MEASURED


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring all files up to date, or with `check` only find out.

    Returns:
        The files that were (or are) out of date.
    """
    found = read_benchmarks(root / "results")
    benchmarks = [one for one in found if one.get("unit", "measurement") == "measurement"]
    pictures = [one for one in found if one not in benchmarks]
    enlarging = root / "docs" / "super-resolution.md"
    readme, page, picture = root / "README.md", root / "docs" / "engine.md", root / "docs" / "speed.png"
    pages = {
        readme: between_marks(readme, speed=short_table(benchmarks[:1])),
        page: between_marks(page, speed=full_tables(benchmarks), same=agreement(root / "results")),
        enlarging: between_marks(enlarging, speed=picture_tables(pictures)),
    }
    stale = bring_up_to_date(pages, check)
    if benchmarks and drawn_fingerprint(picture, FINGERPRINT) != fingerprint(benchmarks[0]):
        stale.append(picture)
        if not check:
            draw(benchmarks[0], picture, {FINGERPRINT: fingerprint(benchmarks[0])})
    return stale


def fingerprint(one: dict[str, Any]) -> str:
    """A hash of what the picture shows."""
    return hashlib.sha256(json.dumps([one["rows"], one["size"]], sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    return command("render_speed", __doc__ or "", render, arguments)


if __name__ == "__main__":
    sys.exit(main())
