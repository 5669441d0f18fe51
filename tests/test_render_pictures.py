"""docs/render_pictures.py: the page shows what results/sr holds, and every network reaches its paper's numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import render_pictures as script

from bitlens import checkpoint
from bitlens.networks.abpn import ABPN

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted((REPOSITORY / "results" / "sr").glob("*.json"))
REUSE = "<!-- reuse:begin -->\n<!-- reuse:end -->\n"
RESULTS = [file for file in FILES if not file.name.startswith(("table-", "quantized-"))]


def test_the_page_is_up_to_date() -> None:
    assert script.main(["--check"]) == 0


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_published_numbers_are_reached(file: Path) -> None:
    result = json.loads(file.read_text())
    paper = script.PAPERS.get((result["settings"]["model"], result["settings"]["data"]))
    if paper is not None:
        assert result["average"]["psnr"] == pytest.approx(paper[0], abs=0.02)
        assert result["average"]["ssim"] == pytest.approx(paper[1], abs=0.001)


def test_a_page_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "super-resolution.md"
    shown = "<!-- shipped:begin -->\n<!-- shipped:end -->\n"
    page.write_text(f"before\n<!-- pictures:begin -->\n<!-- pictures:end -->\n{shown}{REUSE}after\n")
    page.with_name("restoration.md").write_text(
        "<!-- restoration:begin -->\n<!-- restoration:end -->\n<!-- bounds:begin -->\n<!-- bounds:end -->\n"
    )
    (tmp_path / "README.md").write_text(shown)
    page.with_name("twodquant.md").write_text(f"{page.read_text()}<!-- quantized:begin -->\n<!-- quantized:end -->\n")
    shutil.copytree(RESULTS[0].parent, tmp_path / "results" / "sr")
    assert script.main(["--check", "--root", str(tmp_path)]) == 1
    assert script.main(["--root", str(tmp_path)]) == 0 and script.main(["--check", "--root", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "| pan-x4 | set5 | 32.131, 32.13 |" in text
    assert "| `abpn-x2-w8a8` | 8, 8 | 0." in text and "| `abpn-x2-w8a8` |" in (tmp_path / "README.md").read_text()
    page.write_text("no marks")
    assert script.main(["--root", str(tmp_path)]) == 2
    assert "lacks the lines <!-- pictures:begin -->" in capsys.readouterr().err


def test_what_ships_becomes_a_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results" / "sr").mkdir(parents=True)
    own = checkpoint.save(ABPN(2, 4, 1), tmp_path / "own.safetensors")
    monkeypatch.setattr(checkpoint, "shipped", lambda: {"own": own})
    for data, psnr in (("set5", 37.12345), ("set14", 33.0)):
        content = {"settings": {"model": "own", "data": data}, "average": {"psnr": psnr, "ssim": 0.95}}
        (tmp_path / "results" / "sr" / f"own-{data}.json").write_text(json.dumps(content))
    (tmp_path / "results" / "sr" / "table-a.json").write_text("{}")
    script.claim(tmp_path)
    wanted = {"set5": {"psnr": 37.123, "ssim": 0.95}, "set14": {"psnr": 33.0, "ssim": 0.95}}
    assert checkpoint.describe(own).claims == wanted


def test_what_quantize_made_is_beside_its_float_network() -> None:
    def result(model: str, psnr: float) -> dict[str, Any]:
        return {"settings": {"model": model, "data": "set5"}, "average": {"psnr": psnr}}

    text = script.quantized_table([result("b-x2-2dquant-w4a4", 37.5)], [result("a-x2", 30.0), result("b-x2", 38.25)])
    assert "| `b-x2-2dquant-w4a4` | set5 | 38.25 | 37.50 | -0.75 |" in text
    with pytest.raises(ValueError, match="no float result beside b-x2-2dquant-w4a4 on set5"):
        script.quantized_table([result("b-x2-2dquant-w4a4", 37.5)], [result("a-x2", 30.0)])


def test_a_table_says_where_the_papers_order_holds() -> None:
    rows = [
        {
            "variant": name, "bits": 4, "held_out": 30.0, "steps": 5, "refinement_cpu_seconds": 1.0,
            "against_float": {"set5": value}, "paper": {"set5": -1.0},
        }
        for name, value in (("MinMax", -3.0), ("Percentile", -4.0), ("DOBI", -2.0), ("2DQuant", -0.5))
    ]  # fmt: skip
    budget = {"minutes": None, "steps": 5, "batch": 1, "crop": 8}
    text = script.method_table({"start": "net", "float": {"set5": 38.0}, "rows": rows, "budget": budget})
    assert "2DQuant is above DOBI, Percentile, MinMax in 3 of 3 comparisons. The paper's order" in text
    assert "holds in 2 of 3 comparisons: not Percentile below MinMax at 4 bits on set5." in text
    assert "| 4 | 2DQuant | 30.00 | **-0.50** | -1.00 |" in text
    assert "| 32 | float | | 38.00 | |" in text
