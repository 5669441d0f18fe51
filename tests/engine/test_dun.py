"""Deep unfolding networks on OpenVINO: physics and priors in one graph that is read off the network, in integers."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import some
from torch import Tensor, nn

from bitlens import checkpoint
from bitlens.engine.checks import snr
from bitlens.engine.export import export_onnx, export_openvino, sizes_in
from bitlens.engine.functional import FunctionalGapTV
from bitlens.engine.openvino import WRONG, Engine
from bitlens.engine.runtime import openvino
from bitlens.methods import quantize
from bitlens.metrics import psnr_sci
from bitlens.networks.classical import GapTV
from bitlens.networks.dun import DUN
from bitlens.operators import normalized_measurement
from bitlens.quant.layers import quantized_layers
from bitlens.recipe import Bits, Recipe, Rule

SIZES = [(4, 16, 24, 1), (5, 19, 21, 2), (1, 8, 8, 1)]
"""Frames, height, width, batch."""


def float_network() -> DUN:
    torch.manual_seed(0)
    network = DUN(2, (8, 12, 16), (1, 1, 1), 2).eval()
    for prior in network.priors:
        nn.init.normal_(prior.tail.weight, std=0.02)  # type: ignore[union-attr]
    return network


def capture(frames: int, height: int, width: int, batch: int = 1, masks: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(masks, frames, height, width, generator=generator) < 0.5).float()
    mask[:, :, 0, 0], mask[:, :, 0, 1] = 0, 1  # a pixel that no frame opens, and one that all do
    return (mask * torch.rand(batch, frames, height, width, generator=generator)).sum(1), mask


def quantized(network: DUN, bits: int) -> DUN:
    rules = Rule("*.head", Bits(8, 8)), Rule("*.tail", Bits(8, 8)), Rule("*", Bits(bits, bits))
    recipe = Recipe("all", rules, weight_range="lsq", activation_range="percentile")
    low, _ = quantize(network, recipe, [capture(4, 24, 24)])
    assert isinstance(low, DUN)
    return low


def engine_of(network: nn.Module, cache: Path, **settings: Any) -> Engine:
    return Engine(network, **{"precision": "f32", "threads": 1, "cache": cache, **settings})


@pytest.mark.parametrize("size", [*SIZES, (2, 1, 5, 1)])
def test_gap_tv_as_formulas(size: tuple[int, int, int, int]) -> None:
    network, data = GapTV(5, 0.2, 3), capture(*size)
    torch.testing.assert_close(FunctionalGapTV(network)(*data), network(*data), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES[:2])
@torch.no_grad()
def test_squares_of_pixels_as_channels_change_no_bit(size: tuple[int, int, int, int]) -> None:
    """The network's formulas, pixel by pixel, in the units of the camera."""
    network, (measurement, mask) = float_network(), capture(*size)
    wanted = network(measurement, mask)
    height, width = measurement.shape[1:]
    pad = (0, -width % 8, 0, -height % 8)
    measurement, mask = F.pad(measurement, pad, "replicate"), F.pad(mask, pad, "replicate")
    video, features = network.start(measurement, mask).squeeze(1), None  # b t h w
    mean = normalized_measurement(measurement, mask).unsqueeze(1).expand_as(video)
    energy = mask.square().sum(1)
    for step, prior in zip(network.steps, network.priors, strict=True):
        residual = (measurement - (mask * video).sum(1)) / energy.where(energy != 0, 1.0)
        correction = mask * residual.unsqueeze(1)
        video = video + step * correction
        known = torch.stack([video, mask.expand_as(video), mean, correction], dim=2)  # b t 4 h w
        change, features = prior(F.pixel_unshuffle(known, 2), features)
        video = video + F.pixel_shuffle(change, 2).squeeze(2)
    assert torch.equal(wanted[:, 0], video[..., :height, :width])


