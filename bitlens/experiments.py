"""The papers' experiments as data: which networks each compares, and what the paper found.

[Q-SCI tab. 1, 2, 4; fig. 4], on video: every variant starts from the same float network, is calibrated on the same
clips and, unless it needs no training, trained by the same loop for the same number of steps. [2DQuant tab. 3], on
super-resolution: every method quantizes the same layers of the same networks, and refines for the same time.
`bitlens experiment` runs them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.methods import direct, pams, ptq, qsci, quantize, qvit
from bitlens.recipe import Recipe, Rule

__all__ = [
    "BUDGETS", "EXPERIMENTS", "SR_BITS", "SR_BUDGETS", "SR_METHODS", "SR_PAPER", "SR_SETS", "Budget", "Experiment",
    "Refining", "Variant", "head_means", "mean_drift",
]  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How long every variant trains."""

    steps: int
    batch: int
    """Samples per step."""
    crop: int
    """Height and width of a sample in pixels."""


BUDGETS = {
    "minutes": Budget(120, 2, 64),
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
    trained: bool = True
    """False: quantized and calibrated, and no more."""
    settings: dict[str, float] = field(default_factory=dict)
    """What the method prescribes of the loop: its own terms of the loss, beside those that all have."""

    @property
    def network(self) -> str:
        """What is built, in a file's name: two experiments share what they both build."""
        options = (name if value is True else f"{name}-{value}" for name, value in self.options.items() if value)
        return "-".join([self.recipe.name, *options])

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
        (Variant("direct", direct.recipe(8), None), Variant("shift", qsci.recipe(8), 0.06, qsci.options(8))),
        drift=True,
    ),
    "qsci-baselines": Experiment(
        "Other methods at 4 bits, by the same loop",
        (
            *(Variant(label, choice.recipe(4), None, trained=False) for label, choice in (
                ("MinMax", ptq.MINMAX), ("Percentile", ptq.PERCENTILE), ("DOBI", ptq.DOBI),
            )),
            Variant("direct (LSQ)", direct.recipe(4), -4.11),
            Variant("PAMS", pams.recipe(4), None, settings={"distill_attention": 1.0, "scale_learning_rate": 1e-2}),
            Variant("Q-ViT", qvit.recipe(4), None, qvit.options(4), settings={"distill_similarity": 1.0}),
            Variant("Q-SCI", qsci.recipe(4), -0.82, qsci.options(4)),
        ),
    ),
}  # fmt: skip
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


@dataclass(frozen=True)
class Refining:
    """How long every method of the super-resolution table refines, and on how much."""

    minutes: float | None
    """Stop after this time; None: when the steps are done, which is comparable on a machine that does other things."""
    steps: int
    """Most steps."""
    batch: int
    """Crops per step."""
    crop: int
    """Height and width of a crop before it is enlarged."""
    pool: int
    """Batches that steps take one of."""


SR_BUDGETS = {
    "minutes": Refining(None, 120, 2, 32, 64),
    "hours": Refining(18.0, 3_000, 2, 64, 128),
    "gpu": Refining(240.0, 3_000, 32, 64, 64),
}
"""Half a minute to two minutes of a free core a method, the twenty minutes that a user waits for, and the paper's 3,000
steps of 32 crops."""

SR_BITS = (4, 3, 2)

SR_METHODS = (
    ("MinMax", "minmax", "official"),
    ("Percentile", "percentile", "official"),
    ("DBDC+PaC", "dbdc-pac", "official"),
    ("DOBI", "dobi", "official"),
    ("DQC", "dqc", "official"),
    ("2DQuant", "2dquant", "official"),
    ("CondiQuant", "condiquant", "official"),
    ("2DQuant, deployable", "2dquant", "deployable"),
    ("balanced, deployable", "balanced", "deployable"),
    ("GPTQ, deployable", "gptq", "deployable"),
    ("2DQuant plus, deployable", "2dquant-plus", "deployable"),
    ("SVDQuant, deployable", "svdquant", "deployable"),
    ("BRECQ, deployable", "brecq", "deployable"),
)
"""What a row is called, its method and its grid, in the order of the paper's table; the last six go beyond it."""

SR_SETS = ("set5", "set14", "urban10")

SR_FLOAT = {2: (38.15, 33.86), 4: (32.45, 28.77)}
"""PSNR in dB on Set5 and Set14 of the paper's float SwinIR-light, by scale [2DQuant tab. 3]."""

SR_SCORES = {
    2: {
        "MinMax": ((34.39, 30.55), (28.19, 26.40), (33.88, 30.81)),
        "Percentile": ((37.37, 32.96), (34.37, 31.04), (30.82, 28.80)),
        "DBDC+PaC": ((37.18, 32.86), (35.07, 31.52), (34.55, 31.12)),
        "DOBI": ((37.44, 33.15), (36.37, 32.33), (35.25, 31.72)),
        "2DQuant": ((37.87, 33.41), (37.32, 32.85), (36.00, 31.98)),
        "CondiQuant": ((38.03, 33.50), (37.77, 33.21), (37.15, 32.74)),
    },
    4: {
        "MinMax": ((28.63, 25.73), (19.41, 18.35), (23.96, 22.92)),
        "Percentile": ((30.64, 27.61), (27.55, 25.15), (23.03, 22.12)),
        "DBDC+PaC": ((30.74, 27.66), (27.91, 25.86), (25.01, 23.82)),
        "DOBI": ((31.10, 28.03), (29.59, 26.87), (28.82, 26.46)),
        "2DQuant": ((31.77, 28.30), (30.90, 27.75), (29.53, 26.86)),
        "CondiQuant": ((32.09, 28.50), (31.62, 28.20), (30.64, 27.59)),
    },
}
"""The same at 4, 3 and 2 bits, by scale and method; CondiQuant's own table for its row."""

SR_PAPER = {
    (scale, method, bits): {
        name: round(value - whole, 2) for name, value, whole in zip(SR_SETS, scores[i], SR_FLOAT[scale], strict=False)
    }
    for scale, methods in SR_SCORES.items()
    for method, scores in methods.items()
    for i, bits in enumerate(SR_BITS)
}
"""dB against float that the papers report for SwinIR-light, by (scale, method, bits) and test set."""
