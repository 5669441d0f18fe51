"""Q-SCI's experiments as data: which networks each compares, and what the paper found [Q-SCI tab. 1, 2, 4; fig. 4].

Every variant starts from the same float network, is calibrated on the same clips and trained by the same loop for the
same number of steps; `bitlens experiment` runs them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.methods import direct, qsci, quantize
from bitlens.recipe import Recipe, Rule

__all__ = ["BUDGETS", "EXPERIMENTS", "Budget", "Experiment", "Variant", "head_means", "mean_drift"]


@dataclass(frozen=True)
class Budget:
    """How long every variant trains."""

    steps: int
    batch: int
    """Samples per step."""
    crop: int
    """Height and width of a sample in pixels."""


BUDGETS = {
    "minutes": Budget(60, 2, 64),
    "hours": Budget(1_500, 4, 64),
    "gpu": Budget(40_000, 16, 128),
}
"""A look at it, an answer on a CPU, and what a GPU does in a night."""


@dataclass(frozen=True)
class Variant:
    """One low-bit network of an experiment."""

    name: str
    recipe: Recipe
    paper: float | None
    """PSNR in dB against the float network in the paper, with EfficientSCI-S."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the network."""

    def build(self, network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
        """The network with these options, fake-quantized and calibrated."""
        changed = network.with_options(**self.options) if self.options else network  # type: ignore[operator]
        return quantize(changed, self.recipe, batches)[0]


@dataclass(frozen=True)
class Experiment:
    """Variants to compare."""

    title: str
    variants: tuple[Variant, ...]
    drift: bool = False
    """Measure how far the means of query and key have moved from the float network's."""


def part(name: str, *patterns: str) -> Recipe:
    """4 bits for the layers of these names; everything else stays float."""
    return Recipe(f"{name}-w4a4", tuple(Rule(pattern, direct.layer_bits(4, "deployable")) for pattern in patterns))


EXPERIMENTS = {
    "qsci-table": Experiment(
        "Q-SCI at 8, 4, 3 and 2 bits [Q-SCI tab. 2]",
        tuple(
            Variant(f"{bits} bits", qsci.recipe(bits), paper, qsci.options(bits))
            for bits, paper in ((8, 0.06), (4, -0.82), (3, -1.89), (2, -3.89))
        ),
    ),
    "qsci-modules": Experiment(
        "One module at 4 bits, without Q-SCI's additions [Q-SCI tab. 1]",
        (
            Variant("FEM", part("fem", "fem.*"), -2.22),
            Variant("ResDNet", part("resdnet", "resdnet_list.*"), -0.52),
            Variant("VRM", part("vrm", "up_conv", "vrm.*"), -0.49),
            Variant("everything", direct.recipe(4), -4.11),
        ),
    ),
    "qsci-ablation": Experiment(
        "Q-SCI's additions one after the other, at 4 bits [Q-SCI tab. 4]",
        (
            Variant("direct", direct.recipe(4), -4.11),
            Variant("+ shift", qsci.recipe(4), -3.58, {"shift": True}),
            Variant("+ FEM", qsci.recipe(4), -1.23, {"shift": True, "shortcuts": "fem"}),
            Variant("+ VRM", qsci.recipe(4), -0.80, {"shift": True, "shortcuts": True}),
        ),
    ),
    "qsci-shift": Experiment(
        "How far the means of query and key move at 8 bits [Q-SCI fig. 4: 1.207 without shift]",
        (Variant("direct", direct.recipe(8), None), Variant("shift", qsci.recipe(8), 0.06, {"shift": True})),
        drift=True,
    ),
}
"""The paper's experiments by name."""


def mean_drift(network: nn.Module, reference: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How far the means of query and key have moved from another network's, per head, before any grid.

    Returns:
        Largest and mean |difference| over layers and heads: query_max, query_mean, key_max, key_mean.
    """
    found, wanted = head_means(network, batches), head_means(reference, batches)
    result = {}
    for which in ("query", "key"):
        moved = torch.cat([(found[key] - wanted[key]).abs() for key in wanted if key[1] == which])
        result |= {f"{which}_max": float(moved.max()), f"{which}_mean": float(moved.mean())}
    return result


def head_means(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[tuple[str, str], Tensor]:
    """Mean (heads,) of each attention's query and key over batches, by (name of the product, "query" or "key")."""
    seen: dict[tuple[str, str], list[Tensor]] = {}
    hooks = []
    for name, module in network.named_modules():
        if name.rpartition(".")[2] == "scores":

            def see(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                for which, values in zip(("query", "key"), inputs, strict=True):
                    seen.setdefault((name, which), []).append(values.mean(dim=(0, 2, 3, 4)))

            hooks.append(module.register_forward_pre_hook(see))
    try:
        with torch.no_grad():
            for batch in batches:
                network(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: torch.stack(values).mean(0) for key, values in seen.items()}
