"""Balanced channels: the float function stays, one grid serves channels of any size, and integers compute the same."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from marks import some
from torch import Tensor, nn

from bitlens.engine.lower import lower
from bitlens.engine.native import missing
from bitlens.engine.openvino import WRONG, Engine
from bitlens.engine.reference import reference_network
from bitlens.methods import quantize
from bitlens.methods.gptq import fit_weights
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.quant.calibrate import calibrate
from bitlens.quant.equalization import MOST, factors_of
from bitlens.quant.layers import Quantized, float_mode, quantized_layers
from bitlens.quant.prepare import prepare, unprepare
from bitlens.recipe import Bits, Recipe, Rule

from .everywhere import KINDS, runs_everywhere

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (2, 50, 6)),
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), (2, 6, 40)),
    "conv2d": (nn.Conv2d(6, 8, 3, padding=1, groups=2), (2, 6, 9, 8)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 9, 8)),
    "conv3d": (nn.Conv3d(6, 3, (1, 3, 3), padding=(0, 1, 1), bias=False), (2, 6, 3, 5, 4)),
    "transposed2d": (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 6, 5, 5)),
}
SIZES = torch.tensor([0.1, 0.3, 1.0, 1.0, 3.0, 10.0])
"""Of the six channels."""


def made(name: str, bits: int = 4, parametrization: Any = "step") -> tuple[nn.Module, nn.Module, Tensor]:
    """The float layer in a network, a quantized copy, and uneven inputs that it was calibrated on."""
    layer, shape = CASES[name]
    torch.manual_seed(0)
    layer.reset_parameters()  # type: ignore[operator]
    sizes = SIZES if name == "linear" else SIZES.reshape(-1, *[1] * (len(shape) - 2))
    x = torch.randn(shape) * sizes
    teacher = nn.Sequential(copy.deepcopy(layer)).eval().requires_grad_(False)
    free = {"zero_point": "free"} if parametrization == "bound" else {}
    settings: dict[str, Any] = dict(activation_granularity="balanced", parametrization=parametrization, **free)
    recipe = Recipe("b", (Rule("*", Bits(bits, bits, **settings)),))
    student = copy.deepcopy(teacher)
    prepare(student, recipe)
    calibrate(student, [(x,)], recipe)
    return teacher, student.eval(), x


def layer_of(network: nn.Module) -> Quantized:
    [layer] = quantized_layers(network).values()
    assert isinstance(layer, Quantized)
    return layer


def test_factors() -> None:
    """Four times the root mean square, half the factor; their product is 1, and silent channels are left alone."""
    factors = factors_of(torch.tensor([1.0, 16.0, 0.0, 256.0]))
    assert torch.allclose(factors, torch.tensor([2.0, 1.0, 1.0, 0.5]))
    assert torch.equal(factors_of(torch.zeros(3)), torch.ones(3))
    assert float(factors_of(torch.tensor([1e-30, 1.0, 1.0])).max()) == MOST


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_float_function_stays(name: str) -> None:
    teacher, student, x = made(name, 8)
    balance = layer_of(student).balance
    assert balance is not None and float(balance.max() / balance.min()) == pytest.approx(100**0.5, rel=0.4)
    with float_mode(student):
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-4)
    unprepare(student)
    kept = student[0].get_parameter("weight")
    wanted = teacher[0].get_parameter("weight")
    assert float((kept - wanted).norm() / wanted.norm()) < 0.1  # rounded, each in its own place


@torch.no_grad()
@pytest.mark.parametrize("parametrization", ["step", "bound"])
@pytest.mark.parametrize("name", CASES)
def test_integers_compute_it(name: str, parametrization: str) -> None:
    _, student, x = made(name, parametrization=parametrization)
    [outcome] = lower(student).report
    assert outcome.way == ("balanced" if parametrization == "step" else "corrected")
    torch.testing.assert_close(reference_network(student)(x), student(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_small_channels_that_matter_survive(name: str) -> None:
    """Where all channels count the same, one plain grid drops the small ones."""
    errors = {}
    for granularity in ("tensor", "balanced"):
        layer, shape = CASES[name]
        torch.manual_seed(0)
        layer.reset_parameters()  # type: ignore[operator]
        sizes = SIZES if name == "linear" else SIZES.reshape(-1, 1, 1)
        x = torch.randn(shape) * sizes
        weight = layer.get_parameter("weight")
        per_input = SIZES if name == "linear" else SIZES.reshape(2, 3).repeat_interleave(4, 0)[:, :, None, None]
        weight.div_(per_input)
        student = nn.Sequential(copy.deepcopy(layer))
        recipe = Recipe("b", (Rule("*", Bits(4, 4, activation_granularity=granularity)),))
        prepare(student, recipe)
        calibrate(student, [(x,)], recipe)
        wanted = layer(x)
        errors[granularity] = float((student(x) - wanted).norm() / wanted.norm())
    assert errors["balanced"] < 0.65 * errors["tensor"]


@torch.no_grad()
def test_gptq_rounds_what_the_grid_sees() -> None:
    teacher, student, x = made("linear", 3)
    before = float((student(x) - teacher(x)).square().mean())
    assert fit_weights(student, teacher, [(x,)]) == ["0"]
    assert float((student(x) - teacher(x)).square().mean()) < before


def balanced(network: nn.Module, images: Tensor, bits: int = 4) -> nn.Module:
    """Low bits, with all layers balanced that are no attention products."""
    low, _ = quantize(
        network, Recipe("b", (Rule("*", Bits(bits, bits, activation_granularity="balanced")),)), [(images,)]
    )
    return low


@pytest.mark.parametrize("kind", some(KINDS, "IMDN"))
def test_engines_and_checkpoints(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 24, 24)
    runs_everywhere(balanced(KINDS[kind](), images), images, tmp_path)


@pytest.mark.parametrize("parametrization", ["step", "bound"])
def test_efficientsci_then_has_no_graph_of_its_own(parametrization: Any, tmp_path: Path) -> None:
    network = EfficientSCI(in_ch=8, units=1, group_num=2).eval()
    bits = Bits(4, 4, activation_granularity="balanced", parametrization=parametrization)
    low, _ = quantize(
        network,
        Recipe("b", (Rule("fem.*", bits), Rule("*", Bits(4, 4)))),
        [(torch.rand(1, 16, 16), torch.ones(1, 2, 16, 16))],
    )
    assert "are not direct" in str(missing(low))
    pytest.importorskip("openvino")
    engine = Engine(low, threads=1, cache=tmp_path)  # it is read off its code
    assert all(check.snr_f32 > WRONG["f32"] for check in engine.checks)
