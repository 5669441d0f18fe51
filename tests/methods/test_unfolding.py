"""Method `unfolding`: priors in low bits with 8 at their edges, and physics that repairs what rounding breaks."""

import pytest
import torch
from torch import Tensor, nn

from bitlens.engine.reference import reference_network
from bitlens.methods import quantize
from bitlens.networks.dun import DUN
from bitlens.networks.parts import as_read
from bitlens.operators import VideoSCI
from bitlens.quant.layers import quantized_layers


@pytest.fixture
def network() -> DUN:
    made = DUN(2, (8, 12, 16), (1, 1, 1), 3).eval()
    for prior in made.priors:
        nn.init.normal_(prior.tail.weight, std=0.05)  # type: ignore[union-attr]
    return made


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    mask = (torch.rand(2, 6, 24, 16, generator=source) < 0.5).float()
    video = torch.rand(2, 1, 6, 24, 16, generator=source)
    return VideoSCI(mask).A(video), mask


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_bits(network: DUN, data: tuple[Tensor, Tensor], bits: int) -> None:
    """Every convolution is quantized; what reads and writes, and the features that all is made of, have more bits."""
    low, decisions = quantize(network, "unfolding", [data], bits=bits)
    layers = quantized_layers(low)
    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert list(layers) == convolutions
    for name, layer in layers.items():
        part, last = name.split(".")[2], name.rpartition(".")[2]
        if last in ("head", "fuse", "tail"):
            wanted = 8, 8
        elif ".encoder.0." in name:
            wanted = min(2 * bits, 8), 8
        else:
            wanted = bits, 8 if part == "down" else bits
        assert (layer.weight_bits, layer.activation_bits) == wanted, name
    assert {decision.name for decision in decisions if decision.bits is None} == set()
    assert torch.equal(low.steps, network.steps)  # type: ignore[arg-type]


@torch.no_grad()
def test_fewer_bits_are_further_from_float(network: DUN, data: tuple[Tensor, Tensor]) -> None:
    whole = network(*data)
    errors = []
    for bits in (8, 4, 2):
        low, _ = quantize(network, "unfolding", [data], bits=bits)
        errors.append(float((low(*data) - whole).norm() / whole.norm()))
    assert errors[0] < 0.01 and errors[0] < errors[1] < errors[2]


@torch.no_grad()
def test_changes_are_added_to_what_was_read(network: DUN, data: tuple[Tensor, Tensor]) -> None:
    """A prior that changes nothing gives the video as its first layer has read it: on that layer's grid."""
    for prior in network.priors:
        nn.init.zeros_(prior.tail.weight)  # type: ignore[union-attr]
    low, _ = quantize(network, "unfolding", [data], bits=8)
    grid = low.priors[-1].head.input_grid
    found = low(*data)
    seen = found.clamp((grid.qmin - grid.zero_point) * grid.scale, (grid.qmax - grid.zero_point) * grid.scale)
    torch.testing.assert_close(seen, grid(found))
    far = torch.tensor([[[-50.0, 50.0]]])
    assert torch.equal(as_read(low.priors[-1].head, far), far)  # bright light is not clipped
    torch.testing.assert_close(reference_network(low)(*data), found)
    layer = nn.Conv2d(1, 1, 1)
    assert as_read(layer, found) is found


def test_rounding_what_goes_on_moves_no_grid(network: DUN, data: tuple[Tensor, Tensor]) -> None:
    """Beyond the range the rounded value depends on the step, and what goes on does not."""
    low, _ = quantize(network, "unfolding", [data], bits=8)
    head = low.priors[-1].head
    video = torch.tensor([[[-50.0, 0.3, 50.0]]], requires_grad=True)
    as_read(head, video).sum().backward()  # type: ignore[arg-type]
    assert torch.equal(video.grad, torch.ones_like(video))  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in head.parameters())
