"""PAMS: parameterized max scale, quantized super-resolution by QAT [Li et al., ECCV 2020, arXiv 2011.04212].

1. Activations are truncated at a learned alpha per layer (`bitlens.quant.grid.TruncationGrid`), which starts at the
   moving average of their largest magnitudes (`bitlens.quant.ranges.ema`). Its learning rate is 1e-2 in the paper:
   the setting `scale_learning_rate`.
2. Weights have one symmetric grid per layer, from their largest magnitude.
3. Structured knowledge transfer (SKT): the normalized spatial attention of features follows the float network's. A
   term of the loss: `bitlens.training.losses.attention_distance`, switched on by `distill_attention`.
"""

from bitlens.recipe import Bits, Recipe, Rule


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every convolution, linear layer and attention product at `bits`, one scale each.

    Differs: PAMS takes the largest weight anew at every step; here the scale starts there and is then trained with the
    weights, by LSQ's gradient, as in every other method of the one loop. Not measured.

    Raises:
        ValueError: another grid than "deployable", which integer kernels execute as it is.
    """
    if grid != "deployable":
        raise ValueError(f"grid {grid!r} for PAMS, which has one grid only; wanted deployable; leave the grid out")
    layer = Bits(
        bits,
        bits,
        weight_granularity="tensor",
        product_granularity="tensor",
        zero_point="none",
        parametrization="truncation",
    )
    return Recipe(f"pams-w{bits}a{bits}", (Rule("*", layer),), "pams", weight_range="minmax", activation_range="ema")
