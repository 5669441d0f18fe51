"""Damaged files of every kind that is read end in a result or in one line: no traceback, no hang, no half output.

Files are damaged at random, seeded. The slow test damages `BITLENS_FUZZ` of them (2,000), runs each as a process of its
own, and also looks at time and memory.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from commands import Commands
from PIL import Image, ImageCms
from safetensors.torch import save_file
from writing import read_back

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.masks import random_mask
from bitlens.data.pictures import write_picture
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video
from bitlens.methods import recipe_of
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.pan import PAN

FILES = int(os.environ.get("BITLENS_FUZZ", "2000"))
MOST_MB, MOST_SECONDS = 1000, 30

Inputs = dict[str, tuple[Path, list[Any]]]
"""What is read -> the file that is damaged, and a command line that reads it and writes below `out`."""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A whole file of every kind that is read, each a few kilobytes."""
    for name in ("av", "h5py", "tifffile"):
        pytest.importorskip(name, reason=f"{name} (bitlens[dev]) is not installed")
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    found: Inputs = {}
    for add in (measurements, masks, films, pictures, networks):
        found |= add(folder)
    return found


def measurements(folder: Path) -> Inputs:
    """Measurements in every format, and what corrects them."""
    import tifffile

    scene = high_speed_scene(frames=8, height=32, width=32, oversample=1)[:, :24]
    mask = random_mask(4, 24, 32, 0)
    raw = np.round(8000 * np.einsum("nthw,thw->nhw", scene.reshape(2, 4, 24, 32), mask)).astype(np.uint16)
    eight = (raw >> 8).astype(np.uint8)
    np.savez(folder / "mask.npz", mask=mask, axes="thw")
    found: Inputs = {}

    def add(name: str, write: Callable[[Path], Any], *flags: Any, damaged: str = "") -> None:
        path = folder / name
        write(path)
        command = [
            "reconstruct",
            path,
            "--mask",
            folder / "mask.npz",
            "--model",
            "gap-tv",
            "--out",
            "out/v.npz",
            *flags,
        ]
        found[f"measurement {name}"] = (path / damaged, command)

    add("y.npz", lambda path: np.savez(path, measurement=raw, orig=scene, axes="thw"))
    add("packed.npz", lambda path: np.savez_compressed(path, measurement=raw, axes="thw"))
    add("y.npy", lambda path: np.save(path, raw))
    columns = np.asfortranarray(np.moveaxis(raw, 0, -1))
    add("columns.npy", lambda path: np.save(path, columns), "--axes", "hwt")
    add("y.mat", lambda path: scipy.io.savemat(path, {"meas": np.moveaxis(raw, 0, -1)}))
    add("packed.mat", lambda path: scipy.io.savemat(path, {"meas": np.moveaxis(raw, 0, -1)}, do_compression=True))
    add("y73.mat", lambda path: mat73(path, meas=raw))
    grey: dict[str, Any] = dict(photometric="minisblack")
    add("y.tif", lambda path: tifffile.imwrite(path, raw, **grey))
    add("packed.tif", lambda path: tifffile.imwrite(path, raw, compression="zlib", **grey))
    add("tiles.tif", lambda path: tifffile.imwrite(path, raw, tile=(16, 16), **grey))
    add("big.tif", lambda path: tifffile.imwrite(path, raw, bigtiff=True, **grey))
    add("imagej.tif", lambda path: tifffile.imwrite(path, raw, imagej=True))
    add("ome.tif", lambda path: tifffile.imwrite(path, raw, ome=True, metadata={"axes": "TYX"}, **grey))
    add("appended.tif", lambda path: [tifffile.imwrite(path, one, append=True, **grey) for one in raw])
    add("lzw.tif", lambda path: Image.fromarray(eight[0]).save(path, compression="tiff_lzw"))
    add("jpeg.tif", lambda path: Image.fromarray(eight[0]).save(path, compression="jpeg"))
    add("fax.tif", lambda path: Image.fromarray(eight[0] > 60).save(path, compression="group4"), "--allow-saturated")
    add("y.png", lambda path: Image.fromarray(raw[0]).save(path))
    add("y8.png", lambda path: Image.fromarray(eight[0]).save(path))
    add("pngs", lambda path: folder_of(path, "png", raw), damaged="frame1.png")
    add("tifs", lambda path: folder_of(path, "tif", raw), damaged="frame0.tif")
    add("jpgs", lambda path: folder_of(path, "jpg", eight), damaged="frame1.jpg")
    for flag, name, write in (
        ("--dark", "dark.npz", lambda path: np.savez(path, measurement=raw[:1] // 100)),
        ("--dark", "dark.tif", lambda path: tifffile.imwrite(path, raw[0] // 100, **grey)),
        ("--flat", "flat.png", lambda path: Image.fromarray(np.full_like(raw[0], 30000)).save(path)),
        ("--flat", "flat.mat", lambda path: scipy.io.savemat(path, {"flat": np.full((24, 32), 300.0)})),
    ):
        write(folder / name)
        found[f"correction {name}"] = (folder / name, [*found["measurement y.npy"][1], flag, folder / name])
    return found


def masks(folder: Path) -> Inputs:
    """Masks in every format."""
    import tifffile

    mask = random_mask(4, 24, 32, 0)
    levels = (255 * mask).astype(np.uint8)
    writers: dict[str, Callable[[Path], Any]] = {
        "m.npz": lambda path: np.savez(path, mask=mask, axes="thw"),
        "m.npy": lambda path: np.save(path, mask),
        "m.mat": lambda path: scipy.io.savemat(path, {"mask": np.moveaxis(mask, 0, -1)}),
        "m73.mat": lambda path: mat73(path, mask=mask),
        "m.tif": lambda path: tifffile.imwrite(path, levels, photometric="minisblack"),
        "mpngs": lambda path: folder_of(path, "png", levels),
    }
    found: Inputs = {}
    for name, write in writers.items():
        write(folder / name)
        command = ["reconstruct", folder / "y.npy", "--mask", folder / name, "--model", "gap-tv", "--out", "out/v.tif"]
        found[f"mask {name}"] = (folder / name / ("frame2.png" if name == "mpngs" else ""), command)
    return found


def films(folder: Path) -> Inputs:
    """Films and animations, to measure and to enlarge."""
    small = high_speed_scene(frames=8, height=32, width=32, oversample=1)
    colour = np.stack([small, small[:, ::-1], small[::-1]], axis=-1)
    checkpoint.save(PAN(2, 8, 4, 1), folder / "pan.safetensors")
    found: Inputs = {}
    for name in ("a.mp4", "a.mkv", "a.avi", "a.gif", "a.webp", "a.png", "a.tif", "a.npz", "a.avif"):
        path = folder / f"film-{name}"
        if name == "a.avif":
            frames = [Image.fromarray((255 * one).astype(np.uint8)) for one in colour]
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
        else:
            write_video(path, small if name == "a.npz" else colour)
        found[f"film {name}"] = (path, ["measure", path, "--mask", "random", "--frames", "4", "--out", "out/y.npz"])
        if name != "a.npz":
            out = {".mp4": "large.mkv", ".tif": "large.tif", ".gif": "large.gif", ".avi": "large/"}.get(
                path.suffix, "large.webp"
            )
            found[f"enlarged {name}"] = (
                path,
                ["upscale", path, "--model", folder / "pan.safetensors", "--out", f"out/{out}", "--engine", "torch"],
            )
    return found


def pictures(folder: Path) -> Inputs:
    """Pictures with all that they say of themselves."""
    import tifffile

    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (20, 24, 3), np.uint8)
    deep = random.integers(0, 65536, (20, 24, 3), np.uint16)
    alpha = Image.fromarray(np.dstack([colours, colours[..., :1]]))
    exif = Image.Exif()
    exif[274], exif[306] = 6, "2020:01:01 00:00:00"
    about: dict[str, Any] = dict(exif=exif, dpi=(72, 72))
    about["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    writers: dict[str, Callable[[Path], Any]] = {
        "p.png": lambda path: plain.save(path, **about),
        "deep.png": lambda path: write_picture(path, 20, 24, [deep]),
        "alpha.png": lambda path: alpha.save(path),
        "palette.png": lambda path: plain.quantize(16).save(path, transparency=3),
        "p.jpg": lambda path: plain.save(path, progressive=True, **about),
        "cmyk.jpg": lambda path: plain.convert("CMYK").save(path),
        "p.webp": lambda path: alpha.save(path, exif=exif),
        "p.gif": lambda path: plain.save(path),
        "p.bmp": lambda path: plain.save(path),
        "grey.bmp": lambda path: grey.save(path),
        "p.avif": lambda path: plain.save(path, exif=exif),
        "p.tif": lambda path: plain.save(path, compression="tiff_lzw", **about),
        "jpeg.tif": lambda path: plain.save(path, compression="jpeg"),
        "deep.tif": lambda path: tifffile.imwrite(path, deep, photometric="rgb"),
        "planes.tif": lambda path: tifffile.imwrite(
            path, deep.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
        ),
        "float.tif": lambda path: tifffile.imwrite(path, (deep / 65535).astype(np.float32), photometric="rgb"),
    }
    found: Inputs = {}
    (folder / "pictures").mkdir()
    for name, write in writers.items():
        path = folder / "pictures" / name
        write(path)
        out = "large.tif" if "deep" in name else "large.png"
        command = ["upscale", path, "--model", folder / "pan.safetensors", "--out", f"out/{out}", "--engine", "torch"]
        found[f"picture {name}"] = (path, command)
    return found


def networks(folder: Path) -> Inputs:
    """Checkpoints, official weights and recipes."""
    network = EfficientSCI(8, 1, 2)
    checkpoint.save(network, folder / "float.safetensors")
    (folder / "recipe.toml").write_text(recipe_of("direct", 4).to_toml())
    (folder / "training.toml").write_text("[training]\nsteps = 1\nlearning_rate = 1e-3\nema = 0.9\n")
    (folder / "clips").mkdir()
    shutil.copy(folder / "film-a.npz", folder / "clips" / "a.npz")
    torch.save(network.state_dict(), folder / "official.pth")
    save_file(PAN(2, 8, 4, 1).state_dict(), folder / "official.safetensors")
    low, enlarging = folder / "low.safetensors", folder / "enlarging.safetensors"
    quantize = ["quantize", folder / "float.safetensors", "--recipe", folder / "recipe.toml", "--batches", "1"]
    assert main([str(one) for one in [*quantize, "--out", low]]) == 0
    shutil.copy(folder / "pan.safetensors", enlarging)
    picture = folder / "pictures" / "p.bmp"
    train = ["train", "--clips", folder / "clips", "--recipe", folder / "training.toml", "--start"]
    train += [folder / "float.safetensors", "--crop", "16", "--batch", "1", "--frames", "4", "--steps", "1"]
    video = ["--engine", "torch", "--out", "out/v.npz"]
    return {
        "checkpoint described": (low, ["info", low]),
        "checkpoint of video": (
            low,
            ["reconstruct", folder / "y.npy", "--mask", folder / "mask.npz", "--model", low, *video],
        ),
        "checkpoint of pictures": (enlarging, ["upscale", picture, "--model", enlarging, "--out", "out/p.png"]),
        "recipe": (folder / "recipe.toml", [*quantize, "--out", "out/q.safetensors"]),
        "recipe of training": (folder / "training.toml", [*train, "--run", "run", "--out", "out/t.safetensors"]),
        "official .pth": (folder / "official.pth", ["convert", folder / "official.pth", "--out", "out/c.safetensors"]),
        "official .safetensors": (
            folder / "official.safetensors",
            ["convert", folder / "official.safetensors", "--out", "out/c.safetensors"],
        ),
    }


def mat73(path: Path, **arrays: np.ndarray) -> None:
    """A MATLAB file of version 7.3 of arrays with frames first."""
    import h5py

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.swapaxes(1, 2)
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def folder_of(path: Path, kind: str, frames: np.ndarray) -> None:
    """A folder of images."""
    path.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / f"frame{index}.{kind}")


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The bytes of a file after one to three accidents."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        place = int(random.integers(len(data) + 1))
        length = int(min(random.integers(1, 65), len(data)))
        match random.choice(["flips", "cut", "inserted", "removed", "zeros", "number", "number at the head", "copied"]):
            case "flips":
                for at in random.integers(len(data), size=length) if data else ():
                    data[at] ^= 1 << random.integers(8)
            case "cut":
                del data[place:]
            case "inserted":
                data[place:place] = random.bytes(length)
            case "removed":
                del data[place : place + length]
            case "zeros":
                data[place : place + length] = bytes(len(data[place : place + length]))
            case "copied":
                data[place:place] = data[:length]
            case kind:
                at = int(random.integers(min(len(data), 400) + 1)) if "head" in kind else place
                size = int(random.choice([1, 2, 4, 8]))
                values = [0, 1, 2, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 2 ** (6 * size)]
                number = int(random.choice(np.array([*values, int(random.integers(2 ** (4 * size)))], dtype=object)))
                data[at : at + size] = number.to_bytes(size, str(random.choice(["little", "big"])))
    return bytes(data)


def draw(inputs: Inputs, seed: int) -> tuple[str, bytes, list[str]]:
    """What is read, a damaged file of it, and the command line; the same for a seed."""
    random = np.random.default_rng(seed)
    name = list(inputs)[seed % len(inputs)]
    path, command = inputs[name]
    return name, damaged(path.read_bytes(), random), [str(one) for one in command]


def complaint(code: int, err: str, folder: Path) -> str:
    """What is wrong with how a command line ended in a folder; empty where nothing is."""
    left = sorted(path for path in (folder / "out").rglob("*") if path.is_file())
    if code not in (0, 2):
        return f"exit {code}: {err[-2000:]}"
    if code == 2:
        if not re.fullmatch(r"bitlens \w+: .+\n", err) or len(err) > 1000:
            return f"wanted one line, got: {err[-2000:]}"
        return f"left {left}" if left else ""
    if err:
        return f"beside a result: {err[-2000:]}"
    try:
        for path in left:
            assert path.name[0] != "."
            read_back(path)
    except Exception as error:
        return f"{path} is half a file: {error!r}"
    return ""


@pytest.mark.parametrize("seed", range(0, 1200, 23))
def test_damaged(
    seed: int,
    inputs: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    name, content, command = draw(inputs, seed)
    path, whole = inputs[name][0], inputs[name][0].read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        path.write_bytes(content)
        code = main(command)
    finally:
        path.write_bytes(whole)
    assert not complaint(code, capfd.readouterr().err, tmp_path), name


@pytest.mark.slow
def test_many_damaged(inputs: Inputs, commands: Commands, tmp_path: Path) -> None:
    wrong: list[str] = []
    refused = 0
    for name, (_, command) in inputs.items():  # as they are, nothing is wrong
        ended = commands(command, tmp_path)
        assert ended.code == 0 and not complaint(0, ended.err, tmp_path), f"{name}: {ended.err}"
    for seed in range(FILES):
        name, content, command = draw(inputs, seed)
        path, whole = inputs[name][0], inputs[name][0].read_bytes()
        for one in ("out", "run"):
            shutil.rmtree(tmp_path / one, ignore_errors=True)
        try:
            path.write_bytes(content)
            ended = commands(command, tmp_path, seconds=MOST_SECONDS)
        finally:
            path.write_bytes(whole)
        said = f"over {MOST_SECONDS} s" if ended.hung else complaint(ended.code, ended.err, tmp_path)
        if ended.peak_mb > MOST_MB:
            said += f" took {ended.peak_mb:.0f} MB"
        if said:
            wrong.append(f"{name}, seed {seed}: {said}")
        refused += ended.code == 2
    assert not wrong, f"{len(wrong)} of {FILES}:\n" + "\n".join(wrong)
    assert 0.3 * FILES < refused < FILES
