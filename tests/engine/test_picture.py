"""Networks that enlarge pictures: the graph is read off the network, runs in integers, and computes the same."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import some
from torch import Tensor, nn

from bitlens.engine import openvino as engine_module
from bitlens.engine.checks import snr
from bitlens.engine.export import export_onnx, export_openvino
from bitlens.engine.lower import IntegerLayer, lower
from bitlens.engine.openvino import WRONG, Engine, missing
from bitlens.engine.picture import PictureGraph, build_picture
from bitlens.engine.runtime import KEPT, PictureRuntime, openvino
from bitlens.methods import quantize, recipe_of
from bitlens.metrics import psnr_sci
from bitlens.networks.edsr import EDSR
from bitlens.networks.imdn import IMDN
from bitlens.networks.ngswin import NGswin
from bitlens.networks.pan import PAN
from bitlens.networks.smfanet import SMFANet
from bitlens.networks.swinir import SwinIR
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.recipe import Bits, Recipe, Rule

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "EDSR": lambda: EDSR(2, 8, 1),
    "IMDN": lambda: IMDN(2, 16, 1),
    "PAN": lambda: PAN(4, 8, 4, 1),
    "SMFANet": lambda: SMFANet(3, 8, 1),
    "SwinIR, light": lambda: SwinIR(2, 8, 1, 2, 2, window=4, hidden=16),
    "SwinIR, classical": lambda: SwinIR(4, 8, 1, 2, 2, window=4, hidden=16, features=8),
    "NGswin": lambda: NGswin(2, 16, (2, 1, 1, 2), (2, 2, 2, 2), 4, 16),
}


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def picture(height: int = 19, width: int = 22, batch: int = 1, seed: int = 1) -> Tensor:
    coarse = torch.rand(batch, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def quantized(network: nn.Module, bits: int, **settings: Any) -> nn.Module:
    low, _ = quantize(network, "minmax", [(picture(24, 24, 2, seed),) for seed in range(2)], bits=bits)
    return low


def near(large: Tensor) -> Tensor:
    """A truth that the float network is 34 dB from, as good ones are."""
    return large + 0.02 * torch.randn(large.shape, generator=torch.Generator().manual_seed(2))


def engine_of(network: nn.Module, cache: Path, **settings: Any) -> Engine:
    return Engine(network, **{"precision": "f32", "threads": 1, "cache": cache, **settings})


@pytest.mark.parametrize("name", some(NETWORKS, "IMDN", "PAN", "SwinIR, light"))
def test_float_networks_compute_what_torch_computes(name: str, tmp_path: Path) -> None:
    network, images = network_of(name), picture(batch=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    engine = engine_of(network, tmp_path)
    with torch.no_grad():
        wanted = network(images)
    with torch.inference_mode():
        found = engine(images)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    as_array = engine(images.numpy())
    assert isinstance(as_array, np.ndarray) and as_array.dtype == np.float32
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any("Value" in type(value).__name__ for value in network.buffers())


@pytest.mark.parametrize(
    ("name", "bits"),
    some(
        product(["IMDN", "PAN", "SMFANet", "SwinIR, light", "NGswin"], [8, 4]),
        *[("IMDN", 8), ("PAN", 4), ("SMFANet", 8), ("SwinIR, light", 8), ("SwinIR, light", 4)],
    ),
)
def test_every_layer_computes_what_the_reference_computes(name: str, bits: int, tmp_path: Path) -> None:
    network = network_of(name)
    low = quantized(network, bits)
    engine = engine_of(low, tmp_path)
    assert {check.name for check in engine.checks} >= set(quantized_layers(low))
    assert all(check.snr == check.snr_f32 > WRONG["f32"] for check in engine.checks)
    for check in engine.checks:
        if isinstance(low.get_submodule(check.name), Quantized):
            assert check.kernel.upper().endswith("_I8") == (check.name in engine.lowered.layers), check
    image = picture(24, 24)
    with torch.no_grad():
        truth, simulated = near(network(image)[0]), low(image)[0]
    assert psnr_sci(engine(image)[0], truth) == pytest.approx(psnr_sci(simulated, truth), abs=0.02)


def test_what_is_not_direct_computes_in_float_what_was_trained(tmp_path: Path) -> None:
    rules = (Rule("*", Bits(4, 4, weight_granularity="tensor", zero_point="free", parametrization="bound")),)
    low, _ = quantize(network_of("SwinIR, light"), Recipe("b", rules), [(picture(24, 24),)])
    engine = engine_of(low, tmp_path)
    assert "corrected" in {outcome.way for outcome in engine.lowered.report}
    assert all(check.snr > WRONG["f32"] for check in engine.checks)
    assert any(check.kernel.endswith("_f32") for check in engine.checks)


@pytest.mark.parametrize("name", ["IMDN", "SwinIR, light"])  # channels in axis 1, and in the last one of four
def test_inputs_with_a_scale_for_each_channel_compute_in_float(name: str, tmp_path: Path) -> None:
    low, _ = quantize(network_of(name), recipe_of("direct", 8, "official"), [(picture(24, 24),)])
    assert all(check.snr > WRONG["f32"] for check in engine_of(low, tmp_path).checks)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert min(export_onnx(low, tmp_path / "net.onnx", size=(16, 24)).values()) > WRONG["f32"]


@pytest.mark.parametrize(
    ("features", "most", "in_16_bits"),
    [
        ("flags : sse4_2 avx2 fma", "", True),
        ("flags : avx2 avx512f avx512_vnni", "", False),
        ("flags : avx2 avx_vnni", "", False),
        ("flags : avx2 avx512f avx512_vnni", "AVX2", True),
        ("flags : avx2 avx_vnni", "AVX2_VNNI", False),
        ("Features : asimd asimddp", "", False),
        ("arm64", "", False),
    ],
)
def test_which_cpus_add_in_16_bits(features: str, most: str, in_16_bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "cpu_features", lambda: features)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert engine_module.adds_in_16_bits() == in_16_bits


def test_without_vnni_layers_that_saturate_are_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products of 8 bits do not fit in the 16 bits that such CPUs add them up in; those of 4 bits do."""
    monkeypatch.setattr(engine_module, "adds_in_16_bits", lambda: True)
    rules = (Rule("*.c2", Bits(4, 4)), Rule("*", Bits(8, 8)))
    low, _ = quantize(network_of("IMDN"), Recipe("m", rules, activation_range="minmax"), [(picture(24, 24),)])
    engine = engine_of(low, tmp_path)
    for check in engine.checks:
        whole = check.name.endswith(".c2")
        assert check.snr > WRONG["f32"] and check.kernel.upper().endswith("_I8" if whole else "_F32"), check
    ways = {outcome.name: outcome.way for outcome in engine.lowered.report}
    assert (ways["IMDB1.c1"], ways["IMDB1.c2"]) == ("float", "direct")
    layer = lower(low).layers["IMDB1.c1"]
    assert isinstance(layer, IntegerLayer)
    for largest, saturates in ((64, False), (65, True)):  # 2 * 255 * 64 = 32,640
        assert replace(layer, weight=torch.full_like(layer.weight, -largest)).saturates == saturates


