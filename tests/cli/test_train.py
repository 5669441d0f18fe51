"""`bitlens train` builds the network it is told to, and takes it down to low bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.cli.train import Train
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video
from bitlens.networks.abpn import ABPN
from bitlens.networks.dun import DUN
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.ffdnet import FFDNet
from bitlens.networks.stformer import STFormer

QUICK = ["--steps", "1", "--crop", "16", "--batch", "1", "--frames", "3"]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clips"
    folder.mkdir()
    write_video(folder / "scene.npz", high_speed_scene(frames=6, height=32, width=32, oversample=1))
    return folder


def test_stformer(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.networks.stformer.SIZES", {"s": dict(dim=4, units=1)})
    monkeypatch.setattr("bitlens.quant.calibrate.KEPT", 1 << 8)  # fewer values to search ranges on
    start, low = tmp_path / "s.safetensors", tmp_path / "s4.safetensors"
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run"), "--out", str(start), *QUICK]
    assert main([*command, "--network", "stformer-s"]) == 0
    network = checkpoint.load(start)
    assert isinstance(network, STFormer) and network.config["frames"] == 3
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["name"], record["steps"], record["samples"]) == ("s", 1, 1) and record["settings"]["steps"] == 1
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run4"), "--out", str(low), *QUICK]
    teaching = ["--distill-output", "1", "--distill-features", "1"]
    assert main([*command, "--start", str(start), "--method", "qsci", "--bits", "4", *teaching]) == 0
    about = checkpoint.describe(low)
    assert (about.network, about.method) == ("stformer", "qsci")
    assert np.all([layer.weight_bits in (4, 8) for layer in about.layers])
    lower = tmp_path / "s3.safetensors"
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run3"), "--out", str(lower), *QUICK]
    command += ["--start", str(low), "--method", "qsci", "--bits", "3", "--distill-output", "1"]
    assert main(command) != 0 and not lower.exists()  # a low-bit network does not teach
    assert main([*command, "--teacher", str(start)]) == 0
    assert np.all([layer.weight_bits in (3, 8) for layer in checkpoint.describe(lower).layers])
    assert checkpoint.describe(lower).provenance["teacher"] == str(start)


def test_the_same_bits_again_would_lose_the_grids(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "x.safetensors")]
    assert main([*command, *QUICK, "--start", "efficientsci-t-qsci-w2a2", "--method", "qsci", "--bits", "2"]) == 2
    assert "has 2 bits and --bits 2 came" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_unknown_network(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "x.safetensors")]
    assert main(["train", "--clips", str(clips), *out, "--network", "stformer-t"]) != 0
    assert "stformer-s" in capsys.readouterr().err


def test_widen(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, wide = tmp_path / "start.safetensors", tmp_path / "wide.safetensors"
    checkpoint.save(EfficientSCI(8, 1, 2), start)
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run"), "--out", str(wide), *QUICK]
    assert main([*command, "--widen", "2"]) != 0  # of nothing
    assert "--start CHECKPOINT" in capsys.readouterr().err
    assert main([*command, "--start", str(start), "--widen", "0"]) != 0 and not wide.exists()
    assert main([*command, "--start", str(start), "--widen", "2"]) == 0
    network = checkpoint.load(wide)
    assert isinstance(network, EfficientSCI) and network.config["in_ch"] == 16
    assert checkpoint.describe(wide).provenance["widened"] == 2


def test_deepen(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, deep = tmp_path / "start.safetensors", tmp_path / "deep.safetensors"
    checkpoint.save(DUN(1, (4, 4, 4), (1, 1, 1), 2), start)
    command = ["train", "--clips", str(clips), "--run", str(tmp_path / "run"), "--out", str(deep), *QUICK]
    assert main([*command, "--start", str(start), "--deepen", "-1"]) != 0 and not deep.exists()
    assert "1 stage or more" in capsys.readouterr().err
    assert main([*command, "--start", str(start), "--deepen", "1"]) == 0
    network = checkpoint.load(deep)
    assert isinstance(network, DUN) and network.config["stages"] == 2
    assert checkpoint.describe(deep).provenance["deepened"] == 1


def photographs(folder: Path, count: int = 20) -> Path:
    """Small coloured images, of which one will be held out."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(random.integers(0, 256, (36, 40, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def test_rescale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, out = tmp_path / "x2.safetensors", tmp_path / "x4.safetensors"
    checkpoint.save(ABPN(2, 4, 2), start)
    command = ["train", "--images", str(photographs(tmp_path / "photographs")), "--crop", "8", "--batch", "2"]
    command += ["--steps", "2", "--loss", "l1", "--no-bf16", "--run", str(tmp_path / "run"), "--out", str(out)]
    assert main([*command, "--network", "abpn-x2", "--rescale", "4"]) == 2
    assert "--rescale works on a trained network" in capsys.readouterr().err
    assert main([*command, "--start", str(start), "--rescale", "4"]) == 0
    about = checkpoint.describe(out)
    assert about.config == {"scale": 4, "dim": 4, "depth": 2} and about.provenance["rescaled"] == 4
    assert about.provenance["data"]["made"] == "Downsample(4).shrink_levels"
    other = checkpoint.save(FFDNet(dim=8, depth=3), tmp_path / "restores.safetensors")
    assert main([*command, "--start", str(other), "--rescale", "4"]) == 2
    assert "network FFDNet came; wanted ABPN; leave it out" in capsys.readouterr().err


