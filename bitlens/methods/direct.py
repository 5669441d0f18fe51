"""Direct quantization: every layer at the same bits, no change to the network (the baseline of Q-SCI's table 4)."""

from typing import Literal

from bitlens.recipe import Bits, Recipe, Rule


def recipe(bits: int, grid: str = "deployable") -> Recipe:
    """Every convolution, linear layer and attention product at `bits`.

    Args:
        bits: 1 to 8.
        grid: "deployable" (one activation scale per layer, integer zero-point) or "official" (a scale and a rounded
            zero-point per input channel, LSQ's start, as Q-SCI's code has them).
    """
    rules = (Rule("*", layer_bits(bits, grid)),)
    return Recipe(f"direct-w{bits}a{bits}", rules, "direct", *starts(grid))


def layer_bits(bits: int, grid: str) -> Bits:
    """The bits of one layer in one of the two grids.

    Raises:
        ValueError: unknown grid.
    """
    if grid == "deployable":
        return Bits(bits, bits)
    if grid == "official":
        return Bits(bits, bits, activation_granularity="input_channel", zero_point="rounded")
    raise ValueError(f"grid {grid!r}; wanted deployable or official; choose one")


def starts(grid: str) -> tuple[Literal["mse", "lsq"], Literal["mse", "lsq"]]:
    """How weight and activation ranges start: by squared error, or as LSQ for the official grid."""
    return ("mse", "mse") if grid == "deployable" else ("lsq", "lsq")