def test_a_float_network_computes_what_torch_computes(tmp_path: Path) -> None:
    network = float_network()
    engine = engine_of(network, tmp_path)
    for size in SIZES:  # each is compiled, by one engine
        data = capture(*size)
        with torch.no_grad():
            wanted = network(*data)
        with torch.inference_mode():
            found = engine(*data)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    measurement, mask = capture(4, 16, 24, 2, masks=2)
    found = engine(measurement.numpy(), mask.numpy())
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(found, network(measurement, mask).numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_files_need_measurement_and_mask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    low, size = quantized(float_network(), 8), (3, 9, 12)
    data = capture(*size)
    named = dict(zip(("measurement", "mask"), (one.numpy() for one in data), strict=True))
    with torch.no_grad():
        simulated = low(*data)
    assert min(check.snr_f32 for check in export_openvino(low, tmp_path / "net.xml", *size)) > WRONG["f32"]
    compiled = openvino().Core().compile_model(tmp_path / "net.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert snr(torch.from_numpy(compiled(named)["video"]), simulated) > 30
    with pytest.raises(ValueError, match="measurements of 0x9x12; wanted frames, height, width, each 1 or more"):
        export_openvino(low, tmp_path / "none.xml", 0, 9, 12)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert min(export_onnx(low, tmp_path / "net.onnx").values()) > WRONG["f32"]
    assert sizes_in(tmp_path / "net.onnx") == "any frames and height and width; batches of one"
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for other in (size, (2, 17, 16)):
        data = capture(*other)
        (found,) = session.run(["video"], {"measurement": data[0].numpy(), "mask": data[1].numpy()})
        with torch.no_grad():
            simulated = low(*data)
        assert found.shape == simulated.shape and snr(torch.from_numpy(found), simulated) > 30
    with pytest.raises(ValueError, match="form integer of DUN; wanted qdq, the only one it has; leave it out"):
        export_onnx(low, tmp_path / "none.onnx", "integer")


@pytest.mark.parametrize("bits", some([8, 4], 4))
def test_every_layer_computes_what_the_reference_computes(bits: int, tmp_path: Path) -> None:
    network = float_network()
    low = quantized(network, bits)
    engine = engine_of(low, tmp_path)
    assert {check.name for check in engine.checks} == set(quantized_layers(low))
    assert all(check.snr == check.snr_f32 > WRONG["f32"] for check in engine.checks)
    assert any(check.kernel.endswith("_I8") for check in engine.checks) or bits == 8  # without VNNI
    for check in engine.checks:
        assert check.kernel.endswith("_I8") == (check.name in engine.lowered.layers), check
    data = capture(5, 19, 21)
    with torch.no_grad():
        truth, simulated = network(*data), low(*data)
    truth = truth + 0.02 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))  # as if 34 dB away
    found = engine(*data)
    assert psnr_sci(found[0, 0], truth[0, 0]) == pytest.approx(psnr_sci(simulated[0, 0], truth[0, 0]), abs=0.02)
    assert snr(found, simulated) > 30
    costs = {cost.name: cost for cost in engine.profile(*data, runs=1)}
    assert all(costs[check.name].kernel == check.kernel for check in engine.checks)


def test_nothing_is_moved_within_a_prior(tmp_path: Path) -> None:
    """Squares of pixels become channels, or channels pixels, once for each prior's head, ups and tail; no more."""
    engine = engine_of(float_network(), tmp_path, check=False)
    compiled = engine.runtime.compile(4, 16, 24)
    ops = compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(op.get_rt_info()["layerType"].value for op in ops)
    assert kinds["Convolution"] == len(engine.lowered.report) and kinds["Transpose"] == 2 * 4


def test_bf16_on_demand(tmp_path: Path) -> None:
    low = quantized(float_network(), 8)
    assert engine_of(low, tmp_path, precision="auto", check=False).precision == "f32"
    try:
        engine = engine_of(low, tmp_path, precision="bf16")
    except ValueError as error:
        pytest.skip(str(error))
    assert all(check.snr_f32 > WRONG["f32"] and check.snr > 20 for check in engine.checks)


def test_save_load_and_recall(tmp_path: Path) -> None:
    low, data = quantized(float_network(), 4), capture(4, 15, 17)
    engine = engine_of(low, tmp_path, check=False)
    video = engine(*data)
    loaded = checkpoint.load(checkpoint.save(low, tmp_path / "net.safetensors"))
    assert isinstance(loaded, DUN) and loaded.config == low.config
    with torch.no_grad():
        assert torch.equal(loaded(*data), low(*data))
    assert torch.equal(engine_of(loaded, tmp_path, check=False)(*data), video)
    engine.runtime.remember("key", "note")
    np.savez(tmp_path / "data.npz", *data, video)
    code = f"""
import sys, pathlib, numpy as np
from bitlens.engine.runtime import Compiled
folder = pathlib.Path({str(tmp_path)!r})
runtime, note = Compiled.recall("key", folder, (4, 15, 17))
measurement, mask, video = np.load(folder / "data.npz").values()
assert np.array_equal(runtime(measurement, mask), video)
print(type(runtime).__name__, note, "torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "VideoRuntime note False", run.stderr