def test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that enlarges images learns from photographs, resumes, and goes down to low bits."""
    folder, start = photographs(tmp_path / "photographs"), tmp_path / "x2.safetensors"
    command = ["train", "--images", str(folder), "--crop", "12", "--batch", "2", "--steps", "3"]
    made = [*command, "--run", str(tmp_path / "run"), "--out", str(start), "--loss", "l1"]
    assert main([*made, "--network", "abpn-x2"]) == 0
    network = checkpoint.load(start)
    assert isinstance(network, ABPN) and network.scale == 2
    about = checkpoint.describe(start)
    data = {"photographs": 19, "in sizes": [1, 0.8, 0.6], "frames of films": False}
    assert about.provenance["data"] == data | {"made": "Downsample(2).shrink_levels"}
    assert about.provenance["trained"] == "3 steps of 2 samples of 12x12" and about.provenance["validation_psnr"] > 5
    first = network.get_parameter("body.0.weight")
    assert not torch.equal(first, ABPN(2).get_parameter("body.0.weight"))
    low = ["--run", str(tmp_path / "run4"), "--out", str(tmp_path / "x2-w4.safetensors"), "--start", str(start)]
    assert main([*command, *low, "--method", "direct", "--bits", "4", "--distill-output", "1"]) == 0
    assert all(layer.weight_bits == 4 for layer in checkpoint.describe(tmp_path / "x2-w4.safetensors").layers)
    capsys.readouterr()
    for more, said in (
        (["--network", "abpn-x2", "--clips", str(folder)], "holds no video of 8 frames or more"),
        (["--network", "abpn-x2", "--cameras"], "--cameras and a network for images came"),
        (["--network", "dun"], "no --clips; wanted a folder of videos to train on"),
        (["--network", "abpn-x2", "--crop", "99"], "no photograph has 198 pixels in height and width"),
    ):
        assert main([*command, "--run", str(tmp_path / "no"), "--out", str(tmp_path / "no.safetensors"), *more]) == 2
        assert said in capsys.readouterr().err
    none = ["train", "--run", str(tmp_path / "no"), "--out", str(tmp_path / "no.safetensors"), "--network", "abpn-x2"]
    assert main(none) == 2 and "no --images; wanted a folder of photographs" in capsys.readouterr().err


def test_a_network_from_nothing_can_have_a_teacher(tmp_path: Path) -> None:
    command = Train(tmp_path / "run", tmp_path / "a.safetensors", network="abpn-x2", teacher="abpn-x2")
    network, teacher = command.networks(None, 0)  # type: ignore[arg-type]
    assert teacher is not None and type(teacher) is type(network) and teacher is not network


def test_several_widths_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, start, out = photographs(tmp_path / "photos", 3), tmp_path / "x2.safetensors", tmp_path / "all.safetensors"
    torch.manual_seed(0)
    network = ABPN(2, 8, 3)
    torch.nn.init.normal_(network.get_parameter("body.6.weight"), std=0.2)  # it starts at 0
    checkpoint.save(network, start)
    command = ["train", "--images", str(folder), "--crop", "12", "--batch", "2", "--steps", "3", "--no-bf16"]
    command += ["--run", str(tmp_path / "run"), "--out", str(out), "--start", str(start)]
    assert main([*command, "--nested", "4", "2"]) == 2
    assert "--nested without --method" in capsys.readouterr().err
    assert main([*command, "--method", "ends", "--bits", "4", "--nested", "8"]) == 2
    assert "wanted fewer bits nested" in capsys.readouterr().err
    assert main([*command, "--method", "ends", "--bits", "8", "--nested", "4", "2"]) == 0
    assert checkpoint.describe(out).widths == (8, 4, 2)
    image = next(folder.iterdir())
    for width in (4, 2):
        large = tmp_path / f"{width}.png"
        assert main(["upscale", str(image), "--model", f"{out}@{width}", "--engine", "torch", "--out", str(large)]) == 0
    assert (tmp_path / "4.png").read_bytes() != (tmp_path / "2.png").read_bytes()
    assert main(["upscale", str(image), "--model", f"{out}@3", "--out", str(tmp_path / "3.png")]) == 2
    assert "no width of 3 bits; wanted one of @8, @4, @2" in capsys.readouterr().err
