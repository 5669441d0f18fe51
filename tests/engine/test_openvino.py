"""OpenVINO runs quantized layers in integers, and every layer computes what the reference computes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from marks import some
from torch import Tensor, nn

from bitlens.engine import openvino as engine_module
from bitlens.engine.checks import CHECK_SIZE, snr
from bitlens.engine.graph import Graph
from bitlens.engine.openvino import WRONG, Engine, kernels_of
from bitlens.methods import quantize, recipe_of
from bitlens.networks.classical import GapTV
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.recipe import Bits, Recipe, Rule

CASES: dict[str, tuple[dict[str, Any], Recipe]] = {
    "8 bits": ({}, recipe_of("direct", 8)),
    "8 bits, four groups, colour": (dict(group_num=4, color_ch=3), recipe_of("direct", 8)),
    "8 bits with shift": (dict(shift=True), recipe_of("qsci", 8)),
    "4 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 4)),
    "3 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 3)),
    "2 bits with shift and shortcuts": (dict(shift=True, shortcuts=True), recipe_of("qsci", 2)),
    "1 bit": ({}, recipe_of("direct", 1)),
    "symmetric activations": ({}, Recipe("s", (Rule("*", Bits(zero_point="none")),))),
    "weights with one scale": ({}, Recipe("t", (Rule("*", Bits(5, 6, "tensor")),))),
}


def float_network(group_num: int = 2, **config: Any) -> EfficientSCI:
    return EfficientSCI(8, 1, group_num, **config).eval()


def capture(frames: int = 4, height: int = 16, width: int = 16, batch: int = 1) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, frames, height, width) < 0.5).float()
    return (mask * torch.rand(batch, frames, height, width)).sum(1), mask


def quantized(network: EfficientSCI, recipe: Recipe) -> EfficientSCI:
    """The network at the recipe's bits, with ranges that are found fast."""
    quick = replace(recipe, weight_range="lsq", activation_range="percentile")
    low, _ = quantize(network, quick, [capture()])
    assert isinstance(low, EfficientSCI)
    return low


def network_of(name: str) -> EfficientSCI:
    """One of the cases, quantized; weights, data and ranges differ from call to call."""
    config, recipe = CASES[name]
    return quantized(float_network(**config), recipe)


def engine_of(network: nn.Module, cache: Path, **settings: Any) -> Engine:
    return Engine(network, **{"precision": "f32", "threads": 1, "cache": cache, **settings})


