"""ABPN: what it is made of, where it starts, how far it sees."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitlens import checkpoint
from bitlens.methods import quantize
from bitlens.networks.abpn import ABPN, deepened, rescaled
from bitlens.networks.catalog import CATALOG


def test_parameters() -> None:
    """28 channels and 7 convolutions for x3: 3 28 9 + 28 and 5 (28 28 9 + 28), and 28 27 9 + 27."""
    assert sum(p.numel() for p in ABPN(3, 28, 6).parameters()) == 784 + 5 * 7084 + 6831


@pytest.mark.parametrize("size", CATALOG["abpn"].sizes)
def test_it_starts_as_nearest_neighbour_enlargement(size: str) -> None:
    network = CATALOG["abpn"].untrained(size, 8)
    assert isinstance(network, ABPN) and f"x{network.scale}" == size
    image = torch.rand(2, 3, 5, 7)
    with torch.no_grad():
        wanted = F.interpolate(image, scale_factor=network.scale, mode="nearest")
        torch.testing.assert_close(network(image), wanted, rtol=0, atol=0)


def test_every_output_depends_on_the_pixels_within_its_radius() -> None:
    network = ABPN(2, 6, 3)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)  # no ReLU is closed
    image = torch.rand(1, 3, 21, 23).requires_grad_()
    network(image)[0, 0, 20, 22].backward()
    assert image.grad is not None
    reached = image.grad[0].abs().amax(0).nonzero()
    assert reached.amin(0).tolist() == [10 - network.radius, 11 - network.radius]
    assert reached.amax(0).tolist() == [10 + network.radius, 11 + network.radius]


def test_a_deeper_one_computes_the_same() -> None:
    network = ABPN(2, 6, 3)
    nn.init.normal_(network.body[-1].get_parameter("weight"), std=0.1)
    deep = deepened(network, 2)
    assert deep.config == {"scale": 2, "dim": 6, "depth": 5}
    image = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(deep(image), network(image), rtol=0, atol=0)
    with pytest.raises(ValueError, match="0 convolutions more came"):
        deepened(network, 0)
    low, _ = quantize(network, "direct", [(image,)], bits=8)
    with pytest.raises(ValueError, match="a network with grids came"):
        deepened(low, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_another_scale_begins_with_the_nearest_pixels(scale: int) -> None:
    network = ABPN(2, 6, 3)
    nn.init.normal_(network.body[-1].get_parameter("weight"), std=0.1)
    nn.init.normal_(network.body[-1].get_parameter("bias"), std=0.1)
    image = torch.rand(1, 3, 5, 4)
    rows, columns = ((torch.arange(scale * length) * 2 // scale).long() for length in (5, 4))
    with torch.no_grad():
        found = rescaled(network, scale)(image)
        torch.testing.assert_close(found, network(image)[..., rows, :][..., columns], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="1 times came; wanted a float network and 2 or more"):
        rescaled(network, 1)
    low, _ = quantize(network, "direct", [(image,)], bits=8)
    with pytest.raises(ValueError, match="a network with grids came"):
        rescaled(low, 4)  # type: ignore[arg-type]


def test_numbers_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="scale=2, dim=0, depth=3 came; wanted whole numbers from 1"):
        ABPN(2, 0, 3)


def test_the_default_of_a_scale_is_nearest_to_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of shipped networks that enlarge three times, the 8-bit one, and none for a scale that none has."""
    network, images = ABPN(3, 4, 2), [(torch.rand(1, 3, 8, 8),)]
    checkpoint.save(network, tmp_path / "three.safetensors")
    for bits in (8, 2):
        checkpoint.save(quantize(network, "direct", images, bits=bits)[0], tmp_path / f"three-w{bits}.safetensors")
    files = {path.stem: path for path in tmp_path.glob("*.safetensors")}
    known = checkpoint.shipped()
    monkeypatch.setattr("bitlens.checkpoint.header.shipped", lambda: known | files)
    assert checkpoint.default("super-resolution", 3) == "three-w8"
    assert checkpoint.default("super-resolution", 2) == checkpoint.default("super-resolution")
    with pytest.raises(ValueError, match="no network that enlarges 5 times is shipped; wanted one of --scale 2, 3"):
        checkpoint.default("super-resolution", 5)
