"""Blocks learn in order, from the inputs that they will see, and the network comes nearer to the float one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bitlens.methods.brecq import inputs_of, reconstruct
from bitlens.quant.calibrate import calibrate
from bitlens.quant.distill import Refinement
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule


class Toy(nn.Module):
    """Two blocks of two linear layers; the second also gets the first one's input, and returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.two = Two()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x), x)[0]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return before + self.layer(x), x


def made() -> tuple[nn.Module, nn.Module, list[tuple[Tensor]]]:
    """Student, teacher and batches."""
    torch.manual_seed(1)
    teacher = Toy().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    batches = [(torch.randn(64, 8),) for _ in range(3)]
    recipe = Recipe("toy", (Rule("*", Bits(3, 4)),))
    prepare(student, recipe)
    calibrate(student, batches, recipe)
    return student, teacher, batches


def test_brings_the_networks_together() -> None:
    student, teacher, batches = made()
    new = torch.randn(256, 8)
    with torch.no_grad():
        before = float((student(new) - teacher(new)).abs().mean())
    results = reconstruct(student, teacher, batches, Refinement(80, unit="range", weights=0.1, features=0.0))
    assert list(results) == ["one", "two"] and all(result.steps == 80 for result in results.values())
    with torch.no_grad():
        assert float((student(new) - teacher(new)).abs().mean()) < 0.9 * before


def test_inputs() -> None:
    """The quantized network's own inputs, all of a block's arguments; the hook is gone afterwards."""
    student, teacher, batches = made()
    found = inputs_of(student, "two", batches)
    with torch.no_grad():
        torch.testing.assert_close(found[0][0], student.get_submodule("one")(batches[0][0]))
        torch.testing.assert_close(found[2][1], batches[2][0])
    assert not student.get_submodule("two")._forward_pre_hooks
    teacher.add_module("idle", nn.Sequential())
    with pytest.raises(ValueError, match="no data reached the block idle"):
        inputs_of(teacher, "idle", batches)