def test_bf16_on_demand(tmp_path: Path) -> None:
    low = quantized(network_of("IMDN"), 8)
    assert engine_of(low, tmp_path, precision="auto", check=False).precision == "f32"
    try:
        engine = engine_of(low, tmp_path, precision="bf16")
    except ValueError as error:
        pytest.skip(str(error))
    assert all(check.snr_f32 > WRONG["f32"] and check.snr > 20 for check in engine.checks)


def test_a_layer_that_computes_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PictureGraph.weight

    def wrong(self: PictureGraph, name: str, module: nn.Module, window: tuple[int, ...] = ()) -> Any:
        weight = right(self, name, module, window)
        return self.ops.multiply(weight, np.float32(1.1)).output(0) if name == "IMDB1.c2" else weight

    monkeypatch.setattr(PictureGraph, "weight", wrong)
    with pytest.raises(ValueError, match=r"OpenVINO computes layer IMDB1.c2 \(.*\) wrongly: .* run .* in torch"):
        engine_of(quantized(network_of("IMDN"), 8), tmp_path)
    assert not list(tmp_path.iterdir())


class Strange(nn.Module):
    """Asks for what the graph does not have."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).cumsum(3)


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    assert missing(Strange()) == "the network uses cumsum; wanted operations that a graph here has"
    with pytest.raises(TypeError, match="the network uses cumsum; wanted operations that a graph here has; run it"):
        engine_of(Strange(), tmp_path, check=False)
    assert missing(nn.Identity()) == "network Identity has no layers; wanted one with convolutions or linear layers"


class Formulas(nn.Module):
    """A network for pictures with a layer that a test asks nothing of."""

    scale = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)


class Weighted(Formulas):
    """A difference whose second part has a weight, as torch's alpha."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.sub(image, image.sqrt(), alpha=0.25)


def test_sums_have_weights(tmp_path: Path) -> None:
    torch.testing.assert_close(engine_of(Weighted(), tmp_path, check=False)(picture()), Weighted()(picture()))


class Bright(Formulas):
    """Closes what is dark, in two ways, and repeats the border."""

    def forward(self, image: Tensor) -> Tensor:
        bright = image > 0.5 * image.amax(dim=(2, 3), keepdim=True)
        picked = torch.where(bright.sum(1, keepdim=True) == 3, image, torch.zeros_like(image)) + image * bright
        return F.pad(picked, (1, 2, 0, 3), "replicate")[..., 1:]


