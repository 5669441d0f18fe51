"""CondiQuant finds the answer where it is known, and changes weights where their inputs do not see it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bitlens.methods import quantize
from bitlens.methods.condiquant import condition_number, condition_weights, conditioned
from bitlens.quant.calibrate import calibrate, set_weight_range
from bitlens.quant.layers import Quantized, float_mode
from bitlens.quant.prepare import prepare
from bitlens.recipe import Bits, Recipe, Rule

from .test_twodquant import image, swinir


def matrix(*values: float) -> Tensor:
    """Random, with these singular values."""
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(size, n, dtype=torch.float64))[0] for size in (n, n + 3))
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


def test_where_all_inputs_are_alike_the_answer_is_known() -> None:
    """Of 1/2 |W' - W|^2 + 1/2 sum (s - mean)^2: every singular value goes half of the way to their mean."""
    found = conditioned(matrix(7.0, 4.0, 1.0), torch.eye(6, dtype=torch.float64), strength=1.0, steps=60)
    assert torch.linalg.svdvals(found).tolist() == pytest.approx([5.5, 4.0, 2.5])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_no_input_sees_is_free(scale: float) -> None:
    """Inputs along the first two axes only: outputs stay, and the weights of the third axis rise to the others."""
    weight = torch.diag(torch.tensor([3.0, 3.0, 0.01], dtype=torch.float64))
    gram = scale * torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    found = conditioned(weight, gram, strength=0.01, steps=2000)
    assert (found - weight)[:, :2].abs().max() < 0.02
    assert condition_number(weight) == pytest.approx(300) and condition_number(found) < 1.01


def test_no_strength_changes_nothing() -> None:
    weight = matrix(3.0, 2.0, 1.0)
    assert torch.allclose(conditioned(weight, torch.eye(6, dtype=torch.float64), strength=0.0), weight)


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 5), nn.Conv2d(3, 5, 3, padding=1, stride=2), nn.Conv2d(6, 4, 1, bias=False)]
)
def test_a_layer_keeps_its_outputs_and_gets_a_range(layer: nn.Module) -> None:
    """Nearly, for inputs of few dimensions; the means of its outputs, where it has a bias, exactly."""
    network = nn.Sequential(layer)
    if isinstance(layer, nn.Linear):
        x = torch.randn(500, 2) @ torch.randn(2, 6) + 1
    else:
        channels = layer.get_parameter("weight").shape[1]
        x = torch.randn(4, 1, 12, 12).expand(-1, channels, -1, -1) + 1
    recipe = Recipe("test", (Rule("*", Bits(4, 1)),), "test", "minmax", "minmax")
    student = copy.deepcopy(network)
    prepare(student, recipe)
    calibrate(student, [(x,)], recipe)
    quantized = student[0]
    assert isinstance(quantized, Quantized)
    before = quantized.layer.get_parameter("weight").clone()
    ((old, new),) = condition_weights(student, network, [(x,)], "minmax", strength=1e-3).values()
    weight = quantized.layer.get_parameter("weight")
    with float_mode(student), torch.no_grad():
        wanted, found = network(x), student(x)
    assert new < old and (weight - before).norm() > 10 * (found - wanted).square().mean().sqrt()
    if quantized.layer.bias is not None:
        dims = [axis for axis in range(wanted.ndim) if wanted.shape[axis] != len(weight) or axis == 0]
        assert torch.allclose(wanted.mean(dims), found.mean(dims), atol=1e-4)
    chosen, wanted_grid = quantized.weight_grid.scale_and_zero_point()[0].clone(), quantized.weight_grid
    set_weight_range(quantized, "minmax")
    assert torch.equal(chosen, wanted_grid.scale_and_zero_point()[0])


def test_a_mean_is_the_matter_of_the_bias() -> None:
    """An input that never changes: with a bias its weights are free, without one they are not."""
    x = torch.randn(400, 3)
    x[:, 2] = 1.0
    for bias in (True, False):
        layer = nn.Linear(3, 3, bias=bias)
        with torch.no_grad():
            layer.weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 0.01])))
        student = nn.Sequential(copy.deepcopy(layer))
        recipe = Recipe("test", (Rule("*", Bits(8, 8)),), "test", "minmax", "minmax")
        prepare(student, recipe)
        calibrate(student, [(x,)], recipe)
        ((old, new),) = condition_weights(student, nn.Sequential(layer), [(x,)], "minmax", strength=0.05).values()
        assert old == pytest.approx(100) and (new < 1.5 if bias else new > 15)
        with float_mode(student), torch.no_grad():
            assert float((student(x) - layer(x)).norm() / layer(x).norm()) < 0.05


def test_the_method_conditions_before_it_refines() -> None:
    network, batches = swinir(), [(image(seed),) for seed in (1, 2)]
    student, _ = quantize(network, "condiquant", batches, bits=4, grid="official")
    plain, _ = quantize(network, "2dquant", batches, bits=4, grid="official")
    from bitlens.methods import METHODS

    for method, made in (("condiquant", student), ("2dquant", plain)):
        METHODS[method].refine(made, network, batches, steps=1)  # type: ignore[attr-defined]
    weights = [dict(made.named_parameters()) for made in (student, plain, network)]
    name = next(key for key in weights[0] if key.endswith("fc1.layer.weight"))
    assert torch.equal(weights[1][name], weights[2][name.replace(".layer", "")])
    assert not torch.equal(weights[0][name], weights[1][name])
