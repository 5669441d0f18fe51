"""docs/render_tuning.py: a file in, a table with what each way to choose bits came to."""

import json
from pathlib import Path
from typing import Any

import render_tuning as script
from rendering import NOT_MEASURED


def made_row(way: str, **more: Any) -> dict[str, Any]:
    return {
        "way": way, "steps": 0, "loss": 0.1234, "psnr": 29.5, "ms": 10.0, "MB": 0.25, "predicted": {"ms": 10.5}, **more
    }  # fmt: skip


def test_the_page_of_this_checkout_is_up_to_date() -> None:
    assert script.main(["--check"]) == 0


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results" / "tuning").mkdir(parents=True)
    page = tmp_path / "docs" / "tuning.md"
    page.write_text("".join(f"<!-- {mark}:begin -->\n<!-- {mark}:end -->\n" for mark in ("ways", "nested")))
    assert script.main(["--root", str(tmp_path)]) == 0 and NOT_MEASURED in page.read_text()
    content = {
        "start": "net", "data": {"photographs": 3}, "size": [64, 64], "threads": 2, "float": {"psnr": 30.0},
        "environment": {"cpu": "a CPU", "features": ["avx2"], "load": 0.5},
        "rows": [made_row("w4a4 everywhere"), made_row("exact, alone", steps=200, psnr=30.25, ms=10.5)],
    }  # fmt: skip
    (tmp_path / "results" / "tuning" / "net.json").write_text(json.dumps(content))
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert script.main(["--root", str(tmp_path)]) == 0
    shown = page.read_text()
    assert "`net` on photographs, float 30.00 dB; 64 x 64, 2 threads, a CPU (avx2), load 0.5." in shown
    assert "| w4a4 everywhere | 0.123 | -0.500 | 10.0 | +5.0% | 0.250 |" in shown
    assert "| exact, alone, 200 steps | 0.123 | +0.250 | 10.5 | +0.0% | 0.250 |" in shown


def test_widths_of_one_file_beside_networks_of_one_width() -> None:
    def scored(psnr: float, size: float) -> dict[str, Any]:
        return {"psnr": {"set5": psnr}, "mb": size, "trained": "6 steps"}

    rows = [{"bits": 8, "nested": scored(37.4, 0.5), "alone": scored(37.45, 0.4)}]
    content = {"start": "net", "float": {"set5": 37.5}, "mb": 0.5, "rows": rows}
    shown = script.nested(content)
    assert "`net`, float 37.50 dB on set5; each trained for 6 steps. The nested file has 0.50 MB." in shown
    assert "| 8 | 37.40 | 37.45 | -0.05 | 0.40 |" in shown
