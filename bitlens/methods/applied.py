"""`quantize`: a float network, a method and calibration data give a fake-quantized network, ready to run or train."""

import copy
import difflib
from collections.abc import Iterable
from typing import Any, Protocol, cast

from torch import nn

from bitlens.methods.catalog import CATALOG
from bitlens.quant.calibrate import calibrate
from bitlens.quant.prepare import Decision, prepare
from bitlens.recipe import Recipe


class Method(Protocol):
    """A published method.

    It may also have `options(bits)`, the options of the network that it needs; `recipe_for(network, bits, grid)`, where
    its recipe depends on the network; `evened(network)`, the same function in a form that grids fit better; and
    `refine`, a second stage after calibration.
    """

    def recipe(self, bits: int, grid: str = "deployable") -> Recipe: ...


METHODS: dict[str, Method] = {name: entry.method for name, entry in CATALOG.items()}
"""Published methods by name."""


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
        network: float; it is not changed. For a method that adds to the network (Q-SCI, Q-ViT) it must offer
            `with_options` and have these options in its `config`.
        recipe: a Recipe, or the name of a published method of `METHODS`.
        batches: calibration data, what the network is called with: (measurement, mask) pairs.
        bits, grid: for a method given by name.

    Raises:
        ValueError: unknown method, unfit network or data.
    """
    if isinstance(recipe, str):
        needed = getattr(METHODS.get(recipe), "options", None)
        options = needed(bits) if needed else {}
        missing = [option for option in options if option not in getattr(network, "config", {})]
        if missing:
            raise ValueError(
                f"{type(network).__name__} has no option {missing[0]!r}, which {recipe} needs; wanted a network with "
                "`with_options`; use the method 'direct'"
            )
        own = getattr(METHODS.get(recipe), "recipe_for", None)
        evened = getattr(METHODS.get(recipe), "evened", None)
        recipe = recipe_of(recipe, bits, grid) if own is None else cast(Recipe, own(network, bits, grid))
        if options:
            network = network.with_options(**options)  # type: ignore[operator]
        if evened is not None:
            network = evened(network)
    copied = copy.deepcopy(network).requires_grad_(True)
    decisions = prepare(copied, recipe)
    calibrate(copied, batches, recipe)
    copied.recipe = recipe  # type: ignore[assignment]
    return copied.eval(), decisions
