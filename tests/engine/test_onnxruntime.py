"""ONNX Runtime as an engine: called like the network, says what ran each layer, starts fast the second time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.engine import onnxruntime as engine_module
from bitlens.engine.checks import snr
from bitlens.engine.onnxruntime import Engine
from bitlens.methods import quantize
from bitlens.networks.classical import GapTV
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.layers import Quantized, quantized_layers

MASK = (torch.rand(1, 4, 16, 18, generator=torch.Generator().manual_seed(1)) < 0.5).float()
DATA = (MASK * 0.5).sum(1), MASK


def low_network(bits: int = 8) -> EfficientSCI:
    network, _ = quantize(EfficientSCI(8, 1, 2).eval(), "direct", [DATA], bits=bits)
    assert isinstance(network, EfficientSCI)
    return network


@pytest.mark.parametrize("bits", [8, 4])
def test_called_like_the_network(bits: int, tmp_path: Path) -> None:
    network = low_network(bits)
    engine = Engine(network, threads=1, cache=tmp_path)
    found = engine(*DATA)
    with torch.no_grad():
        assert snr(found, network(*DATA)) > 10
    array = engine(DATA[0].numpy(), DATA[1].numpy())
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    np.testing.assert_array_equal(array, found.numpy())


def test_the_profile_names_the_kernel_of_every_layer(tmp_path: Path) -> None:
    network = low_network()
    layers = {name for name, layer in quantized_layers(network).items() if isinstance(layer, Quantized)}
    integer = Engine(network, threads=1, cache=tmp_path)
    assert integer.kernels() == dict.fromkeys(layers, "MatMulInteger on CPUExecutionProvider")
    assert {check.name for check in integer.checks if "MatMulInteger" in check.kernel} == layers
    readable = Engine(network, form="qdq", threads=1, cache=tmp_path).kernels()
    assert set(readable) == layers and all("Conv on" in kernel for kernel in readable.values())


def test_the_second_start_builds_and_checks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = low_network()
    first = Engine(network, threads=1, cache=tmp_path)
    wanted = first(*DATA)

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(engine_module, "build", fails)
    second = Engine(network, threads=1, cache=tmp_path)
    assert torch.equal(second(*DATA), wanted) and second.checks == first.checks
    with pytest.raises(AssertionError, match="built again"):
        Engine(low_network(4), threads=1, cache=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a model"])
def test_a_damaged_cache_is_made_anew(damage: bytes, tmp_path: Path) -> None:
    network = low_network()
    wanted = Engine(network, threads=1, cache=tmp_path)(*DATA)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100] + damage)
    again = Engine(network, threads=1, cache=tmp_path)
    assert torch.equal(again(*DATA), wanted) and len(again.checks) == len(quantized_layers(network))


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="network GapTV has no layers; wanted one with"):
        Engine(GapTV(), cache=tmp_path)
    with pytest.raises(ValueError, match="0 threads; wanted 1 or more"):
        Engine(EfficientSCI(8, 1, 2), threads=0, cache=tmp_path)
