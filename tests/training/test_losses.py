"""Losses against their formulas, and distillation terms that are zero for the teacher itself."""

import pytest
import torch
from torch import Tensor, nn

from bitlens.training.losses import LOSSES, Distillation, mse, rmse, sample_rmse


def videos() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 1, 2, 4, 5), torch.rand(3, 1, 2, 4, 5)


def test_formulas() -> None:
    a, b = videos()
    error = [float(((a[i] - b[i]) ** 2).mean()) for i in range(3)]
    assert float(mse(a, b)) == pytest.approx(sum(error) / 3)
    assert float(rmse(a, b)) == pytest.approx((sum(error) / 3) ** 0.5)
    assert float(sample_rmse(a, b)) == pytest.approx(sum(e**0.5 for e in error) / 3)
    assert set(LOSSES) == {"rmse", "mse", "sample-rmse"}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_at_zero_is_finite(name: str) -> None:
    a = videos()[0].requires_grad_()
    LOSSES[name](a, a.detach()).backward()
    assert a.grad is not None and not a.grad.any()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 2, 1), nn.Conv3d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def test_distillation_terms() -> None:
    student, teacher, x = Net(), Net(), torch.rand(2, 1, 2, 3, 4)
    distillation = Distillation(student, teacher, ["first", "second"], 0.5, 2.0)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    for _ in range(2):  # features of an earlier step are forgotten
        distillation.clear()
        target = distillation.teacher(x)
        output = student(x)
        total = distillation.term(output, target)
    with torch.no_grad():
        wanted = 0.5 * float((output - target).square().mean().sqrt())
        features = [(net.first(x), net.second(torch.relu(net.first(x)))) for net in (student, teacher)]
        for a, b in zip(*features, strict=True):
            a, b = (f.flatten(1) / f.flatten(1).norm(dim=1, keepdim=True) for f in (a, b))
            wanted += 2.0 / 2 * float((a - b).square().sum(1).mean())
    assert float(total.detach()) == pytest.approx(wanted, rel=1e-4)
    total.backward()
    assert all(p.grad is not None for p in student.parameters())
    distillation.remove()
    assert not student.first._forward_hooks and not teacher.second._forward_hooks


def test_teacher_teaches_itself_nothing() -> None:
    student, x = Net(), torch.rand(2, 1, 2, 3, 4)
    teacher = Net()
    teacher.load_state_dict(student.state_dict())
    distillation = Distillation(student, teacher, ["first"], 1.0, 1.0)
    assert float(distillation.term(student(x), teacher(x)).detach()) < 2e-4  # the square root's epsilon


def test_output_alone_needs_no_hooks() -> None:
    student, teacher, x = Net(), Net(), torch.rand(2, 1, 2, 3, 4)
    distillation = Distillation(student, teacher, ["first"], 1.0, 0.0)
    assert not distillation.handles
    with torch.no_grad():
        assert torch.equal(distillation.term(student(x), teacher(x)), rmse(student(x), teacher(x)))


def test_features_need_blocks() -> None:
    with pytest.raises(ValueError, match="no blocks are named"):
        Distillation(Net(), Net(), [], 1.0, 1.0)
