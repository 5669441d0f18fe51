"""Muon: its steps are orthogonal, of equal size in all directions, and its state survives saving."""

import pytest
import torch
from torch import nn

from bitlens.training.loop import State
from bitlens.training.muon import Muon, orthogonalized
from bitlens.training.settings import Training


@pytest.mark.parametrize("shape", [(3, 5, 9), (3, 9, 5), (2, 6, 6)])
def test_singular_values_become_one(shape: tuple[int, int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    matrices = torch.randn(shape, generator=source)
    found = orthogonalized(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.5 and float(values.max()) < 1.3
    cosine = (found * (u @ v)).sum() / (found.norm() * (u @ v).norm())
    assert float(cosine) > 0.97


def test_the_size_of_a_gradient_does_not_matter() -> None:
    steps = []
    for size in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(4, 3, 2, 1))
        weight.grad = size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        Muon([{"params": [weight]}], lr=0.1).step()
        steps.append(weight.detach().clone())
    assert torch.allclose(steps[0], steps[1], atol=0.02)  # bfloat16
    assert 0.05 < float(torch.linalg.matrix_norm(steps[0].flatten(1), 2)) < 0.13


def test_tall_matrices_step_further() -> None:
    """By sqrt(rows / columns), so that outputs change alike."""
    weight = nn.Parameter(torch.zeros(8, 2))
    weight.grad = torch.randn(8, 2, generator=torch.Generator().manual_seed(2))
    Muon([{"params": [weight]}], lr=0.1).step()
    assert 0.1 < float(torch.linalg.matrix_norm(weight.detach(), 2)) < 0.26


def test_weight_decay_and_parameters_without_gradient() -> None:
    weight, idle = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    Muon([{"params": [weight, idle], "weight_decay": 0.5}], lr=0.1).step()
    assert torch.allclose(weight.detach(), 0.95 * torch.eye(3)) and bool((idle == 1).all())


def test_the_loop_gives_it_the_weights_and_adam_the_rest() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(4))
    state = State(network, Training(optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.05))
    adam, muon = state.optimizers
    assert isinstance(muon, Muon) and [p.ndim for g in muon.param_groups for p in g["params"]] == [4]
    assert [p.ndim for g in adam.param_groups for p in g["params"]] == [1, 1]
    state.set_rate(0.5)
    assert muon.param_groups[0]["lr"] == 0.025 and adam.param_groups[0]["lr"] == 5e-4
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    muon.step()
    saved = state.state_dict()
    other = State(nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(4)), Training(optimizer="muon"))
    other.load_state_dict(saved)
    mean = next(iter(other.optimizers[1].state.values()))["mean"]
    assert torch.equal(mean, next(iter(muon.state.values()))["mean"])
