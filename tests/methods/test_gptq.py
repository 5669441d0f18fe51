"""GPTQ finds the answer where it is known, and loses less than rounding to the nearest where it is not."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bitlens.methods.gptq import fit_weights, gptq
from bitlens.quant.calibrate import calibrate
from bitlens.quant.layers import Quantized
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule


def whole(values: Tensor) -> Tensor:
    return values.round()


def loss(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    difference = weight - rounded
    return float(((difference @ hessian) * difference).sum())


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = 3 * torch.randn(4, 9, dtype=torch.float64)
    hessian = torch.diag(torch.rand(9, dtype=torch.float64) + 0.1)
    assert torch.equal(gptq(weight, hessian, whole), weight.round())


def test_equal_inputs_share_their_sum() -> None:
    """0.4 and 0.4 of the same input: only 0.8 counts, and 1 + 0 is nearest to it; to the nearest, both would be 0."""
    hessian = torch.ones(2, 2, dtype=torch.float64) + 1e-6 * torch.eye(2, dtype=torch.float64)
    assert float(gptq(torch.full((1, 2), 0.4, dtype=torch.float64), hessian, whole).sum()) == 1.0


def test_near_the_best_of_all() -> None:
    """Of all 3^5 roundings of five weights: near the best, far better than the nearest."""
    totals = {"gptq": 0.0, "nearest": 0.0, "best": 0.0}
    shifts = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 5)
    for _ in range(30):
        x = torch.randn(20, 5, dtype=torch.float64) + 2 * torch.randn(20, 1, dtype=torch.float64)
        weight, hessian = torch.randn(1, 5, dtype=torch.float64), x.T @ x
        totals["gptq"] += loss(weight, gptq(weight, hessian, whole), hessian)
        totals["nearest"] += loss(weight, weight.round(), hessian)
        totals["best"] += min(loss(weight, weight.round() + shift, hessian) for shift in shifts)
    assert totals["best"] <= totals["gptq"] < 0.5 * totals["nearest"]


class Halves(nn.Module):
    """An activation's grid that is wrong in a known way."""

    def forward(self, values: Tensor) -> Tensor:
        return values / 2


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 5), nn.Conv2d(3, 5, 3, padding=1, stride=2), nn.Conv2d(6, 4, 1, bias=False)]
)
def test_makes_up_for_the_activations(layer: nn.Module) -> None:
    """Where the quantized inputs are half of the float ones, weights become twice as large, and outputs agree."""
    linear = isinstance(layer, nn.Linear)
    teacher = nn.Sequential(copy.deepcopy(layer)).requires_grad_(False)
    student = copy.deepcopy(teacher)
    recipe = Recipe("eight", (Rule("*", Bits(8, 8)),))
    batches = [(torch.randn(400, 6) + 1,) if linear else (torch.randn(4, int(layer.in_channels), 12, 12) + 1,)]  # type: ignore[arg-type]
    prepare(student, recipe)
    quantized = student[0]
    assert isinstance(quantized, Quantized)
    with torch.no_grad():
        quantized.layer.get_parameter("weight").mul_(2)
    calibrate(student, batches, recipe)
    with torch.no_grad():
        quantized.layer.get_parameter("weight").div_(2)
    quantized.input_grid = Halves()  # type: ignore[assignment]
    assert fit_weights(student, teacher, batches) == ["0"]
    with torch.no_grad():
        wanted, found = teacher(*batches[0]), student(*batches[0])
    assert float((wanted - found).square().mean()) < 5e-3 * float(wanted.var())


def test_loses_less_than_the_nearest() -> None:
    torch.manual_seed(3)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).requires_grad_(
        False
    )
    smooth = nn.functional.avg_pool2d(torch.rand(2, 3, 40, 40), 5, 1)
    student, recipe = copy.deepcopy(teacher), Recipe("low", (Rule("*", Bits(2, 6)),))
    prepare(student, recipe)
    calibrate(student, [(smooth,)], recipe)
    with torch.no_grad():
        wanted = teacher(smooth)
        before = float((student(smooth) - wanted).square().mean())
        fit_weights(student, teacher, [(smooth,)])
        after = float((student(smooth) - wanted).square().mean())
    assert after < 0.3 * before
    layer = student[2]
    assert isinstance(layer, Quantized)
    weight = layer.layer.get_parameter("weight").detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.weight_grid(weight), weight)  # they lie on their grid
