"""`bitlens report`: results as one HTML page."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Report:
    """Put results into one HTML page that loads nothing, for a browser or a phone.

    Takes what bitlens tune wrote beside its network, and the files that bitlens benchmark, evaluate and experiment
    wrote with --json. Evaluations on one test set are one table. Each of these verbs writes a page of its own result
    with --page, and `bitlens demo` one with the videos.

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
        from bitlens.cli.shared import PAGES, check_other, output_file
        from bitlens.report.page import read, write_page

        check_other(self.out, *self.results)
        with output_file(self.out, *PAGES) as path:
            assert path is not None
            write_page(path, self.title, ((file.stem, read(file)) for file in self.results))
        print(f"wrote {self.out} ({self.out.stat().st_size / 1e3:,.0f} kB)")
