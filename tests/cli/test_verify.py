"""`bitlens verify` says that true claims hold, that changed ones do not, and refuses what it cannot measure."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bitlens import checkpoint
from bitlens.checkpoint import Layer
from bitlens.cli import main
from bitlens.cli.verify import score_checks, size_checks
from bitlens.data.arrays import write_npz
from bitlens.data.synthetic import high_speed_scene
from bitlens.networks.efficientsci import EfficientSCI

SCENE = high_speed_scene(frames=16, height=32, width=32, oversample=1)
MASK = "random mask with half the pixels open, seed 0"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_npz(tmp_path / "tiny" / "one.npz", video=SCENE)
    return tmp_path / "tiny"


@pytest.fixture
def weights(scenes: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A small network that claims what it reaches on the scenes."""
    path = checkpoint.save(EfficientSCI(8, 1, 2), scenes.parent / "net.safetensors")
    result = scenes.parent / "result.json"
    assert main(["evaluate", str(path), "--data", str(scenes), "--json", str(result)]) == 0
    average = json.loads(result.read_text())["average"]
    claim(path, psnr=round(average["psnr"], 3), ssim=round(average["ssim"], 4), mask=MASK)
    capsys.readouterr()
    return path


def claim(path: Path, **changes: Any) -> None:
    """Change what the checkpoint claims about the test set `tiny`."""
    checkpoint.set_claims(path, {"tiny": checkpoint.describe(path).claims.get("tiny", {}) | changes})


def verify(path: Path, scenes: Path) -> int:
    return main(["verify", str(path), "--data", str(scenes), "--json", str(path.with_name("verdict.json"))])


def test_true_claims_hold(weights: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(weights, scenes) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("all 6 claims hold\n") and "DOES NOT" not in shown
    verdict = json.loads(weights.with_name("verdict.json").read_text())
    assert verdict["holds"] and verdict["model"] == "net" and verdict["settings"][0]["mask"] == MASK
    sizes = {check["what"]: check["measured"] for check in verdict["checks"]}
    assert sizes["bytes of weights"] == 4 * sizes["number of weights"] > 0
    assert sizes["bits (weights, activations)"] == "float, float"


@pytest.mark.parametrize(
    ("change", "failed"),
    [({"psnr": 0.02}, "tiny: psnr"), ({"ssim": -0.002}, "tiny: ssim"), ({"mask": ", seed 1"}, "tiny: mask")],
)
def test_changed_claims_do_not_hold(
    weights: Path, scenes: Path, change: dict[str, Any], failed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held = checkpoint.describe(weights).claims["tiny"]
    claim(weights, **{key: held[key] + value for key, value in change.items()})
    assert verify(weights, scenes) == 1
    assert "1 of 6 claims do not hold" in capsys.readouterr().out
    checks = json.loads(weights.with_name("verdict.json").read_text())["checks"]
    assert [check["what"] for check in checks if not check["holds"]] == [failed]


def test_only_what_is_claimed_is_compared() -> None:
    result = {"average": {"psnr": 20.0, "ssim": None}, "settings": {"mask": "m"}}
    assert [(c.what, c.holds) for c in score_checks("a/six", {"psnr": 20.01}, result)] == [("six: psnr", True)]


def test_sizes_are_compared_layer_by_layer(weights: Path) -> None:
    about, stored = checkpoint.describe(weights), checkpoint.stored_layers(weights)
    assert stored == about.layers and all(check.holds for check in size_checks(about, stored))
    first, second, *rest = stored
    moved: list[Layer] = [
        dataclasses.replace(first, bytes=first.bytes + 4), dataclasses.replace(second, bytes=second.bytes - 4), *rest
    ]  # fmt: skip
    assert [check.holds for check in size_checks(about, moved)] == [True, True, False]


@pytest.mark.parametrize(
    ("claims", "flags", "said"),
    [
        ({}, [], "net carries no claims; wanted scores in its header"),
        ({"tiny": {"psnr": 9.0}}, ["--data", "six-scenes"], "claims nothing about six-scenes; wanted one of tiny"),
        ({"tiny": {"psnr": 9.0}}, [], "no test set 'tiny'"),
        ({"six-scenes": {"psnr": 9.0}}, [], "no data folder .*BITLENS_DATA"),
        ({"six-scenes": {"psnr": "9"}}, [], "wanted psnr, and ssim and mask where known"),
        ({"six-scenes": {"psnr": float("nan")}}, [], "claims .*NaN.* about six-scenes"),
        ({"six-scenes": {"psnr": 9, "miles": 1}}, [], "claims .*miles.* about six-scenes"),
        ({"six-scenes": 9.0}, [], "claims 9.0 about six-scenes"),
    ],
)
def test_refusals(
    weights: Path,
    claims: dict[str, Any],
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BITLENS_DATA", str(weights.with_name("absent")))
    checkpoint.set_claims(weights, claims)
    assert main(["verify", str(weights), *flags, "--json", str(weights.with_name("verdict.json"))]) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"bitlens verify: .+\n", shown.err) and re.search(said, shown.err), shown.err
    assert not weights.with_name("verdict.json").exists()


def test_classical_method_has_nothing_to_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "gap-tv"]) == 2
    assert "gap-tv carries no claims" in capsys.readouterr().err
