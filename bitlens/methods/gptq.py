"""GPTQ: weights are rounded one input after the other, and what is left makes up for each error.

[GPTQ] Frantar et al.: "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023.

A layer should give W x for the float input x, and computes Q x' for the quantized input x'. With a float bias both may
be centred, and

    || W X - Q X' ||^2 = || (W* - Q) X' ||^2 + const,     W* = W X X'^T H^-1,     H = X' X'^T

so that the errors of the activations' grid are made up for as well; W* is then rounded by GPTQ with this H.
Convolutions are linear layers of their unfolded inputs.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.quant.grid import dequantize, quantize
from bitlens.quant.inputs import spread, unfolded, watch
from bitlens.quant.layers import Quantized, float_mode, quantized_layers


class PairMoments:
    """Second moments of a layer's float inputs x and quantized inputs x', summed over positions."""

    def __init__(self, layer: Quantized):
        self.layer, self.n = layer, 0
        k = layer.layer.get_parameter("weight")[0].numel()
        self.own, self.cross = torch.zeros(k, k, dtype=torch.float64), torch.zeros(k, k, dtype=torch.float64)
        self.mean, self.own_mean = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook that adds the inputs of one pass."""
        values = self.layer.balanced(inputs[0].detach().float())
        x = unfolded(self.layer.layer, values)
        with torch.no_grad():
            quantized = unfolded(self.layer.layer, self.layer.input_grid(values))
        x, quantized = spread(x), spread(quantized)
        self.own += quantized.T @ quantized
        self.cross += x.T @ quantized
        self.mean += x.sum(0, dtype=torch.float64)
        self.own_mean += quantized.sum(0, dtype=torch.float64)
        self.n += len(x)


def fit_weights(student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Any, ...]]) -> list[str]:
    """Round the weights of every linear layer and plain 2-D convolution of a calibrated network, in place.

    Their new weights lie on their grids, and biases follow the means. Other layers (grouped, transposed, 1-D and 3-D
    convolutions, products, paths beside layers) stay as they are.

    Args:
        student: fake-quantized and calibrated. teacher: the float network; its inputs to each layer are taken.
        batches: what they are called with.

    Returns:
        The names of the layers that were rounded.
    """
    layers = layers_that_fit(student, teacher)
    moments = {name: PairMoments(layer) for name, (layer, _) in layers.items()}
    with float_mode(teacher):
        watch(teacher, batches, [(source, moments[name].see) for name, (_, source) in layers.items()])
    for each in moments.values():
        round_layer(each)
    return list(moments)


def layers_that_fit(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[Quantized, nn.Module]]:
    """Every layer of a quantized network that `fits`, by its name, and where the teacher has what enters it.

    A layer with a path beside it is called `main` there, and has the place of both in the teacher.
    """
    known = dict(teacher.named_modules())
    found = {}
    for name, layer in quantized_layers(student).items():
        source = known.get(name.removesuffix(".main"))
        if isinstance(layer, Quantized) and source is not None and fits(layer):
            found[name] = layer, source
    return found


def fits(layer: nn.Module) -> bool:
    """Whether a quantized layer is a linear one of its (unfolded) input."""
    if not isinstance(layer, Quantized):
        return False
    inner = layer.layer
    plain = isinstance(inner, nn.Conv2d) and inner.groups == 1 and not isinstance(inner.padding, str)
    return isinstance(inner, nn.Linear) or (plain and inner.padding_mode == "zeros")


@torch.no_grad()
def round_layer(moments: PairMoments) -> None:
    """Put GPTQ's weights, and the bias that belongs to them, into a layer."""
    layer = moments.layer.layer
    weight, bias = layer.get_parameter("weight"), layer.bias
    w = weight.double().flatten(1)  # out k
    own, cross, n = moments.own / moments.n, moments.cross / moments.n, moments.n
    mean, own_mean = moments.mean / n, moments.own_mean / n
    if bias is not None:
        own, cross = own - own_mean.outer(own_mean), cross - mean.outer(own_mean)
    damping = 0.01 * own.diagonal().mean().clamp_min(1e-12) * torch.eye(len(own), dtype=own.dtype)
    best = torch.linalg.solve(own + damping, (w @ (cross + damping)).T).T  # W*

    grid = moments.layer.weight_grid
    scale, zero_point = (each.double().flatten() for each in grid.scale_and_zero_point())

    def onto_grid(column: Tensor) -> Tensor:
        return dequantize(quantize(column, scale, zero_point, grid.qmin, grid.qmax), scale, zero_point)

    rounded = gptq(best, own + damping, onto_grid)
    weight.copy_(rounded.view_as(weight))
    if isinstance(bias, nn.Parameter):
        bias += (w @ mean - rounded @ own_mean).to(bias.dtype)


def gptq(
    weight: Float[Tensor, "out k"], hessian: Float[Tensor, "k k"], onto_grid: Callable[[Tensor], Tensor]
) -> Float[Tensor, "out k"]:
    """Weights on a grid with a small tr (W - Q) H (W - Q)^T [GPTQ alg. 1, with the largest diagonals first].

    Args:
        weight: W.
        hessian: H, symmetric and positive definite.
        onto_grid: rounds a column (out,) to the grid of its rows.
    """
    order = hessian.diagonal().argsort(descending=True)
    left = weight[:, order]
    # U of H^-1 = U^T U, in this order: row i holds how the error of column i is spread over those after it.
    inverse = torch.linalg.inv(hessian[order][:, order])
    upper = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    for i in range(left.shape[1]):
        rounded = onto_grid(left[:, i])
        error = (left[:, i] - rounded) / upper[i, i]
        left[:, i + 1 :] -= error.outer(upper[i, i + 1 :])
        left[:, i] = rounded
    found = torch.empty_like(left)
    found[:, order] = left
    return found
