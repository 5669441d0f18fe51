"""What the documentation shows works: the example, README's Python, its command lines, the table of imports."""

import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from PIL import Image

import bitlens
from bitlens.cli import VERBS
from bitlens.engine.export import export_onnx, export_openvino
from bitlens.inference.videos import Reconstruction
from bitlens.networks.efficientsci import EfficientSCI

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "64", str(picture)])
    runpy.run_path(str(REPOSITORY / "examples" / "quickstart.py"), run_name="__main__")
    shown = re.search(r": ([\d.]+) dB from one 64 x 64 picture", capsys.readouterr().out)
    assert shown and float(shown[1]) > 15
    with Image.open(picture) as image:
        assert image.width > 5 * 192


def test_functions_of_the_readme_take_what_it_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    code, *_ = blocks(REPOSITORY / "README.md", "python")
    for name in (names := ("reconstruct", "start", "upscale", "evaluate", "benchmark")):
        monkeypatch.setattr(bitlens, name, create_autospec(getattr(bitlens, name)))
    exec(compile(code, "README.md", "exec"), {})
    assert all(getattr(bitlens, name).called for name in names)
    assert set(re.findall(r"found\.(\w+)", code)) <= {field.name for field in fields(Reconstruction)}


def test_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but on 32 x 32 pixels, with a tiny network in place of the shipped one."""
    _, code, *_ = blocks(REPOSITORY / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bitlens, "load", lambda name: EfficientSCI(in_ch=4, units=1, group_num=1).eval())
    monkeypatch.setattr("bitlens.quant.calibrate.KEPT", 1 << 10)  # fewer values to search ranges on
    scope: dict = {}
    exec(compile(code.replace("256", "32"), "README.md", "exec"), scope)
    assert scope["rebuilt"].shape == (1, 1, 8, 32, 32)
    assert len(scope["decisions"]) > 10
    assert (tmp_path / "mine-w4a4.safetensors").is_file()


def test_the_readme_deploys_with_nothing_but_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    network = EfficientSCI(in_ch=4, units=1, group_num=1).eval()
    export_onnx(network, tmp_path / "network.onnx")
    export_openvino(network, tmp_path / "network.xml", 4, 16, 16)
    mask = (torch.rand(4, 16, 16) < 0.5).float()
    measurement = mask.sum(0)[None] * 0.5
    np.savez(tmp_path / "y.npz", measurement=measurement.numpy(), mask=mask.numpy())
    with torch.no_grad():
        wanted = network(measurement, mask[None]).numpy()
    _, _, *snippets = blocks(REPOSITORY / "README.md", "python")
    assert len(snippets) == 2
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)  # with AVX2, OpenVINO still chooses bf16, and fails
    for code, tolerance in zip(snippets, (1e-5, 0.1), strict=True):  # OpenVINO may choose bf16
        assert "bitlens" not in code
        run = [sys.executable, "-c", f"{code}\nnp.save('video.npy', video)"]
        subprocess.run(run, cwd=tmp_path, check=True)
        np.testing.assert_allclose(np.load(tmp_path / "video.npy"), wanted, rtol=0, atol=tolerance)


def command_lines() -> list[str]:
    """Every `bitlens ...` and `torchrun ... -m -- bitlens ...` in the shell blocks of the pages."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [re.sub(r"^torchrun .*-m -- ", "", line) for line in lines if re.match(r"bitlens |torchrun ", line)]


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_lines_use_verbs_and_flags_that_exist(line: str) -> None:
    _, verb, *words = shlex.split(line, comments=True)
    assert verb in VERBS
    source = Path(import_module(f"bitlens.cli.{verb}").__file__ or "").read_text(encoding="utf-8")
    kind = getattr(import_module(f"bitlens.cli.{verb}"), verb.capitalize())
    known = {field.name.replace("_", "-") for field in fields(kind)} | set(
        re.findall(r'arg\(name="([\w-]+)"\)', source)
    )
    if verb == "train":
        from bitlens.training.settings import Training

        known |= {field.name.replace("_", "-") for field in fields(Training)}
    assert {word[2:] for word in words if word.startswith("--")} <= known


def test_the_table_of_imports_is_the_one_that_is_checked() -> None:
    allowed = runpy.run_path(str(REPOSITORY / "tests" / "test_imports.py"))["ALLOWED"]
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Who may import whom")[1]
    table: dict[str, set[str] | str] = {}
    for rooms, may in re.findall(r"^\| (`.+?) \| (.+?) \|$", text.split("\n## ")[0], re.MULTILINE):
        names = may.split(";")[0]
        imports = "everything" if names.startswith("everything") else set(re.findall(r"`(\w+)`", names))
        table |= {room: imports for room in re.findall(r"`(\w+)`", rooms)}
    assert table == allowed


def test_every_room_is_described() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The rooms")[1]
    described = set(re.findall(r"^\| `(\w+)` \|", text.split("\n## ")[0], re.MULTILINE))
    package = Path(bitlens.__file__).parent
    rooms = {path.relative_to(package).with_suffix("").parts[0] for path in package.rglob("*.py")}
    assert described == {room for room in rooms if not room.startswith("_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links and pictures between files; docs/demo.png is made by the demo."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert target == "docs/demo.png" or (page.parent / target).exists(), target
    for module in re.findall(r"`bitlens/([\w/]+\.py)`", text):
        assert (REPOSITORY / "bitlens" / module).is_file(), module
