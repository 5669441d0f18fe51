"""`quantize`: a float network, a method and calibration data give a fake-quantized network, ready to run or train."""

import copy
import difflib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import nn

from bitlens.methods import direct, qsci
from bitlens.quant.calibrate import calibrate
from bitlens.quant.prepare import Decision, prepare
from bitlens.recipe import Recipe

METHODS: dict[str, ModuleType] = {"direct": direct, "qsci": qsci}
"""Published methods by name; each has `recipe(bits, grid)` and may have `options(bits)` of the network."""


def recipe_of(method: str, bits: int, grid: str = "deployable") -> Recipe:
    """The recipe of a published method.

    Raises:
        ValueError: unknown method (the nearest one is named), bits or grid.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no method {method!r}; {hint}wanted one of {', '.join(METHODS)}; choose one")
    return METHODS[method].recipe(bits, grid)


def quantize(
    network: nn.Module,
    recipe: Recipe | str,
    batches: Iterable[tuple[Any, ...]],
    *,
    bits: int = 8,
    grid: str = "deployable",
) -> tuple[nn.Module, list[Decision]]:
    """A fake-quantized copy of a float network, calibrated, and what became of each layer.

    Args:
        network: float; it is not changed. For a method that adds to the network (Q-SCI) it must offer
            `with_options`.
        recipe: a Recipe, or the name of a published method ("direct", "qsci").
        batches: calibration data, what the network is called with: (measurement, mask) pairs.
        bits, grid: for a method given by name.

    Raises:
        ValueError: unknown method, unfit network or data.
    """
    if isinstance(recipe, str):
        options = getattr(METHODS.get(recipe), "options", None)
        recipe = recipe_of(recipe, bits, grid)
        if options is not None:
            if not hasattr(network, "with_options"):
                raise ValueError(
                    f"{type(network).__name__} has no Q-SCI options; wanted a network with `with_options`; use the "
                    "method 'direct'"
                )
            network = network.with_options(**options(bits))  # type: ignore[operator]
    copied = copy.deepcopy(network).requires_grad_(True)
    decisions = prepare(copied, recipe)
    calibrate(copied, batches, recipe)
    copied.recipe = recipe  # type: ignore[assignment]
    return copied.eval(), decisions
