"""Several widths of one network in one file: codes of few bits are those of many, rounded; each loads by itself."""

from pathlib import Path

import pytest
import torch

import bitlens
from bitlens import checkpoint
from bitlens.methods import quantize
from bitlens.networks.abpn import ABPN
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.quant.nested import Nested, nest, rounded_again

IMAGE = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def made(widths: tuple[int, ...] = (8, 4, 2), method: str = "ends") -> Nested:
    torch.manual_seed(0)
    network = ABPN(2, 8, 3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return nest({bits: quantize(network, method, [(IMAGE,)], bits=bits)[0] for bits in widths})


@pytest.fixture(scope="module")
def nested() -> Nested:
    return made()


def weight_codes(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: layer.weight_grid.codes(layer.layer.get_parameter("weight"))
        for name, layer in quantized_layers(network).items()
        if isinstance(layer, Quantized)
    }


def test_narrow_codes_are_wide_ones_rounded(nested: Nested) -> None:
    wide, narrow = weight_codes(nested.widest), weight_codes(nested.alone(2))
    bits = {name: layer.weight_bits for name, layer in quantized_layers(nested.alone(2)).items()}
    assert sorted(set(bits.values())) == [2, 8]  # the ends keep 8 bits
    for name, codes in wide.items():
        steps = [
            quantized_layers(network)[name].get_parameter("weight_grid.scale")
            for network in (nested.widest, nested.alone(2))
        ]
        expected = codes if bits[name] == 8 else rounded_again(codes.float(), *steps, 2).to(torch.int16)
        assert torch.equal(narrow[name], expected)
    assert {int(code) for code in narrow["body.2"].unique()} <= {-2, -1, 0, 1}


def test_a_width_begins_as_good_as_one_of_its_own() -> None:
    """Rounding to 8 bits first changes next to nothing: each width has the step that suits it."""
    torch.manual_seed(0)
    network = ABPN(2, 8, 3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    nested = made()
    for bits in (4, 2):
        own, _ = quantize(network, "ends", [(IMAGE,)], bits=bits)
        step = "body.2.weight_grid.scale"
        assert torch.equal(nested.networks[str(bits)].get_parameter(step), own.get_parameter(step))
        with torch.no_grad():
            errors = [float((one(IMAGE) - network(IMAGE)).square().mean()) for one in (nested.alone(bits), own)]
        assert errors[0] < 1.1 * errors[1]


def test_a_width_alone_computes_what_it_computes_among_the_others(nested: Nested) -> None:
    for width in nested.widths:
        among = nested.networks[str(width)].eval()
        assert torch.equal(nested.alone(width)(IMAGE), among(IMAGE))
    assert torch.equal(nested.eval()(IMAGE), nested.networks["2"](IMAGE))


def test_one_file_gives_every_width(nested: Nested, tmp_path: Path) -> None:
    path = checkpoint.save(nested, tmp_path / "three.safetensors", claims={"set5": {"psnr": 30.0}})
    alone = checkpoint.save(nested.alone(8), tmp_path / "eight.safetensors")
    assert path.stat().st_size < alone.stat().st_size + 20_000  # the header of each width, no second weights
    for width in nested.widths:
        name = f"{path}@{width}"
        assert torch.equal(bitlens.load(name)(IMAGE), nested.alone(width)(IMAGE))
        about = checkpoint.describe(name)
        assert about.widths == (8, 4, 2) and about.name == f"three@{width}" and about.bits == (width, width)
        assert checkpoint.stored_layers(name) == about.layers
        assert about.claims == ({"set5": {"psnr": 30.0}} if width == 8 else {})  # what is claimed is of the widest
    assert torch.equal(bitlens.load(path)(IMAGE), nested.alone(8)(IMAGE))
    assert checkpoint.describe(path).bits == (8, 8)
    with pytest.raises(ValueError, match="no width of 3 bits; wanted one of @8, @4, @2"):
        bitlens.load(f"{path}@3")
    with pytest.raises(ValueError, match="wanted a nested checkpoint"):
        checkpoint.describe(f"{alone}@4")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none\.safetensors"):
        checkpoint.find(tmp_path / "none.safetensors@4")


def test_widths_learn_in_turn_and_share_what_they_learn() -> None:
    nested = made().train()
    weight = nested.widest.get_parameter("body.2.layer.weight")
    assert nested.networks["2"].get_parameter("body.2.layer.weight") is weight
    names = [name for name, _ in nested.named_parameters()]
    assert sum(name.endswith("body.2.layer.weight") for name in names) == 1
    seen = []
    for _ in range(4):
        nested.zero_grad()
        nested(IMAGE).square().mean().backward()
        assert all(p.grad is not None for p in nested.parameters()) and weight.grad is not None
        assert bool(weight.grad.abs().sum() > 0)
        seen.append([
            width for width in nested.widths
            if (grad := nested.networks[str(width)].get_parameter("body.2.input_grid.scale").grad) is not None
            and bool(grad.abs().sum() > 0)
        ])  # fmt: skip
    assert seen == [[8], [4], [2], [8]] and int(nested.turn) == 4


def test_what_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted two or more"):
        made((8,))
    with pytest.raises(ValueError, match="wanted steps as grids"):
        made((8, 4), "balanced")
