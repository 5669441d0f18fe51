"""What the scripts share: results as JSON, tables, the places in a page that they fill, fingerprints, command lines."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOT_MEASURED = "Nothing is measured yet: `results/` holds no file for this table."


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); wanted a result file; write it again") from error


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write what a script has measured as JSON, with the facts of this run: versions, CPU, revision, date."""
    from bitlens.inference.machine import describe_run

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, "run": describe_run()}, indent=1) + "\n", encoding="utf-8")


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """A Markdown table whose first `texts` columns are text and whose others are numbers, set to the right."""
    rule = ["---" if index < texts else "---:" for index in range(len(columns))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, rule, *rows])


def between_marks(page: Path, **contents: str) -> str:
    """The page's text with each of `contents` between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        ValueError: the page does not have each marker once.
    """
    text = page.read_text(encoding="utf-8")
    for mark, content in contents.items():
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ValueError(
                f"{page} lacks the lines {begin} and {end}; wanted each once, in this order; put them back"
            )
        text = f"{text.split(begin)[0]}{begin}\n{content}\n{end}{text.split(end)[1]}"
    return text


def drawing(height: int = 240, width: int = 320) -> Any:
    """A drawn page in colour, levels (h, w, 3): what shows an enlarged or restored image, and may be shown.

    A sky over houses with windows, a wheel with thin spokes, lines that come ever closer, and lettering.
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    k = 4  # drawn four times as large, so that edges are soft
    image = Image.new("RGB", (k * width, k * height))
    draw, random = ImageDraw.Draw(image), np.random.default_rng(0)
    for row in range(k * height):
        share = row / (k * height)
        draw.line(
            [(0, row), (k * width, row)],
            tuple(int(a + (b - a) * share) for a, b in ((96, 232), (152, 220), (214, 196))),
        )
    left = 0
    while left < k * width:
        wide, tall = int(random.integers(36, 70)) * k, int(random.integers(60, 150)) * k
        wall = tuple(int(value) for value in random.integers(60, 190, 3))
        top = k * height - tall
        draw.rectangle([left, top, left + wide, k * height], wall)
        for y in range(top + 5 * k, k * height, 11 * k):
            for x in range(left + 4 * k, left + wide - 7 * k, 9 * k):
                light = (250, 232, 170) if random.random() < 0.4 else tuple(value // 2 for value in wall)
                draw.rectangle([x, y, x + 5 * k, y + 7 * k], light)
                draw.line([(x + 2.5 * k, y), (x + 2.5 * k, y + 7 * k)], wall, k)
        left += wide + int(random.integers(0, 8)) * k
    x, y, radius = 0.77 * k * width, 0.26 * k * height, 0.2 * k * height
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=(40, 40, 60), width=2 * k)
    for angle in np.linspace(0, 2 * np.pi, 32, endpoint=False):
        end = (x + radius * np.cos(angle), y + radius * np.sin(angle))
        draw.line([(x, y), end], (40, 40, 60), k // 2)
    place = 0.04 * k * width
    for index in range(24):
        draw.line([(place, 0.05 * k * height), (place + 10 * k, 0.3 * k * height)], (30, 30, 40), k)
        place += k * (9 - 0.28 * index)
    for size, line, at in ((24, "bitlens", 0.33), (11, "low bits, sharp edges 0123456789", 0.44)):
        font = ImageFont.load_default(k * size)
        draw.text((0.04 * k * width, at * k * height), line, (20, 20, 30), font)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def bring_up_to_date(pages: dict[Path, str], check: bool) -> list[Path]:
    """Write the pages that differ from these texts, or with `check` only find them; those pages."""
    stale = [page for page, text in pages.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]
    if not check:
        for page in stale:
            page.write_text(pages[page], encoding="utf-8")
    return stale


def drawn_fingerprint(picture: Path, field: str) -> str | None:
    """What a PNG's text field says that it shows; None where there is no picture or no such field."""
    from PIL import Image

    if not picture.is_file():
        return None
    with Image.open(picture) as image:
        return image.info.get(field)


def command(
    name: str,
    about: str,
    render: Callable[[Path, bool], list[Path]],
    arguments: Sequence[str] | None = None,
    **switches: tuple[str, Callable[[Path], None]],
) -> int:
    """A script's command line: render the files of a checkout, or with --check only name those that are out of date.

    Args:
        name: of the script.
        about: its docstring.
        render: called with the checkout and whether only to check; the files that were (or are) out of date.
        arguments: of the command line; None: this process's.
        switches: more flags, each with its help and what is done first where it is given.

    Returns:
        Exit code: 1 if --check found something, 2 for a file that cannot be used.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to work on")
    for switch, (words, _) in switches.items():
        parser.add_argument(f"--{switch}", action="store_true", help=words)
    given = parser.parse_args(arguments)
    try:
        for switch, (_, act) in switches.items():
            if getattr(given, switch):
                act(given.root)
        changed = render(given.root, given.check)
    except (ValueError, KeyError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"{'out of date' if given.check else 'wrote'}: {path.relative_to(given.root)}")
    return 1 if given.check and changed else 0
