"""What a tuning rests on: a float network, what every choice of bits spoils and costs, and the program that follows.

What takes long is kept in a folder, for one network and one kind of data.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitlens import checkpoint, tasks
from bitlens.count import count
from bitlens.data.fitting import Fitting, fitting
from bitlens.engine.costs import CostModel
from bitlens.engine.costs import measure as measure_costs
from bitlens.engine.runtime import code_and_machine
from bitlens.files import atomic_path
from bitlens.inference.images import scale_of
from bitlens.methods import quantize
from bitlens.methods.gptq import fit_weights
from bitlens.methods.unfolding import evened
from bitlens.progress import progress
from bitlens.quant.allocate import Program
from bitlens.quant.layers import Quantized, quantized_layers
from bitlens.quant.sensitivity import Errors, Measure, output_error, sensitivity
from bitlens.recipe import Bits, Recipe, Rule

__all__ = ["CHOICES", "ROUNDS", "Measured", "file_size", "mean_psnr", "stage"]

CHOICES = ("w8a8", "w6a8", "w5a8", "w4a8", "w4a6", "w4a4", "w3a8", "w3a5", "w3a3", "w2a8", "w2a4", "w2a3", "w2a2")
"""Bits of weights and activations. The kernels multiply less from w4a6, w3a5, w2a3 and w2a2 on; others save bytes."""
BATCHES, CHECKED = 8, 6
"""Batches to calibrate on, and to choose by."""
ROUNDS = 5
"""Timed runs of each variant."""
SIZES = {True: 192, False: 256}
"""Height and width of what is timed, by whether it is an image."""
LEAST = 1e-5
"""Squared errors of the float network below this (50 dB) weigh no more: nobody sees what is lost there."""


class Measured:
    """A float network, and what its layers cost and spoil. The arguments are those of `tune`.

    Raises:
        ValueError: no float network, unknown bits, or a folder of another network, data, seed, machine or code.
    """

    def __init__(
        self,
        start: str | os.PathLike[str],
        folder: Path,
        choices: Sequence[str],
        measure: Measure,
        data: str | os.PathLike[str] | None,
        size: int | None,
        frames: int,
        threads: int,
        seed: int,
    ):
        self.about = checkpoint.describe(start)
        if self.about.recipe is not None or self.about.path is None:
            raise ValueError(f"{self.about.name} is not a float network; wanted one to tune; give a float checkpoint")
        if len(set(choices)) < len(choices) or not choices:
            raise ValueError(f"choices {' '.join(choices)}; wanted different ones, such as w8a8 w4a6; change them")
        self.choices = {label: Bits.read(label) for label in choices}
        self.network = evened(checkpoint.load(start).eval())
        task = tasks.of(self.network)
        self.measure: Measure = measure
        self.threads, self.seed = threads, seed
        many = "cameras" in str(self.about.provenance.get("masks", ""))
        source = None if data is None else Path(data)
        self.data: Fitting = fitting(scale_of(self.network), source, frames=frames, cameras=many, seed=seed)
        self.fit = [self.data.fit.draw(step).inputs for step in range(BATCHES)]
        self.checked = [self.data.check.draw(step) for step in range(CHECKED)]
        side = size or SIZES[task.still]
        self.timed = task.ones(*(frames, side, side)[-len(task.axes) :])
        self.counted = (1 if task.still else frames, side, side)
        path = self.about.path
        facts = hashlib.sha256(path.read_bytes()).hexdigest(), self.data.about, frames, seed, code_and_machine()
        self.kept = Kept(folder, json.loads(json.dumps(facts)))

    @cached_property
    def variants(self) -> dict[str, nn.Module]:
        """The network with all layers at each choice, calibrated and its weights fitted; kept as packed files."""
        found: dict[str, nn.Module] = {}
        with stage("calibrating", len(self.choices)) as step:
            for label, bits in self.choices.items():
                file = self.kept.place(f"variant-{label}.safetensors")
                if not file.is_file():
                    recipe = Recipe(label, (Rule("*", bits),), "direct", "mse", "mse")
                    made, _ = quantize(self.network, recipe, self.fit)
                    fit_weights(made, self.network, self.fit)
                    checkpoint.save(made, file)
                found[label] = checkpoint.load(file)  # in every case: the same numbers, now and when this goes on
                step()
        return found

    @property
    def errors(self) -> Errors:
        """What each choice of each layer adds to the error of the output (`error_of`)."""
        name = f"errors-{self.measure}.json"
        known: Errors = self.kept.read(name) or {}
        done = sum(label in row for row in known.values() for label in self.choices)
        layers = len(quantized_layers(next(iter(self.variants.values()))))
        if done < layers * len(self.choices):
            with stage("measuring what bits spoil", layers * len(self.choices)) as step:

                def keep(found: Errors) -> None:
                    self.kept.write(name, found)
                    step(sum(label in row for row in found.values() for label in self.choices))

                known = sensitivity(
                    self.network, self.variants, self.inputs, self.measure,
                    weights=self.weights, known=known, on_step=keep,
                )  # fmt: skip
        return known

    @property
    def timing(self) -> CostModel:
        """Milliseconds of each choice of each layer on the native kernels.

        Raises:
            TypeError: they cannot time the network.
        """
        size = "x".join(map(str, self.timed[-1].shape[1:]))
        file = self.kept.folder / f"milliseconds-{size}-{self.threads}.json"
        if file.is_file():
            found = CostModel.read(file)
            if set(self.choices) <= set(found.whole):
                return found
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.rand(one.shape, generator=generator) for one in self.timed]
        with stage("measuring milliseconds", len(self.choices) * (ROUNDS + 1)) as step:
            found = measure_costs(self.variants, *inputs, threads=self.threads, rounds=ROUNDS, on_run=step)
        self.kept.folder.mkdir(parents=True, exist_ok=True)
        found.write(file)
        return found

    @cached_property
    def inputs(self) -> list[tuple[Tensor, ...]]:
        """What networks are checked on."""
        return [batch.inputs for batch in self.checked]

    @cached_property
    def wanted(self) -> list[Tensor]:
        """What the float network gives for it."""
        with torch.no_grad():
            return [self.network(*batch) for batch in self.inputs]

    @cached_property
    def weights(self) -> list[Tensor]:
        """One over the float network's own squared error, of each image or frame: PSNR is a mean of logarithms."""
        pairs = zip(self.wanted, self.checked, strict=True)
        errors = [(one - batch.truth).square().mean(batch.error_axes, keepdim=True) for one, batch in pairs]
        return [1 / error.clamp_min(LEAST) for error in errors]

    def error_of(self, network: nn.Module) -> float:
        """How large the squared error against the float network is, relative to that network's own.

        10 log10(1 + error) is about the loss of PSNR in dB, where the two errors have nothing to do with each other.
        """
        return output_error(network, self.inputs, self.wanted, self.weights)

    def loss_of(self, network: nn.Module) -> float:
        """The loss of PSNR in dB, on what is checked."""
        return self.float_psnr - mean_psnr(network, self.checked)

    @cached_property
    def float_psnr(self) -> float:
        """Of the float network, in dB, on what is checked."""
        return mean_psnr(self.network, self.checked)

    def program(self, timed: bool) -> Program:
        """Errors and costs of every choice."""
        errors, labels = self.errors, list(self.choices)
        layers = quantized_layers(next(iter(self.variants.values())))
        table = np.array([[errors[name][label] for label in labels] for name in layers])
        weights = {name: layer.layer.get_parameter("weight").numel() for name, layer in weighed(layers)}
        first, label = next(iter(self.variants.values())), labels[0]
        megabytes = self.table(layers, lambda name, bits: weights.get(name, 0) * bits.weight / 8e6)
        macs = {one.name: one.macs / 1e9 for one in count(self.network, *self.counted)}
        costs = {
            "MB": megabytes,
            "GMAC": self.table(layers, lambda name, bits: macs.get(name, 0.0) * max(bits.weight, bits.activation) / 32),
        }
        rest = {"MB": file_size(first) - float(megabytes[:, labels.index(label)].sum()), "GMAC": 0.0}
        rest["GMAC"] += sum(value for name, value in macs.items() if name not in layers)
        if timed:
            timing = self.timing
            rows = [[timing.layers[name][one] if name in weights else 0.0 for one in labels] for name in layers]
            costs, rest = {"ms": np.array(rows), **costs}, {"ms": timing.rest, **rest}
        return Program(tuple(layers), tuple(labels), table, costs, rest)

    def table(self, layers: Mapping[str, Any], price: Callable[[str, Bits], float]) -> np.ndarray:
        """A price of every choice of every layer."""
        return np.array([[price(name, bits) for bits in self.choices.values()] for name in layers])


