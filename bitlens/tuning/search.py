"""`tune`: bits chosen exactly within budgets, calibrated in the way that fits, refined, and measured."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bitlens import checkpoint, tasks
from bitlens.engine.costs import Run
from bitlens.files import atomic_path
from bitlens.inference.machine import describe_run, keep_freed_memory
from bitlens.methods import quantize
from bitlens.methods.gptq import fit_weights
from bitlens.quant.allocate import Infeasible, Program, exact
from bitlens.quant.distill import Refinement, distill
from bitlens.quant.sensitivity import Measure
from bitlens.recipe import Bits, Recipe, Rule
from bitlens.tuning.measured import BATCHES, CHECKED, CHOICES, ROUNDS, Measured, file_size, mean_psnr, stage

__all__ = ["Budgets", "Plan", "calibrated", "refine", "tune"]

RANGES = ("mse", "percentile", "minmax")
"""How activations may be calibrated."""
POOL = 48
"""Batches to refine on."""
FRESH = 1000
"""The first batch of those that only the result is measured on."""
POINTS, ATTEMPTS = 13, 6
"""Solutions on the curve; how often a program is solved with other limits than those that were given."""
NEAR = 0.85
"""A loss of more than this share of what is allowed is good enough."""
REFINEMENT = Refinement(unit="range", weights=3e-2)
"""Bounds and weights, as `2dquant-plus` trains them."""


@dataclass(frozen=True)
class Budgets:
    """What a network may spend; None: anything."""

    ms: float | None = None
    """Milliseconds on the native kernels."""
    mb: float | None = None
    """10^6 bytes of the packed file."""
    gmac: float | None = None
    """10^9 multiply-accumulates, each priced at the larger of its bits / 32 (`count`, rule "linear")."""
    max_loss: float | None = None
    """dB of PSNR that it may be behind the float network."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if not given:
            raise ValueError("no budget; wanted one or more: ms, mb, gmac, max_loss; for example a tenth of a dB")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise ValueError(f"a budget of {value} for {name}; wanted a finite number above 0; change it")

    @property
    def resources(self) -> dict[str, float]:
        """Those that are spent, by the name in the program."""
        named = {"ms": self.ms, "MB": self.mb, "GMAC": self.gmac}
        return {name: value for name, value in named.items() if value is not None}