@pytest.mark.parametrize(
    "name",
    some(
        CASES,
        "8 bits",
        "4 bits with shift and shortcuts",
        "2 bits with shift and shortcuts",
        "1 bit",
        "symmetric activations",
    ),
)
def test_every_layer_computes_what_the_reference_computes(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    engine = engine_of(network, tmp_path)
    assert {outcome.way for outcome in engine.lowered.report} == {"direct"} or name == "1 bit"
    assert {check.name for check in engine.checks} == set(quantized_layers(network))
    assert all(check.snr == check.snr_f32 > WRONG["f32"] for check in engine.checks)
    assert sorted(check.snr for check in engine.checks)[len(engine.checks) // 2] > 100  # but for single ties
    for check in engine.checks:
        convolution = isinstance(network.get_submodule(check.name), Quantized)
        if name != "symmetric activations" or not convolution:  # signed codes have kernels on some CPUs alone
            assert check.kernel.endswith("_I8") if convolution else check.kernel == "element-wise"
    data = capture()
    with torch.no_grad():
        assert snr(engine(*data), network(*data)) > 10  # one tie can change a whole low-bit network


@pytest.mark.parametrize(
    ("size", "whole"), some([((4, 14, 16), False), ((1, 16, 16), False), ((2, 16, 16), True)], ((4, 14, 16), False))
)
def test_tiny_inputs_compute_in_float(size: tuple[int, ...], whole: bool, tmp_path: Path) -> None:
    """Kernels of a CPU may be wrong where a window is padding for the most part; the network is the same."""
    network = quantized(float_network(), recipe_of("qsci", 4))
    engine = engine_of(network, tmp_path, check=False)
    kernels = kernels_of(engine.runtime.compile(*size), engine.names).values()
    assert any(kernel.endswith("_I8") for kernel in kernels) == whole
    data = capture(*size)
    with torch.no_grad():
        assert snr(engine(*data), network(*data)) > 10  # one tie can change a whole low-bit network


@pytest.mark.parametrize(
    "settings", [dict(activation_granularity="input_channel", zero_point="rounded"), dict(parametrization="bound")]
)
def test_what_is_not_direct_computes_in_float_what_was_trained(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe("float", (Rule("*.tsab.*"), Rule("*", Bits(4, 4, **settings))))
    network = quantized(float_network(), recipe)
    engine = engine_of(network, tmp_path)
    assert {outcome.way for outcome in engine.lowered.report} <= {"folded", "corrected", "float", "direct"}
    assert all(check.snr > WRONG["f32"] for check in engine.checks)
    assert any(check.kernel.endswith("_f32") for check in engine.checks)


@pytest.mark.parametrize("options", [{}, dict(shift=True, shortcuts=True), dict(color_ch=3)])
@pytest.mark.parametrize(("height", "width", "batch"), [(16, 16, 1), (15, 18, 2)])
def test_a_float_network(options: dict[str, Any], height: int, width: int, batch: int, tmp_path: Path) -> None:
    network = float_network(**options)
    data = capture(5, height, width, batch)
    engine = engine_of(network, tmp_path)
    with torch.no_grad():
        wanted = network(*data)
    torch.testing.assert_close(engine(*data), wanted, rtol=0, atol=1e-5)
    found = engine(data[0].numpy(), data[1].numpy())
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, engine(*data).numpy())


def test_bf16(tmp_path: Path) -> None:
    network = network_of("4 bits with shift and shortcuts")
    try:
        engine = engine_of(network, tmp_path, precision="bf16")
    except ValueError as error:
        pytest.skip(str(error))
    assert engine_of(network_of("8 bits"), tmp_path, precision="auto", check=False).precision == "bf16"
    assert all(check.snr_f32 > WRONG["f32"] and check.snr > 20 for check in engine.checks)
    assert sum(check.kernel.endswith("_I8") for check in engine.checks) == 27
    assert bool(engine(*capture()).isfinite().all())


@pytest.mark.parametrize("layer", ["fem.2", "resdnet_list.0.last_conv"])
def test_a_layer_that_computes_wrongly_is_refused(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, right = network_of("8 bits"), Graph.weight
    chosen = network.get_submodule(layer)

    def wrong(self: Graph, module: nn.Module, rows: Tensor, columns: Tensor | None) -> Any:
        weight = right(self, module, rows, columns)
        return self.multiply(weight, self.constant(1.1)) if module is chosen else weight

    monkeypatch.setattr(Graph, "weight", wrong)
    with pytest.raises(
        ValueError, match=rf"OpenVINO computes layer {layer} \(.*\) wrongly: .* run the network in torch"
    ):
        engine_of(network, tmp_path)
    assert not list(tmp_path.iterdir())
    assert engine_of(network, tmp_path, check=False).checks == []


def test_the_second_start_builds_and_checks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = network_of("8 bits"), capture()
    first = engine_of(network, tmp_path)
    wanted = first(*data)

    def fails(*_: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(engine_module.Engine, "build", fails)
    monkeypatch.setattr(engine_module, "check_layers", fails)
    second = engine_of(network, tmp_path)
    assert torch.equal(second(*data), wanted) and second.checks == first.checks
    compiled = second.runtime.compile(*CHECK_SIZE)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert kernels_of(compiled, ["fem.0"])["fem.0"].endswith("_I8")
    for other in (network_of("4 bits with shift and shortcuts"), network_of("8 bits")):  # other weights, other files
        with pytest.raises(AssertionError, match="built again"):
            engine_of(other, tmp_path)
    with pytest.raises(AssertionError, match="built again"):
        engine_of(network, tmp_path, threads=2)


def test_no_telemetry(tmp_path: Path) -> None:
    code = (
        "from bitlens.engine.runtime import openvino; import sys; openvino(); print(sys.modules['openvino_telemetry'])"
    )
    settings = {**os.environ, "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert run.stdout.strip() == "None", run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"junk" * 99]
)
def test_a_damaged_cache_is_made_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    network, data = network_of("8 bits"), capture()
    engine = engine_of(network, tmp_path)
    video, files = engine(*data), list(tmp_path.iterdir())
    assert {file.suffix for file in files} == {".blob", ".json"}
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(damage(whole[file]))
    again = engine_of(network, tmp_path)
    assert [check.name for check in again.checks] == [check.name for check in engine.checks]
    assert torch.equal(again(*data), video)
    assert all(file.read_bytes() != damage(whole[file]) for file in files)


def test_coarse_grids_run_between_float32(tmp_path: Path) -> None:
    network = network_of("4 bits with shift and shortcuts")
    assert engine_of(network, tmp_path, precision="auto", check=False).precision == "f32"


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="network GapTV has no layers; wanted one with"):
        engine_of(GapTV(), tmp_path)
    network = float_network()
    with pytest.raises(ValueError, match="precision 'int4'; wanted auto, bf16 or f32"):
        engine_of(network, tmp_path, precision="int4")
    with pytest.raises(ValueError, match="0 threads; wanted 1 or more"):
        engine_of(network, tmp_path, threads=0)
