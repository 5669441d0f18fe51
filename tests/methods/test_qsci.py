"""Q-SCI's composition: shifts at all bits, shortcuts at 8 bits beside low-bit layers, a start close to float."""

import pytest
import torch
from torch import Tensor

import bitlens
from bitlens.methods import METHODS, qsci, quantize, recipe_of
from bitlens.networks.efficientsci import EfficientSCI, HeadShift, initialize_identity
from bitlens.networks.stformer import STFormer
from bitlens.quant.layers import QuantizedMatMul, quantized_layers
from bitlens.recipe import Bits, Recipe, Rule


def network() -> EfficientSCI:
    made = EfficientSCI(8, 1, 2)
    initialize_identity(made)
    return made.eval()


def data() -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, 4, 16, 16) < 0.5).float()
    return (mask * torch.rand(1, 4, 16, 16)).sum(1), mask


@pytest.mark.parametrize(("bits", "shortcuts"), [(8, False), (4, True), (3, True), (2, True)])
def test_options_and_bits(bits: int, shortcuts: bool) -> None:
    made, decisions = quantize(network(), "qsci", [data()], bits=bits)
    assert isinstance(made, EfficientSCI)
    assert made.config["shift"] is True and made.config["shortcuts"] is shortcuts
    layers = quantized_layers(made)
    beside = {name for name in layers if "_shortcut." in name}
    assert len(beside) == (6 if shortcuts else 0)
    for name, layer in layers.items():
        wanted = 8 if name in beside else bits
        assert (layer.weight_bits, layer.activation_bits) == (wanted, wanted), name
    assert sum(isinstance(module, HeadShift) for module in made.modules()) == 4
    assert {d.kind for d in decisions if d.bits is None} == {"HeadShift"}
    assert made.recipe == qsci.recipe(bits)
    assert not made.training


@pytest.mark.filterwarnings("ignore::bitlens.files.FileRemark")  # it gets less of some methods
def test_float_network_is_not_changed() -> None:
    torch.manual_seed(1)
    original = network()
    original.requires_grad_(False)
    before = {key: value.clone() for key, value in original.state_dict().items()}
    batch = data()
    with torch.no_grad():
        output = original(*batch)
    for method in sorted(set(METHODS) - {"shortcuts"}):  # of plain 2-D convolutions alone
        quantize(original, method, [batch], bits=4)
    assert original.state_dict().keys() == before.keys() and not quantized_layers(original)
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())
    with torch.no_grad():
        assert torch.equal(original(*batch), output)


def test_what_is_quantized_can_be_trained() -> None:
    original = network().requires_grad_(False)
    made, _ = quantize(original, "direct", [data()], bits=4)
    assert all(parameter.requires_grad for parameter in made.parameters())


@pytest.mark.parametrize("shortcuts", [False, True])
def test_options_start_close_to_the_float_network(shortcuts: bool) -> None:
    original, batch = network(), data()
    changed = original.with_options(shift=True, shortcuts=shortcuts)
    with torch.no_grad():
        exact, near = original(*batch), changed(*batch)
    difference = float((near - exact).square().mean().sqrt())
    assert difference < (0.25 if shortcuts else 1e-6) * float(exact.square().mean().sqrt())
    assert changed.config == {**original.config, "shift": True, "shortcuts": shortcuts}
    assert not changed.training and original.train().with_options(shift=True, shortcuts=False).training


def test_last_shortcut_takes_over_the_centre_tap() -> None:
    """The last convolution and its shortcut are summed without a nonlinearity between: nothing changes there."""
    original = network()
    changed = original.with_options(shift=False, shortcuts=True)
    x = torch.rand(1, 8, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(changed.vrm[4](x) + changed.vrm_shortcut[2](x), original.vrm[4](x))
    assert not changed.vrm[4].get_parameter("weight")[:, :, 1, 1, 1].any()


def test_options_kept_when_they_are_there() -> None:
    trained = network().with_options(shift=True, shortcuts=True)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    again = trained.with_options(shift=True, shortcuts=True)
    for key, value in trained.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(("bits", "shortcuts"), [(8, False), (4, True)])
def test_stformer(bits: int, shortcuts: bool) -> None:
    original = STFormer(4, 1).eval()
    made, decisions = quantize(original, "qsci", [data()], bits=bits)
    assert isinstance(made, STFormer)
    assert made.config == {**original.config, "shift": True, "shortcuts": shortcuts}
    layers = quantized_layers(made)
    assert sum("_shortcut." in name for name in layers) == (8 if shortcuts else 0)
    for name, layer in layers.items():
        wanted = 8 if "_shortcut." in name else bits
        assert (layer.weight_bits, layer.activation_bits) == (wanted, wanted), name
    products = {name for name, layer in layers.items() if isinstance(layer, QuantizedMatMul)}
    block = "layers.0.blocks.0"
    assert {f"{block}.attn.scores", f"{block}.attn.mix", f"{block}.time_attn.scores"} < products and len(products) == 8
    assert sum(isinstance(module, HeadShift) for module in made.modules()) == 8
    kinds = {decision.kind for decision in decisions if decision.bits is None}
    assert kinds == {"HeadShift", "LayerNorm", "SpaceAttention", "TimeAttention"}  # the last two hold position biases


def test_stformer_starts_close_to_the_float_network() -> None:
    original, batch = STFormer(4, 1).eval(), data()
    with torch.no_grad():
        exact = original(*batch)
        torch.testing.assert_close(original.with_options(shift=True, shortcuts=False)(*batch), exact)
        near = original.with_options(shift=True, shortcuts=True)(*batch)
    assert float((near - exact).square().mean().sqrt()) < 0.25 * float(exact.square().mean().sqrt())


@pytest.mark.parametrize("grid", ["deployable", "official"])
def test_grids(grid: str) -> None:
    recipe = recipe_of("qsci", 4, grid)
    bits = recipe.bits_of("fem.0")
    assert bits is not None
    found = (bits.activation_granularity, bits.zero_point, recipe.activation_range)
    assert found == {"deployable": ("tensor", "integer", "mse"), "official": ("input_channel", "rounded", "lsq")}[grid]
    assert recipe.name == "qsci-w4a4" and recipe.method == "qsci"


def test_own_recipe() -> None:
    recipe = Recipe("mine", (Rule("fem.*", Bits(2, 8)),))
    made, decisions = bitlens.quantize(network(), recipe, [data()])
    assert list(quantized_layers(made)) == ["fem.0", "fem.2", "fem.4"]
    assert made.recipe == recipe
    assert sum(decision.bits is None for decision in decisions) == len(decisions) - 3


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r"no method 'qsc'; did you mean 'qsci'\? wanted one of direct, ends, shortcuts, qsci"
    ):
        quantize(network(), "qsc", [data()])
    with pytest.raises(ValueError, match="no method 'zzz'; wanted one of"):
        recipe_of("zzz", 4)
    with pytest.raises(ValueError, match="grid 'integer'; wanted deployable or official"):
        recipe_of("direct", 4, "integer")
    with pytest.raises(ValueError, match="from 1 to 8"):
        recipe_of("qsci", 0)
    with pytest.raises(ValueError, match="Linear has no option 'shift', which qsci needs; wanted a network with"):
        quantize(torch.nn.Linear(2, 2), "qsci", [])