def tune(
    start: str | os.PathLike[str],
    out: str | os.PathLike[str],
    budgets: Budgets,
    *,
    folder: str | os.PathLike[str] | None = None,
    choices: Sequence[str] = CHOICES,
    measure: Measure = "alone",
    data: str | os.PathLike[str] | None = None,
    size: int | None = None,
    frames: int = 8,
    threads: int = 2,
    steps: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose every layer's bits, calibrate, refine and measure; write OUT, and beside it its recipe and its report.

    Args:
        start: a float checkpoint, a shipped name or a path.
        out: the packed checkpoint (.safetensors); .toml and .json are written beside it.
        budgets: within which the error is the least; with a greatest loss alone the time is, or without the native
            kernels the file.
        folder: what is measured is kept there; None: OUT's name with `.tune`.
        choices: bits that a layer may have.
        measure: how errors are measured (`quant.sensitivity`).
        data: folder of films, or for images of photographs; None: made scenes.
        size: height and width that milliseconds are measured at; None: 256, or 192 for images.
        frames: of a measurement.
        threads: that milliseconds are measured with.
        steps: of refinement against the float network; 0: none.
        seed: decides crops, scenes and masks.

    Returns:
        What the report (.json) holds, for scripts: "predicted", "measured", "chosen", "uniform", "curve" and more.

    Raises:
        Infeasible: no network keeps the budgets; the message has the least possible.
        ValueError: no float network, unknown bits, or a folder of another tuning.
        TypeError: milliseconds were asked for, and the native kernels cannot time the network.
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise ValueError(f"cannot write {target}; wanted a name that ends in .safetensors; change it")
    keep_freed_memory()
    kept = Path(folder or f"{target.with_suffix('')}.tune")
    subject = Measured(start, kept, choices, measure, data, size, frames, threads, seed)
    plan, network, calibration = solve(subject, budgets)
    refined = refine(subject, network, steps)
    content = report(subject, budgets, plan, network, calibration, refined)
    provenance = {
        "tuned": {"budgets": asdict(budgets), "measure": measure, "calibrated": calibration, "steps": refined},
        "start": subject.about.name,
        "start_provenance": subject.about.provenance,
        "data": subject.data.about,
        "seed": seed,
    }
    with atomic_path(target.with_suffix(".toml")) as path:
        recipe: Recipe = network.recipe  # type: ignore[assignment]
        path.write_text(recipe.to_toml(), encoding="utf-8")
    with atomic_path(target.with_suffix(".json")) as path:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    checkpoint.save(network, target, provenance=provenance)
    return content


@dataclass(frozen=True)
class Plan:
    """A solved program."""

    program: Program
    chosen: np.ndarray

    def of(self, chosen: np.ndarray) -> dict[str, Any]:
        """Error, loss in dB and costs of choices, as they are foretold."""
        error = self.program.of(chosen)
        costs = {name: self.program.of(chosen, name) for name in self.program.costs}
        return {"error": error, "loss": decibels(error), **costs}

    def curve(self) -> list[np.ndarray]:
        """Solutions for budgets between the least and the most that is of use, of the first resource."""
        resource = next(iter(self.program.costs))
        least, most = (self.program.of(self.program.least(of), resource) for of in (resource, None))
        found = (exact(self.program, {resource: one}) for one in np.linspace(least, max(least, most), POINTS))
        return list({chosen.tobytes(): chosen for chosen in found}.values())


def solve(subject: Measured, budgets: Budgets) -> tuple[Plan, nn.Module, str]:
    """The choices, the network that has them, calibrated in the best way, and which way that is.

    A packed file, or a loss, may be more than the program foretold, or a loss less: then it is solved again, with as
    much less or more.

    Raises:
        Infeasible: no choice keeps the budgets. TypeError: milliseconds were asked for, and cannot be measured.
    """
    program = subject.program(can_be_timed(subject, budgets))
    asked, most = budgets.resources, budgets.max_loss
    limits = dict(asked) if most is None else {**asked, "error": ratio(most)}
    goal = None if asked else next(iter(program.costs))
    found: dict[bytes, tuple[Plan, nn.Module, str]] = {}
    best, size, loss = None, 0.0, 0.0
    for _ in range(ATTEMPTS):
        chosen = solution(program, limits, goal)
        if chosen.tobytes() in found:
            break
        network, calibration = calibrated(subject, program.labels(chosen))
        one = found[chosen.tobytes()] = Plan(program, chosen), network, calibration
        size = file_size(network)
        over = size - asked.get("MB", math.inf)
        loss = 0.0 if most is None else subject.loss_of(network)
        if over <= 0 and (most is None or loss <= most):
            aim = program.of(chosen, goal) if goal else program.of(chosen)
            if best is None or aim < best[0]:
                best = aim, one
            if goal is None or most is None or loss > NEAR * most:
                break
        if over > 0:
            limits["MB"] -= over + 1e-6
        if most is not None:
            limits["error"] = program.of(chosen) * ratio((1 + NEAR) / 2 * most) / max(ratio(loss), 1e-9)
    if best is None:
        made = f"{size:.4g} MB" + ("" if most is None else f" and loses {loss:.3g} dB")
        raise Infeasible(f"the budgets are not kept: the last network that was made has {made}; raise them")
    return best[1]


def can_be_timed(subject: Measured, budgets: Budgets) -> bool:
    """Whether milliseconds are in the program: they were asked for, or can be had.

    Raises:
        TypeError: they were asked for, and cannot.
    """
    try:
        return bool(subject.timing.whole)
    except TypeError:
        if budgets.ms is not None:
            raise
        return False


def calibrated(subject: Measured, labels: Mapping[str, str], ranges: Sequence[str] = RANGES) -> tuple[nn.Module, str]:
    """The network with these choices, calibrated in the way with the least error, and which way that is."""
    found: list[tuple[float, str, nn.Module]] = []
    with stage("calibrating in several ways", 2 * len(ranges)) as step:
        for method in ranges:
            recipe = Recipe("tuned", rules_of(labels), "direct", "mse", method)  # type: ignore[arg-type]
            for how, fitted in ((method, False), (f"{method}, weights by GPTQ", True)):
                network, _ = quantize(subject.network, recipe, subject.fit)
                if fitted:
                    fit_weights(network, subject.network, subject.fit)
                found.append((subject.error_of(network), how, network))
                step()
    _, how, network = min(found, key=lambda one: one[0])
    return network, how


def refine(subject: Measured, network: nn.Module, steps: int) -> int:
    """Train grids and weights against the float network, in place; what is not better on what is checked is undone.

    Returns:
        The steps that are in the network.
    """
    if steps < 1:
        return 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    error = subject.error_of(network)
    pool = [subject.data.fit.draw(BATCHES + step).inputs for step in range(POOL)]
    settings = replace(REFINEMENT, steps=steps, seed=subject.seed)
    recipe: Recipe = network.recipe  # type: ignore[assignment]
    key = hashlib.sha256((recipe.to_toml() + repr(settings)).encode()).hexdigest()[:12]
    with stage("refining", steps) as step:
        subject.kept.folder.mkdir(parents=True, exist_ok=True)
        state = subject.kept.folder / f"refinement-{key}.pt"
        distill(network, subject.network, pool, settings, state=state, on_step=lambda done, _: step(done))
    if subject.error_of(network) < error:
        return steps
    network.load_state_dict(before)
    return 0


def report(
    subject: Measured, budgets: Budgets, plan: Plan, network: nn.Module, calibration: str, steps: int
) -> dict[str, Any]:
    """Everything that was found."""
    program = plan.program
    fresh = [subject.data.check.draw(FRESH + step) for step in range(CHECKED)]
    psnr, psnr_float = (mean_psnr(one, fresh) for one in (network, subject.network))
    timed = "ms" in program.costs
    measured = {
        "psnr": psnr,
        "psnr_float": psnr_float,
        "loss": psnr_float - psnr,
        "error": subject.error_of(network),
        "MB": file_size(network),
    }
    return {
        "format": "bitlens-tuned-1",
        "start": subject.about.name,
        "task": tasks.of(subject.network).name,
        "budgets": asdict(budgets),
        "measure": subject.measure,
        "data": subject.data.about,
        "timed": list(subject.timed[-1].shape[1:]) if timed else None,
        "threads": subject.threads,
        "calibrated": calibration,
        "steps": steps,
        "chosen": program.labels(plan.chosen),
        "predicted": plan.of(plan.chosen),
        "measured": measured | ({"ms": milliseconds(subject, network)} if timed else {}),
        "uniform": uniform(subject, program),
        "curve": [plan.of(chosen) for chosen in plan.curve()],
        "errors": subject.errors,
        "milliseconds": subject.timing.layers if timed else None,
        "run": describe_run(),
    }


def uniform(subject: Measured, program: Program) -> list[dict[str, Any]]:
    """Networks with the same bits everywhere: measured, each as it is calibrated for all choices."""
    found = []
    for index, (label, variant) in enumerate(subject.variants.items()):
        costs = {name: program.of(np.full(len(program.layers), index), name) for name in program.costs}
        costs["MB"] = file_size(variant)
        if "ms" in costs:
            costs["ms"] = subject.timing.whole[label]
        error = subject.error_of(variant)
        found.append({"bits": label, "error": error, "loss": decibels(error), **costs})
    return found


def milliseconds(subject: Measured, network: nn.Module) -> float:
    """Of a network as a whole on the native kernels, the fastest of some runs."""
    run = Run(network, subject.threads)
    for _ in range(1 + 6 * ROUNDS):  # it is alone, where variants take turns, which lasts longer
        run(*subject.timed)
    return min(run.whole[1:])


def solution(program: Program, limits: Mapping[str, float], goal: str | None) -> np.ndarray:
    """The choices with the least error within limits, or those that cost the least of the resource `goal`."""
    swapped = replace(
        program,
        error=program.error if goal is None else program.costs[goal],
        costs={**program.costs, "error": program.error},
        rest={**program.rest, "error": 0.0},
    )
    return exact(swapped, limits)


def rules_of(labels: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules that give each layer its bits: those that differ from the most frequent ones by name."""
    usual = Counter(labels.values()).most_common(1)[0][0]
    exceptions = (Rule(name, Bits.read(label)) for name, label in labels.items() if label != usual)
    return (*exceptions, Rule("*", Bits.read(usual)))


def decibels(error: float) -> float:
    """The loss of PSNR that an error of the output (`Measured.error_of`) means."""
    return 10 * math.log10(1 + error)


def ratio(loss: float) -> float:
    """The error that means a loss of PSNR in dB."""
    return 10 ** (loss / 10) - 1
