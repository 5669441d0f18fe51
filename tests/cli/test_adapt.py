"""`bitlens adapt` writes a checkpoint that fits the new mask better, says so in it, and refuses what cannot be."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.masks import random_mask, real_valued_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI, initialize_identity
from bitlens.operators import VideoSCI
from bitlens.training.losses import data_residual

SCENE = high_speed_scene(2, frames=8, height=32, width=32, oversample=1)
MASK = real_valued_mask(random_mask(4, 32, 32, 3), 4)
GOOD = np.einsum("nthw,thw->nhw", SCENE.reshape(2, 4, 32, 32), MASK)  # 2 32 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float network and its 8-bit one, calibrated in the dark with a binary mask; the new camera's files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    mask = torch.from_numpy(random_mask(4, 32, 32, 0))[None]
    video = torch.from_numpy(high_speed_scene(0, frames=4, height=32, width=32, oversample=1))[None, None]
    network = EfficientSCI(8, 1, 2)
    initialize_identity(network)
    low, _ = quantize(network.eval(), "direct", [(VideoSCI(mask).A(0.2 * video), mask)], bits=8)
    checkpoint.save(network, folder / "float.safetensors")
    checkpoint.save(low, folder / "low.safetensors", claims={"six-scenes": {"psnr": 50.0}})
    np.savez(folder / "mask.npz", mask=MASK, axes="thw")
    np.savez(folder / "a.npz", measurement=GOOD, gain=1.0, axes="thw")
    scipy.io.savemat(folder / "b.mat", {"meas": GOOD[1]})
    (folder / "out").mkdir()
    return folder


@pytest.fixture
def models(made: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def command(folder: Path, *flags: Any, model: str = "low", measurements: tuple[str, ...] = ("a.npz",)) -> list[str]:
    files = [str(folder / name) for name in measurements]
    flags = (*flags, "--out", folder / "out" / "new.safetensors")
    return ["adapt", f"{folder / model}.safetensors", "--mask", f"{folder / 'mask.npz'}", "--measurements", *files] + [
        str(flag) for flag in flags
    ]


def test_adapt(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(models)) == 0
    shown = capsys.readouterr().out
    assert "as it came" in shown and "steps" not in shown and "of the network itself, without its grids" in shown
    old, new = (checkpoint.describe(models / name) for name in ("low.safetensors", "out/new.safetensors"))
    residual = new.provenance["residual"]
    assert residual["kept"] and residual["after"] < 0.8 * residual["before"]
    assert f"{residual['before']:.4f}" in shown and f"{residual['after']:.4f}" in shown
    assert new.claims == {} and new.recipe == old.recipe and new.layers == old.layers
    assert new.provenance["start"] == "low" and new.provenance["measurements"] == ["a.npz"]
    first, second = (checkpoint.load(about.path) for about in (old, new) if about.path is not None)
    for name, value in first.state_dict().items():
        if ".layer.weight" in name:
            assert torch.equal(value, second.state_dict()[name]), name


def test_adapt_with_teacher_steps_and_several_files(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--teacher", models / "float.safetensors", "--steps", 2, "--gain", 1]
    assert main(command(models, *flags, measurements=("a.npz", "b.mat"))) == 0
    shown = capsys.readouterr().out
    assert "3 measurement(s)" in shown and "after 2 steps" in shown and "of the teacher" in shown
    settings = checkpoint.describe(models / "out" / "new.safetensors").provenance["settings"]
    assert settings["steps"] == 2 and settings["gain"] == 1


def test_adapt_to_known_scenes(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, video in (("a", SCENE), ("b", SCENE[::-1])):
        np.savez(models / f"{name}-scene.npz", video=video, axes="thw")
    (models / "scenes").mkdir()
    for name in "ab":
        (models / f"{name}-scene.npz").rename(models / "scenes" / f"{name}.npz")
    out, scores = models / "out" / "new.safetensors", models / "scores.json"
    flags = ["--scenes", str(models / "scenes"), "--mask", str(models / "mask.npz"), "--out", str(out)]
    low = ["adapt", str(models / "low.safetensors"), *flags, "--json", str(scores)]
    assert main([*low, "--teacher", str(models / "float.safetensors")]) == 0
    psnr = json.loads(scores.read_text())["psnr"]
    assert psnr["as it came"] + 1 < psnr["adapted"] <= psnr["float"] + 0.5
    assert f"{psnr['adapted']:.2f}" in capsys.readouterr().out
    assert checkpoint.describe(out).provenance["measurements"].startswith("the first of each")
    assert main(command(models, "--json", scores)) == 2
    assert "wanted --scenes too" in capsys.readouterr().err


def measured(change: Callable[[np.ndarray], Any]) -> Callable[[Path], list[str]]:
    """The command on a changed measurement."""

    def write(folder: Path) -> list[str]:
        np.savez(folder / "bad.npz", measurement=change(GOOD.copy()), gain=1.0, axes="thw")
        return command(folder, measurements=("a.npz", "bad.npz"))

    return write


def poked(array: np.ndarray) -> np.ndarray:
    array[0, 3, 5] = np.nan
    return array


def out(place: str) -> Callable[[Path], list[str]]:
    return lambda folder: [*command(folder)[:-1], place]


def with_scenes(*flags: str) -> Callable[[Path], list[str]]:
    """The command on known scenes, and flags that say how measurements of files are read."""

    def give(folder: Path) -> list[str]:
        files = ["--mask", f"{folder / 'mask.npz'}", "--out", f"{folder / 'out' / 'new.safetensors'}"]
        return ["adapt", f"{folder / 'low'}.safetensors", *files, "--scenes", "six-scenes", *flags]

    return give


OF_FILES = (
    ["--measurements", "a.npz"], ["--gain", "1"], ["--gain", "0"], ["--brightness", "0.5"], ["--crop", "0,0,16,16"],
    ["--key", "meas"], ["--axes", "hwt"], ["--bayer", "RGGB"], ["--allow-saturated"],
)  # fmt: skip

REFUSED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "float checkpoint": (lambda f: command(f, model="float"), "float is not a low-bit network; wanted a quantized"),
    "no weights": (
        lambda f: [part.replace(f"{f / 'low'}.safetensors", "gap-tv") for part in command(f)],
        "gap-tv is not",
    ),
    "unknown checkpoint": (lambda f: command(f, model="none"), "no checkpoint .*none"),
    "low-bit teacher": (
        lambda f: command(f, "--teacher", f / "low.safetensors"),
        "is a low-bit network; wanted a float",
    ),
    "teacher without weights": (lambda f: command(f, "--teacher", "gap-tv"), "gap-tv is not an efficientsci"),
    "mask of another size": (measured(lambda y: y[:, 1:]), "31x32, the mask .*32x32.*--crop"),
    "NaN": (measured(poked), "NaN or infinite"),
    "saturated": (measured(lambda y: y.clip(0, 0.5)), "saturated.*--allow-saturated"),
    "missing measurement": (lambda f: command(f, measurements=("none.npz",)), "no file .*none.npz"),
    "crop outside": (lambda f: command(f, "--crop", "0,0,64,64"), "does not lie inside"),
    "negative steps": (lambda f: command(f, "--steps", "-1"), "--steps -1"),
    "pairs without steps": (lambda f: command(f, "--pairs"), "--pairs without steps .* --steps too"),
    "an odd mosaic": (
        lambda f: command(f, "--bayer", "RGGB", "--crop", "0,0,31,32"),
        "mosaic of 31x32 .*--crop top,left,30,32",
    ),
    "no mosaic": (lambda f: command(f, "--bayer", "RGB"), "the mosaic is 'RGB'; wanted one of RGGB"),
    "no rate": (lambda f: command(f, "--learning-rate", "0"), "--learning-rate 0"),
    "negative seed": (lambda f: command(f, "--seed", "-1"), "--seed -1"),
    "out: another suffix": (out("out/new.pth"), "ends in .safetensors"),
    "out: a folder": (out("out"), "ends in .safetensors"),
    "out: below a file": (out("a.npz/new.safetensors"), "is a file"),
    "out: no place to write": (out("/proc/none/new.safetensors"), "/proc/none"),
    **{
        f"scenes and {' '.join(flags)}": (with_scenes(*flags), f"{flags[0]} and --scenes came; wanted one of the two")
        for flags in OF_FILES
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(models)
    make, said = REFUSED[name]
    assert main(make(models)) == 2
    shown = capsys.readouterr()
    assert re.fullmatch(r"bitlens adapt: .+\n", shown.err) and re.search(said, shown.err), shown.err
    assert not list((models / "out").iterdir())


def test_a_camera_with_a_dark_level_and_a_flat_field(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = np.linspace(0.8, 1.2, 32)[None].repeat(32, 0)
    np.savez(models / "raw.npz", measurement=1000 * GOOD * shape + 50, gain=1000.0, axes="thw")
    np.savez(models / "dark.npz", measurement=np.full((1, 32, 32), 50.0))
    np.savez(models / "flat.npz", measurement=(3000 * shape + 50)[None])
    np.savez(models / "mask.npz", other=MASK, axes="thw")
    corrected = ["--dark", models / "dark.npz", "--flat", models / "flat.npz", "--mask-key", "other"]
    assert main(command(models, *corrected, measurements=("raw.npz",))) == 0
    assert "dark: 50 subtracted" in capsys.readouterr().out
    settings = checkpoint.describe(models / "out" / "new.safetensors").provenance["settings"]
    assert (settings["dark"], settings["flat"]) == ("dark.npz", "flat.npz")


def test_a_camera_with_a_mosaic_and_pairs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its two measurements is four."""
    assert main(command(models, "--bayer", "RGGB", "--pairs", "--steps", "2")) == 0
    shown = capsys.readouterr().out
    assert "8 measurement(s)" in shown and "after 2 steps" in shown
    about = checkpoint.describe(models / "out" / "new.safetensors")
    settings = about.provenance["settings"]
    assert (settings["bayer"], settings["pairs"]) == ("RGGB", True)
    low, residuals = checkpoint.load(models / "low.safetensors"), []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        site = torch.from_numpy(MASK[None, :, row::2, column::2].copy())
        for one in GOOD[:, row::2, column::2]:
            y = torch.from_numpy(one[None].copy())
            with torch.no_grad():
                residuals.append(float(data_residual(low(y, site), y, site)))
    assert about.provenance["residual"]["before"] == pytest.approx(np.mean(residuals), rel=1e-4)
