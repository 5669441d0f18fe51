"""`bitlens restore`: images and films at their size, evaluation by kinds of damage, training, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.damage import as_jpeg, damaged
from bitlens.data.images import load_picture, read_image
from bitlens.data.levels import to_float, to_levels
from bitlens.data.pairs import read_picture
from bitlens.data.video import read_video
from bitlens.metrics import psnr_rgb, psnr_y
from bitlens.networks.ffdnet import FFDNet
from bitlens.networks.pan import PAN


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photos" / "one.png"
    path.parent.mkdir()
    smooth = np.random.default_rng(0).random((9, 8, 3)) * 255
    Image.fromarray(smooth.astype(np.uint8)).resize((63, 72), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = FFDNet(dim=8, depth=3)
    torch.nn.init.normal_(network.model[-1].get_parameter("weight"), std=0.01)
    return checkpoint.save(network, tmp_path / "net.safetensors")


def restored(model: Path, levels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return checkpoint.load(model)(torch.from_numpy(to_float(levels))[None])[0].numpy()


def test_an_image(
    photo: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["restore", str(photo), "--model", str(model)]) == 0
    assert "wrote one-restored.png" in capsys.readouterr().out
    found = read_image(tmp_path / "here" / "one-restored.png")
    wanted = to_levels(restored(model, read_picture(photo))).transpose(1, 2, 0)
    off = np.abs(found.astype(int) - wanted.astype(int))  # another engine: ties may round otherwise
    assert found.shape == (72, 63, 3) and off.max() <= 1 and (off > 0).mean() < 1e-3
    assert main(["restore", str(photo.parent), "--model", str(model), "--out", str(tmp_path / "all")]) == 0
    np.testing.assert_array_equal(read_image(tmp_path / "all" / "one.png"), found)


def test_a_jpeg_is_held_to_its_file(
    photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = read_picture(photo)
    source = tmp_path / "one.jpg"
    source.write_bytes(as_jpeg(levels, 30).getvalue())
    command = ["--model", str(model), "--engine", "torch", "--faithful"]
    assert main(["restore", str(source), *command, "--out", str(tmp_path / "held.png")]) == 0
    capsys.readouterr()
    picture = load_picture(source)
    assert picture.jpeg is not None
    given = picture.levels.transpose(2, 0, 1)
    held = np.concatenate(list(picture.jpeg.hold([restored(model, given)], given)), 1)
    np.testing.assert_array_equal(read_image(tmp_path / "held.png"), to_levels(held).transpose(1, 2, 0))
    assert main(["restore", str(source), *command[:-1], "--out", str(tmp_path / "loose.png")]) == 0
    loose = to_levels(restored(model, given)).transpose(1, 2, 0)
    np.testing.assert_array_equal(read_image(tmp_path / "loose.png"), loose)
    assert not np.array_equal(loose, to_levels(held).transpose(1, 2, 0))
    capsys.readouterr()
    assert main(["restore", str(photo), *command, "--out", str(tmp_path / "free.png")]) == 0
    assert "one.png does not say what was compressed; wanted a .jpg" in " ".join(capsys.readouterr().out.split())
    np.testing.assert_array_equal(
        read_image(tmp_path / "free.png"), to_levels(restored(model, levels)).transpose(1, 2, 0)
    )
    file, data = tmp_path / "result.json", f"{photo.parent}+jpeg-30"
    assert main(["evaluate", str(model), "--data", data, "--faithful", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["scenes"]["one"]["psnr"] == pytest.approx(psnr_y(held, to_float(levels), shave=0), abs=1e-9)
    assert content["settings"]["held"]


def test_a_film_whose_background_is_still(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    background = random.integers(0, 256, (200, 300, 3), np.uint8)
    frames = []
    for index in range(4):
        frame = background.copy()
        frame[50:60, 10 * index : 10 * index + 10] = 255
        frames.append(Image.fromarray(frame))
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:], duration=80)
    for still, name in (("0", "kept.npz"), ("-1", "whole.npz")):
        command = ["restore", str(tmp_path / "film.png"), "--model", str(model), "--engine", "torch", "--still", still]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        assert ("kept from frames before" in capsys.readouterr().out) == (still == "0")
    kept, whole = (read_video(tmp_path / name, grey=False) for name in ("kept.npz", "whole.npz"))
    np.testing.assert_allclose(kept, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["jpeg-10", "noise-25"])
def test_evaluation(kind: str, photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, data = tmp_path / "result.json", f"{photo.parent}+{kind}"
    page = tmp_path / "result.html"
    assert main(["evaluate", str(model), "--data", data, "--json", str(file), "--page", str(page)]) == 0
    assert f"{json.loads(file.read_text())['average']['psnr']:.2f}" in page.read_text()
    content, levels = json.loads(file.read_text()), read_picture(photo)
    found, truth = restored(model, damaged(levels, kind)), to_float(levels)
    wanted = psnr_rgb(found, truth) if kind.startswith("noise") else psnr_y(found, truth, shave=0)
    assert content["scenes"]["one"]["psnr"] == pytest.approx(wanted, abs=1e-9)
    checkpoint.set_claims(model, {f"photos+{kind}": {key: content["average"][key] for key in ("psnr", "ssim")}})
    assert main(["verify", str(model), "--data", data]) == 0
    assert "all 5 claims hold" in capsys.readouterr().out


def test_training_begins_as_the_identity_and_goes_on(photo: Path, tmp_path: Path) -> None:
    command = ["train", "--images", str(photo.parent), "--network", "ffdnet", "--crop", "16", "--batch", "2"]
    command += ["--steps", "2", "--loss", "l1", "--no-bf16", "--optimizer", "muon", "--seed", "3"]
    assert main([*command, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "made.safetensors")]) == 0
    network = checkpoint.load(tmp_path / "made.safetensors")
    assert type(network) is FFDNet and type(network.model[2]) is torch.nn.Conv2d  # no branches are left
    low = ["--start", str(tmp_path / "made.safetensors"), "--method", "ends", "--bits", "4"]
    assert main([*command, *low, "--run", str(tmp_path / "r4"), "--out", str(tmp_path / "w4.safetensors")]) == 0
    bits = [
        (layer.weight_bits, layer.activation_bits) for layer in checkpoint.describe(tmp_path / "w4.safetensors").layers
    ]
    assert bits == [(8, 8), *[(4, 4)] * 8, (8, 8)]


def test_bad_input(photo: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = checkpoint.save(PAN(2, 8, 4, 2), tmp_path / "pan.safetensors")
    for arguments, message in (
        (["restore", str(photo), "--model", str(large)], "wanted a network that restores images at their size"),
        (["upscale", str(photo), "--model", str(model)], "wanted a super-resolution network"),
        (["evaluate", str(model), "--data", "set5"], "the test set set5 has no damage to restore; wanted set5+noise-"),
        (["evaluate", str(model), "--data", f"{photo.parent}+blur-3"], "no damage 'blur-3'; wanted noise-SIGMA"),
        (["restore", str(tmp_path / "none.png")], "no file"),
        (
            ["evaluate", str(model), "--data", f"{photo.parent}+noise-9", "--faithful"],
            "wanted a network for it and JPEGs",
        ),
    ):
        assert main(arguments) == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
