"""Low bits inside an unfolding network: its priors are quantized, its physics stays in float.

What a stage gets wrong by rounding, the projection of the next stage sees in the measurement and puts right. So low
bits cost an unfolding network less than one that rebuilds in a single pass; nobody seems to have published this. What a
prior reads, the measurement (`head`) and the features of the stage before (`fuse`), and what it writes, the video
(`tail`), has 8 bits, as Q-SCI keeps its feature extraction and reconstruction near to 8 bits by shortcuts (ECCV 2024,
sec. 3.2, 3.3).
"""

from dataclasses import replace
from typing import Any

from bitlens.methods.direct import layer_bits, starts
from bitlens.recipe import Recipe, Rule


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every convolution of the priors at `bits`, what reads and what writes at 8 bits.

    Below 8 bits the features that all the rest is made of have 8 too: those of the first level of the encoder, whose
    weights have twice the bits, and what is brought to half the size.
    """
    low, edge = layer_bits(bits, grid), layer_bits(8, grid)
    edges = (Rule(f"*.{name}", edge) for name in ("head", "fuse", "tail"))
    first = Rule("*.encoder.0.*", replace(edge, weight=min(2 * bits, 8)))
    rules = (*edges, first, Rule("*.down.*", replace(edge, weight=bits)), Rule("*", low))
    if bits == 8 and grid == "deployable":  # nothing is clipped: other cameras have brighter light
        return Recipe("unfolding-w8a8", rules, "unfolding", "minmax", "minmax")
    return Recipe(f"unfolding-w{bits}a{bits}", rules, "unfolding", *starts(grid))


MASK_GAIN = 0.25
"""Priors read the mask, which is 0 or 1, by weights ten times as small as those for the video. In one row of codes with
these, 8 bits round them so coarsely that the mask shows: -0.12 dB on clips. As dark as this it costs 0.02 dB."""


def evened(network: Any) -> Any:
    """The same network with inputs that fit one grid."""
    return network.with_mask_gain(MASK_GAIN) if hasattr(network, "with_mask_gain") else network
