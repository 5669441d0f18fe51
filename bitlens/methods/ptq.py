"""Post-training quantization: ranges chosen once from weights and calibration data, no training.

| name         | range of weights and activations                             | source                          |
|--------------|--------------------------------------------------------------|---------------------------------|
| `minmax`     | smallest and largest value                                   | Jacob et al., CVPR 2018         |
| `percentile` | the middle 99.9 % of the values                              | Li et al., CVPR 2019            |
| `dobi`       | the least squared error over a search, 2DQuant's first stage | Liu et al., NeurIPS 2024, alg. 1 |
"""

from dataclasses import dataclass
from typing import Literal

from bitlens.methods.direct import layer_bits
from bitlens.recipe import Bits, Recipe, Rule


@dataclass(frozen=True)
class RangeChoice:
    """Quantization by one choice of ranges."""

    name: str
    """Of the method."""
    range: Literal["minmax", "percentile", "mse"]
    """For weights and activations, see `bitlens.quant.ranges`."""

    def recipe(self, bits: int, grid: str = "deployable") -> Recipe:
        """Every convolution, linear layer and attention product at `bits`.

        Args:
            bits: 1 to 8.
            grid: "deployable" (a symmetric scale per output channel of the weights, one scale and an integer
                zero-point for the activations), or "official" (2DQuant's: two free bounds per tensor, of weights too).
        """
        layer = two_bounds(bits) if grid == "official" else layer_bits(bits, grid)
        return Recipe(f"{self.name}-w{bits}a{bits}", (Rule("*", layer),), self.name, self.range, self.range)


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
