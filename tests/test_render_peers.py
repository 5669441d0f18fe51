"""docs/render_peers.py: a file in, a table with every toolkit's dB, time and size, and who is ahead."""

import json
from pathlib import Path
from typing import Any

import render_peers as script
from rendering import NOT_MEASURED


def made_row(name: str, engine: str, psnr: float, ms: float) -> dict[str, Any]:
    return {"name": name, "engine": engine, "failure": None, "psnr": psnr, "ms": ms, "mb": 0.5}


def test_the_page_of_this_checkout_is_up_to_date() -> None:
    assert script.main(["--check"]) == 0


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results" / "peers").mkdir(parents=True)
    page = tmp_path / "docs" / "peers.md"
    page.write_text("top\n<!-- peers:begin -->\n<!-- peers:end -->\n")
    assert script.main(["--root", str(tmp_path)]) == 0 and NOT_MEASURED in page.read_text()
    rows = [
        made_row("float", "OpenVINO", 37.0, 40.0),
        made_row("bitlens direct", "native kernels", 36.96, 10.0),
        made_row("bitlens direct", "OpenVINO", 36.96, 12.0),
        made_row("NNCF", "OpenVINO", 36.5, 8.0),
        made_row("ONNX Runtime static", "ONNX Runtime", 36.92, 15.0),
        {"name": "torchao PT2E", "engine": "PyTorch compiled", "failure": "does not know it"},
    ]
    content = {
        "start": "net", "test": "set5", "samples": {"count": 32}, "size": [64, 64], "threads": 2, "rounds": 3,
        "environment": {"cpu": "a CPU", "features": ["avx2"]}, "packages": {"nncf": "3", "torchao": None},
        "rows": rows,
    }  # fmt: skip
    (tmp_path / "results" / "peers" / "net.json").write_text(json.dumps(content))
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert script.main(["--root", str(tmp_path)]) == 0
    shown = page.read_text()
    assert "one input of 64 x 64, 2 threads, medians of 3 turns, a CPU (avx2); nncf 3." in shown
    assert "| bitlens direct | native kernels | 36.96 | -0.04 | 10.0 | 0.50 |" in shown
    assert "| torchao PT2E | PyTorch compiled | – | – | – | – |" in shown and "torchao PT2E: does not know it" in shown
    # NNCF is faster, but not as good
    assert (
        "Ours at its fastest: 10.0 ms on native kernels. The fastest of the others within 0.05 dB of it: ONNX" in shown
    )
    assert "15.0 ms, 1.50 times as long." in shown
    assert script.verdict(rows[:4]).endswith("No other is within 0.05 dB of it.")
    assert script.verdict(rows[:3]) == "Nothing to compare."