class Kept:
    """A folder of what was measured, for one network and one kind of data.

    Raises:
        ValueError: it holds that of another one.
    """

    def __init__(self, folder: Path, identity: Any):
        self.folder, self.identity = folder, identity
        before = self.read("identity.json")
        if before is not None and before != identity:
            raise ValueError(
                f"{folder} holds measurements of another network, other data, another seed or machine, or of other "
                "code; wanted those of this one; remove it, or give another folder"
            )

    def read(self, name: str) -> Any:
        """What was kept under a name; None: nothing, or it is damaged."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, content: Any) -> None:
        """Keep something under a name."""
        with atomic_path(self.place(name)) as path:
            path.write_text(json.dumps(content), encoding="utf-8")

    def place(self, name: str) -> Path:
        """Where something under a name is kept; whose it is, is kept first."""
        if self.read("identity.json") is None:
            with atomic_path(self.folder / "identity.json") as path:
                path.write_text(json.dumps(self.identity), encoding="utf-8")
        return self.folder / name


def weighed(layers: Mapping[str, Any]) -> Iterator[tuple[str, Quantized]]:
    """The layers that have weights."""
    return ((name, layer) for name, layer in layers.items() if isinstance(layer, Quantized))


def file_size(network: nn.Module) -> float:
    """MB of a network as a packed checkpoint, without provenance."""
    with TemporaryDirectory() as folder:
        path = checkpoint.save(network, Path(folder) / "a.safetensors")
        return path.stat().st_size / 1e6


@torch.no_grad()
def mean_psnr(network: nn.Module, batches: Sequence[Any]) -> float:
    """Mean PSNR in dB over frames or images, all channels together."""
    values: list[Tensor] = []
    for one in batches:
        errors = (network(*one.inputs) - one.truth).square().mean(dim=one.error_axes).clamp_min(1e-10)
        values.append(-10 * errors.log10().flatten())
    return float(torch.cat(values).mean())


@contextmanager
def stage(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar; what it yields moves it on by one, or to where it is told."""
    with progress("") as bar:
        task = bar.add_task(label, total=total)

        def step(done: int | None = None) -> None:
            bar.update(task, advance=1 if done is None else None, completed=done)

        yield step
