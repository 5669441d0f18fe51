"""Q-ViT, PAMS and the methods without training: their compositions, and what they write and read back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.checkpoint import load, save
from bitlens.methods import METHODS, quantize, recipe_of
from bitlens.methods.catalog import CATALOG, in_words
from bitlens.networks.efficientsci import EfficientSCI, HeadNorm, config_from_state_dict
from bitlens.quant.grid import BoundGrid, StepGrid, TruncationGrid
from bitlens.quant.layers import Quantized, QuantizedMatMul, quantized_layers
from bitlens.recipe import Recipe

BASELINES = ["qvit", "pams", "minmax", "percentile", "dobi"]


def network(**options: bool) -> EfficientSCI:
    return EfficientSCI(8, 1, 2, **options).eval()


def data() -> tuple[Tensor, Tensor]:
    mask = (torch.rand(1, 4, 8, 8) < 0.5).float()
    return (mask * torch.rand(1, 4, 8, 8)).sum(1), mask


def output(made: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return made(*batch)


def made(method: str, bits: int, grid: str = "deployable") -> EfficientSCI:
    quantized, _ = quantize(network(), method, [data(), data()], bits=bits, grid=grid)
    assert isinstance(quantized, EfficientSCI)
    return quantized


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_recipes_survive_toml(method: str, bits: int, tmp_path: Path) -> None:
    recipe = recipe_of(method, bits)
    assert (recipe.method, recipe.name) == (method, f"{method}-w{bits}a{bits}")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.from_toml(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("method", "grid"), [*((m, "deployable") for m in BASELINES), ("qvit", "official"), ("dobi", "official")]
)
@pytest.mark.parametrize("bits", [8, 3])
def test_checkpoints_bit_for_bit(method: str, grid: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(bits)
    quantized, batch = made(method, bits, grid), data()
    with torch.no_grad():  # as after training
        for parameter in quantized.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape))
    loaded = load(save(quantized, tmp_path / "net.safetensors"))
    assert isinstance(loaded, EfficientSCI) and loaded.config == quantized.config
    assert loaded.recipe == quantized.recipe == recipe_of(method, bits, grid)
    assert torch.equal(output(loaded, batch), output(quantized, batch))
    again = save(loaded, tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "net.safetensors").read_bytes()


def test_head_norm() -> None:
    """[Q-ViT, IRM]: zero mean and unit variance over the channels of a token, then gamma and beta per channel."""
    norm, x = HeadNorm(6), 3 + 2 * torch.randn(2, 4, 5, 6, 7)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6))
        norm.bias.copy_(torch.rand(6))
        wanted = (x - x.mean(3, keepdim=True)) / (x.var(3, unbiased=False, keepdim=True) + 1e-5).sqrt()
        wanted = wanted * norm.weight[:, None] + norm.bias[:, None]
        torch.testing.assert_close(norm(x), wanted)


def test_normalize_is_an_option_of_the_network() -> None:
    trained = network(shift=True)
    changed = trained.with_options(normalize=True)
    assert changed.config == {**trained.config, "normalize": True}  # shift stays
    assert config_from_state_dict(changed.state_dict()) == changed.config
    assert config_from_state_dict(trained.state_dict()) == trained.config
    for key, value in trained.state_dict().items():
        assert torch.equal(changed.state_dict()[key], value)
    added = changed.state_dict().keys() - trained.state_dict().keys()
    assert {key.rpartition("tsab.")[2] for key in added} == {
        "norm_q.weight", "norm_q.bias", "norm_k.weight", "norm_k.bias",
    }  # fmt: skip


def test_normalized_scores_forget_the_scale_of_q_and_k() -> None:
    normal = network(normalize=True)
    batch = data()
    before = output(normal, batch)
    with torch.no_grad():
        for block in normal.resdnet_list:
            for cformer in block.cformer_list:  # type: ignore[union-attr]
                qkv = cformer.tsab.qkv.weight  # type: ignore[union-attr]
                qkv[: 2 * len(qkv) // 3] *= 50
    assert float((output(normal, batch) - before).abs().max()) < 1e-2


def test_qvit() -> None:
    quantized = made("qvit", 4)
    assert quantized.config["normalize"] is True and quantized.config["shift"] is False
    for name, layer in quantized_layers(quantized).items():
        wanted = 8 if name in ("fem.0", "vrm.4") else 4
        assert (layer.weight_bits, layer.activation_bits) == (wanted, wanted), name


def test_pams() -> None:
    """One alpha per layer from the average of the largest magnitudes, one scale of weights from the largest one."""
    torch.manual_seed(5)
    original, batches = network(), [data(), data()]
    quantized, _ = quantize(original, "pams", batches, bits=4)
    peaks: list[Tensor] = []
    handle = original.up_conv.register_forward_pre_hook(lambda _, inputs: peaks.append(inputs[0].abs().max()))
    for batch in batches:
        output(original, batch)
    handle.remove()
    for layer in quantized_layers(quantized).values():
        for grid, axis in layer.calibration_groups().values():
            assert isinstance(grid, TruncationGrid) and axis is None and grid.alpha.requires_grad
        if isinstance(layer, Quantized):
            weight = layer.layer.get_parameter("weight")
            assert isinstance(layer.weight_grid, StepGrid)
            torch.testing.assert_close(layer.weight_grid.scale.detach(), weight.detach().abs().max() / 7)
    layer = quantized_layers(quantized)["up_conv"]
    assert isinstance(layer, Quantized) and isinstance(layer.input_grid, TruncationGrid)
    assert float(layer.input_grid.alpha.detach()) == pytest.approx(float(torch.stack(peaks).mean()), rel=1e-3)


def test_ranges_without_training() -> None:
    """MinMax holds every value, the percentile cuts the tails, and the squared error decides for DOBI."""
    torch.manual_seed(6)
    original, batch = network(), data()
    reaches: dict[str, float] = {}
    for method in ("minmax", "percentile", "dobi"):
        quantized, _ = quantize(original, method, [batch], bits=4)
        layer = quantized_layers(quantized)["fem.2"]
        assert isinstance(layer, Quantized) and isinstance(layer.input_grid, StepGrid)
        reaches[method] = 15 * float(layer.input_grid.scale.detach())
    assert reaches["dobi"] < reaches["minmax"] and reaches["percentile"] <= reaches["minmax"]


def test_free_bounds_of_2dquant() -> None:
    for layer in quantized_layers(made("dobi", 4, "official")).values():
        grids = [grid for grid, _ in layer.calibration_groups().values()]
        grids += [layer.weight_grid] if isinstance(layer, Quantized) else []
        assert all(isinstance(grid, BoundGrid) and not grid.integer and grid.scales == 1 for grid in grids)
        assert isinstance(layer, Quantized | QuantizedMatMul)


@pytest.mark.parametrize(
    ("method", "bits", "grid", "said"),
    [
        ("pams", 4, "official", "grid 'official' for PAMS, which has one grid only"),
        ("pams", 1, "deployable", "1 bit on PAMS's grid"),
        ("dobi", 4, "free", "grid 'free'; wanted deployable or official"),
        ("dobbi", 4, "deployable", r"no method 'dobbi'; did you mean 'dobi'\?"),
    ],
)
def test_refusals(method: str, bits: int, grid: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quantize(network(), method, [data()], bits=bits, grid=grid)


def test_a_network_without_the_option_is_refused() -> None:
    class Other(torch.nn.Conv2d):
        config: dict[str, Any]

    other = Other(1, 1, 1)
    other.config = {"shift": False}
    with pytest.raises(ValueError, match="Other has no option 'normalize', which qvit needs"):
        quantize(other, "qvit", [])


def test_every_method_is_reached_by_name() -> None:
    assert list(METHODS) == list(CATALOG) and set(BASELINES) < set(METHODS)
    assert all(method.recipe(8).method == name for name, method in METHODS.items())
    assert all(name in in_words() for name in METHODS)
