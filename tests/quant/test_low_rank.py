"""Paths beside layers: the float function stays, they take what weighs most, and integers compute the same."""

import copy
from pathlib import Path

import pytest
import torch
from marks import some
from torch import Tensor, nn

from bitlens.engine import native, swin
from bitlens.engine.lower import lower
from bitlens.engine.openvino import WRONG, Engine
from bitlens.engine.reference import reference_network
from bitlens.methods import quantize
from bitlens.methods.gptq import fit_weights
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.swinir import SwinIR
from bitlens.quant.calibrate import calibrate
from bitlens.quant.layers import Quantized, float_mode
from bitlens.quant.low_rank import LowRankBranch, has_room, strongest
from bitlens.quant.prepare import prepare, unprepare
from bitlens.recipe import Bits, Recipe, Rule

from .everywhere import KINDS, runs_everywhere

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(16, 12), (2, 50, 16)),
    "conv": (nn.Conv2d(6, 12, 3, padding=1, stride=2), (2, 6, 9, 8)),
    "pointwise": (nn.Conv2d(16, 12, 1, bias=False), (2, 16, 5, 8)),
}


def made(name: str, rank: int = 2, bits: int = 3) -> tuple[nn.Module, nn.Module, Tensor]:
    """The float layer in a network, a quantized copy with a low-rank branch, and inputs that it was calibrated on."""
    layer, shape = CASES[name]
    layer.reset_parameters()  # type: ignore[operator]
    x = torch.randn(shape)
    axis = -1 if name == "linear" else 1
    x = x + torch.randn([n if i == axis % x.ndim else 1 for i, n in enumerate(shape)])  # channels with means
    teacher = nn.Sequential(copy.deepcopy(layer)).eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    recipe = Recipe("s", (Rule("*", Bits(bits, bits, rank=rank)),))
    prepare(student, recipe)
    calibrate(student, [(x,)], recipe)
    return teacher, student.eval(), x


def side_of(network: nn.Module) -> LowRankBranch:
    [side] = [module for module in network.modules() if isinstance(module, LowRankBranch)]
    return side


def test_the_strongest_part_of_even_inputs_is_the_truncated_svd() -> None:
    weight = torch.randn(7, 9, dtype=torch.float64)
    up, down = strongest(weight, 4 * torch.eye(9, dtype=torch.float64), 3)
    values = torch.linalg.svdvals(weight)
    assert float((weight - up @ down).square().sum()) == pytest.approx(float(values[3:].square().sum()))
    torch.testing.assert_close(4 * down @ down.T, torch.eye(3, dtype=torch.float64))


