"""`bitlens costs`: milliseconds of each layer at each choice of bits on this machine, to choose bits by."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from bitlens.engine.costs import CostModel


@dataclass(frozen=True)
class Costs:
    """Measure what every layer of a network costs at each choice of bits on this machine, with the native kernels.

    The network is quantized at each of the choices; the copies run in turn, and every call is timed where it stands.
    The file holds milliseconds by layer and choice, and what lies between the layers, so that the sum over any choices
    predicts the whole network's time. Close other programs first.

    Example:
        bitlens costs efficientsci-t-qsci-w4a4 --out costs.json
        bitlens costs abpn-x2 --bits w8a8 w4a6 w2a2 --out costs.json
    """

    model: tyro.conf.Positional[str]
    """A checkpoint, shipped or a path, or efficientsci-s, -b, -l untrained: time follows from shape. A float one of
    EfficientSCI gets Q-SCI's shortcuts."""
    out: Path
    """The file (.json)."""
    size: int = 256
    """Height and width in pixels of the measurement, or of an image before it is enlarged."""
    frames: int = 8
    """Frames in the measurement."""
    bits: tuple[str, ...] = ("w8a8", "w4a4", "w3a3", "w2a2")
    """Bits of weights and activations."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 5
    """Timed runs of each choice, in turn; the fastest counts."""

    def run(self) -> None:
        from bitlens.bench import environment
        from bitlens.cli.shared import check_positive, output_file
        from bitlens.engine.costs import measure
        from bitlens.inference.machine import describe_run
        from bitlens.networks.catalog import entry_of
        from bitlens.progress import progress
        from bitlens.recipe import Bits
        from bitlens.report import console

        for flag in ("size", "frames", "threads", "rounds"):
            check_positive(f"--{flag}", getattr(self, flag))
        choices = [Bits.read(label) for label in self.bits]
        if not choices or len(set(choices)) < len(choices):
            raise ValueError(f"--bits {' '.join(self.bits)}; wanted different ones, such as w8a8 w4a4; change them")
        network = network_of(self.model)
        entry = entry_of(network)
        assert entry is not None
        data = noise(network, self.frames, self.size)
        with output_file(self.out, ".json") as path, progress("runs") as bar:
            assert path is not None
            task = bar.add_task("quantizing", total=len(self.bits) * (self.rounds + 1))
            networks = {bits.label: at(network, bits) for bits in choices}
            bar.update(task, description="measuring")
            options: dict[str, Any] = dict(threads=self.threads, rounds=self.rounds)
            costs = measure(networks, *data, **options, on_run=lambda: bar.advance(task))
            about = {
                "model": self.model,
                "network": entry.name,
                "config": network.config,
                "rounds": self.rounds,
                "environment": environment(),
                "run": describe_run() | {"threads": self.threads},
            }
            costs = replace(costs, about=about)
            costs.write(path)
        out = console()
        out.print(table_of(costs, self.model))
        for choice, whole in costs.whole.items():
            sum_of = costs.milliseconds(dict.fromkeys(costs.layers, choice))
            out.print(f"{choice} everywhere: {whole:.1f} ms measured as a whole, {sum_of:.1f} ms as the sum")
        machine = costs.about["environment"]
        out.print(f"{machine['cpu']}, {costs.level}, {costs.threads} threads, the fastest of {self.rounds} runs each")
        out.print(f"{self.out}: {len(costs.layers)} layers")


def network_of(model: str) -> "Any":
    """The float network whose copies are measured."""
    import torch

    from bitlens import checkpoint
    from bitlens.engine.registry import NATIVE
    from bitlens.methods import qsci
    from bitlens.networks.catalog import CATALOG
    from bitlens.quant.layers import quantized_layers
    from bitlens.quant.prepare import unprepare

    family, _, size = model.partition("-")
    own = family in NATIVE and NATIVE[family].module == "native"
    if own and size in CATALOG[family].sizes and model not in checkpoint.shipped():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return CATALOG[family].random(size, **qsci.options(4)).eval()
    network: Any = checkpoint.load(model)
    if quantized_layers(network):
        unprepare(network)
        return network
    return network.with_options(**qsci.options(4)) if "shortcuts" in getattr(network, "config", {}) else network


def noise(network: "nn.Module", frames: int, size: int) -> "tuple[Any, ...]":
    """Inputs of a network, of random numbers, for a batch of one: measurement and mask, or an image."""
    import torch

    from bitlens import tasks

    task = tasks.of(network)
    inputs = task.ones(*(frames, size, size)[-len(task.axes) :])
    if task.still:
        return tuple(torch.rand_like(one) for one in inputs)
    mask = (torch.rand_like(inputs[1]) < 0.5).float()
    return (mask * torch.rand(1, 1, size, size)).sum(1), mask


def at(network: "nn.Module", bits: "Any") -> "nn.Module":
    """A copy with all layers at the same bits; ranges are found on noise, as times do not depend on them."""
    from bitlens.methods import quantize
    from bitlens.recipe import Recipe, Rule

    recipe = Recipe(bits.label, (Rule("*", bits),), "direct", "lsq", "percentile")
    return quantize(network, recipe, [noise(network, 2, 16)])[0]


def table_of(costs: "CostModel", model: str) -> "Table":
    """Layers with equal roles in different blocks together; what is between them by its kind."""
    from bitlens.report import table

    widths, groups = list(costs.whole), {}
    for name in costs.layers:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    rows = []
    for role, names in groups.items():
        spent = [sum(costs.layers[name][bits] for name in names) for bits in widths]
        methods = ", ".join(dict.fromkeys(costs.methods[names[0]][bits] for bits in widths))
        rows.append([role, methods, str(len(names)), *(f"{ms:.2f}" for ms in spent)])
    rows.sort(key=lambda row: -float(row[3]))
    rows += [[f"({name})", "", "", *[f"{ms:.2f}"] * len(widths)] for name, ms in costs.between.items()]
    title = f"{model}, one {'measurement' if len(costs.size) == 3 else 'image'} of {'x'.join(map(str, costs.size))}: ms"
    return table(title, ["layer", "methods", "times", *widths], rows, texts=2)
