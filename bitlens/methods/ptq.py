"""Post-training quantization: ranges chosen once from weights and calibration data, no training.

| name         | range of weights and activations                             | source                          |
|--------------|--------------------------------------------------------------|---------------------------------|
| `minmax`     | smallest and largest value                                   | Jacob et al., CVPR 2018         |
| `percentile` | the middle 99.9 % of the values                              | Li et al., CVPR 2019            |
| `dobi`       | the least squared error over a search, 2DQuant's first stage | Liu et al., NeurIPS 2024, alg. 1 |
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from bitlens.methods.direct import layer_bits
from bitlens.quant.layers import LAYERS
from bitlens.quant.prepare import is_product
from bitlens.recipe import Bits, Recipe, Rule


@dataclass(frozen=True)
class RangeChoice:
    """Quantization by one choice of ranges."""

    name: str
    """Of the method."""
    range: Literal["minmax", "percentile", "mse"]
    """For weights and activations, see `bitlens.quant.ranges`; 2DQuant's own search with its own grids."""

    def recipe(self, bits: int, grid: str = "deployable") -> Recipe:
        """Every convolution, linear layer and attention product at `bits`.

        Args:
            bits: 1 to 8.
            grid: "deployable" (a symmetric scale per output channel of the weights, one scale and an integer
                zero-point for the activations), or "official" (2DQuant's: two free bounds per tensor, of weights too).
        """
        return self.with_rules((Rule("*", self.layer(bits, grid)),), bits, grid)

    def recipe_for(self, network: nn.Module, bits: int, grid: str = "deployable") -> Recipe:
        """As `recipe`; of a network for images what 2DQuant quantizes (`body_rules`)."""
        return self.with_rules(body_rules(network, self.layer(bits, grid)), bits, grid)

    def layer(self, bits: int, grid: str) -> Bits:
        """The bits of one layer."""
        return two_bounds(bits) if grid == "official" else layer_bits(bits, grid)

    def with_rules(self, rules: tuple[Rule, ...], bits: int, grid: str) -> Recipe:
        """The recipe of these rules."""
        chosen = "dobi" if grid == "official" and self.range == "mse" else self.range
        return Recipe(f"{self.name}-w{bits}a{bits}", rules, self.name, chosen, chosen)


MINMAX = RangeChoice("minmax", "minmax")
PERCENTILE = RangeChoice("percentile", "percentile")
DOBI = RangeChoice("dobi", "mse")


def two_bounds(bits: int) -> Bits:
    """2DQuant's grids: a lowest and a highest value for each tensor, anywhere."""
    return Bits(
        bits,
        bits,
        weight_granularity="tensor",
        product_granularity="tensor",
        zero_point="free",
        parametrization="bound",
    )


def body_rules(network: nn.Module, bits: Bits) -> tuple[Rule, ...]:
    """What 2DQuant quantizes of a network for images; everything of any other.

    Transformers: linear layers and attention products; convolutions stay float. Convolutional networks: all but the
    first and the last convolution, which stay float [2DQuant sec. 4.1].
    """
    layers = layers_of(network)
    if not of_images(network):
        return (Rule("*", bits),)
    if not any(map(is_product, layers.values())):
        ends = list(layers)
        return Rule(ends[0]), Rule(ends[-1]), Rule("*", bits)
    chosen = [name for name, module in layers.items() if isinstance(module, nn.Linear) or is_product(module)]
    patterns = {ending(name): None for name in chosen}  # in order, each once
    others = [name for name in layers if name not in chosen and ending(name) in patterns]
    return (*(Rule(name) for name in others), *(Rule(pattern, bits) for pattern in patterns))


def of_images(network: nn.Module) -> bool:
    """Whether a network takes images: it says how many times it enlarges them."""
    return "scale" in getattr(network, "config", {}) or getattr(network, "scale", None) == 1


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The layers and attention products of a float network, by name."""
    return {
        name: module for name, module in network.named_modules() if isinstance(module, LAYERS) or is_product(module)
    }


def ending(name: str) -> str:
    """The pattern of all layers with the same last part of their name."""
    return f"*.{name.rpartition('.')[2]}" if "." in name else name
