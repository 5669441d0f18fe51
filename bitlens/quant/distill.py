"""Refine a quantized network against the float one, without labels: 2DQuant's second stage (DQC), and its weights too.

    L = L_O + lambda L_F          L_O = 1/CHW ||O - O_q||_1
                                  L_F = sum_i 1/(C_i H_i W_i) || F_i/||F_i|| - F_qi/||F_qi|| ||

O is the output, F_i the output of block i; F of the float network, F_q of the quantized one [2DQuant eq. 8-10]. Only
the bounds are trained in DQC; `weights` above 0 trains what lies between them as well, through its rounding.
"""

import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bitlens.files import atomic_path
from bitlens.quant.grid import BoundGrid, Grid
from bitlens.quant.layers import QUANTIZED, Quantized, quantized_layers

Batch = tuple[Any, ...]

REMEMBERED = 1 << 28
"""Numbers of the float network's outputs and features that are kept instead of computed anew (1 GiB)."""


@dataclass(frozen=True)
class Refinement:
    """How long and how fast; the defaults are the paper's."""

    steps: int = 3_000
    """Steps of one batch each."""
    minutes: float | None = None
    """Stop after this time; the learning rate then falls with whichever of the two is further on."""
    learning_rate: float = 1e-2
    """Adam's rate for bounds, in their `unit`; it falls to 0 along a cosine."""
    unit: Literal["value", "range"] = "value"
    """What a rate of 1 moves a bound by: 1, as in the paper, or the half of its grid's range."""
    grids: Literal["all", "activations", "weights"] = "all"
    """Whose bounds are trained."""
    weights: float = 0.0
    """Adam's rate for the quantized layers' weights, in steps of their grids; 0: they stay, as in the paper."""
    features: float = 5.0
    """lambda, the weight of L_F. The paper does not say; its code has 5."""
    seed: int = 0
    """Decides the order of the batches."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.learning_rate > 0 or min(self.weights, self.features) < 0:
            raise ValueError(f"{self}; wanted at least one step, a rate above 0 and no negative weights; change it")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes = {self.minutes}; wanted a time above 0; change it, or leave it out")

    def rate(self, step: int, seconds: float) -> float:
        """The learning rate, relative to its peak, before a step."""
        done = step / self.steps
        if self.minutes is not None:
            done = max(done, seconds / (60 * self.minutes))
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class Refined:
    """How a refinement went."""

    steps: int
    """Steps done in all."""
    seconds: float
    """Time that they took in all."""
    losses: tuple[float, float]
    """Mean loss of the first and of the last tenth of the steps of this call; 0 where it did none."""


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Batch],
    settings: Refinement | None = None,
    *,
    targets: Sequence[Batch] | None = None,
    blocks: Sequence[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Refined:
    """Train the bounds of a calibrated network, in place, so that it computes what the float one does.

    Args:
        student: fake-quantized and calibrated. Only its grids are trained (and weights, where the settings say so).
        teacher: the float network it was made from.
        batches: what both are called with, (image,) tuples; a step takes one. Their float outputs are kept in memory.
        targets: what the float network is called with instead, where its inputs are others.
        blocks: names of the modules whose outputs are compared; None: `blocks_of(student)`.
        state: file to go on from and to save to, every minute and in the end.
        on_step: receives the number of finished steps and the loss.

    Raises:
        ValueError: no batches, nothing to train, a loss that is not finite, or a state of other settings.
    """
    settings = settings or Refinement()
    if not batches:
        raise ValueError("no batches to refine on; wanted at least one; give calibration data")
    run = Run(UnitAdam(trained_parameters(student, settings)), settings, None if state is None else Path(state))
    losses: list[float] = []
    try:
        names = blocks_of(student) if blocks is None else list(blocks)
        with compared(student, teacher, names, batches, batches if targets is None else targets) as loss_of:
            while not run.over():
                chosen = torch.randint(
                    len(batches), (), generator=torch.Generator().manual_seed(settings.seed + run.step)
                )
                losses.append(run.advance(loss_of(int(chosen), settings.features)))
                if on_step:
                    on_step(run.step, losses[-1])
    finally:
        if losses and not run.broken:
            run.save()
    tenth = max(1, len(losses) // 10)
    means = [sum(part) / len(part) if part else 0.0 for part in (losses[:tenth], losses[-tenth:])]
    return Refined(run.step, run.seconds(), (means[0], means[1]))


class Run:
    """Where a refinement stands: its optimizer, the steps and the time so far, and the file that holds them."""

    def __init__(self, adam: "UnitAdam", settings: Refinement, path: Path | None):
        self.adam, self.settings, self.path = adam, settings, path
        self.step, self.before = self.load()
        self.broken = False
        """Whether a loss was not finite, so that there is nothing to go on from."""
        self.started = self.saved = time.monotonic()

    def seconds(self) -> float:
        """Time that was spent in all."""
        return self.before + time.monotonic() - self.started

    def over(self) -> bool:
        """Whether steps or time are used up."""
        limit = math.inf if self.settings.minutes is None else 60 * self.settings.minutes
        return self.step >= self.settings.steps or self.seconds() >= limit

    def advance(self, loss: Tensor) -> float:
        """One step against the gradient of a loss, and once a minute a save; returns the loss."""
        value = float(loss.detach())
        self.broken = not math.isfinite(value)
        if self.broken:
            raise ValueError(
                f"the loss of step {self.step} is {value}; wanted a finite one; lower learning_rate or weights"
            )
        rate = self.settings.rate(self.step, self.seconds())
        self.adam.step(torch.autograd.grad(loss, self.adam.parameters, materialize_grads=True), rate)
        self.step += 1
        if time.monotonic() - self.saved > 60:
            self.save()
        return value

    def load(self) -> tuple[int, float]:
        """Steps and seconds done, after loading what was saved; (0, 0) where there is nothing."""
        if self.path is None or not self.path.is_file():
            return 0, 0.0
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            before, now = saved["settings"], asdict(self.settings)
            other = [name for name in now if name not in ("minutes", "steps") and before[name] != now[name]]
            if other:
                what = ", ".join(f"{name} ({before[name]} -> {now[name]})" for name in other)
                raise ValueError(
                    f"{self.path} holds a refinement with other settings: {what}; wanted the same; give another file"
                )
            self.adam.load(saved)
            return int(saved["step"]), float(saved["seconds"])
        except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{self.path} is not a state of this refinement ({type(error).__name__}); wanted its own; give another"
            ) from error

    def save(self) -> None:
        """Write the state, whole or not at all."""
        self.saved = time.monotonic()
        if self.path is None:
            return
        about = {"settings": asdict(self.settings), "step": self.step, "seconds": self.seconds()}
        with atomic_path(self.path) as temporary:
            torch.save({**self.adam.state(), **about}, temporary)


def output_distance(output: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """1/CHW ||O - O_q||_1, mean over samples [2DQuant eq. 8]."""
    return (output - target).abs().mean()


def feature_distance(features: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """1/CHW || F/||F|| - F_q/||F_q|| ||, mean over samples [2DQuant eq. 9].

    Differs: the official code takes the square instead of the norm, mixes the samples of a batch in its division by
    the norms, and divides by the number of elements twice; `docs/twodquant.md` says what follows from that.
    """
    a, b = (nn.functional.normalize(each.flatten(1), dim=1) for each in (features, target))
    distance = ((a - b).square().sum(1) + 1e-12).sqrt()
    return distance.mean() / a.shape[1]


def blocks_of(network: nn.Module) -> list[str]:
    """The parts of a network that hold quantized layers: its children, or the members of a list among them."""
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            names += [f"{name}.{inner}" for inner, part in child.named_children() if quantized_layers(part)]
        elif quantized_layers(child) and not isinstance(child, QUANTIZED):
            names.append(name)
    return names


def trained_parameters(student: nn.Module, settings: Refinement) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter that is trained, with what a learning rate of 1 moves it by."""
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for layer in quantized_layers(student).values():
        grids = [grid for grid, _ in layer.calibration_groups().values()] if settings.grids != "weights" else []
        if isinstance(layer, Quantized):
            grids += [layer.weight_grid] if settings.grids != "activations" else []
            if settings.weights > 0:
                weight = layer.layer.get_parameter("weight")
                scale = layer.weight_grid.scale_and_zero_point()[0].detach()
                found[id(weight)] = weight, settings.weights * scale.expand_as(weight)
        for grid in grids:
            found |= {id(p): (p, settings.learning_rate * unit) for p, unit in units(grid, settings.unit)}
    if not found:
        raise ValueError("no grid to train; wanted a network that was prepared and calibrated; quantize it first")
    return list(found.values())


