"""Kernels that differ from their scalar references on this machine are refused before they run a network."""

from typing import Any

import numpy as np
import pytest
import torch

from bitlens.engine import plan, swin
from bitlens.engine.checks import ComputesWrongly
from bitlens.engine.native import Engine
from bitlens.engine.selfcheck import check_layers, refuse_unless_equal
from bitlens.methods import quantize
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.swinir import SwinIR

try:
    bk: Any = plan.kernels()
    LEVELS = [level for level in bk.levels() if level != "scalar"]
except ImportError:
    bk, LEVELS = None, []

ONLY_SCALAR = bk is not None and not LEVELS
pytestmark = [pytest.mark.kernels, pytest.mark.skipif(ONLY_SCALAR, reason="this CPU has scalar kernels only")]


def network_of(bits: int) -> torch.nn.Module:
    data = torch.rand(1, 16, 16), (torch.rand(1, 4, 16, 16) < 0.5).float()
    return quantize(EfficientSCI(8, 2, 2).eval(), "qsci", [data], bits=bits)[0]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_level_equals_its_twins(level: str, bits: int) -> None:
    for precision in ("f32", "bf16"):
        engine = Engine(network_of(bits), threads=1, level=level, precision=precision)
    layers = [layer for name, layer in engine.integers.items() if not name.endswith(("scores", "mix"))]
    assert 5 < check_layers(engine.integers, level, engine.kind) < len(layers)  # each kind once


def test_a_wrong_convolution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pack = network_of(4), bk.Convolution.__init__

    def wrong(self: Any, weights: np.ndarray, *, method: str, level: str, **geometry: Any) -> None:
        weights = np.where(weights == weights.max(), weights - 1, weights) if method == "winograd2" else weights
        pack(self, weights, method=method, level=level, **geometry)

    monkeypatch.setattr(bk.Convolution, "__init__", wrong)
    with pytest.raises(ComputesWrongly, match=r"layer .* \(winograd2\) wrongly at level"):
        Engine(network, threads=1)
    Engine(network, threads=1, check=False)
    Engine(network_of(8), threads=1)  # it has no such layers


def test_wrong_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, bind = network_of(8), bk.bind_attend

    def wrong(constants: Any, codes: np.ndarray, target: Any, *, level: str) -> Any:
        return bind(constants, codes if level == "scalar" else codes[:, ::-1].copy(), target, level=level)

    monkeypatch.setattr(bk, "bind_attend", wrong)
    with pytest.raises(ComputesWrongly, match=r"attention resdnet_list\.0\.cformer_list\.0\.tsab wrongly"):
        Engine(network, threads=1)


def test_one_wrong_result_of_several_is_refused() -> None:
    sums, values = np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))
    refuse_unless_equal("layer a", "avx2", [sums, values], [sums, values.copy()])
    values[0, 1, 1, 2] = 1.0
    with pytest.raises(ComputesWrongly, match=r"layer a wrongly at level avx2: 8\.3% differ"):
        refuse_unless_equal("layer a", "avx2", [sums, values], [sums, np.zeros_like(values)])


@pytest.mark.parametrize("moved", [False, True])
def test_a_wrong_block_of_either_shift_is_refused(moved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = SwinIR(2, 8, 1, 2, 2, window=4, hidden=16).eval()
    low, _ = quantize(network, "minmax", [(torch.rand(1, 3, 8, 8),)], bits=8)
    block = plan.kernels("swin").SwinBlock
    bind = block.bind

    def wrong(self: Any, values: np.ndarray, result: np.ndarray, *, shift: int) -> Any:
        turned = self.level != "scalar" and moved == (shift > 0)
        return bind(self, values[:, ::-1].copy() if turned else values, result, shift=shift)

    monkeypatch.setattr(block, "bind", wrong)
    with pytest.raises(ComputesWrongly, match=rf"blocks\.{int(moved)} wrongly"):
        swin.Engine(low, threads=1)


def test_the_scalar_level_is_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.engine.native.check_layers", lambda *_: pytest.fail("nothing to compare"))
    Engine(network_of(8), threads=1, level="scalar")
