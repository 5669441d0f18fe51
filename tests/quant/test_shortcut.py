"""Shortcuts beside layers: the float function stays, what is handed on keeps 8 bits, and integers compute the same."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bitlens.engine import swin, traced
from bitlens.engine.lower import lower
from bitlens.engine.reference import reference_network
from bitlens.methods import quantize
from bitlens.networks.abpn import ABPN
from bitlens.networks.ffdnet import FFDNet
from bitlens.networks.swinir import SwinIR
from bitlens.quant.layers import float_mode, quantized_layers
from bitlens.quant.prepare import prepare, unprepare
from bitlens.quant.shortcut import ChannelShortcut, hands_on, through
from bitlens.recipe import Bits, Recipe, Rule

from .everywhere import runs_everywhere

CASES: dict[str, nn.Module] = {
    "3x3": nn.Conv2d(6, 6, 3, padding=1),
    "1x5, reflected": nn.Conv2d(6, 6, (1, 5), padding=(0, 2), padding_mode="reflect", bias=False),
    "dilated, same": nn.Conv2d(6, 6, 3, padding="same", dilation=2),
}


def made(name: str, bits: int = 3) -> tuple[nn.Module, nn.Module, Tensor]:
    """A layer that mostly hands its channels on, in a network; a quantized copy with a shortcut; and inputs."""
    layer = copy.deepcopy(CASES[name])
    layer.reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        through(layer.get_parameter("weight")).add_(torch.linspace(-1, 1.5, 6))
    x = torch.randn(2, 6, 9, 8)
    teacher = nn.Sequential(layer).eval().requires_grad_(False)
    recipe = Recipe("s", (Rule("*", Bits(bits, bits, shortcut=True)),))
    low, _ = quantize(teacher, recipe, [(x,)])
    return teacher, low, x


def shortcuts_of(network: nn.Module) -> list[ChannelShortcut]:
    return [module for module in network.modules() if isinstance(module, ChannelShortcut)]


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_float_function_stays(name: str) -> None:
    teacher, low, x = made(name)
    [shortcut] = shortcuts_of(low)
    with float_mode(low):
        torch.testing.assert_close(low(x), teacher(x), rtol=1e-5, atol=1e-5)
    whole = teacher[0].get_parameter("weight")
    assert torch.equal(shortcut.own.layer.get_parameter("weight").flatten(), through(whole))
    assert not through(shortcut.main.layer.get_parameter("weight")).any()
    assert (shortcut.own.bits.label, shortcut.main.bits.label) == ("w8a8", "w3a3")


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_what_is_handed_on_alone_keeps_8_bits(name: str) -> None:
    layer = copy.deepcopy(CASES[name])
    nn.init.zeros_(layer.get_parameter("weight"))
    through(layer.get_parameter("weight")).copy_(torch.linspace(-1, 1.5, 6))
    x, errors = torch.randn(2, 6, 9, 8), []
    for shortcut in (False, True):
        low, _ = quantize(nn.Sequential(layer).eval(), Recipe("s", (Rule("*", Bits(2, 2, shortcut=shortcut)),)), [(x,)])
        errors.append(float((low(x) - layer(x)).norm() / layer(x).norm()))
    assert errors[0] > 0.2 and errors[1] < 0.02


@torch.no_grad()
def test_integers_compute_it_and_it_can_be_taken_away() -> None:
    _, low, x = made("3x3")
    assert [outcome.way for outcome in lower(low).report] == ["direct"] * 2
    torch.testing.assert_close(reference_network(low)(x), low(x), rtol=1e-4, atol=1e-4)
    with_grids = low(x)
    [shortcut] = shortcuts_of(low)
    own, main = (part.weight_grid(part.layer.get_parameter("weight")) for part in (shortcut.own, shortcut.main))  # type: ignore[operator]
    unprepare(low)
    assert not quantized_layers(low) and type(low[0]) is nn.Conv2d
    found = low[0].weight
    torch.testing.assert_close(through(found), through(main) + own.flatten())
    assert float((low(x) - with_grids).norm() / with_grids.norm()) < 0.3


def test_who_hands_on() -> None:
    assert all(hands_on(layer) for layer in CASES.values())
    others = [
        nn.Conv2d(6, 7, 3, padding=1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.Conv2d(6, 6, 2, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 3, padding="valid"),
        nn.Conv2d(6, 6, 3, padding=1, dilation=2), nn.Conv3d(6, 6, 3, padding=1), nn.Linear(6, 6),
    ]  # fmt: skip
    assert not any(hands_on(layer) for layer in others)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1))
    decisions = prepare(network, Recipe("s", (Rule("*", Bits(4, 4, shortcut=True)),)))
    assert [decision.bits.label for decision in decisions if decision.bits] == ["w4a4", "w4a4 +own"]
    with pytest.raises(ValueError, match="a shortcut and a low-rank branch"):
        Bits(4, 4, rank=2, shortcut=True)


def test_the_method_keeps_the_ends_at_8_bits_and_refuses_what_has_no_middle(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 12, 10)
    low, decisions = quantize(ABPN(2, 8, 3).eval(), "shortcuts", [(images,)], bits=4)
    assert [decision.bits.label for decision in decisions if decision.bits] == ["w8a8", *2 * ["w4a4 +own"], "w8a8"]
    assert Recipe.from_dict(low.recipe.to_dict()) == low.recipe  # type: ignore[union-attr, operator]
    for network in (nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3)))):
        with pytest.raises(ValueError, match=r"no layer of Sequential hands its channels on.*'ends'"):
            quantize(network, "shortcuts", [(images,)], bits=4)


@torch.no_grad()
def test_beside_balanced_channels_it_has_none(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 24, 20)
    bits = Bits(4, 4, activation_granularity="balanced", shortcut=True)
    low, _ = quantize(ABPN(2, 8, 3).eval(), Recipe("s", (Rule("*", bits),)), [(images,)])
    assert all(one.main.balance is not None and one.own.balance is None for one in shortcuts_of(low))
    runs_everywhere(low, images, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ABPN", "FFDNet"])
def test_engines_and_checkpoints(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ABPN(2, 20, 3) if kind == "ABPN" else FFDNet(3, 20, 4)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):  # the last one starts as 0
            nn.init.normal_(layer.weight, std=0.1)
            through(layer.weight).add_(0.7)
    images = torch.rand(1, 3, 24, 20)
    low, _ = quantize(network.eval(), "shortcuts", [(images,)], bits=4)
    runs_everywhere(low, images, tmp_path)
    pytest.importorskip("bitlens_kernels")
    engine = traced.Engine(low, threads=1)
    [count] = {len(quantized_layers(low))}
    assert engine.integer_layers == (count, count)
    found, wanted = engine(images), low(images)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    plan = engine.program(tuple(images.shape[1:])).plan
    assert "handed" not in plan.kinds and plan.kinds.count("layer") == count - len(shortcuts_of(low))


class Sums(nn.Module):
    """A convolution, and one of each channel by itself, of values that may be negative, added in several ways."""

    scale = 1

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.entry, self.first = (nn.Conv2d(channels, 5, 3, padding=1) for channels in (3, 5))
        size = 3 if way == "3x3" else 1
        self.own = nn.Conv2d(5, 5, size, padding=size // 2, groups=5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.entry(image)
        if self.way in ("before the slope", "3x3"):
            return (self.first(x) + self.own(x)).relu()
        if self.way == "behind the slope":
            return self.first(x).relu() + self.own(x)
        handed = self.own(x)
        return (self.first(x) + handed).relu() * handed


@torch.no_grad()
@pytest.mark.parametrize(
    ("way", "alone"),
    [("before the slope", False), ("behind the slope", True), ("read by another", True), ("3x3", False)],
)
def test_what_no_layer_does_on_its_way_is_a_call_of_its_own(way: str, alone: bool) -> None:
    """A zero-point that is not 0 is part of the bias; what LeakyReLU comes before is not added before it."""
    torch.manual_seed(2)
    images = torch.rand(1, 3, 9, 8)
    low, _ = quantize(Sums(way).eval(), "direct", [(images,)], bits=8)
    assert lower(low).layers["own"].input.zero_point > 0  # type: ignore[union-attr]
    pytest.importorskip("bitlens_kernels")
    engine = traced.Engine(low, threads=1)
    torch.testing.assert_close(engine(images), low(images), rtol=1e-4, atol=1e-4)
    assert ("handed" in engine.program(tuple(images.shape[1:])).plan.kinds) == alone


def test_a_graph_written_by_hand_refuses_it() -> None:
    picture = SwinIR(2, dim=16, units=1, depth=2, heads=2, window=4, hidden=32).eval()
    recipe = Recipe("s", (Rule("*", Bits(4, 4, shortcut=True)),))
    low, _ = quantize(picture, recipe, [(torch.rand(1, 3, 8, 8),)])
    assert shortcuts_of(low)
    assert "have a branch or a shortcut beside them" in str(swin.missing(low))
