"""One training loop for float and fake-quantized networks: time budget, exact resume, EMA, distillation, DDP.

    state(step + 1) = f(state(step), batch(seed, step, rank))

Everything the next step depends on is in the saved state or follows from (seed, step, rank), so a run that was
killed and resumed continues on the loss curve of an uninterrupted one, bit for bit on one CPU.
"""

import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitlens.files import atomic_path
from bitlens.quant.grid import Grid, StepGrid
from bitlens.quant.layers import fuse_grids, quantized_layers
from bitlens.training.losses import LOSSES, Distillation
from bitlens.training.muon import Muon
from bitlens.training.precision import autocast
from bitlens.training.processes import Processes, stop_requests
from bitlens.training.settings import FREE_TO_CHANGE, Training


@dataclass(frozen=True)
class Result:
    """How a call of `train` ended."""

    step: int
    """Steps done in all."""
    reason: Literal["finished", "minutes", "interrupted"]
    """Why it stopped."""
    psnr: float | None
    """Last validation PSNR in dB (psnr_sci), if there was one."""
    writes: bool = True
    """Whether this process is the one that writes files (rank 0)."""


@runtime_checkable
class Drawn(Protocol):
    """A batch: a tuple of tensors."""

    def __iter__(self) -> Iterator[Tensor]: ...

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a network is called with."""
        ...

    @property
    def truth(self) -> Tensor:
        """What it should give."""
        ...

    @property
    def error_axes(self) -> tuple[int, ...]:
        """Over which squared errors are averaged for one PSNR."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """Where batches come from: `data.clips.ClipSampler`, `data.patches.PatchSampler`."""

    def identity(self) -> dict[str, object]:
        """What decides the batches, so that a run is only resumed on the same data."""
        ...

    def draw(self, step: int, rank: int = 0) -> Any:
        """The batch of one step, a `Drawn`."""
        ...


Validation = Mapping[str, Sequence[Drawn]]
"""Batches of each kind that is validated and reported on its own; what counts is the mean over the kinds."""


def train(
    network: nn.Module,
    sampler: Sampler,
    settings: Training,
    folder: str | os.PathLike[str],
    *,
    validation: Validation | None = None,
    teacher: nn.Module | None = None,
    blocks: list[str] | None = None,
    device: str | torch.device = "cpu",
    on_log: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Result:
    """Train a network in place; resume from `folder` if a run with these settings stands there.

    `folder` receives `state.pt` (atomic, every `save_minutes`, at the end, at SIGTERM and Ctrl-C), `log.jsonl`
    and `settings.json`. When the run has finished, `network` holds the averaged (EMA) weights.

    Under `torchrun` every process trains on its own samples and gradients are averaged; rank 0 writes.

    Args:
        network: for video, network(measurement, mask), or for images, network(image); float or fake-quantized.
        sampler: where batches come from.
        validation: batches for the PSNR in the log, by kind.
        teacher: float network for the distillation terms.
        blocks: modules whose outputs are distilled.
        device: where to train.
        on_log: receives every line of the log. on_step: receives every finished step.

    Raises:
        ValueError: `folder` holds a run with other settings, or the loss stays infinite.
    """
    group = Processes.start(device)
    device = group.device
    network.to(device).train()
    loss_of = LOSSES[settings.loss]
    distillation = None
    weights = {term: getattr(settings, f"distill_{term}") for term in ("output", "features", "similarity", "attention")}
    if any(weights.values()):
        if teacher is None:
            raise ValueError("distillation was asked for without a teacher; give the float network")
        distillation = Distillation(network, teacher.to(device), blocks or [], **weights)
    state = State(network, settings)
    run = Run(Path(folder), settings, sampler.identity(), group.rank == 0)
    step, window = run.resume(state)
    model: nn.Module = network
    if group.world > 1:
        model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    if settings.compile:
        compile_blocks(network)
        if distillation and not settings.distill_similarity:  # its hooks would compile every block anew
            compile_blocks(distillation.teacher)
    last_psnr, reason = None, "finished"
    started = saved = time.monotonic()
    bad_steps = 0

    with stop_requests() as stopped:
        while step < settings.steps:
            drawn = sampler.draw(step, group.rank)
            batch = type(drawn)(*(x.to(device) for x in drawn))
            state.set_rate(settings.rate(step))
            value, norm = one_step(model, state, batch, loss_of, distillation, settings)
            bad_steps = 0 if math.isfinite(norm) else bad_steps + 1
            if bad_steps > 20:
                raise ValueError(
                    f"the loss or its gradient was not finite for {bad_steps} steps before step {step}; wanted finite "
                    "numbers; lower learning_rate or set bf16 to false"
                )
            step += 1
            window.append(value)
            if on_step:
                on_step(step)
            validate = validation is not None and (step % settings.validate_every == 0 or step == settings.steps)
            if step % settings.log_every == 0 or validate:
                record = {"step": step, "loss": sum(window) / len(window), "rate": settings.rate(step - 1)}
                record["seconds"] = round(time.monotonic() - started, 2)
                window = []
                if validate:
                    assert validation is not None
                    with state.averaged():
                        found = {
                            kind: validation_psnr(network, batches, settings.bf16)
                            for kind, batches in validation.items()
                        }
                    last_psnr = record["psnr"] = sum(found.values()) / len(found)
                    if len(found) > 1:
                        record["psnrs"] = {kind: round(psnr, 3) for kind, psnr in found.items()}
                run.log(record)
                if on_log and run.writes:
                    on_log(record)
            elapsed = time.monotonic() - started
            out_of_time = settings.minutes is not None and elapsed > 60 * settings.minutes
            if group.any(bool(stopped) or out_of_time):
                reason = "interrupted" if stopped else "minutes"
                break
            if time.monotonic() - saved > 60 * settings.save_minutes:
                run.save(state, step, window)
                saved = time.monotonic()
        run.save(state, step, window)
    if distillation:
        distillation.remove()
    if step >= settings.steps:
        reason = "finished"
        state.load_average()
        for module in network.modules():
            if isinstance(module, StepGrid):
                module.upright()
    group.stop()
    network.eval()
    return Result(step, reason, last_psnr, run.writes)  # type: ignore[arg-type]


def compile_blocks(network: nn.Module) -> None:
    """Compile a network in place: its grids, or part by part as it says itself (`compile_parts`), or as a whole."""
    if quantized_layers(network):
        fuse_grids(network)
    elif hasattr(network, "compile_parts"):
        network.compile_parts()  # type: ignore[operator]
    else:
        network.compile()


def one_step(
    model: nn.Module,
    state: "State",
    batch: Drawn,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    distillation: Distillation | None,
    settings: Training,
) -> tuple[float, float]:
    """Forward, backward, clip, update; returns the loss and the norm of its gradient."""
    inputs, truth = batch.inputs, batch.truth
    with autocast(truth.device, settings.bf16):
        target = None
        if distillation:
            distillation.clear()
            with torch.no_grad():
                target = distillation.teacher(*inputs).float()
        found = model(*inputs, True) if settings.early_stages else [model(*inputs)]
    *early, output = (stage.float() for stage in found)
    loss = loss_of(output, truth)
    for stage in early:
        loss = loss + settings.early_stages * loss_of(stage, truth)
    total = loss if target is None or distillation is None else loss + distillation.term(output, target)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    total.backward()
    limit = settings.clip_norm or math.inf
    norm = float(nn.utils.clip_grad_norm_(state.parameters, limit))
    if math.isfinite(norm) and math.isfinite(float(total.detach())):
        for optimizer in state.optimizers:
            optimizer.step()
        state.update_average()
    else:
        norm = math.inf
    return float(loss.detach()), norm


def validation_psnr(network: nn.Module, batches: Sequence[Drawn], bf16: bool) -> float:
    """Mean PSNR in dB over frames of batches (psnr_sci), or over images (all channels together)."""
    training = network.training
    network.eval()
    values = []
    for batch in batches:
        device = next(network.parameters()).device
        with torch.no_grad(), autocast(device, bf16):
            output = network(*(x.to(device) for x in batch.inputs)).float().cpu()
        errors = (output - batch.truth).square().mean(dim=batch.error_axes).clamp_min(1e-10)
        values.append(float(-10 * errors.log10().mean()))
    network.train(training)
    return sum(values) / len(values)


def validation_batches(sampler: Sampler, count: int) -> list[Any]:
    """The first `count` batches of a sampler, as a fixed validation set."""
    return [sampler.draw(step) for step in range(count)]


class State:
    """What a step changes: parameters, optimizer, moving average."""

    def __init__(self, network: nn.Module, settings: Training):
        self.network = network
        self.decay = settings.ema
        scales = {id(p) for m in network.modules() if isinstance(m, Grid) for p in m.parameters()}
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        scale_rate = settings.scale_learning_rate or 0.1 * settings.learning_rate
        muon = settings.optimizer == "muon"
        weights = [p for _, p in named if id(p) not in scales and p.ndim > 1]
        weight_rate = settings.muon_learning_rate if muon else settings.learning_rate
        groups = [
            ([p for _, p in named if id(p) not in scales and p.ndim <= 1], settings.learning_rate, 0.0),
            ([p for _, p in named if id(p) in scales], scale_rate, 0.0),
        ]
        weight_group = (weights, weight_rate, settings.weight_decay)
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        adam = groups_of(groups if muon else [weight_group, *groups])
        self.optimizers: list[torch.optim.Optimizer] = []
        if adam:
            self.optimizers.append(kind(adam, betas=(0.9, settings.beta2), foreach=True))
        if muon and weights:
            self.optimizers.append(Muon(groups_of([weight_group])))
        self.average = [p.detach().clone() for p in self.parameters]
        self.updates = 0

    def set_rate(self, relative: float) -> None:
        """Set every group's learning rate to `relative` times its peak."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * relative

    @torch.no_grad()
    def update_average(self) -> None:
        """Moving average of the parameters, with a shorter memory in the first steps."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.decay else 0.0
        for average, parameter in zip(self.average, self.parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged parameters inside the block."""
        with torch.no_grad():
            current = [p.detach().clone() for p in self.parameters]
            copy_all(self.parameters, self.average)
            try:
                yield
            finally:
                copy_all(self.parameters, current)

    def load_average(self) -> None:
        """Put the averaged parameters into the network for good."""
        with torch.no_grad():
            copy_all(self.parameters, self.average)

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        copy_all(self.average, state["average"])
        self.updates = state["updates"]


