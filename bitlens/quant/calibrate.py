"""Run data through a prepared network and set the range of every grid; then the grids are ready and stay so.

Activations are observed without grids (errors of earlier layers do not enter), as 2DQuant does.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.quant.equalization import equalize_channels
from bitlens.quant.grid import Grid, StepGrid, TruncationGrid
from bitlens.quant.inputs import See, watch
from bitlens.quant.layers import Quantized, float_mode, quantized_layers
from bitlens.quant.low_rank import split_low_rank
from bitlens.quant.ranges import choose_range, ema
from bitlens.recipe import Recipe

KEPT = 1 << 13
"""Values kept of each tensor of each batch (evenly spaced), beside its exact extremes."""


class Observer:
    """Keeps a sample of what passes through one grid: (groups, n) per batch."""

    def __init__(self, grid: Grid, axis: int | None):
        self.grid, self.axis = grid, axis
        self.samples: list[Tensor] = []

    def see(self, values: Tensor) -> None:
        """Keep evenly spaced values of each group, and its extremes."""
        rows = as_rows(values.detach().float(), self.axis)
        room = max(256, KEPT // len(rows))
        stride = max(1, rows.shape[1] // room) | 1  # odd, so that it does not fall in step with even sizes
        ends = torch.stack([rows.amin(1), rows.amax(1)], dim=1)
        self.samples.append(torch.cat([rows[:, ::stride], ends], dim=1))

    def settle(self, method: str) -> None:
        """Choose the range and make the grid ready."""
        if method == "ema":
            self.grid.set_range(*ema(self.samples))
            return
        values = torch.cat(self.samples, dim=1)
        grid = self.grid
        symmetric = isinstance(grid, TruncationGrid) or (isinstance(grid, StepGrid) and grid.kind == "none")
        integer = isinstance(grid, StepGrid) and grid.kind == "integer"
        grid.set_range(*choose_range(values, method, grid.bits, symmetric, integer))  # type: ignore[arg-type]


def calibrate(network: nn.Module, batches: Iterable[tuple[Any, ...]], recipe: Recipe) -> None:
    """Set all ranges of a prepared network.

    Args:
        network: prepared by `prepare`.
        batches: what the network is called with, such as (measurement, mask); a few to a few dozen.
        recipe: names the methods, `weight_range` and `activation_range`.

    Raises:
        ValueError: no batches, NaN in an activation, or a layer that the data never reached.
    """
    batches = list(batches)
    training = network.training
    with float_mode(network.eval()), torch.no_grad():
        split_low_rank(network, batches)
        equalize_channels(network, batches)
    network.train(training)
    calibrate_activations(network, batches, recipe.activation_range)
    for layer in quantized_layers(network).values():
        if isinstance(layer, Quantized):
            set_weight_range(layer, recipe.weight_range)


def calibrate_activations(
    network: nn.Module, batches: Iterable[tuple[Any, ...]], method: str, observed: nn.Module | None = None
) -> None:
    """Set the ranges of a prepared network's activations, and leave those of its weights as they are.

    Args:
        network, batches: as for `calibrate`.
        method: how ranges are chosen, a recipe's `activation_range`.
        observed: a float network with the same layers, whose activations are taken. None: the network's own, without
            its grids.

    Raises:
        ValueError: as `calibrate`. AttributeError: `observed` lacks a layer.
    """
    layers = quantized_layers(network)
    observed = network if observed is None else observed
    observers: dict[tuple[str, str], Observer] = {}
    watchers: list[tuple[nn.Module, See]] = []
    for name, layer in layers.items():
        own = {key: Observer(grid, axis) for key, (grid, axis) in layer.calibration_groups().items()}
        observers |= {(name, key): observer for key, observer in own.items()}
        entered = layer.balanced if isinstance(layer, Quantized) else None
        watchers.append((observed.get_submodule(name), shown_to(list(own.values()), entered)))
    training = observed.training
    try:
        with float_mode(observed.eval()):
            watch(observed, batches, watchers)
    finally:
        observed.train(training)
    for (name, key), observer in observers.items():
        if not observer.samples:
            raise ValueError(
                f"no data reached {name}.{key}; wanted calibration batches that use every layer; give some"
            )
        if not all(bool(sample.isfinite().all()) for sample in observer.samples):
            raise ValueError(f"{name}.{key} saw NaN or infinite values; wanted finite ones; check weights and data")
        observer.settle(method)


def shown_to(observers: list[Observer], entered: Callable[[Tensor], Tensor] | None) -> See:
    """What shows a layer's inputs to its observers, in order, as its grids see them."""

    def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for observer, values in zip(observers, inputs, strict=True):
            observer.see(values if entered is None else entered(values))

    return see


def set_weight_range(layer: Quantized, method: str) -> None:
    """Choose the scales of a layer's weights."""
    weight = layer.layer.get_parameter("weight").detach().float()
    axis = None if layer.bits.weight_granularity == "tensor" else layer.channel_axis
    symmetric = isinstance(layer.weight_grid, StepGrid)
    rows = as_rows(weight, axis)
    layer.weight_grid.set_range(*choose_range(rows, method, layer.bits.weight, symmetric))  # type: ignore[arg-type]


def as_rows(values: Tensor, axis: int | None) -> Tensor:
    """(groups, n): one row for each index of `axis`, or one row of everything."""
    return values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
