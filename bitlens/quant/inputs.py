"""What enters layers while a network runs: hooks for as long as it does, and the moments of inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

POSITIONS = 1024
"""Positions of each batch that are kept of a layer's input, evenly spaced."""

See = Callable[[nn.Module, tuple[Tensor, ...]], None]
"""What a module's inputs are shown to, before it runs."""


@torch.no_grad()
def watch(network: nn.Module, batches: Iterable[tuple[Any, ...]], watchers: Iterable[tuple[nn.Module, See]]) -> None:
    """Run a network on batches and show what enters some of its modules; without watchers it is not run.

    Args:
        network: what is called.
        batches: what it is called with.
        watchers: modules of it, each with what sees their inputs.
    """
    hooks = [module.register_forward_pre_hook(see) for module, see in watchers]
    try:
        for batch in batches if hooks else ():
            network(*batch)
    finally:
        for hook in hooks:
            hook.remove()


class Moments:
    """E x and E x x^T of a layer's (unfolded) inputs x, from some positions of each batch.

    Args:
        layer: a linear layer or a 2-D convolution without groups.
        entered: what becomes of the inputs before the layer sees them; None: nothing.
    """

    def __init__(self, layer: nn.Module, entered: Callable[[Tensor], Tensor] | None = None):
        k = layer.get_parameter("weight")[0].numel()
        self.layer, self.entered, self.n = layer, entered, 0
        self.sums, self.squares = torch.zeros(k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the inputs of one pass."""
        values = inputs[0].detach().float()
        x = spread(unfolded(self.layer, values if self.entered is None else self.entered(values))).double()
        self.sums += x.sum(0)
        self.squares += x.T @ x
        self.n += len(x)

    @property
    def mean(self) -> Float[Tensor, "k"]:
        """E x"""
        return self.sums / max(1, self.n)

    @property
    def second(self) -> Float[Tensor, "k k"]:
        """E x x^T"""
        return self.squares / max(1, self.n)


def spread(rows: Float[Tensor, "positions k"]) -> Float[Tensor, "some k"]:
    """At most about `POSITIONS` rows, evenly spaced; an odd number apart, to keep out of step with even sizes."""
    return rows[:: max(1, len(rows) // POSITIONS) | 1]


def unfolded(layer: nn.Module, x: Tensor) -> Float[Tensor, "positions k"]:
    """What each output position of a layer is a linear function of."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
    columns = nn.functional.unfold(
        x,
        layer.kernel_size,
        dilation=layer.dilation,
        padding=layer.padding,
        stride=layer.stride,  # type: ignore[arg-type]
    )  # b k positions
    return columns.transpose(1, 2).flatten(0, 1)
