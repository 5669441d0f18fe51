"""Muon: momentum whose matrices are made orthogonal before each step; everything else moves by Adam.

[Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024]. A kernel (out, in, ...) counts as a
matrix (out, in * ...), as in their own experiments with convolutions. torch's `torch.optim.Muon` takes matrices only.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.training.precision import computes_bf16

__all__ = ["Muon", "orthogonalized"]


class Muon(torch.optim.Optimizer):
    """Steps of equal size in all directions for weights with two axes or more.

        m <- mu m + (1 - mu) g,    u = (1 - mu) g + mu m,    W <- W - rate sqrt(max(1, rows / columns)) U V^T

    with U S V^T the singular value decomposition of u as a matrix.

    Args:
        groups: of parameters with `ndim` >= 2; each may have a `lr` and a `weight_decay` (decoupled) of its own.
        lr: rate: the largest singular value of a step.
        momentum: mu.
        weight_decay: decoupled decay.
    """

    def __init__(
        self, groups: Iterable[Any], lr: float = 0.02, momentum: float | int = 0.95, weight_decay: float | int = 0.0
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; matrices of one shape together."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[len(weight), weight[0].numel()].append(weight)
            for (rows, columns), weights in alike.items():
                moved = torch.stack(
                    [self.moved(weight, group["momentum"]).reshape(rows, columns) for weight in weights]
                )
                steps = orthogonalized(moved) * max(1.0, rows / columns) ** 0.5
                for weight, step in zip(weights, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(step.view(weight.shape), alpha=-group["lr"])
        return loss

    def moved(self, weight: nn.Parameter, momentum: float | int) -> Tensor:
        """Nesterov's momentum: the gradient, mixed with the mean of all before it and itself."""
        assert weight.grad is not None
        state = self.state[weight]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(weight)
        state["mean"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["mean"], momentum)


def orthogonalized(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """U V^T of each matrix U S V^T, roughly: singular values end between 0.7 and 1.2.

    Five steps of the quintic Newton-Schulz iteration with Jordan et al.'s coefficients, in bfloat16 where the device
    computes in it.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if computes_bf16(matrices.device) else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)
