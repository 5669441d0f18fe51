"""Fit a low-bit network to a new mask from measurements alone, without the scenes that they show.

1. The ranges of activations are chosen anew from what the measurements cause in the network.
2. With `steps`, what is not a code is trained (activation grids, biases, shifts) on the residual of the data, plus
   the distance to a float network's video where there is one:

       ||A x - y|| / ||y||  +  distill * rmse(x, teacher(y, mask)),        x = network(y, mask)

Weights keep their codes and scales. A residual of 0 does not mean a good video (A^+ y has one too), so without a
teacher the steps should be few.

With `pairs` the steps have known videos all the same: x is one that was rebuilt from a measurement, by the teacher
where there is one, mirrored and moved against the mask, and what is trained on is

       rmse(network(A x + noise, mask), x)
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.data.cameras import draw_noise, sensed
from bitlens.quant.calibrate import calibrate_activations
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.training.losses import data_residual, rmse

Measurements = Float[Tensor, "n h w"]
Masks = Float[Tensor, "m t h w"]
Videos = Float[Tensor, "n t h w"]
NOISY = 0.5
"""Share of the measurements of pairs that have a sensor's noise."""


@dataclass(frozen=True)
class Adaptation:
    """What became of a network: residuals ||A x - y|| / ||y||, mean over the measurements."""

    before: float
    """As it came."""
    ranges: float
    """With the ranges chosen anew, whether they were kept or not."""
    after: float
    """As it is now."""
    kept: bool
    """Whether the new ranges were kept: not, where the old ones explain the measurements better."""
    observed: str
    """Whose activations the new ranges are of, in words."""


def adapt(
    network: nn.Module,
    measurements: Measurements,
    mask: Float[Tensor, "*m t h w"],
    *,
    teacher: nn.Module | None = None,
    steps: int = 0,
    learning_rate: float = 1e-4,
    distill: float = 1.0,
    pairs: bool = False,
    window: int = 64,
    batch: int = 4,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Adaptation:
    """Fit a low-bit network to the mask of these measurements, in place.

    Args:
        network: fake-quantized, with its `recipe`; called as network(measurement, mask).
        measurements: (n, h, w), the plain sum over time in mask units.
        mask: (t, h, w), real values >= 0; or (m, t, h, w), of which the measurement i was taken with mask i % m.
        teacher: float network. Its activations decide the ranges where it has all of the network's layers, and its
            videos teach during the steps.
        steps: of fine-tuning; 0: ranges only.
        learning_rate: of Adam, constant.
        distill: weight of the distance to the teacher's video.
        pairs: have the steps learn from the videos of these measurements, measured again, instead.
        window, batch: a step sees `batch` random windows of `window` x `window` pixels.
        seed: decides the windows, and the noise of pairs.
        on_step: receives every finished step.

    Raises:
        ValueError: a float network, no measurements, a size that is not the mask's, or a loss that is not finite.
    """
    layers = quantized_layers(network)
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no quantized layers; wanted a low-bit network; quantize it first"
        )
    if not len(measurements):
        raise ValueError("no measurements came; wanted one or more (n, h, w); give some")
    network.eval()
    masks = mask.reshape(-1, *mask.shape[-3:])  # m t h w
    batches = [(one[None], masks[[i % len(masks)]]) for i, one in enumerate(measurements)]  # 1 h w, 1 t h w
    old, before = copy.deepcopy(network.state_dict()), mean_residual(network, batches)
    known = dict(teacher.named_modules()) if teacher is not None else layers
    missing = [name for name in layers if name not in known]
    source = teacher if teacher is not None and not missing else None
    calibrate_activations(network, batches, network.recipe.activation_range, source)  # type: ignore[union-attr]
    ranges = mean_residual(network, batches)
    kept = ranges <= before
    if not kept:
        network.load_state_dict(old)
    after = min(before, ranges)
    if steps:
        if pairs:
            videos = rebuilt(teacher or network, batches)
            loss = partial(pair_loss, network, videos, masks, window, batch, np.random.default_rng(seed))
        else:
            generator = torch.Generator().manual_seed(seed)
            loss = partial(residual_loss, network, teacher, distill, measurements, masks, window, batch, generator)
        tune(network, loss, steps, learning_rate, on_step)
        after = mean_residual(network, batches)
    lacking = f" (the teacher has no {missing[0]})" if missing else ""
    observed = "the teacher" if source is not None else f"the network itself, without its grids{lacking}"
    return Adaptation(before, ranges, after, kept, observed)