def test_conditions_count_as_numbers(tmp_path: Path) -> None:
    torch.testing.assert_close(engine_of(Bright(), tmp_path, check=False)(picture()), Bright()(picture()))


def test_masks_are_held_once() -> None:
    network = SwinIR(2, 8, 1, 6, 2, window=4, hidden=8).eval()  # three of six blocks have shifted windows
    model, _ = build_picture(network, lower(network), 24, 20)
    masks = [op for op in model.get_ops() if op.get_type_name() == "Constant" and list(op.shape) == [30, 1, 16, 16]]
    assert len(masks) == 1


def test_the_second_start_builds_and_checks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low, image = quantized(network_of("PAN"), 8), picture()
    first = engine_of(low, tmp_path)
    wanted = first(image)

    def fails(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(Engine, "build", fails)
    monkeypatch.setattr(engine_module, "check_layers", fails)
    second = engine_of(low, tmp_path)
    assert torch.equal(second(image), wanted) and second.checks == first.checks
    with pytest.raises(AssertionError, match="built again"):
        second(picture(9, 9))


def test_few_sizes_are_held(tmp_path: Path) -> None:
    engine = engine_of(network_of("EDSR"), tmp_path, check=False)
    for height in range(8, 12):
        engine(picture(height, 8))
    assert list(engine.runtime.compiled) == [(12 - KEPT + i, 8) for i in range(KEPT)]


def test_pictures_are_recalled_without_torch(tmp_path: Path) -> None:
    engine, image = engine_of(network_of("EDSR"), tmp_path, check=False), picture().numpy()
    np.savez(tmp_path / "data.npz", image=image, large=engine(image))
    engine.runtime.remember("key", "note")
    assert PictureRuntime.recall("key", tmp_path, (64, 64)) is None
    code = f"""
import sys, pathlib, numpy as np
from bitlens.engine.runtime import PictureRuntime
folder = pathlib.Path({str(tmp_path)!r})
runtime, note = PictureRuntime.recall("key", folder, {image.shape[2:]})
data = np.load(folder / "data.npz")
assert np.array_equal(runtime(data["image"]), data["large"])
print(note, "torch" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "note False", run.stderr


def test_profile_counts_every_layer(tmp_path: Path) -> None:
    engine = engine_of(quantized(network_of("SwinIR, light"), 4), tmp_path, check=False)
    costs = {cost.name: cost for cost in engine.profile(picture())}
    linear = [name for name, layer in quantized_layers(engine.network).items() if isinstance(layer, Quantized)]
    assert all(costs[name].kernel.upper().endswith("I8") and costs[name].milliseconds >= 0 for name in linear)


@pytest.mark.parametrize("name", ["IMDN", "SwinIR, light"])
def test_plain_openvino_loads_what_is_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    low, image = quantized(network_of(name), 8), picture(17, 20)
    checks = export_openvino(low, tmp_path / "net.xml", 17, 20)
    assert min(check.snr_f32 for check in checks) > WRONG["f32"]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino().Core().compile_model(tmp_path / "net.xml", "CPU", settings)
    found = torch.from_numpy(compiled({"image": image.numpy()})["large"])
    torch.testing.assert_close(found, engine_of(low, tmp_path, check=False)(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bits"),
    some([*((name, 8) for name in NETWORKS), ("SwinIR, light", 4)], ("IMDN", 8), ("PAN", 8), ("SwinIR, light", 4)),
)
def test_onnxruntime_loads_what_is_exported(name: str, bits: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    network, image = network_of(name), picture(16, 24)
    low = quantized(network, bits)
    assert min(export_onnx(low, tmp_path / "net.onnx", size=(16, 24)).values()) > WRONG["f32"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["large"], {"image": image.numpy()})
    with torch.no_grad():
        truth, simulated = near(network(image)[0]), low(image)[0]
    assert found.shape == (1, *truth.shape)
    assert psnr_sci(torch.from_numpy(found[0]), truth) == pytest.approx(psnr_sci(simulated, truth), abs=0.02)
    assert snr(torch.from_numpy(found[0]), simulated) > 20


def test_sizes_that_cannot_be_exported(tmp_path: Path) -> None:
    low = quantized(network_of("SMFANet"), 8)
    with pytest.raises(ValueError, match=r"pools 19x22 pixels .* wanted a height and a width that are multiples of 8"):
        export_onnx(low, tmp_path / "net.onnx", size=(19, 22))
    with pytest.raises(ValueError, match=r"no size of pictures came, and .*; wanted height, width; give"):
        export_onnx(low, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="form integer of SMFANet; wanted qdq, the only one it has; leave it out"):
        export_onnx(low, tmp_path / "net.onnx", "integer", (24, 24))
    with pytest.raises(ValueError, match="pictures of 0x5; wanted height, width, each 1 or more; change them"):
        export_openvino(low, tmp_path / "net.xml", 0, 5)
    assert not list(tmp_path.iterdir())
