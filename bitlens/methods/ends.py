"""Low bits in the middle: what reads the image and what writes it has 8 bits, as most published tables have it.

| name        | beside the layers in the middle                                                    |
|-------------|------------------------------------------------------------------------------------|
| `ends`      | nothing                                                                            |
| `shortcuts` | what each channel hands on to itself, at 8 bits (`quant/shortcut.py`), where it may |
"""

from dataclasses import dataclass, replace

from torch import nn

from bitlens.methods import direct
from bitlens.methods.direct import layer_bits
from bitlens.methods.ptq import layers_of
from bitlens.quant.shortcut import hands_on
from bitlens.recipe import Recipe, Rule


@dataclass(frozen=True)
class Middle:
    """Low bits in the middle, and what is beside."""

    name: str
    """Of the method."""
    shortcut: bool
    """Whether layers in the middle have a shortcut for each channel."""

    def recipe(self, bits: int, grid: str = "deployable") -> Recipe:
        """Every layer at `bits`: which the ends are only a network can say (`recipe_for`)."""
        return self.named(direct.recipe(bits, grid), bits)

    def recipe_for(self, network: nn.Module, bits: int, grid: str = "deployable") -> Recipe:
        """As `recipe`, with the first and the last layer, in the order of their names in the network, at 8 bits.

        Raises:
            ValueError: shortcuts are wanted, and no layer between may have one.
        """
        layers = layers_of(network)
        first, *between, last = [*layers, *layers][: max(2, len(layers))]
        if self.shortcut and not any(hands_on(layers[name]) for name in between):
            raise ValueError(
                f"no layer of {type(network).__name__} hands its channels on; wanted 2-D convolutions that keep size "
                "and number of channels; use the method 'ends'"
            )
        edge, low = layer_bits(8, grid), replace(layer_bits(bits, grid), shortcut=self.shortcut)
        rules = (*(Rule(name, edge) for name in dict.fromkeys((first, last))), Rule("*", low))
        return self.named(replace(direct.recipe(bits, grid), rules=rules), bits)

    def named(self, found: Recipe, bits: int) -> Recipe:
        """The recipe under this method's name."""
        return replace(found, name=f"{self.name}-w{bits}a{bits}", method=self.name)


ENDS = Middle("ends", False)
SHORTCUTS = Middle("shortcuts", True)
