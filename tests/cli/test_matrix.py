"""`bitlens matrix`: rows for every engine and every number of bits, a file that a killed run goes on with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bitlens import checkpoint
from bitlens.cli import main, matrix
from bitlens.engine.registry import ENGINES
from bitlens.networks.catalog import CATALOG, CLASSICAL
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.pan import PAN

SMALL = ["--size", "32", "--frames", "4", "--rounds", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(checkpoint.save(EfficientSCI(8, 1, 2).eval(), tmp_path / "tiny.safetensors"))


def rows_of(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["engine"], row["bits"]): row for row in json.loads(path.read_text())["rows"]}


def test_a_killed_run_goes_on(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.json"
    command = ["matrix", str(out), "--networks", tiny, *SMALL, "--bits", "4", "--engines", "openvino", "onnxruntime"]
    refusing = replace(ENGINES["onnxruntime"], missing=lambda network: "it is not\nhere")
    with monkeypatch.context() as patch:
        patch.setitem(matrix.ENGINES, "onnxruntime", refusing)
        assert main(command) == 0
    shown, first = capsys.readouterr().out, rows_of(out)
    assert "4 bits, onnxruntime: it is not here" in shown and f"{out}: 2 rows" in shown
    assert first["onnxruntime", 4] == {
        "network": tiny, "bits": 4, "engine": "onnxruntime", "refused": "it is not here"
    }  # fmt: skip
    row = first["openvino", 4]
    assert row["trained"] and row["float_engine"] in ("torch", "openvino", "onnxruntime")
    assert row["seconds"] > 0 and row["float_seconds"] > 0 and 0 <= row["outside"] <= 1
    assert abs(row["quality_db"] - row["simulated_db"]) < 0.5 and row["agreement_db"] > 15
    assert main(command) == 0
    second = rows_of(out)
    assert second["openvino", 4] == row and second["onnxruntime", 4]["refused"] is None
    assert second["onnxruntime", 4]["outside"] is None and len(second) == 2
    assert capsys.readouterr().out.count("bits, ") == 1
    assert main([*command, "--rounds", "2"]) == 2
    assert "was measured with rounds 1; wanted these settings" in capsys.readouterr().err


@pytest.mark.kernels
def test_random_weights_are_compared_with_their_own_float_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = PAN(2, 8, 4, 2).eval()
    monkeypatch.setattr(matrix, "network_of", lambda *_: (network, False))
    out, flags = tmp_path / "m.json", ["--bits", "8", "2", "--engines", "native"]
    assert main(["matrix", str(out), "--networks", "small", *SMALL, *flags]) == 0
    rows = rows_of(out)
    assert not rows["native", 8]["trained"] and 0 < rows["native", 8]["outside"] < 1
    assert rows["native", 8]["simulated_db"] > rows["native", 2]["simulated_db"] + 10
    assert rows["native", 8]["agreement_db"] > rows["native", 8]["simulated_db"]


def test_every_family_is_in_it() -> None:
    names = matrix.every_network()
    assert {"dun", "efficientsci-t", "stformer-s", "imdn", matrix.COLOUR} <= set(names)
    assert {name.split("-")[0] for name in names} == set(CATALOG) - {CLASSICAL}
    network, trained = matrix.network_of(matrix.COLOUR, 4, 0)
    assert not trained and network.config["color_ch"] == 3  # type: ignore[index]
    assert matrix.network_of("efficientsci-t", 4, 0)[1]


def test_decibels() -> None:
    wanted = torch.tensor([0.0, 2.0])
    assert matrix.decibels_to(wanted)(wanted + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert matrix.decibels_to(wanted)(wanted) == matrix.EXACT
    with pytest.raises(ValueError, match="not finite"):
        matrix.decibels_to(wanted)(wanted / 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m.txt"], "m.txt; wanted a name that ends in .json"),
        (["m.json", "--bits", "9"], "--bits 9; wanted whole numbers from 1 to 8"),
        (["m.json", "--rounds", "0"], "--rounds 0"),
        (["m.json", "--networks", "imdn", "nothing"], "nothing"),
        (["m.json", "--networks", "dun-w8a8"], "dun-w8a8 is no float network with weights"),
        (["m.json", "--networks", "gap-tv"], "gap-tv is no float network with weights"),
        (["m.json", "--networks", "imdn-colour"], "leave -colour out"),
        (["other.json", "--networks", "imdn"], "other.json is no file of `bitlens matrix`"),
    ],
)
def test_bad_input(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("[]")
    assert main(["matrix", *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["other.json"]
