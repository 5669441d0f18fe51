"""A short command line of every verb that writes, and how its outputs are read back."""

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from bitlens import checkpoint
from bitlens.data.arrays import write_npz
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.data.video import open_movie, write_video
from bitlens.files import is_part
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.ffdnet import FFDNet
from bitlens.networks.pan import PAN
from bitlens.operators import VideoSCI

RESULT = Path(__file__).resolve().parents[1] / "results" / "gap-tv.json"


def commands_that_write(folder: Path) -> dict[str, list[str]]:
    """Name -> command line, whose outputs lie below `out` of the folder that it is run in.

    A name is the verb, and behind a blank the kind of output.
    """
    torch.manual_seed(0)
    scene = high_speed_scene(frames=8, height=32, width=32, oversample=1)
    mask = random_mask(4, 32, 32, 0)
    measured = np.einsum("nthw,thw->nhw", scene.reshape(2, 4, 32, 32), mask)
    write_npz(folder / "tiny" / "one.npz", video=scene)
    write_npz(folder / "clips" / "one.npz", video=scene)
    write_npz(folder / "mask.npz", mask=mask, axes="thw")
    write_npz(folder / "y.npz", measurement=measured, mask=mask, gain=1.0, axes="thw")
    steps = np.random.default_rng(0).normal(200, 4, mask.shape)
    write_npz(folder / "white.npz", measurement=steps * mask + 10)
    write_npz(folder / "dark.npz", measurement=np.full((1, 32, 32), 10.0) + np.arange(32) % 2)
    write_video(folder / "film.mkv", np.stack([scene] * 3, axis=-1))
    (folder / "pictures").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray((255 * np.stack([scene[0]] * 3, axis=-1)).astype(np.uint8)).save(folder / "pictures" / name)
    network = EfficientSCI(8, 1, 2).eval()
    checkpoint.save(network, folder / "float.safetensors", claims={"tiny": {"psnr": 5.0}})
    batch = torch.from_numpy(mask)[None]
    low, _ = quantize(network, "direct", [(VideoSCI(batch).A(torch.from_numpy(scene[:4])[None, None]), batch)], bits=8)
    checkpoint.save(low, folder / "low.safetensors")
    pan = PAN(2, 8, 4, 1).eval()
    checkpoint.save(pan, folder / "pan.safetensors")
    checkpoint.save(FFDNet(1, 8, 2).eval(), folder / "ffdnet.safetensors")
    save_file(pan.state_dict(), folder / "official.safetensors")

    lines = {
        "measure": "measure {f}/tiny/one.npz --mask random --frames 4 --out out/y.npz",
        "reconstruct .gif": "reconstruct {f}/y.npz --model gap-tv --out out/v.gif --json out/v.json",
        "reconstruct .mp4": "reconstruct {f}/y.npz --model gap-tv --out out/v.mp4",
        "reconstruct .tif": "reconstruct {f}/y.npz --model gap-tv --out out/v.tif",
        "reconstruct folder": "reconstruct {f}/y.npz --model gap-tv --out out/v/",
        "upscale .png": "upscale {f}/pictures/a.png --model {f}/pan.safetensors --out out/large.png --engine torch",
        "upscale .tif": "upscale {f}/pictures/a.png --model {f}/pan.safetensors --out out/large.tif --engine torch",
        "upscale film": "upscale {f}/film.mkv --model {f}/pan.safetensors --out out/large.mkv --engine torch",
        "restore": "restore {f}/pictures/a.png --model {f}/ffdnet.safetensors --out out/better.png --engine torch",
        "upscale folder": "upscale {f}/pictures --model {f}/pan.safetensors --out out/large --engine torch",
        "demo": "demo --model gap-tv --size 32 --frames 4 --out out",
        "calibrate": "calibrate {f}/white.npz --dark {f}/dark.npz --out out/mask.npz",
        "evaluate": "evaluate gap-tv --data {f}/tiny --frames 4 --json out/r.json --page out/r.html",
        "cameras": "cameras {f}/float.safetensors --data {f}/tiny --engine torch --json out/c.json",
        "verify": "verify {f}/float.safetensors --data {f}/tiny --json out/v.json",
        "quantize": "quantize {f}/float.safetensors --method direct --batches 1 --out out/q.safetensors",
        "adapt": "adapt {f}/low.safetensors --mask {f}/mask.npz --measurements {f}/y.npz --out out/a.safetensors",
        "convert": "convert {f}/official.safetensors --out out/c.safetensors",
        "export .onnx": "export {f}/low.safetensors --out out/n.onnx",
        "export .xml": "export {f}/low.safetensors --format openvino --frames 4 --height 32 --width 32 --out out/n.xml",
        "costs": "costs {f}/float.safetensors --size 32 --frames 4 --bits w8a8 --threads 1 --rounds 1 --out out/c.json",
        "report": f"report {RESULT} --out out/p.html",
        "train": "train --clips {f}/clips --start {f}/float.safetensors --crop 16 --batch 1 --frames 4 --steps 6 "
        "--save-minutes 1e-9 --log-every 2 --run out/run --out out/t.safetensors",
    }
    return {name: line.format(f=folder).split() for name, line in lines.items()}


def check_outputs(folder: Path) -> list[Path]:
    """Read all that lies in a folder, but for what is named as unfinished; returns the finished files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    inside = [path for path in files if not any(is_part(Path(name)) for name in path.relative_to(folder).parts)]
    for path in inside:
        read_back(path)
    return inside


def unfinished(folder: Path) -> list[Path]:
    """What is named as unfinished in a folder and below."""
    return [path for path in folder.rglob("*") if is_part(path)]


def read_back(path: Path) -> None:
    """Read all of an output. Raises: whatever its reader raises where it is not whole."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            assert all(file[name].dtype is not None for name in file.files)
    elif path.suffix == ".npy":
        assert np.load(path).size
    elif path.suffix == ".safetensors":
        checkpoint.load(path)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        return  # its last line may be half a line, which a resumed run removes
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix in (".mkv", ".mp4", ".avi"):
        assert all(frame.size for frame in open_movie(path))
    elif path.suffix == ".onnx":
        import onnx

        onnx.checker.check_model(onnx.load_from_string(path.read_bytes()))
    elif path.suffix == ".xml":
        from bitlens.engine.runtime import openvino

        openvino().Core().read_model(path)
    elif path.suffix == ".bin":
        assert path.stat().st_size
    elif path.suffix == ".html":
        assert path.read_text().endswith("</html>")
    else:
        with Image.open(BytesIO(path.read_bytes())) as image:
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                image.load()


def empty(folder: Path) -> Path:
    """The folder, new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a checkpoint."""
    return dict(checkpoint.load(path).state_dict())
