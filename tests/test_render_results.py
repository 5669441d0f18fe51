"""docs/render_results.py: made result files in, tables, picture and a verdict out."""

import json
from pathlib import Path
from typing import Any

import pytest
import render_results as script
import torch
from rendering import NOT_MEASURED, drawn_fingerprint

from bitlens import checkpoint
from bitlens.networks.efficientsci import EfficientSCI


def made_result(model: str, psnr: float, path: Path | None = None, **settings: Any) -> dict[str, Any]:
    """What `bitlens evaluate` writes, for two scenes."""
    scenes = {"kobe": {"psnr": psnr - 1, "ssim": 0.8}, "drop": {"psnr": psnr + 1, "ssim": 0.9}}
    held = {
        "model": model,
        "checkpoint": None if path is None else str(path),
        "sha256": None if path is None else checkpoint.weights_sha256(path),
        "data": "six-scenes",
        "mask": "mask benchmark.npz, stored with the scenes",
        "frames_per_measurement": 8,
        "psnr": "psnr_sci: grey floats",
        "ssim": "ssim_sci",
        "seconds_per_measurement": 1.234,
        "threads": 2,
        "dtype": "float32",
        "date": "2026-01-02T03:04:05+00:00",
        "bitlens": "0.1.0",
        "torch": "2.13.0",
        "git_revision": None,
    }
    return {"scenes": scenes, "average": {"psnr": psnr, "ssim": 0.85}, "settings": held | settings}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the pages that have markers, and no results yet."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("top\n<!-- results:begin -->\nold\n<!-- results:end -->\nbottom\n")
    (tmp_path / "docs" / "training.md").write_text("a\n<!-- training:begin -->\n<!-- training:end -->\nb\n")
    marks = "".join(f"<!-- {name}:{end} -->\n" for name in ("stages", "cameras") for end in ("begin", "end"))
    (tmp_path / "docs" / "dun.md").write_text(marks)
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A float checkpoint of a few kilobytes."""
    torch.manual_seed(0)
    network = EfficientSCI(in_ch=2, units=1, group_num=1)
    return checkpoint.save(network, tmp_path / "weights" / "tiny.safetensors")


def write(checkout: Path, name: str, content: Any) -> None:
    (checkout / "results" / name).write_text(json.dumps(content))


def run(checkout: Path, *flags: str) -> int:
    return script.main(["--root", str(checkout), *flags])


def test_without_results_the_pages_say_so(checkout: Path) -> None:
    assert run(checkout) == 0
    assert NOT_MEASURED in (checkout / "README.md").read_text()
    assert NOT_MEASURED in (checkout / "docs" / "results.md").read_text()
    assert not (checkout / "docs" / "learning-curve.png").exists()


def test_tables(checkout: Path, tiny: Path) -> None:
    write(checkout, "a.json", [{"model": "tiny", **made_result("tiny", 28.004, tiny)}, made_result("gap-tv", 26.94)])
    write(checkout, "b.json", made_result("tiny-qsci-w4a4", 27.5, seconds_per_measurement=2.5))
    write(checkout, "c.json", made_result("tiny", 31.0, tiny, data="/somewhere/else/mine"))
    speeds = {"engine": "OpenVINO", "precision": "f32", "failure": None, "model": "tiny"}
    rows = [speeds | {"median_s": 1.5}, speeds | {"median_s": 1.2344, "engine": "ours"}, {"failure": "no"}]
    write(checkout, "benchmark-tiny.json", {"rows": rows})
    assert run(checkout) == 0
    readme = (checkout / "README.md").read_text()
    size = f"{tiny.stat().st_size / 1e6:.2f}"
    assert readme.startswith("top\n<!-- results:begin -->\n| network") and readme.endswith("results:end -->\nbottom\n")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `gap-tv` | no weights | 26.94 | 0.8500 | 0.00 | – |",
        f"| `tiny` | float | 28.00 | 0.8500 | {size} | 1,234 (ours, f32) |",
        "| `tiny-qsci-w4a4` | unknown | 27.50 | 0.8500 | – | – |",
    ]
    page = (checkout / "docs" / "results.md").read_text()
    assert "| `tiny` | 28.00 / 0.8500 | 27.00 / 0.8000 | 29.00 / 0.9000 |" in page
    assert "| `tiny-qsci-w4a4` | unknown | -0.50 | – |" in page
    assert "| Q-SCI on EfficientSCI-S | 4 | 34.69 | 0.963 | the papers |" in page and "another training set" in page
    assert "## mine" in page and "/somewhere" not in page


def test_check_says_what_is_out_of_date(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkout, "--check") == 1
    assert "old" in (checkout / "README.md").read_text()
    assert capsys.readouterr().out.splitlines() == [
        f"out of date: {Path(name)}" for name in ("README.md", "docs/results.md", "docs/training.md", "docs/dun.md")
    ]
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    write(checkout, "costs-t.json", {"format": "bitlens-costs-1"})  # is no evaluation, and of no table
    assert run(checkout, "--check") == 0
    write(checkout, "a.json", made_result("gap-tv", 26.94))
    assert run(checkout, "--check") == 1


def test_measured_averages_become_claims(checkout: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(checkout, "a.json", made_result("tiny", 28.0004, tiny, mask="a mask"))
    monkeypatch.setattr(checkpoint, "shipped", lambda: {"tiny": tiny})
    assert run(checkout) == 0 and checkpoint.describe(str(tiny)).claims == {}
    assert run(checkout, "--claim") == 0
    assert checkpoint.describe(str(tiny)).claims == {"six-scenes": {"psnr": 28.0, "mask": "a mask", "ssim": 0.85}}


def test_training_runs(checkout: Path) -> None:
    record = {"name": "t", "steps": 2000, "samples": 8000, "minutes": 61.7, "curve": [[1000, 24.5], [2000, 26.25]]}
    write(checkout, "training-t.json", record)
    write(checkout, "training-u.json", {**record, "name": "u", "curve": []})
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    page = (checkout / "docs" / "training.md").read_text()
    assert "| `t` | 2,000 | 8,000 | 62 | 24.50 | 26.25 |" in page and "| `u` | 2,000 | 8,000 | 62 | – | – |" in page
    assert "(learning-curve.png)" in page
    picture = checkout / "docs" / "learning-curve.png"
    assert drawn_fingerprint(picture, script.FINGERPRINT)
    write(checkout, "training-t.json", {**record, "curve": [[1000, 24.5], [2000, 26.26]]})
    assert run(checkout, "--check") == 1
    picture.unlink()
    assert run(checkout) == 0 and picture.is_file()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", {"scenes": {}}, "not a result of `bitlens evaluate`"),
        ("a.json", [1, 2], "not a result of `bitlens evaluate`"),
        ("a.json", [made_result("gap-tv", 26.9)] * 2, "both hold gap-tv on six-scenes"),
        ("a.json", made_result("gap-tv", 26.9) | {"average": {"psnr": 1}}, "KeyError: 'ssim'"),
        ("training-a.json", {"name": "t", "steps": 1, "samples": 1, "minutes": 1}, "KeyError: 'curve'"),
    ],
)
def test_bad_files_are_refused(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, message: str
) -> None:
    write(checkout, name, content)
    before = (checkout / "README.md").read_text()
    assert run(checkout) == 2
    assert message in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == before


def test_a_result_of_another_checkpoint_is_refused(
    checkout: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(checkout, "a.json", made_result("tiny", 28.0, tiny, sha256="0" * 64))
    assert run(checkout) == 2
    assert "run bitlens evaluate tiny again" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_missing_markers_are_refused(checkout: Path, capsys: pytest.CaptureFixture[str], page: str) -> None:
    (checkout / page).write_text("nothing")
    assert run(checkout) == 2
    assert "put them back" in capsys.readouterr().err


def test_the_pages_here_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr()


def test_stages_and_cameras(checkout: Path) -> None:
    """Low bits stand beside their float network, stage by stage; cameras beside each other, with their mean."""
    whole = made_result("net", 30.0) | {"stages": [28.0, 30.0]}
    write(checkout, "net.json", [whole, made_result("net-w4a4", 29.9) | {"stages": [27.5, 29.9]}])
    (checkout / "results" / "experiments").mkdir()
    rows = [{"camera": name, "psnr": {"net": {"a": 30.0 + n, "b": 20.0}}} for n, name in enumerate(["one", "two"])]
    write(checkout, "experiments/cameras.json", {"models": ["net"], "cameras": rows})
    assert run(checkout) == 0
    page = (checkout / "docs" / "dun.md").read_text()
    assert "| `net` | 28.00 | 30.00 |" in page and "| `net-w4a4` | 27.50 (-0.50) | 29.90 (-0.10) |" in page
    assert "| one | 25.00 |" in page and "| two | 25.50 |" in page and "| **mean** | **25.25** |" in page


def test_kinds_of_cameras(checkout: Path) -> None:
    run_of = {"name": "net", "steps": 10, "samples": 40, "minutes": 1.0, "curve": [[10, 30.0]]}
    write(checkout, "training-net.json", run_of | {"kinds": {"binary": 31.0, "plate": 29.0}})
    assert run(checkout) == 0
    page = (checkout / "docs" / "training.md").read_text()
    assert "| run | binary | plate |" in page and "| `net` | 31.00 | 29.00 |" in page
