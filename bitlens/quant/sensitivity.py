"""What each layer's bits cost in the output, measured: the errors of `quant.allocate`.

A *variant* is the network with all layers at the same choice of bits, calibrated; its layers are switched on and off.
Errors are mean squared ones of the output against the float network, but for `sqnr`:

| measure    | error of layer l at choice c                                               | forward passes     |
|------------|----------------------------------------------------------------------------|--------------------|
| `alone`    | of the output with that layer alone rounded                                | layers x choices   |
| `others`   | that goes away if, with all layers rounded, that one is not                | layers x choices   |
| `gradient` | sum (dz g)^2, dz the error of the layer's output, g the output's gradient  | choices, backward  |
| `sqnr`     | |dz|^2 / |z|^2 of the layer's own output                                   | choices            |

`gradient` is the second-order expansion with independent errors (the diagonal of Gauss-Newton): g is that of the output
summed with random signs (Hutchinson's estimate, as in HAWQ-V2). Attention products are layers here too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitlens.quant.layers import Quantized, QuantizedMatMul, float_mode, quantized_layers

__all__ = ["MEASURES", "Measure", "output_error", "sensitivity"]

Measure = Literal["alone", "others", "gradient", "sqnr"]
MEASURES: tuple[Measure, ...] = ("alone", "others", "gradient", "sqnr")
Errors = dict[str, dict[str, float]]
"""By layer, then by choice."""


def sensitivity(
    variants: Mapping[str, nn.Module],
    batches: Sequence[tuple[Any, ...]],
    measure: Measure = "alone",
    *,
    known: Errors | None = None,
    on_step: Callable[[Errors], None] | None = None,
) -> Errors:
    """The error of each layer at each choice.

    Args:
        variants: by choice; fake-quantized and calibrated, of the same float network, with the same layers.
        batches: what they are called with; not those that they were calibrated on.
        measure: which of the four.
        known: what was measured before; it is filled up, and not measured again.
        on_step: receives all that is known after each layer (`alone`, `others`) or choice.

    Raises:
        ValueError: no variants, no batches, or variants with other layers.
    """
    if not variants or not batches:
        raise ValueError(f"{len(variants)} variants, {len(batches)} batches; wanted one or more of both; give some")
    names = [list(quantized_layers(variant)) for variant in variants.values()]
    if any(one != names[0] for one in names):
        raise ValueError("variants with different layers; wanted those of one network; quantize it by rules for all")
    found: Errors = {name: dict((known or {}).get(name, {})) for name in names[0]}

    def tell() -> None:
        if on_step is not None:
            on_step(found)

    if measure in ("alone", "others"):
        switched(variants, batches, measure == "alone", found, tell)
    else:
        for choice, variant in variants.items():
            if any(choice not in row for row in found.values()):
                for name, error in of_outputs(variant, batches, measure == "gradient").items():
                    found[name][choice] = error
                tell()
    return found


@torch.no_grad()
def switched(
    variants: Mapping[str, nn.Module],
    batches: Sequence[tuple[Any, ...]],
    alone: bool,
    found: Errors,
    tell: Callable[[], None],
) -> None:
    """Measure with one layer rounded and no other, or the other way round."""
    first = next(iter(variants.values()))
    with float_mode(first.eval()):
        wanted = [first(*batch) for batch in batches]
    whole = {} if alone else {choice: output_error(one, batches, wanted) for choice, one in variants.items()}
    for name, row in found.items():
        for choice, variant in variants.items():
            if choice not in row:
                with only(variant, name, alone):
                    error = output_error(variant, batches, wanted)
                row[choice] = error if alone else max(0.0, whole[choice] - error)
        tell()


@torch.no_grad()
def output_error(network: nn.Module, batches: Sequence[tuple[Any, ...]], wanted: Sequence[Tensor]) -> float:
    """Mean over batches of the mean squared error of what a network gives."""
    network.eval()
    errors = [
        float((network(*batch) - one).square().mean(dtype=torch.float64))
        for batch, one in zip(batches, wanted, strict=True)
    ]
    return sum(errors) / len(errors)


@contextmanager
def only(network: nn.Module, name: str, alone: bool):
    """Let one layer round and no other, or all others, inside the block."""
    layers = quantized_layers(network)
    for other, layer in layers.items():
        layer.quantizing = (other == name) == alone
    try:
        yield
    finally:
        for layer in layers.values():
            layer.quantizing = True


def of_outputs(variant: nn.Module, batches: Sequence[tuple[Any, ...]], gradient: bool) -> dict[str, float]:
    """The error of each layer's own output, weighed by the gradient of the network's or by its own size."""
    layers, totals = quantized_layers(variant.eval()), {}
    signs = torch.Generator().manual_seed(0)
    for batch in batches:
        seen: list[tuple[str, tuple[Tensor, ...], Tensor]] = []
        hooks = [layer.register_forward_hook(keep(name, seen)) for name, layer in layers.items()]
        try:
            with float_mode(variant), torch.set_grad_enabled(gradient):
                output = variant(*batch)
        finally:
            for hook in hooks:
                hook.remove()
        slopes: Sequence[Tensor | None] = [None] * len(seen)
        if gradient:
            # The mean of squares is that of (sign . error)^2, one projection of the whole output, over their number.
            sign = torch.randint(2, output.shape, generator=signs).mul_(2).sub_(1).to(output)
            slopes = torch.autograd.grad(output, [z for _, _, z in seen], sign, allow_unused=True)
        for (name, inputs, z), slope in zip(seen, slopes, strict=True):
            with torch.no_grad():
                error = (layers[name](*inputs) - z).square().double()
            if gradient:
                value = 0.0 if slope is None else float((error * slope.square()).sum()) / output.numel()
            else:
                value = float(error.sum() / z.detach().square().double().sum().clamp_min(1e-300))
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    if wrong := next((name for name, total in totals.items() if not math.isfinite(total)), None):
        raise ValueError(f"layer {wrong} has an error that is not finite; wanted numbers; check weights and data")
    return {name: totals.get(name, 0.0) for name in layers}


def keep(name: str, seen: list[tuple[str, tuple[Tensor, ...], Tensor]]) -> Callable[..., None]:
    """A hook that keeps what a layer was given and gave."""

    def hook(layer: Quantized | QuantizedMatMul, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((name, tuple(one.detach() for one in inputs), output))

    return hook