def test_it_is_the_strongest_on_the_data() -> None:
    """Of uneven inputs: a smaller error than by the truncated SVD of the weights, and channels of power 1."""
    weight, mixing = torch.randn(7, 9, dtype=torch.float64), torch.randn(9, 9, dtype=torch.float64)
    x = mixing @ torch.diag(torch.logspace(-2, 1, 9, dtype=torch.float64)) @ torch.randn(9, 4000, dtype=torch.float64)
    moments = x @ x.T / 4000
    up, down = strongest(weight, moments, 2)
    left, values, right = torch.linalg.svd(weight)
    plain = left[:, :2] * values[:2] @ right[:2]
    assert ((weight - up @ down) @ x).norm() < 0.7 * ((weight - plain) @ x).norm()
    torch.testing.assert_close(down @ moments @ down.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_float_function_stays(name: str) -> None:
    teacher, student, x = made(name)
    with float_mode(student):
        torch.testing.assert_close(student(x), teacher(x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_weights_of_few_dimensions_go_to_the_path_alone(name: str) -> None:
    """Of rank 2: nothing is left beside a branch of two channels, and 3 bits come out as 8."""
    layer, shape = CASES[name]
    weight = layer.get_parameter("weight")
    weight.copy_((torch.randn(len(weight), 2) @ torch.randn(2, weight[0].numel())).view_as(weight))
    x = torch.randn(shape)
    errors = {}
    for rank in (0, 2):
        student = nn.Sequential(copy.deepcopy(layer)).eval()
        recipe = Recipe("s", (Rule("*", Bits(3, 3, rank=rank)),))
        prepare(student, recipe)
        calibrate(student, [(x,)], recipe)
        errors[rank] = float((student(x) - layer(x)).norm() / layer(x).norm())
    assert side_of(student).main.layer.get_parameter("weight").norm() < 1e-3 * weight.norm()
    assert errors[0] > 0.15 and errors[2] < 0.015


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_integers_compute_it_and_it_can_be_taken_away(name: str) -> None:
    _, student, x = made(name)
    assert [outcome.way for outcome in lower(student).report] == ["direct"] * 3
    torch.testing.assert_close(reference_network(student)(x), student(x), rtol=1e-4, atol=1e-4)
    parts = [part.weight_grid(part.layer.get_parameter("weight")).flatten(1) for part in side_of(student).children()]  # type: ignore[union-attr, operator]
    unprepare(student)
    main, down, up = parts
    torch.testing.assert_close(student[0].get_parameter("weight").flatten(1), main + up @ down)


def test_who_has_room() -> None:
    """A branch takes rank (k + out) multiplications, the layer k out."""
    assert has_room(nn.Linear(64, 64), 16) and not has_room(nn.Linear(64, 64), 17)
    assert has_room(nn.Conv2d(4, 12, 3), 4) and not has_room(nn.Conv2d(4, 12, 3), 5)
    assert not has_room(nn.Conv2d(64, 64, 3, groups=2), 1) and not has_room(nn.Conv3d(64, 64, 3), 1)
    assert not has_room(nn.Conv2d(64, 64, 3, padding_mode="reflect"), 1)
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
    decisions = prepare(network, Recipe("s", (Rule("*", Bits(rank=8)),)))
    assert [decision.bits.rank for decision in decisions if decision.bits] == [8, 0]
    assert isinstance(network[0], LowRankBranch) and isinstance(network[1], Quantized)
    with pytest.raises(ValueError, match="rank = -1 channels"):
        Bits(rank=-1)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_gptq_rounds_the_layer_and_leaves_the_branch(name: str) -> None:
    teacher, student, x = made(name)
    side, before = side_of(student), float((student(x) - teacher(x)).norm())
    path = [part.layer.get_parameter("weight").clone() for part in (side.down, side.up)]
    assert fit_weights(student, teacher, [(x,)]) == ["0.main"]
    assert float((student(x) - teacher(x)).norm()) < before
    assert all(torch.equal(a, b.layer.get_parameter("weight")) for a, b in zip(path, (side.down, side.up), strict=True))


@pytest.mark.parametrize("kind", some(KINDS, "IMDN"))
def test_engines_and_checkpoints(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 24, 24)
    bits = Bits(4, 4, activation_granularity="balanced", rank=2)
    low, _ = quantize(KINDS[kind](), Recipe("s", (Rule("*", bits),)), [(images,)])
    assert any(isinstance(module, LowRankBranch) for module in low.modules())
    runs_everywhere(low, images, tmp_path)


def test_who_has_no_kernels_for_it_refuses_it(tmp_path: Path) -> None:
    """Linear layers of EfficientSCI's own graph, and the fused block of SwinIR; OpenVINO reads both off their code."""
    rules = Rule("*.qkv", Bits(4, 4, rank=1)), Rule("*", Bits(4, 4))
    video = EfficientSCI(in_ch=8, units=1, group_num=2).eval()
    low, _ = quantize(video, Recipe("s", rules), [(torch.rand(1, 16, 16), torch.ones(1, 2, 16, 16))])
    picture = SwinIR(2, dim=16, units=1, depth=2, heads=2, window=4, hidden=32).eval()
    wide, _ = quantize(picture, Recipe("s", rules), [(torch.rand(1, 3, 8, 8),)])
    assert "tsab.qkv first) have a branch or a shortcut beside them" in str(native.missing(low))
    assert "attn.qkv first) have a branch or a shortcut beside them" in str(swin.missing(wide))
    pytest.importorskip("openvino")
    assert all(check.snr_f32 > WRONG["f32"] for check in Engine(low, threads=1, cache=tmp_path).checks)
