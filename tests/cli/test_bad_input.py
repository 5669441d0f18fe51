"""Whatever comes in wrong gives one clear line, a code that is not 0, and leaves no file behind."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from safetensors.numpy import save_file

import bitlens
from bitlens.cli import main
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import write_video

SCENE = high_speed_scene(frames=8, height=40, width=32, oversample=1)
MASK = random_mask(4, 40, 32, 0)
GOOD = np.einsum("nthw,thw->nhw", SCENE.reshape(2, 4, 40, 32), MASK)  # 2 40 32

Case = Callable[[Path], list[Any]]
"""Writes its bad input into a folder; returns the command line, `out` being the folder for outputs."""


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.ran = folder / "ran"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.ran),)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, axes="thw", **arrays)
    return path


def mat(path: Path, **arrays: np.ndarray) -> Path:
    scipy.io.savemat(path, {name: np.moveaxis(array, 0, -1) for name, array in arrays.items()})
    return path


def raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def half(path: Path) -> Path:
    """The file cut in the middle."""
    content = path.read_bytes()
    return raw(path, content[: len(content) // 2])


def written(write: Callable[..., Any], path: Path, *rest: Any) -> Path:
    write(path, *rest)
    return path


def png(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray((np.clip(picture / 4, 0, 1) * 65535).astype(np.uint16)).save(path)
    return path


def good(folder: Path) -> Path:
    return npz(folder / "good.npz", measurement=GOOD, mask=MASK)


def mask_file(folder: Path) -> Path:
    return npz(folder / "mask.npz", mask=MASK)


def reconstruct(measurement: Any, *flags: Any, out: str = "out/v.gif", model: Any = "gap-tv") -> list[Any]:
    return ["reconstruct", measurement, "--model", model, "--out", out, *flags]


def measurement(change: Callable[[np.ndarray], Any]) -> Case:
    """A .npz with a changed measurement and a good mask."""
    return lambda f: reconstruct(npz(f / "bad.npz", measurement=change(GOOD.copy()), mask=MASK))


def mask(change: Callable[[np.ndarray], Any]) -> Case:
    """A good measurement with a changed mask."""
    return lambda f: reconstruct(good(f), "--mask", npz(f / "bad.npz", mask=change(MASK.copy())))


def video(change: Callable[[np.ndarray], Any]) -> Case:
    """A .npz video to measure."""
    bad = lambda f: npz(f / "bad.npz", video=change(SCENE.copy()))  # noqa: E731
    return lambda f: ["measure", bad(f), "--mask", mask_file(f), "--out", "out/y.npz"]


def measure(source: Callable[[Path], Any], *flags: Any, out: str = "out/y.npz") -> Case:
    """The measuring of a file with the good mask."""
    return lambda f: ["measure", source(f), "--mask", mask_file(f), "--out", out, *flags]


def with_flags(*flags: Any, **named: Any) -> Case:
    """A reconstruction of good data with bad flags."""
    return lambda f: reconstruct(good(f), *flags, **named)


def poked(array: np.ndarray, value: float) -> np.ndarray:
    array[0, 3, 5] = value
    return array


def evil(folder: Path, name: str) -> Path:
    """A pickle with code in it under an innocent name."""
    path = folder / name
    payload = Payload(folder)
    if name.endswith(".npz"):
        np.savez(path, measurement=np.array([payload], dtype=object), mask=MASK)
    elif name.endswith(".npy") and "array" in name:
        np.save(path, np.array([payload], dtype=object), allow_pickle=True)
    elif name.endswith(".pth"):
        torch.save({"weight": payload}, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    return path


def foreign(path: Path) -> None:
    """Safetensors that are no network of ours."""
    save_file({"embedding.weight": np.zeros((64, 64), np.float32)}, path)


def scene(folder: Path) -> Path:
    return written(write_video, folder / "scene.npz", SCENE)


CASES: dict[str, tuple[Case, str]] = {
    # measurements
    "measurement: missing": (lambda f: reconstruct(f / "none.npz"), "no file .*none.npz"),
    "measurement: unknown suffix": (lambda f: reconstruct(raw(f / "a.xyz", b"1")), "suffix '.xyz'"),
    "measurement: a movie": (lambda f: reconstruct(raw(f / "a.mp4", b"1")), "suffix '.mp4'"),
    "measurement: NaN": (measurement(lambda y: poked(y, np.nan)), "NaN or infinite"),
    "measurement: infinite": (measurement(lambda y: poked(y, np.inf)), "NaN or infinite"),
    "measurement: beyond float32": (measurement(lambda y: poked(y.astype(float), 1e200)), "beyond 1e30"),
    "measurement: negative": (measurement(lambda y: y - 2), "goes down to"),
    "measurement: zero": (measurement(lambda y: y * 0), "all zero"),
    "measurement: constant": (measurement(lambda y: y * 0 + 3), "3 everywhere"),
    "measurement: saturated": (measurement(lambda y: y.clip(0, 0.5)), "saturated.*--allow-saturated"),
    "measurement: no pixels": (measurement(lambda y: y[:, :0]), "empty|shape"),
    "measurement: no measurement": (measurement(lambda y: y[:0]), "empty|shape"),
    "measurement: one row": (measurement(lambda y: y[0, 0]), "dimensions"),
    "measurement: four axes": (measurement(lambda y: y[None]), "dimensions"),
    "measurement: complex": (measurement(lambda y: y + 1j), "complex"),
    "measurement: text": (measurement(lambda y: y.astype(str)), "dtype <U"),
    "measurement: other size": (measurement(lambda y: y[:, 1:]), "39x32, the mask .*40x32.*--crop"),
    "measurement: transposed": (measurement(lambda y: y.swapaxes(1, 2)), "32x40"),
    "measurement: wrong name": (lambda f: reconstruct(npz(f / "a.npz", hidden=GOOD)), "holds .*hidden"),
    "measurement: wrong key": (with_flags("--key", "other"), "wanted other"),
    "measurement: axes": (with_flags("--axes", "wht"), "axes='wht'|--axes wht"),
    "measurement: no mask": (lambda f: reconstruct(npz(f / "a.npz", measurement=GOOD)), "needs the camera's"),
    "measurement: empty .npz": (lambda f: reconstruct(raw(f / "a.npz", b"")), "a.npz"),
    "measurement: empty .npy": (lambda f: reconstruct(raw(f / "a.npy", b"")), "a.npy"),
    "measurement: empty .mat": (lambda f: reconstruct(raw(f / "a.mat", b"")), "does not start like a MATLAB"),
    "measurement: truncated .npz": (lambda f: reconstruct(half(good(f))), "good.npz"),
    "measurement: truncated .npy": (
        lambda f: reconstruct(half(written(np.save, f / "a.npy", GOOD)), "--mask", mask_file(f)),
        "a.npy",
    ),
    "measurement: truncated .mat": (
        lambda f: reconstruct(half(mat(f / "a.mat", meas=GOOD, mask=MASK))),
        "a.mat",
    ),
    "measurement: .mat 7.3 of garbage": (
        lambda f: reconstruct(raw(f / "a.mat", b"MATLAB 7.3 MAT-file" + bytes(range(256)) * 20)),
        "a.mat",
    ),
    "measurement: .mat 5 of garbage": (
        lambda f: reconstruct(raw(f / "a.mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM\xff" * 90)),
        "a.mat",
    ),
    "measurement: .mat with cells": (
        lambda f: reconstruct(written(scipy.io.savemat, f / "a.mat", {"meas": np.array([1, "a"], dtype=object)})),
        "cell, struct or object",
    ),
    "measurement: truncated .png": (
        lambda f: reconstruct(half(png(f / "a.png", GOOD[0])), "--mask", mask_file(f)),
        "a.png",
    ),
    "measurement: text as .png": (
        lambda f: reconstruct(raw(f / "a.png", b"hello"), "--mask", mask_file(f)),
        "a.png",
    ),
    "measurement: truncated .tif": (
        lambda f: reconstruct(half(written(write_video, f / "a.tif", SCENE[:1])), "--mask", mask_file(f)),
        "a.tif",
    ),
    "measurement: folder without images": (
        lambda f: reconstruct(f, "--mask", mask_file(f)),
        "holds no images",
    ),
    "measurement: .npy with code": (lambda f: reconstruct(evil(f, "a.npy")), "a.npy.* pickled"),
    "measurement: .npy array with code": (lambda f: reconstruct(evil(f, "array.npy")), "pickled"),
    "measurement: .npz with code": (lambda f: reconstruct(evil(f, "a.npz")), "pickled"),
    "measurement: .mat with code": (lambda f: reconstruct(evil(f, "a.mat")), "a.mat"),
    # masks
    "mask: missing": (with_flags("--mask", "none.mat"), "no file none.mat"),
    "mask: unknown suffix": (
        lambda f: reconstruct(good(f), "--mask", raw(f / "m.doc", b"1")),
        "suffix '.doc'",
    ),
    "mask: closed everywhere": (mask(lambda m: m * 0), "all zero"),
    "mask: a dark frame": (mask(lambda m: m * np.array([1, 1, 0, 1])[:, None, None]), "frame 2 is all zero"),
    "mask: all ones": (mask(lambda m: m * 0 + 1), "1 everywhere"),
    "mask: negative": (mask(lambda m: m - 0.5), "goes down to -0.5"),
    "mask: NaN": (mask(lambda m: poked(m, np.nan)), "NaN or infinite"),
    "mask: pixels closed in every frame": (mask(lambda m: m * (np.arange(32) > 15)), "closed in all"),
    "mask: one frame": (mask(lambda m: m[:1]), "1 frame"),
    "mask: other size": (mask(lambda m: m[:, :, :30]), "40x32, the mask .*40x30"),
    "mask: text": (mask(lambda m: m.astype(str)), "dtype <U"),
    "mask: four axes": (mask(lambda m: m[None]), "shape"),
    "mask: no file name": (with_flags("--mask", "."), "holds no images"),
    "mask: wrong axes": (
        lambda f: reconstruct(good(f), "--mask", mask_file(f), "--mask-axes", "twh"),
        "--mask-axes twh",
    ),
    # videos to measure
    "video: missing": (measure(lambda f: f / "none.mp4"), "none.mp4"),
    "video: shorter than the mask": (video(lambda x: x[:3]), "3 frame.*the mask 4"),
    "video: NaN": (video(lambda x: poked(x, np.nan)), "NaN or infinite"),
    "video: beyond white": (video(lambda x: x * 300), r"wanted \[0, 1\]"),
    "video: other size": (video(lambda x: x[:, :36]), "36x32, the mask 40x32"),
    "video: complex": (video(lambda x: x + 1j), "complex"),
    "video: empty": (video(lambda x: x[:0]), "shape|no frame"),
    "video: truncated movie": (measure(lambda f: half(written(write_video, f / "a.mp4", SCENE))), "a.mp4"),
    "video: text as movie": (measure(lambda f: raw(f / "a.mp4", b"hello" * 99)), "a.mp4"),
    "video: truncated .gif": (measure(lambda f: raw(f / "a.gif", b"GIF89a\x20\x00\x20")), "a.gif"),
    "video: crop outside": (measure(scene, "--crop", "10,0,40,32"), "does not lie inside"),
    "video: crop unlike the mask": (measure(scene, "--crop", "0,0,20,20"), "20x20, the mask 40x32"),
    "video: crop of three": (measure(scene, "--crop", "0,0,20"), "wanted four whole numbers"),
    "video: negative noise": (measure(scene, "--noise", "-1"), "--noise -1"),
    "video: NaN noise": (measure(scene, "--noise", "nan"), "--noise nan"),
    "video: negative seed": (measure(scene, "--seed", "-1"), "--seed -1"),
    "video: huge seed": (measure(scene, "--seed", str(2**70)), "--seed"),
    "video: frames unlike the mask": (measure(scene, "--frames", "8"), "--frames 8.* has 4"),
    "video: no frames": (
        lambda f: ["measure", scene(f), "--mask", "random", "--frames", "0", "--out", "out/y.npz"],
        "frames=0",
    ),
    "video: measurement to a movie": (measure(scene, out="out/y.mp4"), "ends in .npz"),
    # flags and places
    "crop: outside": (with_flags("--crop", "0,0,64,64"), "does not lie inside"),
    "crop: negative": (with_flags("--crop=-1,0,8,8"), "does not lie inside"),
    "crop: empty": (with_flags("--crop", "0,0,0,8"), "does not lie inside"),
    "crop: words": (with_flags("--crop", "all"), "--crop all"),
    "gain: 0": (with_flags("--gain", "0"), "gain=0"),
    "gain: negative": (with_flags("--gain", "-2"), "gain=-2"),
    "gain: NaN": (with_flags("--gain", "nan"), "gain=nan"),
    "gain: in the file": (
        lambda f: reconstruct(npz(f / "a.npz", measurement=GOOD, mask=MASK, gain=-1.0)),
        "'gain' is -1",
    ),
    "brightness: 2": (with_flags("--brightness", "2"), "brightness=2"),
    "fps: 0": (with_flags("--fps", "0"), "--fps 0"),
    "out: unknown suffix": (with_flags(out="out/v.wmv"), "v.wmv"),
    "out: a folder": (
        lambda f: with_flags(out=str(Path(f / "dir.gif").mkdir() or f / "dir.gif"))(f),
        "folder",
    ),
    "out: a folder in use": (with_flags(out="."), "not empty"),
    "out: below a file": (lambda f: reconstruct(good(f), out=f"{good(f)}/v.gif"), "is a file"),
    "out: JSON below a file": (lambda f: reconstruct(good(f), "--json", good(f) / "r.json"), "is a file"),
    "out: no place to write": (with_flags(out="/proc/none/v.gif"), "/proc/none"),
    # models
    "model: unknown": (with_flags(model="efficientsci-x"), "efficientsci-x"),
    "model: missing": (with_flags(model="none.safetensors"), "none.safetensors"),
    "model: a folder": (lambda f: reconstruct(good(f), model=f), "."),
    "model: of something else": (
        lambda f: reconstruct(good(f), model=written(foreign, f / "a.safetensors")),
        "a.safetensors",
    ),
    "model: truncated": (
        lambda f: reconstruct(good(f), model=half(written(foreign, f / "a.safetensors"))),
        "a.safetensors",
    ),
    "model: empty": (lambda f: reconstruct(good(f), model=raw(f / "a.safetensors", b"")), "a.safetensors"),
    "model: header of 2^60 bytes": (
        lambda f: reconstruct(good(f), model=raw(f / "a.safetensors", b"\0" * 7 + b"\x10" + b"{}")),
        "a.safetensors",
    ),
    "model: pickle with code": (
        lambda f: reconstruct(good(f), model=evil(f, "a.safetensors")),
        "a.safetensors",
    ),
    "model: .pth with code": (lambda f: reconstruct(good(f), model=evil(f, "a.pth")), "a.pth"),
    "info: unknown": (lambda f: ["info", "efficientsci-x"], "efficientsci-x"),
    "info: no frames": (lambda f: ["info", "gap-tv", "--frames", "0"], "frames=0"),
    "info: of something else": (lambda f: ["info", written(foreign, f / "a.safetensors")], "a.safetensors"),
    # test sets and demo
    "evaluate: unknown data": (lambda f: ["evaluate", "gap-tv", "--data", "six-scene"], "six-scenes"),
    "evaluate: folder without scenes": (lambda f: ["evaluate", "gap-tv", "--data", f], "holds no scene"),
    "evaluate: scene too short": (
        lambda f: ["evaluate", "gap-tv", "--data", npz(f / "a.npz", video=SCENE[:3]), "--json", "out/r.json"],
        "a.npz.* 3 frame",
    ),
    "evaluate: mask of other size": (
        lambda f: [
            "evaluate",
            "gap-tv",
            "--data",
            npz(f / "a.npz", video=SCENE[:, :9]),
            "--mask",
            mask_file(f),
            "--json",
            "out/r.json",
        ],
        "a.npz.* 9x32",
    ),
    "evaluate: JSON is a folder": (
        lambda f: ["evaluate", "gap-tv", "--data", scene(f), "--json", "out"],
        "out is a folder",
    ),
    "evaluate: unknown model": (
        lambda f: ["evaluate", "gap-tv", "no-such", "--data", scene(f), "--json", "out/r.json"],
        "no-such",
    ),
    "demo: mask alone": (lambda f: ["demo", "--mask", mask_file(f), "--out", "out/d"], "without --capture"),
    "demo: too small": (lambda f: ["demo", "--size", "8", "--model", "gap-tv", "--out", "out/d"], "height=8"),
    "demo: unknown model": (
        lambda f: ["demo", "--model", "no-such", "--size", "32", "--out", "out/d"],
        "no-such",
    ),
    "demo: capture without mask": (
        lambda f: ["demo", "--capture", npz(f / "a.npz", measurement=GOOD), "--out", "out/d"],
        "needs the camera's",
    ),
    "demo: out is a file": (
        lambda f: ["demo", "--size", "32", "--model", "gap-tv", "--out", good(f)],
        "is a file",
    ),
    # the command line itself
    "verb: typo": (lambda f: ["reconstuct"], "did you mean 'reconstruct'"),
    "verb: unknown": (lambda f: ["fly"], "unknown verb 'fly'"),
}


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, said = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    command = [str(part) for part in case(tmp_path)]
    before = listing(tmp_path)
    capsys.readouterr()

    code = main(command)

    shown = capsys.readouterr()
    assert code == 2
    assert re.fullmatch(r"bitlens.*: .+\n", shown.err), f"wanted one line, got: {shown.err}"
    assert re.search(said, shown.err), f"wanted /{said}/ in: {shown.err}"
    assert len(shown.err) < 600
    assert listing(tmp_path) == before and not list(Path("out").iterdir())
    assert not Path("ran").exists(), "code from the file was run"


USAGE = {
    "unknown flag": ["models", "--jsn"],
    "missing argument": ["reconstruct"],
    "missing flag": ["measure", "scene.npz"],
    "word for a number": ["measure", "scene.npz", "--mask", "random", "--out", "y.npz", "--frames", "many"],
    "too many arguments": ["info", "gap-tv", "gap-tv"],
    "no model": ["evaluate"],
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(USAGE[name]) == 2
    shown = capsys.readouterr()
    assert shown.err and "Traceback" not in shown.err and shown.out == ""


@pytest.mark.parametrize("name", ["measurement: .npy with code", "model: .pth with code", "verb: typo"])
def test_bad_input_to_the_process(name: str, tmp_path: Path) -> None:
    """The same through `python -m bitlens`: nothing but the one line, whatever torch or scipy would add."""
    case, said = CASES[name]
    command = [sys.executable, "-m", "bitlens", *(str(part) for part in case(tmp_path))]
    repository = Path(bitlens.__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert re.fullmatch(r"bitlens.*: .+\n", run.stderr) and re.search(said, run.stderr), run.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
