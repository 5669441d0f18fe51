"""What layers spoil: known answers on layers whose error passes unchanged, and all measures in one order."""

import pytest
import torch
from torch import Tensor, nn

from bitlens.methods import quantize
from bitlens.methods.gptq import fit_weights
from bitlens.quant.layers import quantized_layers
from bitlens.quant.sensitivity import MEASURES, Measure, sensitivity
from bitlens.recipe import Bits, Recipe, Rule

CHOICES = ("w8a8", "w4a8", "w3a3")


class Sum(nn.Module):
    """Two layers beside each other: the error of each is in the output as it is, times `loud` of the second."""

    def __init__(self, loud: float = 1.0):
        super().__init__()
        self.first, self.second, self.loud = nn.Linear(16, 16), nn.Linear(16, 16), loud

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.loud * self.second(x)


def variants_of(network: nn.Module, batches: list[tuple[Tensor]], fitted: bool = False) -> dict[str, nn.Module]:
    recipes = {label: Recipe(label, (Rule("*", Bits.read(label)),), "direct", "mse", "mse") for label in CHOICES}
    made = {label: quantize(network, recipe, batches)[0] for label, recipe in recipes.items()}
    for variant in made.values() if fitted else ():
        fit_weights(variant, network, batches)
    return made


def batches_of(count: int) -> list[tuple[Tensor]]:
    return [(torch.rand(64, 16),) for _ in range(count)]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_louder_layer_and_fewer_bits_spoil_more(measure: Measure) -> None:
    network, batches = Sum(loud=4.0), batches_of(3)
    found = sensitivity(network, variants_of(network, batches), batches, measure)
    assert list(found) == ["first", "second"]
    # With all others rounded, errors of the quiet layer are lost in those that both have of their input.
    for row in [found["second"]] if measure == "others" else found.values():
        assert 0 < row["w8a8"] < row["w4a8"] < row["w3a3"]
    if measure != "sqnr":  # a layer's own output does not know what becomes of it
        assert all(found["second"][label] > 4 * found["first"][label] for label in CHOICES)


@pytest.mark.parametrize("fitted", [False, True])
def test_errors_of_layers_beside_each_other_are_their_own(fitted: bool) -> None:
    """Known: alone, the output's error is the layer's; the expansion is exact for what is linear.

    Fitted weights lie on their grids without any grid: the float network's must be in all other places.
    """
    network, batches = Sum(), batches_of(2)
    variants = variants_of(network, batches, fitted)
    alone, expanded = (sensitivity(network, variants, batches, measure) for measure in ("alone", "gradient"))
    for name in alone:
        layer, own = quantized_layers(variants["w3a3"])[name], network.get_submodule(name)
        with torch.no_grad():
            errors = [float((layer(*batch) - own(*batch)).square().mean()) for batch in batches]
        assert alone[name]["w3a3"] == pytest.approx(sum(errors) / 2, rel=1e-4)
        assert expanded[name]["w3a3"] == pytest.approx(alone[name]["w3a3"], rel=1e-4)


@pytest.mark.parametrize("measure", ["alone", "gradient"])
def test_errors_are_weighed(measure: Measure) -> None:
    network, batches = Sum(), batches_of(2)
    variants, weights = variants_of(network, batches), [torch.full((1, 1), 3.0), torch.full((1, 1), 0.0)]
    half = sensitivity(network, variants, batches[:1], measure)
    found = sensitivity(network, variants, batches, measure, weights=weights)
    assert found["first"]["w3a3"] == pytest.approx(1.5 * half["first"]["w3a3"], rel=1e-4)


def test_a_layer_used_twice_is_rounded_in_both_places() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) + self.again(x)

    network, batches = Twice(), batches_of(1)
    variants = variants_of(network, batches)
    with torch.no_grad():
        whole = float((variants["w3a3"](*batches[0]) - network(*batches[0])).square().mean())
    assert sensitivity(network, variants, batches)["first"]["w3a3"] == pytest.approx(whole, rel=1e-5)
    assert network.first is network.again and type(network.first) is nn.Linear


def test_what_is_known_is_not_measured_again() -> None:
    network, batches = Sum(), batches_of(1)
    variants, told = variants_of(network, batches), []
    whole = sensitivity(network, variants, batches, on_step=lambda found: told.append(len(told)))
    assert len(told) == 6
    part = {"first": {"w8a8": 123.0}}
    again = sensitivity(network, variants, batches, known=part)
    assert again["first"]["w8a8"] == 123.0 and again["second"] == whole["second"]
    assert all(layer.quantizing for variant in variants.values() for layer in quantized_layers(variant).values())


def test_bad_input() -> None:
    network, batches = Sum(), batches_of(1)
    variants = variants_of(network, batches)
    with pytest.raises(ValueError, match="0 batches"):
        sensitivity(network, variants, [])
    part = Recipe("part", (Rule("first", Bits()),), "direct", "mse", "mse")
    other = quantize(network, part, batches)[0]
    with pytest.raises(ValueError, match="variants with different layers"):
        sensitivity(network, {**variants, "w2a2": other}, batches)
