"""`bitlens costs`: milliseconds of each layer at each bit-width on this machine, to choose bits by."""

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
    """Measure what every layer of an EfficientSCI costs at each bit-width on this machine, with the native kernels.

    The network is quantized at each of the bit-widths; the copies run in turn, and every call is timed where it stands.
    The file holds milliseconds by layer and bits, and what lies between the layers, so that the sum over any choice of
    bits predicts the whole network's time. Close other programs first.

    Example:
        bitlens costs efficientsci-t-qsci-w4a4 --out costs.json
    """

    model: tyro.conf.Positional[str]
    """A checkpoint, shipped or a path, or efficientsci-s, -b, -l untrained: time follows from shape. A float one gets
    Q-SCI's shortcuts."""
    out: Path
    """The file (.json)."""
    size: int = 256
    """Height and width of the measurement in pixels."""
    frames: int = 8
    """Frames in the measurement."""
    bits: tuple[int, ...] = (8, 4, 3, 2)
    """Bit-widths, of weights and activations."""
    threads: int = 2
    """CPU threads."""
    rounds: int = 5
    """Timed runs at each bit-width, in turn; the fastest counts."""

    def run(self) -> None:
        import torch

        from bitlens.bench import environment
        from bitlens.cli.shared import check_positive, output_file
        from bitlens.engine.costs import measure
        from bitlens.inference.machine import describe_run
        from bitlens.networks.catalog import entry_of
        from bitlens.progress import progress
        from bitlens.report import console

        for flag in ("size", "frames", "threads", "rounds"):
            check_positive(f"--{flag}", getattr(self, flag))
        if not self.bits or len(set(self.bits)) < len(self.bits) or not all(1 <= bits <= 8 for bits in self.bits):
            given = " ".join(map(str, self.bits))
            raise ValueError(f"--bits {given}; wanted different whole numbers from 1 to 8; change them")
        network = network_of(self.model)
        entry = entry_of(network)
        assert entry is not None
        mask = (torch.rand(1, self.frames, self.size, self.size) < 0.5).float()
        data = (mask * torch.rand(1, 1, self.size, self.size)).sum(1), mask
        with output_file(self.out, ".json") as path, progress("runs") as bar:
            assert path is not None
            task = bar.add_task("quantizing", total=len(self.bits) * (self.rounds + 1))
            networks = {bits: at(network, bits) for bits in self.bits}
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
        for bits, whole in costs.whole.items():
            sum_of = costs.milliseconds(dict.fromkeys(costs.layers, bits))
            out.print(f"{bits} bits everywhere: {whole:.1f} ms measured as a whole, {sum_of:.1f} ms as the sum")
        machine = costs.about["environment"]
        out.print(f"{machine['cpu']}, {costs.level}, {costs.threads} threads, the fastest of {self.rounds} runs each")
        out.print(f"{self.out}: {len(costs.layers)} layers")


def network_of(model: str) -> "nn.Module":
    """The float network whose copies are measured.

    Raises:
        TypeError: not an EfficientSCI.
    """
    import torch

    from bitlens import checkpoint
    from bitlens.engine.registry import NATIVE, own_graph
    from bitlens.methods import qsci
    from bitlens.networks.catalog import CATALOG
    from bitlens.quant.layers import quantized_layers
    from bitlens.quant.prepare import unprepare

    family, _, size = model.partition("-")
    known = family in NATIVE and NATIVE[family].module == "native"
    if known and size in CATALOG[family].sizes and model not in checkpoint.shipped():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return CATALOG[family].random(size, **qsci.options(4)).eval()
    network: Any = checkpoint.load(model)
    if own_graph(network).module != "native":
        raise TypeError(
            f"{model} holds {type(network).__name__}; wanted EfficientSCI without Q-ViT's normalization, each "
            "of whose layers is a kernel of its own; choose another checkpoint"
        )
    if quantized_layers(network):
        unprepare(network)
        return network
    return network.with_options(**qsci.options(4))


def at(network: "nn.Module", bits: int) -> "nn.Module":
    """A copy with all layers at the same bits; ranges are found on noise, as times do not depend on them."""
    import torch

    from bitlens.methods import quantize
    from bitlens.recipe import Bits, Recipe, Rule

    recipe = Recipe(f"w{bits}a{bits}", (Rule("*", Bits(bits, bits)),), "direct", "lsq", "percentile")
    data = torch.rand(1, 16, 16), torch.ones(1, 2, 16, 16)
    return quantize(network, recipe, [data])[0]


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
    title = f"{model}, one measurement of {'x'.join(map(str, costs.size))}: milliseconds"
    return table(title, ["layer", "methods", "times", *(f"{bits} bits" for bits in widths)], rows, texts=2)