def units(grid: Grid, unit: Literal["value", "range"]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter of a grid, with what a rate of 1 moves it by; scales and zero-points always go by the range."""
    for name, parameter in grid.named_parameters():
        value = parameter.detach()
        if isinstance(grid, BoundGrid):
            width = (grid.high - grid.low).detach() / 2
            yield parameter, torch.ones_like(value) if unit == "value" else width
        elif name == "zero_point":
            yield parameter, torch.full_like(value, (grid.qmax - grid.qmin) / 2)
        else:
            yield parameter, value.clone()


class UnitAdam:
    """Adam with a unit of its own for every number [Kingma & Ba, ICLR 2015], betas 0.9 and 0.999 as in the paper."""

    def __init__(self, parameters: Sequence[tuple[nn.Parameter, Tensor]]):
        self.parameters = [p for p, _ in parameters]
        self.units = torch.cat([unit.flatten() for _, unit in parameters])
        self.first, self.second = torch.zeros_like(self.units), torch.zeros_like(self.units)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rate: float) -> None:
        """Move every parameter against its gradient."""
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.steps += 1
        self.first.lerp_(flat, 0.1)
        self.second.mul_(0.999).addcmul_(flat, flat, value=0.001)
        size = (self.second / (1 - 0.999**self.steps)).sqrt_().add_(1e-8 * float(flat.abs().mean()) + 1e-30)
        move = self.units * self.first / size * (rate / (1 - 0.9**self.steps))
        place = 0
        for parameter in self.parameters:
            parameter -= move[place : place + parameter.numel()].view_as(parameter)
            place += parameter.numel()

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        values = [p.detach() for p in self.parameters]
        return {"values": values, "first": self.first, "second": self.second, "steps": self.steps, "units": self.units}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Put a state back, parameters too.

        Raises:
            RuntimeError: it is of other parameters.
        """
        if [value.shape for value in state["values"]] != [p.shape for p in self.parameters]:
            raise RuntimeError("a state of other parameters")
        for parameter, value in zip(self.parameters, state["values"], strict=True):
            parameter.copy_(value)
        for own, value in ((self.first, state["first"]), (self.second, state["second"]), (self.units, state["units"])):
            own.copy_(value)
        self.steps = int(state["steps"])


@contextmanager
def compared(
    student: nn.Module, teacher: nn.Module, blocks: list[str], batches: Sequence[Batch], targets: Sequence[Batch]
) -> Iterator[Callable[[int, float], Tensor]]:
    """Yield the loss of a batch, by its index; both networks are in eval mode inside the block."""
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    handles = [
        network.get_submodule(name).register_forward_hook(keep(seen[which]))
        for which, network in (("student", student), ("teacher", teacher))
        for name in blocks
    ]
    modes = student.training, teacher.training
    student.eval()
    teacher.eval()
    known: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def wanted(index: int) -> tuple[list[Tensor], list[Tensor]]:
        """The float network's outputs and features."""
        if index in known:
            return known[index]
        seen["teacher"].clear()
        with torch.no_grad():
            outputs = tensors(teacher(*targets[index]))
        made = outputs, list(seen["teacher"])
        if sum(t.numel() for pair in [*known.values(), made] for kept in pair for t in kept) <= REMEMBERED:
            known[index] = made
        return made

    def loss_of(index: int, features: float) -> Tensor:
        outputs, inside = wanted(index)
        seen["student"].clear()
        own = tensors(student(*batches[index]))
        loss = torch.stack([output_distance(a, b) for a, b in zip(own, outputs, strict=True)]).sum()
        if features:
            pairs = zip(seen["student"], inside, strict=True)
            loss = loss + features * sum(feature_distance(a, b) for a, b in pairs)
        return loss

    try:
        yield loss_of
    finally:
        for handle in handles:
            handle.remove()
        student.train(modes[0])
        teacher.train(modes[1])


def keep(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A hook that keeps a block's output, the first tensor of several."""

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kept.append(tensors(output)[0])

    return see


def tensors(output: Any) -> list[Tensor]:
    """The tensors that a module returns: one, or those of a tuple."""
    return [output] if isinstance(output, Tensor) else [each for each in output if isinstance(each, Tensor)]
