"""Counts agree with the published ones and with the shapes of single layers; rules price them as they say."""

import pytest
import torch
from marks import some
from torch import nn

from bitlens.count import LayerCount, count, operations
from bitlens.methods import qsci
from bitlens.networks.classical import GapTV
from bitlens.networks.dun import DUN
from bitlens.networks.efficientsci import EfficientSCI, efficientsci
from bitlens.networks.stformer import STFormer, stformer
from bitlens.quant.prepare import prepare


def giga(layers: list[LayerCount], attention: bool) -> float:
    return sum(layer.macs for layer in layers if (layer.kind == "MatMul") == attention) / 1e9


@pytest.mark.parametrize(
    ("size", "published", "attention"),
    some([("t", 142.18, 0.54), ("s", 563.87, 1.07), ("b", 1426.38, 2.15)], ("t", 142.18, 0.54), ("s", 563.87, 1.07)),
)
def test_published_operations(size: str, published: float, attention: float) -> None:
    layers = count(efficientsci(size))
    assert giga(layers, attention=False) == pytest.approx(published, rel=0.007)
    assert giga(layers, attention=True) == pytest.approx(attention, abs=0.005)


def test_small_network_exactly() -> None:
    layers = count(efficientsci("s"))
    assert giga(layers, attention=False) == pytest.approx(562.338725888, abs=1e-9)
    assert sum(layer.weights for layer in layers) == 3_777_025
    assert {layer.weight_bits for layer in layers} == {layer.activation_bits for layer in layers} == {32}


@pytest.mark.parametrize(("size", "published"), [("s", 193.47), ("b", 3060.75)])
def test_published_operations_of_stformer(size: str, published: float) -> None:
    """The published count takes every output pixel of the transposed convolution to meet all its taps (a quarter
    does), and adds a little for softmax and normalization."""
    layers = count(stformer(size))
    transposed = sum(layer.macs for layer in layers if layer.kind == "ConvTranspose3d") / 1e9
    assert giga(layers, attention=False) + 3 * transposed == pytest.approx(published, rel=0.012)
    if size == "s":
        assert giga(layers, attention=False) == pytest.approx(184.105828352, abs=1e-9)
        assert giga(layers, attention=True) == pytest.approx(7.637377024, abs=1e-9)


def test_windows_are_counted_as_padded() -> None:
    """A trunk of 18 x 14 pixels holds 3 x 2 windows of 49 pixels; time sees the pixels that are there."""
    found = {layer.name: layer.macs for layer in count(STFormer(4, 1), 8, 36, 28)}
    block, width = "layers.0.blocks.1", 16
    assert found[f"{block}.attn.scores"] == found[f"{block}.attn.mix"] == 8 * 6 * 49 * 49 * width
    assert found[f"{block}.attn.qkv"] == 8 * 6 * 49 * 3 * width * width
    assert found[f"{block}.time_attn.scores"] == 18 * 14 * 8 * 8 * width // 2
    assert found[f"{block}.time_attn.proj"] == 18 * 14 * 8 * width * width // 2


def test_shortcuts_of_qsci() -> None:
    layers = count(efficientsci("s", shift=True, shortcuts=True))
    shortcuts = [layer for layer in layers if "shortcut" in layer.name]
    assert sum(layer.macs for layer in shortcuts) / 1e9 == pytest.approx(8.62, abs=0.005)
    assert sum(layer.weights for layer in shortcuts) == 41_345


@pytest.mark.parametrize(("bits", "published"), some([(8, 140.95), (4, 72.69), (3, 37.47), (2, 19.85)], (4, 72.69)))
def test_published_operations_of_qsci(bits: int, published: float) -> None:
    network = efficientsci("s", **qsci.options(bits))
    prepare(network, qsci.recipe(bits))  # not calibrated: counting does not quantize
    layers = count(network)
    assert operations(layers, "paper") / 1e9 == pytest.approx(published, rel=0.007)
    assert {layer.weight_bits for layer in layers} == {bits, 8}
    assert {layer.kind for layer in layers} == {"Conv3d", "Linear", "MatMul"}


@pytest.mark.parametrize(("height", "width", "counted"), [(64, 48, 3072), (33, 16, 544), (1, 1, 4)])
def test_work_follows_the_pixels(height: int, width: int, counted: int) -> None:
    """Odd sizes are padded to even ones."""
    network = EfficientSCI(in_ch=4, units=1, group_num=2)
    one = {layer.name: layer.macs for layer in count(network, 4, 2, 2)}
    assert {layer.name: layer.macs for layer in count(network, 4, height, width)} == {
        name: macs * counted // 4 for name, macs in one.items()
    }


class Layers(nn.Module):
    """One of each kind, with groups and a layer that runs twice; called like a network."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.twice = nn.Linear(6, 6)

    def forward(self, measurement: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.twice(self.twice(measurement.reshape(-1, 1).expand(-1, 6)))
        return self.up(self.grouped(mask))


def test_every_kind_of_layer() -> None:
    found = {layer.name: layer for layer in count(Layers(), 4, 16, 16)}
    assert found["grouped"].macs == 16 * 16 * 8 * (4 // 2) * 9
    assert found["up"].macs == 16 * 16 * 8 * 4 * 4
    assert found["twice"].macs == 2 * 16 * 16 * 6 * 6
    assert found["grouped"].weights == 8 * 2 * 9 + 8


def test_gap_tv_has_no_layers() -> None:
    assert count(GapTV()) == []


def test_the_network_is_left_as_it_was() -> None:
    network = efficientsci("t").train()
    count(network, 2, 16, 16)
    assert network.training and not any(module._forward_hooks for module in network.modules())


def made(kind: str, weight_bits: int, activation_bits: int) -> LayerCount:
    return LayerCount("a", kind, 1024, 10, weight_bits, activation_bits)


@pytest.mark.parametrize(
    ("rule", "layers", "price"),
    [
        ("paper", [made("Conv3d", 8, 8), made("Linear", 4, 4), made("MatMul", 4, 4)], 256 + 128),
        ("paper", [made("Conv3d", 3, 3), made("Conv3d", 2, 2), made("Conv3d", 32, 32)], 64 + 32 + 1024),
        ("paper", [made("Conv3d", 4, 8)], 256),
        ("paper", [made("Conv3d", 5, 5)], None),
        ("linear", [made("Conv3d", 4, 4), made("MatMul", 3, 8)], 128 + 256),
        ("bit product", [made("Conv3d", 4, 8), made("MatMul", 32, 32)], 32 + 1024),
    ],
)
def test_rules(rule: str, layers: list[LayerCount], price: float | None) -> None:
    assert operations(layers, rule) == price


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no counting rule 'bops'"):
        operations([], "bops")
    with pytest.raises(ValueError, match="height=0"):
        count(GapTV(), 8, 0, 8)


def test_an_unfolding_network_is_counted_through_its_physics() -> None:
    """47 GMAC for a measurement of 256 x 256 x 8, in proportion to its pixels and frames."""
    whole = sum(layer.macs for layer in count(DUN()))
    assert round(whole / 1e9, 1) == 46.7
    assert sum(layer.macs for layer in count(DUN(), frames=4, height=128)) * 4 == whole
