"""Losses against their formulas, and distillation terms that are zero for the teacher itself."""

import pytest
import torch
from torch import Tensor, nn

from bitlens.networks.efficientsci import EfficientSCI
from bitlens.training.losses import (
    LOSSES,
    Distillation,
    attention_distance,
    charbonnier,
    feature_distance,
    l1,
    l1_frequency,
    mse,
    rmse,
    sample_rmse,
    similarity_distance,
)
from bitlens.training.settings import Training


def videos() -> tuple[Tensor, Tensor]:
    return torch.rand(3, 1, 2, 4, 5), torch.rand(3, 1, 2, 4, 5)


def test_formulas() -> None:
    a, b = videos()
    error = [float(((a[i] - b[i]) ** 2).mean()) for i in range(3)]
    assert float(mse(a, b)) == pytest.approx(sum(error) / 3)
    assert float(rmse(a, b)) == pytest.approx((sum(error) / 3) ** 0.5)
    assert float(sample_rmse(a, b)) == pytest.approx(sum(e**0.5 for e in error) / 3)
    assert float(l1(a, b)) == pytest.approx(float((a - b).abs().mean()))
    assert float(charbonnier(a, b)) == pytest.approx(float(((a - b) ** 2 + 1e-6).sqrt().mean()))
    assert float(charbonnier(a[:, :, 0], a[:, :, 0])) == pytest.approx(1e-3)  # images: smooth where they are equal
    assert set(LOSSES) == {"rmse", "mse", "sample-rmse", "l1", "charbonnier", "l1-frequency"}


def test_frequencies_count() -> None:
    """Of errors of 1 everywhere, one that is a single frequency costs less than one of all of them."""
    reference, pattern = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    pattern[..., ::2] = -1
    signs = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    scattered = torch.where(signs, pattern, -pattern)
    found = [float(l1_frequency(each, reference)) for each in (pattern, scattered)]
    wanted = [1 + 0.1 * float(torch.fft.fft2(each, norm="ortho").abs().mean()) for each in (pattern, scattered)]
    assert found == pytest.approx(wanted) and found[0] < found[1]


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


def test_feature_distance_by_hand() -> None:
    """(3, 4) / 5 and (0, 2) / 2 lie (0.6, -0.2) apart; equal directions not at all."""
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [7.0, 0.0]])
    assert float(feature_distance(a, b)) == pytest.approx((0.36 + 0.04) / 2)


def test_attention_distance_by_hand() -> None:
    """Channels (1, 2) and (1, 0) at two pixels: mean squares (2.5, 0) and (0.5, 0.5) after their swap."""
    student = torch.tensor([1.0, 0.0, 2.0, 0.0]).reshape(1, 2, 1, 1, 2)
    teacher = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 1, 1, 2)
    wanted = (1 - 0.5**0.5) ** 2 + 0.5
    assert float(attention_distance(student, teacher)) == pytest.approx(wanted)
    assert float(attention_distance(student, -3 * student)) == pytest.approx(
        0.0, abs=1e-12
    )  # neither strength nor sign


def test_similarity_distance_by_hand() -> None:
    """Two tokens: the same direction gives G = ones / 2, orthogonal ones give G = identity / sqrt(2)."""
    same, across = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [3.0, 0.0]])
    student, teacher = (q.reshape(1, 1, 2, 2, 1) for q in (same, across))
    wanted = (2 * (0.5 - 0.5**0.5) ** 2 + 2 * 0.25) ** 0.5
    assert float(similarity_distance(student, teacher)) == pytest.approx(wanted)
    both = (torch.cat([x, y], dim=4) for x, y in ((student, teacher), (teacher, 5 * teacher)))
    assert float(similarity_distance(*both)) == pytest.approx(wanted / 2, abs=1e-6)  # mean over pixels


def test_similarities_and_attention_of_a_network() -> None:
    """Hooks find query and key of every attention and the outputs of the blocks; each term has its weight."""
    student, teacher = (EfficientSCI(8, 1, 2).eval() for _ in range(2))
    mask = (torch.rand(1, 3, 8, 8) < 0.5).float()
    measurement = mask.sum(1)
    block, seen = "resdnet_list.0", []
    for network in (student, teacher):
        kept: list[Tensor] = []
        handles = [
            module.register_forward_pre_hook(lambda _, factors, kept=kept: kept.extend(factors))
            for name, module in network.named_modules()
            if name.endswith("tsab.scores")
        ]
        handles.append(
            network.get_submodule(block).register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(output))
        )
        with torch.no_grad():
            network(measurement, mask)
        seen.append(kept)
        for handle in handles:
            handle.remove()
    (*factors, output), (*teachers, target) = seen
    assert len(factors) == 4  # query and key of two attentions
    pairs = zip(factors, teachers, strict=True)
    turned = [tuple(x if i % 2 == 0 else x.transpose(2, 3) for x in pair) for i, pair in enumerate(pairs)]
    similarity = float(torch.stack([similarity_distance(a, b) for a, b in turned]).mean())
    attention = float(attention_distance(output, target))
    distillation = Distillation(student, teacher, [block], 0.0, similarity=2.0, attention=3.0)
    assert len(distillation.handles) == 6
    for _ in range(2):
        distillation.clear()
        video = student(measurement, mask)
        total = distillation.term(video, distillation.teacher(measurement, mask))
    assert float(total.detach()) == pytest.approx(2 * similarity + 3 * attention, rel=1e-4)
    total.backward()
    gradient = student.resdnet_list[0].cformer_list[0].tsab.qkv.weight.grad  # type: ignore[union-attr]
    assert gradient is not None and gradient.abs().max() > 0


def test_similarities_need_attention() -> None:
    with pytest.raises(ValueError, match=r"Net has no product named scores; .* set distill_similarity to 0"):
        Distillation(Net(), Net(), [], 0.0, similarity=1.0)
    with pytest.raises(ValueError, match="no blocks are named"):
        Distillation(Net(), Net(), [], 0.0, attention=1.0)


@pytest.mark.parametrize("name", ["output", "features", "similarity", "attention"])
def test_weights_are_checked(name: str) -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"distill_{name} is .*; wanted a number from 0"):
            Training(**{f"distill_{name}": value})  # type: ignore[arg-type]
