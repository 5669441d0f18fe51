"""The verbs do what they say: measure and reconstruct, evaluate, info, models, demo, on small pictures."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from marks import some
from PIL import Image

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.arrays import read_arrays, write_npz
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import read_video, write_video
from bitlens.engine import native, plan
from bitlens.engine.registry import fast_here
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.operators import VideoSCI

SCENE = high_speed_scene(frames=10, height=48, width=40, oversample=1)
SHIPPED = list(checkpoint.shipped())


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_video(tmp_path / "scene.npz", SCENE)
    return tmp_path / "scene.npz"


@pytest.fixture
def measured(scene: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = scene.with_name("y.npz")
    assert main(["measure", str(scene), "--mask", "random", "--frames", "4", "--out", str(out)]) == 0
    assert "the last 2 of 10 frames were dropped" in capsys.readouterr().out
    return out


def test_measure_stores_all_that_reconstruction_needs(measured: Path) -> None:
    held = read_arrays(measured)
    mask = random_mask(4, 48, 40, 0)
    np.testing.assert_array_equal(held["mask"], mask)
    np.testing.assert_array_equal(held["orig"], SCENE[:8])
    np.testing.assert_allclose(held["measurement"][1], (SCENE[4:8] * mask).sum(axis=0), atol=1e-5)
    assert float(held["gain"]) == 1


def test_measure_with_mask_crop_and_noise(scene: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "mask.npz", mask=random_mask(4, 24, 32, 1), axes="thw")
    out = tmp_path / "y.npz"
    flags = ["--crop", "8,4,24,32", "--noise", "0.01", "--seed", "3", "--no-reference"]
    assert main(["measure", str(scene), "--mask", str(tmp_path / "mask.npz"), "--out", str(out), *flags]) == 0
    held = read_arrays(out)
    assert held["measurement"].shape == (2, 24, 32) and "orig" not in held
    first = held["measurement"]
    assert main(["measure", str(scene), "--mask", str(tmp_path / "mask.npz"), "--out", str(out), *flags]) == 0
    np.testing.assert_array_equal(read_arrays(out)["measurement"], first)


@pytest.mark.parametrize("name", ["video.gif", "frames", "frames/", "video.npz", "deep/er/video.tif"])
def test_reconstruct(measured: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"{tmp_path}/{name}"
    report = tmp_path / "report.json"
    flags = ["--model", "gap-tv", "--out", out, "--json", str(report)]
    assert main(["reconstruct", str(measured), *flags]) == 0
    shown = capsys.readouterr()
    assert "exposure: mean(y)=" in shown.out and "s per measurement" in shown.out and shown.err == ""
    result = json.loads(report.read_text())
    assert f"PSNR {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f}" in shown.out
    assert len(result["seconds_per_measurement"]) == 2 and result["settings"]["model"] == "gap-tv"
    video = read_arrays(out)["video"] if name.endswith(".npz") else read_video(out)  # .npz keeps 1.02
    assert video.shape == (8, 48, 40)
    assert np.square(video - SCENE[:8]).mean() < 0.03


def test_reconstruct_in_a_crop_with_a_given_gain(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "gap-tv", "--out", f"{tmp_path}/a.npz", "--gain", "1", "--crop", "0,0,32,32"]
    assert main(["reconstruct", str(measured), *flags]) == 0
    assert "gain 1 given" in capsys.readouterr().out
    assert read_arrays(tmp_path / "a.npz")["video"].shape == (8, 32, 32)


def test_auto_takes_the_kernels_below_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.rand(1, 16, 16), torch.ones(1, 4, 16, 16)
    low, high = (quantize(EfficientSCI(8, 1, 2), "direct", [data], bits=bits)[0] for bits in (4, 8))
    monkeypatch.setattr(native, "missing", lambda network: None)
    for level, fast in (("avx512-vnni", True), ("avx2", False)):
        monkeypatch.setattr(plan, "kernels", lambda level=level: SimpleNamespace(best_level=lambda: level))
        assert fast_here(low) == fast and not fast_here(high) and not fast_here(EfficientSCI(8, 1, 2))


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        ("torch", "torch, float32, integers simulated"),
        ("reference", "reference"),
        ("openvino", "OpenVINO, int8 in {here} of 21"),
        ("onnxruntime", "ONNX Runtime, int8 in 21 of 21"),
        ("auto", "OpenVINO, int8 in {here} of 21"),
    ],
)
def test_reconstruct_with_an_engine(
    engine: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vnni: bool,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    video = torch.from_numpy(SCENE[None, None, :4, :16, :16])
    mask = random_mask(4, 16, 16, 0)
    data = VideoSCI(torch.from_numpy(mask)).A(video), torch.from_numpy(mask)[None]
    network, _ = quantize(EfficientSCI(8, 1, 2), "direct", [data])
    torch.nn.init.constant_(network.get_parameter("vrm.4.layer.bias"), 0.5)  # files hold no negative values
    checkpoint.save(network, tmp_path / "tiny.safetensors")
    write_npz(tmp_path / "y.npz", measurement=data[0].numpy(), mask=mask, gain=1.0, axes="thw")
    flags = ["--model", f"{tmp_path}/tiny.safetensors", "--out", f"{tmp_path}/a.npz", "--engine", engine]
    assert main(["reconstruct", str(tmp_path / "y.npz"), *flags]) == 0
    assert f"engine: {shown.format(here=21 * vnni)}" in capsys.readouterr().out
    with torch.no_grad():
        wanted = network(*data)[0, 0].numpy()
    assert np.square(read_arrays(tmp_path / "a.npz")["video"] - wanted).mean() < 1e-2 * np.square(wanted).mean()


@pytest.mark.parametrize(
    ("engine", "message"), [("reference", "the network is float"), ("openvino", "network GapTV has no layers; wanted")]
)
def test_an_engine_that_cannot_run_the_network_is_refused(
    engine: str, message: str, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "gap-tv", "--out", f"{tmp_path}/a.npz", "--engine", engine]
    assert main(["reconstruct", str(measured), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_given_mask_goes_before_the_one_in_the_file(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "other.npz", mask=random_mask(4, 48, 40, 9), axes="thw")
    flags = ["--model", "gap-tv", "--out", f"{tmp_path}/a.gif", "--mask", f"{tmp_path}/other.npz"]
    assert main(["reconstruct", str(measured), *flags]) == 0
    shown = capsys.readouterr().out
    assert f"mask: {tmp_path}/other.npz, not the one in {measured}" in shown
    assert "warning: measurement and mask do not belong together" in shown


def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = tmp_path / "scenes"
    for name, video in (("two", SCENE), ("ten", SCENE[:4, :32]), ("one", 1 - SCENE[2:])):
        write_npz(scenes / f"{name}.npz", video=video)
    out = tmp_path / "result.json"
    command = ["evaluate", "gap-tv", "--data", str(scenes), "--json", str(out), "--frames", "4"]
    assert main(command) == 0
    result = json.loads(out.read_text())
    assert list(result) == ["scenes", "average", "settings"]
    assert list(result["scenes"]) == ["one", "ten", "two"]
    for kind in ("psnr", "ssim"):
        values = [scores[kind] for scores in result["scenes"].values()]
        assert result["average"][kind] == pytest.approx(np.mean(values))
    settings = result["settings"]
    wanted = {
        "model", "sha256", "data", "mask", "frames_per_measurement", "frames_used", "psnr", "ssim", "torch",
        "bitlens", "threads", "dtype", "seconds_per_measurement", "git_revision", "date",
    }  # fmt: skip
    assert wanted <= set(settings)
    assert settings["frames_used"] == {"one": 8, "ten": 4, "two": 8} and settings["model"] == "gap-tv"
    shown = capsys.readouterr().out
    assert "PSNR (dB)" in shown and f"{result['average']['psnr']:.2f}" in shown

    assert main([*command, "--no-ssim"]) == 0
    faster = json.loads(out.read_text())
    assert faster["average"] == result["average"] | {"ssim": None} and faster["average"]["flicker"] > 0

    assert main(["evaluate", "gap-tv", *command[1:], "--no-ssim"]) == 0
    several = json.loads(out.read_text())
    assert [one["model"] for one in several] == ["gap-tv", "gap-tv"]
    assert several[1]["scenes"] == faster["scenes"]


def test_evaluate_with_a_mask(tmp_path: Path) -> None:
    write_npz(tmp_path / "scene.npz", video=SCENE)
    write_npz(tmp_path / "mask.npz", mask=random_mask(5, 48, 40, 2), axes="thw")
    command = [
        "evaluate",
        "gap-tv",
        "--data",
        str(tmp_path / "scene.npz"),
        "--mask",
        str(tmp_path / "mask.npz"),
    ]
    assert main([*command, "--json", str(tmp_path / "r.json")]) == 0
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert settings["frames_per_measurement"] == 5 and settings["frames_used"] == {"scene": 10}


def test_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every camera has a row, scenes that are too short are played to and fro, and noise costs dB."""
    scene = high_speed_scene(frames=9, height=32, width=40)
    write_npz(tmp_path / "scenes" / "made.npz", orig=scene, axes="thw")
    write_npz(tmp_path / "camera.npz", mask=random_mask(11, 40, 40, 3), axes="thw")
    write_npz(tmp_path / "small.npz", mask=random_mask(4, 24, 40, 3), axes="thw")
    command = ["cameras", "gap-tv", "--data", f"{tmp_path}/scenes", "--camera-mask", f"{tmp_path}/camera.npz"]
    assert main([*command, "--json", f"{tmp_path}/cameras.json"]) == 0
    assert "24 frames" in capsys.readouterr().out
    content = json.loads((tmp_path / "cameras.json").read_text())
    rows = {one["camera"]: one["psnr"]["gap-tv"]["made"] for one in content["cameras"]}
    assert len(rows) == 10 and all(np.isfinite(value) for value in rows.values())
    assert rows["binary, 4 frames"] > rows["binary, 24 frames"]
    clean, good, dim = (value for name, value in rows.items() if name.startswith("binary, 8"))
    assert clean > good > dim
    assert main(["cameras", "gap-tv", "--data", f"{tmp_path}/scenes", "--camera-mask", f"{tmp_path}/small.npz"]) == 2
    assert "wanted at least the scenes' 32x40" in capsys.readouterr().err


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ["gap-tv", *SHIPPED])
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in listed] == ["gap-tv", *SHIPPED]
    tasks = {one["task"] for one in listed}
    assert tasks == {"video-sci", "super-resolution", "restoration"}
    assert all(sum(one["default"] for one in listed if one["task"] == task) == 1 for task in tasks)
    for one in listed:
        low = re.search(r"-w(\d)a(\d)$", one["name"])
        bits = (int(low[1]), int(low[2])) if low else (None, None)
        assert (one["weight_bits"], one["activation_bits"]) == bits
        assert one["mb"] == pytest.approx(one["bytes"] / 1e6) and "claims" in one and "network" in one


