"""Large pictures and long recordings: tiles within a budget, constant memory, nothing half-written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens import checkpoint
from bitlens.cli import main
from bitlens.data.arrays import read_arrays, write_npz
from bitlens.data.capture import simulate, write_capture
from bitlens.data.masks import random_mask
from bitlens.data.synthetic import high_speed_scene
from bitlens.engine.memory import FIXED_MB, bytes_per_pixel, fixed_mb, patches_mb
from bitlens.inference import tiling
from bitlens.networks.classical import GapTV
from bitlens.networks.efficientsci import EfficientSCI, efficientsci

TINY = EfficientSCI(4, 1, 2)  # sees 20 pixels


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.nn.init.constant_(TINY.get_parameter("vrm.4.bias"), 0.5)  # files hold no negative values
    checkpoint.save(TINY, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    scene = high_speed_scene(frames=8, height=96, width=120, oversample=1)
    write_capture(tmp_path / "y.npz", simulate(scene, random_mask(4, 96, 120, 0)))
    return tmp_path / "y.npz"


def budget(network: torch.nn.Module, pixels: int, frames: int, size: tuple[int, int]) -> int:
    """MB that hold tiles of so many pixels, where 100 MB are in use."""
    results = 8 * frames * size[0] * size[1] / 2**20
    return int(100 + fixed_mb(network) + results + pixels * bytes_per_pixel(network, frames) / 2**20 + 1)


@pytest.fixture(autouse=True)
def in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "used_mb", lambda: 100.0)


def test_a_picture_that_fits_is_not_cut() -> None:
    patches = int(patches_mb(TINY, 4, 96, 120))
    plan = tiling.choose_tiling(TINY, TINY, (4, 96, 120), budget(TINY, 96 * 120, 4, (96, 120)) + patches + 1)
    assert plan.count == 1 and plan.note == ""


def test_small_pictures_need_patches_in_torch() -> None:
    network = efficientsci("t")
    assert patches_mb(network, 8, 128, 128) > 300 and patches_mb(network, 8, 400, 400) == 0
    whole = budget(network, 128 * 600, 8, (128, 600))
    plan = tiling.choose_tiling(network, network, (8, 128, 600), whole)
    needed = plan.window[0] * plan.window[1] * bytes_per_pixel(network, 8) / 2**20 + patches_mb(
        network, 8, *plan.window
    )
    assert plan.count > 1 and needed < 128 * 600 * bytes_per_pixel(network, 8) / 2**20 + 1
    enough = whole + int(patches_mb(network, 8, 128, 600)) + 1
    assert tiling.choose_tiling(network, network, (8, 128, 600), enough).count == 1


def test_tiles_within_the_budget() -> None:
    network = efficientsci("t")
    memory = budget(network, 600 * 600, 8, (1080, 1920))
    plan = tiling.choose_tiling(network, network, (8, 1080, 1920), memory)
    assert plan.window[0] * plan.window[1] < 1.1 * 600 * 600 and plan.overlap == 105 and not plan.blend
    assert f"within {memory} MB, 104 pixels of context: all that the network sees" in plan.note
    narrow = tiling.choose_tiling(network, network, (8, 1080, 1920), budget(network, 230 * 230, 8, (1080, 1920)))
    assert narrow.blend and narrow.overlap == tiling.CONTEXT and "the network sees 104" in narrow.note
    with pytest.raises(ValueError, match=r"150 MB of memory do not hold the smallest tile.* wanted \d+ MB or more"):
        tiling.choose_tiling(network, network, (8, 1080, 1920), 150)


def test_the_default_is_modest(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, wanted in ((None, 2048), (100_000.0, 2048), (1000.0, 600)):
        monkeypatch.setattr(tiling, "free_mb", lambda free=free: free)
        assert tiling.default_mb() == wanted
    monkeypatch.undo()
    free = tiling.free_mb()
    assert free is None or free > 0
    assert tiling.used_mb() > 50


def test_memory_grows_with_width_and_frames() -> None:
    t, s = efficientsci("t"), efficientsci("s")
    for engine in ("torch", "openvino", "reference"):
        assert bytes_per_pixel(s, 8, engine) > bytes_per_pixel(t, 8, engine)
        assert bytes_per_pixel(t, 50, engine) > 50 / 8 * bytes_per_pixel(t, 8, engine)
    assert bytes_per_pixel(t, 8, "openvino", "bf16") < bytes_per_pixel(t, 8, "openvino", "f32")


@pytest.mark.parametrize(("name", "network"), [("tiny", TINY), ("gap-tv", GapTV())])
def test_tiled_is_whole(
    name: str, network: torch.nn.Module, model: Path, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GAP-TV sees 156 pixels and has to be blended; the little network is exact."""
    needed = budget(network, 62 * 70, 4, (96, 120)) + int(patches_mb(network, 4, 62, 70))
    memory = needed if name == "tiny" else 100 + FIXED_MB + 1
    chosen = str(model) if name == "tiny" else name
    out, report = f"{tmp_path}/a.npz", f"{tmp_path}/a.json"
    flags = ["--model", chosen, "--out", out, "--json", report, "--engine", "torch"]
    assert main(["reconstruct", str(measured), *flags, "--memory-mb", "2000"]) == 0
    assert "tiles" not in capsys.readouterr().out
    whole, first = read_arrays(out)["video"], json.loads(Path(report).read_text())
    if name == "gap-tv":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiling, "CONTEXT", 20)
            patch.setattr("bitlens.engine.memory.bytes_per_pixel", lambda *_: 2**20 / 5000)
            assert main(["reconstruct", str(measured), *flags, "--memory-mb", str(memory)]) == 0
    else:
        assert main(["reconstruct", str(measured), *flags, "--memory-mb", str(memory)]) == 0
    shown, second = capsys.readouterr().out, json.loads(Path(report).read_text())
    assert re.search(r"\d x \d tiles of \d+x\d+ within", shown) and "where they meet" not in shown
    assert second["settings"]["tiles"] in shown.replace("\n", " ") and first["settings"]["tiles"] is None
    error = np.abs(read_arrays(out)["video"] - whole).max()
    assert error < (1e-5 if name == "tiny" else 0.03)
    assert abs(first["psnr"] - second["psnr"]) < 0.01


