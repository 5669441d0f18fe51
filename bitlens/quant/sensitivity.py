"""What each layer's bits cost in the output, measured: the errors of `quant.allocate`.

A *variant* is the network with all layers at the same choice of bits, calibrated. Its layers take the places of the
float network's, one by one or all but one. Errors are mean squared ones of the output against the float network, each
number weighed if wanted, but for `sqnr`:

| measure    | error of layer l at choice c                                               | forward passes     |
|------------|----------------------------------------------------------------------------|--------------------|
| `alone`    | of the output with that layer alone rounded                                | layers x choices   |
| `others`   | that goes away if, with all layers rounded, that one is not                | layers x choices   |
| `gradient` | sum (dz g)^2, dz the error of the layer's output, g the output's gradient  | choices, backward  |
| `sqnr`     | |dz|^2 / |z|^2 of the layer's own output                                   | choices            |

`gradient` is the second-order expansion with independent errors (the diagonal of Gauss-Newton): g is that of the output
summed with random signs (Hutchinson's estimate, as in HAWQ-V2). Attention products are layers here too.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitlens.quant.layers import quantized_layers
from bitlens.quant.prepare import put

__all__ = ["MEASURES", "Measure", "output_error", "sensitivity"]

Measure = Literal["alone", "others", "gradient", "sqnr"]
MEASURES: tuple[Measure, ...] = ("alone", "others", "gradient", "sqnr")
Errors = dict[str, dict[str, float]]
"""By layer, then by choice."""


def sensitivity(
    network: nn.Module,
    variants: Mapping[str, nn.Module],
    batches: Sequence[tuple[Any, ...]],
    measure: Measure = "alone",
    *,
    weights: Sequence[Tensor] | None = None,
    known: Errors | None = None,
    on_step: Callable[[Errors], None] | None = None,
) -> Errors:
    """The error of each layer at each choice.

    Args:
        network: float; it is not changed.
        variants: by choice; made of it, fake-quantized and calibrated, with the same layers, weights fitted or not.
        batches: what they are called with; not those that they were calibrated on.
        measure: which of the four.
        weights: of the squared errors of each batch, as they broadcast to the output; None: 1.
        known: what was measured before; it is filled up, and not measured again.
        on_step: receives all that is known, again and again.

    Raises:
        ValueError: no variants, no batches, or variants with other layers.
    """
    if not variants or not batches:
        raise ValueError(f"{len(variants)} variants, {len(batches)} batches; wanted one or more of both; give some")
    names = [list(quantized_layers(variant)) for variant in variants.values()]
    if any(one != names[0] for one in names):
        raise ValueError("variants with different layers; wanted those of one network; quantize it by rules for all")
    found: Errors = {name: dict((known or {}).get(name, {})) for name in names[0]}
    if measure in ("alone", "others"):
        for name, choice, error in switched(network, variants, batches, measure == "alone", weights, found):
            found[name][choice] = error
            if on_step is not None:
                on_step(found)
        return found
    for choice, variant in variants.items():
        if any(choice not in row for row in found.values()):
            for name, error in of_outputs(network, variant, batches, measure == "gradient", weights).items():
                found[name][choice] = error
            if on_step is not None:
                on_step(found)
    return found


@torch.no_grad()
def switched(
    network: nn.Module,
    variants: Mapping[str, nn.Module],
    batches: Sequence[tuple[Any, ...]],
    alone: bool,
    weights: Sequence[Tensor] | None,
    known: Errors,
) -> Iterator[tuple[str, str, float]]:
    """(layer, choice, error) of what is not known, with one layer rounded and no other, or the other way round."""
    base = copy.deepcopy(network).eval()
    wanted = [base(*batch) for batch in batches]
    whole: dict[str, float] = {}
    for name in list(known):
        for choice, variant in variants.items():
            if choice in known[name]:
                continue
            host, guest = (base, variant) if alone else (variant, base)
            with in_place(host, name, guest.get_submodule(name)):
                error = output_error(host, batches, wanted, weights)
            if not alone:
                if choice not in whole:
                    whole[choice] = output_error(variant, batches, wanted, weights)
                error = max(0.0, whole[choice] - error)
            yield name, choice, error


@torch.no_grad()
def output_error(
    network: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    wanted: Sequence[Tensor],
    weights: Sequence[Tensor] | None = None,
) -> float:
    """Mean over batches of the mean squared error of what a network gives, weighed if wanted."""
    network.eval()
    errors = []
    for index, (batch, one) in enumerate(zip(batches, wanted, strict=True)):
        squares = (network(*batch) - one).square()
        errors.append(float((squares if weights is None else squares * weights[index]).mean(dtype=torch.float64)))
    return sum(errors) / len(errors)


@contextmanager
def in_place(network: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """Put a layer into the place of another one inside the block, under all names that it has."""
    own = network.get_submodule(name)
    names = [other for other, module in network.named_modules(remove_duplicate=False) if module is own]
    for other in names:
        put(network, other, layer)
    try:
        yield
    finally:
        for other in names:
            put(network, other, own)


def of_outputs(
    network: nn.Module,
    variant: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    gradient: bool,
    weights: Sequence[Tensor] | None,
) -> dict[str, float]:
    """The error of each layer's own output, weighed by the gradient of the network's or by its own size."""
    layers, totals = quantized_layers(variant.eval()), {}
    base = copy.deepcopy(network).eval().requires_grad_(gradient)
    signs = torch.Generator().manual_seed(0)
    for index, batch in enumerate(batches):
        seen: list[tuple[str, tuple[Tensor, ...], Tensor]] = []
        hooks = [base.get_submodule(name).register_forward_hook(keep(name, seen)) for name in layers]
        try:
            with torch.set_grad_enabled(gradient):
                output = base(*batch)
        finally:
            for hook in hooks:
                hook.remove()
        slopes: Sequence[Tensor | None] = [None] * len(seen)
        if gradient:
            # The mean of squares is that of (sign . error)^2, one projection of the whole output, over their number.
            sign = torch.randint(2, output.shape, generator=signs).mul_(2).sub_(1).to(output)
            sign = sign if weights is None else sign * weights[index].sqrt()
            slopes = torch.autograd.grad(output, [z for _, _, z in seen], sign, allow_unused=True)
        for (name, inputs, z), slope in zip(seen, slopes, strict=True):
            with torch.no_grad():
                error = (layers[name](*inputs) - z).square().double()
                if gradient:
                    value = 0.0 if slope is None else float((error * slope.square()).sum()) / output.numel()
                else:
                    value = float(error.sum() / z.square().double().sum().clamp_min(1e-300))
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    if wrong := next((name for name, total in totals.items() if not math.isfinite(total)), None):
        raise ValueError(f"layer {wrong} has an error that is not finite; wanted numbers; check weights and data")
    return {name: totals.get(name, 0.0) for name in layers}


def keep(name: str, seen: list[tuple[str, tuple[Tensor, ...], Tensor]]) -> Callable[..., None]:
    """A hook that keeps what a layer was given and gave."""

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((name, tuple(one.detach() for one in inputs), output))

    return hook
