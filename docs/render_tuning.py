"""Render the tables of docs/tuning.md from results/tuning/*.json and results/nested/*.json; nothing is typed by hand.

python docs/render_tuning.py            write the tables
python docs/render_tuning.py --check    exit 1 if the page is out of date

results/tuning/NAME.json, of `docs/measure_tuning.py` -> one table each
results/nested/NAME.json, of `docs/measure_nested.py` -> one table each
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, markdown, read_json


def table(content: Mapping[str, Any]) -> str:
    """Conditions, and a row for each way to choose."""
    size = " x ".join(map(str, content["size"]))
    machine, data = content["environment"], content["data"]
    shown = "made scenes" if "data" in data else "photographs" if "photographs" in data else "films"
    rows = content["rows"]
    lines = []
    for row in rows:
        way = row["way"] + (f", {row['steps']} steps" if row["steps"] else "")
        gap = row["predicted"]["ms"] / row["ms"] - 1
        change = row["psnr"] - content["float"]["psnr"]
        lines.append(
            [way, f"{row['loss']:.3f}", f"{change:+.3f}", f"{row['ms']:.1f}", f"{gap:+.1%}", f"{row['MB']:.3f}"]
        )
    columns = ["bits", "loss (dB)", "other samples (dB)", "ms", "foretold", "MB"]
    about = (
        f"`{content['start']}` on {shown}, float {content['float']['psnr']:.2f} dB; {size}, {content['threads']} "
        f"threads, {machine['cpu']} ({', '.join(machine['features'])}), load {machine['load']}."
    )
    return f"{about}\n\n{markdown(columns, lines, texts=1)}"


def nested(content: Mapping[str, Any]) -> str:
    """Each width of one file beside a network of that width alone."""
    sets = list(content["float"])
    lines = []
    for row in content["rows"]:
        cells = [str(row["bits"])]
        for name in sets:
            both = row["nested"]["psnr"][name], row["alone"]["psnr"][name]
            cells += [f"{both[0]:.2f}", f"{both[1]:.2f}", f"{both[0] - both[1]:+.2f}"]
        lines.append([*cells, f"{row['alone']['mb']:.2f}"])
    columns = ["bits"]
    for name in sets:
        columns += [f"{name}: nested", "alone", "difference"]
    trained = dict.fromkeys(row[kind]["trained"] for row in content["rows"] for kind in ("nested", "alone"))
    in_float = ", ".join(f"{value:.2f} dB on {name}" for name, value in content["float"].items())
    return (
        f"`{content['start']}`, float {in_float}; each trained for {' or '.join(trained)}. The nested file has "
        f"{content['mb']:.2f} MB.\n\n{markdown([*columns, 'MB alone'], lines, texts=0)}"
    )


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring the page up to date, or with `check` only find out; the files that were (or are) out of date."""
    page = root / "docs" / "tuning.md"
    found = [table(read_json(file)) for file in sorted((root / "results" / "tuning").glob("*.json"))]
    several = [nested(read_json(file)) for file in sorted((root / "results" / "nested").glob("*.json"))]
    contents = {"ways": "\n\n".join(found) or NOT_MEASURED, "nested": "\n\n".join(several) or NOT_MEASURED}
    return bring_up_to_date({page: between_marks(page, **contents)}, check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    return command("render_tuning", __doc__ or "", render, arguments)


if __name__ == "__main__":
    sys.exit(main())
