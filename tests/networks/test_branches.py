"""Branches that collapse: the same function, with one kernel in the end."""

import pytest
import torch
from torch import nn

from bitlens.networks.abpn import ABPN
from bitlens.networks.branches import Branched, branch, collapse


def network() -> ABPN:
    torch.manual_seed(0)
    made = ABPN(2, dim=6, depth=3)
    nn.init.normal_(made.body[-1].get_parameter("weight"), std=0.1)
    return made


def test_branched_and_back() -> None:
    made, image = network(), torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    names, before = list(made.state_dict()), made(image)
    branch(made, fresh=False)
    layers = [module for module in made.modules() if isinstance(module, Branched)]
    assert len(layers) == 2  # what reads and what writes the image changes the number of channels
    torch.testing.assert_close(made(image), before)
    with torch.no_grad():
        for layer in layers:
            layer.point.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    learned = made(image)
    assert not torch.allclose(learned, before)
    collapse(made)
    assert list(made.state_dict()) == names
    torch.testing.assert_close(made(image), learned)


def test_a_fresh_one_keeps_what_it_reads() -> None:
    made = network()
    weights = [layer.get_parameter("weight").clone() for layer in made.body if isinstance(layer, nn.Conv2d)]
    branch(made, fresh=True)
    collapse(made)
    for index, layer in enumerate(layer for layer in made.body if isinstance(layer, nn.Conv2d)):
        change = layer.get_parameter("weight") - weights[index]
        inner = index in (1, 2)
        assert float(change.detach().sum()) == pytest.approx(6.0 if inner else 0.0, abs=1e-5)
        assert not inner or torch.allclose(change[:, :, 1, 1], torch.eye(6))
