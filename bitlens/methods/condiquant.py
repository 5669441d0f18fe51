"""CondiQuant: weights are made better conditioned before they are quantized, at almost the same outputs.

[CondiQuant] Liu et al.: "CondiQuant: Condition Number Based Low-Bit Quantization for Image Super-Resolution",
arXiv 2502.15478, 2025.

Errors dX of the activations come out as W dX, and weigh most against W X where the singular values of W differ most.
Along inputs that hardly occur, W may change and W X stays. So, for every layer, with centred inputs X,

    min over W'   1/2 ||(W' - W) X||^2 / ||X||^2 + strength/2 sum_i (s_i - mean s)^2       s: singular values of W'

by proximal gradient steps; ||X|| is the largest singular value. The bias makes up for the mean.

Differs: the penalty is one whose proximal step is known in closed form; the paper's code was not published.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.methods.gptq import layers_that_fit
from bitlens.quant.calibrate import set_weight_range
from bitlens.quant.inputs import Moments, watch
from bitlens.quant.layers import float_mode

STRENGTH, STEPS = 1e-2, 50


def condition_weights(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    weight_range: str,
    strength: float = STRENGTH,
) -> dict[str, tuple[float, float]]:
    """Condition the weights of every linear layer and plain 2-D convolution of a calibrated network, in place.

    Args:
        student: fake-quantized and calibrated. teacher: the float network; its inputs to each layer are taken.
        batches: what they are called with.
        weight_range: how the ranges of the new weights are chosen, as in a recipe.
        strength: of the penalty.

    Returns:
        The condition number of each layer before and after.
    """
    layers, numbers = layers_that_fit(student, teacher), {}
    moments = {name: Moments(layer.layer, layer.balanced) for name, (layer, _) in layers.items()}
    with float_mode(teacher):
        watch(teacher, batches, [(source, moments[name].see) for name, (_, source) in layers.items()])
    for name, (layer, _) in layers.items():
        numbers[name] = condition_layer(layer.layer, moments[name], strength)
        set_weight_range(layer, weight_range)
    return numbers


@torch.no_grad()
def condition_layer(layer: nn.Module, moments: Moments, strength: float) -> tuple[float, float]:
    """Put conditioned weights, and the bias that belongs to them, into a float layer; its condition numbers."""
    weight, bias = layer.get_parameter("weight"), layer.bias
    old = weight.double().flatten(1)  # out k
    gram, mean = moments.second, moments.mean
    if isinstance(bias, nn.Parameter):
        gram = gram - mean.outer(mean)
    new = conditioned(old, gram, strength)
    weight.copy_(new.view_as(weight))
    if isinstance(bias, nn.Parameter):
        bias += ((old - new) @ mean).to(bias.dtype)
    return condition_number(old), condition_number(new)


def conditioned(
    weight: Float[Tensor, "out k"], gram: Float[Tensor, "k k"], strength: float, steps: int = STEPS
) -> Float[Tensor, "out k"]:
    """The weights with a small penalty and nearly the same outputs.

    Args:
        weight: W.
        gram: X X^T, of any scale.
        strength: of the penalty; 0 changes nothing.
        steps: of proximal gradient, each of the size that is sure to descend.
    """
    gram = gram / torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-30)
    new = weight.clone()
    for _ in range(steps):
        left, values, right = torch.linalg.svd(new - (new - weight) @ gram, full_matrices=False)
        new = left * ((values + strength * values.mean()) / (1 + strength)) @ right
    return new


def condition_number(weight: Float[Tensor, "out k"]) -> float:
    """The largest singular value over the smallest."""
    values = torch.linalg.svdvals(weight)
    return float(values[0] / values[-1].clamp_min(1e-30))
