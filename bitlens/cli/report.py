"""`bitlens report`: results as one HTML page."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Report:
    """Put results into one HTML page that loads nothing, for a browser or a phone.

    Takes what bitlens tune wrote beside its network, and the files that bitlens benchmark --json and
    bitlens evaluate --json wrote. Evaluations on one test set are one table. `bitlens demo` writes such a page itself,
    with the videos.

    Example:
        bitlens report fast.json benchmark.json --out report.html   # of bitlens tune abpn-x2 --out fast.safetensors ...
    """

    results: tyro.conf.Positional[tuple[Path, ...]]
    """Result files (.json)."""
    out: Path = Path("report.html")
    """The page (.html)."""
    title: str = "bitlens"
    """Its heading."""

    def run(self) -> None:
        from bitlens.cli.shared import check_other, output_file
        from bitlens.report.page import page, read, sections_of

        check_other(self.out, *self.results)
        text = page(self.title, sections_of((file.stem, read(file)) for file in self.results))
        with output_file(self.out, ".html", ".htm") as path:
            assert path is not None
            path.write_text(text, encoding="utf-8")
        print(f"wrote {self.out} ({self.out.stat().st_size / 1e3:,.0f} kB)")
