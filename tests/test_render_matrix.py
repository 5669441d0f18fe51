"""docs/render_matrix.py: rows in, a table with what ran, what is apart and what was refused."""

import json
from pathlib import Path
from typing import Any

import render_matrix as script
from rendering import NOT_MEASURED


def made_row(engine: str, bits: int, **more: Any) -> dict[str, Any]:
    return {
        "network": "net", "bits": bits, "engine": engine, "refused": None, "trained": True, "float_engine": "openvino",
        "seconds": 0.5, "float_seconds": 1.0, "outside": 0.25, "agreement_db": 50.0, "quality_db": 30.0,
        "simulated_db": 30.001, **more,
    }  # fmt: skip


def test_the_page_of_this_checkout_is_up_to_date() -> None:
    assert script.main(["--check"]) == 0


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    page = tmp_path / "docs" / "matrix.md"
    page.write_text("top\n<!-- matrix:begin -->\n<!-- matrix:end -->\n")
    assert script.main(["--root", str(tmp_path)]) == 0 and NOT_MEASURED in page.read_text()
    rows = [
        made_row("openvino", 4, simulated_db=29.5, agreement_db=40.25),
        made_row("native", 8),
        made_row("onnxruntime", 8, outside=None),
        {"network": "net", "bits": 4, "engine": "native", "refused": "it cannot"},
    ]
    settings = dict(size=96, frames=8, threads=2, rounds=5, seed=0)
    machine = {"cpu": "a CPU", "features": ["avx2"], "load": 2.5}
    content = {"settings": settings, "environment": machine, "run": {}, "rows": rows}
    (tmp_path / "results" / "matrix.json").write_text(json.dumps(content))
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert script.main(["--root", str(tmp_path)]) == 0
    shown = page.read_text()
    assert "| network | weights | fastest float32 | bits | native kernels | OpenVINO | ONNX Runtime |" in shown
    eight, four = "2.00 x; -0.001 dB; 25% | – | 2.00 x; -0.001 dB |", "refused | 2.00 x; **+0.500** dB; 25% | – |"
    assert f"| `net` | trained | OpenVINO | 8 | {eight}\n| `net` | trained | OpenVINO | 4 | {four}\n" in shown
    assert "3 of 4 ran; 2 of these are at most 0.02 dB apart" in shown and "is 40.2 dB" in shown
    assert "* `net` on native kernels, 4 bits: it cannot" in shown and "busy with other work (load 2.5)" in shown