def groups_of(groups: list[tuple[list[nn.Parameter], float, float]]) -> list[dict[str, Any]]:
    """Parameters, peak rate and decay as an optimizer takes them, without the groups that are empty."""
    return [{"params": p, "lr": rate, "weight_decay": decay, "peak": rate} for p, rate, decay in groups if p]


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def step_of(line: str) -> int:
    """The step of a line of the log; -1 where the line was not finished, or is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return -1


class Run:
    """The folder of a run: settings, log and the last state, each written whole or not at all."""

    def __init__(self, folder: Path, settings: Training, data: dict[str, Any], writes: bool):
        self.folder, self.settings, self.data, self.writes = folder, settings, data, writes
        self.state_path, self.log_path = folder / "state.pt", folder / "log.jsonl"

    def resume(self, state: State) -> tuple[int, list[float]]:
        """Load the last state, if there is one, and cut the log back to it.

        Returns:
            Its step, and the losses since the last line of the log.

        Raises:
            ValueError: the run there has other settings, or its state is damaged.
        """
        step, window = 0, []
        if self.state_path.is_file():
            try:
                saved = torch.load(self.state_path, map_location="cpu", weights_only=True)
                step, window = int(saved["step"]), list(saved.get("window", ()))
                self.check_same(saved["settings"], saved["data"])
                state.load_state_dict(saved)
            except (
                RuntimeError,
                LookupError,
                EOFError,
                OSError,
                TypeError,
                AttributeError,
                pickle.UnpicklingError,
            ) as error:
                what = next(iter(str(error).splitlines()), type(error).__name__)
                raise ValueError(
                    f"{self.state_path} is not a state of this network ({what}); wanted the "
                    "run's own; give another folder to start anew"
                ) from error
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.folder / "settings.json") as path:
                path.write_text(json.dumps(asdict(self.settings), indent=1) + "\n")
            kept = []
            if self.log_path.is_file():
                lines = self.log_path.read_text(errors="replace").splitlines()
                kept = [line for line in lines if 0 <= step_of(line) <= step]
            with atomic_path(self.log_path) as path:
                path.write_text("".join(line + "\n" for line in kept))
        return step, window

    def check_same(self, settings: dict[str, Any], data: dict[str, Any]) -> None:
        """Refuse to resume with settings or data that would make another run; what was not recorded had its default."""
        before, now = {**asdict(Training()), **data, **settings}, {**self.data, **asdict(self.settings)}
        refused = [name for name in now if name not in FREE_TO_CHANGE and before.get(name) != now[name]]
        if refused:
            what = ", ".join(f"{name} ({before.get(name)} -> {now[name]})" for name in refused)
            raise ValueError(f"{self.folder} holds a run with other settings: {what}; give another folder, or the same")

    def save(self, state: State, step: int, window: list[float]) -> None:
        """Write the state, atomically, with the losses since the last line of the log."""
        if self.writes:
            about = {"step": step, "window": window, "settings": asdict(self.settings), "data": self.data}
            content = BytesIO()  # on a full disk torch's own writer says neither where nor why
            torch.save({**state.state_dict(), **about}, content)
            with atomic_path(self.state_path) as path:
                path.write_bytes(content.getbuffer())

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to the log."""
        if self.writes:
            with self.log_path.open("a") as file:
                file.write(json.dumps(record) + "\n")
