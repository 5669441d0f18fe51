"""`--engine auto`: the engine that was measured to be fastest here, unless it computes wrongly here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bitlens import checkpoint
from bitlens.bench import networks
from bitlens.engine import native, openvino, plan, registry, speeds, swin, traced
from bitlens.engine.checks import ComputesWrongly
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.swinir import SwinIR
from bitlens.recipe import Bits, Recipe, Rule

CAPTURE = torch.rand(1, 16, 16), torch.ones(1, 4, 16, 16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda network: None)
    monkeypatch.setattr(plan, "kernels", lambda: SimpleNamespace(best_level=lambda: "avx512-vnni"))


def network_of(bits: int) -> nn.Module:
    return quantize(EfficientSCI(8, 1, 2).eval(), "direct", [CAPTURE], bits=bits)[0]


def refusing(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise ComputesWrongly(f"{what} computes layer a wrongly: 3 dB; wanted 40; choose another")

    return refuse


@pytest.mark.usefixtures("with_kernels")
def test_what_was_measured_decides() -> None:
    low, high, threads = network_of(4), network_of(8), torch.get_num_threads()
    assert registry.in_order(low)[0] == "native" and registry.in_order(high)[0] == "openvino"  # the rule
    speeds.remember(low, threads, {"native": 0.3, "openvino": 0.2})
    speeds.remember(high, threads, {"native": 0.1, "openvino": 0.2})
    assert registry.in_order(low) == ["openvino", "native", "torch"]
    assert registry.in_order(high) == ["native", "openvino", "torch"]
    assert speeds.recall(high, threads + 1) == speeds.recall(network_of(3), threads) == {}
    speeds.file_of(low, threads).write_text("[")
    assert registry.in_order(low)[0] == "native"


@pytest.mark.usefixtures("with_kernels")
def test_one_layer_below_8_bits_is_enough_for_the_rule() -> None:
    rules = Rule("up_conv", Bits(4, 4)), Rule("*", Bits(8, 8))
    mixed, _ = quantize(EfficientSCI(8, 1, 2).eval(), Recipe("mixed", rules, "direct", "lsq", "percentile"), [CAPTURE])
    assert registry.in_order(mixed)[0] == "native"


@pytest.mark.usefixtures("with_kernels")
def test_what_was_measured_at_another_level_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds.remember(low := network_of(4), 1, {"native": 0.3, "openvino": 0.2})
    assert speeds.recall(low, 1) == {"native": 0.3, "openvino": 0.2}
    monkeypatch.setattr(plan, "kernels", lambda: SimpleNamespace(best_level=lambda: "avx2"))
    assert speeds.recall(low, 1) == {}


def test_residual_sums_of_video_are_bf16_at_8_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, swin):
        monkeypatch.setattr(module, "Engine", lambda network, **settings: settings)
    assert registry.native_engine(network_of(8), 3) == {"precision": "bf16", "threads": 3}
    assert registry.native_engine(network_of(4)) == {"precision": "f32", "threads": None}
    assert registry.native_engine(SwinIR(2, 8, 1, 1, 2, window=4, hidden=8))["precision"] == "f32"


@pytest.mark.usefixtures("with_kernels")
def test_one_engine_alone_is_no_measurement() -> None:
    speeds.remember(low := network_of(4), 1, {"openvino": 0.2})
    assert speeds.recall(low, 1) == {} and not speeds.file_of(low, 1).exists()


def test_the_benchmark_remembers(tmp_path: Path) -> None:
    path = tmp_path / "w4.safetensors"
    checkpoint.save(network_of(4), path)
    row = {"model": "w4", "failure": None, "engine": "OpenVINO", "precision": "4 bits", "median_s": 0.5}
    rows = [row, row | {"engine": "native kernels", "median_s": 0.25}, row | {"engine": "ONNX Runtime"}]
    rows += [row | {"precision": "4 bits, bf16 between", "median_s": 0.1}]
    rows += [row | {"model": "float", "median_s": 9.0}, row | {"failure": "died", "median_s": 8.0}]
    networks.remember_engines(str(path), rows, threads=3)
    assert speeds.recall(checkpoint.load(path), 3) == {"openvino": 0.5, "native": 0.25}
    assert json.loads(speeds.file_of(checkpoint.load(path), 3).read_text())


@pytest.mark.usefixtures("with_kernels")
def test_an_engine_that_computes_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    low = network_of(4)
    monkeypatch.setattr(registry, "native_engine", refusing("the kernel"))
    chosen, how = registry.choose_engine(low, "auto")
    assert isinstance(chosen, openvino.Engine)
    assert how == "OpenVINO, int8 in 21 of 21 layers, the rest in f32; the kernel computes layer a wrongly: 3 dB"
    monkeypatch.setattr(openvino, "Engine", refusing("OpenVINO"))
    chosen, how = registry.choose_engine(low, "auto")
    assert chosen is low and how.startswith("torch, float32, integers simulated; the kernel")
    assert how.endswith("OpenVINO computes layer a wrongly: 3 dB")
    with pytest.raises(ComputesWrongly):
        registry.choose_engine(low, "native")
    with pytest.raises(ComputesWrongly):
        registry.choose_engine(low, "openvino")


def test_without_kernels_and_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (native, traced):
        monkeypatch.setattr(module, "missing", lambda network: "not built")
    assert registry.in_order(network_of(4)) == ["openvino", "torch"]
    assert registry.in_order(EfficientSCI(8, 1, 2)) == ["openvino", "torch"]