def mean_residual(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Mean of `data_residual` over batches."""
    with torch.no_grad():
        return sum(float(data_residual(network(y, mask), y, mask)) for y, mask in batches) / len(batches)


def residual_loss(
    network: nn.Module,
    teacher: nn.Module | None,
    distill: float,
    measurements: Measurements,
    masks: Masks,
    size: int,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """How far the network is from explaining some windows of the measurements, and from its teacher's videos."""
    y, seen = windows(measurements, masks, size, count, generator)
    video = network(y, seen)
    loss = data_residual(video, y, seen)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(y, seen)
        loss = loss + distill * rmse(video, target)
    return loss


def pair_loss(
    network: nn.Module, videos: Videos, masks: Masks, size: int, count: int, random: np.random.Generator
) -> Tensor:
    """How far the network is from some windows of known videos, of which it is given measurements."""
    y, seen, known = measured_again(videos, masks, size, count, random)
    return rmse(network(y, seen), known.unsqueeze(1))


def tune(
    network: nn.Module,
    loss_of_step: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    on_step: Callable[[int], None] | None,
) -> None:
    """Train everything but the weights of quantized layers and their scales."""
    fixed = {id(p) for layer in quantized_layers(network).values() for p in weights_and_scales(layer)}
    free = [p for p in network.parameters() if id(p) not in fixed]
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    for step in range(steps):
        loss = loss_of_step()
        if not math.isfinite(float(loss.detach())):
            raise ValueError(f"the loss is not finite at step {step}; wanted finite numbers; lower the learning rate")
        gradients = torch.autograd.grad(loss, free, allow_unused=True)
        for parameter, gradient in zip(free, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        if on_step:
            on_step(step + 1)


def weights_and_scales(layer: nn.Module) -> list[nn.Parameter]:
    """What gives a quantized layer its weights: the codes' source and their grid."""
    if not isinstance(layer, Quantized):
        return []
    return [layer.layer.get_parameter("weight"), *layer.weight_grid.parameters()]


def windows(
    measurements: Measurements, masks: Masks, size: int, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b s1 s2"], Float[Tensor, "b t s1 s2"]]:
    """Random windows of random measurements, with the mask's at the same place."""
    n, h, w = measurements.shape
    high, wide = min(size, h), min(size, w)
    chosen, seen = [], []
    for _ in range(count):
        index, top, left = (int(torch.randint(end, (), generator=generator)) for end in (n, h - high + 1, w - wide + 1))
        chosen.append(measurements[index, top : top + high, left : left + wide])
        seen.append(masks[index % len(masks), :, top : top + high, left : left + wide])
    return torch.stack(chosen), torch.stack(seen)


def rebuilt(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Videos:
    """The network's videos of measurements, in [0, 1].

    Raises:
        ValueError: it gives colours, which are not measured as grey is.
    """
    with torch.no_grad():
        videos = torch.cat([network(y, mask) for y, mask in batches]).clamp(0, 1)  # n c t h w
    if videos.shape[1] != 1:
        raise ValueError(
            f"{type(network).__name__} gives {videos.shape[1]} colours; wanted a network for grey video, whose results "
            "can be measured again; leave pairs out"
        )
    return videos[:, 0]


def measured_again(
    videos: Videos, masks: Masks, size: int, count: int, random: np.random.Generator
) -> tuple[Float[Tensor, "b s1 s2"], Float[Tensor, "b t s1 s2"], Float[Tensor, "b t s1 s2"]]:
    """Measurements of random windows of random videos, the windows of the mask that they were taken through, and they.

    Videos are mirrored and run backwards at random, and seen through any place of any mask.
    """
    h, w = videos.shape[-2:]
    high, wide = min(size, h), min(size, w)

    def window(source: Tensor) -> Tensor:
        index, top, left = (int(random.integers(end)) for end in (len(source), h - high + 1, w - wide + 1))
        return source[index, :, top : top + high, left : left + wide]

    measurements, seen, known = [], [], []
    for _ in range(count):
        video, mask = window(videos), window(masks)
        video = video.flip([axis for axis in range(3) if random.random() < 0.5])
        y = (mask * video).sum(0)
        measurements.append(sensed(y, *draw_noise(random), random) if random.random() < NOISY else y)
        seen.append(mask)
        known.append(video)
    return torch.stack(measurements), torch.stack(seen), torch.stack(known)
