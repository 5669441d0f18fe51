"""Render the tables of super-resolution from results/sr/*.json; nothing is typed by hand.

python docs/render_pictures.py            write the tables
python docs/render_pictures.py --check    exit 1 and name the pages that are out of date
python docs/render_pictures.py --claim    write the averages into the shipped checkpoints first

results/sr/table-*.json      `bitlens experiment sr-table ... --json FILE` -> docs/twodquant.md
results/sr/quantized-*.json  `bitlens evaluate START-METHOD-wNaN ...`, made by `bitlens quantize` -> docs/twodquant.md
results/sr/*.json            `bitlens evaluate MODEL --data set5 --json FILE` -> docs/super-resolution.md, README.md
results/restoration/*.json   `bitlens evaluate MODEL --data set5+jpeg-10 --json FILE` -> docs/restoration.md
results/restoration/classical.json   `docs/measure_classical.py` -> the same
results/restoration/bounds.json   `docs/measure_faithful.py` -> the same
results/films/reuse.json     `docs/measure_reuse.py` -> docs/super-resolution.md
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rendering import NOT_MEASURED, between_marks, bring_up_to_date, command, markdown, read_json

from bitlens import checkpoint
from bitlens.cli.info import bits_in_words

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
    rows = []
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
        rows.append(row)
    return markdown(["network", "test set", "PSNR, published", "SSIM, published", "difference"], rows, texts=2)


def shipped_table(results: Sequence[dict[str, Any]]) -> str:
    """Averages of the networks that are shipped, on each test set, as Markdown."""
    if not results:
        return NOT_MEASURED
    sets = list(
        dict.fromkeys(one["settings"]["data"] for one in sorted(results, key=lambda one: len(one["settings"]["data"])))
    )
    rows = []
    for model in sorted({one["settings"]["model"] for one in results}):
        about = checkpoint.describe(model)
        of = {one["settings"]["data"]: one for one in results if one["settings"]["model"] == model}
        for name, one in of.items():
            if about.path is None or checkpoint.weights_sha256(about.path) != one["settings"]["sha256"]:
                raise ValueError(f"{model} on {name} was measured with other weights; wanted these; evaluate it again")
        scores = [f"{of[name]['average']['psnr']:.2f}, {of[name]['average']['ssim']:.4f}" for name in sets]
        rows.append([f"`{model}`", bits_in_words(about), f"{about.bytes / 1e6:.2f}", *scores])
    return markdown(
        ["network", "bits (weights, activations)", "MB", *(f"{name}: dB, SSIM" for name in sets)], rows, texts=2
    )


ORDER = ("2DQuant", "DOBI", "Percentile", "MinMax")
"""Best to worst in the paper, at every number of bits."""


def method_table(content: dict[str, Any]) -> str:
    """What `bitlens experiment sr-table` found, beside the papers' numbers, as Markdown."""
    sets, rows, budget = list(content["float"]), content["rows"], content["budget"]
    told = [name for name in sets if any(name in row["paper"] for row in rows)]
    columns = ["bits", "method", "held out", *sets, *(f"{name}, paper" for name in told)]
    lines = [f"| {' | '.join(columns)} |", f"|---:|---|{'---:|' * (len(columns) - 2)}"]
    whole = [f"{value:.2f}" for value in content["float"].values()]
    lines.append(f"| 32 | float | | {' | '.join(whole)} |{' |' * len(told)}")
    for bits in dict.fromkeys(row["bits"] for row in rows):
        same = [row for row in rows if row["bits"] == bits]
        best = {name: max(row["against_float"][name] for row in same) for name in sets}
        for row in same:
            values = [mark(row["against_float"][name], best[name]) for name in sets]
            values += [f"{row['paper'][name]:+.2f}" if name in row["paper"] else "" for name in told]
            lines.append(f"| {bits} | {row['variant']} | {row['held_out']:.2f} | {' | '.join(values)} |")
    limit = "" if budget["minutes"] is None else f"{budget['minutes']:g} minutes or "
    seconds = [row["refinement_cpu_seconds"] for row in rows if row["steps"]]
    words = (
        f"{content['start']}: dB against float; held out: PSNR against the float network's pictures of photographs "
        f"beside those of the calibration. Refined for {limit}{budget['steps']:,} steps of {budget['batch']} crops of "
        f"{budget['crop']} x {budget['crop']}, {min(seconds):.0f} to {max(seconds):.0f} s of one core a method. "
        f"{order_in_words(rows, sets)} The papers' network is SwinIR-light."
    )
    return "\n".join([words, "", *lines])