@pytest.mark.parametrize("mosaic", [False, True])
def test_a_network_that_sees_farther_than_it_says(
    mosaic: bool, model: Path, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Its tiles differ from the whole, which is said."""
    true = EfficientSCI.forward
    monkeypatch.setattr(EfficientSCI, "radius", 2)
    monkeypatch.setattr(
        EfficientSCI, "forward", lambda self, y, mask: true(self, y, mask) + 0.3 * (60 * y.mean()).sin()
    )
    monkeypatch.setattr("bitlens.engine.memory.patches_mb", lambda *_: 0.0)
    size = (48, 60) if mosaic else (96, 120)
    memory = str(budget(TINY, size[0] * size[1] // 3, 4, size))
    flags = ["--model", str(model), "--engine", "torch", "--memory-mb", memory, "--out", f"{tmp_path}/a.npz"]
    assert main(["reconstruct", str(measured), *flags, *(["--bayer", "RGGB"] if mosaic else [])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 pixels of context: all that the network sees" in shown
    assert re.search(r"note: tiny: neighbouring tiles differ by \S+ \(rms, white is 1\) where they meet", shown), shown
    assert "wanted 0.0039 or less, from a network that sees no farther than it says; give more --memory-mb" in shown


@pytest.mark.parametrize("name", ["a.gif", "frames", "a.npz"])
def test_an_interruption_leaves_nothing(
    name: str, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupted(self: GapTV, measurement: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(measurement.shape)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return torch.full((1, 1, *mask.shape[1:]), 0.5)

    monkeypatch.setattr(GapTV, "forward", interrupted)
    before = sorted(tmp_path.iterdir())
    flags = ["--model", "gap-tv", "--out", f"{tmp_path}/{name}", "--json", f"{tmp_path}/r.json"]
    assert main(["reconstruct", str(measured), *flags]) == 130
    assert len(calls) == 2 and sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_bad_budgets_are_refused(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reconstruct", str(measured), "--model", "gap-tv", "--out", f"{tmp_path}/a.gif", "--memory-mb"]
    for memory, message in (("0", "--memory-mb 0; wanted"), ("20", "do not hold the smallest tile")):
        assert main([*command, memory]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "a.gif").exists()


STREAM = """
import gc, re, sys
from pathlib import Path
from bitlens.cli import main, shared
found, right = {}, shared.reconstructions

def used():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def watched(*arguments):
    for index, one in enumerate(right(*arguments)):
        if index + 1 in (100, 1000):
            found[index + 1] = used()
        yield one

shared.reconstructions = watched
assert main(sys.argv[1:]) == 0
print(f"memory {found[100]:.1f} {found[1000]:.1f}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("kind", "out"), [("gap-tv", "a.gif"), ("tiny", "a.npz"), ("gap-tv", "a.mp4")])
def test_a_thousand_measurements_in_constant_memory(kind: str, out: str, model: Path, tmp_path: Path) -> None:
    """Less than 20 MB more after 1000 measurements than after 100; as an array the 900 between would be 66 MB."""
    if out.endswith(".mp4"):
        pytest.importorskip("av", reason="PyAV (bitlens[video]) is not installed")
    frames, size = 8, 48
    mask = random_mask(frames, size, size, 0)
    counts = np.random.default_rng(0).integers(200, 4000, (1000, size, size)).astype(np.uint16)
    write_npz(tmp_path / "y.npz", measurement=counts * (mask.sum(0) / frames).astype(np.float32), mask=mask, axes="thw")
    chosen = str(model) if kind == "tiny" else kind
    command = ["reconstruct", f"{tmp_path}/y.npz", "--model", chosen, "--out", f"{tmp_path}/{out}"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # small pictures: two threads would wait for each other
    run = subprocess.run([sys.executable, "-c", STREAM, *command], capture_output=True, text=True, env=alone)
    assert run.returncode == 0, run.stderr
    before, after = map(float, run.stdout.split("memory ")[1].split())
    assert after - before < 20, f"{before} MB after 100 measurements, {after} MB after 1000"
