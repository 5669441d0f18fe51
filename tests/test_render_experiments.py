"""docs/render_experiments.py: the pages show what results/experiments holds."""

import json
import shutil
from pathlib import Path

import pytest
import render_experiments as script

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_pages_are_up_to_date() -> None:
    assert script.main(["--check"]) == 0


def test_tables_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    folder = tmp_path / "results" / "experiments"
    folder.mkdir(parents=True)
    for page in ("qsci.md", "training.md", "kernels.md"):
        shutil.copy(REPOSITORY / "docs" / page, tmp_path / "docs" / page)
    row = dict(variant="direct", psnr=20.5, ssim=0.5, against_float=-4.25, paper=-4.11)
    content = dict(
        experiment="qsci-ablation", start="net", data="six-scenes", float=dict(psnr=24.75, ssim=0.75), rows=[row]
    )
    (folder / "qsci-ablation.json").write_text(json.dumps({**content, "budget": dict(steps=7, batch=2, crop=64)}))
    adapted = dict(model="net-w4a4", mask="camera.npz", psnr={"as it came": 20.0, "adapted": 21.5})
    adapted |= dict(residual=dict(kept=True), settings=dict(steps=3))
    (folder / "adapt-camera.json").write_text(json.dumps(adapted))
    layer = dict(network="net", layer="ffn.0", channels=64, outputs=32, kernel=[1, 3, 3], size=[8, 16, 16])
    seconds = {"direct": 0.01, "winograd2": 0.005, "lookup": 0.02, "OpenVINO": 0.02}
    layer |= dict(macs=10**9, peak=200.0, seconds=seconds)
    layers = dict(level="avx2", rounds=3, bits={"direct": 8, "winograd2": 4, "lookup": 2}, results=[layer])
    (folder / "kernels.json").write_text(json.dumps({**layers, "machine": dict(cpu="c", features=["avx2"], load=0.5)}))
    assert script.main(["--root", str(tmp_path), "--check"]) == 1
    assert script.main(["--root", str(tmp_path)]) == 0
    assert "docs/qsci.md" in capsys.readouterr().out
    assert "| direct | 20.50 | 0.5000 | -4.25 | -4.11 |" in (tmp_path / "docs" / "qsci.md").read_text()
    cells = "| direct 10.00 (100, 50%) |" + " winograd2 5.00 (200, 100%) |" * 3 + " – | 20.00 (50, 25%) |"
    shown = f"| net | ffn.0 | 64 -> 32, 1x3x3 | 8x16x16 {cells}"
    assert shown in (tmp_path / "docs" / "kernels.md").read_text()
    row_shown = "| `net-w4a4` | camera.npz | ranges, 3 steps | – | 20.00 | 21.50 | +1.50 |"
    assert row_shown in (tmp_path / "docs" / "training.md").read_text()
    assert script.main(["--root", str(tmp_path), "--check"]) == 0