def quantized_table(results: Sequence[dict[str, Any]], floats: Sequence[dict[str, Any]]) -> str:
    """What `bitlens quantize` made in its default time, beside the float network on the same test set, as Markdown."""
    whole = {(one["settings"]["model"], one["settings"]["data"]): one["average"]["psnr"] for one in floats}
    rows = []
    for one in results:
        model, data = one["settings"]["model"], one["settings"]["data"]
        start = next((name for name, of in whole if model.startswith(name) and of == data), None)
        if start is None:
            raise ValueError(f"no float result beside {model} on {data}; wanted its start's; evaluate that as well")
        found, before = one["average"]["psnr"], whole[start, data]
        rows.append([f"`{model}`", data, f"{before:.2f}", f"{found:.2f}", f"{found - before:+.2f}"])
    return markdown(["network", "test set", "float (dB)", "low bits (dB)", "difference"], rows, texts=2)


def restoration_table(results: Sequence[dict[str, Any]], classical: Sequence[dict[str, Any]]) -> str:
    """PSNR of damaged images as they came, after classical filters and after each network, as Markdown."""
    found = {(one["settings"]["model"], "held" in one["settings"], one["settings"]["data"]): one for one in results}
    ways = sorted({key[:2] for key in found}, key=lambda way: (way[1], -fewest_bits(way[0]), way[0]))
    for (model, _, data), one in found.items():
        about = checkpoint.describe(model)
        if about.path is None or checkpoint.weights_sha256(about.path) != one["settings"]["sha256"]:
            raise ValueError(f"{model} on {data} was measured with other weights; wanted these; evaluate it again")
    rows, filters = [], list(classical[0]["psnr"])
    for row in classical:
        of = [found.get((*way, row["data"])) for way in ways]
        scores = ["" if one is None else f"{one['average']['psnr']:.2f}" for one in of]
        data, _, kind = row["data"].partition("+")
        rows.append([data, kind, *(f"{row['psnr'][name]:.2f}" for name in filters), *scores])
    columns = ["test set", "damage", *filters, *(f"`{model}`{', faithful' if held else ''}" for model, held in ways)]
    models = dict.fromkeys(model for model, _ in ways)
    sizes = (f"`{model}` {checkpoint.describe(model).bytes / 1e6:.2f} MB" for model in models)
    return f"{markdown(columns, rows, texts=2)}\n\nFiles: {', '.join(sizes)}."


def bounds_table(content: dict[str, Any]) -> str:
    """What it is worth to hold restored JPEGs to their files, by how narrow the bounds are, as Markdown."""
    rows = []
    for row in content["rows"]:
        best = max(row["held"].values())
        cells = (f"**{psnr:.2f}**" if psnr == best else f"{psnr:.2f}" for psnr in row["held"].values())
        rows.append([f"jpeg-{row['quality']}", f"{row['free']:.2f}", *cells])
    columns = ["damage", f"`{content['model']}`, free", *(f"{bound} of a step" for bound in content["rows"][0]["held"])]
    words = (
        f"{content['photographs']} photographs that training held out, at most {content['side']} pixels of each side."
    )
    return f"{markdown(columns, rows, texts=1)}\n\n{words} `docs/measure_faithful.py`."


def fewest_bits(model: str) -> int:
    """Bits of most weights of a shipped network; 32: float."""
    return checkpoint.describe(model).bits[0] or 32


def reuse_table(content: dict[str, Any]) -> str:
    """What keeping the results of still pixels saves, as Markdown."""
    rows = []
    for film, ways in content["films"].items():
        whole = ways["whole frames"]["seconds"]
        for way, one in ways.items():
            rows.append(
                [
                    film, way, f"{one['seconds']:.1f}", f"{whole / one['seconds']:.2f} x", f"{one['kept']:.0%}",
                    f"{one['equal']:.2%}", str(one["levels_apart"]), f"{one['flicker']:.3f}",
                ]
            )  # fmt: skip
    columns = ["film", "computed", "s", "speed", "kept", "equal bits", "levels apart, at most", "flicker"]
    frames, height, width = content["size"]
    words = (
        f"A made film of {frames} frames, {width} x {height}, enlarged by `{content['model']}`; a disc flies before a "
        f"still page. 2 threads, {content['environment']['cpu']}. `docs/measure_reuse.py`."
    )
    return f"{words}\n\n{markdown(columns, rows, texts=2)}"


def mark(value: float, best: float) -> str:
    """dB, bold where nothing of the same bits is better."""
    return f"**{value:+.2f}**" if value == best else f"{value:+.2f}"


