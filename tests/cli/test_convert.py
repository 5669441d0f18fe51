"""`bitlens convert` makes a checkpoint of official weights that computes the same, and refuses what is none."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.networks.edsr import EDSR
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.imdn import IMDN
from bitlens.networks.ngswin import NGswin
from bitlens.networks.pan import PAN
from bitlens.networks.smfanet import SMFANet
from bitlens.networks.stformer import STFormer
from bitlens.networks.swinir import SwinIR

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "EfficientSCI": lambda: EfficientSCI(8, 1, 2),
    "STFormer": lambda: STFormer(dim=8, units=1),
    "SwinIR": lambda: SwinIR(2, 8, 1, 1, 2, 4, 16, 0),
    "NGswin": lambda: NGswin(2, 16, [2, 2, 2, 2], [2, 2, 2, 2], 4, 32),
    "EDSR": lambda: EDSR(2, 8, 2),
    "IMDN": lambda: IMDN(2, 16, 2),
    "PAN": lambda: PAN(2, 8, 4, 2),
    "SMFANet": lambda: SMFANet(2, 8, 1, 16),
}


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def convert(name: str, *flags: str) -> int:
    return main(["convert", name, "--out", "new.safetensors", *flags])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_weights_become_a_checkpoint(name: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = NETWORKS[name]().eval()
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    if suffix == ".pth":
        torch.save({"params": state}, "official.pth")
    else:
        save_file(state, "official.safetensors")
    assert convert(f"official{suffix}") == 0
    shown = capsys.readouterr().out
    assert f"official{suffix} is {name} (" in shown and re.search(rf"in their place +{len(state)}", shown)
    found = checkpoint.load("new.safetensors")
    assert type(found) is type(network) and all(value.equal(state[key]) for key, value in found.state_dict().items())
    about = checkpoint.describe("new.safetensors").provenance
    assert about["converted"] == f"official{suffix}" and len(about["source_sha256"]) == 64
    assert ("scale 3 look the same" in shown) == (name == "PAN")


def changed(change: Callable[[dict[str, Any]], Any], name: str = "official.pth") -> str:
    """PAN's weights, changed, in a file."""
    state: dict[str, Any] = dict(NETWORKS["PAN"]().state_dict())
    content = change(state)
    torch.save(state if content is None else content, name)
    return name


def text(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


CASES: dict[str, tuple[Callable[[], str], str]] = {
    "missing": (lambda: "none.pth", "no file none.pth; wanted official weights"),
    "code": (lambda: changed(lambda s: s.update(evil=Payload())), r"it holds \w+\.mkdir, which is code; wanted"),
    "a whole network": (lambda: changed(lambda s: NETWORKS["PAN"]()), "which is code; wanted a .pth of tensors"),
    "text": (lambda: text("a.pth", b"hello"), "a.pth was refused"),
    "nothing": (lambda: text("a.pth", b""), "a.pth was refused"),
    "damaged safetensors": (lambda: text("a.safetensors", b"hello" * 9), "a.safetensors is damaged"),
    "unknown key": (lambda: changed(lambda s: s.update(extra=torch.ones(1))), "does not fit PAN; unknown keys: extra;"),
    "missing key": (
        lambda: changed(lambda s: {key: s[key] for key in s if key != "conv_last.bias"}),
        "missing keys: conv_last.bias; give",
    ),
    "wrong shape": (
        lambda: changed(lambda s: s.update({"conv_last.bias": torch.ones(5)})),
        r"wrong shapes: conv_last.bias \(5,\) instead of \(3,\)",
    ),
    "another network": (
        lambda: changed(lambda s: {"fc.weight": torch.ones(2, 2)}),
        "1 keys are of no network known here",
    ),
    "millions of layers": (
        lambda: changed(lambda s: s.update({"SCPA_trunk.99999999.conv3.weight": torch.ones(1)})),
        "which has more layers than came",
    ),
    "a few numbers, repeated": (
        lambda: changed(lambda s: s.update({"conv_first.weight": torch.ones(1).expand(10**7, 3, 3, 3)})),
        "is no tensor of plain numbers",
    ),
    "wider than its weights": (
        lambda: changed(lambda s: s.update({"conv_first.weight": torch.ones(10**5, 1)})),
        "more than [0-9]+ parameters",
    ),
    "complex": (lambda: changed(lambda s: s.update(extra=torch.ones(1) + 1j)), "no tensor of plain numbers"),
    "no tensors": (lambda: changed(lambda s: {"a": 1}), "holds no state dict of tensors"),
    "NaN": (lambda: changed(lambda s: s.update({"conv_last.bias": torch.full((3,), torch.nan)})), "NaN or infinite"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_none_is_refused_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    case, said = CASES[name]
    assert convert(case()) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"bitlens convert: .+\n", shown.err) and re.search(said, shown.err), shown.err
    assert not Path("new.safetensors").exists() and not Path("ran").exists()


def test_checkpoints_flags_and_places(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(NETWORKS["PAN"](), "ours.safetensors")
    assert convert("ours.safetensors") == 2
    assert "is a bitlens checkpoint already; wanted official weights; use it" in capsys.readouterr().err
    assert convert(changed(lambda s: None), "--bits", "4") == 2
    assert "bits=4 was given with float weights" in capsys.readouterr().err
    assert main(["convert", "official.pth", "--out", "new.pth"]) == 2
    assert ".safetensors" in capsys.readouterr().err
    assert main(["upscale", "a.png", "--model", "official.pth", "--out", "b.png"]) == 2
    Path("a.png").touch()
    assert main(["upscale", "a.png", "--model", "official.pth", "--out", "b.png"]) == 2
    assert "for official weights run bitlens convert" in capsys.readouterr().err


def test_low_bit_weights_say_no_bits(capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(NETWORKS["EfficientSCI"]().state_dict())
    torch.save(state | {"fem.0.alpha": torch.ones(1)}, "low.pth")
    assert convert("low.pth") == 2
    assert "do not say their bits; wanted --bits 8, 4, 3 or 2; pass it" in capsys.readouterr().err
