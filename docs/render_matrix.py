"""Render docs/matrix.md from results/matrix.json: every network on every engine; nothing is typed by hand.

python docs/render_matrix.py            write the tables
python docs/render_matrix.py --check    exit 1 if the page is out of date

results/matrix.json, of `bitlens matrix results/matrix.json` -> docs/matrix.md
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, markdown, read_json

from bitlens.engine.registry import ENGINES

APART = 0.02
"""dB that an engine may differ from fake quantization."""


def tables(content: Mapping[str, Any]) -> str:
    """Conditions, a table with a row for each network and number of bits, and what the engines refused."""
    rows: list[dict[str, Any]] = content["rows"]
    engines = [name for name in ENGINES if any(row["engine"] == name for row in rows)]
    places: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["network"], -row["bits"])):
        places.setdefault((row["network"], row["bits"]), {})[row["engine"]] = row
    lines = []
    for (network, bits), own in places.items():
        run = [row for row in own.values() if row["refused"] is None]
        weights = "" if not run else "trained" if run[0]["trained"] else "random"
        floats = ", ".join(dict.fromkeys(f"{ENGINES[row['float_engine']].label}" for row in run))
        lines.append([f"`{network}`", weights, floats, str(bits), *(cell(own.get(engine)) for engine in engines)])
    columns = ["network", "weights", "fastest float32", "bits", *(ENGINES[engine].label for engine in engines)]
    parts = [conditions(content), markdown(columns, lines, texts=3), summary(rows)]
    if refused := list(refusals(rows)):
        parts.append("Refused:\n\n" + "\n".join(refused))
    return "\n\n".join(parts)


def cell(row: Mapping[str, Any] | None) -> str:
    """Times as fast as the float network; dB apart; share of time outside of integers."""
    if row is None:
        return "–"
    if row["refused"] is not None:
        return "refused"
    apart = row["quality_db"] - row["simulated_db"]
    outside = "" if row["outside"] is None else f"; {row['outside']:.0%}"
    loud = "**" if abs(apart) > APART else ""
    return f"{row['float_seconds'] / row['seconds']:.2f} x; {loud}{apart:+.3f}{loud} dB{outside}"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows ran, and how many are close to fake quantization."""
    run = [row for row in rows if row["refused"] is None]
    close = sum(abs(row["quality_db"] - row["simulated_db"]) <= APART for row in run)
    least = min((row["agreement_db"] for row in run), default=0.0)
    return (
        f"{len(run)} of {len(rows)} ran; {close} of these are at most {APART} dB apart, the others in bold. The "
        f"least agreement of a result with its fake quantization is {least:.1f} dB."
    )


def refusals(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Engines and networks with the reason, those with the same one together."""
    bits: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["refused"] is not None:
            bits.setdefault((row["network"], row["engine"], row["refused"]), []).append(str(row["bits"]))
    for (network, engine, reason), own in sorted(bits.items()):
        yield f"* `{network}` on {ENGINES[engine].label}, {', '.join(own)} bits: {reason}"


def conditions(content: Mapping[str, Any]) -> str:
    """Where, how often and on what it was measured."""
    settings, machine = content["settings"], content["environment"]
    load = machine.get("load") or 0.0
    busy = f" The machine was busy with other work (load {load:g})." if load > 0.7 else ""
    return (
        f"Measurements of {settings['frames']} x {settings['size']} x {settings['size']}, pictures of "
        f"{settings['size']} x {settings['size']} to be enlarged; "
        f"medians of {settings['rounds']} runs in turn, {settings['threads']} threads, {machine['cpu']} "
        f"({', '.join(machine['features'])}). `bitlens matrix`, results/matrix.json.{busy}"
    )


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring the page up to date, or with `check` only find out; the files that were (or are) out of date."""
    page, file = root / "docs" / "matrix.md", root / "results" / "matrix.json"
    text = tables(read_json(file)) if file.is_file() else NOT_MEASURED
    return bring_up_to_date({page: between_marks(page, matrix=text)}, check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    return command("render_matrix", __doc__ or "", render, arguments)


if __name__ == "__main__":
    sys.exit(main())