@pytest.mark.parametrize("name", some(["gap-tv", *SHIPPED], "gap-tv", "dun-w4a4", "efficientsci-t"))
def test_info(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{name}: ")
    assert main(["info", name, "--json", "--height", "64", "--width", "64"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["operations"]) == {"paper", "linear", "bit product"}
    if name != "gap-tv":
        assert {"layers", "bytes", "provenance", "claims", "macs"} <= set(content)
        layers = {layer["name"] for layer in content["layers"]}
        assert set(content["macs"]) & layers, "layers of the file and of the count have other names"
        assert "operations by the paper rule" in shown


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--model", "gap-tv", "--size", "64", "--frames", "4"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "PSNR (dB)" in shown and "gap-tv" in shown and "Try next" in shown
    assert sorted(file.name for file in out.iterdir()) == ["contact_sheet.png", "demo.html", "side_by_side.gif"]
    with Image.open(out / "side_by_side.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 4
        assert animation.width > 3 * 192  # measurement, gap-tv, truth
    with Image.open(out / "contact_sheet.png") as sheet:
        assert np.asarray(sheet).std() > 10
    before = (out / "side_by_side.gif").read_bytes()
    assert main(command) == 0  # again, over the old files, with the same result
    assert "coded picture(s)" in capsys.readouterr().out
    assert len((out / "side_by_side.gif").read_bytes()) == len(before)


def test_demo_on_a_capture(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = read_arrays(measured)
    write_npz(tmp_path / "raw.npz", measurement=held["measurement"][0] * 500)
    write_npz(tmp_path / "mask.npz", mask=held["mask"], axes="thw")
    command = ["demo", "--capture", f"{tmp_path}/raw.npz", "--mask", f"{tmp_path}/mask.npz"]
    assert main([*command, "--out", f"{tmp_path}/mine", "--model", "gap-tv"]) == 0
    shown = capsys.readouterr().out
    assert "gain" in shown and "estimated" in shown and "PSNR" not in shown
    assert len(list((tmp_path / "mine").iterdir())) == 3


def test_demo_on_a_mosaic_with_a_dark_level(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = read_arrays(measured)
    write_npz(tmp_path / "raw.npz", measurement=held["measurement"][0] * 500 + 30)
    write_npz(tmp_path / "mask.npz", other=held["mask"])
    write_npz(tmp_path / "dark.npz", measurement=np.full((1, *held["measurement"].shape[1:]), 30.0))
    command = ["demo", "--capture", f"{tmp_path}/raw.npz", "--mask", f"{tmp_path}/mask.npz", "--model", "gap-tv"]
    command += ["--dark", f"{tmp_path}/dark.npz", "--bayer", "RGGB", "--out", f"{tmp_path}/mine"]
    assert main(command) == 2 and "--mask-key" in capsys.readouterr().err
    command += ["--mask-key", "other"]
    write_npz(tmp_path / "mask.npz", other=held["mask"], axes="thw")
    assert main(command) == 0
    assert "dark: 30 subtracted" in capsys.readouterr().out and len(list((tmp_path / "mine").iterdir())) == 3
    for flag in (["--dark", "d.npz"], ["--flat", "f.npz"], ["--bayer", "RGGB"], ["--mask-key", "other"]):
        assert main(["demo", *flag, "--out", f"{tmp_path}/none"]) == 2
        assert f"{' '.join(flag)} without --capture; wanted both" in capsys.readouterr().err
