"""What lies within a network's radius reaches an output pixel, what lies beyond does not; so tiles can be exact."""

import pytest
import torch
from torch import Tensor, nn

from bitlens.networks.classical import GapTV
from bitlens.networks.efficientsci import EfficientSCI
from bitlens.networks.stformer import STFormer
from bitlens.tiles import tiled

NETWORKS = {
    "EfficientSCI, 1 block of 2 groups": lambda: EfficientSCI(4, 1, 2, shortcuts=True),
    "EfficientSCI, 2 blocks of 1 group, colour": lambda: EfficientSCI(4, 2, 1, 3),
    "STFormer, 2 blocks": lambda: STFormer(4, 1, window=3, heads=2, shortcuts=True),
    "STFormer, 1 block, colour": lambda: STFormer(4, 1, 3, depth=1, window=4, heads=2),
    "GAP-TV": lambda: GapTV(iterations=3, dual_steps=4),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    """One of them, with weights that are no accident of initialization: all paths carry something."""
    torch.manual_seed(0)
    network = NETWORKS[request.param]().double().eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.requires_grad_(False)


def capture(height: int, width: int, frames: int = 2) -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, frames, height, width) < 0.5).double()
    mask[:, 0] = torch.maximum(mask[:, 0], 1 - mask.sum(1).clamp(max=1))  # every pixel is measured
    return (mask * torch.rand(1, frames, height, width)).sum(1), mask


def reach(network: nn.Module, row: int, column: int, size: int) -> tuple[list[int], list[int]]:
    """How far [up, left] and [down, right] of an output pixel the farthest measured pixels lie that move it."""
    y, mask = capture(size, size)
    if isinstance(network, GapTV):  # no gradient flows through it
        moved = y.clone()
        moved[0, row, column] += 0.5
        influence = (network(moved, mask) - network(y, mask)).abs().amax((0, 1, 2))
    else:
        y.requires_grad_()
        network(y, mask)[0, :, :, row, column].sum().backward()
        assert y.grad is not None
        influence = y.grad[0].abs()
    rows, columns = influence.nonzero().unbind(1)
    up, left = row - int(rows.min()), column - int(columns.min())
    return [up, left], [int(rows.max()) - row, int(columns.max()) - column]


def test_the_radius_is_reached_and_not_exceeded(network: nn.Module) -> None:
    radius, alignment = network.radius, network.alignment
    assert isinstance(radius, int) and isinstance(alignment, int)
    size = -(-(2 * radius + 2 * alignment + 4) // alignment) * alignment
    far = []
    for place in range(size // 2, size // 2 + alignment):
        before, after = reach(network, place, place, size)
        far += before + after
    tight = 0 if not isinstance(network, STFormer) else 2  # no pixel has every window's farthest corner in its way
    assert radius - tight <= max(far) <= radius


@pytest.mark.parametrize(("height", "width"), [(61, 83), (80, 70)])
def test_tiled_equals_whole(network: nn.Module, height: int, width: int) -> None:
    radius, alignment = network.radius, network.alignment
    assert isinstance(radius, int) and isinstance(alignment, int)
    height, width = height + 2 * radius, width + 2 * radius
    data, seen = capture(height, width), []

    def one(y: Tensor, mask: Tensor) -> Tensor:
        seen.append(y.shape)
        return network(y, mask)

    side = 2 * -(-radius // alignment) * alignment + 4 * alignment + 20
    found = tiled(one, data, window=(side, side), overlap=radius, multiple=alignment)
    assert len(seen) > 3
    whole = network(*data)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-13 * float(whole.abs().max() + 1))


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert EfficientSCI(16, 8, 2).radius == EfficientSCI(32, 8, 2).radius == 104
        assert EfficientSCI(64, 8, 4).radius == 200 and EfficientSCI(64, 12, 4).radius == 296
        assert STFormer(16, 4).radius == 167 and GapTV().radius == 156