def order_in_words(rows: Sequence[dict[str, Any]], sets: Sequence[str]) -> str:
    """How often 2DQuant is above each method that the paper compares it with, and where the paper's order holds."""
    beaten, order = Tally(), Tally()
    for bits in dict.fromkeys(row["bits"] for row in rows):
        by_name = {row["variant"]: row["against_float"] for row in rows if row["bits"] == bits}
        known = [name for name in ORDER if name in by_name]
        best = [(ORDER[0], worse) for worse in known[1:] if known[0] == ORDER[0]]
        for name in sets:
            where = f"at {bits} bits on {name}"
            for tally, pairs in ((beaten, best), (order, pairwise(known))):
                for better, worse in pairs:
                    tally.count(by_name[better][name] > by_name[worse][name], f"{better} below {worse} {where}")
    return (
        f"{ORDER[0]} is above {', '.join(ORDER[1:])} in {beaten.in_words()}. "
        f"The paper's order {' > '.join(ORDER)} holds in {order.in_words()}."
    )


@dataclass
class Tally:
    """How often something held, and where it did not."""

    held: int = 0
    broken: list[str] = field(default_factory=list)

    def count(self, held: bool, otherwise: str) -> None:
        """One comparison."""
        self.held += held
        self.broken += [] if held else [otherwise]

    def in_words(self) -> str:
        """'5 of 6 comparisons: not ...'."""
        text = f"{self.held} of {self.held + len(self.broken)} comparisons"
        return f"{text}{': not ' if self.broken else ''}{', '.join(self.broken)}"


def render(root: Path, check: bool = False) -> list[Path]:
    """Bring the pages up to date, or with `check` only find out; the pages that were (or are) out of date."""
    read = {file.name: read_json(file) for file in sorted((root / "results" / "sr").glob("*.json"))}
    enlarging, twodquant = root / "docs" / "super-resolution.md", root / "docs" / "twodquant.md"
    readme, restoring = root / "README.md", root / "docs" / "restoration.md"
    restored = [read_json(file) for file in restoration_files(root)]
    classical, bounds = (root / "results" / "restoration" / f"{name}.json" for name in APART)
    reuse = root / "results" / "films" / "reuse.json"
    made = [content for name, content in read.items() if name.startswith("quantized-")]
    measured = [content for name, content in read.items() if not name.startswith(("table-", "quantized-"))]
    own = [content for content in measured if content["settings"]["model"] in checkpoint.shipped()]
    floats = [content for content in measured if content not in own]
    methods = "\n\n".join(method_table(content) for name, content in read.items() if name.startswith("table-"))
    pages = {
        enlarging: between_marks(
            enlarging,
            pictures=table(floats),
            shipped=shipped_table(own),
            reuse=reuse_table(read_json(reuse)) if reuse.is_file() else NOT_MEASURED,
        ),
        restoring: between_marks(
            restoring,
            restoration=restoration_table(restored, read_json(classical)["rows"]) if restored else NOT_MEASURED,
            bounds=bounds_table(read_json(bounds)) if bounds.is_file() else NOT_MEASURED,
        ),
        readme: between_marks(readme, shipped=shipped_table(own)),
        twodquant: between_marks(
            twodquant,
            pictures=methods or NOT_MEASURED,
            quantized=quantized_table(made, floats) if made else NOT_MEASURED,
        ),
    }
    return bring_up_to_date(pages, check)


APART = ("classical", "bounds")
"""Results in results/restoration that `bitlens evaluate` did not write."""


def restoration_files(root: Path) -> list[Path]:
    """What `bitlens evaluate` wrote of networks for restoration."""
    files = sorted((root / "results" / "restoration").glob("*.json"))
    return [file for file in files if file.stem not in APART]


def claim(root: Path) -> None:
    """Write each shipped network's averages on the test sets into its header, as what it claims."""
    shipped, claims = checkpoint.shipped(), {}
    for file in [*sorted((root / "results" / "sr").glob("*.json")), *restoration_files(root)]:
        content = read_json(file)
        model = content["settings"]["model"] if "settings" in content else None
        if model in shipped and "held" not in content["settings"]:
            average = content["average"]
            scores = {"psnr": round(average["psnr"], 3), "ssim": round(average["ssim"], 4)}
            claims.setdefault(model, {})[content["settings"]["data"]] = scores
    for model, found in claims.items():
        checkpoint.set_claims(shipped[model], found)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see the top of this file."""
    switch = "write measured averages into the shipped checkpoints", claim
    return command("render_pictures", __doc__ or "", render, arguments, claim=switch)


if __name__ == "__main__":
    sys.exit(main())
