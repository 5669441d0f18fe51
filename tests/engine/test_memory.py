"""The memory that tiles are chosen by is at least what a process takes, and not much more."""

import json
import subprocess
import sys

import pytest

from bitlens.engine.memory import bytes_per_pixel
from bitlens.engine.registry import ENGINES, memory_of
from bitlens.networks.efficientsci import EfficientSCI

MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from bitlens import checkpoint
from bitlens.inference.machine import keep_freed_memory
from bitlens.engine import registry
from bitlens.engine.memory import bytes_per_pixel, fixed_mb, patches_mb

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

model, engine, side, frames = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
network = checkpoint.load(model)
keep_freed_memory()
running, _ = registry.choose_engine(network, engine)
mask = (torch.rand(1, frames, side, side) < 0.5).float()
measurement = mask.sum(1)
base = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
with torch.inference_mode():
    for _ in range(2):
        running(measurement, mask)
need = side * side * bytes_per_pixel(network, frames, engine, getattr(running, "precision", "f32")) / 2**20
patches = patches_mb(network, frames, side, side) if engine == "torch" else 0.0
print(json.dumps([status("VmHWM") - base, need, fixed_mb(network) + patches]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("model", "engine", "side", "frames"),
    [
        ("efficientsci-t", "torch", 192, 8),
        ("efficientsci-t", "torch", 96, 32),
        ("efficientsci-t", "torch", 64, 8),
        ("efficientsci-t", "torch", 128, 8),
        ("efficientsci-t-qsci-w8a8", "torch", 128, 8),
        ("efficientsci-t", "openvino", 256, 8),
        ("efficientsci-t-qsci-w8a8", "openvino", 256, 8),
        ("efficientsci-t-qsci-w8a8", "openvino", 128, 32),
        ("efficientsci-t-qsci-w8a8", "onnxruntime", 128, 8),
        pytest.param("efficientsci-t-qsci-w4a4", "native", 256, 8, marks=pytest.mark.kernels),
        pytest.param("efficientsci-t-qsci-w8a8", "native", 256, 8, marks=pytest.mark.kernels),
        pytest.param("dun-w4a4", "native", 256, 8, marks=pytest.mark.kernels),
        ("gap-tv", "torch", 256, 8),
    ],
)
def test_what_is_planned_is_enough(model: str, engine: str, side: int, frames: int) -> None:
    command = [sys.executable, "-c", MEASURE, model, engine, str(side), str(frames)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    taken, need, fixed = json.loads(run.stdout.splitlines()[-1])
    assert 0.4 * need < taken < need + fixed, f"{taken:.0f} MB were taken; {need:.0f} + {fixed:.0f} MB were planned"


def test_the_tensors_of_a_network_that_says_nothing_of_its_memory_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = EfficientSCI(8, 1, 2), EfficientSCI(16, 1, 2)
    stated = bytes_per_pixel(small, 8)
    monkeypatch.delattr(EfficientSCI, "memory")
    assert 0.3 * stated < bytes_per_pixel(small, 8) < 3 * stated
    assert 1.5 * bytes_per_pixel(small, 8) < bytes_per_pixel(large, 8) < 2 * bytes_per_pixel(small, 8)
    assert bytes_per_pixel(small, 16) > 1.9 * bytes_per_pixel(small, 8)


def test_whose_memory_it_is() -> None:
    class Engine:
        def __call__(self) -> None:
            """Nothing."""

    network = EfficientSCI(8, 1, 2)
    assert memory_of(network, network) == "torch" and memory_of(EfficientSCI(8, 1, 2), network) == "reference"
    for engine, entry in ENGINES.items():
        for module in entry.modules:
            Engine.__module__ = f"bitlens.engine.{module}"
            assert memory_of(Engine(), network) == engine
