"""Refined bounds bring a network nearer to its float one; losses are the paper's; time, resume and seeds hold."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitlens.quant.calibrate import calibrate
from bitlens.quant.distill import (
    Refinement,
    UnitAdam,
    blocks_of,
    distill,
    feature_distance,
    output_distance,
    trained_parameters,
)  # fmt: skip
from bitlens.quant.layers import Quantized
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule

BOUNDS = Bits(3, 3, "tensor", zero_point="free", parametrization="bound")


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.body:
            x = x + block(x)
        return x


def made(bits: Bits = BOUNDS, method: Any = "minmax") -> tuple[nn.Module, nn.Module, list[tuple[Tensor]]]:
    """Student, teacher and batches."""
    torch.manual_seed(1)
    teacher = Toy().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    batches = [(torch.rand(2, 3, 10, 10),) for _ in range(3)]
    recipe = Recipe("toy", (Rule("body.*", bits),), weight_range=method, activation_range=method)
    prepare(student, recipe)
    calibrate(student, batches, recipe)
    return student, teacher, batches


def distance(student: nn.Module, teacher: nn.Module, batches: list[tuple[Tensor]]) -> float:
    with torch.no_grad():
        return sum(float((student(*batch) - teacher(*batch)).abs().mean()) for batch in batches)


def test_losses() -> None:
    """Written out from the paper's formulas, each sample for itself."""
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    outputs = [float((x - y).abs().sum()) / 60 for x, y in zip(a, b, strict=True)]
    assert float(output_distance(a, b)) == pytest.approx(sum(outputs) / 2, rel=1e-5)
    features = [float((x / x.norm() - y / y.norm()).norm()) / 60 for x, y in zip(a, b, strict=True)]
    assert float(feature_distance(a, b)) == pytest.approx(sum(features) / 2, rel=1e-5)
    assert float(feature_distance(a, 3 * a)) < 1e-6  # a block's size does not count
    a.requires_grad_(True)
    (gradient,) = torch.autograd.grad(feature_distance(a, a.detach().clone()), a)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("bits", "settings"),
    [
        (BOUNDS, Refinement(60)),
        (BOUNDS, Refinement(60, unit="range")),
        (Bits(3, 3), Refinement(60)),
        (Bits(3, 3), Refinement(60, weights=0.03)),
        (BOUNDS, Refinement(60, grids="activations")),
        (BOUNDS, Refinement(60, grids="weights", learning_rate=3e-3)),
    ],
)
def test_brings_the_networks_together(bits: Bits, settings: Refinement) -> None:
    student, teacher, batches = made(bits)
    before, weights = distance(student, teacher, batches), {k: v.clone() for k, v in student.state_dict().items()}
    seen: list[int] = []
    result = distill(student, teacher, batches, settings, on_step=lambda step, loss: seen.append(step))
    assert distance(student, teacher, batches) < 0.9 * before
    assert result.steps == 60 and seen == list(range(1, 61)) and result.losses[1] < result.losses[0]
    changed = {k for k, v in student.state_dict().items() if not torch.equal(v, weights[k])}
    assert any("grid" in k for k in changed)
    if settings.weights == 0:
        assert all("grid" in k for k in changed)  # only bounds are trained
    if settings.grids != "all":
        part = "input_grid" if settings.grids == "activations" else "weight_grid"
        assert all(part in k for k in changed)


def test_same_seed_same_bounds() -> None:
    states = []
    for seed in (1, 1, 2):
        student, teacher, batches = made()
        distill(student, teacher, batches, Refinement(5, seed=seed))
        states.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_resumes_exactly(tmp_path: Path) -> None:
    """The rate follows the steps that are planned, so both runs plan six."""
    whole, teacher, batches = made()
    distill(whole, teacher, batches, Refinement(6))
    student, _, _ = made()

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, batches, Refinement(6), state=path, on_step=stop)
    fresh, _, _ = made()
    result = distill(fresh, teacher, batches, Refinement(6), state=path)
    assert result.steps == 6
    for a, b in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    again = distill(fresh, teacher, batches, Refinement(6), state=path)
    assert again.steps == 6 and again.losses == (0.0, 0.0)  # finished: nothing is done


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    student, teacher, batches = made()
    distill(student, teacher, batches, Refinement(2), state=tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"other settings: learning_rate \(0\.01 -> 0\.1\)"):
        distill(student, teacher, batches, Refinement(2, learning_rate=0.1), state=tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a state of this refinement"):
        distill(student, teacher, batches, Refinement(2), state=tmp_path / "state.pt")


def test_what_broke_is_not_saved(tmp_path: Path) -> None:
    student, teacher, batches = made()
    batches[0][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="is nan; wanted a finite one"):
        distill(student, teacher, batches[:1], Refinement(3), state=tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_time_ends_it() -> None:
    student, teacher, batches = made()
    result = distill(student, teacher, batches, Refinement(10_000_000, minutes=0.02))
    assert 0 < result.steps < 10_000_000 and result.seconds >= 1.2
    rate = Refinement(100, minutes=1.0).rate
    assert rate(0, 0.0) == 1.0 and rate(50, 0.0) == pytest.approx(0.5) == rate(0, 30.0)
    assert rate(100, 0.0) == pytest.approx(0.0) == rate(3, 60.0)


def test_adam() -> None:
    """Torch's Adam, where every unit is the learning rate."""
    ours, theirs = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([1.0, -2.0]))
    adam, reference = UnitAdam([(ours, torch.full((2,), 0.1))]), torch.optim.Adam([theirs], lr=0.1)
    for factor in (1.0, 3.0, -2.0):
        adam.step([factor * ours.detach()], rate=1.0)
        theirs.grad = factor * theirs.detach()
        reference.step()
        torch.testing.assert_close(ours, theirs)


def test_blocks() -> None:
    student, teacher, _ = made()
    assert blocks_of(student) == ["body.0", "body.1"]
    assert isinstance(student.get_submodule("body.0.0"), Quantized)
    with pytest.raises(ValueError, match="no grid to train"):
        trained_parameters(teacher, Refinement())


def test_refusals() -> None:
    student, teacher, batches = made()
    with pytest.raises(ValueError, match="no batches to refine on"):
        distill(student, teacher, [])
    with pytest.raises(ValueError, match="the loss of step 0 is nan"):
        distill(student, teacher, [(torch.full((1, 3, 6, 6), float("nan")),)])
    with pytest.raises(ValueError, match="wanted at least one step"):
        Refinement(0)
    with pytest.raises(ValueError, match="wanted a time above 0"):
        Refinement(minutes=0.0)
    assert not batches[0][0].isnan().any()
