"""docs/render_speed.py: a made benchmark in, tables, picture and a verdict out."""

import json
from pathlib import Path
from typing import Any

import pytest
import render_speed as script
from rendering import NOT_MEASURED

SAME = "<!-- same:begin -->\n<!-- same:end -->\n"
EMPTY = "top\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nbottom\n"


def made_row(kind: str, engine: str, precision: str, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "name": f"net, {engine}, {precision}", "model": "net", "engine": engine, "precision": precision, "kind": kind,
        "failure": None, "median_s": seconds, "fastest_s": 0.9 * seconds, "slowest_s": 1.1 * seconds, "start_s": 2.0,
        "peak_mb": 1234.0, "psnr": 27.125, "psnr_to_float": None, "gmacs_per_s": 14.0 / seconds,
        "fraction_of_peak": 0.5, **more,
    }  # fmt: skip


def made_benchmark() -> dict[str, Any]:
    """What `bitlens benchmark` writes, with fewer rows and layers."""
    cost = {"name": "fem.0", "kind": "Convolution", "kernel": "brgconv_avx512_I8", "milliseconds": 3.0, "gmacs": 1.0}
    between = {"name": "Add_7", "kind": "Subgraph", "kernel": "jit", "milliseconds": 1.0, "gmacs": None}
    return {
        "models": ["net-w8"], "size": [8, 256, 256], "threads": 2, "rounds": 7, "run": {},
        "environment": {"cpu": "a CPU", "features": ["avx2"]}, "peaks_gmacs_per_s": {"f32": 100.4, "u8s8": 400.0},
        "rows": [
            made_row("official float32", "PyTorch eager", "float32", 6.0),
            made_row("bf16", "OpenVINO", "bf16", 2.0, failure="this CPU has no bf16"),
            made_row("low-bit", "OpenVINO", "8 bits", 1.0, first_start_s=9.0, psnr_to_float=40.04),
        ],
        "ratios": {"official_float32": 6.0, "best_float32": 6.0, "best_bf16": None},
        "layers": {"net-w8": [cost, between]},
    }  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("docs", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text(EMPTY)
    (tmp_path / "docs" / "engine.md").write_text(f"{SAME}{EMPTY}")
    (tmp_path / "docs" / "super-resolution.md").write_text(EMPTY)
    return tmp_path


def run(checkout: Path, *flags: str) -> int:
    return script.main(["--root", str(checkout), *flags])


def test_without_results_the_pages_say_so(checkout: Path) -> None:
    assert run(checkout) == 0
    assert NOT_MEASURED in (checkout / "README.md").read_text()
    assert not (checkout / "docs" / "speed.png").exists()


def test_tables_and_picture(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = checkout / "results" / "benchmark-net.json"
    result.write_text(json.dumps(made_benchmark()))
    assert run(checkout, "--check") == 1 and "README.md" in capsys.readouterr().out
    assert run(checkout) == 0 and run(checkout, "--check") == 0
    short, full = (checkout / "README.md").read_text(), (checkout / "docs" / "engine.md").read_text()
    assert "| `net` | OpenVINO, 8 bits | 1.00 | 6.0 x | 1,234 |" in short and short.endswith("bottom\n")
    assert "| `net` | OpenVINO, 8 bits | 1.000 | 0.900 to 1.100 | 14 | 50% | 1,234 | 27.12 | 40.0 |" in full
    assert "6.00 times as fast as PyTorch float32 as the official code runs it" in full and "fastest bf16" not in full
    assert "first video 9.0 s after the first start of the process, 2.0 s after later ones" in full
    assert "1 of 1 convolutions and linear layers in integers" in full and "25% of the time" in full
    assert "bf16 |" not in full  # it did not run
    changed = made_benchmark()
    changed["rows"][0]["median_s"] = 7.0
    result.write_text(json.dumps(changed))
    capsys.readouterr()
    assert run(checkout, "--check") == 1 and "docs/speed.png" in capsys.readouterr().out


def made_evaluation(psnr: float, sha256: str = "a") -> dict[str, Any]:
    settings = {"model": "net-w8", "engine": "OpenVINO, f32", "sha256": sha256}
    return {"scenes": {"kobe": {"psnr": psnr}}, "average": {"psnr": psnr}, "settings": settings}


def test_agreement(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = checkout / "results", checkout / "docs" / "engine.md"
    (results / "engine-scenes.json").write_text(json.dumps([made_evaluation(26.998)]))
    assert run(checkout) == 2 and "evaluate both again" in capsys.readouterr().err
    (results / "net-w8.json").write_text(json.dumps(made_evaluation(27.0, "b")))
    assert run(checkout) == 2
    (results / "net-w8.json").write_text(json.dumps(made_evaluation(27.0)))
    assert run(checkout) == 0
    assert "| `net-w8` | OpenVINO, f32 | 27.000 | 26.998 | -0.002 | 0.002 |" in page.read_text()


def test_networks_that_enlarge_have_a_page_of_their_own(checkout: Path) -> None:
    one = made_benchmark() | {"unit": "picture", "size": [128, 128]}
    one["environment"]["load"] = 9.5
    (checkout / "results" / "benchmark-net.json").write_text(json.dumps(one))
    assert run(checkout) == 0
    page = (checkout / "docs" / "super-resolution.md").read_text()
    assert (
        "One picture of 128 x 128: medians of 7 interleaved runs" in page and "busy with other work (load 9.5)" in page
    )
    assert "| `net` | OpenVINO, 8 bits | 1.000 | 0.900 to 1.100 | 6.00 x | – | 1,234 | 27.12 | 40.0 |" in page
    assert "`net-w8`: 1 of 1 convolutions and linear layers in integers" in page
    assert NOT_MEASURED in (checkout / "README.md").read_text() and not (checkout / "docs" / "speed.png").exists()


@pytest.mark.parametrize("content", ["{", '{"models": []}'])
def test_bad_files_are_refused(content: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "results" / "benchmark-net.json").write_text(content)
    assert run(checkout) == 2 and "benchmark-net.json" in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == EMPTY


def test_missing_markers_are_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "docs" / "engine.md").write_text("no markers\n")
    assert run(checkout) == 2 and "engine.md lacks the lines" in capsys.readouterr().err


def test_the_pages_here_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().out
