"""Low bits in the middle: what reads the image and what writes it has 8 bits, as most published tables have it."""

from dataclasses import replace

from torch import nn

from bitlens.methods import direct
from bitlens.methods.direct import layer_bits
from bitlens.methods.ptq import layers_of
from bitlens.recipe import Recipe, Rule


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every layer at `bits`: which the ends are only a network can say (`recipe_for`)."""
    return named(direct.recipe(bits, grid), bits)


def recipe_for(network: nn.Module, bits: int, grid: str = "deployable") -> Recipe:
    """As `recipe`, with the first and the last layer, in the order of their names in the network, at 8 bits."""
    ends, edge = list(layers_of(network)), layer_bits(8, grid)
    rules = (*(Rule(name, edge) for name in dict.fromkeys((ends[0], ends[-1]))), Rule("*", layer_bits(bits, grid)))
    return named(replace(direct.recipe(bits, grid), rules=rules), bits)


def named(found: Recipe, bits: int) -> Recipe:
    """The recipe under this method's name."""
    return replace(found, name=f"ends-w{bits}a{bits}", method="ends")
