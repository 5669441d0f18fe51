"""Render the tables of docs/peers.md from results/peers/*.json; nothing is typed by hand.

python docs/render_peers.py            write the tables
python docs/render_peers.py --check    exit 1 if the page is out of date

results/peers/NAME.json, of `docs/measure_peers.py` -> one table each
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, markdown, read_json

AS_GOOD = 0.05
"""dB below the best 8 bits that still count as equal."""


def table(content: Mapping[str, Any]) -> str:
    """Conditions, a row for each toolkit on each engine, and who is ahead."""
    rows = content["rows"]
    in_float = next(row["psnr"] for row in rows if row["name"] == "float")
    lines = []
    for row in rows:
        if row["failure"] is not None:
            lines.append([row["name"], row["engine"], "–", "–", "–", "–"])
            continue
        loss = "–" if row["name"] == "float" else f"{row['psnr'] - in_float:+.2f}"
        lines.append([row["name"], row["engine"], f"{row['psnr']:.2f}", loss, f"{row['ms']:.1f}", f"{row['mb']:.2f}"])
    size = " x ".join(map(str, content["size"]))
    machine, made = content["environment"], content["packages"]
    packages = ", ".join(f"{name} {number}" for name, number in made.items() if number)
    about = (
        f"`{content['start']}`, {content['test']}, calibrated on {content['samples']['count']} samples; ms of one "
        f"input of {size}, {content['threads']} threads, medians of {content['rounds']} turns, {machine['cpu']} "
        f"({', '.join(machine['features'])}); {packages}."
    )
    columns = ["toolkit", "engine", "dB", "against float", "ms", "MB"]
    failures = [f"\n\n{row['name']}: {row['failure']}" for row in rows if row["failure"] is not None]
    return f"{about}\n\n{markdown(columns, lines, texts=2)}\n\n{verdict(rows)}{''.join(failures)}"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """The fastest of ours beside the fastest of theirs that is as good."""
    low = [row for row in rows if row["failure"] is None and row["name"] != "float"]
    mine, theirs = ([row for row in low if row["name"].startswith("bitlens") == own] for own in (True, False))
    if not mine or not theirs:
        return "Nothing to compare."
    ours = min(mine, key=lambda row: row["ms"])
    equal = [row for row in theirs if row["psnr"] >= ours["psnr"] - AS_GOOD]
    said = f"Ours at its fastest: {ours['ms']:.1f} ms on {ours['engine']}. "
    if not equal:
        return f"{said}No other is within {AS_GOOD} dB of it."
    best = min(equal, key=lambda row: row["ms"])
    return (
        f"{said}The fastest of the others within {AS_GOOD} dB of it: {best['name']}, {best['ms']:.1f} ms, "
        f"{best['ms'] / ours['ms']:.2f} times as long."
    )


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring the page up to date, or with `check` only find out; the files that were (or are) out of date."""
    page = root / "docs" / "peers.md"
    found = [table(read_json(file)) for file in sorted((root / "results" / "peers").glob("*.json"))]
    return bring_up_to_date({page: between_marks(page, peers="\n\n".join(found) or NOT_MEASURED)}, check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    return command("render_peers", __doc__ or "", render, arguments)


if __name__ == "__main__":
    sys.exit(main())
