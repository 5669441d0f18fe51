"""Render the table of super-resolution in docs/super-resolution.md from results/sr/*.json; nothing is typed by hand.

python docs/render_pictures.py            write the table
python docs/render_pictures.py --check    exit 1 if it is out of date

results/sr/*.json        `bitlens evaluate MODEL --data set5 --json FILE`
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- pictures:begin -->", "<!-- pictures:end -->"

PAPERS: dict[tuple[str, str], tuple[float, float]] = {
    ("ngswin-x2", "set5"): (38.05, 0.9610),
    ("ngswin-x2", "set14"): (33.79, 0.9199),
    ("ngswin-x3", "set5"): (34.52, 0.9282),
    ("ngswin-x3", "set14"): (30.53, 0.8456),
    ("imdn-x2", "set5"): (38.00, 0.9605),
    ("imdn-x2", "set14"): (33.63, 0.9177),
    ("imdn-x4", "set5"): (32.21, 0.8948),
    ("imdn-x4", "set14"): (28.58, 0.7811),
    ("pan-x2", "set5"): (38.00, 0.9605),
    ("pan-x2", "set14"): (33.59, 0.9181),
    ("pan-x4", "set5"): (32.13, 0.8948),
    ("pan-x4", "set14"): (28.61, 0.7822),
    ("smfanet-plus-x2", "set5"): (38.19, 0.9611),
    ("smfanet-plus-x2", "set14"): (33.92, 0.9207),
    ("smfanet-plus-x4", "set5"): (32.51, 0.8985),
    ("smfanet-plus-x4", "set14"): (28.87, 0.7872),
}
"""Published averages, PSNR in dB and SSIM, of each network and test set."""

UNCHECKED = {("pan-x2", "set14")} | {pair for pair in PAPERS if pair[0].startswith("smfanet")}
"""Published averages that are quoted from memory, not checked against the paper."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """The measured averages beside the published ones, as Markdown."""
    lines = ["| network | test set | PSNR, published | SSIM, published | difference |", "|---|---|---:|---:|---:|"]
    for result in sorted(results, key=lambda one: (one["settings"]["model"], len(one["settings"]["data"]))):
        settings, average = result["settings"], result["average"]
        mark = " †" if (settings["model"], settings["data"]) in UNCHECKED else ""
        row = [settings["model"] + mark, settings["data"]]
        paper = PAPERS.get((settings["model"], settings["data"]))
        psnr, ssim = f"{average['psnr']:.3f}", f"{average['ssim']:.4f}"
        if paper is None:
            row += [psnr, ssim, ""]
        else:
            row += [f"{psnr}, {paper[0]:.2f}", f"{ssim}, {paper[1]:.4f}", f"{average['psnr'] - paper[0]:+.3f} dB"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to work on")
    given = parser.parse_args(arguments)
    page = given.root / "docs" / "super-resolution.md"
    text = page.read_text(encoding="utf-8")
    files = sorted((given.root / "results" / "sr").glob("*.json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if BEGIN not in text or END not in text:
        print(f"render_pictures: {page} lacks {BEGIN} and {END}; put them where the table goes", file=sys.stderr)
        return 2
    head, rest = text.split(BEGIN, 1)
    changed = f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END, 1)[1]}"
    if changed == text:
        return 0
    print(f"{'out of date' if given.check else 'wrote'}: docs/super-resolution.md")
    if not given.check:
        page.write_text(changed, encoding="utf-8")
    return int(given.check)


if __name__ == "__main__":
    sys.exit(main())
